//! Requests and replies: clients that keep some requests outstanding, servers that answer them, direct reply-to in between.

use std::collections::BTreeMap;
use std::sync::mpsc::Sender;
use std::thread;
use std::time::Duration;

use leveret_amqp::frame::{write_content, write_method};
use leveret_amqp::{BasicProperties, ContentHeader, DecodeError, Method, ShortStr};
use leveret_client::{Connection, Error, Url};

use crate::board::Board;
use crate::failure::{Failure, Unfinished};
use crate::lane::Lane;
use crate::latency::Latencies;
use crate::limits::{OUTSTANDING_MAX, PREPARED_BYTES_MAX, WRITE_BYTES};
use crate::load::{End, join, say, telling};
use crate::open_files::allow_connections;
use crate::publishes::{Publishes, Shape, StampPlace};
use crate::report::Outcome;
use crate::scan::Event;
use crate::stamp::Stamp;
use crate::supervise::{Goal, News, Run, Supervisor, rate};
use crate::topology::{Declared, QueueShape, Topology, Users};
use crate::verify::{Refused, Seen, Verification, check};

/// The pseudo queue whose consumer gets replies without a queue. RabbitMQ: direct reply-to.
const REPLY_TO: &str = "amq.rabbitmq.reply-to";

/// Requests and replies.
#[derive(Clone, Debug)]
pub struct Rpc {
    /// Connections that ask.
    pub clients: usize,
    /// Connections that answer, all at one queue.
    pub servers: usize,
    /// The queue of somebody else's servers, which answer instead: with the correlation id of the request.
    pub server_queue: Option<String>,
    /// How many requests of each client are unanswered at once.
    pub outstanding: u64,
    /// Bytes of a body, of requests and of replies.
    pub body_bytes: usize,
    /// When it ends; messages are requests.
    pub end: End,
    /// Whether every reply is looked for. Their order is looked at only with one server.
    pub verify: bool,
}

/// What a client found out.
#[derive(Debug, Default)]
struct Replies {
    sent: u64,
    seen: Option<Seen>,
    latencies: Latencies,
}

impl Rpc {
    /// Runs it.
    pub fn run(&self, run: &mut Run<'_>) -> Result<Outcome, Unfinished> {
        if self.clients == 0 || self.outstanding == 0 || (self.servers == 0 && self.server_queue.is_none()) {
            let why = "requests need at least one of --clients, --servers and --outstanding, each";
            return Err(Failure::Options(why.to_owned()).into());
        }
        if self.outstanding > OUTSTANDING_MAX {
            let why = format!("--outstanding is at most {OUTSTANDING_MAX}, and {} is more", self.outstanding);
            return Err(Failure::Options(why).into());
        }
        if self.body_bytes > PREPARED_BYTES_MAX {
            return Err(Failure::Options(format!("--size is at most {PREPARED_BYTES_MAX} bytes")).into());
        }
        allow_connections(self.clients.saturating_add(self.own_servers()), "--clients or --servers")?;
        run.check_broker()?;
        if let Some(queue) = &self.server_queue {
            let mut connection = Connection::open_unless(&run.url, run.interrupt())?;
            connection.open_channel()?.check_queue(queue)?;
            connection.close()?;
            return self.run_at(run, queue);
        }
        let users = if self.verify { Users::VerifiedConsumers } else { Users::Consumers };
        let (topology, shape) = (Topology::Queues(1), QueueShape::default());
        let declared = Declared::new(run, &topology, &shape, users)?;
        let outcome = self.run_at(run, &declared.queues[0]);
        let (mut outcome, left) = declared.delete_after(outcome)?;
        // At Ctrl-C, requests may be left that nobody has answered yet.
        let unanswered = if outcome.interrupted { unanswered(&outcome) } else { 0 };
        if let Some(verification) = &mut outcome.verify {
            verification.handle_left(left.saturating_sub(unanswered));
        }
        Ok(outcome)
    }

    /// How many servers of ours there are.
    fn own_servers(&self) -> usize {
        if self.server_queue.is_some() { 0 } else { self.servers }
    }

