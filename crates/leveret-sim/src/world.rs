//! The whole broker in one thread: clients, virtual hosts, journal, disk and clock.
//!
//! Owns: in which order things happen, and that the model hears of each. What a step leaves open is decided by the luck of
//! the step, so a run is a function of its plan.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use leveret_amqp::{BasicProperties, FieldTable, Method, ShortStr, Value};
use leveret_broker::connection::{Credentials, Written};
use leveret_broker::moment::Deadline;
use leveret_broker::node::presence::{Presence, Present};
use leveret_broker::node::{OpenError, Origin};
use leveret_broker::scratch::{Place, Segment, Spilled};
use leveret_broker::vhost::effects::Fetched;
use leveret_broker::vhost::{Progress, Sweep};
use leveret_broker::{Change, Connection, JournalPosition, Moment, Node, Settings};
use leveret_journal::ScratchReader;
use leveret_testkit::disk::SimDisk;
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

use crate::Passed;
use crate::arguments::{arguments, count_arguments};
use crate::hub::Hub;
use crate::link::{self, Heard, Link, Standing};
use crate::model::{Late, Message, TimedOut, Told, Violation, binding_headers, binding_key, body, headers};
use crate::plan::{
    Config, DEAD_QUEUES, ExchangeName, KEYS, Mode, ORDINARY_QUEUES, Op, PATTERNS, Plan, QUEUES, QueueSpec,
    Settling, Step, To,
};
use crate::stats::{Kind, Stats};
use crate::store::{Checkpointing, Store, Stuck};

/// Names of the virtual hosts.
pub(crate) const VHOSTS: [&str; 2] = ["/", "b"];
/// When it all begins, in seconds since 1970.
const BEGINNING: u64 = 1_790_000_000;
/// The same of the other clock.
const BEGINNING_MONOTONIC: Duration = Duration::from_secs(1);
/// More consumers than these a client does not start.
const CONSUMERS_MOST: usize = 5;

