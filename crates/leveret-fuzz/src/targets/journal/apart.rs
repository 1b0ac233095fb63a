//! A simulated disk beside the journal, so that what is measured is the journal alone.

use std::io;
use std::sync::Arc;

use leveret_journal::disk::{Disk, DiskFile};

use crate::allowance::uncounted;

/// A disk whose memory does not count.
pub(super) struct Apart<D>(pub(super) D);

impl<D: Disk> Disk for Apart<D> {
    fn create(&self, name: &str) -> io::Result<Arc<dyn DiskFile>> {
        let file = uncounted(|| self.0.create(name))?;
        Ok(Arc::new(Apart(file)))
    }

    // What these two return is the caller's, who lets go of it.

    fn open(&self, name: &str) -> io::Result<Arc<dyn DiskFile>> {
        Ok(Arc::new(Apart(self.0.open(name)?)))
    }

    fn list(&self) -> io::Result<Vec<String>> {
        self.0.list()
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        uncounted(|| self.0.rename(from, to))
    }

    fn exchange(&self, from: &str, to: &str) -> io::Result<bool> {
        uncounted(|| self.0.exchange(from, to))
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        uncounted(|| self.0.remove(name))
    }

    fn sync_directory(&self) -> io::Result<()> {
        uncounted(|| self.0.sync_directory())
    }

    fn free_bytes(&self) -> io::Result<u64> {
        uncounted(|| self.0.free_bytes())
    }
}

impl DiskFile for Apart<Arc<dyn DiskFile>> {
    fn write_at(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        uncounted(|| self.0.write_at(offset, bytes))
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<usize> {
        uncounted(|| self.0.read_at(offset, buffer))
    }

    fn sync(&self) -> io::Result<()> {
        uncounted(|| self.0.sync())
    }

    fn preallocate(&self, end: u64) -> io::Result<()> {
        uncounted(|| self.0.preallocate(end))
    }

    fn truncate(&self, end: u64) -> io::Result<()> {
        uncounted(|| self.0.truncate(end))
    }

    fn length(&self) -> io::Result<u64> {
        uncounted(|| self.0.length())
    }
}
