//! The suite `memory`: the release binary below its limit on memory, with more messages than fit.

use std::fs;
use std::io::{ErrorKind, Write};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use leveret_amqp::frame::{write_content, write_method};
use leveret_amqp::{BasicProperties, ContentHeader, Method, ShortStr, Table};
use leveret_client::{AckMode, Connection, ConsumeOptions, ConsumerEvent, PublishTo, QueueOptions, Url};

use crate::broker::{Broker, anonymous_kib};
use crate::measure::raise_file_limit;
use crate::peer::{ANSWER_DEADLINE, FRAME_BYTES_MAX, Peer};
use crate::tally::{self, Step, Tally};
use crate::workspace::target;

mod held;

pub(crate) const SUITE: &str = "memory";

const LIMIT_MIB: u64 = 64;
/// What the issue of a limit is: the process stays below it and a tenth.
const CEILING_KIB: u64 = LIMIT_MIB * 1024 / 10 * 11;
const MESSAGES: u64 = 1_000_000;
const BODY_BYTES: usize = 1024;
const WINDOW: usize = 5000;
const PATIENCE: Duration = Duration::from_mins(1);
const LOOK_EVERY: Duration = Duration::from_millis(5);

const STEPS: &[Step] = &[
    ("a backlog of a gibibyte stays below the limit and comes back in order", spill_persistent),
    ("so does one of transient messages, and its files go with it", spill_transient),
    ("also where they come faster than the disk takes them", spill_large),
    ("while they cannot be written out their publisher waits, and then goes on by itself", refuse),
    ("what is lost of them on disk is told, and the others come in order", lose),
    ("a broker that was killed leaves nothing of them behind once it starts again", kill_and_start),
    ("a backlog that cannot be written out makes its publisher wait, and nobody else", hold),
    ("consumers that do not read take no more, and leave what they do not get to one that does", unread),
    ("many large bodies that arrive at once take turns", arrive),
    ("those of which a byte comes at a time hold nobody up", trickle),
    ("transactions that nobody ends are refused more, and a small one is committed", held::transact),
    ("nor is what they begin with read while publishers wait for room", held::transact_without_room),
    ("who begins contents on many channels and ends none of them is closed", held::arrive_in_transaction),
    ("who asks and does not read is not read", held::ask),
    ("what is declared, and consumers, are refused from some number on", held::declare_much),
    ("a channel leaves so many unacked and no more before it settles some", held::leave_unacked),
];

/// Runs the steps, each with a broker of its own.
pub(crate) fn run(binary: &Path) -> Tally {
    tally::run_steps(STEPS, binary, &target().join("memory"))
}

/// Looks at the anonymous resident memory of a process again and again, and keeps the greatest.
pub(crate) struct Peak {
    process: u32,
    kib: Arc<AtomicU64>,
    looks: Arc<AtomicU64>,
    stop: Arc<AtomicBool>,
    looking: Option<JoinHandle<()>>,
}

impl Peak {
    pub(crate) fn watch(process: u32) -> Self {
        let (kib, stop) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicBool::new(false)));
        let looks = Arc::<AtomicU64>::default();
        let (peak, count, stopped) = (Arc::clone(&kib), Arc::clone(&looks), Arc::clone(&stop));
        let looking = thread::spawn(move || {
            while !stopped.load(Ordering::Relaxed) {
                if let Ok(kib) = anonymous_kib(process) {
                    peak.fetch_max(kib, Ordering::Relaxed);
                    count.fetch_add(1, Ordering::Relaxed);
                }
                thread::sleep(LOOK_EVERY);
            }
        });
        Peak { process, kib, looks, stop, looking: Some(looking) }
    }

    /// The greatest since the last time, in KiB.
    pub(crate) fn take(&self) -> u64 {
        let now = anonymous_kib(self.process).unwrap_or_default();
        self.kib.swap(0, Ordering::Relaxed).max(now)
    }

    /// How often it was looked at.
    pub(crate) fn looks(&self) -> u64 {
        self.looks.load(Ordering::Relaxed)
    }
}

impl Drop for Peak {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        self.looking.take().map(JoinHandle::join);
    }
}

