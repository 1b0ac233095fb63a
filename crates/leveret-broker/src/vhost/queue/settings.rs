//! What is in force for a queue: its arguments and the policies that match it, merged. RabbitMQ: `args_policy_lookup`.
//!
//! Worked out when a queue is declared or a policy changes, so that a message costs nothing more.

use std::time::Duration;

use leveret_amqp::ShortString;

use super::arguments::{QueueArguments, QueueType};
use crate::limits::DELIVERY_LIMIT_DEFAULT;
use crate::names::ExchangeName;

/// What arguments, or a policy, say of a queue: each key if it is there.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct QueueKeys {
    /// `message-ttl`
    pub(crate) message_ttl: Option<Duration>,
    /// `expires`
    pub(crate) expires: Option<Duration>,
    /// `max-length`: ready messages.
    pub(crate) max_length: Option<u64>,
    /// `max-length-bytes`: of the bodies of ready messages.
    pub(crate) max_length_bytes: Option<u64>,
    /// `overflow`
    pub(crate) overflow: Option<Overflow>,
    /// `dead-letter-exchange`
    pub(crate) dead_letter_exchange: Option<ExchangeName>,
    /// `dead-letter-routing-key`
    pub(crate) dead_letter_routing_key: Option<ShortString>,
    /// `dead-letter-strategy`
    pub(crate) dead_letter_strategy: Option<Strategy>,
    /// `delivery-limit`: how often a message may fail; a negative number is no limit.
    pub(crate) delivery_limit: Option<i64>,
    /// `consumer-timeout`
    pub(crate) consumer_timeout: Option<Duration>,
}

/// Where messages go that leave a queue without having been consumed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct DeadLetters {
    pub(crate) exchange: ExchangeName,
    /// Instead of the keys that a message was published with.
    pub(crate) routing_key: Option<ShortString>,
    pub(crate) strategy: Strategy,
}

/// What becomes of a dead letter that no queue takes. Key `dead-letter-strategy`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Strategy {
    /// It is gone.
    #[default]
    AtMostOnce,
    /// It stays in its queue, undelivered, until every queue that it goes to takes it. RabbitMQ: only where the queue
    /// rejects what is too much; where it drops the oldest, this would stand in the way.
    AtLeastOnce,
}

/// What happens to a queue that is longer than it may be. Key `overflow`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Overflow {
    /// The oldest messages leave it.
    #[default]
    DropHead,
    /// It takes no more, and the publisher is told by `basic.nack`.
    RejectPublish,
    /// The same, and what it does not take is dead-lettered.
    RejectPublishDlx,
}

/// What is in force for a queue.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct QueueSettings {
    pub(crate) message_ttl: Option<Duration>,
    pub(crate) expires: Option<Duration>,
    pub(crate) dead_letters: Option<DeadLetters>,
    pub(crate) max_length: Option<u64>,
    pub(crate) max_length_bytes: Option<u64>,
    pub(crate) overflow: Overflow,
    /// How often a message may fail; none is without end.
    pub(crate) delivery_limit: Option<u64>,
    pub(crate) consumer_timeout: Option<Duration>,
}

impl QueueSettings {
    /// Of a queue with these arguments that a policy matches, or policy and operator policy merged. RabbitMQ: the less of two
    /// numbers; else the argument, but for `overflow` of quorum queues, where it is the policy.
    pub(crate) fn new(arguments: &QueueArguments, policy: Option<&QueueKeys>) -> Self {
        let (none, queue_type) = (QueueKeys::default(), arguments.queue_type);
        let own = arguments.keys.as_deref().unwrap_or(&none);
        let policy = policy.unwrap_or(&none);
        let overflow = match queue_type {
            QueueType::Classic => own.overflow.or(policy.overflow),
            // RabbitMQ: quorum queues take this one for the default.
            QueueType::Quorum => {
                policy.overflow.or(own.overflow).filter(|&given| given != Overflow::RejectPublishDlx)
            }
        };
        let overflow = overflow.unwrap_or_default();
        let strategy = own.dead_letter_strategy.or(policy.dead_letter_strategy);
        let keeps_letters = queue_type == QueueType::Quorum && overflow == Overflow::RejectPublish;
        let exchange = own.dead_letter_exchange.as_ref().or(policy.dead_letter_exchange.as_ref());
        let routing_key = own.dead_letter_routing_key.as_ref().or(policy.dead_letter_routing_key.as_ref());
        let dead_letters = exchange.map(|exchange| DeadLetters {
            exchange: exchange.clone(),
            routing_key: routing_key.cloned(),
            strategy: strategy.filter(|_| keeps_letters).unwrap_or_default(),
        });
        let delivery_limit = match queue_type {
            QueueType::Classic => None,
            QueueType::Quorum => match least_limit(own.delivery_limit, policy.delivery_limit) {
                None => Some(DELIVERY_LIMIT_DEFAULT),
                Some(limit) => u64::try_from(limit).ok(),
            },
        };
        QueueSettings {
            message_ttl: least(own.message_ttl, policy.message_ttl),
            expires: least(own.expires, policy.expires),
            dead_letters,
            max_length: least(own.max_length, policy.max_length),
            max_length_bytes: least(own.max_length_bytes, policy.max_length_bytes),
            overflow,
            delivery_limit,
            consumer_timeout: least(own.consumer_timeout, policy.consumer_timeout),
        }
    }
}

