//! Dead lettering: what becomes of messages that leave a queue without having been consumed. RabbitMQ: dead letter
//! exchanges, arguments `x-dead-letter-exchange` and `x-dead-letter-routing-key`.
//!
//! A message whose queue has no exchange for it is gone. Any other goes on: it is put into the queues that the exchange
//! leads to and taken from its own, in one list of changes, so after a crash it is in one place. If its body is not in
//! memory, it is *condemned* first: that is a durable fact of its own, so it is not delivered any more from then on. So is
//! one that has to be kept (`x-dead-letter-strategy`) and that no queue takes; it is tried again.

pub(super) mod deaths;

use leveret_amqp::ShortString;
use leveret_planted::{Bug, planted};
use smallvec::smallvec;

use self::deaths::{Address, Death};
use crate::change::{Change, DeathReason, JournalPosition};
use crate::limits::{DEAD_LETTER_RETRY, DEPARTURE_RETRY};
use crate::message::{History, Message};
use crate::moment::Moment;
use crate::vhost::effects::{Effects, Fetch, FetchFor, Notice};
use crate::vhost::queue::{Known, Position, Queue, Wait};
use crate::vhost::route::Route;
use crate::vhost::search::Keepers;
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
        if !queue.sends_on() {
            return self.settle_taken(id, position, effects);
        }
        // One that dies when this hold of the lock is used up goes on in the next.
        let goes_on = queue.dying().is_empty() && self.units > 0 && self.departure_room > 0;
        let Some(Known { message, journaled, .. }) = queue.known(position) else { return };
        if message.is_none() && planted(Bug::DeadLetterLost) {
            return self.settle_taken(id, position, effects);
        }
        let departure = self.departure(id, journaled);
        if let Some(message) = message.filter(|_| goes_on)
            && self.dead_letter(now, id, &message, reason, departure, effects)
        {
            return self.settle_taken(id, position, effects);
        }
        let Some(queue) = self.queues.get_mut(id) else { return };
        if queue.condemn(position, reason) {
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
            queue.dying_mut().set_wait(None);
            let Some((position, reason, fetched)) = queue.dying().first() else { return };
            if self.departure_room == 0 {
                return queue.dying_mut().set_wait(Some(Wait::Journal(now.deadline(DEPARTURE_RETRY))));
            }
            let known = queue.known(position);
            let journaled = known.as_ref().is_some_and(|known| known.journaled);
            let Some(message) = fetched.or(known.and_then(|known| known.message)) else {
                let wanted = queue.ask_for_dying(self.read_ahead).into_iter();
                let fetch = |(position, message)| Fetch { id: message, purpose: FetchFor::Queue(id, position) };
                effects.fetches.extend(wanted.map(fetch));
                return;
            };
            self.units -= 1;
            let departure = self.departure(id, journaled);
            let is_gone = self.dead_letter(now, id, &message, reason, departure, effects);
            let Some(queue) = self.queues.get_mut(id) else { return };
            queue.dying_mut().set_wait((!is_gone).then(|| Wait::Refused(now.deadline(DEAD_LETTER_RETRY))));
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

    /// What must be durable before anybody is given a message where it goes from a queue: else it would go there once more after
    /// a crash, and nobody would know that it was delivered. That is the change made next, if the journal knows the message
    /// in this queue, as it and those after it in this hold are durable together. If not, the message may have come from a
    /// queue where the journal knew it.
    fn departure(&self, id: QueueId, journaled: bool) -> JournalPosition {
        if planted(Bug::DeadLetterBeforeDeparture) {
            return JournalPosition::default();
        }
        if journaled {
            return self.position.next();
        }
        self.queues.get(id).map(Queue::departures).unwrap_or_default()
    }

    /// Sends a message on from queues that are too full for it, as far as they do that.
    pub(super) fn pass_on(
        &mut self,
        now: Moment,
        full: &[QueueId],
        message: &Message,
        departure: JournalPosition,
        effects: &mut Effects,
    ) {
        let from: Vec<_> = full.iter().copied().filter(|&id| self.dead_letters_overflow(id)).collect();
        let spread = deaths::spread_further(0, from.len());
        let leave = |queue| Leaving { queue, message: message.clone(), reason: DeathReason::MaxLen, spread };
        self.send_on(now, from.into_iter().rev().map(leave).collect(), departure, effects);
    }

    /// Sends a message on from a queue, if that has an exchange for it and the exchange is there. False if the message has to
    /// stay where it is.
    fn dead_letter(
        &mut self,
        now: Moment,
        id: QueueId,
        message: &Message,
        reason: DeathReason,
        departure: JournalPosition,
        effects: &mut Effects,
    ) -> bool {
        if self.is_delay_queue(id) {
            self.route_delayed(now, id, message, departure, effects);
            return true;
        }
        self.send_on(now, vec![Leaving::new(id, message, reason)], departure, effects)
    }

    /// The same for several, the last one first. What a full queue does not take may go on from there in turn, until it comes
    /// round to a queue where it was. False if the last one has to stay where it is.
    fn send_on(
        &mut self,
        now: Moment,
        mut leaving: Vec<Leaving>,
        departure: JournalPosition,
        effects: &mut Effects,
    ) -> bool {
        let last = leaving.last().and_then(|last| self.queues.get(last.queue));
        let must_arrive = last.is_some_and(Queue::keeps_dead_letters);
        while let Some(next) = leaving.pop() {
            self.units = self.units.saturating_sub(1);
            let Some(Letter { message, mut route, keepers, leads_somewhere }) = self.letter(now, &next, effects)
            else {
                if must_arrive {
                    return false;
                }
                continue;
            };
            let full = self.take_full(&message, &mut route);
            if must_arrive && !(leads_somewhere && full.is_empty()) {
                return false;
            }
            let goes_on = full.into_iter().filter(|&id| self.dead_letters_overflow(id));
            leaving.extend(goes_on.map(|id| Leaving::new(id, &message, DeathReason::MaxLen)));
            self.keep(&message, None, &keepers);
            self.place(now, message, None, &route, departure, effects);
        }
        true
    }

    /// A message as it goes on from a queue; none if that has no exchange for it.
    fn letter(&mut self, now: Moment, leaving: &Leaving, effects: &mut Effects) -> Option<Letter> {
        let &Leaving { queue: id, ref message, reason, spread } = leaving;
        let queue = self.queues.get(id)?;
        let (declared, to) = (&queue.declared, queue.settings.dead_letters.as_ref()?);
        let exchange = match to.exchange.as_str() {
            "" => None,
            name => Some(self.exchanges.find(name)?),
        };
        let header = message.decode_header().ok()?;
        let times = deaths::times_since_rejected(message, &header, reason);
        if !deaths::may_go_on(times, spread) {
            self.notice_spread(id, effects);
            let (message, route, keepers) = (message.clone(), Route::new(), Keepers::new());
            return Some(Letter { message, route, keepers, leads_somewhere: true });
        }
        let routing_key = to.routing_key.as_ref().map(ShortString::as_short_str);
        let address = Address { exchange: to.exchange.as_short_str(), routing_key };
        let death = Death { reason, queue: declared.name.as_str(), at: now.wall };
        let mut letter = deaths::with_death(message, &header, death, address);
        let header = letter.decode_header().ok()?;
        let (mut route, mut keepers) = self.queues_behind(exchange, &letter.all_keys(&header), &letter);
        let leads_somewhere = !route.is_empty();
        let been = deaths::queues_since_rejected(header.properties.headers.unwrap_or_default());
        let mut comes_back_to = None;
        route.retain(|&mut target| {
            let name =
                self.queues.get(target).filter(|queue| !queue.is_delaying()).map(|queue| &queue.declared.name);
            let comes_back = name.filter(|name| been.contains(&name.as_str()));
            comes_back_to = comes_back_to.or(comes_back);
            comes_back.is_none()
        });
        if let Some(to) = comes_back_to
            && !self.queues.get(id).is_some_and(|queue| queue.cycle_noticed)
        {
            let queues = [to.as_str()].iter().chain(&been).map(|&name| name.to_owned()).collect();
            effects.notices.push(Notice::DeadLetterCycle { queues });
            self.queues.get_mut(id)?.cycle_noticed = true;
        }
        let is_first = times <= 1 && spread == 0;
        let spread = if times == 0 { 0 } else { deaths::spread_further(spread, route.len()) };
        letter.set_spread(spread);
        if !is_first && !deaths::may_go_on(times, spread) {
            self.notice_spread(id, effects);
            route.clear();
            keepers.clear();
        }
        Some(Letter { message: letter, route, keepers, leads_somewhere })
    }

    /// Says, once for each queue, that a message has gone on far enough.
    fn notice_spread(&mut self, left: QueueId, effects: &mut Effects) {
        let Some(queue) = self.queues.get_mut(left) else { return };
        if !std::mem::replace(&mut queue.spread_noticed, true) {
            effects.notices.push(Notice::DeadLetterSpread { queue: queue.declared.name.clone() });
        }
    }
}

