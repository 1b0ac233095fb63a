//! Policies: what an administrator says of all queues and exchanges whose names match a pattern. RabbitMQ: policies and
//! operator policies.
//!
//! Owns: which policies there are, what each of them means, which ones match a name.
//! Must not know: JSON, who may set them, messages.
//!
//! At most one policy and one operator policy matches a queue or exchange: the one with the highest priority and, of several
//! such, the one whose name comes first in the order of its bytes. RabbitMQ leaves that open.

mod definition;
mod sweep;

use std::cmp::Reverse;
use std::collections::BTreeMap;

use leveret_amqp::FieldTable;
use triomphe::Arc;

pub(crate) use self::definition::Definition;
pub(super) use self::sweep::PolicySweep;
use crate::Shortened;
use crate::limits::POLICIES_MAX;
use crate::names::PolicyName;
use crate::pattern::{Pattern, PatternError};
use crate::vhost::queue::QueueType;

/// Whose policy it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum PolicyKind {
    /// Of the users of a virtual host.
    Policy,
    /// Of those who run the broker: it sets limits to what policies say.
    OperatorPolicy,
}

/// What a policy is for. Field `apply-to`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ApplyTo {
    /// All queues and exchanges.
    #[default]
    All,
    /// Exchanges only.
    Exchanges,
    /// Queues of all types.
    Queues,
    /// Queues of type classic.
    ClassicQueues,
    /// Queues of type quorum.
    QuorumQueues,
    /// Streams, of which there are none.
    Streams,
}

impl ApplyTo {
    const ALL: [ApplyTo; 6] = [
        ApplyTo::All,
        ApplyTo::Exchanges,
        ApplyTo::Queues,
        ApplyTo::ClassicQueues,
        ApplyTo::QuorumQueues,
        ApplyTo::Streams,
    ];

    /// Takes it as administrators write it.
    pub fn parse(text: &str) -> Result<Self, InvalidPolicy> {
        let known = ApplyTo::ALL.into_iter().find(|known| known.as_str() == text);
        known.ok_or_else(|| InvalidPolicy::ApplyTo(text.to_owned()))
    }

    /// As administrators write it.
    pub fn as_str(self) -> &'static str {
        match self {
            ApplyTo::All => "all",
            ApplyTo::Exchanges => "exchanges",
            ApplyTo::Queues => "queues",
            ApplyTo::ClassicQueues => "classic_queues",
            ApplyTo::QuorumQueues => "quorum_queues",
            ApplyTo::Streams => "streams",
        }
    }

    fn has_queues_of(self, queue_type: QueueType) -> bool {
        match self {
            ApplyTo::All | ApplyTo::Queues => true,
            ApplyTo::ClassicQueues => queue_type == QueueType::Classic,
            ApplyTo::QuorumQueues => queue_type == QueueType::Quorum,
            ApplyTo::Exchanges | ApplyTo::Streams => false,
        }
    }

    fn has_exchanges(self) -> bool {
        matches!(self, ApplyTo::All | ApplyTo::Exchanges)
    }
}

/// A policy as an administrator gives it: what is stored, and what an export gives back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PolicySource {
    /// Policy or operator policy.
    pub kind: PolicyKind,
    /// Unique among those of its kind.
    pub name: PolicyName,
    /// Searched for in the names of queues and exchanges.
    pub pattern: String,
    /// Of what.
    pub apply_to: ApplyTo,
    /// The greatest one counts.
    pub priority: i64,
    /// The settings, as arguments of a declaration would have them, but without `x-` before their names.
    pub definition: FieldTable,
}

/// Why there cannot be such a policy, worded as RabbitMQ words it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidPolicy {
    /// Its definition says nothing.
    #[error("no policy provided")]
    Empty,
    /// A value of the wrong type or out of range.
    #[error("{} is not a valid {meaning}", Shortened(value))]
    Value {
        /// The value, as Erlang writes it.
        value: String,
        /// What it should have been.
        meaning: &'static str,
    },
    /// Keys that nobody knows, or that operator policies do not have, with their values.
    #[error("{0} are not recognised policy settings")]
    Unrecognised(String),
    /// A key that is there twice.
    #[error("[<<\"{0}\">>] duplicate keys not allowed")]
    Duplicate(String),
    /// A key of RabbitMQ for something that Leveret does not have.
    #[error("'{key}' is not supported: Leveret has no {subject}")]
    Absent {
        /// The key.
        key: &'static str,
        /// What it is about.
        subject: &'static str,
    },
    /// Its pattern is none.
    #[error("pattern should be regular expression but is invalid: {0}")]
    Pattern(#[from] PatternError),
    /// Nobody knows what it is for.
    #[error(
        "apply-to '{}' unrecognised; should be one of: 'queues', 'classic_queues', 'quorum_queues', 'streams', 'exchanges', or \
         'all'",
        Shortened(.0)
    )]
    ApplyTo(String),
    /// There are [`POLICIES_MAX`] of its kind.
    #[error("a virtual host has at most {POLICIES_MAX} policies and as many operator policies")]
    TooMany,
}

