//! What the journal asks of a disk: one folder of files, by name.
//!
//! Everything that reaches the disk passes through these two traits, so that a test can put a disk in their place
//! that fails, tears writes, and loses what was not synced.

use std::io;
use std::sync::Arc;

/// One folder.
///
/// What was created, renamed or removed survives a power cut only after [`Disk::sync_directory`]; what was written,
/// only after [`DiskFile::sync`]. Without them, each of these may survive or not, in any order.
pub trait Disk: Send + Sync {
    /// Makes a new, empty file. Fails with [`io::ErrorKind::AlreadyExists`] if there is one of that name.
    fn create(&self, name: &str) -> io::Result<Arc<dyn DiskFile>>;

    /// Opens a file for reading and writing. Fails with [`io::ErrorKind::NotFound`] if there is none.
    fn open(&self, name: &str) -> io::Result<Arc<dyn DiskFile>>;

    /// The names of all files, in no particular order.
    fn list(&self) -> io::Result<Vec<String>>;

    /// Gives a file another name, replacing the file that has it.
    fn rename(&self, from: &str, to: &str) -> io::Result<()>;

    /// Gives a file the name of another one. Where the disk can, that one has the first name from then on, and this returns
    /// true; elsewhere it is replaced.
    fn exchange(&self, from: &str, to: &str) -> io::Result<bool> {
        self.rename(from, to).map(|()| false)
    }

    /// Removes a file.
    fn remove(&self, name: &str) -> io::Result<()>;

    /// Makes the names durable: what was created, renamed and removed so far.
    fn sync_directory(&self) -> io::Result<()>;

    /// Bytes that are free for the process.
    fn free_bytes(&self) -> io::Result<u64>;
}

/// One open file. Several threads may use it at once. No file is written or cut through two of these at the same time: the system may
/// be given what one of them remembers of it.
pub trait DiskFile: Send + Sync {
    /// Writes all of `bytes` at `offset`, making the file longer if need be. After an error, any part of it may have
    /// been written.
    fn write_at(&self, offset: u64, bytes: &[u8]) -> io::Result<()>;

    /// Reads from `offset` on until `buffer` is full or the file ends; returns how many bytes that were.
    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<usize>;

    /// Makes durable what was written to this file, and its length. After an error nothing is known of what was
    /// written since the last success, and a later success proves nothing about it.
    fn sync(&self) -> io::Result<()>;

    /// Takes room on the disk for bytes up to `end` and makes the file that long; new bytes are zero. Fails with
    /// [`io::ErrorKind::StorageFull`] if there is not enough.
    fn preallocate(&self, end: u64) -> io::Result<()>;

    /// Gives back the room behind `end`, and what is there.
    fn truncate(&self, end: u64) -> io::Result<()>;

    /// Its length in bytes.
    fn length(&self) -> io::Result<u64>;
}
