//! What is decided and not yet written, and what the writer is asked for.
//!
//! Owns: in which order it is taken, and who has to wait for that.
//!
//! Changes that belong together are one group, which is never split.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use leveret_broker::Change;
use leveret_broker::change::NodeChange;
use leveret_journal::Spares;
use leveret_planted::{Bug, planted};

use super::{Appended, Congestion};
use crate::limits::{GROUP_BYTES, WRITTEN_HERE_BYTES_MAX, WRITTEN_HERE_NANOS_MAX};
use crate::sync::atomic::{AtomicU8, AtomicU64, AtomicUsize, Ordering};
use crate::sync::mpsc::{SyncSender, sync_channel};
use crate::sync::{Condvar, Mutex, MutexGuard, watch};

/// Something that the writer is asked to do between two batches. It answers when it is done, or there is no room for it; if it
/// ends before, the answer's sender is dropped.
pub(super) enum Order {
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
pub(crate) struct Orders(pub(super) Arc<Pending>);

impl Orders {
    fn ask<T>(&self, order: impl FnOnce(SyncSender<T>) -> Order) -> Result<T, WriterEnded> {
        let (answer, answered) = sync_channel(1);
        let mut state = self.0.state.lock();
        if state.writer != Life::Running {
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

    /// From now on those who ack wait while less is ready than must be left, or they do not.
    pub(crate) fn set_acks_wait(&self, acks_wait: AcksWait) {
        // In one order with what is known of the disk: of two who say so, the last one knows it.
        let before = self.0.room.acks_wait.swap(acks_wait as u8, Ordering::SeqCst);
        if before == AcksWait::Yes as u8 && acks_wait != AcksWait::Yes {
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
pub(super) struct Pending {
    state: Mutex<State>,
    /// Bytes in there, for those who do not have its lock.
    bytes: AtomicUsize,
    filled: Condvar,
    congested: watch::Sender<Congestion>,
    /// Bytes from which on publishers wait; from twice as many on, others do, too.
    bytes_max: usize,
    room: Room,
    /// What is ready.
    spares: Option<Arc<Spares>>,
    /// How long a write takes with its sync, about; the largest number if there was none.
    write_nanos: AtomicU64,
}

/// Whether those who ack wait while less is ready than must be left.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum AcksWait {
    /// For a checkpoint that wins room.
    Yes,
    /// None would win more, until somebody has acked something: whoever comes next waits for the one that is due then. Else they would
    /// take the room that it needs before anybody looks again.
    OnceThereIsMore,
    /// None finds room.
    No,
}

/// What the disk allows.
#[derive(Debug)]
struct Room {
    /// Bytes that may wait before publishers do.
    publishers: AtomicUsize,
    /// Bytes that acks leave ready.
    least: AtomicU64,
    /// An [`AcksWait`]: whether they wait for that.
    acks_wait: AtomicU8,
}

impl Default for Room {
    fn default() -> Self {
        let (publishers, least) = (AtomicUsize::new(usize::MAX), AtomicU64::new(0));
        Room { publishers, least, acks_wait: AtomicU8::new(AcksWait::Yes as u8) }
    }
}

/// Why the writer goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Woken {
    /// There may be something to take.
    Filled,
    /// There was nothing for as long as it wanted to wait.
    Idle,
    /// There is nothing, and there will be nothing more.
    Ending,
}

impl Pending {
    /// What is decided for these streams, and how much of it there may be before publishers wait.
    pub(super) fn new(
        streams: impl IntoIterator<Item = u32>,
        bytes_max: usize,
        spares: Option<Arc<Spares>>,
    ) -> Arc<Self> {
        let streams = streams.into_iter().map(PendingStream::new).collect();
        let (congested, _) = watch::channel(Congestion::None);
        Arc::new(Pending {
            state: Mutex::new(State { streams, ..State::default() }),
            bytes: AtomicUsize::new(0),
            filled: Condvar::new(),
            congested,
            bytes_max,
            room: Room::default(),
            spares,
            write_nanos: AtomicU64::new(u64::MAX),
        })
    }

    /// Takes another stream in, behind all others.
    pub(super) fn open(&self, stream: u32) {
        let mut state = self.state.lock();
        assert!(state.streams.last().is_none_or(|last| last.number < stream), "it would not be found");
        state.streams.push(PendingStream::new(stream));
    }

    /// Takes changes of a stream in. The last of them may belong together with the next ones.
    pub(super) fn append(&self, stream: u32, changes: &mut Vec<Change>, go_on: bool) -> Appended {
        // Also without any: what came before may be complete now.
        let (mut appended, mut bytes) = (Appended::Changes, 0);
        for change in &*changes {
            bytes += change.bytes();
            if matches!(change, Change::MessageEnqueued { .. }) {
                appended = Appended::Messages;
            }
        }
        let mut state = self.state.lock();
        if state.writer == Life::Ended {
            changes.clear();
            return Appended::Nothing;
        }
        let Ok(at) = state.streams.binary_search_by_key(&stream, |pending| pending.number) else {
            debug_assert!(false, "stream {stream} was not opened");
            tracing::error!("{} changes of stream {stream} are lost, as nobody has opened it", changes.len());
            changes.clear();
            return Appended::Nothing;
        };
        let stream = &mut state.streams[at];
        stream.append(changes, bytes, go_on);
        state.bytes += bytes;
        self.bytes.store(state.bytes, Ordering::Relaxed);
        if bytes > 0 && self.acks_wait(AcksWait::OnceThereIsMore) {
            self.room.acks_wait.store(AcksWait::Yes as u8, Ordering::Relaxed);
        }
        let congestion = self.congestion(state.bytes);
        if planted(Bug::CongestionToldLate) {
            drop(state);
        }
        self.congested.send_if_modified(|before| {
            let is_worse = congestion > *before;
            *before = congestion.max(*before);
            is_worse
        });
        appended
    }

    /// Wakes the writer, if it sleeps.
    pub(super) fn wake(&self) {
        let is_idle = std::mem::take(&mut self.state.lock().is_idle);
        if is_idle {
            self.filled.notify_one();
        }
    }

    /// Whether little waits, nothing is asked for, and the last writes took little time.
    pub(super) fn is_quick(&self) -> bool {
        if self.write_nanos.load(Ordering::Relaxed) > WRITTEN_HERE_NANOS_MAX {
            return false;
        }
        let state = self.state.lock();
        state.bytes <= WRITTEN_HERE_BYTES_MAX && state.orders.is_empty() && state.writer == Life::Running
    }

    /// A write and its sync took so long.
    pub(super) fn set_write_took(&self, took: Duration) {
        let took = u64::try_from(took.as_nanos()).unwrap_or(u64::MAX);
        let before = self.write_nanos.load(Ordering::Relaxed);
        // One that is late for once does not count for all, but the first one is all there is.
        let smooth = if before == u64::MAX { took } else { before - before / 8 + took / 8 };
        self.write_nanos.store(smooth, Ordering::Relaxed);
    }

    /// How often something was taken.
    pub(super) fn times_taken(&self) -> u64 {
        self.state.lock().times_taken
    }

    /// Whether the writer sleeps until it is woken. Whoever takes something then has to wake it, so that it says on disk that all
    /// is durable.
    pub(super) fn rests(&self) -> bool {
        self.state.lock().rests
    }

    /// Lets the writer wait for something to take, so long at most from when something was taken last. It rests without an
    /// end if nothing was taken since so many `times`.
    pub(super) fn wait(&self, at_most: Duration, times: Option<u64>) -> Woken {
        let mut state = self.state.lock();
        loop {
            if state.has_work() {
                return Woken::Filled;
            }
            if state.writer == Life::Ending {
                return Woken::Ending;
            }
            let before = state.times_taken;
            if planted(Bug::LookedBeforeIdle) {
                MutexGuard::unlocked(&mut state, || ());
            }
            state.is_idle = true;
            state.rests = times == Some(before);
            let is_late = if state.rests {
                self.filled.wait(&mut state);
                false
            } else {
                self.filled.wait_for(&mut state, at_most).timed_out()
            };
            state.rests = false;
            let is_woken = !std::mem::take(&mut state.is_idle);
            if is_woken {
                return Woken::Filled;
            }
            if is_late && !state.has_work() && state.times_taken == before {
                return Woken::Idle;
            }
        }
    }

    /// Takes what has room in `most` bytes, of the stream at `first` before that of others, and the orders that came before
    /// the last of it.
    pub(super) fn take(&self, first: usize, most: usize, taken: &mut [Vec<Change>]) -> Vec<Order> {
        let (mut state, mut bytes) = (self.state.lock(), 0);
        state.times_taken += 1;
        let (before, from) = taken.split_at_mut(first);
        let (streams_before, streams_from) = state.streams.split_at_mut(first);
        let in_turn = streams_from.iter_mut().zip(from).chain(streams_before.iter_mut().zip(before));
        for (stream, taken) in in_turn {
            stream.take(taken, &mut bytes, most);
        }
        // Those that do not fit into this batch come before any order.
        let is_all = !state.streams.iter().any(PendingStream::has_work);
        if planted(Bug::OrderDropped) && !is_all {
            state.orders.clear();
        }
        if is_all || planted(Bug::OrderOvertakes) { std::mem::take(&mut state.orders) } else { Vec::new() }
    }

    /// What was taken of these streams, by their place, has no room: what follows in them waits behind it.
    pub(super) fn set_stuck(&self, streams: impl Iterator<Item = usize>) {
        let mut state = self.state.lock();
        for at in streams {
            state.streams[at].is_stuck = true;
        }
    }

    /// So many bytes are written that were taken of these streams, by their place.
    pub(super) fn set_written(&self, streams: impl Iterator<Item = usize>, bytes: usize) {
        let mut state = self.state.lock();
        for at in streams {
            state.streams[at].is_stuck = false;
        }
        state.bytes -= bytes;
        self.bytes.store(state.bytes, Ordering::Relaxed);
        // Held until half of what holds them is written, so that they do not stop and go with every batch.
        self.relieve(state.bytes * 2);
    }

    /// Lets the writer end when everything is written.
    pub(super) fn end(&self) {
        self.state.lock().writer = Life::Ending;
        self.filled.notify_one();
    }

    /// Whether it is to end.
    pub(super) fn is_ending(&self) -> bool {
        self.state.lock().writer == Life::Ending
    }

    /// It has ended: nothing more is taken, and nobody waits for an answer.
    pub(super) fn set_ended(&self) {
        let mut state = self.state.lock();
        state.writer = Life::Ended;
        if !planted(Bug::AskersForgotten) {
            state.orders.clear();
        }
        for stream in &mut state.streams {
            *stream = PendingStream::new(stream.number);
        }
    }

    /// Bytes that may be added by nobody's publish before publishers would have to wait for what is not written. None while the
    /// disk has room for acks and checkpoints only.
    pub(super) fn room(&self) -> usize {
        if self.is_scarce() { 0 } else { self.bytes_max.saturating_sub(self.bytes.load(Ordering::Relaxed)) }
    }

    /// Who has to wait, now and from now on.
    pub(super) fn congested(&self) -> watch::Receiver<Congestion> {
        self.congested.subscribe()
    }

    #[cfg(test)]
    pub(super) fn waiting_and_whole(&self) -> (usize, usize) {
        let state = self.state.lock();
        let whole = |stream: &PendingStream| stream.groups.iter().map(|group| group.changes).sum();
        state.streams.first().map_or((0, 0), |stream| (stream.changes.len(), whole(stream)))
    }

    fn congestion(&self, bytes: usize) -> Congestion {
        if bytes > 2 * self.bytes_max || (self.acks_wait(AcksWait::Yes) && self.is_scarce()) {
            Congestion::Changes
        } else if bytes > self.bytes_max.min(self.room.publishers.load(Ordering::Relaxed))
            || self.spares.as_ref().is_some_and(|spares| spares.is_low())
        {
            Congestion::Messages
        } else {
            Congestion::None
        }
    }

    fn acks_wait(&self, how: AcksWait) -> bool {
        self.room.acks_wait.load(Ordering::Relaxed) == how as u8
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

/// How long the writer goes on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Life {
    #[default]
    Running,
    /// Until everything is written.
    Ending,
    /// It has ended, or it has failed.
    Ended,
}

#[derive(Default)]
struct State {
    /// By number.
    streams: Vec<PendingStream>,
    /// Bytes that wait or are being written.
    bytes: usize,
    /// The writer sleeps and wants to be woken.
    is_idle: bool,
    /// It sleeps until then, as nothing was taken since it said on disk that all is durable.
    rests: bool,
    /// How often something was taken.
    times_taken: u64,
    writer: Life,
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
        if (go_on && !planted(Bug::GroupSplit)) || self.open.changes == 0 {
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

#[cfg(test)]
pub(super) mod tests {
    use leveret_broker::change::{QueueNumber, QueuePosition};

    use super::super::Appended;
    use super::*;
    use crate::limits::WRITTEN_BYTES_MAX;

    /// So many acks.
    pub(in crate::journal) fn changes(count: u64) -> Vec<Change> {
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
        let pending = Pending::new([], 100, None);
        for (bytes, holds_messages, holds_acks) in [(100, false, false), (101, true, false), (201, true, true)] {
            let congestion = pending.congestion(bytes);
            assert_eq!(congestion.holds(Appended::Messages), holds_messages, "{bytes} bytes");
            assert_eq!(congestion.holds(Appended::Changes), holds_acks, "{bytes} bytes");
            assert!(!congestion.holds(Appended::Nothing));
        }
    }
}
