//! Contents that have arrived in part, on all connections together.
//!
//! Owns: what they take, and which connection may go on reading its own when that is too much.
//! Small ones always go on. Beyond a bound of all together, one connection at a time has a *turn*, first come, first served, until its
//! content is complete, and nobody reads in it while publishers wait for room, as the content would only wait, too. Contents for
//! transactions that hold others already do not wait for room, which may be what their end makes: who brings them stands in a line of
//! its own. A turn is cut into *slices*: who brings next to nothing in one, while others wait, is *slow*,
//! and loses its turn. Of the slow ones only one at a time stands in line with the others, so that however many there are, nobody
//! else waits for more than two of them. As each keeps what it has brought, that goes on up to twice the bound; from there on a
//! turn lasts longer, the longer the fewer wait for it. Who brings nothing for long is closed, and beyond twice the bound who does so
//! for a short while: it keeps memory from others. So is who brings more at once than the largest content, on several channels.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::time::{Instant, Sleep};

use crate::limits::{
    ARRIVING_BYTES_SMALL, ARRIVING_SLICE, ARRIVING_SLICE_BYTES, ARRIVING_SLICE_MIN, ARRIVING_SLOW,
    ARRIVING_SLOW_MIN, ARRIVING_SLOW_SHARED, ARRIVING_TURN, ARRIVING_TURN_BYTES, READ_BYTES,
};

/// Of a node.
#[derive(Debug)]
pub(crate) struct Arrivals {
    /// What contents take that have not arrived as a whole, or wait for room.
    bytes: AtomicUsize,
    /// Up to that, nobody waits for a turn; from twice that on, nobody loses one soon.
    bytes_max: usize,
    /// So much may be there of a single connection: the largest content and as much as all may have before there are turns, or as all may
    /// have.
    own_max: usize,
    shortage: watch::Sender<Shortage>,
    ordinary: Line,
    transacted: Line,
}

/// Those who have turns one after the other.
#[derive(Debug)]
struct Line {
    turn: Arc<Semaphore>,
    /// Of those who are slow, one may wait for a turn or have it.
    slow: Arc<Semaphore>,
    /// How many wait for a turn.
    waiting: AtomicUsize,
}

impl Default for Line {
    fn default() -> Self {
        let one = || Arc::new(Semaphore::new(1));
        Line { turn: one(), slow: one(), waiting: AtomicUsize::new(0) }
    }
}

/// Why a large content may have to wait.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Shortage {
    /// Publishers wait for room.
    of_room: bool,
    fill: Fill,
}

/// What all contents together take.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
enum Fill {
    #[default]
    Little,
    /// More than they may all at once.
    Much,
    /// No more is to be begun before something has ended.
    TooMuch,
}

impl Arrivals {
    /// An eighth of a limit on memory, in bytes, is for them, and what the last one brings that had its turn in it; if many wait, what
    /// the last ones bring, which are [`ARRIVING_SLOW`] by [`ARRIVING_SLOW_MIN`] at most. The largest content has so many bytes.
    pub(crate) fn new(memory_limit: usize, largest: usize) -> Arc<Self> {
        let bytes_max = memory_limit / 16;
        Arc::new(Arrivals {
            bytes: AtomicUsize::new(0),
            bytes_max,
            own_max: largest.saturating_add(bytes_max).max(2 * bytes_max),
            shortage: watch::Sender::default(),
            ordinary: Line::default(),
            transacted: Line::default(),
        })
    }

    fn line(&self, is_transacted: bool) -> &Line {
        if is_transacted { &self.transacted } else { &self.ordinary }
    }

    /// Waits for a turn.
    async fn turn(self: Arc<Self>, is_transacted: bool, is_slow: bool) -> Permits {
        let line = self.line(is_transacted);
        let _waiting = Waiting::among(&line.waiting);
        let acquire = |semaphore: &Arc<Semaphore>| {
            let semaphore = Arc::clone(semaphore);
            async move { semaphore.acquire_owned().await.expect("nobody closes it") }
        };
        let slow = if is_slow { Some(acquire(&line.slow).await) } else { None };
        Permits { _turn: acquire(&line.turn).await, _slow: slow }
    }

    /// Publishers wait for room from now on, or do not.
    pub(crate) fn set_short_of_room(&self, is_short: bool) {
        self.shortage.send_if_modified(|shortage| std::mem::replace(&mut shortage.of_room, is_short) != is_short);
    }

