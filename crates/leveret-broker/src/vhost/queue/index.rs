//! The messages of one priority in one queue, in their order: the durable part of a level.
//!
//! Owns: which messages lie there, at which position, when they expire, how many they are, and what memory they
//! take.
//! Must not know: who consumes, what is delivered, what comes next.
//! Invariant: positions grow and are never given twice; a settled entry never comes back.
//!
//! Entries live in pages. A page whose entries are all settled is freed, wherever it lies, so a few messages that
//! nobody acks do not keep the others in memory. A page whose bodies are all elsewhere is packed to a few bytes an entry;
//! it is opened again when a message is put into it or one of its messages is wanted, but not to settle or return one.

mod due;
mod packed;
mod page;

use std::collections::VecDeque;
use std::ops::Range;

use smallvec::SmallVec;

use self::due::Due;
use self::packed::Packed;
use self::page::{ENTRY_BYTES, Open, Page};
use crate::change::Block;
pub(crate) use crate::change::QueuePosition as Position;
use crate::limits::{EMPTY_PLACES_MAX, PAGE_ENTRIES, SPILLED_BYTES_PER_ENTRY};
use crate::memory::Meter;
use crate::message::{Message, MessageId};
use crate::moment::{Deadline, Moment};
use crate::scratch::{Place, Segment};

/// Where the body of a message is.
#[derive(Debug)]
pub(crate) enum Body {
    /// In memory.
    Resident(Message),
    /// Elsewhere; it must be fetched before it can be delivered.
    Stored,
}

impl Body {
    fn is_resident(&self) -> bool {
        matches!(self, Body::Resident(_))
    }

    /// A queue has it from now on. A body that lies in several queues is in memory once, and counts once.
    fn count(&self, meter: &Meter) {
        if let Body::Resident(message) = self
            && message.begin_hold()
        {
            meter.add(message.memory());
        }
    }

    /// A queue has it no longer.
    fn discount(&self, meter: &Meter) {
        if let Body::Resident(message) = self
            && message.end_hold()
        {
            meter.subtract(message.memory());
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
    /// Bytes of its body.
    pub(crate) body_bytes: u32,
    /// Whether the queue's journal knows it: a persistent message in a durable queue.
    pub(crate) journaled: bool,
    pub(crate) redelivered: bool,
}

impl Entry {
    /// The message, if it is in memory.
    pub(crate) fn message(&self) -> Option<&Message> {
        if let Body::Resident(message) = &self.body { Some(message) } else { None }
    }

    /// A message that is in memory and was not delivered yet.
    pub(crate) fn new(id: MessageId, message: Message, expires: Option<Deadline>, journaled: bool) -> Self {
        let bytes = u32::try_from(message.bytes()).unwrap_or(u32::MAX);
        let body_bytes = u32::try_from(message.body().len()).unwrap_or(u32::MAX);
        Entry { id, body: Body::Resident(message), expires, bytes, body_bytes, journaled, redelivered: false }
    }
}

/// A message that has left its queue for good.
#[derive(Debug)]
pub(crate) struct Settled {
    pub(crate) journaled: bool,
    /// Bytes of its body.
    pub(crate) body_bytes: u32,
    /// The message, if it was in memory.
    pub(crate) message: Option<Message>,
}

/// What becomes of a body that may be let go.
#[derive(Debug)]
pub(crate) enum Eviction {
    /// It stays in memory.
    Stays,
    /// It is read back by the name that its message has.
    Journaled,
    /// It lies in a scratch segment.
    Scratch(Segment, Place),
    /// It stays until it is written.
    ToBeWritten,
}

/// Scratch segments in which bodies of a page lie, for as long as there is any message in the page.
pub(crate) type Needed = SmallVec<[Segment; 1]>;

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
    /// Bytes of the bodies of all messages.
    body_bytes: u64,
    due: Due,
    meter: Meter,
}

/// What is known of a message without opening its page.
#[derive(Clone, Debug)]
pub(crate) struct Known {
    pub(crate) id: MessageId,
    pub(crate) message: Option<Message>,
    pub(crate) expires: Option<Deadline>,
    pub(crate) bytes: u32,
    pub(crate) body_bytes: u32,
    pub(crate) journaled: bool,
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

