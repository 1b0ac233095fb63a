//! Taking a message in: `basic.publish`, from route to queues. RabbitMQ: publishing, mandatory, confirms.

use leveret_amqp::{ReplyCode, ShortString};
use leveret_planted::{Bug, planted};
use smallvec::SmallVec;

use crate::change::{Change, Enqueued, JournalPosition};
use crate::limits::TRANSACTION_BYTES_MAX;
use crate::message::{DeliveryMode, Message, MessageId};
use crate::moment::Moment;
use crate::vhost::command::Publish;
use crate::vhost::deliver::Recipe;
use crate::vhost::effects::{Effects, Output, Outputs, window_bytes};
use crate::vhost::exchange::{ExchangeId, Kept, Target};
use crate::vhost::queue::{Entry, Queue, QueueType};
use crate::vhost::refusal::Refusal;
use crate::vhost::route::{Route, Way};
use crate::vhost::search::{Keepers, Search, Unfinished};
use crate::vhost::work::Work;
use crate::vhost::{ConnectionId, QueueId, VirtualHost};

impl VirtualHost {
    pub(super) fn publish(
        &mut self,
        now: Moment,
        from: ConnectionId,
        publish: Publish,
        effects: &mut Effects,
    ) -> Result<(), Refusal> {
        match self.route(from, &publish.message, publish.more_keys.as_deref())? {
            Way::To(route) => self.publish_to(now, from, publish, route, Keepers::new(), effects),
            Way::Behind(exchange) => {
                let search = self.begin_search(exchange);
                self.publish_behind(now, from, publish, search, effects)
            }
        }
    }

    /// Publishes to the queues that a search finds. If it takes longer than this hold of the lock, it is put aside.
    pub(super) fn publish_behind(
        &mut self,
        now: Moment,
        from: ConnectionId,
        publish: Publish,
        mut search: Search,
        effects: &mut Effects,
    ) -> Result<(), Refusal> {
        if !self.search(&mut search, &publish) {
            self.searching.insert(from, Box::new(Unfinished { publish, search, is_again: false }));
            return Ok(());
        }
        let (version, by_key) = (search.version, search.by_key);
        let (route, keepers, scratch) = search.finish();
        self.match_scratch = scratch;
        if publish.more_keys.is_none()
            && by_key
            && let Some(session) = self.sessions.get_mut(from)
        {
            session.routes.remember(publish.message.route(), Some(version), &route);
        }
        self.publish_to(now, from, publish, route, keepers, effects)
    }

    /// Publishes to these queues and exchanges that keep it, at once or in the transaction of the channel.
    fn publish_to(
        &mut self,
        now: Moment,
        from: ConnectionId,
        publish: Publish,
        route: Route,
        keepers: Keepers,
        effects: &mut Effects,
    ) -> Result<(), Refusal> {
        let session = self.sessions.get_mut(from);
        match session.and_then(|session| session.transaction(publish.channel)) {
            Some((transaction, part)) => {
                let bytes = transacted_bytes(&publish, &route);
                self.ledger.check_transaction(part, bytes)?;
                if transaction.memory.bytes() + bytes > TRANSACTION_BYTES_MAX && !transaction.publishes.is_empty() {
                    return Err(Refusal::TransactionTooLarge);
                }
                transaction.memory.take(bytes);
                transaction.publishes.push((publish, route, keepers));
            }
            None => _ = self.enqueue(now, from, publish, &route, &keepers, effects),
        }
        Ok(())
    }

    /// Puts a message into the queues of its route, all at one instant; false if one of them is full and does not take it.
    pub(super) fn enqueue(
        &mut self,
        now: Moment,
        from: ConnectionId,
        publish: Publish,
        route: &Route,
        keepers: &[ExchangeId],
        effects: &mut Effects,
    ) -> bool {
        let Publish { channel, message, more_keys, mandatory, expiration_ms, confirm } = publish;
        let is_answered =
            message.is_to_default_exchange() && self.deliver_replies(&message, more_keys.as_deref(), effects);
        if route.is_empty() && mandatory && !is_answered {
            // The return comes before the confirm.
            let message = message.clone();
            if let Some(session) = self.sessions.get_mut(from) {
                session.use_answer_window(window_bytes(&message));
                self.window_room = self.window_room.saturating_sub(window_bytes(&message));
            }
            effects.push(from, Output::Return { channel, reason: ReplyCode::NoRoute, message });
        }
        self.keep(&message, expiration_ms, keepers);
        let after = self.offer(now, message, expiration_ms, route, effects);
        if let Some(number) = confirm {
            // RabbitMQ: one queue that does not take it is enough, though the others have it.
            let output = match after.or(planted(Bug::RefusalConfirmed).then_some(self.position)) {
                Some(after) => Output::Confirm { channel, number, after },
                None => Output::Refuse { channel, number },
            };
            effects.push(from, output);
        }
        after.is_some()
    }

    /// Puts a message into those of these queues that take it, all at one instant. Returns what its being there rests on,
    /// or nothing if one of them is full.
    pub(super) fn offer(
        &mut self,
        now: Moment,
        message: Message,
        expiration_ms: Option<u64>,
        route: &Route,
        effects: &mut Effects,
    ) -> Option<JournalPosition> {
        let mut route = Route::from_slice(route);
        let full = self.take_full(&message, &mut route);
        if !full.is_empty() {
            self.pass_on(now, &full, &message, JournalPosition::default(), effects);
        }
        let after = self.place(now, message, expiration_ms, &route, JournalPosition::default(), effects);
        for &queue in &route {
            self.drop_overflow(now, queue, effects);
        }
        full.is_empty().then_some(after)
    }

