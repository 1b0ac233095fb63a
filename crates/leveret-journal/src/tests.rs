//! The log against a disk in memory: round trips, torn tails, damage.

use std::collections::BTreeMap;
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use crate::disk::{Disk, DiskFile};
use crate::format::Seeds;
use crate::{
    Batch, Damage, Doubt, Extent, Living, Log, LogError, Missing, OpenError, Options, ReadError, Recovery, Salt,
    check, look_ahead,
};

type Sectors = std::ops::Range<u64>;

#[derive(Clone, Default)]
struct MemoryDisk {
    files: Arc<Mutex<BTreeMap<String, Arc<MemoryFile>>>>,
    refusal: Arc<Mutex<Option<Refusal>>>,
    /// Bytes that there is room for.
    room: Arc<Mutex<Option<u64>>>,
    /// Bytes of it that the folder takes for its next name.
    folder_needs: Arc<Mutex<u64>>,
    /// A range of one file that cannot be read.
    unreadable: Arc<Mutex<Option<(String, Sectors)>>>,
    /// Whether the process has as many files open as it may.
    is_out_of_descriptors: Arc<AtomicBool>,
    fails_sync_of_folder: Arc<AtomicBool>,
}

#[derive(Default)]
struct MemoryFile {
    bytes: Mutex<Vec<u8>>,
    refusal: Arc<Mutex<Option<Refusal>>>,
    room: Arc<Mutex<Option<u64>>>,
    unreadable: Mutex<Option<Sectors>>,
}

/// What a disk refuses.
#[derive(Clone, Copy)]
enum Refusal {
    /// Everything after so many operations.
    After(u64),
    /// The one after so many operations, but no sync of the folder.
    OnceAfter(u64),
}

fn spend(refusal: &Mutex<Option<Refusal>>) -> io::Result<()> {
    let mut refusal = refusal.lock().unwrap();
    match &mut *refusal {
        Some(Refusal::After(0)) => Err(io::Error::other("the disk is gone")),
        Some(Refusal::OnceAfter(0)) => {
            *refusal = None;
            Err(io::Error::other("the disk refuses once"))
        }
        Some(Refusal::After(left) | Refusal::OnceAfter(left)) => {
            *left -= 1;
            Ok(())
        }
        None => Ok(()),
    }
}

impl MemoryDisk {
    fn snapshot(&self) -> BTreeMap<String, Vec<u8>> {
        let files = self.files.lock().unwrap();
        files.iter().map(|(name, file)| (name.clone(), file.bytes.lock().unwrap().clone())).collect()
    }

    fn of(files: BTreeMap<String, Vec<u8>>) -> Self {
        let disk = MemoryDisk::default();
        for (name, bytes) in files {
            let (refusal, room) = (Arc::clone(&disk.refusal), Arc::clone(&disk.room));
            let file = Arc::new(MemoryFile { bytes: Mutex::new(bytes), refusal, room, ..MemoryFile::default() });
            disk.files.lock().unwrap().insert(name, file);
        }
        disk
    }

    fn check_descriptors(&self) -> io::Result<()> {
        if self.is_out_of_descriptors.load(Ordering::Relaxed) {
            return Err(rustix::io::Errno::MFILE.into());
        }
        Ok(())
    }

    fn fails_after(&self, operations: Option<u64>) {
        *self.refusal.lock().unwrap() = operations.map(Refusal::After);
    }

    fn refuses_once_after(&self, operations: u64) {
        *self.refusal.lock().unwrap() = Some(Refusal::OnceAfter(operations));
    }
}

impl Disk for MemoryDisk {
    fn create(&self, name: &str) -> io::Result<Arc<dyn DiskFile>> {
        spend(&self.refusal)?;
        self.check_descriptors()?;
        let mut files = self.files.lock().unwrap();
        if files.contains_key(name) {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        let (refusal, room) = (Arc::clone(&self.refusal), Arc::clone(&self.room));
        let file = Arc::new(MemoryFile { refusal, room, ..MemoryFile::default() });
        files.insert(name.into(), Arc::clone(&file));
        Ok(file)
    }

    fn open(&self, name: &str) -> io::Result<Arc<dyn DiskFile>> {
        self.check_descriptors()?;
        let file = self.files.lock().unwrap().get(name).cloned().ok_or(io::ErrorKind::NotFound)?;
        let unreadable = self.unreadable.lock().unwrap();
        let range = unreadable.as_ref().filter(|(file, _)| file == name).map(|(_, range)| range.clone());
        *file.unreadable.lock().unwrap() = range;
        Ok(file)
    }

    fn list(&self) -> io::Result<Vec<String>> {
        Ok(self.files.lock().unwrap().keys().cloned().collect())
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        spend(&self.refusal)?;
        if let Some(room) = &mut *self.room.lock().unwrap() {
            *room = room.checked_sub(*self.folder_needs.lock().unwrap()).ok_or(io::ErrorKind::StorageFull)?;
            *self.folder_needs.lock().unwrap() = 0;
        }
        let mut files = self.files.lock().unwrap();
        let file = files.remove(from).ok_or(io::ErrorKind::NotFound)?;
        files.insert(to.into(), file);
        Ok(())
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        spend(&self.refusal)?;
        let removed = self.files.lock().unwrap().remove(name).ok_or(io::ErrorKind::NotFound)?;
        if let Some(room) = &mut *self.room.lock().unwrap() {
            *room += removed.bytes.lock().unwrap().len() as u64;
        }
        Ok(())
    }

    fn sync_directory(&self) -> io::Result<()> {
        let refuses_once = matches!(*self.refusal.lock().unwrap(), Some(Refusal::OnceAfter(_)));
        if !refuses_once {
            spend(&self.refusal)?;
        }
        if self.fails_sync_of_folder.load(Ordering::Relaxed) {
            return Err(io::Error::other("the folder is gone"));
        }
        Ok(())
    }

    fn free_bytes(&self) -> io::Result<u64> {
        Ok(self.room.lock().unwrap().unwrap_or(u64::MAX))
    }
}

impl DiskFile for MemoryFile {
    fn write_at(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        spend(&self.refusal)?;
        let at = usize::try_from(offset).unwrap();
        let mut file = self.bytes.lock().unwrap();
        if file.len() < at + bytes.len() {
            file.resize(at + bytes.len(), 0);
        }
        file[at..at + bytes.len()].copy_from_slice(bytes);
        Ok(())
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<usize> {
        let end = offset + buffer.len() as u64;
        if self.unreadable.lock().unwrap().as_ref().is_some_and(|bad| bad.start < end && offset < bad.end) {
            return Err(io::Error::other("a bad sector"));
        }
        let file = self.bytes.lock().unwrap();
        let rest = file.get(usize::try_from(offset).unwrap()..).unwrap_or_default();
        let count = rest.len().min(buffer.len());
        buffer[..count].copy_from_slice(&rest[..count]);
        Ok(count)
    }

    fn sync(&self) -> io::Result<()> {
        spend(&self.refusal)
    }

    fn preallocate(&self, end: u64) -> io::Result<()> {
        spend(&self.refusal)?;
        let mut bytes = self.bytes.lock().unwrap();
        if let Some(room) = &mut *self.room.lock().unwrap() {
            *room = room.checked_sub(end.saturating_sub(bytes.len() as u64)).ok_or(io::ErrorKind::StorageFull)?;
        }
        let length = bytes.len().max(usize::try_from(end).unwrap());
        bytes.resize(length, 0);
        Ok(())
    }

    fn truncate(&self, end: u64) -> io::Result<()> {
        spend(&self.refusal)?;
        self.bytes.lock().unwrap().truncate(usize::try_from(end).unwrap());
        Ok(())
    }

    fn length(&self) -> io::Result<u64> {
        Ok(self.bytes.lock().unwrap().len() as u64)
    }
}

/// Something that happens once, after the next read of a file that was opened.
type Meanwhile = Arc<Mutex<Option<Box<dyn FnOnce() + Send>>>>;

/// A disk on which something happens while somebody waits for it.
struct SlowDisk(MemoryDisk, Meanwhile);

struct SlowFile(Arc<dyn DiskFile>, Meanwhile);

impl Disk for SlowDisk {
    fn create(&self, name: &str) -> io::Result<Arc<dyn DiskFile>> {
        self.0.create(name)
    }

