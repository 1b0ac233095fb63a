//! Reading the journal back: what is whole, what is torn, what is damaged.
//!
//! Invariant: reading changes nothing that decides what is read the next time.

use std::collections::BTreeMap;
use std::io;
use std::ops::Range;
use std::sync::Arc;

use parking_lot::RwLock;

use crate::damage::{Cut, Damage, Extent, Missing, Recovery};
use crate::disk::Disk;
use crate::ended::end_segment;
use crate::format::{
    BATCH_HEADER_BYTES, FoundBatch, Record, Replay, Salt, SegmentHeader, StreamState, damaged_region_prefix,
    generation_of, torn_name, torn_of, unknown_name,
};
use crate::judge::{is_copy, judge, most_records, next_in_order, next_record};
use crate::keeper::COMPACTED_SUFFIX;
use crate::limits::{COPIES_MAX, TORN_KEPT_MAX, VERIFIED_FACTOR_MAX};
use crate::map::{Candidates, Condition, Map};
use crate::pieces::Pieces;
use crate::reader::Reader;
use crate::segments::{Files, OpenError, Segment, names, segments};

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

/// The same, with something that reads what is there.
///
/// # Errors
/// As [`crate::Log::open`].
pub fn look(disk: &Arc<dyn Disk>, each: &mut dyn FnMut(Record<'_>)) -> Result<(Recovery, Reader), OpenError> {
    let (recovery, end, map) = read(&**disk, false, each)?;
    let reader = Reader::new(Arc::clone(disk), end.salt.unwrap_or_default(), Arc::new(RwLock::new(map)));
    Ok((recovery, reader))
}

/// Reads a journal, handing out its records. With `repair`, sets damage aside, removes what interrupted starts left
/// behind, and makes durable what was read.
pub(crate) fn read(
    disk: &dyn Disk,
    repair: bool,
    each: &mut dyn FnMut(Record<'_>),
) -> Result<(Recovery, End, Map), OpenError> {
    let Files { segments, salt, leftovers, is_emptied, noted } = segments(disk)?;
    let last_generation = segments.last().map_or(0, |last| last.generation);
    let mut recovery = Recovery { is_new: segments.is_empty(), noted, ..Recovery::default() };
    if is_emptied {
        let file = "every segment".to_owned();
        let (extent, missing) = (Extent::Absent, Missing::Unknown);
        recovery.damage.push(Damage { file, extent, missing, is_old: false });
    }
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
    let (passed_over, passed_over_before) = (replay.sequence.saturating_sub(1), BTreeMap::new());
    let mut reader = Reading {
        disk,
        repair,
        segments: &segments,
        recovery,
        end,
        map,
        candidates,
        passed_over,
        passed_over_before,
    };
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
    let missing = recovery.numbers_missing();
    if missing > 0 {
        // Whose they were, nobody knows.
        recovery.streams.values_mut().for_each(|last| *last += missing);
    }
    if repair {
        note_unknown(disk, &recovery.damage);
        // An earlier start or copy may have ended between a name and its sync: what rests on names comes after this.
        disk.sync_directory()?;
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
        remove_old_copies(disk, recovery.cut.as_ref())?;
        disk.sync_directory()?;
    }
    Ok((recovery, end, map))
}

struct Reading<'r> {
    disk: &'r dyn Disk,
    repair: bool,
    segments: &'r [Segment],
    recovery: Recovery,
    end: End,
    map: Map,
    candidates: Candidates,
    /// So many records may have been passed over since a header said how far streams are.
    passed_over: u64,
    /// The same when a record of a stream was last found; nothing if that was none.
    passed_over_before: BTreeMap<u32, u64>,
}

impl<'r> Reading<'r> {
    /// Reads one segment; false if the journal ends before its end.
    fn segment(&mut self, at: usize, each: &mut dyn FnMut(Record<'_>)) -> Result<bool, OpenError> {
        let segment = &self.segments[at];
        let mut pieces = segment.pieces(self.disk)?;
        // Where batches begin in a segment that has lost its header follows from what was read before it.
        let header_bytes = SegmentHeader::bytes_with(self.recovery.streams.len());
        let begin = segment.header.as_ref().map_or(header_bytes, SegmentHeader::bytes) as u64;
        let mut begin = begin.min(segment.length);
        let limit = self.end_of(at);
        if segment.header.is_none() {
            let Some((first, first_sequence)) = pieces.next_batch(begin, segment.length, self.end.next_sequence)
            else {
                if self.first_sequence_behind(at)?.is_none() {
                    self.behind_the_end(at)?;
                    return Ok(false);
                }
                let next_sequence = self.next_sequence_right_behind(at).max(self.end.next_sequence);
                let missing = Missing::Exactly(next_sequence - self.end.next_sequence);
                self.end.next_sequence = next_sequence;
                self.damaged(segment, &mut pieces, 0..segment.length, missing);
                self.passed_over += most_records(segment.length);
                return Ok(true);
            };
            // The first one of a journal begins with its first record.
            let is_first = segment.generation == 1 || first_sequence == 1;
            let is_alone = at == 0 && self.segments.iter().all(|segment| segment.header.is_none());
            let is_unknown = is_alone && !is_first;
            if is_unknown {
                // Nobody knows where this one began.
                self.passed_over = first_sequence - 1;
                self.end.next_sequence = first_sequence;
                self.damaged(segment, &mut pieces, 0..first, Missing::Unknown);
            }
            if first_sequence == self.end.next_sequence && first < limit {
                begin = first;
                if !is_unknown {
                    self.recovery.headless.push(segment.name.clone());
                }
            }
        }
        self.recovery.segments += 1;
        (self.end.generation, self.end.offset, self.end.unproven) = (segment.generation, begin, 0);
        if let Some(header) = &segment.header {
            for (&stream, state) in &header.streams {
                self.saw(stream, state.last);
            }
            if header.first_sequence > self.end.next_sequence {
                let missing = Missing::Exactly(header.first_sequence - self.end.next_sequence);
                match self.absent_before(at) {
                    Some(file) => {
                        let extent = Extent::Absent;
                        self.recovery.damage.push(Damage { file, extent, missing, is_old: false });
                    }
                    None => match at.checked_sub(1).map(|before| (&self.segments[before], self.said_end(before))) {
                        Some((before, Some(end))) if before.length < end => {
                            let (file, extent) = (before.name.clone(), Extent::Behind { offset: before.length });
                            self.map.set_condition(before.generation, Condition::Damaged, before.length);
                            self.recovery.damage.push(Damage { file, extent, missing, is_old: false });
                        }
                        _ => self.missing(segment, 0, missing),
                    },
                }
                self.end.next_sequence = header.first_sequence;
            }
            self.know_streams(0);
        }
        self.map.begin(segment.generation, self.end.next_sequence);
        let mut offset = begin;
        // What lies before this cannot be passed over when a single record is read.
        let mut whole_from = begin;
        // Bytes that were looked at behind what is damaged.
        let mut looked_at = 0;
        // That much it had until the next one was begun, of which nothing is left.
        let is_last = at + 1 == self.segments.len();
        let is_cut_short = is_last && segment.header.as_ref().is_some_and(|header| segment.length < header.room);
        while offset < limit {
            let expected = self.end.next_sequence;
            let mut batch = pieces.batch(offset, limit);
            if batch.as_ref().is_some_and(|batch| batch.first_sequence > expected) {
                let next = next_in_order(&mut pieces, offset, limit, expected);
                let is_next = next.is_some_and(|(at, _)| at == offset);
                batch = if is_next { pieces.batch(offset, limit) } else { None };
            }
            if let Some(batch) = batch.filter(|batch| batch.first_sequence >= expected) {
                if batch.first_sequence > expected {
                    let missing = batch.first_sequence - expected;
                    self.passed_over += missing;
                    self.missing(segment, offset, Missing::Exactly(missing));
                }
                self.take(segment, offset, whole_from, &batch, each);
                self.end.next_sequence = batch.first_sequence + u64::from(batch.count);
                self.end.unproven = if batch.count > 0 { batch.bytes() as u64 } else { 0 };
                self.recovery.bytes += batch.bytes() as u64;
                offset += batch.bytes() as u64;
                self.end.offset = offset;
                continue;
            }
            let next = next_in_order(&mut pieces, offset, limit, expected);
            let mut durable_before = match self.first_sequence_behind(at)? {
                // Nothing is missing: the journal went on in the next segment, and what is here was never part of it.
                Some(first_sequence) if first_sequence <= self.end.next_sequence => return Ok(true),
                Some(first_sequence) => first_sequence,
                None => 0,
            };
            // Where streams go on behind this.
            let mut behind = BTreeMap::new();
            let mut from = next.map(|(at, _)| at);
            // Where much is damaged, what lies behind is not looked through again for each place.
            while let Some(found) = from
                && (durable_before <= expected
                    || behind.is_empty()
                    || looked_at < limit.saturating_mul(VERIFIED_FACTOR_MAX))
                && let Some(batch) = pieces.batch(found, limit)
            {
                durable_before = durable_before.max(batch.durable_before);
                for (_, record) in batch.records() {
                    let first = behind.entry(record.stream).or_insert(record.sequence);
                    *first = record.sequence.min(*first);
                }
                let end = found + batch.bytes() as u64;
                from = pieces.next_batch(end, limit, self.end.next_sequence).map(|(at, _)| at);
                // Also where nothing was found.
                looked_at += from.unwrap_or(limit) - found;
            }
            for (&stream, state) in self.header_behind(at).iter().flat_map(|header| &header.streams) {
                behind.entry(stream).or_insert(state.last + 1);
            }
            // Of a batch that does not verify, the header may, and tell the same.
            let evidence =
                if durable_before > expected { None } else { pieces.next_evidence(offset, limit, expected) };
            let next = next.or(evidence);
            durable_before = durable_before.max(evidence.map_or(0, |(_, durable_before)| durable_before));
            if durable_before <= expected {
                let unreadable = pieces.unreadable_in(offset..limit);
                if is_cut_short {
                    self.damaged(segment, &mut pieces, offset..limit, Missing::Unknown);
                    self.end.last_generation += 1;
                } else if unreadable > 0 {
                    // Nothing tells whether something durable was there.
                    let missing = Missing::AtMost(most_records(unreadable));
                    self.damaged(segment, &mut pieces, offset..limit, missing);
                } else if !pieces.is_blank(offset, limit) {
                    let end = pieces.end_of_torn(offset);
                    let name = torn_name(segment.generation, offset);
                    let set_aside = self.set_aside(&name, &mut pieces, offset..end);
                    self.recovery.cut =
                        Some(Cut { file: segment.name.clone(), offset, bytes: end - offset, set_aside });
                }
                return Ok(false);
            }
            let region_end = next.map_or(limit, |(at, _)| at);
            let salvaged_from = (offset + BATCH_HEADER_BYTES as u64).min(region_end);
            let passed_over = self.passed_over;
            if segment.header.is_none() {
                // Nobody has counted what is missing at the end of the segment before.
                self.passed_over += next.map_or(durable_before, |(_, first_sequence)| first_sequence) - expected;
            }
            let salvaged = self.salvage(segment, &mut pieces, salvaged_from..region_end, &behind, each);
            whole_from = region_end;
            // If another segment lies between this and the next one, what is missing is counted when that is read.
            let next_sequence = next.map_or_else(
                || self.next_sequence_right_behind(at).max(self.end.next_sequence + salvaged),
                |(_, first_sequence)| first_sequence,
            );
            let missing = (next_sequence - self.end.next_sequence).saturating_sub(salvaged);
            self.passed_over = self.passed_over.max(passed_over + missing);
            if region_end == offset {
                self.missing(segment, offset, Missing::Exactly(missing));
            } else if next.is_some() || missing > 0 || !pieces.is_blank(offset, region_end) {
                self.damaged(segment, &mut pieces, offset..region_end, Missing::Exactly(missing));
            }
            self.end.next_sequence = next_sequence;
            self.end.unproven = 0;
            offset = region_end;
            self.end.offset = offset;
        }
        if is_cut_short {
            let (file, extent) = (segment.name.clone(), Extent::Behind { offset });
            self.map.set_condition(segment.generation, Condition::Damaged, segment.length);
            self.recovery.damage.push(Damage { file, extent, missing: Missing::Unknown, is_old: false });
            // What came next had this one.
            self.end.last_generation += 1;
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
            // It says how far they were when it began, and nothing of it is read.
            self.know_streams(self.end.replay.sequence.saturating_sub(header.first_sequence));
            let next = self.header_behind(at);
            let end = self.end_of(at);
            self.map.add_unread(header, next, end);
            // A start must not take longer because of what it does not need; somebody who asks has time.
            let read_until = if self.repair { None } else { Some(self.look_through(at, header, end)?) };
            self.cut_short(at, header, read_until);
            return Ok(());
        }
        let mut pieces = segment.pieces(self.disk)?;
        let (limit, said_end) = (self.end_of(at), self.said_end(at));
        let mut before = self.segments[..at].iter().rev().filter_map(|before| before.header.as_ref());
        let before = before.next();
        let behind = self.header_behind(at);
        // It has no more streams than the next one.
        let header_bytes = SegmentHeader::bytes_with(behind.map_or(0, |behind| behind.streams.len())) as u64;
        let first_sequence = before.map_or(1, |before| before.first_sequence);
        let mut missing = behind.map_or(u64::MAX, |behind| behind.first_sequence.saturating_sub(first_sequence));
        let (mut from, mut unverified) = (0, 0);
        while let Some((offset, _)) = pieces.next_batch(from, limit, 0)
            && let Some(batch) = pieces.batch(offset, limit)
        {
            let whole_from = if from == offset { 0 } else { offset };
            unverified += if from == 0 { offset.saturating_sub(header_bytes) } else { offset - from };
            let found = self.take(segment, offset, whole_from, &batch, &mut |_| {});
            missing = missing.saturating_sub(found);
            from = offset + batch.bytes() as u64;
        }
        // Others may have come behind what was found of a stream.
        self.passed_over_before.clear();
        let is_shorter = limit < header_bytes || said_end.is_some_and(|end| limit < end);
        // Without its end, nothing tells how long it was.
        let end = if is_shorter { said_end.unwrap_or(u64::MAX) } else { limit };
        unverified += end.saturating_sub(from.max(header_bytes));
        self.map.set_condition(segment.generation, Condition::Unknown, segment.length);
        match missing.min(most_records(unverified)) {
            0 => self.recovery.headless.push(segment.name.clone()),
            missing => {
                let extent = if is_shorter {
                    Extent::Behind { offset: segment.length }
                } else {
                    Extent::Region { offset: 0, bytes: unverified, set_aside: None }
                };
                let (file, missing) = (segment.name.clone(), Missing::AtMost(missing));
                self.recovery.damage.push(Damage { file, extent, missing, is_old: true });
            }
        }
        Ok(())
    }

    /// Says so if the file of an old segment ends before its records did, of which those before `read_until` were looked for.
    fn cut_short(&mut self, at: usize, header: &SegmentHeader, read_until: Option<u64>) {
        let segment = &self.segments[at];
        let (Some(said_end), Some(next)) = (self.said_end(at), self.header_behind(at)) else { return };
        if segment.length < said_end {
            let from = read_until.unwrap_or(header.first_sequence);
            let count = next.first_sequence.saturating_sub(from);
            let missing = if read_until.is_some() { Missing::Exactly(count) } else { Missing::AtMost(count) };
            let (file, extent) = (segment.name.clone(), Extent::Behind { offset: segment.length });
            self.map.set_condition(segment.generation, Condition::Damaged, segment.length);
            self.recovery.damage.push(Damage { file, extent, missing, is_old: true });
        }
    }

    /// Looks through a segment. Returns the journal sequence before which everything was found or reported.
    fn look_through(&mut self, at: usize, header: &SegmentHeader, end: u64) -> Result<u64, OpenError> {
        let segment = &self.segments[at];
        let mut pieces = segment.pieces(self.disk)?;
        let judged = judge(&mut pieces, header, self.header_behind(at), end);
        self.recovery.segments += 1;
        self.recovery.bytes += judged.bytes;
        for (region, missing) in judged.damage {
            if region.is_empty() {
                let (file, extent) = (segment.name.clone(), Extent::Before { offset: region.start });
                self.recovery.damage.push(Damage { file, extent, missing, is_old: true });
            } else {
                self.damaged(segment, &mut pieces, region, missing);
            }
        }
        if let Some(file) = self.map.file(segment.generation) {
            self.map.judged(file, pieces.looked(), judged.map);
        }
        Ok(judged.next_sequence)
    }

    /// A segment without a header and without batches, at the end of the journal. It had its header before it had its name:
    /// if bytes of that have changed and nothing else, nothing was ever appended, and anything else is damage.
    fn behind_the_end(&mut self, at: usize) -> Result<(), OpenError> {
        let segment = &self.segments[at];
        let mut pieces = segment.pieces(self.disk)?;
        let header_bytes = SegmentHeader::bytes_with(self.recovery.streams.len()) as u64;
        // All of it is read, to know whether it can be.
        let used = pieces.used(0..segment.length);
        let least = header_bytes + BATCH_HEADER_BYTES as u64;
        let missing = if segment.length < least {
            Missing::Unknown
        } else if !pieces.is_readable() || !pieces.is_blank(header_bytes, segment.length) {
            Missing::AtMost(most_records(used.saturating_sub(header_bytes)))
        } else if pieces.is_blank(0, header_bytes) {
            // What took the header may have taken all that followed.
            Missing::Unknown
        } else {
            self.recovery.headless.push(segment.name.clone());
            return Ok(());
        };
        self.damaged(segment, &mut pieces, 0..segment.length, missing);
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

    /// The same with records that verify by themselves, from the beginning of a range on; of each stream those before what is
    /// `behind` the range. After one that does not verify, the next one is where that says it ends or, if that is wrong, too, at
    /// the next byte where one of a stream goes on. What does not go on in its stream is a copy, where it was not written.
    fn salvage(
        &mut self,
        segment: &Segment,
        pieces: &mut Pieces,
        range: Range<u64>,
        behind: &BTreeMap<u32, u64>,
        each: &mut dyn FnMut(Record<'_>),
    ) -> u64 {
        let (mut at, mut count, mut verified, mut looked) = (range.start, 0, 0, 0);
        // Records lie one behind the other from there on, and so many of them.
        let (mut begin, mut in_run) = (at, 0);
        while at < range.end {
            let goes_on = |stream: u32, sequence: u64, most: u64| {
                let (last, behind) = (self.last(stream), behind.get(&stream));
                sequence > last && sequence - last <= most && behind.is_none_or(|&first| sequence < first)
            };
            let goes_on_here = |stream, sequence| goes_on(stream, sequence, 1 + self.passed_over_since(stream));
            let may_be = match pieces.record(at, range.end) {
                Some((bytes, Some(record))) if goes_on_here(record.stream, record.sequence) => {
                    let (stream, between) = (record.stream, self.last(record.stream) + 1..record.sequence);
                    !is_copy(pieces, at + bytes..range.end, stream, between, range.start, &mut looked)
                }
                _ => false,
            };
            let found = pieces.record(at, range.end);
            if let Some((bytes, Some(record))) = found.filter(|_| may_be) {
                in_run += 1;
                self.take_one(at - begin, record, each);
                at += bytes;
                continue;
            }
            let end = found.map_or(range.end, |(bytes, _)| at + bytes);
            // If it is the length that is wrong, others may lie before that.
            let follows = match pieces.record(end, range.end) {
                Some((_, Some(record))) => goes_on(record.stream, record.sequence, 2),
                _ => false,
            };
            let may_be = |place, stream, sequence| {
                goes_on(stream, sequence, 1 + self.passed_over_since(stream) + most_records(place - at))
            };
            let next = if follows { end } else { next_record(pieces, at + 1..range.end, &mut verified, may_be) };
            self.place(segment, begin..range.end, begin, in_run);
            self.passed_over += most_records(next - at);
            (at, count, begin, in_run) = (next, count + in_run, next, 0);
        }
        self.place(segment, begin..range.end, begin, in_run);
        count + in_run
    }

    /// Streams are as far as is known, but for so many records.
    fn know_streams(&mut self, passed_over: u64) {
        self.passed_over = passed_over;
        self.passed_over_before.clear();
    }

    /// How many records may have been passed over since one of a stream was found.
    fn passed_over_since(&self, stream: u32) -> u64 {
        self.passed_over - self.passed_over_before.get(&stream).copied().unwrap_or(0)
    }

    fn take_one(&mut self, offset: u64, record: Record<'_>, each: &mut dyn FnMut(Record<'_>)) {
        self.saw(record.stream, record.sequence);
        if self.passed_over > 0 {
            self.passed_over_before.insert(record.stream, self.passed_over);
        }
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

    /// The last sequence of a stream so far.
    fn last(&self, stream: u32) -> u64 {
        self.recovery.streams.get(&stream).copied().unwrap_or(0)
    }

    fn saw(&mut self, stream: u32, sequence: u64) {
        let last = self.recovery.streams.entry(stream).or_default();
        *last = sequence.max(*last);
    }

    /// Where a segment ends by what the next one says, or else where its file does.
    fn end_of(&self, at: usize) -> u64 {
        let length = self.segments[at].length;
        self.said_end(at).map_or(length, |end| end.min(length))
    }

    /// Where a segment ended when the next one was begun, if that says so.
    fn said_end(&self, at: usize) -> Option<u64> {
        let segment = &self.segments[at];
        let is_meant =
            |next: &&SegmentHeader| next.previous_generation == segment.generation && !segment.is_compacted();
        self.header_behind(at).filter(is_meant).map(|next| next.previous_end)
    }

    /// The first header behind a segment that verifies.
    fn header_behind(&self, at: usize) -> Option<&'r SegmentHeader> {
        self.segments[at + 1..].iter().find_map(|behind| behind.header.as_ref())
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

    /// With which journal sequence the segment begins that comes right behind one, if its header says so; else 0.
    fn next_sequence_right_behind(&self, at: usize) -> u64 {
        let generation = self.segments[at].last_generation();
        let next = self.segments.get(at + 1).filter(|next| next.generation == generation + 1);
        next.and_then(|next| next.header.as_ref()).map_or(0, |header| header.first_sequence)
    }

    /// The segments that are not there, though the one at this place says that they came before it.
    fn absent_before(&self, at: usize) -> Option<String> {
        let header = self.segments[at].header.as_ref()?;
        let previous = self.segments[..at].last();
        let is_there = |segment: &Segment| segment.last_generation() >= header.previous_generation;
        if header.previous_generation == 0 || previous.is_some_and(is_there) {
            return None;
        }
        let first = previous.map_or(1, |previous| previous.last_generation() + 1).max(self.end.replay.generation);
        Some(names(first, header.previous_generation))
    }

    fn missing(&mut self, segment: &Segment, offset: u64, missing: Missing) {
        let (file, extent) = (segment.name.clone(), Extent::Before { offset });
        self.recovery.damage.push(Damage { file, extent, missing, is_old: false });
    }

    fn damaged(&mut self, segment: &Segment, pieces: &mut Pieces, region: Range<u64>, missing: Missing) {
        self.map.set_condition(segment.generation, Condition::Damaged, segment.length);
        let Range { start: offset, end } = region;
        let name = format!("{}{offset}", damaged_region_prefix(segment.generation));
        let set_aside = self.set_aside(&name, pieces, region);
        let extent = Extent::Region { offset, bytes: end - offset, set_aside };
        let (file, is_old) = (segment.name.clone(), segment.generation < self.end.replay.generation);
        self.recovery.damage.push(Damage { file, extent, missing, is_old });
    }

    /// The file that holds a copy of a region, made now if anything may change. A disk that takes none is no reason not to start.
    fn set_aside(&self, name: &str, pieces: &mut Pieces, region: Range<u64>) -> Option<String> {
        let (name, is_there) = place_of_copy(self.disk, name, pieces, &region)?;
        let is_done = is_there || self.repair && copy(self.disk, &name, pieces, region).is_ok();
        is_done.then_some(name)
    }
}

/// Leaves a file for each place where nobody knows how much is missing: once the journal goes on behind it, nothing else tells.
fn note_unknown(disk: &dyn Disk, damage: &[Damage]) {
    let is_unknown = |damage: &&Damage| match damage.missing {
        Missing::Exactly(_) => false,
        // An old segment goes on saying it.
        Missing::AtMost(_) => !damage.is_old,
        Missing::Unknown => true,
    };
    for damage in damage.iter().filter(is_unknown) {
        // That a disk does not take it is no reason not to start, and an earlier start may have left it.
        let _ = disk.create(&unknown_name(generation_of(&damage.file).unwrap_or(0)));
    }
}

/// Removes copies of torn ends, the oldest first, until no more are left than are kept. That of this start is one of those.
fn remove_old_copies(disk: &dyn Disk, cut: Option<&Cut>) -> io::Result<()> {
    let made = cut.and_then(|cut| cut.set_aside.as_ref());
    let mut copies: Vec<_> = disk.list()?.into_iter().filter_map(|name| Some((torn_of(&name)?, name))).collect();
    copies.sort_unstable_by_key(|(place, name)| (made == Some(name), *place));
    copies.truncate(copies.len().saturating_sub(TORN_KEPT_MAX));
    for (_, name) in copies {
        // That the disk does not take it is no reason not to start.
        let _ = disk.remove(&name);
    }
    Ok(())
}

/// The file that holds a copy of a region, or where it may go, and whether it is there. What has that name need not be one: it may
/// be somebody else's, or the disk could read less then.
fn place_of_copy(disk: &dyn Disk, name: &str, pieces: &mut Pieces, region: &Range<u64>) -> Option<(String, bool)> {
    (1..=COPIES_MAX).find_map(|nth| {
        let name = if nth == 1 { name.to_owned() } else { format!("{name}-{nth}") };
        match disk.open(&name) {
            Ok(file) if pieces.is_same(region.clone(), &*file) => Some((name, true)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Some((name, false)),
            Ok(_) | Err(_) => None,
        }
    })
}

/// Copies bytes to a file that is not there. The copy is whole or not there.
fn copy(disk: &dyn Disk, name: &str, pieces: &mut Pieces, region: Range<u64>) -> io::Result<()> {
    let unfinished = format!("{name}.unfinished");
    match disk.remove(&unfinished) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let file = disk.create(&unfinished)?;
    if let Err(error) = pieces.copy(region, &*file).and_then(|()| file.sync()) {
        // The journal may need the room.
        let _ = disk.remove(&unfinished);
        return Err(error);
    }
    disk.rename(&unfinished, name)?;
    disk.sync_directory()
}
