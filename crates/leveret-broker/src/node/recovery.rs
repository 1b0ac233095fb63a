//! Recovery: a node with its virtual hosts is the fold of the records of a journal.
//!
//! Owns: which virtual host a record belongs to, which of them are gone, what waits for a name that is lost, and what is set
//! aside.
//! Must not know: files, how records are kept.

use std::collections::{BTreeMap, BTreeSet};

use crate::change::{Change, DecodeChangeError, JournalPosition, NodeChange};
use crate::moment::Moment;
use crate::names::VhostName;
use crate::node::{Node, NodeError};
use crate::vhost::apply::ApplyError;
use crate::vhost::{Sweep, VirtualHost};

/// The stream of the journal that the changes of the node are in.
pub const NODE_STREAM: u32 = 0;

/// Folds the records of a journal.
pub struct Fold {
    /// The virtual host that a node has from the beginning, as long as nothing is known of it.
    first: Option<VhostName>,
    /// What each virtual host takes its random numbers from.
    seed: fn() -> [u8; 32],
    node: Node,
    vhosts: BTreeMap<u32, VirtualHost>,
    /// Permissions for virtual hosts that nothing was said of: their name may be lost.
    waiting: Vec<NodeChange>,
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
    #[error("no virtual host has this stream")]
    NoVhost,
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
            vhosts: BTreeMap::new(),
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

    /// What was wrong so far.
    pub fn faults(&self) -> &Faults {
        &self.faults
    }

    /// Takes a record. Those of one stream come in the order of their sequences. `look` is shown what happened to a virtual host.
    pub fn take(&mut self, now: Moment, stream: u32, sequence: u64, payload: &[u8], look: &mut dyn FnMut(&Change)) {
        self.records += 1;
        let result = if stream == NODE_STREAM {
            self.node_sequence = sequence;
            NodeChange::decode(payload).map_err(Fault::from).and_then(|change| self.take_of_node(sequence, change))
        } else if self.gone.contains(&stream) {
            // Its connections had not ended yet.
            Ok(())
        } else {
            let position = JournalPosition(sequence);
            let change = Change::decode(payload);
            if let Ok(change) = &change {
                look(change);
            }
            self.vhost(stream).and_then(|vhost| match change {
                Ok(change) => Ok(vhost.apply(now, position, change)?),
                Err(error) => {
                    vhost.skip(position);
                    Err(error.into())
                }
            })
        };
        self.node.skip_streams(stream);
        if let Err(fault) = result {
            self.set_aside(|| format!("stream {stream}, change {sequence}: {fault}"));
        }
    }

    /// Takes a change of the node that is to be journaled behind all others. Returns its sequence.
    ///
    /// # Errors
    /// If it does not fit to those before it: it changes nothing, and has no sequence.
    pub fn push(&mut self, change: NodeChange) -> Result<u64, NodeError> {
        let sequence = self.node_sequence + 1;
        self.take_change(change)?;
        self.stated_from.get_or_insert(sequence);
        self.node_sequence = sequence;
        Ok(sequence)
    }

    /// Lets go of bodies when there are more than so many bytes of them: the journal has them all.
    pub fn keep_below(&mut self, bytes: usize) {
        let held = |fold: &Self| fold.vhosts.values().map(|vhost| vhost.memory().bytes()).sum::<usize>();
        if held(self) <= self.mark.max(bytes) {
            return;
        }
        for vhost in self.vhosts.values_mut() {
            let (mut sweep, mut spills) = (Sweep::default(), Vec::new());
            while vhost.evict(&mut sweep, 0, |position, _| position.is_some(), &mut spills) {}
        }
        // What is left cannot be let go; it is not worth looking again before there is much more.
        self.mark = 2 * held(self);
    }

    /// All was read.
    pub fn end(&mut self) {
        for change in std::mem::take(&mut self.waiting) {
            if let NodeChange::PermissionsSet { vhost, .. } = change {
                self.set_aside(|| format!("permissions for '{vhost}', which does not exist"));
            }
        }
    }

