//! What a connection asks of its virtual host, decoded and checked as far as that is possible without it.

use std::collections::VecDeque;
use std::num::{NonZeroU8, NonZeroU64};

use leveret_amqp::{FieldTable, ShortString};
use triomphe::Arc;

use crate::connection::reply::Exception;
use crate::limits::{ACKS_AT_ONCE, ROW_MESSAGE_BYTES_MAX, ROW_MESSAGES_MAX};
use crate::message::Message;
use crate::names::{ChannelId, ConsumerTag};
use crate::row::Row;
use crate::vhost::effects::{Answer, Window};

/// The commands of one connection that wait for their virtual host, in the order in which they arrived.
#[derive(Debug, Default)]
pub struct Commands {
    pub(crate) queue: VecDeque<Command>,
    /// What the last of them is like, if it publishes what others may join in a row.
    last_like: Option<Likeness>,
    /// The last row came to lie in a queue, or was taken apart: what is published next would only be copied out of a row again.
    pub(crate) keep_apart: bool,
}

/// Publishes of a connection with the same likeness differ in nothing but their content headers and bodies, and ask for the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Likeness(pub(crate) u64);

impl Commands {
    /// Whether there is nothing to do.
    pub fn is_empty(&self) -> bool {
        self.queue.is_empty()
    }

    /// Puts a command before those that wait.
    pub(crate) fn push_first(&mut self, command: Command) {
        self.queue.push_front(command);
    }

    /// Whether the last of them is that the client has gone without a word.
    pub(crate) fn end_in_silence(&self) -> bool {
        matches!(self.queue.back(), Some(Command::Disconnect(Farewell::Silent)))
    }

    /// Bytes of messages that wait to be published.
    pub(crate) fn published_bytes(&self) -> usize {
        let bytes = |command: &Command| match command {
            Command::Publish(publish) => publish.message.bytes(),
            Command::PublishRow(row) => row.bytes(),
            _ => 0,
        };
        self.queue.iter().map(bytes).sum()
    }

    /// How many wait; publishes in a row are one.
    pub fn len(&self) -> usize {
        self.queue.len()
    }

    /// Appends a command. An ack that goes on where the last one ended becomes part of it.
    pub fn push(&mut self, command: Command) {
        self.last_like = None;
        if !self.queue.back_mut().is_some_and(|last| last.absorb(&command)) {
            self.queue.push_back(command);
        }
    }

    /// Appends a publish, which others of the same likeness may follow as one command.
    pub(crate) fn push_like(&mut self, publish: Publish, likeness: Likeness) {
        if let Some(last) = self.like(likeness, publish.confirm) {
            if let Command::Publish(first) = last {
                let messages = Messages::Each(VecDeque::from([first.message.clone()]));
                *last = Command::PublishRow(PublishRow::of(first, messages));
            }
            if let Command::PublishRow(PublishRow { messages: Messages::Each(messages), .. }) = last
                && messages.len() < ROW_MESSAGES_MAX
            {
                return messages.push_back(publish.message);
            }
        }
        self.push(Command::Publish(publish));
        self.last_like = Some(likeness);
    }

    /// The row that a publish with this number joins, which takes so many bytes, if the last command is one of its likeness, or
    /// begins one.
    pub(crate) fn joinable(
        &mut self,
        likeness: Likeness,
        confirm: Option<NonZeroU64>,
        bytes: usize,
    ) -> Option<&mut Row> {
        if self.keep_apart || bytes > ROW_MESSAGE_BYTES_MAX {
            return None;
        }
        let last = self.like(likeness, confirm)?;
        if let Command::Publish(first) = last {
            if first.message.bytes() > ROW_MESSAGE_BYTES_MAX {
                return None;
            }
            let row = Messages::Row(Arc::new(Row::of(&first.message)));
            *last = Command::PublishRow(PublishRow::of(first, row));
        }
        let Command::PublishRow(PublishRow { messages: Messages::Row(row), next: 0, .. }) = last else {
            return None;
        };
        Arc::get_mut(row).filter(|row| row.has_room(bytes))
    }

