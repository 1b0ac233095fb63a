//! A virtual host with the lock around it, its journal, and the outboxes of its connections.
//!
//! Lock order: virtual host, then journal, then outbox; never back. Changes and outputs are handed on before the
//! lock is released, so their order is the order in which the virtual host decided.

use std::sync::{Arc, Weak};

use leveret_broker::access::{Grant, Login};
use leveret_broker::limits::{DELIVERY_OVERHEAD_BYTES, ROW_MESSAGE_BYTES_MAX, UNITS_PER_HOLD};
use leveret_broker::memory::Meter;
use leveret_broker::moment::{Deadline, Moment};
use leveret_broker::names::{PolicyName, UserName};
use leveret_broker::node::{OpenError, Vhost};
use leveret_broker::scratch::{Spill, Spilled};
use leveret_broker::vhost::checkpoint::Checkpoint;
use leveret_broker::vhost::command::Farewell;
use leveret_broker::vhost::effects::Fetched;
use leveret_broker::vhost::ledger::Holdings;
use leveret_broker::vhost::policy::{InvalidPolicy, Policy, PolicyKind};
use leveret_broker::vhost::room::Room;
use leveret_broker::vhost::views::ConnectionDetails;
use leveret_broker::vhost::{Progress, Sweep};
use leveret_broker::{Command, Commands, ConnectionId, Effects, JournalPosition, Output, VirtualHost};
use leveret_planted::{Bug, planted};
use slotmap::SecondaryMap;
use smallvec::SmallVec;
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};

use crate::bodies::Bodies;
use crate::clock::Clock;
use crate::journal::{Appended, Stream};
use crate::limits::{LEAVE_AT_ONCE, READ_AHEAD_BYTES_MIN};
use crate::memory::Memory;
use crate::outbox::Outbox;
use crate::sync::{Mutex, MutexGuard};

/// One virtual host and what surrounds it.
pub(crate) struct Hub {
    clock: Clock,
    journal: Arc<Stream>,
    /// Where bodies are read back; none if nothing is kept.
    bodies: Option<Bodies>,
    memory: Arc<Memory>,
    /// What its queues hold.
    meter: Meter,
    myself: Weak<Hub>,
    state: Mutex<State>,
    #[cfg(test)]
    locked: std::sync::atomic::AtomicU64,
    /// The virtual host has an earlier deadline than before.
    rearm: Notify,
    /// Whose client is gone has some of these for each hold of the lock.
    leaving: Arc<Semaphore>,
}

struct State {
    vhost: VirtualHost,
    outboxes: SecondaryMap<ConnectionId, Arc<Outbox>>,
    effects: Effects,
    /// Whether the changes handed on last belong together with the next ones.
    changes_go_on: bool,
    /// The deadline that the timer task waits for.
    armed: Option<Deadline>,
    /// What its queues held when the sum of the node was told last.
    counted: usize,
    /// What is known of what it holds for clients.
    holdings: Holdings,
}

/// What came of one hold of the lock.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Turn {
    /// What the journal was given. The caller sees to it that it is written.
    pub(crate) appended: Appended,
    pub(crate) woken: Woken,
    /// Whether there is more to do, which others should have a turn before.
    pub(crate) progress: Progress,
}

/// Who has something to do after a hold of the lock, beside the caller.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Woken {
    #[default]
    Nobody,
    /// Other connections have something to tell their clients, or the timers were set anew.
    Somebody,
    /// Others have so much to do that another thread should do it.
    Busy,
}

/// Whether it takes longer to tell all this, with so many bytes of messages, than it takes another thread to be there for it. A row is
/// written in little time, and so are small messages; but what is acked was found, and will be settled, one by one.
fn are_much(outputs: &[Output], bytes: usize) -> bool {
    if outputs.iter().any(Output::is_to_be_acked) {
        return true;
    }
    let rows = outputs.iter().filter_map(Output::row_bytes);
    let (rows, row_bytes) = rows.fold((0, 0), |(rows, sum), bytes| (rows + 1, sum + bytes));
    let (others, bytes) = (outputs.len() - rows, bytes - row_bytes);
    bytes > others * (ROW_MESSAGE_BYTES_MAX + DELIVERY_OVERHEAD_BYTES)
}

