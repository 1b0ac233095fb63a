//! The channels of one connection: from frames to commands.
//!
//! Owns: which channels are open, what each is assembling and confirming, which consumer has which tag.
//! Must not know: what a command does.
//!
//! Everything that is answered goes through the virtual host, even what needs nothing from it, so that answers
//! keep the order of their questions.

use std::collections::BTreeMap;
use std::num::{NonZeroU8, NonZeroU64};

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use leveret_amqp::{FieldTable, FrameKind, Method, RawFrame, ShortStr, ShortString};
use rand::RngCore;
use rand::rngs::StdRng;

use crate::connection::Connection;
use crate::connection::assembly::{Assembled, Assembly, KEPT_BLOCK_BYTES};
use crate::connection::confirms::Confirms;
use crate::connection::reply::{ClientError, Exception, Expected};
use crate::limits::{ROW_MESSAGE_BYTES_MAX, UNFINISHED_BYTES_MIN, UNFINISHED_MESSAGES_MAX};
use crate::memory::Meter;
use crate::names::{ChannelId, ConsumerTag, UserName, strip_line_breaks};
use crate::node::presence::Present;
use crate::vhost::command::{
    AckMode, AckTarget, BASIC_PUBLISH, Bind, BindAction, BindTo, Command, Consume, ConsumerId, DeclareExchange,
    DeclareQueue, DeleteExchange, DeleteQueue, DeliveryTag, Existence, Publish, Qos, QueueRef, SettledBy,
    Settlement, Wait,
};
use crate::vhost::effects::Answer;
use crate::vhost::replies::PSEUDO_QUEUE;

/// Whether the next frame may be taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Flow {
    Next,
    /// This frame has to wait until what is under way on its channel was encoded.
    Pause,
}

#[derive(Debug)]
pub(super) struct Channels {
    pub(super) slots: Vec<Slot>,
    pub(super) channel_max: u16,
    pub(super) max_message_size: u64,
    /// Bytes of contents that are not complete.
    unfinished: Meter,
    /// How many have become complete that are too large for a row.
    pub(super) large_contents: u64,
    /// Room for the next content, kept so that it need not be allocated: one for all channels, however many publish.
    pub(super) room: Vec<u8>,
    /// The channel that has it.
    room_lent_to: Option<ChannelId>,
    pub(super) user: Option<UserName>,
    /// The connection among those of its user.
    pub(super) present: Option<Present>,
    pub(super) consumers: ConsumerTags,
}

/// The protocol state of one channel number.
#[derive(Debug, Default)]
pub(super) enum Slot {
    #[default]
    Closed,
    Open(Box<Channel>),
    /// The client closed it; the answer is on its way, and so may be confirms.
    ClosedByClient(Box<Channel>),
    /// We closed it; everything is dropped until the client has answered.
    ClosedByUs,
}

/// What becomes of publishes on a channel.
#[derive(Debug, Default)]
pub(super) enum Mode {
    #[default]
    Plain,
    /// After `confirm.select`.
    Confirm(Confirms),
    /// After `tx.select`.
    Transaction {
        /// Since the last commit or rollback.
        has_published: bool,
    },
}

impl Slot {
    fn has_reply_consumer(&self) -> bool {
        match self {
            Slot::Open(channel) => channel.reply_key.is_some(),
            Slot::Closed | Slot::ClosedByClient(_) | Slot::ClosedByUs => false,
        }
    }
}

#[derive(Debug)]
pub(super) struct Channel {
    pub(super) assembly: Assembly,
    pub(super) mode: Mode,
    /// The routing key that reaches this channel's consumer of replies, if it has one.
    pub(super) reply_key: Option<(ConsumerId, ShortString)>,
}

impl Channel {
    fn new(unfinished: Meter) -> Self {
        Channel { assembly: Assembly::new(unfinished), mode: Mode::default(), reply_key: None }
    }

    /// The number of the next publish, if it is to be confirmed.
    pub(super) fn number_publish(&mut self) -> Option<NonZeroU64> {
        match &mut self.mode {
            Mode::Confirm(confirms) => Some(confirms.number()),
            Mode::Transaction { has_published } => {
                *has_published = true;
                None
            }
            Mode::Plain => None,
        }
    }
}

