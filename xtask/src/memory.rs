//! The suite `memory`: the release binary below its limit on memory, with more messages than fit.

use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use leveret_amqp::BasicProperties;
use leveret_client::{AckMode, Connection, ConsumeOptions, ConsumerEvent, PublishTo, QueueOptions, Url};

use crate::broker::{Broker, anonymous_kib};
use crate::tally::Tally;
use crate::workspace::target;

pub(crate) const SUITE: &str = "memory";

const LIMIT_MIB: u64 = 64;
/// What the issue of a limit is: the process stays below it and a tenth.
const CEILING_KIB: u64 = LIMIT_MIB * 1024 / 10 * 11;
const MESSAGES: u64 = 1_000_000;
const BODY_BYTES: usize = 1024;
const WINDOW: usize = 5000;
const PATIENCE: Duration = Duration::from_mins(1);
const LOOK_EVERY: Duration = Duration::from_millis(5);

type Step = fn(&Path, &Path) -> Result<String>;

const STEPS: &[(&str, Step)] = &[
    ("a backlog of a gibibyte stays below the limit and comes back in order", spill),
    ("a backlog that cannot be written out makes its publisher wait, and nobody else", hold),
];

/// Runs the steps, each with a broker of its own.
pub(crate) fn run(binary: &Path) -> Tally {
    let folder = target().join("memory");
    let mut tally = Tally::default();
    for (name, step) in STEPS {
        let _ = fs::remove_dir_all(&folder);
        tally += match step(binary, &folder) {
            Ok(figures) => {
                println!("ok {name}: {figures}");
                Tally::PASSED
            }
            Err(error) => {
                println!("not ok {name}: {error:#}");
                Tally::FAILED
            }
        };
    }
    let _ = fs::remove_dir_all(&folder);
    tally
}

/// Looks at the anonymous resident memory of a process again and again, and keeps the greatest.
struct Peak {
    kib: Arc<AtomicU64>,
    stop: Arc<AtomicBool>,
    looking: Option<JoinHandle<()>>,
}

impl Peak {
    fn watch(process: u32) -> Self {
        let (kib, stop) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicBool::new(false)));
        let (peak, stopped) = (Arc::clone(&kib), Arc::clone(&stop));
        let looking = thread::spawn(move || {
            while !stopped.load(Ordering::Relaxed) {
                peak.fetch_max(anonymous_kib(process).unwrap_or_default(), Ordering::Relaxed);
                thread::sleep(LOOK_EVERY);
            }
        });
        Peak { kib, stop, looking: Some(looking) }
    }

    /// The greatest since the last time.
    fn take(&self) -> u64 {
        self.kib.swap(0, Ordering::Relaxed)
    }
}

impl Drop for Peak {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        self.looking.take().map(JoinHandle::join);
    }
}

fn start(binary: &Path, folder: &Path, storage: &[&str]) -> Result<Broker> {
    let limit = format!("{LIMIT_MIB}MiB");
    let options = [storage, &["--memory-limit", &limit]].concat();
    let options: Vec<_> = options.iter().map(AsRef::as_ref).collect();
    Broker::start_with(binary, &options, 0, &folder.join("broker.log"))
}

fn open(broker: &Broker) -> Result<Connection> {
    Ok(Connection::open(&broker.client_url().parse::<Url>()?)?)
}

/// Publishes numbered messages and waits for their confirms.
fn fill(connection: &mut Connection, count: u64, delivery_mode: u8) -> Result<()> {
    let mut channel = connection.open_channel()?;
    channel.confirm_select()?;
    let properties = BasicProperties { delivery_mode: Some(delivery_mode), ..BasicProperties::default() };
    let mut body = vec![7; BODY_BYTES];
    for number in 0..count {
        body[..8].copy_from_slice(&number.to_le_bytes());
        channel.publish(PublishTo::queue("backlog"), &properties, &body)?;
        if number % 1000 == 0 {
            channel.wait_confirms(WINDOW)?;
        }
    }
    channel.wait_confirms(0)?;
    Ok(channel.close()?)
}

