//! The room on the disk: files made ready for the journal beside its writer, and publishers held while there is too little.
//!
//! Owns: how much is kept ready, when the rest is given back, and whether the disk has as much room as it must.
//!
//! Publishers come to wait while there is still room for everybody else: what consumers ack, what is purged and deleted,
//! and the checkpoints after it, by which room is won. Before others take the room of those, they wait, too, until that is
//! done. So whoever settles messages always wins room.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use bytesize::ByteSize;
use leveret_journal::{Reader, Spares};
use parking_lot::Mutex;

use crate::hubs::Hubs;
use crate::journal::{AcksWait, Orders};
use crate::limits::{
    CHECKPOINT_MESSAGE_BYTES, DISK_GIVE_EVERY, DISK_GIVE_MOST, DISK_GIVE_WITHIN, DISK_LOOK_EVERY,
    DISK_SHORT_LOOK_EVERY, RESERVE_CHECKPOINTS, RESERVE_SEGMENTS, SEGMENT_BYTES_LEAST, SEGMENT_BYTES_SMALL,
    SEGMENT_JOURNAL_PART, SEGMENT_LEFT_PART,
};
use crate::room::Rooms;

/// What is known of the room on the disk.
#[derive(Debug, Default)]
pub(crate) struct Shortage {
    is_short: AtomicBool,
    /// How often it became so.
    times: AtomicU64,
    /// There is less room than a checkpoint needs.
    is_out: AtomicBool,
    checkpoints: Mutex<Sizes>,
}

/// What checkpoints take.
#[derive(Clone, Copy, Debug, Default)]
struct Sizes {
    /// Bytes of the last two, as far as nothing but what will be settled lies between them, so that their room comes back.
    kept: [u64; 2],
    /// Bytes of the last one, as far as it came, and messages in it.
    measured: (u64, u64),
}

impl Sizes {
    /// Bytes of the next one, about, if there are so many messages.
    fn next(self, messages: u64) -> u64 {
        let (bytes, measured) = self.measured;
        match messages.checked_sub(measured) {
            Some(more) => bytes + more * CHECKPOINT_MESSAGE_BYTES,
            None => bytes.saturating_mul(messages + 1) / (measured + 1),
        }
    }

    /// Bytes that must be ready before publishers go on.
    fn reserve(self, messages: u64) -> u64 {
        RESERVE_CHECKPOINTS * self.next(messages)
    }

    /// Bytes of it that must be left while they are held, so that checkpoints can go on for ever.
    fn least(self, messages: u64) -> u64 {
        self.reserve(messages).saturating_sub(self.kept.iter().sum()).max(self.next(messages))
    }
}

impl Shortage {
    /// Whether less is free than must be.
    pub(crate) fn is_short(&self) -> bool {
        self.is_short.load(Ordering::Relaxed)
    }

    /// Whether a checkpoint would find no room.
    pub(crate) fn is_out(&self) -> bool {
        self.is_short() && self.is_out.load(Ordering::SeqCst)
    }

    /// Which of the times this is that less is free than must be, if that is so.
    pub(crate) fn time(&self) -> Option<u64> {
        self.is_short().then(|| self.times.load(Ordering::Relaxed))
    }

    /// A checkpoint took so many bytes for so many messages; nobody published meanwhile if it is `alone`.
    pub(crate) fn set_checkpoint(&self, bytes: u64, messages: usize, alone: bool) {
        let mut sizes = self.checkpoints.lock();
        let kept = if alone { bytes } else { 0 };
        *sizes = Sizes { kept: [sizes.kept[1], kept], measured: (bytes, messages as u64) };
    }

    /// One that was given up took so many bytes for so many messages. One that was not begun tells nothing.
    pub(crate) fn set_unfinished(&self, bytes: u64, messages: usize) {
        if messages > 0 {
            self.checkpoints.lock().measured = (bytes, messages as u64);
        }
    }
}

