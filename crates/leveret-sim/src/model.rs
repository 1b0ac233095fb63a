//! A naive broker: a list for each queue, and for everything that can happen what RabbitMQ says of it.
//!
//! Owns: what must be in a virtual host, and what it may say next. It follows what the broker decides where that is free to
//! decide: which of several consumers gets a message, and when. Which message that is, is not.
//! Must not know: how the broker does anything.

mod alone;
mod crash;
mod late;
mod outputs;
mod routing;
mod settle;
mod timeout;

use std::collections::{BTreeMap, BTreeSet, HashSet, VecDeque};
use std::rc::Rc;

use leveret_broker::vhost::command::ConsumerId;

pub(crate) use self::late::Late;
pub(crate) use self::routing::{binding_headers, binding_key, headers};
pub(crate) use self::timeout::TimedOut;
use crate::plan::{Config, ExchangeName, Mode, ORDINARY_QUEUES, Overflow, QueueSpec, Settling, To};

/// In place of a promise: the publish is refused.
pub(crate) const REFUSED: u64 = u64::MAX;

/// How long a dead letter waits that has to arrive and that nobody takes, until it is tried again.
pub(crate) const RETRY_MS: u64 = 1000;

/// How many steps of one event are looked at when the power was cut between two of its groups.
const TRAIL_MOST: usize = 60;

/// How many messages of a queue a failure shows.
const MESSAGES_SHOWN: usize = 6;

/// What can be seen of a queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct View {
    pub(crate) ready: usize,
    pub(crate) unacked: usize,
    /// Those that have died and stay.
    pub(crate) dying: usize,
    pub(crate) consumers: usize,
}

/// What must not be.
pub(crate) type Violation = String;

/// A message as it was published.
#[derive(Clone, Debug)]
pub(crate) struct Message {
    pub(crate) id: u64,
    pub(crate) bytes: usize,
    pub(crate) persistent: bool,
    pub(crate) priority: Option<u8>,
    pub(crate) expiration_ms: Option<u32>,
    pub(crate) delay_ms: Option<u32>,
    /// Which of the routing keys and headers it has.
    pub(crate) key: u8,
}

/// The body of a message: its number, then what follows from it.
pub(crate) fn body(id: u64, bytes: usize) -> Vec<u8> {
    let mut body = Vec::with_capacity(bytes);
    body.extend(id.to_le_bytes());
    let mut next = id.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    while body.len() < bytes {
        next = next.wrapping_mul(0x5851_F42D_4C95_7F2D).wrapping_add(1);
        body.push((next >> 56).to_le_bytes()[0]);
    }
    body
}

/// The number in a body.
pub(crate) fn id_of(body: &[u8]) -> Option<u64> {
    Some(u64::from_le_bytes(*body.first_chunk()?))
}

/// Where a message is in its queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    Ready,
    /// Delivered, and not settled.
    Held,
    /// It has died, as so many did before, and stays until somebody takes it.
    Dying(u64),
}

/// Whether a message was delivered before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Flag {
    No,
    /// After a crash nobody knows how far messages were handed out.
    Perhaps,
    Yes,
}

#[derive(Clone, Debug)]
struct Entry {
    message: Rc<Message>,
    rank: u8,
    /// Only messages of the same one have an order: dead letters from different queues have none.
    lane: u16,
    journaled: bool,
    deadline_ms: Option<u64>,
    place: Place,
    flag: Flag,
    failed: u32,
    /// It died while the broker was down or slept: in which order with others, nobody can tell.
    is_loose: bool,
    /// A dead letter that gets there only at the next start.
    is_late: bool,
    /// Names it among all that ever were.
    serial: u64,
    /// Names its publish or transaction, or its death: after a crash all with the same are there, or none.
    together: u64,
}

#[derive(Clone, Debug)]
struct Queue {
    /// Names it among all that ever had its name.
    uid: u64,
    owner: Option<u8>,
    entries: Vec<Entry>,
    last_used_ms: u64,
    /// How many have died that stay.
    deaths: u64,
    /// When the first of those is tried again, if it was tried.
    retry_ms: Option<u64>,
}

