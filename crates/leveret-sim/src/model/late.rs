//! What was due at different times and happens all at once, late: nobody can tell in which order.
//!
//! Owns: which orders are tried, and what it means that several explain what the broker did, or none.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::rc::Rc;

use leveret_broker::Output;

use super::{Delayed, Message, Model, Order, Snapshot, Told, View, Violation};
use crate::plan::{Dead, ExchangeName, Mode};

/// What clients were told.
pub(crate) type AllTold = Vec<(u8, Mode, Told)>;

/// What is known of what happened late.
pub(crate) enum Late {
    Told(AllTold),
    /// The order makes a difference: nobody can tell what there is.
    Unclear,
    /// So it does, and none of those that are tried explains what the broker has done.
    Unexplained,
}

impl Snapshot {
    /// Whether a start that finds this would look at its wall clock.
    pub(crate) fn has_kept_deadlines(&self, durable_exchanges: bool) -> bool {
        let mut entries = self.queues.values().flat_map(|queue| &queue.entries);
        entries.any(|entry| entry.journaled && entry.deadline_ms.is_some())
            || (durable_exchanges && self.delayed.iter().any(|delayed| delayed.message.persistent))
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
        self.order = order;
        let told = self.observe(now_ms, outputs, trail);
        (self.order, self.is_behind) = (Order::ByTime, false);
        told
    }

    /// Delayed messages that are late, for queues that have others that expire as late and no room for all of them: which they refuse
    /// depends on how these take turns.
    pub(crate) fn perhaps_refused(&self, now_ms: u64) -> Vec<(u8, Vec<Rc<Message>>)> {
        let mut coming: BTreeMap<u8, Vec<Rc<Message>>> = BTreeMap::new();
        for Delayed { message, .. } in self.delayed.iter().filter(|delayed| delayed.due_ms <= now_ms) {
            for slot in self.targets(ExchangeName::Delayed, message) {
                coming.entry(slot).or_default().push(Rc::clone(message));
            }
        }
        coming.retain(|slot, messages| {
            let Some(queue) = self.queues.get(slot) else { return false };
            let bytes = messages.iter().map(|message| message.bytes).sum();
            queue.ready().any(|entry| entry.deadline_ms.is_some_and(|due| due <= now_ms))
                && self.refuses(*slot, messages.len(), bytes)
        });
        coming.into_iter().collect()
    }

    /// Whether a queue has taken some of these and not all: which ones, nobody can tell.
    pub(crate) fn has_some_of(&self, perhaps_refused: &[(u8, Vec<Rc<Message>>)]) -> bool {
        perhaps_refused.iter().any(|(slot, messages)| {
            let is_there = |message: &&Rc<Message>| {
                let queue = self.queues.get(slot);
                queue.is_some_and(|queue| queue.entries.iter().any(|entry| entry.message.id == message.id))
            };
            let taken = messages.iter().filter(is_there).count();
            0 < taken && taken < messages.len()
        })
    }

    /// Whether all queues are as the broker says of them, but for those that have perhaps refused something, and those that their dead
    /// letters reach.
    pub(crate) fn differs_at_most_behind(
        &self,
        perhaps_refused: &[(u8, Vec<Rc<Message>>)],
        views: &BTreeMap<u8, View>,
    ) -> bool {
        let mut unclear: BTreeSet<u8> = perhaps_refused.iter().map(|(slot, _)| *slot).collect();
        let mut waiting: Vec<u8> = unclear.iter().copied().collect();
        while let Some(slot) = waiting.pop() {
            let all = self.queues.keys().copied();
            let behind: Vec<u8> = match self.spec(slot).dead {
                None => Vec::new(),
                Some(Dead::Queue(target)) => vec![target],
                Some(Dead::Exchange) => all.filter(|slot| Model::is_dead(*slot)).collect(),
            };
            waiting.extend(behind.into_iter().filter(|slot| unclear.insert(*slot)));
        }
        let clear = |views: &BTreeMap<u8, View>| {
            views.iter().filter(|(slot, _)| !unclear.contains(slot)).map(|(slot, view)| (*slot, *view)).collect()
        };
        let (own, of_broker): (Vec<_>, Vec<_>) = (clear(&self.views()), clear(views));
        own == of_broker
    }

    /// The same where the order is not known: in the first that explains all the broker has said, and what it has in its queues. What
    /// there was in between, in any order that does, is added to the trail.
    pub(crate) fn observe_late(
        &mut self,
        now_ms: u64,
        outputs: &BTreeMap<u8, VecDeque<Output>>,
        trail: &mut Vec<Snapshot>,
        views: &BTreeMap<u8, View>,
    ) -> Result<Late, Violation> {
        let mut all = Vec::new();
        for order in Order::ALL {
            let (mut model, mut outputs, mut passed) = (self.clone(), outputs.clone(), Vec::new());
            let told = model.observe_in(order, now_ms, &mut outputs, Some(&mut passed));
            let told = told.and_then(|told| model.compare(views).map(|()| told));
            if told.is_ok() {
                trail.append(&mut passed);
            }
            all.push((told, model));
        }
        let makes_no_difference = all.iter().all(|(_, model)| model.has_same_messages(&all[0].1));
        let Some(found) = all.iter().position(|(told, _)| told.is_ok()) else {
            // It may be an order that is none of these, if there is any.
            let (told, _) = all.swap_remove(0);
            return if makes_no_difference { told.map(Late::Told) } else { Ok(Late::Unexplained) };
        };
        let (told, model) = all.swap_remove(found);
        *self = model;
        Ok(if makes_no_difference { Late::Told(told?) } else { Late::Unclear })
    }
}