/// A message that leaves a queue to go on.
struct Leaving {
    queue: QueueId,
    message: Message,
    reason: DeathReason,
    /// How many were made of it so far, as in [`History::Deaths`].
    spread: u8,
}

impl Leaving {
    fn new(queue: QueueId, message: &Message, reason: DeathReason) -> Self {
        let spread = match message.history() {
            History::None => 0,
            History::Deaths { spread } => spread,
        };
        Leaving { queue, message: message.clone(), reason, spread }
    }
}

/// A dead letter on its way.
struct Letter {
    message: Message,
    /// The queues that it goes to.
    route: Route,
    /// The exchanges on its way that keep it.
    keepers: Keepers,
    /// Whether there are any, or were before those were left out where it has been.
    leads_somewhere: bool,
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use leveret_amqp::{FieldTable, ShortStr, Value};

    use super::*;
    use crate::change::{Enqueued, JournalPosition, QueueNumber, QueuePosition};
    use crate::limits::READ_AHEAD_ENTRIES;
    use crate::moment::Deadline;
    use crate::names::{ChannelId, ConsumerTag, QueueName};
    use crate::vhost::Progress;
    use crate::vhost::checkpoint::Checkpoint;
    use crate::vhost::command::{
        AckMode, Command, Commands, Consume, ConsumerId, DeclareQueue, Existence, QueueRef, Wait,
    };
    use crate::vhost::effects::{Fetched, Output};
    use crate::vhost::fixtures::{at, connect, empty_vhost, evict, message};
    use crate::vhost::queue::Standing;

