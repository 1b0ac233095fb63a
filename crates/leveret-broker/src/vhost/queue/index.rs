//! The messages of one queue in their order: the durable part of a queue.
//!
//! Owns: which messages lie in the queue, at which position, how many they are, and what memory they take.
//! Must not know: who consumes, what is delivered, what comes next.
//! Invariant: positions grow and are never given twice; a settled entry never comes back.
//!
//! Entries live in pages. A page whose entries are all settled is freed, wherever it lies, so a few messages that
//! nobody acks do not keep the others in memory. A full page whose bodies are all elsewhere is packed to a few bytes an
//! entry; it is opened again when one of its messages is wanted, but not to settle or return one.

mod packed;

use std::collections::VecDeque;
use std::ops::Range;

use self::packed::Packed;
pub(crate) use crate::change::QueuePosition as Position;
use crate::limits::{BODY_OVERHEAD_BYTES, PAGE_ENTRIES};
use crate::memory::Meter;
use crate::message::{Message, MessageId};
use crate::moment::Deadline;

/// Where the body of a message is.
#[derive(Debug)]
pub(crate) enum Body {
    /// In memory.
    Resident(Message),
    /// Elsewhere; it must be fetched before it can be delivered.
    Stored,
}

impl Body {
    fn memory(&self) -> usize {
        match self {
            Body::Resident(message) => message.bytes() + BODY_OVERHEAD_BYTES,
            Body::Stored => 0,
        }
    }
}

/// One message in one queue.
#[derive(Debug)]
pub(crate) struct Entry {
    pub(crate) id: MessageId,
    pub(crate) body: Body,
    pub(crate) expires: Option<Deadline>,
    /// Bytes of the message.
    pub(crate) bytes: u32,
    /// Whether the queue's journal knows it: a persistent message in a durable queue.
    pub(crate) journaled: bool,
    pub(crate) redelivered: bool,
}

impl Entry {
    /// A message that is in memory and was not delivered yet.
    pub(crate) fn new(id: MessageId, message: Message, expires: Option<Deadline>, journaled: bool) -> Self {
        let bytes = u32::try_from(message.bytes()).unwrap_or(u32::MAX);
        Entry { id, body: Body::Resident(message), expires, bytes, journaled, redelivered: false }
    }
}

/// A message that has left its queue for good.
#[derive(Debug)]
pub(crate) struct Settled {
    pub(crate) journaled: bool,
    /// The message, if it was in memory.
    pub(crate) message: Option<Message>,
}

const ENTRY_BYTES: usize = size_of::<Option<Entry>>();

#[derive(Debug)]
enum Page {
    Open(Open),
    Packed(Packed),
}

#[derive(Debug, Default)]
struct Open {
    entries: Vec<Option<Entry>>,
    live: usize,
    expiring: usize,
    /// Bodies in memory, and the bytes they take.
    resident: usize,
    resident_bytes: usize,
}

impl Default for Page {
    fn default() -> Self {
        Page::Open(Open::default())
    }
}

impl Page {
    fn live(&self) -> usize {
        match self {
            Page::Open(open) => open.live,
            Page::Packed(packed) => packed.live(),
        }
    }

    fn expiring(&self) -> usize {
        match self {
            Page::Open(open) => open.expiring,
            Page::Packed(packed) => packed.expiring(),
        }
    }

    /// Whether no entry is added any more.
    fn is_full(&self) -> bool {
        match self {
            Page::Open(open) => open.entries.len() == PAGE_ENTRIES,
            Page::Packed(_) => true,
        }
    }

    fn memory(&self) -> usize {
        match self {
            Page::Open(open) => open.entries.len() * ENTRY_BYTES + open.resident_bytes,
            Page::Packed(packed) => packed.memory(),
        }
    }

    /// The first slot at or behind one that holds a message.
    fn first_from(&self, slot: usize) -> Option<usize> {
        match self {
            Page::Open(open) => {
                let rest = open.entries.get(slot..)?;
                rest.iter().position(Option::is_some).map(|found| slot + found)
            }
            Page::Packed(packed) => packed.first_from(slot),
        }
    }
}

