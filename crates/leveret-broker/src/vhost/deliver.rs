//! Handing messages out: consumers, credit, `basic.get`; and what a queue does by itself.

use std::ops::Range;

use leveret_amqp::Table;
use slotmap::SlotMap;
use triomphe::Arc;

use crate::access::Permission;
use crate::change::{Change, DeathReason, JournalPosition};
use crate::limits::{CONSUMER_BYTES, UNITS_PER_RUN};
use crate::message::{Message, MessageId};
use crate::moment::Moment;
use crate::names::ChannelId;
use crate::row::Row;
use crate::vhost::command::{AckMode, Consume, ConsumerId, DeliveryTag, Qos, QueueRef, Settlement, Wait};
use crate::vhost::effects::{Answer, Effects, Fetch, FetchFor, Notice, Output, Outputs, window_bytes};
use crate::vhost::queue::arguments::{
    CONSUMER_TIMEOUT, QueueType, check_consumer, milliseconds, not_an_integer, value_fault,
};
use crate::vhost::queue::{ArgumentError, Body, ConsumerKey, Position, Priority, Queue, Seat, Turn, Waiting};
use crate::vhost::refusal::Refusal;
use crate::vhost::session::{Consumer, Credit, Getting, Recipient, Session, Unacked};
use crate::vhost::tries::with_tries;
use crate::vhost::work::Work;
use crate::vhost::{ConnectionId, QueueId, VirtualHost};

/// What makes deliveries of messages, for the first time, to a consumer that need not ack.
pub(super) struct Recipe {
    channel: ChannelId,
    consumer: ConsumerId,
    /// The number of the next delivery.
    tag: DeliveryTag,
    after: JournalPosition,
}

impl Recipe {
    pub(super) fn deliver(&mut self, message: Message) -> Output {
        let &mut Recipe { channel, consumer, tag, after } = self;
        self.tag = tag.next();
        let (ack_mode, redelivered) = (AckMode::Automatic, false);
        Output::Deliver { channel, consumer, tag, ack_mode, redelivered, after, message }
    }

    pub(super) fn deliver_row(self, row: &Arc<Row>, messages: Range<usize>) -> Output {
        let Recipe { channel, consumer, tag, after } = self;
        let offset = |nth| u32::try_from(nth).expect("a row has a bound");
        let messages = offset(messages.start)..offset(messages.end);
        Output::DeliverRow { channel, consumer, tag, after, row: Arc::clone(row), messages }
    }
}

impl VirtualHost {
    /// `basic.qos`
    pub(super) fn qos(&mut self, from: ConnectionId, id: ChannelId, qos: Qos) {
        let Some(channel) = self.sessions.get_mut(from).and_then(|session| session.channel(id)) else { return };
        match qos {
            Qos::PerConsumer(limit) => channel.prefetch_per_consumer = limit,
            Qos::PerChannel(limit) => {
                channel.prefetch = limit;
                let consumers = channel.consumers.clone();
                self.spend(consumers.len());
                for consumer in consumers {
                    self.offer_turn(from, consumer);
                }
            }
        }
    }

