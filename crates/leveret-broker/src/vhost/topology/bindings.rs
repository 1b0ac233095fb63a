//! Bindings: `queue.bind`, `queue.unbind`, `exchange.bind`, `exchange.unbind`.

use std::collections::BTreeSet;

use leveret_amqp::ShortStr;

use crate::access::{Permission, Resource};
use crate::change::Change;
use crate::moment::Moment;
use crate::names::ChannelId;
use crate::vhost::binding::{Binding, Destination};
use crate::vhost::command::{Bind, BindAction, BindTo, QueueRef, Wait};
use crate::vhost::effects::{Answer, Effects};
use crate::vhost::exchange::{BindingKey, Exchange, ExchangeId, Kept, NameHash, Target};
use crate::vhost::queue::QueueType;
use crate::vhost::refusal::Refusal;
use crate::vhost::route::Route;
use crate::vhost::search::Keepers;
use crate::vhost::work::Work;
use crate::vhost::{ConnectionId, VirtualHost};

impl VirtualHost {
    /// Takes away all bindings from one exchange to a target that is gone.
    pub(super) fn unbind_target(&mut self, source: ExchangeId, target: Target) {
        let Some(exchange) = self.exchanges.get_mut(source) else { return };
        let bindings: Vec<_> = exchange.bindings_to(target).cloned().collect();
        for binding in bindings {
            exchange.unbind(&binding);
        }
        self.bindings_version += 1;
    }

    /// An auto-delete exchange goes with the last of its bindings.
    pub(super) fn delete_if_unused(&mut self, id: ExchangeId) {
        let Some(exchange) = self.exchanges.get(id) else { return };
        if exchange.declared.auto_delete && exchange.had_binding && !exchange.is_used() {
            // Not at once: that one may be bound to the next, and so on, deeper than a stack.
            self.work.push_back(Work::DeleteExchange(id));
        }
    }

    /// `queue.bind`, `queue.unbind`, `exchange.bind`, `exchange.unbind`
    pub(in crate::vhost) fn bind(
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
                    exchange.check_binding(&key, self.queue_type(key.target))?;
                    if !exchange.has_binding(&key) {
                        self.ledger.check_declared(exchange.binding_bytes(&key))?;
                    }
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
            if self.work.is_empty() {
                self.answer(from, channel, answer, effects);
            } else {
                self.work.push_back(Work::Answer(from, channel, answer));
            }
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
                let id = self.find_queue(from, channel, queue);
                let id = self.authorize_queue(from, Permission::Write, id)?;
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
        self.authorize_topic(from, Permission::Read, source, routing_key.as_str())?;
        Ok((source, BindingKey { target, routing_key, arguments: bind.arguments.as_table().sorted() }))
    }

    /// The exchanges that a target is bound to.
    pub(super) fn bound_to(&mut self, target: Target) -> Option<&mut BTreeSet<ExchangeId>> {
        match target {
            Target::Queue(queue) => Some(&mut self.queues.get_mut(queue)?.bound_to),
            Target::Exchange(exchange) => Some(&mut self.exchanges.get_mut(exchange)?.bound_to),
        }
    }

    fn add_binding(&mut self, source: ExchangeId, key: BindingKey, effects: &mut Effects) {
        let (binding, target) = (self.durable_binding(source, &key), key.target);
        if !self.apply_bound(source, key) {
            return;
        }
        if let Some(binding) = binding {
            self.change_topology(Change::Bound(binding), effects);
        }
        let kept = self.exchanges.get(source).map(Exchange::kept).unwrap_or_default();
        if !kept.is_empty() {
            self.work.push_back(Work::Replay(target, kept.into_iter()));
        }
    }

    /// Gives a message to what was bound to the exchange that has kept it.
    pub(in crate::vhost) fn replay(&mut self, now: Moment, target: Target, kept: Kept, effects: &mut Effects) {
        let Kept { message, expiration_ms } = kept;
        let (route, keepers) = match target {
            Target::Queue(queue) => (Route::from_slice(&[queue]), Keepers::new()),
            Target::Exchange(exchange) => {
                let Ok(header) = message.decode_header() else { return };
                self.queues_behind(Some(exchange), &message.all_keys(&header), &message)
            }
        };
        self.keep(&message, expiration_ms, &keepers);
        let after = self.offer(now, message, expiration_ms, &route, effects);
        // The answer comes when they are there for good.
        self.topology = self.topology.max(after.unwrap_or_default());
    }

    fn queue_type(&self, target: Target) -> Option<QueueType> {
        match target {
            Target::Queue(queue) => Some(self.queues.get(queue)?.declared.arguments.queue_type),
            Target::Exchange(_) => None,
        }
    }

    fn name_hash(&self, target: Target) -> Option<NameHash> {
        match target {
            Target::Queue(queue) => Some(NameHash::of_queue(self.queues.get(queue)?.declared.name.as_str())),
            Target::Exchange(exchange) => {
                Some(NameHash::of_exchange(self.exchanges.get(exchange)?.declared.name.as_str()))
            }
        }
    }

    /// Adds a binding; false if it is there.
    pub(in crate::vhost) fn apply_bound(&mut self, source: ExchangeId, key: BindingKey) -> bool {
        let target = key.target;
        let Some(name) = self.name_hash(target) else { return false };
        if !self.exchanges.get_mut(source).is_some_and(|exchange| exchange.bind(key, name)) {
            return false;
        }
        self.bindings_version += 1;
        if let Some(bound_to) = self.bound_to(target) {
            bound_to.insert(source);
        }
        true
    }

    fn remove_binding(&mut self, source: ExchangeId, key: &BindingKey, effects: &mut Effects) {
        let binding = self.durable_binding(source, key);
        if !self.apply_unbound(source, key) {
            return;
        }
        if let Some(binding) = binding {
            self.change_topology(Change::Unbound(binding), effects);
        }
        self.delete_if_unused(source);
    }

    /// Takes a binding away; false if it is not there.
    pub(in crate::vhost) fn apply_unbound(&mut self, source: ExchangeId, key: &BindingKey) -> bool {
        let Some(exchange) = self.exchanges.get_mut(source) else { return false };
        if !exchange.unbind(key) {
            return false;
        }
        let is_still_bound = exchange.is_bound_to(key.target);
        self.bindings_version += 1;
        if !is_still_bound && let Some(bound_to) = self.bound_to(key.target) {
            bound_to.remove(&source);
        }
        true
    }

    /// The binding by names, if both of its ends are durable.
    pub(in crate::vhost) fn durable_binding(&self, source: ExchangeId, key: &BindingKey) -> Option<Binding> {
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
