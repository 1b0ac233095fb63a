//! `leveret check`: what state a data folder is in.
//!
//! Exit codes: 0 clean, 1 the next start will cut a torn end, 2 damaged, not readable or no journal, 73 the folder is in use.

use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use leveret_server::{Condition, DataDirError};

use crate::configuration::DATA_DIR;
use crate::progress::Waiting;

const REPAIRABLE: u8 = 1;
const DAMAGED: u8 = 2;
const NO_JOURNAL: u8 = 2;
/// `EX_CANTCREAT` of sysexits.h, as for `leveret serve`.
const IN_USE: u8 = 73;

/// Look at the journal of a broker that does not run, and change nothing.
///
/// Prints what is there, and every place that is torn or damaged. The exit code is 0 if the journal is clean, 1 if its end
/// is torn, which the next start cuts, and 2 if something that was durable cannot be read, or there is no journal.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  leveret check --data-dir leveret-data")]
pub(crate) struct Check {
    /// The folder of the broker
    #[arg(long, value_name = "DIR", env = "LEVERET_DATA_DIR", default_value = DATA_DIR)]
    data_dir: PathBuf,
}

pub(crate) fn run(check: &Check) -> ExitCode {
    let waiting = Waiting::begin();
    let checked = leveret_server::check(&check.data_dir);
    drop(waiting);
    match checked {
        Ok((condition, lines)) => {
            let (word, code) = match condition {
                Condition::None => return no_journal(&check.data_dir),
                Condition::Clean => ("clean", ExitCode::SUCCESS),
                Condition::Repairable => ("repairable", ExitCode::from(REPAIRABLE)),
                Condition::Damaged => ("damaged", ExitCode::from(DAMAGED)),
            };
            let lines: Vec<_> = lines.iter().map(String::as_str).chain([word]).collect();
            let text = lines.join("\n") + "\n";
            // The exit code says it, too.
            let _ = io::stdout().write_all(text.as_bytes());
            code
        }
        Err(error) => {
            let _ = writeln!(io::stderr(), "error: {error}");
            ExitCode::from(if matches!(error, DataDirError::InUse { .. }) { IN_USE } else { DAMAGED })
        }
    }
}

fn no_journal(folder: &Path) -> ExitCode {
    let folder = folder.display();
    let _ = writeln!(
        io::stderr(),
        "error: no journal in {folder}; name the data folder of a broker with --data-dir DIR"
    );
    ExitCode::from(NO_JOURNAL)
}
