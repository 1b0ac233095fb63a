//! Bounds of memory where inputs made by chance seldom come near them: things that are begun in a few bytes, hundreds of times.

use std::iter;

use leveret_amqp::frame::{FrameKind, write_frame, write_method};
use leveret_amqp::{
    BasicProperties, ContentHeader, FieldTable, Method, PROTOCOL_HEADER, ShortStr, ShortString, Value,
};
use leveret_broker::change::{Enqueued, NodeChange, QueueNumber, QueuePosition};
use leveret_broker::limits::PATTERN_TEXT_BYTES_MAX;
use leveret_broker::names::{ExchangeName, PolicyName, QueueName, UserName, VhostName};
use leveret_broker::vhost::binding::{Binding, Destination};
use leveret_broker::vhost::policy::{ApplyTo, PolicyKind, PolicySource};
use leveret_broker::{Change, Message};
use leveret_fuzz::{PatternBytes, Target};
use leveret_testkit::{Broker, Variation, Wire};

/// A target says itself if something has taken too much.
fn take(target: &str, input: &[u8]) {
    (Target::find(target).expect("there is one").run)(input);
}

#[test]
fn methods_that_a_client_repeats_stay_within_the_bound() {
    let queue_q = [0, 50, 0, 10, 0, 0, 1, b'q', 0b10, 0, 0, 0, 0];
    for method in [
        // queue.declare, with a name from the broker
        &[0, 50, 0, 10, 0, 0, 0, 0b1100, 0, 0, 0, 0][..],
        // basic.consume
        &[0, 60, 0, 20, 0, 0, 1, b'q', 0, 0, 0, 0, 0],
        // basic.get
        &[0, 60, 0, 70, 0, 0, 1, b'q', 0],
        // tx.commit, without a transaction and with one
        &[0, 90, 0, 20],
        &[0, 90, 0, 10],
        // basic.qos
        &[0, 60, 0, 10, 0, 0, 0, 0, 0, 1, 0],
    ] {
        let sent: Vec<_> = framed(1, &queue_q).into_iter().chain(framed(1, method).repeat(2000)).collect();
        take_sent(&sent);
    }
    // channel.open
    take_sent(&(2..2000).flat_map(|channel| framed(channel, &[0, 20, 0, 10, 0])).collect::<Vec<_>>());
    for key in *b"qn" {
        // Empty messages that a queue gets, or that are returned.
        let mut publish = framed(1, &[0, 60, 0, 40, 0, 0, 0, 1, key, 1]);
        write_frame(&mut publish, FrameKind::Header, 1, |out| {
            out.extend_from_slice(&[0, 60, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x10, 0, 2]);
        });
        take_sent(&[framed(1, &queue_q), publish.repeat(1000)].concat());
    }
}

#[test]
fn events_that_come_again_and_again_stay_within_the_bound() {
    for steps in [
        // Time that passes, and checkpoints.
        &[7, 1, 255][..],
        &[7, 4],
        &[7, 5],
        // Restarts and crashes.
        &[7, 6],
        &[7, 7],
        // The journal stops and goes on.
        &[7, 2, 7, 3],
        // Little memory, and enough.
        &[7, 8, 7, 9],
        // A client goes and comes back; it does not read, and reads.
        &[7, 10, 6, 0, 0],
        &[7, 11, 0, 7, 11, 1],
        // A policy, an operator policy, and none.
        &[7, 12, 255, 255],
        &[7, 13, 255, 255],
        &[7, 12, 0, 1, 7, 12, 0, 0],
    ] {
        take("connection", &[&[0][..], &steps.repeat(400)].concat());
        // The same where there are a policy, and queues with a message.
        let queues = [[4, 0, 0b0000_0000, 0, 0], [4, 0, 0b0100_0000, 0, 0]].concat();
        let messages = [[5, 0b0000_0000, 1, 1, b'x'], [5, 0b0000_1000, 1, 1, b'x']].concat();
        let before = [&[7, 12, 255, 255], &queues[..], &messages].concat();
        for variation in 0..12 {
            take("connection", &[&[variation], &before[..], &steps.repeat(380)].concat());
        }
    }
}

