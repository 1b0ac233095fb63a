//! `cargo xtask stress`: more than a broker can do, and clients that are none. Nobody else may starve, nothing that was
//! confirmed may be lost, memory stays where it belongs, and the broker lives.
//!
//! Each step has a broker of its own with a data folder. All along, its memory is looked at, and two clients that have nothing
//! to do with the load ask and answer each other. Times that are stated are those of a quiet machine: what is a failure is
//! five times as much, and more where the broker had to wait for the processor.

mod chaos;
mod connections;
mod ledger;
mod load;
mod network;
mod queues;
mod witness;

use std::fs;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use clap::ValueEnum;
use rustix::process::{Resource, getrlimit};

use crate::broker::{self, Broker, anonymous_kib};
use crate::measure::raise_file_limit;
use crate::memory::{Peak, start};
use crate::process::check_interrupted;
use crate::tally::Tally;
use crate::workspace::target;

/// How long steps last by hand, and in CI.
pub(crate) const LONG_SECONDS: u64 = 60;
pub(crate) const SHORT: Duration = Duration::from_secs(8);

/// A time that is stated may be so many times as long before that is a failure.
const SLACK: u32 = 5;

/// What the broker may take in most steps, and a tenth more.
const LIMIT_MIB: u64 = 256;

/// How long the unrelated pair may wait for an answer, at the 99th percentile.
const WITNESS_P99: Duration = Duration::from_millis(50);

/// How long anything may take that is not timed.
const PATIENCE: Duration = Duration::from_mins(1);

const LOOK_EVERY: Duration = Duration::from_millis(20);

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

    fn limit_mib(self) -> u64 {
        match self {
            Step::Overload
            | Step::Unread
            | Step::Deaf
            | Step::Backlog
            | Step::Connections
            | Step::Churn
            | Step::Network => LIMIT_MIB,
            Step::Queues => queues::LIMIT_MIB,
        }
    }

    /// Files that this process and the broker may each have open at once.
    fn files(self) -> u64 {
        const OTHERS: u64 = 256;
        OTHERS
            + match self {
                Step::Connections => connections::CONNECTIONS.into(),
                Step::Unread => load::UNREAD_CONSUMERS,
                Step::Overload | Step::Deaf | Step::Backlog | Step::Churn | Step::Queues | Step::Network => 0,
            }
    }

    /// Figures, or what failed.
    fn play(self, stage: &mut Stage, time: Duration) -> Result<String> {
        match self {
            Step::Overload => load::overload(stage, time),
            Step::Unread => load::unread(stage, time),
            Step::Deaf => load::deaf(stage, time),
            Step::Backlog => load::backlog(stage, time),
            Step::Connections => connections::hold(stage, time),
            Step::Churn => connections::churn(stage, time),
            Step::Queues => queues::declare_and_restart(stage),
            Step::Network => network::trouble(stage, time),
        }
    }
}

/// Runs all steps, or one.
pub(crate) fn run(time: Duration, only: Option<Step>) -> Result<Tally> {
    let binary = broker::build()?;
    raise_file_limit()?;
    let mut tally = Tally::default();
    for &step in Step::value_variants() {
        if only.is_some_and(|only| only != step) {
            continue;
        }
        let (files, needed) = (getrlimit(Resource::Nofile).maximum, step.files());
        if let Some(files) = files.filter(|&files| files < needed) {
            println!("skipped {}: it needs {needed} open files, and the system allows {files}", step.name());
            tally += Tally::SKIPPED;
            continue;
        }
        let started = Instant::now();
        let played = play(step, &binary, time);
        let (name, took) = (step.name(), started.elapsed().as_secs_f64());
        tally += match played {
            Ok(figures) => {
                println!("ok {name} ({took:.1} s): {figures}");
                Tally::PASSED
            }
            Err(error) => {
                println!("not ok {name} ({took:.1} s): {error:#}");
                Tally::FAILED
            }
        };
        check_interrupted()?;
    }
    let steps = if only.is_some() { 1 } else { Step::value_variants().len() as u64 };
    Ok(tally.at_least("steps", steps - tally.skipped))
}

fn play(step: Step, binary: &Path, time: Duration) -> Result<String> {
    let folder = target().join("stress");
    let _ = fs::remove_dir_all(&folder);
    let mut stage = Stage::set(binary, &folder, step.limit_mib())?;
    let figures = match step.play(&mut stage, time) {
        Ok(figures) => figures,
        Err(error) => {
            // The log says more, so it stays.
            let log = folder.join("broker.log");
            return Err(error.context(format!("after {}; its log is {}", stage.witness.so_far(), log.display())));
        }
    };
    let end = stage.end()?;
    let _ = fs::remove_dir_all(&folder);
    Ok(format!("{figures}; {end}"))
}

