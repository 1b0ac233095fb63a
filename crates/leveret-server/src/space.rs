//! The room on the disk: files made ready for the journal beside its writer, and publishers held while there is too little.
//!
//! Owns: how much is kept ready, and whether the disk has as much room as it must.
//!
//! Publishers come to wait while there is still room for everybody else: what consumers ack, what is purged and deleted,
//! and the checkpoint after it, by which room is won.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;

use bytesize::ByteSize;
use leveret_journal::{Reader, Spares};

use crate::journal::Orders;
use crate::limits::{
    DISK_LOOK_EVERY, DISK_SHORT_LOOK_EVERY, RESERVE_SEGMENTS, SEGMENT_BYTES_SMALL, SEGMENT_JOURNAL_PART,
};
use crate::room::Rooms;

/// What is known of the room on the disk.
#[derive(Debug, Default)]
pub(crate) struct Shortage {
    is_short: AtomicBool,
    checkpoint_bytes: AtomicU64,
}

impl Shortage {
    /// Whether less is free than must be.
    pub(crate) fn is_short(&self) -> bool {
        self.is_short.load(Ordering::Relaxed)
    }

    /// The last checkpoint had so many bytes.
    pub(crate) fn set_checkpoint_bytes(&self, bytes: u64) {
        self.checkpoint_bytes.store(bytes, Ordering::Relaxed);
    }
}

/// What the thread works with.
pub(crate) struct Tools {
    pub(crate) spares: Arc<Spares>,
    /// Knows how large the journal is.
    pub(crate) reader: Reader,
    pub(crate) orders: Orders,
    pub(crate) rooms: Arc<Rooms>,
    pub(crate) shortage: Arc<Shortage>,
    /// The largest size of a segment.
    pub(crate) segment_bytes: u64,
    /// Bytes that must be free.
    pub(crate) limit: u64,
}

/// The thread that looks after the room on the disk.
pub(crate) struct Space {
    is_stopping: Arc<AtomicBool>,
    spares: Arc<Spares>,
    thread: Option<JoinHandle<()>>,
}

impl Space {
    /// Looks for the first time, and starts the thread.
    pub(crate) fn start(tools: Tools) -> std::io::Result<Self> {
        let (is_stopping, spares) = (Arc::new(AtomicBool::new(false)), Arc::clone(&tools.spares));
        // Files are made ready by the thread, but nobody publishes before it is known that there is room.
        tools.spares.set_segment_bytes(tools.wanted_segment_bytes());
        let mut looked = Looked::default();
        tools.tell(&mut looked, tools.free_bytes() < tools.limit);
        let stopping = Arc::clone(&is_stopping);
        let thread = std::thread::Builder::new().name("space".into()).spawn(move || {
            while !stopping.load(Ordering::Relaxed) {
                tools.look(&mut looked);
                let is_short = tools.shortage.is_short();
                tools.spares.wait(if is_short { DISK_SHORT_LOOK_EVERY } else { DISK_LOOK_EVERY });
            }
        })?;
        Ok(Space { is_stopping, spares, thread: Some(thread) })
    }
}

impl Drop for Space {
    fn drop(&mut self) {
        self.is_stopping.store(true, Ordering::Relaxed);
        self.spares.wake();
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the thread that looks after the room on the disk has panicked");
        }
    }
}

/// What was seen and said.
#[derive(Default)]
struct Looked {
    /// Why no file could be made ready.
    refused: Option<String>,
}

impl Tools {
    /// A part of the journal, so that a small one takes little room.
    fn wanted_segment_bytes(&self) -> u64 {
        let part = (self.reader.journal_bytes() / SEGMENT_JOURNAL_PART).max(SEGMENT_BYTES_SMALL);
        part.checked_next_power_of_two().unwrap_or(u64::MAX).min(self.segment_bytes)
    }

    /// A disk that does not say how much is free is asked for room all the same.
    fn free_bytes(&self) -> u64 {
        self.spares.free_bytes().unwrap_or(u64::MAX)
    }

    fn look(&self, looked: &mut Looked) {
        self.spares.set_segment_bytes(self.wanted_segment_bytes());
        let bytes = self.spares.segment_bytes();
        let checkpoint = self.shortage.checkpoint_bytes.load(Ordering::Relaxed).div_ceil(bytes);
        let reserve = RESERVE_SEGMENTS + usize::try_from(checkpoint).unwrap_or(usize::MAX / 2);
        // One more for publishers, as long as that leaves as much free as must be.
        let missing = if self.spares.count() > reserve { 0 } else { bytes };
        let has_room = self.free_bytes().saturating_sub(missing) >= self.limit;
        let kept = self.spares.keep(reserve, reserve + usize::from(has_room));
        let is_short = self.free_bytes() < self.limit || kept.is_err();
        looked.refused = kept.err().map(|error| error.to_string());
        self.tell(looked, is_short);
        self.spares.is_seen();
        // What waits to be written when publishers come to wait must leave the reserve alone.
        self.orders.set_room(bytes);
    }

    fn tell(&self, looked: &mut Looked, is_short: bool) {
        if self.shortage.is_short.swap(is_short, Ordering::Relaxed) == is_short {
            return;
        }
        self.rooms.set_short_of_disk(is_short);
        let (free, limit) = (ByteSize(self.free_bytes()), ByteSize(self.limit));
        if is_short {
            let refused = looked.refused.take().map(|why| format!("; no file can be made ready: {why}"));
            tracing::warn!(
                "low on disk: {free} are free where the data folder is, and {limit} must be (--disk-free-limit){}; \
                 publishers wait until there is room, everybody else goes on",
                refused.unwrap_or_default()
            );
        } else {
            tracing::info!("enough room on the disk again: {free} are free; publishers go on");
        }
    }
}
