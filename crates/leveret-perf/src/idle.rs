//! Connections that do nothing: how long it takes to open many, and what each costs the broker.

use std::sync::mpsc::Sender;
use std::thread;
use std::time::{Duration, Instant};

use leveret_client::{ChannelId, Connection, Error, Url};
use sysinfo::{Pid, ProcessRefreshKind, ProcessesToUpdate, System};

use crate::board::Board;
use crate::failure::{Failure, Unfinished};
use crate::latency::Latencies;
use crate::limits::{HELD_LOOK_UP, LOOK_UP};
use crate::load::{join, say, telling};
use crate::open_files::allow_connections;
use crate::report::Outcome;
use crate::supervise::{Goal, News, Run, Supervisor, rate};
use crate::topology::share;

/// Connections that are opened and held.
#[derive(Clone, Copy, Debug)]
pub struct Idle {
    /// How many, each with one channel.
    pub connections: usize,
    /// How many are being opened at once.
    pub parallel: usize,
    /// How long they are held.
    pub hold: Duration,
    /// The broker's process, on this machine, if its memory shall be read.
    pub process: Option<u32>,
}

impl Idle {
    /// Runs it.
    pub fn run(&self, run: &mut Run<'_>) -> Result<Outcome, Unfinished> {
        if self.connections == 0 || self.parallel == 0 {
            return Err(Failure::Options("--connections and --parallel are at least 1".into()).into());
        }
        allow_connections(self.connections, "--connections")?;
        run.check_broker()?;
        let bytes_before = self.process.map(resident_bytes).transpose()?;
        let threads = self.parallel.min(self.connections);
        let board = Board::new(threads);
        let timeout = run.timeout;
        thread::scope(|scope| {
            let (mut supervisor, news) = Supervisor::new(run, &board);
            supervisor.instead_of_published = Some("connections");
            let (url, board) = (&supervisor.url(), &board);
            let threads: Vec<_> = (0..threads)
                .map(|index| {
                    let (news, url) = (news.clone(), url.clone());
                    let count = share(index, threads, self.connections).len();
                    let of = move || format!("thread {}", index + 1);
                    scope.spawn(move || {
                        telling(&news, of, Latencies::default(), |latencies| {
                            open_and_hold(index, count, &url, timeout, board, &news, latencies)
                        })
                    })
                })
                .collect();
            drop(news);
            let supervised = self.supervise(&mut supervisor, board, threads.len());
            if supervised.is_err() {
                board.give_up();
            }
            let mut latencies = Latencies::default();
            threads.into_iter().map(join).for_each(|theirs| latencies.add(&theirs));
            let totals = board.totals();
            let opened = totals.published;
            let opening = Duration::from_nanos(totals.published_ns.saturating_sub(supervisor.start_ns()));
            let bytes = *supervised.as_ref().unwrap_or(&None);
            #[expect(clippy::cast_precision_loss, reason = "a mean is shown with a few digits")]
            let bytes_each = |(before, after): (u64, u64)| after.saturating_sub(before) as f64 / opened as f64;
            let outcome = Outcome {
                seconds: Duration::from_nanos(board.now_ns().saturating_sub(supervisor.start_ns())).as_secs_f64(),
                interrupted: supervisor.interrupted,
                connections: Some(opened),
                open_seconds: Some(opening.as_secs_f64()),
                cycle_rate: Some(rate(opened, opening)),
                bytes_per_connection: bytes_before.zip(bytes).filter(|_| opened > 0).map(bytes_each),
                latency_us: latencies.summary(),
                samples: supervisor.take_samples(),
                latency_curve: latencies.curve(),
                ..Outcome::default()
            };
            match supervised {
                Ok(_) => Ok(outcome),
                Err(failure) => Err(supervisor.unfinished(failure, outcome)),
            }
        })
    }

    /// Gives the memory of the process while connections were held, if it shall be read.
    fn supervise(
        &self,
        supervisor: &mut Supervisor<'_, '_>,
        board: &Board,
        threads: usize,
    ) -> Result<Option<u64>, Failure> {
        supervisor.start(Some(Goal::Published(self.connections as u64)));
        board.start_producers(supervisor.start_ns());
        supervisor.watch(
            |totals| format!("only {} of {} connections are open", totals.published, self.connections),
            |_, tally| tally.ready == threads,
        )?;
        supervisor.hold(self.hold)?;
        let bytes = self.process.map(resident_bytes).transpose()?;
        board.end_consumers();
        supervisor.watch(
            |_| "connections that were idle do not answer".to_owned(),
            |_, tally| tally.consumers_ended == threads,
        )?;
        Ok(bytes)
    }
}

/// Opens connections, holds them until the end, and makes sure then that they are still open. Takes how long each opening took.
fn open_and_hold(
    index: usize,
    count: usize,
    url: &Url,
    timeout: Duration,
    board: &Board,
    news: &Sender<News>,
    latencies: &mut Latencies,
) -> Result<(), Error> {
    let mut held: Vec<(Connection, ChannelId)> = Vec::new();
    let counters = board.worker(index);
    if board.await_producers_start().is_none() {
        return Ok(());
    }
    while held.len() < count && !board.are_producers_over() {
        let begun_ns = board.now_ns();
        let mut connection = Connection::open_unless(url, board.interrupt())?;
        connection.set_answer_timeout(timeout);
        let channel = connection.open_channel()?.id();
        held.push((connection, channel));
        let now_ns = board.now_ns();
        latencies.record_ns(now_ns - begun_ns);
        counters.add_published(1, now_ns);
    }
    say(news, News::Ready);
    let mut looked = Instant::now();
    while !board.are_consumers_over() {
        thread::sleep(LOOK_UP);
        if looked.elapsed() >= HELD_LOOK_UP {
            for (connection, _) in &mut held {
                connection.check()?;
            }
            looked = Instant::now();
        }
    }
    for (mut connection, channel) in held {
        connection.channel(channel).expect("nobody closes this channel").sync()?;
        connection.close()?;
        counters.add_received(1, 0, board.now_ns());
    }
    say(news, News::ConsumerEnded);
    Ok(())
}

/// Resident memory of a process.
fn resident_bytes(process: u32) -> Result<u64, Failure> {
    let id = Pid::from_u32(process);
    let mut system = System::new();
    let wanted = ProcessRefreshKind::nothing().with_memory();
    system.refresh_processes_specifics(ProcessesToUpdate::Some(&[id]), true, wanted);
    system.process(id).map(sysinfo::Process::memory).ok_or(Failure::Process(process))
}
