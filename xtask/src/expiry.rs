//! The suite `expiry`, and a part of `cargo xtask bench`: how late messages expire that lie anywhere in a long queue.
//!
//! All messages have an expiration of their own, in no order. A few of them expire while somebody waits for them as dead
//! letters; a body says when it is due. So what is measured is more than how late the broker is: the way of the message
//! to it, through the dead letter queue, and back.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Result, bail, ensure};
use leveret_amqp::{BasicProperties, FieldTable, Value};
use leveret_client::{AckMode, Connection, ConsumeOptions, ConsumerEvent, PublishTo, QueueOptions};

use crate::memory::{Peak, open, start};
use crate::tally::{self, Step, Tally};
use crate::workspace::target;

pub(crate) const SUITE: &str = "expiry";

/// How many messages wait, and how many of them are waited for.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Pending {
    pub(crate) messages: u64,
    pub(crate) due: u64,
    /// When the first of those is due, after the beginning; by then all must be published.
    pub(crate) first_due: Duration,
    pub(crate) limit_mib: u64,
}

/// What a test waits for, at most; the stated bound is 100 ms.
const LATE_MAX: Duration = Duration::from_millis(500);
const DUE_WITHIN_MS: u64 = 10_000;
const LONG_MS: u64 = 600_000;
const BODY_BYTES: usize = 32;
const WINDOW: usize = 5000;
const PATIENCE: Duration = Duration::from_mins(1);

const STEPS: &[Step] = &[("messages expire on time, wherever they lie in a long queue", in_time)];

/// Runs the suite with a broker of its own.
pub(crate) fn run(binary: &Path) -> Tally {
    tally::run_steps(STEPS, binary, &target().join("expiry"))
}

fn in_time(binary: &Path, _folder: &Path) -> Result<String> {
    let first_due = Duration::from_secs(8);
    let lateness = measure(binary, Pending { messages: 300_000, due: 3000, first_due, limit_mib: 64 })?;
    ensure!(lateness.greatest < LATE_MAX, "one was {:?} late", lateness.greatest);
    Ok(lateness.to_string())
}

/// How late dead letters came.
#[derive(Debug)]
pub(crate) struct Lateness {
    pending: Pending,
    median: Duration,
    most: Duration,
    greatest: Duration,
    peak_mib: u64,
}

impl std::fmt::Display for Lateness {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let ms = |time: Duration| time.as_secs_f64() * 1000.0;
        let Pending { messages, due, limit_mib, .. } = self.pending;
        write!(
            f,
            "{due} of {messages} were due, and came within {:.1} ms (median), {:.1} ms (99 of 100), {:.1} ms (all); at most \
             {} MiB at a limit of {limit_mib}",
            ms(self.median),
            ms(self.most),
            ms(self.greatest),
            self.peak_mib
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
    declare(&mut publishing)?;
    let started = Instant::now();
    fill(&mut publishing, pending, started)?;
    ensure!(started.elapsed() < pending.first_due, "publishing took {:?}, longer than expected", started.elapsed());
    let mut channel = consuming.open_channel()?;
    channel.consume("dead", &ConsumeOptions { ack_mode: AckMode::Auto, ..ConsumeOptions::default() })?;
    let mut late = Vec::new();
    for nth in 0..pending.due {
        let Some(ConsumerEvent::Delivery(delivery)) = channel.next_event(pending.first_due + PATIENCE)? else {
            bail!("{nth} dead letters came, and no more");
        };
        let due_ms = delivery.message.body.first_chunk().map_or(0, |bytes| u64::from_le_bytes(*bytes));
        let now = started.elapsed();
        // The broker counts from when it gets the message, so none can be early; but for a clock that counts milliseconds.
        let Some(lateness) = (now + Duration::from_millis(1)).checked_sub(Duration::from_millis(due_ms)) else {
            bail!("a message that is due after {due_ms} ms came after {now:?}");
        };
        late.push(lateness);
    }
    channel.close()?;
    let peak_mib = peak.take() / 1024;
    publishing.close()?;
    consuming.close()?;
    broker.stop()?;
    fs::remove_dir_all(&folder)?;
    late.sort_unstable();
    let at = |part: usize| late.get((late.len() - 1) * part / 100).copied().unwrap_or_default();
    Ok(Lateness { pending, median: at(50), most: at(99), greatest: at(100), peak_mib })
}

fn declare(connection: &mut Connection) -> Result<()> {
    let mut channel = connection.open_channel()?;
    channel.declare_queue("dead", &QueueOptions { durable: true, ..QueueOptions::default() })?;
    let arguments = FieldTable::build(|table| {
        table
            .field("x-dead-letter-exchange", Value::LongStr(b""))
            .field("x-dead-letter-routing-key", Value::LongStr(b"dead"));
    });
    let options = QueueOptions { durable: true, arguments: arguments.as_table(), ..QueueOptions::default() };
    channel.declare_queue("pending", &options)?;
    Ok(channel.close()?)
}

fn fill(connection: &mut Connection, pending: Pending, started: Instant) -> Result<()> {
    let mut channel = connection.open_channel()?;
    channel.confirm_select()?;
    let first_due_ms = u64::try_from(pending.first_due.as_millis())?;
    let mut body = [0; BODY_BYTES];
    for number in 0..pending.messages {
        // Scattered, the same in every run.
        let chance = number.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 32;
        let is_due = number % (pending.messages / pending.due) == 0
            && number / (pending.messages / pending.due) < pending.due;
        let now_ms = u64::try_from(started.elapsed().as_millis())?;
        let due_ms =
            if is_due { first_due_ms + chance % DUE_WITHIN_MS } else { now_ms + LONG_MS + chance % LONG_MS };
        body[..8].copy_from_slice(&due_ms.to_le_bytes());
        let expiration = due_ms.saturating_sub(now_ms).to_string();
        let properties = BasicProperties {
            delivery_mode: Some(2),
            expiration: Some(expiration.as_bytes()),
            ..BasicProperties::default()
        };
        channel.publish(PublishTo::queue("pending"), &properties, &body)?;
        if number % 1000 == 0 {
            channel.wait_confirms(WINDOW)?;
        }
    }
    channel.wait_confirms(0)?;
    Ok(channel.close()?)
}
