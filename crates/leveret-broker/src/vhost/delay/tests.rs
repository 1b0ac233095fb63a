use leveret_amqp::{ShortStr, ShortString};

use super::*;
use crate::change::{JournalPosition, QueuePosition};
use crate::names::QueueName;
use crate::vhost::Progress;
use crate::vhost::binding::{Binding, Destination};
use crate::vhost::effects::Fetched;
use crate::vhost::fixtures::{at, empty_vhost, evict, message};
use crate::vhost::route::Route;
use crate::vhost::views::QueueCursor;

fn delay(value: Value<'_>) -> Option<u32> {
    let headers = FieldTable::build(|table| _ = table.field("other", Value::Void).field(DELAY, value));
    delay_ms(headers.as_table()).map(NonZeroU32::get)
}

#[test]
fn a_delay_is_a_positive_number_of_milliseconds_of_any_type() {
    for value in [
        Value::I8(100),
        Value::U8(100),
        Value::I16(100),
        Value::U16(100),
        Value::I32(100),
        Value::U32(100),
        Value::I64(100),
        Value::F32(100.9),
        Value::F64(100.9),
        Value::LongStr(b"100"),
        Value::LongStr(b"+100"),
    ] {
        assert_eq!(delay(value), Some(100), "{value:?}");
    }
    assert_eq!(delay(Value::I64(4_294_967_295)), Some(u32::MAX));
    assert_eq!(delay(Value::U32(u32::MAX)), Some(u32::MAX));
    assert_eq!(delay(Value::F64(4_294_967_295.5)), Some(u32::MAX));
}

#[test]
fn anything_else_is_no_delay() {
    for value in [
        Value::I32(0),
        Value::I32(-1),
        Value::I64(4_294_967_296),
        Value::I64(i64::MIN),
        Value::F64(0.9),
        Value::F64(-5.0),
        Value::F64(4_294_967_296.0),
        Value::F64(1e300),
        Value::F64(f64::NAN),
        Value::F32(f32::INFINITY),
        Value::LongStr(b""),
        Value::LongStr(b"5s"),
        Value::LongStr(b" 5"),
        Value::LongStr(b"-5"),
        Value::LongStr(b"99999999999999999999"),
        Value::LongStr(b"\xff"),
        Value::Decimal(0, 5),
        Value::Timestamp(5),
        Value::Bool(true),
        Value::Void,
        Value::Bytes(b"5"),
    ] {
        assert_eq!(delay(value), None, "{value:?}");
    }
    assert_eq!(delay_ms(Table::EMPTY), None);
}

fn exchange() -> ExchangeName {
    ExchangeName::new(ShortStr::truncated("x"))
}

/// What a journal has of an exchange that delays messages, with a queue bound to it.
fn beginning() -> Vec<Change> {
    let name = QueueName::new(ShortStr::truncated("q"));
    let queue_declared = Change::QueueDeclared {
        queue: QueueNumber(2),
        name: name.clone(),
        auto_delete: false,
        arguments: FieldTable::default(),
    };
    let arguments = FieldTable::build(|table| _ = table.field(DELAYED_TYPE, Value::LongStr(b"fanout")));
    let exchange_declared = Change::ExchangeDeclared {
        name: exchange(),
        kind: ShortString::from(ShortStr::truncated(DELAYED)),
        auto_delete: false,
        internal: false,
        arguments,
    };
    let binding = Binding {
        source: exchange(),
        destination: Destination::Queue(name),
        routing_key: ShortString::default(),
        arguments: FieldTable::default(),
    };
    let delay_queue = Change::DelayQueueDeclared { queue: QueueNumber(1), exchange: exchange() };
    vec![exchange_declared, delay_queue, queue_declared, Change::Bound(binding)]
}

/// A virtual host, started at a time with what a journal has.
fn started(now: Moment, changes: &[Change]) -> VirtualHost {
    let mut vhost = empty_vhost();
    for (change, position) in changes.iter().zip(1..) {
        let mut bytes = Vec::new();
        change.encode(&mut bytes);
        vhost.apply(now, JournalPosition(position), Change::decode(&bytes).unwrap()).unwrap();
    }
    vhost.end_recovery();
    vhost
}

/// Effects that a journal has, with which those that follow are one.
fn journaled(changes: Vec<Change>) -> Effects {
    let mut effects = Effects::default();
    effects.changes = changes;
    effects
}

fn publish(vhost: &mut VirtualHost, now: Moment, delay_ms: u32, effects: &mut Effects) {
    let plain = message();
    let headers = FieldTable::build(|table| _ = table.field(DELAY, Value::U32(delay_ms)));
    let header = plain.decode_header().unwrap();
    let route = plain.route_strings();
    let delayed = plain.rewritten(route, std::iter::empty(), header, &headers, History::None);
    let route: Route = vhost.exchanges.delay_queue("x").into_iter().collect();
    vhost.place(now, delayed, None, &route, JournalPosition::default(), effects);
}

/// Lets everything happen that is due, bodies read at once; the delays of what went on, in that order.
fn gone_on(vhost: &mut VirtualHost, now: Moment, effects: &mut Effects) -> Vec<i64> {
    let before = effects.changes.len();
    loop {
        let _ = vhost.handle_timeout(now, effects);
        let fetches = std::mem::take(&mut effects.fetches);
        let is_due = vhost.next_timeout().is_some_and(|deadline| now.has_reached(deadline));
        if fetches.is_empty() && !is_due {
            break;
        }
        let read = |id: crate::message::MessageId| {
            let at = usize::try_from(id.position().unwrap().0).unwrap() - 1;
            let Change::MessageEnqueued { message, .. } = &effects.changes[at] else { panic!("no message") };
            message.clone()
        };
        let mut bodies =
            fetches.into_iter().map(|fetch| Fetched { fetch, message: Some(read(fetch.id)) }).collect();
        let _ = vhost.handle_fetched(now, &mut bodies, effects);
    }
    let delay = |change: &Change| {
        let Change::MessageEnqueued { message, .. } = change else { return None };
        message.decode_header().unwrap().properties.headers?.get(DELAY)?.as_integer()
    };
    effects.changes[before..].iter().filter_map(delay).map(i64::abs).collect()
}

