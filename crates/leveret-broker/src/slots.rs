//! What pages of a queue's index have in common with what checkpoints say of them: which slots have a message, and how
//! long messages are.

use crate::limits::PAGE_ENTRIES;
use crate::number::{read_number, write_number};

/// Bytes in which a checkpoint says which slots of a page have a message.
pub(crate) const SLOTS_BYTES: usize = PAGE_ENTRIES / 8;

/// One bit for each slot of a page.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Slots([u64; PAGE_ENTRIES / 64]);

impl Slots {
    pub(crate) fn has(&self, slot: usize) -> bool {
        self.0.get(slot / 64).is_some_and(|word| word >> (slot % 64) & 1 == 1)
    }

    pub(crate) fn set(&mut self, slot: usize) {
        if let Some(word) = self.0.get_mut(slot / 64) {
            *word |= 1 << (slot % 64);
        }
    }

    pub(crate) fn clear(&mut self, slot: usize) {
        if let Some(word) = self.0.get_mut(slot / 64) {
            *word &= !(1 << (slot % 64));
        }
    }

    pub(crate) fn count(&self) -> usize {
        self.0.iter().map(|word| word.count_ones() as usize).sum()
    }

    pub(crate) fn first_from(&self, slot: usize) -> Option<usize> {
        let first = slot / 64;
        self.0.iter().enumerate().skip(first).find_map(|(at, &word)| {
            let word = if at == first { word & (u64::MAX << (slot % 64)) } else { word };
            (word != 0).then(|| at * 64 + word.trailing_zeros() as usize)
        })
    }

    /// The slots that are set, in order.
    pub(crate) fn iter(&self) -> impl Iterator<Item = usize> + use<> {
        let words = self.0;
        let mut next = 0;
        std::iter::from_fn(move || {
            let found = Slots(words).first_from(next)?;
            next = found + 1;
            Some(found)
        })
    }

    /// The last slot that is set.
    pub(crate) fn last(&self) -> Option<usize> {
        let (at, word) = self.0.iter().enumerate().rev().find(|(_, word)| **word != 0)?;
        Some(at * 64 + 63 - word.leading_zeros() as usize)
    }

    /// Appends them to `out`: the first slot is the lowest bit of the first byte.
    pub(crate) fn write(&self, out: &mut Vec<u8>) {
        self.0.iter().for_each(|word| out.extend_from_slice(&word.to_le_bytes()));
    }

    /// Those that were written so.
    pub(crate) fn read(bytes: [u8; SLOTS_BYTES]) -> Self {
        let (words, _) = bytes.as_chunks();
        Slots(std::array::from_fn(|at| u64::from_le_bytes(words[at])))
    }
}

/// How long a message is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Lengths {
    /// Bytes of all of it.
    pub(crate) bytes: u32,
    /// Bytes of its body.
    pub(crate) body_bytes: u32,
}

impl Lengths {
    /// Appends it to `out`, with a number below 4: that and four times the bytes of the message, then how many of these are not
    /// of its body.
    pub(crate) fn write(self, out: &mut Vec<u8>, flags: u64) {
        write_number(out, u64::from(self.bytes) << 2 | flags);
        write_number(out, self.bytes.saturating_sub(self.body_bytes).into());
    }

    /// Takes it from the beginning of `bytes`, with that number.
    pub(crate) fn read(bytes: &mut &[u8]) -> Option<(Self, u64)> {
        let first = read_number(bytes)?;
        let beside_body = u32::try_from(read_number(bytes)?).ok()?;
        let bytes = u32::try_from(first >> 2).ok()?;
        Some((Lengths { bytes, body_bytes: bytes.checked_sub(beside_body)? }, first & 3))
    }
}
