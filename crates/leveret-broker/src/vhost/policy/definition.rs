//! What a policy says: its keys and values, checked and merged. RabbitMQ: `rabbit_policies`.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use leveret_amqp::{FieldTable, ShortString, Table, Value};

use super::{InvalidPolicy, PolicyKind};
use crate::Shortened;
use crate::limits::TTL_MAX;
use crate::names::ExchangeName;
use crate::vhost::queue::arguments::{LEADER_LOCATORS, OVERFLOWS, STRATEGIES};
use crate::vhost::queue::{QueueKeys, QueueType, least_limit};

/// A definition, understood.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Definition {
    pub(crate) queue: QueueKeys,
    /// `alternate-exchange`, for exchanges.
    pub(crate) alternate_exchange: Option<ExchangeName>,
    /// It has a key that queues of type classic do not have.
    not_classic: bool,
    /// It has a key that queues of type quorum do not have.
    not_quorum: bool,
}

/// RabbitMQ: `unsupported_policies` of classic queues.
const NOT_CLASSIC: &[&str] =
    &["dead-letter-strategy", "delivery-limit", "max-in-memory-bytes", "max-in-memory-length"];

/// The same of quorum queues.
const NOT_QUORUM: &[&str] = &["queue-mode"];

/// What operator policies may say. RabbitMQ: `operator_policy_validator`.
const OPERATOR: &[&str] = &[
    "delivery-limit",
    "expires",
    "max-in-memory-bytes",
    "max-in-memory-length",
    "max-length",
    "max-length-bytes",
    "message-ttl",
    "overflow",
    "queue-version",
];

const MIRRORS: &str = "mirrored queues";
const FEDERATION: &str = "federation";
const STREAMS: &str = "streams";
const MEMBERS: &str = "replication";
const RETRIES: &str = "delayed retries";

/// Known to RabbitMQ, for what is not here: refused rather than ignored.
pub(super) const ABSENT: &[(&str, &str)] = &[
    ("consumer-disconnected-timeout", MEMBERS),
    ("delayed-retry-max", RETRIES),
    ("delayed-retry-min", RETRIES),
    ("delayed-retry-type", RETRIES),
    ("federation-upstream", FEDERATION),
    ("federation-upstream-pattern", FEDERATION),
    ("federation-upstream-set", FEDERATION),
    ("filter-field-names", STREAMS),
    ("ha-mode", MIRRORS),
    ("ha-params", MIRRORS),
    ("ha-promote-on-failure", MIRRORS),
    ("ha-promote-on-shutdown", MIRRORS),
    ("ha-sync-batch-size", MIRRORS),
    ("ha-sync-mode", MIRRORS),
    ("initial-cluster-size", STREAMS),
    ("max-age", STREAMS),
    ("max-segment-size", STREAMS),
    ("queue-master-locator", MIRRORS),
    ("stream-filter-size-bytes", STREAMS),
    ("stream-max-segment-size-bytes", STREAMS),
    ("target-group-size", MEMBERS),
];

impl Definition {
    /// Checks a definition.
    pub(super) fn parse(kind: PolicyKind, table: Table<'_>) -> Result<Self, InvalidPolicy> {
        if table.is_empty() {
            return Err(InvalidPolicy::Empty);
        }
        let mut definition = Definition::default();
        let mut seen = BTreeSet::new();
        let mut unrecognised = Vec::new();
        for (name, value) in table {
            let name = std::str::from_utf8(name).unwrap_or_default();
            if !seen.insert(name) {
                return Err(InvalidPolicy::Duplicate(name.to_owned()));
            }
            if let Some(&(key, subject)) = ABSENT.iter().find(|(absent, _)| *absent == name) {
                return Err(InvalidPolicy::Absent { key, subject });
            }
            let is_allowed = kind == PolicyKind::Policy || OPERATOR.contains(&name);
            if !is_allowed || !definition.take(name, value)? {
                let (name, value) = (term(Value::LongStr(name.as_bytes())), term(value));
                unrecognised.push(format!("{{{},{}}}", Shortened(&name), Shortened(&value)));
            }
        }
        if !unrecognised.is_empty() {
            return Err(InvalidPolicy::Unrecognised(format!("[{}]", unrecognised.join(","))));
        }
        let has = |keys: &[&str]| keys.iter().any(|key| seen.contains(key));
        (definition.not_classic, definition.not_quorum) = (has(NOT_CLASSIC), has(NOT_QUORUM));
        Ok(definition)
    }

