//! Definitions that a broker loads and exports.

#![expect(clippy::unwrap_used, reason = "a test that cannot talk to the broker has failed")]

use std::sync::atomic::{AtomicBool, Ordering};

use leveret_broker::node::Origin;
use leveret_management::definitions::{Definitions, LoadError, Loaded, export, load};
use leveret_server::{Beginning, Prepared, Server, ServerConfig, Storage};
use serde_json::{Value, json};
use tokio::runtime::Runtime;

/// A broker that accepts nobody, with the file loaded so many times.
fn loaded(runtime: &Runtime, file: &Value) -> (Prepared, Result<Loaded, LoadError>) {
    let beginning = Beginning::Nothing;
    let broker = runtime.block_on(Server::prepare(ServerConfig { beginning, ..ServerConfig::default() })).unwrap();
    let result = load_into(runtime, &broker, file);
    (broker, result)
}

fn load_into(runtime: &Runtime, broker: &Prepared, file: &Value) -> Result<Loaded, LoadError> {
    let definitions = Definitions::parse(file.to_string().as_bytes()).unwrap();
    runtime.block_on(load(&broker.admin(), definitions, |_, _| {}))
}

/// Everything that a file can say, as an export says it.
fn whole() -> Value {
    json!({
        "product_name": "leveret", "product_version": env!("CARGO_PKG_VERSION"),
        "users": [{
            "name": "marie", "password_hash": "kI3GCqW5JLMJa4iX1lo7X4D6XbYqlLgxIs30+P6tENUV2POR",
            "hashing_algorithm": "rabbit_password_hashing_sha256", "tags": ["management"], "limits": {"max-channels": 9},
        }],
        "vhosts": [{
            "name": "shop", "description": "what they sell", "tags": ["a"], "default_queue_type": "quorum",
            "metadata": {
                "description": "what they sell", "tags": ["a"], "default_queue_type": "quorum",
                "protected_from_deletion": true,
            },
        }],
        "permissions": [{"user": "marie", "vhost": "shop", "configure": "", "write": "^a", "read": ".*"}],
        "topic_permissions": [
            {"user": "marie", "vhost": "shop", "exchange": "amq.topic", "write": "^{username}", "read": ".*"},
        ],
        "parameters": [
            {"component": "vhost-limits", "name": "limits", "vhost": "shop", "value": {"max-queues": 7}},
            {
                "component": "operator_policy", "name": "op", "vhost": "shop",
                "value": {"pattern": "", "apply-to": "queues", "priority": 1, "definition": {"max-length": 100}},
            },
        ],
        "global_parameters": [{"name": "color", "value": {"of": ["brown", 1]}}],
        "policies": [{
            "name": "ttl", "vhost": "shop", "pattern": "^q", "apply-to": "queues", "priority": -3,
            "definition": {"message-ttl": 1000},
        }],
        "exchanges": [{
            "name": "x", "vhost": "shop", "type": "topic", "durable": true, "auto_delete": false, "internal": true,
            "arguments": {"alternate-exchange": "amq.fanout"},
        }, {
            "name": "later", "vhost": "shop", "type": "x-delayed-message", "durable": true, "auto_delete": false,
            "internal": false, "arguments": {"x-delayed-type": "topic"},
        }],
        "queues": [
            {
                "name": "amq.gen-kept", "vhost": "shop", "durable": true, "auto_delete": true, "type": "classic",
                "arguments": {"x-queue-type": "classic"},
            },
            {
                "name": "q", "vhost": "shop", "durable": true, "auto_delete": false, "type": "quorum",
                "arguments": {"x-dead-letter-exchange": "x", "x-queue-type": "quorum"},
            },
        ],
        "bindings": [
            {
                "source": "amq.headers", "vhost": "shop", "destination": "x", "destination_type": "exchange",
                "routing_key": "", "arguments": {"x-match": "any", "n": 1},
            },
            {
                "source": "x", "vhost": "shop", "destination": "q", "destination_type": "queue", "routing_key": "a.#",
                "arguments": {},
            },
        ],
    })
}

