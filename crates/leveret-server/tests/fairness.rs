//! One client that never stops does not hold up the others, nor the end of the broker.

#![expect(clippy::unwrap_used, reason = "a test that cannot talk to the broker has failed")]

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use leveret_amqp::frame::{write_content, write_method};
use leveret_amqp::{BasicProperties, ContentHeader, Method, PROTOCOL_HEADER, ShortStr, Table};
use leveret_server::{Server, ServerConfig, ServerHandle, Which};
use tokio::runtime::Runtime;

/// Generous: what it waits for takes milliseconds.
const PATIENCE: Duration = Duration::from_secs(20);

fn start() -> (Runtime, ServerHandle, SocketAddr) {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let server = runtime.block_on(Server::start(ServerConfig::default())).unwrap();
    let address = server.addresses()[0];
    (runtime, server, address)
}

fn method(channel: u16, method: &Method<'_>) -> Vec<u8> {
    let mut bytes = Vec::new();
    write_method(&mut bytes, channel, method);
    bytes
}

/// `connection.start-ok` with PLAIN.
fn start_ok(response: &[u8]) -> Vec<u8> {
    let (client_properties, mechanism, locale) =
        (Table::EMPTY, ShortStr::truncated("PLAIN"), ShortStr::truncated("en_US"));
    method(0, &Method::ConnectionStartOk { client_properties, mechanism, response, locale })
}

/// Connects and opens channel 1, with that many seconds between heartbeats.
fn open(address: SocketAddr, heartbeat: u16) -> TcpStream {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let text = ShortStr::truncated;
    let mut bytes = PROTOCOL_HEADER.to_vec();
    bytes.extend(start_ok(b"\0guest\0guest"));
    bytes.extend(method(0, &Method::ConnectionTuneOk { channel_max: 0, frame_max: 0, heartbeat }));
    bytes.extend(method(
        0,
        &Method::ConnectionOpen { virtual_host: text("/"), capabilities: text(""), insist: false },
    ));
    bytes.extend(method(1, &Method::ChannelOpen { out_of_band: text("") }));
    stream.write_all(&bytes).unwrap();
    read_until(&mut stream, &method(1, &Method::ChannelOpenOk { channel_id: b"" }));
    stream
}

/// Reads until these bytes have come; panics if they do not.
fn read_until(stream: &mut TcpStream, wanted: &[u8]) {
    let mut heard = Vec::new();
    let mut buffer = [0; 4096];
    let deadline = Instant::now() + PATIENCE;
    while !heard.windows(wanted.len()).any(|window| window == wanted) {
        assert!(Instant::now() < deadline, "not heard in time");
        let count = stream.read(&mut buffer).unwrap();
        assert!(count > 0, "the broker closed the connection");
        // What was searched need not be searched again.
        heard.drain(..heard.len().saturating_sub(wanted.len()));
        heard.extend_from_slice(&buffer[..count]);
    }
}

/// `queue.declare` of a transient queue, without an answer unless it is `passive`.
fn declare(queue: &str, passive: bool) -> Vec<u8> {
    let (ticket, queue, nowait, arguments) = (0, ShortStr::truncated(queue), !passive, Table::EMPTY);
    let (durable, exclusive, auto_delete) = (false, false, false);
    let declare =
        Method::QueueDeclare { ticket, queue, passive, durable, exclusive, auto_delete, nowait, arguments };
    method(1, &declare)
}

/// `basic.publish` through the default exchange, with its content.
fn publish(queue: &str, body: &[u8]) -> Vec<u8> {
    let (exchange, routing_key) = (ShortStr::EMPTY, ShortStr::truncated(queue));
    let publish = Method::BasicPublish { ticket: 0, exchange, routing_key, mandatory: false, immediate: false };
    let mut header = Vec::new();
    let properties = BasicProperties::default();
    ContentHeader { body_bytes: body.len() as u64, properties }.encode(&mut header);
    let mut bytes = method(1, &publish);
    write_content(&mut bytes, 1, &header, body, 131_072);
    bytes
}

