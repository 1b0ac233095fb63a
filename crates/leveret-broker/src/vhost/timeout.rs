//! Consumers that do not settle what they hold. RabbitMQ 4.3: consumer timeouts.
//!
//! Owns: how long a delivery may be held, and what becomes of those that are held too long: they go back to their queues,
//! and their consumer is cancelled, by `basic.cancel` if its client knows that, else with its channel. A channel that
//! holds a message of `basic.get`, or of a consumer that it has cancelled, is closed.
//!
//! A channel has one timer, for the first delivery that may be late; when it is due, all that the channel holds is looked
//! through. Off unless a setting, the queue, a policy or the consumer says how long.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use leveret_planted::{Bug, planted};

use crate::connection::reply::Exception;
use crate::moment::{Deadline, Moment};
use crate::names::ChannelId;
use crate::vhost::command::{ConsumerId, Settlement};
use crate::vhost::effects::Effects;
use crate::vhost::refusal::Refusal;
use crate::vhost::session::Unacked;
use crate::vhost::work::Work;
use crate::vhost::{ConnectionId, QueueId, Timer, VirtualHost};

impl VirtualHost {
    /// How long a delivery may be held whose queue, policies and consumer say nothing of it; none is for ever. Setting
    /// `consumer_timeout`.
    pub fn set_consumer_timeout(&mut self, timeout: Option<Duration>) {
        self.consumer_timeout = timeout;
    }

    /// How long a delivery of a queue may be held if its consumer does not say.
    pub(super) fn queue_timeout(&self, id: QueueId) -> Option<Duration> {
        let own = self.queues.get(id).and_then(|queue| queue.settings.consumer_timeout);
        own.or(self.consumer_timeout)
    }

    /// Makes sure that a channel is looked through when a delivery becomes late.
    pub(super) fn arm_channel(&mut self, connection: ConnectionId, id: ChannelId, deadline: Deadline) {
        let Some(channel) = self.sessions.get_mut(connection).and_then(|session| session.channel(id)) else {
            return;
        };
        if channel.timer.is_some_and(|known| known <= deadline) {
            return;
        }
        let timer = Timer::Channel(connection, id);
        if let Some(known) = channel.timer.replace(deadline) {
            self.timers.remove(&(known, timer));
        }
        self.timers.insert((deadline, timer));
    }

    /// A channel goes, and with it its timer.
    pub(super) fn disarm_channel(&mut self, connection: ConnectionId, id: ChannelId) {
        let channel = self.sessions.get_mut(connection).and_then(|session| session.channel(id));
        if let Some(deadline) = channel.and_then(|channel| channel.timer.take()) {
            self.timers.remove(&(deadline, Timer::Channel(connection, id)));
        }
    }

    /// A delivery on a channel may be late.
    pub(super) fn time_out(&mut self, now: Moment, connection: ConnectionId, id: ChannelId, effects: &mut Effects) {
        // It may have been set anew since it was due.
        self.disarm_channel(connection, id);
        let Some(channel) = self.sessions.get_mut(connection).and_then(|session| session.channel(id)) else {
            return;
        };
        let held: Vec<Unacked> = channel.unacked.iter().copied().collect();
        let mut late = BTreeMap::new();
        let mut unowned = None;
        let mut next: Option<Deadline> = None;
        for unacked in held {
            let (holder, timeout) = self.holder(connection, id, &unacked);
            let Some(timeout) = timeout else { continue };
            let deadline = unacked.deadline(timeout);
            if !now.has_reached(deadline) {
                next = Some(next.map_or(deadline, |next| next.min(deadline)));
            } else if let Some(consumer) = holder {
                late.insert(consumer, timeout);
            } else {
                unowned = unowned.or(Some(timeout));
            }
        }
        if let Some(timeout) = unowned {
            let refusal = Refusal::ConsumerTimeout { channel: id, timeout };
            let exception = Exception::from(&refusal);
            return self.fail_channel(connection, id, exception, Settlement::Requeue, effects);
        }
        if !late.is_empty() {
            self.time_out_consumers(connection, id, late);
        }
        if let Some(next) = next {
            self.arm_channel(connection, id, next);
        }
    }

