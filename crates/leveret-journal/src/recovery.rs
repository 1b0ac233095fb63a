//! Reading the journal back: what is whole, what is torn, what is damaged.
//!
//! Invariant: reading changes nothing that decides what is read the next time.

use std::io;
use std::sync::Arc;

use crate::disk::{Disk, DiskFile};
use crate::format::{
    ALIGNMENT, BATCH_HEADER_BYTES, FoundBatch, HeaderFound, Record, SEGMENT_HEADER_BYTES, SegmentHeader, VERSION,
    generation_of, records, segment_name,
};

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
    /// Records that were there and cannot be read.
    pub records_missing: u64,
    /// The file to which the region was copied.
    pub set_aside: Option<String>,
}

/// Where the journal ends.
#[derive(Clone, Copy, Debug)]
pub(crate) struct End {
    /// The last segment of the journal; 0 if there is none.
    pub(crate) generation: u64,
    pub(crate) offset: u64,
    /// Bytes before that which nothing proves to be synced: the last batch, if no marker follows it.
    pub(crate) unproven: u64,
    /// The greatest generation that any file has.
    pub(crate) last_generation: u64,
    pub(crate) next_sequence: u64,
}

/// Reads a journal and changes nothing.
///
/// # Errors
/// As [`crate::Log::open`].
pub fn check(disk: &dyn Disk, each: &mut dyn FnMut(Record<'_>)) -> Result<Recovery, OpenError> {
    read(disk, false, each).map(|(recovery, _)| recovery)
}

struct Segment {
    name: String,
    generation: u64,
    header: Option<SegmentHeader>,
    file: Arc<dyn DiskFile>,
    length: u64,
}

/// Reads a journal, handing out its records. With `repair`, sets damage aside, removes what interrupted starts left
/// behind, and makes durable what was read.
pub(crate) fn read(
    disk: &dyn Disk,
    repair: bool,
    each: &mut dyn FnMut(Record<'_>),
) -> Result<(Recovery, End), OpenError> {
    let segments = segments(disk)?;
    let last_generation = segments.last().map_or(0, |last| last.generation);
    let mut recovery = Recovery { is_new: segments.is_empty(), ..Recovery::default() };
    let mut end = End { generation: 0, offset: 0, unproven: 0, last_generation, next_sequence: 1 };
    let mut reader = Reader { disk, repair, segments: &segments, recovery: &mut recovery };
    for at in 0..segments.len() {
        if !reader.segment(at, &mut end, each)? {
            break;
        }
    }
    if repair {
        // Somebody may have been told of what is only in the cache of the operating system.
        if let Some(last) = segments.iter().find(|segment| segment.generation == end.generation) {
            // After a failed sync the cache may hold what the disk does not, and believe that it does: write it again.
            let length = usize::try_from(end.unproven).map_err(|_| io::Error::from(io::ErrorKind::FileTooLarge))?;
            let mut bytes = vec![0; length];
            let from = end.offset - end.unproven;
            last.file.read_at(from, &mut bytes)?;
            last.file.write_at(from, &bytes)?;
            last.file.sync()?;
        }
        let is_damaged = |segment: &Segment| recovery.damage.iter().any(|damage| damage.file == segment.name);
        let behind = segments.iter().filter(|segment| segment.generation > end.generation);
        for leftover in behind.filter(|segment| !is_damaged(segment)) {
            disk.remove(&leftover.name)?;
        }
        disk.sync_directory()?;
    }
    Ok((recovery, end))
}

fn segments(disk: &dyn Disk) -> Result<Vec<Segment>, OpenError> {
    let mut segments = Vec::new();
    for name in disk.list()? {
        let Some(generation) = generation_of(&name) else { continue };
        let file = disk.open(&name)?;
        let mut bytes = [0; SEGMENT_HEADER_BYTES];
        let count = file.read_at(0, &mut bytes)?;
        let header = match SegmentHeader::decode(&bytes[..count]) {
            HeaderFound::Valid(header) => Some(header).filter(|header| header.generation == generation),
            HeaderFound::Newer(found) => return Err(OpenError::Newer { file: name, found }),
            HeaderFound::Invalid => None,
        };
        let length = file.length()?;
        segments.push(Segment { name, generation, header, file, length });
    }
    segments.sort_by_key(|segment| segment.generation);
    Ok(segments)
}

struct Reader<'r> {
    disk: &'r dyn Disk,
    repair: bool,
    segments: &'r [Segment],
    recovery: &'r mut Recovery,
}

impl Reader<'_> {
    /// Reads one segment; false if the journal ends before its end.
    fn segment(&mut self, at: usize, end: &mut End, each: &mut dyn FnMut(Record<'_>)) -> Result<bool, OpenError> {
        let segment = &self.segments[at];
        let bytes = contents(segment)?;
        let has_batch =
            || next_batch(&bytes, SEGMENT_HEADER_BYTES, segment.generation, end.next_sequence).is_some();
        if segment.header.is_none() && !has_batch() {
            let is_unused = bytes.get(SEGMENT_HEADER_BYTES..).unwrap_or_default().iter().all(|&byte| byte == 0);
            if is_unused && self.first_sequence_behind(at)?.is_none() {
                // An interrupted start: nothing was ever appended here.
                return Ok(false);
            }
            self.damaged(segment, &bytes, 0, bytes.len(), 0)?;
            return Ok(true);
        }
        let limit = self.limit(at, &bytes);
        self.recovery.segments += 1;
        (end.generation, end.offset, end.unproven) = (segment.generation, SEGMENT_HEADER_BYTES as u64, 0);
        if let Some(header) = segment.header
            && header.first_sequence > end.next_sequence
        {
            self.missing(segment, 0, header.first_sequence - end.next_sequence);
            end.next_sequence = header.first_sequence;
        }
        let mut offset = SEGMENT_HEADER_BYTES;
        while offset < limit {
            let batch = FoundBatch::decode(&bytes[offset..limit], segment.generation);
            if let Some(batch) = batch.filter(|batch| batch.first_sequence >= end.next_sequence) {
                if batch.first_sequence > end.next_sequence {
                    self.missing(segment, offset, batch.first_sequence - end.next_sequence);
                }
                for record in batch.records() {
                    self.recovery.records += 1;
                    each(record);
                }
                self.recovery.bytes += batch.bytes() as u64;
                end.next_sequence = batch.first_sequence + u64::from(batch.count);
                end.unproven = if batch.count > 0 { batch.bytes() as u64 } else { 0 };
                offset += batch.bytes();
                end.offset = offset as u64;
                continue;
            }
            let next = next_batch(&bytes[..limit], offset, segment.generation, end.next_sequence);
            let mut durable_before = match self.first_sequence_behind(at)? {
                // Nothing is missing: the journal went on in the next segment, and what is here was never part of it.
                Some(first_sequence) if first_sequence <= end.next_sequence => return Ok(true),
                Some(first_sequence) => first_sequence,
                None => 0,
            };
            let mut from = next.map(|(at, _)| at);
            while let Some(found) = from {
                let batch = FoundBatch::decode(&bytes[found..limit], segment.generation);
                durable_before = durable_before.max(batch.map_or(0, |batch| batch.durable_before));
                // Not into the batch: what clients wrote may look like anything.
                let behind = found + batch.map_or(ALIGNMENT, |batch| batch.bytes());
                from = next_batch(&bytes[..limit], behind, segment.generation, end.next_sequence).map(|(at, _)| at);
            }
            if durable_before <= end.next_sequence {
                if bytes[offset..limit].iter().any(|&byte| byte != 0) {
                    self.recovery.cut = Some(Cut { file: segment.name.clone(), offset: offset as u64 });
                }
                return Ok(false);
            }
            let region_end = next.map_or(limit, |(at, _)| at);
            let salvaged_from = (offset + BATCH_HEADER_BYTES).min(region_end);
            let mut salvaged = 0;
            for record in records(&bytes[salvaged_from..region_end], segment.generation) {
                salvaged += 1;
                self.recovery.records += 1;
                each(record);
            }
            // What is missing before the next segment is counted when that is read.
            let next_sequence = next.map_or(end.next_sequence + salvaged, |(_, first_sequence)| first_sequence);
            let missing = (next_sequence - end.next_sequence).saturating_sub(salvaged);
            if next.is_some() || bytes[offset..region_end].iter().any(|&byte| byte != 0) {
                self.damaged(segment, &bytes, offset, region_end, missing)?;
            }
            end.next_sequence = next_sequence;
            end.unproven = 0;
            offset = region_end;
            end.offset = offset as u64;
        }
        Ok(true)
    }

    /// Where a segment ends by what the next one says, or else where its file does.
    fn limit(&self, at: usize, bytes: &[u8]) -> usize {
        let segment = &self.segments[at];
        let next = self.segments[at + 1..].iter().find_map(|next| next.header);
        let end = next.filter(|next| next.previous_generation == segment.generation);
        end.and_then(|next| usize::try_from(next.previous_end).ok()).map_or(bytes.len(), |end| end.min(bytes.len()))
    }

    /// Where the journal went on behind a segment, by the header of a later one or, if that is damaged, by its first
    /// batch. A later segment was begun when everything before it was synced.
    fn first_sequence_behind(&self, at: usize) -> Result<Option<u64>, OpenError> {
        for segment in &self.segments[at + 1..] {
            if let Some(header) = segment.header {
                return Ok(Some(header.first_sequence));
            }
            let bytes = contents(segment)?;
            if let Some((_, first_sequence)) = next_batch(&bytes, SEGMENT_HEADER_BYTES, segment.generation, 0) {
                return Ok(Some(first_sequence));
            }
        }
        Ok(None)
    }

    fn missing(&mut self, segment: &Segment, offset: usize, records_missing: u64) {
        let (file, offset) = (segment.name.clone(), offset as u64);
        self.recovery.damage.push(Damage { file, offset, bytes: 0, records_missing, set_aside: None });
    }

    fn damaged(
        &mut self,
        segment: &Segment,
        bytes: &[u8],
        offset: usize,
        end: usize,
        records_missing: u64,
    ) -> Result<(), OpenError> {
        let name = format!("damaged-{:010}-{offset}", segment.generation);
        let set_aside = if self.repair {
            match self.disk.create(&name) {
                Ok(file) => {
                    file.write_at(0, &bytes[offset..end])?;
                    file.sync()?;
                }
                // An earlier start did it.
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                Err(error) => return Err(error.into()),
            }
            Some(name)
        } else {
            None
        };
        let (file, offset, bytes) = (segment.name.clone(), offset as u64, (end - offset) as u64);
        self.recovery.damage.push(Damage { file, offset, bytes, records_missing, set_aside });
        Ok(())
    }
}

/// The whole segment, as it is on disk.
fn contents(segment: &Segment) -> Result<Vec<u8>, OpenError> {
    let length = usize::try_from(segment.length).map_err(|_| io::Error::from(io::ErrorKind::FileTooLarge))?;
    let mut bytes = vec![0; length];
    let count = segment.file.read_at(0, &mut bytes)?;
    bytes.truncate(count);
    debug_assert_eq!(segment.name, segment_name(segment.generation));
    Ok(bytes)
}

/// The first valid batch at or behind `from`, with its first sequence, if that is not before `expected`.
fn next_batch(bytes: &[u8], from: usize, generation: u64, expected: u64) -> Option<(usize, u64)> {
    (from.next_multiple_of(ALIGNMENT)..bytes.len()).step_by(ALIGNMENT).find_map(|at| {
        let batch = FoundBatch::decode(&bytes[at..], generation)?;
        (batch.first_sequence >= expected).then_some((at, batch.first_sequence))
    })
}