/// Fails if a process was above the ceiling. Returns how many MiB it had.
fn check(peak: &Peak) -> Result<u64> {
    let kib = peak.take();
    ensure!(kib <= CEILING_KIB, "{} MiB at a limit of {LIMIT_MIB}", kib / 1024);
    Ok(kib / 1024)
}

/// Starts a broker with a limit on memory.
pub(crate) fn start(binary: &Path, folder: &Path, storage: &[&str], limit_mib: u64) -> Result<Broker> {
    let limit = format!("{limit_mib}MiB");
    let options = [storage, &["--memory-limit", &limit]].concat();
    let options: Vec<_> = options.iter().map(AsRef::as_ref).collect();
    Broker::start_with(binary, &options, 0, &folder.join("broker.log"))
}

pub(crate) fn open(broker: &Broker) -> Result<Connection> {
    Ok(Connection::open(&broker.client_url().parse::<Url>()?)?)
}

/// A backlog of numbered messages in some durable queues, in turn.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Backlog {
    pub(crate) messages: u64,
    pub(crate) body_bytes: usize,
    pub(crate) queues: u64,
}

/// A gibibyte of small messages.
const SMALL: Backlog = Backlog { messages: MESSAGES, body_bytes: BODY_BYTES, queues: 1 };

impl Backlog {
    fn queue(number: u64) -> String {
        format!("backlog-{number}")
    }

    pub(crate) fn declare(self, connection: &mut Connection, durable: bool) -> Result<()> {
        let mut channel = connection.open_channel()?;
        for number in 0..self.queues {
            channel.declare_queue(&Self::queue(number), &QueueOptions { durable, ..QueueOptions::default() })?;
        }
        Ok(channel.close()?)
    }

    /// Publishes all messages and waits for their confirms.
    pub(crate) fn fill(self, connection: &mut Connection, delivery_mode: u8) -> Result<()> {
        let mut channel = connection.open_channel()?;
        channel.confirm_select()?;
        let properties = BasicProperties { delivery_mode: Some(delivery_mode), ..BasicProperties::default() };
        let mut body = vec![7; self.body_bytes];
        let queues: Vec<_> = (0..self.queues).map(Self::queue).collect();
        let mut next = queues.iter().cycle();
        for number in 0..self.messages {
            body[..8].copy_from_slice(&number.to_le_bytes());
            let queue = next.next().context("a backlog has queues")?;
            channel.publish(PublishTo::queue(queue), &properties, &body)?;
            if number % 1000 == 0 {
                channel.wait_confirms(WINDOW)?;
            }
        }
        channel.wait_confirms(0)?;
        Ok(channel.close()?)
    }

    /// Takes all messages, which must come in the order of their queues and for the first time.
    pub(crate) fn drain(self, connection: &mut Connection) -> Result<()> {
        let mut channel = connection.open_channel()?;
        for number in 0..self.queues {
            channel.consume(
                &Self::queue(number),
                &ConsumeOptions { ack_mode: AckMode::Auto, ..ConsumeOptions::default() },
            )?;
        }
        let mut expected: Vec<_> = (0..self.queues).collect();
        for nth in 0..self.messages {
            let Some(ConsumerEvent::Delivery(delivery)) = channel.next_event(PATIENCE)? else {
                bail!("{nth} messages came, and no more");
            };
            let body = &delivery.message.body;
            let number = body.first_chunk().map_or(u64::MAX, |bytes| u64::from_le_bytes(*bytes));
            let queue = usize::try_from(number % self.queues)?;
            ensure!(number == expected[queue], "message {number} came, not {}", expected[queue]);
            ensure!(body.len() == self.body_bytes, "message {number} has {} bytes", body.len());
            ensure!(!delivery.redelivered, "message {number} came as redelivered");
            expected[queue] += self.queues;
        }
        Ok(channel.close()?)
    }
}

fn spill_persistent(binary: &Path, folder: &Path) -> Result<String> {
    spill(binary, folder, SMALL, true)
}

fn spill_transient(binary: &Path, folder: &Path) -> Result<String> {
    spill(binary, folder, SMALL, false)
}

