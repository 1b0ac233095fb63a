//! Policies take effect: on what there is, in bounded steps, and on what is declared, at once.
//!
//! A policy that is set or cleared is in force for what is declared from then on. All queues and exchanges that are there are
//! matched once more in a *sweep*, a part of each hold of the lock, and commands go on in between. A change in the midst of
//! one begins it anew.

use std::collections::BTreeMap;
use std::ops::Bound;
use std::vec;

use crate::change::{Change, QueueNumber};
use crate::limits::{MATCHES_PER_UNIT, POLICIES_MAX, UNITS_PER_RUN};
use crate::moment::{Deadline, Moment};
use crate::names::PolicyName;
use crate::vhost::effects::Effects;
use crate::vhost::exchange::ExchangeId;
use crate::vhost::policy::{InvalidPolicy, Policy, PolicyKind};
use crate::vhost::queue::{QueueSettings, Turn};
use crate::vhost::session::Session;
use crate::vhost::{ConnectionId, Progress, QueueId, VirtualHost};

/// How far the policies have taken effect on what was there before them.
#[derive(Debug)]
pub(in crate::vhost) enum PolicySweep {
    /// Nothing was looked at yet.
    Begin {
        /// Whether one that was not finished had found, or not yet told, that deliveries may be held for a shorter time.
        timeouts: bool,
    },
    /// Queues with numbers behind the first one up to the last have not been looked at, nor these exchanges.
    Matching {
        after: QueueNumber,
        last: QueueNumber,
        exchanges: vec::IntoIter<ExchangeId>,
        /// Whether some deliveries may be held for a shorter time now.
        timeouts: bool,
    },
    /// Channels of these may hold deliveries for which no timer is set.
    Timeouts(vec::IntoIter<ConnectionId>),
}

impl VirtualHost {
    /// Sets a policy, in the place of the one of its kind and name if there is one, and begins to let it take effect. A hold of
    /// the lock, as [`Self::go_on`]. It is durable with the position that [`Self::position`] gives then.
    pub fn set_policy(
        &mut self,
        now: Moment,
        policy: Policy,
        effects: &mut Effects,
    ) -> Result<Progress, InvalidPolicy> {
        let source = policy.source();
        let known = self.policies.get(source.kind, source.name.as_str());
        if known.is_none() && self.policies.iter(source.kind).count() >= POLICIES_MAX {
            return Err(InvalidPolicy::TooMany);
        }
        if known.map(Policy::source) != Some(source) {
            self.change_topology(Change::PolicySet(source.clone()), effects);
            self.policies.set(policy);
            self.begin_sweep();
        }
        Ok(self.go_on(now, effects))
    }

    /// Takes a policy away, in the same way; `None` if there is none of that name.
    pub fn clear_policy(
        &mut self,
        now: Moment,
        kind: PolicyKind,
        name: &PolicyName,
        effects: &mut Effects,
    ) -> Option<Progress> {
        if !self.policies.clear(kind, name.as_str()) {
            return None;
        }
        self.change_topology(Change::PolicyCleared { kind, name: name.clone() }, effects);
        self.begin_sweep();
        Some(self.go_on(now, effects))
    }

    fn begin_sweep(&mut self) {
        let timeouts = match self.policy_sweep {
            None => false,
            Some(PolicySweep::Begin { timeouts } | PolicySweep::Matching { timeouts, .. }) => timeouts,
            Some(PolicySweep::Timeouts(_)) => true,
        };
        self.policy_sweep = Some(PolicySweep::Begin { timeouts });
    }

    /// All policies of a kind, by their names.
    pub fn policies(&self, kind: PolicyKind) -> impl Iterator<Item = &Policy> {
        self.policies.iter(kind)
    }

    /// One of them.
    pub fn policy(&self, kind: PolicyKind, name: &str) -> Option<&Policy> {
        self.policies.get(kind, name)
    }

