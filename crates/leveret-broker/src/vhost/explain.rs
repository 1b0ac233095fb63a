//! Where a message would go, and why: the search of a publish, watched. It changes nothing.
//!
//! Owns: what is told of exchanges, bindings and queues on the way.
//! Must not know: a matcher of its own; what matches is what the search finds.

use std::borrow::Cow;
use std::num::NonZeroU32;
use std::time::Duration;

use leveret_amqp::{BasicProperties, FieldTable, ShortString};
use rand::SeedableRng;
use rand::rngs::StdRng;
use serde::Serialize;

use crate::access::{Login, Permission, Resource, authorize};
use crate::connection::reply::Exception;
use crate::limits::{EXPLAINED_MAX, EXPLAINED_TRIES_MAX, STEPS_PER_UNIT, UNITS_PER_HOLD};
use crate::message::Message;
use crate::vhost::delay::{DELAY, delay_ms};
use crate::vhost::exchange::{BindingKey, ExchangeId, ExchangeKind, MatchScratch, Subject, Target, Timing};
use crate::vhost::queue::DeadLetters;
use crate::vhost::queue::arguments::OVERFLOWS;
use crate::vhost::refusal::Refusal;
use crate::vhost::route::Route;
use crate::vhost::search::{Search, Watch};
use crate::vhost::{QueueId, VirtualHost};
use crate::views::Fields;

/// A message that somebody asks about.
#[derive(Debug)]
pub struct Question {
    exchange: ShortString,
    message: Message,
    routing_key: ShortString,
    headers: FieldTable,
    delay: Delay,
    /// Who would publish it; none: somebody who may.
    login: Option<Login>,
    /// For exchanges that pick one of many.
    random: StdRng,
    search: Option<(Search, Seen)>,
}

/// What a message says of a delay.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Delay {
    Nothing,
    /// So many milliseconds.
    Of(NonZeroU32),
    /// Something that is no delay.
    Unreadable,
}

/// What a message would go through. Of bindings and queues, the first thousand of each are told.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Explanation {
    /// The virtual host.
    pub vhost: String,
    /// Where it would be published.
    pub exchange: String,
    /// The key it would have.
    pub routing_key: String,
    /// Why it would not be taken at all: what a client would be told.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub refused: Option<String>,
    /// What the user may do of what this needs.
    pub permissions: Vec<PermissionStep>,
    /// The exchanges that it goes through, in the order in which they are looked at.
    pub exchanges: Vec<ExchangeStep>,
    /// The queues that it reaches.
    pub queues: Vec<QueueStep>,
    /// How many queues it reaches, told or not.
    pub queue_count: usize,
}

/// A permission that a publish needs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct PermissionStep {
    /// `write`
    pub permission: String,
    /// For example `exchange 'x'`.
    pub resource: String,
    /// Whether the user has it.
    pub granted: bool,
}

/// An exchange on the way.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ExchangeStep {
    /// Its name.
    pub name: String,
    /// Its type.
    #[serde(rename = "type")]
    pub kind: &'static str,
    /// The policy in force.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub policy: Option<String>,
    /// The bindings that match.
    pub matched: Vec<MatchStep>,
    /// How many bindings it has.
    pub bindings: usize,
    /// Where messages go that match none of them.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub alternate_exchange: Option<String>,
    /// Whether this message goes there.
    pub takes_alternate: bool,
    /// What else there is to know.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub note: Option<Cow<'static, str>>,
}

/// A binding that matches.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct MatchStep {
    /// `queue` or `exchange`.
    pub destination_type: &'static str,
    /// Its name.
    pub destination: String,
    /// The binding key.
    pub routing_key: String,
    /// Its arguments.
    pub arguments: Fields,
    /// Why it matches.
    pub why: String,
}

/// A queue that the message reaches.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct QueueStep {
    /// Its name.
    pub name: String,
    /// Its type.
    #[serde(rename = "type")]
    pub kind: &'static str,
    /// Messages in it.
    pub messages: usize,
    /// Consumers of it.
    pub consumers: u32,
    /// The policy in force.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub policy: Option<String>,
    /// The operator policy in force.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub operator_policy: Option<String>,
    /// Milliseconds that a message may stay, unless it says less.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub message_ttl: Option<u64>,
    /// Milliseconds after which the queue goes if nobody uses it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub expires: Option<u64>,
    /// Ready messages that it may hold.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_length: Option<u64>,
    /// Bytes of ready messages that it may hold.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_length_bytes: Option<u64>,
    /// What happens beyond that, if there is a limit.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub overflow: Option<&'static str>,
    /// How often a message may fail.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub delivery_limit: Option<u64>,
    /// Milliseconds that a consumer may hold a message.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub consumer_timeout: Option<u64>,
    /// Where it goes if it dies here.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dead_letters: Option<DeadLetterStep>,
}

