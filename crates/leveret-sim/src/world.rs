//! The whole broker in one thread: clients, virtual hosts, journal, disk and clock.
//!
//! Owns: in which order things happen, and that the model hears of each. What a step leaves open is decided by the luck of
//! the step, so a run is a function of its plan.

mod bodies;
mod lines;
mod steps;
mod time;

use std::cell::Cell;
use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use leveret_broker::connection::{Credentials, Written};
use leveret_broker::node::presence::{Presence, Present};
use leveret_broker::node::{OpenError, Origin};
use leveret_broker::vhost::Progress;
use leveret_broker::{Connection, JournalPosition, Moment, Node, Settings};
use leveret_journal::ScratchReader;
use leveret_testkit::disk::SimDisk;
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

pub(crate) use self::lines::Unfinished;
use crate::Passed;
use crate::hub::Hub;
use crate::link::{self, Heard, Link, Standing};
use crate::model::{Late, RETRY_MS, Told, Violation};
use crate::plan::{
    Config, DEAD_QUEUES, DELAY_MS_MOST, ExchangeName, Mode, ORDINARY_QUEUES, Op, Plan, QueueSpec, Step,
};
use crate::stats::{Kind, Stats};
use crate::store::{Checkpointing, Store, Stuck};

/// Names of the virtual hosts.
pub(crate) const VHOSTS: [&str; 2] = ["/", "b"];

/// Where a read of a start fails, it is among so many of the first.
const READS_MOST: u64 = 12;

/// What a start could not read was the end of the journal, and may have been torn before.
pub const UNREAD_AND_TORN: &str = "unread, and perhaps torn";

/// A broker was late, and in no order that is tried.
pub const UNEXPLAINED: &str = "late in no order that is tried";

/// A start found messages late that go and that come, and a queue that refuses what is too much.
pub const REFUSED_LATE: &str = "late, and perhaps refused";

/// Whether what happens by itself has happened when it was due.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum OnTime {
    Yes,
    /// All at once, behind that.
    No,
}

/// Somebody who connects to a virtual host.
pub(crate) struct Client {
    pub(crate) hub: usize,
    pub(crate) link: Option<Link>,
}

/// All there is.
pub(crate) struct World {
    pub(crate) config: Rc<Config>,
    pub(crate) luck: SmallRng,
    pub(crate) now: Moment,
    pub(crate) disk: SimDisk,
    pub(crate) scratch_disk: SimDisk,
    pub(crate) store: Option<Store>,
    pub(crate) node: Node,
    pub(crate) node_sequence: u64,
    pub(crate) hubs: Vec<Hub>,
    pub(crate) clients: Vec<Client>,
    pub(crate) stats: Stats,
    /// What the disk had no room for.
    pub(crate) stuck: Option<Stuck>,
    pub(crate) checkpointing: Option<Checkpointing>,
    /// Where the last whole checkpoint begins in each stream.
    pub(crate) begun: Option<BTreeMap<u32, u64>>,
    /// The power is cut once the disk has done so much, and so.
    pub(crate) dies: Option<(u64, crate::plan::Cut, u8)>,
    /// What becomes of the disk when a sync has failed.
    pub(crate) after_failure: Option<crate::plan::Cut>,
    /// If this step starts the broker, a read fails then, behind so many.
    pub(crate) fails_read_after: Option<u64>,
    /// The journal takes nothing any more.
    pub(crate) has_failed: bool,
    /// What there is cannot be told exactly any more: the run ends.
    pub(crate) is_unclear: bool,
    /// Steps that did something.
    done: u64,
    /// All bytes that clients have received, in short.
    pub(crate) heard: u64,
    presence: Arc<Presence>,
    settings: Arc<Settings>,
    next_message: u64,
}

