//! The broker of one step, through all its lives, with those who look at it.
//!
//! Owns: its folder and logs, its memory, its open files, and how long anything may take.
//! Must not know: what a step does.
//! Invariant: each life is judged by itself, by how busy the machine was meanwhile.

use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, ensure};
use rustix::process::{Resource, getrlimit};

use super::crowding::{CROWDING_MAX, Crowding};
use super::witness::{Pair, Waits};
use crate::broker::{Broker, anonymous_kib};
use crate::memory::Peak;
use crate::process::check_interrupted;

/// On a busy machine, a time that is stated may be so many times as long before that is a failure.
const SLACK: u32 = 5;

/// How long one answer may take on the busiest machine; on a quiet one, 3 s would do. Whoever waits for longer hangs.
pub(super) const PATIENCE: Duration = Duration::from_secs(3 * SLACK as u64 * CROWDING_MAX as u64);

/// In which a broker starts, whatever it finds in its folder.
const STARTED_WITHIN: Duration = Duration::from_secs(10);

/// In which it stops: 10 s are too long on a quiet machine.
const STOPPED_WITHIN: Duration = Duration::from_secs(2);

/// In which a figure of an idle broker comes to rest, and for how long it then is the same.
const SETTLED_WITHIN: Duration = Duration::from_secs(5);
const SETTLED_FOR: Duration = Duration::from_millis(400);

const LOOK_EVERY: Duration = Duration::from_millis(20);

/// How what is stated is held.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Rule {
    /// To the letter, whoever else is on the machine.
    AsStated,
    /// It fails only at five times as much, and more as far as others took the processors meanwhile.
    OnBusyMachine,
}

impl Rule {
    /// How many times as much as who gets least anybody may get.
    fn shares_max(self) -> usize {
        match self {
            Rule::AsStated => 2,
            Rule::OnBusyMachine => SLACK as usize,
        }
    }
}

/// What a step allows.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limits {
    pub(super) rule: Rule,
    /// The option of the broker.
    pub(super) option_mib: u64,
    /// What it may take.
    pub(super) peak_kib: u64,
    /// How long the unrelated pair may wait.
    pub(super) waits: Waits,
}

/// Open files of the broker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Files {
    Sockets,
    /// Those of its journal come and go.
    Others,
}

/// What something took, and what would do.
#[derive(Clone, Copy, Debug)]
pub(super) struct Took {
    took: Duration,
    stated: Duration,
}

impl fmt::Display for Took {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Took { took, stated } = self;
        write!(f, "{took:.1?} of {stated:?}")
    }
}

/// Clients that a step has, of those that it should have.
#[derive(Clone, Copy, Debug)]
pub(super) struct Clients {
    pub(super) count: u64,
    wanted: u64,
    /// Files that the system allows a process to have open.
    files: Option<u64>,
}

impl Clients {
    /// As many as the system allows files for, beside others. Too few would show nothing.
    fn that_fit(wanted: u64, files: Option<u64>) -> Result<Self> {
        const OTHER_FILES: u64 = 256;
        const LEAST: u64 = 100;
        let count = files.map_or(wanted, |files| files.saturating_sub(OTHER_FILES).min(wanted));
        let clients = Clients { count, wanted, files };
        ensure!(count >= LEAST, "no more than {clients}, which shows nothing: raise the hard limit, `ulimit -Hn`");
        Ok(clients)
    }
}

impl fmt::Display for Clients {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Clients { count, wanted, files } = self;
        match files {
            Some(files) if count < wanted => {
                write!(f, "{count} instead of {wanted} (the system allows {files} open files)")
            }
            _ => write!(f, "{count}"),
        }
    }
}

/// A broker that runs, and who looks at it.
struct Life {
    broker: Broker,
    log: PathBuf,
    crowding: Crowding,
    peak: Peak,
    peak_kib: u64,
    limits: Limits,
    witness: Pair,
    /// Whether it was told to stop.
    is_over: bool,
}

