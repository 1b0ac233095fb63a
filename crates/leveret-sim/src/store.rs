//! The broker's side of the disk, as the server has it in threads: who writes the journal, checkpoints, and the start.
//!
//! Owns: what is written when, and what a start must find.

use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use leveret_amqp::ShortStr;
use leveret_broker::change::{ENQUEUED_RECORD_BYTES, MESSAGE_RECORD_BYTES, NodeChange};
use leveret_broker::names::{UserName, VhostName};
use leveret_broker::node::password::{PasswordHash, SALT_BYTES};
use leveret_broker::node::recovery::{Faults, Fold, Folded, NODE_STREAM};
use leveret_broker::vhost::checkpoint::Checkpoint;
use leveret_broker::vhost::effects::Fetch;
use leveret_broker::{Change, JournalPosition, Message};
use leveret_journal::{
    Batch, Damage, Keeper, Living, Log, LogError, Missing, OpenError, Options, Reader, Recovery, Scratch,
    ScratchReader, look_ahead,
};
use leveret_testkit::disk::{Fate, SimDisk, Synced};
use rand::Rng;

use crate::hub::{Group, Hub};
use crate::model::{Model, Order, Snapshot, Violation};
use crate::plan::{Cut, Op};
use crate::stats::Kind;
use crate::world::{REFUSED_LATE, UNREAD_AND_TORN, VHOSTS, World, scratch_reader};

/// The most that passes while the broker is down.
const DOWN_MS_MOST: u64 = 3000;

/// The journal, open.
pub(crate) struct Store {
    pub(crate) log: Log,
    keeper: Keeper,
    reader: Reader,
    scratch: ScratchReader,
}

impl Store {
    /// Reads a body back.
    pub(crate) fn read(&mut self, stream: u32, fetch: &Fetch) -> Result<Message, String> {
        let read = match (fetch.id.position(), fetch.id.place()) {
            (Some(position), _) => self.reader.read(stream, position.0),
            (None, Some(place)) => self.scratch.read(stream, place.segment, place.offset),
            (None, None) => return Err("it is not on disk".into()),
        };
        match Change::decode(read.map_err(|error| error.to_string())?) {
            Ok(Change::MessageEnqueued { message, .. }) => Ok(message),
            Ok(_) => Err("it is no message".into()),
            Err(error) => Err(error.to_string()),
        }
    }
}

/// A batch for which there is no room, and how far its streams are once it is written.
pub(crate) struct Stuck {
    batch: Batch,
    ends: Vec<(usize, u64)>,
}

/// A checkpoint that is being written.
pub(crate) struct Checkpointing {
    begun: BTreeMap<u32, u64>,
    living: Living,
    hub: usize,
    checkpoint: Checkpoint,
}

impl World {
    pub(crate) fn act_on_store(&mut self, op: &Op) -> Result<bool, Violation> {
        match *op {
            Op::WriteJournal => {
                let all = self.luck.random_bool(0.5);
                self.write_journal(all)
            }
            Op::MarkJournal => {
                let Some(store) = &mut self.store else { return Ok(false) };
                self.has_failed |= matches!(store.log.mark(), Err(LogError::Failed(_)));
                Ok(true)
            }
            Op::KeepSpares => {
                let count = self.luck.random_range(0..4);
                // It is tried again.
                let Some(store) = &self.store else { return Ok(false) };
                Ok(store.log.spares().keep(count, count + 1).is_ok())
            }
            Op::Checkpoint { units } => self.checkpoint(u32::from(units).max(1)),
            Op::Restart => self.restart(),
            Op::Crash { operations, now: true, cut, cuts_of_recovery } => {
                self.dies = Some((0, cut, 0));
                self.disk.stop_at(self.disk.operations() + u64::from(operations));
                self.write_journal(true)?;
                if self.checkpointing.is_some() {
                    self.checkpoint(4096)?;
                }
                self.dies = None;
                self.power_cut(cut, cuts_of_recovery)?;
                Ok(true)
            }
            Op::Crash { operations, now: false, cut, cuts_of_recovery } => {
                if self.dies.is_some() {
                    return Ok(false);
                }
                let at = self.disk.operations() + u64::from(operations) * 3;
                self.disk.stop_at(at);
                self.dies = Some((at, cut, cuts_of_recovery));
                Ok(true)
            }
            Op::FailSync { folder, operations, cut } => {
                let at = self.disk.operations() + 1 + u64::from(operations);
                if folder {
                    self.disk.fail_folder_sync_at(at);
                } else {
                    self.disk.fail_sync_at(at);
                }
                // No file system keeps names that it could not sync.
                self.after_failure = cut.or(folder.then_some(Cut::Lost));
                Ok(true)
            }
            Op::FillDisk { bytes } => {
                self.disk.set_room(Some(bytes as usize));
                Ok(true)
            }
            Op::EmptyDisk => {
                self.disk.set_room(None);
                self.write_journal(true)
            }
            _ => Ok(false),
        }
    }

