//! Where a message would go, as a broker tells it.

#![expect(clippy::unwrap_used, reason = "a test that cannot talk to the broker has failed")]

use leveret_amqp::{FieldTable, ShortString, Value as Field};
use leveret_management::definitions::{Definitions, export, load};
use leveret_server::{Beginning, Prepared, Server, ServerConfig};
use serde_json::{Value, json};
use tokio::runtime::Runtime;

/// Orders by topic, with an alternate exchange, a policy and dead letters.
fn topology() -> Value {
    let queue =
        |name: &str, arguments: Value| json!({"name": name, "vhost": "/", "durable": true, "arguments": arguments});
    let exchange = |name: &str, kind: &str, arguments: Value| json!({"name": name, "vhost": "/", "type": kind, "durable": true, "arguments": arguments});
    let binding = |source: &str, kind: &str, destination: &str, key: &str, arguments: Value| {
        json!({
            "source": source, "vhost": "/", "destination": destination, "destination_type": kind, "routing_key": key,
            "arguments": arguments,
        })
    };
    json!({
        "vhosts": [{"name": "/"}],
        "users": [{"name": "marie", "password": "secret"}],
        "permissions": [{"user": "marie", "vhost": "/", "configure": "", "write": "^orders$", "read": ""}],
        "topic_permissions": [{"user": "marie", "vhost": "/", "exchange": "orders", "write": "^eu\\.", "read": ""}],
        "policies": [{
            "vhost": "/", "name": "short", "pattern": "^eu", "apply-to": "queues",
            "definition": {"max-length": 10, "message-ttl": 60000, "dead-letter-exchange": "dlx"},
        }],
        "exchanges": [
            exchange("orders", "topic", json!({"alternate-exchange": "lost"})),
            exchange("lost", "fanout", json!({})),
            exchange("dlx", "direct", json!({})),
            exchange("kinds", "headers", json!({})),
        ],
        "queues": [
            queue("eu-orders", json!({})),
            queue("all", json!({"x-queue-type": "quorum"})),
            queue("unmatched", json!({})),
            queue("dead", json!({})),
            queue("books", json!({})),
        ],
        "bindings": [
            binding("orders", "queue", "eu-orders", "eu.*", json!({})),
            binding("orders", "queue", "all", "#.new", json!({})),
            binding("orders", "exchange", "kinds", "#.new", json!({})),
            binding("lost", "queue", "unmatched", "", json!({})),
            binding("dlx", "queue", "dead", "eu.new", json!({})),
            binding("kinds", "queue", "books", "", json!({"kind": "book"})),
        ],
    })
}

struct Scene {
    runtime: Runtime,
    broker: Prepared,
}

impl Scene {
    fn new() -> Self {
        let runtime = Runtime::new().unwrap();
        let beginning = Beginning::Nothing;
        let config = ServerConfig { beginning, ..ServerConfig::default() };
        let broker = runtime.block_on(Server::prepare(config)).unwrap();
        let definitions = Definitions::parse(topology().to_string().as_bytes()).unwrap();
        let loaded = runtime.block_on(load(&broker.admin(), definitions, |_, _| {})).unwrap();
        assert!(loaded.kept.is_empty(), "{loaded:?}");
        Scene { runtime, broker }
    }