/// Where dead letters of a queue go.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct DeadLetterStep {
    /// The exchange; empty for the default exchange.
    pub exchange: String,
    /// The key that the letter has.
    pub routing_key: String,
    /// Whether there is such an exchange: if not, letters are gone.
    pub exists: bool,
    /// The queues that it reaches.
    pub queues: Vec<String>,
    /// Whether that are all: one explanation looks up letters of many queues for no longer than one hold of the lock.
    #[serde(rename = "complete")]
    pub is_complete: bool,
}

/// What a search has seen.
#[derive(Debug, Default)]
struct Seen {
    found: Vec<(ExchangeId, Target)>,
    /// Exchanges in the order in which they were looked at.
    visited: Vec<ExchangeId>,
    alternates: Vec<ExchangeId>,
}

impl Seen {
    fn visit(&mut self, exchange: ExchangeId) {
        if self.visited.len() < EXPLAINED_MAX && !self.visited.contains(&exchange) {
            self.visited.push(exchange);
        }
    }
}

impl Watch for Seen {
    fn found(&mut self, from: ExchangeId, target: Target) {
        self.visit(from);
        if self.found.len() < EXPLAINED_MAX {
            self.found.push((from, target));
        }
    }

    fn alternate(&mut self, from: ExchangeId) {
        self.visit(from);
        self.alternates.push(from);
    }
}

impl Question {
    /// Where does a message of this user go that is published there?
    /// `seed` decides where exchanges that pick one of many at random send it.
    pub fn new(
        exchange: ShortString,
        routing_key: ShortString,
        headers: &FieldTable,
        login: Option<Login>,
        seed: [u8; 32],
    ) -> Self {
        let delay = match (headers.as_table().get(DELAY), delay_ms(headers.as_table())) {
            (None, _) => Delay::Nothing,
            (Some(_), Some(ms)) => Delay::Of(ms),
            (Some(_), None) => Delay::Unreadable,
        };
        // One that waits first is told of as it is when it goes on.
        let headers = headers.as_table().without(DELAY);
        let message = Message::on_the_way(exchange.as_short_str(), routing_key.as_short_str(), headers.as_table());
        let random = StdRng::from_seed(seed);
        Question { exchange, message, routing_key, headers, delay, login, random, search: None }
    }
}

impl VirtualHost {
    /// Goes one hold on with the answer to a question; none if that takes more. What changes in between is looked at again.
    pub fn explain(&self, question: &mut Question) -> Option<Explanation> {
        let (permissions, mut refused) = self.permissions_for(question);
        let mut explanation = Explanation {
            vhost: self.name.to_string(),
            exchange: question.exchange.to_string(),
            routing_key: question.routing_key.to_string(),
            refused: None,
            permissions,
            exchanges: Vec::new(),
            queues: Vec::new(),
            queue_count: 0,
        };
        let route = if question.exchange.as_str().is_empty() {
            self.queues_named(&[question.routing_key.as_str()])
        } else {
            match self.exchanges.find_or_refuse(question.exchange.as_str(), self.name.as_str()) {
                Err(refusal) => {
                    refused.get_or_insert_with(|| Exception::from(&refusal).text);
                    Route::new()
                }
                Ok(start) => {
                    if self.exchanges.get(start).is_some_and(|exchange| exchange.declared.internal) {
                        let (exchange, vhost) = (question.exchange.to_string(), self.name.to_string());
                        let refusal = Refusal::InternalExchange { exchange, vhost };
                        refused.get_or_insert_with(|| Exception::from(&refusal).text);
                    }
                    let current =
                        question.search.take().filter(|(search, _)| search.version == self.bindings_version);
                    let (mut search, mut seen) = current.unwrap_or_else(|| {
                        let mut seen = Seen::default();
                        seen.visit(start);
                        (Search::new(start, self.bindings_version, MatchScratch::default()), seen)
                    });
                    let mut steps = UNITS_PER_HOLD as usize * STEPS_PER_UNIT;
                    let keys = [question.routing_key.as_str()];
                    let (message, random) = (&question.message, &mut question.random);
                    if !search.go_on_watched(&self.exchanges, &keys, message, random, &mut steps, &mut seen) {
                        question.search = Some((search, seen));
                        return None;
                    }
                    explanation.exchanges = self.exchange_steps(question, &seen);
                    search.finish().0
                }
            }
        };
        explanation.refused = refused;
        explanation.queue_count = route.len();
        let mut steps = UNITS_PER_HOLD as usize * STEPS_PER_UNIT;
        let told = route.iter().take(EXPLAINED_MAX).filter_map(|&id| self.queue_step(question, id, &mut steps));
        explanation.queues = told.collect();
        Some(explanation)
    }

