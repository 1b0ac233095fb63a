//! What becomes of the messages that clients have: acked, rejected, taken back, at once or in a transaction.
//!
//! Owns: what an answer behind a settlement promises.

use std::rc::Rc;

use super::{Expected, Flag, Held, Model, Outcome, Place};
use crate::plan::{Mode, Settling};

impl Model {
    /// Whether a client still holds a delivery, as far as it depends on the broker.
    pub(crate) fn holds(&self, client: u8, mode: Mode, tag: u64) -> bool {
        self.channels.get(&(client, mode)).is_some_and(|channel| channel.unacked.contains_key(&tag))
    }

    pub(crate) fn settle(
        &mut self,
        now_ms: u64,
        (client, mode): (u8, Mode),
        tag: u64,
        multiple: bool,
        settling: Settling,
    ) {
        let unacked = &mut self.channel(client, mode).unacked;
        let settled: Vec<(u64, Held)> = if multiple {
            let behind = unacked.split_off(&(tag + 1));
            std::mem::replace(unacked, behind).into_iter().collect()
        } else {
            unacked.remove(&tag).map(|held| (tag, held)).into_iter().collect()
        };
        if mode == Mode::Transaction {
            let settlements = settled.into_iter().map(|(tag, held)| (tag, held, settling));
            self.channel(client, mode).settlements.extend(settlements);
            return;
        }
        self.settle_all(now_ms, client, mode, settled.into_iter().map(|(_, held)| (held, settling)).collect());
    }

    fn settle_all(&mut self, now_ms: u64, client: u8, mode: Mode, settled: Vec<(Held, Settling)>) {
        let mut is_promised = self.is_durable;
        for (held, settling) in settled {
            if let Some(tag) = held.consumer
                && let Some(consumer) = self.consumers.iter_mut().find(|own| own.client == client && own.tag == tag)
            {
                consumer.held = consumer.held.saturating_sub(1);
            }
            // A message that no journal knows may be gone after a crash, and so may be what it has become.
            let queue = self.queues.get(&held.slot).filter(|queue| queue.uid == held.uid);
            let is_kept =
                queue.is_some_and(|queue| queue.entries.iter().any(|it| it.serial == held.serial && it.journaled));
            let was_durable = std::mem::take(&mut self.is_durable);
            self.settle_one(now_ms, &held, settling);
            is_promised |= is_kept && self.is_durable;
            self.is_durable |= was_durable;
        }
        if is_promised {
            self.channel(client, mode).settled = self.events;
        }
    }

    pub(super) fn settle_one(&mut self, now_ms: u64, held: &Held, settling: Settling) {
        let limit = match self.spec(held.slot) {
            spec if !spec.quorum => None,
            spec => u32::try_from(spec.delivery_limit.unwrap_or(20)).ok(),
        };
        let Some(queue) = self.queue_mut(held.slot).filter(|queue| queue.uid == held.uid) else { return };
        let Some(at) = queue.entries.iter().position(|entry| entry.serial == held.serial) else { return };
        let entry = &mut queue.entries[at];
        match settling {
            Settling::Ack => {
                let journaled = entry.journaled;
                queue.entries.remove(at);
                self.is_durable |= journaled;
            }
            Settling::Nack | Settling::Reject => self.die(now_ms, held.slot, at),
            Settling::NackRequeue | Settling::RejectRequeue => {
                entry.failed += u32::from(settling == Settling::RejectRequeue);
                if limit.is_some_and(|limit| entry.failed > limit) {
                    return self.die(now_ms, held.slot, at);
                }
                entry.place = Place::Ready;
                entry.flag = Flag::Yes;
            }
        }
    }

    pub(crate) fn recover(&mut self, now_ms: u64, client: u8, mode: Mode) {
        let unacked = std::mem::take(&mut self.channel(client, mode).unacked);
        let settled = unacked.into_values().map(|held| (held, Settling::NackRequeue)).collect();
        self.settle_all(now_ms, client, mode, settled);
        self.expect(client, mode, Expected::Answer);
    }

    pub(crate) fn end_transaction(&mut self, now_ms: u64, client: u8, commit: bool) {
        let mode = Mode::Transaction;
        let channel = self.channel(client, mode);
        let publishes = std::mem::take(&mut channel.publishes);
        let settlements = std::mem::take(&mut channel.settlements);
        if !commit {
            channel.unacked.extend(settlements.into_iter().map(|(tag, held, _)| (tag, held)));
            return self.expect(client, mode, Expected::Answer);
        }
        let together = self.next_together();
        let acked = settlements.iter().filter(|(_, _, settling)| *settling == Settling::Ack);
        self.acked_together = Rc::new(acked.map(|(_, held, _)| (held.serial, together)).collect());
        self.transaction = Some(together);
        let mut is_whole = true;
        for (message, route, mandatory) in publishes {
            is_whole &= self.publish_to(now_ms, client, mode, &message, &route, mandatory) != Outcome::Refused;
        }
        self.transaction = None;
        let settled = settlements.into_iter().map(|(_, held, settling)| (held, settling)).collect();
        self.settle_all(now_ms, client, mode, settled);
        if is_whole {
            self.expect(client, mode, Expected::CommitOk);
        } else {
            // What was published may expire before what comes back with the channel, which stands in front of it.
            self.is_behind = true;
            self.fail_channel(now_ms, client, mode);
        }
    }
}
