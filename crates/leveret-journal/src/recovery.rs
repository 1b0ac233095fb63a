//! Reading the journal back: what is whole, what is torn, what is damaged.
//!
//! Invariant: reading changes nothing that decides what is read the next time.

use std::collections::BTreeMap;
use std::io;
use std::ops::Range;

use crate::disk::{Disk, DiskFile};
use crate::format::{
    ALIGNMENT, BATCH_HEADER_BYTES, FoundBatch, HeaderFound, RECORD_HEADER_BYTES, Record, Replay,
    SEGMENT_HEADER_BYTES, Salt, Seeds, SegmentHeader, StreamState, VERSION, damaged_region_prefix, generation_of,
};
use crate::keeper::COMPACTED_SUFFIX;
use crate::log::end_segment;
use crate::map::{Candidates, Condition, Map};
use crate::pieces::Pieces;

/// Why a journal cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// A newer Leveret wrote it.
    #[error(
        "{file} has format version {found}, and this Leveret reads {VERSION}: start the version that wrote it, or \
         choose another folder; nothing was changed"
    )]
    Newer {
        /// The segment that says so.
        file: String,
        /// The version it has.
        found: u32,
    },
    /// The disk refuses.
    #[error("the disk refuses: {0}")]
    Disk(#[from] io::Error),
}

/// What was found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Recovery {
    /// Whether there was no journal before.
    pub is_new: bool,
    /// Segments that belong to the journal.
    pub segments: u64,
    /// Records that were handed out.
    pub records: u64,
    /// Bytes of batches that are valid.
    pub bytes: u64,
    /// The torn end of the journal, if it has one.
    pub cut: Option<Cut>,
    /// What was durable once and cannot be read any more.
    pub damage: Vec<Damage>,
    /// The last sequence that each stream ever had, also among records that are missing; what comes next goes on
    /// behind it.
    pub streams: BTreeMap<u32, u64>,
}

impl Recovery {
    /// How many records are missing, at most.
    pub fn records_missing(&self) -> u64 {
        self.damage.iter().map(|damage| damage.records_missing).sum()
    }
}

/// A torn end: nobody was promised what was there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cut {
    /// The segment.
    pub file: String,
    /// Where the journal ends in it.
    pub offset: u64,
}

/// A region that was durable once and does not verify.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Damage {
    /// The segment.
    pub file: String,
    /// Where the region begins in it.
    pub offset: u64,
    /// How long it is, in bytes.
    pub bytes: u64,
    /// Records that were there and cannot be read; where nothing tells how many, the most that could be.
    pub records_missing: u64,
    /// The file to which the region was copied.
    pub set_aside: Option<String>,
}

/// Where the journal ends.
#[derive(Clone, Debug)]
pub(crate) struct End {
    /// The last segment of the journal; 0 if there is none.
    pub(crate) generation: u64,
    pub(crate) offset: u64,
    /// Bytes before that which nothing proves to be synced: the last batch, if no marker follows it.
    pub(crate) unproven: u64,
    /// The greatest generation that any file has.
    pub(crate) last_generation: u64,
    pub(crate) next_sequence: u64,
    /// What any segment says it is.
    pub(crate) salt: Option<Salt>,
    /// Where reading begins, as the last header says.
    pub(crate) replay: Replay,
    /// For each stream, the first record that is handed out.
    replay_from: BTreeMap<u32, u64>,
}

impl End {
    /// All streams as the header of the next segment has them.
    pub(crate) fn streams(&self, recovery: &Recovery) -> BTreeMap<u32, StreamState> {
        let replay_from = |stream| self.replay_from.get(stream).copied().unwrap_or_default();
        recovery
            .streams
            .iter()
            .map(|(stream, &last)| (*stream, StreamState { last, replay_from: replay_from(stream) }))
            .collect()
    }
}

