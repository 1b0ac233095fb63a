//! The floor of the benchmarks: the least program that does what no broker can avoid.
//!
//! It takes each `basic.publish` off a publisher's socket and puts it as a `basic.deliver` onto a consumer's. What a
//! broker does beyond that is what it costs, and so a broker's figure is told as a ratio to the relay's of the same
//! run: absolute figures of a shared machine mean little.
//!
//! One blocking thread for each connection. It reads as much as there is, notes where each message lies in what it
//! read, and then writes all that goes to one consumer at once, straight to that consumer's socket. A delivery is a
//! new method frame, made once for a route and copied with another tag, and the frames of the content as they came.
//!
//! What it leaves out, since a floor keeps and decides nothing:
//!
//! - Storage. Without a consumer a message is counted and dropped; `queue.declare-ok` tells how many were since the
//!   last purge, and `basic.get` answers with the last of them, again and again. Whoever consumes and does not
//!   read stops its publishers, even itself: a client that publishes much and consumes has to read meanwhile.
//! - Routing. The default exchange knows queues by their name, any other is a fanout to the queues bound to it. What
//!   no queue gets is dropped, `mandatory` or not. Bindings between exchanges do nothing.
//! - Acks. They are read and forgotten, and `basic.qos` limits nothing. Consumers of one queue take turns by batch.
//! - Confirms that wait for something: a batch is confirmed when it is handed on.
//! - Refusals. Any credentials will do, what is not there is made, nothing is exclusive, and queues stay
//!   until they are deleted. Only what cannot be read ends a connection, its own.
//! - Addresses of replies: `amq.rabbitmq.reply-to` is a queue like any other, and so has room for one client.
//! - Cutting frames anew: whoever consumes must take the frames that others publish, up to 131,072 bytes.
//! - Frames of another channel between those of one message; a client that mixes them is refused.
//! - Heartbeats, TLS, transactions.

use std::collections::HashMap;
use std::io::{self, Read as _, Write as _};
use std::net::{Ipv4Addr, Shutdown, TcpListener, TcpStream};
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use std::{env, mem, thread};

use leveret_amqp::frame::{FRAME_HEAD_BYTES, split_frame, write_method};
use leveret_amqp::limits::FRAME_OVERHEAD_BYTES;
use leveret_amqp::{
    DecodeError, FieldTable, FrameError, FrameKind, Method, PROTOCOL_HEADER, ReplyCode, ShortStr, Value,
};

const FRAME_MAX: u32 = 131_072;
const CHANNEL_MAX: u16 = 2047;

/// What one read takes at most, and so the size of a batch. From 64 KiB to 1 MiB the figures hardly differ.
const READ_BYTES: usize = 256 * 1024;

/// A message must lie in the buffer as a whole; this is how far it grows for one.
const BUFFER_BYTES_MAX: usize = 256 * 1024 * 1024;

/// Routes a connection remembers before it forgets them all.
const ROUTES_MAX: usize = 16_384;

/// Class and method id of `basic.publish`.
const BASIC_PUBLISH: [u8; 4] = [0, 60, 0, 40];

fn main() -> ExitCode {
    let mut arguments = env::args().skip(1);
    let port = match (arguments.next().as_deref(), arguments.next(), arguments.next()) {
        (None, None, None) => Some(5673),
        (Some("--port"), Some(port), None) => port.parse().ok(),
        _ => None,
    };
    let Some(port) = port else {
        eprintln!("usage: relay [--port N]");
        return ExitCode::from(2);
    };
    let Err(error) = listen(port);
    eprintln!("relay: {error}");
    ExitCode::FAILURE
}

fn listen(port: u16) -> io::Result<std::convert::Infallible> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, port))?;
    let mut stdout = io::stdout();
    writeln!(stdout, "relay ready: amqp://{}", listener.local_addr()?)?;
    stdout.flush()?;
    let relay = Arc::new(Relay::default());
    loop {
        let accepted = listener.accept().and_then(|(stream, _)| {
            let relay = Arc::clone(&relay);
            thread::Builder::new().spawn(move || serve(relay, &stream))
        });
        if let Err(error) = accepted {
            eprintln!("relay: a connection was not taken: {error}");
            thread::sleep(Duration::from_millis(10));
        }
    }
}

/// Speaks with one client until it leaves, or sends what nobody can read.
fn serve(relay: Arc<Relay>, mut stream: &TcpStream) {
    let mut header = [0; PROTOCOL_HEADER.len()];
    let Ok(writing) = stream.set_nodelay(true).and_then(|()| stream.try_clone()) else { return };
    if stream.read_exact(&mut header).is_err() {
        return;
    }
    let mut peer = Peer::new(relay, writing);
    if header == PROTOCOL_HEADER {
        peer.start();
        let mut buffer = vec![0; READ_BYTES];
        let mut filled = 0;
        while let Ok(read @ 1..) = stream.read(&mut buffer[filled..]) {
            filled += read;
            let Some(used) = peer.handle(&buffer[..filled]) else { break };
            buffer.copy_within(used..filled, 0);
            filled -= used;
            if filled == buffer.len() {
                if filled >= BUFFER_BYTES_MAX {
                    break;
                }
                buffer.resize(filled * 2, 0);
            }
        }
    } else {
        peer.answers.extend_from_slice(&PROTOCOL_HEADER);
        peer.flush();
    }
    // First of all, so that no publisher goes on waiting for this client with the lock of its sink.
    let _ = stream.shutdown(Shutdown::Both);
    peer.cancel_consumers(|_| true);
}

