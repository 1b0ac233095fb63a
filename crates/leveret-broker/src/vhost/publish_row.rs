//! Publishing a row: what holds for all of its messages is looked up once, and a consumer that need not ack gets them as they
//! lie there.
//!
//! Confirms come behind all deliveries of a row, should one client hear both. What may make a publish wait is asked before the
//! first: that changes between holds of the lock, and not within one but for windows, which a row then fills by no more than
//! one hold does.
//!
//! Must not know: what is out of the ordinary in a publish, or in its queue. All of that is left as it is, for
//! [`VirtualHost::publish`].

use std::collections::VecDeque;
use std::ops::Range;

use leveret_planted::{Bug, planted};
use smallvec::SmallVec;
use triomphe::Arc;

use crate::change::JournalPosition;
use crate::limits::{ROW_LYING_MAX, ROW_PART_DIVISOR};
use crate::message::{DeliveryMode, Message, MessageId};
use crate::row::Row;
use crate::vhost::command::{Command, Commands, Messages, PublishRow};
use crate::vhost::deliver::Recipe;
use crate::vhost::effects::{Effects, Output, Outputs, window_bytes};
use crate::vhost::queue::{Entry, Queue, Rank};
use crate::vhost::replies::may_be_reply;
use crate::vhost::session::Channel;
use crate::vhost::{ConnectionId, QueueId, VirtualHost};

impl VirtualHost {
    /// Publishes what comes next of a connection, if that is a row and goes into one ordinary queue, as far as this hold of the
    /// lock allows. If not, nothing is done.
    pub(super) fn publish_row(
        &mut self,
        from: ConnectionId,
        commands: &mut Commands,
        effects: &mut Effects,
    ) -> bool {
        let Some(Command::PublishRow(publishes)) = commands.queue.front_mut() else { return false };
        let Some(id) = self.queue_of_row(from, publishes) else { return false };
        // To publish a message takes one unit, and to put it somewhere another one.
        let most = publishes.left().min(self.units.div_ceil(2) as usize);
        let (channel, first) = (publishes.channel, publishes.next);
        let is_open = !self.is_working && self.queues.get(id).is_some_and(Queue::is_open_way);
        if is_open {
            match &mut publishes.messages {
                Messages::Row(row) => {
                    publishes.next += self.hand_row_through(id, row, first..first + most, effects);
                }
                Messages::Each(messages) => publishes.next += self.hand_each_through(id, messages, most, effects),
            }
        }
        let handed = publishes.next - first;
        let lying = (most - handed).min(ROW_LYING_MAX);
        if let Some(queue) = self.queues.get_mut(id) {
            for (message, _) in std::iter::from_fn(|| publishes.take()).take(lying) {
                queue.push(Rank::default(), Entry::new(MessageId::NOWHERE, message, None, false));
            }
        }
        self.spend(handed + 2 * lying);
        if lying > 0 {
            self.mark_runnable(id);
        }
        for number in (first..publishes.next).map_while(|nth| publishes.confirm(nth)) {
            effects.push(from, Output::Confirm { channel, number, after: JournalPosition::default() });
        }
        if publishes.left() == 0 {
            commands.queue.pop_front();
        }
        commands.keep_apart = handed == 0;
        true
    }

    /// The only queue that a row goes to, if that and the row are ordinary.
    fn queue_of_row(&mut self, from: ConnectionId, publishes: &PublishRow) -> Option<QueueId> {
        let PublishRow { channel, messages, expiration_ms: None, .. } = publishes else { return None };
        let (route, mode) = match messages {
            Messages::Row(row) => (row.route(), row.delivery_mode()),
            Messages::Each(messages) => messages.front().map(|first| (first.route(), first.delivery_mode()))?,
        };
        if !self.searching.is_empty() || may_be_reply(route) {
            return None;
        }
        let session = self.sessions.get_mut(from)?;
        let holds_nothing_back =
            |channel: &&mut Channel| channel.transaction.is_none() || planted(Bug::RowInTransaction);
        session.channel(*channel).filter(|channel| !channel.failed).filter(holds_nothing_back)?;
        // A route without a queue, or with several, is nothing for a row.
        let &[id] = &session.routes.recall(route, self.bindings_version)?[..] else { return None };
        let queue = self.queues.get(id).filter(|queue| queue.takes_all_alike())?;
        let is_durable = queue.declared.durable && !planted(Bug::RowNotJournaled);
        let is_journaled = is_durable && mode == DeliveryMode::Persistent;
        (!is_journaled).then_some(id)
    }

