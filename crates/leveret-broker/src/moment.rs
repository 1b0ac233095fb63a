//! Time as the core sees it: an argument, read once by whoever drives.

use std::time::Duration;

use crate::change::Expiry;

/// One reading of both clocks.
///
/// Deadlines compare the monotonic part only, so a wall clock that jumps changes nothing but timestamps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Moment {
    /// Time since an arbitrary start that never goes back.
    pub monotonic: Duration,
    /// Time since 1970-01-01T00:00:00Z, as the operating system believes it.
    pub wall: Duration,
}

impl Moment {
    /// Its place in time without the fractions: milliseconds since the arbitrary start.
    pub(crate) fn monotonic_ms(self) -> u64 {
        u64::try_from(self.monotonic.as_millis()).unwrap_or(u64::MAX)
    }

    /// The deadline that lies `after` behind this moment; the end of time if that is out of range.
    pub fn deadline(self, after: Duration) -> Deadline {
        Deadline(self.monotonic.saturating_add(after))
    }

    /// The end of a time to live that begins now, for a journal.
    pub fn expiry(self, time_to_live: Duration) -> Expiry {
        let ms = |time: Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
        Expiry { wall_ms: ms(self.wall.saturating_add(time_to_live)), time_to_live_ms: ms(time_to_live) }
    }

    /// A deadline for a journal, once more.
    pub(crate) fn expiry_at(self, deadline: Deadline) -> Expiry {
        self.expiry(deadline.after(self))
    }

    /// The deadline of what was journaled, now that the node is up again: what is left by the wall clock, but at
    /// most the whole time to live.
    pub fn restored(self, expiry: Expiry) -> Deadline {
        let left = Duration::from_millis(expiry.wall_ms).saturating_sub(self.wall);
        self.deadline(left.min(Duration::from_millis(expiry.time_to_live_ms)))
    }

    /// Whether a deadline has come.
    pub fn has_reached(self, deadline: Deadline) -> bool {
        self.monotonic >= deadline.0
    }
}

/// A point in monotonic time at which something is due.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Deadline(pub Duration);

impl Deadline {
    /// How long from `now` until it is due; zero if it is.
    pub fn after(self, now: Moment) -> Duration {
        self.0.saturating_sub(now.monotonic)
    }
}
