//! Durable facts as plain values: what a journal stores, and what recovery replays.
//!
//! The virtual host emits a change for everything that must survive a restart, in the order in which it happened,
//! and numbers them; a confirm or answer that rests on one carries its number. The durable part of its state is the
//! fold of its changes: recovery runs `VirtualHost::apply` on each, and nothing else.

mod codec;
mod node;
mod page;

use leveret_amqp::{FieldTable, ShortString};
use smallvec::SmallVec;

pub use self::codec::DecodeChangeError;
pub use self::node::NodeChange;
pub(crate) use self::page::Block;
pub use self::page::{PageEntries, PageEntry};
use crate::message::Message;
use crate::names::{ExchangeName, PolicyName, QueueName};
use crate::vhost::binding::Binding;
use crate::vhost::policy::{PolicyKind, PolicySource};

/// No journal gets so far with the number of a change, a message or a queue: a record that says so is not believed.
const NUMBERS_END: u64 = 1 << 62;

/// Bytes that [`Change::MessageEnqueued`] takes beside its message, for one queue. See `docs/formats/changes.md`.
pub const MESSAGE_RECORD_BYTES: u64 = 12 + ENQUEUED_RECORD_BYTES;

/// Bytes that it takes more for each further queue.
pub const ENQUEUED_RECORD_BYTES: u64 = 17;

/// A point in the journal stream of one virtual host: how many changes lie before it. Positions grow.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct JournalPosition(pub u64);

impl JournalPosition {
    /// The position of the next change.
    #[must_use]
    pub fn next(self) -> Self {
        JournalPosition(self.0 + 1)
    }
}

/// The number by which changes name a queue. Never reused in its virtual host, unlike the name.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct QueueNumber(pub u64);

/// A place in a queue. Messages of one priority are delivered in the order of their positions; none is given twice in the
/// life of its queue. The ten highest bits say the priority, as how much it is lower than that of a message without one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct QueuePosition(pub u64);

impl QueuePosition {
    /// The place behind this one.
    #[must_use]
    pub fn next(self) -> Self {
        QueuePosition(self.0 + 1)
    }
}

/// A durable queue that a message was put into.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Enqueued {
    /// The queue.
    pub queue: QueueNumber,
    /// The place of the message in it.
    pub position: QueuePosition,
    /// When it expires there.
    pub expires: Option<Expiry>,
}

/// When a message expires, as it outlives a restart: by the wall clock, and never later than its whole time to live
/// after the restart, whatever that clock did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Expiry {
    /// Milliseconds since 1970-01-01T00:00:00Z.
    pub wall_ms: u64,
    /// Its time to live when it was enqueued, in milliseconds.
    pub time_to_live_ms: u64,
}

/// How often a message was given to somebody and came back. RabbitMQ: quorum queues, headers `x-acquired-count` and
/// `x-delivery-count`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tries {
    /// All of these times.
    pub acquired: u32,
    /// Those of them that count as failures.
    pub failed: u32,
}

/// Why a message leaves a queue without having been consumed. RabbitMQ: dead lettering, field `reason` of `x-death`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum DeathReason {
    /// `basic.reject` or `basic.nack` without `requeue`.
    Rejected,
    /// Its time to live has passed.
    Expired,
    /// The queue is longer than it may be.
    MaxLen,
    /// It was given back more often than it may be.
    DeliveryLimit,
}

impl DeathReason {
    /// As headers name it.
    pub fn as_str(self) -> &'static str {
        match self {
            DeathReason::Rejected => "rejected",
            DeathReason::Expired => "expired",
            DeathReason::MaxLen => "maxlen",
            DeathReason::DeliveryLimit => "delivery_limit",
        }
    }

    /// The one that headers name so.
    pub(crate) fn parse(name: &str) -> Option<Self> {
        use DeathReason::{DeliveryLimit, Expired, MaxLen, Rejected};
        [Rejected, Expired, MaxLen, DeliveryLimit].into_iter().find(|reason| reason.as_str() == name)
    }
}

/// Bytes that a change takes while it waits for a journal, beside what its own length decides, about.
const CHANGE_OVERHEAD_BYTES: usize = 100;