    /// A queue `q` after a restart, with so many messages in it, and what else happened to it.
    fn vhost_with(arguments: FieldTable, messages: u64, more: impl IntoIterator<Item = Change>) -> VirtualHost {
        let mut vhost = empty_vhost();
        let (queue, name) = (QueueNumber(1), QueueName::new(ShortStr::truncated("q")));
        let mut changes = vec![Change::QueueDeclared { queue, name, auto_delete: false, arguments }];
        changes.extend((0..messages).map(QueuePosition).map(|position| {
            let queues = smallvec![Enqueued { queue, position, expires: None }];
            Change::MessageEnqueued { message: message(), queues }
        }));
        for (change, number) in changes.into_iter().chain(more).zip(1..) {
            vhost.apply(at(1), JournalPosition(number), change).unwrap();
        }
        vhost.end_recovery();
        vhost
    }

    /// A durable queue for letters, `dead`.
    fn dead_declared() -> Change {
        let (queue, name) = (QueueNumber(2), QueueName::new(ShortStr::truncated("dead")));
        Change::QueueDeclared { queue, name, auto_delete: false, arguments: FieldTable::default() }
    }

    /// One that keeps so many dead letters until an exchange takes them that is not there.
    fn vhost_that_keeps(letters: u64) -> VirtualHost {
        let arguments = FieldTable::build(|table| {
            table.field("x-queue-type", Value::LongStr(b"quorum"));
            table.field("x-overflow", Value::LongStr(b"reject-publish"));
            table.field("x-dead-letter-strategy", Value::LongStr(b"at-least-once"));
            table.field("x-dead-letter-exchange", Value::LongStr(b"nowhere"));
        });
        let messages = (0..letters).map(|place| (QueuePosition(place), DeathReason::Rejected)).collect();
        let condemned = Change::MessagesCondemned { queue: QueueNumber(1), messages };
        vhost_with(arguments, letters, Some(condemned))
    }

