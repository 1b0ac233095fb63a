//! A client that has shaken hands and then sends anything: contents put together by a connection alone, and a whole broker.

mod steps;

use std::collections::VecDeque;
use std::mem;
use std::num::NonZeroU64;
use std::sync::Arc;
use std::time::Duration;

use leveret_amqp::frame::{FrameKind, split_frame};
use leveret_amqp::limits::FRAME_OVERHEAD_BYTES;
use leveret_amqp::{FieldTable, Method, ShortStr};
use leveret_broker::connection::Credentials;
use leveret_broker::names::{ChannelId, VhostName};
use leveret_broker::node::Origin;
use leveret_broker::node::presence::{Presence, Present};
use leveret_broker::vhost::command::Publish;
use leveret_broker::vhost::policy::{ApplyTo, PolicyKind, PolicySource};
use leveret_broker::vhost::room::Room;
use leveret_broker::{
    Change, Command, Connection, ConnectionId, JournalPosition, Moment, Node, Settings, VirtualHost,
};
use leveret_testkit::{
    Broker, Eviction, Extent, Heard, JournalPace, Lag, PolicyOrder, Stop, Variation, Windows, Wire,
};

use self::steps::{Event, Step, Steps, arguments, handshake, name};
use crate::allowance::{Account, PatternBytes, QUEUE_WORTH, START_WORTH, twice, uncounted};
use crate::bytes::Bytes;

/// A connection without a broker behind it: what a client sends is put together to the same publishes, and answered in the same way,
/// however it is cut into pieces. In pieces it never takes more memory than twice what was sent.
pub(super) fn assembly(input: &[u8]) {
    let mut bytes = Bytes::new(input);
    let piece_bytes = usize::from(bytes.u16() % 8192) + 1;
    let mut sent = Vec::new();
    for step in Steps::new(bytes) {
        match step {
            Step::Sent { bytes, .. } => sent.extend_from_slice(&bytes),
            Step::Event { .. } => {}
        }
    }
    let in_pieces = put_together(&sent, piece_bytes, |work| twice(sent.len(), work));
    let mut heard = &in_pieces.answered[..];
    while let Some(frame) = split_frame(&mut heard, u32::MAX).expect("the broker's frames are well formed") {
        assert!(frame.kind != FrameKind::Method || Method::decode(frame.payload).is_ok());
    }
    // What it has said at once is all there at once, as commands.
    let in_one = put_together(&sent, sent.len().max(1), |work| work());
    assert_eq!(in_pieces, in_one);
}

/// What a connection makes of what a client sends.
#[derive(Debug, PartialEq, Eq)]
struct PutTogether {
    published: Vec<Published>,
    answered: Vec<u8>,
}

/// A publish without what counts who has it.
#[derive(Debug, PartialEq, Eq)]
struct Published {
    channel: ChannelId,
    mandatory: bool,
    expiration_ms: Option<u64>,
    confirm: Option<NonZeroU64>,
    /// Route, header and body.
    block: Vec<u8>,
}

/// Shows a connection what a client sends in pieces of so many bytes, within some bounds.
fn put_together(sent: &[u8], piece_bytes: usize, bounded: impl FnOnce(&mut dyn FnMut())) -> PutTogether {
    let now = Moment { monotonic: Duration::from_secs(1), wall: Duration::from_secs(1) };
    let mut vhost = VirtualHost::new(VhostName::new(ShortStr::truncated("/")), [7; 32]);
    let ((mut connection, _), mut published) = (opened(now, &mut vhost), Vec::new());
    drop(mem::take(connection.commands()));
    let (mut carry, mut answered) = (Vec::with_capacity(sent.len()), Vec::with_capacity(sent.len() + 64 * 1024));
    bounded(&mut || {
        for piece in sent.chunks(piece_bytes) {
            carry.extend_from_slice(piece);
            let used = connection.handle_input(now, &carry, &mut answered);
            let mut commands = mem::take(connection.commands());
            while let Some(command) = commands.take() {
                if let Command::Publish(Publish { channel, message, mandatory, expiration_ms, confirm, .. }) =
                    command
                {
                    let header = message.decode_header().expect("it was decoded before");
                    assert_eq!(header.body_bytes, message.body().len() as u64, "the body is as long as was said");
                    uncounted(|| {
                        let block = [message.route(), message.header(), message.body()].concat();
                        published.push(Published { channel, mandatory, expiration_ms, confirm, block });
                    });
                }
            }
            carry.drain(..used);
        }
        assert!(connection.unfinished_bytes() <= sent.len());
    });
    PutTogether { published, answered }
}

