//! Every decision of the broker, without I/O and without a clock.
//!
//! Two state machines and what passes between them:
//!
//! - [`Connection`] turns the bytes of one client into [`Commands`], and [`Output`]s back into bytes. It knows
//!   frames, methods and channels; it does not know queues.
//! - [`VirtualHost`] executes batches of commands: exchanges, bindings, queues, consumers, unacked messages. It
//!   knows neither frames nor sockets. What follows from a batch is in its [`Effects`].
//!
//! Whoever drives them (the server, a test, a simulator) moves bytes, holds the lock around the virtual host, and
//! hands in the time as a [`Moment`].

pub mod access;
pub mod change;
pub mod connection;
pub mod limits;
pub mod memory;
pub mod message;
pub mod moment;
pub mod names;
pub mod node;
mod number;
pub mod pattern;
mod row;
pub mod scratch;
pub mod settings;
mod shortened;
mod slots;
pub mod vhost;
pub mod views;

pub use change::{Change, JournalPosition};
pub use connection::Connection;
pub use message::{Message, MessageId};
pub use moment::Moment;
pub use node::Node;
pub use row::Row;
pub use settings::Settings;
pub use shortened::Shortened;
pub use vhost::command::{Command, Commands};
pub use vhost::effects::{Effects, Output};
#[cfg(any(test, feature = "naive"))]
pub use vhost::exchange::naive;
pub use vhost::{ConnectionId, VirtualHost};
