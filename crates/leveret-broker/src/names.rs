//! Names that clients choose, each with its own type.

use std::fmt;
use std::num::NonZeroU16;

use leveret_amqp::{ShortStr, ShortString};

use crate::limits::LOGGED_NAME_BYTES_MAX;

/// What a peer calls itself or something else, as the log shows it: a peer may say a name that is as long as a frame.
pub(crate) struct Logged<'n>(pub(crate) &'n str);

impl fmt::Display for Logged<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0.len() {
            0..=LOGGED_NAME_BYTES_MAX => f.write_str(self.0),
            _ => write!(f, "{}...", &self.0[..self.0.floor_char_boundary(LOGGED_NAME_BYTES_MAX)]),
        }
    }
}

macro_rules! name {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(ShortString);

        impl $name {
            /// Takes the name as it stands on the wire: at most 255 bytes of UTF-8.
            pub fn new(name: ShortStr<'_>) -> Self {
                $name(name.into())
            }

            /// The name as it goes on the wire.
            pub fn as_short_str(&self) -> ShortStr<'_> {
                self.0.as_short_str()
            }

            /// The characters.
            pub fn as_str(&self) -> &str {
                self.0.as_str()
            }
        }

        impl From<ShortString> for $name {
            fn from(name: ShortString) -> Self {
                $name(name)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }

        impl serde::Serialize for $name {
            fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.serialize_str(self.as_str())
            }
        }

        impl std::borrow::Borrow<str> for $name {
            fn borrow(&self) -> &str {
                self.as_str()
            }
        }
    };
}

name!(
    /// The name of a queue, unique in its virtual host.
    QueueName
);
name!(
    /// The name of an exchange, unique in its virtual host. The default exchange is the empty name.
    ExchangeName
);
name!(
    /// The name of a virtual host, unique in the node.
    VhostName
);
name!(
    /// The name of a user, unique in the node.
    UserName
);
name!(
    /// The name of a policy, unique among those of its kind in its virtual host.
    PolicyName
);
name!(
    /// The name of a consumer, unique on its channel.
    ConsumerTag
);

/// RabbitMQ strips carriage return and line feed from the names of queues and exchanges in declare, delete and
/// bind.
pub(crate) fn strip_line_breaks(name: ShortStr<'_>) -> ShortString {
    let kept: String = name.as_str().chars().filter(|c| !matches!(c, '\r' | '\n')).collect();
    ShortStr::truncated(&kept).into()
}

/// The number of a channel on its connection, from 1; 0 is the connection itself. AMQP 0-9-1 §4.2.3.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ChannelId(NonZeroU16);

impl ChannelId {
    /// The first one that a connection may open.
    pub const FIRST: ChannelId = ChannelId(NonZeroU16::MIN);

    /// Takes the channel number of a frame; `None` for 0.
    pub fn new(number: u16) -> Option<Self> {
        NonZeroU16::new(number).map(ChannelId)
    }

    /// The number on the wire.
    pub fn number(self) -> u16 {
        self.0.get()
    }
}

impl fmt::Display for ChannelId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}