/// A connection that is open, behind its handshake, with one channel that the virtual host is still to open.
pub(super) fn opened(now: Moment, vhost: &mut VirtualHost) -> (Connection, ConnectionId) {
    let node = Node::with_guest();
    let mut id = None;
    let mut connection = Connection::new(Arc::new(Settings::default()), [7; 32], now);
    let (mut carry, mut out) = (VecDeque::from(handshake()), Vec::new());
    loop {
        let used = connection.handle_input(now, carry.make_contiguous(), &mut out);
        carry.drain(..used);
        if let Some(Credentials { user, password, .. }) = connection.login_request() {
            let user = node.log_in(user, password, Origin::Loopback);
            connection.handle_login(now, user, &mut out);
        } else if let Some((name, user)) = connection.open_request() {
            let (_, login) = node.open(name, user).expect("the guest may");
            let present = Present::enter(Arc::new(Presence::default())).expect("it is the first");
            id = Some(vhost.connect(login).expect("there is room"));
            connection.handle_opened(now, Ok(present), &mut out);
        } else {
            break;
        }
    }
    assert!(connection.take_negotiated().is_some(), "the handshake is valid");
    (connection, id.expect("it was opened"))
}

/// Connections of a client to a whole broker, which is restarted, short of room, and late now and then.
///
/// Beside the input, the broker has to work on all that comes of it: a step of two bytes may have it deliver or repeat everything.
/// So what it journals, reads again and sends counts as given. What stands in for a disk and for who hears does not count as taken.
pub(super) fn connection(input: &[u8]) {
    let mut bytes = Bytes::new(input);
    let variation = bytes.u8();
    let variation = Variation {
        byte_by_byte: false,
        eviction: [Eviction::Never, Eviction::Always, Eviction::AtRandom][usize::from(variation % 3)],
        lag: [Lag::None, Lag::AsLongAsPossible][usize::from(variation / 3 % 2)],
        windows: [Windows::Wide, Windows::Narrow][usize::from(variation / 6 % 2)],
    };
    let steps: Vec<_> = Steps::new(bytes).take(STEPS_MAX).collect();
    let sent = |step: &Step| if let Step::Sent { bytes, .. } = step { bytes.len() } else { 0 };
    let sent_bytes = steps.iter().map(sent).sum::<usize>();
    let pattern = PatternBytes::used(PATTERN);
    let mut account = Account::default();
    let mut session = account.run(|| Session::new(variation));
    account.run(|| {
        session.open(0);
        for step in &steps {
            session.step(step);
        }
        session.end();
    });
    (0..session.patterns).for_each(|_| account.give_pattern(pattern));
    account.give(input.len() + sent_bytes + session.worth);
    account.check(AT_ONCE);
}

/// So that an input takes no longer than others.
const STEPS_MAX: usize = 400;

/// How many times what it is given a broker may have at once.
const AT_ONCE: u64 = 32;

/// The pattern of all policies.
const PATTERN: &str = "^[qx]";

/// A client may come back so often.
const CONNECTIONS_MAX: u32 = 12;

struct Session {
    broker: Broker,
    /// The name of each connection that is open.
    open: [Option<String>; 2],
    connections: u32,
    /// Bytes of handshakes, of frames that a client hears, and of records whenever they are journaled or read; and what stands for
    /// what takes more than that.
    worth: usize,
    /// How often a policy was set or read.
    patterns: usize,
}

impl Session {
    fn new(variation: Variation) -> Self {
        let broker = Broker::new(variation).with_disk_run_by(|work| uncounted(work));
        Session { broker, open: [None, None], connections: 0, worth: 0, patterns: 0 }
    }

    /// Shakes hands, unless it is open.
    fn open(&mut self, nth: usize) -> Option<String> {
        if let Some(name) = &self.open[nth] {
            return Some(name.clone());
        }
        if self.connections == CONNECTIONS_MAX {
            return None;
        }
        self.connections += 1;
        let name = format!("connection {}", self.connections);
        self.broker.connect(&name);
        let handshake = handshake();
        self.worth += handshake.len();
        self.broker.send(&name, &handshake);
        self.open[nth] = Some(name.clone());
        self.hear(nth);
        Some(name)
    }

