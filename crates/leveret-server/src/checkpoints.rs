//! Checkpoints, so that a start need not read everything, and taking back the room of what it need not.
//!
//! Owns: when a checkpoint is written, and which of them a start begins with: the last but one, so that damage of
//! one leaves another.
//! Must not know: what a checkpoint says.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread::JoinHandle;
use std::time::Instant;

use leveret_broker::vhost::checkpoint::Checkpoint;
use leveret_journal::{Keeper, Living, Swept};

use crate::hub::Hub;
use crate::journal::{Growth, Orders, WriterEnded};
use crate::limits::{
    CHECKPOINT_GROWTH, CHECKPOINT_GROWTH_MIN, CHECKPOINT_INTERVALS_MAX, CHECKPOINT_LIVING_PART,
    CHECKPOINT_LOOK_EVERY, CHECKPOINT_PENDING_BYTES, DISK_SHORT_LOOK_EVERY, ENQUEUED_RECORD_BYTES,
    MESSAGE_RECORD_BYTES, SHORT_REST_FACTOR,
};
use crate::recovery::NODE_STREAM;
use crate::space::Shortage;

/// The thread that writes checkpoints.
pub(crate) struct Checkpoints {
    is_stopping: Arc<AtomicBool>,
    wake: Sender<()>,
    orders: Orders,
    thread: Option<JoinHandle<()>>,
}

/// What the thread works with.
pub(crate) struct Tools {
    pub(crate) hubs: Vec<Arc<Hub>>,
    pub(crate) orders: Orders,
    pub(crate) growth: Arc<Growth>,
    /// Bytes that the log grows at least between two checkpoints.
    pub(crate) segment_bytes: u64,
    /// Bytes that the start had to read.
    pub(crate) recovered_bytes: u64,
    pub(crate) shortage: Arc<Shortage>,
}

impl Checkpoints {
    /// Starts the thread.
    pub(crate) fn start(tools: Tools, keeper: Keeper) -> std::io::Result<Self> {
        let (wake, woken) = channel();
        let is_stopping = Arc::new(AtomicBool::new(false));
        let orders = tools.orders.clone();
        let thread = Thread { tools, keeper, is_stopping: Arc::clone(&is_stopping), wake: wake.clone(), woken };
        let thread = std::thread::Builder::new().name("checkpoints".into()).spawn(move || {
            // It ends with the journal, which says why.
            let _: Result<(), WriterEnded> = thread.run();
        })?;
        Ok(Checkpoints { is_stopping, wake, orders, thread: Some(thread) })
    }
}

impl Drop for Checkpoints {
    /// Ends the thread, within a step. What it has not finished is worth nothing, and does no harm.
    fn drop(&mut self) {
        self.is_stopping.store(true, Ordering::Relaxed);
        let _ = self.wake.send(());
        // It may wait for the journal, and that for a full disk.
        self.orders.give_up_when_full();
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the thread that writes checkpoints has panicked");
        }
    }
}

struct Thread {
    tools: Tools,
    keeper: Keeper,
    is_stopping: Arc<AtomicBool>,
    wake: Sender<()>,
    woken: Receiver<()>,
}

/// A checkpoint of all virtual hosts.
struct Written {
    /// Where it begins in each stream.
    begun: BTreeMap<u32, u64>,
    /// Bytes of the journal that a start would have to read before it.
    offset: u64,
    bytes: u64,
    messages: usize,
    living: Living,
    /// Changes that it took.
    changes: u64,
}

/// A checkpoint that a start may begin with.
struct Begun {
    /// Where it begins in each stream.
    at: BTreeMap<u32, u64>,
    /// Bytes of the journal that a start would have to read before it.
    offset: u64,
    /// How many changes there were before it, but those of checkpoints; none if an earlier process wrote it.
    others: Option<u64>,
}

/// What the next checkpoint waits for.
struct Next {
    /// The journal has grown so far.
    at: u64,
    /// More than half of so many messages are gone.
    messages: usize,
    /// The disk is short of room, and there were more changes than these, but for those of checkpoints: a start reads what
    /// came since, though it may need nothing of it.
    others: Option<u64>,
    /// What the last one took passed a few times, so that a disk that is short of room has time for others.
    rested: Instant,
}

impl Written {
    /// Bytes that the journal grows before the next one.
    fn interval(&self, segment_bytes: u64) -> u64 {
        let most = self.living.bytes() / CHECKPOINT_LIVING_PART;
        let wanted = (self.bytes * CHECKPOINT_GROWTH).min(most);
        wanted.max(self.bytes * CHECKPOINT_GROWTH_MIN).max(segment_bytes)
    }
}

