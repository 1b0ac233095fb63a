//! Contents that have arrived in part, on all connections together.
//!
//! Owns: what they take, and which connection may go on reading its own when that is too much.
//! Small ones always go on, and so do those in transactions, whose end makes room. Beyond a bound of all together, one
//! connection at a time has a *turn*, first come, first served, until its content is complete, and none while publishers wait for
//! room, as it would only wait, too. A turn is cut into *slices*: who brings next to nothing in one is *slow*, and loses its turn.
//! Of the slow ones only one at a time stands in line with the others, so that however many there are, nobody else waits for more
//! than two of them. As each keeps what it has brought, that goes on up to twice the bound. Then turns are not lost any more, and
//! whoever brings next to nothing is soon closed; below that, who goes on like that for long.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::time::{Instant, Sleep};

use crate::limits::{
    ARRIVING_BYTES_SMALL, ARRIVING_SLICE, ARRIVING_SLICE_BYTES, ARRIVING_SLICE_MIN, ARRIVING_SLOW, ARRIVING_TURN,
    ARRIVING_TURN_BYTES,
};

/// Of a node.
#[derive(Debug)]
pub(crate) struct Arrivals {
    /// What contents take that have not arrived as a whole, or wait for room.
    bytes: AtomicUsize,
    /// Up to that, nobody waits for a turn; from twice that on, nobody loses one.
    bytes_max: usize,
    shortage: watch::Sender<Shortage>,
    turn: Arc<Semaphore>,
    /// Of those who are slow, one may wait for a turn or have it.
    slow: Arc<Semaphore>,
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
    /// An eighth of a limit on memory, in bytes, is for them, and the one that is begun in it last.
    pub(crate) fn new(memory_limit: usize) -> Arc<Self> {
        Arc::new(Arrivals {
            bytes: AtomicUsize::new(0),
            bytes_max: memory_limit / 16,
            shortage: watch::Sender::default(),
            turn: Arc::new(Semaphore::new(1)),
            slow: Arc::new(Semaphore::new(1)),
        })
    }

    /// Waits for a turn.
    async fn turn(self: Arc<Self>, is_slow: bool) -> Permits {
        let acquire = |semaphore: &Arc<Semaphore>| {
            let semaphore = Arc::clone(semaphore);
            async move { semaphore.acquire_owned().await.expect("nobody closes it") }
        };
        let slow = if is_slow { Some(acquire(&self.slow).await) } else { None };
        Permits { _turn: acquire(&self.turn).await, _slow: slow }
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
    /// Where there are turns.
    patience: Option<Patience>,
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
    /// Who is in a transaction need not wait.
    pub(crate) is_exempt: bool,
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

/// How long others bear with it.
struct Patience {
    due: Due,
    /// The same where there is too much.
    due_soon: Pin<Box<Sleep>>,
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
            patience: None,
        }
    }

    pub(crate) fn set(&mut self, arrived: Arrived) {
        let before = std::mem::replace(&mut self.arrived, arrived);
        let bytes = |arrived: Arrived| arrived.unfinished + arrived.waiting;
        if bytes(arrived) != bytes(before) {
            self.all.change(bytes(before), bytes(arrived));
        }
        if !self.is_large() || arrived.completed != before.completed {
            self.end_turn();
            self.is_slow = false;
        }
        // What was given up, with its channel for example, is not missing.
        if let Turn::Taken { slice, .. } = &mut self.turn {
            slice.then = slice.then.min(arrived.unfinished);
        }
        if let Some(Patience { due, .. }) = &mut self.patience {
            due.then = due.then.min(arrived.unfinished);
            if due.has_brought(ARRIVING_TURN_BYTES, arrived.unfinished) {
                self.renew();
            }
        }
    }

    /// Whether it may have to wait.
    pub(crate) fn is_large(&self) -> bool {
        self.arrived.unfinished > ARRIVING_BYTES_SMALL && !self.arrived.is_exempt
    }

    /// Whether more may be read. If not, [`Self::event`] says when that may have changed.
    pub(crate) fn may_read(&mut self) -> bool {
        if !self.is_large() {
            return true;
        }
        let Shortage { of_room, fill } = *self.shortage.borrow_and_update();
        if fill == Fill::Little {
            self.end_turn();
        } else if let Turn::NotNeeded = self.turn {
            let taken = Box::pin(Arc::clone(&self.all).turn(self.is_slow));
            self.turn = Turn::Awaited { since: Instant::now(), taken };
            if self.patience.is_none() {
                self.renew();
            }
        }
        fill == Fill::Little || (matches!(self.turn, Turn::Taken { .. }) && !of_room)
    }