impl Queue {
    fn has(&self, serial: u64) -> bool {
        self.entries.iter().any(|entry| entry.serial == serial)
    }

    fn ready(&self) -> impl Iterator<Item = &Entry> {
        self.entries.iter().filter(|entry| entry.place == Place::Ready)
    }

    /// Messages that have died and stay.
    fn dying(&self) -> impl Iterator<Item = &Entry> {
        self.entries.iter().filter(|entry| matches!(entry.place, Place::Dying(_)))
    }

    fn ready_count(&self) -> usize {
        self.ready().count()
    }

    fn ready_bytes(&self) -> usize {
        self.ready().map(|entry| entry.message.bytes).sum()
    }

    /// What would be delivered next, if all have the same lane.
    fn head(&self) -> Option<usize> {
        let ready = self.entries.iter().enumerate().filter(|(_, entry)| entry.place == Place::Ready);
        ready.min_by_key(|(at, entry)| (u8::MAX - entry.rank, *at)).map(|(at, _)| at)
    }
}

#[derive(Clone, Debug, Default)]
struct Topology {
    exchanges: BTreeSet<ExchangeName>,
    bindings: BTreeSet<(ExchangeName, u8, u8)>,
    /// Names the delayed exchange among all that ever had its name.
    delayed_uid: u64,
}

#[derive(Clone, Debug)]
struct Delayed {
    due_ms: u64,
    message: Rc<Message>,
}

/// What a virtual host would be after a crash that takes nothing more.
#[derive(Clone, Debug)]
pub(crate) struct Snapshot {
    queues: BTreeMap<u8, Rc<Queue>>,
    topology: Rc<Topology>,
    delayed: Rc<Vec<Delayed>>,
    /// What the transaction of the event has acked, and what names it.
    acked_together: Rc<BTreeMap<u64, u64>>,
    /// How many events there were.
    pub(crate) events: u64,
}

#[derive(Clone, Debug)]
struct Consumer {
    client: u8,
    mode: Mode,
    /// Once the broker has named it.
    id: Option<ConsumerId>,
    tag: u32,
    slot: u8,
    no_ack: bool,
    prefetch: u16,
    held: u16,
}

#[derive(Clone, Debug)]
struct Held {
    slot: u8,
    uid: u64,
    serial: u64,
    /// The tag of its consumer, if it has one.
    consumer: Option<u32>,
    since_ms: u64,
}

#[derive(Clone, Debug, Default)]
struct Channel {
    unacked: BTreeMap<u64, Held>,
    last_tag: u64,
    last_confirm: u64,
    /// In a transaction: what was published, with the queues that it goes to, and what was settled.
    publishes: Vec<(Rc<Message>, Route, bool)>,
    settlements: Vec<(u64, Held, Settling)>,
    /// The last event that settled something here that a disk keeps.
    settled: u64,
}

/// Where a message goes: queues by slot and name of their life, or it waits in the delayed exchange.
#[derive(Clone, Debug)]
enum Route {
    Queues(Vec<(u8, u64)>),
    Delayed { uid: u64 },
}

/// What becomes of a publish.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Outcome {
    /// A disk keeps it.
    Durable,
    /// It goes somewhere, or nowhere.
    Taken,
    /// A queue is full and does not take it.
    Refused,
}

/// What a connection must say next, but for deliveries.
#[derive(Clone, Debug, PartialEq)]
enum Expected {
    Return(u64),
    Confirm {
        number: u64,
    },
    Refuse {
        number: u64,
    },
    Declared {
        ready: usize,
        consumers: usize,
    },
    Count(usize),
    Get {
        slot: u8,
        no_ack: bool,
    },
    CommitOk,
    Closed,
    /// Any other answer.
    Answer,
}