impl World {
    /// A broker that starts with an empty disk.
    pub(crate) fn new(config: &Config) -> Result<Self, Violation> {
        let config = Rc::new(config.clone());
        let disk = SimDisk::default();
        if config.lies {
            disk.lie();
        }
        let clients = (0..config.clients)
            .map(|client| Client { hub: usize::from(client % config.vhosts), link: None })
            .collect();
        let mut world = World {
            config,
            luck: SmallRng::seed_from_u64(0),
            now: time::BEGINNING,
            disk,
            scratch_disk: SimDisk::default(),
            store: None,
            node: Node::default(),
            node_sequence: 0,
            hubs: Vec::new(),
            clients,
            stats: Stats::default(),
            stuck: None,
            checkpointing: None,
            begun: None,
            dies: None,
            after_failure: None,
            fails_read_after: None,
            has_failed: false,
            is_unclear: false,
            done: 0,
            heard: 0xCBF2_9CE4_8422_2325,
            presence: Arc::default(),
            settings: Arc::default(),
            next_message: 0,
        };
        world.start(true, 0)?;
        Ok(world)
    }

    pub(crate) fn now_ms(&self) -> u64 {
        u64::try_from(self.now.monotonic.as_millis()).unwrap_or(u64::MAX)
    }

    /// Does one step.
    pub(crate) fn step(&mut self, step: &Step) -> Result<(), Violation> {
        self.luck = SmallRng::seed_from_u64(step.luck);
        self.fails_read_after = step.luck.is_multiple_of(4).then_some(step.luck / 4 % READS_MOST);
        let (kind, name) = match step.op {
            Op::WriteJournal
            | Op::MarkJournal
            | Op::KeepSpares
            | Op::Checkpoint { .. }
            | Op::Crash { .. }
            | Op::FailSync { .. }
            | Op::FillDisk { .. }
            | Op::EmptyDisk
            | Op::SetClock { .. } => (Kind::Fault, step.op.name()),
            _ => (Kind::Operation, step.op.name()),
        };
        if self.act(&step.op)? {
            self.stats.count(kind, name);
            self.done += 1;
        }
        if self.is_unclear { Ok(()) } else { self.end_step() }
    }

    fn end_step(&mut self) -> Result<(), Violation> {
        if self.luck.random_range(0..100) < self.config.journal_percent {
            self.write_journal(false)?;
        } else {
            self.stats.count(Kind::Fault, "journal lags");
        }
        self.hear_all()?;
        if self.luck.random_range(0..100) < self.config.evict_percent {
            self.evict()?;
        }
        if self.luck.random_bool(0.05) {
            self.compare()?;
        }
        let waiting = self.hubs.iter().filter(|hub| hub.model.has_waiting_letters()).count();
        self.stats.count_many(Kind::Outcome, "dead letters wait", waiting as u64);
        self.die_if_due()
    }

    /// Everything that is left to do is done, then each queue is emptied: what the model says is there, is there.
    pub(crate) fn end(&mut self) -> Result<(), Violation> {
        self.luck = SmallRng::seed_from_u64(1);
        self.disk.set_room(None);
        for client in 0..self.config.clients {
            self.finish(client)?;
        }
        self.hear_of_everything()?;
        self.die_if_due()?;
        if self.dies.take().is_some() {
            self.disk.stop_at(u64::MAX);
        }
        self.disarm();
        self.power_cut(crate::plan::Cut::Mixed, 0)?;
        if self.is_unclear {
            return Ok(());
        }
        self.let_letters_arrive()?;
        self.drain()?;
        // What was delayed comes, too.
        self.wait(Duration::from_millis(DELAY_MS_MOST.into()))?;
        self.drain()?;
        self.hear_of_everything()?;
        self.compare()?;
        // Nothing of that comes back.
        self.power_cut(crate::plan::Cut::Mixed, 0)
    }

