//! Reading single records back while the journal grows.

use std::io;
use std::ops::Range;
use std::sync::Arc;

use parking_lot::RwLock;

use crate::disk::{Disk, DiskFile};
use crate::format::{
    BATCH_HEADER_BYTES, BatchHeader, HeaderFound, RECORD_HEADER_BYTES, Record, Salt, Seeds, decode_record, padded,
    peek_record, segment_name,
};
use crate::limits::{MARK_EVERY_BYTES, READ_BYTES};
use crate::map::{File, Map, Mark};
use crate::recovery::{read_blocks, read_header};

/// Why a record was not read.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// The disk refuses.
    #[error("{file} cannot be read: {error}")]
    Disk {
        /// The segment.
        file: String,
        /// Why.
        error: io::Error,
    },
    /// It is not where it was written.
    #[error("{file} is damaged at offset {offset}")]
    Damaged {
        /// The segment.
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
    /// The last record that was passed.
    passed: (u32, u64),
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
            let Some((file, end, mark)) = self.map.read().find(stream, sequence) else {
                return Err(ReadError::Unknown { stream, sequence });
            };
            match self.read_in((file, end, mark), stream, sequence) {
                Ok(found) => return Ok(self.buffer.get(found).unwrap_or_default()),
                Err(error) => {
                    self.open = None;
                    // Its file may have been exchanged since we knew where to look.
                    let found = self.map.read().find(stream, sequence);
                    if found.is_none_or(|(now, ..)| now == file) {
                        return Err(error);
                    }
                }
            }
        }
    }

    /// Finds a record, and says where its payload lies in the buffer.
    fn read_in(
        &mut self,
        (file, segment_end, mark): (File, u64, Mark),
        stream: u32,
        sequence: u64,
    ) -> Result<Range<usize>, ReadError> {
        let unknown = ReadError::Unknown { stream, sequence };
        let mut walk = match self.open.take().filter(|walk| walk.is_of == file) {
            Some(walk) => walk,
            None => self.open(file)?,
        };
        walk.segment_end = segment_end;
        let is_on_the_way = walk.offset > mark.offset && walk.passed.0 == stream && walk.passed.1 < sequence;
        if !is_on_the_way {
            (walk.offset, walk.end, walk.passed) = (mark.offset, mark.end, (stream, 0));
            walk.learnt = mark.offset;
        }
        let walk = self.open.insert(walk);
        loop {
            if walk.offset >= walk.end {
                if walk.has_ended() {
                    return Err(unknown);
                }
                walk.next_batch(&mut self.buffer)?;
                continue;
            }
            let header = walk.bytes(&mut self.buffer, walk.offset, RECORD_HEADER_BYTES)?;
            let (bytes, found_stream, found) = peek_record(header);
            if walk.offset + bytes > walk.end {
                // Where the records of this batch are, nothing tells any more.
                walk.offset = walk.end;
                continue;
            }
            let begin = walk.offset;
            if found_stream != stream || found < sequence {
                if walk.offset >= walk.learnt + MARK_EVERY_BYTES {
                    walk.learnt = walk.offset;
                    let mark = Mark { sequence: found, offset: walk.offset, end: walk.end };
                    self.map.write().learn(file, found_stream, mark);
                }
                walk.offset += bytes;
                walk.passed = if found_stream == stream { (stream, found) } else { walk.passed };
                continue;
            }
            if found > sequence {
                return Err(unknown);
            }
            let length = usize::try_from(bytes).map_err(|_| walk.damaged())?;
            // Not `bytes()`, whose error would keep the buffer borrowed.
            walk.fill(&mut self.buffer, begin, length)?;
            walk.offset += bytes;
            walk.passed = (stream, sequence);
            let at = usize::try_from(begin - walk.buffered_from).unwrap_or(usize::MAX);
            let record = self.buffer.get(at..at.saturating_add(length));
            let record = record.and_then(|bytes| decode_record(bytes, walk.seeds));
            return match record {
                Some(_) => Ok(at + RECORD_HEADER_BYTES..at + length),
                None => Err(ReadError::Damaged { file: walk.name.clone(), offset: begin }),
            };
        }
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
        while !walk.has_ended() {
            let expected = walk.end.next_multiple_of(padded(1) as u64) + BATCH_HEADER_BYTES as u64;
            walk.next_batch(&mut self.buffer)?;
            if walk.offset != expected {
                return Err(walk.damaged());
            }
            while walk.offset < walk.end {
                let (bytes, ..) = peek_record(walk.bytes(&mut self.buffer, walk.offset, RECORD_HEADER_BYTES)?);
                let length = usize::try_from(bytes).map_err(|_| walk.damaged())?;
                let (offset, seeds, damaged) = (walk.offset, walk.seeds, walk.damaged());
                let record = decode_record(walk.bytes(&mut self.buffer, offset, length)?, seeds).ok_or(damaged)?;
                take(record)?;
                walk.offset += bytes;
            }
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
        let (segment_end, buffered_from, offset, end, learnt) = (0, 0, 0, 0, 0);
        Ok(Walk { is_of, name, seeds, file, segment_end, buffered_from, offset, end, passed: (0, 0), learnt })
    }
}

impl Walk {
    fn damaged(&self) -> ReadError {
        ReadError::Damaged { file: self.name.clone(), offset: self.offset }
    }

    fn has_ended(&self) -> bool {
        self.end.next_multiple_of(padded(1) as u64) >= self.segment_end
    }

    fn next_batch(&mut self, buffer: &mut Vec<u8>) -> Result<(), ReadError> {
        let alignment = padded(1) as u64;
        let mut at = self.end.next_multiple_of(alignment);
        let seeds = self.seeds;
        let header = loop {
            let header = self.bytes(buffer, at, BATCH_HEADER_BYTES)?;
            if let Some(header) = BatchHeader::decode(header, seeds) {
                break header;
            }
            // What is damaged may lie in the way of what is not.
            at += alignment;
        };
        self.offset = at + BATCH_HEADER_BYTES as u64;
        self.end = self.offset + header.payload_bytes as u64;
        Ok(())
    }

    fn bytes<'b>(&mut self, buffer: &'b mut Vec<u8>, at: u64, length: usize) -> Result<&'b [u8], ReadError> {
        self.fill(buffer, at, length)?;
        let from = usize::try_from(at - self.buffered_from).unwrap_or(usize::MAX);
        buffer.get(from..from.saturating_add(length)).ok_or_else(|| self.damaged())
    }

    /// Makes sure that the buffer holds these bytes of the segment.
    fn fill(&mut self, buffer: &mut Vec<u8>, at: u64, length: usize) -> Result<(), ReadError> {
        let has_until = self.buffered_from + buffer.len() as u64;
        if at >= self.buffered_from && at + length as u64 <= has_until {
            return Ok(());
        }
        let left = usize::try_from(self.segment_end.saturating_sub(at)).unwrap_or(usize::MAX);
        if left < length {
            return Err(self.damaged());
        }
        buffer.resize(length.max(READ_BYTES).min(left), 0);
        buffer.shrink_to(READ_BYTES);
        self.buffered_from = at;
        match self.file.read_at(at, buffer) {
            Ok(count) => buffer.truncate(count),
            Err(_) => read_blocks(&*self.file, at, buffer, |_| {}),
        }
        if buffer.len() < length { Err(self.damaged()) } else { Ok(()) }
    }
}
