//! What ends a channel or a consumer while the connection goes on, for the log.
//!
//! Owns: what the driver has not taken yet, and how many were only counted.
//! Invariant: every fault is told or counted, and no more are told in a time than the limit says: no client fills a disk with
//! them.

use std::time::Duration;

use crate::limits::{CHANNEL_FAULTS_PERIOD, CHANNEL_FAULTS_TOLD_MAX};
use crate::moment::Moment;
use crate::names::ChannelId;

/// What a fault on a channel has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// The channel, by `channel.close`.
    Channel,
    /// A consumer on it, by `basic.cancel`.
    Consumer,
}

/// A fault on a channel, as the log tells it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ChannelFault {
    /// What it has ended.
    pub ended: Ended,
    /// Where.
    pub channel: ChannelId,
    /// The method at fault, if one is: for example `queue.declare`.
    pub operation: Option<&'static str>,
    /// Why.
    pub reason: String,
    /// So many before it were only counted.
    pub untold: u64,
}

/// The faults of one connection.
#[derive(Debug, Default)]
pub(super) struct Faults {
    told: Vec<ChannelFault>,
    /// When the time began in which so many were told.
    since: Duration,
    count: usize,
    untold: u64,
}

impl Faults {
    /// Keeps what `fault` says for the log, or only counts it if there are too many.
    pub(super) fn note(&mut self, now: Moment, fault: impl FnOnce() -> ChannelFault) {
        if now.monotonic >= self.since + CHANNEL_FAULTS_PERIOD {
            (self.since, self.count) = (now.monotonic, 0);
        }
        if self.count == CHANNEL_FAULTS_TOLD_MAX {
            self.untold += 1;
            return;
        }
        self.count += 1;
        self.told.push(ChannelFault { untold: std::mem::take(&mut self.untold), ..fault() });
    }

    pub(super) fn take(&mut self) -> Vec<ChannelFault> {
        std::mem::take(&mut self.told)
    }

    /// How many were counted since the last one that was told.
    pub(super) fn untold(&self) -> u64 {
        self.untold
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fault() -> ChannelFault {
        let channel = ChannelId::new(1).unwrap();
        ChannelFault { ended: Ended::Channel, channel, operation: None, reason: "why".into(), untold: 0 }
    }

    #[test]
    fn of_a_flood_of_faults_a_few_are_told_and_all_are_counted() {
        let at = |milliseconds| Moment {
            monotonic: Duration::from_hours(1) + Duration::from_millis(milliseconds),
            wall: Duration::ZERO,
        };
        let mut faults = Faults::default();
        let (mut told, mut counted) = (0, 0);
        // One each millisecond, for a minute.
        for millisecond in 0..60_000 {
            faults.note(at(millisecond), fault);
            let taken = faults.take();
            told += taken.len();
            counted += taken.iter().map(|fault| 1 + fault.untold).sum::<u64>();
        }
        let periods = 60 / usize::try_from(CHANNEL_FAULTS_PERIOD.as_secs()).unwrap();
        assert_eq!(told, periods * CHANNEL_FAULTS_TOLD_MAX);
        assert_eq!(counted + faults.untold(), 60_000);
        assert_eq!(faults.take(), [], "what is only counted takes no memory");
    }
}
