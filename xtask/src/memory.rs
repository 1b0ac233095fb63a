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
use crate::tally::{self, Step, Tally};
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

const STEPS: &[Step] = &[
    ("a backlog of a gibibyte stays below the limit and comes back in order", spill),
    ("a backlog that cannot be written out makes its publisher wait, and nobody else", hold),
];

/// Runs the steps, each with a broker of its own.
pub(crate) fn run(binary: &Path) -> Tally {
    tally::run_steps(STEPS, binary, &target().join("memory"))
}

/// Looks at the anonymous resident memory of a process again and again, and keeps the greatest.
pub(crate) struct Peak {
    process: u32,
    kib: Arc<AtomicU64>,
    stop: Arc<AtomicBool>,
    looking: Option<JoinHandle<()>>,
}

impl Peak {
    pub(crate) fn watch(process: u32) -> Self {
        let (kib, stop) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicBool::new(false)));
        let (peak, stopped) = (Arc::clone(&kib), Arc::clone(&stop));
        let looking = thread::spawn(move || {
            while !stopped.load(Ordering::Relaxed) {
                peak.fetch_max(anonymous_kib(process).unwrap_or_default(), Ordering::Relaxed);
                thread::sleep(LOOK_EVERY);
            }
        });
        Peak { process, kib, stop, looking: Some(looking) }
    }

    /// The greatest since the last time, in KiB.
    pub(crate) fn take(&self) -> u64 {
        let now = anonymous_kib(self.process).unwrap_or_default();
        self.kib.swap(0, Ordering::Relaxed).max(now)
    }
}

impl Drop for Peak {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        self.looking.take().map(JoinHandle::join);
    }
}

/// Starts a broker with a limit on memory.
pub(crate) fn start(binary: &Path, folder: &Path, storage: &[&str], limit_mib: u64) -> Result<Broker> {
    let limit = format!("{limit_mib}MiB");
    let options = [storage, &["--memory-limit", &limit]].concat();
    let options: Vec<_> = options.iter().map(AsRef::as_ref).collect();
    Broker::start_with(binary, &options, 0, &folder.join("broker.log"))
}

pub(crate) fn open(broker: &Broker) -> Result<Connection> {
    Ok(Connection::open(&broker.client_url().parse::<Url>()?)?)
}

/// A backlog of numbered messages in some durable queues, in turn.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Backlog {
    pub(crate) messages: u64,
    pub(crate) body_bytes: usize,
    pub(crate) queues: u64,
}

impl Backlog {
    fn queue(number: u64) -> String {
        format!("backlog-{number}")
    }

    pub(crate) fn declare(self, connection: &mut Connection, durable: bool) -> Result<()> {
        let mut channel = connection.open_channel()?;
        for number in 0..self.queues {
            channel.declare_queue(&Self::queue(number), &QueueOptions { durable, ..QueueOptions::default() })?;
        }
        Ok(channel.close()?)
    }

    /// Publishes all messages and waits for their confirms.
    pub(crate) fn fill(self, connection: &mut Connection, delivery_mode: u8) -> Result<()> {
        let mut channel = connection.open_channel()?;
        channel.confirm_select()?;
        let properties = BasicProperties { delivery_mode: Some(delivery_mode), ..BasicProperties::default() };
        let mut body = vec![7; self.body_bytes];
        let queues: Vec<_> = (0..self.queues).map(Self::queue).collect();
        let mut next = queues.iter().cycle();
        for number in 0..self.messages {
            body[..8].copy_from_slice(&number.to_le_bytes());
            let queue = next.next().context("a backlog has queues")?;
            channel.publish(PublishTo::queue(queue), &properties, &body)?;
            if number % 1000 == 0 {
                channel.wait_confirms(WINDOW)?;
            }
        }
        channel.wait_confirms(0)?;
        Ok(channel.close()?)
    }