    /// Hands messages of a row to consumers that settle what they get by getting it, without having put them into the queue.
    /// Returns how many.
    fn hand_row_through(
        &mut self,
        id: QueueId,
        row: &Arc<Row>,
        messages: Range<usize>,
        effects: &mut Effects,
    ) -> usize {
        let first = messages.start;
        let window = |nth| row.window_bytes(first + nth..first + nth + 1);
        let hand = |outputs: &mut Outputs, mut recipe: Recipe, given: Range<usize>| {
            let given = first + given.start..first + given.end;
            if row.bytes(given.clone()) >= row.bytes(0..row.len()) / ROW_PART_DIVISOR {
                outputs.push(recipe.deliver_row(row, given));
            } else {
                given.for_each(|nth| outputs.push(recipe.deliver(row.message(nth))));
            }
        };
        self.hand_through(id, messages.len(), window, hand, JournalPosition::default(), effects)
    }

    /// The same with messages that are each by itself.
    fn hand_each_through(
        &mut self,
        id: QueueId,
        messages: &mut VecDeque<Message>,
        most: usize,
        effects: &mut Effects,
    ) -> usize {
        let windows: SmallVec<[usize; 64]> = messages.iter().take(most).map(window_bytes).collect();
        let hand = |outputs: &mut Outputs, mut recipe: Recipe, given: Range<usize>| {
            messages.drain(..given.len()).for_each(|message| outputs.push(recipe.deliver(message)));
        };
        self.hand_through(id, most, |nth| windows[nth], hand, JournalPosition::default(), effects)
    }
}

#[cfg(test)]
mod tests {
    use leveret_amqp::{FieldTable, ShortStr};

    use super::*;
    use crate::names::{ChannelId, ConsumerTag};
    use crate::vhost::command::{AckMode, Consume, ConsumerId, DeclareQueue, Existence, Publish, QueueRef, Wait};
    use crate::vhost::command::{DeliveryTag, Likeness};
    use crate::vhost::fixtures::{at, connect, empty_vhost};

    const LIKE: Likeness = Likeness(1);

    struct Scene {
        vhost: VirtualHost,
        publisher: ConnectionId,
        consumers: Vec<ConnectionId>,
        effects: Effects,
    }

    fn channel() -> ChannelId {
        ChannelId::new(1).unwrap()
    }

    /// To queue `q`, with two octets.
    fn message() -> Message {
        let block = [0, 1, b'q', 0, 60, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2, 0, 0, b'h', b'i'];
        Message::new(&block, 3, 17, DeliveryMode::Transient)
    }

    /// With so many consumers that need not ack. The way to the queue is known.
    fn scene(consumers: usize) -> Scene {
        let mut vhost = empty_vhost();
        let name = || ShortStr::truncated("q").into();
        let publisher = connect(&mut vhost);
        let consumers: Vec<_> = (0..consumers).map(|_| connect(&mut vhost)).collect();
        let mut scene = Scene { vhost, publisher, consumers, effects: Effects::default() };
        let declare = DeclareQueue {
            name: name(),
            existence: Existence::Declare,
            durable: false,
            exclusive: false,
            auto_delete: false,
            wait: Wait::NoWait,
            arguments: FieldTable::default(),
        };
        let mut commands = Commands::default();
        commands.push(Command::OpenChannel(channel()));
        commands.push(Command::DeclareQueue(channel(), Box::new(declare)));
        push(&mut commands);
        scene.execute(publisher, &mut commands);
        for &consumer in &scene.consumers.clone() {
            let consume = Consume {
                consumer: ConsumerId { slot: 0, number: 1 },
                tag: ConsumerTag::new(ShortStr::truncated("c")),
                queue: QueueRef::Named(name()),
                ack_mode: AckMode::Automatic,
                exclusive: false,
                wait: Wait::NoWait,
                arguments: FieldTable::default(),
            };
            let mut commands = Commands::default();
            commands.push(Command::OpenChannel(channel()));
            commands.push(Command::Consume(channel(), Box::new(consume)));
            scene.execute(consumer, &mut commands);
        }
        scene
    }