/// What a client will hear, on its channel, in order.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Told {
    Message {
        tag: u64,
        redelivered: bool,
        id: u64,
        bytes: usize,
        slot: u8,
        uid: u64,
        serial: u64,
        event: u64,
        no_ack: bool,
    },
    Return(u64),
    Answer {
        /// The last event that must survive a crash once this is heard.
        promise: u64,
        /// Whether what was settled before it on its channel must.
        settles: bool,
    },
    Closed,
}

/// What comes first of what became due while the broker was down or slept: nobody can tell.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Order {
    #[default]
    ByTime,
    DelayedFirst,
    ExpiryFirst,
    /// One message after the other, and what is too much goes in between.
    OneByOne,
}

impl Order {
    pub(crate) const ALL: [Order; 4] = [Order::ByTime, Order::DelayedFirst, Order::ExpiryFirst, Order::OneByOne];
}

/// A virtual host.
#[derive(Clone, Debug)]
pub(crate) struct Model {
    config: Rc<Config>,
    queues: BTreeMap<u8, Rc<Queue>>,
    topology: Rc<Topology>,
    delayed: Rc<Vec<Delayed>>,
    consumers: Vec<Consumer>,
    channels: BTreeMap<(u8, Mode), Channel>,
    expected: BTreeMap<u8, VecDeque<(Mode, Expected)>>,
    /// Consumers whose queue is gone, and who are to hear of it.
    cancelled: Vec<(u8, Option<ConsumerId>)>,
    /// The same of those that have held something for too long.
    timed_out: Vec<(u8, Option<ConsumerId>)>,
    last_uid: u64,
    last_consumer: u32,
    /// How many things happened.
    pub(crate) events: u64,
    /// Whether the last event must be in the journal.
    pub(crate) is_durable: bool,
    topology_event: u64,
    last_serial: u64,
    last_together: u64,
    /// The transaction that is committed just now.
    transaction: Option<u64>,
    /// What it has acked.
    acked_together: Rc<BTreeMap<u64, u64>>,
    order: Order,
    /// What happens by itself was due at different times, and happens late.
    is_behind: bool,
    /// Messages that somebody was told of, as they lay in a queue: a disk knows that they may have been delivered.
    heard: HashSet<u64>,
    /// Queues that had a message delivered since the last restart in good order.
    granted: HashSet<u64>,
    /// Numbers of confirms that promise something, by client and channel.
    pub(crate) promises: BTreeMap<(u8, Mode, u64), u64>,
}

impl Model {
    pub(crate) fn new(config: Rc<Config>) -> Self {
        Model {
            config,
            queues: BTreeMap::new(),
            topology: Rc::default(),
            delayed: Rc::default(),
            consumers: Vec::new(),
            channels: BTreeMap::new(),
            expected: BTreeMap::new(),
            cancelled: Vec::new(),
            timed_out: Vec::new(),
            last_uid: 0,
            last_consumer: 0,
            events: 0,
            is_durable: false,
            topology_event: 0,
            last_serial: 0,
            last_together: 0,
            transaction: None,
            acked_together: Rc::default(),
            order: Order::default(),
            is_behind: false,
            heard: HashSet::new(),
            granted: HashSet::new(),
            promises: BTreeMap::new(),
        }
    }

    fn spec(&self, slot: u8) -> &QueueSpec {
        &self.config.queues[usize::from(slot)]
    }

    /// Something happens that a disk may have to keep.
    pub(crate) fn begin_event(&mut self) {
        self.events += 1;
        self.is_durable = false;
        self.is_behind = false;
        self.acked_together = Rc::default();
    }

    /// Names what is there after a crash as a whole, or not at all.
    fn next_together(&mut self) -> u64 {
        self.last_together += 1;
        self.last_together
    }

    fn queue_mut(&mut self, slot: u8) -> Option<&mut Queue> {
        self.queues.get_mut(&slot).map(Rc::make_mut)
    }

