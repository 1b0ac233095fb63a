//! A binding as clients see it, by names.

use leveret_amqp::{FieldTable, ShortString};

use crate::names::{ExchangeName, QueueName};

/// Where a binding leads.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Destination {
    /// To a queue.
    Queue(QueueName),
    /// To an exchange.
    Exchange(ExchangeName),
}

/// A binding. All of it is its identity: two that differ in an argument only are two.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Binding {
    /// The exchange that messages come from.
    pub source: ExchangeName,
    /// Where they go.
    pub destination: Destination,
    /// The binding key.
    pub routing_key: ShortString,
    /// The arguments, sorted by name: the order in which a client wrote them is not part of the identity.
    pub arguments: FieldTable,
}
