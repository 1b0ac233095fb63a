//! The `x-` arguments of `queue.declare`. RabbitMQ: `rabbit_amqqueue:declare_args/0`.

use std::time::Duration;

use leveret_amqp::{FieldTable, ShortString, Table, Value};

use super::settings::{Overflow, QueueKeys, Strategy};
use crate::limits::TTL_MAX;
use crate::names::ExchangeName;

/// What the arguments ask for, checked.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct QueueArguments {
    pub(crate) queue_type: QueueType,
    /// `x-max-priority`: the highest priority that makes a difference; 0 if none does.
    pub(crate) max_priority: u8,
    /// `x-single-active-consumer`
    pub(crate) single_active_consumer: bool,
    /// Those that a policy may have as well, if there are any: most queues have none.
    pub(crate) keys: Option<Box<QueueKeys>>,
}

/// Argument `x-queue-type`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum QueueType {
    #[default]
    Classic,
    Quorum,
}

impl QueueType {
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            QueueType::Classic => "classic",
            QueueType::Quorum => "quorum",
        }
    }
}

/// An argument that a declaration may not have.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ArgumentError {
    /// Its name.
    pub argument: &'static str,
    /// What is wrong with it.
    pub fault: ArgumentFault,
}

/// What is wrong with an argument.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ArgumentFault {
    /// Queues of this type do not have it, or Leveret does not.
    NotOfType(&'static str),
    /// It is no name of an exchange, but of this type.
    NoName(&'static str),
    /// A value of the wrong type or out of range, worded as RabbitMQ words it.
    Value(String),
}

impl std::fmt::Display for ArgumentFault {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            ArgumentFault::NotOfType(queue_type) => write!(f, " of queue type {queue_type}"),
            ArgumentFault::NoName(type_name) => write!(f, " of type {type_name}"),
            ArgumentFault::Value(fault) => write!(f, ": {fault}"),
        }
    }
}

/// Known to RabbitMQ, not to Leveret: refused by name rather than ignored.
const NOT_SUPPORTED: &[&str] = &[
    "x-consumer-disconnected-timeout",
    "x-delayed-retry-max",
    "x-delayed-retry-min",
    "x-delayed-retry-type",
    "x-initial-cluster-size",
    "x-max-age",
    "x-stream-filter-size-bytes",
    "x-stream-max-segment-size-bytes",
];

/// How long a delivery may be held; for a queue, and for a consumer.
pub(crate) const CONSUMER_TIMEOUT: &str = "x-consumer-timeout";

/// What RabbitMQ has for queues of type quorum only.
const QUORUM_ONLY: &[&str] = &[
    "x-dead-letter-strategy",
    "x-delivery-limit",
    "x-max-in-memory-bytes",
    "x-max-in-memory-length",
    "x-quorum-initial-group-size",
];

/// What RabbitMQ has for queues of type classic only.
const CLASSIC_ONLY: &[&str] = &["x-queue-master-locator", "x-queue-mode", "x-queue-version"];

/// What a redeclaration of a classic queue must repeat, in the order in which RabbitMQ compares.
const COMPARED_CLASSIC: &[&str] = &[
    "x-expires",
    "x-message-ttl",
    "x-dead-letter-exchange",
    "x-dead-letter-routing-key",
    "x-max-length",
    "x-max-length-bytes",
    "x-max-priority",
    "x-overflow",
    "x-queue-mode",
    "x-queue-version",
    "x-single-active-consumer",
    "x-queue-type",
    "x-queue-master-locator",
    "x-queue-leader-locator",
    CONSUMER_TIMEOUT,
];

/// The same of a quorum queue.
const COMPARED_QUORUM: &[&str] = &[
    "x-dead-letter-exchange",
    "x-dead-letter-routing-key",
    "x-dead-letter-strategy",
    "x-expires",
    "x-max-length",
    "x-max-length-bytes",
    "x-max-in-memory-length",
    "x-max-in-memory-bytes",
    "x-overflow",
    "x-single-active-consumer",
    "x-queue-type",
    "x-quorum-initial-group-size",
    "x-delivery-limit",
    "x-message-ttl",
    "x-queue-leader-locator",
    CONSUMER_TIMEOUT,
];

