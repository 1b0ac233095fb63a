//! What was due at different times and happens all at once, late: nobody can tell in which order.

use std::collections::{BTreeMap, VecDeque};

use leveret_broker::Output;

use super::{Model, Order, Snapshot, Told, Violation};
use crate::plan::Mode;

/// What clients were told.
type AllTold = Vec<(u8, Mode, Told)>;

impl Snapshot {
    /// Whether a start that finds this would look at its wall clock.
    pub(crate) fn has_kept_deadlines(&self) -> bool {
        let mut entries = self.queues.values().flat_map(|queue| &queue.entries);
        entries.any(|entry| entry.journaled && entry.deadline_ms.is_some()) || !self.delayed.is_empty()
    }
}

impl Model {
    /// Follows what the broker has said, where what was due has happened in this order.
    pub(crate) fn observe_in(
        &mut self,
        order: Order,
        now_ms: u64,
        outputs: &mut BTreeMap<u8, VecDeque<Output>>,
        trail: Option<&mut Vec<Snapshot>>,
    ) -> Result<AllTold, Violation> {
        (self.order, self.is_behind) = (order, true);
        let told = self.observe(now_ms, outputs, trail);
        (self.order, self.is_behind) = (Order::ByTime, false);
        told
    }

    /// The same where the order is not known: in the first that explains all the broker has said. What there was in between, in any
    /// order, is added to the trail. Nothing if the order makes a difference: nobody can tell then what there is.
    pub(crate) fn observe_late(
        &mut self,
        now_ms: u64,
        outputs: &BTreeMap<u8, VecDeque<Output>>,
        trail: &mut Vec<Snapshot>,
    ) -> Result<Option<AllTold>, Violation> {
        let all = Order::ALL.map(|order| {
            let (mut model, mut outputs) = (self.clone(), outputs.clone());
            (model.observe_in(order, now_ms, &mut outputs, Some(trail)), model)
        });
        let any_explains = all.iter().any(|(told, _)| told.is_ok());
        let mut found = all.into_iter().filter(|(told, _)| told.is_ok() == any_explains);
        let Some((told, model)) = found.next() else { return Ok(None) };
        if !found.all(|(_, other)| other.has_same_messages(&model)) {
            return Ok(None);
        }
        *self = model;
        told.map(Some)
    }
}
