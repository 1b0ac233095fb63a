//! The sockets that a script speaks through.
//!
//! A script is one line after another, and each takes effect before the next. Over sockets that needs care, as the
//! broker may serve two connections at once, and RabbitMQ also two channels of one connection:
//!
//! - Before the script speaks on another connection or channel than last time, that one is asked something that it
//!   answers after all else: `channel.flow` with what already is the case, which changes nothing anywhere.
//!   Where that cannot be asked, as the channel is closed or amidst a content, a pause has to do.
//! - Before the script asks for the counts of a queue with `queue.declare`, what it has published or settled gets a
//!   moment to arrive: RabbitMQ answers that question ahead of messages that are on their way to the queue.
//! - The same goes for `basic.get`, once the script has declared a queue that messages may come to by way of another,
//!   or of a log: queues with dead letters, or of a type.
//! - What the script expects to hear is waited for, until a deadline.
//! - That there is nothing to hear is believed after a quiet time. A broker that is slower than that may seem to
//!   behave better than it does, never worse.
//! - Time that passes in the script passes here, and a little more. A time that the broker tells lies between the one
//!   in the script, counted from its beginning, and now.
//!
//! A client closes its socket once the connection is closed by its methods. RabbitMQ waits for that.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result};
use leveret_amqp::frame::{RawFrame, split_frame, write_method};
use leveret_amqp::{ContentHeader, FrameKind, Method, PROTOCOL_HEADER};
use leveret_client::{Channel, Connection, DeleteOnly, Error, Scope, Url};
use leveret_testkit::{BEGINNING, Extent, Heard, JournalPace, NodeChange, PolicyOrder, Room, Stop, Wire};

/// How long something that is expected may take. RabbitMQ takes 3 s to close the socket of a client that misbehaved.
const DEADLINE: Duration = Duration::from_secs(5);

/// How long nothing must have been heard or said to conclude that nothing will be.
const QUIET: Duration = Duration::from_millis(50);

/// How much longer than in the script time passes here, so that what is due then has happened.
const LEEWAY: Duration = Duration::from_millis(50);

/// Times of a script that lie so soon after its beginning, in seconds, are those at which something happened in it.
const TIMES: i64 = 24 * 60 * 60;

/// How long a broker may take to delete the exclusive queues of connections that are gone.
const UNLOCK_DEADLINE: Duration = Duration::from_secs(5);
const UNLOCK_LOOK: Duration = Duration::from_millis(20);

const RESOURCE_LOCKED: u16 = 405;

/// The arguments of queues to which, or from which, messages take longer than a question takes.
const DETOURS: &[&str] = &["x-dead-letter-exchange", "x-queue-type"];

/// The connections of one script.
#[derive(Debug)]
pub(super) struct SocketWire {
    address: (String, u16),
    /// The seconds of the wall clock at which the script began.
    began: i64,
    peers: BTreeMap<String, Peer>,
    /// Where the script spoke last: connection and channel.
    last: Option<(String, u16)>,
    /// Whether a message, or the settling of one, may be on its way to a queue.
    is_on_its_way: bool,
    declared: Declared,
}

/// What a script has declared, by name.
#[derive(Debug, Default)]
struct Declared {
    queues: BTreeSet<String>,
    exchanges: BTreeSet<String>,
    /// Whether messages may come to a queue by way of another, or of a log.
    has_detours: bool,
}

#[derive(Debug)]
struct Peer {
    socket: TcpStream,
    unread: Vec<u8>,
    heard: VecDeque<Heard>,
    has_ended: bool,
    channels: BTreeMap<u16, ChannelState>,
    /// When bytes last went either way.
    moved: Instant,
}

/// What the client may send on a channel. Channels that are not open have none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum ChannelState {
    AnyMethod,
    ContentHeader,
    /// So many bytes of a body.
    ContentBody(u64),
}

impl SocketWire {
    pub(super) fn new(url: &Url) -> Self {
        SocketWire {
            address: (url.host.clone(), url.port),
            began: now(),
            peers: BTreeMap::new(),
            last: None,
            is_on_its_way: false,
            declared: Declared::default(),
        }
    }

