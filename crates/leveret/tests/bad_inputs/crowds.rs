//! Many at once, of whom nobody wants anything.

use std::net::{SocketAddr, TcpStream};
use std::time::Instant;

use leveret_amqp::frame::write_method;
use leveret_amqp::{Method, PROTOCOL_HEADER, ShortStr, Table};
use leveret_client::{
    AckMode, BasicProperties, Connection, ConsumeOptions, ConsumerEvent, PublishTo, QueueOptions,
};
use leveret_testkit::Wire as _;

use crate::case::{Cases, LeftOpen};
use crate::support::DEADLINE;
use crate::wire::{Peer, SocketWire};
use crate::{Bystander, SERVED_WITHIN, newcomer};

pub(crate) fn list(cases: &mut Cases) {
    cases
        .kind(61)
        .function("a thousand connects that are dropped at once", dropped_at_once)
        .function("a thousand connects that are reset at once", reset_at_once)
        .function("two hundred handshakes that hang", hanging_handshakes)
        .function("a consumer that never reads", never_reads)
        .function("a client that asks and never reads", never_reads_answers);
}

fn dropped_at_once(address: SocketAddr) -> Result<LeftOpen, String> {
    for _ in 0..1000 {
        drop(TcpStream::connect(address).map_err(|error| error.to_string())?);
    }
    served(address)?;
    Ok(Box::new(()))
}

fn reset_at_once(address: SocketAddr) -> Result<LeftOpen, String> {
    let mut wire = SocketWire::new(address);
    for _ in 0..1000 {
        wire.connect("reset");
        wire.send("reset", &PROTOCOL_HEADER);
        wire.end("reset");
    }
    served(address)?;
    Ok(Box::new(()))
}

/// Somebody new is served in time, while the crowd is still there.
fn served(address: SocketAddr) -> Result<(), String> {
    let started = Instant::now();
    newcomer(&format!("amqp://guest:guest@{address}/%2F").parse().unwrap())?;
    let took = started.elapsed();
    if took < SERVED_WITHIN { Ok(()) } else { Err(format!("a newcomer is served after {took:?}")) }
}

fn hanging_handshakes(address: SocketAddr) -> Result<LeftOpen, String> {
    let mut bystander = Bystander::at(address);
    let mut crowd: Vec<_> = (0..200).map(|_| Peer::connect(address)).collect();
    for (nth, peer) in crowd.iter_mut().enumerate() {
        // Some say nothing at all, some begin.
        peer.send(&PROTOCOL_HEADER[..nth % 9]);
    }
    bystander.look()?;
    Ok(Box::new(crowd))
}

fn open(address: SocketAddr) -> Result<Connection, String> {
    let url = format!("amqp://guest:guest@{address}/%2F?heartbeat=0").parse().unwrap();
    Connection::open(&url).map_err(|error| error.to_string())
}

/// More than the sockets and the broker's window for one client hold goes by: whoever else consumes from that queue has it all.
fn never_reads(address: SocketAddr) -> Result<LeftOpen, String> {
    const MESSAGES: u32 = 2000;
    let publishing = |error: leveret_client::Error| error.to_string();
    let mut owner = open(address)?;
    let mut channel = owner.open_channel().map_err(publishing)?;
    channel
        .declare_queue("crowded", &QueueOptions { auto_delete: true, ..QueueOptions::default() })
        .map_err(publishing)?;
    let (mut idle, mut frames) = (open(address)?.into_raw().map_err(publishing)?, Vec::new());
    write_method(&mut frames, 1, &Method::ChannelOpen { out_of_band: ShortStr::EMPTY });
    write_method(
        &mut frames,
        1,
        &Method::BasicConsume {
            ticket: 0,
            queue: ShortStr::truncated("crowded"),
            consumer_tag: ShortStr::EMPTY,
            no_local: false,
            no_ack: true,
            exclusive: false,
            nowait: true,
            arguments: Table::EMPTY,
        },
    );
    std::io::Write::write_all(&mut idle.stream, &frames).map_err(|error| error.to_string())?;
    let deadline = Instant::now() + DEADLINE;
    while channel.check_queue("crowded").map_err(publishing)?.consumer_count == 0 {
        if Instant::now() > deadline {
            return Err("the idle consumer is not there".into());
        }
    }
    channel.confirm_select().map_err(publishing)?;
    let body = vec![b'x'; 16 * 1024];
    for _ in 0..MESSAGES {
        channel.publish(PublishTo::queue("crowded"), &BasicProperties::default(), &body).map_err(publishing)?;
        channel.wait_confirms(100).map_err(publishing)?;
    }
    channel.wait_confirms(0).map_err(publishing)?;
    served(address)?;
    let left = channel.check_queue("crowded").map_err(publishing)?.message_count;
    if left == 0 {
        return Err("everything was sent to a consumer that does not read".into());
    }
    let options = ConsumeOptions { ack_mode: AckMode::Auto, ..ConsumeOptions::default() };
    channel.consume("crowded", &options).map_err(publishing)?;
    for nth in 0..left {
        let event = channel.next_event(DEADLINE).map_err(publishing)?;
        if !matches!(event, Some(ConsumerEvent::Delivery(_))) {
            return Err(format!("{nth} of {left} messages came, then {event:?}"));
        }
    }
    Ok(Box::new((owner, idle)))
}

/// It writes until nobody takes what it writes any more.
fn never_reads_answers(address: SocketAddr) -> Result<LeftOpen, String> {
    let mut idle = open(address)?.into_raw().map_err(|error| error.to_string())?;
    let mut frames = Vec::new();
    write_method(&mut frames, 1, &Method::ChannelOpen { out_of_band: ShortStr::EMPTY });
    std::io::Write::write_all(&mut idle.stream, &frames).map_err(|error| error.to_string())?;
    frames.clear();
    for _ in 0..1000 {
        write_method(&mut frames, 1, &Method::BasicQos { prefetch_size: 0, prefetch_count: 1, global: false });
    }
    idle.stream.set_nonblocking(true).map_err(|error| error.to_string())?;
    let (started, mut stuck_since, mut rest) = (Instant::now(), None, &frames[..]);
    // Long enough to be sure that the broker does not read it, or for so many megabytes that it would have to keep the answers.
    while started.elapsed() < DEADLINE {
        if rest.is_empty() {
            rest = &frames;
        }
        match std::io::Write::write(&mut idle.stream, rest) {
            Ok(written) => (stuck_since, rest) = (None, &rest[written..]),
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {
                let since: &mut Instant = stuck_since.get_or_insert_with(Instant::now);
                if since.elapsed().as_millis() > 300 {
                    served(address)?;
                    return Ok(Box::new(idle));
                }
                std::thread::yield_now();
            }
            Err(error) => return Err(error.to_string()),
        }
    }
    Err("the broker goes on reading from a client that does not read".into())
}
