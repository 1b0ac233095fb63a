//! Power cuts at every operation on the disk under a node: users, permissions and virtual hosts are what the requests that are
//! durable come to, each as a whole, wherever reading begins. And records of the node that rot.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::collections::{BTreeMap, BTreeSet};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;
use std::time::Duration;

use leveret_amqp::ShortString;
use leveret_broker::change::NodeChange;
use leveret_broker::names::{UserName, VhostName};
use leveret_broker::node::password::PasswordHash;
use leveret_broker::node::recovery::{Faults, Fold, Folded, NODE_STREAM};
use leveret_broker::node::{UserLimits, VhostLimits, VhostMetadata};
use leveret_broker::vhost::checkpoint::Checkpoint;
use leveret_broker::{Change, Effects, Moment, Node, VirtualHost};
use leveret_journal::{Batch, Living, Log, Options, Record, Recovery};
use leveret_testkit::disk::{SimDisk, chance, fates};
use leveret_testkit::{Broker, Variation, continue_script, run_script};

const OPTIONS: Options = Options { segment_bytes: 2048, salt: *b"sixteen of bytes" };
/// Behind all that is done.
const NOW: Moment = Moment { monotonic: Duration::from_secs(2000), wall: Duration::from_secs(1_790_001_001) };

fn short(name: &str) -> ShortString {
    ShortString::new(name).unwrap()
}

fn user(name: &str) -> UserName {
    short(name).into()
}

fn vhost(name: &str) -> VhostName {
    short(name).into()
}

/// The number of its stream is filled in when it is added.
fn add_vhost(name: &str) -> NodeChange {
    NodeChange::VhostAdded { stream: 0, name: vhost(name) }
}

fn delete_vhost(name: &str) -> NodeChange {
    NodeChange::VhostDeleted { name: vhost(name) }
}

/// So long that it takes more than a sector of the disk.
fn describe_vhost(name: &str) -> NodeChange {
    let metadata = VhostMetadata { description: "what they sell ".repeat(50), ..VhostMetadata::default() };
    NodeChange::VhostDescribed { name: vhost(name), metadata }
}

fn limit_vhost(name: &str) -> NodeChange {
    let limits = VhostLimits { max_connections: Some(7), max_queues: None };
    NodeChange::VhostLimited { name: vhost(name), limits }
}

fn set_user(name: &str, password: &str) -> NodeChange {
    let password = Some(PasswordHash::new(password.as_bytes(), [1, 2, 3, 4]));
    NodeChange::UserSet { name: user(name), password, tags: vec!["management".into()] }
}

fn delete_user(name: &str) -> NodeChange {
    NodeChange::UserDeleted { name: user(name) }
}

fn limit_user(name: &str, max_channels: u64) -> NodeChange {
    let limits = UserLimits { max_connections: None, max_channels: Some(max_channels) };
    NodeChange::UserLimited { name: user(name), limits }
}

fn permit(name: &str, vhost_name: &str) -> NodeChange {
    let all = || ".*".to_owned();
    let (user, vhost) = (user(name), vhost(vhost_name));
    NodeChange::PermissionsSet { user, vhost, configure: all(), write: all(), read: all() }
}

fn forbid(name: &str, vhost_name: &str) -> NodeChange {
    NodeChange::PermissionsCleared { user: user(name), vhost: vhost(vhost_name) }
}

fn permit_topics(name: &str, vhost_name: &str, exchange: &str) -> NodeChange {
    let (user, vhost, exchange) = (user(name), vhost(vhost_name), short(exchange).into());
    NodeChange::TopicPermissionsSet { user, vhost, exchange, write: "^{username}".into(), read: ".*".into() }
}

fn permit_all_topics(name: &str, vhost_name: &str, exchange: Option<&str>) -> NodeChange {
    let exchange = exchange.map(|exchange| short(exchange).into());
    NodeChange::TopicPermissionsCleared { user: user(name), vhost: vhost(vhost_name), exchange }
}

fn set_parameter(name: &str) -> NodeChange {
    NodeChange::GlobalParameterSet { name: short(name), value: "\"hares\"".into() }
}

fn clear_parameter(name: &str) -> NodeChange {
    NodeChange::GlobalParameterCleared { name: short(name) }
}

