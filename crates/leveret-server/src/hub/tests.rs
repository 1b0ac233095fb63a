//! Tests of what a hub does between its virtual host and connections.

use std::sync::atomic::Ordering;

use leveret_amqp::frame::{write_content, write_method};
use leveret_amqp::{BasicProperties, ContentHeader, FieldTable, Method, PROTOCOL_HEADER, ShortStr, Table, Value};
use leveret_broker::change::QueueNumber;
use leveret_broker::connection::{Credentials, Phase, Written};
use leveret_broker::names::{QueueName, VhostName};
use leveret_broker::node::Origin;
use leveret_broker::node::presence::Present;
use leveret_broker::vhost::effects::Answer;
use leveret_broker::{Change, Connection, JournalPosition, Node, Settings};

use super::*;

/// All of it, in as many holds as it takes.
fn execute(attached: &Attached, commands: &mut Commands) {
    while attached.execute(commands).progress == Progress::More {}
}

/// A client without its socket: the loop of a peer's task, driven by hand.
pub(crate) struct Client {
    pub(crate) connection: Connection,
    pub(crate) outbox: Arc<Outbox>,
    pub(crate) attached: Option<Attached>,
    outputs: Vec<Output>,
    written: Vec<u8>,
}

impl Client {
    pub(crate) fn open(hub: &Arc<Hub>) -> Self {
        let connection = Connection::new(Arc::new(Settings::default()), [1; 32], hub.clock.now());
        let mut client =
            Client { connection, outbox: Arc::default(), attached: None, outputs: Vec::new(), written: Vec::new() };
        let mut bytes = PROTOCOL_HEADER.to_vec();
        let text = ShortStr::truncated;
        for (channel, method) in [
            (
                0,
                Method::ConnectionStartOk {
                    client_properties: Table::EMPTY,
                    mechanism: text("PLAIN"),
                    response: b"\0guest\0guest",
                    locale: text("en_US"),
                },
            ),
            (0, Method::ConnectionTuneOk { channel_max: 0, frame_max: 0, heartbeat: 0 }),
            (0, Method::ConnectionOpen { virtual_host: text("/"), capabilities: text(""), insist: false }),
            (1, Method::ChannelOpen { out_of_band: text("") }),
        ] {
            write_method(&mut bytes, channel, &method);
        }
        client.feed(hub, &bytes);
        client
    }

    fn feed(&mut self, hub: &Arc<Hub>, mut input: &[u8]) {
        while !input.is_empty() {
            let now = hub.clock.now();
            let used = self.connection.handle_input(now, input, &mut self.written);
            input = &input[used..];
            if let Some(Credentials { user, password, .. }) = self.connection.login_request() {
                let checked = Node::with_guest().log_in(user, password, Origin::Loopback);
                self.connection.handle_login(now, checked, &mut self.written);
            }
            if let Some((vhost, user)) = self.connection.open_request() {
                let (_, login) = Node::with_guest().open(vhost, user).unwrap();
                self.attached = Some(hub.connect(login, &self.outbox).unwrap());
                let present = Present::enter(Arc::default()).unwrap();
                self.connection.handle_opened(now, Ok(present), &mut self.written);
            }
            self.turn(hub);
        }
    }

    /// Executes, encodes and writes what there is.
    fn turn(&mut self, hub: &Arc<Hub>) {
        if let Some(attached) = &self.attached
            && !self.connection.commands().is_empty()
        {
            execute(attached, self.connection.commands());
        }
        let durable = hub.journal.durable();
        self.outbox.take(&mut self.outputs);
        let now = hub.clock.now();
        self.connection.handle_outputs(now, self.outputs.drain(..), durable, &mut self.written);
        self.written.clear();
        while self.connection.handle_written(now, Written::All).1 {
            if let Some(attached) = &self.attached {
                execute(attached, self.connection.commands());
            }
        }
    }
}

