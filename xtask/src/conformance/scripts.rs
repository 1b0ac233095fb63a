//! Collecting the scripts: the tests write them down as they run.

use std::collections::BTreeSet;
use std::fs;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::process::{self, Show};
use crate::workspace::{cargo, target};

const DEADLINE: Duration = Duration::from_mins(10);

/// How long a script may take only because time has to pass.
const WAIT_MAX: Duration = Duration::from_secs(3);

/// How long a script may be. What is longer is a load for the core, with which RabbitMQ is busy for minutes.
const LINES_MAX: usize = 5_000;

/// The least difference between two times that survives sockets and a busy machine.
const TIME_STEP_MS: u128 = 10;

#[derive(Debug)]
pub(super) struct Script {
    /// The name of its test, and `-2` and so on if it is not the first one of that test.
    pub(super) name: String,
    pub(super) text: String,
}

#[derive(Debug)]
pub(super) struct Collected {
    /// In the order of their names.
    pub(super) scripts: Vec<Script>,
    /// The tests that do not go through `leveret_testkit::script`.
    pub(super) not_scripts: Vec<String>,
}

/// Runs the tests of the testkit, and reads what they have written.
pub(super) fn collect() -> Result<Collected> {
    let folder = target().join("conformance/scripts");
    if folder.exists() {
        fs::remove_dir_all(&folder)?;
    }
    fs::create_dir_all(&folder)?;
    let mut tests = cargo(["test", "--locked", "--package", "leveret-testkit", "--test", "scripts"]);
    // With one thread for all tests, none would have a thread with its name.
    tests.env("LEVERET_SCRIPTS_TO", &folder).env_remove("RUST_TEST_THREADS").args(["--", "--test-threads=2"]);
    let finished = process::run(tests, DEADLINE, Show::Nothing)?;
    ensure!(
        finished.has_succeeded(),
        "the scripts fail in the tests already: {}\n{}",
        finished.end,
        finished.output
    );

    let mut scripts = Vec::new();
    for entry in fs::read_dir(&folder)? {
        let entry = entry?;
        let name = entry.file_name().into_string().ok().context("tests have names in UTF-8")?;
        scripts.push(Script { name, text: fs::read_to_string(entry.path())? });
    }
    scripts.sort_by(|a, b| a.name.cmp(&b.name));
    let names: BTreeSet<_> = scripts.iter().map(|script| script.name.as_str()).collect();
    let not_scripts =
        passed_tests(&finished.output).filter(|test| !names.contains(test)).map(str::to_owned).collect();
    Ok(Collected { scripts, not_scripts })
}

fn passed_tests(output: &str) -> impl Iterator<Item = &str> {
    output.lines().filter_map(|line| line.strip_prefix("test ")?.strip_suffix(" ... ok"))
}

impl Script {
    /// Why it can run only against the core in one thread.
    pub(super) fn reason_to_skip(&self) -> Option<String> {
        if self.text.lines().any(|line| line.trim().starts_with("short of ") || line.trim() == "room soon") {
            return Some("it needs a node without room".to_owned());
        }
        let says = |begin: &str| self.text.lines().any(|line| line.trim().starts_with(begin));
        if says("set ") || says("clear ") || says("delete user ") {
            return Some("it needs an administrator".into());
        }
        if self.text.lines().any(|line| line.trim().starts_with("checkpoint")) {
            return Some("it says when a checkpoint is written".into());
        }
        if self.text.lines().any(|line| line.trim() == "journal stops") {
            return Some("it stops the journal".to_owned());
        }
        if self.text.lines().any(|line| matches!(line.trim(), "restart" | "crash")) {
            return Some("it restarts the broker".to_owned());
        }
        if self.text.lines().count() > LINES_MAX {
            return Some(format!("it has more than {LINES_MAX} lines"));
        }
        let whole: Duration = leveret_testkit::waits(&self.text).sum();
        if whole > WAIT_MAX {
            return Some(format!("it waits for {} s in all", whole.as_secs()));
        }
        let is_exact = leveret_testkit::waits(&self.text).any(|wait| wait.as_millis() % TIME_STEP_MS != 0);
        is_exact.then(|| "it looks at the clock to the millisecond".to_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scripts_that_need_the_core_alone_are_skipped() {
        let reason = |text: &str| Script { name: String::new(), text: text.into() }.reason_to_skip();
        assert_eq!(reason("C: basic.qos\nwait 2s\n  wait 900ms\nS: basic.qos-ok"), None);
        assert_eq!(reason("wait 2s\nwait 2s").as_deref(), Some("it waits for 4 s in all"));
        assert_eq!(reason("  journal stops\nC: basic.qos").as_deref(), Some("it stops the journal"));
        assert_eq!(reason("C: basic.qos\n restart").as_deref(), Some("it restarts the broker"));
        assert_eq!(reason("wait 999ms").as_deref(), Some("it looks at the clock to the millisecond"));
    }

    #[test]
    fn the_names_of_tests_are_read_from_their_output() {
        let output = "running 2 tests\ntest queues::a ... ok\ntest queues::b ... ok\n\ntest result: ok. 2 passed\n";
        assert_eq!(passed_tests(output).collect::<Vec<_>>(), ["queues::a", "queues::b"]);
    }
}
