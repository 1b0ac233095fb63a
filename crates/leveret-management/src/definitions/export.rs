//! Definitions of a running node, as RabbitMQ writes them.

use std::collections::BTreeSet;

use leveret_broker::Node;
use leveret_broker::names::VhostName;
use leveret_broker::node::Vhost;
use leveret_broker::vhost::policy::{PolicyKind, PolicySource};
use leveret_broker::views::Fields;
use leveret_server::Admin;
use serde_json::{Map, Value, json};

use crate::{policies, users, vhosts};

/// All that is durable of what was declared. Takes one virtual host after the other, in steps: what changes meanwhile may
/// be in it or not.
pub fn export(admin: &Admin) -> Value {
    let (node, settings) = (admin.users_and_vhosts(), admin.settings());
    let mut file = Map::new();
    file.insert("product_name".into(), settings.product.clone().into());
    file.insert("product_version".into(), settings.version.clone().into());
    let each = |list: Vec<Value>| Value::Array(list);
    file.insert("users".into(), each(node.users().iter().map(|(name, known)| users::view(name, known)).collect()));
    file.insert(
        "vhosts".into(),
        each(node.vhosts().iter().map(|(name, known)| vhost(name.as_str(), known)).collect()),
    );
    file.insert("permissions".into(), each(users::permissions_views(&node)));
    file.insert("topic_permissions".into(), each(users::topic_views(&node, |_, _| true)));
    file.insert("parameters".into(), each(parameters(admin, &node)));
    let parameters = node.global_parameters().iter();
    let parameters = parameters.map(|(name, value)| {
        json!({"name": name.as_str(), "value": serde_json::from_str::<Value>(value).unwrap_or(Value::Null)})
    });
    file.insert("global_parameters".into(), parameters.collect());
    let policies = |vhost: &VhostName| policies::views(admin, vhost.as_str(), PolicyKind::Policy);
    file.insert("policies".into(), each(node.vhosts().keys().flat_map(policies).collect()));
    // What comes meanwhile must not be named by what is written later and not be there itself.
    let mut ends = Ends::default();
    let is_there = |vhost: &VhostName| node.vhosts().contains_key(vhost);
    let queues = admin.queues(None).flatten();
    let queues = queues.filter(|queue| queue.durable && !queue.exclusive && is_there(&queue.vhost));
    let queues = queues.map(|queue| {
        ends.queues.insert((queue.vhost.to_string(), queue.name.to_string()));
        json!({
            "name": queue.name.as_str(), "vhost": queue.vhost.as_str(), "durable": true,
            "auto_delete": queue.auto_delete, "type": queue.queue_type, "arguments": queue.arguments,
        })
    });
    file.insert("queues".into(), each(sorted(queues.collect())));
    // Every virtual host has these by itself.
    let is_own = |name: &str| name.is_empty() || name.starts_with("amq.");
    let exchanges = admin.exchanges(None).flatten();
    let exchanges = exchanges.filter(|exchange| exchange.durable && is_there(&exchange.vhost));
    let exchanges = exchanges.inspect(|exchange| {
        ends.exchanges.insert((exchange.vhost.to_string(), exchange.name.to_string()));
    });
    let exchanges = exchanges.filter(|exchange| !is_own(exchange.name.as_str()));
    let exchanges = exchanges.map(|exchange| {
        json!({
            "name": exchange.name.as_str(), "vhost": exchange.vhost.as_str(), "type": exchange.kind, "durable": true,
            "auto_delete": exchange.auto_delete, "internal": exchange.internal, "arguments": exchange.arguments,
        })
    });
    file.insert("exchanges".into(), each(sorted(exchanges.collect())));
    file.insert("bindings".into(), each(bindings(admin, &ends)));
    Value::Object(file)
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

/// RabbitMQ: limits of virtual hosts and operator policies are parameters, too.
fn parameters(admin: &Admin, node: &Node) -> Vec<Value> {
    let mut list = Vec::new();
    for (name, vhost) in node.vhosts() {
        let value = vhosts::limits(vhost);
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

fn policy(source: PolicySource) -> Value {
    json!({
        "pattern": source.pattern, "apply-to": source.apply_to.as_str(), "priority": source.priority,
        "definition": Fields(source.definition),
    })
}

/// Durable queues and exchanges that are in the file or are the virtual host's own, by virtual host and name.
#[derive(Default)]
struct Ends {
    queues: BTreeSet<(String, String)>,
    exchanges: BTreeSet<(String, String)>,
}

/// Bindings between these, but for those to the default exchange, which every queue has.
fn bindings(admin: &Admin, ends: &Ends) -> Vec<Value> {
    let bindings = admin.bindings(None).flatten().filter(|binding| {
        let end = |name: &str| (binding.vhost.to_string(), name.to_owned());
        let to = if binding.destination_type == "queue" { &ends.queues } else { &ends.exchanges };
        !binding.source.as_str().is_empty()
            && ends.exchanges.contains(&end(binding.source.as_str()))
            && to.contains(&end(&binding.destination))
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
