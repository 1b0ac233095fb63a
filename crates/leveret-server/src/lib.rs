//! The tokio side of the broker: listeners, timers, the lock around each virtual host, the tasks that feed it.
//!
//! Decides nothing: what bytes mean is the business of `leveret-broker`.

mod admin;
mod arrivals;
mod bodies;
mod check;
mod checkpoints;
mod clock;
mod connections;
mod data_dir;
#[cfg(all(test, feature = "shuttle"))]
mod hand_over;
mod hub;
mod hubs;
mod journal;
mod limits;
mod listener;
mod logins;
mod memory;
mod node;
mod operator;
mod outbox;
mod peer;
mod recovery;
mod room;
mod scratch;
mod server;
mod space;
mod sync;
mod turns;

pub use admin::{Admin, ConnectionPages, NodeView, Pages};
pub use check::{Condition, check};
pub use connections::{ConnectionView, Which};
pub use data_dir::{DataDirError, LOCK_FILE};
pub use leveret_journal::limits::{SEGMENT_BYTES_MAX, SEGMENT_BYTES_MIN};
pub use limits::MEMORY_LIMIT_MIN;
pub use listener::BindError;
pub use node::ChangeError;
pub use operator::{Operator, Refused};
pub use recovery::{JournalError, PROGRESS, PROGRESS_LINE};
pub use server::{
    Beginning, FirstUser, MemoryLimit, Prepared, Server, ServerConfig, ServerHandle, StartError, Storage,
};
