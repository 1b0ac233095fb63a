//! `cargo xtask bench`: what the journal costs beside the bare disk, the broker beside the relay, and many bindings beside one. Only ratios within one run mean anything: each
//! round measures the disk and the broker one after the other, and its ratio is one sample.

use std::fmt;
use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use clap::ValueEnum;
use leveret_amqp::BasicProperties;
use leveret_client::{Connection, PublishTo, QueueOptions, Url};

use crate::backlog;
use crate::broker::{self, Broker};
use crate::routing;
use crate::scenarios;
use crate::workspace::target;

const ROUNDS: usize = 5;
const BODY_BYTES: usize = 1024;
/// What a message of that size takes in the journal beside its body, about.
const OVERHEAD_BYTES: usize = 100;
const WINDOW: usize = 1000;
const MESSAGES: usize = 20_000;
const SINGLES: usize = 200;
const QUEUES: usize = 10_000;

/// One figure of every round.
#[derive(Debug, Default)]
pub(crate) struct Samples(Vec<f64>);

impl Samples {
    pub(crate) fn push(&mut self, figure: f64) {
        self.0.push(figure);
    }

    pub(crate) fn median(&self) -> f64 {
        self.least_median_most()[1]
    }

    fn least_median_most(&self) -> [f64; 3] {
        let mut sorted = self.0.clone();
        sorted.sort_by(f64::total_cmp);
        [0, 1, 2].map(|part| sorted.get((sorted.len().max(1) - 1) * part / 2).copied().unwrap_or_default())
    }
}

impl fmt::Display for Samples {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [least, median, most] = self.least_median_most();
        write!(f, "{least:>10.3} {median:>10.3} {most:>10.3}")
    }
}

/// What is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Part {
    /// What the journal costs beside the bare disk
    Journal,
    /// Large backlogs: memory, speed, restart
    Backlog,
    /// Loads of `leveret perf` against the broker and the relay in turn
    Perf,
    /// Exchanges with many bindings, beside one with a single one and a naive scan
    Routing,
}

pub(crate) fn run(only: Option<Part>, with_peers: bool) -> Result<()> {
    let binary = broker::build()?;
    let is_wanted = |part| only.is_none_or(|only| only == part);
    if is_wanted(Part::Journal) {
        journal(&binary)?;
    }
    if is_wanted(Part::Perf) {
        scenarios::run(&binary, with_peers)?;
    }
    if is_wanted(Part::Routing) {
        routing::run(&binary)?;
    }
    if is_wanted(Part::Backlog) {
        backlog::run(&binary)?;
    }
    Ok(())
}

fn journal(binary: &Path) -> Result<()> {
    let folder = target().join("bench");
    // Of an earlier run.
    let _ = fs::remove_dir_all(&folder);
    fs::create_dir_all(&folder)?;
    let broker = Broker::start_on_disk(binary, &folder.join("data"), &folder.join("broker.log"))?;
    let url: Url = broker.client_url().parse()?;
    let mut connection = Connection::open(&url)?;
    let names = [
        "window 1: median confirm / median write and sync of the same bytes",
        "durable declare, one at a time: median / the same",
        "exclusive declare: median / the same",
        "window 1000: confirmed rate / (window / sync time of its bytes)",
        "window 1000: persistent rate / transient rate",
        "10,000 durable queues in turn: rate / rate of one",
        "bytes written / bytes of bodies, window 1000",
        "bare disk: ms to write and sync one message",
        "bare disk: ms to write and sync a window",
        "ms until one message is confirmed",
        "ms until an exclusive declare is answered: nothing but the way there and back",
    ];
    let mut samples: Vec<Samples> = names.iter().map(|_| Samples::default()).collect();
    declare_many(&mut connection)?;
    for round in 0..ROUNDS {
        let mut bare = Bare::make(&folder, BODY_BYTES + OVERHEAD_BYTES, 3 * SINGLES)?;
        let window = sync_time(&folder, WINDOW * (BODY_BYTES + OVERHEAD_BYTES), 20)?;
        let [confirm, one] = confirm_time(&mut connection, &mut bare)?;
        let [durable, beside_durable] =
            declare_time(&mut connection, &format!("durable-{round}"), true, &mut bare)?;
        let [exclusive, beside_exclusive] =
            declare_time(&mut connection, &format!("exclusive-{round}"), false, &mut bare)?;
        let before = written_bytes(&broker)?;
        let persistent = rate(&mut connection, 2, |_| "bench-0".into())?;
        let written = written_bytes(&broker)? - before;
        let transient = rate(&mut connection, 1, |_| "bench-0".into())?;
        let many = rate(&mut connection, 2, |nth| format!("bench-{}", nth % QUEUES))?;
        #[expect(clippy::cast_precision_loss, reason = "a ratio")]
        let figures = [
            confirm / one,
            durable / beside_durable,
            exclusive / beside_exclusive,
            persistent / (WINDOW as f64 / window),
            persistent / transient,
            many / persistent,
            written as f64 / (MESSAGES * BODY_BYTES) as f64,
            one * 1000.0,
            window * 1000.0,
            confirm * 1000.0,
            exclusive * 1000.0,
        ];
        samples.iter_mut().zip(figures).for_each(|(samples, figure)| samples.push(figure));
    }
    println!(
        "\n{:<72} {:>10} {:>10} {:>10}",
        format!("{ROUNDS} rounds, {BODY_BYTES} bytes"),
        "min",
        "median",
        "max"
    );
    for (name, samples) in names.iter().zip(&samples) {
        println!("{name:<72} {samples}");
    }
    connection.close()?;
    broker.stop()?;
    Ok(fs::remove_dir_all(&folder)?)
}

