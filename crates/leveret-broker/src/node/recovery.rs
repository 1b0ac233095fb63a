//! Recovery: a node with its virtual hosts is the fold of the records of a journal.
//!
//! Owns: which virtual host a record belongs to, which of them are gone, what waits for a name that is lost, and what is set
//! aside.
//! Must not know: files, how records are kept.

use std::collections::{BTreeMap, BTreeSet};

use leveret_amqp::ShortStr;

use crate::change::{Change, DecodeChangeError, JournalPosition, NodeChange};
use crate::moment::Moment;
use crate::names::{UserName, VhostName};
use crate::node::{Node, NodeError, VhostMetadata};
use crate::vhost::apply::ApplyError;
use crate::vhost::{Sweep, VirtualHost};

/// The stream of the journal that the changes of the node are in.
pub const NODE_STREAM: u32 = 0;

/// Folds the records of a journal.
///
/// A start may read records of a virtual host before any that names it, if a checkpoint was not finished that said the node once
/// more. So each stream is folded for itself, and gets its name at the end.
pub struct Fold {
    /// The virtual host that a node has from the beginning, as long as nothing is known of it.
    first: Option<VhostName>,
    /// What each virtual host takes its random numbers from.
    seed: fn() -> [u8; 32],
    node: Node,
    streams: BTreeMap<u32, Stream>,
    /// What was said of the first virtual host while nothing is known of it, with sequences: its name may be lost.
    waiting: Vec<(u64, NodeChange)>,
    /// Streams of virtual hosts that were deleted.
    gone: BTreeSet<u32>,
    node_sequence: u64,
    /// Where the node was said once more as a whole, or else said first.
    stated_from: Option<u64>,
    records: u64,
    /// From so many bytes in memory on, bodies are let go.
    mark: usize,
    faults: Faults,
}

/// A virtual host that is read.
struct Stream {
    vhost: VirtualHost,
    records: u64,
    set_aside: u64,
    first_fault: Option<String>,
}

/// What a fold could make nothing of, or only by guessing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Faults {
    /// So many changes do not fit to those before them, and are as if they were not there.
    pub set_aside: u64,
    /// The first of them, for people.
    pub first: Option<String>,
    /// The name of the virtual host with this stream is lost; it is taken for this one.
    pub renamed: Option<(u32, VhostName)>,
}