    fn end_turn(&mut self) {
        (self.turn, self.patience) = (Turn::NotNeeded, None);
    }

    /// From now on, it has as long again to bring something.
    pub(crate) fn renew(&mut self) {
        let now = Instant::now();
        let due = Due::at(now + ARRIVING_TURN, self.arrived.unfinished);
        self.patience = Some(Patience { due, due_soon: Box::pin(tokio::time::sleep_until(now + ARRIVING_SLOW)) });
    }

    /// Whether it is others that it waits for, if so many bytes have come that were not read.
    pub(crate) fn waits_for_others(&self, unread: usize) -> bool {
        let Shortage { of_room, fill } = *self.shortage.borrow();
        // What it has sent while it waited, if it sends at all, is more.
        let is_bringing = unread >= ARRIVING_SLICE_BYTES || (!self.is_slow && fill != Fill::TooMuch);
        unread > 0 && (of_room || (is_bringing && matches!(self.turn, Turn::Awaited { .. })))
    }

    /// Returns when [`Self::may_read`] may say something else, or when it has brought next to nothing for too long.
    pub(crate) async fn event(&mut self) -> Event {
        if !self.is_large() {
            std::future::pending::<()>().await;
        }
        let Arrival { turn, patience, shortage, .. } = self;
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
        let is_due = async {
            match patience {
                Some(Patience { due_soon, .. }) if is_too_much => due_soon.as_mut().await,
                Some(Patience { due, .. }) => due.at.as_mut().await,
                None => std::future::pending().await,
            }
        };
        let taken = tokio::select! {
            biased;
            // What it has brought comes to light only then.
            taken = taken => taken,
            () = is_due => return Event::Overdue,
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
        let is_slow = self.is_slow;
        if let Some(Patience { due, due_soon }) = &mut self.patience {
            if !is_slow {
                // It has all its time before it.
                *due = Due::at(now + ARRIVING_TURN, self.arrived.unfinished);
            }
            // Here only what it has sent while it waited tells for it.
            let at = due_soon.deadline().max(now + ARRIVING_SLICE);
            due_soon.as_mut().reset(at);
        }
    }

    fn end_slice(&mut self) {
        let (unfinished, Shortage { of_room, fill }) = (self.arrived.unfinished, *self.shortage.borrow());
        let Turn::Taken { slice, waited, .. } = &mut self.turn else { return };
        let now = Instant::now();
        let has_brought = slice.has_brought(ARRIVING_SLICE_BYTES, unfinished);
        *slice = Due::at(now + ARRIVING_SLICE, unfinished);
        if has_brought {
            self.is_slow = false;
            if let Some(Patience { due, due_soon }) = &mut self.patience {
                let at = due.at.deadline() + std::mem::take(waited);
                due.at.as_mut().reset(at);
                due_soon.as_mut().reset(now + ARRIVING_SLOW);
            }
        } else if !of_room {
            self.is_slow = true;
            if fill != Fill::TooMuch {
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
mod tests {
    use super::*;

    /// Up to which nobody waits.
    const BOUND: usize = 1_000_000;

    impl Arrival {
        /// So much has arrived of one content, if anything.
        fn bring(&mut self, unfinished: usize) {
            self.set(Arrived { unfinished, ..self.arrived });
        }
    }

    /// Whether it may be read, once it has heard of all that has changed.
    async fn may_read(arrival: &mut Arrival) -> bool {
        while !arrival.may_read() {
            if tokio::time::timeout(Duration::ZERO, arrival.event()).await != Ok(Event::Change) {
                return false;
            }
        }
        true
    }

    fn several<const N: usize>(bound: usize) -> [Arrival; N] {
        let all = Arrivals::new(16 * bound);
        [(); N].map(|()| Arrival::new(Arc::clone(&all)))
    }

    #[tokio::test(start_paused = true)]
    async fn beyond_the_bound_they_take_turns_in_the_order_in_which_they_came() {
        let [mut first, mut second, mut third, mut small, mut exempt] = several(BOUND);
        first.bring(1_000_000);
        assert!(may_read(&mut first).await, "all together may have so much");
        second.bring(1_000_000);
        small.bring(ARRIVING_BYTES_SMALL);
        exempt.set(Arrived { unfinished: 1_000_000, is_exempt: true, ..Arrived::default() });
        assert!(may_read(&mut first).await && !may_read(&mut second).await);
        third.bring(900_000);
        assert!(!may_read(&mut third).await);
        assert!(may_read(&mut small).await, "nobody waits with little");
        assert!(may_read(&mut exempt).await, "its end makes room");
        exempt.set(Arrived { unfinished: 0, is_exempt: true, ..Arrived::default() });
        first.bring(3_000_000);
        assert!(may_read(&mut first).await && !may_read(&mut second).await);
        first.bring(0);
        assert!(!may_read(&mut third).await, "the second was there before");
        assert!(may_read(&mut second).await);
    }

    #[tokio::test(start_paused = true)]
    async fn those_who_wait_for_a_turn_hear_that_none_is_needed_any_more() {
        let [mut first, mut second, mut third] = several(BOUND);
        first.bring(700_000);
        second.bring(700_000);
        third.bring(200_000);
        assert!(may_read(&mut first).await && !may_read(&mut second).await && !may_read(&mut third).await);
        // Not the one that has the turn.
        second.bring(0);
        assert_eq!(third.event().await, Event::Change);
        assert!(third.may_read() && first.may_read());
    }

    #[tokio::test(start_paused = true)]
    async fn nobody_has_a_turn_while_publishers_wait_for_room() {
        let [mut waiting, mut large, mut small] = several(BOUND);
        large.bring(100_000);
        small.bring(100);
        large.all.set_short_of_room(true);
        assert!(may_read(&mut large).await, "they are few");
        waiting.set(Arrived { waiting: 1_000_000, ..Arrived::default() });
        assert!(!may_read(&mut large).await && may_read(&mut small).await);
        assert!(waiting.may_read(), "what it brings now is none of that");
        large.all.set_short_of_room(false);
        assert_eq!(large.event().await, Event::Change);
        assert!(large.may_read());
    }

    #[tokio::test(start_paused = true)]
    async fn who_brings_nothing_where_there_are_turns_hears_so_whether_it_has_one_or_not() {
        let [mut first, mut second, mut third] = several(6 * BOUND);
        let all = Arc::clone(&first.all);
        for arrival in [&mut first, &mut second, &mut third] {
            arrival.bring(2_500_000);
        }
        assert!(may_read(&mut first).await && !may_read(&mut second).await && !may_read(&mut third).await);
        let begun = Instant::now();
        let nothing = async {
            while first.event().await == Event::Change {
                first.may_read();
            }
            assert_eq!(begun.elapsed(), ARRIVING_TURN);
            assert!(
                !first.waits_for_others(ARRIVING_SLICE_BYTES - 1),
                "it had a turn, and what has come since is little"
            );
            assert!(first.waits_for_others(ARRIVING_SLICE_BYTES));
        };
        let enough = async {
            while second.event().await == Event::Change {
                second.may_read();
                second.bring(second.arrived.unfinished + ARRIVING_SLICE_BYTES);
            }
        };
        let no_turn = async {
            while third.event().await == Event::Change {}
            assert_eq!(begun.elapsed(), ARRIVING_TURN);
            assert!(third.waits_for_others(1) && !third.waits_for_others(0));
        };
        tokio::select! {
            _ = async { tokio::join!(nothing, no_turn) } => {}
            () = enough => panic!("it has brought something all the time"),
        }
        third.renew();
        let begun = Instant::now();
        tokio::time::advance(ARRIVING_TURN / 2).await;
        third.bring(2_500_000 + ARRIVING_TURN_BYTES);
        assert_eq!(third.event().await, Event::Overdue);
        assert_eq!(begun.elapsed(), ARRIVING_TURN * 3 / 2, "it has brought enough meanwhile");
        drop((first, second));
        third.renew();
        assert!(may_read(&mut third).await, "they have given it up");
        third.bring(0);
        assert_eq!(all.bytes.load(Ordering::Relaxed), 0);
    }

    /// Brings a byte whenever it may.
    async fn trickle(mut arrival: Arrival) {
        while arrival.event().await == Event::Change {
            if arrival.may_read() {
                arrival.bring(arrival.arrived.unfinished + 1);
            }
        }
        assert!(!arrival.waits_for_others(ARRIVING_SLICE_BYTES - 1));
    }

    #[tokio::test(start_paused = true)]
    async fn nobody_waits_long_for_those_who_bring_next_to_nothing() {
        const SLOW: u32 = 1000;
        let all = Arrivals::new(16 * 8 * BOUND);
        let mut slow: Vec<_> = (0..SLOW).map(|_| Arrival::new(Arc::clone(&all))).collect();
        for arrival in &mut slow {
            arrival.bring(10_000);
        }
        for mut arrival in slow {
            may_read(&mut arrival).await;
            tokio::spawn(trickle(arrival));
        }
        // As they came before, each has a turn first; then only one of them at a time stands in line.
        for most in [ARRIVING_SLICE + ARRIVING_SLICE_MIN * SLOW, ARRIVING_SLICE_MIN * 2, ARRIVING_SLICE_MIN * 2] {
            let mut other = Arrival::new(Arc::clone(&all));
            other.bring(100_000);
            let begun = Instant::now();
            while !other.may_read() {
                assert_eq!(other.event().await, Event::Change);
            }
            assert!(begun.elapsed() <= most + Duration::from_millis(2), "{:?}", begun.elapsed());
        }
        tokio::time::sleep(ARRIVING_TURN).await;
        assert!(all.bytes.load(Ordering::Relaxed) <= all.bytes_max, "as many have given up as need to");
    }

    #[tokio::test(start_paused = true)]
    async fn who_is_slow_and_brings_what_it_can_is_not_overdue() {
        let [mut first, mut second] = several(5 * BOUND);
        first.bring(3_000_000);
        second.bring(3_000_000);
        assert!(may_read(&mut first).await && !may_read(&mut second).await);
        let begun = Instant::now();
        // Each has too little for a slice to the full, and as much for the next one as has come while it waited.
        while begun.elapsed() < 2 * ARRIVING_TURN {
            for arrival in [&mut first, &mut second] {
                let Ok(event) = tokio::time::timeout(Duration::ZERO, arrival.event()).await else { continue };
                assert_eq!(event, Event::Change);
                let had_waited = matches!(arrival.turn, Turn::Taken { waited, .. } if waited > Duration::ZERO);
                if arrival.may_read() && had_waited {
                    arrival.bring(arrival.arrived.unfinished + ARRIVING_SLICE_BYTES);
                }
            }
            tokio::time::advance(Duration::from_millis(1)).await;
        }
    }

    #[tokio::test(start_paused = true)]
    async fn while_there_is_too_much_nobody_loses_a_turn_and_who_brings_nothing_is_soon_overdue() {
        let [mut first, mut second, mut third] = several(BOUND);
        first.bring(900_000);
        second.bring(900_000);
        third.bring(10_000);
        assert!(may_read(&mut first).await && !may_read(&mut second).await && !may_read(&mut third).await);
        let begun = Instant::now();
        assert_eq!(first.event().await, Event::Change, "it loses its turn");
        assert!(may_read(&mut second).await && !may_read(&mut first).await);
        second.bring(1_200_000);
        let keep = async {
            while second.event().await == Event::Change {
                assert!(second.may_read());
            }
        };
        let overdue = async { while first.event().await == Event::Change {} };
        tokio::select! {
            () = keep => panic!("it was not slow before"),
            () = overdue => {}
        }
        assert_eq!(begun.elapsed(), ARRIVING_SLOW);
        assert_eq!(third.event().await, Event::Overdue, "though it had no turn");
        for waiting in [&first, &third] {
            assert!(!waiting.waits_for_others(ARRIVING_SLICE_BYTES - 1));
            assert!(waiting.waits_for_others(ARRIVING_SLICE_BYTES));
        }
        third.renew();
        assert!(!may_read(&mut third).await);
        drop(first);
        while second.may_read() {
            assert_eq!(second.event().await, Event::Change);
        }
        assert!(may_read(&mut third).await);
        // And so is who has the turn.
        second.bring(2_100_000);
        third.bring(10_001);
        let begun = Instant::now();
        while third.event().await == Event::Change {
            assert!(third.may_read());
        }
        assert_eq!(begun.elapsed() + ARRIVING_SLICE_MIN, ARRIVING_SLOW);
    }

    #[tokio::test(start_paused = true)]
    async fn a_turn_ends_with_each_content_though_the_next_one_has_begun() {
        let [mut first, mut second] = several(BOUND);
        first.bring(2_000_000);
        second.bring(2_000_000);
        assert!(may_read(&mut first).await && !may_read(&mut second).await);
        first.set(Arrived { completed: 1, ..first.arrived });
        assert!(!may_read(&mut first).await && may_read(&mut second).await);
        // What was given up is not missing.
        second.bring(100_000);
        second.bring(100_000 + ARRIVING_SLICE_BYTES);
        tokio::time::advance(ARRIVING_SLICE).await;
        assert!(!may_read(&mut first).await && may_read(&mut second).await);
    }
}
