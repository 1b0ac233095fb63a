//! The suite `expiry`, and a part of `cargo xtask bench`: how late messages expire that lie anywhere in a long queue, and how
//! late delayed ones are routed of which many wait.
//!
//! All messages have an expiration or a delay of their own, in no order. Some of them are due while somebody waits for them; a
//! body says when that is. So what is measured is more than how late the broker is: the way of the message to it, through
//! the queue behind, and back.

use std::fs::{self, File};
use std::io::{self, Seek, Write};
use std::path::Path;
use std::sync::mpsc::{self, RecvTimeoutError, Sender};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Result, bail, ensure};
use leveret_amqp::{BasicProperties, FieldTable, Table, Value};
use leveret_client::{
    AckMode, Connection, ConsumeOptions, ConsumerEvent, ExchangeOptions, PublishTo, QueueOptions,
};

use crate::memory::{Peak, open, start};
use crate::tally::{self, Step, Tally};
use crate::workspace::target;

pub(crate) const SUITE: &str = "expiry";

/// What messages wait for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Way {
    /// To expire in a queue, and to be dead-lettered from there.
    Expire,
    /// For an exchange of type `x-delayed-message` to route them.
    Delay,
}

/// How many messages wait, and how many of them are waited for.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Pending {
    pub(crate) way: Way,
    pub(crate) messages: u64,
    pub(crate) due: u64,
    /// When the first of those is due, after the beginning; by then all must be published.
    pub(crate) first_due: Duration,
    /// The last, so much later.
    pub(crate) due_within: Duration,
    pub(crate) limit_mib: u64,
}

/// What a test waits for, at most; the stated bound is 100 ms.
const LATE_MAX: Duration = Duration::from_millis(500);
const LONG_MS: u64 = 600_000;
const BODY_BYTES: usize = 32;
const WINDOW: usize = 5000;
const PATIENCE: Duration = Duration::from_mins(1);
const SYNC_EVERY: Duration = Duration::from_millis(20);

const STEPS: &[Step] = &[
    ("messages expire on time, wherever they lie in a long queue", expire_in_time),
    ("delayed messages are routed on time, however many wait", are_routed_in_time),
];

/// Runs the suite with a broker of its own.
pub(crate) fn run(binary: &Path) -> Tally {
    tally::run_steps(STEPS, binary, &target().join("expiry"))
}

fn expire_in_time(binary: &Path, _folder: &Path) -> Result<String> {
    in_time(binary, Way::Expire)
}

fn are_routed_in_time(binary: &Path, _folder: &Path) -> Result<String> {
    in_time(binary, Way::Delay)
}

fn in_time(binary: &Path, way: Way) -> Result<String> {
    let (first_due, due_within) = (Duration::from_secs(8), Duration::from_secs(10));
    let lateness =
        measure(binary, Pending { way, messages: 300_000, due: 3000, first_due, due_within, limit_mib: 64 })?;
    ensure!(lateness.greatest < LATE_MAX, "one was {:?} late", lateness.greatest);
    Ok(lateness.to_string())
}

/// How late messages came.
#[derive(Debug)]
pub(crate) struct Lateness {
    pending: Pending,
    median: Duration,
    most: Duration,
    greatest: Duration,
    /// What the broker worked for each of them while they were due.
    cpu_each: Duration,
    peak_mib: u64,
    /// How long the disk took meanwhile to write and sync 4 KiB for somebody else, at most. A message comes no sooner from a disk.
    slowest_sync: Duration,
}

impl std::fmt::Display for Lateness {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let ms = |time: Duration| time.as_secs_f64() * 1000.0;
        let Pending { messages, due, limit_mib, .. } = self.pending;
        write!(
            f,
            "{due} of {messages} were due, and came within {:.1} ms (median), {:.1} ms (99 of 100), {:.1} ms (all), \
             for {:.1} us of the processor each; at most {} MiB at a limit of {limit_mib}; the slowest sync of the disk \
             meanwhile took {:.1} ms",
            ms(self.median),
            ms(self.most),
            ms(self.greatest),
            ms(self.cpu_each) * 1000.0,
            self.peak_mib,
            ms(self.slowest_sync)
        )
    }
}

