//! The limit on memory: what the queues of all virtual hosts hold, and what happens when it is too much.
//!
//! Owns: the sum, and whether publishers wait.
//! Bodies that the journal keeps are let go, queue by queue. What cannot be let go makes publishers wait, until consumers
//! have made room.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicIsize, AtomicUsize, Ordering};

use leveret_broker::limits::READ_AHEAD_BYTES;
use leveret_broker::vhost::Sweep;
use leveret_broker::vhost::room::Room;
use tokio::sync::Notify;
use tokio::time::Instant;

use crate::hub::Hub;
use crate::limits::{BLOCKED_AFTER, MEMORY_LOOK_EVERY, PENDING_BYTES_MAX, READ_AHEAD_BYTES_MIN};
use crate::room::Rooms;

/// What a node holds in memory, and how much that may be.
#[derive(Debug)]
pub(crate) struct Memory {
    /// As the user gave it: for the process as a whole.
    limit: usize,
    /// What the virtual hosts hold. Less than nothing for a moment, when what was taken is told after it was given back.
    held: AtomicIsize,
    /// From this on, bodies are let go.
    mark: AtomicUsize,
    /// The keeper was told since it looked last.
    is_told: AtomicBool,
    tell: Notify,
}

impl Memory {
    /// A limit in bytes.
    pub(crate) fn new(limit: usize) -> Arc<Self> {
        let mark = AtomicUsize::new(limit / 10 * 4);
        Arc::new(Memory {
            limit,
            held: AtomicIsize::new(0),
            mark,
            is_told: AtomicBool::new(false),
            tell: Notify::new(),
        })
    }

    /// How much may wait for the journal before publishers do: twice as much is in memory while it is written.
    pub(crate) fn pending_bytes_max(&self) -> usize {
        (self.limit / 32).min(PENDING_BYTES_MAX)
    }

    /// A virtual host holds more or less than when it said so last.
    pub(crate) fn changed(&self, before: usize, now: usize) {
        let more = now.cast_signed().wrapping_sub(before.cast_signed());
        self.held.fetch_add(more, Ordering::Relaxed);
        if self.held() > self.mark.load(Ordering::Relaxed) && !self.is_told.swap(true, Ordering::Relaxed) {
            self.tell.notify_one();
        }
    }

    fn held(&self) -> usize {
        self.held.load(Ordering::Relaxed).max(0).cast_unsigned()
    }

    /// What of the limit queues may hold: half, as an allocator keeps much of what was given back to it, and less if the
    /// process as a whole takes more than nine tenths of the limit.
    pub(crate) fn budget(&self) -> usize {
        let aim = self.limit / 2;
        let excess = resident().map_or(0, |resident| resident.saturating_sub(self.limit / 10 * 9));
        // Memory that was given back to the allocator may still count as the process's. A part is for the queues whatever
        // is said; with less, nothing would go on.
        aim.saturating_sub(excess).max(self.limit / 4)
    }

    /// Keeps within the limit, as long as the server runs.
    pub(crate) async fn keep(self: Arc<Self>, hubs: Vec<Arc<Hub>>, rooms: Arc<Rooms>) {
        let mut sweeps: Vec<_> = hubs.iter().map(|_| Sweep::default()).collect();
        let (mut room, mut short_since) = (Room::Enough, Instant::now());
        let mut is_full = false;
        loop {
            if is_full {
                // What makes room is no event here: acks, a journal that comes further, a socket that takes bytes.
                tokio::time::sleep(MEMORY_LOOK_EVERY).await;
            } else {
                self.tell.notified().await;
            }
            self.is_told.store(false, Ordering::Relaxed);
            let budget = self.budget();
            let (enough, low) = (budget / 10 * 9, budget / 10 * 8);
            self.mark.store(enough, Ordering::Relaxed);
            let queues: usize = hubs.iter().map(|hub| hub.queue_count()).sum();
            let kept = (budget / 8 / queues.max(1)).clamp(READ_AHEAD_BYTES_MIN, READ_AHEAD_BYTES);
            for kept in [kept, 0] {
                for (hub, sweep) in hubs.iter().zip(&mut sweeps) {
                    while self.held() > low && hub.evict(sweep, kept) {
                        tokio::task::yield_now().await;
                    }
                }
                if self.held() <= enough {
                    break;
                }
            }
            is_full = self.held() > enough;
            let next = match room {
                _ if !is_full => Room::Enough,
                Room::Enough if self.held() > budget => {
                    short_since = Instant::now();
                    Room::Soon
                }
                // It takes a while before a wait for the disk is more than that.
                Room::Soon if short_since.elapsed() >= BLOCKED_AFTER => {
                    let held = self.held() >> 20;
                    tracing::warn!("low on memory: queues hold {held} MiB that cannot be let go; publishers wait");
                    Room::ShortOf { memory: true, disk: false }
                }
                room => room,
            };
            if matches!(room, Room::ShortOf { .. }) && next == Room::Enough {
                tracing::info!("enough memory again: queues hold {} MiB; publishers go on", self.held() >> 20);
            }
            room = next;
            rooms.set_memory(room);
        }
    }
}

/// Bytes of memory that the process has for itself, as the operating system counts them.
fn resident() -> Option<usize> {
    let text = std::fs::read_to_string("/proc/self/statm").ok()?;
    let mut pages = text.split_ascii_whitespace().skip(1).map(str::parse::<usize>);
    let (resident, shared) = (pages.next()?.ok()?, pages.next()?.ok()?);
    Some(resident.saturating_sub(shared) * rustix::param::page_size())
}

/// Bytes of memory that the machine has or, if that is less, the control group of this process.
pub(crate) fn available() -> Option<u64> {
    let mut system = sysinfo::System::new();
    system.refresh_memory();
    let group = system.cgroup_limits().map(|limits| limits.total_memory);
    Some(system.total_memory()).into_iter().chain(group).filter(|&bytes| bytes > 0).min()
}