    /// So many records are missing, at most; these were the last of each stream, perhaps among them. Their numbers are not given
    /// again.
    pub fn leave_gap(&mut self, missing: u64, streams: &BTreeMap<u32, u64>) {
        for (stream, vhost) in &mut self.vhosts {
            let last = streams.get(stream).copied().unwrap_or_default();
            vhost.leave_gap(JournalPosition(last), missing);
        }
        self.node_sequence = streams.get(&NODE_STREAM).copied().unwrap_or(self.node_sequence);
        let last_stream = self.node.next_stream() - 1;
        self.node.skip_streams(last_stream.saturating_add(u32::try_from(missing).unwrap_or_default()));
    }

    /// What it came to, if the journal has these streams.
    pub fn finish(self, streams: impl IntoIterator<Item = u32>) -> Folded {
        let living: BTreeSet<_> = self.node.vhosts().values().map(|vhost| vhost.stream).collect();
        // What is left of those that were deleted, and of which nothing was said any more.
        let gone = streams.into_iter().filter(|stream| *stream != NODE_STREAM && !living.contains(stream));
        let vhosts = self.vhosts.into_iter().filter(|(stream, _)| living.contains(stream));
        let vhosts = vhosts.map(|(stream, mut vhost)| {
            vhost.end_recovery();
            (stream, vhost)
        });
        Folded {
            node_sequence: self.node_sequence,
            stated_from: self.stated_from.unwrap_or_default(),
            vhosts: vhosts.collect(),
            gone: gone.collect(),
            node: self.node,
        }
    }

    fn set_aside(&mut self, fault: impl FnOnce() -> String) {
        self.faults.set_aside += 1;
        self.faults.first.get_or_insert_with(fault);
    }

    fn take_of_node(&mut self, sequence: u64, change: NodeChange) -> Result<(), Fault> {
        if matches!(change, NodeChange::Restated { .. }) {
            self.stated_from = Some(sequence);
            self.first = None;
        }
        self.stated_from.get_or_insert(sequence);
        Ok(self.take_change(change)?)
    }

    /// Takes in what is said of the node.
    fn take_change(&mut self, change: NodeChange) -> Result<(), NodeError> {
        let (added, deleted) = match &change {
            NodeChange::VhostAdded { stream, name } => (Some((*stream, name.clone())), None),
            NodeChange::VhostDeleted { name } => (None, self.node.vhosts().get(name).map(|vhost| vhost.stream)),
            _ => (None, None),
        };
        let permissions = matches!(change, NodeChange::PermissionsSet { .. }).then(|| change.clone());
        match (self.node.apply(change), permissions) {
            (Err(NodeError::NoSuchVhost(_)), Some(permissions)) => self.waiting.push(permissions),
            (applied, _) => applied?,
        }
        if let Some((stream, name)) = added {
            self.first.take_if(|first| *first == name);
            self.vhosts.entry(stream).or_insert_with(|| VirtualHost::new(name, (self.seed)()));
        }
        if let Some(stream) = deleted {
            self.gone.insert(stream);
            self.vhosts.remove(&stream);
        }
        Ok(())
    }

    /// The virtual host of a stream. If the record that named it is lost, its messages are not: it must be the one that a
    /// node has from the beginning.
    fn vhost(&mut self, stream: u32) -> Result<&mut VirtualHost, Fault> {
        if !self.vhosts.contains_key(&stream) {
            let name = self.first.clone().ok_or(Fault::NoVhost)?;
            self.faults.renamed = Some((stream, name.clone()));
            self.take_change(NodeChange::VhostAdded { stream, name })?;
            for change in std::mem::take(&mut self.waiting) {
                self.take_change(change)?;
            }
        }
        self.vhosts.get_mut(&stream).ok_or(Fault::NoVhost)
    }
}
