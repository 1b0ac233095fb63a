//! A client that asks and one that answers, who have nothing to do with the load; and a thread that only sleeps, to know how
//! late one is on this machine whatever the broker does.
//!
//! Owns: the requests of the pair, how long each took, and what is too long.
//! Must not know: the load.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use leveret_client::{
    AckMode, BasicProperties, Connection, ConsumeOptions, ConsumerEvent, PublishTo, QueueOptions,
};

use super::{PATIENCE, connect};

/// A request is due so often. Its latency counts from there, so what is held up while one waits is in the figures, too.
const DUE_EVERY: Duration = Duration::from_millis(10);

const QUEUE: &str = "witness";
const REPLIES: &str = "amq.rabbitmq.reply-to";

/// How often the one who answers looks whether it is over.
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// How long the thread sleeps that only sleeps.
const NAP: Duration = Duration::from_millis(5);

/// How long the pair may wait, at the 99th percentile and ever.
#[derive(Clone, Copy, Debug)]
pub(super) struct Waits {
    pub(super) p99: Duration,
    pub(super) max: Duration,
}

/// Times of one kind, sorted.
#[derive(Clone, Debug, Default)]
struct Latencies(Vec<Duration>);

/// What the pair and the sleeper have measured.
#[derive(Clone, Debug, Default)]
pub(super) struct Measured {
    /// From when a request was due to its answer.
    requests: Latencies,
    /// How much longer naps were than they should be.
    naps: Latencies,
}

impl Measured {
    fn sort(&mut self) {
        self.requests.0.sort_unstable();
        self.naps.0.sort_unstable();
    }

    /// Fails if they waited for longer than they may, which is said of what is stated and of how late is who only sleeps.
    pub(super) fn check(
        &self,
        waits: Waits,
        may_wait: impl Fn(Duration, Duration) -> Result<Duration>,
    ) -> Result<()> {
        for (what, percent, stated) in [("p99", 99, waits.p99), ("max", 100, waits.max)] {
            let took = self.requests.percentile(percent);
            let may_take = may_wait(stated, self.naps.percentile(percent))?;
            ensure!(
                took <= may_take,
                "the unrelated pair was starved: {what} {took:.1?}, at most {may_take:.1?} here"
            );
        }
        Ok(())
    }

    pub(super) fn figures(&self, waits: Waits) -> String {
        let naps = &self.naps;
        let [nap_p99, nap_max] =
            [naps.percentile(99), naps.percentile(100)].map(|time| time.as_secs_f64() * 1000.0);
        format!(
            "unrelated requests {} (who only sleeps is late by p99 {nap_p99:.1} ms, max {nap_max:.1} ms)",
            self.requests.figures(waits)
        )
    }
}

impl Latencies {
    /// Of sorted ones.
    fn percentile(&self, percent: usize) -> Duration {
        let at = (self.0.len() * percent).div_ceil(100).saturating_sub(1);
        self.0.get(at).copied().unwrap_or_default()
    }

    fn figures(&self, waits: Waits) -> String {
        let ms = |percent| self.percentile(percent).as_secs_f64() * 1000.0;
        format!(
            "{}: p50 {:.1} ms, p99 {:.1} ms of {:?}, max {:.1} ms of {:?}",
            self.0.len(),
            ms(50),
            ms(99),
            waits.p99,
            ms(100),
            waits.max
        )
    }
}

/// They, until their end.
pub(super) struct Pair {
    is_over: Arc<AtomicBool>,
    measured: Arc<Mutex<Measured>>,
    threads: Vec<JoinHandle<Result<()>>>,
}

impl Pair {
    /// Once the first answer is there.
    pub(super) fn start(url: &str) -> Result<Self> {
        let url = format!("{url}?heartbeat=0");
        let (is_over, measured) = (Arc::new(AtomicBool::new(false)), Arc::<Mutex<Measured>>::default());
        let answered = Arc::new(AtomicU64::new(0));
        let mut answering = connect(&url)?;
        answering
            .open_channel()?
            .declare_queue(QUEUE, &QueueOptions { auto_delete: true, ..QueueOptions::default() })?;
        let mut asking = connect(&url)?;
        let over = Arc::clone(&is_over);
        let answer_thread = thread::spawn(move || answer(&mut answering, &over));
        let (over, results, count) = (Arc::clone(&is_over), Arc::clone(&measured), Arc::clone(&answered));
        let ask_thread = thread::spawn(move || {
            let asked = ask(&mut asking, &over, &results, &count);
            // The other one need not wait for more.
            over.store(true, Ordering::Relaxed);
            asked
        });
        let (over, results) = (Arc::clone(&is_over), Arc::clone(&measured));
        let nap_thread = thread::spawn(move || {
            nap(&over, &results);
            Ok(())
        });
        let mut pair = Pair { is_over, measured, threads: vec![ask_thread, answer_thread, nap_thread] };
        let deadline = Instant::now() + PATIENCE;
        while answered.load(Ordering::Relaxed) == 0 {
            if pair.is_over.load(Ordering::Relaxed) {
                pair.end()?;
            }
            ensure!(Instant::now() < deadline, "the unrelated pair has no answer");
            thread::sleep(Duration::from_millis(1));
        }
        Ok(pair)
    }

