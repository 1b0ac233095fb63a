//! A page of an index: so many places that follow each other, open or packed.
//!
//! Owns: what lies at each place, and the sums over them.
//! Must not know: where in its queue it lies.

use super::packed::Packed;
use super::{Body, Entry, Needed};
use crate::limits::PAGE_ENTRIES;
use crate::memory::Meter;
use crate::message::MessageId;
use crate::scratch::{Place, Segment};

/// What a place takes in an open page.
pub(super) const ENTRY_BYTES: usize = size_of::<Option<Entry>>();

#[derive(Debug)]
pub(super) enum Page {
    Open(Open),
    Packed(Packed),
}

#[derive(Debug, Default)]
pub(super) struct Open {
    pub(super) entries: Vec<Option<Entry>>,
    pub(super) live: usize,
    pub(super) expiring: usize,
    pub(super) body_bytes: u64,
    /// Bodies in memory.
    pub(super) resident: usize,
    pub(super) needed: Needed,
    /// A message was put into it since it was looked at last.
    pub(super) is_growing: bool,
}

impl Default for Page {
    fn default() -> Self {
        Page::Open(Open::default())
    }
}

impl Page {
    pub(super) fn live(&self) -> usize {
        match self {
            Page::Open(open) => open.live,
            Page::Packed(packed) => packed.live(),
        }
    }

    pub(super) fn expiring(&self) -> usize {
        match self {
            Page::Open(open) => open.expiring,
            Page::Packed(packed) => packed.expiring(),
        }
    }

    pub(super) fn body_bytes(&self) -> u64 {
        match self {
            Page::Open(open) => open.body_bytes,
            Page::Packed(packed) => packed.body_bytes(),
        }
    }

    /// Whether no entry is added any more.
    pub(super) fn is_full(&self) -> bool {
        self.slots() == PAGE_ENTRIES
    }

    /// How long it is.
    pub(super) fn slots(&self) -> usize {
        match self {
            Page::Open(open) => open.entries.len(),
            Page::Packed(packed) => packed.slots(),
        }
    }

    /// Packs it, if it is open and no body of it is in memory.
    pub(super) fn pack(&mut self, meter: &Meter) {
        if let Page::Open(open) = self
            && let Some(packed) = open.pack()
        {
            meter.add(packed.memory());
            meter.subtract(self.memory());
            *self = packed;
        }
    }

    /// What it takes beside the bodies.
    pub(super) fn memory(&self) -> usize {
        match self {
            Page::Open(open) => open.entries.len() * ENTRY_BYTES,
            Page::Packed(packed) => packed.memory(),
        }
    }

    /// The first slot at or behind one that holds a message.
    pub(super) fn first_from(&self, slot: usize) -> Option<usize> {
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
    pub(super) fn push(&mut self, entry: Entry) {
        self.is_growing = true;
        self.live += 1;
        self.expiring += usize::from(entry.expires.is_some());
        self.body_bytes += u64::from(entry.body_bytes);
        self.resident += usize::from(entry.body.is_resident());
        self.entries.push(Some(entry));
    }

    /// The same packed, if no body is in memory.
    pub(super) fn pack(&mut self) -> Option<Page> {
        let is_packable = self.live > 0 && self.resident == 0;
        is_packable.then(|| Page::Packed(Packed::pack(&self.entries, std::mem::take(&mut self.needed))))
    }

    /// The body of a message is in a scratch segment from now on.
    pub(super) fn store(&mut self, slot: usize, segment: Segment, place: Place, meter: &Meter) {
        self.replace(slot, Body::Stored, meter);
        if let Some(Some(entry)) = self.entries.get_mut(slot) {
            entry.id = MessageId::scratch(place);
        }
        if !self.needed.iter().any(|needed| needed.number() == segment.number()) {
            self.needed.push(segment);
        }
    }

    /// Puts another body in the place of one that is there; false if there is none.
    pub(super) fn replace(&mut self, slot: usize, body: Body, meter: &Meter) -> bool {
        let Some(Some(entry)) = self.entries.get_mut(slot) else { return false };
        self.resident = self.resident + usize::from(body.is_resident()) - usize::from(entry.body.is_resident());
        body.count(meter);
        std::mem::replace(&mut entry.body, body).discount(meter);
        true
    }
}
