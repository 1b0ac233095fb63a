//! The HTTP API over the control socket of a running node.

#![expect(clippy::unwrap_used, reason = "a test that cannot talk to the broker has failed")]

use std::fs;
use std::io::{ErrorKind, Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use leveret_client::{Connection, QueueOptions};
use leveret_management::{CONTROL_SOCKET, Client, ControlSocket};
use leveret_server::{Server, ServerConfig, ServerHandle, Storage};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::runtime::Runtime;

/// Generous: what it waits for takes milliseconds.
const PATIENCE: Duration = Duration::from_secs(20);

/// A node with its control socket.
struct Node {
    control: Option<ControlSocket>,
    server: ServerHandle,
    runtime: Runtime,
    folder: PathBuf,
    _temporary: TempDir,
}

impl Node {
    fn start() -> Self {
        let temporary = tempfile::tempdir().unwrap();
        let folder = temporary.path().to_owned();
        Node::start_in(temporary, folder)
    }

    fn start_in(temporary: TempDir, folder: PathBuf) -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        let storage = Storage::Folder(folder.clone());
        let server = runtime.block_on(Server::start(ServerConfig { storage, ..ServerConfig::default() })).unwrap();
        let control = runtime.block_on(async { ControlSocket::bind(&folder, server.admin()) }).unwrap();
        Node { control: Some(control), server, runtime, folder, _temporary: temporary }
    }

    fn amqp(&self) -> Connection {
        let port = self.server.addresses()[0].port();
        Connection::open(&format!("amqp://guest:guest@127.0.0.1:{port}/%2F").parse().unwrap()).unwrap()
    }

    /// A status and JSON, if there is some.
    fn get(&self, path: &str) -> (u16, Value) {
        let (status, body) = Client::new(&self.folder).unwrap().get(path).unwrap();
        (status.as_u16(), serde_json::from_slice(&body).unwrap_or(Value::Null))
    }

    fn delete(&self, path: &str, reason: Option<&str>) -> u16 {
        Client::new(&self.folder).unwrap().delete(path, reason).unwrap().0.as_u16()
    }

    fn put(&self, path: &str, body: &Value) -> u16 {
        Client::new(&self.folder).unwrap().put(path, body.to_string()).unwrap().0.as_u16()
    }

    fn names(&self, path: &str) -> Vec<String> {
        let (status, list) = self.get(path);
        assert_eq!(status, 200, "{path}: {list}");
        list.as_array().unwrap().iter().map(|element| element["name"].as_str().unwrap().to_owned()).collect()
    }

    /// Bytes as they are.
    fn raw(&self) -> UnixStream {
        let stream = UnixStream::connect(self.folder.join(CONTROL_SOCKET)).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.set_write_timeout(Some(PATIENCE)).unwrap();
        stream
    }
}

fn declare(connection: &mut Connection, queues: impl Iterator<Item = String>) {
    let mut channel = connection.open_channel().unwrap();
    for queue in queues {
        channel.declare_queue(&queue, &QueueOptions::default()).unwrap();
    }
}

/// What a client hears whose connection was told to close. A question may be quicker.
fn end(connection: &mut Connection) -> String {
    loop {
        if let Err(error) = connection.open_channel() {
            return error.to_string();
        }
    }
}

#[test]
fn queues_are_listed_all_of_one_virtual_host_or_one() {
    let node = Node::start();
    assert_eq!(node.get("/api/queues"), (200, json!([])));
    let mut connection = node.amqp();
    declare(&mut connection, ["a".to_owned(), "with/slash".to_owned()].into_iter());
    let mut names = node.names("/api/queues/%2F");
    names.sort();
    assert_eq!(names, ["a", "with/slash"]);
    let expected = json!({
        "name": "with/slash", "vhost": "/", "type": "classic", "durable": false, "auto_delete": false,
        "exclusive": false, "arguments": {}, "policy": null, "operator_policy": null,
        "effective_policy_definition": {}, "state": "running", "messages": 0, "messages_ready": 0,
        "messages_unacknowledged": 0, "consumers": 0,
    });
    assert_eq!(node.get("/api/queues/%2F/with%2Fslash"), (200, expected));
    let missing = json!({ "error": "Object Not Found", "reason": "Not Found" });
    for path in ["/api/queues/%2F/nowhere", "/api/queues/nowhere", "/api/queues/nowhere/a", "/api/nowhere", "/"] {
        assert_eq!(node.get(path), (404, missing.clone()), "{path}");
    }
}

