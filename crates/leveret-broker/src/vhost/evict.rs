//! Bodies leave memory: those that the journal has, and others once they are written to scratch segments.
//!
//! Must not know: how much memory there is, how anything is written.

use crate::change::JournalPosition;
use crate::limits::{EVICTED_PER_HOLD, EVICTED_PER_QUEUE};
use crate::message::Message;
use crate::scratch::{Spill, Spilled};
use crate::vhost::queue::{Entry, Eviction, Position};
use crate::vhost::{QueueId, VirtualHost};

/// How far [`VirtualHost::evict`] has come round.
#[derive(Debug, Default)]
pub struct Sweep {
    /// Queues that it has not looked at yet; the last one is next.
    queues: Vec<QueueId>,
    /// Where to go on in the next one; none is its beginning.
    from: Option<Position>,
}

impl VirtualHost {
    /// Lets go of bodies in memory for which `may_go` says so; they are fetched when needed. It is told where the journal has
    /// a message. One of which the journal of its queue does not know is to be written first, unless it was before: it joins
    /// `spills`. Each queue keeps so many bytes of what it delivers next. Does a bounded amount of work; false once it came
    /// round.
    pub fn evict(
        &mut self,
        sweep: &mut Sweep,
        kept_bytes: usize,
        mut may_go: impl FnMut(Option<JournalPosition>, &Message) -> bool,
        spills: &mut Vec<Spill>,
    ) -> bool {
        let segments = &self.segments;
        let mut evict = |queue: QueueId, position: Position, entry: &Entry| {
            let Some(message) = entry.message() else { return Eviction::Stays };
            let journaled = entry.id.position().filter(|_| entry.journaled);
            if !may_go(journaled, message) {
                return Eviction::Stays;
            }
            if journaled.is_some() {
                return Eviction::Journaled;
            }
            // What was read back, or was written for another queue, is where it was.
            if let Some(place) = entry.id.place().or_else(|| message.place())
                && let Some(segment) = segments.get(place.segment)
            {
                return Eviction::Scratch(segment.clone(), place);
            }
            if !message.begin_writing() {
                return Eviction::Stays;
            }
            spills.push(Spill { message: message.clone(), queue, position });
            Eviction::ToBeWritten
        };
        if sweep.queues.is_empty() {
            sweep.queues.extend(self.queues.keys());
        }
        let mut entries = EVICTED_PER_HOLD;
        while entries > 0 {
            // A queue with little in it costs something, too.
            entries = entries.saturating_sub(EVICTED_PER_QUEUE);
            let Some(&id) = sweep.queues.last() else { return false };
            let from = std::mem::take(&mut sweep.from);
            let queue = self.queues.get_mut(id);
            let mut evict = |position: Position, entry: &Entry| evict(id, position, entry);
            match queue.and_then(|queue| queue.evict(from, kept_bytes, &mut entries, &mut evict)) {
                Some(from) => {
                    sweep.from = Some(from);
                    return true;
                }
                None => _ = sweep.queues.pop(),
            }
        }
        !sweep.queues.is_empty()
    }

    /// Messages that were to be written to scratch segments are there, or could not be written: then they stay in memory.
    pub fn handle_spilled(&mut self, spilled: &mut Vec<Spilled>) {
        for Spilled { spill: Spill { message, queue, position }, place } in spilled.drain(..) {
            message.end_writing(place.as_ref().map(|&(_, place)| place));
            let Some((segment, place)) = place else { continue };
            self.segments.insert(&segment);
            if let Some(queue) = self.queues.get_mut(queue) {
                queue.store(position, &message, segment, place);
            }
        }
    }

    /// The numbers of scratch segments that no message needs any more, and that nobody else holds. They are not read again.
    pub fn take_unneeded_segments(&mut self) -> Vec<u32> {
        self.segments.take_unneeded()
    }

    /// Whether some message may need a scratch segment.
    pub fn has_segment(&self, number: u32) -> bool {
        self.segments.get(number).is_some()
    }
}

#[cfg(test)]
mod tests {
    use leveret_amqp::{FieldTable, ShortStr, Value};

    use super::*;
    use crate::change::{DeathReason, QueueNumber};
    use crate::message::{DeliveryMode, History, MessageId};
    use crate::names::QueueName;
    use crate::scratch::{Place, Segment};
    use crate::vhost::effects::{Effects, Fetch, FetchFor, Fetched};
    use crate::vhost::fixtures::{at, empty_vhost, message};
    use crate::vhost::queue::{Declared, QueueArguments, Standing};
    use crate::vhost::route::Route;

    /// A virtual host with some queues, and what a driver does for it.
    struct Scene {
        vhost: VirtualHost,
        queues: Vec<QueueId>,
        effects: Effects,
        /// The segment that is written, and how much is in it.
        segment: Segment,
        written: u32,
    }

