//! The limit on memory: what the queues of all virtual hosts hold, and what happens when it is too much.
//!
//! Owns: the sum, what is on its way to connections, and whether publishers wait.
//! Bodies are let go, queue by queue: the journal has those of its messages, others are written to scratch files first. What
//! cannot be let go makes publishers wait, until consumers have made room.

use std::collections::BTreeMap;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicIsize, AtomicUsize, Ordering};

use leveret_broker::limits::READ_AHEAD_BYTES;
use leveret_broker::vhost::Sweep;
use leveret_broker::vhost::room::Room;
use tokio::sync::Notify;
use tokio::time::Instant;

use crate::hubs::Hubs;
use crate::limits::{
    BLOCKED_AFTER, GIVE_BACK_EVERY, MEMORY_LOOK_EVERY, PENDING_BYTES_MAX, READ_AHEAD_BYTES_MIN, SPILL_RETRY_EVERY,
};
use crate::room::Rooms;
use crate::scratch::{Outcome, Spilling};

/// What a node holds in memory, and how much that may be.
#[derive(Debug)]
pub(crate) struct Memory {
    /// As the user gave it: for the process as a whole.
    limit: usize,
    /// What the virtual hosts hold. Less than nothing for a moment, when what was taken is told after it was given back.
    held: AtomicIsize,
    /// What was handed to connections and is not yet written to their sockets.
    on_the_way: AtomicUsize,
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
            on_the_way: AtomicUsize::new(0),
            mark,
            is_told: AtomicBool::new(false),
            tell: Notify::new(),
        })
    }

    /// The limit in bytes.
    pub(crate) fn limit(&self) -> usize {
        self.limit
    }

    /// How much may wait for the journal before publishers do: twice as much is in memory while it is written.
    pub(crate) fn pending_bytes_max(&self) -> usize {
        (self.limit / 32).min(PENDING_BYTES_MAX)
    }

    /// A virtual host holds more or less than when it said so last.
    pub(crate) fn changed(&self, before: usize, now: usize) {
        let more = now.cast_signed().wrapping_sub(before.cast_signed());
        self.held.fetch_add(more, Ordering::Relaxed);
        self.look();
    }

    /// Messages of so many bytes were handed to a connection.
    pub(crate) fn handed_out(&self, bytes: usize) {
        self.on_the_way.fetch_add(bytes, Ordering::Relaxed);
        self.look();
    }

    /// So many of them were written to its socket.
    pub(crate) fn written(&self, bytes: usize) {
        self.on_the_way.fetch_sub(bytes, Ordering::Relaxed);
    }

    /// Bytes of messages that may still be handed out: all together an eighth of the limit may be on the way.
    pub(crate) fn window_room(&self) -> usize {
        self.on_the_way_max().saturating_sub(self.on_the_way.load(Ordering::Relaxed))
    }

    fn on_the_way_max(&self) -> usize {
        self.limit / 8
    }

    /// Tells the keeper if too much is held.
    fn look(&self) {
        if self.held() > self.mark.load(Ordering::Relaxed) && !self.is_told.swap(true, Ordering::Relaxed) {
            self.tell.notify_one();
        }
    }

    fn held(&self) -> usize {
        let held = self.held.load(Ordering::Relaxed).max(0).cast_unsigned();
        // Of what clients do not read, publishers feel no more than what may be on its way.
        held + self.on_the_way.load(Ordering::Relaxed).min(self.on_the_way_max())
    }

    /// What of the limit queues may hold: half, as an allocator keeps much of what was given back to it, and less if the
    /// process as a whole takes more than nine tenths of the limit.
    pub(crate) fn budget(&self) -> usize {
        let aim = self.limit / 2;
        // Memory that was given back to the allocator may still count as the process's. A part is for the queues whatever
        // is said; with less, nothing would go on.
        aim.saturating_sub(self.excess()).max(self.limit / 4)
    }

    /// Bytes that the process takes above nine tenths of the limit.
    fn excess(&self) -> usize {
        resident().map_or(0, |resident| resident.saturating_sub(self.limit / 10 * 9))
    }
}

/// Keeps a node within its limit on memory.
pub(crate) struct Keeper {
    memory: Arc<Memory>,
    hubs: Arc<Hubs>,
    rooms: Arc<Rooms>,
    /// Where bodies are written of which no journal knows; none if nothing is kept.
    spilling: Option<Spilling>,
    /// By stream.
    sweeps: BTreeMap<u32, Sweep>,
    /// Nothing is written before that, as there was no room for it on the disk.
    refused_until: Option<Instant>,
    room: Room,
    short_since: Instant,
    /// Has the allocator give back what it keeps.
    give_back: fn(),
    /// Not before that.
    give_back_at: Instant,
}

/// How much memory queues may take now.
#[derive(Clone, Copy)]
struct Marks {
    /// Above that, publishers wait.
    budget: usize,
    /// Above that, bodies are let go,
    enough: usize,
    /// down to that.
    low: usize,
}