impl Open {
    fn push(&mut self, entry: Entry) {
        self.live += 1;
        self.expiring += usize::from(entry.expires.is_some());
        self.resident += usize::from(matches!(entry.body, Body::Resident(_)));
        self.resident_bytes += entry.body.memory();
        self.entries.push(Some(entry));
    }

    /// The same packed, if it is full and the journal has all bodies.
    fn pack(&self) -> Option<Page> {
        let is_packable = self.resident == 0
            && self.entries.len() == PAGE_ENTRIES
            && self.entries.iter().flatten().all(|entry| entry.journaled);
        is_packable.then(|| Page::Packed(Packed::pack(&self.entries)))
    }

    /// Puts another body in the place of one that is there. Returns what the two take, the old one first.
    fn replace(&mut self, slot: usize, body: Body) -> Option<(usize, usize)> {
        let entry = self.entries.get_mut(slot)?.as_mut()?;
        let (old, new) = (entry.body.memory(), body.memory());
        self.resident = self.resident + usize::from(new > 0) - usize::from(old > 0);
        self.resident_bytes = self.resident_bytes + new - old;
        entry.body = body;
        Some((old, new))
    }
}

/// The entries of a queue.
#[derive(Debug, Default)]
pub(crate) struct Index {
    /// Every page but the last holds [`PAGE_ENTRIES`]; `None` where all were settled.
    pages: VecDeque<Option<Box<Page>>>,
    /// The position of the first entry of the first page.
    base: Position,
    next: Position,
    live: usize,
    expiring: usize,
    meter: Meter,
}

/// Places between two messages that a restart believes: two trillion.
const GAP_MAX: u64 = 1 << 41;

/// Entries a page may keep room for once its queue is empty: enough for a queue that stays nearly empty under
/// load, too little to matter in a hundred thousand idle ones.
const IDLE_PAGE_ENTRIES: usize = 64;

impl Index {
    /// An empty one, whose memory is added up in `meter`.
    pub(crate) fn new(meter: Meter) -> Self {
        Index { meter, ..Index::default() }
    }

    /// How many messages lie in the queue, delivered or not.
    pub(crate) fn live(&self) -> usize {
        self.live
    }

    /// How many of them have a deadline.
    pub(crate) fn expiring(&self) -> usize {
        self.expiring
    }

    /// The position that the next message will get.
    pub(crate) fn next(&self) -> Position {
        self.next
    }

    /// The first position that may hold a message.
    pub(crate) fn base(&self) -> Position {
        self.base
    }

    /// Puts a message behind all others.
    pub(crate) fn push(&mut self, entry: Entry) -> Position {
        let position = self.next;
        let offset = position.0 - self.base.0;
        if offset == (self.pages.len() * PAGE_ENTRIES) as u64 {
            if matches!(entry.body, Body::Stored) {
                self.pack_last();
            }
            self.pages.push_back(Some(Box::default()));
        }
        let Some(Some(Page::Open(page))) = self.pages.back_mut().map(Option::as_deref_mut) else {
            unreachable!(
                "the last page is freed only together with room for a new one, and packed only when it is full"
            );
        };
        self.expiring += usize::from(entry.expires.is_some());
        self.meter.add(ENTRY_BYTES + entry.body.memory());
        page.push(entry);
        self.live += 1;
        self.next = position.next();
        position
    }

    /// Packs the last page, if it is full and no body of it is in memory.
    fn pack_last(&mut self) {
        if let Some(page) = self.pages.back_mut().and_then(Option::as_deref_mut)
            && let Page::Open(open) = page
            && let Some(packed) = open.pack()
        {
            self.meter.add(packed.memory());
            self.meter.subtract(page.memory());
            *page = packed;
        }
    }

