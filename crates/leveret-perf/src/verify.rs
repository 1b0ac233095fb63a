//! Whether what arrived is what was published: nothing lost, doubled, out of order or made up.
//!
//! Each consumer notes what it sees in a set of its own; the sets are compared with what was published in the end.

use std::collections::BTreeMap;

use serde::Serialize;

/// Words of 64 numbers in a page of a set.
const PAGE_WORDS: usize = 512;

/// Which queue, and which flow of messages in it.
pub(crate) type Stream = (u32, u32);

/// What is wrong with what arrived. All zeros is good.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Verification {
    /// Messages that were published, not refused, and did not arrive.
    pub lost: u64,
    /// Arrivals of what had arrived in the same queue before, and what was still in a queue when all had arrived.
    pub duplicated: u64,
    /// Arrivals behind a later message of the same producer and routing key, in the same queue at the same consumer.
    pub disordered: u64,
    /// Arrivals of what was never published in this run: a body of another length, too.
    pub unknown: u64,
}

impl Verification {
    /// Whether nothing is wrong.
    pub fn is_good(&self) -> bool {
        *self == Verification::default()
    }

    /// Adds what was still in the queues when nobody consumed any more: second copies, but for what did not arrive at all.
    pub(crate) fn handle_left(&mut self, messages: u64) {
        self.duplicated += messages.saturating_sub(self.lost);
    }
}

/// Which messages the broker refused: they may arrive or not, in each queue.
#[derive(Debug, Default)]
pub(crate) struct Refused(BTreeMap<u32, Numbers>);

/// What one consumer has seen.
#[derive(Debug, Default)]
pub(crate) struct Seen {
    streams: BTreeMap<Stream, Arrivals>,
    /// Arrivals of which nobody knows a stream.
    unknown: u64,
}

/// What arrived of one stream.
#[derive(Debug, Default)]
struct Arrivals {
    numbers: Numbers,
    highest: Option<u64>,
    duplicated: u64,
    disordered: u64,
}

/// A set of numbers, in pages of bits.
#[derive(Debug, Default)]
struct Numbers(BTreeMap<u64, Box<[u64; PAGE_WORDS]>>);

impl Numbers {
    /// `false` when it was there already.
    fn insert(&mut self, number: u64) -> bool {
        let page = self.0.entry(number / 64 / PAGE_WORDS as u64).or_insert_with(|| Box::new([0; PAGE_WORDS]));
        let word = usize::try_from(number / 64 % PAGE_WORDS as u64).unwrap_or_default();
        let bit = 1 << (number % 64);
        let is_new = page[word] & bit == 0;
        page[word] |= bit;
        is_new
    }

    /// Takes in all of another set, and says how many were there already.
    fn add(&mut self, other: &Numbers) -> u64 {
        let mut both = 0;
        for (number, theirs) in &other.0 {
            let ours = self.0.entry(*number).or_insert_with(|| Box::new([0; PAGE_WORDS]));
            for (ours, theirs) in ours.iter_mut().zip(theirs.iter()) {
                both += u64::from((*ours & theirs).count_ones());
                *ours |= theirs;
            }
        }
        both
    }

    /// How many are below `end`, and how many are not.
    fn split_count(&self, end: u64) -> (u64, u64) {
        let (mut below, mut all) = (0, 0);
        for (page, words) in &self.0 {
            for (word, bits) in words.iter().enumerate() {
                let first = (page * PAGE_WORDS as u64 + word as u64) * 64;
                let kept = match end.saturating_sub(first) {
                    64.. => u64::MAX,
                    count => (1 << count) - 1,
                };
                below += u64::from((bits & kept).count_ones());
                all += u64::from(bits.count_ones());
            }
        }
        (below, all - below)
    }
}

impl Refused {
    pub(crate) fn insert(&mut self, flow: u32, sequence: u64) {
        self.0.entry(flow).or_default().insert(sequence);
    }

    /// Takes in all of another producer.
    pub(crate) fn add(&mut self, other: &Refused) {
        for (flow, theirs) in &other.0 {
            self.0.entry(*flow).or_default().add(theirs);
        }
    }

    /// How many arrivals are not owed, of so many messages in each stream.
    pub(crate) fn copies(&self, expected: &BTreeMap<Stream, u64>) -> u64 {
        let of_stream = |((_, flow), &count): (&Stream, &u64)| Some(self.0.get(flow)?.split_count(count).0);
        expected.iter().filter_map(of_stream).sum()
    }
}

impl Seen {
    /// Notes an arrival, and says whether it is new. `sequence` has at most 40 bits.
    pub(crate) fn handle_arrival(&mut self, stream: Stream, sequence: u64) -> bool {
        let arrivals = self.streams.entry(stream).or_default();
        let is_new = arrivals.numbers.insert(sequence);
        if !is_new {
            arrivals.duplicated += 1;
        } else if arrivals.highest.is_some_and(|highest| sequence < highest) {
            arrivals.disordered += 1;
        }
        arrivals.highest = arrivals.highest.max(Some(sequence));
        is_new
    }

    /// Notes an arrival that cannot be what was published, whatever it says of itself.
    pub(crate) fn handle_unknown(&mut self) {
        self.unknown += 1;
    }

    /// The same, as if there were one queue only: for messages of which nobody knows what queue they go to.
    pub(crate) fn without_queues(self) -> Self {
        let mut streams = BTreeMap::<Stream, Arrivals>::new();
        for ((_, flow), theirs) in self.streams {
            let ours = streams.entry((0, flow)).or_default();
            ours.duplicated += theirs.duplicated + ours.numbers.add(&theirs.numbers);
            ours.disordered += theirs.disordered;
        }
        Seen { streams, unknown: self.unknown }
    }
}

