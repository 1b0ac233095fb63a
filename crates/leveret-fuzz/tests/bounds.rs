//! Bounds of memory where inputs made by chance seldom come near them: things that are begun in a few bytes, hundreds of times.

use leveret_amqp::frame::{FrameKind, write_frame};
use leveret_amqp::{FieldTable, ShortStr, ShortString};
use leveret_broker::Change;
use leveret_broker::change::{NodeChange, QueueNumber};
use leveret_broker::names::{ExchangeName, PolicyName, QueueName, UserName, VhostName};
use leveret_broker::vhost::binding::{Binding, Destination};
use leveret_broker::vhost::policy::{ApplyTo, PolicyKind, PolicySource};
use leveret_fuzz::Target;

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

#[test]
fn settings_that_are_nothing_but_signs_stay_within_the_bound() {
    for (before, signs) in [
        ("", "\n"),
        ("", "."),
        ("", "="),
        ("a", ".a"),
        ("a=[", "1,"),
        ("a=[", "{},"),
        ("a={", "a={"),
        ("\0", "a=\n"),
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
