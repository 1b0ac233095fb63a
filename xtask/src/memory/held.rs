//! What is held for clients beside the messages in queues, below the limit: each of them goes on until it is told that there is no room.
//!
//! Owns: what such clients send, and what they must hear.

use std::io::{ErrorKind, Write};
use std::net::TcpStream;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use leveret_amqp::frame::{write_content, write_method};
use leveret_amqp::{BasicProperties, ContentHeader, FieldTable, Method, ShortStr, Table, Value};
use leveret_client::{AckMode, ConsumeOptions, ConsumerEvent, PublishTo, QueueOptions};

use super::{LIMIT_MIB, PATIENCE, Peak, check, open, start, wait_for_line};
use crate::broker::Broker;
use crate::peer::{ANSWER_DEADLINE, FRAME_BYTES_MAX, Peer};

const QUEUE: &str = "held";

fn connect(broker: &Broker) -> Result<Peer> {
    Peer::connect(broker.url.trim_start_matches("amqp://"))
}

/// Channel 1 is in a transaction.
fn begin_transaction(broker: &Broker) -> Result<Peer> {
    let mut peer = connect(broker)?;
    peer.send(1, &Method::TxSelect {})?;
    peer.expect("tx.select-ok")?;
    Ok(peer)
}

fn publish(channel: u16, body: &[u8]) -> Vec<u8> {
    publish_part(channel, body, 0)
}

/// The same where so many bytes of it are missing.
fn publish_part(channel: u16, body: &[u8], missing: usize) -> Vec<u8> {
    let (mut bytes, mut header) = (Vec::new(), Vec::new());
    let (exchange, routing_key) = (ShortStr::truncated(""), ShortStr::truncated(QUEUE));
    let publish = Method::BasicPublish { ticket: 0, exchange, routing_key, mandatory: false, immediate: false };
    write_method(&mut bytes, channel, &publish);
    ContentHeader { body_bytes: (body.len() + missing) as u64, properties: BasicProperties::default() }
        .encode(&mut header);
    write_content(&mut bytes, channel, &header, body, FRAME_BYTES_MAX);
    bytes
}

/// `queue.declare`, without an answer unless it is `passive`.
fn declare(queue: &str, passive: bool) -> Vec<u8> {
    let (queue, nowait, arguments) = (ShortStr::truncated(queue), !passive, Table::EMPTY);
    let (ticket, durable, exclusive, auto_delete) = (0, false, false, false);
    let mut bytes = Vec::new();
    let declare =
        Method::QueueDeclare { ticket, queue, passive, durable, exclusive, auto_delete, nowait, arguments };
    write_method(&mut bytes, 1, &declare);
    bytes
}

/// Sends what `next` gives for each number until the broker says something, which must be that it closes the channel.
fn go_on_until_refused(peer: &mut Peer, most: usize, mut next: impl FnMut(usize) -> Vec<u8>) -> Result<usize> {
    const AT_ONCE: usize = 100;
    for begun in (0..most).step_by(AT_ONCE) {
        let bytes: Vec<u8> = (begun..begun + AT_ONCE).flat_map(&mut next).collect();
        peer.write(&bytes)?;
        if peer.has_input() {
            peer.expect("channel.close")?;
            return Ok(begun + AT_ONCE);
        }
    }
    bail!("{most} were taken and none was refused")
}

/// Clients in transactions that they do not end; and one that ends its own, a small one.
pub(super) fn transact(binary: &Path, folder: &Path) -> Result<String> {
    const CLIENTS: usize = 4;
    let broker = start(binary, folder, &["--in-memory"], LIMIT_MIB)?;
    let peak = Peak::watch(broker.process_id());
    let mut connection = open(&broker)?;
    let mut channel = connection.open_channel()?;
    channel.declare_queue(QUEUE, &QueueOptions::default())?;
    let mut clients: Vec<_> = (0..CLIENTS).map(|_| begin_transaction(&broker)).collect::<Result<_>>()?;
    let large = publish(1, &vec![0; 1_000_000]);
    for _ in 0..LIMIT_MIB {
        clients.iter_mut().try_for_each(|client| client.write(&large))?;
    }
    clients.iter_mut().try_for_each(|client| client.expect("channel.close"))?;
    let mut empty = begin_transaction(&broker)?;
    let empties = go_on_until_refused(&mut empty, 4_000_000, |_| publish(1, &[]))?;
    let mut small = begin_transaction(&broker)?;
    small.write(&publish(1, b"small"))?;
    small.send(1, &Method::TxCommit {})?;
    small.expect("tx.commit-ok")?;
    let count = channel.check_queue(QUEUE)?.message_count;
    ensure!(count == 1, "{count} messages came of one transaction that was committed");
    channel.close()?;
    connection.close()?;
    let peak_mib = check(&peak)?;
    drop((clients, empty, small));
    broker.stop()?;
    Ok(format!("{CLIENTS} of a megabyte a message and one of {empties} empty ones refused, in {peak_mib} MiB"))
}

