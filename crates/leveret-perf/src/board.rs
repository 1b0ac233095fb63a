//! What the threads of a run tell each other: counts, when to begin, when to stop.
//!
//! Each worker writes counts of its own and nobody else's, so that counting costs next to nothing.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use leveret_client::Interrupt;

/// How often those who wait for the start look up.
pub(crate) const START_LOOK_UP: Duration = Duration::from_millis(1);

/// The counts of one worker.
#[derive(Debug, Default)]
#[repr(align(128))]
pub(crate) struct Counters {
    published: AtomicU64,
    confirmed: AtomicU64,
    nacked: AtomicU64,
    received: AtomicU64,
    repeated: AtomicU64,
    overdue: AtomicU64,
    /// When the worker last published, confirmed included, and received, in nanoseconds since the beginning.
    published_ns: AtomicU64,
    received_ns: AtomicU64,
    /// How long the broker held the worker's publishes, and since when it does: 0 when it does not.
    held_ns: AtomicU64,
    held_since_ns: AtomicU64,
    moved_bytes: AtomicU64,
}

/// The sums over all workers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Totals {
    pub(crate) published: u64,
    pub(crate) confirmed: u64,
    pub(crate) nacked: u64,
    pub(crate) received: u64,
    /// Of those, what had arrived before at the same consumer, if that is looked at.
    pub(crate) repeated: u64,
    /// When the last of them did so.
    pub(crate) published_ns: u64,
    pub(crate) received_ns: u64,
    /// The longest that any of them was held.
    pub(crate) held_ns: u64,
    pub(crate) is_held: bool,
    /// Messages that were due and not sent when the run ended.
    pub(crate) overdue: u64,
    /// Bytes written and read, which are progress before they are a whole message.
    pub(crate) moved_bytes: u64,
}

impl Totals {
    /// A number that grows with every progress.
    pub(crate) fn steps(&self) -> u64 {
        self.published + self.confirmed + self.nacked + self.received + self.moved_bytes
    }
}

impl Counters {
    pub(crate) fn add_published(&self, count: u64, now_ns: u64) {
        add(&self.published, count);
        self.published_ns.store(now_ns, Ordering::Relaxed);
    }

    pub(crate) fn add_confirmed(&self, confirmed: u64, nacked: u64, now_ns: u64) {
        add(&self.confirmed, confirmed);
        add(&self.nacked, nacked);
        self.published_ns.store(now_ns, Ordering::Relaxed);
    }

    /// What was published is handled by the broker only now.
    pub(crate) fn note_handled(&self, now_ns: u64) {
        self.published_ns.store(now_ns, Ordering::Relaxed);
    }

    pub(crate) fn add_received(&self, count: u64, repeated: u64, now_ns: u64) {
        if count > 0 {
            add(&self.repeated, repeated);
            add(&self.received, count);
            self.received_ns.store(now_ns, Ordering::Relaxed);
        }
    }

    pub(crate) fn add_overdue(&self, count: u64) {
        add(&self.overdue, count);
    }

    pub(crate) fn add_moved(&self, bytes: usize) {
        add(&self.moved_bytes, bytes as u64);
    }

    pub(crate) fn handle_blocked(&self, now_ns: u64) {
        if self.held_since_ns.load(Ordering::Relaxed) == 0 {
            self.held_since_ns.store(now_ns.max(1), Ordering::Relaxed);
        }
    }

    pub(crate) fn handle_unblocked(&self, now_ns: u64) {
        let since = self.held_since_ns.swap(0, Ordering::Relaxed);
        if since > 0 {
            add(&self.held_ns, now_ns.saturating_sub(since));
        }
    }
}

/// Only one thread writes, so this needs no locked instruction.
fn add(counter: &AtomicU64, count: u64) {
    counter.store(counter.load(Ordering::Relaxed) + count, Ordering::Relaxed);
}

/// What all threads of a run see.
#[derive(Debug)]
pub(crate) struct Board {
    beginning: Instant,
    workers: Vec<Arc<Counters>>,
    /// When publishing began, in nanoseconds since the beginning; 0 before.
    producers_start_ns: AtomicU64,
    producers_end: AtomicBool,
    consumers_start_ns: AtomicU64,
    consumers_end: AtomicBool,
    /// Ctrl-C was a while ago: nobody waits any more for what is outstanding.
    is_enough: AtomicBool,
    /// The run has failed: everybody goes home without a word.
    is_given_up: Arc<AtomicBool>,
}

impl Board {
    pub(crate) fn new(workers: usize) -> Self {
        Board::since(Instant::now(), workers)
    }

    /// The board of a run that began at a time.
    pub(crate) fn since(beginning: Instant, workers: usize) -> Self {
        Board {
            beginning,
            workers: (0..workers).map(|_| Arc::default()).collect(),
            producers_start_ns: AtomicU64::new(0),
            producers_end: AtomicBool::new(false),
            consumers_start_ns: AtomicU64::new(0),
            consumers_end: AtomicBool::new(false),
            is_enough: AtomicBool::new(false),
            is_given_up: Arc::default(),
        }
    }

