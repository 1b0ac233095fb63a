//! Checkpoints: the durable part of a virtual host, said once more, so that a restart need not read how it came about.
//!
//! Owns: how far a checkpoint has come, and what recovery has read of one.
//! Must not know: where a journal begins to be read.
//!
//! A checkpoint is written in steps, through the same stream as all other changes, which go on in between. So each part is
//! true for the place where it stands, and recovery applies to it what stands behind it. What stands before it
//! is not applied: messages that are put into a queue that was not restated yet are in its pages; a message that is taken
//! from it is taken from its pages, if they have it.

use std::collections::BTreeMap;
use std::ops::Bound;
use std::vec;

use leveret_amqp::FieldTable;
use leveret_planted::{Bug, planted};
use smallvec::SmallVec;

use crate::change::{Change, JournalPosition, PageEntries, PageEntry, QueueNumber, QueuePosition};
use crate::limits::{CHECKPOINT_REST_FACTOR, CHECKPOINT_UNITS_PER_PART};
use crate::memory::Meter;
use crate::message::MessageId;
use crate::moment::Moment;
use crate::names::{ExchangeName, PolicyName, QueueName};
use crate::vhost::apply::ApplyError;
use crate::vhost::effects::Effects;
use crate::vhost::exchange::{BindingKey, ExchangeId};
use crate::vhost::policy::{Policy, PolicyKind};
use crate::vhost::queue::{Body, Entry, Levels, Position, Queue, Rank, Standing};
use crate::vhost::{QueueId, VirtualHost};

/// A durable queue as a checkpoint repeats it.
pub(super) struct QueueRestated {
    pub(super) queue: QueueNumber,
    pub(super) name: QueueName,
    pub(super) auto_delete: bool,
    pub(super) standing: Standing,
    pub(super) arguments: FieldTable,
    pub(super) next: QueuePosition,
    pub(super) granted: QueuePosition,
    pub(super) messages: u64,
}

/// A checkpoint that is being written.
#[derive(Debug, Default)]
pub struct Checkpoint {
    stage: Stage,
    begun: JournalPosition,
    /// Messages that lie in durable queues, each with its bytes, since they were taken last; in several queues, several times.
    living: Vec<(MessageId, u32)>,
    bytes: usize,
}

#[derive(Debug, Default)]
enum Stage {
    #[default]
    Begin,
    /// The next queue is this one or the first behind it.
    Queues {
        next: QueueNumber,
        last: QueueNumber,
        walk: Walk,
    },
    Exchanges(vec::IntoIter<ExchangeId>),
    /// The bindings of the first of these behind a place.
    Bindings {
        exchanges: vec::IntoIter<ExchangeId>,
        current: Option<(ExchangeId, Option<BindingKey>)>,
    },
    /// The policies of a kind behind a name.
    Policies(PolicyKind, Option<PolicyName>),
    Done,
}

/// How far one queue was walked.
#[derive(Debug, Default)]
struct Walk {
    /// Where to go on in each level that was begun. A message may come to any of them before the walk is over.
    from: BTreeMap<Rank, Position>,
    messages: u64,
}

impl Checkpoint {
    /// Where it begins.
    pub fn begun(&self) -> JournalPosition {
        self.begun
    }

    /// Bytes of what was written so far, about.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// The messages that it has met since this was called last, each with its bytes: what must be kept. A message that
    /// lies in several queues comes up several times.
    pub fn take_living(&mut self) -> Vec<(MessageId, u32)> {
        std::mem::take(&mut self.living)
    }
}