/// A change that is set aside.
#[derive(Debug, thiserror::Error)]
enum Fault {
    #[error(transparent)]
    Malformed(#[from] DecodeChangeError),
    #[error(transparent)]
    Node(#[from] NodeError),
    #[error(transparent)]
    Vhost(#[from] ApplyError),
}

/// What a journal came to.
pub struct Folded {
    /// The node.
    pub node: Node,
    /// The last sequence in the stream of the node.
    pub node_sequence: u64,
    /// From this sequence on, the stream of the node says all that is true.
    pub stated_from: u64,
    /// Each virtual host with its stream.
    pub vhosts: Vec<(u32, VirtualHost)>,
    /// Streams of virtual hosts that are gone.
    pub gone: Vec<u32>,
}

impl Fold {
    /// Of no records. The virtual host that a new node begins with has this name; if it is known, messages are found again even
    /// if the record that named it is lost. Each virtual host gets a seed.
    pub fn new(first: Option<VhostName>, seed: fn() -> [u8; 32]) -> Self {
        Fold {
            first,
            seed,
            node: Node::default(),
            streams: BTreeMap::new(),
            waiting: Vec::new(),
            gone: BTreeSet::new(),
            node_sequence: 0,
            stated_from: None,
            records: 0,
            mark: 0,
            faults: Faults::default(),
        }
    }

    /// The node so far.
    pub fn node(&self) -> &Node {
        &self.node
    }

    /// Records that were taken.
    pub fn records(&self) -> u64 {
        self.records
    }

    /// Changes that were set aside so far, those of virtual hosts among them that may turn out to be gone.
    pub fn set_aside_count(&self) -> u64 {
        self.faults.set_aside + self.streams.values().map(|stream| stream.set_aside).sum::<u64>()
    }

    /// What was wrong so far with the node; behind [`Self::end`], with everything.
    pub fn faults(&self) -> &Faults {
        &self.faults
    }

    /// Takes a record. Those of one stream come in the order of their sequences. `look` is shown what happened to a virtual host.
    pub fn take(&mut self, now: Moment, stream: u32, sequence: u64, payload: &[u8], look: &mut dyn FnMut(&Change)) {
        self.records += 1;
        self.node.skip_streams(stream);
        if stream == NODE_STREAM {
            self.node_sequence = sequence;
            let change = NodeChange::decode(payload).map_err(Fault::from);
            let taken = change.and_then(|change| Ok(self.take_of_node(sequence, change)?));
            if let Err(fault) = taken {
                self.set_aside(1, || describe(stream, sequence, &fault));
            }
            return;
        }
        if self.gone.contains(&stream) {
            // Its connections had not ended yet.
            return;
        }
        let Stream { vhost, records, set_aside, first_fault } = self.stream(stream);
        *records += 1;
        let position = JournalPosition(sequence);
        let taken = match Change::decode(payload) {
            Ok(change) => {
                look(&change);
                vhost.apply(now, position, change).map_err(Fault::from)
            }
            Err(error) => {
                vhost.skip(position);
                Err(error.into())
            }
        };
        if let Err(fault) = taken {
            *set_aside += 1;
            first_fault.get_or_insert_with(|| describe(stream, sequence, &fault));
        }
    }

    /// Takes a change of the node that is to be journaled behind all others. Returns its sequence.
    ///
    /// # Errors
    /// If it does not fit to those before it: it changes nothing, and has no sequence.
    pub fn push(&mut self, change: NodeChange) -> Result<u64, NodeError> {
        let sequence = self.node_sequence + 1;
        self.take_change(sequence, change)?;
        self.stated_from.get_or_insert(sequence);
        self.node_sequence = sequence;
        Ok(sequence)
    }

    /// Lets go of bodies when there are more than so many bytes of them: the journal has them all.
    pub fn keep_below(&mut self, bytes: usize) {
        let held = |fold: &Self| fold.streams.values().map(|stream| stream.vhost.memory().bytes()).sum::<usize>();
        if held(self) <= self.mark.max(bytes) {
            return;
        }
        for Stream { vhost, .. } in self.streams.values_mut() {
            let (mut sweep, mut spills) = (Sweep::default(), Vec::new());
            while vhost.evict(&mut sweep, 0, |position, _| position.is_some(), &mut spills) {}
        }
        // What is left cannot be let go; it is not worth looking again before there is much more.
        self.mark = 2 * held(self);
    }

    /// All was read, but for so many records at most, which are missing; these were the last of each stream, perhaps among them.
    /// No number that one of them may have given is given again.
    pub fn end(&mut self, missing: u64, streams: &BTreeMap<u32, u64>) {
        let mut unnamed = self.unnamed();
        // If the record that named it is lost, its messages are not: it must be the one that a node has from the beginning.
        if let Some(name) = self.first.take() {
            match unnamed.pop_first() {
                Some(stream) => {
                    self.faults.renamed = Some((stream, name.clone()));
                    self.take_or_set_aside(0, NodeChange::VhostAdded { stream, name });
                    for (sequence, change) in std::mem::take(&mut self.waiting) {
                        self.take_or_set_aside(sequence, change);
                    }
                }
                None => self.set_waiting_aside(&name),
            }
        }
        let is_node_whole = missing == 0 && self.faults.set_aside == 0;
        for (number, Stream { records, set_aside, first_fault, .. }) in &self.streams {
            let (count, fault) = match unnamed.contains(number) {
                false => (*set_aside, first_fault.clone()),
                // What connections did that had not ended when it was deleted.
                true if is_node_whole => continue,
                true => (*records, Some(format!("stream {number}: no virtual host has it"))),
            };
            self.faults.set_aside += count;
            self.faults.first = self.faults.first.take().or(fault);
        }
        self.streams.retain(|stream, _| !unnamed.contains(stream));
        for last in streams.keys() {
            self.node.skip_streams(*last);
        }
        // The journal takes nothing that goes on from before that: an earlier start may have left a gap, and then written nothing.
        for (stream, Stream { vhost, .. }) in &mut self.streams {
            vhost.skip(JournalPosition(streams.get(stream).copied().unwrap_or_default()));
        }
        self.node_sequence = self.node_sequence.max(streams.get(&NODE_STREAM).copied().unwrap_or_default());
        if missing > 0 {
            self.leave_gap(missing, streams);
        }
    }

    fn leave_gap(&mut self, missing: u64, streams: &BTreeMap<u32, u64>) {
        for (stream, Stream { vhost, .. }) in &mut self.streams {
            let last = streams.get(stream).copied().unwrap_or_default();
            vhost.leave_gap(JournalPosition(last), missing);
        }
        let last_stream = self.node.next_stream() - 1;
        // No journal says that so many are missing; what is left is for the virtual hosts to come.
        self.node.skip_streams(last_stream.saturating_add(u32::try_from(missing).unwrap_or(u32::MAX / 2)));
    }

    /// What it came to, if the journal has these streams.
    pub fn finish(mut self, streams: impl IntoIterator<Item = u32>) -> Folded {
        let living: BTreeSet<_> = self.node.vhosts().values().map(|vhost| vhost.stream).collect();
        // What is left of those that were deleted, and of which nothing was said any more.
        let gone = streams.into_iter().filter(|stream| *stream != NODE_STREAM && !living.contains(stream));
        let vhosts = self.node.vhosts().iter().filter_map(|(name, vhost)| {
            let mut recovered = self.streams.remove(&vhost.stream)?.vhost;
            recovered.set_name(name.clone());
            recovered.end_recovery();
            Some((vhost.stream, recovered))
        });
        Folded {
            node_sequence: self.node_sequence,
            stated_from: self.stated_from.unwrap_or_default(),
            vhosts: vhosts.collect(),
            gone: gone.collect(),
            node: self.node,
        }
    }

    /// Streams of which no virtual host is known.
    fn unnamed(&self) -> BTreeSet<u32> {
        let named: BTreeSet<_> = self.node.vhosts().values().map(|vhost| vhost.stream).collect();
        self.streams.keys().copied().filter(|stream| !named.contains(stream)).collect()
    }

    fn stream(&mut self, number: u32) -> &mut Stream {
        let seed = self.seed;
        self.streams.entry(number).or_insert_with(|| {
            let vhost = VirtualHost::new(VhostName::new(ShortStr::EMPTY), seed());
            Stream { vhost, records: 0, set_aside: 0, first_fault: None }
        })
    }

    fn set_aside(&mut self, count: u64, fault: impl FnOnce() -> String) {
        self.faults.set_aside += count;
        self.faults.first.get_or_insert_with(fault);
    }

    fn set_waiting_aside(&mut self, name: &VhostName) {
        for (sequence, _) in std::mem::take(&mut self.waiting) {
            let fault = NodeError::NoSuchVhost(name.clone()).into();
            self.set_aside(1, || describe(NODE_STREAM, sequence, &fault));
        }
    }

    fn take_or_set_aside(&mut self, sequence: u64, change: NodeChange) {
        if let Err(fault) = self.take_change(sequence, change) {
            self.set_aside(1, || describe(NODE_STREAM, sequence, &fault.into()));
        }
    }

    fn take_of_node(&mut self, sequence: u64, change: NodeChange) -> Result<(), NodeError> {
        if matches!(change, NodeChange::Restated { .. }) {
            self.stated_from = Some(sequence);
            self.first = None;
            self.waiting.clear();
        }
        self.stated_from.get_or_insert(sequence);
        self.take_change(sequence, change)
    }

    /// Takes in what is said of the node.
    fn take_change(&mut self, sequence: u64, change: NodeChange) -> Result<(), NodeError> {
        match &change {
            NodeChange::VhostAdded { stream, name } => {
                if self.first.take_if(|first| first == name).is_some() {
                    // That was another one, of which nothing is left.
                    self.set_waiting_aside(name);
                }
                let known = self.node.vhosts().get(name).map(|vhost| vhost.stream);
                if known.is_some_and(|known| known < *stream) {
                    // That the one before was deleted is lost.
                    let (name, metadata) = (name.clone(), VhostMetadata::default());
                    self.node.apply(NodeChange::VhostDescribed { name: name.clone(), metadata })?;
                    self.take_change(sequence, NodeChange::VhostDeleted { name })?;
                }
                let stream = *stream;
                self.node.apply(change)?;
                self.stream(stream);
                return Ok(());
            }
            NodeChange::VhostDeleted { name } => {
                let stream = self.node.vhosts().get(name).map(|vhost| vhost.stream);
                if self.first.take_if(|first| first == name).is_some() {
                    self.waiting.clear();
                }
                self.node.apply(change)?;
                if let Some(stream) = stream {
                    self.gone.insert(stream);
                    self.streams.remove(&stream);
                }
                return Ok(());
            }
            NodeChange::UserDeleted { name } => self.waiting.retain(|(_, change)| permitted(change) != Some(name)),
            _ => {}
        }
        let waits = self.first.is_some().then(|| change.clone());
        match (self.node.apply(change), waits) {
            (Err(NodeError::NoSuchVhost(name)), Some(change)) if self.first.as_ref() == Some(&name) => {
                self.waiting.push((sequence, change));
                Ok(())
            }
            (applied, _) => applied,
        }
    }
}

/// Whose permissions a change is about.
fn permitted(change: &NodeChange) -> Option<&UserName> {
    match change {
        NodeChange::PermissionsSet { user, .. }
        | NodeChange::PermissionsCleared { user, .. }
        | NodeChange::TopicPermissionsSet { user, .. }
        | NodeChange::TopicPermissionsCleared { user, .. } => Some(user),
        _ => None,
    }
}

fn describe(stream: u32, sequence: u64, fault: &Fault) -> String {
    format!("stream {stream}, change {sequence}: {fault}")
}
