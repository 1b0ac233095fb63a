//! Messages whose time to live has passed. RabbitMQ: time to live, argument `x-message-ttl`, property `expiration`.
//!
//! A message expires on time wherever it lies in its queue: each page of an index knows the first deadline in it, and is
//! looked through when that has come. An unacked message does not expire, but keeps its deadline.

use leveret_planted::{Bug, planted};

use crate::change::DeathReason;
use crate::limits::UNITS_PER_DUE_PAGE;
use crate::moment::Moment;
use crate::vhost::effects::Effects;
use crate::vhost::queue::Position;
use crate::vhost::{QueueId, VirtualHost};

impl VirtualHost {
    /// Lets all messages expire that are due, wherever they lie in the queue.
    pub(super) fn expire(&mut self, now: Moment, id: QueueId, effects: &mut Effects) {
        while self.units > 0
            && self.queues.get(id).is_some_and(|queue| !queue.dying().is_full())
            && self.expire_page(now, id, effects)
        {}
    }

    /// The same for those of one page; false if there was none.
    pub(super) fn expire_page(&mut self, now: Moment, id: QueueId, effects: &mut Effects) -> bool {
        let Some(due) = self.queues.get_mut(id).and_then(|queue| queue.take_due(now)) else { return false };
        self.units = self.units.saturating_sub(UNITS_PER_DUE_PAGE);
        for (_, position) in due {
            self.units = self.units.saturating_sub(1);
            self.discard_ready(now, id, position, DeathReason::Expired, effects);
        }
        true
    }

    /// Whether the head has to expire instead of being delivered, as its deadline has passed: at its deadline it may still
    /// be delivered, which is what a time to live of 0 is for.
    pub(super) fn is_late(&self, now: Moment, id: QueueId, head: Position) -> bool {
        let queue = self.queues.get(id).filter(|queue| queue.has_expiring());
        let deadline = queue.and_then(|queue| queue.known(head)).and_then(|known| known.expires);
        deadline.is_some_and(|deadline| now.monotonic > deadline.0 && !planted(Bug::LateHandedOut))
    }
}
