//! Reply codes and whether each closes the channel or the connection. AMQP 0-9-1 §1.2.

/// Why a channel or connection is closed, or a message returned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u16)]
pub enum ReplyCode {
    /// All is well: a normal close.
    Success = 200,
    /// The message is larger than the peer takes.
    ContentTooLarge = 311,
    /// A mandatory message reached no queue.
    NoRoute = 312,
    /// An immediate message found no consumer. Never sent: `immediate` is refused, as RabbitMQ does.
    NoConsumers = 313,
    /// An operator closed the connection, or the broker stops.
    ConnectionForced = 320,
    /// An unknown virtual host. RabbitMQ answers 530 instead.
    InvalidPath = 402,
    /// No permission, or a reserved name.
    AccessRefused = 403,
    /// No such queue or exchange.
    NotFound = 404,
    /// An exclusive queue of another connection.
    ResourceLocked = 405,
    /// An argument or a state forbids it.
    PreconditionFailed = 406,
    /// A frame that breaks the framing rules.
    FrameError = 501,
    /// A field table that breaks its rules.
    SyntaxError = 502,
    /// A method that makes no sense here.
    CommandInvalid = 503,
    /// A channel that is not open, or opened twice.
    ChannelError = 504,
    /// A frame that does not fit what came before.
    UnexpectedFrame = 505,
    /// The broker lacks room.
    ResourceError = 506,
    /// A limit or rule of the server forbids it.
    NotAllowed = 530,
    /// The broker does not have this.
    NotImplemented = 540,
    /// A fault in the broker.
    InternalError = 541,
}

/// What an exception closes. AMQP 0-9-1 §1.2: soft errors close the channel, hard errors the connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Severity {
    /// Closes the channel.
    Channel,
    /// Closes the connection.
    Connection,
}

impl ReplyCode {
    /// The number on the wire.
    pub fn code(self) -> u16 {
        self as u16
    }

    /// The name with which RabbitMQ begins every reply text.
    pub fn name(self) -> &'static str {
        match self {
            ReplyCode::Success => "OK",
            ReplyCode::ContentTooLarge => "CONTENT_TOO_LARGE",
            ReplyCode::NoRoute => "NO_ROUTE",
            ReplyCode::NoConsumers => "NO_CONSUMERS",
            ReplyCode::ConnectionForced => "CONNECTION_FORCED",
            ReplyCode::InvalidPath => "INVALID_PATH",
            ReplyCode::AccessRefused => "ACCESS_REFUSED",
            ReplyCode::NotFound => "NOT_FOUND",
            ReplyCode::ResourceLocked => "RESOURCE_LOCKED",
            ReplyCode::PreconditionFailed => "PRECONDITION_FAILED",
            ReplyCode::FrameError => "FRAME_ERROR",
            ReplyCode::SyntaxError => "SYNTAX_ERROR",
            ReplyCode::CommandInvalid => "COMMAND_INVALID",
            ReplyCode::ChannelError => "CHANNEL_ERROR",
            ReplyCode::UnexpectedFrame => "UNEXPECTED_FRAME",
            ReplyCode::ResourceError => "RESOURCE_ERROR",
            ReplyCode::NotAllowed => "NOT_ALLOWED",
            ReplyCode::NotImplemented => "NOT_IMPLEMENTED",
            ReplyCode::InternalError => "INTERNAL_ERROR",
        }
    }

    /// What an exception with this code closes.
    pub fn severity(self) -> Severity {
        match self {
            ReplyCode::ContentTooLarge
            | ReplyCode::NoRoute
            | ReplyCode::NoConsumers
            | ReplyCode::AccessRefused
            | ReplyCode::NotFound
            | ReplyCode::ResourceLocked
            | ReplyCode::PreconditionFailed => Severity::Channel,
            ReplyCode::Success
            | ReplyCode::ConnectionForced
            | ReplyCode::InvalidPath
            | ReplyCode::FrameError
            | ReplyCode::SyntaxError
            | ReplyCode::CommandInvalid
            | ReplyCode::ChannelError
            | ReplyCode::UnexpectedFrame
            | ReplyCode::ResourceError
            | ReplyCode::NotAllowed
            | ReplyCode::NotImplemented
            | ReplyCode::InternalError => Severity::Connection,
        }
    }
}
