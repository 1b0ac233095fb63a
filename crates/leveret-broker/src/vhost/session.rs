//! What a virtual host knows of the connections in it: channels, consumers, unacked deliveries, credit.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::num::NonZeroU64;
use std::time::Duration;

use leveret_amqp::{FieldTable, ShortString};
use leveret_planted::{Bug, planted};

use crate::access::{Allowed, Login};
use crate::change::{JournalPosition, Tries};
use crate::limits::{REPLY_WINDOW_BYTES, TAKEN_BACK_KEPT, UNACKED_BYTES, WINDOW_BYTES_MAX};
use crate::memory::{Lease, Meter};
use crate::moment::Deadline;
use crate::names::{ChannelId, ConsumerTag, QueueName};
use crate::vhost::QueueId;
use crate::vhost::command::{AckMode, ConsumerId, DeliveryTag};
use crate::vhost::effects::Window;
use crate::vhost::ledger::Part;
use crate::vhost::queue::{Position, Priority, Seat};
use crate::vhost::route::RouteMemory;
use crate::vhost::transaction::Transaction;
use crate::vhost::views::ConnectionDetails;
use crate::vhost::work::Work;

/// One connection.
#[derive(Debug)]
pub(crate) struct Session {
    pub(crate) login: Login,
    /// What it holds.
    pub(super) part: Part,
    /// What it was allowed last.
    pub(crate) allowed: Allowed,
    /// May give names that are the broker's.
    pub(crate) is_administrator: bool,
    /// How it is known outside.
    pub(super) details: Option<ConnectionDetails>,
    channels: Vec<Option<Box<Channel>>>,
    consumers: Vec<Option<Consumer>>,
    pub(crate) exclusive_queues: BTreeSet<QueueId>,
    pub(crate) routes: RouteMemory,
    /// What its commands have begun and others need not wait for. No other command of it is begun until then.
    pub(super) begun: VecDeque<Work>,
    /// A `basic.get` that waits for its body. No other command of this connection is begun until then.
    pub(crate) getting: Option<Getting>,
    /// The last change that settled something on any of its channels.
    pub(crate) settled: JournalPosition,
    /// Whether it waits with a publish until there is room.
    pub(crate) waits_for_room: bool,
    /// Bytes of deliveries handed out and not yet written to the socket.
    window: Window,
    /// Consumers that wait for the window.
    starved: Vec<ConsumerId>,
    /// Whether its connection was asked to say at once what is written.
    has_asked: bool,
    replies: Replies,
}

/// What became of direct replies to a client of late.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Replies {
    Sent,
    /// And the log says so.
    Dropped,
}

/// A message that `basic.get` took from its queue, all but its body.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Getting {
    pub(crate) channel: ChannelId,
    pub(crate) queue: QueueId,
    pub(crate) position: Position,
    pub(crate) ack_mode: AckMode,
    pub(crate) tag: DeliveryTag,
    pub(crate) redelivered: bool,
    /// What it says of deliveries before this one.
    pub(crate) tries: Option<Tries>,
    /// What must be durable before it is handed out.
    pub(crate) after: JournalPosition,
    pub(crate) message_count: u32,
}

/// One open channel.
#[derive(Debug, Default)]
pub(crate) struct Channel {
    /// Closed by an exception; what still arrives for it is dropped.
    pub(crate) failed: bool,
    pub(crate) last_declared: Option<QueueName>,
    pub(crate) unacked: Outstanding,
    /// The last change that settled something here, or that a transaction of this channel made. Answers rest on it.
    pub(crate) settled: JournalPosition,
    /// `basic.qos` for consumers to come.
    pub(crate) prefetch_per_consumer: Option<NonZeroU64>,
    /// `basic.qos` for the channel as a whole.
    pub(crate) prefetch: Option<NonZeroU64>,
    /// As if that were its prefetch where it has none, or a larger one: what it knows of them takes memory.
    pub(crate) unacked_max: u64,
    /// It has come to that once, and the log says so.
    told_of_unacked: bool,
    /// Deliveries to consumers, not those of `basic.get`, that count against both.
    pub(crate) delivered: u64,
    pub(crate) consumers: BTreeSet<ConsumerId>,
    /// Consumers that were cancelled and of which it still holds deliveries.
    pub(crate) former: BTreeMap<ConsumerId, FormerConsumer>,
    /// After `tx.select`.
    pub(crate) transaction: Option<Transaction>,
    /// The consumer of replies, and the routing key that reaches it.
    pub(crate) replies: Option<(ConsumerId, ShortString)>,
    /// When the virtual host will look for deliveries that were not settled in time.
    pub(crate) timer: Option<Deadline>,
}

