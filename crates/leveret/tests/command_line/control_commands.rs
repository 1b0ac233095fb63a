//! What the commands print that look at a running broker, and steer it, through its data folder.

use std::fs::{self, Permissions};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::process::Command;

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

/// Runs a command that must not succeed; gives its exit code and what it says.
#[track_caller]
fn refuse(broker: &Broker, arguments: &[&str]) -> (i32, String) {
    let folder = broker.process.folder.path().join("leveret-data");
    let finished = leveret(arguments).env("LEVERET_DATA_DIR", folder.to_str().unwrap()).run();
    assert_eq!(finished.stdout, "", "{arguments:?}");
    (finished.code.unwrap(), finished.stderr)
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
    assert_eq!(listed(&["--filter", "name~eu", "--format", "csv"]), "name,messages\norders.eu,12\n");
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
    ask(&broker, &["set", "topic-permissions", "guest", "amq.topic"]);
    ask(&broker, &["set", "parameter", "p", "1"]);
    ask(&broker, &["set", "policy", "p", "x", "{\"max-length\":5}"]);
    ask(&broker, &["set", "policy", "o", "x", "{\"max-length\":5}", "--operator"]);
    for what in [
        "queues",
        "exchanges",
        "bindings",
        "connections",
        "channels",
        "consumers",
        "users",
        "vhosts",
        "permissions",
        "topic-permissions",
        "policies",
        "operator-policies",
        "parameters",
    ] {
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
    let (code, error) = refuse(&broker, &["list", "queues", "--vhost", "nowhere"]);
    let expected = "error: no virtual host 'nowhere'; add it with: leveret add vhost nowhere\n";
    assert_eq!((code, error.as_str()), (1, expected));
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
    let (code, error) = refuse(&broker, &["close", "connection", "nobody"]);
    let expected = "error: no connection 'nobody'; all names are listed by: leveret list connections\n";
    assert_eq!((code, error.as_str()), (1, expected));
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
    fs::create_dir_all(folder.path().join("control.sock/not-empty")).unwrap();
    let broker = leveret(&["--amqp-port", "0", "--data-dir", folder.path().to_str().unwrap()]).start();
    broker.ask(&["declare", "queue", "q"]);
    let stderr = broker.stop().stderr;
    assert!(stderr.contains("no control socket"), "{stderr}");
}

#[test]
fn a_user_gets_a_password_and_permissions_and_loses_them_again() {
    let broker = start();
    ask(&broker, &["add", "vhost", "shop", "--description", "orders", "--tag", "a", "--tag", "b"]);
    ask(&broker, &["add", "user", "marie", "--password", "secret", "--tag", "monitoring"]);
    let url = format!("amqp://marie:secret@127.0.0.1:{}/shop", broker.port());
    let declare = |queue: &str| leveret(&["declare", "queue", queue, "--url", &url]).run();
    let refused = declare("orders");
    assert!(refused.stderr.contains("530 NOT_ALLOWED"), "no permissions yet: {}", refused.stderr);
    ask(&broker, &["set", "permissions", "marie", "--vhost", "shop", "--configure", "^orders"]);
    assert_eq!(declare("orders").code, Some(0));
    assert!(declare("stock").stderr.contains("403 ACCESS_REFUSED"));
    let permissions = ask_json(&broker, &["list", "permissions", "--vhost", "shop"]);
    let expected = json!([{ "user": "marie", "vhost": "shop", "configure": "^orders", "write": "", "read": "" }]);
    assert_eq!(permissions, expected);
    let users = ask(&broker, &["list", "users", "--sort", "-name"]);
    let lines: Vec<Vec<_>> = users.lines().map(|line| line.split_whitespace().collect()).collect();
    assert_eq!(
        lines,
        [["name", "tags", "limits"], ["marie", "[\"monitoring\"]", "{}"], ["guest", "[\"administrator\"]", "{}"]]
    );
    let vhost = ask_json(&broker, &["list", "vhosts", "--filter", "name=shop", "--columns", "description,tags"]);
    assert_eq!(vhost, json!([{ "description": "orders", "tags": ["a", "b"] }]));
    // Tags change, and the password stays.
    ask(&broker, &["set", "user", "marie", "--no-tags"]);
    assert_eq!(declare("orders").code, Some(0));
    ask(&broker, &["set", "user", "marie", "--password", "another"]);
    assert!(declare("orders").stderr.contains("403 ACCESS_REFUSED"));
    ask(&broker, &["clear", "permissions", "marie", "--vhost", "shop"]);
    assert_eq!(ask_json(&broker, &["list", "permissions", "--vhost", "shop"]), json!([]));
    ask(&broker, &["delete", "user", "marie"]);
    ask(&broker, &["delete", "vhost", "shop"]);
    assert_eq!(ask_json(&broker, &["list", "users", "--columns", "name"]), json!([{ "name": "guest" }]));
}

#[test]
fn a_password_comes_from_a_file_or_standard_input_too() {
    let broker = start();
    let folder = broker.process.folder.path();
    fs::write(folder.join("secret"), "pass word\n").unwrap();
    ask(&broker, &["add", "user", "one", "--password-file", folder.join("secret").to_str().unwrap()]);
    let data_dir = folder.join("leveret-data");
    let arguments = ["add", "user", "other", "--password-file", "-", "--data-dir", data_dir.to_str().unwrap()];
    assert_eq!(leveret(&arguments).input(b"pass word\nmore").run().code, Some(0));
    ask(&broker, &["add", "user", "nobody", "--no-password"]);
    for (user, may) in [("one", true), ("other", true), ("nobody", false)] {
        ask(&broker, &["set", "permissions", user, "--configure", ".*"]);
        let url = format!("amqp://{user}:pass%20word@127.0.0.1:{}/%2F", broker.port());
        let declared = leveret(&["declare", "queue", "q", "--url", &url]).run();
        assert_eq!(declared.code == Some(0), may, "{user}: {}", declared.stderr);
    }
    let shown = ask(&broker, &["list", "users", "--format", "json"]);
    assert!(!shown.contains("hash"), "hashes are for those who name them: {shown}");
}

#[test]
fn limits_and_parameters_are_set_and_cleared() {
    let broker = start();
    ask(&broker, &["set", "limit", "vhost", "/", "max-queues", "1"]);
    broker.ask(&["declare", "queue", "a"]);
    let refused = broker.client(&["declare", "queue", "b"]).run();
    assert!(refused.stderr.contains("406 PRECONDITION_FAILED"), "{}", refused.stderr);
    let limits = |what: &str| ask_json(&broker, &["list", what, "--columns", "limits"]);
    assert_eq!(limits("vhosts"), json!([{ "limits": { "max-queues": 1 } }]));
    ask(&broker, &["clear", "limit", "vhost", "/", "max-queues"]);
    broker.ask(&["declare", "queue", "b"]);
    ask(&broker, &["set", "limit", "user", "guest", "max-connections", "0"]);
    assert_eq!(limits("users"), json!([{ "limits": { "max-connections": 0 } }]));
    let refused = broker.client(&["declare", "queue", "c"]).run();
    assert!(refused.stderr.contains("530 NOT_ALLOWED"), "{}", refused.stderr);
    ask(&broker, &["clear", "limit", "user", "guest", "max-connections"]);
    broker.ask(&["declare", "queue", "c"]);
    ask(&broker, &["set", "parameter", "tags", "{\"region\":\"eu\"}"]);
    let parameters = json!([{ "name": "tags", "value": { "region": "eu" } }]);
    assert_eq!(ask_json(&broker, &["list", "parameters"]), parameters);
    ask(&broker, &["clear", "parameter", "tags"]);
    assert_eq!(ask_json(&broker, &["list", "parameters"]), json!([]));
}

#[test]
fn an_export_is_a_file_for_its_owner_that_another_broker_begins_with() {
    let broker = start();
    broker.ask(&["declare", "queue", "kept", "--durable"]);
    ask(&broker, &["add", "vhost", "shop"]);
    let file = broker.process.folder.path().join("definitions.json");
    let name = file.to_str().unwrap();
    ask(&broker, &["export", "--file", name]);
    assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600, "hashes of passwords are in it");
    let text = fs::read_to_string(&file).unwrap();
    assert_eq!(text, ask(&broker, &["export"]));
    let other = leveret(&["--amqp-port", "0", "--definitions", name]).start();
    assert_eq!(ask(&other, &["export"]), text);
}

