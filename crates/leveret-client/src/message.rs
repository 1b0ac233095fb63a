//! What a broker hands to a client: messages, and news of its consumers.

use leveret_amqp::{BasicProperties, ContentHeader, ShortString};

/// A message: its properties and body.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    /// The payload of the header frame. Checked when it arrived, so that decoding it again cannot fail.
    pub(crate) header: Vec<u8>,
    /// The body.
    pub body: Vec<u8>,
}

impl Message {
    /// A message as a broker would deliver it.
    pub fn new(properties: &BasicProperties<'_>, body: Vec<u8>) -> Self {
        let header = ContentHeader { body_bytes: body.len() as u64, properties: *properties };
        let mut payload = Vec::new();
        header.encode(&mut payload);
        Message { header: payload, body }
    }

    /// The properties, decoded now.
    pub fn properties(&self) -> BasicProperties<'_> {
        ContentHeader::decode(&self.header).map(|header| header.properties).unwrap_or_default()
    }
}

/// A message on its way to a consumer: `basic.deliver`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Delivery {
    /// Which consumer it is for; of no characters for a message that was got.
    pub consumer_tag: ShortString,
    /// Its number on this channel, for acking it.
    pub delivery_tag: u64,
    /// Whether it was delivered before and came back.
    pub redelivered: bool,
    /// The exchange it was published to.
    pub exchange: ShortString,
    /// The routing key it was published with.
    pub routing_key: ShortString,
    /// The message itself.
    pub message: Message,
}

/// The answer to `basic.get` from a queue that had a message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Got {
    /// The message and where it came from.
    pub delivery: Delivery,
    /// How many messages the queue still has.
    pub remaining: u32,
}

/// A mandatory message that reached no queue: `basic.return`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Returned {
    /// For example 312.
    pub reply_code: u16,
    /// For example `NO_ROUTE`.
    pub reply_text: ShortString,
    /// The exchange it was published to.
    pub exchange: ShortString,
    /// The routing key it was published with.
    pub routing_key: ShortString,
    /// The message itself.
    pub message: Message,
}

/// News for the consumers of a channel, in the order of their arrival.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ConsumerEvent {
    /// A message.
    Delivery(Delivery),
    /// The consumer is gone; nothing follows for it.
    Cancelled {
        /// Which consumer.
        consumer_tag: ShortString,
        /// Who ended it.
        by: CancelledBy,
    },
}

/// Who ended a consumer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CancelledBy {
    /// We asked for it.
    Client,
    /// The broker did, for example because the queue was deleted.
    Broker,
}

/// The answer to `queue.declare`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeclaredQueue {
    /// The name, which the broker made up if none was given.
    pub name: ShortString,
    /// How many messages are ready.
    pub message_count: u32,
    /// How many consumers there are.
    pub consumer_count: u32,
}
