//! A binding as clients see it, by names.

use leveret_amqp::{FieldTable, ShortString, Table};

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
    /// The arguments, sorted by name.
    pub arguments: FieldTable,
}

/// Sorts fields by name: the order in which a client wrote them is not part of a binding's identity.
pub(crate) fn sorted(arguments: Table<'_>) -> FieldTable {
    let mut fields: Vec<_> = arguments.iter().collect();
    fields.sort_by_key(|&(name, _)| name);
    FieldTable::build(|table| {
        for (name, value) in fields {
            table.field(&String::from_utf8_lossy(name), value);
        }
    })
}
