//! A folder of the file system.
//!
//! Owns: what its errors say. One that has to do with a name says which.
//!
//! What is said of durability holds on Linux: `fdatasync` of a file, `fsync` of its folder. Other systems do what
//! their counterparts of these calls do.

use std::error::Error;
use std::fmt;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use parking_lot::Mutex;
#[cfg(target_os = "linux")]
use rustix::fs::{CWD, RenameFlags};
use rustix::io::Errno;

use crate::direct::{self, Direct};
use crate::disk::{Disk, DiskFile};

/// What the system says, and of which file. Its kind is that of the error in it.
#[derive(Debug)]
struct Named {
    file: PathBuf,
    error: io::Error,
}

impl fmt::Display for Named {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.file.display(), self.error)
    }
}

impl Error for Named {}

/// Says of a link that what it leads to is not there: a file of its own name is.
fn of_link(path: &Path, error: io::Error) -> io::Error {
    let leads_nowhere = matches!(Errno::from_io_error(&error), Some(Errno::NOENT | Errno::LOOP));
    if !leads_nowhere || !fs::symlink_metadata(path).is_ok_and(|link| link.is_symlink()) {
        return error;
    }
    let target = fs::read_link(path).unwrap_or_default();
    let target = target.display();
    io::Error::other(format!(
        "it is a link to {target}, which is not there: bring that back, or move the link elsewhere"
    ))
}

/// Says of which file an error is.
fn of(file: &Path) -> impl Fn(io::Error) -> io::Error {
    move |error| io::Error::new(error.kind(), Named { file: file.into(), error })
}

/// The number that the system gave to an error, also to one that says of which file it is.
pub fn errno(error: &io::Error) -> Option<Errno> {
    let named = error.get_ref().and_then(|inner| inner.downcast_ref::<Named>());
    Errno::from_io_error(named.map_or(error, |named| &named.error))
}

/// The files of one folder.
#[derive(Debug)]
pub struct RealDisk {
    folder: PathBuf,
    handle: File,
    writes: Writes,
}

/// Which way bytes take to the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Writes {
    /// Through the cache of the operating system: for what is soon read again, or removed.
    Cached,
    /// Past it, where the file system can: for what is synced at once.
    Direct,
}

impl RealDisk {
    /// A folder, which must be there.
    pub fn new(folder: &Path, writes: Writes) -> io::Result<Self> {
        Ok(RealDisk { folder: folder.into(), handle: File::open(folder)?, writes })
    }

    fn file(&self, path: PathBuf, file: File, refused: Option<io::ErrorKind>) -> Arc<dyn DiskFile> {
        let direct = match self.writes {
            Writes::Cached => DirectWay::Closed,
            Writes::Direct => DirectWay::Untried,
        };
        Arc::new(RealFile { path, file, refused, direct: Mutex::new(direct) })
    }

    /// Only names, no paths.
    fn path(&self, name: &str) -> io::Result<PathBuf> {
        if name.is_empty() || name.contains('/') || name == "." || name == ".." {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        Ok(self.folder.join(name))
    }
}

impl Disk for RealDisk {
    fn create(&self, name: &str) -> io::Result<Arc<dyn DiskFile>> {
        let path = self.path(name)?;
        let options = OpenOptions::new().read(true).write(true).create_new(true).mode(0o600).clone();
        let file = options.open(&path).map_err(of(&path))?;
        Ok(self.file(path, file, None))
    }

    fn open(&self, name: &str) -> io::Result<Arc<dyn DiskFile>> {
        let path = self.path(name)?;
        // What can only be read can still be checked.
        let mut refused = None;
        let file = OpenOptions::new().read(true).write(true).open(&path).or_else(|error| match error.kind() {
            io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem | io::ErrorKind::IsADirectory => {
                refused = Some(error.kind());
                File::open(&path)
            }
            _ => Err(error),
        });
        let file = file.map_err(|error| of(&path)(of_link(&path, error)))?;
        if !file.metadata().map_err(of(&path))?.is_file() {
            let error = io::Error::other("it has a name that the journal gives, and is no file: move it elsewhere");
            return Err(of(&path)(error));
        }
        Ok(self.file(path, file, refused))
    }

