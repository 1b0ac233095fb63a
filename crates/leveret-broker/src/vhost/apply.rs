//! Recovery: the durable part of a virtual host is the fold of its changes.
//!
//! Must not know: clients. None is connected before [`VirtualHost::end_recovery`].
//! A change that names something unknown is refused, and what of it can be done is; whoever recovers sets it aside.

use std::time::Duration;

use leveret_amqp::FieldTable;

use crate::change::{Change, Enqueued, JournalPosition, QueueNumber, QueuePosition};
use crate::message::{Message, MessageId};
use crate::moment::{Deadline, Moment};
use crate::names::{ExchangeName, PolicyName, QueueName};
use crate::vhost::binding::{Binding, Destination};
use crate::vhost::checkpoint::QueueRestated;
use crate::vhost::effects::Effects;
use crate::vhost::exchange::{BindingKey, DeclaredExchange, ExchangeId, Target};
use crate::vhost::policy::{InvalidPolicy, Policy};
use crate::vhost::queue::{ArgumentError, ArgumentFault, Declared, Entry, Queue, QueueArguments, Standing};
use crate::vhost::topology::{alternate_of, kind_of};
use crate::vhost::{QueueId, Timer, VirtualHost};

/// A change that does not fit to those before it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ApplyError {
    /// Its position is not behind that of the last one.
    #[error("change {0} does not follow change {1}")]
    OutOfOrder(u64, u64),
    /// It names a queue that is not there.
    #[error("no queue has the number {0}")]
    NoQueue(u64),
    /// It names an exchange that is not there.
    #[error("no exchange is called '{0}'")]
    NoExchange(ExchangeName),
    /// It names a binding whose queue is not there.
    #[error("no queue is called '{0}'")]
    NoQueueNamed(QueueName),
    /// It declares what is there.
    #[error("'{0}' is there already")]
    Exists(String),
    /// It declares something in a way that this version does not know.
    #[error("'{name}' cannot be declared: {fault}")]
    NotDeclarable {
        /// What was declared.
        name: String,
        /// Why it is not.
        fault: String,
    },
    /// It sets a policy that this version does not understand. It is as if there were none.
    #[error("policy '{name}' is not in force: {fault}")]
    NoPolicy {
        /// The policy.
        name: PolicyName,
        /// What is wrong with it.
        fault: InvalidPolicy,
    },
    /// It declares a queue with an argument that this version does not know. The queue is there, without that.
    #[error("queue '{name}' is served as if it had no argument {argument}{fault}")]
    Argument {
        /// The queue.
        name: QueueName,
        /// The argument.
        argument: &'static str,
        /// What is wrong with it.
        fault: ArgumentFault,
    },
    /// It is part of a checkpoint whose beginning was not read.
    #[error("the beginning of its checkpoint is missing")]
    NoCheckpoint,
    /// Pages of a queue are missing in a checkpoint.
    #[error("the checkpoint does not have all messages of queue {0}")]
    Incomplete(u64),
    /// It takes a message from a place that is empty, or puts one to a place that is not.
    #[error("place {position} of queue {queue} cannot be taken or emptied")]
    Place {
        /// The number of the queue.
        queue: u64,
        /// The place in it.
        position: u64,
    },
}

impl VirtualHost {
    /// Takes in a change that was journaled, with its position. Changes come in the order of their positions; some
    /// may be missing.
    pub fn apply(&mut self, now: Moment, position: JournalPosition, change: Change) -> Result<(), ApplyError> {
        if position <= self.position {
            return Err(ApplyError::OutOfOrder(position.0, self.position.0));
        }
        let is_first_change = self.position == JournalPosition::default();
        self.position = position;
        match self.apply_here(now, change, is_first_change) {
            // What stands before its part of the checkpoint is in that part.
            Err(ApplyError::NoQueue(_) | ApplyError::NoQueueNamed(_) | ApplyError::NoExchange(_))
                if self.is_restating_first() =>
            {
                Ok(())
            }
            result => result,
        }
    }