impl Channels {
    /// Bytes that contents which are not complete may take together.
    fn unfinished_max(&self) -> usize {
        let largest = usize::try_from(self.max_message_size).unwrap_or(usize::MAX);
        largest.saturating_mul(UNFINISHED_MESSAGES_MAX).max(UNFINISHED_BYTES_MIN)
    }

    pub(super) fn new(random: StdRng) -> Self {
        Channels {
            slots: Vec::new(),
            channel_max: 0,
            max_message_size: 0,
            unfinished: Meter::default(),
            large_contents: 0,
            room: Vec::new(),
            room_lent_to: None,
            user: None,
            present: None,
            consumers: ConsumerTags {
                entries: Vec::new(),
                free: Vec::new(),
                last_number: 0,
                by_tag: BTreeMap::new(),
                random,
            },
        }
    }

    pub(super) fn slot(&mut self, id: ChannelId) -> &mut Slot {
        let number = usize::from(id.number());
        if self.slots.len() <= number {
            self.slots.resize_with(number + 1, Slot::default);
        }
        &mut self.slots[number]
    }

    /// Bytes of contents that are not complete.
    pub(super) fn unfinished_bytes(&self) -> usize {
        self.unfinished.bytes()
    }

    /// A content that takes so many bytes is complete.
    pub(super) fn count_content(&mut self, bytes: usize) {
        self.large_contents += u64::from(bytes > ROW_MESSAGE_BYTES_MAX);
    }

    /// Whether all contents that are not complete go to transactions that hold others already.
    pub(super) fn goes_on_with_transactions(&self) -> bool {
        let open =
            self.slots.iter().filter_map(|slot| if let Slot::Open(channel) = slot { Some(channel) } else { None });
        let mut unfinished = open.filter(|channel| channel.assembly.expected() != Expected::Method).peekable();
        unfinished.peek().is_some()
            && unfinished.all(|channel| matches!(channel.mode, Mode::Transaction { has_published: true }))
    }

    /// Nothing that is not complete will be.
    pub(super) fn abandon_contents(&mut self) {
        for slot in &mut self.slots {
            if let Slot::Open(channel) | Slot::ClosedByClient(channel) = slot {
                channel.assembly = Assembly::new(self.unfinished.clone());
            }
        }
    }

    /// Lends the room to a content that begins on a channel. Another that has it and is not complete gives it up.
    fn lend_room(&mut self, to: ChannelId) -> Vec<u8> {
        let room = match self.room_lent_to.replace(to) {
            Some(other) => self.open(other).map(|channel| channel.assembly.give_up_room()),
            None => Some(std::mem::take(&mut self.room)),
        };
        room.unwrap_or_default()
    }

    /// Takes back what the content that is complete on a channel was assembled in, if that is the room it was lent.
    fn take_room_back(&mut self, from: ChannelId) {
        let is_lent = self.room_lent_to == Some(from);
        let Some(channel) = self.open(from) else { return };
        let block = channel.assembly.give_up_room();
        if is_lent {
            self.room_lent_to = None;
            if block.capacity() <= KEPT_BLOCK_BYTES {
                self.room = block;
            }
        }
    }

    /// A channel is not open any more.
    pub(super) fn give_back(&mut self) {
        if let Some(present) = &mut self.present {
            present.close_channel();
        }
    }

    pub(super) fn open(&mut self, id: ChannelId) -> Option<&mut Channel> {
        match self.slots.get_mut(usize::from(id.number())) {
            Some(Slot::Open(channel)) => Some(channel),
            Some(Slot::Closed | Slot::ClosedByClient(_) | Slot::ClosedByUs) | None => None,
        }
    }
}

#[derive(Debug)]
struct TagEntry {
    id: ConsumerId,
    channel: ChannelId,
    tag: ConsumerTag,
}

