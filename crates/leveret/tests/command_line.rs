//! The command line, as a user or a script sees it: what is printed where, exit codes, signals, files.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod support;

use std::fs;
use std::io::{Read, Write};
use std::net::{Ipv6Addr, SocketAddr, TcpListener, TcpStream};
use std::time::Duration;

use leveret_client::{AckMode, Connection, ConsumeOptions, Error, QueueOptions, Scope, Value};
use rustix::process::Signal;
use support::{Broker, DEADLINE, Finished, leveret};
use tempfile::TempDir;

const VERSION: &str = env!("CARGO_PKG_VERSION");

fn can_connect(ip: &str, port: u16) -> bool {
    let address = SocketAddr::new(ip.parse().unwrap(), port);
    TcpStream::connect_timeout(&address, Duration::from_secs(5)).is_ok()
}

fn has_ipv6() -> bool {
    TcpListener::bind((Ipv6Addr::LOCALHOST, 0)).is_ok()
}

/// A broker that must not start: its exit code, and its last words, which are one line.
#[track_caller]
fn refused(arguments: &[&str]) -> (i32, String) {
    let finished = leveret(arguments).run();
    assert_eq!(finished.stdout, "");
    let errors: Vec<_> = finished.stderr.lines().filter(|line| line.starts_with("error: ")).collect();
    let [error] = errors[..] else { panic!("not one line with an error: {}", finished.stderr) };
    assert_eq!(finished.stderr.lines().last(), Some(error));
    (finished.code.unwrap(), error.to_owned())
}

mod starting {
    use super::*;

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
        let in_memory =
            leveret(&["--in-memory", "--amqp-port", "0"]).env("LEVERET_DATA_DIR", data.to_str().unwrap());
        drop(in_memory.start());
        assert!(!data.exists());
        let kept =
            leveret(&["--data-dir", data.to_str().unwrap(), "--amqp-port", "0"]).env("LEVERET_IN_MEMORY", "1");
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
}

mod not_starting {
    use super::*;

    #[test]
    fn a_bad_option_is_2() {
        let finished = leveret(&["--no-such-option"]).run();
        assert_eq!((finished.code, finished.stdout.as_str()), (Some(2), ""));
        assert!(finished.stderr.contains("--no-such-option"), "{}", finished.stderr);
        assert_eq!(leveret(&["--amqp-port", "65536"]).run().code, Some(2));
        assert_eq!(leveret(&["--bind", "somewhere"]).run().code, Some(2));
        assert_eq!(leveret(&["--in-memory", "--data-dir", "d"]).run().code, Some(2));
    }

    #[test]
    fn a_variable_that_is_neither_yes_nor_no_is_2() {
        for neither in ["banana", "yes", "2"] {
            let finished = leveret(&["--amqp-port", "0"]).env("LEVERET_IN_MEMORY", neither).run();
            assert_eq!(finished.code, Some(2), "{neither}");
            let takes = format!("LEVERET_IN_MEMORY takes 1 or true, or 0 or false; '{neither}' is not that");
            assert!(finished.stderr.contains(&takes), "{}", finished.stderr);
        }
    }

    #[test]
    fn an_unknown_setting_is_2_and_the_nearest_is_named() {
        let (code, error) = refused(&["--in-memory", "--set", "hartbeat=30"]);
        assert_eq!((code, error.as_str()), (2, "error: unknown setting 'hartbeat'; the nearest is 'heartbeat'"));
    }

    #[test]
    fn a_setting_out_of_range_is_2_and_the_range_is_named() {
        let (code, error) = refused(&["--in-memory", "--set", "frame_max=4095"]);
        assert_eq!(code, 2);
        assert!(error.contains("'frame_max' takes a number of bytes from 4096 to 134217728; '4095'"), "{error}");
        assert_eq!(refused(&["--in-memory", "--set", "heartbeat"]).0, 2);
    }