    fn apply_here(&mut self, now: Moment, change: Change, is_first_change: bool) -> Result<(), ApplyError> {
        let position = self.position;
        match change {
            Change::QueueDeclared { queue, name, auto_delete, arguments } => {
                return self.apply_declared(now, queue, name, auto_delete, Standing::Open, arguments);
            }
            Change::DelayQueueDeclared { queue, exchange } => {
                let (name, arguments) = (QueueName::new(exchange.as_short_str()), FieldTable::default());
                return self.apply_declared(now, queue, name, false, Standing::Delaying, arguments);
            }
            Change::DelayQueueRestated { queue, exchange, messages } => {
                let restated = QueueRestated {
                    queue,
                    name: QueueName::new(exchange.as_short_str()),
                    auto_delete: false,
                    standing: Standing::Delaying,
                    arguments: FieldTable::default(),
                    next: QueuePosition::default(),
                    granted: QueuePosition::default(),
                    messages,
                };
                return self.apply_queue_restated(now, restated);
            }
            Change::QueueDeleted { queue } => {
                self.apply_deleted_in_pages(queue);
                let id = self.durable_queue(queue)?;
                self.apply_queue_deleted(id);
                self.detached.clear();
            }
            Change::QueueClosed { queue, kept } => {
                self.apply_closed_in_pages(queue, &kept);
                let id = self.durable_queue(queue)?;
                self.apply_queue_closed(id, kept);
            }
            Change::MessageEnqueued { message, queues } => return self.apply_enqueued(now, &message, &queues),
            Change::MessageSettled { queue, position } => {
                self.apply_settled_in_pages(queue, position);
                let id = self.durable_queue(queue)?;
                if !self.queues.get_mut(id).is_some_and(|queue| queue.settle(position)) {
                    return Err(ApplyError::Place { queue: queue.0, position: position.0 });
                }
            }
            Change::MessagesCondemned { queue, messages } => {
                return self.apply_to_each(queue, messages, Queue::condemn_again);
            }
            Change::MessagesReturned { queue, messages } => {
                return self.apply_to_each(queue, messages, Queue::restore_tries);
            }
            Change::QueuePurged { queue, below, except } => {
                self.apply_purged_in_pages(queue, below, &except);
                let id = self.durable_queue(queue)?;
                if let Some(queue) = self.queues.get_mut(id) {
                    queue.settle_below(below, &except);
                }
            }
            Change::DeliveryGranted { queue, below } => {
                let id = self.durable_queue(queue)?;
                if let Some(queue) = self.queues.get_mut(id) {
                    queue.set_grant(below, position);
                }
            }
            Change::ExchangeDeclared { name, kind, auto_delete, internal, arguments } => {
                if self.exchanges.find(name.as_str()).is_some() {
                    let is_new = !self.is_restating();
                    return if is_new { Err(ApplyError::Exists(name.to_string())) } else { Ok(()) };
                }
                let not_declarable = |fault: String| ApplyError::NotDeclarable { name: name.to_string(), fault };
                let (kind, timing) = kind_of(&kind, arguments.as_table())
                    .ok_or_else(|| not_declarable(format!("the exchange type '{kind}' is unknown")))?;
                let alternate = alternate_of(arguments.as_table());
                let alternate = alternate
                    .map_err(|value| not_declarable(format!("its alternate exchange is a {}", value.type_name())))?
                    .map(ExchangeName::from);
                let durable = true;
                let declared =
                    DeclaredExchange { name, kind, timing, durable, auto_delete, internal, alternate, arguments };
                self.apply_exchange_declared(declared);
            }
            Change::PolicySet(source) => {
                let (kind, name) = (source.kind, source.name.clone());
                match Policy::new(source) {
                    Ok(policy) => self.policies.set(policy),
                    Err(fault) => {
                        self.policies.clear(kind, name.as_str());
                        return Err(ApplyError::NoPolicy { name, fault });
                    }
                }
            }
            // What a checkpoint has not said yet may be cleared before it would.
            Change::PolicyCleared { kind, name } => _ = self.policies.clear(kind, name.as_str()),
            Change::ExchangeDeleted { name } => {
                let id = self.exchange(&name)?;
                self.apply_exchange_deleted(id);
            }
            Change::Bound(binding) => {
                let (source, key) = self.ends(binding)?;
                self.apply_bound(source, key);
            }
            Change::Unbound(binding) => {
                let (source, key) = self.ends(binding)?;
                self.apply_unbound(source, &key);
            }
            Change::CheckpointBegun { last_queue } => self.apply_checkpoint_begun(last_queue, is_first_change),
            Change::QueuePage { queue, entries } => return self.apply_queue_page(now, queue, &entries),
            Change::QueueRestated { queue, name, auto_delete, closed, arguments, next, granted, messages } => {
                let standing = if closed { Standing::Closed } else { Standing::Open };
                let restated =
                    QueueRestated { queue, name, auto_delete, standing, arguments, next, granted, messages };
                return self.apply_queue_restated(now, restated);
            }
            Change::LevelRestated { queue, next, granted } => {
                let id = self.durable_queue(queue)?;
                let queue_here = self.queues.get_mut(id);
                if !queue_here.is_some_and(|queue| queue.restate_level(next, granted, position)) {
                    return Err(ApplyError::Place { queue: queue.0, position: next.0 });
                }
            }
            Change::CheckpointEnded { begun } => return self.apply_checkpoint_ended(begun),
        }
        Ok(())
    }

