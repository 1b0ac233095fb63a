//! The client suites: programs of `clients/` that run their steps against the release binary.
//!
//! Each suite has a broker of its own, whose log is `target/clients/logs/SUITE.log`.

pub(crate) mod seed;
mod setup;

use std::env;
use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, anyhow};

use crate::broker::Broker;
use crate::process::{self, Show, check_interrupted};
use crate::tally::Tally;
use crate::workspace::{is_ci, root, target, tool};
use setup::NotSetUp;

/// A program that prints `ok N name` for each step that passed.
#[derive(Debug)]
pub(crate) struct Suite {
    pub(crate) name: &'static str,
    program: Program,
    /// How many steps it has at least.
    steps: u64,
    deadline: Duration,
}

#[derive(Clone, Copy, Debug)]
enum Program {
    Seed,
    /// A file in `clients/`.
    Python(&'static str),
    Node,
    Lapin,
    /// Steps about queues, whose broker is on disk, and two that kill brokers of their own.
    Queues,
    /// Starts, kills and starts again its own brokers, on disk.
    Durability,
}

/// In the order in which they run: the seed programs first, as they are what everybody tries first.
pub(crate) const SUITES: &[Suite] = &[
    Suite { name: "seed", program: Program::Seed, steps: 2, deadline: Duration::from_mins(2) },
    suite("pika", Program::Python("python/pika_steps.py")),
    suite("aio-pika", Program::Python("python/aio_pika_steps.py")),
    suite("kombu", Program::Python("python/kombu_steps.py")),
    suite("lapin", Program::Lapin),
    suite("amqplib", Program::Node),
    Suite {
        name: "celery",
        program: Program::Python("celery/celery_steps.py"),
        steps: 5,
        deadline: Duration::from_mins(3),
    },
    Suite { name: "queues", program: Program::Queues, steps: 20, deadline: Duration::from_mins(7) },
    Suite { name: "durability", program: Program::Durability, steps: 12, deadline: Duration::from_mins(10) },
];

/// Which steps of suite `durability` are wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum DeathKind {
    All,
    /// `kill -9`
    Kills,
    /// Power cuts, and that those of a disk that lies are found out
    Cuts,
    /// A disk that is full, or fails, or stands still
    Disks,
}

impl DeathKind {
    /// What the suite calls it, and how many of its steps there are at least.
    fn of(self, suite: &Suite) -> (&'static str, u64) {
        match self {
            DeathKind::All => ("all", suite.steps),
            DeathKind::Kills => ("kills", 2),
            DeathKind::Cuts => ("cuts", 2),
            DeathKind::Disks => ("disks", 8),
        }
    }
}

/// How often the broker of suite `durability` dies.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Deaths {
    pub(crate) kind: DeathKind,
    /// By `kill -9`.
    pub(crate) kills: u32,
    /// By a power cut.
    pub(crate) cuts: u32,
    /// It does not die, but its disk is full.
    pub(crate) fulls: u32,
    /// All of that again, each, until so much time is over.
    pub(crate) time: Duration,
}

/// As often as a test can wait for.
const DEATHS_IN_A_TEST: Deaths = Deaths { kind: DeathKind::All, kills: 3, cuts: 1, fulls: 2, time: Duration::ZERO };

/// A suite of the fourteen common steps. A step may take 20 s, so that even then the suite reports by itself.
const fn suite(name: &'static str, program: Program) -> Suite {
    Suite { name, program, steps: 14, deadline: Duration::from_mins(5) }
}

/// Runs suite `durability`, with a broker that dies so often.
pub(crate) fn run_durability(binary: &Path, deaths: Deaths) -> Result<Tally> {
    let suite = SUITES.iter().find(|suite| matches!(suite.program, Program::Durability));
    suite.map_or(Ok(Tally::FAILED), |suite| run_with(suite, binary, deaths))
}

/// Runs a suite against a broker of its own.
pub(crate) fn run(suite: &Suite, binary: &Path) -> Result<Tally> {
    run_with(suite, binary, DEATHS_IN_A_TEST)
}

