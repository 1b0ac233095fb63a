//! Watching over a run: what its threads say, how far it is, Ctrl-C, and the deadline that nothing may exceed.
//!
//! Invariant: a wait ends when its condition holds, when a thread fails, or when nothing has moved for the time that a
//! broker is given; then the whole run is given up.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread;
use std::time::{Duration, Instant};

use leveret_client::{Connection, Error, Interrupt, Url};

use crate::board::{Board, Totals};
use crate::failure::{Failure, Unfinished};
use crate::limits::{LAST_PATIENCE, LOOK_UP, SAMPLE_INTERVAL, SAMPLES_MAX};
use crate::report::Outcome;
use crate::verify::Refused;

/// What a run gets from outside.
pub struct Run<'a> {
    pub(crate) url: Url,
    pub(crate) interrupted: Arc<AtomicBool>,
    pub(crate) timeout: Duration,
    watcher: &'a mut dyn FnMut(&Progress),
}

impl<'a> Run<'a> {
    /// A run against the broker at `url`, which ends early when `interrupted` is set, and fails when the broker makes no
    /// progress for `timeout`. `watcher` hears how far it is, several times a second.
    ///
    /// Connections have no heartbeats, whatever the URL says: the timeout takes their place.
    pub fn new(
        url: Url,
        interrupted: Arc<AtomicBool>,
        timeout: Duration,
        watcher: &'a mut dyn FnMut(&Progress),
    ) -> Self {
        Run { url: Url { heartbeat: Some(0), ..url }, interrupted, timeout, watcher }
    }

    /// Whether the user wants the run to end early.
    pub(crate) fn is_interrupted(&self) -> bool {
        self.interrupted.load(Ordering::Relaxed)
    }

    /// Ends the wait of a connection soon after the user wants that, but leaves the broker some time for an answer.
    pub(crate) fn interrupt(&self) -> Interrupt {
        Interrupt::new(Arc::clone(&self.interrupted), LAST_PATIENCE)
    }

    /// Makes sure that there is a broker which lets us in, unless the user has had enough before.
    pub(crate) fn check_broker(&self) -> Result<(), Failure> {
        let (tell, told) = channel();
        let url = self.url.clone();
        // Not a scoped thread: whoever has had enough does not wait until a host is found or a line is up.
        thread::spawn(move || {
            // Nobody listens any more after that.
            let _ = tell.send(Connection::open(&url).and_then(Connection::close));
        });
        loop {
            match told.recv_timeout(LOOK_UP) {
                Ok(result) => return Ok(result?),
                Err(RecvTimeoutError::Timeout) if self.is_interrupted() => return Err(Failure::Interrupted),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return Err(Error::Disconnected.into()),
            }
        }
    }
}

/// How far a run is.
#[derive(Clone, Copy, Debug, Default)]
pub struct Progress {
    /// Time since the load began.
    pub elapsed: Duration,
    /// What is counted where nothing is published, for example `cycles`.
    pub instead_of_published: Option<&'static str>,
    /// Publishes so far; with other loads, what is counted there.
    pub published: u64,
    /// Of them, those that were confirmed.
    pub confirmed: u64,
    /// Messages that arrived so far.
    pub received: u64,
    /// Publishes a second of late.
    pub publish_rate: f64,
    /// Arrivals a second of late.
    pub receive_rate: f64,
    /// How long the broker has held publishes back with `connection.blocked`, in all.
    pub held: Duration,
    /// Whether it does so now.
    pub is_held: bool,
    /// How much of how much is done, if the end is known.
    pub done: Option<(u64, u64)>,
}

/// Rates of a short time.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sample {
    /// The end of that time, in seconds since the load began.
    pub seconds: f64,
    /// Publishes a second.
    pub publish_rate: f64,
    /// Arrivals a second.
    pub receive_rate: f64,
}

/// What a thread tells whoever watches.
#[derive(Debug)]
pub(crate) enum News {
    /// It is connected, and its consumers are started.
    Ready,
    /// What the broker refused of a producer's messages, if it did.
    Refused(Refused),
    /// A producer is done, and sent so many messages.
    ProducerEnded { index: usize, sent: u64 },
    /// A consumer is done.
    ConsumerEnded,
    /// It cannot go on.
    Failed { of: String, error: Error },
}

/// What threads have said so far.
#[derive(Debug, Default)]
pub(crate) struct Tally {
    pub(crate) ready: usize,
    pub(crate) consumers_ended: usize,
    /// For each producer that ended, its index and how much it sent.
    pub(crate) sent: Vec<(usize, u64)>,
    pub(crate) refused: Refused,
}

