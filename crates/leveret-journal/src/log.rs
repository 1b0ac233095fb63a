//! Appending: one batch, one write, one sync.
//!
//! Owns: the segment that is written, and the numbers of what comes next.
//! Invariant: after a write or sync has failed, or anybody's sync of the folder or of a segment that has ended, nothing is
//! written any more.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use leveret_planted::{Bug, planted};
use parking_lot::RwLock;

use crate::damage::Recovery;
use crate::disk::{Disk, DiskFile};
use crate::ended::end_segment;
use crate::folder::Folder;
use crate::format::{
    BATCH_HEADER_BYTES, Record, Replay, Salt, Seeds, SegmentHeader, StreamState, begin_record, end_record, padded,
    seal, segment_name,
};
use crate::keeper::Keeper;
use crate::limits::{
    BATCH_BYTES_KEPT, BATCH_BYTES_MAX, CLEARED_BYTES, PAGE_BYTES, SEGMENT_BYTES_DEFAULT, SEGMENT_BYTES_MIN,
    SMALL_BATCH_BYTES, SPARE_BYTES_MIN,
};
use crate::map::{Candidates, Map};
use crate::reader::Reader;
use crate::recovery;
use crate::segments::{OpenError, keep_salt};
use crate::spares::{Spare, Spares, has_no_descriptor, is_full};

/// What can be chosen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Options {
    /// Bytes of a segment; less than [`SEGMENT_BYTES_MIN`] is for tests.
    pub segment_bytes: u64,
    /// The secret of a journal that does not exist yet: random bytes. An existing one keeps its own.
    pub salt: Salt,
}

impl Options {
    /// The default size of segments, with this secret.
    pub fn new(salt: Salt) -> Self {
        Options { segment_bytes: SEGMENT_BYTES_DEFAULT, salt }
    }
}

/// Why a batch was not appended.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LogError {
    /// The disk has no room, or the process no descriptor for another file. Nothing of the batch counts as written; it
    /// may be tried again.
    #[error("there is no room for the journal: {0}")]
    Full(String),
    /// A write or a sync has failed, now or earlier. What of the batch is on disk is unknown, and nothing more is taken.
    #[error("the journal cannot be written: {0}")]
    Failed(String),
}

/// Records that are written together. Keeps its buffer, so that filling it again need not allocate.
#[derive(Debug)]
pub struct Batch {
    /// Room for the header, then records.
    bytes: Vec<u8>,
    count: u32,
    /// The least and greatest sequence of each stream.
    streams: BTreeMap<u32, (u64, u64)>,
    /// Records from which others are found; their offsets count from the header on.
    candidates: Candidates,
}

impl Default for Batch {
    fn default() -> Self {
        let bytes = vec![0; BATCH_HEADER_BYTES];
        Batch { bytes, count: 0, streams: BTreeMap::new(), candidates: Candidates::default() }
    }
}

impl Batch {
    /// Appends a record whose payload `write` appends to what it is given.
    ///
    /// # Panics
    /// If `sequence` does not follow the last one of its stream, or the batch grows beyond [`BATCH_BYTES_MAX`].
    pub fn push(&mut self, stream: u32, sequence: u64, write: impl FnOnce(&mut Vec<u8>)) {
        let range = self.streams.entry(stream).or_insert((sequence, sequence - 1));
        assert_eq!(range.1 + 1, sequence, "the records of a stream follow each other");
        range.1 = sequence;
        self.candidates.see(stream, sequence, (self.bytes.len() - BATCH_HEADER_BYTES) as u64);
        let at = begin_record(&mut self.bytes, stream, 0, sequence);
        write(&mut self.bytes);
        end_record(&mut self.bytes, at);
        self.count += 1;
        assert!(self.bytes.len() - BATCH_HEADER_BYTES <= BATCH_BYTES_MAX, "a batch is at most 4 GiB");
    }

    /// Whether there is nothing in it.
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// Bytes of its records.
    pub fn bytes(&self) -> usize {
        self.bytes.len() - BATCH_HEADER_BYTES
    }

