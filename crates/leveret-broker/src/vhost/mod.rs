//! One virtual host: exchanges, bindings, queues, consumers and unacked messages as one state machine.
//!
//! Owns: everything that clients of this virtual host share. Whoever drives it holds one lock around it.
//! Must not know: frames, sockets, files, clocks.
//!
//! A batch runs until its commands are done or [`UNITS_PER_HOLD`] units of work are; what is left stays, and the
//! driver calls again after others had a turn. A command that puts many messages back takes effect at one instant
//! all the same: while it is being worked off, no other command is begun. One that settles many holds up its own
//! connection only.

pub mod apply;
pub mod binding;
pub mod checkpoint;
pub mod command;
mod dead_letter;
pub(crate) mod delay;
mod deliver;
pub mod effects;
mod evict;
pub(crate) mod exchange;
mod expiry;
pub mod explain;
#[cfg(test)]
pub(crate) mod fixtures;
pub mod ledger;
mod overflow;
pub mod policy;
mod publish;
mod publish_row;
pub(crate) mod queue;
pub mod refusal;
pub(crate) mod replies;
pub mod room;
mod route;
mod search;
mod session;
mod settle;
mod timeout;
mod topology;
mod transaction;
mod tries;
pub mod views;
mod work;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use foldhash::fast::FixedState;
use hashbrown::HashMap;
use leveret_amqp::{ReplyCode, ShortString};
use leveret_planted::{Bug, planted};
use rand::rngs::StdRng;
use rand::{RngCore, SeedableRng};
use slotmap::SlotMap;

use self::checkpoint::Restating;
use self::command::{Command, Commands, Farewell, Settlement, Wait};
use self::effects::{Answer, Effects, FetchFor, Fetched, Output, Window};
pub use self::evict::Sweep;
use self::exchange::{Exchanges, MatchScratch};
use self::ledger::{Ceilings, Holdings, Ledger};
use self::policy::{Policies, PolicySweep};
use self::queue::{Detached, Queue, Turn};
use self::refusal::Refusal;
use self::room::Room;
use self::route::RouteMemory;
use self::search::Searching;
use self::session::Session;
use self::work::Work;
use crate::access::{Allowed, Grant, Login};
use crate::change::{Change, JournalPosition, QueueNumber};
use crate::connection::reply::Exception;
use crate::limits::{READ_AHEAD_BYTES, UNITS_PER_FREED_PAGE, UNITS_PER_HOLD, WINDOW_BYTES_MAX};
use crate::memory::Meter;
use crate::moment::{Deadline, Moment};
use crate::names::{ChannelId, QueueName, UserName, VhostName};
use crate::node::{DefaultQueueType, OpenError, Vhost, VhostLimits};
use crate::scratch::Segments;

slotmap::new_key_type! {
    /// Names a connection in its virtual host; never given twice.
    pub struct ConnectionId;
    /// Names a queue in its virtual host; never given twice.
    pub(crate) struct QueueId;
}

/// Whether there are exchanges of a type, as clients call it.
pub fn knows_exchange_type(name: &str) -> bool {
    name == delay::DELAYED || exchange::ExchangeKind::parse(name).is_some()
}

/// Whether the driver has to call again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum Progress {
    /// All is done that can be done now.
    Done,
    /// Work is left: call again, after others had a turn at the lock.
    More,
}

/// What happens by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Timer {
    /// Messages of a queue expire, or the queue itself.
    Queue(QueueId),
    /// A channel may hold a delivery for too long.
    Channel(ConnectionId, ChannelId),
}

