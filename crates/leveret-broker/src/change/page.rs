//! Entries of a queue as a checkpoint repeats them, in a few bytes each. Drawn in `docs/formats/changes.md`.
//!
//! A whole page of an index is a *block*: its entries are written as the index has them, so that a start takes it as it is.

use std::ops::{Range, RangeInclusive};

use crate::change::{Expiry, JournalPosition, NUMBERS_END, QueuePosition};
use crate::limits::PAGE_ENTRIES;
use crate::number::{read_number, write_number};
use crate::slots::{Lengths, Slots};

/// A journaled message that lies in a queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PageEntry {
    /// Its place in the queue.
    pub position: QueuePosition,
    /// The change that enqueued it: its name for life.
    pub message: JournalPosition,
    /// Bytes of the message.
    pub bytes: u32,
    /// Bytes of its body.
    pub body_bytes: u32,
    /// When it expires in the queue.
    pub expires: Option<Expiry>,
}

/// Entries in the order of their places, packed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PageEntries {
    bytes: Box<[u8]>,
    form: Form,
}

/// How entries are written.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) enum Form {
    /// Without the bytes of bodies, as all are empty.
    #[default]
    Plain,
    /// With them.
    Counted,
    /// As a whole page of an index.
    Block(Box<Block>),
}

/// A whole page of an index, in which nothing expires.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Block {
    /// The place of its first slot.
    pub(crate) first: QueuePosition,
    /// The slots that have a message.
    pub(crate) slots: Slots,
    /// How many these are.
    pub(crate) count: usize,
    /// Bytes of all bodies.
    pub(crate) body_bytes: u64,
    /// The least and the greatest of its messages.
    pub(crate) messages: (JournalPosition, JournalPosition),
}

impl Block {
    /// What a page comes to of which these slots have entries, if these bytes are so many and nothing else.
    fn of(first: QueuePosition, slots: Slots, bytes: &[u8]) -> Option<Self> {
        let count = slots.count();
        let (mut rest, mut message) = (bytes, 0);
        let (mut body_bytes, mut least, mut greatest) = (0, u64::MAX, 0);
        for _ in 0..count {
            let (lengths, _) = next_of_block(&mut rest, &mut message)?;
            body_bytes += u64::from(lengths.body_bytes);
            least = least.min(message);
            greatest = greatest.max(message);
        }
        let is_whole = count > 0 && rest.is_empty();
        let messages = (JournalPosition(least), JournalPosition(greatest));
        is_whole.then_some(Block { first, slots, count, body_bytes, messages })
    }
}

/// One more entry of a block: how long its message is, and which it is.
fn next_of_block(rest: &mut &[u8], message: &mut u64) -> Option<(Lengths, JournalPosition)> {
    let (lengths, flags) = Lengths::read(rest)?;
    *message = message.wrapping_add(read_number(rest)?);
    (flags == 0 && *message < NUMBERS_END).then_some((lengths, JournalPosition(*message)))
}

impl PageEntries {
    /// Packs entries.
    pub(crate) fn pack(entries: &[PageEntry]) -> Self {
        let form = if entries.iter().any(|entry| entry.body_bytes > 0) { Form::Counted } else { Form::Plain };
        let mut out = Vec::with_capacity(entries.len() * 4);
        let mut last = (0_u64, 0_u64);
        for &PageEntry { position, message, bytes, body_bytes, expires } in entries {
            write_number(&mut out, position.0.wrapping_sub(last.0));
            write_number(&mut out, message.0.wrapping_sub(last.1));
            write_number(&mut out, u64::from(bytes) << 1 | u64::from(expires.is_some()));
            if form == Form::Counted {
                write_number(&mut out, body_bytes.into());
            }
            if let Some(Expiry { wall_ms, time_to_live_ms }) = expires {
                write_number(&mut out, wall_ms);
                write_number(&mut out, time_to_live_ms);
            }
            last = (position.0, message.0);
        }
        PageEntries { bytes: out.into(), form }
    }

    /// Packs the entries that lie at these places, a page of an index or what there is of it.
    pub(crate) fn of_page(places: &Range<QueuePosition>, entries: &[PageEntry]) -> Self {
        let is_whole = places.end.0 - places.start.0 == PAGE_ENTRIES as u64;
        if is_whole && entries.iter().all(|entry| entry.expires.is_none()) {
            Self::block(places.start, entries)
        } else {
            Self::pack(entries)
        }
    }

