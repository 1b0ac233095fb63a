//! One producer: a thread that writes prepared publishes as fast as it may.

use std::time::Duration;

use leveret_client::Error;

use crate::lane::Lane;
use crate::latency::Latencies;
use crate::limits::{BATCH, LOOK_UP, WRITE_BYTES};
use crate::publishes::Publishes;
use crate::scan::Event;
use crate::schedule::Schedule;
use crate::stamp::Stamp;
use crate::verify::Refused;
use crate::window::{Verdict, Window};

/// How exactly a rate is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Pace {
    /// What is due within a millisecond goes out together, which saves processor time.
    Batched,
    /// Each message goes out when it is due, so that a latency has nothing of ours in it.
    Exact,
}

/// A producer that is connected.
#[derive(Debug)]
pub(crate) struct Producer<'b> {
    pub(crate) lane: Lane<'b>,
    pub(crate) publishes: Publishes,
    /// The flow of each of its routing keys, in the order of the publishes.
    pub(crate) flows: Vec<u32>,
    /// Bodies say which message they are, and when it was due.
    pub(crate) is_stamped: bool,
    pub(crate) window: Option<Window>,
    pub(crate) schedule: Option<Schedule>,
    pub(crate) pace: Pace,
    /// Most messages it sends.
    pub(crate) count_max: u64,
    /// When it stops, in nanoseconds since the beginning: see [`Producer::set_end`].
    pub(crate) end_ns: u64,
    pub(crate) sent: u64,
    pub(crate) latencies: Latencies,
    /// What the broker refused.
    pub(crate) refused: Refused,
}