    /// Hands out the journaled messages of the first page that has a message at or behind `from`. Returns where the next
    /// page begins; none if there was no message.
    pub(crate) fn page_from(&self, from: Position, mut each: impl FnMut(Position, &Entry)) -> Option<Position> {
        let first = self.first_from(from)?;
        let (page, slot) = self.locate(first)?;
        let begin = Position(first.0 - slot as u64);
        match self.pages.get(page)?.as_deref()? {
            Page::Open(open) => {
                for (entry, at) in open.entries.iter().zip(begin.0..).skip(slot) {
                    if let Some(entry) = entry.as_ref().filter(|entry| entry.journaled) {
                        each(Position(at), entry);
                    }
                }
            }
            Page::Packed(packed) => {
                let mut at = begin.0;
                packed.unpack(|entry| {
                    if let Some(entry) = entry.filter(|_| at >= first.0) {
                        each(Position(at), &entry);
                    }
                    at += 1;
                });
            }
        }
        Some(Position(begin.0 + PAGE_ENTRIES as u64))
    }

    /// Puts a message at a place behind all others, as it was before a restart; the places between stay empty.
    /// False if there is a message at or behind that place, or if the place lies absurdly far away.
    pub(crate) fn push_at(&mut self, position: Position, entry: Entry) -> bool {
        let is_free = self.skip_forward(position);
        if is_free {
            self.push(entry);
        }
        is_free
    }

    /// The next message gets this place. False if that was given already, or lies absurdly far away.
    pub(crate) fn skip_forward(&mut self, next: Position) -> bool {
        if next < self.next || next.0 - self.next.0 > GAP_MAX {
            return false;
        }
        self.skip_to(next);
        true
    }

    /// Takes out all messages before a place but these.
    pub(crate) fn settle_below(&mut self, below: Position, except: &[Position]) {
        let mut from = self.base;
        while let Some(position) = self.first_from(from).filter(|&position| position < below) {
            if except.binary_search(&position).is_err() {
                self.settle(position);
            }
            from = position.next();
        }
    }

    /// The next so many places stay empty, for good.
    pub(crate) fn leave_gap(&mut self, places: u64) {
        self.skip_to(Position(self.next.0.saturating_add(places.min(GAP_MAX))));
    }

    /// The places before `position` that were not given stay empty, for good.
    fn skip_to(&mut self, position: Position) {
        if self.live == 0 && position != self.next {
            self.drop_pages();
            (self.base, self.next) = (position, position);
        }
        let Some((page, slot)) = self.locate(position) else { return };
        if page >= self.pages.len() {
            if let Some(last) = self.pages.len().checked_sub(1) {
                self.pad(last, PAGE_ENTRIES);
                if self.pages[last].as_ref().is_some_and(|page| page.live() == 0) {
                    self.drop_page(last);
                }
            }
            self.pages.resize_with(page, || None);
            if slot > 0 {
                self.pages.push_back(Some(Box::default()));
            }
        }
        self.pad(page, slot);
        self.next = position;
    }

    /// Makes the last page so long with empty places.
    fn pad(&mut self, page: usize, entries: usize) {
        if let Some(Some(Page::Open(open))) = self.pages.get_mut(page).map(Option::as_deref_mut)
            && open.entries.len() < entries
        {
            self.meter.add((entries - open.entries.len()) * ENTRY_BYTES);
            open.entries.resize_with(entries, || None);
        }
    }

    fn locate(&self, position: Position) -> Option<(usize, usize)> {
        let offset = usize::try_from(position.0.checked_sub(self.base.0)?).ok()?;
        Some((offset / PAGE_ENTRIES, offset % PAGE_ENTRIES))
    }

    fn page_mut(&mut self, position: Position) -> Option<(&mut Page, usize)> {
        let (page, slot) = self.locate(position)?;
        Some((self.pages.get_mut(page)?.as_deref_mut()?, slot))
    }

    /// The page of a message, opened if it is packed.
    fn open_page(&mut self, position: Position) -> Option<(&mut Open, usize)> {
        let (at, slot) = self.locate(position)?;
        let page = self.pages.get_mut(at)?.as_deref_mut()?;
        if let Page::Packed(packed) = page {
            let mut open = Open { entries: Vec::with_capacity(PAGE_ENTRIES), ..Open::default() };
            packed.unpack(|entry| match entry {
                Some(entry) => open.push(entry),
                None => open.entries.push(None),
            });
            let opened = Page::Open(open);
            self.meter.add(opened.memory());
            self.meter.subtract(page.memory());
            *page = opened;
        }
        match page {
            Page::Open(open) => Some((open, slot)),
            Page::Packed(_) => None,
        }
    }

