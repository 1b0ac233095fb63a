//! From outputs to bytes.

use std::ops::Range;

use leveret_amqp::frame::{FRAME_END, frame_head, write_content, write_frame, write_method};
use leveret_amqp::limits::FRAME_OVERHEAD_BYTES;
use leveret_amqp::{FrameKind, Method, ShortStr};
use leveret_planted::{Bug, planted};

use crate::change::JournalPosition;
use crate::connection::channels::{Mode, Slot};
use crate::connection::confirms::{Confirmation, Confirms};
use crate::connection::faults::{ChannelFault, Ended};
use crate::connection::reply::Exception;
use crate::connection::{Connection, State};
use crate::message::Message;
use crate::moment::Moment;
use crate::names::ChannelId;
use crate::row::Row;
use crate::vhost::command::{Command, ConsumerId, DeliveryTag, Farewell, Settlement, Wait};
use crate::vhost::effects::{Answer, Output, Window};
use crate::vhost::refusal::Refusal;

impl Connection {
    /// Encodes what the virtual host has for this client, in order. `durable` is how far the journal has come.
    pub fn handle_outputs(
        &mut self,
        now: Moment,
        outputs: impl Iterator<Item = Output>,
        durable: JournalPosition,
        out: &mut Vec<u8>,
    ) {
        // Channels with confirms to tell; few, and mostly one.
        let mut confirmed: Vec<ChannelId> = Vec::new();
        let (mut batch, before) = (Window::default(), out.len());
        for output in outputs {
            self.note_fault(now, &output);
            // Nobody would read it. The farewell still ends the connection, whatever it rests on.
            if self.is_gone {
                self.held.forget_channels();
                if matches!(output, Output::Farewell(..)) {
                    self.state = State::Closed;
                }
                continue;
            }
            if self.held.must_wait(&output, durable) {
                self.held.push(output);
            } else {
                self.encode(now, output, durable, &mut confirmed, &mut batch, out);
            }
        }
        self.tell_confirms(&mut confirmed, out);
        self.unwritten.add(out.len() - before, batch);
    }

    /// Keeps for the log what ends a channel or a consumer, whether or not the client still hears of it.
    fn note_fault(&mut self, now: Moment, output: &Output) {
        if let Output::CloseChannel(channel, exception) = output {
            self.channel_faults.note(now, || {
                let operation = Method::name_of(exception.method);
                let reason = exception.for_log();
                ChannelFault { ended: Ended::Channel, channel: *channel, operation, reason, untold: 0 }
            });
        }
        // A client that does not know of cancels has its channel closed instead.
        if let Output::Answer(channel, Answer::ConsumerTimedOut { consumer, timeout }, _) = output
            && self.capabilities.consumer_cancel_notify
            && let Some(tag) = self.channels.consumers.tag(*consumer)
        {
            self.channel_faults.note(now, || {
                let refusal = Refusal::ConsumerTimeout { channel: *channel, timeout: *timeout };
                let reason = format!("consumer '{tag}': {}", Exception::from(&refusal).text);
                ChannelFault { ended: Ended::Consumer, channel: *channel, operation: None, reason, untold: 0 }
            });
        }
    }

    /// The journal has come further: tells what waited for it.
    pub fn handle_durable(&mut self, now: Moment, durable: JournalPosition, out: &mut Vec<u8>) {
        let mut confirmed = Vec::new();
        for channel in std::mem::take(&mut self.unconfirmed) {
            let Some(confirms) = self.confirms(channel) else { continue };
            confirms.advance(durable);
            let waits = confirms.next().is_some();
            confirmed.push(channel);
            if waits {
                self.unconfirmed.insert(channel);
            }
        }
        let (mut batch, before) = (Window::default(), out.len());
        for output in self.held.release(durable) {
            self.encode(now, output, durable, &mut confirmed, &mut batch, out);
        }
        self.tell_confirms(&mut confirmed, out);
        self.unwritten.add(out.len() - before, batch);
    }

    /// The journal position at which [`Self::handle_durable`] has something to do.
    #[must_use]
    pub fn awaits(&mut self) -> Option<JournalPosition> {
        let mut next = self.held.next();
        for channel in self.unconfirmed.clone() {
            let position = self.confirms(channel).and_then(|confirms| confirms.next());
            next = next.into_iter().chain(position).min();
        }
        next
    }

