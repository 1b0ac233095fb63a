//! `leveret export`.

use std::fs::{self, File, Metadata, OpenOptions, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt, fchown};
use std::path::{Path, PathBuf};

use super::{DataDir, Failure};

/// Write all definitions of a running broker in RabbitMQ's JSON, for leveret serve --definitions or for RabbitMQ.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  leveret export --file definitions.json")]
pub(crate) struct Export {
    /// Where to write it, for its owner only; a file that is there is replaced when all is written, and keeps mode and owner [default: standard output]
    #[arg(long, value_name = "FILE")]
    file: Option<PathBuf>,
    #[command(flatten)]
    broker: DataDir,
}

impl Export {
    pub(super) fn run(self) -> Result<(), Failure> {
        let definitions = self.broker.client()?.get("/api/definitions")?.ok_or(Failure::NoSuchList)?;
        let mut text = serde_json::to_vec_pretty(&definitions).map_err(Failure::NotJson)?;
        text.push(b'\n');
        match self.file {
            None => io::stdout().lock().write_all(&text)?,
            Some(path) => write(&path, &text).map_err(|error| Failure::File(path, error))?,
        }
        Ok(())
    }
}

/// The mode of a new file: there are hashes of passwords in it.
const OWNER_ONLY: u32 = 0o600;

/// What its group may do with a file.
const GROUP: u32 = 0o070;

/// As many links as the system follows.
const LINKS_MAX: usize = 40;

/// Names that are tried for a new file: ends of processes may have left some behind.
const NAMES_MAX: u32 = 1000;

/// Writes a file as a whole or not at all: what was there before stays until all that replaces it is on disk. Where nothing can be
/// put in the place of a file, it is written as it stands.
fn write(path: &Path, text: &[u8]) -> io::Result<()> {
    let there = match fs::metadata(path) {
        Ok(there) => there,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return replace(&end_of_links(path)?, None, text),
        Err(error) => return Err(error),
    };
    if !there.is_file() {
        // A device or a pipe has nothing to lose.
        return OpenOptions::new().write(true).open(path)?.write_all(text);
    }
    // Where a link leads. A file without a name, which is only open, has no place.
    let Ok(path) = fs::canonicalize(path) else { return write_in_place(path, text) };
    match replace(&path, Some(&there), text) {
        Err(error) if cannot_be_replaced(&error) => write_in_place(&path, text),
        written => written,
    }
}

/// The folder takes no other file, or the file is one that something is mounted on.
fn cannot_be_replaced(error: &io::Error) -> bool {
    use io::ErrorKind::{PermissionDenied, ReadOnlyFilesystem, ResourceBusy};
    matches!(error.kind(), PermissionDenied | ReadOnlyFilesystem | ResourceBusy)
}

/// The name of the file that is made when one that a link leads to is missing.
fn end_of_links(path: &Path) -> io::Result<PathBuf> {
    let mut path = path.to_owned();
    for _ in 0..LINKS_MAX {
        match fs::read_link(&path) {
            Ok(target) => path = path.with_file_name("").join(target),
            Err(_) => return Ok(path),
        }
    }
    Err(io::Error::other("it is a link that leads through too many others"))
}

fn write_in_place(path: &Path, text: &[u8]) -> io::Result<()> {
    // Over what is there: a full disk has no room for more.
    let mut file = OpenOptions::new().write(true).open(path)?;
    file.write_all(text)?;
    file.set_len(text.len() as u64)?;
    file.sync_all()
}

