//! Deliveries that are held for too long: they go back, and whoever held them hears of it.
//!
//! Owns: who is late, and what becomes of that.

use std::collections::BTreeSet;

use super::{Expected, Held, Model};
use crate::plan::{Mode, Settling};

/// Who was too late.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct TimedOut {
    pub(crate) consumers: u64,
    pub(crate) channels: u64,
}

impl Model {
    /// Takes back what was held for longer than its queue says. A consumer is cancelled for that; a channel is closed where there
    /// is none, or none any more.
    pub(crate) fn time_out(&mut self, now_ms: u64) -> TimedOut {
        // What lay in a queue that goes now is nobody's concern.
        self.expire_queues(now_ms);
        let mut timed_out = TimedOut::default();
        // Who is late is known before anything comes of it.
        let late: Vec<_> =
            self.channels.keys().map(|&(client, mode)| (client, mode, self.late(now_ms, client, mode))).collect();
        for (client, mode, late) in late {
            let is_there =
                |tag: u32| self.consumers.iter().any(|own| (own.client, own.mode, own.tag) == (client, mode, tag));
            if late.iter().any(|consumer| consumer.is_none_or(|tag| !is_there(tag))) {
                timed_out.channels += 1;
                self.expect(client, mode, Expected::Closed);
                self.release_channel_as(now_ms, client, mode, Settling::NackRequeue);
                continue;
            }
            for tag in late.into_iter().flatten() {
                timed_out.consumers += 1;
                self.time_out_consumer(now_ms, client, mode, tag);
            }
        }
        timed_out
    }

    /// The consumers of a channel that hold something for too long; `None` stands for what was got.
    fn late(&self, now_ms: u64, client: u8, mode: Mode) -> BTreeSet<Option<u32>> {
        let held = self.channels[&(client, mode)].unacked.values();
        held.filter(|held| self.is_late(now_ms, held)).map(|held| held.consumer).collect()
    }

    fn is_late(&self, now_ms: u64, held: &Held) -> bool {
        let is_there = self.queues.get(&held.slot).is_some_and(|queue| queue.uid == held.uid);
        let timeout_ms = self.spec(held.slot).consumer_timeout_ms.filter(|_| is_there);
        timeout_ms.is_some_and(|timeout_ms| held.since_ms + u64::from(timeout_ms) <= now_ms)
    }

    fn time_out_consumer(&mut self, now_ms: u64, client: u8, mode: Mode, tag: u32) {
        let consumer = self.consumers.iter().find(|own| own.client == client && own.tag == tag);
        self.timed_out.extend(consumer.map(|consumer| (client, consumer.id)));
        let unacked = &mut self.channel(client, mode).unacked;
        let taken_back: Vec<Held> =
            unacked.extract_if(.., |_, held| held.consumer == Some(tag)).map(|(_, held)| held).collect();
        for held in taken_back {
            self.settle_one(now_ms, &held, Settling::NackRequeue);
        }
        self.end_consumer(now_ms, client, tag);
    }
}
