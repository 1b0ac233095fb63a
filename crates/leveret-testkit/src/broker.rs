//! A broker in one thread: one virtual host, its connections, a clock that stands still unless told otherwise.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use leveret_amqp::ShortStr;
use leveret_amqp::frame::split_frame;
use leveret_broker::change::NodeChange;
use leveret_broker::connection::{Credentials, Written};
use leveret_broker::moment::Deadline;
use leveret_broker::names::{UserName, VhostName};
use leveret_broker::node::presence::{Presence, Present};
use leveret_broker::node::{OpenError, Origin};
use leveret_broker::scratch::{Place, Segment, Spill, Spilled};
use leveret_broker::vhost::checkpoint::Checkpoint;
use leveret_broker::vhost::command::Farewell;
use leveret_broker::vhost::effects::{Fetch, Fetched};
use leveret_broker::vhost::ledger::{Ceilings, Holdings};
use leveret_broker::vhost::policy::Policy;
use leveret_broker::vhost::room::Room;
use leveret_broker::vhost::{Progress, Sweep};
use leveret_broker::{
    Change, Command, Commands, Connection, ConnectionId, Effects, JournalPosition, Message, MessageId, Moment,
    Node, Output, Settings, VirtualHost,
};
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use smallvec::SmallVec;

use crate::script::{BEGINNING, Extent, Heard, JournalPace, PolicyOrder, Stop, Wire};

/// What differs from run to run of the same script.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Variation {
    /// Whether what the client sends arrives one byte at a time.
    pub byte_by_byte: bool,
    /// Which bodies are evicted from memory.
    pub eviction: Eviction,
    /// Whether the disk takes its time.
    pub lag: Lag,
    /// How much may be on its way to clients.
    pub windows: Windows,
}

/// How much may be on its way to clients that have not read it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Windows {
    /// As much as one connection may have by itself.
    Wide,
    /// Two small messages, and one for each connection.
    Narrow,
}

/// Whether what the disk does is done at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lag {
    /// Yes.
    None,
    /// Bodies are fetched, and changes become durable, only when nobody can go on without.
    AsLongAsPossible,
}

/// Which bodies are evicted from memory after each step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Eviction {
    /// None.
    Never,
    /// Every one.
    Always,
    /// Each with one chance in two.
    AtRandom,
}

impl Variation {
    /// All that a script is run in.
    pub const ALL: [Variation; 7] = [
        Variation { byte_by_byte: false, eviction: Eviction::Never, lag: Lag::None, windows: Windows::Wide },
        Variation { byte_by_byte: true, eviction: Eviction::Never, lag: Lag::None, windows: Windows::Wide },
        Variation { byte_by_byte: false, eviction: Eviction::Always, lag: Lag::None, windows: Windows::Wide },
        Variation { byte_by_byte: false, eviction: Eviction::AtRandom, lag: Lag::None, windows: Windows::Wide },
        Variation {
            byte_by_byte: false,
            eviction: Eviction::Never,
            lag: Lag::AsLongAsPossible,
            windows: Windows::Wide,
        },
        Variation {
            byte_by_byte: false,
            eviction: Eviction::Always,
            lag: Lag::AsLongAsPossible,
            windows: Windows::Wide,
        },
        Variation { byte_by_byte: false, eviction: Eviction::Never, lag: Lag::None, windows: Windows::Narrow },
    ];
}

/// Runs what a test does in place of a disk, for whoever wants to know what the broker does by itself.
type Aside = fn(&mut dyn FnMut());

fn apart<T>(aside: Aside, work: impl FnOnce() -> T) -> T {
    let (mut work, mut done) = (Some(work), None);
    aside(&mut || done = work.take().map(|work| work()));
    done.expect("it was run")
}

/// Messages in each scratch segment: few, so that segments come and go.
const SCRATCH_MESSAGES: u32 = 3;