fn spill_large(binary: &Path, folder: &Path) -> Result<String> {
    spill(binary, folder, Backlog { messages: 8000, body_bytes: 64 * 1024, queues: 1 }, false)
}

/// Bytes of the files in a data folder to which transient messages are written.
fn scratch_bytes(data: &str) -> Result<u64> {
    let mut bytes = 0;
    for entry in fs::read_dir(data)? {
        let entry = entry?;
        if entry.file_name().to_string_lossy().starts_with("scratch-") {
            // It may be removed at any time.
            bytes += entry.metadata().map_or(0, |metadata| metadata.len());
        }
    }
    Ok(bytes)
}

fn spill(binary: &Path, folder: &Path, backlog: Backlog, durable: bool) -> Result<String> {
    let data = folder.join("data").display().to_string();
    let broker = start(binary, folder, &["--data-dir", &data], LIMIT_MIB)?;
    let peak = Peak::watch(broker.process_id());
    let mut connection = open(&broker)?;
    backlog.declare(&mut connection, durable)?;
    let mut figures = Vec::new();
    let mut check = |what: &str, took: Duration| {
        let kib = peak.take();
        figures.push(format!("{what} {} MiB, {:.1} s", kib / 1024, took.as_secs_f64()));
        ensure!(kib <= CEILING_KIB, "{what} took {} MiB at a limit of {LIMIT_MIB}", kib / 1024);
        Ok(())
    };
    let started = Instant::now();
    backlog.fill(&mut connection, if durable { 2 } else { 1 })?;
    check("filling", started.elapsed())?;
    let scratch_mib = scratch_bytes(&data)? >> 20;
    ensure!((scratch_mib == 0) == durable, "{scratch_mib} MiB of scratch files");
    let started = Instant::now();
    // Nothing happens now; what it kept, it keeps.
    thread::sleep(Duration::from_millis(200));
    check("idle", started.elapsed())?;
    let started = Instant::now();
    backlog.drain(&mut connection)?;
    check("draining", started.elapsed())?;
    if !durable {
        wait_for_removal(&data)?;
        figures.push(format!("{scratch_mib} MiB of scratch files, then none"));
    }
    connection.close()?;
    broker.stop()?;
    Ok(figures.join("; "))
}

/// Scratch files that nobody needs are removed within moments.
fn wait_for_removal(data: &str) -> Result<()> {
    let deadline = Instant::now() + PATIENCE;
    while scratch_bytes(data)? > 0 {
        ensure!(Instant::now() < deadline, "{} bytes of scratch files are left", scratch_bytes(data)?);
        thread::sleep(LOOK_EVERY);
    }
    Ok(())
}

/// Waits until the log says something.
fn wait_for_line(log: &Path, text: &str) -> Result<()> {
    let deadline = Instant::now() + PATIENCE;
    while !fs::read_to_string(log)?.contains(text) {
        ensure!(Instant::now() < deadline, "the log does not say '{text}'");
        thread::sleep(LOOK_EVERY);
    }
    Ok(())
}

fn refuse(binary: &Path, folder: &Path) -> Result<String> {
    let (data, log) = (folder.join("data").display().to_string(), folder.join("broker.log"));
    let backlog = Backlog { messages: 100_000, body_bytes: BODY_BYTES, queues: 1 };
    let broker = start(binary, folder, &["--data-dir", &data], LIMIT_MIB)?;
    let peak = Peak::watch(broker.process_id());
    let mut connection = open(&broker)?;
    backlog.declare(&mut connection, false)?;
    // It has the name of the first file.
    let in_the_way = Path::new(&data).join("scratch-1-1");
    fs::create_dir(&in_the_way)?;
    let mut publishing = open(&broker)?;
    publishing.set_answer_timeout(PATIENCE);
    let publisher = thread::spawn(move || backlog.fill(&mut publishing, 1));
    wait_for_line(&log, "stay in memory")?;
    wait_for_line(&log, "low on memory")?;
    let mut channel = connection.open_channel()?;
    let held = channel.check_queue(&Backlog::queue(0))?.message_count;
    channel.close()?;
    fs::remove_dir(&in_the_way)?;
    publisher.join().ok().context("the publisher panicked")??;
    for text in ["enough memory again", "written out again"] {
        wait_for_line(&log, text)?;
    }
    backlog.drain(&mut connection)?;
    let peak_kib = peak.take();
    ensure!(peak_kib <= CEILING_KIB, "{} MiB at a limit of {LIMIT_MIB}", peak_kib / 1024);
    connection.close()?;
    broker.stop()?;
    Ok(format!("held at {held} messages and {} MiB, then all {} came", peak_kib / 1024, backlog.messages))
}