    pub(crate) fn worker(&self, index: usize) -> Arc<Counters> {
        Arc::clone(&self.workers[index])
    }

    /// Nanoseconds since the beginning.
    pub(crate) fn now_ns(&self) -> u64 {
        u64::try_from(self.beginning.elapsed().as_nanos()).unwrap_or(u64::MAX)
    }

    pub(crate) fn totals(&self) -> Totals {
        let now_ns = self.now_ns();
        let mut totals = Totals::default();
        for worker in &self.workers {
            let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
            totals.published += count(&worker.published);
            totals.confirmed += count(&worker.confirmed);
            totals.nacked += count(&worker.nacked);
            totals.received += count(&worker.received);
            totals.repeated += count(&worker.repeated);
            totals.overdue += count(&worker.overdue);
            totals.moved_bytes += count(&worker.moved_bytes);
            totals.published_ns = totals.published_ns.max(count(&worker.published_ns));
            totals.received_ns = totals.received_ns.max(count(&worker.received_ns));
            let since = count(&worker.held_since_ns);
            let held_now = if since > 0 { now_ns.saturating_sub(since) } else { 0 };
            totals.is_held |= since > 0;
            totals.held_ns = totals.held_ns.max(count(&worker.held_ns) + held_now);
        }
        totals
    }

    /// Lets those publish who wait for it. `now_ns` is not 0.
    pub(crate) fn start_producers(&self, now_ns: u64) {
        self.producers_start_ns.store(now_ns, Ordering::Release);
    }

    /// When publishing began.
    pub(crate) fn producers_start_ns(&self) -> Option<u64> {
        started(&self.producers_start_ns)
    }

    /// Waits until publishing begins, and says when that was; `None` when the run was given up.
    pub(crate) fn await_producers_start(&self) -> Option<u64> {
        loop {
            if self.is_given_up() {
                return None;
            }
            match self.producers_start_ns() {
                None => thread::sleep(START_LOOK_UP),
                start_ns => return start_ns,
            }
        }
    }

    /// Lets those consume who wait for it. `now_ns` is not 0.
    pub(crate) fn start_consumers(&self, now_ns: u64) {
        self.consumers_start_ns.store(now_ns, Ordering::Release);
    }

    /// When those who waited might consume.
    pub(crate) fn consumers_start_ns(&self) -> Option<u64> {
        started(&self.consumers_start_ns)
    }

    pub(crate) fn end_producers(&self) {
        self.producers_end.store(true, Ordering::Relaxed);
    }

    pub(crate) fn are_producers_over(&self) -> bool {
        self.producers_end.load(Ordering::Relaxed) || self.is_given_up()
    }

    pub(crate) fn end_consumers(&self) {
        self.consumers_end.store(true, Ordering::Relaxed);
    }

    pub(crate) fn are_consumers_over(&self) -> bool {
        self.consumers_end.load(Ordering::Relaxed) || self.is_given_up()
    }

    pub(crate) fn end_patience(&self) {
        self.is_enough.store(true, Ordering::Relaxed);
    }

    pub(crate) fn is_enough(&self) -> bool {
        self.is_enough.load(Ordering::Relaxed)
    }

    pub(crate) fn give_up(&self) {
        self.is_given_up.store(true, Ordering::Release);
    }

    /// Ends the waits of connections when the run has failed.
    pub(crate) fn interrupt(&self) -> Interrupt {
        Interrupt::new(Arc::clone(&self.is_given_up), Duration::ZERO)
    }

    pub(crate) fn is_given_up(&self) -> bool {
        self.is_given_up.load(Ordering::Acquire)
    }
}

fn started(start_ns: &AtomicU64) -> Option<u64> {
    Some(start_ns.load(Ordering::Acquire)).filter(|start_ns| *start_ns > 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_time_that_publishes_were_held_is_the_longest_of_any_worker() {
        let board = Board::new(2);
        let (one, other) = (board.worker(0), board.worker(1));
        one.handle_blocked(100);
        one.handle_blocked(150);
        one.handle_unblocked(300);
        one.handle_unblocked(400);
        other.handle_blocked(100);
        other.handle_unblocked(250);
        let totals = board.totals();
        assert_eq!((totals.held_ns, totals.is_held), (200, false));
        other.handle_blocked(1);
        assert!(board.totals().is_held);
    }

    #[test]
    fn counts_are_sums_and_times_the_last() {
        let board = Board::new(2);
        board.worker(0).add_published(3, 10);
        board.worker(1).add_published(4, 5);
        board.worker(1).add_confirmed(2, 1, 7);
        board.worker(1).add_received(0, 0, 99);
        let totals = board.totals();
        assert_eq!((totals.published, totals.confirmed, totals.nacked), (7, 2, 1));
        assert_eq!((totals.published_ns, totals.received_ns), (10, 0));
    }
}
