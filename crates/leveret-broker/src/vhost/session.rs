//! What a virtual host knows of the connections in it: channels, consumers, unacked deliveries, credit.

use std::collections::{BTreeSet, VecDeque};
use std::num::NonZeroU64;

use leveret_amqp::ShortString;

use crate::access::Login;
use crate::change::JournalPosition;
use crate::limits::{ANSWER_WINDOW_BYTES, DELIVERY_WINDOW_BYTES, REPLY_WINDOW_BYTES};
use crate::names::{ChannelId, QueueName};
use crate::vhost::QueueId;
use crate::vhost::command::{AckMode, ConsumerId, DeliveryTag};
use crate::vhost::effects::Window;
use crate::vhost::queue::{Position, Priority, Seat};
use crate::vhost::route::RouteMemory;
use crate::vhost::transaction::Transaction;

/// One connection.
#[derive(Debug)]
pub(crate) struct Session {
    pub(crate) login: Login,
    channels: Vec<Option<Box<Channel>>>,
    consumers: Vec<Option<Consumer>>,
    pub(crate) exclusive_queues: BTreeSet<QueueId>,
    pub(crate) routes: RouteMemory,
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
    /// Deliveries to consumers, not those of `basic.get`, that count against [`Self::prefetch`].
    pub(crate) delivered: u64,
    pub(crate) consumers: BTreeSet<ConsumerId>,
    /// After `tx.select`.
    pub(crate) transaction: Option<Transaction>,
    /// The consumer of replies, and the routing key that reaches it.
    pub(crate) replies: Option<(ConsumerId, ShortString)>,
}

/// One consumer.
#[derive(Debug)]
pub(crate) struct Consumer {
    pub(crate) id: ConsumerId,
    pub(crate) channel: ChannelId,
    pub(crate) queue: QueueId,
    /// Its place in that queue.
    pub(crate) seat: Seat,
    pub(crate) ack_mode: AckMode,
    pub(crate) priority: Priority,
    pub(crate) prefetch: Option<NonZeroU64>,
    pub(crate) unacked: u64,
    /// Whether it stands in the ring of its queue.
    pub(crate) waiting: bool,
    /// Whether it stands in the list of those that wait for the window.
    pub(crate) starved: bool,
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

impl Session {
    pub(crate) fn new(login: Login) -> Self {
        Session {
            login,
            channels: Vec::new(),
            consumers: Vec::new(),
            exclusive_queues: BTreeSet::new(),
            routes: RouteMemory::default(),
            getting: None,
            settled: JournalPosition::default(),
            waits_for_room: false,
            window: Window::default(),
            starved: Vec::new(),
        }
    }

    pub(crate) fn open_channel(&mut self, id: ChannelId) {
        let slot = usize::from(id.number());
        if self.channels.len() <= slot {
            self.channels.resize_with(slot + 1, || None);
        }
        self.channels[slot] = Some(Box::default());
    }

    pub(crate) fn channel(&mut self, id: ChannelId) -> Option<&mut Channel> {
        self.channels.get_mut(usize::from(id.number()))?.as_deref_mut()
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

    /// Consumer and channel together, for a delivery.
    pub(crate) fn consumer_and_channel(&mut self, id: ConsumerId) -> Option<(&mut Consumer, &mut Channel)> {
        let consumer = self.consumers.get_mut(id.slot as usize)?.as_mut().filter(|consumer| consumer.id == id)?;
        let channel = self.channels.get_mut(usize::from(consumer.channel.number()))?.as_deref_mut()?;
        Some((consumer, channel))
    }

    /// Whether a consumer may get another message now.
    pub(crate) fn credit(&mut self, id: ConsumerId) -> Option<Credit> {
        let window_full = self.is_window_full();
        let (consumer, channel) = self.consumer_and_channel(id)?;
        let used_up = |limit: Option<NonZeroU64>, used| limit.is_some_and(|limit| used >= limit.get());
        let manual = consumer.ack_mode == AckMode::Manual;
        Some(
            if manual
                && (used_up(consumer.prefetch, consumer.unacked) || used_up(channel.prefetch, channel.delivered))
            {
                Credit::PrefetchUsed
            } else if window_full {
                Credit::WindowFull
            } else {
                Credit::Available
            },
        )
    }

    pub(crate) fn is_window_full(&self) -> bool {
        self.window.deliveries >= DELIVERY_WINDOW_BYTES
    }

    /// Replies come without credit, so they have a bound of their own.
    pub(crate) fn has_too_many_replies(&self) -> bool {
        self.window.deliveries >= REPLY_WINDOW_BYTES
    }

    pub(crate) fn use_window(&mut self, bytes: usize) {
        self.window.deliveries += bytes;
    }

    /// Counts an answer that carries a body.
    pub(crate) fn use_answer_window(&mut self, bytes: usize) {
        self.window.answers += bytes;
    }

    /// Whether the client has so many answers to read that its next commands wait.
    pub(crate) fn is_answer_window_full(&self) -> bool {
        self.window.answers >= ANSWER_WINDOW_BYTES
    }

    /// Gives back room in the windows; the consumers that waited for it if there is room again.
    pub(crate) fn written(&mut self, written: Window) -> Vec<ConsumerId> {
        debug_assert!(written.deliveries <= self.window.deliveries && written.answers <= self.window.answers);
        self.window.deliveries = self.window.deliveries.saturating_sub(written.deliveries);
        self.window.answers = self.window.answers.saturating_sub(written.answers);
        if self.is_window_full() { Vec::new() } else { std::mem::take(&mut self.starved) }
    }

    pub(crate) fn starve(&mut self, id: ConsumerId) {
        if let Some(consumer) = self.consumer(id)
            && !consumer.starved
        {
            consumer.starved = true;
            self.starved.push(id);
        }
    }
}

/// One delivery that is not settled.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Unacked {
    pub(crate) tag: u64,
    pub(crate) queue: QueueId,
    pub(crate) position: Position,
    /// `None` for a message that was got.
    pub(crate) consumer: Option<ConsumerId>,
}

/// The deliveries of one channel that are not settled, in the order of their tags.
///
/// Tags are given in order and mostly settled in order, so this is a queue in which settled ones may stay for a
/// while as holes; they are swept out when they are more than half of it.
#[derive(Debug, Default)]
pub(crate) struct Outstanding {
    last_tag: u64,
    deliveries: VecDeque<Delivery>,
    holes: usize,
}

#[derive(Debug)]
struct Delivery {
    unacked: Unacked,
    is_hole: bool,
}

const HOLES_SWEPT_FROM: usize = 64;

impl Outstanding {
    /// The tag of the next delivery, settled or not.
    pub(crate) fn next_tag(&mut self) -> DeliveryTag {
        self.last_tag += 1;
        DeliveryTag(NonZeroU64::new(self.last_tag).expect("tags count from 1, and not to 2^64"))
    }

