//! `cargo xtask fuzz`: arbitrary bytes for everything that takes bytes from outside.
//!
//! The targets are those of `crates/leveret-fuzz`, one for each folder of its corpus. Where there is a nightly toolchain, and a
//! compiler for C++, libFuzzer drives them; else proptest does. An input that a target does
//! not take becomes part of the corpus, so that `cargo test` fails from then on.

use std::env::consts::{ARCH, OS};
use std::fs::{self, DirEntry};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Mutex;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};

use crate::planted;
use crate::process::{self, Show};
use crate::tally::{Tally, too_few};
use crate::workspace::{root, target, tool};

const CORPUS: &str = "crates/leveret-fuzz/corpus";
const TARGETS_LEAST: u64 = 14;

/// What the program asks for the name of a target.
pub(crate) const TARGET_VARIABLE: &str = "LEVERET_FUZZ_TARGET";

/// A target that has tried fewer inputs than this has not run.
pub(crate) const INPUTS_LEAST: u64 = 100;

/// Longest input that libFuzzer makes up, in bytes.
const INPUT_BYTES_MAX: usize = 16 * 1024;

/// libFuzzer's takes three minutes of two processors.
const BUILD_DEADLINE: Duration = Duration::from_mins(15);
/// What a target may take longer than it should, until it is known not to come back.
const SLACK: Duration = Duration::from_mins(1);
/// Seconds that one input may take.
const INPUT_SECONDS_MAX: u32 = 20;

/// What libFuzzer needs of code to see where it goes, as cargo-fuzz has it. Memory is the compiler's concern: nothing of ours
/// that is reached is `unsafe`.
const COVERAGE: &str = "-Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 \
     -Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table \
     -Cllvm-args=-sanitizer-coverage-trace-compares";

/// What makes up the bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Engine {
    /// Sees where inputs go. All crates are compiled once more for it.
    LibFuzzer,
    /// Needs nothing that is not there.
    Proptest,
}

impl Engine {
    /// The best that works here. It says which it is.
    pub(crate) fn best() -> Engine {
        let answers = |command: &mut Command| {
            command
                .stdin(Stdio::null())
                .stdout(Stdio::null())
                .stderr(Stdio::null())
                .status()
                .is_ok_and(|s| s.success())
        };
        let compiler = std::env::var_os("CXX").unwrap_or_else(|| "c++".into());
        // That it is asked for is no reason to install it.
        let missing = if !answers(tool("cargo").args(["+nightly", "-V"]).env("RUSTUP_AUTO_INSTALL", "0")) {
            "no nightly toolchain answers"
        } else if !answers(tool(compiler).arg("--version")) {
            "there is no compiler for C++"
        } else {
            println!("libFuzzer, on the nightly toolchain");
            return Engine::LibFuzzer;
        };
        println!("proptest, on the stable toolchain: {missing}");
        Engine::Proptest
    }
}

/// Which inputs libFuzzer comes to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Chance {
    /// The same every time from the same corpus, as far as there is time: a change is not held up by what another one brought.
    Repeated,
    /// Others every time.
    New,
}

/// Tries so many seconds long for each of these targets, or of all.
pub(crate) fn run(engine: Engine, only: &[String], seconds: u64, chance: Chance) -> Result<Tally> {
    let names = names()?;
    let unknown = only.iter().find(|name| !names.contains(name));
    ensure!(unknown.is_none(), "there is no target {unknown:?}; there are {}", names.join(", "));
    let wanted: Vec<_> = names.iter().filter(|name| only.is_empty() || only.contains(name)).collect();

    let (engine, binary) = build(engine)?;
    let queue = Mutex::new(wanted.into_iter());
    let tally = Mutex::new(Tally::default());
    let work = || -> Result<()> {
        loop {
            let Some(name) = queue.lock().expect("nobody panics with it").next() else { return Ok(()) };
            let verdict = drive(engine, &binary, name, seconds, chance)?;
            *tally.lock().expect("nobody panics with it") += verdict;
        }
    };
    let threads = thread::available_parallelism()?.get();
    thread::scope(|scope| {
        let workers: Vec<_> = (0..threads).map(|_| scope.spawn(work)).collect();
        workers.into_iter().try_for_each(|worker| worker.join().expect("it returns what is wrong"))
    })?;
    let tally = tally.into_inner().expect("nobody panics with it");
    Ok(if only.is_empty() { tally.at_least("targets", TARGETS_LEAST) } else { tally })
}

/// The targets, by their folders.
fn names() -> Result<Vec<String>> {
    let folder = root().join(CORPUS);
    let entries = folder.read_dir().with_context(|| format!("{} cannot be read", folder.display()))?;
    let name = |entry: io::Result<DirEntry>| Ok(entry?.file_name().to_string_lossy().into_owned());
    let mut names = entries.map(name).collect::<Result<Vec<_>>>()?;
    names.sort();
    Ok(names)
}

