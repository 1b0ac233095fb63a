//! `cargo xtask planted`: bugs that one build can be made to have, one at a time, and what finds each of them.
//!
//! Most must be found by seeds of the simulation alone; the others lie where it does not look, and each has a test that must
//! fail. Those of the hand-over between threads have models, which try many schedules. Some are also shown to `fuzz`, and to the real
//! binary with bad inputs. A bug that nothing finds says that something is missing in the tests. Without a bug, the same seeds and
//! tests of the same build must pass.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use leveret_planted::{Bug, VARIABLE};

use crate::fuzz;
use crate::process::{self, End, Show};
use crate::tally::{Tally, too_few};
use crate::workspace::{cargo, tool};

/// Seeds within which a bug must be found.
pub(crate) const SEEDS: u64 = 2000;

const BUGS_LEAST: u64 = 64;
const BUGS_OF_SEEDS_LEAST: u64 = 36;

const BUILD_DEADLINE: Duration = Duration::from_mins(15);
/// 2,000 seeds take half a minute on two cores.
const SEEDS_DEADLINE: Duration = Duration::from_mins(5);
const TEST_DEADLINE: Duration = Duration::from_mins(2);

/// The programs that are built, beside tests.
pub(crate) const SIMULATION: &str = "leveret-sim";
pub(crate) const FUZZ: &str = "fuzz-proptest";

/// How much of a complaint is shown.
const COMPLAINT_CHARS: usize = 120;

/// A test, by the program that it is in and its name there. A program is a file of tests in the testkit, or one of
/// [`TESTS_OF_CRATES`].
type Test = (&'static str, &'static str);

/// The unit tests of the journal, as cargo calls them.
const JOURNAL: &str = "leveret_journal";
/// Those of the server, as the checker of schedules runs them.
const SERVER: &str = "leveret_server";

/// Bad inputs, to the real binary.
const BAD_INPUTS: &str = "bad_inputs";
const BAD_INPUT: Test = (BAD_INPUTS, "a_bad_input_is_answered_as_it_should_be_and_hurts_nobody_else");

/// How the unit tests of crates, and those that need the binary, are built.
const TESTS_OF_CRATES: [(&str, &[&str]); 3] = [
    (BAD_INPUTS, &["--package", "leveret", "--package", "leveret-planted", "--test", BAD_INPUTS]),
    (JOURNAL, &["--package", "leveret-journal", "--lib"]),
    (SERVER, &["--package", "leveret-server", "--lib", "--features", "shuttle"]),
];

/// All bugs are in what is built so; a process has one only if it is told to.
const WITH_BUGS: [&str; 5] = ["--locked", "--profile", "proof", "--features", "leveret-planted/on"];

/// What is built together, so that it is compiled once: cargo compiles what packages share with the features that all of those
/// ask for which it is shown.
const PACKAGES: [&str; 4] = ["leveret-planted", "leveret-sim", "leveret-testkit", "leveret-fuzz"];

