//! Cutting a plan that fails down to few steps.

use crate::plan::Plan;
use crate::{Failure, check};

/// Leaves out steps as long as the rest fails, trying so many times at most.
pub fn shorten(plan: &Plan, failure: &Failure, tries: usize) -> (Plan, Failure) {
    let mut shortest = plan.clone();
    shortest.steps.truncate(failure.step + 1);
    // What fails at the end may need all of it.
    let Err(mut last) = check(&shortest) else { return (plan.clone(), failure.clone()) };
    let mut left = tries;
    let mut size = (shortest.steps.len() / 2).max(1);
    loop {
        let (mut at, mut is_shorter) = (0, false);
        while at < shortest.steps.len() && left > 0 {
            let mut shorter = shortest.clone();
            shorter.steps.drain(at..(at + size).min(shorter.steps.len()));
            left -= 1;
            match check(&shorter) {
                Err(failure) => {
                    shorter.steps.truncate(failure.step + 1);
                    (shortest, last, is_shorter) = (shorter, failure, true);
                }
                Ok(_) => at += size,
            }
        }
        if left == 0 || (size == 1 && !is_shorter) {
            return (shortest, last);
        }
        size = (size / 2).max(1);
    }
}
