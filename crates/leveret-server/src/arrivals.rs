//! Contents that have arrived in part, on all connections together.
//!
//! Owns: what they take, and which connection may go on reading its own when that is too much.
//! Small ones always go on. Beyond a bound of all others, one connection at a time has a *turn*, first come, first served, until its
//! content is complete and a queue has taken it: so all get there, one after the other, and nobody waits for somebody who waits. Who
//! has its turn and does not use it is closed.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, Sleep};

use crate::limits::{ARRIVING_BYTES_SMALL, ARRIVING_TURN};

/// Of a node.
#[derive(Debug)]
pub(crate) struct Arrivals {
    /// What contents take that have not arrived as a whole, or have and wait for room.
    bytes: AtomicUsize,
    /// Up to that, nobody waits for a turn.
    bytes_max: usize,
    turn: Arc<Semaphore>,
}

impl Arrivals {
    /// A sixteenth of a limit on memory, in bytes, is for them.
    pub(crate) fn new(memory_limit: usize) -> Arc<Self> {
        let (bytes, bytes_max, turn) = (AtomicUsize::new(0), memory_limit / 16, Arc::new(Semaphore::new(1)));
        Arc::new(Arrivals { bytes, bytes_max, turn })
    }

    pub(crate) fn bytes(&self) -> usize {
        self.bytes.load(Ordering::Relaxed)
    }

    fn are_few(&self) -> bool {
        self.bytes() <= self.bytes_max
    }
}

/// Of one connection.
pub(crate) struct Arrival {
    all: Arc<Arrivals>,
    bytes: usize,
    turn: Turn,
}

enum Turn {
    NotNeeded,
    Awaited(Pin<Box<dyn Future<Output = OwnedSemaphorePermit> + Send>>),
    /// Until it has passed by.
    Taken {
        until: Pin<Box<Sleep>>,
        _turn: OwnedSemaphorePermit,
    },
}

/// What a connection has waited for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Event {
    /// It may go on now.
    Turn,
    /// It could have gone on for long enough.
    Overdue,
}

impl Arrival {
    pub(crate) fn new(all: Arc<Arrivals>) -> Self {
        Arrival { all, bytes: 0, turn: Turn::NotNeeded }
    }

    /// What has arrived of contents, and was not taken, takes so many bytes now.
    pub(crate) fn set(&mut self, bytes: usize) {
        let before = std::mem::replace(&mut self.bytes, bytes);
        if bytes != before {
            // It wraps round where it is less.
            self.all.bytes.fetch_add(bytes.wrapping_sub(before), Ordering::Relaxed);
        }
        if self.needs_no_turn() {
            self.turn = Turn::NotNeeded;
        }
    }

    /// Whether so little has arrived that it always goes on.
    pub(crate) fn is_small(&self) -> bool {
        self.bytes <= ARRIVING_BYTES_SMALL
    }

    fn needs_no_turn(&self) -> bool {
        self.is_small() || self.all.are_few()
    }

    /// Whether more of them may be read. If not, [`Self::event`] says when.
    pub(crate) fn may_read(&mut self) -> bool {
        if self.needs_no_turn() {
            self.turn = Turn::NotNeeded;
            return true;
        }
        if let Turn::NotNeeded = self.turn {
            let turn = Arc::clone(&self.all.turn);
            self.turn =
                Turn::Awaited(Box::pin(async move { turn.acquire_owned().await.expect("nobody closes it") }));
        }
        matches!(self.turn, Turn::Taken { .. })
    }

    /// Returns when it is its turn, or when that is over; never for who needs none.
    pub(crate) async fn event(&mut self) -> Event {
        match &mut self.turn {
            Turn::NotNeeded => std::future::pending().await,
            Turn::Awaited(turn) => {
                let turn = turn.await;
                self.turn = Turn::Taken { until: Box::pin(tokio::time::sleep(ARRIVING_TURN)), _turn: turn };
                Event::Turn
            }
            Turn::Taken { until, .. } => {
                until.as_mut().await;
                // Whoever waits for room with a content that is complete has as long again.
                until.as_mut().reset(Instant::now() + ARRIVING_TURN);
                Event::Overdue
            }
        }
    }
}

impl Drop for Arrival {
    fn drop(&mut self) {
        self.set(0);
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    const LIMIT: usize = 16_000_000;

    /// Whether it is this one's turn now.
    async fn has_turn(arrival: &mut Arrival) -> bool {
        arrival.may_read() || tokio::time::timeout(Duration::ZERO, arrival.event()).await == Ok(Event::Turn)
    }

    #[tokio::test(start_paused = true)]
    async fn beyond_the_bound_they_take_turns_in_the_order_in_which_they_came() {
        let all = Arrivals::new(LIMIT);
        let [mut first, mut second, mut third, mut small] = [(); 4].map(|()| Arrival::new(Arc::clone(&all)));
        first.set(1_000_000);
        assert!(first.may_read(), "all together may have so much");
        second.set(1_000_000);
        small.set(ARRIVING_BYTES_SMALL);
        assert!(has_turn(&mut first).await && first.may_read());
        assert!(!has_turn(&mut second).await && !second.may_read());
        third.set(900_000);
        assert!(!has_turn(&mut third).await);
        assert!(small.may_read(), "nobody waits with little");
        first.set(3_000_000);
        assert!(first.may_read() && !has_turn(&mut second).await);
        first.set(0);
        assert!(!has_turn(&mut third).await, "the second was there before");
        assert!(has_turn(&mut second).await);
        drop((second, first));
        assert!(third.may_read(), "those that are left are few");
    }

    #[tokio::test(start_paused = true)]
    async fn who_does_not_use_a_turn_is_told_that_it_is_over_and_gives_it_up_when_gone() {
        let all = Arrivals::new(LIMIT);
        let [mut first, mut second] = [(); 2].map(|()| Arrival::new(Arc::clone(&all)));
        first.set(2_000_000);
        second.set(2_000_000);
        assert!(has_turn(&mut first).await && !has_turn(&mut second).await);
        let begun = Instant::now();
        assert_eq!(first.event().await, Event::Overdue);
        assert_eq!(begun.elapsed(), ARRIVING_TURN);
        drop(first);
        assert!(has_turn(&mut second).await && second.may_read());
        second.set(0);
        assert_eq!(all.bytes(), 0);
    }
}
