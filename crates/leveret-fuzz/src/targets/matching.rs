//! Exchanges that match against a straight loop over all bindings.

use std::collections::BTreeSet;
use std::time::Duration;

use leveret_amqp::frame::{FrameKind, write_frame, write_method};
use leveret_amqp::{
    BasicProperties, ContentHeader, FieldTable, Method, ShortStr, ShortString, Table, TableBuilder, Value,
};
use leveret_broker::change::QueueNumber;
use leveret_broker::naive::{headers_match, topic_matches};
use leveret_broker::names::{ExchangeName, QueueName, VhostName};
use leveret_broker::vhost::Progress;
use leveret_broker::vhost::binding::{Binding, Destination};
use leveret_broker::vhost::explain::Question;
use leveret_broker::{Change, Connection, ConnectionId, Effects, JournalPosition, Moment, VirtualHost};

use super::client::opened;
use crate::allowance::{Account, QUESTION_WORTH};
use crate::bytes::Bytes;

const QUEUES_COUNT: u8 = 6;
const STEPS_MAX: usize = 48;

const NOW: Moment = Moment { monotonic: Duration::ZERO, wall: Duration::ZERO };

/// A virtual host with one exchange, and the bindings that it should have.
struct Topology {
    vhost: VirtualHost,
    /// Somebody who publishes.
    publisher: (Connection, ConnectionId),
    position: JournalPosition,
    bindings: Vec<Binding>,
    /// What bindings take when they come and go.
    binding: Account,
    /// What it takes to match. Each time, all bindings are given.
    matching: Account,
    /// What it takes to publish: to match on the way of a message, and to remember where it went.
    publishing: Account,
    /// What a byte of a binding or a message counts for there. An explanation also tries bindings alone, each in an index that is made
    /// for it.
    byte_worth: usize,
}

impl Topology {
    fn new(kind: &str, byte_worth: usize) -> Self {
        let mut vhost = VirtualHost::new(VhostName::new(ShortStr::truncated("/")), [7; 32]);
        let publisher = opened(NOW, &mut vhost);
        let mut topology = Topology {
            vhost,
            publisher,
            position: JournalPosition::default(),
            bindings: Vec::new(),
            binding: Account::default(),
            matching: Account::default(),
            publishing: Account::default(),
            byte_worth,
        };
        topology.apply(Change::ExchangeDeclared {
            name: ExchangeName::new(ShortStr::truncated("x")),
            kind: ShortString::from(ShortStr::truncated(kind)),
            auto_delete: false,
            internal: false,
            arguments: FieldTable::default(),
        });
        for nth in 0..QUEUES_COUNT {
            topology.apply(Change::QueueDeclared {
                queue: QueueNumber(u64::from(nth) + 1),
                name: queue(nth),
                auto_delete: false,
                arguments: FieldTable::default(),
            });
        }
        // A queue has its page, and the publisher its channel, before anything counts.
        for nth in 0..QUEUES_COUNT {
            assert_eq!(topology.publish("", queue(nth).as_str(), &FieldTable::default()), [nth].into());
        }
        (topology.binding, topology.publishing) = (Account::default(), Account::default());
        topology
    }

    fn apply(&mut self, change: Change) {
        self.position = self.position.next();
        self.binding.run(|| self.vhost.apply(NOW, self.position, change)).expect("it fits to what is there");
    }

    fn bind(&mut self, to: u8, routing_key: &str, arguments: &FieldTable) {
        let binding = self.binding.run(|| Binding {
            source: ExchangeName::new(ShortStr::truncated("x")),
            destination: Destination::Queue(queue(to % QUEUES_COUNT)),
            routing_key: ShortString::from(ShortStr::truncated(routing_key)),
            arguments: arguments.as_table().sorted(),
        });
        if !self.bindings.contains(&binding) {
            self.bindings.push(binding.clone());
            self.apply(Change::Bound(binding));
        }
    }

    fn unbind(&mut self, pick: u8) {
        if !self.bindings.is_empty() {
            let binding = self.bindings.swap_remove(usize::from(pick) % self.bindings.len());
            self.apply(Change::Unbound(binding));
        }
    }

    fn check(&self) {
        self.binding.check(AT_ONCE);
        self.matching.check(AT_ONCE);
        self.publishing.check(AT_ONCE);
    }

