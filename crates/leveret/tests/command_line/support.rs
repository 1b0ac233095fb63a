//! Running the real binary: to its end, or as a broker until it is ready.
//!
//! Invariant: no process outlives its test, and no wait is without end.

use std::io::{BufRead, BufReader, Read, Write};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Condvar, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

/// How long anything may take before its test fails. Much longer than it takes, also on a busy machine.
pub(crate) const DEADLINE: Duration = Duration::from_secs(30);

/// How often a wait looks whether a process has ended.
const LOOK_UP: Duration = Duration::from_millis(5);

/// A command line of `leveret`, in an empty folder of its own and without any `LEVERET_` variables from outside.
#[derive(Debug)]
pub(crate) struct Leveret {
    command: Command,
    folder: TempDir,
    input: Vec<u8>,
}

/// What a process has left.
#[derive(Debug)]
pub(crate) struct Finished {
    /// `None` when a signal ended it.
    pub(crate) code: Option<i32>,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

/// The variable that gives a build for tests a bug, to see that tests find it.
const PLANTED: &str = "LEVERET_PLANTED";

/// `leveret ARGUMENTS`, ready to run.
pub(crate) fn leveret(arguments: &[&str]) -> Leveret {
    let folder = tempfile::tempdir().unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_leveret"));
    command.args(arguments).current_dir(folder.path());
    for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("LEVERET_")) {
        if name != PLANTED {
            command.env_remove(name);
        }
    }
    Leveret { command, folder, input: Vec::new() }
}

impl Leveret {
    pub(crate) fn env(mut self, name: &str, value: &str) -> Self {
        self.command.env(name, value);
        self
    }

    /// What it finds on standard input.
    pub(crate) fn input(mut self, bytes: &[u8]) -> Self {
        self.input = bytes.to_vec();
        self
    }

    /// The same with its standard error behind its standard output, as in a file that both go to.
    pub(crate) fn with_one_output(mut self) -> Self {
        let mut command = Command::new("sh");
        command
            .args(["-c", "exec \"$0\" \"$@\" 2>&1"])
            .arg(self.command.get_program())
            .args(self.command.get_args());
        command.current_dir(self.folder.path());
        for (name, value) in self.command.get_envs() {
            match value {
                Some(value) => command.env(name, value),
                None => command.env_remove(name),
            };
        }
        self.command = command;
        self
    }

    /// Runs it to its end.
    pub(crate) fn run(self) -> Finished {
        self.spawn().wait()
    }

    /// Starts it and does not wait for anything.
    pub(crate) fn spawn(mut self) -> Running {
        self.command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = self.command.spawn().unwrap();
        // Whoever does not read its input is not written to; what the tests send fits into a pipe.
        let _ = child.stdin.take().unwrap().write_all(&self.input);
        let stdout = Printed::collect(child.stdout.take().unwrap());
        let stderr = Printed::collect(child.stderr.take().unwrap());
        Running { child, stdout, stderr, folder: self.folder }
    }

    /// Starts a broker and waits until it is ready.
    pub(crate) fn start(self) -> Broker {
        let process = self.spawn();
        process.stdout.wait_for(" ready: ", "the broker to be ready");
        process.stderr.wait_for("Server startup complete", "the broker to say so in its log");
        let ready_line = process.stdout.text();
        let url = ready_line.split_once(" ready: ").unwrap().1.lines().next().unwrap().to_owned();
        Broker { process, url }
    }
}

/// A process that runs, killed when this is dropped.
#[derive(Debug)]
pub(crate) struct Running {
    child: Child,
    pub(crate) stdout: Printed,
    pub(crate) stderr: Printed,
    /// Its current folder, empty at first.
    pub(crate) folder: TempDir,
}

