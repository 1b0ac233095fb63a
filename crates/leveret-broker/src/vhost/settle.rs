//! What becomes of deliveries: ack, nack, reject, recover.

use std::collections::btree_map::Entry;
use std::ops::RangeInclusive;

use leveret_planted::{Bug, planted};

use crate::change::DeathReason;
use crate::limits::STEPS_PER_UNIT;
use crate::moment::Moment;
use crate::names::ChannelId;
use crate::vhost::command::{AckTarget, ConsumerId, Settlement, Wait};
use crate::vhost::effects::{Answer, Effects};
use crate::vhost::refusal::Refusal;
use crate::vhost::session::{Unacked, UnknownTag};
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
            AckTarget::Each { first, count } => {
                let tags = first.number()..=first.number().saturating_add(u64::from(count.get()) - 1);
                return self.settle_each(now, from, id, tags, settlement, effects);
            }
            AckTarget::UpTo(tag) if !channel.unacked.contains(tag.number()) => return unknown(tag.number()),
            AckTarget::UpTo(tag) => tag.number() - u64::from(planted(Bug::MultipleAckStopsShort)),
            AckTarget::AllOutstanding => channel.unacked.last_tag(),
        };
        if let Some(transaction) = &mut channel.transaction {
            while let Some(unacked) = channel.unacked.take_first(up_to) {
                transaction.settle(unacked, settlement);
            }
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

    /// Settles deliveries one by one, up to the first that there is not. They are few enough not to look at what is left of this hold
    /// of the lock.
    fn settle_each(
        &mut self,
        now: Moment,
        from: ConnectionId,
        id: ChannelId,
        tags: RangeInclusive<u64>,
        settlement: Settlement,
        effects: &mut Effects,
    ) -> Result<(), Refusal> {
        // The first has taken its unit with the command.
        let mut paid = true;
        // Who is owed credit, and for how many.
        let mut owed: Option<(ConsumerId, u64)> = None;
        let mut result = Ok(());
        for tag in tags {
            self.spend(usize::from(!std::mem::take(&mut paid)));
            let Some(channel) = self.sessions.get_mut(from).and_then(|session| session.channel(id)) else { break };
            let unacked = match channel.unacked.take(tag) {
                Ok(Some(unacked)) => unacked,
                Ok(None) => continue,
                Err(UnknownTag) if planted(Bug::AcksBehindUnknownTag) => continue,
                Err(UnknownTag) => {
                    result = Err(Refusal::UnknownDeliveryTag { tag });
                    break;
                }
            };
            if let Some(transaction) = &mut channel.transaction {
                transaction.settle(unacked, settlement);
                continue;
            }
            self.settle_on(now, from, id, unacked, settlement, effects);
            let Some(consumer) = unacked.consumer else { continue };
            match &mut owed {
                Some((known, count)) if *known == consumer => *count += 1,
                before => {
                    if let Some((known, count)) = before.replace((consumer, 1)) {
                        self.give_credit(from, id, known, count);
                    }
                }
            }
        }
        if let Some((consumer, count)) = owed {
            self.give_credit(from, id, consumer, count);
        }
        result
    }

    /// Settles the oldest deliveries of a channel up to a tag, as many as were given to one consumer one after the other and as
    /// this hold of the lock allows; false if there are none.
    pub(super) fn settle_oldest(
        &mut self,
        now: Moment,
        from: ConnectionId,
        id: ChannelId,
        up_to: u64,
        settlement: Settlement,
        effects: &mut Effects,
    ) -> bool {
        let (mut whose, mut count) = (None, 0);
        while count == 0 || self.units > 0 {
            let Some(channel) = self.sessions.get_mut(from).and_then(|session| session.channel(id)) else { break };
            let is_theirs = |unacked: &Unacked| whose.is_none_or(|whose| whose == unacked.consumer);
            let Some(unacked) = channel.unacked.take_first_if(up_to, is_theirs) else { break };
            // Whoever asks has paid for the first.
            self.spend(usize::from(count > 0));
            self.settle_on(now, from, id, unacked, settlement, effects);
            (whose, count) = (Some(unacked.consumer), count + 1);
        }
        if let Some(consumer) = whose.flatten() {
            self.give_credit(from, id, consumer, count);
        }
        count > 0
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

    /// So many settled deliveries make room for others, for their consumer or for all of its channel.
    pub(super) fn give_credit(&mut self, from: ConnectionId, channel_id: ChannelId, id: ConsumerId, count: u64) {
        let count = if planted(Bug::CreditForOne) { count.min(1) } else { count };
        let Some(session) = self.sessions.get_mut(from) else { return };
        let mut was_full = false;
        if let Some(channel) = session.channel(channel_id) {
            was_full = channel.delivered >= channel.delivered_max();
            channel.delivered = channel.delivered.saturating_sub(count);
            if let Entry::Occupied(mut former) = channel.former.entry(id) {
                former.get_mut().unacked -= count;
                if former.get().unacked == 0 {
                    former.remove();
                }
            }
        }
        if let Some(consumer) = session.consumer(id) {
            consumer.unacked = consumer.unacked.saturating_sub(count);
            if consumer.unacked == 0 {
                let (queue, seat) = (consumer.queue, consumer.seat);
                self.hand_over(queue, seat);
            }
        }
        if !was_full {
            return self.offer_turn(from, id);
        }
        let channel = self.sessions.get_mut(from).and_then(|session| session.channel(channel_id));
        let consumers = channel.map(|channel| channel.consumers.clone()).unwrap_or_default();
        self.spend(consumers.len() / STEPS_PER_UNIT);
        for consumer in consumers {
            self.offer_turn(from, consumer);
        }
    }
}