/// A broker was late, and in no order that is tried.
pub const UNEXPLAINED: &str = "late in no order that is tried";

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
            now: Moment { monotonic: BEGINNING_MONOTONIC, wall: Duration::from_secs(BEGINNING) },
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
        self.write_journal(true)?;
        self.hear_all()?;
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
        self.compare()
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
        self.wait(Duration::from_secs(1))?;
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
            self.say(client, &answer);
        }
        Ok(())
    }

    /// Whether a client can use a channel now. It connects and opens it if need be.
    fn has_channel(&mut self, client: u8, mode: Mode) -> Result<bool, Violation> {
        let at = usize::from(client);
        let hub = self.clients[at].hub;
        if self.clients[at].link.is_none() {
            let mut seed = [7; 32];
            seed[0] = client;
            let connection = Connection::new(Arc::clone(&self.settings), seed, self.now);
            self.clients[at].link = Some(Link::new(connection));
            self.say(client, &link::handshake(VHOSTS[hub]));
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

    // Steps.

    fn act(&mut self, op: &Op) -> Result<bool, Violation> {
        match *op {
            Op::Publish { client, mode, .. }
            | Op::Get { client, mode, .. }
            | Op::Consume { client, mode, .. }
            | Op::SettleUnknown { client, mode }
            | Op::Recover { client, mode }
            | Op::CloseChannel { client, mode } => {
                let client = client % self.config.clients;
                if !self.has_channel(client, mode)? {
                    return Ok(false);
                }
                self.act_on_channel(client, mode, op)
            }
            Op::Settle { client, mode, .. } => {
                // On that channel, or on another one that has something to settle.
                let client = client % self.config.clients;
                let Some(link) = &mut self.clients[usize::from(client)].link else { return Ok(false) };
                let others = Mode::ALL.into_iter().filter(|other| *other != mode);
                let mut all = [mode].into_iter().chain(others);
                let Some(mode) = all.find(|mode| !link.channel(*mode).unacked.is_empty()) else { return Ok(false) };
                if !self.has_channel(client, mode)? {
                    return Ok(false);
                }
                self.act_on_channel(client, mode, op)
            }
            Op::EndTransaction { client, commit } => {
                let client = client % self.config.clients;
                if !self.has_channel(client, Mode::Transaction)? {
                    return Ok(false);
                }
                let now_ms = self.now_ms();
                let hub = self.clients[usize::from(client)].hub;
                self.hubs[hub].model.begin_event();
                self.hubs[hub].model.end_transaction(now_ms, client, commit);
                let link = self.clients[usize::from(client)].link.as_mut();
                if let Some(channel) = link.map(|link| link.channel(Mode::Transaction)) {
                    let settled = std::mem::take(&mut channel.in_transaction);
                    if !commit {
                        channel.unacked.extend(settled);
                        channel.unacked.sort_unstable();
                    }
                }
                let method = if commit { Method::TxCommit {} } else { Method::TxRollback {} };
                self.tell(client, &link::method(Mode::Transaction, &method))
            }
            Op::Cancel { client, nth } => {
                let client = client % self.config.clients;
                let now_ms = self.now_ms();
                let hub = self.clients[usize::from(client)].hub;
                let Some((mode, tag)) = self.hubs[hub].model.nth_consumer(client, nth) else { return Ok(false) };
                if !self.has_channel(client, mode)? {
                    return Ok(false);
                }
                self.hubs[hub].model.begin_event();
                self.hubs[hub].model.cancel(now_ms, client, mode, tag);
                let tag = format!("c{tag}");
                let consumer_tag = ShortStr::truncated(&tag);
                self.tell(client, &link::method(mode, &Method::BasicCancel { consumer_tag, nowait: false }))
            }
            Op::DeclareQueue { client, queue }
            | Op::CountQueue { client, queue }
            | Op::DeleteQueue { client, queue, .. }
            | Op::PurgeQueue { client, queue } => {
                let (client, queue) = (client % self.config.clients, queue % QUEUES);
                if !self.has_channel(client, Mode::Plain)? {
                    return Ok(false);
                }
                self.act_on_queue(client, queue, op)
            }
            Op::DeclareExchange { client, exchange }
            | Op::DeleteExchange { client, exchange }
            | Op::BindQueue { client, exchange, .. }
            | Op::UnbindQueue { client, exchange, .. } => {
                let client = client % self.config.clients;
                if !self.has_channel(client, Mode::Plain)? {
                    return Ok(false);
                }
                self.act_on_exchange(client, exchange, op)
            }
            Op::Disconnect { client, politely } => self.disconnect(client % self.config.clients, politely),
            Op::Wait { ms } => {
                self.wait(Duration::from_millis(ms.into()))?;
                Ok(true)
            }
            Op::Jump { ms } => {
                self.jump(Duration::from_millis(ms.into()))?;
                Ok(true)
            }
            Op::SetClock { seconds } => Ok(self.set_clock(seconds)),
            Op::WriteJournal
            | Op::MarkJournal
            | Op::KeepSpares
            | Op::Checkpoint { .. }
            | Op::Restart
            | Op::Crash { .. }
            | Op::FailSync { .. }
            | Op::FillDisk { .. }
            | Op::EmptyDisk => self.act_on_store(op),
        }
    }

    fn act_on_channel(&mut self, client: u8, mode: Mode, op: &Op) -> Result<bool, Violation> {
        let (now_ms, hub) = (self.now_ms(), self.clients[usize::from(client)].hub);
        let config = Rc::clone(&self.config);
        let model = &mut self.hubs[hub].model;
        let Some(channel) = self.clients[usize::from(client)].link.as_mut().map(|link| link.channel(mode)) else {
            return Ok(false);
        };
        model.begin_event();
        match *op {
            Op::Publish {
                to, key, persistent, priority, expiration_ms, delay_ms, bytes, mandatory, more, ..
            } => {
                let delay_ms = delay_ms.filter(|_| to == To::Exchange(ExchangeName::Delayed));
                let bytes = usize::from(bytes).max(8);
                let queue_name;
                let routing_key = KEYS[usize::from(key) % KEYS.len()];
                let address = match to {
                    To::Queue(slot) => {
                        queue_name = format!("q{slot}");
                        ("", queue_name.as_str())
                    }
                    To::Exchange(exchange) => (exchange.name(), routing_key),
                    To::Nowhere => ("nowhere", ""),
                };
                let table = FieldTable::build(|table| {
                    if to == To::Exchange(ExchangeName::Headers) {
                        let [k, l] = headers(key);
                        table.field("k", Value::I32(k)).field("l", Value::I32(l));
                    }
                    if let Some(delay) = delay_ms {
                        table.field("x-delay", Value::I64(delay.into()));
                    }
                });
                let expiration = expiration_ms.map(|ms| ms.to_string());
                let properties = BasicProperties {
                    headers: Some(table.as_table()).filter(|table| !table.is_empty()),
                    delivery_mode: Some(if persistent { 2 } else { 1 }),
                    priority,
                    expiration: expiration.as_ref().map(String::as_bytes),
                    ..BasicProperties::default()
                };
                let spec = match to {
                    To::Queue(slot) => config.queues.get(usize::from(slot)),
                    To::Exchange(_) | To::Nowhere => None,
                };
                let more = if spec.is_some_and(|spec| spec.takes_all_at_once(persistent)) { more } else { 0 };
                if more > 0 {
                    self.stats.count(Kind::Operation, "publishes that arrive together");
                }
                let mut said = Vec::new();
                for _ in 0..=more {
                    self.next_message += 1;
                    let id = self.next_message;
                    let message = Message { id, bytes, persistent, priority, expiration_ms, delay_ms, key };
                    let hub = &mut self.hubs[hub];
                    hub.history.publish(id, to);
                    hub.model.publish(now_ms, (client, mode), message, to, mandatory);
                    said.extend(link::publish(mode, address, mandatory, properties, &body(id, bytes)));
                }
                self.tell(client, &said)
            }
            Op::Get { queue, no_ack, .. } => {
                let (slot, spec) = (queue % QUEUES, &config.queues[usize::from(queue % QUEUES)]);
                if !model.may_use(client, slot) || (spec.quorum && spec.single_active) {
                    return Ok(false);
                }
                model.get(now_ms, client, mode, slot, no_ack);
                let name = format!("q{slot}");
                let queue = ShortStr::truncated(&name);
                self.stats.count(Kind::Outcome, "got");
                self.tell(client, &link::method(mode, &Method::BasicGet { ticket: 0, queue, no_ack }))
            }
            Op::Consume { queue, no_ack, prefetch, .. } => {
                let slot = queue % QUEUES;
                let is_open = config.evict_percent > 0 && model.may_drop(slot);
                if is_open || !model.may_use(client, slot) || model.consumers_of(client) >= CONSUMERS_MOST {
                    return Ok(false);
                }
                let tag = format!("c{}", model.consume(client, mode, slot, no_ack, prefetch));
                self.stats.count(
                    Kind::Operation,
                    match prefetch {
                        0 => "prefetch 0",
                        1 => "prefetch 1",
                        _ => "prefetch of several",
                    },
                );
                let (name, text) = (format!("q{slot}"), ShortStr::truncated);
                let (queue, consumer_tag, ticket, arguments) = (text(&name), text(&tag), 0, link::NONE);
                let (no_local, exclusive, nowait) = (false, false, false);
                let qos = Method::BasicQos { prefetch_size: 0, prefetch_count: prefetch, global: false };
                let consume = Method::BasicConsume {
                    ticket,
                    queue,
                    consumer_tag,
                    no_local,
                    no_ack,
                    exclusive,
                    nowait,
                    arguments,
                };
                self.tell(client, &[link::method(mode, &qos), link::method(mode, &consume)].concat())
            }
            Op::Settle { nth, multiple, settling, .. } => {
                if channel.unacked.is_empty() || channel.void_for > 0 {
                    return Ok(false);
                }
                let at = usize::from(nth) % channel.unacked.len();
                let tag = channel.unacked[at];
                let settled: Vec<u64> = if multiple {
                    channel.unacked.drain(..=at).collect()
                } else {
                    vec![channel.unacked.remove(at)]
                };
                // What was taken back from it meanwhile it settles to no effect.
                let held: Vec<u64> =
                    settled.iter().copied().filter(|tag| model.holds(client, mode, *tag)).collect();
                self.stats.count_many(Kind::Outcome, "settled too late", (settled.len() - held.len()) as u64);
                if mode == Mode::Transaction {
                    channel.in_transaction.extend(&held);
                }
                let answers = channel.told.iter().filter(|told| matches!(told, Told::Answer { .. })).count();
                let is_final = mode != Mode::Transaction && settling == Settling::Ack;
                for &tag in held.iter().filter(|_| is_final) {
                    let event = self.hubs[hub].model.events;
                    self.hubs[hub].history.ack((client, mode, tag), answers, event);
                }
                self.hubs[hub].model.settle(now_ms, (client, mode), tag, multiple, settling);
                let method = match settling {
                    Settling::Ack => Method::BasicAck { delivery_tag: tag, multiple },
                    Settling::Nack => Method::BasicNack { delivery_tag: tag, multiple, requeue: false },
                    Settling::NackRequeue => Method::BasicNack { delivery_tag: tag, multiple, requeue: true },
                    Settling::Reject => Method::BasicReject { delivery_tag: tag, requeue: false },
                    Settling::RejectRequeue => Method::BasicReject { delivery_tag: tag, requeue: true },
                };
                self.tell(client, &link::method(mode, &method))
            }
            Op::SettleUnknown { .. } => {
                model.fail_channel(now_ms, client, mode);
                let ack = Method::BasicAck { delivery_tag: u64::MAX, multiple: false };
                self.tell(client, &link::method(mode, &ack))
            }
            Op::Recover { .. } => {
                let answers = channel.told.iter().filter(|told| matches!(told, Told::Answer { .. })).count();
                channel.void_for = answers + 1;
                model.recover(now_ms, client, mode);
                self.tell(client, &link::method(mode, &Method::BasicRecover { requeue: true }))
            }
            Op::CloseChannel { .. } => {
                channel.standing = Standing::Closing;
                self.hubs[hub].history.close(client, mode);
                let model = &mut self.hubs[hub].model;
                model.close_channel(now_ms, client, mode);
                let reply_text = ShortStr::truncated("");
                let close = Method::ChannelClose { reply_code: 200, reply_text, class_id: 0, method_id: 0 };
                self.tell(client, &link::method(mode, &close))
            }
            _ => Ok(false),
        }
    }

    fn act_on_queue(&mut self, client: u8, slot: u8, op: &Op) -> Result<bool, Violation> {
        let (now_ms, hub) = (self.now_ms(), self.clients[usize::from(client)].hub);
        let config = Rc::clone(&self.config);
        let spec = &config.queues[usize::from(slot)];
        let model = &mut self.hubs[hub].model;
        let name = format!("q{slot}");
        let (queue, ticket, nowait) = (ShortStr::truncated(&name), 0, false);
        let is_there = model.has_queue(slot);
        if is_there && !model.may_use(client, slot) {
            return Ok(false);
        }
        model.begin_event();
        match *op {
            Op::DeclareQueue { .. } | Op::CountQueue { .. } => {
                let passive = matches!(op, Op::CountQueue { .. });
                if passive && !is_there {
                    model.fail_channel(now_ms, client, Mode::Plain);
                } else {
                    model.declare_queue(now_ms, client, slot);
                }
                if !is_there && !passive {
                    count_arguments(&mut self.stats, spec);
                }
                let arguments = arguments(spec);
                let arguments = arguments.as_table();
                let &QueueSpec { durable, exclusive, auto_delete, .. } = spec;
                let declare = Method::QueueDeclare {
                    ticket,
                    queue,
                    passive,
                    durable,
                    exclusive,
                    auto_delete,
                    nowait,
                    arguments,
                };
                self.tell(client, &link::method(Mode::Plain, &declare))
            }
            Op::DeleteQueue { if_empty, if_unused, .. } => {
                if !is_there {
                    return Ok(false);
                }
                model.delete_queue(now_ms, client, slot, if_empty, if_unused);
                let delete = Method::QueueDelete { ticket, queue, if_unused, if_empty, nowait };
                self.tell(client, &link::method(Mode::Plain, &delete))
            }
            Op::PurgeQueue { .. } => {
                if !is_there {
                    return Ok(false);
                }
                model.purge_queue(client, slot);
                self.tell(client, &link::method(Mode::Plain, &Method::QueuePurge { ticket, queue, nowait }))
            }
            _ => Ok(false),
        }
    }

    fn act_on_exchange(&mut self, client: u8, exchange: ExchangeName, op: &Op) -> Result<bool, Violation> {
        let hub = self.clients[usize::from(client)].hub;
        let (durable, alternate, delayed_direct) =
            (self.config.durable_exchanges, self.config.alternate, self.config.delayed_direct);
        let model = &mut self.hubs[hub].model;
        let (ticket, nowait, text) = (0, false, ShortStr::truncated);
        model.begin_event();
        match *op {
            Op::DeclareExchange { .. } => {
                let type_ = match exchange {
                    ExchangeName::Direct => "direct",
                    ExchangeName::Fanout | ExchangeName::Dead => "fanout",
                    ExchangeName::Topic => "topic",
                    ExchangeName::Headers => "headers",
                    ExchangeName::Delayed => "x-delayed-message",
                };
                let arguments = FieldTable::build(|table| {
                    if exchange == ExchangeName::Delayed {
                        let inner: &[u8] = if delayed_direct { b"direct" } else { b"fanout" };
                        table.field("x-delayed-type", Value::LongStr(inner));
                    }
                    if exchange == ExchangeName::Direct && alternate {
                        let fanout = ExchangeName::Fanout.name().as_bytes();
                        table.field("alternate-exchange", Value::LongStr(fanout));
                    }
                });
                model.declare_exchange(client, exchange);
                let declare = Method::ExchangeDeclare {
                    ticket,
                    exchange: text(exchange.name()),
                    type_: text(type_),
                    passive: false,
                    durable,
                    auto_delete: false,
                    internal: false,
                    nowait,
                    arguments: arguments.as_table(),
                };
                self.tell(client, &link::method(Mode::Plain, &declare))
            }
            Op::DeleteExchange { .. } => {
                model.delete_exchange(client, exchange);
                let exchange = text(exchange.name());
                let delete = Method::ExchangeDelete { ticket, exchange, if_unused: false, nowait };
                self.tell(client, &link::method(Mode::Plain, &delete))
            }
            Op::BindQueue { queue, key, .. } | Op::UnbindQueue { queue, key, .. } => {
                // Dead letters have queues of their own.
                let slot = match exchange {
                    ExchangeName::Dead => ORDINARY_QUEUES + queue % DEAD_QUEUES,
                    _ => queue % ORDINARY_QUEUES,
                };
                if !model.has_exchange(exchange) || !model.may_use(client, slot) {
                    return Ok(false);
                }
                let key = binding_key(exchange, key);
                let arguments = FieldTable::build(|table| {
                    if exchange == ExchangeName::Headers {
                        let (any, [k, l]) = binding_headers(key);
                        let how: &[u8] = if any { b"any" } else { b"all" };
                        table.field("x-match", Value::LongStr(how));
                        table.field("k", Value::I32(k)).field("l", Value::I32(l));
                    }
                });
                let arguments = arguments.as_table();
                let (name, exchange_name) = (format!("q{slot}"), exchange);
                let routing_key = match exchange {
                    ExchangeName::Topic => PATTERNS[usize::from(key)],
                    ExchangeName::Headers => "",
                    _ => KEYS[usize::from(key)],
                };
                let (queue, exchange, routing_key) = (text(&name), text(exchange.name()), text(routing_key));
                let bytes = if matches!(op, Op::BindQueue { .. }) {
                    model.bind(client, exchange_name, slot, key);
                    link::method(
                        Mode::Plain,
                        &Method::QueueBind { ticket, queue, exchange, routing_key, nowait, arguments },
                    )
                } else {
                    model.unbind(client, exchange_name, slot, key);
                    link::method(
                        Mode::Plain,
                        &Method::QueueUnbind { ticket, queue, exchange, routing_key, arguments },
                    )
                };
                self.tell(client, &bytes)
            }
            _ => Ok(false),
        }
    }

    fn disconnect(&mut self, client: u8, politely: bool) -> Result<bool, Violation> {
        let (now_ms, at) = (self.now_ms(), usize::from(client));
        let hub = self.clients[at].hub;
        let Some(link) = self.clients[at].link.as_mut().filter(|link| !link.is_closing) else { return Ok(false) };
        self.hubs[hub].history.leave(client);
        if politely {
            link.is_closing = true;
            let mut close = Vec::new();
            let reply_text = ShortStr::truncated("");
            let method = Method::ConnectionClose { reply_code: 200, reply_text, class_id: 0, method_id: 0 };
            leveret_amqp::frame::write_method(&mut close, 0, &method);
            self.say(client, &close);
        } else {
            link.connection.handle_end();
        }
        self.hubs[hub].model.begin_event();
        self.hubs[hub].model.disconnect(now_ms, client);
        self.pump(hub)?;
        self.hubs[hub].said.remove(&client);
        self.conclude(hub)?;
        if !politely {
            self.clients[at].link = None;
            self.hubs[hub].connections.retain(|(_, of)| *of != client);
        }
        Ok(true)
    }

    /// The broker closes all connections, one after the other.
    pub(crate) fn disconnect_all(&mut self) -> Result<(), Violation> {
        for client in 0..self.config.clients {
            let (now_ms, at) = (self.now_ms(), usize::from(client));
            let hub = self.clients[at].hub;
            let Some(link) = &mut self.clients[at].link else { continue };
            link.connection.handle_shutdown(self.now, "shutdown", &mut link.unsent);
            self.hubs[hub].model.begin_event();
            self.hubs[hub].model.dismiss(now_ms, client);
            self.pump(hub)?;
            self.hubs[hub].said.remove(&client);
            self.conclude(hub)?;
            self.clients[at].link = None;
            self.hubs[hub].connections.retain(|(_, of)| *of != client);
        }
        Ok(())
    }

    /// Everybody is gone, and nobody has said anything.
    pub(crate) fn drop_all(&mut self) {
        for client in &mut self.clients {
            client.link = None;
        }
    }

    fn next_timeout(&self) -> Option<Deadline> {
        let links = self.clients.iter().filter_map(|client| client.link.as_ref()?.connection.next_timeout());
        links.chain(self.hubs.iter().filter_map(|hub| hub.vhost.next_timeout())).min()
    }

    /// Time passes, and what is due is done on time.
    pub(crate) fn wait(&mut self, time: Duration) -> Result<(), Violation> {
        let end = self.now.monotonic + time;
        while let Some(due) = self.next_timeout().filter(|due| due.0 <= end) {
            self.pass(due.0.saturating_sub(self.now.monotonic));
            let now = self.now;
            for client in &mut self.clients {
                if let Some(link) = &mut client.link {
                    link.connection.handle_timeout(now, &mut link.unsent);
                }
            }
            for hub in 0..self.hubs.len() {
                self.hubs[hub].model.begin_event();
                if self.hubs[hub].vhost.next_timeout().is_some_and(|due| now.has_reached(due)) {
                    self.hubs[hub].time_out(now, &mut self.clients);
                    self.time_out_model(hub);
                }
                self.conclude(hub)?;
            }
        }
        self.pass(end.saturating_sub(self.now.monotonic));
        for hub in 0..self.hubs.len() {
            self.hubs[hub].model.begin_event();
            self.time_out_model(hub);
            self.conclude(hub)?;
        }
        Ok(())
    }

    /// The model takes back what was held for too long, as the broker must have.
    fn time_out_model(&mut self, hub: usize) {
        let now_ms = self.now_ms();
        let TimedOut { consumers, channels } = self.hubs[hub].model.time_out(now_ms);
        self.stats.count_many(Kind::Outcome, "consumer timed out", consumers);
        self.stats.count_many(Kind::Outcome, "channel timed out", channels);
    }

    /// Time jumps over everything that is due meanwhile; then all of it is done, as late as it is.
    fn jump(&mut self, time: Duration) -> Result<(), Violation> {
        self.pass(time);
        let now = self.now;
        for client in &mut self.clients {
            if let Some(link) = &mut client.link {
                link.connection.handle_timeout(now, &mut link.unsent);
            }
        }
        for hub in 0..self.hubs.len() {
            self.hubs[hub].model.begin_event();
            self.catch_up(hub)?;
            self.time_out_model(hub);
            self.conclude_as(hub, OnTime::No)?;
        }
        if self.is_unclear { Ok(()) } else { self.wait(Duration::ZERO) }
    }

    /// Does all that is due in a virtual host by now.
    pub(crate) fn catch_up(&mut self, hub: usize) -> Result<(), Violation> {
        let now = self.now;
        while self.hubs[hub].vhost.next_timeout().is_some_and(|due| now.has_reached(due)) {
            self.hubs[hub].time_out(now, &mut self.clients);
            self.pump(hub)?;
        }
        Ok(())
    }

    /// Sets the wall clock; false where a start to come could tell, by what it finds of times to live: how long these last then
    /// depends on when they were written down.
    fn set_clock(&mut self, seconds: i64) -> bool {
        let durable = self.config.durable_exchanges;
        let is_kept = |hub: &Hub| {
            let snapshots = hub.marks.iter().flat_map(|(_, snapshots)| snapshots);
            snapshots.chain([&hub.latest]).any(|snapshot| snapshot.has_kept_deadlines(durable))
        };
        if self.hubs.iter().any(is_kept) {
            return false;
        }
        let wall = self.now.monotonic.saturating_sub(BEGINNING_MONOTONIC)
            + Duration::from_secs(BEGINNING.saturating_add_signed(seconds));
        self.now = Moment { wall, ..self.now };
        true
    }

    pub(crate) fn pass(&mut self, time: Duration) {
        self.now = Moment { monotonic: self.now.monotonic + time, wall: self.now.wall + time };
    }

    // Bodies.

    /// Reads bodies back that were asked for; true if there were any.
    fn fetch(&mut self, hub: usize) -> Result<bool, Violation> {
        let (now, Some(store)) = (self.now, &mut self.store) else { return Ok(false) };
        let Hub { vhost, effects, fetches, stream, .. } = &mut self.hubs[hub];
        if fetches.is_empty() {
            return Ok(false);
        }
        let mut fetched = Vec::new();
        for fetch in fetches.drain(..) {
            let message = store.read(*stream, &fetch);
            // A scratch file that nobody needs any more is not there.
            if let (Err(fault), None) = (&message, fetch.id.place()) {
                return Err(format!("a body cannot be read back: {fault}"));
            }
            self.stats.count(Kind::Fault, "body read back");
            fetched.push(Fetched { fetch, message: message.ok() });
        }
        let progress = vhost.handle_fetched(now, &mut fetched, effects);
        self.hubs[hub].hand_on(now, progress, &mut self.clients);
        Ok(true)
    }

    /// Some bodies leave memory.
    fn evict(&mut self) -> Result<(), Violation> {
        for at in 0..self.hubs.len() {
            let (luck, stats) = (&mut self.luck, &mut self.stats);
            let percent = self.config.evict_percent.max(30);
            let hub = &mut self.hubs[at];
            let durable = hub.durable;
            let (mut sweep, mut spills) = (Sweep::default(), Vec::new());
            let mut may_go = |position: Option<JournalPosition>, _: &_| {
                let goes = luck.random_range(0..100) < percent && position.is_none_or(|at| at.0 <= durable);
                if goes {
                    stats.count(Kind::Fault, "body evicted");
                }
                goes
            };
            while hub.vhost.evict(&mut sweep, 0, &mut may_go, &mut spills) {}
            let mut spilled = Vec::new();
            for spill in spills {
                let number = hub.scratch.begin().map_err(|error| error.to_string())?;
                let segment = match hub.segment.take().filter(|segment| segment.number() == number) {
                    Some(segment) => segment,
                    None => Segment::new(number),
                };
                hub.segment = Some(segment.clone());
                let change =
                    Change::MessageEnqueued { message: spill.message.clone(), queues: [].into_iter().collect() };
                let offset = hub.scratch.add(|out| change.encode(out));
                hub.scratch.write().map_err(|error| error.to_string())?;
                spilled.push(Spilled { spill, place: Some((segment, Place { segment: number, offset })) });
                if self.luck.random_bool(0.2) {
                    hub.scratch.finish();
                    hub.segment = None;
                }
            }
            hub.vhost.handle_spilled(&mut spilled);
            for number in hub.vhost.take_unneeded_segments() {
                hub.scratch.remove(number).map_err(|error| format!("a scratch file cannot be removed: {error}"))?;
            }
            hub.hand_on(self.now, Progress::Done, &mut self.clients);
            self.conclude(at)?;
        }
        Ok(())
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
