//! Users and virtual hosts of a running broker, across its restarts.

#![expect(clippy::unwrap_used, reason = "a test that cannot talk to the broker has failed")]

use std::path::Path;
use std::time::Duration;

use leveret_amqp::{BasicProperties, ShortString};
use leveret_broker::change::NodeChange;
use leveret_broker::names::{UserName, VhostName};
use leveret_broker::node::password::PasswordHash;
use leveret_broker::node::{Node, NodeError, VhostLimits, VhostMetadata};
use leveret_client::{AckMode, Connection, Error, PublishTo, QueueOptions};
use leveret_server::{ChangeError, FirstUser, Server, ServerConfig, ServerHandle, Storage};
use tokio::runtime::Runtime;

/// Generous: what it waits for takes milliseconds.
const PATIENCE: Duration = Duration::from_secs(20);

struct Broker {
    runtime: Runtime,
    server: Option<ServerHandle>,
}

impl Broker {
    fn start(folder: &Path) -> Self {
        Self::with(ServerConfig { storage: Storage::Folder(folder.into()), ..ServerConfig::default() })
    }

    fn with(config: ServerConfig) -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        let config = ServerConfig { segment_bytes: 1 << 20, disk_free_limit: 0, ..config };
        let server = Some(runtime.block_on(Server::start(config)).unwrap());
        Broker { runtime, server }
    }

    fn server(&self) -> &ServerHandle {
        self.server.as_ref().unwrap()
    }

    fn stop(mut self) {
        self.runtime.block_on(self.server.take().unwrap().shutdown());
    }

    fn change(&self, changes: Vec<NodeChange>) -> Result<(), ChangeError> {
        self.runtime.block_on(self.server().change_node(move |_| Ok(changes)))
    }

    fn add_vhost(&self, name: &str) -> Result<(), ChangeError> {
        let name = vhost(name);
        let added = move |node: &Node| Ok(vec![NodeChange::VhostAdded { stream: node.next_stream(), name }]);
        self.runtime.block_on(self.server().change_node(added))
    }

    fn connect(&self, user: &str, password: &str, vhost: &str) -> Result<Connection, Error> {
        let address = self.server().addresses()[0];
        Connection::open(&format!("amqp://{user}:{password}@{address}/{vhost}").parse().unwrap())
    }
}

fn vhost(name: &str) -> VhostName {
    ShortString::new(name).unwrap().into()
}

fn user(name: &str) -> UserName {
    ShortString::new(name).unwrap().into()
}

fn set_user(name: &str, password: &str) -> NodeChange {
    let password = Some(PasswordHash::new(password.as_bytes(), [1, 2, 3, 4]));
    NodeChange::UserSet { name: user(name), password, tags: Vec::new() }
}

fn permissions(name: &str, vhost_name: &str) -> NodeChange {
    let all = || ".*".to_owned();
    let (user, vhost) = (user(name), vhost(vhost_name));
    NodeChange::PermissionsSet { user, vhost, configure: all(), write: all(), read: all() }
}

/// Publishes so many persistent messages to a durable queue, and waits until they are kept.
fn publish(connection: &mut Connection, queue: &str, messages: usize, bytes: usize) {
    let mut channel = connection.open_channel().unwrap();
    channel.declare_queue(queue, &QueueOptions { durable: true, ..QueueOptions::default() }).unwrap();
    channel.confirm_select().unwrap();
    let properties = BasicProperties { delivery_mode: Some(2), ..BasicProperties::default() };
    for _ in 0..messages {
        channel.publish(PublishTo::queue(queue), &properties, &vec![b'x'; bytes]).unwrap();
        channel.wait_confirms(200).unwrap();
    }
    channel.wait_confirms(0).unwrap();
}

/// How many messages a queue has; none if it is not there.
fn messages(connection: &mut Connection, queue: &str) -> Option<u32> {
    connection.open_channel().unwrap().check_queue(queue).ok().map(|declared| declared.message_count)
}

/// What the broker says when it closes a connection by itself.
fn closed(mut connection: Connection) -> String {
    let mut channel = match connection.open_channel() {
        Ok(channel) => channel,
        Err(error) => return error.to_string(),
    };
    match channel.next_event(PATIENCE) {
        Ok(event) => panic!("it is not closed: {event:?}"),
        Err(error) => error.to_string(),
    }
}

/// How many changes a start reads.
fn changes_of_a_start(folder: &Path) -> usize {
    let (condition, lines) = leveret_server::check(folder).unwrap();
    assert_eq!(condition, leveret_server::Condition::Clean, "{lines:?}");
    let (_, changes) = lines[0].split_once(", ").unwrap();
    changes.split_once(' ').unwrap().0.parse().unwrap()
}

