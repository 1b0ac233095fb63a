//! Sets of places in a routing key, for a search that is at many of them at once.

use std::ops::{BitAnd, BitOr, Not};

const WORD_BITS: usize = u64::BITS as usize;

/// Places in a routing key: how many of its words lie behind. A key of 255 bytes has at most 256 words, so 257 places.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Places([u64; 5]);

impl Places {
    pub(super) const COUNT_MAX: usize = 5 * WORD_BITS;

    /// This place alone.
    pub(super) fn only(place: usize) -> Self {
        let mut only = Places::default();
        only.0[place / WORD_BITS] = 1 << (place % WORD_BITS);
        only
    }

    /// This place and all before it.
    pub(super) fn up_to(last: usize) -> Self {
        let before = !Places::only(last).and_all_behind();
        before | Places::only(last)
    }

    /// The first of these places and every one behind it.
    pub(super) fn and_all_behind(self) -> Self {
        let mut bits = self.0;
        if let Some(at) = bits.iter().position(|&bits| bits != 0) {
            // All from the lowest bit on.
            bits[at] |= bits[at].wrapping_neg();
            bits[at + 1..].fill(u64::MAX);
        }
        Places(bits)
    }

    /// Each of these places one word further on.
    pub(super) fn one_further(self) -> Self {
        let mut carry = 0;
        Places(self.0.map(|bits| {
            let moved = bits << 1 | carry;
            carry = bits >> (WORD_BITS - 1);
            moved
        }))
    }

    pub(super) fn contains(self, place: usize) -> bool {
        self.0[place / WORD_BITS] >> (place % WORD_BITS) & 1 == 1
    }

    pub(super) fn first(self) -> Option<usize> {
        let at = self.0.iter().position(|&bits| bits != 0)?;
        Some(at * WORD_BITS + self.0[at].trailing_zeros() as usize)
    }

    pub(super) fn is_empty(self) -> bool {
        self.0.iter().all(|&bits| bits == 0)
    }

    pub(super) fn count(self) -> usize {
        self.0.iter().map(|bits| bits.count_ones() as usize).sum()
    }
}

impl BitAnd for Places {
    type Output = Places;

    fn bitand(self, other: Places) -> Places {
        Places(std::array::from_fn(|at| self.0[at] & other.0[at]))
    }
}

impl BitOr for Places {
    type Output = Places;

    fn bitor(self, other: Places) -> Places {
        Places(std::array::from_fn(|at| self.0[at] | other.0[at]))
    }
}

impl Not for Places {
    type Output = Places;

    fn not(self) -> Places {
        Places(self.0.map(|bits| !bits))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    fn of(places: &BTreeSet<usize>) -> Places {
        places.iter().fold(Places::default(), |all, &place| all | Places::only(place))
    }

    fn listed(places: Places) -> Vec<usize> {
        (0..Places::COUNT_MAX).filter(|&place| places.contains(place)).collect()
    }

    proptest! {
        #[test]
        fn they_are_what_a_set_of_numbers_is(set in prop::collection::btree_set(0..Places::COUNT_MAX, 0..6)) {
            let places = of(&set);
            prop_assert_eq!(listed(places), set.iter().copied().collect::<Vec<_>>());
            prop_assert_eq!((places.first(), places.count()), (set.first().copied(), set.len()));
            prop_assert_eq!(places.is_empty(), set.is_empty());
            let further = set.iter().map(|place| place + 1).filter(|&place| place < Places::COUNT_MAX);
            prop_assert_eq!(listed(places.one_further()), further.collect::<Vec<_>>());
            let behind = set.first().map_or(0..0, |&first| first..Places::COUNT_MAX);
            prop_assert_eq!(listed(places.and_all_behind()), behind.collect::<Vec<_>>());
            if let Some(&last) = set.last() {
                prop_assert_eq!(listed(Places::up_to(last)), (0..=last).collect::<Vec<_>>());
            }
        }
    }
}
