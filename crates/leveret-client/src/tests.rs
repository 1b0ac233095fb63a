//! The client against a scripted peer: a thread behind a listener on a free port.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::thread::JoinHandle;
use std::time::Duration;

use leveret_amqp::frame::{split_frame, write_content, write_frame, write_method};
use leveret_amqp::{ContentHeader, FrameKind, Method, PROTOCOL_HEADER, ShortStr};

use super::*;

/// The broker's side of one connection.
struct Peer {
    stream: TcpStream,
    input: Vec<u8>,
}

/// Starts a peer that plays `script`, and returns the URL where it listens. Join the handle to see its panics.
fn peer(script: impl FnOnce(&mut Peer) + Send + 'static) -> (Url, JoinHandle<()>) {
    let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
    let port = listener.local_addr().unwrap().port();
    let thread = std::thread::spawn(move || {
        let (stream, _) = listener.accept().unwrap();
        // Long enough for any machine; a script that waits for what never comes fails instead of hanging.
        stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        script(&mut Peer { stream, input: Vec::new() });
    });
    (format!("amqp://127.0.0.1:{port}").parse().unwrap(), thread)
}

fn short(text: &str) -> ShortStr<'_> {
    ShortStr::new(text).unwrap()
}

fn close_with(code: u16, text: &str, (class_id, method_id): (u16, u16)) -> Method<'_> {
    Method::ConnectionClose { reply_code: code, reply_text: short(text), class_id, method_id }
}

impl Peer {
    fn write(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).unwrap();
    }

    fn send(&mut self, channel: u16, method: &Method<'_>) {
        let mut bytes = Vec::new();
        write_method(&mut bytes, channel, method);
        self.write(&bytes);
    }

    fn send_with_content(&mut self, channel: u16, method: &Method<'_>, body: &[u8]) {
        let mut bytes = Vec::new();
        write_method(&mut bytes, channel, method);
        let mut header = Vec::new();
        let properties = BasicProperties { content_type: Some(b"text/plain"), ..BasicProperties::default() };
        ContentHeader { body_bytes: body.len() as u64, properties }.encode(&mut header);
        write_content(&mut bytes, channel, &header, body, 4096);
        self.write(&bytes);
    }

    /// Reads one frame; `None` at the end of the stream.
    fn read_frame(&mut self) -> Option<(FrameKind, u16, Vec<u8>)> {
        loop {
            let mut rest = &self.input[..];
            if let Some(frame) = split_frame(&mut rest, 131_072).unwrap() {
                let owned = (frame.kind, frame.channel, frame.payload.to_vec());
                let taken = self.input.len() - rest.len();
                self.input.drain(..taken);
                return Some(owned);
            }
            let mut buffer = [0; 4096];
            let bytes = self.stream.read(&mut buffer).unwrap();
            if bytes == 0 {
                return None;
            }
            self.input.extend_from_slice(&buffer[..bytes]);
        }
    }

    /// Reads frames up to the next method, which must have that name; returns its channel and payload.
    fn expect(&mut self, name: &str) -> (u16, Vec<u8>) {
        loop {
            let (kind, channel, payload) = self.read_frame().unwrap_or_else(|| panic!("no {name}, but the end"));
            if kind == FrameKind::Method {
                assert_eq!(Method::decode(&payload).unwrap().name(), name);
                return (channel, payload);
            }
        }
    }

    fn expect_protocol_header(&mut self) {
        let mut header = [0; 8];
        self.stream.read_exact(&mut header).unwrap();
        assert_eq!(header, PROTOCOL_HEADER);
    }

    fn start(&mut self, mechanisms: &[u8]) {
        self.expect_protocol_header();
        self.send(
            0,
            &Method::ConnectionStart {
                version_major: 0,
                version_minor: 9,
                server_properties: Table::EMPTY,
                mechanisms,
                locales: b"en_US",
            },
        );
    }

    /// The whole handshake.
    fn welcome(&mut self) {
        self.start(b"AMQPLAIN PLAIN");
        self.expect("connection.start-ok");
        self.send(0, &Method::ConnectionTune { channel_max: 2, frame_max: 4096, heartbeat: 0 });
        self.expect("connection.tune-ok");
        self.expect("connection.open");
        self.send(0, &Method::ConnectionOpenOk { known_hosts: ShortStr::EMPTY });
    }

    fn welcome_channel(&mut self) {
        self.welcome();
        assert_eq!(self.expect("channel.open").0, 1);
        self.send(1, &Method::ChannelOpenOk { channel_id: b"" });
    }

    fn expect_goodbye(&mut self) {
        self.expect("connection.close");
        self.send(0, &Method::ConnectionCloseOk {});
    }
}