/// Fills a queue, waits for those that are due, and tells how late they came.
pub(crate) fn measure(binary: &Path, pending: Pending) -> Result<Lateness> {
    let folder = target().join("expiry");
    let _ = fs::remove_dir_all(&folder);
    let data = folder.join("data").display().to_string();
    let broker = start(binary, &folder, &["--data-dir", &data], pending.limit_mib)?;
    let peak = Peak::watch(broker.process_id());
    let mut publishing = open(&broker)?;
    let mut consuming = open(&broker)?;
    declare(&mut publishing, pending.way)?;
    let started = Instant::now();
    fill(&mut publishing, pending, started)?;
    ensure!(started.elapsed() < pending.first_due, "publishing took {:?}, longer than expected", started.elapsed());
    let mut channel = consuming.open_channel()?;
    channel.consume("arrived", &ConsumeOptions { ack_mode: AckMode::Auto, ..ConsumeOptions::default() })?;
    let (mut late, mut worked, mut syncs) = (Vec::new(), Duration::ZERO, None);
    for nth in 0..pending.due {
        let Some(ConsumerEvent::Delivery(delivery)) = channel.next_event(pending.first_due + PATIENCE)? else {
            bail!("{nth} messages came, and no more");
        };
        if nth == 0 {
            worked = broker.cpu_time()?;
            syncs = Some(Syncs::begin(&folder)?);
        }
        let due_ms = delivery.message.body.first_chunk().map_or(0, |bytes| u64::from_le_bytes(*bytes));
        let now = started.elapsed();
        // The broker counts from when it gets the message, so none can be early; but for a clock that counts milliseconds.
        let Some(lateness) = (now + Duration::from_millis(1)).checked_sub(Duration::from_millis(due_ms)) else {
            bail!("a message that is due after {due_ms} ms came after {now:?}");
        };
        late.push(lateness);
    }
    let slowest_sync = syncs.map_or(Ok(Duration::ZERO), Syncs::slowest)?;
    let cpu_each = broker.cpu_time()?.saturating_sub(worked) / u32::try_from(pending.due)?;
    channel.close()?;
    let peak_mib = peak.take() / 1024;
    publishing.close()?;
    consuming.close()?;
    broker.stop()?;
    fs::remove_dir_all(&folder)?;
    late.sort_unstable();
    let at = |part: usize| late.get((late.len() - 1) * part / 100).copied().unwrap_or_default();
    Ok(Lateness { pending, median: at(50), most: at(99), greatest: at(100), cpu_each, peak_mib, slowest_sync })
}

/// Somebody who writes a little to the disk of a folder now and then, and waits until it is synced.
struct Syncs {
    end: Sender<()>,
    syncing: JoinHandle<io::Result<Duration>>,
}

impl Syncs {
    fn begin(folder: &Path) -> io::Result<Self> {
        let mut file = File::create(folder.join("syncs"))?;
        let (end, ended) = mpsc::channel();
        let syncing = thread::spawn(move || {
            let mut slowest = Duration::ZERO;
            while ended.recv_timeout(SYNC_EVERY) == Err(RecvTimeoutError::Timeout) {
                file.rewind()?;
                let begun = Instant::now();
                file.write_all(&[1; 4096])?;
                file.sync_data()?;
                slowest = slowest.max(begun.elapsed());
            }
            Ok(slowest)
        });
        Ok(Syncs { end, syncing })
    }

    fn slowest(self) -> Result<Duration> {
        drop(self.end);
        let Ok(slowest) = self.syncing.join() else { bail!("the thread that syncs has ended early") };
        Ok(slowest?)
    }
}

fn declare(connection: &mut Connection, way: Way) -> Result<()> {
    let mut channel = connection.open_channel()?;
    channel.declare_queue("arrived", &QueueOptions { durable: true, ..QueueOptions::default() })?;
    match way {
        Way::Expire => {
            let arguments = FieldTable::build(|table| {
                table
                    .field("x-dead-letter-exchange", Value::LongStr(b""))
                    .field("x-dead-letter-routing-key", Value::LongStr(b"arrived"));
            });
            let arguments = arguments.as_table();
            channel
                .declare_queue("pending", &QueueOptions { durable: true, arguments, ..QueueOptions::default() })?;
        }
        Way::Delay => {
            let arguments = FieldTable::build(|table| _ = table.field("x-delayed-type", Value::LongStr(b"fanout")));
            let arguments = arguments.as_table();
            let options = ExchangeOptions { durable: true, arguments, ..ExchangeOptions::default() };
            channel.declare_exchange("pending", "x-delayed-message", &options)?;
            channel.bind_queue("arrived", "pending", "", Table::EMPTY)?;
        }
    }
    Ok(channel.close()?)
}

fn fill(connection: &mut Connection, pending: Pending, started: Instant) -> Result<()> {
    let mut channel = connection.open_channel()?;
    channel.confirm_select()?;
    let first_due_ms = u64::try_from(pending.first_due.as_millis())?;
    let due_within_ms = u64::try_from(pending.due_within.as_millis())?;
    let mut body = [0; BODY_BYTES];
    for number in 0..pending.messages {
        // Scattered, the same in every run.
        let chance = number.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 32;
        let is_due = number % (pending.messages / pending.due) == 0
            && number / (pending.messages / pending.due) < pending.due;
        let now_ms = u64::try_from(started.elapsed().as_millis())?;
        let due_ms =
            if is_due { first_due_ms + chance % due_within_ms } else { now_ms + LONG_MS + chance % LONG_MS };
        body[..8].copy_from_slice(&due_ms.to_le_bytes());
        let wait_ms = due_ms.saturating_sub(now_ms);
        let persistent = BasicProperties { delivery_mode: Some(2), ..BasicProperties::default() };
        match pending.way {
            Way::Expire => {
                let expiration = wait_ms.to_string();
                let properties = BasicProperties { expiration: Some(expiration.as_bytes()), ..persistent };
                channel.publish(PublishTo::queue("pending"), &properties, &body)?;
            }
            Way::Delay => {
                let delay = Value::I64(wait_ms.cast_signed());
                let headers = FieldTable::build(|table| _ = table.field("x-delay", delay));
                let properties = BasicProperties { headers: Some(headers.as_table()), ..persistent };
                let exchange = PublishTo { exchange: "pending", ..PublishTo::queue("") };
                channel.publish(exchange, &properties, &body)?;
            }
        }
        if number % 1000 == 0 {
            channel.wait_confirms(WINDOW)?;
        }
    }
    channel.wait_confirms(0)?;
    Ok(channel.close()?)
}
