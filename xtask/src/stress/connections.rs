//! Many connections at once, and many one after the other.

use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use leveret_amqp::frame::{FrameKind, HEARTBEAT, write_frame};
use leveret_amqp::{Method, ShortStr, Table};

use super::{LOOK_EVERY, PATIENCE, SLACK, Stage, wait_until};
use crate::peer::Peer;
use crate::process::check_interrupted;

const THREADS: usize = 4;

/// Connections that are held at once.
pub(super) const CONNECTIONS: u32 = 10_000;

/// Ten thousand connections send heartbeats and get them.
pub(super) fn hold(stage: &mut Stage, time: Duration) -> Result<String> {
    const HEARTBEAT_SECONDS: u16 = 4;
    let before_kib = stage.memory_kib()?;
    let before = stage.sockets()?;
    let address = stage.address().to_owned();
    let started = Instant::now();
    let mut sockets = Vec::with_capacity(CONNECTIONS as usize);
    // Who is there already says so while others come.
    let mut said = Instant::now();
    let mut heard = 0;
    while sockets.len() < CONNECTIONS as usize {
        let peer = Peer::connect_with(&address, HEARTBEAT_SECONDS)
            .with_context(|| format!("connection {} of {CONNECTIONS}", sockets.len() + 1))?;
        let stream = peer.into_stream();
        stream.set_nonblocking(true)?;
        sockets.push(stream);
        if said.elapsed() > Duration::from_secs(1) {
            heard += live(&mut sockets)?;
            said = Instant::now();
        }
        check_interrupted()?;
    }
    let opened_in = started.elapsed();
    // Long enough to be given up if heartbeats were not heard.
    let hold = time.max(Duration::from_secs(3 * u64::from(HEARTBEAT_SECONDS)));
    let started = Instant::now();
    let opened_heard = heard;
    while started.elapsed() < hold {
        thread::sleep(Duration::from_secs(1));
        heard += live(&mut sockets)?;
        check_interrupted()?;
    }
    let each = (heard - opened_heard) / CONNECTIONS as usize;
    ensure!(each > 0, "the broker sends no heartbeats");
    let held_kib = stage.memory_kib()?;
    let started = Instant::now();
    drop(sockets);
    wait_until("their sockets to be closed", || Ok(stage.sockets()? <= before))?;
    let closed_in = started.elapsed();
    let after_kib = settled(|| stage.memory_kib())?;
    Ok(format!(
        "{CONNECTIONS} opened in {opened_in:.1?}, {} bytes each, {each} heartbeats to each in {hold:.0?}; closed in \
         {closed_in:.1?}, {} MiB before and {} after",
        held_kib.saturating_sub(before_kib) * 1024 / u64::from(CONNECTIONS),
        before_kib / 1024,
        after_kib / 1024
    ))
}

/// Says a heartbeat on each, and gives how many were heard. All must be open.
fn live(sockets: &mut [TcpStream]) -> Result<usize> {
    let mut input = [0; 1024];
    let mut heard = 0;
    for socket in sockets {
        ensure!(socket.write(&HEARTBEAT)? == HEARTBEAT.len(), "a socket does not take a heartbeat");
        match socket.read(&mut input) {
            Ok(0) => anyhow::bail!("the broker has closed a connection that sends heartbeats"),
            Ok(count) => {
                ensure!(
                    input[..count].chunks(HEARTBEAT.len()).all(|frame| frame == HEARTBEAT),
                    "not only heartbeats"
                );
                heard += count / HEARTBEAT.len();
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(heard)
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
        stream.write_all(&leveret_amqp::PROTOCOL_HEADER)?;
        return Ok(reset(stream)?);
    }
    let mut peer = Peer::connect(address)?;
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
            peer.send(
                1,
                &Method::BasicConsume {
                    ticket: 0,
                    queue,
                    consumer_tag: ShortStr::EMPTY,
                    no_local: false,
                    no_ack: false,
                    exclusive: false,
                    nowait: false,
                    arguments: Table::EMPTY,
                },
            )?;
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

/// Goes through so many connections, no faster than that.
fn churn_through(address: &str, connections: u32, per_second: u32) -> Result<Duration> {
    let (next, started) = (AtomicU32::new(0), Instant::now());
    thread::scope(|scope| {
        let threads: Vec<_> = (0..THREADS)
            .map(|_| {
                scope.spawn(|| {
                    loop {
                        let nth = next.fetch_add(1, Ordering::Relaxed);
                        if nth >= connections {
                            return Ok::<_, anyhow::Error>(());
                        }
                        let due = started + Duration::from_secs(1) * nth / per_second;
                        thread::sleep(due.saturating_duration_since(Instant::now()));
                        check_interrupted()?;
                        let ending = ENDINGS[nth as usize % ENDINGS.len()];
                        come_and_go(address, ending).with_context(|| format!("connection {nth}, {ending:?}"))?;
                    }
                })
            })
            .collect();
        threads.into_iter().try_for_each(|thread| thread.join().ok().context("a thread panicked")?)
    })?;
    Ok(started.elapsed())
}

/// 500 connections a second, of which three in four end badly, leave nothing behind.
pub(super) fn churn(stage: &mut Stage, time: Duration) -> Result<String> {
    const PER_SECOND: u32 = 500;
    const WARM_UP: u32 = 2000;
    let address = stage.address().to_owned();
    // Memory that the first connections take is kept for later ones.
    churn_through(&address, WARM_UP, PER_SECOND)?;
    let sockets = settled(|| stage.sockets())?;
    let before_kib = settled(|| stage.memory_kib())?;
    let connections = u32::try_from(time.as_secs())? * PER_SECOND;
    let took = churn_through(&address, connections, PER_SECOND)?;
    let rate = f64::from(connections) / took.as_secs_f64();
    ensure!(rate * f64::from(SLACK) > f64::from(PER_SECOND), "only {rate:.0} connections a second");
    wait_until("sockets to be as many as before", || Ok(stage.sockets()? <= sockets))?;
    let after_kib = settled(|| stage.memory_kib())?;
    // A twentieth, and what the heap of this machine happens to keep.
    let may_kib = before_kib + before_kib / 20 + 4 * 1024;
    ensure!(after_kib <= may_kib, "memory is at {after_kib} KiB, and was at {before_kib}");
    Ok(format!(
        "{connections} at {rate:.0}/s; memory {before_kib} KiB before and {after_kib} after, sockets {sockets} and {}",
        stage.sockets()?
    ))
}

/// A figure once it has not changed for a while.
fn settled<T: PartialEq + Copy>(figure: impl Fn() -> Result<T>) -> Result<T> {
    let started = Instant::now();
    let (mut last, mut since) = (figure()?, Instant::now());
    while since.elapsed() < LOOK_EVERY * 20 && started.elapsed() < PATIENCE {
        thread::sleep(LOOK_EVERY);
        let now = figure()?;
        if now != last {
            (last, since) = (now, Instant::now());
        }
    }
    Ok(last)
}