/// Contents that never become complete, on many channels of a client that is in a transaction.
pub(super) fn arrive_in_transaction(binary: &Path, folder: &Path) -> Result<String> {
    const CHANNELS: u16 = 200;
    let broker = start(binary, folder, &["--in-memory"], LIMIT_MIB)?;
    let peak = Peak::watch(broker.process_id());
    let mut client = begin_transaction(&broker)?;
    let body = vec![0; 8_000_000];
    for channel in 2..2 + CHANNELS {
        client.send(channel, &Method::ChannelOpen { out_of_band: ShortStr::truncated("") })?;
        client.expect("channel.open-ok")?;
    }
    for channel in 2..2 + CHANNELS {
        client.write(&publish_part(channel, &body, 1))?;
        if client.has_input() {
            client.expect("connection.close")?;
            open(&broker)?.close()?;
            let peak_mib = check(&peak)?;
            broker.stop()?;
            return Ok(format!("{} of 8 MB were too many, in {peak_mib} MiB", channel - 1));
        }
    }
    bail!("{CHANNELS} of 8 MB were taken")
}

/// Clients in transactions that hold nothing yet, while publishers wait for room.
pub(super) fn transact_without_room(binary: &Path, folder: &Path) -> Result<String> {
    const CLIENTS: usize = 40;
    let broker = start(binary, folder, &["--in-memory"], LIMIT_MIB)?;
    let mut connection = open(&broker)?;
    connection.open_channel()?.declare_queue(QUEUE, &QueueOptions::default())?;
    let mut publisher = connect(&broker)?;
    let publishing = thread::spawn(move || publisher.write(&publish(1, &[0; 1024]).repeat(200_000)));
    wait_for_line(&folder.join("broker.log"), "low on memory")?;
    let peak = Peak::watch(broker.process_id());
    let clients: Vec<_> = (0..CLIENTS)
        .map(|_| {
            let stream = begin_transaction(&broker)?.into_stream();
            stream.set_nonblocking(true)?;
            Ok(stream)
        })
        .collect::<Result<_>>()?;
    let content = publish(1, &vec![0; 8_000_000]);
    let sent = send_in_turn(&clients, |sent| &content[sent.min(content.len())..], || Ok(()))?;
    ensure!(sent < CLIENTS * content.len(), "all of {} MB were taken", sent / 1_000_000);
    let peak_mib = check(&peak)?;
    connection.close()?;
    drop(clients);
    broker.stop()?;
    // It was cut short.
    let _ = publishing.join().ok().context("the publisher panicked")?;
    Ok(format!("{} of {} MB taken, in {peak_mib} MiB", sent / 1_000_000, CLIENTS * content.len() / 1_000_000))
}

/// Writes to each client in turn what comes behind what it was sent, for a while. Returns how much all were sent.
fn send_in_turn<'b>(
    clients: &[TcpStream],
    rest: impl Fn(usize) -> &'b [u8],
    mut between: impl FnMut() -> Result<()>,
) -> Result<usize> {
    const TRIED: Duration = Duration::from_secs(3);
    let (mut all_sent, begun) = (vec![0; clients.len()], Instant::now());
    while begun.elapsed() < TRIED {
        for (mut client, sent) in clients.iter().zip(&mut all_sent) {
            *sent += match client.write(rest(*sent)) {
                Err(error) if error.kind() == ErrorKind::WouldBlock => 0,
                written => written?,
            };
        }
        between()?;
    }
    Ok(all_sent.iter().sum())
}

/// Clients that ask and do not read.
pub(super) fn ask(binary: &Path, folder: &Path) -> Result<String> {
    const CLIENTS: usize = 100;
    let broker = start(binary, folder, &["--in-memory"], LIMIT_MIB)?;
    let peak = Peak::watch(broker.process_id());
    let mut connection = open(&broker)?;
    let mut channel = connection.open_channel()?;
    let name = "q".repeat(200);
    channel.declare_queue(&name, &QueueOptions::default())?;
    let questions = declare(&name, true).repeat(500);
    let address = broker.url.trim_start_matches("amqp://");
    let clients: Vec<_> = (0..CLIENTS)
        .map(|_| {
            let stream = Peer::connect_with_small_window(address, ANSWER_DEADLINE)?.into_stream();
            stream.set_nonblocking(true)?;
            Ok(stream)
        })
        .collect::<Result<_>>()?;
    // The rest of a question, and then whole ones.
    let rest = |sent: usize| &questions[sent % questions.len()..];
    let sent = send_in_turn(&clients, rest, || Ok(channel.check_queue(&name).map(drop)?))?;
    channel.close()?;
    connection.close()?;
    let peak_mib = check(&peak)?;
    drop(clients);
    broker.stop()?;
    Ok(format!("{CLIENTS} clients sent {} MB of questions, in {peak_mib} MiB", sent / 1_000_000))
}

