//! The file of `--html`: made sure of before a run, written after it.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::path::PathBuf;

use crate::commands::Failure;

/// A file that can be written to. What it held before stays until then; one that is new goes if nothing is written.
#[derive(Debug)]
pub(super) struct Page {
    path: PathBuf,
    file: File,
    /// Whether there was no such file, and there is nothing in it yet.
    is_empty_and_new: bool,
}

impl Page {
    pub(super) fn open(path: PathBuf) -> Result<Self, Failure> {
        let is_new = !path.exists();
        match OpenOptions::new().write(true).create(true).truncate(false).open(&path) {
            Ok(file) => Ok(Page { path, file, is_empty_and_new: is_new }),
            Err(error) => Err(Failure::Page { path: path.display().to_string(), error }),
        }
    }

    pub(super) fn write(mut self, text: &str) -> Result<(), Failure> {
        let written = self.try_write(text);
        written.map_err(|error| Failure::Page { path: self.path.display().to_string(), error })
    }

    fn try_write(&mut self, text: &str) -> io::Result<()> {
        // A pipe or a terminal has nothing to cut off.
        if self.file.metadata()?.is_file() {
            self.file.set_len(0)?;
        }
        self.is_empty_and_new = false;
        self.file.write_all(text.as_bytes())
    }
}

impl Drop for Page {
    fn drop(&mut self) {
        if self.is_empty_and_new {
            // It is empty, whether it goes or not.
            let _ = fs::remove_file(&self.path);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_replaces_what_was_there_only_when_it_is_written() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("page.html");
        drop(Page::open(path.clone()).unwrap());
        assert!(!path.exists());
        fs::write(&path, "a long page of an earlier run").unwrap();
        drop(Page::open(path.clone()).unwrap());
        assert_eq!(fs::read_to_string(&path).unwrap(), "a long page of an earlier run");
        Page::open(path.clone()).unwrap().write("new").unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "new");
    }
}
