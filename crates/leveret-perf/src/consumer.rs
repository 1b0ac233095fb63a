//! One consumer: a thread that counts what arrives, and looks at it only as far as somebody wants to know.

use leveret_amqp::{Method, ShortStr};
use leveret_client::Error;

use crate::lane::Lane;
use crate::latency::Latencies;
use crate::scan::{Arrived, Event};
use crate::stamp::Stamp;
use crate::verify::Seen;

/// What a consumer finds out about messages, beyond their number.
#[derive(Debug, Default)]
pub(crate) struct Findings {
    /// Which messages they are, if that is verified.
    pub(crate) seen: Option<Seen>,
    /// How long they took, if that is measured.
    pub(crate) latencies: Option<Latencies>,
}

/// A consumer that is connected.
#[derive(Debug)]
pub(crate) struct Consumer<'b> {
    pub(crate) lane: Lane<'b>,
    /// Its queues, and the number that stands for each.
    pub(crate) queues: Vec<(u32, String)>,
    /// How many messages one ack settles; 0 for no acks.
    pub(crate) ack_every: u64,
    pub(crate) findings: Findings,
}

impl Findings {
    /// Takes note of a message from `queue`. The time is that of its arrival.
    fn note(&mut self, queue: u32, arrived: &Arrived, now_ns: u64) {
        let stamp = Stamp::decode(arrived.stamp);
        if let Some(seen) = &mut self.seen {
            seen.handle_arrival((queue, stamp.flow), stamp.sequence);
        }
        if let Some(latencies) = &mut self.latencies {
            latencies.record_ns(now_ns.saturating_sub(stamp.time_ns));
        }
    }

    fn wants_stamps(&self) -> bool {
        self.seen.is_some() || self.latencies.is_some()
    }
}

impl Consumer<'_> {
    /// Consumes until the end of the run. `tell_ready` is called when all its consumers have begun.
    pub(crate) fn run(&mut self, tell_ready: impl FnOnce()) -> Result<(), Error> {
        for (number, queue) in &self.queues {
            self.lane.send_consume(queue, *number, self.ack_every == 0)?;
        }
        let mut tell_ready = Some(tell_ready);
        let mut begun = 0;
        let mut unacked = Unacked::default();
        let wants_stamps = self.findings.wants_stamps();
        while !self.lane.board.are_consumers_over() {
            self.lane.flush_some()?;
            if !self.lane.read()? {
                unacked.ack(&mut self.lane);
                continue;
            }
            let now_ns = self.lane.board.now_ns();
            let mut received = 0;
            while let Some(event) = self.lane.poll_event()? {
                match event {
                    Event::Message(arrived) => {
                        received += 1;
                        if wants_stamps {
                            self.findings.note(arrived.consumer, &arrived, now_ns);
                        }
                        if self.ack_every > 0 && unacked.add(arrived.delivery_tag) >= self.ack_every {
                            unacked.ack(&mut self.lane);
                        }
                    }
                    Event::ConsumeOk => {
                        begun += 1;
                        if begun == self.queues.len()
                            && let Some(tell) = tell_ready.take()
                        {
                            tell();
                        }
                    }
                    other => return Err(Error::Unexpected(format!("{other:?} to a consumer"))),
                }
            }
            self.lane.counters.add_received(received, now_ns);
        }
        unacked.ack(&mut self.lane);
        self.lane.close()
    }

    /// Gets one message after the other until its queues are empty.
    pub(crate) fn get_all(&mut self) -> Result<(), Error> {
        let mut unacked = Unacked::default();
        'queues: for (number, queue) in std::mem::take(&mut self.queues) {
            let get = Method::BasicGet { ticket: 0, queue: ShortStr::new(&queue)?, no_ack: self.ack_every == 0 };
            while !self.lane.board.are_consumers_over() {
                let asked_ns = self.lane.board.now_ns();
                self.lane.send(&get);
                let Some(event) = self.next_event()? else { break 'queues };
                let now_ns = self.lane.board.now_ns();
                match event {
                    Event::Message(arrived) => {
                        if let Some(seen) = &mut self.findings.seen {
                            let stamp = Stamp::decode(arrived.stamp);
                            seen.handle_arrival((number, stamp.flow), stamp.sequence);
                        }
                        if let Some(latencies) = &mut self.findings.latencies {
                            latencies.record_ns(now_ns - asked_ns);
                        }
                        if self.ack_every > 0 && unacked.add(arrived.delivery_tag) >= self.ack_every {
                            unacked.ack(&mut self.lane);
                        }
                        self.lane.counters.add_received(1, now_ns);
                    }
                    Event::GetEmpty => break,
                    other => return Err(Error::Unexpected(format!("{other:?} to basic.get"))),
                }
            }
        }
        unacked.ack(&mut self.lane);
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
