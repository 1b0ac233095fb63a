//! Reading single records back while the journal grows.

use std::collections::BTreeMap;
use std::io;
use std::ops::Range;
use std::sync::Arc;

use parking_lot::RwLock;

use crate::disk::{Disk, DiskFile};
use crate::format::{
    ALIGNMENT, BATCH_HEADER_BYTES, BatchHeader, HeaderFound, RECORD_HEADER_BYTES, Record, Salt, Seeds,
    decode_record, peek_record, segment_name,
};
use crate::judge::judge;
use crate::limits::{MARK_EVERY_BYTES, READ_BYTES, UNREADABLE_BLOCK_BYTES};
use crate::map::{Condition, File, Looked, Map, Mark, Place};
use crate::pieces::{Pieces, read_blocks};
use crate::segments::read_header;

/// Why a record was not read.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// The disk refuses, now. It may not refuse later.
    #[error("{file} cannot be read: {error}")]
    Disk {
        /// The segment, the scratch file, or the folder.
        file: String,
        /// Why.
        error: io::Error,
    },
    /// It is not where it was written, and will not be.
    #[error("{file} is damaged at offset {offset}")]
    Damaged {
        /// The segment or scratch file.
        file: String,
        /// Where.
        offset: u64,
    },
    /// No segment has it.
    #[error("no segment holds record {sequence} of stream {stream}")]
    Unknown {
        /// The stream.
        stream: u32,
        /// The sequence in it.
        sequence: u64,
    },
}

/// Reads durable records by stream and sequence. Any number of readers may read what one [`crate::Log`] writes.
pub struct Reader {
    disk: Arc<dyn Disk>,
    salt: Salt,
    map: Arc<RwLock<Map>>,
    /// The segment that was read last, and where the walk through it stands.
    open: Option<Walk>,
    buffer: Vec<u8>,
}

impl std::fmt::Debug for Reader {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Reader").finish_non_exhaustive()
    }
}

struct Walk {
    is_of: File,
    name: String,
    seeds: Seeds,
    file: Arc<dyn DiskFile>,
    /// What lies before it does not change any more.
    segment_end: u64,
    /// What the buffer holds begins here.
    buffered_from: u64,
    /// The next record or, if `end` is reached, the next batch.
    offset: u64,
    /// Where the records of this batch end.
    end: u64,
    /// The last record of the stream that is looked for that was passed; those behind it are not before `offset`.
    passed: (u32, u64),
    /// Where something begins, behind that record and before `offset`, that does not verify.
    lost: Option<u64>,
    /// Why some of that could not be read.
    unreadable: Option<io::Error>,
    /// The map has learnt of a record about there.
    learnt: u64,
}

impl Reader {
    pub(crate) fn new(disk: Arc<dyn Disk>, salt: Salt, map: Arc<RwLock<Map>>) -> Self {
        Reader { disk, salt, map, open: None, buffer: Vec::new() }
    }

    /// The payload of a record. Reading sequences of one stream in ascending order is cheapest.
    ///
    /// # Errors
    /// If it cannot be read: see [`ReadError`]. Another record may be readable all the same.
    pub fn read(&mut self, stream: u32, sequence: u64) -> Result<&[u8], ReadError> {
        loop {
            let Some(place) = self.map.read().find(stream, sequence) else {
                return Err(ReadError::Unknown { stream, sequence });
            };
            match self.read_in(place, stream, sequence) {
                Ok(found) => return Ok(self.buffer.get(found).unwrap_or_default()),
                Err(error) => {
                    // Its file may have been exchanged since we knew where to look.
                    let found = self.map.read().find(stream, sequence);
                    if found.is_none_or(|now| now.file == place.file) && !self.judge(place.file, &error) {
                        return Err(error);
                    }
                }
            }
        }
    }