fn lose(binary: &Path, folder: &Path) -> Result<String> {
    let (data, log) = (folder.join("data").display().to_string(), folder.join("broker.log"));
    let backlog = Backlog { messages: 100_000, body_bytes: BODY_BYTES, queues: 1 };
    let broker = start(binary, folder, &["--data-dir", &data], LIMIT_MIB)?;
    let mut connection = open(&broker)?;
    backlog.declare(&mut connection, false)?;
    backlog.fill(&mut connection, 1)?;
    fs::File::options().write(true).open(Path::new(&data).join("scratch-1-2"))?.set_len(1000)?;
    let mut channel = connection.open_channel()?;
    let options = ConsumeOptions { ack_mode: AckMode::Auto, ..ConsumeOptions::default() };
    channel.consume(&Backlog::queue(0), &options)?;
    let (mut next, mut lost) = (0, 0);
    while next < backlog.messages {
        let Some(ConsumerEvent::Delivery(delivery)) = channel.next_event(PATIENCE)? else {
            bail!("{next} messages came, and no more");
        };
        let number = delivery.message.body.first_chunk().map_or(u64::MAX, |bytes| u64::from_le_bytes(*bytes));
        ensure!((next..backlog.messages).contains(&number), "message {number} came, not {next}");
        lost += number - next;
        next = number + 1;
    }
    let count = channel.check_queue(&Backlog::queue(0))?.message_count;
    ensure!(count == 0, "{count} messages are left that nobody can have");
    channel.close()?;
    let log = fs::read_to_string(&log)?;
    let told =
        log.lines().filter_map(|line| line.split_once("are lost: ")?.1.split(',').next()?.parse::<u64>().ok());
    let told: u64 = told.sum();
    ensure!(lost > 0 && lost == told, "{lost} messages were lost, and the log tells of {told}");
    wait_for_removal(&data)?;
    connection.close()?;
    broker.stop()?;
    Ok(format!("{lost} of {} messages", backlog.messages))
}

fn kill_and_start(binary: &Path, folder: &Path) -> Result<String> {
    let data = folder.join("data").display().to_string();
    let backlog = Backlog { messages: 100_000, body_bytes: BODY_BYTES, queues: 1 };
    let broker = start(binary, folder, &["--data-dir", &data], LIMIT_MIB)?;
    let mut connection = open(&broker)?;
    // Transient messages in a durable queue, which comes back without them.
    backlog.declare(&mut connection, true)?;
    backlog.fill(&mut connection, 1)?;
    // By a signal that it cannot answer.
    drop(broker);
    let left = scratch_bytes(&data)?;
    ensure!(left > 0, "nothing was written out");
    let broker = start(binary, folder, &["--data-dir", &data], LIMIT_MIB)?;
    ensure!(scratch_bytes(&data)? == 0, "{} bytes of scratch files are left", scratch_bytes(&data)?);
    let mut connection = open(&broker)?;
    let mut channel = connection.open_channel()?;
    let count = channel.check_queue(&Backlog::queue(0))?.message_count;
    ensure!(count == 0, "{count} transient messages came back");
    channel.close()?;
    connection.close()?;
    broker.stop()?;
    Ok(format!("{} MiB were left", left >> 20))
}

