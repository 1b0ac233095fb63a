//! Exchanges and their bindings.
//!
//! Owns: which exchanges there are, what is bound to each, and which targets a routing key reaches.
//! Must not know: messages in queues, consumers, connections.
//! Invariant: what the router of an exchange matches is exactly its set of bindings.

mod direct;
mod hash;
mod headers;
mod history;
#[cfg(any(test, feature = "naive"))]
pub mod naive;
mod targets;
mod topic;
mod weighted;

use std::collections::BTreeSet;
use std::ops::Bound;

use foldhash::fast::FixedState;
use hashbrown::HashMap;
use leveret_amqp::{BasicProperties, FieldTable, ShortStr, ShortString, Table};
use rand::rngs::StdRng;
use rand::{RngCore, SeedableRng};
use slotmap::SlotMap;

use self::direct::DirectIndex;
pub(crate) use self::hash::InvalidArgument;
use self::hash::{HashOn, hash_of_all, weight_of};
use self::headers::{HeadersIndex, HeadersScratch};
pub(crate) use self::history::Kept;
use self::history::RecentHistory;
use self::targets::Targets;
use self::topic::{TopicIndex, TopicScratch};
use self::weighted::WeightedTargets;
use crate::change::Change;
use crate::limits::{BINDING_BYTES, EXCHANGE_BYTES, LEVEL_BYTES, QUEUE_BYTES, STEPS_PER_LOOKUP};
use crate::memory::{Lease, Meter};
use crate::message::Message;
use crate::names::ExchangeName;
use crate::vhost::QueueId;
use crate::vhost::delay::{DELAYED, delay_ms};
use crate::vhost::policy::Matching;
use crate::vhost::queue::QueueType;
use crate::vhost::refusal::Refusal;

slotmap::new_key_type! {
    /// Names an exchange in its virtual host; never given twice.
    pub(crate) struct ExchangeId;
}

/// What a binding leads to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Target {
    Queue(QueueId),
    Exchange(ExchangeId),
}

/// The type of an exchange. AMQP 0-9-1 §3.1.3, and those of RabbitMQ and the plugins that come with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ExchangeKind {
    Direct,
    Fanout,
    Topic,
    Headers,
    ConsistentHash,
    ModulusHash,
    Random,
    /// Like `Random`: here every queue is local.
    LocalRandom,
    RecentHistory,
}

impl ExchangeKind {
    pub(crate) fn parse(name: &str) -> Option<Self> {
        match name {
            "direct" => Some(ExchangeKind::Direct),
            "fanout" => Some(ExchangeKind::Fanout),
            "topic" => Some(ExchangeKind::Topic),
            "headers" => Some(ExchangeKind::Headers),
            "x-consistent-hash" => Some(ExchangeKind::ConsistentHash),
            "x-modulus-hash" => Some(ExchangeKind::ModulusHash),
            "x-random" => Some(ExchangeKind::Random),
            "x-local-random" => Some(ExchangeKind::LocalRandom),
            "x-recent-history" => Some(ExchangeKind::RecentHistory),
            _ => None,
        }
    }

    pub(crate) fn as_str(self) -> &'static str {
        match self {
            ExchangeKind::Direct => "direct",
            ExchangeKind::Fanout => "fanout",
            ExchangeKind::Topic => "topic",
            ExchangeKind::Headers => "headers",
            ExchangeKind::ConsistentHash => "x-consistent-hash",
            ExchangeKind::ModulusHash => "x-modulus-hash",
            ExchangeKind::Random => "x-random",
            ExchangeKind::LocalRandom => "x-local-random",
            ExchangeKind::RecentHistory => "x-recent-history",
        }
    }

    /// Whether an exchange of this type may be declared with these arguments.
    pub(crate) fn check_arguments(self, arguments: Table<'_>) -> Result<(), InvalidArgument> {
        match self {
            ExchangeKind::ConsistentHash => HashOn::of(arguments).map(|_| ()),
            ExchangeKind::RecentHistory => {
                RecentHistory::length_of(arguments).map(|_| ()).map_err(InvalidArgument::Value)
            }
            ExchangeKind::Direct
            | ExchangeKind::Fanout
            | ExchangeKind::Topic
            | ExchangeKind::Headers
            | ExchangeKind::ModulusHash
            | ExchangeKind::Random
            | ExchangeKind::LocalRandom => Ok(()),
        }
    }
}

