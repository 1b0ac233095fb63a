//! Segments that have ended, and the room behind their ends, which is given back beside the writer.
//!
//! Owns: which segments have ended and have their room still.
//! Invariant: before a segment is removed, the one before it has given its room back, by whoever removes it or by an earlier
//! start: that the last one of a journal is missing is known from the length of the one before it.

use std::io;
use std::sync::{Arc, OnceLock};

use parking_lot::Mutex;

use crate::disk::DiskFile;

/// The room that is to be given back.
#[derive(Default)]
pub(crate) struct Ended {
    /// Files, each with its end.
    waiting: Mutex<Vec<(Arc<dyn DiskFile>, u64)>>,
    /// Held while it is given back, so that nobody takes for given back what is not. The writer waits for this only where it finds no room.
    giving: Mutex<()>,
    /// Why it could not be.
    failed: OnceLock<String>,
}

impl Ended {
    /// Nothing is written to this file any more, and what lies behind this offset is not needed.
    pub(crate) fn push(&self, file: Arc<dyn DiskFile>, end: u64) {
        self.waiting.lock().push((file, end));
    }

    /// Segments whose room was not given back yet.
    pub(crate) fn count(&self) -> u64 {
        self.waiting.lock().len() as u64
    }

    /// Gives back the room of the one that ended first; false if there is none.
    pub(crate) fn give_one_back(&self) -> io::Result<bool> {
        let _giving = self.giving.lock();
        self.check()?;
        let mut waiting = self.waiting.lock();
        if waiting.is_empty() {
            return Ok(false);
        }
        let (file, end) = waiting.remove(0);
        drop(waiting);
        self.end(&*file, end)?;
        Ok(true)
    }

    /// Gives back the room of all that have ended so far.
    pub(crate) fn give_back(&self) -> io::Result<()> {
        let _giving = self.giving.lock();
        self.check()?;
        let waiting = std::mem::take(&mut *self.waiting.lock());
        for (file, end) in waiting {
            self.end(&*file, end)?;
        }
        Ok(())
    }

    fn end(&self, file: &dyn DiskFile, end: u64) -> io::Result<()> {
        end_segment(file, end).inspect_err(|error| _ = self.failed.set(error.to_string()))
    }

    /// Whether that never failed.
    pub(crate) fn check(&self) -> io::Result<()> {
        match self.failed.get() {
            Some(why) => Err(io::Error::other(format!("room could not be given back: {why}"))),
            None => Ok(()),
        }
    }
}

/// Gives back what of its room a segment has not used. Durably, as the header that says where it ends may be gone before it.
pub(crate) fn end_segment(file: &dyn DiskFile, end: u64) -> io::Result<()> {
    file.truncate(end)?;
    file.sync()
}
