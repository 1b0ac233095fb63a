//! Clients that consume and do not read.
//!
//! Owns: consumers that only consume, and clients that publish meanwhile.
//! Must not know: heartbeats, or a network that fails.

use std::io::{ErrorKind, Write};
use std::net::TcpStream;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use leveret_amqp::frame::{write_content, write_method};
use leveret_amqp::{BasicProperties, ContentHeader, Method, ShortStr};
use leveret_client::PublishTo;

use super::ledger::{Ledger, Stamp};
use super::stage::{PATIENCE, Stage};
use super::{DURABLE, PERSISTENT, QUEUE, body_bytes, connect, consume, drain};
use crate::peer::{Peer, has_input};
use crate::process::check_interrupted;

/// Consumers that do not read.
const CONSUMERS: u64 = 1000;

/// In which clients that are gone give back what they held.
const RETURNED_WITHIN: Duration = Duration::from_secs(5);

/// A consumer without a prefetch that has read nothing yet but the answer to its question.
fn consumer(address: &str) -> Result<Peer> {
    let mut peer = Peer::connect_with_small_window(address, PATIENCE)?;
    peer.send(1, &consume(ShortStr::truncated(QUEUE)))?;
    peer.expect("basic.consume-ok")?;
    Ok(peer)
}

/// A thousand consumers without a prefetch do not read what a publisher goes on to publish. All of it comes to one that does.
pub(super) fn unread(stage: &mut Stage, time: Duration) -> Result<String> {
    const PER_SECOND: usize = 20_000;
    let consumers = stage.clients(CONSUMERS)?;
    let url = stage.url();
    let mut connection = connect(&url)?;
    let mut channel = connection.open_channel()?;
    channel.declare_queue(QUEUE, &DURABLE)?;
    let idle: Vec<_> = (0..consumers.count).map(|_| consumer(stage.address())).collect::<Result<_>>()?;
    channel.confirm_select()?;
    let properties = BasicProperties { delivery_mode: Some(PERSISTENT), ..BasicProperties::default() };
    let messages = PER_SECOND * usize::try_from(time.as_secs())?;
    let mut body = vec![b'x'; body_bytes(messages)];
    let started = Instant::now();
    let mut ledger = Ledger::new(1);
    for number in 0..messages {
        Stamp { producer: 0, number }.write(&mut body);
        channel.publish(PublishTo::queue(QUEUE), &properties, &body)?;
        if number % 1000 == 0 {
            ledger.confirmed(0, 0, &channel.wait_confirms(5000)?)?;
            check_interrupted()?;
        }
    }
    ledger.confirmed(0, 0, &channel.wait_confirms(0)?)?;
    let published_in = stage.check_time("to publish all", started.elapsed(), time)?;
    let starved = idle.iter().filter(|peer| !has_input(peer.stream())).count();
    ensure!(starved == 0, "{starved} of {consumers} consumers were given nothing");
    let ready = channel.check_queue(QUEUE)?.message_count as usize;
    let peak_mib = stage.take_peak_mib();
    drop(idle);
    let returned_in = stage.wait_until("what they held to be ready again", RETURNED_WITHIN, || {
        Ok(channel.check_queue(QUEUE)?.message_count as usize == messages)
    })?;
    let started = Instant::now();
    drain(&url, &mut ledger)?;
    let drained_in = stage.check_time("the drain", started.elapsed(), time)?;
    let sums = ledger.check()?;
    ensure!(sums.confirmed == messages, "{} of {messages} messages are confirmed", sums.confirmed);
    Ok(format!(
        "{messages} of {} bytes published in {published_in} in at most {peak_mib} MiB, of which {consumers} consumers held {}, each of them \
         some; all were ready {returned_in} after they had gone, and drained in {drained_in}; none lost",
        body.len(),
        messages - ready
    ))
}

