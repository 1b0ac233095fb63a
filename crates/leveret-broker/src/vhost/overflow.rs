//! Queues that may not be longer: what leaves them, and what they do not take. RabbitMQ: queue length limit, arguments
//! `x-max-length`, `x-max-length-bytes`, `x-overflow`.
//!
//! Only ready messages count. A queue whose consumers take a message at once is not too long for it.

use crate::change::DeathReason;
use crate::message::Message;
use crate::moment::Moment;
use crate::vhost::effects::Effects;
use crate::vhost::queue::{Overflow, Queue};
use crate::vhost::route::Route;
use crate::vhost::{QueueId, VirtualHost};

impl VirtualHost {
    /// Takes those queues out of a route that are full and take no more; which they are.
    pub(super) fn take_full(&self, message: &Message, route: &mut Route) -> Route {
        let is_full = |queue: &Queue| {
            queue.settings.overflow != Overflow::DropHead && queue.would_overflow(message.body().len())
        };
        let mut full = Route::new();
        // Hardly any queue is full, and this is asked for each message.
        if !route.iter().any(|&id| self.queues.get(id).is_some_and(is_full)) {
            return full;
        }
        route.retain(|&mut id| {
            let is_full = self.queues.get(id).is_some_and(is_full);
            if is_full {
                full.push(id);
            }
            !is_full
        });
        full
    }

    /// Whether what a queue does not take is dead-lettered from it.
    pub(super) fn dead_letters_overflow(&self, id: QueueId) -> bool {
        self.queues.get(id).is_some_and(|queue| queue.settings.overflow == Overflow::RejectPublishDlx)
    }

    /// Lets the oldest messages go as long as a queue is too long, unless somebody is about to take them.
    pub(super) fn drop_overflow(&mut self, now: Moment, id: QueueId, effects: &mut Effects) {
        while self.units > 0 {
            let Some(queue) = self.queues.get_mut(id) else { return };
            if !queue.overflows() || (queue.consumers.any_waiting() && queue.parked.is_none()) {
                return;
            }
            let Some(head) = queue.head() else { return };
            self.units -= 1;
            self.discard_ready(now, id, head, DeathReason::MaxLen, effects);
        }
    }
}