impl Thread {
    fn run(mut self) -> Result<(), WriterEnded> {
        let Tools { hubs, orders, growth, segment_bytes, shortage, .. } = &self.tools;
        let recovered = hubs.iter().map(|hub| hub.recovered_checkpoint());
        let recovered = recovered.map(|(stream, begun)| Some((stream, begun?.0)));
        let recovered = recovered.collect::<Option<BTreeMap<_, _>>>();
        let mut last = recovered.map(|at| Begun { at, offset: 0, others: None });
        let messages = hubs.iter().map(|hub| hub.durable_messages()).sum();
        let mut next = Next { at: *segment_bytes, messages, others: None, rested: Instant::now() };
        let mut own = 0;
        while self.wait(&next, own) {
            let (began, others) = (Instant::now(), self.changes() - own);
            let Some(written) = self.write()? else { break };
            own += written.changes;
            shortage.set_checkpoint_bytes(written.bytes);
            let begun = Begun { at: written.begun.clone(), offset: written.offset, others: Some(others) };
            let before = last.replace(begun);
            let needed_from = before.as_ref().map_or(0, |before| before.offset);
            if let Some(Begun { at, others, .. }) = before
                && orders.begin_replay_at(at)?
            {
                next.others = others;
                let is_stopping = &self.is_stopping;
                match self.keeper.sweep(&written.living, &|| is_stopping.load(Ordering::Relaxed)) {
                    Ok(Swept { removed, compacted, old_bytes }) => {
                        tracing::debug!(removed, compacted, old_bytes, "the journal was swept");
                    }
                    Err(error) => tracing::warn!("the journal keeps room that nobody needs: {error}"),
                }
            }
            let interval = written.interval(*segment_bytes);
            let now = self.tools.recovered_bytes + growth.bytes();
            // What a start would have to read takes room, too.
            let is_long = now - needed_from > CHECKPOINT_INTERVALS_MAX * interval;
            next.at = if is_long { now } else { written.offset + interval };
            next.messages = written.messages;
            next.rested = Instant::now() + began.elapsed() * SHORT_REST_FACTOR;
        }
        Ok(())
    }

    /// All changes that there were.
    fn changes(&self) -> u64 {
        self.tools.hubs.iter().map(|hub| hub.position().0).sum()
    }

    /// Waits for what the next checkpoint waits for, if so many changes were those of checkpoints; false if the node stops.
    fn wait(&self, next: &Next, own: u64) -> bool {
        let Tools { hubs, growth, recovered_bytes, shortage, .. } = &self.tools;
        growth.tell_at(next.at.saturating_sub(*recovered_bytes), self.wake.clone());
        let (mut seen, mut looked) = (growth.bytes(), Instant::now());
        loop {
            let is_short = shortage.is_short();
            let woken =
                self.woken.recv_timeout(if is_short { DISK_SHORT_LOOK_EVERY } else { CHECKPOINT_LOOK_EVERY });
            if self.is_stopping.load(Ordering::Relaxed) || woken == Err(RecvTimeoutError::Disconnected) {
                return false;
            }
            // What was settled since takes room until two checkpoints know of it.
            let is_due = || next.others.is_none_or(|others| self.changes() - own > others);
            if woken.is_ok() || (is_short && Instant::now() >= next.rested && is_due()) {
                return true;
            }
            if looked.elapsed() < CHECKPOINT_LOOK_EVERY {
                continue;
            }
            let now = growth.bytes();
            let is_less = || hubs.iter().map(|hub| hub.durable_messages()).sum::<usize>() < next.messages / 2;
            if now != seen && is_less() {
                return true;
            }
            (seen, looked) = (now, Instant::now());
        }
    }

    /// Writes a checkpoint of all virtual hosts; none if the node stops.
    fn write(&self) -> Result<Option<Written>, WriterEnded> {
        let Tools { hubs, orders, growth, recovered_bytes, .. } = &self.tools;
        let (begun, living, offset) = (BTreeMap::new(), Living::default(), recovered_bytes + growth.bytes());
        let mut written = Written { begun, offset, bytes: 0, messages: 0, living, changes: 0 };
        let node = orders.append_to_node(hubs.iter().map(|hub| hub.added()).collect())?;
        written.begun.insert(NODE_STREAM, node);
        for hub in hubs {
            let (mut checkpoint, mut goes_on, mut flushed) = (Checkpoint::default(), true, 0);
            while goes_on {
                if self.is_stopping.load(Ordering::Relaxed) {
                    return Ok(None);
                }
                let changes;
                (goes_on, changes) = hub.checkpoint(&mut checkpoint);
                written.changes += changes;
                let living = checkpoint.take_living();
                written.messages += living.len();
                let records = living.iter().filter_map(|&(message, bytes)| {
                    Some((message.position()?.0, u64::from(bytes) + MESSAGE_RECORD_BYTES))
                });
                self.keeper.note(&mut written.living, hub.stream(), records, ENQUEUED_RECORD_BYTES);
                // Not more at once than a disk takes in its stride.
                if !goes_on || checkpoint.bytes() - flushed >= CHECKPOINT_PENDING_BYTES {
                    flushed = checkpoint.bytes();
                    orders.flush()?;
                }
            }
            written.begun.insert(hub.stream(), checkpoint.begun().0);
            written.bytes += checkpoint.bytes() as u64;
        }
        Ok(Some(written))
    }
}
