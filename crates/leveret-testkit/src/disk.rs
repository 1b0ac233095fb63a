//! A disk that forgets what was not synced.
//!
//! Each file is what a power cut would leave of it, plus the writes since the last sync; the folder likewise is its
//! durable names plus the names made and removed since. [`SimDisk::crash`] picks which of these made it. Nothing here
//! is random: the caller decides, and the same decisions give the same disk.

use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard};

use leveret_journal::disk::{Disk, DiskFile};
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

/// Writes are torn between these, if not between bytes.
pub const SECTOR_BYTES: usize = 512;

/// What becomes of one thing that was not synced when the power goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Fate {
    /// It never happened.
    Lost,
    /// It is there.
    Kept,
    /// Of a write, only so many bytes from its beginning are there; of anything else, nothing.
    Torn(usize),
}

/// What a sync is of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Synced {
    /// What was written to a file.
    File,
    /// The names of the folder.
    Folder,
}

/// How large a write is that was not synced; nothing for what is no write.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Unsynced {
    /// All of it.
    pub bytes: usize,
    /// Without the zeros at its end.
    pub until_zeros: usize,
}

/// Whether a test is asked to try every place where a write may be torn, and many more subsets of what was not synced:
/// `cargo xtask proof` does.
pub fn tries_everything() -> bool {
    std::env::var_os("LEVERET_EVERY_BYTE").is_some()
}

/// Chance for what a test does not try in every way. It is the same every time, but other rounds of a test that is repeated have
/// other chance: `cargo xtask proof crash` numbers them from 0.
///
/// # Panics
/// If the round is no number.
pub fn chance(seed: u64) -> SmallRng {
    let round = std::env::var("LEVERET_ROUND").map_or(0, |round| round.parse().expect("LEVERET_ROUND is a number"));
    SmallRng::seed_from_u64(seed ^ (round << 32))
}

/// What may become of all that is pending: every subset of the first six things, or of ten if everything is tried, with chance for
/// the rest; then with writes torn at some places.
pub fn fates(pending: &[Unsynced], random: &mut SmallRng) -> Vec<Vec<Fate>> {
    let most = if tries_everything() { 10 } else { 6 };
    let mut all = Vec::new();
    for subset in 0..1_u32 << pending.len().min(most) {
        let mut is_kept = |at: usize| if at < most { subset >> at & 1 == 1 } else { random.random_bool(0.5) };
        all.push(
            (0..pending.len()).map(|at| if is_kept(at) { Fate::Kept } else { Fate::Lost }).collect::<Vec<_>>(),
        );
    }
    for (at, &Unsynced { bytes, until_zeros }) in pending.iter().enumerate().filter(|(_, write)| write.bytes > 1) {
        let places =
            (1..until_zeros).step_by(until_zeros / 16 + 1).chain((SECTOR_BYTES..bytes).step_by(SECTOR_BYTES));
        for torn in places.chain([bytes - 1]) {
            let mut fates = all[random.random_range(0..all.len())].clone();
            fates[at] = Fate::Torn(torn);
            all.push(fates);
        }
    }
    all
}

/// One thing that was not synced.
#[derive(Clone, Debug)]
enum Pending {
    Write { file: usize, offset: usize, bytes: Arc<[u8]> },
    Grow { file: usize, length: usize },
    Truncate { file: usize, length: usize },
    Name { name: String, file: Option<usize> },
    Rename { from: String, to: String, file: usize },
    Exchange { names: [String; 2], files: [usize; 2] },
}

#[derive(Clone, Debug, Default)]
struct State {
    /// By number, as a power cut would leave them. A file without a name is gone.
    durable: Vec<Vec<u8>>,
    /// As the running process sees them.
    current: Vec<Vec<u8>>,
    durable_names: BTreeMap<String, usize>,
    names: BTreeMap<String, usize>,
    /// What was not synced, in order.
    pending: Vec<Pending>,
    operations: u64,
    /// From this operation on, nothing works any more.
    stops_at: Option<u64>,
    /// Syncs that claim success and do nothing.
    lies: bool,
    /// The operation that fails if it syncs a file, and whether it has.
    fails_sync_at: Option<u64>,
    /// The same if it syncs the folder.
    fails_folder_sync_at: Option<u64>,
    failed: Option<Synced>,
    /// How many bytes longer all files together may become.
    room: Option<usize>,
    /// Nothing can be read.
    is_unreadable: bool,
    /// The next read but so many fails.
    fails_read_after: Option<u64>,
}

