//! Loads of producers and consumers: what most scenarios are made of.
//!
//! Owns: which threads there are, in which order they begin and end, and what is expected of them.
//! Must not know: what a scenario is called, and how its outcome is shown.

use std::collections::BTreeMap;
use std::sync::atomic::Ordering;
use std::sync::mpsc::Sender;
use std::thread;
use std::time::Duration;

use leveret_client::{BasicProperties, Connection, Error, Url, Value};
use serde::Serialize;

use crate::board::{Board, Totals};
use crate::consumer::{Consumer, Findings};
use crate::failure::{Failure, Unfinished};
use crate::lane::Lane;
use crate::latency::Latencies;
use crate::limits::{FLOWS_MAX, NAMES_MAX, PREPARED_BYTES_MAX, WINDOW_MAX, WRITE_BYTES};
use crate::open_files::allow_connections;
use crate::producer::{Pace, Producer};
use crate::publishes::{Publishes, Shape, StampPlace};
use crate::report::Outcome;
use crate::schedule::Schedule;
use crate::stamp::STAMP_BYTES;
use crate::supervise::{Goal, News, Run, Supervisor, rate};
use crate::topology::{Declared, QueueShape, Routes, Topology, Users, share};
use crate::verify::{Refused, Seen, Stream, Verification, check};
use crate::window::Window;

/// When a load ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub enum End {
    /// After so many publishes over all producers.
    Messages(u64),
    /// After so much time.
    Time(Duration),
}

/// What latencies are taken of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Measure {
    /// From a publish to its confirm, if there are confirms; with a rate from the time it is due.
    Confirms,
    /// From the time a message is due to its arrival at a consumer.
    EndToEnd,
    /// From `basic.get` to its answer.
    Gets,
}

/// How messages leave their queues.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Take {
    /// Consumers are there before the first message.
    Meanwhile,
    /// Consumers begin when all is published.
    Afterwards,
    /// They are got one by one when all is published.
    ByGet,
}

/// A load of producers and consumers.
#[derive(Clone, Debug)]
pub struct Load {
    /// Where it goes.
    pub topology: Topology,
    /// How its queues are declared.
    pub queue_shape: QueueShape,
    /// Producers, each a connection; at least one.
    pub producers: usize,
    /// Consumers, each a connection.
    pub consumers: usize,
    /// Bytes of a body.
    pub body_bytes: usize,
    /// Publishes a second over all producers; `None` for as many as possible.
    pub rate: Option<u64>,
    /// Publishes ask to survive a restart of the broker.
    pub persistent: bool,
    /// How many publishes of each producer may be unconfirmed; 0 for no confirms.
    pub confirm_window: usize,
    /// How many messages a consumer may have unacked; 0 for any number.
    pub prefetch: u16,
    /// How many messages one ack settles; 0 for no acks.
    pub ack_every: u64,
    /// When it ends.
    pub end: End,
    /// Whether every message is looked for.
    pub verify: bool,
    /// What is timed.
    pub measure: Measure,
    /// How messages leave their queues.
    pub take: Take,
}