    /// A message, with its page opened.
    pub(crate) fn open(&mut self, position: Position) -> Option<&Entry> {
        let (page, slot) = self.open_page(position)?;
        page.entries.get(slot)?.as_ref()
    }

    /// Brings the body of a message back; false if the message is not there any more.
    pub(crate) fn restore(&mut self, position: Position, message: Message) -> bool {
        let Some((page, slot)) = self.open_page(position) else { return false };
        let Some((old, new)) = page.replace(slot, Body::Resident(message)) else { return false };
        self.meter.add(new);
        self.meter.subtract(old);
        true
    }

    /// Notes that a message was delivered before; false if it is not there.
    pub(crate) fn flag_redelivered(&mut self, position: Position) -> bool {
        match self.page_mut(position) {
            Some((Page::Open(page), slot)) => match page.entries.get_mut(slot) {
                Some(Some(entry)) => {
                    entry.redelivered = true;
                    true
                }
                _ => false,
            },
            Some((Page::Packed(page), slot)) => page.flag_redelivered(slot),
            None => false,
        }
    }

    /// Whether a message has that flag.
    pub(crate) fn is_redelivered(&self, position: Position) -> bool {
        let Some((page, slot)) = self.locate(position) else { return false };
        match self.pages.get(page).and_then(Option::as_deref) {
            Some(Page::Open(page)) => matches!(page.entries.get(slot), Some(Some(entry)) if entry.redelivered),
            Some(Page::Packed(page)) => page.is_redelivered(slot),
            None => false,
        }
    }

    /// Takes an entry out for good.
    pub(crate) fn settle(&mut self, position: Position) -> Option<Settled> {
        let (at, slot) = self.locate(position)?;
        let page = self.pages.get_mut(at)?.as_deref_mut()?;
        let (settled, expires) = match page {
            Page::Open(open) => {
                let entry = open.entries.get_mut(slot)?.take()?;
                let memory = entry.body.memory();
                open.live -= 1;
                open.expiring -= usize::from(entry.expires.is_some());
                open.resident -= usize::from(memory > 0);
                open.resident_bytes -= memory;
                self.meter.subtract(memory);
                let message = if let Body::Resident(message) = entry.body { Some(message) } else { None };
                (Settled { journaled: entry.journaled, message }, entry.expires.is_some())
            }
            Page::Packed(packed) => (Settled { journaled: true, message: None }, packed.settle(slot)?),
        };
        self.live -= 1;
        self.expiring -= usize::from(expires);
        if self.live == 0 {
            self.restart();
        } else if page.live() == 0 && page.is_full() {
            self.free(at);
        }
        Some(settled)
    }

    /// Nothing lies in the queue: begin again at a first page, keeping a small one.
    fn restart(&mut self) {
        self.base = self.next;
        let last = self.pages.pop_back().flatten();
        self.drop_pages();
        let Some(mut last) = last else { return };
        self.meter.subtract(last.memory());
        if let Page::Open(page) = &mut *last
            && page.entries.capacity() <= IDLE_PAGE_ENTRIES
        {
            page.entries.clear();
            self.pages.push_back(Some(last));
        }
    }

    fn drop_page(&mut self, page: usize) {
        if let Some(page) = self.pages.get_mut(page).and_then(Option::take) {
            self.meter.subtract(page.memory());
        }
    }

    fn drop_pages(&mut self) {
        self.meter.subtract(self.pages.iter().flatten().map(|page| page.memory()).sum());
        self.pages.clear();
    }

    fn free(&mut self, page: usize) {
        self.drop_page(page);
        while self.pages.len() > 1 && matches!(self.pages.front(), Some(None)) {
            self.pages.pop_front();
            self.base = Position(self.base.0 + PAGE_ENTRIES as u64);
        }
    }

