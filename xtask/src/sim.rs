//! `cargo xtask sim`: seeds of the simulation, on both cores.

use std::time::Duration;

use anyhow::Result;

use crate::process::{self, Show};
use crate::tally::Tally;
use crate::workspace::{cargo, target, tool};

/// Seeds that `proof` tries.
pub(crate) const PROOF_SEEDS: u64 = 20_000;

const BUILD_DEADLINE: Duration = Duration::from_mins(15);
/// 20,000 seeds take five minutes on two cores.
const DEADLINE: Duration = Duration::from_mins(30);

/// Tries so many seeds. The first one that fails is cut down to a script, in the folder that cargo builds in.
pub(crate) fn run(seed: u64, seeds: u64) -> Result<Tally> {
    let build = cargo(["build", "--locked", "--profile", "proof", "--package", "leveret-sim"]);
    let built = process::run(build, BUILD_DEADLINE, Show::Nothing)?;
    if !built.has_succeeded() {
        print!("{}", built.output);
        println!("the simulation was not built: {}", built.end);
        return Ok(Tally::FAILED);
    }
    let mut simulation = tool(target().join("proof/leveret-sim"));
    simulation.args([seed.to_string(), "--seeds".into(), seeds.to_string()]);
    simulation.arg("--shorten-to").arg(target().join("sim-failure.txt"));
    let finished = process::run(simulation, DEADLINE, Show::Lines)?;
    Ok(if finished.has_succeeded() { Tally::PASSED } else { Tally::FAILED })
}