    /// Writes what is decided, or some of it; false if nothing was written.
    pub(crate) fn write_journal(&mut self, all: bool) -> Result<bool, Violation> {
        if self.has_failed {
            return Ok(false);
        }
        let Some(store) = &mut self.store else { return Ok(false) };
        let mut whole = if let Some(stuck) = self.stuck.take() {
            stuck
        } else {
            let mut whole = Stuck { batch: Batch::default(), ends: Vec::new() };
            let most = usize::try_from(store.log.batch_bytes()).unwrap_or(usize::MAX);
            for (at, hub) in self.hubs.iter_mut().enumerate() {
                let mut groups =
                    if all { usize::MAX } else { self.luck.random_range(0..=usize::from(self.config.groups_most)) };
                let mut next = hub.taken;
                while groups > 0
                    && (whole.batch.is_empty() || whole.batch.bytes() < most)
                    && let Some(Group { changes, end }) = hub.pending.pop_front()
                {
                    for change in changes {
                        next += 1;
                        whole.batch.push(hub.stream, next, |out| change.encode(out));
                    }
                    hub.taken = end;
                    whole.ends.retain(|(of, _)| *of != at);
                    whole.ends.push((at, end));
                    groups -= 1;
                }
            }
            whole
        };
        if whole.batch.is_empty() {
            return Ok(false);
        }
        match store.log.append(&mut whole.batch) {
            Ok(()) => {}
            Err(LogError::Full(_)) => {
                self.stats.count(Kind::Fault, "batch without room");
                self.stuck = Some(whole);
                return Ok(false);
            }
            Err(LogError::Failed(_)) => {
                self.has_failed = true;
                return Ok(false);
            }
        }
        for (at, end) in whole.ends {
            let hub = &mut self.hubs[at];
            hub.durable = end;
            while hub.marks.get(1).is_some_and(|(next, _)| *next <= end) {
                hub.marks.pop_front();
            }
            self.tell_durable(at)?;
        }
        if all && self.hubs.iter().any(|hub| !hub.pending.is_empty()) {
            return self.write_journal(true);
        }
        Ok(true)
    }

    fn tell_durable(&mut self, hub: usize) -> Result<(), Violation> {
        let (now, durable) = (self.now, JournalPosition(self.hubs[hub].durable));
        for client in self.clients.iter_mut().filter(|client| client.hub == hub) {
            let Some(link) = &mut client.link else { continue };
            while link.connection.awaits().is_some_and(|position| position <= durable) {
                link.connection.handle_durable(now, durable, &mut link.unsent);
            }
        }
        self.conclude(hub)
    }