    /// The first message at or behind a position, passing over freed pages at once.
    pub(crate) fn first_from(&self, from: Position) -> Option<Position> {
        let (mut page, mut slot) = self.locate(from.max(self.base))?;
        while let Some(candidate) = self.pages.get(page) {
            if let Some(found) = candidate.as_ref().and_then(|page| page.first_from(slot)) {
                return Some(Position(self.base.0 + (page * PAGE_ENTRIES + found) as u64));
            }
            page += 1;
            slot = 0;
        }
        None
    }

    /// Lets go of bodies at or behind a position, but not in `keep`, for which `store` found another place, and packs
    /// pages. Looks at about `entries` and counts them down; returns where to go on, unless it came to the end.
    pub(crate) fn evict(
        &mut self,
        from: Position,
        keep: &Range<Position>,
        entries: &mut usize,
        store: &mut dyn FnMut(&Entry) -> bool,
    ) -> Option<Position> {
        let (mut at, mut first) = self.locate(from.max(self.base))?;
        while at < self.pages.len() {
            let begin = Position(self.base.0 + (at * PAGE_ENTRIES) as u64);
            if *entries == 0 {
                return Some(begin);
            }
            // Pages without anything to do are passed over quickly, but not for nothing.
            *entries -= 1;
            if let Some(page) = self.pages.get_mut(at).and_then(Option::as_deref_mut)
                && let Page::Open(open) = page
            {
                let before = open.resident_bytes;
                for slot in first..if open.resident > 0 { open.entries.len() } else { 0 } {
                    let position = Position(begin.0 + slot as u64);
                    *entries = entries.saturating_sub(1);
                    if let Some(entry) = &open.entries[slot]
                        && matches!(entry.body, Body::Resident(_))
                        && !keep.contains(&position)
                        && store(entry)
                    {
                        open.replace(slot, Body::Stored);
                    }
                }
                self.meter.subtract(before - open.resident_bytes);
                let end = Position(begin.0 + PAGE_ENTRIES as u64);
                let is_apart = keep.is_empty() || end <= keep.start || keep.end <= begin;
                if is_apart && let Some(packed) = open.pack() {
                    self.meter.add(packed.memory());
                    self.meter.subtract(page.memory());
                    *page = packed;
                }
            }
            at += 1;
            first = 0;
        }
        None
    }

    /// Takes out at once all whole pages behind the one that holds `position`; those are the caller's to free.
    /// The positions they had are not given again.
    pub(crate) fn detach_behind(&mut self, position: Position) -> Detached {
        let Some((page, _)) = self.locate(position) else { return Detached::default() };
        if page + 1 >= self.pages.len() {
            return Detached::default();
        }
        let pages = self.pages.split_off(page + 1);
        for page in pages.iter().flatten() {
            self.live -= page.live();
            self.expiring -= page.expiring();
        }
        // Positions are never given twice: go on at a page boundary behind the last one that was given.
        let whole_pages = (self.next.0 - self.base.0).div_ceil(PAGE_ENTRIES as u64);
        self.pages.resize_with(usize::try_from(whole_pages).unwrap_or(usize::MAX), || None);
        self.next = Position(self.base.0 + whole_pages * PAGE_ENTRIES as u64);
        Detached { pages, meter: self.meter.clone() }
    }

    /// Takes everything out at once and begins again; the old entries are the caller's to free.
    pub(crate) fn detach(&mut self) -> Detached {
        let pages = std::mem::take(&mut self.pages);
        self.base = self.next;
        self.live = 0;
        self.expiring = 0;
        Detached { pages, meter: self.meter.clone() }
    }
}

/// Entries that no queue holds any more, waiting to be freed in steps.
#[derive(Debug, Default)]
pub(crate) struct Detached {
    pages: VecDeque<Option<Box<Page>>>,
    meter: Meter,
}

impl Detached {
    pub(crate) fn is_empty(&self) -> bool {
        self.pages.is_empty()
    }

