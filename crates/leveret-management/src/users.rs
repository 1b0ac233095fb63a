//! Users, what they may do, and how much they may have.

use axum::Router;
use axum::body::Bytes;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::response::Response;
use axum::routing::get;
use leveret_amqp::ShortString;
use leveret_broker::Node;
use leveret_broker::access::{Permissions, TopicPermissions};
use leveret_broker::change::NodeChange;
use leveret_broker::names::{ExchangeName, UserName, VhostName};
use leveret_broker::node::password::{HashingAlgorithm, PasswordHash};
use leveret_broker::node::{NodeError, User, UserLimits};
use leveret_server::Admin;
use serde::Deserialize;
use serde_json::{Map, Value, json};

use crate::api::{found, json_of};
use crate::problem::Problem;

pub(crate) fn routes() -> Router<Admin> {
    Router::new()
        .route("/users", get(list))
        .route("/users/{user}", get(user).put(put_user).delete(delete_user))
        .route("/users/{user}/permissions", get(permissions_of))
        .route("/permissions", get(list_permissions))
        .route("/permissions/{vhost}/{user}", get(permissions).put(put_permissions).delete(delete_permissions))
        .route("/topic-permissions", get(list_topic_permissions))
        .route("/topic-permissions/{vhost}/{user}", get(topic_permissions_of).put(put_topic).delete(delete_topics))
        .route("/user-limits", get(list_limits))
        .route("/user-limits/{user}/{limit}", axum::routing::put(put_limit).delete(delete_limit))
}

/// What a request says, as JSON. What else it says is passed over, as RabbitMQ does.
pub(crate) fn said<'b, T: Deserialize<'b>>(body: &'b Bytes) -> Result<T, Problem> {
    serde_json::from_slice(body)
        .map_err(|error| Problem::BadRequest(format!("not the JSON that is expected: {error}")))
}

/// A name of whatever it is to be the name of.
pub(crate) fn valid_name<T: From<ShortString>>(text: &str) -> Result<T, Problem> {
    ShortString::new(text).map(T::from).map_err(|_| Problem::too_long())
}

/// RabbitMQ: a text with commas between them, or a list.
#[derive(Deserialize)]
#[serde(untagged)]
pub(crate) enum Tags {
    Text(String),
    List(Vec<String>),
}

impl From<Tags> for Vec<String> {
    fn from(tags: Tags) -> Self {
        let tags = match tags {
            Tags::Text(text) => text.split(',').map(|tag| tag.trim().to_owned()).collect(),
            Tags::List(tags) => tags,
        };
        tags.into_iter().filter(|tag| !tag.is_empty()).collect()
    }
}

/// Whether something is new, or was there.
pub(crate) fn put(was_there: bool) -> StatusCode {
    if was_there { StatusCode::NO_CONTENT } else { StatusCode::CREATED }
}

pub(crate) fn view(name: &UserName, user: &User) -> Value {
    json!({
        "name": name,
        "tags": user.tags,
        "limits": limits(user),
        "password_hash": user.password.as_ref().map_or_else(String::new, PasswordHash::to_base64),
        "hashing_algorithm": user.password.as_ref().map(PasswordHash::algorithm).unwrap_or_default().as_str(),
    })
}

fn limits(user: &User) -> Value {
    let UserLimits { max_connections, max_channels } = user.limits;
    limits_view([("max-connections", max_connections), ("max-channels", max_channels)])
}

/// Those that are set.
pub(crate) fn limits_view<const N: usize>(limits: [(&str, Option<u64>); N]) -> Value {
    let set = limits.into_iter().filter_map(|(name, limit)| Some((name.to_owned(), limit?.into())));
    Value::Object(set.collect::<Map<_, _>>())
}

async fn list(State(admin): State<Admin>) -> Response {
    let node = admin.users_and_vhosts();
    json_of(&node.users().iter().map(|(name, user)| view(name, user)).collect::<Vec<_>>())
}

async fn user(State(admin): State<Admin>, Path(name): Path<String>) -> Response {
    let node = admin.users_and_vhosts();
    found(node.users().get_key_value(name.as_str()).map(|(name, user)| view(name, user)))
}

#[derive(Deserialize)]
struct PutUser {
    password: Option<String>,
    password_hash: Option<String>,
    hashing_algorithm: Option<String>,
    tags: Option<Tags>,
}