#[test]
fn deadlines_that_a_restart_brings_back_are_armed_before_any_client_comes() {
    let mut vhost = VirtualHost::new(VhostName::new(ShortStr::truncated("/")), [1; 32]);
    let clock = Clock::start();
    let name = QueueName::new(ShortStr::truncated("passing"));
    let arguments = FieldTable::build(|table| {
        table.field("x-expires", Value::I32(300));
    });
    let change = Change::QueueDeclared { queue: QueueNumber(1), name, auto_delete: false, arguments };
    vhost.apply(clock.now(), JournalPosition(1), change).unwrap();
    vhost.end_recovery();
    assert!(Hub::new(vhost, Stream::forgetful(1), None, Memory::new(1 << 30), clock).lock().armed.is_some());
}

/// It would wait for room first, and be given up before it has said anything.
#[test]
fn a_connection_whose_publish_waits_for_room_is_closed_with_a_reason() {
    let vhost = VirtualHost::new(VhostName::new(ShortStr::truncated("/")), [1; 32]);
    let hub = Hub::new(vhost, Stream::forgetful(1), None, Memory::new(1 << 30), Clock::start());
    let mut client = Client::open(&hub);
    hub.set_room(Room::ShortOf { memory: true, disk: false });
    let mut bytes = Vec::new();
    let text = ShortStr::truncated;
    let (exchange, routing_key) = (text(""), text("q"));
    let publish = Method::BasicPublish { ticket: 0, exchange, routing_key, mandatory: false, immediate: false };
    write_method(&mut bytes, 1, &publish);
    let mut header = Vec::new();
    ContentHeader { body_bytes: 1, properties: BasicProperties::default() }.encode(&mut header);
    write_content(&mut bytes, 1, &header, b"m", 4096);
    client.feed(&hub, &bytes);
    assert_eq!(client.connection.phase(), Phase::Blocked);
    client.connection.handle_forced_close(hub.clock.now(), "maintenance", &mut client.written);
    client.turn(&hub);
    assert_eq!(client.connection.phase(), Phase::Closed, "it has said so, and waits for the answer");
    assert!(!client.connection.is_closed());
}

/// The task of the timers may have been woken on this thread, which may write the journal next.
#[test]
fn who_sets_the_timers_anew_has_woken_somebody() {
    let vhost = VirtualHost::new(VhostName::new(ShortStr::truncated("/")), [1; 32]);
    let hub = Hub::new(vhost, Stream::forgetful(1), None, Memory::new(1 << 30), Clock::start());
    let mut client = Client::open(&hub);
    let text = ShortStr::truncated;
    let (somebody, nobody) = (Woken::Somebody, Woken::Nobody);
    for (queue, expires_ms, woken) in [("a", 60_000, somebody), ("b", 90_000, nobody), ("c", 30_000, somebody)] {
        let arguments = FieldTable::build(|table| _ = table.field("x-expires", Value::I32(expires_ms)));
        let (passive, durable, exclusive, auto_delete, nowait) = (false, true, false, false, true);
        let (ticket, queue, arguments) = (0, text(queue), arguments.as_table());
        let mut bytes = Vec::new();
        let declare =
            Method::QueueDeclare { ticket, queue, passive, durable, exclusive, auto_delete, nowait, arguments };
        write_method(&mut bytes, 1, &declare);
        let used = client.connection.handle_input(hub.clock.now(), &bytes, &mut client.written);
        assert_eq!(used, bytes.len());
        let turn = client.attached.as_ref().unwrap().execute(client.connection.commands());
        assert_eq!(turn.woken, woken, "after {expires_ms} ms");
    }
}