/// What happens to a node.
enum Step {
    /// One request: all of these changes, or none.
    Node(Vec<NodeChange>),
    /// A message to the queue of a virtual host, which is declared with the first.
    Publish(&'static str),
    /// The first message there is taken.
    Take(&'static str),
    /// A message to the virtual host that had this name before: its connections have not ended yet.
    Late(&'static str),
    /// The node is said once more, this happens, and then each virtual host is said once more.
    Checkpoint(Vec<Step>),
    /// A checkpoint that gets no further than these virtual hosts, as the process ends and starts again.
    Interrupted(&'static [&'static str]),
    /// The process ends and starts again.
    Restart,
}

use Step::{Checkpoint as Restate, Interrupted, Late, Node as Request, Publish, Restart, Take};

fn work() -> Vec<Step> {
    vec![
        Request(vec![add_vhost("/"), set_user("guest", "guest"), permit("guest", "/")]),
        Publish("/"),
        Publish("/"),
        Request(vec![
            add_vhost("shop"),
            set_user("marie", "secret"),
            describe_vhost("shop"),
            limit_vhost("shop"),
            permit("marie", "shop"),
            permit_topics("marie", "shop", "amq.topic"),
        ]),
        Publish("shop"),
        Publish("shop"),
        Publish("/"),
        Take("shop"),
        Request(vec![limit_user("marie", 3)]),
        Publish("shop"),
        Restate(vec![]),
        Publish("shop"),
        Request(vec![delete_vhost("shop")]),
        Late("shop"),
        Request(vec![add_vhost("shop"), permit("guest", "shop")]),
        Late("shop"),
        Publish("shop"),
        Publish("shop"),
        Restate(vec![Request(vec![set_user("otto", "a"), permit("otto", "/")]), Publish("shop")]),
        Take("/"),
        Request(vec![delete_user("marie")]),
        Request(vec![set_user("marie", "other"), set_parameter("color")]),
        Restate(vec![Publish("/"), Request(vec![delete_vhost("shop")]), Late("shop")]),
        Late("shop"),
        Request(vec![add_vhost("empty"), permit("otto", "empty")]),
        Request(vec![delete_vhost("empty")]),
        Restate(vec![]),
        Late("shop"),
        Request(vec![add_vhost("shop"), permit("otto", "shop"), permit_topics("otto", "shop", "news")]),
        Restate(vec![Publish("shop")]),
        // Nobody has ever written to it when it is passed over.
        Late("empty"),
        Publish("shop"),
        Restart,
        Take("shop"),
        Publish("shop"),
        Restate(vec![Publish("shop")]),
        Publish("shop"),
        Interrupted(&["/"]),
        Publish("shop"),
        Publish("/"),
        Restate(vec![Publish("shop")]),
        Publish("/"),
        Restart,
        Interrupted(&[]),
        Take("shop"),
        Restate(vec![]),
        Publish("shop"),
        // The next one has the name at once.
        Request(vec![delete_vhost("shop"), add_vhost("shop"), permit("marie", "shop"), limit_vhost("shop")]),
        Late("shop"),
        Publish("shop"),
        Request(vec![forbid("otto", "/"), clear_parameter("color"), set_parameter("shape")]),
        Restate(vec![Request(vec![permit_topics("marie", "shop", "a"), permit_topics("marie", "shop", "b")])]),
        Request(vec![permit_all_topics("marie", "shop", Some("a")), limit_user("otto", 1)]),
        Restart,
        Publish("shop"),
        Request(vec![permit_all_topics("marie", "shop", None)]),
        Restate(vec![Request(vec![delete_user("guest"), delete_vhost("/")]), Late("/")]),
        Request(vec![add_vhost("/"), set_user("guest", "guest"), permit("guest", "/")]),
        Publish("/"),
        Late("/"),
        Restate(vec![]),
        Publish("/"),
        Restate(vec![Restart, Late("/"), Late("shop")]),
        Request(vec![delete_user("otto"), set_user("otto", "b")]),
        Take("/"),
    ]
}

/// What the thread that writes a journal is asked to do.
enum Action {
    /// One batch: streams, sequences and payloads.
    Append(Vec<(u32, u64, Vec<u8>)>),
    BeginReplayAt(BTreeMap<u32, u64>),
    /// Only these are needed any more.
    Sweep(BTreeMap<u32, Vec<u64>>),
    Reopen,
}

/// A node with the messages in its virtual hosts.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct State {
    node: Node,
    /// The stream of each, and what lies in its queue.
    vhosts: BTreeMap<VhostName, (u32, Vec<String>)>,
}

/// A virtual host that runs, or has.
struct Running {
    name: VhostName,
    broker: Broker,
    /// So many records of its journal are in that of the node.
    taken: usize,
    bodies: Vec<String>,
}

/// What is journaled, and what is true meanwhile.
#[derive(Default)]
struct Model {
    node: Node,
    node_sequence: u64,
    running: BTreeMap<u32, Running>,
    published: usize,
    /// Where the last checkpoint begins.
    begun: Option<BTreeMap<u32, u64>>,
    actions: Vec<Action>,
    /// The last sequence of each stream, and what is true: at the beginning, and after each batch.
    states: Vec<(BTreeMap<u32, u64>, State)>,
}

impl Model {
    fn of(steps: &[Step]) -> Self {
        let mut model = Model { states: vec![Default::default()], ..Model::default() };
        model.perform(steps);
        model
    }