#[test]
fn users_virtual_hosts_and_what_is_in_them_outlive_restarts() {
    let folder = tempfile::tempdir().unwrap();
    let broker = Broker::start(folder.path());
    broker.add_vhost("shop").unwrap();
    let limits = VhostLimits { max_queues: Some(1), max_connections: None };
    let described = VhostMetadata { description: "what they sell".into(), ..VhostMetadata::default() };
    broker
        .change(vec![
            set_user("marie", "secret"),
            permissions("marie", "shop"),
            NodeChange::VhostLimited { name: vhost("shop"), limits },
            NodeChange::VhostDescribed { name: vhost("shop"), metadata: described.clone() },
            NodeChange::UserDeleted { name: user("guest") },
        ])
        .unwrap();
    publish(&mut broker.connect("marie", "secret", "shop").unwrap(), "q", 10, 10);
    let before = broker.server().node();
    broker.stop();
    for _ in 0..2 {
        let broker = Broker::start(folder.path());
        assert_eq!(broker.server().node(), before);
        assert_eq!(broker.server().node().vhosts()["shop"].metadata, described);
        assert!(broker.connect("guest", "guest", "%2F").is_err(), "nobody makes the first user again");
        let mut marie = broker.connect("marie", "secret", "shop").unwrap();
        assert_eq!(messages(&mut marie, "q"), Some(10));
        let mut channel = marie.open_channel().unwrap();
        let refused = channel.declare_queue("another", &QueueOptions::default()).unwrap_err().to_string();
        assert!(refused.contains("queue limit in vhost 'shop' (1) is reached"), "{refused}");
        drop(marie);
        broker.stop();
    }
}

#[test]
fn a_virtual_host_that_is_deleted_is_gone_for_good() {
    let folder = tempfile::tempdir().unwrap();
    let broker = Broker::start(folder.path());
    broker.add_vhost("shop").unwrap();
    broker.change(vec![permissions("guest", "shop")]).unwrap();
    let mut guest = broker.connect("guest", "guest", "shop").unwrap();
    publish(&mut guest, "q", 100, 100);
    let mut other = broker.connect("guest", "guest", "%2F").unwrap();
    publish(&mut other, "q", 5, 100);
    broker.change(vec![NodeChange::VhostDeleted { name: vhost("shop") }]).unwrap();
    assert!(closed(guest).contains("CONNECTION_FORCED - vhost 'shop' is deleted"));
    assert_eq!(messages(&mut other, "q"), Some(5), "nobody else notices");
    let refused = broker.connect("guest", "guest", "shop").unwrap_err().to_string();
    assert!(refused.contains("vhost shop not found"), "{refused}");
    drop(other);
    broker.stop();

    let broker = Broker::start(folder.path());
    assert!(broker.connect("guest", "guest", "shop").is_err());
    // One of the same name is another one.
    broker.add_vhost("shop").unwrap();
    assert!(broker.connect("guest", "guest", "shop").is_err(), "permissions went with the old one");
    broker.change(vec![permissions("guest", "shop")]).unwrap();
    let mut guest = broker.connect("guest", "guest", "shop").unwrap();
    assert_eq!(messages(&mut guest, "q"), None);
    publish(&mut guest, "q", 7, 100);
    drop(guest);
    broker.stop();
    let broker = Broker::start(folder.path());
    assert_eq!(messages(&mut broker.connect("guest", "guest", "shop").unwrap(), "q"), Some(7));
    assert_eq!(messages(&mut broker.connect("guest", "guest", "%2F").unwrap(), "q"), Some(5));
    broker.stop();
}

/// Their streams are numbered as the change names them, which need not be the order of their names.
#[test]
fn virtual_hosts_that_one_change_adds_in_any_order_keep_what_is_brought_to_them() {
    let folder = tempfile::tempdir().unwrap();
    let broker = Broker::start(folder.path());
    let names = ["c", "b", "a"];
    let added = move |node: &Node| {
        let streams = node.next_stream()..;
        let added = names.into_iter().zip(streams);
        let added = added.map(|(name, stream)| NodeChange::VhostAdded { stream, name: vhost(name) });
        Ok(added.chain(names.map(|name| permissions("guest", name))).collect())
    };
    broker.runtime.block_on(broker.server().change_node(added)).unwrap();
    for name in names {
        publish(&mut broker.connect("guest", "guest", name).unwrap(), "q", 3, 10);
    }
    broker.stop();
    let broker = Broker::start(folder.path());
    for name in names {
        assert_eq!(messages(&mut broker.connect("guest", "guest", name).unwrap(), "q"), Some(3), "{name}");
    }
    broker.stop();
}