    impl Scene {
        /// So many transient queues, and a durable one behind them, which send dead letters nowhere.
        fn new(transient: u64) -> Self {
            let mut vhost = empty_vhost();
            let queues = (0..=transient).map(|number| {
                let name = QueueName::new(ShortStr::truncated(&number.to_string()));
                let raw_arguments = FieldTable::build(|table| {
                    _ = table.field("x-dead-letter-exchange", Value::LongStr(b"nowhere"));
                });
                let arguments = QueueArguments::parse_known(raw_arguments.as_table()).0;
                let (durable, auto_delete, owner) = (number == transient, false, None);
                let number = QueueNumber(number);
                let standing = Standing::Open;
                let declared =
                    Declared { name, number, durable, auto_delete, standing, owner, arguments, raw_arguments };
                vhost.apply_queue_declared(at(1), declared)
            });
            let queues = queues.collect();
            Scene { vhost, queues, effects: Effects::default(), segment: Segment::new(1), written: 0 }
        }

        /// Puts a message into these queues.
        fn publish(&mut self, delivery_mode: DeliveryMode, queues: &[usize]) {
            let message = message();
            let (block, header_at, body_at) = message.parts();
            let message = Message::from_parts(block, header_at, body_at, delivery_mode, History::None).unwrap();
            let route: Route = queues.iter().map(|&nth| self.queues[nth]).collect();
            self.vhost.place(at(1), message, None, &route, JournalPosition::default(), &mut self.effects);
        }

        /// Lets everything go that may; what is to be written first.
        fn evict(&mut self) -> Vec<Spill> {
            let (mut sweep, mut spills) = (Sweep::default(), Vec::new());
            while self.vhost.evict(&mut sweep, 0, |_, _| true, &mut spills) {}
            spills
        }

        fn write(&mut self, spills: Vec<Spill>) {
            let spilled = spills.into_iter().map(|spill| {
                self.written += 1;
                let place = Place { segment: self.segment.number(), offset: self.written };
                Spilled { spill, place: Some((self.segment.clone(), place)) }
            });
            self.vhost.handle_spilled(&mut spilled.collect());
        }

        fn begin_segment(&mut self) {
            self.segment = Segment::new(self.segment.number() + 1);
        }

        /// Where the messages of a queue are, those in memory nowhere.
        fn places(&self, nth: usize) -> Vec<Option<MessageId>> {
            let queue = &self.vhost.queues[self.queues[nth]];
            let known = (0..).map_while(|position| queue.known(Position(position)));
            known.map(|known| Some(known.id).filter(|_| known.message.is_none())).collect()
        }

        fn settle_head(&mut self, nth: usize) {
            let queue = &mut self.vhost.queues[self.queues[nth]];
            let head = queue.head().unwrap();
            assert!(queue.settle_head(head).is_some());
        }
    }

    fn at_place(segment: u32, offset: u32) -> MessageId {
        MessageId::scratch(Place { segment, offset })
    }

    #[test]
    fn what_could_not_be_written_stays_in_memory_and_is_tried_again() {
        let mut scene = Scene::new(1);
        scene.publish(DeliveryMode::Transient, &[0]);
        let spills = scene.evict();
        assert_eq!(spills.len(), 1);
        assert!(scene.evict().is_empty(), "it is being written");
        let mut refused = spills.into_iter().map(|spill| Spilled { spill, place: None }).collect();
        scene.vhost.handle_spilled(&mut refused);
        assert_eq!(scene.places(0), [None]);
        let spills = scene.evict();
        scene.write(spills);
        assert_eq!(scene.places(0), [Some(at_place(1, 1))]);
        assert!(scene.vhost.memory().bytes() < 200, "{} bytes", scene.vhost.memory().bytes());
    }

    #[test]
    fn what_lies_in_many_queues_is_written_once() {
        let mut scene = Scene::new(3);
        scene.publish(DeliveryMode::Transient, &[0, 1, 2]);
        let spills = scene.evict();
        assert_eq!(spills.len(), 1);
        scene.write(spills);
        assert!(scene.evict().is_empty());
        for nth in 0..3 {
            assert_eq!(scene.places(nth), [Some(at_place(1, 1))]);
        }
        scene.begin_segment();
        for nth in 0..3 {
            assert!(scene.vhost.has_segment(1) && scene.vhost.take_unneeded_segments().is_empty());
            scene.settle_head(nth);
        }
        assert_eq!(scene.vhost.take_unneeded_segments(), [1]);
        assert!(!scene.vhost.has_segment(1));
    }

