//! What is in a journal: changes, folded to a node with its virtual hosts, which then say in a checkpoint what is true.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use leveret_amqp::ShortStr;
use leveret_broker::access::{Permissions, TopicPermissions};
use leveret_broker::change::{Enqueued, NodeChange, QueueNumber, QueuePosition};
use leveret_broker::names::VhostName;
use leveret_broker::node::recovery::{Fold, NODE_STREAM};
use leveret_broker::vhost::apply::ApplyError;
use leveret_broker::vhost::checkpoint::Checkpoint;
use leveret_broker::{Change, Effects, JournalPosition, Moment, VirtualHost};

use crate::allowance::{Account, PatternBytes, QUEUE_WORTH, VHOST_WORTH, gap_worth, in_all};
use crate::bytes::Bytes;

const NOW: Moment = Moment { monotonic: Duration::from_secs(1), wall: Duration::from_secs(1_700_000_000) };

/// How many times what they are given, and what counts beside that, a fold and a checkpoint may have at once.
const AT_ONCE: u64 = 40;

/// Records that may be damaged in a way that no checksum shows: those that fit are taken, and all else is set aside.
pub(super) fn checkpoint(input: &[u8]) {
    let mut bytes = Bytes::new(input);
    let slash = VhostName::new(ShortStr::truncated("/"));
    let first = bytes.flag().then(|| slash.clone());
    let missing = u64::from(bytes.u8() % 4);
    let mut sequences = [0_u64; 4];
    let mut account = Account::default();
    account.give(input.len());
    let mut fold = account.run(|| Fold::new(first, || [7; 32]));
    let mut worth = Worth::default();
    while !bytes.is_empty() {
        let head = bytes.u8();
        let stream = head & 3;
        let sequence = &mut sequences[usize::from(stream)];
        *sequence += u64::from(head >> 2 & 3).max(1);
        let length = if head >> 4 & 1 == 1 { bytes.u16() } else { bytes.u8().into() };
        let payload = bytes.take(length.into());
        check_change(stream.into(), payload);
        let before = fold.set_aside_count();
        let mut take = || account.run(|| fold.take(NOW, stream.into(), *sequence, payload, &mut |_| {}));
        if u32::from(stream) == NODE_STREAM {
            take();
            if let Ok(change) = NodeChange::decode(payload) {
                worth.add_of_node(&change, fold.set_aside_count() == before, &mut account);
            }
            continue;
        }
        let change = Change::decode(payload);
        if change.as_ref().is_ok_and(|change| !is_near(change)) {
            continue;
        }
        take();
        worth.begin(stream.into(), &mut account);
        if let Ok(change) = change {
            worth.add(stream, &change, fold.set_aside_count() == before, &mut account);
        }
    }
    let streams: BTreeMap<_, _> = (0..).zip(sequences).filter(|(_, last)| *last > 0).collect();
    account.run(|| fold.end(missing, &streams));
    assert!(fold.faults().set_aside == 0 || fold.faults().first.is_some());
    let folded = account.run(|| fold.finish(streams.into_keys()));
    for (_, vhost) in folded.vhosts {
        restate(vhost, &mut account);
    }
    account.check(AT_ONCE);
}

/// What records count for beside their bytes.
#[derive(Default)]
struct Worth {
    /// Those of which there is a virtual host.
    streams: BTreeSet<u32>,
    /// For each stream and queue, whether in pages of a checkpoint, and each priority: the place behind the last message.
    next: BTreeMap<(u8, QueueNumber, bool, u64), u64>,
}

impl Worth {
    /// There is a virtual host from now on that has this stream.
    fn begin(&mut self, stream: u32, account: &mut Account) {
        if self.streams.insert(stream) {
            account.give(VHOST_WORTH);
        }
    }

    /// A record has this change of the node. Patterns are compiled before it is clear whether it fits.
    fn add_of_node(&mut self, change: &NodeChange, is_taken: bool, account: &mut Account) {
        match change {
            NodeChange::VhostAdded { stream, .. } if is_taken => self.begin(*stream, account),
            NodeChange::PermissionsSet { configure, write, read, .. } => {
                let permissions = || Permissions::new(configure, write, read);
                account.give_pattern(PatternBytes::of(3, permissions).0);
            }
            NodeChange::TopicPermissionsSet { user, vhost, write, read, .. } => {
                let permissions = || TopicPermissions::new(write, read, user, vhost);
                account.give_pattern(PatternBytes::of(2, permissions).0);
            }
            _ => {}
        }
    }