    /// `basic.consume`
    pub(super) fn consume(
        &mut self,
        from: ConnectionId,
        channel_id: ChannelId,
        consume: &Consume,
        effects: &mut Effects,
    ) -> Result<(), Refusal> {
        let queue_id = self.find_queue(from, channel_id, &consume.queue);
        let queue_id = self.authorize_queue(from, Permission::Read, queue_id)?;
        self.check_not_locked(from, queue_id)?;
        let (name, vhost) = (self.queue_name(queue_id), self.name.to_string());
        let invalid = |error| Refusal::InvalidConsumerArgument { queue: name.clone(), vhost: vhost.clone(), error };
        let queue_type = self.queues.get(queue_id).map(|queue| queue.declared.arguments.queue_type);
        let arguments = consume.arguments.as_table();
        let priority = consumer_priority(arguments).map_err(invalid)?;
        let timeout = milliseconds(arguments, CONSUMER_TIMEOUT, 1).map_err(invalid)?;
        check_consumer(arguments, queue_type.unwrap_or_default()).map_err(invalid)?;
        let bytes = CONSUMER_BYTES + consume.tag.as_str().len() + arguments.as_bytes().len();
        let key = ConsumerKey { connection: from, consumer: consume.consumer };
        let Some(queue) = self.queues.get_mut(queue_id) else { return Ok(()) };
        let is_shared = !queue.consumers.is_empty() || queue.consumers.has_single_active();
        // RabbitMQ: queues of type quorum do not have exclusive consumers, and pass over the flag.
        let exclusive = consume.exclusive && queue.declared.arguments.queue_type == QueueType::Classic;
        let wants_to_be_alone = exclusive && is_shared;
        if queue.exclusive_consumer.is_some() || wants_to_be_alone {
            return Err(Refusal::ExclusiveConsumer { queue: name, vhost });
        }
        if let Some(session) = self.sessions.get(from) {
            self.ledger.check_consumer(&session.part, bytes)?;
        }
        let seat = queue.consumers.add(key, consume.ack_mode, priority);
        let waiting = queue.consumers.may_serve(seat);
        if exclusive {
            queue.exclusive_consumer = Some(seat);
        }
        if let Some(session) = self.sessions.get_mut(from)
            && let Some(channel) = session.channel(channel_id)
        {
            channel.consumers.insert(consume.consumer);
            let prefetch = channel.prefetch_per_consumer;
            let consumer = Consumer {
                id: consume.consumer,
                tag: consume.tag.clone(),
                arguments: consume.arguments.clone(),
                channel: channel_id,
                queue: queue_id,
                seat,
                ack_mode: consume.ack_mode,
                priority,
                prefetch,
                timeout,
                unacked: 0,
                waiting,
                starved: false,
                _memory: session.part.consumer().with(bytes),
            };
            session.add_consumer(consumer);
        }
        self.hand_over_if_idle(queue_id);
        if consume.wait == Wait::Answer {
            let answer = Answer::BasicConsumeOk { consumer: consume.consumer };
            self.answer(from, channel_id, answer, effects);
        }
        // Before the first message comes, so that it need not wait.
        let durable = self.queues.get(queue_id).filter(|queue| queue.declared.durable);
        for first in durable.map(Queue::cursors).unwrap_or_default() {
            self.grant(queue_id, first, effects);
        }
        self.mark_runnable(queue_id);
        Ok(())
    }

    /// Ends a consumer, if there still is one. What it has not settled stays with its channel.
    pub(super) fn cancel(&mut self, now: Moment, from: ConnectionId, id: ConsumerId, effects: &mut Effects) {
        let Some(session) = self.sessions.get_mut(from) else { return };
        let Some(consumer) = session.remove_consumer(id) else { return };
        session.remember_timeout(&consumer);
        let Some(queue) = self.queues.get_mut(consumer.queue) else { return };
        let next = queue.consumers.remove(consumer.seat, consumer.waiting);
        queue.touch(now);
        if queue.exclusive_consumer == Some(consumer.seat) {
            queue.exclusive_consumer = None;
        }
        if queue.declared.auto_delete && queue.consumers.is_empty() {
            self.delete_queue(consumer.queue, effects);
        } else {
            self.mark_runnable(consumer.queue);
            if let Some(next) = next {
                self.offer_turn(next.connection, next.consumer);
            }
        }
    }

    /// The active consumer of a queue holds nothing any more: if another one is to take over, it does.
    pub(super) fn hand_over(&mut self, id: QueueId, active: Seat) {
        let Some(queue) = self.queues.get_mut(id) else { return };
        if queue.consumers.is_yielding(active)
            && let Some(next) = queue.consumers.activate_next()
        {
            self.offer_turn(next.connection, next.consumer);
        }
    }

    /// The same, should it hold nothing when the other one comes.
    fn hand_over_if_idle(&mut self, id: QueueId) {
        let Some((seat, key)) = self.queues.get(id).and_then(|queue| queue.consumers.yielding()) else { return };
        let consumer = self.sessions.get_mut(key.connection).and_then(|session| session.consumer(key.consumer));
        if consumer.is_some_and(|consumer| consumer.unacked == 0) {
            self.hand_over(id, seat);
        }
    }

