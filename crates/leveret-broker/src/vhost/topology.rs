//! Declaring, binding and deleting queues and exchanges.

use std::collections::BTreeSet;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use leveret_amqp::{ShortStr, ShortString, Table, Value};
use rand::RngCore;

use crate::access::{Permission, Resource, authorize};
use crate::change::{Change, QueueNumber};
use crate::moment::Moment;
use crate::names::{ChannelId, ExchangeName, QueueName};
use crate::vhost::binding::{Binding, Destination};
use crate::vhost::command::{
    Bind, BindAction, BindTo, DeclareExchange, DeclareQueue, DeleteExchange, DeleteQueue, Existence, QueueRef, Wait,
};
use crate::vhost::effects::{Answer, Effects, Output};
use crate::vhost::exchange::{BindingKey, DeclaredExchange, ExchangeId, ExchangeKind, Target};
use crate::vhost::queue::arguments::{COMPARED, shown};
use crate::vhost::queue::{Declared, Queue, QueueArguments, QueueType};
use crate::vhost::refusal::Refusal;
use crate::vhost::replies::is_reply_address;
use crate::vhost::work::Work;
use crate::vhost::{ConnectionId, QueueId, VirtualHost};

/// Names that begin with this are the broker's. AMQP 0-9-1, domains queue-name and exchange-name.
const RESERVED_PREFIX: &str = "amq.";

impl VirtualHost {
    pub(super) fn find_queue(
        &mut self,
        from: ConnectionId,
        channel: ChannelId,
        queue: &QueueRef,
    ) -> Result<QueueId, Refusal> {
        let vhost = || self.name.to_string();
        match queue {
            QueueRef::Named(name) => {
                let found = self.queue_names.get(name.as_str()).copied();
                found.ok_or_else(|| Refusal::NoQueue { queue: name.to_string(), vhost: vhost() })
            }
            QueueRef::LastDeclared => {
                let channel = self.sessions.get_mut(from).and_then(|session| session.channel(channel));
                let name = channel.and_then(|channel| channel.last_declared.clone());
                let name = name.ok_or(Refusal::NoPreviouslyDeclaredQueue)?;
                let found = self.queue_names.get(&name).copied();
                found.ok_or_else(|| Refusal::NoQueue { queue: name.to_string(), vhost: self.name.to_string() })
            }
        }
    }

    pub(super) fn queue_name(&self, id: QueueId) -> String {
        self.queues.get(id).map(|queue| queue.declared.name.to_string()).unwrap_or_default()
    }

    fn authorize(&self, from: ConnectionId, permission: Permission, resource: Resource<'_>) -> Result<(), Refusal> {
        let Some(session) = self.sessions.get(from) else { return Ok(()) };
        Ok(authorize(&session.login, permission, resource)?)
    }

    pub(super) fn authorize_queue(
        &self,
        from: ConnectionId,
        permission: Permission,
        id: QueueId,
    ) -> Result<(), Refusal> {
        let Some(queue) = self.queues.get(id) else { return Ok(()) };
        self.authorize(from, permission, Resource::Queue(queue.declared.name.as_str()))
    }

    /// An exclusive queue is for the connection that declared it. RabbitMQ: `check_exclusive_access`.
    pub(super) fn check_not_locked(&self, from: ConnectionId, id: QueueId) -> Result<(), Refusal> {
        match self.queues.get(id).and_then(|queue| queue.declared.owner) {
            Some(owner) if owner != from => {
                Err(Refusal::QueueLocked { queue: self.queue_name(id), vhost: self.name.to_string() })
            }
            Some(_) | None => Ok(()),
        }
    }

