//! Entries of a queue as a checkpoint repeats them, in a few bytes each. Drawn in `docs/formats/changes.md`.

use crate::change::{Expiry, JournalPosition, NUMBERS_END, QueuePosition};
use crate::number::{read_number, write_number};

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
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Form {
    /// Without the bytes of bodies, as all are empty.
    #[default]
    Plain,
    /// With them.
    Counted,
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

    /// Those that were packed to these bytes, if they were.
    pub(super) fn from_bytes(bytes: &[u8], form: Form) -> Option<Self> {
        let entries = PageEntries { bytes: bytes.into(), form };
        let is_whole = entries.unpack().all(|entry| entry.is_some());
        is_whole.then_some(entries)
    }

    pub(super) fn as_bytes(&self) -> &[u8] {
        &self.bytes
    }

    pub(super) fn form(&self) -> Form {
        self.form
    }

    /// All of them.
    pub fn iter(&self) -> impl Iterator<Item = PageEntry> + '_ {
        self.unpack().flatten()
    }

    /// All of them; `None` in the place of what is none, and nothing behind it.
    fn unpack(&self) -> impl Iterator<Item = Option<PageEntry>> + '_ {
        let mut rest = &self.bytes[..];
        let (mut position, mut message) = (0_u64, 0_u64);
        std::iter::from_fn(move || {
            if rest.is_empty() {
                return None;
            }
            let entry = next(&mut rest, self.form, &mut position, &mut message);
            if entry.is_none() {
                rest = &[];
            }
            Some(entry)
        })
    }
}

fn next(rest: &mut &[u8], form: Form, position: &mut u64, message: &mut u64) -> Option<PageEntry> {
    *position = position.wrapping_add(read_number(rest)?);
    *message = message.wrapping_add(read_number(rest)?);
    let bytes = read_number(rest)?;
    let body_bytes = match form {
        Form::Plain => 0,
        Form::Counted => u32::try_from(read_number(rest)?).ok()?,
    };
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