/// Who watches.
pub(crate) struct Supervisor<'r, 'a> {
    run: &'r mut Run<'a>,
    board: &'r Board,
    news: Receiver<News>,
    pub(crate) tally: Tally,
    pub(crate) interrupted: bool,
    interrupted_at: Option<Instant>,
    /// What is counted where nothing is published.
    pub(crate) instead_of_published: Option<&'static str>,
    start_ns: u64,
    /// What is the end: messages to arrive or publish, or time.
    goal: Option<Goal>,
    samples: Samples,
    moved_at: Instant,
    steps: u64,
}

/// When a run is complete, as far as somebody who watches can see.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Goal {
    Published(u64),
    Received(u64),
    Time(Duration),
}

impl<'r, 'a> Supervisor<'r, 'a> {
    pub(crate) fn new(run: &'r mut Run<'a>, board: &'r Board) -> (Self, Sender<News>) {
        let (sender, news) = channel();
        let supervisor = Supervisor {
            run,
            board,
            news,
            tally: Tally::default(),
            interrupted: false,
            interrupted_at: None,
            instead_of_published: None,
            start_ns: 0,
            goal: None,
            samples: Samples::default(),
            moved_at: Instant::now(),
            steps: 0,
        };
        (supervisor, sender)
    }

    /// The load begins now.
    pub(crate) fn start(&mut self, goal: Option<Goal>) {
        self.start_ns = self.board.now_ns();
        self.goal = goal;
    }

    pub(crate) fn start_ns(&self) -> u64 {
        self.start_ns
    }

    fn has_started(&self) -> bool {
        self.start_ns > 0
    }

    pub(crate) fn url(&self) -> Url {
        self.run.url.clone()
    }

    /// Set when the user wants the run to end early.
    pub(crate) fn interrupted_flag(&self) -> Arc<AtomicBool> {
        Arc::clone(&self.run.interrupted)
    }

    /// Rates count until now.
    pub(crate) fn end_samples(&mut self) {
        self.samples.have_ended = true;
    }

    pub(crate) fn take_samples(&mut self) -> Vec<Sample> {
        std::mem::take(&mut self.samples.taken)
    }

    /// Ends the wait of a connection soon after the user wants that.
    pub(crate) fn interrupt(&self) -> Interrupt {
        self.run.interrupt()
    }

    /// The end of a run that failed, with what it measured if its load had begun.
    pub(crate) fn unfinished(&self, failure: Failure, outcome: Outcome) -> Unfinished {
        Unfinished { failure, outcome: self.has_started().then(|| Box::new(outcome)) }
    }

    /// Waits until `is_over`. `what` names what is missing, for the failure.
    pub(crate) fn watch(
        &mut self,
        what: impl Fn(&Totals) -> String,
        mut is_over: impl FnMut(&Totals, &Tally) -> bool,
    ) -> Result<(), Failure> {
        self.moved_at = Instant::now();
        loop {
            let totals = self.board.totals();
            if is_over(&totals, &self.tally) {
                self.show(&totals);
                return Ok(());
            }
            self.show(&totals);
            if !self.interrupted && self.run.is_interrupted() {
                self.interrupted = true;
                if !self.has_started() {
                    self.board.give_up();
                    return Err(Failure::Interrupted);
                }
                self.board.end_producers();
                self.moved_at = Instant::now();
                self.interrupted_at = Some(self.moved_at);
            }
            match self.news.recv_timeout(LOOK_UP) {
                Ok(news) => self.handle_news(news)?,
                Err(RecvTimeoutError::Timeout) => {}
                // Everybody has gone, which is the end or the deadline finds out.
                Err(RecvTimeoutError::Disconnected) => thread::sleep(LOOK_UP),
            }
            if std::mem::replace(&mut self.steps, totals.steps()) != totals.steps() {
                self.moved_at = Instant::now();
            }
            let after = if self.interrupted { self.run.timeout.min(LAST_PATIENCE) } else { self.run.timeout };
            if self.moved_at.elapsed() >= after {
                self.board.give_up();
                return Err(if totals.is_held {
                    Failure::Held { after }
                } else {
                    Failure::Stalled { what: what(&totals), after }
                });
            }
            if self.interrupted_at.is_some_and(|then| then.elapsed() >= LAST_PATIENCE) {
                self.board.end_patience();
            }
        }
    }

    /// Waits for so long, in which nothing need move, unless the user has enough.
    pub(crate) fn hold(&mut self, time: Duration) -> Result<(), Failure> {
        let end = Instant::now() + time;
        while Instant::now() < end && !self.run.is_interrupted() {
            self.show(&self.board.totals());
            match self.news.recv_timeout(LOOK_UP) {
                Ok(news) => self.handle_news(news)?,
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => thread::sleep(LOOK_UP),
            }
        }
        self.interrupted |= self.run.is_interrupted();
        Ok(())
    }

