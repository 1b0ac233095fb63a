//! The routes. RabbitMQ: `rabbit_mgmt_dispatcher`.
//!
//! Must not know: who asks. Whoever serves the routes has let the client in.

use axum::Router;
use axum::body::{Body, HttpBody};
use axum::extract::{DefaultBodyLimit, Path, Request, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::middleware::{Next, from_fn};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use http_body_util::{BodyExt, LengthLimitError, Limited};
use leveret_server::{Admin, Which};
use serde::Serialize;
use serde_json::{Value, json};

use crate::definitions::export;
use crate::limits::BODY_BYTES_MAX;
use crate::list::array;
use crate::problem::Problem;
use crate::{explain, policies, users, vhosts};

/// What a client hears whose connection is closed without a reason. RabbitMQ's words.
const CLOSED: &str = "Closed via management plugin";

/// The name of the default exchange in a route, where a part may not be empty.
const DEFAULT_EXCHANGE: &str = "amq.default";

/// All routes of the HTTP API.
pub fn router(admin: Admin) -> Router {
    let api = Router::new()
        .route("/overview", get(overview))
        .route("/nodes", get(async |State(admin): State<Admin>| json_of(&[admin.node()])))
        .route("/connections", get(async |State(admin): State<Admin>| array(admin.connections())))
        .route("/connections/{name}", get(connection).delete(close_connection))
        .route("/connections/username/{user}", get(connections_of).delete(close_connections_of))
        .route("/channels", get(async |State(admin): State<Admin>| array(admin.channels(None))))
        .route("/vhosts/{vhost}/channels", get(channels_in))
        .route("/vhosts/{vhost}/connections", get(connections_in))
        .route("/consumers", get(async |State(admin): State<Admin>| array(admin.consumers(None))))
        .route("/consumers/{vhost}", get(consumers_in))
        .route("/exchanges", get(async |State(admin): State<Admin>| array(admin.exchanges(None))))
        .route("/exchanges/{vhost}", get(exchanges_in))
        .route("/exchanges/{vhost}/{name}", get(exchange))
        .route("/queues", get(async |State(admin): State<Admin>| array(admin.queues(None))))
        .route("/queues/{vhost}", get(queues_in))
        .route("/queues/{vhost}/{name}", get(queue))
        .route("/definitions", get(definitions))
        .route("/bindings", get(async |State(admin): State<Admin>| array(admin.bindings(None))))
        .route("/bindings/{vhost}", get(bindings_in))
        .merge(explain::routes())
        .merge(policies::routes())
        .merge(users::routes())
        .merge(vhosts::routes())
        .method_not_allowed_fallback(async || Problem::MethodNotAllowed);
    Router::new()
        .nest("/api", api)
        .fallback(async || Problem::NotFound)
        .layer(DefaultBodyLimit::disable())
        .layer(from_fn(with_body))
        .with_state(admin)
}

/// Reads the body, whoever wants it, before anything is done.
async fn with_body(request: Request, next: Next) -> Response {
    let (head, mut body) = request.into_parts();
    if body.size_hint().lower() > BODY_BYTES_MAX as u64 {
        return too_large(body);
    }
    match Limited::new(&mut body, BODY_BYTES_MAX).collect().await {
        Ok(read) => next.run(Request::from_parts(head, Body::from(read.to_bytes()))).await,
        Err(error) if error.is::<LengthLimitError>() => too_large(body),
        Err(_) => Problem::BadRequest("the body is not complete".into()).into_response(),
    }
}

/// Answers at once, and reads the body to its end meanwhile: a client that writes on does not hear an answer whose connection
/// is closed.
fn too_large(mut body: Body) -> Response {
    // It ends with its connection, whose time is limited.
    tokio::spawn(async move { while let Some(Ok(_)) = body.frame().await {} });
    Problem::TooLarge(BODY_BYTES_MAX).into_response()
}

pub(crate) fn json_of(value: &impl Serialize) -> Response {
    match serde_json::to_string(value) {
        Ok(text) => ([(header::CONTENT_TYPE, "application/json")], text).into_response(),
        Err(error) => {
            tracing::error!(%error, "a view cannot be written as JSON");
            Problem::Internal.into_response()
        }
    }
}

pub(crate) fn found(view: Option<impl Serialize>) -> Response {
    view.map_or_else(|| Problem::NotFound.into_response(), |view| json_of(&view))
}

/// RabbitMQ: a virtual host that does not exist is not an empty one.
pub(crate) fn known(admin: &Admin, vhost: &str) -> Result<(), Problem> {
    if admin.users_and_vhosts().vhosts().contains_key(vhost) { Ok(()) } else { Err(Problem::NotFound) }
}

/// All of it is made before the first byte goes out, so that it is one file or none.
async fn definitions(State(admin): State<Admin>) -> Result<Response, Problem> {
    let exported = tokio::task::spawn_blocking(move || export(&admin)).await;
    exported.map(|definitions| json_of(&definitions)).map_err(|_| Problem::Internal)
}

async fn queues_in(State(admin): State<Admin>, Path(vhost): Path<String>) -> Result<Response, Problem> {
    known(&admin, &vhost).map(|()| array(admin.queues(Some(&vhost))))
}

async fn exchanges_in(State(admin): State<Admin>, Path(vhost): Path<String>) -> Result<Response, Problem> {
    known(&admin, &vhost).map(|()| array(admin.exchanges(Some(&vhost))))
}

async fn bindings_in(State(admin): State<Admin>, Path(vhost): Path<String>) -> Result<Response, Problem> {
    known(&admin, &vhost).map(|()| array(admin.bindings(Some(&vhost))))
}

async fn channels_in(State(admin): State<Admin>, Path(vhost): Path<String>) -> Result<Response, Problem> {
    known(&admin, &vhost).map(|()| array(admin.channels(Some(&vhost))))
}

async fn consumers_in(State(admin): State<Admin>, Path(vhost): Path<String>) -> Result<Response, Problem> {
    known(&admin, &vhost).map(|()| array(admin.consumers(Some(&vhost))))
}

async fn connections_in(State(admin): State<Admin>, Path(vhost): Path<String>) -> Result<Response, Problem> {
    known(&admin, &vhost)?;
    Ok(array(admin.connections().map(move |mut page| {
        page.retain(|connection| connection.vhost == vhost);
        page
    })))
}

async fn connections_of(State(admin): State<Admin>, Path(user): Path<String>) -> Response {
    array(admin.connections().map(move |mut page| {
        page.retain(|connection| connection.user == user);
        page
    }))
}

async fn queue(State(admin): State<Admin>, Path((vhost, name)): Path<(String, String)>) -> Response {
    found(admin.queue(&vhost, &name))
}

async fn exchange(State(admin): State<Admin>, Path((vhost, name)): Path<(String, String)>) -> Response {
    let name = if name == DEFAULT_EXCHANGE { "" } else { &name };
    found(admin.exchange(&vhost, name))
}

async fn connection(State(admin): State<Admin>, Path(name): Path<String>) -> Response {
    found(admin.connection(&name))
}

async fn close_connection(State(admin): State<Admin>, Path(name): Path<String>, headers: HeaderMap) -> Response {
    match admin.close(Which::Name(&name), &reason(&headers)) {
        0 => Problem::NotFound.into_response(),
        _ => StatusCode::NO_CONTENT.into_response(),
    }
}

/// RabbitMQ: also if there is none.
async fn close_connections_of(
    State(admin): State<Admin>,
    Path(user): Path<String>,
    headers: HeaderMap,
) -> StatusCode {
    admin.close(Which::User(&user), &reason(&headers));
    StatusCode::NO_CONTENT
}

/// Header `X-Reason`. What is not UTF-8 in it is replaced.
fn reason(headers: &HeaderMap) -> String {
    let given = headers.get("x-reason").map(|reason| String::from_utf8_lossy(reason.as_bytes()).into_owned());
    given.filter(|reason| !reason.is_empty()).unwrap_or_else(|| CLOSED.to_owned())
}

async fn overview(State(admin): State<Admin>) -> Response {
    let (mut messages, mut ready, mut unacknowledged) = (0, 0, 0);
    for page in admin.queues(None) {
        for queue in page {
            messages += queue.messages;
            ready += queue.messages_ready;
            unacknowledged += queue.messages_unacknowledged;
        }
        tokio::task::yield_now().await;
    }
    let (queues, exchanges) = admin.object_counts();
    let (connections, channels) = (count(admin.connections()).await, count(admin.channels(None)).await);
    let settings = admin.settings();
    json_of(&json!({
        "product_name": settings.product,
        "product_version": settings.version,
        "cluster_name": settings.cluster_name,
        "node": settings.cluster_name,
        "listeners": admin.addresses().iter().map(|address| json!({
            "protocol": "amqp", "ip_address": address.ip(), "port": address.port(),
        })).collect::<Vec<Value>>(),
        "object_totals": {
            "connections": connections,
            "channels": channels,
            "exchanges": exchanges,
            "queues": queues,
            "consumers": count(admin.consumers(None)).await,
        },
        "queue_totals": {
            "messages": messages, "messages_ready": ready, "messages_unacknowledged": unacknowledged,
        },
    }))
}

async fn count<V>(pages: impl Iterator<Item = Vec<V>>) -> usize {
    let mut count = 0;
    for page in pages {
        count += page.len();
        tokio::task::yield_now().await;
    }
    count
}
