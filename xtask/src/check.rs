//! `cargo xtask check`: what needs no run of the broker. One line a check, and more only where one failed.

mod compatibility;
mod dependencies;
mod tidy;

use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::Result;

use crate::files::{Files, TextFile};
use crate::process::{self, Show};
use crate::tally::{Tally, too_few};
use crate::workspace::cargo;

const DEADLINE: Duration = Duration::from_mins(15);

/// What a check has looked at, and the lines that say what is wrong.
#[derive(Debug, Default, PartialEq, Eq)]
struct Looked {
    at: &'static str,
    count: u64,
    faults: Vec<String>,
}

impl Looked {
    fn at_each<'f>(
        at: &'static str,
        files: impl Iterator<Item = &'f TextFile>,
        faults: impl Fn(&TextFile) -> Vec<String>,
    ) -> Looked {
        files.fold(Looked { at, ..Looked::default() }, |mut looked, file| {
            looked.count += 1;
            looked.faults.extend(faults(file));
            looked
        })
    }

    /// What is wrong, also that there is less to look at than there must be.
    fn faults(mut self, least: u64) -> Vec<String> {
        self.faults.extend(too_few(self.at, self.count, least));
        self.faults
    }
}

pub(crate) fn run() -> Result<Tally> {
    let clippy = cargo(["clippy", "--workspace", "--all-targets", "--locked", "--", "-D", "warnings"]);
    // What is there under the checker of schedules only.
    let mut of_models = cargo(["clippy", "--package", "leveret-server", "--features", "shuttle", "--all-targets"]);
    of_models.args(["--locked", "--", "-D", "warnings"]);
    let mut documentation = cargo(["doc", "--workspace", "--no-deps", "--document-private-items", "--locked"]);
    documentation.env("RUSTDOCFLAGS", "-D warnings");
    let files = Files::read()?;

    let mut tally = Tally::default();
    tally += check("formatted", || succeeds(cargo(["fmt", "--all", "--check"])))?;
    tally += check("no lint warnings", || succeeds(clippy))?;
    tally += check("no lint warnings in models of the hand-over", || succeeds(of_models))?;
    tally += check("documentation without warnings", || succeeds(documentation))?;
    tally += check("licenses and sources of dependencies", dependencies::faults)?;
    tally += check("no open ends: markers, macros, ignored tests", || Ok(tidy::open_ends(&files).faults(200)))?;
    tally += check("no absolute paths of a machine", || Ok(tidy::machine_paths(&files).faults(240)))?;
    tally += check("every crate has the workspace's lints", || Ok(tidy::crates_without_lints(&files).faults(8)))?;
    tally += check("docs/compatibility.md names tests that exist", || Ok(compatibility::rows(&files).faults(180)))?;
    Ok(tally)
}

/// Runs one check, which gives the lines that say what is wrong.
fn check(name: &str, run: impl FnOnce() -> Result<Vec<String>>) -> Result<Tally> {
    let started = Instant::now();
    let faults = run()?;
    let verdict = if faults.is_empty() { "ok  " } else { "FAIL" };
    println!("{verdict} {name} ({:.1} s)", started.elapsed().as_secs_f32());
    for fault in &faults {
        println!("     {fault}");
    }
    Ok(if faults.is_empty() { Tally::PASSED } else { Tally::FAILED })
}

fn succeeds(command: Command) -> Result<Vec<String>> {
    let finished = process::run(command, DEADLINE, Show::Nothing)?;
    if finished.has_succeeded() {
        return Ok(Vec::new());
    }
    let mut faults: Vec<_> = finished.output.lines().map(str::to_owned).collect();
    faults.push(finished.end.to_string());
    Ok(faults)
}
