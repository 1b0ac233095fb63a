//! Running a program to its end, with a deadline.
//!
//! Invariant: a program that we started, and what it started in turn, does not outlive the call.

use std::fmt;
use std::io::{self, BufRead, BufReader, PipeReader};
use std::ops::ControlFlow;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::sync::{Arc, LazyLock};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, kill_process_group, waitid};

/// How often a wait looks up to see whether Ctrl-C was pressed or the deadline has passed.
const LOOK_UP: Duration = Duration::from_millis(20);

/// How long the output of a program may stay open after its end: some child of it holds it.
const LINGER: Duration = Duration::from_secs(1);

/// How long a program has to end by itself.
const GRACE: Duration = Duration::from_secs(2);

static STOP: LazyLock<Arc<AtomicBool>> = LazyLock::new(Arc::default);

/// Makes Ctrl-C end the programs that we started, too: they are in process groups of their own.
pub(crate) fn stop_children_at_ctrl_c() -> Result<()> {
    for signal in [signal_hook::consts::SIGINT, signal_hook::consts::SIGTERM] {
        signal_hook::flag::register(signal, Arc::clone(&STOP)).context("cannot listen for Ctrl-C")?;
    }
    Ok(())
}

/// Fails once Ctrl-C was pressed.
pub(crate) fn check_interrupted() -> Result<()> {
    ensure!(!STOP.load(Ordering::Relaxed), "interrupted");
    Ok(())
}

/// What becomes of the lines that a program prints.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Show {
    /// They are printed as they come.
    Lines,
    /// They are kept for whoever asks.
    Nothing,
}

/// How a program ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    Exited(ExitStatus),
    /// It was killed at the deadline.
    Deadline(Duration),
    /// It was killed since it had printed what we waited for.
    Enough,
}

impl fmt::Display for End {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            End::Exited(status) => write!(f, "{status}"),
            End::Deadline(deadline) => write!(f, "not done within {} s, killed", deadline.as_secs()),
            End::Enough => write!(f, "printed what was waited for"),
        }
    }
}

/// What a program has left.
#[derive(Debug)]
pub(crate) struct Finished {
    pub(crate) end: End,
    /// Standard output and standard error, in the order in which they came.
    pub(crate) output: String,
}

impl Finished {
    pub(crate) fn has_succeeded(&self) -> bool {
        matches!(self.end, End::Exited(status) if status.success())
    }
}

/// Runs a program until it ends, at most until the deadline.
pub(crate) fn run(command: Command, deadline: Duration, show: Show) -> Result<Finished> {
    run_until(command, deadline, |line| {
        if show == Show::Lines {
            println!("{line}");
        }
        ControlFlow::Continue(())
    })
}

/// Runs a program until it ends or `on_line` breaks, at most until the deadline.
pub(crate) fn run_until(
    mut command: Command,
    deadline: Duration,
    mut on_line: impl FnMut(&str) -> ControlFlow<()>,
) -> Result<Finished> {
    let started = Instant::now();
    let (reader, writer) = io::pipe()?;
    command.stdin(Stdio::null()).stdout(writer.try_clone()?).stderr(writer).process_group(0);
    let child = command.spawn().with_context(|| format!("cannot run {}", command.get_program().display()))?;
    let mut group = Group { child, status: None };
    drop(command); // And with it our copies of the pipe's end.
    let lines = read_lines(reader);
    let mut output = String::new();
    let mut exited_at = None;
    let end = loop {
        let is_output_closed = match lines.recv_timeout(LOOK_UP) {
            Ok(line) => {
                output.push_str(&line);
                output.push('\n');
                if on_line(&line).is_break() {
                    break End::Enough;
                }
                false
            }
            Err(RecvTimeoutError::Timeout) => false,
            Err(RecvTimeoutError::Disconnected) => true,
        };
        check_interrupted()?;
        if exited_at.is_none() && group.has_exited()? {
            exited_at = Some(Instant::now());
        }
        match exited_at {
            Some(at) if is_output_closed || at.elapsed() >= LINGER => break End::Exited(group.end()?),
            Some(_) => {}
            None if started.elapsed() >= deadline => break End::Deadline(deadline),
            None if is_output_closed => thread::sleep(LOOK_UP),
            None => {}
        }
    };
    Ok(Finished { end, output })
}

fn read_lines(reader: PipeReader) -> Receiver<String> {
    let (sender, receiver) = mpsc::channel();
    thread::spawn(move || {
        let mut reader = BufReader::new(reader);
        let mut line = Vec::new();
        while reader.read_until(b'\n', &mut line).is_ok_and(|bytes| bytes > 0) {
            let text = String::from_utf8_lossy(&line);
            if sender.send(text.trim_end_matches(['\r', '\n']).to_owned()).is_err() {
                break;
            }
            line.clear();
        }
    });
    receiver
}

/// A program in a process group of its own, which ends when this is dropped.
#[derive(Debug)]
struct Group {
    child: Child,
    /// Its status, once it was taken.
    status: Option<ExitStatus>,
}

impl Group {
    fn id(&self) -> Pid {
        Pid::from_child(&self.child)
    }

    /// Whether it has exited. Its status stays where it is, so that its id is nobody else's until [`Self::end`].
    fn has_exited(&self) -> Result<bool> {
        let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
        Ok(waitid(WaitId::Pid(self.id()), options)?.is_some())
    }

    /// Ends the program if it still runs, and kills what is left of its group.
    fn end(&mut self) -> Result<ExitStatus> {
        if let Some(status) = self.status {
            return Ok(status);
        }
        if !self.has_exited()? {
            // It may have started programs that are in other groups, as `cargo xtask seed` has.
            kill_process_group(self.id(), Signal::TERM)?;
            let asked = Instant::now();
            while !self.has_exited()? && asked.elapsed() < GRACE {
                thread::sleep(LOOK_UP);
            }
        }
        kill_process_group(self.id(), Signal::KILL)?;
        let status = self.child.wait()?;
        self.status = Some(status);
        Ok(status)
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        let _ = self.end();
    }
}