/// A folder in memory.
#[derive(Clone, Debug, Default)]
pub struct SimDisk {
    state: Arc<Mutex<State>>,
}

impl SimDisk {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// Operations that changed or synced something so far.
    pub fn operations(&self) -> u64 {
        self.lock().operations
    }

    /// The process dies at this operation: it and all later ones fail and do nothing.
    pub fn stop_at(&self, operation: u64) {
        self.lock().stops_at = Some(operation);
    }

    /// From now on a sync says that it has succeeded, and does nothing. What a test finds with this, it can find.
    pub fn lie(&self) {
        self.lock().lies = true;
    }

    /// If this operation syncs a file, it fails as it does on Linux: what was written to the file since its last sync will
    /// never reach the disk, but is still read from the cache, and later syncs succeed without it.
    pub fn fail_sync_at(&self, operation: u64) {
        self.lock().fails_sync_at = Some(operation);
    }

    /// The same for a sync of the folder: the names that changed since the last one never reach the disk.
    pub fn fail_folder_sync_at(&self, operation: u64) {
        self.lock().fails_folder_sync_at = Some(operation);
    }

    /// What has failed so far is not told any more.
    pub fn forget_failed_sync(&self) {
        self.lock().failed = None;
    }

    /// From now on files become longer by so many bytes in all. Of a write that would need more, a part is there. None takes the
    /// limit away.
    pub fn set_room(&self, bytes: Option<usize>) {
        self.lock().room = bytes;
    }

    /// From now on nothing can be read, or all of it again.
    pub fn set_unreadable(&self, is_unreadable: bool) {
        self.lock().is_unreadable = is_unreadable;
    }

    /// The next read but so many fails, and no other one. None: no read will fail. Says how many were left until then, if none has
    /// failed.
    pub fn fail_read_after(&self, reads: Option<u64>) -> Option<u64> {
        std::mem::replace(&mut self.lock().fails_read_after, reads)
    }

    /// The sync that has failed so, the last one.
    pub fn failed_sync(&self) -> Option<Synced> {
        self.lock().failed
    }

    /// Each thing that was not synced.
    pub fn pending(&self) -> Vec<Unsynced> {
        let unsynced = |pending: &Pending| match pending {
            Pending::Write { bytes, .. } => {
                let until_zeros = bytes.iter().rposition(|&byte| byte != 0).map_or(0, |last| last + 1);
                Unsynced { bytes: bytes.len(), until_zeros }
            }
            Pending::Grow { .. } | Pending::Truncate { .. } => Unsynced::default(),
            Pending::Name { .. } | Pending::Rename { .. } | Pending::Exchange { .. } => Unsynced::default(),
        };
        self.lock().pending.iter().map(unsynced).collect()
    }

    /// The disk that is found after a power cut, when what was not synced had these fates. What has none is lost.
    #[must_use]
    pub fn crash(&self, fates: &[Fate]) -> SimDisk {
        let state = self.lock();
        let mut found = State { durable: state.durable.clone(), ..State::default() };
        let mut names = state.durable_names.clone();
        for (pending, fate) in state.pending.iter().zip(fates) {
            pending.happen(*fate, &mut found.durable, &mut names);
        }
        found.current.clone_from(&found.durable);
        found.names.clone_from(&names);
        found.durable_names = names;
        SimDisk { state: Arc::new(Mutex::new(found)) }
    }

    /// All files as they are now, to compare disks and to damage them.
    pub fn files(&self) -> BTreeMap<String, Vec<u8>> {
        let state = self.lock();
        state.names.iter().map(|(name, file)| (name.clone(), state.current[*file].clone())).collect()
    }

    /// A disk with these files, all of it durable.
    #[must_use]
    pub fn of(files: BTreeMap<String, Vec<u8>>) -> SimDisk {
        let mut state = State::default();
        for (name, bytes) in files {
            state.names.insert(name, state.durable.len());
            state.durable.push(bytes);
        }
        state.current.clone_from(&state.durable);
        state.durable_names.clone_from(&state.names);
        SimDisk { state: Arc::new(Mutex::new(state)) }
    }
}

