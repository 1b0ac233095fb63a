//! The limits of the server: name, unit, who enforces it, what the peer sees.

use std::time::Duration;

use leveret_broker::limits::DELIVERY_WINDOW_BYTES;

/// Bytes read from a socket at once. One buffer for each worker thread, not for each connection.
pub(crate) const READ_BYTES: usize = 128 * 1024;

/// Encoded bytes that a socket has not taken, above which its connection is not read. Deliveries stop at
/// [`DELIVERY_WINDOW_BYTES`], so what lies above are answers to the client's own commands.
pub(crate) const UNSENT_BYTES_MAX: usize = 2 * DELIVERY_WINDOW_BYTES;

/// Encoded bytes that a worker thread keeps room for between two connections' turns.
pub(crate) const SPARE_BYTES_MAX: usize = 4 * 1024 * 1024;

/// Bytes of messages that wait for the journal, above which connections that publish persistent messages are not read.
/// They are read again when half of it is written.
pub(crate) const PENDING_BYTES_MAX: usize = 32 * 1024 * 1024;

/// How long nothing is journaled before a marker says on disk that all is durable.
pub(crate) const IDLE_BEFORE_MARK: Duration = Duration::from_millis(10);

/// How long a connection that has ended may take to be closed by its client, too.
pub(crate) const LINGER: Duration = Duration::from_secs(2);

/// How long clients may take to answer `connection.close` when the broker stops.
pub(crate) const SHUTDOWN_TIMEOUT: Duration = Duration::from_secs(5);

/// How long to wait before accepting again after accepting failed, for example for want of file descriptors.
pub(crate) const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// How often a free port is looked for that all addresses have free, before giving up.
pub(crate) const FREE_PORT_TRIES: u32 = 50;

/// Connections that wait to be accepted. RabbitMQ: `tcp_listen_options.backlog`, 128; more survive a storm.
pub(crate) const BACKLOG: u32 = 1024;

const _: () = assert!(DELIVERY_WINDOW_BYTES < UNSENT_BYTES_MAX);
