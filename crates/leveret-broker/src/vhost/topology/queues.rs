//! Queues: `queue.declare`, `queue.purge`, `queue.delete`.

use std::borrow::Cow;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use leveret_amqp::{FieldTable, ShortStr, ShortString, Value};
use leveret_planted::{Bug, planted};
use rand::RngCore;

use crate::access::{Permission, Resource};
use crate::change::{Change, QueueNumber};
use crate::moment::Moment;
use crate::names::{ChannelId, ExchangeName, QueueName};
use crate::node::DefaultQueueType;
use crate::vhost::command::{DeclareQueue, DeleteQueue, Existence, QueueRef, Wait};
use crate::vhost::effects::{Answer, Effects};
use crate::vhost::exchange::Target;
use crate::vhost::queue::arguments::compared;
use crate::vhost::queue::{Consumers, Declared, Position, Queue, QueueArguments, QueueType, Sharing, Standing};
use crate::vhost::refusal::Refusal;
use crate::vhost::replies::is_reply_address;
use crate::vhost::topology::{RESERVED_PREFIX, described, equivalent};
use crate::vhost::work::Work;
use crate::vhost::{ConnectionId, QueueId, Timer, VirtualHost};

/// The argument that says which type a queue is to have.
const QUEUE_TYPE: &str = "x-queue-type";

impl VirtualHost {
    /// `queue.declare`
    pub(in crate::vhost) fn declare_queue(
        &mut self,
        now: Moment,
        from: ConnectionId,
        channel: ChannelId,
        declare: &DeclareQueue,
        effects: &mut Effects,
    ) -> Result<(), Refusal> {
        if is_reply_address(declare.name.as_str()) {
            // Whoever answers may ask whether somebody still waits. RabbitMQ: direct reply-to.
            if !self.expects_reply(declare.name.as_str()) {
                return Err(Refusal::NoQueue { queue: declare.name.to_string(), vhost: self.name.to_string() });
            }
            if declare.wait == Wait::Answer {
                let queue = QueueName::from(declare.name.clone());
                let answer = Answer::QueueDeclareOk { queue, message_count: 0, consumer_count: 1 };
                self.answer(from, channel, answer, effects);
            }
            return Ok(());
        }
        let id = match declare.existence {
            Existence::Passive => self.find_queue_passively(from, channel, &declare.name)?,
            Existence::Declare => self.declare_queue_actively(now, from, declare, effects)?,
        };
        let Some(queue) = self.queues.get_mut(id) else { return Ok(()) };
        queue.touch(now);
        let name = queue.declared.name.clone();
        let (message_count, consumer_count) = (queue.message_count(), queue.consumer_count());
        self.mark_runnable(id);
        if let Some(channel) = self.sessions.get_mut(from).and_then(|session| session.channel(channel)) {
            channel.last_declared = Some(name.clone());
        }
        if declare.wait == Wait::Answer {
            let answer = Answer::QueueDeclareOk { queue: name, message_count, consumer_count };
            self.answer(from, channel, answer, effects);
        }
        Ok(())
    }

    /// A passive declaration needs any one of the three permissions. RabbitMQ 4.3.1.
    fn find_queue_passively(
        &mut self,
        from: ConnectionId,
        channel: ChannelId,
        name: &ShortString,
    ) -> Result<QueueId, Refusal> {
        // The empty name is no shortcut here: it is the name of no queue.
        let queue = self.find_queue(from, channel, &QueueRef::Named(name.clone()));
        let name = name.to_string();
        let resource = Resource::Queue(&name);
        if !planted(Bug::PassiveDeclareUnchecked) {
            self.authorize(from, Permission::Configure, resource)
                .or_else(|_| self.authorize(from, Permission::Read, resource))
                .or_else(|_| self.authorize(from, Permission::Write, resource))?;
        }
        let id = queue?;
        self.check_not_locked(from, id)?;
        Ok(id)
    }