    /// Looks through the segment of a record that was not found, if nobody has done so: a copy of something else before it may hide
    /// it. So may one before what the disk could not read then, once it can. Returns whether it is worth another try.
    fn judge(&mut self, file: File, error: &ReadError) -> bool {
        if matches!(error, ReadError::Disk { .. }) {
            return false;
        }
        let (looked, next, end) = {
            let map = self.map.read();
            (map.looked(file), map.behind(file.generation), map.end(file.generation))
        };
        let is_worth_it = match looked {
            Looked::Through => false,
            // A segment has many bytes, and many of its records may be lost.
            Looked::Without(block) => {
                let is_read = |file: Arc<dyn DiskFile>| file.read_at(block, &mut [0; UNREADABLE_BLOCK_BYTES]);
                self.disk.open(&segment_name(file.generation)).and_then(is_read).is_ok()
            }
            Looked::Never => true,
        };
        if !is_worth_it {
            return false;
        }
        let header = |generation: u64| {
            let file = self.disk.open(&segment_name(generation)).ok()?;
            match read_header(&*file, file.length().ok()?) {
                HeaderFound::Valid(header) if header.generation == generation => Some(header),
                _ => None,
            }
        };
        let (Some(header), behind) = (header(file.generation), header(next)) else { return false };
        let seeds = Seeds::new(&self.salt, file.generation);
        let Ok(mut pieces) = Pieces::open(&*self.disk, &segment_name(file.generation), end, seeds) else {
            return false;
        };
        self.rest();
        let judged = judge(&mut pieces, &header, behind.as_ref(), end);
        // What the disk cannot read now, it may read later.
        let is_damaged = judged.damage.iter().any(|(region, _)| pieces.unreadable_in(region.clone()) == 0);
        let mut map = self.map.write();
        if is_damaged {
            map.set_condition(file.generation, Condition::Damaged, end);
        }
        map.judged(file, pieces.looked(), judged.map);
        true
    }

    /// Finds a record, and says where its payload lies in the buffer.
    fn read_in(&mut self, place: Place, stream: u32, sequence: u64) -> Result<Range<usize>, ReadError> {
        let Place { file, end, mark, behind } = place;
        let mut walk = match self.open.take().filter(|walk| walk.is_of == file) {
            Some(walk) => walk,
            None => self.open(file)?,
        };
        walk.segment_end = end;
        let is_on_the_way = walk.offset > mark.offset && walk.passed.0 == stream && walk.passed.1 < sequence;
        if !is_on_the_way {
            (walk.offset, walk.end, walk.passed) = (mark.offset, mark.end, (stream, 0));
            (walk.learnt, walk.lost, walk.unreadable) = (mark.offset, None, None);
        }
        let walk = self.open.insert(walk);
        while !walk.has_ended() {
            if walk.offset >= walk.end {
                if walk.next_batch(&mut self.buffer).is_none() {
                    walk.find_again(&mut self.buffer, stream, behind);
                }
                continue;
            }
            let begin = walk.offset;
            let Some(record) = walk.record(&mut self.buffer) else {
                walk.find_again(&mut self.buffer, stream, behind);
                continue;
            };
            let (found_stream, found, bytes) = (record.stream, record.sequence, record.payload.len());
            if found_stream == stream && found > sequence {
                break;
            }
            walk.pass(found_stream, found, bytes);
            if found_stream == stream && found == sequence {
                let header_at = usize::try_from(begin - walk.buffered_from).unwrap_or(usize::MAX);
                let at = header_at.saturating_add(RECORD_HEADER_BYTES);
                return Ok(at..at.saturating_add(bytes));
            }
            if begin >= walk.learnt + MARK_EVERY_BYTES {
                walk.learnt = begin;
                let mark = Mark { sequence: found, offset: begin, end: walk.end };
                self.map.write().learn(file, found_stream, mark);
            }
        }
        let (name, lost) = (walk.name.clone(), walk.lost);
        Err(match (walk.unreadable.take(), lost) {
            (Some(error), Some(_)) => {
                // What the buffer holds is not what the next try would find.
                self.open = None;
                ReadError::Disk { file: name, error }
            }
            // The next one may be missing for the same reason, and is looked for from here on.
            (None, Some(offset)) => ReadError::Damaged { file: name, offset },
            (_, None) => ReadError::Unknown { stream, sequence },
        })
    }

    /// Bytes of all segments.
    pub fn journal_bytes(&self) -> u64 {
        self.map.read().before(u64::MAX).map(|(_, bytes, _)| bytes).sum()
    }

