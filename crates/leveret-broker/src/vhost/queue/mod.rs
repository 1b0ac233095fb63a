//! One queue: a durable part, and a volatile overlay that a restart rebuilds as "all ready".
//!
//! Owns: what lies in the queue, what of it is ready, what is delivered and unacked, who consumes.
//! Must not know: connections, channels, exchanges.
//! Invariant: every live entry is exactly one of *ready* (behind the cursor, or returned) and *taken*: unacked, or dying.

pub(crate) mod arguments;
mod consumers;
mod dying;
mod index;
mod level;
mod settings;

use std::collections::{BTreeMap, BTreeSet};
use std::num::NonZeroU32;
use std::time::Duration;

use leveret_amqp::FieldTable;
use leveret_planted::{Bug, planted};

pub(crate) use self::arguments::{ArgumentError, ArgumentFault, QueueArguments, QueueType};
pub(crate) use self::consumers::{ConsumerKey, Consumers, Priority, Seat, Sharing, Waiting};
pub(crate) use self::dying::{Dying, Wait};
pub(crate) use self::index::{Body, Detached, Entry, Eviction, Known, Position, Settled};
pub(crate) use self::level::{Level, Levels, Rank};
pub(crate) use self::settings::{DeadLetters, Overflow, QueueKeys, QueueSettings, Strategy, least_limit};
use crate::change::{Change, DeathReason, JournalPosition, QueueNumber, Tries};
use crate::limits::{LEVEL_BYTES, QUEUE_BYTES, QUORUM_PRIORITY_DEFAULT, QUORUM_PRIORITY_MAX, READ_AHEAD_ENTRIES};
use crate::memory::{Lease, Meter};
use crate::message::{Message, MessageId};
use crate::moment::{Deadline, Moment};
use crate::names::QueueName;
use crate::scratch::{Place, Segment};
use crate::vhost::ConnectionId;
use crate::vhost::command::AckMode;
use crate::vhost::delay::delay_ms;
use crate::vhost::exchange::ExchangeId;
use crate::vhost::policy::Matching;

/// What a declaration fixes for the life of a queue.
#[derive(Debug)]
pub(crate) struct Declared {
    pub(crate) name: QueueName,
    pub(crate) number: QueueNumber,
    /// Whether it survives a restart; never so for an exclusive queue.
    pub(crate) durable: bool,
    pub(crate) auto_delete: bool,
    pub(crate) standing: Standing,
    /// The connection that an exclusive queue belongs to.
    pub(crate) owner: Option<ConnectionId>,
    pub(crate) arguments: QueueArguments,
    /// As the client gave them, to compare with the next declaration.
    pub(crate) raw_arguments: FieldTable,
}

impl Declared {
    /// What it takes in memory, with the levels of all priorities that a classic queue was declared with, and of all lengths of
    /// delays. What a quorum queue has of them is added as their first messages come: most have none.
    pub(crate) fn bytes(&self) -> usize {
        let levels = match (self.standing, self.arguments.queue_type) {
            (Standing::Delaying, _) => u32::BITS as usize,
            (_, QueueType::Classic) => usize::from(self.arguments.max_priority),
            (_, QueueType::Quorum) => 0,
        };
        let own = self.name.as_str().len() + self.raw_arguments.as_table().as_bytes().len();
        QUEUE_BYTES + own + levels * LEVEL_BYTES
    }
}

/// Who finds a queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Standing {
    /// Everybody, by its name.
    Open,
    /// Nobody: it was deleted, and is there for dead letters only that have not gone on yet.
    Closed,
    /// Nobody: messages wait in it until the exchange of its name routes them.
    Delaying,
}

/// Whether a queue stands in a list of those to run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Turn {
    /// It has nothing to do.
    None,
    /// Before the next command begins.
    Soon,
    /// It has much to do: between commands.
    Behind,
}