    /// Who holds a delivery of a channel, if it is a consumer that there still is, and for how long it may.
    fn holder(
        &mut self,
        connection: ConnectionId,
        id: ChannelId,
        unacked: &Unacked,
    ) -> (Option<ConsumerId>, Option<Duration>) {
        let session = self.sessions.get_mut(connection);
        if let (Some(session), Some(consumer)) = (session, unacked.consumer) {
            if let Some(consumer) = session.consumer(consumer) {
                let (consumer, own) = (consumer.id, consumer.timeout);
                return (Some(consumer), own.or_else(|| self.queue_timeout(unacked.queue)));
            }
            if let Some(former) = session.channel(id).and_then(|channel| channel.former.get(&consumer)) {
                return (None, Some(former.timeout));
            }
        }
        (None, self.queue_timeout(unacked.queue))
    }

    /// When a delivery of a channel will be late, if ever.
    pub(super) fn deadline(
        &mut self,
        connection: ConnectionId,
        id: ChannelId,
        unacked: &Unacked,
    ) -> Option<Deadline> {
        let (_, timeout) = self.holder(connection, id, unacked);
        Some(unacked.deadline(timeout?))
    }

    /// Takes back what late consumers of a channel hold, and begins to cancel them.
    fn time_out_consumers(
        &mut self,
        connection: ConnectionId,
        id: ChannelId,
        late: BTreeMap<ConsumerId, Duration>,
    ) {
        let Some(session) = self.sessions.get_mut(connection) else { return };
        let Some(channel) = session.channel(id) else { return };
        let held = channel.unacked.take_back(|consumer| late.contains_key(&consumer));
        let was_full = channel.delivered >= channel.delivered_max();
        channel.delivered = channel.delivered.saturating_sub(held.len() as u64);
        // What counts for the channel as a whole is less now.
        let others = if was_full { channel.consumers.clone() } else { BTreeSet::new() };
        for consumer in held.iter().filter_map(|unacked| unacked.consumer) {
            // What a transaction has settled counts until it ends.
            if let Some(consumer) = session.consumer(consumer) {
                consumer.unacked = consumer.unacked.saturating_sub(1);
            }
        }
        self.work.push_back(Work::Return(held, Settlement::Requeue));
        if !planted(Bug::LateConsumerStays) {
            self.work.push_back(Work::CancelLate(connection, id, late));
        }
        self.work.push_back(Work::OfferTurns(connection, others));
    }
}

#[cfg(test)]
mod tests {
    use std::num::{NonZeroU8, NonZeroU64};

    use leveret_amqp::{FieldTable, ShortStr, ShortString, Value};
    use smallvec::smallvec;

    use super::*;
    use crate::change::{Change, Enqueued, JournalPosition, QueueNumber, QueuePosition};
    use crate::limits::TAKEN_BACK_KEPT;
    use crate::message::{DeliveryMode, History, Message};
    use crate::names::{ConsumerTag, QueueName};
    use crate::vhost::Progress;
    use crate::vhost::command::{
        AckMode, AckTarget, Command, Commands, Consume, DeliveryTag, Publish, Qos, QueueRef, SettledBy, Wait,
    };
    use crate::vhost::effects::{Fetched, Output};
    use crate::vhost::fixtures::{at, connect, empty_vhost, evict, message};
    use crate::vhost::queue::Queue;
    use crate::vhost::session::Channel;

    const CONSUMER: ConsumerId = ConsumerId { slot: 0, number: 1 };

    /// A virtual host and a connection to it with channel 1.
    struct Scene {
        vhost: VirtualHost,
        connection: ConnectionId,
        now: Moment,
        effects: Effects,
    }

    fn channel() -> ChannelId {
        ChannelId::new(1).unwrap()
    }

    fn queue_ref() -> QueueRef {
        QueueRef::Named(ShortStr::truncated("q").into())
    }

    impl Scene {
        /// With a queue whose deliveries may be held for a second.
        fn new(messages: u64) -> Self {
            Scene::of_type(b"classic", messages)
        }

