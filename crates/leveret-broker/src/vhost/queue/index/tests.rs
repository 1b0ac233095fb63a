use std::collections::BTreeMap;
use std::time::Duration;

use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

use super::*;
use crate::change::{Expiry, JournalPosition, PageEntries, PageEntry};
use crate::limits::BODY_OVERHEAD_BYTES;
use crate::message::DeliveryMode;
use crate::scratch::Segments;

fn id_in_scratch(number: u64) -> MessageId {
    MessageId::scratch(Place::numbered(number))
}

fn message_of(bytes: usize) -> Message {
    Message::new(&vec![b'x'; bytes], 0, 0, DeliveryMode::Transient)
}

fn journaled(_: Position, _: &Entry) -> Eviction {
    Eviction::Journaled
}

fn entry(id: u64) -> Entry {
    let (id, body, expires) = (id_in_scratch(id), Body::Stored, None);
    Entry { id, body, expires, bytes: 0, body_bytes: 0, journaled: false, redelivered: false }
}

/// What the pages of an index take, and the bodies in them.
fn memory(index: &Index) -> usize {
    let body =
        |entry: &Entry| if entry.body.is_resident() { entry.bytes as usize + BODY_OVERHEAD_BYTES } else { 0 };
    let bodies = |page: &Page| match page {
        Page::Open(open) => open.entries.iter().flatten().map(body).sum(),
        Page::Packed(_) => 0,
    };
    index.pages.iter().flatten().map(|page| page.memory() + bodies(page)).sum()
}

/// What a start makes of an index by what a checkpoint says of it, and how many of its pages it takes as they are.
fn restored(index: &Index) -> (Index, usize) {
    let meter = Meter::default();
    let (mut again, mut whole, mut from) = (Index::new(meter.clone()), 0, Some(index.base()));
    while let Some(at) = from {
        let mut entries = Vec::new();
        let places = index.page_from(at, |position, entry| {
            let Entry { id, bytes, body_bytes, .. } = *entry;
            let expires = entry.expires.map(|_| Expiry { wall_ms: 5, time_to_live_ms: 5 });
            entries.push(PageEntry { position, message: id.position().unwrap(), bytes, body_bytes, expires });
        });
        from = places.as_ref().map(|places| places.end);
        let Some(Range { start, end }) = places.filter(|_| !entries.is_empty()) else { continue };
        let entries = PageEntries::of_page(&(start..end.min(index.next())), &entries);
        if let Some(block) = entries.as_block()
            && again.push_block(block, entries.as_bytes())
        {
            whole += 1;
        } else {
            for PageEntry { position, message, bytes, body_bytes, expires } in entries.iter() {
                let (id, expires) = (MessageId::journaled(message), expires.map(|_| Deadline(Duration::ZERO)));
                let (body, journaled, redelivered) = (Body::Stored, true, false);
                let entry = Entry { id, body, expires, bytes, body_bytes, journaled, redelivered };
                assert!(again.push_at(position, entry));
            }
        }
        assert_eq!(meter.bytes(), memory(&again));
    }
    (again, whole)
}

