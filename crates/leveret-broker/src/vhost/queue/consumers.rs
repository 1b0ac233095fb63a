//! The consumers of one queue, and whose turn it is.
//!
//! Owns: round-robin among consumers of equal priority that can take a message, higher priorities first; or which one of
//! them is active, where only one is.
//! Must not know: credit. Whoever delivers says, when a turn ends, whether that consumer may have another one.
//! Invariant: a consumer waits for at most one turn.

use std::cmp::Reverse;
use std::collections::{BTreeMap, VecDeque};

use crate::vhost::ConnectionId;
use crate::vhost::command::{AckMode, ConsumerId};

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
    ring: VecDeque<Waiting>,
}

/// A consumer that may get a message.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Waiting {
    pub(crate) seat: Seat,
    pub(crate) key: ConsumerKey,
    pub(crate) ack_mode: AckMode,
}

/// Which consumers of a queue are served. RabbitMQ: single active consumer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Sharing {
    /// All of them.
    #[default]
    All,
    /// The one that came first; when it goes, the one that came next.
    First,
    /// The one of the highest priority that came first. It takes over from another as soon as that holds nothing.
    Highest,
}

/// The one consumer that is served, if only one is.
#[derive(Clone, Copy, Debug)]
struct Active {
    seat: Seat,
    /// Another one is to take over.
    is_yielding: bool,
}

/// The consumers of a queue.
#[derive(Debug, Default)]
pub(crate) struct Consumers {
    sharing: Sharing,
    active: Option<Active>,
    seats: BTreeMap<Seat, (ConsumerKey, Priority)>,
    last_seat: u64,
    /// Highest priority first; about as many as there are consumers, at most.
    levels: Vec<Level>,
    /// How many wait for a turn.
    waiting: usize,
    /// How many stand in a ring and have left.
    left: usize,
}

/// A queue with no more priorities of consumers than this keeps their rings while they are empty.
const EMPTY_RINGS_KEPT: usize = 4;

/// A ring may hold this many that have left, beside as many as wait.
const LEFT_SWEPT_FROM: usize = 64;

impl Consumers {
    pub(crate) fn new(sharing: Sharing) -> Self {
        Consumers { sharing, ..Consumers::default() }
    }

    pub(crate) fn count(&self) -> usize {
        self.seats.len()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.seats.is_empty()
    }

    /// In the order in which they came.
    pub(crate) fn into_keys(self) -> impl Iterator<Item = ConsumerKey> {
        self.seats.into_values().map(|(key, _)| key)
    }

    /// Takes in a consumer; its turn may come if [`Self::may_serve`] says so.
    pub(crate) fn add(&mut self, key: ConsumerKey, ack_mode: AckMode, priority: Priority) -> Seat {
        self.last_seat += 1;
        let seat = Seat(self.last_seat);
        self.seats.insert(seat, (key, priority));
        match (self.sharing, &mut self.active) {
            (Sharing::All, _) => {}
            (_, None) => self.active = Some(Active { seat, is_yielding: false }),
            (Sharing::First, Some(_)) => {}
            (Sharing::Highest, Some(active)) => {
                let (_, current) = self.seats[&active.seat];
                active.is_yielding |= priority > current;
            }
        }
        if self.may_serve(seat) {
            self.wait_for_turn(Waiting { seat, key, ack_mode }, priority);
        }
        seat
    }

    /// Whether a consumer may be given messages.
    pub(crate) fn may_serve(&self, seat: Seat) -> bool {
        match (self.sharing, self.active) {
            (Sharing::All, _) => true,
            (Sharing::First | Sharing::Highest, active) => {
                active.is_some_and(|active| active.seat == seat && !active.is_yielding)
            }
        }
    }

    /// The consumer that is to make way for another as soon as it holds nothing.
    pub(crate) fn yielding(&self) -> Option<(Seat, ConsumerKey)> {
        let active = self.active.filter(|active| active.is_yielding)?;
        self.seats.get(&active.seat).map(|&(key, _)| (active.seat, key))
    }

    /// Whether it is this one.
    pub(crate) fn is_yielding(&self, seat: Seat) -> bool {
        self.yielding().is_some_and(|(yielding, _)| yielding == seat)
    }

    /// Whether only one is served.
    pub(crate) fn has_single_active(&self) -> bool {
        self.sharing != Sharing::All
    }

    /// The one whose turn it is to be active becomes so.
    pub(crate) fn activate_next(&mut self) -> Option<ConsumerKey> {
        let next = match self.sharing {
            Sharing::All => None,
            Sharing::First => self.seats.first_key_value(),
            Sharing::Highest => self.seats.iter().max_by_key(|&(&seat, &(_, priority))| (priority, Reverse(seat))),
        };
        let (seat, key) = next.map(|(&seat, &(key, _))| (seat, key)).unzip();
        self.active = seat.map(|seat| Active { seat, is_yielding: false });
        key
    }

    /// Whether the active one has to make way for none of those that are left.
    fn has_nobody_to_yield_to(&self) -> bool {
        let Some((active, _)) = self.yielding() else { return false };
        let priority = self.seats.get(&active).map(|&(_, priority)| priority);
        self.seats.values().all(|&(_, other)| Some(other) <= priority)
    }