    fn permissions_for(&self, question: &Question) -> (Vec<PermissionStep>, Option<String>) {
        let Some(login) = &question.login else { return (Vec::new(), None) };
        let exchange = question.exchange.as_str();
        let mut needed = vec![Resource::Exchange(exchange)];
        let is_topic = self.exchanges.find(exchange).and_then(|id| self.exchanges.get(id));
        if is_topic.is_some_and(|exchange| exchange.declared.kind == ExchangeKind::Topic) {
            needed.push(Resource::Topic { exchange, routing_key: question.routing_key.as_str() });
        }
        let mut refused = None;
        let steps = needed.into_iter().map(|resource| {
            let outcome = authorize(login, Permission::Write, resource, &self.name);
            let granted = outcome.is_ok();
            if let Err(error) = outcome {
                refused.get_or_insert_with(|| Exception::from(&Refusal::Access(error)).text);
            }
            PermissionStep { permission: Permission::Write.to_string(), resource: resource.to_string(), granted }
        });
        (steps.collect(), refused)
    }

    fn exchange_steps(&self, question: &Question, seen: &Seen) -> Vec<ExchangeStep> {
        let properties =
            BasicProperties { headers: Some(question.headers.as_table()), ..BasicProperties::default() };
        let keys = [question.routing_key.as_str()];
        let subject = Subject { keys: &keys, properties };
        // Of all exchanges together: each is tried by itself, with the lock held.
        let mut left_to_try = EXPLAINED_TRIES_MAX;
        let step = |&id: &ExchangeId| {
            let exchange = self.exchanges.get(id)?;
            let mut matched = Vec::new();
            let found = seen.found.iter().filter(|(from, _)| *from == id).map(|&(_, target)| target);
            let mut alone = exchange.without_bindings();
            let mut targets: Vec<_> = found.collect();
            targets.sort_unstable();
            targets.dedup();
            for target in targets {
                let bindings = exchange.bindings_to(target).take(left_to_try);
                let bindings = bindings.inspect(|_| left_to_try -= 1);
                let is_match =
                    |binding: &&BindingKey| alone.would_match(binding, question.routing_key.as_str(), &subject);
                let told = EXPLAINED_MAX.saturating_sub(matched.len());
                matched.extend(bindings.filter(is_match).take(told).filter_map(|binding| {
                    let view = self.view_binding(exchange, binding)?;
                    Some(MatchStep {
                        destination_type: view.destination_type,
                        destination: view.destination,
                        why: why(exchange.declared.kind, binding, question),
                        routing_key: view.routing_key,
                        arguments: view.arguments,
                    })
                }));
            }
            let note = match (exchange.declared.timing, exchange.declared.kind) {
                (Timing::Delayed, _) => Some(delay_note(question.delay)),
                (Timing::AtOnce, ExchangeKind::Random | ExchangeKind::LocalRandom) => {
                    Some("each message goes through one binding, picked at random; this is one of them".into())
                }
                (Timing::AtOnce, ExchangeKind::ConsistentHash | ExchangeKind::ModulusHash) => {
                    Some("each message goes to one target, picked by its hash".into())
                }
                (Timing::AtOnce, ExchangeKind::RecentHistory) => Some(
                    "it is kept, and given to whoever is bound later, unless it says x-recent-history-no-store"
                        .into(),
                ),
                (
                    Timing::AtOnce,
                    ExchangeKind::Direct | ExchangeKind::Fanout | ExchangeKind::Topic | ExchangeKind::Headers,
                ) => None,
            };
            Some(ExchangeStep {
                name: exchange.declared.name.to_string(),
                kind: exchange.declared.type_name(),
                policy: exchange.policies.policy().map(|policy| policy.source().name.to_string()),
                matched,
                bindings: exchange.binding_count(),
                alternate_exchange: exchange.alternate.as_ref().map(ToString::to_string),
                takes_alternate: seen.alternates.contains(&id),
                note,
            })
        };
        seen.visited.iter().filter_map(step).collect()
    }