fn unread(binary: &Path, folder: &Path) -> Result<String> {
    const CONSUMERS: usize = 150;
    raise_file_limit()?;
    let backlog = Backlog { messages: 1_000_000, body_bytes: BODY_BYTES, queues: 1 };
    let data = folder.join("data").display().to_string();
    let broker = start(binary, folder, &["--data-dir", &data], LIMIT_MIB)?;
    let peak = Peak::watch(broker.process_id());
    let mut connection = open(&broker)?;
    backlog.declare(&mut connection, true)?;
    let mut idle = Vec::with_capacity(CONSUMERS);
    for _ in 0..CONSUMERS {
        let address = broker.url.trim_start_matches("amqp://");
        let mut peer = Peer::connect_with_small_window(address, ANSWER_DEADLINE)?;
        let (queue, empty) = (Backlog::queue(0), ShortStr::truncated(""));
        peer.send(
            1,
            &Method::BasicConsume {
                ticket: 0,
                queue: ShortStr::new(&queue)?,
                consumer_tag: empty,
                no_local: false,
                no_ack: true,
                exclusive: false,
                nowait: false,
                arguments: Table::EMPTY,
            },
        )?;
        peer.expect("basic.consume-ok")?;
        idle.push(peer);
    }
    backlog.fill(&mut connection, 2)?;
    let filling_kib = peak.take();
    ensure!(filling_kib <= CEILING_KIB, "{} MiB at a limit of {LIMIT_MIB}", filling_kib / 1024);
    let mut channel = connection.open_channel()?;
    let left = channel.check_queue(&Backlog::queue(0))?.message_count;
    ensure!(left > 0, "the idle consumers were sent everything");
    channel
        .consume(&Backlog::queue(0), &ConsumeOptions { ack_mode: AckMode::Auto, ..ConsumeOptions::default() })?;
    let mut last = None;
    for nth in 0..left {
        let Some(ConsumerEvent::Delivery(delivery)) = channel.next_event(PATIENCE)? else {
            bail!("{nth} of {left} messages came, and no more");
        };
        let number = delivery.message.body.first_chunk().map(|bytes| u64::from_le_bytes(*bytes));
        ensure!(last < number, "message {number:?} came after {last:?}");
        last = number;
    }
    channel.close()?;
    let peak_kib = peak.take().max(filling_kib);
    ensure!(peak_kib <= CEILING_KIB, "{} MiB at a limit of {LIMIT_MIB}", peak_kib / 1024);
    connection.close()?;
    drop(idle);
    broker.stop()?;
    Ok(format!("{} MiB, and {left} of {} messages came to the other one", peak_kib / 1024, backlog.messages))
}

fn arrive(binary: &Path, folder: &Path) -> Result<String> {
    const PUBLISHERS: u64 = 40;
    const LARGE_BYTES: usize = 8_000_000;
    let data = folder.join("data").display().to_string();
    let broker = start(binary, folder, &["--data-dir", &data], LIMIT_MIB)?;
    let mut connection = open(&broker)?;
    let backlog = Backlog { messages: PUBLISHERS, body_bytes: LARGE_BYTES, queues: 1 };
    backlog.declare(&mut connection, true)?;
    let peak = Peak::watch(broker.process_id());
    let publishers: Vec<_> = (0..PUBLISHERS)
        .map(|_| {
            let mut publishing = open(&broker)?;
            publishing.set_answer_timeout(PATIENCE);
            let one = Backlog { messages: 1, ..backlog };
            Ok(thread::spawn(move || one.fill(&mut publishing, 2)))
        })
        .collect::<Result<_>>()?;
    for publisher in publishers {
        publisher.join().ok().context("a publisher panicked")??;
    }
    let peak_kib = peak.take();
    let mut channel = connection.open_channel()?;
    let count = channel.check_queue(&Backlog::queue(0))?.message_count;
    ensure!(u64::from(count) == PUBLISHERS, "{count} messages are in the queue");
    ensure!(peak_kib <= CEILING_KIB, "{} MiB at a limit of {LIMIT_MIB}", peak_kib / 1024);
    channel.close()?;
    connection.close()?;
    broker.stop()?;
    Ok(format!("{PUBLISHERS} bodies of {} MB at once in {} MiB", LARGE_BYTES / 1_000_000, peak_kib / 1024))
}

