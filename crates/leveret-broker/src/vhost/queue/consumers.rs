//! The consumers of one queue, and whose turn it is.
//!
//! Owns: round-robin among consumers of equal priority that can take a message; higher priorities first.
//! Must not know: credit. Whoever delivers takes a consumer's turn and puts it back while it has credit left.
//! Invariant: a consumer waits for at most one turn.

use std::collections::{BTreeMap, VecDeque};

use crate::vhost::ConnectionId;
use crate::vhost::command::ConsumerId;

/// Names a consumer in its virtual host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ConsumerKey {
    pub(crate) connection: ConnectionId,
    pub(crate) consumer: ConsumerId,
}

/// The place of a consumer in the order in which they came to the queue. Never given twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Seat(u64);

/// Argument `x-priority` of `basic.consume`; higher is served first. Default 0.
pub(crate) type Priority = i64;

#[derive(Debug)]
struct Level {
    priority: Priority,
    /// Those that may have credit, in the order of their turns. Some may have left since.
    ring: VecDeque<Seat>,
}

/// The consumers of a queue.
#[derive(Debug, Default)]
pub(crate) struct Consumers {
    seats: BTreeMap<Seat, ConsumerKey>,
    last_seat: u64,
    /// Highest priority first; about as many as there are consumers, at most.
    levels: Vec<Level>,
    /// How many wait for a turn.
    waiting: usize,
}

/// A ring may hold this many that have left, beside as many as wait.
const LEFT_SWEPT_FROM: usize = 64;

impl Consumers {
    pub(crate) fn count(&self) -> usize {
        self.seats.len()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.seats.is_empty()
    }

    /// In the order in which they came.
    pub(crate) fn into_keys(self) -> impl Iterator<Item = ConsumerKey> {
        self.seats.into_values()
    }

    /// Takes in a consumer, which waits for its turn.
    pub(crate) fn add(&mut self, key: ConsumerKey, priority: Priority) -> Seat {
        self.last_seat += 1;
        let seat = Seat(self.last_seat);
        self.seats.insert(seat, key);
        self.wait_for_turn(seat, priority);
        seat
    }

    /// Lets a consumer go. Its place in the ring is found empty later, or swept.
    pub(crate) fn remove(&mut self, seat: Seat, is_waiting: bool) {
        if self.seats.remove(&seat).is_some() && is_waiting {
            self.waiting -= 1;
        }
        for level in &mut self.levels {
            if level.ring.len() > 2 * self.waiting + LEFT_SWEPT_FROM {
                let seats = &self.seats;
                level.ring.retain(|seat| seats.contains_key(seat));
            }
        }
        if self.levels.len() > self.seats.len() {
            let seats = &self.seats;
            self.levels.retain(|level| level.ring.iter().any(|seat| seats.contains_key(seat)));
        }
    }

    /// Whether anybody may take a message.
    pub(crate) fn any_waiting(&self) -> bool {
        self.waiting > 0
    }

    /// Puts a consumer at the end of its ring.
    pub(crate) fn wait_for_turn(&mut self, seat: Seat, priority: Priority) {
        self.level(priority).ring.push_back(seat);
        self.waiting += 1;
    }

    /// Puts a consumer back whose turn was not used.
    pub(crate) fn keep_turn(&mut self, seat: Seat, priority: Priority) {
        self.level(priority).ring.push_front(seat);
        self.waiting += 1;
    }

    /// Takes out the consumer whose turn it is.
    pub(crate) fn take_turn(&mut self) -> Option<(Seat, ConsumerKey)> {
        for level in &mut self.levels {
            while let Some(seat) = level.ring.pop_front() {
                if let Some(&key) = self.seats.get(&seat) {
                    self.waiting -= 1;
                    return Some((seat, key));
                }
            }
        }
        None
    }

    fn level(&mut self, priority: Priority) -> &mut Level {
        let at = self.levels.partition_point(|level| level.priority > priority);
        if self.levels.get(at).is_none_or(|level| level.priority != priority) {
            self.levels.insert(at, Level { priority, ring: VecDeque::new() });
        }
        &mut self.levels[at]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(number: u32) -> ConsumerKey {
        ConsumerKey { connection: ConnectionId::default(), consumer: ConsumerId { slot: number, number: 0 } }
    }

    #[test]
    fn consumers_that_left_do_not_stay_in_the_ring() {
        let mut consumers = Consumers::default();
        for number in 0..10_000 {
            let seat = consumers.add(key(number), 0);
            consumers.remove(seat, true);
        }
        assert!(consumers.levels.iter().all(|level| level.ring.len() <= LEFT_SWEPT_FROM + 1));
        assert!(!consumers.any_waiting());
        assert!(consumers.take_turn().is_none());
    }

    #[test]
    fn priorities_that_nobody_has_any_more_are_forgotten() {
        let mut consumers = Consumers::default();
        for priority in 0..10_000 {
            let seat = consumers.add(key(1), priority);
            consumers.remove(seat, true);
        }
        assert!(consumers.levels.is_empty());
    }

    #[test]
    fn whoever_comes_back_under_the_same_name_has_one_turn() {
        let mut consumers = Consumers::default();
        let seat = consumers.add(key(1), 0);
        consumers.remove(seat, true);
        consumers.add(key(1), 0);
        assert_eq!(consumers.take_turn().map(|(_, key)| key), Some(key(1)));
        assert!(consumers.take_turn().is_none());
    }
}