/// What the thread works with.
pub(crate) struct Tools {
    pub(crate) spares: Arc<Spares>,
    /// Knows how large the journal is.
    pub(crate) reader: Reader,
    pub(crate) orders: Orders,
    pub(crate) hubs: Arc<Hubs>,
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
        let mut looked = Looked { gave: Instant::now(), refused: None };
        tools.tell(&mut looked, tools.free_bytes() < tools.limit);
        let stopping = Arc::clone(&is_stopping);
        let thread = std::thread::Builder::new().name("space".into()).spawn(move || {
            while !stopping.load(Ordering::Relaxed) {
                let more = tools.look(&mut looked);
                let pause = if tools.shortage.is_short() {
                    DISK_SHORT_LOOK_EVERY
                } else if more > 0 {
                    pause_between(more).saturating_sub(looked.gave.elapsed())
                } else {
                    DISK_LOOK_EVERY
                };
                if !tools.spares.wait(pause) && more == 0 {
                    tools.spares.rest();
                }
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

/// What was seen, done and said.
struct Looked {
    /// When room was given back the last time.
    gave: Instant,
    /// Why no file could be made ready.
    refused: Option<String>,
}

/// How long after one file the next one gives its room back, if there are so many.
fn pause_between(more: u64) -> Duration {
    (DISK_GIVE_WITHIN / u32::try_from(more).unwrap_or(u32::MAX).max(1)).max(DISK_GIVE_EVERY)
}

impl Tools {
    /// A part of the journal, so that a small one takes little room, and of what is left of the disk, so that there is some for
    /// several.
    fn wanted_segment_bytes(&self) -> u64 {
        let part = (self.reader.journal_bytes() / SEGMENT_JOURNAL_PART).max(SEGMENT_BYTES_SMALL);
        let mut wanted = part.checked_next_power_of_two().unwrap_or(u64::MAX);
        let left = self.free_bytes().saturating_add(self.spares.bytes()).saturating_sub(self.limit);
        while wanted > SEGMENT_BYTES_LEAST.max(left / SEGMENT_LEFT_PART) {
            wanted /= 2;
        }
        wanted.min(self.segment_bytes)
    }

    /// A disk that does not say how much is free is asked for room all the same.
    fn free_bytes(&self) -> u64 {
        self.spares.free_bytes().unwrap_or(u64::MAX)
    }

    /// Returns how many files have room to give back.
    fn look(&self, looked: &mut Looked) -> u64 {
        self.spares.set_segment_bytes(self.wanted_segment_bytes());
        let bytes = self.spares.segment_bytes();
        let messages = self.hubs.all().iter().map(|hub| hub.durable_messages() as u64).sum();
        let sizes = *self.shortage.checkpoints.lock();
        let checkpoints = usize::try_from(sizes.reserve(messages).div_ceil(bytes)).unwrap_or(usize::MAX / 4);
        let reserve = RESERVE_SEGMENTS + checkpoints;
        // One more for publishers, as long as that leaves as much free as must be.
        let missing = if self.spares.fitting_bytes() > reserve as u64 * bytes { 0 } else { bytes };
        let has_room = self.free_bytes().saturating_sub(missing) >= self.limit;
        let kept = if has_room {
            // A disk may have less room than it says.
            let again = |_| self.spares.keep(reserve, reserve + 1).map(|()| 0);
            self.keep_calmly(looked, reserve).or_else(again)
        } else {
            self.spares.keep(reserve, reserve).map(|()| 0)
        };
        let more = kept.as_ref().copied().unwrap_or(0);
        let free = self.free_bytes();
        let is_short = free < self.limit || kept.is_err();
        looked.refused = kept.err().map(|error| error.to_string());
        let room = free.saturating_add(self.spares.bytes());
        let is_out = room / 8 * 7 < sizes.next(messages);
        if self.shortage.is_out.swap(is_out, Ordering::SeqCst) && !is_out {
            // What was won is for the next checkpoint. Who acks would take it before that looks again.
            self.orders.set_acks_wait(AcksWait::Yes);
        }
        let (next, least) = (sizes.next(messages), sizes.least(messages));
        tracing::debug!(messages, reserve, ready = self.spares.bytes(), free, is_short, next, least, "the disk");
        self.tell(looked, is_short);
        self.spares.is_seen();
        // What waits to be written when publishers come to wait must leave the reserve alone, and acks what checkpoints need.
        self.orders.set_room(bytes, sizes.least(messages) + 2 * bytes);
        more
    }

    /// Makes files ready and, from time to time, gives the room of one back; how many have some.
    fn keep_calmly(&self, looked: &mut Looked, reserve: usize) -> std::io::Result<u64> {
        let more = self.spares.keep_calmly(reserve, reserve + 1)?;
        if more > 0 && looked.gave.elapsed() >= pause_between(more) {
            for _ in 0..=more / DISK_GIVE_MOST {
                self.spares.give_some_back()?;
            }
            looked.gave = Instant::now();
        }
        Ok(more)
    }

    fn tell(&self, looked: &mut Looked, is_short: bool) {
        if self.shortage.is_short.swap(is_short, Ordering::Relaxed) == is_short {
            return;
        }
        self.shortage.times.fetch_add(u64::from(is_short), Ordering::Relaxed);
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn room_is_kept_for_checkpoints_of_what_lies_in_queues_now() {
        let shortage = Shortage::default();
        let sizes = |messages| {
            let sizes = shortage.checkpoints.lock();
            (sizes.reserve(messages), sizes.least(messages))
        };
        assert_eq!((sizes(0), sizes(1000)), ((0, 0), (24_000, 24_000)), "before there was any");
        shortage.set_checkpoint(100, 10, false);
        assert_eq!(sizes(110), (2700, 2700), "there are more messages than it knew");
        shortage.set_checkpoint(900, 110, true);
        assert_eq!(sizes(110), (2700, 1800), "two beside the one that is there");
        shortage.set_checkpoint(900, 110, true);
        assert_eq!(sizes(110), (2700, 900), "the next one, after which the last but one is needed no more");
        assert!(sizes(10).0 < 300, "what was drained needs little");
        shortage.set_unfinished(2000, 100);
        assert_eq!(sizes(110), (6240, 4440), "they take more than was thought");
        shortage.set_unfinished(0, 0);
        assert_eq!(sizes(110), (6240, 4440), "it did not come so far as to measure anything");
    }
}