    /// Takes in one key; false if nobody knows it.
    fn take(&mut self, name: &str, value: Value<'_>) -> Result<bool, InvalidPolicy> {
        let invalid = |meaning| InvalidPolicy::Value { value: term(value), meaning };
        let milliseconds = |least| {
            let time = u64::try_from(value.as_integer()?).ok().filter(|&number| number >= least)?;
            Some(Duration::from_millis(time)).filter(|&time| time <= TTL_MAX)
        };
        let count = || u64::try_from(value.as_integer()?).ok();
        let word = || ShortString::new(value.as_str()?).ok();
        let keys = &mut self.queue;
        match name {
            "message-ttl" => keys.message_ttl = Some(milliseconds(0).ok_or(invalid("message TTL"))?),
            "expires" => keys.expires = Some(milliseconds(1).ok_or(invalid("queue expiry"))?),
            "max-length" => keys.max_length = Some(count().ok_or(invalid("maximum length"))?),
            "max-length-bytes" => {
                keys.max_length_bytes = Some(count().ok_or(invalid("maximum length in bytes"))?);
            }
            "overflow" => keys.overflow = Some(one_of(value, OVERFLOWS).ok_or(invalid("overflow value"))?),
            "dead-letter-exchange" => {
                let name = word().ok_or(invalid("dead letter exchange name"))?;
                keys.dead_letter_exchange = Some(name.into());
            }
            "dead-letter-routing-key" => {
                keys.dead_letter_routing_key = Some(word().ok_or(invalid("dead letter routing key"))?);
            }
            "dead-letter-strategy" => {
                keys.dead_letter_strategy = Some(one_of(value, STRATEGIES).ok_or(invalid("dead letter strategy"))?);
            }
            "delivery-limit" => {
                keys.delivery_limit = Some(value.as_integer().ok_or(invalid("delivery limit"))?);
            }
            "consumer-timeout" => {
                keys.consumer_timeout = Some(milliseconds(1).ok_or(invalid("consumer timeout"))?);
            }
            "alternate-exchange" => {
                let name = word().ok_or(invalid("alternate exchange name"))?;
                self.alternate_exchange = Some(name.into());
            }
            // These change nothing here, and what RabbitMQ does not understand in them is refused all the same.
            "max-in-memory-length" | "max-in-memory-bytes" => {
                count().ok_or(invalid("maximum memory in bytes"))?;
            }
            "queue-mode" => {
                value
                    .as_str()
                    .filter(|mode| matches!(*mode, "default" | "lazy"))
                    .ok_or(invalid("queue-mode value"))?;
            }
            "queue-version" => {
                value.as_integer().filter(|&version| version == 2).ok_or(invalid("queue-version value"))?;
            }
            "queue-leader-locator" => {
                one_of(value, LEADER_LOCATORS).ok_or(invalid("queue leader locator value"))?;
            }
            _ => return Ok(false),
        }
        Ok(true)
    }

    /// Whether queues of this type have all of its keys.
    pub(super) fn is_for(&self, queue_type: QueueType) -> bool {
        match queue_type {
            QueueType::Classic => !self.not_classic,
            QueueType::Quorum => !self.not_quorum,
        }
    }
}

fn one_of<T: Copy>(value: Value<'_>, words: &[(&str, T)]) -> Option<T> {
    let given = value.as_str()?;
    words.iter().find(|(word, _)| *word == given).map(|&(_, meaning)| meaning)
}

/// A policy and an operator policy in one, by the names of their keys. RabbitMQ: of two numbers the less, else what the
/// operator policy says.
pub(super) fn merged(policy: Table<'_>, operator: Table<'_>) -> FieldTable {
    let mut fields: BTreeMap<&[u8], Value<'_>> = policy.iter().collect();
    for (name, limit) in operator {
        let field = fields.entry(name).or_insert(limit);
        *field = match (field.as_integer(), limit.as_integer()) {
            (Some(a), Some(b)) => least_limit(Some(a), Some(b)).map_or(limit, Value::I64),
            _ => limit,
        };
    }
    FieldTable::build(|table| {
        for (name, value) in fields {
            table.field(std::str::from_utf8(name).unwrap_or_default(), value);
        }
    })
}

/// A value as Erlang writes it.
fn term(value: Value<'_>) -> String {
    match value {
        Value::LongStr(bytes) | Value::Bytes(bytes) => {
            let text = String::from_utf8_lossy(bytes);
            let text = text.replace('\\', "\\\\").replace('"', "\\\"");
            let form = if text.is_ascii() { "" } else { "/utf8" };
            format!("<<\"{text}\"{form}>>")
        }
        Value::Bool(flag) => flag.to_string(),
        Value::Void => "null".into(),
        Value::F32(n) => format!("{n:?}"),
        Value::F64(n) => format!("{n:?}"),
        Value::Timestamp(n) => n.to_string(),
        Value::Decimal(scale, digits) => format!("{{{scale},{digits}}}"),
        Value::Array(array) => format!("[{}]", array.iter().map(term).collect::<Vec<_>>().join(",")),
        Value::Table(table) => {
            let field = |(name, value)| format!("{} => {}", term(Value::LongStr(name)), term(value));
            format!("#{{{}}}", table.iter().map(field).collect::<Vec<_>>().join(","))
        }
        Value::I8(_)
        | Value::U8(_)
        | Value::I16(_)
        | Value::U16(_)
        | Value::I32(_)
        | Value::U32(_)
        | Value::I64(_) => value.as_integer().unwrap_or_default().to_string(),
    }
}
