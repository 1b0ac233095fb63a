//! A segment as it is on disk, read in pieces.
//!
//! Invariant: no more of it is in memory than [`PIECE_BYTES`] and a block, unless one batch or one record has more.

use std::collections::BTreeSet;
use std::io;
use std::ops::Range;
use std::sync::Arc;

use crate::disk::{Disk, DiskFile};
use crate::format::{
    ALIGNMENT, BATCH_HEADER_BYTES, BATCH_MAGIC, BatchHeader, FoundBatch, RECORD_HEADER_BYTES, Record, Seeds,
    decode_record, peek_record,
};
use crate::limits::{PIECE_BYTES, TORN_BYTES_MAX, UNREADABLE_BLOCK_BYTES};
use crate::map::Looked;

/// Bytes of two files that are compared at once.
const COMPARED_BYTES: usize = 4096;

/// One segment. What the disk cannot read is given up block by block and is zero; the rest is not.
pub(crate) struct Pieces {
    file: Arc<dyn DiskFile>,
    length: u64,
    seeds: Seeds,
    /// Where the buffer begins.
    from: u64,
    buffer: Vec<u8>,
    /// Where blocks begin that could not be read.
    unreadable: BTreeSet<u64>,
}

impl Pieces {
    /// A file of so many bytes.
    pub(crate) fn open(disk: &dyn Disk, name: &str, length: u64, seeds: Seeds) -> io::Result<Self> {
        let file = disk.open(name)?;
        Ok(Pieces { file, length, seeds, from: 0, buffer: Vec::new(), unreadable: BTreeSet::new() })
    }

    /// So many bytes from an offset on; fewer where the file ends.
    pub(crate) fn bytes(&mut self, at: u64, count: usize) -> &[u8] {
        let bytes = self.at_hand(at, count);
        &bytes[..count.min(bytes.len())]
    }

    /// What is in memory from an offset on: so many bytes at least, unless the file ends before.
    fn at_hand(&mut self, at: u64, least: usize) -> &[u8] {
        if at >= self.length {
            return &[];
        }
        let end = at.saturating_add(least as u64).min(self.length);
        if at < self.from || end > self.from + self.buffer.len() as u64 {
            self.fill(at, end);
        }
        let skipped = usize::try_from(at - self.from).unwrap_or(usize::MAX);
        self.buffer.get(skipped..).unwrap_or_default()
    }

    fn fill(&mut self, at: u64, end: u64) {
        // So that a block that cannot be read is the same one whoever asks.
        self.from = at - at % UNREADABLE_BLOCK_BYTES as u64;
        let wanted = (end - self.from).max(PIECE_BYTES as u64).min(self.length - self.from);
        self.buffer.clear();
        self.buffer.resize(usize::try_from(wanted).unwrap_or(usize::MAX), 0);
        self.buffer.shrink_to(PIECE_BYTES + UNREADABLE_BLOCK_BYTES);
        if self.file.read_at(self.from, &mut self.buffer).is_err() {
            let (from, unreadable) = (self.from, &mut self.unreadable);
            read_blocks(&*self.file, from, &mut self.buffer, |block| {
                unreadable.insert(from + block.start as u64);
            });
        }
    }