/// A limit on the size of files stands for a disk that is full.
#[test]
fn an_export_that_finds_no_room_leaves_the_file_as_it_was() {
    let broker = start();
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("definitions.json");
    fs::write(&file, "yesterday's").unwrap();
    fs::set_permissions(&file, Permissions::from_mode(0o640)).unwrap();
    let data = broker.process.folder.path().join("leveret-data");
    let export = |limit: &str| {
        let script = format!("trap '' XFSZ; ulimit -f {limit}; exec \"$0\" export --data-dir \"$1\" --file \"$2\"");
        let mut shell = Command::new("sh");
        shell.arg("-c").arg(script).arg(env!("CARGO_BIN_EXE_leveret")).arg(&data).arg(&file);
        shell.output().unwrap()
    };
    let output = export("0");
    let error = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{error}");
    assert!(error.starts_with(&format!("error: cannot write {}: ", file.display())), "{error}");
    assert_eq!(fs::read_to_string(&file).unwrap(), "yesterday's");
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1, "nothing else is left");
    assert_eq!(export("unlimited").status.code(), Some(0));
    assert!(fs::read_to_string(&file).unwrap().contains("\"users\""));
    assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o640, "whoever could read it still can");
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
}

#[test]
fn an_export_goes_where_a_link_leads_and_into_a_device() {
    let broker = start();
    let folder = tempfile::tempdir().unwrap();
    let (file, link) = (folder.path().join("definitions.json"), folder.path().join("link"));
    fs::write(&file, "").unwrap();
    symlink(&file, &link).unwrap();
    ask(&broker, &["export", "--file", link.to_str().unwrap()]);
    assert!(fs::symlink_metadata(&link).unwrap().is_symlink());
    assert!(fs::read_to_string(&file).unwrap().contains("\"users\""));
    let printed = ask(&broker, &["export", "--file", "/dev/stdout"]);
    assert_eq!(printed, fs::read_to_string(&file).unwrap());
}

