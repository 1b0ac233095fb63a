//! What becomes of deliveries: ack, nack, reject, recover, and giving back what a closed channel held.

use crate::change::Change;
use crate::names::ChannelId;
use crate::vhost::command::{AckTarget, Settlement, Wait};
use crate::vhost::effects::{Answer, Effects, Output};
use crate::vhost::refusal::Refusal;
use crate::vhost::session::Unacked;
use crate::vhost::{ConnectionId, VirtualHost};

impl VirtualHost {
    /// Names what is settled; [`Self::settle_pending`] does it, before any other command.
    pub(super) fn settle(
        &mut self,
        from: ConnectionId,
        id: ChannelId,
        target: AckTarget,
        settlement: Settlement,
    ) -> Result<(), Refusal> {
        let settling = &mut self.settling;
        let Some(channel) = self.sessions.get_mut(from).and_then(|session| session.channel(id)) else {
            return Ok(());
        };
        let is_known = match &mut channel.transaction {
            Some(transaction) => {
                channel.unacked.take(target, |unacked| transaction.settlements.push((unacked, settlement)))
            }
            None => channel.unacked.take(target, |unacked| settling.push_back((from, id, unacked, settlement))),
        };
        match target {
            AckTarget::One(tag) | AckTarget::UpTo(tag) if !is_known => {
                Err(Refusal::UnknownDeliveryTag { tag: tag.number() })
            }
            AckTarget::One(_) | AckTarget::UpTo(_) | AckTarget::AllOutstanding => Ok(()),
        }
    }

    /// `basic.recover`: all that is unacked on the channel goes back to its queues.
    pub(super) fn recover(&mut self, from: ConnectionId, channel: ChannelId, wait: Wait, effects: &mut Effects) {
        let settling = &mut self.settling;
        if let Some(state) = self.sessions.get_mut(from).and_then(|session| session.channel(channel)) {
            let requeue = |unacked| settling.push_back((from, channel, unacked, Settlement::Requeue));
            state.unacked.take(AckTarget::AllOutstanding, requeue);
        }
        if wait == Wait::Answer {
            effects.push(from, Output::Answer(channel, Answer::BasicRecoverOk));
        }
    }

    /// Works off the settlements that were named, as far as this hold of the lock allows.
    pub(super) fn settle_pending(&mut self, effects: &mut Effects) {
        while self.units > 0 {
            let Some((from, channel, unacked, settlement)) = self.settling.pop_front() else { break };
            self.units -= 1;
            self.settle_one(unacked, settlement, effects);
            self.give_credit(from, channel, unacked);
        }
    }

    pub(super) fn settle_one(&mut self, unacked: Unacked, settlement: Settlement, effects: &mut Effects) {
        let Some(queue) = self.queues.get_mut(unacked.queue) else { return };
        match settlement {
            Settlement::Ack | Settlement::Discard => {
                let number = queue.declared.number;
                if let Some(entry) = queue.settle_unacked(unacked.position)
                    && entry.journaled
                {
                    self.change(Change::MessageSettled { queue: number, id: entry.id }, effects);
                }
            }
            Settlement::Requeue => {
                queue.return_unacked(unacked.position);
                self.mark_runnable(unacked.queue);
            }
        }
    }

    /// A settled delivery makes room for another one, for its consumer or for all of its channel.
    fn give_credit(&mut self, from: ConnectionId, channel_id: ChannelId, unacked: Unacked) {
        let Some(id) = unacked.consumer else { return };
        let Some(session) = self.sessions.get_mut(from) else { return };
        let mut whole_channel = Vec::new();
        if let Some(channel) = session.channel(channel_id) {
            let was_full = channel.prefetch.is_some_and(|limit| channel.delivered >= limit.get());
            channel.delivered = channel.delivered.saturating_sub(1);
            if was_full {
                whole_channel.clone_from(&channel.consumers);
            }
        }
        if let Some(consumer) = session.consumer(id) {
            consumer.unacked = consumer.unacked.saturating_sub(1);
        }
        if whole_channel.is_empty() {
            self.offer_turn(from, id);
        }
        for consumer in whole_channel {
            self.offer_turn(from, consumer);
        }
    }
}