impl Running {
    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }

    pub(crate) fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).unwrap();
    }

    /// Waits for its end.
    pub(crate) fn wait(mut self) -> Finished {
        let deadline = Instant::now() + DEADLINE;
        let status = loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                break status;
            }
            assert!(Instant::now() < deadline, "it still runs; so far: {:?} {:?}", self.stdout, self.stderr);
            thread::sleep(LOOK_UP);
        };
        let (stdout, stderr) = (self.stdout.wait_for_end(), self.stderr.wait_for_end());
        Finished { code: status.code(), stdout, stderr }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A broker that is ready.
#[derive(Debug)]
pub(crate) struct Broker {
    pub(crate) process: Running,
    /// As the ready line says it.
    pub(crate) url: String,
}

impl Broker {
    /// A broker in memory, on a free port.
    pub(crate) fn start() -> Broker {
        leveret(&["--in-memory", "--amqp-port", "0"]).start()
    }

    pub(crate) fn port(&self) -> u16 {
        self.url.rsplit_once(':').unwrap().1.parse().unwrap()
    }

    /// The URL with which clients log in.
    pub(crate) fn client_url(&self) -> String {
        format!("amqp://guest:guest@127.0.0.1:{}/%2F", self.port())
    }

    /// A client command that talks to this broker.
    pub(crate) fn client(&self, arguments: &[&str]) -> Leveret {
        leveret(arguments).env("LEVERET_URL", &self.client_url())
    }

    /// Runs a client command, which must succeed; gives its standard output.
    #[track_caller]
    pub(crate) fn ask(&self, arguments: &[&str]) -> String {
        let finished = self.client(arguments).run();
        assert_eq!(finished.code, Some(0), "{arguments:?}: {}", finished.stderr);
        finished.stdout
    }

    /// Kills it, as `kill -9` does.
    pub(crate) fn kill(self) {
        self.process.signal(Signal::KILL);
        assert_eq!(self.process.wait().code, None);
    }

    /// Stops it in good order.
    pub(crate) fn stop(self) -> Finished {
        self.process.signal(Signal::TERM);
        self.process.wait()
    }
}

/// What a process has printed so far on one of its outputs.
#[derive(Debug)]
pub(crate) struct Printed {
    shared: Arc<(Mutex<Text>, Condvar)>,
}

#[derive(Debug, Default)]
struct Text {
    text: String,
    has_ended: bool,
}

impl Printed {
    fn collect(output: impl Read + Send + 'static) -> Self {
        let shared = Arc::<(Mutex<Text>, Condvar)>::default();
        let theirs = Arc::clone(&shared);
        thread::spawn(move || {
            let mut output = BufReader::new(output);
            let mut line = Vec::new();
            loop {
                line.clear();
                let has_ended = !output.read_until(b'\n', &mut line).is_ok_and(|bytes| bytes > 0);
                let mut printed = theirs.0.lock().unwrap();
                printed.text.push_str(&String::from_utf8_lossy(&line));
                printed.has_ended = has_ended;
                theirs.1.notify_all();
                if has_ended {
                    break;
                }
            }
        });
        Printed { shared }
    }

    /// All that was printed so far.
    pub(crate) fn text(&self) -> String {
        self.shared.0.lock().unwrap().text.clone()
    }

    /// Waits until it contains `part`.
    #[track_caller]
    pub(crate) fn wait_for(&self, part: &str, what: &str) {
        let (printed, changed) = &*self.shared;
        let is_waiting = |printed: &mut Text| !printed.text.contains(part) && !printed.has_ended;
        let guard = printed.lock().unwrap();
        let (guard, _) = changed.wait_timeout_while(guard, DEADLINE, is_waiting).unwrap();
        let text = guard.text.clone();
        drop(guard);
        assert!(text.contains(part), "waited for {what}, and it printed: {text}");
    }

    /// Waits until the process has closed it, and gives all of it.
    fn wait_for_end(&self) -> String {
        let (printed, changed) = &*self.shared;
        let guard = printed.lock().unwrap();
        let (guard, _) = changed.wait_timeout_while(guard, DEADLINE, |printed| !printed.has_ended).unwrap();
        assert!(guard.has_ended, "the output is still open: {}", guard.text);
        guard.text.clone()
    }
}