    /// `queue.declare`
    pub(super) fn declare_queue(
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
                effects.push(from, Output::Answer(channel, answer));
            }
            return Ok(());
        }
        let id = match declare.existence {
            Existence::Passive => self.find_queue_passively(from, channel, &declare.name)?,
            Existence::Declare => self.declare_queue_actively(now, from, declare, effects)?,
        };
        let Some(queue) = self.queues.get_mut(id) else { return Ok(()) };
        queue.last_used = now;
        let name = queue.declared.name.clone();
        let (message_count, consumer_count) = (queue.message_count(), queue.consumer_count());
        self.mark_runnable(id);
        if let Some(channel) = self.sessions.get_mut(from).and_then(|session| session.channel(channel)) {
            channel.last_declared = Some(name.clone());
        }
        if declare.wait == Wait::Answer {
            let answer = Answer::QueueDeclareOk { queue: name, message_count, consumer_count };
            effects.push(from, Output::Answer(channel, answer));
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
        self.authorize(from, Permission::Configure, resource)
            .or_else(|_| self.authorize(from, Permission::Read, resource))
            .or_else(|_| self.authorize(from, Permission::Write, resource))?;
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
            if declare.name.as_str().starts_with(RESERVED_PREFIX) {
                return Err(Refusal::ReservedQueueName { queue: declare.name.to_string() });
            }
            declare.name.clone()
        };
        self.authorize(from, Permission::Configure, Resource::Queue(name.as_str()))?;
        if let Some(&id) = self.queue_names.get(name.as_str()) {
            self.check_not_locked(from, id)?;
            self.check_queue_equivalent(id, declare)?;
            return Ok(id);
        }
        let arguments = QueueArguments::parse(declare.arguments.as_table()).map_err(|error| {
            Refusal::InvalidQueueArgument { queue: name.to_string(), vhost: self.name.to_string(), error }
        })?;
        self.check_queue_type(&name, declare, &arguments)?;
        self.last_queue_number += 1;
        let declared = Declared {
            name: QueueName::from(name),
            number: QueueNumber(self.last_queue_number),
            durable: is_durable(declare),
            auto_delete: declare.auto_delete,
            owner: declare.exclusive.then_some(from),
            arguments,
            raw_arguments: declare.arguments.clone(),
        };
        Ok(self.insert_queue(now, declared, effects))
    }

    fn insert_queue(&mut self, now: Moment, declared: Declared, effects: &mut Effects) -> QueueId {
        let name = declared.name.clone();
        let change = declared.durable.then(|| Change::QueueDeclared {
            queue: declared.number,
            name: name.clone(),
            auto_delete: declared.auto_delete,
            arguments: declared.raw_arguments.clone(),
        });
        let owner = declared.owner;
        let id = self.queues.insert(Queue::new(declared, now));
        self.queue_names.insert(name, id);
        if let Some(session) = owner.and_then(|owner| self.sessions.get_mut(owner)) {
            session.exclusive_queues.insert(id);
        }
        if let Some(change) = change {
            self.change(change, effects);
        }
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
            QueueType::Quorum if declare.exclusive => refuse("exclusive-owner"),
            QueueType::Quorum if declare.auto_delete => refuse("auto-delete"),
            QueueType::Quorum if !declare.durable => refuse("non-durable"),
            QueueType::Quorum if declare.name.is_empty() => refuse("server-named"),
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
        for argument in COMPARED {
            // An absent queue type is the default one.
            let default = (*argument == "x-queue-type").then_some(Value::LongStr(b"classic"));
            let (received, current) = (received.get(argument), current.get(argument));
            if !equivalent(received.or(default), current.or(default)) {
                let (received, current) = described(received, current);
                return Err(differs(argument, received, current));
            }
        }
        Ok(())
    }

    /// `queue.purge`
    pub(super) fn purge(
        &mut self,
        from: ConnectionId,
        channel: ChannelId,
        queue: &QueueRef,
        wait: Wait,
        effects: &mut Effects,
    ) -> Result<(), Refusal> {
        let id = self.find_queue(from, channel, queue)?;
        self.authorize_queue(from, Permission::Read, id)?;
        self.check_not_locked(from, id)?;
        let Some(queue) = self.queues.get_mut(id) else { return Ok(()) };
        let (message_count, detached) = queue.purge();
        if queue.declared.durable && message_count > 0 {
            let except = queue.unacked_positions();
            let except = except.into_iter().filter_map(|at| queue.entry(at).map(|entry| entry.id)).collect();
            let change = Change::QueuePurged { queue: queue.declared.number, except };
            self.change(change, effects);
        }
        if !detached.is_empty() {
            self.detached.push(detached);
        }
        self.work.push_back(Work::Purge(id));
        self.mark_runnable(id);
        if wait == Wait::Answer {
            effects.push(from, Output::Answer(channel, Answer::QueuePurgeOk { message_count }));
        }
        Ok(())
    }

    /// `queue.delete`
    pub(super) fn delete(
        &mut self,
        from: ConnectionId,
        channel: ChannelId,
        delete: &DeleteQueue,
        effects: &mut Effects,
    ) -> Result<(), Refusal> {
        let message_count = match self.find_queue(from, channel, &delete.queue) {
            Ok(id) => {
                self.authorize_queue(from, Permission::Configure, id)?;
                self.check_not_locked(from, id)?;
                self.check_deletable(id, delete)?;
                let count = self.queues.get(id).map_or(0, Queue::message_count);
                self.delete_queue(id, effects);
                count
            }
            // Deleting what is not there is no error. RabbitMQ since 3.2; AMQP 0-9-1 says 404.
            Err(Refusal::NoQueue { queue, .. }) => {
                self.authorize(from, Permission::Configure, Resource::Queue(&queue))?;
                0
            }
            Err(other) => return Err(other),
        };
        if delete.wait == Wait::Answer {
            effects.push(from, Output::Answer(channel, Answer::QueueDeleteOk { message_count }));
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

    /// Takes a queue away with its bindings and messages, and tells its consumers.
    pub(super) fn delete_queue(&mut self, id: QueueId, effects: &mut Effects) {
        let Some(mut queue) = self.queues.remove(id) else { return };
        self.queue_names.remove(&queue.declared.name);
        if let Some(deadline) = queue.timer {
            self.timers.remove(&(deadline, id));
        }
        for source in std::mem::take(&mut queue.bound_to) {
            self.unbind_target(source, Target::Queue(id));
        }
        if !queue.consumers.is_empty() {
            let consumers: Vec<_> = std::mem::take(&mut queue.consumers).into_keys().collect();
            self.work.push_back(Work::Notify(consumers.into_iter()));
        }
        if let Some(session) = queue.declared.owner.and_then(|owner| self.sessions.get_mut(owner)) {
            session.exclusive_queues.remove(&id);
        } else if queue.declared.durable {
            self.change(Change::QueueDeleted { queue: queue.declared.number }, effects);
        }
        let detached = queue.detach();
        if !detached.is_empty() {
            self.detached.push(detached);
        }
    }

    /// `exchange.declare`
    pub(super) fn declare_exchange(
        &mut self,
        from: ConnectionId,
        channel: ChannelId,
        declare: &DeclareExchange,
        effects: &mut Effects,
    ) -> Result<(), Refusal> {
        match declare.existence {
            Existence::Passive if declare.name.is_empty() => return Err(Refusal::DefaultExchange),
            Existence::Passive => {
                self.exchanges.find_or_refuse(declare.name.as_str(), self.name.as_str())?;
            }
            Existence::Declare => self.declare_exchange_actively(from, &declare.name, declare, effects)?,
        }
        if declare.wait == Wait::Answer {
            effects.push(from, Output::Answer(channel, Answer::ExchangeDeclareOk));
        }
        Ok(())
    }

    fn declare_exchange_actively(
        &mut self,
        from: ConnectionId,
        name: &ShortString,
        declare: &DeclareExchange,
        effects: &mut Effects,
    ) -> Result<(), Refusal> {
        if name.is_empty() {
            return Err(Refusal::DefaultExchange);
        }
        self.authorize(from, Permission::Configure, Resource::Exchange(name.as_str()))?;
        let kind = ExchangeKind::parse(declare.kind.as_str())
            .ok_or_else(|| Refusal::UnknownExchangeType { kind: declare.kind.to_string() })?;
        if let Some(id) = self.exchanges.find(name.as_str()) {
            return self.check_exchange_equivalent(id, kind, declare);
        }
        if name.as_str().starts_with(RESERVED_PREFIX) {
            return Err(Refusal::ReservedExchangeName { exchange: name.to_string() });
        }
        let alternate = self.alternate_exchange(from, name, declare.arguments.as_table())?;
        let declared = DeclaredExchange {
            name: ExchangeName::from(name.clone()),
            kind,
            durable: declare.durable,
            auto_delete: declare.auto_delete,
            internal: declare.internal,
            alternate,
            arguments: declare.arguments.clone(),
        };
        if declared.durable {
            let DeclaredExchange { name, kind, auto_delete, internal, arguments, .. } = declared.clone();
            let kind = kind.as_str();
            self.change(Change::ExchangeDeclared { name, kind, auto_delete, internal, arguments }, effects);
        }
        self.exchanges.insert(declared);
        self.bindings_version += 1;
        Ok(())
    }

    /// Argument `alternate-exchange`. RabbitMQ: declaring it needs read on the exchange and write on the alternate.
    fn alternate_exchange(
        &self,
        from: ConnectionId,
        name: &ShortString,
        arguments: Table<'_>,
    ) -> Result<Option<ExchangeName>, Refusal> {
        let Some(value) = arguments.get(ALTERNATE) else { return Ok(None) };
        let alternate = value.as_str().and_then(|text| ShortString::new(text).ok()).ok_or_else(|| {
            let (exchange, vhost) = (name.to_string(), self.name.to_string());
            Refusal::InvalidExchangeArgument { argument: ALTERNATE, exchange, vhost, type_name: value.type_name() }
        })?;
        self.authorize(from, Permission::Read, Resource::Exchange(name.as_str()))?;
        self.authorize(from, Permission::Write, Resource::Exchange(alternate.as_str()))?;
        Ok(Some(ExchangeName::from(alternate)))
    }

    /// RabbitMQ: `rabbit_exchange:assert_equivalence`.
    fn check_exchange_equivalent(
        &self,
        id: ExchangeId,
        kind: ExchangeKind,
        declare: &DeclareExchange,
    ) -> Result<(), Refusal> {
        let Some(exchange) = self.exchanges.get(id) else { return Ok(()) };
        let declared = &exchange.declared;
        let (received, current) = (declare.arguments.as_table().get(ALTERNATE), declared.arguments.as_table());
        let current = current.get(ALTERNATE);
        let flags = |flag: bool| format!("'{flag}'");
        let compared = [
            ("type", format!("'{}'", kind.as_str()), format!("'{}'", declared.kind.as_str())),
            ("durable", flags(declare.durable), flags(declared.durable)),
            ("auto_delete", flags(declare.auto_delete), flags(declared.auto_delete)),
            ("internal", flags(declare.internal), flags(declared.internal)),
        ];
        let differing = compared.into_iter().find(|(_, received, current)| received != current);
        let differing = differing.or_else(|| {
            let differs = !equivalent(received, current);
            differs.then(|| {
                let (received, current) = described(received, current);
                (ALTERNATE, received, current)
            })
        });
        differing.map_or(Ok(()), |(argument, received, current)| {
            let (exchange, vhost) = (declared.name.to_string(), self.name.to_string());
            let argument = argument.to_owned();
            Err(Refusal::InequivalentExchange { argument, exchange, vhost, received, current })
        })
    }

    /// `exchange.delete`
    pub(super) fn delete_exchange(
        &mut self,
        from: ConnectionId,
        channel: ChannelId,
        delete: &DeleteExchange,
        effects: &mut Effects,
    ) -> Result<(), Refusal> {
        let name = &delete.name;
        if name.is_empty() {
            return Err(Refusal::DefaultExchange);
        }
        if name.as_str().starts_with(RESERVED_PREFIX) {
            let (exchange, vhost) = (name.to_string(), self.name.to_string());
            return Err(Refusal::SystemExchange { exchange, vhost });
        }
        self.authorize(from, Permission::Configure, Resource::Exchange(name.as_str()))?;
        if let Some(id) = self.exchanges.find(name.as_str()) {
            if delete.if_unused && self.exchanges.get(id).is_some_and(super::exchange::Exchange::is_used) {
                return Err(Refusal::ExchangeInUse { exchange: name.to_string(), vhost: self.name.to_string() });
            }
            self.remove_exchange(id, effects);
        }
        if delete.wait == Wait::Answer {
            effects.push(from, Output::Answer(channel, Answer::ExchangeDeleteOk));
        }
        Ok(())
    }

    /// Takes an exchange away with the bindings at both of its ends.
    pub(super) fn remove_exchange(&mut self, id: ExchangeId, effects: &mut Effects) {
        let Some(exchange) = self.exchanges.remove(id) else { return };
        self.bindings_version += 1;
        for binding in exchange.bindings() {
            if let Some(bound_to) = self.bound_to(binding.target) {
                bound_to.remove(&id);
            }
        }
        if exchange.declared.durable {
            self.change(Change::ExchangeDeleted { name: exchange.declared.name.clone() }, effects);
        }
        for source in exchange.bound_to {
            self.unbind_target(source, Target::Exchange(id));
        }
    }

    /// Takes away all bindings from one exchange to a target that is gone.
    fn unbind_target(&mut self, source: ExchangeId, target: Target) {
        let Some(exchange) = self.exchanges.get_mut(source) else { return };
        for binding in exchange.bindings_to(target) {
            exchange.unbind(&binding);
        }
        self.bindings_version += 1;
        self.delete_if_unused(source);
    }

    /// An auto-delete exchange goes with the last of its bindings.
    fn delete_if_unused(&mut self, id: ExchangeId) {
        let Some(exchange) = self.exchanges.get(id) else { return };
        if exchange.declared.auto_delete && exchange.had_binding && !exchange.is_used() {
            // Not at once: that one may be bound to the next, and so on, deeper than a stack.
            self.work.push_back(Work::DeleteExchange(id));
        }
    }

    /// `queue.bind`, `queue.unbind`, `exchange.bind`, `exchange.unbind`
    pub(super) fn bind(
        &mut self,
        from: ConnectionId,
        channel: ChannelId,
        bind: &Bind,
        effects: &mut Effects,
    ) -> Result<(), Refusal> {
        let ends = self.binding_ends(from, channel, bind);
        match (ends, bind.action) {
            (Ok((source, key)), BindAction::Bind) => {
                if let Some(exchange) = self.exchanges.get(source) {
                    exchange.check_binding(key.arguments.as_table())?;
                }
                self.add_binding(source, key, effects);
            }
            (Ok((source, key)), BindAction::Unbind) => self.remove_binding(source, &key, effects),
            // Taking away a binding whose end is not there is no error. RabbitMQ since 3.2.
            (Err(Refusal::NoQueue { .. } | Refusal::NoExchange { .. }), BindAction::Unbind) => {}
            (Err(refusal), _) => return Err(refusal),
        }
        if bind.wait == Wait::Answer {
            let answer = match (&bind.to, bind.action) {
                (BindTo::Queue(_), BindAction::Bind) => Answer::QueueBindOk,
                (BindTo::Queue(_), BindAction::Unbind) => Answer::QueueUnbindOk,
                (BindTo::Exchange(_), BindAction::Bind) => Answer::ExchangeBindOk,
                (BindTo::Exchange(_), BindAction::Unbind) => Answer::ExchangeUnbindOk,
            };
            effects.push(from, Output::Answer(channel, answer));
        }
        Ok(())
    }

    /// Both ends of a binding, if they exist and the user may bind them: write on the destination, read on the
    /// source.
    fn binding_ends(
        &mut self,
        from: ConnectionId,
        channel: ChannelId,
        bind: &Bind,
    ) -> Result<(ExchangeId, BindingKey), Refusal> {
        let mut routing_key = bind.routing_key.clone();
        let target = match &bind.to {
            BindTo::Queue(queue) => {
                let id = self.find_queue(from, channel, queue)?;
                self.authorize_queue(from, Permission::Write, id)?;
                self.check_not_locked(from, id)?;
                // Both names empty: the queue declared last, by its own name. AMQP 0-9-1, queue.bind.
                if *queue == QueueRef::LastDeclared && routing_key.is_empty() {
                    routing_key = ShortStr::truncated(&self.queue_name(id)).into();
                }
                Target::Queue(id)
            }
            BindTo::Exchange(name) => {
                if name.is_empty() {
                    return Err(Refusal::DefaultExchange);
                }
                self.authorize(from, Permission::Write, Resource::Exchange(name.as_str()))?;
                Target::Exchange(self.exchanges.find_or_refuse(name.as_str(), self.name.as_str())?)
            }
        };
        let source = &bind.source;
        if source.is_empty() {
            return Err(Refusal::DefaultExchange);
        }
        self.authorize(from, Permission::Read, Resource::Exchange(source.as_str()))?;
        let source = self.exchanges.find_or_refuse(source.as_str(), self.name.as_str())?;
        Ok((source, BindingKey { target, routing_key, arguments: bind.arguments.as_table().sorted() }))
    }

    /// The exchanges that a target is bound to.
    fn bound_to(&mut self, target: Target) -> Option<&mut BTreeSet<ExchangeId>> {
        match target {
            Target::Queue(queue) => Some(&mut self.queues.get_mut(queue)?.bound_to),
            Target::Exchange(exchange) => Some(&mut self.exchanges.get_mut(exchange)?.bound_to),
        }
    }

    fn add_binding(&mut self, source: ExchangeId, key: BindingKey, effects: &mut Effects) {
        let binding = self.durable_binding(source, &key);
        let target = key.target;
        if !self.exchanges.get_mut(source).is_some_and(|exchange| exchange.bind(key)) {
            return;
        }
        self.bindings_version += 1;
        if let Some(bound_to) = self.bound_to(target) {
            bound_to.insert(source);
        }
        if let Some(binding) = binding {
            self.change(Change::Bound(binding), effects);
        }
    }

    fn remove_binding(&mut self, source: ExchangeId, key: &BindingKey, effects: &mut Effects) {
        let binding = self.durable_binding(source, key);
        let Some(exchange) = self.exchanges.get_mut(source) else { return };
        if !exchange.unbind(key) {
            return;
        }
        let is_still_bound = exchange.is_bound_to(key.target);
        self.bindings_version += 1;
        if !is_still_bound && let Some(bound_to) = self.bound_to(key.target) {
            bound_to.remove(&source);
        }
        if let Some(binding) = binding {
            self.change(Change::Unbound(binding), effects);
        }
        self.delete_if_unused(source);
    }

    /// The binding by names, if both of its ends are durable.
    fn durable_binding(&self, source: ExchangeId, key: &BindingKey) -> Option<Binding> {
        let source = &self.exchanges.get(source)?.declared;
        let (durable, destination) = match key.target {
            Target::Queue(queue) => {
                let declared = &self.queues.get(queue)?.declared;
                (declared.durable, Destination::Queue(declared.name.clone()))
            }
            Target::Exchange(exchange) => {
                let declared = &self.exchanges.get(exchange)?.declared;
                (declared.durable, Destination::Exchange(declared.name.clone()))
            }
        };
        (durable && source.durable).then(|| Binding {
            source: source.name.clone(),
            destination,
            routing_key: key.routing_key.clone(),
            arguments: key.arguments.clone(),
        })
    }
}

/// An exclusive queue does not outlive its connection, whatever its declaration says. RabbitMQ does the same.
fn is_durable(declare: &DeclareQueue) -> bool {
    declare.durable && !declare.exclusive
}

/// Argument of `exchange.declare`: where messages go that match no binding.
const ALTERNATE: &str = "alternate-exchange";

/// RabbitMQ compares numbers by value, whatever their width.
fn equivalent(a: Option<Value<'_>>, b: Option<Value<'_>>) -> bool {
    match (a, b) {
        (Some(a), Some(b)) => match (a.as_integer(), b.as_integer()) {
            (Some(a), Some(b)) => a == b,
            _ => a == b,
        },
        (None, None) => true,
        (Some(_), None) | (None, Some(_)) => false,
    }
}

/// Two values as RabbitMQ describes them where declarations differ: bare if both are there, else with the type of the one
/// that is.
fn described(received: Option<Value<'_>>, current: Option<Value<'_>>) -> (String, String) {
    let with_type = |value: Option<Value<'_>>| {
        value.map_or_else(
            || "none".into(),
            |value| format!("the value '{}' of type '{}'", bare(value), value.type_name()),
        )
    };
    match (received, current) {
        (Some(received), Some(current)) => (format!("'{}'", bare(received)), format!("'{}'", bare(current))),
        _ => (with_type(received), with_type(current)),
    }
}

fn bare(value: Value<'_>) -> String {
    shown(value).trim_matches('\'').to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_compared_by_value_across_their_widths() {
        assert!(equivalent(Some(Value::I32(5)), Some(Value::I64(5))));
        assert!(!equivalent(Some(Value::I32(5)), Some(Value::I32(6))));
        assert!(!equivalent(Some(Value::I32(5)), Some(Value::LongStr(b"5"))));
        assert!(!equivalent(None, Some(Value::I32(5))));
    }
}
