//! What follows from a batch: outputs grouped by connection, changes for the journal, bodies to fetch.

use std::num::NonZeroU64;
use std::ops::Range;
use std::time::Duration;

use leveret_amqp::ReplyCode;
use slotmap::SecondaryMap;
use triomphe::Arc;

use crate::change::{Change, JournalPosition};
use crate::connection::reply::Exception;
use crate::limits::DELIVERY_OVERHEAD_BYTES;
use crate::message::{Message, MessageId};
use crate::names::{ChannelId, ConsumerTag, QueueName};
use crate::row::Row;
use crate::vhost::command::{AckMode, ConsumerId, DeliveryTag, Farewell, Wait};
use crate::vhost::queue::Position;
use crate::vhost::{ConnectionId, QueueId};

/// Something a connection has to tell its client.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Output {
    /// `basic.deliver`
    Deliver {
        /// Where to.
        channel: ChannelId,
        /// The consumer; the connection knows its tag.
        consumer: ConsumerId,
        /// The number of the delivery.
        tag: DeliveryTag,
        /// Whether it is to be acked.
        ack_mode: AckMode,
        /// Whether it may have been delivered before.
        redelivered: bool,
        /// What must be durable first.
        after: JournalPosition,
        /// What is delivered.
        message: Message,
    },
    /// Several `basic.deliver`, to a consumer that need not ack them.
    DeliverRow {
        /// Where to.
        channel: ChannelId,
        /// The consumer; the connection knows its tag.
        consumer: ConsumerId,
        /// The number of the first delivery.
        tag: DeliveryTag,
        /// What must be durable first.
        after: JournalPosition,
        /// Where the messages are.
        row: Arc<Row>,
        /// Which of them are delivered.
        messages: Range<u32>,
    },
    /// `basic.get-ok`
    GetOk {
        /// Where to.
        channel: ChannelId,
        /// The number of the delivery.
        tag: DeliveryTag,
        /// Whether it may have been delivered before.
        redelivered: bool,
        /// Messages still ready in the queue.
        message_count: u32,
        /// What must be durable first.
        after: JournalPosition,
        /// What was got.
        message: Message,
    },
    /// `basic.return` of a mandatory message
    Return {
        /// Where to.
        channel: ChannelId,
        /// Why.
        reason: ReplyCode,
        /// What comes back.
        message: Message,
    },
    /// A publish was taken care of; its confirm goes out once the journal has reached `after`.
    Confirm {
        /// The channel that published.
        channel: ChannelId,
        /// The number of the publish.
        number: NonZeroU64,
        /// What must be durable first.
        after: JournalPosition,
    },
    /// A queue was full and did not take a publish: `basic.nack` for the publisher.
    Refuse {
        /// The channel that published.
        channel: ChannelId,
        /// The number of the publish.
        number: NonZeroU64,
    },
    /// An `-ok` and its like, once the journal has come that far.
    Answer(ChannelId, Answer, JournalPosition),
    /// The channel is closed by an exception.
    CloseChannel(ChannelId, Exception),
    /// `connection.blocked`, with its reason.
    Blocked(&'static str),
    /// There is room again: `connection.unblocked`, if the client was told that it is blocked.
    Unblocked,
    /// Somebody waits to hear that what came before is written: [`Command::Written`](super::command::Command::Written).
    TellWritten,
    /// The connection ends once the journal has come that far, and nothing follows.
    Farewell(Farewell, JournalPosition),
}

impl Output {
    /// What it counts in the windows of its connection.
    pub(crate) fn window(&self) -> Window {
        match self {
            Output::Deliver { message, .. } => Window { deliveries: window_bytes(message), answers: 0 },
            Output::DeliverRow { row, messages, .. } => {
                let messages = messages.start as usize..messages.end as usize;
                Window { deliveries: row.window_bytes(messages), answers: 0 }
            }
            Output::GetOk { message, .. } | Output::Return { message, .. } => {
                Window { deliveries: 0, answers: window_bytes(message) }
            }
            Output::Confirm { .. }
            | Output::Refuse { .. }
            | Output::Answer(..)
            | Output::CloseChannel(..)
            | Output::Blocked(_)
            | Output::Unblocked
            | Output::TellWritten
            | Output::Farewell(..) => Window::default(),
        }
    }

    /// How many things a client is told.
    pub fn count(&self) -> usize {
        if let Output::DeliverRow { messages, .. } = self { messages.len() } else { 1 }
    }

    /// Whether it is a delivery that the consumer has to ack.
    pub fn is_to_be_acked(&self) -> bool {
        matches!(self, Output::Deliver { ack_mode: AckMode::Manual, .. })
    }