fn run_with(suite: &Suite, binary: &Path, deaths: Deaths) -> Result<Tally> {
    let log = target().join("clients/logs").join(format!("{}.log", suite.name));
    // A log of an earlier run would mislead.
    let _ = fs::remove_file(&log);
    let outcome = match suite.program {
        Program::Seed => seed::command(binary).and_then(|command| run_steps(suite, command)),
        Program::Python(file) => setup::python().and_then(|python| {
            let mut command = tool(python);
            command.arg(root().join("clients").join(file));
            run_with_broker(suite, command, Broker::start(binary, 0, &log)?)
        }),
        Program::Node => setup::node().and_then(|(folder, file)| {
            let mut command = tool("node");
            command.current_dir(folder).arg(file);
            run_with_broker(suite, command, Broker::start(binary, 0, &log)?)
        }),
        Program::Queues => setup::python().and_then(|python| {
            let scratch = target().join("clients/queues");
            // What an earlier run has left would be served again.
            let _ = fs::remove_dir_all(&scratch);
            fs::create_dir_all(&scratch)?;
            let mut command = tool(python);
            command.arg(root().join("clients/queues/queue_steps.py"));
            command.env("LEVERET_BINARY", binary).env("LEVERET_SCRATCH", &scratch);
            run_with_broker(suite, command, Broker::start_on_disk(binary, &scratch.join("data"), &log)?)
        }),
        Program::Durability => setup::python().and_then(|python| {
            let mut command = tool(python);
            command.arg(root().join("clients/durability/durability_steps.py"));
            command.env("LEVERET_BINARY", binary).env("LEVERET_SCRATCH", target().join("clients/durability"));
            command.env("KILLS", deaths.kills.to_string()).env("CUTS", deaths.cuts.to_string());
            command.env("FULLS", deaths.fulls.to_string()).env("SECONDS", deaths.time.as_secs().to_string());
            let (kind, steps) = deaths.kind.of(suite);
            command.env("DEATHS", kind);
            run_steps(&Suite { steps, deadline: suite.deadline + 4 * deaths.time, ..*suite }, command)
        }),
        Program::Lapin => setup::lapin().and_then(|lapin| {
            let broker = Broker::start(binary, 0, &log)?;
            run_with_broker(suite, tool(lapin), broker)
        }),
    };
    check_interrupted()?;
    let tally = match outcome {
        Ok(tally) => tally,
        Err(NotSetUp::Missing(what)) if !is_ci() => {
            println!("!! SKIPPED {}: {what}", suite.name);
            return Ok(Tally { skipped: suite.steps, ..Tally::default() });
        }
        Err(NotSetUp::Missing(what)) => {
            println!("!! FAILED {}: {what}, and this is CI", suite.name);
            Tally { failed: suite.steps, ..Tally::default() }
        }
        Err(NotSetUp::Failed(error)) => {
            println!("!! FAILED {}: {error:#}", suite.name);
            Tally { failed: suite.steps, ..Tally::default() }
        }
    };
    if tally.failed > 0 {
        show_log(&log);
    }
    Ok(tally)
}

fn run_with_broker(suite: &Suite, mut command: Command, broker: Broker) -> Result<Tally, NotSetUp> {
    command.env("AMQP_URL", broker.client_url());
    let mut tally = run_steps(suite, command)?;
    match broker.stop() {
        Ok(status) if status.success() => {}
        Ok(status) => {
            println!("the broker ended with {status}");
            tally += Tally::FAILED;
        }
        Err(error) => {
            println!("{error:#}");
            tally += Tally::FAILED;
        }
    }
    Ok(tally)
}

fn run_steps(suite: &Suite, mut command: Command) -> Result<Tally, NotSetUp> {
    command.env("PYTHONUNBUFFERED", "1").env("PYTHONDONTWRITEBYTECODE", "1");
    let finished = process::run(command, suite.deadline, Show::Lines)?;
    if !finished.has_succeeded() {
        println!("{}: {}", suite.name, finished.end);
    }
    let mut tally = Tally::of_steps(&finished.output, suite.steps, finished.has_succeeded());
    if !is_ci() {
        tally.forgive_skipped(&finished.output);
    }
    Ok(tally)
}

fn show_log(log: &Path) {
    if let Ok(text) = fs::read_to_string(log) {
        println!("-- the broker's log, {}:", log.display());
        print!("{text}");
        println!("-- end of the log");
    }
}

/// The path of a tool, if this machine has it.
fn find_tool(name: &str) -> Result<(), NotSetUp> {
    let folders = env::var_os("PATH").unwrap_or_default();
    if env::split_paths(&folders).any(|folder| folder.join(name).is_file()) {
        Ok(())
    } else {
        Err(NotSetUp::Missing(format!("this machine has no {name}")))
    }
}

/// Runs a step of the setup, and shows its output only if it failed.
fn prepare(what: &str, command: Command, deadline: Duration) -> Result<(), NotSetUp> {
    println!("setting up: {what}");
    let finished = process::run(command, deadline, Show::Nothing).with_context(|| what.to_owned())?;
    if finished.has_succeeded() {
        return Ok(());
    }
    print!("{}", finished.output);
    Err(NotSetUp::Failed(anyhow!("{what}: {}", finished.end)))
}