    /// Packs the entries of a page that begins at this place.
    fn block(first: QueuePosition, entries: &[PageEntry]) -> Self {
        let (mut slots, mut bytes, mut last) = (Slots::default(), Vec::with_capacity(entries.len() * 4), 0);
        for &PageEntry { position, message, bytes: all, body_bytes, .. } in entries {
            slots.set(usize::try_from(position.0 - first.0).unwrap_or(PAGE_ENTRIES));
            Lengths { bytes: all, body_bytes }.write(&mut bytes, 0);
            write_number(&mut bytes, message.0.wrapping_sub(last));
            last = message.0;
        }
        let block = Block::of(first, slots, &bytes).expect("each slot that is set has one entry");
        PageEntries { bytes: bytes.into(), form: Form::Block(Box::new(block)) }
    }

    /// Those of a block, if these bytes are one.
    pub(super) fn from_block(first: QueuePosition, slots: Slots, bytes: &[u8]) -> Option<Self> {
        let block = Block::of(first, slots, bytes)?;
        Some(PageEntries { bytes: bytes.into(), form: Form::Block(Box::new(block)) })
    }

    /// Those that were packed to these bytes, if they were.
    pub(super) fn from_bytes(bytes: &[u8], form: Form) -> Option<Self> {
        let entries = PageEntries { bytes: bytes.into(), form };
        let is_whole = entries.unpack().all(|entry| entry.is_some());
        is_whole.then_some(entries)
    }

    pub(crate) fn as_bytes(&self) -> &[u8] {
        &self.bytes
    }

    pub(super) fn form(&self) -> &Form {
        &self.form
    }

    /// What is known of a block without looking at its entries.
    pub(crate) fn as_block(&self) -> Option<&Block> {
        if let Form::Block(block) = &self.form { Some(block) } else { None }
    }

    /// All of its messages are among these, if that is known without looking at them.
    pub fn messages(&self) -> Option<RangeInclusive<JournalPosition>> {
        self.as_block().map(|block| block.messages.0..=block.messages.1)
    }

    /// All of them.
    pub fn iter(&self) -> impl Iterator<Item = PageEntry> + '_ {
        self.unpack().flatten()
    }

    /// All of them; `None` in the place of what is none, and nothing behind it.
    fn unpack(&self) -> impl Iterator<Item = Option<PageEntry>> + '_ {
        let mut rest = &self.bytes[..];
        let (mut position, mut message) = (0_u64, 0_u64);
        let mut slots = self.as_block().map(|block| block.slots.iter());
        std::iter::from_fn(move || {
            if rest.is_empty() {
                return None;
            }
            let entry = match &self.form {
                Form::Plain => next(&mut rest, false, &mut position, &mut message),
                Form::Counted => next(&mut rest, true, &mut position, &mut message),
                Form::Block(block) => slots.as_mut().and_then(Iterator::next).and_then(|slot| {
                    let (Lengths { bytes, body_bytes }, message) = next_of_block(&mut rest, &mut message)?;
                    let position = QueuePosition(block.first.0.wrapping_add(slot as u64));
                    Some(PageEntry { position, message, bytes, body_bytes, expires: None })
                }),
            };
            if entry.is_none() {
                rest = &[];
            }
            Some(entry)
        })
    }
}

fn next(rest: &mut &[u8], is_counted: bool, position: &mut u64, message: &mut u64) -> Option<PageEntry> {
    *position = position.wrapping_add(read_number(rest)?);
    *message = message.wrapping_add(read_number(rest)?);
    let bytes = read_number(rest)?;
    let body_bytes = if is_counted { u32::try_from(read_number(rest)?).ok()? } else { 0 };
    let expires = if bytes & 1 == 1 {
        Some(Expiry { wall_ms: read_number(rest)?, time_to_live_ms: read_number(rest)? })
    } else {
        None
    };
    let bytes = u32::try_from(bytes >> 1).ok()?;
    if *message >= NUMBERS_END {
        return None;
    }
    let (position, message) = (QueuePosition(*position), JournalPosition(*message));
    Some(PageEntry { position, message, bytes, body_bytes, expires })
}
