//! Where durable facts go: the journal of the node, and who writes it.
//!
//! Owns: the stream of each virtual host: how far it is durable, and who waits for that.
//! Must not know: what a change says.

mod pending;
mod writer;

use std::sync::Arc;

use leveret_broker::{Change, JournalPosition};
use leveret_planted::{Bug, planted};
use tokio::sync::watch;

#[cfg(test)]
use crate::limits::PENDING_BYTES_MAX;
use crate::outbox::Outbox;
use crate::sync::Mutex;
use crate::sync::atomic::{AtomicU64, Ordering};
use pending::Pending;
pub(crate) use pending::{AcksWait, Orders, WriterEnded};
use writer::Writing;
pub(crate) use writer::{Growth, Streams, Writer};

/// The stream of one virtual host, as its hub and its connections see it.
pub(crate) struct Stream {
    number: u32,
    reached: Arc<Reached>,
    /// None: nothing is kept, and everything counts as durable at once.
    kept: Option<Kept>,
}

/// How far a stream is durable, and who waits for that.
#[derive(Debug, Default)]
struct Reached {
    durable: AtomicU64,
    /// Connections that have something to tell once a position is durable; a few, in no order.
    waiting: Mutex<Vec<(JournalPosition, Arc<Outbox>)>>,
}

/// The journal behind a stream.
struct Kept {
    pending: Arc<Pending>,
    writing: Arc<Mutex<Option<Writing>>>,
}

impl Stream {
    /// A stream that keeps nothing.
    pub(crate) fn forgetful(number: u32) -> Arc<Self> {
        Arc::new(Stream { number, reached: Arc::default(), kept: None })
    }

    /// A stream whose changes pile up, as there is nobody to write them.
    #[cfg(test)]
    pub(crate) fn unwritten() -> Arc<Self> {
        let kept = Kept { pending: Pending::new([1], PENDING_BYTES_MAX, None), writing: Arc::default() };
        Arc::new(Stream { number: 1, reached: Arc::default(), kept: Some(kept) })
    }

    /// How many changes wait for a writer, and how many of them it may take.
    #[cfg(test)]
    pub(crate) fn waiting_and_whole(&self) -> (usize, usize) {
        self.kept.as_ref().map_or((0, 0), |kept| kept.pending.waiting_and_whole())
    }

    /// Takes changes in, in order, with the lock of the virtual host held. The last of them may belong together with
    /// the next ones; they become durable with those. Once the lock is released, somebody has to [write](Self::write_here)
    /// them or have them [written](Self::have_written).
    pub(crate) fn append(&self, changes: &mut Vec<Change>, go_on: bool) -> Appended {
        let Some(kept) = &self.kept else {
            self.reached.durable.fetch_add(changes.len() as u64, Ordering::Release);
            changes.clear();
            return Appended::Nothing;
        };
        kept.pending.append(self.number, changes, go_on)
    }

    /// Lets the thread of the journal write what was appended.
    pub(crate) fn have_written(&self) {
        if let Some(kept) = &self.kept {
            kept.pending.wake();
        }
    }

    /// Whether what waits is little, and the disk so quick that to wake another thread takes as long as to write it.
    pub(crate) fn is_quick(&self) -> bool {
        self.kept.as_ref().is_some_and(|kept| kept.pending.is_quick())
    }

    /// Writes what was appended, and returns when it is durable or has no room, unless somebody else is writing: then the
    /// thread of the journal writes it after that.
    pub(crate) fn write_here(&self) {
        let Some(kept) = &self.kept else { return };
        let is_done = match kept.writing.try_lock().as_deref_mut() {
            Some(Some(writing)) => writing.turn().is_ok(),
            _ => false,
        };
        if !is_done && planted(Bug::WriterNotWoken) {
            return;
        }
        if !is_done || kept.pending.rests() {
            kept.pending.wake();
        }
    }

    /// Its number in the journal.
    pub(crate) fn number(&self) -> u32 {
        self.number
    }

    /// How far everything is kept, come what may.
    pub(crate) fn durable(&self) -> JournalPosition {
        self.reached.durable()
    }

    /// Wakes the owner of an outbox once a position is durable; at once if it is.
    pub(crate) fn wait(&self, position: JournalPosition, outbox: &Arc<Outbox>) {
        let looked_before = planted(Bug::LookedBeforeRegistered).then(|| self.durable());
        let mut waiting = self.reached.waiting.lock();
        if position <= looked_before.unwrap_or_else(|| self.durable()) {
            drop(waiting);
            return outbox.wake();
        }
        waiting.push((position, Arc::clone(outbox)));
    }

    /// Bytes of messages that may be added now by nobody's publish.
    pub(crate) fn room(&self) -> usize {
        self.kept.as_ref().map_or(usize::MAX, |kept| kept.pending.room())
    }

    /// How much waits to be written, and who has to wait for that.
    pub(crate) fn congestion(&self) -> Option<watch::Receiver<Congestion>> {
        self.kept.as_ref().map(|kept| kept.pending.congested())
    }
}

/// The position whose coming will wake a connection.
#[derive(Debug, Default)]
pub(crate) struct Awaited(Option<JournalPosition>);

impl Awaited {
    /// Sees to it that the owner of an outbox is woken once a position is durable that was not when `durable` was read, or before
    /// that: as long as it waits for an earlier one, that will do.
    pub(crate) fn wait(
        &mut self,
        position: JournalPosition,
        durable: JournalPosition,
        journal: &Stream,
        outbox: &Arc<Outbox>,
    ) {
        self.0 = self.0.filter(|awaited| *awaited > durable);
        if self.0.is_none_or(|awaited| position < awaited) {
            self.0 = Some(position);
            journal.wait(position, outbox);
        }
    }

    /// Whether it waits for nothing any more.
    pub(crate) fn is_over(&self, durable: JournalPosition) -> bool {
        self.0.is_none_or(|awaited| awaited <= durable)
    }
}

impl Reached {
    fn at(last: JournalPosition) -> Arc<Self> {
        Arc::new(Reached { durable: AtomicU64::new(last.0), waiting: Mutex::default() })
    }

    fn durable(&self) -> JournalPosition {
        JournalPosition(self.durable.load(Ordering::Acquire))
    }

    fn advance(&self, durable: u64) {
        if !planted(Bug::WokenBeforeReached) {
            self.durable.store(durable, Ordering::Release);
        }
        self.waiting.lock().retain(|(position, outbox)| {
            let is_durable = position.0 <= durable;
            if is_durable {
                outbox.wake();
            }
            !is_durable
        });
        if planted(Bug::WokenBeforeReached) {
            self.durable.store(durable, Ordering::Release);
        }
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
