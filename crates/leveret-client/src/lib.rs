//! The client side of AMQP 0-9-1 with blocking sockets, for the command line and the load tool.
//!
//! Owns: URLs, the handshake, heartbeats, channels, confirms, and what a refusal by the broker means.
//! Must not know: how the broker or the journal works.
//!
//! One connection belongs to one thread; a [`Channel`] borrows its [`Connection`]. Whoever waits for something
//! also reads what else arrives: deliveries, returned messages and confirms are kept until somebody asks.
//! Every wait has a deadline, and whatever a peer sends is an error at worst.
//!
//! ```no_run
//! use leveret_client::{BasicProperties, Connection, PublishTo, QueueOptions, Url};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let url: Url = "amqp://guest:guest@localhost:5672/%2F".parse()?;
//! let mut connection = Connection::open(&url)?;
//! let mut channel = connection.open_channel()?;
//! channel.declare_queue("hello", &QueueOptions::default())?;
//! channel.confirm_select()?;
//! channel.publish(PublishTo::queue("hello"), &BasicProperties::default(), b"world")?;
//! channel.wait_confirms(0)?;
//! connection.close()?;
//! # Ok(())
//! # }
//! ```

mod channel;
mod confirms;
mod connection;
mod error;
mod heartbeat;
mod interrupt;
pub mod limits;
mod message;
mod raw;
mod state;
mod url;
mod wire;

pub use channel::{AckMode, Channel, ConsumeOptions, DeleteOnly, ExchangeOptions, PublishTo, QueueOptions};
pub use confirms::{Confirm, Verdict};
pub use connection::{ChannelId, Connection};
pub use error::{Error, Reply, Scope};
pub use interrupt::Interrupt;
pub use leveret_amqp::{BasicProperties, FieldTable, ShortString, Table, Value};
pub use message::{CancelledBy, ConsumerEvent, DeclaredQueue, Delivery, Got, Message, Returned};
pub use raw::RawConnection;
pub use url::{Url, UrlError};

#[cfg(test)]
mod tests;