#[test]
fn who_brings_others_much_to_do_is_told_so() {
    let vhost = VirtualHost::new(VhostName::new(ShortStr::truncated("/")), [1; 32]);
    let hub = Hub::new(vhost, Stream::forgetful(1), None, Memory::new(1 << 30), Clock::start());
    let (mut consumer, mut publisher) = (Client::open(&hub), Client::open(&hub));
    let text = ShortStr::truncated;
    let (ticket, arguments, nowait) = (0, Table::EMPTY, true);
    let (passive, durable, exclusive, auto_delete, no_local) = (false, false, false, false, false);
    let mut bytes = Vec::new();
    for (queue, no_ack) in [("automatic", true), ("manual", false)] {
        let (queue, consumer_tag) = (text(queue), text(queue));
        let declare =
            Method::QueueDeclare { ticket, queue, passive, durable, exclusive, auto_delete, nowait, arguments };
        write_method(&mut bytes, 1, &declare);
        let consume =
            Method::BasicConsume { ticket, queue, consumer_tag, no_local, no_ack, exclusive, nowait, arguments };
        write_method(&mut bytes, 1, &consume);
    }
    consumer.feed(&hub, &bytes);
    for (queue, count, size, woken) in [
        ("automatic", 1, 16, Woken::Somebody),
        ("automatic", 100, 16, Woken::Somebody),
        ("automatic", 1, 1024, Woken::Somebody),
        ("automatic", 1, 4000, Woken::Somebody),
        ("automatic", 1, 4200, Woken::Busy),
        ("automatic", 100, 8192, Woken::Busy),
        // A row of them is written as it lies there.
        ("automatic", 100, 1024, Woken::Somebody),
        ("automatic", 0, 0, Woken::Nobody),
        ("manual", 1, 16, Woken::Busy),
        ("manual", 100, 16, Woken::Busy),
        ("manual", 0, 0, Woken::Nobody),
    ] {
        let mut bytes = Vec::new();
        let (exchange, routing_key) = (text(""), text(queue));
        let publish = Method::BasicPublish { ticket, exchange, routing_key, mandatory: false, immediate: false };
        let mut header = Vec::new();
        ContentHeader { body_bytes: size, properties: BasicProperties::default() }.encode(&mut header);
        for _ in 0..count {
            write_method(&mut bytes, 1, &publish);
            write_content(&mut bytes, 1, &header, &[7; 8192][..size.try_into().unwrap()], 131_072);
        }
        let used = publisher.connection.handle_input(hub.clock.now(), &bytes, &mut publisher.written);
        assert_eq!(used, bytes.len());
        let turn = publisher.attached.as_ref().unwrap().execute(publisher.connection.commands());
        assert_eq!(turn.woken, woken, "{queue}: {count} messages of {size} bytes");
        consumer.turn(&hub);
    }
}

/// A transaction may end in the hold of the lock after the one that made its last change.
#[test]
fn a_transaction_of_any_size_is_whole_once_it_is_committed() {
    for count in (2044..=2052).chain(4090..=4100) {
        let vhost = VirtualHost::new(VhostName::new(ShortStr::truncated("/")), [1; 32]);
        let hub = Hub::new(vhost, Stream::unwritten(), None, Memory::new(1 << 30), Clock::start());
        let mut client = Client::open(&hub);
        let text = ShortStr::truncated;
        let (ticket, queue, arguments) = (0, text("q"), Table::EMPTY);
        let (passive, durable, exclusive, auto_delete, nowait) = (false, true, false, false, true);
        let mut bytes = Vec::new();
        let declare =
            Method::QueueDeclare { ticket, queue, passive, durable, exclusive, auto_delete, nowait, arguments };
        write_method(&mut bytes, 1, &declare);
        write_method(&mut bytes, 1, &Method::TxSelect {});
        for _ in 0..count {
            let (exchange, routing_key) = (text(""), text("q"));
            let publish =
                Method::BasicPublish { ticket, exchange, routing_key, mandatory: false, immediate: false };
            write_method(&mut bytes, 1, &publish);
            let properties = BasicProperties { delivery_mode: Some(2), ..BasicProperties::default() };
            let mut header = Vec::new();
            ContentHeader { body_bytes: 1, properties }.encode(&mut header);
            write_content(&mut bytes, 1, &header, b"x", 131_072);
        }
        client.feed(&hub, &bytes);
        let mut bytes = Vec::new();
        write_method(&mut bytes, 1, &Method::TxCommit {});
        client.feed(&hub, &bytes);
        assert_eq!(hub.journal.waiting_and_whole(), (1 + count, 1 + count), "{count} messages");
    }
}