    /// What it counts in the windows of its connection, if it is a row.
    pub fn row_bytes(&self) -> Option<usize> {
        matches!(self, Output::DeliverRow { .. }).then(|| self.window().bytes())
    }

    /// The same, with each delivery of a row by itself, for whoever compares it with a model.
    pub fn singly(self) -> impl Iterator<Item = Output> {
        let mut rest = Some(self);
        std::iter::from_fn(move || {
            let Some(Output::DeliverRow { channel, consumer, tag, after, row, messages }) = &mut rest else {
                return rest.take();
            };
            let nth = messages.next()? as usize;
            let (message, ack_mode, redelivered) = (row.message(nth), AckMode::Automatic, false);
            let single = Output::Deliver {
                channel: *channel,
                consumer: *consumer,
                tag: *tag,
                ack_mode,
                redelivered,
                after: *after,
                message,
            };
            *tag = tag.next();
            Some(single)
        })
    }

    /// The channel whose order it keeps; none for what concerns the whole connection.
    pub(crate) fn channel(&self) -> Option<ChannelId> {
        match self {
            Output::Deliver { channel, .. }
            | Output::DeliverRow { channel, .. }
            | Output::GetOk { channel, .. }
            | Output::Return { channel, .. }
            | Output::Confirm { channel, .. }
            | Output::Refuse { channel, .. }
            | Output::Answer(channel, ..)
            | Output::CloseChannel(channel, _) => Some(*channel),
            Output::Blocked(_) | Output::Unblocked | Output::TellWritten | Output::Farewell(..) => None,
        }
    }

    /// What must be durable before it may be told, and before anything behind it on its channel. Confirms are not
    /// answers: what they wait for holds nothing else back.
    pub(crate) fn holds_until(&self) -> JournalPosition {
        match self {
            Output::Deliver { after, .. }
            | Output::DeliverRow { after, .. }
            | Output::GetOk { after, .. }
            | Output::Answer(_, _, after)
            | Output::Farewell(_, after) => *after,
            Output::Return { .. }
            | Output::Confirm { .. }
            | Output::Refuse { .. }
            | Output::CloseChannel(..)
            | Output::Blocked(_)
            | Output::Unblocked
            | Output::TellWritten => JournalPosition::default(),
        }
    }
}

/// Bytes handed to a connection and not yet written to its socket.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Window {
    /// Of messages for its consumers.
    pub(crate) deliveries: usize,
    /// Of messages that answer what the client did.
    pub(crate) answers: usize,
}

impl Window {
    pub(crate) fn bytes(self) -> usize {
        self.deliveries + self.answers
    }

    /// Whether no consumer gets another message, where a window may have so many bytes. Whoever has nothing to write may always
    /// get one: otherwise nothing would say when to go on.
    pub(crate) fn is_full(self, window_max: usize) -> bool {
        self.deliveries >= window_max.max(1)
    }
}

pub(crate) fn window_bytes(message: &Message) -> usize {
    message.bytes() + DELIVERY_OVERHEAD_BYTES
}

/// An answer to a synchronous method, and what the broker says unasked that is as small.
#[derive(Clone, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "each is the method of that name")]
pub enum Answer {
    ChannelOpenOk,
    ChannelCloseOk,
    ChannelFlowOk {
        active: bool,
    },
    AccessRequestOk,
    ExchangeDeclareOk,
    ExchangeDeleteOk,
    ExchangeBindOk,
    ExchangeUnbindOk,
    QueueDeclareOk {
        queue: QueueName,
        message_count: u32,
        consumer_count: u32,
    },
    QueueBindOk,
    QueueUnbindOk,
    QueuePurgeOk {
        message_count: u32,
    },
    QueueDeleteOk {
        message_count: u32,
    },
    BasicQosOk,
    BasicConsumeOk {
        consumer: ConsumerId,
    },
    /// Also without an answer, so that the connection learns that no delivery follows. No consumer: the tag was
    /// unknown, which is no error.
    BasicCancelOk {
        consumer: Option<ConsumerId>,
        tag: ConsumerTag,
        wait: Wait,
    },
    BasicCancel {
        consumer: ConsumerId,
    },
    /// A consumer held a delivery for longer than it may, and is one no longer.
    ConsumerTimedOut {
        consumer: ConsumerId,
        timeout: Duration,
    },
    BasicGetEmpty,
    BasicRecoverOk,
    ConfirmSelectOk,
    TxSelectOk,
    TxCommitOk,
    TxRollbackOk,
}

