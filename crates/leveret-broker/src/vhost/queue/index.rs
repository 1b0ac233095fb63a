//! The messages of one queue in their order: the durable part of a queue.
//!
//! Owns: which messages lie in the queue, at which position, and how many they are.
//! Must not know: who consumes, what is delivered, what comes next.
//! Invariant: positions grow and are never given twice; a settled entry never comes back.
//!
//! Entries live in pages. A page whose entries are all settled is freed, wherever it lies, so a few messages that
//! nobody acks do not keep the others in memory.

use std::collections::VecDeque;

pub(crate) use crate::change::QueuePosition as Position;
use crate::limits::PAGE_ENTRIES;
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

/// One message in one queue.
#[derive(Debug)]
pub(crate) struct Entry {
    pub(crate) id: MessageId,
    pub(crate) body: Body,
    pub(crate) expires: Option<Deadline>,
    /// Whether the queue's journal knows it: a persistent message in a durable queue.
    pub(crate) journaled: bool,
    pub(crate) redelivered: bool,
}

#[derive(Debug, Default)]
struct Page {
    entries: Vec<Option<Entry>>,
    live: usize,
    expiring: usize,
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
}

/// Places between two messages that a restart believes: two trillion.
const GAP_MAX: u64 = 1 << 41;

/// Entries a page may keep room for once its queue is empty: enough for a queue that stays nearly empty under
/// load, too little to matter in a hundred thousand idle ones.
const IDLE_PAGE_ENTRIES: usize = 64;