impl Load {
    /// Runs the load. What it declares is deleted in any case.
    pub fn run(&self, run: &mut Run<'_>) -> Result<Outcome, Unfinished> {
        self.check_options()?;
        allow_connections(self.producers.saturating_add(self.consumers), "--producers, --consumers or --queues")?;
        run.check_broker()?;
        let users = match self.take {
            Take::ByGet => Users::Getters,
            Take::Meanwhile | Take::Afterwards if self.consumers == 0 => Users::PublishersOnly,
            Take::Meanwhile | Take::Afterwards if self.verify => Users::VerifiedConsumers,
            Take::Meanwhile | Take::Afterwards => Users::Consumers,
        };
        let declared = Declared::new(run, &self.topology, &self.queue_shape, users)?;
        let board = Board::new(self.producers + self.consumers);
        let timeout = run.timeout;
        let outcome: Result<_, Unfinished> = thread::scope(|scope| {
            let (mut supervisor, news) = Supervisor::new(run, &board);
            let url = supervisor.url();
            let consumers: Vec<_> = (0..self.consumers)
                .map(|index| {
                    let (news, declared, board, url) = (news.clone(), &declared, &board, url.clone());
                    let of = move || format!("consumer {}", index + 1);
                    let found = self.nothing_found();
                    scope.spawn(move || {
                        telling(&news, of, found, |found| self.consume(index, &url, board, declared, &news, found))
                    })
                })
                .collect();
            let producers: Vec<_> = (0..self.producers)
                .map(|index| {
                    let (news, declared, board, url) = (news.clone(), &declared, &board, url.clone());
                    let of = move || format!("producer {}", index + 1);
                    scope.spawn(move || {
                        telling(&news, of, Latencies::default(), |latencies| {
                            self.produce(index, &url, board, declared, &news, timeout, latencies)
                        })
                    })
                })
                .collect();
            drop(news);
            let supervised = self.supervise(&mut supervisor, &board, &declared);
            if supervised.is_err() {
                board.give_up();
            }
            let mut latencies = Latencies::default();
            let mut all_seen = Vec::new();
            for producer in producers {
                let theirs = join(producer);
                if self.measure == Measure::Confirms {
                    latencies.add(&theirs);
                }
            }
            for consumer in consumers {
                let findings = join(consumer);
                all_seen.extend(findings.seen);
                if let Some(theirs) = findings.latencies {
                    latencies.add(&theirs);
                }
            }
            let mut outcome = self.outcome(&mut supervisor, &board, &latencies);
            match supervised {
                Ok(supervised) => {
                    outcome.verify = self.verification(&supervised, &declared, all_seen, outcome.interrupted);
                    Ok(outcome)
                }
                Err(failure) => Err(supervisor.unfinished(failure, outcome)),
            }
        });
        let (mut outcome, left) = declared.delete_after(outcome)?;
        if let Some(verification) = &mut outcome.verify
            && !self.may_leave(outcome.interrupted)
        {
            verification.handle_left(left);
        }
        Ok(outcome)
    }

    fn check_options(&self) -> Result<(), Failure> {
        let refuse = |why: String| Err(Failure::Options(why));
        let stamped = self.is_stamped();
        if stamped && self.body_bytes < STAMP_BYTES {
            let what = if self.verify { "number" } else { "time" };
            return refuse(format!(
                "--size is at least {STAMP_BYTES} bytes where a message carries its {what}, and {} is less",
                self.body_bytes
            ));
        }
        if self.prefetch > 0 && u64::from(self.prefetch) < self.ack_every {
            return refuse(format!(
                "--prefetch {} is below --ack-every {}, with which nothing would move",
                self.prefetch, self.ack_every
            ));
        }
        if self.prefetch > 0 && self.ack_every == 0 {
            return refuse("--prefetch counts only messages that are acked: give --ack-every, too".into());
        }
        if self.confirm_window > WINDOW_MAX {
            return refuse(format!(
                "at most {WINDOW_MAX} publishes may be unconfirmed, and {} are more",
                self.confirm_window
            ));
        }
        let queue_type = self.queue_shape.arguments.as_table().get("x-queue-type").and_then(Value::as_str);
        if let Some(type_) = queue_type.filter(|type_| !self.queue_shape.durable && *type_ != "classic") {
            return refuse(format!("queues of type {type_} are durable: ask for that with --durable"));
        }
        let keys = self.topology.key_count();
        if keys == 0 || self.topology.queue_count() == 0 || self.producers == 0 || self.rate == Some(0) {
            return refuse("--producers, --queues, --routing-keys and --rate are at least 1".into());
        }
        if self.topology.name_count() > NAMES_MAX {
            return refuse(format!("--queues, --routing-keys and --bindings are at most {NAMES_MAX}"));
        }
        if keys.saturating_mul(self.producers) > FLOWS_MAX {
            return refuse(format!(
                "--producers times --routing-keys (--queues without them) is at most {FLOWS_MAX}, and {} times {keys} is more",
                self.producers
            ));
        }
        let keys_each = share(0, self.producers, keys).len();
        if keys_each.saturating_mul(self.body_bytes) > PREPARED_BYTES_MAX {
            return refuse(format!(
                "--size times the routing keys or queues of a producer is at most {PREPARED_BYTES_MAX} bytes, and {} times \
                 {keys_each} is more",
                self.body_bytes
            ));
        }
        Ok(())
    }

    fn is_stamped(&self) -> bool {
        self.verify || self.measure == Measure::EndToEnd
    }

    /// Whether a latency begins with a publish.
    fn is_publish_timed(&self) -> bool {
        match self.measure {
            Measure::Confirms => self.confirm_window > 0,
            Measure::EndToEnd => true,
            Measure::Gets => false,
        }
    }

