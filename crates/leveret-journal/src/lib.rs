//! The journal of the Leveret message broker: a segmented, checksummed, append-only log; and scratch files, for what
//! nobody needs after the process has ended.
//!
//! Must not know: what a record means. The formats are drawn in `docs/formats/journal.md` and `docs/formats/scratch.md`.
//!
//! [`Log::open`] reads everything back and gives a [`Log`] to append to. One thread owns it; what it appends is
//! durable when the call returns.

mod damage;
mod direct;
pub mod disk;
mod ended;
mod folder;
mod format;
mod judge;
mod keeper;
pub mod limits;
mod log;
mod map;
mod pieces;
mod reader;
mod real;
mod recovery;
mod scratch;
mod segments;
mod spares;
#[cfg(test)]
mod tests;

pub use self::damage::{Cut, Damage, Extent, Missing, Recovery};
pub use self::format::{Record, Salt};
pub use self::keeper::{Keeper, Living, Swept};
pub use self::log::{Batch, Log, LogError, Options};
pub use self::reader::{ReadError, Reader};
pub use self::real::{RealDisk, Writes, errno};
pub use self::recovery::{check, look};
pub use self::scratch::{Scratch, ScratchReader, remove_scratch};
pub use self::segments::{Doubt, OpenError, Outlook, look_ahead};
pub use self::spares::Spares;
