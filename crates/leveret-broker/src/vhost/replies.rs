//! Direct reply-to: answers that go straight to the channel that asked, without a queue.
//! RabbitMQ: direct reply-to.
//!
//! A channel that consumes [`PSEUDO_QUEUE`] gets a routing key of its own. The connection writes it into property
//! `reply-to` of what the channel publishes; whoever publishes to it through the default exchange reaches the
//! channel. Delivery is at most once: a reply to a channel that has gone, or that has
//! [`REPLY_WINDOW_BYTES`](crate::limits::REPLY_WINDOW_BYTES) to read, is unroutable, and the log says so.

use leveret_amqp::ShortString;

use crate::change::JournalPosition;
use crate::message::Message;
use crate::names::ChannelId;
use crate::vhost::command::{AckMode, ConsumerId, Wait};
use crate::vhost::effects::{Answer, Effects, Notice, Output, window_bytes};
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
        if session.has_too_many_replies(self.window_room) {
            let untold = session.tell_of_dropped_reply();
            effects.notices.extend(untold.map(|connection| Notice::ReplyDropped { connection }));
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

#[cfg(test)]
mod tests {
    use leveret_amqp::ShortStr;

    use super::*;
    use crate::limits::{REPLY_WINDOW_BYTES, WINDOW_BYTES_MAX};
    use crate::message::{DeliveryMode, History};
    use crate::vhost::command::{Command, Commands, Publish};
    use crate::vhost::effects::Window;
    use crate::vhost::fixtures::{at, connect, empty_vhost};

    const KEY: &str = "amq.rabbitmq.reply-to.x";

    /// A virtual host in which one client asks and another one answers.
    struct Scene {
        vhost: VirtualHost,
        asking: ConnectionId,
        answering: ConnectionId,
        effects: Effects,
    }

    impl Scene {
        fn new() -> Self {
            let mut vhost = empty_vhost();
            let (asking, answering) = (connect(&mut vhost), connect(&mut vhost));
            let mut scene = Scene { vhost, asking, answering, effects: Effects::default() };
            let channel = ChannelId::new(1).unwrap();
            let key = ShortStr::truncated(KEY).into();
            scene.execute(asking, Command::OpenChannel(channel));
            let consumer = ConsumerId { slot: 0, number: 1 };
            scene.execute(asking, Command::ConsumeReplies(channel, consumer, key, Wait::Answer));
            scene.execute(answering, Command::OpenChannel(channel));
            scene
        }

        fn execute(&mut self, from: ConnectionId, command: Command) {
            let mut commands = Commands::default();
            commands.push(command);
            let _ = self.vhost.handle_batch(at(1), from, &mut commands, &mut self.effects);
        }

        /// Answers with a body of a MiB; whether the other one is sent it, and what the log says.
        fn answer(&mut self) -> (bool, Vec<Notice>) {
            let length = u8::try_from(KEY.len()).unwrap();
            let (header_at, body_at) = (2 + u16::from(length), 2 + u32::from(length) + 14);
            let mut block = [&[0, length], KEY.as_bytes(), &[0, 60, 0, 0, 0, 0, 0, 0, 0, 16, 0, 0, 0, 0]].concat();
            block.resize(block.len() + WINDOW_BYTES_MAX, b'x');
            let message =
                Message::from_parts(&block, header_at, body_at, DeliveryMode::Transient, History::None).unwrap();
            let channel = ChannelId::new(1).unwrap();
            let (more_keys, expiration_ms, confirm) = (None, None, None);
            let publish = Publish { channel, message, more_keys, mandatory: false, expiration_ms, confirm };
            self.effects.take_outputs(|_, _, _| ());
            self.execute(self.answering, Command::Publish(publish));
            let mut is_sent = false;
            self.effects.take_outputs(|_, outputs, _| {
                is_sent |= outputs.iter().any(|output| matches!(output, Output::Deliver { .. }));
            });
            (is_sent, std::mem::take(&mut self.effects.notices))
        }

        /// The one that asks reads so many bytes.
        fn read(&mut self, bytes: usize) {
            let written = Window { deliveries: bytes, ..Window::default() };
            self.execute(self.asking, Command::Written(written));
        }
    }

    #[test]
    fn that_replies_are_dropped_is_said_once_until_most_of_them_are_read() {
        let mut scene = Scene::new();
        let dropped = vec![Notice::ReplyDropped { connection: String::new() }];
        let in_window = REPLY_WINDOW_BYTES / WINDOW_BYTES_MAX;
        for _ in 0..in_window {
            assert_eq!(scene.answer(), (true, vec![]));
        }
        assert_eq!(scene.answer(), (false, dropped.clone()));
        assert_eq!(scene.answer(), (false, vec![]), "it was said");
        for _ in 0..3 {
            // Who reads a little may be sent a little more, and it is no news that there is no room for the next one.
            scene.read(WINDOW_BYTES_MAX + 1024);
            assert_eq!(scene.answer(), (true, vec![]));
            assert_eq!(scene.answer(), (false, vec![]));
        }
        scene.read(in_window * WINDOW_BYTES_MAX);
        for _ in 0..in_window {
            assert_eq!(scene.answer(), (true, vec![]));
        }
        assert_eq!(scene.answer(), (false, dropped));
    }

    #[test]
    fn beyond_a_window_replies_take_no_more_than_is_left_for_all() {
        for (left, sent) in [(0, 1), (2, 1), (8, 4), (1000, REPLY_WINDOW_BYTES / WINDOW_BYTES_MAX)] {
            let mut scene = Scene::new();
            scene.vhost.set_window_room(left * WINDOW_BYTES_MAX);
            for _ in 0..sent {
                assert!(scene.answer().0, "{left}");
            }
            assert!(!scene.answer().0, "{left}");
        }
    }

    #[test]
    fn the_log_names_the_connection_whose_replies_are_dropped() {
        let notice = Notice::ReplyDropped { connection: "127.0.0.1:1 -> 127.0.0.1:5672".into() };
        assert_eq!(
            notice.to_string(),
            "a direct reply was dropped, for its client has too much to read, and so are others until it reads: \
             connection 127.0.0.1:1 -> 127.0.0.1:5672"
        );
    }
}