    #[test]
    fn a_setting_in_a_file_that_is_wrong_is_2_and_the_file_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("leveret.toml");
        let file = file.to_str().unwrap();
        for (text, words) in [
            ("hartbeat = 1", format!("unknown setting 'hartbeat' in {file}; the nearest is 'heartbeat'")),
            ("[log.console]\nlevel = 'loud'", format!("setting 'log.console.level' in {file} takes none, ")),
            ("amqp_port = 70000", format!("setting 'amqp_port' in {file} takes a port from 0 to 65535; '70000'")),
            ("amqp_port = 1\nlisteners.tcp.default = 2", format!("in {file} exclude each other; leave one out")),
            ("amqp_port", format!("{file} is not valid TOML")),
        ] {
            fs::write(file, text).unwrap();
            let (code, error) = refused(&["--in-memory", "--config", file]);
            assert!(code == 2 && error.contains(&words), "{error}");
        }
    }

    #[test]
    fn an_option_and_its_setting_exclude_each_other() {
        let (code, error) = refused(&["--in-memory", "--amqp-port", "0", "--set", "amqp_port=0"]);
        assert_eq!(code, 2);
        assert!(error.contains("--amqp-port and setting 'amqp_port' exclude each other"), "{error}");
    }

    #[test]
    fn a_configuration_file_that_cannot_be_read_is_2() {
        let (code, error) = refused(&["--in-memory", "--config", "missing.toml"]);
        assert_eq!(code, 2);
        assert!(error.contains("missing.toml"), "{error}");
    }

    #[test]
    fn a_port_that_is_taken_is_1() {
        let taken = TcpListener::bind(("127.0.0.1", 0)).unwrap();
        let port = taken.local_addr().unwrap().port().to_string();
        let (code, error) = refused(&["--in-memory", "--amqp-port", &port]);
        assert_eq!(code, 1);
        assert!(error.contains(&format!("port {port} is already in use on 127.0.0.1")), "{error}");
    }

    #[test]
    fn addresses_that_overlap_are_2_and_both_are_named() {
        for (first, second) in [("127.0.0.1", "127.0.0.1"), ("0.0.0.0", "127.0.0.1"), ("::1", "::")] {
            for port in ["0", "5672"] {
                let (code, error) =
                    refused(&["--in-memory", "--amqp-port", port, "--bind", first, "--bind", second]);
                assert_eq!(code, 2);
                assert!(error.contains(&format!("{first} and {second} overlap")), "{error}");
            }
        }
        let all = leveret(&["--in-memory", "--amqp-port", "0", "--bind", "0.0.0.0", "--bind", "::1"]);
        if has_ipv6() {
            drop(all.start());
        }
    }

    #[test]
    fn one_port_for_both_purposes_is_2() {
        let (code, error) = refused(&["--in-memory", "--amqp-port", "5672", "--management-port", "5672"]);
        assert_eq!(code, 2);
        assert!(error.contains("--management-port"), "{error}");
    }

    #[test]
    fn a_data_folder_that_cannot_be_made_is_1() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("a-file");
        fs::write(&file, "").unwrap();
        let (code, error) = refused(&["--amqp-port", "0", "--data-dir", file.to_str().unwrap()]);
        assert_eq!(code, 1);
        assert!(error.contains(file.to_str().unwrap()), "{error}");
        assert!(error.ends_with("choose another with --data-dir DIR, or run with --in-memory"), "{error}");
    }

    #[test]
    fn a_folder_that_check_cannot_read_is_2_and_the_advice_is_one_that_check_takes() {
        let (code, error) = refused(&["check", "--data-dir", "missing"]);
        assert_eq!(code, 2);
        assert!(error.contains("missing") && error.ends_with("choose another with --data-dir DIR"), "{error}");
    }

    #[test]
    fn what_is_in_the_way_of_the_journal_is_named_with_a_way_out() {
        let folder = tempfile::tempdir().unwrap();
        let data = folder.path().to_str().unwrap();
        let segment = folder.path().join("0000000050.segment");
        let refusals =
            || [refused(&["--amqp-port", "0", "--data-dir", data]), refused(&["check", "--data-dir", data])];
        let is_helpful = |error: &str| {
            error.contains(segment.to_str().unwrap())
                && error.ends_with("mend that, or choose another folder with --data-dir DIR")
        };
        fs::create_dir(&segment).unwrap();
        let [(starting, error), (checking, other_error)] = refusals();
        assert_eq!((starting, checking), (1, 2));
        assert!(is_helpful(&error) && is_helpful(&other_error), "{error}, {other_error}");
        fs::remove_dir(&segment).unwrap();
        std::os::unix::fs::symlink("nowhere", &segment).unwrap();
        let [(_, error), (_, other_error)] = refusals();
        assert!(is_helpful(&error) && is_helpful(&other_error), "{error}, {other_error}");
        fs::remove_file(&segment).unwrap();
        // What a start alone has to do with.
        for name in ["spare-1", "0000000050.segment.compacted"] {
            let in_the_way = folder.path().join(name);
            fs::create_dir(&in_the_way).unwrap();
            let (code, error) = refused(&["--amqp-port", "0", "--data-dir", data]);
            assert!(code == 1 && error.contains(in_the_way.to_str().unwrap()), "{error}");
            assert!(error.ends_with("mend that, or choose another folder with --data-dir DIR"), "{error}");
            fs::remove_dir(&in_the_way).unwrap();
        }
    }

    #[test]
    fn a_data_folder_in_use_is_73_and_its_user_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let data = folder.path().join("data");
        let arguments = ["--amqp-port", "0", "--data-dir", data.to_str().unwrap()];
        let first = leveret(&arguments).start();
        let (code, error) = refused(&arguments);
        assert_eq!(code, 73);
        assert!(error.contains(data.to_str().unwrap()), "{error}");
        assert!(error.contains(&format!("process {}:", first.process.id())), "{error}");
        assert_eq!(first.stop().code, Some(0));
        assert_eq!(leveret(&arguments).start().stop().code, Some(0));
    }
}

