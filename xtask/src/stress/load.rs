//! More messages than are consumed, and consumers that do not read.

use std::io::{ErrorKind, Write};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use leveret_amqp::frame::{write_content, write_method};
use leveret_amqp::{BasicProperties, ContentHeader, Method, ShortStr, Table};
use leveret_client::{AckMode, Connection, ConsumeOptions, ConsumerEvent, PublishTo, QueueOptions, Url, Verdict};

use super::ledger::{Ledger, STAMP_BYTES, Stamp};
use super::{LOOK_EVERY, PATIENCE, SLACK, Stage, wait_until};
use crate::memory::Backlog;
use crate::peer::Peer;
use crate::process::check_interrupted;

const QUEUE: &str = "stress";

/// Consumers that do not read.
pub(super) const UNREAD_CONSUMERS: u64 = 1000;

const DURABLE: QueueOptions<'_> =
    QueueOptions { durable: true, exclusive: false, auto_delete: false, arguments: Table::EMPTY };
const PERSISTENT: u8 = 2;

pub(super) fn connect(url: &str) -> Result<Connection> {
    let mut connection = Connection::open(&url.parse::<Url>()?)?;
    // Publishers may have to wait for room.
    connection.set_answer_timeout(PATIENCE);
    Ok(connection)
}

/// Lets the broker, and the unrelated pair, have the processor first: this load would come from other machines, and is not
/// what is measured. It is a pity where the system does not want that, and no more.
fn yield_to_others() {
    let _ = rustix::process::nice(10);
}

/// Publishes numbered messages with confirms until it is over, and gives how many of them were confirmed.
fn produce(url: &str, producer: usize, is_over: &AtomicBool, ledger: &Mutex<Ledger>) -> Result<usize> {
    const WINDOW: usize = 1000;
    const BATCH: usize = WINDOW / 2;
    /// As much as the disk has room for in a minute, and many times what the consumer takes.
    const PER_SECOND: u32 = 20_000;
    yield_to_others();
    let mut connection = connect(url)?;
    let mut channel = connection.open_channel()?;
    channel.confirm_select()?;
    let properties = BasicProperties { delivery_mode: Some(PERSISTENT), ..BasicProperties::default() };
    let mut body = vec![b'x'; 100];
    let mut confirmed = Vec::new();
    let mut number = 0;
    let mut is_last = false;
    let mut due = Instant::now();
    while !is_last {
        is_last = is_over.load(Ordering::Relaxed);
        thread::sleep(due.saturating_duration_since(Instant::now()));
        due += Duration::from_secs(BATCH as u64) / PER_SECOND;
        for _ in 0..BATCH {
            Stamp { producer, number }.write(&mut body);
            channel.publish(PublishTo::queue(QUEUE), &properties, &body)?;
            number += 1;
        }
        confirmed.extend(channel.wait_confirms(if is_last { 0 } else { WINDOW })?);
    }
    ensure!(channel.take_returned().is_none(), "a message came back");
    let mut count = 0;
    let mut ledger = ledger.lock().ok().context("somebody panicked")?;
    for confirm in confirmed.iter().filter(|confirm| confirm.verdict == Verdict::Acked) {
        for number in confirm.first..=confirm.last {
            // Confirms are counted from 1.
            ledger.confirmed(Stamp { producer, number: usize::try_from(number - 1)? })?;
            count += 1;
        }
    }
    Ok(count)
}