    fn expect(&mut self, client: u8, mode: Mode, expected: Expected) {
        self.expected.entry(client).or_default().push_back((mode, expected));
    }

    fn channel(&mut self, client: u8, mode: Mode) -> &mut Channel {
        self.channels.entry((client, mode)).or_default()
    }

    pub(crate) fn has_queue(&self, slot: u8) -> bool {
        self.queues.contains_key(&slot)
    }

    pub(crate) fn has_exchange(&self, exchange: ExchangeName) -> bool {
        self.topology.exchanges.contains(&exchange)
    }

    /// Whether a client may use a queue for anything but publishing.
    pub(crate) fn may_use(&self, client: u8, slot: u8) -> bool {
        self.queues.get(&slot).is_some_and(|queue| queue.owner.is_none_or(|owner| owner == client))
    }

    pub(crate) fn ready_count(&self, slot: u8) -> usize {
        self.queues.get(&slot).map_or(0, |queue| queue.ready_count())
    }

    fn consumer_count(&self, slot: u8) -> usize {
        self.consumers.iter().filter(|consumer| consumer.slot == slot).count()
    }

    pub(crate) fn consumers_of(&self, client: u8) -> usize {
        self.consumers.iter().filter(|consumer| consumer.client == client).count()
    }

    /// The tag of one of the consumers of a client.
    pub(crate) fn nth_consumer(&self, client: u8, nth: u8) -> Option<(Mode, u32)> {
        let own: Vec<_> = self.consumers.iter().filter(|consumer| consumer.client == client).collect();
        let consumer = own.get(usize::from(nth) % own.len().max(1))?;
        Some((consumer.mode, consumer.tag))
    }

    // Messages come and go.

    fn enqueue(&mut self, now_ms: u64, slot: u8, message: &Rc<Message>, lane: u16, together: u64) {
        let spec = self.spec(slot);
        let (most, without) = if spec.quorum { (31, 4) } else { (spec.max_priority.unwrap_or(0), 0) };
        let rank = if most == 0 { 0 } else { message.priority.map_or(without, |priority| priority.min(most)) };
        let time_to_live = message.expiration_ms.into_iter().chain(spec.ttl_ms).min();
        let journaled = spec.journals(message.persistent);
        self.last_serial += 1;
        let (serial, is_loose) = (self.last_serial, self.is_behind && lane != 0);
        let Some(queue) = self.queue_mut(slot) else { return };
        queue.entries.push(Entry {
            message: Rc::clone(message),
            rank,
            lane,
            journaled,
            deadline_ms: time_to_live.map(|ms| now_ms + u64::from(ms)),
            place: Place::Ready,
            flag: Flag::No,
            failed: 0,
            is_loose,
            is_late: false,
            serial,
            together,
        });
        self.is_durable |= journaled;
    }

    // What clients do.

    pub(crate) fn publish(
        &mut self,
        now_ms: u64,
        (client, mode): (u8, Mode),
        message: Message,
        to: To,
        mandatory: bool,
    ) {
        let message = Rc::new(message);
        let is_missing = match to {
            To::Nowhere => true,
            To::Exchange(exchange) => !self.has_exchange(exchange),
            To::Queue(_) => false,
        };
        if is_missing {
            return self.fail_channel(now_ms, client, mode);
        }
        let route = self.route(to, &message);
        if mode == Mode::Transaction {
            self.channel(client, mode).publishes.push((message, route, mandatory));
            return;
        }
        let taken = self.publish_to(now_ms, client, mode, &message, &route, mandatory);
        if mode == Mode::Confirm {
            let promise = match taken {
                Outcome::Durable => self.events,
                Outcome::Taken => 0,
                Outcome::Refused => REFUSED,
            };
            let channel = self.channel(client, mode);
            channel.last_confirm += 1;
            let number = channel.last_confirm;
            self.promises.insert((client, mode, number), promise);
            let is_refused = taken == Outcome::Refused;
            let expected = if is_refused { Expected::Refuse { number } } else { Expected::Confirm { number } };
            self.expect(client, mode, expected);
        }
    }