    /// Puts a consumer back into the ring of its queue if it has credit again.
    pub(super) fn offer_turn(&mut self, from: ConnectionId, id: ConsumerId) {
        let window_max = self.window_max();
        let Some(recipient) = self.sessions.get_mut(from).and_then(|session| session.recipient(id)) else { return };
        let credit = recipient.credit(window_max);
        let consumer = recipient.consumer;
        if credit == Credit::Available && !consumer.waiting {
            let (queue_id, seat, priority) = (consumer.queue, consumer.seat, consumer.priority);
            let Some(queue) = self.queues.get_mut(queue_id) else { return };
            if queue.consumers.may_serve(seat) {
                consumer.waiting = true;
                let key = ConsumerKey { connection: from, consumer: id };
                queue.consumers.wait_for_turn(Waiting { seat, key, ack_mode: consumer.ack_mode }, priority);
                self.mark_runnable(queue_id);
            }
        } else if credit == Credit::WindowFull {
            self.starve(from, id);
        }
    }

    /// A consumer waits for the window of its connection.
    fn starve(&mut self, from: ConnectionId, id: ConsumerId) {
        if self.sessions.get_mut(from).is_some_and(|session| session.starve(id)) {
            self.asked.push(from);
        }
    }

    /// Delivers while there are messages and consumers with credit, then lets messages go that are due or too many. A queue
    /// that has more to do than it may in one go does the rest between commands.
    pub(super) fn run_queue(&mut self, now: Moment, id: QueueId, effects: &mut Effects) {
        let Some(queue) = self.queues.get_mut(id) else { return };
        queue.turn = Turn::None;
        // Most have nothing to do but to deliver.
        let acts_alone = queue.acts_alone();
        self.units_for_others = self.units.saturating_sub(UNITS_PER_RUN);
        self.units -= self.units_for_others;
        if acts_alone {
            self.bury(now, id, effects);
        }
        while self.units > 0 {
            let Some(queue) = self.queues.get_mut(id) else { break };
            if queue.parked.is_some() || !queue.consumers.any_waiting() {
                break;
            }
            let Some(head) = queue.head() else { break };
            let is_full = queue.dying().is_full();
            let is_late = acts_alone && self.is_late(now, id, head);
            if is_late && is_full {
                break;
            }
            if is_late {
                self.units -= 1;
                self.discard_ready(now, id, head, DeathReason::Expired, effects);
            } else {
                let most = if acts_alone { 1 } else { self.units };
                self.units -= self.deliver_heads(now, id, head, most, effects).max(1);
            }
        }
        if acts_alone {
            self.expire(now, id, effects);
            self.drop_overflow(now, id, effects);
        }
        if self.units == 0 {
            self.mark_behind(id);
        }
        self.units += std::mem::take(&mut self.units_for_others);
        if !acts_alone {
            return;
        }
        if self.queues.get(id).is_some_and(Queue::is_done) {
            self.delete_queue(id, effects);
        }
        if self.queues.get(id).is_some_and(Queue::is_timed) {
            self.set_timer(id);
        }
    }