    /// What a producer's thread does; takes the latencies of its confirms.
    #[expect(clippy::too_many_arguments, reason = "all that a thread of a run gets")]
    fn produce(
        &self,
        index: usize,
        url: &Url,
        board: &Board,
        declared: &Declared,
        news: &Sender<News>,
        timeout: Duration,
        latencies: &mut Latencies,
    ) -> Result<(), Error> {
        let lane = Lane::open(url, board, board.worker(index), |channel| {
            if self.confirm_window > 0 { channel.confirm_select() } else { Ok(()) }
        })?;
        let own = share(index, self.producers, declared.keys.len());
        let keys: Vec<_> = own.iter().map(|&key| declared.keys[key].clone()).collect();
        let shape = Shape {
            channel: lane.channel,
            exchange: &declared.exchange,
            properties: BasicProperties {
                delivery_mode: Some(if self.persistent { 2 } else { 1 }),
                ..BasicProperties::default()
            },
            body_bytes: self.body_bytes,
            frame_max: lane.frame_max,
            stamp_place: StampPlace::Body,
        };
        let flow = |key| u32::try_from(self.flow(index, key)).unwrap_or(u32::MAX);
        let mut producer = Producer {
            publishes: Publishes::new(&shape, &keys, WRITE_BYTES)?,
            flows: own.iter().map(|&key| flow(key)).collect(),
            is_stamped: self.is_stamped(),
            window: (self.confirm_window > 0).then(|| Window::new(self.confirm_window)),
            schedule: None,
            pace: if self.is_publish_timed() { Pace::Exact } else { Pace::Batched },
            count_max: self.count_of(index),
            end_ns: u64::MAX,
            sent: 0,
            latencies: Latencies::default(),
            refused: Refused::default(),
            lane,
        };
        say(news, News::Ready);
        let Some(start_ns) = producer.lane.await_start(Board::producers_start_ns)? else {
            return Ok(());
        };
        producer.schedule = self.rate.map(|rate| Schedule::new(start_ns, rate, index, self.producers));
        if let End::Time(time) = self.end {
            let end_ns = start_ns.saturating_add(u64::try_from(time.as_nanos()).unwrap_or(u64::MAX));
            producer.set_end(end_ns, timeout);
        }
        let ran = producer.run();
        *latencies = producer.latencies;
        ran?;
        say(news, News::Refused(producer.refused));
        say(news, News::ProducerEnded { index, sent: producer.sent });
        Ok(())
    }

    /// What a consumer knows at first.
    fn nothing_found(&self) -> Findings {
        let is_timed = matches!(self.measure, Measure::EndToEnd | Measure::Gets);
        Findings {
            body_bytes: self.body_bytes as u64,
            seen: self.verify.then(Seen::default),
            latencies: is_timed.then(Latencies::default),
        }
    }

    /// What a consumer's thread does; adds to what it found out.
    fn consume(
        &self,
        index: usize,
        url: &Url,
        board: &Board,
        declared: &Declared,
        news: &Sender<News>,
        found: &mut Findings,
    ) -> Result<(), Error> {
        let lane = Lane::open(url, board, board.worker(self.producers + index), |channel| {
            if self.prefetch > 0 { channel.qos(self.prefetch) } else { Ok(()) }
        })?;
        let queues = share(index, self.consumers, declared.queues.len());
        let number = |queue| u32::try_from(queue).unwrap_or(u32::MAX);
        let queues = queues.iter().map(|&queue| (number(queue), declared.queues[queue].clone())).collect();
        let mut consumer = Consumer::new(lane, queues, self.ack_every, found);
        match self.take {
            Take::Meanwhile => consumer.run(|| say(news, News::Ready))?,
            Take::Afterwards | Take::ByGet => {
                say(news, News::Ready);
                if !consumer.await_start()? {
                    return Ok(());
                }
                if self.take == Take::ByGet { consumer.get_all() } else { consumer.run(|| {}) }?;
            }
        }
        say(news, News::ConsumerEnded);
        Ok(())
    }

    /// How many messages a producer sends at most.
    fn count_of(&self, producer: usize) -> u64 {
        match self.end {
            End::Messages(count) => {
                let producers = self.producers as u64;
                count / producers + u64::from((producer as u64) < count % producers)
            }
            End::Time(_) => u64::MAX,
        }
    }

    fn flow(&self, producer: usize, key: usize) -> usize {
        producer * self.topology.key_count() + key
    }