/// Opens a connection against the script, which must refuse it.
fn refusal(script: impl FnOnce(&mut Peer) + Send + 'static) -> Error {
    let (url, thread) = peer(script);
    let error = Connection::open(&url).expect_err("the script refuses");
    thread.join().unwrap();
    error
}

#[test]
fn the_login_names_user_product_and_capabilities_and_agrees_to_the_lower_limits() {
    let (mut url, thread) = peer(|peer| {
        peer.start(b"PLAIN");
        let (_, payload) = peer.expect("connection.start-ok");
        let Ok(Method::ConnectionStartOk { client_properties, mechanism, response, locale }) =
            Method::decode(&payload)
        else {
            panic!("not start-ok")
        };
        assert_eq!((mechanism.as_str(), response, locale.as_str()), ("PLAIN", &b"\0me\0secret"[..], "en_US"));
        assert_eq!(client_properties.get("product").and_then(Value::as_str), Some("leveret"));
        let Some(Value::Table(capabilities)) = client_properties.get("capabilities") else { panic!("none") };
        for name in ["publisher_confirms", "consumer_cancel_notify", "basic.nack", "connection.blocked"] {
            assert_eq!(capabilities.get(name), Some(Value::Bool(true)), "{name}");
        }
        assert_eq!(capabilities.get("authentication_failure_close"), Some(Value::Bool(true)));
        peer.send(0, &Method::ConnectionTune { channel_max: 0, frame_max: 8192, heartbeat: 60 });
        let (_, payload) = peer.expect("connection.tune-ok");
        let agreed = Method::ConnectionTuneOk { channel_max: 2047, frame_max: 8192, heartbeat: 20 };
        assert_eq!(Method::decode(&payload), Ok(agreed));
        let (_, payload) = peer.expect("connection.open");
        let open =
            Method::ConnectionOpen { virtual_host: short("a/b"), capabilities: ShortStr::EMPTY, insist: false };
        assert_eq!(Method::decode(&payload), Ok(open));
        peer.send(0, &Method::ConnectionOpenOk { known_hosts: ShortStr::EMPTY });
        peer.expect_goodbye();
    });
    let wanted: Url = "amqp://me:secret@x/a%2Fb?heartbeat=20".parse().unwrap();
    url = Url { host: url.host, port: url.port, ..wanted };
    Connection::open(&url).unwrap().close().unwrap();
    thread.join().unwrap();
}

#[test]
fn a_refused_login_shows_the_reply_and_what_to_check() {
    let text = "ACCESS_REFUSED - Login was refused using authentication mechanism PLAIN.";
    let error = refusal(move |peer| {
        peer.start(b"PLAIN");
        peer.expect("connection.start-ok");
        peer.send(0, &close_with(403, text, (0, 0)));
        peer.expect("connection.close-ok");
    });
    assert_eq!(error.to_string(), format!("403 {text}"));
    assert_eq!(
        error.advice(),
        Some("check user and password of the URL; the user guest may log in only from the machine of the broker")
    );
}

#[test]
fn an_unknown_virtual_host_shows_the_reply_and_what_to_check() {
    let error = refusal(|peer| {
        peer.start(b"PLAIN");
        peer.expect("connection.start-ok");
        peer.send(0, &Method::ConnectionTune { channel_max: 0, frame_max: 0, heartbeat: 0 });
        peer.expect("connection.tune-ok");
        peer.expect("connection.open");
        peer.send(0, &close_with(530, "NOT_ALLOWED - vhost x not found", (10, 40)));
        peer.expect("connection.close-ok");
    });
    assert_eq!(error.to_string(), "530 NOT_ALLOWED - vhost x not found");
    assert!(error.advice().unwrap().contains("virtual host"));
}