/// The tags of the consumers on one connection.
#[derive(Debug)]
pub(super) struct ConsumerTags {
    entries: Vec<Option<TagEntry>>,
    free: Vec<u32>,
    last_number: u64,
    /// Only those that the client may cancel.
    by_tag: BTreeMap<ChannelId, BTreeMap<ConsumerTag, ConsumerId>>,
    random: StdRng,
}

impl ConsumerTags {
    /// Adds a consumer with the tag that a client has given, or one for it. There may be so many on its channel.
    fn add(
        &mut self,
        channel: ChannelId,
        given: ShortStr<'_>,
        most: Option<u32>,
    ) -> Result<(ConsumerId, ConsumerTag), ClientError> {
        let tag = if given.is_empty() { self.generate() } else { ConsumerTag::new(given) };
        let of_channel = self.by_tag.entry(channel).or_default();
        if of_channel.contains_key(&tag) {
            return Err(ClientError::ConsumerTagInUse(given.to_string()));
        }
        if let Some(most) = most.filter(|most| of_channel.len() >= *most as usize) {
            return Err(ClientError::TooManyConsumers(most));
        }
        let slot = self.free.pop().unwrap_or_else(|| {
            self.entries.push(None);
            u32::try_from(self.entries.len() - 1).expect("consumers are fewer than bytes of memory")
        });
        self.last_number += 1;
        let id = ConsumerId { slot, number: self.last_number };
        self.entries[slot as usize] = Some(TagEntry { id, channel, tag: tag.clone() });
        of_channel.insert(tag.clone(), id);
        Ok((id, tag))
    }

    /// From now on the tag may be used again; deliveries under way still find it by their consumer.
    fn release_tag(&mut self, channel: ChannelId, tag: &ConsumerTag) -> Option<ConsumerId> {
        self.by_tag.get_mut(&channel)?.remove(tag)
    }

    /// The last thing about a consumer was encoded.
    pub(super) fn remove(&mut self, id: ConsumerId) -> Option<ConsumerTag> {
        let TagEntry { channel, tag, .. } =
            self.entries.get_mut(id.slot as usize)?.take_if(|entry| entry.id == id)?;
        self.free.push(id.slot);
        if let Some(of_channel) = self.by_tag.get_mut(&channel)
            && of_channel.get(&tag) == Some(&id)
        {
            of_channel.remove(&tag);
        }
        Some(tag)
    }

    pub(super) fn remove_channel(&mut self, channel: ChannelId) {
        let of_channel = self.entries.iter().flatten().filter(|entry| entry.channel == channel);
        for id in of_channel.map(|entry| entry.id).collect::<Vec<_>>() {
            self.remove(id);
        }
        self.by_tag.remove(&channel);
    }

    pub(super) fn tag(&self, id: ConsumerId) -> Option<&ConsumerTag> {
        let entry = self.entries.get(id.slot as usize)?.as_ref().filter(|entry| entry.id == id)?;
        Some(&entry.tag)
    }

    /// 22 characters that nobody can guess.
    fn random_text(&mut self) -> String {
        let mut bytes = [0; 16];
        self.random.fill_bytes(&mut bytes);
        URL_SAFE_NO_PAD.encode(bytes)
    }

    /// RabbitMQ: `amq.ctag-` and a random part.
    fn generate(&mut self) -> ConsumerTag {
        let tag = format!("amq.ctag-{}", self.random_text());
        ConsumerTag::new(ShortStr::truncated(&tag))
    }
}