#[test]
fn an_operator_policy_and_topic_permissions_are_cleared_and_nothing_else() {
    let broker = start();
    for kind in [&[][..], &["--operator"]] {
        ask(&broker, &[&["set", "policy", "p", "^q", "{\"max-length\":2}"], kind].concat());
    }
    for exchange in ["amq.topic", "x", "y"] {
        ask(&broker, &["set", "topic-permissions", "guest", exchange]);
    }
    ask(&broker, &["clear", "policy", "p", "--operator"]);
    ask(&broker, &["clear", "topic-permissions", "guest", "x"]);
    let count = |what: &str| ask_json(&broker, &["list", what]).as_array().unwrap().len();
    assert_eq!((count("policies"), count("operator-policies"), count("topic-permissions")), (1, 0, 2));
    ask(&broker, &["clear", "topic-permissions", "guest"]);
    assert_eq!(count("topic-permissions"), 0);
}

#[test]
fn headers_that_are_typed_find_their_binding() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("definitions.json");
    let definitions = json!({
        "users": [{"name": "ada", "password": "love lace"}],
        "queues": [{"name": "books", "vhost": "/", "durable": true, "arguments": {"x-max-length": 9}}],
        "bindings": [{
            "source": "amq.headers", "vhost": "/", "destination": "books", "destination_type": "queue",
            "routing_key": "", "arguments": {"x-match": "all", "kind": "book", "pages": 5},
        }],
    });
    fs::write(&file, definitions.to_string()).unwrap();
    let broker = leveret(&["--amqp-port", "0", "--definitions", file.to_str().unwrap()]).start();
    let loaded = ": 1 user, 0 virtual hosts and 2 queues, exchanges, bindings and policies";
    broker.process.stderr.wait_for(loaded, "the log to say what was loaded");
    let explain = ["explain", "--exchange", "amq.headers", "--header", "kind=book"];
    let told = ask(&broker, &[&explain[..], &["--header", "pages=5"]].concat());
    assert!(told.contains("    leads to queue 'books': ") && told.contains("at most messages 9"), "{told}");
    assert!(told.contains("\n  exchange 'amq.headers', headers, 1 binding\n"), "{told}");
    let told = ask_json(&broker, &[&explain[..], &["--header", "pages=6"]].concat());
    assert_eq!(told["queue_count"], json!(0));
}

#[test]
fn of_a_refused_message_it_is_only_told_where_it_would_go() {
    let broker = start();
    broker.ask(&["declare", "queue", "q"]);
    ask(&broker, &["add", "user", "marie", "--no-password"]);
    let told = ask(&broker, &["explain", "--routing-key", "q", "--user", "marie"]);
    assert!(told.contains("\n  it is refused: ACCESS_REFUSED"), "{told}");
    assert!(told.contains("\n  it would reach 1 queue\n"), "{told}");
    let told = ask(&broker, &["explain", "--exchange", "nowhere"]);
    assert!(told.ends_with("  it is refused: NOT_FOUND - no exchange 'nowhere' in vhost '/'\n"), "{told}");
}