impl Index {
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
            self.pages.push_back(Some(Box::default()));
        }
        let page = self.pages.back_mut().and_then(Option::as_deref_mut);
        let page = page.expect("the last page is freed only together with room for a new one");
        let expiring = usize::from(entry.expires.is_some());
        page.entries.push(Some(entry));
        page.live += 1;
        page.expiring += expiring;
        self.expiring += expiring;
        self.live += 1;
        self.next = position.next();
        position
    }

    /// Puts a message at a place behind all others, as it was before a restart; the places between stay empty.
    /// False if there is a message at or behind that place, or if the place lies absurdly far away.
    pub(crate) fn push_at(&mut self, position: Position, entry: Entry) -> bool {
        if position < self.next || position.0 - self.next.0 > GAP_MAX {
            return false;
        }
        self.skip_to(position);
        self.push(entry);
        true
    }

    /// The next so many places stay empty, for good.
    pub(crate) fn leave_gap(&mut self, places: u64) {
        self.skip_to(Position(self.next.0.saturating_add(places.min(GAP_MAX))));
    }

    /// The places before `position` that were not given stay empty, for good.
    fn skip_to(&mut self, position: Position) {
        if self.live == 0 {
            self.pages.clear();
            (self.base, self.next) = (position, position);
        }
        let Some((page, slot)) = self.locate(position) else { return };
        if page >= self.pages.len() {
            if let Some(last) = self.pages.back_mut()
                && let Some(ended) = last
            {
                ended.entries.resize_with(PAGE_ENTRIES, || None);
                if ended.live == 0 {
                    *last = None;
                }
            }
            self.pages.resize_with(page, || None);
            if slot > 0 {
                self.pages.push_back(Some(Box::default()));
            }
        }
        if let Some(Some(page)) = self.pages.get_mut(page) {
            page.entries.resize_with(slot, || None);
        }
        self.next = position;
    }

    fn locate(&self, position: Position) -> Option<(usize, usize)> {
        let offset = usize::try_from(position.0.checked_sub(self.base.0)?).ok()?;
        Some((offset / PAGE_ENTRIES, offset % PAGE_ENTRIES))
    }

    pub(crate) fn get(&self, position: Position) -> Option<&Entry> {
        let (page, slot) = self.locate(position)?;
        self.pages.get(page)?.as_ref()?.entries.get(slot)?.as_ref()
    }

    pub(crate) fn get_mut(&mut self, position: Position) -> Option<&mut Entry> {
        let (page, slot) = self.locate(position)?;
        self.pages.get_mut(page)?.as_mut()?.entries.get_mut(slot)?.as_mut()
    }

    /// Takes an entry out for good.
    pub(crate) fn settle(&mut self, position: Position) -> Option<Entry> {
        let (at, slot) = self.locate(position)?;
        let page = self.pages.get_mut(at)?.as_mut()?;
        let entry = page.entries.get_mut(slot)?.take()?;
        let expiring = usize::from(entry.expires.is_some());
        page.live -= 1;
        page.expiring -= expiring;
        self.live -= 1;
        self.expiring -= expiring;
        if self.live == 0 {
            self.restart();
        } else if page.live == 0 && page.entries.len() == PAGE_ENTRIES {
            self.free(at);
        }
        Some(entry)
    }

    /// Nothing lies in the queue: begin again at a first page, keeping a small one.
    fn restart(&mut self) {
        self.base = self.next;
        let last = self.pages.pop_back().flatten();
        self.pages.clear();
        if let Some(mut page) = last.filter(|page| page.entries.capacity() <= IDLE_PAGE_ENTRIES) {
            page.entries.clear();
            self.pages.push_back(Some(page));
        }
    }

    fn free(&mut self, page: usize) {
        self.pages[page] = None;
        while self.pages.len() > 1 && matches!(self.pages.front(), Some(None)) {
            self.pages.pop_front();
            self.base = Position(self.base.0 + PAGE_ENTRIES as u64);
        }
    }

    /// The first message at or behind a position, passing over freed pages at once.
    pub(crate) fn first_from(&self, from: Position) -> Option<Position> {
        let (mut page, mut slot) = self.locate(from.max(self.base))?;
        while let Some(candidate) = self.pages.get(page) {
            if let Some(candidate) = candidate {
                let found = candidate.entries.get(slot..).and_then(|rest| rest.iter().position(Option::is_some));
                if let Some(found) = found {
                    return Some(Position(self.base.0 + (page * PAGE_ENTRIES + slot + found) as u64));
                }
            }
            page += 1;
            slot = 0;
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
            self.live -= page.live;
            self.expiring -= page.expiring;
        }
        // Positions are never given twice: go on at a page boundary behind the last one that was given.
        let whole_pages = (self.next.0 - self.base.0).div_ceil(PAGE_ENTRIES as u64);
        self.pages.resize_with(usize::try_from(whole_pages).unwrap_or(usize::MAX), || None);
        self.next = Position(self.base.0 + whole_pages * PAGE_ENTRIES as u64);
        Detached { pages }
    }

    /// Takes everything out at once and begins again; the old entries are the caller's to free.
    pub(crate) fn detach(&mut self) -> Detached {
        let pages = std::mem::take(&mut self.pages);
        self.base = self.next;
        self.live = 0;
        self.expiring = 0;
        Detached { pages }
    }
}

/// Entries that no queue holds any more, waiting to be freed in steps.
#[derive(Debug, Default)]
pub(crate) struct Detached {
    pages: VecDeque<Option<Box<Page>>>,
}

impl Detached {
    pub(crate) fn is_empty(&self) -> bool {
        self.pages.is_empty()
    }

    /// Frees one page; false when there was none left.
    pub(crate) fn free_page(&mut self) -> bool {
        self.pages.pop_front().is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(id: u64) -> Entry {
        Entry {
            id: MessageId::transient(id),
            body: Body::Stored,
            expires: None,
            journaled: false,
            redelivered: false,
        }
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
        assert_eq!(index.get(kept).map(|entry| entry.id), Some(MessageId::transient(0)));
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
            assert_eq!(index.get(position).map(|entry| entry.id), Some(MessageId::transient(position.0)));
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
        assert!(index.get(first).is_none());
        assert_eq!(index.live(), 1);
    }
}