mod stopping {
    use super::*;

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

    #[test]
    fn sigint_closes_connections_and_exits_with_0() {
        stops_in_good_order(Signal::INT);
    }
}

mod files {
    use super::*;

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
}

mod restarts {
    use super::*;

    /// A broker in a folder of the test's own.
    fn start(folder: &TempDir) -> Broker {
        leveret(&["serve", "--amqp-port", "0", "--data-dir", folder.path().to_str().unwrap()]).start()
    }

    fn check(folder: &TempDir) -> Finished {
        leveret(&["check", "--data-dir", folder.path().to_str().unwrap()]).run()
    }

    /// A durable queue with ten confirmed messages, the first of which was taken.
    fn fill(broker: &Broker) {
        broker.ask(&["declare", "queue", "q", "--durable"]);
        for number in 0..10 {
            broker.ask(&["publish", "q", &format!("message {number}"), "--persistent", "--confirm"]);
        }
        assert_eq!(broker.ask(&["get", "q"]), "message 0\n");
        // Another answer, so that the ack before it is durable.
        broker.ask(&["declare", "queue", "r", "--durable"]);
    }

    fn drain(broker: &Broker) -> Vec<String> {
        (1..10).map(|_| broker.ask(&["get", "q"])).collect()
    }

    fn expected() -> Vec<String> {
        (1..10).map(|number| format!("message {number}\n")).collect()
    }

    #[test]
    fn what_is_durable_is_back_after_a_stop_in_good_order() {
        let folder = tempfile::tempdir().unwrap();
        let broker = start(&folder);
        fill(&broker);
        broker.stop();
        let checked = check(&folder);
        assert_eq!((checked.code, checked.stdout.ends_with("clean\n")), (Some(0), true), "{checked:?}");
        let broker = start(&folder);
        assert_eq!(drain(&broker), expected());
        assert_eq!(broker.client(&["get", "q"]).run().code, Some(3));
    }

    #[test]
    fn what_was_confirmed_is_back_after_a_kill_again_and_again() {
        let folder = tempfile::tempdir().unwrap();
        let broker = start(&folder);
        fill(&broker);
        broker.kill();
        for _ in 0..3 {
            start(&folder).kill();
        }
        let broker = start(&folder);
        assert_eq!(drain(&broker), expected());
        broker.kill();
        // The last ack was followed by the end of its connection, whose answer rests on it.
        assert_eq!(start(&folder).client(&["get", "q"]).run().code, Some(3));
    }

