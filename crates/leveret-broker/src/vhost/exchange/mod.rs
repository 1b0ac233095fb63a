//! Exchanges and their bindings.
//!
//! Owns: which exchanges there are, what is bound to each, and which targets a routing key reaches.
//! Must not know: messages in queues, consumers, connections.
//! Invariant: what the router of an exchange matches is exactly its set of bindings.

mod direct;
mod headers;
mod topic;

use std::collections::BTreeSet;
use std::ops::Bound;

use foldhash::fast::FixedState;
use hashbrown::HashMap;
use leveret_amqp::{FieldTable, ShortStr, ShortString, Table};
use slotmap::SlotMap;

use self::direct::DirectIndex;
use self::headers::{HeadersIndex, HeadersScratch};
use self::topic::{TopicIndex, TopicScratch};
use crate::change::Change;
use crate::limits::STEPS_PER_LOOKUP;
use crate::names::ExchangeName;
use crate::vhost::QueueId;
use crate::vhost::delay::{DELAYED, delay_ms};
use crate::vhost::policy::Matching;
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

/// The type of an exchange. AMQP 0-9-1 §3.1.3.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ExchangeKind {
    Direct,
    Fanout,
    Topic,
    Headers,
}

impl ExchangeKind {
    pub(crate) fn parse(name: &str) -> Option<Self> {
        match name {
            "direct" => Some(ExchangeKind::Direct),
            "fanout" => Some(ExchangeKind::Fanout),
            "topic" => Some(ExchangeKind::Topic),
            "headers" => Some(ExchangeKind::Headers),
            _ => None,
        }
    }

    pub(crate) fn as_str(self) -> &'static str {
        match self {
            ExchangeKind::Direct => "direct",
            ExchangeKind::Fanout => "fanout",
            ExchangeKind::Topic => "topic",
            ExchangeKind::Headers => "headers",
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
    /// Every binding matches; there is nothing to look up.
    Fanout,
    Topic(TopicIndex<Target>),
    Headers(HeadersIndex<Target>),
}

/// How far the search in one exchange for one key has come. The room is kept so that the next one need not allocate.
#[derive(Debug, Default)]
pub(crate) struct MatchScratch {
    topic: TopicScratch,
    headers: HeadersScratch,
    /// The last binding of a fanout exchange that was handed out.
    after: Option<BindingKey>,
}

impl MatchScratch {
    /// The next search is for another message.
    pub(crate) fn forget_message(&mut self) {
        self.headers.forget_message();
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
}

impl Exchange {
    fn new(declared: DeclaredExchange, seed: u64) -> Self {
        let router = match declared.kind {
            ExchangeKind::Direct => Router::Direct(DirectIndex::new(seed)),
            ExchangeKind::Fanout => Router::Fanout,
            ExchangeKind::Topic => Router::Topic(TopicIndex::new(seed)),
            ExchangeKind::Headers => Router::Headers(HeadersIndex::new(seed)),
        };
        Exchange {
            alternate: declared.alternate.clone(),
            declared,
            policies: Matching::default(),
            had_binding: false,
            bound_to: BTreeSet::new(),
            bindings: BTreeSet::new(),
            router,
        }
    }

    /// Whether anything is bound to it.
    pub(crate) fn is_used(&self) -> bool {
        !self.bindings.is_empty()
    }

    /// Whether the way a message takes can be remembered by its routing key alone.
    pub(crate) fn routes_by_key(&self) -> bool {
        match self.router {
            _ if self.declared.timing == Timing::Delayed => false,
            Router::Direct(_) | Router::Fanout | Router::Topic(_) => true,
            Router::Headers(_) => false,
        }
    }

    /// Whether routing keys mean anything to it.
    pub(crate) fn looks_at_keys(&self) -> bool {
        match self.router {
            Router::Direct(_) | Router::Topic(_) => true,
            Router::Fanout | Router::Headers(_) => false,
        }
    }