    fn run_at(&self, run: &mut Run<'_>, queue: &str) -> Result<Outcome, Unfinished> {
        let board = Board::new(self.clients + self.own_servers());
        thread::scope(|scope| {
            let (mut supervisor, news) = Supervisor::new(run, &board);
            let (url, board) = (&supervisor.url(), &board);
            for index in 0..self.own_servers() {
                let (news, url) = (news.clone(), url.clone());
                let of = move || format!("server {}", index + 1);
                scope.spawn(move || {
                    telling(&news, of, (), |()| serve(self.clients + index, &url, board, queue, &news));
                });
            }
            let clients: Vec<_> = (0..self.clients)
                .map(|index| {
                    let (news, url) = (news.clone(), url.clone());
                    let of = move || format!("client {}", index + 1);
                    let found = Replies { seen: self.verify.then(Seen::default), ..Replies::default() };
                    scope.spawn(move || {
                        telling(&news, of, found, |found| self.ask(index, &url, board, queue, &news, found))
                    })
                })
                .collect();
            drop(news);
            let supervised = self.supervise(&mut supervisor, board);
            if supervised.is_err() {
                board.give_up();
            }
            let replies: Vec<_> = clients.into_iter().map(join).collect();
            let is_good_enough = matches!(supervised, Err(Failure::Stalled { .. })) && self.verify;
            let outcome = self.outcome(&mut supervisor, board, replies);
            match supervised {
                Err(failure) if !is_good_enough => {
                    Err(supervisor.unfinished(failure, Outcome { verify: None, ..outcome }))
                }
                Ok(()) | Err(_) => Ok(outcome),
            }
        })
    }

    fn supervise(&self, supervisor: &mut Supervisor<'_, '_>, board: &Board) -> Result<(), Failure> {
        supervisor.watch(
            |_| "not all connections are open and consuming".to_owned(),
            |_, tally| tally.ready == self.clients + self.own_servers(),
        )?;
        let (goal, time) = match self.end {
            End::Messages(count) => (Goal::Received(count), None),
            End::Time(time) => (Goal::Time(time), Some(time)),
        };
        supervisor.start(Some(goal));
        let start_ns = supervisor.start_ns();
        board.start_producers(start_ns);
        let mut are_told = false;
        supervisor.watch(
            |totals| format!("{} requests have no reply", totals.published.saturating_sub(totals.received)),
            |_, tally| {
                let elapsed = Duration::from_nanos(board.now_ns().saturating_sub(start_ns));
                if !are_told && time.is_some_and(|time| elapsed >= time) {
                    are_told = true;
                    board.end_producers();
                }
                tally.sent.len() == self.clients
            },
        )?;
        board.end_consumers();
        supervisor.watch(
            |_| "it does not close connections".to_owned(),
            |_, tally| tally.consumers_ended == self.own_servers(),
        )
    }

    fn ask(
        &self,
        index: usize,
        url: &Url,
        board: &Board,
        queue: &str,
        news: &Sender<News>,
        replies: &mut Replies,
    ) -> Result<(), Error> {
        let mut lane = Lane::open(url, board, board.worker(index), |_| Ok(()))?;
        lane.scanner().keep_headers();
        lane.send_consume(REPLY_TO, 0, true)?;
        if !lane.await_answer(|event| *event == Event::ConsumeOk)? {
            return Ok(());
        }
        let properties = BasicProperties { reply_to: Some(REPLY_TO.as_bytes()), ..BasicProperties::default() };
        let (channel, frame_max) = (lane.channel, lane.frame_max);
        let (body_bytes, stamp_place) = (self.body_bytes, StampPlace::CorrelationId);
        let shape = Shape { channel, exchange: "", properties, body_bytes, frame_max, stamp_place };
        let mut requests = Publishes::new(&shape, &[queue.to_owned()], WRITE_BYTES)?;
        say(news, News::Ready);
        if lane.await_start(Board::producers_start_ns)?.is_none() {
            return Ok(());
        }
        let count_max = match self.end {
            End::Messages(count) => {
                let (index, clients) = (index as u64, self.clients as u64);
                count / clients + u64::from(index < count % clients)
            }
            End::Time(_) => u64::MAX,
        };
        let flow = u32::try_from(index).unwrap_or(u32::MAX);
        let mut received = 0;
        while !board.is_given_up() && !board.is_enough() {
            let is_over = replies.sent >= count_max || board.are_producers_over();
            if is_over && received >= replies.sent {
                break;
            }
            let now_ns = board.now_ns();
            let sent_before = replies.sent;
            while !is_over
                && !lane.is_blocked()
                && replies.sent < count_max
                && replies.sent - received < self.outstanding
                // What the socket has no room for yet need not be made yet.
                && lane.output.len() < WRITE_BYTES
            {
                let at = usize::try_from(replies.sent % requests.count() as u64).unwrap_or_default();
                requests.stamp_correlation_id(at, Stamp { flow, sequence: replies.sent, time_ns: now_ns });
                lane.output.extend_from_slice(requests.bytes(at..at + 1));
                replies.sent += 1;
            }
            lane.counters.add_published(replies.sent - sent_before, now_ns);
            lane.flush_some()?;
            if !lane.read()? {
                continue;
            }
            let now_ns = board.now_ns();
            let received_before = received;
            while let Some(event) = lane.poll_event()? {
                let Event::Message(arrived) = event else {
                    return Err(Error::Unexpected(format!("{event:?} to a client")));
                };
                let properties = ContentHeader::decode(lane.scanner().header())?.properties;
                let stamp = properties.correlation_id.and_then(Stamp::decode_hex);
                let stamp =
                    stamp.ok_or_else(|| Error::Unexpected("a reply with another correlation id".to_owned()))?;
                received += 1;
                replies.latencies.record_ns(now_ns.saturating_sub(stamp.time_ns));
                // What servers of others reply is up to them.
                let is_changed = self.own_servers() > 0 && arrived.body_bytes != self.body_bytes as u64;
                match &mut replies.seen {
                    Some(seen) if is_changed => seen.handle_unknown(),
                    Some(seen) => {
                        seen.handle_arrival((flow, stamp.flow), stamp.sequence);
                    }
                    None => {}
                }
            }
            lane.counters.add_received(received - received_before, 0, now_ns);
        }
        if !board.is_given_up() {
            lane.close()?;
        }
        say(news, News::ProducerEnded { index, sent: replies.sent });
        Ok(())
    }

