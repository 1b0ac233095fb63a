//! Producers and consumers behind a proxy through which nothing goes well, and who come back each time.
//!
//! Owns: what each of these clients does, and what came of it.
//! Must not know: what becomes of a line.

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, ensure};
use leveret_client::{BasicProperties, Connection, ConsumeOptions, ConsumerEvent, Error, PublishTo, Url};

use super::chaos::Proxy;
use super::ledger::{Ledger, Stamp};
use super::stage::{Files, Stage};
use super::{DURABLE, PERSISTENT, QUEUE, connect, drain};
use crate::process::check_interrupted;

const PRODUCERS: usize = 8;
const CONSUMERS: usize = 5;

/// A consumer acks so many messages at once, and may hold twice as many.
const ACK_EVERY: u64 = 10;
const PREFETCH: u16 = 20;

/// How long a client keeps a connection, if it can.
const KEPT_FOR: Duration = Duration::from_secs(3);

/// How long a client believes in a broker that does not answer; half-open connections are found out by heartbeats.
const BELIEVES_FOR: Duration = Duration::from_secs(5);

/// In which what is half-open is given up and its sockets are closed: that takes two heartbeats at least.
const GIVEN_UP_WITHIN: Duration = Duration::from_millis(2500);

const LOOK_EVERY: Duration = Duration::from_millis(20);

/// What came of all connections of one client.
#[derive(Clone, Copy, Debug, Default)]
struct Came {
    /// Connections that ended as they should.
    to_its_end: usize,
    /// Those that did not, which is expected.
    to_trouble: usize,
    /// Messages that were confirmed, or came.
    messages: usize,
}

/// A client's connections, one after the other.
struct Client<'s> {
    url: &'s Url,
    ledger: &'s Mutex<Ledger>,
    is_over: &'s AtomicBool,
    came: Came,
    /// What is wrong with the broker, and no trouble of the line.
    fault: Option<anyhow::Error>,
}

impl Client<'_> {
    /// Comes back until it is over.
    fn come_back(mut self, mut once: impl FnMut(&mut Self) -> Result<(), Error>) -> Result<Came> {
        while !self.is_over.load(Ordering::Relaxed) {
            match once(&mut self) {
                Ok(()) => self.came.to_its_end += 1,
                // The broker finds nothing wrong with what these clients say; but bytes may be missing where a line was cut.
                Err(error @ Error::Closed { .. }) => return Err(error.into()),
                Err(_) => self.came.to_trouble += 1,
            }
            if let Some(fault) = self.fault {
                return Err(fault);
            }
            check_interrupted()?;
        }
        Ok(self.came)
    }

    fn goes_on(&self, since: Instant) -> bool {
        self.fault.is_none() && since.elapsed() < KEPT_FOR && !self.is_over.load(Ordering::Relaxed)
    }

    /// Writes down how many messages more came to it, or what is wrong with them.
    fn note(&mut self, note: impl FnOnce(&mut Ledger) -> Result<usize>) {
        let ledger = self.ledger.lock().map_err(|_| anyhow!("somebody panicked"));
        match ledger.and_then(|mut ledger| note(&mut ledger)) {
            Ok(messages) => self.came.messages += messages,
            Err(fault) => self.fault = Some(fault),
        }
    }

    /// Publishes on one connection for as long as it holds; numbers that were used are not used again.
    fn publish(&mut self, producer: usize, next: &mut usize) -> Result<(), Error> {
        let first = *next;
        let mut connection = open(self.url)?;
        let mut channel = connection.open_channel()?;
        channel.confirm_select()?;
        let properties = BasicProperties { delivery_mode: Some(PERSISTENT), ..BasicProperties::default() };
        let since = Instant::now();
        while self.goes_on(since) {
            // Of all sizes up to several reads of a socket.
            let mut body = vec![b'x'; 16 + (*next * 7919) % 40_000];
            Stamp { producer, number: *next }.write(&mut body);
            *next += 1;
            channel.publish(PublishTo::queue(QUEUE), &properties, &body)?;
            let confirms = channel.wait_confirms(20)?;
            self.note(|ledger| ledger.confirmed(producer, first, &confirms));
        }
        let confirms = channel.wait_confirms(0)?;
        self.note(|ledger| ledger.confirmed(producer, first, &confirms));
        Ok(())
    }

    /// Consumes on one connection for as long as it holds.
    fn consume(&mut self) -> Result<(), Error> {
        let mut connection = open(self.url)?;
        let mut channel = connection.open_channel()?;
        channel.qos(PREFETCH)?;
        channel.consume(QUEUE, &ConsumeOptions::default())?;
        let since = Instant::now();
        while self.goes_on(since) {
            let Some(ConsumerEvent::Delivery(delivery)) = channel.next_event(LOOK_EVERY)? else { continue };
            let body = &delivery.message.body;
            self.note(|ledger| ledger.delivered(body, delivery.redelivered).map(|()| 1));
            // Some that came are not acked when the line is cut, and come again to others.
            if delivery.delivery_tag % ACK_EVERY == 0 {
                channel.ack_up_to(delivery.delivery_tag)?;
                channel.flush()?;
            }
        }
        Ok(())
    }
}