/// A queue with all that is in it.
#[derive(Debug)]
pub(crate) struct Queue {
    pub(crate) declared: Declared,
    /// What its arguments and policies come to.
    pub(crate) settings: QueueSettings,
    /// The policies that match it.
    pub(crate) policies: Matching,
    /// The exchanges it is bound to.
    pub(crate) bound_to: BTreeSet<ExchangeId>,
    pub(crate) consumers: Consumers,
    /// The one consumer that has the queue for itself.
    pub(crate) exclusive_consumer: Option<Seat>,
    /// When it is to run.
    pub(crate) turn: Turn,
    /// The head whose body is being fetched. Nothing overtakes it.
    pub(crate) parked: Option<Position>,
    /// The deadline for which the virtual host will call.
    pub(crate) timer: Option<Deadline>,
    /// Whether it was said that a dead letter from here came round.
    pub(crate) cycle_noticed: bool,
    /// The same of one that had gone on far enough.
    pub(crate) spread_noticed: bool,
    /// When it was used last; what `x-expires` counts from.
    last_used: Moment,
    levels: Levels,
    /// Messages that are delivered, or that die.
    taken: usize,
    /// Bytes of their bodies.
    taken_bytes: u64,
    dying: Dying,
    /// The last departure of a message from another queue to this one.
    departures: JournalPosition,
    /// How often messages came back, if the queue counts that; only of those that did.
    tries: BTreeMap<Position, Tries>,
    /// What these take.
    tries_memory: Lease,
    /// What its declaration takes, and levels that were not declared.
    declared_memory: Lease,
}

/// What is known of a message that came back takes, about.
const TRIES_BYTES: usize = 32;

const _: () =
    assert!(size_of::<Queue>() <= QUEUE_BYTES && size_of::<Level>() <= LEVEL_BYTES, "they are counted as that");

impl Queue {
    /// An empty queue, whose messages are added up in `meter`, and its declaration where `declarations` is.
    pub(crate) fn new(declared: Declared, now: Moment, meter: Meter, declarations: Lease) -> Self {
        let sharing = match declared.arguments.queue_type {
            _ if !declared.arguments.single_active_consumer => Sharing::All,
            QueueType::Classic => Sharing::First,
            QueueType::Quorum => Sharing::Highest,
        };
        let settings = QueueSettings::new(&declared.arguments, None);
        let declared_memory = declarations.with(declared.bytes());
        Queue {
            declared,
            settings,
            policies: Matching::default(),
            bound_to: BTreeSet::new(),
            consumers: Consumers::new(sharing),
            exclusive_consumer: None,
            turn: Turn::None,
            parked: None,
            timer: None,
            cycle_noticed: false,
            spread_noticed: false,
            last_used: now,
            levels: Levels::new(meter.clone()),
            taken: 0,
            taken_bytes: 0,
            dying: Dying::new(meter.clone()),
            departures: JournalPosition::default(),
            tries: BTreeMap::new(),
            tries_memory: Lease::new(meter),
            declared_memory,
        }
    }

    /// Messages that lie in it, delivered or not.
    pub(crate) fn len(&self) -> usize {
        self.levels.live()
    }

    /// Messages that wait to be delivered.
    pub(crate) fn ready(&self) -> usize {
        self.len() - self.taken
    }

    /// Bytes of the bodies of those.
    pub(crate) fn ready_bytes(&self) -> u64 {
        self.levels.iter().map(Level::body_bytes).sum::<u64>() - self.taken_bytes
    }

    /// [`Self::ready`] as `declare-ok` and its like carry it.
    pub(crate) fn message_count(&self) -> u32 {
        u32::try_from(self.ready()).unwrap_or(u32::MAX)
    }

    pub(crate) fn consumer_count(&self) -> u32 {
        u32::try_from(self.consumers.count()).unwrap_or(u32::MAX)
    }

    /// How often a message came back.
    pub(crate) fn tries(&self, position: Position) -> Tries {
        self.tries.get(&position).copied().unwrap_or_default()
    }