#[test]
fn a_start_takes_whole_pages_as_they_are() {
    let mut index = Index::default();
    index.begin_at(Position(77));
    let page = PAGE_ENTRIES as u64;
    for id in 1..=5 * page + 9 {
        let (id, body) = (MessageId::journaled(JournalPosition(3 * id)), Body::Stored);
        let entry =
            Entry { id, body, expires: None, bytes: 1000, body_bytes: 900, journaled: true, redelivered: false };
        index.push(entry);
    }
    // Of the first, one is gone; of the third, all; of the fourth, all but one.
    let gone = (2 * page..3 * page).chain(3 * page + 1..4 * page).chain([5]);
    gone.for_each(|offset| assert!(index.settle(Position(77 + offset)).is_some()));
    let (mut again, whole) = restored(&index);
    assert_eq!((whole, again.live(), again.next()), (4, index.live(), index.next()));
    assert_eq!(again.body_bytes(), index.body_bytes());
    let packed = again.pages.iter().flatten().filter(|page| matches!(***page, Page::Packed(_))).count();
    assert_eq!(packed, 4, "nothing was unpacked for it");
    // It goes on as any other.
    assert_eq!(again.push(entry(1)), index.next());
    assert!(again.open(Position(77)).is_some_and(|entry| entry.bytes == 1000));
    assert!(again.settle(Position(77 + 5)).is_none() && again.settle(Position(77 + 3 * page)).is_some());
    assert_eq!(again.first_from(Position(77 + 2 * page)), Some(Position(77 + 4 * page)));
    // What has other pages is told so, and what has no such place.
    let entries: Vec<_> = (0..page)
        .map(|place| PageEntry {
            position: Position(10_000 + place),
            message: JournalPosition(place + 1),
            bytes: 5,
            body_bytes: 5,
            expires: None,
        })
        .collect();
    let entries = PageEntries::of_page(&(Position(10_000)..Position(10_000 + page)), &entries);
    let block = entries.as_block().unwrap();
    for first in [10_000, 77 + 5 * page, GAP_MAX + 100_000] {
        let block = Block { first: Position(first), ..block.clone() };
        assert!(!again.push_block(&block, entries.as_bytes()), "{first}");
    }
    let block = Block { first: Position(77 + 40 * page), ..block.clone() };
    assert!(again.push_block(&block, entries.as_bytes()));
    assert_eq!(again.next(), Position(77 + 41 * page));
}

#[test]
fn a_body_in_many_queues_counts_once_until_the_last_lets_go_of_it() {
    let meter = Meter::default();
    let message = Message::new(&[b'x'; 10_000], 0, 0, DeliveryMode::Persistent);
    let mut queues: Vec<_> = (0..100).map(|_| Index::new(meter.clone())).collect();
    for index in &mut queues {
        index.push(Entry::new(MessageId::NOWHERE, message.clone(), None, false));
    }
    let whole = meter.bytes();
    assert!(whole < 10_000 + 100 * 200, "{whole} bytes");
    for index in &mut queues[1..] {
        assert!(index.settle(Position(0)).is_some());
    }
    assert!(meter.bytes() >= 10_000, "one queue still has it");
    drop(queues[0].detach());
    assert!(meter.bytes() < 100 * 200);
}

/// Many short queues have many last pages.
#[test]
fn a_page_that_is_not_full_is_packed_and_goes_on() {
    let meter = Meter::default();
    let mut index = Index::new(meter.clone());
    let message = || Message::new(&[b'x'; 100], 0, 0, DeliveryMode::Persistent);
    let push = |index: &mut Index, id: u64| {
        index.push(Entry::new(MessageId::journaled(JournalPosition(id)), message(), None, true))
    };
    for round in 0..10 {
        for nth in 1..=30 {
            push(&mut index, round * 30 + nth);
        }
        // What was put in just now is about to be followed by more.
        for _ in 0..2 {
            assert!(index.evict(Position(0), &(Position(0)..Position(0)), &mut 4096, &mut journaled).is_none());
        }
        assert!(meter.bytes() < 2000, "{} bytes", meter.bytes());
    }
    assert_eq!(index.live(), 300);
    for place in 0..300 {
        assert_eq!(index.first_from(Position(place)), Some(Position(place)));
        assert_eq!(
            index.open(Position(place)).map(|entry| entry.id),
            Some(MessageId::journaled(JournalPosition(place + 1)))
        );
    }
    assert!(index.skip_forward(Position(700)));
    assert_eq!(push(&mut index, 1000), Position(700));
    for place in (0..300).chain([700]) {
        assert!(index.settle(Position(place)).is_some(), "{place}");
    }
    assert_eq!((index.live(), push(&mut index, 1001)), (0, Position(701)));
}

#[test]
fn a_message_that_is_never_acked_does_not_keep_the_others_in_memory() {
    let mut index = Index::default();
    let kept = index.push(entry(0));
    for id in 1..(20 * PAGE_ENTRIES as u64) {
        let position = index.push(entry(id));
        index.settle(position);
    }
    assert_eq!(index.pages.iter().flatten().count(), 1);
    assert_eq!(index.open(kept).map(|entry| entry.id), Some(id_in_scratch(0)));
    assert_eq!(index.first_from(kept.next()), None);
    index.settle(kept);
    let last = index.push(entry(7));
    assert_eq!(index.first_from(Position(0)), Some(last));
}

