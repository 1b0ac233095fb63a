//! `leveret purge`.

use std::io::{self, Write};

use super::{BrokerUrl, Failure};

/// Drop all messages that are ready in a queue, and print how many they were.
///
/// Messages that a consumer has received and not yet acked are not ready, and stay.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  leveret purge tasks")]
pub(crate) struct Purge {
    /// The queue.
    queue: String,
    #[command(flatten)]
    broker: BrokerUrl,
}

impl Purge {
    pub(super) fn run(self) -> Result<(), Failure> {
        let mut connection = self.broker.connect()?;
        let message_count = connection.open_channel()?.purge_queue(&self.queue)?;
        connection.close()?;
        writeln!(io::stdout(), "{message_count}").map_err(Failure::Output)
    }
}