impl Hub {
    pub(crate) fn new(
        vhost: VirtualHost,
        journal: Arc<Stream>,
        bodies: Option<Bodies>,
        memory: Arc<Memory>,
        clock: Clock,
    ) -> Arc<Self> {
        // What a restart brought back may have deadlines.
        let armed = vhost.next_timeout();
        let meter = vhost.memory();
        let counted = meter.bytes();
        memory.changed(0, counted);
        let holdings = vhost.holdings();
        memory.holdings_changed(Holdings::default(), holdings);
        let state = State {
            vhost,
            outboxes: SecondaryMap::new(),
            effects: Effects::default(),
            changes_go_on: false,
            armed,
            counted,
            holdings,
        };
        Arc::new_cyclic(|myself| Hub {
            clock,
            journal,
            bodies,
            memory,
            meter,
            myself: Weak::clone(myself),
            state: Mutex::new(state),
            #[cfg(test)]
            locked: std::sync::atomic::AtomicU64::new(0),
            rearm: Notify::new(),
            leaving: Arc::new(Semaphore::new(LEAVE_AT_ONCE as usize)),
        })
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        #[cfg(test)]
        self.locked.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let mut state = self.state.lock();
        state.vhost.set_window_room(self.memory.window_room());
        let ceilings = self.memory.ceilings(state.holdings);
        state.vhost.set_ceilings(ceilings);
        state
    }

    /// Takes a connection in. It leaves when what is returned is dropped.
    pub(crate) fn connect(self: &Arc<Self>, login: Login, outbox: &Arc<Outbox>) -> Result<Attached, OpenError> {
        let mut state = self.lock();
        let id = state.vhost.connect(login)?;
        state.outboxes.insert(id, Arc::clone(outbox));
        Ok(Attached { hub: Arc::clone(self), id, has_left: false })
    }

    /// Takes an administrator in, in the same way.
    pub(crate) fn connect_administrator(self: &Arc<Self>, outbox: &Arc<Outbox>) -> Attached {
        let mut state = self.lock();
        let id = state.vhost.connect_administrator();
        state.outboxes.insert(id, Arc::clone(outbox));
        Attached { hub: Arc::clone(self), id, has_left: false }
    }

    /// Sets a policy. It is durable with the position that [`Self::position`] gives then, and takes effect in steps.
    pub(crate) fn set_policy(&self, policy: Policy) -> Result<(), InvalidPolicy> {
        let mut state = self.lock();
        let State { vhost, effects, .. } = &mut *state;
        let set = vhost.set_policy(self.clock.now(), policy, effects);
        self.hand_on(state, None);
        // The timers go on with it.
        set.map(drop)
    }

    /// Takes a policy away in the same way; false if there is none.
    pub(crate) fn clear_policy(&self, kind: PolicyKind, name: &PolicyName) -> bool {
        let mut state = self.lock();
        let State { vhost, effects, .. } = &mut *state;
        let cleared = vhost.clear_policy(self.clock.now(), kind, name, effects);
        self.hand_on(state, None);
        cleared.is_some()
    }

    /// Returns once everything is durable that has changed so far.
    pub(crate) async fn durable(&self) {
        let (position, outbox) = (self.position(), Arc::default());
        while self.journal.durable() < position {
            self.journal.wait(position, &outbox);
            outbox.filled().await;
        }
    }

    /// From now on the virtual host is as the node says.
    pub(crate) fn follow(&self, vhost: &Vhost) {
        self.lock().vhost.follow(vhost);
    }

    /// From the next operation on a user may do this.
    pub(crate) fn set_grant(&self, user: &UserName, grant: &Arc<Grant>) {
        self.lock().vhost.set_grant(user, grant);
    }

    /// Looks at the virtual host, with the lock held.
    pub(crate) fn look<T>(&self, at: impl FnOnce(&VirtualHost) -> T) -> T {
        let state = self.lock();
        let seen = at(&state.vhost);
        MutexGuard::unlock_fair(state);
        seen
    }

    /// Executes commands for one hold of the lock.
    fn execute(&self, from: ConnectionId, commands: &mut Commands) -> Turn {
        let now = self.clock.now();
        let mut state = self.lock();
        let State { vhost, effects, .. } = &mut *state;
        let progress = vhost.handle_batch(now, from, commands, effects);
        let (appended, woken) = self.hand_on(state, Some(from));
        Turn { appended, woken, progress }
    }

    async fn expire(&self) {
        let mut progress = self.proceed(VirtualHost::handle_timeout, true);
        while progress == Progress::More {
            // Who is to have a turn may have to be read by this thread.
            tokio::task::yield_now().await;
            progress = self.proceed(VirtualHost::go_on, false);
        }
    }

    /// Lets a virtual host go on with what nobody asks for at the moment, for one hold of the lock.
    fn proceed(
        &self,
        go_on: impl FnOnce(&mut VirtualHost, Moment, &mut Effects) -> Progress,
        is_timer: bool,
    ) -> Progress {
        let room = self.journal.room();
        let mut state = self.lock();
        if is_timer {
            state.armed = None;
        }
        let State { vhost, effects, .. } = &mut *state;
        vhost.set_departure_room(room);
        let progress = go_on(vhost, self.clock.now(), effects);
        self.hand_on(state, None);
        progress
    }