    pub(super) fn apply_declared(
        &mut self,
        now: Moment,
        number: QueueNumber,
        name: QueueName,
        auto_delete: bool,
        standing: Standing,
        raw_arguments: FieldTable,
    ) -> Result<(), ApplyError> {
        self.last_queue_number = self.last_queue_number.max(number.0);
        let is_taken = match standing {
            Standing::Open => self.queue_names.contains_key(&name),
            Standing::Delaying => self.exchanges.delay_queue(name.as_str()).is_some(),
            Standing::Closed => false,
        };
        if self.durable_queues.contains_key(&number) || is_taken {
            return Err(ApplyError::Exists(name.to_string()));
        }
        let (arguments, unknown) = QueueArguments::parse_known(raw_arguments.as_table());
        let unknown = unknown.map(|ArgumentError { argument, fault }| {
            let name = name.clone();
            ApplyError::Argument { name, argument, fault }
        });
        let (durable, owner) = (true, None);
        let declared = Declared { name, number, durable, auto_delete, standing, owner, arguments, raw_arguments };
        self.apply_queue_declared(now, declared);
        unknown.map_or(Ok(()), Err)
    }

    /// Passes over a change that cannot be read. Its position is not given again.
    pub fn skip(&mut self, position: JournalPosition) {
        self.position = self.position.max(position);
    }

    /// Changes that were journaled are missing: so many at most, the last of them perhaps at this position. No number that
    /// they may have given is given again: should they turn up at a later start, they contradict nothing.
    pub fn leave_gap(&mut self, last: JournalPosition, count: u64) {
        self.skip(last);
        // Something of it may be among what is missing.
        self.checkpoint = None;
        self.last_queue_number += count;
        for queue in self.queues.values_mut() {
            queue.leave_gap(count);
        }
    }

    fn apply_enqueued(&mut self, now: Moment, message: &Message, queues: &[Enqueued]) -> Result<(), ApplyError> {
        let id = MessageId::journaled(self.position);
        let mut result = Ok(());
        for &Enqueued { queue: number, position, expires } in queues {
            let queue = match self.durable_queue(number) {
                Ok(queue) => queue,
                Err(error) => {
                    result = Err(error);
                    continue;
                }
            };
            let expires = expires.map(|expiry| now.restored(expiry));
            let entry = Entry::new(id, message.clone(), expires, true);
            if !self.queues.get_mut(queue).is_some_and(|queue| queue.push_at(position, entry)) {
                result = Err(ApplyError::Place { queue: number.0, position: position.0 });
            }
        }
        result
    }