    #[test]
    fn check_tells_a_torn_end_from_damage_and_changes_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let broker = start(&folder);
        fill(&broker);
        assert_eq!(check(&folder).code, Some(73), "it runs");
        broker.stop();
        let segment = folder.path().join("0000000001.segment");
        let whole = fs::read(&segment).unwrap();
        let mut damaged = whole.clone();
        let body = whole.windows(9).position(|bytes| bytes == b"message 5").unwrap();
        damaged[body] ^= 1;
        fs::write(&segment, &damaged).unwrap();
        let files = fs::read_dir(folder.path()).unwrap().count();
        let checked = check(&folder);
        assert_eq!(checked.code, Some(2), "{checked:?}");
        assert!(checked.stdout.contains("0000000001.segment, offset"), "{checked:?}");
        assert!(checked.stdout.contains("; 1 change is missing"), "{checked:?}");
        assert_eq!(fs::read(&segment).unwrap(), damaged);
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), files, "nothing was added");
        // It starts all the same, says what is missing, and serves the rest.
        let broker = start(&folder);
        broker.process.stderr.wait_for("the journal is damaged: 0000000001.segment", "the report");
        broker.stop();
        assert!(
            fs::read_dir(folder.path())
                .unwrap()
                .any(|entry| { entry.unwrap().file_name().to_string_lossy().starts_with("damaged-0000000001-") })
        );
    }

    #[test]
    fn check_and_the_start_say_which_segments_are_missing() {
        let folder = tempfile::tempdir().unwrap();
        let data = folder.path().to_str().unwrap();
        let arguments = ["serve", "--amqp-port", "0", "--data-dir", data, "--segment-size", "1048576"];
        let broker = leveret(&arguments).start();
        broker.ask(&["declare", "queue", "q", "--durable"]);
        let names = |folder: &std::path::Path| {
            let names =
                fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
            let mut names: Vec<_> = names.filter(|name| name.ends_with(".segment")).collect();
            names.sort();
            names
        };
        // So long that a start begins to read behind the third segment.
        let body = "x".repeat(100_000);
        let mut published = 0;
        loop {
            broker.ask(&["publish", "q", &body, "--persistent", "--confirm"]);
            published += 1;
            let last = fs::read(folder.path().join(names(folder.path()).last().unwrap())).unwrap();
            let begins_at = u64::from_le_bytes(*last[72..].first_chunk().unwrap());
            if begins_at > 3 {
                break;
            }
            assert!(published < 1000, "no start will begin later");
        }
        broker.kill();
        let checked = check(&folder);
        assert_eq!((checked.code, checked.stdout.ends_with("clean\n")), (Some(0), true), "{checked:?}");
        let whole = names(folder.path());
        // Not one that a checkpoint has begun for its header alone.
        let length = |name: &String| fs::metadata(folder.path().join(name)).unwrap().len();
        let read = whole[..whole.len() - 1].iter().rfind(|name| length(name) > 100_000).unwrap();
        for (gone, words) in [
            (&whole[0], " is missing, and with it "),
            (&whole[2], " is missing, and with it "),
            (read, " is not there; "),
        ] {
            let copy = tempfile::tempdir().unwrap();
            for entry in fs::read_dir(folder.path()).unwrap() {
                let entry = entry.unwrap();
                if entry.file_name().to_str() != Some(gone) {
                    fs::copy(entry.path(), copy.path().join(entry.file_name())).unwrap();
                }
            }
            let checked = check(&copy);
            assert_eq!(checked.code, Some(2), "without {gone}: {checked:?}");
            assert!(checked.stdout.contains(words) && checked.stdout.contains(gone.as_str()), "{checked:?}");
            let broker = start(&copy);
            broker.process.stderr.wait_for(words, "the report");
            broker.stop();
        }
        // Files that a journal leaves behind, and none.
        let copy = tempfile::tempdir().unwrap();
        fs::write(copy.path().join("spare-7"), "").unwrap();
        let checked = check(&copy);
        assert_eq!(
            (checked.code, checked.stdout.contains("every segment is not there")),
            (Some(2), true),
            "{checked:?}"
        );
        let checked = check(&tempfile::tempdir().unwrap());
        assert_eq!((checked.code, checked.stdout.as_str()), (Some(0), "no journal\n"), "{checked:?}");
    }

    #[test]
    fn less_free_disk_than_the_limit_holds_publishers_and_nobody_else() {
        let folder = tempfile::tempdir().unwrap();
        let data_dir = folder.path().to_str().unwrap();
        let options = ["serve", "--amqp-port", "0", "--data-dir", data_dir, "--disk-free-limit", "9000PB"];
        let broker = leveret(&options).start();
        broker.process.stderr.wait_for("low on disk", "the warning");
        // No queue takes it, so it would be confirmed at once.
        let publisher = broker.client(&["publish", "nowhere", "held", "--confirm"]).spawn();
        broker.process.stderr.wait_for("connection opened", "the publisher");
        for queue in ["q", "r", "s"] {
            broker.ask(&["declare", "queue", queue, "--durable"]);
            assert_eq!(broker.client(&["get", queue]).run().code, Some(3), "who does not publish goes on");
        }
        publisher.signal(Signal::TERM);
        assert_eq!(publisher.wait().code, None, "it waited until it was killed");
        broker.stop();
        let refused = leveret(&["serve", "--amqp-port", "0", "--disk-free-limit", "much"]).run();
        assert!(refused.code == Some(2) && refused.stderr.contains("for example 50MB"), "{refused:?}");
    }

    #[test]
    fn a_publisher_that_has_to_wait_is_told_why() {
        let broker = leveret(&["--amqp-port", "0", "--disk-free-limit", "9000PB"]).start();
        broker.process.stderr.wait_for("low on disk", "the warning");
        for arguments in [&["publish", "q", "held"][..], &["publish", "q", "held", "--confirm"]] {
            let publisher = broker.client(arguments).spawn();
            publisher.stderr.wait_for("the broker takes no messages: low on disk; waiting\n", "the reason");
        }
    }

    /// What rots on disk while the broker runs is never handed out; everything else is.
    #[test]
    fn a_message_that_cannot_be_read_back_is_passed_over() {
        const MESSAGES: usize = 20_000;
        let folder = tempfile::tempdir().unwrap();
        let options = ["serve", "--amqp-port", "0", "--memory-limit", "32MiB", "--data-dir"];
        let broker = leveret(&[&options[..], &[folder.path().to_str().unwrap()]].concat()).start();
        broker.ask(&["declare", "queue", "q", "--durable"]);
        let body = "x".repeat(1024);
        let count = MESSAGES.to_string();
        broker.ask(&["publish", "q", &body, "--persistent", "--confirm", "--count", &count]);
        // By now most of it is on disk only, from the first message on.
        let segment = folder.path().join("0000000001.segment");
        let mut bytes = fs::read(&segment).unwrap();
        let used = bytes.iter().rposition(|&byte| byte != 0).unwrap();
        // In the first message, for a client that asks, and in one on the way, for one that consumes.
        let body_from = |from: usize| {
            let at = bytes[from..].windows(64).position(|window| window == "x".repeat(64).as_bytes());
            from + at.unwrap()
        };
        for at in [body_from(0), body_from(used / 2)] {
            bytes[at] ^= 1;
        }
        fs::write(&segment, &bytes).unwrap();
        let got = broker.ask(&["get", "q"]);
        assert_eq!(got.trim_end(), body, "what lies behind it");
        let left = (MESSAGES - 3).to_string();
        let consumed = broker.ask(&["consume", "q", "--count", &left]);
        assert_eq!(consumed.lines().count(), MESSAGES - 3);
        assert!(consumed.lines().all(|line| line == body), "a wrong body");
        broker.process.stderr.wait_for("that cannot be read back stay where they are: ", "the report");
        assert_eq!(broker.client(&["get", "q"]).run().code, Some(3), "nobody gets it");
    }

    #[test]
    fn a_lost_record_of_the_virtual_host_loses_no_message() {
        let folder = tempfile::tempdir().unwrap();
        let broker = start(&folder);
        fill(&broker);
        broker.stop();
        let segment = folder.path().join("0000000001.segment");
        let mut bytes = fs::read(&segment).unwrap();
        // The first batch behind the header of the segment holds nothing but that record.
        bytes[96 + 40 + 24 + 1] ^= 1;
        fs::write(&segment, &bytes).unwrap();
        let broker = start(&folder);
        broker.process.stderr.wait_for("it is taken for '/'", "the report");
        assert_eq!(drain(&broker), expected());
        broker.ask(&["declare", "queue", "more", "--durable"]);
        broker.stop();
        start(&folder).ask(&["declare", "queue", "more", "--durable"]);
    }

    #[test]
    fn a_journal_of_a_newer_version_is_refused_with_words() {
        let folder = tempfile::tempdir().unwrap();
        start(&folder).stop();
        let segment = folder.path().join("0000000001.segment");
        let mut bytes = fs::read(&segment).unwrap();
        bytes[8] = 9;
        let checksum = crc32c::crc32c_append(crc32c::crc32c(&bytes[..12]), &bytes[16..96]);
        bytes[12..16].copy_from_slice(&checksum.to_le_bytes());
        fs::write(&segment, &bytes).unwrap();
        let refused = leveret(&["--amqp-port", "0", "--data-dir", folder.path().to_str().unwrap()]).run();
        assert_eq!(refused.code, Some(1), "{refused:?}");
        assert!(refused.stderr.contains("format version 9"), "{refused:?}");
        assert_eq!(fs::read(&segment).unwrap(), bytes);
    }
}