/// What all connections share.
#[derive(Default)]
struct Relay {
    topology: Mutex<Topology>,
    /// Changes whenever a remembered route may have become wrong.
    generation: AtomicU64,
    names_given: AtomicU64,
}

#[derive(Default)]
struct Topology {
    queues: HashMap<String, Arc<Queue>>,
    exchanges: HashMap<String, Vec<Arc<Queue>>>,
}

#[derive(Default)]
struct Queue(Mutex<QueueState>);

#[derive(Default)]
struct QueueState {
    consumers: Vec<Arc<Consumer>>,
    turn: usize,
    dropped: u64,
    /// The last message that was dropped: exchange, routing key, and the frames of its content.
    last: Option<(String, String, Vec<u8>)>,
}

struct Consumer {
    tag: String,
    channel: u16,
    sink: Arc<Mutex<Sink>>,
    /// Set and read under the lock of the sink, so that nothing is delivered after `basic.cancel-ok`.
    cancelled: AtomicBool,
}

/// The writing half of a connection. Who locks a sink and a queue at once locks the sink first.
struct Sink {
    stream: TcpStream,
    /// The last delivery tag of each channel.
    tags: HashMap<u16, u64>,
}

impl Relay {
    fn generate_name(&self, prefix: &str) -> String {
        format!("{prefix}{}", self.names_given.fetch_add(1, Relaxed))
    }

    /// Finds or makes a queue.
    fn queue(&self, name: &str) -> Arc<Queue> {
        let queues = &mut lock(&self.topology).queues;
        if let Some(queue) = queues.get(name) {
            return Arc::clone(queue);
        }
        self.generation.fetch_add(1, Relaxed);
        Arc::clone(queues.entry(name.to_owned()).or_default())
    }

    fn targets(&self, exchange: &str, key: &str) -> Vec<Arc<Queue>> {
        let topology = lock(&self.topology);
        if exchange.is_empty() {
            topology.queues.get(key).cloned().into_iter().collect()
        } else {
            topology.exchanges.get(exchange).cloned().unwrap_or_default()
        }
    }

    fn unbind(&self, queue: &Arc<Queue>, from: impl Fn(&str) -> bool) {
        let exchanges = &mut lock(&self.topology).exchanges;
        for (_, bound) in exchanges.iter_mut().filter(|(name, _)| from(name)) {
            bound.retain(|other| !Arc::ptr_eq(other, queue));
        }
        self.generation.fetch_add(1, Relaxed);
    }

    fn bind(&self, queue: &Arc<Queue>, exchange: &str) {
        self.unbind(queue, |name| name == exchange); // A queue that is bound twice gets a message once.
        let exchanges = &mut lock(&self.topology).exchanges;
        exchanges.entry(exchange.to_owned()).or_default().push(Arc::clone(queue));
        self.generation.fetch_add(1, Relaxed);
    }
}

/// Where publishes with one set of arguments go.
struct Route {
    /// The payload of the method frame; those with the same bytes go the same way.
    publish: Vec<u8>,
    exchange: String,
    key: String,
    outlets: Vec<usize>,
}

/// A queue, and what the batch at hand has for it.
struct Outlet {
    queue: Arc<Queue>,
    pieces: Vec<Piece>,
}

/// A message: its route, and where its content lies in the input.
struct Piece {
    route: usize,
    start: usize,
    end: usize,
}

#[derive(Clone, Default)]
struct Channel {
    open: bool,
    confirms: bool,
    published: u64,
    confirmed: u64,
}

/// Why a connection ends.
enum End {
    Closed,
    Fault(ReplyCode, String),
}

/// One connection, as its reading thread sees it.
struct Peer {
    relay: Arc<Relay>,
    sink: Arc<Mutex<Sink>>,
    answers: Vec<u8>,
    channels: Vec<Channel>,
    consumers: Vec<(Arc<Queue>, Arc<Consumer>)>,
    /// What an empty queue name means.
    queue_declared: String,
    generation: u64,
    routes: Vec<Route>,
    routes_by_publish: HashMap<Vec<u8>, usize>,
    route: usize,
    outlets: Vec<Outlet>,
    deliveries: Vec<u8>,
}

