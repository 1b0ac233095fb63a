//! Which bindings of a topic exchange a routing key matches.
//!
//! Owns: the trie over the words of the binding keys, with the targets at the nodes where keys end.
//! Must not know: what a target is, or the arguments of a binding.
//! Invariant: every node but the root leads to a target; removing the last one frees the branch.
//!
//! RabbitMQ: a key is split on '.'; the empty key has no words at all, `a..b` has an empty one in the middle. In a
//! binding key a word `*` stands for exactly one word and a word `#` for any number of them, none included.
//!
//! A routing key runs through the trie as through an automaton, and at all of its places at once: each node is reached
//! with the set of places at which the key has the words that lead there. A node has one parent, so it is looked at
//! once for a key, however many words that has and however many `#` there are on the way; only nodes whose keys fit take
//! part. From a node there are two ways to its literal children, by the words that the key has next and by the list of
//! its children. The search takes the shorter one, so the steps are at most twice the nodes. It can stop after any node.

mod places;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::fmt;
use std::hash::BuildHasher;
use std::mem;
use std::num::NonZeroU32;
use std::ops::Range;

use foldhash::quality::FixedState;
use hashbrown::HashTable;
use hashbrown::hash_table::Entry;
use leveret_planted::{Bug, planted};

use self::places::Places;
use crate::limits::STEPS_PER_LOOKUP;
use crate::memory::BLOCK_BYTES_LEAST;

/// The binding keys of one topic exchange, each with its targets.
pub(crate) struct TopicIndex<T> {
    /// Never empty: the root is first.
    nodes: Vec<Node<T>>,
    /// Nodes that hang nowhere, to be used again.
    free: Vec<NodeId>,
    /// Finds the children that are plain words, of all nodes: by parent and word. Never iterated.
    literals: HashTable<NodeId>,
    hasher: FixedState,
}

/// How far the search for one key has come. The room is kept so that the next one need not allocate. Any index can
/// use it.
#[derive(Debug, Default)]
pub(crate) struct TopicScratch {
    /// The distinct words of the routing key.
    words: Vec<Word>,
    /// By place in the key: the word that is next, as a number in `words`.
    word_at: Vec<usize>,
    /// Finds a word of the key by its text.
    by_text: HashTable<usize>,
    /// Nodes that were reached and not looked at yet, each with the places of the key that it was reached with.
    reached: Vec<(NodeId, Places)>,
}

/// A word of a routing key, which may stand there several times.
#[derive(Clone, Debug)]
struct Word {
    /// Where its text is in the key.
    text: Range<usize>,
    /// The places before it.
    places: Places,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
struct NodeId(NonZeroU32);

const ROOT: NodeId = NodeId(NonZeroU32::MIN);

struct Node<T> {
    parent: NodeId,
    edge: Edge,
    star: Option<NodeId>,
    hash: Option<NodeId>,
    /// The head of the list of the children that are plain words, and how long that is.
    first_literal: Option<NodeId>,
    literals_count: u32,
    /// The neighbours in that list of its parent.
    next: Option<NodeId>,
    previous: Option<NodeId>,
    /// With the number of bindings that have this key and target: they can differ in arguments.
    targets: BTreeMap<T, u32>,
}

/// The word between a node and its parent.
enum Edge {
    /// The root and the free nodes hang nowhere.
    None,
    Literal(Box<str>),
    Star,
    Hash,
}

fn words(key: &str) -> impl Iterator<Item = &str> {
    key.split('.').take(if key.is_empty() { 0 } else { usize::MAX })
}

impl<T: Copy + Ord> TopicIndex<T> {
    /// An index of no bindings. The seed decides where words are in the hash table, and nothing that can be seen.
    pub(crate) fn new(seed: u64) -> Self {
        TopicIndex {
            nodes: vec![Node::new(ROOT, Edge::None)],
            free: vec![],
            literals: HashTable::new(),
            hasher: FixedState::with_seed(seed),
        }
    }

    /// Whether there are no bindings.
    pub(crate) fn is_empty(&self) -> bool {
        self.nodes[0].is_unused()
    }

    /// What a binding takes in memory at most: a node and its text for each word. The lists may have room for as many again.
    pub(crate) fn bytes(binding_key: &str) -> usize {
        let node = 2 * (size_of::<Node<T>>() + size_of::<NodeId>()) + BLOCK_BYTES_LEAST;
        binding_key.len() + node * words(binding_key).count()
    }

    /// Adds a binding. One that is there already is counted.
    pub(crate) fn insert(&mut self, binding_key: &str, target: T) {
        let mut at = ROOT;
        for word in words(binding_key) {
            at = self.child(at, word).unwrap_or_else(|| self.add_child(at, word));
        }
        *self.node_mut(at).targets.entry(target).or_insert(0) += 1;
    }

