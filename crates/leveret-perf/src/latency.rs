//! Latencies, as a histogram of microseconds.

use hdrhistogram::Histogram;
use serde::Serialize;

use crate::limits::LATENCY_US_MAX;

/// Latencies of one thread or of a run, to three digits.
#[derive(Debug)]
pub(crate) struct Latencies(Histogram<u64>);

/// A summary of latencies, in microseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct LatencySummary {
    /// Half of them are not longer.
    pub p50: u64,
    /// 99 of 100 are not longer.
    pub p99: u64,
    /// 999 of 1000 are not longer.
    pub p99_9: u64,
    /// The longest.
    pub max: u64,
    /// How many were measured.
    pub count: u64,
}

impl Default for Latencies {
    fn default() -> Self {
        Latencies(Histogram::new_with_bounds(1, LATENCY_US_MAX, 3).expect("these bounds and digits are allowed"))
    }
}

impl Latencies {
    /// Counts a latency in nanoseconds, as the next whole microsecond.
    pub(crate) fn record_ns(&mut self, nanos: u64) {
        self.0.saturating_record(nanos.div_ceil(1000));
    }

    /// Adds those of another thread.
    pub(crate) fn add(&mut self, other: &Latencies) {
        self.0.add(&other.0).expect("all have the same bounds");
    }

    /// `None` when nothing was measured.
    pub(crate) fn summary(&self) -> Option<LatencySummary> {
        let at = |quantile| self.0.value_at_quantile(quantile).min(self.0.max());
        (!self.0.is_empty()).then(|| LatencySummary {
            p50: at(0.5),
            p99: at(0.99),
            p99_9: at(0.999),
            max: self.0.max(),
            count: self.0.len(),
        })
    }

    /// Points of the distribution for a chart: nines of the quantile (0 to 5, for 0 to 0.99999), and microseconds. None
    /// when nothing was measured.
    pub(crate) fn curve(&self) -> Vec<(f64, f64)> {
        if self.0.is_empty() {
            return Vec::new();
        }
        let points = (0..=100).map(|step| f64::from(step) / 20.0);
        points
            .map(|nines| {
                let value = self.0.value_at_quantile(1.0 - 10f64.powf(-nines)).min(self.0.max());
                #[expect(clippy::cast_precision_loss, reason = "a chart shows three digits")]
                (nines, value as f64)
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_summary_counts_and_orders() {
        let mut latencies = Latencies::default();
        assert_eq!(latencies.summary(), None);
        for micros in 1..=1000 {
            latencies.record_ns(micros * 1000);
        }
        let mut all = Latencies::default();
        all.add(&latencies);
        let summary = all.summary().unwrap();
        assert_eq!((summary.p50, summary.p99, summary.p99_9, summary.max), (500, 990, 999, 1000));
        assert_eq!(summary.count, 1000);
    }
}
