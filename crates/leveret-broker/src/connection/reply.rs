//! What the wire hears of an error: reply code, text, and which method was at fault.
//!
//! The one place that names reply codes. The code decides whether channel or connection is closed. Texts are
//! RabbitMQ's, since programs in the wild match on them.

use std::fmt;

use leveret_amqp::content::BASIC_CLASS;
use leveret_amqp::limits::{FRAME_OVERHEAD_BYTES, SNIPPET_BYTES};
use leveret_amqp::{DecodeError, FrameError, FrameKind, ReplyCode, Snippet};

use crate::limits::{BODY_BYTES_MAX, REPLY_TEXT_BYTES_MAX, SELECTED_KEYS_MAX, TRANSACTION_BYTES_MAX};
use crate::node::OpenError;
use crate::vhost::queue::{ArgumentError, ArgumentFault};
use crate::vhost::refusal::Refusal;

/// An exception as it goes on the wire in `channel.close` or `connection.close`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Exception {
    /// The code, which also says what is closed.
    pub code: ReplyCode,
    /// The text, its name part included: `NOT_FOUND - no queue 'q' in vhost '/'`.
    pub text: String,
    /// Class and method at fault; 0 and 0 if none is.
    pub method: (u16, u16),
    /// For the log, where the text says little to people.
    explanation: Option<String>,
    is_inequivalent: bool,
}

impl Exception {
    fn new(code: ReplyCode, explanation: &str) -> Self {
        let mut text = format!("{} - {explanation}", code.name());
        if text.len() > REPLY_TEXT_BYTES_MAX {
            const DOTS: &str = "...";
            text.truncate(text.floor_char_boundary(REPLY_TEXT_BYTES_MAX - DOTS.len()));
            text.push_str(DOTS);
        }
        Exception { code, text, method: (0, 0), explanation: None, is_inequivalent: false }
    }

    /// Whether something was to be declared that exists with other properties.
    pub fn is_inequivalent(&self) -> bool {
        self.is_inequivalent
    }

    fn explained(self, explanation: impl fmt::Display) -> Self {
        Exception { explanation: Some(explanation.to_string()), ..self }
    }

    /// The text, and what people want to know beside it.
    pub(crate) fn for_log(&self) -> String {
        match &self.explanation {
            Some(explanation) => format!("{} ({explanation})", self.text),
            None => self.text.clone(),
        }
    }

    /// The broker closes the connection for its own reasons. RabbitMQ: `CONNECTION_FORCED`.
    pub fn forced(reason: &str) -> Self {
        Exception::new(ReplyCode::ConnectionForced, reason)
    }

    /// The broker cannot go on.
    pub(crate) fn internal(reason: &str) -> Self {
        Exception::new(ReplyCode::InternalError, reason)
    }

    /// Names the method at fault.
    #[must_use]
    pub fn during(self, method: (u16, u16)) -> Self {
        Exception { method, ..self }
    }
}