    fn change(&self, before: usize, now: usize) {
        // It wraps round where it is less.
        let more = now.wrapping_sub(before);
        let all_before = self.bytes.fetch_add(more, Ordering::Relaxed);
        if self.fill(all_before) != self.fill(all_before.wrapping_add(more)) {
            self.shortage.send_if_modified(|shortage| {
                // Others may have changed it meanwhile.
                let fill = self.fill(self.bytes.load(Ordering::Relaxed));
                std::mem::replace(&mut shortage.fill, fill) != fill
            });
        }
    }

    fn fill(&self, bytes: usize) -> Fill {
        match bytes {
            bytes if bytes <= self.bytes_max => Fill::Little,
            bytes if bytes <= 2 * self.bytes_max => Fill::Much,
            _ => Fill::TooMuch,
        }
    }
}

/// One of those who wait for a turn.
struct Waiting<'a>(&'a AtomicUsize);

impl<'a> Waiting<'a> {
    fn among(all: &'a AtomicUsize) -> Self {
        all.fetch_add(1, Ordering::Relaxed);
        Waiting(all)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// To go on. It ends when this is dropped.
struct Permits {
    _turn: OwnedSemaphorePermit,
    _slow: Option<OwnedSemaphorePermit>,
}

/// Of one connection.
pub(crate) struct Arrival {
    all: Arc<Arrivals>,
    shortage: watch::Receiver<Shortage>,
    arrived: Arrived,
    turn: Turn,
    /// It lost its turn, and has brought next to nothing since.
    is_slow: bool,
    /// Nothing but its turn keeps it from being read.
    is_ready: bool,
    aside: Aside,
    /// Where there are turns: when something must have been brought.
    due: Option<Due>,
    /// The same where there is too much, and others wait.
    due_soon: Option<Due>,
}

/// What a connection has brought.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Arrived {
    /// Bytes of contents that are not complete.
    pub(crate) unfinished: usize,
    /// Bytes of those that are, and wait for room.
    pub(crate) waiting: usize,
    /// How many have become complete.
    pub(crate) completed: u64,
    /// Whether all that is not complete goes to transactions that hold something: their ends may be what makes room.
    pub(crate) is_transacted: bool,
}

enum Turn {
    NotNeeded,
    Awaited {
        since: Instant,
        taken: Pin<Box<dyn Future<Output = Permits> + Send>>,
    },
    Taken {
        _until_dropped: Permits,
        slice: Due,
        /// How long it had waited, as long as it is not known whether that was for others.
        waited: Duration,
    },
}

/// Whether it is read without a turn, as there is little to be read: once for each content.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Aside {
    Never,
    UntilItHasBrought,
    Done,
}

/// When something must have been brought.
struct Due {
    at: Pin<Box<Sleep>>,
    /// What had not become complete when that was said.
    then: usize,
}

impl Due {
    fn at(at: Instant, then: usize) -> Self {
        Due { at: Box::pin(tokio::time::sleep_until(at)), then }
    }

    /// Whether so many bytes have been brought.
    fn has_brought(&self, bytes: usize, unfinished: usize) -> bool {
        unfinished.saturating_sub(self.then) >= bytes
    }
}

/// What a connection has waited for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Event {
    /// It may have changed whether it may be read.
    Change,
    /// It has brought next to nothing for as long as it may.
    Overdue,
    /// It has brought more than so many bytes, on several channels.
    Excess(usize),
}

impl Arrival {
    pub(crate) fn new(all: Arc<Arrivals>) -> Self {
        let shortage = all.shortage.subscribe();
        Arrival {
            all,
            shortage,
            arrived: Arrived::default(),
            turn: Turn::NotNeeded,
            is_slow: false,
            is_ready: true,
            aside: Aside::Never,
            due: None,
            due_soon: None,
        }
    }

