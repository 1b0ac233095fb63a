//! What is in a virtual host, listed for those who look from outside, in the words of RabbitMQ's HTTP API.
//!
//! Owns: how far a list has come from one hold of the lock to the next.
//! Must not know: who looks, and how it is written down.
//! Invariant: what is there all the time is listed once. What comes or goes meanwhile is listed once or not at all.

use std::num::NonZeroU64;
use std::ops::Bound;
use std::sync::Arc;
use std::vec;

use leveret_amqp::{FieldTable, ShortString};
use serde::{Serialize, Serializer};

use crate::change::QueueNumber;
use crate::limits::VIEWED_BYTES_PER_UNIT;
use crate::names::{ChannelId, ConsumerTag, ExchangeName, PolicyName, QueueName, UserName, VhostName};
use crate::vhost::command::AckMode;
use crate::vhost::exchange::{BindingKey, Exchange, ExchangeId, Target};
use crate::vhost::policy::Policy;
use crate::vhost::queue::{Queue, Standing};
use crate::vhost::session::{Channel, Consumer, Session};
use crate::vhost::{ConnectionId, Progress, VirtualHost};
use crate::views::Fields;

/// How a connection is known outside of its virtual host.
#[derive(Clone, Debug)]
pub struct ConnectionDetails(Arc<Details>);

#[derive(Debug, Serialize)]
struct Details {
    name: String,
    peer_host: String,
    peer_port: u16,
}

impl ConnectionDetails {
    /// Its name, and where its client is.
    pub fn new(name: String, peer_host: String, peer_port: u16) -> Self {
        ConnectionDetails(Arc::new(Details { name, peer_host, peer_port }))
    }

    /// RabbitMQ: `peer:port -> host:port`.
    pub fn name(&self) -> &str {
        &self.0.name
    }
}

impl Serialize for ConnectionDetails {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.0.serialize(serializer)
    }
}

/// A queue.
#[derive(Clone, Debug, Serialize)]
pub struct QueueView {
    /// Its name.
    pub name: QueueName,
    /// Its virtual host.
    pub vhost: VhostName,
    /// `classic` or `quorum`.
    #[serde(rename = "type")]
    pub queue_type: &'static str,
    /// Whether it survives a restart.
    pub durable: bool,
    /// Whether it goes with its last consumer.
    pub auto_delete: bool,
    /// Whether it belongs to one connection.
    pub exclusive: bool,
    /// As it was declared.
    pub arguments: Fields,
    /// The policy in force.
    pub policy: Option<PolicyName>,
    /// The operator policy in force.
    pub operator_policy: Option<PolicyName>,
    /// What both come to.
    pub effective_policy_definition: Fields,
    /// Always `running`.
    pub state: &'static str,
    /// Messages that wait to be delivered, and those that are not settled.
    pub messages: usize,
    /// Messages that wait to be delivered.
    pub messages_ready: usize,
    /// Messages that were delivered and are not settled.
    pub messages_unacknowledged: usize,
    /// How many consumers it has.
    pub consumers: usize,
    /// The connection that an exclusive queue belongs to.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub owner_pid_details: Option<ConnectionDetails>,
}

/// An exchange.
#[derive(Clone, Debug, Serialize)]
pub struct ExchangeView {
    /// Its name; that of the default exchange is empty.
    pub name: ExchangeName,
    /// Its virtual host.
    pub vhost: VhostName,
    /// How it routes.
    #[serde(rename = "type")]
    pub kind: &'static str,
    /// Whether it survives a restart.
    pub durable: bool,
    /// Whether it goes with the last binding to it.
    pub auto_delete: bool,
    /// Whether clients may not publish to it.
    pub internal: bool,
    /// As it was declared.
    pub arguments: Fields,
    /// The policy in force.
    pub policy: Option<PolicyName>,
    /// Messages that wait before it routes them, if its type is `x-delayed-message`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub messages_delayed: Option<usize>,
}

