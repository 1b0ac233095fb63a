//! What can be set, with RabbitMQ's key names and defaults.

use std::time::Duration;

/// The settings of a node that its connections and virtual hosts need.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// `product`: the name in the server properties. Clients steer by it: some take `RabbitMQ` for a promise.
    pub product: String,
    /// `version`: the version in the server properties.
    pub version: String,
    /// `cluster_name` in the server properties.
    pub cluster_name: String,
    /// `frame_max`: largest frame, in bytes, 4096 or more. Default 131072.
    pub frame_max: u32,
    /// `initial_frame_max`: largest frame before `connection.tune-ok`, in bytes, 4096 or more. Default 8192. RabbitMQ 4.1.
    pub initial_frame_max: u32,
    /// `channel_max`: channels of one connection, 1 or more. Default 2047.
    pub channel_max: u16,
    /// `heartbeat`: what the server proposes, in seconds; 0 is none. Default 60.
    pub heartbeat: u16,
    /// `handshake_timeout`: from accept to `connection.open`. Default 10 s.
    pub handshake_timeout: Duration,
    /// `consumer_timeout`: how long a consumer may hold a delivery without settling it, unless its queue or the consumer
    /// says. None by default, for ever.
    pub consumer_timeout: Option<Duration>,
    /// `consumer_max_per_channel`: consumers of one channel, 1 or more. None by default, any number.
    pub consumer_max_per_channel: Option<u32>,
    /// `max_message_size`: largest body, in bytes, up to 512 MiB. Default 16 MiB.
    pub max_message_size: u64,
}

impl Default for Settings {
    fn default() -> Self {
        Settings {
            product: "leveret".into(),
            version: env!("CARGO_PKG_VERSION").into(),
            cluster_name: "leveret".into(),
            frame_max: 131_072,
            initial_frame_max: 8192,
            channel_max: 2047,
            heartbeat: 60,
            handshake_timeout: Duration::from_secs(10),
            consumer_timeout: None,
            consumer_max_per_channel: None,
            max_message_size: 16 * 1024 * 1024,
        }
    }
}