    /// What has arrived so far is this.
    pub(crate) fn set(&mut self, arrived: Arrived) {
        let before = std::mem::replace(&mut self.arrived, arrived);
        let bytes = |arrived: Arrived| arrived.unfinished + arrived.waiting;
        if bytes(arrived) != bytes(before) {
            self.all.change(bytes(before), bytes(arrived));
        }
        // The next one may have begun in the same read.
        let has_ended = arrived.completed != before.completed && arrived.unfinished <= READ_BYTES;
        if !self.is_large() || has_ended {
            self.end_turn();
            (self.is_slow, self.aside) = (false, Aside::Never);
        } else if arrived.is_transacted != before.is_transacted {
            // It stands in the other line from now on.
            self.turn = Turn::NotNeeded;
        }
        if self.aside == Aside::UntilItHasBrought && arrived.unfinished != before.unfinished {
            self.aside = Aside::Done;
        }
        // What was given up, with its channel for example, is not missing.
        let slice = match &mut self.turn {
            Turn::Taken { slice, .. } => Some(slice),
            Turn::NotNeeded | Turn::Awaited { .. } => None,
        };
        for due in slice.into_iter().chain(&mut self.due).chain(&mut self.due_soon) {
            due.then = due.then.min(arrived.unfinished);
        }
        if self.due.as_ref().is_some_and(|due| due.has_brought(ARRIVING_TURN_BYTES, arrived.unfinished)) {
            self.renew();
        }
        if self.due_soon.as_ref().is_some_and(|due| due.has_brought(ARRIVING_SLICE_BYTES, arrived.unfinished)) {
            self.due_soon = None;
        }
    }

    /// Whether it may have to wait.
    pub(crate) fn is_large(&self) -> bool {
        self.arrived.unfinished > ARRIVING_BYTES_SMALL
    }

    /// Whether a single read is to bring little, as what begins with it may have to wait.
    pub(crate) fn is_to_bring_little(&self) -> bool {
        !matches!(self.turn, Turn::Taken { .. }) && self.all.bytes.load(Ordering::Relaxed) > self.all.bytes_max
    }

    /// Whether more may be read, if nothing else keeps it from that. If not, [`Self::event`] says when that may have changed.
    pub(crate) fn may_read(&mut self, is_ready: bool) -> bool {
        if !self.is_large() {
            return true;
        }
        if self.has_too_much() {
            return false;
        }
        self.is_ready = is_ready;
        let Shortage { of_room, fill } = *self.shortage.borrow_and_update();
        let waits_for_room = self.waits_for_room(of_room);
        if fill == Fill::Little {
            self.end_turn();
        } else if is_ready && matches!(self.turn, Turn::NotNeeded) {
            let taken = Box::pin(Arc::clone(&self.all).turn(self.arrived.is_transacted, self.is_slow));
            self.turn = Turn::Awaited { since: Instant::now(), taken };
            if self.due.is_none() {
                self.renew();
            }
        }
        let is_awaited = fill > Fill::Little && is_ready && self.does_anybody_wait();
        self.due_soon = self.due_soon.take().filter(|_| is_awaited);
        if is_awaited && self.due_soon.is_none() {
            self.due_soon = Some(Due::at(Instant::now() + ARRIVING_SLOW, self.arrived.unfinished));
        }
        fill == Fill::Little
            || ((matches!(self.turn, Turn::Taken { .. }) || self.aside == Aside::UntilItHasBrought)
                && !waits_for_room)
    }

    fn line(&self) -> &Line {
        self.all.line(self.arrived.is_transacted)
    }

    /// Whether it brings more than one content, on several channels, that are too much together.
    fn has_too_much(&self) -> bool {
        self.arrived.unfinished > self.all.own_max
    }

    /// Whether it would only wait, as publishers do.
    fn waits_for_room(&self, publishers_wait: bool) -> bool {
        publishers_wait && !self.arrived.is_transacted
    }

    /// Whether anybody waits for a turn, this one among them.
    fn does_anybody_wait(&self) -> bool {
        matches!(self.turn, Turn::Awaited { .. }) || self.line().waiting.load(Ordering::Relaxed) > 0
    }

    /// Whether it has brought nothing for so long that others go first though there is too much. They bring more yet: the fewer they
    /// are, the longer it may take, up to where it is overdue.
    fn has_kept_others_waiting(&self) -> bool {
        let waiting = u32::try_from(self.line().waiting.load(Ordering::Relaxed)).unwrap_or(u32::MAX);
        let patience = (ARRIVING_SLOW / (1 + waiting / ARRIVING_SLOW_SHARED)).max(ARRIVING_SLOW_MIN);
        let soon = self.due_soon.as_ref().map(|due| due.at.deadline());
        soon.is_some_and(|soon| soon.saturating_duration_since(Instant::now()) + patience <= ARRIVING_SLOW)
    }

    fn end_turn(&mut self) {
        (self.turn, self.due, self.due_soon) = (Turn::NotNeeded, None, None);
    }