impl VirtualHost {
    /// Goes on with a checkpoint for so many units of work, about: a message is one. False once it is complete.
    pub fn handle_checkpoint(
        &mut self,
        now: Moment,
        checkpoint: &mut Checkpoint,
        units: u32,
        effects: &mut Effects,
    ) -> bool {
        // A command that was begun has journaled what it will have done in the end.
        if !self.work.is_empty() {
            return true;
        }
        let rest = u64::from(units.saturating_mul(CHECKPOINT_REST_FACTOR));
        let mut units = units;
        while units > 0 && !matches!(checkpoint.stage, Stage::Done) {
            units = units.saturating_sub(CHECKPOINT_UNITS_PER_PART);
            match std::mem::replace(&mut checkpoint.stage, Stage::Done) {
                Stage::Begin => {
                    let last = QueueNumber(self.last_queue_number);
                    self.change(Change::CheckpointBegun { last_queue: last }, effects);
                    checkpoint.begun = self.position;
                    checkpoint.stage = Stage::Queues { next: QueueNumber(0), last, walk: Walk::default() };
                }
                Stage::Queues { next, last, walk } => {
                    let part =
                        self.checkpoint_queue(now, next, last, walk, (&mut units, rest), checkpoint, effects);
                    checkpoint.stage = match part {
                        Some((next, walk)) => Stage::Queues { next, last, walk },
                        None => Stage::Exchanges(self.exchanges.durable().into_iter()),
                    };
                }
                Stage::Exchanges(mut exchanges) => {
                    let Some(id) = exchanges.next() else {
                        let exchanges = self.exchanges.durable().into_iter();
                        checkpoint.stage = Stage::Bindings { exchanges, current: None };
                        continue;
                    };
                    if let Some(exchange) = self.exchanges.get(id) {
                        let change = exchange.declared.to_change();
                        self.checkpoint_part(change, checkpoint, effects);
                    }
                    checkpoint.stage = Stage::Exchanges(exchanges);
                }
                Stage::Bindings { mut exchanges, current } => {
                    let Some((id, after)) = current.or_else(|| Some((exchanges.next()?, None))) else {
                        checkpoint.stage = Stage::Policies(PolicyKind::Policy, None);
                        continue;
                    };
                    let after = after.as_ref().map_or(Bound::Unbounded, Bound::Excluded);
                    let next = self.exchanges.get(id).and_then(|exchange| exchange.first_binding(after)).cloned();
                    if let Some(binding) = next.as_ref().and_then(|key| self.durable_binding(id, key))
                        && !planted(Bug::CheckpointWithoutBindings)
                    {
                        self.checkpoint_part(Change::Bound(binding), checkpoint, effects);
                    }
                    checkpoint.stage = Stage::Bindings { exchanges, current: next.map(|key| (id, Some(key))) };
                }
                Stage::Policies(kind, after) => {
                    let next = self.policies.next(kind, after.as_ref()).map(Policy::source).cloned();
                    checkpoint.stage = match (next, kind) {
                        (Some(source), _) => {
                            let name = source.name.clone();
                            self.checkpoint_part(Change::PolicySet(source), checkpoint, effects);
                            Stage::Policies(kind, Some(name))
                        }
                        (None, PolicyKind::Policy) => Stage::Policies(PolicyKind::OperatorPolicy, None),
                        (None, PolicyKind::OperatorPolicy) => {
                            self.change(Change::CheckpointEnded { begun: checkpoint.begun }, effects);
                            break;
                        }
                    };
                }
                Stage::Done => {}
            }
        }
        self.end_hold(effects);
        !matches!(checkpoint.stage, Stage::Done)
    }

    fn checkpoint_part(&mut self, change: Change, checkpoint: &mut Checkpoint, effects: &mut Effects) {
        checkpoint.bytes += change.bytes();
        self.change(change, effects);
    }