fn least<T: Ord>(a: Option<T>, b: Option<T>) -> Option<T> {
    a.into_iter().chain(b).min()
}

/// The less of two delivery limits, of which a negative one is none.
pub(crate) fn least_limit(a: Option<i64>, b: Option<i64>) -> Option<i64> {
    // As if without a sign, what is negative is beyond all others.
    least(a.map(i64::cast_unsigned), b.map(i64::cast_unsigned)).map(u64::cast_signed)
}

#[cfg(test)]
mod tests {
    use leveret_amqp::ShortStr;

    use super::*;

    fn arguments(queue_type: QueueType, keys: QueueKeys) -> QueueArguments {
        let keys = Some(Box::new(keys));
        QueueArguments { queue_type, keys, ..QueueArguments::default() }
    }

    fn keys(number: u64, overflow: Overflow, word: &str) -> QueueKeys {
        let word = ShortString::from(ShortStr::truncated(word));
        QueueKeys {
            message_ttl: Some(Duration::from_millis(number)),
            expires: Some(Duration::from_millis(number)),
            max_length: Some(number),
            max_length_bytes: Some(number),
            overflow: Some(overflow),
            dead_letter_exchange: Some(ExchangeName::from(word.clone())),
            dead_letter_routing_key: Some(word),
            dead_letter_strategy: Some(Strategy::AtLeastOnce),
            delivery_limit: Some(number.cast_signed()),
            consumer_timeout: Some(Duration::from_millis(number)),
        }
    }

    #[test]
    fn of_two_numbers_the_less_is_in_force_and_of_names_the_argument() {
        for (own, policy) in [(5, 7), (7, 5)] {
            let own = arguments(QueueType::Classic, keys(own, Overflow::RejectPublish, "own"));
            let settings = QueueSettings::new(&own, Some(&keys(policy, Overflow::DropHead, "policy")));
            let least = Some(Duration::from_millis(5));
            assert_eq!((settings.message_ttl, settings.expires, settings.consumer_timeout), (least, least, least));
            assert_eq!((settings.max_length, settings.max_length_bytes), (Some(5), Some(5)));
            assert_eq!((settings.overflow, settings.delivery_limit), (Overflow::RejectPublish, None));
            let letters = settings.dead_letters.unwrap();
            assert_eq!((letters.exchange.as_str(), letters.strategy), ("own", Strategy::AtMostOnce));
        }
    }

    #[test]
    fn in_quorum_queues_the_policy_says_what_overflows() {
        let own = arguments(QueueType::Quorum, keys(5, Overflow::DropHead, "own"));
        let settings = QueueSettings::new(&own, Some(&keys(7, Overflow::RejectPublish, "policy")));
        assert_eq!(settings.overflow, Overflow::RejectPublish);
        assert_eq!(settings.dead_letters.unwrap().strategy, Strategy::AtLeastOnce);
        let settings = QueueSettings::new(&own, Some(&keys(7, Overflow::RejectPublishDlx, "policy")));
        assert_eq!(settings.overflow, Overflow::DropHead);
    }

    #[test]
    fn an_exchange_of_a_policy_goes_with_a_routing_key_of_an_argument_and_the_other_way_round() {
        let word = |word: &str| ShortString::from(ShortStr::truncated(word));
        let exchange = QueueKeys { dead_letter_exchange: Some(word("x").into()), ..QueueKeys::default() };
        let key = QueueKeys { dead_letter_routing_key: Some(word("k")), ..QueueKeys::default() };
        for (own, policy) in [(exchange.clone(), key.clone()), (key.clone(), exchange)] {
            let settings = QueueSettings::new(&arguments(QueueType::Classic, own), Some(&policy));
            let letters = settings.dead_letters.unwrap();
            assert_eq!((letters.exchange.as_str(), letters.routing_key), ("x", Some(word("k"))));
        }
        let settings = QueueSettings::new(&QueueArguments::default(), Some(&key));
        assert_eq!(settings.dead_letters, None);
    }

    #[test]
    fn a_negative_delivery_limit_is_the_greatest() {
        for (own, policy, limit) in [
            (None, None, Some(DELIVERY_LIMIT_DEFAULT)),
            (Some(3), None, Some(3)),
            (Some(-1), None, None),
            (Some(-1), Some(30), Some(30)),
            (Some(30), Some(-1), Some(30)),
            (Some(3), Some(2), Some(2)),
            (Some(-1), Some(-5), None),
        ] {
            let own = arguments(QueueType::Quorum, QueueKeys { delivery_limit: own, ..QueueKeys::default() });
            let policy = QueueKeys { delivery_limit: policy, ..QueueKeys::default() };
            assert_eq!(QueueSettings::new(&own, Some(&policy)).delivery_limit, limit, "{own:?} {policy:?}");
        }
    }
}