    /// Empties each queue.
    fn drain(&mut self) -> Result<(), Violation> {
        for hub in 0..self.hubs.len() {
            let client = u8::try_from(hub).unwrap_or_default();
            for slot in self.hubs[hub].model.slots() {
                let spec = &self.config.queues[usize::from(slot)];
                if spec.quorum && spec.single_active {
                    // Nobody may get from it.
                    self.act(&Op::Consume { client, mode: Mode::Plain, queue: slot, no_ack: true, prefetch: 0 })?;
                    self.write_journal(true)?;
                    self.hear_all()?;
                    continue;
                }
                while self.hubs[hub].model.ready_count(slot) > 0 {
                    let op = Op::Get { client, mode: Mode::Plain, queue: slot, no_ack: true };
                    self.act(&op)?;
                    self.write_journal(true)?;
                    self.hear_all()?;
                }
            }
        }
        Ok(())
    }

    /// All is written, and whoever is slow reads all that there is: nothing is left that somebody was to hear.
    fn hear_of_everything(&mut self) -> Result<(), Violation> {
        loop {
            self.write_journal(true)?;
            self.hear_all()?;
            if self.has_failed || self.stuck.is_some() {
                // They cannot be told.
                return Ok(());
            }
            let mut links = self.clients.iter().filter_map(|client| client.link.as_ref());
            let all_have_read = links.all(|link| link.unsent.is_empty());
            if all_have_read && self.hubs.iter().all(|hub| hub.pending.is_empty()) {
                break;
            }
        }
        for (client, link) in self.clients.iter().enumerate().filter_map(|(at, it)| Some((at, it.link.as_ref()?))) {
            if let Some(told) = link.untold() {
                return Err(format!("client {client} was never told {told:?}"));
            }
        }
        let unconfirmed = self.hubs.iter().find_map(|hub| hub.model.promises.keys().next());
        unconfirmed.map_or(Ok(()), |(client, _, number)| {
            Err(format!("publish {number} of client {client} was never confirmed"))
        })
    }

    /// Makes a place for all dead letters that wait or come, and has them tried again.
    fn let_letters_arrive(&mut self) -> Result<(), Violation> {
        if !self.config.queues.iter().any(QueueSpec::keeps_letters) {
            return Ok(());
        }
        for hub in 0..self.hubs.len() {
            let (client, exchange) = (u8::try_from(hub).unwrap_or_default(), ExchangeName::Dead);
            self.act(&Op::DeclareExchange { client, exchange })?;
            for queue in 0..DEAD_QUEUES {
                self.act(&Op::DeclareQueue { client, queue: ORDINARY_QUEUES + queue })?;
                self.act(&Op::BindQueue { client, queue, exchange, key: 0 })?;
            }
            self.write_journal(true)?;
            self.hear_all()?;
        }
        self.wait(Duration::from_millis(RETRY_MS))?;
        self.hear_all()?;
        if self.hubs.iter().any(|hub| hub.model.has_waiting_letters()) {
            return Err("a dead letter waits that has where to go".into());
        }
        self.compare()
    }

    fn passed(self) -> Passed {
        let files = self.disk.files().into_iter();
        let written = files.flat_map(|(name, contents)| name.into_bytes().into_iter().chain(contents));
        let digest = written.fold(self.heard, digested);
        Passed { stats: self.stats, digest, done: self.done, is_whole: !self.is_unclear }
    }

    // Clients.

    fn settle(&mut self, client: u8) -> bool {
        let (at, now) = (usize::from(client), self.now);
        let hub = self.clients[at].hub;
        let Some(link) = &mut self.clients[at].link else { return false };
        let used = link.connection.handle_input(now, &link.carry, &mut link.unsent);
        link.carry.drain(..used);
        if let Some(Credentials { user, password, .. }) = link.connection.login_request() {
            let checked = self.node.log_in(user, password, Origin::Loopback);
            link.connection.handle_login(now, checked, &mut link.unsent);
            return true;
        }
        if let Some((vhost, user)) = link.connection.open_request() {
            let opened = self.node.open(vhost, user).and_then(|(_, login)| {
                let present = Present::enter(Arc::clone(&self.presence)).map_err(OpenError::UserFull)?;
                let id = self.hubs[hub].vhost.connect(login)?;
                link.id = Some(id);
                self.hubs[hub].connections.push((id, client));
                Ok(present)
            });
            link.connection.handle_opened(now, opened, &mut link.unsent);
            return true;
        }
        used > 0
    }