    /// The last command, if it publishes what is of this likeness, and what has this number comes next. The client may have
    /// asked for confirms without waiting for an answer.
    fn like(&mut self, likeness: Likeness, confirm: Option<NonZeroU64>) -> Option<&mut Command> {
        let last = self.queue.back_mut().filter(|_| self.last_like == Some(likeness))?;
        let expected = match last {
            Command::Publish(publish) => publish.confirm.and_then(|number| number.checked_add(1)),
            Command::PublishRow(row) => row.confirm(row.next + row.left()),
            _ => return None,
        };
        (confirm == expected).then_some(last)
    }

    /// Takes out what comes next; of a row, the first publish by itself.
    pub fn take(&mut self) -> Option<Command> {
        let Some(Command::PublishRow(row)) = self.queue.front_mut() else { return self.queue.pop_front() };
        let first = row.take_publish();
        if row.left() == 0 {
            self.queue.pop_front();
        }
        self.keep_apart = true;
        first.map(Command::Publish)
    }
}

/// Number of one delivery on one channel, counted from 1. Never compared across channels.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DeliveryTag(pub(crate) NonZeroU64);

impl DeliveryTag {
    /// The number on the wire.
    pub fn number(self) -> u64 {
        self.0.get()
    }

    /// That of the delivery behind it on its channel.
    pub(crate) fn next(self) -> Self {
        DeliveryTag(self.0.saturating_add(1))
    }
}

/// What an ack, nack or reject settles. On the wire tag 0 with `multiple` means "all": here it is a variant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AckTarget {
    /// So many deliveries from this one on, each by itself.
    Each {
        /// The first of them.
        first: DeliveryTag,
        /// How many tags.
        count: NonZeroU8,
    },
    /// This delivery and all before it on the channel.
    UpTo(DeliveryTag),
    /// Every delivery outstanding on the channel.
    AllOutstanding,
}

/// What becomes of the deliveries that are settled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Settlement {
    /// The consumer has done its work: the message is gone. `basic.ack`
    Ack,
    /// Back to its place in the queue. `basic.nack` with `requeue`, `basic.recover`
    Requeue,
    /// The same, as a failure, which some queues count. `basic.reject` with `requeue`, or a channel that goes
    Fail,
    /// Gone without success. `basic.nack` and `basic.reject` without `requeue`
    Discard,
}

/// The method that settles.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SettledBy {
    /// `basic.ack`
    Ack,
    /// `basic.nack`
    Nack,
    /// `basic.reject`
    Reject,
}

/// Names a consumer on its connection. Slots are used again, names are not: the number tells them apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ConsumerId {
    pub(crate) slot: u32,
    pub(crate) number: u64,
}

/// Whether the peer waits for an answer. Field `nowait`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wait {
    /// The `-ok` is awaited.
    Answer,
    /// Errors close the channel all the same, but there is no `-ok`.
    NoWait,
}

/// Whether deliveries must be settled by the consumer. Field `no-ack`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AckMode {
    /// Each delivery is unacked until the consumer settles it.
    Manual,
    /// A delivery is settled by being sent.
    Automatic,
}

