//! What came of a run, for machines and for people.

use comfy_table::Table;
use comfy_table::presets::NOTHING;
use serde::Serialize;
use serde_json::Value;

use crate::latency::LatencySummary;
use crate::supervise::Sample;
use crate::verify::Verification;

/// What came of a run: counts, rates in messages a second, times in the units of their names. Absent is what a scenario does
/// not have.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Outcome {
    /// From the first publish to the last event that counts.
    pub seconds: f64,
    /// The user ended it early.
    pub interrupted: bool,
    /// Messages that were published.
    pub published: Option<u64>,
    /// Publishes that the broker confirmed.
    pub confirmed: Option<u64>,
    /// Publishes that the broker refused.
    pub nacked: Option<u64>,
    /// Messages that were due and not sent when the run ended, where latencies count from then: they have none.
    pub overdue: Option<u64>,
    /// Messages that arrived.
    pub received: Option<u64>,
    /// Publishes a second, until the broker had handled the last one.
    pub publish_rate: Option<f64>,
    /// Arrivals a second, until the last one.
    pub receive_rate: Option<f64>,
    /// How long the broker held publishes back with `connection.blocked`: the longest of any connection.
    pub held_seconds: f64,
    /// Latencies in microseconds.
    pub latency_us: Option<LatencySummary>,
    /// What is wrong with what arrived.
    pub verify: Option<Verification>,
    /// How often something was opened and closed again.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cycles: Option<u64>,
    /// How often a second.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cycle_rate: Option<f64>,
    /// Connections that were held.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub connections: Option<u64>,
    /// How long it took to open them.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub open_seconds: Option<f64>,
    /// Resident memory of the broker for each of them, in bytes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bytes_per_connection: Option<f64>,
    /// Rates over time.
    #[serde(skip)]
    pub samples: Vec<Sample>,
    /// The distribution of latencies: nines of the quantile, and microseconds.
    #[serde(skip)]
    pub latency_curve: Vec<(f64, f64)>,
}

/// An outcome with what it is the outcome of. As JSON it is one object.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// The scenario, for example `throughput`.
    pub scenario: &'static str,
    /// Its options as an object.
    pub options: Value,
    /// Why the run failed, if it did: then its figures are those until then.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// What came of it.
    #[serde(flatten)]
    pub outcome: Outcome,
}

impl Outcome {
    /// What is wrong with what arrived, as a sentence; `None` if nothing is, or nobody looked.
    pub fn fault(&self) -> Option<String> {
        let Verification { lost, duplicated, disordered, unknown } =
            self.verify.filter(|verify| !verify.is_good())?;
        let parts =
            [(lost, "lost"), (duplicated, "doubled"), (disordered, "out of order"), (unknown, "never published")];
        let faults: Vec<_> =
            parts.iter().filter(|(count, _)| *count > 0).map(|(count, what)| format!("{count} {what}")).collect();
        let (of, published) = (self.received.unwrap_or_default(), self.published.unwrap_or_default());
        Some(format!(
            "what arrived is not what was published: {} ({published} published, {of} received)",
            faults.join(", ")
        ))
    }
}

impl Report {
    /// A table of two columns, without a line break at its end.
    pub fn to_table(&self) -> String {
        let mut table = Table::new();
        table.load_style(NOTHING);
        for (name, value) in self.rows() {
            table.add_row([name.to_owned(), value]);
        }
        table.trim_fmt()
    }

    /// What a person wants to see, as names and values.
    pub(crate) fn rows(&self) -> Vec<(&'static str, String)> {
        let outcome = &self.outcome;
        let mut rows = vec![("scenario", self.scenario.to_owned())];
        let seconds = |seconds: f64| format!("{seconds:.3} s");
        rows.push(("time", seconds(outcome.seconds) + if outcome.interrupted { ", ended early" } else { "" }));
        let count =
            |rows: &mut Vec<_>, name, value: Option<u64>| rows.extend(value.map(|value| (name, grouped(value))));
        count(&mut rows, "published", outcome.published);
        count(&mut rows, "confirmed", outcome.confirmed);
        count(&mut rows, "refused", outcome.nacked.filter(|&nacked| nacked > 0));
        count(&mut rows, "due but not sent", outcome.overdue.filter(|&overdue| overdue > 0));
        count(&mut rows, "received", outcome.received);
        count(&mut rows, "cycles", outcome.cycles);
        count(&mut rows, "connections", outcome.connections);
        let rates = [
            ("publish rate", outcome.publish_rate),
            ("receive rate", outcome.receive_rate),
            ("cycle rate", outcome.cycle_rate),
        ];
        rows.extend(rates.into_iter().filter_map(|(name, rate)| Some((name, per_second(rate?)))));
        rows.extend(outcome.open_seconds.map(|open| ("time to open", seconds(open))));
        let kib = outcome.bytes_per_connection.map(|bytes| format!("{:.1} KiB a connection", bytes / 1024.0));
        rows.extend(kib.map(|kib| ("memory", kib)));
        if let Some(LatencySummary { p50, p99, p99_9, max, .. }) = outcome.latency_us {
            let micros = |micros| grouped(micros) + " µs";
            rows.extend([
                ("latency p50", micros(p50)),
                ("latency p99", micros(p99)),
                ("latency p99.9", micros(p99_9)),
                ("latency max", micros(max)),
            ]);
        }
        if outcome.held_seconds > 0.0 {
            rows.push(("held by the broker", seconds(outcome.held_seconds)));
        }
        if let Some(Verification { lost, duplicated, disordered, unknown }) = outcome.verify {
            let found =
                format!("{lost} lost, {duplicated} doubled, {disordered} out of order, {unknown} never published");
            rows.push(("verified", found));
        }
        rows
    }
}

/// A rate with the digits that mean something.
pub fn per_second(rate: f64) -> String {
    if rate < 100.0 {
        return format!("{rate:.1}/s");
    }
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "rates are positive and far below 2^64"
    )]
    let whole = rate.round() as u64;
    grouped(whole) + "/s"
}

/// A number with its thousands apart, for example 1,234,567.
pub fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (index, digit) in digits.char_indices() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_grouped_by_thousands() {
        assert_eq!([0, 999, 1000, 1_234_567].map(grouped), ["0", "999", "1,000", "1,234,567"]);
        assert_eq!((per_second(0.25), per_second(12_345.6)), ("0.2/s".to_owned(), "12,346/s".to_owned()));
    }

    #[test]
    fn a_fault_says_how_many_of_which() {
        let verify = Some(Verification { lost: 2, disordered: 1, ..Verification::default() });
        let outcome = Outcome { published: Some(10), received: Some(8), verify, ..Outcome::default() };
        let expected = "what arrived is not what was published: 2 lost, 1 out of order (10 published, 8 received)";
        assert_eq!(outcome.fault().as_deref(), Some(expected));
        let good = Outcome { verify: Some(Verification::default()), ..Outcome::default() };
        assert_eq!((good.fault(), Outcome::default().fault()), (None, None));
    }
}
