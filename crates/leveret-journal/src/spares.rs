//! Files that are ready to become segments: room that is taken before it is needed, and kept when a segment is not
//! needed any more.
//!
//! Owns: which such files there are, and how large the next segment is.
//! Invariants: every segment was a spare first, and had its header before it had its name. A file that could not be removed
//! is among the spares all the same, and tried again.
//!
//! What a spare holds from an earlier life never verifies in the segment that it becomes.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use parking_lot::{Condvar, Mutex};
use rustix::io::Errno;

use crate::disk::{Disk, DiskFile};
use crate::format::segment_name;
use crate::limits::{SEGMENT_BYTES_DEFAULT, SPARE_BYTES_FACTOR, SPARE_BYTES_MIN};

const PREFIX: &str = "spare-";

/// The spare files of one journal.
pub struct Spares {
    disk: Arc<dyn Disk>,
    /// Those that are ready.
    ready: Mutex<Vec<Spare>>,
    count: AtomicUsize,
    /// The number of the next one.
    next: AtomicU64,
    /// Bytes of the next segment.
    segment_bytes: AtomicU64,
    /// How many there should be at least.
    reserve: AtomicUsize,
    /// Room was taken since somebody looked last.
    is_taken: Mutex<bool>,
    taken: Condvar,
    /// There are fewer than there should be, and nobody has looked since.
    is_low: AtomicBool,
    /// The disk had no room for the last one.
    has_refused: AtomicBool,
}

impl std::fmt::Debug for Spares {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Spares").field("count", &self.count).finish_non_exhaustive()
    }
}

/// A file that has room for a segment.
pub(crate) struct Spare {
    pub(crate) name: String,
    pub(crate) file: Arc<dyn DiskFile>,
    /// How long it is.
    pub(crate) length: u64,
    /// It was a segment once; to write over what is there is cheaper than to write where nothing ever was.
    is_used: bool,
}

/// Whether a disk has said that it has no room.
pub(crate) fn is_full(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}

/// Whether a file could not be opened because others are, in this process or in the system.
pub(crate) fn has_no_descriptor(error: &io::Error) -> bool {
    matches!(Errno::from_io_error(error), Some(Errno::MFILE | Errno::NFILE))
}

impl Spares {
    /// Those that are in a folder.
    pub(crate) fn find(disk: &Arc<dyn Disk>) -> io::Result<Arc<Self>> {
        let (mut ready, mut next) = (Vec::new(), 1);
        for name in disk.list()? {
            let Some(number) = name.strip_prefix(PREFIX).and_then(|number| number.parse::<u64>().ok()) else {
                continue;
            };
            next = next.max(number.saturating_add(1));
            let file = disk.open(&name)?;
            let length = file.length()?;
            ready.push(Spare { name, file, length, is_used: false });
        }
        Ok(Arc::new(Spares {
            disk: Arc::clone(disk),
            count: AtomicUsize::new(ready.len()),
            ready: Mutex::new(ready),
            next: AtomicU64::new(next),
            segment_bytes: AtomicU64::new(SEGMENT_BYTES_DEFAULT),
            reserve: AtomicUsize::new(0),
            is_taken: Mutex::new(false),
            taken: Condvar::new(),
            is_low: AtomicBool::new(false),
            has_refused: AtomicBool::new(false),
        }))
    }

    /// How many are ready.
    pub fn count(&self) -> usize {
        self.count.load(Ordering::Acquire)
    }

    /// Bytes of the next segment, unless a batch needs more.
    pub fn segment_bytes(&self) -> u64 {
        self.segment_bytes.load(Ordering::Relaxed)
    }

    /// Lets the next segments have so many bytes.
    pub fn set_segment_bytes(&self, bytes: u64) {
        self.segment_bytes.store(bytes, Ordering::Relaxed);
    }

    /// Makes as many ready as are missing, each for a segment of the present size, and gives back the room of what is too
    /// much or too large. When fewer than `reserve` are ready, [`Spares::is_low`] says so from then on.
    ///
    /// # Errors
    /// If the disk refuses. What is ready then is ready.
    pub fn keep(&self, reserve: usize, count: usize) -> io::Result<()> {
        self.reserve.store(reserve, Ordering::Relaxed);
        let bytes = self.segment_bytes();
        let fits = |spare: &Spare| spare.length >= bytes / 2 && spare.length / SPARE_BYTES_FACTOR <= bytes;
        loop {
            let missing = count.saturating_sub(self.ready.lock().iter().filter(|spare| fits(spare)).count());
            if missing == 0 {
                break;
            }
            match self.make_ready(bytes) {
                // Little is better than nothing; what there is may soon be gone.
                Err(error) if is_full(&error) && self.count() < count => {
                    let mut bytes = bytes / 2;
                    while bytes >= SPARE_BYTES_MIN && self.count() < count {
                        if self.make_ready(bytes).is_err() {
                            bytes /= 2;
                        }
                    }
                    return Err(error);
                }
                made => made?,
            }
        }
        loop {
            let mut ready = self.ready.lock();
            let is_too_many = ready.len() > count;
            let unfit = ready.iter().position(|spare| !fits(spare));
            let unused = || ready.iter().position(|spare| !spare.is_used).unwrap_or(0);
            let Some(at) = unfit.or_else(|| is_too_many.then(unused)) else { break };
            let spare = ready.swap_remove(at);
            self.count.store(ready.len(), Ordering::Release);
            drop(ready);
            self.discard(spare)?;
        }
        Ok(())
    }

