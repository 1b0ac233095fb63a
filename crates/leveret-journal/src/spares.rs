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
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use leveret_planted::{Bug, planted};
use parking_lot::{Condvar, Mutex};
use rustix::io::Errno;

use crate::disk::{Disk, DiskFile};
use crate::ended::Ended;
use crate::limits::{SEGMENT_BYTES_DEFAULT, SPARE_BYTES_FACTOR, SPARE_BYTES_MIN, SPARES_KEPT_MAX};
use crate::real::errno;

const PREFIX: &str = "spare-";

/// The spare files of one journal.
pub struct Spares {
    disk: Arc<dyn Disk>,
    /// Those that are ready.
    ready: Mutex<Vec<Spare>>,
    /// Bytes of those.
    bytes: AtomicU64,
    /// The number of the next one.
    next: AtomicU64,
    /// Bytes of the next segment.
    segment_bytes: AtomicU64,
    /// Bytes that should be ready at least.
    reserve_bytes: AtomicU64,
    /// Room was taken since somebody looked last.
    is_taken: Mutex<bool>,
    taken: Condvar,
    /// There are fewer than there should be, and nobody has looked since.
    is_low: AtomicBool,
    /// Bytes that should be ready, if there is room.
    wanted_bytes: AtomicU64,
    /// What has room that it does not need.
    ended: Ended,
    /// Room is given back little by little: the disk has enough.
    is_calm: AtomicBool,
    /// Bytes that were taken since somebody swept last.
    taken_bytes: AtomicU64,
    /// The same for the time between the last two sweeps. Until the next one, so many may be taken again.
    cycle_bytes: AtomicU64,
}

impl std::fmt::Debug for Spares {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Spares").field("bytes", &self.bytes).finish_non_exhaustive()
    }
}

/// A file that has room for a segment.
pub(crate) struct Spare {
    pub(crate) name: String,
    pub(crate) file: Arc<dyn DiskFile>,
    /// How long it is.
    pub(crate) length: u64,
    /// It was a segment once; to write over what is there is cheaper than to write where nothing ever was.
    pub(crate) is_used: bool,
}

/// The number of a spare file.
pub(crate) fn number_of(name: &str) -> Option<u64> {
    name.strip_prefix(PREFIX)?.parse().ok()
}

/// Whether a disk has said that it has no room.
pub(crate) fn is_full(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}

/// Whether a file could not be opened because others are, in this process or in the system.
pub(crate) fn has_no_descriptor(error: &io::Error) -> bool {
    matches!(errno(error), Some(Errno::MFILE | Errno::NFILE))
}

impl Spares {
    /// Those that are in a folder.
    pub(crate) fn find(disk: &Arc<dyn Disk>) -> io::Result<Arc<Self>> {
        let (mut ready, mut next) = (Vec::new(), 1);
        for name in disk.list()? {
            let Some(number) = number_of(&name) else { continue };
            next = next.max(number.saturating_add(1));
            let file = disk.open(&name)?;
            let length = file.length()?;
            ready.push(Spare { name, file, length, is_used: false });
        }
        Ok(Arc::new(Spares {
            disk: Arc::clone(disk),
            bytes: AtomicU64::new(sum(&ready)),
            ready: Mutex::new(ready),
            next: AtomicU64::new(next),
            segment_bytes: AtomicU64::new(SEGMENT_BYTES_DEFAULT),
            reserve_bytes: AtomicU64::new(0),
            is_taken: Mutex::new(false),
            taken: Condvar::new(),
            is_low: AtomicBool::new(false),
            wanted_bytes: AtomicU64::new(0),
            ended: Ended::default(),
            is_calm: AtomicBool::new(false),
            taken_bytes: AtomicU64::new(0),
            cycle_bytes: AtomicU64::new(0),
        }))
    }

    /// How many are ready.
    pub fn count(&self) -> usize {
        self.ready.lock().len()
    }

