//! Where durable facts go: the journal of the node, and the thread that writes it.
//!
//! Owns: changes that are decided and not yet durable, how far each virtual host's stream is durable, and who waits
//! for that.
//! Must not know: what a change says.
//!
//! Group commit that never waits: the writer takes all that is pending, writes and syncs it as one batch, and takes
//! what came meanwhile. Changes that belong together are one group, which is never split. What a full disk has no room for
//! waits, while others pass it; nothing that the writer is asked to do does. After a failed write or sync it takes nothing
//! more, and nothing becomes durable any more.

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::mpsc::{Sender, SyncSender, sync_channel};
use std::thread::JoinHandle;
use std::time::Instant;

use bytesize::ByteSize;
use leveret_broker::change::NodeChange;
use leveret_broker::{Change, JournalPosition};
use leveret_journal::{Batch, Log, LogError, Spares};
use parking_lot::{Condvar, Mutex};
use tokio::sync::watch;

#[cfg(test)]
use crate::limits::PENDING_BYTES_MAX;
use crate::limits::{FULL_RETRY_EVERY, GROUP_BYTES, IDLE_BEFORE_MARK, TAKEN_CHANGES_KEPT, WRITTEN_BYTES_MAX};
use crate::outbox::Outbox;
use crate::recovery::NODE_STREAM;

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
        let streams = vec![PendingStream::new(1)];
        let state = Mutex::new(State { streams, ..State::default() });
        let (congested, _) = watch::channel(Congestion::None);
        let pending = Arc::new(Pending {
            state,
            filled: Condvar::new(),
            congested,
            bytes_max: PENDING_BYTES_MAX,
            room: Room::default(),
            spares: None,
        });
        Stream::kept(1, JournalPosition::default(), &pending)
    }

    /// How many changes wait for a writer, and how many of them it may take.
    #[cfg(test)]
    pub(crate) fn waiting_and_whole(&self) -> (usize, usize) {
        let state = self.pending.as_ref().map(|pending| pending.state.lock());
        let stream = state.as_ref().and_then(|state| state.streams.first());
        stream
            .map_or((0, 0), |stream| (stream.changes.len(), stream.groups.iter().map(|group| group.changes).sum()))
    }

    fn kept(number: u32, last: JournalPosition, pending: &Arc<Pending>) -> Arc<Self> {
        let (pending, durable) = (Some(Arc::clone(pending)), AtomicU64::new(last.0));
        Arc::new(Stream { number, pending, durable, waiting: Mutex::default() })
    }

    /// Takes changes in, in order, with the lock of the virtual host held. The last of them may belong together with
    /// the next ones; they become durable with those.
    pub(crate) fn append(&self, changes: &mut Vec<Change>, go_on: bool) -> Appended {
        let mut appended = if changes.is_empty() { Appended::Nothing } else { Appended::Changes };
        let Some(pending) = &self.pending else {
            self.durable.fetch_add(changes.len() as u64, Ordering::Release);
            changes.clear();
            return Appended::Nothing;
        };
        let mut bytes = 0;
        for change in &*changes {
            bytes += change.bytes();
            if matches!(change, Change::MessageEnqueued { .. }) {
                appended = Appended::Messages;
            }
        }
        let mut state = pending.state.lock();
        if state.has_ended {
            changes.clear();
            return Appended::Nothing;
        }
        let Some(stream) = state.streams.iter_mut().find(|stream| stream.number == self.number) else {
            return Appended::Nothing;
        };
        stream.append(changes, bytes, go_on);
        state.bytes += bytes;
        let congestion = pending.congestion(state.bytes);
        pending.congested.send_if_modified(|before| {
            let is_worse = congestion > *before;
            *before = congestion.max(*before);
            is_worse
        });
        let is_idle = std::mem::take(&mut state.is_idle);
        drop(state);
        if is_idle {
            pending.filled.notify_one();
        }
        appended
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
        self.pending.as_ref().map(|pending| pending.congested.subscribe())
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

/// Something that the writer is asked to do between two batches. It answers when it is done, or there is no room for it; if it
/// ends before, the answer's sender is dropped.
enum Order {
    /// Append records to the stream of the node; the answer is the sequence of the first.
    Node(Vec<NodeChange>, SyncSender<Option<u64>>),
    /// Write what came before this; the answer is whether there was room for it.
    Flush(SyncSender<bool>),
    /// Let a start begin to read each stream there; the answer is whether there was room to say so.
    BeginReplay(BTreeMap<u32, u64>, SyncSender<bool>),
}

/// The writer has ended.
#[derive(Clone, Copy, Debug)]
pub(crate) struct WriterEnded;

/// Where orders for the writer are left.
#[derive(Clone)]
pub(crate) struct Orders(Arc<Pending>);

impl Orders {
    fn ask<T>(&self, order: impl FnOnce(SyncSender<T>) -> Order) -> Result<T, WriterEnded> {
        let (answer, answered) = sync_channel(1);
        let mut state = self.0.state.lock();
        if state.has_ended || state.is_ending {
            return Err(WriterEnded);
        }
        state.orders.push(order(answer));
        drop(state);
        self.0.filled.notify_one();
        answered.recv().map_err(|_| WriterEnded)
    }

    /// Appends records to the stream of the node. When this returns, they are durable. Returns the sequence of the first;
    /// none if there is no room for them.
    pub(crate) fn append_to_node(&self, changes: Vec<NodeChange>) -> Result<Option<u64>, WriterEnded> {
        self.ask(|answer| Order::Node(changes, answer))
    }

    /// Returns when everything is durable that was appended before; false if there is no room for it.
    pub(crate) fn flush(&self) -> Result<bool, WriterEnded> {
        self.ask(Order::Flush)
    }

    /// The disk has room ready for so many bytes of publishers, and as little as there is has been dealt with. Acks leave `least`
    /// of what is ready to checkpoints.
    pub(crate) fn set_room(&self, bytes: u64, least: u64) {
        self.0.room.publishers.store(usize::try_from(bytes).unwrap_or(usize::MAX), Ordering::Relaxed);
        self.0.room.least.store(least, Ordering::Relaxed);
        self.relieve();
    }

    /// From now on those who ack wait while less is ready than must be left, or they do not, as nothing wins more.
    pub(crate) fn set_acks_wait(&self, do_wait: bool) {
        if self.0.room.acks_wait.swap(do_wait, Ordering::Relaxed) && !do_wait {
            self.relieve();
        }
    }

    /// Whether less is ready.
    pub(crate) fn is_scarce(&self) -> bool {
        self.0.is_scarce()
    }

    fn relieve(&self) {
        let state = self.0.state.lock();
        self.0.relieve(state.bytes * 2);
    }

    /// Lets a start begin to read each stream at a sequence; false if there is no room to say so.
    pub(crate) fn begin_replay_at(&self, streams: BTreeMap<u32, u64>) -> Result<bool, WriterEnded> {
        self.ask(|answer| Order::BeginReplay(streams, answer))
    }
}

/// What is decided and not yet taken by the writer.
struct Pending {
    state: Mutex<State>,
    filled: Condvar,
    congested: watch::Sender<Congestion>,
    /// Bytes from which on publishers wait; from twice as many on, others do, too.
    bytes_max: usize,
    room: Room,
    /// What is ready.
    spares: Option<Arc<Spares>>,
}

/// What the disk allows.
#[derive(Debug)]
struct Room {
    /// Bytes that may wait before publishers do.
    publishers: AtomicUsize,
    /// Bytes that acks leave ready.
    least: AtomicU64,
    /// They wait for that.
    acks_wait: AtomicBool,
}

impl Default for Room {
    fn default() -> Self {
        let (publishers, least) = (AtomicUsize::new(usize::MAX), AtomicU64::new(0));
        Room { publishers, least, acks_wait: AtomicBool::new(true) }
    }
}

impl Pending {
    fn congestion(&self, bytes: usize) -> Congestion {
        if bytes > 2 * self.bytes_max || (self.room.acks_wait.load(Ordering::Relaxed) && self.is_scarce()) {
            Congestion::Changes
        } else if bytes > self.bytes_max.min(self.room.publishers.load(Ordering::Relaxed))
            || self.spares.as_ref().is_some_and(|spares| spares.is_low())
        {
            Congestion::Messages
        } else {
            Congestion::None
        }
    }

    fn is_scarce(&self) -> bool {
        self.spares.as_ref().is_some_and(|spares| spares.bytes() < self.room.least.load(Ordering::Relaxed))
    }

    /// Lets those go on who need not wait any more for so many bytes.
    fn relieve(&self, bytes: usize) {
        let congestion = self.congestion(bytes);
        self.congested.send_if_modified(|before| {
            let is_better = congestion < *before;
            *before = congestion.min(*before);
            is_better
        });
    }
}

#[derive(Default)]
struct State {
    streams: Vec<PendingStream>,
    /// Bytes that wait or are being written.
    bytes: usize,
    /// The writer sleeps and wants to be woken.
    is_idle: bool,
    /// The writer ends when everything is written.
    is_ending: bool,
    /// It has, or it has failed.
    has_ended: bool,
    orders: Vec<Order>,
}

struct PendingStream {
    number: u32,
    changes: Vec<Change>,
    /// What of them may become durable without those that follow, from the first on. A group is written as a whole.
    groups: VecDeque<Group>,
    /// What follows, and is not complete yet.
    open: Group,
    /// What came before has no room.
    is_stuck: bool,
}

#[derive(Clone, Copy, Debug, Default)]
struct Group {
    changes: usize,
    bytes: usize,
}

impl PendingStream {
    fn new(number: u32) -> Self {
        PendingStream {
            number,
            changes: Vec::new(),
            groups: VecDeque::new(),
            open: Group::default(),
            is_stuck: false,
        }
    }

    /// Whether something can be taken.
    fn has_work(&self) -> bool {
        !self.groups.is_empty() && !self.is_stuck
    }

    fn append(&mut self, changes: &mut Vec<Change>, bytes: usize, go_on: bool) {
        self.open.changes += changes.len();
        self.open.bytes += bytes;
        self.changes.append(changes);
        if go_on || self.open.changes == 0 {
            return;
        }
        let closed = std::mem::take(&mut self.open);
        match self.groups.back_mut() {
            // Nothing keeps small ones apart.
            Some(last) if last.bytes + closed.bytes <= GROUP_BYTES => {
                last.changes += closed.changes;
                last.bytes += closed.bytes;
            }
            _ => self.groups.push_back(closed),
        }
    }

    /// Takes whole groups, as long as they have room in `most` bytes; the first one always, if nothing else was taken.
    fn take(&mut self, taken: &mut Vec<Change>, bytes: &mut usize, most: usize) {
        let mut changes = 0;
        while !self.is_stuck
            && let Some(group) = self.groups.front()
            && (*bytes == 0 || *bytes + group.bytes <= most)
        {
            *bytes += group.bytes.max(1);
            changes += group.changes;
            self.groups.pop_front();
        }
        if changes == self.changes.len() {
            std::mem::swap(&mut self.changes, taken);
        } else {
            taken.extend(self.changes.drain(..changes));
        }
    }
}

impl State {
    fn has_work(&self) -> bool {
        !self.orders.is_empty() || self.streams.iter().any(PendingStream::has_work)
    }
}

/// The thread that writes the journal.
pub(crate) struct Writer {
    pending: Arc<Pending>,
    thread: Option<JoinHandle<()>>,
    growth: Arc<Growth>,
    failed: watch::Receiver<Option<String>>,
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
        let pending_streams = streams.iter().map(|&(number, _)| PendingStream::new(number));
        let state = State { streams: pending_streams.collect(), ..State::default() };
        let (congested, _) = watch::channel(Congestion::None);
        let (state, filled) = (Mutex::new(state), Condvar::new());
        let (room, spares) = (Room::default(), Some(log.spares()));
        let pending = Arc::new(Pending { state, filled, congested, bytes_max, room, spares });
        let streams: Vec<_> = streams.iter().map(|&(number, last)| Stream::kept(number, last, &pending)).collect();
        let (failing, failed) = watch::channel(None);
        let growth = Arc::new(Growth { mark: AtomicU64::new(u64::MAX), ..Growth::default() });
        let writing = Writing {
            pending: Arc::clone(&pending),
            streams: streams.clone(),
            log,
            first: 0,
            stuck: Vec::new(),
            node_sequence,
            growth: Arc::clone(&growth),
        };
        let thread = std::thread::Builder::new().name("journal".into()).spawn(move || {
            if let Err(error) = writing.run() {
                tracing::error!("{error}; what was not confirmed is lost");
                failing.send_replace(Some(error.to_string()));
            }
        })?;
        Ok((Writer { pending, thread: Some(thread), failed, growth }, streams))
    }

    /// Why nothing is kept any more, once that is so.
    pub(crate) fn failed(&self) -> watch::Receiver<Option<String>> {
        self.failed.clone()
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
        self.pending.state.lock().is_ending = true;
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
    /// The stream that is taken from first the next time.
    first: usize,
    /// What there is no room for.
    stuck: Vec<Stuck>,
    /// The last sequence in the stream of the node.
    node_sequence: u64,
    growth: Arc<Growth>,
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

impl Writing {
    fn run(mut self) -> Result<(), LogError> {
        let mut last: Vec<u64> = self.streams.iter().map(|stream| stream.durable().0).collect();
        let mut taken: Vec<Vec<Change>> = self.streams.iter().map(|_| Vec::new()).collect();
        let mut batch = Batch::default();
        loop {
            let Some(orders) = self.take(&mut taken) else {
                return match self.log.mark() {
                    // Nothing that was promised is missing.
                    Err(LogError::Full(_)) => Ok(()),
                    marked => marked,
                };
            };
            self.write(&mut taken, &mut last, &mut batch)?;
            self.obey(orders)?;
        }
    }

    /// Does what it was asked for, now that what came before is written, or has no room.
    fn obey(&mut self, orders: Vec<Order>) -> Result<(), LogError> {
        for order in orders {
            match order {
                Order::Node(changes, answer) => {
                    let (mut batch, mut last) = (Batch::default(), self.node_sequence);
                    for change in changes {
                        last += 1;
                        batch.push(NODE_STREAM, last, |out| change.encode(out));
                    }
                    let first = match self.log.append(&mut batch) {
                        Ok(()) => Some(std::mem::replace(&mut self.node_sequence, last) + 1),
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

    /// Waits for changes and takes all that there are, with the orders that came before the last of them; none when there
    /// will be no more.
    fn take(&mut self, taken: &mut [Vec<Change>]) -> Option<Vec<Order>> {
        let mut state = self.pending.state.lock();
        let mut is_marked = false;
        while !state.has_work() {
            if state.is_ending && self.stuck.is_empty() {
                return None;
            }
            state.is_idle = true;
            if !self.stuck.is_empty() {
                self.pending.filled.wait_for(&mut state, FULL_RETRY_EVERY);
                break;
            }
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
        // A stream that had to wait for others comes first the next time.
        let (first, mut bytes) = (self.first, 0);
        self.first = (first + 1) % state.streams.len().max(1);
        // What a spare can hold: one that was counted on may have been made smaller.
        let most =
            usize::try_from(self.log.batch_bytes()).map_or(WRITTEN_BYTES_MAX, |most| most.min(WRITTEN_BYTES_MAX));
        let (before, from) = taken.split_at_mut(first);
        let (streams_before, streams_from) = state.streams.split_at_mut(first);
        let in_turn = streams_from.iter_mut().zip(from).chain(streams_before.iter_mut().zip(before));
        for (stream, taken) in in_turn {
            stream.take(taken, &mut bytes, most);
        }
        // Those that do not fit into this batch come before any order.
        let is_all = !state.streams.iter().any(PendingStream::has_work);
        Some(if is_all { std::mem::take(&mut state.orders) } else { Vec::new() })
    }

    fn write(&mut self, taken: &mut [Vec<Change>], last: &mut [u64], batch: &mut Batch) -> Result<(), LogError> {
        self.retry()?;
        let (mut bytes, mut ends) = (0, Vec::new());
        for (at, ((stream, taken), last)) in self.streams.iter().zip(&mut *taken).zip(&mut *last).enumerate() {
            for change in taken.drain(..) {
                *last += 1;
                bytes += change.bytes();
                batch.push(stream.number, *last, |out| change.encode(out));
                if ends.last().is_none_or(|&(end, _)| end != at) {
                    ends.push((at, 0));
                }
            }
            if let Some((end, reached)) = ends.last_mut()
                && *end == at
            {
                *reached = *last;
            }
        }
        for taken in taken {
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
                let mut state = self.pending.state.lock();
                for &(at, _) in &whole.last {
                    state.streams[at].is_stuck = true;
                }
                self.stuck.push(Stuck { whole, tried: Instant::now() });
                Ok(())
            }
            done => {
                *batch = whole.batch;
                done
            }
        }
    }

    /// Tries again to write what the disk had no room for. If the node stops, it does not wait for that any longer.
    fn retry(&mut self) -> Result<(), LogError> {
        for mut stuck in std::mem::take(&mut self.stuck) {
            let is_ending = self.pending.state.lock().is_ending;
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

    /// Appends a batch, and tells whom that concerns.
    fn append(&mut self, whole: &mut Whole) -> Result<(), LogError> {
        let written = whole.batch.bytes() as u64;
        self.log.append(&mut whole.batch)?;
        self.growth.add(written);
        for &(at, last) in &whole.last {
            self.streams[at].advance(last);
        }
        let mut state = self.pending.state.lock();
        for &(at, _) in &whole.last {
            state.streams[at].is_stuck = false;
        }
        state.bytes -= whole.bytes;
        // Held until half of what holds them is written, so that they do not stop and go with every batch.
        self.pending.relieve(state.bytes * 2);
        Ok(())
    }
}

impl Drop for Writing {
    /// Nothing more is taken, and nobody waits for an answer: also if the thread has panicked.
    fn drop(&mut self) {
        let mut state = self.pending.state.lock();
        state.has_ended = true;
        state.orders.clear();
        for stream in &mut state.streams {
            *stream = PendingStream::new(stream.number);
        }
    }
}

#[cfg(test)]
mod tests {
    use leveret_broker::change::{QueueNumber, QueuePosition};
    use leveret_journal::disk::{Disk, DiskFile};
    use leveret_journal::{Options, RealDisk};

    use super::*;

    fn changes(count: u64) -> Vec<Change> {
        let settled =
            |position| Change::MessageSettled { queue: QueueNumber(1), position: QueuePosition(position) };
        (0..count).map(settled).collect()
    }

    /// Several transactions may be as large as one batch can be.
    #[test]
    fn what_belongs_together_is_never_split_and_too_much_is_not_written_at_once() {
        let mut stream = PendingStream::new(1);
        let large = WRITTEN_BYTES_MAX / 2 + 1;
        stream.append(&mut changes(3), 10, false);
        stream.append(&mut changes(2), 10, false);
        stream.append(&mut changes(5), large, true);
        stream.append(&mut changes(5), large, false);
        stream.append(&mut changes(1), large, false);
        stream.append(&mut changes(7), 10, true);
        let mut take = || {
            let (mut taken, mut bytes) = (Vec::new(), 0);
            stream.take(&mut taken, &mut bytes, WRITTEN_BYTES_MAX);
            taken.len()
        };
        assert_eq!(take(), 5, "small ones together");
        assert_eq!(take(), 10, "a large one alone, though it is more than is written at once");
        assert_eq!(take(), 1);
        assert_eq!(take(), 0, "what is not complete yet");
        stream.append(&mut Vec::new(), 0, false);
        let (mut taken, mut bytes) = (Vec::new(), WRITTEN_BYTES_MAX);
        stream.take(&mut taken, &mut bytes, WRITTEN_BYTES_MAX);
        assert_eq!(taken.len(), 0, "another stream has filled the batch");
        stream.take(&mut taken, &mut 0, WRITTEN_BYTES_MAX);
        assert_eq!(taken.len(), 7);
    }

    #[test]
    fn acks_wait_later_than_messages() {
        let (state, filled) = (Mutex::default(), Condvar::new());
        let (congested, _) = watch::channel(Congestion::None);
        let (room, spares) = (Room::default(), None);
        let pending = Pending { state, filled, congested, bytes_max: 100, room, spares };
        for (bytes, holds_messages, holds_acks) in [(100, false, false), (101, true, false), (201, true, true)] {
            let congestion = pending.congestion(bytes);
            assert_eq!(congestion.holds(Appended::Messages), holds_messages, "{bytes} bytes");
            assert_eq!(congestion.holds(Appended::Changes), holds_acks, "{bytes} bytes");
            assert!(!congestion.holds(Appended::Nothing));
        }
    }

    /// A folder on a disk that has so many bytes left.
    struct SmallDisk {
        files: RealDisk,
        left: Arc<Mutex<u64>>,
    }

    struct SmallFile {
        file: Arc<dyn DiskFile>,
        left: Arc<Mutex<u64>>,
    }

    impl SmallDisk {
        fn of(&self, file: Arc<dyn DiskFile>) -> Arc<dyn DiskFile> {
            Arc::new(SmallFile { file, left: Arc::clone(&self.left) })
        }
    }

    impl Disk for SmallDisk {
        fn create(&self, name: &str) -> io::Result<Arc<dyn DiskFile>> {
            Ok(self.of(self.files.create(name)?))
        }

        fn open(&self, name: &str) -> io::Result<Arc<dyn DiskFile>> {
            Ok(self.of(self.files.open(name)?))
        }

        fn list(&self) -> io::Result<Vec<String>> {
            self.files.list()
        }

        fn rename(&self, from: &str, to: &str) -> io::Result<()> {
            self.files.rename(from, to)
        }

        fn remove(&self, name: &str) -> io::Result<()> {
            self.files.remove(name)
        }

        fn sync_directory(&self) -> io::Result<()> {
            self.files.sync_directory()
        }

        fn free_bytes(&self) -> io::Result<u64> {
            Ok(*self.left.lock())
        }
    }

    impl DiskFile for SmallFile {
        fn write_at(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
            self.file.write_at(offset, bytes)
        }

        fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<usize> {
            self.file.read_at(offset, buffer)
        }

        fn sync(&self) -> io::Result<()> {
            self.file.sync()
        }

        fn preallocate(&self, end: u64) -> io::Result<()> {
            let more = end.saturating_sub(self.length()?);
            let mut left = self.left.lock();
            assert_ne!(*left, BROKEN, "whoever writes dies, as it should");
            *left = left.checked_sub(more).ok_or(io::ErrorKind::StorageFull)?;
            self.file.preallocate(end)
        }

        fn truncate(&self, end: u64) -> io::Result<()> {
            self.file.truncate(end)
        }

        fn length(&self) -> io::Result<u64> {
            self.file.length()
        }
    }

    /// Bytes that are left on a disk that ends its writer.
    const BROKEN: u64 = 13;

    /// A writer of two streams, its disk, and how much is left on it.
    fn on_small_disk(folder: &tempfile::TempDir) -> (Writer, Vec<Arc<Stream>>, Arc<Mutex<u64>>) {
        let left = Arc::new(Mutex::new(1 << 30));
        let disk = SmallDisk { files: RealDisk::new(folder.path()).unwrap(), left: Arc::clone(&left) };
        let options = Options { segment_bytes: 1 << 20, salt: [1; 16] };
        let (log, _) = Log::open(Arc::new(disk), options, &mut |_| {}).unwrap();
        let streams = [(1, JournalPosition(0)), (2, JournalPosition(0))];
        let (writer, streams) = Writer::start(log, PENDING_BYTES_MAX, 0, &streams).unwrap();
        (writer, streams, left)
    }

    /// One of three megabytes.
    fn large() -> Change {
        let except = (0..400_000).map(QueuePosition).collect();
        Change::QueuePurged { queue: QueueNumber(1), below: QueuePosition(400_000), except }
    }

    #[test]
    fn what_has_no_room_holds_up_nobody_else_and_is_written_when_there_is_some() {
        let folder = tempfile::tempdir().unwrap();
        let (mut writer, streams, left) = on_small_disk(&folder);
        let orders = writer.orders();
        assert!(orders.flush().unwrap());
        *left.lock() = 0;
        streams[0].append(&mut vec![large()], false);
        assert!(!orders.flush().unwrap(), "nobody waits for room");
        streams[1].append(&mut changes(5), false);
        assert!(!orders.flush().unwrap());
        assert_eq!((streams[0].durable(), streams[1].durable()), (JournalPosition(0), JournalPosition(5)));
        assert_eq!(orders.append_to_node(Vec::new()).unwrap(), Some(1));
        *left.lock() = 1 << 30;
        while !orders.flush().unwrap() {
            std::thread::yield_now();
        }
        assert_eq!(streams[0].durable(), JournalPosition(1));
        writer.stop();
        assert!(writer.failed().borrow().is_none());
    }

    #[test]
    fn acks_wait_for_a_checkpoint_before_they_take_its_room() {
        let folder = tempfile::tempdir().unwrap();
        let (writer, streams, _) = on_small_disk(&folder);
        let orders = writer.orders();
        let congestion = |stream: &Arc<Stream>| {
            stream.append(&mut changes(1), false);
            *stream.congestion().unwrap().borrow()
        };
        orders.set_room(1 << 20, 0);
        assert!(!congestion(&streams[0]).holds(Appended::Changes));
        orders.set_room(1 << 20, 1);
        assert!(congestion(&streams[0]).holds(Appended::Changes), "less is ready than must be left");
        orders.set_acks_wait(false);
        assert!(!congestion(&streams[0]).holds(Appended::Changes), "no checkpoint would win more");
    }

    #[test]
    fn who_asks_a_writer_that_has_panicked_is_told_that_it_has_ended() {
        let folder = tempfile::tempdir().unwrap();
        let (writer, streams, left) = on_small_disk(&folder);
        let orders = writer.orders();
        let (asked, answered) = std::sync::mpsc::channel();
        *left.lock() = BROKEN;
        streams[0].append(&mut vec![large()], false);
        std::thread::spawn(move || asked.send((orders.flush().is_err(), orders.flush().is_err())));
        assert_eq!(answered.recv_timeout(std::time::Duration::from_secs(20)), Ok((true, true)));
        streams[0].append(&mut changes(5), false);
        assert_eq!(streams[0].waiting_and_whole(), (0, 0), "nothing is kept for it");
    }
}
