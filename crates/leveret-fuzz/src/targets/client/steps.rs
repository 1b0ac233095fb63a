//! An input as what a client sends, frame by frame, and what happens in between.
//!
//! Most of it is well formed and about few queues, so that it goes deep; the rest is not.

use std::time::Duration;

use leveret_amqp::content::BASIC_CLASS;
use leveret_amqp::frame::{FrameKind, write_frame, write_method};
use leveret_amqp::{BasicProperties, ContentHeader, FieldTable, Method, PROTOCOL_HEADER, ShortStr, Table, Value};
use leveret_broker::names::PolicyName;
use leveret_broker::vhost::policy::PolicyKind;

use crate::bytes::Bytes;

/// One thing that happens.
#[derive(Debug)]
pub(super) enum Step {
    /// One of two connections sends something.
    Sent { connection: usize, bytes: Vec<u8> },
    /// Something else, which may be about one of them.
    Event { connection: usize, event: Event },
}

/// What happens beside what a client sends.
#[derive(Clone, Copy, Debug)]
pub(super) enum Event {
    Wait(Duration),
    JournalStops,
    JournalKeepsUp,
    CheckpointStep,
    Checkpoint,
    Restart,
    Crash,
    ShortOfMemory,
    Room,
    /// The client closes its socket.
    End,
    Reads(bool),
    /// A policy is set, with these arguments, or cleared.
    Policy {
        kind: PolicyKind,
        arguments: u16,
    },
}

/// The steps that an input says.
pub(super) struct Steps<'i>(Bytes<'i>);

impl<'i> Steps<'i> {
    pub(super) fn new(bytes: Bytes<'i>) -> Self {
        Steps(bytes)
    }
}

impl Iterator for Steps<'_> {
    type Item = Step;

    fn next(&mut self) -> Option<Step> {
        let bytes = &mut self.0;
        if bytes.is_empty() {
            return None;
        }
        let what = bytes.u8();
        let channel = [1, 2, 3, 0][usize::from(what >> 3 & 3)];
        let connection = usize::from(what >> 5 & 1);
        let mut sent = Vec::new();
        match what & 7 {
            0 => any_method(bytes, channel, &mut sent),
            1 => {
                let body_bytes = bytes.u16();
                write_frame(&mut sent, FrameKind::Header, channel, |out| {
                    out.extend_from_slice(&BASIC_CLASS.to_be_bytes());
                    out.extend_from_slice(&[0; 8]);
                    out.extend_from_slice(&body_bytes.to_be_bytes());
                    out.extend_from_slice(bytes.short());
                });
            }
            2 => write_frame(&mut sent, FrameKind::Body, channel, |out| out.extend_from_slice(bytes.short())),
            3 => {
                let count = usize::from(bytes.u16());
                write_frame(&mut sent, FrameKind::Body, channel, |out| out.resize(out.len() + count, b'x'));
            }
            4 => command(bytes, channel, &mut sent),
            5 => publish(bytes, channel, &mut sent),
            6 => {
                let count = bytes.u16();
                sent.extend_from_slice(bytes.take(count.into()));
            }
            _ => return Some(Step::Event { connection, event: event(bytes) }),
        }
        Some(Step::Sent { connection, bytes: sent })
    }
}

/// What a client sends before its connection is open.
pub(super) fn handshake() -> Vec<u8> {
    let client_properties = FieldTable::build(|table| {
        table.table("capabilities", |table| {
            table.field("consumer_cancel_notify", Value::Bool(true)).field("connection.blocked", Value::Bool(true));
        });
    });
    let mut bytes = PROTOCOL_HEADER.to_vec();
    for method in [
        Method::ConnectionStartOk {
            client_properties: client_properties.as_table(),
            mechanism: short("PLAIN"),
            response: b"\0guest\0guest",
            locale: short("en_US"),
        },
        Method::ConnectionTuneOk { channel_max: 2047, frame_max: 131_072, heartbeat: 30 },
        Method::ConnectionOpen { virtual_host: short("/"), capabilities: ShortStr::EMPTY, insist: false },
    ] {
        write_method(&mut bytes, 0, &method);
    }
    write_method(&mut bytes, 1, &Method::ChannelOpen { out_of_band: ShortStr::EMPTY });
    bytes
}

pub(super) fn name(text: &str) -> PolicyName {
    PolicyName::new(short(text))
}

fn short(text: &str) -> ShortStr<'_> {
    ShortStr::truncated(text)
}