/// RabbitMQ: without a password, or with an empty hash, nobody can log in by this name.
async fn put_user(
    State(admin): State<Admin>,
    Path(name): Path<String>,
    body: Bytes,
) -> Result<StatusCode, Problem> {
    let bad = |error: leveret_broker::node::password::InvalidHash| Problem::BadRequest(error.to_string());
    let PutUser { password, password_hash, hashing_algorithm, tags } = said(&body)?;
    let name = valid_name::<UserName>(&name)?;
    let algorithm = hashing_algorithm.as_deref().map_or(Ok(HashingAlgorithm::default()), HashingAlgorithm::parse);
    let password = match (password, password_hash) {
        (Some(_), Some(_)) => {
            return Err(Problem::BadRequest("give a password or a password_hash, not both".into()));
        }
        (Some(password), None) if password.is_empty() => {
            return Err(Problem::BadRequest("nobody can log in with an empty password".into()));
        }
        (Some(password), None) => {
            Some(PasswordHash::of(algorithm.map_err(bad)?, password.as_bytes(), rand::random()))
        }
        (None, Some(hash)) if !hash.is_empty() => {
            Some(PasswordHash::from_base64(algorithm.map_err(bad)?, &hash).map_err(bad)?)
        }
        (None, Some(_) | None) => None,
    };
    let was_there = admin.users_and_vhosts().users().contains_key(&name);
    let tags = tags.map(Vec::from).unwrap_or_default();
    admin.change(|_| Ok(vec![NodeChange::UserSet { name, password, tags }])).await?;
    Ok(put(was_there))
}

async fn delete_user(State(admin): State<Admin>, Path(name): Path<String>) -> Result<StatusCode, Problem> {
    let name = valid_name::<UserName>(&name)?;
    admin.change(|_| Ok(vec![NodeChange::UserDeleted { name }])).await?;
    Ok(StatusCode::NO_CONTENT)
}

pub(crate) fn permissions_view(user: &UserName, vhost: &VhostName, permissions: &Permissions) -> Value {
    json!({
        "user": user,
        "vhost": vhost,
        "configure": permissions.configure.as_str(),
        "write": permissions.write.as_str(),
        "read": permissions.read.as_str(),
    })
}

fn all_permissions(node: &Node) -> impl Iterator<Item = (&UserName, &VhostName, &Permissions)> {
    node.users().iter().flat_map(|(name, user)| {
        user.permissions().iter().map(move |(vhost, permissions)| (name, vhost, permissions))
    })
}

pub(crate) fn permissions_views(node: &Node) -> Vec<Value> {
    all_permissions(node).map(|(user, vhost, permissions)| permissions_view(user, vhost, permissions)).collect()
}

async fn list_permissions(State(admin): State<Admin>) -> Response {
    json_of(&permissions_views(&admin.users_and_vhosts()))
}

async fn permissions_of(State(admin): State<Admin>, Path(user): Path<String>) -> Result<Response, Problem> {
    let node = admin.users_and_vhosts();
    let (name, user) = node.users().get_key_value(user.as_str()).ok_or(Problem::NotFound)?;
    let views = user.permissions().iter().map(|(vhost, permissions)| permissions_view(name, vhost, permissions));
    Ok(json_of(&views.collect::<Vec<_>>()))
}

async fn permissions(State(admin): State<Admin>, Path((vhost, user)): Path<(String, String)>) -> Response {
    let node = admin.users_and_vhosts();
    let view = all_permissions(&node).find(|(name, of, _)| name.as_str() == user && of.as_str() == vhost);
    found(view.map(|(user, vhost, permissions)| permissions_view(user, vhost, permissions)))
}

#[derive(Deserialize)]
struct PutPermissions {
    configure: String,
    write: String,
    read: String,
}

async fn put_permissions(
    State(admin): State<Admin>,
    Path((vhost, user)): Path<(String, String)>,
    body: Bytes,
) -> Result<StatusCode, Problem> {
    let PutPermissions { configure, write, read } = said(&body)?;
    let (user, vhost) = (valid_name::<UserName>(&user)?, valid_name::<VhostName>(&vhost)?);
    let node = admin.users_and_vhosts();
    let was_there = node.users().get(&user).is_some_and(|user| user.permissions().contains_key(&vhost));
    admin.change(|_| Ok(vec![NodeChange::PermissionsSet { user, vhost, configure, write, read }])).await?;
    Ok(put(was_there))
}

async fn delete_permissions(
    State(admin): State<Admin>,
    Path((vhost, user)): Path<(String, String)>,
) -> Result<StatusCode, Problem> {
    let (user, vhost) = (valid_name::<UserName>(&user)?, valid_name::<VhostName>(&vhost)?);
    admin.change(|_| Ok(vec![NodeChange::PermissionsCleared { user, vhost }])).await?;
    Ok(StatusCode::NO_CONTENT)
}

fn topic_view(
    user: &UserName,
    vhost: &VhostName,
    exchange: &ExchangeName,
    permissions: &TopicPermissions,
) -> Value {
    let (write, read) = (permissions.write(), permissions.read());
    json!({ "user": user, "vhost": vhost, "exchange": exchange, "write": write, "read": read })
}