/// One thing that a connection asks for.
#[derive(Debug)]
pub enum Command {
    /// `channel.open`
    OpenChannel(ChannelId),
    /// `channel.close` of the client, or its `close-ok`, for which there is no answer.
    CloseChannel(ChannelId, Wait),
    /// An answer that needs nothing from the virtual host and keeps its place among those that do.
    Answer(ChannelId, Answer),
    /// The connection found a fault of the client on one channel; what it holds goes back so.
    FailChannel(ChannelId, Exception, Settlement),
    /// The connection ends: give back all it holds, then say farewell.
    Disconnect(Farewell),
    /// So many bytes were written to the socket since the last time.
    Written(Window),
    /// `basic.publish` with its content.
    Publish(Publish),
    /// Several of them, one after the other.
    PublishRow(PublishRow),
    /// `basic.ack`, `basic.nack`, `basic.reject`
    Settle(ChannelId, AckTarget, Settlement, SettledBy),
    /// `basic.recover` and `basic.recover-async` with `requeue`
    Recover(ChannelId, Wait),
    /// `basic.qos`
    Qos(ChannelId, Qos),
    /// `basic.consume`
    Consume(ChannelId, Box<Consume>),
    /// `basic.consume` of the pseudo-queue for replies
    ConsumeReplies(ChannelId, ConsumerId, ShortString, Wait),
    /// `tx.select`
    SelectTx(ChannelId),
    /// `tx.commit`
    Commit(ChannelId),
    /// `tx.rollback`
    Rollback(ChannelId),
    /// `basic.cancel` of a consumer that the connection knows.
    Cancel(ChannelId, ConsumerId, ConsumerTag, Wait),
    /// `basic.get`
    Get(ChannelId, QueueRef, AckMode),
    /// `queue.declare`
    DeclareQueue(ChannelId, Box<DeclareQueue>),
    /// `queue.delete`
    DeleteQueue(ChannelId, DeleteQueue),
    /// `queue.purge`
    PurgeQueue(ChannelId, QueueRef, Wait),
    /// `exchange.declare`
    DeclareExchange(ChannelId, Box<DeclareExchange>),
    /// `exchange.delete`
    DeleteExchange(ChannelId, DeleteExchange),
    /// `queue.bind`, `queue.unbind`, `exchange.bind`, `exchange.unbind`
    Bind(ChannelId, Box<Bind>),
}

/// Class and method id.
pub(crate) const BASIC_PUBLISH: (u16, u16) = (60, 40);

impl Command {
    /// Takes in the command that comes next, if both are acks of one delivery each and its tag is the next one. Queues deliver
    /// behind both then, so a client that acks what it cannot have been given yet may be told so sooner.
    fn absorb(&mut self, next: &Command) -> bool {
        let &Command::Settle(
            channel,
            AckTarget::Each { first: next, count: NonZeroU8::MIN },
            Settlement::Ack,
            SettledBy::Ack,
        ) = next
        else {
            return false;
        };
        let Command::Settle(known, AckTarget::Each { first, count }, Settlement::Ack, SettledBy::Ack) = self else {
            return false;
        };
        let goes_on = *known == channel
            && count.get() < ACKS_AT_ONCE
            && first.number().checked_add(count.get().into()) == Some(next.number());
        if goes_on {
            *count = count.saturating_add(1);
        }
        goes_on
    }

    /// The channel that it publishes on, if it does.
    pub(crate) fn publishes_on(&self) -> Option<ChannelId> {
        let (Command::Publish(Publish { channel, .. }) | Command::PublishRow(PublishRow { channel, .. })) = self
        else {
            return None;
        };
        Some(*channel)
    }

    /// Whether it may change the way that messages take through exchanges.
    pub(crate) fn changes_bindings(&self) -> bool {
        matches!(
            self,
            Command::DeclareExchange(..)
                | Command::DeleteExchange(..)
                | Command::Bind(..)
                | Command::DeleteQueue(..)
        )
    }

    /// Class and method id of the method it stands for, as an exception names them.
    pub(crate) fn method(&self) -> (u16, u16) {
        match self {
            Command::OpenChannel(_) => (20, 10),
            Command::CloseChannel(..) => (20, 40),
            Command::Answer(..) | Command::FailChannel(..) | Command::Disconnect(_) | Command::Written(_) => (0, 0),
            Command::Publish(_) | Command::PublishRow(_) => BASIC_PUBLISH,
            Command::Settle(.., SettledBy::Ack) => (60, 80),
            Command::Settle(.., SettledBy::Reject) => (60, 90),
            Command::Settle(.., SettledBy::Nack) => (60, 120),
            Command::Recover(..) => (60, 110),
            Command::Qos(..) => (60, 10),
            Command::Consume(..) | Command::ConsumeReplies(..) => (60, 20),
            Command::SelectTx(_) => (90, 10),
            Command::Commit(_) => (90, 20),
            Command::Rollback(_) => (90, 30),
            Command::Cancel(..) => (60, 30),
            Command::Get(..) => (60, 70),
            Command::DeclareQueue(..) => (50, 10),
            Command::DeleteQueue(..) => (50, 40),
            Command::PurgeQueue(..) => (50, 30),
            Command::DeclareExchange(..) => (40, 10),
            Command::DeleteExchange(..) => (40, 20),
            Command::Bind(_, bind) => match (&bind.to, bind.action) {
                (BindTo::Queue(_), BindAction::Bind) => (50, 20),
                (BindTo::Queue(_), BindAction::Unbind) => (50, 50),
                (BindTo::Exchange(_), BindAction::Bind) => (40, 30),
                (BindTo::Exchange(_), BindAction::Unbind) => (40, 40),
            },
        }
    }
}