    /// Applies something to each of these messages. One that is not there does not take the others with it.
    fn apply_to_each<T>(
        &mut self,
        number: QueueNumber,
        messages: impl IntoIterator<Item = (QueuePosition, T)>,
        apply: impl Fn(&mut Queue, QueuePosition, T) -> bool,
    ) -> Result<(), ApplyError> {
        let id = self.durable_queue(number)?;
        let mut result = Ok(());
        for (place, what) in messages {
            if !self.queues.get_mut(id).is_some_and(|queue| apply(queue, place, what)) {
                result = Err(ApplyError::Place { queue: number.0, position: place.0 });
            }
        }
        result
    }

    pub(super) fn durable_queue(&self, number: QueueNumber) -> Result<QueueId, ApplyError> {
        self.durable_queues.get(&number).copied().ok_or(ApplyError::NoQueue(number.0))
    }

    fn exchange(&self, name: &ExchangeName) -> Result<ExchangeId, ApplyError> {
        self.exchanges.find(name.as_str()).ok_or_else(|| ApplyError::NoExchange(name.clone()))
    }

    fn ends(&self, binding: Binding) -> Result<(ExchangeId, BindingKey), ApplyError> {
        let Binding { source, destination, routing_key, arguments } = binding;
        let source = self.exchange(&source)?;
        let target = match destination {
            Destination::Queue(name) => {
                let found = self.queue_names.get(&name).copied();
                Target::Queue(found.ok_or(ApplyError::NoQueueNamed(name))?)
            }
            Destination::Exchange(name) => Target::Exchange(self.exchange(&name)?),
        };
        Ok((source, BindingKey { target, routing_key, arguments }))
    }

    /// All changes were taken in; clients may come. What was granted for delivery may have been delivered.
    pub fn end_recovery(&mut self) {
        self.restating = None;
        self.match_all();
        for id in self.durable_queues.values().copied().collect::<Vec<_>>() {
            let Some(queue) = self.queues.get_mut(id) else { continue };
            queue.flag_granted();
            if !queue.dying().is_empty() || queue.overflows() || queue.is_done() {
                // It has something to do as soon as there is somebody to do it.
                let at_once = Deadline(Duration::ZERO);
                if let Some(known) = queue.timer.replace(at_once) {
                    self.timers.remove(&(known, Timer::Queue(id)));
                }
                self.timers.insert((at_once, Timer::Queue(id)));
            } else if queue.is_timed() {
                self.set_timer(id);
            }
        }
    }

    /// The position of the last change.
    pub fn position(&self) -> JournalPosition {
        self.position
    }

    /// The node stops in good order, and all clients are gone: says exactly what was delivered, so that nothing else
    /// carries the flag `redelivered` after the restart.
    pub fn handle_stop(&mut self, effects: &mut Effects) {
        let exact = |(&number, &id): (&QueueNumber, &QueueId)| -> Vec<(QueueNumber, QueuePosition)> {
            let grants = self.queues.get(id).map(Queue::exact_grants).unwrap_or_default();
            grants.into_iter().map(|below| (number, below)).collect()
        };
        for (queue, below) in self.durable_queues.iter().flat_map(exact).collect::<Vec<_>>() {
            if let Some(queue) = self.durable_queue(queue).ok().and_then(|id| self.queues.get_mut(id)) {
                queue.set_grant(below, self.position.next());
            }
            self.change(Change::DeliveryGranted { queue, below }, effects);
        }
    }
}

#[cfg(test)]
mod tests {
    use leveret_amqp::{ShortStr, Value};
    use smallvec::smallvec;

    use super::*;
    use crate::message::DeliveryMode;
    use crate::vhost::fixtures::empty_vhost;
    use crate::vhost::queue::{QueueSettings, QueueType};