/// A client that publishes and consumes, and reads nothing of it.
struct Deaf {
    stream: TcpStream,
    unsent: Vec<u8>,
    /// The number of its next message.
    next: usize,
}

/// Ten clients publish a thousand messages a second each, consume them and their confirms, and read nothing of it.
pub(super) fn deaf(stage: &mut Stage, time: Duration) -> Result<String> {
    const CLIENTS: usize = 10;
    const PER_SECOND: u128 = 1000;
    let all = usize::try_from(time.as_millis() * PER_SECOND / 1000)?;
    let body_bytes = body_bytes(all * CLIENTS);
    let url = stage.url();
    connect(&url)?.open_channel()?.declare_queue(QUEUE, &DURABLE)?;
    let mut deaf = Vec::with_capacity(CLIENTS);
    for _ in 0..CLIENTS {
        let mut peer = consumer(stage.address())?;
        peer.send(1, &Method::ConfirmSelect { nowait: true })?;
        let stream = peer.into_stream();
        stream.set_nonblocking(true)?;
        deaf.push(Deaf { stream, unsent: Vec::new(), next: 0 });
    }
    let started = Instant::now();
    let mut stuck = 0;
    while started.elapsed() < time {
        let due = usize::try_from(started.elapsed().as_millis() * PER_SECOND / 1000)?;
        for (producer, client) in deaf.iter_mut().enumerate() {
            client.say(producer, due, body_bytes);
            match client.stream.write(&client.unsent) {
                Ok(count) => drop(client.unsent.drain(..count)),
                Err(error) if error.kind() == ErrorKind::WouldBlock => stuck += 1,
                Err(error) => return Err(error).context("a client that does not read is disconnected"),
            }
        }
        check_interrupted()?;
        thread::sleep(Duration::from_millis(5));
    }
    let silent = deaf.iter().filter(|client| !has_input(&client.stream)).count();
    ensure!(silent == 0, "{silent} of {CLIENTS} clients were given nothing");
    let peak_mib = stage.take_peak_mib();
    drop(deaf);
    let mut connection = connect(&url)?;
    let mut channel = connection.open_channel()?;
    let gone_in = stage
        .wait_until("them to be gone", RETURNED_WITHIN, || Ok(channel.check_queue(QUEUE)?.consumer_count == 0))?;
    let mut ledger = Ledger::new(CLIENTS);
    drain(&url, &mut ledger)?;
    // The broker took what they sent in its order, and gave back what it had delivered to them.
    ledger.check_without_gaps()?;
    let shares = stage.check_shares("there of each client", ledger.received_of_each())?;
    stage.check_count("messages of one are there", ledger.received_of_each().min().unwrap_or_default(), all)?;
    Ok(format!(
        "{shares} of {CLIENTS} that read nothing, {all} of {body_bytes} bytes due of each, without a gap, in at most {peak_mib} MiB; gone in {gone_in}; \
         {stuck} times a socket was full"
    ))
}

impl Deaf {
    /// Has all messages said that are due. One that is not taken from any more says no more.
    fn say(&mut self, producer: usize, due: usize, body_bytes: usize) {
        const UNSENT_BYTES_MAX: usize = 1 << 20;
        let properties = BasicProperties { delivery_mode: Some(PERSISTENT), ..BasicProperties::default() };
        let mut header = Vec::new();
        ContentHeader { body_bytes: body_bytes as u64, properties }.encode(&mut header);
        let publish = Method::BasicPublish {
            ticket: 0,
            exchange: ShortStr::EMPTY,
            routing_key: ShortStr::truncated(QUEUE),
            mandatory: false,
            immediate: false,
        };
        let mut body = vec![b'x'; body_bytes];
        while self.next < due && self.unsent.len() < UNSENT_BYTES_MAX {
            Stamp { producer, number: self.next }.write(&mut body);
            write_method(&mut self.unsent, 1, &publish);
            write_content(&mut self.unsent, 1, &header, &body, 131_072);
            self.next += 1;
        }
    }
}
