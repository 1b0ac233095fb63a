//! What a crash leaves of a virtual host, and what a start makes of it.
//!
//! Owns: what may be found after a crash between two changes of one event.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::rc::Rc;

use super::{Entry, Flag, Model, Place, Queue, Snapshot, View, source_rank, source_slot};

impl Snapshot {
    /// Whether there is a part of what came together with the event that lies between two others: the messages of a publish, or what
    /// a transaction has published and acked.
    fn is_torn(&self, before: &Snapshot, after: &Snapshot) -> bool {
        let mut found: BTreeMap<u64, (bool, bool)> = BTreeMap::new();
        let mut note = |together: u64, is_done: bool| {
            let (any_done, any_left) = found.entry(together).or_default();
            *any_done |= is_done;
            *any_left |= !is_done;
        };
        for (slot, later) in &after.queues {
            let (earlier, own) = (before.queues.get(slot), self.queues.get(slot));
            let is_new = |entry: &&Entry| entry.journaled && earlier.is_none_or(|queue| !queue.has(entry.serial));
            for entry in later.entries.iter().filter(is_new) {
                note(entry.together, own.is_some_and(|queue| queue.has(entry.serial)));
            }
        }
        for (slot, earlier) in &before.queues {
            let own = self.queues.get(slot).filter(|queue| queue.uid == earlier.uid);
            for entry in earlier.entries.iter().filter(|entry| entry.journaled) {
                if let (Some(together), Some(own)) = (after.acked_together.get(&entry.serial), own) {
                    note(*together, !own.has(entry.serial));
                }
            }
        }
        found.into_values().any(|(any_done, any_left)| any_done && any_left)
    }

    /// Nobody knows what messages were delivered.
    fn forget_flags(&mut self) {
        for entry in self.queues.values_mut().map(Rc::make_mut).flat_map(|queue| &mut queue.entries) {
            entry.flag = Flag::Perhaps;
        }
    }
}

impl Model {
    /// As a crash would find it.
    pub(crate) fn snapshot(&self) -> Snapshot {
        Snapshot {
            queues: self.queues.clone(),
            topology: Rc::clone(&self.topology),
            delayed: Rc::clone(&self.delayed),
            acked_together: Rc::clone(&self.acked_together),
            events: self.events,
        }
    }

    /// All connections are gone, and the broker starts again with what a disk has kept.
    pub(crate) fn restore(&mut self, snapshot: Snapshot, now_ms: u64, in_good_order: bool) {
        self.consumers.clear();
        self.channels.clear();
        self.expected.clear();
        self.cancelled.clear();
        self.timed_out.clear();
        self.promises.clear();
        self.topology_event = 0;
        self.queues = snapshot.queues;
        self.queues.retain(|slot, _| self.config.queues[usize::from(*slot)].durable);
        for (slot, queue) in &mut self.queues {
            let queue = Rc::make_mut(queue);
            queue.last_used_ms = now_ms;
            queue.entries.retain(|entry| entry.journaled || entry.is_late);
            queue.retry_ms = None;
            let ttl_ms = self.config.queues[usize::from(*slot)].ttl_ms.map(u64::from);
            for entry in &mut queue.entries {
                if std::mem::take(&mut entry.is_late) {
                    entry.deadline_ms = ttl_ms.map(|ttl_ms| now_ms + ttl_ms);
                }
                let is_known = entry.place == Place::Held || self.heard.contains(&entry.serial);
                entry.flag = match entry.flag {
                    _ if is_known => Flag::Yes,
                    Flag::No if !in_good_order && self.granted.contains(&queue.uid) => Flag::Perhaps,
                    flag => flag,
                };
                if entry.place == Place::Held {
                    entry.place = Place::Ready;
                }
            }
        }
        if in_good_order {
            self.granted.clear();
        }
        self.topology = snapshot.topology;
        self.delayed = snapshot.delayed;
        if self.config.durable_exchanges {
            let is_durable = |slot: u8| self.config.queues[usize::from(slot)].durable;
            Rc::make_mut(&mut self.topology).bindings.retain(|(_, slot, _)| is_durable(*slot));
            Rc::make_mut(&mut self.delayed).retain(|delayed| delayed.message.persistent);
        } else {
            self.topology = Rc::default();
            self.delayed = Rc::default();
        }
    }

    /// Something between two snapshots that explains so many messages in each queue: what goes, goes in order, and so does what
    /// comes, and what passed through a queue may lie there. None if it would be a part of what is whole or not there.
    pub(crate) fn between(
        &self,
        before: &Snapshot,
        after: &Snapshot,
        passed: &[Snapshot],
        views: &BTreeMap<u8, View>,
    ) -> Option<Snapshot> {
        let mut between = after.clone();
        for (slot, later) in &mut between.queues {
            let Some(earlier) = before.queues.get(slot).filter(|earlier| earlier.uid == later.uid) else {
                continue;
            };
            let is_seen = |entry: &&Entry| entry.journaled && !matches!(entry.place, Place::Dying(_));
            let journaled = |queue: &Queue| queue.entries.iter().filter(is_seen).count();
            let count = views.get(slot).map_or(0, |view| view.ready + view.unacked);
            let missing = count.saturating_sub(journaled(later));
            let gone = earlier.entries.iter().filter(|entry| entry.journaled && !later.has(entry.serial));
            let mut back: Vec<Entry> = gone.cloned().collect();
            back.sort_by_key(|entry| {
                (after.acked_together.contains_key(&entry.serial), entry.rank, Reverse(entry.serial))
            });
            if back.len() < missing {
                back.extend(self.passed_through(passed, *slot, earlier, later));
            }
            back.truncate(missing);
            let surplus = journaled(later).saturating_sub(count);
            let later = Rc::make_mut(later);
            later.entries.extend(back);
            later.entries.sort_by_key(|entry| entry.serial);
            for _ in 0..surplus {
                if let Some(at) = later.entries.iter().rposition(|entry| !earlier.has(entry.serial)) {
                    later.entries.remove(at);
                }
            }
        }
        (!between.is_torn(before, after)).then_some(between)
    }

