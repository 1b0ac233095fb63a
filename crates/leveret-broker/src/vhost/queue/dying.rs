//! Messages that are to be dead-lettered and wait for their bodies: they go on in the order in which they died.
//!
//! Owns: which they are, why they die, and the bodies that were fetched for them.
//! Must not know: where they go.
//! Invariant: a message dies once, and is neither ready nor delivered while it waits here.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use super::Position;
use crate::change::DeathReason;
use crate::limits::READ_AHEAD_ENTRIES;
use crate::memory::{Lease, Meter};
use crate::message::Message;
use crate::moment::Deadline;

/// What a message takes here beside its body, about.
const DYING_BYTES: usize = 80;

/// The dying messages of one queue.
#[derive(Debug)]
pub(crate) struct Dying {
    /// Those that can go on.
    order: VecDeque<Position>,
    /// Bytes of the bodies of those.
    body_bytes: u64,
    /// All of them; those whose bodies cannot be read, too, which stay until the next start.
    messages: BTreeMap<Position, Letter>,
    /// What they wait for, other than bodies.
    wait: Option<Wait>,
    memory: Lease,
}

/// Why none of them goes on, and when that is looked at again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Wait {
    /// No queue takes the first.
    Refused(Deadline),
    /// Too much waits for the journal.
    Journal(Deadline),
}

impl Wait {
    pub(crate) fn until(self) -> Deadline {
        match self {
            Wait::Refused(at) | Wait::Journal(at) => at,
        }
    }
}

/// One of them.
#[derive(Debug)]
struct Letter {
    reason: DeathReason,
    /// Bytes of its body.
    body_bytes: u32,
    /// Whether a journal knows the message.
    journaled: bool,
    body: Body,
}

/// The body of one of them, as far as it is known here.
#[derive(Debug)]
enum Body {
    /// The queue has it, in memory or elsewhere.
    InQueue,
    /// It was asked for and has not come.
    AskedFor,
    Here(Message),
}

impl Letter {
    /// What it takes here.
    fn memory(&self) -> usize {
        DYING_BYTES
            + match &self.body {
                Body::Here(message) => message.memory(),
                Body::InQueue | Body::AskedFor => 0,
            }
    }
}

impl Dying {
    /// None yet; what they take is added up in `meter`.
    pub(crate) fn new(meter: Meter) -> Self {
        let (order, messages) = (VecDeque::new(), BTreeMap::new());
        Dying { order, body_bytes: 0, messages, wait: None, memory: Lease::new(meter) }
    }

    /// Whether none can go on.
    pub(crate) fn is_empty(&self) -> bool {
        self.order.is_empty()
    }

    /// Whether no more should come before some have gone on, where that can wait.
    pub(crate) fn is_full(&self) -> bool {
        // Whoever waits for a queue to take something may wait for long.
        self.order.len() >= READ_AHEAD_ENTRIES && !matches!(self.wait, Some(Wait::Refused(_)))
    }

    /// How many can go on.
    pub(crate) fn len(&self) -> usize {
        self.order.len()
    }

    /// Bytes of the bodies of those.
    pub(crate) fn body_bytes(&self) -> u64 {
        self.body_bytes
    }

    /// When the first is tried again, if it waits for more than its body.
    pub(crate) fn retry_at(&self) -> Option<Deadline> {
        self.wait.map(Wait::until)
    }

    /// What the first one waits for; nothing if it has gone on.
    pub(crate) fn set_wait(&mut self, wait: Option<Wait>) {
        self.wait = wait;
    }

    pub(crate) fn contains(&self, position: Position) -> bool {
        self.messages.contains_key(&position)
    }

    /// In the order of their positions.
    pub(crate) fn positions(&self) -> impl Iterator<Item = Position> {
        self.messages.keys().copied()
    }

    /// In the order in which they died.
    pub(crate) fn in_order(&self) -> impl Iterator<Item = (Position, DeathReason)> {
        self.order.iter().filter_map(|&position| Some((position, self.messages.get(&position)?.reason)))
    }

    /// All of them that a journal knows, for a start to come: those whose bodies cannot be read come last, and are tried again
    /// then.
    pub(crate) fn journaled(&self) -> impl Iterator<Item = (Position, DeathReason)> {
        let is_any_given_up = self.order.len() < self.messages.len();
        let waiting: BTreeSet<Position> = self.order.iter().copied().filter(|_| is_any_given_up).collect();
        let given_up =
            self.messages.iter().filter(move |(position, _)| is_any_given_up && !waiting.contains(position));
        let in_line = self.order.iter().filter_map(|position| self.messages.get_key_value(position));
        let journaled = in_line.chain(given_up).filter(|(_, letter)| letter.journaled);
        journaled.map(|(&position, letter)| (position, letter.reason))
    }

    /// One more dies, whose body has so many bytes; false if it does already.
    pub(crate) fn push(
        &mut self,
        position: Position,
        reason: DeathReason,
        body_bytes: u32,
        journaled: bool,
    ) -> bool {
        let is_new = !self.messages.contains_key(&position);
        if is_new {
            self.order.push_back(position);
            self.body_bytes += u64::from(body_bytes);
            self.messages.insert(position, Letter { reason, body_bytes, journaled, body: Body::InQueue });
            self.memory.take(DYING_BYTES);
        }
        is_new
    }

