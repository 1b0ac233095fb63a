//! A page of entries whose bodies are all on disk, in a few bytes an entry.

use std::time::Duration;

use super::{Body, Entry, Needed, Settled};
use crate::change::{Block, JournalPosition};
use crate::limits::PAGE_ENTRIES;
use crate::message::MessageId;
use crate::moment::Deadline;
use crate::number::{read_number, write_number};
use crate::scratch::Place;
use crate::slots::{Lengths, Slots};

/// The last entry of each kind.
#[derive(Clone, Copy, Debug, Default)]
struct Last {
    position: u64,
    place: u64,
}

impl Last {
    /// How far another one is behind it, as a number that is small if that is near.
    fn step_to(&mut self, id: MessageId) -> u64 {
        if let Some(place) = id.place() {
            let step = place.number().wrapping_sub(self.place).cast_signed();
            self.place = place.number();
            // A place may lie before the last one: an even number goes forward, an odd one back.
            return (step << 1 ^ step >> 63).cast_unsigned();
        }
        let position = id.position().map_or(0, |position| position.0);
        let step = position.wrapping_sub(self.position);
        self.position = position;
        step
    }

    /// The one that is so far behind it.
    fn step(&mut self, step: u64, journaled: bool) -> MessageId {
        if journaled {
            self.position = self.position.wrapping_add(step);
            return MessageId::journaled(JournalPosition(self.position));
        }
        let step = (step >> 1).cast_signed() ^ -(step & 1).cast_signed();
        self.place = self.place.wrapping_add(step.cast_unsigned());
        MessageId::scratch(Place::numbered(self.place))
    }
}

/// Entries, one after the other: its lengths, with two if it is not journaled, plus one if it expires; how far its position in the journal is behind that of the last one that has one, or its place on
/// disk behind the last such; then its deadline in nanoseconds. Each is a number of as many bytes as it needs.
#[derive(Debug)]
pub(super) struct Packed {
    /// The slots that `bytes` has entries for.
    written: Slots,
    /// Those of them that were not settled since.
    live: Slots,
    redelivered: Slots,
    expiring: usize,
    body_bytes: u64,
    /// Behind the last entry that was settled: mostly, the next one comes soon after it.
    cursor: Cursor,
    needed: Needed,
    /// How long the page was.
    slots: usize,
    bytes: Box<[u8]>,
}

/// A place between two entries.
#[derive(Clone, Copy, Debug, Default)]
struct Cursor {
    /// The slot of the entry behind it, or one before that.
    slot: usize,
    /// Where that begins.
    at: usize,
    last: Last,
}

impl Packed {
    /// Packs a page, of which no body is in memory.
    pub(super) fn pack(entries: &[Option<Entry>], needed: Needed) -> Self {
        let (mut written, mut redelivered) = (Slots::default(), Slots::default());
        let (mut expiring, mut body_bytes) = (0, 0);
        let mut last = Last::default();
        let mut bytes = Vec::with_capacity(entries.len() * 4);
        for (slot, entry) in entries.iter().enumerate() {
            let Some(entry) = entry else { continue };
            written.set(slot);
            if entry.redelivered {
                redelivered.set(slot);
            }
            let flags = u64::from(!entry.journaled) << 1 | u64::from(entry.expires.is_some());
            Lengths { bytes: entry.bytes, body_bytes: entry.body_bytes }.write(&mut bytes, flags);
            write_number(&mut bytes, last.step_to(entry.id));
            body_bytes += u64::from(entry.body_bytes);
            if let Some(Deadline(at)) = entry.expires {
                expiring += 1;
                write_number(&mut bytes, u64::try_from(at.as_nanos()).unwrap_or(u64::MAX));
            }
        }
        let (live, slots, bytes) = (written, entries.len(), bytes.into());
        let cursor = Cursor::default();
        Packed { written, live, redelivered, expiring, body_bytes, cursor, needed, slots, bytes }
    }