#[test]
fn a_list_of_many_queues_is_whole() {
    let node = Node::start();
    let mut connection = node.amqp();
    declare(&mut connection, (0..5000).map(|number| format!("q{number:04}")));
    let mut names = node.names("/api/queues");
    names.sort();
    assert_eq!(names, (0..5000).map(|number| format!("q{number:04}")).collect::<Vec<_>>());
    assert_eq!(node.get("/api/bindings/%2F").1.as_array().unwrap().len(), 5000);
}

#[test]
fn connections_with_their_channels_and_consumers_are_listed_and_can_be_closed() {
    let node = Node::start();
    let (mut one, mut other) = (node.amqp(), node.amqp());
    declare(&mut one, ["q".to_owned()].into_iter());
    let _channel = other.open_channel().unwrap();
    let names = node.names("/api/connections");
    assert_eq!(names.len(), 2, "{names:?}");
    assert_eq!(node.names("/api/connections/username/guest"), names);
    assert_eq!(node.names("/api/vhosts/%2F/connections"), names);
    let path = format!("/api/connections/{}", names[0].replace(' ', "%20").replace('>', "%3E"));
    let (status, connection) = node.get(&path);
    assert_eq!((status, &connection["user"], &connection["channels"]), (200, &json!("guest"), &json!(1)));
    let (status, channels) = node.get("/api/channels");
    assert_eq!((status, channels.as_array().unwrap().len()), (200, 2));
    assert_eq!(channels[0]["name"], json!(format!("{} (1)", names[0])));
    assert_eq!(channels[0]["connection_details"]["name"], json!(names[0]));
    assert_eq!(node.get("/api/consumers"), (200, json!([])));
    assert_eq!(node.delete(&path, Some("too slow")), 204);
    let error = end(&mut one);
    assert!(error.contains("320 CONNECTION_FORCED - too slow"), "{error}");
    drop(one);
    let deadline = Instant::now() + PATIENCE;
    while node.names("/api/connections").len() > 1 {
        assert!(Instant::now() < deadline, "it is still there");
    }
    assert_eq!(node.delete(&path, None), 404);
    assert_eq!(node.delete("/api/connections/username/guest", None), 204);
    let error = end(&mut other);
    assert!(error.contains("320 CONNECTION_FORCED - Closed via management plugin"), "{error}");
}

#[test]
fn exchanges_and_the_overview_are_there() {
    let node = Node::start();
    let names = node.names("/api/exchanges");
    assert_eq!(names.len(), 7, "{names:?}");
    assert_eq!(node.get("/api/exchanges/%2F/amq.default").1["name"], json!(""));
    assert_eq!(node.get("/api/exchanges/%2F/amq.topic").1["type"], json!("topic"));
    let mut connection = node.amqp();
    declare(&mut connection, ["q".to_owned()].into_iter());
    let (status, overview) = node.get("/api/overview");
    assert_eq!(status, 200);
    let totals = json!({ "connections": 1, "channels": 1, "exchanges": 7, "queues": 1, "consumers": 0 });
    assert_eq!(overview["object_totals"], totals);
    assert_eq!(overview["listeners"][0]["port"], json!(node.server.addresses()[0].port()));
    let (status, nodes) = node.get("/api/nodes");
    assert_eq!(
        (status, &nodes[0]["os_pid"], &nodes[0]["mem_alarm"]),
        (200, &json!(std::process::id()), &json!(false))
    );
    let uptime = nodes[0]["uptime"].as_u64().unwrap();
    assert!(uptime < 3_600_000, "it was started a moment ago, not {uptime} ms");
}

#[test]
fn hostile_bytes_end_their_own_connection_only() {
    let node = Node::start();
    let long = [b"GET /".as_slice(), &vec![b'x'; 200_000], b" HTTP/1.1\r\n\r\n"].concat();
    let many = [b"GET / HTTP/1.1\r\n".as_slice(), &b"a: b\r\n".repeat(5000), b"\r\n"].concat();
    let invalid = b"GET /api/queues/%FF HTTP/1.1\r\nhost: x\r\n\r\n".to_vec();
    let wrong = b"PATCH /api/queues HTTP/1.1\r\nhost: x\r\n\r\n".to_vec();
    for bytes in [b"AMQP\0\0\x09\x01".to_vec(), vec![0; 100_000], long, many, invalid, wrong] {
        let mut stream = node.raw();
        // It may be closed before all is written.
        let _ = stream.write_all(&bytes);
        let _ = stream.shutdown(std::net::Shutdown::Write);
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer);
        let answer = String::from_utf8_lossy(&answer);
        assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 4"), "{answer}");
    }
    assert_eq!(node.get("/api/queues").0, 200);
}

