//! Where durable facts go: the journal of the node, and the thread that writes it.
//!
//! Owns: changes that are decided and not yet durable, how far each virtual host's stream is durable, and who waits
//! for that.
//! Must not know: what a change says.
//!
//! Group commit that never waits: the writer takes all that is pending, writes and syncs it as one batch, and takes
//! what came meanwhile. After a failed write or sync it takes nothing more, and nothing becomes durable any more.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::JoinHandle;

use leveret_broker::{Change, JournalPosition};
use leveret_journal::{Batch, Log, LogError};
use parking_lot::{Condvar, Mutex};
use tokio::sync::watch;

use crate::data_dir::DataDir;
use crate::limits::IDLE_BEFORE_MARK;
#[cfg(test)]
use crate::limits::PENDING_BYTES_MAX;
use crate::outbox::Outbox;

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
        let streams = vec![PendingStream { number: 1, changes: Vec::new(), whole: 0 }];
        let state = Mutex::new(State { streams, ..State::default() });
        let (is_congested, _) = watch::channel(false);
        let pending =
            Arc::new(Pending { state, filled: Condvar::new(), is_congested, bytes_max: PENDING_BYTES_MAX });
        Stream::kept(1, JournalPosition::default(), &pending)
    }

    /// How many changes wait for a writer, and how many of them it may take.
    #[cfg(test)]
    pub(crate) fn waiting_and_whole(&self) -> (usize, usize) {
        let state = self.pending.as_ref().map(|pending| pending.state.lock());
        let stream = state.as_ref().and_then(|state| state.streams.first());
        stream.map_or((0, 0), |stream| (stream.changes.len(), stream.whole))
    }

    fn kept(number: u32, last: JournalPosition, pending: &Arc<Pending>) -> Arc<Self> {
        let (pending, durable) = (Some(Arc::clone(pending)), AtomicU64::new(last.0));
        Arc::new(Stream { number, pending, durable, waiting: Mutex::default() })
    }

    /// Takes changes in, in order, with the lock of the virtual host held. The last of them may belong together with
    /// the next ones; they become durable with those. Returns the bytes of messages among them.
    pub(crate) fn append(&self, changes: &mut Vec<Change>, go_on: bool) -> usize {
        let Some(pending) = &self.pending else {
            self.durable.fetch_add(changes.len() as u64, Ordering::Release);
            changes.clear();
            return 0;
        };
        let bytes = changes.iter().map(message_bytes).sum();
        let mut state = pending.state.lock();
        if state.has_failed {
            changes.clear();
            return 0;
        }
        let Some(stream) = state.streams.iter_mut().find(|stream| stream.number == self.number) else { return 0 };
        stream.changes.append(changes);
        if !go_on {
            stream.whole = stream.changes.len();
        }
        state.bytes += bytes;
        if state.bytes > pending.bytes_max {
            pending.is_congested.send_if_modified(|is_congested| !std::mem::replace(is_congested, true));
        }
        let is_idle = std::mem::take(&mut state.is_idle);
        drop(state);
        if is_idle {
            pending.filled.notify_one();
        }
        bytes
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

    /// Turns true while so much waits to be written that who publishes has to wait.
    pub(crate) fn congestion(&self) -> Option<watch::Receiver<bool>> {
        self.pending.as_ref().map(|pending| pending.is_congested.subscribe())
    }
}

fn message_bytes(change: &Change) -> usize {
    match change {
        Change::MessageEnqueued { message, .. } => message.bytes(),
        _ => 0,
    }
}

/// What is decided and not yet taken by the writer.
struct Pending {
    state: Mutex<State>,
    filled: Condvar,
    is_congested: watch::Sender<bool>,
    /// Bytes of messages from which on publishers wait.
    bytes_max: usize,
}

#[derive(Default)]
struct State {
    streams: Vec<PendingStream>,
    /// Bytes of messages that wait or are being written.
    bytes: usize,
    /// The writer sleeps and wants to be woken.
    is_idle: bool,
    is_stopping: bool,
    has_failed: bool,
}

struct PendingStream {
    number: u32,
    changes: Vec<Change>,
    /// How many of them may become durable without those that follow.
    whole: usize,
}

impl State {
    fn has_work(&self) -> bool {
        self.streams.iter().any(|stream| stream.whole > 0)
    }
}

/// The thread that writes the journal.
pub(crate) struct Writer {
    pending: Arc<Pending>,
    thread: Option<JoinHandle<()>>,
    failed: watch::Receiver<Option<String>>,
}

