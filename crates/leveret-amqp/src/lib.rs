//! AMQP 0-9-1 on the wire, as RabbitMQ speaks it.
//!
//! Owns: frames, methods, field tables, content properties, reply codes.
//! Must not know: sockets, clocks, queues, or what any method means.
//!
//! Decoding borrows from the input and allocates nothing; sizes a peer declares are compared with the bytes
//! that are there before anything is read. Encoding appends to a `Vec<u8>`.

pub mod content;
pub mod frame;
pub mod limits;
pub mod method;
pub mod reply;
pub mod string;
pub mod table;
pub mod wire;

pub use content::{BasicProperties, ContentHeader};
pub use frame::{FrameError, FrameKind, RawFrame, Snippet};
pub use method::Method;
pub use reply::ReplyCode;
pub use string::{ShortStr, ShortString};
pub use table::{Array, FieldTable, Table, TableBuilder, Value};
pub use wire::DecodeError;

/// The eight bytes with which a client opens a connection. AMQP 0-9-1 §4.2.2.
pub const PROTOCOL_HEADER: [u8; 8] = *b"AMQP\x00\x00\x09\x01";