    /// Goes on with a checkpoint, or begins one.
    fn checkpoint(&mut self, units: u32) -> Result<bool, Violation> {
        let mut checkpointing = if let Some(checkpointing) = self.checkpointing.take() {
            checkpointing
        } else {
            if !self.flush()? {
                return Ok(false);
            }
            let (begun, living) = (BTreeMap::new(), Living::default());
            let mut checkpointing = Checkpointing { begun, living, hub: 0, checkpoint: Checkpoint::default() };
            let Some(stated) = self.append_to_node(self.node.restated()) else { return Ok(false) };
            checkpointing.begun.insert(NODE_STREAM, stated);
            checkpointing
        };
        let at = checkpointing.hub;
        let goes_on = self.hubs[at].checkpoint(self.now, &mut checkpointing.checkpoint, units, &mut self.clients);
        self.conclude(at)?;
        let Some(store) = &self.store else { return Ok(false) };
        let living = checkpointing.checkpoint.take_living();
        let records = living
            .iter()
            .filter_map(|(message, bytes)| Some((message.position()?.0, u64::from(*bytes) + MESSAGE_RECORD_BYTES)));
        store.keeper.note(&mut checkpointing.living, self.hubs[at].stream, records, ENQUEUED_RECORD_BYTES);
        if goes_on {
            self.checkpointing = Some(checkpointing);
            return Ok(true);
        }
        if !self.flush()? {
            return Ok(false);
        }
        let Checkpointing { mut begun, living, hub, checkpoint } = checkpointing;
        begun.insert(self.hubs[hub].stream, checkpoint.begun().0);
        if hub + 1 < self.hubs.len() {
            let checkpoint = Checkpoint::default();
            self.checkpointing = Some(Checkpointing { begun, living, hub: hub + 1, checkpoint });
            return Ok(true);
        }
        self.stats.count(Kind::Fault, "whole checkpoint");
        let (before, Some(store)) = (self.begun.replace(begun), &mut self.store) else { return Ok(false) };
        let Some(before) = before else { return Ok(true) };
        match store.log.begin_replay_at(&before) {
            Ok(()) => {
                // What cannot be done now is, the next time.
                if let Ok(swept) = store.keeper.sweep(&living, &|| false)
                    && swept.removed + swept.compacted > 0
                {
                    self.stats.count(Kind::Fault, "segments swept");
                }
            }
            Err(LogError::Full(_)) => {}
            Err(LogError::Failed(_)) => self.has_failed = true,
        }
        Ok(true)
    }

    /// Everything that was decided is durable; false if it cannot be.
    fn flush(&mut self) -> Result<bool, Violation> {
        self.write_journal(true)?;
        Ok(!self.has_failed && self.stuck.is_none() && self.hubs.iter().all(|hub| hub.pending.is_empty()))
    }

    /// Appends to the stream of the node; the number of the first change, if there was room.
    fn append_to_node(&mut self, changes: Vec<NodeChange>) -> Option<u64> {
        let (mut batch, mut last) = (Batch::default(), self.node_sequence);
        for change in changes {
            last += 1;
            batch.push(NODE_STREAM, last, |out| change.encode(out));
        }
        match self.store.as_mut()?.log.append(&mut batch) {
            Ok(()) => Some(std::mem::replace(&mut self.node_sequence, last) + 1),
            Err(LogError::Full(_)) => None,
            Err(LogError::Failed(_)) => {
                self.has_failed = true;
                None
            }
        }
    }

    /// The broker stops in good order, and starts again.
    fn restart(&mut self) -> Result<bool, Violation> {
        self.disk.set_room(None);
        if !self.flush()? {
            return Ok(false);
        }
        self.disconnect_all()?;
        for at in 0..self.hubs.len() {
            self.hubs[at].stop(self.now, &mut self.clients);
            self.conclude(at)?;
        }
        if !self.flush()? {
            return Ok(true);
        }
        if let Some(store) = &mut self.store {
            self.has_failed |= matches!(store.log.mark_end(), Err(LogError::Failed(_)));
        }
        if self.has_failed || self.dies.is_some_and(|(at, _, _)| self.disk.operations() >= at) {
            return Ok(true);
        }
        self.start(true, 0)?;
        Ok(true)
    }

    /// The process ends if its disk is dead, or does what it must not.
    pub(crate) fn die_if_due(&mut self) -> Result<(), Violation> {
        if let Some((at, cut, cuts_of_recovery)) = self.dies
            && self.disk.operations() >= at
        {
            self.dies = None;
            self.stats.count(Kind::Fault, "power cut later");
            return self.power_cut(cut, cuts_of_recovery);
        }
        if !self.has_failed {
            return Ok(());
        }
        self.count_failed_sync();
        self.stats.count(Kind::Fault, "end after a failed sync");
        let now = self.now;
        for link in self.clients.iter_mut().filter_map(|client| client.link.as_mut()) {
            link.connection.handle_journal_failure(now, &mut link.unsent);
        }
        if let Some(cut) = self.after_failure.take() {
            return self.power_cut(cut, 0);
        }
        // Whoever mends the disk makes room, too.
        self.disk.set_room(None);
        self.disarm();
        self.start(false, 0)
    }

