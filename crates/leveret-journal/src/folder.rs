//! The folder of an open journal, which is not trusted again once it could not be synced.
//!
//! Invariant: after a sync of the folder has failed, no name in it changes any more, and no later sync counts. The operating
//! system tells of a failure once, to one of those who sync; all of them have to know.

use std::io;
use std::sync::{Arc, OnceLock};

use leveret_planted::{Bug, planted};
use parking_lot::Mutex;

use crate::disk::{Disk, DiskFile};

/// A disk whose folder syncs one at a time, until that fails.
pub(crate) struct Folder {
    disk: Arc<dyn Disk>,
    syncing: Mutex<()>,
    /// Why it could not be synced.
    failed: OnceLock<String>,
}

impl Folder {
    pub(crate) fn new(disk: Arc<dyn Disk>) -> Self {
        Folder { disk, syncing: Mutex::new(()), failed: OnceLock::new() }
    }

    /// Whether it can still be trusted.
    pub(crate) fn check(&self) -> io::Result<()> {
        match self.failed.get() {
            Some(why) if !planted(Bug::FailedFolderSyncForgotten) => {
                Err(io::Error::other(format!("the folder could not be synced: {why}")))
            }
            Some(_) | None => Ok(()),
        }
    }
}

impl Disk for Folder {
    fn create(&self, name: &str) -> io::Result<Arc<dyn DiskFile>> {
        self.check()?;
        self.disk.create(name)
    }

    fn open(&self, name: &str) -> io::Result<Arc<dyn DiskFile>> {
        self.disk.open(name)
    }

    fn list(&self) -> io::Result<Vec<String>> {
        self.disk.list()
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        self.check()?;
        self.disk.rename(from, to)
    }

    fn exchange(&self, from: &str, to: &str) -> io::Result<bool> {
        self.check()?;
        self.disk.exchange(from, to)
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        self.check()?;
        self.disk.remove(name)
    }

    fn sync_directory(&self) -> io::Result<()> {
        let _syncing = self.syncing.lock();
        self.check()?;
        self.disk.sync_directory().inspect_err(|error| _ = self.failed.set(error.to_string()))
    }

    fn free_bytes(&self) -> io::Result<u64> {
        self.disk.free_bytes()
    }
}
