//! `leveret close`.

use clap::Subcommand;

use super::{DataDir, Failure, encoded};

/// Close connections of a running broker.
#[derive(Debug, Subcommand)]
#[command(
    after_help = "Example:\n  leveret close connection '127.0.0.1:40000 -> 127.0.0.1:5672' --reason maintenance"
)]
pub(crate) enum Close {
    Connection(CloseConnection),
}

/// Close one connection. Its client is told why.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Example:\n  leveret close connection '127.0.0.1:40000 -> 127.0.0.1:5672' --reason maintenance"
)]
pub(crate) struct CloseConnection {
    /// Its name, as `leveret list connections` shows it.
    name: String,
    /// What the client is told.
    #[arg(long, value_name = "TEXT")]
    reason: Option<String>,
    #[command(flatten)]
    broker: DataDir,
}

impl Close {
    pub(super) fn run(self) -> Result<(), Failure> {
        let Close::Connection(CloseConnection { name, reason, broker }) = self;
        let path = format!("/api/connections/{}", encoded(&name));
        if broker.client()?.delete(&path, reason.as_deref())? { Ok(()) } else { Err(Failure::NoConnection(name)) }
    }
}
