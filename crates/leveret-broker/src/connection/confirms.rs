//! Publisher confirms of one channel. RabbitMQ: confirms.
//!
//! Owns: numbers not yet confirmed, and which journal position each one waits for.
//! Must not know: queues, the journal itself, how an ack is encoded.
//! Invariant: every number is told, as confirmed or as refused, and never confirmed before its position is durable.

use std::collections::{BTreeMap, VecDeque};
use std::num::NonZeroU64;

use crate::change::JournalPosition;

/// The confirms of one channel.
#[derive(Debug)]
pub(super) struct Confirms {
    /// The number of the next publish.
    next: NonZeroU64,
    /// Every number below may be told.
    ready_below: u64,
    /// The first and the last of them that were not told.
    untold: Option<(u64, u64)>,
    /// Numbers beyond a gap that may be told, too, and whether they were.
    ready_beyond: BTreeMap<u64, Told>,
    /// Numbers that wait, in the order of the positions they wait for.
    waiting: VecDeque<(JournalPosition, u64)>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Told {
    Yes,
    No,
}

/// One `basic.ack` to the publisher.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Confirmation {
    /// This number.
    One(u64),
    /// This number and all below.
    UpTo(u64),
}

impl Default for Confirms {
    fn default() -> Self {
        Confirms {
            next: NonZeroU64::MIN,
            ready_below: 1,
            untold: None,
            ready_beyond: BTreeMap::new(),
            waiting: VecDeque::new(),
        }
    }
}

impl Confirms {
    /// Numbers a publish. Every one counts, also one that reaches no queue.
    pub(super) fn number(&mut self) -> NonZeroU64 {
        let number = self.next;
        self.next = number.saturating_add(1);
        number
    }

    /// A publish was taken care of, once the journal has reached `after`.
    pub(super) fn settle(&mut self, number: NonZeroU64, after: JournalPosition, durable: JournalPosition) {
        if after <= durable {
            self.ready(number.get());
        } else {
            debug_assert!(self.waiting.back().is_none_or(|&(last, _)| last <= after));
            self.waiting.push_back((after, number.get()));
        }
    }

    /// The journal has reached `durable`.
    pub(super) fn advance(&mut self, durable: JournalPosition) {
        while let Some(&(after, number)) = self.waiting.front()
            && after <= durable
        {
            self.waiting.pop_front();
            self.ready(number);
        }
    }

    /// The position that the next confirm waits for.
    pub(super) fn next(&self) -> Option<JournalPosition> {
        self.waiting.front().map(|&(after, _)| after)
    }

    /// A publish was refused, and the client is told so at once: what was ready before it was told before.
    /// Whether no number below it is open any more.
    pub(super) fn refuse(&mut self, number: NonZeroU64) -> bool {
        self.ready_as(number.get(), Told::Yes);
        number.get() < self.ready_below
    }

    fn ready(&mut self, number: u64) {
        self.ready_as(number, Told::No);
    }

    fn ready_as(&mut self, number: u64, told: Told) {
        assert!(number >= self.ready_below, "a publish is settled once");
        if number > self.ready_below {
            let is_new = self.ready_beyond.insert(number, told).is_none();
            assert!(is_new, "a publish is settled once");
            return;
        }
        let mut told = Some(told);
        while let Some(now_below) = told {
            if now_below == Told::No {
                let first = self.untold.map_or(self.ready_below, |(first, _)| first);
                self.untold = Some((first, self.ready_below));
            }
            self.ready_below += 1;
            told = self.ready_beyond.remove(&self.ready_below);
        }
    }

    /// Hands out what may be told: all that is ready without a gap as one, the rest singly.
    pub(super) fn tell(&mut self, mut each: impl FnMut(Confirmation)) {
        match self.untold.take() {
            None => {}
            Some((first, last)) if first == last => each(Confirmation::One(last)),
            Some((_, last)) => each(Confirmation::UpTo(last)),
        }
        for (&number, told) in self.ready_beyond.iter_mut().filter(|(_, told)| **told == Told::No) {
            *told = Told::Yes;
            each(Confirmation::One(number));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(confirms: &mut Confirms) -> Vec<Confirmation> {
        let mut told = Vec::new();
        confirms.tell(|confirmation| told.push(confirmation));
        told
    }

    #[test]
    fn confirms_without_a_gap_go_out_as_one() {
        let mut confirms = Confirms::default();
        for _ in 0..3 {
            let number = confirms.number();
            confirms.settle(number, JournalPosition(0), JournalPosition(0));
        }
        assert_eq!(told(&mut confirms), [Confirmation::UpTo(3)]);
        assert_eq!(told(&mut confirms), []);
    }

    #[test]
    fn a_number_waits_for_its_position_and_the_later_ones_go_out_singly() {
        let mut confirms = Confirms::default();
        let numbers = [confirms.number(), confirms.number(), confirms.number()];
        confirms.settle(numbers[0], JournalPosition(7), JournalPosition(6));
        confirms.settle(numbers[1], JournalPosition(0), JournalPosition(6));
        confirms.settle(numbers[2], JournalPosition(0), JournalPosition(6));
        assert_eq!(told(&mut confirms), [Confirmation::One(2), Confirmation::One(3)]);
        confirms.advance(JournalPosition(6));
        assert_eq!(told(&mut confirms), []);
        confirms.advance(JournalPosition(7));
        assert_eq!(told(&mut confirms), [Confirmation::One(1)], "the others were told before");
        let next = confirms.number();
        confirms.settle(next, JournalPosition(0), JournalPosition(7));
        assert_eq!(told(&mut confirms), [Confirmation::One(4)]);
    }

    #[test]
    fn what_was_refused_is_not_confirmed_by_its_own_tag() {
        let mut confirms = Confirms::default();
        let [first, second, third, fourth] = std::array::from_fn(|_| confirms.number());
        confirms.settle(first, JournalPosition(0), JournalPosition(0));
        assert_eq!(told(&mut confirms), [Confirmation::One(1)]);
        assert!(confirms.refuse(second), "all below were told");
        assert_eq!(told(&mut confirms), []);
        confirms.settle(third, JournalPosition(1), JournalPosition(0));
        assert!(!confirms.refuse(fourth), "the third is open");
        assert_eq!(told(&mut confirms), []);
        confirms.advance(JournalPosition(1));
        assert_eq!(told(&mut confirms), [Confirmation::One(3)]);
        let [fifth, sixth] = std::array::from_fn(|_| confirms.number());
        confirms.settle(fifth, JournalPosition(0), JournalPosition(1));
        confirms.settle(sixth, JournalPosition(0), JournalPosition(1));
        assert_eq!(told(&mut confirms), [Confirmation::UpTo(6)]);
    }
}