/// A policy, checked.
#[derive(Clone, Debug)]
pub struct Policy {
    source: PolicySource,
    pattern: Pattern,
    definition: Definition,
}

impl Policy {
    /// Checks what an administrator gives.
    pub fn new(source: PolicySource) -> Result<Self, InvalidPolicy> {
        // A pattern takes most, and is compiled once, though a definition may be tried without this and without that.
        let definition = Definition::parse(source.kind, source.definition.as_table())?;
        let pattern = Pattern::parse(&source.pattern)?;
        Ok(Policy { source, pattern, definition })
    }

    /// As it was given.
    pub fn source(&self) -> &PolicySource {
        &self.source
    }

    /// RabbitMQ: one with a key that queues of this type do not have is none for them, whatever else it says.
    fn matches_queue(&self, name: &str, queue_type: QueueType) -> bool {
        self.source.apply_to.has_queues_of(queue_type)
            && self.definition.is_for(queue_type)
            && self.pattern.matches(name)
    }

    fn matches_exchange(&self, name: &str) -> bool {
        self.source.apply_to.has_exchanges() && self.pattern.matches(name)
    }
}

/// The policies in force for a queue or exchange.
#[derive(Clone, Debug, Default)]
pub struct Matching {
    policy: Option<Arc<Policy>>,
    operator_policy: Option<Arc<Policy>>,
}

impl Matching {
    /// The policy.
    pub fn policy(&self) -> Option<&Policy> {
        self.policy.as_deref()
    }

    /// The operator policy.
    pub fn operator_policy(&self) -> Option<&Policy> {
        self.operator_policy.as_deref()
    }

    /// What both come to, by the names of the keys. RabbitMQ: `effective_policy_definition`.
    pub fn effective_definition(&self) -> FieldTable {
        let definition = |policy: Option<&Policy>| policy.map(|policy| policy.source.definition.clone());
        match (definition(self.policy()), definition(self.operator_policy())) {
            (Some(policy), Some(operator)) => definition::merged(policy.as_table(), operator.as_table()),
            (one, other) => one.or(other).unwrap_or_default(),
        }
    }

    /// The same, as it is understood.
    fn definition(&self) -> Definition {
        match (self.policy(), self.operator_policy()) {
            (None, None) => Definition::default(),
            (Some(one), None) | (None, Some(one)) => one.definition.clone(),
            // What two have that were checked is right, too.
            (Some(_), Some(_)) => {
                Definition::parse(PolicyKind::Policy, self.effective_definition().as_table()).unwrap_or_default()
            }
        }
    }

    fn is(&self, other: &Matching) -> bool {
        let is_same = |a: &Option<Arc<Policy>>, b: &Option<Arc<Policy>>| match (a, b) {
            (Some(a), Some(b)) => Arc::ptr_eq(a, b),
            (None, None) => true,
            (Some(_), None) | (None, Some(_)) => false,
        };
        is_same(&self.policy, &other.policy) && is_same(&self.operator_policy, &other.operator_policy)
    }
}

/// All policies of a virtual host.
#[derive(Debug, Default)]
pub(crate) struct Policies {
    policies: Ranked,
    operator_policies: Ranked,
}

/// Those of one kind.
#[derive(Debug, Default)]
struct Ranked {
    by_name: BTreeMap<PolicyName, Arc<Policy>>,
    /// The one that comes first is in force.
    by_rank: Vec<Arc<Policy>>,
}

impl Ranked {
    fn rank_anew(&mut self) {
        self.by_rank = self.by_name.values().cloned().collect();
        // Those of one priority stay in the order of their names.
        self.by_rank.sort_by_key(|policy| Reverse(policy.source.priority));
    }

    fn first(&self, is_meant: impl Fn(&Policy) -> bool) -> Option<Arc<Policy>> {
        self.by_rank.iter().find(|policy| is_meant(policy)).cloned()
    }
}

