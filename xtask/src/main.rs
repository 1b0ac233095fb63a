//! The commands of the development loop, the same as in CI.
//!
//! Every command that proves something ends with one line, `N passed, N failed, N skipped`, and exits with 1 if
//! anything failed. `.ci/run` adds the lines up.

mod backlog;
mod bench;
mod broker;
mod check;
mod clients;
mod conformance;
mod expiry;
mod files;
mod fuzz;
mod measure;
mod memory;
mod peer;
mod planted;
mod process;
mod proof;
mod rabbitmq;
mod routing;
mod scenarios;
mod sim;
mod space;
mod stress;
mod tally;
mod test;
mod workspace;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Result;
use clap::Parser;

use self::fuzz::{Chance, Engine};
use self::stress::Rule;

/// The commands of Leveret's development loop.
#[derive(Debug, Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
enum Command {
    /// Format, lints, documentation, and the tidy checks: what needs no run
    Check,
    /// All tests, then the client libraries against the release binary
    Test {
        /// Run only these client suites, and not `cargo test`; may be repeated
        #[arg(long, value_name = "SUITE")]
        only: Vec<String>,
    },
    /// What takes long: many more cases than `test` tries, power cuts, kills, overload, and bugs that all this must find
    Proof {
        /// Only these parts; all, if none is named
        #[arg(value_name = "PART")]
        only: Vec<proof::Part>,
        /// How long each part lasts, about: of fuzz each target, of stress each step. Planted bugs are all tried once, however
        /// long that takes. As long as in CI, if this is not given; a week at most
        #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..=7 * 24 * 3600))]
        seconds: Option<u64>,
    },
    /// Arbitrary bytes for everything that takes bytes from outside
    Fuzz {
        /// Only these targets; all, if none is named
        #[arg(value_name = "TARGET")]
        only: Vec<String>,
        /// How long to try with each
        #[arg(long, value_name = "N", default_value_t = 30)]
        seconds: u64,
    },
    /// The whole broker in one thread, from one seed: clients, journal, disk and clock, against a naive model
    Sim {
        /// The first seed
        #[arg(default_value_t = 0)]
        seed: u64,
        /// How many seeds, from that one on
        #[arg(long, value_name = "N", default_value_t = 1)]
        seeds: u64,
        /// Does what a file says instead, such as `target/sim-failure.txt`
        #[arg(long, value_name = "FILE", conflicts_with_all = ["seed", "seeds"])]
        script: Option<PathBuf>,
    },
    /// Bugs that one build can be made to have, and what finds each: seeds of the simulation, or a test
    Planted {
        /// Only these; all, if none is named
        #[arg(value_name = "NAME")]
        only: Vec<String>,
        /// How many seeds each has at most
        #[arg(long, value_name = "N", default_value_t = planted::SEEDS)]
        seeds: u64,
        /// Then those that seeds find again and again with other seeds, until so much time is over in all
        #[arg(long, value_name = "N", default_value_t = 0)]
        seconds: u64,
    },
    /// More than the broker can do, and clients that are none: who is starved, what is lost, what it takes
    Stress {
        /// How long each step lasts, about; numbers of messages go with it
        #[arg(long, value_name = "N", default_value_t = stress::LONG_SECONDS, value_parser = clap::value_parser!(u64).range(1..))]
        seconds: u64,
        /// Only this step
        #[arg(long, value_name = "STEP")]
        only: Option<stress::Step>,
        /// Fail on time only at five times what is stated, and more as far as others take the processors, as `proof` does
        #[arg(long)]
        busy_machine: bool,
    },
    /// The protocol scripts of the tests, against a broker that runs
    Conformance {
        /// Where the broker is; the scripts log in as guest, and may delete what they find there
        #[arg(long, default_value = "amqp://guest:guest@127.0.0.1:5672/%2F")]
        url: String,
        /// Run only the scripts whose name contains this; may be repeated
        #[arg(long, value_name = "NAME")]
        only: Vec<String>,
        /// The scripts that are known to differ on this broker, a line `NAME: reason` each
        #[arg(long, value_name = "FILE")]
        differences: Option<PathBuf>,
    },
    /// Start time and memory of the release binary, as numbers
    Measure,
    /// Speed of the journal beside the bare disk, and of exchanges with many bindings, as ratios of one run; then large
    /// backlogs: memory, speed, restart
    Bench {
        /// Only this part
        #[arg(long, value_name = "PART")]
        only: Option<bench::Part>,
        /// In the part `perf`, also beside RabbitMQ, which has to be installed
        #[arg(long)]
        with_peers: bool,
    },
    /// The two programs of clients/seed, against a broker of their own on port 5672
    #[command(hide = true)]
    Seed {
        #[arg(long)]
        python: PathBuf,
        #[arg(long)]
        broker: PathBuf,
    },
}

fn main() -> ExitCode {
    run(Command::parse()).unwrap_or_else(|error| {
        eprintln!("error: {error:#}");
        ExitCode::FAILURE
    })
}

fn run(command: Command) -> Result<ExitCode> {
    process::stop_children_at_ctrl_c()?;
    let tally = match command {
        Command::Check => check::run()?,
        Command::Test { only } => test::run(&only)?,
        Command::Proof { only, seconds } => proof::run(&only, seconds.map(Duration::from_secs))?,
        Command::Fuzz { only, seconds } => fuzz::run(Engine::best(), &only, seconds, Chance::New)?,
        Command::Sim { script: Some(file), .. } => sim::run_script(&file)?,
        Command::Sim { seed, seeds, script: None } => sim::run(seed, seeds)?,
        Command::Planted { only, seeds, seconds } => planted::run(&only, seeds, Duration::from_secs(seconds))?,
        Command::Stress { seconds, only, busy_machine } => {
            let rule = if busy_machine { Rule::OnBusyMachine } else { Rule::AsStated };
            stress::run(Duration::from_secs(seconds), only, rule)?
        }
        Command::Conformance { url, only, differences } => conformance::run(&url, &only, differences.as_deref())?,
        Command::Measure => {
            measure::run()?;
            return Ok(ExitCode::SUCCESS);
        }
        Command::Bench { only, with_peers } => {
            bench::run(only, with_peers)?;
            return Ok(ExitCode::SUCCESS);
        }
        Command::Seed { python, broker } => return clients::seed::run(&python, &broker),
    };
    // What was skipped, for want of something on this machine, was at least found.
    let tally = if tally.skipped > 0 { tally } else { tally.at_least("checks, tests and steps", 1) };
    println!("{tally}");
    Ok(if tally.failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