pub(crate) fn topic_views<'n>(node: &'n Node, is_meant: impl Fn(&UserName, &VhostName) -> bool + 'n) -> Vec<Value> {
    let mut views = Vec::new();
    for (name, user) in node.users() {
        for (vhost, topics) in user.topic_permissions().iter().filter(|(vhost, _)| is_meant(name, vhost)) {
            views.extend(
                topics.iter().map(|(exchange, permissions)| topic_view(name, vhost, exchange, permissions)),
            );
        }
    }
    views
}

async fn list_topic_permissions(State(admin): State<Admin>) -> Response {
    json_of(&topic_views(&admin.users_and_vhosts(), |_, _| true))
}

async fn topic_permissions_of(
    State(admin): State<Admin>,
    Path((vhost, user)): Path<(String, String)>,
) -> Result<Response, Problem> {
    let is_meant = |name: &UserName, of: &VhostName| name.as_str() == user && of.as_str() == vhost;
    let views = topic_views(&admin.users_and_vhosts(), is_meant);
    if views.is_empty() { Err(Problem::NotFound) } else { Ok(json_of(&views)) }
}

#[derive(Deserialize)]
struct PutTopic {
    exchange: String,
    write: String,
    read: String,
}

async fn put_topic(
    State(admin): State<Admin>,
    Path((vhost, user)): Path<(String, String)>,
    body: Bytes,
) -> Result<StatusCode, Problem> {
    let PutTopic { exchange, write, read } = said(&body)?;
    let (user, vhost) = (valid_name::<UserName>(&user)?, valid_name::<VhostName>(&vhost)?);
    let exchange: ExchangeName = valid_name(&exchange)?;
    let node = admin.users_and_vhosts();
    let topics = node.users().get(&user).and_then(|user| user.topic_permissions().get(&vhost));
    let was_there = topics.is_some_and(|topics| topics.contains_key(&exchange));
    let change = NodeChange::TopicPermissionsSet { user, vhost, exchange, write, read };
    admin.change(|_| Ok(vec![change])).await?;
    Ok(put(was_there))
}

/// Those of one exchange if the body names it, otherwise all.
async fn delete_topics(
    State(admin): State<Admin>,
    Path((vhost, user)): Path<(String, String)>,
    body: Bytes,
) -> Result<StatusCode, Problem> {
    #[derive(Deserialize)]
    struct Of {
        exchange: Option<String>,
    }
    let exchange = if body.is_empty() { None } else { said::<Of>(&body)?.exchange };
    let exchange = exchange.as_deref().map(valid_name).transpose()?;
    let (user, vhost) = (valid_name::<UserName>(&user)?, valid_name::<VhostName>(&vhost)?);
    admin.change(|_| Ok(vec![NodeChange::TopicPermissionsCleared { user, vhost, exchange }])).await?;
    Ok(StatusCode::NO_CONTENT)
}

async fn list_limits(State(admin): State<Admin>) -> Response {
    let node = admin.users_and_vhosts();
    let limited = node.users().iter().filter(|(_, user)| user.limits != UserLimits::default());
    let views = limited.map(|(name, user)| json!({ "user": name, "value": limits(user) }));
    json_of(&views.collect::<Vec<_>>())
}

/// What is said of a limit. RabbitMQ: a negative one is none.
#[derive(Deserialize)]
pub(crate) struct PutLimit {
    value: i64,
}

impl PutLimit {
    pub(crate) fn limit(&self) -> Option<u64> {
        u64::try_from(self.value).ok()
    }
}

async fn put_limit(
    State(admin): State<Admin>,
    Path((user, limit)): Path<(String, String)>,
    body: Bytes,
) -> Result<StatusCode, Problem> {
    change_limit(&admin, &user, &limit, said::<PutLimit>(&body)?.limit()).await
}

async fn delete_limit(
    State(admin): State<Admin>,
    Path((user, limit)): Path<(String, String)>,
) -> Result<StatusCode, Problem> {
    change_limit(&admin, &user, &limit, None).await
}

async fn change_limit(admin: &Admin, user: &str, limit: &str, value: Option<u64>) -> Result<StatusCode, Problem> {
    let name = valid_name::<UserName>(user)?;
    let set: fn(&mut UserLimits, Option<u64>) = match limit {
        "max-connections" => |limits, value| limits.max_connections = value,
        "max-channels" => |limits, value| limits.max_channels = value,
        _ => {
            return Err(Problem::BadRequest(format!(
                "users have no limit '{limit}'; there are max-connections and max-channels"
            )));
        }
    };
    let decide = move |node: &Node| {
        let known = node.users().get(&name).ok_or_else(|| NodeError::NoSuchUser(name.clone()))?;
        let mut limits = known.limits;
        set(&mut limits, value);
        Ok(vec![NodeChange::UserLimited { name, limits }])
    };
    admin.change(decide).await?;
    Ok(StatusCode::NO_CONTENT)
}