    fn clear(&mut self) {
        self.bytes.truncate(BATCH_HEADER_BYTES);
        self.bytes.shrink_to(BATCH_BYTES_KEPT);
        self.count = 0;
        self.streams.clear();
        self.candidates.0.clear();
    }
}

/// The end of the journal, where it grows.
pub struct Log {
    disk: Arc<Folder>,
    options: Options,
    /// Where it is.
    segment: SegmentFile,
    generation: u64,
    salt: Salt,
    seeds: Seeds,
    /// Where everything is.
    map: Arc<RwLock<Map>>,
    /// Where the next batch goes.
    end: u64,
    /// The journal sequence of the next record.
    next_sequence: u64,
    streams: BTreeMap<u32, StreamState>,
    /// Where a start begins to read, as the next header says.
    replay: Replay,
    /// The same, as the last header says.
    last_replay: Replay,
    /// The same, as the last header and the one before it say: should one be damaged, the other is not.
    durable_replay: Arc<AtomicU64>,
    /// What segments are made of.
    spares: Arc<Spares>,
    /// Whether the last batch on disk says that all before it is durable, and nothing came since.
    is_marked: bool,
    /// Where the first batch of the segment goes.
    batches_from: u64,
    /// Whether a marker stands behind a gap, so that nothing more may be written in this segment.
    has_ended: bool,
    failed: Option<LogError>,
}

impl std::fmt::Debug for Log {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Log { generation, end, next_sequence, failed, .. } = self;
        write!(f, "Log {{ {generation}: {end}, next_sequence: {next_sequence}, failed: {failed:?} }}")
    }
}