/// One virtual host.
#[derive(Debug)]
pub struct VirtualHost {
    name: VhostName,
    /// A piece of work is being done: nobody is handed anything meanwhile.
    is_working: bool,
    sessions: SlotMap<ConnectionId, Session>,
    queues: SlotMap<QueueId, Queue>,
    queue_names: HashMap<QueueName, QueueId, FixedState>,
    /// By the number that changes call them by.
    durable_queues: BTreeMap<QueueNumber, QueueId>,
    /// The others, in the order in which they were declared.
    transient_queues: BTreeMap<QueueNumber, QueueId>,
    exchanges: Exchanges,
    policies: Policies,
    /// What there is to be done until they are in force for all that they match.
    policy_sweep: Option<PolicySweep>,
    /// Routing keys that reach a channel without a queue.
    reply_keys: HashMap<ShortString, (ConnectionId, ChannelId), FixedState>,
    /// Changes whenever a message may take another way through an exchange.
    bindings_version: u64,
    match_scratch: MatchScratch,
    /// Publishes whose queues are not found yet.
    searching: Searching,
    /// Where bodies are of which no journal knows and that are not in memory.
    segments: Segments,
    last_queue_number: u64,
    /// How many changes were emitted: the position of the last one.
    position: JournalPosition,
    /// Where the last checkpoint begins that recovery has read as a whole.
    checkpoint: Option<JournalPosition>,
    /// The checkpoint that recovery reads.
    restating: Option<Restating>,
    /// The last change that declared, bound, deleted or purged something.
    topology: JournalPosition,
    /// What commands have begun. It comes before everything else.
    work: VecDeque<Work>,
    /// Connections that have begun something of their own: it comes before their next commands, and not before those of others.
    begun: VecDeque<ConnectionId>,
    /// Queues that may have something to deliver or expire, before the next command begins.
    runnable: VecDeque<QueueId>,
    /// Those that had more to do than could be done then: commands go on in between.
    behind: VecDeque<QueueId>,
    /// What nobody can see any more.
    detached: Vec<Detached>,
    timers: BTreeSet<(Deadline, Timer)>,
    /// How long a delivery may be held, unless its queue or its consumer says.
    consumer_timeout: Option<Duration>,
    /// How much there may be here.
    limits: VhostLimits,
    /// The type of a queue whose declaration does not say.
    default_queue_type: DefaultQueueType,
    /// What its queues and transactions hold in memory.
    memory: Meter,
    /// What it holds for clients.
    ledger: Ledger,
    /// Bytes that may still be handed to connections, all together.
    window_room: usize,
    /// Bytes of messages that may still go on from queues to others before the journal has written some.
    departure_room: usize,
    /// Connections that are to say at once what they have written.
    asked: Vec<ConnectionId>,
    /// Bytes of messages that are fetched at once for a queue.
    read_ahead: usize,
    /// Whether publishers have to wait.
    room: Room,
    /// Units of work left in this hold of the lock.
    units: u32,
    /// Units of it that the queue that goes on now leaves to others.
    units_for_others: u32,
    random: StdRng,
}

impl VirtualHost {
    /// An empty virtual host. `seed` decides the names it makes up and the layout of its hash tables; a server
    /// takes it from the operating system.
    pub fn new(name: VhostName, seed: [u8; 32]) -> Self {
        let mut random = StdRng::from_seed(seed);
        let hash_seed = random.next_u64();
        let memory = Meter::default();
        let ledger = Ledger::new(&memory);
        VirtualHost {
            name,
            is_working: false,
            sessions: SlotMap::with_key(),
            queues: SlotMap::with_key(),
            queue_names: HashMap::with_hasher(FixedState::with_seed(hash_seed)),
            durable_queues: BTreeMap::new(),
            transient_queues: BTreeMap::new(),
            exchanges: Exchanges::new(hash_seed, memory.clone(), ledger.declaration()),
            policies: Policies::default(),
            policy_sweep: None,
            reply_keys: HashMap::with_hasher(FixedState::with_seed(hash_seed)),
            bindings_version: 0,
            match_scratch: MatchScratch::default(),
            searching: Searching::new(),
            segments: Segments::default(),
            last_queue_number: 0,
            position: JournalPosition::default(),
            checkpoint: None,
            restating: None,
            topology: JournalPosition::default(),
            work: VecDeque::new(),
            begun: VecDeque::new(),
            runnable: VecDeque::new(),
            behind: VecDeque::new(),
            detached: Vec::new(),
            timers: BTreeSet::new(),
            consumer_timeout: None,
            limits: VhostLimits::default(),
            default_queue_type: DefaultQueueType::default(),
            memory,
            ledger,
            window_room: usize::MAX,
            departure_room: usize::MAX,
            asked: Vec::new(),
            read_ahead: READ_AHEAD_BYTES,
            room: Room::default(),
            units: 0,
            units_for_others: 0,
            random,
        }
    }

    /// Its name.
    pub fn name(&self) -> &VhostName {
        &self.name
    }

    /// Whoever recovers it may learn its name last.
    pub(crate) fn set_name(&mut self, name: VhostName) {
        self.name = name;
    }