/// When an exchange routes a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Timing {
    AtOnce,
    /// When the delay has passed that the message asks for: the type is `x-delayed-message`.
    Delayed,
}

/// One binding of an exchange.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct BindingKey {
    pub(crate) target: Target,
    pub(crate) routing_key: ShortString,
    /// Sorted by name.
    pub(crate) arguments: FieldTable,
}

#[derive(Debug)]
enum Router {
    Direct(DirectIndex),
    /// Every binding matches.
    Fanout(Targets),
    Topic(TopicIndex<Target>),
    Headers(HeadersIndex<Target>),
    ConsistentHash(HashOn, WeightedTargets),
    ModulusHash(WeightedTargets),
    Random(WeightedTargets),
    /// Every binding matches, too.
    RecentHistory(Targets, RecentHistory),
}

/// What of a message decides where it goes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Subject<'a> {
    /// All of its routing keys, the one it was published with first.
    pub(crate) keys: &'a [&'a str],
    pub(crate) properties: BasicProperties<'a>,
}

impl<'a> Subject<'a> {
    pub(crate) fn headers(&self) -> Table<'a> {
        self.properties.headers.unwrap_or(Table::EMPTY)
    }
}

/// How far the search in one exchange for one key has come. The room is kept so that the next one need not allocate.
#[derive(Debug, Default)]
pub(crate) struct MatchScratch {
    topic: TopicScratch,
    headers: HeadersScratch,
    /// The last target of a fanout exchange that was handed out.
    after: Option<Target>,
    /// What was picked where one of many is, and not handed out yet.
    picked: Option<Target>,
    /// Room for what is hashed.
    hashed: Vec<u8>,
}

impl MatchScratch {
    /// The next search is for another message.
    pub(crate) fn forget_message(&mut self) {
        self.headers.forget_message();
    }
}

/// The hash of the name of a target.
#[derive(Clone, Copy, Debug)]
pub(crate) struct NameHash(u64);

impl NameHash {
    pub(crate) fn of_queue(name: &str) -> Self {
        NameHash(hash_of_all(&["queue", name]))
    }

    pub(crate) fn of_exchange(name: &str) -> Self {
        NameHash(hash_of_all(&["exchange", name]))
    }
}

/// What a declaration fixes for the life of an exchange.
#[derive(Clone, Debug)]
pub(crate) struct DeclaredExchange {
    pub(crate) name: ExchangeName,
    /// How it routes.
    pub(crate) kind: ExchangeKind,
    pub(crate) timing: Timing,
    pub(crate) durable: bool,
    pub(crate) auto_delete: bool,
    pub(crate) internal: bool,
    /// Argument `alternate-exchange`.
    pub(crate) alternate: Option<ExchangeName>,
    pub(crate) arguments: FieldTable,
}

impl DeclaredExchange {
    /// What it takes in memory.
    pub(crate) fn bytes(&self) -> usize {
        EXCHANGE_BYTES + self.name.as_str().len() + self.arguments.as_table().as_bytes().len()
    }

    /// The same with the queue of what it delays.
    pub(crate) fn bytes_in_all(&self) -> usize {
        let delay_queue = match self.timing {
            Timing::Delayed => QUEUE_BYTES + self.name.as_str().len() + u32::BITS as usize * LEVEL_BYTES,
            Timing::AtOnce => 0,
        };
        self.bytes() + delay_queue
    }

    /// Its type, as clients call it.
    pub(crate) fn type_name(&self) -> &'static str {
        match self.timing {
            Timing::AtOnce => self.kind.as_str(),
            Timing::Delayed => DELAYED,
        }
    }

    /// Its declaration for a journal.
    pub(crate) fn to_change(&self) -> Change {
        let DeclaredExchange { name, auto_delete, internal, arguments, .. } = self;
        Change::ExchangeDeclared {
            name: name.clone(),
            kind: ShortStr::truncated(self.type_name()).into(),
            auto_delete: *auto_delete,
            internal: *internal,
            arguments: arguments.clone(),
        }
    }
}

