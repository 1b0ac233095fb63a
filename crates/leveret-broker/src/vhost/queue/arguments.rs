//! The `x-` arguments of `queue.declare`. RabbitMQ: `rabbit_amqqueue:declare_args/0`.

use std::time::Duration;

use leveret_amqp::{Table, Value};

use crate::limits::TTL_MAX;

/// What the arguments ask for, checked.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct QueueArguments {
    pub(crate) queue_type: QueueType,
    /// `x-message-ttl`
    pub(crate) message_ttl: Option<Duration>,
    /// `x-expires`
    pub(crate) expires: Option<Duration>,
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
    /// A value of the wrong type or out of range, worded as RabbitMQ words it.
    Value(String),
}

impl std::fmt::Display for ArgumentFault {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            ArgumentFault::NotOfType(queue_type) => write!(f, " of queue type {queue_type}"),
            ArgumentFault::Value(fault) => write!(f, ": {fault}"),
        }
    }
}

/// Known to RabbitMQ, not to Leveret: refused by name rather than ignored.
const NOT_SUPPORTED: &[&str] = &[
    "x-consumer-disconnected-timeout",
    "x-consumer-timeout",
    "x-dead-letter-exchange",
    "x-dead-letter-routing-key",
    "x-dead-letter-strategy",
    "x-delayed-retry-max",
    "x-delayed-retry-min",
    "x-delayed-retry-type",
    "x-delivery-limit",
    "x-max-age",
    "x-max-length",
    "x-max-length-bytes",
    "x-max-priority",
    "x-overflow",
    "x-single-active-consumer",
    "x-stream-filter-size-bytes",
    "x-stream-max-segment-size-bytes",
];

/// Those that a redeclaration must repeat. RabbitMQ compares the arguments of the queue type only.
pub(crate) const COMPARED: &[&str] = &[
    "x-expires",
    "x-message-ttl",
    "x-dead-letter-exchange",
    "x-dead-letter-routing-key",
    "x-max-length",
    "x-max-length-bytes",
    "x-max-priority",
    "x-overflow",
    "x-single-active-consumer",
    "x-queue-type",
];

impl QueueArguments {
    /// Checks the arguments. Names that nobody defined are accepted, as RabbitMQ does.
    pub(crate) fn parse(table: Table<'_>) -> Result<Self, ArgumentError> {
        let mut parsed = QueueArguments::default();
        if let Some(value) = table.get("x-queue-type") {
            parsed.queue_type = match value.as_str() {
                Some("classic") => QueueType::Classic,
                Some("quorum") => QueueType::Quorum,
                Some(other) => {
                    let fault = format!("\"unsupported queue type '{other}'\"");
                    return Err(value_fault("x-queue-type", fault));
                }
                None => {
                    let fault = format!("{{unacceptable_type,{}}}", value.type_name());
                    return Err(value_fault("x-queue-type", fault));
                }
            };
        }
        for (name, _) in table {
            if let Some(&argument) = NOT_SUPPORTED.iter().find(|known| known.as_bytes() == name) {
                let fault = ArgumentFault::NotOfType(parsed.queue_type.as_str());
                return Err(ArgumentError { argument, fault });
            }
        }
        parsed.message_ttl = milliseconds(table, "x-message-ttl", 0)?;
        parsed.expires = milliseconds(table, "x-expires", 1)?;
        if let Some(version) = table.get("x-queue-version")
            && version.as_integer() != Some(2)
        {
            let fault = match version.as_integer() {
                Some(number) => format!("\"unsupported queue version '{number}'\""),
                None => not_an_integer(version),
            };
            return Err(value_fault("x-queue-version", fault));
        }
        Ok(parsed)
    }
}

/// What RabbitMQ says of an argument that should be a number.
pub(crate) fn not_an_integer(value: Value<'_>) -> String {
    format!("\"expected integer, got {}\"", value.type_name())
}

fn value_fault(argument: &'static str, fault: String) -> ArgumentError {
    ArgumentError { argument, fault: ArgumentFault::Value(fault) }
}

/// A duration in milliseconds, from `least` up to ten years. Faults are worded as RabbitMQ's.
fn milliseconds(table: Table<'_>, argument: &'static str, least: i64) -> Result<Option<Duration>, ArgumentError> {
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