/// One consumer.
#[derive(Debug)]
pub(crate) struct Consumer {
    pub(crate) id: ConsumerId,
    /// Its name on its channel, and its arguments, for those who look.
    pub(crate) tag: ConsumerTag,
    pub(crate) arguments: FieldTable,
    pub(crate) channel: ChannelId,
    pub(crate) queue: QueueId,
    /// Its place in that queue.
    pub(crate) seat: Seat,
    pub(crate) ack_mode: AckMode,
    pub(crate) priority: Priority,
    pub(crate) prefetch: Option<NonZeroU64>,
    /// How long it may hold a delivery, if it says so itself.
    pub(crate) timeout: Option<Duration>,
    pub(crate) unacked: u64,
    /// Whether it stands in the ring of its queue.
    pub(crate) waiting: bool,
    /// Whether it stands in the list of those that wait for the window.
    pub(crate) starved: bool,
    /// What it takes in memory.
    pub(crate) _memory: Lease,
}

/// What is left of a consumer that has said its timeout and was cancelled, until all that it was given is settled.
#[derive(Debug)]
pub(crate) struct FormerConsumer {
    /// How long its deliveries may be held, as before.
    pub(crate) timeout: Duration,
    pub(crate) unacked: u64,
}

/// Whether a consumer may get another message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Credit {
    Available,
    /// Its own prefetch or that of its channel is used up; an ack changes that.
    PrefetchUsed,
    /// The connection has enough to write; writing changes that.
    WindowFull,
}

impl Channel {
    /// How many deliveries its consumers may hold.
    pub(crate) fn delivered_max(&self) -> u64 {
        self.prefetch.map_or(self.unacked_max, |limit| limit.get().min(self.unacked_max))
    }

    /// Whether its consumers hold as many as any channel's may, and that is news.
    pub(crate) fn tell_of_unacked(&mut self) -> bool {
        let is_full = self.delivered >= self.unacked_max;
        is_full && !std::mem::replace(&mut self.told_of_unacked, true)
    }
}

impl Consumer {
    /// Whether it may get another message now.
    pub(crate) fn credit(&self, channel: &Channel, is_window_full: bool) -> Credit {
        let more = u64::from(planted(Bug::PrefetchOneTooMany));
        let used_up = |limit: Option<NonZeroU64>, used| limit.is_some_and(|limit| used >= limit.get() + more);
        let is_counted = self.ack_mode == AckMode::Manual;
        if is_counted
            && (used_up(self.prefetch, self.unacked) || channel.delivered >= channel.delivered_max() + more)
        {
            Credit::PrefetchUsed
        } else if is_window_full {
            Credit::WindowFull
        } else {
            Credit::Available
        }
    }
}

/// Who gets a message: a consumer, its channel, and the window of its connection.
pub(crate) struct Recipient<'s> {
    pub(crate) consumer: &'s mut Consumer,
    pub(crate) channel: &'s mut Channel,
    pub(crate) window: &'s mut Window,
}

impl Recipient<'_> {
    /// Whether the consumer may get another message now, where a window may have so many bytes.
    pub(crate) fn credit(&self, window_max: usize) -> Credit {
        self.consumer.credit(self.channel, self.window.is_full(window_max))
    }

    /// The consumer was given a message of so many bytes, as windows count them. Returns the credit that it has now.
    pub(crate) fn use_window(&mut self, bytes: usize, window_room: &mut usize) -> Credit {
        self.window.deliveries += bytes;
        *window_room = window_room.saturating_sub(bytes);
        self.credit((*window_room).min(WINDOW_BYTES_MAX))
    }
}