    /// Takes one binding away, if there is one.
    pub(crate) fn remove(&mut self, binding_key: &str, target: T) {
        let mut at = ROOT;
        for word in words(binding_key) {
            let Some(child) = self.child(at, word) else { return };
            at = child;
        }
        let targets = &mut self.node_mut(at).targets;
        let Some(count) = targets.get_mut(&target) else { return };
        *count -= 1;
        if *count == 0 {
            targets.remove(&target);
            self.free_branch(at);
        }
    }

    /// Begins the search for a routing key. It is a short string.
    pub(crate) fn begin(&self, routing_key: &str, scratch: &mut TopicScratch) {
        let TopicScratch { words: distinct, word_at, by_text, reached } = scratch;
        distinct.clear();
        word_at.clear();
        by_text.clear();
        reached.clear();
        let mut from = 0;
        for (place, word) in words(routing_key).enumerate() {
            assert!(place + 1 < Places::COUNT_MAX, "a routing key is at most 255 bytes");
            let text = from..from + word.len();
            from = text.end + 1;
            let is_same = |&number: &usize| routing_key[distinct[number].text.clone()] == *word;
            let hash = self.hasher.hash_one(word);
            let rehash = |&number: &usize| self.hasher.hash_one(&routing_key[distinct[number].text.clone()]);
            match by_text.entry(hash, is_same, rehash) {
                Entry::Occupied(known) => {
                    let number = *known.get();
                    word_at.push(number);
                    distinct[number].places = distinct[number].places | Places::only(place);
                }
                Entry::Vacant(vacant) => {
                    vacant.insert(distinct.len());
                    word_at.push(distinct.len());
                    distinct.push(Word { text, places: Places::only(place) });
                }
            }
        }
        reached.push((ROOT, Places::only(0)));
    }

    /// Goes on with the search for the key it began with, and hands out the targets that the key matches, some perhaps
    /// more than once. Stops soon after `steps` are used up: false if something is left then.
    pub(crate) fn go_on(
        &self,
        routing_key: &str,
        scratch: &mut TopicScratch,
        steps: &mut usize,
        mut found: impl FnMut(T),
    ) -> bool {
        let TopicScratch { words, word_at, by_text, reached } = scratch;
        let end = word_at.len();
        let within = Places::up_to(end);
        while *steps > 0 {
            let Some((id, places)) = reached.pop() else { return true };
            *steps = steps.saturating_sub(STEPS_PER_LOOKUP);
            let node = self.node(id);
            if places.contains(end) {
                *steps = steps.saturating_sub(node.targets.len());
                node.targets.keys().copied().for_each(&mut found);
            }
            if let Some(child) = node.hash {
                let from = if planted(Bug::HashNeedsWord) { places.one_further() } else { places };
                reached.push((child, from.and_all_behind() & within));
            }
            // The words that follow: none does at the end.
            let mut places = places & !Places::only(end);
            if places.is_empty() {
                continue;
            }
            if let Some(child) = node.star {
                reached.push((child, places.one_further()));
            }
            if places.count() <= node.literals_count as usize {
                while let Some(place) = places.first() {
                    let word = &words[word_at[place]];
                    *steps = steps.saturating_sub(STEPS_PER_LOOKUP);
                    if let Some(child) = self.literal(id, &routing_key[word.text.clone()]) {
                        reached.push((child, (places & word.places).one_further()));
                    }
                    places = places & !word.places;
                }
                continue;
            }
            let mut next = node.first_literal;
            while let Some(child) = next {
                *steps = steps.saturating_sub(STEPS_PER_LOOKUP);
                next = self.node(child).next;
                let Edge::Literal(text) = &self.node(child).edge else { continue };
                let is_same = |&number: &usize| routing_key[words[number].text.clone()] == **text;
                let Some(&word) = by_text.find(self.hasher.hash_one(&**text), is_same) else { continue };
                let places = places & words[word].places;
                if !places.is_empty() {
                    reached.push((child, places.one_further()));
                }
            }
        }
        reached.is_empty()
    }

    fn node(&self, id: NodeId) -> &Node<T> {
        &self.nodes[id.index()]
    }

    fn node_mut(&mut self, id: NodeId) -> &mut Node<T> {
        &mut self.nodes[id.index()]
    }

    /// The child for a word of a binding key.
    fn child(&self, parent: NodeId, word: &str) -> Option<NodeId> {
        match word {
            "*" => self.node(parent).star,
            "#" => self.node(parent).hash,
            literal => self.literal(parent, literal),
        }
    }