/// Scratch segments in memory.
#[derive(Default)]
struct Scratch {
    /// What is to be written.
    spills: Vec<Spill>,
    /// What was, as the records hold it.
    records: BTreeMap<Place, Vec<u8>>,
    /// The last segment, as long as it is written.
    segment: Option<Segment>,
    last: Place,
}

impl Scratch {
    /// Writes what is to be written.
    fn write(&mut self) -> Vec<Spilled> {
        let spills = std::mem::take(&mut self.spills).into_iter();
        spills
            .map(|spill| {
                let segment = match &self.segment {
                    Some(segment) if self.last.offset + 1 < SCRATCH_MESSAGES => {
                        self.last.offset += 1;
                        segment.clone()
                    }
                    _ => {
                        self.last = Place { segment: self.last.segment + 1, offset: 0 };
                        Segment::new(self.last.segment)
                    }
                };
                self.segment = Some(segment.clone());
                let place = self.last;
                let mut record = Vec::new();
                Change::MessageEnqueued { message: spill.message.clone(), queues: SmallVec::new() }
                    .encode(&mut record);
                self.records.insert(place, record);
                Spilled { spill, place: Some((segment, place)) }
            })
            .collect()
    }
}

struct Peer {
    connection: Connection,
    id: Option<ConnectionId>,
    carry: Vec<u8>,
    outputs: VecDeque<Output>,
    /// What the client has not heard yet.
    unheard: Vec<u8>,
    /// Bytes of messages that it was handed and that are not yet written.
    on_the_way: usize,
    /// Whether its socket takes what is written. The client of a script reads at once.
    reads: bool,
}

impl Peer {
    /// The socket takes all there is, if it takes anything; true if the virtual host has to know.
    fn write(&mut self, now: Moment) -> bool {
        let (bytes, is_due) =
            if self.reads { self.connection.handle_written(now, Written::All) } else { (0, false) };
        self.on_the_way -= bytes;
        is_due
    }
}

/// The broker under test.
pub struct Broker {
    variation: Variation,
    settings: Arc<Settings>,
    node: Node,
    presences: BTreeMap<UserName, Arc<Presence>>,
    vhost: VirtualHost,
    peers: BTreeMap<Rc<str>, Peer>,
    now: Moment,
    effects: Effects,
    /// Where evicted bodies are.
    stored: BTreeMap<MessageId, Message>,
    /// Those of them that cannot be read back.
    damaged: BTreeSet<MessageId>,
    /// Everything that was journaled, with its position, as the records of a journal hold it.
    journal: Vec<(JournalPosition, Vec<u8>)>,
    /// The position of the last change that was journaled.
    journaled: JournalPosition,
    /// The last change up to which nothing is half done.
    whole: JournalPosition,
    /// All of these that there were.
    wholes: Vec<JournalPosition>,
    durable: JournalPosition,
    /// Nothing becomes durable for the time being.
    journal_stands: bool,
    /// Bodies that were asked for and not yet fetched.
    fetches: Vec<Fetch>,
    scratch: Scratch,
    /// The checkpoint that is being written, if there is one.
    checkpoint: Option<Checkpoint>,
    /// Where the complete ones begin and end.
    checkpoints: Vec<(JournalPosition, JournalPosition)>,
    /// The most that followed from one hold of the virtual host's lock: outputs and changes.
    longest_hold: usize,
    /// Bytes that may be on their way to clients, all together.
    window_bytes: usize,
    /// What may be held for clients.
    ceilings: Ceilings,
    random: SmallRng,
    aside: Aside,
}

impl Broker {
    /// A fresh broker with default settings.
    pub fn new(variation: Variation) -> Self {
        let node = Node::with_guest();
        let vhost = fresh_vhost();
        Broker {
            variation,
            settings: Arc::default(),
            node,
            presences: BTreeMap::new(),
            vhost,
            peers: BTreeMap::new(),
            now: Moment { monotonic: Duration::from_secs(1), wall: Duration::from_secs(BEGINNING.cast_unsigned()) },
            effects: Effects::default(),
            stored: BTreeMap::new(),
            damaged: BTreeSet::new(),
            journal: Vec::new(),
            journaled: JournalPosition::default(),
            whole: JournalPosition::default(),
            wholes: Vec::new(),
            durable: JournalPosition::default(),
            journal_stands: false,
            fetches: Vec::new(),
            scratch: Scratch::default(),
            checkpoint: None,
            checkpoints: Vec::new(),
            longest_hold: 0,
            window_bytes: match variation.windows {
                Windows::Wide => usize::MAX,
                Windows::Narrow => 512,
            },
            ceilings: Ceilings::default(),
            random: SmallRng::seed_from_u64(7),
            aside: |work| work(),
        }
    }