    /// The batch at an offset, if there is one that ends before `limit`.
    pub(crate) fn batch(&mut self, at: u64, limit: u64) -> Option<FoundBatch<'_>> {
        let seeds = self.seeds;
        let header = BatchHeader::decode(self.bytes(at, BATCH_HEADER_BYTES), seeds)?;
        let length = BATCH_HEADER_BYTES + header.payload_bytes;
        if length as u64 > limit.saturating_sub(at) {
            return None;
        }
        FoundBatch::decode(self.bytes(at, length), seeds)
    }

    /// The first valid batch at or behind `from`, with its first sequence, if that is not before `expected`.
    pub(crate) fn next_batch(&mut self, from: u64, limit: u64, expected: u64) -> Option<(u64, u64)> {
        let is_valid = |pieces: &mut Self, at, header: &BatchHeader| {
            header.first_sequence >= expected && pieces.batch(at, limit).is_some()
        };
        self.next_header(from, limit, is_valid).map(|(at, header)| (at, header.first_sequence))
    }

    /// The first header of a batch at or behind `from`, whatever became of its records, that says that more was durable before it
    /// than comes before `expected`; and how much.
    pub(crate) fn next_evidence(&mut self, from: u64, limit: u64, expected: u64) -> Option<(u64, u64)> {
        let is_one = |_: &mut Self, _, header: &BatchHeader| header.durable_before > expected;
        self.next_header(from, limit, is_one).map(|(at, header)| (at, header.durable_before))
    }

    /// The first header of a batch at or behind `from` that verifies and is wanted.
    fn next_header(
        &mut self,
        from: u64,
        limit: u64,
        mut is_wanted: impl FnMut(&mut Self, u64, &BatchHeader) -> bool,
    ) -> Option<(u64, BatchHeader)> {
        let mut at = from.next_multiple_of(ALIGNMENT as u64);
        while at < limit {
            let at_hand = self.at_hand(at, ALIGNMENT);
            let whole = at_hand.chunks_exact(ALIGNMENT);
            let count = whole.len();
            let Some(found) = whole.into_iter().position(|place| place.starts_with(BATCH_MAGIC)) else {
                // Without a whole place, the file ends here.
                if count == 0 {
                    return None;
                }
                at += (count * ALIGNMENT) as u64;
                continue;
            };
            at += (found * ALIGNMENT) as u64;
            if at >= limit {
                return None;
            }
            let seeds = self.seeds;
            if let Some(header) = BatchHeader::decode(self.bytes(at, BATCH_HEADER_BYTES), seeds)
                && is_wanted(self, at, &header)
            {
                return Some((at, header));
            }
            at += ALIGNMENT as u64;
        }
        None
    }

    /// What the header of a record at an offset says, and the record if it verifies; nothing if it does not end before
    /// `limit`.
    pub(crate) fn record(&mut self, at: u64, limit: u64) -> Option<(u64, Option<Record<'_>>)> {
        let (bytes, ..) = self.peek(at, limit)?;
        let (length, seeds) = (usize::try_from(bytes).ok()?, self.seeds);
        Some((bytes, decode_record(self.bytes(at, length), seeds)))
    }

    /// What the header of a record says that need not verify: bytes, stream and sequence. Nothing if the record does not end
    /// before `limit`.
    pub(crate) fn peek(&mut self, at: u64, limit: u64) -> Option<(u64, u32, u64)> {
        let header = self.bytes(at, RECORD_HEADER_BYTES);
        let found = (header.len() == RECORD_HEADER_BYTES).then(|| peek_record(header))?;
        (found.0 <= limit.saturating_sub(at)).then_some(found)
    }

    /// Whether no batch was ever begun here. What the file held in an earlier life may lie behind the zeros.
    pub(crate) fn is_blank(&mut self, at: u64, limit: u64) -> bool {
        let count = usize::try_from(limit.saturating_sub(at)).unwrap_or(usize::MAX).min(BATCH_HEADER_BYTES);
        self.bytes(at, count).iter().all(|&byte| byte == 0)
    }

    /// Where the batch at an offset would end by its header; without that, what is not zero right behind it.
    pub(crate) fn end_of_torn(&mut self, at: u64) -> u64 {
        let seeds = self.seeds;
        let end = match BatchHeader::decode(self.bytes(at, BATCH_HEADER_BYTES), seeds) {
            Some(header) => at + (BATCH_HEADER_BYTES + header.payload_bytes) as u64,
            None => self.used(at..at.saturating_add(TORN_BYTES_MAX)),
        };
        end.min(self.length)
    }

    /// Where the last byte of a range ends that is not zero, or that the disk cannot read.
    pub(crate) fn used(&mut self, range: Range<u64>) -> u64 {
        let (mut at, mut used) = (range.start, range.start);
        let limit = range.end.min(self.length);
        while at < limit {
            let piece = self.at_hand(at, 1);
            let count = (piece.len() as u64).min(limit - at);
            let piece = &piece[..usize::try_from(count).unwrap_or(usize::MAX)];
            if let Some(last) = piece.iter().rposition(|&byte| byte != 0) {
                used = at + last as u64 + 1;
            }
            at += count.max(1);
        }
        let last = self.unreadable.last().map_or(0, |block| block + UNREADABLE_BLOCK_BYTES as u64);
        used.max(last.min(limit))
    }

    /// Copies a range to another file, from its beginning on.
    pub(crate) fn copy(&mut self, range: Range<u64>, to: &dyn DiskFile) -> io::Result<()> {
        let mut at = range.start;
        while at < range.end {
            let count = usize::try_from(range.end - at).unwrap_or(usize::MAX).min(PIECE_BYTES);
            let piece = self.bytes(at, count);
            if piece.is_empty() {
                break;
            }
            let count = piece.len() as u64;
            to.write_at(at - range.start, piece)?;
            at += count;
        }
        Ok(())
    }

    /// Whether a file holds what a range does, and no more.
    pub(crate) fn is_same(&mut self, range: Range<u64>, file: &dyn DiskFile) -> bool {
        let length = range.end.min(self.length) - range.start.min(self.length);
        let mut at = range.start;
        let mut other = [0; COMPARED_BYTES];
        while at < range.end.min(self.length) {
            let piece = self.bytes(at, COMPARED_BYTES.min(usize::try_from(range.end - at).unwrap_or(usize::MAX)));
            let other = &mut other[..piece.len()];
            if file.read_at(at - range.start, other).ok() != Some(piece.len()) || piece != other {
                return false;
            }
            at += piece.len() as u64;
        }
        file.length().is_ok_and(|found| found == length)
    }

    /// Bytes in a range that the disk could not read, as far as anybody has asked for them.
    pub(crate) fn unreadable_in(&self, range: Range<u64>) -> u64 {
        let overlap = |&block: &u64| {
            let end = (block + UNREADABLE_BLOCK_BYTES as u64).min(self.length).min(range.end);
            end.saturating_sub(block.max(range.start))
        };
        self.unreadable.iter().map(overlap).sum()
    }

    /// How far somebody has looked who has asked for all of it.
    pub(crate) fn looked(&self) -> Looked {
        self.unreadable.first().map_or(Looked::Through, |&block| Looked::Without(block))
    }

    /// Whether the disk has read all that anybody has asked for.
    pub(crate) fn is_readable(&self) -> bool {
        self.unreadable.is_empty()
    }
}

/// Reads what the disk cannot read at once: block by block, and those that it cannot read at all are zero.
pub(crate) fn read_blocks(
    file: &dyn DiskFile,
    at: u64,
    bytes: &mut [u8],
    mut unreadable: impl FnMut(Range<usize>),
) {
    for (nth, block) in bytes.chunks_mut(UNREADABLE_BLOCK_BYTES).enumerate() {
        let begin = nth * UNREADABLE_BLOCK_BYTES;
        if file.read_at(at + begin as u64, block).is_err() {
            block.fill(0);
            unreadable(begin..begin + block.len());
        }
    }
}
