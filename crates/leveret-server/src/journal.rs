//! Where durable facts go: the journal of the node, and the thread that writes it.
//!
//! Owns: the stream of each virtual host: how far it is durable, and who waits for that.
//! Must not know: what a change says.

mod pending;
mod writer;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use leveret_broker::{Change, JournalPosition};
use parking_lot::Mutex;
use tokio::sync::watch;

#[cfg(test)]
use crate::limits::PENDING_BYTES_MAX;
use crate::outbox::Outbox;
use pending::Pending;
pub(crate) use pending::{Orders, WriterEnded};
pub(crate) use writer::{Growth, Writer};

/// The stream of one virtual host, as its hub and its connections see it.
pub(crate) struct Stream {
    number: u32,
    /// None: nothing is kept, and everything counts as durable at once.
    pending: Option<Arc<Pending>>,
    durable: AtomicU64,
    /// Connections that have something to tell once a position is durable; a few, in no order.
    waiting: Mutex<Vec<(JournalPosition, Arc<Outbox>)>>,
}

impl Stream {
    /// A stream that keeps nothing.
    pub(crate) fn forgetful() -> Arc<Self> {
        Arc::new(Stream { number: 0, pending: None, durable: AtomicU64::new(0), waiting: Mutex::default() })
    }

    /// A stream whose changes pile up, as there is no thread to write them.
    #[cfg(test)]
    pub(crate) fn unwritten() -> Arc<Self> {
        Stream::kept(1, JournalPosition::default(), &Pending::new([1], PENDING_BYTES_MAX, None))
    }

    /// How many changes wait for a writer, and how many of them it may take.
    #[cfg(test)]
    pub(crate) fn waiting_and_whole(&self) -> (usize, usize) {
        self.pending.as_ref().map_or((0, 0), |pending| pending.waiting_and_whole())
    }

    fn kept(number: u32, last: JournalPosition, pending: &Arc<Pending>) -> Arc<Self> {
        let (pending, durable) = (Some(Arc::clone(pending)), AtomicU64::new(last.0));
        Arc::new(Stream { number, pending, durable, waiting: Mutex::default() })
    }

    /// Takes changes in, in order, with the lock of the virtual host held. The last of them may belong together with
    /// the next ones; they become durable with those.
    pub(crate) fn append(&self, changes: &mut Vec<Change>, go_on: bool) -> Appended {
        let Some(pending) = &self.pending else {
            self.durable.fetch_add(changes.len() as u64, Ordering::Release);
            changes.clear();
            return Appended::Nothing;
        };
        pending.append(self.number, changes, go_on)
    }

    /// Its number in the journal.
    pub(crate) fn number(&self) -> u32 {
        self.number
    }

    /// How far everything is kept, come what may.
    pub(crate) fn durable(&self) -> JournalPosition {
        JournalPosition(self.durable.load(Ordering::Acquire))
    }

    /// Wakes the owner of an outbox once a position is durable; at once if it is.
    pub(crate) fn wait(&self, position: JournalPosition, outbox: &Arc<Outbox>) {
        let mut waiting = self.waiting.lock();
        if position <= self.durable() {
            drop(waiting);
            return outbox.wake();
        }
        waiting.push((position, Arc::clone(outbox)));
    }

    fn advance(&self, durable: u64) {
        self.durable.store(durable, Ordering::Release);
        self.waiting.lock().retain(|(position, outbox)| {
            let is_durable = position.0 <= durable;
            if is_durable {
                outbox.wake();
            }
            !is_durable
        });
    }

    /// How much waits to be written, and who has to wait for that.
    pub(crate) fn congestion(&self) -> Option<watch::Receiver<Congestion>> {
        self.pending.as_ref().map(|pending| pending.congested())
    }
}
/// What a connection gave the journal, the most demanding kind of it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Appended {
    #[default]
    Nothing,
    /// Acks, declarations and the like.
    Changes,
    Messages,
}

/// How much waits to be written. Who brings messages waits first; acks wait only where a disk stands still for long, as
/// they let consumers go on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Congestion {
    #[default]
    None,
    /// Who brings messages has to wait.
    Messages,
    /// Whoever brings anything has to wait.
    Changes,
}

impl Congestion {
    /// Whether who brought this has to wait.
    pub(crate) fn holds(self, appended: Appended) -> bool {
        match self {
            Congestion::None => false,
            Congestion::Messages => appended == Appended::Messages,
            Congestion::Changes => appended != Appended::Nothing,
        }
    }
}