/// Those that a redeclaration must repeat. RabbitMQ compares the arguments of the queue type only.
pub(crate) fn compared(queue_type: QueueType) -> impl Iterator<Item = &'static str> {
    let of_type = match queue_type {
        QueueType::Classic => COMPARED_CLASSIC,
        QueueType::Quorum => COMPARED_QUORUM,
    };
    of_type.iter().copied()
}

/// What RabbitMQ has for consumers of streams only.
const STREAM_CONSUMERS_ONLY: &[&str] = &["x-stream-filter", "x-stream-match-unfiltered", "x-stream-offset"];

/// Refuses arguments of `basic.consume` that consumers of this type of queue do not have.
pub(crate) fn check_consumer(table: Table<'_>, queue_type: QueueType) -> Result<(), ArgumentError> {
    match STREAM_CONSUMERS_ONLY.iter().find(|&&argument| table.get(argument).is_some()) {
        Some(&argument) => Err(ArgumentError { argument, fault: ArgumentFault::NotOfType(queue_type.as_str()) }),
        None => Ok(()),
    }
}

impl QueueArguments {
    /// Checks the arguments. Names that nobody defined are accepted, as RabbitMQ does.
    pub(crate) fn parse(table: Table<'_>) -> Result<Self, ArgumentError> {
        let dead_letter_exchange = dead_letter_exchange(table)?;
        let queue_type = queue_type(table)?;
        let dead_letter_routing_key = dead_letter_routing_key(table, dead_letter_exchange.is_some())?;
        let dead_letter_strategy = match queue_type {
            QueueType::Classic => None,
            QueueType::Quorum => one_of(table, "x-dead-letter-strategy", STRATEGIES, "invalid_dlx_strategy")?,
        };
        let overflow = one_of(table, "x-overflow", OVERFLOWS, "invalid_overflow")?;
        let message_ttl = milliseconds(table, "x-message-ttl", 0)?;
        let expires = milliseconds(table, "x-expires", 1)?;
        let max_length = count(table, "x-max-length")?;
        let max_length_bytes = count(table, "x-max-length-bytes")?;
        let max_priority = max_priority(table, queue_type)?;
        let single_active_consumer = flag(table, "x-single-active-consumer")?;
        let delivery_limit = delivery_limit(table, queue_type)?;
        let consumer_timeout = milliseconds(table, CONSUMER_TIMEOUT, 1)?;
        let keys = QueueKeys {
            message_ttl,
            expires,
            max_length,
            max_length_bytes,
            overflow,
            dead_letter_exchange,
            dead_letter_routing_key,
            dead_letter_strategy,
            delivery_limit,
            consumer_timeout,
        };
        let keys = (keys != QueueKeys::default()).then(|| Box::new(keys));
        let parsed = QueueArguments { queue_type, max_priority, single_active_consumer, keys };
        // These change nothing here, and what RabbitMQ does not understand in them is refused all the same.
        count(table, "x-max-in-memory-length")?;
        count(table, "x-max-in-memory-bytes")?;
        one_of(table, "x-queue-leader-locator", LEADER_LOCATORS, "invalid_queue_locator_arg")?;
        check_group_size(table)?;
        if queue_type == QueueType::Classic {
            check_mode(table)?;
            check_version(table)?;
        }
        let of_other_type = if queue_type == QueueType::Classic { QUORUM_ONLY } else { CLASSIC_ONLY };
        for (name, _) in table {
            let is_named = |known: &&&str| known.as_bytes() == name;
            if let Some(&argument) = NOT_SUPPORTED.iter().chain(of_other_type).find(is_named) {
                return Err(ArgumentError { argument, fault: ArgumentFault::NotOfType(queue_type.as_str()) });
            }
        }
        Ok(parsed)
    }

    /// What they mean to a queue that is there already, and the first of them that this version does not know or have: that
    /// is as if it were not there, as the messages of the queue must not be lost with it.
    pub(crate) fn parse_known(table: Table<'_>) -> (Self, Option<ArgumentError>) {
        let error = match Self::parse(table) {
            Ok(parsed) => return (parsed, None),
            Err(error) => error,
        };
        let is_there = table.get(error.argument).is_some();
        // One that is missing leaves no sense in the others.
        let others = FieldTable::build(|others| {
            others.fields_of(table, |name| is_there && name != error.argument.as_bytes());
        });
        let (parsed, _) = Self::parse_known(others.as_table());
        (parsed, Some(error))
    }
}