    /// Frees one page; false when there was none left.
    pub(crate) fn free_page(&mut self) -> bool {
        let Some(page) = self.pages.pop_front() else { return false };
        self.meter.subtract(page.map_or(0, |page| page.memory()));
        true
    }
}

impl Drop for Detached {
    fn drop(&mut self) {
        while self.free_page() {}
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::time::Duration;

    use rand::rngs::SmallRng;
    use rand::{Rng, SeedableRng};

    use super::*;
    use crate::change::JournalPosition;
    use crate::message::DeliveryMode;

    fn entry(id: u64) -> Entry {
        let (id, body, expires) = (MessageId::transient(id), Body::Stored, None);
        Entry { id, body, expires, bytes: 0, journaled: false, redelivered: false }
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
        assert_eq!(index.open(kept).map(|entry| entry.id), Some(MessageId::transient(0)));
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
            assert_eq!(index.open(position).map(|entry| entry.id), Some(MessageId::transient(position.0)));
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

    /// What is known of a message beside its body.
    type Known = (u64, Option<Deadline>, bool);

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
            for _ in 0..300 {
                let any = Position(random.random_range(0..=index.next().0));
                let picked = model.range(any..).next().map(|(&position, _)| position);
                match random.random_range(0..10) {
                    0..3 => {
                        for _ in 0..random.random_range(1..400) {
                            id += random.random_range(1..400);
                            let expires = (seed % 3 > 0 && random.random_bool(0.3))
                                .then(|| Deadline(Duration::from_nanos(random.random_range(0..u64::MAX))));
                            let entry =
                                Entry::new(MessageId::journaled(JournalPosition(id)), message(id), expires, true);
                            model.insert(index.push(entry), (id, expires, false));
                        }
                    }
                    3 => {
                        let keep = any..Position(any.0 + random.random_range(0..500));
                        while index.evict(Position(0), &keep, &mut 100_000, &mut |_| true).is_some() {}
                    }
                    4 => _ = index.evict(any, &(any..any), &mut 200, &mut |entry| entry.bytes % 7 > 0),
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
                            model.remove(&position);
                            let settled = index.settle(position).unwrap();
                            assert!(settled.journaled && index.settle(position).is_none());
                        }
                    }
                }
                assert_eq!(index.live(), model.len());
                assert_eq!(index.expiring(), model.values().filter(|known| known.1.is_some()).count());
                assert_eq!(index.first_from(any), model.range(any..).next().map(|(&position, _)| position));
                let redelivered = model.get(&any).is_some_and(|known| known.2);
                assert_eq!(index.is_redelivered(any), redelivered);
                assert_eq!(meter.bytes(), index.pages.iter().flatten().map(|page| page.memory()).sum::<usize>());
            }
            while index.evict(Position(0), &(Position(0)..Position(0)), &mut 1_000_000, &mut |_| true).is_some() {}
            let packed = index.pages.iter().flatten().filter(|page| matches!(***page, Page::Packed(_))).count();
            assert!(packed > 0, "seed {seed}");
            for (position, known) in &model {
                let entry = index.open(*position).unwrap();
                let found = (entry.id.position().unwrap().0, entry.expires, entry.redelivered);
                assert_eq!(found, *known);
                assert_eq!(entry.bytes as usize, message(known.0).bytes());
            }
            drop(index.detach());
            assert_eq!(meter.bytes(), 0);
        }
    }

    #[test]
    fn a_message_that_is_not_in_memory_takes_a_few_bytes() {
        let meter = Meter::default();
        let mut index = Index::new(meter.clone());
        for id in 1..=100_000 {
            let message = Message::new(&[b'x'; 1024], 0, 0, DeliveryMode::Persistent);
            index.push(Entry::new(MessageId::journaled(JournalPosition(id)), message, None, true));
        }
        let mut from = Some(Position(0));
        while let Some(at) = from {
            from = index.evict(at, &(at..at), &mut 4096, &mut |_| true);
        }
        assert!(meter.bytes() < 100_000 * 6, "{} bytes", meter.bytes());
        assert_eq!(index.live(), 100_000);
    }
}