    /// What is told of a message with these headers.
    fn explain(&self, exchange: &str, key: &str, headers: &[(&str, Field<'_>)], user: Option<&str>) -> Value {
        let short = |text: &str| ShortString::new(text).unwrap();
        let headers = FieldTable::build(|table| {
            for (name, value) in headers {
                table.field(name, *value);
            }
        });
        let user = user.map(|user| short(user).into());
        let admin = self.broker.admin();
        let explained = self.runtime.block_on(admin.explain("/", short(exchange), short(key), headers, user));
        serde_json::to_value(explained.unwrap()).unwrap()
    }
}

fn names(list: &Value) -> Vec<&str> {
    list.as_array().unwrap().iter().map(|step| step["name"].as_str().unwrap()).collect()
}

#[test]
fn bindings_that_match_are_named_with_the_queues_behind_and_what_is_in_force_there() {
    let scene = Scene::new();
    let book = [("kind", Field::LongStr(b"book"))];
    let told = scene.explain("orders", "eu.new", &book, Some("marie"));
    assert_eq!(told["refused"], Value::Null);
    assert_eq!(names(&told["exchanges"]), ["orders", "kinds"]);
    let orders = &told["exchanges"][0];
    let matched: Vec<_> = orders["matched"].as_array().unwrap().iter().map(|step| &step["why"]).collect();
    assert_eq!(matched, ["'eu.*' matches 'eu.new'", "'#.new' matches 'eu.new'", "'#.new' matches 'eu.new'"]);
    assert_eq!((&orders["alternate_exchange"], &orders["takes_alternate"]), (&json!("lost"), &json!(false)));
    assert_eq!(names(&told["queues"]), ["eu-orders", "all", "books"]);
    assert_eq!(
        told["queues"][0],
        json!({
            "name": "eu-orders", "type": "classic", "messages": 0, "consumers": 0, "policy": "short",
            "message_ttl": 60000, "max_length": 10, "overflow": "drop-head",
            "dead_letters": {"exchange": "dlx", "routing_key": "eu.new", "exists": true, "queues": ["dead"], "complete": true},
        })
    );
    assert_eq!(told["queues"][1]["delivery_limit"], 20);
    // Another header, and the headers exchange leads nowhere.
    let told = scene.explain("orders", "eu.new", &[("kind", Field::LongStr(b"toy"))], None);
    assert_eq!(names(&told["queues"]), ["eu-orders", "all"]);
    assert_eq!(told["permissions"], json!([]));
}

#[test]
fn the_alternate_exchange_is_taken_where_nothing_matches() {
    let scene = Scene::new();
    let told = scene.explain("orders", "us.old", &[], None);
    assert_eq!(names(&told["exchanges"]), ["orders", "lost"]);
    assert_eq!(told["exchanges"][0]["takes_alternate"], true);
    assert_eq!(names(&told["queues"]), ["unmatched"]);
}

#[test]
fn a_user_is_told_what_is_missing_and_where_it_would_go_all_the_same() {
    let scene = Scene::new();
    let told = scene.explain("orders", "us.new", &[], Some("marie"));
    assert_eq!(
        told["permissions"],
        json!([
            {"permission": "write", "resource": "exchange 'orders'", "granted": true},
            {"permission": "write", "resource": "topic 'us.new' in exchange topic 'orders'", "granted": false},
        ])
    );
    assert_eq!(
        told["refused"],
        "ACCESS_REFUSED - write access to topic 'us.new' in exchange topic 'orders' in vhost '/' refused for user 'marie'"
    );
    assert_eq!(names(&told["queues"]), ["all"]);
    let told = scene.explain("", "dead", &[], Some("marie"));
    assert_eq!(told["permissions"][0]["resource"], "exchange 'amq.default'");
    assert_eq!(names(&told["queues"]), ["dead"]);
    let told = scene.explain("nowhere", "k", &[], None);
    assert_eq!(told["refused"], "NOT_FOUND - no exchange 'nowhere' in vhost '/'");
}

#[test]
fn a_binding_that_matches_is_named_among_thousands_to_the_same_queue() {
    let scene = Scene::new();
    let binding = |key: String| {
        json!({
            "source": "orders", "vhost": "/", "destination": "books", "destination_type": "queue", "routing_key": key,
            "arguments": {},
        })
    };
    let many: Vec<_> = (0..2000).map(|n| binding(format!("as.{n}"))).chain([binding("zz.#".into())]).collect();
    let many = Definitions::parse(json!({"bindings": many}).to_string().as_bytes()).unwrap();
    scene.runtime.block_on(load(&scene.broker.admin(), many, |_, _| {})).unwrap();
    let told = scene.explain("orders", "zz.top", &[], None);
    assert_eq!(names(&told["queues"]), ["books"]);
    assert_eq!(told["exchanges"][0]["matched"][0]["routing_key"], "zz.#");
}

#[test]
fn the_delay_of_a_message_is_told_where_it_waits() {
    let scene = Scene::new();
    let delayed = json!({
        "exchanges": [{
            "name": "later", "vhost": "/", "type": "x-delayed-message", "durable": true,
            "arguments": {"x-delayed-type": "fanout"},
        }],
        "bindings": [
            {"source": "later", "vhost": "/", "destination": "books", "destination_type": "queue", "routing_key": "",
             "arguments": {}},
            {"source": "dlx", "vhost": "/", "destination": "later", "destination_type": "exchange", "routing_key": "k",
             "arguments": {}},
        ],
    });
    let file = Definitions::parse(delayed.to_string().as_bytes()).unwrap();
    scene.runtime.block_on(load(&scene.broker.admin(), file, |_, _| {})).unwrap();
    let note = |exchange: &str, headers: &[(&str, Field<'_>)]| {
        let told = scene.explain(exchange, "k", headers, None);
        assert_eq!(names(&told["queues"]), ["books"], "it is told of as it is when it goes on");
        told["exchanges"].as_array().unwrap().last().unwrap()["note"].as_str().unwrap().to_owned()
    };
    assert!(note("later", &[]).starts_with("a message with the header x-delay waits here first"));
    let delay = [("x-delay", Field::I32(5000))];
    assert!(note("later", &delay).starts_with("it waits here for 5000 ms"));
    assert!(note("later", &[("x-delay", Field::LongStr(b"soon"))]).ends_with("it does not wait"));
    assert_eq!(note("dlx", &delay), note("later", &delay), "also of what comes from another exchange");
}

#[test]
fn an_explanation_changes_nothing() {
    let scene = Scene::new();
    let before = export(&scene.broker.admin());
    let told = scene.explain("orders", "eu.new", &[], None);
    assert_eq!(scene.explain("orders", "eu.new", &[], None), told, "and there is no message in any queue");
    assert_eq!(export(&scene.broker.admin()), before);
    // Where a message that is published stays behind.
    let add = |file: Value| {
        let file = Definitions::parse(file.to_string().as_bytes()).unwrap();
        scene.runtime.block_on(load(&scene.broker.admin(), file, |_, _| {})).unwrap();
    };
    let recent =
        json!({"name": "recent", "vhost": "/", "type": "x-recent-history", "durable": true, "arguments": {}});
    add(json!({"exchanges": [recent]}));
    scene.explain("recent", "k", &[], None);
    add(json!({"bindings": [{
        "source": "recent", "vhost": "/", "destination": "books", "destination_type": "queue", "routing_key": "",
        "arguments": {},
    }]}));
    assert_eq!(scene.explain("", "books", &[], None)["queues"][0]["messages"], 0, "nothing was kept");
}