#[test]
fn whole_pages_are_detached_at_once_and_their_positions_not_given_again() {
    let mut index = Index::default();
    for id in 0..(3 * PAGE_ENTRIES as u64 + 10) {
        index.push(entry(id));
    }
    let end = index.next();
    let mut detached = index.detach_behind(Position(5));
    assert_eq!(index.live(), PAGE_ENTRIES);
    assert!(index.next() >= end);
    let next = index.push(entry(9));
    assert_eq!(index.first_from(Position(PAGE_ENTRIES as u64)), Some(next));
    assert_eq!(index.live(), PAGE_ENTRIES + 1);
    assert!(detached.free_page() && detached.free_page() && detached.free_page() && !detached.free_page());
}

#[test]
fn messages_come_back_to_their_places() {
    let page = PAGE_ENTRIES as u64;
    let places = [3, 4, 9, page + 2, page + 3, 5 * page + 7, 5 * page + 8, 9 * page, 9 * page + 1];
    let mut index = Index::default();
    for place in places {
        assert!(index.push_at(Position(place), entry(place)), "{place}");
    }
    assert!(!index.push_at(Position(9 * page), entry(0)), "a place is given once");
    assert!(!index.push_at(Position(u64::MAX), entry(0)), "too far away");
    let mut found = Vec::new();
    let mut from = Position(0);
    while let Some(position) = index.first_from(from) {
        assert_eq!(index.open(position).map(|entry| entry.id), Some(id_in_scratch(position.0)));
        found.push(position.0);
        from = position.next();
    }
    assert_eq!(found, places);
    assert_eq!(index.live(), places.len());
    for place in places {
        assert!(index.settle(Position(place)).is_some(), "{place}");
    }
    assert_eq!(index.live(), 0);
    assert!(index.push_at(Position(20 * page + 5), entry(1)));
    assert_eq!(index.push(entry(2)), Position(20 * page + 6));
    assert_eq!(index.first_from(Position(0)), Some(Position(20 * page + 5)));
}

#[test]
fn positions_go_on_after_the_queue_was_empty() {
    let mut index = Index::default();
    let first = index.push(entry(1));
    assert!(index.settle(first).is_some());
    assert!(index.settle(first).is_none(), "a settled entry never comes back");
    let second = index.push(entry(2));
    assert!(second > first);
    assert!(index.open(first).is_none());
    assert_eq!(index.live(), 1);
}

/// What is known of a message beside its body: what its size comes from, when it expires, whether it was delivered before,
/// whether it is journaled.
type Known = (u64, Option<Deadline>, bool, bool);

/// Where a message of which no journal knows is written: not in the order of the queue.
fn place_of(position: Position) -> Place {
    Place::numbered(position.0.wrapping_mul(1000) ^ 0x1234)
}