/// Queues, bindings of many words and headers, and consumers, until there may be no more.
pub(super) fn declare_much(binary: &Path, folder: &Path) -> Result<String> {
    const MOST: usize = 1_000_000;
    let broker = start(binary, folder, &["--in-memory"], LIMIT_MIB)?;
    let peak = Peak::watch(broker.process_id());
    let mut connection = open(&broker)?;
    let mut channel = connection.open_channel()?;
    channel.declare_queue(QUEUE, &QueueOptions::default())?;
    let mut peer = connect(&broker)?;
    let consumers = go_on_until_refused(&mut peer, MOST, |nth| {
        let mut bytes = Vec::new();
        let tag = nth.to_string();
        let consume = Method::BasicConsume {
            ticket: 0,
            queue: ShortStr::truncated(QUEUE),
            consumer_tag: ShortStr::truncated(&tag),
            no_local: false,
            no_ack: false,
            exclusive: false,
            nowait: true,
            arguments: Table::EMPTY,
        };
        write_method(&mut bytes, 1, &consume);
        bytes
    })?;
    drop(peer);
    let mut refuse = |next: fn(usize) -> Vec<u8>| -> Result<usize> {
        let count = go_on_until_refused(&mut connect(&broker)?, MOST, next)?;
        // What was there before is of use, and makes room.
        channel.publish(PublishTo::queue(QUEUE), &BasicProperties::default(), b"x")?;
        channel.delete_queue(QUEUE, leveret_client::DeleteOnly::default())?;
        channel.declare_queue(QUEUE, &QueueOptions::default())?;
        Ok(count)
    };
    let words = refuse(|nth| bind("amq.topic", &format!("{nth}{}", ".a".repeat(100)), Table::EMPTY))?;
    let headers = refuse(|nth| {
        let arguments = FieldTable::build(|table| {
            table.field("x-match", Value::LongStr(b"any"));
            for header in 0..50 {
                table.field(&format!("{nth}-{header}"), Value::I32(1));
            }
        });
        bind("amq.headers", "", arguments.as_table())
    })?;
    let queues = refuse(|nth| declare(&nth.to_string(), false))?;
    channel.close()?;
    connection.close()?;
    let peak_mib = check(&peak)?;
    broker.stop()?;
    Ok(format!(
        "{consumers} consumers, {words} bindings of 100 words, {headers} of 50 headers or {queues} queues were too many, in {peak_mib} MiB"
    ))
}

fn bind(exchange: &str, routing_key: &str, arguments: Table<'_>) -> Vec<u8> {
    let (exchange, routing_key) = (ShortStr::truncated(exchange), ShortStr::truncated(routing_key));
    let (ticket, queue, nowait) = (0, ShortStr::truncated(QUEUE), true);
    let mut bytes = Vec::new();
    write_method(&mut bytes, 1, &Method::QueueBind { ticket, queue, exchange, routing_key, nowait, arguments });
    bytes
}

/// A consumer without a prefetch that settles nothing before it is given nothing more.
pub(super) fn leave_unacked(binary: &Path, folder: &Path) -> Result<String> {
    const MESSAGES: u64 = 100_000;
    const UNACKED: u64 = LIMIT_MIB * 1024 * 1024 / 16 / 64;
    let broker = start(binary, folder, &["--in-memory"], LIMIT_MIB)?;
    let peak = Peak::watch(broker.process_id());
    let (mut publishing, mut consuming) = (open(&broker)?, open(&broker)?);
    let (mut publisher, mut consumer) = (publishing.open_channel()?, consuming.open_channel()?);
    publisher.declare_queue(QUEUE, &QueueOptions::default())?;
    for _ in 0..MESSAGES {
        publisher.publish(PublishTo::queue(QUEUE), &BasicProperties::default(), b"x")?;
    }
    publisher.check_queue(QUEUE)?;
    consumer.consume(QUEUE, &ConsumeOptions { ack_mode: AckMode::Manual, ..ConsumeOptions::default() })?;
    let mut take = |count: u64| -> Result<u64> {
        let mut last = 0;
        for nth in 0..count {
            let Some(ConsumerEvent::Delivery(delivery)) = consumer.next_event(PATIENCE)? else {
                bail!("{nth} of {count} messages came, and no more");
            };
            last = delivery.delivery_tag;
        }
        Ok(last)
    };
    let last = take(UNACKED)?;
    wait_for_line(&folder.join("broker.log"), "as many as memory_limit allows")?;
    let ready = publisher.check_queue(QUEUE)?.message_count;
    ensure!(u64::from(ready) == MESSAGES - UNACKED, "{ready} messages are left in the queue");
    consumer.ack_up_to(last)?;
    let mut rest = 0;
    while rest < MESSAGES - UNACKED {
        let Some(ConsumerEvent::Delivery(_)) = consumer.next_event(PATIENCE)? else {
            bail!("{rest} of the messages behind those came, and no more");
        };
        rest += 1;
    }
    consumer.close()?;
    publisher.close()?;
    consuming.close()?;
    publishing.close()?;
    let peak_mib = check(&peak)?;
    broker.stop()?;
    Ok(format!("{UNACKED} of {MESSAGES} messages, in {peak_mib} MiB; the others came once these were settled"))
}