    fn perform(&mut self, steps: &[Step]) {
        for step in steps {
            match step {
                Request(changes) => self.request(changes),
                Publish(name) => self.publish(self.stream(name)),
                Take(name) => {
                    let stream = self.stream(name);
                    self.running.get_mut(&stream).unwrap().bodies.remove(0);
                    self.run(stream, "C: basic.get queue='q' no-ack");
                }
                Late(name) => {
                    let (name, is_gone) = (vhost(name), |stream: &u32| !self.living().contains(stream));
                    let mut before =
                        self.running.iter().filter(|(stream, vhost)| is_gone(stream) && vhost.name == name);
                    let stream = *before.next_back().unwrap().0;
                    self.publish(stream);
                }
                Restate(meanwhile) => self.checkpoint(meanwhile),
                Interrupted(names) => {
                    let stated = self.node_sequence + 1;
                    self.append_to_node(&self.node.restated());
                    names.iter().for_each(|name| self.run(self.stream(name), "checkpoint"));
                    self.actions.push(Action::Reopen);
                    // What the next start takes for the last one: some of it is from the one before.
                    let last = |stream| Some((stream, self.running[&stream].broker.checkpoints().last()?.0.0));
                    let vhosts = self.living().into_iter().map(last);
                    self.begun = vhosts.chain([Some((NODE_STREAM, stated))]).collect();
                }
                Restart => self.actions.push(Action::Reopen),
            }
        }
    }

    fn stream(&self, name: &str) -> u32 {
        self.node.vhosts()[name].stream
    }

    fn living(&self) -> BTreeSet<u32> {
        self.node.vhosts().values().map(|vhost| vhost.stream).collect()
    }

    fn append(&mut self, records: Vec<(u32, u64, Vec<u8>)>) {
        let mut last = self.states.last().unwrap().0.clone();
        last.extend(records.iter().map(|(stream, sequence, _)| (*stream, *sequence)));
        let vhosts = self
            .node
            .vhosts()
            .iter()
            .map(|(name, vhost)| (name.clone(), (vhost.stream, self.running[&vhost.stream].bodies.clone())));
        let state = State { node: self.node.clone(), vhosts: vhosts.collect() };
        self.states.push((last, state));
        self.actions.push(Action::Append(records));
    }

    fn append_to_node(&mut self, changes: &[NodeChange]) {
        let records = changes.iter().map(|change| {
            self.node_sequence += 1;
            let mut bytes = Vec::new();
            change.encode(&mut bytes);
            (NODE_STREAM, self.node_sequence, bytes)
        });
        let records = records.collect();
        self.append(records);
    }

    fn request(&mut self, changes: &[NodeChange]) {
        let mut changes = changes.to_vec();
        for change in &mut changes {
            if let NodeChange::VhostAdded { stream, name } = change {
                *stream = self.node.next_stream();
                let (name, broker) = (name.clone(), Broker::new(Variation::ALL[0]));
                self.running.insert(*stream, Running { name, broker, taken: 0, bodies: Vec::new() });
            }
            self.node.apply(change.clone()).unwrap();
        }
        self.append_to_node(&changes);
    }