    /// Lets a consumer go. Its place in the ring is found empty later, or swept. Returns who becomes active instead.
    pub(crate) fn remove(&mut self, seat: Seat, is_waiting: bool) -> Option<ConsumerKey> {
        if self.seats.remove(&seat).is_some() && is_waiting {
            self.waiting -= 1;
            self.left += 1;
        }
        let is_active = self.active.is_some_and(|active| active.seat == seat);
        let next = if is_active || self.has_nobody_to_yield_to() { self.activate_next() } else { None };
        for level in &mut self.levels {
            if level.ring.len() > 2 * self.waiting + LEFT_SWEPT_FROM {
                let seats = &self.seats;
                level.ring.retain(|waiting| seats.contains_key(&waiting.seat));
            }
        }
        if self.levels.len() > self.seats.len() {
            let seats = &self.seats;
            self.levels.retain(|level| level.ring.iter().any(|waiting| seats.contains_key(&waiting.seat)));
        }
        self.left = self.levels.iter().map(|level| level.ring.len()).sum::<usize>() - self.waiting;
        next
    }

    /// Whether anybody may take a message.
    pub(crate) fn any_waiting(&self) -> bool {
        self.waiting > 0
    }

    /// Whether that is one consumer, which has turn after turn.
    pub(crate) fn is_one_waiting(&self) -> bool {
        self.waiting == 1
    }

    /// Puts a consumer at the end of its ring.
    pub(crate) fn wait_for_turn(&mut self, waiting: Waiting, priority: Priority) {
        self.level(priority).ring.push_back(waiting);
        self.waiting += 1;
    }

    /// How the consumer settles what it gets whose turn it seems to be: it may have left.
    pub(crate) fn next_ack_mode(&self) -> Option<AckMode> {
        self.levels.iter().find_map(|level| level.ring.front()).map(|waiting| waiting.ack_mode)
    }

    /// The consumer whose turn it is, until [`Self::end_turn`].
    pub(crate) fn next_turn(&mut self) -> Option<Waiting> {
        let mut at = 0;
        while let Some(level) = self.levels.get_mut(at) {
            let Some(&waiting) = level.ring.front() else {
                at += 1;
                continue;
            };
            if self.left == 0 || self.seats.contains_key(&waiting.seat) {
                return Some(waiting);
            }
            level.ring.pop_front();
            self.left -= 1;
            self.forget_if_empty(at);
        }
        None
    }

    /// The consumer that [`Self::next_turn`] gave has had its turn. It goes to the end of its ring, or out of it.
    pub(crate) fn end_turn(&mut self, has_another: bool) {
        let Some(at) = self.levels.iter().position(|level| !level.ring.is_empty()) else { return };
        let ring = &mut self.levels[at].ring;
        if !has_another {
            ring.pop_front();
            self.waiting -= 1;
            self.forget_if_empty(at);
        } else if ring.len() > 1 {
            ring.rotate_left(1);
        }
    }

    /// A few empty rings are kept, as they are needed again soon; many would be looked through at each message.
    fn forget_if_empty(&mut self, at: usize) {
        if self.levels.len() > EMPTY_RINGS_KEPT && self.levels[at].ring.is_empty() {
            self.levels.remove(at);
        }
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
            let seat = consumers.add(key(number), AckMode::Manual, 0);
            consumers.remove(seat, true);
        }
        assert!(consumers.levels.iter().all(|level| level.ring.len() <= LEFT_SWEPT_FROM + 1));
        assert!(!consumers.any_waiting());
        assert!(consumers.next_turn().is_none());
        assert_eq!(consumers.left, 0);
    }

    #[test]
    fn priorities_that_nobody_has_any_more_are_forgotten() {
        let mut consumers = Consumers::default();
        for priority in 0..10_000 {
            let seat = consumers.add(key(1), AckMode::Manual, priority);
            consumers.remove(seat, true);
        }
        assert!(consumers.levels.is_empty());
    }

    #[test]
    fn priorities_at_which_nobody_waits_are_not_looked_through() {
        let mut consumers = Consumers::default();
        for priority in 0..1_000 {
            consumers.add(key(1), AckMode::Manual, priority);
        }
        for left in (1..1_000).rev() {
            assert!(consumers.next_turn().is_some());
            consumers.end_turn(false);
            assert_eq!(consumers.levels.len(), left.max(EMPTY_RINGS_KEPT));
        }
        // Whoever left is found out when its turn comes.
        let gone: Vec<_> = (1..1_000).map(|priority| consumers.add(key(1), AckMode::Manual, priority)).collect();
        for seat in gone {
            consumers.remove(seat, true);
        }
        assert!(consumers.next_turn().is_some());
        assert!(consumers.levels.len() <= EMPTY_RINGS_KEPT + 1);
    }

    #[test]
    fn whoever_comes_back_under_the_same_name_has_one_turn() {
        let mut consumers = Consumers::default();
        let seat = consumers.add(key(1), AckMode::Manual, 0);
        consumers.remove(seat, true);
        consumers.add(key(1), AckMode::Manual, 0);
        assert_eq!(consumers.next_turn().map(|waiting| waiting.key), Some(key(1)));
        consumers.end_turn(false);
        assert!(consumers.next_turn().is_none());
    }
}