mod client_commands {
    use super::*;

    #[test]
    fn a_message_goes_through_a_queue() {
        let broker = Broker::start();
        assert_eq!(broker.ask(&["declare", "queue", "q"]), "");
        assert_eq!(broker.ask(&["publish", "q", "hello"]), "");
        assert_eq!(broker.ask(&["get", "q"]), "hello\n");
        assert_eq!(broker.ask(&["delete", "queue", "q"]), "");
    }

    #[test]
    fn the_broker_is_named_by_an_option_too() {
        let broker = Broker::start();
        let finished = leveret(&["declare", "queue", "", "--url", &broker.client_url()]).run();
        assert_eq!(finished.code, Some(0), "{}", finished.stderr);
        assert!(finished.stdout.starts_with("amq.gen-"), "{}", finished.stdout);
    }

    #[test]
    fn a_body_comes_from_standard_input_to_the_last_byte() {
        let broker = Broker::start();
        broker.ask(&["declare", "queue", "q"]);
        let finished = broker.client(&["publish", "q"]).input(b"two\nlines\n").run();
        assert_eq!(finished.code, Some(0), "{}", finished.stderr);
        assert_eq!(broker.ask(&["get", "q"]), "two\nlines\n\n");
    }

    #[test]
    fn json_is_a_line_for_each_message() {
        let broker = Broker::start();
        broker.ask(&["declare", "queue", "q"]);
        broker.ask(&["publish", "q", "hello", "--persistent", "--header", "n=1", "--property", "type=t"]);
        assert_eq!(
            broker.ask(&["get", "q", "--format", "json"]),
            r#"{"exchange":"","routing_key":"q","redelivered":false,"properties":{"delivery_mode":2,"headers":{"n":1},"type":"t"},"body":"hello"}"#.to_owned() + "\n"
        );
        let finished = broker.client(&["publish", "q"]).input(&[0xFF, 0]).run();
        assert_eq!(finished.code, Some(0), "{}", finished.stderr);
        let line = broker.ask(&["get", "q", "--format", "json"]);
        assert!(line.ends_with("\"body_base64\":\"/wA=\"}\n"), "{line}");
    }