    /// The same with other settings.
    #[must_use]
    pub fn with(mut self, change: impl FnOnce(&mut Settings)) -> Self {
        change(Arc::make_mut(&mut self.settings));
        self.vhost.set_consumer_timeout(self.settings.consumer_timeout);
        self
    }

    /// The same where somebody runs what is done in place of a disk.
    #[must_use]
    pub fn with_disk_run_by(mut self, aside: fn(&mut dyn FnMut())) -> Self {
        self.aside = aside;
        self
    }

    /// Everything that was journaled, in order: positions from 1 on, and the payloads of records.
    pub fn journal(&self) -> &[(JournalPosition, Vec<u8>)] {
        &self.journal
    }

    /// The positions in the journal at which nothing was half done: a batch may end there.
    pub fn whole_positions(&self) -> &[JournalPosition] {
        &self.wholes
    }

    /// Where complete checkpoints begin and end in the journal.
    pub fn checkpoints(&self) -> &[(JournalPosition, JournalPosition)] {
        &self.checkpoints
    }

    /// Goes one small step on with a checkpoint, or begins one; true once it is complete.
    fn checkpoint_step(&mut self) -> bool {
        let mut checkpoint = self.checkpoint.take().unwrap_or_default();
        let goes_on = self.vhost.handle_checkpoint(self.now, &mut checkpoint, 1, &mut self.effects);
        self.hand_on(Progress::Done);
        if goes_on {
            self.checkpoint = Some(checkpoint);
        } else {
            apart(self.aside, || self.checkpoints.push((checkpoint.begun(), self.journaled)));
        }
        !goes_on
    }

    /// The most outputs and changes that followed from one hold of the virtual host's lock.
    pub fn longest_hold(&self) -> usize {
        self.longest_hold
    }

    /// Lets a client stop reading, or begin again.
    pub fn set_reading(&mut self, name: &str, reads: bool) {
        if let Some(peer) = self.peers.get_mut(name) {
            peer.reads = reads;
            if peer.write(self.now) {
                self.settle(name);
            }
        }
    }

    /// What a client brings is overdue, while there is little memory.
    pub fn overdue(&mut self, name: &str) {
        if let Some(peer) = self.peers.get_mut(name) {
            peer.connection.handle_overdue(self.now, &mut peer.unheard);
            self.settle(name);
        }
    }

    /// A client is gone. Returns what is kept of contents that it has begun, as long as the virtual host has not let it go.
    pub fn end_within_content(&mut self, name: &str) -> usize {
        let Some(peer) = self.peers.get_mut(name) else { return 0 };
        peer.connection.handle_end();
        let kept = peer.connection.unfinished_bytes();
        self.settle(name);
        kept
    }

    /// Bodies that are on disk by now cannot be read back: those in the journal until the next start, all others never.
    pub fn damage_bodies(&mut self) {
        self.spill();
        self.damaged.extend(self.stored.keys());
        self.scratch.records.clear();
    }

    /// Bytes that wait for a client to read them.
    pub fn unheard_bytes(&self, name: &str) -> usize {
        self.peers.get(name).map_or(0, |peer| peer.unheard.len())
    }

    /// From now on so many bytes may be on their way to clients, all together.
    pub fn set_window_bytes(&mut self, bytes: usize) {
        self.window_bytes = bytes;
        self.tell_window_room();
    }

    /// What is held for clients.
    pub fn holdings(&self) -> Holdings {
        self.vhost.holdings()
    }

