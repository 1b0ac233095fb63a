//! Where a message would go, and why. RabbitMQ has no such thing.

use axum::Router;
use axum::extract::{Path, RawQuery, State};
use axum::response::Response;
use axum::routing::get;
use leveret_amqp::{FieldTable, ShortString};
use leveret_server::Admin;
use serde_json::Value;

use crate::api::json_of;
use crate::definitions::field_table;
use crate::problem::Problem;
use crate::users::valid_name;

/// `GET /api/explain/{vhost}?exchange=X&routing_key=K&headers=JSON&user=U`, all of the query optional.
pub(crate) fn routes() -> Router<Admin> {
    Router::new().route("/explain/{vhost}", get(explain))
}

async fn explain(
    State(admin): State<Admin>,
    Path(vhost): Path<String>,
    RawQuery(query): RawQuery,
) -> Result<Response, Problem> {
    let (mut exchange, mut routing_key) = (ShortString::default(), ShortString::default());
    let (mut headers, mut user) = (FieldTable::default(), None);
    for (name, value) in form_urlencoded::parse(query.unwrap_or_default().as_bytes()) {
        match &*name {
            "exchange" => exchange = valid_name(&value)?,
            "routing_key" => routing_key = valid_name(&value)?,
            "user" => user = Some(valid_name(&value)?),
            "headers" => {
                let value: Value = serde_json::from_str(&value)
                    .map_err(|error| Problem::BadRequest(format!("headers: {error}")))?;
                headers = field_table("headers", &value).map_err(|fault| Problem::BadRequest(fault.to_string()))?;
            }
            other => return Err(Problem::BadRequest(format!("nothing is called '{other}' here"))),
        }
    }
    let explained = admin.explain(&vhost, exchange, routing_key, headers, user).await;
    explained.map(|explanation| json_of(&explanation)).ok_or(Problem::NotFound)
}
