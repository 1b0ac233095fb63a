//! What an HTTP client hears that does not get what it asked for. RabbitMQ's JSON.

use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use leveret_broker::node::NodeError;
use leveret_server::ChangeError;
use serde_json::json;

/// A request that cannot be answered as it wants.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Problem {
    /// There is nothing of that name.
    NotFound,
    /// It can be had, but not so.
    MethodNotAllowed,
    /// It says something that cannot be.
    BadRequest(String),
    /// Its body has more bytes than so many.
    TooLarge(usize),
    /// It must not be as things are.
    PreconditionFailed(String),
    /// The answer cannot be written down.
    Internal,
    /// The disk does not take it.
    Unavailable(String),
}

impl Problem {
    /// A name with more bytes than names have.
    pub(crate) fn too_long() -> Self {
        Problem::BadRequest("a name has at most 255 bytes".into())
    }
}

impl From<ChangeError> for Problem {
    fn from(error: ChangeError) -> Self {
        let text = error.to_string();
        match error {
            ChangeError::Node(
                NodeError::NoSuchUser(_) | NodeError::NoSuchVhost(_) | NodeError::NoSuchParameter(_),
            ) => Problem::NotFound,
            ChangeError::Node(NodeError::VhostProtected(_)) => Problem::PreconditionFailed(text),
            ChangeError::Node(
                NodeError::VhostExists(_)
                | NodeError::StreamTaken(_)
                | NodeError::NoName(_)
                | NodeError::Permission(_),
            ) => Problem::BadRequest(text),
            ChangeError::NoRoom | ChangeError::Ended => Problem::Unavailable(text),
        }
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let (status, error, reason) = match self {
            Problem::NotFound => (StatusCode::NOT_FOUND, "Object Not Found", "Not Found".into()),
            Problem::MethodNotAllowed => {
                let reason = "This resource does not have that method".into();
                (StatusCode::METHOD_NOT_ALLOWED, "Method Not Allowed", reason)
            }
            Problem::BadRequest(reason) => (StatusCode::BAD_REQUEST, "bad_request", reason),
            Problem::TooLarge(limit) => {
                let reason = format!("a body has at most {limit} bytes");
                (StatusCode::PAYLOAD_TOO_LARGE, "bad_request", reason)
            }
            Problem::PreconditionFailed(reason) => (StatusCode::PRECONDITION_FAILED, "precondition_failed", reason),
            Problem::Internal => (StatusCode::INTERNAL_SERVER_ERROR, "Internal Server Error", "See the log".into()),
            Problem::Unavailable(reason) => (StatusCode::SERVICE_UNAVAILABLE, "Service Unavailable", reason),
        };
        let body = json!({ "error": error, "reason": reason }).to_string();
        (status, [(header::CONTENT_TYPE, "application/json")], body).into_response()
    }
}
