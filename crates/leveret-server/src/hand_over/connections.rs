//! The whole way: connections that publish and consume, their virtual host, its outboxes and its journal.

use std::collections::BTreeSet;
use std::sync::Arc;

use leveret_amqp::frame::{split_frame, write_content, write_method};
use leveret_amqp::{BasicProperties, ContentHeader, FrameKind, Method, ShortStr, Table};
use leveret_broker::connection::Written;
use leveret_broker::names::VhostName;
use leveret_broker::vhost::Progress;
use leveret_broker::vhost::room::Room;
use leveret_broker::{Change, Moment, VirtualHost};
use leveret_testkit::disk::SimDisk;
use shuttle::future::block_on;
use shuttle::thread;

use super::journal::{found_on, start};
use super::schedules::explore;
use crate::clock::Clock;
use crate::hub::Hub;
use crate::hub::tests::Client;
use crate::journal::{Appended, Awaited, Writer};
use crate::memory::Memory;

const QUEUE: &str = "q";
const FRAME_MAX: u32 = 131_072;

/// Messages of each publisher.
const MESSAGES: u8 = 2;

/// A node with one virtual host.
struct Place {
    writer: Writer,
    hub: Arc<Hub>,
    memory: Arc<Memory>,
    disk: SimDisk,
}

impl Place {
    fn new() -> Self {
        let (writer, streams, disk) = start(1, 1 << 20);
        let memory = Memory::new(1 << 30);
        let vhost = VirtualHost::new(VhostName::new(ShortStr::truncated("/")), [1; 32]);
        let hub = Hub::new(vhost, Arc::clone(&streams[0]), None, Arc::clone(&memory), Clock::start());
        Place { writer, hub, memory, disk }
    }
}

/// What a client was told.
#[derive(Debug, PartialEq, Eq)]
enum Heard {
    /// A publish is confirmed, by its number; with all before it, if so it says.
    Confirmed(u8, bool),
    /// The body of a message.
    Delivered(Vec<u8>),
    Anything,
}

/// A connection and its client. Only the socket between them is missing.
struct Session {
    client: Client,
    awaited: Awaited,
    writes_here: bool,
    is_unwritten: bool,
    progress: Progress,
    unsent: Vec<u8>,
}

impl Session {
    fn open(hub: &Arc<Hub>, writes_here: bool) -> Self {
        let (client, awaited) = (Client::open(hub), Awaited::default());
        let (is_unwritten, progress) = (false, Progress::Done);
        Session { client, awaited, writes_here, is_unwritten, progress, unsent: Vec::new() }
    }

    fn now() -> Moment {
        Clock::start().now()
    }

    /// The client says something, and the connection has a turn.
    fn say(&mut self, bytes: &[u8]) {
        let used = self.client.connection.handle_input(Self::now(), bytes, &mut self.unsent);
        assert_eq!(used, bytes.len());
        self.work();
    }

    /// As a peer's task does it: what there is to do, before it waits for its outbox.
    fn work(&mut self) {
        self.execute();
        self.catch_up();
        self.execute();
        if std::mem::take(&mut self.is_unwritten)
            && let Some(attached) = &self.client.attached
        {
            if self.writes_here { attached.journal().write_here() } else { attached.journal().have_written() }
        }
        self.catch_up();
    }

    fn execute(&mut self) {
        let Client { connection, attached, outbox, .. } = &mut self.client;
        let attached = attached.as_ref().expect("it is open");
        loop {
            if self.progress == Progress::More || !connection.commands().is_empty() {
                let turn = attached.execute(connection.commands());
                self.is_unwritten |= turn.appended != Appended::Nothing;
                self.progress = turn.progress;
            }
            let mut outputs = Vec::new();
            outbox.take(&mut outputs);
            if outputs.is_empty() {
                return;
            }
            let durable = attached.journal().durable();
            connection.handle_outputs(Self::now(), outputs.drain(..), durable, &mut self.unsent);
        }
    }

    fn catch_up(&mut self) {
        let Client { connection, attached, outbox, .. } = &mut self.client;
        let journal = attached.as_ref().expect("it is open").journal();
        while let Some(position) = connection.awaits() {
            let durable = journal.durable();
            if position > durable {
                return self.awaited.wait(position, durable, journal, outbox);
            }
            connection.handle_durable(Self::now(), durable, &mut self.unsent);
        }
    }

    /// Waits until the client was told something.
    fn hear(&mut self) -> Vec<Heard> {
        while self.unsent.is_empty() {
            block_on(self.client.outbox.filled());
            self.work();
        }
        let (sent, mut heard) = (std::mem::take(&mut self.unsent), Vec::new());
        let (bytes, is_due) = self.client.connection.handle_written(Self::now(), Written::All);
        self.client.outbox.written(bytes);
        if is_due {
            self.work();
        }
        let mut rest = &sent[..];
        while let Some(frame) = split_frame(&mut rest, FRAME_MAX).expect("the broker's frames are well formed") {
            heard.push(match frame.kind {
                FrameKind::Method => match Method::decode(frame.payload).expect("so are its methods") {
                    Method::BasicAck { delivery_tag, multiple } => {
                        Heard::Confirmed(u8::try_from(delivery_tag).expect("they are few"), multiple)
                    }
                    _ => Heard::Anything,
                },
                FrameKind::Body => Heard::Delivered(frame.payload.to_vec()),
                _ => Heard::Anything,
            });
        }
        heard
    }

