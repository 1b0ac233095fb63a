//! Which files a broker makes, and where.

use std::fs;

use crate::support::{Broker, leveret};

#[test]
fn in_memory_no_file_is_touched() {
    let broker = Broker::start();
    broker.ask(&["declare", "queue", "q", "--durable"]);
    broker.ask(&["publish", "q", "hello", "--persistent", "--confirm"]);
    assert_eq!(broker.ask(&["get", "q"]), "hello\n");
    assert_eq!(fs::read_dir(broker.process.folder.path()).unwrap().count(), 0);
}

#[test]
fn without_in_memory_there_is_a_data_folder() {
    let broker = leveret(&["--amqp-port", "0"]).start();
    assert!(broker.process.folder.path().join("leveret-data/leveret.lock").is_file());
    assert!(broker.process.folder.path().join("leveret-data/0000000001.segment").is_file());
}