    /// Hands on what follows from a batch, releases the lock fairly, and wakes whom it concerns. Returns what the journal was
    /// given, and who was woken.
    fn hand_on(&self, mut guard: MutexGuard<'_, State>, caller: Option<ConnectionId>) -> (Appended, Woken) {
        let mut journaled = Appended::Nothing;
        if planted(Bug::ChangesAfterUnlock) {
            let (mut changes, go_on) = (std::mem::take(&mut guard.effects.changes), guard.effects.changes_go_on);
            journaled = MutexGuard::unlocked(&mut guard, || self.journal.append(&mut changes, go_on));
        }
        let state = &mut *guard;
        let fetches = std::mem::take(&mut state.effects.fetches);
        let notices = std::mem::take(&mut state.effects.notices);
        let is_ended = std::mem::replace(&mut state.changes_go_on, state.effects.changes_go_on);
        // Also without a change: it may be that what belongs together is complete now.
        if !state.effects.changes.is_empty() || is_ended {
            journaled = self.journal.append(&mut state.effects.changes, state.changes_go_on);
        }
        // To be woken once the lock is released.
        let mut woken: SmallVec<[Arc<Outbox>; 8]> = SmallVec::new();
        let mut is_busy = false;
        let outboxes = &state.outboxes;
        state.effects.take_outputs(|to, outputs, bytes| {
            let Some(outbox) = outboxes.get(to) else { return };
            let is_much = caller != Some(to) && are_much(outputs, bytes);
            if outbox.append(outputs, bytes) && caller != Some(to) {
                woken.push(Arc::clone(outbox));
                is_busy |= is_much;
            }
        });
        // Before anybody else asks how much there may be.
        let holdings = state.vhost.holdings();
        let known = std::mem::replace(&mut state.holdings, holdings);
        if holdings != known {
            self.memory.holdings_changed(known, holdings);
        }
        let held = self.meter.bytes();
        let counted = std::mem::replace(&mut state.counted, held);
        let next = state.vhost.next_timeout();
        let is_earlier = next.is_some_and(|next| state.armed.is_none_or(|armed| next < armed));
        if is_earlier {
            state.armed = next;
        }
        MutexGuard::unlock_fair(guard);
        if held != counted {
            self.memory.changed(counted, held);
        }
        // A connection sees to that itself.
        if journaled != Appended::Nothing && caller.is_none() {
            self.journal.have_written();
        }
        if let Some(bodies) = self.bodies.as_ref().filter(|_| !fetches.is_empty()) {
            bodies.ask(&self.myself, self.journal.number(), fetches);
        }
        if is_earlier {
            self.rearm.notify_one();
        }
        let who = match (is_busy, is_earlier || !woken.is_empty()) {
            (true, _) => Woken::Busy,
            (false, true) => Woken::Somebody,
            (false, false) => Woken::Nobody,
        };
        for outbox in woken {
            outbox.wake();
        }
        for notice in notices {
            tracing::warn!("{notice}");
        }
        (journaled, who)
    }

    /// Bodies that were asked for have been read back.
    pub(crate) fn take_in(&self, bodies: &mut Vec<Fetched>) {
        let mut progress = self.proceed(|vhost, now, effects| vhost.handle_fetched(now, bodies, effects), false);
        while progress == Progress::More {
            progress = self.proceed(VirtualHost::go_on, false);
        }
    }

    /// Lets go of some bodies that the disk keeps; false once it came round all queues. Of those of which no journal knows, it
    /// adds to `spills` what is to be written first, if `may_spill` says so.
    pub(crate) fn evict(
        &self,
        sweep: &mut Sweep,
        kept_bytes: usize,
        may_spill: bool,
        spills: &mut Vec<Spill>,
    ) -> bool {
        let durable = self.journal.durable();
        let mut state = self.lock();
        state.vhost.set_read_ahead(kept_bytes.max(READ_AHEAD_BYTES_MIN));
        let may_go = |position: Option<JournalPosition>, _: &_| match position {
            Some(position) => position <= durable,
            None => may_spill,
        };
        let goes_on = self.bodies.is_some() && state.vhost.evict(sweep, kept_bytes, may_go, spills);
        self.hand_on(state, None);
        goes_on
    }

    /// Bodies were to be written to scratch files.
    pub(crate) fn take_spilled(&self, spilled: &mut Vec<Spilled>) {
        if spilled.is_empty() {
            return;
        }
        let mut state = self.lock();
        state.vhost.handle_spilled(spilled);
        self.hand_on(state, None);
    }

    /// The numbers of scratch segments that no message needs any more.
    pub(crate) fn take_unneeded_segments(&self) -> Vec<u32> {
        self.lock().vhost.take_unneeded_segments()
    }

    /// Whether some message may need a scratch segment.
    pub(crate) fn has_segment(&self, number: u32) -> bool {
        self.lock().vhost.has_segment(number)
    }

