//! What becomes of deliveries: ack, nack, reject, recover.

use std::collections::BTreeSet;
use std::collections::btree_map::Entry;

use leveret_planted::{Bug, planted};

use crate::change::DeathReason;
use crate::limits::STEPS_PER_UNIT;
use crate::moment::Moment;
use crate::names::ChannelId;
use crate::vhost::command::{AckTarget, Settlement, Wait};
use crate::vhost::effects::{Answer, Effects};
use crate::vhost::refusal::Refusal;
use crate::vhost::session::Unacked;
use crate::vhost::tries::Failure;
use crate::vhost::work::Work;
use crate::vhost::{ConnectionId, VirtualHost};

impl VirtualHost {
    /// `basic.ack`, `basic.nack`, `basic.reject`
    pub(super) fn settle(
        &mut self,
        now: Moment,
        from: ConnectionId,
        id: ChannelId,
        target: AckTarget,
        settlement: Settlement,
        effects: &mut Effects,
    ) -> Result<(), Refusal> {
        let Some(channel) = self.sessions.get_mut(from).and_then(|session| session.channel(id)) else {
            return Ok(());
        };
        let unknown = |tag: u64| Err(Refusal::UnknownDeliveryTag { tag });
        let up_to = match target {
            AckTarget::One(tag) => {
                let Ok(taken) = channel.unacked.take(tag) else { return unknown(tag.number()) };
                let Some(unacked) = taken else { return Ok(()) };
                if let Some(transaction) = &mut channel.transaction {
                    transaction.settlements.push((unacked, settlement));
                } else {
                    self.settle_on(now, from, id, unacked, settlement, effects);
                    self.give_credit(from, id, unacked);
                }
                return Ok(());
            }
            AckTarget::UpTo(tag) if !channel.unacked.contains(tag) => return unknown(tag.number()),
            AckTarget::UpTo(tag) => tag.number() - u64::from(planted(Bug::MultipleAckStopsShort)),
            AckTarget::AllOutstanding => channel.unacked.last_tag(),
        };
        if let Some(transaction) = &mut channel.transaction {
            let taken = std::iter::from_fn(|| channel.unacked.take_first(up_to));
            transaction.settlements.extend(taken.map(|unacked| (unacked, settlement)));
            return Ok(());
        }
        let settle = Work::Settle { from, channel: id, up_to, settlement };
        match settlement {
            // Whatever is delivered meanwhile, it is not these.
            Settlement::Ack | Settlement::Discard => self.begin(from, settle),
            // What goes back does so at one instant: nothing is to overtake it.
            Settlement::Requeue | Settlement::Fail => self.work.push_back(settle),
        }
        Ok(())
    }

    /// `basic.recover`: all that is unacked on the channel goes back to its queues.
    pub(super) fn recover(&mut self, from: ConnectionId, channel: ChannelId, wait: Wait) {
        let settlement = Settlement::Requeue;
        self.work.push_back(Work::Settle { from, channel, up_to: u64::MAX, settlement });
        if wait == Wait::Answer {
            self.work.push_back(Work::Answer(from, channel, Answer::BasicRecoverOk));
        }
    }

    /// Settles a delivery for its client: later answers on the channel rest on it.
    pub(super) fn settle_on(
        &mut self,
        now: Moment,
        from: ConnectionId,
        channel: ChannelId,
        unacked: Unacked,
        settlement: Settlement,
        effects: &mut Effects,
    ) {
        let before = self.position;
        self.settle_one(now, unacked, settlement, effects);
        if self.position != before && !planted(Bug::AckNotAwaited) {
            self.settled_on(from, channel);
        }
    }

    /// What comes later on the channel rests on the last change.
    pub(super) fn settled_on(&mut self, from: ConnectionId, channel: ChannelId) {
        if let Some(session) = self.sessions.get_mut(from) {
            session.settled_on(channel, self.position);
        }
    }

    pub(super) fn settle_one(
        &mut self,
        now: Moment,
        unacked: Unacked,
        settlement: Settlement,
        effects: &mut Effects,
    ) {
        let Unacked { queue: id, position, .. } = unacked;
        match settlement {
            Settlement::Ack => self.settle_taken(id, position, effects),
            Settlement::Discard => self.discard_taken(now, id, position, DeathReason::Rejected, effects),
            Settlement::Requeue => self.give_back(now, id, position, Failure::No, effects),
            Settlement::Fail => self.give_back(now, id, position, Failure::Yes, effects),
        }
    }

    /// A settled delivery makes room for another one, for its consumer or for all of its channel.
    pub(super) fn give_credit(&mut self, from: ConnectionId, channel_id: ChannelId, unacked: Unacked) {
        let Some(id) = unacked.consumer else { return };
        let Some(session) = self.sessions.get_mut(from) else { return };
        let mut whole_channel = BTreeSet::new();
        if let Some(channel) = session.channel(channel_id) {
            let was_full = channel.prefetch.is_some_and(|limit| channel.delivered >= limit.get());
            channel.delivered = channel.delivered.saturating_sub(1);
            if let Entry::Occupied(mut former) = channel.former.entry(id) {
                former.get_mut().unacked -= 1;
                if former.get().unacked == 0 {
                    former.remove();
                }
            }
            if was_full {
                whole_channel.clone_from(&channel.consumers);
            }
        }
        if let Some(consumer) = session.consumer(id) {
            consumer.unacked = consumer.unacked.saturating_sub(1);
            if consumer.unacked == 0 {
                let (queue, seat) = (consumer.queue, consumer.seat);
                self.hand_over(queue, seat);
            }
        }
        if whole_channel.is_empty() {
            self.offer_turn(from, id);
        }
        self.spend(whole_channel.len() / STEPS_PER_UNIT);
        for consumer in whole_channel {
            self.offer_turn(from, consumer);
        }
    }
}