/// A binding.
#[derive(Clone, Debug, Serialize)]
pub struct BindingView {
    /// The exchange that messages come from.
    pub source: ExchangeName,
    /// The virtual host of both ends.
    pub vhost: VhostName,
    /// The name of the queue or exchange that they go to.
    pub destination: String,
    /// `queue` or `exchange`.
    pub destination_type: &'static str,
    /// The binding key.
    pub routing_key: String,
    /// Its arguments, sorted by name.
    pub arguments: Fields,
}

/// A channel.
#[derive(Clone, Debug, Serialize)]
pub struct ChannelView {
    /// The name of its connection, and its number.
    pub name: String,
    /// Its number on its connection.
    pub number: u16,
    /// Who uses it.
    pub user: UserName,
    /// Its virtual host.
    pub vhost: VhostName,
    /// Always `running`.
    pub state: &'static str,
    /// Whether it is in a transaction.
    pub transactional: bool,
    /// How many consumers it has.
    pub consumer_count: usize,
    /// Deliveries that it has not settled.
    pub messages_unacknowledged: usize,
    /// How many of them each new consumer may have at once; 0 is without end.
    pub prefetch_count: u64,
    /// How many of them all its consumers may have at once; 0 is without end.
    pub global_prefetch_count: u64,
    /// Its connection.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub connection_details: Option<ConnectionDetails>,
}

/// A consumer.
#[derive(Clone, Debug, Serialize)]
pub struct ConsumerView {
    /// Its name on its channel.
    pub consumer_tag: ConsumerTag,
    /// What it consumes from.
    pub queue: QueueOfConsumer,
    /// Where it is.
    pub channel_details: ChannelOfConsumer,
    /// Whether its deliveries must be settled.
    pub ack_required: bool,
    /// How many of them it may have at once; 0 is without end.
    pub prefetch_count: u64,
    /// Whether it has the queue for itself.
    pub exclusive: bool,
    /// Whether it is served; false while another one is the single active consumer of the queue.
    pub active: bool,
    /// `up`, `single_active` or `waiting`.
    pub activity_status: &'static str,
    /// As it was declared.
    pub arguments: Fields,
}

/// The queue of a consumer.
#[derive(Clone, Debug, Serialize)]
pub struct QueueOfConsumer {
    /// Its name.
    pub name: QueueName,
    /// Its virtual host.
    pub vhost: VhostName,
}

/// The channel of a consumer.
#[derive(Clone, Debug, Serialize)]
pub struct ChannelOfConsumer {
    /// The name of its connection, and its number.
    pub name: String,
    /// Its number on its connection.
    pub number: u16,
    /// Who uses it.
    pub user: UserName,
    /// The name of its connection.
    pub connection_name: String,
}

/// How far a list of queues has come. Those that are declared after it has begun are not in it.
#[derive(Debug, Default)]
pub struct QueueCursor {
    /// The last one that was listed.
    after: QueueNumber,
    /// The last one that will be.
    last: Option<QueueNumber>,
}

/// How far a list of exchanges has come. Those that are declared after it has begun are not in it.
#[derive(Debug, Default)]
pub struct ExchangeCursor(Option<vec::IntoIter<ExchangeId>>);

/// How far a list of bindings has come.
#[derive(Debug, Default)]
pub struct BindingCursor {
    /// Each queue is bound to the default exchange.
    queues: QueueCursor,
    exchanges: ExchangeCursor,
    current: Option<(ExchangeId, Option<BindingKey>)>,
}

/// How far a list of channels or consumers has come. Connections that come after it has begun are not in it.
#[derive(Debug, Default)]
pub struct SessionCursor {
    sessions: Option<vec::IntoIter<ConnectionId>>,
    /// The connection that is being listed, and the next place in it.
    current: Option<(ConnectionId, usize)>,
}

/// What is left of the work of one hold.
struct Units(usize);

impl Units {
    fn are_left(&self) -> bool {
        self.0 > 0
    }

