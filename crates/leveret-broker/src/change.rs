//! Durable facts as plain values: what a journal stores, and what recovery will replay.
//!
//! The virtual host emits a change for everything that must survive a restart, in the order in which it happened,
//! and numbers them; a confirm or answer that rests on one carries its number.

use leveret_amqp::FieldTable;
use smallvec::SmallVec;

use crate::message::{Message, MessageId};
use crate::names::{ExchangeName, QueueName};
use crate::vhost::binding::Binding;

/// A point in the journal stream of one virtual host: how many changes lie before it. Positions grow.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct JournalPosition(pub u64);

/// The number by which changes name a queue. Never reused in its virtual host, unlike the name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct QueueNumber(pub u64);

/// One durable fact about a virtual host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// A durable queue exists from now on.
    QueueDeclared {
        /// What later changes call it.
        queue: QueueNumber,
        /// What clients call it.
        name: QueueName,
        /// Whether it goes when its last consumer goes.
        auto_delete: bool,
        /// The arguments of its declaration.
        arguments: FieldTable,
    },
    /// A durable queue is gone, with its messages.
    QueueDeleted {
        /// Which.
        queue: QueueNumber,
    },
    /// A persistent message lies in durable queues: all of them or, after a crash, none.
    MessageEnqueued {
        /// Its name for life.
        id: MessageId,
        /// The message itself.
        message: Message,
        /// The durable queues it was routed to.
        queues: SmallVec<[QueueNumber; 2]>,
    },
    /// A persistent message left a durable queue for good.
    MessageSettled {
        /// The queue.
        queue: QueueNumber,
        /// The message.
        id: MessageId,
    },
    /// All messages that were ready in a durable queue were removed.
    QueuePurged {
        /// The queue.
        queue: QueueNumber,
        /// The messages that stay, because they are unacked.
        except: Vec<MessageId>,
    },
    /// A durable exchange exists from now on.
    ExchangeDeclared {
        /// Its name.
        name: ExchangeName,
        /// Its type, as clients call it.
        kind: &'static str,
        /// Whether it goes with its last binding.
        auto_delete: bool,
        /// Whether clients may not publish to it.
        internal: bool,
        /// The arguments of its declaration.
        arguments: FieldTable,
    },
    /// A durable exchange is gone, with its bindings.
    ExchangeDeleted {
        /// Its name.
        name: ExchangeName,
    },
    /// A binding between two durable ends exists from now on.
    Bound(Binding),
    /// A binding between two durable ends is gone.
    Unbound(Binding),
}
