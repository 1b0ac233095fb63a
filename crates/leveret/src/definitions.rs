//! `--definitions`: a file of definitions that a broker begins with, and `leveret export`'s other half.

use std::io::{self, IsTerminal};
use std::path::{Path, PathBuf};
use std::time::Duration;

use bytesize::ByteSize;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use leveret_management::definitions::{Definitions, Fault, LoadError, Loaded, load};
use leveret_server::{Admin, Beginning};

use crate::whole_file;

const TEMPLATE: &str = "loading definitions [{bar:40}] {pos}/{len} {elapsed}";

/// How often the time in the bar moves on.
const DRAWN_EVERY: Duration = Duration::from_millis(200);

/// The most that a file has. A definition takes some hundred bytes: that is for a million of them.
const BYTES_MAX: ByteSize = ByteSize::mib(512);

/// A file of definitions.
pub(crate) struct File {
    path: PathBuf,
    definitions: Definitions,
}

/// A file that a broker cannot begin with.
#[derive(Debug, thiserror::Error)]
pub(crate) enum FileError {
    #[error("cannot read the definitions {file}: {fault}", file = .0.display(), fault = .1)]
    Unreadable(PathBuf, io::Error),
    #[error("nothing of the definitions {file} was loaded: {fault}", file = .0.display(), fault = .1)]
    Fault(PathBuf, Fault),
    #[error("cannot load the definitions {file}: {error}", file = .0.display(), error = .1)]
    Load(PathBuf, LoadError),
}

impl FileError {
    /// Whether to mend the file would help.
    pub(crate) fn is_at_fault(&self) -> bool {
        !matches!(self, FileError::Load(..))
    }
}

impl File {
    pub(crate) fn read(path: &Path) -> Result<Self, FileError> {
        let text = whole_file::bytes(path, BYTES_MAX).map_err(|error| FileError::Unreadable(path.into(), error))?;
        let definitions = Definitions::parse(&text).map_err(|fault| FileError::Fault(path.into(), fault))?;
        Ok(File { path: path.into(), definitions })
    }

    /// What a new node need not begin with, as the file has it. RabbitMQ: with definitions, there is no default user.
    pub(crate) fn beginning(&self) -> Beginning {
        match (self.definitions.has_users(), self.definitions.has_vhosts()) {
            (true, true) => Beginning::Nothing,
            (true, false) => Beginning::Vhost,
            (false, _) => Beginning::User,
        }
    }

    /// Loads it, and says in the log what of it came to nothing.
    pub(crate) async fn load(self, admin: &Admin) -> Result<(), FileError> {
        let File { path, definitions } = self;
        for ignored in definitions.ignored() {
            tracing::warn!("not supported, and left out of {}: {ignored}", path.display());
        }
        let look = ProgressStyle::with_template(TEMPLATE).unwrap_or_else(|_| ProgressStyle::default_bar());
        let bar = ProgressBar::hidden().with_style(look.progress_chars("=> "));
        if io::stderr().is_terminal() {
            bar.set_draw_target(ProgressDrawTarget::stderr());
            bar.enable_steady_tick(DRAWN_EVERY);
        }
        let drawn = bar.clone();
        let progress = move |done: usize, all: usize| {
            drawn.set_length(all as u64);
            drawn.set_position(done as u64);
        };
        let loaded = load(admin, definitions, progress).await;
        bar.finish_and_clear();
        match loaded {
            Ok(Loaded { users, vhosts, objects, kept, refused }) => {
                for kept in kept {
                    tracing::warn!("it stays as it was: {kept}");
                }
                for refused in refused {
                    tracing::error!("it was not made: {refused}");
                }
                tracing::info!(
                    "loaded the definitions {}: {}, {} and {objects} queues, exchanges, bindings and policies",
                    path.display(),
                    counted(users, "user"),
                    counted(vhosts, "virtual host")
                );
                Ok(())
            }
            Err(LoadError::Fault(fault)) => Err(FileError::Fault(path, fault)),
            Err(error) => Err(FileError::Load(path, error)),
        }
    }
}

/// For example `1 user`.
fn counted(count: usize, thing: &str) -> String {
    format!("{count} {thing}{}", if count == 1 { "" } else { "s" })
}