    fn declare_queue_actively(
        &mut self,
        now: Moment,
        from: ConnectionId,
        declare: &DeclareQueue,
        effects: &mut Effects,
    ) -> Result<QueueId, Refusal> {
        let name = if declare.name.is_empty() {
            self.generate_queue_name()
        } else {
            if declare.name.as_str().starts_with(RESERVED_PREFIX) && !self.is_administrator(from) {
                return Err(Refusal::ReservedQueueName { queue: declare.name.to_string() });
            }
            declare.name.clone()
        };
        self.authorize(from, Permission::Configure, Resource::Queue(name.as_str()))?;
        let declare = &*self.with_default_type(declare);
        if let Some(&id) = self.queue_names.get(name.as_str()) {
            self.check_not_locked(from, id)?;
            self.check_queue_equivalent(id, declare)?;
            return Ok(id);
        }
        let arguments = QueueArguments::parse(declare.arguments.as_table()).map_err(|error| {
            Refusal::InvalidQueueArgument { queue: name.to_string(), vhost: self.name.to_string(), error }
        })?;
        let keys = arguments.keys.as_deref();
        if let Some(exchange) = keys.and_then(|keys| keys.dead_letter_exchange.as_ref()) {
            // RabbitMQ: whoever sends messages on from a queue must be able to do so by hand.
            self.authorize(from, Permission::Read, Resource::Queue(name.as_str()))?;
            self.authorize(from, Permission::Write, Resource::Exchange(exchange.as_str()))?;
        }
        self.check_queue_type(&name, declare, &arguments)?;
        if let Some(limit) = self.limits.max_queues
            && self.queue_names.len() as u64 >= limit
        {
            return Err(Refusal::QueueLimit { queue: name.to_string(), vhost: self.name.to_string(), limit });
        }
        let number = self.last_queue_number + 1;
        let declared = Declared {
            name: QueueName::from(name),
            number: QueueNumber(number),
            durable: is_durable(declare),
            auto_delete: declare.auto_delete,
            standing: Standing::Open,
            owner: declare.exclusive.then_some(from),
            arguments,
            raw_arguments: declare.arguments.clone(),
        };
        self.ledger.check_declared(declared.bytes())?;
        self.last_queue_number = number;
        Ok(self.insert_queue(now, declared, effects))
    }

