//! How often a message was given away and came back. RabbitMQ: quorum queues, delivery limit.
//!
//! Owns: counting, in queues of type quorum; the limit on failures, argument `x-delivery-limit`; the headers
//! `x-acquired-count` and `x-delivery-count`, which a delivery carries that is not the first.

use leveret_amqp::{FieldTable, Value};
use smallvec::smallvec;

use crate::change::{Change, DeathReason, Tries};
use crate::message::Message;
use crate::moment::Moment;
use crate::vhost::effects::Effects;
use crate::vhost::queue::{Position, QueueType};
use crate::vhost::{QueueId, VirtualHost};

/// Whether a message that comes back was dealt with in vain. RabbitMQ 4.3: what is rejected was, and what a client held
/// that is gone; what is nacked or recovered was not, nor what was held for too long.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Failure {
    Yes,
    No,
}

impl VirtualHost {
    /// An unacked message goes back to its place, unless it has failed too often.
    pub(super) fn give_back(
        &mut self,
        now: Moment,
        id: QueueId,
        position: Position,
        failure: Failure,
        effects: &mut Effects,
    ) {
        let Some(queue) = self.queues.get_mut(id) else { return };
        if queue.declared.arguments.queue_type == QueueType::Quorum {
            let Tries { acquired, failed } = queue.tries(position);
            let failed = failed.saturating_add(u32::from(failure == Failure::Yes));
            let tries = Tries { acquired: acquired.saturating_add(1), failed };
            if queue.settings.delivery_limit.is_some_and(|limit| u64::from(failed) > limit) {
                return self.discard_taken(now, id, position, DeathReason::DeliveryLimit, effects);
            }
            if queue.set_tries(position, tries) {
                let queue = queue.declared.number;
                self.change(Change::MessagesReturned { queue, messages: smallvec![(position, tries)] }, effects);
            }
        }
        if let Some(queue) = self.queues.get_mut(id) {
            queue.return_unacked(position);
            self.mark_runnable(id);
        }
    }
}

/// A message as it is given away once more: with the headers that say how often it was.
pub(super) fn with_tries(message: &Message, tries: Tries) -> Message {
    let Ok(header) = message.decode_header() else { return message.clone() };
    let headers = header.properties.headers.unwrap_or_default();
    let told = FieldTable::build(|table| {
        table.fields_of(headers, |name| {
            name != b"x-acquired-count" && (name != b"x-delivery-count" || tries.failed == 0)
        });
        table.field("x-acquired-count", Value::I64(tries.acquired.into()));
        if tries.failed > 0 {
            table.field("x-delivery-count", Value::I64(tries.failed.into()));
        }
    });
    message.rewritten(message.route_strings(), message.hidden_keys(), header, &told, message.history())
}
