//! Definitions of a running node, as RabbitMQ writes them.

use leveret_broker::Node;
use leveret_broker::node::password::HashingAlgorithm;
use leveret_broker::node::{User, Vhost};
use leveret_broker::vhost::policy::{PolicyKind, PolicySource};
use leveret_broker::views::Fields;
use leveret_server::Admin;
use serde_json::{Map, Value, json};

/// All that is durable of what was declared. Takes one virtual host after the other, in steps: what changes meanwhile may
/// be in it or not.
pub fn export(admin: &Admin) -> Value {
    let (node, settings) = (admin.users_and_vhosts(), admin.settings());
    let mut file = Map::new();
    file.insert("product_name".into(), settings.product.clone().into());
    file.insert("product_version".into(), settings.version.clone().into());
    let each = |list: Vec<Value>| Value::Array(list);
    file.insert(
        "users".into(),
        each(node.users().iter().map(|(name, known)| user(name.as_str(), known)).collect()),
    );
    file.insert(
        "vhosts".into(),
        each(node.vhosts().iter().map(|(name, known)| vhost(name.as_str(), known)).collect()),
    );
    file.insert("permissions".into(), each(permissions(&node)));
    file.insert("topic_permissions".into(), each(topic_permissions(&node)));
    file.insert("parameters".into(), each(parameters(admin, &node)));
    let parameters = node.global_parameters().iter();
    let parameters = parameters.map(|(name, value)| {
        json!({"name": name.as_str(), "value": serde_json::from_str::<Value>(value).unwrap_or(Value::Null)})
    });
    file.insert("global_parameters".into(), parameters.collect());
    file.insert("policies".into(), each(policies(admin, &node)));
    let queues = admin.queues(None).flatten().filter(|queue| queue.durable && !queue.exclusive);
    let queues = queues.map(|queue| {
        json!({
            "name": queue.name.as_str(), "vhost": queue.vhost.as_str(), "durable": true,
            "auto_delete": queue.auto_delete, "type": queue.queue_type, "arguments": queue.arguments,
        })
    });
    file.insert("queues".into(), each(sorted(queues.collect())));
    // Every virtual host has these by itself.
    let is_own = |name: &str| name.is_empty() || name.starts_with("amq.");
    let exchanges = admin.exchanges(None).flatten();
    let exchanges = exchanges.filter(|exchange| exchange.durable && !is_own(exchange.name.as_str()));
    let exchanges = exchanges.map(|exchange| {
        json!({
            "name": exchange.name.as_str(), "vhost": exchange.vhost.as_str(), "type": exchange.kind, "durable": true,
            "auto_delete": exchange.auto_delete, "internal": exchange.internal, "arguments": exchange.arguments,
        })
    });
    file.insert("exchanges".into(), each(sorted(exchanges.collect())));
    file.insert("bindings".into(), each(bindings(admin)));
    Value::Object(file)
}

fn user(name: &str, user: &User) -> Value {
    let (hash, algorithm) = match &user.password {
        Some(password) => (password.to_base64(), password.algorithm()),
        None => (String::new(), HashingAlgorithm::default()),
    };
    json!({
        "name": name, "password_hash": hash, "hashing_algorithm": algorithm.as_str(), "tags": user.tags,
        "limits": limits([
            ("max-connections", user.limits.max_connections), ("max-channels", user.limits.max_channels),
        ]),
    })
}

fn limits<const N: usize>(limits: [(&str, Option<u64>); N]) -> Value {
    let set = limits.into_iter().filter_map(|(name, limit)| Some((name.to_owned(), Value::from(limit?))));
    Value::Object(set.collect())
}

fn vhost(name: &str, vhost: &Vhost) -> Value {
    let (metadata, kind) = (&vhost.metadata, vhost.metadata.default_queue_type.as_str());
    json!({
        "name": name, "description": metadata.description, "tags": metadata.tags, "default_queue_type": kind,
        "metadata": {
            "description": metadata.description, "tags": metadata.tags, "default_queue_type": kind,
            "protected_from_deletion": metadata.protected_from_deletion,
        },
    })
}