impl Connection {
    pub(super) fn handle_channel_frame(&mut self, frame: RawFrame<'_>) -> Result<Flow, Exception> {
        let Some(id) = ChannelId::new(frame.channel) else { return Ok(Flow::Next) };
        let method = match frame.kind {
            FrameKind::Method => {
                Some(Method::decode(frame.payload).map_err(|error| Self::undecodable(frame, error))?)
            }
            FrameKind::Header | FrameKind::Body | FrameKind::Heartbeat => None,
        };
        if id.number() > self.channels.channel_max {
            let channel_max = self.channels.channel_max;
            let ids = method.map_or((0, 0), |method| method.ids());
            let error = ClientError::TooManyChannels { channel: id.number(), channel_max };
            return Err(Exception::from(&error).during(ids));
        }
        match (self.channels.slot(id), method) {
            (Slot::Open(channel), Some(method)) => match channel.assembly.expected() {
                Expected::Method => {
                    if let Err(error) = self.handle_channel_method(id, method) {
                        self.raise(id, Exception::from(&error).during(method.ids()))?;
                    }
                }
                expected @ (Expected::Header | Expected::Body) => {
                    return Err(Exception::from(&ClientError::NotExpected(expected)).during(BASIC_PUBLISH));
                }
            },
            (Slot::Open(_), None) => self.handle_content_frame(id, frame)?,
            (Slot::Closed, Some(Method::ChannelOpen { .. })) => {
                if let Some(Err(limit)) = self.channels.present.as_mut().map(Present::open_channel) {
                    let user = self.user.clone().unwrap_or_default();
                    return Err(Exception::from(&ClientError::UserChannels { user, limit }));
                }
                let channel = Channel::new(self.channels.unfinished.clone());
                *self.channels.slot(id) = Slot::Open(Box::new(channel));
                self.commands.push(Command::OpenChannel(id));
            }
            (Slot::ClosedByClient(_), Some(Method::ChannelOpen { .. })) => return Ok(Flow::Pause),
            // The answer to a close of ours that crossed one of the client's.
            (Slot::Closed | Slot::ClosedByClient(_), Some(Method::ChannelCloseOk {})) => {}
            (slot @ Slot::ClosedByUs, Some(Method::ChannelCloseOk {})) => {
                *slot = Slot::Closed;
                self.commands.push(Command::CloseChannel(id, Wait::NoWait));
            }
            // Both sides closed at the same time: the client's close is answered, and its close-ok still comes.
            (Slot::ClosedByUs, Some(Method::ChannelClose { .. })) => {
                self.commands.push(Command::CloseChannel(id, Wait::Answer));
            }
            (Slot::ClosedByUs, _) => {}
            (Slot::Closed | Slot::ClosedByClient(_), Some(method)) => {
                return Err(Exception::from(&ClientError::ChannelNotOpen).during(method.ids()));
            }
            (Slot::Closed | Slot::ClosedByClient(_), None) => {
                return Err(Exception::from(&ClientError::NotExpected(Expected::Method)));
            }
        }
        Ok(Flow::Next)
    }

    fn handle_content_frame(&mut self, id: ChannelId, frame: RawFrame<'_>) -> Result<(), Exception> {
        // Who may publish in the name of others need not be named.
        let is_impersonator = self.channels.present.as_ref().is_some_and(Present::is_impersonator);
        let user = self.channels.user.clone().filter(|_| !is_impersonator);
        let max_message_size = self.channels.max_message_size;
        let Some(channel) = self.channels.open(id) else { return Ok(()) };
        let assembled = match frame.kind {
            FrameKind::Header => {
                let reply_key = channel.reply_key.as_ref().map(|(_, key)| key.as_short_str());
                channel.assembly.header(frame.payload, user.as_ref(), reply_key, max_message_size)
            }
            FrameKind::Body | FrameKind::Method | FrameKind::Heartbeat => channel.assembly.body(frame.payload),
        };
        match assembled {
            Ok(None) => {
                let limit = self.channels.unfinished_max();
                if self.channels.unfinished.bytes() > limit {
                    return Err(Exception::from(&ClientError::TooMuchUnfinished { limit }).during(BASIC_PUBLISH));
                }
            }
            Ok(Some(assembled)) => {
                self.channels.take_room_back(id);
                self.publish(id, assembled);
            }
            // A content of no method.
            Err(error @ ClientError::NotExpected(Expected::Method)) => return Err(Exception::from(&error)),
            Err(error) => {
                let exception = Exception::from(&error).during(BASIC_PUBLISH);
                return self.raise(id, exception);
            }
        }
        Ok(())
    }

