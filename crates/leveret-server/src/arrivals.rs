//! Contents that have arrived in part, on all connections together.
//!
//! Owns: what they take, and which connection may go on reading its own when that is too much.
//! Small ones always go on, and so do those in transactions, whose end makes room. Beyond a bound of all together, one
//! connection at a time has a *turn*, first come, first served, until its content is complete, and none while publishers wait for
//! room, as it would only wait, too. Who then brings nothing, or next to nothing in its turn, is closed, so that others need not
//! wait for it.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::time::{Instant, Sleep};

use crate::limits::{ARRIVING_BYTES_SMALL, ARRIVING_TURN, ARRIVING_TURN_BYTES};

/// Of a node.
#[derive(Debug)]
pub(crate) struct Arrivals {
    /// What contents take that have not arrived as a whole, or wait for room.
    bytes: AtomicUsize,
    /// Up to that, nobody waits for a turn.
    bytes_max: usize,
    shortage: watch::Sender<Shortage>,
    turn: Arc<Semaphore>,
}

/// Why a large content may have to wait.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Shortage {
    /// Publishers wait for room.
    of_room: bool,
    /// All contents together take more than they may.
    of_turns: bool,
}

impl Arrivals {
    /// An eighth of a limit on memory, in bytes, is for them.
    pub(crate) fn new(memory_limit: usize) -> Arc<Self> {
        Arc::new(Arrivals {
            bytes: AtomicUsize::new(0),
            bytes_max: memory_limit / 8,
            shortage: watch::Sender::default(),
            turn: Arc::new(Semaphore::new(1)),
        })
    }

    /// Publishers wait for room from now on, or do not.
    pub(crate) fn set_short_of_room(&self, is_short: bool) {
        self.shortage.send_if_modified(|shortage| std::mem::replace(&mut shortage.of_room, is_short) != is_short);
    }

    fn change(&self, before: usize, now: usize) {
        // It wraps round where it is less.
        let more = now.wrapping_sub(before);
        let all_before = self.bytes.fetch_add(more, Ordering::Relaxed);
        if (all_before > self.bytes_max) != (all_before.wrapping_add(more) > self.bytes_max) {
            self.shortage.send_if_modified(|shortage| {
                // Others may have crossed the bound meanwhile.
                let are_many = self.bytes.load(Ordering::Relaxed) > self.bytes_max;
                std::mem::replace(&mut shortage.of_turns, are_many) != are_many
            });
        }
    }
}

/// Of one connection.
pub(crate) struct Arrival {
    all: Arc<Arrivals>,
    shortage: watch::Receiver<Shortage>,
    /// Of contents that are not complete.
    unfinished: usize,
    /// Of those and of others that wait.
    bytes: usize,
    is_exempt: bool,
    turn: Turn,
    /// Where there are turns: when something must have been brought, and what there was when that was said.
    due: Option<(Pin<Box<Sleep>>, usize)>,
}

enum Turn {
    NotNeeded,
    Awaited(Pin<Box<dyn Future<Output = OwnedSemaphorePermit> + Send>>),
    Taken { _until_dropped: OwnedSemaphorePermit },
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
        let (unfinished, bytes, is_exempt, turn, due) = (0, 0, false, Turn::NotNeeded, None);
        Arrival { all, shortage, unfinished, bytes, is_exempt, turn, due }
    }

    /// What has arrived in part takes so many bytes now, and what is complete and waits for room so many. Who is in a transaction
    /// is exempt.
    pub(crate) fn set(&mut self, unfinished: usize, waiting: usize, is_exempt: bool) {
        (self.unfinished, self.is_exempt) = (unfinished, is_exempt);
        let before = std::mem::replace(&mut self.bytes, unfinished + waiting);
        if self.bytes != before {
            self.all.change(before, self.bytes);
        }
        if !self.is_large() {
            self.end_turn();
        } else if self.due.as_ref().is_some_and(|&(_, then)| unfinished.saturating_sub(then) >= ARRIVING_TURN_BYTES)
        {
            self.renew();
        }
    }

    /// Whether it may have to wait.
    pub(crate) fn is_large(&self) -> bool {
        self.unfinished > ARRIVING_BYTES_SMALL && !self.is_exempt
    }

    /// Whether more may be read. If not, [`Self::event`] says when that may have changed.
    pub(crate) fn may_read(&mut self) -> bool {
        if !self.is_large() {
            return true;
        }
        let Shortage { of_room, of_turns } = *self.shortage.borrow_and_update();
        if !of_turns {
            self.end_turn();
        } else if let Turn::NotNeeded = self.turn {
            let turn = Arc::clone(&self.all.turn);
            let turn = async move { turn.acquire_owned().await.expect("nobody closes it") };
            self.turn = Turn::Awaited(Box::pin(turn));
            self.renew();
        }
        !of_turns || (matches!(self.turn, Turn::Taken { .. }) && !of_room)
    }

    fn end_turn(&mut self) {
        (self.turn, self.due) = (Turn::NotNeeded, None);
    }

    /// From now on, it has as long again to bring something.
    pub(crate) fn renew(&mut self) {
        match &mut self.due {
            Some((due, then)) => {
                due.as_mut().reset(Instant::now() + ARRIVING_TURN);
                *then = self.unfinished;
            }
            None => self.due = Some((Box::pin(tokio::time::sleep(ARRIVING_TURN)), self.unfinished)),
        }
    }

    /// Returns when [`Self::may_read`] may say something else, or when it has brought next to nothing for too long.
    pub(crate) async fn event(&mut self) -> Event {
        if !self.is_large() {
            std::future::pending::<()>().await;
        }
        let Arrival { turn, due, shortage, .. } = self;
        let taken = async {
            match turn {
                Turn::Awaited(taken) => taken.await,
                Turn::NotNeeded | Turn::Taken { .. } => std::future::pending().await,
            }
        };
        let is_due = async {
            match due {
                Some((due, _)) => due.as_mut().await,
                None => std::future::pending().await,
            }
        };
        let taken = tokio::select! {
            taken = taken => taken,
            () = is_due => return Event::Overdue,
            // Nobody drops the other end while this one is there.
            _ = shortage.changed() => return Event::Change,
        };
        self.turn = Turn::Taken { _until_dropped: taken };
        // It has all its time before it.
        self.renew();
        Event::Change
    }
}

