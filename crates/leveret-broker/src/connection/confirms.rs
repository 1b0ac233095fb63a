//! Publisher confirms of one channel. RabbitMQ: confirms.
//!
//! Owns: numbers not yet confirmed, and which journal position each one waits for.
//! Must not know: queues, the journal itself, how an ack is encoded.
//! Invariant: every number is told, as confirmed or as refused, and never confirmed before its position is durable.
//!
//! Publishes are settled in the order of their numbers. So of all numbers up to the last that was settled, those that
//! wait are open and no others, and that is all that has to be remembered, however many others are told meanwhile.
//!
//! An ack of several says nothing new of a number that was refused, as the client heard of that before. But some clients
//! put what they hear in the order of numbers, and take what they hear last. So an ack of several never reaches over a
//! refused number to one that was not told.

use std::collections::VecDeque;
use std::num::NonZeroU64;

use leveret_planted::{Bug, planted};

use crate::change::JournalPosition;

/// The confirms of one channel.
#[derive(Debug)]
pub(super) struct Confirms {
    /// The number of the next publish.
    next: NonZeroU64,
    /// The last number that was settled or refused.
    settled: u64,
    /// Numbers that wait, in ascending order, which is also that of the positions they wait for.
    waiting: VecDeque<Waiting>,
    /// Whether a number was refused behind the last one that was put into `waiting`.
    refused_behind: bool,
    /// What may be told and was not, in ascending order. Little of it comes together between two calls of [`Self::tell`].
    untold: Vec<Run>,
}

#[derive(Clone, Copy, Debug)]
struct Waiting {
    after: JournalPosition,
    number: u64,
    /// Whether a number was refused between this one and the one before it.
    is_behind_refused: bool,
}

/// Successive numbers.
#[derive(Clone, Copy, Debug)]
struct Run {
    first: u64,
    last: u64,
    /// Whether a number may have been refused between this run and the one before it.
    is_behind_refused: bool,
}

