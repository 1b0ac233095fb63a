//! Many connections at once, and many one after the other.
//!
//! Owns: connections that have nothing to say but that they are there.
//! Must not know: messages.

use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use leveret_amqp::frame::{FrameKind, HEARTBEAT, write_frame};
use leveret_amqp::{Method, PROTOCOL_HEADER, ShortStr, Table};

use super::consume;
use super::stage::{Files, PATIENCE, Stage};
use super::witness::Waits;
use crate::peer::Peer;
use crate::process::check_interrupted;

const THREADS: usize = 4;

/// Connections that are held at once.
const CONNECTIONS: u64 = 10_000;

/// They do next to nothing, so nobody has to wait for them.
pub(super) const WAITS: Waits = Waits { p99: Duration::from_millis(10), max: Duration::from_millis(100) };

const HEARTBEAT_EVERY: Duration = Duration::from_secs(10);

/// How often each of them says that it is there: twice in an interval.
const SAY_EVERY: Duration = Duration::from_secs(5);

const OPENED_WITHIN: Duration = Duration::from_secs(10);
const CLOSED_WITHIN: Duration = Duration::from_secs(5);

/// In which one comes and goes, with a queue of its own.
const SERVED_WITHIN: Duration = Duration::from_millis(500);

/// How many files more the journal may have open: its last segment a second time, and one that is written anew.
const JOURNAL_FILES_MORE: u64 = 2;

/// How much more memory there may be after many connections: pages that the heap happens to have touched.
const HEAP_KEEPS_KIB: u64 = 256;

const LOOK_EVERY: Duration = Duration::from_millis(20);

/// What one of them may take.
const CONNECTION_BYTES_MAX: u64 = 16 * 1024;

/// A connection that says that it is there.
struct Held {
    stream: TcpStream,
    /// Heartbeats of the broker.
    heard: usize,
}

/// Ten thousand connections send heartbeats and get them.
pub(super) fn hold(stage: &mut Stage, time: Duration) -> Result<String> {
    let connections = stage.clients(CONNECTIONS)?;
    let count = usize::try_from(connections.count)?;
    let before_kib = stage.settled_memory_kib()?;
    let before = stage.settled_files(Files::Sockets)?;
    let address = stage.address().to_owned();
    let started = Instant::now();
    let mut held = Vec::with_capacity(count);
    // Who is there already says so while others come.
    let mut say_at = started + SAY_EVERY;
    while held.len() < count {
        let peer = Peer::connect_with(&address, u16::try_from(HEARTBEAT_EVERY.as_secs())?, PATIENCE)
            .with_context(|| format!("connection {} of {count}", held.len() + 1))?;
        let stream = peer.into_stream();
        stream.set_nonblocking(true)?;
        held.push(Held { stream, heard: 0 });
        if Instant::now() > say_at {
            held.iter_mut().try_for_each(Held::live)?;
            say_at += SAY_EVERY;
        }
        check_interrupted()?;
    }
    let opened_in = stage.check_time("to open them", started.elapsed(), OPENED_WITHIN)?;
    for connection in &mut held {
        connection.heard = 0;
    }
    // Who is not heard for two intervals is given up.
    let hold = time.max(HEARTBEAT_EVERY * 5 / 2);
    let started = Instant::now();
    while started.elapsed() < hold {
        held.iter_mut().try_for_each(Held::live)?;
        say_at += SAY_EVERY;
        while Instant::now() < say_at.min(started + hold) {
            check_interrupted()?;
            thread::sleep(LOOK_EVERY);
        }
    }
    held.iter_mut().try_for_each(Held::live)?;
    let heard = held.iter().map(|connection| connection.heard);
    let due = usize::try_from(hold.as_secs() / HEARTBEAT_EVERY.as_secs())?;
    stage.check_count("heartbeats came to one", heard.clone().min().unwrap_or_default(), due)?;
    let shares = stage.check_shares("heartbeats to each", heard)?;
    let each_bytes = stage.memory_kib()?.saturating_sub(before_kib) * 1024 / connections.count;
    ensure!(
        each_bytes <= CONNECTION_BYTES_MAX,
        "each takes {each_bytes} bytes, at most {CONNECTION_BYTES_MAX} are allowed"
    );
    drop(held);
    let closed_in = stage
        .wait_until("their sockets to be closed", CLOSED_WITHIN, || Ok(stage.files(Files::Sockets)? <= before))?;
    let after_kib = stage.settled_memory_kib()?;
    Ok(format!(
        "{connections} opened in {opened_in}, {each_bytes} bytes each, {shares} in {hold:.0?}; closed in {closed_in}, {} MiB before \
         and {} after",
        before_kib / 1024,
        after_kib / 1024
    ))
}