    /// Lets go of what the last reads needed.
    pub fn rest(&mut self) {
        self.open = None;
        self.buffer = Vec::new();
    }

    /// Hands out all records of a segment.
    ///
    /// # Errors
    /// If anything of it is damaged or cannot be read, or `take` fails.
    pub(crate) fn each(
        &mut self,
        file: File,
        take: &mut dyn FnMut(Record<'_>) -> Result<(), ReadError>,
    ) -> Result<(), ReadError> {
        let mut walk = self.open(file)?;
        walk.segment_end = self.map.read().end(file.generation);
        let HeaderFound::Valid(header) = read_header(&*walk.file, walk.segment_end) else {
            return Err(walk.damaged());
        };
        (walk.offset, walk.end) = (header.bytes() as u64, header.bytes() as u64);
        // Batches that were put together again have lost their numbers.
        let mut expected = if header.compacted_through > 0 { 0 } else { header.first_sequence };
        let mut last: BTreeMap<_, _> = header.streams.iter().map(|(&stream, state)| (stream, state.last)).collect();
        while !walk.has_ended() {
            let Some(batch) = walk.next_batch(&mut self.buffer) else { return Err(walk.damaged()) };
            if batch.first_sequence != expected {
                return Err(walk.damaged());
            }
            let (mut checksum, mut count) = (walk.seeds.payload_checksum(), 0);
            while walk.offset < walk.end {
                let seeds = walk.seeds;
                let bytes = walk.record_bytes(&mut self.buffer);
                let Some((bytes, record)) = bytes.and_then(|bytes| Some((bytes, decode_record(bytes, seeds)?)))
                else {
                    return Err(walk.damaged());
                };
                (checksum, count) = (crc32c::crc32c_append(checksum, bytes), count + 1);
                if last.insert(record.stream, record.sequence).is_some_and(|last| record.sequence <= last) {
                    return Err(walk.damaged());
                }
                take(record)?;
                walk.pass(record.stream, record.sequence, record.payload.len());
            }
            if (checksum, count) != (batch.payload_checksum, batch.count) {
                return Err(walk.damaged());
            }
            expected += if header.compacted_through > 0 { 0 } else { u64::from(count) };
        }
        self.rest();
        Ok(())
    }

    /// The disk, the salt and the map that it reads with.
    pub(crate) fn parts(&self) -> (&Arc<dyn Disk>, &Salt, &Arc<RwLock<Map>>) {
        (&self.disk, &self.salt, &self.map)
    }

    fn open(&mut self, is_of: File) -> Result<Walk, ReadError> {
        let generation = is_of.generation;
        let name = segment_name(generation);
        let file = match self.disk.open(&name) {
            Ok(file) => file,
            Err(error) => return Err(ReadError::Disk { file: name, error }),
        };
        self.buffer.clear();
        let seeds = Seeds::new(&self.salt, generation);
        let (segment_end, buffered_from, offset, end) = (0, 0, 0, 0);
        let (passed, lost, unreadable, learnt) = ((0, 0), None, None, 0);
        Ok(Walk {
            is_of,
            name,
            seeds,
            file,
            segment_end,
            buffered_from,
            offset,
            end,
            passed,
            lost,
            unreadable,
            learnt,
        })
    }
}

impl Walk {
    fn damaged(&self) -> ReadError {
        ReadError::Damaged { file: self.name.clone(), offset: self.offset }
    }

    fn has_ended(&self) -> bool {
        self.offset >= self.end && padded_offset(self.end) >= self.segment_end
    }

    /// Enters the batch behind this one, if its header verifies.
    fn next_batch(&mut self, buffer: &mut Vec<u8>) -> Option<BatchHeader> {
        self.enter_batch(buffer, padded_offset(self.end))
    }

    fn enter_batch(&mut self, buffer: &mut Vec<u8>, at: u64) -> Option<BatchHeader> {
        let seeds = self.seeds;
        let header = BatchHeader::decode(self.bytes(buffer, at, BATCH_HEADER_BYTES)?, seeds)?;
        self.offset = at + BATCH_HEADER_BYTES as u64;
        self.end = self.offset + header.payload_bytes as u64;
        Some(header)
    }