impl Drop for Arrival {
    fn drop(&mut self) {
        self.set(0, 0, false);
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    const LIMIT: usize = 8_000_000;

    /// Whether it may be read, once it has heard of all that has changed.
    async fn may_read(arrival: &mut Arrival) -> bool {
        while !arrival.may_read() {
            if tokio::time::timeout(Duration::ZERO, arrival.event()).await != Ok(Event::Change) {
                return false;
            }
        }
        true
    }

    fn several<const N: usize>() -> [Arrival; N] {
        let all = Arrivals::new(LIMIT);
        [(); N].map(|()| Arrival::new(Arc::clone(&all)))
    }

    #[tokio::test(start_paused = true)]
    async fn beyond_the_bound_they_take_turns_in_the_order_in_which_they_came() {
        let [mut first, mut second, mut third, mut small, mut exempt] = several();
        first.set(1_000_000, 0, false);
        assert!(may_read(&mut first).await, "all together may have so much");
        second.set(1_000_000, 0, false);
        small.set(ARRIVING_BYTES_SMALL, 0, false);
        exempt.set(1_000_000, 0, true);
        assert!(may_read(&mut first).await && !may_read(&mut second).await);
        third.set(900_000, 0, false);
        assert!(!may_read(&mut third).await);
        assert!(may_read(&mut small).await, "nobody waits with little");
        assert!(may_read(&mut exempt).await, "its end makes room");
        exempt.set(0, 0, true);
        first.set(3_000_000, 0, false);
        assert!(may_read(&mut first).await && !may_read(&mut second).await);
        first.set(0, 0, false);
        assert!(!may_read(&mut third).await, "the second was there before");
        assert!(may_read(&mut second).await);
    }

    #[tokio::test(start_paused = true)]
    async fn those_who_wait_for_a_turn_hear_that_none_is_needed_any_more() {
        let [mut first, mut second, mut third] = several();
        first.set(700_000, 0, false);
        second.set(700_000, 0, false);
        third.set(200_000, 0, false);
        assert!(may_read(&mut first).await && !may_read(&mut second).await && !may_read(&mut third).await);
        // Not the one that has the turn.
        second.set(0, 0, false);
        assert_eq!(third.event().await, Event::Change);
        assert!(third.may_read() && first.may_read());
    }

    #[tokio::test(start_paused = true)]
    async fn nobody_has_a_turn_while_publishers_wait_for_room() {
        let [mut waiting, mut large, mut small] = several();
        large.set(100_000, 0, false);
        small.set(100, 0, false);
        large.all.set_short_of_room(true);
        assert!(may_read(&mut large).await, "they are few");
        waiting.set(0, 1_000_000, false);
        assert!(!may_read(&mut large).await && may_read(&mut small).await);
        assert!(waiting.may_read(), "what it brings now is none of that");
        large.all.set_short_of_room(false);
        assert_eq!(large.event().await, Event::Change);
        assert!(large.may_read());
    }

    #[tokio::test(start_paused = true)]
    async fn who_brings_nothing_where_there_are_turns_hears_so_whether_it_has_one_or_not() {
        let [mut first, mut second, mut third] = several();
        let all = Arc::clone(&first.all);
        first.set(2_000_000, 0, false);
        second.set(2_000_000, 0, false);
        assert!(may_read(&mut first).await && !may_read(&mut second).await);
        let begun = Instant::now();
        first.set(2_000_000 + ARRIVING_TURN_BYTES - 1, 0, false);
        assert_eq!(first.event().await, Event::Overdue);
        assert_eq!(second.event().await, Event::Overdue);
        assert_eq!(begun.elapsed(), ARRIVING_TURN);
        first.renew();
        tokio::time::advance(ARRIVING_TURN / 2).await;
        first.set(2_000_000 + 2 * ARRIVING_TURN_BYTES, 0, false);
        assert_eq!(first.event().await, Event::Overdue);
        assert_eq!(begun.elapsed(), ARRIVING_TURN * 5 / 2, "it has brought enough meanwhile");
        drop((first, second));
        third.set(2_000_000, 0, false);
        assert!(may_read(&mut third).await, "they have given it up");
        third.set(0, 0, false);
        assert_eq!(all.bytes.load(Ordering::Relaxed), 0);
    }
}