impl Pending {
    /// Reaches the disk, or not, or in part.
    fn happen(&self, fate: Fate, files: &mut [Vec<u8>], names: &mut BTreeMap<String, usize>) {
        match (self, fate) {
            (_, Fate::Lost) => {}
            (Pending::Write { file, offset, bytes }, Fate::Kept) => write(&mut files[*file], *offset, bytes),
            (Pending::Write { file, offset, bytes }, Fate::Torn(count)) => {
                write(&mut files[*file], *offset, &bytes[..count]);
            }
            (Pending::Grow { file, length }, Fate::Kept) => grow(&mut files[*file], *length),
            (Pending::Truncate { file, length }, Fate::Kept) => files[*file].truncate(*length),
            (Pending::Name { name, file: Some(file) }, Fate::Kept) => {
                names.insert(name.clone(), *file);
            }
            (Pending::Name { name, file: None }, Fate::Kept) => {
                names.remove(name);
            }
            // Both or neither: a rename is one thing to the file system.
            (Pending::Rename { from, to, file }, Fate::Kept) => {
                names.remove(from);
                names.insert(to.clone(), *file);
            }
            (Pending::Exchange { names: both, files }, Fate::Kept) => {
                names.extend(both.iter().cloned().zip(*files));
            }
            (_, Fate::Torn(_)) => {}
        }
    }

    fn is_of(&self, number: usize) -> bool {
        match self {
            Pending::Write { file, .. } | Pending::Grow { file, .. } | Pending::Truncate { file, .. } => {
                *file == number
            }
            Pending::Name { .. } | Pending::Rename { .. } | Pending::Exchange { .. } => false,
        }
    }
}

impl State {
    fn begin(&mut self) -> io::Result<()> {
        if self.stops_at.is_some_and(|at| self.operations >= at) {
            return Err(io::Error::other("the process is dead"));
        }
        self.operations += 1;
        Ok(())
    }
}

fn write(file: &mut Vec<u8>, offset: usize, bytes: &[u8]) {
    grow(file, offset + bytes.len());
    file[offset..offset + bytes.len()].copy_from_slice(bytes);
}

fn grow(file: &mut Vec<u8>, length: usize) {
    if file.len() < length {
        file.resize(length, 0);
    }
}

struct SimFile {
    state: Arc<Mutex<State>>,
    number: usize,
}