    /// Journals what a script does to a virtual host.
    fn run(&mut self, stream: u32, script: &str) {
        let vhost = self.running.get_mut(&stream).unwrap();
        let run = if vhost.taken == 0 { run_script } else { continue_script };
        run(&mut vhost.broker, script).unwrap();
        let new = &vhost.broker.journal()[vhost.taken..];
        let records: Vec<_> = new.iter().map(|(position, record)| (stream, position.0, record.clone())).collect();
        vhost.taken += records.len();
        self.append(records);
    }

    fn publish(&mut self, stream: u32) {
        self.published += 1;
        let vhost = self.running.get_mut(&stream).unwrap();
        let body = format!("number {} to stream {stream} {}", self.published, "-".repeat(self.published % 7 * 20));
        let declare =
            if vhost.taken == 0 { "C: queue.declare queue='q' durable\nS: queue.declare-ok 'q' 0 0\n" } else { "" };
        vhost.bodies.push(body.clone());
        self.run(stream, &format!("{declare}C: basic.publish routing-key='q' delivery-mode=2 body='{body}'"));
    }

    /// As the server writes one: the next but one lets a start begin there.
    fn checkpoint(&mut self, meanwhile: &[Step]) {
        let mut begun = BTreeMap::from([(NODE_STREAM, self.node_sequence + 1)]);
        self.append_to_node(&self.node.restated());
        self.perform(meanwhile);
        let mut living = BTreeMap::new();
        for stream in self.living() {
            self.run(stream, "checkpoint");
            let broker = &self.running[&stream].broker;
            let (from, to) = *broker.checkpoints().last().unwrap();
            begun.insert(stream, from.0);
            let parts = broker.journal().iter().filter(|(at, _)| (from..=to).contains(at));
            let pages = parts.filter_map(|(_, record)| match Change::decode(record).unwrap() {
                Change::QueuePage { entries, .. } => Some(entries),
                _ => None,
            });
            let messages = pages.flat_map(|page| page.iter().map(|entry| entry.message.0).collect::<Vec<_>>());
            living.insert(stream, messages.collect());
        }
        if let Some(mut at) = self.begun.replace(begun) {
            let all = self.running.keys().copied().collect::<BTreeSet<_>>();
            at.extend(all.difference(&self.living()).map(|gone| (*gone, u64::MAX)));
            self.actions.extend([Action::BeginReplayAt(at), Action::Sweep(living)]);
        }
    }
}

/// Does it until it is done or the disk stops; how many batches were promised, and how many segments were removed or rewritten.
fn run(disk: &SimDisk, actions: &[Action]) -> (usize, usize) {
    let (mut durable, mut swept) = (0, 0);
    let open = || Log::open(Arc::new(disk.clone()), OPTIONS, &mut |_| {});
    let Ok((mut log, _)) = open() else { return (durable, swept) };
    for action in actions {
        let is_done = match action {
            Action::Append(records) => {
                let is_done = log.append(&mut batch(records)).is_ok();
                durable += usize::from(is_done);
                is_done
            }
            Action::BeginReplayAt(streams) => {
                log.spares().keep(2, 3).is_ok() && log.begin_replay_at(streams).is_ok()
            }
            Action::Sweep(needed) => {
                let (mut keeper, mut living) = (log.keeper(), Living::default());
                for (stream, needed) in needed {
                    keeper.note(&mut living, *stream, needed.iter().map(|&sequence| (sequence, 100)), 17);
                }
                let result = keeper.sweep(&living, &|| false);
                swept += result.as_ref().map_or(0, |swept| swept.compacted + swept.removed);
                result.is_ok()
            }
            Action::Reopen => open().map(|(reopened, _)| log = reopened).is_ok(),
        };
        if !is_done {
            break;
        }
    }
    (durable, swept)
}

fn batch(records: &[(u32, u64, Vec<u8>)]) -> Batch {
    let mut batch = Batch::default();
    for (stream, sequence, payload) in records {
        batch.push(*stream, *sequence, |out| out.extend_from_slice(payload));
    }
    batch
}

/// What a start finds.
struct Found {
    log: Log,
    recovery: Recovery,
    faults: Faults,
    folded: Folded,
}

fn start(disk: &SimDisk) -> Found {
    let mut fold = Fold::new(Some(vhost("/")), || [7; 32]);
    let mut each = |record: Record<'_>| {
        fold.take(NOW, record.stream, record.sequence, record.payload, &mut |_| {});
    };
    let (log, recovery) = Log::open(Arc::new(disk.clone()), OPTIONS, &mut each).unwrap();
    fold.end(recovery.records_missing(), &recovery.streams);
    let faults = fold.faults().clone();
    Found { folded: fold.finish(recovery.streams.keys().copied()), log, recovery, faults }
}