/// One exchange with its bindings.
#[derive(Debug)]
pub(crate) struct Exchange {
    pub(crate) declared: DeclaredExchange,
    /// Where messages go that match no binding: what the declaration says, or else a policy.
    pub(crate) alternate: Option<ExchangeName>,
    /// The policies that match it.
    pub(crate) policies: Matching,
    /// Set by the first binding; an auto-delete exchange that never had one stays.
    pub(crate) had_binding: bool,
    /// Exchanges this one is bound to.
    pub(crate) bound_to: BTreeSet<ExchangeId>,
    bindings: BTreeSet<BindingKey>,
    router: Router,
    /// What its declaration and its bindings take.
    declared_memory: Lease,
}

const _: () = assert!(size_of::<Exchange>() <= EXCHANGE_BYTES, "it is counted as that");

impl Exchange {
    fn new(declared: DeclaredExchange, seed: u64, meter: Meter, declarations: Lease) -> Self {
        // Arguments that nobody checked, in a journal of another version, count as if they were not there.
        let arguments = declared.arguments.as_table();
        let router = match declared.kind {
            ExchangeKind::Direct => Router::Direct(DirectIndex::new(seed)),
            ExchangeKind::Fanout => Router::Fanout(Targets::default()),
            ExchangeKind::Topic => Router::Topic(TopicIndex::new(seed)),
            ExchangeKind::Headers => Router::Headers(HeadersIndex::new(seed)),
            ExchangeKind::ConsistentHash => {
                let hash_on = HashOn::of(arguments).unwrap_or(HashOn::RoutingKey);
                Router::ConsistentHash(hash_on, WeightedTargets::default())
            }
            ExchangeKind::ModulusHash => Router::ModulusHash(WeightedTargets::default()),
            ExchangeKind::Random | ExchangeKind::LocalRandom => Router::Random(WeightedTargets::default()),
            ExchangeKind::RecentHistory => {
                let length = RecentHistory::length_of(arguments).unwrap_or(history::LENGTH);
                Router::RecentHistory(Targets::default(), RecentHistory::new(length, meter))
            }
        };
        let declared_memory = declarations.with(declared.bytes());
        Exchange {
            alternate: declared.alternate.clone(),
            declared,
            policies: Matching::default(),
            had_binding: false,
            bound_to: BTreeSet::new(),
            bindings: BTreeSet::new(),
            router,
            declared_memory,
        }
    }

    /// Whether anything is bound to it.
    pub(crate) fn is_used(&self) -> bool {
        !self.bindings.is_empty()
    }

    /// Whether the way a message takes can be remembered by its routing key alone.
    pub(crate) fn routes_by_key(&self) -> bool {
        match &self.router {
            _ if self.declared.timing == Timing::Delayed => false,
            Router::Direct(_) | Router::Fanout(_) | Router::Topic(_) | Router::ModulusHash(_) => true,
            Router::ConsistentHash(hash_on, _) => *hash_on == HashOn::RoutingKey,
            Router::Headers(_) | Router::Random(_) | Router::RecentHistory(..) => false,
        }
    }

    /// Whether it has to be asked for each routing key of a message.
    pub(crate) fn looks_at_each_key(&self) -> bool {
        match self.router {
            Router::Direct(_) | Router::Topic(_) => true,
            Router::Fanout(_)
            | Router::Headers(_)
            | Router::ConsistentHash(..)
            | Router::ModulusHash(_)
            | Router::Random(_)
            | Router::RecentHistory(..) => false,
        }
    }

    /// Adds a binding; false if it is there. `name` is that of the target.
    pub(crate) fn bind(&mut self, binding: BindingKey, name: NameHash) -> bool {
        if self.bindings.contains(&binding) {
            return false;
        }
        let (key, target) = (binding.routing_key.as_str(), binding.target);
        match &mut self.router {
            Router::Direct(index) => index.insert(key, target),
            Router::Fanout(targets) | Router::RecentHistory(targets, _) => targets.insert(target),
            Router::Topic(index) => index.insert(key, target),
            Router::Headers(index) => index.insert(binding.arguments.as_table(), target),
            Router::ConsistentHash(_, targets) => {
                targets.insert(target, name.0, weight_of(key).unwrap_or_default());
            }
            Router::ModulusHash(targets) | Router::Random(targets) => targets.insert(target, name.0, 1),
        }
        self.had_binding = true;
        self.declared_memory.take(self.binding_bytes(&binding));
        self.bindings.insert(binding)
    }