    /// Takes in a connection that has logged in, unless there are as many as there may be. It stays until
    /// [`Command::Disconnect`].
    pub fn connect(&mut self, login: Login) -> Result<ConnectionId, OpenError> {
        let clients = || self.sessions.values().filter(|session| !session.is_administrator).count() as u64;
        match self.limits.max_connections {
            Some(limit) if clients() >= limit => Err(OpenError::VhostFull(limit)),
            Some(_) | None => Ok(self.sessions.insert(Session::new(login, self.ledger.part()))),
        }
    }

    /// Whether a connection holds deliveries, which go back when it goes. `None` if it has gone.
    pub fn has_unacked(&self, connection: ConnectionId) -> Option<bool> {
        let channels = self.sessions.get(connection)?.channel_slots();
        Some(channels.iter().flatten().any(|channel| !channel.unacked.is_empty()))
    }

    /// Takes in an administrator, who may do everything, also give names that are the broker's. They stay until
    /// [`Command::Disconnect`].
    pub fn connect_administrator(&mut self) -> ConnectionId {
        let mut session = Session::new(Login::administrator(), self.ledger.part());
        session.is_administrator = true;
        self.sessions.insert(session)
    }

    /// From now on it is as the node says.
    pub fn follow(&mut self, vhost: &Vhost) {
        (self.limits, self.default_queue_type) = (vhost.limits, vhost.metadata.default_queue_type);
    }

    /// From now on a user may do this here. It goes for the next operation of each of their connections.
    pub fn set_grant(&mut self, user: &UserName, grant: &Arc<Grant>) {
        // An administrator may be called as a user is.
        let is_theirs = |session: &Session| !session.is_administrator && session.login.user == *user;
        for (id, session) in self.sessions.iter_mut().filter(|(_, session)| is_theirs(session)) {
            session.login.grant = Arc::clone(grant);
            if !planted(Bug::PermissionsRemembered) {
                session.allowed = Allowed::default();
                session.routes = RouteMemory::default();
            }
            // What was allowed before goes on, and its way is not remembered.
            if let Some(unfinished) = self.searching.get_mut(&id) {
                unfinished.search.by_key = false;
            }
        }
    }

    /// Does a bounded amount of work; what is left stays in `commands` and in the virtual host.
    pub fn handle_batch(
        &mut self,
        now: Moment,
        from: ConnectionId,
        commands: &mut Commands,
        effects: &mut Effects,
    ) -> Progress {
        self.units = UNITS_PER_HOLD;
        let was_behind = !self.behind.is_empty() || self.policy_sweep.is_some();
        while self.continue_work(now, Some(from), effects) {
            if !self.searching.is_empty() {
                self.go_on_searching(now, from, effects);
                if self.searching.contains_key(&from) || self.waits_for_search(commands) {
                    break;
                }
            }
            if self.must_wait(from, commands, effects) {
                break;
            }
            if self.publish_row(from, commands, effects) {
                continue;
            }
            let Some(command) = commands.take() else { break };
            self.units = self.units.saturating_sub(1);
            self.execute(now, from, command, effects);
        }
        if !was_behind {
            self.run_behind(now, effects);
        }
        self.free_detached();
        self.end_hold(effects);
        let is_searching = self.searching.contains_key(&from);
        let is_left = !commands.is_empty() || is_searching || self.has_work() || self.has_begun(from);
        if self.units == 0 && is_left { Progress::More } else { Progress::Done }
    }

    /// Whether the next command of a connection may not be begun: a body is being fetched for its last one, or it has
    /// more answers to read than it may, or it publishes and there is no room. A client that is gone reads nothing, and
    /// waits for nothing.
    fn must_wait(&mut self, from: ConnectionId, commands: &Commands, effects: &mut Effects) -> bool {
        let window_max = self.window_max();
        let Some(session) = self.sessions.get_mut(from) else { return false };
        let is_written = matches!(commands.queue.front(), Some(Command::Written(_)));
        if !commands.end_in_silence() {
            let is_unread = session.is_answer_window_full(window_max) && !is_written;
            if is_unread && session.must_ask() {
                self.asked.push(from);
            }
            return session.getting.is_some() || is_unread || self.waits_for_room(from, commands, effects);
        }
        if let Some(getting) = session.getting.take() {
            self.abandon_get(getting);
        }
        false
    }