/// The bodies of all messages in the queue of a virtual host, from the disk.
fn bodies(log: &Log, stream: u32, vhost: &mut VirtualHost) -> Vec<String> {
    let (mut checkpoint, mut effects) = (Checkpoint::default(), Effects::default());
    while vhost.handle_checkpoint(NOW, &mut checkpoint, u32::MAX, &mut effects) {}
    let mut reader = log.reader();
    let pages = effects.changes.iter().filter_map(|change| match change {
        Change::QueuePage { entries, .. } => Some(entries),
        _ => None,
    });
    let mut body = |sequence: u64| match Change::decode(reader.read(stream, sequence).unwrap()).unwrap() {
        Change::MessageEnqueued { message, .. } => String::from_utf8(message.body().to_vec()).unwrap(),
        change => panic!("not a message: {change:?}"),
    };
    pages.flat_map(|page| page.iter().map(|entry| entry.message.0).collect::<Vec<_>>()).map(&mut body).collect()
}

fn state(found: &mut Found) -> State {
    let Found { log, folded, .. } = found;
    let streams = folded.node.vhosts().values().map(|vhost| vhost.stream);
    let recovered = folded.vhosts.iter().map(|(stream, _)| *stream);
    assert_eq!(streams.collect::<BTreeSet<_>>(), recovered.collect(), "those that the node names, and no others");
    let vhosts = folded
        .vhosts
        .iter_mut()
        .map(|(stream, vhost)| (vhost.name().clone(), (*stream, bodies(log, *stream, vhost))));
    let vhosts = vhosts.collect();
    State { node: folded.node.clone(), vhosts }
}

#[test]
fn after_a_power_cut_at_any_operation_a_node_is_what_its_durable_requests_come_to() {
    let Model { actions, states, .. } = Model::of(&work());
    let whole = SimDisk::default();
    let (promised, swept) = run(&whole, &actions);
    assert_eq!(promised + 1, states.len());
    assert!(swept > 3, "only {swept} segments were removed or rewritten");
    let (mut seen, mut random) = (BTreeSet::new(), chance(5));
    let mut begun_later = 0;
    for operation in 0..=whole.operations() {
        let disk = SimDisk::default();
        disk.stop_at(operation);
        let (promised, _) = run(&disk, &actions);
        for fates in fates(&disk.pending(), &mut random) {
            let disk = disk.crash(&fates);
            let mut hasher = DefaultHasher::new();
            disk.files().hash(&mut hasher);
            if !seen.insert((operation, hasher.finish())) {
                continue;
            }
            let mut found = start(&disk);
            let recovery = &found.recovery;
            let context = format!("stopped at {operation}, {promised} batches promised: {recovery:?}");
            assert_eq!(recovery.damage, [], "{context}");
            assert_eq!(found.faults, Faults::default(), "{context}");
            // All of a batch, or none: nothing else ends so.
            let at = states.iter().position(|(last, _)| *last == recovery.streams);
            let at = at.unwrap_or_else(|| panic!("half of a batch is there, {context}"));
            assert!(at >= promised, "only {at} batches are there, {context}");
            begun_later += u64::from(recovery.records < recovery.streams.values().sum());
            let (_, expected) = &states[at];
            let recovered = state(&mut found);
            assert_eq!(recovered, *expected, "batch {at}, {context}");
            if at == 0 {
                continue;
            }
            // It says the node once more, and the next start needs no more of it.
            let restated = found.folded.node.restated();
            let mut batch = Batch::default();
            let from = found.folded.node_sequence + 1;
            for (sequence, change) in (from..).zip(&restated) {
                batch.push(NODE_STREAM, sequence, |out| change.encode(out));
            }
            found.log.append(&mut batch).unwrap();
            let gone = found.folded.gone.iter().map(|gone| (*gone, u64::MAX));
            found.log.begin_replay_at(&gone.chain([(NODE_STREAM, from)]).collect()).unwrap();
            let mut again = start(&disk.crash(&[]));
            assert_eq!(again.recovery.damage, [], "said once more, {context}");
            assert_eq!(again.folded.stated_from, from, "{context}");
            assert_eq!(state(&mut again), *expected, "said once more, {context}");
            assert_eq!(again.faults, Faults::default(), "said once more, {context}");
        }
    }
    println!("{} distinct states, {begun_later} of them read from a checkpoint", seen.len());
    assert!(seen.len() > 1000 && begun_later > 300, "{} states, {begun_later} from a checkpoint", seen.len());
}