    fn step(&mut self, step: &Step) {
        let journaled = self.journal_bytes();
        match step {
            Step::Sent { connection, bytes } => {
                let Some(name) = self.open(*connection) else { return };
                self.broker.send(&name, bytes);
            }
            Step::Event { connection, event } => self.event(*connection, *event),
        }
        self.hear(0);
        self.hear(1);
        self.worth += self.journal_bytes().saturating_sub(journaled);
    }

    fn event(&mut self, connection: usize, event: Event) {
        match event {
            Event::Wait(time) => self.broker.wait(time),
            Event::JournalStops => Wire::journal(&mut self.broker, JournalPace::Stops),
            Event::JournalKeepsUp => Wire::journal(&mut self.broker, JournalPace::KeepsUp),
            Event::CheckpointStep => self.broker.checkpoint(Extent::Step),
            Event::Checkpoint => self.broker.checkpoint(Extent::Whole),
            Event::Restart => self.restart(Stop::InGoodOrder),
            Event::Crash => self.restart(Stop::Crash),
            Event::ShortOfMemory => self.broker.room(Room::ShortOf { memory: true, disk: false }),
            Event::Room => self.broker.room(Room::Enough),
            Event::End => {
                if let Some(name) = self.open[connection].take() {
                    self.broker.end(&name);
                }
            }
            Event::Reads(reads) => {
                if let Some(name) = &self.open[connection] {
                    self.broker.set_reading(name, reads);
                }
            }
            Event::Policy { kind, arguments: set } => {
                self.patterns += usize::from(set > 0);
                let order = match set {
                    0 => PolicyOrder::Clear(kind, name("policy")),
                    set => PolicyOrder::Set(policy(kind, set)),
                };
                // One that makes no sense is refused.
                let _ = self.broker.policy(order);
            }
        }
    }

    fn journal_bytes(&self) -> usize {
        self.broker.journal().iter().map(|(_, record)| record.len()).sum()
    }

    fn restart(&mut self, stop: Stop) {
        let worth = |(_, record): &(JournalPosition, Vec<u8>)| match Change::decode(record) {
            Ok(Change::QueueDeclared { .. } | Change::QueueRestated { .. }) => record.len() + QUEUE_WORTH,
            _ => record.len(),
        };
        let is_policy = |(_, record): &&(_, Vec<u8>)| matches!(Change::decode(record), Ok(Change::PolicySet(_)));
        uncounted(|| {
            self.worth += START_WORTH + self.broker.journal().iter().map(worth).sum::<usize>();
            self.patterns += self.broker.journal().iter().filter(is_policy).count();
        });
        self.broker.restart(stop);
        self.open = [None, None];
    }

    /// Hears all there is, which is well formed.
    fn hear(&mut self, nth: usize) {
        let Some(name) = &self.open[nth] else { return };
        loop {
            match uncounted(|| self.broker.hear(name)) {
                Heard::Frame(kind, _, payload) => {
                    let is_method = kind == FrameKind::Method;
                    assert!(!is_method || Method::decode(&payload).is_ok(), "{payload:?} is no method");
                    self.worth += FRAME_OVERHEAD_BYTES + payload.len();
                    uncounted(|| drop(payload));
                }
                Heard::ProtocolHeader(_) => {}
                Heard::Nothing => return,
                Heard::End => {
                    self.open[nth] = None;
                    return;
                }
            }
        }
    }

    /// Whatever was sent, it can be recovered.
    fn end(&mut self) {
        Wire::journal(&mut self.broker, JournalPace::KeepsUp);
        self.broker.room(Room::Enough);
        self.restart(Stop::InGoodOrder);
        self.broker.checkpoint(Extent::Whole);
        self.restart(Stop::Crash);
    }
}

fn policy(kind: PolicyKind, set: u16) -> PolicySource {
    let arguments = arguments(set);
    let definition = FieldTable::build(|table| {
        for (name, value) in arguments.as_table() {
            let name = std::str::from_utf8(name).expect("ours are text");
            table.field(name.trim_start_matches("x-"), value);
        }
    });
    PolicySource {
        kind,
        name: name("policy"),
        pattern: PATTERN.into(),
        apply_to: ApplyTo::All,
        priority: i64::from(set),
        definition,
    }
}
