//! Targets of which a message reaches one: picked by a hash, or by a number.
//!
//! Owns: the weight of each target, and its place among all hashes.
//! Must not know: what is hashed, or who draws the number.
//! Invariant: what is picked depends on the names and weights of the targets, and not on the order of the bindings.
//!
//! The targets are the leaves of a binary trie over the hashes of their names, without forks that have one side only. At
//! each fork, the hash of the message decides anew between the two sides, in the ratio of their weights. So each target gets
//! its exact share, weights may be as large as one likes, and nobody walks further than 64 forks. When a weight changes by a
//! part `p` of the whole, then at each fork on the way to it no more than `p / 2` of all hashes change sides, and all others
//! stay where they were.

use std::collections::BTreeMap;
use std::mem;

use crate::vhost::exchange::Target;

#[cfg(test)]
mod tests;

/// The targets of one exchange, each with its weight.
#[derive(Debug, Default)]
pub(crate) struct WeightedTargets {
    root: Node,
    /// A target may be gone, and its name with it, when it is taken away.
    known: BTreeMap<Target, Share>,
    weight: u64,
}

#[derive(Clone, Copy, Debug)]
struct Share {
    place: u64,
    weight: u64,
}

#[derive(Debug)]
enum Node {
    /// The targets at one place: one, but for two names with one hash, and none only where nothing is bound.
    Leaf {
        place: u64,
        weights: BTreeMap<Target, u64>,
    },
    Fork(Box<Fork>),
}

#[derive(Debug)]
struct Fork {
    /// Where the places on its sides begin to differ, counted from the highest bit.
    bit: u32,
    weights: [u64; 2],
    sides: [Node; 2],
}

impl WeightedTargets {
    /// Adds so much to the weight of a target. `place` is the hash of its name.
    pub(crate) fn insert(&mut self, target: Target, place: u64, weight: u32) {
        let weight = u64::from(weight);
        if weight == 0 {
            return;
        }
        let share = Share { place, weight };
        self.weight += weight;
        if self.known.is_empty() {
            self.root = Node::leaf(share, target);
        } else {
            let parting = self.root.parting(place);
            self.root.add(share, target, parting);
        }
        self.known.entry(target).or_insert(Share { place, weight: 0 }).weight += weight;
    }

    /// Takes so much from the weight of a target.
    pub(crate) fn remove(&mut self, target: Target, weight: u32) {
        let Some(share) = self.known.get_mut(&target) else { return };
        let taken = Share { weight: share.weight.min(weight.into()), ..*share };
        share.weight -= taken.weight;
        if share.weight == 0 {
            self.known.remove(&target);
        }
        self.weight -= taken.weight;
        self.root.take(taken, target);
    }

    /// The target of a hash. Each has as many hashes as its weight says.
    pub(crate) fn of_hash(&self, hash: u64) -> Option<Target> {
        let mut node = &self.root;
        loop {
            match node {
                Node::Fork(fork) => {
                    let [left, right] = fork.weights;
                    let drawn = scale(mixed(hash, fork.bit), left + right);
                    node = &fork.sides[usize::from(drawn >= left)];
                }
                Node::Leaf { .. } => {
                    let drawn = scale(mixed(hash, u64::BITS), node.weight());
                    return node.nth(drawn);
                }
            }
        }
    }

    /// The target of a number modulo the weight of all: each has as many in a row as its weight.
    pub(crate) fn of_number(&self, number: u64) -> Option<Target> {
        self.root.nth(number.checked_rem(self.weight)?)
    }
}

/// A number below `weight`, in proportion to one below two to the power of 64.
fn scale(number: u64, weight: u64) -> u64 {
    let scaled = (u128::from(number) * u128::from(weight)) >> u64::BITS;
    u64::try_from(scaled).expect("the product of two numbers of 64 bits, less 64 bits")
}

/// What a hash decides by at one fork, as if by another hash than at all others: a step of the generator `SplitMix64`.
fn mixed(hash: u64, step: u32) -> u64 {
    let mut bits = hash.wrapping_add(0x9E37_79B9_7F4A_7C15_u64.wrapping_mul(u64::from(step) + 1));
    bits = (bits ^ (bits >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    bits = (bits ^ (bits >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    bits ^ (bits >> 31)
}

fn side(place: u64, bit: u32) -> usize {
    usize::from(place << bit >> (u64::BITS - 1) == 1)
}

impl Default for Node {
    fn default() -> Self {
        Node::Leaf { place: 0, weights: BTreeMap::new() }
    }
}

impl Node {
    fn leaf(share: Share, target: Target) -> Self {
        Node::Leaf { place: share.place, weights: BTreeMap::from([(target, share.weight)]) }
    }

    fn weight(&self) -> u64 {
        match self {
            Node::Leaf { weights, .. } => weights.values().sum(),
            Node::Fork(fork) => fork.weights.iter().sum(),
        }
    }

    /// The first bit in which a place differs from all that are here; none if it is one of them.
    fn parting(&self, place: u64) -> Option<u32> {
        let mut node = self;
        loop {
            match node {
                Node::Fork(fork) => node = &fork.sides[side(place, fork.bit)],
                Node::Leaf { place: other, .. } => {
                    let bit = (place ^ other).leading_zeros();
                    return (bit < u64::BITS).then_some(bit);
                }
            }
        }
    }

    fn add(&mut self, share: Share, target: Target, parting: Option<u32>) {
        match (self, parting) {
            (Node::Fork(fork), _) if parting.is_none_or(|bit| fork.bit < bit) => {
                let side = side(share.place, fork.bit);
                fork.weights[side] += share.weight;
                fork.sides[side].add(share, target, parting);
            }
            (Node::Leaf { weights, .. }, None) => *weights.entry(target).or_default() += share.weight,
            (node, Some(bit)) => {
                let mut weights = [node.weight(), share.weight];
                let mut sides = [mem::take(node), Node::leaf(share, target)];
                if side(share.place, bit) == 0 {
                    weights.reverse();
                    sides.reverse();
                }
                *node = Node::Fork(Box::new(Fork { bit, weights, sides }));
            }
            (Node::Fork(_), None) => {}
        }
    }

    /// Takes weight from a target that has it; true if nothing is left here.
    fn take(&mut self, share: Share, target: Target) -> bool {
        match self {
            Node::Leaf { weights, .. } => {
                if let Some(weight) = weights.get_mut(&target) {
                    *weight -= share.weight;
                    if *weight == 0 {
                        weights.remove(&target);
                    }
                }
                weights.is_empty()
            }
            Node::Fork(fork) => {
                let side = side(share.place, fork.bit);
                fork.weights[side] -= share.weight;
                if fork.sides[side].take(share, target) {
                    *self = mem::take(&mut fork.sides[1 - side]);
                }
                false
            }
        }
    }

    /// The target of a number below its weight, if there is one.
    fn nth(&self, mut number: u64) -> Option<Target> {
        let mut node = self;
        loop {
            match node {
                Node::Fork(fork) => {
                    let goes_right = number >= fork.weights[0];
                    number -= if goes_right { fork.weights[0] } else { 0 };
                    node = &fork.sides[usize::from(goes_right)];
                }
                Node::Leaf { weights, .. } => {
                    return weights.iter().find_map(|(&target, &weight)| {
                        let is_here = number < weight;
                        number = number.saturating_sub(weight);
                        is_here.then_some(target)
                    });
                }
            }
        }
    }
}