    /// Makes one with so many bytes ready.
    fn make_ready(&self, bytes: u64) -> io::Result<()> {
        let spare = self.make(bytes)?;
        // Its room is on the disk before anybody counts on it, and whoever takes it does not wait for that.
        if let Err(error) = spare.file.sync() {
            self.discard(spare)?;
            return Err(error);
        }
        self.offer(spare);
        Ok(())
    }

    /// Gives the room of a file back, now or when somebody looks the next time.
    fn discard(&self, spare: Spare) -> io::Result<()> {
        let removed = self.disk.remove(&spare.name);
        if removed.is_err() {
            // It has no room for anything.
            self.offer(Spare { length: 0, ..spare });
        }
        removed
    }

    /// Bytes that are free on the disk.
    ///
    /// # Errors
    /// If the disk does not say.
    pub fn free_bytes(&self) -> io::Result<u64> {
        self.disk.free_bytes()
    }

    /// Waits until room was taken, or so long.
    pub fn wait(&self, timeout: Duration) {
        let mut is_taken = self.is_taken.lock();
        if !*is_taken {
            self.taken.wait_for(&mut is_taken, timeout);
        }
        *is_taken = false;
    }

    /// Ends the wait of whoever waits.
    pub fn wake(&self) {
        *self.is_taken.lock() = true;
        self.taken.notify_all();
    }

    /// Whether fewer are left than should be, as far as nobody has dealt with that since.
    pub fn is_low(&self) -> bool {
        self.is_low.load(Ordering::Acquire)
    }

    /// Somebody has seen how many there are, and done what can be done.
    pub fn is_seen(&self) {
        self.is_low.store(false, Ordering::Release);
    }

    /// Bytes of the largest one, if nothing larger can be had.
    pub(crate) fn most(&self) -> Option<u64> {
        let largest = || self.ready.lock().iter().map(|spare| spare.length).max().unwrap_or(0);
        self.has_refused.load(Ordering::Relaxed).then(largest)
    }

    /// One with room for at least so many bytes.
    pub(crate) fn take(&self, needed: u64) -> Option<Spare> {
        let mut ready = self.ready.lock();
        let fitting = ready.iter().enumerate().filter(|(_, spare)| spare.length >= needed);
        let (at, _) = fitting.min_by_key(|(_, spare)| (!spare.is_used, spare.length))?;
        let spare = ready.swap_remove(at);
        self.count.store(ready.len(), Ordering::Release);
        if ready.len() < self.reserve.load(Ordering::Relaxed) {
            self.is_low.store(true, Ordering::Release);
        }
        drop(ready);
        self.wake();
        Some(spare)
    }

    /// A new one with so many bytes.
    pub(crate) fn make(&self, bytes: u64) -> io::Result<Spare> {
        let name = format!("{PREFIX}{}", self.next.fetch_add(1, Ordering::Relaxed));
        let file = self.disk.create(&name)?;
        let taken = file.preallocate(bytes);
        self.has_refused.store(taken.is_err(), Ordering::Relaxed);
        let spare = Spare { name, file, length: bytes, is_used: false };
        if let Err(error) = taken {
            let _ = self.discard(spare);
            return Err(error);
        }
        Ok(spare)
    }

    /// Makes spares of segments that are not needed any more, as many as there should be, and removes the rest. Others that
    /// are too many then go when somebody looks. Those for which `gone` is not called are still there.
    pub(crate) fn recycle(&self, segments: &[u64], mut gone: impl FnMut(u64)) -> io::Result<()> {
        let used = self.ready.lock().iter().filter(|spare| spare.is_used).count();
        let missing = self.reserve.load(Ordering::Relaxed).saturating_sub(used);
        let (mut spares, mut result) = (Vec::new(), Ok(()));
        for &generation in segments {
            let old = segment_name(generation);
            let done = if spares.len() < missing {
                self.rename(&old).map(|spare| spares.push(spare))
            } else {
                self.disk.remove(&old)
            };
            match done {
                Err(error) if error.kind() != io::ErrorKind::NotFound => result = Err(error),
                _ => gone(generation),
            }
        }
        // Under its old name, nobody may find in it what it becomes.
        self.disk.sync_directory()?;
        for spare in spares {
            match self.fit(&spare) {
                Ok(length) => self.offer(Spare { length, ..spare }),
                // Its room is needed for others.
                Err(_) => result = self.discard(spare).and(result),
            }
        }
        self.wake();
        result
    }

    fn rename(&self, old: &str) -> io::Result<Spare> {
        let name = format!("{PREFIX}{}", self.next.fetch_add(1, Ordering::Relaxed));
        let file = self.disk.open(old)?;
        self.disk.rename(old, &name)?;
        Ok(Spare { name, file, length: 0, is_used: true })
    }

    /// Gives a file the length that segments have now.
    fn fit(&self, spare: &Spare) -> io::Result<u64> {
        let bytes = self.segment_bytes();
        if spare.file.length()? > bytes {
            spare.file.truncate(bytes)?;
        }
        spare.file.preallocate(bytes)?;
        spare.file.sync()?;
        Ok(bytes)
    }

    fn offer(&self, spare: Spare) {
        let mut ready = self.ready.lock();
        ready.push(spare);
        self.count.store(ready.len(), Ordering::Release);
    }
}
