//! Which bindings of a topic exchange a routing key matches.
//!
//! Owns: the trie over the words of the binding keys, with the targets at the nodes where keys end.
//! Must not know: what a target is, or the arguments of a binding.
//! Invariant: every node but the root leads to a target; removing the last one frees the branch.
//!
//! RabbitMQ: a key is split on '.'; the empty key has no words at all, `a..b` has an empty one in the middle. In a
//! binding key a word `*` stands for exactly one word and a word `#` for any number of them, none included.
//!
//! A routing key runs through the trie as through an automaton: word by word, with the set of nodes that the words
//! so far can lead to. A node `#` can take every further word, so once in the set it stays there and what ends
//! in it has matched; it goes to the list `open` once per call. Every other node can only come from its parent
//! over one edge, so it is at most once in the set of a word. So a call does at most *nodes × words* steps, each
//! with one hash look-up, however many `#` there are; and only nodes whose keys fit the words so far take part.

use std::collections::BTreeMap;
use std::fmt;
use std::hash::BuildHasher;
use std::mem;

use foldhash::quality::FixedState;
use hashbrown::HashTable;

#[cfg(test)]
mod tests;

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

/// Room for one match, kept so that the next one need not allocate. Any index can use it.
pub(crate) struct TopicScratch<T> {
    /// Number of the call. Never the same twice, so that marks of earlier calls and other indexes mean nothing.
    call: u64,
    /// By node: the last call in which a node `#` was reached.
    reached_in: Vec<u64>,
    /// Where the words so far can end, nodes `#` aside.
    here: Vec<NodeId>,
    next: Vec<NodeId>,
    /// Nodes `#` that were reached and have children.
    open: Vec<NodeId>,
    found: Vec<T>,
    /// By word: the nodes that were looked at.
    #[cfg(test)]
    steps: Vec<Vec<NodeId>>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
struct NodeId(u32);

const ROOT: NodeId = NodeId(0);

struct Node<T> {
    parent: NodeId,
    edge: Edge,
    star: Option<NodeId>,
    hash: Option<NodeId>,
    literals_count: usize,
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

    /// Reports the targets that the routing key matches, each once, in ascending order. Returns the steps that this took.
    pub(crate) fn for_each_match(
        &self,
        routing_key: &str,
        scratch: &mut TopicScratch<T>,
        found: impl FnMut(T),
    ) -> usize {
        scratch.begin(self.nodes.len());
        let mut steps = 0;
        self.reach(ROOT, scratch);
        for word in words(routing_key) {
            mem::swap(&mut scratch.here, &mut scratch.next);
            scratch.next.clear();
            // A node `#` that this word leads to waits for the word after it.
            let open_before = scratch.open.len();
            #[cfg(test)]
            scratch.steps.push([&scratch.here[..], &scratch.open].concat());
            steps += scratch.here.len() + open_before;
            for step in 0..scratch.here.len() + open_before {
                let at = match step.checked_sub(scratch.here.len()) {
                    None => scratch.here[step],
                    Some(step) => scratch.open[step],
                };
                if let Some(child) = self.literal(at, word) {
                    self.reach(child, scratch);
                }
                if let Some(child) = self.node(at).star {
                    self.reach(child, scratch);
                }
            }
        }
        for &end in &scratch.next {
            scratch.found.extend(self.node(end).targets.keys());
        }
        // A target can be bound with several keys.
        scratch.found.sort_unstable();
        scratch.found.dedup();
        scratch.found.drain(..).for_each(found);
        steps
    }

    /// Puts a node into the set for the next word, with the nodes `#` behind it that take no word at all.
    fn reach(&self, id: NodeId, scratch: &mut TopicScratch<T>) {
        scratch.next.push(id);
        let mut behind = self.node(id).hash;
        while let Some(id) = behind {
            let reached_in = &mut scratch.reached_in[id.0 as usize];
            if mem::replace(reached_in, scratch.call) == scratch.call {
                return;
            }
            let node = self.node(id);
            // It can take all the words that follow, so these have matched.
            scratch.found.extend(node.targets.keys());
            if node.star.is_some() || node.literals_count > 0 {
                scratch.open.push(id);
            }
            behind = node.hash;
        }
    }

    fn node(&self, id: NodeId) -> &Node<T> {
        &self.nodes[id.0 as usize]
    }

    fn node_mut(&mut self, id: NodeId) -> &mut Node<T> {
        &mut self.nodes[id.0 as usize]
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
            let id = NodeId(u32::try_from(self.nodes.len()).expect("four billion nodes do not fit into memory"));
            self.nodes.push(node);
            id
        };
        match word {
            "*" => self.node_mut(parent).star = Some(id),
            "#" => self.node_mut(parent).hash = Some(id),
            literal => {
                self.node_mut(parent).literals_count += 1;
                let hash = self.hasher.hash_one((parent, literal));
                let TopicIndex { nodes, literals, hasher, .. } = self;
                literals.insert_unique(hash, id, |&id| nodes[id.0 as usize].hash_with(hasher));
            }
        }
        id
    }

    /// Takes a node off the trie if it leads nowhere, and then its parent, and so on.
    fn free_branch(&mut self, leaf: NodeId) {
        let mut at = leaf;
        while at != ROOT && self.node(at).is_unused() {
            let hash = self.node(at).hash_with(&self.hasher);
            let Node { parent, edge, .. } = mem::replace(self.node_mut(at), Node::new(ROOT, Edge::None));
            self.free.push(at);
            match edge {
                Edge::None => {}
                Edge::Star => self.node_mut(parent).star = None,
                Edge::Hash => self.node_mut(parent).hash = None,
                Edge::Literal(_) => {
                    self.node_mut(parent).literals_count -= 1;
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

impl<T> Node<T> {
    fn new(parent: NodeId, edge: Edge) -> Self {
        Node { parent, edge, star: None, hash: None, literals_count: 0, targets: BTreeMap::new() }
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

impl<T> TopicScratch<T> {
    fn begin(&mut self, nodes_count: usize) {
        self.call += 1;
        if self.reached_in.len() < nodes_count {
            self.reached_in.resize(nodes_count, 0);
        }
        self.here.clear();
        self.next.clear();
        self.open.clear();
        self.found.clear();
        #[cfg(test)]
        self.steps.clear();
    }
}

impl<T> Default for TopicScratch<T> {
    fn default() -> Self {
        TopicScratch {
            call: 0,
            reached_in: vec![],
            here: vec![],
            next: vec![],
            open: vec![],
            found: vec![],
            #[cfg(test)]
            steps: vec![],
        }
    }
}

impl<T> fmt::Debug for TopicScratch<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TopicScratch").finish_non_exhaustive()
    }
}