    /// The one that goes on next, and its body if it is here.
    pub(crate) fn first(&self) -> Option<(Position, DeathReason, Option<Message>)> {
        let &position = self.order.front()?;
        let Letter { reason, body, .. } = self.messages.get(&position)?;
        let body = match body {
            Body::Here(message) => Some(message.clone()),
            Body::InQueue | Body::AskedFor => None,
        };
        Some((position, *reason, body))
    }

    /// Takes one out that went on, or that was settled before it could; false if it is not here.
    pub(crate) fn remove(&mut self, position: Position) -> bool {
        let Some(letter) = self.messages.remove(&position) else { return false };
        self.leave_line(position, letter.body_bytes);
        self.memory.give_back(letter.memory());
        true
    }

    /// Takes out many at once; which they are, in the order of their positions.
    pub(crate) fn take_out(&mut self, is_meant: impl Fn(Position) -> bool) -> Vec<Position> {
        if self.order.front().is_some_and(|&first| is_meant(first)) {
            self.wait = None;
        }
        let Dying { order, body_bytes, messages, .. } = self;
        order.retain(|&position| {
            let leaves = is_meant(position);
            if leaves {
                *body_bytes -= messages.get(&position).map_or(0, |letter| letter.body_bytes.into());
            }
            !leaves
        });
        let taken: BTreeMap<_, _> = self.messages.extract_if(.., |&position, _| is_meant(position)).collect();
        self.memory.give_back(taken.values().map(Letter::memory).sum());
        taken.into_keys().collect()
    }

    fn leave_line(&mut self, position: Position, body_bytes: u32) {
        let before = self.order.len();
        if self.order.front() == Some(&position) {
            self.order.pop_front();
            // The next one was not tried yet.
            self.wait = None;
        } else {
            self.order.retain(|&other| other != position);
        }
        if self.order.len() < before {
            self.body_bytes -= u64::from(body_bytes);
        }
    }

    /// Forgets all of them.
    pub(crate) fn clear(&mut self) {
        self.take_out(|_| true);
    }

    /// Whether the body of one of them was asked for and has not come.
    pub(crate) fn is_asked_for(&self, position: Position) -> bool {
        self.messages.get(&position).is_some_and(|letter| matches!(letter.body, Body::AskedFor))
    }

    /// Nobody waits for the bodies that were asked for.
    pub(crate) fn forget_asked(&mut self) {
        for letter in self.messages.values_mut().filter(|letter| matches!(letter.body, Body::AskedFor)) {
            letter.body = Body::InQueue;
        }
    }

    /// The body of one of them is asked for; false if it was before, or is here, or if there is no such message.
    pub(crate) fn ask_for(&mut self, position: Position) -> bool {
        let Some(letter) = self.messages.get_mut(&position) else { return false };
        let is_needed = matches!(letter.body, Body::InQueue);
        if is_needed {
            letter.body = Body::AskedFor;
        }
        is_needed
    }

    /// Takes in the body of one of them, whoever asked for it; gives it back if it is of another message.
    pub(crate) fn restore(&mut self, position: Position, message: Message) -> Option<Message> {
        let Some(letter) = self.messages.get_mut(&position) else { return Some(message) };
        if !matches!(letter.body, Body::Here(_)) {
            self.memory.take(message.memory());
            letter.body = Body::Here(message);
        }
        None
    }

    /// The body of one of them cannot be read; false if it is of another message.
    pub(crate) fn give_up(&mut self, position: Position) -> bool {
        let Some(letter) = self.messages.get_mut(&position) else { return false };
        // Whoever asked: it may have come all the same.
        if !matches!(letter.body, Body::Here(_)) {
            letter.body = Body::InQueue;
            let body_bytes = letter.body_bytes;
            self.leave_line(position, body_bytes);
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message::DeliveryMode;

    /// Once for all of them: to look for each would take minutes.
    #[test]
    fn many_are_taken_out_at_once_whatever_their_order() {
        const MANY: u64 = 300_000;
        let meter = Meter::default();
        let mut dying = Dying::new(meter.clone());
        for place in (0..MANY).rev() {
            assert!(dying.push(Position(place), DeathReason::Rejected, 2, place % 2 == 0));
        }
        let message = Message::new(&[0, 0], 2, 2, DeliveryMode::Persistent);
        assert!(dying.restore(Position(MANY / 2), message).is_none());
        dying.set_wait(Some(Wait::Refused(Deadline(std::time::Duration::ZERO))));
        let low = dying.take_out(|position| position.0 < MANY / 3);
        assert_eq!(low, (0..MANY / 3).map(Position).collect::<Vec<_>>());
        assert!(dying.retry_at().is_some(), "the first is still there");
        assert_eq!(dying.body_bytes(), 2 * (MANY - MANY / 3));
        assert!(dying.give_up(Position(MANY - 2)));
        assert_eq!(dying.body_bytes(), 2 * (MANY - MANY / 3 - 1));
        assert_eq!(dying.first().map(|(position, ..)| position), Some(Position(MANY - 1)));
        let journaled: Vec<_> = dying.journaled().map(|(position, _)| position.0).collect();
        assert_eq!(journaled.len() as u64, (MANY - MANY / 3) / 2);
        assert_eq!(
            (journaled[0], journaled.last()),
            (MANY - 4, Some(&(MANY - 2))),
            "those that were given up last"
        );
        dying.clear();
        assert!(dying.is_empty() && dying.retry_at().is_none());
        assert_eq!((dying.positions().count(), dying.body_bytes(), meter.bytes()), (0, 0, 0));
    }
}