    /// Takes all messages, which must come in the order of their queues and for the first time.
    pub(crate) fn drain(self, connection: &mut Connection) -> Result<()> {
        let mut channel = connection.open_channel()?;
        for number in 0..self.queues {
            channel.consume(
                &Self::queue(number),
                &ConsumeOptions { ack_mode: AckMode::Auto, ..ConsumeOptions::default() },
            )?;
        }
        let mut expected: Vec<_> = (0..self.queues).collect();
        for nth in 0..self.messages {
            let Some(ConsumerEvent::Delivery(delivery)) = channel.next_event(PATIENCE)? else {
                bail!("{nth} messages came, and no more");
            };
            let body = &delivery.message.body;
            let number = body.first_chunk().map_or(u64::MAX, |bytes| u64::from_le_bytes(*bytes));
            let queue = usize::try_from(number % self.queues)?;
            ensure!(number == expected[queue], "message {number} came, not {}", expected[queue]);
            ensure!(body.len() == self.body_bytes, "message {number} has {} bytes", body.len());
            ensure!(!delivery.redelivered, "message {number} came as redelivered");
            expected[queue] += self.queues;
        }
        Ok(channel.close()?)
    }
}

fn spill(binary: &Path, folder: &Path) -> Result<String> {
    let data = folder.join("data").display().to_string();
    let broker = start(binary, folder, &["--data-dir", &data], LIMIT_MIB)?;
    let peak = Peak::watch(broker.process_id());
    let mut connection = open(&broker)?;
    let backlog = Backlog { messages: MESSAGES, body_bytes: BODY_BYTES, queues: 1 };
    backlog.declare(&mut connection, true)?;
    let mut figures = Vec::new();
    let mut check = |what: &str, took: Duration| {
        let kib = peak.take();
        figures.push(format!("{what} {} MiB, {:.1} s", kib / 1024, took.as_secs_f64()));
        ensure!(kib <= CEILING_KIB, "{what} took {} MiB at a limit of {LIMIT_MIB}", kib / 1024);
        Ok(())
    };
    let started = Instant::now();
    backlog.fill(&mut connection, 2)?;
    check("filling", started.elapsed())?;
    let started = Instant::now();
    // Nothing happens now; what it kept, it keeps.
    thread::sleep(Duration::from_millis(200));
    check("idle", started.elapsed())?;
    let started = Instant::now();
    backlog.drain(&mut connection)?;
    check("draining", started.elapsed())?;
    connection.close()?;
    broker.stop()?;
    Ok(figures.join("; "))
}

fn hold(binary: &Path, folder: &Path) -> Result<String> {
    let backlog = Backlog { messages: 200_000, body_bytes: BODY_BYTES, queues: 1 };
    let broker = start(binary, folder, &["--in-memory"], LIMIT_MIB)?;
    let peak = Peak::watch(broker.process_id());
    let mut connection = open(&broker)?;
    backlog.declare(&mut connection, false)?;
    let mut publishing = open(&broker)?;
    // It waits longer than a client waits for an answer by itself.
    publishing.set_answer_timeout(PATIENCE);
    let publisher = thread::spawn(move || backlog.fill(&mut publishing, 1));
    let log = folder.join("broker.log");
    let deadline = Instant::now() + PATIENCE;
    while !fs::read_to_string(&log)?.contains("low on memory") {
        ensure!(Instant::now() < deadline, "the publisher was not held");
        thread::sleep(LOOK_EVERY);
    }
    let mut channel = connection.open_channel()?;
    let held = channel.check_queue(&Backlog::queue(0))?.message_count;
    ensure!(u64::from(held) < backlog.messages, "all {held} messages are in a queue that has no room for them");
    channel.close()?;
    let peak_kib = peak.take();
    ensure!(peak_kib <= CEILING_KIB, "{} MiB at a limit of {LIMIT_MIB}", peak_kib / 1024);
    backlog.drain(&mut connection)?;
    publisher.join().ok().context("the publisher panicked")??;
    ensure!(fs::read_to_string(&log)?.contains("enough memory again"), "the log does not say that it goes on");
    connection.close()?;
    broker.stop()?;
    Ok(format!("held at {held} messages and {} MiB, then all {} came", peak_kib / 1024, backlog.messages))
}