    /// Remembers a delivery. Tags grow.
    pub(crate) fn push(&mut self, unacked: Unacked) {
        assert!(self.deliveries.back().is_none_or(|last| last.unacked.tag < unacked.tag));
        self.deliveries.push_back(Delivery { unacked, is_hole: false });
    }

    /// Takes one delivery out; `None` if it is not outstanding.
    pub(crate) fn take(&mut self, tag: DeliveryTag) -> Option<Unacked> {
        let at = self.find(tag)?;
        self.deliveries[at].is_hole = true;
        self.holes += 1;
        let unacked = self.deliveries[at].unacked;
        self.sweep();
        Some(unacked)
    }

    /// Takes out the oldest delivery, if its tag is at most this.
    pub(crate) fn take_first(&mut self, up_to: u64) -> Option<Unacked> {
        while let Some(first) = self.deliveries.front()
            && first.unacked.tag <= up_to
        {
            let Delivery { unacked, is_hole } = self.deliveries.pop_front()?;
            if !is_hole {
                return Some(unacked);
            }
            self.holes -= 1;
        }
        None
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.deliveries.len() == self.holes
    }

    /// Whether a delivery is outstanding.
    pub(crate) fn contains(&self, tag: DeliveryTag) -> bool {
        self.find(tag).is_some()
    }

    /// Puts deliveries back that were taken and not settled.
    pub(crate) fn put_back(&mut self, taken: impl ExactSizeIterator<Item = Unacked>) {
        if taken.len() == 0 {
            return;
        }
        let whole = self.deliveries.drain(..).filter(|delivery| !delivery.is_hole);
        let taken = taken.map(|unacked| Delivery { unacked, is_hole: false });
        let mut deliveries: Vec<_> = whole.chain(taken).collect();
        deliveries.sort_by_key(|delivery| delivery.unacked.tag);
        self.deliveries = deliveries.into();
        self.holes = 0;
    }

    fn find(&self, tag: DeliveryTag) -> Option<usize> {
        let tag = tag.number();
        let at = match self.deliveries.front() {
            Some(front) if front.unacked.tag == tag => 0,
            _ => self.deliveries.binary_search_by_key(&tag, |delivery| delivery.unacked.tag).ok()?,
        };
        (!self.deliveries[at].is_hole).then_some(at)
    }

    fn sweep(&mut self) {
        while self.deliveries.front().is_some_and(|front| front.is_hole) {
            self.deliveries.pop_front();
            self.holes -= 1;
        }
        if self.holes > HOLES_SWEPT_FROM && self.holes > self.deliveries.len() / 2 {
            self.deliveries.retain(|delivery| !delivery.is_hole);
            self.holes = 0;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn outstanding(count: u64) -> Outstanding {
        let mut outstanding = Outstanding::default();
        for position in 0..count {
            let tag = outstanding.next_tag().number();
            let position = Position(position);
            outstanding.push(Unacked { tag, queue: QueueId::default(), position, consumer: None });
        }
        outstanding
    }

    fn tag(number: u64) -> DeliveryTag {
        DeliveryTag(NonZeroU64::new(number).unwrap())
    }

    #[test]
    fn a_tag_is_taken_once() {
        let mut outstanding = outstanding(3);
        assert!(outstanding.take(tag(2)).is_some());
        assert!(outstanding.take(tag(2)).is_none(), "twice");
        assert!(outstanding.take(tag(4)).is_none(), "never given");
        let rest: Vec<_> = std::iter::from_fn(|| outstanding.take_first(u64::MAX)).map(|taken| taken.tag).collect();
        assert_eq!(rest, [1, 3]);
        assert!(outstanding.is_empty());
    }

    #[test]
    fn a_delivery_that_is_never_settled_does_not_keep_the_holes_behind_it() {
        let mut outstanding = outstanding(10_000);
        for number in 2..=10_000 {
            assert!(outstanding.take(tag(number)).is_some());
        }
        assert!(outstanding.deliveries.len() <= 2 * HOLES_SWEPT_FROM);
        assert!(outstanding.take(tag(1)).is_some());
        assert!(outstanding.is_empty());
    }
}