    /// The queues that a message reaches are those that have a binding which matches.
    fn compare(&mut self, routing_key: &str, headers: &FieldTable, matches: impl Fn(&Binding) -> bool) {
        let exchange = ShortString::from(ShortStr::truncated("x"));
        let key = ShortString::from(ShortStr::truncated(routing_key));
        let matching: Vec<_> = self.bindings.iter().filter(|binding| matches(binding)).collect();
        let expected: BTreeSet<_> = matching.iter().map(|binding| name(&binding.destination)).collect();
        let message_bytes = routing_key.len() + headers.as_table().as_bytes().len();
        // Why a binding matches is told with the key.
        let told_bytes = matching.len() * routing_key.len();
        let bound_bytes = self.bindings.iter().map(bytes_of).sum::<usize>();
        self.matching.give(QUESTION_WORTH + told_bytes + self.byte_worth * (message_bytes + bound_bytes));
        let explanation = self.matching.run(|| {
            let mut question = Question::new(exchange, key, headers, None, [7; 32]);
            loop {
                if let Some(explanation) = self.vhost.explain(&mut question) {
                    break explanation;
                }
            }
        });
        let found: BTreeSet<_> = explanation.queues.iter().map(|queue| queue.name.clone()).collect();
        assert_eq!(found, expected, "{routing_key:?} {headers:?} of {:?}", self.bindings);
        assert_eq!(explanation.queue_count, explanation.queues.len());
        // Further keys, and what is no list of them, are of no interest here.
        if !headers.as_table().into_iter().any(|(name, _)| matches!(name, b"CC" | b"BCC")) {
            // The second time, it may be remembered where the first one went.
            for _ in 0..2 {
                let reached = self.publish("x", routing_key, headers);
                let reached: BTreeSet<_> = reached.into_iter().map(|nth| queue(nth).to_string()).collect();
                assert_eq!(reached, expected, "published: {routing_key:?} {headers:?} of {:?}", self.bindings);
            }
        }
    }

    /// Publishes an empty message, and says which queues have it.
    fn publish(&mut self, exchange: &str, routing_key: &str, headers: &FieldTable) -> BTreeSet<u8> {
        let (exchange, routing_key) = (ShortStr::truncated(exchange), ShortStr::truncated(routing_key));
        let mut sent = Vec::new();
        let method = Method::BasicPublish { ticket: 0, exchange, routing_key, mandatory: false, immediate: false };
        write_method(&mut sent, 1, &method);
        let headers = Some(headers.as_table());
        let properties = BasicProperties { headers, delivery_mode: Some(2), ..BasicProperties::default() };
        write_frame(&mut sent, FrameKind::Header, 1, |out| {
            ContentHeader { body_bytes: 0, properties }.encode(out);
        });
        let (connection, id) = &mut self.publisher;
        let mut answered = Vec::new();
        assert_eq!(connection.handle_input(NOW, &sent, &mut answered), sent.len());
        self.publishing.give(sent.len());
        let mut effects = Effects::default();
        self.publishing.run(|| {
            let commands = connection.commands();
            while self.vhost.handle_batch(NOW, *id, commands, &mut effects) == Progress::More {}
        });
        self.position = self.vhost.position();
        let [Change::MessageEnqueued { queues, .. }] = &effects.changes[..] else {
            assert!(effects.changes.is_empty(), "{:?}", effects.changes);
            return BTreeSet::new();
        };
        let number = |nth: u64| u8::try_from(nth - 1).expect("there are few");
        queues.iter().map(|enqueued| number(enqueued.queue.0)).collect()
    }
}

/// How many times what it is given, matching and what goes with it may take at once.
const AT_ONCE: u64 = 48;

/// Bytes of a binding as a journal has it.
fn bytes_of(binding: &Binding) -> usize {
    let mut record = Vec::new();
    Change::Bound(binding.clone()).encode(&mut record);
    record.len()
}

fn queue(nth: u8) -> QueueName {
    QueueName::new(ShortStr::truncated(&format!("q{nth}")))
}

fn name(destination: &Destination) -> String {
    match destination {
        Destination::Queue(name) => name.to_string(),
        Destination::Exchange(name) => name.to_string(),
    }
}