    /// From now on so many bytes may be held for clients.
    pub fn set_ceilings(&mut self, ceilings: Ceilings) {
        self.ceilings = ceilings;
        self.vhost.set_ceilings(ceilings);
    }

    fn tell_window_room(&mut self) {
        let on_the_way: usize = self.peers.values().map(|peer| peer.on_the_way).sum();
        self.vhost.set_window_room(self.window_bytes.saturating_sub(on_the_way));
    }

    fn feed(&mut self, name: &str, bytes: &[u8]) {
        let Some(peer) = self.peers.get_mut(name) else { return };
        peer.carry.extend_from_slice(bytes);
        self.settle(name);
    }

    /// Lets one connection go as far as it can, and then everybody whom that concerns.
    fn settle(&mut self, name: &str) {
        loop {
            let now = self.now;
            let Some(peer) = self.peers.get_mut(name) else { return };
            let used = peer.connection.handle_input(now, &peer.carry, &mut peer.unheard);
            peer.carry.drain(..used);
            if let Some(Credentials { user, password, .. }) = peer.connection.login_request() {
                let checked = self.node.log_in(user, password, Origin::Loopback);
                peer.connection.handle_login(now, checked, &mut peer.unheard);
                continue;
            }
            if let Some((vhost, user)) = peer.connection.open_request() {
                let presence = self.presences.entry(user.clone()).or_default();
                self.node.users().get(user).into_iter().for_each(|user| presence.follow(user));
                let opened = self.node.open(vhost, user).and_then(|(_, login)| {
                    let present = Present::enter(Arc::clone(presence)).map_err(OpenError::UserFull)?;
                    peer.id = Some(self.vhost.connect(login)?);
                    Ok(present)
                });
                peer.connection.handle_opened(now, opened, &mut peer.unheard);
            }
            let executed = self.execute(name);
            let encoded = self.encode_all();
            let Some(peer) = self.peers.get(name) else { return };
            let is_idle = (used == 0 || peer.carry.is_empty()) && !executed && !encoded;
            if is_idle && !self.catch_up() {
                return;
            }
        }
    }

    /// What the disk had put off; true if there was something.
    fn catch_up(&mut self) -> bool {
        if !self.fetches.is_empty() {
            let (stored, damaged, records) = (&self.stored, &self.damaged, &self.scratch.records);
            let fetched = self.fetches.drain(..).map(|fetch| {
                let Some(place) = fetch.id.place() else {
                    if damaged.contains(&fetch.id) {
                        return Fetched { fetch, message: None };
                    }
                    let message = stored.get(&fetch.id).expect("what was evicted was stored").clone();
                    return Fetched { fetch, message: Some(message) };
                };
                // Not there is what nobody needs any more, and what is damaged.
                let message = records.get(&place).map(|record| match Change::decode(record) {
                    Ok(Change::MessageEnqueued { message, .. }) => message,
                    other => panic!("not a message: {other:?}"),
                });
                Fetched { fetch, message }
            });
            let progress = self.vhost.handle_fetched(self.now, &mut fetched.collect(), &mut self.effects);
            self.hand_on(progress);
            return true;
        }
        self.spill();
        self.make_durable()
    }

    /// Writes what is to be written to scratch segments, and removes those that are needed no more.
    fn spill(&mut self) {
        let mut spilled = apart(self.aside, || self.scratch.write());
        self.vhost.handle_spilled(&mut spilled);
        for number in self.vhost.take_unneeded_segments() {
            apart(self.aside, || self.scratch.records.retain(|place, _| place.segment != number));
        }
    }

    /// The journal catches up, unless it stands; true if that changed something.
    fn make_durable(&mut self) -> bool {
        if self.journal_stands || self.durable == self.whole {
            return false;
        }
        self.durable = self.whole;
        for peer in self.peers.values_mut() {
            if peer.connection.awaits().is_some_and(|position| position <= self.durable) {
                peer.connection.handle_durable(self.now, self.durable, &mut peer.unheard);
                let _ = peer.write(self.now);
            }
        }
        true
    }