fn sorted(mut file: Value) -> Value {
    for list in file.as_object_mut().unwrap().values_mut().filter_map(Value::as_array_mut) {
        list.sort_by_key(Value::to_string);
    }
    file
}

#[test]
fn what_is_exported_is_what_was_loaded_and_loading_it_again_changes_nothing() {
    let runtime = Runtime::new().unwrap();
    let (broker, result) = loaded(&runtime, &whole());
    assert_eq!(result, Ok(Loaded { users: 1, vhosts: 1, objects: 8, ..Loaded::default() }));
    assert_eq!(sorted(export(&broker.admin())), sorted(whole()));
    assert_eq!(load_into(&runtime, &broker, &whole()), result);
    let again = export(&broker.admin());
    assert_eq!(sorted(again.clone()), sorted(whole()));
    // And so does what was exported, in another broker.
    let (other, result) = loaded(&runtime, &again);
    assert!(result.is_ok(), "{result:?}");
    assert_eq!(export(&other.admin()), again);
    runtime.block_on(broker.shutdown());
    runtime.block_on(other.shutdown());
}

/// RabbitMQ hashes it as its own configuration says, whatever stands beside it.
#[test]
fn a_password_is_hashed_as_what_stands_beside_it_says() {
    let runtime = Runtime::new().unwrap();
    let file = |algorithm: &str| json!({"users": [{"name": "a", "password": "b", "hashing_algorithm": algorithm}, {"name": "c", "password": "d"}]});
    for (algorithm, hashed) in [
        ("rabbit_password_hashing_sha512", "rabbit_password_hashing_sha512"),
        ("rabbit_password_hashing_sha256", "rabbit_password_hashing_sha256"),
        ("rabbit_password_hashing_md5", "rabbit_password_hashing_sha256"),
    ] {
        let (broker, result) = loaded(&runtime, &file(algorithm));
        assert!(result.is_ok(), "{result:?}");
        let users = export(&broker.admin())["users"].clone();
        let algorithms = [&users[0]["hashing_algorithm"], &users[1]["hashing_algorithm"]];
        assert_eq!(algorithms, [hashed, "rabbit_password_hashing_sha256"], "{users}");
        let node = broker.admin().users_and_vhosts();
        assert!(node.log_in("a", b"b", Origin::Remote).is_ok() && node.log_in("a", b"d", Origin::Remote).is_err());
        runtime.block_on(broker.shutdown());
    }
}

/// RabbitMQ 3 says it only beside the arguments.
#[test]
fn a_classic_queue_is_one_also_where_another_type_is_the_default() {
    let runtime = Runtime::new().unwrap();
    let file = json!({
        "vhosts": [{"name": "shop", "default_queue_type": "quorum"}],
        "queues": [{"name": "q", "vhost": "shop", "durable": true, "type": "classic", "arguments": {}}],
    });
    let (broker, result) = loaded(&runtime, &file);
    assert_eq!(result, Ok(Loaded { vhosts: 1, objects: 1, ..Loaded::default() }));
    assert_eq!(export(&broker.admin())["queues"][0]["type"], "classic");
    assert_eq!(load_into(&runtime, &broker, &file), result, "and loading it again finds it as it is");
    runtime.block_on(broker.shutdown());
}

#[test]
fn a_file_that_only_names_a_virtual_host_leaves_what_was_said_of_it() {
    let runtime = Runtime::new().unwrap();
    let (broker, _) = loaded(&runtime, &whole());
    let before = export(&broker.admin())["vhosts"].clone();
    assert!(load_into(&runtime, &broker, &json!({"vhosts": [{"name": "shop"}]})).is_ok());
    assert_eq!(export(&broker.admin())["vhosts"], before, "it stays protected from deletion, for example");
    runtime.block_on(broker.shutdown());
}

