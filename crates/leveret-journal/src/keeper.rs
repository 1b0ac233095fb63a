//! Taking room back: segments in which nothing lives any more, and those in which little does.
//!
//! Must not know: what a record means, and how anybody knows that one is needed no more.
//! Invariants: a segment from which a start would read is never touched. One that is damaged, or could not be read, is
//! never removed and never copied; when nothing lives in it, it leaves the journal with its bytes.
//!
//! What is left of some segments that follow each other is copied to a new file, which then takes the name of the first
//! of them. Until that is durable, all of them stay; a start that finds both believes the new one.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use leveret_planted::{Bug, planted};
use roaring::RoaringTreemap;

use crate::disk::{Disk, DiskFile};
use crate::format::{
    BATCH_HEADER_BYTES, HeaderFound, RECORD_HEADER_BYTES, Record, Seeds, SegmentHeader, begin_record, damaged_name,
    end_record, generation_of, padded, seal, segment_name,
};
use crate::limits::{COMPACTED_BATCH_BYTES, OLD_BYTES_PERCENT, THIN_PERCENT};
use crate::map::{Candidates, Condition, Map};
use crate::reader::{ReadError, Reader};
use crate::segments::read_header;
use crate::spares::Spares;

/// What a file is called until it takes the place of a segment.
pub(crate) const COMPACTED_SUFFIX: &str = ".compacted";

fn compacted_name(generation: u64) -> String {
    format!("{}{COMPACTED_SUFFIX}", segment_name(generation))
}

/// The records that are still needed.
#[derive(Clone, Debug, Default)]
pub struct Living {
    sequences: BTreeMap<u32, RoaringTreemap>,
    /// By segment: bytes of those in it. At 0, of those that no segment is known to hold.
    bytes: BTreeMap<u64, u64>,
}

impl Living {
    /// Bytes of those records, about.
    pub fn bytes(&self) -> u64 {
        self.bytes.values().sum()
    }

    fn has(&self, record: &Record<'_>) -> bool {
        self.sequences.get(&record.stream).is_some_and(|sequences| sequences.contains(record.sequence))
    }
}

/// What became of a journal.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Swept {
    /// Segments that left the journal.
    pub removed: usize,
    /// Segments of which only what lives was kept.
    pub compacted: usize,
    /// Bytes of the segments that a start does not read.
    pub old_bytes: u64,
}

/// Removes and rewrites segments, beside the [`crate::Log`] that writes others.
#[derive(Debug)]
pub struct Keeper {
    reader: Reader,
    /// The first segment that a start would read, by whichever of the last two headers.
    replay: Arc<AtomicU64>,
    /// Where files go that are not needed.
    spares: Arc<Spares>,
    segment_bytes: u64,
}

/// A segment that a start does not read.
#[derive(Clone, Copy, Debug)]
struct Old {
    generation: u64,
    bytes: u64,
    /// Bytes of what lives in it.
    weight: u64,
    condition: Condition,
}

impl Keeper {
    pub(crate) fn new(reader: Reader, replay: Arc<AtomicU64>, spares: Arc<Spares>, segment_bytes: u64) -> Self {
        Keeper { reader, replay, spares, segment_bytes }
    }

    /// Notes that records of a stream are needed, each with the bytes of its payload, about. If a record is noted again, its
    /// payload has so many bytes `more`. Sequences that are close to each other are cheapest.
    pub fn note(&self, living: &mut Living, stream: u32, records: impl Iterator<Item = (u64, u64)>, more: u64) {
        let map = self.reader.parts().2.read();
        let sequences = living.sequences.entry(stream).or_default();
        let mut around = (0, 0, 0);
        for (sequence, bytes) in records {
            let bytes = if sequences.insert(sequence) { bytes + RECORD_HEADER_BYTES as u64 } else { more };
            if !(around.1..around.2).contains(&sequence) {
                around = map.segment_around(stream, sequence).unwrap_or((0, sequence, sequence + 1));
            }
            *living.bytes.entry(around.0).or_default() += bytes;
        }
    }

