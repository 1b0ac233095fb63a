//! The node of a server: who changes it, and who hears of that.
//!
//! Owns: which node is the current one; the virtual hosts that it names are running.
//! Must not know: what a permission or a limit means.
//!
//! A change is applied to a copy, kept by the journal, and only then shown to anybody. Then the hubs hear of it, so it goes
//! for the next operation of every connection.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use leveret_broker::VirtualHost;
use leveret_broker::change::NodeChange;
use leveret_broker::names::{UserName, VhostName};
use leveret_broker::node::presence::{Presence, Present};
use leveret_broker::node::{Node, NodeError, OpenError, Vhost};
use parking_lot::{Mutex, RwLock};
use tokio::runtime::Handle;

use crate::bodies::Bodies;
use crate::clock::Clock;
use crate::connections::{Connections, Which};
use crate::hub::{Attached, Hub};
use crate::hubs::Hubs;
use crate::journal::{Orders, Stream, Streams, WriterEnded};
use crate::memory::Memory;
use crate::outbox::Outbox;
use crate::room::Rooms;

/// Keeps the node of a server.
pub(crate) struct NodeKeeper {
    current: RwLock<Arc<Node>>,
    /// One change after the other.
    changing: Mutex<()>,
    /// What users have at the moment, of those who have connected once.
    presences: Mutex<HashMap<UserName, Arc<Presence>>>,
    connections: Arc<Connections>,
    hubs: Arc<Hubs>,
    rooms: Arc<Rooms>,
    workshop: Workshop,
}

/// What a new virtual host is made with.
pub(crate) struct Workshop {
    pub(crate) clock: Clock,
    pub(crate) memory: Arc<Memory>,
    pub(crate) bodies: Option<Bodies>,
    pub(crate) consumer_timeout: Option<std::time::Duration>,
    pub(crate) runtime: Handle,
    /// None: nothing is kept.
    pub(crate) journal: Option<(Orders, Streams)>,
}

impl Workshop {
    /// Makes a hub of a virtual host.
    pub(crate) fn hub(&self, mut vhost: VirtualHost, stream: Arc<Stream>) -> Arc<Hub> {
        vhost.set_consumer_timeout(self.consumer_timeout);
        Hub::new(vhost, stream, self.bodies.clone(), Arc::clone(&self.memory), self.clock)
    }

    fn open(&self, number: u32) -> Arc<Stream> {
        self.journal.as_ref().map_or_else(|| Stream::forgetful(number), |(_, streams)| streams.open(number))
    }
}

/// Somebody in a virtual host.
pub(crate) struct Connected {
    /// By what was true when this was made.
    pub(crate) seen: Arc<Node>,
    pub(crate) vhost: VhostName,
    pub(crate) attached: Attached,
    pub(crate) present: Present,
}

/// A change of the node that came to nothing.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ChangeError {
    /// It cannot be.
    #[error(transparent)]
    Node(#[from] NodeError),
    /// The disk has no room for it.
    #[error("the disk is full; nothing was changed")]
    NoRoom,
    /// The journal has failed, or the node stops.
    #[error("the journal takes nothing any more; whether anything was changed shows at the next start")]
    Ended,
}

impl From<WriterEnded> for ChangeError {
    fn from(_: WriterEnded) -> Self {
        ChangeError::Ended
    }
}

impl NodeKeeper {
    pub(crate) fn new(
        node: Node,
        connections: Arc<Connections>,
        hubs: Arc<Hubs>,
        rooms: Arc<Rooms>,
        workshop: Workshop,
    ) -> Arc<Self> {
        let (current, presences) = (RwLock::new(Arc::new(node)), Mutex::default());
        Arc::new(NodeKeeper { current, changing: Mutex::new(()), presences, connections, hubs, rooms, workshop })
    }

    /// The node as it is now.
    pub(crate) fn current(&self) -> Arc<Node> {
        Arc::clone(&self.current.read())
    }

