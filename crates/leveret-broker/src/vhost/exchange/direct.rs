//! The bindings of a direct exchange: from a routing key to the targets bound by exactly that key.

use std::collections::BTreeMap;

use foldhash::fast::FixedState;
use hashbrown::HashMap;

use crate::vhost::exchange::Target;

/// Counts bindings by key and target: two may differ in their arguments only, which mean nothing here.
#[derive(Debug)]
pub(crate) struct DirectIndex(HashMap<String, BTreeMap<Target, u32>, FixedState>);

impl DirectIndex {
    pub(crate) fn new(seed: u64) -> Self {
        DirectIndex(HashMap::with_hasher(FixedState::with_seed(seed)))
    }

    pub(crate) fn insert(&mut self, key: &str, target: Target) {
        *self.0.entry_ref(key).or_default().entry(target).or_default() += 1;
    }

    pub(crate) fn remove(&mut self, key: &str, target: Target) {
        let Some(targets) = self.0.get_mut(key) else { return };
        if let Some(count) = targets.get_mut(&target) {
            *count -= 1;
            if *count == 0 {
                targets.remove(&target);
            }
        }
        if targets.is_empty() {
            self.0.remove(key);
        }
    }

    pub(crate) fn for_each_match(&self, key: &str, found: impl FnMut(Target)) {
        self.0.get(key).into_iter().flat_map(BTreeMap::keys).copied().for_each(found);
    }
}