fn permissions(node: &Node) -> Vec<Value> {
    let of_user = node.users().iter().flat_map(|(user, known)| {
        known.permissions().iter().map(move |(vhost, permissions)| {
            json!({
                "user": user.as_str(), "vhost": vhost.as_str(), "configure": permissions.configure.as_str(),
                "write": permissions.write.as_str(), "read": permissions.read.as_str(),
            })
        })
    });
    of_user.collect()
}

fn topic_permissions(node: &Node) -> Vec<Value> {
    let mut list = Vec::new();
    for (user, known) in node.users() {
        for (vhost, topics) in known.topic_permissions() {
            list.extend(topics.iter().map(|(exchange, permissions)| {
                json!({
                    "user": user.as_str(), "vhost": vhost.as_str(), "exchange": exchange.as_str(),
                    "write": permissions.write(), "read": permissions.read(),
                })
            }));
        }
    }
    list
}

/// RabbitMQ: limits of virtual hosts and operator policies are parameters, too.
fn parameters(admin: &Admin, node: &Node) -> Vec<Value> {
    let mut list = Vec::new();
    for (name, vhost) in node.vhosts() {
        let value =
            limits([("max-connections", vhost.limits.max_connections), ("max-queues", vhost.limits.max_queues)]);
        if value != json!({}) {
            list.push(json!({
                "component": "vhost-limits", "name": "limits", "vhost": name.as_str(), "value": value,
            }));
        }
        for source in admin.policies(name.as_str(), PolicyKind::OperatorPolicy) {
            list.push(json!({
                "component": "operator_policy", "name": source.name.as_str(), "vhost": name.as_str(),
                "value": policy(source),
            }));
        }
    }
    list
}

fn policies(admin: &Admin, node: &Node) -> Vec<Value> {
    let mut list = Vec::new();
    for vhost in node.vhosts().keys() {
        for source in admin.policies(vhost.as_str(), PolicyKind::Policy) {
            let (name, mut value) = (source.name.to_string(), policy(source));
            if let Value::Object(fields) = &mut value {
                fields.insert("name".into(), name.into());
                fields.insert("vhost".into(), vhost.as_str().into());
            }
            list.push(value);
        }
    }
    list
}

fn policy(source: PolicySource) -> Value {
    json!({
        "pattern": source.pattern, "apply-to": source.apply_to.as_str(), "priority": source.priority,
        "definition": Fields(source.definition),
    })
}

/// Bindings between durable ends, but for those to the default exchange, which every queue has.
fn bindings(admin: &Admin) -> Vec<Value> {
    let is_durable =
        |vhost: &str, exchange: &str| admin.exchange(vhost, exchange).is_some_and(|exchange| exchange.durable);
    let bindings = admin.bindings(None).flatten().filter(|binding| {
        let vhost = binding.vhost.as_str();
        let to_queue =
            || admin.queue(vhost, &binding.destination).is_some_and(|queue| queue.durable && !queue.exclusive);
        let is_kept = || match binding.destination_type {
            "queue" => to_queue(),
            _ => is_durable(vhost, &binding.destination),
        };
        !binding.source.as_str().is_empty() && is_durable(vhost, binding.source.as_str()) && is_kept()
    });
    let bindings = bindings.map(|binding| {
        json!({
            "source": binding.source.as_str(), "vhost": binding.vhost.as_str(), "destination": binding.destination,
            "destination_type": binding.destination_type, "routing_key": binding.routing_key,
            "arguments": binding.arguments,
        })
    });
    sorted(bindings.collect())
}

/// The same file for the same definitions, whatever the order in which they were made.
fn sorted(mut list: Vec<Value>) -> Vec<Value> {
    list.sort_by_cached_key(Value::to_string);
    list
}
