//! What an exchange of type `x-consistent-hash` hashes, and what its arguments and bindings may say.
//!
//! A hash never changes: with another one, every message would go to another queue after an upgrade.

use std::hash::Hasher;

use leveret_amqp::{BasicProperties, Table, Value};
use siphasher::sip::SipHasher13;

use crate::limits::BINDING_WEIGHT_MAX;
use crate::vhost::exchange::headers::{erlang_term, push_header};

/// What is hashed of a message. RabbitMQ: a message without it goes where all of these go.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum HashOn {
    /// The first of its routing keys.
    RoutingKey,
    /// Argument `hash-header`.
    Header(Box<[u8]>),
    /// Argument `hash-property`.
    Property(Property),
}

/// A property that may be hashed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Property {
    CorrelationId,
    MessageId,
    Timestamp,
}

/// An argument of `exchange.declare` that is refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum InvalidArgument {
    /// It has a value that it may not have, in RabbitMQ's words.
    Value(String),
    /// It has a type that it may not have. RabbitMQ fails with 541 here.
    Type { argument: &'static str, type_name: &'static str },
}

impl HashOn {
    /// What the arguments of an exchange say.
    pub(crate) fn of(arguments: Table<'_>) -> Result<Self, InvalidArgument> {
        let string = |argument| match arguments.get(argument) {
            None => Ok(None),
            Some(Value::LongStr(bytes)) => Ok(Some(bytes)),
            Some(value) => Err(InvalidArgument::Type { argument, type_name: value.type_name() }),
        };
        match (string("hash-header")?, string("hash-property")?) {
            (None, None) => Ok(HashOn::RoutingKey),
            (Some(header), None) => Ok(HashOn::Header(header.into())),
            (None, Some(b"correlation_id")) => Ok(HashOn::Property(Property::CorrelationId)),
            (None, Some(b"message_id")) => Ok(HashOn::Property(Property::MessageId)),
            (None, Some(b"timestamp")) => Ok(HashOn::Property(Property::Timestamp)),
            (None, Some(other)) => {
                let fault = format!("Unsupported property: {}", String::from_utf8_lossy(other));
                Err(InvalidArgument::Value(fault))
            }
            (Some(_), Some(_)) => {
                let fault = "hash-header and hash-property are mutually exclusive";
                Err(InvalidArgument::Value(fault.to_owned()))
            }
        }
    }

    /// The hash of a message. `room` is for what has to be written down for it.
    pub(crate) fn hash(&self, routing_key: &str, properties: &BasicProperties<'_>, room: &mut Vec<u8>) -> u64 {
        room.clear();
        match self {
            HashOn::RoutingKey => room.extend_from_slice(routing_key.as_bytes()),
            HashOn::Header(name) => {
                let headers = properties.headers.unwrap_or(Table::EMPTY);
                // As for a headers exchange, the last of several counts.
                if let Some((_, value)) = headers.iter().filter(|(other, _)| *other == &**name).last() {
                    push_header(room, value);
                }
            }
            HashOn::Property(Property::CorrelationId) => {
                room.extend_from_slice(properties.correlation_id.unwrap_or_default());
            }
            HashOn::Property(Property::MessageId) => {
                room.extend_from_slice(properties.message_id.unwrap_or_default());
            }
            HashOn::Property(Property::Timestamp) => {
                room.extend(properties.timestamp.iter().flat_map(|seconds| seconds.to_be_bytes()));
            }
        }
        hash_of(room)
    }
}

/// The hash of a routing key or a name.
pub(crate) fn hash_of(bytes: &[u8]) -> u64 {
    let mut hasher = SipHasher13::new();
    hasher.write(bytes);
    hasher.finish()
}

/// The hash of several, in their order.
pub(crate) fn hash_of_all(keys: &[&str]) -> u64 {
    let mut hasher = SipHasher13::new();
    for key in keys {
        hasher.write(&(key.len() as u64).to_le_bytes());
        hasher.write(key.as_bytes());
    }
    hasher.finish()
}

/// The weight that a binding key says, or RabbitMQ's words for what is wrong with it.
pub(crate) fn weight_of(routing_key: &str) -> Result<u32, String> {
    let digits = routing_key.strip_prefix(['+', '-']).unwrap_or(routing_key);
    if digits.is_empty() || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        let key = erlang_term(Value::LongStr(routing_key.as_bytes()));
        return Err(format!("The binding key must be an integer: {key}"));
    }
    let is_zero = digits.bytes().all(|byte| byte == b'0');
    if is_zero || routing_key.starts_with('-') {
        return Err("The binding key must be greater than 0".to_owned());
    }
    // A RabbitMQ that has a bound has a lower one.
    let weight = digits.parse().ok().filter(|&weight| weight <= BINDING_WEIGHT_MAX);
    weight.ok_or_else(|| format!("The binding key must not be greater than {BINDING_WEIGHT_MAX}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hashes_stay_what_they_are() {
        // SipHash-1-3 with a key of zeros.
        assert_eq!(hash_of(b""), 0xD1FB_A762_150C_532C);
    }

    #[test]
    fn a_weight_is_a_number_from_1_on_as_erlang_reads_it() {
        for (key, weight) in [("1", 1), ("+7", 7), ("0010", 10), ("1000000000", 1_000_000_000)] {
            assert_eq!(weight_of(key), Ok(weight));
        }
        for (key, fault) in [
            ("", "The binding key must be an integer: <<>>"),
            ("-", "The binding key must be an integer: <<\"-\">>"),
            ("1.5", "The binding key must be an integer: <<\"1.5\">>"),
            (" 1", "The binding key must be an integer: <<\" 1\">>"),
            ("0", "The binding key must be greater than 0"),
            ("-3", "The binding key must be greater than 0"),
            ("99999999999999999999999", "The binding key must not be greater than 1000000000"),
            ("1000000001", "The binding key must not be greater than 1000000000"),
        ] {
            assert_eq!(weight_of(key), Err(fault.to_owned()));
        }
    }
}
