//! A virtual host with the lock around it, its journal, and the outboxes of its connections.
//!
//! Lock order: virtual host, then journal, then outbox; never back. Changes and outputs are handed on before the
//! lock is released, so their order is the order in which the virtual host decided.

use std::sync::Arc;

use leveret_broker::access::Login;
use leveret_broker::moment::Deadline;
use leveret_broker::vhost::Progress;
use leveret_broker::vhost::command::Farewell;
use leveret_broker::{Command, Commands, ConnectionId, Effects, JournalPosition, VirtualHost};
use parking_lot::{Mutex, MutexGuard};
use slotmap::SecondaryMap;
use tokio::sync::Notify;

use crate::clock::Clock;
use crate::journal::Journal;
use crate::outbox::Outbox;

/// One virtual host and what surrounds it.
pub(crate) struct Hub {
    clock: Clock,
    state: Mutex<State>,
    /// The virtual host has an earlier deadline than before.
    rearm: Notify,
}

struct State {
    vhost: VirtualHost,
    journal: Box<dyn Journal>,
    outboxes: SecondaryMap<ConnectionId, Arc<Outbox>>,
    effects: Effects,
    /// The deadline that the timer task waits for.
    armed: Option<Deadline>,
    /// Outboxes to wake once the lock is released.
    woken: Vec<Arc<Outbox>>,
}

impl Hub {
    pub(crate) fn new(vhost: VirtualHost, journal: Box<dyn Journal>, clock: Clock) -> Self {
        let state = State {
            vhost,
            journal,
            outboxes: SecondaryMap::new(),
            effects: Effects::default(),
            armed: None,
            woken: Vec::new(),
        };
        Hub { clock, state: Mutex::new(state), rearm: Notify::new() }
    }

    /// Takes a connection in. It leaves when what is returned is dropped.
    pub(crate) fn connect(self: &Arc<Self>, login: Login, outbox: &Arc<Outbox>) -> Attached {
        let mut state = self.state.lock();
        let id = state.vhost.connect(login);
        state.outboxes.insert(id, Arc::clone(outbox));
        Attached { hub: Arc::clone(self), id }
    }

    /// Executes commands, letting others have a turn in between. Returns how far the journal has come.
    fn execute(&self, from: ConnectionId, commands: &mut Commands) -> JournalPosition {
        loop {
            let now = self.clock.now();
            let mut state = self.state.lock();
            let State { vhost, effects, .. } = &mut *state;
            let progress = vhost.handle_batch(now, from, commands, effects);
            let durable = self.hand_on(state, Some(from));
            if progress == Progress::Done {
                return durable;
            }
        }
    }

    fn expire(&self) {
        let mut progress = {
            let mut state = self.state.lock();
            state.armed = None;
            let State { vhost, effects, .. } = &mut *state;
            let progress = vhost.handle_timeout(self.clock.now(), effects);
            self.hand_on(state, None);
            progress
        };
        while progress == Progress::More {
            let mut state = self.state.lock();
            let State { vhost, effects, .. } = &mut *state;
            progress = vhost.go_on(self.clock.now(), effects);
            self.hand_on(state, None);
        }
    }

    /// Hands on what follows from a batch, releases the lock fairly, and wakes whom it concerns.
    fn hand_on(&self, mut guard: MutexGuard<'_, State>, caller: Option<ConnectionId>) -> JournalPosition {
        let state = &mut *guard;
        // Nothing evicts a body while they all fit in memory, so nothing has to be fetched.
        debug_assert!(state.effects.fetches.is_empty());
        if !state.effects.changes.is_empty() {
            state.journal.append(&mut state.effects.changes);
        }
        let durable = state.journal.durable();
        let (outboxes, woken) = (&state.outboxes, &mut state.woken);
        state.effects.take_outputs(|to, outputs| {
            let Some(outbox) = outboxes.get(to) else { return };
            if outbox.append(outputs) && caller != Some(to) {
                woken.push(Arc::clone(outbox));
            }
        });
        let next = state.vhost.next_timeout();
        let is_earlier = next.is_some_and(|next| state.armed.is_none_or(|armed| next < armed));
        if is_earlier {
            state.armed = next;
        }
        let mut woken = std::mem::take(&mut state.woken);
        MutexGuard::unlock_fair(guard);
        if is_earlier {
            self.rearm.notify_one();
        }
        for outbox in woken.drain(..) {
            outbox.wake();
        }
        durable
    }

    /// Calls the virtual host when something is due. Runs as long as the server does.
    pub(crate) async fn run_timers(self: Arc<Self>) {
        loop {
            let armed = self.state.lock().armed;
            let due = async {
                match armed {
                    Some(deadline) => tokio::time::sleep_until(self.clock.instant(deadline)).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = self.rearm.notified() => {}
                () = due => self.expire(),
            }
        }
    }
}

/// A connection in its virtual host, from `connection.open` until this is dropped, whatever happens.
pub(crate) struct Attached {
    hub: Arc<Hub>,
    id: ConnectionId,
}

impl Attached {
    /// Executes commands; what follows for this connection is in its outbox afterwards.
    pub(crate) fn execute(&self, commands: &mut Commands) -> JournalPosition {
        self.hub.execute(self.id, commands)
    }
}

impl Drop for Attached {
    fn drop(&mut self) {
        let mut commands = Commands::default();
        commands.push(Command::Disconnect(Farewell::Silent));
        self.hub.execute(self.id, &mut commands);
        self.hub.state.lock().outboxes.remove(self.id);
    }
}