impl Session {
    pub(super) fn new(login: Login, part: Part) -> Self {
        Session {
            login,
            part,
            allowed: Allowed::default(),
            is_administrator: false,
            details: None,
            channels: Vec::new(),
            consumers: Vec::new(),
            exclusive_queues: BTreeSet::new(),
            routes: RouteMemory::default(),
            begun: VecDeque::new(),
            getting: None,
            settled: JournalPosition::default(),
            waits_for_room: false,
            window: Window::default(),
            starved: Vec::new(),
            has_asked: false,
            replies: Replies::Sent,
        }
    }

    /// Opens a channel, whose consumers may leave so many deliveries unacked. What it knows of many is added up in `meter`.
    pub(crate) fn open_channel(&mut self, id: ChannelId, meter: Meter, unacked_max: u64) {
        let slot = usize::from(id.number());
        if self.channels.len() <= slot {
            self.channels.resize_with(slot + 1, || None);
        }
        let unacked = Outstanding::new(Lease::new(meter));
        self.channels[slot] = Some(Box::new(Channel { unacked, unacked_max, ..Channel::default() }));
    }

    pub(crate) fn channel(&mut self, id: ChannelId) -> Option<&mut Channel> {
        self.channels.get_mut(usize::from(id.number()))?.as_deref_mut()
    }

    /// The transaction of a channel that is in one, and what the connection holds.
    pub(super) fn transaction(&mut self, id: ChannelId) -> Option<(&mut Transaction, &Part)> {
        let channel = self.channels.get_mut(usize::from(id.number()))?.as_deref_mut()?;
        Some((channel.transaction.as_mut()?, &self.part))
    }

    /// Remembers that a change settled something on a channel.
    pub(crate) fn settled_on(&mut self, id: ChannelId, position: JournalPosition) {
        self.settled = position;
        if let Some(channel) = self.channel(id) {
            channel.settled = position;
        }
    }

    pub(crate) fn remove_channel(&mut self, id: ChannelId) -> Option<Box<Channel>> {
        self.channels.get_mut(usize::from(id.number()))?.take()
    }

    pub(crate) fn channel_ids(&self) -> Vec<ChannelId> {
        let open = self.channels.iter().enumerate().filter(|(_, channel)| channel.is_some());
        open.filter_map(|(number, _)| ChannelId::new(u16::try_from(number).ok()?)).collect()
    }

    /// Its channels by their number.
    pub(super) fn channel_slots(&self) -> &[Option<Box<Channel>>] {
        &self.channels
    }

    /// Its consumers by the slot in their names.
    pub(super) fn consumer_slots(&self) -> &[Option<Consumer>] {
        &self.consumers
    }

    /// RabbitMQ: the name of the connection.
    fn name(&self) -> &str {
        self.details.as_ref().map_or("", ConnectionDetails::name)
    }

    /// RabbitMQ: the name of the connection, and the number.
    pub(super) fn channel_name(&self, id: ChannelId) -> String {
        format!("{} ({id})", self.name())
    }

    pub(crate) fn add_consumer(&mut self, consumer: Consumer) {
        let slot = consumer.id.slot as usize;
        if self.consumers.len() <= slot {
            self.consumers.resize_with(slot + 1, || None);
        }
        self.consumers[slot] = Some(consumer);
    }

    pub(crate) fn consumer(&mut self, id: ConsumerId) -> Option<&mut Consumer> {
        self.consumers.get_mut(id.slot as usize)?.as_mut().filter(|consumer| consumer.id == id)
    }

    pub(crate) fn remove_consumer(&mut self, id: ConsumerId) -> Option<Consumer> {
        let consumer = self.consumers.get_mut(id.slot as usize)?.take_if(|consumer| consumer.id == id)?;
        if let Some(channel) = self.channel(consumer.channel) {
            channel.consumers.remove(&id);
        }
        Some(consumer)
    }

