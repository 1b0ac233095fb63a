//! The messages of one priority in one queue, in their order.
//!
//! Owns: which of them are ready, and how far they may be handed out.
//! Must not know: other priorities, who consumes.
//! Invariant: a place says to which level it belongs, so places of different levels are never the same.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

use leveret_planted::{Bug, planted};

use super::index::{Detached, Entry, Eviction, Index, Position, Settled};
use super::{Dying, Known};
use crate::change::{Block, JournalPosition};
use crate::limits::{GRANT_AHEAD, PAGE_ENTRIES, READ_AHEAD_ENTRIES};
use crate::memory::{Lease, Meter};
use crate::message::{Message, MessageId};
use crate::moment::{Deadline, Moment};
use crate::scratch::{Place, Segment};
use crate::vhost::queue::Body;

/// The place of a priority among others: the lower, the sooner its messages are delivered. Messages without a priority
/// of their own have rank 0.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Rank(i16);

/// Bits of a place that count messages; those above them are its rank.
const PLACE_BITS: u32 = 54;

impl Rank {
    /// The rank of a priority where messages without one have another.
    pub(crate) fn of(priority: u8, without: u8) -> Self {
        Rank(i16::from(without) - i16::from(priority))
    }

    /// That of messages with a delay of so many milliseconds: of each twice as long a delay another one.
    pub(crate) fn of_delay(ms: u32) -> Self {
        Rank(i16::try_from(u32::BITS - ms.leading_zeros()).expect("so many bits a number has"))
    }

    pub(crate) fn of_place(position: Position) -> Self {
        let rank = position.0.cast_signed() >> PLACE_BITS;
        Rank(i16::try_from(rank).expect("ten bits are left"))
    }

    /// The first place of its level.
    fn first_place(self) -> Position {
        Position((i64::from(self.0) << PLACE_BITS).cast_unsigned())
    }
}

/// How far journaled messages may be handed out: only below a durable grant, so that a restart knows which may have
/// been delivered. It is written far ahead and renewed in time, so that deliveries do not wait for it.
#[derive(Debug, Default)]
struct Grant {
    below: Position,
    at: JournalPosition,
    /// The grant before, which is enough for what lies below it.
    before: (Position, JournalPosition),
}

impl Grant {
    fn covers(&self, position: Position) -> Result<JournalPosition, Position> {
        if position.0 + GRANT_AHEAD / 2 >= self.below.0 {
            return Err(Position(position.0 + GRANT_AHEAD));
        }
        Ok(if position < self.before.0 { self.before.1 } else { self.at })
    }
}

/// The messages of one priority.
#[derive(Debug)]
pub(crate) struct Level {
    index: Index,
    grant: Grant,
    /// Everything before it may have been delivered before a restart.
    flagged_below: Position,
    /// The place behind the last journaled message: where a restart goes on.
    journaled_end: Position,
    /// Everything from here on was never delivered.
    cursor: Position,
    /// Before the cursor, and ready again.
    returned: BTreeSet<Position>,
    /// What these take.
    returned_memory: Lease,
}

/// What a message that came back takes beside what all take, about.
const RETURNED_BYTES: usize = 16;

impl Level {
    fn new(rank: Rank, meter: Meter) -> Self {
        let first = rank.first_place();
        let mut index = Index::new(meter.clone());
        index.begin_at(first);
        Level {
            index,
            grant: Grant { below: first, ..Grant::default() },
            flagged_below: first,
            journaled_end: first,
            cursor: first,
            returned: BTreeSet::new(),
            returned_memory: Lease::new(meter),
        }
    }

    fn measure(&mut self) {
        self.returned_memory.set(self.returned.len() * RETURNED_BYTES);
    }

    pub(super) fn push(&mut self, entry: Entry) -> Position {
        let journaled = entry.journaled;
        let position = self.index.push(entry);
        if journaled {
            self.journaled_end = position.next();
        }
        position
    }

    /// The same after a restart; false if that place is taken, or is no place.
    pub(crate) fn push_at(&mut self, position: Position, entry: Entry) -> bool {
        let is_put = self.index.push_at(position, entry);
        if is_put {
            self.journaled_end = position.next();
        }
        is_put
    }

