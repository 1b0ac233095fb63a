//! The limits of the client: name, unit, who enforces it, what the user sees.

use std::time::Duration;

/// How long TCP connect and handshake may take together, unless the URL says `connection_timeout`.
/// Enforced while opening: [`Error::Timeout`](crate::Error::Timeout).
pub const CONNECTION_TIMEOUT: Duration = Duration::from_secs(10);

/// How long an answer may take, unless [`Connection::set_answer_timeout`](crate::Connection::set_answer_timeout)
/// changes it. Enforced wherever an answer is awaited: [`Error::Timeout`](crate::Error::Timeout).
pub const ANSWER_TIMEOUT: Duration = Duration::from_secs(30);

/// Largest frame in bytes that we agree to; a URL may ask for less. RabbitMQ proposes the same.
pub const FRAME_BYTES_MAX: u32 = 131_072;

/// Most channels of a connection; a URL may ask for less. RabbitMQ proposes the same.
pub const CHANNELS_MAX: u16 = 2047;

/// Largest message body in bytes, RabbitMQ's own hard limit.
/// Enforced when a content header arrives: [`Error::MessageTooLarge`](crate::Error::MessageTooLarge).
pub const MESSAGE_BYTES_MAX: u64 = 512 * 1024 * 1024;

/// Bytes of output that are kept before they are written to the socket without being asked.
pub const OUTPUT_BYTES_KEPT: usize = 64 * 1024;

/// How long a write may stand still before what the broker sent meanwhile is read. A broker that waits for us to
/// read would otherwise wait for ever.
pub(crate) const WRITE_STALL: Duration = Duration::from_millis(100);

/// How often a wait looks whether it is interrupted, where it can be.
pub(crate) const INTERRUPT_LOOK_UP: Duration = Duration::from_millis(20);

/// Bytes that one read of the socket takes at most.
pub(crate) const READ_BYTES: usize = 64 * 1024;

/// Bytes of a body that are reserved before any of them arrived.
pub(crate) const BODY_BYTES_RESERVED: u64 = 1024 * 1024;