#[test]
fn packed_pages_hold_what_open_ones_do() {
    for seed in 0..12 {
        let mut random = SmallRng::seed_from_u64(seed);
        let meter = Meter::default();
        let mut index = Index::new(meter.clone());
        let mut model: BTreeMap<Position, Known> = BTreeMap::new();
        let mut id = 0;
        let message = |id: u64| {
            let block = vec![b'x'; usize::try_from(id % 300).unwrap() + 2];
            Message::new(&block, 0, 0, DeliveryMode::Persistent)
        };
        let segment = Segment::new(0);
        let mut evict = |position: Position, entry: &Entry| {
            if entry.journaled {
                Eviction::Journaled
            } else {
                Eviction::Scratch(segment.clone(), place_of(position))
            }
        };
        for _ in 0..300 {
            let any = Position(random.random_range(0..=index.next().0));
            let picked = model.range(any..).next().map(|(&position, _)| position);
            match random.random_range(0..10) {
                0..3 => {
                    for _ in 0..random.random_range(1..400) {
                        id += random.random_range(1..400);
                        let expires = (seed % 3 > 0 && random.random_bool(0.3))
                            .then(|| Deadline(Duration::from_nanos(random.random_range(0..u64::MAX))));
                        // Some queues are all of one kind.
                        let is_journaled = seed % 4 == 0 || (seed % 4 > 1 && random.random_bool(0.5));
                        let name = if is_journaled {
                            MessageId::journaled(JournalPosition(id))
                        } else {
                            MessageId::NOWHERE
                        };
                        let entry = Entry::new(name, message(id), expires, is_journaled);
                        model.insert(index.push(entry), (id, expires, false, is_journaled));
                    }
                }
                3 => {
                    let keep = any..Position(any.0 + random.random_range(0..500));
                    while index.evict(Position(0), &keep, &mut 100_000, &mut evict).is_some() {}
                }
                4 => {
                    let mut some = |at: Position, entry: &Entry| match entry.bytes % 7 {
                        0 => Eviction::Stays,
                        _ => evict(at, entry),
                    };
                    index.evict(any, &(any..any), &mut 200, &mut some);
                }
                5 => {
                    if let Some(position) = picked {
                        assert!(index.restore(position, message(model[&position].0)));
                    }
                }
                6 => {
                    let known = model.get_mut(&any);
                    assert_eq!(index.flag_redelivered(any), known.is_some());
                    if let Some(known) = known {
                        known.2 = true;
                    }
                }
                _ => {
                    let gone: Vec<_> =
                        model.range(any..).take(random.random_range(1..300)).map(|(&at, _)| at).collect();
                    for position in gone {
                        let known = model.remove(&position).unwrap();
                        let settled = index.settle(position).unwrap();
                        assert!(settled.journaled == known.3 && index.settle(position).is_none());
                    }
                }
            }
            assert_eq!(index.live(), model.len());
            assert_eq!(index.expiring(), model.values().filter(|known| known.1.is_some()).count());
            assert_eq!(index.first_from(any), model.range(any..).next().map(|(&position, _)| position));
            let redelivered = model.get(&any).is_some_and(|known| known.2);
            assert_eq!(index.is_redelivered(any), redelivered);
            assert_eq!(meter.bytes(), memory(&index));
        }
        while index.evict(Position(0), &(Position(0)..Position(0)), &mut 1_000_000, &mut evict).is_some() {}
        let packed = index.pages.iter().flatten().filter(|page| matches!(***page, Page::Packed(_))).count();
        assert!(packed > 0, "seed {seed}");
        let mut told = Vec::new();
        let mut from = Some(Position(0));
        while let Some(at) = from {
            from = index.page_from(at, |position, _| told.push(position)).map(|places| places.end);
        }
        let journaled = |(position, known): (&Position, &Known)| known.3.then_some(*position);
        assert_eq!(told, model.iter().filter_map(journaled).collect::<Vec<_>>(), "what a checkpoint has");
        let (mut again, _) = restored(&index);
        let mut from = index.base();
        for (&position, known) in model.iter().filter(|(_, known)| known.3) {
            assert_eq!(again.first_from(from), Some(position));
            let (here, there) = (again.known(position).unwrap(), index.known(position).unwrap());
            assert_eq!((here.id, here.bytes, here.body_bytes), (there.id, there.bytes, there.body_bytes));
            assert_eq!((here.journaled, here.expires.is_some()), (true, known.1.is_some()));
            assert!(!again.is_redelivered(position));
            from = position.next();
        }
        assert_eq!((again.live(), again.first_from(from)), (told.len(), None));
        for position in told {
            let settled = again.settle(position).unwrap();
            assert_eq!(settled.body_bytes, index.known(position).unwrap().body_bytes);
        }
        assert_eq!((again.live(), again.expiring(), again.body_bytes()), (0, 0, 0));
        for (position, known) in &model {
            let entry = index.open(*position).unwrap();
            let place = MessageId::scratch(place_of(*position));
            let name = if known.3 { MessageId::journaled(JournalPosition(known.0)) } else { place };
            assert_eq!(
                (entry.id, entry.expires, entry.redelivered, entry.journaled),
                (name, known.1, known.2, known.3)
            );
            assert_eq!(entry.bytes as usize, message(known.0).bytes());
        }
        drop(index.detach());
        assert_eq!(meter.bytes(), 0);
        let mut segments = Segments::default();
        segments.insert(&segment);
        drop(segment);
        assert_eq!(segments.take_unneeded(), [0], "nobody needs what lay in a scratch segment");
    }
}

