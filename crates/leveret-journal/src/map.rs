//! Where records are: which segment holds a sequence of a stream, and about where in it.
//!
//! Invariant: a record lies behind the last mark of its stream that is not behind it, in the same segment.

use std::collections::BTreeMap;

use crate::limits::MARK_EVERY_BYTES;

/// A record that is remembered, and all behind it are found from there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Mark {
    pub(crate) sequence: u64,
    /// Where the record begins in its segment.
    pub(crate) offset: u64,
    /// Where the records of its batch end.
    pub(crate) end: u64,
}

/// A record of a batch that may be worth remembering: its stream, its sequence, its offset in the batch.
pub(crate) type Candidate = (u32, u64, u64);

/// Notes every record of a batch that begins a stream's records or lies far behind the last one noted.
#[derive(Debug, Default)]
pub(crate) struct Candidates(pub(crate) Vec<Candidate>);

impl Candidates {
    pub(crate) fn see(&mut self, stream: u32, sequence: u64, offset: u64) {
        let is_covered =
            self.0.last().is_some_and(|last| last.0 == stream && offset < last.2.saturating_add(MARK_EVERY_BYTES));
        if !is_covered {
            self.0.push((stream, sequence, offset));
        }
    }
}

/// The marks of all segments.
#[derive(Debug, Default)]
pub(crate) struct Map {
    /// By stream and the first sequence that a segment holds of it.
    segments: BTreeMap<(u32, u64), u64>,
    /// By segment and stream; the marks are in the order of their sequences.
    marks: BTreeMap<(u64, u32), Vec<Mark>>,
    /// Where each segment ends: nothing before that changes any more.
    ends: BTreeMap<u64, u64>,
}

impl Map {
    /// Takes in the candidates of a batch whose records begin at `begin` and end at `end`. What lies before `whole_from`
    /// may not be passed over: nothing behind it is found from a mark before it.
    pub(crate) fn add(&mut self, generation: u64, begin: u64, end: u64, whole_from: u64, candidates: &[Candidate]) {
        self.ends.insert(generation, end);
        for &(stream, sequence, offset) in candidates {
            let marks = self.marks.entry((generation, stream)).or_default();
            if marks.is_empty() {
                self.segments.insert((stream, sequence), generation);
            }
            let offset = begin + offset;
            let wanted = |last: &Mark| last.offset < whole_from || offset >= last.offset + MARK_EVERY_BYTES;
            if marks.last().is_none_or(wanted) {
                marks.push(Mark { sequence, offset, end });
            }
        }
    }

    /// The segment that holds a record, if it exists, where that segment ends, and a mark not behind the record.
    pub(crate) fn find(&self, stream: u32, sequence: u64) -> Option<(u64, u64, Mark)> {
        let (&(found, _), &generation) = self.segments.range(..=(stream, sequence)).next_back()?;
        if found != stream {
            return None;
        }
        let marks = self.marks.get(&(generation, stream))?;
        let behind = marks.partition_point(|mark| mark.sequence <= sequence);
        let end = self.ends.get(&generation)?;
        Some((generation, *end, *marks.get(behind.checked_sub(1)?)?))
    }
}