    /// Adds a binding; false if it is there.
    pub(crate) fn bind(&mut self, binding: BindingKey) -> bool {
        if self.bindings.contains(&binding) {
            return false;
        }
        match &mut self.router {
            Router::Direct(index) => index.insert(binding.routing_key.as_str(), binding.target),
            Router::Fanout => {}
            Router::Topic(index) => index.insert(binding.routing_key.as_str(), binding.target),
            Router::Headers(index) => index.insert(binding.arguments.as_table(), binding.target),
        }
        self.had_binding = true;
        self.bindings.insert(binding)
    }

    /// Takes a binding away; false if it is not there.
    pub(crate) fn unbind(&mut self, binding: &BindingKey) -> bool {
        if !self.bindings.remove(binding) {
            return false;
        }
        match &mut self.router {
            Router::Direct(index) => index.remove(binding.routing_key.as_str(), binding.target),
            Router::Fanout => {}
            Router::Topic(index) => index.remove(binding.routing_key.as_str(), binding.target),
            Router::Headers(index) => index.remove(binding.arguments.as_table(), binding.target),
        }
        true
    }

    /// All bindings to one target.
    pub(crate) fn bindings_to(&self, target: Target) -> Vec<BindingKey> {
        self.range_to(target).cloned().collect()
    }

    fn range_to(&self, target: Target) -> impl Iterator<Item = &BindingKey> {
        let first = BindingKey { target, routing_key: ShortString::default(), arguments: FieldTable::default() };
        let range = self.bindings.range((Bound::Included(first), Bound::Unbounded));
        range.take_while(move |binding| binding.target == target)
    }

    pub(crate) fn is_bound_to(&self, target: Target) -> bool {
        self.range_to(target).next().is_some()
    }

    /// Its first binding behind a place among them.
    pub(crate) fn first_binding(&self, after: Bound<&BindingKey>) -> Option<&BindingKey> {
        self.bindings.range((after, Bound::Unbounded)).next()
    }

    pub(crate) fn bindings(&self) -> impl Iterator<Item = &BindingKey> {
        self.bindings.iter()
    }

    /// Whether the arguments of a binding mean something that they may not.
    pub(crate) fn check_binding(&self, arguments: Table<'_>) -> Result<(), Refusal> {
        match self.router {
            Router::Direct(_) | Router::Fanout | Router::Topic(_) => Ok(()),
            Router::Headers(_) => HeadersIndex::<Target>::check(arguments)
                .map_err(|error| Refusal::InvalidBindingArgument { fault: error.to_string() }),
        }
    }

    /// Whether one of its bindings leads a message somewhere by itself.
    pub(crate) fn matches(&self, binding: &BindingKey, routing_key: &str, headers: Table<'_>) -> bool {
        let mut alone = Exchange::new(self.declared.clone(), 0);
        alone.bind(binding.clone());
        let (mut scratch, mut steps, mut is_found) = (MatchScratch::default(), usize::MAX, false);
        alone.begin_match(routing_key, headers, &mut scratch, &mut steps);
        while !alone.go_on_matching(routing_key, &mut scratch, &mut steps, |_| is_found = true) {}
        is_found
    }

    /// Begins the search for what a message reaches from here under a key.
    pub(crate) fn begin_match(
        &self,
        routing_key: &str,
        headers: Table<'_>,
        scratch: &mut MatchScratch,
        steps: &mut usize,
    ) {
        match &self.router {
            Router::Direct(_) => {}
            Router::Fanout => scratch.after = None,
            Router::Topic(index) => index.begin(routing_key, &mut scratch.topic),
            Router::Headers(index) => index.begin(headers, &mut scratch.headers, steps),
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
            Router::Fanout => {
                let first = scratch.after.as_ref().map_or(Bound::Unbounded, Bound::Excluded);
                for binding in self.bindings.range((first, Bound::Unbounded)) {
                    found(binding.target);
                    *steps = steps.saturating_sub(STEPS_PER_LOOKUP);
                    if *steps == 0 {
                        scratch.after = Some(binding.clone());
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
    pub(crate) fn new(seed: u64) -> Self {
        let mut exchanges = Exchanges {
            by_name: HashMap::with_hasher(FixedState::with_seed(seed)),
            slots: SlotMap::with_key(),
            delay_queues: HashMap::with_hasher(FixedState::with_seed(seed)),
            seed,
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
        let id = self.slots.insert(Exchange::new(declared, self.seed));
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
