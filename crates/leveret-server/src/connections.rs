//! Which connections there are, from their accept to their end, and how one is told from outside to close.
//!
//! Owns: who each one is, how far it has come, and the bytes that its socket gave and took.
//! Must not know: what is said on them.
//! Invariant: a connection stands here exactly as long as its task runs.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::ops::Bound;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock, Weak};
use std::time::Duration;

use leveret_broker::ConnectionId;
use leveret_broker::connection::{Negotiated, Phase};
use leveret_broker::names::VhostName;
use leveret_broker::vhost::views::ConnectionDetails;
use leveret_broker::views::Fields;
use parking_lot::Mutex;
use serde::Serialize;

use crate::hub::Hub;
use crate::limits::CONNECTIONS_PER_HOLD;
use crate::outbox::Outbox;

/// The connections of a node, in the order in which they came.
#[derive(Debug, Default)]
pub(crate) struct Connections {
    last: AtomicU64,
    known: Mutex<BTreeMap<u64, Arc<Known>>>,
}

/// What is known of one connection.
#[derive(Debug)]
pub(crate) struct Known {
    details: ConnectionDetails,
    pub(crate) peer: SocketAddr,
    /// Our end of it.
    pub(crate) host: SocketAddr,
    /// By the wall clock.
    pub(crate) connected_at: Duration,
    /// Bytes that came, and bytes that went. Only its task adds to them.
    received: AtomicU64,
    sent: AtomicU64,
    phase: Mutex<Phase>,
    opened: OnceLock<Opened>,
    /// Why it is to close.
    told: OnceLock<String>,
    outbox: Arc<Outbox>,
}

/// What is known of a connection that has found its virtual host.
#[derive(Debug)]
pub(crate) struct Opened {
    pub(crate) vhost: VhostName,
    pub(crate) hub: Weak<Hub>,
    /// What it is called there.
    pub(crate) id: ConnectionId,
    pub(crate) negotiated: Negotiated,
}