/// The last thing a connection hears.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Farewell {
    /// Nothing: the socket is gone.
    Silent,
    /// `connection.close-ok`
    CloseOk,
    /// `connection.close`
    Close(Exception),
}

/// A queue as a client names it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum QueueRef {
    /// By its name.
    Named(ShortString),
    /// The empty name: the queue declared last on this channel. AMQP 0-9-1, domain queue-name.
    LastDeclared,
}

impl QueueRef {
    pub(crate) fn new(name: ShortString) -> Self {
        if name.is_empty() { QueueRef::LastDeclared } else { QueueRef::Named(name) }
    }
}

/// A message to route.
#[derive(Debug)]
pub struct Publish {
    /// The channel it came on.
    pub channel: ChannelId,
    /// The message.
    pub message: Message,
    /// Routing keys of the headers `CC` and `BCC`, beside that of the message.
    pub more_keys: Option<Box<[ShortString]>>,
    /// Whether it comes back if no queue takes it. Field `mandatory`.
    pub mandatory: bool,
    /// `expiration`, in milliseconds.
    pub expiration_ms: Option<u64>,
    /// Its number on the channel if that is in confirm mode.
    pub confirm: Option<NonZeroU64>,
}

/// Messages to route, of one channel and one way, that ask for the same.
#[derive(Debug)]
pub struct PublishRow {
    pub(crate) channel: ChannelId,
    pub(crate) messages: Messages,
    /// How many of them are published.
    pub(crate) next: usize,
    mandatory: bool,
    pub(crate) expiration_ms: Option<u64>,
    /// The number of the first one on its channel, if that is in confirm mode.
    confirm: Option<NonZeroU64>,
}

/// Where messages are that are published together.
#[derive(Debug)]
pub(crate) enum Messages {
    /// In a row, also those that are published.
    Row(Arc<Row>),
    /// Each by itself, without those that are published.
    Each(VecDeque<Message>),
}

impl PublishRow {
    fn of(first: &Publish, messages: Messages) -> Self {
        let &Publish { channel, mandatory, expiration_ms, confirm, .. } = first;
        PublishRow { channel, messages, next: 0, mandatory, expiration_ms, confirm }
    }

    /// How many are left.
    pub(crate) fn left(&self) -> usize {
        match &self.messages {
            Messages::Row(row) => row.len() - self.next,
            Messages::Each(messages) => messages.len(),
        }
    }

    /// Bytes of those that are left.
    fn bytes(&self) -> usize {
        match &self.messages {
            Messages::Row(row) => row.bytes(self.next..row.len()),
            Messages::Each(messages) => messages.iter().map(Message::bytes).sum(),
        }
    }

    /// The next one, and its number on its channel if that is in confirm mode.
    pub(crate) fn take(&mut self) -> Option<(Message, Option<NonZeroU64>)> {
        let message = match &mut self.messages {
            Messages::Row(row) => (self.next < row.len()).then(|| row.message(self.next)),
            Messages::Each(messages) => messages.pop_front(),
        }?;
        let confirm = self.confirm(self.next);
        self.next += 1;
        Some((message, confirm))
    }

    /// The number of one of them on its channel, if that is in confirm mode.
    pub(crate) fn confirm(&self, nth: usize) -> Option<NonZeroU64> {
        self.confirm?.checked_add(nth as u64)
    }

    /// The next one as if it had come by itself.
    pub(crate) fn take_publish(&mut self) -> Option<Publish> {
        let (message, confirm) = self.take()?;
        let &mut PublishRow { channel, mandatory, expiration_ms, .. } = self;
        Some(Publish { channel, message, more_keys: None, mandatory, expiration_ms, confirm })
    }
}

