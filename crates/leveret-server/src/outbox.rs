//! What the virtual host has for one connection, until the connection's task encodes it.
//!
//! Unbounded in itself: deliveries are bounded by the connection's window, answers by not reading it any more. What is in it
//! counts in the memory of the node until it is written to the socket: messages, and other answers where they are many.

use std::sync::Arc;

use leveret_broker::Output;
use leveret_planted::{Bug, planted};

use crate::limits::UNREAD_BYTES_SMALL;
use crate::memory::Memory;
use crate::sync::atomic::{AtomicUsize, Ordering};
use crate::sync::{Mutex, Notify};

/// Between a virtual host and one connection's task.
#[derive(Debug, Default)]
pub(crate) struct Outbox {
    outputs: Mutex<Vec<Output>>,
    filled: Notify,
    /// Where its messages count; nowhere if nobody is sent any.
    memory: Option<Arc<Memory>>,
    /// Bytes of those that are not written yet.
    unwritten: AtomicUsize,
    /// Bytes of other answers that are not, if they are many.
    unread: AtomicUsize,
}

impl Outbox {
    /// One whose messages count.
    pub(crate) fn new(memory: Arc<Memory>) -> Arc<Self> {
        let mut outbox = Outbox::default();
        outbox.memory = Some(memory);
        Arc::new(outbox)
    }

    /// Takes all of `outputs`, whose messages have so many bytes; true if the outbox was empty, so that its owner has to be
    /// woken.
    pub(crate) fn append(&self, outputs: &mut Vec<Output>, bytes: usize) -> bool {
        if !planted(Bug::CountedAfterHandedOver) {
            self.count(bytes);
        }
        if planted(Bug::WokenBeforeFilled) {
            self.wake();
        }
        let mut waiting = self.outputs.lock();
        let was_empty = waiting.is_empty();
        if was_empty {
            std::mem::swap(&mut *waiting, outputs);
        } else {
            waiting.append(outputs);
        }
        drop(waiting);
        if planted(Bug::CountedAfterHandedOver) {
            self.count(bytes);
        }
        was_empty && !planted(Bug::WokenBeforeFilled)
    }

    fn count(&self, bytes: usize) {
        if let Some(memory) = self.memory.as_ref().filter(|_| bytes > 0) {
            self.unwritten.fetch_add(bytes, Ordering::Relaxed);
            memory.handed_out(bytes);
        }
    }

    /// Exchanges what waits for an empty buffer.
    pub(crate) fn take(&self, emptied: &mut Vec<Output>) {
        debug_assert!(emptied.is_empty());
        std::mem::swap(&mut *self.outputs.lock(), emptied);
    }

    /// Gives back the room for what there was.
    pub(crate) fn give_back(&self) {
        let mut outputs = self.outputs.lock();
        if outputs.is_empty() {
            *outputs = Vec::new();
        }
    }

    /// The socket has taken messages of so many bytes.
    pub(crate) fn written(&self, bytes: usize) {
        if let Some(memory) = self.memory.as_ref().filter(|_| bytes > 0) {
            self.unwritten.fetch_sub(bytes, Ordering::Relaxed);
            memory.written(bytes);
        }
    }

    /// So many bytes wait for the client to read them. Returns whether it may be asked for more: not if its answers, beside the messages
    /// that count anyway, are more than are left for all.
    pub(crate) fn may_answer(&self, waiting: usize) -> bool {
        let Some(memory) = &self.memory else { return true };
        let answers = waiting.saturating_sub(self.unwritten.load(Ordering::Relaxed));
        let unread = if answers > UNREAD_BYTES_SMALL { answers } else { 0 };
        let before = self.unread.load(Ordering::Relaxed);
        if unread != before {
            self.unread.store(unread, Ordering::Relaxed);
            memory.unread_changed(before, unread);
        }
        unread == 0 || unread < memory.unread_left()
    }

    pub(crate) fn wake(&self) {
        self.filled.notify_one();
    }

    /// Returns when something was appended since the last time.
    pub(crate) async fn filled(&self) {
        self.filled.notified().await;
    }
}

impl Drop for Outbox {
    /// What was never written is gone.
    fn drop(&mut self) {
        self.written(self.unwritten.load(Ordering::Relaxed));
        if let Some(memory) = &self.memory {
            memory.unread_changed(self.unread.load(Ordering::Relaxed), 0);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_that_nobody_reads_have_a_bound_together_and_who_reads_does_not_notice() {
        const LIMIT: usize = 64 << 20;
        const ANSWERED_AT_ONCE: usize = 10_000;
        let memory = Memory::new(LIMIT);
        let unread = |outbox: &Outbox| {
            let mut waiting = 0;
            while outbox.may_answer(waiting) {
                waiting += ANSWERED_AT_ONCE;
            }
            waiting
        };
        let outboxes: Vec<_> = (0..100).map(|_| Outbox::new(Arc::clone(&memory))).collect();
        let sums: Vec<_> = outboxes.iter().map(|outbox| unread(outbox)).collect();
        assert!(sums[0] > LIMIT / 33, "one alone has half of what there is for all: {}", sums[0]);
        let most = LIMIT / 16 + sums.len() * (UNREAD_BYTES_SMALL + ANSWERED_AT_ONCE);
        assert!(sums.iter().sum::<usize>() <= most, "{}", sums.iter().sum::<usize>());
        let reader = Outbox::new(Arc::clone(&memory));
        assert!(reader.may_answer(UNREAD_BYTES_SMALL), "of one that reads as much waits at times");
        // What counts as messages anyway is no answer.
        reader.append(&mut Vec::new(), 1 << 20);
        assert!(reader.may_answer(UNREAD_BYTES_SMALL + (1 << 20)));
        reader.written(1 << 20);
        drop(outboxes);
        assert!(reader.may_answer(LIMIT / 40), "there is room again");
        reader.may_answer(0);
        assert_eq!(memory.unread_left(), LIMIT / 16);
    }
}