    /// A fault on a channel closes the channel in its turn, or the connection at once.
    fn raise(&mut self, id: ChannelId, exception: Exception) -> Result<(), Exception> {
        match exception.code.severity() {
            leveret_amqp::reply::Severity::Connection => Err(exception),
            leveret_amqp::reply::Severity::Channel => {
                self.commands.push(Command::FailChannel(id, exception, Settlement::Fail));
                Ok(())
            }
        }
    }

    pub(super) fn publish(&mut self, channel: ChannelId, assembled: Assembled) {
        let Some(state) = self.channels.open(channel) else { return };
        let confirm = state.number_publish();
        let Assembled { message, mandatory, expiration_ms, more_keys } = assembled;
        self.channels.count_content(message.bytes());
        let publish = Publish { channel, message, more_keys, mandatory, expiration_ms, confirm };
        self.commands.push(Command::Publish(publish));
    }

    fn handle_channel_method(&mut self, id: ChannelId, method: Method<'_>) -> Result<(), ClientError> {
        let Some(channel) = self.channels.open(id) else { return Ok(()) };
        let command = match method {
            Method::ChannelOpen { .. } => return Err(ClientError::ChannelOpenedTwice),
            Method::ChannelClose { .. } => {
                let slot = self.channels.slot(id);
                if let Slot::Open(channel) = std::mem::take(slot) {
                    *slot = Slot::ClosedByClient(channel);
                }
                Command::CloseChannel(id, Wait::Answer)
            }
            Method::ChannelFlow { active: false } => {
                return Err(ClientError::NotImplemented("active=false".into()));
            }
            Method::ChannelFlow { active: true } => Command::Answer(id, Answer::ChannelFlowOk { active: true }),
            Method::AccessRequest { .. } => Command::Answer(id, Answer::AccessRequestOk),
            Method::ConfirmSelect { nowait } => {
                match &mut channel.mode {
                    mode @ Mode::Plain => *mode = Mode::Confirm(Confirms::default()),
                    Mode::Confirm(_) => {}
                    Mode::Transaction { .. } => {
                        return Err(ClientError::CannotSwitch { from: "tx", to: "confirm" });
                    }
                }
                if nowait {
                    return Ok(());
                }
                Command::Answer(id, Answer::ConfirmSelectOk)
            }
            Method::BasicPublish { immediate: true, .. } => {
                return Err(ClientError::NotImplemented("immediate=true".into()));
            }
            Method::BasicPublish { exchange, routing_key, mandatory, .. } => {
                let room = self.channels.lend_room(id);
                let Some(channel) = self.channels.open(id) else { return Ok(()) };
                channel.assembly.begin(room, exchange, routing_key, mandatory);
                return Ok(());
            }
            Method::BasicAck { delivery_tag, multiple } => {
                Command::Settle(id, ack_target(delivery_tag, multiple)?, Settlement::Ack, SettledBy::Ack)
            }
            Method::BasicNack { delivery_tag, multiple, requeue } => {
                let settlement = if requeue { Settlement::Requeue } else { Settlement::Discard };
                Command::Settle(id, ack_target(delivery_tag, multiple)?, settlement, SettledBy::Nack)
            }
            Method::BasicReject { delivery_tag, requeue } => {
                let settlement = if requeue { Settlement::Fail } else { Settlement::Discard };
                Command::Settle(id, ack_target(delivery_tag, false)?, settlement, SettledBy::Reject)
            }
            Method::BasicRecover { requeue: true } => Command::Recover(id, Wait::Answer),
            Method::BasicRecoverAsync { requeue: true } => Command::Recover(id, Wait::NoWait),
            Method::BasicRecover { requeue: false } | Method::BasicRecoverAsync { requeue: false } => {
                return Err(ClientError::NotImplemented("requeue=false".into()));
            }
            Method::BasicQos { prefetch_size, .. } if prefetch_size != 0 => {
                return Err(ClientError::NotImplemented(format!("prefetch_size!=0 ({prefetch_size})")));
            }
            Method::BasicQos { prefetch_count, global, .. } => {
                let limit = NonZeroU64::new(prefetch_count.into());
                Command::Qos(id, if global { Qos::PerChannel(limit) } else { Qos::PerConsumer(limit) })
            }
            Method::TxSelect {} => {
                match &mut channel.mode {
                    mode @ Mode::Plain => *mode = Mode::Transaction { has_published: false },
                    Mode::Transaction { .. } => {}
                    Mode::Confirm(_) => return Err(ClientError::CannotSwitch { from: "confirm", to: "tx" }),
                }
                Command::SelectTx(id)
            }
            Method::TxCommit {} | Method::TxRollback {} => {
                let Mode::Transaction { has_published } = &mut channel.mode else {
                    return Err(ClientError::NotTransactional);
                };
                *has_published = false;
                if matches!(method, Method::TxCommit {}) { Command::Commit(id) } else { Command::Rollback(id) }
            }
            Method::BasicConsume { queue, consumer_tag, no_ack, nowait, .. } if queue.as_str() == PSEUDO_QUEUE => {
                return self.consume_replies(id, consumer_tag, no_ack, wait(nowait));
            }
            Method::BasicConsume { queue, consumer_tag, no_ack, exclusive, nowait, arguments, .. } => {
                let most = self.settings.consumer_max_per_channel;
                let (consumer, tag) = self.channels.consumers.add(id, consumer_tag, most)?;
                let consume = Consume {
                    consumer,
                    tag,
                    queue: queue_ref(queue),
                    ack_mode: ack_mode(no_ack),
                    exclusive,
                    wait: wait(nowait),
                    arguments: FieldTable::from(arguments),
                };
                Command::Consume(id, Box::new(consume))
            }
            Method::BasicCancel { consumer_tag, nowait } => {
                let tag = ConsumerTag::new(consumer_tag);
                let consumer = self.channels.consumers.release_tag(id, &tag);
                if let Some(channel) = self.channels.open(id) {
                    channel.reply_key.take_if(|(of, _)| Some(*of) == consumer);
                }
                match consumer {
                    Some(consumer) => Command::Cancel(id, consumer, tag, wait(nowait)),
                    None => Command::Answer(id, Answer::BasicCancelOk { consumer: None, tag, wait: wait(nowait) }),
                }
            }
            // The client agrees to a cancel of ours; nothing waits for it.
            Method::BasicCancelOk { .. } => return Ok(()),
            Method::BasicGet { queue, no_ack, .. } => Command::Get(id, queue_ref(queue), ack_mode(no_ack)),
            other => return self.handle_topology_method(id, other),
        };
        self.commands.push(command);
        Ok(())
    }