    fn publish_to(
        &mut self,
        now_ms: u64,
        client: u8,
        mode: Mode,
        message: &Rc<Message>,
        route: &Route,
        mandatory: bool,
    ) -> Outcome {
        match route {
            Route::Queues(queues) => {
                if queues.is_empty() && mandatory {
                    self.expect(client, mode, Expected::Return(message.id));
                }
                let is_there = |&(slot, uid): &(u8, u64)| self.queues.get(&slot).is_some_and(|it| it.uid == uid);
                let slots: Vec<u8> = queues.iter().copied().filter(is_there).map(|(slot, _)| slot).collect();
                let taken = self.offer(now_ms, message, &slots);
                let is_kept = |slot: &u8| self.spec(*slot).journals(message.persistent);
                let outcome = match taken.iter().any(is_kept) {
                    _ if taken.len() < slots.len() => Outcome::Refused,
                    true => Outcome::Durable,
                    false => Outcome::Taken,
                };
                // Before anything expires at once.
                for slot in taken {
                    while self.overflows(slot)
                        && self.waiting_consumer(slot).is_none()
                        && let Some(at) = self.queues[&slot].head()
                    {
                        self.die(now_ms, slot, at);
                    }
                }
                outcome
            }
            Route::Delayed { uid } => {
                if !self.has_exchange(ExchangeName::Delayed) || self.topology.delayed_uid != *uid {
                    return Outcome::Taken;
                }
                let due_ms = now_ms + u64::from(message.delay_ms.unwrap_or_default());
                let message = Rc::clone(message);
                let is_kept = message.persistent && self.config.durable_exchanges;
                self.is_durable |= is_kept;
                Rc::make_mut(&mut self.delayed).push(Delayed { due_ms, message });
                if is_kept { Outcome::Durable } else { Outcome::Taken }
            }
        }
    }

    pub(crate) fn get(&mut self, now_ms: u64, client: u8, mode: Mode, slot: u8, no_ack: bool) {
        if let Some(queue) = self.queue_mut(slot) {
            queue.last_used_ms = now_ms;
        }
        self.expect(client, mode, Expected::Get { slot, no_ack });
    }

    /// Returns the number in the tag of the consumer.
    pub(crate) fn consume(&mut self, client: u8, mode: Mode, slot: u8, no_ack: bool, prefetch: u16) -> u32 {
        self.last_consumer += 1;
        let tag = self.last_consumer;
        self.consumers.push(Consumer { client, mode, id: None, tag, slot, no_ack, prefetch, held: 0 });
        if let Some(queue) = self.queue_mut(slot) {
            let uid = queue.uid;
            self.granted.insert(uid);
        }
        // qos-ok and consume-ok
        self.expect(client, mode, Expected::Answer);
        self.expect(client, mode, Expected::Answer);
        tag
    }

    pub(crate) fn cancel(&mut self, now_ms: u64, client: u8, mode: Mode, tag: u32) {
        self.end_consumer(now_ms, client, tag);
        self.expect(client, mode, Expected::Answer);
    }

    fn end_consumer(&mut self, now_ms: u64, client: u8, tag: u32) {
        let Some(at) = self.consumers.iter().position(|own| own.client == client && own.tag == tag) else { return };
        let slot = self.consumers.remove(at).slot;
        if let Some(queue) = self.queue_mut(slot) {
            queue.last_used_ms = now_ms;
        }
        if self.spec(slot).auto_delete && self.consumer_count(slot) == 0 {
            self.remove_queue(slot);
        }
    }

