//! The queues of a message that a client publishes: the ways that a connection remembers, and where others are searched.

use leveret_amqp::ShortString;
use leveret_planted::{Bug, planted};
use smallvec::SmallVec;

use crate::access::{Permission, Resource};
use crate::limits::ROUTES_REMEMBERED;
use crate::message::Message;
use crate::vhost::exchange::ExchangeId;
use crate::vhost::refusal::Refusal;
use crate::vhost::search::keys_of;
use crate::vhost::{ConnectionId, QueueId, VirtualHost};

/// The queues that a message goes to, each once.
pub(crate) type Route = SmallVec<[QueueId; 4]>;

/// The last routes of one connection.
///
/// A route through an exchange is valid for one version of the bindings. A route through the default exchange is
/// valid while its queue exists: ids are never given twice, and a missing queue is never remembered.
/// That a route is here also means that the user may write to its exchange; all are forgotten when permissions change.
#[derive(Debug, Default)]
pub(crate) struct RouteMemory {
    remembered: Vec<Remembered>,
    /// The one to forget next.
    oldest: usize,
}

#[derive(Debug)]
struct Remembered {
    /// Exchange and routing key as a message carries them.
    key: Box<[u8]>,
    version: Option<u64>,
    route: Route,
}

/// Where the queues of a message are.
#[derive(Debug)]
pub(super) enum Way {
    /// These are they.
    To(Route),
    /// Behind an exchange, where they have to be searched for.
    Behind(ExchangeId),
}

impl RouteMemory {
    pub(super) fn recall(&self, key: &[u8], version: u64) -> Option<&Route> {
        let known = self.remembered.iter().find(|known| *known.key == *key)?;
        let is_valid = |valid_for| valid_for == version || planted(Bug::StaleRoute);
        known.version.is_none_or(is_valid).then_some(&known.route)
    }

    pub(super) fn remember(&mut self, key: &[u8], version: Option<u64>, route: &Route) {
        let new = Remembered { key: key.into(), version, route: route.clone() };
        if let Some(known) = self.remembered.iter_mut().find(|known| *known.key == *key) {
            *known = new;
        } else if self.remembered.len() < ROUTES_REMEMBERED {
            self.remembered.push(new);
        } else {
            self.remembered[self.oldest] = new;
            self.oldest = (self.oldest + 1) % ROUTES_REMEMBERED;
        }
    }
}

impl VirtualHost {
    /// Where the queues of a message are that a client publishes.
    pub(super) fn route(
        &mut self,
        from: ConnectionId,
        message: &Message,
        more_keys: Option<&[ShortString]>,
    ) -> Result<Way, Refusal> {
        let Some(session) = self.sessions.get_mut(from) else { return Ok(Way::To(Route::new())) };
        if more_keys.is_none()
            && let Some(route) = session.routes.recall(message.route(), self.bindings_version)
            && route.iter().all(|&queue| self.queues.contains_key(queue))
        {
            return Ok(Way::To(Route::from_slice(route)));
        }
        let exchange = message.exchange();
        session.allowed.check(&session.login, Permission::Write, Resource::Exchange(exchange), &self.name)?;
        if exchange.is_empty() {
            let route = self.queues_named(&keys_of(message, more_keys));
            if more_keys.is_none()
                && !route.is_empty()
                && let Some(session) = self.sessions.get_mut(from)
            {
                session.routes.remember(message.route(), None, &route);
            }
            return Ok(Way::To(route));
        }
        let id = self.exchanges.find_or_refuse(exchange, self.name.as_str())?;
        let declared = self.exchanges.get(id).map(|exchange| &exchange.declared);
        if declared.is_some_and(|declared| declared.internal) {
            let vhost = self.name.to_string();
            return Err(Refusal::InternalExchange { exchange: exchange.into(), vhost });
        }
        for key in keys_of(message, more_keys) {
            self.authorize_topic(from, Permission::Write, id, key)?;
        }
        Ok(Way::Behind(id))
    }
}
