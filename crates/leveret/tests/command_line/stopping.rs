//! Signals that stop a broker.

use leveret_client::{AckMode, Connection, ConsumeOptions, Error, QueueOptions, Scope};
use rustix::process::Signal;

use crate::support::{Broker, DEADLINE};

/// An open connection hears 320, and the broker ends with 0.
fn stops_in_good_order(signal: Signal) {
    let broker = Broker::start();
    let mut connection = Connection::open(&broker.client_url().parse().unwrap()).unwrap();
    let mut channel = connection.open_channel().unwrap();
    let queue = channel.declare_queue("", &QueueOptions::default()).unwrap();
    channel
        .consume(queue.name.as_str(), &ConsumeOptions { ack_mode: AckMode::Auto, ..Default::default() })
        .unwrap();
    broker.process.signal(signal);
    let error = channel.next_event(DEADLINE).unwrap_err();
    let Error::Closed { scope: Scope::Connection, reply } = &error else { panic!("{error}") };
    assert_eq!(reply.code, 320);
    assert!(reply.text.starts_with("CONNECTION_FORCED - "), "{reply}");
    drop(connection);
    let finished = broker.process.wait();
    assert_eq!(finished.code, Some(0), "{}", finished.stderr);
}

#[test]
fn sigterm_closes_connections_and_exits_with_0() {
    stops_in_good_order(Signal::TERM);
}

/// RabbitMQ ignores it, too. Without a terminal, somebody means to have a configuration read again.
#[test]
fn sighup_is_ignored_where_there_is_no_terminal() {
    let broker = Broker::start();
    let mut connection = Connection::open(&broker.client_url().parse().unwrap()).unwrap();
    broker.process.signal(Signal::HUP);
    broker.process.stderr.wait_for("SIGHUP is ignored", "the log to say so");
    connection.open_channel().unwrap();
    assert_eq!(broker.stop().code, Some(0));
}

#[test]
fn sigint_closes_connections_and_exits_with_0() {
    stops_in_good_order(Signal::INT);
}