    fn list(&self) -> io::Result<Vec<String>> {
        let mut names = Vec::new();
        for entry in fs::read_dir(&self.folder).map_err(of(&self.folder))? {
            names.extend(entry.map_err(of(&self.folder))?.file_name().into_string().ok());
        }
        Ok(names)
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        let (from, to) = (self.path(from)?, self.path(to)?);
        fs::rename(&from, to).map_err(of(&from))
    }

    fn exchange(&self, from: &str, to: &str) -> io::Result<bool> {
        #[cfg(target_os = "linux")]
        {
            let (old, new) = (self.path(from)?, self.path(to)?);
            match rustix::fs::renameat_with(CWD, &old, CWD, &new, RenameFlags::EXCHANGE) {
                Ok(()) => return Ok(true),
                // Some file systems cannot.
                Err(Errno::INVAL | Errno::NOSYS | Errno::OPNOTSUPP) => {}
                Err(error) => return Err(of(&old)(error.into())),
            }
        }
        self.rename(from, to).map(|()| false)
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        let path = self.path(name)?;
        fs::remove_file(&path).map_err(of(&path))
    }

    fn sync_directory(&self) -> io::Result<()> {
        self.handle.sync_all().map_err(of(&self.folder))
    }

    fn free_bytes(&self) -> io::Result<u64> {
        let found = rustix::fs::fstatvfs(&self.handle)?;
        Ok(found.f_bavail.saturating_mul(found.f_frsize))
    }
}

#[derive(Debug)]
struct RealFile {
    path: PathBuf,
    file: File,
    /// Why it may only be read.
    refused: Option<io::ErrorKind>,
    direct: Mutex<DirectWay>,
}

/// The way past the cache of the operating system.
#[derive(Debug)]
enum DirectWay {
    Untried,
    Open(Direct),
    /// Nobody wants it, or the file has none.
    Closed,
}

impl DirectWay {
    /// The file is about to be changed in another way.
    fn forget(&mut self) {
        if let DirectWay::Open(direct) = self {
            direct.forget();
        }
    }
}

impl RealFile {
    fn check_writable(&self) -> io::Result<()> {
        self.refused.map_or(Ok(()), |kind| Err(kind.into()))
    }

    fn write(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.check_writable()?;
        // Until the end: a direct write meanwhile would remember, and write again, what stood here before.
        let mut way = self.direct.lock();
        if direct::takes(offset, bytes) {
            if let DirectWay::Untried = *way {
                *way = Direct::new(&self.file).map_or(DirectWay::Closed, DirectWay::Open);
            }
            if let DirectWay::Open(direct) = &mut *way {
                if direct.write_at(&self.file, offset, bytes)? {
                    return Ok(());
                }
                *way = DirectWay::Closed;
            }
        }
        way.forget();
        self.file.write_all_at(bytes, offset)
    }

