//! Messages that wait in an exchange before it routes them. RabbitMQ: plugin `rabbitmq_delayed_message_exchange`, exchange type
//! `x-delayed-message`, header `x-delay`.
//!
//! Each such exchange has a *delay queue*, which nobody finds by a name. The search for the queues of a message ends there as
//! in any other queue, if the message has a delay; so a confirm, a transaction or a dead letter means the same as elsewhere.
//! The delay is its time to live in there. When that has passed, the message leaves as if it died, but through the exchange,
//! by the bindings of that moment; its delay is negative from then on, so that no exchange delays it again.
//!
//! A delay queue has a level for each order of magnitude of delays. So the messages of a page are due at about the same time,
//! and the page is gone then: a few long delays do not keep the pages of many short ones.

use std::num::NonZeroU32;
use std::time::Duration;

use leveret_amqp::{FieldTable, Table, Value};

use crate::change::{Change, JournalPosition, QueueNumber};
use crate::message::{History, Message};
use crate::moment::Moment;
use crate::names::{ExchangeName, QueueName};
use crate::vhost::dead_letter::deaths::spread_further;
use crate::vhost::effects::Effects;
use crate::vhost::queue::{Declared, Queue, QueueArguments, Standing};
use crate::vhost::{QueueId, VirtualHost};

/// The type of exchanges that delay messages, before they route them as another type does.
pub(crate) const DELAYED: &str = "x-delayed-message";

/// The argument that says which.
pub(crate) const DELAYED_TYPE: &str = "x-delayed-type";

/// The header of a message that says for how many milliseconds.
pub(crate) const DELAY: &str = "x-delay";

/// For how many milliseconds a message with these headers waits. RabbitMQ: from 1 to 2^32 - 1, as an integer of any type, a
/// real number, or a string of digits. Any other value means no delay, and so does none.
pub(crate) fn delay_ms(headers: Table<'_>) -> Option<NonZeroU32> {
    let ms = match headers.get(DELAY)? {
        Value::LongStr(text) => std::str::from_utf8(text).ok()?.parse().ok()?,
        Value::F32(real) => whole(real.into())?,
        Value::F64(real) => whole(real)?,
        value => value.as_integer()?,
    };
    u32::try_from(ms).ok().and_then(NonZeroU32::new)
}

/// A positive real number without its fraction.
fn whole(real: f64) -> Option<i64> {
    let whole = Duration::try_from_secs_f64(real.trunc()).ok()?;
    i64::try_from(whole.as_secs()).ok()
}

impl VirtualHost {
    /// An exchange gets its delay queue, unless it has it.
    pub(super) fn declare_delay_queue(
        &mut self,
        now: Moment,
        exchange: ExchangeName,
        durable: bool,
        effects: &mut Effects,
    ) {
        if self.exchanges.delay_queue(exchange.as_str()).is_some() {
            return;
        }
        self.last_queue_number += 1;
        let queue = QueueNumber(self.last_queue_number);
        let declared = Declared {
            name: QueueName::new(exchange.as_short_str()),
            number: queue,
            durable,
            auto_delete: false,
            standing: Standing::Delaying,
            owner: None,
            arguments: QueueArguments::default(),
            raw_arguments: FieldTable::default(),
        };
        self.apply_queue_declared(now, declared);
        if durable {
            self.change_topology(Change::DelayQueueDeclared { queue, exchange }, effects);
        }
    }

    /// An exchange is gone, and what waits in it. RabbitMQ: the messages wait on, and go through an exchange that has the
    /// name by then.
    pub(super) fn delete_delay_queue(&mut self, exchange: &ExchangeName, effects: &mut Effects) {
        let Some(id) = self.exchanges.delay_queue(exchange.as_str()) else { return };
        let declared = self.queues.get(id).map(|queue| &queue.declared);
        let durable = declared.filter(|declared| declared.durable).map(|declared| declared.number);
        self.apply_queue_deleted(id);
        if let Some(queue) = durable {
            self.change_topology(Change::QueueDeleted { queue }, effects);
        }
    }

    /// Whether messages wait in this queue until an exchange routes them.
    pub(super) fn is_delay_queue(&self, id: QueueId) -> bool {
        self.queues.get(id).is_some_and(Queue::is_delaying)
    }

    /// A message that has waited long enough in a delay queue goes through its exchange. It is still in that queue.
    pub(super) fn route_delayed(
        &mut self,
        now: Moment,
        id: QueueId,
        message: &Message,
        departure: JournalPosition,
        effects: &mut Effects,
    ) {
        let name = self.queues.get(id).map(|queue| queue.declared.name.as_str());
        let Some(exchange) = name.and_then(|name| self.exchanges.find(name)) else { return };
        let mut message = waited(message);
        let Ok(header) = message.decode_header() else { return };
        let expiration = header.properties.expiration.and_then(|digits| std::str::from_utf8(digits).ok());
        let expiration_ms = expiration.and_then(|digits| digits.parse().ok());
        let (mut route, keepers) = self.queues_behind(Some(exchange), &message.all_keys(&header), &message);
        if let History::Deaths { spread } = message.history() {
            message.set_spread(spread_further(spread, route.len()));
        }
        self.keep(&message, expiration_ms, &keepers);
        let full = self.take_full(&message, &mut route);
        if !full.is_empty() {
            self.pass_on(now, &full, &message, departure, effects);
        }
        self.place(now, message, expiration_ms, &route, departure, effects);
    }
}

/// The message as it goes on: what it says of its delay is negative. RabbitMQ does the same.
fn waited(message: &Message) -> Message {
    let Ok(header) = message.decode_header() else { return message.clone() };
    let headers = header.properties.headers.unwrap_or_default();
    let waited = -i64::from(delay_ms(headers).map_or(0, NonZeroU32::get));
    let told = FieldTable::build(|table| {
        table.fields_of(headers, |name| name != DELAY.as_bytes());
        table.field(DELAY, i32::try_from(waited).map_or(Value::I64(waited), Value::I32));
    });
    message.rewritten(message.route_strings(), message.hidden_keys(), header, &told, message.history())
}

#[cfg(test)]
mod tests;
