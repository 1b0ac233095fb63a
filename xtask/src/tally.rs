//! Counting what passed, failed and was skipped.
//!
//! Invariant: nothing passes by not being there. Whatever looks for tests, scripts or files says how many there are at
//! least; numbers are a little below the true ones, and follow when many are added.

use std::fmt;
use std::fs;
use std::ops::AddAssign;
use std::path::Path;

use anyhow::Result;

/// What a step of a suite is called, and what it does with the binary and a folder of its own; figures, or what failed.
pub(crate) type Step = (&'static str, fn(&Path, &Path) -> Result<String>);

/// Runs steps one after the other, and says what became of each.
pub(crate) fn run_steps(steps: &[Step], binary: &Path, folder: &Path) -> Tally {
    let mut tally = Tally::default();
    for (name, step) in steps {
        let _ = fs::remove_dir_all(folder);
        tally += match step(binary, folder) {
            Ok(figures) => {
                println!("ok {name}: {figures}");
                Tally::PASSED
            }
            Err(error) => {
                println!("not ok {name}: {error:#}");
                Tally::FAILED
            }
        };
    }
    let _ = fs::remove_dir_all(folder);
    tally
}

/// What to say if there is less to look at than there must be.
pub(crate) fn too_few(what: &str, count: u64, least: u64) -> Option<String> {
    (count < least).then(|| format!("{what}: {count}, of {least} at least"))
}

/// How many checks, tests or steps there were.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Tally {
    pub(crate) passed: u64,
    pub(crate) failed: u64,
    pub(crate) skipped: u64,
}

impl Tally {
    pub(crate) const PASSED: Tally = Tally { passed: 1, failed: 0, skipped: 0 };
    pub(crate) const FAILED: Tally = Tally { passed: 0, failed: 1, skipped: 0 };
    pub(crate) const SKIPPED: Tally = Tally { passed: 0, failed: 0, skipped: 1 };

    /// With a failure for each that did not run; what was skipped did not.
    #[must_use]
    pub(crate) fn at_least(mut self, what: &str, least: u64) -> Tally {
        let ran = self.passed + self.failed;
        if let Some(complaint) = too_few(what, ran, least) {
            println!("{complaint}");
            self.failed += least - ran;
        }
        self
    }

    /// The sum of the lines `test result:` that `cargo test` printed.
    ///
    /// `has_succeeded` is whether it exited with 0. If it did not, though no test failed (it did not compile, or a
    /// test ended the process), that counts as one failure.
    pub(crate) fn of_cargo_test(output: &str, has_succeeded: bool) -> Tally {
        let mut tally = Tally::default();
        for line in output.lines().filter_map(|line| line.strip_prefix("test result: ")) {
            tally.passed += number_before(line, " passed");
            tally.failed += number_before(line, " failed");
            tally.skipped += number_before(line, " ignored");
        }
        if !has_succeeded && tally.failed == 0 {
            tally.failed = 1;
        }
        tally
    }

    /// A client suite of so many steps at least that printed this. A step that is not reported as `ok` has failed.
    pub(crate) fn of_steps(output: &str, least: u64, has_succeeded: bool) -> Tally {
        let count = |verdict| output.lines().filter(|line| line.starts_with(verdict)).count() as u64;
        let mut tally =
            Tally { passed: count("ok "), failed: count("not ok "), skipped: 0 }.at_least("steps", least);
        if !has_succeeded {
            tally.failed = tally.failed.max(1);
        }
        tally
    }

    /// Steps that a suite says it has skipped, for want of something on this machine, have not failed.
    pub(crate) fn forgive_skipped(&mut self, output: &str) {
        let skipped = output.lines().filter(|line| line.starts_with("skipped ")).count() as u64;
        let skipped = skipped.min(self.failed);
        self.failed -= skipped;
        self.skipped += skipped;
    }
}

/// The number that stands before a word; 0 if there is none.
pub(crate) fn number_before(line: &str, word: &str) -> u64 {
    let Some(end) = line.find(word) else { return 0 };
    line[..end].rsplit(' ').next().and_then(|number| number.parse().ok()).unwrap_or(0)
}

impl AddAssign for Tally {
    fn add_assign(&mut self, other: Tally) {
        self.passed += other.passed;
        self.failed += other.failed;
        self.skipped += other.skipped;
    }
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} passed, {} failed, {} skipped", self.passed, self.failed, self.skipped)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_results_of_all_test_binaries_are_summed() {
        let output = "\
running 3 tests
test result: ok. 2 passed; 0 failed; 1 ignored; 0 measured; 0 filtered out; finished in 0.05s
test result: FAILED. 10 passed; 3 failed; 0 ignored; 0 measured; 0 filtered out; finished in 1.05s
";
        let tally = Tally::of_cargo_test(output, false);
        assert_eq!(tally.to_string(), "12 passed, 3 failed, 1 skipped");
    }

    #[test]
    fn a_cargo_test_that_did_not_get_to_its_tests_is_a_failure() {
        assert_eq!(Tally::of_cargo_test("error: could not compile", false), Tally::FAILED);
    }

    #[test]
    fn what_did_not_run_has_failed_and_what_was_skipped_did_not_run() {
        assert_eq!(Tally::default().at_least("tests", 3), Tally { passed: 0, failed: 3, skipped: 0 });
        let tally = Tally { passed: 2, failed: 1, skipped: 7 };
        assert_eq!(tally.at_least("tests", 3), tally);
        assert_eq!(tally.at_least("tests", 4), Tally { failed: 2, ..tally });
        assert_eq!(Tally::of_cargo_test("running 0 tests\n", true).at_least("tests", 1), Tally::FAILED);
    }

    #[test]
    fn a_step_that_is_not_reported_has_failed() {
        let output = "ok 1 first\nnot ok 2 second: reason\nok 3 third\n2/3 steps\n";
        assert_eq!(Tally::of_steps(output, 3, false), Tally { passed: 2, failed: 1, skipped: 0 });
        assert_eq!(Tally::of_steps(output, 14, false), Tally { passed: 2, failed: 12, skipped: 0 });
        let output = "ok 1 first\nskipped 2 second: this needs root\n";
        let mut tally = Tally::of_steps(output, 2, true);
        assert_eq!(tally, Tally { passed: 1, failed: 1, skipped: 0 });
        tally.forgive_skipped(output);
        assert_eq!(tally, Tally { passed: 1, failed: 0, skipped: 1 });
        assert_eq!(Tally::of_steps("ok 1 first\n", 1, true), Tally::PASSED);
        assert_eq!(Tally::of_steps("ok 1 first\n", 1, false), Tally { passed: 1, failed: 1, skipped: 0 });
    }
}