impl Producer<'_> {
    /// Nothing is due from `end_ns` on. Where latencies count from the schedule, all that was due before is sent nevertheless,
    /// for the longest are among them; but not later than `late` after the end.
    pub(crate) fn set_end(&mut self, end_ns: u64, late: Duration) {
        self.end_ns = end_ns;
        if let (Some(schedule), Pace::Exact) = (self.schedule, self.pace) {
            self.count_max = self.count_max.min(schedule.due_count(end_ns.saturating_sub(1)));
            self.end_ns = end_ns.saturating_add(u64::try_from(late.as_nanos()).unwrap_or(u64::MAX));
        }
    }

    /// Publishes all it may, waits for its confirms, and until the broker has handled everything.
    pub(crate) fn run(&mut self) -> Result<(), Error> {
        if self.pace == Pace::Exact {
            wake_up_in_time();
        }
        let mut has_looked = true;
        loop {
            let now_ns = self.lane.board.now_ns();
            if self.sent >= self.count_max || now_ns >= self.end_ns || self.lane.board.are_producers_over() {
                break;
            }
            let count = self.count_now(now_ns);
            if count == 0 {
                self.wait(now_ns)?;
            } else {
                // A wait has just looked at the input.
                if !has_looked {
                    self.handle_input(Duration::ZERO)?;
                }
                self.publish(count, now_ns)?;
            }
            has_looked = count == 0;
        }
        self.count_overdue();
        while self.window.as_ref().is_some_and(|window| window.outstanding() > 0) && !self.lane.board.is_given_up()
        {
            self.handle_input(LOOK_UP)?;
        }
        if !self.lane.board.is_given_up() {
            self.lane.close()?;
            self.lane.counters.note_handled(self.lane.board.now_ns());
        }
        Ok(())
    }

    /// Counts what is due and stays unsent, where its latency would count.
    fn count_overdue(&self) {
        if let (Some(schedule), Pace::Exact) = (self.schedule, self.pace) {
            let due = schedule.due_count(self.lane.board.now_ns()).min(self.count_max);
            self.lane.counters.add_overdue(due.saturating_sub(self.sent));
        }
    }

    /// How many publishes may go out at once now.
    fn count_now(&self, now_ns: u64) -> usize {
        if self.lane.is_blocked() {
            return 0;
        }
        let due = self.schedule.map_or(u64::MAX, |schedule| schedule.due_count(now_ns).saturating_sub(self.sent));
        let left = usize::try_from(due.min(self.count_max - self.sent)).unwrap_or(usize::MAX);
        let room = self.window.as_ref().map_or(usize::MAX, Window::room);
        let prepared = self.publishes.count() - self.next();
        let at_once = (WRITE_BYTES / self.publishes.bytes_each()).max(1);
        left.min(room).min(prepared).min(at_once)
    }

    /// The index of the prepared publish whose turn it is.
    fn next(&self) -> usize {
        usize::try_from(self.sent % self.publishes.count() as u64).unwrap_or_default()
    }

    /// Waits until a message is due, or for news of the broker.
    fn wait(&mut self, now_ns: u64) -> Result<(), Error> {
        let next_ns = self.schedule.map_or(0, |schedule| schedule.time_ns(self.sent));
        let until_due = Duration::from_nanos(next_ns.saturating_sub(now_ns));
        self.handle_input(match self.pace {
            // It is due, so something else is missing.
            _ if until_due.is_zero() => LOOK_UP,
            Pace::Batched => until_due.max(BATCH),
            Pace::Exact => until_due,
        })
    }

    /// The flow of a message, counted from 0, and its number in it.
    fn name_of(&self, number: u64) -> (u32, u64) {
        let keys = self.flows.len() as u64;
        (self.flows[usize::try_from(number % keys).unwrap_or_default()], number / keys)
    }

    fn publish(&mut self, count: usize, now_ns: u64) -> Result<(), Error> {
        let first = self.next();
        for offset in 0..count {
            let number = self.sent + offset as u64;
            let time_ns = self.schedule.map_or(now_ns, |schedule| schedule.time_ns(number));
            if self.is_stamped {
                let (flow, sequence) = self.name_of(number);
                self.publishes.stamp(first + offset, Stamp { flow, sequence, time_ns });
            }
            if let Some(window) = &mut self.window {
                window.handle_published(time_ns);
            }
        }
        let sent = self.write(first, count)?;
        if let Some(window) = &mut self.window {
            window.withdraw(count - sent);
        }
        self.sent += sent as u64;
        self.lane.counters.add_published(sent as u64, now_ns);
        Ok(())
    }

    /// Writes prepared publishes, and says how many. When the run ends meanwhile, those that were not begun stay away.
    fn write(&mut self, first: usize, mut count: usize) -> Result<usize, Error> {
        let mut written = 0;
        loop {
            let bytes = &self.publishes.bytes(first..first + count)[written..];
            if bytes.is_empty() {
                return Ok(count);
            }
            let now_written = self.lane.write_some(bytes)?;
            written += now_written;
            if now_written > 0 {
                continue;
            }
            // Perhaps the broker waits for us to read.
            self.handle_input(Duration::ZERO)?;
            let is_over = self.lane.board.are_producers_over() || self.lane.board.now_ns() >= self.end_ns;
            let (whole, rest) = self.publishes.whole_within(first, written);
            if self.lane.board.is_given_up() {
                return Ok(whole);
            }
            if is_over {
                count = whole + usize::from(rest > 0);
            }
        }
    }

    /// Reads once, and takes confirms.
    fn handle_input(&mut self, wait: Duration) -> Result<(), Error> {
        if !self.lane.read_within(wait)? {
            return Ok(());
        }
        let now_ns = self.lane.board.now_ns();
        while let Some(event) = self.lane.poll_event()? {
            let (number, multiple, verdict) = match event {
                Event::Ack { number, multiple } => (number, multiple, Verdict::Confirmed),
                Event::Nack { number, multiple } => (number, multiple, Verdict::Nacked),
                other => return Err(Error::Unexpected(format!("{other:?} to a producer"))),
            };
            let window =
                self.window.as_mut().ok_or_else(|| Error::Unexpected("a confirm nobody asked for".to_owned()))?;
            window.handle_verdict(number, multiple, verdict, now_ns, &mut self.latencies)?;
        }
        if let Some(window) = &mut self.window {
            let (confirmed, nacked) = window.take_verdicts();
            self.lane.counters.add_confirmed(confirmed, nacked.len() as u64, now_ns);
            for number in nacked {
                // The window counts from 1.
                let (flow, sequence) = self.name_of(number - 1);
                self.refused.insert(flow, sequence);
            }
        }
        Ok(())
    }
}

/// Linux lets a sleep last 50 microseconds longer than it should, which would count as latency.
#[cfg(target_os = "linux")]
fn wake_up_in_time() {
    // Where it cannot be had, latencies are that much longer.
    let _ = rustix::thread::set_current_timer_slack(std::num::NonZeroU64::new(1));
}

