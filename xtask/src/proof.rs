//! `cargo xtask proof`: proofs that take long. In CI each has what it can be given there; alone, with `--seconds`, as much as one has time
//! for. Each says how much it has tried.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::Result;
use clap::ValueEnum;

use crate::broker;
use crate::clients::{self, DeathKind, Deaths};
use crate::files::Files;
use crate::fuzz::{self, Chance, Engine};
use crate::planted;
use crate::process::{self, Show};
use crate::sim;
use crate::stress::{self, Rule};
use crate::tally::{Tally, number_before, too_few};
use crate::workspace::cargo;

/// What is proved.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Part {
    /// Property tests, with as many new cases as there is time for
    Properties,
    /// Arbitrary bytes, for so long with each target
    Fuzz,
    /// Power cuts at every operation of a simulated disk, torn at every byte, and random restarts; then again, with other chance
    Crash,
    /// Seeds of the simulation
    Sim,
    /// Schedules of the hand-over between threads
    HandOver,
    /// Bugs that seeds or tests must find; then those of seeds again, with other seeds
    Planted,
    /// A broker that is killed under load
    Kills,
    /// One whose power is cut
    PowerCuts,
    /// One whose disk is full, fails or stands still
    Disks,
    /// Overload, for so long in each step
    Stress,
}

/// How long the property tests and the models of the hand-over are tried in CI.
const SHORT_TIME: Duration = Duration::from_mins(1);
/// How long each target of `fuzz` is.
const SHORT_FUZZ_SECONDS: u64 = 30;

/// Cases of the first round, whose speed says how many the next ones may have.
const CASES_MIN: u64 = 1000;
const CASES_MAX: u64 = 10_000_000;

/// `kill -9` twenty times, six power cuts, and ten times a full disk.
const DEATHS: Deaths = Deaths { kind: DeathKind::All, kills: 20, cuts: 6, fulls: 10, time: Duration::ZERO };
const CRASH_DEADLINE: Duration = Duration::from_mins(20);

/// Property tests, and crash tests; there are so many at least.
const PROPERTIES_LEAST: u64 = 5;
const CRASH_TESTS_LEAST: u64 = 15;

/// Models of the hand-over between threads, and schedules of them all. One takes a millisecond at most.
const MODELS_LEAST: u64 = 11;
const SCHEDULES_LEAST: u64 = 15_000;

const BUILD_DEADLINE: Duration = Duration::from_mins(15);
/// What a round may take longer than it should.
const ROUND_SLACK: Duration = Duration::from_mins(5);

/// Proves these parts, or all; each in so much time, or in what CI has for it.
pub(crate) fn run(only: &[Part], time: Option<Duration>) -> Result<Tally> {
    let mut sum = Tally::default();
    for &part in Part::value_variants() {
        if only.is_empty() || only.contains(&part) {
            sum += prove(part, time)?;
        }
    }
    Ok(sum)
}

fn prove(part: Part, time: Option<Duration>) -> Result<Tally> {
    match part {
        Part::Properties => prove_properties(time.unwrap_or(SHORT_TIME)),
        Part::Fuzz => {
            let (seconds, chance) = match time {
                None => (SHORT_FUZZ_SECONDS, Chance::Repeated),
                Some(time) => (time.as_secs(), Chance::New),
            };
            fuzz::run(Engine::best(), &[], seconds, chance)
        }
        Part::Crash => crash_everywhere(time.unwrap_or_default()),
        Part::Sim => sim::prove(time),
        Part::HandOver => hand_over(time.unwrap_or(SHORT_TIME)),
        Part::Planted => planted::run(&[], planted::SEEDS, time.unwrap_or_default()),
        Part::Kills => die(DeathKind::Kills, time),
        Part::PowerCuts => die(DeathKind::Cuts, time),
        Part::Disks => die(DeathKind::Disks, time),
        Part::Stress => {
            stress::run(time.unwrap_or(Duration::from_secs(stress::SHORT_SECONDS)), None, Rule::OnBusyMachine)
        }
    }
}

/// Deaths of one kind, and again until the time is over.
fn die(kind: DeathKind, time: Option<Duration>) -> Result<Tally> {
    clients::run_durability(&broker::build()?, Deaths { kind, time: time.unwrap_or_default(), ..DEATHS })
}

/// All property tests, each crate for its share of the time.
fn prove_properties(time: Duration) -> Result<Tally> {
    let properties = properties(&Files::read()?);
    let share = time / u32::try_from(properties.len().max(1))?;
    let mut sum = Tally::default();
    for (package, names) in &properties {
        sum += prove_package(package, names, share)?.at_least(package, names.len() as u64);
    }
    Ok(sum.at_least("property tests", PROPERTIES_LEAST))
}

