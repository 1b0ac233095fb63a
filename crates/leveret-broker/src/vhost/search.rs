//! The search for the queues behind an exchange, which may take more than one hold of the lock.
//!
//! Owns: how far a search has come, and the publishes whose search is not finished.
//! Must not know: what becomes of a message in a queue.
//!
//! A search takes steps: looking up a key, a node of a topic, a binding, a target. When those of one hold are used up, the
//! publish and its search are put aside, everybody else goes on, and the connection that published goes on with the
//! search in its next hold. It finds what was bound at one instant: if bindings change meanwhile, it begins again. Then
//! who binds waits for it. Queues and connections that end take bindings away all the same, but none is added, so it
//! cannot begin again for ever.

use std::collections::{BTreeMap, BTreeSet};

use leveret_amqp::ShortString;
use rand::RngCore;
use smallvec::SmallVec;

use crate::limits::STEPS_PER_UNIT;
use crate::message::Message;
use crate::moment::Moment;
use crate::vhost::command::{BASIC_PUBLISH, Command, Commands, Publish};
use crate::vhost::effects::Effects;
use crate::vhost::exchange::{ExchangeId, Exchanges, MatchScratch, Subject, Target};
use crate::vhost::route::Route;
use crate::vhost::{ConnectionId, VirtualHost};

/// Queues in a route from which on it is freed of duplicates while it grows.
const SORTED_FROM: usize = 4096;

/// Exchanges that keep a message for those who are bound later.
pub(super) type Keepers = Vec<ExchangeId>;

/// Routing keys of one message.
pub(super) type Keys<'a> = SmallVec<[&'a str; 4]>;

/// Somebody who watches a search.
pub(super) trait Watch {
    /// The search has found that an exchange leads there.
    fn found(&mut self, from: ExchangeId, target: Target);
    /// An exchange has led nowhere, and the search goes on with its alternate exchange, if there is one of that name.
    fn alternate(&mut self, from: ExchangeId);
}

/// Nobody.
impl Watch for () {
    fn found(&mut self, _: ExchangeId, _: Target) {}

    fn alternate(&mut self, _: ExchangeId) {}
}

/// How far a search has come. Each exchange is visited once, so circles end.
#[derive(Debug)]
pub(super) struct Search {
    /// The bindings that it searches.
    pub(super) version: u64,
    /// Whether what it has found depends on the keys alone.
    pub(super) by_key: bool,
    route: Route,
    keepers: Keepers,
    /// The length from which on the route is freed of duplicates again.
    sorted_from: usize,
    visited: BTreeSet<ExchangeId>,
    pending: SmallVec<[ExchangeId; 4]>,
    at: Option<Place>,
    scratch: MatchScratch,
}

/// An exchange and a key.
#[derive(Debug)]
struct Place {
    exchange: ExchangeId,
    nth_key: usize,
    /// Whether the search for this key has begun in `scratch`.
    is_begun: bool,
    /// Whether the exchange has led somewhere under any key so far.
    has_matched: bool,
}

impl Search {
    pub(super) fn new(start: ExchangeId, version: u64, mut scratch: MatchScratch) -> Self {
        scratch.forget_message();
        Search {
            version,
            by_key: true,
            route: Route::new(),
            keepers: Keepers::new(),
            sorted_from: SORTED_FROM,
            visited: BTreeSet::from([start]),
            pending: SmallVec::from_slice(&[start]),
            at: None,
            scratch,
        }
    }

    /// Follows bindings and alternate exchanges. Stops soon after `steps` are used up: false if something is left then.
    pub(super) fn go_on(
        &mut self,
        exchanges: &Exchanges,
        keys: &[&str],
        message: &Message,
        random: &mut impl RngCore,
        steps: &mut usize,
    ) -> bool {
        self.go_on_watched(exchanges, keys, message, random, steps, &mut ())
    }

    /// The same, while somebody watches.
    pub(super) fn go_on_watched(
        &mut self,
        exchanges: &Exchanges,
        keys: &[&str],
        message: &Message,
        random: &mut impl RngCore,
        steps: &mut usize,
        watch: &mut impl Watch,
    ) -> bool {
        let properties = message.decode_header().map(|header| header.properties).unwrap_or_default();
        let subject = Subject { keys, properties };
        while *steps > 0 {
            let Some(at) = &mut self.at else {
                let Some(exchange) = self.pending.pop() else { return true };
                *steps -= 1;
                if let Some(queue) = exchanges.delays_in(exchange, subject.headers()) {
                    self.by_key = false;
                    self.route.push(queue);
                    continue;
                }
                self.at = Some(Place { exchange, nth_key: 0, is_begun: false, has_matched: false });
                continue;
            };
            let Some(exchange) = exchanges.get(at.exchange) else {
                self.at = None;
                continue;
            };
            let (visited, pending) = (&mut self.visited, &mut self.pending);
            let mut visit = |id: ExchangeId| {
                if visited.insert(id) {
                    pending.push(id);
                }
            };
            let keys = if exchange.looks_at_each_key() { keys } else { &keys[..1] };
            let Some(&key) = keys.get(at.nth_key) else {
                if !at.has_matched
                    && let Some(alternate) = &exchange.alternate
                {
                    watch.alternate(at.exchange);
                    exchanges.find(alternate.as_str()).into_iter().for_each(visit);
                }
                self.at = None;
                continue;
            };
            if !std::mem::replace(&mut at.is_begun, true) {
                *steps = steps.saturating_sub(STEPS_PER_UNIT);
                self.by_key &= exchange.routes_by_key();
                exchange.begin_match(key, &subject, random, &mut self.scratch, steps);
                if exchange.is_to_keep(&subject) {
                    self.keepers.push(at.exchange);
                }
            }
            let route = &mut self.route;
            let is_done = exchange.go_on_matching(key, &mut self.scratch, steps, |target| {
                watch.found(at.exchange, target);
                at.has_matched = true;
                match target {
                    Target::Queue(queue) => route.push(queue),
                    Target::Exchange(next) => visit(next),
                }
            });
            if is_done {
                at.nth_key += 1;
                at.is_begun = false;
            }
            if route.len() > self.sorted_from {
                // Many keys may lead to the same queues: keep the list as long as the queues are many.
                route.sort_unstable();
                route.dedup();
                self.sorted_from = 2 * route.len() + SORTED_FROM;
            }
        }
        self.at.is_none() && self.pending.is_empty()
    }