/// Speed is structure: what one message costs in allocations and lock holds, from bytes to bytes.
#[test]
fn a_row_of_messages_costs_a_few_allocations_and_a_batch_one_lock() {
    const MESSAGES: usize = 10_000;
    const IN_A_BATCH: usize = 500;
    let vhost = VirtualHost::new(VhostName::new(ShortStr::truncated("/")), [1; 32]);
    let hub = Hub::new(vhost, Stream::forgetful(1), None, Memory::new(1 << 30), Clock::start());
    let (mut producer, mut consumer) = (Client::open(&hub), Client::open(&hub));
    let text = ShortStr::truncated;
    let mut bytes = Vec::new();
    let (exclusive, passive, durable, auto_delete, nowait) = (false, false, false, false, true);
    let (ticket, queue, arguments) = (0, text("q"), Table::EMPTY);
    let declare =
        Method::QueueDeclare { ticket, queue, passive, durable, exclusive, auto_delete, nowait, arguments };
    write_method(&mut bytes, 1, &declare);
    let (consumer_tag, no_local, no_ack) = (text("t"), false, true);
    let consume =
        Method::BasicConsume { ticket, queue, consumer_tag, no_local, no_ack, exclusive, nowait, arguments };
    write_method(&mut bytes, 1, &consume);
    consumer.feed(&hub, &bytes);

    let mut batch = Vec::new();
    for _ in 0..IN_A_BATCH {
        let (exchange, routing_key) = (text(""), text("q"));
        let publish = Method::BasicPublish { ticket, exchange, routing_key, mandatory: false, immediate: false };
        write_method(&mut batch, 1, &publish);
        let properties = BasicProperties { delivery_mode: Some(1), ..BasicProperties::default() };
        let mut header = Vec::new();
        ContentHeader { body_bytes: 16, properties }.encode(&mut header);
        write_content(&mut batch, 1, &header, &[7; 16], 131_072);
    }
    // A few rounds let the buffers that travel between hub and client grow to their size.
    for _ in 0..4 {
        producer.feed(&hub, &batch);
        consumer.turn(&hub);
    }

    let locked_before = hub.locked.load(Ordering::Relaxed);
    let mut received = 0;
    let allocated = allocation_counter::measure(|| {
        for _ in 0..MESSAGES / IN_A_BATCH {
            producer.feed(&hub, &batch);
            consumer.outbox.take(&mut consumer.outputs);
            received += consumer.outputs.iter().map(Output::count).sum::<usize>();
            let (now, durable) = (hub.clock.now(), hub.journal.durable());
            let outputs = consumer.outputs.drain(..);
            consumer.connection.handle_outputs(now, outputs, durable, &mut consumer.written);
            consumer.written.clear();
            if consumer.connection.handle_written(now, Written::All).1
                && let Some(attached) = &consumer.attached
            {
                execute(attached, consumer.connection.commands());
            }
        }
    });
    let locks = hub.locked.load(Ordering::Relaxed) - locked_before;
    assert_eq!(received, MESSAGES);
    let batches = (MESSAGES / IN_A_BATCH) as u64;
    // The consumer gives back room in its window now and then, which takes the lock, too.
    let windows = MESSAGES as u64 * 200 / (256 * 1024) + 1;
    // What grows doubles, from four messages on: octets, and where each ends.
    let few = batches * (2 * u64::from((IN_A_BATCH / 4).ilog2() + 1) + 6);
    assert!(allocated.count_total <= few, "{} allocations", allocated.count_total);
    assert!((batches..=batches + windows).contains(&locks), "{locks} locks for {batches} batches");
}