impl Life {
    fn start(binary: &Path, folder: &Path, nth: usize, limits: Limits) -> Result<Self> {
        let (data, log) = (folder.join("data"), folder.join(format!("broker-{nth}.log")));
        let limit = format!("{}MiB", limits.option_mib);
        let options = ["--data-dir".as_ref(), data.as_os_str(), "--memory-limit".as_ref(), limit.as_ref()];
        let crowding = Crowding::since_now()?;
        let broker = Broker::start_within(STARTED_WITHIN * SLACK * CROWDING_MAX, binary, &options, 0, &log)?;
        let peak = Peak::watch(broker.process_id());
        let witness = Pair::start(&broker.client_url()).context("the unrelated pair")?;
        let life = Life { broker, log, crowding, peak, peak_kib: 0, limits, witness, is_over: false };
        life.check_time("the start", life.broker.start_took, STARTED_WITHIN)?;
        Ok(life)
    }

    /// Others explain what took longer only as far as they took the processors, and the broker had to wait for one.
    fn crowding(&self) -> Result<f64> {
        Ok(self.crowding.with_broker(self.broker.process_id())?.min(self.broker.run_delay()?))
    }

    /// How many times as much as is stated is a failure.
    fn slack(&self) -> Result<f64> {
        Ok(match self.limits.rule {
            Rule::AsStated => 1.0,
            Rule::OnBusyMachine => f64::from(SLACK) * self.crowding()?,
        })
    }

    /// How long something may take that should take so long.
    fn stretch(&self, stated: Duration) -> Result<Duration> {
        Ok(stated.mul_f64(self.slack()?))
    }

    /// Fails if something took longer than it may.
    fn check_time(&self, what: &str, took: Duration, stated: Duration) -> Result<Took> {
        let may_take = self.stretch(stated)?;
        let took = Took { took, stated };
        ensure!(took.took <= may_take, "{what} took {took}, at most {may_take:.1?} here");
        Ok(took)
    }

    fn take_peak_kib(&mut self) -> u64 {
        let kib = self.peak.take();
        self.peak_kib = self.peak_kib.max(kib);
        kib
    }

    /// It lives, took no more memory than it may, and kept nobody waiting.
    fn end(&mut self) -> Result<String> {
        let limits = self.limits;
        self.take_peak_kib();
        let measured = self.witness.end().context("the unrelated pair")?;
        ensure!(self.broker.ended()?.is_none(), "the broker has ended by itself");
        let (crowding, stop_within) = (self.crowding()?, self.stretch(STOPPED_WITHIN)?);
        let figures = format!("{}; crowding {crowding:.1}", measured.figures(limits.waits));
        let waits = measured.check(limits.waits, |stated, who_only_sleeps| match limits.rule {
            Rule::AsStated => Ok(stated),
            // What the machine does to everybody is not the broker's fault.
            Rule::OnBusyMachine => Ok(self.stretch(stated)? + who_only_sleeps),
        });
        self.is_over = true;
        let status = self.broker.terminate_within(stop_within)?;
        ensure!(status.success(), "the broker ended with {status}");
        let log = fs::read_to_string(&self.log)?;
        ensure!(!log.contains("panicked"), "the broker has panicked");
        waits.with_context(|| figures.clone())?;
        let (peak_mib, limit_mib, looks) = (self.peak_kib / 1024, limits.peak_kib / 1024, self.peak.looks());
        ensure!(self.peak_kib > 0 && looks > 0, "nobody has seen its memory");
        ensure!(self.peak_kib <= limits.peak_kib, "{peak_mib} MiB, and {limit_mib} are allowed");
        Ok(format!("at most {peak_mib} of {limit_mib} MiB in {looks} looks; {figures}"))
    }
}

/// The broker of a step.
pub(super) struct Stage {
    binary: PathBuf,
    folder: PathBuf,
    life: Life,
    /// Of lives that are over.
    figures: Vec<String>,
}