    /// Goes one step on with a checkpoint; false once it is complete. And how many changes that took.
    pub(crate) fn checkpoint(&self, checkpoint: &mut Checkpoint) -> (bool, u64) {
        let mut state = self.lock();
        let State { vhost, effects, .. } = &mut *state;
        let before = vhost.position().0;
        let goes_on = vhost.handle_checkpoint(self.clock.now(), checkpoint, UNITS_PER_HOLD, effects);
        let changes = vhost.position().0 - before;
        self.hand_on(state, None);
        (goes_on, changes)
    }

    /// The position of the last change.
    pub(crate) fn position(&self) -> JournalPosition {
        self.lock().vhost.position()
    }

    /// The number of its stream in the journal.
    pub(crate) fn stream(&self) -> u32 {
        self.journal.number()
    }

    /// The number of its stream, and where the last checkpoint begins that a restart has read.
    pub(crate) fn recovered_checkpoint(&self) -> (u32, Option<JournalPosition>) {
        (self.journal.number(), self.lock().vhost.checkpoint())
    }

    /// How many messages lie in durable queues.
    pub(crate) fn durable_messages(&self) -> usize {
        self.lock().vhost.durable_messages()
    }

    /// How many queues there are.
    pub(crate) fn queue_count(&self) -> usize {
        self.lock().vhost.queue_count()
    }

    /// There is room for what publishers bring, or there is not.
    pub(crate) fn set_room(&self, room: Room) {
        let mut state = self.lock();
        let State { vhost, effects, .. } = &mut *state;
        vhost.handle_room(room, effects);
        self.hand_on(state, None);
    }

    /// The node stops in good order, and all connections are gone.
    pub(crate) fn stop(&self) {
        let mut state = self.lock();
        let State { vhost, effects, .. } = &mut *state;
        vhost.handle_stop(effects);
        self.hand_on(state, None);
    }

    /// Calls the virtual host when something is due. Runs as long as the server does.
    pub(crate) async fn run_timers(self: Arc<Self>) {
        loop {
            let armed = self.lock().armed;
            let due = async {
                match armed {
                    Some(deadline) => tokio::time::sleep_until(self.clock.instant(deadline)).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = self.rearm.notified() => {}
                () = due => self.expire().await,
            }
        }
    }
}

impl Drop for Hub {
    /// What a virtual host held that was deleted is not held any more.
    fn drop(&mut self) {
        let State { vhost, counted, holdings, .. } = self.state.get_mut();
        self.memory.holdings_changed(*holdings, Holdings::default());
        self.memory.changed(*counted, 0);
        if vhost.queue_count() > 0 {
            // To free a great many messages takes a while, and this thread may have connections to serve. If the system has no other
            // one, it is done here.
            let empty = VirtualHost::new(vhost.name().clone(), [0; 32]);
            let full = std::mem::replace(vhost, empty);
            let _ = std::thread::Builder::new().spawn(move || drop(full));
        }
    }
}

/// A connection in its virtual host, from `connection.open` until this is dropped, whatever happens.
pub(crate) struct Attached {
    hub: Arc<Hub>,
    id: ConnectionId,
    /// What it held is given back already.
    has_left: bool,
}

impl Attached {
    /// Executes commands for one hold of the lock; what follows for this connection is in its outbox afterwards.
    pub(crate) fn execute(&self, commands: &mut Commands) -> Turn {
        self.hub.execute(self.id, commands)
    }

    /// Says how the connection is called outside. Returns what it is called here.
    pub(crate) fn describe(&self, details: ConnectionDetails) -> (Weak<Hub>, ConnectionId) {
        self.hub.lock().vhost.describe(self.id, details);
        (Arc::downgrade(&self.hub), self.id)
    }

    /// The journal of its virtual host.
    pub(crate) fn journal(&self) -> &Arc<Stream> {
        &self.hub.journal
    }

    /// From the next operation on this connection's user may do this.
    pub(crate) fn set_grant(&self, user: &UserName, grant: &Arc<Grant>) {
        self.hub.set_grant(user, grant);
    }

    /// Waits until not too many others leave: only one that has deliveries to give back, or some that have none. Many clients may be
    /// gone at once, and who is still there would wait behind all of them. To be kept while others have a turn; there is none
    /// for who has left already.
    pub(crate) async fn turn_to_leave(&self) -> Option<OwnedSemaphorePermit> {
        let has_unacked = || self.hub.lock().vhost.has_unacked(self.id);
        loop {
            let turns = if has_unacked()? { LEAVE_AT_ONCE } else { 1 };
            let turn = Arc::clone(&self.hub.leaving).acquire_many_owned(turns).await.ok()?;
            // While it waited, it may have been given some.
            if turns == LEAVE_AT_ONCE || !has_unacked()? {
                return Some(turn);
            }
        }
    }

