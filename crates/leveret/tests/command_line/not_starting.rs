//! What keeps a broker from starting: one line that says what to do, and an exit code.

use std::fs;
use std::net::TcpListener;

use crate::support::leveret;
use crate::{has_ipv6, refused};

#[test]
fn a_bad_option_is_2() {
    let finished = leveret(&["--no-such-option"]).run();
    assert_eq!((finished.code, finished.stdout.as_str()), (Some(2), ""));
    assert!(finished.stderr.contains("--no-such-option"), "{}", finished.stderr);
    assert_eq!(leveret(&["--amqp-port", "65536"]).run().code, Some(2));
    assert_eq!(leveret(&["--bind", "somewhere"]).run().code, Some(2));
    assert_eq!(leveret(&["--in-memory", "--data-dir", "d"]).run().code, Some(2));
}

/// It is no option by the name of `-1`.
#[test]
fn a_negative_number_is_2_and_what_the_option_takes_is_named() {
    for (option, takes) in [
        ("--segment-size", "a size from 1MiB to 1GiB"),
        ("--memory-limit", "a size of at least 32MiB"),
        ("--disk-free-limit", "a size below 16EiB"),
        ("--amqp-port", "a port from 0 to 65535"),
        ("--management-port", "a port from 0 to 65535"),
    ] {
        let (code, error) = refused(&[option, "-1"]);
        assert_eq!(code, 2);
        assert!(error.starts_with(&format!("error: {option} takes {takes}")), "{error}");
        assert!(error.ends_with("'-1' is not that"), "{error}");
    }
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
fn definitions_with_a_fault_are_2_and_change_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let (file, data) = (folder.path().join("definitions.json"), folder.path().join("data"));
    let data = data.to_str().unwrap();
    let arguments = ["--amqp-port", "0", "--data-dir", data, "--definitions", file.to_str().unwrap()];
    assert_eq!(refused(&arguments).0, 2, "there is no such file");
    // One fault shows when the file is read, the other when all of it is tried.
    for (queue, fault) in
        [("7", "queues[0]: 7 is not"), (r#"{"name":"q","vhost":"w","durable":true}"#, "queues[0].vhost: ")]
    {
        let text = format!(r#"{{"vhosts":[{{"name":"v"}}],"users":[{{"name":"u"}}],"queues":[{queue}]}}"#);
        fs::write(&file, text).unwrap();
        let (code, error) = refused(&arguments);
        assert_eq!(code, 2, "{error}");
        assert!(error.contains(&format!("{} was loaded: {fault}", file.display())), "{error}");
    }
    fs::write(&file, r#"{"vhosts":[{"name":"v"}],"users":[{"name":"u"}],"shovels":[]}"#).unwrap();
    let broker = leveret(&arguments).start();
    broker.process.stderr.wait_for("shovels", "what is not supported");
    let list = ["list", "users", "--columns", "name", "--format", "json", "--data-dir", data];
    assert_eq!(leveret(&list).run().stdout, "[{\"name\":\"u\"}]\n", "and no guest");
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
        // A user by the name of 1, and none else, would let the guest in from anywhere.
        (
            "loopback_users = [1]",
            format!("setting 'loopback_users' in {file} takes a list of texts in quotes; '[1]' is not that"),
        ),
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
fn a_broker_that_cannot_listen_makes_no_data_folder() {
    let taken = TcpListener::bind(("127.0.0.1", 0)).unwrap();
    let port = taken.local_addr().unwrap().port().to_string();
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("parent/data");
    assert_eq!(refused(&["--amqp-port", &port, "--data-dir", data.to_str().unwrap()]).0, 1);
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
}

/// Both are wrong with a second broker that is started by mistake; the folder is what it cannot share.
#[test]
fn of_a_folder_in_use_and_its_port_the_folder_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().to_str().unwrap();
    let broker = leveret(&["--amqp-port", "0", "--data-dir", data]).start();
    let (code, error) = refused(&["--amqp-port", &broker.port().to_string(), "--data-dir", data]);
    assert!(code == 73 && error.contains("is in use by process"), "{error}");
}

#[test]
fn addresses_that_overlap_are_2_and_both_are_named() {
    for (first, second) in [("127.0.0.1", "127.0.0.1"), ("0.0.0.0", "127.0.0.1"), ("::1", "::")] {
        for port in ["0", "5672"] {
            let (code, error) = refused(&["--in-memory", "--amqp-port", port, "--bind", first, "--bind", second]);
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
    let refusals = || [refused(&["--amqp-port", "0", "--data-dir", data]), refused(&["check", "--data-dir", data])];
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
    assert!(error.contains("it is a link to nowhere, which is not there: bring that back, "), "{error}");
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