/// The test for a bug that the simulation cannot know of.
fn test_for(bug: Bug) -> Option<Test> {
    match bug {
        // Nothing rots on the disk of the simulation.
        Bug::ChecksumNotChecked => {
            Some((JOURNAL, "tests::reader::a_rotten_byte_of_an_old_segment_takes_one_record_at_most"))
        }
        // Nothing comes between a name and its sync there.
        Bug::FailedFolderSyncForgotten => {
            Some((JOURNAL, "tests::log::a_failed_sync_of_the_folder_is_the_end_whoever_asked_for_it"))
        }
        // Found wherever the power goes between two operations on the disk; there it seldom goes just then.
        Bug::AcksReused | Bug::ReusedBeforeSync | Bug::ReplayNotSynced => {
            Some(("crash", "after_a_power_cut_at_any_operation_everything_promised_is_back_and_nothing_else"))
        }
        // What arrives there together in one queue is not for a journal.
        Bug::RowNotJournaled => {
            Some(("scripts", "durability::persistent_messages_that_arrive_together_are_back_like_any_other"))
        }
        // Its clients keep to the protocol.
        Bug::BodyTooLong => Some(("scripts", "hostile::a_body_longer_than_declared_is_501")),
        // They send all that they announce, and nobody looks there how much memory is taken.
        Bug::RoomAsAnnounced => Some(BAD_INPUT),
        // They may do everything.
        Bug::PermissionsRemembered => Some((
            "scripts",
            "permissions::new_permissions_go_for_the_next_operation_though_the_route_is_remembered",
        )),
        Bug::PassiveDeclareUnchecked => Some(("authorization", "every_operation_needs_what_rabbitmqs_table_says")),
        // There is one thread in it.
        Bug::WokenBeforeFilled | Bug::CountedAfterHandedOver => {
            Some((SERVER, "hand_over::outboxes::the_owner_gets_every_output_in_order_and_is_never_left_asleep"))
        }
        Bug::ReachedBeforeSync | Bug::LookedBeforeRegistered | Bug::WokenBeforeReached | Bug::LookedBeforeIdle => {
            Some((SERVER, "hand_over::journal::who_waits_for_a_position_is_woken_when_the_thread_has_written_it"))
        }
        Bug::WriterNotWoken => {
            Some((SERVER, "hand_over::journal::what_is_brought_while_a_stream_is_opened_is_written"))
        }
        Bug::CongestionToldLate => Some((
            SERVER,
            "hand_over::journal::who_waits_since_too_much_is_unwritten_goes_on_when_it_is_written_or_there_is_room",
        )),
        Bug::OrderDropped | Bug::OrderOvertakes => {
            Some((SERVER, "hand_over::journal::who_asks_the_writer_is_answered_after_what_came_before"))
        }
        Bug::AskersForgotten => Some((
            SERVER,
            "hand_over::journal::nobody_waits_for_ever_and_nothing_counts_as_durable_after_a_failed_sync",
        )),
        Bug::ChangesAfterUnlock => Some((
            SERVER,
            "hand_over::connections::what_is_published_is_confirmed_once_it_is_durable_and_delivered_in_order",
        )),
        Bug::GroupSplit => {
            Some((SERVER, "hand_over::journal::each_stream_is_written_in_its_order_and_no_group_is_split"))
        }
        Bug::ConfirmBeforeSync
        | Bug::NoDirectorySync
        | Bug::TornBatchTaken
        | Bug::FullDiskTakenForWritten
        | Bug::FailedSyncTriedAgain
        | Bug::LivingSegmentReused
        | Bug::ReplayBeginsTooLate
        | Bug::ConfirmBeforeDurable
        | Bug::ConfirmForgotten
        | Bug::RefusalConfirmed
        | Bug::AnswerOvertakes
        | Bug::DeliveryBeforeGrant
        | Bug::AckNotAwaited
        | Bug::RequeueAtTail
        | Bug::RequeuedWithoutFlag
        | Bug::MultipleAckStopsShort
        | Bug::RollbackForgets
        | Bug::PrefetchOneTooMany
        | Bug::LengthOneTooMany
        | Bug::KeptLettersUncounted
        | Bug::LateConsumerStays
        | Bug::LateHandedOut
        | Bug::ExclusiveQueueStays
        | Bug::DeadLetterLost
        | Bug::DeadLetterBeforeDeparture
        | Bug::TimeToLiveOnWallClock
        | Bug::UnusedByWallClock
        | Bug::StaleRoute
        | Bug::HashNeedsWord
        | Bug::AckBeforePublish
        | Bug::FanOutJournaledOnce
        | Bug::FanOutInPieces
        | Bug::CommitInPieces
        | Bug::GrantedWithoutFlag
        | Bug::CheckpointKeepsAcked
        | Bug::CheckpointWithoutBindings
        | Bug::RowInTransaction
        | Bug::RowNumberedOnce
        | Bug::PropertiesOfBefore
        | Bug::CreditForOne
        | Bug::AcksBehindUnknownTag
        | Bug::TimeToLiveBeginsAnew => None,
    }
}

/// Bugs that arbitrary bytes find, too, and which target does.
const FUZZED: [(Bug, &str); 3] =
    [(Bug::ChecksumNotChecked, "recovery"), (Bug::HashNeedsWord, "topic"), (Bug::BodyTooLong, "assembly")];

/// Those that bad inputs find, too, and that do not keep them waiting for an answer.
const OF_BAD_INPUTS: [Bug; 1] = [Bug::PassiveDeclareUnchecked];

/// How long a target looks for a bug, at most, and how long it must find nothing where there is none. Its corpus, which it tries
/// first, takes less.
const FUZZ_SECONDS: u64 = 30;
const FUZZ_WITHOUT_SECONDS: u64 = 2;

/// A command of cargo for the simulation, the targets of `fuzz`, or tests of the testkit, as `proof` and `planted` have them. A bug
/// that this process may have been told to have is not for them.
pub(crate) fn cargo_with_bugs(command: &str) -> Command {
    let mut command = cargo([command]);
    command.args(WITH_BUGS).args(PACKAGES.into_iter().flat_map(|package| ["--package", package]));
    plant(&mut command, None);
    command
}

