//! What has become of the data folder while the broker ran.
//!
//! Owns: the lock file, open a second time. Another folder at the same place, or another file system, has another one or none.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use leveret_server::LOCK_FILE;

/// A data folder that was there at the start.
pub(crate) struct DataFolder {
    folder: PathBuf,
    /// Open, so that no other file gets its number.
    lock: File,
}

/// What is where it was.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Found {
    /// The same folder, as far as it can be told.
    Same,
    /// None.
    Nothing,
    /// A folder, but not with what was in it.
    Another,
}

impl DataFolder {
    /// One that the broker has locked.
    pub(crate) fn open(folder: &Path) -> io::Result<Self> {
        Ok(DataFolder { folder: folder.into(), lock: File::open(folder.join(LOCK_FILE))? })
    }

    pub(crate) fn folder(&self) -> &Path {
        &self.folder
    }

    pub(crate) fn find(&self) -> Found {
        if is_missing(fs::metadata(&self.folder).as_ref().err()) {
            return Found::Nothing;
        }
        let now = fs::metadata(self.folder.join(LOCK_FILE));
        match (now, self.lock.metadata()) {
            (Ok(now), Ok(ours)) if (now.dev(), now.ino()) != (ours.dev(), ours.ino()) => Found::Another,
            (Err(error), _) if is_missing(Some(&error)) => Found::Another,
            // A disk that answers nothing may still have all of it.
            (Ok(_) | Err(_), _) => Found::Same,
        }
    }
}

fn is_missing(error: Option<&io::Error>) -> bool {
    error.is_some_and(|error| matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Makes what a broker makes there.
    fn make(folder: &Path) {
        fs::create_dir(folder).unwrap();
        fs::write(folder.join(LOCK_FILE), "process 1").unwrap();
    }

    #[test]
    fn a_folder_that_was_moved_is_found_again_when_it_is_back() {
        let parent = tempfile::tempdir().unwrap();
        let (folder, away) = (parent.path().join("data"), parent.path().join("away"));
        make(&folder);
        let data = DataFolder::open(&folder).unwrap();
        assert_eq!(data.find(), Found::Same);
        fs::rename(&folder, &away).unwrap();
        assert_eq!(data.find(), Found::Nothing);
        fs::write(&folder, "no folder").unwrap();
        assert_eq!(data.find(), Found::Another);
        fs::remove_file(&folder).unwrap();
        fs::create_dir(&folder).unwrap();
        assert_eq!(data.find(), Found::Another, "it is empty");
        fs::remove_dir(&folder).unwrap();
        fs::rename(&away, &folder).unwrap();
        assert_eq!(data.find(), Found::Same);
    }

    #[test]
    fn a_folder_that_was_removed_and_made_again_is_another_one() {
        let parent = tempfile::tempdir().unwrap();
        let folder = parent.path().join("data");
        make(&folder);
        let data = DataFolder::open(&folder).unwrap();
        // Time and again: file systems give a number that is free to the next file.
        for _ in 0..10 {
            fs::remove_dir_all(&folder).unwrap();
            make(&folder);
            assert_eq!(data.find(), Found::Another);
        }
    }
}