    /// Takes a binding away; false if it is not there.
    pub(crate) fn unbind(&mut self, binding: &BindingKey) -> bool {
        if !self.bindings.remove(binding) {
            return false;
        }
        self.declared_memory.give_back(self.binding_bytes(binding));
        let (key, target) = (binding.routing_key.as_str(), binding.target);
        match &mut self.router {
            Router::Direct(index) => index.remove(key, target),
            Router::Fanout(targets) | Router::RecentHistory(targets, _) => targets.remove(target),
            Router::Topic(index) => index.remove(key, target),
            Router::Headers(index) => index.remove(binding.arguments.as_table(), target),
            Router::ConsistentHash(_, targets) => targets.remove(target, weight_of(key).unwrap_or_default()),
            Router::ModulusHash(targets) | Router::Random(targets) => targets.remove(target, 1),
        }
        true
    }

    /// Whether a message that comes here is one of those that it keeps.
    pub(crate) fn is_to_keep(&self, subject: &Subject<'_>) -> bool {
        matches!(self.router, Router::RecentHistory(..)) && RecentHistory::may_keep(subject.headers())
    }

    /// Keeps a message for those who are bound later.
    pub(crate) fn keep(&mut self, message: &Message, expiration_ms: Option<u64>) {
        if let Router::RecentHistory(_, history) = &mut self.router {
            history.keep(message, expiration_ms);
        }
    }

    /// What it has kept, the oldest first.
    pub(crate) fn kept(&self) -> Vec<Kept> {
        match &self.router {
            Router::RecentHistory(_, history) => history.messages(),
            Router::Direct(_)
            | Router::Fanout(_)
            | Router::Topic(_)
            | Router::Headers(_)
            | Router::ConsistentHash(..)
            | Router::ModulusHash(_)
            | Router::Random(_) => Vec::new(),
        }
    }

    /// All bindings to one target.
    pub(crate) fn bindings_to(&self, target: Target) -> impl Iterator<Item = &BindingKey> {
        let first = BindingKey { target, routing_key: ShortString::default(), arguments: FieldTable::default() };
        let range = self.bindings.range((Bound::Included(first), Bound::Unbounded));
        range.take_while(move |binding| binding.target == target)
    }

    pub(crate) fn is_bound_to(&self, target: Target) -> bool {
        self.bindings_to(target).next().is_some()
    }

    /// Its first binding behind a place among them.
    pub(crate) fn first_binding(&self, after: Bound<&BindingKey>) -> Option<&BindingKey> {
        self.bindings.range((after, Bound::Unbounded)).next()
    }

    pub(crate) fn binding_count(&self) -> usize {
        self.bindings.len()
    }

    pub(crate) fn bindings(&self) -> impl Iterator<Item = &BindingKey> {
        self.bindings.iter()
    }

    pub(crate) fn has_binding(&self, binding: &BindingKey) -> bool {
        self.bindings.contains(binding)
    }

    /// What a binding takes in memory here, at most: it has its key and arguments, and the router has them once more.
    pub(crate) fn binding_bytes(&self, binding: &BindingKey) -> usize {
        let (key, arguments) = (binding.routing_key.as_str(), binding.arguments.as_table());
        let routed = match self.router {
            Router::Direct(_) => key.len(),
            Router::Topic(_) => TopicIndex::<Target>::bytes(key),
            Router::Headers(_) => HeadersIndex::<Target>::bytes(arguments),
            Router::Fanout(_)
            | Router::ConsistentHash(..)
            | Router::ModulusHash(_)
            | Router::Random(_)
            | Router::RecentHistory(..) => 0,
        };
        BINDING_BYTES + key.len() + arguments.as_bytes().len() + routed
    }

    /// Whether a binding means something that it may not. `queue_type` is that of its target, if that is a queue.
    pub(crate) fn check_binding(&self, binding: &BindingKey, queue_type: Option<QueueType>) -> Result<(), Refusal> {
        let key = binding.routing_key.as_str();
        let result = match self.declared.kind {
            ExchangeKind::Direct
            | ExchangeKind::Fanout
            | ExchangeKind::Topic
            | ExchangeKind::ModulusHash
            | ExchangeKind::Random
            | ExchangeKind::RecentHistory => Ok(()),
            ExchangeKind::Headers => {
                HeadersIndex::<Target>::check(binding.arguments.as_table()).map_err(|error| error.to_string())
            }
            ExchangeKind::ConsistentHash => weight_of(key).map(|_| ()),
            ExchangeKind::LocalRandom if !key.is_empty() => {
                Err(format!("Non empty binding '{key}' key not permitted"))
            }
            ExchangeKind::LocalRandom => match queue_type {
                Some(QueueType::Classic) => Ok(()),
                Some(QueueType::Quorum) => {
                    Err("Queue type rabbit_quorum_queue not valid for this exchange type".to_owned())
                }
                None => Err("Destination not found".to_owned()),
            },
        };
        result.map_err(|fault| Refusal::InvalidBinding { fault })
    }

