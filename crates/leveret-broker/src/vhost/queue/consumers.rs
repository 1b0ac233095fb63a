//! The consumers of one queue, and whose turn it is.
//!
//! Owns: round-robin among consumers of equal priority that can take a message; higher priorities first.
//! Must not know: credit. Whoever delivers takes a consumer out and puts it back while it has credit left.
//! Invariant: a consumer stands in the ring at most once.

use std::collections::VecDeque;

use crate::vhost::ConnectionId;
use crate::vhost::command::ConsumerId;

/// Names a consumer in its virtual host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ConsumerKey {
    pub(crate) connection: ConnectionId,
    pub(crate) consumer: ConsumerId,
}

/// Argument `x-priority` of `basic.consume`; higher is served first. Default 0.
pub(crate) type Priority = i64;

#[derive(Debug)]
struct Level {
    priority: Priority,
    /// Those that may have credit, in the order of their turns.
    ring: VecDeque<ConsumerKey>,
}

/// The consumers of a queue.
#[derive(Debug, Default)]
pub(crate) struct Consumers {
    all: Vec<ConsumerKey>,
    /// Highest priority first. Levels stay when their last consumer leaves; there are few.
    levels: Vec<Level>,
    /// How many stand in a ring.
    waiting: usize,
}

impl Consumers {
    pub(crate) fn count(&self) -> usize {
        self.all.len()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.all.is_empty()
    }

    /// In the order in which they came.
    pub(crate) fn iter(&self) -> impl Iterator<Item = ConsumerKey> {
        self.all.iter().copied()
    }

    pub(crate) fn add(&mut self, key: ConsumerKey, priority: Priority) {
        self.all.push(key);
        self.wait_for_turn(key, priority);
    }

    pub(crate) fn remove(&mut self, key: ConsumerKey) {
        self.all.retain(|&other| other != key);
        for level in &mut self.levels {
            let before = level.ring.len();
            level.ring.retain(|&other| other != key);
            self.waiting -= before - level.ring.len();
        }
    }

    /// Whether anybody may take a message.
    pub(crate) fn any_waiting(&self) -> bool {
        self.waiting > 0
    }

    /// Puts a consumer at the end of its ring.
    pub(crate) fn wait_for_turn(&mut self, key: ConsumerKey, priority: Priority) {
        self.level(priority).ring.push_back(key);
        self.waiting += 1;
    }

    /// Puts a consumer back whose turn was not used.
    pub(crate) fn keep_turn(&mut self, key: ConsumerKey, priority: Priority) {
        self.level(priority).ring.push_front(key);
        self.waiting += 1;
    }

    /// Takes out the consumer whose turn it is.
    pub(crate) fn take_turn(&mut self) -> Option<ConsumerKey> {
        let key = self.levels.iter_mut().find_map(|level| level.ring.pop_front())?;
        self.waiting -= 1;
        Some(key)
    }

    fn level(&mut self, priority: Priority) -> &mut Level {
        let at = self.levels.partition_point(|level| level.priority > priority);
        if self.levels.get(at).is_none_or(|level| level.priority != priority) {
            self.levels.insert(at, Level { priority, ring: VecDeque::new() });
        }
        &mut self.levels[at]
    }
}
