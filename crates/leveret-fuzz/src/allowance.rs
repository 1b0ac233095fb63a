//! How much memory something may take, measured in this thread.
//!
//! Owns: the bounds, and what counts beside the bytes of an input: all of it stands here.
//! Invariant: what a target compares with is made before or after, or in [`uncounted`].

use allocation_counter::{AllocationInfo, measure, opt_out};
use leveret_broker::limits::{EMPTY_PLACES_MAX, PAGE_ENTRIES, PATTERN_BYTES_MAX};
use leveret_broker::pattern::Pattern;

/// Bytes that every target may take, however short its input.
const BASE: u64 = 64 * 1024;

/// How many times its input what is bounded in all may take, all of its allocations together.
const IN_ALL: u64 = 64;

// What is begun in a few bytes, and takes more than 64 times as much, counts for more bytes of input than it has. How many these are
// was measured; `tests/bounds.rs` has the most of each.

/// A queue that is declared, or read: with its share of tables that double as they grow, it takes 2,000 bytes.
pub(crate) const QUEUE_WORTH: usize = 16;

/// A virtual host: with no records, it takes 24,000 bytes.
pub(crate) const VHOST_WORTH: usize = 512;

/// A start of a broker, beside the records that it reads: with none, it takes 8,000 bytes.
pub(crate) const START_WORTH: usize = 128;

/// A question where a message would go: if nothing matches, it takes 2,000 bytes.
pub(crate) const QUESTION_WORTH: usize = 64;

/// Bytes of a place in a page of a queue's index.
const PLACE_BYTES: usize = 72;

/// A message behind so many places of its queue that stay empty. They are places of its page, or of this one and the one before,
/// which double as they grow; if they are many, the page is packed behind the message, and opened again for the next one.
pub(crate) fn gap_worth(places: u64) -> usize {
    let most = usize::try_from(places).unwrap_or(usize::MAX).min(2 * PAGE_ENTRIES);
    let opened = if places > EMPTY_PLACES_MAX { PAGE_ENTRIES } else { 0 };
    (2 * most + opened) * PLACE_BYTES / 64
}

/// The most that compiling a pattern takes at once, and in all: its text is short, and so is what comes of it, however often it says
/// that letters are repeated. The library's trees and tables take some times that.
const PATTERN_AT_ONCE: u64 = 8 * PATTERN_BYTES_MAX as u64;
const PATTERN_IN_ALL: u64 = 32 * PATTERN_BYTES_MAX as u64;

/// What patterns take. That depends on what they say, and not on how long they are; so they are not held to a multiple of their bytes,
/// but to what they take alone, and this to a constant for each.
#[derive(Clone, Copy, Debug, Default)]
pub struct PatternBytes {
    /// While one is compiled.
    pub at_once: u64,
    /// All of its allocations together.
    pub in_all: u64,
    /// As long as it is there.
    pub kept: u64,
}

impl PatternBytes {
    /// The most that one may take.
    pub const MOST: PatternBytes =
        PatternBytes { at_once: PATTERN_AT_ONCE, in_all: PATTERN_IN_ALL, kept: PATTERN_AT_ONCE };

    /// Measures what it takes to compile a pattern.
    ///
    /// # Panics
    /// If it takes more than it may.
    #[track_caller]
    pub fn compiled(text: &str) -> Self {
        PatternBytes::of(1, || Pattern::parse(text)).0
    }

    /// The same, with the notes that it makes when it is looked for in a name the first time, which may be a long one.
    #[track_caller]
    pub(crate) fn used(text: &str) -> Self {
        let (compiled, pattern) = PatternBytes::of(1, || Pattern::parse(text));
        let Ok(pattern) = pattern else { return compiled };
        let name = "x".repeat(255);
        let (_, info) = measured(|| pattern.matches(&name));
        PatternBytes {
            at_once: compiled.at_once.max(compiled.kept + info.bytes_max),
            in_all: compiled.in_all + info.bytes_total,
            kept: compiled.kept + info.bytes_max,
        }
    }

    /// The same of something that has so many patterns.
    #[track_caller]
    pub(crate) fn of<T>(count: u64, compile: impl FnOnce() -> T) -> (Self, T) {
        let (compiled, info) = measured(compile);
        check("at once", info.bytes_max, count * PATTERN_AT_ONCE, 0);
        check("in all", info.bytes_total, count * PATTERN_IN_ALL, 0);
        let kept = info.bytes_current.try_into().unwrap_or_default();
        (PatternBytes { at_once: info.bytes_max, in_all: info.bytes_total, kept }, compiled)
    }
}

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
    check("in all", info.bytes_total, IN_ALL * input_bytes as u64 + BASE, input_bytes);
    done
}

/// Pieces of work, with what a test does in between left out, that may take 64 times what they are given, all of their
/// allocations together, and a base.
///
/// What they are given is more than their input, where little of that makes much to do.
#[derive(Debug, Default)]
pub(crate) struct Account {
    taken: u64,
    /// What the pieces before have and did not let go of.
    held: i64,
    /// The most that there was at once.
    most: u64,
    given_bytes: usize,
    /// What patterns may take beside that.
    patterns: PatternBytes,
}

impl Account {
    /// Runs a piece.
    pub(crate) fn run<T>(&mut self, work: impl FnOnce() -> T) -> T {
        let (done, info) = measured(work);
        self.taken += info.bytes_total;
        self.most = self.most.max(self.held.saturating_add_unsigned(info.bytes_max).try_into().unwrap_or_default());
        self.held += info.bytes_current;
        done
    }

    /// They have so many bytes more to work on.
    pub(crate) fn give(&mut self, bytes: usize) {
        self.given_bytes += bytes;
    }

    /// They have a pattern more to compile.
    pub(crate) fn give_pattern(&mut self, pattern: PatternBytes) {
        self.patterns.in_all += pattern.in_all;
        self.patterns.kept += pattern.kept;
        self.patterns.at_once = self.patterns.at_once.max(pattern.at_once);
    }

    /// Says whether they have taken too much: at once, so many times what they were given, or in all, 64 times.
    #[track_caller]
    pub(crate) fn check(&self, at_once: u64) {
        let given = self.given_bytes as u64;
        let PatternBytes { at_once: compiled, in_all, kept } = self.patterns;
        check("in all", self.taken, IN_ALL * given + BASE + in_all, self.given_bytes);
        check("at once", self.most, at_once * given + BASE + kept + compiled, self.given_bytes);
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