    pub(crate) fn declare_queue(&mut self, now_ms: u64, client: u8, slot: u8) {
        let owner = self.spec(slot).exclusive.then_some(client);
        if let Some(queue) = self.queue_mut(slot) {
            queue.last_used_ms = now_ms;
        } else {
            self.last_uid += 1;
            let (uid, last_used_ms) = (self.last_uid, now_ms);
            let queue = Queue { uid, owner, entries: Vec::new(), last_used_ms, deaths: 0, retry_ms: None };
            self.queues.insert(slot, Rc::new(queue));
            self.changed_topology(self.spec(slot).durable);
        }
        let (ready, consumers) = (self.ready_count(slot), self.consumer_count(slot));
        self.expect(client, Mode::Plain, Expected::Declared { ready, consumers });
    }

    fn changed_topology(&mut self, durable: bool) {
        if durable {
            self.is_durable = true;
            self.topology_event = self.events;
        }
    }

    /// Whether it may be deleted so; if not, nothing is done and the channel is closed.
    pub(crate) fn delete_queue(&mut self, now_ms: u64, client: u8, slot: u8, if_empty: bool, if_unused: bool) {
        let ready = self.ready_count(slot);
        if (if_empty && ready > 0) || (if_unused && self.consumer_count(slot) > 0) {
            return self.fail_channel(now_ms, client, Mode::Plain);
        }
        self.remove_queue(slot);
        self.changed_topology(self.spec(slot).durable);
        self.expect(client, Mode::Plain, Expected::Count(ready));
    }

    pub(crate) fn purge_queue(&mut self, client: u8, slot: u8) {
        let ready = self.ready_count(slot);
        let Some(queue) = self.queue_mut(slot) else { return };
        let journaled = queue.entries.iter().any(|entry| entry.place != Place::Held && entry.journaled);
        queue.entries.retain(|entry| entry.place == Place::Held);
        if journaled {
            self.is_durable = true;
            self.channel(client, Mode::Plain).settled = self.events;
        }
        self.expect(client, Mode::Plain, Expected::Count(ready));
    }

    pub(crate) fn declare_exchange(&mut self, client: u8, exchange: ExchangeName) {
        if Rc::make_mut(&mut self.topology).exchanges.insert(exchange) {
            if exchange == ExchangeName::Delayed {
                self.last_uid += 1;
                Rc::make_mut(&mut self.topology).delayed_uid = self.last_uid;
            }
            self.changed_topology(self.config.durable_exchanges);
        }
        self.expect(client, Mode::Plain, Expected::Answer);
    }

    pub(crate) fn delete_exchange(&mut self, client: u8, exchange: ExchangeName) {
        let topology = Rc::make_mut(&mut self.topology);
        if topology.exchanges.remove(&exchange) {
            topology.bindings.retain(|(bound, _, _)| *bound != exchange);
            if exchange == ExchangeName::Delayed {
                self.delayed = Rc::default();
            }
            self.changed_topology(self.config.durable_exchanges);
        }
        self.expect(client, Mode::Plain, Expected::Answer);
    }

    pub(crate) fn bind(&mut self, client: u8, exchange: ExchangeName, slot: u8, key: u8) {
        if Rc::make_mut(&mut self.topology).bindings.insert((exchange, slot, key)) {
            self.changed_topology(self.config.durable_exchanges && self.spec(slot).durable);
        }
        self.expect(client, Mode::Plain, Expected::Answer);
    }

    pub(crate) fn unbind(&mut self, client: u8, exchange: ExchangeName, slot: u8, key: u8) {
        if Rc::make_mut(&mut self.topology).bindings.remove(&(exchange, slot, key)) {
            self.changed_topology(self.config.durable_exchanges && self.spec(slot).durable);
        }
        self.expect(client, Mode::Plain, Expected::Answer);
    }

    /// The broker closes a channel because of a fault.
    pub(crate) fn fail_channel(&mut self, now_ms: u64, client: u8, mode: Mode) {
        self.expect(client, mode, Expected::Closed);
        self.release_channel(now_ms, client, mode);
    }

    pub(crate) fn close_channel(&mut self, now_ms: u64, client: u8, mode: Mode) {
        self.expect(client, mode, Expected::Answer);
        self.release_channel(now_ms, client, mode);
    }