impl Writer {
    /// Starts the thread. It holds the data folder until it has written everything. `streams` says how far each is; while
    /// more than `bytes_max` wait, publishers do, too.
    pub(crate) fn start(
        log: Log,
        data_dir: DataDir,
        bytes_max: usize,
        streams: &[(u32, JournalPosition)],
    ) -> io::Result<(Writer, Vec<Arc<Stream>>)> {
        let pending_streams = streams.iter();
        let pending_streams =
            pending_streams.map(|&(number, _)| PendingStream { number, changes: Vec::new(), whole: 0 });
        let state = State { streams: pending_streams.collect(), ..State::default() };
        let (is_congested, _) = watch::channel(false);
        let (state, filled) = (Mutex::new(state), Condvar::new());
        let pending = Arc::new(Pending { state, filled, is_congested, bytes_max });
        let streams: Vec<_> = streams.iter().map(|&(number, last)| Stream::kept(number, last, &pending)).collect();
        let (failing, failed) = watch::channel(None);
        let writing = Writing { pending: Arc::clone(&pending), streams: streams.clone(), log };
        let thread = std::thread::Builder::new().name("journal".into()).spawn(move || {
            if let Err(error) = writing.run() {
                failing.send_replace(Some(error.to_string()));
            }
            drop(data_dir);
        })?;
        Ok((Writer { pending, thread: Some(thread), failed }, streams))
    }

    /// Why nothing is kept any more, once that is so.
    pub(crate) fn failed(&self) -> watch::Receiver<Option<String>> {
        self.failed.clone()
    }

    /// Writes what is left and ends.
    pub(crate) fn stop(&mut self) {
        self.pending.state.lock().is_stopping = true;
        self.pending.filled.notify_one();
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the thread that writes the journal has panicked");
        }
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        self.stop();
    }
}

struct Writing {
    pending: Arc<Pending>,
    streams: Vec<Arc<Stream>>,
    log: Log,
}

impl Writing {
    fn run(mut self) -> Result<(), LogError> {
        let mut last: Vec<u64> = self.streams.iter().map(|stream| stream.durable().0).collect();
        let mut taken: Vec<Vec<Change>> = self.streams.iter().map(|_| Vec::new()).collect();
        let mut batch = Batch::default();
        loop {
            let result = if self.take(&mut taken) {
                self.write(&mut taken, &mut last, &mut batch)
            } else {
                return self.log.mark();
            };
            if let Err(error) = result {
                let mut state = self.pending.state.lock();
                state.has_failed = true;
                state.streams.iter_mut().for_each(|stream| stream.changes = Vec::new());
                return Err(error);
            }
        }
    }

    /// Waits for changes and takes all that there are; false when there will be no more.
    fn take(&mut self, taken: &mut [Vec<Change>]) -> bool {
        let mut state = self.pending.state.lock();
        let mut is_marked = false;
        while !state.has_work() {
            if state.is_stopping {
                return false;
            }
            state.is_idle = true;
            if is_marked {
                self.pending.filled.wait(&mut state);
            } else if self.pending.filled.wait_for(&mut state, IDLE_BEFORE_MARK).timed_out() {
                // A failure shows at the next batch.
                state.is_idle = false;
                drop(state);
                let _ = self.log.mark();
                is_marked = true;
                state = self.pending.state.lock();
            }
        }
        state.is_idle = false;
        for (stream, taken) in state.streams.iter_mut().zip(taken) {
            let whole = std::mem::take(&mut stream.whole);
            if whole == stream.changes.len() {
                std::mem::swap(&mut stream.changes, taken);
            } else {
                taken.extend(stream.changes.drain(..whole));
            }
        }
        true
    }

    fn write(&mut self, taken: &mut [Vec<Change>], last: &mut [u64], batch: &mut Batch) -> Result<(), LogError> {
        let mut bytes = 0;
        for ((stream, taken), last) in self.streams.iter().zip(taken).zip(&mut *last) {
            for change in taken.drain(..) {
                *last += 1;
                bytes += message_bytes(&change);
                batch.push(stream.number, *last, |out| change.encode(out));
            }
        }
        self.log.append(batch)?;
        for (stream, last) in self.streams.iter().zip(last) {
            if stream.durable().0 < *last {
                stream.advance(*last);
            }
        }
        let mut state = self.pending.state.lock();
        state.bytes -= bytes;
        if state.bytes <= self.pending.bytes_max / 2 {
            self.pending.is_congested.send_if_modified(std::mem::take);
        }
        Ok(())
    }
}