    /// Goes on with what waited for these bodies.
    pub fn handle_fetched(&mut self, now: Moment, bodies: &mut Vec<Fetched>, effects: &mut Effects) -> Progress {
        self.units = UNITS_PER_HOLD;
        let mut lost = Vec::new();
        for Fetched { fetch, message } in bodies.drain(..) {
            match fetch.purpose {
                FetchFor::Queue(queue_id, position) => {
                    let Some(queue) = self.queues.get_mut(queue_id) else { continue };
                    match message {
                        Some(message) => queue.restore(position, message),
                        None if fetch.id.place().is_some() => queue.lose(position),
                        None => lost.push((queue_id, position)),
                    }
                    self.mark_runnable(queue_id);
                }
                FetchFor::Get(connection) => {
                    let session = self.sessions.get_mut(connection);
                    if let Some(getting) = session.and_then(|session| session.getting.take()) {
                        match message {
                            // A timeout may have closed the channel meanwhile: nothing may follow on it.
                            _ if !self.channel_is_open(connection, getting.channel) => self.abandon_get(getting),
                            Some(message) => self.finish_get(now, connection, getting, message, effects),
                            None => self.fail_get(now, connection, &getting, effects),
                        }
                    }
                }
            }
        }
        // In the order of their queue, not of the journal: each makes the next one the head.
        lost.sort_unstable_by_key(|&(_, position)| position);
        for (queue_id, position) in lost {
            if let Some(queue) = self.queues.get_mut(queue_id) {
                queue.set_aside(position);
            }
        }
        self.go_on(now, effects)
    }

    /// Goes on with work that a batch left, when no command is at hand.
    pub fn go_on(&mut self, now: Moment, effects: &mut Effects) -> Progress {
        self.units = UNITS_PER_HOLD;
        self.continue_work(now, None, effects);
        while self.units > 0
            && self.work.is_empty()
            && let Some(&from) = self.begun.front()
        {
            self.work_off_begun(now, from, effects);
        }
        self.run_behind(now, effects);
        self.free_detached();
        self.end_hold(effects);
        if self.has_work() || self.is_behind() { Progress::More } else { Progress::Done }
    }

    /// Does what is due.
    pub fn handle_timeout(&mut self, now: Moment, effects: &mut Effects) -> Progress {
        self.units = UNITS_PER_HOLD;
        while self.units > 0
            && let Some(&(deadline, timer)) = self.timers.first()
            && now.has_reached(deadline)
        {
            self.units -= 1;
            self.timers.pop_first();
            let queue_id = match timer {
                Timer::Queue(id) => id,
                Timer::Channel(connection, channel) => {
                    // Behind what was begun: an ack of many may be half done.
                    self.work.push_back(Work::TimeOut(connection, channel));
                    continue;
                }
            };
            let Some(queue) = self.queues.get_mut(queue_id) else { continue };
            queue.timer = None;
            if queue.expires_at().is_some_and(|deadline| now.has_reached(deadline)) {
                self.delete_queue(queue_id, effects);
            } else {
                self.mark_behind(queue_id);
            }
        }
        self.go_on(now, effects)
    }

    /// When [`Self::handle_timeout`] has something to do.
    #[must_use]
    pub fn next_timeout(&self) -> Option<Deadline> {
        if !self.behind.is_empty() || self.policy_sweep.is_some() {
            return Some(Deadline(Duration::ZERO));
        }
        self.timers.first().map(|&(deadline, _)| deadline)
    }

    /// Whether there is something left to do between commands.
    pub fn is_behind(&self) -> bool {
        !self.behind.is_empty() || !self.begun.is_empty() || self.policy_sweep.is_some()
    }

    fn end_hold(&mut self, effects: &mut Effects) {
        debug_assert!(self.units <= UNITS_PER_HOLD, "more is left than there was");
        for connection in self.asked.drain(..) {
            effects.push(connection, Output::TellWritten);
        }
        effects.changes_go_on = self.work.iter().any(Work::is_atomic);
    }

    fn has_work(&self) -> bool {
        !self.work.is_empty() || !self.runnable.is_empty() || !self.detached.is_empty()
    }

    /// What its queues and transactions hold in memory. To be read without the lock, too.
    pub fn memory(&self) -> Meter {
        self.memory.clone()
    }

    /// What it holds for clients.
    pub fn holdings(&self) -> Holdings {
        self.ledger.holdings()
    }

