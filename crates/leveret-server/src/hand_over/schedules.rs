//! In which orders the steps of a model are tried, and how many that are.

use std::env;
use std::time::Duration;

use shuttle::scheduler::{DfsScheduler, PctScheduler, RandomScheduler, Scheduler};
use shuttle::{Config, Runner};

/// For how many seconds each model is tried, instead of with [`COUNT`] schedules. They are other ones each time.
const SECONDS: &str = "LEVERET_SCHEDULES_SECONDS";

/// Schedules of each kind.
const COUNT: usize = 2000;

/// How often a schedule of the second kind takes the processor away from who has it.
const PREEMPTIONS: usize = 3;

/// A model that is called small has fewer schedules.
const COUNT_SMALL: usize = 500_000;

/// Bytes. A virtual host and a journal that begin take more than shuttle gives.
const STACK: usize = 512 * 1024;

fn config(time: Option<Duration>) -> Config {
    let mut config = Config::new();
    config.stack_size = STACK;
    config.silence_warnings = true;
    config.max_time = time;
    config
}

/// Tries a model in random orders: at half of them anything may be next at each step, at the others somebody goes on for
/// as long as he can, but for a few steps.
pub(super) fn explore(model: fn()) {
    let seconds: Option<u64> = env::var(SECONDS).ok().map(|text| text.parse().expect("a number of seconds"));
    let time = seconds.map(|seconds| Duration::from_secs(seconds) / 2);
    let count = if time.is_some() { usize::MAX } else { COUNT };
    let seed = if time.is_some() { rand::random() } else { 1 };
    println!("schedules from seed {seed}");
    let random = run(RandomScheduler::new_from_seed(seed, count), time, model);
    let preempted = run(PctScheduler::new_from_seed(seed, PREEMPTIONS, count), time, model);
    println!("{} schedules: {random} random, {preempted} with {PREEMPTIONS} preemptions", random + preempted);
}

/// Tries a small model in all orders there are.
pub(super) fn explore_all(model: fn()) {
    let count = run(DfsScheduler::new(Some(COUNT_SMALL), false), None, model);
    assert!(count < COUNT_SMALL, "it is not small: these were not all");
    println!("{count} schedules: all there are");
}

fn run(scheduler: impl Scheduler + 'static, time: Option<Duration>, model: fn()) -> usize {
    Runner::new(scheduler, config(time)).run(model)
}
