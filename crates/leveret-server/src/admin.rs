//! Looking at a running node from outside, and telling its connections to close.
//!
//! Owns: lists that come in pages, virtual host by virtual host, with no lock held between two of them.
//! Must not know: HTTP, JSON.

use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use leveret_amqp::{FieldTable, ShortString};
use leveret_broker::access::Login;
use leveret_broker::change::NodeChange;
use leveret_broker::names::{PolicyName, UserName};
use leveret_broker::node::NodeError;
use leveret_broker::vhost::Progress;
use leveret_broker::vhost::explain::{Explanation, Question};
use leveret_broker::vhost::policy::{InvalidPolicy, Policy, PolicyKind, PolicySource};
use leveret_broker::vhost::room::Room;
use leveret_broker::vhost::views::{
    BindingCursor, BindingView, ChannelView, ConsumerView, ExchangeCursor, ExchangeView, QueueCursor, QueueView,
    SessionCursor,
};
use leveret_broker::{Node, Settings, VirtualHost};
use serde::Serialize;

use crate::clock::Clock;
use crate::connections::{ConnectionView, Connections, Which};
use crate::hub::Hub;
use crate::hubs::Hubs;
use crate::limits::VIEWED_UNITS_PER_HOLD;
use crate::memory::{self, Memory};
use crate::node::{ChangeError, NodeKeeper};
use crate::operator::Operator;

/// A running node for those who look at it. It outlives the node, and then there is nothing to see.
#[derive(Clone)]
pub struct Admin(Arc<Inside>);

pub(crate) struct Inside {
    pub(crate) clock: Clock,
    pub(crate) settings: Arc<Settings>,
    pub(crate) addresses: Vec<SocketAddr>,
    pub(crate) hubs: Arc<Hubs>,
    pub(crate) node: Arc<NodeKeeper>,
    pub(crate) connections: Arc<Connections>,
    pub(crate) memory: Arc<Memory>,
}

/// What a node says of itself, by the field names of RabbitMQ's HTTP API.
#[derive(Clone, Debug, Serialize)]
pub struct NodeView {
    /// What it calls itself to clients.
    pub name: String,
    /// Its process.
    pub os_pid: u32,
    /// Milliseconds since it was started.
    pub uptime: u64,
    /// Always true.
    pub running: bool,
    /// Bytes that its process has in memory, if the system says.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mem_used: Option<usize>,
    /// Bytes that it may have there.
    pub mem_limit: usize,
    /// Whether publishers wait until there is room in memory.
    pub mem_alarm: bool,
    /// Whether publishers wait until there is room on the disk.
    pub disk_free_alarm: bool,
}

impl Admin {
    pub(crate) fn new(inside: Inside) -> Self {
        Admin(Arc::new(inside))
    }

    /// The node itself.
    pub fn node(&self) -> NodeView {
        let hubs = self.0.hubs.all();
        let room = hubs.first().map(|hub| hub.look(VirtualHost::room)).unwrap_or_default();
        let (mem_alarm, disk_free_alarm) = match room {
            Room::ShortOf { memory, disk } => (memory, disk),
            Room::Enough | Room::Soon => (false, false),
        };
        NodeView {
            name: self.0.settings.cluster_name.clone(),
            os_pid: std::process::id(),
            uptime: milliseconds(self.0.clock.uptime()),
            running: true,
            mem_used: memory::resident(),
            mem_limit: self.0.memory.limit(),
            mem_alarm,
            disk_free_alarm,
        }
    }

    /// What connections are told and held to.
    pub fn settings(&self) -> &Settings {
        &self.0.settings
    }

    /// Where it listens for AMQP.
    pub fn addresses(&self) -> &[SocketAddr] {
        &self.0.addresses
    }

    /// The users and virtual hosts as they are now.
    pub fn users_and_vhosts(&self) -> Arc<Node> {
        self.0.node.current()
    }

    /// Changes users and virtual hosts: all that `decide` says, or nothing. When this returns, it is durable, and goes for the
    /// next operation of every connection.
    pub async fn change(
        &self,
        decide: impl FnOnce(&Node) -> Result<Vec<NodeChange>, NodeError> + Send + 'static,
    ) -> Result<(), ChangeError> {
        let node = Arc::clone(&self.0.node);
        match tokio::task::spawn_blocking(move || node.change(decide)).await {
            Ok(changed) => changed,
            Err(panicked) => std::panic::resume_unwind(panicked.into_panic()),
        }
    }

    /// An administrator in a virtual host.
    pub fn operator(&self, vhost: &str) -> Option<Operator> {
        self.0.hubs.get(vhost).map(|hub| Operator::new(&hub))
    }

    /// The policies of a kind in a virtual host, by name.
    pub fn policies(&self, vhost: &str, kind: PolicyKind) -> Vec<PolicySource> {
        let sources = |vhost: &VirtualHost| vhost.policies(kind).map(|policy| policy.source().clone()).collect();
        self.0.hubs.get(vhost).map(|hub| hub.look(sources)).unwrap_or_default()
    }

    /// Sets a policy, or puts it in the place of the one with its name; none if there is no such virtual host. When this
    /// returns, it is durable; it takes effect in steps.
    pub async fn set_policy(&self, vhost: &str, policy: Policy) -> Option<Result<(), InvalidPolicy>> {
        let hub = self.0.hubs.get(vhost)?;
        let set = hub.set_policy(policy);
        hub.durable().await;
        Some(set)
    }

    /// Takes a policy away in the same way; false if there is none.
    pub async fn clear_policy(&self, vhost: &str, kind: PolicyKind, name: &PolicyName) -> bool {
        let Some(hub) = self.0.hubs.get(vhost) else { return false };
        let is_cleared = hub.clear_policy(kind, name);
        hub.durable().await;
        is_cleared
    }