    fn execute(&mut self, client: u8) -> bool {
        let (at, now) = (usize::from(client), self.now);
        let hub = self.clients[at].hub;
        let Some(link) = &mut self.clients[at].link else { return false };
        let (Some(id), before) = (link.id, link.connection.commands().len()) else { return false };
        if before == 0 {
            return false;
        }
        let mut is_moving = false;
        while let Some(link) = &mut self.clients[at].link {
            let Hub { vhost, effects, .. } = &mut self.hubs[hub];
            let progress = vhost.handle_batch(now, id, link.connection.commands(), effects);
            is_moving |= progress == Progress::More || link.connection.commands().len() < before;
            self.hubs[hub].hand_on(now, progress, &mut self.clients);
            if progress == Progress::Done {
                break;
            }
        }
        is_moving
    }

    fn encode(&mut self, client: u8) -> bool {
        let (at, now) = (usize::from(client), self.now);
        let durable = JournalPosition(self.hubs[self.clients[at].hub].durable);
        let Some(link) = &mut self.clients[at].link else { return false };
        if link.outputs.is_empty() {
            return false;
        }
        link.connection.handle_outputs(now, link.outputs.drain(..), durable, &mut link.unsent);
        true
    }

    /// Lets the socket of a client take some of what it is to hear.
    fn take_in(&mut self, client: u8) {
        let (at, now) = (usize::from(client), self.now);
        let Some(link) = &mut self.clients[at].link else { return };
        let all = link.unsent.len();
        let is_slow = self.config.slow_readers && self.luck.random_bool(0.5);
        let count = if is_slow { self.luck.random_range(0..=all) } else { all };
        if count < all {
            self.stats.count(Kind::Fault, "answer read in part");
        }
        let written = if count == all { Written::All } else { Written::Some(count) };
        let _ = link.connection.handle_written(now, written);
        for byte in link.unsent.drain(..count) {
            self.heard = digested(self.heard, byte);
            link.received.push(byte);
        }
        self.heard ^= u64::from(client);
    }

    /// Everybody goes as far as they can.
    pub(crate) fn pump(&mut self, hub: usize) -> Result<(), Violation> {
        loop {
            let mut is_moving = false;
            for client in 0..self.config.clients {
                if self.clients[usize::from(client)].hub != hub {
                    continue;
                }
                is_moving |= self.settle(client);
                is_moving |= self.execute(client);
                is_moving |= self.encode(client);
            }
            is_moving |= self.fetch(hub)?;
            if !is_moving {
                return Ok(());
            }
        }
    }

    /// The model follows what has happened, and what it comes to is what a crash may find.
    pub(crate) fn conclude(&mut self, hub: usize) -> Result<(), Violation> {
        self.conclude_as(hub, OnTime::Yes)
    }

