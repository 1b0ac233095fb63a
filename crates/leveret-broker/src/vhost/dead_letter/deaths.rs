//! How a dead-lettered message tells where it died: header `x-death` and its like. RabbitMQ: dead-lettered message
//! headers.
//!
//! Owns: what the headers say, and reading them again. What a client wrote under these names is not believed: only a
//! message with [`History::Deaths`] has died before.
//! Must not know: queues, exchanges, routes.

use std::time::Duration;

use leveret_amqp::{Array, BasicProperties, ContentHeader, FieldTable, ShortStr, Table, Value};

use crate::change::DeathReason;
use crate::limits::DEAD_LETTERS_MAX;
use crate::message::{History, Message};

/// The most that a message keeps of how many were made of it.
const SPREAD_MAX: u8 = 63;

/// What happened to a message.
#[derive(Clone, Copy, Debug)]
pub(super) struct Death<'a> {
    pub(super) reason: DeathReason,
    /// The queue it was in.
    pub(super) queue: &'a str,
    /// By the wall clock, since 1970.
    pub(super) at: Duration,
}

/// Where it goes.
#[derive(Clone, Copy, Debug)]
pub(super) struct Address<'a> {
    pub(super) exchange: ShortStr<'a>,
    /// Instead of all the keys that it was published with.
    pub(super) routing_key: Option<ShortStr<'a>>,
}

/// The message as it goes on: with the headers that tell of its death, and without an expiration of its own.
pub(super) fn with_death(
    message: &Message,
    header: &ContentHeader<'_>,
    death: Death<'_>,
    to: Address<'_>,
) -> Message {
    let headers = header.properties.headers.unwrap_or_default();
    let is_first = message.history() == History::None;
    let before = if is_first { Vec::new() } else { deaths(headers) };
    let (same, others): (Vec<_>, Vec<_>) = before
        .into_iter()
        .partition(|known| names(*known, "queue", death.queue) && reason(*known) == Some(death.reason));
    let latest = match same.first() {
        Some(known) => counted_once_more(*known),
        None => record(message, header, death),
    };
    let keeps = |name: &[u8]| match name {
        b"x-death" | b"x-last-death-exchange" | b"x-last-death-queue" | b"x-last-death-reason" => false,
        b"x-first-death-exchange" | b"x-first-death-queue" | b"x-first-death-reason" => !is_first,
        b"CC" => to.routing_key.is_none(),
        _ => true,
    };
    let told = FieldTable::build(|table| {
        let records = [latest.as_table()].into_iter().chain(others);
        table.fields_of(headers, keeps);
        table.array("x-death", records.map(Value::Table));
        for which in if is_first { &["x-first-death", "x-last-death"][..] } else { &["x-last-death"] } {
            table
                .field(&format!("{which}-exchange"), Value::LongStr(message.exchange().as_bytes()))
                .field(&format!("{which}-queue"), Value::LongStr(death.queue.as_bytes()))
                .field(&format!("{which}-reason"), Value::LongStr(death.reason.as_str().as_bytes()));
        }
    });
    let properties = BasicProperties { expiration: None, ..header.properties };
    let header = ContentHeader { properties, ..*header };
    let (_, routing_key) = message.route_strings();
    let route = (to.exchange, to.routing_key.unwrap_or(routing_key));
    let hidden_keys = message.hidden_keys().filter(|_| to.routing_key.is_none());
    message.rewritten(route, hidden_keys, header, &told, History::Deaths { spread: 0 })
}

/// How often a message has died, this time included, since it was published or somebody rejected it.
pub(super) fn times_since_rejected(message: &Message, header: &ContentHeader<'_>, reason: DeathReason) -> usize {
    match (reason, message.history()) {
        (DeathReason::Rejected, _) => 0,
        (_, History::None) => 1,
        (_, History::Deaths { .. }) => {
            1 + queues_since_rejected(header.properties.headers.unwrap_or_default()).len()
        }
    }
}

/// Whether a message may go on that has died so often without anybody having rejected it, and of which so many were made.
pub(super) fn may_go_on(times: usize, spread: u8) -> bool {
    let times = times as u64;
    times.saturating_mul(times) <= DEAD_LETTERS_MAX >> spread
}

/// How many were made of a message, as in [`History::Deaths`], when it goes to so many queues.
pub(in crate::vhost) fn spread_further(spread: u8, queues: usize) -> u8 {
    let more = usize::BITS - queues.saturating_sub(1).leading_zeros();
    spread.saturating_add(u8::try_from(more).unwrap_or(u8::MAX)).min(SPREAD_MAX)
}

/// The queues in which a message was and from which it came without any client's doing: nobody has rejected it since.
/// It does not enter them again. RabbitMQ: dead letter cycles.
pub(super) fn queues_since_rejected(headers: Table<'_>) -> Vec<&str> {
    let since = deaths(headers).into_iter().take_while(|record| reason(*record) != Some(DeathReason::Rejected));
    since.filter_map(|record| record.get("queue").and_then(Value::as_str)).collect()
}

/// The records of header `x-death`, the latest first.
fn deaths(headers: Table<'_>) -> Vec<Table<'_>> {
    let Some(Value::Array(records)) = headers.get("x-death") else { return Vec::new() };
    tables(records).collect()
}

fn tables(array: Array<'_>) -> impl Iterator<Item = Table<'_>> {
    array.iter().filter_map(|value| if let Value::Table(table) = value { Some(table) } else { None })
}

fn names(record: Table<'_>, field: &str, name: &str) -> bool {
    record.get(field).and_then(Value::as_str) == Some(name)
}

fn reason(record: Table<'_>) -> Option<DeathReason> {
    record.get("reason").and_then(Value::as_str).and_then(DeathReason::parse)
}

/// The first death in this queue for this reason.
fn record(message: &Message, header: &ContentHeader<'_>, death: Death<'_>) -> FieldTable {
    FieldTable::build(|table| {
        if let Some(expiration) = header.properties.expiration {
            table.field("original-expiration", Value::LongStr(expiration));
        }
        let keys = message.visible_keys(header);
        table
            .field("count", Value::I64(1))
            .field("reason", Value::LongStr(death.reason.as_str().as_bytes()))
            .field("queue", Value::LongStr(death.queue.as_bytes()))
            .field("time", Value::Timestamp(death.at.as_secs()))
            .field("exchange", Value::LongStr(message.exchange().as_bytes()))
            .array("routing-keys", keys.into_iter().map(|key| Value::LongStr(key.as_bytes())));
    })
}

/// The same record, but for its count: its time is that of the first death.
fn counted_once_more(record: Table<'_>) -> FieldTable {
    let count = record.get("count").and_then(Value::as_integer).unwrap_or_default();
    FieldTable::build(|table| {
        table.fields_of(record, |name| name == b"original-expiration");
        table.field("count", Value::I64(count.saturating_add(1)));
        table.fields_of(record, |name| name != b"original-expiration" && name != b"count");
    })
}
