//! When each message of a fixed rate is due, whatever became of those before it: an open loop.
//!
//! Time is an argument here, in nanoseconds since the beginning of the run.

const NANOS: u128 = 1_000_000_000;

/// The schedule of one of several producers that share a rate.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Schedule {
    start_ns: u64,
    /// Messages a second over all producers.
    rate: u64,
    producer: u64,
    producers: u64,
}

impl Schedule {
    pub(crate) fn new(start_ns: u64, rate: u64, producer: usize, producers: usize) -> Self {
        Schedule { start_ns, rate, producer: producer as u64, producers: producers as u64 }
    }

    /// When message `number`, counted from 0, is due. Producers take turns.
    pub(crate) fn time_ns(&self, number: u64) -> u64 {
        let turn = u128::from(number) * u128::from(self.producers) + u128::from(self.producer);
        self.start_ns.saturating_add(u64::try_from(turn * NANOS / u128::from(self.rate)).unwrap_or(u64::MAX))
    }

    /// How many messages are due at a time.
    pub(crate) fn due_count(&self, now_ns: u64) -> u64 {
        let Some(since) = now_ns.checked_sub(self.start_ns) else {
            return 0;
        };
        // The first turn that is not due, over all producers: turn * NANOS / rate > since.
        let turns = ((u128::from(since) + 1) * u128::from(self.rate)).div_ceil(NANOS);
        let own = turns.saturating_sub(u128::from(self.producer)).div_ceil(u128::from(self.producers));
        u64::try_from(own).unwrap_or(u64::MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::latency::Latencies;

    #[test]
    fn what_is_due_is_what_is_scheduled_until_then() {
        for (rate, producers) in [(1, 1), (3, 2), (1000, 7), (1_000_000, 3), (7_777_777, 1)] {
            for producer in 0..producers {
                let schedule = Schedule::new(50, rate, producer, producers);
                assert_eq!(schedule.due_count(49), 0);
                for number in [0, 1, 2, 10, 999, 1_000_000] {
                    let time = schedule.time_ns(number);
                    assert!(schedule.due_count(time) > number, "{rate} {producer}/{producers} {number}");
                    assert!(schedule.due_count(time - 1) <= number, "{rate} {producer}/{producers} {number}");
                }
            }
        }
    }

    #[test]
    fn producers_share_the_rate() {
        let due: u64 = (0..3).map(|producer| Schedule::new(0, 1000, producer, 3).due_count(999_999_999)).sum();
        assert_eq!(due, 1000);
    }

    /// A broker that answers at once but for a stall of half a second: half of the messages of that second wait.
    #[test]
    fn a_stall_is_in_the_latencies_of_all_that_were_due_meanwhile() {
        let schedule = Schedule::new(0, 1000, 0, 1);
        let (stalls_at, goes_on_at) = (250_000_000, 750_000_000);
        let mut latencies = Latencies::default();
        for number in 0..1000 {
            let due = schedule.time_ns(number);
            let received = if due >= stalls_at && due < goes_on_at { goes_on_at } else { due };
            latencies.record_ns(received - due);
        }
        let summary = latencies.summary().unwrap();
        assert_eq!(summary.count, 1000);
        assert!(summary.max >= 499_000, "{summary:?}");
        assert!(summary.p99 >= 480_000, "{summary:?}");
    }
}
