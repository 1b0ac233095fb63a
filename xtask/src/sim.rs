//! `cargo xtask sim`: seeds of the simulation, on both cores.

use std::ffi::OsStr;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::Result;

use crate::planted;
use crate::process::{self, Show};
use crate::tally::Tally;
use crate::workspace::{target, tool};

/// Seeds that `proof` tries, and how many of them come to their ends at least. Of a few nobody can tell, after a power cut, which of two
/// states was found, or after a jump of time, in which order things happened.
const PROOF_SEEDS: u64 = 20_800;
const WHOLE_LEAST: u64 = 20_000;

const BUILD_DEADLINE: Duration = Duration::from_mins(15);
/// In which all seeds of `proof` are to be tried on two cores; it takes three minutes on a quiet machine.
const PROVED_WITHIN: Duration = Duration::from_mins(8);
/// On a busy one it may take five times as long.
const DEADLINE: Duration = PROVED_WITHIN.saturating_mul(5);

/// Tries so many seeds.
pub(crate) fn run(seed: u64, seeds: u64) -> Result<Tally> {
    simulate(&[&seed.to_string(), "--seeds", &seeds.to_string()], DEADLINE)
}

/// Does what a script says, such as one that was printed for a seed that failed.
pub(crate) fn run_script(file: &Path) -> Result<Tally> {
    simulate(&[OsStr::new("--script"), file.as_os_str()], DEADLINE)
}

/// Tries all seeds of `proof`, or from the first one on as many as there is time for.
pub(crate) fn prove(time: Option<Duration>) -> Result<Tally> {
    match time {
        None => {
            let [seeds, whole] = [PROOF_SEEDS, WHOLE_LEAST].map(|count| count.to_string());
            let started = Instant::now();
            let tally = simulate(&["0", "--seeds", &seeds, "--whole-least", &whole], DEADLINE)?;
            println!(
                "sim: {seeds} seeds, built and tried in {} s; {} are stated, more than {} are a failure",
                started.elapsed().as_secs(),
                PROVED_WITHIN.as_secs(),
                DEADLINE.as_secs()
            );
            Ok(tally)
        }
        Some(time) => {
            let (seeds, seconds) = (u64::MAX.to_string(), time.as_secs().to_string());
            simulate(&["0", "--seeds", &seeds, "--seconds", &seconds, "--whole-least", "1"], time + DEADLINE)
        }
    }
}

/// Runs the simulation. The first seed that fails is cut down to a script, in the folder that cargo builds in.
fn simulate(arguments: &[impl AsRef<OsStr>], deadline: Duration) -> Result<Tally> {
    let mut build = planted::cargo_with_bugs("build");
    build.args(["--bin", planted::SIMULATION]);
    let built = process::run(build, BUILD_DEADLINE, Show::Nothing)?;
    if !built.has_succeeded() {
        print!("{}", built.output);
        println!("the simulation was not built: {}", built.end);
        return Ok(Tally::FAILED);
    }
    let mut simulation = tool(target().join("proof").join(planted::SIMULATION));
    simulation.args(arguments).arg("--shorten-to").arg(target().join("sim-failure.txt"));
    planted::plant(&mut simulation, None);
    let finished = process::run(simulation, deadline, Show::Lines)?;
    Ok(if finished.has_succeeded() { Tally::PASSED } else { Tally::FAILED })
}