    /// Bytes of what waits for the journal before this client may be told, about. What a client asks while a disk stands
    /// still piles up here, so whoever drives the connection stops reading it.
    #[must_use]
    pub fn held_bytes(&self) -> usize {
        self.held.bytes()
    }

    fn encode(
        &mut self,
        now: Moment,
        output: Output,
        durable: JournalPosition,
        confirmed: &mut Vec<ChannelId>,
        batch: &mut Window,
        out: &mut Vec<u8>,
    ) {
        let window = output.window();
        batch.deliveries += window.deliveries;
        batch.answers += window.answers;
        match output {
            Output::Deliver { channel, consumer, tag, redelivered, message, .. } => {
                self.deliver(channel, consumer, tag, redelivered, &message, out);
            }
            Output::DeliverRow { channel, consumer, tag, row, messages, .. } => {
                self.deliver_row(channel, consumer, tag, &row, messages, out);
            }
            Output::GetOk { channel, tag, redelivered, message_count, message, .. } => {
                self.get_ok(channel, tag, redelivered, message_count, &message, out);
            }
            Output::Return { channel, reason, message } => {
                write_frame(out, FrameKind::Method, channel.number(), |out| {
                    let (exchange, routing_key) = message.route_strings();
                    let reply_text = ShortStr::truncated(reason.name());
                    let reply_code = reason.code();
                    Method::BasicReturn { reply_code, reply_text, exchange, routing_key }.encode(out);
                });
                self.content(channel, &message, out);
            }
            Output::Confirm { channel, number, after } => {
                if let Some(confirms) = self.confirms(channel) {
                    confirms.settle(number, after, durable);
                    if after > durable {
                        self.unconfirmed.insert(channel);
                    }
                    if !confirmed.contains(&channel) {
                        confirmed.push(channel);
                    }
                }
            }
            Output::Refuse { channel, number } => {
                self.tell_confirms(confirmed, out);
                if let Some(confirms) = self.confirms(channel) {
                    // RabbitMQ: the flags of a nack for a publisher, which say nothing new.
                    let multiple = confirms.refuse(number);
                    let delivery_tag = number.get();
                    write_method(
                        out,
                        channel.number(),
                        &Method::BasicNack { delivery_tag, multiple, requeue: true },
                    );
                }
            }
            Output::Answer(channel, answer, _) => {
                self.tell_confirms(confirmed, out);
                self.answer(channel, &answer, out);
            }
            Output::CloseChannel(channel, exception) => {
                self.tell_confirms(confirmed, out);
                self.close_channel(channel, &exception, out);
            }
            Output::Blocked(reason) => {
                self.tell_confirms(confirmed, out);
                if !std::mem::replace(&mut self.is_blocked, true) && self.capabilities.connection_blocked {
                    write_method(out, 0, &Method::ConnectionBlocked { reason: ShortStr::truncated(reason) });
                }
            }
            Output::Unblocked => {
                if std::mem::take(&mut self.is_blocked) && self.capabilities.connection_blocked {
                    write_method(out, 0, &Method::ConnectionUnblocked {});
                }
            }
            Output::TellWritten => {
                self.unreported.is_asked_for = true;
                self.report_written(Window::default());
            }
            Output::Farewell(farewell, _) => {
                self.tell_confirms(confirmed, out);
                self.held.forget_channels();
                self.farewell(now, farewell, out);
            }
        }
    }

    fn confirms(&mut self, channel: ChannelId) -> Option<&mut Confirms> {
        let (Slot::Open(channel) | Slot::ClosedByClient(channel)) = self.channels.slot(channel) else {
            return None;
        };
        match &mut channel.mode {
            Mode::Confirm(confirms) => Some(confirms),
            Mode::Plain | Mode::Transaction { .. } => None,
        }
    }

    fn tell_confirms(&mut self, channels: &mut Vec<ChannelId>, out: &mut Vec<u8>) {
        for channel in channels.drain(..) {
            let Some(confirms) = self.confirms(channel) else { continue };
            confirms.tell(|confirmation| {
                let (delivery_tag, multiple) = match confirmation {
                    Confirmation::One(number) => (number, false),
                    Confirmation::UpTo(number) => (number, true),
                };
                write_method(out, channel.number(), &Method::BasicAck { delivery_tag, multiple });
            });
        }
    }

