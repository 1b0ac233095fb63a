//! `leveret completions`.

use std::io::{self, Write};

use clap_complete::Shell;

use super::Failure;

/// Print a script with which a shell completes the commands and options of leveret.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Example, for bash:\n  leveret completions bash > ~/.local/share/bash-completion/completions/leveret"
)]
pub(crate) struct Completions {
    /// The shell.
    shell: Shell,
}

impl Completions {
    pub(super) fn run(self, mut cli: clap::Command) -> Result<(), Failure> {
        // Into memory first: the generator panics when the output is closed.
        let mut script = Vec::new();
        clap_complete::generate(self.shell, &mut cli, "leveret", &mut script);
        io::stdout().write_all(&script).map_err(Failure::Output)
    }
}
