//! A peer that plays just enough of a broker for a load, and plays it false: it loses, doubles, shortens or swaps messages.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::thread;

use leveret_amqp::frame::{split_frame, write_content, write_method};
use leveret_amqp::{FrameKind, Method, PROTOCOL_HEADER, ShortStr, Table};

/// What becomes of the message with this number, counted from 0; with any other it goes to the consumer as it should.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Trick {
    Lose(u64),
    Double(u64),
    /// It comes, and is still in the queue when that is deleted.
    Leave(u64),
    /// Its body lacks the last byte.
    Shorten(u64),
    /// It comes after the next one.
    Swap(u64),
    /// It is refused and comes nevertheless, but the next one is lost.
    Refuse(u64),
    /// All are lost.
    LoseAll,
    /// None; but publishes are held back for a moment after the first one.
    Hold,
    /// Publishes are held back for ever after the first one.
    HoldForEver,
    /// The connection is closed instead.
    Close(u64),
    /// Nothing; but the connection with this number gets no answer at all.
    Mute(u64),
    /// Nothing; but the connection with this number ends as soon as its channel is open.
    HangUp(u64),
}

/// A peer that listens. It ends with the process of the tests.
#[derive(Debug)]
pub(crate) struct FakeBroker {
    pub(crate) url: String,
    /// Hears of the first publish.
    pub(crate) first_publish: Receiver<()>,
    /// Hears of the first queue that is declared.
    pub(crate) first_declare: Receiver<()>,
    /// Hears of the connection that gets no answer.
    pub(crate) mute: Receiver<()>,
    shared: Arc<Mutex<Shared>>,
}

/// What its connections know together.
#[derive(Debug)]
struct Shared {
    trick: Trick,
    first_publish: Sender<()>,
    first_declare: Sender<()>,
    mute: Sender<()>,
    connections: u64,
    declared: u64,
    consumer: Option<TcpStream>,
    confirms: bool,
    published: u64,
    delivered: u64,
    kept: Vec<Vec<u8>>,
    left: u32,
    auto_delete: bool,
    deleted: Vec<String>,
}

impl FakeBroker {
    pub(crate) fn start(trick: Trick) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
        let url = format!("amqp://{}", listener.local_addr().unwrap());
        let (tell_publish, first_publish) = channel();
        let (tell_declare, first_declare) = channel();
        let (tell_mute, mute) = channel();
        let shared = Shared {
            trick,
            first_publish: tell_publish,
            first_declare: tell_declare,
            mute: tell_mute,
            connections: 0,
            declared: 0,
            consumer: None,
            confirms: false,
            published: 0,
            delivered: 0,
            kept: Vec::new(),
            left: 0,
            auto_delete: false,
            deleted: Vec::new(),
        };
        let shared = Arc::new(Mutex::new(shared));
        let theirs = Arc::clone(&shared);
        thread::spawn(move || {
            for stream in listener.incoming() {
                let shared = Arc::clone(&theirs);
                thread::spawn(move || serve(stream.unwrap(), &shared));
            }
        });
        FakeBroker { url, first_publish, first_declare, mute, shared }
    }

    /// The names of the queues that were deleted.
    pub(crate) fn deleted(&self) -> Vec<String> {
        self.shared.lock().unwrap().deleted.clone()
    }
}