impl Stage {
    /// Plays a step with a broker in a folder, which is left as it is; gives its figures and those of the broker.
    pub(super) fn play(
        binary: &Path,
        folder: &Path,
        limits: Limits,
        step: impl FnOnce(&mut Stage) -> Result<String>,
    ) -> Result<String> {
        let life = Life::start(binary, folder, 1, limits)?;
        let mut stage = Stage { binary: binary.into(), folder: folder.into(), life, figures: Vec::new() };
        let figures = match step(&mut stage) {
            Ok(figures) => figures,
            Err(error) => return Err(stage.explain(error)),
        };
        stage.figures.push(stage.life.end()?);
        Ok(format!("{figures}; {}", stage.figures.join("; then ")))
    }

    fn explain(&mut self, error: anyhow::Error) -> anyhow::Error {
        if self.life.is_over {
            return error;
        }
        match self.life.broker.ended() {
            Ok(Some(status)) => error.context(format!("the broker ended by itself with {status}")),
            Ok(None) => error.context(format!("after {}", self.life.witness.so_far(self.life.limits.waits))),
            Err(unknown) => error.context(unknown),
        }
    }

    pub(super) fn url(&self) -> String {
        self.life.broker.client_url()
    }

    /// Host and port.
    pub(super) fn address(&self) -> &str {
        self.life.broker.url.trim_start_matches("amqp://")
    }

    /// How many files of a kind it has open.
    pub(super) fn files(&self, kind: Files) -> Result<u64> {
        let mut count = 0;
        for entry in fs::read_dir(format!("/proc/{}/fd", self.life.broker.process_id()))? {
            // One may be closed meanwhile.
            let Ok(target) = entry.and_then(|entry| fs::read_link(entry.path())) else { continue };
            let is_socket = target.to_string_lossy().starts_with("socket:");
            count += u64::from(is_socket == (kind == Files::Sockets));
        }
        Ok(count)
    }

    /// Memory of the broker that is no file's, now.
    pub(super) fn memory_kib(&self) -> Result<u64> {
        anonymous_kib(self.life.broker.process_id())
    }

    /// The most memory since the last time.
    pub(super) fn take_peak_mib(&mut self) -> u64 {
        self.life.take_peak_kib() / 1024
    }

    /// Stops the broker, and starts it again.
    pub(super) fn restart(&mut self) -> Result<Took> {
        self.figures.push(self.life.end()?);
        self.life = Life::start(&self.binary, &self.folder, self.figures.len() + 1, self.life.limits)?;
        Ok(Took { took: self.life.broker.start_took, stated: STARTED_WITHIN })
    }

    /// The same as [`Life::check_time`], of the life that there is.
    pub(super) fn check_time(&self, what: &str, took: Duration, stated: Duration) -> Result<Took> {
        self.life.check_time(what, took, stated)
    }

    /// Fails if less is there than was due in some time, but for a hundredth: what was due last may not be there yet.
    pub(super) fn check_count(&self, what: &str, count: usize, due: usize) -> Result<()> {
        let (count, due) = (u32::try_from(count)?, u32::try_from(due)?);
        let least = f64::from(due) * 0.99 / self.life.slack()?;
        ensure!(f64::from(count) >= least, "{count} {what}, {due} were due, {least:.0} at least here");
        Ok(())
    }

    /// Fails if there is more of something than before, but for so much. On a busy machine, what was let go takes its time.
    pub(super) fn check_back(&self, what: &str, before: u64, after: u64, more: u64) -> Result<()> {
        let more = match self.life.limits.rule {
            Rule::AsStated => more,
            Rule::OnBusyMachine => more * u64::from(SLACK),
        };
        ensure!(after <= before + more, "{after} {what}, {before} were before, {more} more are allowed");
        Ok(())
    }

    /// Nobody got much more than another. Says how much.
    pub(super) fn check_shares(&self, what: &str, shares: impl IntoIterator<Item = usize>) -> Result<String> {
        check_shares(what, shares, self.life.limits.rule.shares_max())
    }