    /// Hears something that is not about messages.
    fn hear_answers(&mut self) {
        while self.client.connection.awaits().is_some() || !self.unsent.is_empty() {
            assert!(self.hear().iter().all(|heard| *heard == Heard::Anything));
        }
    }
}

fn method(method: &Method<'_>) -> Vec<u8> {
    let mut bytes = Vec::new();
    write_method(&mut bytes, 1, method);
    bytes
}

fn declare() -> Vec<u8> {
    let (ticket, queue, arguments) = (0, ShortStr::truncated(QUEUE), Table::EMPTY);
    let (passive, durable, exclusive, auto_delete, nowait) = (false, true, false, false, false);
    method(&Method::QueueDeclare { ticket, queue, passive, durable, exclusive, auto_delete, nowait, arguments })
}

fn publish(body: &[u8]) -> Vec<u8> {
    let (exchange, routing_key) = (ShortStr::truncated(""), ShortStr::truncated(QUEUE));
    let (ticket, mandatory, immediate) = (0, false, false);
    let mut bytes = method(&Method::BasicPublish { ticket, exchange, routing_key, mandatory, immediate });
    let properties = BasicProperties { delivery_mode: Some(2), ..BasicProperties::default() };
    let mut header = Vec::new();
    ContentHeader { body_bytes: body.len() as u64, properties }.encode(&mut header);
    write_content(&mut bytes, 1, &header, body, FRAME_MAX);
    bytes
}

fn consume() -> Vec<u8> {
    let (ticket, queue, consumer_tag) = (0, ShortStr::truncated(QUEUE), ShortStr::truncated("c"));
    let (no_local, no_ack, exclusive, nowait, arguments) = (false, false, false, true, Table::EMPTY);
    method(&Method::BasicConsume { ticket, queue, consumer_tag, no_local, no_ack, exclusive, nowait, arguments })
}

/// Publishes, and finds what is confirmed on the disk.
fn run_publisher(mut session: Session, disk: &SimDisk, who: u8) {
    session.say(&method(&Method::ConfirmSelect { nowait: true }));
    for at in 1..=MESSAGES {
        session.say(&publish(&[who, at]));
    }
    let mut unconfirmed: BTreeSet<_> = (1..=MESSAGES).collect();
    while !unconfirmed.is_empty() {
        for heard in session.hear() {
            let Heard::Confirmed(number, multiple) = heard else { continue };
            assert!(unconfirmed.remove(&number), "once");
            unconfirmed.retain(|&other| !multiple || other > number);
            let found = found_on(disk).remove(&1).unwrap_or_default();
            let is_there = |body: &[u8]| {
                let is_it = |change: &Change| matches!(change, Change::MessageEnqueued { message, .. } if message.body() == body);
                found.iter().any(is_it)
            };
            let confirmed = (1..=MESSAGES).filter(|at| !unconfirmed.contains(at));
            assert!(confirmed.into_iter().all(|at| is_there(&[who, at])), "what is confirmed outlives a power cut");
        }
    }
}

/// Acks what it is given, until it has all of so many publishers.
fn run_consumer(mut session: Session, publishers: u8) {
    session.say(&consume());
    let (mut last, mut delivery_tag) = (vec![0; publishers.into()], 0);
    while last.iter().any(|&last| last < MESSAGES) {
        for heard in session.hear() {
            let Heard::Delivered(body) = heard else { continue };
            let last = &mut last[usize::from(body[0])];
            assert_eq!(body[1], *last + 1, "of publisher {}", body[0]);
            *last = body[1];
            delivery_tag += 1;
            session.say(&method(&Method::BasicAck { delivery_tag, multiple: false }));
        }
    }
}

/// Everything that is published is confirmed and delivered, once and in order, and in the end nothing is left.
fn publish_and_consume(meanwhile: fn(&Hub)) {
    let Place { mut writer, hub, memory, disk } = Place::new();
    let all = memory.window_room();
    let mut first = Session::open(&hub, true);
    first.say(&declare());
    first.hear_answers();
    let mut threads = Vec::new();
    for (who, writes_here) in [(0, true), (1, false)] {
        let (session, disk) = (Session::open(&hub, writes_here), disk.clone());
        threads.push(thread::spawn(move || run_publisher(session, &disk, who)));
    }
    let session = Session::open(&hub, false);
    threads.push(thread::spawn(move || run_consumer(session, 2)));
    meanwhile(&hub);
    for thread in threads {
        thread.join().expect("it has ended by itself");
    }
    drop(first);
    assert_eq!(memory.window_room(), all, "nothing is on its way any more");
    assert_eq!(hub.durable_messages(), 0);
    writer.stop();
}

#[test]
fn what_is_published_is_confirmed_once_it_is_durable_and_delivered_in_order() {
    explore(|| publish_and_consume(|_| {}));
}

#[test]
fn publishers_that_wait_for_room_go_on_when_there_is_some() {
    explore(|| {
        publish_and_consume(|hub| {
            hub.set_room(Room::ShortOf { memory: true, disk: false });
            hub.set_room(Room::Enough);
            hub.set_room(Room::Soon);
            hub.set_room(Room::Enough);
        });
    });
}
