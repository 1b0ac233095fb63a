//! Cutting a plan that fails down to few steps.

use crate::plan::Plan;
use crate::{Failure, check};

/// Leaves out steps as long as the rest fails in the same way, trying so many times at most.
pub fn shorten(plan: &Plan, failure: &Failure, tries: usize) -> (Plan, Failure) {
    let mut shortest = plan.clone();
    shortest.steps.truncate(failure.step + 1);
    // What fails at the end may need all of it.
    let fails_again = |plan: &Plan| check(plan).err().filter(|again| again.is_like(failure));
    let Some(mut last) = fails_again(&shortest) else { return (plan.clone(), failure.clone()) };
    let mut left = tries;
    let mut size = (shortest.steps.len() / 2).max(1);
    loop {
        let (mut at, mut is_shorter) = (0, false);
        while at < shortest.steps.len() && left > 0 {
            let mut shorter = shortest.clone();
            shorter.steps.drain(at..(at + size).min(shorter.steps.len()));
            left -= 1;
            match fails_again(&shorter) {
                Some(again) => {
                    shorter.steps.truncate(again.step + 1);
                    (shortest, last, is_shorter) = (shorter, again, true);
                }
                None => at += size,
            }
        }
        if left == 0 || (size == 1 && !is_shorter) {
            return (shortest, last);
        }
        size = (size / 2).max(1);
    }
}
