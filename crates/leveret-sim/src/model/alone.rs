//! What happens in a virtual host by itself: messages expire, are too many, and go on as dead letters.
//!
//! Owns: what is due when, and in which order.

use std::rc::Rc;

use super::{Consumer, Delayed, Entry, Message, Model, Order, Place, Queue, RETRY_MS};
use crate::plan::{Dead, ExchangeName, Overflow};

impl Model {
    /// Whether a queue does not take so many messages more.
    pub(super) fn refuses(&self, slot: u8, count: usize, bytes: usize) -> bool {
        let (spec, Some(queue)) = (self.spec(slot), self.queues.get(&slot)) else { return false };
        if spec.when_full() == Overflow::DropHead {
            return false;
        }
        let dying_bytes: usize = queue.dying().map(|entry| entry.message.bytes).sum();
        let count = queue.ready_count() + queue.dying().count() + count;
        let bytes = queue.ready_bytes() + dying_bytes + bytes;
        spec.max_length.is_some_and(|most| count > most as usize)
            || spec.max_bytes.is_some_and(|most| bytes > most as usize)
    }

    pub(super) fn overflows(&self, slot: u8) -> bool {
        let (spec, Some(queue)) = (self.spec(slot), self.queues.get(&slot)) else { return false };
        spec.when_full() == Overflow::DropHead
            && (spec.max_length.is_some_and(|most| queue.ready_count() > most as usize)
                || spec.max_bytes.is_some_and(|most| queue.ready_bytes() > most as usize))
    }

    /// Puts a message into those queues that do not refuse it, and returns them.
    pub(super) fn offer(&mut self, now_ms: u64, message: &Rc<Message>, slots: &[u8]) -> Vec<u8> {
        let refuses = |slot: &u8| self.refuses(*slot, 1, message.bytes);
        let (full, open): (Vec<u8>, Vec<u8>) = slots.iter().copied().partition(refuses);
        for &slot in &full {
            if self.spec(slot).when_full() == Overflow::RejectDead {
                self.letter(now_ms, slot, message, 0);
            }
        }
        let together = self.transaction.unwrap_or_else(|| self.next_together());
        for &slot in &open {
            self.enqueue(now_ms, slot, message, 0, together);
        }
        open
    }

    /// Where a dead letter goes from a queue.
    fn letter_targets(&self, slot: u8, message: &Message) -> Vec<u8> {
        let mut targets: Vec<u8> = match self.spec(slot).dead {
            None => Vec::new(),
            Some(Dead::Queue(target)) => vec![target],
            Some(Dead::Exchange) => self.targets(ExchangeName::Dead, message).into_iter().collect(),
        };
        targets.retain(|target| self.has_queue(*target));
        targets
    }

    /// A dead letter goes on from a queue.
    fn letter(&mut self, now_ms: u64, slot: u8, message: &Rc<Message>, rank: u8) {
        let message = Rc::new(Message { expiration_ms: None, ..Message::clone(message) });
        let together = self.next_together();
        for target in self.letter_targets(slot, &message) {
            self.enqueue(now_ms, target, &message, 1 + u16::from(slot) * 32 + u16::from(rank), together);
        }
    }

    /// A message leaves its queue without having been consumed, or stays there until it is taken.
    pub(super) fn die(&mut self, now_ms: u64, slot: u8, at: usize) {
        if self.spec(slot).keeps_letters() {
            let is_first = self.queues.get(&slot).is_some_and(|queue| queue.dying().next().is_none());
            let is_behind = self.is_behind;
            let Some(queue) = self.queue_mut(slot) else { return };
            queue.entries[at].is_loose |= is_behind;
            queue.deaths += 1;
            queue.entries[at].place = Place::Dying(queue.deaths);
            self.is_durable |= self.queues[&slot].entries[at].journaled;
            if is_first {
                self.retry(now_ms, slot);
            }
            return;
        }
        let Some(queue) = self.queue_mut(slot) else { return };
        let entry = queue.entries.remove(at);
        self.is_durable |= entry.journaled;
        self.letter(now_ms, slot, &entry.message, entry.rank);
    }

    /// Whether any queue has dead letters that nobody takes.
    pub(crate) fn has_waiting_letters(&self) -> bool {
        self.queues.values().any(|queue| queue.dying().next().is_some())
    }

    /// Those go on that have died and stay, one after the other, up to the first that nobody takes.
    fn retry(&mut self, now_ms: u64, slot: u8) {
        loop {
            let Some(queue) = self.queues.get(&slot) else { return };
            let first = queue.entries.iter().enumerate().filter_map(|(at, entry)| match entry.place {
                Place::Dying(death) => Some((death, at)),
                Place::Ready | Place::Held => None,
            });
            let Some((_, at)) = first.min() else { return };
            let is_taken = !self.letter_targets(slot, &queue.entries[at].message).is_empty();
            let Some(queue) = self.queue_mut(slot) else { return };
            if !is_taken {
                queue.retry_ms = Some(now_ms + RETRY_MS);
                return;
            }
            let entry = queue.entries.remove(at);
            self.is_durable |= entry.journaled;
            // Those that died in no known order come in none.
            let was_behind = self.is_behind;
            self.is_behind |= entry.is_loose;
            self.letter(now_ms, slot, &entry.message, entry.rank);
            self.is_behind = was_behind;
        }
    }