    fn count_failed_sync(&mut self) {
        match self.disk.failed_sync() {
            Some(Synced::File) => self.stats.count(Kind::Fault, "failed sync"),
            Some(Synced::Folder) => self.stats.count(Kind::Fault, "failed sync of the folder"),
            // A disk that is dead fails otherwise.
            None => {}
        }
    }

    /// No sync will fail.
    pub(crate) fn disarm(&mut self) {
        self.disk.fail_sync_at(u64::MAX);
        self.disk.fail_folder_sync_at(u64::MAX);
        self.disk.forget_failed_sync();
        self.after_failure = None;
    }

    /// What was not synced is lost, kept or torn, and the broker starts again.
    pub(crate) fn power_cut(&mut self, cut: Cut, cuts_of_recovery: u8) -> Result<(), Violation> {
        self.dies = None;
        self.after_failure = None;
        self.lose_power(cut);
        if self.luck.random_bool(0.3) {
            let down = self.luck.random_range(0..DOWN_MS_MOST);
            self.pass(Duration::from_millis(down));
        }
        self.start(false, cuts_of_recovery)
    }

    fn lose_power(&mut self, cut: Cut) {
        let (luck, stats) = (&mut self.luck, &mut self.stats);
        let mut fate = |bytes: usize, until_zeros: usize| {
            let fate = match cut {
                Cut::Lost => Fate::Lost,
                Cut::Kept => Fate::Kept,
                Cut::Mixed => match luck.random_range(0..3) {
                    0 => Fate::Lost,
                    1 if bytes > 1 => Fate::Torn(if until_zeros > 1 && luck.random_bool(0.8) {
                        luck.random_range(1..until_zeros)
                    } else {
                        luck.random_range(1..bytes)
                    }),
                    _ => Fate::Kept,
                },
            };
            let name = match fate {
                Fate::Lost => "write lost",
                Fate::Kept => "write kept",
                Fate::Torn(_) => "write torn",
            };
            stats.count(Kind::Fault, name);
            fate
        };
        let fates: Vec<Fate> =
            self.disk.pending().iter().map(|pending| fate(pending.bytes, pending.until_zeros)).collect();
        self.disk = self.disk.crash(&fates);
        if self.config.lies {
            self.disk.lie();
        }
    }

    fn open(&self, fold: &mut Fold) -> Result<(Log, Recovery), OpenError> {
        let now = self.now;
        look_ahead(&self.disk)?;
        let options = Options { segment_bytes: self.config.segment_bytes, salt: *b"sixteen of bytes" };
        Log::open(Arc::new(self.disk.clone()), options, &mut |record| {
            fold.take(now, record.stream, record.sequence, record.payload, &mut |_| {});
        })
    }

    fn fold() -> Fold {
        Fold::new(Some(vhost_name(VHOSTS[0])), || [7; 32])
    }

