//! What the virtual host has for one connection, until the connection's task encodes it.
//!
//! Unbounded in itself: deliveries are bounded by the connection's window, answers by not reading it any more.

use leveret_broker::Output;
use parking_lot::Mutex;
use tokio::sync::Notify;

/// Between a virtual host and one connection's task.
#[derive(Debug, Default)]
pub(crate) struct Outbox {
    outputs: Mutex<Vec<Output>>,
    filled: Notify,
}

impl Outbox {
    /// Takes all of `outputs`; true if the outbox was empty, so that its owner has to be woken.
    pub(crate) fn append(&self, outputs: &mut Vec<Output>) -> bool {
        let mut waiting = self.outputs.lock();
        let was_empty = waiting.is_empty();
        if was_empty {
            std::mem::swap(&mut *waiting, outputs);
        } else {
            waiting.append(outputs);
        }
        was_empty
    }

    /// Exchanges what waits for an empty buffer.
    pub(crate) fn take(&self, emptied: &mut Vec<Output>) {
        debug_assert!(emptied.is_empty());
        std::mem::swap(&mut *self.outputs.lock(), emptied);
    }

    pub(crate) fn wake(&self) {
        self.filled.notify_one();
    }

    /// Returns when something was appended since the last time.
    pub(crate) async fn filled(&self) {
        self.filled.notified().await;
    }
}
