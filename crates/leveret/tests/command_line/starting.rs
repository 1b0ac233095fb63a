//! What a broker prints when it starts, where it listens, and where its settings come from.

use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;

use leveret_client::{Connection, Value};

use crate::support::{Broker, leveret};
use crate::{VERSION, can_connect, has_ipv6, refused};

#[test]
fn the_ready_line_is_the_only_one_on_standard_output() {
    let broker = Broker::start();
    let port = broker.port();
    assert!(can_connect("127.0.0.1", port));
    let finished = broker.stop();
    assert_eq!(finished.stdout, format!("leveret {VERSION} ready: amqp://127.0.0.1:{port}\n"));
}

#[test]
fn the_words_that_container_tools_wait_for_are_printed_at_any_log_level() {
    let broker = leveret(&["--in-memory", "--amqp-port", "0", "--log-level", "none"]).start();
    assert_eq!(broker.stop().stderr, "Server startup complete; 0 plugins started.\n");
    let broker = Broker::start();
    let stderr = broker.stop().stderr;
    assert!(stderr.lines().any(|line| line == "Server startup complete; 0 plugins started."), "{stderr}");
}

/// The broker is ready when its definitions are loaded, and so whoever reads both finds it.
#[test]
fn the_ready_line_comes_after_what_was_logged_before() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("definitions.json");
    let unknown: Vec<_> = (0..1000).map(|number| format!("\"unknown_{number}\":1")).collect();
    fs::write(&file, format!("{{{}}}", unknown.join(","))).unwrap();
    let arguments = ["--in-memory", "--amqp-port", "0", "--definitions", file.to_str().unwrap()];
    let process = leveret(&arguments).with_one_output().spawn();
    process.stdout.wait_for("Server startup complete", "the broker to be ready");
    let text = process.stdout.text();
    let [loaded, ready] = ["loaded the definitions", " ready: "].map(|words| text.find(words));
    assert!(loaded.is_some() && loaded < ready, "{text}");
}

#[test]
fn serve_is_the_command_that_may_be_left_out() {
    let broker = leveret(&["serve", "--in-memory", "--amqp-port", "0"]).start();
    assert!(can_connect("127.0.0.1", broker.port()));
    assert_eq!(broker.stop().code, Some(0));
}

#[test]
fn without_bind_it_listens_on_both_loopback_addresses() {
    let broker = Broker::start();
    assert!(can_connect("127.0.0.1", broker.port()));
    assert_eq!(can_connect("::1", broker.port()), has_ipv6());
}

#[test]
fn the_ready_line_names_an_address_of_this_machine_when_it_listens_on_all() {
    let listen = |bind| leveret(&["--in-memory", "--amqp-port", "0", "--bind", bind]).start();
    let broker = listen("0.0.0.0");
    assert_eq!(broker.url, format!("amqp://127.0.0.1:{}", broker.port()));
    if has_ipv6() {
        let broker = listen("::");
        assert_eq!(broker.url, format!("amqp://[::1]:{}", broker.port()));
        assert!(can_connect("::1", broker.port()));
    }
}

#[test]
fn several_addresses_share_one_free_port() {
    let broker =
        leveret(&["--in-memory", "--amqp-port", "0", "--bind", "127.0.0.1", "--bind", "127.0.0.2"]).start();
    assert!(can_connect("127.0.0.1", broker.port()));
    assert!(can_connect("127.0.0.2", broker.port()));
    assert!(!can_connect("127.0.0.3", broker.port()));
}

#[test]
fn options_come_from_the_environment_and_the_command_line_wins() {
    let broker = leveret(&["--log-level", "info"])
        .env("LEVERET_IN_MEMORY", "true")
        .env("LEVERET_AMQP_PORT", "0")
        .env("LEVERET_BIND", "127.0.0.2,127.0.0.1")
        .env("LEVERET_LOG_LEVEL", "none")
        .env("LEVERET_SET", "product=RabbitMQ,heartbeat=7")
        .start();
    assert!(broker.url.starts_with("amqp://127.0.0.2:"), "{}", broker.url);
    let connection = Connection::open(&broker.client_url().parse().unwrap()).unwrap();
    let product = connection.server_properties().get("product");
    assert_eq!(product, Some(Value::LongStr(b"RabbitMQ")));
    connection.close().unwrap();
    broker.process.stderr.wait_for("connection opened", "the level of the command line");
}

