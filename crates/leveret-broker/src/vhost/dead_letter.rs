//! Dead lettering: what becomes of messages that leave a queue without having been consumed. RabbitMQ: dead letter
//! exchanges, arguments `x-dead-letter-exchange` and `x-dead-letter-routing-key`.
//!
//! A message whose queue has no exchange for it is gone. Any other goes on: it is put into the queues that the exchange
//! leads to and taken from its own, in one list of changes, so after a crash it is in one place. If its body is not in
//! memory, it is *condemned* first: that is a durable fact of its own, so it is not delivered any more from then on. So is
//! one that has to be kept (`x-dead-letter-strategy`) and that no queue takes; it is tried again.

mod deaths;

use leveret_amqp::ShortString;
use smallvec::smallvec;

use self::deaths::{Address, Death};
use crate::change::{Change, DeathReason};
use crate::limits::{DEAD_LETTER_RETRY, PASSED_ON_MAX};
use crate::message::Message;
use crate::moment::Moment;
use crate::vhost::effects::{Effects, Fetch, FetchFor};
use crate::vhost::queue::{Known, Position, Queue};
use crate::vhost::route::Route;
use crate::vhost::{QueueId, VirtualHost};

impl VirtualHost {
    /// A ready message leaves its queue.
    pub(super) fn discard_ready(
        &mut self,
        now: Moment,
        id: QueueId,
        position: Position,
        reason: DeathReason,
        effects: &mut Effects,
    ) {
        if self.queues.get_mut(id).is_some_and(|queue| queue.take(position)) {
            self.discard_taken(now, id, position, reason, effects);
        }
    }

    /// A message that was taken leaves its queue.
    pub(super) fn discard_taken(
        &mut self,
        now: Moment,
        id: QueueId,
        position: Position,
        reason: DeathReason,
        effects: &mut Effects,
    ) {
        let Some(queue) = self.queues.get_mut(id) else { return };
        if queue.declared.arguments.dead_letters.is_none() {
            return self.settle_taken(id, position, effects);
        }
        let is_first = queue.dying().is_empty();
        let Some(Known { message, journaled, .. }) = queue.known(position) else { return };
        if let Some(message) = message.filter(|_| is_first)
            && self.dead_letter(now, id, &message, reason, effects)
        {
            return self.settle_taken(id, position, effects);
        }
        let Some(queue) = self.queues.get_mut(id) else { return };
        queue.condemn(position, reason);
        if journaled {
            let queue = queue.declared.number;
            self.change(Change::MessagesCondemned { queue, messages: smallvec![(position, reason)] }, effects);
        }
        self.mark_runnable(id);
    }

    /// Lets those go on that wait for their bodies, as far as those are here.
    pub(super) fn bury(&mut self, now: Moment, id: QueueId, effects: &mut Effects) {
        while self.units > 0 {
            let Some(queue) = self.queues.get_mut(id) else { return };
            if queue.dying().retry_at().is_some_and(|at| !now.has_reached(at)) {
                return;
            }
            // It is tried now, or as soon as its body is here: there is nothing to wake up for until then.
            queue.dying_mut().set_retry(None);
            let Some((position, reason, fetched)) = queue.dying().first() else { return };
            let Some(message) = fetched.or_else(|| queue.known(position)?.message) else {
                let wanted = queue.ask_for_dying(self.read_ahead).into_iter();
                let fetch = |(position, message)| Fetch { id: message, purpose: FetchFor::Queue(id, position) };
                effects.fetches.extend(wanted.map(fetch));
                return;
            };
            self.units -= 1;
            let is_gone = self.dead_letter(now, id, &message, reason, effects);
            let Some(queue) = self.queues.get_mut(id) else { return };
            queue.dying_mut().set_retry((!is_gone).then(|| now.deadline(DEAD_LETTER_RETRY)));
            if !is_gone {
                return;
            }
            queue.dying_mut().remove(position);
            self.settle_taken(id, position, effects);
        }
    }