    /// How often each message came back that did.
    pub(crate) fn all_tries(&self) -> impl Iterator<Item = (Position, Tries)> {
        self.tries.iter().map(|(&position, &tries)| (position, tries))
    }

    /// A message came back so often; false if it is not there.
    pub(crate) fn set_tries(&mut self, position: Position, tries: Tries) -> bool {
        let is_here = self.known(position).is_some();
        if is_here {
            self.tries.insert(position, tries);
            self.measure_tries();
        }
        is_here
    }

    fn measure_tries(&mut self) {
        self.tries_memory.set(self.tries.len() * TRIES_BYTES);
    }

    /// A message is gone.
    fn forget_tries_of(&mut self, position: Position) {
        if self.tries.remove(&position).is_some() {
            self.measure_tries();
        }
    }

    /// After a restart: a message came back so often; false if it is not there.
    pub(crate) fn restore_tries(&mut self, position: Position, tries: Tries) -> bool {
        self.levels.of_mut(position).is_some_and(|level| level.flag_redelivered(position))
            && self.set_tries(position, tries)
    }

    /// What a delivery says of those before it: nothing if it is the first, or if the queue does not count.
    pub(crate) fn told_tries(&self, position: Position) -> Option<Tries> {
        let counts = self.declared.arguments.queue_type == QueueType::Quorum;
        if !counts || !self.is_redelivered(position) {
            return None;
        }
        // After a crash it may have been given away without having come back.
        let Tries { acquired, failed } = self.tries(position);
        Some(Tries { acquired: acquired.max(1), failed })
    }

    /// Whether one more ready message, with a body of so many bytes, would be too many.
    pub(crate) fn would_overflow(&self, body_bytes: usize) -> bool {
        // RabbitMQ: what has to be kept until somebody takes it counts, too.
        let is_kept = self.keeps_dead_letters() && !planted(Bug::KeptLettersUncounted);
        let (kept, kept_bytes) = if is_kept { (self.dying.len(), self.dying.body_bytes()) } else { (0, 0) };
        self.exceeds((self.ready() + kept) as u64 + 1, self.ready_bytes() + kept_bytes + body_bytes as u64)
    }

    /// Whether a dead letter stays until it is taken.
    pub(crate) fn keeps_dead_letters(&self) -> bool {
        let dead_letters = self.settings.dead_letters.as_ref();
        dead_letters.is_some_and(|dead_letters| dead_letters.strategy == Strategy::AtLeastOnce)
    }

    /// Whether there are more ready messages than there may be, so that the oldest have to leave.
    pub(crate) fn overflows(&self) -> bool {
        let QueueSettings { max_length, max_length_bytes, overflow, .. } = &self.settings;
        let is_limited = max_length.is_some() || max_length_bytes.is_some();
        let drops = is_limited && *overflow == Overflow::DropHead;
        drops && self.exceeds(self.ready() as u64, self.ready_bytes())
    }

    fn exceeds(&self, messages: u64, bytes: u64) -> bool {
        let QueueSettings { max_length, max_length_bytes, .. } = &self.settings;
        let more = u64::from(planted(Bug::LengthOneTooMany));
        max_length.is_some_and(|most| messages > most + more) || max_length_bytes.is_some_and(|most| bytes > most)
    }

    /// The place of a message of this priority among others. RabbitMQ: one that has none counts as 0, in quorum queues as 4.
    fn rank(&self, priority: impl FnOnce() -> Option<u8>) -> Rank {
        let QueueArguments { queue_type, max_priority, .. } = self.declared.arguments;
        let (most, without) = match queue_type {
            QueueType::Classic => (max_priority, 0),
            QueueType::Quorum => (QUORUM_PRIORITY_MAX, QUORUM_PRIORITY_DEFAULT),
        };
        let priority = if most > 0 { priority() } else { None };
        priority.map_or(Rank::default(), |priority| Rank::of(priority.min(most), without))
    }