    /// Says one more page of a queue or, behind its last one, the queue itself. Returns where to go on.
    #[expect(clippy::too_many_arguments, reason = "what a stage holds, and what it works with")]
    fn checkpoint_queue(
        &mut self,
        now: Moment,
        next: QueueNumber,
        last: QueueNumber,
        walk: Walk,
        (units, rest): (&mut u32, u64),
        checkpoint: &mut Checkpoint,
        effects: &mut Effects,
    ) -> Option<(QueueNumber, Walk)> {
        let (&number, &id) = self.durable_queues.range(next..).next().filter(|(number, _)| **number <= last)?;
        // It was deleted meanwhile, and another one is next.
        let mut walk = if number == next { walk } else { Walk::default() };
        let following = (QueueNumber(number.0 + 1), Walk::default());
        let Some(queue) = self.queues.get(id) else { return Some(following) };
        let mut entries = Vec::new();
        let page = queue.levels().page_from(&walk.from, |position, entry| {
            let Some(message) = entry.id.position() else { return };
            let expires = entry.expires.map(|deadline| now.expiry_at(deadline));
            let (bytes, body_bytes) = (entry.bytes, entry.body_bytes);
            entries.push(PageEntry { position, message, bytes, body_bytes, expires });
            checkpoint.living.push((entry.id, entry.bytes));
        });
        let declared = &queue.declared;
        let ordinary = queue.levels().ordinary();
        let name = &declared.name;
        let restated = page.is_none().then(|| match declared.standing {
            Standing::Delaying => Change::DelayQueueRestated {
                queue: number,
                exchange: ExchangeName::new(name.as_short_str()),
                messages: walk.messages,
            },
            Standing::Open | Standing::Closed => Change::QueueRestated {
                queue: number,
                name: name.clone(),
                auto_delete: declared.auto_delete,
                closed: declared.standing == Standing::Closed,
                arguments: declared.raw_arguments.clone(),
                next: ordinary.next_position(),
                granted: ordinary.grant_below(),
                messages: walk.messages,
            },
        });
        if let Some(places) = page.as_ref().filter(|_| !entries.is_empty()) {
            walk.messages += entries.len() as u64;
            *units = units.saturating_sub(u32::try_from(entries.len()).unwrap_or(u32::MAX));
            let entries = PageEntries::of_page(places, &entries);
            self.checkpoint_part(Change::QueuePage { queue: number, entries }, checkpoint, effects);
        }
        if let Some(restated) = restated {
            self.checkpoint_part(restated, checkpoint, effects);
            let said = self.checkpoint_rest(number, id, checkpoint, effects);
            *units = units.saturating_sub(u32::try_from(said).unwrap_or(u32::MAX));
            return Some(following);
        }
        walk.from.extend(page.map(|page| (Rank::of_place(page.end), page.end)));
        // A queue that is filled as fast as it is walked must come to its end all the same.
        if *units == 0 && self.queues.get(id).is_none_or(|queue| queue.levels().places_from(&walk.from) <= rest) {
            *units = 1;
        }
        Some((number, walk))
    }

    /// Says what is to be known of a queue beside what it holds: its other priorities, and the messages that came back or that
    /// die. Returns how many these are.
    fn checkpoint_rest(
        &mut self,
        number: QueueNumber,
        id: QueueId,
        checkpoint: &mut Checkpoint,
        effects: &mut Effects,
    ) -> usize {
        let Some(queue) = self.queues.get(id) else { return 0 };
        let others: Vec<_> = queue.levels().others().collect();
        let returned: SmallVec<_> = queue.all_tries().collect();
        let condemned: SmallVec<_> = queue.dying().journaled().collect();
        let said = returned.len() + condemned.len();
        for (next, granted) in others {
            self.checkpoint_part(Change::LevelRestated { queue: number, next, granted }, checkpoint, effects);
        }
        if !returned.is_empty() {
            let change = Change::MessagesReturned { queue: number, messages: returned };
            self.checkpoint_part(change, checkpoint, effects);
        }
        if !condemned.is_empty() {
            let change = Change::MessagesCondemned { queue: number, messages: condemned };
            self.checkpoint_part(change, checkpoint, effects);
        }
        said
    }
}

/// What recovery has read of a checkpoint that it has not read to its end.
#[derive(Debug)]
pub(super) struct Restating {
    begun: JournalPosition,
    /// Whether nothing before it was read: what is not restated yet is unknown.
    is_first: bool,
    /// Whether nothing of it is missing so far.
    is_whole: bool,
    queues: BTreeMap<QueueNumber, Restated>,
}

/// The pages of a queue that was not restated yet.
#[derive(Debug)]
struct Restated {
    levels: Levels,
    messages: u64,
}

impl Restated {
    fn new(meter: Meter) -> Self {
        Restated { levels: Levels::new(meter), messages: 0 }
    }
}

impl VirtualHost {
    /// Whether a change may name what is unknown.
    pub(super) fn is_restating_first(&self) -> bool {
        self.restating.as_ref().is_some_and(|restating| restating.is_first)
    }

    /// Whether what is declared may be there already.
    pub(super) fn is_restating(&self) -> bool {
        self.restating.is_some()
    }

    /// How many messages lie in durable queues, about: one in several queues counts in each.
    pub fn durable_messages(&self) -> usize {
        self.durable_queues.values().filter_map(|&id| self.queues.get(id)).map(Queue::len).sum()
    }