    /// Executes what waits and may; true if there was something.
    fn execute(&mut self, name: &str) -> bool {
        let Some(peer) = self.peers.get_mut(name) else { return false };
        let Some(id) = peer.id else { return false };
        let waiting = peer.connection.commands();
        let before = waiting.len();
        if before == 0 {
            return false;
        }
        self.tell_window_room();
        let Some(peer) = self.peers.get_mut(name) else { return false };
        let waiting = peer.connection.commands();
        let progress = self.vhost.handle_batch(self.now, id, waiting, &mut self.effects);
        let is_moving = waiting.len() < before || progress == Progress::More;
        self.hand_on(progress);
        if progress == Progress::More {
            // It is to be called again, whether commands are left or not.
            self.call_again(name, id);
        }
        is_moving
    }

    /// Executes what a batch of a connection has left.
    fn call_again(&mut self, name: &str, id: ConnectionId) {
        while let Some(peer) = self.peers.get_mut(name) {
            let progress = self.vhost.handle_batch(self.now, id, peer.connection.commands(), &mut self.effects);
            self.hand_on(progress);
            if progress == Progress::Done {
                break;
            }
        }
    }

    /// Distributes what follows from a batch, fetches what is asked for, and goes on until nothing is left.
    fn hand_on(&mut self, mut progress: Progress) {
        loop {
            let mut followed = self.effects.changes.len();
            for change in self.effects.changes.drain(..) {
                self.journaled = self.journaled.next();
                apart(self.aside, || {
                    let mut record = Vec::new();
                    change.encode(&mut record);
                    self.journal.push((self.journaled, record));
                });
            }
            if !self.effects.changes_go_on && self.whole < self.journaled {
                self.whole = self.journaled;
                apart(self.aside, || self.wholes.push(self.whole));
            }
            let peers = &mut self.peers;
            self.effects.take_outputs(|to, outputs, bytes| {
                followed += outputs.iter().map(Output::count).sum::<usize>();
                if let Some(peer) = peers.values_mut().find(|peer| peer.id == Some(to)) {
                    peer.outputs.extend(outputs.drain(..));
                    peer.on_the_way += bytes;
                }
            });
            self.tell_window_room();
            self.longest_hold = self.longest_hold.max(followed);
            self.fetches.append(&mut self.effects.fetches);
            if progress == Progress::Done && !self.vhost.is_behind() {
                break;
            }
            progress = self.vhost.go_on(self.now, &mut self.effects);
        }
        self.evict();
        if self.variation.lag == Lag::None {
            while self.catch_up() {}
        }
    }

    fn evict(&mut self) {
        let (stored, random, spills) = (&mut self.stored, &mut self.random, &mut self.scratch.spills);
        let mut store = |position: Option<JournalPosition>, message: &Message| {
            if let Some(position) = position {
                apart(self.aside, || stored.insert(MessageId::journaled(position), message.clone()));
            }
            true
        };
        let mut sweep = Sweep::default();
        match self.variation.eviction {
            Eviction::Never => {}
            Eviction::Always => while self.vhost.evict(&mut sweep, 0, &mut store, spills) {},
            Eviction::AtRandom => {
                let mut perhaps = |position: Option<JournalPosition>, message: &Message| {
                    random.random_bool(0.5) && store(position, message)
                };
                while self.vhost.evict(&mut sweep, 0, &mut perhaps, spills) {}
            }
        }
        if self.variation.lag == Lag::None {
            self.spill();
        }
    }

    /// Encodes what waits in outboxes; true if there was something.
    fn encode_all(&mut self) -> bool {
        let durable = self.durable;
        let mut any = false;
        for peer in self.peers.values_mut() {
            if peer.outputs.is_empty() {
                continue;
            }
            any = true;
            peer.connection.handle_outputs(self.now, peer.outputs.drain(..), durable, &mut peer.unheard);
            let _ = peer.write(self.now);
        }
        if any {
            for name in self.names() {
                self.execute(&name);
            }
        }
        any
    }