    /// Hands a message through, if that can be.
    fn hand_message_through(
        &mut self,
        id: QueueId,
        message: &mut Option<Message>,
        departure: JournalPosition,
        effects: &mut Effects,
    ) {
        let Some(bytes) = message.as_ref().map(window_bytes) else { return };
        let hand = |outputs: &mut Outputs, mut recipe: Recipe, _| {
            if let Some(message) = message.take() {
                outputs.push(recipe.deliver(message));
            }
        };
        self.hand_through(id, 1, |_| bytes, hand, departure, effects);
    }

    /// Exchanges keep a message for those who are bound later.
    pub(super) fn keep(&mut self, message: &Message, expiration_ms: Option<u64>, keepers: &[ExchangeId]) {
        for &keeper in keepers {
            if let Some(exchange) = self.exchanges.get_mut(keeper) {
                exchange.keep(message, expiration_ms);
            }
        }
    }

    /// Puts a message into queues, all at one instant. Returns what its being there rests on. If it comes from a queue, nobody
    /// is given it before its departure from there is durable.
    pub(super) fn place(
        &mut self,
        now: Moment,
        message: Message,
        expiration_ms: Option<u64>,
        route: &Route,
        departure: JournalPosition,
        effects: &mut Effects,
    ) -> JournalPosition {
        let is_persistent = message.delivery_mode() == DeliveryMode::Persistent;
        let is_journaled = |queue: &Queue| {
            // RabbitMQ: quorum queues treat every message as persistent.
            queue.declared.durable && (is_persistent || queue.declared.arguments.queue_type == QueueType::Quorum)
        };
        let id = if route.iter().any(|&queue| self.queues.get(queue).is_some_and(is_journaled)) {
            MessageId::journaled(self.position.next())
        } else {
            MessageId::NOWHERE
        };
        let mut durable_queues: SmallVec<[Enqueued; 1]> = SmallVec::new();
        let mut message = Some(message);
        for (nth, &queue_id) in route.iter().enumerate() {
            if planted(Bug::FanOutInPieces) && nth > 0 && departure == JournalPosition::default() {
                let kept = message.clone().map(|message| Kept { message, expiration_ms });
                self.work.push_back(Work::Replay(Target::Queue(queue_id), Vec::from_iter(kept).into_iter()));
                self.units = 0;
                continue;
            }
            let Some(queue) = self.queues.get_mut(queue_id) else { continue };
            let journaled = is_journaled(queue);
            let number = queue.declared.number;
            let is_last = nth + 1 == route.len() && !journaled && durable_queues.is_empty();
            let body = if is_last { message.take() } else { message.clone() };
            let Some(body) = body else { continue };
            // What is begun is done before anybody is handed anything.
            let is_open = !journaled && expiration_ms.is_none() && !self.is_working && queue.is_open_way();
            let mut body = Some(body);
            if is_open {
                self.hand_message_through(queue_id, &mut body, departure, effects);
            }
            let Some(body) = body else { continue };
            let Some(queue) = self.queues.get_mut(queue_id) else { continue };
            let (rank, time_to_live) = queue.place_for(&body, expiration_ms);
            let expires = time_to_live.map(|time| now.deadline(time));
            let position = queue.push(rank, Entry::new(id, body, expires, journaled));
            queue.wait_for(departure);
            if journaled && (!planted(Bug::FanOutJournaledOnce) || durable_queues.is_empty()) {
                let expires = time_to_live.map(|time| now.expiry(time));
                durable_queues.push(Enqueued { queue: number, position, expires });
            }
            self.units = self.units.saturating_sub(1);
            self.mark_runnable(queue_id);
        }
        let mut after = JournalPosition::default();
        if let Some(message) = message
            && !durable_queues.is_empty()
        {
            if departure != JournalPosition::default() {
                self.departure_room = self.departure_room.saturating_sub(message.bytes());
            }
            self.change(Change::MessageEnqueued { message, queues: durable_queues }, effects);
            after = self.position;
        }
        after
    }
}

/// What a publish takes while its transaction is open.
fn transacted_bytes(publish: &Publish, route: &Route) -> usize {
    let keys =
        publish.more_keys.iter().flatten().map(|key| size_of::<ShortString>() + key.as_str().len()).sum::<usize>();
    let queues = if route.spilled() { size_of_val(&route[..]) } else { 0 };
    publish.message.memory() + keys + queues + size_of::<(Publish, Route, Keepers)>()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::names::ChannelId;
    use crate::vhost::QueueId;

    #[test]
    fn what_a_transaction_keeps_is_more_than_bodies() {
        let publish = |more_keys| Publish {
            channel: ChannelId::new(1).unwrap(),
            message: Message::new(&[0, 0], 2, 2, DeliveryMode::Transient),
            more_keys,
            mandatory: false,
            expiration_ms: None,
            confirm: None,
        };
        let key = ShortString::new("a key of twenty bytes").unwrap();
        let keys = vec![key; 1000].into_boxed_slice();
        assert!(transacted_bytes(&publish(Some(keys)), &Route::new()) > 20_000);
        let route: Route = std::iter::repeat_n(QueueId::default(), 10_000).collect();
        assert!(transacted_bytes(&publish(None), &route) > 80_000);
    }
}
