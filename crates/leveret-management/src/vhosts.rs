//! Virtual hosts with what is said of them and how much they may have, and what is kept for other programs.

use axum::Router;
use axum::body::Bytes;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::response::Response;
use axum::routing::{get, post};
use leveret_broker::Node;
use leveret_broker::change::NodeChange;
use leveret_broker::names::VhostName;
use leveret_broker::node::{DefaultQueueType, NodeError, Vhost, VhostLimits};
use leveret_server::Admin;
use serde::Deserialize;
use serde_json::{Value, json};

use crate::api::{found, json_of};
use crate::problem::Problem;
use crate::users::{PutLimit, Tags, limits_view, put, said, valid_name};

pub(crate) fn routes() -> Router<Admin> {
    Router::new()
        .route("/vhosts", get(list))
        .route("/vhosts/{vhost}", get(vhost).put(put_vhost).delete(delete_vhost))
        .route("/vhosts/{vhost}/deletion/protection", post(protect).delete(unprotect))
        .route("/vhosts/{vhost}/permissions", get(permissions_in))
        .route("/vhost-limits", get(list_limits))
        .route("/vhost-limits/{vhost}/{limit}", axum::routing::put(put_limit).delete(delete_limit))
        .route("/global-parameters", get(list_parameters))
        .route("/global-parameters/{name}", get(parameter).put(put_parameter).delete(delete_parameter))
}

fn view(name: &VhostName, vhost: &Vhost) -> Value {
    let metadata = &vhost.metadata;
    json!({
        "name": name,
        "description": metadata.description,
        "tags": metadata.tags,
        "default_queue_type": metadata.default_queue_type.as_str(),
        "protected_from_deletion": metadata.protected_from_deletion,
        "metadata": {
            "description": metadata.description,
            "tags": metadata.tags,
            "default_queue_type": metadata.default_queue_type.as_str(),
        },
        "limits": limits(vhost),
    })
}

pub(crate) fn limits(vhost: &Vhost) -> Value {
    let VhostLimits { max_connections, max_queues } = vhost.limits;
    limits_view([("max-connections", max_connections), ("max-queues", max_queues)])
}

async fn list(State(admin): State<Admin>) -> Response {
    let node = admin.users_and_vhosts();
    json_of(&node.vhosts().iter().map(|(name, vhost)| view(name, vhost)).collect::<Vec<_>>())
}

async fn vhost(State(admin): State<Admin>, Path(name): Path<String>) -> Response {
    let node = admin.users_and_vhosts();
    found(node.vhosts().get_key_value(name.as_str()).map(|(name, vhost)| view(name, vhost)))
}

async fn permissions_in(State(admin): State<Admin>, Path(name): Path<String>) -> Result<Response, Problem> {
    let node = admin.users_and_vhosts();
    if !node.vhosts().contains_key(name.as_str()) {
        return Err(Problem::NotFound);
    }
    let of_users = node.users().iter().filter_map(|(user, known)| {
        let (vhost, permissions) = known.permissions().get_key_value(name.as_str())?;
        Some(crate::users::permissions_view(user, vhost, permissions))
    });
    Ok(json_of(&of_users.collect::<Vec<_>>()))
}

/// What is not said stays as it is.
#[derive(Default, Deserialize)]
struct PutVhost {
    description: Option<String>,
    tags: Option<Tags>,
    default_queue_type: Option<String>,
    protected_from_deletion: Option<bool>,
}

async fn put_vhost(
    State(admin): State<Admin>,
    Path(name): Path<String>,
    body: Bytes,
) -> Result<StatusCode, Problem> {
    let PutVhost { description, tags, default_queue_type, protected_from_deletion } =
        if body.is_empty() { PutVhost::default() } else { said(&body)? };
    let name = valid_name::<VhostName>(&name)?;
    let queue_type = default_queue_type.map(|kind| {
        let unknown =
            || Problem::BadRequest(format!("there is no queue type '{kind}'; there are classic and quorum"));
        DefaultQueueType::parse(&kind).ok_or_else(unknown)
    });
    let queue_type = queue_type.transpose()?;
    let was_there = admin.users_and_vhosts().vhosts().contains_key(&name);
    let decide = move |node: &Node| {
        let known = node.vhosts().get(&name);
        let mut metadata = known.map(|vhost| vhost.metadata.clone()).unwrap_or_default();
        metadata.description = description.unwrap_or(metadata.description);
        metadata.tags = tags.map_or(metadata.tags, Vec::from);
        metadata.default_queue_type = queue_type.unwrap_or(metadata.default_queue_type);
        metadata.protected_from_deletion = protected_from_deletion.unwrap_or(metadata.protected_from_deletion);
        let added =
            known.is_none().then(|| NodeChange::VhostAdded { stream: node.next_stream(), name: name.clone() });
        let described = NodeChange::VhostDescribed { name, metadata };
        Ok(added.into_iter().chain([described]).collect())
    };
    admin.change(decide).await?;
    Ok(put(was_there))
}

