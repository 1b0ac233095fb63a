//! What the commands print that look at a running broker, and steer it, through its data folder.

use rustix::process::Signal;
use serde_json::{Value, json};

use crate::VERSION;
use crate::support::{Broker, leveret};

/// A broker with a data folder, on a free port.
fn start() -> Broker {
    leveret(&["--amqp-port", "0"]).start()
}

/// Runs a command that finds the broker by its data folder, which must succeed; gives its standard output.
#[track_caller]
fn ask(broker: &Broker, arguments: &[&str]) -> String {
    let folder = broker.process.folder.path().join("leveret-data");
    let finished = leveret(arguments).env("LEVERET_DATA_DIR", folder.to_str().unwrap()).run();
    assert_eq!(finished.code, Some(0), "{arguments:?}: {}", finished.stderr);
    finished.stdout
}

#[track_caller]
fn ask_json(broker: &Broker, arguments: &[&str]) -> Value {
    serde_json::from_str(&ask(broker, &[arguments, &["--format", "json"]].concat())).unwrap()
}

#[test]
fn queues_are_listed_as_a_table_filtered_and_sorted() {
    let broker = start();
    for (queue, count) in [("orders", "3"), ("orders.eu", "12"), ("logs", "1")] {
        broker.ask(&["declare", "queue", queue]);
        broker.ask(&["publish", queue, "hello", "--count", count, "--confirm"]);
    }
    let columns = ["--columns", "name,messages"];
    let listed = |arguments: &[&str]| ask(&broker, &[&["list", "queues"], &columns[..], arguments].concat());
    assert_eq!(listed(&[]), "name       messages\norders     3\norders.eu  12\nlogs       1\n");
    assert_eq!(
        listed(&["--sort", "-messages"]),
        "name       messages\norders.eu  12\norders     3\nlogs       1\n"
    );
    assert_eq!(
        listed(&["--filter", "messages>2", "--filter", "name!=orders"]),
        "name       messages\norders.eu  12\n"
    );
    assert_eq!(listed(&["--filter", "name~eu", "--format", "csv"]), "name,messages\r\norders.eu,12\r\n");
    assert_eq!(listed(&["--filter", "name=logs", "--format", "json"]), "[{\"name\":\"logs\",\"messages\":1}]\n");
    assert_eq!(listed(&["--vhost", "/", "--filter", "messages>100"]), "name  messages\n");
    let header = ask(&broker, &["list", "queues"]);
    let header = header.lines().next().unwrap().split_whitespace().collect::<Vec<_>>().join(" ");
    assert_eq!(header, "vhost name type messages messages_ready messages_unacknowledged consumers");
}

/// All fields that there are can be named, so that a misspelled one can be told from one that is not there.
#[test]
fn every_field_that_is_listed_can_be_a_column() {
    let broker = start();
    broker.ask(&["declare", "queue", "q"]);
    broker.ask(&["publish", "q", "hello"]);
    let consumer = broker.client(&["consume", "q"]).spawn();
    consumer.stdout.wait_for("hello\n", "the consumer to be there");
    for what in ["queues", "exchanges", "bindings", "connections", "channels", "consumers"] {
        let list = ask_json(&broker, &["list", what]);
        let first = list[0].as_object().unwrap_or_else(|| panic!("no {what}"));
        let all = first.keys().cloned().collect::<Vec<_>>().join(",");
        let chosen = ask_json(&broker, &["list", what, "--columns", &all]);
        assert_eq!(chosen[0].as_object().unwrap().len(), first.len(), "{what}");
        ask(&broker, &["list", what]);
    }
}

#[test]
fn a_field_that_does_not_exist_is_2_and_the_nearest_is_named() {
    for option in ["--columns=mesages", "--sort=mesages", "--filter=mesages>5"] {
        let finished = leveret(&["list", "queues", option]).run();
        assert_eq!(finished.code, Some(2), "{option}");
        assert_eq!(finished.stderr, "error: no field 'mesages'; the nearest is 'messages'\n");
    }
    let finished = leveret(&["list", "bindings", "--columns", "colour"]).run();
    assert!(finished.stderr.contains("there are vhost, source,"), "{}", finished.stderr);
    assert_eq!(leveret(&["list", "queues", "--filter", "messages"]).run().code, Some(2));
    assert_eq!(leveret(&["list", "rabbits"]).run().code, Some(2));
}

#[test]
fn a_virtual_host_that_does_not_exist_is_1() {
    let broker = start();
    let folder = broker.process.folder.path().join("leveret-data");
    let arguments = ["list", "queues", "--vhost", "nowhere", "--data-dir", folder.to_str().unwrap()];
    let finished = leveret(&arguments).run();
    assert_eq!((finished.code, finished.stderr.as_str()), (Some(1), "error: no virtual host 'nowhere'\n"));
}

