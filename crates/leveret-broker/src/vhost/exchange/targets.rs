//! What several bindings lead to, each target once.

use std::collections::BTreeMap;
use std::ops::Bound;

use crate::vhost::exchange::Target;

/// Targets with the number of their bindings: two may differ in what means nothing to the exchange.
#[derive(Debug, Default)]
pub(crate) struct Targets(BTreeMap<Target, u32>);

impl Targets {
    /// Adds a binding to a target.
    pub(crate) fn insert(&mut self, target: Target) {
        *self.0.entry(target).or_default() += 1;
    }

    /// Takes one binding to a target away, if there is one.
    pub(crate) fn remove(&mut self, target: Target) {
        let Some(count) = self.0.get_mut(&target) else { return };
        *count -= 1;
        if *count == 0 {
            self.0.remove(&target);
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Those behind one of them, or all.
    pub(crate) fn after(&self, target: Option<Target>) -> impl Iterator<Item = Target> {
        let first = target.map_or(Bound::Unbounded, Bound::Excluded);
        self.0.range((first, Bound::Unbounded)).map(|(&target, _)| target)
    }
}