    /// Puts a message behind all others of its rank.
    pub(crate) fn push(&mut self, rank: Rank, entry: Entry) -> Position {
        let position = self.levels.begin(rank).push(entry);
        if rank != Rank::default() {
            self.measure_levels();
        }
        position
    }

    fn measure_levels(&mut self) {
        if self.declared.arguments.queue_type == QueueType::Quorum {
            let levels = self.levels.others().count() * LEVEL_BYTES;
            self.declared_memory.set(self.declared.bytes() + levels);
        }
    }

    /// The same after a restart; false if that place is taken, or is no place.
    pub(crate) fn push_at(&mut self, position: Position, entry: Entry) -> bool {
        // What waits has the rank of its delay.
        let is_place = !self.is_delaying() || Rank::of_place(position) != Rank::default();
        let is_put = is_place && self.levels.begin_of(position).push_at(position, entry);
        if Rank::of_place(position) != Rank::default() {
            self.measure_levels();
        }
        is_put
    }

    /// The next so many places stay empty, for good.
    pub(crate) fn leave_gap(&mut self, places: u64) {
        self.levels.leave_gap(places);
    }

    /// Removes a message after a restart, when none is delivered yet; false if it is not there.
    pub(crate) fn settle(&mut self, position: Position) -> bool {
        let is_dying = self.dying.remove(position);
        self.forget_tries_of(position);
        let settled = self.levels.of_mut(position).and_then(|level| level.settle(position));
        if let Some(settled) = settled.as_ref().filter(|_| is_dying) {
            self.give_back(settled.body_bytes);
        }
        settled.is_some()
    }

    /// Removes all messages of a level before a place but these, after a restart.
    pub(crate) fn settle_below(&mut self, below: Position, except: &[Position]) {
        let rank = Rank::of_place(below);
        let is_meant = |position: Position| {
            Rank::of_place(position) == rank && position < below && except.binary_search(&position).is_err()
        };
        for position in self.dying.take_out(is_meant) {
            self.settle_taken(position);
        }
        if let Some(level) = self.levels.of_mut(below) {
            level.settle_below(below, except);
        }
        self.forget_tries();
    }

    /// Forgets how often messages came back that are not there any more.
    fn forget_tries(&mut self) {
        let levels = &self.levels;
        let is_here = |position| levels.of(position).is_some_and(|level| level.known(position).is_some());
        self.tries.retain(|&position, _| is_here(position));
        self.measure_tries();
    }

    /// The queue is deleted: has only these dead letters any more, as far as they are here. Nobody has asked for their bodies.
    pub(crate) fn close(&mut self, mut kept: Vec<Position>) {
        self.declared.standing = Standing::Closed;
        kept.retain(|&position| self.dying.contains(position));
        kept.sort_unstable();
        self.dying.take_out(|position| kept.binary_search(&position).is_err());
        self.dying.forget_asked();
        self.levels.iter_mut().for_each(|level| level.close(&kept));
        (self.taken, self.taken_bytes) = (kept.len(), self.dying.body_bytes());
        self.parked = None;
        self.timer = None;
        self.turn = Turn::None;
        self.forget_tries();
    }

    /// Whether it was deleted, and nothing is left for which it is there.
    pub(crate) fn is_done(&self) -> bool {
        self.declared.standing == Standing::Closed && self.dying.is_empty()
    }

    /// Has these messages and no others, after a restart.
    pub(crate) fn restate(&mut self, levels: Levels) {
        self.levels = levels;
        self.measure_levels();
        self.dying.clear();
        self.tries.clear();
        self.measure_tries();
        (self.taken, self.taken_bytes) = (0, 0);
    }

    /// After a restart: the next message of a level gets this place, and those before another may be handed out. False if
    /// that place was given already.
    pub(crate) fn restate_level(&mut self, next: Position, granted: Position, at: JournalPosition) -> bool {
        let level = self.levels.begin_of(next);
        level.set_grant(granted, at);
        let is_put = level.skip_forward(next);
        self.measure_levels();
        is_put
    }