    #[test]
    fn letters_that_come_round_are_noticed_once_for_their_queue() {
        let arguments = FieldTable::build(|table| {
            table.field("x-max-length", Value::I32(0));
            table.field("x-dead-letter-exchange", Value::LongStr(b""));
            table.field("x-dead-letter-routing-key", Value::LongStr(b"q"));
        });
        let mut vhost = vhost_with(arguments, 2, None);
        let mut effects = Effects::default();
        assert!(!run(&mut vhost, at(1), &mut effects));
        assert_eq!(vhost.queues.values().map(Queue::len).sum::<usize>(), 0);
        let queues = vec!["q".to_owned(), "q".to_owned()];
        assert_eq!(effects.notices, [Notice::DeadLetterCycle { queues }]);
    }

    #[test]
    fn letters_of_which_too_many_were_made_are_noticed_once_for_their_queue() {
        let arguments = FieldTable::build(|table| {
            table.field("x-max-length", Value::I32(0));
            table.field("x-dead-letter-exchange", Value::LongStr(b""));
            table.field("x-dead-letter-routing-key", Value::LongStr(b"dead"));
        });
        // As many as 2^16 of a message go on that dies once.
        let letters = [16, 17, 18, 19].into_iter().zip(0..).map(|(spread, place)| {
            let mut message = message();
            message.set_spread(spread);
            let position = QueuePosition(place);
            let queues = smallvec![Enqueued { queue: QueueNumber(1), position, expires: None }];
            Change::MessageEnqueued { message, queues }
        });
        let mut vhost = vhost_with(arguments, 0, [dead_declared()].into_iter().chain(letters));
        let mut effects = Effects::default();
        assert!(!run(&mut vhost, at(1), &mut effects));
        assert_eq!(names(&vhost), [("dead", 1), ("q", 0)]);
        let queue = QueueName::new(ShortStr::truncated("q"));
        assert_eq!(effects.notices, [Notice::DeadLetterSpread { queue }]);
    }

    fn names(vhost: &VirtualHost) -> Vec<(&str, usize)> {
        let queues = vhost.queues.values().filter(|queue| queue.declared.standing == Standing::Open);
        let mut names: Vec<_> = queues.map(|queue| (queue.declared.name.as_str(), queue.ready())).collect();
        names.sort_unstable();
        names
    }

    /// The virtual host that is back after a crash, from so many changes on.
    fn recovered(changes: &[Change], from: usize) -> VirtualHost {
        let mut vhost = empty_vhost();
        for (change, number) in changes.iter().zip(1..).skip(from) {
            vhost.apply(at(1), JournalPosition(number), change.clone()).unwrap();
        }
        vhost.end_recovery();
        vhost
    }

    /// They died before the queue was deleted, so they go on, whatever happens before their bodies are there.
    #[test]
    fn letters_of_a_deleted_queue_that_wait_for_their_bodies_go_on() {
        // The queue is deleted before a checkpoint, in it before or behind its pages, or behind it.
        for steps_before in 0..6 {
            delete_with_letters_that_wait(steps_before);
        }
    }

