//! Policies and operator policies.

use axum::Router;
use axum::body::Bytes;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::response::Response;
use axum::routing::get;
use leveret_broker::names::PolicyName;
use leveret_broker::vhost::policy::{ApplyTo, InvalidPolicy, Policy, PolicyKind, PolicySource};
use leveret_broker::views::Fields;
use leveret_server::Admin;
use serde::Deserialize;
use serde_json::{Value, json};

use crate::api::{found, json_of, known};
use crate::definitions::field_table;
use crate::problem::Problem;
use crate::users::{put, said, valid_name};

pub(crate) fn routes() -> Router<Admin> {
    of_kind("policies", PolicyKind::Policy).merge(of_kind("operator-policies", PolicyKind::OperatorPolicy))
}

fn of_kind(route: &str, kind: PolicyKind) -> Router<Admin> {
    let list = async move |State(admin): State<Admin>| list(&admin, kind);
    let list_in = async move |State(admin): State<Admin>, Path(vhost): Path<String>| {
        known(&admin, &vhost).map(|()| json_of(&views(&admin, &vhost, kind)))
    };
    let one = async move |State(admin): State<Admin>, Path((vhost, name)): Path<(String, String)>| {
        found(source(&admin, &vhost, kind, &name).map(|source| view(&vhost, source)))
    };
    let set = async move |State(admin): State<Admin>, Path((vhost, name)): Path<(String, String)>, body: Bytes| {
        set(&admin, &vhost, kind, &name, &body).await
    };
    let clear = async move |State(admin): State<Admin>, Path((vhost, name)): Path<(String, String)>| {
        let name: PolicyName = valid_name(&name)?;
        let is_cleared = admin.clear_policy(&vhost, kind, &name).await;
        if is_cleared { Ok(StatusCode::NO_CONTENT) } else { Err(Problem::NotFound) }
    };
    Router::new()
        .route(&format!("/{route}"), get(list))
        .route(&format!("/{route}/{{vhost}}"), get(list_in))
        .route(&format!("/{route}/{{vhost}}/{{name}}"), get(one).put(set).delete(clear))
}

fn view(vhost: &str, source: PolicySource) -> Value {
    json!({
        "vhost": vhost,
        "name": source.name,
        "pattern": source.pattern,
        "apply-to": source.apply_to.as_str(),
        "priority": source.priority,
        "definition": Fields(source.definition),
    })
}

pub(crate) fn views(admin: &Admin, vhost: &str, kind: PolicyKind) -> Vec<Value> {
    admin.policies(vhost, kind).into_iter().map(|source| view(vhost, source)).collect()
}

fn list(admin: &Admin, kind: PolicyKind) -> Response {
    let node = admin.users_and_vhosts();
    json_of(&node.vhosts().keys().flat_map(|vhost| views(admin, vhost.as_str(), kind)).collect::<Vec<_>>())
}

fn source(admin: &Admin, vhost: &str, kind: PolicyKind, name: &str) -> Option<PolicySource> {
    admin.policies(vhost, kind).into_iter().find(|source| source.name.as_str() == name)
}

#[derive(Deserialize)]
struct PutPolicy {
    pattern: String,
    definition: Value,
    #[serde(default)]
    priority: i64,
    #[serde(rename = "apply-to")]
    apply_to: Option<String>,
}

async fn set(
    admin: &Admin,
    vhost: &str,
    kind: PolicyKind,
    name: &str,
    body: &Bytes,
) -> Result<StatusCode, Problem> {
    let bad = |error: InvalidPolicy| Problem::BadRequest(error.to_string());
    let PutPolicy { pattern, definition, priority, apply_to } = said(body)?;
    let apply_to = apply_to.as_deref().map(ApplyTo::parse).transpose().map_err(bad)?.unwrap_or_default();
    let definition =
        field_table("definition", &definition).map_err(|fault| Problem::BadRequest(fault.to_string()))?;
    let was_there = source(admin, vhost, kind, name).is_some();
    let name: PolicyName = valid_name(name)?;
    let policy = Policy::new(PolicySource { kind, name, pattern, apply_to, priority, definition }).map_err(bad)?;
    admin.set_policy(vhost, policy).await.ok_or(Problem::NotFound)?.map_err(bad)?;
    Ok(put(was_there))
}