    /// Removes the segments that a start does not read and in which nothing lives. Where the rest takes much more room than
    /// what lives in it, rewrites those in which least does, until it does not or `must_stop` says so.
    ///
    /// All that is needed of them must be in `living`, and what made the rest unneeded must be durable.
    ///
    /// # Errors
    /// If the disk refuses. What was not done is, the next time.
    pub fn sweep(&mut self, living: &Living, must_stop: &dyn Fn() -> bool) -> Result<Swept, ReadError> {
        let mut swept = Swept::default();
        let replay = self.replay.load(Ordering::Acquire) + u64::from(planted(Bug::AcksReused));
        self.spares.begin_cycle();
        // All before that one have ended.
        self.spares.give_back().map_err(|error| ReadError::Disk { file: "the end of a segment".into(), error })?;
        let weight = |generation: u64| living.bytes.get(&generation).copied().unwrap_or_default();
        let (mut old, mut empty, mut damaged) = (Vec::new(), Vec::new(), Vec::new());
        let mut lives_before = weight(0) > 0;
        for (generation, bytes, condition) in self.reader.parts().2.read().before(replay) {
            let weight = weight(generation).min(bytes);
            lives_before |= weight > 0;
            let is_empty = weight == 0 || planted(Bug::LivingSegmentReused);
            match condition {
                Condition::Whole if is_empty => empty.push((bytes, generation)),
                Condition::Damaged if weight == 0 => damaged.push(generation),
                // What is thought to lie before it may lie in it.
                Condition::Unknown if !lives_before => damaged.push(generation),
                Condition::Whole | Condition::Damaged | Condition::Unknown => {
                    old.push(Old { generation, bytes, weight, condition });
                }
            }
        }
        swept.removed = empty.len() + damaged.len();
        // Those that have most room are worth most to whoever uses them again.
        empty.sort_unstable_by_key(|&(bytes, _)| Reverse(bytes));
        let empty: Vec<_> = empty.into_iter().map(|(_, generation)| segment_name(generation)).collect();
        self.recycle(&empty)?;
        self.set_aside(&damaged)?;
        let living_bytes = living.bytes();
        loop {
            swept.old_bytes = old.iter().map(|segment| segment.bytes).sum();
            let may_stay = living_bytes / 100 * OLD_BYTES_PERCENT + self.segment_bytes;
            let Some(run) = self.thinnest(&old).filter(|_| swept.old_bytes > may_stay && !must_stop()) else {
                break;
            };
            let generations: Vec<_> = old[run.clone()].iter().map(|segment| segment.generation).collect();
            let compacted = self.compact(&generations, living, must_stop);
            if !matches!(compacted, Ok(Some(_))) {
                // What there is of it takes room. If it cannot be removed now, the next start does.
                let _ = self.reader.parts().0.remove(&compacted_name(generations[0]));
            }
            match compacted {
                Ok(Some(bytes)) => {
                    swept.compacted += generations.len();
                    let (generation, condition) = (generations[0], Condition::Whole);
                    old.splice(run, [Old { generation, bytes, weight: bytes, condition }]);
                }
                Ok(None) => break,
                // It stays as it is, with all that can be read of it; the others are tried without it.
                Err(ReadError::Damaged { file, .. }) => {
                    for segment in &mut old[run] {
                        if segment_name(segment.generation) == file {
                            segment.condition = Condition::Damaged;
                            let mut map = self.reader.parts().2.write();
                            map.set_condition(segment.generation, segment.condition, segment.bytes);
                        }
                    }
                }
                Err(error) => return Err(error),
            }
        }
        Ok(swept)
    }

    /// The segment in which least lives of what it takes, with those around it that have room beside it in one file.
    fn thinnest(&self, old: &[Old]) -> Option<std::ops::Range<usize>> {
        let is_fit = |&Old { bytes, weight, condition, .. }: &Old| {
            let is_thin = weight < bytes / 100 * THIN_PERCENT;
            (is_thin || bytes < self.segment_bytes / 4) && condition == Condition::Whole
        };
        let thin = |&Old { bytes, weight, condition, .. }: &Old| {
            let share = weight.saturating_mul(100) / bytes.max(1);
            (share < THIN_PERCENT && condition == Condition::Whole).then_some(share)
        };
        let candidates = old.iter().enumerate().filter_map(|(at, segment)| Some((thin(segment)?, at)));
        let (_, at) = candidates.min()?;
        let mut run = at..at + 1;
        let mut weight = old[at].weight;
        while let Some(before) = run.start.checked_sub(1).map(|before| &old[before])
            && is_fit(before)
            && weight + before.weight <= self.segment_bytes
        {
            weight += before.weight;
            run.start -= 1;
        }
        while let Some(behind) = old.get(run.end)
            && is_fit(behind)
            && weight + behind.weight <= self.segment_bytes
        {
            weight += behind.weight;
            run.end += 1;
        }
        Some(run)
    }

    /// These files are not needed any more, segments or what was exchanged for one. When this returns, that is durable.
    fn recycle(&self, files: &[String]) -> Result<(), ReadError> {
        if files.is_empty() {
            return Ok(());
        }
        // Nobody looks for anything in them; the map forgets only what is not on the disk any more.
        let gone = |name: &str| {
            if let Some(generation) = generation_of(name) {
                self.reader.parts().2.write().remove(&[generation]);
            }
        };
        self.spares.recycle(files, gone).map_err(|error| ReadError::Disk { file: "the folder".into(), error })
    }