    fn deliver(
        &mut self,
        channel: ChannelId,
        consumer: ConsumerId,
        tag: DeliveryTag,
        redelivered: bool,
        message: &Message,
        out: &mut Vec<u8>,
    ) {
        // A consumer without a tag belongs to a channel that is closed by now.
        let Some(consumer_tag) = self.channels.consumers.tag(consumer) else { return };
        write_deliver(channel, consumer_tag.as_short_str(), tag, redelivered, message.route(), out);
        self.content(channel, message, out);
    }

    fn deliver_row(
        &mut self,
        channel: ChannelId,
        consumer: ConsumerId,
        first: DeliveryTag,
        row: &Row,
        messages: Range<u32>,
        out: &mut Vec<u8>,
    ) {
        let Some(consumer_tag) = self.channels.consumers.tag(consumer) else { return };
        let mut deliver = Vec::new();
        let tag_at = write_deliver(channel, consumer_tag.as_short_str(), first, false, row.route(), &mut deliver);
        let messages = messages.start as usize..messages.end as usize;
        out.reserve(messages.len() * (deliver.len() + 2 * FRAME_OVERHEAD_BYTES) + row.bytes(messages.clone()));
        let mut tag = first;
        for nth in messages {
            deliver[tag_at..tag_at + 8].copy_from_slice(&tag.number().to_be_bytes());
            out.extend_from_slice(&deliver);
            let (header, body) = row.content(nth);
            write_content(out, channel.number(), header, body, self.frame_max);
            tag = if planted(Bug::RowNumberedOnce) { tag } else { tag.next() };
        }
    }

    fn get_ok(
        &mut self,
        channel: ChannelId,
        tag: DeliveryTag,
        redelivered: bool,
        message_count: u32,
        message: &Message,
        out: &mut Vec<u8>,
    ) {
        let (exchange, routing_key) = message.route_strings();
        let delivery_tag = tag.number();
        let method = Method::BasicGetOk { delivery_tag, redelivered, exchange, routing_key, message_count };
        write_method(out, channel.number(), &method);
        self.content(channel, message, out);
    }

    fn content(&self, channel: ChannelId, message: &Message, out: &mut Vec<u8>) {
        write_content(out, channel.number(), message.header(), message.body(), self.frame_max);
    }

    fn close_channel(&mut self, channel: ChannelId, exception: &Exception, out: &mut Vec<u8>) {
        self.channels.consumers.remove_channel(channel);
        match self.channels.slot(channel) {
            // The client closes it, too, and is about to get its answer; it hears why nothing came of the rest.
            Slot::ClosedByClient(_) => {}
            slot @ Slot::Open(_) => {
                *slot = Slot::ClosedByUs;
                self.channels.give_back();
            }
            slot @ (Slot::Closed | Slot::ClosedByUs) => *slot = Slot::ClosedByUs,
        }
        let (class_id, method_id) = exception.method;
        let reply_text = ShortStr::truncated(&exception.text);
        let reply_code = exception.code.code();
        let method = Method::ChannelClose { reply_code, reply_text, class_id, method_id };
        write_method(out, channel.number(), &method);
    }

    fn farewell(&mut self, now: Moment, farewell: Farewell, out: &mut Vec<u8>) {
        match farewell {
            Farewell::Silent => self.state = State::Closed,
            Farewell::CloseOk => {
                write_method(out, 0, &Method::ConnectionCloseOk {});
                self.state = State::Closed;
            }
            Farewell::Close(exception) => self.say_close(now, &exception, out),
        }
    }