#[test]
fn an_option_wins_over_the_variable_that_excludes_it() {
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("data");
    let in_memory = leveret(&["--in-memory", "--amqp-port", "0"]).env("LEVERET_DATA_DIR", data.to_str().unwrap());
    drop(in_memory.start());
    assert!(!data.exists());
    let kept = leveret(&["--data-dir", data.to_str().unwrap(), "--amqp-port", "0"]).env("LEVERET_IN_MEMORY", "1");
    drop(kept.start());
    assert!(data.join("leveret.lock").exists());
    let (code, error) = refused(&["--in-memory", "--data-dir", data.to_str().unwrap(), "--amqp-port", "0"]);
    assert_eq!(code, 2);
    assert!(error.contains("exclude each other"), "{error}");
}

#[test]
fn a_variable_that_is_0_or_empty_is_no_choice() {
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("data");
    for off in ["0", "false", ""] {
        let broker = leveret(&["--data-dir", data.to_str().unwrap(), "--amqp-port", "0"])
            .env("LEVERET_IN_MEMORY", off)
            .env("LEVERET_BIND", "")
            .env("LEVERET_SET", "")
            .env("LEVERET_MEMORY_LIMIT", "")
            .env("LEVERET_LOG_LEVEL", "");
        drop(broker.start());
    }
    assert!(data.join("leveret.lock").exists());
}

#[test]
fn variables_of_the_broker_are_none_of_other_commands() {
    let broker = Broker::start();
    let client = broker.client(&["declare", "queue", "q"]).env("LEVERET_AMQP_PORT", "banana");
    assert_eq!(client.env("LEVERET_LOG_LEVEL", "loud").run().code, Some(0));
    let serve = leveret(&["serve", "--in-memory"]).env("LEVERET_AMQP_PORT", "banana").run();
    assert_eq!(serve.code, Some(2), "{serve:?}");
}

#[test]
fn commas_split_what_a_variable_holds_and_not_what_is_typed() {
    let broker = leveret(&["--in-memory", "--amqp-port", "0", "--set", "product=one,two"]).start();
    let connection = Connection::open(&broker.client_url().parse().unwrap()).unwrap();
    assert_eq!(connection.server_properties().get("product"), Some(Value::LongStr(b"one,two")));
}

#[test]
fn what_is_set_on_the_command_line_does_not_hide_other_settings_of_the_variable() {
    let broker = leveret(&["--in-memory", "--set", "amqp_port=0", "--set", "product=typed"])
        .env("LEVERET_SET", "product=variable, version=variable")
        .start();
    let connection = Connection::open(&broker.client_url().parse().unwrap()).unwrap();
    let properties = connection.server_properties();
    assert_eq!(properties.get("product"), Some(Value::LongStr(b"typed")));
    assert_eq!(properties.get("version"), Some(Value::LongStr(b"variable")));
}

/// A broker in a folder of its own, with this configuration file and no option but the port.
fn start_with(file: &str) -> Broker {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("leveret.toml");
    fs::write(&path, file).unwrap();
    leveret(&["--amqp-port", "0", "--config", path.to_str().unwrap()]).start()
}

#[test]
fn every_option_may_stand_in_the_file() {
    let broker = start_with("in_memory = true\nbind = ['127.0.0.2', '127.0.0.3']\nlog_level = 'none'");
    assert!(can_connect("127.0.0.2", broker.port()) && can_connect("127.0.0.3", broker.port()));
    assert!(!can_connect("127.0.0.1", broker.port()));
    assert_eq!(fs::read_dir(broker.process.folder.path()).unwrap().count(), 0, "no file is touched");
    assert_eq!(broker.stop().stderr, "Server startup complete; 0 plugins started.\n");

    let broker = start_with("data_dir = 'data'\nsegment_size = '1MiB'\ndisk_free_limit = '9000PB'");
    let segment = broker.process.folder.path().join("data/0000000001.segment");
    assert!(segment.is_file());
    broker.process.stderr.wait_for("low on disk", "the limit");
}