fn trickle(binary: &Path, folder: &Path) -> Result<String> {
    const SLOW: usize = 30;
    const ANNOUNCED_BYTES: usize = 16 << 20;
    const SENT_BYTES: usize = 393_000;
    const LARGE_BYTES: usize = 5_000_000;
    const WOULD_DO: Duration = Duration::from_secs(2);
    let broker = start(binary, folder, &["--in-memory"], LIMIT_MIB)?;
    let mut connection = open(&broker)?;
    let backlog = Backlog { messages: 1, body_bytes: LARGE_BYTES, queues: 1 };
    backlog.declare(&mut connection, false)?;
    let mut content = Vec::new();
    let empty = ShortStr::truncated("");
    let publish =
        Method::BasicPublish { ticket: 0, exchange: empty, routing_key: empty, mandatory: false, immediate: false };
    write_method(&mut content, 1, &publish);
    let mut header = Vec::new();
    ContentHeader { body_bytes: ANNOUNCED_BYTES as u64, properties: BasicProperties::default() }
        .encode(&mut header);
    write_content(&mut content, 1, &header, &vec![0; ANNOUNCED_BYTES], FRAME_BYTES_MAX);
    let mut slow = Vec::with_capacity(SLOW);
    for _ in 0..SLOW {
        let peer = Peer::connect(broker.url.trim_start_matches("amqp://"))?.into_stream();
        // The broker may leave off reading before it has all of that.
        peer.set_nonblocking(true)?;
        slow.push((peer, 0));
    }
    for (peer, sent) in &mut slow {
        while *sent < SENT_BYTES {
            match peer.write(&content[*sent..SENT_BYTES]) {
                Ok(count) => *sent += count,
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) => return Err(error.into()),
            }
        }
    }
    let is_over = Arc::new(AtomicBool::new(false));
    let until = Arc::clone(&is_over);
    let trickling = thread::spawn(move || {
        while !until.load(Ordering::Relaxed) {
            for (peer, sent) in &mut slow {
                // None goes where the buffers are full, or it has been closed.
                *sent += peer.write(&content[*sent..][..1]).unwrap_or_default();
            }
            thread::sleep(LOOK_EVERY);
        }
    });
    let mut longest = Duration::ZERO;
    let mut publishing = open(&broker)?;
    publishing.set_answer_timeout(PATIENCE);
    for _ in 0..5 {
        let asked = Instant::now();
        backlog.fill(&mut publishing, 1)?;
        longest = longest.max(asked.elapsed());
        backlog.drain(&mut connection)?;
    }
    is_over.store(true, Ordering::Relaxed);
    trickling.join().ok().context("those who are slow panicked")?;
    ensure!(longest < 5 * WOULD_DO, "a body of {LARGE_BYTES} bytes waited {longest:?} for {SLOW} slow ones");
    connection.close()?;
    publishing.close()?;
    broker.stop()?;
    Ok(format!("5 MB confirmed within {longest:.1?} of {WOULD_DO:?} beside {SLOW} slow ones"))
}

fn hold(binary: &Path, folder: &Path) -> Result<String> {
    let backlog = Backlog { messages: 200_000, body_bytes: BODY_BYTES, queues: 1 };
    let broker = start(binary, folder, &["--in-memory"], LIMIT_MIB)?;
    let peak = Peak::watch(broker.process_id());
    let mut connection = open(&broker)?;
    backlog.declare(&mut connection, false)?;
    let mut publishing = open(&broker)?;
    // It waits longer than a client waits for an answer by itself.
    publishing.set_answer_timeout(PATIENCE);
    let publisher = thread::spawn(move || backlog.fill(&mut publishing, 1));
    let log = folder.join("broker.log");
    wait_for_line(&log, "low on memory")?;
    let mut channel = connection.open_channel()?;
    let held = channel.check_queue(&Backlog::queue(0))?.message_count;
    ensure!(u64::from(held) < backlog.messages, "all {held} messages are in a queue that has no room for them");
    channel.close()?;
    let peak_kib = peak.take();
    ensure!(peak_kib <= CEILING_KIB, "{} MiB at a limit of {LIMIT_MIB}", peak_kib / 1024);
    backlog.drain(&mut connection)?;
    publisher.join().ok().context("the publisher panicked")??;
    ensure!(fs::read_to_string(&log)?.contains("enough memory again"), "the log does not say that it goes on");
    connection.close()?;
    broker.stop()?;
    Ok(format!("held at {held} messages and {} MiB, then all {} came", peak_kib / 1024, backlog.messages))
}
