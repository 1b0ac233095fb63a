//! Producers and consumers behind a proxy through which nothing goes well, and who come back each time.

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use leveret_client::{
    BasicProperties, Connection, ConsumeOptions, ConsumerEvent, Error, PublishTo, QueueOptions, Url, Verdict,
};

use super::chaos::Proxy;
use super::ledger::{Ledger, Stamp};
use super::load::{connect, drain};
use super::{LOOK_EVERY, Stage, wait_until};
use crate::process::check_interrupted;

const QUEUE: &str = "stress";
const PRODUCERS: usize = 8;
const CONSUMERS: usize = 5;

/// A consumer acks so many messages at once, and may hold twice as many.
const ACK_EVERY: u64 = 10;
const PREFETCH: u16 = 20;

/// How long a client keeps a connection, if it can.
const KEPT_FOR: Duration = Duration::from_secs(3);

/// How long a client believes in a broker that does not answer; half-open connections are found out by heartbeats.
const BELIEVES_FOR: Duration = Duration::from_secs(5);

/// Whose messages are where; whoever locks it has panicked if that fails.
fn note(ledger: &Mutex<Ledger>, note: impl FnOnce(&mut Ledger) -> Result<()>) -> Result<()> {
    note(&mut *ledger.lock().ok().context("somebody panicked")?)
}

fn open(url: &Url) -> Result<Connection, Error> {
    let mut connection = Connection::open(url)?;
    connection.set_answer_timeout(BELIEVES_FOR);
    Ok(connection)
}

/// What came of one connection: trouble is expected, a fault of the broker is not.
enum Came {
    ToItsEnd,
    ToTrouble,
}

/// Publishes on one connection for as long as it holds; numbers that were used are not used again.
fn publish(
    url: &Url,
    producer: usize,
    next: &mut usize,
    is_over: &AtomicBool,
    ledger: &Mutex<Ledger>,
) -> Result<Came> {
    let first = *next;
    let confirmed = |confirms: Vec<leveret_client::Confirm>| {
        note(ledger, |ledger| {
            for confirm in confirms.iter().filter(|confirm| confirm.verdict == Verdict::Acked) {
                for number in confirm.first..=confirm.last {
                    ledger.confirmed(Stamp { producer, number: first + usize::try_from(number - 1)? })?;
                }
            }
            Ok(())
        })
    };
    let mut attempt = || -> Result<(), Error> {
        let mut connection = open(url)?;
        let mut channel = connection.open_channel()?;
        channel.confirm_select()?;
        let properties = BasicProperties { delivery_mode: Some(2), ..BasicProperties::default() };
        let since = Instant::now();
        while since.elapsed() < KEPT_FOR && !is_over.load(Ordering::Relaxed) {
            // Of all sizes up to several reads of a socket.
            let mut body = vec![b'x'; 16 + (*next * 7919) % 40_000];
            Stamp { producer, number: *next }.write(&mut body);
            *next += 1;
            channel.publish(PublishTo::queue(QUEUE), &properties, &body)?;
            let confirms = channel.wait_confirms(20)?;
            // What the ledger does not like is a fault of this program, which its check tells.
            let _ = confirmed(confirms);
        }
        let _ = confirmed(channel.wait_confirms(0)?);
        Ok(())
    };
    outcome(attempt())
}

fn outcome(attempt: Result<(), Error>) -> Result<Came> {
    match attempt {
        Ok(()) => Ok(Came::ToItsEnd),
        // The broker finds nothing wrong with what these clients say; but bytes may be missing where a line was cut.
        Err(error @ Error::Closed { .. }) => Err(error.into()),
        Err(_) => Ok(Came::ToTrouble),
    }
}

