//! `leveret declare`.

use std::io::{self, Write};

use clap::Subcommand;
use leveret_client::{ExchangeOptions, QueueOptions};

use super::arguments::{Pair, parse_pair, table};
use super::{BrokerUrl, Failure};

/// Create a queue, an exchange or a binding, unless it is there already.
///
/// Declaring what exists with the same properties does nothing; with other properties it is refused.
#[derive(Debug, Subcommand)]
#[command(after_help = "Example:\n  leveret declare queue tasks --durable")]
pub(crate) enum Declare {
    Queue(DeclareQueue),
    Exchange(DeclareExchange),
    Binding(DeclareBinding),
}

/// Create a queue.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  leveret declare queue tasks --durable --arg x-message-ttl=60000")]
pub(crate) struct DeclareQueue {
    /// The name. With an empty name ('') the broker makes one up, and it is printed.
    name: String,
    /// Ask for a queue that survives a restart of the broker.
    #[arg(long)]
    durable: bool,
    /// Only the connection that declares the queue may use it. This command closes its own at once, and the queue
    /// with it, so the option serves to try whether the broker allows it.
    #[arg(long)]
    exclusive: bool,
    /// The queue is deleted when its last consumer leaves.
    #[arg(long)]
    auto_delete: bool,
    /// An argument, such as x-message-ttl=60000. Integers, true and false get their type, anything else is text.
    /// May be repeated.
    #[arg(long = "arg", value_name = "K=V", value_parser = parse_pair)]
    arguments: Vec<Pair>,
    #[command(flatten)]
    broker: BrokerUrl,
}

/// Create an exchange, which hands messages on to the queues bound to it.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  leveret declare exchange logs topic --durable")]
pub(crate) struct DeclareExchange {
    /// The name.
    name: String,
    /// How messages find their queues: direct (the routing key is equal), fanout (to every queue), topic (the
    /// routing key fits a pattern), headers (the headers fit), or another type that the broker has.
    #[arg(value_name = "TYPE", default_value = "direct")]
    type_: String,
    /// Ask for an exchange that survives a restart of the broker.
    #[arg(long)]
    durable: bool,
    /// The exchange is deleted with its last binding.
    #[arg(long)]
    auto_delete: bool,
    /// Clients may not publish to the exchange; it gets messages from other exchanges only.
    #[arg(long)]
    internal: bool,
    /// An argument, such as alternate-exchange=unrouted. Integers, true and false get their type, anything else is
    /// text. May be repeated.
    #[arg(long = "arg", value_name = "K=V", value_parser = parse_pair)]
    arguments: Vec<Pair>,
    #[command(flatten)]
    broker: BrokerUrl,
}

/// Bind a queue to an exchange, so that it gets messages from there.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  leveret declare binding logs errors '*.error'")]
pub(crate) struct DeclareBinding {
    /// The exchange the messages come from.
    exchange: String,
    /// The queue they go to.
    queue: String,
    /// The routing key, or for a topic exchange the pattern. Without it the key is empty.
    #[arg(default_value = "", hide_default_value = true)]
    key: String,
    /// An argument, such as x-match=any for a headers exchange. Integers, true and false get their type, anything
    /// else is text. May be repeated.
    #[arg(long = "arg", value_name = "K=V", value_parser = parse_pair)]
    arguments: Vec<Pair>,
    #[command(flatten)]
    broker: BrokerUrl,
}

impl Declare {
    pub(super) fn run(self) -> Result<(), Failure> {
        match self {
            Declare::Queue(declare) => declare.run(),
            Declare::Exchange(declare) => declare.run(),
            Declare::Binding(declare) => declare.run(),
        }
    }
}

impl DeclareQueue {
    fn run(self) -> Result<(), Failure> {
        let mut connection = self.broker.connect()?;
        let arguments = table(&self.arguments);
        let options = QueueOptions {
            durable: self.durable,
            exclusive: self.exclusive,
            auto_delete: self.auto_delete,
            arguments: arguments.as_table(),
        };
        let declared = connection.open_channel()?.declare_queue(&self.name, &options)?;
        connection.close()?;
        if self.name.is_empty() {
            writeln!(io::stdout(), "{}", declared.name).map_err(Failure::Output)?;
        }
        Ok(())
    }
}

impl DeclareExchange {
    fn run(self) -> Result<(), Failure> {
        let mut connection = self.broker.connect()?;
        let arguments = table(&self.arguments);
        let options = ExchangeOptions {
            durable: self.durable,
            auto_delete: self.auto_delete,
            internal: self.internal,
            arguments: arguments.as_table(),
        };
        connection.open_channel()?.declare_exchange(&self.name, &self.type_, &options)?;
        Ok(connection.close()?)
    }
}

impl DeclareBinding {
    fn run(self) -> Result<(), Failure> {
        let mut connection = self.broker.connect()?;
        let arguments = table(&self.arguments);
        let mut channel = connection.open_channel()?;
        channel.bind_queue(&self.queue, &self.exchange, &self.key, arguments.as_table())?;
        Ok(connection.close()?)
    }
}