    /// The queues that were found, each once, the exchanges that keep the message, and the room for the next search.
    pub(super) fn finish(mut self) -> (Route, Keepers, MatchScratch) {
        self.route.sort_unstable();
        self.route.dedup();
        (self.route, self.keepers, self.scratch)
    }
}

/// The publishes whose search is not finished, one of a connection at most.
pub(super) type Searching = BTreeMap<ConnectionId, Box<Unfinished>>;

/// A publish whose search is not finished. No other command of its connection is begun until it is.
#[derive(Debug)]
pub(super) struct Unfinished {
    pub(super) publish: Publish,
    pub(super) search: Search,
    /// Whether it has begun again, as bindings changed.
    pub(super) is_again: bool,
}

/// All routing keys of a message.
pub(super) fn keys_of<'a>(message: &'a Message, more_keys: Option<&'a [ShortString]>) -> Keys<'a> {
    let more = more_keys.unwrap_or_default().iter().map(ShortString::as_str);
    std::iter::once(message.routing_key()).chain(more).collect()
}

impl VirtualHost {
    /// The queues that an exchange, or if there is none the default exchange, leads to under any of these keys, each once,
    /// however many units that takes; and the exchanges on the way that keep the message.
    pub(super) fn queues_behind(
        &mut self,
        exchange: Option<ExchangeId>,
        keys: &[&str],
        message: &Message,
    ) -> (Route, Keepers) {
        let Some(exchange) = exchange else { return (self.queues_named(keys), Keepers::new()) };
        let mut search = self.begin_search(exchange);
        let mut left = usize::MAX;
        while !search.go_on(&self.exchanges, keys, message, &mut self.random, &mut left) {}
        self.spend((usize::MAX - left) / STEPS_PER_UNIT);
        let (route, keepers, scratch) = search.finish();
        self.match_scratch = scratch;
        (route, keepers)
    }

    /// A search from an exchange that has found nothing yet.
    pub(super) fn begin_search(&mut self, start: ExchangeId) -> Search {
        Search::new(start, self.bindings_version, std::mem::take(&mut self.match_scratch))
    }

    /// The queues that the default exchange leads to, each once.
    pub(super) fn queues_named(&self, keys: &[&str]) -> Route {
        let mut route: Route = keys.iter().filter_map(|key| self.queue_names.get(*key).copied()).collect();
        route.sort_unstable();
        route.dedup();
        route
    }

    /// Goes on with a search as far as this hold of the lock allows; true once it is finished.
    pub(super) fn search(&mut self, search: &mut Search, publish: &Publish) -> bool {
        let keys = keys_of(&publish.message, publish.more_keys.as_deref());
        let most = self.units as usize * STEPS_PER_UNIT;
        let mut left = most;
        let is_finished = search.go_on(&self.exchanges, &keys, &publish.message, &mut self.random, &mut left);
        self.spend((most - left) / STEPS_PER_UNIT);
        is_finished
    }

    /// Goes on with the publish of a connection whose search is not finished, if there is one.
    pub(super) fn go_on_searching(&mut self, now: Moment, from: ConnectionId, effects: &mut Effects) {
        let Some(unfinished) = self.searching.remove(&from) else { return };
        let Unfinished { publish, search, is_again } = *unfinished;
        let channel = publish.channel;
        if !self.channel_is_open(from, channel) {
            return;
        }
        let is_current = search.version == self.bindings_version;
        if is_current {
            if let Err(refusal) = self.publish_behind(now, from, publish, search, effects) {
                self.refuse(from, channel, BASIC_PUBLISH, &refusal, effects);
            }
        } else {
            self.execute(now, from, Command::Publish(publish), effects);
        }
        if let Some(unfinished) = self.searching.get_mut(&from) {
            unfinished.is_again = is_again || !is_current;
        }
    }

    /// Whether the next command may change bindings, and a search has begun again because of such a one: it is called
    /// again after the search had a turn.
    pub(super) fn waits_for_search(&mut self, commands: &Commands) -> bool {
        let waits = !self.searching.is_empty()
            && commands.queue.front().is_some_and(Command::changes_bindings)
            && self.searching.values().any(|unfinished| unfinished.is_again);
        if waits {
            self.units = 0;
        }
        waits
    }
}

#[cfg(test)]
mod tests;