#[test]
fn rabbitmq_names_for_options_have_the_same_effect() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("leveret.toml");
    let listeners =
        "listeners.tcp.1 = '127.0.0.2:0'\nlisteners.tcp.2 = '127.0.0.3:0'\n[log.console]\nlevel = 'none'";
    fs::write(&file, listeners).unwrap();
    let broker = leveret(&["--in-memory", "--config", file.to_str().unwrap()]).start();
    assert!(can_connect("127.0.0.2", broker.port()) && can_connect("127.0.0.3", broker.port()));
    assert!(!can_connect("127.0.0.1", broker.port()));
    assert_eq!(broker.stop().stderr, "Server startup complete; 0 plugins started.\n");

    let broker = leveret(&["--amqp-port", "0", "--set", "disk_free_limit.absolute=9000PB"]).start();
    broker.process.stderr.wait_for("low on disk", "the limit");

    let port = broker.port().to_string();
    let (code, error) = refused(&["--in-memory", "--set", &format!("listeners.tcp.default={port}")]);
    assert_eq!(code, 1, "{error}");
    assert!(error.contains(&format!("port {port} is already in use")), "{error}");
    let ports = ["listeners.tcp.default=7", "management.tcp.port=7"];
    let (code, error) = refused(&["--in-memory", "--set", ports[0], "--set", ports[1]]);
    assert_eq!(code, 2);
    assert!(error.contains("--management-port"), "{error}");
}

#[test]
fn the_limit_on_memory_may_be_set_by_rabbitmqs_name_too() {
    for limit in ["memory_limit=32MiB", "vm_memory_high_watermark.absolute=32MiB"] {
        let broker = leveret(&["--in-memory", "--amqp-port", "0", "--set", limit]).start();
        broker.ask(&["declare", "queue", "q"]);
        let body = "x".repeat(100_000);
        let publisher = broker.client(&["publish", "q", &body, "--count", "1000"]).spawn();
        publisher.stderr.wait_for("low on memory", "the reason");
    }
}

#[test]
fn limits_of_connections_are_announced() {
    let limits = ["channel_max=7", "frame_max=8192", "heartbeat=9", "initial_frame_max=4096"];
    let limits = limits.iter().flat_map(|limit| ["--set", limit]);
    let arguments: Vec<_> = ["--in-memory", "--amqp-port", "0"].into_iter().chain(limits).collect();
    let broker = leveret(&arguments).start();
    let mut stream = TcpStream::connect(("127.0.0.1", broker.port())).unwrap();
    stream.write_all(b"AMQP\0\0\x09\x01").unwrap();
    let start_ok = b"\x00\x0A\x00\x0B\0\0\0\0\x05PLAIN\0\0\0\x0C\0guest\0guest\x05en_US";
    let frame = [&[1, 0, 0, 0, 0, 0, u8::try_from(start_ok.len()).unwrap()], &start_ok[..], &[0xCE]].concat();
    stream.write_all(&frame).unwrap();
    // A header of 4097 bytes is refused by its length.
    stream.write_all(&[1, 0, 0, 0, 0, 0x10, 0x01]).unwrap();
    let mut said = Vec::new();
    let _ = stream.read_to_end(&mut said);
    let tune = [0, 10, 0, 30, 0, 7, 0, 0, 0x20, 0, 0, 9];
    assert!(said.windows(tune.len()).any(|bytes| bytes == tune), "{said:?}");
    let too_large = b"FRAME_ERROR";
    assert!(said.windows(too_large.len()).any(|bytes| bytes == too_large), "{said:?}");
}

#[test]
fn settings_come_from_a_file_and_the_command_line_wins() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("leveret.toml");
    fs::write(&file, "product = \"from the file\"\nversion = \"1.2.3\"\n").unwrap();
    let arguments =
        ["--in-memory", "--amqp-port", "0", "--set", "product=RabbitMQ", "--config", file.to_str().unwrap()];
    let broker = leveret(&arguments).start();
    let connection = Connection::open(&broker.client_url().parse().unwrap()).unwrap();
    let properties = connection.server_properties();
    assert_eq!(properties.get("product"), Some(Value::LongStr(b"RabbitMQ")));
    assert_eq!(properties.get("version"), Some(Value::LongStr(b"1.2.3")));
}
