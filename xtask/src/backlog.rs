//! The part of `cargo xtask bench` with many messages: what they take in memory, how fast they come back from disk, how
//! long a restart takes.

use std::fs;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use crate::expiry::{self, Pending, Way};
use crate::memory::{Backlog, Peak, open, start};
use crate::workspace::target;

/// More memory than any of the backlogs takes that are to stay there.
const ROOMY_MIB: u64 = 8 * 1024;

/// Bytes on disk that have to be free, beside twice those of a backlog.
const SPARE_BYTES: u64 = 4 * 1024 * 1024 * 1024;

/// How long a broker with a backlog is left alone.
const IDLE: Duration = Duration::from_secs(1);

/// What one fill and one drain took.
struct Figures {
    fill_seconds: f64,
    drain_seconds: f64,
    /// While filling, idle, and draining.
    peak_mib: [u64; 3],
    restart_seconds: f64,
}

pub(crate) fn run(binary: &Path) -> Result<()> {
    println!("\n{:<44} {:>10} {:>10} {:>26}", "", "fill, s", "drain, s", "fill / idle / drain, MiB");
    let one = Backlog { messages: 1_000_000, body_bytes: 1024, queues: 1 };
    let many = Backlog { queues: 1000, ..one };
    for (name, backlog) in [("1 queue", one), ("1,000 queues in turn", many)] {
        let memory = measure(binary, backlog, ROOMY_MIB, false)?;
        let disk = measure(binary, backlog, 64, false)?;
        row(&format!("1,000,000 x 1 KiB, {name}, in memory"), &memory);
        row(&format!("1,000,000 x 1 KiB, {name}, at 64 MiB"), &disk);
        println!(
            "    drained from disk at {:.2} of the rate from memory",
            memory.drain_seconds / disk.drain_seconds
        );
    }
    let large = Backlog { messages: 10_000_000, body_bytes: 1024, queues: 1 };
    let free = free_bytes()?;
    let needed = 2 * large.messages * large.body_bytes as u64 + SPARE_BYTES;
    if free < needed {
        println!("SKIPPED: 10,000,000 x 1 KiB needs {} MiB of free disk, and {} are", needed >> 20, free >> 20);
    } else {
        row("10,000,000 x 1 KiB, 1 queue, at 256 MiB", &measure(binary, large, 256, false)?);
    }
    for messages in [1_000_000, 10_000_000] {
        let backlog = Backlog { messages, body_bytes: 100, queues: 1 };
        let figures = measure(binary, backlog, 256, true)?;
        println!("restart with {messages} ready messages of 100 bytes: {:.2} s", figures.restart_seconds);
    }
    let (due, first_due, due_within) = (10_000, Duration::from_mins(3), Duration::from_secs(10));
    let few = Pending { way: Way::Expire, messages: 10_000_000, due, first_due, due_within, limit_mib: 256 };
    let (due, first_due, due_within) = (1_000_000, Duration::from_secs(20), Duration::from_mins(2));
    let all = Pending { way: Way::Delay, messages: due, due, first_due, due_within, limit_mib: 64 };
    for pending in [few, Pending { way: Way::Delay, ..few }, all] {
        println!("{:?}: {}", pending.way, expiry::measure(binary, pending)?);
    }
    Ok(())
}

fn row(name: &str, figures: &Figures) {
    let Figures { fill_seconds, drain_seconds, peak_mib: [fill, idle, drain], .. } = figures;
    let peaks = format!("{fill} / {idle} / {drain}");
    println!("{name:<44} {fill_seconds:>10.2} {drain_seconds:>10.2} {peaks:>26}");
}

fn measure(binary: &Path, backlog: Backlog, limit_mib: u64, restarts: bool) -> Result<Figures> {
    let folder = target().join("bench-backlog");
    let _ = fs::remove_dir_all(&folder);
    let data = folder.join("data").display().to_string();
    let storage = ["--data-dir", &data];
    let mut broker = start(binary, &folder, &storage, limit_mib)?;
    let mut connection = open(&broker)?;
    let peak = Peak::watch(broker.process_id());
    backlog.declare(&mut connection, true)?;
    let started = Instant::now();
    backlog.fill(&mut connection, 2)?;
    let fill_seconds = started.elapsed().as_secs_f64();
    let mut peak_mib = [peak.take() / 1024, 0, 0];
    connection.close()?;
    let mut restart_seconds = 0.0;
    if restarts {
        broker.stop()?;
        broker = start(binary, &folder, &storage, limit_mib)?;
        restart_seconds = broker.start_took.as_secs_f64();
    }
    let peak = Peak::watch(broker.process_id());
    let mut connection = open(&broker)?;
    thread::sleep(IDLE);
    peak_mib[1] = peak.take() / 1024;
    let started = Instant::now();
    backlog.drain(&mut connection)?;
    let drain_seconds = started.elapsed().as_secs_f64();
    peak_mib[2] = peak.take() / 1024;
    connection.close()?;
    broker.stop()?;
    fs::remove_dir_all(&folder)?;
    Ok(Figures { fill_seconds, drain_seconds, peak_mib, restart_seconds })
}

fn free_bytes() -> Result<u64> {
    let found = rustix::fs::statvfs(target()).context("cannot tell how much disk is free")?;
    Ok(found.f_bavail * found.f_frsize)
}