/// Builds the one binary that has all targets. Where what libFuzzer needs cannot be had, or not in time, it is one for proptest.
fn build(engine: Engine) -> Result<(Engine, PathBuf)> {
    let (command, built) = match engine {
        Engine::LibFuzzer => {
            // A target that is named apart keeps the flags away from what runs while it builds.
            let (folder, triple) = (target().join("fuzz"), host()?);
            let mut command = tool("cargo");
            command.args(["+nightly", "build", "--features", "libfuzzer", "--bin", "fuzz-libfuzzer"]);
            command.args(["--locked", "--package", "leveret-fuzz", "--profile", "proof"]);
            command.args(["--target", &triple]).arg("--target-dir").arg(&folder).env("RUSTFLAGS", COVERAGE);
            (command, folder.join(triple).join("proof/fuzz-libfuzzer"))
        }
        Engine::Proptest => {
            let mut command = planted::cargo_with_bugs("build");
            command.args(["--bin", planted::FUZZ]);
            (command, target().join("proof").join(planted::FUZZ))
        }
    };
    let finished = process::run(command, BUILD_DEADLINE, Show::Nothing)?;
    if finished.has_succeeded() {
        return Ok((engine, built));
    }
    // What does not compile is a fault, whoever finds it.
    let is_ours = finished.output.contains("could not compile `leveret");
    if engine == Engine::LibFuzzer && !is_ours {
        println!(
            "{}\nproptest, on the stable toolchain: libFuzzer's targets cannot be built: {}",
            finished.output, finished.end
        );
        return build(Engine::Proptest);
    }
    bail!("{}\nthe targets cannot be built: {}", finished.output, finished.end);
}

/// The platform that compilers here build for.
fn host() -> Result<String> {
    let output = tool("rustc").args(["+nightly", "-vV"]).output().context("cannot run rustc")?;
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    let host = said.lines().find_map(|line| line.strip_prefix("host: "));
    Ok(host.with_context(|| format!("rustc does not say its host, on {ARCH} {OS}"))?.to_owned())
}

/// Drives one target, and says how it went.
fn drive(engine: Engine, binary: &Path, name: &str, seconds: u64, chance: Chance) -> Result<Tally> {
    let folder = target().join("fuzz/runs").join(name);
    fs::create_dir_all(&folder)?;
    let found = match chance {
        Chance::Repeated => folder.join("found"),
        Chance::New => target().join("fuzz/found").join(name),
    };
    if chance == Chance::Repeated && found.exists() {
        fs::remove_dir_all(&found)?;
    }
    fs::create_dir_all(&found)?;
    let input = folder.join("input");
    let mut command = tool(binary);
    command.env(TARGET_VARIABLE, name).env("LEVERET_FUZZ_INPUT", &input);
    planted::plant(&mut command, None);
    match engine {
        Engine::LibFuzzer => {
            command.arg(format!("-max_total_time={seconds}")).arg(format!("-timeout={INPUT_SECONDS_MAX}"));
            command.arg(format!("-max_len={INPUT_BYTES_MAX}")).arg("-print_final_stats=1");
            command.arg(format!("-artifact_prefix={}/", folder.display()));
            if chance == Chance::Repeated {
                command.arg("-seed=1");
            }
            // What covers something new is kept in the first folder, for the next time.
            command.arg(found).arg(root().join(CORPUS).join(name));
        }
        Engine::Proptest => _ = command.arg(seconds.to_string()),
    }
    let finished = process::run(command, Duration::from_secs(seconds) + SLACK, Show::Nothing)?;
    let tried = tried(&finished.output);
    if finished.has_succeeded() {
        if let Some(complaint) = too_few(&format!("{name}: inputs tried"), tried, INPUTS_LEAST) {
            println!("not ok {complaint}");
            return Ok(Tally::FAILED);
        }
        println!("ok {name}: {tried} inputs in {seconds} s");
        return Ok(Tally::PASSED);
    }
    let saved = save(name, &input)?;
    let said: Vec<_> = finished.output.lines().filter(|line| is_about_the_input(line)).collect();
    println!(
        "not ok {name}: {}\n{}\nThe input is {saved}; `cargo test -p leveret-fuzz` tries it again.",
        finished.end,
        said.join("\n"),
    );
    Ok(Tally::FAILED)
}

/// How many inputs an engine says it has tried.
pub(crate) fn tried(output: &str) -> u64 {
    let of_line = |line: &str| match line.strip_prefix("stat::number_of_executed_units:") {
        Some(count) => count.trim().parse().ok(),
        None => line.strip_suffix(" inputs tried")?.parse().ok(),
    };
    output.lines().find_map(of_line).unwrap_or_default()
}

/// What an engine says of its progress is left out.
fn is_about_the_input(line: &str) -> bool {
    !line.starts_with(['#', '\t']) && !line.starts_with("INFO:") && !line.starts_with("stat::") && !line.is_empty()
}

/// Makes an input part of the corpus.
fn save(name: &str, input: &Path) -> Result<String> {
    let bytes = fs::read(input).with_context(|| format!("{name} has not come to any input"))?;
    let mut hasher = DefaultHasher::new();
    bytes.hash(&mut hasher);
    let saved = format!("{CORPUS}/{name}/found-{:016x}", hasher.finish());
    fs::write(root().join(&saved), bytes)?;
    Ok(saved)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_an_engine_says_it_has_tried_is_read() {
        assert_eq!(tried("#7 DONE\nstat::number_of_executed_units: 1234\nstat::x: 5\n"), 1234);
        assert_eq!(tried("98 inputs tried\n"), 98);
        assert_eq!(tried("thread panicked\n"), 0);
    }

    #[test]
    fn every_target_of_the_corpus_is_named() {
        assert!(names().unwrap().len() as u64 >= TARGETS_LEAST);
    }
}