    /// Where a message would go that is published in a virtual host, by this user if one is named, and why; none if there is no
    /// such virtual host or user.
    pub async fn explain(
        &self,
        vhost: &str,
        exchange: ShortString,
        routing_key: ShortString,
        headers: FieldTable,
        user: Option<UserName>,
    ) -> Option<Explanation> {
        let (hub, node) = (self.0.hubs.get(vhost)?, self.users_and_vhosts());
        let name = node.vhosts().get_key_value(vhost)?.0;
        let login = match user {
            None => None,
            Some(user) => {
                node.users().get(&user)?;
                let grant = Arc::new(node.grant(&user, name));
                Some(Login { user, grant })
            }
        };
        let mut question = Question::new(exchange, routing_key, &headers, login, rand::random());
        loop {
            if let Some(explanation) = hub.look(|vhost| vhost.explain(&mut question)) {
                return Some(explanation);
            }
            tokio::task::yield_now().await;
        }
    }

    /// How many queues and exchanges all virtual hosts have together.
    pub fn object_counts(&self) -> (usize, usize) {
        let hubs = self.0.hubs.all();
        let counts = hubs.iter().map(|hub| hub.look(VirtualHost::object_counts));
        counts.fold((0, 0), |(queues, exchanges), (more, others)| (queues + more, exchanges + others))
    }

    /// The queues of one virtual host, or of all.
    pub fn queues(&self, vhost: Option<&str>) -> Pages<QueueCursor, QueueView> {
        self.pages(vhost, VirtualHost::list_queues)
    }

    /// One queue.
    pub fn queue(&self, vhost: &str, name: &str) -> Option<QueueView> {
        self.0.hubs.get(vhost)?.look(|vhost| vhost.queue_view(name))
    }

    /// The exchanges of one virtual host, or of all.
    pub fn exchanges(&self, vhost: Option<&str>) -> Pages<ExchangeCursor, ExchangeView> {
        self.pages(vhost, VirtualHost::list_exchanges)
    }

    /// One exchange.
    pub fn exchange(&self, vhost: &str, name: &str) -> Option<ExchangeView> {
        self.0.hubs.get(vhost)?.look(|vhost| vhost.exchange_view(name))
    }

    /// The bindings in one virtual host, or in all.
    pub fn bindings(&self, vhost: Option<&str>) -> Pages<BindingCursor, BindingView> {
        self.pages(vhost, VirtualHost::list_bindings)
    }

    /// The channels in one virtual host, or in all.
    pub fn channels(&self, vhost: Option<&str>) -> Pages<SessionCursor, ChannelView> {
        self.pages(vhost, VirtualHost::list_channels)
    }

    /// The consumers in one virtual host, or in all.
    pub fn consumers(&self, vhost: Option<&str>) -> Pages<SessionCursor, ConsumerView> {
        self.pages(vhost, VirtualHost::list_consumers)
    }

    /// The connections that are open, in the order in which they came.
    pub fn connections(&self) -> ConnectionPages {
        ConnectionPages { all: Arc::clone(&self.0.connections), after: 0 }
    }

    /// One connection.
    pub fn connection(&self, name: &str) -> Option<ConnectionView> {
        self.0.connections.find(name)?.view()
    }

    /// Tells connections to close: their clients see 320 `CONNECTION_FORCED` with this reason. Returns how many there are;
    /// they end by themselves soon after.
    pub fn close(&self, which: Which<'_>, reason: &str) -> usize {
        self.0.connections.close(which, reason)
    }

    fn pages<C, V>(&self, vhost: Option<&str>, list: List<C, V>) -> Pages<C, V> {
        let hubs = match vhost {
            Some(name) => self.0.hubs.get(name).into_iter().collect(),
            None => self.0.hubs.all(),
        };
        Pages { hubs: hubs.into_iter(), current: None, list }
    }
}

impl fmt::Debug for Admin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Admin").field("addresses", &self.0.addresses).finish_non_exhaustive()
    }
}

type List<C, V> = fn(&VirtualHost, &mut C, u32, &mut Vec<V>) -> Progress;

/// A list in pages. A virtual host is locked while one of its pages is made, and not between them.
pub struct Pages<C, V> {
    hubs: std::vec::IntoIter<Arc<Hub>>,
    current: Option<(Arc<Hub>, C)>,
    list: List<C, V>,
}

impl<C: Default, V> Iterator for Pages<C, V> {
    type Item = Vec<V>;

    fn next(&mut self) -> Option<Vec<V>> {
        let (hub, mut cursor) = self.current.take().or_else(|| Some((self.hubs.next()?, C::default())))?;
        let mut page = Vec::new();
        let progress = hub.look(|vhost| (self.list)(vhost, &mut cursor, VIEWED_UNITS_PER_HOLD, &mut page));
        if progress == Progress::More {
            self.current = Some((hub, cursor));
        }
        Some(page)
    }
}

impl<C: fmt::Debug, V> fmt::Debug for Pages<C, V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let cursor = self.current.as_ref().map(|(_, cursor)| cursor);
        f.debug_struct("Pages").field("cursor", &cursor).finish_non_exhaustive()
    }
}

/// The connections in pages.
#[derive(Debug)]
pub struct ConnectionPages {
    all: Arc<Connections>,
    after: u64,
}

impl Iterator for ConnectionPages {
    type Item = Vec<ConnectionView>;

    fn next(&mut self) -> Option<Vec<ConnectionView>> {
        let page = self.all.page(self.after);
        self.after = page.last()?.0;
        Some(page.iter().filter_map(|(_, known)| known.view()).collect())
    }
}

fn milliseconds(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}