/// One of each kind, each a batch of its own, with messages in the virtual hosts by turns.
fn each_kind() -> Vec<Step> {
    let requests = |changes: Vec<NodeChange>| changes.into_iter().map(|change| Request(vec![change]));
    let mut steps = Vec::new();
    steps.extend(requests(vec![add_vhost("/"), set_user("guest", "guest"), set_user("marie", "secret")]));
    steps.extend(requests(vec![
        permit("marie", "/"),
        forbid("marie", "/"),
        permit("guest", "/"),
        permit("marie", "/"),
    ]));
    steps.extend(requests(vec![permit_topics("guest", "/", "a"), permit_topics("guest", "/", "b")]));
    steps.extend(requests(vec![permit_all_topics("guest", "/", Some("a")), delete_user("marie")]));
    steps.extend(requests(vec![set_user("marie", "secret"), limit_user("marie", 3), add_vhost("shop")]));
    steps.extend([Publish("/"), Publish("shop")]);
    steps.extend(requests(vec![describe_vhost("shop"), limit_vhost("shop"), permit("marie", "shop")]));
    steps.extend([Publish("shop"), Publish("/"), Take("/")]);
    steps.extend(requests(vec![set_parameter("color"), set_parameter("shape"), clear_parameter("color")]));
    steps.extend(requests(vec![delete_vhost("shop"), add_vhost("shop"), permit_topics("marie", "shop", "a")]));
    steps.extend([Late("shop"), Publish("shop"), Publish("shop")]);
    steps
}

/// All that is journaled.
fn records(actions: &[Action]) -> impl Iterator<Item = &(u32, u64, Vec<u8>)> {
    actions.iter().flat_map(|action| match action {
        Action::Append(records) => &records[..],
        Action::BeginReplayAt(_) | Action::Sweep(_) | Action::Reopen => &[],
    })
}

/// A disk on which one record has rotted.
fn rotten(disk: &SimDisk, stream: u32, sequence: u64, payload: &[u8]) -> SimDisk {
    let mut files = disk.files();
    let mut record = stream.to_le_bytes().to_vec();
    record.extend([0; 4]);
    record.extend(sequence.to_le_bytes());
    record.extend(payload);
    let segments = files.iter().filter(|(name, _)| name.ends_with(".segment"));
    let mut places = segments.filter_map(|(name, bytes)| {
        let at = bytes.windows(record.len()).position(|window| window == record)?;
        Some((name.clone(), at + record.len() - payload.len()))
    });
    let (file, at) = places.next_back().unwrap();
    files.get_mut(&file).unwrap()[at] ^= 0x40;
    SimDisk::of(files)
}

/// All that is said of a node, but for the numbers that it has passed over.
fn said(node: &Node) -> Vec<NodeChange> {
    node.restated().split_off(1)
}