impl Policies {
    fn of(&self, kind: PolicyKind) -> &Ranked {
        match kind {
            PolicyKind::Policy => &self.policies,
            PolicyKind::OperatorPolicy => &self.operator_policies,
        }
    }

    fn of_mut(&mut self, kind: PolicyKind) -> &mut Ranked {
        match kind {
            PolicyKind::Policy => &mut self.policies,
            PolicyKind::OperatorPolicy => &mut self.operator_policies,
        }
    }

    fn get(&self, kind: PolicyKind, name: &str) -> Option<&Policy> {
        self.of(kind).by_name.get(name).map(|policy| &**policy)
    }

    /// The first of a kind behind a name, or the first of all.
    pub(crate) fn next(&self, kind: PolicyKind, after: Option<&PolicyName>) -> Option<&Policy> {
        use std::ops::Bound::{Excluded, Unbounded};
        let from = after.map_or(Unbounded, Excluded);
        self.of(kind).by_name.range::<PolicyName, _>((from, Unbounded)).next().map(|(_, policy)| &**policy)
    }

    fn iter(&self, kind: PolicyKind) -> impl Iterator<Item = &Policy> {
        self.of(kind).by_name.values().map(|policy| &**policy)
    }

    /// How many patterns a name is matched with.
    fn len(&self) -> usize {
        self.policies.by_rank.len() + self.operator_policies.by_rank.len()
    }

    /// Puts one in the place of the one with its name, if there is one.
    pub(crate) fn set(&mut self, policy: Policy) {
        let ranked = self.of_mut(policy.source.kind);
        ranked.by_name.insert(policy.source.name.clone(), Arc::new(policy));
        ranked.rank_anew();
    }

    /// Takes one away; false if there is none.
    pub(crate) fn clear(&mut self, kind: PolicyKind, name: &str) -> bool {
        let ranked = self.of_mut(kind);
        let is_cleared = ranked.by_name.remove(name).is_some();
        ranked.rank_anew();
        is_cleared
    }

    fn of_queue(&self, name: &str, queue_type: QueueType) -> Matching {
        let first = |ranked: &Ranked| ranked.first(|policy| policy.matches_queue(name, queue_type));
        Matching { policy: first(&self.policies), operator_policy: first(&self.operator_policies) }
    }

    fn of_exchange(&self, name: &str) -> Matching {
        let first = |ranked: &Ranked| ranked.first(|policy| policy.matches_exchange(name));
        Matching { policy: first(&self.policies), operator_policy: first(&self.operator_policies) }
    }
}

#[cfg(test)]
mod tests {
    use leveret_amqp::{ShortStr, Value};

    use super::*;
    use crate::vhost::queue::Strategy;