    /// Closes the connections and deletes what the script has declared, so that the next one begins with nothing.
    pub(super) fn clean_up(self, url: &Url) -> Result<()> {
        drop(self.peers);
        let Declared { queues, exchanges, .. } = self.declared;
        if queues.is_empty() && exchanges.is_empty() {
            return Ok(());
        }
        let mut connection = Connection::open(url)?;
        let deadline = Instant::now() + UNLOCK_DEADLINE;
        for queue in &queues {
            while delete(&mut connection, |channel| channel.delete_queue(queue, DeleteOnly::default()).map(drop))
                .with_context(|| format!("queue {queue}"))?
                == Deletion::Locked
                && Instant::now() < deadline
            {
                thread::sleep(UNLOCK_LOOK);
            }
        }
        for exchange in &exchanges {
            delete(&mut connection, |channel| channel.delete_exchange(exchange, DeleteOnly::default()))
                .with_context(|| format!("exchange {exchange}"))?;
        }
        Ok(connection.close()?)
    }

    /// Waits until what was said last has taken effect.
    fn settle(&mut self) {
        let Some((name, channel)) = self.last.take() else { return };
        let Some(peer) = self.peers.get_mut(&name) else { return };
        if peer.channels.get(&channel) != Some(&ChannelState::AnyMethod) {
            thread::sleep(QUIET);
            return;
        }
        let mut bytes = Vec::new();
        write_method(&mut bytes, channel, &Method::ChannelFlow { active: true });
        peer.write(&bytes);
        let deadline = Instant::now() + DEADLINE;
        let mut seen = peer.heard.len();
        // A channel that the broker has closed does not answer.
        while peer.channels.contains_key(&channel) {
            let answer = peer.heard.iter().skip(seen).position(|heard| is_flow_ok(heard, channel));
            if let Some(position) = answer {
                peer.heard.remove(seen + position);
                return;
            }
            seen = peer.heard.len();
            if !peer.read(deadline) {
                return;
            }
        }
    }

    fn hear_until(&mut self, name: &str, deadline: impl Fn(&Peer) -> Instant) -> Heard {
        loop {
            let Some(peer) = self.peers.get_mut(name) else { return Heard::End };
            if let Some(heard) = peer.heard.pop_front() {
                if let Heard::Frame(FrameKind::Method, _, payload) = &heard
                    && let Ok(method) = Method::decode(payload)
                {
                    self.declared.note(&method);
                }
                return heard;
            }
            if peer.has_ended {
                return Heard::End;
            }
            let deadline = deadline(peer);
            if !peer.read(deadline) && !peer.has_ended {
                return Heard::Nothing;
            }
        }
    }
}

impl Declared {
    /// Remembers what there will be to delete.
    fn note(&mut self, method: &Method<'_>) {
        match *method {
            Method::QueueDeclare { queue, passive: false, arguments, .. } => {
                self.has_detours |= DETOURS.iter().any(|name| arguments.get(name).is_some());
                // Brokers strip line breaks from names.
                self.queues.insert(queue.as_str().replace(['\r', '\n'], ""));
            }
            Method::QueueDeclareOk { queue, .. } => {
                self.queues.insert(queue.as_str().to_owned());
            }
            Method::ExchangeDeclare { exchange, passive: false, .. } if !exchange.as_str().starts_with("amq.") => {
                self.exchanges.insert(exchange.as_str().to_owned());
            }
            _ => {}
        }
        self.queues.remove("");
        self.exchanges.remove("");
    }
}

impl Wire for SocketWire {
    fn connect(&mut self, name: &str) {
        self.settle();
        // A script that cannot connect hears the end at once, and says so.
        let Ok(socket) = TcpStream::connect((self.address.0.as_str(), self.address.1)) else { return };
        let _ = socket.set_nodelay(true);
        let _ = socket.set_write_timeout(Some(DEADLINE));
        let peer = Peer {
            socket,
            unread: Vec::new(),
            heard: VecDeque::new(),
            has_ended: false,
            channels: BTreeMap::new(),
            moved: Instant::now(),
        };
        self.peers.insert(name.to_owned(), peer);
    }

