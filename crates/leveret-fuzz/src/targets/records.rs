//! What is in a journal: changes, folded to a node with its virtual hosts, which then say in a checkpoint what is true.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use leveret_amqp::ShortStr;
use leveret_broker::change::{NodeChange, QueueNumber, QueuePosition};
use leveret_broker::limits::PATTERN_BYTES_MAX;
use leveret_broker::names::VhostName;
use leveret_broker::node::recovery::{Fold, NODE_STREAM};
use leveret_broker::vhost::apply::ApplyError;
use leveret_broker::vhost::checkpoint::Checkpoint;
use leveret_broker::{Change, Effects, JournalPosition, Moment, VirtualHost};

use crate::allowance::{QUEUE_WORTH, in_all};
use crate::bytes::Bytes;

const NOW: Moment = Moment { monotonic: Duration::from_secs(1), wall: Duration::from_secs(1_700_000_000) };

/// Bytes that a virtual host counts for beside its records: with none, it takes 24,000.
const VHOST_WORTH: usize = 512;

/// The same for a pattern, which has a bound of its own when it is compiled, however short it is.
const PATTERN_WORTH: usize = PATTERN_BYTES_MAX / 16;

/// The same for a message behind places of its queue that stay empty: the page before it and its own are opened for it, 18,000 each,
/// and may double on the way.
const GAP_WORTH: usize = 768;

/// Records that may be damaged in a way that no checksum shows: those that fit are taken, and all else is set aside.
pub(super) fn checkpoint(input: &[u8]) {
    let mut bytes = Bytes::new(input);
    let slash = VhostName::new(ShortStr::truncated("/"));
    let first = bytes.flag().then(|| slash.clone());
    let missing = u64::from(bytes.u8() % 4);
    let (mut records, mut sequences) = (Vec::new(), [0_u64; 4]);
    let mut worth = Worth::default();
    while !bytes.is_empty() {
        let head = bytes.u8();
        let stream = head & 3;
        let sequence = &mut sequences[usize::from(stream)];
        *sequence += u64::from(head >> 2 & 3).max(1);
        let length = if head >> 4 & 1 == 1 { bytes.u16() } else { bytes.u8().into() };
        let payload = bytes.take(length.into());
        check_change(stream.into(), payload);
        let is_taken = if u32::from(stream) == NODE_STREAM {
            if let Ok(change) = NodeChange::decode(payload) {
                worth.add_of_node(&change);
            }
            true
        } else {
            let change = Change::decode(payload).ok().filter(is_near);
            if let Some(change) = &change {
                worth.add(stream, change);
            }
            change.is_some()
        };
        if is_taken {
            records.push((u32::from(stream), *sequence, payload));
        }
    }
    let folded = in_all(input.len() + worth.bytes(), || {
        let mut fold = Fold::new(first, || [7; 32]);
        for (stream, sequence, payload) in records {
            fold.take(NOW, stream, sequence, payload, &mut |_| {});
        }
        let streams = (0..).zip(sequences).filter(|(_, last)| *last > 0).collect();
        fold.end(missing, &streams);
        assert!(fold.faults().set_aside == 0 || fold.faults().first.is_some());
        fold.finish(streams.into_keys())
    });
    for (_, vhost) in folded.vhosts {
        restate(vhost);
    }
}

/// What records begin that takes more than they are long.
#[derive(Default)]
struct Worth {
    vhosts: usize,
    streams: BTreeSet<u8>,
    queues: usize,
    patterns: usize,
    gaps: usize,
    /// For each stream and queue, whether in pages of a checkpoint, the place behind the last message.
    next: BTreeMap<(u8, QueueNumber, bool), u64>,
}

impl Worth {
    fn add_of_node(&mut self, change: &NodeChange) {
        match change {
            NodeChange::VhostAdded { .. } => self.vhosts += 1,
            NodeChange::PermissionsSet { .. } => self.patterns += 3,
            NodeChange::TopicPermissionsSet { .. } => self.patterns += 2,
            _ => {}
        }
    }

