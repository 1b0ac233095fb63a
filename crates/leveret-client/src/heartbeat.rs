//! When to send a sign of life, and when to give up on the peer. AMQP 0-9-1 §4.2.7.
//!
//! Time is an argument here; the socket's owner reads the clock.

use std::time::{Duration, Instant};

/// The heartbeat of one connection: `interval` as negotiated, `None` when it is off.
#[derive(Debug)]
pub(crate) struct Heartbeat {
    interval: Option<Duration>,
    sent: Instant,
    heard: Instant,
}

impl Heartbeat {
    pub(crate) fn off(now: Instant) -> Self {
        Heartbeat { interval: None, sent: now, heard: now }
    }

    pub(crate) fn start(&mut self, interval: Option<Duration>) {
        self.interval = interval;
    }

    pub(crate) fn interval(&self) -> Option<Duration> {
        self.interval
    }

    /// Any bytes that were written count as a sign of life.
    pub(crate) fn handle_sent(&mut self, now: Instant) {
        self.sent = now;
    }

    /// So do any bytes that were read.
    pub(crate) fn handle_heard(&mut self, now: Instant) {
        self.heard = now;
    }

    /// Whether half an interval went by without a byte of ours.
    pub(crate) fn is_due(&self, now: Instant) -> bool {
        self.interval.is_some_and(|interval| now >= self.sent + interval / 2)
    }

    /// Whether two intervals went by without a byte of the peer's.
    pub(crate) fn is_peer_dead(&self, now: Instant) -> bool {
        self.interval.is_some_and(|interval| now >= self.heard + interval * 2)
    }

    /// When to ask again.
    pub(crate) fn next(&self) -> Option<Instant> {
        self.interval.map(|interval| (self.sent + interval / 2).min(self.heard + interval * 2))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn a_sign_of_life_is_due_after_half_an_interval_and_death_after_two() {
        let start = Instant::now();
        let mut heartbeat = Heartbeat::off(start);
        heartbeat.start(Some(10 * SECOND));
        assert_eq!(heartbeat.next(), Some(start + 5 * SECOND));
        assert!(!heartbeat.is_due(start + 4 * SECOND));
        assert!(heartbeat.is_due(start + 5 * SECOND));
        heartbeat.handle_sent(start + 18 * SECOND);
        assert_eq!(heartbeat.next(), Some(start + 20 * SECOND));
        assert!(!heartbeat.is_peer_dead(start + 19 * SECOND));
        assert!(heartbeat.is_peer_dead(start + 20 * SECOND));
        heartbeat.handle_heard(start + 19 * SECOND);
        assert!(!heartbeat.is_peer_dead(start + 38 * SECOND));
    }

    #[test]
    fn without_an_interval_nothing_is_ever_due() {
        let start = Instant::now();
        let heartbeat = Heartbeat::off(start);
        let later = start + 3600 * SECOND;
        assert_eq!(
            (heartbeat.is_due(later), heartbeat.is_peer_dead(later), heartbeat.next()),
            (false, false, None)
        );
    }
}