    #[test]
    fn a_message_that_reaches_no_queue_is_1() {
        let broker = Broker::start();
        let finished = broker.client(&["publish", "nowhere", "hello"]).run();
        assert_eq!(finished.code, Some(1));
        let expected = "error: no queue 'nowhere'; create it with: leveret declare queue nowhere\n";
        assert_eq!(finished.stderr, expected);
        broker.ask(&["declare", "exchange", "logs", "topic"]);
        let arguments = ["publish", "--exchange", "logs", "--routing-key", "disk.error", "full", "--confirm"];
        let finished = broker.client(&arguments).run();
        assert_eq!(finished.code, Some(1));
        assert!(finished.stderr.contains("leveret declare binding logs QUEUE disk.error"), "{}", finished.stderr);
    }

    #[test]
    fn a_command_that_is_offered_can_be_pasted_into_a_shell() {
        let broker = Broker::start();
        let offered = |arguments: &[&str]| {
            let stderr = broker.client(arguments).run().stderr;
            stderr.trim_end_matches('\n').split_once(" with: leveret declare ").unwrap().1.to_owned()
        };
        assert_eq!(offered(&["publish", "two words", "x"]), "queue 'two words'");
        assert_eq!(offered(&["publish", "it's", "x"]), r"queue 'it'\''s'");
        assert_eq!(offered(&["publish", "x", "--", "-q"]), "queue x");
        assert_eq!(offered(&["publish", "--", "-q", "x"]), "queue -- -q");
        let publish = ["publish", "--exchange", "amq.topic", "x", "--routing-key"];
        assert_eq!(offered(&[&publish[..], &["a b;c"]].concat()), "binding amq.topic QUEUE 'a b;c'");
        assert_eq!(offered(&[&publish[..], &[""]].concat()), "binding amq.topic QUEUE ''");
    }

