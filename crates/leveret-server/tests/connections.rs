//! Connections as they are seen from outside, and told to close.

#![expect(clippy::unwrap_used, reason = "a test that cannot talk to the broker has failed")]

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use leveret_amqp::frame::write_method;
use leveret_amqp::{FieldTable, Method, PROTOCOL_HEADER, ShortStr, Value};
use leveret_broker::views::Fields;
use leveret_server::{ConnectionView, Server, ServerConfig, ServerHandle, Which};
use serde_json::json;
use tokio::runtime::Runtime;

/// Generous: what it waits for takes milliseconds.
const PATIENCE: Duration = Duration::from_secs(20);

fn start() -> (Runtime, ServerHandle, SocketAddr) {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let server = runtime.block_on(Server::start(ServerConfig::default())).unwrap();
    let address = server.addresses()[0];
    (runtime, server, address)
}

/// What a client says until its connection is open.
fn opening() -> Vec<u8> {
    let text = ShortStr::truncated;
    let properties = FieldTable::build(|table| {
        table.field("connection_name", Value::LongStr(b"reports")).field("product", Value::LongStr(b"test"));
    });
    let (client_properties, mechanism) = (properties.as_table(), text("PLAIN"));
    let (response, locale) = (b"\0guest\0guest".as_slice(), text("en_US"));
    let mut bytes = PROTOCOL_HEADER.to_vec();
    let start_ok = Method::ConnectionStartOk { client_properties, mechanism, response, locale };
    write_method(&mut bytes, 0, &start_ok);
    write_method(&mut bytes, 0, &Method::ConnectionTuneOk { channel_max: 7, frame_max: 8192, heartbeat: 30 });
    let open = Method::ConnectionOpen { virtual_host: text("/"), capabilities: text(""), insist: false };
    write_method(&mut bytes, 0, &open);
    bytes
}

/// An open connection, and how many bytes have come on it.
fn open(address: SocketAddr) -> (TcpStream, usize) {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.write_all(&opening()).unwrap();
    let mut open_ok = Vec::new();
    write_method(&mut open_ok, 0, &Method::ConnectionOpenOk { known_hosts: ShortStr::EMPTY });
    let (mut heard, mut buffer) = (Vec::new(), [0; 4096]);
    while !heard.ends_with(&open_ok) {
        let count = stream.read(&mut buffer).unwrap();
        assert!(count > 0, "the broker closed the connection");
        heard.extend_from_slice(&buffer[..count]);
    }
    (stream, heard.len())
}

/// Waits for what a task of the broker is about to do.
#[track_caller]
fn wait_until(mut is_so: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !is_so() {
        assert!(Instant::now() < deadline, "not so in time");
        std::thread::yield_now();
    }
}

fn connections(server: &ServerHandle) -> Vec<ConnectionView> {
    server.admin().connections().flatten().collect()
}

/// What the broker says when it closes a connection.
fn close(text: &str) -> Vec<u8> {
    let (reply_code, reply_text, class_id, method_id) = (320, ShortStr::truncated(text), 0, 0);
    let mut bytes = Vec::new();
    write_method(&mut bytes, 0, &Method::ConnectionClose { reply_code, reply_text, class_id, method_id });
    bytes
}

/// Hears this and nothing else, and answers `connection.close-ok`.
#[track_caller]
fn ends_with(mut stream: TcpStream, close: &[u8]) {
    let mut heard = vec![0; close.len()];
    stream.read_exact(&mut heard).unwrap();
    assert_eq!(String::from_utf8_lossy(&heard), String::from_utf8_lossy(close));
    let mut close_ok = Vec::new();
    write_method(&mut close_ok, 0, &Method::ConnectionCloseOk {});
    stream.write_all(&close_ok).unwrap();
    assert_eq!(stream.read(&mut [0]).unwrap(), 0, "the end of the connection");
}