    fn queue_step(&self, question: &Question, id: QueueId, steps: &mut usize) -> Option<QueueStep> {
        let queue = self.queues.get(id)?;
        let settings = &queue.settings;
        let is_limited = settings.max_length.is_some() || settings.max_length_bytes.is_some();
        let consumer_timeout = settings.consumer_timeout.or(self.consumer_timeout);
        Some(QueueStep {
            name: queue.declared.name.to_string(),
            kind: queue.declared.arguments.queue_type.as_str(),
            messages: queue.len(),
            consumers: queue.consumer_count(),
            policy: queue.policies.policy().map(|policy| policy.source().name.to_string()),
            operator_policy: queue.policies.operator_policy().map(|policy| policy.source().name.to_string()),
            message_ttl: settings.message_ttl.map(milliseconds),
            expires: settings.expires.map(milliseconds),
            max_length: settings.max_length,
            max_length_bytes: settings.max_length_bytes,
            overflow: OVERFLOWS
                .iter()
                .find(|(_, overflow)| is_limited && *overflow == settings.overflow)
                .map(|&(word, _)| word),
            delivery_limit: settings.delivery_limit,
            consumer_timeout: consumer_timeout.map(milliseconds),
            dead_letters: settings
                .dead_letters
                .as_ref()
                .map(|letters| self.dead_letter_step(question, id, letters, steps)),
        })
    }

    /// Where dead letters go, as far as so many steps tell.
    fn dead_letter_step(
        &self,
        question: &Question,
        id: QueueId,
        letters: &DeadLetters,
        steps: &mut usize,
    ) -> DeadLetterStep {
        let key = letters.routing_key.as_ref().unwrap_or(&question.routing_key);
        let name = letters.exchange.as_str();
        let start = self.exchanges.find(name);
        let (route, is_complete) = match start {
            None if name.is_empty() => (self.queues_named(&[key.as_str()]), true),
            None => (Route::new(), true),
            Some(start) => {
                let mut search = Search::new(start, self.bindings_version, MatchScratch::default());
                let mut random = question.random.clone();
                let is_complete =
                    search.go_on(&self.exchanges, &[key.as_str()], &question.message, &mut random, steps);
                (search.finish().0, is_complete)
            }
        };
        // What comes back to its queue is dropped, unless somebody rejected it.
        let queues = route.iter().filter(|&&target| target != id).take(EXPLAINED_MAX);
        DeadLetterStep {
            exchange: name.to_owned(),
            routing_key: key.to_string(),
            exists: name.is_empty() || start.is_some(),
            queues: queues
                .filter_map(|&target| self.queues.get(target))
                .map(|target| target.declared.name.to_string())
                .collect(),
            is_complete,
        }
    }
}

/// What an exchange that delays messages does with one.
fn delay_note(delay: Delay) -> Cow<'static, str> {
    match delay {
        Delay::Nothing => "a message with the header x-delay waits here first; then its way is this one".into(),
        Delay::Of(ms) => {
            format!("it waits here for {ms} ms, as its header x-delay says; then its way is this one").into()
        }
        Delay::Unreadable => {
            "its header x-delay is no number of milliseconds from 1 to 4294967295: it does not wait".into()
        }
    }
}

/// Why a binding matches that does.
fn why(kind: ExchangeKind, binding: &BindingKey, question: &Question) -> String {
    let (key, bound) = (&question.routing_key, &binding.routing_key);
    match kind {
        ExchangeKind::Direct => format!("the routing key is '{bound}'"),
        ExchangeKind::Fanout | ExchangeKind::RecentHistory => "every message goes there".to_owned(),
        ExchangeKind::ConsistentHash | ExchangeKind::ModulusHash => "its hash picks this target".to_owned(),
        ExchangeKind::Random | ExchangeKind::LocalRandom => "it was picked this time".to_owned(),
        ExchangeKind::Topic => format!("'{bound}' matches '{key}'"),
        ExchangeKind::Headers => "its arguments match the headers".to_owned(),
    }
}

fn milliseconds(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}
