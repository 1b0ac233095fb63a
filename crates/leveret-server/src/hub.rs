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
        state.vhost.set_departure_room(self.journal.room());
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
        let mut state = self.lock();
        if is_timer {
            state.armed = None;
        }
        let State { vhost, effects, .. } = &mut *state;
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
pub(crate) mod tests;