    /// Of so many clients, those that there are: each takes a file of this process and one of the broker.
    pub(super) fn clients(&self, wanted: u64) -> Result<Clients> {
        let clients = Clients::that_fit(wanted, getrlimit(Resource::Nofile).maximum)?;
        ensure!(
            clients.count == wanted || self.life.limits.rule == Rule::OnBusyMachine,
            "no more than {clients}: raise the hard limit, `ulimit -Hn`"
        );
        Ok(clients)
    }

    /// Waits until something is so.
    pub(super) fn wait_until(
        &self,
        what: &str,
        stated: Duration,
        mut is_so: impl FnMut() -> Result<bool>,
    ) -> Result<Took> {
        let started = Instant::now();
        while !is_so()? {
            self.check_time(what, started.elapsed(), stated)?;
            check_interrupted()?;
            thread::sleep(LOOK_EVERY);
        }
        Ok(Took { took: started.elapsed(), stated })
    }

    /// A figure once it has been the same for a while, but for what it may vary by.
    pub(super) fn settled(
        &self,
        what: &str,
        varies_by: u64,
        figure: impl Fn(&Stage) -> Result<u64>,
    ) -> Result<u64> {
        let (mut settled, mut since) = (figure(self)?, Instant::now());
        self.wait_until(&format!("the rest of {what}"), SETTLED_WITHIN, || {
            let now = figure(self)?;
            if now.abs_diff(settled) > varies_by {
                (settled, since) = (now, Instant::now());
            }
            Ok(since.elapsed() >= SETTLED_FOR)
        })?;
        Ok(settled)
    }

    pub(super) fn settled_files(&self, kind: Files) -> Result<u64> {
        self.settled("its open files", 0, |stage| stage.files(kind))
    }

    pub(super) fn settled_memory_kib(&self) -> Result<u64> {
        const VARIES_BY_KIB: u64 = 64;
        self.settled("its memory", VARIES_BY_KIB, Stage::memory_kib)
    }
}

/// Nobody is starved: who got least got something, and who got most not so many times as much. Says what both got.
fn check_shares(what: &str, shares: impl IntoIterator<Item = usize>, times_max: usize) -> Result<String> {
    let shares: Vec<_> = shares.into_iter().collect();
    let least = *shares.iter().min().ok_or_else(|| anyhow!("nobody has {what}"))?;
    let most = shares.iter().max().copied().unwrap_or_default();
    ensure!(least > 0 && least * times_max >= most, "{what}: one has {least}, another {most}: {shares:?}");
    Ok(format!("{least} to {most} {what}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_are_as_many_clients_as_files_are_allowed_and_it_is_said_if_that_is_fewer() {
        let fit = |files| Clients::that_fit(1000, files).map(|clients| (clients.count, clients.to_string())).ok();
        let (all, fewer) =
            ("1000".to_owned(), "768 instead of 1000 (the system allows 1024 open files)".to_owned());
        assert_eq!(fit(None), Some((1000, all.clone())));
        assert_eq!(fit(Some(1256)), Some((1000, all)));
        assert_eq!(fit(Some(1024)), Some((768, fewer)));
        assert_eq!(fit(Some(355)), None);
    }

    #[test]
    fn who_has_nothing_or_less_than_a_half_is_starved_and_on_a_busy_machine_less_than_a_fifth() {
        for (rule, most) in [(Rule::AsStated, 20), (Rule::OnBusyMachine, 50)] {
            let check = |shares: &[usize]| check_shares("of each", shares.iter().copied(), rule.shares_max());
            assert_eq!(check(&[10, most, 20]).unwrap(), format!("10 to {most} of each"));
            for starved in [&[0, 0][..], &[10, most + 1], &[]] {
                assert!(check(starved).is_err(), "{rule:?} {starved:?}");
            }
        }
    }
}