    fn conclude_as(&mut self, hub: usize, on_time: OnTime) -> Result<(), Violation> {
        self.pump(hub)?;
        let now_ms = self.now_ms();
        let views = if on_time == OnTime::No { self.hubs[hub].views() } else { BTreeMap::new() };
        let Hub { model, said, pending, marks, vhost, journaled, latest, .. } = &mut self.hubs[hub];
        let marked = marks.back().map_or(0, |(end, _)| *end);
        let mut trail = vec![model.snapshot()];
        let has_several = pending.iter().filter(|group| group.end > marked).nth(1).is_some();
        let told = match on_time {
            OnTime::Yes => model.observe(now_ms, said, has_several.then_some(&mut trail))?,
            OnTime::No => match model.observe_late(now_ms, said, &mut trail, &views)? {
                Late::Told(told) => told,
                Late::Unclear => {
                    self.is_unclear = true;
                    return Ok(());
                }
                Late::Unexplained => {
                    self.stats.count(Kind::Outcome, UNEXPLAINED);
                    self.is_unclear = true;
                    return Ok(());
                }
            },
        };
        said.clear();
        let before = std::mem::replace(latest, model.snapshot());
        let mut has_changed = false;
        for group in pending.iter().filter(|group| group.end > marked) {
            has_changed = true;
            let mut found = vec![latest.clone()];
            if group.end < *journaled {
                found.push(before.clone());
                found.extend(trail.iter().cloned());
            }
            marks.push_back((group.end, found));
        }
        if model.is_durable && !has_changed {
            return Err("what must survive a crash is not journaled".into());
        }
        model.is_durable = false;
        if vhost.position().0 != *journaled {
            return Err(format!("{} changes were counted, and {journaled} were told", vhost.position().0));
        }
        for (client, mode, told) in told {
            match &told {
                Told::Message { redelivered: true, .. } => self.stats.count(Kind::Outcome, "redelivered"),
                Told::Message { .. } => self.stats.count(Kind::Outcome, "delivered"),
                Told::Return(_) => self.stats.count(Kind::Outcome, "returned"),
                Told::Closed => self.stats.count(Kind::Outcome, "channel closed"),
                Told::Answer { .. } => {}
            }
            let Some(link) = &mut self.clients[usize::from(client)].link else { continue };
            let channel = link.channel(mode);
            if told == Told::Closed {
                channel.standing = Standing::Closing;
                self.hubs[hub].history.close(client, mode);
            }
            channel.told.push_back(told);
        }
        Ok(())
    }

    /// A client says something, which arrives as it may.
    fn say(&mut self, client: u8, bytes: &[u8]) {
        let mut rest = bytes;
        while !rest.is_empty() {
            let is_split = self.config.splits && rest.len() > 1 && self.luck.random_bool(0.5);
            let count = if is_split { self.luck.random_range(1..rest.len()) } else { rest.len() };
            if is_split {
                self.stats.count(Kind::Fault, "input split");
            }
            let (now, later) = rest.split_at(count);
            rest = later;
            if let Some(link) = &mut self.clients[usize::from(client)].link {
                link.carry.extend_from_slice(now);
            }
            while self.settle(client) {}
        }
    }

    /// All clients understand what has reached them.
    pub(crate) fn hear_all(&mut self) -> Result<(), Violation> {
        for client in 0..self.config.clients {
            self.take_in(client);
            self.hear(client)?;
            let hub = self.clients[usize::from(client)].hub;
            self.pump(hub)?;
        }
        for hub in 0..self.hubs.len() {
            self.conclude(hub)?;
        }
        Ok(())
    }