#[test]
fn short_records_of_many_things_stay_within_the_bound() {
    let user = || NodeChange::UserSet { name: UserName::new(short("u")), password: None, tags: vec![] };
    let vhost =
        |nth: u32| NodeChange::VhostAdded { stream: nth + 4, name: VhostName::new(short(&nth.to_string())) };
    let permissions = NodeChange::PermissionsSet {
        user: UserName::new(short("u")),
        vhost: VhostName::new(short("/")),
        configure: "a".into(),
        write: "b".into(),
        read: "c".into(),
    };
    take_records(0, (0..300).map(|nth| encoded_of_node(&vhost(nth))));
    take_records(0, [user(), permissions].iter().cycle().take(300).map(encoded_of_node));

    let arguments = FieldTable::default;
    let queue = |nth: u32| Change::QueueDeclared {
        queue: QueueNumber(nth.into()),
        name: QueueName::new(short(&nth.to_string())),
        auto_delete: false,
        arguments: arguments(),
    };
    let exchange = |nth: u32| Change::ExchangeDeclared {
        name: ExchangeName::new(short(&nth.to_string())),
        kind: ShortString::from(short("topic")),
        auto_delete: false,
        internal: false,
        arguments: arguments(),
    };
    let bound = |nth: u32| {
        Change::Bound(Binding {
            source: ExchangeName::new(short("amq.topic")),
            destination: Destination::Queue(QueueName::new(short("0"))),
            routing_key: ShortString::from(short(&nth.to_string())),
            arguments: arguments(),
        })
    };
    let policy = |nth: u32| {
        Change::PolicySet(PolicySource {
            kind: PolicyKind::Policy,
            name: PolicyName::new(short(&nth.to_string())),
            pattern: "a".into(),
            apply_to: ApplyTo::All,
            priority: 0,
            definition: arguments(),
        })
    };
    let checkpoint = |_| Change::CheckpointBegun { last_queue: QueueNumber(0) };
    take_records(1, (0..1000).map(|nth| encoded(&queue(nth))));
    take_records(1, (0..1000).map(|nth| encoded(&exchange(nth))));
    take_records(1, (0..1000).map(|nth| encoded(&if nth == 0 { queue(0) } else { bound(nth) })));
    take_records(1, (0..1000).map(|nth| encoded(&policy(nth))));
    take_records(1, (0..1000).map(|nth| encoded(&checkpoint(nth))));
}

/// Places that stay empty, few and many, and in two priorities, which have places of their own.
#[test]
fn messages_behind_empty_places_stay_within_the_bound() {
    let declared = Change::QueueDeclared {
        queue: QueueNumber(1),
        name: QueueName::new(short("q")),
        auto_delete: false,
        arguments: FieldTable::build(|table| _ = table.field("x-max-priority", Value::U8(1))),
    };
    let message = message();
    let enqueued = |priority: u64, place: u64| {
        let position = QueuePosition(priority << 54 | place);
        let queues = [Enqueued { queue: QueueNumber(1), position, expires: None }].into_iter().collect();
        encoded(&Change::MessageEnqueued { message: message.clone(), queues })
    };
    for gap in [0, 1, 15, 16, 17, 40, 127, 200, 254, 255, 256, 300, 511, 512, 600] {
        let places = || (0..4096).step_by(gap + 1).take(600);
        take_records(1, iter::once(encoded(&declared)).chain(places().map(|place| enqueued(0, place))));
        let both = places().flat_map(|place| [enqueued(0, place), enqueued(1, place)]);
        take_records(1, iter::once(encoded(&declared)).chain(both));
        // And at a place that was given already.
        let again = places().flat_map(|place| [enqueued(0, place), enqueued(0, 0)]);
        take_records(1, iter::once(encoded(&declared)).chain(again));
    }
}