    /// Takes a message out of its queue for good.
    pub(super) fn settle_taken(&mut self, id: QueueId, position: Position, effects: &mut Effects) {
        let Some(queue) = self.queues.get_mut(id) else { return };
        let number = queue.declared.number;
        if queue.settle_taken(position).is_some_and(|settled| settled.journaled) {
            self.change(Change::MessageSettled { queue: number, position }, effects);
        }
    }

    /// [`Self::pass_on`] of one message alone.
    fn dead_letter(
        &mut self,
        now: Moment,
        id: QueueId,
        message: &Message,
        reason: DeathReason,
        effects: &mut Effects,
    ) -> bool {
        let mut left = PASSED_ON_MAX;
        self.pass_on(now, id, message, reason, &mut left, effects)
    }

    /// Sends a message on from a queue, if that has an exchange for it and the exchange is there. What a full queue does
    /// not take may go on from there in turn, until it comes round to a queue where it was, as long as there are places
    /// `left` to look for. False if the message has to stay where it is.
    pub(super) fn pass_on(
        &mut self,
        now: Moment,
        id: QueueId,
        message: &Message,
        reason: DeathReason,
        left: &mut usize,
        effects: &mut Effects,
    ) -> bool {
        let must_arrive = self.queues.get(id).is_some_and(Queue::keeps_dead_letters);
        let mut letters = vec![(id, message.clone(), reason)];
        let mut is_first = true;
        while let Some((id, message, reason)) = letters.pop() {
            self.units = self.units.saturating_sub(1);
            let letter = self.letter(now, id, &message, reason);
            let places = letter.as_ref().map_or(0, |letter| letter.places);
            if !std::mem::take(&mut is_first) {
                // It costs something, too, where it leads nowhere.
                *left = left.saturating_sub(places.max(1));
            }
            let Some(Letter { message: letter, mut route, .. }) = letter else {
                if must_arrive {
                    return false;
                }
                continue;
            };
            let full = self.take_full(&letter, &mut route);
            if must_arrive && !(places > 0 && full.is_empty()) {
                return false;
            }
            let goes_on = full.into_iter().filter(|&id| self.dead_letters_overflow(id));
            letters.extend(goes_on.map(|id| (id, letter.clone(), DeathReason::MaxLen)));
            self.place(now, letter, None, &route, effects);
            if *left == 0 {
                break;
            }
        }
        true
    }

    /// A message as it goes on from a queue.
    fn letter(&mut self, now: Moment, id: QueueId, message: &Message, reason: DeathReason) -> Option<Letter> {
        let declared = &self.queues.get(id)?.declared;
        let to = declared.arguments.dead_letters.as_ref()?;
        let exchange = match to.exchange.as_str() {
            "" => None,
            name => Some(self.exchanges.find(name)?),
        };
        let header = message.decode_header().ok()?;
        let routing_key = to.routing_key.as_ref().map(ShortString::as_short_str);
        let address = Address { exchange: to.exchange.as_short_str(), routing_key };
        let death = Death { reason, queue: declared.name.as_str(), at: now.wall };
        let letter = deaths::with_death(message, &header, death, address);
        let header = letter.decode_header().ok()?;
        let mut keys = deaths::visible_keys(&letter, &header);
        keys.extend(letter.hidden_keys());
        let (mut route, _) = self.queues_behind(exchange, &keys, &letter);
        let places = route.len();
        if reason != DeathReason::Rejected {
            let been = deaths::queues_since_rejected(header.properties.headers.unwrap_or_default());
            route.retain(|&mut target| {
                let target = self.queues.get(target).map(|queue| queue.declared.name.as_str());
                !target.is_some_and(|name| been.contains(&name))
            });
        }
        Some(Letter { message: letter, route, places })
    }
}

/// A dead letter on its way.
struct Letter {
    message: Message,
    /// The queues that it goes to.
    route: Route,
    /// How many there were before those were left out where it has been.
    places: usize,
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use leveret_amqp::{FieldTable, ShortStr, Value};

    use super::*;
    use crate::Node;
    use crate::change::{Enqueued, JournalPosition, QueueNumber, QueuePosition};
    use crate::moment::Deadline;
    use crate::names::QueueName;
    use crate::vhost::effects::Fetched;
    use crate::vhost::fixtures::{at, evict, message};