    fn hear(&mut self, client: u8) -> Result<(), Violation> {
        let at = usize::from(client);
        let hub = self.clients[at].hub;
        let Some(link) = &mut self.clients[at].link else { return Ok(()) };
        let mut answer = Vec::new();
        let heard = link.hear(&mut answer).map_err(|fault| format!("client {client}: {fault}"))?;
        let Hub { model, history, promised, .. } = &mut self.hubs[hub];
        for heard in heard {
            match heard {
                Heard::Told(mode, Told::Message { tag, redelivered, id, slot, uid, serial, event, no_ack, .. }) => {
                    model.hear(serial);
                    history.deliver((client, mode, tag), (slot, uid, id), event, redelivered, no_ack)?;
                }
                Heard::Told(mode, Told::Answer { promise, settles }) => {
                    *promised = promise.max(*promised);
                    history.answer(client, mode, settles);
                }
                Heard::Told(mode, Told::Closed) => history.close(client, mode),
                Heard::Told(_, Told::Return(_)) => {}
                Heard::Confirmed { mode, number, multiple, refused } => {
                    let numbers = if multiple { 1..=number } else { number..=number };
                    let mut any = false;
                    for number in numbers {
                        let Some(promise) = model.promises.remove(&(client, mode, number)) else { continue };
                        any = true;
                        self.stats.count(Kind::Outcome, if refused { "refused" } else { "confirmed" });
                        if refused != (promise == u64::MAX) {
                            return Err(format!("publish {number} of client {client} is refused: {refused}"));
                        }
                        if !refused {
                            *promised = promise.max(*promised);
                        }
                    }
                    let is_open = link.channel(mode).standing == Standing::Open && !link.is_closing;
                    if !any && is_open {
                        return Err(format!(
                            "client {client} is told of publish {number}, which it was told of before"
                        ));
                    }
                }
                Heard::Closed(fault) => {
                    self.clients[at].link = None;
                    self.hubs[hub].connections.retain(|(_, of)| *of != client);
                    if let Some(fault) = fault {
                        return Err(format!("the connection of client {client} is closed: {fault}"));
                    }
                    return Ok(());
                }
            }
        }
        if !answer.is_empty() {
            self.finish(client)?;
            self.say(client, &answer);
        }
        Ok(())
    }

    /// Whether a client can use a channel now. It connects and opens it if need be.
    fn has_channel(&mut self, client: u8, mode: Mode) -> Result<bool, Violation> {
        let at = usize::from(client);
        let hub = self.clients[at].hub;
        self.finish(client)?;
        if self.clients[at].link.is_none() {
            let mut seed = [7; 32];
            seed[0] = client;
            let connection = Connection::new(Arc::clone(&self.settings), seed, self.now);
            let (heartbeat, is_silent) = self.any_heartbeat();
            self.clients[at].link = Some(Link::new(connection, heartbeat > 0 && !is_silent));
            self.say(client, &link::handshake(VHOSTS[hub], heartbeat));
            self.hubs[hub].model.begin_event();
            self.conclude(hub)?;
        }
        let Some(link) = self.clients[at].link.as_mut().filter(|link| !link.is_closing) else { return Ok(false) };
        if link.channel(mode).standing == Standing::Closed {
            link.channel(mode).standing = Standing::Open;
            self.say(client, &link::open_channel(mode));
            self.conclude(hub)?;
        }
        let link = self.clients[at].link.as_mut();
        Ok(link.is_some_and(|link| link.channel(mode).standing == Standing::Open))
    }

    /// A client says something that the model knows of already.
    fn tell(&mut self, client: u8, bytes: &[u8]) -> Result<bool, Violation> {
        self.say(client, bytes);
        self.conclude(self.clients[usize::from(client)].hub)?;
        Ok(true)
    }

    /// Compares what the broker says of its queues with the model.
    pub(crate) fn compare(&self) -> Result<(), Violation> {
        for hub in &self.hubs {
            hub.model.compare(&hub.views())?;
        }
        Ok(())
    }
}

/// Runs a plan, to its end or to the first thing that must not be. `step` says how far it is.
pub(crate) fn run(plan: &Plan, step: &Cell<usize>) -> Result<Passed, Violation> {
    let mut world = World::new(&plan.config)?;
    for (at, next) in plan.steps.iter().enumerate() {
        step.set(at);
        world.step(next)?;
        if world.is_unclear {
            return Ok(world.passed());
        }
    }
    step.set(plan.steps.len());
    world.end()?;
    Ok(world.passed())
}

/// A digest with one more byte (FNV-1a).
fn digested(digest: u64, byte: u8) -> u64 {
    (digest ^ u64::from(byte)).wrapping_mul(0x0100_0000_01B3)
}

/// A reader of scratch files.
pub(crate) fn scratch_reader(disk: &SimDisk) -> ScratchReader {
    ScratchReader::new(Arc::new(disk.clone()))
}