#[test]
fn a_record_of_the_node_that_rots_takes_only_with_it_what_depends_on_it() {
    let Model { actions, states, .. } = Model::of(&each_kind());
    let disk = SimDisk::default();
    run(&disk, &actions);
    // Nobody could tell damage of the last batch from a torn one.
    Log::open(Arc::new(disk.clone()), OPTIONS, &mut |_| {}).unwrap();
    let (_, whole) = states.last().unwrap();
    let of_node = || records(&actions).filter(|(stream, ..)| *stream == NODE_STREAM);
    let mut kinds = BTreeSet::new();
    for (_, lost, payload) in of_node() {
        let mut found = start(&rotten(&disk, NODE_STREAM, *lost, payload));
        let change = NodeChange::decode(payload).unwrap();
        kinds.insert(payload[0]);
        let context = format!("without {change:?}: {:?}, {:?}", found.recovery, found.faults);
        assert_eq!(found.recovery.records_missing(), 1, "{context}");
        let recovered = state(&mut found);
        assert!(recovered.node.next_stream() > whole.node.next_stream(), "{context}");
        let added = match &change {
            NodeChange::VhostAdded { stream, .. } => Some(*stream),
            _ => None,
        };
        let is_guessed = added == Some(1) || matches!(change, NodeChange::VhostDeleted { .. });
        // What the rest comes to, where all that has nothing to stand on is left out.
        let (mut node, mut set_aside) = (Node::default(), 0);
        for (_, sequence, payload) in of_node() {
            let is_there = sequence != lost || is_guessed;
            let change = NodeChange::decode(payload).unwrap();
            set_aside += u64::from(is_there && node.apply(change).is_err());
        }
        assert_eq!(said(&recovered.node), said(&node), "{context}");
        let mut vhosts = whole.vhosts.clone();
        vhosts.retain(|name, _| node.vhosts().contains_key(name));
        assert_eq!(recovered.vhosts, vhosts, "{context}");
        // What was in a virtual host that nobody can name.
        let unnamed =
            records(&actions).filter(|(stream, ..)| added.is_some_and(|added| added == *stream && !is_guessed));
        assert_eq!(found.faults.set_aside, set_aside + unnamed.count() as u64, "{context}");
        assert_eq!(found.faults.first.is_some(), found.faults.set_aside > 0, "{context}");
        let renamed = (added == Some(1)).then(|| (1, vhost("/")));
        assert_eq!(found.faults.renamed, renamed, "{context}");
    }
    assert_eq!(kinds.len(), 13, "all but a restatement");
}

#[test]
fn what_rots_before_a_restatement_does_not_matter_behind_it() {
    let Model { actions, states, .. } = Model::of(&[
        Request(vec![add_vhost("/"), set_user("guest", "guest"), permit("guest", "/")]),
        Request(vec![
            add_vhost("shop"),
            set_user("marie", "secret"),
            permit("marie", "shop"),
            limit_user("marie", 3),
        ]),
        Request(vec![add_vhost("empty")]),
        Request(vec![delete_vhost("empty"), permit_topics("marie", "shop", "a"), set_parameter("color")]),
        Request(vec![add_vhost("passing"), set_user("otto", "a"), permit("otto", "/"), permit("guest", "shop")]),
        Publish("/"),
        Publish("shop"),
        Publish("passing"),
        Restate(vec![]),
        Publish("shop"),
        Restate(vec![Publish("shop")]),
        Request(vec![
            delete_vhost("passing"),
            delete_user("otto"),
            forbid("guest", "shop"),
            set_parameter("shape"),
        ]),
        Request(vec![clear_parameter("shape"), limit_vhost("shop"), permit_all_topics("marie", "shop", None)]),
        Late("passing"),
        Publish("shop"),
        Restate(vec![Publish("/")]),
        Take("shop"),
    ]);
    let disk = SimDisk::default();
    run(&disk, &actions);
    Log::open(Arc::new(disk.clone()), OPTIONS, &mut |_| {}).unwrap();
    let (_, whole) = states.last().unwrap();
    let of_node: Vec<_> = records(&actions).filter(|(stream, ..)| *stream == NODE_STREAM).collect();
    let is_restatement =
        |record: &&(u32, u64, Vec<u8>)| matches!(NodeChange::decode(&record.2), Ok(NodeChange::Restated { .. }));
    let mut parts = of_node.chunk_by(|_, next| !is_restatement(next));
    // A start begins with the last but one, and with what came behind it.
    let (last, first) = (parts.next_back().unwrap(), parts.next_back().unwrap());
    let without = |(stream, sequence, payload): &(u32, u64, Vec<u8>)| {
        let mut found = start(&rotten(&disk, *stream, *sequence, payload));
        assert_eq!(found.recovery.records_missing(), 1);
        assert_eq!(found.folded.stated_from == last[0].1, *sequence != last[0].1, "where a start may begin");
        assert!(found.folded.node.next_stream() > whole.node.next_stream(), "no stream is given twice");
        (NodeChange::decode(payload).unwrap(), state(&mut found), found.faults)
    };
    for (change, recovered, faults) in first.iter().copied().map(without) {
        assert_eq!(said(&recovered.node), said(&whole.node), "without {change:?}: {faults:?}");
        assert_eq!(recovered.vhosts, whole.vhosts, "without {change:?}: {faults:?}");
    }
    // Nothing follows this one.
    for (lost, (change, recovered, faults)) in last.iter().copied().map(without).enumerate() {
        let mut node = whole.node.clone();
        let rest = last.iter().enumerate().filter(|(at, _)| *at != lost);
        for (_, (_, _, payload)) in rest {
            let _ = node.apply(NodeChange::decode(payload).unwrap());
        }
        assert_eq!(said(&recovered.node), said(&node), "without {change:?}: {faults:?}");
        let mut vhosts = whole.vhosts.clone();
        vhosts.retain(|name, _| node.vhosts().contains_key(name));
        assert_eq!(recovered.vhosts, vhosts, "without {change:?}: {faults:?}");
        assert_eq!(
            faults.set_aside > 0,
            matches!(change, NodeChange::VhostAdded { .. } | NodeChange::UserSet { .. }) && node != whole.node,
            "without {change:?}: {faults:?}"
        );
    }
}

