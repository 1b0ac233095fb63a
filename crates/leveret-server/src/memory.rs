//! The limit on memory: what the queues of all virtual hosts hold, and what happens when it is too much.
//!
//! Owns: the sum, what is on its way to connections, and whether publishers wait.
//! Bodies are let go, queue by queue: the journal has those of its messages, others are written to scratch files first. What
//! cannot be let go makes publishers wait, until consumers have made room.

use std::collections::BTreeMap;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicIsize, AtomicUsize, Ordering};

use leveret_broker::limits::{READ_AHEAD_BYTES, UNACKED_BYTES};
use leveret_broker::vhost::Sweep;
use leveret_broker::vhost::ledger::{Ceilings, Holdings};
use leveret_broker::vhost::room::Room;
use tokio::sync::Notify;
use tokio::time::Instant;

use crate::hubs::Hubs;
use crate::limits::{
    BLOCKED_AFTER, GIVE_BACK_EVERY, MEASURE_EVERY, MEMORY_LOOK_EVERY, PENDING_BYTES_MAX, READ_AHEAD_BYTES_MIN,
    SPILL_RETRY_EVERY, UNACKED_LEAST,
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
    /// The part of it in transactions, and what else they hold for clients; see the ledger of a virtual host.
    transactions: AtomicIsize,
    consumers: AtomicIsize,
    declared: AtomicIsize,
    /// What was handed to connections and is not yet written to their sockets.
    on_the_way: AtomicUsize,
    /// What of other answers wait to be written, of those who have many.
    unread: AtomicUsize,
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
            transactions: AtomicIsize::new(0),
            consumers: AtomicIsize::new(0),
            declared: AtomicIsize::new(0),
            on_the_way: AtomicUsize::new(0),
            unread: AtomicUsize::new(0),
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
        change(&self.held, before, now);
        self.look();
    }

    /// The same of what it holds for clients.
    pub(crate) fn holdings_changed(&self, before: Holdings, now: Holdings) {
        change(&self.transactions, before.transactions, now.transactions);
        change(&self.consumers, before.consumers, now.consumers);
        change(&self.declared, before.declared, now.declared);
    }

    /// How much a virtual host may hold for clients that holds so much: a quarter of the limit is for the transactions of all, an
    /// eighth for consumers, and a quarter for what is declared. What a channel knows of unacked deliveries may take a sixteenth.
    pub(crate) fn ceilings(&self, counted: Holdings) -> Ceilings {
        let ceiling = |share: usize, all: &AtomicIsize, own: usize| {
            let others = load(all).saturating_sub(own);
            share.saturating_sub(others)
        };
        let transactions = ceiling(self.limit / 4, &self.transactions, counted.transactions);
        Ceilings {
            transactions,
            others_transact: transactions < self.limit / 4,
            consumers: ceiling(self.limit / 8, &self.consumers, counted.consumers),
            declared: ceiling(self.limit / 4, &self.declared, counted.declared),
            unacked: ((self.limit / 16 / UNACKED_BYTES) as u64).max(UNACKED_LEAST),
        }
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

    /// Answers of so many bytes wait for a client, and of so many did when it said so last.
    pub(crate) fn unread_changed(&self, before: usize, now: usize) {
        // It wraps round where it is less.
        self.unread.fetch_add(now.wrapping_sub(before), Ordering::Relaxed);
    }

    /// Bytes of answers that may wait for one client: as many as are left for all, which have a sixteenth of the limit.
    pub(crate) fn unread_left(&self) -> usize {
        self.unread_max().saturating_sub(self.unread.load(Ordering::Relaxed))
    }

    fn unread_max(&self) -> usize {
        self.limit / 16
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
        let held = load(&self.held);
        // Of what clients do not read, publishers feel no more than what may be on its way.
        held + self.on_the_way.load(Ordering::Relaxed).min(self.on_the_way_max())
    }

    /// What of the limit virtual hosts may hold: half, as an allocator keeps much of what was given back to it, and less if the
    /// process as a whole takes more than nine tenths of the limit.
    pub(crate) fn budget(&self) -> usize {
        let aim = self.limit / 2;
        // Memory that was given back to the allocator may still count as the process's. A part is for the queues whatever
        // is said, and whatever transactions hold, which have a bound of their own; with less, nothing would go on.
        aim.saturating_sub(self.excess()).max(self.limit / 4 + load(&self.transactions).min(self.limit / 4))
    }

    /// Bytes that the process takes above nine tenths of the limit.
    fn excess(&self) -> usize {
        resident().map_or(0, |resident| resident.saturating_sub(self.limit / 10 * 9))
    }
}

fn change(sum: &AtomicIsize, before: usize, now: usize) {
    if now != before {
        sum.fetch_add(now.cast_signed().wrapping_sub(before.cast_signed()), Ordering::Relaxed);
    }
}

/// A sum that may be less than nothing for a moment.
fn load(sum: &AtomicIsize) -> usize {
    sum.load(Ordering::Relaxed).max(0).cast_unsigned()
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
                // Not all that a process takes is told.
                if tokio::time::timeout(MEASURE_EVERY, self.memory.tell.notified()).await.is_err() {
                    continue;
                }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_virtual_hosts_hold_for_clients_has_a_bound_together_and_leaves_a_part_to_queues() {
        const LIMIT: usize = 64 << 20;
        let memory = Memory::new(LIMIT);
        let holdings = |transactions, consumers, declared| Holdings { transactions, consumers, declared };
        let ceilings = |transactions, consumers, declared| {
            let others_transact = transactions < 16 << 20;
            Ceilings { transactions, others_transact, consumers, declared, unacked: 65_536 }
        };
        let (none, one) = (holdings(0, 0, 0), holdings(6 << 20, 2 << 20, 1 << 20));
        assert_eq!(memory.ceilings(none), ceilings(16 << 20, 8 << 20, 16 << 20));
        memory.holdings_changed(none, one);
        assert_eq!(memory.ceilings(one), ceilings(16 << 20, 8 << 20, 16 << 20), "of its own it has all");
        assert_eq!(memory.ceilings(none), ceilings(10 << 20, 6 << 20, 15 << 20), "another one has the rest");
        let full = holdings(40 << 20, 8 << 20, 16 << 20);
        memory.holdings_changed(one, full);
        assert_eq!(memory.ceilings(none), ceilings(0, 0, 0));
        assert_eq!(memory.budget(), LIMIT / 2, "a single transaction may be larger, and then counts like a queue");
        memory.holdings_changed(full, none);
        assert_eq!(memory.ceilings(none), ceilings(16 << 20, 8 << 20, 16 << 20));
        assert_eq!(Memory::new(1 << 20).ceilings(none).unacked, UNACKED_LEAST);
    }
}