    /// Takes a whole page of messages after a restart; false if they are to be put one by one.
    pub(crate) fn push_block(&mut self, block: &Block, bytes: &[u8]) -> bool {
        let last_of = |slots: usize| Position(block.first.0.saturating_add(slots as u64 - 1));
        let is_here = Rank::of_place(block.first) == Rank::of_place(last_of(PAGE_ENTRIES));
        let is_put = is_here && self.index.push_block(block, bytes);
        if is_put {
            self.journaled_end = block.slots.last().map_or(block.first, |slot| last_of(slot + 1)).next();
        }
        is_put
    }

    /// The next message gets this place; false if that was given already, or lies absurdly far away.
    pub(super) fn skip_forward(&mut self, next: Position) -> bool {
        self.index.skip_forward(next)
    }

    pub(super) fn leave_gap(&mut self, places: u64) {
        self.index.leave_gap(places);
    }

    pub(crate) fn settle(&mut self, position: Position) -> Option<Settled> {
        self.index.settle(position)
    }

    pub(crate) fn settle_below(&mut self, below: Position, except: &[Position]) {
        self.index.settle_below(below, except);
    }

    /// Has only these any more, which die.
    pub(crate) fn close(&mut self, kept: &[Position]) {
        self.index.settle_below(self.index.next(), kept);
        self.returned.clear();
        self.measure();
    }

    pub(super) fn known(&self, position: Position) -> Option<Known> {
        self.index.known(position)
    }

    pub(super) fn open(&mut self, position: Position) -> Option<&Entry> {
        self.index.open(position)
    }

    pub(super) fn restore(&mut self, position: Position, message: Message) {
        self.index.restore(position, message);
    }

    pub(super) fn flag_redelivered(&mut self, position: Position) -> bool {
        self.index.flag_redelivered(position)
    }

    pub(super) fn live(&self) -> usize {
        self.index.live()
    }

    pub(super) fn body_bytes(&self) -> u64 {
        self.index.body_bytes()
    }

    pub(super) fn expiring(&self) -> usize {
        self.index.expiring()
    }

    pub(super) fn first_due(&self) -> Option<Deadline> {
        self.index.first_due()
    }

    /// Where to go on in it, or its first place.
    fn place_in(&self, from: &BTreeMap<Rank, Position>) -> Position {
        let base = self.index.base();
        from.get(&Rank::of_place(base)).map_or(base, |&from| from.max(base))
    }

    fn page_from(&self, from: Position, each: impl FnMut(Position, &Entry)) -> Option<Range<Position>> {
        let page = self.index.page_from(from, each)?;
        Some(page.start..page.end.min(self.index.next()))
    }

    /// The place that its next message gets.
    pub(crate) fn next_position(&self) -> Position {
        self.index.next()
    }

    /// Messages may be handed out up to this place.
    pub(crate) fn grant_below(&self) -> Position {
        self.grant.below
    }

    /// What the delivery of a journaled message rests on, or the grant that is needed first.
    pub(super) fn granted(&self, position: Position) -> Result<JournalPosition, Position> {
        self.grant.covers(position)
    }

    pub(super) fn set_grant(&mut self, below: Position, at: JournalPosition) {
        let before = (self.grant.below, self.grant.at);
        self.grant = Grant { below, at, before };
    }

    /// After a restart: whatever was granted may have been delivered.
    pub(super) fn flag_granted(&mut self) {
        if planted(Bug::GrantedWithoutFlag) {
            return;
        }
        // What will be enqueued at the places behind is new.
        self.flagged_below = self.grant.below.min(self.index.next());
    }

    /// The grant that says exactly what was delivered, if it is another than the one in force.
    pub(super) fn exact_grant(&self) -> Option<Position> {
        let exact = self.cursor.max(self.flagged_below).min(self.journaled_end);
        (exact < self.grant.below).then_some(exact)
    }

    /// Nothing from here on was delivered since the start.
    pub(super) fn cursor(&self) -> Position {
        self.cursor
    }

    pub(super) fn is_redelivered(&self, position: Position) -> bool {
        position < self.flagged_below || (self.index.is_redelivered(position) && !planted(Bug::RequeuedWithoutFlag))
    }

    /// The ready message that comes first.
    pub(super) fn head(&mut self, dying: &Dying) -> Option<Position> {
        if let Some(&position) = self.returned.first()
            && !planted(Bug::RequeueAtTail)
        {
            return Some(position);
        }
        let mut found = self.index.first_from(self.cursor);
        while let Some(position) = found.filter(|&position| dying.contains(position)) {
            found = self.index.first_from(position.next());
        }
        self.cursor = found.unwrap_or(self.index.next());
        if planted(Bug::RequeueAtTail) {
            return found.or(self.returned.first().copied());
        }
        found
    }