#[test]
fn a_peer_that_speaks_something_else_is_named_as_such() {
    for answer in [&b"HTTP/1.1 400 Bad Request\r\n\r\n"[..], b"AMQP\x00\x01\x00\x00", &[0xFF; 100]] {
        let error = refusal(move |peer| {
            peer.expect_protocol_header();
            peer.write(answer);
        });
        assert!(matches!(error, Error::NotAmqp { .. }), "{error}");
    }
}

#[test]
fn a_broker_without_plain_is_named_as_such() {
    let error = refusal(|peer| peer.start(b"EXTERNAL PLAINER"));
    assert!(matches!(error, Error::NoMechanism { offered } if offered == "EXTERNAL PLAINER"));
}

#[test]
fn a_connection_cut_at_any_step_of_the_handshake_is_noticed() {
    let error = refusal(Peer::expect_protocol_header);
    assert!(matches!(error, Error::Disconnected), "{error}");
    let error = refusal(|peer| {
        peer.start(b"PLAIN");
        peer.expect("connection.start-ok");
    });
    assert!(matches!(error, Error::Disconnected), "{error}");
}

#[test]
fn silence_ends_at_the_deadline() {
    let (mut url, thread) = peer(|peer| {
        peer.expect_protocol_header();
        assert!(peer.read_frame().is_none());
    });
    url.connection_timeout = Duration::from_millis(100);
    let error = Connection::open(&url).unwrap_err();
    assert_eq!(error.to_string(), "no answer to the protocol header within 0.1 s");
    thread.join().unwrap();

    let (url, thread) = peer(|peer| {
        peer.welcome_channel();
        peer.expect("queue.purge");
        peer.expect("connection.close");
        assert!(peer.read_frame().is_none());
    });
    let mut connection = Connection::open(&url).unwrap();
    let channel = connection.open_channel().unwrap().id();
    connection.set_answer_timeout(Duration::from_millis(20));
    let error = connection.channel(channel).unwrap().purge_queue("q").unwrap_err();
    assert_eq!(error.to_string(), "no answer to queue.purge within 0.02 s");
    drop(connection);
    thread.join().unwrap();
}

#[test]
fn nobody_listening_says_where() {
    let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
    let port = listener.local_addr().unwrap().port();
    drop(listener);
    let url: Url = format!("amqp://127.0.0.1:{port}").parse().unwrap();
    let error = Connection::open(&url).unwrap_err();
    assert!(error.to_string().starts_with(&format!("cannot reach a broker at 127.0.0.1:{port}: ")), "{error}");
}

/// Opens a channel against the script and waits for the answer to a purge, which must fail.
fn failed_purge(script: impl FnOnce(&mut Peer) + Send + 'static) -> Error {
    let (url, thread) = peer(|peer| {
        peer.welcome_channel();
        peer.expect("queue.purge");
        script(peer);
    });
    let mut connection = Connection::open(&url).unwrap();
    let error = connection.open_channel().unwrap().purge_queue("x").expect_err("the script refuses");
    drop(connection);
    thread.join().unwrap();
    error
}

#[test]
fn frames_that_break_the_rules_are_errors() {
    let error = failed_purge(|peer| peer.write(&[1, 0, 1, 0, 0, 0x10, 1]));
    assert!(matches!(error, Error::Frame(_)), "too large: {error}");
    let error = failed_purge(|peer| peer.write(&[1, 0, 1, 0, 0, 0, 0, 0]));
    assert!(matches!(error, Error::Frame(_)), "bad end: {error}");
    let error = failed_purge(|peer| peer.write(b"garbage"));
    assert!(matches!(error, Error::Frame(_)), "no frame: {error}");
    let error = failed_purge(|peer| peer.write(&[5, 0, 1, 0, 0, 0, 0, 0xCE]));
    assert!(matches!(error, Error::Frame(_)), "bad type: {error}");
    let error = failed_purge(|peer| peer.write(&[1, 0, 1, 0, 0, 0, 4, 0, 50, 9, 9, 0xCE]));
    assert!(matches!(error, Error::Decode(_)), "unknown method: {error}");
    let error = failed_purge(|peer| peer.write(&[1, 0, 1, 0, 0, 0, 5, 0, 50, 0, 31, 0, 0xCE]));
    assert!(matches!(error, Error::Decode(_)), "cut method: {error}");
}