    /// A record has this change. Of one that is set aside, messages may be taken all the same, where they fit, and a pattern was
    /// compiled.
    fn add(&mut self, stream: u8, change: &Change, is_taken: bool, account: &mut Account) {
        let worth = match change {
            Change::MessageEnqueued { queues, .. } => {
                let put = |enqueued: &Enqueued| self.put(stream, enqueued.queue, false, enqueued.position);
                queues.iter().map(put).sum()
            }
            Change::QueuePage { queue, entries } => {
                entries.iter().map(|entry| self.put(stream, *queue, true, entry.position)).sum()
            }
            Change::LevelRestated { queue, next, .. } => self.put(stream, *queue, true, *next),
            Change::QueueRestated { queue, next, .. } => {
                usize::from(is_taken) * QUEUE_WORTH + self.put(stream, *queue, true, *next)
            }
            Change::QueueDeclared { .. }
            | Change::DelayQueueDeclared { .. }
            | Change::DelayQueueRestated { .. } => usize::from(is_taken) * QUEUE_WORTH,
            Change::PolicySet(policy) => {
                account.give_pattern(PatternBytes::used(&policy.pattern));
                0
            }
            _ => 0,
        };
        account.give(worth);
    }

    /// A message comes to lie at this place, if it is behind all others. What it counts for.
    fn put(&mut self, stream: u8, queue: QueueNumber, in_pages: bool, place: QueuePosition) -> usize {
        let (priority, place) = (place.0 & !PLACES, place.0 & PLACES);
        match self.next.entry((stream, queue, in_pages, priority)) {
            Entry::Vacant(first) => {
                // Pages begin here.
                first.insert(place + 1);
                0
            }
            Entry::Occupied(mut next) => {
                let gap = place.checked_sub(*next.get());
                if gap.is_some() {
                    next.insert(place + 1);
                }
                gap.map_or(0, gap_worth)
            }
        }
    }
}

/// What stands above says the priority.
const PLACES: u64 = (1 << 54) - 1;

/// A queue has 8 bytes for each 256 places between two messages, up to two trillion of them: a journal may say so, as its
/// checksums show who wrote it, but no input pays for it.
fn is_near(change: &Change) -> bool {
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
fn restate(mut vhost: VirtualHost, account: &mut Account) {
    let (begun, said) = said(&mut vhost, account);
    account.give(VHOST_WORTH);
    let mut again = account.run(|| VirtualHost::new(vhost.name().clone(), [7; 32]));
    let mut worth = Worth::default();
    for (position, change) in (begun.0..).zip(&said) {
        let applied = account.run(|| again.apply(NOW, JournalPosition(position), change.clone()));
        // A queue whose arguments mean nothing is there all the same.
        let is_taken = matches!(applied, Ok(()) | Err(ApplyError::Argument { .. }));
        assert!(is_taken, "{applied:?}: {change:?} of {said:?}");
        worth.add(0, change, true, account);
    }
    account.run(|| again.end_recovery());
    assert_eq!((again.queue_count(), again.durable_messages()), (vhost.queue_count(), vhost.durable_messages()));
    account.run(|| drop((vhost, again)));
}

/// Has a virtual host write a checkpoint. What it says is as much again to work on for whoever takes it.
fn said(vhost: &mut VirtualHost, account: &mut Account) -> (JournalPosition, Vec<Change>) {
    let (mut checkpoint, mut effects, mut said) = (Checkpoint::default(), Effects::default(), Vec::new());
    loop {
        let goes_on = account.run(|| vhost.handle_checkpoint(NOW, &mut checkpoint, 4096, &mut effects));
        for change in effects.changes.drain(..) {
            let mut record = Vec::new();
            change.encode(&mut record);
            account.give(record.len());
            said.push(change);
        }
        if !goes_on {
            return (checkpoint.begun(), said);
        }
    }
}
