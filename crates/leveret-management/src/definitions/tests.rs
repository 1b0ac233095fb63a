//! What a file of definitions may say.

use serde_json::json;

use super::*;

fn parse(value: &Value) -> Result<Definitions, String> {
    Definitions::parse(value.to_string().as_bytes()).map_err(|fault| fault.to_string())
}

#[test]
fn a_fault_is_named_with_its_path() {
    let queue = |arguments: Value| json!({"queues": [{"name": "q", "vhost": "/", "arguments": arguments}]});
    let policy = |pattern: &str, definition: Value| json!({"policies": [{"name": "p", "vhost": "/", "pattern": pattern, "definition": definition}]});
    let long = "x".repeat(256);
    for (file, text) in [
        (json!([]), "the file: [] is not an object"),
        (json!({"users": {}}), "users: {} is not a list"),
        (json!({"users": [{"name": "a"}, 7]}), "users[1]: 7 is not an object"),
        (json!({"users": [{}]}), "users[0].name: it is missing"),
        (json!({"users": [{"name": ""}]}), "users[0].name: a name must not be empty"),
        (json!({"users": [{"name": long}]}), "users[0].name: a name has at most 255 bytes"),
        (json!({"users": [{"name": "a", "tags": [1]}]}), "users[0].tags[0]: 1 is not a text"),
        (
            json!({"users": [{"name": "a", "password_hash": "AAAA"}]}),
            "users[0].password_hash: the hash of a password must be the base64 of 4 bytes of salt and 32 bytes of \
             rabbit_password_hashing_sha256",
        ),
        (
            json!({"users": [{"name": "a", "password_hash": "AAAA", "password": "b"}]}),
            "users[0].password: there is a password_hash, too; leave one of them out",
        ),
        (
            json!({"users": [{"name": "a", "limits": {"max-connections": "many"}}]}),
            "users[0].limits.max-connections: \"many\" is not a whole number",
        ),
        (json!({"permissions": [{"user": "a", "vhost": "/"}]}), "permissions[0].configure: it is missing"),
        (json!({"vhosts": [{"name": "v", "tags": true}]}), "vhosts[0].tags: true is not a list of texts"),
        (
            json!({"vhosts": [{"name": "v", "metadata": {"protected_from_deletion": "yes"}}]}),
            "vhosts[0].metadata.protected_from_deletion: \"yes\" is not true or false",
        ),
        (queue(json!([1])), "queues[0].arguments: [1] is not an object"),
        (
            policy("(", json!({"max-length": 1})),
            "policies[0].pattern: pattern should be regular expression but is invalid: unclosed group, at character 0",
        ),
        (policy("q", json!({})), "policies[0].definition: no policy provided"),
        (
            json!({"bindings": [{"source": "x", "vhost": "/", "destination": "q", "destination_type": "bucket"}]}),
            "bindings[0].destination_type: 'bucket' is neither queue nor exchange",
        ),
    ] {
        assert_eq!(parse(&file).map(drop), Err(text.to_owned()), "{file}");
    }
    let torn = Definitions::parse(b"{\n \"users\": [").unwrap_err();
    assert_eq!(torn.to_string(), "line 2, column 11: EOF while parsing a list");
    assert_eq!(Definitions::parse(b" \n").unwrap_err().to_string(), "the file: it is empty");
}

/// JSON leaves open which of the two counts.
#[test]
fn what_is_there_twice_is_a_fault_wherever_it_is() {
    for (text, fault) in [
        (
            r#"{"queues": [], "users": [], "queues": [7]}"#,
            "line 1, column 36: \"queues\" is there twice in one object",
        ),
        (
            "{\"queues\": [\n{\"name\": \"q\", \"name\": \"r\"}]}",
            "line 2, column 20: \"name\" is there twice in one object",
        ),
        (
            r#"{"global_parameters": [{"value": {"a": {"": 1, "": 1}}}]}"#,
            "line 1, column 49: \"\" is there twice in one object",
        ),
    ] {
        let error = Definitions::parse(text.as_bytes()).unwrap_err().to_string();
        assert_eq!(error, format!("{fault}; make one of them"));
    }
}

#[test]
fn every_kind_of_value_is_read_as_it_stands() {
    let text =
        r#"[null, true, -9223372036854775808, 18446744073709551615, 1.5, "\u00e9\n", [], {"a": {}, "b": [1]}]"#;
    assert_eq!(json::read(text.as_bytes()).unwrap(), serde_json::from_str::<Value>(text).unwrap());
    let deep = "[".repeat(200) + &"]".repeat(200);
    let error = json::read(deep.as_bytes()).unwrap_err().to_string();
    assert_eq!(error, "line 1, column 128: recursion limit exceeded");
}

#[test]
fn a_file_is_utf_8_with_a_mark_or_without_and_others_are_told_so() {
    let text = r#"{"users": [{"name": "marie"}]}"#;
    let utf_16: Vec<u16> = text.encode_utf16().collect();
    let utf_16 = |bytes: fn(u16) -> [u8; 2]| utf_16.iter().copied().flat_map(bytes).collect::<Vec<_>>();
    let (little, big) = (utf_16(u16::to_le_bytes), utf_16(u16::to_be_bytes));
    let marked = [b"\xEF\xBB\xBF", text.as_bytes()].concat();
    assert!(Definitions::parse(&marked).unwrap().has_users());
    assert_eq!(Definitions::parse(b"\xEF\xBB\xBF").unwrap_err().to_string(), "the file: it is empty");
    for bytes in [&little, &big, &[b"\xFF\xFE", &little[..]].concat(), &[b"\xFE\xFF", &big[..]].concat()] {
        let error = Definitions::parse(bytes).unwrap_err().to_string();
        assert_eq!(error, "the file: it is text in UTF-16 or UTF-32; save it as UTF-8");
    }
}

