//! What the virtual host has for one connection, until the connection's task encodes it.
//!
//! Unbounded in itself: deliveries are bounded by the connection's window, answers by not reading it any more. The messages in it
//! count in the memory of the node until they are written to the socket.

use std::sync::Arc;

use leveret_broker::Output;
use leveret_planted::{Bug, planted};

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

    /// The socket has taken messages of so many bytes.
    pub(crate) fn written(&self, bytes: usize) {
        if let Some(memory) = self.memory.as_ref().filter(|_| bytes > 0) {
            self.unwritten.fetch_sub(bytes, Ordering::Relaxed);
            memory.written(bytes);
        }
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
    }
}