    fn outcome(&self, supervisor: &mut Supervisor<'_, '_>, board: &Board, all: Vec<Replies>) -> Outcome {
        let totals = board.totals();
        let mut latencies = Latencies::default();
        let mut seen = Vec::new();
        let mut expected = BTreeMap::new();
        for (index, replies) in all.into_iter().enumerate() {
            let flow = u32::try_from(index).unwrap_or(u32::MAX);
            expected.insert((flow, flow), replies.sent);
            latencies.add(&replies.latencies);
            seen.extend(replies.seen);
        }
        let verify = self.verify.then(|| check(seen, &expected, &Refused::default()));
        // Several servers may overtake each other.
        let verify = verify.map(|found| match self.own_servers() {
            1 => found,
            _ => Verification { disordered: 0, ..found },
        });
        // Those that nobody waited for are not lost.
        let left = if board.is_enough() { totals.published.saturating_sub(totals.received) } else { 0 };
        let verify = verify.map(|found| Verification { lost: found.lost.saturating_sub(left), ..found });
        let time = Duration::from_nanos(totals.received_ns.saturating_sub(supervisor.start_ns()));
        Outcome {
            seconds: time.as_secs_f64(),
            interrupted: supervisor.interrupted,
            published: Some(totals.published),
            received: Some(totals.received),
            publish_rate: Some(rate(totals.published, time)),
            receive_rate: Some(rate(totals.received, time)),
            held_seconds: Duration::from_nanos(totals.held_ns).as_secs_f64(),
            latency_us: latencies.summary(),
            verify,
            samples: supervisor.take_samples(),
            latency_curve: latencies.curve(),
            ..Outcome::default()
        }
    }
}

/// Requests without a reply.
fn unanswered(outcome: &Outcome) -> u64 {
    outcome.published.unwrap_or_default().saturating_sub(outcome.received.unwrap_or_default())
}

/// What a server's thread does.
fn serve(index: usize, url: &Url, board: &Board, queue: &str, news: &Sender<News>) -> Result<(), Error> {
    let mut lane = Lane::open(url, board, board.worker(index), |_| Ok(()))?;
    lane.scanner().keep_headers();
    lane.send_consume(queue, 0, true)?;
    if !lane.await_answer(|event| *event == Event::ConsumeOk)? {
        return Ok(());
    }
    say(news, News::Ready);
    let mut body = Vec::new();
    let mut header = Vec::new();
    let mut request = Vec::new();
    while !board.are_consumers_over() {
        lane.flush_some()?;
        // While the broker does not take the replies, there is no room for more of them.
        if lane.output.len() >= WRITE_BYTES || !lane.read()? {
            continue;
        }
        while let Some(event) = lane.poll_event()? {
            let Event::Message(arrived) = event else {
                return Err(Error::Unexpected(format!("{event:?} to a server")));
            };
            // A reply is as long as its request, so that the client sees if that was cut.
            body.resize(usize::try_from(arrived.body_bytes).unwrap_or(usize::MAX), b' ');
            request.clear();
            request.extend_from_slice(lane.scanner().header());
            let BasicProperties { reply_to, correlation_id, .. } = ContentHeader::decode(&request)?.properties;
            let reply_to = std::str::from_utf8(reply_to.unwrap_or_default()).map_err(|_| DecodeError::NotUtf8)?;
            header.clear();
            let properties = BasicProperties { correlation_id, ..BasicProperties::default() };
            ContentHeader { body_bytes: body.len() as u64, properties }.encode(&mut header);
            let reply = Method::BasicPublish {
                ticket: 0,
                exchange: ShortStr::EMPTY,
                routing_key: ShortStr::new(reply_to)?,
                mandatory: false,
                immediate: false,
            };
            let (channel, frame_max) = (lane.channel, lane.frame_max);
            write_method(&mut lane.output, channel, &reply);
            write_content(&mut lane.output, channel, &header, &body, frame_max);
        }
    }
    if !board.is_given_up() {
        lane.close()?;
    }
    say(news, News::ConsumerEnded);
    Ok(())
}