/// What was found, or not.
struct Verdict {
    is_good: bool,
    says: String,
    /// Seeds that were tried.
    seeds: u64,
}

/// Tries these bugs, or all, each with so many seeds at most, or with its test. Then, until the time is over, those that seeds find
/// again and again with other seeds.
pub(crate) fn run(only: &[String], seeds: u64, time: Duration) -> Result<Tally> {
    let unknown = only.iter().find(|name| Bug::ALL.iter().all(|bug| bug.name() != *name));
    let names = || Bug::ALL.iter().map(|bug| bug.name()).collect::<Vec<_>>().join(", ");
    if let Some(unknown) = unknown {
        bail!("there is no bug {unknown}; there are {}", names());
    }
    let wanted: Vec<_> = Bug::ALL
        .iter()
        .copied()
        .filter(|bug| only.is_empty() || only.iter().any(|name| bug.name() == name))
        .collect();
    let of_bad_inputs: Vec<_> = OF_BAD_INPUTS.into_iter().filter(|bug| wanted.contains(bug)).collect();
    let bad_inputs = of_bad_inputs.first().map(|_| BAD_INPUT);
    let tests: BTreeSet<_> = wanted.iter().filter_map(|&bug| test_for(bug)).chain(bad_inputs).collect();
    let Some(build) = Build::make(&tests)? else { return Ok(Tally::FAILED) };

    let started = Instant::now();
    let (mut tally, mut by_seeds, mut slowest) = (Tally::default(), 0, 0);
    for &bug in &wanted {
        let verdict = match test_for(bug) {
            Some(test) => build.fails(bug, test)?,
            None => build.is_found(bug, 1, seeds)?,
        };
        if verdict.is_good && test_for(bug).is_none() {
            (by_seeds, slowest) = (by_seeds + 1, slowest.max(verdict.seeds));
        }
        tally += show(bug.name(), &verdict);
        if !verdict.is_good {
            println!("     {}", bug.what());
        }
    }
    for bug in of_bad_inputs {
        tally += show(bug.name(), &build.fails(bug, BAD_INPUT)?);
    }
    for (bug, target) in FUZZED.into_iter().filter(|(bug, _)| wanted.contains(bug)) {
        tally += show(bug.name(), &build.is_fuzzed(bug, target)?);
        tally += show("no bug", &build.is_taken(target)?);
    }
    if slowest > 0 {
        tally += show("no bug", &build.finds_nothing(slowest)?);
    }
    for test in tests {
        tally += show("no bug", &build.passes(test)?);
    }
    let of_seeds: Vec<_> = wanted.iter().copied().filter(|&bug| test_for(bug).is_none()).collect();
    build.find_again(&of_seeds, seeds, started + time)?;
    let seconds = started.elapsed().as_secs();
    let count = wanted.len();
    println!(
        "{count} bugs, of which seeds from 1 on have found {by_seeds}, the last by seed {slowest}; {seconds} s"
    );
    if only.is_empty() {
        if let Some(complaint) = too_few("bugs", count as u64, BUGS_LEAST) {
            println!("{complaint}");
            tally += Tally::FAILED;
        }
        if let Some(complaint) = too_few("bugs that seeds find", by_seeds, BUGS_OF_SEEDS_LEAST) {
            println!("{complaint}");
            tally += Tally::FAILED;
        }
    }
    Ok(tally)
}

fn show(name: &str, Verdict { is_good, says, .. }: &Verdict) -> Tally {
    println!("{:<6} {name:<30} {says}", if *is_good { "ok" } else { "not ok" });
    if *is_good { Tally::PASSED } else { Tally::FAILED }
}

/// The simulation and tests, with all bugs in them.
struct Build {
    /// By their names.
    programs: BTreeMap<String, PathBuf>,
}