    /// Gives the head of a queue to the consumer whose turn it is, and what comes behind, at most so many, as long as it is
    /// that one's turn. Returns how many it was given.
    fn deliver_heads(
        &mut self,
        now: Moment,
        id: QueueId,
        mut head: Position,
        most: u32,
        effects: &mut Effects,
    ) -> u32 {
        let (window_max, next_change) = (self.window_max(), self.position.next());
        let Some(queue) = self.queues.get_mut(id) else { return 0 };
        let (key, mut recipient) = match next_served(queue, &mut self.sessions, window_max) {
            Served::Next(key, recipient) => (key, recipient),
            Served::Starved(key) => {
                self.starve(key.connection, key.consumer);
                return 0;
            }
            Served::Nobody => return 0,
        };
        let (consumer, channel) = (key.consumer, recipient.consumer.channel);
        let ack_mode = recipient.consumer.ack_mode;
        let is_manual = ack_mode == AckMode::Manual;
        let timeout = recipient.consumer.timeout.or(queue.settings.consumer_timeout).or(self.consumer_timeout);
        let is_alone = queue.consumers.is_one_waiting();
        let outputs = effects.outputs(key.connection);
        let (mut delivered, mut credit) = (0, Credit::Available);
        let (mut wanted, mut granted, mut settled) = (Vec::new(), None, None);
        // As long as there is credit, and up to the first change: that comes behind what it belongs to, and before all else.
        while delivered < most && credit == Credit::Available && granted.is_none() && settled.is_none() {
            let tries = queue.told_tries(head);
            let Some(entry) = queue.entry(head) else { break };
            let Body::Resident(message) = &entry.body else {
                queue.parked = Some(head);
                wanted = queue.stored_from(head, self.read_ahead);
                break;
            };
            let (journaled, body_bytes) = (entry.journaled, entry.body_bytes);
            let rewritten = tries.map(|tries| with_tries(message, tries));
            let window = window_bytes(rewritten.as_ref().unwrap_or(message));
            // What is settled at once leaves the queue with its message.
            let shared = (is_manual && rewritten.is_none()).then(|| message.clone());
            let redelivered = queue.is_redelivered(head);
            let after;
            (after, granted) = if journaled { queue.grant(head, next_change) } else { (queue.departures(), None) };
            let tag = recipient.channel.unacked.next_tag();
            let message = if is_manual {
                queue.take_head(head, body_bytes);
                recipient.consumer.unacked += 1;
                recipient.channel.delivered += 1;
                let (tag, delivered_ms, consumer) = (tag.number(), now.monotonic_ms(), Some(consumer));
                recipient.channel.unacked.push(Unacked { tag, delivered_ms, queue: id, position: head, consumer });
                rewritten.or(shared)
            } else {
                settled = journaled.then_some((queue.declared.number, head));
                let own = queue.settle_head(head).and_then(|settled| settled.message);
                rewritten.or(own)
            };
            credit = recipient.use_window(window, &mut self.window_room);
            if let Some(message) = message {
                outputs.push(Output::Deliver { channel, consumer, tag, ack_mode, redelivered, after, message });
            }
            delivered += 1;
            match queue.head().filter(|_| is_alone) {
                Some(next) => head = next,
                None => break,
            }
        }
        if delivered > 0 {
            end_turn(queue, recipient.consumer, credit);
        }
        let is_news = recipient.channel.tell_of_unacked();
        let fetch = |(position, message)| Fetch { id: message, purpose: FetchFor::Queue(id, position) };
        effects.fetches.extend(wanted.into_iter().map(fetch));
        if let Some(change) = granted {
            self.change(change, effects);
        }
        if let Some((queue, position)) = settled {
            self.change(Change::MessageSettled { queue, position }, effects);
        }
        if credit == Credit::WindowFull {
            self.starve(key.connection, key.consumer);
        }
        if let Some(session) = self.sessions.get(key.connection).filter(|_| is_news) {
            let (channel, unacked) = (session.channel_name(channel), self.ledger.ceilings.unacked);
            effects.notices.push(Notice::UnackedMany { channel, unacked });
        }
        if let Some(timeout) = timeout.filter(|_| is_manual && delivered > 0) {
            self.arm_channel(key.connection, channel, now.deadline(timeout));
        }
        delivered
    }

    /// Hands so many messages that no journal knows to the consumers whose turn it is, and that settle what they get by getting
    /// it, without having put them into the queue. `window` says what one of them counts in windows, `hand` hands some
    /// over. Returns how many were handed; the rest cannot be.
    pub(super) fn hand_through(
        &mut self,
        id: QueueId,
        count: usize,
        window: impl Fn(usize) -> usize,
        mut hand: impl FnMut(&mut Outputs, Recipe, Range<usize>),
        departure: JournalPosition,
        effects: &mut Effects,
    ) -> usize {
        let mut handed = 0;
        while handed < count {
            let window_max = self.window_max();
            let Some(queue) = self.queues.get_mut(id) else { break };
            let (key, mut recipient) = match next_served(queue, &mut self.sessions, window_max) {
                Served::Next(key, recipient) if recipient.consumer.ack_mode == AckMode::Automatic => {
                    (key, recipient)
                }
                Served::Starved(key) => {
                    self.starve(key.connection, key.consumer);
                    break;
                }
                Served::Next(..) | Served::Nobody => break,
            };
            let (consumer, channel) = (key.consumer, recipient.consumer.channel);
            let after = queue.departures().max(departure);
            let tag = recipient.channel.unacked.next_tag();
            let (first, is_alone) = (handed, queue.consumers.is_one_waiting());
            // One that is alone has turn after turn.
            let credit = loop {
                let credit = recipient.use_window(window(handed), &mut self.window_room);
                handed += 1;
                if !is_alone || credit != Credit::Available || handed == count {
                    break credit;
                }
                recipient.channel.unacked.next_tag();
            };
            hand(effects.outputs(key.connection), Recipe { channel, consumer, tag, after }, first..handed);
            self.units = self.units.saturating_sub(u32::try_from(handed - first).unwrap_or(u32::MAX));
            end_turn(queue, recipient.consumer, credit);
            if credit == Credit::WindowFull {
                self.starve(key.connection, key.consumer);
            }
        }
        handed
    }

