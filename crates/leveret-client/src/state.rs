//! What one channel has received: answers, messages being assembled, confirms.
//!
//! Must not know: sockets and clocks.

use std::collections::VecDeque;

use leveret_amqp::{ContentHeader, FrameKind, Method, RawFrame, ShortStr, ShortString};

use crate::confirms::{Confirms, Verdict};
use crate::error::{Error, Reply};
use crate::limits::{BODY_BYTES_RESERVED, MESSAGE_BYTES_MAX};
use crate::message::{CancelledBy, ConsumerEvent, DeclaredQueue, Delivery, Got, Message, Returned};

#[derive(Debug, Default)]
pub(crate) struct ChannelState {
    pub(crate) life: Life,
    assembly: Assembly,
    /// The answer to the one method that is waited for.
    pub(crate) answer: Option<Answer>,
    /// Bounded by the prefetch; with auto-ack, by how long the caller reads something else.
    pub(crate) events: VecDeque<ConsumerEvent>,
    /// At most one for each mandatory publish.
    pub(crate) returned: VecDeque<Returned>,
    /// `Some` after `confirm.select`.
    pub(crate) confirms: Option<Confirms>,
    /// The prefetch in force, 0 for none.
    pub(crate) prefetch_count: u16,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) enum Life {
    #[default]
    Open,
    /// We sent a close: whatever else arrives is ignored.
    Closing,
    /// The broker closed the channel and says why, or nothing if we asked for it.
    Closed(Option<Reply>),
}

/// The answer to a method of ours.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Answer {
    /// For example `queue.purge-ok`.
    pub(crate) method: &'static str,
    pub(crate) content: AnswerContent,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum AnswerContent {
    Nothing,
    Queue(DeclaredQueue),
    MessageCount(u32),
    Consumer(ShortString),
    Got(Box<Got>),
}

/// The method of the broker that expects an `-ok` from us.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Courtesy {
    Close,
    Flow { active: bool },
    Cancel { consumer_tag: ShortString },
}

/// The method that announced a content.
#[derive(Debug)]
enum Announced {
    Delivery { consumer_tag: ShortString, delivery_tag: u64, redelivered: bool, origin: Origin },
    Got { delivery_tag: u64, redelivered: bool, origin: Origin, remaining: u32 },
    Returned { reply_code: u16, reply_text: ShortString, origin: Origin },
}

#[derive(Debug)]
struct Origin {
    exchange: ShortString,
    routing_key: ShortString,
}

impl Origin {
    fn new(exchange: ShortStr<'_>, routing_key: ShortStr<'_>) -> Self {
        Origin { exchange: exchange.into(), routing_key: routing_key.into() }
    }
}

/// Idle, then a method with content, then its header, then its body until no bytes are left.
#[derive(Debug, Default)]
enum Assembly {
    #[default]
    Idle,
    AwaitingHeader(Announced),
    AwaitingBody {
        announced: Announced,
        message: Message,
        bytes_left: u64,
    },
}

impl ChannelState {
    pub(crate) fn handle_frame(&mut self, frame: RawFrame<'_>) -> Result<Option<Courtesy>, Error> {
        match frame.kind {
            FrameKind::Method => self.handle_method(Method::decode(frame.payload)?),
            FrameKind::Header => self.handle_header(frame.payload).map(|()| None),
            FrameKind::Body => self.handle_body(frame.payload).map(|()| None),
            FrameKind::Heartbeat => Err(Error::Unexpected("a heartbeat on a channel".to_owned())),
        }
    }

