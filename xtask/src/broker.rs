//! The release binary, built and started.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{BufRead, BufReader, Read};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, ExitStatus, Stdio};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use rustix::process::{Pid, Signal, kill_process};

use crate::process::{self, Show, check_interrupted};
use crate::workspace::{cargo, target};

const BUILD_DEADLINE: Duration = Duration::from_mins(15);
const READY_DEADLINE: Duration = Duration::from_secs(20);
const STOP_DEADLINE: Duration = Duration::from_secs(10);

/// Builds the release binary, and says where it is.
pub(crate) fn build() -> Result<PathBuf> {
    let build = cargo(["build", "--release", "--locked", "--package", "leveret"]);
    let built = process::run(build, BUILD_DEADLINE, Show::Lines)?;
    ensure!(built.has_succeeded(), "the release binary was not built: {}", built.end);
    Ok(target().join("release/leveret"))
}

/// Builds the relay, the floor of the benchmarks, and says where it is.
pub(crate) fn build_relay() -> Result<PathBuf> {
    let build = cargo(["build", "--release", "--locked", "--package", "leveret-perf", "--example", "relay"]);
    let built = process::run(build, BUILD_DEADLINE, Show::Lines)?;
    ensure!(built.has_succeeded(), "the relay was not built: {}", built.end);
    Ok(target().join("release/examples/relay"))
}

/// A running broker, killed when this is dropped.
#[derive(Debug)]
pub(crate) struct Broker {
    child: Child,
    /// Open, though nobody reads it after the ready line.
    _stdout: ChildStdout,
    /// For example `amqp://127.0.0.1:40123`.
    pub(crate) url: String,
    /// From before the process was made until the ready line was read.
    pub(crate) start_took: Duration,
}

impl Broker {
    /// Starts a broker that keeps everything in memory and logs to the file, and waits until it is ready.
    pub(crate) fn start(binary: &Path, port: u16, log: &Path) -> Result<Self> {
        Self::start_with(binary, &["--in-memory".as_ref()], port, log)
    }

    /// The same with a data folder.
    pub(crate) fn start_on_disk(binary: &Path, folder: &Path, log: &Path) -> Result<Self> {
        Self::start_with(binary, &["--data-dir".as_ref(), folder.as_os_str()], 0, log)
    }

    /// The same with other options.
    pub(crate) fn start_with(binary: &Path, storage: &[&OsStr], port: u16, log: &Path) -> Result<Self> {
        Self::start_within(READY_DEADLINE, binary, storage, port, log)
    }

    /// The same where it may take longer.
    pub(crate) fn start_within(
        deadline: Duration,
        binary: &Path,
        options: &[&OsStr],
        port: u16,
        log: &Path,
    ) -> Result<Self> {
        let mut command = Command::new(binary);
        command.args(options);
        command.args(["--amqp-port", &port.to_string()]);
        Self::await_ready(command, deadline, log)
    }

    /// Starts the relay. It has no good order in which to stop.
    pub(crate) fn start_relay(binary: &Path, log: &Path) -> Result<Self> {
        let mut command = Command::new(binary);
        command.args(["--port", "0"]);
        Self::await_ready(command, READY_DEADLINE, log)
    }

    fn await_ready(mut command: Command, deadline: Duration, log: &Path) -> Result<Self> {
        if let Some(folder) = log.parent() {
            fs::create_dir_all(folder)?;
        }
        let log = File::create(log).with_context(|| format!("cannot write {}", log.display()))?;
        // In a group of its own, so that Ctrl-C does not stop it before its clients.
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(log).process_group(0);
        let started = Instant::now();
        let mut child = command.spawn().with_context(|| format!("cannot run {command:?}"))?;
        let stdout = child.stdout.take().context("the broker has no output")?;
        let (stdout, line) = match ready_line(stdout, started, deadline) {
            Ok(ready) => ready,
            Err(error) => {
                let _ = child.kill();
                let _ = child.wait();
                return Err(error);
            }
        };
        let start_took = started.elapsed();
        let url = line.split_once(" ready: ").map(|(_, url)| url.trim().to_owned());
        let broker = Broker { child, _stdout: stdout, url: url.unwrap_or_default(), start_took };
        ensure!(broker.url.starts_with("amqp://"), "the broker's first line is {line:?}, not its ready line");
        Ok(broker)
    }