    /// Starts with what is on the disk, which must be what was promised, and more only as a whole.
    pub(crate) fn start(&mut self, in_good_order: bool, cuts: u8) -> Result<(), Violation> {
        self.drop_all();
        self.store = None;
        self.stuck = None;
        self.checkpointing = None;
        self.has_failed = false;
        for _ in 0..cuts {
            let operations = self.luck.random_range(0..12);
            self.disk.stop_at(self.disk.operations() + operations);
            // Whether it came so far or not, the power is cut.
            if self.open(&mut Self::fold()).is_err() {
                self.stats.count(Kind::Fault, "power cut in a recovery");
            }
            self.lose_power(Cut::Mixed);
        }
        let (mut in_good_order, mut reads) = (in_good_order, self.fails_read_after.take());
        let (mut fold, log, recovery, is_unread) = loop {
            let mut fold = Self::fold();
            self.disk.fail_read_after(reads);
            let opened = self.open(&mut fold);
            let is_unread = reads.take().is_some() && self.disk.fail_read_after(None).is_none();
            if is_unread {
                self.stats.count(Kind::Fault, "failed read in a start");
            }
            let error = match opened {
                Ok((log, recovery)) => break (fold, log, recovery, is_unread),
                Err(error) => error,
            };
            if is_unread {
                // The next one must find it.
                continue;
            }
            in_good_order = false;
            let dies = self.dies.take().filter(|(at, _, _)| self.disk.operations() >= *at);
            match dies {
                Some((_, cut, _)) => {
                    self.stats.count(Kind::Fault, "power cut later");
                    self.lose_power(cut);
                }
                None if self.disk.failed_sync().is_some() => {
                    self.count_failed_sync();
                    let cut = self.after_failure.take().unwrap_or(Cut::Lost);
                    self.lose_power(cut);
                }
                None => return Err(format!("the journal is not opened: {error}")),
            }
        };
        // What could not be read may count as damaged, then and later; but nothing of it is missing.
        let is_excused = |damage: &Damage| (is_unread || damage.is_old) && damage.missing == Missing::Exactly(0);
        // If the power was cut while it was written, nothing tells whether it was whole.
        let is_unclear = |damage: &Damage| is_unread && matches!(damage.missing, Missing::AtMost(_));
        if !recovery.damage.iter().all(|damage| is_excused(damage) || is_unclear(damage)) {
            return Err(format!("a crash is no damage: {:?}", recovery.damage));
        }
        if recovery.damage.iter().any(is_unclear) {
            self.stats.count(Kind::Outcome, UNREAD_AND_TORN);
            self.is_unclear = true;
            return Ok(());
        }
        fold.end(0, &recovery.streams);
        if *fold.faults() != Faults::default() {
            return Err(format!("changes do not fit to those before: {:?}", fold.faults()));
        }
        let (keeper, reader) = (log.keeper(), log.reader());
        self.scratch_disk = SimDisk::default();
        let mut store = Store { log, keeper, reader, scratch: scratch_reader(&self.scratch_disk) };
        if !fold.node().is_initialized() {
            let mut batch = Batch::default();
            for change in beginning(&fold, self.config.vhosts) {
                let sequence = fold.push(change.clone()).map_err(|error| error.to_string())?;
                batch.push(NODE_STREAM, sequence, |out| change.encode(out));
            }
            store.log.append(&mut batch).map_err(|error| format!("the journal is not begun: {error}"))?;
        }
        let Folded { node, node_sequence, stated_from, mut vhosts, .. } =
            fold.finish(recovery.streams.keys().copied());
        let begun = vhosts.iter().map(|(stream, vhost)| Some((*stream, vhost.checkpoint()?.0)));
        self.begun = begun.chain([Some((NODE_STREAM, stated_from))]).collect();
        (self.node, self.node_sequence, self.store) = (node, node_sequence, Some(store));
        let (mut before, mut found_at) = (std::mem::take(&mut self.hubs).into_iter(), Vec::new());
        for name in &VHOSTS[..usize::from(self.config.vhosts)] {
            let Some(at) = vhosts.iter().position(|(_, vhost)| vhost.name().as_str() == *name) else {
                return Err(format!("virtual host {name} is gone"));
            };
            let (stream, vhost) = vhosts.remove(at);
            let scratch = Scratch::new(Arc::new(self.scratch_disk.clone()), stream);
            let hub = match before.next() {
                None => Hub::new(stream, vhost, Model::new(Rc::clone(&self.config)), scratch),
                Some(mut hub) => {
                    let found = vhost.position().0;
                    let ends: Vec<u64> = hub.marks.iter().map(|(end, _)| *end).collect();
                    let mut marks = std::mem::take(&mut hub.marks).into_iter();
                    let Some((_, snapshots)) = marks.find(|(end, _)| *end == found) else {
                        return Err(format!(
                            "{found} changes of virtual host {name} are found, of {}; whole are {ends:?}",
                            hub.journaled
                        ));
                    };
                    let events = snapshots.first().map_or(0, |snapshot| snapshot.events);
                    if events < hub.promised {
                        let promised = hub.promised;
                        return Err(format!("event {promised} was promised, and {events} are found after a crash"));
                    }
                    if in_good_order && found != hub.journaled {
                        return Err(format!("a stop in good order has lost changes: {found} of {}", hub.journaled));
                    }
                    found_at.push(snapshots);
                    let history = hub.history.after_restart();
                    let mut started = Hub::new(stream, vhost, hub.model, scratch);
                    started.history = history;
                    started
                }
            };
            self.hubs.push(hub);
        }
        for (at, snapshots) in found_at.into_iter().enumerate() {
            self.restore(at, snapshots, in_good_order)?;
        }
        if self.is_unclear {
            return Ok(());
        }
        self.wait(Duration::ZERO)?;
        self.compare()
    }