    /// A declaration that does not say which type the queue is to have is one of the default type, if the rest of it is fit for
    /// that. RabbitMQ: `rabbit_amqqueue:augment_declare_args`.
    fn with_default_type<'d>(&self, declare: &'d DeclareQueue) -> Cow<'d, DeclareQueue> {
        let DeclareQueue { durable, exclusive, auto_delete, .. } = *declare;
        let arguments = declare.arguments.as_table();
        let is_fit = durable && !exclusive && !auto_delete && !declare.name.is_empty();
        let says = arguments.get(QUEUE_TYPE).is_some();
        if says || !is_fit || self.default_queue_type == DefaultQueueType::Classic {
            return Cow::Borrowed(declare);
        }
        let kind = Value::LongStr(self.default_queue_type.as_str().as_bytes());
        let arguments = FieldTable::build(|table| {
            table.fields_of(arguments, |_| true).field(QUEUE_TYPE, kind);
        });
        Cow::Owned(DeclareQueue { arguments, ..declare.clone() })
    }

    fn insert_queue(&mut self, now: Moment, declared: Declared, effects: &mut Effects) -> QueueId {
        let change = declared.durable.then(|| Change::QueueDeclared {
            queue: declared.number,
            name: declared.name.clone(),
            auto_delete: declared.auto_delete,
            arguments: declared.raw_arguments.clone(),
        });
        let owner = declared.owner;
        let id = self.apply_queue_declared(now, declared);
        if let Some(session) = owner.and_then(|owner| self.sessions.get_mut(owner)) {
            session.exclusive_queues.insert(id);
        }
        if let Some(change) = change {
            self.change_topology(change, effects);
        }
        self.match_queue(id);
        id
    }

    pub(in crate::vhost) fn apply_queue_declared(&mut self, now: Moment, declared: Declared) -> QueueId {
        let (standing, name) = (declared.standing, declared.name.clone());
        let id = self.insert(Queue::new(declared, now, self.memory.clone(), self.ledger.declaration()));
        match standing {
            Standing::Open => _ = self.queue_names.insert(name, id),
            Standing::Delaying => self.exchanges.set_delay_queue(ExchangeName::new(name.as_short_str()), id),
            Standing::Closed => {}
        }
        id
    }

    fn insert(&mut self, queue: Queue) -> QueueId {
        let Declared { number, durable, .. } = queue.declared;
        let id = self.queues.insert(queue);
        let numbered = if durable { &mut self.durable_queues } else { &mut self.transient_queues };
        numbered.insert(number, id);
        id
    }

    fn generate_queue_name(&mut self) -> ShortString {
        loop {
            let mut bytes = [0; 16];
            self.random.fill_bytes(&mut bytes);
            let name = format!("{RESERVED_PREFIX}gen-{}", URL_SAFE_NO_PAD.encode(bytes));
            if !self.queue_names.contains_key(name.as_str()) {
                return ShortStr::truncated(&name).into();
            }
        }
    }

    /// RabbitMQ: quorum queues are durable, named by the client, and for everybody.
    fn check_queue_type(
        &self,
        name: &ShortString,
        declare: &DeclareQueue,
        arguments: &QueueArguments,
    ) -> Result<(), Refusal> {
        let refuse = |property| {
            let (queue, vhost) = (name.to_string(), self.name.to_string());
            Err(Refusal::InvalidQueueProperty { property, queue, vhost })
        };
        match arguments.queue_type {
            QueueType::Classic => Ok(()),
            QueueType::Quorum if declare.name.is_empty() => Err(Refusal::NoNameForQuorum),
            QueueType::Quorum if declare.exclusive => refuse("exclusive-owner"),
            QueueType::Quorum if declare.auto_delete => refuse("auto-delete"),
            QueueType::Quorum if !declare.durable => refuse("non-durable"),
            QueueType::Quorum => Ok(()),
        }
    }

    /// RabbitMQ: `rabbit_amqqueue:assert_equivalence`.
    fn check_queue_equivalent(&self, id: QueueId, declare: &DeclareQueue) -> Result<(), Refusal> {
        let Some(queue) = self.queues.get(id) else { return Ok(()) };
        let declared = &queue.declared;
        if declare.exclusive != declared.owner.is_some() {
            return Err(Refusal::QueueLocked { queue: self.queue_name(id), vhost: self.name.to_string() });
        }
        let differs = |argument: &str, received: String, current: String| Refusal::InequivalentQueue {
            argument: argument.into(),
            queue: declared.name.to_string(),
            vhost: self.name.to_string(),
            received,
            current,
        };
        for (argument, received, current) in [
            ("durable", is_durable(declare), declared.durable),
            ("auto_delete", declare.auto_delete, declared.auto_delete),
        ] {
            if received != current {
                return Err(differs(argument, format!("'{received}'"), format!("'{current}'")));
            }
        }
        let (received, current) = (declare.arguments.as_table(), declared.raw_arguments.as_table());
        for argument in compared(declared.arguments.queue_type) {
            // An absent queue type is the default one.
            let default = (argument == QUEUE_TYPE).then_some(Value::LongStr(b"classic"));
            let (received, current) = (received.get(argument), current.get(argument));
            if !equivalent(received.or(default), current.or(default)) {
                let (received, current) = described(received, current);
                return Err(differs(argument, received, current));
            }
        }
        Ok(())
    }

    /// `queue.purge`
    pub(in crate::vhost) fn purge(
        &mut self,
        from: ConnectionId,
        channel: ChannelId,
        queue: &QueueRef,
        wait: Wait,
        effects: &mut Effects,
    ) -> Result<(), Refusal> {
        let id = self.find_queue(from, channel, queue);
        let id = self.authorize_queue(from, Permission::Read, id)?;
        self.check_not_locked(from, id)?;
        let Some(queue) = self.queues.get_mut(id) else { return Ok(()) };
        let was_empty = queue.len() == 0;
        let (message_count, detached) = queue.purge();
        if queue.declared.durable && !was_empty {
            let queue_number = queue.declared.number;
            for (below, except) in queue.purged().collect::<Vec<_>>() {
                self.change_topology(Change::QueuePurged { queue: queue_number, below, except }, effects);
            }
        }
        self.detached.extend(detached);
        self.work.push_back(Work::Purge(id));
        self.mark_runnable(id);
        if wait == Wait::Answer {
            self.answer(from, channel, Answer::QueuePurgeOk { message_count }, effects);
        }
        Ok(())
    }

    /// `queue.delete`
    pub(in crate::vhost) fn delete(
        &mut self,
        from: ConnectionId,
        channel: ChannelId,
        delete: &DeleteQueue,
        effects: &mut Effects,
    ) -> Result<(), Refusal> {
        let id = self.find_queue(from, channel, &delete.queue);
        let message_count = match self.authorize_queue(from, Permission::Configure, id) {
            Ok(id) => {
                self.check_not_locked(from, id)?;
                self.check_deletable(id, delete)?;
                let count = self.queues.get(id).map_or(0, Queue::message_count);
                self.delete_queue(id, effects);
                count
            }
            // Deleting what is not there is no error. RabbitMQ since 3.2; AMQP 0-9-1 says 404.
            Err(Refusal::NoQueue { .. }) => 0,
            Err(other) => return Err(other),
        };
        if delete.wait == Wait::Answer {
            self.answer(from, channel, Answer::QueueDeleteOk { message_count }, effects);
        }
        Ok(())
    }

    fn check_deletable(&self, id: QueueId, delete: &DeleteQueue) -> Result<(), Refusal> {
        let Some(queue) = self.queues.get(id) else { return Ok(()) };
        let (name, vhost) = (queue.declared.name.to_string(), self.name.to_string());
        if delete.if_unused && !queue.consumers.is_empty() {
            return Err(Refusal::QueueInUse { queue: name, vhost });
        }
        if delete.if_empty && queue.ready() > 0 {
            return Err(Refusal::QueueNotEmpty { queue: name, vhost });
        }
        Ok(())
    }

    /// Takes a queue away with its bindings and messages, and tells its consumers. Dead letters that have died before and wait
    /// for their bodies go on all the same, but for those that it was to keep until somebody takes them.
    pub(in crate::vhost) fn delete_queue(&mut self, id: QueueId, effects: &mut Effects) {
        let Some(mut queue) = self.take_away(id) else { return };
        for source in std::mem::take(&mut queue.bound_to) {
            self.delete_if_unused(source);
        }
        if !queue.consumers.is_empty() {
            let consumers = std::mem::replace(&mut queue.consumers, Consumers::new(Sharing::All));
            self.work.push_back(Work::Notify(consumers.into_keys().collect::<Vec<_>>().into_iter()));
        }
        if let Some(session) = queue.declared.owner.and_then(|owner| self.sessions.get_mut(owner)) {
            session.exclusive_queues.remove(&id);
        }
        let Declared { number, durable, .. } = queue.declared;
        if queue.dying().is_empty() || queue.keeps_dead_letters() {
            self.detached.extend(queue.detach());
            if durable {
                self.change_topology(Change::QueueDeleted { queue: number }, effects);
            }
            return;
        }
        let letters = queue.dying().in_order().map(|(position, _)| position).collect();
        queue.close(letters);
        if durable {
            let mut kept: Vec<_> = queue.dying().journaled().map(|(position, _)| position).collect();
            kept.sort_unstable();
            self.change_topology(Change::QueueClosed { queue: number, kept }, effects);
        }
        let id = self.insert(queue);
        self.mark_behind(id);
    }

    /// Takes a queue away with its bindings. Its messages are freed later, in steps.
    pub(in crate::vhost) fn apply_queue_deleted(&mut self, id: QueueId) {
        if let Some(mut queue) = self.take_away(id) {
            self.detached.extend(queue.detach());
        }
    }

    /// The same, but for some dead letters in it.
    pub(in crate::vhost) fn apply_queue_closed(&mut self, id: QueueId, kept: Vec<Position>) {
        if let Some(mut queue) = self.take_away(id) {
            queue.bound_to.clear();
            queue.close(kept);
            self.insert(queue);
        }
    }

    /// Takes a queue out, with its name and its bindings. Nobody who knows it finds it any more.
    fn take_away(&mut self, id: QueueId) -> Option<Queue> {
        let queue = self.queues.remove(id)?;
        if self.queue_names.get(&queue.declared.name) == Some(&id) {
            self.queue_names.remove(&queue.declared.name);
        }
        self.exchanges.forget_delay_queue(queue.declared.name.as_str(), id);
        let Declared { number, durable, .. } = queue.declared;
        let numbered = if durable { &mut self.durable_queues } else { &mut self.transient_queues };
        numbered.remove(&number);
        if let Some(deadline) = queue.timer {
            self.timers.remove(&(deadline, Timer::Queue(id)));
        }
        for &source in &queue.bound_to {
            self.unbind_target(source, Target::Queue(id));
        }
        Some(queue)
    }
}

/// An exclusive queue does not outlive its connection, whatever its declaration says. RabbitMQ does the same.
fn is_durable(declare: &DeclareQueue) -> bool {
    declare.durable && !declare.exclusive
}