        fn of_type(queue_type: &[u8], messages: u64) -> Self {
            let mut vhost = empty_vhost();
            let (queue, name) = (QueueNumber(1), QueueName::new(ShortStr::truncated("q")));
            let arguments = FieldTable::build(|table| {
                table.field("x-queue-type", Value::LongStr(queue_type));
                table.field("x-consumer-timeout", Value::I32(1000));
            });
            let declared = Change::QueueDeclared { queue, name, auto_delete: false, arguments };
            vhost.apply(at(1), JournalPosition(1), declared).unwrap();
            for position in 0..messages {
                let queues = smallvec![Enqueued { queue, position: QueuePosition(position), expires: None }];
                let change = Change::MessageEnqueued { message: message(), queues };
                vhost.apply(at(1), JournalPosition(2 + position), change).unwrap();
            }
            vhost.end_recovery();
            let connection = connect(&mut vhost);
            let mut scene = Scene { vhost, connection, now: at(1), effects: Effects::default() };
            assert_eq!(scene.begin(Command::OpenChannel(channel())), Progress::Done);
            scene
        }

        fn begin(&mut self, command: Command) -> Progress {
            self.begin_as(self.connection, command)
        }

        fn begin_as(&mut self, connection: ConnectionId, command: Command) -> Progress {
            let mut commands = Commands::default();
            commands.push(command);
            self.vhost.handle_batch(self.now, connection, &mut commands, &mut self.effects)
        }

        fn finish(&mut self, mut progress: Progress) {
            while progress == Progress::More || self.vhost.is_behind() {
                progress = self.vhost.go_on(self.now, &mut self.effects);
            }
        }

        fn wait(&mut self, seconds: u64) {
            self.now = at(self.now.monotonic.as_secs() + seconds);
            let progress = self.vhost.handle_timeout(self.now, &mut self.effects);
            self.finish(progress);
        }

        fn consume(&mut self) {
            self.consume_with(FieldTable::default());
        }

        fn consume_with(&mut self, arguments: FieldTable) {
            let (ack_mode, wait) = (AckMode::Manual, Wait::Answer);
            let (queue, tag) = (queue_ref(), ConsumerTag::new(ShortStr::truncated("t")));
            let consume = Consume { consumer: CONSUMER, tag, queue, ack_mode, exclusive: false, wait, arguments };
            let progress = self.begin(Command::Consume(channel(), Box::new(consume)));
            self.finish(progress);
        }

        fn channel(&mut self) -> &mut Channel {
            self.vhost.sessions.get_mut(self.connection).unwrap().channel(channel()).unwrap()
        }

        fn messages(&self) -> usize {
            self.vhost.queues.values().map(Queue::len).sum()
        }

        fn ready(&self) -> usize {
            self.vhost.queues.values().map(Queue::ready).sum()
        }
    }

    #[test]
    fn an_ack_of_many_is_not_torn_apart() {
        let mut scene = Scene::new(6000);
        scene.consume();
        assert_eq!((scene.messages(), scene.ready()), (6000, 0));
        let ack = Command::Settle(channel(), AckTarget::AllOutstanding, Settlement::Ack, SettledBy::Ack);
        assert_eq!(scene.begin(ack), Progress::More, "it takes more than one hold of the lock");
        assert!(scene.messages() > 0);
        scene.wait(1);
        assert_eq!(scene.messages(), 0);
        let session = scene.vhost.sessions.get_mut(scene.connection).unwrap();
        assert!(session.consumer(CONSUMER).is_some(), "it holds nothing any more");
    }

    #[test]
    fn what_is_held_what_comes_back_and_what_was_taken_back_counts_in_memory() {
        let held = |scene: &Scene| scene.vhost.memory().bytes();
        let empty = held(&Scene::of_type(b"quorum", 0));
        let mut scene = Scene::of_type(b"quorum", 6000);
        let ready = held(&scene);
        scene.consume();
        assert!(held(&scene) >= ready + 5000 * 64, "held by a channel");
        scene.wait(1);
        assert_eq!(scene.ready(), 6000);
        assert!(
            held(&scene) >= ready + TAKEN_BACK_KEPT * 64 + 6000 * (16 + 32),
            "came back, and may be settled late"
        );
        let progress = scene.begin(Command::PurgeQueue(channel(), queue_ref(), Wait::Answer));
        scene.finish(progress);
        assert_eq!(held(&scene), empty + TAKEN_BACK_KEPT * 64);
        let progress = scene.begin(Command::CloseChannel(channel(), Wait::Answer));
        scene.finish(progress);
        assert_eq!(held(&scene), empty);
    }