impl SimFile {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

fn to_usize(number: u64) -> io::Result<usize> {
    usize::try_from(number).map_err(|_| io::ErrorKind::FileTooLarge.into())
}

impl Disk for SimDisk {
    fn create(&self, name: &str) -> io::Result<Arc<dyn DiskFile>> {
        let mut state = self.lock();
        state.begin()?;
        if state.names.contains_key(name) {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        let number = state.current.len();
        state.current.push(Vec::new());
        state.durable.push(Vec::new());
        state.names.insert(name.into(), number);
        state.pending.push(Pending::Name { name: name.into(), file: Some(number) });
        Ok(Arc::new(SimFile { state: Arc::clone(&self.state), number }))
    }

    fn open(&self, name: &str) -> io::Result<Arc<dyn DiskFile>> {
        let number = *self.lock().names.get(name).ok_or(io::ErrorKind::NotFound)?;
        Ok(Arc::new(SimFile { state: Arc::clone(&self.state), number }))
    }

    fn list(&self) -> io::Result<Vec<String>> {
        Ok(self.lock().names.keys().cloned().collect())
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        let mut state = self.lock();
        state.begin()?;
        let number = state.names.remove(from).ok_or(io::ErrorKind::NotFound)?;
        state.names.insert(to.into(), number);
        state.pending.push(Pending::Rename { from: from.into(), to: to.into(), file: number });
        Ok(())
    }

    fn exchange(&self, from: &str, to: &str) -> io::Result<bool> {
        let mut state = self.lock();
        state.begin()?;
        let number = |name| state.names.get(name).copied().ok_or(io::ErrorKind::NotFound);
        let (names, files) = ([from.to_owned(), to.to_owned()], [number(to)?, number(from)?]);
        state.names.extend(names.iter().cloned().zip(files));
        state.pending.push(Pending::Exchange { names, files });
        Ok(true)
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        let mut state = self.lock();
        state.begin()?;
        let number = state.names.remove(name).ok_or(io::ErrorKind::NotFound)?;
        let won = state.current[number].len();
        state.room = state.room.map(|room| room + won);
        state.pending.push(Pending::Name { name: name.into(), file: None });
        Ok(())
    }

    fn sync_directory(&self) -> io::Result<()> {
        let mut state = self.lock();
        state.begin()?;
        if state.lies {
            return Ok(());
        }
        let state = &mut *state;
        let fails = state.fails_folder_sync_at == Some(state.operations);
        let State { pending, durable, durable_names, .. } = state;
        pending.retain(|pending| {
            let is_name =
                matches!(pending, Pending::Name { .. } | Pending::Rename { .. } | Pending::Exchange { .. });
            if is_name && !fails {
                pending.happen(Fate::Kept, durable, durable_names);
            }
            !is_name
        });
        if fails {
            state.failed = Some(Synced::Folder);
            return Err(io::Error::other("the disk has failed"));
        }
        Ok(())
    }

    fn free_bytes(&self) -> io::Result<u64> {
        Ok(u64::MAX)
    }
}

impl DiskFile for SimFile {
    fn write_at(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        let mut state = self.lock();
        state.begin()?;
        let (file, offset) = (self.number, to_usize(offset)?);
        let more = (offset + bytes.len()).saturating_sub(state.current[file].len());
        if let Some(room) = state.room {
            let Some(left) = room.checked_sub(more) else {
                state.room = Some(0);
                let there = bytes.len() - (more - room);
                write(&mut state.current[file], offset, &bytes[..there]);
                return Err(io::ErrorKind::StorageFull.into());
            };
            state.room = Some(left);
        }
        write(&mut state.current[file], offset, bytes);
        state.pending.push(Pending::Write { file, offset, bytes: bytes.into() });
        Ok(())
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<usize> {
        let mut state = self.lock();
        if state.is_unreadable || state.fails_read_after == Some(0) {
            state.fails_read_after = None;
            return Err(io::Error::other("the disk cannot be read"));
        }
        state.fails_read_after = state.fails_read_after.map(|reads| reads - 1);
        let rest = state.current[self.number].get(to_usize(offset)?..).unwrap_or_default();
        let count = rest.len().min(buffer.len());
        buffer[..count].copy_from_slice(&rest[..count]);
        Ok(count)
    }

    fn sync(&self) -> io::Result<()> {
        let mut state = self.lock();
        state.begin()?;
        if state.lies {
            return Ok(());
        }
        let state = &mut *state;
        if state.fails_sync_at == Some(state.operations) {
            state.failed = Some(Synced::File);
            state
                .pending
                .retain(|pending| !pending.is_of(self.number) || !matches!(pending, Pending::Write { .. }));
            return Err(io::Error::other("the disk has failed"));
        }
        let State { pending, durable, durable_names, .. } = state;
        pending.retain(|pending| {
            let is_synced = pending.is_of(self.number);
            if is_synced {
                pending.happen(Fate::Kept, durable, durable_names);
            }
            !is_synced
        });
        Ok(())
    }

    fn preallocate(&self, end: u64) -> io::Result<()> {
        let mut state = self.lock();
        state.begin()?;
        let (file, length) = (self.number, to_usize(end)?);
        let more = length.saturating_sub(state.current[file].len());
        if let Some(room) = state.room {
            state.room = Some(room.checked_sub(more).ok_or(io::ErrorKind::StorageFull)?);
        }
        grow(&mut state.current[file], length);
        state.pending.push(Pending::Grow { file, length });
        Ok(())
    }

    fn truncate(&self, end: u64) -> io::Result<()> {
        let mut state = self.lock();
        state.begin()?;
        let (file, length) = (self.number, to_usize(end)?);
        let before = state.current[file].len();
        state.current[file].truncate(length);
        let won = before - state.current[file].len();
        state.room = state.room.map(|room| room + won);
        state.pending.push(Pending::Truncate { file, length });
        Ok(())
    }

    fn length(&self) -> io::Result<u64> {
        Ok(self.lock().current[self.number].len() as u64)
    }
}