impl Peer {
    fn new(relay: Arc<Relay>, stream: TcpStream) -> Self {
        Peer {
            relay,
            sink: Arc::new(Mutex::new(Sink { stream, tags: HashMap::new() })),
            answers: Vec::new(),
            channels: vec![Channel { open: true, ..Channel::default() }],
            consumers: Vec::new(),
            queue_declared: String::new(),
            generation: 0,
            routes: Vec::new(),
            routes_by_publish: HashMap::new(),
            route: 0,
            outlets: Vec::new(),
            deliveries: Vec::new(),
        }
    }

    /// Takes all whole messages and methods off the front; says how many bytes, or nothing if this was the end.
    fn handle(&mut self, input: &[u8]) -> Option<usize> {
        self.refresh_routes();
        let mut rest = input;
        let end = self.scan(input, &mut rest);
        self.deliver(input);
        self.confirm();
        if let Err(End::Fault(code, text)) = &end {
            let text = format!("{} - {text}", code.name());
            let reply_text = ShortStr::truncated(&text);
            self.answer(
                0,
                &Method::ConnectionClose { reply_code: code.code(), reply_text, class_id: 0, method_id: 0 },
            );
        }
        self.flush();
        end.is_ok().then_some(input.len() - rest.len())
    }

    /// The hot path: notes where the messages lie, and handles what else there is in its place among them.
    fn scan<'i>(&mut self, input: &'i [u8], rest: &mut &'i [u8]) -> Result<(), End> {
        loop {
            let whole = *rest;
            let Some(frame) = split_frame(rest, FRAME_MAX)? else { return Ok(()) };
            match frame.kind {
                FrameKind::Method if frame.payload.starts_with(&BASIC_PUBLISH) => {
                    let start = input.len() - rest.len();
                    if !skip_content(rest, frame.channel)? {
                        *rest = whole;
                        return Ok(());
                    }
                    self.note_publish(frame.channel, frame.payload, start, input.len() - rest.len())?;
                }
                FrameKind::Method => match Method::decode(frame.payload)? {
                    Method::BasicAck { .. } | Method::BasicNack { .. } | Method::BasicReject { .. } => {}
                    method => {
                        self.deliver(input);
                        self.handle_method(frame.channel, &method)?;
                        self.refresh_routes();
                    }
                },
                FrameKind::Heartbeat => {}
                FrameKind::Header | FrameKind::Body => return Err(unexpected("content without a publish")),
            }
        }
    }

    fn note_publish(&mut self, channel: u16, publish: &[u8], start: usize, end: usize) -> Result<(), End> {
        if self.routes.get(self.route).is_none_or(|route| route.publish != publish) {
            self.route = self.find_route(publish)?;
        }
        self.open_channel(channel)?.published += 1;
        for &outlet in &self.routes[self.route].outlets {
            self.outlets[outlet].pieces.push(Piece { route: self.route, start, end });
        }
        Ok(())
    }

    fn find_route(&mut self, publish: &[u8]) -> Result<usize, End> {
        if let Some(&route) = self.routes_by_publish.get(publish) {
            return Ok(route);
        }
        let Method::BasicPublish { exchange, routing_key, .. } = Method::decode(publish)? else {
            return Err(unexpected("a method that is no publish"));
        };
        let (exchange, key) = (exchange.to_string(), routing_key.to_string());
        let outlets = self.relay.targets(&exchange, &key).into_iter().map(|queue| {
            let known = self.outlets.iter().position(|outlet| Arc::ptr_eq(&outlet.queue, &queue));
            known.unwrap_or_else(|| {
                self.outlets.push(Outlet { queue, pieces: Vec::new() });
                self.outlets.len() - 1
            })
        });
        let outlets = outlets.collect();
        self.routes_by_publish.insert(publish.to_vec(), self.routes.len());
        self.routes.push(Route { publish: publish.to_vec(), exchange, key, outlets });
        Ok(self.routes.len() - 1)
    }

    /// Forgets the routes if they may be wrong. No message may be noted at that time.
    fn refresh_routes(&mut self) {
        let generation = self.relay.generation.load(Relaxed);
        if generation != self.generation || self.routes.len() > ROUTES_MAX {
            self.generation = generation;
            self.routes.clear();
            self.routes_by_publish.clear();
            self.outlets.clear();
        }
    }

    /// Hands on the messages noted so far, with one write for each queue.
    fn deliver(&mut self, input: &[u8]) {
        for Outlet { queue, pieces } in &mut self.outlets {
            let Some(last) = pieces.last() else { continue };
            let mut state = lock(&queue.0);
            if state.consumers.is_empty() {
                state.dropped += pieces.len() as u64;
                let Route { exchange, key, .. } = &self.routes[last.route];
                let (last_exchange, last_key, content) = state.last.get_or_insert_default();
                last_exchange.clone_from(exchange);
                last_key.clone_from(key);
                content.clear();
                content.extend_from_slice(&input[last.start..last.end]);
            } else {
                state.turn = (state.turn + 1) % state.consumers.len();
                let consumer = Arc::clone(&state.consumers[state.turn]);
                drop(state);
                consumer.deliver(input, pieces, &self.routes, &mut self.deliveries);
            }
            pieces.clear();
        }
    }

    fn confirm(&mut self) {
        for (number, channel) in (0..).zip(&mut self.channels) {
            if channel.confirms && channel.confirmed < channel.published {
                channel.confirmed = channel.published;
                let ack = Method::BasicAck { delivery_tag: channel.published, multiple: true };
                write_method(&mut self.answers, number, &ack);
            }
        }
    }

    fn answer(&mut self, channel: u16, method: &Method<'_>) {
        write_method(&mut self.answers, channel, method);
    }

    fn answer_unless(&mut self, nowait: bool, channel: u16, method: &Method<'_>) {
        if !nowait {
            self.answer(channel, method);
        }
    }

    /// Writes the answers. Errors are for the reading half to find, here as in deliveries.
    fn flush(&mut self) {
        if !self.answers.is_empty() {
            let _ = lock(&self.sink).stream.write_all(&self.answers);
            self.answers.clear();
        }
    }

    fn start(&mut self) {
        let server_properties = FieldTable::build(|properties| {
            properties.field("product", Value::LongStr(b"relay")).table("capabilities", |capabilities| {
                for name in ["publisher_confirms", "basic.nack", "consumer_cancel_notify", "direct_reply_to"] {
                    capabilities.field(name, Value::Bool(true));
                }
            });
        });
        let server_properties = server_properties.as_table();
        let (mechanisms, locales) = (b"PLAIN AMQPLAIN".as_slice(), b"en_US".as_slice());
        let (version_major, version_minor) = (0, 9);
        self.answer(
            0,
            &Method::ConnectionStart { version_major, version_minor, server_properties, mechanisms, locales },
        );
        self.flush();
    }

    fn open_channel(&mut self, number: u16) -> Result<&mut Channel, End> {
        let channel = self.channels.get_mut(usize::from(number)).filter(|channel| channel.open);
        channel.ok_or_else(|| End::Fault(ReplyCode::ChannelError, format!("channel {number} is not open")))
    }

    fn queue_name(&self, name: ShortStr<'_>) -> String {
        if name.is_empty() { self.queue_declared.clone() } else { name.to_string() }
    }

    fn queue(&self, name: ShortStr<'_>) -> Arc<Queue> {
        self.relay.queue(&self.queue_name(name))
    }

    fn cancel_consumers(&mut self, which: impl Fn(&Consumer) -> bool) {
        for (queue, consumer) in self.consumers.extract_if(.., |(_, consumer)| which(consumer)) {
            lock(&queue.0).consumers.retain(|other| !Arc::ptr_eq(other, &consumer));
            let _until_a_batch_is_written = lock(&self.sink);
            consumer.cancelled.store(true, Relaxed);
        }
    }

    fn handle_method(&mut self, channel: u16, method: &Method<'_>) -> Result<(), End> {
        if !matches!(method, Method::ChannelOpen { .. }) {
            self.open_channel(channel)?;
        }
        match *method {
            Method::ConnectionStartOk { .. } => {
                let (channel_max, frame_max, heartbeat) = (CHANNEL_MAX, FRAME_MAX, 0);
                self.answer(0, &Method::ConnectionTune { channel_max, frame_max, heartbeat });
            }
            Method::ConnectionTuneOk { .. } => {}
            Method::ConnectionOpen { .. } => {
                self.answer(0, &Method::ConnectionOpenOk { known_hosts: ShortStr::EMPTY });
            }
            Method::ConnectionClose { .. } => {
                self.answer(0, &Method::ConnectionCloseOk {});
                return Err(End::Closed);
            }
            Method::ConnectionCloseOk {} => return Err(End::Closed),
            Method::ChannelOpen { .. } => {
                let index = usize::from(channel);
                if !(1..=CHANNEL_MAX).contains(&channel) || self.channels.get(index).is_some_and(|it| it.open) {
                    return Err(End::Fault(ReplyCode::ChannelError, format!("channel {channel} cannot be opened")));
                }
                let channels = self.channels.len().max(index + 1);
                self.channels.resize(channels, Channel::default());
                self.channels[index] = Channel { open: true, ..Channel::default() };
                lock(&self.sink).tags.remove(&channel);
                self.answer(channel, &Method::ChannelOpenOk { channel_id: &[] });
            }
            Method::ChannelFlow { active } => self.answer(channel, &Method::ChannelFlowOk { active }),
            Method::ChannelClose { .. } => {
                self.confirm();
                self.cancel_consumers(|consumer| consumer.channel == channel);
                self.channels[usize::from(channel)].open = channel == 0;
                self.answer(channel, &Method::ChannelCloseOk {});
            }
            Method::ExchangeDeclare { nowait, .. } => {
                self.answer_unless(nowait, channel, &Method::ExchangeDeclareOk {});
            }
            Method::ExchangeDelete { exchange, nowait, .. } => {
                lock(&self.relay.topology).exchanges.remove(exchange.as_str());
                self.relay.generation.fetch_add(1, Relaxed);
                self.answer_unless(nowait, channel, &Method::ExchangeDeleteOk {});
            }
            Method::ExchangeBind { nowait, .. } => {
                self.answer_unless(nowait, channel, &Method::ExchangeBindOk {});
            }
            Method::ExchangeUnbind { nowait, .. } => {
                self.answer_unless(nowait, channel, &Method::ExchangeUnbindOk {});
            }
            Method::QueueDeclare { queue, nowait, .. } => {
                let name = if queue.is_empty() { self.relay.generate_name("amq.gen-") } else { queue.to_string() };
                let declared = self.relay.queue(&name);
                let (message_count, consumers) = {
                    let state = lock(&declared.0);
                    (count(state.dropped), state.consumers.len() as u64)
                };
                let (queue, consumer_count) = (ShortStr::truncated(&name), count(consumers));
                let answer = Method::QueueDeclareOk { queue, message_count, consumer_count };
                self.answer_unless(nowait, channel, &answer);
                self.queue_declared = name;
            }
            Method::QueueBind { queue, exchange, nowait, .. } => {
                self.relay.bind(&self.queue(queue), exchange.as_str());
                self.answer_unless(nowait, channel, &Method::QueueBindOk {});
            }
            Method::QueueUnbind { queue, exchange, .. } => {
                self.relay.unbind(&self.queue(queue), |name| name == exchange.as_str());
                self.answer(channel, &Method::QueueUnbindOk {});
            }
            Method::QueuePurge { queue, nowait, .. } => {
                let message_count = self.queue(queue).purge();
                self.answer_unless(nowait, channel, &Method::QueuePurgeOk { message_count });
            }
            Method::QueueDelete { queue, nowait, .. } => {
                let queue_name = self.queue_name(queue);
                let deleted = self.relay.queue(&queue_name);
                lock(&self.relay.topology).queues.remove(&queue_name);
                self.relay.unbind(&deleted, |_| true);
                let message_count = deleted.purge();
                self.answer_unless(nowait, channel, &Method::QueueDeleteOk { message_count });
            }
            Method::BasicQos { .. } => self.answer(channel, &Method::BasicQosOk {}),
            Method::BasicConsume { queue, consumer_tag, nowait, .. } => {
                let given = consumer_tag.to_string();
                let tag = if given.is_empty() { self.relay.generate_name("amq.ctag-") } else { given };
                let consumer_tag = ShortStr::truncated(&tag);
                self.answer_unless(nowait, channel, &Method::BasicConsumeOk { consumer_tag });
                let (sink, cancelled) = (Arc::clone(&self.sink), AtomicBool::new(false));
                let consumer = Arc::new(Consumer { tag, channel, sink, cancelled });
                let queue = self.queue(queue);
                // Nothing is delivered before the answer, and nothing published after it is dropped.
                let mut sink = lock(&self.sink);
                lock(&queue.0).consumers.push(Arc::clone(&consumer));
                let _ = sink.stream.write_all(&self.answers);
                drop(sink);
                self.answers.clear();
                self.consumers.push((queue, consumer));
            }
            Method::BasicCancel { consumer_tag, nowait } => {
                let tag = consumer_tag.as_str();
                self.cancel_consumers(|consumer| consumer.channel == channel && consumer.tag == tag);
                self.answer_unless(nowait, channel, &Method::BasicCancelOk { consumer_tag });
            }
            Method::BasicGet { queue, .. } => self.get(channel, &self.queue(queue)),
            Method::BasicRecover { .. } => self.answer(channel, &Method::BasicRecoverOk {}),
            Method::ConfirmSelect { nowait } => {
                let state = self.open_channel(channel)?;
                if !mem::replace(&mut state.confirms, true) {
                    (state.published, state.confirmed) = (0, 0);
                }
                self.answer_unless(nowait, channel, &Method::ConfirmSelectOk {});
            }
            _ => {
                return Err(End::Fault(ReplyCode::NotImplemented, format!("{} is not for a relay", method.name())));
            }
        }
        Ok(())
    }

    fn get(&mut self, channel: u16, queue: &Queue) {
        let mut sink = lock(&self.sink);
        let state = lock(&queue.0);
        let Some((exchange, key, content)) = &state.last else {
            return write_method(
                &mut self.answers,
                channel,
                &Method::BasicGetEmpty { cluster_id: ShortStr::EMPTY },
            );
        };
        let last_tag = sink.tags.entry(channel).or_default();
        *last_tag += 1;
        let delivery_tag = *last_tag;
        let (exchange, routing_key) = (ShortStr::truncated(exchange), ShortStr::truncated(key));
        let answer =
            Method::BasicGetOk { delivery_tag, redelivered: false, exchange, routing_key, message_count: 0 };
        write_method(&mut self.answers, channel, &answer);
        append_content(&mut self.answers, channel, content);
    }
}

