//! The limits of the HTTP API: name, unit, who enforces it, what the peer sees.

use std::time::Duration;

/// Connections to the control socket that are served at once. Others wait to be accepted.
pub(crate) const CONTROL_CONNECTIONS_MAX: usize = 100;

/// Connections to the control socket that wait to be accepted. Others are refused by the system.
pub(crate) const BACKLOG: i32 = 128;

/// From accept to the end of the request's head. The connection is closed.
pub(crate) const HEAD_TIMEOUT: Duration = Duration::from_secs(10);

/// From accept to the last byte of the answer: a client that does not read has no place for ever. The connection is
/// closed.
pub(crate) const CONNECTION_TIMEOUT: Duration = Duration::from_mins(10);

/// Bytes of a request's head, and of what is buffered of an answer beside the page of a list. 431.
pub(crate) const BUFFER_BYTES_MAX: usize = 64 * 1024;

/// Bytes of a request's body. 413.
pub(crate) const BODY_BYTES_MAX: usize = 2 * 1024 * 1024;

/// How long nothing is accepted after the system had no file for a connection.
pub(crate) const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
