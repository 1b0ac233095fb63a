use std::sync::Arc;

use leveret_amqp::{FieldTable, ShortStr, Value};
use rand::SeedableRng;
use rand::rngs::StdRng;

use super::*;
use crate::change::{Change, JournalPosition, QueueNumber};
use crate::message::{DeliveryMode, Message, write_route};
use crate::names::{ChannelId, ExchangeName, QueueName};
use crate::vhost::command::{Bind, BindAction, BindTo, Farewell, QueueRef, Wait};
use crate::vhost::exchange::{BindingKey, DeclaredExchange, ExchangeKind, Timing};
use crate::vhost::fixtures::{at, connect, empty_vhost};
use crate::vhost::{Progress, QueueId};

/// A virtual host with queues `1` to `4`, one `5` whose dead letters go to `hard`, and two connections with a channel
/// each.
struct Scene {
    vhost: VirtualHost,
    queues: Vec<QueueId>,
    left: ConnectionId,
    right: ConnectionId,
}

fn short(text: &str) -> ShortString {
    ShortString::from(ShortStr::truncated(text))
}

fn channel() -> ChannelId {
    ChannelId::new(1).unwrap()
}

fn publish(exchange: &str, key: &str) -> Command {
    let mut block = Vec::new();
    write_route(&mut block, ShortStr::truncated(exchange), ShortStr::truncated(key));
    let header_at = u16::try_from(block.len()).unwrap();
    block.extend([0, 60, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    let body_at = u32::try_from(block.len()).unwrap();
    let message = Message::new(&block, header_at, body_at, DeliveryMode::Transient);
    Command::Publish(Publish {
        channel: channel(),
        message,
        more_keys: None,
        mandatory: false,
        expiration_ms: None,
        confirm: None,
    })
}

fn bind(action: BindAction, queue: usize, key: &str) -> Command {
    let (source, to) = (short("hard"), BindTo::Queue(QueueRef::new(short(&queue.to_string()))));
    let (routing_key, arguments) = (short(key), FieldTable::default());
    Command::Bind(channel(), Box::new(Bind { action, source, to, routing_key, arguments, wait: Wait::NoWait }))
}

impl Scene {
    fn new() -> Self {
        let mut vhost = empty_vhost();
        for number in 1..=4 {
            let name = QueueName::new(ShortStr::truncated(&number.to_string()));
            let (queue, auto_delete, arguments) = (QueueNumber(number), false, FieldTable::default());
            let declared = Change::QueueDeclared { queue, name, auto_delete, arguments };
            vhost.apply(at(1), JournalPosition(number), declared).unwrap();
        }
        let (queue, name) = (QueueNumber(5), QueueName::new(ShortStr::truncated("5")));
        let arguments = FieldTable::build(|table| {
            table.field("x-dead-letter-exchange", Value::LongStr(b"hard"));
        });
        let declared = Change::QueueDeclared { queue, name, auto_delete: false, arguments };
        vhost.apply(at(1), JournalPosition(5), declared).unwrap();
        vhost.end_recovery();
        let queues = (1..=4_u64).map(|number| vhost.durable_queues[&QueueNumber(number)]).collect();
        let [left, right] = std::array::from_fn(|_| connect(&mut vhost));
        let mut scene = Scene { vhost, queues, left, right };
        for connection in [left, right] {
            assert_eq!(scene.hold(connection, &mut vec![Command::OpenChannel(channel())]), Progress::Done);
        }
        scene
    }

    /// With an exchange `hard` that leads to the first queue and to so many other exchanges that the search takes three
    /// holds.
    fn with_hard_exchange() -> Self {
        let mut scene = Scene::new();
        let hard = scene.exchange("hard", ExchangeKind::Fanout, None);
        scene.bind(hard, Target::Queue(scene.queues[0]), "");
        for n in 0..8000 {
            let other = scene.exchange(&format!("other-{n}"), ExchangeKind::Fanout, None);
            scene.bind(hard, Target::Exchange(other), "");
        }
        scene
    }

    fn exchange(&mut self, name: &str, kind: ExchangeKind, alternate: Option<&str>) -> ExchangeId {
        let exchange_name = |name| ExchangeName::new(ShortStr::truncated(name));
        self.vhost.exchanges.insert(DeclaredExchange {
            timing: Timing::AtOnce,
            name: exchange_name(name),
            kind,
            durable: false,
            auto_delete: false,
            internal: false,
            alternate: alternate.map(exchange_name),
            arguments: FieldTable::default(),
        })
    }

    fn bind(&mut self, source: ExchangeId, target: Target, key: &str) {
        let key = BindingKey { target, routing_key: short(key), arguments: FieldTable::default() };
        assert!(self.vhost.apply_bound(source, key));
    }

    /// One hold of the lock for these commands; what is left of them stays.
    fn hold(&mut self, from: ConnectionId, commands: &mut Vec<Command>) -> Progress {
        let mut all = Commands::default();
        commands.drain(..).for_each(|command| all.push(command));
        let progress = self.vhost.handle_batch(at(1), from, &mut all, &mut Effects::default());
        commands.extend(all.queue);
        progress
    }

    /// Goes on until nothing is left, and says in how many holds.
    fn finish(&mut self, from: ConnectionId, commands: &mut Vec<Command>) -> usize {
        (1..1000).find(|_| self.hold(from, commands) == Progress::Done).unwrap()
    }

    fn ready(&self) -> Vec<usize> {
        self.queues.iter().map(|&queue| self.vhost.queues[queue].ready()).collect()
    }
}

#[test]
fn others_go_on_while_a_search_takes_several_holds() {
    let mut scene = Scene::with_hard_exchange();
    let (left, right) = (scene.left, scene.right);
    let mut commands = vec![publish("hard", ""), publish("", "3")];
    assert_eq!(scene.hold(left, &mut commands), Progress::More);
    assert_eq!(scene.hold(right, &mut vec![publish("", "2")]), Progress::Done);
    assert_eq!(scene.ready(), [0, 1, 0, 0]);
    assert_eq!(scene.finish(left, &mut commands), 2);
    assert_eq!(scene.ready(), [1, 1, 1, 0], "and what is sent behind it comes after it");
    assert_eq!(scene.hold(left, &mut vec![publish("hard", "")]), Progress::Done, "the way is remembered");
    assert_eq!(scene.ready(), [2, 1, 1, 0]);
}

/// A way that is remembered says that its user may go it.
#[test]
fn a_way_is_not_remembered_that_was_found_by_what_was_granted_before() {
    let mut scene = Scene::with_hard_exchange();
    let left = scene.left;
    let mut commands = vec![publish("hard", "")];
    assert_eq!(scene.hold(left, &mut commands), Progress::More);
    let user = scene.vhost.sessions[left].login.user.clone();
    scene.vhost.set_grant(&user, &Arc::default());
    scene.finish(left, &mut commands);
    assert_eq!(scene.ready(), [1, 0, 0, 0], "it was allowed when it was published");
    scene.finish(left, &mut vec![publish("hard", "")]);
    assert_eq!(scene.ready(), [1, 0, 0, 0]);
}

#[test]
fn a_search_begins_again_if_bindings_change_and_then_who_binds_waits() {
    let mut scene = Scene::with_hard_exchange();
    let (left, right) = (scene.left, scene.right);
    let mut commands = vec![publish("hard", "")];
    assert_eq!(scene.hold(left, &mut commands), Progress::More);
    assert_eq!(scene.hold(right, &mut vec![bind(BindAction::Bind, 2, "")]), Progress::Done);
    assert_eq!(scene.hold(left, &mut commands), Progress::More);
    let mut more = vec![publish("", "4"), bind(BindAction::Bind, 3, ""), publish("", "4")];
    assert_eq!(scene.hold(right, &mut more), Progress::More);
    assert_eq!(more.len(), 2, "it waits, and what comes behind it");
    assert_eq!(scene.hold(right, &mut more), Progress::More);
    assert_eq!(scene.finish(left, &mut commands), 2);
    assert_eq!(scene.ready(), [1, 1, 0, 1]);
    assert_eq!(scene.hold(right, &mut more), Progress::Done);
    assert_eq!(scene.hold(left, &mut vec![publish("", "1")]), Progress::Done);
    assert_eq!(scene.ready(), [2, 1, 0, 2]);
}

#[test]
fn a_queue_that_is_deleted_during_a_search_is_not_found() {
    let mut scene = Scene::with_hard_exchange();
    let left = scene.left;
    let mut commands = vec![publish("hard", "")];
    assert_eq!(scene.hold(left, &mut commands), Progress::More);
    scene.vhost.delete_queue(scene.queues[0], &mut Effects::default());
    assert_eq!(scene.finish(left, &mut commands), 3, "it begins again");
    scene.queues.remove(0);
    assert_eq!(scene.ready(), [0, 0, 0]);
}

#[test]
fn a_publish_is_dropped_if_its_channel_is_closed_during_the_search() {
    let mut scene = Scene::with_hard_exchange();
    let left = scene.left;
    let mut commands = vec![publish("hard", ""), publish("", "2")];
    assert_eq!(scene.hold(left, &mut commands), Progress::More);
    scene.vhost.sessions[left].channel(channel()).unwrap().failed = true;
    assert_eq!(scene.hold(left, &mut commands), Progress::Done);
    assert_eq!(scene.ready(), [0, 0, 0, 0]);
    assert!(scene.vhost.searching.is_empty());
}

#[test]
fn what_a_client_published_before_it_went_arrives() {
    let mut scene = Scene::with_hard_exchange();
    let left = scene.left;
    let mut commands = vec![publish("hard", "")];
    assert_eq!(scene.hold(left, &mut commands), Progress::More);
    commands.push(Command::Disconnect(Farewell::Silent));
    scene.finish(left, &mut commands);
    assert_eq!(scene.ready(), [1, 0, 0, 0]);
    assert!(scene.vhost.searching.is_empty() && !scene.vhost.sessions.contains_key(left));
}

#[test]
fn dead_letters_that_take_a_hold_each_do_not_share_one() {
    let mut scene = Scene::with_hard_exchange();
    let expiring = (0..100).map(|_| match publish("", "5") {
        Command::Publish(publish) => Command::Publish(Publish { expiration_ms: Some(1000), ..publish }),
        other => other,
    });
    let (left, mut commands) = (scene.left, expiring.collect());
    assert_eq!(scene.hold(left, &mut commands), Progress::Done);
    let mut effects = Effects::default();
    let mut progress = scene.vhost.handle_timeout(at(3), &mut effects);
    let mut arrived = vec![0, scene.ready()[0]];
    while progress == Progress::More {
        progress = scene.vhost.go_on(at(3), &mut effects);
        arrived.push(scene.ready()[0]);
    }
    assert!(arrived.windows(2).all(|hold| hold[1] - hold[0] <= 1), "{arrived:?}");
    assert_eq!(arrived.last(), Some(&100));
}

/// All types of exchanges, bound in a circle, one with an alternate.
#[test]
fn a_search_in_single_steps_finds_what_one_at_once_finds() {
    let mut scene = Scene::new();
    let [first, second, third, fourth] = scene.queues[..] else { panic!("there are four") };
    let fanout = scene.exchange("fanout", ExchangeKind::Fanout, None);
    let topic = scene.exchange("topic", ExchangeKind::Topic, Some("last"));
    let direct = scene.exchange("direct", ExchangeKind::Direct, Some("last"));
    let headers = scene.exchange("headers", ExchangeKind::Headers, None);
    let last = scene.exchange("last", ExchangeKind::Fanout, None);
    for exchange in [topic, direct, headers] {
        scene.bind(fanout, Target::Exchange(exchange), "");
        scene.bind(fanout, Target::Exchange(exchange), "again");
    }
    for key in ["#", "#.b", "a.*"] {
        scene.bind(topic, Target::Queue(first), key);
    }
    scene.bind(topic, Target::Exchange(fanout), "*.*");
    scene.bind(direct, Target::Queue(second), "only this");
    scene.bind(headers, Target::Queue(third), "");
    scene.bind(last, Target::Queue(fourth), "");
    let Command::Publish(Publish { message, .. }) = publish("fanout", "a.b") else { panic!("it is a publish") };
    for (keys, expected) in
        [(&["a.b"][..], vec![first, third, fourth]), (&["only this", "a.b", "c"], vec![first, second, third])]
    {
        for at_once in [1, 2, 7, usize::MAX] {
            let mut random = StdRng::from_seed([1; 32]);
            let mut search = Search::new(fanout, 0, MatchScratch::default());
            while !search.go_on(&scene.vhost.exchanges, keys, &message, &mut random, &mut at_once.clone()) {}
            assert_eq!(search.finish().0[..], expected, "{at_once} steps at once");
        }
    }
}

#[test]
fn what_is_picked_of_many_is_one_however_often_the_search_is_interrupted() {
    let mut scene = Scene::new();
    let [first, second, third, fourth] = scene.queues[..] else { panic!("there are four") };
    let fanout = scene.exchange("fanout", ExchangeKind::Fanout, None);
    scene.bind(fanout, Target::Queue(fourth), "");
    for kind in [ExchangeKind::Random, ExchangeKind::ModulusHash, ExchangeKind::ConsistentHash] {
        let one_of = scene.exchange(kind.as_str(), kind, None);
        scene.bind(fanout, Target::Exchange(one_of), "");
        for queue in [first, second, third] {
            scene.bind(one_of, Target::Queue(queue), "1");
        }
        let mut random = StdRng::from_seed([1; 32]);
        let Command::Publish(Publish { message, .. }) = publish("fanout", "k") else { panic!("it is a publish") };
        let mut found = BTreeSet::new();
        for at_once in [1, 2, 3, 4, 5, 7, 9, 11, 13, usize::MAX] {
            let mut search = Search::new(fanout, 0, MatchScratch::default());
            while !search.go_on(&scene.vhost.exchanges, &["k"], &message, &mut random, &mut at_once.clone()) {}
            assert_eq!(search.by_key, kind != ExchangeKind::Random);
            let (route, ..) = search.finish();
            assert_eq!((route.len(), route.contains(&fourth)), (2, true), "{kind:?}, {at_once} steps at once");
            found.extend(route);
        }
        // By chance, another one each time; by a hash, the same.
        assert_eq!(found.len(), if kind == ExchangeKind::Random { 4 } else { 2 });
        scene.vhost.apply_exchange_deleted(one_of);
    }
}

#[test]
fn many_bindings_of_a_fanout_exchange_to_one_queue_cost_what_one_does() {
    let mut scene = Scene::new();
    let fanout = scene.exchange("fanout", ExchangeKind::Fanout, None);
    let target = Target::Queue(scene.queues[0]);
    for n in 0..10_000 {
        scene.bind(fanout, target, &n.to_string());
    }
    let Command::Publish(Publish { message, .. }) = publish("fanout", "") else { panic!("it is a publish") };
    let found = |scene: &Scene| {
        let mut random = StdRng::from_seed([1; 32]);
        let (mut search, mut steps) = (Search::new(fanout, 0, MatchScratch::default()), 100);
        assert!(search.go_on(&scene.vhost.exchanges, &[""], &message, &mut random, &mut steps));
        search.finish().0.len()
    };
    assert_eq!(found(&scene), 1);
    // Until the last of them is gone.
    for n in 0..10_000 {
        assert_eq!(found(&scene), 1);
        let (routing_key, arguments) = (short(&n.to_string()), FieldTable::default());
        assert!(scene.vhost.apply_unbound(fanout, &BindingKey { target, routing_key, arguments }));
    }
    assert_eq!(found(&scene), 0);
}