    /// Dead letters that came into a queue with the event and went again, the last ones first.
    fn passed_through(&self, passed: &[Snapshot], slot: u8, earlier: &Queue, later: &Queue) -> Vec<Entry> {
        let queues = passed.iter().filter_map(|passed| passed.queues.get(&slot));
        let all = queues.filter(|queue| queue.uid == later.uid).flat_map(|queue| &queue.entries);
        let is_it = |entry: &&Entry| {
            let is_new = !earlier.has(entry.serial) && !later.has(entry.serial);
            is_new && entry.lane != 0 && entry.journaled && !self.is_of_transient(entry)
        };
        let by_serial: BTreeMap<u64, &Entry> = all.filter(is_it).map(|entry| (entry.serial, entry)).collect();
        by_serial.into_values().rev().cloned().collect()
    }

    /// The same, where dead letters that came with the event, but for so many, come only at the start: it was durable that they
    /// would.
    pub(crate) fn with_late_letters(&self, before: &Snapshot, after: &Snapshot, already: usize) -> Snapshot {
        let mut late = after.clone();
        for (serial, slot) in Model::new_letters(before, after).into_iter().skip(already).flatten() {
            let Some(queue) = late.queues.get_mut(&slot).map(Rc::make_mut) else { continue };
            let Some(at) = queue.entries.iter().position(|entry| entry.serial == serial) else { continue };
            let source = source_slot(queue.entries[at].lane).filter(|source| self.spec(*source).keeps_letters());
            let Some(source) = source else {
                queue.entries[at].is_late = true;
                continue;
            };
            // It stays where it died, if nobody takes it then.
            let letter = queue.entries.remove(at);
            let Some(queue) = late.queues.get_mut(&source).map(Rc::make_mut) else { continue };
            let is_there = queue.dying().any(|entry| entry.message.id == letter.message.id);
            if !is_there {
                queue.deaths += 1;
                let (place, rank) = (Place::Dying(queue.deaths), source_rank(letter.lane));
                queue.entries.push(Entry { place, rank, lane: 0, journaled: true, ..letter });
            }
        }
        late
    }

    /// Dead letters that came with an event, in their order: of each, which it is in the queues that it went to.
    pub(crate) fn new_letters(before: &Snapshot, after: &Snapshot) -> Vec<Vec<(u64, u8)>> {
        let mut letters: BTreeMap<u64, Vec<(u64, u8)>> = BTreeMap::new();
        for (slot, queue) in &after.queues {
            let earlier = before.queues.get(slot);
            let is_new = |entry: &&Entry| entry.lane != 0 && earlier.is_none_or(|queue| !queue.has(entry.serial));
            for entry in queue.entries.iter().filter(is_new) {
                letters.entry(entry.together).or_default().push((entry.serial, *slot));
            }
        }
        letters.into_values().collect()
    }

    /// Whether no journal knew a dead letter where it died.
    fn is_of_transient(&self, letter: &Entry) -> bool {
        source_slot(letter.lane).is_some_and(|source| !self.spec(source).journals(letter.message.persistent))
    }

    /// The same, where those of the letters are not there, or not yet, whose messages no journal knew where they died: they are
    /// gone.
    pub(crate) fn without_letters(&self, before: &Snapshot, after: &Snapshot) -> Snapshot {
        let mut without = after.clone();
        for (slot, queue) in &mut without.queues {
            let was_there = |serial| before.queues.get(slot).is_some_and(|queue| queue.has(serial));
            Rc::make_mut(queue).entries.retain(|entry| was_there(entry.serial) || !self.is_of_transient(entry));
        }
        without
    }

    /// Nobody knows what messages were delivered before the broker started.
    pub(crate) fn forget_flags(&mut self, snapshot: &mut Snapshot) {
        let mut own = self.snapshot();
        own.forget_flags();
        snapshot.forget_flags();
        self.queues = own.queues;
    }

    /// Whether dead letters are there that may have come with the event or only at the start, and will expire; or messages of
    /// which nobody knows how often they have failed.
    pub(crate) fn is_unclear(&self, other: &Snapshot, found: &Snapshot) -> bool {
        let is_different = |slot: &u8, entry: &Entry| {
            let counterpart =
                other.queues.get(slot).and_then(|it| it.entries.iter().find(|one| one.serial == entry.serial));
            match counterpart {
                Some(counterpart) => counterpart.failed != entry.failed,
                None => entry.lane != 0 && self.spec(*slot).ttl_ms.is_some(),
            }
        };
        found.queues.iter().any(|(slot, queue)| queue.entries.iter().any(|entry| is_different(slot, entry)))
    }

    /// Whether queues hold the same messages in the same order, and for as long.
    pub(crate) fn has_same_messages(&self, other: &Model) -> bool {
        let of_queue = |queue: &Queue| -> Vec<(u64, Option<u64>)> {
            queue.entries.iter().map(|entry| (entry.message.id, entry.deadline_ms)).collect()
        };
        let all = |model: &Model| -> Vec<_> {
            model.queues.iter().map(|(slot, queue)| (*slot, of_queue(queue))).collect()
        };
        all(self) == all(other)
    }
}