/// The crash tests with every byte of every write as a place where it may be torn, of the journal alone and under a virtual host and
/// a node with all subsets of ten things that were not synced; and many more random restarts. Once, and again with other chance until
/// the time is over.
fn crash_everywhere(time: Duration) -> Result<Tally> {
    let tests = ["crash", "recovery", "node", "restarts"].into_iter().flat_map(|test| ["--test", test]);
    let arguments: Vec<_> = tests.chain(["--", "--nocapture"]).collect();
    let (started, mut rounds) = (Instant::now(), 0_u64);
    loop {
        let mut test = planted::cargo_with_bugs("test");
        test.args(&arguments);
        test.env("LEVERET_EVERY_BYTE", "1").env("LEVERET_ROUND", rounds.to_string());
        let finished = process::run(test, CRASH_DEADLINE, Show::Lines)?;
        let tally = Tally::of_cargo_test(&finished.output, finished.has_succeeded());
        if tally.failed > 0 || started.elapsed() >= time {
            println!("crash tests: the last round was LEVERET_EVERY_BYTE=1 LEVERET_ROUND={rounds}");
            return Ok(tally.at_least("crash tests", CRASH_TESTS_LEAST));
        }
        rounds += 1;
    }
}

/// The models of the hand-over between connections, outboxes and the journal's writer, in new schedules.
fn hand_over(time: Duration) -> Result<Tally> {
    // They share the processors.
    let share = (time.as_secs() / MODELS_LEAST * 2).max(2);
    let filter = ["--lib", "--features", "shuttle", "--", "hand_over::", "--nocapture"];
    let mut test = test_command("leveret-server", &filter);
    test.env("LEVERET_SCHEDULES_SECONDS", share.to_string());
    let finished = process::run(test, BUILD_DEADLINE + 3 * time + ROUND_SLACK, Show::Nothing)?;
    let mut tally = Tally::of_cargo_test(&finished.output, finished.has_succeeded());
    if tally.failed > 0 {
        print!("{}", finished.output);
        println!("hand-over: {}", finished.end);
        return Ok(tally);
    }
    let schedules = finished.output.lines().map(|line| number_before(line, " schedules: ")).sum();
    println!("hand-over: {schedules} schedules of {} models, {share} s each", tally.passed);
    if let Some(complaint) = too_few("schedules", schedules, SCHEDULES_LEAST) {
        println!("{complaint}");
        tally += Tally::FAILED;
    }
    Ok(tally.at_least("models of the hand-over", MODELS_LEAST))
}

/// Runs the property tests of a crate, again and again with other cases until the time is over or one fails.
fn prove_package(package: &str, names: &[String], time: Duration) -> Result<Tally> {
    let build = test_command(package, &["--tests", "--no-run"]);
    let built = process::run(build, BUILD_DEADLINE, Show::Nothing)?;
    if !built.has_succeeded() {
        print!("{}", built.output);
        println!("{package}: not built: {}", built.end);
        return Ok(Tally::FAILED);
    }
    let started = Instant::now();
    let (mut cases, mut cases_sum, mut round_count) = (CASES_MIN, 0, 0);
    loop {
        let mut test = test_command(package, &["--tests", "--"]);
        test.args(names).env("PROPTEST_CASES", cases.to_string());
        let finished = process::run(test, time + ROUND_SLACK, Show::Nothing)?;
        let tally = Tally::of_cargo_test(&finished.output, finished.has_succeeded());
        (cases_sum, round_count) = (cases_sum + cases, round_count + 1);
        let took = started.elapsed();
        if tally.failed > 0 {
            print!("{}", finished.output);
            println!("{package}: failed in round {round_count}, which tries {cases} cases: {}", finished.end);
            return Ok(tally);
        }
        let left = time.saturating_sub(took);
        let affordable = u128::from(cases_sum) * left.as_micros() / took.as_micros().max(1);
        if affordable < u128::from(CASES_MIN) {
            let properties = names.join(", ");
            let seconds = took.as_secs_f32();
            println!("{package}: {cases_sum} cases each in {round_count} rounds, {seconds:.1} s: {properties}");
            return Ok(tally);
        }
        cases = u64::try_from(affordable).map_or(CASES_MAX, |cases| cases.min(CASES_MAX));
    }
}

/// The profile `proof` is `release` with debug assertions.
fn test_command(package: &str, more: &[&str]) -> std::process::Command {
    let mut command = cargo(["test", "--locked", "--profile", "proof", "--package", package]);
    command.args(more);
    command
}

/// The tests in `proptest!` blocks, by crate.
fn properties(files: &Files) -> BTreeMap<String, Vec<String>> {
    let mut properties: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for file in files.iter().filter(|file| file.has_extension("rs")) {
        let Some((package, _)) = file.path.strip_prefix("crates/").and_then(|path| path.split_once('/')) else {
            continue;
        };
        let mut in_block = false;
        for line in file.text.lines() {
            match line.trim() {
                "proptest! {" => in_block = true,
                // The end of an item that is not indented.
                _ if line == "}" => in_block = false,
                item if in_block => {
                    let name = item.strip_prefix("fn ").and_then(|item| item.split_once('('));
                    let names = properties.entry(package.to_owned()).or_default();
                    names.extend(name.map(|(name, _)| name.to_owned()).filter(|name| !names.contains(name)));
                }
                _ => {}
            }
        }
    }
    properties
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tests_of_proptest_blocks_are_found() {
        let text = "\
fn helper() {
}

proptest! {
    #[test]
    fn a_property(steps in steps()) {
        run(steps)?;
    }
}

#[test]
fn no_property() {
}
";
        let files = Files::of(&[("crates/a/src/tests.rs", text), ("xtask/src/main.rs", text)]);
        let expected = BTreeMap::from([("a".to_owned(), vec!["a_property".to_owned()])]);
        assert_eq!(properties(&files), expected);
    }
}