    #[test]
    fn others_need_not_wait_for_an_ack_of_many() {
        let mut scene = Scene::new(6000);
        scene.consume();
        let other = connect(&mut scene.vhost);
        let settle =
            |settlement| Command::Settle(channel(), AckTarget::AllOutstanding, settlement, SettledBy::Nack);
        assert_eq!(scene.begin(settle(Settlement::Discard)), Progress::More);
        let left = scene.messages();
        scene.effects.take_outputs(|_, _, _| ());
        assert_eq!(scene.begin_as(other, Command::OpenChannel(channel())), Progress::Done);
        let mut answered = 0;
        scene.effects.take_outputs(|to, outputs, _| answered += if to == other { outputs.len() } else { 0 });
        assert_eq!((answered, scene.messages()), (1, left), "the other is answered meanwhile");
        let block = [0, 1, b'q', 0, 60, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2, 0, 0, b'h', b'i'];
        let message = Message::from_parts(&block, 3, 17, DeliveryMode::Persistent, History::None).unwrap();
        let (more_keys, expiration_ms, confirm) = (None, None, None);
        let publish = Publish { channel: channel(), message, more_keys, mandatory: false, expiration_ms, confirm };
        assert_eq!(scene.begin_as(other, Command::Publish(publish)), Progress::Done);
        assert_eq!((scene.messages(), scene.ready()), (left + 1, 0), "it is delivered meanwhile");
        let progress = scene.begin(Command::Qos(channel(), Qos::PerConsumer(None)));
        scene.finish(progress);
        assert_eq!((scene.messages(), scene.ready()), (1, 0), "and is not among those that were meant");
    }

    #[test]
    fn a_former_consumer_is_forgotten_with_the_last_delivery_that_it_left() {
        let mut scene = Scene::new(3);
        scene.consume_with(FieldTable::build(|table| {
            table.field("x-consumer-timeout", Value::I32(1000));
        }));
        let tag = ConsumerTag::from(ShortString::from(ShortStr::truncated("t")));
        let _ = scene.begin(Command::Cancel(channel(), CONSUMER, tag, Wait::Answer));
        for left in [2, 1] {
            let tag = scene.channel().unacked.iter().next().unwrap().tag;
            let first = DeliveryTag(NonZeroU64::new(tag).unwrap());
            let target = AckTarget::Each { first, count: NonZeroU8::MIN };
            let _ = scene.begin(Command::Settle(channel(), target, Settlement::Requeue, SettledBy::Reject));
            assert_eq!(scene.channel().former[&CONSUMER].unacked, left);
        }
        let ack = Command::Settle(channel(), AckTarget::AllOutstanding, Settlement::Ack, SettledBy::Ack);
        let _ = scene.begin(ack);
        assert!(scene.channel().former.is_empty());
    }

    /// A timeout closes a channel for one message while the body of another, or of that one, is read for it.
    #[test]
    fn nothing_is_got_on_a_channel_that_was_closed_meanwhile() {
        for (unsettled, ack_mode) in [(0, AckMode::Manual), (1, AckMode::Manual), (1, AckMode::Automatic)] {
            for found in [true, false] {
                let mut scene = Scene::new(unsettled + 1);
                for _ in 0..unsettled {
                    let _ = scene.begin(Command::Get(channel(), queue_ref(), AckMode::Manual));
                }
                evict(&mut scene.vhost, |_| true);
                let _ = scene.begin(Command::Get(channel(), queue_ref(), ack_mode));
                let fetch = scene.effects.fetches.pop().unwrap();
                scene.wait(1);
                scene.effects.take_outputs(|_, outputs, _| {
                    let last = outputs.iter().last();
                    assert!(matches!(last, Some(Output::CloseChannel(..))), "{last:?}");
                });
                let mut fetched = vec![Fetched { fetch, message: found.then(message) }];
                let _ = scene.vhost.handle_fetched(scene.now, &mut fetched, &mut scene.effects);
                scene.effects.take_outputs(|_, outputs, _| panic!("{outputs:?}"));
                let all = usize::try_from(unsettled + 1).unwrap();
                assert_eq!((scene.messages(), scene.ready()), (all, all), "{unsettled} {ack_mode:?} {found}");
            }
        }
    }
}