/// Which connections are meant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Which<'a> {
    /// The one of this name, as [`ConnectionView::name`] has it.
    Name(&'a str),
    /// All of a user.
    User(&'a str),
    /// All in a virtual host.
    Vhost(&'a str),
}

/// An open connection, by the field names of RabbitMQ's HTTP API.
#[derive(Clone, Debug, Serialize)]
pub struct ConnectionView {
    /// `peer:port -> host:port`
    pub name: String,
    /// The name that the client gave it: `connection_name` of its properties.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub user_provided_name: Option<String>,
    /// Who logged in.
    pub user: String,
    /// Its virtual host.
    pub vhost: String,
    /// `running`, `blocked`, `closing` or `closed`.
    pub state: &'static str,
    /// Always `AMQP 0-9-1`.
    pub protocol: &'static str,
    /// How the user logged in.
    pub auth_mechanism: String,
    /// Whether it is encrypted.
    pub ssl: bool,
    /// The client's address.
    pub peer_host: IpAddr,
    /// The client's port.
    pub peer_port: u16,
    /// The broker's address.
    pub host: IpAddr,
    /// The broker's port.
    pub port: u16,
    /// When it was accepted, in milliseconds since 1970.
    pub connected_at: u64,
    /// How many channels it has.
    pub channels: usize,
    /// Largest frame, in bytes.
    pub frame_max: u32,
    /// How many channels it may open.
    pub channel_max: u16,
    /// Seconds between heartbeats; 0 is none.
    pub timeout: u16,
    /// Bytes that came from the client.
    pub recv_oct: u64,
    /// Bytes that went to it.
    pub send_oct: u64,
    /// What the client said of itself.
    pub client_properties: Fields,
}

impl Connections {
    /// Takes a connection in that was just accepted. It leaves when what is returned is dropped.
    pub(crate) fn register(
        self: &Arc<Self>,
        peer: SocketAddr,
        host: SocketAddr,
        connected_at: Duration,
        outbox: &Arc<Outbox>,
    ) -> Registered {
        let known = Arc::new(Known {
            details: ConnectionDetails::new(format!("{peer} -> {host}"), peer.ip().to_string(), peer.port()),
            peer,
            host,
            connected_at,
            received: AtomicU64::new(0),
            sent: AtomicU64::new(0),
            phase: Mutex::new(Phase::Starting),
            opened: OnceLock::new(),
            told: OnceLock::new(),
            outbox: Arc::clone(outbox),
        });
        let number = self.last.fetch_add(1, Ordering::Relaxed) + 1;
        self.known.lock().insert(number, Arc::clone(&known));
        Registered { all: Arc::clone(self), number, known, phase: Phase::Starting }
    }

    /// The next ones behind a place, at most so many that nobody waits for long; their last one is the next place.
    pub(crate) fn page(&self, after: u64) -> Vec<(u64, Arc<Known>)> {
        let known = self.known.lock();
        let next = known.range((Bound::Excluded(after), Bound::Unbounded)).take(CONNECTIONS_PER_HOLD);
        next.map(|(&number, known)| (number, Arc::clone(known))).collect()
    }

    /// All of them. Nobody is missing who is there all the time.
    pub(crate) fn all(&self) -> Vec<Arc<Known>> {
        let (mut all, mut after) = (Vec::new(), 0);
        loop {
            let page = self.page(after);
            let Some(&(last, _)) = page.last() else { return all };
            after = last;
            all.extend(page.into_iter().map(|(_, known)| known));
        }
    }

    /// The one of this name.
    pub(crate) fn find(&self, name: &str) -> Option<Arc<Known>> {
        self.all().into_iter().find(|known| known.is(Which::Name(name)))
    }

    /// Tells connections to close: their clients see 320 `CONNECTION_FORCED` with this reason. Returns how many there are;
    /// they end by themselves soon after.
    pub(crate) fn close(&self, which: Which<'_>, reason: &str) -> usize {
        let meant: Vec<_> = self.all().into_iter().filter(|known| known.is(which)).collect();
        for known in &meant {
            known.tell_to_close(reason);
        }
        meant.len()
    }
}

impl Known {
    /// As RabbitMQ calls it: `peer:port -> host:port`.
    pub(crate) fn name(&self) -> &str {
        self.details.name()
    }

    /// How far it has come.
    pub(crate) fn phase(&self) -> Phase {
        *self.phase.lock()
    }

    /// What it has agreed on, once it has found its virtual host.
    pub(crate) fn opened(&self) -> Option<&Opened> {
        self.opened.get()
    }

    /// Bytes that its socket gave, and bytes that it took.
    pub(crate) fn octets(&self) -> (u64, u64) {
        (self.received.load(Ordering::Relaxed), self.sent.load(Ordering::Relaxed))
    }

    /// As it is shown, once it is open.
    pub(crate) fn view(&self) -> Option<ConnectionView> {
        let Opened { vhost, hub, id, negotiated } = self.opened()?;
        let hub = hub.upgrade();
        let (received, sent) = self.octets();
        Some(ConnectionView {
            name: self.name().to_owned(),
            user_provided_name: negotiated.client_name().map(str::to_owned),
            user: negotiated.user.to_string(),
            vhost: vhost.to_string(),
            state: self.phase().as_str(),
            protocol: "AMQP 0-9-1",
            auth_mechanism: negotiated.mechanism.to_string(),
            ssl: false,
            peer_host: self.peer.ip(),
            peer_port: self.peer.port(),
            host: self.host.ip(),
            port: self.host.port(),
            connected_at: u64::try_from(self.connected_at.as_millis()).unwrap_or(u64::MAX),
            channels: hub.map_or(0, |hub| hub.look(|vhost| vhost.channel_count(*id))),
            frame_max: negotiated.frame_max,
            channel_max: negotiated.channel_max,
            timeout: negotiated.heartbeat,
            recv_oct: received,
            send_oct: sent,
            client_properties: Fields(negotiated.client_properties.clone()),
        })
    }

    fn is(&self, which: Which<'_>) -> bool {
        match which {
            Which::Name(name) => self.name() == name,
            Which::User(user) => self.opened().is_some_and(|opened| opened.negotiated.user.as_str() == user),
            Which::Vhost(vhost) => self.opened().is_some_and(|opened| opened.vhost.as_str() == vhost),
        }
    }

    /// The first reason counts.
    fn tell_to_close(&self, reason: &str) {
        if self.told.set(reason.to_owned()).is_ok() {
            self.outbox.wake();
        }
    }
}

/// A connection among all, until this is dropped; for its task.
#[derive(Debug)]
pub(crate) struct Registered {
    all: Arc<Connections>,
    number: u64,
    known: Arc<Known>,
    /// What was said last of how far it has come.
    phase: Phase,
}

impl Registered {
    /// How it is known.
    pub(crate) fn details(&self) -> ConnectionDetails {
        self.known.details.clone()
    }

    /// Its client's end.
    pub(crate) fn peer(&self) -> SocketAddr {
        self.known.peer
    }

    /// Its virtual host, once it has found that.
    pub(crate) fn vhost(&self) -> Option<&VhostName> {
        self.known.opened.get().map(|opened| &opened.vhost)
    }

    /// Its socket gave so many bytes.
    pub(crate) fn received(&self, bytes: usize) {
        add(&self.known.received, bytes);
    }

    /// Its socket took so many bytes.
    pub(crate) fn sent(&self, bytes: usize) {
        add(&self.known.sent, bytes);
    }

    /// It has found its virtual host.
    pub(crate) fn opened(&self, opened: Opened) {
        let is_first = self.known.opened.set(opened).is_ok();
        debug_assert!(is_first, "a connection is opened once");
    }

    /// How far it has come.
    pub(crate) fn reach(&mut self, phase: Phase) {
        if self.phase != phase {
            self.phase = phase;
            *self.known.phase.lock() = phase;
        }
    }

    /// It is to close for this reason.
    pub(crate) fn tell_to_close(&self, reason: &str) {
        self.known.tell_to_close(reason);
    }

    /// Why it is to close, if somebody has said so.
    pub(crate) fn told_to_close(&self) -> Option<&str> {
        self.known.told.get().map(String::as_str)
    }
}

impl Drop for Registered {
    fn drop(&mut self) {
        self.all.known.lock().remove(&self.number);
    }
}

/// Nobody else writes to it, so nothing comes between the two halves.
fn add(count: &AtomicU64, bytes: usize) {
    count.store(count.load(Ordering::Relaxed) + bytes as u64, Ordering::Relaxed);
}

#[cfg(test)]
mod tests {
    use leveret_amqp::{FieldTable, ShortStr};
    use leveret_broker::names::UserName;

    use super::*;

    fn address(port: u16) -> SocketAddr {
        SocketAddr::from(([127, 0, 0, 1], port))
    }

    fn register(all: &Arc<Connections>, port: u16) -> Registered {
        all.register(address(port), address(5672), Duration::from_secs(1), &Arc::default())
    }

    fn opened(user: &str, vhost: &str) -> Opened {
        let short = ShortStr::truncated;
        let negotiated = Negotiated {
            user: UserName::new(short(user)),
            mechanism: short("PLAIN").into(),
            client_properties: FieldTable::default(),
            frame_max: 131_072,
            channel_max: 2047,
            heartbeat: 60,
        };
        Opened { vhost: VhostName::new(short(vhost)), hub: Weak::new(), id: ConnectionId::default(), negotiated }
    }

    #[test]
    fn a_connection_is_known_from_its_accept_until_its_task_ends() {
        let all = Arc::new(Connections::default());
        let mut one = register(&all, 1000);
        let two = register(&all, 1001);
        one.received(8);
        one.received(3);
        one.sent(5);
        one.reach(Phase::Running);
        let listed = all.all();
        let names: Vec<_> = listed.iter().map(|known| known.name()).collect();
        assert_eq!(names, ["127.0.0.1:1000 -> 127.0.0.1:5672", "127.0.0.1:1001 -> 127.0.0.1:5672"]);
        assert_eq!((listed[0].octets(), listed[0].phase()), ((11, 5), Phase::Running));
        drop(one);
        assert_eq!(all.all().len(), 1);
        drop(two);
        assert!(all.all().is_empty());
    }

    #[test]
    fn only_those_that_are_meant_are_told_to_close_and_the_first_reason_counts() {
        let all = Arc::new(Connections::default());
        let tasks: Vec<_> = (0..4).map(|port| register(&all, port)).collect();
        tasks[0].opened(opened("alice", "/"));
        tasks[1].opened(opened("alice", "b"));
        tasks[2].opened(opened("bob", "b"));
        let told = || tasks.iter().map(Registered::told_to_close).collect::<Vec<_>>();
        assert_eq!(all.close(Which::Name("127.0.0.1:9 -> 127.0.0.1:5672"), "nobody"), 0);
        assert_eq!(all.close(Which::Name("127.0.0.1:3 -> 127.0.0.1:5672"), "one"), 1);
        assert_eq!(told(), [None, None, None, Some("one")]);
        assert_eq!(all.close(Which::Vhost("b"), "vhost 'b' is deleted"), 2);
        assert_eq!(all.close(Which::User("alice"), "user 'alice' is deleted"), 2);
        let gone = Some("vhost 'b' is deleted");
        assert_eq!(told(), [Some("user 'alice' is deleted"), gone, gone, Some("one")]);
    }

    #[test]
    fn pages_go_on_where_the_last_one_ended_whoever_comes_and_goes() {
        let all = Arc::new(Connections::default());
        let mut tasks: Vec<_> = (0..2 * CONNECTIONS_PER_HOLD).map(|_| register(&all, 1)).collect();
        let first = all.page(0);
        assert_eq!(first.len(), CONNECTIONS_PER_HOLD);
        // The last one that was listed goes, and another one comes.
        tasks.remove(CONNECTIONS_PER_HOLD - 1);
        tasks.push(register(&all, 1));
        let second = all.page(first[CONNECTIONS_PER_HOLD - 1].0);
        assert_eq!(second.len(), CONNECTIONS_PER_HOLD);
        assert!(second[0].0 > first[CONNECTIONS_PER_HOLD - 1].0);
        assert_eq!(all.page(second[CONNECTIONS_PER_HOLD - 1].0).len(), 1);
        assert_eq!(all.all().len(), 2 * CONNECTIONS_PER_HOLD);
    }
}
