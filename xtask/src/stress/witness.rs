//! A client that asks and one that answers, who have nothing to do with the load; and a thread that only sleeps, to know how
//! late one is on this machine whatever the broker does.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use leveret_client::{
    AckMode, BasicProperties, Connection, ConsumeOptions, ConsumerEvent, PublishTo, QueueOptions, Url,
};

use super::PATIENCE;

/// A request is due so often. Its latency counts from there, so what is held up while one waits is in the figures, too.
const DUE_EVERY: Duration = Duration::from_millis(10);

const QUEUE: &str = "witness";
const REPLIES: &str = "amq.rabbitmq.reply-to";

/// How often the one who answers looks whether it is over.
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// How long the thread sleeps that only sleeps.
const NAP: Duration = Duration::from_millis(5);

/// Times of one kind, sorted.
#[derive(Clone, Debug, Default)]
pub(super) struct Latencies(Vec<Duration>);

/// What the pair and the sleeper have measured.
#[derive(Clone, Debug, Default)]
pub(super) struct Measured {
    /// From when a request was due to its answer.
    pub(super) requests: Latencies,
    /// How much longer naps were than they should be.
    pub(super) naps: Latencies,
}

impl Measured {
    pub(super) fn add(&mut self, more: Measured) {
        self.requests.add(more.requests);
        self.naps.add(more.naps);
    }

    pub(super) fn figures(&self) -> String {
        let naps = &self.naps;
        let [nap_p99, nap_max] =
            [naps.percentile(99), naps.percentile(100)].map(|time| time.as_secs_f64() * 1000.0);
        format!(
            "unrelated requests {} (who only sleeps is late by p99 {nap_p99:.1} ms, max {nap_max:.1} ms)",
            self.requests.figures()
        )
    }
}

impl Latencies {
    fn add(&mut self, more: Latencies) {
        self.0.extend(more.0);
        self.0.sort_unstable();
    }

    /// Of latencies that were added.
    pub(super) fn percentile(&self, percent: usize) -> Duration {
        let at = (self.0.len() * percent).div_ceil(100).saturating_sub(1);
        self.0.get(at).copied().unwrap_or_default()
    }

    fn figures(&self) -> String {
        let ms = |percent| self.percentile(percent).as_secs_f64() * 1000.0;
        format!("{}: p50 {:.1} ms, p99 {:.1} ms, max {:.1} ms", self.0.len(), ms(50), ms(99), ms(100))
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
        let url: Url = format!("{url}?heartbeat=0").parse()?;
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

    pub(super) fn so_far(&self) -> String {
        let mut sorted = Measured::default();
        sorted.add(self.measured.lock().unwrap_or_else(PoisonError::into_inner).clone());
        sorted.figures()
    }

    /// Ends them, and gives what they have measured.
    pub(super) fn end(&mut self) -> Result<Measured> {
        self.is_over.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            thread.join().ok().context("one of the unrelated pair panicked")??;
        }
        let measured = std::mem::take(&mut *self.measured.lock().unwrap_or_else(PoisonError::into_inner));
        ensure!(!measured.requests.0.is_empty(), "the unrelated pair has measured nothing");
        Ok(measured)
    }
}

impl Drop for Pair {
    fn drop(&mut self) {
        self.is_over.store(true, Ordering::Relaxed);
    }
}

fn connect(url: &Url) -> Result<Connection> {
    let mut connection = Connection::open(url)?;
    connection.set_answer_timeout(PATIENCE);
    Ok(connection)
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

    #[test]
    fn percentiles_are_those_of_all_that_was_added() {
        let mut latencies = Latencies::default();
        let ms = |range: std::ops::RangeInclusive<u64>| Latencies(range.rev().map(Duration::from_millis).collect());
        assert_eq!(latencies.percentile(99), Duration::ZERO);
        latencies.add(ms(51..=100));
        latencies.add(ms(1..=50));
        let at = |percent| latencies.percentile(percent).as_millis();
        assert_eq!((at(50), at(99), at(100)), (50, 99, 100));
    }
}