    /// `basic.consume` of the pseudo-queue for replies. RabbitMQ: direct reply-to.
    fn consume_replies(
        &mut self,
        id: ChannelId,
        consumer_tag: ShortStr<'_>,
        no_ack: bool,
        wait: Wait,
    ) -> Result<(), ClientError> {
        let tags = &mut self.channels.consumers;
        if !no_ack {
            return Err(ClientError::ReplyConsumer("reply consumer cannot acknowledge"));
        }
        if self.channels.slots.get(usize::from(id.number())).is_some_and(Slot::has_reply_consumer) {
            return Err(ClientError::ReplyConsumer("reply consumer already set"));
        }
        let key = format!("{PSEUDO_QUEUE}.{}", tags.random_text());
        let key = ShortString::from(ShortStr::truncated(&key));
        let (consumer, _) = tags.add(id, consumer_tag, self.settings.consumer_max_per_channel)?;
        if let Some(channel) = self.channels.open(id) {
            channel.reply_key = Some((consumer, key.clone()));
        }
        self.commands.push(Command::ConsumeReplies(id, consumer, key, wait));
        Ok(())
    }

    fn handle_topology_method(&mut self, id: ChannelId, method: Method<'_>) -> Result<(), ClientError> {
        let command = match method {
            Method::QueueDeclare { queue, passive, durable, exclusive, auto_delete, nowait, arguments, .. } => {
                let declare = DeclareQueue {
                    name: strip_line_breaks(queue),
                    existence: existence(passive),
                    durable,
                    exclusive,
                    auto_delete,
                    wait: wait(nowait),
                    arguments: FieldTable::from(arguments),
                };
                Command::DeclareQueue(id, Box::new(declare))
            }
            Method::QueueDelete { queue, if_unused, if_empty, nowait, .. } => {
                let queue = QueueRef::new(strip_line_breaks(queue));
                Command::DeleteQueue(id, DeleteQueue { queue, if_unused, if_empty, wait: wait(nowait) })
            }
            Method::QueuePurge { queue, nowait, .. } => Command::PurgeQueue(id, queue_ref(queue), wait(nowait)),
            Method::ExchangeDeclare {
                exchange,
                type_,
                passive,
                durable,
                auto_delete,
                internal,
                nowait,
                arguments,
                ..
            } => {
                let declare = DeclareExchange {
                    name: strip_line_breaks(exchange),
                    kind: ShortString::from(type_),
                    existence: existence(passive),
                    durable,
                    auto_delete,
                    internal,
                    wait: wait(nowait),
                    arguments: FieldTable::from(arguments),
                };
                Command::DeclareExchange(id, Box::new(declare))
            }
            Method::ExchangeDelete { exchange, if_unused, nowait, .. } => {
                let name = strip_line_breaks(exchange);
                Command::DeleteExchange(id, DeleteExchange { name, if_unused, wait: wait(nowait) })
            }
            Method::QueueBind { queue, exchange, routing_key, nowait, arguments, .. } => {
                let to = BindTo::Queue(QueueRef::new(strip_line_breaks(queue)));
                bind(id, BindAction::Bind, exchange, to, routing_key, arguments, wait(nowait))
            }
            Method::QueueUnbind { queue, exchange, routing_key, arguments, .. } => {
                let to = BindTo::Queue(QueueRef::new(strip_line_breaks(queue)));
                bind(id, BindAction::Unbind, exchange, to, routing_key, arguments, Wait::Answer)
            }
            Method::ExchangeBind { destination, source, routing_key, nowait, arguments, .. } => {
                let to = BindTo::Exchange(strip_line_breaks(destination));
                bind(id, BindAction::Bind, source, to, routing_key, arguments, wait(nowait))
            }
            Method::ExchangeUnbind { destination, source, routing_key, nowait, arguments, .. } => {
                let to = BindTo::Exchange(strip_line_breaks(destination));
                bind(id, BindAction::Unbind, source, to, routing_key, arguments, wait(nowait))
            }
            // Of the server, of the connection, or an answer that nobody asked for.
            other => return Err(ClientError::Unimplemented(other.name())),
        };
        self.commands.push(command);
        Ok(())
    }
}

