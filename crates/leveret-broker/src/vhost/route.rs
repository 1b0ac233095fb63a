//! From exchange and routing key to queues, and remembering the way.

use std::collections::BTreeSet;

use leveret_amqp::{ShortString, Table};
use smallvec::SmallVec;

use crate::access::{Permission, Resource, authorize};
use crate::limits::{ROUTES_REMEMBERED, STEPS_PER_UNIT};
use crate::message::Message;
use crate::vhost::exchange::{ExchangeId, MatchScratch, Target};
use crate::vhost::refusal::Refusal;
use crate::vhost::{ConnectionId, QueueId, VirtualHost};

/// The queues that a message goes to, each once.
pub(crate) type Route = SmallVec<[QueueId; 4]>;

/// The last routes of one connection.
///
/// A route through an exchange is valid for one version of the bindings. A route through the default exchange is
/// valid while its queue exists: ids are never given twice, and a missing queue is never remembered.
/// That a route is here also means that the user may write to its exchange.
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

/// Queues in a route from which on it is freed of duplicates while it grows.
const SORTED_FROM: usize = 4096;

impl RouteMemory {
    fn recall(&self, key: &[u8], version: u64) -> Option<&Route> {
        let known = self.remembered.iter().find(|known| *known.key == *key)?;
        known.version.is_none_or(|valid_for| valid_for == version).then_some(&known.route)
    }

    fn remember(&mut self, key: &[u8], version: Option<u64>, route: &Route) {
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
    /// The queues that a message goes to.
    pub(crate) fn route(
        &mut self,
        from: ConnectionId,
        message: &Message,
        more_keys: Option<&[ShortString]>,
    ) -> Result<Route, Refusal> {
        let Some(session) = self.sessions.get_mut(from) else { return Ok(Route::new()) };
        if more_keys.is_none()
            && let Some(route) = session.routes.recall(message.route(), self.bindings_version)
            && route.iter().all(|&queue| self.queues.contains_key(queue))
        {
            return Ok(route.clone());
        }
        let exchange = message.exchange();
        authorize(&session.login, Permission::Write, Resource::Exchange(exchange))?;
        let mut keys: SmallVec<[&str; 4]> = SmallVec::new();
        keys.push(message.routing_key());
        keys.extend(more_keys.unwrap_or_default().iter().map(ShortString::as_str));
        let id = if exchange.is_empty() {
            None
        } else {
            let id = self.exchanges.find_or_refuse(exchange, self.name.as_str())?;
            let declared = self.exchanges.get(id).map(|exchange| &exchange.declared);
            if declared.is_some_and(|declared| declared.internal) {
                let vhost = self.name.to_string();
                return Err(Refusal::InternalExchange { exchange: exchange.into(), vhost });
            }
            Some(id)
        };
        let (route, by_key) = self.queues_behind(id, &keys, message);
        let version = (id.is_some() && by_key).then_some(self.bindings_version);
        let is_worth_it = if exchange.is_empty() { !route.is_empty() } else { version.is_some() };
        if more_keys.is_none()
            && is_worth_it
            && let Some(session) = self.sessions.get_mut(from)
        {
            session.routes.remember(message.route(), version, &route);
        }
        Ok(route)
    }

    /// The queues that an exchange, or if there is none the default exchange, leads to under any of these keys, each once.
    /// Also whether that depends on the keys alone.
    pub(super) fn queues_behind(
        &mut self,
        exchange: Option<ExchangeId>,
        keys: &[&str],
        message: &Message,
    ) -> (Route, bool) {
        let mut route = Route::new();
        let mut by_key = true;
        if let Some(id) = exchange {
            let mut scratch = std::mem::take(&mut self.match_scratch);
            by_key = self.route_from(id, keys, message, &mut route, &mut scratch);
            self.match_scratch = scratch;
        } else {
            route.extend(keys.iter().filter_map(|key| self.queue_names.get(*key).copied()));
        }
        route.sort_unstable();
        route.dedup();
        (route, by_key)
    }

    /// Follows bindings and alternate exchanges from one exchange. Each exchange is visited once, so cycles end.
    /// Returns whether the result depends on the keys alone.
    fn route_from(
        &mut self,
        start: ExchangeId,
        keys: &[&str],
        message: &Message,
        route: &mut Route,
        scratch: &mut MatchScratch,
    ) -> bool {
        let headers = message.decode_header().ok().and_then(|header| header.properties.headers);
        let headers = headers.unwrap_or(Table::EMPTY);
        let mut by_key = true;
        let mut visited: BTreeSet<ExchangeId> = BTreeSet::new();
        let mut pending: SmallVec<[ExchangeId; 4]> = SmallVec::new();
        let (mut sorted_below, mut steps) = (SORTED_FROM, 0);
        visited.insert(start);
        pending.push(start);
        while let Some(id) = pending.pop() {
            let Some(exchange) = self.exchanges.get(id) else { continue };
            by_key &= exchange.routes_by_key();
            let mut matched = false;
            let mut visit = |id: ExchangeId| {
                if visited.insert(id) {
                    pending.push(id);
                }
            };
            let keys = if exchange.looks_at_keys() { keys } else { &keys[..1] };
            steps += keys.len() * STEPS_PER_UNIT;
            for key in keys {
                if route.len() > sorted_below {
                    // Many keys may lead to the same queues: keep the list as long as the queues are many.
                    route.sort_unstable();
                    route.dedup();
                    sorted_below = 2 * route.len() + SORTED_FROM;
                }
                let mut targets = 0;
                steps += exchange.for_each_match(key, headers, scratch, |target| {
                    matched = true;
                    targets += 1;
                    match target {
                        Target::Queue(queue) => route.push(queue),
                        Target::Exchange(next) => visit(next),
                    }
                });
                steps += targets;
            }
            if !matched && let Some(alternate) = &exchange.declared.alternate {
                self.exchanges.find(alternate.as_str()).into_iter().for_each(visit);
            }
        }
        self.spend(steps / STEPS_PER_UNIT);
        by_key
    }
}