/// What a start learns from a restatement that begins with a record that rots.
#[test]
fn a_stream_is_not_given_again_if_nothing_tells_any_more_that_it_was() {
    let Model { actions, node, node_sequence, .. } = Model::of(&[
        Request(vec![add_vhost("/"), set_user("guest", "guest"), permit("guest", "/")]),
        Request(vec![add_vhost("shop")]),
        Request(vec![add_vhost("news")]),
        Publish("/"),
        Publish("shop"),
        Publish("news"),
        Request(vec![delete_vhost("shop")]),
        Request(vec![delete_vhost("news")]),
    ]);
    let disk = SimDisk::default();
    run(&disk, &actions);
    let (mut log, mut batch) =
        (Log::open(Arc::new(disk.clone()), OPTIONS, &mut |_| {}).unwrap().0, Batch::default());
    for (sequence, change) in (node_sequence + 1..).zip(node.restated()) {
        batch.push(NODE_STREAM, sequence, |out| change.encode(out));
    }
    log.append(&mut batch).unwrap();
    let begin = [(NODE_STREAM, node_sequence + 1), (2, u64::MAX), (3, u64::MAX)];
    log.begin_replay_at(&begin.into()).unwrap();
    let mut restated = Vec::new();
    NodeChange::Restated { last_stream: 3 }.encode(&mut restated);
    let found = start(&rotten(&disk, NODE_STREAM, node_sequence + 1, &restated));
    assert_eq!((found.recovery.records_missing(), &found.folded.gone[..]), (1, &[2, 3][..]));
    assert!(found.folded.node.next_stream() > 3, "{:?}", found.folded.node);
}

/// A record of a version to come, or one that is malformed though it verifies.
#[test]
fn a_record_of_the_node_that_says_anything_is_taken_or_set_aside() {
    let Model { actions, .. } = Model::of(&each_kind());
    let records: Vec<_> = records(&actions).collect();
    for (altered, (_, _, payload)) in records.iter().enumerate().filter(|(_, (stream, ..))| *stream == NODE_STREAM)
    {
        for at in 0..payload.len().min(80) {
            let mut fold = Fold::new(Some(vhost("/")), || [7; 32]);
            let mut streams = BTreeMap::new();
            for (nth, (stream, sequence, payload)) in records.iter().enumerate() {
                let mut payload = payload.clone();
                if nth == altered {
                    payload[at] ^= 1 << (at % 8);
                }
                streams.insert(*stream, *sequence);
                fold.take(NOW, *stream, *sequence, &payload, &mut |_| {});
            }
            fold.end(0, &streams);
            let named = fold.node().vhosts().len();
            assert_eq!(fold.finish(streams.into_keys()).vhosts.len(), named, "record {altered} altered at {at}");
        }
    }
}