/// Checkpoints say once more which users and virtual hosts there are, and a start reads nothing of those that are gone.
#[test]
fn a_start_at_a_checkpoint_knows_who_there_is_and_not_who_was() {
    const ROUNDS: usize = 10;
    const MESSAGES: usize = 3000;
    let folder = tempfile::tempdir().unwrap();
    let broker = Broker::start(folder.path());
    for name in ["old", "kept"] {
        broker.add_vhost(name).unwrap();
        broker.change(vec![permissions("guest", name)]).unwrap();
    }
    publish(&mut broker.connect("guest", "guest", "old").unwrap(), "q", 50, 1000);
    publish(&mut broker.connect("guest", "guest", "kept").unwrap(), "q", 3, 10);
    broker.change(vec![set_user("marie", "secret"), set_user("paul", "secret")]).unwrap();
    // Each round is a few segments, and each makes a checkpoint.
    for round in 0..ROUNDS {
        let mut guest = broker.connect("guest", "guest", "%2F").unwrap();
        publish(&mut guest, "passing", MESSAGES, 1000);
        guest.open_channel().unwrap().purge_queue("passing").unwrap();
        match round {
            0 => broker.change(vec![NodeChange::VhostDeleted { name: vhost("old") }]).unwrap(),
            1 => broker.change(vec![NodeChange::UserDeleted { name: user("paul") }]).unwrap(),
            _ => {}
        }
    }
    let before = broker.server().node();
    broker.stop();
    let broker = Broker::start(folder.path());
    assert_eq!(broker.server().node(), before);
    assert!(broker.connect("paul", "secret", "kept").is_err());
    assert_eq!(messages(&mut broker.connect("guest", "guest", "kept").unwrap(), "q"), Some(3));
    broker.stop();
    let changes = changes_of_a_start(folder.path());
    assert!(changes < ROUNDS * MESSAGES / 2, "{changes} changes: a start does not begin at a checkpoint");
}

/// Checkpoints go on when most of what they have written was of a virtual host that is gone.
#[test]
fn a_virtual_host_that_goes_does_not_end_checkpoints() {
    const ROUNDS: usize = 10;
    const MESSAGES: usize = 40;
    let folder = tempfile::tempdir().unwrap();
    let broker = Broker::start(folder.path());
    broker.add_vhost("old").unwrap();
    broker.change(vec![permissions("guest", "old")]).unwrap();
    // Each round is a few segments of few changes, and each makes a checkpoint.
    let pass = |vhost: &str| {
        for _ in 0..ROUNDS {
            let mut guest = broker.connect("guest", "guest", vhost).unwrap();
            publish(&mut guest, "passing", MESSAGES, 100_000);
            guest.open_channel().unwrap().purge_queue("passing").unwrap();
        }
    };
    for number in 0..500 {
        publish(&mut broker.connect("guest", "guest", "old").unwrap(), &number.to_string(), 0, 0);
    }
    pass("old");
    broker.change(vec![NodeChange::VhostDeleted { name: vhost("old") }]).unwrap();
    pass("%2F");
    broker.stop();
    let changes = changes_of_a_start(folder.path());
    assert!(changes < ROUNDS * MESSAGES / 2, "{changes} changes: a start does not begin at a checkpoint");
}

#[test]
fn a_change_of_several_is_made_as_a_whole_or_not_at_all() {
    let broker = Broker::with(ServerConfig::default());
    let refused = broker.change(vec![set_user("marie", "secret"), permissions("marie", "nowhere")]).unwrap_err();
    assert_eq!(refused, ChangeError::Node(NodeError::NoSuchVhost(vhost("nowhere"))));
    assert!(!broker.server().node().users().contains_key("marie"));
    broker.stop();
}

#[test]
fn a_user_who_is_deleted_is_closed_everywhere() {
    let broker = Broker::with(ServerConfig::default());
    broker.add_vhost("b").unwrap();
    let all = vec![set_user("marie", "secret"), permissions("marie", "/"), permissions("marie", "b")];
    broker.change(all).unwrap();
    let connections = ["%2F", "b"].map(|vhost| broker.connect("marie", "secret", vhost).unwrap());
    let mut guest = broker.connect("guest", "guest", "%2F").unwrap();
    broker.change(vec![NodeChange::UserDeleted { name: user("marie") }]).unwrap();
    for connection in connections {
        assert!(closed(connection).contains("CONNECTION_FORCED - user 'marie' is deleted"));
    }
    assert!(guest.open_channel().unwrap().get("q", AckMode::Auto).is_err(), "there is no queue");
    assert!(guest.open_channel().is_ok(), "nobody else is closed");
    broker.stop();
}

#[test]
fn the_first_user_is_the_one_that_was_asked_for() {
    let folder = tempfile::tempdir().unwrap();
    let first_user = FirstUser { name: "ada".into(), password: "lovelace".into(), vhost: "engine".into() };
    let storage = Storage::Folder(folder.path().into());
    let config = ServerConfig { first_user, storage, ..ServerConfig::default() };
    let broker = Broker::with(config.clone());
    assert!(broker.connect("ada", "lovelace", "engine").is_ok());
    assert!(broker.connect("ada", "lovelace", "%2F").is_err());
    assert!(broker.connect("guest", "guest", "engine").is_err());
    broker.stop();
    // Once there are users, nobody is made.
    let first_user = FirstUser { name: "another".into(), ..config.first_user.clone() };
    let broker = Broker::with(ServerConfig { first_user, ..config });
    assert!(broker.connect("another", "lovelace", "engine").is_err());
    assert!(broker.connect("ada", "lovelace", "engine").is_ok());
    broker.stop();
}
