//! Which publishes of a producer are not confirmed yet, and when they were sent.
//!
//! Invariant: a number counts as confirmed or refused exactly once.

use leveret_client::Error;

use crate::latency::Latencies;

/// The last publishes of one channel, numbered from 1.
#[derive(Debug)]
pub(crate) struct Window {
    /// For each number, at its rest by the length: when it was sent, or [`SETTLED`].
    sent_ns: Vec<u64>,
    published: u64,
    /// All numbers up to this one are settled.
    floor: u64,
    outstanding: usize,
    /// What was settled since it was taken: how many were confirmed, and which were refused.
    confirmed: u64,
    nacked: Vec<u64>,
}

const SETTLED: u64 = u64::MAX;

impl Window {
    /// At most `size` may be outstanding.
    pub(crate) fn new(size: usize) -> Self {
        Window {
            sent_ns: vec![SETTLED; size],
            published: 0,
            floor: 0,
            outstanding: 0,
            confirmed: 0,
            nacked: Vec::new(),
        }
    }

    /// How many more may be sent now. A late single confirm holds up what is a whole window behind it.
    pub(crate) fn room(&self) -> usize {
        self.sent_ns.len() - usize::try_from(self.published - self.floor).unwrap_or(usize::MAX)
    }

    pub(crate) fn outstanding(&self) -> usize {
        self.outstanding
    }

    pub(crate) fn handle_published(&mut self, sent_ns: u64) {
        assert!(self.room() > 0);
        self.published += 1;
        self.outstanding += 1;
        let at = self.index(self.published);
        self.sent_ns[at] = sent_ns;
    }

    /// The last `count` publishes were not sent after all.
    pub(crate) fn withdraw(&mut self, count: usize) {
        for _ in 0..count {
            let at = self.index(self.published);
            if std::mem::replace(&mut self.sent_ns[at], SETTLED) != SETTLED {
                self.outstanding -= 1;
            }
            self.published -= 1;
        }
    }

    /// Takes a verdict of the broker. Number 0 with `multiple` means all.
    pub(crate) fn handle_verdict(
        &mut self,
        number: u64,
        multiple: bool,
        verdict: Verdict,
        now_ns: u64,
        latencies: &mut Latencies,
    ) -> Result<(), Error> {
        if number > self.published || (number == 0 && !multiple) {
            return Err(Error::Unexpected(format!("a confirm for number {number}, which was never published")));
        }
        let last = if number == 0 { self.published } else { number };
        let first = if multiple { self.floor + 1 } else { last };
        for number in first.max(self.floor + 1)..=last {
            let at = self.index(number);
            let sent_ns = std::mem::replace(&mut self.sent_ns[at], SETTLED);
            if sent_ns == SETTLED {
                continue;
            }
            self.outstanding -= 1;
            match verdict {
                Verdict::Confirmed => {
                    self.confirmed += 1;
                    latencies.record_ns(now_ns.saturating_sub(sent_ns));
                }
                Verdict::Nacked => self.nacked.push(number),
            }
        }
        while self.floor < self.published && self.sent_ns[self.index(self.floor + 1)] == SETTLED {
            self.floor += 1;
        }
        Ok(())
    }

    /// How many were confirmed since the last call, and the numbers of those that were refused.
    pub(crate) fn take_verdicts(&mut self) -> (u64, Vec<u64>) {
        (std::mem::take(&mut self.confirmed), std::mem::take(&mut self.nacked))
    }

    fn index(&self, number: u64) -> usize {
        usize::try_from(number % self.sent_ns.len() as u64).unwrap_or_default()
    }
}

/// What the broker says of a publish.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    Confirmed,
    Nacked,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn confirms_out_of_order_and_in_groups_settle_each_number_once() {
        let mut window = Window::new(6);
        let mut latencies = Latencies::default();
        (1..=6).for_each(|number| window.handle_published(number * 1000));
        assert_eq!((window.room(), window.outstanding()), (0, 6));
        let mut say = |window: &mut Window, number, multiple, verdict| {
            window.handle_verdict(number, multiple, verdict, 10_000, &mut latencies).unwrap();
        };
        say(&mut window, 3, false, Verdict::Confirmed);
        assert_eq!((window.room(), window.outstanding()), (0, 5));
        say(&mut window, 2, true, Verdict::Nacked);
        assert_eq!((window.room(), window.outstanding()), (3, 3));
        say(&mut window, 3, true, Verdict::Nacked);
        say(&mut window, 1, false, Verdict::Confirmed);
        assert_eq!(window.take_verdicts(), (1, vec![1, 2]));
        window.handle_published(9_000);
        say(&mut window, 0, true, Verdict::Confirmed);
        assert_eq!((window.room(), window.outstanding(), window.take_verdicts()), (6, 0, (4, vec![])));
        assert_eq!(latencies.summary().map(|summary| (summary.max, summary.count)), Some((7, 5)));
    }

    #[test]
    fn what_was_not_sent_after_all_awaits_nothing() {
        let mut window = Window::new(3);
        (1..=3).for_each(|number| window.handle_published(number));
        window.withdraw(2);
        assert_eq!((window.room(), window.outstanding()), (2, 1));
        assert!(window.handle_verdict(2, false, Verdict::Confirmed, 9, &mut Latencies::default()).is_err());
    }

    #[test]
    fn a_number_that_was_never_published_is_an_error() {
        let mut window = Window::new(2);
        window.handle_published(0);
        for (number, multiple) in [(2, false), (u64::MAX, true), (0, false)] {
            let latencies = &mut Latencies::default();
            assert!(window.handle_verdict(number, multiple, Verdict::Confirmed, 0, latencies).is_err());
        }
        assert_eq!(window.outstanding(), 1);
    }
}