    /// The timeout that a consumer has said goes on counting for what it was given, when it is gone.
    pub(crate) fn remember_timeout(&mut self, gone: &Consumer) {
        let Some(channel) = self.channel(gone.channel).filter(|channel| !channel.failed) else { return };
        if let Some(timeout) = gone.timeout.filter(|_| gone.unacked > 0) {
            channel.former.insert(gone.id, FormerConsumer { timeout, unacked: gone.unacked });
        }
    }

    /// A consumer with all that decides whether it gets a message.
    pub(crate) fn recipient(&mut self, id: ConsumerId) -> Option<Recipient<'_>> {
        let consumer = self.consumers.get_mut(id.slot as usize)?.as_mut().filter(|consumer| consumer.id == id)?;
        let channel = self.channels.get_mut(usize::from(consumer.channel.number()))?.as_deref_mut()?;
        Some(Recipient { consumer, channel, window: &mut self.window })
    }

    /// It waits for room in a window. If that is full only because others have much to read, its connection must be asked to
    /// say at once what it has written, as it would wait until there is more to say: true if that is to be done now.
    pub(crate) fn must_ask(&mut self) -> bool {
        let is_early = self.window.deliveries < WINDOW_BYTES_MAX && self.window.answers < WINDOW_BYTES_MAX;
        is_early && !std::mem::replace(&mut self.has_asked, true)
    }

    /// Replies come without credit, so they have a bound of their own; beyond a window, they take no more than is left for all.
    pub(crate) fn has_too_many_replies(&self, left: usize) -> bool {
        self.window.deliveries >= REPLY_WINDOW_BYTES.min(left.max(WINDOW_BYTES_MAX))
    }

    /// A reply was dropped: the name of the connection if that is to be said now. Who reads a little at a time would have it said
    /// for every reply.
    pub(crate) fn tell_of_dropped_reply(&mut self) -> Option<String> {
        let before = std::mem::replace(&mut self.replies, Replies::Dropped);
        (before == Replies::Sent).then(|| self.name().to_owned())
    }

    pub(crate) fn use_window(&mut self, bytes: usize) {
        self.window.deliveries += bytes;
    }

    /// Counts an answer that carries a body.
    pub(crate) fn use_answer_window(&mut self, bytes: usize) {
        self.window.answers += bytes;
    }

    /// Whether the client has so many answers to read that its next commands wait.
    pub(crate) fn is_answer_window_full(&self, window_max: usize) -> bool {
        self.window.answers >= window_max.max(1)
    }

    /// Gives back room in the windows; the consumers that waited for it if there is room again. None wait any more then.
    pub(crate) fn written(&mut self, written: Window, window_max: usize) -> Option<Vec<ConsumerId>> {
        self.has_asked = false;
        debug_assert!(written.deliveries <= self.window.deliveries && written.answers <= self.window.answers);
        self.window.deliveries = self.window.deliveries.saturating_sub(written.deliveries);
        self.window.answers = self.window.answers.saturating_sub(written.answers);
        if self.window.deliveries < WINDOW_BYTES_MAX {
            self.replies = Replies::Sent;
        }
        let goes_on = !self.window.is_full(window_max) || self.starved.is_empty();
        goes_on.then(|| std::mem::take(&mut self.starved))
    }

    /// A consumer waits for the window. True if the connection must be asked what it has written.
    #[must_use]
    pub(crate) fn starve(&mut self, id: ConsumerId) -> bool {
        let Some(consumer) = self.consumer(id) else { return false };
        if !std::mem::replace(&mut consumer.starved, true) {
            self.starved.push(id);
        }
        self.must_ask()
    }
}

/// One delivery that is not settled.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Unacked {
    pub(crate) tag: u64,
    /// When it was delivered, in milliseconds of the monotonic clock.
    pub(crate) delivered_ms: u64,
    pub(crate) queue: QueueId,
    pub(crate) position: Position,
    /// `None` for a message that was got.
    pub(crate) consumer: Option<ConsumerId>,
}

impl Unacked {
    /// When it is late, if it may be held for so long.
    pub(crate) fn deadline(&self, timeout: Duration) -> Deadline {
        Deadline(Duration::from_millis(self.delivered_ms).saturating_add(timeout))
    }
}