    /// One like it that nobody knows, to try bindings on.
    pub(crate) fn without_bindings(&self) -> Self {
        Exchange::new(self.declared.clone(), 0, Meter::default(), Lease::default())
    }

    /// Whether a binding would lead a message somewhere if it were the only one, where there is none.
    pub(crate) fn would_match(&mut self, binding: &BindingKey, routing_key: &str, subject: &Subject<'_>) -> bool {
        self.bind(binding.clone(), NameHash::of_queue(""));
        let (mut scratch, mut steps, mut is_found) = (MatchScratch::default(), usize::MAX, false);
        // There is nothing to choose from.
        let mut random = StdRng::seed_from_u64(0);
        self.begin_match(routing_key, subject, &mut random, &mut scratch, &mut steps);
        while !self.go_on_matching(routing_key, &mut scratch, &mut steps, |_| is_found = true) {}
        self.unbind(binding);
        is_found
    }

    /// Begins the search for what a message reaches from here under one of its keys.
    pub(crate) fn begin_match(
        &self,
        routing_key: &str,
        subject: &Subject<'_>,
        random: &mut impl RngCore,
        scratch: &mut MatchScratch,
        steps: &mut usize,
    ) {
        match &self.router {
            Router::Direct(_) => {}
            Router::Fanout(_) | Router::RecentHistory(..) => scratch.after = None,
            Router::Topic(index) => index.begin(routing_key, &mut scratch.topic),
            Router::Headers(index) => index.begin(subject.headers(), &mut scratch.headers, steps),
            // What is picked stays picked, however often the search is interrupted.
            Router::ConsistentHash(hash_on, targets) => {
                let hash = hash_on.hash(routing_key, &subject.properties, &mut scratch.hashed);
                scratch.picked = targets.of_hash(hash);
            }
            Router::ModulusHash(targets) => scratch.picked = targets.of_number(hash_of_all(subject.keys)),
            Router::Random(targets) => scratch.picked = targets.of_number(random.next_u64()),
        }
    }

    /// Goes on with the search, and hands out targets, some perhaps more than once. Stops soon after `steps` are used up:
    /// false if something is left then.
    pub(crate) fn go_on_matching(
        &self,
        routing_key: &str,
        scratch: &mut MatchScratch,
        steps: &mut usize,
        mut found: impl FnMut(Target),
    ) -> bool {
        match &self.router {
            Router::Direct(index) => {
                index.for_each_match(routing_key, |target| {
                    *steps = steps.saturating_sub(1);
                    found(target);
                });
                true
            }
            Router::ConsistentHash(..) | Router::ModulusHash(_) | Router::Random(_) => {
                scratch.picked.take().into_iter().for_each(found);
                true
            }
            Router::Fanout(targets) | Router::RecentHistory(targets, _) => {
                for target in targets.after(scratch.after) {
                    found(target);
                    *steps = steps.saturating_sub(STEPS_PER_LOOKUP);
                    if *steps == 0 {
                        scratch.after = Some(target);
                        return false;
                    }
                }
                true
            }
            Router::Topic(index) => index.go_on(routing_key, &mut scratch.topic, steps, found),
            Router::Headers(index) => index.go_on(&mut scratch.headers, steps, found),
        }
    }
}

/// The exchanges of a virtual host, all but the default exchange, which is the queues' names themselves.
#[derive(Debug)]
pub(crate) struct Exchanges {
    by_name: HashMap<ExchangeName, ExchangeId, FixedState>,
    slots: SlotMap<ExchangeId, Exchange>,
    /// Where messages wait before these exchanges route them.
    delay_queues: HashMap<ExchangeName, QueueId, FixedState>,
    seed: u64,
    /// Adds up what they keep.
    meter: Meter,
    /// Adds up what their declarations and bindings take.
    declarations: Lease,
}