    fn disconnect_all(&mut self) {
        for id in self.peers.values().filter_map(|peer| peer.id).collect::<Vec<_>>() {
            let mut commands = Commands::default();
            commands.push(Command::Disconnect(Farewell::Silent));
            let progress = self.vhost.handle_batch(self.now, id, &mut commands, &mut self.effects);
            self.hand_on(progress);
        }
    }

    fn settle_all(&mut self) {
        for name in self.names() {
            self.settle(&name);
        }
    }

    fn names(&self) -> SmallVec<[Rc<str>; 16]> {
        self.peers.keys().cloned().collect()
    }

    fn next_timeout(&self) -> Option<Deadline> {
        let peers = self.peers.values().filter_map(|peer| peer.connection.next_timeout());
        peers.chain(self.vhost.next_timeout()).min()
    }
}

impl Wire for Broker {
    fn connect(&mut self, name: &str) {
        let settings = Arc::clone(&self.settings);
        let seed = [u8::try_from(self.peers.len()).unwrap_or(u8::MAX); 32];
        let connection = Connection::new(settings, seed, self.now);
        let (carry, outputs, unheard) = (Vec::new(), VecDeque::new(), Vec::new());
        self.peers.insert(
            name.into(),
            Peer { connection, id: None, carry, outputs, unheard, on_the_way: 0, reads: true },
        );
    }

    fn send(&mut self, name: &str, bytes: &[u8]) {
        if self.variation.byte_by_byte {
            for byte in bytes.chunks(1) {
                self.feed(name, byte);
            }
        } else {
            self.feed(name, bytes);
        }
    }

    fn end(&mut self, name: &str) {
        if let Some(peer) = self.peers.get_mut(name) {
            peer.connection.handle_end();
            self.settle(name);
        }
    }

    fn hear(&mut self, name: &str) -> Heard {
        let Some(peer) = self.peers.get_mut(name) else { return Heard::End };
        if peer.unheard.starts_with(b"AMQP") {
            let rest = peer.unheard.split_off(8);
            return Heard::ProtocolHeader(std::mem::replace(&mut peer.unheard, rest));
        }
        let mut rest = &peer.unheard[..];
        let frame = split_frame(&mut rest, u32::MAX).expect("the broker's frames are well formed");
        match frame {
            Some(frame) => {
                let heard = Heard::Frame(frame.kind, frame.channel, frame.payload.to_vec());
                let used = peer.unheard.len() - rest.len();
                peer.unheard.drain(..used);
                heard
            }
            None if peer.connection.is_closed() => Heard::End,
            None => Heard::Nothing,
        }
    }

    fn journal(&mut self, pace: JournalPace) {
        match pace {
            JournalPace::Stops => self.journal_stands = true,
            JournalPace::KeepsUp => {
                self.journal_stands = false;
                self.make_durable();
                self.settle_all();
            }
        }
    }

    fn room(&mut self, room: Room) {
        self.vhost.handle_room(room, &mut self.effects);
        self.hand_on(Progress::Done);
        self.encode_all();
        self.settle_all();
    }

    fn checkpoint(&mut self, extent: Extent) {
        while !self.checkpoint_step() && extent == Extent::Whole {}
        self.encode_all();
        self.settle_all();
    }

    fn node(&mut self, change: NodeChange) -> Result<(), String> {
        self.node.apply(change).map_err(|error| error.to_string())?;
        self.node.vhosts().values().for_each(|vhost| self.vhost.follow(vhost));
        let name = self.vhost.name().clone();
        for (user, presence) in &self.presences {
            self.node.users().get(user).into_iter().for_each(|user| presence.follow(user));
            self.vhost.set_grant(user, &Arc::new(self.node.grant(user, &name)));
        }
        Ok(())
    }