/// Limits on unacked deliveries; `None` is no limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Qos {
    /// For each consumer that this channel starts from now on. `global` not set, as RabbitMQ reads it.
    PerConsumer(Option<NonZeroU64>),
    /// For the channel as a whole, whatever its consumers. `global` set.
    PerChannel(Option<NonZeroU64>),
}

/// A consumer to start.
#[derive(Debug)]
pub struct Consume {
    /// The name by which the connection knows it.
    pub consumer: ConsumerId,
    /// Its name on its channel.
    pub tag: ConsumerTag,
    /// Where from.
    pub queue: QueueRef,
    /// Whether deliveries must be settled.
    pub ack_mode: AckMode,
    /// Whether it wants the queue for itself.
    pub exclusive: bool,
    /// Whether `consume-ok` is awaited.
    pub wait: Wait,
    /// For example `x-priority`.
    pub arguments: FieldTable,
}

/// Whether a declaration may create what it names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Existence {
    /// Create it if it is missing, compare it if it exists.
    Declare,
    /// It must exist. Field `passive`.
    Passive,
}

/// A queue to declare.
#[derive(Clone, Debug)]
pub struct DeclareQueue {
    /// The name; empty to have one generated, or with `passive` for the last one.
    pub name: ShortString,
    /// Whether it may be created.
    pub existence: Existence,
    /// Whether it survives a restart.
    pub durable: bool,
    /// Whether it belongs to this connection alone.
    pub exclusive: bool,
    /// Whether it goes with its last consumer.
    pub auto_delete: bool,
    /// Whether `declare-ok` is awaited.
    pub wait: Wait,
    /// The `x-` arguments.
    pub arguments: FieldTable,
}

/// A queue to delete.
#[derive(Debug)]
pub struct DeleteQueue {
    /// Which.
    pub queue: QueueRef,
    /// Only if it has no consumers.
    pub if_unused: bool,
    /// Only if it has no ready messages.
    pub if_empty: bool,
    /// Whether `delete-ok` is awaited.
    pub wait: Wait,
}

/// An exchange to declare.
#[derive(Debug)]
pub struct DeclareExchange {
    /// The name.
    pub name: ShortString,
    /// The type, as the client calls it.
    pub kind: ShortString,
    /// Whether it may be created.
    pub existence: Existence,
    /// Whether it survives a restart.
    pub durable: bool,
    /// Whether it goes with its last binding.
    pub auto_delete: bool,
    /// Whether clients may not publish to it.
    pub internal: bool,
    /// Whether `declare-ok` is awaited.
    pub wait: Wait,
    /// For example `alternate-exchange`.
    pub arguments: FieldTable,
}

/// An exchange to delete.
#[derive(Debug)]
pub struct DeleteExchange {
    /// Which.
    pub name: ShortString,
    /// Only if nothing is bound to it.
    pub if_unused: bool,
    /// Whether `delete-ok` is awaited.
    pub wait: Wait,
}

/// What a binding leads to, as a client names it.
#[derive(Debug)]
pub enum BindTo {
    /// `queue.bind`, `queue.unbind`
    Queue(QueueRef),
    /// `exchange.bind`, `exchange.unbind`
    Exchange(ShortString),
}

/// Whether a binding is made or taken away.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BindAction {
    /// `bind`
    Bind,
    /// `unbind`
    Unbind,
}

/// A binding to make or take away.
#[derive(Debug)]
pub struct Bind {
    /// Which of the two.
    pub action: BindAction,
    /// The exchange that messages come from.
    pub source: ShortString,
    /// Where they go.
    pub to: BindTo,
    /// The binding key.
    pub routing_key: ShortString,
    /// Arguments are part of what identifies a binding.
    pub arguments: FieldTable,
    /// Whether the `-ok` is awaited.
    pub wait: Wait,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::limits::ROW_BYTES_MAX;
    use crate::vhost::fixtures::message;

    const ONE: Likeness = Likeness(1);

    fn commands(keep_apart: bool) -> Commands {
        Commands { keep_apart, ..Commands::default() }
    }