impl Build {
    /// Nothing if it cannot be built, and it says why.
    fn make(tests: &BTreeSet<Test>) -> Result<Option<Build>> {
        let mut files: BTreeSet<_> = tests.iter().map(|(program, _)| *program).collect();
        let of_crates: Vec<_> = TESTS_OF_CRATES.iter().filter(|(program, _)| files.remove(program)).collect();
        let mut command = cargo_with_bugs("build");
        command.args(["--bin", SIMULATION, "--bin", FUZZ]);
        for file in files {
            command.args(["--test", file]);
        }
        let mut commands = vec![command];
        for (_, arguments) in of_crates {
            let mut command = cargo(["test", "--no-run"]);
            command.args(WITH_BUGS).args(*arguments);
            commands.push(command);
        }
        let mut programs = BTreeMap::new();
        for mut command in commands {
            command.args(["--message-format", "json-render-diagnostics"]);
            let built = process::run(command, BUILD_DEADLINE, Show::Nothing)?;
            if !built.has_succeeded() {
                print!("{}", built.output);
                println!("the bugs were not built: {}", built.end);
                return Ok(None);
            }
            programs.extend(programs_in(&built.output));
        }
        Ok(Some(Build { programs }))
    }

    fn program(&self, name: &str) -> Result<Command> {
        let path = self.programs.get(name).with_context(|| format!("cargo has built no {name}"))?;
        Ok(tool(path))
    }

    /// Whether a target comes to an input that shows a bug: its panic says so.
    fn is_fuzzed(&self, bug: Bug, target: &str) -> Result<Verdict> {
        let (output, end) = self.fuzz(Some(bug), target, FUZZ_SECONDS)?;
        let tried = fuzz::tried(&output);
        let is_good =
            tried > 0 && output.contains("panicked at") && matches!(end, End::Exited(status) if !status.success());
        Ok(Verdict { is_good, says: format!("fuzz target {target}: {tried} inputs, {end}"), seeds: 0 })
    }

    /// Whether it takes all of them where there is no bug.
    fn is_taken(&self, target: &str) -> Result<Verdict> {
        let (output, end) = self.fuzz(None, target, FUZZ_WITHOUT_SECONDS)?;
        let tried = fuzz::tried(&output);
        let is_good = tried >= fuzz::INPUTS_LEAST && matches!(end, End::Exited(status) if status.success());
        Ok(Verdict { is_good, says: format!("fuzz target {target}: {tried} inputs, {end}"), seeds: 0 })
    }

    fn fuzz(&self, bug: Option<Bug>, target: &str, seconds: u64) -> Result<(String, End)> {
        let mut fuzz = self.program(FUZZ)?;
        fuzz.arg(seconds.to_string()).env(fuzz::TARGET_VARIABLE, target);
        plant(&mut fuzz, bug);
        let finished = process::run(fuzz, Duration::from_secs(seconds) + TEST_DEADLINE, Show::Nothing)?;
        Ok((finished.output, finished.end))
    }

    /// Tries bugs with other seeds until then, and says how often they were found: whether it was luck that the first ones did. Chance
    /// may miss one, which is no failure.
    fn find_again(&self, bugs: &[Bug], seeds: u64, until: Instant) -> Result<()> {
        if bugs.is_empty() {
            return Ok(());
        }
        let firsts = (1..).map(|round| 1 + round * seeds);
        let tries = firsts.flat_map(|first| bugs.iter().map(move |&bug| (first, bug)));
        let (mut tried, mut found, mut slowest) = (0, 0, 0);
        for (first, bug) in tries.take_while(|_| Instant::now() < until) {
            let verdict = self.is_found(bug, first, seeds)?;
            tried += 1;
            if verdict.is_good {
                (found, slowest) = (found + 1, slowest.max(verdict.seeds));
            } else {
                println!("missed {:<30} {} from {first} on", bug.name(), verdict.says);
            }
        }
        if tried > 0 {
            println!("again, with other seeds: {found} of {tried} found, the last within {slowest} seeds");
        }
        Ok(())
    }

    /// Whether seeds find a bug, from this one on.
    fn is_found(&self, bug: Bug, first: u64, seeds: u64) -> Result<Verdict> {
        let (output, end) = self.simulate(Some(bug), first, seeds)?;
        Ok(match failure(&output) {
            Some((seed, complaint)) => {
                Verdict { is_good: true, says: format!("seed {seed}: {complaint}"), seeds: seed + 1 - first }
            }
            None => Verdict { is_good: false, says: format!("{seeds} seeds find nothing: {end}"), seeds },
        })
    }

    /// Whether seeds find nothing where there is nothing.
    fn finds_nothing(&self, seeds: u64) -> Result<Verdict> {
        let (output, end) = self.simulate(None, 1, seeds)?;
        let is_good = matches!(end, End::Exited(status) if status.success());
        let says = match failure(&output) {
            Some((seed, complaint)) => format!("seed {seed} fails: {complaint}"),
            None => format!("{seeds} seeds: {end}"),
        };
        Ok(Verdict { is_good, says, seeds })
    }