/// Class and method of one that there is, and any arguments.
fn any_method(bytes: &mut Bytes<'_>, channel: u16, sent: &mut Vec<u8>) {
    let spec = bytes.one_of(Method::ALL);
    let channel = if spec.class == 10 { 0 } else { channel };
    write_frame(sent, FrameKind::Method, channel, |out| {
        out.extend_from_slice(&spec.class.to_be_bytes());
        out.extend_from_slice(&spec.method.to_be_bytes());
        out.extend_from_slice(bytes.short());
    });
}

const QUEUES: [&str; 4] = ["q", "p", "", "amq.rabbitmq.reply-to"];
const EXCHANGES: [&str; 8] = ["", "x", "y", "amq.topic", "amq.headers", "amq.fanout", "amq.direct", "d"];
const KEYS: [&str; 8] = ["q", "p", "", "a.b", "#", "*.b", "1", "amq.rabbitmq.reply-to"];
const TYPES: [&str; 8] = [
    "direct",
    "topic",
    "headers",
    "fanout",
    "x-delayed-message",
    "x-consistent-hash",
    "x-recent-history",
    "x-random",
];

/// The arguments of queues and exchanges that these bits say.
pub(super) fn arguments(bits: u16) -> FieldTable {
    let all = [
        ("x-max-length", Value::I32(2)),
        ("x-overflow", Value::LongStr(b"reject-publish")),
        ("x-message-ttl", Value::I32(100)),
        ("x-dead-letter-exchange", Value::LongStr(b"")),
        ("x-dead-letter-routing-key", Value::LongStr(b"p")),
        ("x-max-priority", Value::U8(5)),
        ("x-queue-type", Value::LongStr(b"quorum")),
        ("x-delivery-limit", Value::I32(1)),
        ("x-single-active-consumer", Value::Bool(true)),
        ("x-expires", Value::I32(1000)),
        ("alternate-exchange", Value::LongStr(b"y")),
        ("x-delayed-type", Value::LongStr(b"topic")),
        ("x-dead-letter-strategy", Value::LongStr(b"at-least-once")),
        ("x-max-length-bytes", Value::I32(30)),
        ("x-consumer-timeout", Value::I32(60_000)),
        ("x-match", Value::LongStr(b"any")),
    ];
    FieldTable::build(|table| {
        for (nth, (name, value)) in all.into_iter().enumerate() {
            if bits >> nth & 1 == 1 {
                table.field(name, value);
            }
        }
    })
}

/// A well-formed method about few things.
fn command(bytes: &mut Bytes<'_>, channel: u16, sent: &mut Vec<u8>) {
    let which = bytes.u8() % 26;
    let flags = bytes.u8();
    let flag = |nth: u8| flags >> nth & 1 == 1;
    let table = match which {
        0 | 3..=5 | 7 | 8 => arguments(bytes.u16()),
        _ => FieldTable::default(),
    };
    let arguments = table.as_table();
    let queue = || short(QUEUES[usize::from(flags >> 6)]);
    let ticket = 0;
    let nowait = flag(5);
    let method = match which {
        0 => Method::QueueDeclare {
            ticket,
            queue: queue(),
            passive: flag(4),
            durable: !flag(0),
            exclusive: flag(1),
            auto_delete: flag(2),
            nowait,
            arguments,
        },
        1 => Method::QueueDelete { ticket, queue: queue(), if_unused: flag(0), if_empty: flag(1), nowait },
        2 => Method::QueuePurge { ticket, queue: queue(), nowait },
        3 => Method::QueueBind {
            ticket,
            queue: queue(),
            exchange: short(bytes.one_of(&EXCHANGES)),
            routing_key: short(bytes.one_of(&KEYS)),
            nowait,
            arguments,
        },
        4 => Method::QueueUnbind {
            ticket,
            queue: queue(),
            exchange: short(bytes.one_of(&EXCHANGES)),
            routing_key: short(bytes.one_of(&KEYS)),
            arguments,
        },
        5 => Method::ExchangeDeclare {
            ticket,
            exchange: short(bytes.one_of(&EXCHANGES)),
            type_: short(bytes.one_of(&TYPES)),
            passive: flag(4),
            durable: !flag(0),
            auto_delete: flag(1),
            internal: flag(2),
            nowait,
            arguments,
        },
        6 => {
            Method::ExchangeDelete { ticket, exchange: short(bytes.one_of(&EXCHANGES)), if_unused: flag(0), nowait }
        }
        7 => Method::ExchangeBind {
            ticket,
            destination: short(bytes.one_of(&EXCHANGES)),
            source: short(bytes.one_of(&EXCHANGES)),
            routing_key: short(bytes.one_of(&KEYS)),
            nowait,
            arguments,
        },
        8 => Method::ExchangeUnbind {
            ticket,
            destination: short(bytes.one_of(&EXCHANGES)),
            source: short(bytes.one_of(&EXCHANGES)),
            routing_key: short(bytes.one_of(&KEYS)),
            nowait,
            arguments,
        },
        9 => Method::BasicConsume {
            ticket,
            queue: queue(),
            consumer_tag: short(["t", "u"][usize::from(flag(3))]),
            no_local: false,
            no_ack: flag(0),
            exclusive: flag(1),
            nowait,
            arguments: Table::EMPTY,
        },
        10 => Method::BasicCancel { consumer_tag: short(["t", "u"][usize::from(flag(3))]), nowait },
        11 => Method::BasicGet { ticket, queue: queue(), no_ack: flag(0) },
        12 => Method::BasicAck { delivery_tag: u64::from(flags >> 4), multiple: flag(0) },
        13 => Method::BasicNack { delivery_tag: u64::from(flags >> 4), multiple: flag(0), requeue: flag(1) },
        14 => Method::BasicReject { delivery_tag: u64::from(flags >> 4), requeue: flag(1) },
        15 => Method::BasicRecover { requeue: flag(0) },
        16 => Method::BasicQos { prefetch_size: 0, prefetch_count: u16::from(flags >> 4), global: flag(0) },
        17 => Method::TxSelect {},
        18 => Method::TxCommit {},
        19 => Method::TxRollback {},
        20 => Method::ConfirmSelect { nowait },
        21 => Method::ChannelOpen { out_of_band: ShortStr::EMPTY },
        22 => Method::ChannelClose { reply_code: 200, reply_text: ShortStr::GOODBYE, class_id: 0, method_id: 0 },
        23 => Method::ChannelCloseOk {},
        24 => Method::ChannelFlow { active: flag(0) },
        _ => Method::BasicRecoverAsync { requeue: flag(0) },
    };
    write_method(sent, channel, &method);
}

