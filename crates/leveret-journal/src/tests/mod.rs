//! The journal against a disk in memory. Here are that disk and what tests of several modules begin with.

mod copies;
mod keeper;
mod log;
mod missing;
mod reader;
mod real;
mod recovery;
mod scratch;
mod spares;
mod torn;

use std::collections::BTreeMap;
use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use crate::disk::{Disk, DiskFile};
use crate::{Batch, Living, Log, LogError, Options, Recovery, Salt};

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
    /// So many syncs of the folder succeed before one that does not.
    folder_syncs_left: Arc<Mutex<Option<u64>>>,
    /// Bytes that somebody has asked for, of all files.
    bytes_read: Arc<AtomicU64>,
}

#[derive(Default)]
struct MemoryFile {
    bytes: Mutex<Vec<u8>>,
    refusal: Arc<Mutex<Option<Refusal>>>,
    room: Arc<Mutex<Option<u64>>>,
    unreadable: Mutex<Option<Sectors>>,
    bytes_read: Arc<AtomicU64>,
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
            let file = Arc::new(MemoryFile { bytes: Mutex::new(bytes), ..disk.file() });
            disk.files.lock().unwrap().insert(name, file);
        }
        disk
    }

    /// An empty one.
    fn file(&self) -> MemoryFile {
        let (refusal, room) = (Arc::clone(&self.refusal), Arc::clone(&self.room));
        MemoryFile { refusal, room, bytes_read: Arc::clone(&self.bytes_read), ..MemoryFile::default() }
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
        let file = Arc::new(self.file());
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

    fn exchange(&self, from: &str, to: &str) -> io::Result<bool> {
        spend(&self.refusal)?;
        let mut files = self.files.lock().unwrap();
        let (old, new) = (files.remove(to), files.remove(from).ok_or(io::ErrorKind::NotFound)?);
        files.insert(to.into(), new);
        files.insert(from.into(), old.ok_or(io::ErrorKind::NotFound)?);
        Ok(true)
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
        let mut left = self.folder_syncs_left.lock().unwrap();
        let is_this_one = *left == Some(0);
        *left = left.and_then(|left| left.checked_sub(1));
        if is_this_one || self.fails_sync_of_folder.load(Ordering::Relaxed) {
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
        self.bytes_read.fetch_add(buffer.len() as u64, Ordering::Relaxed);
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
        let mut bytes = self.bytes.lock().unwrap();
        if let Some(room) = &mut *self.room.lock().unwrap() {
            *room += (bytes.len() as u64).saturating_sub(end);
        }
        bytes.truncate(usize::try_from(end).unwrap());
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

    fn exchange(&self, from: &str, to: &str) -> io::Result<bool> {
        self.0.exchange(from, to)
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

/// What a keeper does when these are needed of stream 1.
fn sweep(log: &Log, needed: impl Iterator<Item = u64>) -> crate::Swept {
    let (mut keeper, mut living) = (log.keeper(), Living::default());
    keeper.note(&mut living, 1, needed.map(|sequence| (sequence, 100)), 0);
    keeper.sweep(&living, &|| false).unwrap()
}