    #[test]
    fn a_queue_with_arguments_that_this_version_does_not_know_keeps_its_messages() {
        let now = Moment { monotonic: Duration::ZERO, wall: Duration::ZERO };
        let arguments = || {
            FieldTable::build(|arguments| {
                arguments.field("x-queue-type", Value::LongStr(b"quorum"));
                arguments.field("x-queue-version", Value::I32(2));
                arguments.field("x-max-length", Value::LongStr(b"many"));
                arguments.field("x-message-ttl", Value::I32(5));
            })
        };
        let (queue, name) = (QueueNumber(1), QueueName::new(ShortStr::truncated("q")));
        let auto_delete = false;
        let declared = Change::QueueDeclared { queue, name: name.clone(), auto_delete, arguments: arguments() };
        let (next, granted, messages) = (QueuePosition(0), QueuePosition(0), 0);
        let restated = Change::QueueRestated {
            queue,
            name,
            auto_delete,
            closed: false,
            arguments: arguments(),
            next,
            granted,
            messages,
        };
        let message = Message::new(&[0, 0], 2, 2, DeliveryMode::Persistent);
        let queues = smallvec![Enqueued { queue, position: QueuePosition(0), expires: None }];
        let enqueued = Change::MessageEnqueued { message, queues };
        let begun = Change::CheckpointBegun { last_queue: QueueNumber(1) };
        for changes in [vec![declared, enqueued.clone()], vec![begun, restated, enqueued]] {
            let mut vhost = empty_vhost();
            let results = (1..).zip(changes).map(|(at, change)| vhost.apply(now, JournalPosition(at), change));
            let faults: Vec<_> = results.filter_map(Result::err).map(|error| error.to_string()).collect();
            let [fault] = &faults[..] else { panic!("{faults:?}") };
            assert!(fault.starts_with("queue 'q' is served as if it had no argument x-max-length"), "{fault}");
            let queue = vhost.queues.values().next().unwrap();
            assert_eq!(queue.ready(), 1);
            let queue_type = queue.declared.arguments.queue_type;
            let QueueSettings { message_ttl, max_length, .. } = queue.settings;
            let expected = (QueueType::Quorum, Some(Duration::from_millis(5)), None);
            assert_eq!((queue_type, message_ttl, max_length), expected);
        }
    }

    #[test]
    fn what_is_missing_gives_no_number_away() {
        let mut vhost = empty_vhost();
        let now = Moment { monotonic: Duration::ZERO, wall: Duration::ZERO };
        let declared = |number, name| Change::QueueDeclared {
            queue: QueueNumber(number),
            name: QueueName::new(ShortStr::truncated(name)),
            auto_delete: false,
            arguments: FieldTable::default(),
        };
        let message = Message::new(&[0, 0], 2, 2, DeliveryMode::Persistent);
        let enqueued = |queue, place| {
            let (queue, position) = (QueueNumber(queue), QueuePosition(place));
            let queues = smallvec![Enqueued { queue, position, expires: None }];
            Change::MessageEnqueued { message: message.clone(), queues }
        };
        let mut at = 0;
        let mut apply = |vhost: &mut VirtualHost, change| {
            at += 1;
            vhost.apply(now, JournalPosition(at), change)
        };
        apply(&mut vhost, declared(1, "empty")).unwrap();
        apply(&mut vhost, declared(2, "filled")).unwrap();
        apply(&mut vhost, enqueued(2, 0)).unwrap();
        vhost.leave_gap(JournalPosition(2010), 2000);
        assert_eq!(vhost.position(), JournalPosition(2010));
        at = 2010;
        let mut apply = |vhost: &mut VirtualHost, change| {
            at += 1;
            vhost.apply(now, JournalPosition(at), change)
        };
        for (queue, first_free) in [(1, 2000), (2, 2001)] {
            let early = apply(&mut vhost, enqueued(queue, first_free - 1));
            assert_eq!(early, Err(ApplyError::Place { queue, position: first_free - 1 }));
            apply(&mut vhost, enqueued(queue, first_free)).unwrap();
        }
        assert_eq!(vhost.last_queue_number, 2002);
        assert_eq!(vhost.queues.values().map(Queue::ready).sum::<usize>(), 3);
    }
}