    /// Where the last checkpoint begins that was read as a whole.
    pub fn checkpoint(&self) -> Option<JournalPosition> {
        self.checkpoint
    }

    pub(super) fn apply_checkpoint_begun(&mut self, last_queue: QueueNumber, is_first_change: bool) {
        self.last_queue_number = self.last_queue_number.max(last_queue.0);
        let is_first = is_first_change || self.is_restating_first();
        let (begun, is_whole, queues) = (self.position, true, BTreeMap::new());
        self.restating = Some(Restating { begun, is_first, is_whole, queues });
    }

    pub(super) fn apply_queue_page(
        &mut self,
        now: Moment,
        queue: QueueNumber,
        entries: &PageEntries,
    ) -> Result<(), ApplyError> {
        let meter = self.memory.clone();
        let Some(restating) = &mut self.restating else { return Err(ApplyError::NoCheckpoint) };
        let staged = restating.queues.entry(queue).or_insert_with(|| Restated::new(meter));
        if let Some(block) = entries.as_block()
            && staged.levels.begin_of(block.first).push_block(block, entries.as_bytes())
        {
            staged.messages += block.count as u64;
            return Ok(());
        }
        for PageEntry { position, message, bytes, body_bytes, expires } in entries.iter() {
            let id = MessageId::journaled(message);
            let expires = expires.map(|expiry| now.restored(expiry));
            let (body, journaled, redelivered) = (Body::Stored, true, false);
            let entry = Entry { id, body, expires, bytes, body_bytes, journaled, redelivered };
            if !staged.levels.begin_of(position).push_at(position, entry) {
                return Err(ApplyError::Place { queue: queue.0, position: position.0 });
            }
            staged.messages += 1;
        }
        Ok(())
    }

    /// Takes a message from the pages of a queue, if they have it.
    pub(super) fn apply_settled_in_pages(&mut self, queue: QueueNumber, position: QueuePosition) {
        let staged = self.restating.as_mut().and_then(|restating| restating.queues.get_mut(&queue));
        if let Some(level) = staged.and_then(|staged| staged.levels.of_mut(position))
            && !planted(Bug::CheckpointKeepsAcked)
        {
            level.settle(position);
        }
    }

    pub(super) fn apply_purged_in_pages(
        &mut self,
        queue: QueueNumber,
        below: QueuePosition,
        except: &[QueuePosition],
    ) {
        let staged = self.restating.as_mut().and_then(|restating| restating.queues.get_mut(&queue));
        if let Some(level) = staged.and_then(|staged| staged.levels.of_mut(below)) {
            level.settle_below(below, except);
        }
    }

    /// Takes all messages but these from the pages of a queue.
    pub(super) fn apply_closed_in_pages(&mut self, queue: QueueNumber, kept: &[QueuePosition]) {
        let staged = self.restating.as_mut().and_then(|restating| restating.queues.get_mut(&queue));
        for level in staged.into_iter().flat_map(|staged| staged.levels.iter_mut()) {
            level.close(kept);
        }
    }

    pub(super) fn apply_deleted_in_pages(&mut self, queue: QueueNumber) {
        if let Some(restating) = &mut self.restating {
            restating.queues.remove(&queue);
        }
    }

    /// A queue is what its pages say, whatever was known of it, unless some of them are missing.
    pub(super) fn apply_queue_restated(&mut self, now: Moment, restated: QueueRestated) -> Result<(), ApplyError> {
        let QueueRestated { queue: number, name, auto_delete, standing, arguments, next, granted, messages } =
            restated;
        let meter = self.memory.clone();
        let Some(restating) = &mut self.restating else { return Err(ApplyError::NoCheckpoint) };
        let staged = restating.queues.remove(&number);
        // What waits has the rank of its delay.
        let are_places = |staged: &Restated| {
            standing != Standing::Delaying || staged.levels.ordinary().next_position() == QueuePosition::default()
        };
        let staged = staged.filter(are_places).unwrap_or_else(|| Restated::new(meter));
        let is_whole = staged.messages == messages;
        restating.is_whole &= is_whole;
        let known = self.durable_queues.get(&number).copied();
        let is_known =
            known.and_then(|id| self.queues.get(id)).is_some_and(|queue| queue.declared.standing == standing);
        let mut result = Ok(());
        if !is_known {
            // What closed it may be missing.
            if let Some(id) = known {
                self.apply_queue_deleted(id);
            }
            result = self.apply_declared(now, number, name, auto_delete, standing, arguments);
        }
        if is_whole || !is_known {
            let Some(&id) = self.durable_queues.get(&number) else { return result };
            let Some(queue) = self.queues.get_mut(id) else { return result };
            queue.restate(staged.levels);
            if !queue.restate_level(next, granted, self.position) {
                return Err(ApplyError::Place { queue: number.0, position: next.0 });
            }
        }
        if is_whole { result } else { Err(ApplyError::Incomplete(number.0)) }
    }

