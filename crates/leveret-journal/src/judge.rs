//! Telling what was written in a place from what only verifies there.
//!
//! Invariant: what is taken goes on, in the journal and in each stream. A copy in a place where it was not written hides no more
//! than what it lies over.

use std::collections::BTreeMap;
use std::ops::Range;

use crate::damage::Missing;
use crate::format::{ALIGNMENT, BATCH_HEADER_BYTES, FoundBatch, RECORD_HEADER_BYTES, SegmentHeader, StreamState};
use crate::limits::{COPY_BYTES_MAX, SMALL_RECORD_BYTES, VERIFIED_FACTOR_MAX};
use crate::map::{Candidates, Map};
use crate::pieces::Pieces;

/// What a segment that has ended holds.
pub(crate) struct Judged {
    /// Where its records are.
    pub(crate) map: Map,
    /// What does not verify there or is a copy, and how much is missing for that.
    pub(crate) damage: Vec<(Range<u64>, Missing)>,
    /// The journal sequence before which everything was found or is in that.
    pub(crate) next_sequence: u64,
    /// Bytes of batches that are valid.
    pub(crate) bytes: u64,
}

/// Looks through a segment up to its end; `behind` is the next header that verifies.
pub(crate) fn judge(
    pieces: &mut Pieces,
    header: &SegmentHeader,
    behind: Option<&SegmentHeader>,
    end: u64,
) -> Judged {
    // Batches that were put together again have lost their numbers.
    let is_compacted = header.compacted_through > 0;
    let begin = header.bytes() as u64;
    let mut judged =
        Judged { map: Map::default(), damage: Vec::new(), next_sequence: header.first_sequence, bytes: 0 };
    let mut streams = Streams { behind, ..Streams::default() };
    streams.last = header.streams.iter().map(|(&stream, state)| (stream, state.last)).collect();
    streams.are_sparse = is_compacted;
    let (mut offset, mut whole_from) = (begin, begin);
    while offset < end {
        let expected = judged.next_sequence;
        let next = if is_compacted {
            pieces.next_batch(offset, end, 0)
        } else {
            next_in_order(pieces, offset, end, expected)
        };
        let found = next.map_or(end, |(found, _)| found);
        // The number of what follows, if its header tells it.
        let follows = match next {
            Some((_, first_sequence)) => Some(first_sequence),
            None => behind
                .filter(|behind| behind.previous_generation == header.generation)
                .map(|behind| behind.first_sequence),
        };
        if next.is_none() && follows.is_none() && !is_compacted && pieces.is_blank(offset, end) {
            // Nobody says where it ended: there, as for a start.
            break;
        }
        if found > offset || follows.is_some_and(|follows| follows > expected) && !is_compacted {
            streams.next = BTreeMap::new();
            for (_, record) in pieces.batch(found, end).iter().flat_map(FoundBatch::records) {
                streams.next.entry(record.stream).or_insert(record.sequence);
            }
            let (readable, bytes) = streams.salvage(pieces, offset..found, header.generation, &mut judged.map);
            let missing = match follows.filter(|_| !is_compacted) {
                Some(follows) => Missing::Exactly(follows.saturating_sub(expected).saturating_sub(readable)),
                None => Missing::AtMost(most_records((found - offset).saturating_sub(bytes))),
            };
            judged.damage.push((offset..found, missing));
            judged.next_sequence = follows.unwrap_or(expected);
            whole_from = found;
        }
        let Some(batch) = pieces.batch(found, end) else { break };
        let mut candidates = Candidates::default();
        for (at, record) in batch.records() {
            if streams.goes_on(record.stream, record.sequence) {
                streams.saw(record.stream, record.sequence);
                candidates.see(record.stream, record.sequence, at as u64);
            }
        }
        let begin = found + BATCH_HEADER_BYTES as u64;
        judged.map.add(header.generation, begin, begin + batch.payload_bytes() as u64, whole_from, &candidates.0);
        judged.next_sequence = batch.first_sequence + u64::from(batch.count);
        judged.bytes += batch.bytes() as u64;
        offset = found + batch.bytes() as u64;
    }
    judged
}

/// How far streams are in a segment.
#[derive(Default)]
struct Streams<'s> {
    last: BTreeMap<u32, u64>,
    /// What comes behind the segment.
    behind: Option<&'s SegmentHeader>,
    /// The first records of what comes behind a region.
    next: BTreeMap<u32, u64>,
    /// Some of their records were left out.
    are_sparse: bool,
    /// So many records may have been passed over so far.
    passed_over: u64,
    /// The same when a record of a stream was last found.
    passed_over_before: BTreeMap<u32, u64>,
}

