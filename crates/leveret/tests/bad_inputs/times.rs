//! Clients that are slow or silent, and how long they may be. Most meet a broker that gives a handshake one second, some one to
//! which nobody has said how long it should be.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use leveret_amqp::frame::{HEARTBEAT, write_method};
use leveret_amqp::{FrameKind, Method, PROTOCOL_HEADER, ShortStr, Table};
use leveret_testkit::Heard;

use crate::case::{Cases, LeftOpen};
use crate::support::DEADLINE;
use crate::wire::Peer;

/// How long a broker gives a handshake that was told so.
const HANDSHAKE: Duration = Duration::from_secs(1);

/// And how long by itself.
const HANDSHAKE_DEFAULT: Duration = Duration::from_secs(10);

/// So many times as long as it should anything may take on a busy machine: the rule of `CONTRIBUTING.md` for all tests. That it does not
/// come too early, which no machine explains, is held to a twentieth.
const LATE_FACTOR: u32 = 5;

/// The heartbeat that is agreed to here; two intervals of silence are the end.
const INTERVAL: Duration = Duration::from_secs(1);

pub(crate) fn list(cases: &mut Cases) {
    cases
        .kind(5)
        .waits("nothing is said", |address| ends_soon(address, b"", &[]))
        .waits("half a header", |address| ends_soon(address, b"AMQP", &[]))
        .waits("a header", |address| ends_soon(address, &PROTOCOL_HEADER, &[]))
        .waits("a header, a byte at a time", |address| ends_soon(address, b"", &PROTOCOL_HEADER))
        .waits("a start-ok, a byte at a time", |address| ends_soon(address, &PROTOCOL_HEADER, &start_ok()))
        .waits("no tune-ok", |address| ends_soon(address, &[&PROTOCOL_HEADER, &start_ok()[..]].concat(), &[]))
        .waits("no open", |address| {
            ends_soon(address, &[&PROTOCOL_HEADER, &start_ok()[..], &tune_ok()].concat(), &[])
        })
        .waits("heartbeats instead of open", |address| {
            let heartbeats = HEARTBEAT.repeat(20);
            ends_soon(address, &[&PROTOCOL_HEADER, &start_ok()[..], &tune_ok()].concat(), &heartbeats)
        })
        .waits_long("nothing is said, for ten seconds", |address| ends_late(address, b"", &[]))
        .waits_long("half a header, and ten seconds", |address| ends_late(address, b"AMQP", &[]))
        .waits_long("a byte each second, for ten seconds", |address| {
            let bytes = [&PROTOCOL_HEADER, &start_ok()[..]].concat();
            handshake_ends(address, HANDSHAKE_DEFAULT, HANDSHAKE_DEFAULT / 10, b"", &bytes)
        })
        .waits_long("a login, and ten seconds", |address| {
            ends_late(address, &[&PROTOCOL_HEADER, &start_ok()[..]].concat(), &[])
        })
        .kind(15)
        .waits("silence", |address| heartbeats_end(address, b""))
        .waits("silence amidst a frame", |address| heartbeats_end(address, &[1, 0, 0, 0, 0]))
        .waits("silence amidst a message", |address| heartbeats_end(address, &half_a_message()))
        .waits("a byte now and then, which is a sign of life", bytes_are_life);
}

fn start_ok() -> Vec<u8> {
    let mut out = Vec::new();
    let locale = ShortStr::truncated("en_US");
    let mechanism = ShortStr::truncated("PLAIN");
    let start_ok = Method::ConnectionStartOk {
        client_properties: Table::EMPTY,
        mechanism,
        response: b"\0guest\0guest",
        locale,
    };
    write_method(&mut out, 0, &start_ok);
    out
}

fn tune_ok() -> Vec<u8> {
    let mut out = Vec::new();
    let heartbeat = u16::try_from(INTERVAL.as_secs()).unwrap();
    write_method(&mut out, 0, &Method::ConnectionTuneOk { channel_max: 2047, frame_max: 131_072, heartbeat });
    out
}

fn half_a_message() -> Vec<u8> {
    let mut out = Vec::new();
    write_method(&mut out, 1, &Method::ChannelOpen { out_of_band: ShortStr::EMPTY });
    let routing_key = ShortStr::truncated("nowhere");
    let exchange = ShortStr::EMPTY;
    write_method(
        &mut out,
        1,
        &Method::BasicPublish { ticket: 0, exchange, routing_key, mandatory: false, immediate: false },
    );
    out.extend(b"\x02\0\x01\0\0\0\x0e\0\x3c\0\0\0\0\0\0\0\0\0\x09\0\0\xce");
    out
}

/// Where the broker was told how long a handshake may take.
fn ends_soon(address: SocketAddr, at_once: &[u8], slowly: &[u8]) -> Result<LeftOpen, String> {
    handshake_ends(address, HANDSHAKE, HANDSHAKE / 8, at_once, slowly)
}

/// Where it was not.
fn ends_late(address: SocketAddr, at_once: &[u8], slowly: &[u8]) -> Result<LeftOpen, String> {
    handshake_ends(address, HANDSHAKE_DEFAULT, HANDSHAKE_DEFAULT, at_once, slowly)
}

