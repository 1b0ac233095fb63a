//! The limits of the codec: name, unit, who enforces it, what the peer sees.

/// Smallest `frame_max` a peer may ask for, in bytes. AMQP 0-9-1 §4.2.3 (`FRAME-MIN-SIZE`); RabbitMQ 4.1 and
/// later refuse below 8192, older clients need 4096. Enforced at `connection.tune-ok`: 530.
pub const FRAME_BYTES_MIN: u32 = 4096;

/// Bytes of a frame around its payload: type, channel, length, end octet. AMQP 0-9-1 §2.3.5.
pub const FRAME_OVERHEAD_BYTES: usize = 8;

/// Longest short string, in bytes. AMQP 0-9-1 §4.2.5.3; the length is one octet.
pub const SHORT_STRING_BYTES_MAX: usize = 255;

/// How deep field tables and arrays may nest. Enforced while decoding: 502.
pub const TABLE_DEPTH_MAX: usize = 64;

/// Bytes of a payload that an error keeps. RabbitMQ: `payload_snippet`.
pub const SNIPPET_BYTES: usize = 16;

const _: () = assert!(FRAME_BYTES_MIN as usize > FRAME_OVERHEAD_BYTES + SHORT_STRING_BYTES_MAX);