    #[test]
    fn a_queue_that_is_empty_is_3() {
        let broker = Broker::start();
        broker.ask(&["declare", "queue", "q"]);
        let finished = broker.client(&["get", "q"]).run();
        assert_eq!((finished.code, finished.stdout.as_str()), (Some(3), ""));
        assert_eq!(finished.stderr, "queue 'q' is empty\n");
    }

    #[test]
    fn a_queue_that_does_not_exist_is_1() {
        let broker = Broker::start();
        for arguments in [&["get", "q"][..], &["purge", "q"], &["consume", "q"], &["consume", "q", "--count", "0"]]
        {
            let finished = broker.client(arguments).run();
            assert_eq!(finished.code, Some(1), "{arguments:?}");
            assert!(finished.stderr.contains("404 NOT_FOUND - no queue 'q' in vhost '/'"), "{}", finished.stderr);
            assert_eq!(finished.stderr.lines().count(), 1, "{}", finished.stderr);
        }
    }

    #[test]
    fn a_broker_out_of_reach_is_1() {
        // A port that nobody gets by asking for a free one.
        let nobody = "127.0.0.1:1";
        let finished = leveret(&["get", "q", "--url", &format!("amqp://{nobody}")]).run();
        assert_eq!(finished.code, Some(1));
        assert!(finished.stderr.contains(&format!("cannot reach a broker at {nobody}")), "{}", finished.stderr);
    }

    #[test]
    fn a_url_that_cannot_be_used_is_2_and_hides_its_password() {
        let finished = leveret(&["get", "q", "--url", "amqps://me:secret@127.0.0.1"]).run();
        assert_eq!(finished.code, Some(2));
        assert!(!finished.stderr.contains("secret"), "{}", finished.stderr);
    }

    #[test]
    fn bindings_route_until_they_are_deleted() {
        let broker = Broker::start();
        broker.ask(&["declare", "exchange", "logs", "topic"]);
        broker.ask(&["declare", "queue", "errors"]);
        broker.ask(&["declare", "binding", "logs", "errors", "*.error"]);
        broker.ask(&["publish", "--exchange", "logs", "--routing-key", "disk.error", "full"]);
        assert_eq!(broker.ask(&["get", "errors"]), "full\n");
        broker.ask(&["delete", "binding", "logs", "errors", "*.error"]);
        let arguments = ["publish", "--exchange", "logs", "--routing-key", "disk.error", "full"];
        assert_eq!(broker.client(&arguments).run().code, Some(1));
        broker.ask(&["delete", "exchange", "logs", "--if-unused"]);
        let finished = broker.client(&arguments).run();
        assert_eq!(finished.code, Some(1));
        assert!(finished.stderr.contains("404 NOT_FOUND - no exchange 'logs'"), "{}", finished.stderr);
    }

    #[test]
    fn a_declaration_with_other_properties_is_1() {
        let broker = Broker::start();
        broker.ask(&["declare", "queue", "q"]);
        let finished = broker.client(&["declare", "queue", "q", "--durable"]).run();
        assert_eq!(finished.code, Some(1));
        assert!(
            finished.stderr.contains("406 PRECONDITION_FAILED - inequivalent arg 'durable'"),
            "{}",
            finished.stderr
        );
    }

    #[test]
    fn a_queue_in_use_or_with_messages_is_deleted_only_without_a_condition() {
        let broker = Broker::start();
        broker.ask(&["declare", "queue", "q"]);
        broker.ask(&["publish", "q", "hello"]);
        let finished = broker.client(&["delete", "queue", "q", "--if-empty"]).run();
        assert_eq!(finished.code, Some(1));
        assert!(finished.stderr.contains("406 PRECONDITION_FAILED"), "{}", finished.stderr);
        let consumer = broker.client(&["consume", "q"]).spawn();
        consumer.stdout.wait_for("hello\n", "the consumer to be there");
        assert_eq!(broker.client(&["delete", "queue", "q", "--if-unused"]).run().code, Some(1));
        broker.ask(&["delete", "queue", "q"]);
        let finished = consumer.wait();
        assert_eq!(finished.code, Some(1));
        assert!(finished.stderr.contains("ended the consumer of queue 'q'"), "{}", finished.stderr);
        // And once more: what does not exist is deleted already.
        broker.ask(&["delete", "queue", "q"]);
    }