/// Reads a journal and changes nothing.
///
/// # Errors
/// As [`crate::Log::open`].
pub fn check(disk: &dyn Disk, each: &mut dyn FnMut(Record<'_>)) -> Result<Recovery, OpenError> {
    read(disk, false, each).map(|(recovery, ..)| recovery)
}

struct Segment {
    name: String,
    generation: u64,
    header: Option<SegmentHeader>,
    seeds: Seeds,
    length: u64,
    /// An earlier start found damage in it, and left a copy of that.
    was_damaged: bool,
}

impl Segment {
    fn pieces(&self, disk: &dyn Disk) -> io::Result<Pieces> {
        Pieces::open(disk, &self.name, self.length, self.seeds)
    }

    /// Whether it holds what was left of others, and perhaps of itself.
    fn is_compacted(&self) -> bool {
        self.header.as_ref().is_some_and(|header| header.compacted_through > 0)
    }
}

/// Reads a journal, handing out its records. With `repair`, sets damage aside, removes what interrupted starts left
/// behind, and makes durable what was read.
pub(crate) fn read(
    disk: &dyn Disk,
    repair: bool,
    each: &mut dyn FnMut(Record<'_>),
) -> Result<(Recovery, End, Map), OpenError> {
    let Files { segments, salt, leftovers } = segments(disk)?;
    let last_generation = segments.last().map_or(0, |last| last.generation);
    let recovery = Recovery { is_new: segments.is_empty(), ..Recovery::default() };
    let last_header = segments.iter().rev().find_map(|segment| segment.header.as_ref());
    let replay = last_header.map_or(Replay::ALL, |header| header.replay);
    let replay_from = last_header.into_iter().flat_map(|header| &header.streams);
    let replay_from = replay_from.map(|(&stream, state)| (stream, state.replay_from)).collect();
    let end = End {
        generation: 0,
        offset: 0,
        unproven: 0,
        last_generation,
        next_sequence: replay.sequence,
        salt,
        replay,
        replay_from,
    };
    let (mut map, candidates) = (Map::default(), Candidates::default());
    for segment in segments.iter().filter(|segment| segment.was_damaged) {
        map.set_condition(segment.generation, Condition::Damaged, segment.length);
    }
    let mut reader = Reading { disk, repair, segments: &segments, recovery, end, map, candidates };
    let mut has_ended = false;
    for (at, segment) in segments.iter().enumerate() {
        if segment.generation < replay.generation || segment.is_compacted() {
            reader.pass_over(at)?;
        } else if has_ended {
            reader.behind_the_end(at)?;
        } else {
            has_ended = !reader.segment(at, each)?;
        }
    }
    let ends: Vec<_> = (0..segments.len()).map(|at| reader.end_of(at)).collect();
    let Reading { mut recovery, end, map, .. } = reader;
    let missing = recovery.records_missing();
    if missing > 0 {
        // Whose they were, nobody knows.
        recovery.streams.values_mut().for_each(|last| *last += missing);
    }
    if repair {
        // Somebody may have been told of what is only in the cache of the operating system.
        if let Some(last) = segments.iter().find(|segment| segment.generation == end.generation) {
            // After a failed sync the cache may hold what the disk does not, and believe that it does: write it again.
            let length = usize::try_from(end.unproven).map_err(|_| io::Error::from(io::ErrorKind::FileTooLarge))?;
            let mut bytes = vec![0; length];
            let from = end.offset - end.unproven;
            let file = disk.open(&last.name)?;
            file.read_at(from, &mut bytes)?;
            file.write_at(from, &bytes)?;
            if let Some(header) = &last.header {
                file.write_at(0, &header.encode())?;
            }
            file.sync()?;
        }
        let is_damaged = |segment: &Segment| {
            segment.was_damaged || recovery.damage.iter().any(|damage| damage.file == segment.name)
        };
        let behind =
            segments.iter().filter(|segment| segment.generation > end.generation.max(end.replay.generation));
        // A power cut may have come before that.
        for (segment, end) in segments.iter().zip(ends).filter(|(segment, _)| !is_damaged(segment)) {
            if end < segment.length {
                end_segment(&*disk.open(&segment.name)?, end)?;
            }
        }
        for leftover in behind.filter(|segment| !is_damaged(segment)) {
            disk.remove(&leftover.name)?;
        }
        let unfinished = disk.list()?.into_iter().filter(|name| name.ends_with(COMPACTED_SUFFIX));
        for name in leftovers.into_iter().chain(unfinished) {
            disk.remove(&name)?;
        }
        disk.sync_directory()?;
    }
    Ok((recovery, end, map))
}

/// The files of a journal.
struct Files {
    /// In order.
    segments: Vec<Segment>,
    /// What any of them says it is.
    salt: Option<Salt>,
    /// Segments of which another one holds what is left.
    leftovers: Vec<String>,
}

fn segments(disk: &dyn Disk) -> Result<Files, OpenError> {
    let mut segments = Vec::new();
    let names = disk.list()?;
    for name in &names {
        let Some(generation) = generation_of(name) else { continue };
        let file = disk.open(name)?;
        let length = file.length()?;
        let region = damaged_region_prefix(generation);
        let (name, was_damaged) = (name.clone(), names.iter().any(|name| name.starts_with(&region)));
        let header = match read_header(&*file, length) {
            HeaderFound::Valid(header) => Some(header).filter(|header| header.generation == generation),
            HeaderFound::Newer(found) => return Err(OpenError::Newer { file: name, found }),
            HeaderFound::Invalid => None,
        };
        let seeds = Seeds::new(&Salt::default(), generation);
        segments.push(Segment { name, generation, header, seeds, length, was_damaged });
    }
    segments.sort_by_key(|segment| segment.generation);
    // What is left of some of them is in the first of these.
    let compacted = segments.iter().filter_map(|segment| segment.header.as_ref());
    let covered: Vec<_> = compacted.map(|header| header.generation + 1..=header.compacted_through).collect();
    let is_covered = |segment: &Segment| covered.iter().any(|range| range.contains(&segment.generation));
    let leftovers = segments.extract_if(.., |segment| is_covered(segment)).map(|segment| segment.name).collect();
    let salt = segments.iter().find_map(|segment| Some(segment.header.as_ref()?.salt));
    for segment in &mut segments {
        segment.seeds = Seeds::new(&salt.unwrap_or_default(), segment.generation);
    }
    Ok(Files { segments, salt, leftovers })
}

/// A header that the disk cannot read is as invalid as any.
pub(crate) fn read_header(file: &dyn DiskFile, length: u64) -> HeaderFound {
    let mut bytes = vec![0; SEGMENT_HEADER_BYTES];
    let Ok(count) = file.read_at(0, &mut bytes) else { return HeaderFound::Invalid };
    bytes.truncate(count);
    let claimed = SegmentHeader::bytes_claimed(&bytes);
    if claimed as u64 > length {
        return HeaderFound::Invalid;
    }
    bytes.resize(claimed, 0);
    match file.read_at(0, &mut bytes) {
        Ok(_) => SegmentHeader::decode(&bytes),
        Err(_) => HeaderFound::Invalid,
    }
}

struct Reading<'r> {
    disk: &'r dyn Disk,
    repair: bool,
    segments: &'r [Segment],
    recovery: Recovery,
    end: End,
    map: Map,
    candidates: Candidates,
}

impl Reading<'_> {
    /// Reads one segment; false if the journal ends before its end.
    fn segment(&mut self, at: usize, each: &mut dyn FnMut(Record<'_>)) -> Result<bool, OpenError> {
        let segment = &self.segments[at];
        let mut pieces = segment.pieces(self.disk)?;
        // Where batches begin in a segment that has lost its header follows from what was read before it.
        let header_bytes = SegmentHeader::bytes_with(self.recovery.streams.len());
        let begin = segment.header.as_ref().map_or(header_bytes, SegmentHeader::bytes) as u64;
        let begin = begin.min(segment.length);
        let mut has_batch = || pieces.next_batch(begin, segment.length, self.end.next_sequence).is_some();
        if segment.header.is_none() && !has_batch() {
            if self.first_sequence_behind(at)?.is_none() {
                self.behind_the_end(at)?;
                return Ok(false);
            }
            self.damaged(segment, &mut pieces, 0..segment.length, 0);
            return Ok(true);
        }
        let limit = self.end_of(at);
        self.recovery.segments += 1;
        (self.end.generation, self.end.offset, self.end.unproven) = (segment.generation, begin, 0);
        if let Some(header) = &segment.header {
            for (&stream, state) in &header.streams {
                self.saw(stream, state.last);
            }
            if header.first_sequence > self.end.next_sequence {
                self.missing(segment, 0, header.first_sequence - self.end.next_sequence);
                self.end.next_sequence = header.first_sequence;
            }
        }
        self.map.begin(segment.generation, self.end.next_sequence);
        let mut offset = begin;
        // What lies before this cannot be passed over when a single record is read.
        let mut whole_from = begin;
        while offset < limit {
            let batch = pieces.batch(offset, limit);
            if let Some(batch) = batch.filter(|batch| batch.first_sequence >= self.end.next_sequence) {
                if batch.first_sequence > self.end.next_sequence {
                    self.missing(segment, offset, batch.first_sequence - self.end.next_sequence);
                }
                self.take(segment, offset, whole_from, &batch, each);
                self.end.next_sequence = batch.first_sequence + u64::from(batch.count);
                self.end.unproven = if batch.count > 0 { batch.bytes() as u64 } else { 0 };
                self.recovery.bytes += batch.bytes() as u64;
                offset += batch.bytes() as u64;
                self.end.offset = offset;
                continue;
            }
            let next = pieces.next_batch(offset, limit, self.end.next_sequence);
            let mut durable_before = match self.first_sequence_behind(at)? {
                // Nothing is missing: the journal went on in the next segment, and what is here was never part of it.
                Some(first_sequence) if first_sequence <= self.end.next_sequence => return Ok(true),
                Some(first_sequence) => first_sequence,
                None => 0,
            };
            let mut from = next.map(|(at, _)| at);
            while let Some(found) = from {
                let batch = pieces.batch(found, limit);
                durable_before = durable_before.max(batch.map_or(0, |batch| batch.durable_before));
                let behind = found + batch.map_or(ALIGNMENT, |batch| batch.bytes()) as u64;
                from = pieces.next_batch(behind, limit, self.end.next_sequence).map(|(at, _)| at);
            }
            if durable_before <= self.end.next_sequence {
                let unreadable = pieces.unreadable_in(offset..limit);
                if unreadable > 0 {
                    // Nothing tells whether something durable was there.
                    self.damaged(segment, &mut pieces, offset..limit, most_records(unreadable));
                } else if !pieces.is_blank(offset, limit) {
                    self.recovery.cut = Some(Cut { file: segment.name.clone(), offset });
                }
                return Ok(false);
            }
            let region_end = next.map_or(limit, |(at, _)| at);
            let salvaged_from = (offset + BATCH_HEADER_BYTES as u64).min(region_end);
            let salvaged = self.salvage(segment, &mut pieces, salvaged_from..region_end, each);
            whole_from = region_end;
            // What is missing before the next segment is counted when that is read.
            let next_sequence =
                next.map_or(self.end.next_sequence + salvaged, |(_, first_sequence)| first_sequence);
            let missing = (next_sequence - self.end.next_sequence).saturating_sub(salvaged);
            if next.is_some() || !pieces.is_blank(offset, region_end) {
                self.damaged(segment, &mut pieces, offset..region_end, missing);
            }
            self.end.next_sequence = next_sequence;
            self.end.unproven = 0;
            offset = region_end;
            self.end.offset = offset;
        }
        Ok(true)
    }

    /// A segment from which nothing is handed out. Its records are found by what its header says or, if that is damaged,
    /// by what is in it.
    fn pass_over(&mut self, at: usize) -> Result<(), OpenError> {
        let segment = &self.segments[at];
        if let Some(header) = &segment.header {
            for (&stream, state) in &header.streams {
                self.saw(stream, state.last);
            }
            let next = self.segments[at + 1..].iter().find_map(|next| next.header.as_ref());
            let end = self.end_of(at);
            self.map.add_unread(header, next, end);
            // A start must not take longer because of what it does not need; somebody who asks has time.
            return if self.repair { Ok(()) } else { self.look_through(segment, header, end) };
        }
        let mut pieces = segment.pieces(self.disk)?;
        let limit = self.end_of(at);
        let mut before = self.segments[..at].iter().rev().filter_map(|before| before.header.as_ref());
        let before = before.next().map_or(1, |before| before.first_sequence);
        let behind = self.segments[at + 1..].iter().find_map(|behind| behind.header.as_ref());
        let mut verified = SegmentHeader::bytes_with(behind.map_or(0, |behind| behind.streams.len())) as u64;
        let mut missing = behind.map_or(u64::MAX, |behind| behind.first_sequence.saturating_sub(before));
        let mut from = 0;
        while let Some((offset, _)) = pieces.next_batch(from, limit, 0)
            && let Some(batch) = pieces.batch(offset, limit)
        {
            let whole_from = if from == offset { 0 } else { offset };
            let found = self.take(segment, offset, whole_from, &batch, &mut |_| {});
            missing = missing.saturating_sub(found);
            verified += batch.bytes() as u64;
            from = offset + batch.bytes() as u64;
        }
        self.map.set_condition(segment.generation, Condition::Unknown, segment.length);
        self.missing(segment, 0, missing.min(most_records(limit.saturating_sub(verified))));
        Ok(())
    }

    /// Verifies the batches of a segment.
    fn look_through(&mut self, segment: &Segment, header: &SegmentHeader, end: u64) -> Result<(), OpenError> {
        let mut pieces = segment.pieces(self.disk)?;
        self.recovery.segments += 1;
        let (mut offset, mut expected) = (header.bytes() as u64, header.first_sequence);
        while offset < end {
            // Batches that were put together again have lost their numbers.
            let at_least = if segment.is_compacted() { 0 } else { expected };
            let next = pieces.next_batch(offset, end, at_least);
            let found = next.map_or(end, |(found, _)| found);
            if found > offset {
                let missing = next.map_or(1, |(_, first_sequence)| first_sequence.saturating_sub(expected)).max(1);
                self.damaged(segment, &mut pieces, offset..found, missing);
            }
            let Some(batch) = pieces.batch(found, end) else { break };
            expected = batch.first_sequence + u64::from(batch.count);
            self.recovery.bytes += batch.bytes() as u64;
            offset = found + batch.bytes() as u64;
        }
        Ok(())
    }

    /// A segment without a header and without batches, at the end of the journal. If nothing was ever appended to it, nothing
    /// is lost; anything else is damage.
    fn behind_the_end(&mut self, at: usize) -> Result<(), OpenError> {
        let segment = &self.segments[at];
        let mut pieces = segment.pieces(self.disk)?;
        let header_bytes = SegmentHeader::bytes_with(self.recovery.streams.len()) as u64;
        // All of it is read, to know whether it can be.
        let _ = pieces.used();
        if !pieces.is_blank(header_bytes, segment.length) || !pieces.is_readable() {
            self.damaged(segment, &mut pieces, 0..segment.length, most_records(segment.length));
        }
        Ok(())
    }

    /// Hands out the records of a batch that begins at an offset, and remembers where they are. Returns how many they are.
    fn take(
        &mut self,
        segment: &Segment,
        offset: u64,
        whole_from: u64,
        batch: &FoundBatch<'_>,
        each: &mut dyn FnMut(Record<'_>),
    ) -> u64 {
        let mut count = 0;
        for (offset, record) in batch.records() {
            count += 1;
            self.take_one(offset as u64, record, each);
        }
        let begin = offset + BATCH_HEADER_BYTES as u64;
        self.place(segment, begin..begin + batch.payload_bytes() as u64, whole_from, count);
        count
    }

    /// The same with records that verify by themselves, one after the other from the beginning of a range on. One that does
    /// not verify is passed over if one that does follows it.
    fn salvage(
        &mut self,
        segment: &Segment,
        pieces: &mut Pieces,
        range: Range<u64>,
        each: &mut dyn FnMut(Record<'_>),
    ) -> u64 {
        let (mut at, mut count, mut failures) = (range.start, 0, 0);
        while failures < 2
            && let Some((bytes, record)) = pieces.record(at, range.end)
        {
            failures += 1;
            if let Some(record) = record {
                (count, failures) = (count + 1, 0);
                self.take_one(at - range.start, record, each);
            }
            at += bytes;
        }
        self.place(segment, range.clone(), range.start, count);
        count
    }

    fn take_one(&mut self, offset: u64, record: Record<'_>, each: &mut dyn FnMut(Record<'_>)) {
        self.saw(record.stream, record.sequence);
        self.candidates.see(record.stream, record.sequence, offset);
        if self.end.replay_from.get(&record.stream).is_none_or(|&from| record.sequence >= from) {
            each(record);
        }
    }

    /// Remembers where records are that were taken.
    fn place(&mut self, segment: &Segment, place: Range<u64>, whole_from: u64, count: u64) {
        self.recovery.records += count;
        self.map.add(segment.generation, place.start, place.end, whole_from, &self.candidates.0);
        self.candidates.0.clear();
    }

    fn saw(&mut self, stream: u32, sequence: u64) {
        let last = self.recovery.streams.entry(stream).or_default();
        *last = sequence.max(*last);
    }

    /// Where a segment ends by what the next one says, or else where its file does.
    fn end_of(&self, at: usize) -> u64 {
        let segment = &self.segments[at];
        let next = self.segments[at + 1..].iter().find_map(|next| next.header.as_ref());
        let is_meant =
            |next: &&SegmentHeader| next.previous_generation == segment.generation && !segment.is_compacted();
        next.filter(is_meant).map_or(segment.length, |next| next.previous_end.min(segment.length))
    }

    /// Where the journal went on behind a segment, by the header of a later one or, if that is damaged, by its first
    /// batch. A later segment was begun when everything before it was synced.
    fn first_sequence_behind(&self, at: usize) -> Result<Option<u64>, OpenError> {
        for segment in &self.segments[at + 1..] {
            if let Some(header) = &segment.header {
                return Ok(Some(header.first_sequence));
            }
            let mut pieces = segment.pieces(self.disk)?;
            if let Some((_, first_sequence)) = pieces.next_batch(0, segment.length, 0) {
                return Ok(Some(first_sequence));
            }
        }
        Ok(None)
    }

    fn missing(&mut self, segment: &Segment, offset: u64, records_missing: u64) {
        let file = segment.name.clone();
        self.recovery.damage.push(Damage { file, offset, bytes: 0, records_missing, set_aside: None });
    }

    fn damaged(&mut self, segment: &Segment, pieces: &mut Pieces, region: Range<u64>, records_missing: u64) {
        self.map.set_condition(segment.generation, Condition::Damaged, segment.length);
        let Range { start: offset, end } = region;
        let name = format!("{}{offset}", damaged_region_prefix(segment.generation));
        // The segment stays as it is; a disk that takes no copy is no reason not to start.
        let is_set_aside = self.repair && set_aside(self.disk, &name, pieces, region).is_ok();
        let set_aside = is_set_aside.then_some(name);
        let (file, bytes) = (segment.name.clone(), end - offset);
        self.recovery.damage.push(Damage { file, offset, bytes, records_missing, set_aside });
    }
}

/// Copies bytes to a file, unless an earlier start did. The copy is whole or not there.
fn set_aside(disk: &dyn Disk, name: &str, pieces: &mut Pieces, region: Range<u64>) -> io::Result<()> {
    if disk.open(name).is_ok() {
        return Ok(());
    }
    let unfinished = format!("{name}.unfinished");
    match disk.remove(&unfinished) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let file = disk.create(&unfinished)?;
    pieces.copy(region, &*file)?;
    file.sync()?;
    disk.rename(&unfinished, name)?;
    disk.sync_directory()
}

/// How many records so many bytes can hold.
fn most_records(bytes: u64) -> u64 {
    bytes.div_ceil(RECORD_HEADER_BYTES as u64)
}
