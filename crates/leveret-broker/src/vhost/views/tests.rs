use std::collections::BTreeSet;
use std::sync::Arc;

use leveret_amqp::{ShortStr, Value};

use super::*;
use crate::access::Grant;
use crate::limits::UNITS_PER_HOLD;
use crate::vhost::command::{
    Bind, BindAction, BindTo, Command, Commands, Consume, ConsumerId, DeclareExchange, DeclareQueue, DeleteQueue,
    Existence, QueueRef, Wait,
};
use crate::vhost::effects::Effects;
use crate::vhost::fixtures::{at, connect, empty_vhost};

fn text(text: &str) -> ShortString {
    ShortStr::truncated(text).into()
}

fn channel(number: u16) -> ChannelId {
    ChannelId::new(number).unwrap()
}

/// A virtual host with a connection whose channel 1 is open.
struct Scene {
    vhost: VirtualHost,
    connection: ConnectionId,
    effects: Effects,
}

impl Scene {
    fn new() -> Self {
        let mut vhost = empty_vhost();
        let connection = connect(&mut vhost);
        let name = "127.0.0.1:1000 -> 127.0.0.1:5672";
        vhost.describe(connection, ConnectionDetails::new(name.into(), "127.0.0.1".into(), 1000));
        let mut scene = Scene { vhost, connection, effects: Effects::default() };
        scene.execute(Command::OpenChannel(channel(1)));
        scene
    }

    fn execute(&mut self, command: Command) {
        self.execute_as(self.connection, command);
    }

    fn execute_as(&mut self, connection: ConnectionId, command: Command) {
        let mut commands = Commands::default();
        commands.push(command);
        let mut progress = self.vhost.handle_batch(at(1), connection, &mut commands, &mut self.effects);
        while progress == Progress::More {
            progress = self.vhost.go_on(at(1), &mut self.effects);
        }
    }

    /// Every other one durable.
    fn declare(&mut self, number: u32) {
        self.declare_with(&format!("q{number}"), number.is_multiple_of(2), false, FieldTable::default());
    }

    fn declare_with(&mut self, name: &str, durable: bool, exclusive: bool, arguments: FieldTable) {
        let (name, existence, auto_delete, wait) = (text(name), Existence::Declare, false, Wait::NoWait);
        let declare = DeclareQueue { name, existence, durable, exclusive, auto_delete, wait, arguments };
        self.execute(Command::DeclareQueue(channel(1), Box::new(declare)));
    }

    fn delete(&mut self, number: u32) {
        let queue = QueueRef::Named(text(&format!("q{number}")));
        let delete = DeleteQueue { queue, if_unused: false, if_empty: false, wait: Wait::NoWait };
        self.execute(Command::DeleteQueue(channel(1), delete));
    }

    fn bind(&mut self, action: BindAction, queue: &str, key: &str) {
        let (source, to, routing_key) = (text("amq.topic"), BindTo::Queue(QueueRef::Named(text(queue))), text(key));
        let (arguments, wait) = (FieldTable::default(), Wait::NoWait);
        let bind = Bind { action, source, to, routing_key, arguments, wait };
        self.execute(Command::Bind(channel(1), Box::new(bind)));
    }

    fn consume(&mut self, slot: u32, number: u64, queue: &str) {
        let (consumer, tag) = (ConsumerId { slot, number }, ConsumerTag::from(text(&format!("t{number}"))));
        let (queue, ack_mode, exclusive) = (QueueRef::Named(text(queue)), AckMode::Manual, false);
        let (wait, arguments) = (Wait::NoWait, FieldTable::default());
        let consume = Consume { consumer, tag, queue, ack_mode, exclusive, wait, arguments };
        self.execute(Command::Consume(channel(1), Box::new(consume)));
    }

    fn cancel(&mut self, slot: u32, number: u64) {
        let tag = ConsumerTag::from(text(&format!("t{number}")));
        self.execute(Command::Cancel(channel(1), ConsumerId { slot, number }, tag, Wait::NoWait));
    }
}

/// Lists all in holds of so many units, and lets something happen after each; the names of what was listed.
fn listed<C: Default, V>(
    scene: &mut Scene,
    units: u32,
    list: impl Fn(&VirtualHost, &mut C, u32, &mut Vec<V>) -> Progress,
    name: impl Fn(&V) -> String,
    mut meanwhile: impl FnMut(&mut Scene),
) -> Vec<String> {
    let (mut cursor, mut views) = (C::default(), Vec::new());
    loop {
        let before = views.len();
        let progress = list(&scene.vhost, &mut cursor, units, &mut views);
        assert!(views.len() - before <= units as usize + 1, "{} in one hold", views.len() - before);
        if progress == Progress::Done {
            return views.iter().map(name).collect();
        }
        meanwhile(scene);
    }
}