/// A whole content.
fn publish(bytes: &mut Bytes<'_>, channel: u16, sent: &mut Vec<u8>) {
    let (flags, more) = (bytes.u8(), bytes.u8());
    let exchange = short(EXCHANGES[usize::from(flags & 7)]);
    let routing_key = short(KEYS[usize::from(flags >> 3 & 7)]);
    let mandatory = flags >> 6 & 1 == 1;
    let method = Method::BasicPublish { ticket: 0, exchange, routing_key, mandatory, immediate: false };
    write_method(sent, channel, &method);
    let headers = FieldTable::build(|table| {
        if more >> 1 & 1 == 1 {
            table.field("x-delay", Value::I32(i32::from(more)));
        }
        if more >> 2 & 1 == 1 {
            table.array("CC", [Value::LongStr(b"q"), Value::LongStr(b"p")]);
        }
        if more >> 3 & 1 == 1 {
            table.array("BCC", [Value::LongStr(b"p")]);
        }
    });
    let has = |nth: u8| more >> nth & 1 == 1;
    let properties = BasicProperties {
        headers: (!headers.as_table().is_empty()).then(|| headers.as_table()),
        delivery_mode: has(0).then_some(2),
        priority: has(4).then_some(more >> 5),
        expiration: has(5).then_some(b"50"),
        reply_to: has(6).then_some(b"amq.rabbitmq.reply-to"),
        ..BasicProperties::default()
    };
    let count = usize::from(bytes.u8());
    let body = if has(7) { vec![b'x'; count * 64] } else { bytes.take(count).to_vec() };
    let header = ContentHeader { body_bytes: body.len() as u64, properties };
    write_frame(sent, FrameKind::Header, channel, |out| header.encode(out));
    if !body.is_empty() {
        write_frame(sent, FrameKind::Body, channel, |out| out.extend_from_slice(&body));
    }
}

fn event(bytes: &mut Bytes<'_>) -> Event {
    match bytes.u8() % 14 {
        0 => Event::Wait(Duration::from_millis(bytes.u8().into())),
        1 => Event::Wait(Duration::from_secs(bytes.u8().into())),
        2 => Event::JournalStops,
        3 => Event::JournalKeepsUp,
        4 => Event::CheckpointStep,
        5 => Event::Checkpoint,
        6 => Event::Restart,
        7 => Event::Crash,
        8 => Event::ShortOfMemory,
        9 => Event::Room,
        10 => Event::End,
        11 => Event::Reads(bytes.flag()),
        12 => Event::Policy { kind: PolicyKind::Policy, arguments: bytes.u16() },
        _ => Event::Policy { kind: PolicyKind::OperatorPolicy, arguments: bytes.u16() },
    }
}
