//! Time as the core sees it: an argument, read once by whoever drives.

use std::time::Duration;

use leveret_planted::{Bug, planted};

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
        let now = if planted(Bug::TimeToLiveOnWallClock) { self.wall } else { self.monotonic };
        Deadline(now.saturating_add(after))
    }

    /// The end of a time to live that begins now, for a journal: in whole milliseconds, and never too early.
    pub fn expiry(self, time_to_live: Duration) -> Expiry {
        self.expiry_at(self.deadline(time_to_live))
    }

    /// A deadline for a journal. It may have passed.
    pub(crate) fn expiry_at(self, deadline: Deadline) -> Expiry {
        let whole_ms = |time: Duration| {
            let ms = time.saturating_add(Duration::from_nanos(999_999)).as_millis();
            u64::try_from(ms).unwrap_or(u64::MAX)
        };
        let (left, passed) = (deadline.after(self), self.monotonic.saturating_sub(deadline.0));
        let end = self.wall.saturating_add(left).saturating_sub(passed);
        Expiry { wall_ms: whole_ms(end), time_to_live_ms: whole_ms(left) }
    }

    /// The deadline of what was journaled, now that the node is up again: what is left by the wall clock, but at
    /// most the whole time to live. One that has passed meanwhile lies in the past.
    pub fn restored(self, expiry: Expiry) -> Deadline {
        let end = Duration::from_millis(expiry.wall_ms);
        let end = if planted(Bug::TimeToLiveBeginsAnew) { Duration::MAX } else { end };
        let left = end.saturating_sub(self.wall).min(Duration::from_millis(expiry.time_to_live_ms));
        Deadline(self.deadline(left).0.saturating_sub(self.wall.saturating_sub(end)))
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

#[cfg(test)]
mod tests {
    use super::*;

    const fn at(monotonic_ms: u64, wall_ms: u64) -> Moment {
        Moment { monotonic: Duration::from_millis(monotonic_ms), wall: Duration::from_millis(wall_ms) }
    }

    #[test]
    fn a_deadline_comes_back_as_it_was_or_in_the_past() {
        let before = at(5000, 1_000_000);
        let (soon, later) = (before.expiry(Duration::from_secs(3)), before.expiry(Duration::from_secs(9)));
        // The clock of the next start begins anew, and counts on by itself.
        let after = at(50_000, 1_004_000);
        assert_eq!(after.restored(soon), Deadline(Duration::from_secs(49)));
        assert_eq!(after.restored(later), Deadline(Duration::from_secs(55)));
        for expiry in [soon, later] {
            let restated = at(51_000, 1_005_000).expiry_at(after.restored(expiry));
            assert_eq!(restated.wall_ms, expiry.wall_ms);
            assert_eq!(at(1, 1_005_000).restored(restated), at(1, 1_005_000).restored(expiry));
        }
    }

    #[test]
    fn a_clock_that_was_set_back_keeps_nothing_longer_than_its_time_to_live() {
        let expiry = at(5000, 1_000_000).expiry(Duration::from_secs(3));
        assert_eq!(at(0, 10).restored(expiry), Deadline(Duration::from_secs(3)));
    }

    #[test]
    fn whole_milliseconds_are_never_too_early() {
        let now = Moment { monotonic: Duration::ZERO, wall: Duration::from_nanos(1_000_001) };
        let expiry = now.expiry(Duration::from_millis(1));
        assert_eq!(expiry, Expiry { wall_ms: 3, time_to_live_ms: 1 });
        assert_eq!(now.restored(expiry), Deadline(Duration::from_millis(1)));
    }
}
