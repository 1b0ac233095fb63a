//! More messages than are consumed.
//!
//! Owns: producers that do not stop, a consumer that cannot follow, a backlog that does not fit; and that they were that.
//! Must not know: how a connection goes wrong.

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use leveret_client::{BasicProperties, ConsumeOptions, ConsumerEvent, PublishTo};

use super::ledger::{Ledger, Stamp};
use super::stage::Stage;
use super::{DURABLE, LIMIT_MIB, LONG_SECONDS, PERSISTENT, QUEUE, body_bytes, connect, drain};
use crate::memory::Backlog;
use crate::process::check_interrupted;

const LOOK_EVERY: Duration = Duration::from_millis(20);

/// A producer that does not stop has a place in its window of confirms again within this time, and a consumer its next
/// message.
const SERVED_WITHIN: Duration = Duration::from_secs(1);

const PRODUCERS: usize = 10;

/// What each of them publishes: as much as the disk has room for in a minute, and many times what the consumer takes.
const PER_SECOND: u32 = 20_000;

/// How many times as much must be published as is consumed, or it was no overload.
const OVERLOAD: usize = 10;

/// Bytes of bodies that there must have been, or they would have fitted.
const TOO_MANY_BYTES: u64 = LIMIT_MIB * 1024 * 1024 / 2 * 3;

/// Where memory comes to at least while there are so many: bodies begin to go to disk at half the limit.
const PRESSED_MIB: u64 = LIMIT_MIB / 5 * 2;

/// Ten producers publish two hundred times as much as one consumer takes, who needs a millisecond for each message.
pub(super) fn overload(stage: &mut Stage, time: Duration) -> Result<String> {
    const PACE: Duration = Duration::from_millis(1);
    let url = stage.url();
    connect(&url)?.open_channel()?.declare_queue(QUEUE, &DURABLE)?;
    let ledger = Mutex::new(Ledger::new(PRODUCERS));
    let mut received = Ledger::new(PRODUCERS);
    let (is_over, confirmed) = (AtomicBool::new(false), AtomicU64::new(0));
    let body_bytes = body_bytes(usize::try_from(u64::from(PER_SECOND) * time.as_secs())? * PRODUCERS);
    let (waits, consumed, filled_in, lasted) = thread::scope(|scope| {
        let (url, is_over, confirmed, ledger) = (&url, &is_over, &confirmed, &ledger);
        let producer = |producer| produce(url, producer, body_bytes, is_over, confirmed, ledger);
        let producers: Vec<_> = (0..PRODUCERS).map(|nth| scope.spawn(move || producer(nth))).collect();
        let consumer = scope.spawn(|| consume_slowly(url, PACE, is_over, &mut received));
        let started = Instant::now();
        // A slow machine has more time for as much.
        let filled_in = stage.wait_until("more to be confirmed than fits", time, || {
            let bytes = confirmed.load(Ordering::Relaxed) * body_bytes as u64;
            Ok(bytes >= TOO_MANY_BYTES || consumer.is_finished())
        });
        while started.elapsed() < time && !consumer.is_finished() && check_interrupted().is_ok() {
            thread::sleep(LOOK_EVERY);
        }
        let lasted = started.elapsed();
        is_over.store(true, Ordering::Relaxed);
        let consumed = consumer.join().ok().context("the consumer panicked")??;
        let waits: Result<Vec<_>> =
            producers.into_iter().map(|producer| producer.join().ok().context("a producer panicked")?).collect();
        Ok::<_, anyhow::Error>((waits?, consumed, filled_in?, lasted))
    })?;
    check_interrupted()?;
    let waited = waits.into_iter().max().unwrap_or_default();
    let waited = stage.check_time("the longest wait of a producer for confirms", waited, SERVED_WITHIN)?;
    let starved = stage.check_time("the longest wait of the consumer", consumed.longest_wait, SERVED_WITHIN)?;
    let (due, consumed) = (usize::try_from(lasted.as_nanos() / PACE.as_nanos())?, consumed.count);
    stage.check_count("messages came to the consumer", consumed, due)?;
    let peak_mib = stage.take_peak_mib();
    ensure!(
        peak_mib >= PRESSED_MIB,
        "memory came to {peak_mib} MiB only, {PRESSED_MIB} at least would have been a load"
    );
    let mut ledger = ledger.into_inner().ok().context("somebody panicked")?;
    let shares = stage.check_shares("confirmed of each producer", ledger.confirmed_of_each())?;
    let started = Instant::now();
    let drained = drain(&url, &mut received)?;
    let drained_in = stage.check_time("the drain", started.elapsed(), time)?;
    ledger.add(received);
    let sums = ledger.check()?;
    let rate = sums.confirmed as u128 * 1000 / lasted.as_millis().max(1);
    let times = sums.confirmed / consumed.max(1);
    stage.check_count("confirmed for who consumes a tenth of it", sums.confirmed, OVERLOAD * consumed)?;
    Ok(format!(
        "{} of {body_bytes} bytes confirmed ({rate}/s, {times} times what was consumed), more than fits after {filled_in}, in at most \
         {peak_mib} MiB; {shares} of {PRODUCERS}, who waited for at most {waited}; {consumed} consumed of {due} due, with waits of \
         at most {starved}; then {drained} more in {drained_in}; none lost",
        sums.confirmed
    ))
}