    /// What happens by itself, the first of it; false if there is nothing.
    pub(super) fn happen(&mut self, now_ms: u64) -> bool {
        let delayed = self.delayed.iter().map(|delayed| delayed.due_ms).filter(|due| *due <= now_ms).min();
        let is_their_turn = delayed.is_none() || self.order != Order::DelayedFirst;
        let is_tried = |queue: &Queue| {
            is_their_turn && queue.dying().next().is_some() && queue.retry_ms.is_none_or(|due| due <= now_ms)
        };
        if let Some(slot) = self.queues.iter().find(|(_, queue)| is_tried(queue)).map(|(slot, _)| *slot) {
            self.retry(now_ms, slot);
            return true;
        }
        if self.order == Order::OneByOne && self.drop_overflow(now_ms) {
            return true;
        }
        let due_in = |queue: &Rc<Queue>| {
            queue.ready().filter_map(|entry| entry.deadline_ms).filter(|due| *due <= now_ms).min()
        };
        // What is due just now may still be given to a consumer.
        let due = |(slot, queue): (&u8, &Rc<Queue>)| {
            Some((due_in(queue)?, self.waiting_consumer(*slot).is_some(), *slot))
        };
        let first = self.queues.iter().filter_map(due).min().map(|(due, _, slot)| (due, slot));
        // So may a letter: all that die together come before that.
        let is_letter_due = first.is_some_and(|(due, slot)| due == now_ms && Self::is_dead(slot));
        if delayed.is_none() && is_letter_due && self.drop_overflow(now_ms) {
            return true;
        }
        // From then on, nobody can tell in which order letters come.
        self.is_behind |= delayed.is_some_and(|due| due < now_ms) || first.is_some_and(|(due, _)| due < now_ms);
        let is_delayed = match (delayed, first, self.order) {
            (None, _, _) | (Some(_), Some(_), Order::ExpiryFirst) => false,
            (Some(_), None, _) | (Some(_), Some(_), Order::DelayedFirst) => true,
            (Some(delayed), Some((first, _)), Order::ByTime | Order::OneByOne) => delayed <= first,
        };
        if is_delayed {
            let mut all = Vec::clone(&self.delayed);
            all.sort_by_key(|delayed| delayed.due_ms);
            let due = all.partition_point(|delayed| delayed.due_ms <= now_ms);
            let later = all.split_off(if self.order == Order::OneByOne { 1 } else { due });
            self.delayed = Rc::new(later);
            for Delayed { message, .. } in all {
                let slots: Vec<u8> = self.targets(ExchangeName::Delayed, &message).into_iter().collect();
                self.offer(now_ms, &message, &slots);
            }
            return true;
        }
        if let Some((_, slot)) = first {
            // Before what is due just now goes what was due before.
            let is_late = self.queues[&slot].ready().any(|entry| entry.deadline_ms.is_some_and(|due| due < now_ms));
            let until = if is_late { now_ms - 1 } else { now_ms };
            let is_due =
                |entry: &Entry| entry.place == Place::Ready && entry.deadline_ms.is_some_and(|due| due <= until);
            while let Some(at) = {
                let due = self.queues[&slot].entries.iter().enumerate().filter(|(_, entry)| is_due(entry));
                due.min_by_key(|(at, entry)| (u8::MAX - entry.rank, *at)).map(|(at, _)| at)
            } {
                self.die(now_ms, slot, at);
            }
            return true;
        }
        self.drop_overflow(now_ms)
    }

    /// The head of a queue goes that is too long; false if there is none.
    fn drop_overflow(&mut self, now_ms: u64) -> bool {
        let Some(slot) = self.queues.keys().copied().find(|slot| self.overflows(*slot)) else { return false };
        let Some(at) = self.queues[&slot].head() else { return false };
        self.die(now_ms, slot, at);
        true
    }

    /// Queues go that nobody has used for as long as they say.
    pub(super) fn expire_queues(&mut self, now_ms: u64) {
        for slot in self.queues.keys().copied().collect::<Vec<_>>() {
            let Some(expires_ms) = self.spec(slot).expires_ms else { continue };
            let is_due = self.queues[&slot].last_used_ms + u64::from(expires_ms) <= now_ms;
            if is_due && self.consumer_count(slot) == 0 {
                self.remove_queue(slot);
            }
        }
    }

    pub(super) fn remove_queue(&mut self, slot: u8) {
        self.queues.remove(&slot);
        Rc::make_mut(&mut self.topology).bindings.retain(|(_, bound, _)| *bound != slot);
        let (gone, rest) = std::mem::take(&mut self.consumers).into_iter().partition(|own| own.slot == slot);
        self.consumers = rest;
        let gone: Vec<Consumer> = gone;
        self.cancelled.extend(gone.into_iter().map(|consumer| (consumer.client, consumer.id)));
        self.is_durable |= self.spec(slot).durable;
    }
}