/// A message as a journal has it that somebody has published.
fn message() -> Message {
    let mut broker = Broker::new(Variation::ALL[0]);
    broker.connect("c");
    let mut sent = PROTOCOL_HEADER.to_vec();
    let client_properties = FieldTable::default();
    let short_header = ContentHeader {
        body_bytes: 0,
        properties: BasicProperties { delivery_mode: Some(2), ..BasicProperties::default() },
    };
    let (queue, ticket, arguments) = (short("q"), 0, client_properties.as_table());
    for (channel, method) in [
        (
            0,
            Method::ConnectionStartOk {
                client_properties: arguments,
                mechanism: short("PLAIN"),
                response: b"\0guest\0guest",
                locale: short("en_US"),
            },
        ),
        (0, Method::ConnectionTuneOk { channel_max: 2047, frame_max: 131_072, heartbeat: 0 }),
        (0, Method::ConnectionOpen { virtual_host: short("/"), capabilities: ShortStr::EMPTY, insist: false }),
        (1, Method::ChannelOpen { out_of_band: ShortStr::EMPTY }),
        (
            1,
            Method::QueueDeclare {
                ticket,
                queue,
                passive: false,
                durable: true,
                exclusive: false,
                auto_delete: false,
                nowait: false,
                arguments,
            },
        ),
        (
            1,
            Method::BasicPublish {
                ticket,
                exchange: ShortStr::EMPTY,
                routing_key: queue,
                mandatory: false,
                immediate: false,
            },
        ),
    ] {
        write_method(&mut sent, channel, &method);
    }
    write_frame(&mut sent, FrameKind::Header, 1, |out| short_header.encode(out));
    broker.send("c", &sent);
    let mut messages = broker.journal().iter().filter_map(|(_, record)| match Change::decode(record) {
        Ok(Change::MessageEnqueued { message, .. }) => Some(message),
        _ => None,
    });
    messages.next_back().expect("it was journaled")
}

/// Patterns that take the most of what is allowed: some say in a few letters how often others are repeated, some are as long as can be,
/// and some are refused.
#[test]
fn patterns_stay_within_a_bound_and_come_near_it() {
    let short = [
        "((((a?){9}){9}){9}){2}",
        "(?:a?){1000}",
        "((a{99}){99}){99}",
        "a{4000}",
        r"\W{400}",
        "(?i)a{2000}",
        "(a|b){999}",
    ];
    let letters = [
        "a",
        "a.",
        "(?i)a",
        "[^a]",
        "a?",
        "a*",
        ".?",
        "(?:a?)",
        "(a|b)*",
        r"\W",
        "[^a]*",
        "a|",
        "()",
        "(",
        "[a-z0-9_]",
        "^$",
    ];
    let long = letters.iter().map(|letters| letters.repeat(PATTERN_TEXT_BYTES_MAX / letters.len()));
    let too_long = letters.iter().map(|letters| letters.repeat(100_000));
    let all = short.iter().map(|&text| text.to_owned()).chain(long).chain(too_long);
    let (at_once, in_all) = all.fold((0, 0), |(at_once, in_all), text| {
        let taken = PatternBytes::compiled(&text);
        (taken.at_once.max(at_once), taken.in_all.max(in_all))
    });
    let most = PatternBytes::MOST;
    let is_near = at_once > most.at_once / 2 && in_all > most.in_all / 2;
    assert!(is_near, "{at_once} and {in_all}, where {most:?} may be");
}

/// Each place that takes patterns, with one that would take much, long ones, and names that stand for much less than they are.
#[test]
fn patterns_of_every_place_stay_within_the_bound() {
    let user = UserName::new(short(&"[".repeat(255)));
    let vhost = VhostName::new(short(&"(".repeat(255)));
    for text in ["a?".repeat(2000), "a?".repeat(10_000), "{vhost}".repeat(500), "{username}{vhost}".repeat(1000)] {
        let topic = NodeChange::TopicPermissionsSet {
            user: user.clone(),
            vhost: vhost.clone(),
            exchange: ExchangeName::new(short("x")),
            write: text.as_str().into(),
            read: text.as_str().into(),
        };
        let permissions = NodeChange::PermissionsSet {
            user: user.clone(),
            vhost: vhost.clone(),
            configure: text.as_str().into(),
            write: text.as_str().into(),
            read: text.as_str().into(),
        };
        for change in [topic, permissions] {
            let record = encoded_of_node(&change);
            let record_bytes = u16::try_from(record.len()).expect("it is not too long").to_le_bytes();
            take("checkpoint", &[&[1, 0, 1 << 4], &record_bytes[..], &record].concat());
        }
        take(
            "definitions",
            format!(
                r#"{{"policies":[{{"vhost":"/","name":"p","pattern":"{text}","definition":{{"expires":1}}}}]}}"#
            )
            .as_bytes(),
        );
    }
}

