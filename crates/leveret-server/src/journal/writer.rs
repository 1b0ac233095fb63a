//! Who writes the journal: a thread, or whoever waits for little on a quick disk.
//!
//! Owns: the log.
//!
//! Group commit that never waits: the writer takes all that is pending, writes and syncs it as one batch, and takes
//! what came meanwhile. What a full disk has no room for waits, while others pass it; nothing that the writer is asked to do
//! does. After a failed write or sync it takes nothing more, and nothing becomes durable any more.

use std::io;
use std::sync::Arc;
use std::sync::mpsc::Sender;
use std::time::Instant;

use bytesize::ByteSize;
use leveret_broker::change::NodeChange;
use leveret_broker::node::recovery::NODE_STREAM;
use leveret_broker::{Change, JournalPosition};
use leveret_journal::{Batch, Log, LogError};
use leveret_planted::{Bug, planted};

use super::pending::{Order, Orders, Pending, Woken};
use super::{Kept, Reached, Stream};
use crate::limits::{FULL_RETRY_EVERY, IDLE_BEFORE_MARK, TAKEN_CHANGES_KEPT, WRITTEN_BYTES_MAX};
use crate::sync::atomic::{AtomicU64, Ordering};
use crate::sync::thread::{Builder, JoinHandle};
use crate::sync::{Mutex, watch};

/// The thread that writes the journal.
pub(crate) struct Writer {
    pending: Arc<Pending>,
    thread: Option<JoinHandle<()>>,
    streams: Streams,
    growth: Arc<Growth>,
    failed: watch::Receiver<Option<String>>,
}

/// Where streams of virtual hosts are opened.
#[derive(Clone)]
pub(crate) struct Streams {
    pending: Arc<Pending>,
    writing: Arc<Mutex<Option<Writing>>>,
}

impl Streams {
    /// Opens a stream that nobody has written to. Its number is greater than all others. Waits for whoever writes.
    pub(crate) fn open(&self, number: u32) -> Arc<Stream> {
        let reached = Reached::at(JournalPosition::default());
        // Both know it at the same place, and who takes holds this lock.
        let mut writing = self.writing.lock();
        if let Some(writing) = &mut *writing {
            writing.streams.push((number, Arc::clone(&reached)));
            writing.last.push(0);
            writing.taken.push(Vec::new());
            self.pending.open(number);
        }
        drop(writing);
        self.stream(number, reached)
    }

    fn stream(&self, number: u32, reached: Arc<Reached>) -> Arc<Stream> {
        let kept = Kept { pending: Arc::clone(&self.pending), writing: Arc::clone(&self.writing) };
        Arc::new(Stream { number, reached, kept: Some(kept) })
    }
}

/// How much the journal has grown, and whom that concerns.
#[derive(Debug, Default)]
pub(crate) struct Growth {
    bytes: AtomicU64,
    /// From here on, somebody wants to know.
    mark: AtomicU64,
    told: Mutex<Option<Sender<()>>>,
}

impl Growth {
    /// Bytes that were written since the start.
    pub(crate) fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }

    /// Tells, once, when so many are written.
    pub(crate) fn tell_at(&self, bytes: u64, tell: Sender<()>) {
        *self.told.lock() = Some(tell);
        self.mark.store(bytes, Ordering::Relaxed);
        self.add(0);
    }

    fn add(&self, bytes: u64) {
        let now = self.bytes.fetch_add(bytes, Ordering::Relaxed) + bytes;
        if now >= self.mark.load(Ordering::Relaxed)
            && let Some(tell) = self.told.lock().take()
        {
            self.mark.store(u64::MAX, Ordering::Relaxed);
            let _ = tell.send(());
        }
    }
}

impl Writer {
    /// Starts the thread. `streams` says how far each is; while more than `bytes_max` wait, publishers do, too.
    pub(crate) fn start(
        log: Log,
        bytes_max: usize,
        node_sequence: u64,
        streams: &[(u32, JournalPosition)],
    ) -> io::Result<(Writer, Vec<Arc<Stream>>)> {
        let numbers = streams.iter().map(|&(number, _)| number);
        let pending = Pending::new(numbers, bytes_max, Some(log.spares()));
        let reached: Vec<_> = streams.iter().map(|&(number, last)| (number, Reached::at(last))).collect();
        let (failing, failed) = watch::channel(None);
        let growth = Arc::new(Growth { mark: AtomicU64::new(u64::MAX), ..Growth::default() });
        let writing = Writing {
            pending: Arc::clone(&pending),
            log,
            last: streams.iter().map(|&(_, last)| last.0).collect(),
            taken: streams.iter().map(|_| Vec::new()).collect(),
            streams: reached.clone(),
            batch: Batch::default(),
            first: 0,
            stuck: Vec::new(),
            node_sequence,
            growth: Arc::clone(&growth),
            failed: None,
        };
        let writing = Arc::new(Mutex::new(Some(writing)));
        let opening = Streams { pending: Arc::clone(&pending), writing: Arc::clone(&writing) };
        let streams = reached.into_iter().map(|(number, reached)| opening.stream(number, reached)).collect();
        let thread = Thread { pending: Arc::clone(&pending), writing };
        let thread = Builder::new().name("journal".into()).spawn(move || {
            if let Err(error) = thread.run() {
                tracing::error!("{error}; what was not confirmed is lost");
                failing.send_replace(Some(error.to_string()));
            }
        })?;
        Ok((Writer { pending, thread: Some(thread), streams: opening, failed, growth }, streams))
    }