impl Held {
    /// Says a heartbeat, and counts those that came. It must be open.
    fn live(&mut self) -> Result<()> {
        let mut input = [0; 1024];
        ensure!(self.stream.write(&HEARTBEAT)? == HEARTBEAT.len(), "a socket does not take a heartbeat");
        match self.stream.read(&mut input) {
            Ok(0) => bail!("the broker has closed a connection that sends heartbeats"),
            Ok(count) => {
                let mut frames = input[..count].chunks(HEARTBEAT.len());
                ensure!(frames.all(|frame| frame == HEARTBEAT), "not only heartbeats came");
                self.heard += count / HEARTBEAT.len();
                Ok(())
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => Ok(()),
            Err(error) => Err(error.into()),
        }
    }
}

/// How a connection of the churn ends.
#[derive(Clone, Copy, Debug)]
enum Ending {
    /// It says goodbye, and waits for the answer.
    Goodbye,
    /// It is closed without a word, with a queue of its own and a consumer.
    Silence,
    /// It is reset before the handshake is over.
    EarlyReset,
    /// It is reset in the midst of a frame.
    ResetInFrame,
}

const ENDINGS: [Ending; 4] = [Ending::Goodbye, Ending::Silence, Ending::EarlyReset, Ending::ResetInFrame];

fn come_and_go(address: &str, ending: Ending) -> Result<()> {
    let reset = |stream: TcpStream| rustix::net::sockopt::set_socket_linger(stream, Some(Duration::ZERO));
    if let Ending::EarlyReset = ending {
        let mut stream = TcpStream::connect(address)?;
        stream.write_all(&PROTOCOL_HEADER)?;
        return Ok(reset(stream)?);
    }
    let mut peer = Peer::connect_with(address, 0, PATIENCE)?;
    let queue = ShortStr::EMPTY;
    peer.send(
        1,
        &Method::QueueDeclare {
            ticket: 0,
            queue,
            passive: false,
            durable: false,
            exclusive: true,
            auto_delete: false,
            nowait: false,
            arguments: Table::EMPTY,
        },
    )?;
    peer.expect("queue.declare-ok")?;
    match ending {
        Ending::Goodbye => {
            let (reply_text, class_id) = (ShortStr::GOODBYE, 0);
            peer.send(0, &Method::ConnectionClose { reply_code: 200, reply_text, class_id, method_id: 0 })?;
            peer.expect("connection.close-ok")?;
        }
        Ending::Silence => {
            peer.send(1, &consume(queue))?;
            peer.expect("basic.consume-ok")?;
        }
        Ending::EarlyReset => {}
        Ending::ResetInFrame => {
            let mut frame = Vec::new();
            write_frame(&mut frame, FrameKind::Method, 1, |out| out.extend([0, 60, 0, 40, 0, 0]));
            peer.write(&frame[..frame.len() / 2])?;
            reset(peer.into_stream())?;
        }
    }
    Ok(())
}

/// Goes through so many connections, no faster than that. Gives how long it took, and the longest of each ending.
fn churn_through(
    address: &str,
    connections: u32,
    per_second: u32,
) -> Result<(Duration, [Duration; ENDINGS.len()])> {
    let (next, started) = (AtomicU32::new(0), Instant::now());
    let go_on = || {
        let mut longest = [Duration::ZERO; ENDINGS.len()];
        loop {
            let nth = next.fetch_add(1, Ordering::Relaxed);
            if nth >= connections {
                return Ok::<_, anyhow::Error>(longest);
            }
            let due = started + Duration::from_secs(1) * nth / per_second;
            thread::sleep(due.saturating_duration_since(Instant::now()));
            check_interrupted()?;
            let (began, ending) = (Instant::now(), nth as usize % ENDINGS.len());
            come_and_go(address, ENDINGS[ending])
                .with_context(|| format!("connection {nth}, {:?}", ENDINGS[ending]))?;
            longest[ending] = longest[ending].max(began.elapsed());
        }
    };
    let longest = thread::scope(|scope| {
        let threads: Vec<_> = (0..THREADS).map(|_| scope.spawn(go_on)).collect();
        threads.into_iter().try_fold([Duration::ZERO; ENDINGS.len()], |longest, thread| {
            let more = thread.join().ok().context("a thread panicked")??;
            Ok::<_, anyhow::Error>(std::array::from_fn(|nth| longest[nth].max(more[nth])))
        })
    })?;
    Ok((started.elapsed(), longest))
}

/// 500 connections a second, of which three in four end badly, leave nothing behind.
pub(super) fn churn(stage: &mut Stage, time: Duration) -> Result<String> {
    const PER_SECOND: u32 = 500;
    const WARM_UP: u32 = 1000;
    let address = stage.address().to_owned();
    // Memory that the first connections take is kept for later ones.
    churn_through(&address, WARM_UP, PER_SECOND)?;
    let sockets = stage.settled_files(Files::Sockets)?;
    let others = stage.settled_files(Files::Others)?;
    let before_kib = stage.settled_memory_kib()?;
    let connections = u32::try_from(time.as_secs())? * PER_SECOND;
    let (took, longest) = churn_through(&address, connections, PER_SECOND)?;
    let rate = usize::try_from(u128::from(connections) * 1000 / took.as_millis().max(1))?;
    stage.check_count("connections a second", rate, PER_SECOND as usize)?;
    for (ending, longest) in ENDINGS.iter().zip(longest) {
        stage.check_time(&format!("one that ends with {ending:?}"), longest, SERVED_WITHIN)?;
    }
    let longest = longest.map(|longest| longest.as_millis());
    stage.wait_until("sockets to be as many as before", CLOSED_WITHIN, || {
        Ok(stage.files(Files::Sockets)? <= sockets)
    })?;
    let others_after = stage.settled_files(Files::Others)?;
    stage.check_back("other files are open", others, others_after, JOURNAL_FILES_MORE)?;
    let after_kib = stage.settled_memory_kib()?;
    stage.check_back("KiB of memory are taken", before_kib, after_kib, HEAP_KEEPS_KIB)?;
    Ok(format!(
        "{connections} in {took:.1?}, {rate} of {PER_SECOND} a second, by ending at most {longest:?} ms; memory {before_kib} KiB before and {after_kib} after, sockets \
         {sockets} and {}, other files {others} and {others_after}",
        stage.files(Files::Sockets)?
    ))
}
