//! `leveret export`.

use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use super::{DataDir, Failure};

/// Write all definitions of a running broker in RabbitMQ's JSON, for leveret serve --definitions or for RabbitMQ.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  leveret export --file definitions.json")]
pub(crate) struct Export {
    /// Where to write it, for its owner only; a file that is there is replaced when all is written [default: standard output]
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

/// Writes a file as a whole or not at all: what was there before stays until all that replaces it is on disk.
fn write(path: &Path, text: &[u8]) -> io::Result<()> {
    // Where a link leads.
    let path = fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
    let there = fs::metadata(&path).ok();
    if there.as_ref().is_some_and(|there| !there.is_file()) {
        // A device or a pipe has nothing to lose.
        return OpenOptions::new().write(true).open(&path)?.write_all(text);
    }
    let name = path.file_name().ok_or(io::ErrorKind::InvalidInput)?.to_string_lossy();
    let beside = path.with_file_name(format!(".{name}.{}", std::process::id()));
    let mode = there.map_or(OWNER_ONLY, |there| there.permissions().mode());
    let written = write_new(&beside, mode, text).and_then(|()| fs::rename(&beside, &path));
    if written.is_err() {
        let _ = fs::remove_file(&beside);
    }
    written
}

fn write_new(path: &Path, mode: u32, text: &[u8]) -> io::Result<()> {
    let mut file = File::options().write(true).create_new(true).mode(OWNER_ONLY).open(path)?;
    file.set_permissions(Permissions::from_mode(mode))?;
    file.write_all(text)?;
    file.sync_all()
}
