//! What the log says of clients, and how much of what they say.

use std::io::{Read, Write};
use std::net::TcpStream;

use leveret_amqp::frame::write_method;
use leveret_amqp::{FieldTable, Method, PROTOCOL_HEADER, ShortStr, Table, Value};
use leveret_client::{AckMode, Connection, ConsumeOptions, QueueOptions};

use crate::support::{Broker, DEADLINE, leveret};

/// The line of the log that has this in it.
#[track_caller]
fn line(broker: &Broker, part: &str) -> String {
    broker.process.stderr.wait_for(part, "the line");
    broker.process.stderr.text().lines().find(|line| line.contains(part)).unwrap().to_owned()
}

/// A client that calls itself and its connection so, says all this in one breath and closes. Gives its port.
fn speak(broker: &Broker, user: &str, name: &str, methods: &[Method<'_>]) -> u16 {
    let client_properties = FieldTable::build(|table| {
        table.field("connection_name", Value::LongStr(name.as_bytes()));
    });
    let response = format!("\0{user}\0guest");
    let start_ok = Method::ConnectionStartOk {
        client_properties: client_properties.as_table(),
        mechanism: ShortStr::truncated("PLAIN"),
        response: response.as_bytes(),
        locale: ShortStr::truncated("en_US"),
    };
    let vhost = ShortStr::truncated("/");
    let mut bytes = PROTOCOL_HEADER.to_vec();
    write_method(&mut bytes, 0, &start_ok);
    write_method(&mut bytes, 0, &Method::ConnectionTuneOk { channel_max: 0, frame_max: 0, heartbeat: 0 });
    write_method(
        &mut bytes,
        0,
        &Method::ConnectionOpen { virtual_host: vhost, capabilities: ShortStr::EMPTY, insist: false },
    );
    for method in methods {
        write_method(&mut bytes, 1, method);
    }
    let reply_text = ShortStr::truncated("Goodbye");
    let close = Method::ConnectionClose { reply_code: 200, reply_text, class_id: 0, method_id: 0 };
    write_method(&mut bytes, 0, &close);
    let mut stream = TcpStream::connect(("127.0.0.1", broker.port())).unwrap();
    stream.set_read_timeout(Some(DEADLINE)).unwrap();
    stream.write_all(&bytes).unwrap();
    let port = stream.local_addr().unwrap().port();
    stream.read_to_end(&mut Vec::new()).unwrap();
    port
}

#[test]
fn a_channel_error_is_logged_with_who_where_and_why() {
    let broker = Broker::start();
    let declare = Method::QueueDeclare {
        ticket: 0,
        queue: ShortStr::truncated("nowhere"),
        passive: true,
        durable: false,
        exclusive: false,
        auto_delete: false,
        nowait: false,
        arguments: Table::EMPTY,
    };
    let open = Method::ChannelOpen { out_of_band: ShortStr::EMPTY };
    let port = speak(&broker, "guest", "billing", &[open, declare]);
    let line = line(&broker, "channel closed");
    let expected = format!(
        " WARN channel closed peer=127.0.0.1:{port} user=\"guest\" vhost=\"/\" name=\"billing\" channel=1 \
         operation=\"queue.declare\" reason=\"NOT_FOUND - no queue 'nowhere' in vhost '/'\""
    );
    assert!(line.ends_with(&expected), "{line}");
}

#[test]
fn a_consumer_that_is_cancelled_for_being_late_is_logged() {
    let broker = leveret(&["--in-memory", "--amqp-port", "0", "--set", "consumer_timeout=1"]).start();
    let mut connection = Connection::open(&broker.client_url().parse().unwrap()).unwrap();
    let mut channel = connection.open_channel().unwrap();
    channel.declare_queue("q", &QueueOptions::default()).unwrap();
    broker.ask(&["publish", "q", "held"]);
    let options = ConsumeOptions { ack_mode: AckMode::Manual, ..ConsumeOptions::default() };
    channel.consume("q", &options).unwrap();
    let line = line(&broker, "consumer cancelled");
    assert!(line.contains(" channel=1 reason=\"consumer '"), "{line}");
    assert!(line.contains("delivery acknowledgement on channel 1 timed out. Timeout value used: 1 ms"), "{line}");
}

/// One client that makes error after error, whatever it does, does not fill the disk with its log.
#[test]
fn a_flood_of_channel_errors_is_counted_and_not_logged_line_by_line() {
    let broker = Broker::start();
    let mut connection = Connection::open(&broker.client_url().parse().unwrap()).unwrap();
    for _ in 0..1000 {
        connection.open_channel().unwrap().check_queue("nowhere").unwrap_err();
    }
    connection.close().unwrap();
    let log = broker.stop().stderr;
    let told = log.lines().filter(|line| line.contains(" channel closed ")).count();
    let number = |rest: &str| rest.split_whitespace().next().and_then(|word| word.parse::<usize>().ok()).unwrap();
    let counted: usize = log.split("untold=").skip(1).map(number).sum();
    assert!(told + counted == 1000 && (10..=40).contains(&told), "{log}");
}

#[test]
fn a_name_of_thousands_of_letters_is_not_logged_whole() {
    let broker = Broker::start();
    speak(&broker, &"n".repeat(3000), "", &[]);
    let refused = line(&broker, "connection refused");
    assert!(refused.contains("nnn...' does not exist") && refused.len() < 500, "{refused}");
    speak(&broker, "guest", &"m".repeat(3000), &[]);
    let opened = line(&broker, "connection opened");
    assert!(opened.contains("mmm...\"") && opened.len() < 500, "{opened}");
}

#[test]
fn user_and_virtual_host_are_logged_in_quotes_whatever_is_in_them() {
    let broker = Broker::start();
    speak(&broker, "guest", "a client", &[]);
    let opened = line(&broker, "connection opened");
    assert!(opened.ends_with(r#"user="guest" vhost="/" name="a client""#), "{opened}");
}