    /// Goes on with a sweep, if there is one, for a part of this hold of the lock.
    pub(in crate::vhost) fn sweep_policies(&mut self, now: Moment) {
        let floor = self.units.saturating_sub(UNITS_PER_RUN);
        while self.units > floor
            && let Some(sweep) = self.policy_sweep.take()
        {
            self.units -= 1;
            self.policy_sweep = self.sweep_once(now, sweep);
        }
    }

    fn sweep_once(&mut self, now: Moment, mut sweep: PolicySweep) -> Option<PolicySweep> {
        match &mut sweep {
            &mut PolicySweep::Begin { timeouts } => {
                let exchanges = self.exchanges.ids().into_iter();
                let (after, last) = (QueueNumber(0), QueueNumber(self.last_queue_number));
                return Some(PolicySweep::Matching { after, last, exchanges, timeouts });
            }
            PolicySweep::Matching { after, last, exchanges, timeouts } => {
                if let Some((number, queue)) = self.queue_behind(*after).filter(|(number, _)| number <= last) {
                    *after = number;
                    *timeouts |= self.match_queue(queue);
                } else if let Some(exchange) = exchanges.next() {
                    self.match_exchange(exchange);
                } else {
                    let connections = self.sessions.keys().collect::<Vec<_>>().into_iter();
                    return timeouts.then_some(PolicySweep::Timeouts(connections));
                }
            }
            PolicySweep::Timeouts(connections) => {
                let connection = connections.next()?;
                let channels = self.sessions.get(connection).map(Session::channel_ids).unwrap_or_default();
                self.spend(channels.len());
                for channel in channels {
                    let state = self.sessions.get_mut(connection).and_then(|session| session.channel(channel));
                    if state.is_some_and(|state| !state.unacked.is_empty()) {
                        // Whatever it holds is looked through then, and the timer set for what is not late.
                        self.arm_channel(connection, channel, Deadline(now.monotonic));
                    }
                }
            }
        }
        Some(sweep)
    }

    /// The queue with the next number.
    pub(in crate::vhost) fn queue_behind(&self, number: QueueNumber) -> Option<(QueueNumber, QueueId)> {
        let behind = (Bound::Excluded(number), Bound::Unbounded);
        let next = |queues: &BTreeMap<QueueNumber, QueueId>| {
            queues.range(behind).next().map(|(&number, &queue)| (number, queue))
        };
        next(&self.durable_queues).into_iter().chain(next(&self.transient_queues)).min()
    }

    /// Finds the policies of a queue, and what follows from them. True if deliveries may be held for another time than before.
    pub(in crate::vhost) fn match_queue(&mut self, id: QueueId) -> bool {
        self.spend(self.policies.len() / MATCHES_PER_UNIT);
        // What waits in an exchange is nobody's queue.
        let Some(queue) = self.queues.get_mut(id).filter(|queue| !queue.is_delaying()) else { return false };
        let declared = &queue.declared;
        let matching = self.policies.of_queue(declared.name.as_str(), declared.arguments.queue_type);
        if queue.policies.is(&matching) {
            return false;
        }
        let settings = QueueSettings::new(&declared.arguments, Some(&matching.definition().queue));
        queue.policies = matching;
        if settings == queue.settings {
            return false;
        }
        let timeout_differs = settings.consumer_timeout != queue.settings.consumer_timeout;
        queue.settings = settings;
        let must_run = queue.overflows() && queue.turn == Turn::None;
        self.set_timer(id);
        if must_run {
            self.mark_behind(id);
        }
        timeout_differs
    }

    /// The same of an exchange.
    pub(in crate::vhost) fn match_exchange(&mut self, id: ExchangeId) {
        self.spend(self.policies.len() / MATCHES_PER_UNIT);
        let Some(exchange) = self.exchanges.get_mut(id) else { return };
        let matching = self.policies.of_exchange(exchange.declared.name.as_str());
        if exchange.policies.is(&matching) {
            return;
        }
        // RabbitMQ: the argument counts.
        let own = exchange.declared.alternate.clone();
        let alternate = own.or_else(|| matching.definition().alternate_exchange);
        exchange.policies = matching;
        if exchange.alternate != alternate {
            exchange.alternate = alternate;
            self.bindings_version += 1;
        }
    }