async fn delete_vhost(State(admin): State<Admin>, Path(name): Path<String>) -> Result<StatusCode, Problem> {
    let name = valid_name::<VhostName>(&name)?;
    admin.change(|_| Ok(vec![NodeChange::VhostDeleted { name }])).await?;
    Ok(StatusCode::NO_CONTENT)
}

async fn protect(State(admin): State<Admin>, Path(name): Path<String>) -> Result<StatusCode, Problem> {
    set_protection(&admin, &name, true).await
}

async fn unprotect(State(admin): State<Admin>, Path(name): Path<String>) -> Result<StatusCode, Problem> {
    set_protection(&admin, &name, false).await
}

async fn set_protection(admin: &Admin, name: &str, is_protected: bool) -> Result<StatusCode, Problem> {
    let name = valid_name::<VhostName>(name)?;
    let decide = move |node: &Node| {
        let known = node.vhosts().get(&name).ok_or_else(|| NodeError::NoSuchVhost(name.clone()))?;
        let mut metadata = known.metadata.clone();
        metadata.protected_from_deletion = is_protected;
        Ok(vec![NodeChange::VhostDescribed { name, metadata }])
    };
    admin.change(decide).await?;
    Ok(StatusCode::NO_CONTENT)
}

async fn list_limits(State(admin): State<Admin>) -> Response {
    let node = admin.users_and_vhosts();
    let limited = node.vhosts().iter().filter(|(_, vhost)| vhost.limits != VhostLimits::default());
    let views = limited.map(|(name, vhost)| json!({ "vhost": name, "value": limits(vhost) }));
    json_of(&views.collect::<Vec<_>>())
}

async fn put_limit(
    State(admin): State<Admin>,
    Path((vhost, limit)): Path<(String, String)>,
    body: Bytes,
) -> Result<StatusCode, Problem> {
    change_limit(&admin, &vhost, &limit, said::<PutLimit>(&body)?.limit()).await
}

async fn delete_limit(
    State(admin): State<Admin>,
    Path((vhost, limit)): Path<(String, String)>,
) -> Result<StatusCode, Problem> {
    change_limit(&admin, &vhost, &limit, None).await
}

async fn change_limit(admin: &Admin, vhost: &str, limit: &str, value: Option<u64>) -> Result<StatusCode, Problem> {
    let name = valid_name::<VhostName>(vhost)?;
    let set: fn(&mut VhostLimits, Option<u64>) = match limit {
        "max-connections" => |limits, value| limits.max_connections = value,
        "max-queues" => |limits, value| limits.max_queues = value,
        _ => {
            return Err(Problem::BadRequest(format!(
                "virtual hosts have no limit '{limit}'; there are max-connections and max-queues"
            )));
        }
    };
    let decide = move |node: &Node| {
        let known = node.vhosts().get(&name).ok_or_else(|| NodeError::NoSuchVhost(name.clone()))?;
        let mut limits = known.limits;
        set(&mut limits, value);
        Ok(vec![NodeChange::VhostLimited { name, limits }])
    };
    admin.change(decide).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// What is kept is JSON; should it ever not be, it is shown as text.
fn parameter_view(name: &str, value: &str) -> Value {
    let value = serde_json::from_str(value).unwrap_or_else(|_| Value::from(value));
    json!({ "name": name, "value": value })
}

async fn list_parameters(State(admin): State<Admin>) -> Response {
    let node = admin.users_and_vhosts();
    let views = node.global_parameters().iter().map(|(name, value)| parameter_view(name.as_str(), value));
    json_of(&views.collect::<Vec<_>>())
}

async fn parameter(State(admin): State<Admin>, Path(name): Path<String>) -> Response {
    let node = admin.users_and_vhosts();
    found(node.global_parameters().get(name.as_str()).map(|value| parameter_view(&name, value)))
}

async fn put_parameter(
    State(admin): State<Admin>,
    Path(name): Path<String>,
    body: Bytes,
) -> Result<StatusCode, Problem> {
    #[derive(Deserialize)]
    struct PutParameter {
        value: Value,
    }
    let value = said::<PutParameter>(&body)?.value.to_string();
    let was_there = admin.users_and_vhosts().global_parameters().contains_key(name.as_str());
    let name = valid_name(&name)?;
    admin.change(|_| Ok(vec![NodeChange::GlobalParameterSet { name, value }])).await?;
    Ok(put(was_there))
}

async fn delete_parameter(State(admin): State<Admin>, Path(name): Path<String>) -> Result<StatusCode, Problem> {
    let name = valid_name(&name)?;
    admin.change(|_| Ok(vec![NodeChange::GlobalParameterCleared { name }])).await?;
    Ok(StatusCode::NO_CONTENT)
}