#[test]
fn a_client_that_does_not_read_holds_nobody_up() {
    let node = Node::start();
    let mut connection = node.amqp();
    declare(&mut connection, (0..5000).map(|number| format!("q{number:04}-{}", "x".repeat(200))));
    let lazy: Vec<_> = (0..10)
        .map(|_| {
            let mut stream = node.raw();
            stream.write_all(b"GET /api/queues HTTP/1.1\r\nhost: x\r\n\r\n").unwrap();
            stream
        })
        .collect();
    assert_eq!(node.names("/api/queues").len(), 5000);
    declare(&mut connection, ["another".to_owned()].into_iter());
    drop(lazy);
}

#[test]
fn the_socket_is_for_the_owner_only_and_goes_with_the_broker() {
    let mut node = Node::start();
    let file = node.folder.join(CONTROL_SOCKET);
    assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
    let mut idle = node.raw();
    node.control = None;
    assert!(!file.exists());
    // Who was connected, or about to be, is let go.
    match idle.read(&mut [0]) {
        Ok(count) => assert_eq!(count, 0),
        Err(error) => assert_eq!(error.kind(), ErrorKind::ConnectionReset),
    }
    let error = Client::new(&node.folder).unwrap().get("/api/queues").unwrap_err().to_string();
    assert_eq!(error, format!("no broker runs in the data folder {}", node.folder.display()));
    node.runtime.block_on(node.server.shutdown());
}

/// As a broker leaves it that was killed.
#[test]
fn a_socket_that_was_left_is_replaced() {
    let temporary = tempfile::tempdir().unwrap();
    let folder = temporary.path().to_owned();
    drop(std::os::unix::net::UnixListener::bind(folder.join(CONTROL_SOCKET)).unwrap());
    let error = Client::new(&folder).unwrap().get("/api/queues").unwrap_err().to_string();
    assert!(error.contains("no broker runs"), "{error}");
    let node = Node::start_in(temporary, folder);
    assert_eq!(node.get("/api/queues").0, 200);
}

/// The address of a Unix socket has room for about a hundred bytes.
#[test]
fn a_data_folder_may_have_a_long_path() {
    let temporary = tempfile::tempdir().unwrap();
    let folder = temporary.path().join("x".repeat(100)).join("y".repeat(100));
    let node = Node::start_in(temporary, folder.clone());
    assert!(Path::exists(&folder.join(CONTROL_SOCKET)));
    assert_eq!(node.get("/api/queues").0, 200);
}

#[test]
fn users_and_virtual_hosts_are_put_shown_and_deleted() {
    let node = Node::start();
    assert_eq!(node.put("/api/vhosts/shop", &json!({ "description": "orders", "tags": "a, b" })), 201);
    assert_eq!(node.put("/api/vhosts/shop", &json!({ "default_queue_type": "quorum" })), 204);
    let vhost = node.get("/api/vhosts/shop").1;
    assert_eq!(
        (&vhost["description"], &vhost["tags"]),
        (&json!("orders"), &json!(["a", "b"])),
        "what is not said stays"
    );
    assert_eq!(vhost["metadata"]["default_queue_type"], json!("quorum"));
    // The hash is that of RabbitMQ's documentation, of "test12".
    let hash = "kI3GCqW5JLMJa4iX1lo7X4D6XbYqlLgxIs30+P6tENUV2POR";
    assert_eq!(node.put("/api/users/marie", &json!({ "password_hash": hash, "tags": ["monitoring"] })), 201);
    let user = node.get("/api/users/marie").1;
    assert_eq!((&user["password_hash"], &user["tags"]), (&json!(hash), &json!(["monitoring"])));
    let permissions = json!({ "configure": "", "write": ".*", "read": ".*" });
    assert_eq!(node.put("/api/permissions/shop/marie", &permissions), 201);
    assert_eq!(node.put("/api/permissions/shop/marie", &permissions), 204);
    let shown = json!({ "user": "marie", "vhost": "shop", "configure": "", "write": ".*", "read": ".*" });
    assert_eq!(node.get("/api/permissions/shop/marie"), (200, shown.clone()));
    assert_eq!(node.get("/api/users/marie/permissions"), (200, json!([shown])));
    let topic = json!({ "exchange": "amq.topic", "write": "^{username}", "read": ".*" });
    assert_eq!(node.put("/api/topic-permissions/shop/marie", &topic), 201);
    assert_eq!(node.get("/api/topic-permissions").1[0]["write"], json!("^{username}"));
    assert_eq!(node.put("/api/vhost-limits/shop/max-queues", &json!({ "value": 5 })), 204);
    assert_eq!(node.get("/api/vhost-limits").1, json!([{ "vhost": "shop", "value": { "max-queues": 5 } }]));
    assert_eq!(node.put("/api/user-limits/marie/max-channels", &json!({ "value": 7 })), 204);
    assert_eq!(node.get("/api/user-limits").1, json!([{ "user": "marie", "value": { "max-channels": 7 } }]));
    let port = node.server.addresses()[0].port();
    let mut marie =
        Connection::open(&format!("amqp://marie:test12@127.0.0.1:{port}/shop").parse().unwrap()).unwrap();
    assert_eq!(node.delete("/api/vhosts/shop", None), 204);
    let error = end(&mut marie);
    assert!(error.contains("320 CONNECTION_FORCED - vhost 'shop' is deleted"), "{error}");
    assert_eq!(node.delete("/api/users/marie", None), 204);
    for path in ["/api/vhosts/shop", "/api/users/marie", "/api/permissions/shop/marie"] {
        assert_eq!((node.get(path).0, node.delete(path, None)), (404, 404), "{path}");
    }
}