    fn answer(&mut self, channel: ChannelId, answer: &Answer, out: &mut Vec<u8>) {
        let method = match answer {
            Answer::ChannelOpenOk => Method::ChannelOpenOk { channel_id: b"" },
            Answer::ChannelCloseOk => {
                self.channels.consumers.remove_channel(channel);
                if let slot @ (Slot::ClosedByClient(_) | Slot::Open(_)) = self.channels.slot(channel) {
                    *slot = Slot::Closed;
                    self.channels.give_back();
                }
                Method::ChannelCloseOk {}
            }
            Answer::ChannelFlowOk { active } => Method::ChannelFlowOk { active: *active },
            Answer::AccessRequestOk => Method::AccessRequestOk { ticket: 1 },
            Answer::ExchangeDeclareOk => Method::ExchangeDeclareOk {},
            Answer::ExchangeDeleteOk => Method::ExchangeDeleteOk {},
            Answer::ExchangeBindOk => Method::ExchangeBindOk {},
            Answer::ExchangeUnbindOk => Method::ExchangeUnbindOk {},
            Answer::QueueDeclareOk { queue, message_count, consumer_count } => Method::QueueDeclareOk {
                queue: queue.as_short_str(),
                message_count: *message_count,
                consumer_count: *consumer_count,
            },
            Answer::QueueBindOk => Method::QueueBindOk {},
            Answer::QueueUnbindOk => Method::QueueUnbindOk {},
            Answer::QueuePurgeOk { message_count } => Method::QueuePurgeOk { message_count: *message_count },
            Answer::QueueDeleteOk { message_count } => Method::QueueDeleteOk { message_count: *message_count },
            Answer::BasicQosOk => Method::BasicQosOk {},
            Answer::BasicConsumeOk { consumer } => {
                let Some(tag) = self.channels.consumers.tag(*consumer) else { return };
                Method::BasicConsumeOk { consumer_tag: tag.as_short_str() }
            }
            Answer::BasicCancelOk { consumer, tag, wait } => {
                if let Some(consumer) = consumer {
                    self.channels.consumers.remove(*consumer);
                }
                if *wait == Wait::NoWait {
                    return;
                }
                Method::BasicCancelOk { consumer_tag: tag.as_short_str() }
            }
            Answer::ConsumerTimedOut { consumer, timeout } if !self.capabilities.consumer_cancel_notify => {
                // A client that does not know what it means would wait for ever.
                self.channels.consumers.remove(*consumer);
                let refusal = Refusal::ConsumerTimeout { channel, timeout: *timeout };
                let exception = Exception::from(&refusal);
                self.commands.push(Command::FailChannel(channel, exception, Settlement::Requeue));
                return;
            }
            Answer::ConsumerTimedOut { consumer, .. } | Answer::BasicCancel { consumer } => {
                let Some(tag) = self.channels.consumers.remove(*consumer) else { return };
                if self.capabilities.consumer_cancel_notify {
                    let cancel = Method::BasicCancel { consumer_tag: tag.as_short_str(), nowait: true };
                    write_method(out, channel.number(), &cancel);
                }
                return;
            }
            Answer::BasicGetEmpty => Method::BasicGetEmpty { cluster_id: ShortStr::EMPTY },
            Answer::BasicRecoverOk => Method::BasicRecoverOk {},
            Answer::ConfirmSelectOk => Method::ConfirmSelectOk {},
            Answer::TxSelectOk => Method::TxSelectOk {},
            Answer::TxCommitOk => Method::TxCommitOk {},
            Answer::TxRollbackOk => Method::TxRollbackOk {},
        };
        write_method(out, channel.number(), &method);
    }
}

/// Writes the method frame of a delivery. Returns where its number stands.
fn write_deliver(
    channel: ChannelId,
    consumer_tag: ShortStr<'_>,
    tag: DeliveryTag,
    redelivered: bool,
    route: &[u8],
    out: &mut Vec<u8>,
) -> usize {
    let payload_bytes = 4 + 1 + consumer_tag.as_str().len() + 8 + 1 + route.len();
    out.reserve(payload_bytes + FRAME_OVERHEAD_BYTES);
    // basic.deliver is 60.60; its last two arguments are the route of the message as it is.
    let [k, c0, c1, l0, l1, l2, l3] = frame_head(FrameKind::Method, channel.number(), payload_bytes);
    out.extend_from_slice(&[k, c0, c1, l0, l1, l2, l3, 0, 60, 0, 60, consumer_tag.length_octet()]);
    out.extend_from_slice(consumer_tag.as_str().as_bytes());
    let tag_at = out.len();
    let [n0, n1, n2, n3, n4, n5, n6, n7] = tag.number().to_be_bytes();
    out.extend_from_slice(&[n0, n1, n2, n3, n4, n5, n6, n7, redelivered.into()]);
    out.extend_from_slice(route);
    out.push(FRAME_END);
    tag_at
}