    /// What handing out a journaled message rests on: a grant of its queue, which is renewed if need be.
    fn grant(&mut self, id: QueueId, position: Position, effects: &mut Effects) -> JournalPosition {
        let next = self.position.next();
        let Some(queue) = self.queues.get_mut(id) else { return JournalPosition::default() };
        let (after, change) = queue.grant(position, next);
        if let Some(change) = change {
            self.change(change, effects);
        }
        after
    }

    /// `basic.get`
    pub(super) fn get(
        &mut self,
        now: Moment,
        from: ConnectionId,
        channel_id: ChannelId,
        queue: &QueueRef,
        ack_mode: AckMode,
        effects: &mut Effects,
    ) -> Result<(), Refusal> {
        let id = self.find_queue(from, channel_id, queue);
        let id = self.authorize_queue(from, Permission::Read, id)?;
        self.check_not_locked(from, id)?;
        let Some(queue) = self.queues.get_mut(id) else { return Ok(()) };
        // RabbitMQ: queues of type classic answer it, though it takes messages from the consumer whose turn it is.
        if queue.consumers.has_single_active() && queue.declared.arguments.queue_type == QueueType::Quorum {
            return Err(Refusal::NoGetWithSingleActive {
                queue: self.queue_name(id),
                vhost: self.name.to_string(),
            });
        }
        queue.touch(now);
        if queue.is_due(now) {
            // Many may have become so since the queue was looked at last.
            self.begin(from, Work::Expire(id));
            self.begin(from, Work::Get(from, channel_id, id, ack_mode));
        } else {
            self.get_head(now, from, channel_id, id, ack_mode, effects);
        }
        Ok(())
    }

    /// Answers a `basic.get` with the head of a queue, if it has one.
    pub(super) fn get_head(
        &mut self,
        now: Moment,
        from: ConnectionId,
        channel_id: ChannelId,
        id: QueueId,
        ack_mode: AckMode,
        effects: &mut Effects,
    ) {
        let head = self.queues.get_mut(id).and_then(Queue::head);
        self.mark_runnable(id);
        let taken = head.and_then(|head| self.take_for_get(now, from, channel_id, id, head, ack_mode, effects));
        let Some((getting, body)) = taken else {
            return self.answer(from, channel_id, Answer::BasicGetEmpty, effects);
        };
        match body {
            Ok(message) => self.finish_get(now, from, getting, message, effects),
            Err(id) => {
                effects.fetches.push(Fetch { id, purpose: FetchFor::Get(from) });
                if let Some(session) = self.sessions.get_mut(from) {
                    session.getting = Some(getting);
                }
            }
        }
    }

    /// Takes the head of a queue for a `basic.get`; its body is here or has to be fetched.
    #[expect(clippy::too_many_arguments, reason = "who asks, for what, and when")]
    fn take_for_get(
        &mut self,
        now: Moment,
        from: ConnectionId,
        channel: ChannelId,
        queue_id: QueueId,
        position: Position,
        ack_mode: AckMode,
        effects: &mut Effects,
    ) -> Option<(Getting, Result<Message, MessageId>)> {
        let journaled = self.queues.get_mut(queue_id)?.entry(position)?.journaled;
        let granted = journaled.then(|| self.grant(queue_id, position, effects));
        let queue = self.queues.get_mut(queue_id)?;
        let after = granted.unwrap_or(queue.departures());
        let state = self.sessions.get_mut(from)?.channel(channel)?;
        if queue.parked == Some(position) {
            queue.parked = None;
        }
        let redelivered = queue.is_redelivered(position);
        let tries = queue.told_tries(position);
        let entry = queue.entry(position)?;
        let body_bytes = entry.body_bytes;
        let body = match &entry.body {
            Body::Resident(message) => Ok(message.clone()),
            Body::Stored => Err(entry.id),
        };
        queue.take_head(position, body_bytes);
        let message_count = queue.message_count();
        let tag = state.unacked.next_tag();
        if ack_mode == AckMode::Manual {
            let (tag, delivered_ms) = (tag.number(), now.monotonic_ms());
            state.unacked.push(Unacked { tag, delivered_ms, queue: queue_id, position, consumer: None });
        }
        let queue = queue_id;
        let getting = Getting { channel, queue, position, ack_mode, tag, redelivered, tries, after, message_count };
        if let Some(timeout) = self.queue_timeout(queue_id).filter(|_| ack_mode == AckMode::Manual) {
            self.arm_channel(from, channel, now.deadline(timeout));
        }
        Some((getting, body))
    }