    /// How many messages each stream has, if these producers have sent so many.
    fn expected(&self, sent: &[(usize, u64)], declared: &Declared) -> BTreeMap<Stream, u64> {
        let mut of_key = vec![Vec::new(); declared.keys.len()];
        for &(producer, sent) in sent {
            let own = share(producer, self.producers, declared.keys.len());
            for (turn, &key) in own.iter().enumerate() {
                let count = (sent + (own.len() - 1 - turn) as u64) / own.len() as u64;
                of_key[key].push((self.flow(producer, key), count));
            }
        }
        let number = |index| u32::try_from(index).unwrap_or(u32::MAX);
        let streams = |queue, keys: &[usize]| {
            let of_keys = keys.iter().flat_map(|&key| &of_key[key]);
            of_keys.map(|&(flow, count)| ((number(queue), number(flow)), count)).collect::<Vec<_>>()
        };
        match &declared.routes {
            Routes::ByKey(keys_of) => {
                keys_of.iter().enumerate().flat_map(|(queue, keys)| streams(queue, keys)).collect()
            }
            Routes::Anywhere => streams(0, &(0..of_key.len()).collect::<Vec<_>>()).into_iter().collect(),
        }
    }

    /// Begins and ends what the threads do.
    fn supervise(
        &self,
        supervisor: &mut Supervisor<'_, '_>,
        board: &Board,
        declared: &Declared,
    ) -> Result<Supervised, Failure> {
        let workers = self.producers + self.consumers;
        supervisor.watch(
            |_| "not all connections are open and consuming".to_owned(),
            |_, tally| tally.ready == workers,
        )?;
        supervisor.start(Some(match self.end {
            End::Messages(count) if self.consumers == 0 => Goal::Published(count),
            End::Messages(count) => {
                let sent: Vec<_> = (0..self.producers).map(|index| (index, self.count_of(index))).collect();
                let expected = self.expected(&sent, declared).values().sum::<u64>();
                debug_assert!(expected >= count);
                Goal::Received(expected)
            }
            End::Time(time) => Goal::Time(time),
        }));
        let publishing_ns = supervisor.start_ns();
        board.start_producers(publishing_ns);
        supervisor.watch(publishes_missing, |_, tally| tally.sent.len() == self.producers)?;
        let expected = self.expected(&supervisor.tally.sent, declared);
        let (consuming_ns, is_awaited) = match self.take {
            Take::Meanwhile => {
                let is_counted = matches!(self.end, End::Messages(_)) && !supervisor.interrupted;
                // What is still on its way in the end has the longest latencies.
                (publishing_ns, self.verify || self.measure == Measure::EndToEnd || is_counted)
            }
            Take::Afterwards | Take::ByGet => (board.now_ns(), !supervisor.interrupted),
        };
        board.start_consumers(consuming_ns);
        let refused = std::mem::take(&mut supervisor.tally.refused);
        let refused_copies = refused.copies(&expected);
        let owed = if self.consumers > 0 { expected.values().sum::<u64>() - refused_copies } else { 0 };
        let interrupted = supervisor.interrupted_flag();
        // Whoever wants to know that nothing is lost, wants to know it in the end.
        let is_awaited_anyway = self.verify && self.take == Take::Meanwhile;
        if is_awaited {
            let mut arrived = supervisor.watch(
                |totals| format!("{} of {owed} messages have not arrived", owed.saturating_sub(totals.received)),
                |totals, tally| {
                    let are_gone = self.take == Take::ByGet && tally.consumers_ended == self.consumers;
                    let is_given_up = interrupted.load(Ordering::Relaxed) && !is_awaited_anyway;
                    let arrived = totals.received.saturating_sub(totals.repeated);
                    arrived >= owed || are_gone || is_given_up
                },
            );
            if arrived.is_ok() && self.verify && refused_copies > 0 {
                arrived = self.await_empty_queues(supervisor, declared);
            }
            match arrived {
                // What is missing is lost, which is what verifying is for.
                Err(Failure::Stalled { .. }) if self.verify => {}
                other => other?,
            }
        }
        supervisor.end_samples();
        board.end_consumers();
        if !board.is_given_up() {
            supervisor.watch(
                |_| "it does not close connections".to_owned(),
                |_, tally| tally.consumers_ended == self.consumers,
            )?;
        }
        Ok(Supervised { expected, refused })
    }

    /// Whether nobody wants to know what is still in the queues.
    fn may_leave(&self, is_interrupted: bool) -> bool {
        is_interrupted && self.take != Take::Meanwhile
    }

