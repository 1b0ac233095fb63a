//! Which publishes of one channel the broker has not confirmed yet.
//!
//! Invariant: a number leaves this module exactly once, as an ack or as a nack.

use std::collections::VecDeque;

/// What the broker says of a publish.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The broker has taken responsibility: `basic.ack`.
    Acked,
    /// The broker could not take the message: `basic.nack`. It may be published again.
    Nacked,
}

/// The verdict on the publishes numbered `first` to `last`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Confirm {
    /// The lowest number, as [`Channel::publish`](crate::Channel::publish) returned it.
    pub first: u64,
    /// The highest number.
    pub last: u64,
    /// The verdict on all of them.
    pub verdict: Verdict,
}

/// A confirm for a number that was never published.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct NeverPublished(pub(crate) u64);

/// The publishes of one channel since `confirm.select`, numbered from 1.
#[derive(Debug, Default)]
pub(crate) struct Confirms {
    /// How many numbers were handed out, and so the last of them.
    published: u64,
    /// For the last `window.len()` numbers, whether the verdict is in. The front one is always open.
    window: VecDeque<bool>,
    outstanding: usize,
    /// Verdicts that nobody has taken yet, neighbours joined: at most one entry for each publish.
    settled: Vec<Confirm>,
}

impl Confirms {
    pub(crate) fn next_number(&mut self) -> u64 {
        self.published += 1;
        self.window.push_back(false);
        self.outstanding += 1;
        self.published
    }

    pub(crate) fn outstanding(&self) -> usize {
        self.outstanding
    }

    pub(crate) fn take_settled(&mut self) -> Vec<Confirm> {
        std::mem::take(&mut self.settled)
    }

    /// Number 0 with `multiple` means all. What was settled before stays as it was.
    pub(crate) fn handle(&mut self, number: u64, multiple: bool, verdict: Verdict) -> Result<(), NeverPublished> {
        if number > self.published || (number == 0 && !multiple) {
            return Err(NeverPublished(number));
        }
        let last = if number == 0 { self.published } else { number };
        let first = if multiple { self.published - self.window.len() as u64 + 1 } else { last };
        for number in first..=last {
            self.settle(number, verdict);
        }
        while self.window.front() == Some(&true) {
            self.window.pop_front();
        }
        Ok(())
    }

    fn settle(&mut self, number: u64, verdict: Verdict) {
        let from_the_back = usize::try_from(self.published - number).unwrap_or(usize::MAX);
        let Some(settled) =
            self.window.len().checked_sub(from_the_back.saturating_add(1)).and_then(|at| self.window.get_mut(at))
        else {
            return;
        };
        if std::mem::replace(settled, true) {
            return;
        }
        self.outstanding -= 1;
        match self.settled.last_mut() {
            Some(run) if run.verdict == verdict && run.last + 1 == number => run.last = number,
            _ => self.settled.push(Confirm { first: number, last: number, verdict }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn after(publishes: u64) -> Confirms {
        let mut confirms = Confirms::default();
        for number in 1..=publishes {
            assert_eq!(confirms.next_number(), number);
        }
        confirms
    }

    fn confirm(first: u64, last: u64, verdict: Verdict) -> Confirm {
        Confirm { first, last, verdict }
    }

    #[test]
    fn confirms_out_of_order_and_in_groups_settle_each_number_once() {
        let mut confirms = after(6);
        confirms.handle(3, false, Verdict::Acked).unwrap();
        confirms.handle(5, true, Verdict::Acked).unwrap();
        confirms.handle(3, false, Verdict::Nacked).unwrap();
        confirms.handle(2, true, Verdict::Nacked).unwrap();
        assert_eq!(confirms.outstanding(), 1);
        confirms.handle(6, false, Verdict::Nacked).unwrap();
        let expected = [
            confirm(3, 3, Verdict::Acked),
            confirm(1, 2, Verdict::Acked),
            confirm(4, 5, Verdict::Acked),
            confirm(6, 6, Verdict::Nacked),
        ];
        assert_eq!(confirms.take_settled(), expected);
        assert_eq!((confirms.outstanding(), confirms.take_settled()), (0, vec![]));
    }

    #[test]
    fn zero_with_multiple_means_all() {
        let mut confirms = after(3);
        confirms.handle(0, true, Verdict::Acked).unwrap();
        assert_eq!(confirms.take_settled(), [confirm(1, 3, Verdict::Acked)]);
        confirms.handle(0, true, Verdict::Acked).unwrap();
        assert_eq!(confirms.next_number(), 4);
    }

    #[test]
    fn a_number_that_was_never_published_is_an_error() {
        let mut confirms = after(2);
        assert_eq!(confirms.handle(3, false, Verdict::Acked), Err(NeverPublished(3)));
        assert_eq!(confirms.handle(u64::MAX, true, Verdict::Acked), Err(NeverPublished(u64::MAX)));
        assert_eq!(confirms.handle(0, false, Verdict::Acked), Err(NeverPublished(0)));
        assert_eq!(confirms.outstanding(), 2);
    }
}