    /// The child for a word that is meant literally, as all words of a routing key are.
    fn literal(&self, parent: NodeId, word: &str) -> Option<NodeId> {
        if self.node(parent).literals_count == 0 {
            return None;
        }
        let hash = self.hasher.hash_one((parent, word));
        self.literals.find(hash, |&id| self.node(id).hangs_under(parent, word)).copied()
    }

    fn add_child(&mut self, parent: NodeId, word: &str) -> NodeId {
        let edge = match word {
            "*" => Edge::Star,
            "#" => Edge::Hash,
            literal => Edge::Literal(literal.into()),
        };
        let node = Node::new(parent, edge);
        let id = if let Some(id) = self.free.pop() {
            *self.node_mut(id) = node;
            id
        } else {
            self.nodes.push(node);
            NodeId::last_of(self.nodes.len())
        };
        match word {
            "*" => self.node_mut(parent).star = Some(id),
            "#" => self.node_mut(parent).hash = Some(id),
            literal => {
                self.link(parent, id);
                let hash = self.hasher.hash_one((parent, literal));
                let TopicIndex { nodes, literals, hasher, .. } = self;
                literals.insert_unique(hash, id, |&id| nodes[id.index()].hash_with(hasher));
            }
        }
        id
    }

    /// Puts a node before the literal children of another.
    fn link(&mut self, parent: NodeId, child: NodeId) {
        let parent = self.node_mut(parent);
        parent.literals_count += 1;
        let next = parent.first_literal.replace(child);
        self.node_mut(child).next = next;
        if let Some(next) = next {
            self.node_mut(next).previous = Some(child);
        }
    }

    /// Takes out of the literal children of a node the one between these neighbours.
    fn unlink(&mut self, parent: NodeId, next: Option<NodeId>, previous: Option<NodeId>) {
        self.node_mut(parent).literals_count -= 1;
        match previous {
            Some(previous) => self.node_mut(previous).next = next,
            None => self.node_mut(parent).first_literal = next,
        }
        if let Some(next) = next {
            self.node_mut(next).previous = previous;
        }
    }

    /// Takes a node off the trie if it leads nowhere, and then its parent, and so on.
    fn free_branch(&mut self, leaf: NodeId) {
        let mut at = leaf;
        while at != ROOT && self.node(at).is_unused() {
            let hash = self.node(at).hash_with(&self.hasher);
            let Node { parent, edge, next, previous, .. } =
                mem::replace(self.node_mut(at), Node::new(ROOT, Edge::None));
            self.free.push(at);
            match edge {
                Edge::None => {}
                Edge::Star => self.node_mut(parent).star = None,
                Edge::Hash => self.node_mut(parent).hash = None,
                Edge::Literal(_) => {
                    self.unlink(parent, next, previous);
                    if let Ok(entry) = self.literals.find_entry(hash, |&id| id == at) {
                        entry.remove();
                    }
                }
            }
            at = parent;
        }
        if self.is_empty() {
            // An exchange that had many bindings once gives their memory back.
            self.nodes.truncate(1);
            self.nodes.shrink_to_fit();
            self.free = vec![];
            self.literals = HashTable::new();
        }
    }
}

impl<T: fmt::Debug> fmt::Debug for TopicIndex<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let targets = self.nodes.iter().flat_map(|node| node.targets.keys());
        f.debug_struct("TopicIndex").field("targets", &targets.collect::<Vec<_>>()).finish_non_exhaustive()
    }
}

impl NodeId {
    /// The last of so many nodes.
    fn last_of(nodes_count: usize) -> Self {
        let number = u32::try_from(nodes_count).ok().and_then(NonZeroU32::new);
        NodeId(number.expect("there is a node, and four billion of them do not fit into memory"))
    }

    fn index(self) -> usize {
        self.0.get() as usize - 1
    }
}

impl<T> Node<T> {
    fn new(parent: NodeId, edge: Edge) -> Self {
        Node {
            parent,
            edge,
            star: None,
            hash: None,
            first_literal: None,
            literals_count: 0,
            next: None,
            previous: None,
            targets: BTreeMap::new(),
        }
    }

    /// Whether no key ends here or goes on from here.
    fn is_unused(&self) -> bool {
        self.targets.is_empty() && self.literals_count == 0 && self.star.is_none() && self.hash.is_none()
    }

    fn hangs_under(&self, parent: NodeId, word: &str) -> bool {
        self.parent == parent && matches!(&self.edge, Edge::Literal(own) if **own == *word)
    }

    /// Where `literals` has it. Meaningless for a node that is not there.
    fn hash_with(&self, hasher: &FixedState) -> u64 {
        match &self.edge {
            Edge::Literal(word) => hasher.hash_one((self.parent, &**word)),
            Edge::None | Edge::Star | Edge::Hash => 0,
        }
    }
}