    /// An empty one gives this place first.
    pub(crate) fn begin_at(&mut self, position: Position) {
        (self.base, self.next) = (position, position);
    }

    /// How many messages lie in the queue, delivered or not.
    pub(crate) fn live(&self) -> usize {
        self.live
    }

    /// How many of them have a deadline.
    pub(crate) fn expiring(&self) -> usize {
        self.expiring
    }

    /// Bytes of the bodies of all messages.
    pub(crate) fn body_bytes(&self) -> u64 {
        self.body_bytes
    }

    /// When the next message expires that was not passed over by [`Self::take_due`], or a moment before.
    pub(crate) fn first_due(&self) -> Option<Deadline> {
        self.due.first()
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
        if !matches!(self.pages.back().map(Option::as_deref), Some(Some(Page::Open(_)))) {
            self.open_page(position);
        }
        let Some(Some(Page::Open(page))) = self.pages.back_mut().map(Option::as_deref_mut) else {
            unreachable!("the last page is freed only together with room for a new one, and was opened just now");
        };
        self.expiring += usize::from(entry.expires.is_some());
        self.body_bytes += u64::from(entry.body_bytes);
        self.meter.add(ENTRY_BYTES);
        entry.body.count(&self.meter);
        if let Some(deadline) = entry.expires {
            self.due.note(Position(position.0 - offset % PAGE_ENTRIES as u64), deadline);
        }
        page.push(entry);
        self.live += 1;
        self.next = position.next();
        position
    }

    /// The pages that have messages with deadlines, in their order: each with one that is not later than its first.
    pub(crate) fn due_pages(&self) -> impl Iterator<Item = (Deadline, Position)> {
        self.due.pages()
    }

    /// Takes the next page that has a message whose deadline has come; its messages for which `is_due` and `is_meant` say so,
    /// in their order. Those that `is_meant` says no to do not come up again before [`Self::note_due`].
    pub(crate) fn take_due(
        &mut self,
        now: Moment,
        is_due: impl Fn(Deadline, Position) -> bool,
        mut is_meant: impl FnMut(Position) -> bool,
    ) -> Option<Vec<(Deadline, Position)>> {
        let begin = self.due.take(now)?;
        let (mut found, mut later) = (Vec::new(), None::<Deadline>);
        let mut look = |slot: usize, expires: Option<Deadline>| {
            let position = Position(begin.0 + slot as u64);
            let Some(deadline) = expires.filter(|_| is_meant(position)) else { return };
            if is_due(deadline, position) {
                found.push((deadline, position));
            } else {
                later = Some(later.map_or(deadline, |later| later.min(deadline)));
            }
        };
        let page = self.locate(begin).and_then(|(page, _)| self.pages.get(page)?.as_deref());
        match page {
            Some(Page::Open(open)) => {
                for (slot, entry) in open.entries.iter().enumerate() {
                    look(slot, entry.as_ref().and_then(|entry| entry.expires));
                }
            }
            Some(Page::Packed(packed)) => {
                let mut slot = 0;
                packed.unpack(|entry| {
                    look(slot, entry.and_then(|entry| entry.expires));
                    slot += 1;
                });
            }
            None => {}
        }
        if let Some(later) = later {
            self.due.note(begin, later);
        }
        Some(found)
    }

    /// A message expires once more: it was passed over, and is not any longer.
    pub(crate) fn note_due(&mut self, position: Position) {
        if let Some(deadline) = self.known(position).and_then(|known| known.expires)
            && let Some((_, slot)) = self.locate(position)
        {
            self.due.note(Position(position.0 - slot as u64), deadline);
        }
    }

