//! Runs seeds of the simulation: `cargo xtask sim`.

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use clap::Parser;
use leveret_sim::{
    Failure, Kind, Plan, REFUSED_LATE, Stats, UNEXPLAINED, UNREAD_AND_TORN, check, keep_panics, shorten,
};

/// A script with more steps is not printed.
const PRINTED_STEPS_MAX: usize = 300;

/// How often a plan that fails is tried with fewer steps.
const SHORTENING_TRIES: usize = 3000;

/// Among so many seeds everything occurs.
const SEEDS_FOR_EVERYTHING: u64 = 1000;

/// What ends a run and could hide a mistake may occur in one of so many seeds.
const RARE: u64 = 1000;

/// Simulates the broker.
#[derive(Debug, Parser)]
struct Options {
    /// The first seed
    #[arg(default_value_t = 0)]
    seed: u64,
    /// How many seeds, from that one on
    #[arg(long, value_name = "N", default_value_t = 1)]
    seeds: u64,
    /// Takes no further one after so long
    #[arg(long, value_name = "N")]
    seconds: Option<u64>,
    /// Fails if fewer come to their ends
    #[arg(long, value_name = "N", default_value_t = 0)]
    whole_least: u64,
    /// Threads, each with a seed of its own
    #[arg(long, value_name = "N", default_value_t = 2)]
    threads: usize,
    /// Does what a file says instead
    #[arg(long, value_name = "FILE")]
    script: Option<PathBuf>,
    /// Where to write a shortened script of the first seed that fails
    #[arg(long, value_name = "FILE")]
    shorten_to: Option<PathBuf>,
    /// Goes on after a seed that fails
    #[arg(long)]
    keep_going: bool,
}

/// What came of seeds.
#[derive(Default)]
struct Sum {
    stats: Stats,
    /// Seeds that came to their end.
    whole: u64,
    /// Those of which nobody could tell any more what would be wrong.
    given_up: u64,
    /// Steps that did something.
    done: u64,
    /// Power cuts of each seed.
    crashes: Vec<u64>,
    failed: Vec<(u64, Failure)>,
}

fn main() -> ExitCode {
    keep_panics();
    match run(&Options::parse()) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(options: &Options) -> Result<bool> {
    if let Some(file) = &options.script {
        let text = std::fs::read_to_string(file).with_context(|| format!("{} cannot be read", file.display()))?;
        let plan = Plan::from_text(&text)?;
        return Ok(match check(&plan) {
            Ok(passed) => {
                println!("{} steps, digest {:016x}", plan.steps.len(), passed.digest);
                if !passed.is_whole {
                    println!("given up where two states were possible");
                }
                passed.is_whole
            }
            Err(Failure { step, violation }) => {
                println!("step {step}: {violation}");
                if let Some(to) = &options.shorten_to {
                    write_shortened(&plan, &Failure { step, violation }, to)?;
                }
                false
            }
        });
    }
    let (next, sum) = (AtomicU64::new(options.seed), Mutex::new(Sum::default()));
    let end = options.seed.saturating_add(options.seeds);
    let started = started();
    let is_over = || options.seconds.is_some_and(|seconds| started.elapsed() >= Duration::from_secs(seconds));
    std::thread::scope(|scope| {
        for _ in 0..options.threads.max(1) {
            scope.spawn(|| work(&next, end, &is_over, &sum, options.keep_going));
        }
    });
    let mut sum = sum.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner);
    report(&mut sum, options, started)
}

#[expect(clippy::disallowed_methods, reason = "how long it takes is nothing that a plan knows of")]
fn started() -> Instant {
    Instant::now()
}

/// Takes one seed after the other.
fn work(next: &AtomicU64, end: u64, is_over: &dyn Fn() -> bool, sum: &Mutex<Sum>, keeps_going: bool) {
    loop {
        let seed = next.fetch_add(1, Ordering::Relaxed);
        if seed >= end || is_over() {
            return;
        }
        let plan = Plan::of(seed);
        let checked = check(&plan);
        let mut sum = sum.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        match checked {
            Ok(passed) => {
                let crashes = ["power cut", "power cut later", "end after a failed sync"];
                sum.crashes.push(crashes.iter().map(|what| passed.stats.get(Kind::Fault, what)).sum());
                sum.stats.add(&passed.stats);
                sum.whole += u64::from(passed.is_whole);
                sum.given_up += u64::from(!passed.is_whole);
                sum.done += passed.done;
            }
            Err(failure) => {
                sum.failed.push((seed, failure));
                if !keeps_going {
                    next.store(end, Ordering::Relaxed);
                }
            }
        }
    }
}

fn report(sum: &mut Sum, options: &Options, started: Instant) -> Result<bool> {
    sum.failed.sort_by_key(|(seed, _)| *seed);
    for (seed, Failure { step, violation }) in &sum.failed {
        println!("seed {seed} fails at step {step}: {violation}");
        println!("  again: cargo xtask sim {seed}");
    }
    if let (Some((seed, failure)), Some(to)) = (sum.failed.first(), &options.shorten_to) {
        write_shortened(&Plan::of(*seed), failure, to)?;
    }
    sum.crashes.sort_unstable();
    let median = sum.crashes.get(sum.crashes.len() / 2).copied().unwrap_or_default();
    print!("{}", sum.stats);
    let Sum { whole, given_up, done, .. } = *sum;
    println!(
        "{whole} seeds to their ends, {given_up} given up where two states were possible, {done} steps that did something, \
         {median} crashes in the median seed, {:.0} s",
        started.elapsed().as_secs_f32()
    );
    let mut is_good = sum.failed.is_empty();
    if whole < options.whole_least {
        println!("too few seeds came to their ends: {whole}, not {}", options.whole_least);
        is_good = false;
    }
    if whole + given_up >= SEEDS_FOR_EVERYTHING && is_good {
        let missing = sum.stats.missing();
        if !missing.is_empty() {
            println!("never occurred: {}", missing.join(", "));
            is_good = false;
        }
        for rare in [REFUSED_LATE, UNEXPLAINED, UNREAD_AND_TORN] {
            let times = sum.stats.get(Kind::Outcome, rare);
            if times * RARE > whole + given_up {
                println!("{rare}: {times} times");
                is_good = false;
            }
        }
        if median == 0 {
            println!("the median seed has no crash");
            is_good = false;
        }
    }
    Ok(is_good)
}

fn write_shortened(plan: &Plan, failure: &Failure, to: &PathBuf) -> Result<()> {
    let (plan, Failure { step, violation }) = shorten(plan, failure, SHORTENING_TRIES);
    let text = format!("# step {step}: {violation}\n{}", plan.to_text()?);
    std::fs::write(to, &text).with_context(|| format!("{} cannot be written", to.display()))?;
    println!("{} steps are left in {}: {violation}", plan.steps.len(), to.display());
    println!("  again: cargo xtask sim --script {}", to.display());
    // Where the file does not outlive the machine, the log does.
    if plan.steps.len() <= PRINTED_STEPS_MAX {
        print!("{text}");
    }
    Ok(())
}