/// Entries for which a channel keeps room while nothing waits.
const KEPT_ENTRIES: usize = 64;

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
            settled: 0,
            waiting: VecDeque::new(),
            refused_behind: false,
            untold: Vec::new(),
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
        let number = self.in_order(number);
        if after <= durable || planted(Bug::ConfirmBeforeDurable) {
            self.ready(number, self.refused_behind);
        } else if self.waiting.is_empty() || !planted(Bug::ConfirmForgotten) {
            debug_assert!(self.waiting.back().is_none_or(|last| last.after <= after));
            let is_behind_refused = std::mem::take(&mut self.refused_behind);
            self.waiting.push_back(Waiting { after, number, is_behind_refused });
        }
    }

    /// The journal has reached `durable`. What was ready before was told before.
    pub(super) fn advance(&mut self, durable: JournalPosition) {
        debug_assert!(self.untold.is_empty());
        while let Some(Waiting { number, is_behind_refused, .. }) =
            self.waiting.pop_front_if(|waiting| waiting.after <= durable)
        {
            self.ready(number, is_behind_refused);
        }
    }

    /// The position that the next confirm waits for.
    pub(super) fn next(&self) -> Option<JournalPosition> {
        self.waiting.front().map(|waiting| waiting.after)
    }

    /// A publish was refused, and the client is told so at once: what was ready before it was told before.
    /// Whether no number below it is open any more.
    pub(super) fn refuse(&mut self, number: NonZeroU64) -> bool {
        self.in_order(number);
        debug_assert!(self.untold.is_empty());
        self.refused_behind = !self.waiting.is_empty();
        self.waiting.is_empty()
    }

    fn in_order(&mut self, number: NonZeroU64) -> u64 {
        assert!(number.get() == self.settled + 1, "publishes are settled once, in the order of their numbers");
        self.settled = number.get();
        self.settled
    }

    fn ready(&mut self, number: u64, is_behind_refused: bool) {
        match self.untold.last_mut() {
            Some(run) if run.last + 1 == number => run.last = number,
            _ => self.untold.push(Run { first: number, last: number, is_behind_refused }),
        }
    }

    /// Hands out what may be told: all that is ready without a gap as one, or as one up to each refused number; the rest singly.
    pub(super) fn tell(&mut self, mut each: impl FnMut(Confirmation)) {
        let first_open = self.waiting.front().map_or(u64::MAX, |waiting| waiting.number);
        let mut together: Option<(u64, u64)> = None;
        let mut tell = |(first, last)| {
            each(if first == last { Confirmation::One(last) } else { Confirmation::UpTo(last) });
        };
        let mut untold = self.untold.iter().peekable();
        while let Some(run) = untold.next_if(|run| run.last < first_open) {
            if run.is_behind_refused {
                together.take().map(&mut tell);
            }
            together = Some((together.map_or(run.first, |(first, _)| first), run.last));
        }
        together.map(tell);
        untold.flat_map(|run| run.first..=run.last).map(Confirmation::One).for_each(each);
        self.untold.clear();
        self.untold.shrink_to(KEPT_ENTRIES);
        if self.waiting.is_empty() {
            self.refused_behind = false;
            self.waiting.shrink_to(KEPT_ENTRIES);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use proptest::prelude::*;

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

    const DURABLE: JournalPosition = JournalPosition(0);

    #[test]
    fn an_ack_of_several_does_not_reach_over_a_refused_number() {
        let mut confirms = Confirms::default();
        let numbers: [_; 6] = std::array::from_fn(|_| confirms.number());
        confirms.settle(numbers[0], JournalPosition(1), DURABLE);
        confirms.settle(numbers[1], JournalPosition(2), DURABLE);
        confirms.refuse(numbers[2]);
        confirms.settle(numbers[3], DURABLE, DURABLE);
        assert_eq!(told(&mut confirms), [Confirmation::One(4)]);
        confirms.settle(numbers[4], JournalPosition(3), DURABLE);
        confirms.settle(numbers[5], JournalPosition(4), DURABLE);
        confirms.advance(JournalPosition(4));
        assert_eq!(told(&mut confirms), [Confirmation::UpTo(2), Confirmation::UpTo(6)]);
    }

    #[test]
    fn what_is_remembered_is_what_waits_however_much_is_told_meanwhile() {
        let mut confirms = Confirms::default();
        let number = confirms.number();
        confirms.settle(number, JournalPosition(1), DURABLE);
        for round in 0..100_000 {
            let number = confirms.number();
            if round % 2 == 0 {
                confirms.settle(number, DURABLE, DURABLE);
            } else {
                assert!(!confirms.refuse(number));
            }
            assert_eq!(told(&mut confirms).len(), 1 - round % 2);
        }
        assert_eq!((confirms.waiting.len(), confirms.untold.len()), (1, 0));
        assert!(confirms.waiting.capacity() + confirms.untold.capacity() <= 2 * KEPT_ENTRIES);
        for _ in 0..100_000 {
            let number = confirms.number();
            confirms.settle(number, JournalPosition(1), DURABLE);
            let number = confirms.number();
            confirms.settle(number, DURABLE, DURABLE);
            assert_eq!(told(&mut confirms), [Confirmation::One(number.get())]);
        }
        confirms.advance(JournalPosition(1));
        assert_eq!(told(&mut confirms), [Confirmation::One(1), Confirmation::UpTo(300_000)]);
        assert!(confirms.waiting.capacity() + confirms.untold.capacity() <= 4 * KEPT_ENTRIES, "room is given back");
    }

    #[derive(Clone, Copy, Debug)]
    enum Step {
        /// A publish that is settled, and how much of the journal it needs beyond what is there.
        Settle(u64),
        Refuse,
        /// So much more of the journal is durable.
        Advance(u64),
        Tell,
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            4 => (0..3u64).prop_map(Step::Settle),
            2 => Just(Step::Refuse),
            2 => (0..3u64).prop_map(Step::Advance),
            2 => Just(Step::Tell),
        ]
    }

    /// What clients do with acks and nacks.
    #[derive(Default)]
    struct Clients {
        /// Strikes out what is outstanding, as most do.
        outstanding: BTreeSet<u64>,
        outcomes: BTreeMap<u64, bool>,
        /// Puts outcomes in the order of numbers, and believes an ack of several for every number that it has not passed
        /// on.
        early: BTreeMap<u64, bool>,
        in_order: Vec<bool>,
    }

    impl Clients {
        fn hear(&mut self, number: u64, multiple: bool, is_ack: bool) {
            let first = if multiple { 0 } else { number };
            let told: Vec<u64> = self.outstanding.range(first..=number).copied().collect();
            assert!(told.contains(&number), "{number} is told once");
            for number in told {
                self.outstanding.remove(&number);
                self.outcomes.insert(number, is_ack);
            }
            if multiple {
                while (self.in_order.len() as u64) < number {
                    self.early.remove(&(self.in_order.len() as u64 + 1));
                    self.in_order.push(is_ack);
                }
            } else {
                self.early.insert(number, is_ack);
            }
            while let Some(is_ack) = self.early.remove(&(self.in_order.len() as u64 + 1)) {
                self.in_order.push(is_ack);
            }
        }

        fn hear_all(&mut self, confirms: &mut Confirms) {
            confirms.tell(|confirmation| match confirmation {
                Confirmation::One(number) => self.hear(number, false, true),
                Confirmation::UpTo(number) => self.hear(number, true, true),
            });
        }
    }

    proptest! {
        #[test]
        fn clients_hear_the_truth_of_every_number_and_of_none_too_early(steps in prop::collection::vec(step(), 0..60)) {
            let (mut confirms, mut clients) = (Confirms::default(), Clients::default());
            let (mut durable, mut last) = (0, 0);
            // By number from 1 on: the position it waits for, or none if it was refused.
            let mut truth: Vec<Option<u64>> = vec![];
            for step in steps.into_iter().chain([Step::Advance(1000), Step::Tell]) {
                match step {
                    Step::Settle(more) => {
                        let number = confirms.number();
                        clients.outstanding.insert(number.get());
                        // Zero rests on nothing.
                        let after = if more == 0 { 0 } else { durable.max(last) + more - 1 };
                        last = last.max(after);
                        truth.push(Some(after));
                        confirms.settle(number, JournalPosition(after), JournalPosition(durable));
                    }
                    Step::Refuse => {
                        let number = confirms.number();
                        clients.outstanding.insert(number.get());
                        truth.push(None);
                        clients.hear_all(&mut confirms);
                        let multiple = confirms.refuse(number);
                        clients.hear(number.get(), multiple, false);
                    }
                    Step::Advance(more) => {
                        clients.hear_all(&mut confirms);
                        durable += more;
                        confirms.advance(JournalPosition(durable));
                    }
                    Step::Tell => clients.hear_all(&mut confirms),
                }
                for (&number, &is_ack) in &clients.outcomes {
                    let after = truth[usize::try_from(number).unwrap() - 1];
                    prop_assert_eq!(is_ack, after.is_some());
                    prop_assert!(after.is_none_or(|after| after <= durable), "{} is early", number);
                }
            }
            let truth: Vec<bool> = truth.into_iter().map(|after| after.is_some()).collect();
            prop_assert_eq!(clients.outcomes.into_values().collect::<Vec<_>>(), truth.clone());
            prop_assert_eq!(clients.in_order, truth);
        }
    }
}
