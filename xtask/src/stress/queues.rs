//! A hundred thousand durable queues.

use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use leveret_client::QueueOptions;

use super::load::connect;
use super::{Stage, check_time};
use crate::process::check_interrupted;

/// What they may take in memory.
pub(super) const LIMIT_MIB: u64 = 1024;

const QUEUES: usize = 100_000;
const CONNECTIONS: usize = 50;
const DECLARED_WITHIN: Duration = Duration::from_mins(1);
const STARTED_WITHIN: Duration = Duration::from_secs(10);

/// One queue in so many is looked for after the restart.
const LOOKED_FOR: usize = 10;

/// Each connection declares its share one after the other, waits for each answer, and gives how many it has declared.
fn each(url: &str, step: usize, passive: bool) -> Result<Duration> {
    let started = Instant::now();
    thread::scope(|scope| {
        let threads: Vec<_> = (0..CONNECTIONS)
            .map(|first| {
                scope.spawn(move || {
                    let mut connection = connect(url)?;
                    let mut channel = connection.open_channel()?;
                    for number in (first..QUEUES / step).step_by(CONNECTIONS) {
                        let queue = format!("queue-{}", number * step);
                        if passive {
                            channel.check_queue(&queue)?;
                        } else {
                            let options = QueueOptions { durable: true, ..QueueOptions::default() };
                            channel.declare_queue(&queue, &options)?;
                        }
                        check_interrupted()?;
                    }
                    Ok(connection.close()?)
                })
            })
            .collect();
        threads.into_iter().try_for_each(|thread| thread.join().ok().context("a thread panicked")?)
    })
    .map(|()| started.elapsed())
}

pub(super) fn declare_and_restart(stage: &mut Stage) -> Result<String> {
    let declared_in = each(&stage.url(), 1, false)?;
    check_time("declaring them", declared_in, DECLARED_WITHIN)?;
    let declaring_mib = stage.take_peak_kib() / 1024;
    let started_in = stage.restart()?;
    check_time("the restart", started_in, STARTED_WITHIN)?;
    let found_in = each(&stage.url(), LOOKED_FOR, true)?;
    let serving_mib = stage.take_peak_kib() / 1024;
    Ok(format!(
        "{QUEUES} declared over {CONNECTIONS} connections in {declared_in:.1?} ({declaring_mib} MiB), restarted in {started_in:.1?} \
         ({serving_mib} MiB), one in {LOOKED_FOR} found in {found_in:.1?}"
    ))
}