    /// What is known of a message, its page left as it is.
    pub(crate) fn known(&self, position: Position) -> Option<Known> {
        let (page, slot) = self.locate(position)?;
        let known = |entry: &Entry| {
            let message = entry.message().cloned();
            let Entry { id, expires, bytes, body_bytes, journaled, .. } = *entry;
            Known { id, message, expires, bytes, body_bytes, journaled }
        };
        match self.pages.get(page)?.as_deref()? {
            Page::Open(open) => open.entries.get(slot)?.as_ref().map(known),
            Page::Packed(packed) => packed.get(slot).as_ref().map(known),
        }
    }

    /// Packs the last page if no body of it is in memory.
    fn pack_last(&mut self) {
        if let Some(page) = self.pages.back_mut().and_then(Option::as_deref_mut) {
            page.pack(&self.meter);
        }
    }

    /// Hands out the journaled messages of the first page that has a message at or behind `from`. Returns the places of the
    /// page, as many as it has or may have yet; none if there was no message.
    pub(crate) fn page_from(
        &self,
        from: Position,
        mut each: impl FnMut(Position, &Entry),
    ) -> Option<Range<Position>> {
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
                    if let Some(entry) = entry.filter(|entry| at >= first.0 && entry.journaled) {
                        each(Position(at), &entry);
                    }
                    at += 1;
                });
            }
        }
        Some(begin..Position(begin.0 + PAGE_ENTRIES as u64))
    }

    /// Puts a whole page behind all others, as a checkpoint has it. False if it does not begin where one of these pages may:
    /// each of its messages may have its place all the same.
    pub(crate) fn push_block(&mut self, block: &Block, bytes: &[u8]) -> bool {
        let first = block.first;
        let is_free = first >= self.next && first.0 - self.next.0 <= GAP_MAX;
        if !is_free || (self.live > 0 && !(first.0 - self.base.0).is_multiple_of(PAGE_ENTRIES as u64)) {
            return false;
        }
        if self.live == 0 {
            self.drop_pages();
            self.base = first;
        } else {
            self.skip_to(first);
        }
        let page = Page::Packed(Packed::of_block(block, bytes));
        self.meter.add(page.memory());
        self.pages.push_back(Some(Box::new(page)));
        self.live += block.count;
        self.body_bytes += block.body_bytes;
        self.next = Position(first.0 + PAGE_ENTRIES as u64);
        true
    }

    /// Puts a message at a place behind all others, as it was before a restart; the places between stay empty.
    /// False if there is a message at or behind that place, or if the place lies absurdly far away.
    pub(crate) fn push_at(&mut self, position: Position, entry: Entry) -> bool {
        let next = self.next;
        let is_free = self.skip_forward(position);
        if is_free {
            self.push(entry);
            if position.0 - next.0 > EMPTY_PLACES_MAX {
                self.pack_last();
            }
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
                self.pack_last();
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
        let slots = self.pages.get(page).and_then(Option::as_deref).map_or(0, Page::slots);
        if slots >= entries {
            return;
        }
        self.open_page(Position(self.base.0 + (page * PAGE_ENTRIES) as u64));
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
            // Of a queue that stays nearly empty, a page has few; one that grows ends at a whole page.
            let room = packed.slots().next_power_of_two();
            let (entries, needed) = (Vec::with_capacity(room), packed.take_needed());
            let mut open = Open { entries, needed, ..Open::default() };
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
        let meter = self.meter.clone();
        self.open_page(position).is_some_and(|(page, slot)| page.replace(slot, Body::Resident(message), &meter))
    }

    /// The body of a message was written to a scratch segment, and need not be in memory any more, if it still is.
    pub(crate) fn store(&mut self, position: Position, message: &Message, segment: Segment, place: Place) {
        let meter = self.meter.clone();
        let Some((page, slot)) = self.page_mut(position) else { return };
        let Page::Open(open) = page else { return };
        let entry = open.entries.get(slot).and_then(Option::as_ref);
        if !entry.and_then(Entry::message).is_some_and(|here| here.is_same(message)) {
            return;
        }
        open.store(slot, segment, place, &meter);
        if open.entries.len() == PAGE_ENTRIES {
            page.pack(&meter);
        }
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
                entry.body.discount(&self.meter);
                open.live -= 1;
                open.expiring -= usize::from(entry.expires.is_some());
                open.body_bytes -= u64::from(entry.body_bytes);
                open.resident -= usize::from(entry.body.is_resident());
                let message = if let Body::Resident(message) = entry.body { Some(message) } else { None };
                let Entry { journaled, body_bytes, expires, .. } = entry;
                (Settled { journaled, body_bytes, message }, expires.is_some())
            }
            Page::Packed(packed) => packed.settle(slot)?,
        };
        self.live -= 1;
        self.expiring -= usize::from(expires);
        self.body_bytes -= u64::from(settled.body_bytes);
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
        self.due.clear();
        while self.pages.len() > 1 {
            self.drop_page(0);
            self.pages.pop_front();
        }
        let Some(Some(last)) = self.pages.back_mut().map(Option::as_deref_mut) else { return self.pages.clear() };
        self.meter.subtract(last.memory());
        match last {
            Page::Open(page) if page.entries.capacity() <= IDLE_PAGE_ENTRIES => {
                page.entries.clear();
                page.needed.clear();
            }
            Page::Open(_) | Page::Packed(_) => self.pages.clear(),
        }
    }

    fn drop_page(&mut self, page: usize) {
        self.due.forget(Position(self.base.0 + (page * PAGE_ENTRIES) as u64));
        if let Some(page) = self.pages.get_mut(page).and_then(Option::take) {
            self.meter.subtract(page.memory());
        }
    }

    fn drop_pages(&mut self) {
        self.due.clear();
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

    /// Lets go of bodies at or behind a position, but not in `keep`, for which `evict` says so, and packs pages. Looks at about
    /// `entries` and counts them down; returns where to go on, unless it came to the end.
    pub(crate) fn evict(
        &mut self,
        from: Position,
        keep: &Range<Position>,
        entries: &mut usize,
        evict: &mut dyn FnMut(Position, &Entry) -> Eviction,
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
                for slot in first..if open.resident > 0 { open.entries.len() } else { 0 } {
                    let position = Position(begin.0 + slot as u64);
                    *entries = entries.saturating_sub(1);
                    let Some(entry) = open.entries[slot].as_ref().filter(|entry| entry.body.is_resident()) else {
                        continue;
                    };
                    if keep.contains(&position) {
                        continue;
                    }
                    match evict(position, entry) {
                        Eviction::Stays => {}
                        Eviction::Journaled => _ = open.replace(slot, Body::Stored, &self.meter),
                        Eviction::Scratch(segment, place) => open.store(slot, segment, place, &self.meter),
                        Eviction::ToBeWritten => {
                            *entries = entries.saturating_sub(entry.bytes as usize / SPILLED_BYTES_PER_ENTRY);
                        }
                    }
                }
                let end = Position(begin.0 + PAGE_ENTRIES as u64);
                let is_apart = keep.is_empty() || end <= keep.start || keep.end <= begin;
                // A page that still grows would be opened again at once.
                let is_done = !std::mem::take(&mut open.is_growing) || open.entries.len() == PAGE_ENTRIES;
                if is_apart && is_done {
                    page.pack(&self.meter);
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
        self.due.forget_from(Position(self.base.0 + ((page + 1) * PAGE_ENTRIES) as u64));
        for page in pages.iter().flatten() {
            self.live -= page.live();
            self.expiring -= page.expiring();
            self.body_bytes -= page.body_bytes();
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
        self.body_bytes = 0;
        self.due.clear();
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
        if let Some(page) = page.as_deref() {
            self.meter.subtract(page.memory());
            if let Page::Open(open) = page {
                open.entries.iter().flatten().for_each(|entry| entry.body.discount(&self.meter));
            }
        }
        true
    }
}

impl Drop for Detached {
    fn drop(&mut self) {
        while self.free_page() {}
    }
}

#[cfg(test)]
mod tests;
