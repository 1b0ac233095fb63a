//! What an HTTP client hears that does not get what it asked for. RabbitMQ's JSON.

use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde_json::json;

/// A request that cannot be answered as it wants.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Problem {
    /// There is nothing of that name.
    NotFound,
    /// It can be had, but not so.
    MethodNotAllowed,
    /// The answer cannot be written down.
    Internal,
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let (status, error, reason) = match self {
            Problem::NotFound => (StatusCode::NOT_FOUND, "Object Not Found", "Not Found"),
            Problem::MethodNotAllowed => {
                (StatusCode::METHOD_NOT_ALLOWED, "Method Not Allowed", "This resource does not have that method")
            }
            Problem::Internal => (StatusCode::INTERNAL_SERVER_ERROR, "Internal Server Error", "See the log"),
        };
        let body = json!({ "error": error, "reason": reason }).to_string();
        (status, [(header::CONTENT_TYPE, "application/json")], body).into_response()
    }
}