    /// Waits until consumers were sent all that is in the queues. As many as are owed have arrived; but where some of them were
    /// refused and arrived anyway, others are still to come.
    fn await_empty_queues(&self, supervisor: &mut Supervisor<'_, '_>, declared: &Declared) -> Result<(), Failure> {
        let mut connection = Connection::open_unless(&supervisor.url(), supervisor.interrupt())?;
        let mut channel = connection.open_channel()?;
        let interrupted = supervisor.interrupted_flag();
        let mut are_empty = Ok(false);
        supervisor.watch(
            |_| "it does not deliver all that is in the queues".to_owned(),
            |_, tally| {
                are_empty = match self.take {
                    Take::ByGet => Ok(tally.consumers_ended == self.consumers),
                    Take::Meanwhile | Take::Afterwards => declared.are_queues_empty(&mut channel),
                };
                !matches!(are_empty, Ok(false)) || interrupted.load(Ordering::Relaxed)
            },
        )?;
        are_empty?;
        Ok(connection.close()?)
    }

    /// What was measured, however the run went.
    fn outcome(&self, supervisor: &mut Supervisor<'_, '_>, board: &Board, latencies: &Latencies) -> Outcome {
        let totals = board.totals();
        let timed = |from: u64, to: u64| Duration::from_nanos(to.saturating_sub(from));
        let publishing_ns = supervisor.start_ns();
        let consuming_ns = match self.take {
            Take::Meanwhile => publishing_ns,
            Take::Afterwards | Take::ByGet => board.consumers_start_ns().unwrap_or(publishing_ns),
        };
        let whole = timed(publishing_ns, totals.published_ns.max(totals.received_ns));
        let (publishing, consuming) =
            (timed(publishing_ns, totals.published_ns), timed(consuming_ns, totals.received_ns));
        Outcome {
            seconds: whole.as_secs_f64(),
            interrupted: supervisor.interrupted,
            published: Some(totals.published),
            confirmed: (self.confirm_window > 0).then_some(totals.confirmed),
            nacked: (self.confirm_window > 0).then_some(totals.nacked),
            overdue: (self.rate.is_some() && self.is_publish_timed()).then_some(totals.overdue),
            received: (self.consumers > 0).then_some(totals.received),
            publish_rate: Some(rate(totals.published, publishing)),
            receive_rate: (self.consumers > 0).then(|| rate(totals.received, consuming)),
            held_seconds: Duration::from_nanos(totals.held_ns).as_secs_f64(),
            latency_us: latencies.summary(),
            samples: supervisor.take_samples(),
            latency_curve: latencies.curve(),
            ..Outcome::default()
        }
    }

    /// What is wrong with what arrived, if somebody wants to know.
    fn verification(
        &self,
        supervised: &Supervised,
        declared: &Declared,
        mut all_seen: Vec<Seen>,
        is_interrupted: bool,
    ) -> Option<Verification> {
        if !self.verify || self.consumers == 0 {
            return None;
        }
        if declared.routes == Routes::Anywhere {
            all_seen = all_seen.into_iter().map(Seen::without_queues).collect();
        }
        let found = check(all_seen, &supervised.expected, &supervised.refused);
        Some(if self.may_leave(is_interrupted) { Verification { lost: 0, ..found } } else { found })
    }
}

/// What a load that came to its end has published.
struct Supervised {
    expected: BTreeMap<Stream, u64>,
    refused: Refused,
}

fn publishes_missing(totals: &Totals) -> String {
    let unconfirmed = totals.published.saturating_sub(totals.confirmed + totals.nacked);
    if totals.confirmed > 0 && unconfirmed > 0 {
        format!("{unconfirmed} publishes are not confirmed")
    } else {
        format!("it does not take more than the {} messages that were published", totals.published)
    }
}

/// Tells the supervisor, unless it has given up.
pub(crate) fn say(news: &Sender<News>, what: News) {
    // Nobody listens any more: the run has failed already.
    let _ = news.send(what);
}

/// Runs a thread's work, which adds to what it has found, and tells the supervisor if it fails: `of` says whose it is.
pub(crate) fn telling<T>(
    news: &Sender<News>,
    of: impl FnOnce() -> String,
    mut found: T,
    work: impl FnOnce(&mut T) -> Result<(), Error>,
) -> T {
    if let Err(error) = work(&mut found) {
        say(news, News::Failed { of: of(), error });
    }
    found
}

/// What a thread of a run gave; its panic becomes ours.
pub(crate) fn join<T>(thread: thread::ScopedJoinHandle<'_, T>) -> T {
    thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}