    /// Why nothing is kept any more, once that is so.
    pub(crate) fn failed(&self) -> watch::Receiver<Option<String>> {
        self.failed.clone()
    }

    /// Where streams are opened.
    pub(crate) fn streams(&self) -> Streams {
        self.streams.clone()
    }

    /// Where orders for it are left.
    pub(crate) fn orders(&self) -> Orders {
        Orders(Arc::clone(&self.pending))
    }

    /// How much it has written.
    pub(crate) fn growth(&self) -> Arc<Growth> {
        Arc::clone(&self.growth)
    }

    /// Writes what is left and ends.
    pub(crate) fn stop(&mut self) {
        self.pending.end();
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

/// The log, and what is on its way into it.
pub(super) struct Writing {
    pending: Arc<Pending>,
    log: Log,
    streams: Vec<(u32, Arc<Reached>)>,
    /// The last sequence of each stream that was taken.
    last: Vec<u64>,
    taken: Vec<Vec<Change>>,
    batch: Batch,
    /// The stream that is taken from first the next time.
    first: usize,
    /// What there is no room for.
    stuck: Vec<Stuck>,
    /// The last sequence in the stream of the node.
    node_sequence: u64,
    growth: Arc<Growth>,
    /// Why nothing more is taken.
    failed: Option<LogError>,
}

/// A batch, and what follows once it is written.
struct Whole {
    batch: Batch,
    /// Bytes that wait for it.
    bytes: usize,
    /// How far streams are then, by their place among them.
    last: Vec<(usize, u64)>,
}

/// A batch for which the disk has no room. What belongs to the same streams waits behind it, and nothing else does.
struct Stuck {
    whole: Whole,
    tried: Instant,
}

/// The thread: it writes what nobody else has written.
struct Thread {
    pending: Arc<Pending>,
    writing: Arc<Mutex<Option<Writing>>>,
}

impl Thread {
    fn run(self) -> Result<(), LogError> {
        let mut marked = None;
        loop {
            let is_stuck = self.write(|writing| Ok(!writing.stuck.is_empty()))?;
            let at_most = if is_stuck { FULL_RETRY_EVERY } else { IDLE_BEFORE_MARK };
            match self.pending.wait(at_most, marked) {
                Woken::Ending if !is_stuck => {
                    return match self.write(|writing| writing.log.mark_end()) {
                        // Nothing that was promised is missing.
                        Err(LogError::Full(_)) => Ok(()),
                        marked => marked,
                    };
                }
                Woken::Idle if !is_stuck => marked = self.write(|writing| Ok(writing.mark()))?,
                _ => {
                    self.write(Writing::turn)?;
                    marked = None;
                }
            }
        }
    }

    /// Does something with the log while nobody else does. Fails if somebody else has failed.
    fn write<T>(&self, act: impl FnOnce(&mut Writing) -> Result<T, LogError>) -> Result<T, LogError> {
        match self.writing.lock().as_mut() {
            Some(Writing { failed: Some(failed), .. }) => Err(failed.clone()),
            Some(writing) => act(writing),
            None => Err(LogError::Failed("whoever wrote it has ended".into())),
        }
    }
}

impl Drop for Thread {
    /// The log is closed, also if the thread has panicked: nothing more is taken.
    fn drop(&mut self) {
        self.pending.set_ended();
        *self.writing.lock() = None;
    }
}

impl Writing {
    /// Takes what there is and writes it, then does what it was asked for.
    pub(super) fn turn(&mut self) -> Result<(), LogError> {
        if let Some(failed) = &self.failed {
            return Err(failed.clone());
        }
        // If this panics, what was taken is lost.
        self.failed = Some(LogError::Failed("whoever wrote it has panicked".into()));
        let done = self.take_and_write();
        self.failed = done.as_ref().err().cloned();
        done
    }

    /// Says on disk that all is durable. Returns how often something was taken until then; none if it is not, as somebody else
    /// had no room for it meanwhile.
    fn mark(&mut self) -> Option<u64> {
        // A failure shows at the next batch.
        let _ = self.log.mark();
        self.stuck.is_empty().then(|| self.pending.times_taken())
    }

    fn take_and_write(&mut self) -> Result<(), LogError> {
        // What a spare can hold: one that was counted on may have been made smaller.
        let most = usize::try_from(self.log.batch_bytes()).unwrap_or(usize::MAX).min(WRITTEN_BYTES_MAX);
        let orders = self.pending.take(self.first, most, &mut self.taken);
        // A stream that had to wait for others comes first the next time.
        self.first = (self.first + 1) % self.streams.len().max(1);
        self.write()?;
        self.obey(orders)
    }

    /// Does what it was asked for, now that what came before is written, or has no room.
    fn obey(&mut self, orders: Vec<Order>) -> Result<(), LogError> {
        for order in orders {
            match order {
                Order::Node(changes, answer) => {
                    // A checkpoint of the node is not what the next one waits for.
                    let counts = !matches!(changes.first(), Some(NodeChange::Restated { .. }));
                    let (mut batch, mut last) = (Batch::default(), self.node_sequence);
                    for change in changes {
                        last += 1;
                        batch.push(NODE_STREAM, last, |out| change.encode(out));
                    }
                    let written = batch.bytes() as u64;
                    let first = match self.log.append(&mut batch) {
                        Ok(()) => {
                            self.growth.add(if counts { written } else { 0 });
                            Some(std::mem::replace(&mut self.node_sequence, last) + 1)
                        }
                        Err(LogError::Full(_)) => None,
                        Err(error) => return Err(error),
                    };
                    let _ = answer.send(first);
                }
                Order::Flush(answer) => _ = answer.send(self.stuck.is_empty()),
                Order::BeginReplay(streams, answer) => match self.log.begin_replay_at(&streams) {
                    Ok(()) => _ = answer.send(true),
                    Err(LogError::Full(_)) => _ = answer.send(false),
                    Err(error) => return Err(error),
                },
            }
        }
        Ok(())
    }

    fn write(&mut self) -> Result<(), LogError> {
        self.retry()?;
        let (mut bytes, mut ends) = (0, Vec::new());
        let Writing { streams, taken, last, batch, .. } = self;
        for (at, ((&(stream, _), taken), last)) in streams.iter().zip(taken).zip(last).enumerate() {
            let before = *last;
            for change in taken.drain(..) {
                *last += 1;
                bytes += change.bytes();
                batch.push(stream, *last, |out| change.encode(out));
            }
            if *last > before {
                ends.push((at, *last));
            }
            taken.shrink_to(TAKEN_CHANGES_KEPT);
        }
        let mut whole = Whole { batch: std::mem::take(batch), bytes, last: ends };
        match self.append(&mut whole) {
            Err(LogError::Full(why)) => {
                let bytes = ByteSize(whole.batch.bytes() as u64);
                tracing::error!(
                    "the disk has no room for {bytes} of the journal ({why}): what was published waits to be \
                     confirmed, until there is some"
                );
                self.pending.set_stuck(whole.last.iter().map(|&(at, _)| at));
                self.stuck.push(Stuck { whole, tried: Instant::now() });
                Ok(())
            }
            done => {
                self.batch = whole.batch;
                done
            }
        }
    }

    /// Tries again to write what the disk had no room for. If the node stops, it does not wait for that any longer.
    fn retry(&mut self) -> Result<(), LogError> {
        for mut stuck in std::mem::take(&mut self.stuck) {
            let is_ending = self.pending.is_ending();
            if !is_ending && stuck.tried.elapsed() < FULL_RETRY_EVERY {
                self.stuck.push(stuck);
                continue;
            }
            match self.append(&mut stuck.whole) {
                Err(LogError::Full(_)) if !is_ending => {
                    stuck.tried = Instant::now();
                    self.stuck.push(stuck);
                }
                done => done?,
            }
            if self.stuck.is_empty() {
                tracing::info!("the journal is written again");
            }
        }
        Ok(())
    }

    /// Tells those who wait for what is in a batch.
    fn tell(&self, whole: &Whole) {
        for &(at, last) in &whole.last {
            self.streams[at].1.advance(last);
        }
    }

    /// Appends a batch, and tells whom that concerns.
    fn append(&mut self, whole: &mut Whole) -> Result<(), LogError> {
        if whole.batch.is_empty() {
            return Ok(());
        }
        let (written, began) = (whole.batch.bytes() as u64, Instant::now());
        if planted(Bug::ReachedBeforeSync) {
            self.tell(whole);
        }
        self.log.append(&mut whole.batch)?;
        self.pending.set_write_took(began.elapsed());
        self.growth.add(written);
        self.tell(whole);
        self.pending.set_written(whole.last.iter().map(|&(at, _)| at), whole.bytes);
        Ok(())
    }
}

#[cfg(test)]
mod tests;