#[test]
fn a_message_that_is_not_in_memory_takes_a_few_bytes() {
    for is_journaled in [true, false] {
        let meter = Meter::default();
        let mut index = Index::new(meter.clone());
        for id in 1..=100_000 {
            let message = Message::new(&[b'x'; 1024], 0, 0, DeliveryMode::Persistent);
            let name = if is_journaled { MessageId::journaled(JournalPosition(id)) } else { MessageId::NOWHERE };
            index.push(Entry::new(name, message, None, is_journaled));
        }
        let mut evict = |Position(position): Position, entry: &Entry| {
            if entry.journaled {
                return Eviction::Journaled;
            }
            let (segment, nth) =
                (u32::try_from(position / 16_000).unwrap(), u32::try_from(position % 16_000).unwrap());
            Eviction::Scratch(Segment::new(segment), Place { segment, offset: nth * 1100 })
        };
        let mut from = Some(Position(0));
        while let Some(at) = from {
            from = index.evict(at, &(at..at), &mut 4096, &mut evict);
        }
        assert!(meter.bytes() < 100_000 * 6, "{} bytes", meter.bytes());
        assert_eq!(index.live(), 100_000);
    }
}

/// As they come back in a start, when nobody had acked them and all around them was.
#[test]
fn messages_far_from_each_other_take_a_few_bytes() {
    // In one queue, and two in each of many.
    for in_each in [1000, 2] {
        let meter = Meter::default();
        let mut queues: Vec<_> = (0..1000 / in_each).map(|_| Index::new(meter.clone())).collect();
        for index in &mut queues {
            for id in 1..=in_each {
                assert!(index.push_at(Position(id * 3 * PAGE_ENTRIES as u64 - id), entry(id)));
            }
            assert_eq!(index.live() as u64, in_each);
        }
        assert!(meter.bytes() < 1000 * 256, "{} bytes", meter.bytes());
        assert_eq!(meter.bytes(), queues.iter().map(memory).sum());
    }
}

/// A segment is needed as long as anything lies in a page that has something in it, packed or not.
#[test]
fn a_scratch_segment_is_needed_until_the_last_message_in_it_is_gone() {
    let mut segments = Segments::default();
    let mut index = Index::default();
    for _ in 0..3 * PAGE_ENTRIES {
        index.push(Entry::new(MessageId::NOWHERE, message_of(10), None, false));
    }
    let of = |position: Position| u32::try_from(position.0 / PAGE_ENTRIES as u64).unwrap();
    let handles: Vec<_> = (0..3).map(Segment::new).collect();
    for handle in &handles {
        segments.insert(handle);
    }
    let mut evict = |position: Position, _: &Entry| {
        let segment = of(position);
        Eviction::Scratch(handles[segment as usize].clone(), Place { segment, offset: 0 })
    };
    index.evict(Position(0), &(Position(0)..Position(0)), &mut 10_000, &mut evict);
    drop(handles);
    assert_eq!(segments.take_unneeded(), []);
    let page = PAGE_ENTRIES as u64;
    for place in page..2 * page - 1 {
        index.settle(Position(place));
    }
    assert_eq!(segments.take_unneeded(), [], "one is left");
    // Opened, it is needed as well.
    index.restore(Position(2 * page - 1), message_of(10));
    assert_eq!(segments.take_unneeded(), []);
    index.settle(Position(2 * page - 1));
    assert_eq!(segments.take_unneeded(), [1]);
    let mut detached = index.detach();
    assert_eq!(segments.take_unneeded(), [], "they are not freed yet");
    detached.free_page();
    assert_eq!(segments.take_unneeded(), [0]);
    drop(detached);
    assert_eq!(segments.take_unneeded(), [2]);
}