    /// Bytes of those that are ready.
    pub fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Acquire)
    }

    /// Bytes of those that have about as many as segments have now.
    pub fn fitting_bytes(&self) -> u64 {
        self.fitting(&self.ready.lock())
    }

    /// Bytes of the next segment, unless a batch needs more.
    pub fn segment_bytes(&self) -> u64 {
        self.segment_bytes.load(Ordering::Relaxed)
    }

    /// Lets the next segments have so many bytes.
    pub fn set_segment_bytes(&self, bytes: u64) {
        self.segment_bytes.store(bytes, Ordering::Relaxed);
    }

    /// Makes as many ready as are missing to the bytes of so many segments of the present size, and gives back the room of
    /// what is too much or too large, and that behind the ends of segments. When less than the bytes of `reserve` segments are
    /// ready, [`Spares::is_low`] says so from then on.
    ///
    /// # Errors
    /// If the disk refuses. What is ready then is ready.
    pub fn keep(&self, reserve: usize, count: usize) -> io::Result<()> {
        self.is_calm.store(false, Ordering::Relaxed);
        self.give_back()?;
        let filled = self.fill(reserve, count);
        // What is too much has descriptors, too.
        if filled.as_ref().err().is_none_or(has_no_descriptor) {
            while self.shrink()? {}
        }
        filled
    }

    /// The same where the disk has room enough for what was segments and may soon be segments again. Gives nothing back: see
    /// [`Spares::give_some_back`]. Returns how often there is something to do.
    ///
    /// # Errors
    /// As [`Spares::keep`].
    pub fn keep_calmly(&self, reserve: usize, count: usize) -> io::Result<u64> {
        self.is_calm.store(true, Ordering::Relaxed);
        self.fill(reserve, count)?;
        let ready = self.ready.lock();
        let unfit = ready.iter().filter(|spare| !self.fits(spare)).count() as u64;
        let needless = self.needless(&ready).map(|_| unfit + self.too_much(&ready) / self.segment_bytes().max(1));
        Ok(self.ended.count() + needless.map_or(0, |needless| needless.max(1)))
    }

    /// Gives back the room of one file, or that behind the end of one segment. A disk that is told what is free may hold up
    /// everybody for milliseconds, so this is not to be called often.
    ///
    /// # Errors
    /// If the disk refuses.
    pub fn give_some_back(&self) -> io::Result<()> {
        if !self.ended.give_one_back()? {
            self.shrink()?;
        }
        Ok(())
    }

    /// The journal does not grow now. Each time this is called, less is kept for what it may take.
    pub fn rest(&self) {
        let half = |bytes| Some(bytes / 2);
        let _always = self.cycle_bytes.fetch_update(Ordering::Relaxed, Ordering::Relaxed, half);
    }

    /// Bytes that are kept, as they may soon be taken again.
    fn again(&self) -> u64 {
        if self.is_calm.load(Ordering::Relaxed) { self.cycle_bytes.load(Ordering::Relaxed) } else { 0 }
    }

    /// Whether a spare has about as many bytes as segments have now.
    fn fits(&self, spare: &Spare) -> bool {
        self.is_fit(spare.length)
    }

    fn is_fit(&self, length: u64) -> bool {
        let bytes = self.segment_bytes();
        length >= bytes / 2 && length / SPARE_BYTES_FACTOR <= bytes
    }

    /// Bytes of those that fit.
    fn fitting(&self, ready: &[Spare]) -> u64 {
        ready.iter().filter(|spare| self.fits(spare)).map(|spare| spare.length).sum()
    }

    /// Makes the bytes of `count` segments ready.
    fn fill(&self, reserve: usize, count: usize) -> io::Result<()> {
        let bytes = self.segment_bytes();
        let wanted = bytes * count as u64;
        self.reserve_bytes.store(bytes * reserve as u64, Ordering::Relaxed);
        self.wanted_bytes.store(wanted, Ordering::Relaxed);
        while self.fitting(&self.ready.lock()) < wanted {
            match self.make_ready(bytes) {
                Err(error) if is_full(&error) && (self.remove_large(bytes)? || self.remove_small(bytes)?) => {}
                // Little is better than nothing; what there is may soon be gone.
                Err(error) if is_full(&error) => {
                    let mut bytes = bytes / 2;
                    while bytes >= SPARE_BYTES_MIN && self.bytes() < wanted {
                        if self.make_ready(bytes).is_err() {
                            bytes /= 2;
                        }
                    }
                    return Err(error);
                }
                made => made?,
            }
        }
        Ok(())
    }

    /// Bytes of those that fit, beyond what is wanted.
    fn too_much(&self, ready: &[Spare]) -> u64 {
        self.fitting(ready).saturating_sub(self.wanted_bytes.load(Ordering::Relaxed) + self.again())
    }

    /// One that does not fit, or is one too many.
    fn needless(&self, ready: &[Spare]) -> Option<usize> {
        let too_much = self.too_much(ready);
        let needless = ready.iter().enumerate().filter(|(_, spare)| spare.length <= too_much);
        let needless = || Some(needless.min_by_key(|(_, spare)| spare.is_used)?.0);
        ready.iter().position(|spare| !self.fits(spare)).or_else(needless)
    }

    /// Removes one of those; false if there is none.
    fn shrink(&self) -> io::Result<bool> {
        let mut ready = self.ready.lock();
        let Some(at) = self.needless(&ready) else { return Ok(false) };
        let spare = self.remove(&mut ready, at);
        drop(ready);
        self.discard(spare)?;
        Ok(true)
    }

    /// Makes one with so many bytes ready.
    fn make_ready(&self, bytes: u64) -> io::Result<()> {
        // What is tried in vain takes all that is free for a moment, and others may need a block of it.
        if self.free_bytes().is_ok_and(|free| free < bytes) {
            return Err(io::ErrorKind::StorageFull.into());
        }
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

    /// Removes one that is much larger than so many bytes; false if there is none.
    fn remove_large(&self, bytes: u64) -> io::Result<bool> {
        let mut ready = self.ready.lock();
        let large = ready.iter().position(|spare| spare.length / SPARE_BYTES_FACTOR > bytes);
        let Some(at) = large else { return Ok(false) };
        let spare = self.remove(&mut ready, at);
        drop(ready);
        self.discard(spare)?;
        Ok(true)
    }

    /// Removes those that are much smaller than so many bytes, if with what is free they have room for one that is not: one
    /// large one holds what they cannot. False if they have not.
    fn remove_small(&self, bytes: u64) -> io::Result<bool> {
        let is_small = |spare: &Spare| spare.length < bytes / 2;
        let mut ready = self.ready.lock();
        let small: u64 = ready.iter().filter(|spare| is_small(spare)).map(|spare| spare.length).sum();
        if small == 0 || small.saturating_add(self.free_bytes()?) < bytes {
            return Ok(false);
        }
        let mut removed = Vec::new();
        while let Some(at) = ready.iter().position(is_small) {
            removed.push(self.remove(&mut ready, at));
        }
        drop(ready);
        let mut result = Ok(true);
        for spare in removed {
            if let Err(error) = self.discard(spare) {
                result = Err(error);
            }
        }
        result
    }

    /// Bytes that are free on the disk.
    ///
    /// # Errors
    /// If the disk does not say.
    pub fn free_bytes(&self) -> io::Result<u64> {
        self.disk.free_bytes()
    }

    /// Waits until room was taken or is to be given back, or so long; false if nothing was.
    pub fn wait(&self, timeout: Duration) -> bool {
        let mut is_taken = self.is_taken.lock();
        if !*is_taken {
            self.taken.wait_for(&mut is_taken, timeout);
        }
        std::mem::take(&mut *is_taken)
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

    /// A segment has ended there. Somebody gives its room back.
    pub(crate) fn end_later(&self, file: Arc<dyn DiskFile>, end: u64) {
        self.ended.push(file, end);
        self.wake();
    }

    /// Gives back the room of the segments that have ended so far. When this returns, that is durable.
    pub(crate) fn give_back(&self) -> io::Result<()> {
        self.ended.give_back()
    }

    /// Whether room could always be given back.
    pub(crate) fn check(&self) -> io::Result<()> {
        self.ended.check()
    }

    /// Bytes of the largest one.
    pub(crate) fn most(&self) -> u64 {
        self.ready.lock().iter().map(|spare| spare.length).max().unwrap_or(0)
    }

    /// One with room for at least so many bytes.
    pub(crate) fn take(&self, needed: u64) -> Option<Spare> {
        let mut ready = self.ready.lock();
        let fitting = ready.iter().enumerate().filter(|(_, spare)| spare.length >= needed);
        let (at, _) = fitting.min_by_key(|(_, spare)| (!self.fits(spare), !spare.is_used, spare.length))?;
        let spare = self.remove(&mut ready, at);
        drop(ready);
        self.taken_bytes.fetch_add(spare.length, Ordering::Relaxed);
        self.wake();
        Some(spare)
    }

    /// One with so many bytes `wanted`, made now: none that is ready has the `least` that is needed. On a full disk it is
    /// put together from those that are.
    pub(crate) fn make_larger(&self, wanted: u64, least: u64) -> io::Result<Spare> {
        let made = self.make(wanted).or_else(|error| if is_full(&error) { self.make(least) } else { Err(error) });
        let made = match made {
            Err(error) if is_full(&error) => self.put_together(least).unwrap_or(Err(error)),
            made => made,
        };
        if let Ok(made) = &made {
            self.taken_bytes.fetch_add(made.length, Ordering::Relaxed);
        }
        self.wake();
        made
    }

    /// Makes the largest one longer, with what is free and the room of as many others as that takes; none if all of it is too
    /// little.
    fn put_together(&self, bytes: u64) -> Option<io::Result<Spare>> {
        if self.bytes().saturating_add(self.free_bytes().unwrap_or(0)) < bytes {
            return None;
        }
        let mut ready = self.ready.lock();
        let (largest, _) = ready.iter().enumerate().max_by_key(|(_, spare)| spare.length)?;
        let mut spare = self.remove(&mut ready, largest);
        loop {
            match spare.file.preallocate(bytes) {
                Ok(()) => {
                    spare.length = bytes;
                    return Some(Ok(spare));
                }
                Err(error) if is_full(&error) && !ready.is_empty() => {
                    let smallest = ready.iter().enumerate().min_by_key(|(_, spare)| spare.length);
                    let smallest = smallest.map_or(0, |(at, _)| at);
                    let other = self.remove(&mut ready, smallest);
                    if let Err(error) = self.disk.remove(&other.name) {
                        return Some(Err(error));
                    }
                }
                Err(error) => {
                    self.add(&mut ready, spare);
                    return Some(Err(error));
                }
            }
        }
    }

    /// A new one with so many bytes.
    pub(crate) fn make(&self, bytes: u64) -> io::Result<Spare> {
        let name = format!("{PREFIX}{}", self.next.fetch_add(1, Ordering::Relaxed));
        let file = self.disk.create(&name)?;
        let spare = Spare { name, file, length: bytes, is_used: false };
        let mut made = spare.file.preallocate(bytes);
        if made.as_ref().is_err_and(is_full) {
            made = self.give_back().and_then(|()| spare.file.preallocate(bytes));
        }
        if let Err(error) = made {
            // If it cannot be removed either, the next start takes it for what it is.
            let _ = self.discard(spare);
            return Err(error);
        }
        Ok(spare)
    }

    /// Segments are looked for that are not needed any more.
    pub(crate) fn begin_cycle(&self) {
        self.cycle_bytes.store(self.taken_bytes.swap(0, Ordering::Relaxed), Ordering::Relaxed);
    }

    /// Makes spares of segments that are not needed any more, as many as there should be. The rest is removed, now or, if
    /// the disk has enough room, when somebody looks. Others that are too many then go in the same way. Those for which `gone`
    /// is not called are still there.
    pub(crate) fn recycle(&self, segments: &[String], mut gone: impl FnMut(&str)) -> io::Result<()> {
        let (used, count) = {
            let ready = self.ready.lock();
            let used = ready.iter().filter(|spare| spare.is_used && self.fits(spare)).map(|spare| spare.length);
            (used.sum::<u64>(), ready.len())
        };
        let is_calm = self.is_calm.load(Ordering::Relaxed);
        let (reserve, again) = (self.reserve_bytes.load(Ordering::Relaxed), self.again());
        let (mut spares, mut result) = (Vec::new(), Ok(()));
        for old in segments {
            let kept = used + spares.len() as u64 * self.segment_bytes();
            let is_missing = kept < reserve + again;
            // Each of them has a descriptor.
            let is_kept = kept < reserve || (is_calm && count + spares.len() < SPARES_KEPT_MAX);
            let renamed = is_kept.then(|| self.rename(old));
            let done = match renamed {
                Some(Ok(spare)) => {
                    spares.push((spare, is_missing));
                    Ok(())
                }
                Some(Err(error)) if !has_no_descriptor(&error) => Err(error),
                Some(Err(_)) | None => self.disk.remove(old),
            };
            match done {
                Err(error) if error.kind() != io::ErrorKind::NotFound => result = Err(error),
                _ => gone(old),
            }
        }
        // Under its old name, nobody may find in it what it becomes.
        if !planted(Bug::ReusedBeforeSync) {
            self.disk.sync_directory()?;
        }
        for (spare, is_missing) in spares {
            match self.fit(&spare, is_missing, is_calm) {
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

    /// Gives a file that is missing the length that segments have now. While there is room enough, about that will do.
    fn fit(&self, spare: &Spare, is_missing: bool, is_calm: bool) -> io::Result<u64> {
        let (bytes, length) = (self.segment_bytes(), spare.file.length()?);
        if !is_missing || (is_calm && self.is_fit(length)) {
            return Ok(length);
        }
        if length > bytes {
            spare.file.truncate(bytes)?;
        }
        spare.file.preallocate(bytes)?;
        spare.file.sync()?;
        Ok(bytes)
    }

    fn offer(&self, spare: Spare) {
        self.add(&mut self.ready.lock(), spare);
    }

    fn add(&self, ready: &mut Vec<Spare>, spare: Spare) {
        ready.push(spare);
        self.bytes.store(sum(ready), Ordering::Release);
    }

    fn remove(&self, ready: &mut Vec<Spare>, at: usize) -> Spare {
        let spare = ready.swap_remove(at);
        let bytes = sum(ready);
        self.bytes.store(bytes, Ordering::Release);
        if bytes < self.reserve_bytes.load(Ordering::Relaxed) {
            self.is_low.store(true, Ordering::Release);
        }
        spare
    }
}

fn sum(ready: &[Spare]) -> u64 {
    ready.iter().map(|spare| spare.length).sum()
}