/// A key of a few words, or any text.
fn key(bytes: &mut Bytes<'_>) -> String {
    let how = bytes.u8();
    if how & 1 == 0 {
        let words = bytes.take(usize::from(how >> 1) % 8);
        let all = ["a", "a", "b", "c", "*", "*", "#", "#", ""];
        let words: Vec<_> = words.iter().map(|&word| all[usize::from(word) % all.len()]).collect();
        words.join(".")
    } else {
        ShortStr::truncated(&String::from_utf8_lossy(bytes.short())).as_str().to_owned()
    }
}

pub(super) fn topic(input: &[u8]) {
    // A word, which may be a dot and nothing else, is a node of 72 bytes in a list that doubles as it grows.
    let mut topology = Topology::new("topic", 3);
    let mut bytes = Bytes::new(input);
    for _ in 0..STEPS_MAX {
        if bytes.is_empty() {
            break;
        }
        match bytes.u8() % 8 {
            0..=3 => {
                let (to, key) = (bytes.u8(), key(&mut bytes));
                topology.bind(to, &key, &FieldTable::default());
            }
            4 => topology.unbind(bytes.u8()),
            _ => {
                let key = key(&mut bytes);
                let matches = |binding: &Binding| topic_matches(binding.routing_key.as_str(), &key);
                topology.compare(&key, &FieldTable::default(), matches);
            }
        }
    }
    // It has taken 113 times the input.
    topology.binding.give(2 * input.len());
    topology.check();
}

/// A table of few fields with few values, or any table.
fn table(bytes: &mut Bytes<'_>, x_match: Option<&str>) -> FieldTable {
    let how = bytes.u8();
    if how & 1 == 1
        && let Ok(table) = Table::check(bytes.short())
    {
        return FieldTable::build(|builder| {
            if let Some(x_match) = x_match {
                builder.field("x-match", Value::LongStr(x_match.as_bytes()));
            }
            builder.fields_of(table, |name| name != b"x-match");
        });
    }
    FieldTable::build(|builder| {
        if let Some(x_match) = x_match {
            builder.field("x-match", Value::LongStr(x_match.as_bytes()));
        }
        for _ in 0..(how >> 1) % 6 {
            let name = bytes.one_of(&["a", "b", "c", "x-a", "x-b", ""]);
            field(builder, name, bytes.u8());
        }
    })
}

/// The values that fields have, few enough to be equal often. Some are equal only to RabbitMQ, some only to others.
fn field(builder: &mut TableBuilder, name: &str, value: u8) {
    match value % 16 {
        0 => builder.field(name, Value::I8(1)),
        1 => builder.field(name, Value::I64(1)),
        2 => builder.field(name, Value::F32(1.0)),
        3 => builder.field(name, Value::F64(1.0)),
        4 => builder.field(name, Value::LongStr(b"1")),
        5 => builder.field(name, Value::Bytes(b"1")),
        6 => builder.field(name, Value::Timestamp(1)),
        7 => builder.field(name, Value::I32(1000)),
        8 => builder.field(name, Value::Bool(true)),
        9 => builder.array(name, []),
        10 => builder.table(name, |_| ()),
        11 => builder.array(name, [Value::I8(1)]),
        12 => builder.array(name, [Value::I32(1)]),
        13 => builder.table(name, |table| _ = table.field("k", Value::I64(1))),
        14 => builder.field(name, Value::Decimal(1, 1)),
        _ => builder.field(name, Value::Void),
    };
}

pub(super) fn headers(input: &[u8]) {
    let mut topology = Topology::new("headers", 1);
    let mut bytes = Bytes::new(input);
    for _ in 0..STEPS_MAX {
        if bytes.is_empty() {
            break;
        }
        match bytes.u8() % 8 {
            0..=3 => {
                let to = bytes.u8();
                let x_match =
                    bytes.one_of(&[None, Some("all"), Some("any"), Some("all-with-x"), Some("any-with-x")]);
                let arguments = table(&mut bytes, x_match);
                topology.bind(to, "", &arguments);
            }
            4 => topology.unbind(bytes.u8()),
            _ => {
                let headers = table(&mut bytes, None);
                let matches = |binding: &Binding| headers_match(binding.arguments.as_table(), headers.as_table());
                topology.compare("", &headers, matches);
            }
        }
    }
    topology.binding.give(input.len());
    topology.check();
}
