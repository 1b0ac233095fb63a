//! Why a virtual host refuses a command, in domain words. What the wire hears of it is decided in
//! `connection/reply.rs`.

use std::time::Duration;

use crate::access::AccessRefused;
use crate::names::ChannelId;
use crate::vhost::queue::ArgumentError;

/// A command that is refused. Names are as the client gave them.
#[derive(Clone, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "the variants are sentences and their fields the names in them")]
pub enum Refusal {
    NoQueue {
        queue: String,
        vhost: String,
    },
    NoExchange {
        exchange: String,
        vhost: String,
    },
    /// The empty queue name, and nothing was declared on this channel.
    NoPreviouslyDeclaredQueue,
    /// An exclusive queue of another connection.
    QueueLocked {
        queue: String,
        vhost: String,
    },
    /// A name that only the broker may choose.
    ReservedQueueName {
        queue: String,
    },
    ReservedExchangeName {
        exchange: String,
    },
    InequivalentQueue {
        argument: String,
        queue: String,
        vhost: String,
        received: String,
        current: String,
    },
    InequivalentExchange {
        argument: String,
        exchange: String,
        vhost: String,
        received: String,
        current: String,
    },
    InvalidQueueArgument {
        queue: String,
        vhost: String,
        error: ArgumentError,
    },
    /// The name of a queue of type quorum was left to the server.
    NoNameForQuorum,
    /// As many queues as the virtual host may have.
    QueueLimit {
        /// What was to be declared.
        queue: String,
        /// Its virtual host.
        vhost: String,
        /// How many there may be.
        limit: u64,
    },
    /// A property that queues of this type cannot have.
    InvalidQueueProperty {
        property: &'static str,
        queue: String,
        vhost: String,
    },
    UnknownExchangeType {
        kind: String,
    },
    /// Argument `x-delayed-type` names no type.
    NoDelayedType,
    /// It names the type `x-delayed-message` itself.
    DelayedTwice,
    InvalidExchangeArgument {
        argument: &'static str,
        exchange: String,
        vhost: String,
        type_name: &'static str,
    },
    /// Arguments that the type of the exchange does not allow.
    InvalidExchange {
        fault: String,
    },
    /// A key, arguments or a destination that the type of the exchange does not allow.
    InvalidBinding {
        fault: String,
    },
    /// Declare, delete, bind or unbind of the exchange with the empty name.
    DefaultExchange,
    /// A predeclared exchange cannot be deleted.
    SystemExchange {
        exchange: String,
        vhost: String,
    },
    InternalExchange {
        exchange: String,
        vhost: String,
    },
    QueueInUse {
        queue: String,
        vhost: String,
    },
    QueueNotEmpty {
        queue: String,
        vhost: String,
    },
    ExchangeInUse {
        exchange: String,
        vhost: String,
    },
    /// Somebody has the queue for himself, or wants it and is not alone.
    ExclusiveConsumer {
        queue: String,
        vhost: String,
    },
    InvalidConsumerArgument {
        queue: String,
        vhost: String,
        error: ArgumentError,
    },
    /// `basic.get` from a queue of type quorum with a single active consumer.
    NoGetWithSingleActive {
        queue: String,
        vhost: String,
    },
    /// A delivery was not settled in time.
    ConsumerTimeout {
        channel: ChannelId,
        timeout: Duration,
    },
    UnknownDeliveryTag {
        tag: u64,
    },
    /// A queue was too full for what a transaction has published; all else of it is done.
    PartialCommit,
    /// A transaction holds more than a journal takes at once.
    TransactionTooLarge,
    /// A connection would hold more in transactions than is left for all.
    NoRoomForTransaction,
    /// The same of consumers.
    NoRoomForConsumer,
    /// What is declared takes as much as it may.
    DeclaredTooMuch,
    Access(AccessRefused),
}

impl From<AccessRefused> for Refusal {
    fn from(refused: AccessRefused) -> Self {
        Refusal::Access(refused)
    }
}