    /// How much that may be. Without that, there is no bound.
    pub fn set_ceilings(&mut self, ceilings: Ceilings) {
        self.ledger.ceilings = ceilings;
    }

    /// Bytes of messages that connections may be handed now, all together, before those that they have are written. The less
    /// there is, the less one of them may have, so that something is left for those who have nothing; and each may have one
    /// message in any case.
    pub fn set_window_room(&mut self, bytes: usize) {
        self.window_room = bytes;
    }

    /// Bytes of messages that may go on now from their queues to others, as dead letters or after a delay, where the journal is to
    /// have them. Without room they wait where they are, on disk: millions may be due at once, and all that is not written is
    /// in memory.
    pub fn set_departure_room(&mut self, bytes: usize) {
        self.departure_room = bytes;
    }

    /// Bytes of messages that a connection may have at this moment before it must have written some.
    fn window_max(&self) -> usize {
        self.window_room.min(WINDOW_BYTES_MAX)
    }

    /// Bytes that are fetched at once for a queue whose bodies are not in memory: fewer where many queues share little
    /// memory.
    pub fn set_read_ahead(&mut self, bytes: usize) {
        self.read_ahead = bytes;
    }

    /// How many queues there are.
    pub fn queue_count(&self) -> usize {
        self.queues.len()
    }

    /// Finishes what was begun, by this connection and for all; true when a command of it may be.
    fn continue_work(&mut self, now: Moment, from: Option<ConnectionId>, effects: &mut Effects) -> bool {
        self.work_off(now, effects);
        if let Some(from) = from {
            self.work_off_begun(now, from, effects);
        }
        while self.units > 0 && self.work.is_empty() {
            let Some(id) = self.runnable.pop_front() else { return true };
            if self.queues.get(id).is_some_and(|queue| queue.turn == Turn::Soon) {
                self.run_queue(now, id, effects);
            }
        }
        false
    }

    /// Lets policies take effect, and queues go on that have much to do, each for a while, as far as this hold of the lock
    /// allows.
    fn run_behind(&mut self, now: Moment, effects: &mut Effects) {
        if self.work.is_empty() {
            self.sweep_policies(now);
        }
        while self.units > 0
            && self.work.is_empty()
            && let Some(id) = self.behind.pop_front()
        {
            self.run_queue(now, id, effects);
        }
    }

    /// So many units of this hold are used up, at most all that are left.
    fn spend(&mut self, units: usize) {
        let units = u32::try_from(units).unwrap_or(u32::MAX);
        let beyond = units.saturating_sub(self.units);
        self.units = self.units.saturating_sub(units);
        self.units_for_others = self.units_for_others.saturating_sub(beyond);
    }

    fn free_detached(&mut self) {
        while self.units > 0 {
            let Some(last) = self.detached.last_mut() else { break };
            if !last.free_page() {
                self.detached.pop();
            }
            self.units = self.units.saturating_sub(UNITS_PER_FREED_PAGE);
        }
    }