/// A broker, and who looks at it.
pub(crate) struct Stage {
    binary: PathBuf,
    folder: PathBuf,
    limit_mib: u64,
    broker: Broker,
    peak: Peak,
    peak_kib: u64,
    witness: witness::Pair,
    measured: witness::Measured,
}

impl Stage {
    fn set(binary: &Path, folder: &Path, limit_mib: u64) -> Result<Self> {
        let data = folder.join("data").display().to_string();
        let broker = start(binary, folder, &["--data-dir", &data], limit_mib)?;
        Ok(Stage {
            binary: binary.into(),
            folder: folder.into(),
            limit_mib,
            peak: Peak::watch(broker.process_id()),
            peak_kib: 0,
            witness: witness::Pair::start(&broker.client_url())?,
            measured: witness::Measured::default(),
            broker,
        })
    }

    pub(super) fn url(&self) -> String {
        self.broker.client_url()
    }

    /// Host and port.
    pub(super) fn address(&self) -> &str {
        self.broker.url.trim_start_matches("amqp://")
    }

    /// Sockets that the broker has open. Its other descriptors come and go with its journal.
    pub(super) fn sockets(&self) -> Result<usize> {
        let mut count = 0;
        for entry in fs::read_dir(format!("/proc/{}/fd", self.broker.process_id()))? {
            // One may be closed meanwhile.
            let target = entry.and_then(|entry| fs::read_link(entry.path()));
            count += usize::from(target.is_ok_and(|target| target.to_string_lossy().starts_with("socket:")));
        }
        Ok(count)
    }

    /// Memory of the broker that is no file's, now.
    pub(super) fn memory_kib(&self) -> Result<u64> {
        anonymous_kib(self.broker.process_id())
    }

    /// The most memory since the last time.
    pub(super) fn take_peak_kib(&mut self) -> u64 {
        let kib = self.peak.take();
        self.peak_kib = self.peak_kib.max(kib);
        kib
    }

    /// Stops the broker and starts it again; says how long it took to be ready.
    fn restart(&mut self) -> Result<Duration> {
        self.measured.add(self.witness.end()?);
        self.take_peak_kib();
        let data = self.folder.join("data").display().to_string();
        let status = self.broker.terminate()?;
        ensure!(status.success(), "the broker ended with {status}");
        self.broker = start(&self.binary, &self.folder, &["--data-dir", &data], self.limit_mib)?;
        self.peak = Peak::watch(self.broker.process_id());
        self.witness = witness::Pair::start(&self.broker.client_url())?;
        Ok(self.broker.start_took)
    }

    /// The broker lives, took no more memory than it may, and kept nobody waiting.
    fn end(mut self) -> Result<String> {
        self.take_peak_kib();
        self.measured.add(self.witness.end().context("the unrelated pair")?);
        let crowding = self.broker.crowding()?;
        let status = self.broker.terminate()?;
        ensure!(status.success(), "the broker ended with {status}");
        let log = fs::read_to_string(self.folder.join("broker.log"))?;
        ensure!(!log.contains("panicked"), "the broker has panicked: {log}");
        let (peak_mib, limit_mib) = (self.peak_kib / 1024, self.limit_mib);
        ensure!(self.peak_kib <= limit_mib * 1024 / 10 * 11, "{peak_mib} MiB at a limit of {limit_mib}");
        let measured = format!("{}; the broker took {crowding:.1} times as long as alone", self.measured.figures());
        // What others on this machine do is not the broker's fault.
        let may_take = WITNESS_P99.mul_f64(f64::from(SLACK) * crowding) + self.measured.naps.percentile(99);
        ensure!(self.measured.requests.percentile(99) < may_take, "the unrelated pair waited too long: {measured}");
        Ok(format!("at most {peak_mib} MiB; {measured}"))
    }
}

/// Fails if something took five times as long as it should have.
fn check_time(what: &str, took: Duration, stated: Duration) -> Result<()> {
    ensure!(took <= stated * SLACK, "{what} took {took:.1?}, {stated:?} would do");
    Ok(())
}

/// Waits until something is so.
fn wait_until(what: &str, mut is_so: impl FnMut() -> Result<bool>) -> Result<()> {
    let deadline = Instant::now() + PATIENCE;
    while !is_so()? {
        ensure!(Instant::now() < deadline, "{what} was waited for in vain");
        check_interrupted()?;
        thread::sleep(LOOK_EVERY);
    }
    Ok(())
}
