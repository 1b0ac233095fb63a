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

use leveret_broker::change::{ENQUEUED_RECORD_BYTES, MESSAGE_RECORD_BYTES};
use leveret_broker::node::recovery::NODE_STREAM;
use leveret_broker::vhost::checkpoint::Checkpoint;
use leveret_journal::{Keeper, Living, Swept};

use crate::hubs::Hubs;
use crate::journal::{AcksWait, Growth, Orders, WriterEnded};
use crate::limits::{
    CHECKPOINT_GROWTH, CHECKPOINT_GROWTH_MIN, CHECKPOINT_INTERVALS_MAX, CHECKPOINT_LIVING_PART,
    CHECKPOINT_LOOK_EVERY, CHECKPOINT_PENDING_BYTES, DISK_SHORT_LOOK_EVERY, FULL_RETRY_EVERY, SHORT_REST_FACTOR,
};
use crate::node::NodeKeeper;
use crate::space::Shortage;

/// The thread that writes checkpoints.
pub(crate) struct Checkpoints {
    is_stopping: Arc<AtomicBool>,
    wake: Sender<()>,
    thread: Option<JoinHandle<()>>,
}

/// What the thread works with.
pub(crate) struct Tools {
    pub(crate) hubs: Arc<Hubs>,
    pub(crate) node: Arc<NodeKeeper>,
    pub(crate) orders: Orders,
    pub(crate) growth: Arc<Growth>,
    /// Bytes that the log grows at least between two checkpoints.
    pub(crate) segment_bytes: u64,
    /// Bytes that the start had to read.
    pub(crate) recovered_bytes: u64,
    /// From this sequence on, the stream of the node says all that the start learnt from it.
    pub(crate) stated_from: u64,
    pub(crate) shortage: Arc<Shortage>,
}

impl Checkpoints {
    /// Starts the thread.
    pub(crate) fn start(tools: Tools, keeper: Keeper) -> std::io::Result<Self> {
        let (wake, woken) = channel();
        let is_stopping = Arc::new(AtomicBool::new(false));
        let thread = Thread { tools, keeper, is_stopping: Arc::clone(&is_stopping), wake: wake.clone(), woken };
        let thread = std::thread::Builder::new().name("checkpoints".into()).spawn(move || {
            // It ends with the journal, which says why.
            let _: Result<(), WriterEnded> = thread.run();
        })?;
        Ok(Checkpoints { is_stopping, wake, thread: Some(thread) })
    }
}