impl Streams<'_> {
    fn goes_on(&self, stream: u32, sequence: u64) -> bool {
        let until =
            |behind: &SegmentHeader| behind.streams.get(&stream).map_or(0, |state: &StreamState| state.last);
        sequence > self.last.get(&stream).copied().unwrap_or(0)
            && self.behind.is_none_or(|behind| sequence <= until(behind))
    }

    /// Whether a record may be one of a region, if so many may have been passed over in it.
    fn may_be(&self, stream: u32, sequence: u64, passed_over: u64) -> bool {
        let last = self.last.get(&stream).copied().unwrap_or(0);
        let before = self.passed_over_before.get(&stream).copied().unwrap_or(0);
        let most = 1 + self.passed_over - before + passed_over;
        self.goes_on(stream, sequence)
            && self.next.get(&stream).is_none_or(|&next| sequence < next)
            && (self.are_sparse || sequence - last <= most)
    }

    fn saw(&mut self, stream: u32, sequence: u64) {
        self.last.insert(stream, sequence);
        if self.passed_over > 0 {
            self.passed_over_before.insert(stream, self.passed_over);
        }
    }

    /// Takes the records of a region that verify by themselves and go on, wherever they begin: how many, and their bytes.
    fn salvage(&mut self, pieces: &mut Pieces, region: Range<u64>, generation: u64, map: &mut Map) -> (u64, u64) {
        let (mut at, mut count, mut bytes) = (region.start, 0, 0);
        let (mut verified, mut looked) = (0, 0);
        // Records lie one behind the other from there on.
        let (mut begin, mut candidates) = (at, Candidates::default());
        while at < region.end {
            let mut found = at;
            let length = loop {
                let may_be = |place, stream, sequence| self.may_be(stream, sequence, most_records(place - at));
                found = next_record(pieces, found..region.end, &mut verified, may_be);
                let Some((length, Some(record))) = pieces.record(found, region.end) else { break 0 };
                let (stream, sequence) = (record.stream, record.sequence);
                let last = self.last.get(&stream).copied().unwrap_or(0);
                if !is_copy(
                    pieces,
                    found + length..region.end,
                    stream,
                    last + 1..sequence,
                    region.start,
                    &mut looked,
                ) {
                    break length;
                }
                found += length;
            };
            if found > at {
                map.add(generation, begin, region.end, begin, &candidates.0);
                candidates.0.clear();
                self.passed_over += most_records(found - at);
                begin = found;
            }
            let Some((_, Some(record))) = pieces.record(found, region.end).filter(|_| length > 0) else { break };
            self.saw(record.stream, record.sequence);
            candidates.see(record.stream, record.sequence, found - begin);
            (count, bytes, at) = (count + 1, bytes + length, found + length);
        }
        map.add(generation, begin, region.end, begin, &candidates.0);
        (count, bytes)
    }
}

/// The first valid batch at or behind `from`, with its first sequence, if that is not before `expected`. Those are copies, where
/// they were not written, which go on from one to the next and have as many others behind them that come before them all, or
/// fewer and then what was copied.
pub(crate) fn next_in_order(pieces: &mut Pieces, from: u64, limit: u64, expected: u64) -> Option<(u64, u64)> {
    let mut next = pieces.next_batch(from, limit, expected)?;
    while next.1 > expected {
        let (mut end, mut goes_on, mut run) = (next.0, next.1, 0);
        while let Some(batch) = pieces.batch(end, limit).filter(|batch| batch.first_sequence == goes_on) {
            goes_on += u64::from(batch.count);
            (end, run) = (end + batch.bytes() as u64, run + 1);
            if end - next.0 > COPY_BYTES_MAX {
                return Some(next);
            }
        }
        let Some(behind) = pieces.next_batch(end, limit, expected) else { return Some(next) };
        let (mut at, mut sequence, mut before) = (behind.0, behind.1, 0);
        while sequence < next.1 && before < run {
            before += 1;
            let end = at + pieces.batch(at, limit).map_or(ALIGNMENT, |batch| batch.bytes()) as u64;
            match pieces.next_batch(end, limit, sequence + 1) {
                Some(found) => (at, sequence) = found,
                None => break,
            }
        }
        if before < run && (before == 0 || sequence != next.1) {
            return Some(next);
        }
        next = behind;
    }
    Some(next)
}

/// Where in a range the first record begins that verifies and may be one, by its place, stream and sequence; its end if none
/// does.
pub(crate) fn next_record(
    pieces: &mut Pieces,
    range: Range<u64>,
    verified: &mut u64,
    may_be: impl Fn(u64, u32, u64) -> bool,
) -> u64 {
    let bytes = range.end - range.start;
    for at in range.clone() {
        let Some((length, stream, sequence)) = pieces.peek(at, range.end) else { continue };
        // To verify whatever looks like a length may take for ever, if somebody has made it look so.
        let is_short = length <= SMALL_RECORD_BYTES || *verified <= bytes.saturating_mul(VERIFIED_FACTOR_MAX);
        if may_be(at, stream, sequence) && is_short {
            *verified += length;
            if matches!(pieces.record(at, range.end), Some((_, Some(_)))) {
                return at;
            }
        }
    }
    range.end
}

/// Whether one of these records of a stream lies in a range: then one that comes behind them and lies before the range is a copy, in a
/// place where it was not written. Of a region that begins at `region`, so much is looked at and no more.
pub(crate) fn is_copy(
    pieces: &mut Pieces,
    range: Range<u64>,
    stream: u32,
    sequences: Range<u64>,
    region: u64,
    looked: &mut u64,
) -> bool {
    let most = (range.end - region).saturating_mul(VERIFIED_FACTOR_MAX);
    if sequences.is_empty() {
        return false;
    }
    for at in range.clone() {
        if *looked > most {
            break;
        }
        *looked += 1;
        match pieces.peek(at, range.end) {
            Some((length, found, sequence)) if found == stream && sequences.contains(&sequence) => {
                *looked += length;
                if matches!(pieces.record(at, range.end), Some((_, Some(_)))) {
                    return true;
                }
            }
            _ => {}
        }
    }
    false
}

/// How many records so many bytes can hold.
pub(crate) fn most_records(bytes: u64) -> u64 {
    bytes.div_ceil(RECORD_HEADER_BYTES as u64)
}