    #[test]
    fn a_purge_prints_how_many_messages_went() {
        let broker = Broker::start();
        broker.ask(&["declare", "queue", "q"]);
        broker.ask(&["publish", "q", "hello", "--count", "1234", "--confirm"]);
        assert_eq!(broker.ask(&["purge", "q"]), "1234\n");
        assert_eq!(broker.ask(&["purge", "q"]), "0\n");
    }

    #[test]
    fn consume_with_a_count_takes_no_more_than_these() {
        let broker = Broker::start();
        broker.ask(&["declare", "queue", "q"]);
        for body in ["one", "two", "three", "four"] {
            broker.ask(&["publish", "q", body]);
        }
        assert_eq!(broker.ask(&["consume", "q", "--count", "1"]), "one\n");
        assert_eq!(broker.ask(&["consume", "q", "--count", "2", "--ack"]), "two\nthree\n");
        assert_eq!(broker.ask(&["purge", "q"]), "1\n");
    }

    #[test]
    fn consume_prints_until_ctrl_c_and_what_was_printed_is_acked() {
        let broker = Broker::start();
        broker.ask(&["declare", "queue", "q"]);
        let consumer = broker.client(&["consume", "q", "--ack", "--format", "json"]).spawn();
        for body in ["one", "two"] {
            broker.ask(&["publish", "q", body]);
            consumer.stdout.wait_for(&format!(r#""body":"{body}"}}"#), "the message");
        }
        consumer.signal(Signal::INT);
        let finished = consumer.wait();
        assert_eq!((finished.code, finished.stdout.lines().count()), (Some(0), 2), "{}", finished.stderr);
        assert_eq!(broker.client(&["get", "q"]).run().code, Some(3));
    }

    #[test]
    fn a_broker_that_stops_ends_its_consumers_with_1() {
        let broker = Broker::start();
        broker.ask(&["declare", "queue", "q"]);
        broker.ask(&["publish", "q", "hello", "--count", "3"]);
        let consumer = broker.client(&["consume", "q", "--ack"]).spawn();
        consumer.stdout.wait_for("hello\nhello\nhello\n", "all messages");
        broker.process.signal(Signal::TERM);
        let finished = consumer.wait();
        assert_eq!(finished.code, Some(1));
        assert!(finished.stderr.contains("320 CONNECTION_FORCED"), "{}", finished.stderr);
    }

    #[test]
    fn completions_are_printed_for_a_shell() {
        let finished = leveret(&["completions", "bash"]).run();
        assert_eq!((finished.code, finished.stderr.as_str()), (Some(0), ""));
        assert!(finished.stdout.contains("complete -F _leveret"), "{}", finished.stdout);
        assert_eq!(leveret(&["completions", "no-such-shell"]).run().code, Some(2));
    }

    #[test]
    fn version_and_help_go_to_standard_output() {
        assert_eq!(leveret(&["--version"]).run().stdout, format!("leveret {VERSION}\n"));
        let help = leveret(&["--help"]).run();
        assert_eq!(help.code, Some(0));
        assert!(help.stdout.contains("--in-memory") && help.stdout.contains("publish"), "{}", help.stdout);
    }
}

/// A log that nobody reads is no reason to stop.
#[test]
fn a_full_standard_error_does_not_stop_the_broker() {
    use std::io::{BufRead, BufReader};
    use std::process::{Command, Stdio};
    let mut process = Command::new(env!("CARGO_BIN_EXE_leveret"))
        .args(["--in-memory", "--amqp-port", "0"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut ready = String::new();
    BufReader::new(process.stdout.take().unwrap()).read_line(&mut ready).unwrap();
    let url = ready.trim().rsplit(' ').next().unwrap().to_owned();
    let address = url.trim_start_matches("amqp://").to_owned();
    // A line for each in the log: more than a pipe holds.
    for _ in 0..2_000 {
        drop(TcpStream::connect(&address).unwrap());
    }
    let opened = Connection::open(&url.parse().unwrap()).map(Connection::close);
    process.kill().unwrap();
    process.wait().unwrap();
    opened.unwrap().unwrap();
}
