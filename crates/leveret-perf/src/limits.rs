//! The limits of the load tool: name, unit, who enforces it, what the user sees.

use std::time::Duration;

/// How long a broker may make no progress, unless the user says otherwise. Enforced by whoever watches a run:
/// [`Failure::Stalled`](crate::Failure::Stalled).
pub const PROGRESS_TIMEOUT: Duration = Duration::from_secs(30);

/// How long a broker may make no progress after Ctrl-C, how long it has then for requests that have no reply yet, whatever
/// progress it makes, and how long for taking away what a failed run has declared. Enforced by whoever watches a run.
pub const LAST_PATIENCE: Duration = Duration::from_secs(3);

/// How often connections that are only held are looked at: whether they are still open.
pub(crate) const HELD_LOOK_UP: Duration = Duration::from_millis(200);

/// How long a thread waits for its socket before it looks whether the run is over.
pub(crate) const LOOK_UP: Duration = Duration::from_millis(20);

/// Bytes of publishes that are prepared and written at once, unless a single round of routing keys needs more.
pub(crate) const WRITE_BYTES: usize = 128 * 1024;

/// Most bytes of prepared publishes of one producer: routing keys times message size.
/// Enforced before the run: [`Failure::Options`](crate::Failure::Options).
pub const PREPARED_BYTES_MAX: usize = 256 * 1024 * 1024;

/// Most queues, routing keys or bindings of a run, each. Enforced before the run: [`Failure::Options`](crate::Failure::Options).
pub const NAMES_MAX: usize = 1 << 20;

/// Most connections of a run; the system may allow fewer. Enforced before the run:
/// [`Failure::Options`](crate::Failure::Options).
pub const CONNECTIONS_MAX: usize = 1 << 20;

/// Bytes that one read of a socket takes at most.
pub(crate) const READ_BYTES: usize = 256 * 1024;

/// Most producers times routing keys whose numbers a message can say: 24 bits.
/// Enforced before the run: [`Failure::Options`](crate::Failure::Options).
pub const FLOWS_MAX: usize = 1 << 24;

/// Most publishes of a producer that may be unconfirmed. Enforced before the run: [`Failure::Options`](crate::Failure::Options).
pub const WINDOW_MAX: usize = 1 << 20;

/// Most requests of a client that may be unanswered: brokers bound the direct replies that a client has not read. Enforced before the run: [`Failure::Options`](crate::Failure::Options).
pub const OUTSTANDING_MAX: u64 = 1 << 14;

/// Most points of the rates over time. With more, neighbours are joined.
pub(crate) const SAMPLES_MAX: usize = 1200;

/// Time between two points of the rates at first.
pub(crate) const SAMPLE_INTERVAL: Duration = Duration::from_millis(200);

/// Longest batch of publishes that a rate puts off to save processor time.
pub(crate) const BATCH: Duration = Duration::from_millis(1);

/// Longest latency that the histogram tells apart from longer ones, in microseconds: an hour.
pub(crate) const LATENCY_US_MAX: u64 = 3_600_000_000;