/// RabbitMQ: `rabbit_exchange:check_type/1` fails the import.
#[test]
fn an_exchange_of_a_type_that_nobody_has_is_a_fault() {
    let file = |kind: &str| json!({"exchanges": [{"name": "x", "vhost": "/", "type": kind}]});
    for kind in ["topik", "Topic", "x-rtopic"] {
        let text =
            format!("exchanges[0].type: unknown exchange type '{kind}'; correct it, or leave this exchange out");
        assert_eq!(parse(&file(kind)).map(drop), Err(text));
    }
    for kind in ["x-jms-topic", "x-federation-upstream"] {
        assert_eq!(parse(&file(kind)).unwrap().ignored(), [format!("exchanges[0]: exchanges of type {kind}")]);
    }
}

#[test]
fn what_leveret_has_not_got_is_listed_and_nothing_else_is() {
    let file = json!({
        "rabbit_version": "4.1.0",
        "users": [
            {"name": "old", "password_hash": "xx", "hashing_algorithm": "rabbit_password_hashing_md5", "tags": ""},
            {"name": "new", "password": "y", "hashing_algorithm": "rabbit_password_hashing_md5"},
            {"name": "none", "password_hash": "", "hashing_algorithm": "rabbit_password_hashing_sha256"},
        ],
        "vhosts": [{"name": "v", "default_queue_type": "stream", "metadata": {"color": "brown"}}],
        "parameters": [{"component": "shovel", "name": "s", "vhost": "v", "value": {}}],
        "policies": [
            {"name": "p", "vhost": "v", "pattern": "", "definition": {"ha-mode": "all"}},
            {"name": "r", "vhost": "v", "pattern": "", "definition": {"ha-mode": "all", "message-ttl": 1}},
        ],
        "exchanges": [{"name": "x", "vhost": "v", "type": "x-jms-topic"}],
        "queues": [
            {"name": "s", "vhost": "v", "arguments": {"x-queue-type": "stream"}},
            {"name": "q", "vhost": "v", "type": "quorum", "flavor": 7},
        ],
        "bindings": [
            {"source": "x", "vhost": "v", "destination": "q", "destination_type": "queue", "routing_key": ""},
            {"source": "amq.fanout", "vhost": "v", "destination": "s", "destination_type": "queue", "routing_key": ""},
            {"source": "", "vhost": "v", "destination": "q", "destination_type": "queue", "routing_key": "q"},
        ],
        "federation": null,
        "shovels": [],
        "z".repeat(1000): 1,
    });
    let definitions = parse(&file).unwrap();
    assert_eq!(
        definitions.ignored(),
        [
            "vhosts[0].default_queue_type: queues of type stream",
            "vhosts[0].metadata.color: nothing that Leveret knows",
            "users[0].hashing_algorithm: rabbit_password_hashing_md5; until 'old' has a new password, nobody logs in so",
            "users[1].hashing_algorithm: hashing algorithm 'rabbit_password_hashing_md5' is not supported; there are \
             rabbit_password_hashing_sha256 and rabbit_password_hashing_sha512; the password of 'new' is hashed with \
             rabbit_password_hashing_sha256",
            "parameters[0]: parameters of the component shovel",
            "policies[0].definition: 'ha-mode' is not supported: Leveret has no mirrored queues",
            "policies[0]: a policy of which nothing is left",
            "policies[1].definition: 'ha-mode' is not supported: Leveret has no mirrored queues",
            "exchanges[0]: exchanges of type x-jms-topic",
            "queues[0]: queues of type stream",
            "queues[1].flavor: nothing that Leveret knows",
            "bindings[0]: a binding of what is left out",
            "bindings[1]: a binding of what is left out",
            "shovels: nothing that Leveret knows",
            "zzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzz...: nothing that Leveret knows",
        ]
    );
    let kind = definitions.queues[0].what.arguments.as_table().get("x-queue-type");
    assert_eq!(kind, Some(Field::LongStr(b"quorum")));
    assert!(definitions.bindings.is_empty());
    let [At { what: policy, .. }] = &definitions.policies[..] else { panic!("{:?}", definitions.policies) };
    assert_eq!(policy.source().definition.as_table().get("message-ttl"), Some(Field::I64(1)));
}

#[test]
fn arguments_of_every_kind_become_a_field_table() {
    let (arrays, latest) = (json!([1, ["x"], {"y": 2}]), u64::MAX);
    let arguments =
        json!({"n": -1, "T": latest, "f": 1.5, "t": "x", "b": true, "v": null, "a": arrays, "o": {"z": []}});
    let file = json!({"queues": [{"name": "q", "vhost": "/", "arguments": arguments}]});
    let definitions = parse(&file).unwrap();
    let table = definitions.queues[0].what.arguments.as_table();
    assert_eq!(table.get("n"), Some(Field::I64(-1)));
    assert_eq!(table.get("T"), Some(Field::Timestamp(latest)), "no other type has room for it");
    assert_eq!(table.get("f"), Some(Field::F64(1.5)));
    assert_eq!(table.get("v"), Some(Field::Void));
    let shown =
        serde_json::to_value(leveret_broker::views::Fields(definitions.queues[0].what.arguments.clone())).unwrap();
    assert_eq!(shown, arguments, "and back");
    let deep = (0..100).fold(json!(1), |inner, _| json!({"a": inner}));
    let file = json!({"queues": [{"name": "q", "vhost": "/", "arguments": {"a": deep}}]});
    assert!(parse(&file).unwrap_err().ends_with("tables are nested at most 64 deep"));
}