impl Log {
    /// Reads everything that is in the journal, hands out every record in order, cuts a torn tail, sets damage
    /// aside, and begins a new segment. A folder without segments becomes a new journal.
    ///
    /// # Errors
    /// If the disk refuses, or a newer version wrote the journal.
    pub fn open(
        disk: Arc<dyn Disk>,
        options: Options,
        each: &mut dyn FnMut(Record<'_>),
    ) -> Result<(Log, Recovery), OpenError> {
        let disk = Arc::new(Folder::new(disk));
        let shared: Arc<dyn Disk> = Arc::<Folder>::clone(&disk);
        let (recovery, end, mut map) = recovery::read(&*disk, true, each)?;
        let salt = end.salt.unwrap_or(options.salt);
        let header = SegmentHeader {
            generation: end.last_generation + 1,
            first_sequence: end.next_sequence,
            previous_generation: end.generation,
            previous_end: end.offset,
            salt,
            room: 0,
            replay: end.replay,
            compacted_through: 0,
            streams: end.streams(&recovery),
        };
        let spares = Spares::find(&shared)?;
        spares.set_segment_bytes(options.segment_bytes);
        // A small one, so that starting stays quick and starting often takes little room.
        let wanted = options.segment_bytes.min(SEGMENT_BYTES_MIN).max(header.bytes() as u64);
        let spare = match spares.make(wanted) {
            Err(error) if is_full(&error) => {
                let least = wanted.min(SPARE_BYTES_MIN).max(header.bytes() as u64);
                spares.take(wanted).or_else(|| spares.take(least)).map_or_else(|| spares.make(least), Ok)
            }
            made => made,
        };
        let segment = begin_segment(&*disk, &header, spare?)?;
        // That a disk does not take it is no reason not to start: it stands in the header. A folder that cannot be synced is one, as
        // nothing could be appended.
        let _ = keep_salt(&*disk, &salt);
        disk.check()?;
        let previous = segment_name(end.generation);
        if end.generation > 0 && !recovery.damage.iter().any(|damage| damage.file == previous) {
            end_segment(&*disk.open(&previous)?, end.offset)?;
        }
        map.begin(header.generation, header.first_sequence);
        let batches_from = header.bytes() as u64;
        let log = Log {
            disk,
            options,
            segment,
            generation: header.generation,
            salt,
            seeds: Seeds::new(&salt, header.generation),
            map: Arc::new(RwLock::new(map)),
            end: batches_from,
            next_sequence: end.next_sequence,
            streams: header.streams,
            replay: header.replay,
            last_replay: header.replay,
            durable_replay: Arc::new(AtomicU64::new(header.replay.generation)),
            spares,
            // The header of the segment says so.
            is_marked: true,
            batches_from,
            has_ended: false,
            failed: None,
        };
        Ok((log, recovery))
    }

    /// Something that reads what was appended.
    pub fn reader(&self) -> Reader {
        let disk: Arc<dyn Disk> = Arc::<Folder>::clone(&self.disk);
        Reader::new(disk, self.salt, Arc::clone(&self.map))
    }

    /// Something that takes back the room of what nobody needs.
    pub fn keeper(&self) -> Keeper {
        let (replay, spares) = (Arc::clone(&self.durable_replay), Arc::clone(&self.spares));
        Keeper::new(self.reader(), replay, spares, self.options.segment_bytes)
    }

    /// Bytes that the next batch may have, payloads and what goes with them: most of the largest spare, or of what is left of
    /// the segment. More may find no room.
    pub fn batch_bytes(&self) -> u64 {
        let header = SegmentHeader::bytes_with(self.streams.len()) as u64;
        let left = self.spares.most().saturating_sub(header).max(self.segment.length - self.end);
        left.saturating_sub(BATCH_HEADER_BYTES as u64) / 16 * 15
    }

    /// What its segments are made of.
    pub fn spares(&self) -> Arc<Spares> {
        Arc::clone(&self.spares)
    }

    /// Writes the records of a batch and syncs. When this returns, they are durable, and the batch is empty.
    ///
    /// # Errors
    /// If they are not: see [`LogError`].
    ///
    /// # Panics
    /// If a record does not follow the last one of its stream.
    pub fn append(&mut self, batch: &mut Batch) -> Result<(), LogError> {
        if batch.is_empty() {
            return Ok(());
        }
        for (stream, (first, _)) in &batch.streams {
            let last = self.streams.get(stream).map_or(0, |state| state.last);
            assert!(*first > last, "records of stream {stream} go on from {last}, not from {first}");
        }
        match self.write(&mut batch.bytes, batch.count) {
            Err(LogError::Full(_)) if planted(Bug::FullDiskTakenForWritten) => {
                batch.clear();
                return Ok(());
            }
            written => written?,
        }
        let (begin, end) = (self.end - padded(batch.bytes.len()) as u64, batch.bytes() as u64);
        let begin = begin + BATCH_HEADER_BYTES as u64;
        self.map.write().add(self.generation, begin, begin + end, 0, &batch.candidates.0);
        self.next_sequence += u64::from(batch.count);
        for (&stream, &(_, last)) in &batch.streams {
            self.streams.entry(stream).or_default().last = last;
        }
        self.is_marked = false;
        batch.clear();
        Ok(())
    }

    /// Says on disk that everything so far is durable, unless it stands there already. To be called before nothing
    /// is appended for a while: it tells damage of the last batch from a torn write.
    ///
    /// # Errors
    /// If that cannot be written.
    pub fn mark(&mut self) -> Result<(), LogError> {
        if self.is_marked {
            return Ok(());
        }
        self.write(&mut vec![0; BATCH_HEADER_BYTES], 0)?;
        self.is_marked = true;
        Ok(())
    }

    /// Says it once more, in a page that holds nothing of the last batch: whatever becomes of its page, it is not taken for torn.
    /// To be called when nothing more is appended; what is all the same goes to another segment.
    ///
    /// # Errors
    /// If that cannot be written.
    pub fn mark_end(&mut self) -> Result<(), LogError> {
        self.mark()?;
        if self.has_ended || self.end == self.batches_from {
            return Ok(());
        }
        let end = self.end;
        // So much behind a batch is zero, or else it would not end there.
        let apart = (end + BATCH_HEADER_BYTES as u64).next_multiple_of(PAGE_BYTES);
        if apart + BATCH_HEADER_BYTES as u64 > self.segment.length {
            // The next header says it, too.
            return self.roll(0, Size::Header);
        }
        self.end = apart;
        let written = self.write(&mut vec![0; BATCH_HEADER_BYTES], 0);
        (self.end, self.has_ended) = (end, true);
        written
    }

    /// A start needs no record of these streams before these sequences any more. When this returns, it will not read
    /// them; those that are still needed are found all the same, until a [`Keeper`] removes their segments.
    ///
    /// # Errors
    /// If the disk refuses: see [`LogError`]. Unless it says [`LogError::Full`], nothing more is taken.
    pub fn begin_replay_at(&mut self, streams: &BTreeMap<u32, u64>) -> Result<(), LogError> {
        self.check()?;
        for (stream, &sequence) in streams {
            if let Some(state) = self.streams.get_mut(stream) {
                state.replay_from = sequence.max(state.replay_from);
            }
        }
        let map = Arc::clone(&self.map);
        let map = map.read();
        // Of a stream that has ended nothing is needed.
        let needed = self.streams.iter().filter(|(_, state)| state.replay_from != u64::MAX);
        let needed = needed.map(|(&stream, state)| map.segment_of(stream, state.replay_from));
        let first = if planted(Bug::ReplayBeginsTooLate) { needed.max() } else { needed.min() };
        // A stream that nobody has said anything of is needed as a whole.
        let generation = first.flatten().unwrap_or(self.replay.generation);
        if let Some(sequence) = map.first_sequence(generation)
            && generation > self.replay.generation
        {
            self.replay = Replay { generation, sequence };
        }
        drop(map);
        self.roll(0, Size::Header)?;
        self.roll(0, Size::Segment)
    }

    fn write(&mut self, bytes: &mut Vec<u8>, count: u32) -> Result<(), LogError> {
        self.check()?;
        let needed = padded(bytes.len()) as u64;
        if self.has_ended || self.end + needed > self.segment.length {
            self.roll(needed, Size::Segment)?;
        }
        seal(bytes, self.seeds, count, self.next_sequence, self.next_sequence);
        let unpadded = bytes.len();
        bytes.resize(self.segment.with_zeros(self.end, needed), 0);
        let written = self.segment.file.write_at(self.end, bytes);
        // Also if the disk has no room for it: the next try is content with a page.
        self.segment.written = self.segment.written.max(self.end + bytes.len() as u64);
        bytes.truncate(unpadded);
        match written {
            // Nobody was told, and the next try writes over what there is of it.
            Err(error) if is_full(&error) => return Err(LogError::Full(error.to_string())),
            written => written.and_then(|()| self.sync()).map_err(|error| self.fail(&error))?,
        }
        self.end += needed;
        Ok(())
    }

    fn sync(&self) -> io::Result<()> {
        if planted(Bug::ConfirmBeforeSync) {
            return Ok(());
        }
        let synced = self.segment.file.sync();
        if planted(Bug::FailedSyncTriedAgain) { synced.or_else(|_| self.segment.file.sync()) } else { synced }
    }

    /// Goes on in a new segment.
    fn roll(&mut self, needed: u64, size: Size) -> Result<(), LogError> {
        let header = SegmentHeader {
            generation: self.generation + 1,
            first_sequence: self.next_sequence,
            previous_generation: self.generation,
            previous_end: self.end,
            salt: self.salt,
            room: 0,
            replay: self.replay,
            compacted_through: 0,
            streams: self.streams.clone(),
        };
        let least = header.bytes() as u64 + needed.max(BATCH_HEADER_BYTES as u64);
        let begun = self.spare(least, size).and_then(|spare| match self.begin(&header, spare) {
            // A name may need a block of the folder. The room of the file that was to have it is free now.
            Err(error) if is_full(&error) => self.begin(&header, self.spare(least, size)?),
            begun => begun,
        });
        let segment = begun.map_err(|error| {
            if is_full(&error) || has_no_descriptor(&error) {
                LogError::Full(error.to_string())
            } else {
                self.fail(&error)
            }
        })?;
        let previous = std::mem::replace(&mut self.segment, segment);
        if self.end < previous.length {
            // It takes as long as several syncs, and nobody waits for it.
            self.spares.end_later(previous.file, self.end);
        }
        self.durable_replay.store(self.last_replay.generation, Ordering::Release);
        self.last_replay = header.replay;
        self.map.write().begin(header.generation, self.next_sequence);
        self.generation = header.generation;
        self.seeds = Seeds::new(&self.salt, header.generation);
        (self.batches_from, self.has_ended) = (header.bytes() as u64, false);
        self.end = self.batches_from;
        Ok(())
    }

    /// A file with room for so many bytes at `least`.
    fn spare(&self, least: u64, size: Size) -> io::Result<Spare> {
        match size {
            // It gives the rest back when the next one has been begun, and so tells that there was one.
            Size::Header => self.spares.make(least).or_else(|error| self.spares.take(least).ok_or(error)),
            Size::Segment => self
                .spares
                .take(least)
                .map_or_else(|| self.spares.make_larger(self.spares.segment_bytes().max(least), least), Ok),
        }
    }

    /// Begins a segment in a file. If there is no room for that, the file is gone.
    fn begin(&self, header: &SegmentHeader, spare: Spare) -> io::Result<SegmentFile> {
        let name = spare.name.clone();
        let begun = begin_segment(&*self.disk, header, spare);
        if let Err(error) = &begun
            && is_full(error)
        {
            self.disk.remove(&name).map_err(|left| io::Error::other(format!("{error}; {left}")))?;
        }
        begun
    }

    /// Whether anything is taken.
    fn check(&mut self) -> Result<(), LogError> {
        if let Some(failed) = &self.failed {
            return Err(failed.clone());
        }
        self.disk.check().and_then(|()| self.spares.check()).map_err(|error| self.fail(&error))
    }

    fn fail(&mut self, error: &io::Error) -> LogError {
        self.failed.insert(LogError::Failed(error.to_string())).clone()
    }
}

impl Drop for Log {
    /// What is not given back now, the next start gives back.
    fn drop(&mut self) {
        if self.check().is_ok() {
            let _ = self.spares.give_back();
        }
    }
}

/// How much room a new segment has.
#[derive(Clone, Copy, Debug)]
enum Size {
    /// Hardly more than its header takes: it is there to say where a start begins.
    Header,
    /// What segments have now, or what is needed.
    Segment,
}

/// The file of a segment that grows.
struct SegmentFile {
    file: Arc<dyn DiskFile>,
    /// How long it is.
    length: u64,
    /// Up to where something was written once, or tried to be.
    written: u64,
}

impl SegmentFile {
    /// How long a write of so many bytes at an offset becomes with the zeros behind it.
    fn with_zeros(&self, at: u64, bytes: u64) -> usize {
        let end = at + bytes + BATCH_HEADER_BYTES as u64;
        let is_first = end > self.written && bytes <= SMALL_BATCH_BYTES;
        let end = end.next_multiple_of(if is_first { CLEARED_BYTES } else { PAGE_BYTES }).min(self.length);
        usize::try_from(end.saturating_sub(at).max(bytes)).unwrap_or(usize::MAX)
    }
}

/// Makes a segment, whose header says how long the file is. When this returns, it is there also after a power cut; before, either the
/// segment with its header is there, or the spare.
fn begin_segment(disk: &dyn Disk, header: &SegmentHeader, spare: Spare) -> io::Result<SegmentFile> {
    let mut bytes = SegmentHeader { room: spare.length, ..header.clone() }.encode();
    // A page behind it: where a disk has room for little else, that goes to batches.
    let mut segment = SegmentFile { file: spare.file, length: spare.length, written: spare.length };
    bytes.resize(segment.with_zeros(0, bytes.len() as u64), 0);
    if !spare.is_used {
        segment.written = bytes.len() as u64;
    }
    segment.file.write_at(0, &bytes)?;
    if !planted(Bug::ReplayNotSynced) {
        segment.file.sync()?;
    }
    disk.rename(&spare.name, &segment_name(header.generation))?;
    if !planted(Bug::NoDirectorySync) {
        disk.sync_directory()?;
    }
    Ok(segment)
}