    /// What a virtual host has found is one of these, and what is due by now.
    fn restore(&mut self, at: usize, snapshots: Vec<Snapshot>, in_good_order: bool) -> Result<(), Violation> {
        let now_ms = self.now_ms();
        let mut found_in = self.hubs[at].views();
        // What is due at once does not wait for a client.
        self.catch_up(at)?;
        let is_certain = snapshots.len() == 1;
        let views = self.hubs[at].views();
        // Dead letters may have been on their way.
        found_in.extend(views.iter().filter(|(slot, _)| Model::is_dead(**slot)).map(|(slot, view)| (*slot, *view)));
        let (mut snapshots, mut otherwise) = (snapshots, Vec::new());
        if let [after, before, passed @ ..] = &snapshots[..] {
            // What came may have gone again by the end of the event.
            let (model, later) = (&self.hubs[at].model, passed.iter().chain(std::iter::once(after)));
            let of = |through: &[Snapshot]| -> Vec<_> {
                later.clone().filter_map(|later| model.between(before, later, through, &found_in)).collect()
            };
            let between = of(&[]);
            otherwise = of(passed);
            let none = model.without_letters(before, after);
            let all = snapshots.iter().chain(&between).chain([&none]);
            let mut late: Vec<_> = all.map(|later| model.with_late_letters(before, later, 0)).collect();
            let letters = Model::new_letters(before, after).len();
            late.extend((1..letters).map(|already| model.with_late_letters(before, after, already)));
            snapshots.extend(between);
            snapshots.push(none);
            snapshots.extend(late);
        }
        let (mut first_fault, mut found, mut fitting) = (None, None::<(Model, Snapshot)>, Vec::new());
        let (mut may_be_refused, mut is_refused) = (false, false);
        // What only passed through queues is looked at last.
        for (nth, snapshot) in snapshots.iter().chain(&otherwise).enumerate() {
            if nth == snapshots.len() && found.is_some() {
                break;
            }
            for order in Order::ALL {
                let mut model = self.hubs[at].model.clone();
                model.restore(snapshot.clone(), now_ms, in_good_order);
                let perhaps_refused = model.perhaps_refused(now_ms);
                model.observe_in(order, now_ms, &mut BTreeMap::new(), None)?;
                may_be_refused |=
                    !perhaps_refused.is_empty() && model.differs_at_most_behind(&perhaps_refused, &views);
                let compared = model.compare(&views);
                if compared.is_ok() {
                    fitting.push(snapshot);
                    is_refused |= model.has_some_of(&perhaps_refused);
                }
                match (compared, &found) {
                    (Ok(()), None) => found = Some((model, snapshot.clone())),
                    // Both have as many messages, but not the same, and nobody can tell which.
                    (Ok(()), Some((first, _))) => self.is_unclear |= !model.has_same_messages(first),
                    (Err(fault), _) => _ = first_fault.get_or_insert(fault),
                }
            }
        }
        if is_refused || (may_be_refused && found.is_none()) {
            self.stats.count(Kind::Outcome, REFUSED_LATE);
            self.is_unclear = true;
            return Ok(());
        }
        let Some((mut model, mut found)) = found else {
            return Err(format!("after a restart, {}", first_fault.unwrap_or_default()));
        };
        if !is_certain {
            self.is_unclear |= fitting.iter().any(|other| model.is_unclear(other, &found));
            model.forget_flags(&mut found);
        }
        self.hubs[at].restored(model, found);
        Ok(())
    }
}

fn vhost_name(name: &str) -> VhostName {
    VhostName::new(ShortStr::truncated(name))
}

/// What a node begins with.
fn beginning(fold: &Fold, vhosts: u8) -> Vec<NodeChange> {
    let user = UserName::new(ShortStr::truncated("guest"));
    let password = PasswordHash::new(b"guest", [0; SALT_BYTES]);
    let mut changes = fold.node().beginning(&vhost_name(VHOSTS[0]), &user, password);
    for (name, stream) in VHOSTS.iter().zip(fold.node().next_stream()..).take(usize::from(vhosts)).skip(1) {
        let vhost = vhost_name(name);
        changes.push(NodeChange::VhostAdded { stream, name: vhost.clone() });
        let all = || ".*".to_owned();
        let (configure, write, read) = (all(), all(), all());
        changes.push(NodeChange::PermissionsSet { user: user.clone(), vhost, configure, write, read });
    }
    changes
}