#[test]
fn a_broker_that_does_not_run_is_1_and_the_error_says_what_to_do() {
    for arguments in [&["status"][..], &["list", "queues"], &["close", "connection", "x"]] {
        let finished = leveret(arguments).run();
        assert_eq!((finished.code, finished.stdout.as_str()), (Some(1), ""), "{arguments:?}");
        let expected = "error: no broker runs in the data folder leveret-data: start one with leveret serve --data-dir leveret-data,";
        assert!(finished.stderr.starts_with(expected), "{}", finished.stderr);
        assert_eq!(finished.stderr.lines().count(), 1, "{}", finished.stderr);
    }
}

#[test]
fn the_status_says_what_runs_and_how_much_it_has_to_do() {
    let broker = start();
    broker.ask(&["declare", "queue", "q"]);
    broker.ask(&["publish", "q", "hello", "--count", "5", "--confirm"]);
    let status = ask(&broker, &["status"]);
    let line = |name: &str| {
        let line = status.lines().find(|line| line.starts_with(name)).unwrap_or_else(|| panic!("{name}: {status}"));
        line[name.len()..].trim_start().to_owned()
    };
    assert_eq!(line("Broker"), format!("leveret {VERSION}"));
    assert!(line("Process").starts_with(&format!("{}, up for ", broker.process.id())), "{status}");
    assert!(line("AMQP").starts_with(&format!("127.0.0.1:{}", broker.port())), "{status}");
    assert_eq!(line("Publishers"), "not held up");
    assert_eq!((line("Queues"), line("Exchanges")), ("1".to_owned(), "7".to_owned()));
    assert_eq!(line("Messages"), "5 (5 ready, 0 unacknowledged)");
    let json = ask_json(&broker, &["status"]);
    assert_eq!(json["overview"]["object_totals"]["queues"], json!(1));
    assert_eq!(json["node"]["os_pid"], json!(broker.process.id()));
}

#[test]
fn a_connection_is_closed_by_its_name_for_a_reason() {
    let broker = start();
    broker.ask(&["declare", "queue", "q"]);
    broker.ask(&["publish", "q", "hello"]);
    let consumer = broker.client(&["consume", "q"]).spawn();
    consumer.stdout.wait_for("hello\n", "the consumer to be there");
    let connections = ask_json(&broker, &["list", "connections", "--filter", "state=running"]);
    let name = connections[0]["name"].as_str().unwrap().to_owned();
    assert_eq!(ask(&broker, &["close", "connection", &name, "--reason", "maintenance"]), "");
    let finished = consumer.wait();
    assert_eq!(finished.code, Some(1));
    assert!(finished.stderr.contains("320 CONNECTION_FORCED - maintenance"), "{}", finished.stderr);
    let folder = broker.process.folder.path().join("leveret-data");
    let arguments = ["close", "connection", "nobody", "--data-dir", folder.to_str().unwrap()];
    let finished = leveret(&arguments).run();
    let expected = "error: no connection 'nobody'; all names are listed by: leveret list connections\n";
    assert_eq!((finished.code, finished.stderr.as_str()), (Some(1), expected));
}

#[test]
fn a_list_is_printed_again_and_again_until_it_is_stopped() {
    let broker = start();
    let folder = broker.process.folder.path().join("leveret-data");
    let arguments = [
        "list",
        "queues",
        "--watch=1",
        "--columns",
        "name",
        "--format",
        "json",
        "--data-dir",
        folder.to_str().unwrap(),
    ];
    let watching = leveret(&arguments).spawn();
    watching.stdout.wait_for("[]\n", "the first list");
    broker.ask(&["declare", "queue", "q"]);
    watching.stdout.wait_for("[{\"name\":\"q\"}]\n", "a later list");
    broker.process.signal(Signal::TERM);
    let finished = watching.wait();
    assert_eq!(finished.code, Some(1));
    assert!(finished.stderr.contains("no broker runs"), "{}", finished.stderr);
}

#[test]
fn the_control_socket_is_there_while_the_broker_runs_and_a_killed_one_is_no_obstacle() {
    let folder = tempfile::tempdir().unwrap();
    let data_dir = folder.path().join("data");
    let arguments = ["--amqp-port", "0", "--data-dir", data_dir.to_str().unwrap()];
    let socket = data_dir.join("control.sock");
    let list = ["list", "queues", "--format", "json", "--data-dir", data_dir.to_str().unwrap()];
    let broker = leveret(&arguments).start();
    assert!(socket.exists());
    broker.kill();
    assert!(socket.exists());
    let finished = leveret(&list).run();
    assert!(finished.stderr.contains("no broker runs"), "{}", finished.stderr);
    let broker = leveret(&arguments).start();
    assert_eq!(leveret(&list).run().stdout, "[]\n");
    assert_eq!(broker.stop().code, Some(0));
    assert!(!socket.exists());
}

/// For example because of what somebody has put in its place.
#[test]
fn a_broker_that_cannot_have_a_control_socket_runs_without() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::create_dir_all(folder.path().join("control.sock/not-empty")).unwrap();
    let broker = leveret(&["--amqp-port", "0", "--data-dir", folder.path().to_str().unwrap()]).start();
    broker.ask(&["declare", "queue", "q"]);
    let stderr = broker.stop().stderr;
    assert!(stderr.contains("no control socket"), "{stderr}");
}