/// Whatever a client says, and however slowly, it is over when the time for a handshake is.
fn handshake_ends(
    address: SocketAddr,
    expected: Duration,
    pause: Duration,
    at_once: &[u8],
    slowly: &[u8],
) -> Result<LeftOpen, String> {
    let earliest = Instant::now();
    let mut peer = Peer::connect(address);
    let latest = Instant::now();
    peer.send(at_once);
    let mut slowly = slowly.iter();
    let deadline = latest + expected * LATE_FACTOR;
    loop {
        match peer.hear(pause) {
            Heard::End => break,
            Heard::Nothing => slowly.next().into_iter().for_each(|&byte| peer.send(&[byte])),
            Heard::Frame(FrameKind::Method | FrameKind::Heartbeat, 0, payload) if !is_close(&payload) => {}
            other => return Err(format!("heard {other:?}")),
        }
        if Instant::now() > deadline {
            return Err("the socket is still open".into());
        }
    }
    check_ended(earliest, latest, expected)
}

/// Who is cut off hears no farewell.
fn is_close(payload: &[u8]) -> bool {
    matches!(Method::decode(payload), Ok(Method::ConnectionClose { .. }))
}

/// A socket has just been closed: not before its time, and not as late as can only be on a busy machine. What the broker counts
/// from was between `earliest` and `latest`, however slow a thread is here.
fn check_ended(earliest: Instant, latest: Instant, expected: Duration) -> Result<LeftOpen, String> {
    let (at_most, at_least) = (earliest.elapsed(), latest.elapsed());
    if at_most < expected.mul_f64(0.95) || at_least > expected * LATE_FACTOR {
        return Err(format!("the socket is closed after {at_least:?} to {at_most:?} instead of {expected:?}"));
    }
    Ok(Box::new(()))
}

fn open(address: SocketAddr) -> Result<Peer, String> {
    let mut peer = Peer::connect(address);
    let mut frames = [&PROTOCOL_HEADER, &start_ok()[..], &tune_ok()].concat();
    let open = Method::ConnectionOpen {
        virtual_host: ShortStr::truncated("/"),
        capabilities: ShortStr::EMPTY,
        insist: false,
    };
    write_method(&mut frames, 0, &open);
    peer.send(&frames);
    loop {
        match peer.hear(DEADLINE) {
            Heard::Frame(FrameKind::Method, 0, payload) => {
                if let Ok(Method::ConnectionOpenOk { .. }) = Method::decode(&payload) {
                    return Ok(peer);
                }
            }
            other => return Err(format!("heard {other:?} instead of open-ok")),
        }
    }
}

/// The broker says heartbeats until it has heard nothing for two intervals; then it closes the socket without a method.
fn heartbeats_end(address: SocketAddr, last_words: &[u8]) -> Result<LeftOpen, String> {
    let mut earliest = Instant::now();
    let mut peer = open(address)?;
    if !last_words.is_empty() {
        earliest = Instant::now();
        peer.send(last_words);
    }
    let latest = Instant::now();
    let mut heartbeats = 0;
    loop {
        match peer.hear(DEADLINE) {
            Heard::Frame(FrameKind::Heartbeat, 0, _) => heartbeats += 1,
            Heard::Frame(FrameKind::Method, 1, payload)
                if matches!(Method::decode(&payload), Ok(Method::ChannelOpenOk { .. })) => {}
            Heard::End => break,
            other => return Err(format!("heard {other:?}")),
        }
    }
    if heartbeats == 0 {
        return Err("the broker sends no heartbeats itself".into());
    }
    check_ended(earliest, latest, INTERVAL * 2)
}

/// A frame of which a byte comes every half interval keeps a connection for longer than two of them. If the bytes themselves come
/// too late, because the machine is busy, that says nothing, and is tried again.
fn bytes_are_life(address: SocketAddr) -> Result<LeftOpen, String> {
    let mut heard = String::new();
    for _ in 0..LATE_FACTOR {
        let mut last_sent = Instant::now();
        let mut peer = open(address)?;
        let started = Instant::now();
        // The head of a frame that is long in coming.
        let mut bytes = &[1, 0, 0, 0, 1, 0, 0][..];
        let mut longest_silence = Duration::ZERO;
        let ended = loop {
            let sent = Instant::now();
            peer.send(bytes);
            bytes = b"x";
            longest_silence = longest_silence.max(last_sent.elapsed());
            last_sent = sent;
            if let Some(end) = hear_heartbeats(&mut peer, sent + INTERVAL / 2) {
                break end;
            }
            if started.elapsed() > INTERVAL * 4 {
                return Ok(Box::new(peer));
            }
        };
        longest_silence = longest_silence.max(last_sent.elapsed());
        heard = format!("heard {ended:?} after {:?}, silent for at most {longest_silence:?}", started.elapsed());
        if !matches!(ended, Heard::End) || longest_silence < INTERVAL * 2 {
            break;
        }
    }
    Err(heard)
}

/// What is heard until then instead of a heartbeat, if anything is.
fn hear_heartbeats(peer: &mut Peer, until: Instant) -> Option<Heard> {
    while let Some(left) = until.checked_duration_since(Instant::now()) {
        match peer.hear(left) {
            Heard::Nothing | Heard::Frame(FrameKind::Heartbeat, 0, _) => {}
            other => return Some(other),
        }
    }
    None
}