    fn handle_method(&mut self, method: Method<'_>) -> Result<Option<Courtesy>, Error> {
        if let Method::ChannelClose { reply_code, reply_text, class_id, method_id } = method {
            let reply =
                Reply { code: reply_code, text: reply_text.as_str().to_owned(), method: (class_id, method_id) };
            self.assembly = Assembly::Idle;
            // When both sides close at once, the reason still counts, and our own close-ok comes later.
            if self.life == Life::Open {
                self.life = Life::Closed(Some(reply));
            }
            return Ok(Some(Courtesy::Close));
        }
        if self.life != Life::Open {
            if method == (Method::ChannelCloseOk {}) && self.life == Life::Closing {
                self.life = Life::Closed(None);
            } else if method == (Method::ChannelCloseOk {}) {
                return Err(Error::Unexpected("channel.close-ok".to_owned()));
            }
            return Ok(None);
        }
        if !matches!(self.assembly, Assembly::Idle) {
            return Err(Error::Unexpected(format!("{} in the middle of a message", method.name())));
        }
        let content = match method {
            Method::BasicDeliver { consumer_tag, delivery_tag, redelivered, exchange, routing_key } => {
                let (consumer_tag, origin) = (consumer_tag.into(), Origin::new(exchange, routing_key));
                let announced = Announced::Delivery { consumer_tag, delivery_tag, redelivered, origin };
                self.assembly = Assembly::AwaitingHeader(announced);
                return Ok(None);
            }
            Method::BasicGetOk { delivery_tag, redelivered, exchange, routing_key, message_count } => {
                let origin = Origin::new(exchange, routing_key);
                let announced = Announced::Got { delivery_tag, redelivered, origin, remaining: message_count };
                self.assembly = Assembly::AwaitingHeader(announced);
                return Ok(None);
            }
            Method::BasicReturn { reply_code, reply_text, exchange, routing_key } => {
                let (reply_text, origin) = (reply_text.into(), Origin::new(exchange, routing_key));
                self.assembly = Assembly::AwaitingHeader(Announced::Returned { reply_code, reply_text, origin });
                return Ok(None);
            }
            Method::BasicAck { delivery_tag, multiple } => {
                return self.handle_confirm(delivery_tag, multiple, Verdict::Acked).map(|()| None);
            }
            Method::BasicNack { delivery_tag, multiple, requeue: _ } => {
                return self.handle_confirm(delivery_tag, multiple, Verdict::Nacked).map(|()| None);
            }
            Method::BasicCancel { consumer_tag, nowait } => {
                let consumer_tag = ShortString::from(consumer_tag);
                let by = CancelledBy::Broker;
                self.events.push_back(ConsumerEvent::Cancelled { consumer_tag: consumer_tag.clone(), by });
                return Ok((!nowait).then_some(Courtesy::Cancel { consumer_tag }));
            }
            Method::BasicCancelOk { consumer_tag } => {
                let by = CancelledBy::Client;
                self.events.push_back(ConsumerEvent::Cancelled { consumer_tag: consumer_tag.into(), by });
                return Ok(None);
            }
            Method::ChannelFlow { active } => return Ok(Some(Courtesy::Flow { active })),
            Method::QueueDeclareOk { queue, message_count, consumer_count } => {
                AnswerContent::Queue(DeclaredQueue { name: queue.into(), message_count, consumer_count })
            }
            Method::QueueDeleteOk { message_count } | Method::QueuePurgeOk { message_count } => {
                AnswerContent::MessageCount(message_count)
            }
            Method::BasicConsumeOk { consumer_tag } => AnswerContent::Consumer(consumer_tag.into()),
            Method::ChannelOpenOk { .. }
            | Method::ExchangeDeclareOk {}
            | Method::ExchangeDeleteOk {}
            | Method::ExchangeBindOk {}
            | Method::ExchangeUnbindOk {}
            | Method::QueueBindOk {}
            | Method::QueueUnbindOk {}
            | Method::BasicQosOk {}
            | Method::BasicGetEmpty { .. }
            | Method::ConfirmSelectOk {} => AnswerContent::Nothing,
            other => return Err(Error::Unexpected(other.name().to_owned())),
        };
        self.handle_answer(Answer { method: method.name(), content })
    }

    fn handle_answer(&mut self, answer: Answer) -> Result<Option<Courtesy>, Error> {
        if self.answer.is_some() {
            return Err(Error::Unexpected(format!("{} without a question", answer.method)));
        }
        self.answer = Some(answer);
        Ok(None)
    }

    fn handle_confirm(&mut self, number: u64, multiple: bool, verdict: Verdict) -> Result<(), Error> {
        let confirms = self.confirms.as_mut().ok_or_else(|| Error::Unexpected("a confirm".to_owned()))?;
        let never = |error: crate::confirms::NeverPublished| {
            Error::Unexpected(format!("a confirm for number {}, which was never published", error.0))
        };
        confirms.handle(number, multiple, verdict).map_err(never)
    }

    fn handle_header(&mut self, payload: &[u8]) -> Result<(), Error> {
        if self.life != Life::Open {
            return Ok(());
        }
        let Assembly::AwaitingHeader(announced) = std::mem::take(&mut self.assembly) else {
            return Err(Error::Unexpected("a content header without its method".to_owned()));
        };
        let header = ContentHeader::decode(payload)?;
        let bytes_left = header.body_bytes;
        if bytes_left > MESSAGE_BYTES_MAX {
            return Err(Error::MessageTooLarge(bytes_left));
        }
        let reserved = usize::try_from(bytes_left.min(BODY_BYTES_RESERVED)).unwrap_or_default();
        let message = Message { header: payload.to_vec(), body: Vec::with_capacity(reserved) };
        self.continue_with(announced, message, bytes_left);
        Ok(())
    }

    fn handle_body(&mut self, payload: &[u8]) -> Result<(), Error> {
        if self.life != Life::Open {
            return Ok(());
        }
        let Assembly::AwaitingBody { announced, mut message, bytes_left } = std::mem::take(&mut self.assembly)
        else {
            return Err(Error::Unexpected("a body without its header".to_owned()));
        };
        let Some(bytes_left) = bytes_left.checked_sub(payload.len() as u64) else {
            return Err(Error::Unexpected("more body than its header announced".to_owned()));
        };
        message.body.extend_from_slice(payload);
        self.continue_with(announced, message, bytes_left);
        Ok(())
    }

    fn continue_with(&mut self, announced: Announced, message: Message, bytes_left: u64) {
        if bytes_left > 0 {
            self.assembly = Assembly::AwaitingBody { announced, message, bytes_left };
            return;
        }
        match announced {
            Announced::Delivery { consumer_tag, delivery_tag, redelivered, origin } => {
                let Origin { exchange, routing_key } = origin;
                let delivery = Delivery { consumer_tag, delivery_tag, redelivered, exchange, routing_key, message };
                self.events.push_back(ConsumerEvent::Delivery(delivery));
            }
            Announced::Got { delivery_tag, redelivered, origin, remaining } => {
                let Origin { exchange, routing_key } = origin;
                let consumer_tag = ShortString::default();
                let delivery = Delivery { consumer_tag, delivery_tag, redelivered, exchange, routing_key, message };
                let content = AnswerContent::Got(Box::new(Got { delivery, remaining }));
                self.answer = Some(Answer { method: "basic.get-ok", content });
            }
            Announced::Returned { reply_code, reply_text, origin } => {
                let Origin { exchange, routing_key } = origin;
                self.returned.push_back(Returned { reply_code, reply_text, exchange, routing_key, message });
            }
        }
    }
}