/// The deliveries of one channel that are not settled, in the order of their tags.
///
/// Tags are given in order and mostly settled in order, so this is a queue in which settled ones may stay for a
/// while as holes; they are swept out when they are more than half of it.
///
/// A client may never settle what was taken back from it. Of that, [`TAKEN_BACK_KEPT`] are kept; older ones are forgotten, and from
/// then on each tag up to the last of them that stands for nothing passes for one that was taken back.
#[derive(Debug, Default)]
pub(crate) struct Outstanding {
    last_tag: u64,
    deliveries: VecDeque<Delivery>,
    holes: usize,
    taken_back: usize,
    /// The last tag that was taken back and forgotten.
    forgotten: u64,
    /// What all of these take, in whole steps of [`MEASURED_AT_ONCE`].
    memory: Lease,
}

/// So many deliveries are counted at once in what is held in memory; fewer do not count.
const MEASURED_AT_ONCE: usize = 1024;

#[derive(Debug)]
struct Delivery {
    unacked: Unacked,
    state: DeliveryState,
}

const _: () = assert!(
    size_of::<Delivery>() <= UNACKED_BYTES,
    "a channel may have so many of them as take a part of the memory"
);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum DeliveryState {
    Outstanding,
    Settled,
    /// The broker has put the message back, and the client does not know: it may still settle this, to no effect.
    TakenBack,
}

/// A delivery tag that stands for no delivery, or for one that was settled before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct UnknownTag;

const HOLES_SWEPT_FROM: usize = 64;

impl Outstanding {
    /// None yet; what many take is added up by this.
    pub(crate) fn new(memory: Lease) -> Self {
        Outstanding { memory, ..Outstanding::default() }
    }

    fn measure(&mut self) {
        let steps = self.deliveries.len() / MEASURED_AT_ONCE;
        self.memory.set(steps * MEASURED_AT_ONCE * size_of::<Delivery>());
    }

    /// Gives memory back that a great many have left.
    fn shrink(&mut self) {
        self.measure();
        if self.deliveries.is_empty() && self.deliveries.capacity() > MEASURED_AT_ONCE {
            self.deliveries = VecDeque::new();
        }
    }

    /// The tag of the next delivery, settled or not.
    pub(crate) fn next_tag(&mut self) -> DeliveryTag {
        self.last_tag += 1;
        DeliveryTag(NonZeroU64::new(self.last_tag).expect("tags count from 1, and not to 2^64"))
    }

    /// The tag that was given last; 0 if none was.
    pub(crate) fn last_tag(&self) -> u64 {
        self.last_tag
    }

    /// Remembers a delivery. Tags grow.
    pub(crate) fn push(&mut self, unacked: Unacked) {
        assert!(self.deliveries.back().is_none_or(|last| last.unacked.tag < unacked.tag));
        self.deliveries.push_back(Delivery { unacked, state: DeliveryState::Outstanding });
        self.measure();
    }

    /// Takes one delivery out; `None` if it was taken back.
    pub(crate) fn take(&mut self, tag: u64) -> Result<Option<Unacked>, UnknownTag> {
        let Some(at) = self.find(tag) else {
            return if self.is_forgotten(tag) { Ok(None) } else { Err(UnknownTag) };
        };
        let state = std::mem::replace(&mut self.deliveries[at].state, DeliveryState::Settled);
        self.holes += 1;
        self.taken_back -= usize::from(state == DeliveryState::TakenBack);
        let unacked = self.deliveries[at].unacked;
        self.sweep();
        Ok((state == DeliveryState::Outstanding).then_some(unacked))
    }

    /// Takes out those of some consumers for the broker, in their order. The client may still settle them, to no effect.
    pub(crate) fn take_back(&mut self, of: impl Fn(ConsumerId) -> bool) -> Outstanding {
        let mut taken = Outstanding::new(self.memory.sibling());
        let is_taken = |delivery: &&mut Delivery| {
            delivery.state == DeliveryState::Outstanding && delivery.unacked.consumer.is_some_and(&of)
        };
        for delivery in self.deliveries.iter_mut().filter(is_taken) {
            delivery.state = DeliveryState::TakenBack;
            self.taken_back += 1;
            taken.push(delivery.unacked);
        }
        self.forget_taken_back();
        taken
    }