    /// A page that a checkpoint has, as it is there.
    pub(super) fn of_block(block: &Block, bytes: &[u8]) -> Self {
        Packed {
            written: block.slots,
            live: block.slots,
            redelivered: Slots::default(),
            expiring: 0,
            body_bytes: block.body_bytes,
            cursor: Cursor::default(),
            needed: Needed::default(),
            slots: PAGE_ENTRIES,
            bytes: bytes.into(),
        }
    }

    /// The page is opened: what it needed, that does from now on.
    pub(super) fn take_needed(&mut self) -> Needed {
        std::mem::take(&mut self.needed)
    }

    /// Hands out what each slot of the page holds, in order.
    pub(super) fn unpack(&self, mut each: impl FnMut(Option<Entry>)) {
        let mut entries = self.entries();
        for slot in 0..self.slots {
            let entry = if self.written.has(slot) { entries.next() } else { None };
            each(entry.filter(|_| self.live.has(slot)).map(|mut entry| {
                entry.redelivered = self.redelivered.has(slot);
                entry
            }));
        }
    }

    fn entries(&self) -> impl Iterator<Item = Entry> + '_ {
        let mut cursor = Cursor::default();
        std::iter::from_fn(move || self.read(&mut cursor))
    }

    /// The entry behind a place, which goes on to behind it. Which slot it is in, the caller knows.
    fn read(&self, cursor: &mut Cursor) -> Option<Entry> {
        let mut rest = self.bytes.get(cursor.at..)?;
        let (Lengths { bytes, body_bytes }, flags) = Lengths::read(&mut rest)?;
        let journaled = flags & 2 == 0;
        let id = cursor.last.step(read_number(&mut rest)?, journaled);
        let expires =
            if flags & 1 == 1 { Some(Deadline(Duration::from_nanos(read_number(&mut rest)?))) } else { None };
        cursor.at = self.bytes.len() - rest.len();
        Some(Entry { id, body: Body::Stored, expires, bytes, body_bytes, journaled, redelivered: false })
    }

    /// The entry of a slot, if it is there, and the place behind it.
    fn find(&self, slot: usize) -> Option<(Entry, Cursor)> {
        if !self.live.has(slot) {
            return None;
        }
        let mut cursor = if self.cursor.slot <= slot { self.cursor } else { Cursor::default() };
        for _ in (cursor.slot..slot).filter(|&before| self.written.has(before)) {
            self.read(&mut cursor)?;
        }
        let entry = self.read(&mut cursor)?;
        cursor.slot = slot + 1;
        Some((Entry { redelivered: self.redelivered.has(slot), ..entry }, cursor))
    }

    pub(super) fn live(&self) -> usize {
        self.live.count()
    }

    pub(super) fn expiring(&self) -> usize {
        self.expiring
    }

    pub(super) fn slots(&self) -> usize {
        self.slots
    }

    pub(super) fn body_bytes(&self) -> u64 {
        self.body_bytes
    }

    pub(super) fn memory(&self) -> usize {
        size_of::<super::Page>() + self.bytes.len()
    }

    pub(super) fn first_from(&self, slot: usize) -> Option<usize> {
        self.live.first_from(slot)
    }

    /// The entry of a slot, if it is there.
    pub(super) fn get(&self, slot: usize) -> Option<Entry> {
        self.find(slot).map(|(entry, _)| entry)
    }

    /// Takes an entry out for good, and says whether it would have expired. `None` if it is not there.
    pub(super) fn settle(&mut self, slot: usize) -> Option<(Settled, bool)> {
        let (Entry { expires, body_bytes, journaled, .. }, cursor) = self.find(slot)?;
        self.cursor = cursor;
        self.live.clear(slot);
        self.expiring -= usize::from(expires.is_some());
        self.body_bytes -= u64::from(body_bytes);
        Some((Settled { journaled, body_bytes, message: None }, expires.is_some()))
    }

    pub(super) fn flag_redelivered(&mut self, slot: usize) -> bool {
        self.redelivered.set(slot);
        self.live.has(slot)
    }

    pub(super) fn is_redelivered(&self, slot: usize) -> bool {
        self.live.has(slot) && self.redelivered.has(slot)
    }
}
