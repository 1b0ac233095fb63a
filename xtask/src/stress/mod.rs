//! `cargo xtask stress`: more than a broker can do, and clients that are none. Nobody else may starve, nothing that was
//! confirmed may be lost, memory stays where it belongs, and the broker lives.
//!
//! Each step has a broker of its own with a data folder. All along, its memory is looked at, and two clients that have nothing
//! to do with the load ask and answer each other. Times that are stated are those of a quiet machine, and there they are the
//! bounds; on a busy one, as in CI, what is a failure is five times as much, and more as far as others took the processors meanwhile.
//!
//! Owns: which steps there are, what each of them needs and allows.
//! Must not know: how a broker is started and looked at.

mod chaos;
mod connections;
mod crowding;
mod ledger;
mod network;
mod overload;
mod queues;
mod stage;
mod unread;
mod witness;

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Result, bail, ensure};
use clap::ValueEnum;
use leveret_amqp::{Method, ShortStr, Table};
use leveret_client::{AckMode, Connection, ConsumeOptions, ConsumerEvent, QueueOptions, Url};

use self::ledger::Ledger;
pub(crate) use self::stage::Rule;
use self::stage::{Limits, PATIENCE, Stage};
use self::witness::Waits;
use crate::broker;
use crate::measure::raise_file_limit;
use crate::process::check_interrupted;
use crate::tally::Tally;
use crate::workspace::target;

/// How long steps last by hand, and in CI.
pub(crate) const LONG_SECONDS: u64 = 60;
pub(crate) const SHORT_SECONDS: u64 = 6;

/// What the broker is told that it may take in most steps. It may take a tenth more.
const LIMIT_MIB: u64 = 256;

/// How long the unrelated pair may wait.
const WAITS: Waits = Waits { p99: Duration::from_millis(50), max: Duration::from_millis(200) };

const DURABLE: QueueOptions<'_> =
    QueueOptions { durable: true, exclusive: false, auto_delete: false, arguments: Table::EMPTY };
const PERSISTENT: u8 = 2;

/// The queue of most steps.
const QUEUE: &str = "stress";

/// One kind of stress.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Step {
    /// Ten producers and one slow consumer
    Overload,
    /// A thousand consumers without a prefetch that never read
    Unread,
    /// Clients that publish and consume and never read
    Deaf,
    /// Five million messages
    Backlog,
    /// Ten thousand connections with heartbeats
    Connections,
    /// Connections that come and go, 500 a second
    Churn,
    /// A hundred thousand durable queues, and a restart
    Queues,
    /// Half-open connections, resets, single bytes, slow readers
    Network,
}

impl Step {
    fn name(self) -> String {
        self.to_possible_value().map(|value| value.get_name().to_owned()).unwrap_or_default()
    }

    fn limits(self, time: Duration, rule: Rule) -> Limits {
        let limits = Limits { rule, option_mib: LIMIT_MIB, peak_kib: LIMIT_MIB * 1024 / 10 * 11, waits: WAITS };
        match self {
            Step::Connections => Limits { waits: connections::WAITS, ..limits },
            Step::Queues => queues::limits(time, limits),
            Step::Overload | Step::Unread | Step::Deaf | Step::Backlog | Step::Churn | Step::Network => limits,
        }
    }

    /// Figures, or what failed.
    fn play(self, stage: &mut Stage, time: Duration) -> Result<String> {
        match self {
            Step::Overload => overload::overload(stage, time),
            Step::Unread => unread::unread(stage, time),
            Step::Deaf => unread::deaf(stage, time),
            Step::Backlog => overload::backlog(stage, time),
            Step::Connections => connections::hold(stage, time),
            Step::Churn => connections::churn(stage, time),
            Step::Queues => queues::declare_and_restart(stage, time),
            Step::Network => network::trouble(stage, time),
        }
    }
}

/// Runs all steps, or one.
pub(crate) fn run(time: Duration, only: Option<Step>, rule: Rule) -> Result<Tally> {
    let binary = broker::build()?;
    raise_file_limit()?;
    let mut tally = Tally::default();
    for &step in Step::value_variants() {
        if only.is_some_and(|only| only != step) {
            continue;
        }
        let started = Instant::now();
        let name = step.name();
        let folder = target().join("stress").join(&name);
        let played = play(step, &binary, time, rule, &folder);
        let took = started.elapsed().as_secs_f64();
        tally += match played {
            Ok(figures) => {
                println!("ok {name} ({took:.1} s): {figures}");
                Tally::PASSED
            }
            Err(error) => {
                println!("not ok {name} ({took:.1} s): {error:#}");
                println!("what it has left, with the log of its broker: {}", folder.display());
                Tally::FAILED
            }
        };
        check_interrupted()?;
    }
    let steps = if only.is_some() { 1 } else { Step::value_variants().len() as u64 };
    Ok(tally.at_least("steps", steps))
}

/// Plays a step in a folder of its own, which is there afterwards only if the step has failed.
fn play(step: Step, binary: &Path, time: Duration, rule: Rule, folder: &Path) -> Result<String> {
    if folder.exists() {
        fs::remove_dir_all(folder)?;
    }
    let figures = Stage::play(binary, folder, step.limits(time, rule), |stage| step.play(stage, time))?;
    fs::remove_dir_all(folder)?;
    Ok(figures)
}

/// Bytes of each of so many bodies, so that all of them are twice as much as the broker may hold, in the short form, too.
fn body_bytes(messages: usize) -> usize {
    const LEAST: usize = 100;
    (usize::try_from(2 * LIMIT_MIB * 1024 * 1024).unwrap_or(usize::MAX) / messages.max(1)).max(LEAST)
}

/// A connection whose client hangs if an answer takes too long.
fn connect(url: &str) -> Result<Connection> {
    let mut connection = Connection::open(&url.parse::<Url>()?)?;
    connection.set_answer_timeout(PATIENCE);
    Ok(connection)
}

/// A consumer that acks.
fn consume(queue: ShortStr<'_>) -> Method<'_> {
    Method::BasicConsume {
        ticket: 0,
        queue,
        consumer_tag: ShortStr::EMPTY,
        no_local: false,
        no_ack: false,
        exclusive: false,
        nowait: false,
        arguments: Table::EMPTY,
    }
}

/// Takes all that is in the queue, and notes it down.
fn drain(url: &str, ledger: &mut Ledger) -> Result<u32> {
    let mut connection = connect(url)?;
    let mut channel = connection.open_channel()?;
    let count = channel.check_queue(QUEUE)?.message_count;
    channel.consume(QUEUE, &ConsumeOptions { ack_mode: AckMode::Auto, ..ConsumeOptions::default() })?;
    for nth in 0..count {
        let Some(ConsumerEvent::Delivery(delivery)) = channel.next_event(PATIENCE)? else {
            bail!("{nth} of {count} messages came, and no more");
        };
        ledger.delivered(&delivery.message.body, delivery.redelivered)?;
    }
    ensure!(channel.check_queue(QUEUE)?.message_count == 0, "there are more messages than were counted");
    connection.close()?;
    Ok(count)
}