    fn simulate(&self, bug: Option<Bug>, first: u64, seeds: u64) -> Result<(String, End)> {
        let mut simulation = self.program(SIMULATION)?;
        let threads = thread::available_parallelism()?.to_string();
        // The first seed that fails is the same with any number of threads.
        simulation.args([&first.to_string(), "--seeds", &seeds.to_string(), "--threads", &threads]);
        plant(&mut simulation, bug);
        let finished = process::run(simulation, SEEDS_DEADLINE, Show::Nothing)?;
        Ok((finished.output, finished.end))
    }

    /// Whether a test fails because of a bug.
    fn fails(&self, bug: Bug, test: Test) -> Result<Verdict> {
        let (tally, end) = self.test(Some(bug), test)?;
        let is_good = tally == Tally::FAILED;
        let says = if is_good { format!("test {}", test.1) } else { format!("test {}: {tally}, {end}", test.1) };
        Ok(Verdict { is_good, says, seeds: 0 })
    }

    fn passes(&self, test: Test) -> Result<Verdict> {
        let (tally, end) = self.test(None, test)?;
        Ok(Verdict { is_good: tally == Tally::PASSED, says: format!("test {}: {end}", test.1), seeds: 0 })
    }

    fn test(&self, bug: Option<Bug>, (program, name): Test) -> Result<(Tally, End)> {
        let mut test = self.program(program)?;
        test.args(["--exact", name]);
        plant(&mut test, bug);
        let finished = process::run(test, TEST_DEADLINE, Show::Nothing)?;
        // One that is killed has told nothing.
        let has_ended = matches!(finished.end, End::Exited(_));
        Ok((Tally::of_cargo_test(&finished.output, has_ended), finished.end))
    }
}

/// Tells a process which bug it has.
pub(crate) fn plant(command: &mut Command, bug: Option<Bug>) {
    match bug {
        Some(bug) => command.env(VARIABLE, bug.name()),
        None => command.env_remove(VARIABLE),
    };
}

/// The programs that cargo says it has built, by the names of their targets.
fn programs_in(output: &str) -> BTreeMap<String, PathBuf> {
    let of_line = |line: &str| {
        let message: serde_json::Value = serde_json::from_str(line).ok()?;
        let name = message.get("target")?.get("name")?.as_str()?.to_owned();
        Some((name, PathBuf::from(message.get("executable")?.as_str()?)))
    };
    output.lines().filter_map(of_line).collect()
}

/// The first seed that the simulation says has failed, and the beginning of why.
fn failure(output: &str) -> Option<(u64, String)> {
    let mut lines = output.lines().skip_while(|line| !line.starts_with("seed "));
    let (seed, rest) = lines.next()?.strip_prefix("seed ")?.split_once(" fails at step ")?;
    let (_, first) = rest.split_once(": ")?;
    // What a panic says has several lines.
    let rest = lines.take_while(|line| !line.starts_with("  again: "));
    let complaint = [first].into_iter().chain(rest).collect::<Vec<_>>().join(" ");
    let shown: String = complaint.chars().take(COMPLAINT_CHARS).collect();
    let more = if shown.len() < complaint.len() { "…" } else { "" };
    Some((seed.parse().ok()?, format!("{shown}{more}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_seed_that_fails_is_read_with_all_that_it_says() {
        let output = "\
seed 7 fails at step 12: a panic: panicked at a.rs:1:2:
no more: none
  again: cargo xtask sim 7
seed 8 fails at step 1: a crash
  again: cargo xtask sim 8
Operation:
";
        let complaint = "a panic: panicked at a.rs:1:2: no more: none".to_owned();
        assert_eq!(failure(output), Some((7, complaint)));
        assert_eq!(failure("Operation:\n20 seeds to their ends\n"), None);
        let (_, complaint) = failure(&format!("seed 1 fails at step 2: {}\n", "x".repeat(500))).unwrap();
        assert_eq!(complaint.chars().count(), COMPLAINT_CHARS + 1);
    }

    #[test]
    fn programs_are_told_from_libraries_and_from_what_is_no_message() {
        let output = r#"
   Compiling leveret-sim v0.1.0
{"reason":"compiler-artifact","target":{"name":"leveret_sim"},"executable":null}
{"reason":"compiler-artifact","target":{"name":"leveret-sim"},"executable":"target/sim"}
{"reason":"build-finished","success":true}
"#;
        let expected = [("leveret-sim".to_owned(), PathBuf::from("target/sim"))];
        assert_eq!(programs_in(output), expected.into());
    }
}