impl Change {
    /// Bytes that it takes while it waits for a journal, about.
    pub fn bytes(&self) -> usize {
        let own = match self {
            Change::MessageEnqueued { message, queues } => message.bytes() + queues.len() * size_of::<Enqueued>(),
            Change::QueueClosed { kept: places, .. } | Change::QueuePurged { except: places, .. } => {
                places.len() * size_of::<QueuePosition>()
            }
            Change::MessagesCondemned { messages, .. } => size_of_val(&messages[..]),
            Change::MessagesReturned { messages, .. } => size_of_val(&messages[..]),
            Change::QueueDeclared { arguments, .. } | Change::ExchangeDeclared { arguments, .. } => {
                arguments.as_table().as_bytes().len()
            }
            Change::Bound(binding) | Change::Unbound(binding) => binding.arguments.as_table().as_bytes().len(),
            Change::PolicySet(source) => source.pattern.len() + source.definition.as_table().as_bytes().len(),
            Change::QueueRestated { arguments, .. } => arguments.as_table().as_bytes().len(),
            Change::QueuePage { entries, .. } => entries.as_bytes().len(),
            Change::QueueDeleted { .. }
            | Change::DelayQueueDeclared { .. }
            | Change::DelayQueueRestated { .. }
            | Change::MessageSettled { .. }
            | Change::DeliveryGranted { .. }
            | Change::ExchangeDeleted { .. }
            | Change::PolicyCleared { .. }
            | Change::CheckpointBegun { .. }
            | Change::LevelRestated { .. }
            | Change::CheckpointEnded { .. } => 0,
        };
        // Names are at most 255 bytes; they go with the overhead.
        own + CHANGE_OVERHEAD_BYTES
    }
}

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
    /// The messages that wait in a durable exchange before it routes them lie in a durable queue, which nobody finds by a name.
    DelayQueueDeclared {
        /// What later changes call the queue.
        queue: QueueNumber,
        /// The exchange.
        exchange: ExchangeName,
    },
    /// A durable queue is gone, with its messages.
    QueueDeleted {
        /// Which.
        queue: QueueNumber,
    },
    /// A durable queue is gone, with its messages, but for dead letters that have not gone on yet. Its name is free. Once they have
    /// gone on, it is deleted.
    QueueClosed {
        /// Which.
        queue: QueueNumber,
        /// The places of those dead letters, in order. They are condemned.
        kept: Vec<QueuePosition>,
    },
    /// A message lies in durable queues: all of them or, after a crash, none. The position of this change is the
    /// name of the message for life.
    MessageEnqueued {
        /// The message itself.
        message: Message,
        /// The durable queues it was routed to.
        queues: SmallVec<[Enqueued; 1]>,
    },
    /// A journaled message left a durable queue for good.
    MessageSettled {
        /// The queue.
        queue: QueueNumber,
        /// The place that the message had in it.
        position: QueuePosition,
    },
    /// Messages came back to a durable queue that counts how often.
    MessagesReturned {
        /// The queue.
        queue: QueueNumber,
        /// Their places in it, and how often each was given away and came back by now.
        messages: SmallVec<[(QueuePosition, Tries); 1]>,
    },
    /// Journaled messages of a durable queue are to be dead-lettered, and are not delivered any more. They are settled once
    /// they have gone on.
    MessagesCondemned {
        /// The queue.
        queue: QueueNumber,
        /// Their places in it and why they die, in the order in which they go on.
        messages: SmallVec<[(QueuePosition, DeathReason); 1]>,
    },
    /// All messages that were ready in a durable queue were removed.
    QueuePurged {
        /// The queue.
        queue: QueueNumber,
        /// Only messages before this place are meant.
        below: QueuePosition,
        /// The places of messages that stay, because they are unacked, in order.
        except: Vec<QueuePosition>,
    },
    /// Messages of a durable queue may be handed out up to a place. After a crash, what lies before it may have been
    /// delivered. A stop in good order lowers it to what was delivered.
    DeliveryGranted {
        /// The queue.
        queue: QueueNumber,
        /// Only messages before this place are meant.
        below: QueuePosition,
    },
    /// A durable exchange exists from now on.
    ExchangeDeclared {
        /// Its name.
        name: ExchangeName,
        /// Its type, as clients call it.
        kind: ShortString,
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
    /// A policy is in force from now on, in the place of the one of its kind and name, if there is one.
    PolicySet(PolicySource),
    /// A policy is gone.
    PolicyCleared {
        /// Policy or operator policy.
        kind: PolicyKind,
        /// Which.
        name: PolicyName,
    },
    /// What is true is said once more from here on, so that what was journaled before need not be read again. Other changes
    /// come in between; each part is true for the place where it stands. First come the queues, each with its pages
    /// before it, in the order of their numbers, then the durable exchanges, then the bindings, as if they were declared, then
    /// the policies.
    CheckpointBegun {
        /// The greatest number that was given to a queue; those with greater ones are declared behind this.
        last_queue: QueueNumber,
    },
    /// Part of a checkpoint: journaled messages in a durable queue, which follow those of its last page.
    QueuePage {
        /// The queue.
        queue: QueueNumber,
        /// The messages.
        entries: PageEntries,
    },
    /// Part of a checkpoint: a durable queue, whose messages are those of its pages.
    QueueRestated {
        /// What changes call it.
        queue: QueueNumber,
        /// What clients call it.
        name: QueueName,
        /// Whether it goes when its last consumer goes.
        auto_delete: bool,
        /// Whether it was closed, and is there for its dead letters only.
        closed: bool,
        /// The arguments of its declaration.
        arguments: FieldTable,
        /// The place that its next message will get.
        next: QueuePosition,
        /// Messages may be handed out up to this place.
        granted: QueuePosition,
        /// How many messages its pages have.
        messages: u64,
    },
    /// Part of a checkpoint: the queue of messages that wait in an exchange. What it has is in its pages, and for each of its
    /// levels the place that comes next follows.
    DelayQueueRestated {
        /// What changes call the queue.
        queue: QueueNumber,
        /// The exchange.
        exchange: ExchangeName,
        /// How many messages its pages have.
        messages: u64,
    },
    /// Part of a checkpoint: messages of a priority of their own in a durable queue, which was restated just before.
    LevelRestated {
        /// What changes call the queue.
        queue: QueueNumber,
        /// The place that the next message of this priority will get.
        next: QueuePosition,
        /// Messages of this priority may be handed out up to this place.
        granted: QueuePosition,
    },
    /// All was said that a checkpoint says.
    CheckpointEnded {
        /// Where it begun.
        begun: JournalPosition,
    },
}
