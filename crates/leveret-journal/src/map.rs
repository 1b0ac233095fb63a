//! Where records are: which segment holds a sequence of a stream, and about where in it.
//!
//! Invariant: a record lies behind the last mark of its stream that is not behind it, in the same segment.

use std::collections::BTreeMap;

use crate::format::SegmentHeader;
use crate::limits::MARK_EVERY_BYTES;

/// A record that is remembered, and all behind it are found from there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Mark {
    pub(crate) sequence: u64,
    /// Where the record begins in its segment.
    pub(crate) offset: u64,
    /// Where the records of its batch end, or the damaged region in which it was found.
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

/// A file that does not change before its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct File {
    pub(crate) generation: u64,
    edition: u64,
}

/// Where a record is, if it exists.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Place {
    pub(crate) file: File,
    /// Where that ends.
    pub(crate) end: u64,
    /// Not behind the record.
    pub(crate) mark: Mark,
    /// From this sequence on, the records of the stream are in another file.
    pub(crate) behind: u64,
}

/// All segments.
#[derive(Debug, Default)]
pub(crate) struct Map {
    /// By stream and the first sequence that a segment may hold of it.
    places: BTreeMap<(u32, u64), u64>,
    segments: BTreeMap<u64, Segment>,
}

/// How much of what is in a segment is known.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Condition {
    /// What it holds is what the map says, as far as anybody has looked.
    #[default]
    Whole,
    /// Something in it does not verify, or could not be read.
    Damaged,
    /// The same of its header and, perhaps, of everything: it may hold any record that a segment before it is thought to hold.
    Unknown,
}

/// How far somebody has looked at what a segment holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Looked {
    #[default]
    Through,
    /// The disk could not read some of it then: a block that begins here, and perhaps others behind that.
    Without(u64),
    /// Nobody has: that it is in order is taken for granted.
    Never,
}

/// One segment.
#[derive(Clone, Debug, Default)]
pub(crate) struct Segment {
    condition: Condition,
    /// Counts how often the file was exchanged for a shorter one.
    edition: u64,
    /// The last of the segments of which it holds what is left; 0 if it is whole.
    through: u64,
    looked: Looked,
    /// Nothing before it changes any more.
    end: u64,
    /// The journal sequence of its first record.
    first_sequence: u64,
    /// In the order of their sequences.
    marks: BTreeMap<u32, Vec<Mark>>,
}

impl Map {
    /// A segment was begun.
    pub(crate) fn begin(&mut self, generation: u64, first_sequence: u64) {
        self.segments.entry(generation).or_default().first_sequence = first_sequence;
    }

    /// Takes in a segment that is not read: records are looked for from its first batch on. Streams that only the segment
    /// behind it knows begin in it.
    pub(crate) fn add_unread(&mut self, header: &SegmentHeader, behind: Option<&SegmentHeader>, end: u64) {
        let begin = header.bytes() as u64;
        let begun = behind.into_iter().flat_map(|behind| behind.streams.keys().map(|&stream| (stream, 0)));
        let known = header.streams.iter().map(|(&stream, state)| (stream, state.last));
        for (stream, last) in begun.chain(known).collect::<BTreeMap<_, _>>() {
            let first = Mark { sequence: 0, offset: begin, end: begin };
            self.segments.entry(header.generation).or_default().marks.insert(stream, vec![first]);
            self.places.insert((stream, last + 1), header.generation);
        }
        let segment = self.segments.entry(header.generation).or_default();
        (segment.end, segment.first_sequence) = (end, header.first_sequence);
        (segment.through, segment.looked) = (header.compacted_through, Looked::Never);
    }

    /// How far somebody has looked at what a file holds.
    pub(crate) fn looked(&self, file: File) -> Looked {
        let segment = self.segments.get(&file.generation).filter(|segment| segment.edition == file.edition);
        segment.map_or(Looked::Through, |segment| segment.looked)
    }

    /// The segment behind one; 0 if there is none.
    pub(crate) fn behind(&self, generation: u64) -> u64 {
        self.segments.range(generation + 1..).next().map_or(0, |(&next, _)| next)
    }

    /// Somebody has looked so far at what a segment holds, unless its file was exchanged meanwhile. Where something of a stream lies before
    /// what was found, it is looked for from the beginning on.
    pub(crate) fn judged(&mut self, file: File, looked: Looked, found: Map) {
        let Some(segment) = self.segments.get_mut(&file.generation) else { return };
        if segment.edition != file.edition {
            return;
        }
        segment.looked = looked;
        for (stream, found) in found.segments.into_values().flat_map(|found| found.marks) {
            if let Some(marks) = segment.marks.get_mut(&stream) {
                marks.truncate(1);
                marks.extend(found);
            }
        }
    }

    /// Something is wrong with a segment whose file has so many bytes.
    pub(crate) fn set_condition(&mut self, generation: u64, condition: Condition, bytes: u64) {
        let segment = self.segments.entry(generation).or_default();
        (segment.condition, segment.end) = (condition, segment.end.max(bytes));
    }