    fn send(&mut self, name: &str, bytes: &[u8]) {
        let mut rest = bytes;
        let mut place = (name.to_owned(), 0);
        let mut frames = Vec::new();
        while let Ok(Some(frame)) = split_frame(&mut rest, u32::MAX) {
            place.1 = frame.channel;
            frames.push(frame);
        }
        let has_detours = self.declared.has_detours;
        if self.is_on_its_way && frames.iter().any(|frame| asks_too_early(frame, has_detours)) {
            self.settle();
            thread::sleep(QUIET);
            self.is_on_its_way = false;
        }
        if self.last.as_ref().is_some_and(|last| *last != place) {
            self.settle();
        }
        self.is_on_its_way |= frames.iter().any(is_message);
        let Some(peer) = self.peers.get_mut(name) else { return };
        peer.write(bytes);
        let is_raw = !rest.is_empty() && bytes != PROTOCOL_HEADER;
        if is_raw {
            // Nothing is known any more of what the broker expects.
            peer.channels.clear();
        }
        for frame in frames {
            peer.note_sent(frame.kind, frame.channel, frame.payload);
            if frame.kind == FrameKind::Method
                && let Ok(method) = Method::decode(frame.payload)
            {
                self.declared.note(&method);
            }
        }
        self.last = Some(place);
    }

    /// The half of the socket that the script can close and still hear what the broker does.
    fn end(&mut self, name: &str) {
        if self.last.as_ref().is_some_and(|(last, _)| last != name) {
            self.settle();
        }
        if let Some(peer) = self.peers.get_mut(name) {
            let _ = peer.socket.shutdown(Shutdown::Write);
            peer.channels.clear();
        }
        self.last = Some((name.to_owned(), 0));
    }

    fn hear(&mut self, name: &str) -> Heard {
        let deadline = Instant::now() + DEADLINE;
        self.hear_until(name, |_| deadline)
    }

    fn overhear(&mut self, name: &str) -> Heard {
        self.settle();
        self.hear_until(name, |peer| peer.moved + QUIET)
    }

    fn wait(&mut self, time: Duration) {
        self.settle();
        thread::sleep(time + LEEWAY);
    }

    fn is_time(&self, expected: i64, told: i64) -> bool {
        let since = expected - BEGINNING;
        expected == told || (0..TIMES).contains(&since) && (self.began + since..=now()).contains(&told)
    }

    /// Whoever runs scripts leaves those out that ask for this.
    fn journal(&mut self, _: JournalPace) {}

    fn room(&mut self, _: Room) {}

    fn checkpoint(&mut self, _: Extent) {}

    fn node(&mut self, _: NodeChange) -> Result<(), String> {
        Err("a socket changes no users".into())
    }

    fn policy(&mut self, _: PolicyOrder) -> Result<(), String> {
        Err("a socket sets no policies".into())
    }

    fn restart(&mut self, _: Stop) {}
}

impl Peer {
    fn write(&mut self, bytes: &[u8]) {
        // If it fails, the broker has closed the socket, which the script will hear.
        let _ = self.socket.write_all(bytes);
        self.moved = Instant::now();
    }

    /// Reads what comes until the deadline, at least looks; `false` if nothing did, or the socket has ended.
    fn read(&mut self, deadline: Instant) -> bool {
        if self.has_ended {
            return false;
        }
        // A timeout of 0 would mean none.
        let timeout = deadline.saturating_duration_since(Instant::now()).max(Duration::from_millis(1));
        let _ = self.socket.set_read_timeout(Some(timeout));
        let mut buffer = [0; 1 << 14];
        match self.socket.read(&mut buffer) {
            Ok(0) => self.has_ended = true,
            Ok(count) => {
                self.unread.extend_from_slice(&buffer[..count]);
                self.moved = Instant::now();
                self.split();
                return true;
            }
            Err(error) => match error.kind() {
                ErrorKind::Interrupted => return true,
                ErrorKind::WouldBlock | ErrorKind::TimedOut => {}
                _ => self.has_ended = true,
            },
        }
        false
    }

    fn split(&mut self) {
        let mut rest = &self.unread[..];
        let mut frames = Vec::new();
        loop {
            if let Some((header, more)) = rest.split_first_chunk::<8>().filter(|_| rest.starts_with(b"AMQP")) {
                frames.push(Heard::ProtocolHeader(header.to_vec()));
                rest = more;
            }
            match split_frame(&mut rest, u32::MAX) {
                Ok(Some(frame)) => frames.push(Heard::Frame(frame.kind, frame.channel, frame.payload.to_vec())),
                Ok(None) | Err(_) => break,
            }
        }
        self.unread = rest.to_vec();
        for heard in &frames {
            if let Heard::Frame(FrameKind::Method, channel, payload) = heard {
                self.note_heard(*channel, payload);
            }
        }
        self.heard.extend(frames);
    }

