//! `leveret export`.

use std::fs::OpenOptions;
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;

use super::{DataDir, Failure};

/// Write all definitions of a running broker in RabbitMQ's JSON, for leveret serve --definitions or for RabbitMQ.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  leveret export --file definitions.json")]
pub(crate) struct Export {
    /// Where to write it, for its owner only; a file that is there is written over [default: standard output]
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
            Some(path) => {
                // There are hashes of passwords in it.
                let file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&path);
                let written = file.and_then(|mut file| file.write_all(&text).and_then(|()| file.sync_all()));
                written.map_err(|error| Failure::File(path, error))?;
            }
        }
        Ok(())
    }
}