    /// Connects somebody who has logged in to a virtual host. Whoever has not heard of a change meanwhile hears of it by
    /// [`Self::catch_up`].
    pub(crate) fn connect(
        &self,
        vhost: &str,
        user: &UserName,
        outbox: &Arc<Outbox>,
    ) -> Result<Connected, OpenError> {
        let seen = self.current();
        let (vhost, login) = seen.open(vhost, user)?;
        let hub = self.hubs.get(vhost.as_str()).ok_or(OpenError::NoSuchVhost)?;
        let present = Present::enter(self.presence(&seen, user)).map_err(OpenError::UserFull)?;
        let attached = hub.connect(login, outbox)?;
        Ok(Connected { seen, vhost, attached, present })
    }

    /// What has changed since a connection was made that stands among all connections by now. Returns why it is to close,
    /// if it is.
    pub(crate) fn catch_up(
        &self,
        seen: &Arc<Node>,
        vhost: &VhostName,
        user: &UserName,
        attached: &Attached,
    ) -> Option<String> {
        let mut now = self.current();
        if Arc::ptr_eq(seen, &now) {
            return None;
        }
        // Whoever changes it next sets what is granted, too, and must not be overwritten.
        loop {
            attached.set_grant(user, &Arc::new(now.grant(user, vhost)));
            let current = self.current();
            if Arc::ptr_eq(&now, &current) {
                break;
            }
            now = current;
        }
        if !now.users().contains_key(user) {
            return Some(user_deleted(user.as_str()));
        }
        let stream = |node: &Node| node.vhosts().get(vhost).map(|vhost| vhost.stream);
        (stream(&now) != stream(seen)).then(|| vhost_deleted(vhost.as_str()))
    }

    fn presence(&self, node: &Node, user: &UserName) -> Arc<Presence> {
        let mut presences = self.presences.lock();
        let presence = presences.entry(user.clone()).or_insert_with(|| {
            let presence = Presence::default();
            node.users().get(user).into_iter().for_each(|user| presence.follow(user));
            Arc::new(presence)
        });
        Arc::clone(presence)
    }

    /// Changes the node: all of it, or nothing. When this returns, it is durable, and goes for the next operation of everybody.
    /// Waits for the disk.
    pub(crate) fn change(
        &self,
        decide: impl FnOnce(&Node) -> Result<Vec<NodeChange>, NodeError>,
    ) -> Result<(), ChangeError> {
        let _one_at_a_time = self.changing.lock();
        let before = self.current();
        let changes = decide(&before)?;
        let mut node = Node::clone(&before);
        for change in &changes {
            node.apply(change.clone())?;
        }
        if let Some((orders, _)) = &self.workshop.journal
            && orders.append_to_node(changes.clone())?.is_none()
        {
            return Err(ChangeError::NoRoom);
        }
        let node = Arc::new(node);
        let mut added: Vec<_> = missing(&node, &before).collect();
        // The journal knows its streams in the order of their numbers.
        added.sort_unstable_by_key(|(_, vhost)| vhost.stream);
        // Who finds a virtual host by its name finds it running.
        for (name, vhost) in added {
            let fresh = VirtualHost::new(name.clone(), rand::random());
            let hub = self.workshop.hub(fresh, self.workshop.open(vhost.stream));
            hub.follow(vhost);
            if let Some(gone) = self.hubs.add(name.clone(), Arc::clone(&hub), &self.workshop.runtime) {
                self.rooms.leave(&gone);
            }
            self.rooms.tell(&hub);
        }
        *self.current.write() = Arc::clone(&node);
        self.tell(&before, &node, &changes);
        Ok(())
    }

    /// Says all that is true once more in the journal. Returns from where on; none if there is no room for it.
    pub(crate) fn restate(&self) -> Result<Option<u64>, WriterEnded> {
        let _nobody_changes_it = self.changing.lock();
        let Some((orders, _)) = &self.workshop.journal else { return Ok(None) };
        orders.append_to_node(self.current().restated())
    }