/// Publishes numbered messages with confirms until it is over, and gives how long it has waited for room in its window.
fn produce(
    url: &str,
    producer: usize,
    body_bytes: usize,
    is_over: &AtomicBool,
    confirmed_of_all: &AtomicU64,
    ledger: &Mutex<Ledger>,
) -> Result<Duration> {
    const WINDOW: usize = 1000;
    const BATCH: usize = WINDOW / 2;
    yield_to_others();
    let mut connection = connect(url)?;
    let mut channel = connection.open_channel()?;
    channel.confirm_select()?;
    let properties = BasicProperties { delivery_mode: Some(PERSISTENT), ..BasicProperties::default() };
    let mut body = vec![b'x'; body_bytes];
    let mut confirmed = Vec::new();
    let (mut number, mut longest_wait) = (0, Duration::ZERO);
    let mut is_last = false;
    let mut due = Instant::now();
    while !is_last {
        is_last = is_over.load(Ordering::Relaxed);
        thread::sleep(due.saturating_duration_since(Instant::now()));
        due += Duration::from_secs(BATCH as u64) / PER_SECOND;
        let started = Instant::now();
        for _ in 0..BATCH {
            Stamp { producer, number }.write(&mut body);
            channel.publish(PublishTo::queue(QUEUE), &properties, &body)?;
            number += 1;
        }
        let more = channel.wait_confirms(if is_last { 0 } else { WINDOW })?;
        let count: u64 = more.iter().map(|confirm| confirm.last + 1 - confirm.first).sum();
        confirmed_of_all.fetch_add(count, Ordering::Relaxed);
        confirmed.extend(more);
        longest_wait = longest_wait.max(started.elapsed());
    }
    ensure!(channel.take_returned().is_none(), "a message came back");
    let count = ledger.lock().ok().context("somebody panicked")?.confirmed(producer, 0, &confirmed)?;
    ensure!(count == number, "of {number} messages of producer {producer}, {count} are confirmed");
    Ok(longest_wait)
}

/// Lets the broker, and the unrelated pair, have the processor first: this load would come from other machines, and is not
/// what is measured. It is a pity where the system does not want that, and no more.
fn yield_to_others() {
    let _ = rustix::process::nice(10);
}

/// What came to a consumer.
struct Consumed {
    count: usize,
    longest_wait: Duration,
}

/// Takes messages in manual mode, each in its turn of `pace`.
fn consume_slowly(url: &str, pace: Duration, is_over: &AtomicBool, ledger: &mut Ledger) -> Result<Consumed> {
    let mut connection = connect(url)?;
    let mut channel = connection.open_channel()?;
    channel.qos(50)?;
    channel.consume(QUEUE, &ConsumeOptions::default())?;
    let (mut due, mut since) = (Instant::now(), Instant::now());
    let mut consumed = Consumed { count: 0, longest_wait: Duration::ZERO };
    while !is_over.load(Ordering::Relaxed) {
        let event = channel.next_event(LOOK_EVERY)?;
        consumed.longest_wait = consumed.longest_wait.max(since.elapsed());
        let Some(ConsumerEvent::Delivery(delivery)) = event else { continue };
        since = Instant::now();
        ledger.delivered(&delivery.message.body, delivery.redelivered)?;
        channel.ack(delivery.delivery_tag)?;
        channel.flush()?;
        consumed.count += 1;
        due += pace;
        thread::sleep(due.saturating_duration_since(Instant::now()));
    }
    channel.close()?;
    connection.close()?;
    Ok(consumed)
}

/// So many messages that they do not fit, drained in order.
pub(super) fn backlog(stage: &mut Stage, time: Duration) -> Result<String> {
    const WHOLE: u64 = 5_000_000;
    let time = time.min(Duration::from_secs(LONG_SECONDS));
    let messages = WHOLE * time.as_secs() / LONG_SECONDS;
    let backlog = Backlog { messages, body_bytes: body_bytes(usize::try_from(messages)?), queues: 1 };
    let mut connection = connect(&stage.url())?;
    backlog.declare(&mut connection, true)?;
    let started = Instant::now();
    backlog.fill(&mut connection, PERSISTENT)?;
    let filled_in = stage.check_time("to fill it", started.elapsed(), time)?;
    let fill_mib = stage.take_peak_mib();
    let started = Instant::now();
    backlog.drain(&mut connection)?;
    let drained_in = stage.check_time("to drain it", started.elapsed(), time)?;
    let drain_mib = stage.take_peak_mib();
    connection.close()?;
    Ok(format!(
        "{messages} messages of {} bytes filled in {filled_in} ({fill_mib} MiB), drained in order in {drained_in} ({drain_mib} MiB)",
        backlog.body_bytes
    ))
}