    /// These segments leave the journal, with all that is in them. When this returns, that is durable.
    fn set_aside(&self, generations: &[u64]) -> Result<(), ReadError> {
        let (disk, _, map) = self.reader.parts();
        for &generation in generations {
            let name = segment_name(generation);
            if let Err(error) = disk.rename(&name, &damaged_name(generation)) {
                return Err(ReadError::Disk { file: name, error });
            }
            map.write().remove(&[generation]);
        }
        if generations.is_empty() {
            return Ok(());
        }
        disk.sync_directory().map_err(|error| ReadError::Disk { file: "the folder".into(), error })
    }

    /// Copies what lives in these segments to one file, and puts that in their place. Returns its bytes; none if it was
    /// stopped.
    fn compact(
        &mut self,
        run: &[u64],
        living: &Living,
        must_stop: &dyn Fn() -> bool,
    ) -> Result<Option<u64>, ReadError> {
        let (&first, &last) = (run.first().unwrap_or(&0), run.last().unwrap_or(&0));
        let (disk, salt, map) = self.reader.parts();
        let (disk, map, seeds) = (Arc::clone(disk), Arc::clone(map), Seeds::new(salt, first));
        let name = segment_name(first);
        let new_name = compacted_name(first);
        let refused = |error| ReadError::Disk { file: new_name.clone(), error };
        let header = disk.open(&name).and_then(|file| Ok(read_header(&*file, file.length()?))).map_err(refused)?;
        let HeaderFound::Valid(header) = header else { return Err(ReadError::Damaged { file: name, offset: 0 }) };
        let through = map.read().through(last);
        let header = SegmentHeader { compacted_through: through, room: 0, ..header };
        let mut copy = Copy::begin(&*disk, &new_name, first, &header, seeds).map_err(refused)?;
        for &generation in run {
            let Some(file) = map.read().file(generation) else { continue };
            let mut is_stopped = false;
            self.reader.each(file, &mut |record| {
                is_stopped |= must_stop();
                if is_stopped || !living.has(&record) {
                    return Ok(());
                }
                copy.take(&record).map_err(refused)
            })?;
            if is_stopped {
                return Ok(None);
            }
        }
        let (left, bytes) = copy.end().map_err(refused)?;
        let mut needless: Vec<_> = run[1..].iter().copied().map(segment_name).collect();
        {
            // Whoever looks for a record finds the old file with its map, or the new one with its own.
            let mut map = map.write();
            // To let the room of the old one go now may take the disk a while, and it is a segment's.
            if disk.exchange(&new_name, &name).map_err(refused)? {
                needless.push(new_name.clone());
            }
            map.exchange(run, through, &left);
        }
        // Until it is durable that they are no more needed, the others stay.
        disk.sync_directory().map_err(refused)?;
        self.recycle(&needless)?;
        Ok(Some(bytes))
    }
}

/// A file with the records that are left of some segments.
struct Copy {
    file: Arc<dyn DiskFile>,
    generation: u64,
    seeds: Seeds,
    end: u64,
    batch: Vec<u8>,
    count: u32,
    candidates: Candidates,
    map: Map,
}

impl Copy {
    fn begin(
        disk: &dyn Disk,
        name: &str,
        generation: u64,
        header: &SegmentHeader,
        seeds: Seeds,
    ) -> io::Result<Self> {
        match disk.remove(name) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let file = disk.create(name)?;
        file.write_at(0, &header.encode())?;
        let (end, batch) = (header.bytes() as u64, vec![0; BATCH_HEADER_BYTES]);
        let mut map = Map::default();
        map.begin(generation, header.first_sequence);
        Ok(Copy { file, generation, seeds, end, batch, count: 0, candidates: Candidates::default(), map })
    }

    fn take(&mut self, record: &Record<'_>) -> io::Result<()> {
        let Record { stream, sequence, term, payload } = *record;
        self.candidates.see(stream, sequence, (self.batch.len() - BATCH_HEADER_BYTES) as u64);
        let at = begin_record(&mut self.batch, stream, term, sequence);
        self.batch.extend_from_slice(payload);
        end_record(&mut self.batch, at);
        self.count += 1;
        if self.batch.len() >= COMPACTED_BATCH_BYTES { self.flush() } else { Ok(()) }
    }

    /// Little at a time, so that the journal, on the same disk, does not wait for much.
    fn flush(&mut self) -> io::Result<()> {
        seal(&mut self.batch, self.seeds, self.count, 0, 0);
        let begin = self.end + BATCH_HEADER_BYTES as u64;
        let end = self.end + self.batch.len() as u64;
        self.map.add(self.generation, begin, end, 0, &self.candidates.0);
        self.batch.resize(padded(self.batch.len()), 0);
        self.file.write_at(self.end, &self.batch)?;
        self.file.sync()?;
        self.end += self.batch.len() as u64;
        self.batch.truncate(BATCH_HEADER_BYTES);
        self.count = 0;
        self.candidates.0.clear();
        Ok(())
    }

    /// Makes it durable; where everything is in it, and how long it is.
    fn end(mut self) -> io::Result<(Map, u64)> {
        self.flush()?;
        Ok((self.map, self.end))
    }
}