    /// Lets those know whom changes concern.
    fn tell(&self, before: &Node, node: &Node, changes: &[NodeChange]) {
        let mut users = BTreeSet::new();
        for change in changes {
            match change {
                NodeChange::VhostDescribed { name, .. } | NodeChange::VhostLimited { name, .. } => {
                    if let (Some(hub), Some(vhost)) = (self.hubs.get(name.as_str()), node.vhosts().get(name)) {
                        hub.follow(vhost);
                    }
                }
                NodeChange::UserSet { name, .. }
                | NodeChange::UserDeleted { name }
                | NodeChange::UserLimited { name, .. }
                | NodeChange::PermissionsSet { user: name, .. }
                | NodeChange::PermissionsCleared { user: name, .. }
                | NodeChange::TopicPermissionsSet { user: name, .. }
                | NodeChange::TopicPermissionsCleared { user: name, .. } => _ = users.insert(name),
                NodeChange::VhostAdded { .. }
                | NodeChange::VhostDeleted { .. }
                | NodeChange::GlobalParameterSet { .. }
                | NodeChange::GlobalParameterCleared { .. }
                | NodeChange::Restated { .. } => {}
            }
        }
        for &user in &users {
            match node.users().get(user) {
                Some(known) => self.presence(node, user).follow(known),
                None => _ = self.presences.lock().remove(user),
            }
            for vhost in places(before, user).chain(places(node, user)).collect::<BTreeSet<_>>() {
                let (was, is) = (before.grant(user, vhost), node.grant(user, vhost));
                if was != is
                    && let Some(hub) = self.hubs.get(vhost.as_str())
                {
                    hub.set_grant(user, &Arc::new(is));
                }
            }
            if before.users().contains_key(user) && !node.users().contains_key(user) {
                self.connections.close(Which::User(user.as_str()), &user_deleted(user.as_str()));
            }
        }
        for (vhost, _) in missing(before, node) {
            if !node.vhosts().contains_key(vhost)
                && let Some(gone) = self.hubs.remove(vhost)
            {
                self.rooms.leave(&gone);
            }
            self.connections.close(Which::Vhost(vhost.as_str()), &vhost_deleted(vhost.as_str()));
        }
    }
}

/// The virtual hosts where something is said of a user.
fn places<'n>(node: &'n Node, user: &UserName) -> impl Iterator<Item = &'n VhostName> {
    let user = node.users().get(user).into_iter();
    user.flat_map(|user| user.permissions().keys().chain(user.topic_permissions().keys()))
}

/// The virtual hosts that one node has and another one has not, or has another one of that name.
fn missing<'n>(from: &'n Node, to: &Node) -> impl Iterator<Item = (&'n VhostName, &'n Arc<Vhost>)> {
    let stream = |name| to.vhosts().get(name).map(|vhost: &Arc<Vhost>| vhost.stream);
    from.vhosts().iter().filter(move |(name, vhost)| stream(*name) != Some(vhost.stream))
}

fn user_deleted(user: &str) -> String {
    format!("user '{user}' is deleted")
}