    /// After a restart: all policies are known, and all that they may match.
    pub(in crate::vhost) fn match_all(&mut self) {
        for id in self.queues.keys().collect::<Vec<_>>() {
            self.match_queue(id);
        }
        for id in self.exchanges.ids() {
            self.match_exchange(id);
        }
    }
}

#[cfg(test)]
mod tests {
    use leveret_amqp::{FieldTable, ShortStr, Table, Value};

    use super::*;
    use crate::change::JournalPosition;
    use crate::limits::UNITS_PER_HOLD;
    use crate::message::Message;
    use crate::names::{ChannelId, QueueName};
    use crate::vhost::Timer;
    use crate::vhost::command::{AckMode, Command, Commands, DeclareQueue, Existence, Publish, QueueRef, Wait};
    use crate::vhost::fixtures::{at, connect, empty_vhost};
    use crate::vhost::policy::{ApplyTo, PolicySource};

    const QUEUES: u64 = 100_000;

    fn policy(name: &str, max_length: i64) -> Policy {
        policy_of(name, "max-length", max_length)
    }

    fn policy_of(name: &str, key: &str, number: i64) -> Policy {
        let definition = FieldTable::build(|table| {
            table.field(key, Value::I64(number));
        });
        let (kind, name) = (PolicyKind::Policy, PolicyName::new(ShortStr::truncated(name)));
        let (pattern, apply_to, priority) = ("^q".to_owned(), ApplyTo::Queues, 0);
        Policy::new(PolicySource { kind, name, pattern, apply_to, priority, definition }).unwrap()
    }

    fn declare(vhost: &mut VirtualHost, from: ConnectionId, name: &str, effects: &mut Effects) {
        let channel = ChannelId::new(1).unwrap();
        let mut commands = Commands::default();
        commands.push(Command::OpenChannel(channel));
        let declare = DeclareQueue {
            name: ShortStr::truncated(name).into(),
            existence: Existence::Declare,
            durable: false,
            exclusive: false,
            auto_delete: false,
            wait: Wait::Answer,
            arguments: FieldTable::default(),
        };
        commands.push(Command::DeclareQueue(channel, Box::new(declare)));
        assert_eq!(vhost.handle_batch(at(1), from, &mut commands, effects), Progress::Done);
    }

    fn limited_to(vhost: &VirtualHost, most: u64) -> usize {
        vhost.queues.values().filter(|queue| queue.settings.max_length == Some(most)).count()
    }

    fn with_queues(count: u64) -> VirtualHost {
        let mut vhost = empty_vhost();
        for number in 1..=count {
            let (queue, name) = (QueueNumber(number), QueueName::new(ShortStr::truncated(&format!("q{number}"))));
            let arguments = FieldTable::default();
            let declared = Change::QueueDeclared { queue, name, auto_delete: false, arguments };
            vhost.apply(at(1), JournalPosition(number), declared).unwrap();
        }
        vhost.end_recovery();
        vhost
    }

