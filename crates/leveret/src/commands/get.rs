//! `leveret get`.

use std::io;

use leveret_client::AckMode;

use super::output::{Format, write_delivery};
use super::{BrokerUrl, Failure};

/// Take one message out of a queue and print it.
///
/// The message is gone from the queue once it was printed. Exits with 3 when the queue is empty.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  leveret get tasks --format json")]
pub(crate) struct Get {
    /// The queue.
    queue: String,
    /// How the message is printed.
    #[arg(long, value_enum, default_value_t = Format::Text)]
    format: Format,
    #[command(flatten)]
    broker: BrokerUrl,
}

impl Get {
    pub(super) fn run(self) -> Result<(), Failure> {
        let mut connection = self.broker.connect()?;
        let mut channel = connection.open_channel()?;
        let Some(got) = channel.get(&self.queue, AckMode::Manual)? else {
            connection.close()?;
            return Err(Failure::Empty { queue: self.queue });
        };
        // Acked only once it was printed, so that a full disk or a closed pipe does not lose it.
        let printed = write_delivery(&mut io::stdout().lock(), self.format, &got.delivery);
        if printed.is_ok() {
            channel.ack(got.delivery.delivery_tag)?;
        }
        connection.close()?;
        printed.map_err(Failure::Output)
    }
}