    /// Its messages by their priority, in the order in which they are delivered.
    pub(crate) fn levels(&self) -> &Levels {
        &self.levels
    }

    /// After a restart: a message is to be dead-lettered, and waits for its body; false if it is not there.
    pub(crate) fn condemn_again(&mut self, position: Position, reason: DeathReason) -> bool {
        let Some(body_bytes) = self.known(position).map(|known| known.body_bytes) else { return false };
        if self.dying.push(position, reason, body_bytes, true) {
            self.taken += 1;
            self.taken_bytes += u64::from(body_bytes);
        }
        true
    }

    /// A message that was taken is to go on, and waits for its body. Whether a journal is to say so: after a restart, one that has
    /// waited in a delay queue is due anyhow.
    pub(crate) fn condemn(&mut self, position: Position, reason: DeathReason) -> bool {
        let (body_bytes, journaled) =
            self.known(position).map_or((0, false), |known| (known.body_bytes, known.journaled));
        let is_told = journaled && !self.is_delaying();
        let is_new = self.dying.push(position, reason, body_bytes, is_told);
        assert!(is_new, "a message dies once");
        is_told
    }

    /// Whether messages wait in it until an exchange routes them.
    pub(crate) fn is_delaying(&self) -> bool {
        self.declared.standing == Standing::Delaying
    }

    /// Whether what leaves it unconsumed goes anywhere.
    pub(crate) fn sends_on(&self) -> bool {
        self.settings.dead_letters.is_some() || self.is_delaying()
    }

    /// Where a message is put among those of other priorities, and for how long. RabbitMQ: the shorter time to live of queue and
    /// message counts.
    pub(crate) fn place_for(&self, message: &Message, expiration_ms: Option<u64>) -> (Rank, Option<Duration>) {
        if self.is_delaying() {
            let headers = message.decode_header().ok().and_then(|header| header.properties.headers);
            let delay = headers.and_then(delay_ms).map_or(0, NonZeroU32::get);
            return (Rank::of_delay(delay), Some(Duration::from_millis(delay.into())));
        }
        let expiration = expiration_ms.map(Duration::from_millis);
        let time_to_live = expiration.into_iter().chain(self.settings.message_ttl).min();
        (self.rank(|| message.priority()), time_to_live)
    }

    /// Those that are to be dead-lettered.
    pub(crate) fn dying(&self) -> &Dying {
        &self.dying
    }

    /// The same, to let one go on.
    pub(crate) fn dying_mut(&mut self) -> &mut Dying {
        &mut self.dying
    }

    /// Asks for the bodies that are needed next to dead-letter messages, up to so many bytes: those that are not in memory
    /// and that were not asked for. None as long as the first was.
    pub(crate) fn ask_for_dying(&mut self, mut bytes: usize) -> Vec<(Position, MessageId)> {
        let mut found = Vec::new();
        let mut next: Vec<Position> = Vec::new();
        if !self.dying.in_order().next().is_some_and(|(first, _)| self.dying.is_asked_for(first)) {
            next.extend(self.dying.in_order().take(READ_AHEAD_ENTRIES).map(|(position, _)| position));
        }
        for position in next {
            let Some(known) = self.known(position) else { continue };
            // One in memory may be nowhere else.
            if known.message.is_none() && self.dying.ask_for(position) {
                found.push((position, known.id));
            }
            let Some(left) = bytes.checked_sub(known.bytes as usize) else { break };
            bytes = left;
        }
        found
    }

    /// What is known of a message, wherever it is.
    pub(crate) fn known(&self, position: Position) -> Option<Known> {
        self.levels.of(position)?.known(position)
    }

    fn give_back(&mut self, body_bytes: u32) {
        self.taken -= 1;
        self.taken_bytes -= u64::from(body_bytes);
    }

    /// Whether a message may have been delivered before.
    pub(crate) fn is_redelivered(&self, position: Position) -> bool {
        self.levels.of(position).is_some_and(|level| level.is_redelivered(position))
    }