    fn spend(&mut self, units: usize) {
        self.0 = self.0.saturating_sub(units);
    }

    /// For one that is listed, whose arguments are copied.
    fn spend_on(&mut self, arguments: &FieldTable) {
        self.spend(1 + arguments.as_table().as_bytes().len() / VIEWED_BYTES_PER_UNIT);
    }
}

impl VirtualHost {
    /// Says how a connection is called outside.
    pub fn describe(&mut self, connection: ConnectionId, details: ConnectionDetails) {
        if let Some(session) = self.sessions.get_mut(connection) {
            session.details = Some(details);
        }
    }

    /// Adds the next queues to a list, for so many units of work: a queue is one, and large arguments count more.
    pub fn list_queues(&self, cursor: &mut QueueCursor, units: u32, list: &mut Vec<QueueView>) -> Progress {
        self.walk_queues(cursor, &mut Units(units as usize), |queue| list.push(self.view_queue(queue)))
    }

    /// The queue of that name.
    pub fn queue_view(&self, name: &str) -> Option<QueueView> {
        let queue = self.queue_names.get(name).and_then(|&id| self.queues.get(id))?;
        Some(self.view_queue(queue))
    }

    /// Adds the next exchanges to a list, for so many units of work. The default exchange comes first.
    pub fn list_exchanges(
        &self,
        cursor: &mut ExchangeCursor,
        units: u32,
        list: &mut Vec<ExchangeView>,
    ) -> Progress {
        let mut units = Units(units as usize);
        if cursor.0.is_none() {
            list.push(self.default_exchange());
        }
        let exchanges = cursor.0.get_or_insert_with(|| self.exchanges.ids().into_iter());
        while units.are_left() {
            let Some(id) = exchanges.next() else { return Progress::Done };
            units.spend(1);
            if let Some(exchange) = self.exchanges.get(id) {
                units.spend_on(&exchange.declared.arguments);
                list.push(self.view_exchange(exchange));
            }
        }
        Progress::More
    }

    /// The exchange of that name.
    pub fn exchange_view(&self, name: &str) -> Option<ExchangeView> {
        if name.is_empty() {
            return Some(self.default_exchange());
        }
        self.exchanges.find(name).and_then(|id| self.exchanges.get(id)).map(|exchange| self.view_exchange(exchange))
    }

    /// Adds the next bindings to a list, for so many units of work. Those of the default exchange, one for each queue, come
    /// first.
    pub fn list_bindings(&self, cursor: &mut BindingCursor, units: u32, list: &mut Vec<BindingView>) -> Progress {
        let mut units = Units(units as usize);
        let of_queue = |queue: &Queue| list.push(self.view_default_binding(&queue.declared.name));
        if self.walk_queues(&mut cursor.queues, &mut units, of_queue) == Progress::More {
            return Progress::More;
        }
        let exchanges = cursor.exchanges.0.get_or_insert_with(|| self.exchanges.ids().into_iter());
        while units.are_left() {
            units.spend(1);
            let Some((id, after)) = cursor.current.take().or_else(|| Some((exchanges.next()?, None))) else {
                return Progress::Done;
            };
            let Some(exchange) = self.exchanges.get(id) else { continue };
            let after = after.as_ref().map_or(Bound::Unbounded, Bound::Excluded);
            if let Some(binding) = exchange.first_binding(after) {
                units.spend_on(&binding.arguments);
                list.extend(self.view_binding(exchange, binding));
                cursor.current = Some((id, Some(binding.clone())));
            }
        }
        Progress::More
    }

    /// Adds the next channels to a list, for so many units of work.
    pub fn list_channels(&self, cursor: &mut SessionCursor, units: u32, list: &mut Vec<ChannelView>) -> Progress {
        self.walk_sessions(
            cursor,
            &mut Units(units as usize),
            Session::channel_slots,
            |session, slot, channel, _| {
                let id = u16::try_from(slot).ok().and_then(ChannelId::new);
                if let Some(id) = id.filter(|_| !channel.failed) {
                    list.push(self.view_channel(session, id, channel));
                }
            },
        )
    }