/// Consumes on one connection for as long as it holds.
fn consume(url: &Url, is_over: &AtomicBool, ledger: &Mutex<Ledger>) -> Result<Came> {
    let mut fault = None;
    let mut attempt = || -> Result<(), Error> {
        let mut connection = open(url)?;
        let mut channel = connection.open_channel()?;
        channel.qos(PREFETCH)?;
        channel.consume(QUEUE, &ConsumeOptions::default())?;
        let since = Instant::now();
        while since.elapsed() < KEPT_FOR && !is_over.load(Ordering::Relaxed) {
            let Some(ConsumerEvent::Delivery(delivery)) = channel.next_event(LOOK_EVERY)? else { continue };
            let stamp = Stamp::read(&delivery.message.body).context("a message without a stamp");
            let noted = stamp.and_then(|stamp| note(ledger, |ledger| ledger.received(stamp, delivery.redelivered)));
            if let Err(error) = noted {
                fault = Some(error);
                return Ok(());
            }
            // Some that came are not acked when the line is cut, and come again to others.
            if delivery.delivery_tag % ACK_EVERY == 0 {
                channel.ack_up_to(delivery.delivery_tag)?;
                channel.flush()?;
            }
        }
        Ok(())
    };
    let came = outcome(attempt());
    fault.map_or(came, Err)
}

/// Comes back until it is over, and gives how many connections came to their end, and how many to trouble.
fn come_back(is_over: &AtomicBool, mut once: impl FnMut() -> Result<Came>) -> Result<[usize; 2]> {
    let mut counts = [0, 0];
    while !is_over.load(Ordering::Relaxed) {
        match once()? {
            Came::ToItsEnd => counts[0] += 1,
            Came::ToTrouble => counts[1] += 1,
        }
        check_interrupted()?;
    }
    Ok(counts)
}

pub(super) fn trouble(stage: &mut Stage, time: Duration) -> Result<String> {
    // Half of them have to be found out before the end.
    let time = time.max(Duration::from_secs(8));
    let direct = stage.url();
    connect(&direct)?
        .open_channel()?
        .declare_queue(QUEUE, &QueueOptions { durable: true, ..QueueOptions::default() })?;
    let sockets = stage.sockets()?;
    let proxy = Proxy::start(stage.address().parse()?)?;
    let url: Url =
        format!("amqp://guest:guest@{}/%2F?heartbeat=1&connection_timeout=5000", proxy.address).parse()?;
    let ledger = Mutex::new(Ledger::new(PRODUCERS));
    let is_over = AtomicBool::new(false);
    let counts = thread::scope(|scope| {
        let (url, ledger, over) = (&url, &ledger, &is_over);
        let mut threads: Vec<_> = (0..PRODUCERS)
            .map(|producer| {
                scope.spawn(move || {
                    let mut next = 0;
                    come_back(over, || publish(url, producer, &mut next, over, ledger))
                })
            })
            .collect();
        threads.extend((0..CONSUMERS).map(|_| scope.spawn(move || come_back(over, || consume(url, over, ledger)))));
        let started = Instant::now();
        while started.elapsed() < time && threads.iter().all(|thread| !thread.is_finished()) {
            thread::sleep(LOOK_EVERY);
        }
        is_over.store(true, Ordering::Relaxed);
        threads.into_iter().try_fold([0, 0], |[ended, troubled], thread| {
            let [e, t] = thread.join().ok().context("a client panicked")??;
            Ok::<_, anyhow::Error>([ended + e, troubled + t])
        })
    })?;
    let started = Instant::now();
    // The proxy still holds what is half-open: the broker has to find out by itself.
    wait_until("the broker to give up what is half-open", || Ok(stage.sockets()? <= sockets))?;
    let given_up_in = started.elapsed();
    let carried = proxy.stop();
    ensure!(carried.is_complete(), "not all troubles were there: {carried}");
    let mut ledger = ledger.into_inner().ok().context("somebody panicked")?;
    let left = drain(&direct, QUEUE, &mut ledger)?;
    let sums = ledger.check()?;
    let least = ledger.confirmed_of_each().min().unwrap_or_default();
    ensure!(least > 0, "a producer had nothing confirmed");
    let [ended, troubled] = counts;
    Ok(format!(
        "{carried}; {ended} ended well, {troubled} did not; {} confirmed, at least {least} of each producer, {} received, \
         {left} of them in the end; none lost; all given up {given_up_in:.1?} after the end",
        sums.confirmed, sums.received
    ))
}