    /// Gives up a `basic.get` whose client or channel has gone. With acks, the message is unacked and goes back with its channel.
    pub(super) fn abandon_get(&mut self, getting: Getting) {
        if getting.ack_mode == AckMode::Automatic
            && let Some(queue) = self.queues.get_mut(getting.queue)
        {
            queue.return_unacked(getting.position);
            self.mark_runnable(getting.queue);
        }
    }

    /// The body that a `basic.get` waits for cannot be read back. Its message stays where it is, and nobody gets it before
    /// the next start, or is gone if no journal knows of it; the client gets the one behind it.
    pub(super) fn fail_get(&mut self, now: Moment, to: ConnectionId, getting: &Getting, effects: &mut Effects) {
        if let Some(queue) = self.queues.get_mut(getting.queue)
            && queue.known(getting.position).is_some_and(|known| !known.journaled)
        {
            queue.settle_taken(getting.position);
        }
        if let Some(channel) = self.sessions.get_mut(to).and_then(|session| session.channel(getting.channel)) {
            let _is_manual = channel.unacked.take(getting.tag.number());
        }
        self.get_head(now, to, getting.channel, getting.queue, getting.ack_mode, effects);
    }

    /// Answers a `basic.get` whose body is there.
    pub(super) fn finish_get(
        &mut self,
        now: Moment,
        to: ConnectionId,
        getting: Getting,
        message: Message,
        effects: &mut Effects,
    ) {
        let Getting { channel, queue, position, ack_mode, tag, redelivered, tries, after, message_count } = getting;
        let message = tries.map(|tries| with_tries(&message, tries)).unwrap_or(message);
        if ack_mode == AckMode::Automatic {
            let (tag, delivered_ms) = (tag.number(), now.monotonic_ms());
            let unacked = Unacked { tag, delivered_ms, queue, position, consumer: None };
            self.settle_one(now, unacked, Settlement::Ack, effects);
        }
        if let Some(session) = self.sessions.get_mut(to) {
            session.use_answer_window(window_bytes(&message));
            self.window_room = self.window_room.saturating_sub(window_bytes(&message));
        }
        effects.push(to, Output::GetOk { channel, tag, redelivered, message_count, after, message });
    }
}

/// Who gets the next message of a queue.
enum Served<'s> {
    /// This consumer, whose turn it is until [`end_turn`].
    Next(ConsumerKey, Recipient<'s>),
    /// Nobody: the window of the consumer whose turn it was is full.
    Starved(ConsumerKey),
    /// Nobody.
    Nobody,
}

/// The consumer whose turn it is, if it may get another message; else it stands in the ring of the queue no longer.
fn next_served<'s>(
    queue: &mut Queue,
    sessions: &'s mut SlotMap<ConnectionId, Session>,
    window_max: usize,
) -> Served<'s> {
    let Some(Waiting { seat, key, .. }) = queue.consumers.next_turn() else { return Served::Nobody };
    let Some(recipient) = sessions.get_mut(key.connection).and_then(|session| session.recipient(key.consumer))
    else {
        queue.consumers.end_turn(false);
        return Served::Nobody;
    };
    let credit = recipient.credit(window_max);
    if credit == Credit::Available && queue.consumers.may_serve(seat) {
        return Served::Next(key, recipient);
    }
    recipient.consumer.waiting = false;
    queue.consumers.end_turn(false);
    if credit == Credit::WindowFull { Served::Starved(key) } else { Served::Nobody }
}

/// A consumer has had its turn, and has this credit now.
fn end_turn(queue: &mut Queue, consumer: &mut Consumer, credit: Credit) {
    consumer.waiting = credit == Credit::Available;
    queue.consumers.end_turn(consumer.waiting);
}

/// Argument `x-priority` of `basic.consume`: any integer. RabbitMQ: consumer priorities.
fn consumer_priority(arguments: Table<'_>) -> Result<Priority, ArgumentError> {
    let argument = "x-priority";
    let Some(value) = arguments.get(argument) else { return Ok(0) };
    value.as_integer().ok_or_else(|| value_fault(argument, not_an_integer(value)))
}