#[cfg(not(target_os = "linux"))]
fn wake_up_in_time() {}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::{TcpListener, TcpStream};
    use std::thread::{self, JoinHandle};
    use std::time::Instant;

    use leveret_amqp::frame::{split_frame, write_method};
    use leveret_amqp::{BasicProperties, FrameKind, Method};
    use leveret_client::RawConnection;

    use super::*;
    use crate::board::Board;
    use crate::publishes::{Shape, StampPlace};

    const FRAME_MAX: u32 = 4096;

    /// A peer that confirms each publish, and says how many there were when the connection is closed.
    fn confirming_peer() -> (TcpStream, JoinHandle<u64>) {
        let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
        let stream = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (mut peer, _) = listener.accept().unwrap();
        let published = thread::spawn(move || {
            let (mut input, mut buffer, mut published) = (Vec::new(), [0; 4096], 0);
            while let Ok(count @ 1..) = peer.read(&mut buffer) {
                input.extend_from_slice(&buffer[..count]);
                let (mut rest, mut output) = (&input[..], Vec::new());
                while let Some(frame) = split_frame(&mut rest, FRAME_MAX).unwrap() {
                    if frame.kind != FrameKind::Method {
                        continue;
                    }
                    match Method::decode(frame.payload).unwrap() {
                        Method::BasicPublish { .. } => {
                            published += 1;
                            let ack = Method::BasicAck { delivery_tag: published, multiple: false };
                            write_method(&mut output, 1, &ack);
                        }
                        Method::ConnectionClose { .. } => return published,
                        other => panic!("{other:?}"),
                    }
                }
                peer.write_all(&output).unwrap();
                let taken = input.len() - rest.len();
                input.drain(..taken);
            }
            published
        });
        (stream, published)
    }

    fn producer(stream: TcpStream, board: &Board, window: usize, pace: Pace) -> Producer<'_> {
        let raw = RawConnection { stream, input: Vec::new(), frame_max: FRAME_MAX, blocked: None };
        let shape = Shape {
            channel: 1,
            exchange: "",
            properties: BasicProperties::default(),
            body_bytes: 16,
            frame_max: FRAME_MAX,
            stamp_place: StampPlace::Body,
        };
        Producer {
            lane: Lane::over(raw, 1, board, board.worker(0)).unwrap(),
            publishes: Publishes::new(&shape, &["k".to_owned()], 1000).unwrap(),
            flows: vec![0],
            is_stamped: false,
            window: Some(Window::new(window)),
            schedule: Some(Schedule::new(0, 1000, 0, 1)),
            pace,
            count_max: u64::MAX,
            end_ns: u64::MAX,
            sent: 0,
            latencies: Latencies::default(),
            refused: Refused::default(),
        }
    }

    /// A run that began a minute ago, in which nothing was sent yet: as after a stall.
    fn board_after_a_minute() -> Board {
        Board::since(Instant::now().checked_sub(Duration::from_mins(1)).unwrap(), 1)
    }

    #[test]
    fn a_confirm_counts_from_when_its_publish_was_due() {
        for pace in [Pace::Batched, Pace::Exact] {
            let board = board_after_a_minute();
            let (stream, peer) = confirming_peer();
            let mut producer = producer(stream, &board, 10, pace);
            producer.count_max = 100;
            producer.run().unwrap();
            assert_eq!(peer.join().unwrap(), 100);
            let summary = producer.latencies.summary().unwrap();
            assert!(summary.count == 100 && summary.p50 > 59_000_000, "{summary:?}");
        }
    }

    #[test]
    fn what_was_due_before_the_end_is_sent_after_it_and_what_is_not_is_counted() {
        let (second_ns, hour) = (1_000_000_000, Duration::from_hours(1));
        for (pace, late, sent, overdue) in
            [(Pace::Exact, hour, 1000, 0), (Pace::Exact, Duration::ZERO, 0, 1000), (Pace::Batched, hour, 0, 0)]
        {
            let board = board_after_a_minute();
            let (stream, peer) = confirming_peer();
            let mut producer = producer(stream, &board, 10, pace);
            producer.set_end(second_ns, late);
            producer.run().unwrap();
            assert_eq!((peer.join().unwrap(), board.totals().overdue), (sent, overdue));
        }
    }
}