/// Nothing at all: also what comes before the fault.
#[test]
fn a_file_with_a_fault_is_refused_as_a_whole_with_its_path() {
    let runtime = Runtime::new().unwrap();
    let (vhost, queue) = (json!([{"name": "v"}]), json!({"name": "q", "vhost": "v", "durable": true}));
    let with = |field: &str, value: Value| {
        let mut file = json!({"vhosts": vhost, "queues": [queue]});
        file.as_object_mut().unwrap().insert(field.into(), value);
        file
    };
    let bound = |source: &str, destination: &str, arguments: Value| {
        json!([{
            "source": source, "vhost": "v", "destination": destination, "destination_type": "queue",
            "routing_key": "", "arguments": arguments,
        }])
    };
    let queues =
        |arguments: Value| json!([queue, {"name": "r", "vhost": "v", "durable": true, "arguments": arguments}]);
    for (file, path) in [
        (
            with("queues", json!([queue, {"name": "r", "vhost": "w", "durable": true}])),
            "queues[1].vhost: virtual host 'w' ",
        ),
        (
            with("queues", queues(json!({"x-max-length": -1}))),
            "queues[1]: PRECONDITION_FAILED - invalid arg 'x-max-length'",
        ),
        (with("exchanges", json!([{"name": "", "vhost": "v", "type": "direct"}])), "exchanges[0]: ACCESS_REFUSED"),
        (with("bindings", bound("nowhere", "q", json!({}))), "bindings[0]: NOT_FOUND - no exchange 'nowhere'"),
        (with("bindings", bound("amq.fanout", "r", json!({}))), "bindings[0]: NOT_FOUND - no queue 'r'"),
        (
            with("bindings", bound("amq.headers", "q", json!({"x-match": "most"}))),
            "bindings[0]: PRECONDITION_FAILED",
        ),
        (
            with("permissions", json!([{"user": "u", "vhost": "v", "configure": "", "write": "", "read": ""}])),
            "permissions[0]: user 'u' does not exist",
        ),
        (
            json!({
                "vhosts": vhost, "users": [{"name": "u"}],
                "permissions": [{"user": "u", "vhost": "v", "configure": "(?=a)", "write": "", "read": ""}],
            }),
            "permissions[0]: the pattern '(?=a)' for configure cannot be used: look-ahead and look-behind are not",
        ),
        (with("queues", json!(vec![queue.clone(); 1])), ""),
    ] {
        let (broker, result) = loaded(&runtime, &file);
        if path.is_empty() {
            assert!(result.is_ok(), "without a fault it is loaded");
        } else {
            let fault = result.unwrap_err().to_string();
            assert!(fault.starts_with(path), "{fault}\nfor {file}");
            assert!(broker.admin().users_and_vhosts().vhosts().is_empty(), "{path}");
        }
        runtime.block_on(broker.shutdown());
    }
}

/// Also with names in another order than those of the file, and of the virtual hosts that were there.
#[test]
fn what_was_loaded_into_new_virtual_hosts_is_there_after_the_next_start() {
    let (runtime, folder) = (Runtime::new().unwrap(), tempfile::tempdir().unwrap());
    let prepare = || {
        let (beginning, storage) = (Beginning::Nothing, Storage::Folder(folder.path().join("data")));
        runtime.block_on(Server::prepare(ServerConfig { beginning, storage, ..ServerConfig::default() })).unwrap()
    };
    let queue = |vhost: &str| json!({"name": "q", "vhost": vhost, "durable": true, "arguments": {}});
    let file = json!({
        "vhosts": [{"name": "c"}, {"name": "a"}, {"name": "b"}], "queues": [queue("a"), queue("b"), queue("c")],
    });
    let broker = prepare();
    assert_eq!(load_into(&runtime, &broker, &file), Ok(Loaded { vhosts: 3, objects: 3, ..Loaded::default() }));
    let before = export(&broker.admin());
    runtime.block_on(broker.shutdown());
    let broker = prepare();
    assert_eq!(export(&broker.admin()), before);
    runtime.block_on(broker.shutdown());
}