/// A stored body that is needed. The answer goes to `VirtualHost::handle_fetched`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fetch {
    /// The message.
    pub id: MessageId,
    pub(crate) purpose: FetchFor,
}

/// What goes on when the body is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum FetchFor {
    /// A queue that delivers: its head, which nothing overtakes, and what comes behind.
    Queue(QueueId, Position),
    /// The `basic.get` of a connection, which begins nothing else until then.
    Get(ConnectionId),
}

/// A body that was asked for.
#[derive(Clone, Debug)]
pub struct Fetched {
    /// What was asked.
    pub fetch: Fetch,
    /// What was found; none if it cannot be read.
    pub message: Option<Message>,
}

/// Something that happened by itself and that whoever runs the broker should know.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Notice {
    /// A dead letter came round to a queue in which it was. Said once for each queue from which one came.
    #[error(
        "a dead letter was dropped, for it came round without having been rejected (dead letter cycle, the last queue first: {}); \
         not said again of queue '{}'",
        queues.join(", "),
        queues.get(1).map_or("", String::as_str)
    )]
    DeadLetterCycle {
        /// The queue to which it came, and those from which it came, the last one first.
        queues: Vec<String>,
    },
    /// A dead letter has gone on by itself as far as it may. Said once for each queue that one could not leave.
    #[error(
        "a dead letter was dropped, for too many were made of one message, or it died too often without having been rejected; \
         not said again of queue '{queue}'"
    )]
    DeadLetterSpread {
        /// The queue that it was to leave.
        queue: QueueName,
    },
    /// A client has too much to read to be sent a direct reply. Said again only when it has read most of that meanwhile.
    #[error(
        "a direct reply was dropped, for its client has too much to read, and so are others until it reads: connection {connection}"
    )]
    ReplyDropped {
        /// The name of its connection.
        connection: String,
    },
    /// The consumers of a channel hold as many deliveries as those of any channel may, and get no more before they settle some. Said once
    /// for each channel.
    #[error(
        "a channel has {unacked} deliveries unacknowledged, as many as memory_limit allows, and its consumers get nothing more before \
         some are settled: channel {channel}"
    )]
    UnackedMany {
        /// The name of its connection, and its number.
        channel: String,
        /// How many they hold.
        unacked: u64,
    },
}

/// What follows from a batch of commands. Reused from batch to batch, so that its buffers are, too.
#[derive(Debug, Default)]
pub struct Effects {
    groups: Vec<Outputs>,
    /// Groups in use; those behind it keep their buffers for later.
    used: usize,
    group_of: SecondaryMap<ConnectionId, usize>,
    /// Durable facts, in their order.
    pub changes: Vec<Change>,
    /// Whether the last of the changes belong together with the next ones: a journal must not make them durable
    /// without those.
    pub changes_go_on: bool,
    /// Bodies that queues wait for.
    pub fetches: Vec<Fetch>,
    /// For the log.
    pub notices: Vec<Notice>,
}

/// What one connection has to tell its client.
#[derive(Debug)]
pub(crate) struct Outputs {
    to: ConnectionId,
    list: Vec<Output>,
    /// Bytes of the messages in them, as windows count them.
    bytes: usize,
}

impl Outputs {
    pub(crate) fn push(&mut self, output: Output) {
        self.bytes += output.window().bytes();
        self.list.push(output);
    }
}

impl Effects {
    pub(crate) fn push(&mut self, to: ConnectionId, output: Output) {
        self.outputs(to).push(output);
    }

    /// What a connection has to tell so far, to add to it.
    pub(crate) fn outputs(&mut self, to: ConnectionId) -> &mut Outputs {
        let group = match self.group_of.get(to) {
            Some(&group) => group,
            None => self.new_group(to),
        };
        &mut self.groups[group]
    }

    fn new_group(&mut self, to: ConnectionId) -> usize {
        let group = self.used;
        match self.groups.get_mut(group) {
            Some(reused) => reused.to = to,
            None => self.groups.push(Outputs { to, list: Vec::new(), bytes: 0 }),
        }
        self.used += 1;
        self.group_of.insert(to, group);
        group
    }

    /// Hands out what each connection has to tell its client, in the order in which the connections first came
    /// up, and the bytes of the messages in it. What `take` leaves in the buffer is dropped. Who has nothing to tell is left out.
    pub fn take_outputs(&mut self, mut take: impl FnMut(ConnectionId, &mut Vec<Output>, usize)) {
        for group in &mut self.groups[..self.used] {
            if !group.list.is_empty() {
                take(group.to, &mut group.list, std::mem::take(&mut group.bytes));
            }
            group.list.clear();
            self.group_of.remove(group.to);
        }
        self.used = 0;
    }
}
