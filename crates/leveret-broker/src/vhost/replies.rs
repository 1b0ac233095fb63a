//! Direct reply-to: answers that go straight to the channel that asked, without a queue.
//! RabbitMQ: direct reply-to.
//!
//! A channel that consumes [`PSEUDO_QUEUE`] gets a routing key of its own. The connection writes it into property
//! `reply-to` of what the channel publishes; whoever publishes to it through the default exchange reaches the
//! channel. Delivery is at most once: a reply to a channel that has gone, or that has
//! [`REPLY_WINDOW_BYTES`](crate::limits::REPLY_WINDOW_BYTES) to read, is unroutable.

use leveret_amqp::ShortString;

use crate::change::JournalPosition;
use crate::message::Message;
use crate::names::ChannelId;
use crate::vhost::command::{AckMode, ConsumerId, Wait};
use crate::vhost::effects::{Answer, Effects, Output, window_bytes};
use crate::vhost::{ConnectionId, VirtualHost};

/// The queue that is none: where replies are consumed.
pub(crate) const PSEUDO_QUEUE: &str = "amq.rabbitmq.reply-to";

/// Whether a queue name is the pseudo-queue or the address of a channel that consumes it.
pub(super) fn is_reply_address(name: &str) -> bool {
    name.strip_prefix(PSEUDO_QUEUE).is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
}

/// Whether the exchange and the routing key of a message may lead to somebody who waits for replies.
pub(super) fn may_be_reply(route: &[u8]) -> bool {
    route[0] == 0 && route[2..].starts_with(PSEUDO_QUEUE.as_bytes())
}

impl VirtualHost {
    /// `basic.consume` of the pseudo-queue.
    pub(super) fn consume_replies(
        &mut self,
        from: ConnectionId,
        id: ChannelId,
        consumer: ConsumerId,
        key: ShortString,
        wait: Wait,
        effects: &mut Effects,
    ) {
        let Some(channel) = self.sessions.get_mut(from).and_then(|session| session.channel(id)) else { return };
        channel.replies = Some((consumer, key.clone()));
        self.reply_keys.insert(key, (from, id));
        if wait == Wait::Answer {
            self.answer(from, id, Answer::BasicConsumeOk { consumer }, effects);
        }
    }

    /// Ends the consumer of replies of a channel, if it is this one, or whichever it is.
    pub(super) fn cancel_replies(&mut self, from: ConnectionId, id: ChannelId, which: Option<ConsumerId>) {
        let Some(channel) = self.sessions.get_mut(from).and_then(|session| session.channel(id)) else { return };
        let is_meant = |consumer| which.is_none_or(|which| which == consumer);
        if let Some((_, key)) = channel.replies.take_if(|(consumer, _)| is_meant(*consumer)) {
            self.reply_keys.remove(&key);
        }
    }

    /// Whether a routing key of the default exchange reaches somebody who waits for replies. The pseudo-queue itself
    /// is always there.
    pub(super) fn expects_reply(&self, key: &str) -> bool {
        key == PSEUDO_QUEUE || self.reply_keys.contains_key(key)
    }

    /// Hands a message to whoever waits for replies under one of its keys; true if somebody got it.
    pub(super) fn deliver_replies(
        &mut self,
        message: &Message,
        more_keys: Option<&[ShortString]>,
        effects: &mut Effects,
    ) -> bool {
        // Few messages are replies, and this looks at all.
        if more_keys.is_none() && !may_be_reply(message.route()) {
            return false;
        }
        let mut any = self.deliver_reply(message.routing_key(), message, effects);
        let is_other = |key: &&ShortString| key.as_str() != message.routing_key();
        for key in more_keys.unwrap_or_default().iter().filter(is_other) {
            any |= self.deliver_reply(key.as_str(), message, effects);
        }
        any
    }

    fn deliver_reply(&mut self, key: &str, message: &Message, effects: &mut Effects) -> bool {
        if !is_reply_address(key) {
            return false;
        }
        let Some(&(to, id)) = self.reply_keys.get(key) else { return false };
        let Some(session) = self.sessions.get_mut(to) else { return false };
        if session.has_too_many_replies() {
            return false;
        }
        let Some(channel) = session.channel(id) else { return false };
        let Some((consumer, _)) = channel.replies else { return false };
        let tag = channel.unacked.next_tag();
        session.use_window(window_bytes(message));
        self.window_room = self.window_room.saturating_sub(window_bytes(message));
        let (ack_mode, redelivered) = (AckMode::Automatic, false);
        let (after, message) = (JournalPosition::default(), message.clone());
        effects.push(to, Output::Deliver { channel: id, consumer, tag, ack_mode, redelivered, after, message });
        true
    }
}