    /// Adds the next consumers to a list, for so many units of work.
    pub fn list_consumers(&self, cursor: &mut SessionCursor, units: u32, list: &mut Vec<ConsumerView>) -> Progress {
        let slots = Session::consumer_slots;
        self.walk_sessions(cursor, &mut Units(units as usize), slots, |session, _, consumer, units| {
            units.spend_on(&consumer.arguments);
            list.extend(self.view_consumer(session, consumer));
        })
    }

    /// How many channels a connection has.
    pub fn channel_count(&self, connection: ConnectionId) -> usize {
        let slots = self.sessions.get(connection).map(Session::channel_slots);
        slots.map_or(0, |slots| slots.iter().flatten().filter(|channel| !channel.failed).count())
    }

    /// How many queues and exchanges there are.
    pub fn object_counts(&self) -> (usize, usize) {
        (self.queue_names.len(), self.exchanges.len() + 1)
    }

    fn walk_queues<'a>(
        &'a self,
        cursor: &mut QueueCursor,
        units: &mut Units,
        mut found: impl FnMut(&'a Queue),
    ) -> Progress {
        let last = *cursor.last.get_or_insert(QueueNumber(self.last_queue_number));
        while units.are_left() {
            let next = self.queue_behind(cursor.after).filter(|&(number, _)| number <= last);
            let Some((number, id)) = next else { return Progress::Done };
            cursor.after = number;
            units.spend(1);
            if let Some(queue) = self.queues.get(id).filter(|queue| queue.declared.standing == Standing::Open) {
                units.spend_on(&queue.declared.raw_arguments);
                found(queue);
            }
        }
        Progress::More
    }

    /// Walks through the slots of each connection.
    fn walk_sessions<T>(
        &self,
        cursor: &mut SessionCursor,
        units: &mut Units,
        slots: impl Fn(&Session) -> &[Option<T>],
        mut found: impl FnMut(&Session, usize, &T, &mut Units),
    ) -> Progress {
        let sessions = cursor.sessions.get_or_insert_with(|| self.sessions.keys().collect::<Vec<_>>().into_iter());
        while units.are_left() {
            let Some((id, first)) = cursor.current.take().or_else(|| Some((sessions.next()?, 0))) else {
                return Progress::Done;
            };
            units.spend(1);
            let Some(session) = self.sessions.get(id).filter(|session| !session.is_administrator) else { continue };
            for (slot, held) in slots(session).iter().enumerate().skip(first) {
                if !units.are_left() {
                    cursor.current = Some((id, slot));
                    break;
                }
                units.spend(1);
                if let Some(held) = held {
                    found(session, slot, held, units);
                }
            }
        }
        Progress::More
    }

    fn view_queue(&self, queue: &Queue) -> QueueView {
        let declared = &queue.declared;
        let (messages, messages_ready) = (queue.len(), queue.ready());
        let owner = declared.owner.and_then(|owner| self.sessions.get(owner));
        QueueView {
            name: declared.name.clone(),
            vhost: self.name.clone(),
            queue_type: declared.arguments.queue_type.as_str(),
            durable: declared.durable,
            auto_delete: declared.auto_delete,
            exclusive: declared.owner.is_some(),
            arguments: Fields(declared.raw_arguments.clone()),
            policy: name_of(queue.policies.policy()),
            operator_policy: name_of(queue.policies.operator_policy()),
            effective_policy_definition: Fields(queue.policies.effective_definition()),
            state: "running",
            messages,
            messages_ready,
            messages_unacknowledged: messages.saturating_sub(messages_ready + queue.dying().len()),
            consumers: queue.consumers.count(),
            owner_pid_details: owner.and_then(|session| session.details.clone()),
        }
    }

