//! The bindings of a direct exchange: from a routing key to the targets bound by exactly that key.

use foldhash::fast::FixedState;
use hashbrown::HashMap;

use crate::vhost::exchange::Target;
use crate::vhost::exchange::targets::Targets;

/// The targets of each key.
#[derive(Debug)]
pub(crate) struct DirectIndex(HashMap<String, Targets, FixedState>);

impl DirectIndex {
    pub(crate) fn new(seed: u64) -> Self {
        DirectIndex(HashMap::with_hasher(FixedState::with_seed(seed)))
    }

    pub(crate) fn insert(&mut self, key: &str, target: Target) {
        self.0.entry_ref(key).or_default().insert(target);
    }

    pub(crate) fn remove(&mut self, key: &str, target: Target) {
        let Some(targets) = self.0.get_mut(key) else { return };
        targets.remove(target);
        if targets.is_empty() {
            self.0.remove(key);
        }
    }

    pub(crate) fn for_each_match(&self, key: &str, found: impl FnMut(Target)) {
        self.0.get(key).into_iter().flat_map(|targets| targets.after(None)).for_each(found);
    }
}