fn open(url: &Url) -> Result<Connection, Error> {
    let mut connection = Connection::open(url)?;
    connection.set_answer_timeout(BELIEVES_FOR);
    Ok(connection)
}

pub(super) fn trouble(stage: &mut Stage, time: Duration) -> Result<String> {
    // Half of them have to be found out before the end.
    let time = time.max(Duration::from_secs(8));
    let direct = stage.url();
    connect(&direct)?.open_channel()?.declare_queue(QUEUE, &DURABLE)?;
    let sockets = stage.settled_files(Files::Sockets)?;
    let proxy = Proxy::start(stage.address().parse()?)?;
    let url: Url =
        format!("amqp://guest:guest@{}/%2F?heartbeat=1&connection_timeout=5000", proxy.address).parse()?;
    let ledger = Mutex::new(Ledger::new(PRODUCERS));
    let is_over = AtomicBool::new(false);
    let came = thread::scope(|scope| {
        let (url, ledger, is_over) = (&url, &ledger, &is_over);
        let client = || Client { url, ledger, is_over, came: Came::default(), fault: None };
        let mut threads: Vec<_> = (0..PRODUCERS)
            .map(|producer| {
                let (client, mut next) = (client(), 0);
                scope.spawn(move || client.come_back(|client| client.publish(producer, &mut next)))
            })
            .collect();
        threads.extend((0..CONSUMERS).map(|_| {
            let client = client();
            scope.spawn(|| client.come_back(Client::consume))
        }));
        let started = Instant::now();
        while started.elapsed() < time && threads.iter().all(|thread| !thread.is_finished()) {
            thread::sleep(LOOK_EVERY);
        }
        is_over.store(true, Ordering::Relaxed);
        threads
            .into_iter()
            .map(|thread| thread.join().ok().context("a client panicked")?)
            .collect::<Result<Vec<_>>>()
    })?;
    // The proxy still holds what is half-open: the broker has to find out by itself.
    let given_up_in = stage.wait_until("the broker to give up what is half-open", GIVEN_UP_WITHIN, || {
        Ok(stage.files(Files::Sockets)? <= sockets)
    })?;
    let troubled = proxy.stop();
    ensure!(troubled.is_complete(), "not all troubles were there: {troubled}");
    let messages: Vec<_> = came.iter().map(|came| came.messages).collect();
    let (confirmed, received) = messages.split_at(PRODUCERS);
    ensure!(!messages.contains(&0), "one was starved: {confirmed:?} confirmed, {received:?} received");
    let mut ledger = ledger.into_inner().ok().context("somebody panicked")?;
    let left = drain(&direct, &mut ledger)?;
    let sums = ledger.check()?;
    let ended: usize = came.iter().map(|came| came.to_its_end).sum();
    Ok(format!(
        "{troubled}, of {} that carried {confirmed:?} confirmed and {received:?} received, and {ended} ended well; of {} confirmed none \
         lost, {left} received in the end; all given up {given_up_in} after it",
        came.iter().map(|came| came.to_its_end + came.to_trouble).sum::<usize>(),
        sums.confirmed
    ))
}