    /// A ready message is ready no more, out of turn.
    pub(super) fn take(&mut self, position: Position) {
        self.returned.remove(&position);
        self.measure();
    }

    /// The head is ready no more.
    pub(super) fn advance(&mut self, head: Position) {
        if head < self.cursor {
            let was_returned = self.returned.remove(&head);
            debug_assert!(was_returned);
            self.measure();
        } else {
            self.cursor = head.next();
        }
    }

    /// An unacked message is ready again.
    pub(super) fn put_back(&mut self, position: Position) {
        if self.index.expiring() > 0 {
            self.index.note_due(position);
        }
        let is_new = self.returned.insert(position);
        assert!(is_new, "a message is returned once for each time it was delivered");
        self.measure();
    }

    /// Whether a message may be delivered, should it be there.
    pub(super) fn is_ready(&self, position: Position, dying: &Dying) -> bool {
        if position < self.cursor { self.returned.contains(&position) } else { !dying.contains(position) }
    }

    /// Whether this is the head, and its body is not in memory.
    pub(super) fn head_is_stored(&mut self, position: Position, dying: &Dying) -> bool {
        self.head(dying) == Some(position)
            && self.index.open(position).is_some_and(|entry| !matches!(entry.body, Body::Resident(_)))
    }

    /// The ready messages of the next page in which some are due, in their order; none if no message is due.
    pub(super) fn take_due(&mut self, now: Moment, dying: &Dying) -> Option<Vec<(Deadline, Position)>> {
        self.take_due_if(now, dying, |deadline, _| now.has_reached(deadline))
    }

    /// The same of messages that are due by another measure.
    fn take_due_if(
        &mut self,
        now: Moment,
        dying: &Dying,
        is_due: impl Fn(Deadline, Position) -> bool,
    ) -> Option<Vec<(Deadline, Position)>> {
        let Level { index, cursor, returned, .. } = self;
        let is_ready = |position| {
            if position < *cursor { returned.contains(&position) } else { !dying.contains(position) }
        };
        index.take_due(now, is_due, is_ready)
    }

    /// The bodies that will be needed next, from the head on: those that are not in memory, until so many bytes or the
    /// first that is.
    pub(super) fn stored_from(&mut self, head: Position, mut bytes: usize) -> Vec<(Position, MessageId)> {
        let mut found = Vec::new();
        let mut next = Some(head);
        while let Some(position) = next {
            let Some(entry) = self.index.open(position) else { break };
            if matches!(entry.body, Body::Resident(_)) || found.len() == READ_AHEAD_ENTRIES {
                break;
            }
            found.push((position, entry.id));
            let Some(left) = bytes.checked_sub(entry.bytes as usize) else { break };
            bytes = left;
            next = if position < self.cursor {
                self.returned.range(position.next()..).next().copied()
            } else {
                self.index.first_from(position.next())
            };
        }
        found
    }

    /// Takes out at once what can be: everything if nothing is taken, else all whole pages that were never delivered, but
    /// for none if one in them dies.
    pub(super) fn purge(&mut self, dying: &Dying, is_any_taken: bool) -> Detached {
        if dying.positions().any(|position| position >= self.cursor && position < self.index.next()) {
            return Detached::default();
        }
        if is_any_taken {
            return self.index.detach_behind(self.cursor);
        }
        self.returned.clear();
        self.measure();
        let detached = self.index.detach();
        self.cursor = self.index.next();
        detached
    }

    /// Places of messages that are delivered, or that die, in order.
    pub(super) fn taken_positions(&self, dying: &Dying) -> Vec<Position> {
        let mut found = Vec::new();
        let mut from = self.index.base();
        while let Some(position) = self.index.first_from(from).filter(|&position| position < self.cursor) {
            if !self.returned.contains(&position) {
                found.push(position);
            }
            from = position.next();
        }
        let range = |position: &Position| (self.cursor..self.index.next()).contains(position);
        found.extend(dying.positions().filter(range));
        found
    }