#[test]
fn a_protected_virtual_host_is_deleted_once_it_is_not_protected_any_more() {
    let node = Node::start();
    let set = |method: &str, vhost: &str| {
        let mut stream = node.raw();
        write!(
            stream,
            "{method} /api/vhosts/{vhost}/deletion/protection HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n"
        )
        .unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer.split(' ').nth(1).unwrap().to_owned()
    };
    let body = json!({ "description": "orders", "tags": "a" });
    assert_eq!(node.put("/api/vhosts/shop", &body), 201);
    assert_eq!((set("POST", "shop"), set("POST", "nowhere")), ("204".to_owned(), "404".to_owned()));
    let shown = || {
        let vhost = node.get("/api/vhosts/shop").1;
        ["description", "tags", "protected_from_deletion"].map(|field| vhost[field].clone())
    };
    assert_eq!(shown(), [json!("orders"), json!(["a"]), json!(true)]);
    assert_eq!(node.delete("/api/vhosts/shop", None), 412);
    assert_eq!(set("DELETE", "shop"), "204");
    assert_eq!(shown(), [json!("orders"), json!(["a"]), json!(false)]);
    assert_eq!(node.delete("/api/vhosts/shop", None), 204);
}

#[test]
fn a_body_that_is_not_what_is_expected_changes_nothing() {
    let node = Node::start();
    let before = node.server.node();
    for (path, body) in [
        ("/api/users/x", "nonsense"),
        ("/api/users/x", "[]"),
        ("/api/users/x", r#"{"password":"a","password_hash":"b"}"#),
        ("/api/users/x", r#"{"password_hash":"too short"}"#),
        ("/api/users/x", r#"{"password_hash":"a","hashing_algorithm":"md5"}"#),
        ("/api/users/x", r#"{"password":"a","hashing_algorithm":"md5"}"#),
        ("/api/users/x", r#"{"password":"a","tags":5}"#),
        ("/api/permissions/%2F/guest", r#"{"configure":".*"}"#),
        ("/api/permissions/%2F/guest", r#"{"configure":"(","write":"","read":""}"#),
        ("/api/vhosts/x", r#"{"default_queue_type":"fast"}"#),
        ("/api/vhost-limits/%2F/max-queues", r#"{"value":"many"}"#),
        ("/api/global-parameters/x", "{}"),
        ("/api/policies/%2F/x", r#"{"pattern":"^q","definition":{}}"#),
        ("/api/policies/%2F/x", r#"{"pattern":"(","definition":{"max-length":5}}"#),
        ("/api/policies/%2F/x", r#"{"pattern":"^q","definition":{"max-length":[5]}}"#),
        ("/api/policies/%2F/x", r#"{"pattern":"^q","definition":{"max-length":5},"apply-to":"rabbits"}"#),
        ("/api/operator-policies/%2F/x", r#"{"pattern":"^q","definition":{"dead-letter-exchange":"x"}}"#),
    ] {
        let (status, answer) = Client::new(&node.folder).unwrap().put(path, body.to_owned()).unwrap();
        let answer: Value = serde_json::from_slice(&answer).unwrap();
        assert_eq!((status.as_u16(), &answer["error"]), (400, &json!("bad_request")), "{path} {body}: {answer}");
    }
    let large = json!({ "password": "x".repeat(3_000_000) });
    for path in ["/api/users/x", "/api/users/x", "/api/overview", "/nowhere"] {
        assert_eq!(node.put(path, &large), 413, "{path}");
    }
    let long = format!("/api/users/{}", "x".repeat(256));
    assert_eq!(node.put(&long, &json!({ "password": "a" })), 400);
    assert_eq!(node.server.node(), before);
    assert_eq!(node.get("/api/policies").1, json!([]));
}

#[test]
fn a_body_that_is_too_large_is_refused_by_its_length_and_may_come_nevertheless() {
    let node = Node::start();
    let mut stream = node.raw();
    let length = 3_000_000;
    write!(stream, "PUT /api/users/x HTTP/1.1\r\nHost: localhost\r\nContent-Length: {length}\r\n\r\n").unwrap();
    let mut answer = [0; 12];
    stream.read_exact(&mut answer).unwrap();
    assert_eq!(&answer, b"HTTP/1.1 413", "before any of the body");
    stream.write_all(&vec![b'x'; length]).unwrap();
    let mut rest = String::new();
    stream.read_to_string(&mut rest).unwrap();
    assert!(rest.contains("a body has at most 2097152 bytes"), "{rest}");
}

/// The limit of docs/management.md, to the byte, however the bytes come.
#[test]
fn a_head_of_64_kib_is_read_and_a_byte_more_is_431() {
    let node = Node::start();
    for (bytes, status) in [(65_536, "200"), (65_537, "431"), (100_000, "431")] {
        for pieces in [1, 7] {
            let mut stream = node.raw();
            let head = |padding: usize| {
                format!(
                    "GET /api/overview HTTP/1.1\r\nHost: localhost\r\nX-Padding: {}\r\n\r\n",
                    "x".repeat(padding)
                )
            };
            let head = head(bytes - head(0).len());
            assert_eq!(head.len(), bytes);
            for piece in head.as_bytes().chunks(bytes.div_ceil(pieces)) {
                // Who has heard that it is too much need not be heard out.
                let _ = stream.write_all(piece);
            }
            let mut answer = [0; 12];
            stream.read_exact(&mut answer).unwrap();
            assert_eq!(std::str::from_utf8(&answer).unwrap(), format!("HTTP/1.1 {status}"), "{bytes} in {pieces}");
        }
    }
}

#[test]
fn a_body_behind_a_long_head_is_read_to_its_end() {
    let node = Node::start();
    let body = json!({ "password": "x".repeat(200_000), "tags": "" }).to_string();
    let mut stream = node.raw();
    let (length, padding) = (body.len(), "x".repeat(60_000));
    let head = format!("PUT /api/users/long HTTP/1.1\r\nHost: localhost\r\nX-Padding: {padding}\r\n");
    stream.write_all(format!("{head}Content-Length: {length}\r\n\r\n{body}").as_bytes()).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 201"), "{answer}");
}

#[test]
fn policies_are_put_take_effect_and_are_deleted() {
    let node = Node::start();
    let mut connection = node.amqp();
    declare(&mut connection, ["q1".to_owned(), "other".to_owned()].into_iter());
    let policy =
        json!({ "pattern": "^q", "definition": { "max-length": 100, "overflow": "drop-head" }, "priority": 7 });
    assert_eq!(node.put("/api/policies/%2F/p", &policy), 201);
    assert_eq!(node.put("/api/policies/%2F/p", &policy), 204);
    let operator = json!({ "pattern": ".*", "definition": { "max-length": 50 }, "apply-to": "queues" });
    assert_eq!(node.put("/api/operator-policies/%2F/o", &operator), 201);
    let shown = json!({
        "vhost": "/", "name": "p", "pattern": "^q", "apply-to": "all", "priority": 7,
        "definition": { "max-length": 100, "overflow": "drop-head" },
    });
    assert_eq!(node.get("/api/policies/%2F/p"), (200, shown.clone()));
    assert_eq!((node.get("/api/policies").1, node.get("/api/policies/%2F").1), (json!([shown]), json!([shown])));
    assert_eq!(node.get("/api/operator-policies").1[0]["name"], json!("o"));
    let queue = node.get("/api/queues/%2F/q1").1;
    assert_eq!((&queue["policy"], &queue["operator_policy"]), (&json!("p"), &json!("o")));
    assert_eq!(queue["effective_policy_definition"], json!({ "max-length": 50, "overflow": "drop-head" }));
    assert_eq!(node.get("/api/queues/%2F/other").1["policy"], Value::Null);
    assert_eq!(node.delete("/api/policies/%2F/p", None), 204);
    assert_eq!(node.get("/api/queues/%2F/q1").1["policy"], Value::Null);
    for path in ["/api/policies/%2F/p", "/api/policies/nowhere/p", "/api/policies/nowhere"] {
        assert_eq!(node.get(path).0, 404, "{path}");
    }
    assert_eq!(
        (node.delete("/api/policies/%2F/p", None), node.put("/api/policies/nowhere/p", &policy)),
        (404, 404)
    );
}