    fn execute(&mut self, now: Moment, from: ConnectionId, command: Command, effects: &mut Effects) {
        let method = command.method();
        let (channel, result) = match command {
            Command::OpenChannel(channel) => {
                if let Some(session) = self.sessions.get_mut(from) {
                    session.open_channel(channel, self.memory.clone(), self.ledger.ceilings.unacked);
                    self.answer(from, channel, Answer::ChannelOpenOk, effects);
                }
                return;
            }
            Command::CloseChannel(channel, wait) => return self.close_channel(from, channel, wait),
            Command::Disconnect(farewell) => return self.disconnect(from, farewell),
            Command::Written(written) => return self.written(from, written),
            Command::FailChannel(channel, exception, settlement) => {
                if self.channel_is_open(from, channel) {
                    self.fail_channel(from, channel, exception, settlement, effects);
                }
                return;
            }
            Command::Publish(publish) => {
                let channel = publish.channel;
                if !self.channel_is_open(from, channel) {
                    return;
                }
                (channel, self.publish(now, from, publish, effects))
            }
            Command::PublishRow(_) => unreachable!("it comes as publishes, one by one"),
            Command::Answer(channel, _)
            | Command::Settle(channel, ..)
            | Command::Recover(channel, ..)
            | Command::Qos(channel, ..)
            | Command::Consume(channel, ..)
            | Command::ConsumeReplies(channel, ..)
            | Command::SelectTx(channel)
            | Command::Commit(channel)
            | Command::Rollback(channel)
            | Command::Cancel(channel, ..)
            | Command::Get(channel, ..)
            | Command::DeclareQueue(channel, ..)
            | Command::DeleteQueue(channel, ..)
            | Command::PurgeQueue(channel, ..)
            | Command::DeclareExchange(channel, ..)
            | Command::DeleteExchange(channel, ..)
            | Command::Bind(channel, ..)
                if !self.channel_is_open(from, channel) =>
            {
                return;
            }
            Command::Answer(channel, answer) => {
                self.answer(from, channel, answer, effects);
                return;
            }
            Command::Settle(channel, target, settlement, _) => {
                (channel, self.settle(now, from, channel, target, settlement, effects))
            }
            Command::Recover(channel, wait) => return self.recover(from, channel, wait),
            Command::Qos(channel, qos) => {
                self.qos(from, channel, qos);
                return self.answer(from, channel, Answer::BasicQosOk, effects);
            }
            Command::Consume(channel, consume) => (channel, self.consume(from, channel, &consume, effects)),
            Command::ConsumeReplies(channel, consumer, key, wait) => {
                return self.consume_replies(from, channel, consumer, key, wait, effects);
            }
            Command::SelectTx(channel) => return self.select_tx(from, channel, effects),
            Command::Commit(channel) => return self.commit(from, channel),
            Command::Rollback(channel) => return self.rollback(from, channel, effects),
            Command::Cancel(channel, consumer, tag, wait) => {
                self.cancel_replies(from, channel, Some(consumer));
                self.cancel(now, from, consumer, effects);
                let answer = Answer::BasicCancelOk { consumer: Some(consumer), tag, wait };
                return self.answer(from, channel, answer, effects);
            }
            Command::Get(channel, queue, mode) => (channel, self.get(now, from, channel, &queue, mode, effects)),
            Command::DeclareQueue(channel, declare) => {
                (channel, self.declare_queue(now, from, channel, &declare, effects))
            }
            Command::DeleteQueue(channel, delete) => (channel, self.delete(from, channel, &delete, effects)),
            Command::PurgeQueue(channel, queue, wait) => {
                (channel, self.purge(from, channel, &queue, wait, effects))
            }
            Command::DeclareExchange(channel, declare) => {
                (channel, self.declare_exchange(now, from, channel, &declare, effects))
            }
            Command::DeleteExchange(channel, delete) => {
                (channel, self.delete_exchange(from, channel, &delete, effects))
            }
            Command::Bind(channel, bind) => (channel, self.bind(from, channel, &bind, effects)),
        };
        if let Err(refusal) = result {
            self.refuse(from, channel, method, &refusal, effects);
        }
    }

    /// Closes a channel because of what a method asked for there.
    fn refuse(
        &mut self,
        from: ConnectionId,
        channel: ChannelId,
        method: (u16, u16),
        refusal: &Refusal,
        effects: &mut Effects,
    ) {
        let exception = Exception::from(refusal).during(method);
        self.fail_channel(from, channel, exception, Settlement::Fail, effects);
    }

    fn channel_is_open(&mut self, from: ConnectionId, channel: ChannelId) -> bool {
        let channel = self.sessions.get_mut(from).and_then(|session| session.channel(channel));
        channel.is_some_and(|channel| !channel.failed)
    }

    /// A channel exception: what the channel holds goes back, and until the client has answered, what it still
    /// sends there is dropped.
    fn fail_channel(
        &mut self,
        from: ConnectionId,
        id: ChannelId,
        exception: Exception,
        settlement: Settlement,
        effects: &mut Effects,
    ) {
        self.release_channel(from, id, settlement);
        if let Some(channel) = self.sessions.get_mut(from).and_then(|session| session.channel(id)) {
            channel.failed = true;
        }
        effects.push(from, Output::CloseChannel(id, exception));
    }

    fn close_channel(&mut self, from: ConnectionId, id: ChannelId, wait: Wait) {
        self.release_channel(from, id, Settlement::Fail);
        self.work.push_back(Work::CloseChannel(from, id, wait));
    }

