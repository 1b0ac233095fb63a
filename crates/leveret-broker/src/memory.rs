//! Memory, added up where it is taken and given back.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// What an allocator takes for the smallest block, with what it knows of it.
pub(crate) const BLOCK_BYTES_LEAST: usize = 32;

/// Bytes that a virtual host holds: bodies in memory, what queues know of all others, and what its ledger adds up. Whoever
/// drives the virtual host may read it without its lock.
#[derive(Clone, Debug, Default)]
pub struct Meter(Arc<Account>);

#[derive(Debug, Default)]
struct Account {
    bytes: AtomicUsize,
    /// What counts here counts there, too.
    whole: Option<Meter>,
}

impl Meter {
    /// One for a part of what this one counts.
    pub(crate) fn part(&self) -> Self {
        Meter(Arc::new(Account { bytes: AtomicUsize::new(0), whole: Some(self.clone()) }))
    }

    /// How many there are now.
    pub fn bytes(&self) -> usize {
        self.0.bytes.load(Ordering::Relaxed)
    }

    // Only the holder of the lock changes it, so nothing comes between the two halves.
    pub(crate) fn add(&self, bytes: usize) {
        self.0.bytes.store(self.bytes() + bytes, Ordering::Relaxed);
        if let Some(whole) = &self.0.whole {
            whole.add(bytes);
        }
    }

    pub(crate) fn subtract(&self, bytes: usize) {
        debug_assert!(bytes <= self.bytes(), "what is given back was taken");
        self.0.bytes.store(self.bytes().saturating_sub(bytes), Ordering::Relaxed);
        if let Some(whole) = &self.0.whole {
            whole.subtract(bytes);
        }
    }
}

/// Memory that is given back when this is dropped.
#[derive(Debug, Default)]
pub(crate) struct Lease {
    meter: Meter,
    bytes: usize,
}

impl Lease {
    /// None yet; what is taken is added up in `meter`.
    pub(crate) fn new(meter: Meter) -> Self {
        Lease { meter, bytes: 0 }
    }

    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    pub(crate) fn take(&mut self, bytes: usize) {
        self.meter.add(bytes);
        self.bytes += bytes;
    }

    /// So much of it from the beginning.
    pub(crate) fn with(mut self, bytes: usize) -> Self {
        self.take(bytes);
        self
    }

    /// So much is held now, whatever was before.
    pub(crate) fn set(&mut self, bytes: usize) {
        if bytes > self.bytes {
            self.take(bytes - self.bytes);
        } else if bytes < self.bytes {
            self.give_back(self.bytes - bytes);
        }
    }

    /// Another one of the same meter.
    pub(crate) fn sibling(&self) -> Self {
        Lease::new(self.meter.clone())
    }

    pub(crate) fn give_back(&mut self, bytes: usize) {
        self.meter.subtract(bytes);
        self.bytes -= bytes;
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.meter.subtract(self.bytes);
    }
}