/// All of these are there, and nothing is there twice.
fn has_once(listed: &[String], expected: impl IntoIterator<Item = String>) {
    let names: BTreeSet<_> = listed.iter().collect();
    assert_eq!(names.len(), listed.len(), "something is listed twice");
    for name in expected {
        assert!(names.contains(&name), "{name} is missing");
    }
}

#[test]
fn queues_that_stay_are_listed_once_whatever_comes_and_goes() {
    let mut scene = Scene::new();
    (0..3000).for_each(|number| scene.declare(number));
    let (mut gone, mut new) = (0, 3000);
    let names = listed(
        &mut scene,
        64,
        VirtualHost::list_queues,
        |view| view.name.to_string(),
        |scene| {
            // Of those before and behind the place, some go; others come, some of them by a name that was free.
            for number in [gone, 2999 - gone] {
                scene.delete(number);
            }
            scene.declare(gone);
            scene.declare(new);
            gone += 3;
            new += 1;
        },
    );
    assert!(gone > 30, "something has happened: {gone}");
    has_once(
        &names,
        (0..3000_u32).filter(|n| !n.is_multiple_of(3) && !(2999 - n).is_multiple_of(3)).map(|n| format!("q{n}")),
    );
}

/// However fast queues are declared.
#[test]
fn a_list_of_queues_comes_to_its_end_while_others_are_declared() {
    let mut scene = Scene::new();
    (0..100).for_each(|number| scene.declare(number));
    let mut new = 100;
    let names = listed(
        &mut scene,
        10,
        VirtualHost::list_queues,
        |view| view.name.to_string(),
        |scene| {
            for _ in 0..20 {
                scene.declare(new);
                new += 1;
            }
        },
    );
    has_once(&names, (0..100).map(|n| format!("q{n}")));
    assert_eq!(names.len(), 100);
}

#[test]
fn a_hold_lists_fewer_of_those_with_large_arguments() {
    let mut scene = Scene::new();
    let large = FieldTable::build(|table| _ = table.field("x", Value::LongStr(&vec![7; 100_000])));
    for number in 0..50 {
        scene.declare_with(&format!("q{number}"), true, false, large.clone());
    }
    let (mut cursor, mut views) = (QueueCursor::default(), Vec::new());
    assert_eq!(scene.vhost.list_queues(&mut cursor, UNITS_PER_HOLD, &mut views), Progress::More);
    assert!((5..20).contains(&views.len()), "{}", views.len());
}

#[test]
fn a_queue_shows_what_lies_in_it_and_whose_it_is() {
    let mut scene = Scene::new();
    let arguments = FieldTable::build(|table| _ = table.field("x-max-length", Value::I32(5)));
    scene.declare_with("q", false, true, arguments.clone());
    scene.consume(0, 1, "q");
    let view = scene.vhost.queue_view("q").unwrap();
    assert_eq!((view.queue_type, view.durable, view.exclusive, view.consumers), ("classic", false, true, 1));
    assert_eq!((view.messages, view.messages_ready, view.messages_unacknowledged), (0, 0, 0));
    assert_eq!(view.arguments, Fields(arguments));
    let owner = view.owner_pid_details.unwrap();
    assert_eq!(owner.name(), "127.0.0.1:1000 -> 127.0.0.1:5672");
    assert!(scene.vhost.queue_view("nowhere").is_none());
}

#[test]
fn exchanges_begin_with_the_default_one() {
    let mut scene = Scene::new();
    let names = listed(&mut scene, 2, VirtualHost::list_exchanges, |view| view.name.to_string(), |_| {});
    let mut expected =
        ["", "amq.direct", "amq.fanout", "amq.headers", "amq.match", "amq.rabbitmq.trace", "amq.topic"];
    expected.sort_unstable();
    has_once(&names, expected.map(str::to_owned));
    assert_eq!((names.len(), names[0].as_str()), (expected.len(), ""));
    assert_eq!(scene.vhost.exchange_view("amq.match").unwrap().kind, "headers");
    assert!(scene.vhost.exchange_view("nowhere").is_none());
    assert_eq!(scene.vhost.object_counts(), (0, expected.len()));
    let later = DeclareExchange {
        name: text("later"),
        kind: text("x-delayed-message"),
        existence: Existence::Declare,
        durable: true,
        auto_delete: false,
        internal: false,
        wait: Wait::NoWait,
        arguments: FieldTable::build(|table| _ = table.field("x-delayed-type", Value::LongStr(b"fanout"))),
    };
    scene.execute(Command::DeclareExchange(channel(1), Box::new(later)));
    assert_eq!(scene.vhost.object_counts(), (0, expected.len() + 1), "nobody finds the queue behind it");
}