impl Keeper {
    pub(crate) fn new(
        memory: Arc<Memory>,
        hubs: Arc<Hubs>,
        rooms: Arc<Rooms>,
        spilling: Option<Spilling>,
        give_back: fn(),
    ) -> Self {
        let (sweeps, now) = (BTreeMap::new(), Instant::now());
        Keeper {
            memory,
            hubs,
            rooms,
            spilling,
            sweeps,
            refused_until: None,
            room: Room::Enough,
            short_since: now,
            give_back,
            give_back_at: now,
        }
    }

    /// Runs as long as the server does.
    pub(crate) async fn run(mut self) {
        loop {
            let is_calm =
                self.room == Room::Enough && self.memory.held() <= self.memory.mark.load(Ordering::Relaxed);
            if is_calm && self.memory.excess() == 0 {
                self.memory.tell.notified().await;
            } else if is_calm {
                // What was freed may still be the process's.
                let _is_told = tokio::time::timeout(GIVE_BACK_EVERY, self.memory.tell.notified()).await;
            } else {
                // What makes room is no event here: acks, a journal that comes further, a socket that takes bytes.
                tokio::time::sleep(MEMORY_LOOK_EVERY).await;
            }
            self.memory.is_told.store(false, Ordering::Relaxed);
            let marks = self.marks();
            let queues: usize = self.hubs.all().iter().map(|hub| hub.queue_count()).sum();
            let kept = (marks.budget / 8 / queues.max(1)).clamp(READ_AHEAD_BYTES_MIN, READ_AHEAD_BYTES);
            for kept in [kept, 0] {
                self.evict(kept).await;
                if self.memory.held() <= self.marks().enough {
                    break;
                }
            }
            self.give_back();
            self.tell_room();
        }
    }

    /// Has the allocator give back what was freed, if the process takes too much.
    fn give_back(&mut self) {
        if Instant::now() >= self.give_back_at && self.memory.excess() > 0 {
            (self.give_back)();
            self.give_back_at = Instant::now() + GIVE_BACK_EVERY;
        }
    }

    fn marks(&self) -> Marks {
        let budget = self.memory.budget();
        let (enough, low) = (budget / 10 * 9, budget / 10 * 8);
        self.memory.mark.store(enough, Ordering::Relaxed);
        Marks { budget, enough, low }
    }

    /// Goes round all queues once, until enough was let go.
    async fn evict(&mut self, kept: usize) {
        let mut low = self.marks().low;
        let hubs = self.hubs.all();
        self.sweeps.retain(|stream, _| hubs.iter().any(|hub| hub.stream() == *stream));
        for hub in hubs {
            let mut goes_on = true;
            while goes_on && self.memory.held() > low {
                let is_refused = self.refused_until.is_some_and(|until| Instant::now() < until);
                let spilling = self.spilling.clone().filter(|_| !is_refused);
                let (sweep, mut spills) = (self.sweeps.entry(hub.stream()).or_default(), Vec::new());
                goes_on = hub.evict(sweep, kept, spilling.is_some(), &mut spills);
                match spilling {
                    Some(spilling) if !spills.is_empty() => {
                        let outcome = self.watch(spilling.write(&hub, spills)).await;
                        let retry_at = Instant::now() + SPILL_RETRY_EVERY;
                        self.refused_until = (outcome == Outcome::Refused).then_some(retry_at);
                        low = self.tell_room().low;
                    }
                    _ => tokio::task::yield_now().await,
                }
            }
        }
    }

    /// Has publishers wait while something is written, should they be faster.
    async fn watch<T>(&mut self, writing: impl Future<Output = T>) -> T {
        let mut writing = pin!(writing);
        loop {
            let budget = self.marks().budget;
            self.memory.mark.store(budget, Ordering::Relaxed);
            self.memory.is_told.store(false, Ordering::Relaxed);
            let look = tokio::time::timeout(MEMORY_LOOK_EVERY, self.memory.tell.notified());
            tokio::select! {
                written = &mut writing => return written,
                _ = look => {
                    self.tell_room();
                }
            }
        }
    }

    /// Has publishers wait or go on.
    fn tell_room(&mut self) -> Marks {
        let marks = self.marks();
        let held = self.memory.held();
        let next = match self.room {
            _ if held <= marks.enough => Room::Enough,
            Room::Enough if held > marks.budget => {
                self.short_since = Instant::now();
                Room::Soon
            }
            // It takes a while before a wait for the disk is more than that.
            Room::Soon if self.short_since.elapsed() >= BLOCKED_AFTER => {
                tracing::warn!(
                    "low on memory: queues hold and connections have not read {} MiB that cannot be let go; publishers wait",
                    held >> 20
                );
                Room::ShortOf { memory: true, disk: false }
            }
            room => room,
        };
        if matches!(self.room, Room::ShortOf { .. }) && next == Room::Enough {
            tracing::info!(
                "enough memory again: queues hold and connections have not read {} MiB; publishers go on",
                held >> 20
            );
        }
        self.room = next;
        self.rooms.set_memory(next);
        marks
    }
}

/// Bytes of memory that the process has for itself, as the operating system counts them.
pub(crate) fn resident() -> Option<usize> {
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