    fn policy(&mut self, order: PolicyOrder) -> Result<(), String> {
        let (now, effects) = (self.now, &mut self.effects);
        let progress = match order {
            PolicyOrder::Set(source) => Policy::new(source)
                .and_then(|policy| self.vhost.set_policy(now, policy, effects))
                .map_err(|error| error.to_string())?,
            PolicyOrder::Clear(kind, name) => {
                self.vhost.clear_policy(now, kind, &name, effects).ok_or("there is no such policy")?
            }
        };
        self.hand_on(progress);
        // An administrator waits for the disk, whoever else does.
        while self.catch_up() {}
        self.encode_all();
        self.settle_all();
        // What is due at once does not wait for a client.
        self.wait(Duration::ZERO);
        Ok(())
    }

    fn restart(&mut self, after: Stop) {
        if after == Stop::InGoodOrder {
            for peer in self.peers.values_mut() {
                peer.connection.handle_shutdown(self.now, "shutdown", &mut peer.unheard);
            }
            self.settle_all();
            self.disconnect_all();
            self.vhost.handle_stop(&mut self.effects);
            self.hand_on(Progress::Done);
            self.durable = self.whole;
        }
        self.peers.clear();
        self.fetches.clear();
        apart(self.aside, || {
            self.stored.clear();
            self.scratch = Scratch::default();
            self.journal.retain(|(position, _)| *position <= self.durable);
        });
        self.damaged.clear();
        self.effects = Effects::default();
        self.checkpoint = None;
        self.checkpoints.retain(|(_, end)| *end <= self.durable);
        // A journal may begin to be read at any complete checkpoint, or at its beginning.
        let from = match self.checkpoints.as_slice() {
            [] => JournalPosition::default(),
            all => {
                all.get(self.random.random_range(0..=all.len())).map_or_else(Default::default, |(begun, _)| *begun)
            }
        };
        self.vhost = fresh_vhost();
        self.vhost.set_consumer_timeout(self.settings.consumer_timeout);
        self.vhost.set_ceilings(self.ceilings);
        self.node.vhosts().values().for_each(|vhost| self.vhost.follow(vhost));
        for (position, record) in self.journal.iter().filter(|(position, _)| *position >= from) {
            let change = Change::decode(record).expect("what was encoded is decoded");
            self.vhost.apply(self.now, *position, change).expect("a change fits to those before it");
        }
        self.vhost.end_recovery();
        // What a checkpoint repeats has no bodies.
        let bodies = self.journal.iter().filter_map(|(position, record)| match Change::decode(record) {
            Ok(Change::MessageEnqueued { message, .. }) => Some((MessageId::journaled(*position), message)),
            _ => None,
        });
        apart(self.aside, || self.stored.extend(bodies));
        assert_eq!(self.vhost.position(), self.durable);
        (self.journaled, self.whole) = (self.durable, self.durable);
        self.wholes.retain(|position| *position <= self.durable);
        self.journal_stands = false;
        // What is due at once does not wait for a client.
        self.wait(Duration::ZERO);
    }

    fn wait(&mut self, time: Duration) {
        let end = self.now.monotonic + time;
        while let Some(due) = self.next_timeout().filter(|due| due.0 <= end) {
            let step = due.0.saturating_sub(self.now.monotonic);
            self.now = Moment { monotonic: self.now.monotonic + step, wall: self.now.wall + step };
            for peer in self.peers.values_mut() {
                peer.connection.handle_timeout(self.now, &mut peer.unheard);
            }
            let progress = self.vhost.handle_timeout(self.now, &mut self.effects);
            self.hand_on(progress);
            self.encode_all();
            self.settle_all();
        }
        let step = end.saturating_sub(self.now.monotonic);
        self.now = Moment { monotonic: end, wall: self.now.wall + step };
    }
}

fn fresh_vhost() -> VirtualHost {
    VirtualHost::new(VhostName::new(ShortStr::truncated("/")), [7; 32])
}

impl Drop for Broker {
    /// Whatever a script did, disconnecting everybody must work.
    fn drop(&mut self) {
        if std::thread::panicking() {
            return;
        }
        self.disconnect_all();
    }
}