#[test]
fn a_connection_is_listed_with_what_it_has_agreed_on() {
    let (_runtime, server, address) = start();
    assert!(connections(&server).is_empty());
    let (stream, heard) = open(address);
    let peer = stream.local_addr().unwrap();
    // What its socket has taken is counted a moment after the client has it.
    wait_until(|| connections(&server).first().is_some_and(|listed| listed.send_oct == heard as u64));
    let listed = connections(&server);
    let [connection] = &listed[..] else { panic!("{listed:?}") };
    let mut shown = serde_json::to_value(connection).unwrap();
    let connected_at = shown.as_object_mut().unwrap().remove("connected_at").unwrap().as_u64().unwrap();
    assert!(connected_at > 1_600_000_000_000, "{connected_at}");
    let expected = json!({
        "name": format!("{peer} -> {address}"), "user_provided_name": "reports", "user": "guest", "vhost": "/",
        "state": "running", "protocol": "AMQP 0-9-1", "auth_mechanism": "PLAIN", "ssl": false,
        "peer_host": "127.0.0.1", "peer_port": peer.port(), "host": "127.0.0.1", "port": address.port(),
        "channels": 0, "frame_max": 8192, "channel_max": 7, "timeout": 30, "recv_oct": opening().len(), "send_oct": heard,
        "client_properties": { "connection_name": "reports", "product": "test" },
    });
    assert_eq!(shown, expected);
}

#[test]
fn a_connection_that_is_told_to_close_says_why_and_the_others_stay() {
    let (_runtime, server, address) = start();
    let ((one, _), (other, _)) = (open(address), open(address));
    let name = format!("{} -> {address}", one.local_addr().unwrap());
    assert_eq!(server.admin().close(Which::Name(&name), "Closed via management plugin"), 1);
    ends_with(one, &close("CONNECTION_FORCED - Closed via management plugin"));
    wait_until(|| connections(&server).len() == 1);
    let left = connections(&server);
    assert_eq!(left[0].peer_port, other.local_addr().unwrap().port());
    assert_eq!(server.admin().close(Which::Name(&name), "again"), 0);
    assert_eq!(server.admin().close(Which::Vhost("/"), "vhost '/' is deleted"), 1);
    ends_with(other, &close("CONNECTION_FORCED - vhost '/' is deleted"));
    wait_until(|| connections(&server).is_empty());
}

#[test]
fn a_broker_that_stops_does_not_close_twice_what_was_told_to_close() {
    let (runtime, server, address) = start();
    let (stream, _) = open(address);
    assert_eq!(server.admin().close(Which::User("guest"), "first"), 1);
    let stopping = runtime.spawn(server.shutdown());
    ends_with(stream, &close("CONNECTION_FORCED - first"));
    runtime.block_on(stopping).unwrap();
}

/// RabbitMQ: `rabbit_mgmt_format:amqp_table/1`.
#[test]
fn every_type_of_value_in_a_table_has_its_form() {
    let table = FieldTable::build(|table| {
        table
            .field("text", Value::LongStr("größe".as_bytes()))
            .field("bytes", Value::Bytes(&[0xFF]))
            .field("number", Value::I64(-5))
            .field("number", Value::I64(6))
            .field("flag", Value::Bool(true))
            .field("nothing", Value::Void)
            .field("when", Value::Timestamp(7))
            .field("decimal", Value::Decimal(2, 275))
            .field("not-a-number", Value::F64(f64::NAN))
            .array("list", [Value::U8(1), Value::LongStr(b"a")])
            .table("inner", |inner| _ = inner.field("k", Value::F64(0.5)));
    });
    let expected = json!({
        "text": "größe", "bytes": "Not UTF-8, base64 is: /w==", "number": -5, "flag": true, "nothing": null,
        "when": 7, "decimal": 2.75, "not-a-number": null, "list": [1, "a"], "inner": { "k": 0.5 },
    });
    assert_eq!(serde_json::to_value(Fields(table)).unwrap(), expected);
    assert_eq!(serde_json::to_string(&Fields::default()).unwrap(), "{}");
}