    pub(super) fn apply_checkpoint_ended(&mut self, begun: JournalPosition) -> Result<(), ApplyError> {
        let Some(restating) = self.restating.take_if(|restating| restating.begun == begun) else {
            return Err(ApplyError::NoCheckpoint);
        };
        if restating.is_whole {
            self.checkpoint = Some(begun);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use leveret_amqp::ShortStr;

    use super::*;
    use crate::limits::PAGE_ENTRIES;
    use crate::vhost::fixtures::empty_vhost;

    const NOW: Moment = Moment { monotonic: Duration::ZERO, wall: Duration::ZERO };

    fn page(places: std::ops::Range<u64>) -> Change {
        let entry = |place| PageEntry {
            position: QueuePosition(place),
            message: JournalPosition(place + 1),
            bytes: 5,
            body_bytes: 0,
            expires: None,
        };
        let entries: Vec<_> = places.map(entry).collect();
        Change::QueuePage { queue: QueueNumber(1), entries: PageEntries::pack(&entries) }
    }

    /// The same as a whole page of an index.
    fn block(first: u64, places: std::ops::Range<u64>) -> Change {
        let Change::QueuePage { queue, entries } = page(places) else { unreachable!("a page is one") };
        let entries: Vec<_> = entries.iter().collect();
        let places = QueuePosition(first)..QueuePosition(first + PAGE_ENTRIES as u64);
        Change::QueuePage { queue, entries: PageEntries::of_page(&places, &entries) }
    }

    fn restated(messages: u64) -> Change {
        Change::QueueRestated {
            queue: QueueNumber(1),
            name: QueueName::new(ShortStr::truncated("q")),
            auto_delete: false,
            closed: false,
            arguments: FieldTable::default(),
            next: QueuePosition(100),
            granted: QueuePosition(0),
            messages,
        }
    }

    /// Applies changes from a position on; what each came to.
    fn apply(vhost: &mut VirtualHost, from: u64, changes: Vec<Change>) -> Vec<Result<(), ApplyError>> {
        (from..).zip(changes).map(|(at, change)| vhost.apply(NOW, JournalPosition(at), change)).collect()
    }

    fn ready(vhost: &VirtualHost) -> usize {
        vhost.queues.values().map(Queue::ready).sum()
    }

    #[test]
    fn a_checkpoint_that_lacks_a_page_changes_nothing_that_is_known_and_is_none_to_begin_with() {
        let mut vhost = empty_vhost();
        let begun = || Change::CheckpointBegun { last_queue: QueueNumber(1) };
        let ended = |begun| Change::CheckpointEnded { begun: JournalPosition(begun) };
        let whole = vec![begun(), page(0..7), page(7..10), restated(10), ended(1000)];
        assert!(apply(&mut vhost, 1000, whole).iter().all(Result::is_ok));
        assert_eq!((ready(&vhost), vhost.checkpoint()), (10, Some(JournalPosition(1000))));
        let lacking = vec![begun(), page(7..10), restated(10), ended(2000)];
        let results = apply(&mut vhost, 2000, lacking);
        assert_eq!(results, [Ok(()), Ok(()), Err(ApplyError::Incomplete(1)), Ok(())]);
        assert_eq!((ready(&vhost), vhost.checkpoint()), (10, Some(JournalPosition(1000))));
        // Where nothing else is known, it is better than nothing.
        let mut vhost = empty_vhost();
        let lacking = vec![begun(), page(7..10), restated(10), ended(2000)];
        assert_eq!(apply(&mut vhost, 2000, lacking)[2], Err(ApplyError::Incomplete(1)));
        assert_eq!((ready(&vhost), vhost.checkpoint()), (3, None));
    }

    #[test]
    fn parts_of_a_checkpoint_without_its_beginning_are_refused() {
        let mut vhost = empty_vhost();
        let ended = Change::CheckpointEnded { begun: JournalPosition(1) };
        for result in apply(&mut vhost, 5, vec![page(0..3), restated(3), ended]) {
            assert_eq!(result, Err(ApplyError::NoCheckpoint));
        }
        assert_eq!(ready(&vhost), 0);
    }

    /// Where the pages of an index begin follows from the first message that it met: an earlier version said no more of it.
    #[test]
    fn blocks_and_other_pages_come_to_the_same_queue() {
        let begun = || Change::CheckpointBegun { last_queue: QueueNumber(1) };
        let ended = || Change::CheckpointEnded { begun: JournalPosition(2000) };
        let settled = |place| Change::MessageSettled { queue: QueueNumber(1), position: QueuePosition(place) };
        let next = |messages| match restated(messages) {
            Change::QueueRestated { queue, name, auto_delete, closed, arguments, granted, messages, .. } => {
                let next = QueuePosition(2000);
                Change::QueueRestated { queue, name, auto_delete, closed, arguments, next, granted, messages }
            }
            change => change,
        };
        // As blocks; the first as another page, so that those behind do not begin where its index has pages; and one that is there.
        let aligned = [block(0, 10..256), block(256, 256..300), block(768, 800..1024), page(1024..1030)];
        let unaligned = [page(10..256), block(256, 256..300), block(768, 800..1024), page(1024..1030)];
        for pages in [aligned, unaligned] {
            let mut vhost = empty_vhost();
            let mut changes = vec![begun()];
            changes.extend(pages);
            let taken = [20, 299, 800, 1029];
            changes.extend(taken.map(settled));
            changes.extend([next(520), settled(21), ended()]);
            let results = apply(&mut vhost, 2000, changes);
            assert!(results.iter().all(Result::is_ok), "{results:?}");
            assert_eq!((ready(&vhost), vhost.checkpoint()), (515, Some(JournalPosition(2000))));
            let (mut checkpoint, mut effects) = (Checkpoint::default(), Effects::default());
            while vhost.handle_checkpoint(NOW, &mut checkpoint, u32::MAX, &mut effects) {}
            let pages = effects.changes.iter().filter_map(|change| match change {
                Change::QueuePage { entries, .. } => Some(entries),
                _ => None,
            });
            let places: Vec<_> = pages.flat_map(PageEntries::iter).map(|entry| entry.position.0).collect();
            let expected = (10..300).chain(800..1030).filter(|place| ![20, 21, 299, 800, 1029].contains(place));
            assert_eq!(places, expected.collect::<Vec<_>>());
            // A place is given once.
            let (number, at) = (QueueNumber(1), vhost.position().0 + 1);
            let twice = apply(&mut vhost, at, vec![begun(), block(256, 256..300), block(256, 300..310)]);
            assert_eq!(twice[2], Err(ApplyError::Place { queue: number.0, position: 300 }));
        }
    }

    #[test]
    fn pages_that_become_no_queue_take_no_memory() {
        let empty = empty_vhost().memory().bytes();
        let pages = || {
            let begun = Change::CheckpointBegun { last_queue: QueueNumber(1) };
            let pages = (0..10).map(|n| page(n * 256..n * 256 + 256));
            std::iter::once(begun).chain(pages).chain((10..20).map(|n| block(n * 256, n * 256 + 9..n * 256 + 256)))
        };
        // It has no end; another one follows it; its queue is deleted.
        for behind in [vec![], pages().take(1).collect(), vec![Change::QueueDeleted { queue: QueueNumber(1) }]] {
            let mut vhost = empty_vhost();
            apply(&mut vhost, 10_000, pages().collect());
            assert!(vhost.memory().bytes() > empty);
            let at = vhost.position().0;
            apply(&mut vhost, at + 1, behind);
            vhost.end_recovery();
            assert_eq!(vhost.memory().bytes(), empty);
        }
    }
}