    fn open(&self, name: &str) -> io::Result<Arc<dyn DiskFile>> {
        Ok(Arc::new(SlowFile(self.0.open(name)?, Arc::clone(&self.1))))
    }

    fn list(&self) -> io::Result<Vec<String>> {
        self.0.list()
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        self.0.rename(from, to)
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        self.0.remove(name)
    }

    fn sync_directory(&self) -> io::Result<()> {
        self.0.sync_directory()
    }

    fn free_bytes(&self) -> io::Result<u64> {
        self.0.free_bytes()
    }
}

impl DiskFile for SlowFile {
    fn write_at(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.0.write_at(offset, bytes)
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.0.read_at(offset, buffer);
        let meanwhile = self.1.lock().unwrap().take();
        if let Some(meanwhile) = meanwhile {
            meanwhile();
        }
        read
    }

    fn sync(&self) -> io::Result<()> {
        self.0.sync()
    }

    fn preallocate(&self, end: u64) -> io::Result<()> {
        self.0.preallocate(end)
    }

    fn truncate(&self, end: u64) -> io::Result<()> {
        self.0.truncate(end)
    }

    fn length(&self) -> io::Result<u64> {
        self.0.length()
    }
}

const SALT: Salt = *b"a secret of ours";
const SMALL: Options = Options { segment_bytes: 1024, salt: SALT };

type Found = Vec<(u32, u64, Vec<u8>)>;

fn open(disk: &MemoryDisk, options: Options) -> (Log, Found, Recovery) {
    let mut found = Found::new();
    let mut each =
        |record: crate::Record<'_>| found.push((record.stream, record.sequence, record.payload.to_vec()));
    let (log, recovery) = Log::open(Arc::new(disk.clone()), options, &mut each).unwrap();
    (log, found, recovery)
}

fn payload(sequence: u64, bytes: usize) -> Vec<u8> {
    (0..bytes).map(|at| u8::try_from((sequence * 31 + at as u64) % 251).unwrap()).collect()
}

/// Appends records of stream 1, from `from` to `to`, as one batch.
fn append(log: &mut Log, from: u64, to: u64, bytes: usize) -> Result<(), LogError> {
    let mut batch = Batch::default();
    for sequence in from..=to {
        batch.push(1, sequence, |out| out.extend_from_slice(&payload(sequence, bytes)));
    }
    log.append(&mut batch)
}

fn records(from: u64, to: u64, bytes: usize) -> Found {
    (from..=to).map(|sequence| (1, sequence, payload(sequence, bytes))).collect()
}

#[test]
fn what_was_appended_is_read_back_across_segments_and_starts() {
    let disk = MemoryDisk::default();
    let (mut log, found, recovery) = open(&disk, SMALL);
    assert!(found.is_empty() && recovery.is_new);
    for first in (1..=91).step_by(10) {
        append(&mut log, first, first + 9, 20).unwrap();
    }
    append(&mut log, 101, 101, 5000).unwrap();
    let mut batch = Batch::default();
    batch.push(0, 1, |out| out.extend_from_slice(b"node"));
    batch.push(7, 1, |_| {});
    log.append(&mut batch).unwrap();
    assert!(batch.is_empty());
    log.mark().unwrap();
    drop(log);
    let mut expected = records(1, 100, 20);
    expected.extend(records(101, 101, 5000));
    expected.extend([(0, 1, b"node".to_vec()), (7, 1, Vec::new())]);
    let (mut log, found, recovery) = open(&disk, SMALL);
    assert_eq!(found, expected);
    assert_eq!((recovery.cut, recovery.damage.len(), recovery.is_new), (None, 0, false));
    append(&mut log, 102, 102, 3).unwrap();
    expected.extend(records(102, 102, 3));
    assert_eq!(open(&disk, SMALL).1, expected);
    assert_eq!(open(&disk, SMALL).1, expected, "again and again");
}

/// Ten durable batches of three records, the last one perhaps torn. Returns the disk and where the last begins.
fn ten_batches(mark: bool) -> (BTreeMap<String, Vec<u8>>, usize, usize) {
    let disk = MemoryDisk::default();
    let (mut log, _, _) = open(&disk, Options { segment_bytes: 4096, salt: SALT });
    for batch in 0..10 {
        append(&mut log, batch * 3 + 1, batch * 3 + 3, 10).unwrap();
    }
    if mark {
        log.mark().unwrap();
    }
    (disk.snapshot(), HEADER + 9 * BATCH, HEADER + 10 * BATCH)
}

/// The header of a journal's first segment, and a batch of three records.
const HEADER: usize = 96;
const BATCH: usize = (40 + 3 * (24 + 10_usize)).next_multiple_of(8);

const SEGMENT: &str = "0000000001.segment";

#[test]
fn a_tail_that_is_torn_anywhere_is_cut_and_reported() {
    let (files, last, end) = ten_batches(false);
    for length in last..end {
        let mut torn = files.clone();
        torn.get_mut(SEGMENT).unwrap()[length..].fill(0);
        let (_, found, recovery) = open(&MemoryDisk::of(torn), SMALL);
        let has_rest = files[SEGMENT][length..end].iter().any(|&byte| byte != 0);
        let kept = if has_rest { 27 } else { 30 };
        assert_eq!(found, records(1, kept, 10), "cut to {length}");
        assert_eq!(recovery.damage, [], "cut to {length}");
        assert_eq!(recovery.cut.is_some(), has_rest && length > last, "cut to {length}");
    }
}

#[test]
fn a_flipped_byte_is_damage_where_something_durable_follows_and_a_torn_tail_at_the_end() {
    for mark in [false, true] {
        let (files, last, end) = ten_batches(mark);
        for at in HEADER..end {
            let mut flipped = files.clone();
            flipped.get_mut(SEGMENT).unwrap()[at] ^= 0x40;
            let disk = MemoryDisk::of(flipped);
            let checked = check(&disk, &mut |_| {}).unwrap();
            let before = disk.snapshot();
            let (_, found, recovery) = open(&disk, SMALL);
            assert_eq!(recovery.records, checked.records);
            assert!(before.len() < disk.snapshot().len());
            let whole = records(1, 30, 10);
            assert!(found.iter().all(|record| whole.contains(record)), "a wrong record, flipped at {at}");
            let is_padding = found == whole;
            if at >= last && !mark {
                assert!(is_padding || (found == records(1, 27, 10) && recovery.cut.is_some()), "flipped at {at}");
            } else if !is_padding {
                assert_eq!(recovery.cut, None, "flipped at {at}");
                let missing = recovery.records_missing();
                assert_eq!(found.len() as u64 + missing, 30, "flipped at {at}: {recovery:?}");
                assert!(found.len() >= 27, "flipped at {at}");
                let (_, again, recovery) = open(&disk, SMALL);
                assert_eq!(again, found, "a second start, flipped at {at}");
                assert!(!recovery.damage.is_empty());
            }
        }
    }
}

#[test]
fn a_valid_batch_behind_a_torn_one_never_comes_back() {
    let (mut files, last, _) = ten_batches(false);
    let before_last = last - BATCH;
    files.get_mut(SEGMENT).unwrap()[before_last..before_last + 40].fill(0xEE);
    // As if neither of the last two had been synced: the last one claims that the one before it was.
    let mut unsynced = files.clone();
    let bytes = unsynced.get_mut(SEGMENT).unwrap();
    let mut batch = bytes[last..last + 40 + 102].to_vec();
    crate::format::seal(&mut batch, Seeds::new(&SALT, 1), 3, 28, 25);
    bytes[last..last + batch.len()].copy_from_slice(&batch);
    let disk = MemoryDisk::of(unsynced);
    let (mut log, found, recovery) = open(&disk, SMALL);
    assert_eq!(found, records(1, 24, 10));
    assert!(recovery.cut.is_some());
    append(&mut log, 25, 27, 10).unwrap();
    drop(log);
    assert_eq!(open(&disk, SMALL).1, records(1, 27, 10));
}

#[test]
fn a_start_that_is_interrupted_anywhere_and_repeated_gives_the_same() {
    let (mut files, last, _) = ten_batches(false);
    files.get_mut(SEGMENT).unwrap()[last + 40..].fill(0);
    let disk = MemoryDisk::of(files);
    for operations in 0..20 {
        disk.fails_after(Some(operations));
        let result = Log::open(Arc::new(disk.clone()), SMALL, &mut |_| {});
        disk.fails_after(None);
        let is_open = result.is_ok();
        assert_eq!(open(&disk, SMALL).1, records(1, 27, 10), "interrupted after {operations} operations");
        if is_open {
            return;
        }
    }
    panic!("opening takes more operations than expected");
}

#[test]
fn a_newer_version_is_refused_and_left_as_it_is() {
    let (mut files, _, _) = ten_batches(true);
    let bytes = files.get_mut(SEGMENT).unwrap();
    bytes[8] = 2;
    let checksum = crc32c::crc32c_append(crc32c::crc32c(&bytes[..12]), &bytes[16..HEADER]);
    bytes[12..16].copy_from_slice(&checksum.to_le_bytes());
    let disk = MemoryDisk::of(files.clone());
    let error = Log::open(Arc::new(disk.clone()), SMALL, &mut |_| {}).unwrap_err();
    assert!(matches!(error, OpenError::Newer { found: 2, .. }), "{error}");
    assert_eq!(disk.snapshot(), files);
}

#[test]
fn a_failed_write_or_sync_is_the_end() {
    let disk = MemoryDisk::default();
    let (mut log, _, _) = open(&disk, SMALL);
    append(&mut log, 1, 2, 10).unwrap();
    // The write succeeds, the sync does not.
    disk.fails_after(Some(1));
    let error = append(&mut log, 3, 4, 10).unwrap_err();
    assert!(matches!(error, LogError::Failed(_)));
    disk.fails_after(None);
    assert_eq!(append(&mut log, 3, 4, 10).unwrap_err(), error, "a later success proves nothing");
    assert_eq!(log.mark().unwrap_err(), error);
}

#[test]
fn a_failed_sync_of_the_folder_is_the_end_whoever_asked_for_it() {
    let disk = MemoryDisk::default();
    let (mut log, _) = mostly_old(&disk);
    let mut keeper = log.keeper();
    let before = disk.snapshot();
    disk.fails_sync_of_folder.store(true, Ordering::Relaxed);
    assert!(keeper.sweep(&Living::default(), &|| false).is_err());
    disk.fails_sync_of_folder.store(false, Ordering::Relaxed);
    assert!(disk.snapshot().len() < before.len());
    assert!(matches!(append(&mut log, 201, 201, 10), Err(LogError::Failed(_))), "a later success proves nothing");
    assert!(matches!(log.begin_replay_at(&BTreeMap::new()), Err(LogError::Failed(_))));
    assert!(log.spares().keep(1, 1).is_err());
}

#[test]
fn without_room_for_a_segment_nothing_is_written_and_it_may_be_tried_again() {
    let disk = MemoryDisk::default();
    *disk.room.lock().unwrap() = Some(2000);
    let (mut log, _, _) = open(&disk, SMALL);
    append(&mut log, 1, 1, 800).unwrap();
    assert!(matches!(append(&mut log, 2, 2, 800), Err(LogError::Full(_))));
    *disk.room.lock().unwrap() = Some(2000);
    append(&mut log, 2, 2, 800).unwrap();
    drop(log);
    *disk.room.lock().unwrap() = None;
    assert_eq!(open(&disk, SMALL).1, records(1, 2, 800));
}

#[test]
fn the_folder_of_a_full_disk_takes_the_room_of_a_spare_for_a_name() {
    let disk = MemoryDisk::default();
    let (mut log, _, _) = open(&disk, SMALL);
    log.spares().keep(2, 2).unwrap();
    append(&mut log, 1, 1, 800).unwrap();
    *disk.room.lock().unwrap() = Some(0);
    *disk.folder_needs.lock().unwrap() = 512;
    append(&mut log, 2, 2, 800).unwrap();
    assert_eq!((log.spares().count(), *disk.room.lock().unwrap()), (0, Some(512)));
    *disk.folder_needs.lock().unwrap() = 2000;
    assert!(matches!(append(&mut log, 3, 3, 800), Err(LogError::Full(_))));
    *disk.room.lock().unwrap() = None;
    append(&mut log, 3, 3, 800).unwrap();
    drop(log);
    assert_eq!(open(&disk, SMALL).1, records(1, 3, 800));
}

#[test]
fn who_makes_files_ready_leaves_a_full_disk_what_is_free() {
    let disk = MemoryDisk::default();
    let (log, _, _) = open(&disk, MIDDLE);
    *disk.room.lock().unwrap() = Some(4096);
    // Every file that was tried has a number of its own.
    assert!(log.spares().keep(1, 1).is_err());
    *disk.room.lock().unwrap() = None;
    let names = || disk.snapshot().into_keys().filter(|name| name.starts_with("spare")).collect::<Vec<_>>();
    assert_eq!(names(), [""; 0]);
    log.spares().keep(1, 1).unwrap();
    assert_eq!(names(), ["spare-2"]);
}

#[test]
fn without_descriptors_the_journal_goes_on_with_spares_and_then_waits() {
    let disk = MemoryDisk::default();
    let (mut log, _, _) = open(&disk, SMALL);
    log.spares().keep(1, 1).unwrap();
    append(&mut log, 1, 1, 500).unwrap();
    disk.is_out_of_descriptors.store(true, Ordering::Relaxed);
    append(&mut log, 2, 2, 800).unwrap();
    assert!(matches!(append(&mut log, 3, 3, 800), Err(LogError::Full(_))));
    assert!(matches!(log.reader().read(1, 1), Err(ReadError::Disk { .. })));
    disk.is_out_of_descriptors.store(false, Ordering::Relaxed);
    append(&mut log, 3, 3, 800).unwrap();
    assert_eq!(log.reader().read(1, 1).unwrap(), payload(1, 500));
    drop(log);
    let expected: Found = [(1, 500), (2, 800), (3, 800)].map(|(nth, bytes)| (1, nth, payload(nth, bytes))).into();
    assert_eq!(open(&disk, SMALL).1, expected);
}

#[test]
fn spares_become_segments_where_there_is_no_room_for_new_ones() {
    let disk = MemoryDisk::default();
    let (mut log, _, _) = open(&disk, SMALL);
    let spares = log.spares();
    spares.keep(2, 3).unwrap();
    *disk.room.lock().unwrap() = Some(0);
    // One fits into what is there.
    for (sequence, left, is_low) in [(1, 3, false), (2, 2, false), (3, 1, true), (4, 0, true)] {
        append(&mut log, sequence, sequence, 800).unwrap();
        assert_eq!((spares.count(), spares.is_low()), (left, is_low), "after {sequence}");
    }
    assert!(matches!(append(&mut log, 5, 5, 800), Err(LogError::Full(_))));
    assert!(spares.keep(2, 3).is_err());
    assert!(log.batch_bytes() < 200, "what is left of the segment");
    *disk.room.lock().unwrap() = Some(1024);
    assert!(spares.keep(2, 3).is_err(), "there is room for one");
    append(&mut log, 5, 5, 800).unwrap();
    drop(log);
    // A start that finds no room begins with one as well.
    *disk.room.lock().unwrap() = Some(1024);
    assert!(spares.keep(2, 3).is_err());
    let (log, found, recovery) = open(&disk, SMALL);
    assert_eq!((found, recovery.cut, recovery.damage.len()), (records(1, 5, 800), None, 0));
    assert_eq!(log.spares().count(), 0);
    *disk.room.lock().unwrap() = None;
    log.spares().keep(0, 1).unwrap();
    log.spares().set_segment_bytes(100_000);
    log.spares().keep(0, 1).unwrap();
    let sizes = disk.snapshot().into_iter().filter(|(name, _)| name.starts_with("spare"));
    assert_eq!(sizes.map(|(_, bytes)| bytes.len()).collect::<Vec<_>>(), [100_000], "one that is too small goes");
}

#[test]
fn a_batch_has_as_many_bytes_as_the_largest_spare_and_one_that_has_more_is_given_several() {
    let disk = MemoryDisk::default();
    let (mut log, _, _) = open(&disk, SMALL);
    let spares = log.spares();
    spares.keep(3, 3).unwrap();
    // Segments grow, and the disk has no room for such spares.
    spares.set_segment_bytes(10_000);
    *disk.room.lock().unwrap() = Some(100);
    assert!((500..1024).contains(&log.batch_bytes()), "{} bytes", log.batch_bytes());
    append(&mut log, 1, 1, 2000).unwrap();
    assert_eq!((spares.count(), spares.bytes()), (0, 0), "two gave their room to the third");
    assert!(spares.is_low());
    assert!(matches!(append(&mut log, 2, 2, 2000), Err(LogError::Full(_))));
    *disk.room.lock().unwrap() = Some(1024);
    spares.set_segment_bytes(512);
    spares.keep(2, 2).unwrap();
    assert!(matches!(append(&mut log, 2, 2, 2000), Err(LogError::Full(_))));
    assert_eq!(spares.bytes(), 1024, "all of them are too little, so they stay");
    drop(log);
    *disk.room.lock().unwrap() = None;
    assert_eq!(open(&disk, SMALL).1, records(1, 1, 2000));
}

#[test]
fn where_little_room_came_back_often_one_large_spare_is_made_of_many_small_ones() {
    let disk = MemoryDisk::default();
    let (log, _, _) = open(&disk, MIDDLE);
    let spares = log.spares();
    spares.set_segment_bytes(1 << 20);
    for _ in 0..15 {
        *disk.room.lock().unwrap() = Some(64 << 10);
        assert!(spares.keep(1, 1).is_err());
    }
    assert_eq!((spares.count(), spares.bytes()), (15, 15 << 16));
    *disk.room.lock().unwrap() = Some(64 << 10);
    spares.keep(1, 1).unwrap();
    assert_eq!((spares.count(), spares.bytes()), (1, 1 << 20));
}

#[test]
fn what_a_file_held_before_is_never_taken_for_a_part_of_its_segment() {
    let disk = MemoryDisk::default();
    let (mut log, whole) = mostly_old(&disk);
    log.spares().keep(9, 0).unwrap();
    let mut keeper = log.keeper();
    keeper.sweep(&Living::default(), &|| false).unwrap();
    let used = log.spares().count();
    assert!(used > 2, "{used} files are used again");
    let mut expected = whole[180..].to_vec();
    for (sequence, bytes) in (201..).zip([10, 6000, 5, 4051, 4000, 7000, 100]) {
        append(&mut log, sequence, sequence, bytes).unwrap();
        expected.extend(records(sequence, sequence, bytes));
        let copy = MemoryDisk::of(disk.snapshot());
        assert_eq!(check(&copy, &mut |_| {}).unwrap().cut, None, "after {sequence}");
        let (_, found, recovery) = open(&copy, MIDDLE);
        assert_eq!((found, recovery.cut, recovery.damage.len()), (expected.clone(), None, 0), "after {sequence}");
    }
    assert!(log.spares().count() < used);
}

#[test]
fn a_segment_that_is_missing_or_has_lost_its_header_is_reported_and_the_rest_is_read() {
    let disk = MemoryDisk::default();
    let (mut log, _, _) = open(&disk, SMALL);
    for first in (1..=91).step_by(10) {
        append(&mut log, first, first + 9, 20).unwrap();
    }
    let files = disk.snapshot();
    assert!(files.len() > 4);
    let mut missing = files.clone();
    missing.remove("0000000002.segment");
    let (_, found, recovery) = open(&MemoryDisk::of(missing), SMALL);
    let lost = recovery.records_missing();
    assert!(lost > 0 && found.len() as u64 + lost == 100, "{recovery:?}");
    assert_eq!(absent(&recovery), ["0000000002.segment"]);
    for (gone, named) in
        [(1..=1, "0000000001.segment"), (2..=4, "one or more of 0000000002.segment to 0000000004.segment")]
    {
        let mut missing = files.clone();
        missing.retain(|name, _| !gone.clone().any(|generation| *name == format!("{generation:010}.segment")));
        let (_, found, recovery) = open(&MemoryDisk::of(missing), SMALL);
        assert_eq!(found.len() as u64 + recovery.records_missing(), 100, "{recovery:?}");
        assert_eq!(absent(&recovery), [named]);
    }
    // The segment of a start that appended nothing says nothing, also by its absence.
    for lost in ["0000000001.segment", "0000000002.segment", "0000000003.segment"] {
        let disk = MemoryDisk::default();
        append(&mut open(&disk, SMALL).0, 1, 3, 10).unwrap();
        drop(open(&disk, SMALL));
        append(&mut open(&disk, SMALL).0, 4, 6, 10).unwrap();
        let mut headless = disk.snapshot();
        headless.get_mut(lost).unwrap()[20] ^= 1;
        assert!(open(&MemoryDisk::of(headless), SMALL).1 == records(1, 6, 10), "{lost} without its header");
        let mut missing = disk.snapshot();
        missing.remove(lost);
        let (_, found, recovery) = open(&MemoryDisk::of(missing), SMALL);
        let expected = match lost {
            "0000000001.segment" => records(4, 6, 10),
            "0000000002.segment" => records(1, 6, 10),
            _ => records(1, 3, 10),
        };
        assert!(found == expected, "without {lost}: {recovery:?}");
    }
    // A bad block at the beginning of the last segment takes all with it, and that is said.
    let last = files.keys().last().unwrap();
    let mut unreadable = files.clone();
    unreadable.get_mut(last).unwrap()[..512].fill(0xA5);
    let disk = MemoryDisk::of(unreadable);
    let (_, found, recovery) = open(&disk, SMALL);
    assert!(found.len() < 100 && !recovery.damage.is_empty(), "{recovery:?}");
    assert!(disk.snapshot().contains_key(last), "what is damaged is not removed");
    let mut headless = files.clone();
    headless.get_mut("0000000002.segment").unwrap()[3] ^= 1;
    let (_, found, _) = open(&MemoryDisk::of(headless), SMALL);
    assert!(found == records(1, 100, 20), "{} records", found.len());
}

fn absent(recovery: &Recovery) -> Vec<String> {
    let absent = recovery.damage.iter().filter(|damage| damage.extent == Extent::Absent);
    absent.map(|damage| damage.file.clone()).collect()
}

#[test]
fn that_the_last_segment_is_missing_is_known_from_the_one_before_it() {
    let disk = MemoryDisk::default();
    let (mut log, _, _) = open(&disk, SMALL);
    for first in (1..=96).step_by(5) {
        append(&mut log, first, first + 4, 20).unwrap();
    }
    log.mark().unwrap();
    drop(log);
    let mut files = disk.snapshot();
    let last = files.keys().next_back().unwrap().clone();
    files.remove(&last);
    let disk = MemoryDisk::of(files);
    let checked = check(&disk, &mut |_| {}).unwrap();
    let (mut log, found, recovery) = open(&disk, SMALL);
    assert_eq!(checked.damage, recovery.damage);
    let [Damage { extent: Extent::Behind { .. }, missing: Missing::Unknown, .. }] = recovery.damage[..] else {
        panic!("{recovery:?}");
    };
    assert!(found.len() >= 70 && found.len() < 100);
    // Neither the numbers of what is missing nor that of its segment are given again.
    let next = recovery.streams[&1] + 1;
    assert!(next > 101, "{next}");
    append(&mut log, next, next, 10).unwrap();
    assert!(!disk.snapshot().contains_key(&last));
    drop(log);
    let (_, again, recovery) = open(&disk, SMALL);
    assert_eq!((again.len(), recovery.damage.len()), (found.len() + 1, 0), "{recovery:?}");
}

#[test]
fn that_the_segment_behind_a_checkpoint_is_missing_is_known() {
    let disk = MemoryDisk::default();
    let (mut log, _) = mostly_old(&disk);
    let from = BTreeMap::from([(1, 191)]);
    for operations in 0..20 {
        let before = MemoryDisk::of(disk.snapshot());
        let (mut log, ..) = open(&before, MIDDLE);
        before.fails_after(Some(operations));
        let is_done = log.begin_replay_at(&from).is_ok();
        before.fails_after(None);
        // What is interrupted there lacks nothing.
        assert_eq!(open(&before, MIDDLE).2.damage, [], "interrupted after {operations} operations");
        if is_done {
            break;
        }
        assert!(operations < 19, "it takes more operations than expected");
    }
    log.begin_replay_at(&from).unwrap();
    append(&mut log, 201, 210, 10).unwrap();
    drop(log);
    let mut files = disk.snapshot();
    let last = files.keys().next_back().unwrap().clone();
    files.remove(&last);
    let (_, found, recovery) = open(&MemoryDisk::of(files), MIDDLE);
    assert!(
        found.len() >= 10 && matches!(recovery.damage[..], [Damage { extent: Extent::Behind { .. }, .. }]),
        "{recovery:?}"
    );
}

#[test]
fn a_journal_all_of_whose_segments_are_missing_is_not_taken_for_a_new_one() {
    let disk = MemoryDisk::default();
    let recovery = check(&disk, &mut |_| {}).unwrap();
    assert!(recovery.is_new && recovery.damage.is_empty());
    let (mut log, ..) = open(&disk, SMALL);
    append(&mut log, 1, 10, 20).unwrap();
    log.spares().keep(2, 2).unwrap();
    drop(log);
    let mut files = disk.snapshot();
    files.retain(|name, _| !name.ends_with(".segment"));
    let disk = MemoryDisk::of(files);
    let checked = check(&disk, &mut |_| {}).unwrap();
    let (mut log, found, recovery) = open(&disk, SMALL);
    assert_eq!((found.len(), absent(&recovery).len(), checked.damage), (0, 1, recovery.damage));
    append(&mut log, 1, 1, 10).unwrap();
    // What a start that was interrupted leaves behind says nothing.
    let one = MemoryDisk::of(BTreeMap::from([("spare-1".into(), vec![0; 1024])]));
    assert_eq!(open(&one, SMALL).2.damage, []);
}

#[test]
fn the_header_of_the_only_segment_may_be_damaged_and_nothing_is_lost() {
    let (files, ..) = ten_batches(true);
    for at in (0..48).chain(64..HEADER) {
        let mut flipped = files.clone();
        flipped.get_mut(SEGMENT).unwrap()[at] ^= 0x40;
        let disk = MemoryDisk::of(flipped);
        let checked = check(&disk, &mut |_| {}).unwrap();
        assert_eq!((checked.damage, checked.headless), (Vec::new(), vec![SEGMENT.to_owned()]), "flipped at {at}");
        assert_eq!(open(&disk, SMALL).1, records(1, 30, 10), "flipped at {at}");
        let (_, found, recovery) = open(&disk, SMALL);
        assert_eq!((found, recovery.damage), (records(1, 30, 10), Vec::new()), "a second start, flipped at {at}");
    }
    // Without the secret nothing verifies. No more can be missing than has room in what is there.
    let mut flipped = files.clone();
    flipped.get_mut(SEGMENT).unwrap()[50] ^= 0x40;
    let checked = check(&MemoryDisk::of(flipped), &mut |_| {}).unwrap();
    let [Damage { missing: Missing::AtMost(most), .. }] = checked.damage[..] else { panic!("{checked:?}") };
    assert!((30..=100).contains(&most), "{most}");
}

#[test]
fn the_records_that_may_have_been_in_missing_old_segments_are_known() {
    let disk = MemoryDisk::default();
    let (log, _) = mostly_old(&disk);
    drop(log);
    assert_eq!(look_ahead(&disk).unwrap().doubts, []);
    let without = |gone: &[u32]| {
        let mut files = disk.snapshot();
        files.retain(|name, _| !gone.iter().any(|generation| *name == format!("{generation:010}.segment")));
        let disk = MemoryDisk::of(files);
        assert_eq!(check(&disk, &mut |_| {}).unwrap().damage, [], "they may not have been needed any more");
        let doubts = look_ahead(&disk).unwrap().doubts;
        let (log, ..) = open(&disk, MIDDLE);
        (doubts, log.reader())
    };
    for (gone, files) in [
        (vec![1], "0000000001.segment"),
        (vec![2], "0000000002.segment"),
        (vec![2, 3], "one or more of 0000000002.segment to 0000000003.segment"),
    ] {
        let (doubts, mut reader) = without(&gone);
        let [Doubt { stream: 1, sequences, files: named }] = &doubts[..] else { panic!("{gone:?}: {doubts:?}") };
        assert_eq!(named, files);
        for sequence in 1..=200 {
            match reader.read(1, sequence) {
                Ok(read) => assert_eq!(read, payload(sequence, 100)),
                Err(ReadError::Unknown { .. }) => {
                    assert!(sequences.contains(&sequence), "{gone:?}: {sequence}");
                    assert!(reader.read(1, *sequences.end()).is_err(), "the last ones are missing");
                }
                Err(error) => panic!("{error}"),
            }
        }
        assert!(reader.read(1, *sequences.end()).is_err());
        assert!(reader.read(1, sequences.end() + 1).is_ok());
    }
}

/// A body may hold whatever its publisher likes, also a segment of this very journal, byte by byte as another journal
/// would have written it.
#[test]
fn a_batch_inside_a_payload_is_never_taken_for_one() {
    let forger = MemoryDisk::default();
    let options = Options { segment_bytes: 4096, salt: *b"another's secret" };
    let (mut log, _, _) = open(&forger, options);
    append(&mut log, 1, 4, 10).unwrap();
    append(&mut log, 5, 20, 10).unwrap();
    log.mark().unwrap();
    let forged = forger.snapshot().remove(SEGMENT).unwrap();
    let disk = MemoryDisk::default();
    let (mut log, _, _) = open(&disk, Options { segment_bytes: 16_384, salt: SALT });
    append(&mut log, 1, 3, 10).unwrap();
    let mut batch = Batch::default();
    // At each place that a batch may begin at.
    for shift in 0..8 {
        batch.push(1, 4 + shift, |out| {
            out.resize(out.len() + usize::try_from(shift).unwrap(), 0);
            out.extend_from_slice(&forged[..1200]);
        });
    }
    log.append(&mut batch).unwrap();
    drop(log);
    let files = disk.snapshot();
    let used = files[SEGMENT].iter().rposition(|&byte| byte != 0).unwrap() + 1;
    for torn in HEADER + BATCH..used {
        for fill in [0, 0xFF] {
            let mut files = files.clone();
            files.get_mut(SEGMENT).unwrap()[torn..=torn].fill(fill);
            if files[SEGMENT] == disk.snapshot()[SEGMENT] {
                continue;
            }
            let (_, found, recovery) = open(&MemoryDisk::of(files), SMALL);
            assert_eq!(found, records(1, 3, 10), "torn at {torn}");
            assert!(recovery.damage.is_empty() && recovery.cut.is_some(), "torn at {torn}: {recovery:?}");
        }
    }
}

#[test]
fn a_bad_sector_takes_what_is_in_it_and_no_more() {
    let disk = MemoryDisk::default();
    let (mut log, _, _) = open(&disk, Options { segment_bytes: 1 << 20, salt: SALT });
    for first in (1..=400).step_by(4) {
        append(&mut log, first, first + 3, 1000).unwrap();
    }
    log.mark().unwrap();
    drop(log);
    let files = disk.snapshot();
    for sector in [0, 1, 7, 70, 97] {
        let disk = MemoryDisk::of(files.clone());
        *disk.unreadable.lock().unwrap() = Some((SEGMENT.into(), sector * 4096..sector * 4096 + 512));
        let (mut log, found, recovery) = open(&disk, SMALL);
        if sector == 0 {
            // It held the secret of a journal that had but one segment.
            assert!(found.is_empty() && !recovery.damage.is_empty(), "{recovery:?}");
            continue;
        }
        let missing = recovery.records_missing();
        assert!((1..=8).contains(&missing), "sector {sector}: {recovery:?}");
        assert_eq!(found.len() as u64 + missing, 400, "sector {sector}");
        // Nothing that is missing gets its number a second time.
        let next = recovery.streams[&1] + 1;
        assert_eq!(next, 401 + missing);
        append(&mut log, next, next, 10).unwrap();
    }
    // At the end of the journal nothing tells what was there, if anything.
    let disk = MemoryDisk::of(files);
    *disk.unreadable.lock().unwrap() = Some((SEGMENT.into(), 95 * 4096..1 << 20));
    let (log, found, recovery) = open(&disk, SMALL);
    assert!(found.len() >= 360 && found.len() < 400, "{}", found.len());
    assert!(recovery.cut.is_none() && recovery.records_missing() > 400, "{recovery:?}");
    drop(log);
    *disk.unreadable.lock().unwrap() = None;
    let (_, again, _) = open(&disk, SMALL);
    assert_eq!(again, found, "what was given up stays so");
}

#[test]
fn a_start_has_a_piece_of_a_segment_in_memory_and_finds_the_same() {
    let disk = MemoryDisk::default();
    let (mut log, ..) = open(&disk, Options { segment_bytes: 16 << 20, salt: SALT });
    // Batches lie across the ends of pieces, at any offset.
    for first in (1..=1191).step_by(10) {
        append(&mut log, first, first + 9, 9000 + usize::try_from(first).unwrap()).unwrap();
    }
    log.mark().unwrap();
    drop(log);
    // The first one is small.
    let name = SEGMENT.replace('1', "2");
    let files = disk.snapshot();
    let opened = |files: BTreeMap<String, Vec<u8>>| {
        let disk = MemoryDisk::of(files);
        let taken = allocation_counter::measure(|| drop(check(&disk, &mut |_| {}).unwrap()));
        assert!(taken.bytes_max < 3 << 20, "{} bytes at once", taken.bytes_max);
        let (_, found, recovery) = open(&disk, SMALL);
        (found, recovery)
    };
    let (whole, recovery) = opened(files.clone());
    assert_eq!((whole.len(), recovery.damage, recovery.cut), (1200, Vec::new(), None));
    assert!((1..=1200).eq(whole.iter().map(|(_, sequence, _)| *sequence)));
    // What is around the end of a piece is missed no more than anything else.
    for at in [PIECE - 9, PIECE - 1, PIECE, PIECE + 7, 2 * PIECE + 4000, 7 * PIECE] {
        let mut flipped = files.clone();
        flipped.get_mut(&name).unwrap()[at] ^= 1;
        let (found, recovery) = opened(flipped);
        assert_eq!((found.len(), recovery.records_missing()), (1199, 1), "flipped at {at}");
        assert!(found.iter().all(|record| whole.contains(record)), "flipped at {at}");
        // A region is copied piece by piece, too.
        let mut large = files.clone();
        large.get_mut(&name).unwrap()[at..at + 2 * PIECE].fill(0xEE);
        let disk = MemoryDisk::of(large.clone());
        let (_, found, recovery) = open(&disk, SMALL);
        assert_eq!(found.len() as u64 + recovery.records_missing(), 1200, "flooded at {at}");
        let Extent::Region { offset, bytes, set_aside: Some(copy) } = &recovery.damage[0].extent else { panic!() };
        let region = usize::try_from(*offset).unwrap();
        let region = region..region + usize::try_from(*bytes).unwrap();
        assert!(region.len() > 2 * PIECE);
        let copy = &disk.snapshot()[copy];
        assert!(copy[..] == large[&name][region], "flooded at {at}");
    }
}

const PIECE: usize = crate::limits::PIECE_BYTES;

#[test]
fn single_records_are_read_back_while_the_journal_grows() {
    let disk = MemoryDisk::default();
    let options = Options { segment_bytes: 200_000, salt: SALT };
    let (mut log, _, _) = open(&disk, options);
    let mut reader = log.reader();
    let mut next = 1;
    let check = |reader: &mut crate::Reader, stream, sequence: u64| {
        let bytes = usize::try_from(sequence * 37 % 3000).unwrap();
        assert_eq!(reader.read(stream, sequence).unwrap(), payload(sequence, bytes), "{stream}: {sequence}");
    };
    for round in 0..60 {
        let mut batch = Batch::default();
        let count = if round % 3 == 0 { 1 } else { 30 };
        for stream in [1, 2, 9] {
            for sequence in next..next + count {
                let bytes = usize::try_from(sequence * 37 % 3000).unwrap();
                batch.push(stream, sequence, |out| out.extend_from_slice(&payload(sequence, bytes)));
            }
        }
        log.append(&mut batch).unwrap();
        next += count;
        check(&mut reader, 2, next - 1);
        check(&mut reader, 9, 1 + (next * 7919) % (next - 1));
    }
    assert!(disk.snapshot().len() > 10);
    assert!(matches!(reader.read(2, next), Err(ReadError::Unknown { .. })));
    assert!(matches!(reader.read(3, 1), Err(ReadError::Unknown { .. })));
    drop(log);
    let (log, _, _) = open(&disk, options);
    let mut reader = log.reader();
    for stream in [9, 1, 2] {
        for sequence in 1..next {
            check(&mut reader, stream, sequence);
        }
        for sequence in (1..next).rev().step_by(17) {
            check(&mut reader, stream, sequence);
        }
    }
    // What has rotted since it was written is never handed out.
    let name = SEGMENT.replace('1', "3");
    disk.files.lock().unwrap()[&name].bytes.lock().unwrap()[100_000..100_004].fill(0xEE);
    reader.rest();
    let read: Vec<_> = (1..next).map(|sequence| reader.read(1, sequence).map(<[u8]>::to_vec)).collect();
    assert!(
        read.iter().any(|read| matches!(read, Err(ReadError::Damaged { .. }))) || {
            (1..next).any(|sequence| reader.read(2, sequence).is_err() || reader.read(9, sequence).is_err())
        }
    );
    for (sequence, read) in (1..next).zip(read) {
        let bytes = usize::try_from(sequence * 37 % 3000).unwrap();
        assert!(read.is_err() || read.is_ok_and(|read| read == payload(sequence, bytes)), "{sequence}");
    }
}

/// Records behind damage are found, though nothing before it leads to them.
#[test]
fn single_records_behind_damage_are_read_back() {
    let disk = MemoryDisk::default();
    let options = Options { segment_bytes: 65_536, salt: SALT };
    let (mut log, _, _) = open(&disk, options);
    for round in 1..=10 {
        for stream in [1, 2] {
            let mut batch = Batch::default();
            batch.push(stream, round, |out| out.extend_from_slice(&payload(round, 100)));
            log.append(&mut batch).unwrap();
        }
    }
    log.mark().unwrap();
    drop(log);
    let batch_bytes = (40 + 24 + 100_usize).next_multiple_of(8);
    // Of each stream once: what follows begins with the other.
    for damaged in [6, 7] {
        let mut files = disk.snapshot();
        files.get_mut(SEGMENT).unwrap()[HEADER + damaged * batch_bytes..][..batch_bytes].fill(0xEE);
        let (log, found, recovery) = open(&MemoryDisk::of(files), options);
        assert_eq!((found.len(), recovery.records_missing()), (19, 1));
        let mut reader = log.reader();
        for (stream, sequence, payload) in &found {
            assert_eq!(
                reader.read(*stream, *sequence).unwrap(),
                payload,
                "{stream}: {sequence}, {damaged} damaged"
            );
        }
    }
}

/// A few batches of the following fit into a segment.
const MIDDLE: Options = Options { segment_bytes: 8192, salt: SALT };

/// Twenty batches of ten records in several segments, of which a start needs the last 20, and everything that was appended.
fn mostly_old(disk: &MemoryDisk) -> (Log, Found) {
    let (mut log, _, _) = open(disk, MIDDLE);
    for first in (1..=191).step_by(10) {
        append(&mut log, first, first + 9, 100).unwrap();
    }
    log.begin_replay_at(&BTreeMap::from([(1, 181)])).unwrap();
    log.mark().unwrap();
    (log, records(1, 200, 100))
}

fn bytes_used(disk: &MemoryDisk) -> usize {
    disk.snapshot().values().map(Vec::len).sum()
}

#[test]
fn a_start_hands_out_what_is_needed_and_finds_the_rest() {
    let disk = MemoryDisk::default();
    drop(mostly_old(&disk));
    let (log, found, recovery) = open(&disk, MIDDLE);
    assert_eq!(found, records(181, 200, 100));
    assert_eq!((recovery.damage.len(), recovery.cut, recovery.streams[&1]), (0, None, 200));
    let mut reader = log.reader();
    // Back and forth, so that nothing lies on the way.
    for sequence in (1..=200).map(|nth| nth * 77 % 200 + 1) {
        assert_eq!(reader.read(1, sequence).unwrap(), payload(sequence, 100), "{sequence}");
    }
}

#[test]
fn what_is_needed_of_old_segments_is_kept_in_less_room_and_found_meanwhile() {
    let disk = MemoryDisk::default();
    let (log, _) = mostly_old(&disk);
    let (before, mut reader) = (bytes_used(&disk), log.reader());
    assert_eq!(reader.read(1, 30).unwrap(), payload(30, 100));
    let needed = || (1..=200).filter(|sequence| sequence % 15 == 0 || *sequence > 180);
    let mut keeper = log.keeper();
    let mut living = Living::default();
    keeper.note(&mut living, 1, needed().map(|sequence| (sequence, 100)), 0);
    assert_eq!(keeper.sweep(&living, &|| true).unwrap().compacted, 0, "it was told to stop");
    let swept = keeper.sweep(&living, &|| false).unwrap();
    assert!(swept.compacted > 2, "{swept:?}");
    assert!(bytes_used(&disk) < before / 2, "{} of {before} bytes are left", bytes_used(&disk));
    for log in [log, open(&disk, MIDDLE).0] {
        // The first reader has an old file open.
        for reader in [&mut reader, &mut log.reader()] {
            for sequence in needed() {
                assert_eq!(reader.read(1, sequence).unwrap(), payload(sequence, 100), "{sequence}");
            }
        }
    }
    assert!(check(&disk, &mut |_| {}).unwrap().damage.is_empty());
    // Nothing of the old is needed any more.
    let (log, found, _) = open(&disk, MIDDLE);
    assert_eq!(found, records(181, 200, 100));
    let mut keeper = log.keeper();
    let mut living = Living::default();
    keeper.note(&mut living, 1, (181..=200).map(|sequence| (sequence, 100)), 0);
    assert!(keeper.sweep(&living, &|| false).unwrap().removed > 0);
    assert_eq!(open(&disk, MIDDLE).1, records(181, 200, 100));
}

#[test]
fn damage_of_old_segments_is_found_by_a_check_and_takes_nothing_else() {
    let disk = MemoryDisk::default();
    let (log, whole) = mostly_old(&disk);
    drop(log);
    let batch_bytes = (40 + 10 * (24 + 100_usize)).next_multiple_of(8);
    // The second batch of the first segment; a record's length; the segment's own header.
    // And a byte of a body.
    let places = [(HEADER + batch_bytes, 40, 0), (HEADER + 40, 4, 1), (0, 8, 0), (HEADER + 300, 1, 1)];
    for (at, count, lost) in places {
        let mut files = disk.snapshot();
        files.get_mut(SEGMENT).unwrap()[at..at + count].fill(0xEE);
        let damaged = MemoryDisk::of(files);
        let checked = check(&damaged, &mut |_| {}).unwrap();
        if at == 0 {
            assert_eq!((checked.damage.len(), checked.headless.len()), (0, 1), "damaged at {at}: {checked:?}");
        } else {
            let missing: Vec<_> = checked.damage.iter().map(|damage| damage.missing).collect();
            assert_eq!(missing, [Missing::Exactly(lost as u64)], "damaged at {at}: {checked:?}");
        }
        let (log, found, _) = open(&damaged, MIDDLE);
        assert_eq!(found, records(181, 200, 100), "a start does not need it");
        let mut reader = log.reader();
        let readable = whole.iter().filter(|(stream, sequence, payload)| {
            reader.read(*stream, *sequence).is_ok_and(|read| read == payload.as_slice())
        });
        assert_eq!(whole.len() - readable.count(), lost, "damaged at {at}: these are not found");
        // It stays as it is, however little of it is needed, and the others do not.
        let mut keeper = log.keeper();
        let mut living = Living::default();
        keeper.note(&mut living, 1, [15, 75, 190].into_iter().map(|sequence| (sequence, 100)), 0);
        let swept = keeper.sweep(&living, &|| false).unwrap();
        assert!(swept.compacted + swept.removed > 0, "damaged at {at}: {swept:?}");
        assert_eq!(log.reader().read(1, 75).unwrap(), payload(75, 100));
    }
}

/// What a keeper does when these are needed of stream 1.
fn sweep(log: &Log, needed: impl Iterator<Item = u64>) -> crate::Swept {
    let (mut keeper, mut living) = (log.keeper(), Living::default());
    keeper.note(&mut living, 1, needed.map(|sequence| (sequence, 100)), 0);
    keeper.sweep(&living, &|| false).unwrap()
}

#[test]
fn an_old_segment_that_cannot_be_read_at_one_start_is_all_there_at_the_next() {
    let needed = || (1..=200).filter(|sequence| sequence % 15 == 0 || *sequence > 180);
    let name = |generation: u32| format!("{generation:010}.segment");
    for generation in 1..=3 {
        let disk = MemoryDisk::default();
        drop(mostly_old(&disk));
        let bytes = disk.snapshot().remove(&name(generation)).unwrap();
        *disk.unreadable.lock().unwrap() = Some((name(generation), 0..1 << 20));
        let (log, found, recovery) = open(&disk, MIDDLE);
        assert_eq!(found, records(181, 200, 100));
        let missing = recovery.records_missing();
        assert!(recovery.damage.len() == 1 && (30..=120).contains(&missing), "{generation}: {recovery:?}");
        let swept = sweep(&log, needed());
        assert!(swept.compacted > 1, "the others are rewritten, {generation}: {swept:?}");
        drop(log);
        *disk.unreadable.lock().unwrap() = None;
        let (log, _, recovery) = open(&disk, MIDDLE);
        assert_eq!(recovery.damage, [], "{generation}");
        let mut reader = log.reader();
        for sequence in needed() {
            assert_eq!(reader.read(1, sequence).unwrap(), payload(sequence, 100), "{generation}: {sequence}");
        }
        // It may hold what is needed as long as anything is that could lie in it; then it goes, but not its bytes.
        drop(log);
        *disk.unreadable.lock().unwrap() = Some((name(generation), 0..1 << 20));
        let (log, ..) = open(&disk, MIDDLE);
        sweep(&log, 15..=200);
        assert_eq!(disk.snapshot().get(&name(generation)), Some(&bytes), "{generation}");
        sweep(&log, 181..=200);
        assert!(!disk.snapshot().contains_key(&name(generation)), "{generation}");
        assert_eq!(disk.snapshot().get(&format!("damaged-{}", name(generation))), Some(&bytes), "{generation}");
        drop(log);
        let (_, found, recovery) = open(&disk, MIDDLE);
        assert_eq!((found, recovery.damage), (records(181, 200, 100), Vec::new()), "{generation}");
    }
}

#[test]
fn a_segment_in_which_records_are_missing_is_never_removed() {
    for restarts in [false, true] {
        let disk = MemoryDisk::default();
        let (mut log, _, _) = open(&disk, MIDDLE);
        for first in (1..=191).step_by(10) {
            append(&mut log, first, first + 9, 100).unwrap();
        }
        log.mark().unwrap();
        drop(log);
        let name = SEGMENT.replace('1', "2");
        let bytes = disk.snapshot().remove(&name).unwrap();
        *disk.unreadable.lock().unwrap() = Some((name.clone(), 0..1 << 20));
        let (mut log, found, recovery) = open(&disk, MIDDLE);
        assert_eq!(found.len() as u64 + recovery.records_missing(), 200);
        // Nobody knows of what is missing, and so nobody needs it.
        let next = recovery.streams[&1] + 1;
        append(&mut log, next, next, 10).unwrap();
        log.begin_replay_at(&BTreeMap::from([(1, next)])).unwrap();
        if restarts {
            drop(log);
            *disk.unreadable.lock().unwrap() = None;
            log = open(&disk, MIDDLE).0;
        }
        assert!(sweep(&log, std::iter::once(next)).removed > 2);
        assert!(!disk.snapshot().contains_key(&name));
        assert_eq!(disk.snapshot().get(&format!("damaged-{name}")), Some(&bytes), "restarts: {restarts}");
    }
}

#[test]
fn what_a_reader_learns_of_a_file_is_not_believed_of_the_one_that_takes_its_place() {
    let meanwhile = Meanwhile::default();
    let disk: Arc<dyn Disk> = Arc::new(SlowDisk(MemoryDisk::default(), Arc::clone(&meanwhile)));
    let options = Options { segment_bytes: 1 << 20, salt: SALT };
    let open = || Log::open(Arc::clone(&disk), options, &mut |_| {}).unwrap().0;
    let mut log = open();
    for first in (1..=2991).step_by(10) {
        append(&mut log, first, first + 9, 1000).unwrap();
    }
    log.begin_replay_at(&BTreeMap::from([(1, 2981)])).unwrap();
    drop(log);
    let log = open();
    let needed = || (1..=3000).filter(|sequence| sequence % 20 == 0 || *sequence > 2900);
    let mut reader = log.reader();
    reader.read(1, 20).unwrap();
    // While the next read waits for the disk, its segment is rewritten.
    let (mut keeper, swept) = (log.keeper(), Arc::new(Mutex::new(None)));
    let told = Arc::clone(&swept);
    *meanwhile.lock().unwrap() = Some(Box::new(move || {
        let mut living = Living::default();
        keeper.note(&mut living, 1, needed().map(|sequence| (sequence, 1000)), 0);
        *told.lock().unwrap() = Some(keeper.sweep(&living, &|| false).unwrap());
    }));
    assert_eq!(reader.read(1, 660).unwrap(), payload(660, 1000));
    assert!(swept.lock().unwrap().take().is_some_and(|swept| swept.compacted > 1));
    for reader in [&mut reader, &mut log.reader()] {
        for sequence in needed() {
            assert_eq!(reader.read(1, sequence).unwrap(), payload(sequence, 1000), "{sequence}");
        }
    }
}

#[test]
fn a_rotten_byte_of_an_old_segment_takes_one_record_at_most() {
    let disk = MemoryDisk::default();
    let (log, whole) = mostly_old(&disk);
    drop(log);
    let (record_bytes, nth) = (24 + 100_usize, 3);
    let batch_bytes = (40 + 10 * record_bytes).next_multiple_of(8);
    // The header of the second batch, and the fourth record in it: its header, and the first of its payload.
    let begin = HEADER + batch_bytes;
    let of_record = begin + 40 + nth * record_bytes;
    let one = (begin..begin + 40).chain(of_record..of_record + 30).map(|at| vec![at]);
    // The batch's header, and the lengths of every other record.
    let many =
        std::iter::once(begin).chain((0..10).step_by(2).map(|nth| begin + 40 + nth * record_bytes)).collect();
    for rotten in one.chain([many]) {
        let mut files = disk.snapshot();
        for &at in &rotten {
            files.get_mut(SEGMENT).unwrap()[at] ^= 0x0C;
        }
        let (log, ..) = open(&MemoryDisk::of(files), MIDDLE);
        let lost = |at: &usize| at.checked_sub(begin + 40).map(|at| 11 + (at / record_bytes) as u64);
        let lost: Vec<_> = rotten.iter().filter_map(lost).collect();
        let mut reader = log.reader();
        let there = whole.iter().map(|(_, sequence, _)| *sequence);
        for sequence in there.clone().chain(there.clone().rev()).chain(there.map(|nth| nth * 77 % 200 + 1)) {
            match reader.read(1, sequence) {
                Ok(read) => assert_eq!(read, payload(sequence, 100), "{rotten:?}: {sequence}"),
                Err(ReadError::Damaged { .. }) => assert!(lost.contains(&sequence), "{rotten:?}: {sequence}"),
                Err(error) => panic!("{rotten:?}: {error}"),
            }
        }
    }
}

#[test]
fn what_the_disk_cannot_read_now_is_no_damage_and_is_read_later() {
    let disk = MemoryDisk::default();
    let options = Options { segment_bytes: 1 << 20, salt: SALT };
    let (mut log, ..) = open(&disk, options);
    for first in (1..=391).step_by(10) {
        append(&mut log, first, first + 9, 1000).unwrap();
    }
    let file = Arc::clone(&disk.files.lock().unwrap()[SEGMENT]);
    let is_bad = |range: Sectors| {
        *disk.unreadable.lock().unwrap() = Some((SEGMENT.into(), range.clone()));
        *file.unreadable.lock().unwrap() = Some(range);
    };
    for (nth, sector) in [3, 20, 21, 70].into_iter().enumerate() {
        let mut reader = log.reader();
        is_bad(sector * 4096..sector * 4096 + 512);
        let mut refused = Vec::new();
        for sequence in (1..=400).chain((1..=400).rev()).chain((1..=400).map(|nth| nth * 77 % 400 + 1)) {
            match reader.read(1, sequence) {
                Ok(read) => assert_eq!(read, payload(sequence, 1000), "{sequence}"),
                Err(ReadError::Disk { .. }) => refused.push(sequence),
                Err(error) => panic!("sector {sector}, {sequence}: {error}"),
            }
        }
        assert!((3..=24).contains(&refused.len()), "sector {sector}: {refused:?}");
        is_bad(0..0);
        for sequence in refused {
            assert_eq!(reader.read(1, sequence).unwrap(), payload(sequence, 1000), "{sequence}");
        }
        // What has rotted besides stays damage.
        let rotten = 100 + nth as u64;
        let begin = HEADER as u64 + rotten / 10 * 40 + (rotten - 1) * 1024;
        file.bytes.lock().unwrap()[usize::try_from(begin).unwrap() + 200] ^= 1;
        reader.rest();
        assert!(matches!(reader.read(1, rotten), Err(ReadError::Damaged { .. })), "{rotten}");
        file.bytes.lock().unwrap()[usize::try_from(begin).unwrap() + 200] ^= 1;
    }
}

#[test]
fn what_could_not_be_removed_is_removed_the_next_time() {
    let needed =
        || (1..=200).filter(|sequence| sequence % 15 == 0 || (30..60).contains(sequence) || *sequence > 180);
    let files = |disk: &MemoryDisk| disk.snapshot().keys().cloned().collect::<Vec<_>>();
    let expected = {
        let disk = MemoryDisk::default();
        let (log, _) = mostly_old(&disk);
        sweep(&log, needed());
        sweep(&log, needed());
        sweep(&log, 181..=200);
        log.spares().keep(0, 0).unwrap();
        files(&disk)
    };
    for spares in [0, 2] {
        let mut refusals = 0;
        for operation in 0..200 {
            let disk = MemoryDisk::default();
            let (log, _) = mostly_old(&disk);
            log.spares().keep(spares, 0).unwrap();
            let mut keeper = log.keeper();
            for sequences in [needed().collect::<Vec<_>>(), (181..=200).collect()] {
                let mut living = Living::default();
                keeper.note(&mut living, 1, sequences.iter().map(|&sequence| (sequence, 100)), 0);
                disk.refuses_once_after(operation);
                refusals += u64::from(keeper.sweep(&living, &|| false).is_err());
                disk.fails_after(None);
                keeper.sweep(&living, &|| false).unwrap();
                let mut reader = log.reader();
                for &sequence in &sequences {
                    assert_eq!(
                        reader.read(1, sequence).unwrap(),
                        payload(sequence, 100),
                        "{operation}: {sequence}"
                    );
                }
            }
            disk.refuses_once_after(operation);
            let _ = log.spares().keep(0, 2);
            disk.fails_after(None);
            log.spares().keep(0, 0).unwrap();
            assert_eq!(files(&disk), expected, "refused once after {operation} operations, with {spares} spares");
        }
        assert!(refusals > 4, "{refusals}");
    }
}

#[test]
fn the_last_header_may_be_damaged_right_after_a_sweep() {
    let disk = MemoryDisk::default();
    let (mut log, _) = mostly_old(&disk);
    for begun_at in [200, 300, 400] {
        let from = begun_at - 19;
        log.begin_replay_at(&BTreeMap::from([(1, from)])).unwrap();
        assert!(sweep(&log, from..=begun_at).removed > 0, "{begun_at}");
        for last in (begun_at..begun_at + 100).step_by(10) {
            let mut files = disk.snapshot();
            let name = files.keys().rfind(|name| name.ends_with(".segment")).unwrap().clone();
            files.get_mut(&name).unwrap()[30] ^= 1;
            let (_, found, recovery) = open(&MemoryDisk::of(files), MIDDLE);
            assert_eq!(recovery.records_missing(), 0, "{last}: {recovery:?}");
            assert!(found == records(from, last, 100), "{last}: {} records", found.len());
            append(&mut log, last + 1, last + 10, 100).unwrap();
        }
    }
}
