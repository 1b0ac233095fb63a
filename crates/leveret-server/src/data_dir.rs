//! The folder in which a node keeps its data, and the lock that makes it the only one there.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use leveret_journal::OpenError;

use crate::recovery::JournalError;

/// The file in the data folder that is locked; it says who holds it.
pub const LOCK_FILE: &str = "leveret.lock";

/// A data folder that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum DataDirError {
    /// Another process has it.
    #[error(
        "the data folder {folder} is in use by {holder}: stop that broker, or choose another folder with --data-dir DIR"
    )]
    InUse {
        /// The folder.
        folder: PathBuf,
        /// Who has it, as far as it says.
        holder: String,
    },
    /// It cannot be made or written.
    #[error("the data folder {folder} cannot be used: {error}; choose another with --data-dir DIR")]
    Unusable {
        /// The folder.
        folder: PathBuf,
        /// Why.
        error: io::Error,
    },
    /// What is in it cannot be read, or nothing can be added to it.
    #[error("{0}{way_out}", way_out = way_out(.0))]
    Journal(#[from] JournalError),
}

const MEND_OR_CHOOSE: &str = "mend that, or choose another folder with --data-dir DIR";

fn way_out(error: &JournalError) -> String {
    match error {
        // It says itself what to do.
        JournalError::Open { error: OpenError::Newer { .. }, .. } => String::new(),
        JournalError::Open { error: OpenError::Disk(_), .. } | JournalError::Write { .. } => {
            format!("; {MEND_OR_CHOOSE}")
        }
    }
}

/// A data folder that is ours until this is dropped.
#[derive(Debug)]
pub(crate) struct DataDir {
    _lock: File,
}

impl DataDir {
    /// Makes the folder if it is missing, and locks it.
    pub(crate) fn lock(folder: &Path) -> Result<Self, DataDirError> {
        let unusable = |error| DataDirError::Unusable { folder: folder.into(), error };
        is_folder_or_absent(folder).map_err(unusable)?;
        // What is in it is for its owner only.
        fs::DirBuilder::new().recursive(true).mode(0o700).create(folder).map_err(unusable)?;
        let unusable = |error| unusable(named(&error));
        let options = OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o600).clone();
        let mut file = options.open(folder.join(LOCK_FILE)).map_err(unusable)?;
        match file.try_lock() {
            Ok(()) => {
                let holder = format!("process {}\n", std::process::id());
                // Over what is there: a full disk has no room for more.
                file.write_all(holder.as_bytes()).map_err(unusable)?;
                file.set_len(holder.len() as u64).map_err(unusable)?;
                Ok(DataDir { _lock: file })
            }
            Err(TryLockError::WouldBlock) => Err(in_use(folder, file)),
            Err(TryLockError::Error(error)) => Err(unusable(error)),
        }
    }

    /// Keeps others from writing to a folder while it is looked at. Nothing is changed, not even the lock file.
    pub(crate) fn look(folder: &Path) -> Result<Option<Self>, DataDirError> {
        let unusable = |error| DataDirError::Unusable { folder: folder.into(), error };
        is_folder_or_absent(folder).map_err(unusable)?;
        match File::open(folder.join(LOCK_FILE)) {
            Ok(file) => match file.try_lock_shared() {
                Ok(()) => Ok(Some(DataDir { _lock: file })),
                Err(TryLockError::WouldBlock) => Err(in_use(folder, file)),
                Err(TryLockError::Error(error)) => Err(unusable(named(&error))),
            },
            // Nobody ever used it, or not with this.
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(unusable(named(&error))),
        }
    }
}

/// The system would say `File exists` or `Not a directory`, and not of what.
fn is_folder_or_absent(path: &Path) -> io::Result<()> {
    if path.exists() && !path.is_dir() { Err(io::Error::other("it is no folder")) } else { Ok(()) }
}

/// Says which file it is about.
fn named(error: &io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("{LOCK_FILE}: {error}"))
}

fn in_use(folder: &Path, mut file: File) -> DataDirError {
    let mut holder = String::new();
    let holder = match file.read_to_string(&mut holder) {
        Ok(_) if !holder.trim().is_empty() => holder.trim().to_owned(),
        Ok(_) | Err(_) => "another process".into(),
    };
    DataDirError::InUse { folder: folder.into(), holder }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn a_folder_has_one_user_at_a_time_and_says_who() {
        let parent = tempfile::tempdir().unwrap();
        let folder = parent.path().join("made/on/demand");
        let first = DataDir::lock(&folder).unwrap();
        let second = DataDir::lock(&folder).unwrap_err();
        assert!(second.to_string().contains(&format!("process {}", std::process::id())), "{second}");
        drop(first);
        DataDir::lock(&folder).unwrap();
        let mode = fs::metadata(&folder).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o700, "what is in it is for its owner only");
    }

    #[test]
    fn a_folder_that_cannot_be_made_is_named() {
        let parent = tempfile::tempdir().unwrap();
        let file = parent.path().join("file");
        fs::write(&file, "").unwrap();
        let error = DataDir::lock(&file.join("below")).unwrap_err();
        assert!(matches!(error, DataDirError::Unusable { .. }));
        assert!(error.to_string().contains("file/below"), "{error}");
        for error in [DataDir::lock(&file).unwrap_err(), DataDir::look(&file).unwrap_err()] {
            assert!(error.to_string().ends_with("it is no folder; choose another with --data-dir DIR"), "{error}");
        }
        fs::create_dir(parent.path().join(LOCK_FILE)).unwrap();
        let error = DataDir::lock(parent.path()).unwrap_err();
        assert!(error.to_string().contains("leveret.lock: "), "{error}");
    }
}
