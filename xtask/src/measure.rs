//! `cargo xtask measure`: how fast the release binary starts, and what memory it takes. Numbers, no verdict.

use std::fmt;
use std::fs;
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use rustix::process::{Resource, getrlimit, setrlimit};

use crate::broker::{self, Broker};
use crate::peer::Peer;
use crate::process::check_interrupted;
use crate::workspace::target;

const START_RUNS: usize = 20;
const CONNECTION_RUNS: usize = 5;
const CONNECTIONS: u32 = 1000;

/// Memory counts as settled once it has not changed for this long.
const SETTLED: Duration = Duration::from_millis(200);
const SETTLE_DEADLINE: Duration = Duration::from_secs(5);

pub(crate) fn run() -> Result<()> {
    let binary = broker::build()?;
    let binary_kib = fs::metadata(&binary)?.len() / 1024;
    raise_file_limit()?;

    let (mut start, mut idle) = (Samples::default(), [Samples::default(), Samples::default()]);
    for _ in 0..START_RUNS {
        let broker = start_broker(&binary)?;
        start.0.push(broker.start_took.as_secs_f64() * 1000.0);
        let memory = Memory::settled(&broker)?;
        idle[0].0.push(memory.resident_kib);
        idle[1].0.push(memory.anonymous_kib);
        broker.stop()?;
    }
    let mut growth = [Samples::default(), Samples::default()];
    for _ in 0..CONNECTION_RUNS {
        let broker = start_broker(&binary)?;
        let before = Memory::settled(&broker)?;
        let connections = connect_many(&broker)?;
        let after = Memory::settled(&broker)?;
        growth[0].0.push((after.resident_kib - before.resident_kib) / f64::from(CONNECTIONS));
        growth[1].0.push((after.anonymous_kib - before.anonymous_kib) / f64::from(CONNECTIONS));
        drop(connections);
        broker.stop()?;
    }

    println!("\n{:<46} {:>4} {:>9} {:>9} {:>9}", "", "runs", "min", "median", "max");
    println!("{:<46} {start}", "start to ready, ms");
    println!("{:<46} {}", "idle, resident (VmRSS), KiB", idle[0]);
    println!("{:<46} {}", "idle, anonymous (RssAnon), KiB", idle[1]);
    println!("{:<46} {}", format!("each of {CONNECTIONS} idle connections, VmRSS, KiB"), growth[0]);
    println!("{:<46} {}", format!("each of {CONNECTIONS} idle connections, RssAnon, KiB"), growth[1]);
    println!("{:<46} {:>4} {:>29}", "release binary, KiB", 1, binary_kib);
    Ok(())
}

fn start_broker(binary: &Path) -> Result<Broker> {
    check_interrupted()?;
    Broker::start(binary, 0, &target().join("measure.log"))
}

/// One figure of several runs.
#[derive(Debug, Default)]
struct Samples(Vec<f64>);

impl fmt::Display for Samples {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut sorted = self.0.clone();
        sorted.sort_by(f64::total_cmp);
        let (Some(min), Some(max)) = (sorted.first(), sorted.last()) else { return f.write_str("no runs") };
        let median = f64::midpoint(sorted[(sorted.len() - 1) / 2], sorted[sorted.len() / 2]);
        write!(f, "{:>4} {min:>9.1} {median:>9.1} {max:>9.1}", sorted.len())
    }
}

/// What a process has in memory.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Memory {
    resident_kib: f64,
    anonymous_kib: f64,
}

impl Memory {
    /// Once it no longer changes.
    fn settled(broker: &Broker) -> Result<Memory> {
        let started = Instant::now();
        let mut memory = Memory::now(broker)?;
        let mut since = started;
        while since.elapsed() < SETTLED && started.elapsed() < SETTLE_DEADLINE {
            thread::sleep(Duration::from_millis(10));
            let now = Memory::now(broker)?;
            if now != memory {
                (memory, since) = (now, Instant::now());
            }
        }
        Ok(memory)
    }

    fn now(broker: &Broker) -> Result<Memory> {
        let file = PathBuf::from(format!("/proc/{}/status", broker.process_id()));
        let status = fs::read_to_string(&file).with_context(|| format!("cannot read {}", file.display()))?;
        let field = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name));
            let number = line.and_then(|line| line.split_whitespace().next()?.parse().ok());
            number.with_context(|| format!("{} has no {name}", file.display()))
        };
        Ok(Memory { resident_kib: field("VmRSS:")?, anonymous_kib: field("RssAnon:")? })
    }
}

/// Each connection is an open file here, as it is in the broker.
pub(crate) fn raise_file_limit() -> Result<()> {
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    setrlimit(Resource::Nofile, limit).context("cannot raise the limit of open files")
}

fn connect_many(broker: &Broker) -> Result<Vec<TcpStream>> {
    let address = broker.url.trim_start_matches("amqp://");
    let connect = |number| {
        check_interrupted()?;
        let peer = Peer::connect(address).with_context(|| format!("connection {number} of {CONNECTIONS}"))?;
        Ok(peer.into_stream())
    };
    (1..=CONNECTIONS).map(connect).collect()
}