#[test]
fn what_exists_stays_as_it_is_and_may_be_bound() {
    let runtime = Runtime::new().unwrap();
    let queue =
        |length: u32| json!({"name": "q", "vhost": "v", "durable": true, "arguments": {"x-max-length": length}});
    let (broker, _) = loaded(&runtime, &json!({"vhosts": [{"name": "v"}], "queues": [queue(1)]}));
    let binding = json!({
        "source": "amq.fanout", "vhost": "v", "destination": "q", "destination_type": "queue", "routing_key": "",
    });
    let added = load_into(&runtime, &broker, &json!({"queues": [queue(2)], "bindings": [binding]})).unwrap();
    let [kept] = &*added.kept else { panic!("{added:?}") };
    assert!(kept.starts_with("queues[0]: PRECONDITION_FAILED - inequivalent arg 'x-max-length'"), "{kept}");
    let file = export(&broker.admin());
    assert_eq!(file["queues"][0]["arguments"]["x-max-length"], 1);
    assert_eq!(file["bindings"][0]["source"], "amq.fanout");
    runtime.block_on(broker.shutdown());
}

fn queue(name: &str) -> Value {
    json!({"name": name, "vhost": "v", "durable": true, "arguments": {}})
}

/// It has no binding of a queue that came too late to be in it.
#[test]
fn an_export_while_queues_are_declared_can_be_loaded() {
    let runtime = Runtime::new().unwrap();
    let many: Vec<_> = (0..3000).map(|n| queue(&format!("q{n}"))).collect();
    let (broker, _) = loaded(&runtime, &json!({"vhosts": [{"name": "v"}], "queues": many}));
    let is_over = AtomicBool::new(false);
    let files: Vec<_> = std::thread::scope(|scope| {
        scope.spawn(|| {
            for name in (0..).map(|n| format!("new{n}")).take_while(|_| !is_over.load(Ordering::Relaxed)) {
                let binding = json!({
                    "source": "amq.topic", "vhost": "v", "destination": name, "destination_type": "queue",
                    "routing_key": "k", "arguments": {},
                });
                load_into(&runtime, &broker, &json!({"queues": [queue(&name)], "bindings": [binding]})).unwrap();
            }
        });
        let files = (0..5).map(|_| export(&broker.admin())).collect();
        is_over.store(true, Ordering::Relaxed);
        files
    });
    for file in files {
        let (other, result) = loaded(&runtime, &file);
        assert_eq!(result.map(|loaded| loaded.refused), Ok(Vec::new()));
        runtime.block_on(other.shutdown());
    }
    runtime.block_on(broker.shutdown());
}

#[test]
fn fifty_thousand_queues_are_loaded_and_it_is_told_how_far() {
    let runtime = Runtime::new().unwrap();
    let many: Vec<_> = (0..50_000).map(|n| queue(&format!("q{n}"))).collect();
    let file = json!({"vhosts": [{"name": "v"}], "queues": many});
    let (broker, _) = loaded(&runtime, &json!({}));
    let (sender, heard) = std::sync::mpsc::channel();
    let definitions = Definitions::parse(file.to_string().as_bytes()).unwrap();
    let admin = broker.admin();
    let loading = load(&admin, definitions, move |done, all| sender.send((done, all)).unwrap());
    assert_eq!(runtime.block_on(loading), Ok(Loaded { vhosts: 1, objects: 50_000, ..Loaded::default() }));
    let heard: Vec<_> = heard.iter().collect();
    assert!(heard.len() > 50 && heard.is_sorted() && heard.last() == Some(&(50_000, 50_000)), "{heard:?}");
    assert_eq!(export(&broker.admin())["queues"].as_array().unwrap().len(), 50_000);
    runtime.block_on(broker.shutdown());
}

/// A rehearsal begins with nothing, so it does not count what there is.
#[test]
fn a_queue_beyond_the_limit_is_said_not_to_be_made() {
    let runtime = Runtime::new().unwrap();
    let limits = json!([{"component": "vhost-limits", "name": "limits", "vhost": "v", "value": {"max-queues": 1}}]);
    let file = json!({"vhosts": [{"name": "v"}], "parameters": limits, "queues": [queue("a")]});
    let (broker, _) = loaded(&runtime, &file);
    let added = load_into(&runtime, &broker, &json!({"queues": [queue("b")]})).unwrap();
    let [refused] = &*added.refused else { panic!("{added:?}") };
    assert!(refused.starts_with("queues[0]: PRECONDITION_FAILED - cannot declare queue 'b'"), "{refused}");
    assert_eq!(export(&broker.admin())["queues"].as_array().unwrap().len(), 1);
    runtime.block_on(broker.shutdown());
}