fn send(stream: &mut TcpStream, channel: u16, methods: &[Method<'_>]) {
    let mut bytes = Vec::new();
    for method in methods {
        write_method(&mut bytes, channel, method);
    }
    // A client may have gone.
    let _ = stream.write_all(&bytes);
}

/// One connection, until its end. A fault is one of the test, and shows as the client's complaint.
fn serve(mut stream: TcpStream, shared: &Mutex<Shared>) {
    let mut input = Vec::new();
    let mut buffer = vec![0; 65536];
    let mut header = [0; 8];
    stream.read_exact(&mut header).unwrap();
    assert_eq!(header, PROTOCOL_HEADER);
    let (number, trick) = {
        let mut shared = shared.lock().unwrap();
        shared.connections += 1;
        (shared.connections - 1, shared.trick)
    };
    if trick == Trick::Mute(number) {
        // Not every test wants to know.
        let _ = shared.lock().unwrap().mute.send(());
        // Until the other end has gone.
        let _ = stream.read(&mut buffer);
        return;
    }
    let start = Method::ConnectionStart {
        version_major: 0,
        version_minor: 9,
        server_properties: Table::EMPTY,
        mechanisms: b"PLAIN",
        locales: b"en_US",
    };
    send(&mut stream, 0, &[start]);
    while let Ok(count @ 1..) = stream.read(&mut buffer) {
        input.extend_from_slice(&buffer[..count]);
        let mut rest = &input[..];
        while let Some(frame) = split_frame(&mut rest, 131_072).unwrap() {
            match frame.kind {
                FrameKind::Method => {
                    let method = Method::decode(frame.payload).unwrap();
                    let opens_channel = matches!(method, Method::ChannelOpen { .. });
                    handle(&mut stream, frame.channel, method, shared);
                    if opens_channel && trick == Trick::HangUp(number) {
                        return;
                    }
                }
                FrameKind::Body => publish(&mut stream, frame.payload, &mut shared.lock().unwrap()),
                FrameKind::Header | FrameKind::Heartbeat => {}
            }
        }
        let taken = input.len() - rest.len();
        input.drain(..taken);
    }
}

fn handle(stream: &mut TcpStream, channel: u16, method: Method<'_>, shared: &Mutex<Shared>) {
    let answer = match method {
        Method::ConnectionStartOk { .. } => Method::ConnectionTune { channel_max: 0, frame_max: 0, heartbeat: 0 },
        Method::ConnectionOpen { .. } => Method::ConnectionOpenOk { known_hosts: ShortStr::EMPTY },
        Method::ConnectionClose { .. } => Method::ConnectionCloseOk {},
        Method::ChannelOpen { .. } => Method::ChannelOpenOk { channel_id: b"" },
        Method::ChannelClose { .. } => Method::ChannelCloseOk {},
        Method::QueueDeclare { queue, auto_delete, .. } => {
            let mut shared = shared.lock().unwrap();
            shared.auto_delete = auto_delete;
            shared.declared += 1;
            if shared.declared == 1 {
                // Not every test wants to know.
                let _ = shared.first_declare.send(());
            }
            Method::QueueDeclareOk { queue, message_count: 0, consumer_count: 0 }
        }
        Method::QueueDelete { queue, .. } => {
            let mut shared = shared.lock().unwrap();
            shared.deleted.push(queue.as_str().to_owned());
            // It has ended with its consumer otherwise, and what was left in it, too.
            Method::QueueDeleteOk { message_count: if shared.auto_delete { 0 } else { shared.left } }
        }
        Method::ConfirmSelect { .. } => {
            shared.lock().unwrap().confirms = true;
            Method::ConfirmSelectOk {}
        }
        Method::BasicConsume { consumer_tag, .. } => {
            shared.lock().unwrap().consumer = Some(stream.try_clone().unwrap());
            Method::BasicConsumeOk { consumer_tag }
        }
        Method::BasicCancel { consumer_tag, .. } => Method::BasicCancelOk { consumer_tag },
        _ => return,
    };
    send(stream, channel, &[answer]);
}

/// Takes a message, which fits into one frame, and does what the trick says.
fn publish(stream: &mut TcpStream, body: &[u8], shared: &mut Shared) {
    let number = shared.published;
    shared.published += 1;
    if number == 0 {
        // Not every test wants to know.
        let _ = shared.first_publish.send(());
    }
    if shared.confirms {
        let delivery_tag = shared.published;
        let ack = Method::BasicAck { delivery_tag, multiple: false };
        let nack = Method::BasicNack { delivery_tag, multiple: false, requeue: false };
        send(stream, 1, &[if shared.trick == Trick::Refuse(number) { nack } else { ack }]);
    }
    match shared.trick {
        Trick::LoseAll => return,
        Trick::Lose(lost) if lost == number => return,
        Trick::Refuse(refused) if refused + 1 == number => return,
        Trick::Double(doubled) if doubled == number => shared.kept = vec![body.to_vec(), body.to_vec()],
        Trick::Leave(left) if left == number => {
            shared.left += 1;
            shared.kept.push(body.to_vec());
        }
        Trick::Shorten(short) if short == number => shared.kept.push(body[..body.len() - 1].to_vec()),
        Trick::Swap(late) if late == number => {
            shared.kept.push(body.to_vec());
            return;
        }
        Trick::Hold | Trick::HoldForEver if number == 0 => {
            let blocked = Method::ConnectionBlocked { reason: ShortStr::truncated("low on disk") };
            let methods = [blocked, Method::ConnectionUnblocked {}];
            send(stream, 0, if shared.trick == Trick::Hold { &methods } else { &methods[..1] });
            shared.kept.push(body.to_vec());
        }
        Trick::Close(last) if last == number => {
            let reply_text = ShortStr::truncated("CONNECTION_FORCED - maintenance");
            let close = Method::ConnectionClose { reply_code: 320, reply_text, class_id: 0, method_id: 0 };
            send(stream, 0, &[close]);
            return;
        }
        Trick::Lose(_)
        | Trick::Double(_)
        | Trick::Leave(_)
        | Trick::Shorten(_)
        | Trick::Swap(_)
        | Trick::Refuse(_)
        | Trick::Hold
        | Trick::HoldForEver
        | Trick::Close(_)
        | Trick::Mute(_)
        | Trick::HangUp(_) => {
            shared.kept.insert(0, body.to_vec());
        }
    }
    for body in std::mem::take(&mut shared.kept) {
        shared.delivered += 1;
        let method = Method::BasicDeliver {
            consumer_tag: ShortStr::truncated("0"),
            delivery_tag: shared.delivered,
            redelivered: false,
            exchange: ShortStr::EMPTY,
            routing_key: ShortStr::EMPTY,
        };
        let header = [&[0, 60, 0, 0][..], &(body.len() as u64).to_be_bytes(), &[0, 0]].concat();
        let mut bytes = Vec::new();
        write_method(&mut bytes, 1, &method);
        write_content(&mut bytes, 1, &header, &body, 131_072);
        // A consumer may have gone.
        let _ = shared.consumer.as_mut().unwrap().write_all(&bytes);
    }
}