/// Takes messages in manual mode, each in its turn of `pace`, and gives how many came.
fn consume_slowly(url: &str, pace: Duration, is_over: &AtomicBool, ledger: &mut Ledger) -> Result<u32> {
    let mut connection = connect(url)?;
    let mut channel = connection.open_channel()?;
    channel.qos(50)?;
    channel.consume(QUEUE, &ConsumeOptions::default())?;
    let (mut due, mut count) = (Instant::now(), 0);
    while !is_over.load(Ordering::Relaxed) {
        let Some(ConsumerEvent::Delivery(delivery)) = channel.next_event(LOOK_EVERY)? else { continue };
        let stamp = Stamp::read(&delivery.message.body).context("a message without a stamp")?;
        ledger.received(stamp, delivery.redelivered)?;
        channel.ack(delivery.delivery_tag)?;
        channel.flush()?;
        count += 1;
        due += pace;
        thread::sleep(due.saturating_duration_since(Instant::now()));
    }
    channel.close()?;
    connection.close()?;
    Ok(count)
}

/// Takes all that is in a queue, and notes it down.
pub(super) fn drain(url: &str, queue: &str, ledger: &mut Ledger) -> Result<u32> {
    let mut connection = connect(url)?;
    let mut channel = connection.open_channel()?;
    let count = channel.check_queue(queue)?.message_count;
    channel.consume(queue, &ConsumeOptions { ack_mode: AckMode::Auto, ..ConsumeOptions::default() })?;
    for nth in 0..count {
        let Some(ConsumerEvent::Delivery(delivery)) = channel.next_event(PATIENCE)? else {
            bail!("{nth} of {count} messages came, and no more");
        };
        let stamp = Stamp::read(&delivery.message.body).context("a message without a stamp")?;
        ledger.received(stamp, delivery.redelivered)?;
    }
    ensure!(channel.check_queue(queue)?.message_count == 0, "there are more messages than were counted");
    connection.close()?;
    Ok(count)
}

/// Ten producers publish two hundred times as much as one consumer takes, who needs a millisecond for each message.
pub(super) fn overload(stage: &mut Stage, time: Duration) -> Result<String> {
    const PRODUCERS: usize = 10;
    const PACE: Duration = Duration::from_millis(1);
    let url = stage.url();
    connect(&url)?.open_channel()?.declare_queue(QUEUE, &DURABLE)?;
    let ledger = Mutex::new(Ledger::new(PRODUCERS));
    let mut received = Ledger::new(PRODUCERS);
    let (is_over, no_more) = (AtomicBool::new(false), AtomicBool::new(false));
    let (published, consumed) = thread::scope(|scope| {
        let producers: Vec<_> = (0..PRODUCERS)
            .map(|producer| {
                scope.spawn({
                    let (url, is_over, ledger) = (&url, &is_over, &ledger);
                    move || produce(url, producer, is_over, ledger)
                })
            })
            .collect();
        let consumer = scope.spawn(|| consume_slowly(&url, PACE, &no_more, &mut received));
        let started = Instant::now();
        while started.elapsed() < time && !consumer.is_finished() && check_interrupted().is_ok() {
            thread::sleep(LOOK_EVERY);
        }
        // The consumer's time ends here; producers wait for their last confirms.
        no_more.store(true, Ordering::Relaxed);
        is_over.store(true, Ordering::Relaxed);
        let published: Result<Vec<_>> =
            producers.into_iter().map(|producer| producer.join().ok().context("a producer panicked")?).collect();
        let consumed = consumer.join().ok().context("the consumer panicked");
        Ok::<_, anyhow::Error>((published?, consumed??))
    })?;
    let due = time.as_secs_f64() / PACE.as_secs_f64();
    ensure!(f64::from(consumed) * f64::from(SLACK) >= due, "the consumer got {consumed} messages, {due} were due");
    let (least, most) = (published.iter().min().copied(), published.iter().max().copied());
    let (least, most) = (least.unwrap_or_default(), most.unwrap_or_default());
    ensure!(least * SLACK as usize >= most, "a producer had {least} messages confirmed, another {most}");
    let started = Instant::now();
    let drained = drain(&url, QUEUE, &mut received)?;
    let drained_in = started.elapsed();
    let mut ledger = ledger.into_inner().ok().context("somebody panicked")?;
    ledger.add(received);
    let sums = ledger.check()?;
    let rate = sums.confirmed as u64 / time.as_secs().max(1);
    Ok(format!(
        "{} confirmed ({rate}/s), {least} to {most} of each of {PRODUCERS}; {consumed} consumed of {due:.0} due, \
         then {drained} more in {drained_in:.1?}; none lost",
        sums.confirmed
    ))
}