#[test]
fn methods_that_make_no_sense_are_errors() {
    let table: [(u16, Method<'_>); 7] = [
        (1, Method::QueueDeleteOk { message_count: 1 }),
        (1, Method::BasicGet { ticket: 0, queue: ShortStr::EMPTY, no_ack: true }),
        (1, Method::BasicAck { delivery_tag: 1, multiple: false }),
        (1, Method::ChannelCloseOk {}),
        (2, Method::QueuePurgeOk { message_count: 1 }),
        (0, Method::ConnectionOpenOk { known_hosts: ShortStr::EMPTY }),
        (0, Method::QueuePurgeOk { message_count: 1 }),
    ];
    for (channel, method) in table {
        let error = failed_purge(move |peer| peer.send(channel, &method));
        assert!(matches!(error, Error::Unexpected(_)), "{} on {channel}: {error}", method.name());
    }
}

#[test]
fn content_that_breaks_the_rules_is_an_error() {
    let get_ok = Method::BasicGetOk {
        delivery_tag: 1,
        redelivered: false,
        exchange: ShortStr::EMPTY,
        routing_key: ShortStr::EMPTY,
        message_count: 0,
    };
    let header = |body_bytes| {
        let mut payload = Vec::new();
        let properties = BasicProperties::default();
        ContentHeader { body_bytes, properties }.encode(&mut payload);
        payload
    };
    let scripts: [Vec<(FrameKind, Vec<u8>)>; 5] = [
        vec![(FrameKind::Body, b"x".to_vec())],
        vec![(FrameKind::Header, header(1))],
        vec![(FrameKind::Method, vec![]), (FrameKind::Body, b"x".to_vec())],
        vec![(FrameKind::Method, vec![]), (FrameKind::Header, header(1)), (FrameKind::Body, b"xx".to_vec())],
        vec![(FrameKind::Method, vec![]), (FrameKind::Header, header(1)), (FrameKind::Method, vec![])],
    ];
    for (case, script) in scripts.into_iter().enumerate() {
        let error = failed_purge(move |peer| {
            let mut bytes = Vec::new();
            for (kind, payload) in script {
                if kind == FrameKind::Method {
                    write_method(&mut bytes, 1, &get_ok);
                } else {
                    write_frame(&mut bytes, kind, 1, |out| out.extend_from_slice(&payload));
                }
            }
            peer.write(&bytes);
        });
        assert!(matches!(error, Error::Unexpected(_)), "case {case}: {error}");
    }
    let error = failed_purge(move |peer| {
        let mut bytes = Vec::new();
        write_method(&mut bytes, 1, &get_ok);
        write_frame(&mut bytes, FrameKind::Header, 1, |out| out.extend_from_slice(&header(u64::MAX)));
        peer.write(&bytes);
    });
    assert!(matches!(error, Error::MessageTooLarge(u64::MAX)), "{error}");
}

#[test]
fn a_refused_method_closes_its_channel_and_the_connection_goes_on() {
    let (url, thread) = peer(|peer| {
        peer.welcome_channel();
        peer.expect("queue.purge");
        let reply_text = short("NOT_FOUND - no queue 'x' in vhost '/'");
        peer.send(1, &Method::ChannelClose { reply_code: 404, reply_text, class_id: 50, method_id: 30 });
        peer.expect("channel.close-ok");
        assert_eq!(peer.expect("channel.open").0, 2);
        peer.send(2, &Method::ChannelOpenOk { channel_id: b"" });
        peer.expect_goodbye();
    });
    let mut connection = Connection::open(&url).unwrap();
    let mut channel = connection.open_channel().unwrap();
    for _ in 0..2 {
        let error = channel.purge_queue("x").unwrap_err();
        assert_eq!(error.to_string(), "404 NOT_FOUND - no queue 'x' in vhost '/'");
        assert!(matches!(error, Error::Closed { scope: Scope::Channel, .. }));
        assert_eq!(error.advice(), Some("declare it first, or check its name"));
    }
    connection.open_channel().unwrap();
    assert!(matches!(connection.open_channel(), Err(Error::NoChannel(2))));
    connection.close().unwrap();
    thread.join().unwrap();
}

#[test]
fn a_broker_that_stops_says_why() {
    let error = failed_purge(|peer| {
        peer.send(0, &close_with(320, "CONNECTION_FORCED - broker forced connection closure", (0, 0)));
        peer.expect("connection.close-ok");
    });
    assert_eq!(error.to_string(), "320 CONNECTION_FORCED - broker forced connection closure");
    assert_eq!(error.advice(), Some("try again when the broker is back"));
}

#[test]
fn a_publish_comes_back_before_its_confirm() {
    let (url, thread) = peer(|peer| {
        peer.welcome_channel();
        peer.expect("confirm.select");
        peer.send(1, &Method::ConfirmSelectOk {});
        for _ in 0..3 {
            peer.expect("basic.publish");
        }
        let returned = Method::BasicReturn {
            reply_code: 312,
            reply_text: short("NO_ROUTE"),
            exchange: ShortStr::EMPTY,
            routing_key: short("nowhere"),
        };
        peer.send_with_content(1, &returned, b"one");
        peer.send(1, &Method::BasicAck { delivery_tag: 2, multiple: true });
        peer.send(1, &Method::BasicNack { delivery_tag: 3, multiple: false, requeue: false });
        peer.expect_goodbye();
    });
    let mut connection = Connection::open(&url).unwrap();
    let mut channel = connection.open_channel().unwrap();
    assert!(matches!(channel.wait_confirms(0), Err(Error::NotConfirming)));
    channel.confirm_select().unwrap();
    for (number, body) in [(1, &b"one"[..]), (2, &[7; 10_000]), (3, b"three")] {
        let published = channel.publish(PublishTo::queue("nowhere"), &BasicProperties::default(), body);
        assert_eq!(published.unwrap(), number);
    }
    assert_eq!(channel.outstanding(), 3);
    let confirms = channel.wait_confirms(0).unwrap();
    let acked = Confirm { first: 1, last: 2, verdict: Verdict::Acked };
    assert_eq!(confirms, [acked, Confirm { first: 3, last: 3, verdict: Verdict::Nacked }]);
    let returned = channel.take_returned().unwrap();
    assert_eq!((returned.reply_code, returned.message.body), (312, b"one".to_vec()));
    assert_eq!(channel.take_returned(), None);
    connection.close().unwrap();
    thread.join().unwrap();
}

#[test]
fn deliveries_before_the_end_of_a_consumer_are_not_lost() {
    let (url, thread) = peer(|peer| {
        peer.welcome_channel();
        peer.expect("basic.consume");
        peer.send(1, &Method::BasicConsumeOk { consumer_tag: short("c") });
        let deliver = |delivery_tag| Method::BasicDeliver {
            consumer_tag: short("c"),
            delivery_tag,
            redelivered: false,
            exchange: short("e"),
            routing_key: short("k"),
        };
        peer.send_with_content(1, &deliver(1), &[9; 5000]);
        peer.expect("basic.cancel");
        peer.send_with_content(1, &deliver(2), b"");
        peer.send(1, &Method::BasicCancelOk { consumer_tag: short("c") });
        peer.expect("basic.ack");
        peer.send(1, &Method::BasicCancel { consumer_tag: short("d"), nowait: false });
        peer.expect("basic.cancel-ok");
        peer.expect_goodbye();
    });
    let mut connection = Connection::open(&url).unwrap();
    let mut channel = connection.open_channel().unwrap();
    let consumer_tag = channel.consume("q", &ConsumeOptions::default()).unwrap();
    channel.cancel(&consumer_tag).unwrap();
    let forever = Duration::MAX;
    for (tag, bytes) in [(1, 5000), (2, 0)] {
        let Some(ConsumerEvent::Delivery(delivery)) = channel.next_event(forever).unwrap() else {
            panic!("no delivery {tag}")
        };
        assert_eq!((delivery.delivery_tag, delivery.message.body.len()), (tag, bytes));
        assert_eq!(delivery.message.properties().content_type, Some(&b"text/plain"[..]));
    }
    channel.ack_up_to(2).unwrap();
    let by_broker =
        ConsumerEvent::Cancelled { consumer_tag: ShortString::new("d").unwrap(), by: CancelledBy::Broker };
    assert_eq!(channel.next_event(forever).unwrap(), Some(by_broker));
    connection.close().unwrap();
    thread.join().unwrap();
}

#[test]
fn a_blocked_broker_is_the_reason_for_a_late_confirm() {
    let (url, thread) = peer(|peer| {
        peer.welcome_channel();
        peer.expect("confirm.select");
        peer.send(0, &Method::ConnectionBlocked { reason: short("low on disk") });
        peer.send(1, &Method::ConfirmSelectOk {});
        peer.expect("basic.publish");
        while peer.read_frame().is_some() {}
    });
    let mut connection = Connection::open(&url).unwrap();
    let channel = connection.open_channel().unwrap().id();
    connection.channel(channel).unwrap().confirm_select().unwrap();
    connection.set_answer_timeout(Duration::from_millis(20));
    let mut channel = connection.channel(channel).unwrap();
    channel.publish(PublishTo::queue("q"), &BasicProperties::default(), b"x").unwrap();
    let error = channel.wait_confirms(0).unwrap_err();
    assert_eq!(error.to_string(), "the broker takes no messages: low on disk");
    drop(connection);
    thread.join().unwrap();
}

/// The peer writes more than the socket holds before it reads: a client that only writes would wait for ever.
#[test]
fn a_publisher_reads_what_comes_back_while_it_writes() {
    const MESSAGES: u32 = 200;
    const BODY_BYTES: usize = 100_000;
    let (url, thread) = peer(|peer| {
        peer.welcome_channel();
        let returned = Method::BasicReturn {
            reply_code: 312,
            reply_text: short("NO_ROUTE"),
            exchange: ShortStr::EMPTY,
            routing_key: short("q"),
        };
        let body = vec![1; BODY_BYTES];
        for _ in 0..MESSAGES {
            peer.send_with_content(1, &returned, &body);
        }
        for _ in 0..MESSAGES {
            peer.expect("basic.publish");
        }
        peer.expect("basic.qos");
        peer.send(1, &Method::BasicQosOk {});
        peer.expect_goodbye();
    });
    let mut connection = Connection::open(&url).unwrap();
    let mut channel = connection.open_channel().unwrap();
    let body = vec![2; BODY_BYTES];
    for _ in 0..MESSAGES {
        channel.publish(PublishTo::queue("q"), &BasicProperties::default(), &body).unwrap();
    }
    channel.sync().unwrap();
    let returned = std::iter::from_fn(|| channel.take_returned()).count();
    assert_eq!(returned, MESSAGES as usize);
    connection.close().unwrap();
    thread.join().unwrap();
}

#[test]
fn a_raw_connection_has_what_was_read_and_not_handled_and_says_no_goodbye() {
    let (url, thread) = peer(|peer| {
        peer.welcome();
        peer.expect("channel.open");
        let mut bytes = Vec::new();
        write_method(&mut bytes, 0, &Method::ConnectionBlocked { reason: short("low on disk") });
        write_method(&mut bytes, 1, &Method::ChannelOpenOk { channel_id: b"" });
        bytes.extend_from_slice(&[1, 0, 1]);
        peer.write(&bytes);
        peer.expect("basic.ack");
        assert_eq!(peer.read_frame(), None);
    });
    let mut connection = Connection::open(&url).unwrap();
    assert_eq!(connection.open_channel().unwrap().id().get(), 1);
    let raw = connection.into_raw().unwrap();
    assert_eq!((&raw.input[..], raw.frame_max), (&[1, 0, 1][..], 4096));
    assert_eq!(raw.blocked.as_deref(), Some("low on disk"));
    let mut bytes = Vec::new();
    write_method(&mut bytes, 1, &Method::BasicAck { delivery_tag: 1, multiple: false });
    (&raw.stream).write_all(&bytes).unwrap();
    drop(raw);
    thread.join().unwrap();
}