#[cfg(test)]
mod tests {
    use leveret_amqp::{FieldTable, ShortStr};
    use smallvec::smallvec;

    use super::*;
    use crate::change::{Enqueued, QueueNumber, QueuePosition};
    use crate::names::{ConsumerTag, QueueName};
    use crate::vhost::command::{AckTarget, Command, Commands, Farewell, SettledBy};
    use crate::vhost::fixtures::{at, connect, empty_vhost, evict, message};
    use crate::vhost::ledger::Ceilings;

    #[test]
    fn that_a_channel_leaves_as_many_unacked_as_it_may_is_said_once() {
        let mut vhost = empty_vhost();
        vhost.set_ceilings(Ceilings { unacked: 2, ..Ceilings::default() });
        let (queue, name) = (QueueNumber(1), QueueName::new(ShortStr::truncated("q")));
        let declared = Change::QueueDeclared { queue, name, auto_delete: false, arguments: FieldTable::default() };
        vhost.apply(at(1), JournalPosition(1), declared).unwrap();
        for nth in 0..4 {
            let queues = smallvec![Enqueued { queue, position: QueuePosition(nth), expires: None }];
            let enqueued = Change::MessageEnqueued { message: message(), queues };
            vhost.apply(at(1), JournalPosition(2 + nth), enqueued).unwrap();
        }
        vhost.end_recovery();
        let (client, channel) = (connect(&mut vhost), ChannelId::FIRST);
        let mut execute = |command| {
            let (mut commands, mut effects) = (Commands::default(), Effects::default());
            commands.push(command);
            let _ = vhost.handle_batch(at(1), client, &mut commands, &mut effects);
            effects.notices
        };
        execute(Command::OpenChannel(channel));
        let consume = Consume {
            consumer: ConsumerId { slot: 0, number: 1 },
            tag: ConsumerTag::new(ShortStr::truncated("t")),
            queue: QueueRef::Named(ShortStr::truncated("q").into()),
            ack_mode: AckMode::Manual,
            exclusive: false,
            wait: Wait::Answer,
            arguments: FieldTable::default(),
        };
        let told = Notice::UnackedMany { channel: " (1)".into(), unacked: 2 };
        assert_eq!(execute(Command::Consume(channel, Box::new(consume))), [told]);
        let settle = Command::Settle(channel, AckTarget::AllOutstanding, Settlement::Ack, SettledBy::Ack);
        assert_eq!(execute(settle), []);
    }

    /// Nobody can give it back later, as nobody has it: not even a channel.
    #[test]
    fn a_message_that_was_being_read_for_a_client_that_goes_stays_where_it_was() {
        for ack_mode in [AckMode::Manual, AckMode::Automatic] {
            let mut vhost = empty_vhost();
            let (queue, name) = (QueueNumber(1), QueueName::new(ShortStr::truncated("q")));
            let declared =
                Change::QueueDeclared { queue, name, auto_delete: false, arguments: FieldTable::default() };
            vhost.apply(at(1), JournalPosition(1), declared).unwrap();
            let queues = smallvec![Enqueued { queue, position: QueuePosition(0), expires: None }];
            let enqueued = Change::MessageEnqueued { message: message(), queues };
            vhost.apply(at(1), JournalPosition(2), enqueued).unwrap();
            vhost.end_recovery();
            evict(&mut vhost, |_| true);
            let (client, mut commands, mut effects) =
                (connect(&mut vhost), Commands::default(), Effects::default());
            let channel = ChannelId::FIRST;
            commands.push(Command::OpenChannel(channel));
            commands.push(Command::Get(channel, QueueRef::Named(ShortStr::truncated("q").into()), ack_mode));
            let _ = vhost.handle_batch(at(1), client, &mut commands, &mut effects);
            let ready = |vhost: &VirtualHost| vhost.queues.values().map(Queue::ready).sum::<usize>();
            assert_eq!((ready(&vhost), effects.fetches.len()), (0, 1));
            commands.push(Command::Disconnect(Farewell::Silent));
            let _ = vhost.handle_batch(at(1), client, &mut commands, &mut effects);
            assert_eq!(ready(&vhost), 1, "{ack_mode:?}");
        }
    }
}