    /// A queue after a restart, that keeps so many dead letters until an exchange takes them that is not there.
    fn vhost_that_keeps(letters: u64) -> VirtualHost {
        let mut vhost = VirtualHost::new(Node::default().vhosts()[0].clone(), [1; 32]);
        let queue = QueueNumber(1);
        let arguments = FieldTable::build(|table| {
            table.field("x-queue-type", Value::LongStr(b"quorum"));
            table.field("x-overflow", Value::LongStr(b"reject-publish"));
            table.field("x-dead-letter-strategy", Value::LongStr(b"at-least-once"));
            table.field("x-dead-letter-exchange", Value::LongStr(b"nowhere"));
        });
        let name = QueueName::new(ShortStr::truncated("q"));
        let mut changes = vec![Change::QueueDeclared { queue, name, auto_delete: false, arguments }];
        let places = (0..letters).map(QueuePosition);
        changes.extend(places.clone().map(|position| {
            let queues = smallvec![Enqueued { queue, position, expires: None }];
            Change::MessageEnqueued { message: message(), queues }
        }));
        let messages = places.map(|position| (position, DeathReason::Rejected)).collect();
        changes.push(Change::MessagesCondemned { queue, messages });
        for (change, number) in changes.into_iter().zip(1..) {
            vhost.apply(at(1), JournalPosition(number), change).unwrap();
        }
        vhost.end_recovery();
        vhost
    }

    /// What is due is done; true if something still is.
    fn run(vhost: &mut VirtualHost, now: Moment, effects: &mut Effects) -> bool {
        let _ = vhost.handle_timeout(now, effects);
        vhost.next_timeout().is_some_and(|deadline| now.has_reached(deadline))
    }

    #[test]
    fn a_letter_that_is_tried_again_needs_no_timer_while_its_body_is_read_or_once_that_is_lost() {
        let mut vhost = vhost_that_keeps(1);
        let mut effects = Effects::default();
        assert!(!run(&mut vhost, at(1), &mut effects));
        assert_eq!(vhost.next_timeout(), Some(Deadline(Duration::from_secs(2))));
        evict(&mut vhost, |_| true);
        assert!(!run(&mut vhost, at(2), &mut effects), "while its body is read");
        let fetch = effects.fetches[0];
        let _ = vhost.handle_fetched(at(3), &mut vec![Fetched { fetch, message: None }], &mut effects);
        assert!(!run(&mut vhost, at(3), &mut effects), "once its body is lost");
        assert_eq!(vhost.next_timeout(), None);
    }

    fn places(fetches: &[Fetch]) -> Vec<u64> {
        let place = |fetch: &Fetch| match fetch.purpose {
            FetchFor::Queue(_, position) => position.0,
            FetchFor::Get(_) => panic!("nobody gets anything"),
        };
        fetches.iter().map(place).collect()
    }

    #[test]
    fn bodies_of_letters_are_asked_for_once_and_only_those_that_are_not_in_memory() {
        let mut vhost = vhost_that_keeps(4);
        let mut effects = Effects::default();
        // The third stays in memory, as one that is in no journal would.
        let _ = run(&mut vhost, at(1), &mut effects);
        let nth = std::cell::Cell::new(0);
        evict(&mut vhost, |_| nth.replace(nth.get() + 1) != 2);
        let _ = run(&mut vhost, at(2), &mut effects);
        assert_eq!(places(&effects.fetches), [0, 1, 3]);
        let asked = std::mem::take(&mut effects.fetches);
        // The second comes, the first does not yet.
        let second = Fetched { fetch: asked[1], message: Some(message()) };
        let _ = vhost.handle_fetched(at(2), &mut vec![second], &mut effects);
        let _ = run(&mut vhost, at(3), &mut effects);
        assert_eq!(places(&effects.fetches), []);
        let first = Fetched { fetch: asked[0], message: None };
        let _ = vhost.handle_fetched(at(3), &mut vec![first], &mut effects);
        assert_eq!(vhost.next_timeout(), Some(Deadline(Duration::from_secs(4))), "the second is tried");
    }
}