    fn release_channel(&mut self, now_ms: u64, client: u8, mode: Mode) {
        // What a client held that is gone has failed.
        self.release_channel_as(now_ms, client, mode, Settling::RejectRequeue);
    }

    fn release_channel_as(&mut self, now_ms: u64, client: u8, mode: Mode, settling: Settling) {
        let is_its = |own: &&Consumer| own.client == client && own.mode == mode;
        for tag in self.consumers.iter().filter(is_its).map(|own| own.tag).collect::<Vec<_>>() {
            self.end_consumer(now_ms, client, tag);
        }
        let Some(mut channel) = self.channels.remove(&(client, mode)) else { return };
        channel.unacked.extend(channel.settlements.into_iter().map(|(tag, held, _)| (tag, held)));
        for held in channel.unacked.into_values() {
            self.settle_one(now_ms, &held, settling);
        }
        self.promises.retain(|(own, its, _), _| (*own, *its) != (client, mode));
    }

    /// A connection is gone, whether it said so or not.
    pub(crate) fn disconnect(&mut self, now_ms: u64, client: u8) {
        self.leave(now_ms, client, Settling::RejectRequeue);
    }

    /// The broker closes a connection because it stops: nobody has failed.
    pub(crate) fn dismiss(&mut self, now_ms: u64, client: u8) {
        self.leave(now_ms, client, Settling::NackRequeue);
    }

    fn leave(&mut self, now_ms: u64, client: u8, settling: Settling) {
        for mode in Mode::ALL {
            self.release_channel_as(now_ms, client, mode, settling);
        }
        for slot in self.queues.keys().copied().collect::<Vec<_>>() {
            if self.queues[&slot].owner == Some(client) {
                self.remove_queue(slot);
            }
        }
        self.expected.remove(&client);
        self.cancelled.retain(|(cancelled, _)| *cancelled != client);
        self.timed_out.retain(|(late, _)| *late != client);
    }

    /// A client has heard of a message.
    pub(crate) fn hear(&mut self, serial: u64) {
        self.heard.insert(serial);
    }

    /// What there is to see of the queues.
    fn views(&self) -> BTreeMap<u8, View> {
        let of_model = |(slot, queue): (&u8, &Rc<Queue>)| {
            let unacked = queue.entries.iter().filter(|entry| entry.place == Place::Held).count();
            let (ready, dying, consumers) =
                (queue.ready_count(), queue.dying().count(), self.consumer_count(*slot));
            (*slot, View { ready, unacked, dying, consumers })
        };
        self.queues.iter().map(of_model).collect()
    }

    /// Compares the queues with what the broker says of them.
    pub(crate) fn compare(&self, views: &BTreeMap<u8, View>) -> Result<(), Violation> {
        let own = self.views();
        if own == *views {
            return Ok(());
        }
        Err(format!("queues are {views:?}, and should be {own:?}"))
    }

    /// All queues that there are.
    pub(crate) fn slots(&self) -> Vec<u8> {
        self.queues.keys().copied().collect()
    }

    /// Whether a queue lets its head go when it is too long. If bodies are evicted, whether a consumer takes it first depends on
    /// where it is.
    pub(crate) fn may_drop(&self, slot: u8) -> bool {
        let spec = self.spec(slot);
        (spec.max_length.is_some() || spec.max_bytes.is_some()) && spec.when_full() == Overflow::DropHead
    }

    /// Whether only dead letters reach a queue.
    pub(crate) fn is_dead(slot: u8) -> bool {
        slot >= ORDINARY_QUEUES
    }
}

/// The rank that the dead letters of a lane had where they come from.
fn source_rank(lane: u16) -> u8 {
    u8::try_from(lane.saturating_sub(1) % 32).unwrap_or_default()
}

/// The queue that the dead letters of a lane come from.
fn source_slot(lane: u16) -> Option<u8> {
    u8::try_from(lane.checked_sub(1)? / 32).ok()
}