    /// The first place of each level at which nothing was delivered since the start.
    pub(crate) fn cursors(&self) -> Vec<Position> {
        self.levels.iter().map(Level::cursor).collect()
    }

    /// What the delivery of a journaled message rests on, or the grant that is needed first.
    pub(crate) fn granted(&self, position: Position) -> Result<JournalPosition, Position> {
        match self.levels.of(position) {
            Some(level) => level.granted(position).map(|at| at.max(self.departures)),
            None => Err(position.next()),
        }
    }

    /// The same, and the new grant if one is needed, which is to be the change at `next`.
    pub(crate) fn grant(&mut self, position: Position, next: JournalPosition) -> (JournalPosition, Option<Change>) {
        match self.granted(position) {
            Ok(after) => (after, None),
            Err(below) => {
                self.set_grant(below, next);
                // The old one may still do for this message.
                let after = self.granted(position).unwrap_or_default();
                let after = if planted(Bug::DeliveryBeforeGrant) { JournalPosition::default() } else { after };
                (after, Some(Change::DeliveryGranted { queue: self.declared.number, below }))
            }
        }
    }

    /// A message has come from another queue and may be handed out once its departure from there is durable.
    pub(crate) fn wait_for(&mut self, departure: JournalPosition) {
        self.departures = self.departures.max(departure);
    }

    /// What handing out any message rests on that came from another queue, or may be behind one.
    pub(crate) fn departures(&self) -> JournalPosition {
        self.departures
    }

    /// Messages of a level before a place may be handed out once `at` is durable.
    pub(crate) fn set_grant(&mut self, below: Position, at: JournalPosition) {
        self.levels.begin_of(below).set_grant(below, at);
        self.measure_levels();
    }

    /// After a restart: whatever was granted may have been delivered.
    pub(crate) fn flag_granted(&mut self) {
        self.levels.iter_mut().for_each(Level::flag_granted);
    }

    /// The grants that say exactly what was delivered, where they are others than those in force.
    pub(crate) fn exact_grants(&self) -> Vec<Position> {
        self.levels.iter().filter_map(Level::exact_grant).collect()
    }

    pub(crate) fn entry(&mut self, position: Position) -> Option<&Entry> {
        self.levels.of_mut(position)?.open(position)
    }

    /// Brings a body back that was fetched.
    pub(crate) fn restore(&mut self, position: Position, message: Message) {
        let Some(message) = self.dying.restore(position, message) else { return };
        if self.parked == Some(position) {
            self.parked = None;
        }
        if let Some(level) = self.levels.of_mut(position) {
            level.restore(position, message);
        }
    }

    /// A message cannot be read back: the head, or the next one of its priority behind others of which that was said just now. It stays
    /// where it is, and nobody gets it before the next start.
    pub(crate) fn set_aside(&mut self, position: Position) {
        if self.dying.give_up(position) {
            return;
        }
        let Queue { levels, dying, parked, .. } = self;
        let is_next = levels.of_mut(position).is_some_and(|level| level.head_is_stored(position, dying));
        if *parked == Some(position) {
            *parked = None;
        }
        // Of a later one it is said again when it is the head: not often, as those before it are in memory now.
        if is_next {
            let body_bytes = self.known(position).map_or(0, |known| known.body_bytes);
            self.take_head(position, body_bytes);
        }
    }

    /// The body of a message of which no journal knows cannot be read back: the message is gone, unless somebody has it.
    pub(crate) fn lose(&mut self, position: Position) {
        let is_ready = self.levels.of(position).is_some_and(|level| level.is_ready(position, &self.dying));
        if self.dying.remove(position) || (is_ready && self.take(position)) {
            self.settle_taken(position);
        }
    }

    /// The bodies that will be needed next, from the head on: those that are not in memory, until so many bytes or the
    /// first that is. Not those of messages that die.
    pub(crate) fn stored_from(&mut self, head: Position, bytes: usize) -> Vec<(Position, MessageId)> {
        let mut found = self.levels.of_mut(head).map(|level| level.stored_from(head, bytes)).unwrap_or_default();
        found.retain(|&(position, _)| !self.dying.contains(position));
        found
    }