fn consume(consumer_tag: &str, no_ack: bool) -> Method<'_> {
    Method::BasicConsume {
        ticket: 0,
        queue: ShortStr::truncated(QUEUE),
        consumer_tag: ShortStr::truncated(consumer_tag),
        no_local: false,
        no_ack,
        exclusive: false,
        nowait: false,
        arguments: Table::EMPTY,
    }
}

/// A thousand consumers without a prefetch do not read what a publisher goes on to publish. All of it comes to one that does.
pub(super) fn unread(stage: &mut Stage, time: Duration) -> Result<String> {
    const BODY_BYTES: usize = 1024;
    const PER_SECOND: u64 = 20_000;
    let url = stage.url();
    let mut connection = connect(&url)?;
    let mut channel = connection.open_channel()?;
    channel.declare_queue(QUEUE, &DURABLE)?;
    let mut idle = Vec::new();
    for _ in 0..UNREAD_CONSUMERS {
        let mut peer = Peer::connect(stage.address())?;
        // What the system keeps for them is not the broker's.
        rustix::net::sockopt::set_socket_recv_buffer_size(peer.stream(), 4096)?;
        peer.send(1, &consume("", false))?;
        peer.expect("basic.consume-ok")?;
        idle.push(peer);
    }
    channel.confirm_select()?;
    let properties = BasicProperties { delivery_mode: Some(PERSISTENT), ..BasicProperties::default() };
    let mut body = vec![b'x'; BODY_BYTES];
    let messages = PER_SECOND * time.as_secs();
    let started = Instant::now();
    let mut ledger = Ledger::new(1);
    for number in 0..usize::try_from(messages)? {
        Stamp { producer: 0, number }.write(&mut body);
        channel.publish(PublishTo::queue(QUEUE), &properties, &body)?;
        ledger.confirmed(Stamp { producer: 0, number })?;
        if number % 1000 == 0 {
            channel.wait_confirms(5000)?;
            check_interrupted()?;
        }
    }
    channel.wait_confirms(0)?;
    let published_in = started.elapsed();
    let ready = channel.check_queue(QUEUE)?.message_count;
    let peak_mib = stage.take_peak_kib() / 1024;
    let started = Instant::now();
    drop(idle);
    wait_until("what they held to be ready again", || {
        Ok(u64::from(channel.check_queue(QUEUE)?.message_count) == messages)
    })?;
    let returned_in = started.elapsed();
    let started = Instant::now();
    drain(&url, QUEUE, &mut ledger)?;
    let drained_in = started.elapsed();
    ledger.check()?;
    let held = messages - u64::from(ready);
    Ok(format!(
        "{messages} published in {published_in:.1?} in at most {peak_mib} MiB, of which {UNREAD_CONSUMERS} consumers held {held}; \
         all were ready {returned_in:.1?} after they had gone, and drained in {drained_in:.1?}"
    ))
}

