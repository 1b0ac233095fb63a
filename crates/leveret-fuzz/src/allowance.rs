//! How much memory something may take, measured in this thread.
//!
//! Invariant: what a target compares with is made before or after, or in [`uncounted`].

use allocation_counter::{AllocationInfo, measure, opt_out};

/// Bytes of input that a queue stands for where it is declared or read in a few: with its share of tables that double as they grow,
/// it takes 2,000.
pub(crate) const QUEUE_WORTH: usize = 16;

/// Bytes that every target may take, however short its input.
const BASE: u64 = 64 * 1024;

/// Runs what may have twice the bytes of its input at once, and a base.
#[track_caller]
pub(crate) fn twice<T>(input_bytes: usize, work: impl FnOnce() -> T) -> T {
    let (done, info) = measured(work);
    check("at once", info.bytes_max, 2 * input_bytes as u64 + BASE, input_bytes);
    done
}

/// Runs what may take 64 times the bytes of its input, all of its allocations together, and a base.
#[track_caller]
pub(crate) fn in_all<T>(input_bytes: usize, work: impl FnOnce() -> T) -> T {
    let (done, info) = measured(work);
    check("in all", info.bytes_total, 64 * input_bytes as u64 + BASE, input_bytes);
    done
}

/// Runs what may take so many times the bytes of its input, at once and in all, and a base: more than others, as it says why.
#[track_caller]
pub(crate) fn more<T>(at_once: u64, in_all: u64, input_bytes: usize, work: impl FnOnce() -> T) -> T {
    let (done, info) = measured(work);
    check("at once", info.bytes_max, at_once * input_bytes as u64 + BASE, input_bytes);
    check("in all", info.bytes_total, in_all * input_bytes as u64 + BASE, input_bytes);
    done
}

/// Pieces of work, with what a test does in between left out, that may take 64 times what they are given, all of their
/// allocations together, and a base.
///
/// What they are given is more than their input, where little of that makes much to do.
#[derive(Debug, Default)]
pub(crate) struct Account {
    taken: u64,
    given_bytes: usize,
}

impl Account {
    /// Runs a piece.
    pub(crate) fn run<T>(&mut self, work: impl FnOnce() -> T) -> T {
        let (done, info) = measured(work);
        self.taken += info.bytes_total;
        done
    }

    /// They have so many bytes more to work on.
    pub(crate) fn give(&mut self, bytes: usize) {
        self.given_bytes += bytes;
    }

    /// Says whether they have taken too much.
    #[track_caller]
    pub(crate) fn check(&self) {
        check("in all", self.taken, 64 * self.given_bytes as u64 + BASE, self.given_bytes);
    }
}

/// Does what a test does for itself in the midst of what is measured.
pub(crate) fn uncounted<T>(work: impl FnOnce() -> T) -> T {
    let mut done = None;
    opt_out(|| done = Some(work()));
    done.expect("it was run")
}

fn measured<T>(work: impl FnOnce() -> T) -> (T, AllocationInfo) {
    let mut done = None;
    let info = measure(|| done = Some(work()));
    (done.expect("it was run"), info)
}

#[track_caller]
fn check(how: &str, taken: u64, allowed: u64, input_bytes: usize) {
    assert!(taken <= allowed, "{taken} bytes {how} for an input of {input_bytes}, where {allowed} are allowed");
}
