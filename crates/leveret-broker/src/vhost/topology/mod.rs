//! Declaring, binding and deleting queues and exchanges.
//!
//! Owns: finding what a client names, whether it may touch it, and whether two declarations are the same.

mod bindings;
mod exchanges;
mod queues;

use leveret_amqp::Value;

pub(super) use self::exchanges::{alternate_of, kind_of};

use crate::access::{Permission, Resource, authorize};
use crate::names::ChannelId;
use crate::vhost::command::QueueRef;
use crate::vhost::exchange::{ExchangeId, ExchangeKind};
use crate::vhost::queue::arguments::shown;
use crate::vhost::refusal::Refusal;
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

    fn is_administrator(&self, from: ConnectionId) -> bool {
        self.sessions.get(from).is_some_and(|session| session.is_administrator)
    }

    pub(super) fn authorize(
        &mut self,
        from: ConnectionId,
        permission: Permission,
        resource: Resource<'_>,
    ) -> Result<(), Refusal> {
        let Some(session) = self.sessions.get_mut(from) else { return Ok(()) };
        Ok(session.allowed.check(&session.login, permission, resource, &self.name)?)
    }

    /// Whether a user may publish or bind with a routing key, if the exchange is a topic exchange.
    pub(super) fn authorize_topic(
        &mut self,
        from: ConnectionId,
        permission: Permission,
        exchange: ExchangeId,
        routing_key: &str,
    ) -> Result<(), Refusal> {
        let Some(session) = self.sessions.get(from) else { return Ok(()) };
        if session.login.grant.topics.is_empty() {
            return Ok(());
        }
        let Some(exchange) = self.exchanges.get(exchange) else { return Ok(()) };
        if exchange.declared.kind != ExchangeKind::Topic {
            return Ok(());
        }
        let exchange = exchange.declared.name.as_str();
        let resource = Resource::Topic { exchange, routing_key };
        Ok(authorize(&session.login, permission, resource, &self.name)?)
    }

    /// Passes on what [`Self::find_queue`] has found. Whoever may not use a queue is not told whether it exists.
    pub(super) fn authorize_queue(
        &mut self,
        from: ConnectionId,
        permission: Permission,
        found: Result<QueueId, Refusal>,
    ) -> Result<QueueId, Refusal> {
        let name = match &found {
            Ok(id) => self.queues.get(*id).map(|queue| queue.declared.name.as_str()),
            Err(Refusal::NoQueue { queue, .. }) => Some(queue.as_str()),
            Err(_) => None,
        };
        if let Some(name) = name
            && let Some(session) = self.sessions.get_mut(from)
        {
            session.allowed.check(&session.login, permission, Resource::Queue(name), &self.name)?;
        }
        found
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
}

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