    fn add(&mut self, stream: u8, change: &Change) {
        self.streams.insert(stream);
        match change {
            Change::MessageEnqueued { queues, .. } => {
                queues.iter().for_each(|enqueued| self.put(stream, enqueued.queue, false, enqueued.position));
            }
            Change::QueuePage { queue, entries } => {
                entries.iter().for_each(|entry| self.put(stream, *queue, true, entry.position));
            }
            Change::QueueDeclared { .. }
            | Change::DelayQueueDeclared { .. }
            | Change::DelayQueueRestated { .. } => {
                self.queues += 1;
            }
            Change::QueueRestated { queue, next, .. } => {
                self.queues += 1;
                self.put(stream, *queue, true, *next);
            }
            Change::LevelRestated { queue, next, .. } => self.put(stream, *queue, true, *next),
            Change::PolicySet(_) => self.patterns += 1,
            _ => {}
        }
    }

    /// A message lies at this place.
    fn put(&mut self, stream: u8, queue: QueueNumber, in_pages: bool, place: QueuePosition) {
        let next = self.next.insert((stream, queue, in_pages), place.0.wrapping_add(1)).unwrap_or_default();
        self.gaps += usize::from(place.0 != next);
    }

    fn bytes(&self) -> usize {
        (self.vhosts + self.streams.len()) * VHOST_WORTH
            + self.queues * QUEUE_WORTH
            + self.patterns * PATTERN_WORTH
            + self.gaps * GAP_WORTH
    }
}

/// A queue has 8 bytes for each 256 places between two messages, up to two trillion of them: a journal may say so, as its
/// checksums show who wrote it, but no input pays for it.
fn is_near(change: &Change) -> bool {
    /// What stands above says the priority.
    const PLACES: u64 = (1 << 54) - 1;
    let is_near = |place: QueuePosition| place.0 & PLACES < 1 << 12;
    match change {
        Change::MessageEnqueued { queues, .. } => queues.iter().all(|enqueued| is_near(enqueued.position)),
        Change::QueuePage { entries, .. } => entries.iter().all(|entry| is_near(entry.position)),
        Change::QueueRestated { next, .. } | Change::LevelRestated { next, .. } => is_near(*next),
        _ => true,
    }
}

/// What is decoded is encoded to what is decoded to the same.
fn check_change(stream: u32, payload: &[u8]) {
    let mut encoded = Vec::new();
    if stream == NODE_STREAM {
        if let Ok(change) = in_all(payload.len(), || NodeChange::decode(payload)) {
            change.encode(&mut encoded);
            assert_eq!(NodeChange::decode(&encoded).as_ref(), Ok(&change));
        }
    } else if let Ok(change) = in_all(payload.len(), || Change::decode(payload)) {
        change.encode(&mut encoded);
        assert_eq!(Change::decode(&encoded).as_ref(), Ok(&change));
    }
}

/// What a virtual host says in a checkpoint, another one takes, and says the same.
fn restate(mut vhost: VirtualHost) {
    let (begun, said) = said(&mut vhost);
    let mut again = VirtualHost::new(vhost.name().clone(), [7; 32]);
    for (position, change) in (begun.0..).zip(&said) {
        let applied = again.apply(NOW, JournalPosition(position), change.clone());
        // A queue whose arguments mean nothing is there all the same.
        let is_taken = matches!(applied, Ok(()) | Err(ApplyError::Argument { .. }));
        assert!(is_taken, "{applied:?}: {change:?} of {said:?}");
    }
    again.end_recovery();
    assert_eq!((again.queue_count(), again.durable_messages()), (vhost.queue_count(), vhost.durable_messages()));
}

fn said(vhost: &mut VirtualHost) -> (JournalPosition, Vec<Change>) {
    let (mut checkpoint, mut effects, mut said) = (Checkpoint::default(), Effects::default(), Vec::new());
    loop {
        let goes_on = vhost.handle_checkpoint(NOW, &mut checkpoint, 4096, &mut effects);
        said.append(&mut effects.changes);
        if !goes_on {
            return (checkpoint.begun(), said);
        }
    }
}
