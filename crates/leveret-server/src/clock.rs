//! The one place that reads clocks.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use leveret_broker::Moment;
use leveret_broker::moment::Deadline;

/// What monotonic time begins with. So what was due while the node was down for less than this is known to be due in its order.
const BEGINNING: Duration = Duration::from_hours(4 * 24);

/// Both clocks of the operating system, and the start that monotonic time is counted from.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Clock {
    start: Instant,
}

impl Clock {
    pub(crate) fn start() -> Self {
        Clock { start: Instant::now() }
    }

    pub(crate) fn now(self) -> Moment {
        let wall = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Moment { monotonic: BEGINNING + self.start.elapsed(), wall }
    }

    /// How long ago it was started.
    pub(crate) fn uptime(self) -> Duration {
        self.start.elapsed()
    }

    /// When a deadline is due, for tokio's timers. Beyond a year it is never.
    pub(crate) fn instant(self, deadline: Deadline) -> tokio::time::Instant {
        const YEAR: Duration = Duration::from_hours(365 * 24);
        let since_start = deadline.0.saturating_sub(BEGINNING);
        (self.start + since_start.min(self.start.elapsed() + YEAR)).into()
    }
}