impl Drop for Checkpoints {
    /// Ends the thread, within a step. What it has not finished is worth nothing, and does no harm.
    fn drop(&mut self) {
        self.is_stopping.store(true, Ordering::Relaxed);
        let _ = self.wake.send(());
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

/// How far a checkpoint came.
#[derive(Clone, Copy, Debug)]
enum Outcome {
    Whole,
    /// It does not wait for room: what there is of it is worth nothing.
    NoRoom,
    /// The node stops.
    Stopped,
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
    /// Since then no checkpoint found room.
    refused: Option<Instant>,
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
        let recovered = hubs.all();
        let recovered = recovered.iter().map(|hub| hub.recovered_checkpoint());
        let node = [Some((NODE_STREAM, self.tools.stated_from))];
        let recovered = recovered.map(|(stream, begun)| Some((stream, begun?.0))).chain(node);
        let recovered = recovered.collect::<Option<BTreeMap<_, _>>>();
        let mut last = recovered.map(|at| Begun { at, offset: 0, others: None });
        let messages = hubs.all().iter().map(|hub| hub.durable_messages()).sum();
        let mut next = Next { at: *segment_bytes, messages, others: None, rested: Instant::now(), refused: None };
        let mut own = 0;
        while self.wait(&next, own) {
            let (began, others, short) = (Instant::now(), self.others(own), shortage.time());
            let (written, outcome) = self.write()?;
            own += written.changes;
            let Written { bytes, messages, .. } = written;
            tracing::debug!(bytes, messages, ?outcome, ?short, "a checkpoint ended");
            next.rested = Instant::now() + began.elapsed() * SHORT_REST_FACTOR;
            match outcome {
                Outcome::Whole => {
                    next.refused = None;
                    let alone = short.is_some() && short == shortage.time();
                    shortage.set_checkpoint(written.bytes, written.messages, alone);
                }
                Outcome::NoRoom => {
                    shortage.set_unfinished(bytes, messages);
                    next.refused.get_or_insert(began);
                    let _ = self.woken.recv_timeout(FULL_RETRY_EVERY);
                    continue;
                }
                Outcome::Stopped => break,
            }
            let begun = Begun { at: written.begun.clone(), offset: written.offset, others: Some(others) };
            let before = last.replace(begun);
            let needed_from = before.as_ref().map_or(0, |before| before.offset);
            if let Some(Begun { mut at, others, .. }) = before
                && {
                    // Nothing is wanted of those that are gone.
                    at.extend(hubs.gone().into_iter().map(|stream| (stream, u64::MAX)));
                    orders.begin_replay_at(at)?
                }
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
        }
        Ok(())
    }

    /// All changes that there were, but so many of checkpoints.
    fn others(&self, own: u64) -> u64 {
        // For a moment, one that goes counts nowhere.
        self.tools.hubs.changes().saturating_sub(own)
    }

    /// Waits for what the next checkpoint waits for, if so many changes were those of checkpoints; false if the node stops.
    fn wait(&self, next: &Next, own: u64) -> bool {
        let Tools { hubs, orders, growth, recovered_bytes, shortage, .. } = &self.tools;
        growth.tell_at(next.at.saturating_sub(*recovered_bytes), self.wake.clone());
        let (mut seen, mut looked, mut is_grown) = (growth.bytes(), Instant::now(), false);
        loop {
            let is_short = shortage.is_short();
            // What was settled since takes room until two checkpoints know of it.
            let is_due = is_short && next.others.is_none_or(|others| self.others(own) > others);
            // Where none wins room, those who ack have nothing to wait for.
            let is_refused = next.refused.is_some_and(|since| since.elapsed() >= CHECKPOINT_LOOK_EVERY);
            let (is_scarce, is_out) = (orders.is_scarce(), shortage.is_out());
            orders.set_acks_wait(if is_scarce && (is_refused || is_out) {
                AcksWait::No
            } else if is_scarce && is_short && !is_due {
                AcksWait::OnceThereIsMore
            } else {
                AcksWait::Yes
            });
            // Whoever has seen meanwhile that it is not so may have said so before this did.
            if is_out != shortage.is_out() {
                continue;
            }
            let is_rested = is_scarce || Instant::now() >= next.rested;
            if !is_out && (is_grown || (is_due && is_rested)) {
                return true;
            }
            let woken =
                self.woken.recv_timeout(if is_short { DISK_SHORT_LOOK_EVERY } else { CHECKPOINT_LOOK_EVERY });
            if self.is_stopping.load(Ordering::Relaxed) || woken == Err(RecvTimeoutError::Disconnected) {
                return false;
            }
            is_grown |= woken.is_ok();
            if looked.elapsed() < CHECKPOINT_LOOK_EVERY {
                continue;
            }
            let now = growth.bytes();
            let is_less = || hubs.all().iter().map(|hub| hub.durable_messages()).sum::<usize>() < next.messages / 2;
            is_grown |= now != seen && is_less();
            (seen, looked) = (now, Instant::now());
        }
    }

    /// Writes a checkpoint of all virtual hosts, and says how far that came.
    fn write(&self) -> Result<(Written, Outcome), WriterEnded> {
        let Tools { hubs, node, orders, growth, recovered_bytes, .. } = &self.tools;
        let (begun, living, offset) = (BTreeMap::new(), Living::default(), recovered_bytes + growth.bytes());
        let mut written = Written { begun, offset, bytes: 0, messages: 0, living, changes: 0 };
        // Behind what has no room there would be none for this, either.
        if !orders.flush()? {
            return Ok((written, Outcome::NoRoom));
        }
        let Some(stated) = node.restate()? else { return Ok((written, Outcome::NoRoom)) };
        written.begun.insert(NODE_STREAM, stated);
        for hub in hubs.all() {
            let (mut checkpoint, mut goes_on, mut flushed) = (Checkpoint::default(), true, 0);
            let bytes_before = written.bytes;
            while goes_on {
                if self.is_stopping.load(Ordering::Relaxed) {
                    return Ok((written, Outcome::Stopped));
                }
                let changes;
                (goes_on, changes) = hub.checkpoint(&mut checkpoint);
                written.changes += changes;
                written.bytes = bytes_before + checkpoint.bytes() as u64;
                let living = checkpoint.take_living();
                written.messages += living.len();
                let records = living.iter().filter_map(|&(message, bytes)| {
                    Some((message.position()?.0, u64::from(bytes) + MESSAGE_RECORD_BYTES))
                });
                self.keeper.note(&mut written.living, hub.stream(), records, ENQUEUED_RECORD_BYTES);
                // Not more at once than a disk takes in its stride.
                if !goes_on || checkpoint.bytes() - flushed >= CHECKPOINT_PENDING_BYTES {
                    flushed = checkpoint.bytes();
                    if !orders.flush()? {
                        return Ok((written, Outcome::NoRoom));
                    }
                }
            }
            written.begun.insert(hub.stream(), checkpoint.begun().0);
        }
        Ok((written, Outcome::Whole))
    }
}
