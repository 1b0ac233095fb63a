//! One consumer: a thread that counts what arrives, and looks at it only as far as somebody wants to know.

use leveret_amqp::{Method, ShortStr};
use leveret_client::Error;

use crate::board::Board;
use crate::lane::Lane;
use crate::latency::Latencies;
use crate::scan::{Arrived, Event};
use crate::stamp::Stamp;
use crate::verify::Seen;

/// What a consumer finds out about messages, beyond their number.
#[derive(Debug)]
pub(crate) struct Findings {
    /// Bytes of each body that was published.
    pub(crate) body_bytes: u64,
    /// Which messages they are, if that is verified.
    pub(crate) seen: Option<Seen>,
    /// How long they took, if that is measured.
    pub(crate) latencies: Option<Latencies>,
}

/// A consumer that is connected.
#[derive(Debug)]
pub(crate) struct Consumer<'b, 'f> {
    lane: Lane<'b>,
    /// Its queues, and the number that stands for each.
    queues: Vec<(u32, String)>,
    /// How many messages one ack settles; 0 for no acks.
    ack_every: u64,
    findings: &'f mut Findings,
    unacked: Unacked,
    /// How many of its consumers have begun, and how many have ended.
    begun: usize,
    ended: usize,
}

impl Findings {
    /// Takes note of a message. `false` when it had arrived before.
    fn note(&mut self, arrived: &Arrived, now_ns: u64) -> bool {
        if let Some(latencies) = &mut self.latencies {
            let stamp = Stamp::decode(arrived.stamp);
            latencies.record_ns(now_ns.saturating_sub(stamp.time_ns));
        }
        self.note_seen(arrived.consumer, arrived)
    }

    /// The same, of a message of this queue whose latency does not count.
    fn note_seen(&mut self, queue: u32, arrived: &Arrived) -> bool {
        match &mut self.seen {
            Some(seen) if arrived.body_bytes != self.body_bytes => {
                seen.handle_unknown();
                true
            }
            Some(seen) => {
                let stamp = Stamp::decode(arrived.stamp);
                seen.handle_arrival((queue, stamp.flow), stamp.sequence)
            }
            None => true,
        }
    }

    fn wants_stamps(&self) -> bool {
        self.seen.is_some() || self.latencies.is_some()
    }
}

impl<'b, 'f> Consumer<'b, 'f> {
    pub(crate) fn new(
        lane: Lane<'b>,
        queues: Vec<(u32, String)>,
        ack_every: u64,
        findings: &'f mut Findings,
    ) -> Self {
        Consumer { lane, queues, ack_every, findings, unacked: Unacked::default(), begun: 0, ended: 0 }
    }

    /// Waits until it may consume. `false` when the run was given up.
    pub(crate) fn await_start(&mut self) -> Result<bool, Error> {
        Ok(self.lane.await_start(Board::consumers_start_ns)?.is_some())
    }

    /// Consumes until the end of the run, and takes what the broker has sent until then. `tell_ready` is called when all its
    /// consumers have begun.
    pub(crate) fn run(&mut self, tell_ready: impl FnOnce()) -> Result<(), Error> {
        let board = self.lane.board;
        for (number, queue) in &self.queues {
            self.lane.send_consume(queue, *number, self.ack_every == 0)?;
        }
        while self.begun < self.queues.len() && !board.are_consumers_over() {
            self.handle_input()?;
        }
        tell_ready();
        while !board.are_consumers_over() {
            self.handle_input()?;
        }
        for (number, _) in &self.queues {
            self.lane.send_cancel(*number)?;
        }
        while self.ended < self.queues.len() && !board.is_given_up() {
            self.handle_input()?;
        }
        self.unacked.ack(&mut self.lane);
        self.lane.close()
    }

    /// Reads once, and counts what arrived.
    fn handle_input(&mut self) -> Result<(), Error> {
        self.lane.flush_some()?;
        if !self.lane.read()? {
            self.unacked.ack(&mut self.lane);
            return Ok(());
        }
        let now_ns = self.lane.board.now_ns();
        let wants_stamps = self.findings.wants_stamps();
        let (mut received, mut repeated) = (0, 0);
        while let Some(event) = self.lane.poll_event()? {
            match event {
                Event::Message(arrived) => {
                    received += 1;
                    if wants_stamps && !self.findings.note(&arrived, now_ns) {
                        repeated += 1;
                    }
                    if self.ack_every > 0 && self.unacked.add(arrived.delivery_tag) >= self.ack_every {
                        self.unacked.ack(&mut self.lane);
                    }
                }
                Event::ConsumeOk => self.begun += 1,
                Event::CancelOk => self.ended += 1,
                other => return Err(Error::Unexpected(format!("{other:?} to a consumer"))),
            }
        }
        self.lane.counters.add_received(received, repeated, now_ns);
        Ok(())
    }

    /// Gets one message after the other until its queues are empty.
    pub(crate) fn get_all(&mut self) -> Result<(), Error> {
        'queues: for (number, queue) in std::mem::take(&mut self.queues) {
            let get = Method::BasicGet { ticket: 0, queue: ShortStr::new(&queue)?, no_ack: self.ack_every == 0 };
            while !self.lane.board.are_consumers_over() {
                let asked_ns = self.lane.board.now_ns();
                self.lane.send(&get);
                let Some(event) = self.next_event()? else { break 'queues };
                let now_ns = self.lane.board.now_ns();
                match event {
                    Event::Message(arrived) => {
                        let is_new = self.findings.note_seen(number, &arrived);
                        if let Some(latencies) = &mut self.findings.latencies {
                            latencies.record_ns(now_ns - asked_ns);
                        }
                        if self.ack_every > 0 && self.unacked.add(arrived.delivery_tag) >= self.ack_every {
                            self.unacked.ack(&mut self.lane);
                        }
                        self.lane.counters.add_received(1, u64::from(!is_new), now_ns);
                    }
                    Event::GetEmpty => break,
                    other => return Err(Error::Unexpected(format!("{other:?} to basic.get"))),
                }
            }
        }
        self.unacked.ack(&mut self.lane);
        self.lane.close()
    }

    /// Waits for an event; `None` when the run is over before one comes.
    fn next_event(&mut self) -> Result<Option<Event>, Error> {
        loop {
            self.lane.flush_some()?;
            if let Some(event) = self.lane.poll_event()? {
                return Ok(Some(event));
            }
            if !self.lane.read()? && self.lane.board.are_consumers_over() {
                return Ok(None);
            }
        }
    }
}

/// What was delivered and not acked yet.
#[derive(Debug, Default)]
struct Unacked {
    count: u64,
    last_tag: u64,
}

impl Unacked {
    /// Adds a delivery, and says how many there are.
    fn add(&mut self, delivery_tag: u64) -> u64 {
        self.count += 1;
        self.last_tag = delivery_tag;
        self.count
    }

    /// Acks all of them with the next output.
    fn ack(&mut self, lane: &mut Lane<'_>) {
        if self.count > 0 {
            lane.send(&Method::BasicAck { delivery_tag: self.last_tag, multiple: self.count > 1 });
            self.count = 0;
        }
    }
}