    fn delete_with_letters_that_wait(steps_before: u32) {
        let declared = |number, name: &str, arguments| Change::QueueDeclared {
            queue: QueueNumber(number),
            name: QueueName::new(ShortStr::truncated(name)),
            auto_delete: false,
            arguments,
        };
        let arguments = || {
            FieldTable::build(|table| {
                table.field("x-dead-letter-exchange", Value::LongStr(b""));
                table.field("x-dead-letter-routing-key", Value::LongStr(b"dead"));
                table.field("x-expires", Value::I32(1000));
            })
        };
        let mut changes = vec![declared(1, "q", arguments()), declared(2, "dead", FieldTable::default())];
        changes.extend((0..6).map(QueuePosition).map(|position| {
            let queues = smallvec![Enqueued { queue: QueueNumber(1), position, expires: None }];
            Change::MessageEnqueued { message: message(), queues }
        }));
        let condemned = [1, 4].map(|place| (QueuePosition(place), DeathReason::Rejected));
        changes
            .push(Change::MessagesCondemned { queue: QueueNumber(1), messages: condemned.into_iter().collect() });
        let mut vhost = recovered(&changes, 0);
        evict(&mut vhost, |_| true);
        let mut effects = Effects::default();
        let _ = run(&mut vhost, at(1), &mut effects);
        let asked_before = std::mem::take(&mut effects.fetches);
        assert_eq!(places(&asked_before), [1, 4]);
        let mut checkpoint = Checkpoint::default();
        for _ in 0..steps_before {
            let _goes_on = vhost.handle_checkpoint(at(1), &mut checkpoint, 1, &mut effects);
        }
        let q = vhost.queue_names["q"];
        vhost.delete_queue(q, &mut effects);
        assert_eq!(names(&vhost), [("dead", 0)]);
        // Its name is free.
        let client = connect(&mut vhost);
        let mut commands = Commands::default();
        let channel = ChannelId::new(1).unwrap();
        commands.push(Command::OpenChannel(channel));
        let declare = DeclareQueue {
            name: ShortStr::truncated("q").into(),
            existence: Existence::Declare,
            durable: true,
            exclusive: false,
            auto_delete: false,
            wait: Wait::Answer,
            arguments: FieldTable::default(),
        };
        commands.push(Command::DeclareQueue(channel, Box::new(declare)));
        let _ = vhost.handle_batch(at(1), client, &mut commands, &mut effects);
        assert_eq!(names(&vhost), [("dead", 0), ("q", 0)]);
        let crash_at = changes.len() + effects.changes.len();
        while vhost.handle_checkpoint(at(1), &mut checkpoint, 1, &mut effects) {}
        // After its x-expires, too.
        let _ = run(&mut vhost, at(5), &mut effects);
        changes.append(&mut effects.changes);
        let finish = |mut vhost: VirtualHost, mut effects: Effects| {
            for _ in 0..10 {
                let _ = run(&mut vhost, at(6), &mut effects);
                let bodies = effects.fetches.drain(..).map(|fetch| Fetched { fetch, message: Some(message()) });
                let _ = vhost.handle_fetched(at(6), &mut bodies.collect(), &mut effects);
            }
            assert_eq!((names(&vhost), vhost.queues.len()), (vec![("dead", 2), ("q", 0)], 2));
            effects.changes
        };
        // What was asked for before is of no use, and is asked for again.
        let mut bodies =
            asked_before.into_iter().map(|fetch| Fetched { fetch, message: Some(message()) }).collect();
        let _ = vhost.handle_fetched(at(5), &mut bodies, &mut effects);
        assert_eq!(names(&vhost), [("dead", 0), ("q", 0)]);
        // After a crash, with and without what the checkpoint said, and from the checkpoint on.
        let begun = changes.iter().position(|change| matches!(change, Change::CheckpointBegun { .. })).unwrap();
        for (until, from) in [(crash_at, 0), (changes.len(), 0), (changes.len(), begun)] {
            let mut recovered = recovered(&changes[..until], from);
            evict(&mut recovered, |_| true);
            let mut all = changes[..until].to_vec();
            all.extend(finish(recovered, Effects::default()));
            assert_eq!(all.last(), Some(&Change::QueueDeleted { queue: QueueNumber(1) }));
        }
        changes.extend(finish(vhost, effects));
        let recovered = recovered(&changes, 0);
        assert_eq!((names(&recovered), recovered.queues.len()), (vec![("dead", 2), ("q", 0)], 2));
    }

    #[test]
    fn commands_go_on_while_many_leave_a_queue() {
        let arguments = FieldTable::build(|table| _ = table.field("x-max-length", Value::I32(0)));
        let mut vhost = vhost_with(arguments, 10_000, None);
        let mut effects = Effects::default();
        let messages = |vhost: &VirtualHost| vhost.queues.values().map(Queue::len).sum::<usize>();
        assert_eq!(vhost.handle_timeout(at(1), &mut effects), Progress::More);
        let left = messages(&vhost);
        assert!(left > 0);
        let client = connect(&mut vhost);
        let mut commands = Commands::default();
        commands.push(Command::OpenChannel(ChannelId::new(1).unwrap()));
        assert_eq!(vhost.handle_batch(at(1), client, &mut commands, &mut effects), Progress::Done);
        assert!(commands.is_empty());
        assert_eq!(messages(&vhost), left, "whoever asks something else does not do it");
        assert_eq!(vhost.next_timeout(), Some(Deadline(Duration::ZERO)), "but it is done");
        while vhost.go_on(at(1), &mut effects) == Progress::More {}
        assert_eq!((messages(&vhost), vhost.next_timeout()), (0, None));
    }

