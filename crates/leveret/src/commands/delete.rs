//! `leveret delete`.

use clap::Subcommand;
use leveret_client::DeleteOnly;

use super::arguments::{Pair, parse_pair, table};
use super::{BrokerUrl, Failure};
use crate::control;

/// Delete a queue, an exchange, a binding, a user or a virtual host.
///
/// Deleting a queue, an exchange or a binding that does not exist is not an error.
#[derive(Debug, Subcommand)]
#[command(after_help = "Example:\n  leveret delete queue tasks --if-empty")]
pub(crate) enum Delete {
    #[command(flatten)]
    InVhost(DeleteInVhost),
    User(control::DeleteUser),
    Vhost(control::DeleteVhost),
}

/// What is deleted over AMQP.
#[derive(Debug, Subcommand)]
pub(crate) enum DeleteInVhost {
    Queue(DeleteQueue),
    Exchange(DeleteExchange),
    Binding(DeleteBinding),
}

/// Delete a queue with the messages in it.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  leveret delete queue tasks --if-unused --if-empty")]
pub(crate) struct DeleteQueue {
    /// The queue.
    name: String,
    /// Only if nothing consumes from it.
    #[arg(long)]
    if_unused: bool,
    /// Only if it has no messages.
    #[arg(long)]
    if_empty: bool,
    #[command(flatten)]
    broker: BrokerUrl,
}

/// Delete an exchange with its bindings.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  leveret delete exchange logs --if-unused")]
pub(crate) struct DeleteExchange {
    /// The exchange.
    name: String,
    /// Only if nothing is bound to it.
    #[arg(long)]
    if_unused: bool,
    #[command(flatten)]
    broker: BrokerUrl,
}

/// Take a binding away. Key and arguments must be those it was declared with.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  leveret delete binding logs errors '*.error'")]
pub(crate) struct DeleteBinding {
    /// The exchange the messages come from.
    exchange: String,
    /// The queue they go to.
    queue: String,
    /// The routing key or pattern. Without it the key is empty.
    #[arg(default_value = "", hide_default_value = true)]
    key: String,
    /// An argument the binding was declared with. May be repeated.
    #[arg(long = "arg", value_name = "K=V", value_parser = parse_pair)]
    arguments: Vec<Pair>,
    #[command(flatten)]
    broker: BrokerUrl,
}

impl DeleteInVhost {
    pub(super) fn run(self) -> Result<(), Failure> {
        match self {
            DeleteInVhost::Queue(delete) => {
                let mut connection = delete.broker.connect()?;
                let only = DeleteOnly { if_unused: delete.if_unused, if_empty: delete.if_empty };
                connection.open_channel()?.delete_queue(&delete.name, only)?;
                Ok(connection.close()?)
            }
            DeleteInVhost::Exchange(delete) => {
                let mut connection = delete.broker.connect()?;
                let only = DeleteOnly { if_unused: delete.if_unused, if_empty: false };
                connection.open_channel()?.delete_exchange(&delete.name, only)?;
                Ok(connection.close()?)
            }
            DeleteInVhost::Binding(delete) => {
                let mut connection = delete.broker.connect()?;
                let arguments = table(&delete.arguments);
                let mut channel = connection.open_channel()?;
                channel.unbind_queue(&delete.queue, &delete.exchange, &delete.key, arguments.as_table())?;
                Ok(connection.close()?)
            }
        }
    }
}
