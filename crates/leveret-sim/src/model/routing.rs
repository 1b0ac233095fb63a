//! Where messages go: exchanges, bindings, and what of a message they look at.

use std::collections::BTreeSet;

use super::{Message, Model, Route};
use crate::plan::{ExchangeName, KEYS, PATTERNS, To};

impl Model {
    pub(super) fn targets(&self, exchange: ExchangeName, message: &Message) -> BTreeSet<u8> {
        if !self.has_exchange(exchange) {
            return BTreeSet::new();
        }
        let bound = self.topology.bindings.iter().filter(|(bound, _, _)| *bound == exchange);
        let matching = bound.filter(|(_, _, key)| self.matches(exchange, *key, message.key));
        let targets: BTreeSet<u8> = matching.map(|(_, slot, _)| *slot).collect();
        if targets.is_empty() && exchange == ExchangeName::Direct && self.config.alternate {
            return self.targets(ExchangeName::Fanout, message);
        }
        targets
    }

    fn matches(&self, exchange: ExchangeName, binding: u8, key: u8) -> bool {
        let routing_key = KEYS[usize::from(key) % KEYS.len()];
        match exchange {
            ExchangeName::Fanout | ExchangeName::Dead => true,
            ExchangeName::Delayed if !self.config.delayed_direct => true,
            ExchangeName::Direct | ExchangeName::Delayed => KEYS[usize::from(binding)] == routing_key,
            ExchangeName::Topic => matches_topic(PATTERNS[usize::from(binding)], routing_key),
            ExchangeName::Headers => {
                let (any, [k, l]) = binding_headers(binding);
                let [has_k, has_l] = headers(key);
                if any { k == has_k || l == has_l } else { k == has_k && l == has_l }
            }
        }
    }

    pub(super) fn route(&self, to: To, message: &Message) -> Route {
        let slots: Vec<u8> = match to {
            To::Queue(slot) => vec![slot],
            To::Exchange(ExchangeName::Delayed) if message.delay_ms.is_some_and(|delay| delay > 0) => {
                return Route::Delayed { uid: self.topology.delayed_uid };
            }
            To::Exchange(exchange) => self.targets(exchange, message).into_iter().collect(),
            To::Nowhere => Vec::new(),
        };
        Route::Queues(slots.into_iter().filter_map(|slot| Some((slot, self.queues.get(&slot)?.uid))).collect())
    }
}

/// The values of the two headers of messages with this key.
pub(crate) fn headers(key: u8) -> [i32; 2] {
    [i32::from(key % 2), i32::from(key % 3)]
}

/// Whether any header is enough, and the values of both, for a binding with this key.
pub(crate) fn binding_headers(key: u8) -> (bool, [i32; 2]) {
    (key % 2 == 1, [i32::from(key / 2 % 2), i32::from(key / 4 % 3)])
}

/// The key of a binding, as far as it makes a difference.
pub(crate) fn binding_key(exchange: ExchangeName, key: u8) -> u8 {
    match exchange {
        ExchangeName::Topic => key % u8::try_from(PATTERNS.len()).unwrap_or(1),
        ExchangeName::Headers => key % 12,
        ExchangeName::Direct | ExchangeName::Fanout | ExchangeName::Delayed | ExchangeName::Dead => {
            key % u8::try_from(KEYS.len()).unwrap_or(1)
        }
    }
}

fn matches_topic(pattern: &str, key: &str) -> bool {
    fn matches(pattern: &[&str], key: &[&str]) -> bool {
        match (pattern.split_first(), key.split_first()) {
            (None, None) => true,
            (Some((&"#", rest)), _) => {
                matches(rest, key) || key.split_first().is_some_and(|(_, behind)| matches(pattern, behind))
            }
            (Some((&"*", rest)), Some((_, behind))) => matches(rest, behind),
            (Some((word, rest)), Some((first, behind))) => word == first && matches(rest, behind),
            (None, Some(_)) | (Some(_), None) => false,
        }
    }
    let pattern: Vec<_> = pattern.split('.').collect();
    let key: Vec<_> = if key.is_empty() { Vec::new() } else { key.split('.').collect() };
    matches(&pattern, &key)
}