/// A fault in what a client sends, found before the virtual host sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ClientError {
    /// A frame that breaks the framing rules.
    Frame(FrameError),
    /// A method that cannot be decoded.
    Method {
        /// Why.
        error: DecodeError,
        /// As many of its bytes as a reply text can show.
        arguments: Box<[u8]>,
    },
    /// A content header that cannot be decoded.
    Header(DecodeError),
    /// A frame on a channel that does not fit what came before.
    NotExpected(Expected),
    /// A frame on a channel number that it cannot have, or not yet.
    UnexpectedFrame {
        /// What it carries.
        kind: FrameKind,
        /// How that begins.
        payload: Snippet,
    },
    /// A method on channel 0 that the connection cannot take in this state.
    UnexpectedMethod(&'static str),
    /// A method on a channel that is not open.
    ChannelNotOpen,
    /// `channel.open` on an open channel.
    ChannelOpenedTwice,
    /// More channels than negotiated.
    TooManyChannels {
        /// The channel number.
        channel: u16,
        /// What was negotiated.
        channel_max: u16,
    },
    /// A method of a server or of the connection, or an answer to something that nobody asked.
    Unimplemented(&'static str),
    /// Something the broker does not have, and RabbitMQ has not either.
    NotImplemented(String),
    /// A consumer tag that is in use on the channel.
    ConsumerTagInUse(String),
    /// As many consumers on the channel as there may be.
    TooManyConsumers(u32),
    /// A body longer than its header said.
    BodyTooLong,
    /// Contents on many channels, none of them complete, that take more than this together.
    TooMuchUnfinished {
        /// Bytes.
        limit: usize,
    },
    /// A content that did not arrive in time, while there is little memory and others wait for it.
    Overdue,
    /// A body above what any configuration allows.
    BodyBeyondAllLimits(u64),
    /// A body above `max_message_size`.
    BodyTooLarge {
        /// What the header declares.
        bytes: u64,
        /// The limit in force.
        limit: u64,
    },
    /// Property `user-id` names somebody else.
    UserId {
        /// What the property says.
        claimed: String,
        /// Who logged in.
        user: String,
    },
    /// Property `expiration` is no number of milliseconds.
    Expiration {
        /// What the property says.
        value: String,
        /// RabbitMQ's word for what is wrong.
        fault: String,
    },
    /// Header `CC` or `BCC` is no array.
    SenderSelectedHeader {
        /// Which.
        name: &'static str,
        /// What it is instead, as RabbitMQ names it.
        type_name: &'static str,
    },
    /// More keys in header `BCC` than a message keeps.
    TooManyHiddenKeys,
    /// More keys in headers `CC` and `BCC` than one message is routed by.
    TooManySelectedKeys,
    /// `confirm.select` on a channel in transaction mode, or the reverse.
    CannotSwitch {
        /// The mode it is in.
        from: &'static str,
        /// The mode asked for.
        to: &'static str,
    },
    /// `tx.commit` or `tx.rollback` without `tx.select`.
    NotTransactional,
    /// Something that consumers of replies cannot do.
    ReplyConsumer(&'static str),
    /// Delivery tag 0 without `multiple`.
    ZeroDeliveryTag,
    /// `connection.tune-ok` asks for more or less than allowed.
    Tune {
        /// The field.
        field: &'static str,
        /// What the client asks for.
        value: u32,
        /// Whether that is too little or too much.
        bound: TuneBound,
    },
    /// A virtual host that the user may not open.
    Open {
        /// Why not.
        error: OpenError,
        /// Its name.
        vhost: String,
        /// Who.
        user: String,
    },
    /// More channels than the user may have.
    UserChannels {
        /// Who.
        user: String,
        /// How many they may have.
        limit: u64,
    },
    /// A login that is refused; the text is the same for every reason.
    Login(&'static str),
    /// `connection.update-secret` with a secret that is not the user's.
    SecretRefused(String),
    /// A SASL mechanism that is not offered.
    UnknownMechanism(String),
}

/// What comes next on a channel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Expected {
    /// A method.
    Method,
    /// The header of a content.
    Header,
    /// A piece of its body.
    Body,
}

/// Which bound a value of `connection.tune-ok` breaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TuneBound {
    /// Below the least.
    Least(u32),
    /// Above the most.
    Most(u32),
}

impl From<&ClientError> for Exception {
    fn from(error: &ClientError) -> Self {
        use ReplyCode as Code;
        match error {
            ClientError::Frame(error) => {
                let text = match error {
                    FrameError::Unknown { kind, payload } => format!("{}: unknown_frame", frame(*kind, payload)),
                    FrameError::TooLarge { kind, payload_bytes, frame_max } => {
                        let most = u64::from(*frame_max).saturating_sub(FRAME_OVERHEAD_BYTES as u64);
                        format!("{}: {{frame_too_large,{payload_bytes},{most}}}", frame(*kind, &Snippet::of(&[])))
                    }
                    FrameError::BadEnd { kind, end, payload } => {
                        format!("{}: {{invalid_frame_end_marker,{end}}}", frame(*kind, payload))
                    }
                };
                Exception::new(Code::FrameError, &text).explained(error)
            }
            ClientError::Method { error, arguments } => match error {
                DecodeError::UnknownMethod { .. } => Exception::new(Code::NotImplemented, &error.to_string()),
                DecodeError::Table(_) => Exception::new(Code::SyntaxError, &error.to_string()),
                DecodeError::NotUtf8 => Exception::new(Code::FrameError, "Malformed UTF-8 in shortstr"),
                DecodeError::Truncated
                | DecodeError::Trailing(_)
                | DecodeError::PropertyFlags
                | DecodeError::Class(_)
                | DecodeError::Weight => {
                    let text = format!("cannot decode {}", numbers(arguments));
                    Exception::new(Code::FrameError, &text).explained(error)
                }
            },
            ClientError::Header(error) => match error {
                DecodeError::Weight => {
                    Exception::from(&ClientError::NotExpected(Expected::Header)).explained(error)
                }
                DecodeError::Class(class) => {
                    let text = format!(
                        "expected content header for class {BASIC_CLASS}, got one for class {class} instead"
                    );
                    Exception::new(Code::UnexpectedFrame, &text)
                }
                DecodeError::UnknownMethod { .. }
                | DecodeError::Table(_)
                | DecodeError::Truncated
                | DecodeError::Trailing(_)
                | DecodeError::NotUtf8
                | DecodeError::PropertyFlags => Exception::new(Code::SyntaxError, &error.to_string()),
            },
            ClientError::NotExpected(expected) => {
                let text = match expected {
                    Expected::Method => "expected method frame, got non method frame instead".to_owned(),
                    Expected::Header => format!(
                        "expected content header for class {BASIC_CLASS}, got non content header frame instead"
                    ),
                    Expected::Body => "expected content body, got non content body frame instead".to_owned(),
                };
                Exception::new(Code::UnexpectedFrame, &text)
            }
            ClientError::UnexpectedFrame { kind, payload } => {
                Exception::new(Code::UnexpectedFrame, &frame(*kind as u8, payload))
            }
            ClientError::UnexpectedMethod(state) => {
                Exception::new(Code::ChannelError, &format!("unexpected method in connection state {state}"))
            }
            ClientError::ChannelNotOpen => Exception::new(Code::ChannelError, "expected 'channel.open'"),
            ClientError::ChannelOpenedTwice => Exception::new(Code::ChannelError, "second 'channel.open' seen"),
            ClientError::TooManyChannels { channel, channel_max } => {
                let text = format!("channel number {channel} is above the negotiated channel_max ({channel_max})");
                Exception::new(Code::NotAllowed, &text)
            }
            ClientError::Unimplemented(method) => {
                Exception::new(Code::CommandInvalid, "unimplemented method").explained(method)
            }
            ClientError::NotImplemented(what) => Exception::new(Code::NotImplemented, what),
            ClientError::ConsumerTagInUse(tag) => {
                Exception::new(Code::NotAllowed, &format!("attempt to reuse consumer tag '{tag}'"))
            }
            ClientError::TooManyConsumers(limit) => {
                Exception::new(Code::NotAllowed, &format!("reached maximum ({limit}) of consumers per channel"))
            }
            ClientError::BodyTooLong => {
                Exception::new(Code::FrameError, "content body frame exceeds remaining content size")
            }
            ClientError::TooMuchUnfinished { limit } => Exception::new(
                Code::ResourceError,
                &format!(
                    "contents that are not complete take more than {limit} bytes on this connection; end some first"
                ),
            ),
            ClientError::Overdue => Exception::new(
                Code::ResourceError,
                "the broker is low on memory, and a content took too long to arrive; publish it again",
            ),
            ClientError::BodyBeyondAllLimits(bytes) => {
                let text = format!("content body size {bytes} exceeds maximum allowed size {BODY_BYTES_MAX}");
                Exception::new(Code::FrameError, &text)
            }
            ClientError::BodyTooLarge { bytes, limit } => {
                let text = format!("message size {bytes} is larger than configured max size {limit}");
                Exception::new(Code::PreconditionFailed, &text)
            }
            ClientError::UserId { claimed, user } => {
                let text = format!("user_id property set to '{claimed}' but authenticated user was '{user}'");
                Exception::new(Code::PreconditionFailed, &text)
            }
            ClientError::Expiration { value, fault } => {
                Exception::new(Code::PreconditionFailed, &format!("invalid expiration '{value}': {fault}"))
            }
            ClientError::TooManyHiddenKeys => {
                Exception::new(Code::PreconditionFailed, "the keys in header 'BCC' take more than 64 KiB")
            }
            ClientError::TooManySelectedKeys => {
                let text = format!("more than {SELECTED_KEYS_MAX} routing keys in headers 'CC' and 'BCC'");
                Exception::new(Code::PreconditionFailed, &text)
            }
            ClientError::SenderSelectedHeader { name, type_name } => {
                let text = format!("invalid message: {{unacceptable_type_in_header,\"{name}\",{type_name}}}");
                Exception::new(Code::PreconditionFailed, &text)
            }
            ClientError::CannotSwitch { from, to } => {
                Exception::new(Code::PreconditionFailed, &format!("cannot switch from {from} to {to} mode"))
            }
            ClientError::NotTransactional => {
                Exception::new(Code::PreconditionFailed, "channel is not transactional")
            }
            ClientError::ReplyConsumer(what) => Exception::new(Code::PreconditionFailed, what),
            ClientError::ZeroDeliveryTag => Exception::new(Code::PreconditionFailed, "unknown delivery tag 0"),
            ClientError::Tune { field, value, bound } => {
                let text = match bound {
                    TuneBound::Least(least) => {
                        format!("negotiated {field} = {value} is lower than the minimum allowed value ({least})")
                    }
                    TuneBound::Most(most) => {
                        format!("negotiated {field} = {value} is higher than the maximum allowed value ({most})")
                    }
                };
                Exception::new(Code::NotAllowed, &text)
            }
            ClientError::Open { error, vhost, user } => {
                let text = match error {
                    OpenError::NoSuchVhost => format!("vhost {vhost} not found"),
                    OpenError::NoAccess => format!("access to vhost '{vhost}' refused for user '{user}'"),
                    OpenError::VhostFull(limit) => format!(
                        "access to vhost '{vhost}' refused for user '{user}': connection limit ({limit}) is reached"
                    ),
                    OpenError::UserFull(limit) => {
                        format!("connection refused for user '{user}': user connection limit ({limit}) is reached")
                    }
                };
                Exception::new(Code::NotAllowed, &text)
            }
            ClientError::UserChannels { user, limit } => {
                let text = format!(
                    "number of channels opened for user '{user}' has reached the maximum allowed user limit of ({limit})"
                );
                Exception::new(Code::NotAllowed, &text)
            }
            ClientError::Login(mechanism) => {
                let text = format!(
                    "Login was refused using authentication mechanism {mechanism}. \
                     For details see the broker logfile."
                );
                Exception::new(Code::AccessRefused, &text)
            }
            ClientError::SecretRefused(user) => {
                Exception::new(Code::NotAllowed, "New secret was refused by one of the backends").explained(user)
            }
            ClientError::UnknownMechanism(name) => {
                let text = format!("unknown authentication mechanism '{name}'");
                Exception::new(Code::CommandInvalid, &text)
            }
        }
    }
}

/// A frame as RabbitMQ shows it.
fn frame(kind: u8, payload: &Snippet) -> String {
    let which = if payload.is_all() { "all".to_owned() } else { format!("first {SNIPPET_BYTES}") };
    format!("type {kind}, {which} octets = {}", term(payload.octets()))
}

/// Octets as Erlang prints a term: in quotes if all are characters to be read, and else as numbers. RabbitMQ prints
/// some octets above 127 as they are, with which a short string would not be UTF-8; here they are numbers.
fn term(octets: &[u8]) -> String {
    let is_printable = |octet: &u8| matches!(octet, 0x20..=0x7E | 0x08..=0x0D | 0x1B);
    if octets.is_empty() || !octets.iter().all(is_printable) {
        return numbers(octets);
    }
    let mut text = String::from("<<\"");
    for &octet in octets {
        match octet {
            b'"' => text.push_str("\\\""),
            b'\\' => text.push_str("\\\\"),
            0x08 => text.push_str("\\b"),
            b'\t' => text.push_str("\\t"),
            b'\n' => text.push_str("\\n"),
            0x0B => text.push_str("\\v"),
            0x0C => text.push_str("\\f"),
            b'\r' => text.push_str("\\r"),
            0x1B => text.push_str("\\e"),
            other => text.push(char::from(other)),
        }
    }
    text + "\">>"
}

/// Octets as Erlang writes a term.
fn numbers(octets: &[u8]) -> String {
    format!("<<{}>>", octets.iter().map(u8::to_string).collect::<Vec<_>>().join(","))
}

impl From<&Refusal> for Exception {
    fn from(refusal: &Refusal) -> Self {
        use ReplyCode as Code;
        let (code, text) = match refusal {
            Refusal::NoQueue { queue, vhost } => (Code::NotFound, format!("no queue '{queue}' in vhost '{vhost}'")),
            Refusal::NoExchange { exchange, vhost } => {
                (Code::NotFound, format!("no exchange '{exchange}' in vhost '{vhost}'"))
            }
            Refusal::NoPreviouslyDeclaredQueue => (Code::NotFound, "no previously declared queue".into()),
            Refusal::QueueLimit { queue, vhost, limit } => (
                Code::PreconditionFailed,
                format!("cannot declare queue '{queue}': queue limit in vhost '{vhost}' ({limit}) is reached"),
            ),
            Refusal::QueueLocked { queue, vhost } => (
                Code::ResourceLocked,
                format!(
                    "cannot obtain exclusive access to locked queue '{queue}' in vhost '{vhost}'. It could be \
                     originally declared on another connection or the exclusive property value does not match that \
                     of the original declaration."
                ),
            ),
            Refusal::ReservedQueueName { queue } => {
                (Code::AccessRefused, format!("queue name '{queue}' contains reserved prefix 'amq.*'"))
            }
            Refusal::ReservedExchangeName { exchange } => {
                (Code::AccessRefused, format!("exchange name '{exchange}' contains reserved prefix 'amq.*'"))
            }
            Refusal::InequivalentQueue { argument, queue, vhost, received, current } => (
                Code::PreconditionFailed,
                format!(
                    "inequivalent arg '{argument}' for queue '{queue}' in vhost '{vhost}': received {received} but \
                     current is {current}"
                ),
            ),
            Refusal::InequivalentExchange { argument, exchange, vhost, received, current } => (
                Code::PreconditionFailed,
                format!(
                    "inequivalent arg '{argument}' for exchange '{exchange}' in vhost '{vhost}': received {received} \
                     but current is {current}"
                ),
            ),
            Refusal::InvalidQueueArgument { queue, vhost, error: ArgumentError { argument, fault } } => {
                let text = match fault {
                    ArgumentFault::NoName(type_name) => {
                        format!(
                            "invalid type '{type_name}' for arg '{argument}' in queue '{queue}' in vhost '{vhost}'"
                        )
                    }
                    ArgumentFault::NotOfType(_) | ArgumentFault::Value(_) => {
                        format!("invalid arg '{argument}' for queue '{queue}' in vhost '{vhost}'{fault}")
                    }
                };
                (Code::PreconditionFailed, text)
            }
            // RabbitMQ tells the module of the type here.
            Refusal::NoNameForQuorum => (
                Code::PreconditionFailed,
                "Cannot declare a server-named queue for type rabbit_quorum_queue".to_owned(),
            ),
            Refusal::InvalidQueueProperty { property, queue, vhost } => (
                Code::PreconditionFailed,
                format!("invalid property '{property}' for queue '{queue}' in vhost '{vhost}'"),
            ),
            Refusal::UnknownExchangeType { kind } => {
                (Code::PreconditionFailed, format!("unknown exchange type '{kind}'"))
            }
            Refusal::NoDelayedType => (
                Code::PreconditionFailed,
                "Invalid argument, 'x-delayed-type' must be an existing exchange type".into(),
            ),
            Refusal::DelayedTwice => (
                Code::PreconditionFailed,
                "Invalid argument, 'x-delayed-message' can't be used for 'x-delayed-type'".into(),
            ),
            Refusal::InvalidExchangeArgument { argument, exchange, vhost, type_name } => (
                Code::PreconditionFailed,
                format!(
                    "invalid type '{type_name}' for arg '{argument}' in exchange '{exchange}' in vhost '{vhost}'"
                ),
            ),
            Refusal::InvalidExchange { fault } | Refusal::InvalidBinding { fault } => {
                (Code::PreconditionFailed, fault.clone())
            }
            Refusal::DefaultExchange => {
                (Code::AccessRefused, "operation not permitted on the default exchange".into())
            }
            Refusal::SystemExchange { exchange, vhost } => (
                Code::AccessRefused,
                format!("deletion of system exchange '{exchange}' in vhost '{vhost}' not allowed"),
            ),
            Refusal::InternalExchange { exchange, vhost } => (
                Code::AccessRefused,
                format!("cannot publish to internal exchange '{exchange}' in vhost '{vhost}'"),
            ),
            Refusal::QueueInUse { queue, vhost } => {
                (Code::PreconditionFailed, format!("queue '{queue}' in vhost '{vhost}' in use"))
            }
            Refusal::QueueNotEmpty { queue, vhost } => {
                (Code::PreconditionFailed, format!("queue '{queue}' in vhost '{vhost}' not empty"))
            }
            Refusal::ExchangeInUse { exchange, vhost } => {
                (Code::PreconditionFailed, format!("exchange '{exchange}' in vhost '{vhost}' in use"))
            }
            Refusal::ExclusiveConsumer { queue, vhost } => {
                (Code::AccessRefused, format!("queue '{queue}' in vhost '{vhost}' in exclusive use"))
            }
            Refusal::InvalidConsumerArgument { queue, vhost, error: ArgumentError { argument, fault } } => (
                Code::PreconditionFailed,
                format!("invalid arg '{argument}' for queue '{queue}' in vhost '{vhost}'{fault}"),
            ),
            Refusal::NoGetWithSingleActive { queue, vhost } => (
                Code::ResourceLocked,
                format!(
                    "cannot obtain access to locked queue '{queue}' in vhost '{vhost}'. basic.get operations are not \
                     supported by quorum queues with single active consumer"
                ),
            ),
            Refusal::ConsumerTimeout { channel, timeout } => (
                Code::PreconditionFailed,
                format!(
                    "delivery acknowledgement on channel {} timed out. Timeout value used: {} ms. This timeout value can \
                     be configured, see consumers doc guide to learn more",
                    channel.number(),
                    timeout.as_millis()
                ),
            ),
            Refusal::UnknownDeliveryTag { tag } => {
                (Code::PreconditionFailed, format!("unknown delivery tag {tag}"))
            }
            Refusal::PartialCommit => (Code::PreconditionFailed, "partial tx completion".into()),
            Refusal::TransactionTooLarge => {
                let text = format!(
                    "the messages of a transaction take more than {TRANSACTION_BYTES_MAX} bytes; commit earlier"
                );
                (Code::PreconditionFailed, text)
            }
            Refusal::NoRoomForTransaction => (
                Code::PreconditionFailed,
                "open transactions take too much memory; commit earlier, or raise memory_limit".into(),
            ),
            Refusal::DeclaredTooMuch => (
                Code::PreconditionFailed,
                "queues, exchanges and bindings take too much memory; delete some, or raise memory_limit".into(),
            ),
            Refusal::NoRoomForConsumer => (
                Code::PreconditionFailed,
                "consumers take too much memory; cancel some, or raise memory_limit".into(),
            ),
            Refusal::Access(refused) => (Code::AccessRefused, refused.to_string()),
        };
        let is_inequivalent =
            matches!(refusal, Refusal::InequivalentQueue { .. } | Refusal::InequivalentExchange { .. });
        Exception { is_inequivalent, ..Exception::new(code, &text) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn octets_are_shown_as_erlang_shows_them() {
        for (octets, shown) in [
            (&b""[..], "<<>>"),
            (b"abc", "<<\"abc\">>"),
            (b"a\"b\\c", r#"<<"a\"b\\c">>"#),
            (b"\x08\t\n\x0B\x0C\r\x1B", r#"<<"\b\t\n\v\f\r\e">>"#),
            (b"a\0b", "<<97,0,98>>"),
            (b"\x7F", "<<127>>"),
            (b"a\xE9", "<<97,233>>"),
        ] {
            assert_eq!(term(octets), shown);
        }
    }

    #[test]
    fn the_log_says_in_words_what_the_text_says_in_terms() {
        let too_large = FrameError::TooLarge { kind: 3, payload_bytes: 131_073, frame_max: 131_072 };
        assert_eq!(
            Exception::from(&ClientError::Frame(too_large)).for_log(),
            "FRAME_ERROR - type 3, all octets = <<>>: {frame_too_large,131073,131064} (a frame of 131073 bytes, larger \
             than the negotiated maximum 131072)"
        );
        let unimplemented = Exception::from(&ClientError::Unimplemented("queue.declare-ok"));
        assert_eq!(unimplemented.for_log(), "COMMAND_INVALID - unimplemented method (queue.declare-ok)");
    }
}