/// A file to which as many bytes are written and synced as the journal has to. They go where something was written before,
/// as in a segment that is used again: where nothing was, many file systems take longer.
struct Bare {
    file: File,
    block: Vec<u8>,
    written: u64,
}

impl Bare {
    /// With room for so many blocks.
    fn make(folder: &Path, bytes: usize, times: usize) -> Result<Self> {
        let path = folder.join("bare");
        let file = OpenOptions::new().create(true).truncate(true).write(true).open(&path)?;
        fs::remove_file(&path)?;
        file.write_all_at(&vec![1; bytes * times], 0)?;
        file.sync_all()?;
        Ok(Bare { file, block: vec![7; bytes], written: 0 })
    }

    /// Writes and syncs a block.
    fn sync(&mut self) -> Result<()> {
        self.file.write_all_at(&self.block, self.written)?;
        self.written += self.block.len() as u64;
        Ok(self.file.sync_data()?)
    }
}

/// Seconds that the disk needs to take so many bytes and sync them; the median.
pub(crate) fn sync_time(folder: &Path, bytes: usize, times: usize) -> Result<f64> {
    let mut bare = Bare::make(folder, bytes, times)?;
    let mut took = Vec::with_capacity(times);
    for _ in 0..times {
        took.push(timed(|| bare.sync())?);
    }
    Ok(median(took))
}

/// Seconds that a call takes, and seconds that a block takes on the bare disk; the medians. They are called in turn, as what
/// a disk needs changes from moment to moment, and is more after a pause than without one.
fn beside(bare: &mut Bare, mut call: impl FnMut(usize) -> Result<()>) -> Result<[f64; 2]> {
    let (mut calls, mut syncs) = (Vec::with_capacity(SINGLES), Vec::with_capacity(SINGLES));
    for nth in 0..SINGLES {
        calls.push(timed(|| call(nth))?);
        syncs.push(timed(|| bare.sync())?);
    }
    Ok([median(calls), median(syncs)])
}

fn timed(call: impl FnOnce() -> Result<()>) -> Result<Duration> {
    let started = Instant::now();
    call()?;
    Ok(started.elapsed())
}

/// Of some times, in seconds.
fn median(mut times: Vec<Duration>) -> f64 {
    times.sort();
    times.get(times.len() / 2).copied().unwrap_or(Duration::ZERO).as_secs_f64()
}

fn declare_many(connection: &mut Connection) -> Result<()> {
    let mut channel = connection.open_channel()?;
    for nth in 0..QUEUES {
        let options = QueueOptions { durable: true, ..QueueOptions::default() };
        channel.declare_queue(&format!("bench-{nth}"), &options)?;
    }
    Ok(channel.close()?)
}

fn confirm_time(connection: &mut Connection, bare: &mut Bare) -> Result<[f64; 2]> {
    let mut channel = connection.open_channel()?;
    channel.confirm_select()?;
    let properties = BasicProperties { delivery_mode: Some(2), ..BasicProperties::default() };
    let body = [7; BODY_BYTES];
    let took = beside(bare, |_| {
        channel.publish(PublishTo::queue("bench-0"), &properties, &body)?;
        channel.wait_confirms(0)?;
        Ok(())
    })?;
    channel.purge_queue("bench-0")?;
    channel.close()?;
    Ok(took)
}

fn declare_time(connection: &mut Connection, name: &str, durable: bool, bare: &mut Bare) -> Result<[f64; 2]> {
    let mut channel = connection.open_channel()?;
    let options = QueueOptions { durable, exclusive: !durable, ..QueueOptions::default() };
    let took = beside(bare, |nth| {
        channel.declare_queue(&format!("{name}-{nth}"), &options)?;
        Ok(())
    })?;
    channel.close()?;
    Ok(took)
}

/// Confirmed messages per second with a full window.
fn rate(connection: &mut Connection, delivery_mode: u8, queue: impl Fn(usize) -> String) -> Result<f64> {
    let mut channel = connection.open_channel()?;
    channel.confirm_select()?;
    let properties = BasicProperties { delivery_mode: Some(delivery_mode), ..BasicProperties::default() };
    let body = [7; BODY_BYTES];
    let started = Instant::now();
    for nth in 0..MESSAGES {
        channel.publish(PublishTo::queue(&queue(nth)), &properties, &body)?;
        channel.wait_confirms(WINDOW - 1)?;
    }
    channel.wait_confirms(0)?;
    let took = started.elapsed().as_secs_f64();
    for nth in 0..QUEUES {
        if nth == 0 || queue(1) != "bench-0" {
            channel.purge_queue(&format!("bench-{nth}"))?;
        }
    }
    channel.close()?;
    #[expect(clippy::cast_precision_loss, reason = "a rate")]
    Ok(MESSAGES as f64 / took)
}

/// Bytes that the broker has caused to be written to disk.
fn written_bytes(broker: &Broker) -> Result<u64> {
    let io = fs::read_to_string(format!("/proc/{}/io", broker.process_id()))?;
    let line = io.lines().find_map(|line| line.strip_prefix("write_bytes: "));
    line.context("/proc says nothing of bytes written")?.parse().context("a number of bytes")
}
