//! A virtual host as its driver sees it: what it has decided, how far that is written, and what its clients hear of it.
//!
//! Owns: the changes that wait for the journal, and what would be there after a crash at each of them.
//! Must not know: what a step does, or what the disk does.

use std::collections::{BTreeMap, VecDeque};

use leveret_broker::scratch::Segment;
use leveret_broker::vhost::Progress;
use leveret_broker::vhost::checkpoint::Checkpoint;
use leveret_broker::vhost::effects::Fetch;
use leveret_broker::vhost::ledger::Ceilings;
use leveret_broker::vhost::views::QueueCursor;
use leveret_broker::{Change, ConnectionId, Effects, Moment, Output, VirtualHost};
use leveret_journal::Scratch;

use crate::history::History;
use crate::model::{Model, Snapshot, View};
use crate::world::Client;

/// Changes that become durable together.
pub(crate) struct Group {
    pub(crate) changes: Vec<Change>,
    pub(crate) end: u64,
}

/// A virtual host, and what surrounds it.
pub(crate) struct Hub {
    pub(crate) stream: u32,
    pub(crate) vhost: VirtualHost,
    pub(crate) effects: Effects,
    pub(crate) model: Model,
    /// Changes whose group is not complete.
    open: Vec<Change>,
    pub(crate) pending: VecDeque<Group>,
    /// The last change that was decided, and the last one that is durable.
    pub(crate) journaled: u64,
    pub(crate) durable: u64,
    /// The last one that was taken to be written.
    pub(crate) taken: u64,
    /// What would be there after a crash at these positions, from the last durable one on. Between two groups of one event it
    /// is what was before the event, or what is behind it, or something in between.
    pub(crate) marks: VecDeque<(u64, Vec<Snapshot>)>,
    /// What was there when the model heard of something last.
    pub(crate) latest: Snapshot,
    /// The last event that somebody was told of as durable.
    pub(crate) promised: u64,
    pub(crate) history: History,
    pub(crate) connections: Vec<(ConnectionId, u8)>,
    /// What was said and the model does not know of.
    pub(crate) said: BTreeMap<u8, VecDeque<Output>>,
    pub(crate) fetches: Vec<Fetch>,
    pub(crate) scratch: Scratch,
    pub(crate) segment: Option<Segment>,
}

impl Hub {
    pub(crate) fn new(stream: u32, mut vhost: VirtualHost, model: Model, scratch: Scratch) -> Self {
        if let Some(unacked) = model.unacked_most() {
            vhost.set_ceilings(Ceilings { unacked, ..Ceilings::default() });
        }
        let journaled = vhost.position().0;
        let latest = model.snapshot();
        let marks = VecDeque::from([(journaled, vec![latest.clone()])]);
        Hub {
            stream,
            vhost,
            effects: Effects::default(),
            model,
            open: Vec::new(),
            pending: VecDeque::new(),
            journaled,
            durable: journaled,
            taken: journaled,
            marks,
            latest,
            promised: 0,
            history: History::default(),
            connections: Vec::new(),
            said: BTreeMap::new(),
            fetches: Vec::new(),
            scratch,
            segment: None,
        }
    }

    /// Takes what follows from one hold of the lock.
    fn take_effects(&mut self, links: &mut [Client]) {
        let Hub { effects, open, pending, journaled, connections, said, fetches, .. } = self;
        *journaled += effects.changes.len() as u64;
        open.append(&mut effects.changes);
        if !effects.changes_go_on && !open.is_empty() {
            pending.push_back(Group { changes: std::mem::take(open), end: *journaled });
        }
        effects.take_outputs(|to, outputs, _| {
            let Some((_, client)) = connections.iter().find(|(id, _)| *id == to) else { return };
            said.entry(*client).or_default().extend(outputs.iter().cloned().flat_map(Output::singly));
            if let Some(link) = &mut links[usize::from(*client)].link {
                link.outputs.extend(outputs.drain(..));
            }
        });
        fetches.append(&mut effects.fetches);
        effects.notices.clear();
    }

    /// The same, and all that goes on by itself.
    pub(crate) fn hand_on(&mut self, now: Moment, mut progress: Progress, links: &mut [Client]) {
        loop {
            self.take_effects(links);
            if progress == Progress::Done && !self.vhost.is_behind() {
                break;
            }
            progress = self.vhost.go_on(now, &mut self.effects);
        }
    }

    /// What is due is done.
    pub(crate) fn time_out(&mut self, now: Moment, links: &mut [Client]) {
        let progress = self.vhost.handle_timeout(now, &mut self.effects);
        self.hand_on(now, progress, links);
    }

    /// The broker has started with this, and what is there by now is known.
    pub(crate) fn restored(&mut self, model: Model, found: Snapshot) {
        self.model = model;
        self.said.clear();
        if let Some((_, snapshots)) = self.marks.front_mut() {
            *snapshots = vec![found.clone()];
        }
        // What was due at the start is an event: a crash may find what was before.
        self.latest = found;
    }

    /// What the broker says of its queues.
    pub(crate) fn views(&self) -> BTreeMap<u8, View> {
        let (mut cursor, mut list) = (QueueCursor::default(), Vec::new());
        while self.vhost.list_queues(&mut cursor, u32::MAX, &mut list) == Progress::More {}
        let views = list.iter().filter_map(|view| {
            let slot = view.name.as_str().strip_prefix('q')?.parse().ok()?;
            let (ready, unacked, consumers) = (view.messages_ready, view.messages_unacknowledged, view.consumers);
            Some((slot, View { ready, unacked, dying: view.messages - ready - unacked, consumers }))
        });
        views.collect()
    }

    /// The broker stops in good order.
    pub(crate) fn stop(&mut self, now: Moment, links: &mut [Client]) {
        self.vhost.handle_stop(&mut self.effects);
        self.hand_on(now, Progress::Done, links);
    }

    /// Goes on with a checkpoint; false once it is complete.
    pub(crate) fn checkpoint(
        &mut self,
        now: Moment,
        checkpoint: &mut Checkpoint,
        units: u32,
        links: &mut [Client],
    ) -> bool {
        let goes_on = self.vhost.handle_checkpoint(now, checkpoint, units, &mut self.effects);
        self.hand_on(now, Progress::Done, links);
        goes_on
    }
}