    /// Where one queue had it written, and all that needed the file are gone, there is nothing any more.
    #[test]
    fn what_was_written_to_a_segment_that_is_gone_is_written_again() {
        let mut scene = Scene::new(2);
        scene.publish(DeliveryMode::Transient, &[0, 1]);
        let spills = scene.evict();
        let written_for = spills[0].queue;
        scene.write(spills);
        let (first, second) = if written_for == scene.queues[0] { (0, 1) } else { (1, 0) };
        scene.settle_head(first);
        scene.begin_segment();
        assert_eq!(scene.vhost.take_unneeded_segments(), [1]);
        let spills = scene.evict();
        scene.write(spills);
        assert_eq!(scene.places(second), [Some(at_place(2, 2))]);
    }

    #[test]
    fn what_is_consumed_while_it_is_written_needs_no_file() {
        let mut scene = Scene::new(1);
        scene.publish(DeliveryMode::Transient, &[0]);
        let spills = scene.evict();
        scene.settle_head(0);
        scene.write(spills);
        assert!(scene.vhost.take_unneeded_segments().is_empty(), "it is still written");
        scene.begin_segment();
        assert_eq!(scene.vhost.take_unneeded_segments(), [1]);
        assert_eq!(scene.vhost.memory().bytes(), 0);
    }

    /// The journal keeps a message only as long as a durable queue has it.
    #[test]
    fn a_transient_queue_does_not_rely_on_the_journal() {
        let mut scene = Scene::new(1);
        scene.publish(DeliveryMode::Persistent, &[0, 1]);
        let spills = scene.evict();
        assert_eq!(spills.iter().map(|spill| spill.queue).collect::<Vec<_>>(), [scene.queues[0]]);
        scene.write(spills);
        let journaled = MessageId::journaled(JournalPosition(1));
        assert_eq!((scene.places(0), scene.places(1)), (vec![Some(at_place(1, 1))], vec![Some(journaled)]));
    }

    /// Otherwise each one that is passed over would have all behind it asked for once more.
    #[test]
    fn what_cannot_be_read_back_from_the_journal_is_asked_for_once() {
        let mut scene = Scene::new(1);
        for _ in 0..5 {
            scene.publish(DeliveryMode::Persistent, &[1]);
        }
        let _ = scene.evict();
        let id = scene.queues[1];
        let wanted = scene.vhost.queues[id].stored_from(Position(0), 1000);
        assert_eq!(wanted.len(), 5);
        scene.vhost.queues[id].parked = Some(Position(0));
        let lost = |(position, message)| {
            let fetch = Fetch { id: message, purpose: FetchFor::Queue(id, position) };
            Fetched { fetch, message: None }
        };
        // One comes twice, and the last one is not there.
        let mut lost: Vec<_> = wanted[..4].iter().chain(&wanted[3..4]).rev().copied().map(lost).collect();
        let _ = scene.vhost.handle_fetched(at(1), &mut lost, &mut scene.effects);
        let queue = &mut scene.vhost.queues[id];
        assert_eq!((queue.len(), queue.ready(), queue.head()), (5, 1, Some(Position(4))));
        assert_eq!(queue.stored_from(Position(4), 1000).len(), 1);
        // It was read twice, and the second time in vain.
        queue.restore(Position(4), message());
        let mut lost = vec![Fetched {
            fetch: Fetch { id: wanted[4].1, purpose: FetchFor::Queue(id, Position(4)) },
            message: None,
        }];
        let _ = scene.vhost.handle_fetched(at(1), &mut lost, &mut scene.effects);
        assert_eq!(scene.vhost.queues[id].ready(), 1);
    }

    /// Nobody can have it any more, whatever it was to be read for.
    #[test]
    fn what_cannot_be_read_back_from_scratch_is_gone() {
        for is_dying in [false, true] {
            let mut scene = Scene::new(1);
            for _ in 0..3 {
                scene.publish(DeliveryMode::Transient, &[0]);
            }
            let spills = scene.evict();
            scene.write(spills);
            let id = scene.queues[0];
            if is_dying {
                let (now, reason) = (at(1), DeathReason::Expired);
                scene.vhost.discard_ready(now, id, Position(1), reason, &mut scene.effects);
                let _ = scene.vhost.go_on(now, &mut scene.effects);
            } else {
                let wanted = scene.vhost.queues[id].stored_from(Position(0), 1000);
                assert_eq!(wanted.len(), 3);
                let fetch = |(position, message)| Fetch { id: message, purpose: FetchFor::Queue(id, position) };
                scene.effects.fetches = wanted.into_iter().map(fetch).collect();
            }
            let fetches = std::mem::take(&mut scene.effects.fetches);
            let second = fetches.into_iter().find(|fetch| fetch.id == at_place(1, 2)).unwrap();
            let mut lost = vec![Fetched { fetch: second, message: None }];
            let _ = scene.vhost.handle_fetched(at(1), &mut lost, &mut scene.effects);
            let queue = &scene.vhost.queues[id];
            assert_eq!((queue.len(), queue.ready()), (2, 2), "dying: {is_dying}");
            assert!(queue.dying().is_empty() && queue.known(Position(1)).is_none());
        }
    }
}