pub(crate) const OVERFLOWS: &[(&str, Overflow)] = &[
    ("drop-head", Overflow::DropHead),
    ("reject-publish", Overflow::RejectPublish),
    ("reject-publish-dlx", Overflow::RejectPublishDlx),
];

pub(crate) const STRATEGIES: &[(&str, Strategy)] =
    &[("at-most-once", Strategy::AtMostOnce), ("at-least-once", Strategy::AtLeastOnce)];

pub(crate) const LEADER_LOCATORS: &[(&str, ())] =
    &[("client-local", ()), ("balanced", ()), ("random", ()), ("least-leaders", ()), ("min-masters", ())];

fn queue_type(table: Table<'_>) -> Result<QueueType, ArgumentError> {
    let Some(value) = table.get("x-queue-type") else { return Ok(QueueType::default()) };
    match value.as_str() {
        Some("classic") => Ok(QueueType::Classic),
        Some("quorum") => Ok(QueueType::Quorum),
        Some(other) => Err(value_fault("x-queue-type", format!("\"unsupported queue type '{other}'\""))),
        None => Err(unacceptable("x-queue-type", value)),
    }
}

/// RabbitMQ checks the type of the exchange's name before all other arguments, with a text of its own.
fn dead_letter_exchange(table: Table<'_>) -> Result<Option<ExchangeName>, ArgumentError> {
    let argument = "x-dead-letter-exchange";
    let Some(value) = table.get(argument) else { return Ok(None) };
    let fault = ArgumentFault::NoName(value.type_name());
    let text = value.as_str().ok_or(ArgumentError { argument, fault })?;
    short(argument, text).map(|name| Some(name.into()))
}

/// RabbitMQ: of no use without an exchange.
fn dead_letter_routing_key(table: Table<'_>, has_exchange: bool) -> Result<Option<ShortString>, ArgumentError> {
    let argument = "x-dead-letter-routing-key";
    let Some(value) = table.get(argument) else { return Ok(None) };
    let key = short(argument, value.as_str().ok_or_else(|| unacceptable(argument, value))?)?;
    if has_exchange { Ok(Some(key)) } else { Err(value_fault(argument, "routing_key_but_no_dlx_defined".into())) }
}

fn short(argument: &'static str, text: &str) -> Result<ShortString, ArgumentError> {
    ShortString::new(text).map_err(|_| value_fault(argument, "\"longer than 255 bytes\"".into()))
}

/// How often a message may fail, in a quorum queue. A negative number is no limit.
fn delivery_limit(table: Table<'_>, queue_type: QueueType) -> Result<Option<i64>, ArgumentError> {
    let argument = "x-delivery-limit";
    match (queue_type, table.get(argument)) {
        (QueueType::Classic, _) | (QueueType::Quorum, None) => Ok(None),
        (QueueType::Quorum, Some(value)) => {
            value.as_integer().map(Some).ok_or_else(|| value_fault(argument, not_an_integer(value)))
        }
    }
}

/// RabbitMQ: queues of type quorum pass over it, as they know priorities anyhow.
fn max_priority(table: Table<'_>, queue_type: QueueType) -> Result<u8, ArgumentError> {
    let argument = "x-max-priority";
    match (queue_type, table.get(argument)) {
        (QueueType::Quorum, _) | (_, None) => Ok(0),
        (QueueType::Classic, Some(_)) => {
            let number = count(table, argument)?.unwrap_or_default();
            u8::try_from(number).map_err(|_| value_fault(argument, format!("{{max_value_exceeded,{number}}}")))
        }
    }
}

fn check_group_size(table: Table<'_>) -> Result<(), ArgumentError> {
    let argument = "x-quorum-initial-group-size";
    match count(table, argument)? {
        Some(0) => Err(value_fault(argument, "{value_zero,0}".into())),
        Some(_) | None => Ok(()),
    }
}

fn check_mode(table: Table<'_>) -> Result<(), ArgumentError> {
    let Some(value) = table.get("x-queue-mode") else { return Ok(()) };
    match value.as_str() {
        Some("default" | "lazy") => Ok(()),
        Some(other) => Err(value_fault("x-queue-mode", format!("\"unsupported queue mode '{other}'\""))),
        None => Err(unacceptable("x-queue-mode", value)),
    }
}