    /// Those that go nowhere are the fastest.
    #[test]
    fn commands_go_on_while_many_letters_that_waited_leave_their_queue() {
        let arguments = FieldTable::build(|table| {
            table.field("x-dead-letter-exchange", Value::LongStr(b""));
            table.field("x-dead-letter-routing-key", Value::LongStr(b"nowhere"));
        });
        let letters = (0..10_000).map(|place| (QueuePosition(place), DeathReason::Rejected));
        let condemned = Change::MessagesCondemned { queue: QueueNumber(1), messages: letters.collect() };
        let mut vhost = vhost_with(arguments, 10_000, [condemned]);
        let mut effects = Effects::default();
        assert_eq!(vhost.handle_timeout(at(1), &mut effects), Progress::More);
        let left = vhost.queues[vhost.queue_names["q"]].len();
        assert!((1..10_000).contains(&left), "{left}");
        while vhost.go_on(at(1), &mut effects) == Progress::More {}
        assert_eq!(vhost.queues[vhost.queue_names["q"]].len(), 0);
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

    #[test]
    fn letters_wait_in_their_queue_while_too_much_waits_for_the_journal() {
        let arguments = FieldTable::build(|table| {
            table.field("x-max-length", Value::I32(0));
            table.field("x-dead-letter-exchange", Value::LongStr(b""));
            table.field("x-dead-letter-routing-key", Value::LongStr(b"dead"));
        });
        let mut vhost = vhost_with(arguments, 3, [dead_declared()]);
        let mut effects = Effects::default();
        let mut letters = |room, seconds| {
            vhost.set_departure_room(room);
            let mut progress = vhost.handle_timeout(at(seconds), &mut effects);
            while progress == Progress::More {
                progress = vhost.go_on(at(seconds), &mut effects);
            }
            (vhost.queues[vhost.queue_names["dead"]].ready(), vhost.next_timeout())
        };
        let wait = |seconds| Some(at(seconds).deadline(DEPARTURE_RETRY));
        assert_eq!(letters(0, 1), (0, wait(1)));
        assert_eq!(letters(1, 2), (1, wait(2)), "one more than there is room for");
        assert_eq!(letters(usize::MAX, 3), (3, None));
    }

    /// That may take long, where the disk has little room.
    #[test]
    fn what_is_alive_is_delivered_while_as_many_letters_as_may_wait_for_the_journal() {
        let arguments = FieldTable::build(|table| {
            table.field("x-dead-letter-exchange", Value::LongStr(b""));
            table.field("x-dead-letter-routing-key", Value::LongStr(b"dead"));
        });
        let letters = (0..READ_AHEAD_ENTRIES as u64).map(|place| (QueuePosition(place), DeathReason::Rejected));
        let condemned = Change::MessagesCondemned { queue: QueueNumber(1), messages: letters.collect() };
        let mut vhost = vhost_with(arguments, READ_AHEAD_ENTRIES as u64 + 1, [condemned, dead_declared()]);
        let mut effects = Effects::default();
        vhost.set_departure_room(0);
        let _ = run(&mut vhost, at(1), &mut effects);
        assert_eq!(vhost.queues[vhost.queue_names["dead"]].ready(), 0);

        let from = connect(&mut vhost);
        let (channel, consumer) = (ChannelId::new(1).unwrap(), ConsumerId { slot: 0, number: 1 });
        let (queue, ack_mode, wait) =
            (QueueRef::Named(ShortStr::truncated("q").into()), AckMode::Manual, Wait::NoWait);
        let (tag, arguments) = (ConsumerTag::new(ShortStr::truncated("c")), FieldTable::default());
        let consume = Consume { consumer, tag, queue, ack_mode, exclusive: false, wait, arguments };
        let mut commands = Commands::default();
        commands.push(Command::OpenChannel(channel));
        commands.push(Command::Consume(channel, Box::new(consume)));
        let _ = vhost.handle_batch(at(1), from, &mut commands, &mut effects);
        let mut delivered = 0;
        effects.take_outputs(|_, outputs, _| {
            delivered += outputs.iter().filter(|output| matches!(output, Output::Deliver { .. })).count();
        });
        assert_eq!(delivered, 1);
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