/// Compares what all consumers have seen with how many messages each stream was sent. What the broker refused may be missing.
pub(crate) fn check(all: Vec<Seen>, expected: &BTreeMap<Stream, u64>, refused: &Refused) -> Verification {
    let unknown = all.iter().map(|seen| seen.unknown).sum();
    let mut verification = Verification { unknown, ..Verification::default() };
    let mut union = BTreeMap::<Stream, Numbers>::new();
    for (stream, arrivals) in all.into_iter().flat_map(|seen| seen.streams) {
        verification.disordered += arrivals.disordered;
        verification.duplicated += arrivals.duplicated + union.entry(stream).or_default().add(&arrivals.numbers);
    }
    for (stream, &count) in expected {
        let mut settled = union.remove(stream).unwrap_or_default();
        verification.unknown += settled.split_count(count).1;
        if let Some(refused) = refused.0.get(&stream.1) {
            settled.add(refused);
        }
        verification.lost += count - settled.split_count(count).0;
    }
    verification.unknown += union.values().map(|numbers| numbers.split_count(0).1).sum::<u64>();
    verification
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seen(sequences: impl IntoIterator<Item = u64>) -> Seen {
        let mut seen = Seen::default();
        for sequence in sequences {
            seen.handle_arrival((0, 5), sequence);
        }
        seen
    }

    fn verified(all: Vec<Seen>, count: u64) -> Verification {
        check(all, &BTreeMap::from([((0, 5), count)]), &Refused::default())
    }

    #[test]
    fn what_arrived_once_and_in_order_is_good() {
        assert!(verified(vec![seen(0..100_000)], 100_000).is_good());
        let (even, odd) = ((0..1000).step_by(2), (1..1000).step_by(2));
        assert!(verified(vec![seen(even), seen(odd)], 1000).is_good());
    }

    #[test]
    fn lost_doubled_and_disordered_messages_are_each_counted() {
        let lost = verified(vec![seen((0..100).filter(|n| n % 10 != 3))], 101);
        assert_eq!(lost, Verification { lost: 11, ..Verification::default() });
        let doubled = verified(vec![seen([0, 1, 1, 2, 0])], 3);
        assert_eq!(doubled, Verification { duplicated: 2, ..Verification::default() });
        let doubled_elsewhere = verified(vec![seen(0..70_000), seen(69_998..70_000)], 70_000);
        assert_eq!(doubled_elsewhere, Verification { duplicated: 2, ..Verification::default() });
        let disordered = verified(vec![seen([0, 2, 1, 4, 3])], 5);
        assert_eq!(disordered, Verification { disordered: 2, ..Verification::default() });
    }

    #[test]
    fn what_is_left_in_the_queues_is_lost_or_doubled() {
        let mut verification = Verification { lost: 2, ..Verification::default() };
        verification.handle_left(2);
        assert_eq!(verification, Verification { lost: 2, ..Verification::default() });
        verification.handle_left(3);
        assert_eq!(verification, Verification { lost: 2, duplicated: 1, ..Verification::default() });
    }

    #[test]
    fn what_was_never_published_is_counted_and_costs_no_memory_to_speak_of() {
        let unknown = verified(vec![seen([0, 1, 2, (1 << 40) - 1])], 2);
        assert_eq!(unknown, Verification { unknown: 2, ..Verification::default() });
        let mut other_queue = seen([0]);
        other_queue.handle_arrival((1, 5), 0);
        assert_eq!(verified(vec![other_queue], 1).unknown, 1);
        let mut shortened = seen([0]);
        shortened.handle_unknown();
        let shortened = verified(vec![shortened.without_queues()], 2);
        assert_eq!(shortened, Verification { lost: 1, unknown: 1, ..Verification::default() });
    }

    #[test]
    fn what_the_broker_refused_is_not_lost() {
        let expected = BTreeMap::from([((0, 5), 10)]);
        let mut refused = Refused::default();
        (7..9).for_each(|sequence| refused.insert(5, sequence));
        assert_eq!(check(vec![seen(0..7)], &expected, &refused).lost, 1);
        refused.insert(5, 9);
        assert!(check(vec![seen(0..7)], &expected, &refused).is_good());
        assert_eq!(refused.copies(&expected), 3);
    }

    #[test]
    fn what_was_refused_and_arrives_anyway_excuses_nothing_else() {
        let expected = BTreeMap::from([((0, 5), 10)]);
        let mut refused = Refused::default();
        refused.insert(5, 3);
        assert!(check(vec![seen(0..10)], &expected, &refused).is_good());
        assert_eq!(check(vec![seen(0..9)], &expected, &refused).lost, 1);
    }

    #[test]
    fn what_was_refused_may_be_missing_in_each_of_its_queues() {
        let expected = BTreeMap::from([((0, 5), 2), ((1, 5), 2), ((2, 6), 2)]);
        let mut both = Refused::default();
        let mut refused = Refused::default();
        refused.insert(5, 1);
        both.add(&refused);
        let mut seen = seen([0]);
        for stream in [(1, 5), (2, 6)] {
            seen.handle_arrival(stream, 0);
        }
        assert_eq!(check(vec![seen], &expected, &both).lost, 1);
        assert_eq!(both.copies(&expected), 2);
    }
}