fn check_version(table: Table<'_>) -> Result<(), ArgumentError> {
    let Some(version) = table.get("x-queue-version") else { return Ok(()) };
    match version.as_integer() {
        Some(2) => Ok(()),
        Some(number) => Err(value_fault("x-queue-version", format!("\"unsupported queue version '{number}'\""))),
        None => Err(value_fault("x-queue-version", not_an_integer(version))),
    }
}

/// One of some words. RabbitMQ names the fault of any other.
fn one_of<T: Copy>(
    table: Table<'_>,
    argument: &'static str,
    words: &[(&str, T)],
    fault: &str,
) -> Result<Option<T>, ArgumentError> {
    let Some(value) = table.get(argument) else { return Ok(None) };
    let Value::LongStr(given) = value else { return Err(unacceptable(argument, value)) };
    match words.iter().find(|(word, _)| word.as_bytes() == given) {
        Some(&(_, meaning)) => Ok(Some(meaning)),
        None => Err(value_fault(argument, fault.into())),
    }
}

fn flag(table: Table<'_>, argument: &'static str) -> Result<bool, ArgumentError> {
    match table.get(argument) {
        None => Ok(false),
        Some(Value::Bool(flag)) => Ok(flag),
        Some(value) => Err(unacceptable(argument, value)),
    }
}

/// A number that is not negative.
fn count(table: Table<'_>, argument: &'static str) -> Result<Option<u64>, ArgumentError> {
    let Some(value) = table.get(argument) else { return Ok(None) };
    let Some(number) = value.as_integer() else { return Err(value_fault(argument, not_an_integer(value))) };
    match u64::try_from(number) {
        Ok(number) => Ok(Some(number)),
        Err(_) => Err(value_fault(argument, format!("{{value_negative,{number}}}"))),
    }
}

fn unacceptable(argument: &'static str, value: Value<'_>) -> ArgumentError {
    value_fault(argument, format!("{{unacceptable_type,{}}}", value.type_name()))
}

/// What RabbitMQ says of an argument that should be a number.
pub(crate) fn not_an_integer(value: Value<'_>) -> String {
    format!("\"expected integer, got {}\"", value.type_name())
}

pub(crate) fn value_fault(argument: &'static str, fault: String) -> ArgumentError {
    ArgumentError { argument, fault: ArgumentFault::Value(fault) }
}

/// A duration in milliseconds, from `least` up to ten years. Faults are worded as RabbitMQ's.
pub(crate) fn milliseconds(
    table: Table<'_>,
    argument: &'static str,
    least: i64,
) -> Result<Option<Duration>, ArgumentError> {
    let Some(value) = table.get(argument) else { return Ok(None) };
    let refuse = |fault: String| Err(value_fault(argument, fault));
    let Some(number) = value.as_integer() else {
        return refuse(not_an_integer(value));
    };
    if number < 0 {
        return refuse(format!("{{value_negative,{number}}}"));
    }
    if number < least {
        return refuse(format!("{{value_zero,{number}}}"));
    }
    let duration = Duration::from_millis(number.unsigned_abs());
    if duration > TTL_MAX {
        return refuse(format!("{{value_too_large,{number}}}"));
    }
    Ok(Some(duration))
}

/// A value as RabbitMQ shows it in reply texts, near enough to be recognised.
pub(crate) fn shown(value: Value<'_>) -> String {
    match value {
        Value::LongStr(bytes) | Value::Bytes(bytes) => format!("'{}'", String::from_utf8_lossy(bytes)),
        Value::Bool(flag) => flag.to_string(),
        Value::Void => "undefined".into(),
        Value::F32(n) => n.to_string(),
        Value::F64(n) => n.to_string(),
        Value::Timestamp(n) => n.to_string(),
        Value::Decimal(scale, digits) => format!("{{{scale},{digits}}}"),
        Value::Array(array) => format!("{array:?}"),
        Value::Table(table) => format!("{table:?}"),
        Value::I8(_)
        | Value::U8(_)
        | Value::I16(_)
        | Value::U16(_)
        | Value::I32(_)
        | Value::U32(_)
        | Value::I64(_) => value.as_integer().unwrap_or_default().to_string(),
    }
}