    fn handle_news(&mut self, news: News) -> Result<(), Failure> {
        self.moved_at = Instant::now();
        match news {
            News::Ready => self.tally.ready += 1,
            News::Refused(refused) => self.tally.refused.add(&refused),
            News::ProducerEnded { index, sent } => self.tally.sent.push((index, sent)),
            News::ConsumerEnded => self.tally.consumers_ended += 1,
            News::Failed { of, error } => {
                self.board.give_up();
                return Err(Failure::Connection { of, error });
            }
        }
        Ok(())
    }

    fn show(&mut self, totals: &Totals) {
        let elapsed = Duration::from_nanos(self.board.now_ns().saturating_sub(self.start_ns));
        if !self.has_started() || !self.samples.handle(elapsed, totals) {
            return;
        }
        let millis = |time: Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
        let done = self.goal.map(|goal| match goal {
            Goal::Published(count) => (totals.published.min(count), count),
            Goal::Received(count) => (totals.received.min(count), count),
            Goal::Time(time) => (millis(elapsed.min(time)), millis(time)),
        });
        (self.run.watcher)(&Progress {
            elapsed,
            instead_of_published: self.instead_of_published,
            published: totals.published,
            confirmed: totals.confirmed,
            received: totals.received,
            publish_rate: self.samples.publish_rate,
            receive_rate: self.samples.receive_rate,
            held: Duration::from_nanos(totals.held_ns),
            is_held: totals.is_held,
            done,
        });
    }
}

/// Rates over time: a point for each interval, which doubles when there are too many.
#[derive(Debug)]
struct Samples {
    taken: Vec<Sample>,
    interval: Duration,
    have_ended: bool,
    /// The last point: when, and what had been published and received.
    last: (Duration, u64, u64),
    publish_rate: f64,
    receive_rate: f64,
    shown: Duration,
    recent: (Duration, u64, u64),
}

impl Default for Samples {
    fn default() -> Self {
        Samples {
            taken: Vec::new(),
            interval: SAMPLE_INTERVAL,
            have_ended: false,
            last: (Duration::ZERO, 0, 0),
            publish_rate: 0.0,
            receive_rate: 0.0,
            shown: Duration::ZERO,
            recent: (Duration::ZERO, 0, 0),
        }
    }
}

impl Samples {
    /// `true` when there is something new to show.
    fn handle(&mut self, elapsed: Duration, totals: &Totals) -> bool {
        let now = (elapsed, totals.published, totals.received);
        if self.have_ended || elapsed < self.shown + SAMPLE_INTERVAL {
            return false;
        }
        self.shown = elapsed;
        (self.publish_rate, self.receive_rate) = rates(self.recent, now);
        self.recent = now;
        if elapsed >= self.last.0 + self.interval {
            let (publish_rate, receive_rate) = rates(self.last, now);
            self.taken.push(Sample { seconds: elapsed.as_secs_f64(), publish_rate, receive_rate });
            self.last = now;
        }
        if self.taken.len() > SAMPLES_MAX {
            self.interval *= 2;
            self.taken = self.taken.chunks(2).map(joined).collect();
        }
        true
    }
}

fn rates(from: (Duration, u64, u64), to: (Duration, u64, u64)) -> (f64, f64) {
    let seconds = to.0.saturating_sub(from.0);
    (rate(to.1.saturating_sub(from.1), seconds), rate(to.2.saturating_sub(from.2), seconds))
}

/// One point for two neighbours of about the same length.
fn joined(pair: &[Sample]) -> Sample {
    let [first, second] = pair else { return pair[0] };
    Sample {
        seconds: second.seconds,
        publish_rate: f64::midpoint(first.publish_rate, second.publish_rate),
        receive_rate: f64::midpoint(first.receive_rate, second.receive_rate),
    }
}

/// So many a second; 0 when no time went by.
pub(crate) fn rate(count: u64, time: Duration) -> f64 {
    #[expect(clippy::cast_precision_loss, reason = "a rate is shown with a few digits")]
    let count = count as f64;
    if time.is_zero() { 0.0 } else { count / time.as_secs_f64() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_over_time_stay_few_and_keep_their_mean() {
        let mut samples = Samples::default();
        for step in 1..=10_000_u32 {
            let totals = Totals { published: u64::from(step) * 10, received: u64::from(step), ..Totals::default() };
            assert!(samples.handle(SAMPLE_INTERVAL * step, &totals));
        }
        assert!(samples.taken.len() <= SAMPLES_MAX && samples.taken.len() > SAMPLES_MAX / 2);
        for sample in &samples.taken {
            assert!((sample.publish_rate - 50.0).abs() < 1e-6 && (sample.receive_rate - 5.0).abs() < 1e-6);
        }
    }
}
