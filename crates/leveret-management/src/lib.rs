//! The HTTP API of a node, in the routes and the JSON of RabbitMQ's, and the control socket that serves it to the owner of
//! the data folder.
//!
//! Owns: routes, statuses, how a list is streamed. What there is to see is the business of `leveret-server`.

mod api;
mod client;
pub mod definitions;
mod explain;
mod limits;
mod list;
mod policies;
mod problem;
mod socket;
mod users;
mod vhosts;

pub use api::router;
pub use client::{Client, ClientError};
pub use hyper::StatusCode;
pub use socket::{CONTROL_SOCKET, ControlSocket};