/// Takes numbered messages, which must come in order and for the first time.
fn drain(connection: &mut Connection, count: u64) -> Result<()> {
    let mut channel = connection.open_channel()?;
    channel.consume("backlog", &ConsumeOptions { ack_mode: AckMode::Auto, ..ConsumeOptions::default() })?;
    for number in 0..count {
        let Some(ConsumerEvent::Delivery(delivery)) = channel.next_event(PATIENCE)? else {
            bail!("message {number} did not come");
        };
        let found = delivery.message.body.first_chunk().map(|bytes| u64::from_le_bytes(*bytes));
        ensure!(
            found == Some(number) && delivery.message.body.len() == BODY_BYTES,
            "message {number} came as {found:?}"
        );
        ensure!(!delivery.redelivered, "message {number} came as redelivered");
    }
    Ok(channel.close()?)
}

fn declare(connection: &mut Connection, durable: bool) -> Result<()> {
    let mut channel = connection.open_channel()?;
    channel.declare_queue("backlog", &QueueOptions { durable, ..QueueOptions::default() })?;
    Ok(channel.close()?)
}

fn spill(binary: &Path, folder: &Path) -> Result<String> {
    let data = folder.join("data").display().to_string();
    let broker = start(binary, folder, &["--data-dir", &data])?;
    let peak = Peak::watch(broker.process_id());
    let mut connection = open(&broker)?;
    declare(&mut connection, true)?;
    let mut figures = Vec::new();
    let mut check = |what: &str, took: Duration| {
        let kib = peak.take();
        figures.push(format!("{what} {} MiB, {:.1} s", kib / 1024, took.as_secs_f64()));
        ensure!(kib <= CEILING_KIB, "{what} took {} MiB at a limit of {LIMIT_MIB}", kib / 1024);
        Ok(())
    };
    let started = Instant::now();
    fill(&mut connection, MESSAGES, 2)?;
    check("filling", started.elapsed())?;
    let started = Instant::now();
    // Nothing happens now; what it kept, it keeps.
    thread::sleep(Duration::from_millis(200));
    check("idle", started.elapsed())?;
    let started = Instant::now();
    drain(&mut connection, MESSAGES)?;
    check("draining", started.elapsed())?;
    connection.close()?;
    broker.stop()?;
    Ok(figures.join("; "))
}

fn hold(binary: &Path, folder: &Path) -> Result<String> {
    const COUNT: u64 = 200_000;
    let broker = start(binary, folder, &["--in-memory"])?;
    let peak = Peak::watch(broker.process_id());
    let mut connection = open(&broker)?;
    declare(&mut connection, false)?;
    let mut publishing = open(&broker)?;
    // It waits longer than a client waits for an answer by itself.
    publishing.set_answer_timeout(PATIENCE);
    let publisher = thread::spawn(move || fill(&mut publishing, COUNT, 1));
    let log = folder.join("broker.log");
    let deadline = Instant::now() + PATIENCE;
    while !fs::read_to_string(&log)?.contains("low on memory") {
        ensure!(Instant::now() < deadline, "the publisher was not held");
        thread::sleep(LOOK_EVERY);
    }
    let mut channel = connection.open_channel()?;
    let held = channel.check_queue("backlog")?.message_count;
    ensure!(u64::from(held) < COUNT, "all {held} messages are in a queue that has no room for them");
    channel.close()?;
    let peak_kib = peak.take();
    ensure!(peak_kib <= CEILING_KIB, "{} MiB at a limit of {LIMIT_MIB}", peak_kib / 1024);
    drain(&mut connection, COUNT)?;
    publisher.join().ok().context("the publisher panicked")??;
    ensure!(fs::read_to_string(&log)?.contains("enough memory again"), "the log does not say that it goes on");
    connection.close()?;
    broker.stop()?;
    Ok(format!("held at {held} messages and {} MiB, then all {COUNT} came", peak_kib / 1024))
}
