//! The last messages of an exchange of type `x-recent-history`. RabbitMQ: recent history exchange.
//!
//! Owns: which messages they are, and that their memory is counted. They are gone after a restart.

use std::collections::VecDeque;

use leveret_amqp::{Table, Value};

use crate::memory::Meter;
use crate::message::Message;
use crate::vhost::exchange::headers::erlang_term;

/// Messages that it keeps if argument `x-recent-history-length` does not say.
pub(super) const LENGTH: usize = 20;

/// A message that is given to whoever is bound later.
#[derive(Clone, Debug)]
pub(crate) struct Kept {
    pub(crate) message: Message,
    pub(crate) expiration_ms: Option<u64>,
}

/// The last messages, the oldest first.
#[derive(Debug)]
pub(crate) struct RecentHistory {
    length: usize,
    messages: VecDeque<Kept>,
    meter: Meter,
}

impl RecentHistory {
    /// Of so many messages; what they take is added up in `meter`.
    pub(crate) fn new(length: usize, meter: Meter) -> Self {
        RecentHistory { length, messages: VecDeque::new(), meter }
    }

    /// How many messages the arguments of an exchange ask for, or RabbitMQ's words for what is wrong with them.
    pub(crate) fn length_of(arguments: Table<'_>) -> Result<usize, String> {
        const ARGUMENT: &str = "x-recent-history-length";
        let Some(value) = arguments.get(ARGUMENT) else { return Ok(LENGTH) };
        let number = match value {
            Value::I8(_) | Value::I16(_) | Value::I32(_) | Value::I64(_) => value.as_integer(),
            _ => None,
        };
        let length = number.and_then(|number| usize::try_from(number).ok()).filter(|&length| length > 0);
        length.ok_or_else(|| {
            format!("Invalid argument {}, '{ARGUMENT}' must be a positive integer", erlang_term(value))
        })
    }

    /// Whether the headers of a message allow that it is kept.
    pub(crate) fn may_keep(headers: Table<'_>) -> bool {
        headers.get("x-recent-history-no-store") != Some(Value::Bool(true))
    }

    /// Keeps a message, and forgets the oldest if there are too many.
    pub(crate) fn keep(&mut self, message: &Message, expiration_ms: Option<u64>) {
        if message.begin_hold() {
            self.meter.add(message.memory());
        }
        self.messages.push_back(Kept { message: message.clone(), expiration_ms });
        if self.messages.len() > self.length {
            self.forget_oldest();
        }
    }

    fn forget_oldest(&mut self) -> bool {
        let Some(Kept { message, .. }) = self.messages.pop_front() else { return false };
        if message.end_hold() {
            self.meter.subtract(message.memory());
        }
        true
    }

    /// All messages, the oldest first.
    pub(crate) fn messages(&self) -> Vec<Kept> {
        self.messages.iter().cloned().collect()
    }
}

impl Drop for RecentHistory {
    fn drop(&mut self) {
        while self.forget_oldest() {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vhost::fixtures::message;

    #[test]
    fn what_is_kept_counts_in_memory_once_and_until_it_is_forgotten() {
        let meter = Meter::default();
        let [mut two, mut one] = [2, 1].map(|length| RecentHistory::new(length, meter.clone()));
        let messages: Vec<_> = (0..3).map(|_| message()).collect();
        let each = messages[0].memory();
        for (message, kept) in messages.iter().zip([1, 2, 2]) {
            two.keep(message, None);
            assert_eq!((two.messages().len(), meter.bytes()), (kept, kept * each));
        }
        one.keep(&messages[2], Some(5));
        assert_eq!(meter.bytes(), 2 * each, "it is in memory already");
        drop(two);
        assert_eq!(meter.bytes(), each);
        drop(one);
        assert_eq!(meter.bytes(), 0);
    }
}
