//! The way of a message through the broker without sockets: bytes of a publisher in, bytes for a consumer out.

use std::sync::Arc;
use std::time::Duration;

use divan::Bencher;
use divan::counter::ItemsCount;
use leveret_amqp::frame::{write_content, write_method};
use leveret_amqp::{BasicProperties, ContentHeader, Method, PROTOCOL_HEADER, ShortStr, Table};
use leveret_broker::connection::Written;
use leveret_broker::names::VhostName;
use leveret_broker::node::Origin;
use leveret_broker::node::presence::{Presence, Present};
use leveret_broker::vhost::Progress;
use leveret_broker::{
    Connection, ConnectionId, Effects, JournalPosition, Moment, Node, Output, Settings, VirtualHost,
};

fn main() {
    divan::main();
}

/// Messages that arrive with one read.
const BATCH: usize = 500;

const NOW: Moment = Moment { monotonic: Duration::from_secs(1), wall: Duration::from_secs(1_700_000_000) };

fn short(text: &str) -> ShortStr<'_> {
    ShortStr::new(text).expect("short")
}

/// One virtual host and its connections.
struct Core {
    vhost: VirtualHost,
    effects: Effects,
    peers: Vec<Peer>,
}

struct Peer {
    connection: Connection,
    id: ConnectionId,
    outputs: Vec<Output>,
    out: Vec<u8>,
}

impl Core {
    fn new() -> Self {
        let vhost = VirtualHost::new(VhostName::new(short("/")), [7; 32]);
        Core { vhost, effects: Effects::default(), peers: Vec::new() }
    }

    /// A client that has logged in and opened channel 1.
    fn connect(&mut self) -> usize {
        let (node, presence) = (Node::with_guest(), Arc::<Presence>::default());
        let mut connection = Connection::new(Arc::<Settings>::default(), [7; 32], NOW);
        let mut input = PROTOCOL_HEADER.to_vec();
        let (mechanism, locale) = (short("PLAIN"), short("en_US"));
        let start_ok = Method::ConnectionStartOk {
            client_properties: Table::EMPTY,
            mechanism,
            response: b"\0guest\0guest",
            locale,
        };
        write_method(&mut input, 0, &start_ok);
        let tune_ok = Method::ConnectionTuneOk { channel_max: 10, frame_max: 131_072, heartbeat: 0 };
        write_method(&mut input, 0, &tune_ok);
        write_method(
            &mut input,
            0,
            &Method::ConnectionOpen { virtual_host: short("/"), capabilities: short(""), insist: false },
        );
        let (mut rest, mut out) = (&input[..], Vec::new());
        let mut id = None;
        while !rest.is_empty() {
            rest = &rest[connection.handle_input(NOW, rest, &mut out)..];
            if let Some(credentials) = connection.login_request() {
                let checked = node.log_in(&credentials.user, &credentials.password, Origin::Loopback);
                connection.handle_login(NOW, checked, &mut out);
            }
            if let Some((vhost, user)) = connection.open_request() {
                let (_, login) = node.open(vhost, user).expect("guest may");
                id = Some(self.vhost.connect(login).expect("no limit"));
                let present = Present::enter(Arc::clone(&presence)).expect("no limit");
                connection.handle_opened(NOW, Ok(present), &mut out);
            }
        }
        let id = id.expect("opened");
        self.peers.push(Peer { connection, id, outputs: Vec::new(), out: Vec::new() });
        let number = self.peers.len() - 1;
        self.call(number, &Method::ChannelOpen { out_of_band: short("") });
        number
    }

    fn call(&mut self, from: usize, method: &Method<'_>) {
        let mut input = Vec::new();
        write_method(&mut input, 1, method);
        self.feed(from, &input);
    }

    /// A client sends this; everybody is told what follows, and reads it.
    fn feed(&mut self, from: usize, input: &[u8]) {
        let peer = &mut self.peers[from];
        let used = peer.connection.handle_input(NOW, input, &mut peer.out);
        assert_eq!(used, input.len());
        let mut turns = vec![from];
        while let Some(turn) = turns.pop() {
            let Peer { connection, id, .. } = &mut self.peers[turn];
            let progress = self.vhost.handle_batch(NOW, *id, connection.commands(), &mut self.effects);
            if progress == Progress::More {
                turns.push(turn);
            }
            let peers = &mut self.peers;
            self.effects.take_outputs(|to, outputs, _| {
                let Some(peer) = peers.iter_mut().find(|peer| peer.id == to) else { return };
                peer.outputs.append(outputs);
            });
            for (number, peer) in self.peers.iter_mut().enumerate() {
                let Peer { connection, outputs, out, .. } = peer;
                connection.handle_outputs(NOW, outputs.drain(..), JournalPosition::default(), out);
                out.clear();
                let (_, is_due) = connection.handle_written(NOW, Written::All);
                if is_due || (number == turn && !connection.commands().is_empty()) {
                    turns.push(number);
                }
            }
        }
    }

    fn queue(&mut self, client: usize, name: &str) {
        let queue = short(name);
        let (passive, durable, exclusive, auto_delete, nowait) = (false, false, false, false, true);
        let arguments = Table::EMPTY;
        let declare =
            Method::QueueDeclare { queue, passive, durable, exclusive, auto_delete, nowait, arguments, ticket: 0 };
        self.call(client, &declare);
    }