impl Queue {
    /// Forgets what was dropped, and says how much.
    fn purge(&self) -> u32 {
        let mut state = lock(&self.0);
        state.last = None;
        count(mem::take(&mut state.dropped))
    }
}

impl Consumer {
    /// Writes a batch to the socket, in the place of one that the buffer holds from the last time.
    fn deliver(&self, input: &[u8], pieces: &[Piece], routes: &[Route], buffer: &mut Vec<u8>) {
        let mut sink = lock(&self.sink);
        if self.cancelled.load(Relaxed) {
            return;
        }
        let Sink { stream, tags } = &mut *sink;
        let last_tag = tags.entry(self.channel).or_default();
        let tag_at = FRAME_HEAD_BYTES + BASIC_PUBLISH.len() + 1 + self.tag.len();
        let mut deliver = Vec::new();
        let mut route = usize::MAX;
        buffer.clear();
        for piece in pieces {
            if piece.route != route {
                route = piece.route;
                deliver.clear();
                let method = Method::BasicDeliver {
                    consumer_tag: ShortStr::truncated(&self.tag),
                    delivery_tag: 0,
                    redelivered: false,
                    exchange: ShortStr::truncated(&routes[route].exchange),
                    routing_key: ShortStr::truncated(&routes[route].key),
                };
                write_method(&mut deliver, self.channel, &method);
            }
            *last_tag += 1;
            deliver[tag_at..tag_at + 8].copy_from_slice(&last_tag.to_be_bytes());
            buffer.extend_from_slice(&deliver);
            append_content(buffer, self.channel, &input[piece.start..piece.end]);
        }
        let _ = stream.write_all(buffer);
    }
}