fn bind(
    id: ChannelId,
    action: BindAction,
    source: ShortStr<'_>,
    to: BindTo,
    routing_key: ShortStr<'_>,
    arguments: leveret_amqp::Table<'_>,
    wait: Wait,
) -> Command {
    let (source, routing_key) = (strip_line_breaks(source), ShortString::from(routing_key));
    Command::Bind(id, Box::new(Bind { action, source, to, routing_key, arguments: arguments.into(), wait }))
}

fn queue_ref(name: ShortStr<'_>) -> QueueRef {
    QueueRef::new(ShortString::from(name))
}

fn wait(nowait: bool) -> Wait {
    if nowait { Wait::NoWait } else { Wait::Answer }
}

fn ack_mode(no_ack: bool) -> AckMode {
    if no_ack { AckMode::Automatic } else { AckMode::Manual }
}

fn existence(passive: bool) -> Existence {
    if passive { Existence::Passive } else { Existence::Declare }
}

/// Tag 0 means "all outstanding" with `multiple`, and nothing without.
fn ack_target(delivery_tag: u64, multiple: bool) -> Result<AckTarget, ClientError> {
    match (NonZeroU64::new(delivery_tag).map(DeliveryTag), multiple) {
        (Some(tag), false) => Ok(AckTarget::Each { first: tag, count: NonZeroU8::MIN }),
        (Some(tag), true) => Ok(AckTarget::UpTo(tag)),
        (None, true) => Ok(AckTarget::AllOutstanding),
        (None, false) => Err(ClientError::ZeroDeliveryTag),
    }
}