    /// Takes in the candidates of a batch whose records begin at `begin` and end at `end`. What lies before `whole_from`
    /// may not be passed over: nothing behind it is found from a mark before it.
    pub(crate) fn add(&mut self, generation: u64, begin: u64, end: u64, whole_from: u64, candidates: &[Candidate]) {
        let segment = self.segments.entry(generation).or_default();
        segment.end = end;
        for &(stream, sequence, offset) in candidates {
            let marks = segment.marks.entry(stream).or_default();
            if marks.is_empty() {
                self.places.insert((stream, sequence), generation);
            }
            let offset = begin + offset;
            let wanted = |last: &Mark| last.offset < whole_from || offset >= last.offset + MARK_EVERY_BYTES;
            if marks.last().is_none_or(wanted) {
                marks.push(Mark { sequence, offset, end });
            }
        }
    }

    /// Remembers a record that was passed in a segment that was not read, unless its file was exchanged meanwhile.
    pub(crate) fn learn(&mut self, file: File, stream: u32, mark: Mark) {
        let segment = self.segments.get_mut(&file.generation).filter(|segment| segment.edition == file.edition);
        if let Some(marks) = segment.and_then(|segment| segment.marks.get_mut(&stream))
            && marks.last().is_some_and(|last| mark.offset >= last.offset + MARK_EVERY_BYTES)
        {
            marks.push(mark);
        }
    }

    /// Where a record is, if it exists.
    pub(crate) fn find(&self, stream: u32, sequence: u64) -> Option<Place> {
        let (generation, _, behind) = self.segment_around(stream, sequence)?;
        let segment = self.segments.get(&generation)?;
        let marks = segment.marks.get(&stream)?;
        let after = marks.partition_point(|mark| mark.sequence <= sequence);
        let mark = *marks.get(after.checked_sub(1)?)?;
        Some(Place { file: File { generation, edition: segment.edition }, end: segment.end, mark, behind })
    }

    /// Where a segment ends.
    pub(crate) fn end(&self, generation: u64) -> u64 {
        self.segments.get(&generation).map_or(0, |segment| segment.end)
    }

    /// The file of a segment.
    pub(crate) fn file(&self, generation: u64) -> Option<File> {
        self.segments.get(&generation).map(|segment| File { generation, edition: segment.edition })
    }

    /// The last of the segments of which a file holds what is left.
    pub(crate) fn through(&self, generation: u64) -> u64 {
        self.segments.get(&generation).map_or(generation, |segment| segment.through.max(generation))
    }

    /// The file of the first of these segments holds what is left of all of them, and this is where. In the others nothing is
    /// looked for any more.
    pub(crate) fn exchange(&mut self, run: &[u64], through: u64, left: &Map) {
        let Some(&first) = run.first() else { return };
        let (edition, first_sequence) =
            self.segments.get(&first).map_or((0, 0), |segment| (segment.edition, segment.first_sequence));
        self.places.retain(|_, place| !run.contains(place));
        let mut segment = left.segments.get(&first).cloned().unwrap_or_default();
        (segment.edition, segment.through, segment.first_sequence) = (edition + 1, through, first_sequence);
        self.segments.insert(first, segment);
        self.places.extend(left.places.iter().map(|(&place, _)| (place, first)));
    }

    /// The segment that holds a record, if it exists.
    pub(crate) fn segment_of(&self, stream: u32, sequence: u64) -> Option<u64> {
        let (&(found, _), &generation) = self.places.range(..=(stream, sequence)).next_back()?;
        (found == stream).then_some(generation)
    }

    /// The segment that holds a record, and the records of its stream that no other segment holds: from the first, up to
    /// the second.
    pub(crate) fn segment_around(&self, stream: u32, sequence: u64) -> Option<(u64, u64, u64)> {
        let (&(found, first), &generation) = self.places.range(..=(stream, sequence)).next_back()?;
        let next = self.places.range((stream, sequence + 1)..).next().map(|(&place, _)| place);
        let behind = next.filter(|next| next.0 == stream).map_or(u64::MAX, |next| next.1);
        (found == stream).then_some((generation, first, behind))
    }

    /// The journal sequence with which a segment begins.
    pub(crate) fn first_sequence(&self, generation: u64) -> Option<u64> {
        self.segments.get(&generation).map(|segment| segment.first_sequence)
    }

    /// All segments before one, each with the bytes of its file and what is known of it.
    pub(crate) fn before(&self, generation: u64) -> impl Iterator<Item = (u64, u64, Condition)> {
        let before = self.segments.range(..generation);
        before.map(|(&generation, segment)| (generation, segment.end, segment.condition))
    }

    /// Segments are no more.
    pub(crate) fn remove(&mut self, generations: &[u64]) {
        self.segments.retain(|generation, _| !generations.contains(generation));
        self.places.retain(|_, place| !generations.contains(place));
    }
}