    pub(super) fn evict(
        &mut self,
        from: Position,
        keep: &Range<Position>,
        entries: &mut usize,
        evict: &mut dyn FnMut(Position, &Entry) -> Eviction,
    ) -> Option<Position> {
        self.index.evict(from, keep, entries, evict)
    }

    pub(super) fn store(&mut self, position: Position, message: &Message, segment: Segment, place: Place) {
        self.index.store(position, message, segment, place);
    }

    /// The places that hold so many bytes from the cursor on, about.
    pub(super) fn window(&mut self, bytes: usize) -> Range<Position> {
        let start = self.index.first_from(self.cursor).unwrap_or(self.cursor);
        // Its neighbours are likely as large.
        let Some(entry) = self.index.open(start).filter(|_| bytes > 0) else { return start..start };
        let entry_bytes = entry.bytes.max(1) as usize;
        start..Position(start.0 + bytes.div_ceil(entry_bytes).min(READ_AHEAD_ENTRIES) as u64)
    }

    fn detach(&mut self) -> Detached {
        self.index.detach()
    }
}

/// The levels of one queue. Most have one.
#[derive(Debug)]
pub(crate) struct Levels {
    ordinary: Level,
    others: BTreeMap<Rank, Level>,
    /// Places that are left out in levels to come, too.
    gap: u64,
    meter: Meter,
}

impl Levels {
    /// One level without messages, whose memory is added up in `meter`.
    pub(crate) fn new(meter: Meter) -> Self {
        Levels { ordinary: Level::new(Rank(0), meter.clone()), others: BTreeMap::new(), gap: 0, meter }
    }

    /// That of messages without a priority of their own.
    pub(crate) fn ordinary(&self) -> &Level {
        &self.ordinary
    }

    /// The only one, if there are no others: what most queues are asked for at each message.
    pub(crate) fn only_mut(&mut self) -> Option<&mut Level> {
        self.others.is_empty().then_some(&mut self.ordinary)
    }

    /// How many messages there are.
    pub(crate) fn live(&self) -> usize {
        let others = if self.others.is_empty() { 0 } else { self.others.values().map(Level::live).sum() };
        self.ordinary.live() + others
    }

    /// Whether any of them has a deadline.
    pub(crate) fn has_expiring(&self) -> bool {
        self.ordinary.expiring() > 0
            || (!self.others.is_empty() && self.others.values().any(|level| level.expiring() > 0))
    }

    /// For each of the others, the place that its next message gets, and that below which they may be handed out.
    pub(crate) fn others(&self) -> impl Iterator<Item = (Position, Position)> {
        self.others.values().map(|level| (level.next_position(), level.grant_below()))
    }

    /// The level of a place, if it has any messages.
    pub(crate) fn of(&self, position: Position) -> Option<&Level> {
        match Rank::of_place(position) {
            Rank(0) => Some(&self.ordinary),
            rank => self.others.get(&rank),
        }
    }

    pub(crate) fn of_mut(&mut self, position: Position) -> Option<&mut Level> {
        match Rank::of_place(position) {
            Rank(0) => Some(&mut self.ordinary),
            rank => self.others.get_mut(&rank),
        }
    }

    /// The level of a place, which has messages from now on.
    pub(crate) fn begin_of(&mut self, position: Position) -> &mut Level {
        self.begin(Rank::of_place(position))
    }

    pub(crate) fn begin(&mut self, rank: Rank) -> &mut Level {
        if rank == Rank(0) {
            return &mut self.ordinary;
        }
        let (gap, meter) = (self.gap, &self.meter);
        self.others.entry(rank).or_insert_with(|| {
            let mut level = Level::new(rank, meter.clone());
            level.leave_gap(gap);
            level
        })
    }