    /// The ready message that comes first.
    pub(crate) fn head(&mut self) -> Option<Position> {
        if let Some(level) = self.levels.only_mut() {
            return level.head(&self.dying);
        }
        self.levels.iter_mut().find_map(|level| level.head(&self.dying))
    }

    /// Takes a ready message out of turn, as if it had been delivered; false if it is not there any more.
    pub(crate) fn take(&mut self, position: Position) -> bool {
        let Some(level) = self.levels.of_mut(position) else { return false };
        let Some(body_bytes) = level.known(position).map(|known| known.body_bytes) else { return false };
        if self.parked == Some(position) {
            self.parked = None;
        }
        level.take(position);
        self.taken += 1;
        self.taken_bytes += u64::from(body_bytes);
        true
    }

    /// Marks the head as delivered and not yet settled. Its body has so many bytes.
    pub(crate) fn take_head(&mut self, head: Position, body_bytes: u32) {
        self.advance(head);
        self.taken += 1;
        self.taken_bytes += u64::from(body_bytes);
    }

    /// Removes the head for good.
    pub(crate) fn settle_head(&mut self, head: Position) -> Option<Settled> {
        self.advance(head);
        self.forget_tries_of(head);
        self.levels.of_mut(head)?.settle(head)
    }

    fn advance(&mut self, head: Position) {
        if let Some(level) = self.levels.of_mut(head) {
            level.advance(head);
        }
    }

    /// Removes a message for good that was taken.
    pub(crate) fn settle_taken(&mut self, position: Position) -> Option<Settled> {
        self.forget_tries_of(position);
        let settled = self.levels.of_mut(position)?.settle(position)?;
        self.give_back(settled.body_bytes);
        Some(settled)
    }

    /// The ready messages of the next page in which some are due, in their order; none if no message is due.
    pub(crate) fn take_due(&mut self, now: Moment) -> Option<Vec<(Deadline, Position)>> {
        if self.is_delaying() {
            return self.levels.take_due_in_order(now, &self.dying);
        }
        self.levels.iter_mut().find_map(|level| level.take_due(now, &self.dying))
    }

    /// Puts an unacked message back to its place.
    pub(crate) fn return_unacked(&mut self, position: Position) {
        let Some(level) = self.levels.of_mut(position) else { return };
        if level.flag_redelivered(position) {
            let body_bytes = level.known(position).map_or(0, |known| known.body_bytes);
            level.put_back(position);
            self.give_back(body_bytes);
        }
    }

    /// Takes out at once what can be: everything if nothing is unacked, else all whole pages that were never
    /// delivered. [`Self::purge_head`] takes the rest. Returns how many there were, and what is left to free.
    pub(crate) fn purge(&mut self) -> (u32, Vec<Detached>) {
        let count = self.message_count();
        self.parked = None;
        if self.keeps_dead_letters() {
            // RabbitMQ 4.3: also those that wait to be taken. Others go on: they died before.
            for position in self.dying.take_out(|_| true) {
                self.settle_taken(position);
            }
        }
        let is_any_taken = self.taken > 0;
        let detached = self.levels.iter_mut().map(|level| level.purge(&self.dying, is_any_taken));
        let detached = detached.filter(|detached| !detached.is_empty()).collect();
        self.forget_tries();
        (count, detached)
    }

    /// What a purge says of each level: it means the messages before a place, but for these.
    pub(crate) fn purged(&self) -> impl Iterator<Item = (Position, Vec<Position>)> {
        self.levels.iter().map(|level| (level.next_position(), level.taken_positions(&self.dying)))
    }

    /// Takes out one ready message; false if there is none.
    pub(crate) fn purge_head(&mut self) -> bool {
        let Some(head) = self.head() else { return false };
        self.settle_head(head).is_some()
    }