#[test]
fn settings_that_are_nothing_but_signs_stay_within_the_bound() {
    for (before, signs) in [
        ("", "\n"),
        ("", "."),
        ("", "="),
        ("a", ".a"),
        ("a=[", "1,"),
        ("a=[", "{},"),
        ("a=[", "["),
        ("a={", "a={"),
        ("a={", "a=1,"),
        ("bind=[", "'',"),
        ("bind=['::'", ",'::'"),
        ("loopback_users=['a'", ",'a'"),
        ("loopback_users='", "a,"),
        ("product=\"", "\\n"),
        ("", "#"),
        ("", "[a]\n"),
        ("", "[[a]]\n"),
        ("\0", "a=\n"),
        ("\0", "bind=\n"),
        ("\0", "product=\n"),
    ] {
        take("configuration", &[before, &signs.repeat(50_000)].concat().into_bytes());
    }
}

#[test]
fn settings_that_lie_in_many_tables_stay_within_the_bound() {
    for (before, level, behind) in [
        ("", ".a", "=1"),
        ("", ".", "=1"),
        ("", ".\"\"", "=1"),
        ("[", ".a", "]"),
        ("[[", ".a", "]]"),
        ("{", "={a", "=1"),
    ] {
        for depth in [1, 3, 10, 78] {
            let line = |nth| format!("{before}k{nth:x}{}{behind}\n", level.repeat(depth));
            take("configuration", (0..500).map(line).collect::<String>().as_bytes());
        }
    }
}

/// Names that are set, some of them as many times as may be: those of listeners, which nothing else limits, beside one that is longer
/// than all.
#[test]
fn settings_of_many_names_stay_within_the_bound() {
    let long = "x".repeat(20_000);
    for count in [1, 10, 100, 127, 128, 129, 1000, 20_000] {
        for line in [
            &|nth| format!("a{nth:x}=1\n"),
            &|nth| format!("listeners.tcp.{nth:x}=1\n"),
            &|nth| format!("[{nth:x}]\n"),
            &|nth| format!("{nth:x}={{}}\n"),
            &|_| "heartbeat=1\n".to_owned(),
        ] as [&dyn Fn(usize) -> String; 5]
        {
            let lines = (0..count).map(line).collect::<String>();
            take("configuration", lines.as_bytes());
            take("configuration", format!("\0{lines}").as_bytes());
            for before in
                ["[listeners.tcp]".into(), format!("[{long}]"), format!("{long}=1"), format!("{long}={{}}")]
            {
                take("configuration", format!("{before}\n{lines}").as_bytes());
            }
        }
    }
}

/// A binding key with as many words as there can be, and messages that it matches.
#[test]
fn keys_of_nothing_but_dots_stay_within_the_bound() {
    let dots = |what: &[u8]| [what, &[1, 255], &[b'.'; 255]].concat();
    let (binding, message) = (dots(&[0, 0]), dots(&[5]));
    take("topic", &[binding, message.repeat(40)].concat());
}

/// Batches of so many small records, and of so many that are empty, that a journal has megabytes of them.
#[test]
fn a_large_journal_stays_within_the_bound() {
    for record in [&[0, 255][..], &[1, 0]] {
        let payload = vec![b'x'; usize::from(record[1])];
        let batch = [&[3][..], &[record, &payload].concat().repeat(3)].concat();
        take("batch", &batch.repeat(2000));
    }
}

fn take_sent(sent: &[u8]) {
    let raw_step =
        |piece: &[u8]| [&[6][..], &u16::try_from(piece.len()).expect("it is short").to_le_bytes(), piece].concat();
    let steps: Vec<_> = sent.chunks(65_535).flat_map(raw_step).collect();
    take("connection", &[&[0], &steps[..]].concat());
}

/// Records of a stream, as the target has them.
fn take_records(stream: u8, records: impl Iterator<Item = Vec<u8>>) {
    let mut input = vec![1, 0];
    for record in records {
        input.extend([stream, u8::try_from(record.len()).expect("it is short")]);
        input.extend(record);
    }
    take("checkpoint", &input);
}

fn encoded(change: &Change) -> Vec<u8> {
    let mut record = Vec::new();
    change.encode(&mut record);
    record
}

fn encoded_of_node(change: &NodeChange) -> Vec<u8> {
    let mut record = Vec::new();
    change.encode(&mut record);
    record
}

fn framed(channel: u16, method: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    write_frame(&mut bytes, FrameKind::Method, channel, |out| out.extend_from_slice(method));
    bytes
}

fn short(text: &str) -> ShortStr<'_> {
    ShortStr::truncated(text)
}