    fn note_heard(&mut self, channel: u16, payload: &[u8]) {
        match Method::decode(payload) {
            Ok(Method::ChannelClose { .. }) => {
                self.channels.remove(&channel);
            }
            Ok(Method::ConnectionClose { .. }) => self.channels.clear(),
            Ok(Method::ConnectionCloseOk {}) if channel == 0 => {
                let _ = self.socket.shutdown(Shutdown::Write);
            }
            _ => {}
        }
    }

    fn note_sent(&mut self, kind: FrameKind, channel: u16, payload: &[u8]) {
        let state = match (kind, self.channels.get(&channel)) {
            (FrameKind::Method, known) => match Method::decode(payload) {
                Ok(Method::ChannelOpen { .. }) => Some(ChannelState::AnyMethod),
                Ok(Method::ChannelClose { .. } | Method::ChannelCloseOk {}) | Err(_) => None,
                Ok(Method::ConnectionCloseOk {}) if channel == 0 => {
                    let _ = self.socket.shutdown(Shutdown::Write);
                    None
                }
                Ok(Method::BasicPublish { .. }) if known.is_some() => Some(ChannelState::ContentHeader),
                Ok(_) => known.copied(),
            },
            (FrameKind::Header, Some(ChannelState::ContentHeader)) => match ContentHeader::decode(payload) {
                Ok(header) => Some(after_body(header.body_bytes)),
                Err(_) => None,
            },
            (FrameKind::Body, Some(ChannelState::ContentBody(left))) => {
                Some(after_body(left.saturating_sub(payload.len() as u64)))
            }
            // Out of place: the broker will not like it.
            (FrameKind::Header | FrameKind::Body, _) => None,
            (FrameKind::Heartbeat, known) => known.copied(),
        };
        match state {
            Some(state) => self.channels.insert(channel, state),
            None => self.channels.remove(&channel),
        };
    }
}

/// What came of trying to delete something.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Deletion {
    /// It is gone, or cannot be deleted at all, as the queue of direct reply-to.
    Done,
    /// It is exclusive to a connection that the broker has not cleared away yet.
    Locked,
}

fn delete(
    connection: &mut Connection,
    delete: impl FnOnce(&mut Channel<'_>) -> Result<(), Error>,
) -> Result<Deletion, Error> {
    let mut channel = connection.open_channel()?;
    match delete(&mut channel) {
        Ok(()) => channel.close().map(|()| Deletion::Done),
        Err(Error::Closed { scope: Scope::Channel, reply }) if reply.code == RESOURCE_LOCKED => {
            Ok(Deletion::Locked)
        }
        Err(Error::Closed { scope: Scope::Channel, .. }) => Ok(Deletion::Done),
        Err(error) => Err(error),
    }
}

/// The seconds of the wall clock.
fn now() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_secs()).unwrap_or(i64::MAX)
}

fn after_body(left: u64) -> ChannelState {
    if left == 0 { ChannelState::AnyMethod } else { ChannelState::ContentBody(left) }
}

/// Whether this asks for what a queue holds, and may be answered ahead of messages that are on their way to it.
fn asks_too_early(frame: &RawFrame<'_>, has_detours: bool) -> bool {
    frame.kind == FrameKind::Method
        && match Method::decode(frame.payload) {
            Ok(Method::QueueDeclare { .. }) => true,
            Ok(Method::BasicGet { .. }) => has_detours,
            _ => false,
        }
}

/// Whether this ends a message, or settles one.
fn is_message(frame: &RawFrame<'_>) -> bool {
    match frame.kind {
        FrameKind::Header | FrameKind::Body => true,
        FrameKind::Method => matches!(
            Method::decode(frame.payload),
            Ok(Method::BasicAck { .. } | Method::BasicNack { .. } | Method::BasicReject { .. })
        ),
        FrameKind::Heartbeat => false,
    }
}

fn is_flow_ok(heard: &Heard, on: u16) -> bool {
    let Heard::Frame(FrameKind::Method, channel, payload) = heard else { return false };
    *channel == on && matches!(Method::decode(payload), Ok(Method::ChannelFlowOk { .. }))
}