    pub(super) fn so_far(&self, waits: Waits) -> String {
        let mut measured = self.measured.lock().unwrap_or_else(PoisonError::into_inner).clone();
        measured.sort();
        measured.figures(waits)
    }

    /// Ends them, and gives what they have measured.
    pub(super) fn end(&mut self) -> Result<Measured> {
        self.is_over.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            thread.join().ok().context("one of the unrelated pair panicked")??;
        }
        let mut measured = std::mem::take(&mut *self.measured.lock().unwrap_or_else(PoisonError::into_inner));
        ensure!(!measured.requests.0.is_empty(), "the unrelated pair has measured nothing");
        measured.sort();
        Ok(measured)
    }
}

impl Drop for Pair {
    fn drop(&mut self) {
        self.is_over.store(true, Ordering::Relaxed);
    }
}

fn answer(connection: &mut Connection, is_over: &AtomicBool) -> Result<()> {
    let mut channel = connection.open_channel()?;
    channel.consume(QUEUE, &ConsumeOptions { ack_mode: AckMode::Auto, ..ConsumeOptions::default() })?;
    while !is_over.load(Ordering::Relaxed) {
        let Some(ConsumerEvent::Delivery(request)) = channel.next_event(LOOK_EVERY)? else { continue };
        let properties = request.message.properties();
        let reply_to = properties.reply_to.context("a request says where the reply goes")?;
        let to = PublishTo { routing_key: std::str::from_utf8(reply_to)?, ..PublishTo::default() };
        channel.publish(to, &BasicProperties::default(), &request.message.body)?;
        channel.flush()?;
    }
    Ok(())
}

fn ask(
    connection: &mut Connection,
    is_over: &AtomicBool,
    measured: &Mutex<Measured>,
    answered: &AtomicU64,
) -> Result<()> {
    let mut channel = connection.open_channel()?;
    channel.consume(REPLIES, &ConsumeOptions { ack_mode: AckMode::Auto, ..ConsumeOptions::default() })?;
    let mut due = Instant::now();
    let mut number = 0_u64;
    while !is_over.load(Ordering::Relaxed) {
        thread::sleep(due.saturating_duration_since(Instant::now()));
        number += 1;
        let properties = BasicProperties { reply_to: Some(REPLIES.as_bytes()), ..BasicProperties::default() };
        channel.publish(PublishTo::queue(QUEUE), &properties, &number.to_le_bytes())?;
        channel.flush()?;
        let event = channel.next_event(PATIENCE)?;
        let Some(ConsumerEvent::Delivery(reply)) = event else {
            anyhow::bail!("there is no answer to request {number}, but {event:?}");
        };
        ensure!(reply.message.body == number.to_le_bytes(), "the answer to request {number} is that to another");
        measured.lock().unwrap_or_else(PoisonError::into_inner).requests.0.push(due.elapsed());
        answered.store(number, Ordering::Relaxed);
        due += DUE_EVERY;
    }
    // Those that were due and not even sent have waited, too.
    while due < Instant::now() {
        measured.lock().unwrap_or_else(PoisonError::into_inner).requests.0.push(due.elapsed());
        due += DUE_EVERY;
    }
    Ok(())
}

fn nap(is_over: &AtomicBool, measured: &Mutex<Measured>) {
    while !is_over.load(Ordering::Relaxed) {
        let started = Instant::now();
        thread::sleep(NAP);
        let late = started.elapsed().saturating_sub(NAP);
        measured.lock().unwrap_or_else(PoisonError::into_inner).naps.0.push(late);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ms(times: impl IntoIterator<Item = u64>) -> Latencies {
        Latencies(times.into_iter().map(Duration::from_millis).collect())
    }

    #[test]
    fn percentiles_are_those_of_all() {
        assert_eq!(Latencies::default().percentile(99), Duration::ZERO);
        let latencies = ms(1..=100);
        let at = |percent| latencies.percentile(percent).as_millis();
        assert_eq!((at(50), at(99), at(100)), (50, 99, 100));
    }

    #[test]
    fn one_request_that_waits_too_long_is_enough() {
        let waits = Waits { p99: Duration::from_millis(50), max: Duration::from_millis(500) };
        let check = |requests| {
            let mut measured = Measured { requests, naps: ms([3]) };
            measured.sort();
            measured.check(waits, |stated, late| Ok(stated * 2 + late)).map_err(|error| error.to_string())
        };
        assert_eq!(check(ms([103; 200])), Ok(()));
        assert!(check(ms([104; 200])).unwrap_err().contains("p99 104.0ms, at most 103.0ms"));
        assert_eq!(check(ms([1003].into_iter().chain([1; 200]))), Ok(()));
        assert!(check(ms([1004].into_iter().chain([1; 200]))).unwrap_err().contains("max 1.0s, at most 1.0s"));
    }
}