    /// Gives back what it holds, and lets others have a turn meanwhile.
    pub(crate) async fn leave(mut self) {
        let mut commands = goodbye();
        loop {
            let turn = self.turn_to_leave().await;
            let progress = self.execute(&mut commands).progress;
            self.hub.journal.have_written();
            // This thread finds out now who else has something to do. The next one to leave would keep it from that.
            tokio::task::yield_now().await;
            drop(turn);
            if progress == Progress::Done {
                break;
            }
        }
        self.has_left = true;
    }
}

fn goodbye() -> Commands {
    let mut commands = Commands::default();
    commands.push(Command::Disconnect(Farewell::Silent));
    commands
}

impl Drop for Attached {
    /// Without [`Self::leave`], this thread does it at once: the task was dropped.
    fn drop(&mut self) {
        let mut commands = goodbye();
        let mut progress = if self.has_left { Progress::Done } else { Progress::More };
        while progress == Progress::More {
            progress = self.hub.execute(self.id, &mut commands).progress;
            self.hub.journal.have_written();
        }
        self.hub.lock().outboxes.remove(self.id);
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use std::sync::atomic::Ordering;

    use leveret_amqp::frame::{write_content, write_method};
    use leveret_amqp::{
        BasicProperties, ContentHeader, FieldTable, Method, PROTOCOL_HEADER, ShortStr, Table, Value,
    };
    use leveret_broker::change::QueueNumber;
    use leveret_broker::connection::{Credentials, Phase, Written};
    use leveret_broker::names::{QueueName, VhostName};
    use leveret_broker::node::Origin;
    use leveret_broker::node::presence::Present;
    use leveret_broker::{Change, Connection, JournalPosition, Node, Settings};

    use super::*;

    /// All of it, in as many holds as it takes.
    fn execute(attached: &Attached, commands: &mut Commands) {
        while attached.execute(commands).progress == Progress::More {}
    }

    /// A client without its socket: the loop of a peer's task, driven by hand.
    pub(crate) struct Client {
        pub(crate) connection: Connection,
        pub(crate) outbox: Arc<Outbox>,
        pub(crate) attached: Option<Attached>,
        outputs: Vec<Output>,
        written: Vec<u8>,
    }

    impl Client {
        pub(crate) fn open(hub: &Arc<Hub>) -> Self {
            let connection = Connection::new(Arc::new(Settings::default()), [1; 32], hub.clock.now());
            let mut client = Client {
                connection,
                outbox: Arc::default(),
                attached: None,
                outputs: Vec::new(),
                written: Vec::new(),
            };
            let mut bytes = PROTOCOL_HEADER.to_vec();
            let text = ShortStr::truncated;
            for (channel, method) in [
                (
                    0,
                    Method::ConnectionStartOk {
                        client_properties: Table::EMPTY,
                        mechanism: text("PLAIN"),
                        response: b"\0guest\0guest",
                        locale: text("en_US"),
                    },
                ),
                (0, Method::ConnectionTuneOk { channel_max: 0, frame_max: 0, heartbeat: 0 }),
                (0, Method::ConnectionOpen { virtual_host: text("/"), capabilities: text(""), insist: false }),
                (1, Method::ChannelOpen { out_of_band: text("") }),
            ] {
                write_method(&mut bytes, channel, &method);
            }
            client.feed(hub, &bytes);
            client
        }

        fn feed(&mut self, hub: &Arc<Hub>, mut input: &[u8]) {
            while !input.is_empty() {
                let now = hub.clock.now();
                let used = self.connection.handle_input(now, input, &mut self.written);
                input = &input[used..];
                if let Some(Credentials { user, password, .. }) = self.connection.login_request() {
                    let checked = Node::with_guest().log_in(user, password, Origin::Loopback);
                    self.connection.handle_login(now, checked, &mut self.written);
                }
                if let Some((vhost, user)) = self.connection.open_request() {
                    let (_, login) = Node::with_guest().open(vhost, user).unwrap();
                    self.attached = Some(hub.connect(login, &self.outbox).unwrap());
                    let present = Present::enter(Arc::default()).unwrap();
                    self.connection.handle_opened(now, Ok(present), &mut self.written);
                }
                self.turn(hub);
            }
        }

        /// Executes, encodes and writes what there is.
        fn turn(&mut self, hub: &Arc<Hub>) {
            if let Some(attached) = &self.attached
                && !self.connection.commands().is_empty()
            {
                execute(attached, self.connection.commands());
            }
            let durable = hub.journal.durable();
            self.outbox.take(&mut self.outputs);
            let now = hub.clock.now();
            self.connection.handle_outputs(now, self.outputs.drain(..), durable, &mut self.written);
            self.written.clear();
            while self.connection.handle_written(now, Written::All).1 {
                if let Some(attached) = &self.attached {
                    execute(attached, self.connection.commands());
                }
            }
        }
    }

    #[test]
    fn deadlines_that_a_restart_brings_back_are_armed_before_any_client_comes() {
        let mut vhost = VirtualHost::new(VhostName::new(ShortStr::truncated("/")), [1; 32]);
        let clock = Clock::start();
        let name = QueueName::new(ShortStr::truncated("passing"));
        let arguments = FieldTable::build(|table| {
            table.field("x-expires", Value::I32(300));
        });
        let change = Change::QueueDeclared { queue: QueueNumber(1), name, auto_delete: false, arguments };
        vhost.apply(clock.now(), JournalPosition(1), change).unwrap();
        vhost.end_recovery();
        assert!(Hub::new(vhost, Stream::forgetful(1), None, Memory::new(1 << 30), clock).lock().armed.is_some());
    }

    /// It would wait for room first, and be given up before it has said anything.
    #[test]
    fn a_connection_whose_publish_waits_for_room_is_closed_with_a_reason() {
        let vhost = VirtualHost::new(VhostName::new(ShortStr::truncated("/")), [1; 32]);
        let hub = Hub::new(vhost, Stream::forgetful(1), None, Memory::new(1 << 30), Clock::start());
        let mut client = Client::open(&hub);
        hub.set_room(Room::ShortOf { memory: true, disk: false });
        let mut bytes = Vec::new();
        let text = ShortStr::truncated;
        let (exchange, routing_key) = (text(""), text("q"));
        let publish = Method::BasicPublish { ticket: 0, exchange, routing_key, mandatory: false, immediate: false };
        write_method(&mut bytes, 1, &publish);
        let mut header = Vec::new();
        ContentHeader { body_bytes: 1, properties: BasicProperties::default() }.encode(&mut header);
        write_content(&mut bytes, 1, &header, b"m", 4096);
        client.feed(&hub, &bytes);
        assert_eq!(client.connection.phase(), Phase::Blocked);
        client.connection.handle_forced_close(hub.clock.now(), "maintenance", &mut client.written);
        client.turn(&hub);
        assert_eq!(client.connection.phase(), Phase::Closed, "it has said so, and waits for the answer");
        assert!(!client.connection.is_closed());
    }

    /// The task of the timers may have been woken on this thread, which may write the journal next.
    #[test]
    fn who_sets_the_timers_anew_has_woken_somebody() {
        let vhost = VirtualHost::new(VhostName::new(ShortStr::truncated("/")), [1; 32]);
        let hub = Hub::new(vhost, Stream::forgetful(1), None, Memory::new(1 << 30), Clock::start());
        let mut client = Client::open(&hub);
        let text = ShortStr::truncated;
        let (somebody, nobody) = (Woken::Somebody, Woken::Nobody);
        for (queue, expires_ms, woken) in [("a", 60_000, somebody), ("b", 90_000, nobody), ("c", 30_000, somebody)]
        {
            let arguments = FieldTable::build(|table| _ = table.field("x-expires", Value::I32(expires_ms)));
            let (passive, durable, exclusive, auto_delete, nowait) = (false, true, false, false, true);
            let (ticket, queue, arguments) = (0, text(queue), arguments.as_table());
            let mut bytes = Vec::new();
            let declare =
                Method::QueueDeclare { ticket, queue, passive, durable, exclusive, auto_delete, nowait, arguments };
            write_method(&mut bytes, 1, &declare);
            let used = client.connection.handle_input(hub.clock.now(), &bytes, &mut client.written);
            assert_eq!(used, bytes.len());
            let turn = client.attached.as_ref().unwrap().execute(client.connection.commands());
            assert_eq!(turn.woken, woken, "after {expires_ms} ms");
        }
    }

    #[test]
    fn who_brings_others_much_to_do_is_told_so() {
        let vhost = VirtualHost::new(VhostName::new(ShortStr::truncated("/")), [1; 32]);
        let hub = Hub::new(vhost, Stream::forgetful(1), None, Memory::new(1 << 30), Clock::start());
        let (mut consumer, mut publisher) = (Client::open(&hub), Client::open(&hub));
        let text = ShortStr::truncated;
        let (ticket, arguments, nowait) = (0, Table::EMPTY, true);
        let (passive, durable, exclusive, auto_delete, no_local) = (false, false, false, false, false);
        let mut bytes = Vec::new();
        for (queue, no_ack) in [("automatic", true), ("manual", false)] {
            let (queue, consumer_tag) = (text(queue), text(queue));
            let declare =
                Method::QueueDeclare { ticket, queue, passive, durable, exclusive, auto_delete, nowait, arguments };
            write_method(&mut bytes, 1, &declare);
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
            write_method(&mut bytes, 1, &consume);
        }
        consumer.feed(&hub, &bytes);
        for (queue, count, size, woken) in [
            ("automatic", 1, 16, Woken::Somebody),
            ("automatic", 100, 16, Woken::Somebody),
            ("automatic", 1, 1024, Woken::Somebody),
            ("automatic", 1, 4000, Woken::Somebody),
            ("automatic", 1, 4200, Woken::Busy),
            ("automatic", 100, 8192, Woken::Busy),
            // A row of them is written as it lies there.
            ("automatic", 100, 1024, Woken::Somebody),
            ("automatic", 0, 0, Woken::Nobody),
            ("manual", 1, 16, Woken::Busy),
            ("manual", 100, 16, Woken::Busy),
            ("manual", 0, 0, Woken::Nobody),
        ] {
            let mut bytes = Vec::new();
            let (exchange, routing_key) = (text(""), text(queue));
            let publish =
                Method::BasicPublish { ticket, exchange, routing_key, mandatory: false, immediate: false };
            let mut header = Vec::new();
            ContentHeader { body_bytes: size, properties: BasicProperties::default() }.encode(&mut header);
            for _ in 0..count {
                write_method(&mut bytes, 1, &publish);
                write_content(&mut bytes, 1, &header, &[7; 8192][..size.try_into().unwrap()], 131_072);
            }
            let used = publisher.connection.handle_input(hub.clock.now(), &bytes, &mut publisher.written);
            assert_eq!(used, bytes.len());
            let turn = publisher.attached.as_ref().unwrap().execute(publisher.connection.commands());
            assert_eq!(turn.woken, woken, "{queue}: {count} messages of {size} bytes");
            consumer.turn(&hub);
        }
    }

    /// A transaction may end in the hold of the lock after the one that made its last change.
    #[test]
    fn a_transaction_of_any_size_is_whole_once_it_is_committed() {
        for count in (2044..=2052).chain(4090..=4100) {
            let vhost = VirtualHost::new(VhostName::new(ShortStr::truncated("/")), [1; 32]);
            let hub = Hub::new(vhost, Stream::unwritten(), None, Memory::new(1 << 30), Clock::start());
            let mut client = Client::open(&hub);
            let text = ShortStr::truncated;
            let (ticket, queue, arguments) = (0, text("q"), Table::EMPTY);
            let (passive, durable, exclusive, auto_delete, nowait) = (false, true, false, false, true);
            let mut bytes = Vec::new();
            let declare =
                Method::QueueDeclare { ticket, queue, passive, durable, exclusive, auto_delete, nowait, arguments };
            write_method(&mut bytes, 1, &declare);
            write_method(&mut bytes, 1, &Method::TxSelect {});
            for _ in 0..count {
                let (exchange, routing_key) = (text(""), text("q"));
                let publish =
                    Method::BasicPublish { ticket, exchange, routing_key, mandatory: false, immediate: false };
                write_method(&mut bytes, 1, &publish);
                let properties = BasicProperties { delivery_mode: Some(2), ..BasicProperties::default() };
                let mut header = Vec::new();
                ContentHeader { body_bytes: 1, properties }.encode(&mut header);
                write_content(&mut bytes, 1, &header, b"x", 131_072);
            }
            client.feed(&hub, &bytes);
            let mut bytes = Vec::new();
            write_method(&mut bytes, 1, &Method::TxCommit {});
            client.feed(&hub, &bytes);
            assert_eq!(hub.journal.waiting_and_whole(), (1 + count, 1 + count), "{count} messages");
        }
    }

    /// Speed is structure: what one message costs in allocations and lock holds, from bytes to bytes.
    #[test]
    fn a_row_of_messages_costs_a_few_allocations_and_a_batch_one_lock() {
        const MESSAGES: usize = 10_000;
        const IN_A_BATCH: usize = 500;
        let vhost = VirtualHost::new(VhostName::new(ShortStr::truncated("/")), [1; 32]);
        let hub = Hub::new(vhost, Stream::forgetful(1), None, Memory::new(1 << 30), Clock::start());
        let (mut producer, mut consumer) = (Client::open(&hub), Client::open(&hub));
        let text = ShortStr::truncated;
        let mut bytes = Vec::new();
        let (exclusive, passive, durable, auto_delete, nowait) = (false, false, false, false, true);
        let (ticket, queue, arguments) = (0, text("q"), Table::EMPTY);
        let declare =
            Method::QueueDeclare { ticket, queue, passive, durable, exclusive, auto_delete, nowait, arguments };
        write_method(&mut bytes, 1, &declare);
        let (consumer_tag, no_local, no_ack) = (text("t"), false, true);
        let consume =
            Method::BasicConsume { ticket, queue, consumer_tag, no_local, no_ack, exclusive, nowait, arguments };
        write_method(&mut bytes, 1, &consume);
        consumer.feed(&hub, &bytes);

        let mut batch = Vec::new();
        for _ in 0..IN_A_BATCH {
            let (exchange, routing_key) = (text(""), text("q"));
            let publish =
                Method::BasicPublish { ticket, exchange, routing_key, mandatory: false, immediate: false };
            write_method(&mut batch, 1, &publish);
            let properties = BasicProperties { delivery_mode: Some(1), ..BasicProperties::default() };
            let mut header = Vec::new();
            ContentHeader { body_bytes: 16, properties }.encode(&mut header);
            write_content(&mut batch, 1, &header, &[7; 16], 131_072);
        }
        // A few rounds let the buffers that travel between hub and client grow to their size.
        for _ in 0..4 {
            producer.feed(&hub, &batch);
            consumer.turn(&hub);
        }

        let locked_before = hub.locked.load(Ordering::Relaxed);
        let mut received = 0;
        let allocated = allocation_counter::measure(|| {
            for _ in 0..MESSAGES / IN_A_BATCH {
                producer.feed(&hub, &batch);
                consumer.outbox.take(&mut consumer.outputs);
                received += consumer.outputs.iter().map(Output::count).sum::<usize>();
                let (now, durable) = (hub.clock.now(), hub.journal.durable());
                let outputs = consumer.outputs.drain(..);
                consumer.connection.handle_outputs(now, outputs, durable, &mut consumer.written);
                consumer.written.clear();
                if consumer.connection.handle_written(now, Written::All).1
                    && let Some(attached) = &consumer.attached
                {
                    execute(attached, consumer.connection.commands());
                }
            }
        });
        let locks = hub.locked.load(Ordering::Relaxed) - locked_before;
        assert_eq!(received, MESSAGES);
        let batches = (MESSAGES / IN_A_BATCH) as u64;
        // The consumer gives back room in its window now and then, which takes the lock, too.
        let windows = MESSAGES as u64 * 200 / (256 * 1024) + 1;
        // What grows doubles, from four messages on: octets, and where each ends.
        let few = batches * (2 * u64::from((IN_A_BATCH / 4).ilog2() + 1) + 6);
        assert!(allocated.count_total <= few, "{} allocations", allocated.count_total);
        assert!((batches..=batches + windows).contains(&locks), "{locks} locks for {batches} batches");
    }

    /// A message of 60,000 bytes on each of 500 channels, and then the beginning of one.
    #[test]
    fn what_a_connection_keeps_to_assemble_contents_does_not_grow_with_its_channels() {
        const CHANNELS: u16 = 500;
        let vhost = VirtualHost::new(VhostName::new(ShortStr::truncated("/")), [1; 32]);
        let hub = Hub::new(vhost, Stream::forgetful(1), None, Memory::new(1 << 30), Clock::start());
        let mut client = Client::open(&hub);
        let text = ShortStr::truncated;
        let mut opens = Vec::new();
        for channel in 2..=CHANNELS {
            write_method(&mut opens, channel, &Method::ChannelOpen { out_of_band: text("") });
        }
        client.feed(&hub, &opens);
        let content = |channel, body_bytes: u16, body: &[u8]| {
            let (mut bytes, mut header) = (Vec::new(), Vec::new());
            let (exchange, routing_key) = (text(""), text("nowhere"));
            let (ticket, mandatory, immediate) = (0, false, false);
            let publish = Method::BasicPublish { ticket, exchange, routing_key, mandatory, immediate };
            write_method(&mut bytes, channel, &publish);
            let properties = BasicProperties::default();
            ContentHeader { body_bytes: body_bytes.into(), properties }.encode(&mut header);
            write_content(&mut bytes, channel, &header, body, 131_072);
            bytes
        };
        let whole: Vec<_> = (1..=CHANNELS).map(|channel| content(channel, 60_000, &vec![7; 60_000])).collect();
        let begun: Vec<_> = (1..=CHANNELS).map(|channel| content(channel, 60_000, b"a")).collect();
        let rest: Vec<_> = (1..=CHANNELS)
            .map(|channel| {
                let mut frame = vec![3];
                frame.extend(channel.to_be_bytes());
                frame.extend(59_999_u32.to_be_bytes());
                frame.resize(frame.len() + 59_999, 7);
                frame.push(0xCE);
                frame
            })
            .collect();
        let kept = allocation_counter::measure(|| {
            for bytes in whole.iter().chain(&begun) {
                client.feed(&hub, bytes);
            }
            // Each of these gives back what it was assembled in, and the next one begins.
            for (rest, begun) in rest.iter().zip(&begun) {
                client.feed(&hub, rest);
                client.feed(&hub, begun);
            }
        });
        assert!(kept.bytes_current < 100_000, "{} bytes", kept.bytes_current);
    }
}