fn replace(path: &Path, there: Option<&Metadata>, text: &[u8]) -> io::Result<()> {
    if path.file_name().is_none() {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    let (file, beside) = create_beside(path)?;
    let written = fill(file, there, text).and_then(|()| fs::rename(&beside, path));
    if written.is_err() {
        let _ = fs::remove_file(&beside);
    }
    written
}

/// A file that was not there, in the same folder.
fn create_beside(path: &Path) -> io::Result<(File, PathBuf)> {
    let process = std::process::id();
    for number in 0..NAMES_MAX {
        let beside = path.with_file_name(format!(".leveret-export-{process}-{number}"));
        match File::options().write(true).create_new(true).mode(OWNER_ONLY).open(&beside) {
            Ok(file) => return Ok((file, beside)),
            // Of a process that was killed, and had the same number.
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            Err(error) => return Err(error),
        }
    }
    Err(io::Error::other(format!("too many files .leveret-export-{process}-* are left beside it: remove them")))
}

/// Gives a new file the owner and the mode of the one that it is to replace, and all that is in it.
fn fill(mut file: File, there: Option<&Metadata>, text: &[u8]) -> io::Result<()> {
    if let Some(there) = there {
        // The owner first: what the group may do is for that group alone.
        let mode = if keep_owner(&file, there) { there.mode() } else { there.mode() & !GROUP };
        file.set_permissions(Permissions::from_mode(mode))?;
    }
    file.write_all(text)?;
    file.sync_all()
}

/// As far as that is allowed: who is not root keeps what is theirs. Says whether the group is the same.
fn keep_owner(file: &File, there: &Metadata) -> bool {
    fchown(file, Some(there.uid()), Some(there.gid())).or_else(|_| fchown(file, None, Some(there.gid()))).is_ok()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use rustix::process::{getgid, getgroups, getuid};

    use super::*;

    const MODE: u32 = 0o7777;

    /// A folder with a file of yesterday in it.
    fn start() -> (tempfile::TempDir, PathBuf) {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("definitions.json");
        fs::write(&file, "yesterday's, and longer").unwrap();
        (folder, file)
    }

    fn names(folder: &Path) -> Vec<String> {
        let mut names: Vec<_> =
            fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    /// Root may give files away, others may give them to another group that they are in.
    #[test]
    fn a_file_that_is_replaced_keeps_its_owner_and_its_group() {
        let (folder, file) = start();
        let (user, group) = if getuid().is_root() {
            (1234, 4321)
        } else {
            let group = getgroups().unwrap().last().copied().unwrap_or_else(getgid);
            (getuid().as_raw(), group.as_raw())
        };
        std::os::unix::fs::chown(&file, Some(user), Some(group)).unwrap();
        fs::set_permissions(&file, Permissions::from_mode(0o640)).unwrap();
        let before = fs::metadata(&file).unwrap();
        write(&file, b"today's").unwrap();
        let after = fs::metadata(&file).unwrap();
        assert_ne!(after.ino(), before.ino(), "it is another file");
        assert_eq!((after.uid(), after.gid(), after.mode() & MODE), (user, group, 0o640));
        assert_eq!(fs::read_to_string(&file).unwrap(), "today's");
        assert_eq!(names(folder.path()), ["definitions.json"]);
    }

    /// Runs it as somebody who may not write everywhere: root without its rights is like others.
    #[cfg(target_os = "linux")]
    fn without_privileges<T: Send>(run: impl FnOnce() -> T + Send) -> T {
        use rustix::thread::{CapabilitySet, capabilities, set_capabilities};
        std::thread::scope(|scope| {
            let run = || {
                let mut mine = capabilities(None).unwrap();
                mine.effective = CapabilitySet::empty();
                // Of this thread, which ends here.
                set_capabilities(None, mine).unwrap();
                run()
            };
            scope.spawn(run).join().unwrap()
        })
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn a_file_in_a_folder_that_cannot_be_written_is_written_where_it_is() {
        let (folder, file) = start();
        fs::set_permissions(folder.path(), Permissions::from_mode(0o500)).unwrap();
        let before = fs::metadata(&file).unwrap();
        without_privileges(|| write(&file, b"today's")).unwrap();
        let missing = without_privileges(|| write(&folder.path().join("missing"), b"today's")).unwrap_err();
        assert_eq!(missing.kind(), io::ErrorKind::PermissionDenied);
        fs::set_permissions(folder.path(), Permissions::from_mode(0o700)).unwrap();
        assert_eq!(fs::metadata(&file).unwrap().ino(), before.ino(), "it is the same file");
        assert_eq!(fs::read_to_string(&file).unwrap(), "today's");
        assert_eq!(names(folder.path()), ["definitions.json"]);
    }

    #[test]
    fn what_a_link_leads_to_is_made_and_the_link_stays() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name| folder.path().join(name);
        fs::create_dir(path("below")).unwrap();
        symlink("below/second", path("first")).unwrap();
        symlink("definitions.json", path("below/second")).unwrap();
        write(&path("first"), b"today's").unwrap();
        assert!(fs::symlink_metadata(path("first")).unwrap().is_symlink());
        assert_eq!(names(&path("below")), ["definitions.json", "second"]);
        let made = path("below/definitions.json");
        assert_eq!(fs::read_to_string(&made).unwrap(), "today's");
        assert_eq!(fs::symlink_metadata(&made).unwrap().mode() & MODE, OWNER_ONLY);
        symlink("round", path("round")).unwrap();
        write(&path("round"), b"today's").unwrap_err();
        assert!(fs::symlink_metadata(path("round")).unwrap().is_symlink());
    }

    /// In a container, process after process has the same number.
    #[test]
    fn what_a_killed_process_left_is_neither_in_the_way_nor_removed() {
        let (folder, file) = start();
        let left = format!(".leveret-export-{}-0", std::process::id());
        fs::write(folder.path().join(&left), "half of it").unwrap();
        write(&file, b"today's").unwrap();
        assert_eq!(fs::read_to_string(&file).unwrap(), "today's");
        // And one that is refused: a folder takes the place of no file.
        fs::create_dir(folder.path().join("taken")).unwrap();
        replace(&folder.path().join("taken"), None, b"today's").unwrap_err();
        assert_eq!(names(folder.path()), [left.as_str(), "definitions.json", "taken"]);
        assert_eq!(fs::read_to_string(folder.path().join(left)).unwrap(), "half of it");
    }

    #[test]
    fn a_name_as_long_as_names_may_be_is_no_trouble() {
        let (folder, _) = start();
        let file = folder.path().join("n".repeat(255));
        for text in ["yesterday's", "today's"] {
            write(&file, text.as_bytes()).unwrap();
            assert_eq!(fs::read_to_string(&file).unwrap(), text);
        }
    }
}
