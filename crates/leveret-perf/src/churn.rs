//! Opening and closing: connections, channels or queues, as often as the broker can.

use std::sync::mpsc::Sender;
use std::thread;
use std::time::Duration;

use leveret_client::{Connection, DeleteOnly, Error, QueueOptions, Url};

use crate::board::Board;
use crate::failure::{Failure, Unfinished};
use crate::latency::Latencies;
use crate::limits::LAST_PATIENCE;
use crate::load::{End, join, say, telling};
use crate::open_files::allow_connections;
use crate::report::Outcome;
use crate::supervise::{Goal, News, Run, Supervisor, rate};
use crate::topology::unique_prefix;

/// What is opened and closed again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Thing {
    /// A connection: TCP, login, virtual host.
    Connections,
    /// A channel.
    Channels,
    /// A queue, declared and deleted.
    Queues {
        /// Whether it would survive a restart of the broker; else it is exclusive.
        durable: bool,
    },
}

/// Opening and closing, with some at once.
#[derive(Clone, Copy, Debug)]
pub struct Churn {
    /// What.
    pub thing: Thing,
    /// How many threads do so, each with a connection of its own.
    pub parallel: usize,
    /// When it ends; messages are cycles.
    pub end: End,
}

impl Churn {
    /// Runs it.
    pub fn run(&self, run: &mut Run<'_>) -> Result<Outcome, Unfinished> {
        if self.parallel == 0 {
            return Err(Failure::Options("somebody has to open and close: --parallel is at least 1".into()).into());
        }
        allow_connections(self.parallel.saturating_mul(2), "--parallel")?;
        run.check_broker()?;
        let board = Board::new(self.parallel);
        let timeout = run.timeout;
        thread::scope(|scope| {
            let (mut supervisor, news) = Supervisor::new(run, &board);
            supervisor.instead_of_published = Some("cycles");
            let (url, board, prefix) = (&supervisor.url(), &board, &unique_prefix());
            let threads: Vec<_> = (0..self.parallel)
                .map(|index| {
                    let (news, url) = (news.clone(), url.clone());
                    let queue = format!("{prefix}-{index}");
                    let of = move || format!("thread {}", index + 1);
                    scope.spawn(move || {
                        telling(&news, of, Latencies::default(), |latencies| {
                            self.cycle(index, &url, timeout, board, &queue, &news, latencies)
                        })
                    })
                })
                .collect();
            drop(news);
            let supervised = self.supervise(&mut supervisor, board);
            if supervised.is_err() {
                board.give_up();
            }
            let mut latencies = Latencies::default();
            threads.into_iter().map(join).for_each(|theirs| latencies.add(&theirs));
            if supervised.is_err() && self.thing == (Thing::Queues { durable: true }) {
                // The reason counts; what is there goes as far as it can.
                let _ = delete_queues(url, (0..self.parallel).map(|index| format!("{prefix}-{index}")));
            }
            let totals = board.totals();
            let time = Duration::from_nanos(totals.published_ns.saturating_sub(supervisor.start_ns()));
            let outcome = Outcome {
                seconds: time.as_secs_f64(),
                interrupted: supervisor.interrupted,
                cycles: Some(totals.published),
                cycle_rate: Some(rate(totals.published, time)),
                latency_us: latencies.summary(),
                samples: supervisor.take_samples(),
                latency_curve: latencies.curve(),
                ..Outcome::default()
            };
            match supervised {
                Ok(()) => Ok(outcome),
                Err(failure) => Err(supervisor.unfinished(failure, outcome)),
            }
        })
    }

    fn supervise(&self, supervisor: &mut Supervisor<'_, '_>, board: &Board) -> Result<(), Failure> {
        supervisor.watch(|_| "not all connections are open".to_owned(), |_, tally| tally.ready == self.parallel)?;
        let (goal, time) = match self.end {
            End::Messages(count) => (Goal::Published(count), None),
            End::Time(time) => (Goal::Time(time), Some(time)),
        };
        supervisor.start(Some(goal));
        let start_ns = supervisor.start_ns();
        board.start_producers(start_ns);
        supervisor.watch(
            |totals| format!("it answers no more after {} cycles", totals.published),
            |_, tally| {
                let elapsed = Duration::from_nanos(board.now_ns().saturating_sub(start_ns));
                if time.is_some_and(|time| elapsed >= time) {
                    board.end_producers();
                }
                tally.sent.len() == self.parallel
            },
        )
    }

    #[expect(clippy::too_many_arguments, reason = "all that a thread of a run gets")]
    fn cycle(
        &self,
        index: usize,
        url: &Url,
        timeout: Duration,
        board: &Board,
        queue: &str,
        news: &Sender<News>,
        latencies: &mut Latencies,
    ) -> Result<(), Error> {
        let mut connection = Connection::open_unless(url, board.interrupt())?;
        connection.set_answer_timeout(timeout);
        let channel = connection.open_channel()?.id();
        say(news, News::Ready);
        if board.await_producers_start().is_none() {
            return Ok(());
        }
        let counters = board.worker(index);
        let count_max = match self.end {
            End::Messages(count) => {
                let (index, parallel) = (index as u64, self.parallel as u64);
                count / parallel + u64::from(index < count % parallel)
            }
            End::Time(_) => u64::MAX,
        };
        let mut done = 0;
        while done < count_max && !board.are_producers_over() {
            let begun_ns = board.now_ns();
            match self.thing {
                Thing::Connections => {
                    let mut one = Connection::open_unless(url, board.interrupt())?;
                    one.set_answer_timeout(timeout);
                    one.close()?;
                }
                Thing::Channels => connection.open_channel()?.close()?,
                Thing::Queues { durable } => {
                    let mut channel = connection.channel(channel).expect("nobody closes this channel");
                    let options = QueueOptions { durable, exclusive: !durable, ..QueueOptions::default() };
                    channel.declare_queue(queue, &options)?;
                    channel.delete_queue(queue, DeleteOnly::default())?;
                }
            }
            done += 1;
            let now_ns = board.now_ns();
            latencies.record_ns(now_ns - begun_ns);
            counters.add_published(1, now_ns);
        }
        connection.close()?;
        say(news, News::ProducerEnded { index, sent: done });
        Ok(())
    }
}

/// Deletes queues that a broken connection may have left.
fn delete_queues(url: &Url, queues: impl Iterator<Item = String>) -> Result<(), Error> {
    let mut connection = Connection::open(&Url { connection_timeout: LAST_PATIENCE, ..url.clone() })?;
    connection.set_answer_timeout(LAST_PATIENCE);
    let mut channel = connection.open_channel()?;
    for queue in queues {
        channel.delete_queue(&queue, DeleteOnly::default())?;
    }
    connection.close()
}