/// A message of 60,000 bytes on each of 500 channels, and then the beginning of one.
#[test]
fn what_a_connection_keeps_to_assemble_contents_does_not_grow_with_its_channels() {
    const CHANNELS: u16 = 500;
    let vhost = VirtualHost::new(VhostName::new(ShortStr::truncated("/")), [1; 32]);
    let hub = Hub::new(vhost, Stream::forgetful(1), None, Memory::new(1 << 30), Clock::start());
    let mut client = Client::open(&hub);
    let text = ShortStr::truncated;
    let mut opens = Vec::new();
    for channel in 2..=CHANNELS {
        write_method(&mut opens, channel, &Method::ChannelOpen { out_of_band: text("") });
    }
    client.feed(&hub, &opens);
    let content = |channel, body_bytes: u16, body: &[u8]| {
        let (mut bytes, mut header) = (Vec::new(), Vec::new());
        let (exchange, routing_key) = (text(""), text("nowhere"));
        let (ticket, mandatory, immediate) = (0, false, false);
        let publish = Method::BasicPublish { ticket, exchange, routing_key, mandatory, immediate };
        write_method(&mut bytes, channel, &publish);
        let properties = BasicProperties::default();
        ContentHeader { body_bytes: body_bytes.into(), properties }.encode(&mut header);
        write_content(&mut bytes, channel, &header, body, 131_072);
        bytes
    };
    let whole: Vec<_> = (1..=CHANNELS).map(|channel| content(channel, 60_000, &vec![7; 60_000])).collect();
    let begun: Vec<_> = (1..=CHANNELS).map(|channel| content(channel, 60_000, b"a")).collect();
    let rest: Vec<_> = (1..=CHANNELS)
        .map(|channel| {
            let mut frame = vec![3];
            frame.extend(channel.to_be_bytes());
            frame.extend(59_999_u32.to_be_bytes());
            frame.resize(frame.len() + 59_999, 7);
            frame.push(0xCE);
            frame
        })
        .collect();
    let kept = allocation_counter::measure(|| {
        for bytes in whole.iter().chain(&begun) {
            client.feed(&hub, bytes);
        }
        // Each of these gives back what it was assembled in, and the next one begins.
        for (rest, begun) in rest.iter().zip(&begun) {
            client.feed(&hub, rest);
            client.feed(&hub, begun);
        }
    });
    assert!(kept.bytes_current < 100_000, "{} bytes", kept.bytes_current);
}

/// Each letter is another copy of its message, be it a client that makes it die.
#[test]
fn what_dies_at_a_publish_waits_for_the_journal_too() {
    const MESSAGES: u32 = 60;
    let vhost = VirtualHost::new(VhostName::new(ShortStr::truncated("/")), [1; 32]);
    let hub = Hub::new(vhost, Stream::unwritten(), None, Memory::new(1 << 30), Clock::start());
    let mut client = Client::open(&hub);
    let text = ShortStr::truncated;
    let dying = FieldTable::build(|table| {
        table.field("x-message-ttl", Value::I32(0));
        table.field("x-dead-letter-exchange", Value::LongStr(b""));
        table.field("x-dead-letter-routing-key", Value::LongStr(b"dead"));
    });
    let (ticket, durable, exclusive, auto_delete) = (0, true, false, false);
    let declare = |queue, passive, nowait, arguments| {
        let mut bytes = Vec::new();
        let queue = text(queue);
        let declare =
            Method::QueueDeclare { ticket, queue, passive, durable, exclusive, auto_delete, nowait, arguments };
        write_method(&mut bytes, 1, &declare);
        bytes
    };
    client.feed(&hub, &declare("from", false, true, dying.as_table()));
    client.feed(&hub, &declare("dead", false, true, Table::EMPTY));
    let (mut bytes, mut header, body) = (Vec::new(), Vec::new(), vec![7; 1 << 20]);
    let (exchange, routing_key) = (text(""), text("from"));
    write_method(
        &mut bytes,
        1,
        &Method::BasicPublish { ticket, exchange, routing_key, mandatory: false, immediate: false },
    );
    let properties = BasicProperties { delivery_mode: Some(2), ..BasicProperties::default() };
    ContentHeader { body_bytes: body.len() as u64, properties }.encode(&mut header);
    write_content(&mut bytes, 1, &header, &body, 131_072);
    for _ in 0..MESSAGES {
        client.feed(&hub, &bytes);
    }
    let used = client.connection.handle_input(
        hub.clock.now(),
        &declare("dead", true, false, Table::EMPTY),
        &mut client.written,
    );
    assert!(used > 0);
    execute(client.attached.as_ref().unwrap(), client.connection.commands());
    client.outbox.take(&mut client.outputs);
    let letters = client.outputs.iter().find_map(|output| match output {
        Output::Answer(_, Answer::QueueDeclareOk { message_count, .. }, _) => Some(*message_count),
        _ => None,
    });
    assert!(letters.is_some_and(|letters| (1..MESSAGES).contains(&letters)), "{letters:?}");
}