    fn source(kind: PolicyKind, name: &str, priority: i64, fields: &[(&str, Value<'_>)]) -> PolicySource {
        let definition = FieldTable::build(|table| {
            for &(name, value) in fields {
                table.field(name, value);
            }
        });
        let name = PolicyName::new(ShortStr::truncated(name));
        PolicySource { kind, name, pattern: "^q".into(), apply_to: ApplyTo::All, priority, definition }
    }

    fn policy(kind: PolicyKind, name: &str, priority: i64, fields: &[(&str, Value<'_>)]) -> Policy {
        Policy::new(source(kind, name, priority, fields)).unwrap()
    }

    fn name_in_force(policies: &Policies, queue_type: QueueType) -> String {
        let matching = policies.of_queue("q", queue_type);
        matching.policy().map(|policy| policy.source().name.to_string()).unwrap_or_default()
    }

    #[test]
    fn the_highest_priority_is_in_force_and_of_several_such_the_first_name() {
        let mut policies = Policies::default();
        for (name, priority) in [("c", 1), ("b", 2), ("a", 2), ("d", -5)] {
            policies.set(policy(PolicyKind::Policy, name, priority, &[("max-length", Value::I64(5))]));
        }
        for expected in ["a", "b", "c", "d", ""] {
            assert_eq!(name_in_force(&policies, QueueType::Classic), expected);
            assert!(policies.clear(PolicyKind::Policy, expected) || expected.is_empty());
        }
    }

    #[test]
    fn a_policy_with_a_key_that_a_type_of_queue_does_not_have_is_none_for_it() {
        let mut policies = Policies::default();
        policies.set(policy(PolicyKind::Policy, "both", 0, &[("max-length", Value::I64(5))]));
        let limit = [("delivery-limit", Value::I64(5)), ("max-length", Value::I64(5))];
        policies.set(policy(PolicyKind::Policy, "quorum", 1, &limit));
        let mode = [("queue-mode", Value::LongStr(b"lazy")), ("max-length", Value::I64(5))];
        policies.set(policy(PolicyKind::Policy, "classic", 2, &mode));
        assert_eq!(name_in_force(&policies, QueueType::Classic), "classic");
        assert_eq!(name_in_force(&policies, QueueType::Quorum), "quorum");
        policies.clear(PolicyKind::Policy, "classic");
        assert_eq!(name_in_force(&policies, QueueType::Classic), "both");
    }

    #[test]
    fn every_key_is_for_the_types_of_queues_that_have_it() {
        use QueueType::{Classic, Quorum};
        let (number, text) = (Value::I64(2), |text: &'static str| Value::LongStr(text.as_bytes()));
        for (key, value, classic, quorum) in [
            ("message-ttl", number, true, true),
            ("expires", number, true, true),
            ("max-length", number, true, true),
            ("max-length-bytes", number, true, true),
            ("overflow", text("reject-publish"), true, true),
            ("dead-letter-exchange", text("x"), true, true),
            ("dead-letter-routing-key", text("k"), true, true),
            ("consumer-timeout", number, true, true),
            ("queue-version", number, true, true),
            ("queue-leader-locator", text("balanced"), true, true),
            ("alternate-exchange", text("x"), true, true),
            ("queue-mode", text("lazy"), true, false),
            ("delivery-limit", number, false, true),
            ("dead-letter-strategy", text("at-least-once"), false, true),
            ("max-in-memory-length", number, false, true),
            ("max-in-memory-bytes", number, false, true),
        ] {
            let policy = policy(PolicyKind::Policy, "p", 0, &[(key, value)]);
            let matches = (policy.matches_queue("q", Classic), policy.matches_queue("q", Quorum));
            assert_eq!(matches, (classic, quorum), "{key}");
        }
        let fields = [("dead-letter-strategy", text("at-least-once"))];
        let strategy = policy(PolicyKind::Policy, "p", 0, &fields).definition.queue.dead_letter_strategy;
        assert_eq!(strategy, Some(Strategy::AtLeastOnce));
    }

    #[test]
    fn a_policy_is_for_what_it_applies_to() {
        use QueueType::{Classic, Quorum};
        for (apply_to, classic, quorum, exchange) in [
            ("all", true, true, true),
            ("queues", true, true, false),
            ("classic_queues", true, false, false),
            ("quorum_queues", false, true, false),
            ("streams", false, false, false),
            ("exchanges", false, false, true),
        ] {
            let apply_to = ApplyTo::parse(apply_to).unwrap();
            let source = source(PolicyKind::Policy, "p", 0, &[("max-length", Value::I64(5))]);
            let policy = Policy::new(PolicySource { apply_to, ..source }).unwrap();
            let matches = (
                policy.matches_queue("q", Classic),
                policy.matches_queue("q", Quorum),
                policy.matches_exchange("q"),
            );
            assert_eq!(matches, (classic, quorum, exchange), "{apply_to:?}");
            assert!(!policy.matches_queue("x", Classic) && !policy.matches_exchange("x"));
        }
        let error = ApplyTo::parse("both").unwrap_err().to_string();
        assert!(error.starts_with("apply-to 'both' unrecognised; should be one of: 'queues', "), "{error}");
    }

    #[test]
    fn an_operator_policy_limits_a_policy() {
        let mut policies = Policies::default();
        let fields = [
            ("overflow", Value::LongStr(b"drop-head")),
            ("max-length", Value::I64(100)),
            ("message-ttl", Value::I64(20)),
            ("dead-letter-exchange", Value::LongStr(b"x")),
        ];
        policies.set(policy(PolicyKind::Policy, "p", 0, &fields));
        let fields = [
            ("max-length", Value::I64(50)),
            ("message-ttl", Value::I64(30)),
            ("expires", Value::I64(7)),
            ("overflow", Value::LongStr(b"reject-publish")),
        ];
        policies.set(policy(PolicyKind::OperatorPolicy, "o", 0, &fields));
        let effective = policies.of_queue("q", QueueType::Classic).effective_definition();
        let effective: Vec<_> = effective.as_table().iter().collect();
        let expected: [(&[u8], Value<'_>); 5] = [
            (b"dead-letter-exchange", Value::LongStr(b"x")),
            (b"expires", Value::I64(7)),
            (b"max-length", Value::I64(50)),
            (b"message-ttl", Value::I64(20)),
            (b"overflow", Value::LongStr(b"reject-publish")),
        ];
        assert_eq!(effective, expected);
    }

    #[test]
    fn what_is_no_policy_is_refused_in_the_words_of_rabbitmq() {
        let none: &[(&str, Value<'_>)] = &[];
        for (fields, error) in [
            (none, "no policy provided"),
            (
                &[("foo", Value::LongStr(b"bar")), ("max-length", Value::I64(1))],
                "[{<<\"foo\">>,<<\"bar\">>}] are not recognised policy settings",
            ),
            (&[("max-length", Value::I64(-1))], "-1 is not a valid maximum length"),
            (
                &[("max-length", Value::LongStr(&[b'x'; 1000]))],
                "<<\"xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx... is not a valid maximum length",
            ),
            (
                &[("foo", Value::LongStr(&[b'x'; 1000]))],
                "[{<<\"foo\">>,<<\"xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx...}] are not recognised policy settings",
            ),
            (&[("max-length-bytes", Value::F64(1.5))], "1.5 is not a valid maximum length in bytes"),
            (&[("message-ttl", Value::LongStr(b"5"))], "<<\"5\">> is not a valid message TTL"),
            (&[("message-ttl", Value::I64(315_360_000_001))], "315360000001 is not a valid message TTL"),
            (&[("expires", Value::I64(0))], "0 is not a valid queue expiry"),
            (&[("overflow", Value::Bool(true))], "true is not a valid overflow value"),
            (&[("dead-letter-exchange", Value::I64(5))], "5 is not a valid dead letter exchange name"),
            (&[("alternate-exchange", Value::Void)], "null is not a valid alternate exchange name"),
            (&[("queue-mode", Value::LongStr(b"slow"))], "<<\"slow\">> is not a valid queue-mode value"),
            (&[("queue-version", Value::I64(1))], "1 is not a valid queue-version value"),
            (&[("consumer-timeout", Value::I64(0))], "0 is not a valid consumer timeout"),
            (&[("ha-mode", Value::LongStr(b"all"))], "'ha-mode' is not supported: Leveret has no mirrored queues"),
            (
                &[("federation-upstream-set", Value::LongStr(b"all"))],
                "'federation-upstream-set' is not supported: Leveret has no federation",
            ),
        ] {
            let refused = Policy::new(source(PolicyKind::Policy, "p", 0, fields)).unwrap_err();
            assert_eq!(refused.to_string(), error);
        }
        for (key, value) in [
            ("dead-letter-strategy", Value::LongStr(b"sometimes")),
            ("dead-letter-routing-key", Value::I64(1)),
            ("delivery-limit", Value::LongStr(b"5")),
            ("queue-leader-locator", Value::LongStr(b"here")),
            ("max-in-memory-length", Value::I64(-1)),
            ("max-in-memory-bytes", Value::I64(-1)),
        ] {
            let refused = Policy::new(source(PolicyKind::Policy, "p", 0, &[(key, value)])).unwrap_err();
            assert!(matches!(refused, InvalidPolicy::Value { .. }), "{key}: {refused}");
        }
        for &(absent, _) in definition::ABSENT {
            let refused = Policy::new(source(PolicyKind::Policy, "p", 0, &[(absent, Value::I64(1))])).unwrap_err();
            assert!(matches!(refused, InvalidPolicy::Absent { key, .. } if key == absent), "{absent}: {refused}");
        }
        let refused = Policy::new(source(
            PolicyKind::OperatorPolicy,
            "p",
            0,
            &[("dead-letter-exchange", Value::LongStr(b"x")), ("max-length", Value::I64(1))],
        ));
        let error = "[{<<\"dead-letter-exchange\">>,<<\"x\">>}] are not recognised policy settings";
        assert_eq!(refused.unwrap_err().to_string(), error);
        let source = source(PolicyKind::Policy, "p", 0, &[("max-length", Value::I64(1))]);
        let refused = Policy::new(PolicySource { pattern: "^(?!amq\\.)".into(), ..source }).unwrap_err();
        let error = "pattern should be regular expression but is invalid: look-ahead and look-behind are not supported, as \
                     matching takes linear time";
        assert_eq!(refused.to_string(), error);
    }
}