    /// Ends the consumers of a channel and gives its unacked messages back, as failures or not.
    fn release_channel(&mut self, from: ConnectionId, id: ChannelId, settlement: Settlement) {
        self.cancel_replies(from, id, None);
        self.disarm_channel(from, id);
        let Some(channel) = self.sessions.get_mut(from).and_then(|session| session.channel(id)) else { return };
        // What an unfinished transaction settled is still unacked.
        if let Some(transaction) = channel.transaction.take() {
            channel.unacked.put_back(transaction.settlements.into_iter().map(|(unacked, _)| unacked));
        }
        if !channel.consumers.is_empty() {
            self.work.push_back(Work::Cancel(from, std::mem::take(&mut channel.consumers)));
        }
        channel.former.clear();
        if !channel.unacked.is_empty() {
            self.work.push_back(Work::Return(std::mem::take(&mut channel.unacked), settlement));
        }
    }

    fn disconnect(&mut self, from: ConnectionId, farewell: Farewell) {
        let Some(session) = self.sessions.get_mut(from) else { return };
        let exclusive = std::mem::take(&mut session.exclusive_queues);
        // When the broker stops, nobody has failed.
        let settlement = match &farewell {
            Farewell::Close(exception) if exception.code == ReplyCode::ConnectionForced => Settlement::Requeue,
            Farewell::Close(_) | Farewell::CloseOk | Farewell::Silent => Settlement::Fail,
        };
        for channel in session.channel_ids() {
            self.release_channel(from, channel, settlement);
        }
        if !planted(Bug::ExclusiveQueueStays) {
            self.work.push_back(Work::Delete(exclusive));
        }
        self.work.push_back(Work::Leave(from, farewell));
    }

    fn written(&mut self, from: ConnectionId, written: Window) {
        let window_max = self.window_max();
        let Some(session) = self.sessions.get_mut(from) else { return };
        let Some(starved) = session.written(written, window_max) else {
            if session.must_ask() {
                self.asked.push(from);
            }
            return;
        };
        for consumer in starved {
            if let Some(consumer) = self.sessions.get_mut(from).and_then(|session| session.consumer(consumer)) {
                consumer.starved = false;
            }
            self.offer_turn(from, consumer);
        }
    }

    /// Answers a method. The answer rests on what was settled before it on its channel, and on all that was declared,
    /// bound and deleted before it by anybody.
    fn answer(&mut self, to: ConnectionId, channel: ChannelId, answer: Answer, effects: &mut Effects) {
        let mut after = self.topology;
        if answer != Answer::BasicGetEmpty
            && let Some(channel) = self.sessions.get_mut(to).and_then(|session| session.channel(channel))
        {
            after = after.max(channel.settled);
        }
        effects.push(to, Output::Answer(channel, answer, after));
    }

    /// Records a durable fact.
    fn change(&mut self, change: Change, effects: &mut Effects) {
        self.position = self.position.next();
        effects.changes.push(change);
        if planted(Bug::AckBeforePublish)
            && let [.., publish @ Change::MessageEnqueued { .. }, ack @ Change::MessageSettled { .. }] =
                &mut effects.changes[..]
        {
            std::mem::swap(publish, ack);
        }
    }

    /// Records that something was declared, bound or deleted.
    fn change_topology(&mut self, change: Change, effects: &mut Effects) {
        self.change(change, effects);
        self.topology = self.position;
    }

    fn mark_runnable(&mut self, id: QueueId) {
        if let Some(queue) = self.queues.get_mut(id)
            && queue.turn == Turn::None
        {
            queue.turn = Turn::Soon;
            self.runnable.push_back(id);
        }
    }

    /// A queue has something to do, and commands go on before that.
    fn mark_behind(&mut self, id: QueueId) {
        if let Some(queue) = self.queues.get_mut(id)
            && queue.turn != Turn::Behind
        {
            queue.turn = Turn::Behind;
            self.behind.push_back(id);
        }
    }

    /// Makes sure that the virtual host is called when a queue has something to do by itself.
    fn set_timer(&mut self, id: QueueId) {
        let Some(queue) = self.queues.get_mut(id) else { return };
        let wanted = queue.next_deadline();
        if queue.timer != wanted {
            if let Some(old) = queue.timer {
                self.timers.remove(&(old, Timer::Queue(id)));
            }
            queue.timer = wanted;
            self.timers.extend(wanted.map(|deadline| (deadline, Timer::Queue(id))));
        }
    }
}