/// RabbitMQ: the exchanges of a new virtual host.
const PREDECLARED: &[(&str, ExchangeKind, Publishing)] = &[
    ("amq.direct", ExchangeKind::Direct, Publishing::ByClients),
    ("amq.fanout", ExchangeKind::Fanout, Publishing::ByClients),
    ("amq.topic", ExchangeKind::Topic, Publishing::ByClients),
    ("amq.headers", ExchangeKind::Headers, Publishing::ByClients),
    ("amq.match", ExchangeKind::Headers, Publishing::ByClients),
    ("amq.rabbitmq.trace", ExchangeKind::Topic, Publishing::Internal),
];

/// Who may publish to an exchange. Field `internal`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Publishing {
    ByClients,
    Internal,
}

impl Exchanges {
    pub(crate) fn new(seed: u64, meter: Meter, declarations: Lease) -> Self {
        let mut exchanges = Exchanges {
            by_name: HashMap::with_hasher(FixedState::with_seed(seed)),
            slots: SlotMap::with_key(),
            delay_queues: HashMap::with_hasher(FixedState::with_seed(seed)),
            seed,
            meter,
            declarations,
        };
        for &(name, kind, publishing) in PREDECLARED {
            exchanges.insert(DeclaredExchange {
                name: ExchangeName::new(ShortStr::truncated(name)),
                kind,
                timing: Timing::AtOnce,
                durable: true,
                auto_delete: false,
                internal: publishing == Publishing::Internal,
                alternate: None,
                arguments: FieldTable::default(),
            });
        }
        exchanges
    }

    pub(crate) fn insert(&mut self, declared: DeclaredExchange) -> ExchangeId {
        let name = declared.name.clone();
        let id =
            self.slots.insert(Exchange::new(declared, self.seed, self.meter.clone(), self.declarations.sibling()));
        self.by_name.insert(name, id);
        id
    }

    pub(crate) fn remove(&mut self, id: ExchangeId) -> Option<Exchange> {
        let exchange = self.slots.remove(id)?;
        self.by_name.remove(&exchange.declared.name);
        Some(exchange)
    }

    pub(crate) fn find(&self, name: &str) -> Option<ExchangeId> {
        self.by_name.get(name).copied()
    }

    /// Where messages wait before the exchange of this name routes them.
    pub(crate) fn delay_queue(&self, name: &str) -> Option<QueueId> {
        self.delay_queues.get(name).copied()
    }

    pub(crate) fn set_delay_queue(&mut self, name: ExchangeName, queue: QueueId) {
        self.delay_queues.insert(name, queue);
    }

    /// A queue is gone.
    pub(crate) fn forget_delay_queue(&mut self, name: &str, queue: QueueId) {
        if self.delay_queue(name) == Some(queue) {
            self.delay_queues.remove(name);
        }
    }

    /// The queue that a message with these headers has to wait in before this exchange routes it.
    pub(crate) fn delays_in(&self, id: ExchangeId, headers: Table<'_>) -> Option<QueueId> {
        let DeclaredExchange { name, timing, .. } = &self.get(id)?.declared;
        match timing {
            Timing::AtOnce => None,
            Timing::Delayed => delay_ms(headers).and_then(|_| self.delay_queue(name.as_str())),
        }
    }

    /// The durable ones that a client or a policy has declared, or could have.
    pub(crate) fn durable(&self) -> Vec<ExchangeId> {
        self.slots.iter().filter(|(_, exchange)| exchange.declared.durable).map(|(id, _)| id).collect()
    }

    /// All of them.
    pub(crate) fn ids(&self) -> Vec<ExchangeId> {
        self.slots.keys().collect()
    }

    /// How many there are.
    pub(crate) fn len(&self) -> usize {
        self.slots.len()
    }

    pub(crate) fn find_or_refuse(&self, name: &str, vhost: &str) -> Result<ExchangeId, Refusal> {
        let missing = || Refusal::NoExchange { exchange: name.into(), vhost: vhost.into() };
        self.find(name).ok_or_else(missing)
    }

    pub(crate) fn get(&self, id: ExchangeId) -> Option<&Exchange> {
        self.slots.get(id)
    }

    pub(crate) fn get_mut(&mut self, id: ExchangeId) -> Option<&mut Exchange> {
        self.slots.get_mut(id)
    }
}
