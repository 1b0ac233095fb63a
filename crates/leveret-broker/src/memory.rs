//! Memory, added up where it is taken and given back.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Bytes that the queues of a virtual host hold: bodies in memory and what the queues know of all others. Whoever drives
/// the virtual host may read it without its lock.
#[derive(Clone, Debug, Default)]
pub struct Meter(Arc<AtomicUsize>);

impl Meter {
    /// How many there are now.
    pub fn bytes(&self) -> usize {
        self.0.load(Ordering::Relaxed)
    }

    // Only the holder of the lock changes it, so nothing comes between the two halves.
    pub(crate) fn add(&self, bytes: usize) {
        self.0.store(self.bytes() + bytes, Ordering::Relaxed);
    }

    pub(crate) fn subtract(&self, bytes: usize) {
        debug_assert!(bytes <= self.bytes(), "what is given back was taken");
        self.0.store(self.bytes().saturating_sub(bytes), Ordering::Relaxed);
    }
}