fn vhost_deleted(vhost: &str) -> String {
    format!("vhost '{vhost}' is deleted")
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use leveret_amqp::{FieldTable, ShortStr};
    use leveret_broker::names::ChannelId;
    use leveret_broker::vhost::command::{DeclareQueue, Existence, Wait};
    use leveret_broker::vhost::ledger::Holdings;
    use leveret_broker::vhost::room::Room;
    use leveret_broker::{Command, Commands};

    use super::*;
    use crate::arrivals::Arrivals;

    fn keeper() -> Arc<NodeKeeper> {
        let hubs = Hubs::new(Vec::new());
        let workshop = Workshop {
            clock: Clock::start(),
            memory: Memory::new(1 << 30),
            bodies: None,
            consumer_timeout: None,
            runtime: Handle::current(),
            journal: None,
        };
        let rooms = Rooms::new(Arc::clone(&hubs), Arrivals::new(usize::MAX, usize::MAX));
        NodeKeeper::new(Node::default(), Arc::default(), hubs, rooms, workshop)
    }

    fn declare_queue(attached: &Attached) {
        let channel = ChannelId::FIRST;
        let declare = DeclareQueue {
            name: ShortStr::truncated("q").into(),
            existence: Existence::Declare,
            durable: true,
            exclusive: false,
            auto_delete: false,
            wait: Wait::NoWait,
            arguments: FieldTable::default(),
        };
        let mut commands = Commands::default();
        commands.push(Command::OpenChannel(channel));
        commands.push(Command::DeclareQueue(channel, Box::new(declare)));
        attached.execute(&mut commands);
    }

    /// They would wait for room, which nobody would tell them of, until they are given up.
    #[tokio::test]
    async fn in_a_virtual_host_that_is_gone_nobody_waits_for_room() {
        let keeper = keeper();
        let name = VhostName::new(ShortStr::truncated("shop"));
        let add = |node: &Node| Ok(vec![NodeChange::VhostAdded { stream: node.next_stream(), name: name.clone() }]);
        let delete = || NodeChange::VhostDeleted { name: name.clone() };
        let room = |hub: &Arc<Hub>| hub.look(VirtualHost::room);
        keeper.change(add).unwrap();
        let replaced = keeper.hubs.get("shop").unwrap();
        keeper.rooms.set_short_of_disk(true);
        assert_eq!(room(&replaced), Room::ShortOf { memory: false, disk: true });
        keeper.change(|node| Ok([vec![delete()], add(node)?].concat())).unwrap();
        let deleted = keeper.hubs.get("shop").unwrap();
        assert_eq!((room(&replaced), room(&deleted)), (Room::Enough, Room::ShortOf { memory: false, disk: true }));
        keeper.change(|_| Ok(vec![delete()])).unwrap();
        assert_eq!(room(&deleted), Room::Enough);
    }

    /// Whoever comes to a virtual host while it is replaced finds the new one, and may do nothing by what was granted in the old
    /// one until they hear that it is gone.
    #[tokio::test]
    async fn who_opens_a_virtual_host_while_it_is_replaced_may_do_nothing_in_the_new_one() {
        let keeper = keeper();
        let name = VhostName::new(ShortStr::truncated("shop"));
        let guest = Node::with_guest().users().keys().next().unwrap().clone();
        let password = Node::with_guest().users()[&guest].password.clone().unwrap();
        keeper.change(|node| Ok(node.beginning(&name, &guest, password))).unwrap();
        let seen = keeper.current();
        let replaced = |node: &Node| {
            let added = NodeChange::VhostAdded { stream: node.next_stream(), name: name.clone() };
            Ok(vec![NodeChange::VhostDeleted { name: name.clone() }, added])
        };
        keeper.change(replaced).unwrap();
        let (_, login) = seen.open("shop", &guest).unwrap();
        let hub = keeper.hubs.get("shop").unwrap();
        let attached = hub.connect(login, &Arc::default()).unwrap();
        let reason = keeper.catch_up(&seen, &name, &guest, &attached);
        assert_eq!(reason.as_deref(), Some("vhost 'shop' is deleted"));
        declare_queue(&attached);
        assert_eq!(hub.queue_count(), 0);
    }

    #[tokio::test]
    async fn what_a_virtual_host_held_for_clients_is_free_once_it_is_gone() {
        let keeper = keeper();
        let name = VhostName::new(ShortStr::truncated("shop"));
        let add = |node: &Node| Ok(vec![NodeChange::VhostAdded { stream: node.next_stream(), name: name.clone() }]);
        let left = || keeper.workshop.memory.ceilings(Holdings::default()).declared;
        let nothing_held = left();
        keeper.change(add).unwrap();
        let hub = keeper.hubs.get("shop").unwrap();
        let fresh = left();
        let attached = hub.connect_administrator(&Arc::default());
        declare_queue(&attached);
        assert_eq!(hub.queue_count(), 1);
        assert!(left() < fresh && fresh < nothing_held, "{} {fresh} {nothing_held}", left());
        keeper.change(|_| Ok(vec![NodeChange::VhostDeleted { name: name.clone() }])).unwrap();
        drop((attached, hub));
        // Its timers end on their own.
        let is_free = async {
            while left() != nothing_held {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(Duration::from_secs(10), is_free).await.unwrap();
    }
}