/// Ten clients publish a thousand messages a second each, consume them and their confirms, and read nothing of it.
pub(super) fn deaf(stage: &mut Stage, time: Duration) -> Result<String> {
    const CLIENTS: usize = 10;
    const PER_SECOND: u128 = 1000;
    const BODY_BYTES: usize = 1024;
    let url = stage.url();
    connect(&url)?.open_channel()?.declare_queue(QUEUE, &DURABLE)?;
    let mut deaf = Vec::with_capacity(CLIENTS);
    for _ in 0..CLIENTS {
        let mut peer = Peer::connect(stage.address())?;
        peer.send(1, &consume("", false))?;
        peer.expect("basic.consume-ok")?;
        peer.send(1, &Method::ConfirmSelect { nowait: true })?;
        let stream = peer.into_stream();
        stream.set_nonblocking(true)?;
        deaf.push((stream, Vec::<u8>::new(), 0_usize));
    }
    let properties = BasicProperties { delivery_mode: Some(PERSISTENT), ..BasicProperties::default() };
    let mut header = Vec::new();
    ContentHeader { body_bytes: BODY_BYTES as u64, properties }.encode(&mut header);
    let publish = Method::BasicPublish {
        ticket: 0,
        exchange: ShortStr::EMPTY,
        routing_key: ShortStr::truncated(QUEUE),
        mandatory: false,
        immediate: false,
    };
    let mut body = vec![b'x'; BODY_BYTES.max(STAMP_BYTES)];
    let started = Instant::now();
    let mut stuck = 0;
    while started.elapsed() < time {
        let due = usize::try_from(started.elapsed().as_millis() * PER_SECOND / 1000)?;
        for (producer, (stream, unsent, next)) in deaf.iter_mut().enumerate() {
            // One that is not taken from any more says no more.
            while *next < due && unsent.len() < 1 << 20 {
                Stamp { producer, number: *next }.write(&mut body);
                write_method(unsent, 1, &publish);
                write_content(unsent, 1, &header, &body, 131_072);
                *next += 1;
            }
            match stream.write(unsent) {
                Ok(count) => drop(unsent.drain(..count)),
                Err(error) if error.kind() == ErrorKind::WouldBlock => stuck += 1,
                Err(error) => return Err(error).context("a client that does not read is disconnected"),
            }
        }
        check_interrupted()?;
        thread::sleep(Duration::from_millis(5));
    }
    let published: usize = deaf.iter().map(|(.., next)| next).sum();
    let least = deaf.iter().map(|(.., next)| *next).min().unwrap_or_default();
    ensure!(least > 0, "one of them could not publish at all");
    let peak_mib = stage.take_peak_kib() / 1024;
    drop(deaf);
    let mut connection = connect(&url)?;
    let mut channel = connection.open_channel()?;
    wait_until("them to be gone", || Ok(channel.check_queue(QUEUE)?.consumer_count == 0))?;
    let mut ledger = Ledger::new(CLIENTS);
    drain(&url, QUEUE, &mut ledger)?;
    // The broker took what they sent in its order, and gave back what it had delivered to them.
    ledger.check_without_gaps()?;
    let sums = ledger.check()?;
    ensure!(sums.received > 0, "nothing of what they published is there");
    Ok(format!(
        "{published} published by {CLIENTS} clients, at least {least} by each, and {} there in the end, without a gap; at most \
         {peak_mib} MiB; {stuck} times a socket was full",
        sums.received
    ))
}

/// So many messages that they do not fit, drained in order.
pub(super) fn backlog(stage: &mut Stage, time: Duration) -> Result<String> {
    const WHOLE: u64 = 5_000_000;
    let messages = WHOLE * time.as_secs().min(super::LONG_SECONDS) / super::LONG_SECONDS;
    let backlog = Backlog { messages, body_bytes: 100, queues: 1 };
    let mut connection = connect(&stage.url())?;
    backlog.declare(&mut connection, true)?;
    let started = Instant::now();
    backlog.fill(&mut connection, PERSISTENT)?;
    let (filled_in, fill_mib) = (started.elapsed(), stage.take_peak_kib() / 1024);
    let started = Instant::now();
    backlog.drain(&mut connection)?;
    let (drained_in, drain_mib) = (started.elapsed(), stage.take_peak_kib() / 1024);
    connection.close()?;
    Ok(format!(
        "{messages} messages filled in {filled_in:.1?} ({fill_mib} MiB), drained in order in {drained_in:.1?} ({drain_mib} MiB)"
    ))
}
