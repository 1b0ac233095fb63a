//! Messages whose time to live has passed. RabbitMQ: time to live, argument `x-message-ttl`, property `expiration`.
//!
//! A message expires on time wherever it lies in its queue: each page of an index knows the first deadline in it, and is
//! looked through when that has come. An unacked message does not expire, but keeps its deadline.

use leveret_planted::{Bug, planted};

use crate::change::DeathReason;
use crate::limits::UNITS_PER_DUE_PAGE;
use crate::moment::Moment;
use crate::vhost::effects::Effects;
use crate::vhost::queue::Position;
use crate::vhost::{QueueId, VirtualHost};

impl VirtualHost {
    /// Lets all messages expire that are due, wherever they lie in the queue.
    pub(super) fn expire(&mut self, now: Moment, id: QueueId, effects: &mut Effects) {
        while self.units > 0
            && self.queues.get(id).is_some_and(|queue| !queue.dying().is_full())
            && self.expire_page(now, id, effects)
        {}
    }

    /// The same for those of one page; false if there was none.
    pub(super) fn expire_page(&mut self, now: Moment, id: QueueId, effects: &mut Effects) -> bool {
        let Some(due) = self.queues.get_mut(id).and_then(|queue| queue.take_due(now)) else { return false };
        self.units = self.units.saturating_sub(UNITS_PER_DUE_PAGE);
        for (_, position) in due {
            self.units = self.units.saturating_sub(1);
            self.discard_ready(now, id, position, DeathReason::Expired, effects);
        }
        true
    }

    /// Whether the head has to expire instead of being delivered, as its deadline has passed: at its deadline it may still
    /// be delivered, which is what a time to live of 0 is for.
    pub(super) fn is_late(&self, now: Moment, id: QueueId, head: Position) -> bool {
        let queue = self.queues.get(id).filter(|queue| queue.has_expiring());
        let deadline = queue.and_then(|queue| queue.known(head)).and_then(|known| known.expires);
        deadline.is_some_and(|deadline| now.monotonic > deadline.0 && !planted(Bug::LateHandedOut))
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use leveret_amqp::{FieldTable, ShortStr};
    use smallvec::smallvec;

    use super::*;
    use crate::change::{Change, Enqueued, JournalPosition, QueueNumber, QueuePosition};
    use crate::names::{ChannelId, ConsumerTag, QueueName};
    use crate::vhost::Progress;
    use crate::vhost::command::{AckMode, Command, Commands, Consume, ConsumerId, QueueRef, Wait};
    use crate::vhost::effects::Output;
    use crate::vhost::fixtures::{at, connect, empty_vhost, message};

    /// A queue `q` after a restart, with these messages: some expire after two seconds.
    fn vhost_with(expires: impl IntoIterator<Item = bool>) -> VirtualHost {
        let mut vhost = empty_vhost();
        let (queue, name) = (QueueNumber(1), QueueName::new(ShortStr::truncated("q")));
        let arguments = FieldTable::default();
        let declared = Change::QueueDeclared { queue, name, auto_delete: false, arguments };
        let enqueued = expires.into_iter().zip(0..).map(|(expires, place)| {
            let expires = expires.then(|| at(1).expiry(Duration::from_secs(1)));
            let queues = smallvec![Enqueued { queue, position: QueuePosition(place), expires }];
            Change::MessageEnqueued { message: message(), queues }
        });
        for (change, number) in [declared].into_iter().chain(enqueued).zip(1..) {
            vhost.apply(at(1), JournalPosition(number), change).unwrap();
        }
        vhost.end_recovery();
        vhost
    }

    /// Of two messages, the first of which expires, so many go to a consumer that begins now. No timer has run.
    fn delivered(now: Moment) -> usize {
        let mut vhost = vhost_with([true, false]);
        let from = connect(&mut vhost);
        let (channel, consumer) = (ChannelId::new(1).unwrap(), ConsumerId { slot: 0, number: 1 });
        let consume = Consume {
            consumer,
            tag: ConsumerTag::new(ShortStr::truncated("c")),
            queue: QueueRef::Named(ShortStr::truncated("q").into()),
            ack_mode: AckMode::Manual,
            exclusive: false,
            wait: Wait::NoWait,
            arguments: FieldTable::default(),
        };
        let mut commands = Commands::default();
        commands.push(Command::OpenChannel(channel));
        commands.push(Command::Consume(channel, Box::new(consume)));
        let mut effects = Effects::default();
        let _ = vhost.handle_batch(now, from, &mut commands, &mut effects);
        let mut delivered = 0;
        effects.take_outputs(|_, outputs, _| {
            delivered += outputs.iter().filter(|output| matches!(output, Output::Deliver { .. })).count();
        });
        delivered
    }

    #[test]
    fn what_is_late_is_not_delivered_although_its_timer_has_not_run() {
        assert_eq!([1, 2, 3].map(|seconds| delivered(at(seconds))), [2, 2, 1]);
    }

    #[test]
    fn commands_go_on_while_many_messages_expire() {
        let mut vhost = vhost_with([true; 10_000]);
        let ready = |vhost: &VirtualHost| vhost.queues[vhost.queue_names["q"]].ready();
        let mut effects = Effects::default();
        assert_eq!(vhost.handle_timeout(at(3), &mut effects), Progress::More);
        assert!((1..10_000).contains(&ready(&vhost)), "{}", ready(&vhost));
        while vhost.go_on(at(3), &mut effects) == Progress::More {}
        assert_eq!(ready(&vhost), 0);
    }
}