/// So many delays, none twice, in no order.
fn delays(count: u32) -> impl Iterator<Item = u32> {
    (0..count).map(move |nth| 1 + nth * 7919 % count)
}

#[test]
fn messages_that_have_become_due_meanwhile_go_on_in_the_order_in_which_they_were() {
    const COUNT: u32 = 2000;
    for (is_down, is_evicted) in [(false, false), (true, false), (false, true), (true, true)] {
        let mut effects = journaled(beginning());
        let mut vhost = started(at(100), &effects.changes);
        for delay in delays(COUNT) {
            publish(&mut vhost, at(100), delay, &mut effects);
        }
        if is_down {
            vhost = started(at(200), &effects.changes);
        }
        if is_evicted {
            evict(&mut vhost, |_| true);
        }
        let order = gone_on(&mut vhost, at(200), &mut effects);
        assert!(order.iter().copied().eq(1..=COUNT.into()), "down: {is_down}, evicted: {is_evicted}");
        assert!(vhost.exchanges.delay_queue("x").is_some_and(|queue| vhost.queues[queue].len() == 0));
        // They are due anyhow: a journal need not hear of it twice.
        let is_condemned = |change: &Change| matches!(change, Change::MessagesCondemned { .. });
        assert!(!effects.changes.iter().any(is_condemned));
    }
}

#[test]
fn a_start_may_come_at_any_moment_before_during_and_after() {
    const COUNT: u32 = 600;
    let mut effects = journaled(beginning());
    let mut vhost = started(at(100), &effects.changes);
    for delay in delays(COUNT) {
        publish(&mut vhost, at(100), delay, &mut effects);
    }
    let published = effects.changes.len();
    let all = gone_on(&mut vhost, at(101), &mut effects).len();
    assert_eq!(all, 600);
    // What enqueues a message and what settles it are one group of the journal, so they are there as a whole or not at all.
    for group in (0..=all).step_by(37) {
        let mut until = journaled(effects.changes[..published + 2 * group].to_vec());
        let mut vhost = started(at(102), &until.changes);
        let left = gone_on(&mut vhost, at(102), &mut until);
        assert!(left.into_iter().eq(i64::try_from(group).unwrap() + 1..=COUNT.into()), "after {group}");
        let queue = vhost.queue_names["q"];
        assert_eq!(vhost.queues[queue].ready(), all);
    }
}

#[test]
fn a_few_long_delays_do_not_keep_the_pages_of_many_short_ones() {
    let memory = |is_short_too: bool| {
        let mut effects = journaled(beginning());
        let mut vhost = started(at(100), &effects.changes);
        for nth in 0..15_000 {
            if nth % 500 == 0 {
                publish(&mut vhost, at(100), 1_000_000, &mut effects);
            } else if is_short_too {
                publish(&mut vhost, at(100), 1000, &mut effects);
            }
        }
        evict(&mut vhost, |_| true);
        gone_on(&mut vhost, at(101), &mut effects);
        let queue = vhost.queue_names["q"];
        let arrived = vhost.queues[queue].purge();
        drop(arrived);
        vhost.memory().bytes()
    };
    let (alone, among_others) = (memory(false), memory(true));
    assert!(among_others <= alone + 16 * 1024, "{among_others} bytes instead of {alone}");
}

#[test]
fn an_exchange_whose_delay_queue_is_missing_gets_one_when_it_is_declared_again() {
    let mut changes = beginning();
    changes.remove(1);
    let mut vhost = started(at(1), &changes);
    assert_eq!(vhost.exchanges.delay_queue("x"), None);
    let mut effects = Effects::default();
    vhost.declare_delay_queue(at(1), exchange(), true, &mut effects);
    vhost.declare_delay_queue(at(1), exchange(), true, &mut effects);
    assert_eq!(effects.changes, [Change::DelayQueueDeclared { queue: QueueNumber(3), exchange: exchange() }]);
    assert!(vhost.exchanges.delay_queue("x").is_some());
}

#[test]
fn it_is_told_how_many_wait_and_the_delay_queue_itself_is_not_listed() {
    let mut effects = journaled(beginning());
    let mut vhost = started(at(1), &effects.changes);
    for delay in delays(3) {
        publish(&mut vhost, at(1), delay, &mut effects);
    }
    let view = vhost.exchange_view("x").unwrap();
    assert_eq!((view.kind, view.messages_delayed), (DELAYED, Some(3)));
    assert_eq!(vhost.exchange_view("amq.topic").unwrap().messages_delayed, None);
    let (mut cursor, mut queues) = (QueueCursor::default(), Vec::new());
    assert_eq!(vhost.list_queues(&mut cursor, 10, &mut queues), Progress::Done);
    assert!(queues.iter().map(|queue| queue.name.as_str()).eq(["q"]));
}

#[test]
fn a_level_has_delays_of_one_order_of_magnitude() {
    let rank = |delay| crate::vhost::queue::Rank::of_delay(delay);
    assert_eq!(rank(1000), rank(1023));
    assert_eq!(rank(1024), rank(2047));
    assert!(rank(1) < rank(1023) && rank(1023) < rank(1024) && rank(2047) < rank(u32::MAX));
    assert_eq!(rank(u32::MAX), crate::vhost::queue::Rank::of_place(QueuePosition(32 << 54)));
}