    fn publish(confirm: Option<NonZeroU64>) -> Publish {
        let (channel, expiration_ms) = (ChannelId::new(1).unwrap(), None);
        Publish { channel, message: message(), more_keys: None, mandatory: true, expiration_ms, confirm }
    }

    /// Another one, of this likeness; number 0 is none.
    fn push(commands: &mut Commands, number: u64, likeness: Likeness) {
        let (message, confirm) = (message(), NonZeroU64::new(number));
        let (block, _, body_at) = message.parts();
        let (head, body) = block.split_at(body_at as usize);
        match commands.joinable(likeness, confirm, block.len()) {
            Some(row) => row.push(head, body),
            None => commands.push_like(publish(confirm), likeness),
        }
    }

    /// How many publishes there are in each command; 0 for what is no publish.
    fn lengths(commands: &Commands) -> Vec<usize> {
        let length = |command: &Command| match command {
            Command::Publish(_) => 1,
            Command::PublishRow(row) => row.left(),
            _ => 0,
        };
        commands.queue.iter().map(length).collect()
    }

    #[test]
    fn publishes_of_one_likeness_that_follow_one_another_are_a_row() {
        for keep_apart in [false, true] {
            let mut commands = commands(keep_apart);
            for (number, likeness) in (1..).zip([ONE, ONE, ONE, Likeness(2), ONE, ONE]) {
                push(&mut commands, number, likeness);
            }
            assert_eq!(lengths(&commands), [3, 1, 2]);
            assert_eq!(commands.published_bytes(), 6 * message().bytes());
            let Some(Command::PublishRow(row)) = commands.queue.front() else { panic!("it is a row") };
            assert_eq!(matches!(row.messages, Messages::Each(_)), keep_apart);
            commands.push(Command::SelectTx(ChannelId::new(2).unwrap()));
            push(&mut commands, 7, ONE);
            commands.push(Command::Publish(publish(NonZeroU64::new(8))));
            push(&mut commands, 9, ONE);
            assert_eq!(lengths(&commands), [3, 1, 2, 0, 1, 1, 1]);
        }
    }

    #[test]
    fn what_is_confirmed_joins_nothing_that_is_not_and_keeps_its_number() {
        for keep_apart in [false, true] {
            let mut commands = commands(keep_apart);
            for number in [0, 0, 1, 2, 4] {
                push(&mut commands, number, ONE);
            }
            assert_eq!(lengths(&commands), [2, 2, 1]);
        }
    }

    #[test]
    fn a_row_takes_so_many_messages_and_no_large_ones() {
        assert!(ROW_MESSAGES_MAX * message().bytes() < ROW_BYTES_MAX);
        for keep_apart in [false, true] {
            let mut commands = commands(keep_apart);
            (1..).take(ROW_MESSAGES_MAX + 2).for_each(|number| push(&mut commands, number, ONE));
            assert_eq!(lengths(&commands), [ROW_MESSAGES_MAX, 2]);
        }
        let mut commands = commands(false);
        (0..2).for_each(|_| push(&mut commands, 0, ONE));
        assert!(commands.joinable(ONE, None, ROW_MESSAGE_BYTES_MAX).is_some());
        assert!(commands.joinable(ONE, None, ROW_MESSAGE_BYTES_MAX + 1).is_none());
    }

    #[test]
    fn a_row_that_is_taken_publish_by_publish_takes_nothing_more_and_the_next_one_is_none() {
        for (keep_apart, expected) in [(false, &[2, 1][..]), (true, &[3])] {
            let mut commands = commands(keep_apart);
            (1..=3).for_each(|number| push(&mut commands, number, ONE));
            let first = commands.take();
            assert!(commands.keep_apart);
            push(&mut commands, 4, ONE);
            // What is there by itself may come behind what is left.
            assert_eq!(lengths(&commands), expected);
            let rest = std::iter::from_fn(|| commands.take());
            let number = |command| match command {
                Command::Publish(publish) => publish.confirm.unwrap().get(),
                other => panic!("nobody pushed {other:?}"),
            };
            assert_eq!(first.into_iter().chain(rest).map(number).collect::<Vec<_>>(), [1, 2, 3, 4]);
        }
    }
}
