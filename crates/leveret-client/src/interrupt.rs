//! Ending the waits of a connection early.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// Has each wait of a connection end with [`Error::Interrupted`](crate::Error::Interrupted) once a flag is raised, for example
/// after Ctrl-C.
#[derive(Clone, Debug)]
pub struct Interrupt {
    raised: Arc<AtomicBool>,
    grace: Duration,
}

impl Interrupt {
    /// What is still waited for when `raised` is set has `grace` to come nevertheless.
    pub fn new(raised: Arc<AtomicBool>, grace: Duration) -> Self {
        Interrupt { raised, grace }
    }

    /// Whether the flag is raised.
    pub fn is_raised(&self) -> bool {
        self.raised.load(Ordering::Relaxed)
    }
}

/// What an interrupt means for one wait.
#[derive(Debug, Default)]
pub(crate) struct Interruption {
    /// When the wait first saw the flag raised.
    seen: Option<Instant>,
}

impl Interruption {
    /// Whether the wait is over.
    pub(crate) fn is_due(&mut self, interrupt: &Interrupt, now: Instant) -> bool {
        interrupt.is_raised() && now.saturating_duration_since(*self.seen.get_or_insert(now)) >= interrupt.grace
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wait_has_the_grace_from_when_it_sees_the_flag() {
        let raised = Arc::new(AtomicBool::new(false));
        let interrupt = Interrupt::new(Arc::clone(&raised), Duration::from_secs(3));
        let mut interruption = Interruption::default();
        let begin = Instant::now();
        let after = |seconds| begin + Duration::from_secs(seconds);
        assert!(!interruption.is_due(&interrupt, after(100)));
        raised.store(true, Ordering::Relaxed);
        assert!(!interruption.is_due(&interrupt, after(200)));
        assert!(!interruption.is_due(&interrupt, after(202)));
        assert!(interruption.is_due(&interrupt, after(203)));
        let at_once = Interrupt::new(raised, Duration::ZERO);
        assert!(Interruption::default().is_due(&at_once, begin));
    }
}