    /// Those that are outstanding, in the order of their tags.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &Unacked> {
        let outstanding = self.deliveries.iter().filter(|delivery| delivery.state == DeliveryState::Outstanding);
        outstanding.map(|delivery| &delivery.unacked)
    }

    /// Takes out the oldest delivery, if its tag is at most this.
    pub(crate) fn take_first(&mut self, up_to: u64) -> Option<Unacked> {
        self.take_first_if(up_to, |_| true)
    }

    /// The same, if it is one of those that are wanted.
    pub(crate) fn take_first_if(&mut self, up_to: u64, wanted: impl Fn(&Unacked) -> bool) -> Option<Unacked> {
        while let Some(first) = self.deliveries.front()
            && first.unacked.tag <= up_to
            && (first.state != DeliveryState::Outstanding || wanted(&first.unacked))
        {
            let Delivery { unacked, state } = self.deliveries.pop_front()?;
            self.shrink();
            match state {
                DeliveryState::Outstanding => return Some(unacked),
                DeliveryState::Settled => self.holes -= 1,
                DeliveryState::TakenBack => self.taken_back -= 1,
            }
        }
        None
    }

    /// How many are outstanding.
    pub(crate) fn len(&self) -> usize {
        self.deliveries.len() - self.holes - self.taken_back
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Whether a delivery may be settled.
    pub(crate) fn contains(&self, tag: u64) -> bool {
        self.find(tag).is_some() || self.is_forgotten(tag)
    }

    /// Puts deliveries back that were taken and not settled.
    pub(crate) fn put_back(&mut self, taken: impl ExactSizeIterator<Item = Unacked>) {
        if taken.len() == 0 {
            return;
        }
        let whole = self.deliveries.drain(..).filter(|delivery| delivery.state != DeliveryState::Settled);
        let taken = taken.map(|unacked| Delivery { unacked, state: DeliveryState::Outstanding });
        let mut deliveries: Vec<_> = whole.chain(taken).collect();
        deliveries.sort_by_key(|delivery| delivery.unacked.tag);
        self.deliveries = deliveries.into();
        self.holes = 0;
        self.measure();
    }

    /// Forgets the oldest that were taken back, beyond those that are kept.
    fn forget_taken_back(&mut self) {
        let mut excess = self.taken_back.saturating_sub(TAKEN_BACK_KEPT);
        if excess == 0 {
            return;
        }
        self.taken_back -= excess;
        let forgotten = &mut self.forgotten;
        self.deliveries.retain(|delivery| {
            let is_forgotten = excess > 0 && delivery.state == DeliveryState::TakenBack;
            if is_forgotten {
                excess -= 1;
                *forgotten = delivery.unacked.tag.max(*forgotten);
            }
            !is_forgotten
        });
        self.sweep();
    }

    fn is_forgotten(&self, tag: u64) -> bool {
        tag <= self.forgotten
    }

    fn find(&self, tag: u64) -> Option<usize> {
        // Without gaps, the first says where all others are.
        let near = usize::try_from(tag.checked_sub(self.deliveries.front()?.unacked.tag)?).ok()?;
        let at = match self.deliveries.get(near) {
            Some(there) if there.unacked.tag == tag => near,
            _ => self.deliveries.binary_search_by_key(&tag, |delivery| delivery.unacked.tag).ok()?,
        };
        (self.deliveries[at].state != DeliveryState::Settled).then_some(at)
    }

    fn sweep(&mut self) {
        let is_hole = |delivery: &Delivery| delivery.state == DeliveryState::Settled;
        while self.deliveries.front().is_some_and(is_hole) {
            self.deliveries.pop_front();
            self.holes -= 1;
        }
        if self.holes > HOLES_SWEPT_FROM && self.holes > self.deliveries.len() / 2 {
            self.deliveries.retain(|delivery| !is_hole(delivery));
            self.holes = 0;
        }
        self.shrink();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CONSUMER: ConsumerId = ConsumerId { slot: 0, number: 7 };

    fn outstanding(count: u64) -> Outstanding {
        let mut outstanding = Outstanding::default();
        for position in 0..count {
            let tag = outstanding.next_tag().number();
            let position = Position(position);
            let consumer = position.0.is_multiple_of(2).then_some(CONSUMER);
            outstanding.push(Unacked { tag, delivered_ms: 0, queue: QueueId::default(), position, consumer });
        }
        outstanding
    }

    #[test]
    fn a_tag_is_taken_once() {
        let mut outstanding = outstanding(3);
        assert!(matches!(outstanding.take(2), Ok(Some(_))));
        assert_eq!(outstanding.take(2).err(), Some(UnknownTag), "twice");
        assert_eq!(outstanding.take(4).err(), Some(UnknownTag), "never given");
        let rest: Vec<_> = std::iter::from_fn(|| outstanding.take_first(u64::MAX)).map(|taken| taken.tag).collect();
        assert_eq!(rest, [1, 3]);
        assert!(outstanding.is_empty());
    }

    #[test]
    fn a_delivery_that_is_never_settled_does_not_keep_the_holes_behind_it() {
        let mut outstanding = outstanding(10_000);
        for number in 2..=10_000 {
            assert!(matches!(outstanding.take(number), Ok(Some(_))));
        }
        assert!(outstanding.deliveries.len() <= 2 * HOLES_SWEPT_FROM);
        assert!(matches!(outstanding.take(1), Ok(Some(_))));
        assert!(outstanding.is_empty());
    }

    #[test]
    fn what_was_taken_back_can_be_settled_once_to_no_effect() {
        let mut outstanding = outstanding(5);
        let tags = |outstanding: &Outstanding| outstanding.iter().map(|unacked| unacked.tag).collect::<Vec<_>>();
        assert_eq!(tags(&outstanding.take_back(|consumer| consumer == CONSUMER)), [1, 3, 5]);
        assert_eq!(tags(&outstanding), [2, 4]);
        assert!(outstanding.contains(5));
        assert!(matches!(outstanding.take(3), Ok(None)));
        assert_eq!(outstanding.take(3).err(), Some(UnknownTag));
        let rest: Vec<_> = std::iter::from_fn(|| outstanding.take_first(5)).map(|taken| taken.tag).collect();
        assert_eq!(rest, [2, 4]);
        assert!(outstanding.is_empty() && outstanding.deliveries.is_empty());
    }

    #[test]
    fn what_was_taken_back_and_is_never_settled_is_forgotten_in_the_end() {
        let mut outstanding = Outstanding::default();
        let mut of = |count: u64, consumer| {
            for _ in 0..count {
                let tag = outstanding.next_tag().number();
                let (queue, position) = (QueueId::default(), Position(tag));
                outstanding.push(Unacked { tag, delivered_ms: 0, queue, position, consumer });
            }
            outstanding.take_back(|_| true).len()
        };
        assert_eq!(of(1, None), 0, "one that was got, and stays");
        for _ in 0..100 {
            assert_eq!(of(1000, Some(CONSUMER)), 1000);
        }
        assert!(outstanding.deliveries.len() <= TAKEN_BACK_KEPT + 1, "{}", outstanding.deliveries.len());
        assert_eq!(outstanding.len(), 1);
        for number in [2, 50_000, 100_001] {
            assert!(outstanding.contains(number));
            assert!(matches!(outstanding.take(number), Ok(None)), "{number}");
        }
        assert_eq!(outstanding.take(100_001).err(), Some(UnknownTag), "one that is kept is settled once");
        assert_eq!(outstanding.take(100_002).err(), Some(UnknownTag), "never given");
        assert!(matches!(outstanding.take(1), Ok(Some(_))));
        assert!(outstanding.take_first(u64::MAX).is_none() && outstanding.deliveries.is_empty());
    }
}