/// Appends the frames of a content, with another channel if need be.
fn append_content(out: &mut Vec<u8>, channel: u16, content: &[u8]) {
    let mut at = out.len();
    out.extend_from_slice(content);
    let channel = channel.to_be_bytes();
    if content[1..3] != channel {
        while let Some(&mut [_, ref mut c0, ref mut c1, l0, l1, l2, l3]) = out[at..].first_chunk_mut() {
            [*c0, *c1] = channel;
            at += u32::from_be_bytes([l0, l1, l2, l3]) as usize + FRAME_OVERHEAD_BYTES;
        }
    }
}

/// Takes header and body frames off the front; false when they are not all there.
fn skip_content(rest: &mut &[u8], channel: u16) -> Result<bool, End> {
    let Some(header) = split_frame(rest, FRAME_MAX)? else { return Ok(false) };
    let (FrameKind::Header, Some((_, tail))) = (header.kind, header.payload.split_first_chunk::<4>()) else {
        return Err(unexpected("no header after a publish"));
    };
    let mut bytes_left = tail.first_chunk().map_or(0, |bytes| u64::from_be_bytes(*bytes));
    let mut same_channel = header.channel == channel;
    while bytes_left > 0 && same_channel {
        let Some(body) = split_frame(rest, FRAME_MAX)? else { return Ok(false) };
        same_channel = body.channel == channel;
        let fits = bytes_left.checked_sub(body.payload.len() as u64).filter(|_| body.kind == FrameKind::Body);
        bytes_left = fits.ok_or_else(|| unexpected("no body of the announced size"))?;
    }
    if same_channel { Ok(true) } else { Err(unexpected("another channel within a message")) }
}