    /// The next record of this batch, if it verifies.
    fn record<'b>(&mut self, buffer: &'b mut Vec<u8>) -> Option<Record<'b>> {
        let seeds = self.seeds;
        decode_record(self.record_bytes(buffer)?, seeds)
    }

    /// As many bytes as the next record of this batch says it has.
    fn record_bytes<'b>(&mut self, buffer: &'b mut Vec<u8>) -> Option<&'b [u8]> {
        let begin = self.offset;
        let (bytes, ..) = peek_record(self.bytes(buffer, begin, RECORD_HEADER_BYTES)?);
        if begin + bytes > self.end {
            return None;
        }
        let length = usize::try_from(bytes).ok()?;
        self.bytes(buffer, begin, length)
    }

    /// Goes on behind a record that verifies.
    fn pass(&mut self, stream: u32, sequence: u64, payload_bytes: usize) {
        self.offset += (RECORD_HEADER_BYTES + payload_bytes) as u64;
        // What does not go on is a copy of what was passed.
        if stream == self.passed.0 && sequence > self.passed.1 {
            (self.passed, self.lost, self.unreadable) = ((stream, sequence), None, None);
        }
    }

    /// Where something does not verify, goes on at the next thing that does: a batch, or a record of this stream from
    /// before `behind`.
    fn find_again(&mut self, buffer: &mut Vec<u8>, stream: u32, behind: u64) {
        self.lost.get_or_insert(self.offset);
        let begin = if self.offset < self.end { self.offset + 1 } else { self.offset };
        for at in begin..self.segment_end {
            if at.is_multiple_of(ALIGNMENT as u64) && self.enter_batch(buffer, at).is_some() {
                return;
            }
            let Some(header) = self.bytes(buffer, at, RECORD_HEADER_BYTES) else { break };
            let (bytes, found_stream, sequence) = peek_record(header);
            if found_stream != stream || sequence <= self.passed.1 || sequence >= behind {
                continue;
            }
            let before = (self.offset, self.end);
            (self.offset, self.end) = (at, self.end.max(at + bytes));
            if self.record(buffer).is_some() {
                return;
            }
            (self.offset, self.end) = before;
        }
        (self.offset, self.end) = (self.segment_end, self.segment_end);
    }

    fn bytes<'b>(&mut self, buffer: &'b mut Vec<u8>, at: u64, length: usize) -> Option<&'b [u8]> {
        self.fill(buffer, at, length)?;
        let from = usize::try_from(at - self.buffered_from).ok()?;
        buffer.get(from..from.checked_add(length)?)
    }

    /// Makes sure that the buffer holds these bytes of the segment, if it has them.
    fn fill(&mut self, buffer: &mut Vec<u8>, at: u64, length: usize) -> Option<()> {
        let has_until = self.buffered_from + buffer.len() as u64;
        if at >= self.buffered_from && at + length as u64 <= has_until {
            return Some(());
        }
        let left = usize::try_from(self.segment_end.saturating_sub(at)).unwrap_or(usize::MAX);
        if left < length {
            return None;
        }
        buffer.resize(length.max(READ_BYTES).min(left), 0);
        buffer.shrink_to(READ_BYTES);
        self.buffered_from = at;
        match self.file.read_at(at, buffer) {
            Ok(count) => buffer.truncate(count),
            Err(error) => {
                let mut unreadable = None;
                read_blocks(&*self.file, at, buffer, |block| _ = unreadable.get_or_insert(block));
                match unreadable {
                    None => {}
                    // Nobody asked for what is there yet.
                    Some(block) if block.start >= length => buffer.truncate(block.start),
                    Some(block) => {
                        buffer.truncate(block.end.max(length));
                        self.unreadable = Some(error);
                    }
                }
            }
        }
        (buffer.len() >= length).then_some(())
    }
}

/// Where a batch begins whose predecessor's records end there.
fn padded_offset(end: u64) -> u64 {
    end.next_multiple_of(ALIGNMENT as u64)
}
