//! `cargo xtask test`: everything that must pass.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};

use crate::broker;
use crate::clients::{self, SUITES};
use crate::conformance;
use crate::expiry;
use crate::memory;
use crate::process::{self, Show};
use crate::scenarios;
use crate::space;
use crate::tally::Tally;
use crate::workspace::cargo;

/// How many tests `cargo test` runs at least.
const TESTS_LEAST: u64 = 600;

const CARGO_TEST_DEADLINE: Duration = Duration::from_mins(15);

/// One line of the table at the end.
struct Row {
    name: &'static str,
    tally: Tally,
    took: Duration,
}

/// Runs the tests, the protocol scripts over sockets and all client suites, or only the suites that are named.
pub(crate) fn run(only: &[String]) -> Result<Tally> {
    let names: Vec<_> = [conformance::SUITE, memory::SUITE, space::SUITE, expiry::SUITE, scenarios::SUITE]
        .into_iter()
        .chain(SUITES.iter().map(|suite| suite.name))
        .collect();
    let unknown = only.iter().find(|name| !names.contains(&name.as_str()));
    ensure!(unknown.is_none(), "there is no suite {unknown:?}; there are {}", names.join(", "));
    let is_wanted = |name: &str| only.is_empty() || only.iter().any(|wanted| wanted == name);

    let mut rows = Vec::new();
    if only.is_empty() {
        let started = Instant::now();
        rows.push(Row { name: "cargo test", tally: cargo_test()?, took: started.elapsed() });
    }
    let binary = broker::build()?;
    if is_wanted(conformance::SUITE) {
        let started = Instant::now();
        println!("\n== {} ==", conformance::SUITE);
        let tally = conformance::run_suite(&binary)?;
        rows.push(Row { name: conformance::SUITE, tally, took: started.elapsed() });
    }
    for (name, run) in [
        (memory::SUITE, memory::run as fn(&Path) -> Tally),
        (space::SUITE, space::run),
        (expiry::SUITE, expiry::run),
        (scenarios::SUITE, scenarios::run_suite),
    ] {
        if is_wanted(name) {
            let started = Instant::now();
            println!("\n== {name} ==");
            rows.push(Row { name, tally: run(&binary), took: started.elapsed() });
        }
    }
    for suite in SUITES.iter().filter(|suite| is_wanted(suite.name)) {
        let started = Instant::now();
        println!("\n== {} ==", suite.name);
        let tally = clients::run(suite, &binary)?;
        rows.push(Row { name: suite.name, tally, took: started.elapsed() });
    }
    Ok(print_table(&rows))
}

fn cargo_test() -> Result<Tally> {
    let finished = process::run(
        cargo(["test", "--workspace", "--locked", "--no-fail-fast"]),
        CARGO_TEST_DEADLINE,
        Show::Lines,
    )?;
    if !finished.has_succeeded() {
        println!("cargo test: {}", finished.end);
    }
    Ok(Tally::of_cargo_test(&finished.output, finished.has_succeeded()).at_least("tests", TESTS_LEAST))
}

fn print_table(rows: &[Row]) -> Tally {
    let mut sum = Tally::default();
    println!("\n{:<12} {:>7} {:>7} {:>7} {:>8}", "", "passed", "failed", "skipped", "seconds");
    for Row { name, tally, took } in rows {
        let Tally { passed, failed, skipped } = *tally;
        println!("{name:<12} {passed:>7} {failed:>7} {skipped:>7} {:>8.1}", took.as_secs_f32());
        sum += *tally;
    }
    sum
}