fn unexpected(text: &str) -> End {
    End::Fault(ReplyCode::UnexpectedFrame, text.to_owned())
}

fn count(messages: u64) -> u32 {
    u32::try_from(messages).unwrap_or(u32::MAX)
}

/// Locks, also after a panic elsewhere: nothing here is left half done.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl From<FrameError> for End {
    fn from(error: FrameError) -> Self {
        End::Fault(ReplyCode::FrameError, error.to_string())
    }
}

impl From<DecodeError> for End {
    fn from(error: DecodeError) -> Self {
        End::Fault(ReplyCode::SyntaxError, error.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use leveret_amqp::frame::{write_content, write_frame};
    use leveret_amqp::{BasicProperties, ContentHeader, Table};

    /// A client of a relay, with one channel open.
    struct Client {
        stream: TcpStream,
        input: Vec<u8>,
    }

    impl Client {
        fn connect(relay: &Arc<Relay>, header: [u8; 8]) -> Self {
            let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
            let mut stream = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
            stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
            let relay = Arc::clone(relay);
            thread::spawn(move || serve(relay, &listener.accept().unwrap().0));
            stream.write_all(&header).unwrap();
            Client { stream, input: Vec::new() }
        }

        fn open(relay: &Arc<Relay>, channel: u16) -> Self {
            let mut client = Client::connect(relay, PROTOCOL_HEADER);
            let (class, start) = client.receive_method();
            assert_eq!((class, &start[..4]), (0, &[0, 10, 0, 10][..]));
            let (mechanism, locale) = (ShortStr::truncated("PLAIN"), ShortStr::EMPTY);
            client.ask(
                0,
                &Method::ConnectionStartOk { client_properties: Table::EMPTY, mechanism, response: b"", locale },
                &Method::ConnectionTune { channel_max: CHANNEL_MAX, frame_max: FRAME_MAX, heartbeat: 0 },
            );
            client.send(0, &Method::ConnectionTuneOk { channel_max: 1, frame_max: FRAME_MAX, heartbeat: 0 });
            let (virtual_host, capabilities) = (ShortStr::truncated("/"), ShortStr::EMPTY);
            client.ask(
                0,
                &Method::ConnectionOpen { virtual_host, capabilities, insist: false },
                &Method::ConnectionOpenOk { known_hosts: ShortStr::EMPTY },
            );
            let open = Method::ChannelOpen { out_of_band: ShortStr::EMPTY };
            client.ask(channel, &open, &Method::ChannelOpenOk { channel_id: b"" });
            client
        }

        fn send(&mut self, channel: u16, method: &Method<'_>) {
            let mut bytes = Vec::new();
            write_method(&mut bytes, channel, method);
            self.stream.write_all(&bytes).unwrap();
        }

        fn ask(&mut self, channel: u16, method: &Method<'_>, answer: &Method<'_>) {
            self.send(channel, method);
            self.expect(channel, answer);
        }

        fn expect(&mut self, channel: u16, method: &Method<'_>) {
            let (seen_on, payload) = self.receive_method();
            assert_eq!((seen_on, Method::decode(&payload)), (channel, Ok(*method)));
        }

        fn receive_method(&mut self) -> (u16, Vec<u8>) {
            let (kind, channel, payload) = self.receive().expect("the relay goes on");
            assert_eq!(kind, FrameKind::Method);
            (channel, payload)
        }

        /// The next frame, or nothing when the relay has closed the connection.
        fn receive(&mut self) -> Option<(FrameKind, u16, Vec<u8>)> {
            loop {
                let mut rest = &self.input[..];
                if let Some(frame) = split_frame(&mut rest, FRAME_MAX).unwrap() {
                    let received = (frame.kind, frame.channel, frame.payload.to_vec());
                    self.input = rest.to_vec();
                    return Some(received);
                }
                let mut bytes = [0; 4096];
                match self.stream.read(&mut bytes) {
                    Ok(read @ 1..) => self.input.extend_from_slice(&bytes[..read]),
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => panic!("no answer"),
                    Ok(_) | Err(_) => return None,
                }
            }
        }

        fn declare(&mut self, channel: u16, name: &str, message_count: u32) {
            let queue = ShortStr::truncated(name);
            let declare = Method::QueueDeclare {
                ticket: 0,
                queue,
                passive: false,
                durable: false,
                exclusive: false,
                auto_delete: false,
                nowait: false,
                arguments: Table::EMPTY,
            };
            self.ask(channel, &declare, &Method::QueueDeclareOk { queue, message_count, consumer_count: 0 });
        }

        fn bind(&mut self, channel: u16, name: &str, exchange: &str) {
            let (queue, exchange) = (ShortStr::truncated(name), ShortStr::truncated(exchange));
            let (routing_key, arguments) = (ShortStr::EMPTY, Table::EMPTY);
            let bind = Method::QueueBind { ticket: 0, queue, exchange, routing_key, nowait: false, arguments };
            self.ask(channel, &bind, &Method::QueueBindOk {});
        }

        fn consume(&mut self, channel: u16, name: &str) {
            let (queue, consumer_tag) = (ShortStr::truncated(name), ShortStr::truncated(name));
            let consume = Method::BasicConsume {
                ticket: 0,
                queue,
                consumer_tag,
                no_local: false,
                no_ack: true,
                exclusive: false,
                nowait: false,
                arguments: Table::EMPTY,
            };
            self.ask(channel, &consume, &Method::BasicConsumeOk { consumer_tag });
        }

        fn publish(&mut self, channel: u16, exchange: &str, key: &str, bodies: &[&[u8]]) {
            let (exchange, routing_key) = (ShortStr::truncated(exchange), ShortStr::truncated(key));
            let publish =
                Method::BasicPublish { ticket: 0, exchange, routing_key, mandatory: false, immediate: false };
            let mut bytes = Vec::new();
            for body in bodies {
                write_method(&mut bytes, channel, &publish);
                write_content(&mut bytes, channel, &header(body), body, FRAME_MAX);
            }
            self.stream.write_all(&bytes).unwrap();
        }

        fn expect_delivery(&mut self, channel: u16, queue: &str, exchange: &str, tag: u64, body: &[u8]) {
            let deliver = Method::BasicDeliver {
                consumer_tag: ShortStr::truncated(queue),
                delivery_tag: tag,
                redelivered: false,
                exchange: ShortStr::truncated(exchange),
                routing_key: ShortStr::truncated("q"),
            };
            self.expect(channel, &deliver);
            self.expect_content(channel, body);
        }

        fn expect_content(&mut self, channel: u16, body: &[u8]) {
            assert_eq!(self.receive(), Some((FrameKind::Header, channel, header(body))));
            for piece in body.chunks(FRAME_MAX as usize - FRAME_OVERHEAD_BYTES) {
                assert_eq!(self.receive(), Some((FrameKind::Body, channel, piece.to_vec())));
            }
        }
    }

    fn header(body: &[u8]) -> Vec<u8> {
        let properties = BasicProperties { correlation_id: Some(b"c"), ..BasicProperties::default() };
        let mut bytes = Vec::new();
        ContentHeader { body_bytes: body.len() as u64, properties }.encode(&mut bytes);
        bytes
    }

    #[test]
    fn messages_reach_the_consumer_in_order_and_are_confirmed() {
        let relay = Arc::new(Relay::default());
        let (mut publisher, mut consumer) = (Client::open(&relay, 3), Client::open(&relay, 1));
        consumer.declare(1, "q", 0);
        consumer.consume(1, "q");
        publisher.ask(3, &Method::ConfirmSelect { nowait: false }, &Method::ConfirmSelectOk {});
        let large = vec![7; 300_000];
        publisher.publish(3, "", "q", &[b"first", b"", &large]);
        consumer.expect_delivery(1, "q", "", 1, b"first");
        consumer.expect_delivery(1, "q", "", 2, b"");
        consumer.expect_delivery(1, "q", "", 3, &large);
        let mut confirmed = 0;
        while confirmed < 3 {
            let (_, payload) = publisher.receive_method();
            let Ok(Method::BasicAck { delivery_tag, multiple: true }) = Method::decode(&payload) else {
                panic!("no ack, but {payload:?}");
            };
            assert!((confirmed + 1..=3).contains(&delivery_tag));
            confirmed = delivery_tag;
        }
    }

    #[test]
    fn an_exchange_copies_to_every_queue_that_is_bound_to_it() {
        let relay = Arc::new(Relay::default());
        let mut client = Client::open(&relay, 1);
        for queue in ["a", "b"] {
            client.declare(1, queue, 0);
            client.bind(1, queue, "fan");
            client.consume(1, queue);
        }
        client.publish(1, "fan", "q", &[b"x"]);
        client.expect_delivery(1, "a", "fan", 1, b"x");
        client.expect_delivery(1, "b", "fan", 2, b"x");
    }

    #[test]
    fn without_a_consumer_messages_are_counted_and_get_answers_with_the_last() {
        let relay = Arc::new(Relay::default());
        let mut client = Client::open(&relay, 1);
        let (queue, exchange) = (ShortStr::truncated("q"), ShortStr::EMPTY);
        let get = Method::BasicGet { ticket: 0, queue, no_ack: true };
        client.declare(1, "q", 0);
        client.ask(1, &get, &Method::BasicGetEmpty { cluster_id: ShortStr::EMPTY });
        client.publish(1, "", "q", &[b"1", b"2"]);
        client.declare(1, "q", 2);
        let (routing_key, redelivered, message_count) = (queue, false, 0);
        let got = Method::BasicGetOk { delivery_tag: 1, redelivered, exchange, routing_key, message_count };
        client.ask(1, &get, &got);
        client.expect_content(1, b"2");
    }

    #[test]
    fn nonsense_ends_its_own_connection_only() {
        let relay = Arc::new(Relay::default());
        let mut bystander = Client::open(&relay, 1);
        let mut another_channel = Vec::new();
        let (exchange, routing_key) = (ShortStr::EMPTY, ShortStr::truncated("q"));
        let publish = Method::BasicPublish { ticket: 0, exchange, routing_key, mandatory: false, immediate: false };
        write_method(&mut another_channel, 1, &publish);
        write_frame(&mut another_channel, FrameKind::Header, 1, |out| out.extend_from_slice(&header(b"x")));
        write_frame(&mut another_channel, FrameKind::Body, 2, |out| out.push(b'x'));
        for nonsense in [&b"no frame at all, whatever it may be"[..], &another_channel, &[1, 0, 1, 0, 0, 0, 0, 9]] {
            let mut client = Client::open(&relay, 1);
            client.publish(1, "", "q", &[b""]);
            client.stream.write_all(nonsense).unwrap();
            let (_, payload) = client.receive_method();
            assert!(matches!(Method::decode(&payload), Ok(Method::ConnectionClose { .. })));
            assert_eq!(client.receive(), None);
        }
        let mut stranger = Client::connect(&relay, *b"GET / HT");
        let mut answer = Vec::new();
        stranger.stream.read_to_end(&mut answer).unwrap();
        assert_eq!(answer, PROTOCOL_HEADER);
        bystander.declare(1, "other", 0);
    }
}