    fn push(commands: &mut Commands) {
        let message = message();
        let (block, _, body_at) = message.parts();
        let (head, body) = block.split_at(body_at as usize);
        if let Some(row) = commands.joinable(LIKE, None, block.len()) {
            return row.push(head, body);
        }
        let (more_keys, mandatory, expiration_ms, confirm) = (None, false, None, None);
        commands
            .push_like(Publish { channel: channel(), message, more_keys, mandatory, expiration_ms, confirm }, LIKE);
    }

    impl Scene {
        /// What each consumer is handed by that, and in which outputs.
        fn execute(&mut self, from: ConnectionId, commands: &mut Commands) -> Vec<Vec<Output>> {
            let _progress = self.vhost.handle_batch(at(1), from, commands, &mut self.effects);
            let mut handed = vec![Vec::new(); self.consumers.len()];
            self.effects.take_outputs(|to, outputs, bytes| {
                let windows: usize = outputs.iter().map(|output| output.window().bytes()).sum();
                assert_eq!(windows, bytes);
                if let Some(nth) = self.consumers.iter().position(|&consumer| consumer == to) {
                    handed[nth].append(outputs);
                }
            });
            for outputs in &mut handed {
                outputs.retain(|output| output.window().bytes() > 0);
            }
            handed
        }

        fn ready(&self) -> usize {
            self.vhost.queues[self.vhost.queue_names["q"]].ready()
        }
    }

    fn tags(outputs: &[Output]) -> Vec<u64> {
        let tag = |output| match output {
            Output::Deliver { tag, .. } => DeliveryTag::number(tag),
            other => panic!("nobody sends {other:?}"),
        };
        outputs.iter().cloned().flat_map(Output::singly).map(tag).collect()
    }

    #[test]
    fn a_consumer_that_is_alone_gets_a_row_as_it_is() {
        let mut scene = scene(1);
        let mut commands = Commands::default();
        (0..8).for_each(|_| push(&mut commands));
        let handed = scene.execute(scene.publisher, &mut commands);
        let [row @ Output::DeliverRow { .. }] = &handed[0][..] else { panic!("{handed:?}") };
        assert_eq!(row.count(), 8);
        assert_eq!(tags(&handed[0]), (2..10).collect::<Vec<_>>(), "the first is what lay there");
        let singly: usize = row.clone().singly().map(|output| output.window().bytes()).sum();
        assert_eq!(row.row_bytes(), Some(singly));
        assert!(!commands.keep_apart && commands.is_empty());
    }

    #[test]
    fn consumers_in_turn_get_messages_by_themselves() {
        let mut scene = scene(2);
        let mut commands = Commands::default();
        (0..8).for_each(|_| push(&mut commands));
        let handed = scene.execute(scene.publisher, &mut commands);
        assert_eq!(handed.iter().map(Vec::len).collect::<Vec<_>>(), [4, 4]);
        assert!(handed.iter().flatten().all(|output| output.row_bytes().is_none()));
        // Half of it each is enough to share it.
        (0..2).for_each(|_| push(&mut commands));
        let handed = scene.execute(scene.publisher, &mut commands);
        assert!(handed.iter().all(|outputs| matches!(outputs[..], [Output::DeliverRow { .. }])), "{handed:?}");
    }

    #[test]
    fn what_finds_no_credit_lies_in_the_queue_behind_what_was_handed_out() {
        let mut scene = scene(1);
        // One was handed out before; what is left shrinks with each.
        scene.vhost.set_window_room(5 * window_bytes(&message()));
        let mut commands = Commands::default();
        (0..8).for_each(|_| push(&mut commands));
        let handed = scene.execute(scene.publisher, &mut commands);
        assert_eq!((handed[0].iter().map(Output::count).sum::<usize>(), scene.ready()), (2, 6), "{handed:?}");
        assert!(!commands.keep_apart);
        (0..8).for_each(|_| push(&mut commands));
        assert_eq!(scene.execute(scene.publisher, &mut commands), [[]]);
        assert_eq!(scene.ready(), 14);
        assert!(commands.keep_apart && commands.is_empty());
    }
}
