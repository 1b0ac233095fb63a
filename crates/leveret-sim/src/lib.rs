//! The whole broker in one thread, from one seed: clients, virtual hosts, the journal, a disk that forgets, and a clock.
//!
//! A seed is a [`Plan`]: a configuration and a list of steps. [`check`] does the steps with the real state machines of the
//! broker, its real journal and its real recovery, and compares what clients hear with a naive model (`model.rs`) and with
//! rules for all histories (`history.rs`). The same plan gives the same run, byte for byte. [`shorten()`] cuts a plan that fails
//! down to few steps.
//!
//! ```text
//!  Plan ──> World ──> Link (bytes) ──> Connection ──> VirtualHost ──> changes ──> Log ──> SimDisk
//!             │          │                                │
//!             │          └──> History                     └──> outputs ──> Model
//!             └──> power cuts, failing syncs, full disks, time
//! ```

mod arguments;
mod history;
mod hub;
mod link;
mod model;
mod plan;
mod shorten;
mod stats;
mod store;
mod world;

use std::cell::RefCell;
use std::panic::{AssertUnwindSafe, catch_unwind};

pub use plan::{
    Config, Cut, Dead, ExchangeName, Mode, Op, Overflow, Plan, QueueSpec, Settling, Step, Strategy, To,
};
pub use shorten::shorten;
pub use stats::{Kind, Stats};
pub use world::{REFUSED_LATE, UNEXPLAINED, UNREAD_AND_TORN};

/// What came of a plan in which nothing was wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Passed {
    /// How often everything occurred.
    pub stats: Stats,
    /// Stands for all bytes that clients have received.
    pub digest: u64,
    /// Steps that did something; the others found nothing to do it with.
    pub done: u64,
    /// Whether it came to its end. After a power cut nobody may be able to tell which of two states was found, after a jump of time
    /// in which order things happened, and what would be wrong from then on.
    pub is_whole: bool,
}

/// The first thing that must not be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// The step at which it was; as many as there are, if it was at the end.
    pub step: usize,
    /// What it was.
    pub violation: String,
}

/// What comes before everything that a panic says.
const PANICKED: &str = "a panic: ";

impl Failure {
    /// Whether the same rule was broken, or the same line panicked: what it says is the same but for numbers, and for what comes
    /// behind its first brackets. Only a script is cut down by that.
    pub fn is_like(&self, other: &Failure) -> bool {
        fn rule(violation: &str) -> String {
            if violation.starts_with(PANICKED) {
                return violation.lines().next().unwrap_or_default().to_owned();
            }
            let sentence = violation.split(['(', '[', '{', '"', ';']).next().unwrap_or_default();
            sentence.split(|letter: char| letter.is_ascii_digit()).filter(|word| !word.is_empty()).collect()
        }
        rule(&self.violation) == rule(&other.violation)
    }
}

thread_local! {
    /// What the last panic of this thread said.
    static PANIC: RefCell<String> = const { RefCell::new(String::new()) };
}

/// Panics are failures like others, and say nothing by themselves.
pub fn keep_panics() {
    std::panic::set_hook(Box::new(|info| {
        PANIC.with_borrow_mut(|panic| *panic = info.to_string());
    }));
}

/// Does what a plan says.
///
/// # Errors
/// With the first thing that must not be.
pub fn check(plan: &Plan) -> Result<Passed, Failure> {
    let step = std::cell::Cell::new(0);
    match catch_unwind(AssertUnwindSafe(|| world::run(plan, &step))) {
        Ok(Ok(passed)) => Ok(passed),
        Ok(Err(violation)) => Err(Failure { step: step.get(), violation }),
        Err(_) => {
            let violation = PANIC.with_borrow(|panic| format!("{PANICKED}{panic}"));
            Err(Failure { step: step.get(), violation })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failures_are_alike_if_the_same_rule_is_broken_or_the_same_line_panics() {
        let is_like = |one: &str, other: &str| {
            let failure = |step, violation: &str| Failure { step, violation: violation.into() };
            failure(1, one).is_like(&failure(2, other))
        };
        assert!(is_like("message 7 of q1 is redelivered", "message 12 of q0 is redelivered"));
        assert!(!is_like("message 7 of q1 is redelivered", "message 7 of q1 is delivered again"));
        assert!(is_like("queues are [(1, 2)], and should be []", "queues are [], and should be [(3, 4)]"));
        assert!(!is_like("client 1 was to be told Some(Nack)", "client 1: got 3 message Some(2); expected []"));
        assert!(is_like("a panic: panicked at a.rs:1:2:\nof 3", "a panic: panicked at a.rs:1:2:\nof 4"));
        assert!(!is_like("a panic: panicked at a.rs:1:2:\nof 3", "a panic: panicked at a.rs:10:2:\nof 3"));
    }
}