    fn take_room(&self, end: u64) -> io::Result<()> {
        self.check_writable()?;
        #[cfg(target_os = "linux")]
        {
            match rustix::fs::fallocate(&self.file, rustix::fs::FallocateFlags::empty(), 0, end) {
                Ok(()) => return Ok(()),
                // Some file systems cannot; then room is taken as it is written.
                Err(Errno::OPNOTSUPP | Errno::NOSYS) => {}
                Err(error) => return Err(error.into()),
            }
        }
        self.file.set_len(end)
    }
}

impl DiskFile for RealFile {
    fn write_at(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.write(offset, bytes).map_err(of(&self.path))
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<usize> {
        let mut filled = 0;
        while filled < buffer.len() {
            match self.file.read_at(&mut buffer[filled..], offset + filled as u64) {
                Ok(0) => break,
                Ok(count) => filled += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(of(&self.path)(error)),
            }
        }
        Ok(filled)
    }

    fn sync(&self) -> io::Result<()> {
        self.file.sync_data().map_err(of(&self.path))
    }

    fn preallocate(&self, end: u64) -> io::Result<()> {
        self.take_room(end).map_err(of(&self.path))
    }

    fn truncate(&self, end: u64) -> io::Result<()> {
        // Until the end, as for a write.
        let mut way = self.direct.lock();
        way.forget();
        self.check_writable().and_then(|()| self.file.set_len(end)).map_err(of(&self.path))
    }

    fn length(&self) -> io::Result<u64> {
        Ok(self.file.metadata().map_err(of(&self.path))?.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spares::has_no_descriptor;

    #[test]
    fn what_cannot_be_written_past_the_cache_is_written_through_it() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        let file = File::create_new(&path).unwrap();
        let direct = Direct::misaligned(&file).map_or(DirectWay::Closed, DirectWay::Open);
        let file = RealFile { path: path.clone(), file, refused: None, direct: Mutex::new(direct) };
        file.write_at(4, &[7; 4092]).unwrap();
        file.write_at(4096, &[8; 4096]).unwrap();
        assert!(fs::read(&path).unwrap() == [[0; 4].as_slice(), &[7; 4092], &[8; 4096]].concat());
    }

    #[test]
    fn a_link_is_followed_and_one_that_leads_nowhere_is_called_so() {
        let folder = tempfile::tempdir().unwrap();
        let disk = RealDisk::new(folder.path(), Writes::Cached).unwrap();
        fs::write(folder.path().join("file"), "content").unwrap();
        for (name, target) in [("good", "file"), ("dangling", "/nowhere/file"), ("loop", "loop")] {
            std::os::unix::fs::symlink(target, folder.path().join(name)).unwrap();
        }
        assert_eq!(disk.open("good").unwrap().length().unwrap(), 7);
        for (name, target) in [("dangling", "/nowhere/file"), ("loop", "loop")] {
            let path = folder.path().join(name);
            let expected = format!(
                "{}: it is a link to {target}, which is not there: bring that back, or move the link elsewhere",
                path.display()
            );
            assert_eq!(disk.open(name).err().unwrap().to_string(), expected);
        }
        assert_eq!(disk.open("missing").err().unwrap().kind(), io::ErrorKind::NotFound);
    }

    /// Not every file system can; then the other one is gone, as with a rename.
    #[test]
    fn two_files_exchange_their_names() {
        let folder = tempfile::tempdir().unwrap();
        let disk = RealDisk::new(folder.path(), Writes::Cached).unwrap();
        for name in ["old", "new"] {
            fs::write(folder.path().join(name), name).unwrap();
        }
        let is_exchanged = disk.exchange("new", "old").unwrap();
        let read = |name| fs::read_to_string(folder.path().join(name)).ok();
        assert_eq!(read("old").as_deref(), Some("new"));
        assert_eq!(read("new").as_deref(), is_exchanged.then_some("old"));
        assert_eq!(disk.exchange("missing", "old").unwrap_err().kind(), io::ErrorKind::NotFound);
    }

    #[test]
    fn an_error_names_the_file_and_is_of_its_kind_all_the_same() {
        let folder = tempfile::tempdir().unwrap();
        let disk = RealDisk::new(folder.path(), Writes::Cached).unwrap();
        fs::create_dir(folder.path().join("in the way")).unwrap();
        fs::write(folder.path().join("there"), "").unwrap();
        let there = |name: &str| format!("{}: ", folder.path().join(name).display());
        let refusals = [
            ("in the way", disk.open("in the way").err().unwrap()),
            ("in the way", disk.remove("in the way").unwrap_err()),
            ("missing", disk.open("missing").err().unwrap()),
            ("missing", disk.rename("missing", "else").unwrap_err()),
            ("there", disk.create("there").err().unwrap()),
        ];
        for (name, error) in &refusals {
            assert!(error.to_string().starts_with(&there(name)), "{error}");
        }
        assert_eq!(refusals[2].1.kind(), io::ErrorKind::NotFound);
        assert_eq!(refusals[3].1.kind(), io::ErrorKind::NotFound);
        assert_eq!(refusals[4].1.kind(), io::ErrorKind::AlreadyExists);
        let file = disk.open("there").unwrap();
        let path = folder.path().join("there");
        let only_read = disk.file(
            path,
            File::open(folder.path().join("there")).unwrap(),
            Some(io::ErrorKind::PermissionDenied),
        );
        for error in [
            only_read.write_at(0, b"x").unwrap_err(),
            only_read.truncate(0).unwrap_err(),
            only_read.preallocate(1).unwrap_err(),
        ] {
            assert!(error.to_string() == there("there") + "permission denied", "{error}");
        }
        assert!(file.preallocate(u64::MAX).unwrap_err().to_string().starts_with(&there("there")));
        let out_of_descriptors = of(folder.path())(Errno::MFILE.into());
        assert!(has_no_descriptor(&out_of_descriptors), "{out_of_descriptors}");
    }
}
