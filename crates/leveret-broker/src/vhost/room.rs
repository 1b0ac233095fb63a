//! Publishers wait while the node has no room for what they bring; everybody else goes on.

use crate::vhost::command::{Command, Commands};
use crate::vhost::effects::{Effects, Output};
use crate::vhost::{ConnectionId, VirtualHost};

/// Whether a node has room for messages.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Room {
    /// Publishers go on.
    #[default]
    Enough,
    /// There will be some in a moment, when the disk has taken what it was given: publishers wait, and nobody is told.
    Soon,
    /// Until consumers or somebody else make room, publishers wait, and are told by `connection.blocked`.
    /// RabbitMQ: memory and disk alarms.
    ShortOf {
        /// What is in memory cannot be brought below its limit.
        memory: bool,
        /// Less is free on the disk than must be.
        disk: bool,
    },
}

impl Room {
    /// Why a connection is blocked, in RabbitMQ's words.
    fn shortage(self) -> Option<&'static str> {
        match self {
            Room::Enough | Room::Soon => None,
            Room::ShortOf { memory: true, disk: true } => Some("low on memory & disk"),
            Room::ShortOf { disk: true, .. } => Some("low on disk"),
            Room::ShortOf { .. } => Some("low on memory"),
        }
    }
}

impl VirtualHost {
    /// Whether there is room.
    pub fn room(&self) -> Room {
        self.room
    }

    /// There is room, or there is not: then the next publish of each connection waits, and what its client sends behind
    /// it.
    pub fn handle_room(&mut self, room: Room, effects: &mut Effects) {
        let before = std::mem::replace(&mut self.room, room);
        for (id, session) in &mut self.sessions {
            match (session.waits_for_room, room.shortage()) {
                (true, None) if room == Room::Enough => {
                    session.waits_for_room = false;
                    effects.push(id, Output::Unblocked);
                }
                (true, Some(reason)) if before.shortage().is_none() => effects.push(id, Output::Blocked(reason)),
                _ => {}
            }
        }
    }

    /// Whether the next command of a connection is a publish that has to wait. One in a transaction that holds others
    /// already does not: only its end makes room.
    pub(super) fn waits_for_room(
        &mut self,
        from: ConnectionId,
        commands: &Commands,
        effects: &mut Effects,
    ) -> bool {
        let next = commands.queue.front().filter(|_| self.room != Room::Enough);
        let Some(channel) = next.and_then(Command::publishes_on) else { return false };
        let Some(session) = self.sessions.get_mut(from) else { return false };
        let transaction = session.channel(channel).and_then(|channel| channel.transaction.as_ref());
        if transaction.is_some_and(|transaction| !transaction.publishes.is_empty()) {
            return false;
        }
        if !std::mem::replace(&mut session.waits_for_room, true)
            && let Some(reason) = self.room.shortage()
        {
            effects.push(from, Output::Blocked(reason));
        }
        true
    }
}
