//! A hundred thousand durable queues.
//!
//! Owns: their names, and what they may take.
//! Must not know: messages.

use std::fmt;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use leveret_client::Connection;

use super::stage::{Limits, Stage, Took};
use super::{DURABLE, LONG_SECONDS, connect};
use crate::process::check_interrupted;

const CONNECTIONS: usize = 50;

/// So many in the long form, in this time, in so much memory; in proportion in a shorter one.
const QUEUES: u64 = 100_000;
const DECLARED_WITHIN: Duration = Duration::from_mins(1);
const MEMORY_KIB: u64 = 1024 * 1024;

/// What a broker takes without any.
const EMPTY_KIB: u64 = 32 * 1024;

/// In which a connection has the answer to one question.
const ANSWERED_WITHIN: Duration = Duration::from_secs(1);

fn share(whole: u64, time: Duration) -> u64 {
    whole * time.as_secs().min(LONG_SECONDS) / LONG_SECONDS
}

pub(super) fn limits(time: Duration, others: Limits) -> Limits {
    Limits { option_mib: MEMORY_KIB / 1024, peak_kib: EMPTY_KIB + share(MEMORY_KIB - EMPTY_KIB, time), ..others }
}

/// What is asked about each queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ask {
    Declare,
    /// Whether it is there.
    Passive,
}

/// How connections fared that asked about all queues.
struct Asked {
    took: Took,
    longest_answer: Took,
    shares: String,
}

impl Asked {
    /// Each connection asks for its share of the queues, one after the other, and waits for each answer.
    fn about(stage: &Stage, queues: usize, ask: Ask, stated: Duration) -> Result<Self> {
        let url = stage.url();
        // All begin at once, or who comes first is far ahead.
        let connections = (0..CONNECTIONS).map(|_| connect(&url)).collect::<Result<Vec<_>>>()?;
        let started = Instant::now();
        // Until one of them is done, all have as much to ask.
        let answered: [AtomicUsize; CONNECTIONS] = std::array::from_fn(|_| AtomicUsize::new(0));
        let at_first_end = OnceLock::new();
        let longest = thread::scope(|scope| {
            let (answered, at_first_end) = (&answered, &at_first_end);
            let threads: Vec<_> = connections
                .into_iter()
                .enumerate()
                .map(|(first, connection)| {
                    scope.spawn(move || {
                        let numbers = (first..queues).step_by(CONNECTIONS);
                        let longest = ask_each(connection, ask, numbers, &answered[first])?;
                        at_first_end.get_or_init(|| {
                            (started.elapsed(), answered.each_ref().map(|count| count.load(Ordering::Relaxed)))
                        });
                        Ok::<_, anyhow::Error>(longest)
                    })
                })
                .collect();
            threads.into_iter().try_fold(Duration::ZERO, |longest, thread| {
                Ok::<_, anyhow::Error>(longest.max(thread.join().ok().context("a thread panicked")??))
            })
        })?;
        let took = stage.check_time("to ask about all of them", started.elapsed(), stated)?;
        let longest_answer = stage.check_time("one answer", longest, ANSWERED_WITHIN)?;
        let (after, answers) = at_first_end.into_inner().context("nobody is done")?;
        // In less time, who gets a processor decides. The longest answer is judged all the same.
        let shares = if after >= ANSWERED_WITHIN {
            stage.check_shares("answers to each connection", answers)?
        } else {
            format!("{} answers to each at least", answers.iter().min().copied().unwrap_or_default())
        };
        Ok(Asked { took, longest_answer, shares })
    }
}

impl fmt::Display for Asked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Asked { took, longest_answer, shares } = self;
        write!(f, "{took} (one answer at most {longest_answer}; {shares} when the first was done)")
    }
}

/// Gives the longest time that an answer took.
fn ask_each(
    mut connection: Connection,
    ask: Ask,
    numbers: impl Iterator<Item = usize>,
    answered: &AtomicUsize,
) -> Result<Duration> {
    let mut channel = connection.open_channel()?;
    let mut longest = Duration::ZERO;
    for number in numbers {
        let queue = format!("queue-{number}");
        let asked = Instant::now();
        match ask {
            Ask::Declare => channel.declare_queue(&queue, &DURABLE)?,
            Ask::Passive => channel.check_queue(&queue)?,
        };
        longest = longest.max(asked.elapsed());
        answered.fetch_add(1, Ordering::Relaxed);
        check_interrupted()?;
    }
    connection.close()?;
    Ok(longest)
}

pub(super) fn declare_and_restart(stage: &mut Stage, time: Duration) -> Result<String> {
    let queues = usize::try_from(share(QUEUES, time))?;
    let stated = DECLARED_WITHIN.min(time);
    let declared = Asked::about(stage, queues, Ask::Declare, stated)?;
    let declaring_mib = stage.take_peak_mib();
    let restarted = stage.restart()?;
    let found = Asked::about(stage, queues, Ask::Passive, stated)?;
    let serving_mib = stage.take_peak_mib();
    Ok(format!(
        "{queues} declared over {CONNECTIONS} connections in {declared} ({declaring_mib} MiB), restarted in {restarted}, all \
         found in {found} ({serving_mib} MiB)"
    ))
}