/// `basic.consume` with acks, without an answer.
fn consume(queue: &str, tag: &str) -> Vec<u8> {
    let (ticket, queue, consumer_tag) = (0, ShortStr::truncated(queue), ShortStr::truncated(tag));
    let (no_local, no_ack, exclusive, nowait, arguments) = (false, false, false, true, Table::EMPTY);
    let consume =
        Method::BasicConsume { ticket, queue, consumer_tag, no_local, no_ack, exclusive, nowait, arguments };
    method(1, &consume)
}

/// A client that publishes without a pause, from a thread of its own.
struct Flood {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Flood {
    fn start(address: SocketAddr) -> Self {
        Flood::on(open(address, 0))
    }

    fn on(mut stream: TcpStream) -> Self {
        stream.set_write_timeout(Some(PATIENCE)).unwrap();
        let many = publish("nowhere", b"x").repeat(4096);
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let thread = std::thread::spawn(move || {
            // Ends when it is told to, or when the broker closes the connection.
            while !stopped.load(Ordering::Relaxed) && stream.write_all(&many).is_ok() {}
        });
        Flood { stop, thread: Some(thread) }
    }
}

impl Drop for Flood {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

#[test]
fn others_are_served_and_the_broker_stops_while_clients_flood_it() {
    let (runtime, server, address) = start();
    let floods = [Flood::start(address), Flood::start(address), Flood::start(address)];
    for _ in 0..10 {
        let mut bystander = open(address, 0);
        bystander
            .write_all(&method(
                1,
                &Method::AccessRequest {
                    realm: ShortStr::EMPTY,
                    exclusive: false,
                    passive: false,
                    active: false,
                    write: false,
                    read: false,
                },
            ))
            .unwrap();
        read_until(&mut bystander, &method(1, &Method::AccessRequestOk { ticket: 1 }));
    }
    let begun = Instant::now();
    runtime.block_on(server.shutdown());
    assert!(begun.elapsed() < PATIENCE, "{:?}", begun.elapsed());
    drop(floods);
}

/// It need not pause for that.
#[test]
fn a_client_that_never_stops_sending_is_closed_when_somebody_says_so() {
    let (_runtime, server, address) = start();
    let mut heard = open(address, 0);
    let flood = Flood::on(heard.try_clone().unwrap());
    assert_eq!(server.admin().close(Which::User("guest"), "enough"), 1);
    read_until(&mut heard, b"CONNECTION_FORCED - enough");
    drop(flood);
}

/// Within 100 ms, of which a machine with much to do may make five times as many.
#[test]
fn a_refused_login_is_answered_at_once() {
    let (_runtime, _server, address) = start();
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.write_all(&PROTOCOL_HEADER).unwrap();
    read_until(&mut stream, b"en_US");
    let begun = Instant::now();
    stream.write_all(&start_ok(b"\0guest\0wrong")).unwrap();
    // Whoever did not say that it understands `connection.close` before login hears the end of the connection.
    while stream.read(&mut [0; 4096]).unwrap() > 0 {}
    assert!(begun.elapsed() < Duration::from_millis(500), "{:?}", begun.elapsed());
}

/// Heartbeats of a quiet connection go on while others keep the broker busy, and it is given up once it is dead.
#[test]
fn heartbeats_are_sent_and_missed_while_clients_flood_the_broker() {
    let (_runtime, _server, address) = start();
    let flood = Flood::start(address);
    let mut quiet = open(address, 1);
    read_until(&mut quiet, &leveret_amqp::frame::HEARTBEAT);
    drop(flood);
    // It never answered, so it is closed.
    let deadline = Instant::now() + PATIENCE;
    let mut buffer = [0; 64];
    while quiet.read(&mut buffer).is_ok_and(|count| count > 0) {
        assert!(Instant::now() < deadline, "a dead client is kept");
    }
    assert!(Instant::now() < deadline, "a dead client is kept");
}

/// A client that consumes a message larger than all socket buffers and reads nothing of it.
fn consumer_that_does_not_read(address: SocketAddr, queue: &str) -> TcpStream {
    let mut client = open(address, 1);
    let bytes = [declare(queue, false), publish(queue, &vec![b'x'; 16_000_000]), consume(queue, "t")].concat();
    client.write_all(&bytes).unwrap();
    client
}

/// While a client does not read, nothing of it is read; whether it lives is seen all the same.
#[test]
fn a_client_that_neither_reads_nor_sends_is_dead_and_one_that_sends_is_not() {
    let (_runtime, _server, address) = start();
    let _dead = consumer_that_does_not_read(address, "dead");
    let mut living = consumer_that_does_not_read(address, "living");
    let mut observer = open(address, 0);
    let mut state_of = |queue: &str| {
        observer.write_all(&declare(queue, true)).unwrap();
        let mut answer = [0; 256];
        let count = observer.read(&mut answer).unwrap();
        // Messages, consumers and the end of the frame.
        let numbers = &answer[count - 9..count - 1];
        [numbers[3], numbers[7]]
    };
    let mut wait_for = |queue, state, what: &str| {
        let deadline = Instant::now() + PATIENCE;
        while state_of(queue) != state {
            assert!(Instant::now() < deadline, "{what}");
            living.write_all(&leveret_amqp::frame::HEARTBEAT).unwrap();
            std::thread::sleep(Duration::from_millis(50));
        }
    };
    wait_for("living", [0, 1], "nothing was delivered");
    wait_for("dead", [1, 0], "a dead client is kept");
    let _later = consumer_that_does_not_read(address, "dead later");
    wait_for("dead later", [1, 0], "a dead client is kept");
    wait_for("living", [0, 1], "a living client is given up");
}

/// What is done in many steps lets others in between, also where one thread does everything.
#[test]
fn others_are_served_between_the_steps_of_long_work() {
    const DELIVERIES: usize = 80_000;
    const ROUNDS: usize = 100;
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let server = runtime.block_on(Server::start(ServerConfig::default())).unwrap();
    let address = server.addresses()[0];
    let mut busy = open(address, 0);
    let mut bytes = method(1, &Method::TxSelect {});
    bytes.extend(declare("q", false));
    bytes.extend(publish("q", b"").repeat(DELIVERIES));
    bytes.extend(method(1, &Method::TxCommit {}));
    busy.write_all(&bytes).unwrap();
    read_until(&mut busy, &method(1, &Method::TxCommitOk {}));
    busy.write_all(&consume("q", "t")).unwrap();
    let last = Method::BasicAck { delivery_tag: DELIVERIES as u64, multiple: false };
    let deliver = Method::BasicDeliver {
        consumer_tag: ShortStr::truncated("t"),
        delivery_tag: DELIVERIES as u64,
        redelivered: false,
        exchange: ShortStr::EMPTY,
        routing_key: ShortStr::truncated("q"),
    };
    read_until(&mut busy, &method(1, &deliver));
    // Each round puts all that is unacked in order again.
    let mut work = method(1, &last);
    work.extend(method(1, &Method::TxRollback {}));
    let mut bystander = open(address, 0);
    busy.write_all(&work.repeat(ROUNDS)).unwrap();
    busy.set_nonblocking(true).unwrap();
    let answer = method(1, &Method::TxRollbackOk {});
    let (mut heard, mut buffer, mut turns) = (0, [0; 4096], 0);
    let request = Method::TxSelect {};
    while heard < ROUNDS * answer.len() {
        bystander.write_all(&method(1, &request)).unwrap();
        read_until(&mut bystander, &method(1, &Method::TxSelectOk {}));
        turns += 1;
        heard += busy.read(&mut buffer).unwrap_or(0);
    }
    // A machine that is busy gives the clients themselves few turns. Without any between the steps it would be one.
    assert!(turns > ROUNDS / 20, "a turn between others' {ROUNDS} long commands: {turns} times");
}

/// What a client asks is not taken in without bound while it does not read the answers.
#[test]
fn a_client_that_asks_and_does_not_read_is_not_read_either() {
    /// More than the windows and all socket buffers together.
    const MORE_THAN_ENOUGH: usize = 256 * 1024 * 1024;
    let (_runtime, _server, address) = start();
    let mut client = open(address, 0);
    let bytes = [declare("q", false), publish("q", &vec![b'x'; 100_000])].concat();
    client.write_all(&bytes).unwrap();
    let mut ask = method(1, &Method::BasicGet { ticket: 0, queue: ShortStr::truncated("q"), no_ack: false });
    ask.extend(method(1, &Method::BasicNack { delivery_tag: 0, multiple: true, requeue: true }));
    let many = ask.repeat(4096);
    client.set_write_timeout(Some(Duration::from_secs(2))).unwrap();
    let mut taken = 0;
    while let Ok(count) = client.write(&many) {
        taken += count;
        assert!(taken < MORE_THAN_ENOUGH, "the broker takes in whatever is sent");
    }
}

/// What many clients held that are gone at once goes back in as many steps, and not all of them come before anybody else.
#[test]
fn others_are_served_while_many_clients_are_gone_at_once() {
    are_answered(100, 3000, 20);
}

/// Those that held nothing go in larger groups.
#[test]
fn others_are_served_while_many_idle_clients_are_gone_at_once() {
    are_answered(600, 0, 10);
}

/// Some look comes first in any case, and some last. On a machine that is busy, who looks may have no turn of its own while they
/// go; so it has several tries.
fn are_answered(clients: u32, held_by_each: u32, more_than: u32) {
    const TRIES: u32 = 10;
    let looks = || looks_while_clients_go(clients, held_by_each);
    let most = (0..TRIES).map(|_| looks()).find(|&looks| looks > more_than);
    assert!(most.is_some(), "in none of {TRIES} tries more than {more_than} answers while {clients} clients went");
}

/// So many consumers that hold so many messages each are gone at once. How many answers somebody else gets until all are.
fn looks_while_clients_go(clients_count: u32, held_by_each: u32) -> u32 {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let server = runtime.block_on(Server::start(ServerConfig::default())).unwrap();
    let address = server.addresses()[0];
    let mut bystander = open(address, 0);
    bystander.write_all(&declare("q", false)).unwrap();
    let clients: Vec<_> = (0..clients_count)
        .map(|_| {
            let mut client = open(address, 0);
            client.write_all(&consume("q", "t")).unwrap();
            client
        })
        .collect();
    // Messages that are ready, and consumers.
    let look = |bystander: &mut TcpStream| {
        bystander.write_all(&declare("q", true)).unwrap();
        let mut answer = [0; 256];
        let count = bystander.read(&mut answer).unwrap();
        let (rest, consumers) = answer[..count - 1].split_last_chunk().unwrap();
        let (_, messages) = rest.split_last_chunk().unwrap();
        (u32::from_be_bytes(*messages), u32::from_be_bytes(*consumers))
    };
    let wait_for = |bystander: &mut TcpStream, state: (u32, u32), what: &str| {
        let deadline = Instant::now() + PATIENCE;
        let mut looks = 0;
        while look(bystander) != state {
            assert!(Instant::now() < deadline, "{what}");
            looks += 1;
        }
        looks
    };
    wait_for(&mut bystander, (0, clients_count), "not all of them consume");
    let all = held_by_each * clients_count;
    for _ in 0..clients_count {
        bystander.write_all(&publish("q", b"").repeat(held_by_each as usize)).unwrap();
    }
    wait_for(&mut bystander, (0, clients_count), "not all is delivered");
    drop(clients);
    wait_for(&mut bystander, (all, 0), "not all went back")
}
