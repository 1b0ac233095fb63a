//! A page of entries whose bodies are all on disk, in a few bytes an entry.

use std::time::Duration;

use super::{Body, Entry, Needed, Settled};
use crate::change::JournalPosition;
use crate::limits::PAGE_ENTRIES;
use crate::message::MessageId;
use crate::moment::Deadline;
use crate::number::{read_number, write_number};
use crate::scratch::Place;

/// One bit for each slot of a page.
#[derive(Clone, Copy, Debug, Default)]
struct Bits([u64; PAGE_ENTRIES / 64]);

impl Bits {
    fn has(&self, slot: usize) -> bool {
        self.0.get(slot / 64).is_some_and(|word| word >> (slot % 64) & 1 == 1)
    }

    fn set(&mut self, slot: usize) {
        if let Some(word) = self.0.get_mut(slot / 64) {
            *word |= 1 << (slot % 64);
        }
    }

    fn clear(&mut self, slot: usize) {
        if let Some(word) = self.0.get_mut(slot / 64) {
            *word &= !(1 << (slot % 64));
        }
    }

    fn count(&self) -> usize {
        self.0.iter().map(|word| word.count_ones() as usize).sum()
    }

    fn first_from(&self, slot: usize) -> Option<usize> {
        let first = slot / 64;
        self.0.iter().enumerate().skip(first).find_map(|(at, &word)| {
            let word = if at == first { word & (u64::MAX << (slot % 64)) } else { word };
            (word != 0).then(|| at * 64 + word.trailing_zeros() as usize)
        })
    }
}

/// The last entry of each kind.
#[derive(Default)]
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

/// Entries, one after the other: eight times its bytes, plus four if it is not journaled, plus two if those of its body are
/// counted, plus one if it expires; how far its position in the journal is behind that of the last one that has one, or its
/// place on disk behind the last such; then so many, and its deadline in nanoseconds. Each is a number of as many bytes as it
/// needs.
#[derive(Debug)]
pub(super) struct Packed {
    /// The slots that `bytes` has entries for.
    written: Bits,
    /// Those of them that were not settled since.
    live: Bits,
    redelivered: Bits,
    expiring: usize,
    counted: u64,
    /// How many of all are not journaled.
    transient: usize,
    needed: Needed,
    /// How long the page was.
    slots: usize,
    bytes: Box<[u8]>,
}

impl Packed {
    /// Packs a page, of which no body is in memory.
    pub(super) fn pack(entries: &[Option<Entry>], needed: Needed) -> Self {
        let (mut written, mut redelivered) = (Bits::default(), Bits::default());
        let (mut expiring, mut counted, mut transient) = (0, 0, 0);
        let mut last = Last::default();
        let mut bytes = Vec::with_capacity(PAGE_ENTRIES * 4);
        for (slot, entry) in entries.iter().enumerate() {
            let Some(entry) = entry else { continue };
            written.set(slot);
            if entry.redelivered {
                redelivered.set(slot);
            }
            transient += usize::from(!entry.journaled);
            let flags = u64::from(!entry.journaled) << 2
                | u64::from(entry.counted > 0) << 1
                | u64::from(entry.expires.is_some());
            write_number(&mut bytes, u64::from(entry.bytes) << 3 | flags);
            write_number(&mut bytes, last.step_to(entry.id));
            if entry.counted > 0 {
                counted += u64::from(entry.counted);
                write_number(&mut bytes, entry.counted.into());
            }
            if let Some(Deadline(at)) = entry.expires {
                expiring += 1;
                write_number(&mut bytes, u64::try_from(at.as_nanos()).unwrap_or(u64::MAX));
            }
        }
        let (live, slots, bytes) = (written, entries.len(), bytes.into());
        Packed { written, live, redelivered, expiring, counted, transient, needed, slots, bytes }
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
        let mut rest = &self.bytes[..];
        let mut last = Last::default();
        std::iter::from_fn(move || {
            let bytes = read_number(&mut rest)?;
            let journaled = bytes & 4 == 0;
            let id = last.step(read_number(&mut rest)?, journaled);
            let counted = if bytes & 2 == 2 { read_number(&mut rest)? } else { 0 };
            let expires =
                if bytes & 1 == 1 { Some(Deadline(Duration::from_nanos(read_number(&mut rest)?))) } else { None };
            Some(Entry {
                id,
                body: Body::Stored,
                expires,
                bytes: u32::try_from(bytes >> 3).unwrap_or(u32::MAX),
                counted: u32::try_from(counted).unwrap_or(u32::MAX),
                journaled,
                redelivered: false,
            })
        })
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

    pub(super) fn counted(&self) -> u64 {
        self.counted
    }

    pub(super) fn memory(&self) -> usize {
        size_of::<super::Page>() + self.bytes.len()
    }

    pub(super) fn first_from(&self, slot: usize) -> Option<usize> {
        self.live.first_from(slot)
    }

    /// The entry of a slot, if it is there.
    pub(super) fn get(&self, slot: usize) -> Option<Entry> {
        let before = (0..slot).filter(|&slot| self.written.has(slot)).count();
        let entry = self.live.has(slot).then(|| self.entries().nth(before))??;
        Some(Entry { redelivered: self.redelivered.has(slot), ..entry })
    }

    /// Takes an entry out for good, and says whether it would have expired. `None` if it is not there.
    pub(super) fn settle(&mut self, slot: usize) -> Option<(Settled, bool)> {
        if !self.live.has(slot) {
            return None;
        }
        let needs_entry = self.expiring > 0 || self.counted > 0 || self.transient > 0;
        let entry = if needs_entry { self.get(slot) } else { None };
        let (expires, counted, journaled) =
            entry.map_or((false, 0, true), |entry| (entry.expires.is_some(), entry.counted, entry.journaled));
        self.live.clear(slot);
        self.expiring -= usize::from(expires);
        self.counted -= u64::from(counted);
        Some((Settled { journaled, counted, message: None }, expires))
    }

    pub(super) fn flag_redelivered(&mut self, slot: usize) -> bool {
        self.redelivered.set(slot);
        self.live.has(slot)
    }

    pub(super) fn is_redelivered(&self, slot: usize) -> bool {
        self.live.has(slot) && self.redelivered.has(slot)
    }
}