    /// Whether any message has a deadline.
    pub(crate) fn has_expiring(&self) -> bool {
        self.levels.has_expiring()
    }

    /// Whether a message may be due.
    pub(crate) fn is_due(&self, now: Moment) -> bool {
        self.levels.iter().filter_map(Level::first_due).any(|deadline| now.has_reached(deadline))
    }

    /// When something happens to this queue by itself: a message expires, or the unused queue does.
    pub(crate) fn next_deadline(&self) -> Option<Deadline> {
        let message = self.levels.iter().filter_map(Level::first_due).min().filter(|_| !self.dying.is_full());
        message.into_iter().chain(self.expires_at()).chain(self.dying.retry_at()).min()
    }

    /// Somebody uses it: how long nobody has counts anew.
    pub(crate) fn touch(&mut self, now: Moment) {
        let before = std::mem::replace(&mut self.last_used, now);
        if planted(Bug::UnusedByWallClock) {
            self.last_used.monotonic = before.monotonic + now.wall.saturating_sub(before.wall);
        }
    }

    /// When the queue goes because nobody used it.
    pub(crate) fn expires_at(&self) -> Option<Deadline> {
        let expires = self.settings.expires.filter(|_| self.declared.standing == Standing::Open)?;
        self.consumers.is_empty().then(|| self.last_used.deadline(expires))
    }

    /// Whether a message that comes now may go to the consumer whose turn it is without having lain in it.
    pub(crate) fn is_open_way(&self) -> bool {
        self.consumers.any_waiting()
            && self.consumers.next_ack_mode() == Some(AckMode::Automatic)
            && self.turn == Turn::None
            && self.ready() == 0
            && !self.acts_alone()
    }

    /// Whether it treats all messages alike that no journal knows: none is refused, expires, or goes before others.
    pub(crate) fn takes_all_alike(&self) -> bool {
        let QueueArguments { queue_type, max_priority, .. } = self.declared.arguments;
        let has_levels = queue_type != QueueType::Classic || max_priority > 0;
        !self.acts_alone() && !has_levels && self.settings.message_ttl.is_none()
    }

    /// Whether anything may happen in it but that it delivers.
    pub(crate) fn acts_alone(&self) -> bool {
        let QueueSettings { expires, max_length, max_length_bytes, .. } = &self.settings;
        self.timer.is_some()
            || self.has_expiring()
            || !self.dying.is_empty()
            || expires.is_some()
            || max_length.is_some()
            || max_length_bytes.is_some()
            || self.declared.standing != Standing::Open
    }

    /// Whether it ever has to be looked at without being used.
    pub(crate) fn is_timed(&self) -> bool {
        self.next_deadline().is_some() || self.timer.is_some()
    }

    /// Lets go of bodies for which `evict` says so, but not of so many bytes that will be delivered next.
    /// Looks at about `entries` from a place on, or from the first, and counts them down; returns where to go on, unless it
    /// came to the end.
    pub(crate) fn evict(
        &mut self,
        from: Option<Position>,
        kept_bytes: usize,
        entries: &mut usize,
        evict: &mut dyn FnMut(Position, &Entry) -> Eviction,
    ) -> Option<Position> {
        let kept_bytes = if self.consumers.is_empty() { 0 } else { kept_bytes };
        let starts: Vec<_> = self.levels.iter_from(from).map(|(from, _)| from).collect();
        for from in starts {
            let Some(level) = self.levels.of_mut(from) else { continue };
            let keep = level.window(kept_bytes);
            if let Some(next) = level.evict(from, &keep, entries, evict) {
                return Some(next);
            }
        }
        None
    }

    /// The body of a message was written to a scratch segment: it need not be in memory any more, if it still is.
    pub(crate) fn store(&mut self, position: Position, message: &Message, segment: Segment, place: Place) {
        if let Some(level) = self.levels.of_mut(position) {
            level.store(position, message, segment, place);
        }
    }

    pub(crate) fn detach(&mut self) -> Vec<Detached> {
        self.levels.detach()
    }
}