#[test]
fn an_administrator_is_no_client() {
    let mut scene = Scene::new();
    let administrator = scene.vhost.connect_administrator();
    scene.execute_as(administrator, Command::OpenChannel(channel(1)));
    let shown = |view: &ChannelView| view.user.to_string();
    assert_eq!(listed(&mut scene, 10, VirtualHost::list_channels, shown, |_| {}), ["guest"]);
    scene.vhost.limits.max_connections = Some(2);
    connect(&mut scene.vhost);
    // A user may have the name that it has.
    let login = &scene.vhost.sessions[administrator].login;
    let (user, all) = (login.user.clone(), Arc::clone(&login.grant));
    scene.vhost.set_grant(&user, &Arc::new(Grant::default()));
    assert_eq!(scene.vhost.sessions[administrator].login.grant, all);
}

#[test]
fn bindings_that_stay_are_listed_once_each_queue_to_the_default_exchange_among_them() {
    let mut scene = Scene::new();
    (0..10).for_each(|number| scene.declare(number));
    (0..2000).for_each(|key| scene.bind(BindAction::Bind, "q1", &format!("k{key:04}")));
    let mut gone = 0;
    let shown = |view: &BindingView| format!("{} {} {}", view.source, view.destination, view.routing_key);
    let names = listed(&mut scene, 50, VirtualHost::list_bindings, shown, |scene| {
        scene.bind(BindAction::Unbind, "q1", &format!("k{gone:04}"));
        scene.bind(BindAction::Unbind, "q1", &format!("k{:04}", 1999 - gone));
        scene.bind(BindAction::Bind, "q1", &format!("k{gone:04}.new"));
        gone += 3;
    });
    assert!(gone > 30, "something has happened: {gone}");
    let staying = (0..2000_u32).filter(|n| !n.is_multiple_of(3) && !(1999 - n).is_multiple_of(3));
    has_once(&names, staying.map(|n| format!("amq.topic q1 k{n:04}")));
    has_once(&names, (0..10).map(|n| format!(" q{n} q{n}")));
}

#[test]
fn channels_are_listed_until_they_fail_or_their_connection_goes() {
    let mut scene = Scene::new();
    (2..=2000).for_each(|number| scene.execute(Command::OpenChannel(channel(number))));
    let other = connect(&mut scene.vhost);
    scene.execute_as(other, Command::OpenChannel(channel(7)));
    // A queue that does not exist.
    let get = Command::Get(channel(5), QueueRef::Named(text("nowhere")), AckMode::Manual);
    scene.execute(get);
    let name = |view: &ChannelView| view.name.clone();
    let names = listed(&mut scene, 100, VirtualHost::list_channels, name, |scene| {
        scene.execute(Command::CloseChannel(channel(9), Wait::NoWait));
    });
    let open = (1..=2000).filter(|number| ![5, 9].contains(number));
    has_once(&names, open.map(|number| format!("127.0.0.1:1000 -> 127.0.0.1:5672 ({number})")));
    has_once(&names, [" (7)".to_owned()]);
    assert!(!names.contains(&"127.0.0.1:1000 -> 127.0.0.1:5672 (5)".to_owned()));
}

#[test]
fn consumers_that_stay_are_listed_once_though_their_slots_are_used_again() {
    let mut scene = Scene::new();
    scene.declare(1);
    (0..500).for_each(|slot| scene.consume(slot, slot.into(), "q1"));
    let mut gone = 0;
    let tag = |view: &ConsumerView| view.consumer_tag.to_string();
    let names = listed(&mut scene, 16, VirtualHost::list_consumers, tag, |scene| {
        for slot in [gone, 499 - gone] {
            scene.cancel(slot, slot.into());
            scene.consume(slot, u64::from(slot) + 1000, "q1");
        }
        gone += 2;
    });
    assert!(gone > 30, "something has happened: {gone}");
    has_once(&names, (gone..500 - gone).map(|number| format!("t{number}")));
}

#[test]
fn a_consumer_shows_whether_it_is_the_active_one() {
    let mut scene = Scene::new();
    let arguments = FieldTable::build(|table| _ = table.field("x-single-active-consumer", Value::Bool(true)));
    scene.declare_with("one", false, false, arguments);
    scene.declare(1);
    scene.consume(0, 1, "one");
    scene.consume(1, 2, "one");
    scene.consume(2, 3, "q1");
    let (mut cursor, mut views) = (SessionCursor::default(), Vec::new());
    assert_eq!(scene.vhost.list_consumers(&mut cursor, UNITS_PER_HOLD, &mut views), Progress::Done);
    let shown: Vec<_> = views.iter().map(|view| (view.active, view.activity_status)).collect();
    assert_eq!(shown, [(true, "single_active"), (false, "waiting"), (true, "up")]);
    assert_eq!(views[0].channel_details.name, "127.0.0.1:1000 -> 127.0.0.1:5672 (1)");
    assert!(views[0].ack_required);
}