    /// A hundred thousand queues are not one hold of the lock; what is declared, and what is set, meanwhile is right.
    #[test]
    fn a_policy_takes_effect_on_many_queues_in_steps() {
        let mut vhost = with_queues(QUEUES);
        let connection = connect(&mut vhost);
        let mut effects = Effects::default();
        assert_eq!(vhost.set_policy(at(1), policy("p", 7), &mut effects), Ok(Progress::More));
        let mut before = 0;
        for _ in 0..10 {
            let now = limited_to(&vhost, 7);
            assert!(now > before && now - before <= UNITS_PER_HOLD as usize, "{before} and then {now}");
            before = now;
            assert_eq!(vhost.next_timeout(), Some(Deadline(std::time::Duration::ZERO)));
            assert_eq!(vhost.go_on(at(1), &mut effects), Progress::More);
        }
        declare(&mut vhost, connection, "q declared meanwhile", &mut effects);
        let in_force = vhost.queues[vhost.queue_names["q declared meanwhile"]].policies.policy();
        assert_eq!(in_force.map(|policy| policy.source().name.as_str()), Some("p"));
        // It begins anew, from those that have the first one and those that have none.
        assert_eq!(vhost.set_policy(at(1), policy("p", 5), &mut effects), Ok(Progress::More));
        declare(&mut vhost, connection, "q declared at last", &mut effects);
        while vhost.is_behind() {
            let _ = vhost.go_on(at(1), &mut effects);
        }
        assert_eq!(limited_to(&vhost, 5), usize::try_from(QUEUES).unwrap() + 2);
        let name = PolicyName::new(ShortStr::truncated("p"));
        assert_eq!(vhost.clear_policy(at(1), PolicyKind::Policy, &name, &mut effects), Some(Progress::More));
        assert_eq!(vhost.clear_policy(at(1), PolicyKind::Policy, &name, &mut effects), None);
        while vhost.is_behind() {
            let _ = vhost.go_on(at(1), &mut effects);
        }
        assert_eq!(limited_to(&vhost, 5), 0);
        assert!(vhost.queues.values().all(|queue| queue.policies.policy().is_none()));
    }

    #[test]
    fn what_is_held_has_a_timer_though_another_policy_is_set_before_the_first_has_taken_effect() {
        let mut vhost = with_queues(10_000);
        let (connection, channel, q1) = (connect(&mut vhost), ChannelId::FIRST, ShortStr::truncated("q1"));
        let message = Message::on_the_way(ShortStr::truncated(""), q1, Table::EMPTY);
        let mut commands = Commands::default();
        commands.push(Command::OpenChannel(channel));
        commands.push(Command::Publish(Publish {
            channel,
            message,
            more_keys: None,
            mandatory: false,
            expiration_ms: None,
            confirm: None,
        }));
        commands.push(Command::Get(channel, QueueRef::Named(q1.into()), AckMode::Manual));
        let mut effects = Effects::default();
        assert_eq!(vhost.handle_batch(at(1), connection, &mut commands, &mut effects), Progress::Done);
        let has_timer = |vhost: &VirtualHost| {
            vhost.timers.iter().any(|(_, timer)| matches!(timer, Timer::Channel(of, _) if *of == connection))
        };
        let source = policy_of("p", "consumer-timeout", 1000).source().clone();
        let timeout = Policy::new(PolicySource { pattern: "^q1$".into(), ..source }).unwrap();
        assert_eq!(vhost.set_policy(at(1), timeout, &mut effects), Ok(Progress::More));
        assert!(!has_timer(&vhost));
        assert_eq!(vhost.set_policy(at(1), policy("z", 7), &mut effects), Ok(Progress::More));
        while vhost.is_behind() {
            let _ = vhost.go_on(at(1), &mut effects);
        }
        assert!(has_timer(&vhost));
    }

    #[test]
    fn a_policy_that_is_set_as_it_is_changes_nothing() {
        let mut vhost = empty_vhost();
        let mut effects = Effects::default();
        let _ = vhost.set_policy(at(1), policy("p", 7), &mut effects);
        assert_eq!(effects.changes.len(), 1);
        assert_eq!(vhost.set_policy(at(1), policy("p", 7), &mut effects), Ok(Progress::Done));
        assert_eq!(effects.changes.len(), 1);
        for number in 1..POLICIES_MAX {
            assert!(vhost.set_policy(at(1), policy(&number.to_string(), 7), &mut effects).is_ok());
        }
        let one_more = vhost.set_policy(at(1), policy("one more", 7), &mut effects);
        assert_eq!(one_more, Err(InvalidPolicy::TooMany));
        assert!(vhost.set_policy(at(1), policy("p", 8), &mut effects).is_ok(), "it is in the place of another");
    }
}
