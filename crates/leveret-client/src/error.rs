//! What can go wrong, in the words a user sees, and what to do about it.

use std::fmt;
use std::io;
use std::time::Duration;

use leveret_amqp::string::TooLong;
use leveret_amqp::{DecodeError, FrameError, ReplyCode};

/// The broker's reason for a close, shown as `404 NOT_FOUND - no queue 'x' in vhost '/'`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reply {
    /// For example 404.
    pub code: u16,
    /// For example `NOT_FOUND - no queue 'x' in vhost '/'`.
    pub text: String,
    /// The class and method at fault; zeros when there is none.
    pub method: (u16, u16),
}

impl fmt::Display for Reply {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.text.is_empty() { write!(f, "{}", self.code) } else { write!(f, "{} {}", self.code, self.text) }
    }
}

/// What a close ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    /// One channel; the connection goes on.
    Channel,
    /// The connection.
    Connection,
}

/// Why something did not happen. After an error other than `Closed` with [`Scope::Channel`], `NameTooLong` and
/// `NotConfirming`, the connection is of no further use.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No TCP connection, or no such host.
    #[error("cannot reach a broker at {address}: {source}")]
    Unreachable {
        /// Host and port.
        address: String,
        /// What the operating system says.
        source: io::Error,
    },
    /// The first bytes are not those of AMQP 0-9-1.
    #[error("what listens at {address} does not speak AMQP 0-9-1")]
    NotAmqp {
        /// Host and port.
        address: String,
    },
    /// The broker wants another way of logging in.
    #[error("the broker offers the login mechanisms '{offered}', not PLAIN")]
    NoMechanism {
        /// The broker's list.
        offered: String,
    },
    /// The broker closed a channel or the connection, and says why.
    #[error("{reply}")]
    Closed {
        /// What was closed.
        scope: Scope,
        /// Its reason.
        reply: Reply,
    },
    /// The broker ended the connection without a reason.
    #[error("the broker closed the connection without a reason")]
    Disconnected,
    /// The connection broke.
    #[error("the connection broke: {0}")]
    Io(#[source] io::Error),
    /// An answer did not come in time.
    #[error("no answer to {awaited} within {} s", after.as_secs_f32())]
    Timeout {
        /// What was asked.
        awaited: &'static str,
        /// How long we waited.
        after: Duration,
    },
    /// Whoever waited does not want to any more: [`Interrupt`](crate::Interrupt).
    #[error("interrupted")]
    Interrupted,
    /// Two heartbeat intervals went by without a byte.
    #[error("nothing heard from the broker for {} s, so the connection counts as dead", silence.as_secs_f32())]
    Dead {
        /// Two heartbeat intervals.
        silence: Duration,
    },
    /// The broker takes no messages for now: `connection.blocked`.
    #[error("the broker takes no messages: {reason}")]
    Blocked {
        /// Its reason, for example `low on disk`.
        reason: String,
    },
    /// The broker broke the framing rules.
    #[error("the broker sent a broken frame: {0}")]
    Frame(#[from] FrameError),
    /// The broker sent values that cannot be read.
    #[error("the broker sent something unreadable: {0}")]
    Decode(#[from] DecodeError),
    /// The broker sent something that makes no sense here.
    #[error("the broker sent {0}, which makes no sense here")]
    Unexpected(String),
    /// The broker announced a message above [`MESSAGE_BYTES_MAX`](crate::limits::MESSAGE_BYTES_MAX).
    #[error("the broker sent a message of {0} bytes, more than this client takes")]
    MessageTooLarge(u64),
    /// A name or key longer than 255 bytes.
    #[error("a name is too long: {0}")]
    NameTooLong(#[from] TooLong),
    /// All channels are in use.
    #[error("all {0} channels of the connection are open")]
    NoChannel(u16),
    /// Confirms were awaited without `confirm.select`.
    #[error("this channel does not use confirms")]
    NotConfirming,
}

impl Error {
    /// The broker's reply code, if it gave one.
    pub fn reply_code(&self) -> Option<u16> {
        if let Error::Closed { reply, .. } = self { Some(reply.code) } else { None }
    }

    /// What the user can do about it: a clause without capital and full stop.
    pub fn advice(&self) -> Option<&'static str> {
        Some(match self {
            Error::Unreachable { .. } => "start the broker, or correct host and port of the URL",
            Error::NotAmqp { .. } => "correct the port of the URL; brokers listen for AMQP on 5672 by default",
            Error::NoMechanism { .. } => "allow the mechanism PLAIN in the broker's configuration",
            Error::Closed { scope, reply } => return advice_on(*scope, reply),
            Error::Disconnected | Error::Io(_) => "look at the broker's log, then try again",
            Error::Timeout { .. } | Error::Dead { .. } => "check that the broker runs and is not overloaded",
            Error::Blocked { .. } => "free memory or disk of the broker, then try again",
            Error::Frame(_) | Error::Decode(_) | Error::Unexpected(_) => {
                "check that host and port of the URL are those of an AMQP 0-9-1 broker"
            }
            Error::NameTooLong(_) => "use at most 255 bytes",
            Error::Interrupted | Error::MessageTooLarge(_) | Error::NoChannel(_) | Error::NotConfirming => {
                return None;
            }
        })
    }
}

/// Advice on a reply: its code says what kind of thing is wrong, the method at fault says where.
fn advice_on(scope: Scope, reply: &Reply) -> Option<&'static str> {
    const CONNECTION_OPEN: (u16, u16) = (10, 40);
    const EXCHANGE_DECLARE: (u16, u16) = (40, 10);
    const EXCHANGE_DELETE: (u16, u16) = (40, 20);
    const QUEUE_DECLARE: (u16, u16) = (50, 10);
    const QUEUE_DELETE: (u16, u16) = (50, 40);
    let is = |code: ReplyCode| reply.code == code.code();
    let says = |words: &str| reply.text.contains(words);
    let is_limit = says("limit") && says("reached");
    Some(match reply.method {
        CONNECTION_OPEN if is(ReplyCode::NotAllowed) && is_limit => {
            "close other connections first, or have the limit raised"
        }
        // RabbitMQ's words, with a name of no characters.
        CONNECTION_OPEN if is(ReplyCode::NotAllowed) && says("vhost  not found") => {
            "the URL ends in a slash and names a virtual host without a name: leave the slash out, or write /%2F"
        }
        CONNECTION_OPEN if is(ReplyCode::NotAllowed) => {
            "check the virtual host at the end of the URL, and that the user may use it"
        }
        QUEUE_DECLARE | EXCHANGE_DECLARE if is(ReplyCode::PreconditionFailed) => {
            if says("inequivalent arg") {
                "use the properties it has, or delete it first"
            } else if is_limit {
                "delete queues that nobody needs, or have the limit raised"
            } else if says("'non-durable'") {
                "queues of this type are durable: ask for that with --durable"
            } else {
                "leave out what this broker does not take"
            }
        }
        QUEUE_DELETE | EXCHANGE_DELETE if is(ReplyCode::PreconditionFailed) => {
            "try again when that is no longer so, or delete it without a condition"
        }
        EXCHANGE_DECLARE if is(ReplyCode::CommandInvalid) => "every broker has direct, fanout, topic and headers",
        _ if is(ReplyCode::AccessRefused) && scope == Scope::Connection => {
            "check user and password of the URL; the user guest may log in only from the machine of the broker"
        }
        _ if is(ReplyCode::AccessRefused) => {
            "choose another name if this one is reserved, else ask for the permission"
        }
        _ if is(ReplyCode::NotFound) => "declare it first, or check its name",
        _ if is(ReplyCode::ResourceLocked) => {
            "wait until the connection that owns it exclusively is closed, or use another name"
        }
        _ if is(ReplyCode::NotAllowed) && is_limit => "close what is not needed first, or have the limit raised",
        _ if is(ReplyCode::ConnectionForced) && says("vhost '") && says("is deleted") => {
            "add the virtual host again, or name another one at the end of the URL"
        }
        _ if is(ReplyCode::ConnectionForced) => "try again when the broker is back",
        _ if is(ReplyCode::ResourceError) => "free resources of the broker, then try again",
        _ if is(ReplyCode::InternalError) => "look at the broker's log",
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// With the words of Leveret, which are those of RabbitMQ.
    #[test]
    fn advice_is_about_what_the_broker_says() {
        let open = (10, 40);
        let declare = (50, 10);
        for (scope, method, code, text, advice) in [
            (Scope::Connection, open, 530, "NOT_ALLOWED - vhost a not found", "check the virtual host"),
            (Scope::Connection, open, 530, "NOT_ALLOWED - vhost  not found", "leave the slash out, or write /%2F"),
            (
                Scope::Connection,
                open,
                530,
                "NOT_ALLOWED - access to vhost 'a' refused for user 'guest': connection limit (0) is reached",
                "close other connections",
            ),
            (
                Scope::Connection,
                open,
                530,
                "NOT_ALLOWED - connection refused for user 'guest': user connection limit (0) is reached",
                "close other connections",
            ),
            (
                Scope::Connection,
                (20, 10),
                530,
                "NOT_ALLOWED - number of channels opened for user 'guest' has reached the maximum allowed user limit of (0)",
                "have the limit raised",
            ),
            (
                Scope::Channel,
                declare,
                406,
                "PRECONDITION_FAILED - cannot declare queue 'q': queue limit in vhost 'a' (0) is reached",
                "delete queues that nobody needs",
            ),
            (
                Scope::Channel,
                declare,
                406,
                "PRECONDITION_FAILED - invalid property 'non-durable' for queue 'q' in vhost '/'",
                "with --durable",
            ),
            (Scope::Channel, declare, 406, "PRECONDITION_FAILED - invalid arg 'x-no' for queue 'q'", "leave out"),
            (
                Scope::Connection,
                (0, 0),
                320,
                "CONNECTION_FORCED - vhost 'a' is deleted",
                "add the virtual host again, or name another",
            ),
            (Scope::Connection, (0, 0), 320, "CONNECTION_FORCED - broker forced", "when the broker is back"),
        ] {
            let reply = Reply { code, text: text.to_owned(), method };
            let given = Error::Closed { scope, reply }.advice();
            assert!(given.is_some_and(|given| given.contains(advice)), "{text}: {given:?}");
        }
    }
}
