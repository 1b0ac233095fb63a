//! What queues are declared with: the arguments on the wire, and how often each of them occurred.
//!
//! Must not know: what the broker or the model makes of them.

use leveret_amqp::{FieldTable, Value};

use crate::plan::{Dead, ExchangeName, Overflow, QueueSpec, Strategy};
use crate::stats::{Kind, Stats};

/// The arguments of a queue.
pub(crate) fn arguments(spec: &QueueSpec) -> FieldTable {
    FieldTable::build(|table| {
        let mut number = |name, value: Option<i64>| {
            if let Some(value) = value {
                table.field(name, Value::I64(value));
            }
        };
        number("x-message-ttl", spec.ttl_ms.map(i64::from));
        number("x-expires", spec.expires_ms.map(i64::from));
        number("x-max-length", spec.max_length.map(i64::from));
        number("x-max-length-bytes", spec.max_bytes.map(i64::from));
        number("x-max-priority", spec.max_priority.map(i64::from));
        number("x-delivery-limit", spec.delivery_limit.map(i64::from));
        number("x-consumer-timeout", spec.consumer_timeout_ms.map(i64::from));
        if spec.quorum {
            table.field("x-queue-type", Value::LongStr(b"quorum"));
        }
        if spec.single_active {
            table.field("x-single-active-consumer", Value::Bool(true));
        }
        match spec.overflow {
            None => {}
            Some(Overflow::DropHead) => _ = table.field("x-overflow", Value::LongStr(b"drop-head")),
            Some(Overflow::Reject) => _ = table.field("x-overflow", Value::LongStr(b"reject-publish")),
            Some(Overflow::RejectDead) => _ = table.field("x-overflow", Value::LongStr(b"reject-publish-dlx")),
        }
        match spec.dead {
            None => {}
            Some(Dead::Queue(slot)) => {
                table.field("x-dead-letter-exchange", Value::LongStr(b""));
                table.field("x-dead-letter-routing-key", Value::LongStr(format!("q{slot}").as_bytes()));
            }
            Some(Dead::Exchange) => {
                let name = ExchangeName::Dead.name().as_bytes();
                table.field("x-dead-letter-exchange", Value::LongStr(name));
            }
        }
        if let Some(strategy) = spec.strategy {
            let strategy: &[u8] = match strategy {
                Strategy::AtMostOnce => b"at-most-once",
                Strategy::AtLeastOnce => b"at-least-once",
            };
            table.field("x-dead-letter-strategy", Value::LongStr(strategy));
        }
        if says_more(spec) {
            for (name, value) in without_meaning(spec) {
                table.field(name, *value);
            }
        }
    })
}

/// Counts what a queue is declared with.
pub(crate) fn count_arguments(stats: &mut Stats, spec: &QueueSpec) {
    let mut count = |is_there: bool, name| {
        if is_there {
            stats.count(Kind::Argument, name);
        }
    };
    count(!spec.quorum, "classic");
    count(spec.quorum, "x-queue-type=quorum");
    count(spec.durable, "durable");
    count(!spec.durable, "transient");
    count(spec.exclusive, "exclusive");
    count(spec.auto_delete, "auto-delete");
    count(spec.ttl_ms.is_some(), "x-message-ttl");
    count(spec.expires_ms.is_some(), "x-expires");
    count(spec.max_length.is_some(), "x-max-length");
    count(spec.max_bytes.is_some(), "x-max-length-bytes");
    count(spec.overflow == Some(Overflow::DropHead), "x-overflow=drop-head");
    count(spec.overflow == Some(Overflow::Reject), "x-overflow=reject-publish");
    count(spec.overflow == Some(Overflow::RejectDead) && !spec.quorum, "x-overflow=reject-publish-dlx");
    count(spec.overflow == Some(Overflow::RejectDead) && spec.quorum, "x-overflow=reject-publish-dlx, passed over");
    count(spec.dead.is_some(), "x-dead-letter-exchange");
    count(matches!(spec.dead, Some(Dead::Queue(_))), "x-dead-letter-routing-key");
    count(spec.strategy == Some(Strategy::AtMostOnce), "x-dead-letter-strategy=at-most-once");
    count(spec.strategy == Some(Strategy::AtLeastOnce), "x-dead-letter-strategy=at-least-once");
    count(spec.keeps_letters(), "dead letters are kept");
    count(spec.max_priority.is_some() && !spec.quorum, "x-max-priority");
    count(spec.max_priority.is_some() && spec.quorum, "x-max-priority, passed over");
    count(spec.single_active, "x-single-active-consumer");
    count(spec.delivery_limit.is_some(), "x-delivery-limit");
    count(spec.consumer_timeout_ms.is_some(), "x-consumer-timeout");
    if says_more(spec) {
        for (name, _) in without_meaning(spec) {
            count(true, name);
        }
        count(!spec.quorum, "x-queue-leader-locator of a classic queue");
    }
}

/// Whether a queue is declared with arguments that change nothing, too.
fn says_more(spec: &QueueSpec) -> bool {
    spec.ttl_ms.is_some() || spec.max_length.is_some()
}

/// Arguments of a queue of this type that change nothing.
fn without_meaning(spec: &QueueSpec) -> &'static [(&'static str, Value<'static>)] {
    if spec.quorum {
        &[
            ("x-queue-leader-locator", Value::LongStr(b"balanced")),
            ("x-max-in-memory-length", Value::I64(1)),
            ("x-max-in-memory-bytes", Value::I64(1)),
            ("x-quorum-initial-group-size", Value::I64(3)),
        ]
    } else {
        &[
            ("x-queue-mode", Value::LongStr(b"lazy")),
            ("x-queue-version", Value::I64(2)),
            ("x-queue-master-locator", Value::LongStr(b"client-local")),
            ("x-queue-leader-locator", Value::LongStr(b"client-local")),
        ]
    }
}