    /// The URL with user, password and virtual host.
    pub(crate) fn client_url(&self) -> String {
        format!("{}/%2F", self.url.replacen("amqp://", "amqp://guest:guest@", 1))
    }

    /// What those of its threads that still run have taken of the processor so far.
    pub(crate) fn cpu_time(&self) -> Result<Duration> {
        let threads = fs::read_dir(format!("/proc/{}/task", self.process_id()))?;
        // One may end meanwhile.
        Ok(threads.filter_map(|thread| thread_cpu_time(&thread.ok()?.path()).ok()).sum())
    }

    /// How many times as long as alone its threads took to run: they had to wait for each other, too, and for those of others.
    pub(crate) fn run_delay(&self) -> Result<f64> {
        let threads = fs::read_dir(format!("/proc/{}/task", self.process_id()))?;
        let (mut ran, mut waited) = (0.0, 0.0);
        // One may end meanwhile.
        for text in threads.filter_map(|thread| fs::read_to_string(thread.ok()?.path().join("schedstat")).ok()) {
            let mut numbers = text.split_whitespace().filter_map(|number| number.parse::<f64>().ok());
            ran += numbers.next().unwrap_or_default();
            waited += numbers.next().unwrap_or_default();
        }
        Ok(if ran > 0.0 { (ran + waited) / ran } else { 1.0 })
    }

    pub(crate) fn process_id(&self) -> u32 {
        self.child.id()
    }

    /// Stops it with SIGTERM, and waits for its end.
    pub(crate) fn stop(mut self) -> Result<ExitStatus> {
        self.terminate()
    }

    /// The same where something of it is still needed.
    pub(crate) fn terminate(&mut self) -> Result<ExitStatus> {
        self.terminate_within(STOP_DEADLINE)
    }

    /// The same with another deadline. Whoever misses it is killed.
    pub(crate) fn terminate_within(&mut self, deadline: Duration) -> Result<ExitStatus> {
        if let Some(status) = self.ended()? {
            return Ok(status);
        }
        kill_process(Pid::from_child(&self.child), Signal::TERM)?;
        let asked = Instant::now();
        while asked.elapsed() < deadline {
            if let Some(status) = self.ended()? {
                return Ok(status);
            }
            thread::sleep(Duration::from_millis(5));
        }
        self.child.kill()?;
        self.child.wait()?;
        bail!("the broker did not stop within {:.1} s of SIGTERM, and was killed", deadline.as_secs_f64())
    }

    /// How it ended, if it did.
    pub(crate) fn ended(&mut self) -> Result<Option<ExitStatus>> {
        Ok(self.child.try_wait()?)
    }
}

/// What a thread has taken of the processor so far; its folder in `/proc` is given.
pub(crate) fn thread_cpu_time(thread: &Path) -> Result<Duration> {
    let text = fs::read_to_string(thread.join("schedstat"))?;
    let nanoseconds = text.split_whitespace().next().and_then(|number| number.parse().ok());
    Ok(Duration::from_nanos(nanoseconds.context("/proc says nothing of the time of a thread")?))
}

/// Resident memory of a process that is no file's, in KiB.
pub(crate) fn anonymous_kib(process: u32) -> Result<u64> {
    let status = fs::read_to_string(format!("/proc/{process}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:"));
    let number = line.and_then(|line| line.split_whitespace().next()?.parse().ok());
    number.context("/proc says nothing of anonymous memory")
}

impl Drop for Broker {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn ready_line(stdout: ChildStdout, started: Instant, deadline: Duration) -> Result<(ChildStdout, String)> {
    let (sender, receiver) = mpsc::channel();
    thread::spawn(move || {
        let mut stdout = stdout;
        let mut line = String::new();
        // The line ends with a line break, or with the process; it is short.
        let read = BufReader::new(stdout.by_ref().take(1024)).read_line(&mut line);
        let _ = sender.send(read.map(|_| (stdout, line)));
    });
    loop {
        check_interrupted()?;
        match receiver.recv_timeout(Duration::from_millis(20)) {
            Ok(read) => {
                let (stdout, line) = read?;
                ensure!(!line.is_empty(), "the broker ended before it was ready");
                return Ok((stdout, line));
            }
            Err(RecvTimeoutError::Timeout) if started.elapsed() < deadline => {}
            Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => {
                bail!("the broker was not ready within {} s", deadline.as_secs())
            }
        }
    }
}