    fn renew(&mut self) {
        self.due = Some(Due::at(Instant::now() + ARRIVING_TURN, self.arrived.unfinished));
        self.due_soon = None;
    }

    /// It is overdue, and so many bytes have come that were not read: whether it has as long again, as it is the broker or others
    /// that it waits for.
    pub(crate) fn excuse(&mut self, unread: usize, is_congested: bool) -> bool {
        let Shortage { of_room, fill } = *self.shortage.borrow();
        // What it has brought may wait, be it in a transaction now or not.
        let waits_for_room = self.waits_for_room(of_room) || (of_room && self.arrived.waiting > 0);
        let is_waiting = matches!(self.turn, Turn::Awaited { .. });
        let is_bringing = unread >= ARRIVING_SLICE_BYTES || (!self.is_slow && fill != Fill::TooMuch);
        // That may be the end of a content, which only has to be read.
        let may_read_aside = is_waiting && self.aside == Aside::Never;
        if unread == 0 || !(is_congested || waits_for_room || (is_waiting && is_bringing) || may_read_aside) {
            return false;
        }
        if may_read_aside && unread < ARRIVING_SLICE_BYTES {
            self.aside = Aside::UntilItHasBrought;
        }
        self.renew();
        true
    }

    /// Returns when [`Self::may_read`] may say something else, or when it has brought next to nothing for too long.
    pub(crate) async fn event(&mut self) -> Event {
        if !self.is_large() {
            std::future::pending::<()>().await;
        }
        if self.has_too_much() {
            return Event::Excess(self.all.own_max);
        }
        let Arrival { turn, due, due_soon, shortage, .. } = self;
        let is_too_much = shortage.borrow().fill == Fill::TooMuch;
        let taken = async {
            match turn {
                Turn::Awaited { taken, .. } => Some(taken.await),
                Turn::Taken { slice, .. } => {
                    slice.at.as_mut().await;
                    None
                }
                Turn::NotNeeded => std::future::pending().await,
            }
        };
        let is_due = async |due: &mut Option<Due>| match due {
            Some(due) => due.at.as_mut().await,
            None => std::future::pending().await,
        };
        let taken = tokio::select! {
            biased;
            taken = taken => taken,
            () = is_due(due) => return Event::Overdue,
            () = is_due(due_soon), if is_too_much => return Event::Overdue,
            // Nobody drops the other end while this one is there.
            _ = shortage.changed() => return Event::Change,
        };
        match taken {
            Some(permits) => self.begin_turn(permits),
            None => self.end_slice(),
        }
        Event::Change
    }

    fn begin_turn(&mut self, permits: Permits) {
        let now = Instant::now();
        let since = match self.turn {
            Turn::Awaited { since, .. } => since,
            Turn::NotNeeded | Turn::Taken { .. } => now,
        };
        // What it has sent meanwhile is there.
        let slice = Due::at((since + ARRIVING_SLICE).max(now + ARRIVING_SLICE_MIN), self.arrived.unfinished);
        self.turn = Turn::Taken { _until_dropped: permits, slice, waited: now - since };
        if !self.is_slow {
            // It has all its time before it.
            self.renew();
        }
    }

    fn end_slice(&mut self) {
        let (unfinished, Shortage { of_room, fill }) = (self.arrived.unfinished, *self.shortage.borrow());
        let waits_for_room = self.waits_for_room(of_room);
        let is_awaited = self.does_anybody_wait();
        let loses_turn = !self.is_ready || fill != Fill::TooMuch || self.has_kept_others_waiting();
        let Turn::Taken { slice, waited, .. } = &mut self.turn else { return };
        let has_brought = slice.has_brought(ARRIVING_SLICE_BYTES, unfinished);
        *slice = Due::at(Instant::now() + ARRIVING_SLICE, unfinished);
        if has_brought {
            self.is_slow = false;
            if let Some(due) = &mut self.due {
                let at = due.at.deadline() + std::mem::take(waited);
                due.at.as_mut().reset(at);
            }
        } else if !self.is_ready || (is_awaited && !waits_for_room) {
            // If it could not bring anything, it stands in line again once it can.
            self.is_slow |= self.is_ready;
            if loses_turn {
                self.turn = Turn::NotNeeded;
            }
        }
    }
}

impl Drop for Arrival {
    fn drop(&mut self) {
        self.set(Arrived::default());
    }
}

#[cfg(test)]
mod tests;