#[test]
fn what_cannot_be_changed_is_refused_with_words() {
    let broker = start();
    for (arguments, code, words) in [
        (
            &["add", "user", "guest", "--no-password"][..],
            1,
            "user 'guest' exists; change it with: leveret set user guest",
        ),
        (&["add", "vhost", "/"], 1, "vhost '/' exists; change it with: leveret set vhost /"),
        (&["add", "user", "x"], 2, "say which password"),
        (&["add", "user", "x", "--password", "a", "--no-password"], 2, "cannot be used with"),
        (&["add", "user", "x", "--password", ""], 1, "nobody can log in with an empty password"),
        (&["set", "user", "guest"], 2, "say what is to change"),
        (&["set", "user", "nobody", "--no-tags"], 1, "no user 'nobody'; add one with: leveret add user nobody"),
        (&["set", "vhost", "/"], 2, "say what is to change"),
        (
            &["set", "vhost", "no where", "--description", "x"],
            1,
            "no virtual host 'no where'; add it with: leveret add vhost 'no where'",
        ),
        (&["add", "vhost", ""], 2, "a value is required for '<NAME>'"),
        (&["set", "policy", "", "q", "{\"max-length\":1}"], 2, "a value is required for '<NAME>'"),
        (&["set", "vhost", "/", "--default-queue-type", "fast"], 1, "there is no queue type 'fast'"),
        (&["set", "permissions", "nobody"], 1, "no user 'nobody'; add one with: leveret add user nobody"),
        (&["set", "permissions", "guest", "--vhost", "nowhere"], 1, "no virtual host 'nowhere'; add it with"),
        (&["set", "topic-permissions", "nobody", "x"], 1, "no user 'nobody'"),
        (&["clear", "permissions", "nobody"], 1, "no user 'nobody'"),
        (&["explain", "--user", "guest", "--vhost", "nowhere"], 1, "no virtual host 'nowhere'"),
        (&["explain", "--header", &format!("{}=1", "k".repeat(256))], 2, "a name has at most 255 bytes"),
        (&["set", "permissions", "guest", "--read", "("], 1, "the pattern '(' for read cannot be used"),
        (&["set", "limit", "vhost", "/", "max-rabbits", "1"], 1, "have no limit 'max-rabbits'"),
        (&["set", "limit", "user", "nobody", "max-channels", "1"], 1, "no user 'nobody'"),
        (&["set", "limit", "vhost", "/", "max-queues", "-1"], 2, "-1 is not in 0.."),
        (&["set", "parameter", "p", "{"], 2, "the value is not JSON"),
        (&["set", "policy", "p", "q", "{"], 2, "the definition is not JSON"),
        (&["set", "policy", "p", "q", "{\"ha-mode\":\"all\"}"], 1, "Leveret has no mirrored queues"),
        (&["clear", "policy", "p"], 1, "there is no policy 'p' in virtual host '/'"),
        (&["clear", "parameter", "p"], 1, "there is no parameter 'p'"),
        (&["delete", "user", "nobody"], 1, "no user 'nobody'; all are listed by: leveret list users"),
        (&["delete", "vhost", "nowhere"], 1, "no vhost 'nowhere'; all are listed by: leveret list vhosts"),
        (&["list", "users", "--vhost", "/"], 2, "--vhost is for what is in a virtual host"),
    ] {
        let (exit_code, stderr) = refuse(&broker, arguments);
        assert_eq!(exit_code, code, "{arguments:?}: {stderr}");
        assert!(stderr.contains(words), "{arguments:?}: {stderr}");
    }
    ask(&broker, &["set", "vhost", "/", "--protected", "true"]);
    let (exit_code, stderr) = refuse(&broker, &["delete", "vhost", "/"]);
    assert_eq!((exit_code, stderr.as_str()), (1, "error: virtual host '/' is protected from deletion\n"));
    ask(&broker, &["set", "vhost", "/", "--protected", "false"]);
    ask(&broker, &["delete", "vhost", "/"]);
}

#[test]
fn a_policy_shortens_a_queue_until_it_is_cleared() {
    let broker = start();
    broker.ask(&["declare", "queue", "q"]);
    ask(
        &broker,
        &["set", "policy", "short", "^q", "{\"max-length\":2}", "--apply-to", "queues", "--priority", "-1"],
    );
    broker.ask(&["publish", "q", "hello", "--count", "5", "--confirm"]);
    let shown = |columns: &str| ask_json(&broker, &["list", "queues", "--columns", columns]);
    assert_eq!(shown("messages,policy"), json!([{ "messages": 2, "policy": "short" }]));
    let policies = json!([{
        "vhost": "/", "name": "short", "pattern": "^q", "apply-to": "queues", "priority": -1,
        "definition": { "max-length": 2 },
    }]);
    assert_eq!(ask_json(&broker, &["list", "policies", "--vhost", "/"]), policies);
    ask(&broker, &["clear", "policy", "short"]);
    broker.ask(&["publish", "q", "hello", "--count", "5", "--confirm"]);
    assert_eq!(shown("messages,policy"), json!([{ "messages": 7, "policy": null }]));
}