    fn consumer(&mut self, client: usize, queue: &str, no_ack: bool) {
        let (queue, consumer_tag, arguments) = (short(queue), short("consumer"), Table::EMPTY);
        let (no_local, exclusive, nowait) = (false, false, true);
        let consume =
            Method::BasicConsume { queue, consumer_tag, no_local, no_ack, exclusive, nowait, arguments, ticket: 0 };
        self.call(client, &consume);
    }
}

/// What a client sends at once that publishes as fast as it can.
fn publishes(exchange: &str, routing_key: &str, body_bytes: usize) -> Vec<u8> {
    let mut input = Vec::new();
    for _ in 0..BATCH {
        publish(&mut input, exchange, routing_key, body_bytes);
    }
    input
}

fn publish(input: &mut Vec<u8>, exchange: &str, routing_key: &str, body_bytes: usize) {
    let (exchange, routing_key) = (short(exchange), short(routing_key));
    let properties = BasicProperties { delivery_mode: Some(1), ..BasicProperties::default() };
    let mut header = Vec::new();
    ContentHeader { body_bytes: body_bytes as u64, properties }.encode(&mut header);
    let publish = Method::BasicPublish { exchange, routing_key, mandatory: false, immediate: false, ticket: 0 };
    write_method(input, 1, &publish);
    write_content(input, 1, &header, &vec![b'x'; body_bytes], 131_072);
}

/// From publisher to consumer, acked by being delivered.
#[divan::bench(args = [16, 1024])]
fn publish_and_deliver(bencher: Bencher<'_, '_>, body_bytes: usize) {
    let mut core = Core::new();
    let (publisher, consumer) = (core.connect(), core.connect());
    core.queue(consumer, "queue");
    core.consumer(consumer, "queue", true);
    let input = publishes("", "queue", body_bytes);
    bencher.counter(ItemsCount::new(BATCH)).bench_local(|| core.feed(publisher, &input));
}

/// The same with an ack for each message, and with one for all of them.
#[divan::bench(args = [1, BATCH])]
fn publish_deliver_and_ack(bencher: Bencher<'_, '_>, ack_every: usize) {
    let mut core = Core::new();
    let (publisher, consumer) = (core.connect(), core.connect());
    core.queue(consumer, "queue");
    core.consumer(consumer, "queue", false);
    let input = publishes("", "queue", 16);
    let mut delivered = 0;
    bencher.counter(ItemsCount::new(BATCH)).bench_local(|| {
        core.feed(publisher, &input);
        let mut acks = Vec::new();
        for _ in 0..BATCH / ack_every {
            delivered += ack_every as u64;
            write_method(&mut acks, 1, &Method::BasicAck { delivery_tag: delivered, multiple: ack_every > 1 });
        }
        core.feed(consumer, &acks);
    });
}

/// Into a queue, and out of it one by one.
#[divan::bench]
fn publish_and_get(bencher: Bencher<'_, '_>) {
    let mut core = Core::new();
    let (publisher, consumer) = (core.connect(), core.connect());
    core.queue(consumer, "queue");
    let input = publishes("", "queue", 16);
    let mut gets = Vec::new();
    for _ in 0..BATCH {
        write_method(&mut gets, 1, &Method::BasicGet { ticket: 0, queue: short("queue"), no_ack: true });
    }
    bencher.counter(ItemsCount::new(BATCH)).bench_local(|| {
        core.feed(publisher, &input);
        core.feed(consumer, &gets);
    });
}

/// Through a topic exchange with so many bindings, one of which matches. The keys are too many to be remembered.
#[divan::bench(args = [1, 10_000])]
fn topic(bencher: Bencher<'_, '_>, bindings: usize) {
    const KEYS: usize = 64;
    let mut core = Core::new();
    let (publisher, consumer) = (core.connect(), core.connect());
    core.queue(consumer, "queue");
    core.consumer(consumer, "queue", true);
    for number in 0..bindings {
        let routing_key = if number == 0 { "*.matches.#".to_owned() } else { format!("*.other-{number}.#") };
        let (queue, exchange, arguments) = (short("queue"), short("amq.topic"), Table::EMPTY);
        let routing_key = short(&routing_key);
        let bind = Method::QueueBind { queue, exchange, routing_key, nowait: true, arguments, ticket: 0 };
        core.call(consumer, &bind);
    }
    let mut input = Vec::new();
    for number in 0..BATCH {
        publish(&mut input, "amq.topic", &format!("{}.matches.it", number % KEYS), 16);
    }
    bencher.counter(ItemsCount::new(BATCH)).bench_local(|| core.feed(publisher, &input));
}

/// One message into ten queues, each with a consumer.
#[divan::bench]
fn fanout_to_ten(bencher: Bencher<'_, '_>) {
    let mut core = Core::new();
    let publisher = core.connect();
    for number in 0..10 {
        let (consumer, queue) = (core.connect(), format!("queue-{number}"));
        core.queue(consumer, &queue);
        core.consumer(consumer, &queue, true);
        let (exchange, routing_key, arguments) = (short("amq.fanout"), short(""), Table::EMPTY);
        let bind =
            Method::QueueBind { queue: short(&queue), exchange, routing_key, nowait: true, arguments, ticket: 0 };
        core.call(consumer, &bind);
    }
    let input = publishes("amq.fanout", "", 16);
    bencher.counter(ItemsCount::new(10 * BATCH)).bench_local(|| core.feed(publisher, &input));
}