    /// In the order in which their messages are delivered.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &Level> {
        let before = self.others.range(..Rank(0)).map(|(_, level)| level);
        let behind = self.others.range(Rank(0)..).map(|(_, level)| level);
        before.chain([&self.ordinary]).chain(behind)
    }

    pub(crate) fn iter_mut(&mut self) -> impl Iterator<Item = &mut Level> {
        let Levels { ordinary, others, .. } = self;
        let mut ordinary = Some(ordinary);
        let mut others = others.iter_mut().peekable();
        std::iter::from_fn(move || match others.next_if(|(rank, _)| **rank < Rank(0) || ordinary.is_none()) {
            Some((_, level)) => Some(level),
            None => ordinary.take().or_else(|| others.next().map(|(_, level)| level)),
        })
    }

    /// Hands out the journaled messages of a page: of the first level that has any at or behind its place in `from`, or that
    /// has none there. Returns the places of the page, behind which to go on in that level; none if there was no message.
    pub(crate) fn page_from(
        &self,
        from: &BTreeMap<Rank, Position>,
        mut each: impl FnMut(Position, &Entry),
    ) -> Option<Range<Position>> {
        self.iter().find_map(|level| level.page_from(level.place_in(from), &mut each))
    }

    /// Places that [`Self::page_from`] has not passed yet.
    pub(crate) fn places_from(&self, from: &BTreeMap<Rank, Position>) -> u64 {
        self.iter().map(|level| level.next_position().0 - level.place_in(from).0).sum()
    }

    /// The levels from that of a place on, each with where to begin in it.
    pub(crate) fn iter_from(&self, from: Option<Position>) -> impl Iterator<Item = (Position, &Level)> {
        let start = from.map(Rank::of_place);
        self.iter().filter_map(move |level| {
            let first = level.index.base();
            let rank = Rank::of_place(first);
            match (from, start) {
                (Some(from), Some(start)) if rank == start => Some((from, level)),
                (_, start) => start.is_none_or(|start| rank > start).then_some((first, level)),
            }
        })
    }

    /// The ready messages that are due first of all, in their order: those of one page that come before all of other pages. They
    /// are few where pages are due at about the same time; none if no message is due. Of two that are due at the same
    /// time, that with the longer delay came first: those of higher ranks.
    pub(super) fn take_due_in_order(&mut self, now: Moment, dying: &Dying) -> Option<Vec<(Deadline, Position)>> {
        let key = |deadline: Deadline, position| (deadline, Reverse(Rank::of_place(position)), position);
        let (mut first, mut second) = (None, None);
        for (deadline, page) in self.iter().flat_map(|level| level.index.due_pages().take(2)) {
            let found = Some(key(deadline, page));
            if first.is_none() || found < first {
                second = std::mem::replace(&mut first, found);
            } else if second.is_none() || found < second {
                second = found;
            }
        }
        let (.., page) = first?;
        let is_due = |deadline, position| {
            now.has_reached(deadline) && second.is_none_or(|second| key(deadline, position) < second)
        };
        let mut due = self.of_mut(page)?.take_due_if(now, dying, is_due)?;
        due.sort_unstable();
        Some(due)
    }

    /// Leaves places out in all levels, for good.
    pub(crate) fn leave_gap(&mut self, places: u64) {
        self.gap = self.gap.saturating_add(places);
        self.iter_mut().for_each(|level| level.leave_gap(places));
    }

    /// Takes all messages out.
    pub(crate) fn detach(&mut self) -> Vec<Detached> {
        self.iter_mut().map(Level::detach).filter(|detached| !detached.is_empty()).collect()
    }
}

impl Drop for Levels {
    fn drop(&mut self) {
        // What they take in memory is given back.
        self.detach();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_says_its_rank() {
        for rank in [-255, -31, -1, 0, 1, 4] {
            let first = Rank(rank).first_place();
            assert_eq!(Rank::of_place(first), Rank(rank));
            assert_eq!(Rank::of_place(Position(first.0 + (1 << 53))), Rank(rank));
        }
        assert_eq!(Rank(0).first_place(), Position(0));
        assert_eq!(Rank::of(31, 4), Rank(-27));
        assert_eq!(Rank::of(0, 4), Rank(4));
    }

    #[test]
    fn levels_come_in_the_order_of_their_ranks() {
        let mut levels = Levels::new(Meter::default());
        for rank in [4, -27, 1, -1] {
            levels.begin(Rank(rank));
        }
        let ranks = [-27, -1, 0, 1, 4].map(Rank);
        let of = |level: &Level| Rank::of_place(level.next_position());
        assert_eq!(levels.iter().map(of).collect::<Vec<_>>(), ranks);
        assert_eq!(levels.iter_mut().map(|level| of(level)).collect::<Vec<_>>(), ranks);
        let from = |from| levels.iter_from(from).map(|(_, level)| of(level)).collect::<Vec<_>>();
        assert_eq!(from(None), ranks);
        assert_eq!(from(Some(Rank(0).first_place())), ranks[2..]);
        assert_eq!(from(Some(Rank(-1).first_place())), ranks[1..]);
    }
}