    fn default_exchange(&self) -> ExchangeView {
        ExchangeView {
            name: ShortString::default().into(),
            vhost: self.name.clone(),
            kind: "direct",
            durable: true,
            auto_delete: false,
            internal: false,
            arguments: Fields::default(),
            policy: None,
            messages_delayed: None,
        }
    }

    fn view_exchange(&self, exchange: &Exchange) -> ExchangeView {
        let declared = &exchange.declared;
        let delay_queue = self.exchanges.delay_queue(declared.name.as_str());
        ExchangeView {
            name: declared.name.clone(),
            vhost: self.name.clone(),
            kind: declared.type_name(),
            durable: declared.durable,
            auto_delete: declared.auto_delete,
            internal: declared.internal,
            arguments: Fields(declared.arguments.clone()),
            policy: name_of(exchange.policies.policy()),
            messages_delayed: delay_queue.and_then(|id| self.queues.get(id)).map(Queue::len),
        }
    }

    fn view_default_binding(&self, queue: &QueueName) -> BindingView {
        let name = queue.to_string();
        BindingView {
            source: ShortString::default().into(),
            vhost: self.name.clone(),
            destination: name.clone(),
            destination_type: "queue",
            routing_key: name,
            arguments: Fields::default(),
        }
    }

    pub(super) fn view_binding(&self, source: &Exchange, binding: &BindingKey) -> Option<BindingView> {
        let (destination, destination_type) = match binding.target {
            Target::Queue(id) => (self.queues.get(id)?.declared.name.as_str(), "queue"),
            Target::Exchange(id) => (self.exchanges.get(id)?.declared.name.as_str(), "exchange"),
        };
        Some(BindingView {
            source: source.declared.name.clone(),
            vhost: self.name.clone(),
            destination: destination.into(),
            destination_type,
            routing_key: binding.routing_key.to_string(),
            arguments: Fields(binding.arguments.clone()),
        })
    }

    fn view_channel(&self, session: &Session, id: ChannelId, channel: &Channel) -> ChannelView {
        ChannelView {
            name: session.channel_name(id),
            number: id.number(),
            user: session.login.user.clone(),
            vhost: self.name.clone(),
            state: "running",
            transactional: channel.transaction.is_some(),
            consumer_count: channel.consumers.len(),
            messages_unacknowledged: channel.unacked.len(),
            prefetch_count: channel.prefetch_per_consumer.map_or(0, NonZeroU64::get),
            global_prefetch_count: channel.prefetch.map_or(0, NonZeroU64::get),
            connection_details: session.details.clone(),
        }
    }

    fn view_consumer(&self, session: &Session, consumer: &Consumer) -> Option<ConsumerView> {
        let queue = self.queues.get(consumer.queue)?;
        let active = queue.consumers.may_serve(consumer.seat) || queue.consumers.is_yielding(consumer.seat);
        Some(ConsumerView {
            consumer_tag: consumer.tag.clone(),
            queue: QueueOfConsumer { name: queue.declared.name.clone(), vhost: self.name.clone() },
            channel_details: ChannelOfConsumer {
                name: session.channel_name(consumer.channel),
                number: consumer.channel.number(),
                user: session.login.user.clone(),
                connection_name: session.details.as_ref().map_or_else(String::new, |details| details.name().into()),
            },
            ack_required: consumer.ack_mode == AckMode::Manual,
            prefetch_count: consumer.prefetch.map_or(0, NonZeroU64::get),
            exclusive: queue.exclusive_consumer == Some(consumer.seat),
            active,
            activity_status: match (queue.consumers.has_single_active(), active) {
                (false, _) => "up",
                (true, true) => "single_active",
                (true, false) => "waiting",
            },
            arguments: Fields(consumer.arguments.clone()),
        })
    }
}

fn name_of(policy: Option<&Policy>) -> Option<PolicyName> {
    policy.map(|policy| policy.source().name.clone())
}

#[cfg(test)]
mod tests;
