//! Work that a command begins and that one hold of the lock may not finish.
//!
//! A command that names many messages, consumers or queues takes effect at one instant all the same: it leaves its
//! work here, and until that is done no other command is begun and nothing is delivered. Answers that may only come
//! after the work are part of it, and a timeout that comes in between waits for it, too. Where nobody can tell, as for
//! messages that are settled, only the connection waits that has begun it.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;
use std::vec;

use leveret_planted::{Bug, planted};

use crate::change::JournalPosition;
use crate::moment::Moment;
use crate::names::ChannelId;
use crate::vhost::command::{AckMode, ConsumerId, Farewell, Publish, Settlement, Wait};
use crate::vhost::effects::{Answer, Effects, Output};
use crate::vhost::exchange::{ExchangeId, Kept, Target};
use crate::vhost::queue::{ConsumerKey, Queue};
use crate::vhost::route::Route;
use crate::vhost::search::Keepers;
use crate::vhost::session::{Outstanding, Unacked};
use crate::vhost::{ConnectionId, QueueId, VirtualHost};

/// One piece of work, as far as it is left.
#[derive(Debug)]
pub(super) enum Work {
    /// Settle what is outstanding on a channel up to a tag.
    Settle { from: ConnectionId, channel: ChannelId, up_to: u64, settlement: Settlement },
    /// Put deliveries back into their queues, as failures or not.
    Return(Outstanding, Settlement),
    /// Enqueue and settle what a transaction held, then answer.
    Commit {
        from: ConnectionId,
        channel: ChannelId,
        publishes: vec::IntoIter<(Publish, Route, Keepers)>,
        settlements: vec::IntoIter<(Unacked, Settlement)>,
        /// Whether all queues have taken what came before.
        is_whole: bool,
    },
    /// End consumers of a connection.
    Cancel(ConnectionId, BTreeSet<ConsumerId>),
    /// End consumers of a channel that were late, each with how long it had, and tell them.
    CancelLate(ConnectionId, ChannelId, BTreeMap<ConsumerId, Duration>),
    /// Let consumers of a connection have messages again, if they have credit now.
    OfferTurns(ConnectionId, BTreeSet<ConsumerId>),
    /// Tell consumers whose queue is gone.
    Notify(vec::IntoIter<ConsumerKey>),
    /// Let all messages of a queue expire that are due.
    Expire(QueueId),
    /// Answer a `basic.get`, now that nothing in the queue is due.
    Get(ConnectionId, ChannelId, QueueId, AckMode),
    /// Remove all that is ready in a queue.
    Purge(QueueId),
    /// Delete queues.
    Delete(BTreeSet<QueueId>),
    /// Give what an exchange has kept to what was bound to it.
    Replay(Target, vec::IntoIter<Kept>),
    /// Delete an exchange that nothing is bound to any more.
    DeleteExchange(ExchangeId),
    /// Answer, now that all before is done.
    Answer(ConnectionId, ChannelId, Answer),
    /// Look for deliveries on a channel that are late.
    TimeOut(ConnectionId, ChannelId),
    /// Forget a channel, now that what it held went back.
    CloseChannel(ConnectionId, ChannelId, Wait),
    /// Forget a connection and say farewell to it.
    Leave(ConnectionId, Farewell),
}

impl Work {
    /// Whether its changes are worth something only together: all of them or, after a crash, none.
    pub(super) fn is_atomic(&self) -> bool {
        match self {
            Work::Commit { .. } => !planted(Bug::CommitInPieces),
            Work::DeleteExchange(_) => true,
            Work::Settle { .. }
            | Work::Return(..)
            | Work::Cancel(..)
            | Work::CancelLate(..)
            | Work::OfferTurns(..)
            | Work::Notify(_)
            | Work::Expire(_)
            | Work::Get(..)
            | Work::Purge(_)
            | Work::Delete(_)
            | Work::Replay(..)
            | Work::Answer(..)
            | Work::TimeOut(..)
            | Work::CloseChannel(..)
            | Work::Leave(..) => false,
        }
    }
}

impl VirtualHost {
    /// Works off what commands have begun, as far as this hold of the lock allows.
    pub(super) fn work_off(&mut self, now: Moment, effects: &mut Effects) {
        while self.units > 0
            && let Some(mut work) = self.work.pop_front()
        {
            if !self.work_on(now, &mut work, effects) {
                self.work.push_front(work);
            }
        }
    }

    /// Goes on with a piece of work as far as this hold of the lock allows; true once nothing is left of it.
    fn work_on(&mut self, now: Moment, work: &mut Work, effects: &mut Effects) -> bool {
        self.is_working = true;
        let mut is_done = false;
        while self.units > 0 && !is_done {
            self.units -= 1;
            is_done = !self.work_once(now, work, effects);
        }
        self.is_working = false;
        is_done
    }

    /// A command of a connection has begun something that others need not wait for.
    pub(super) fn begin(&mut self, from: ConnectionId, work: Work) {
        let Some(session) = self.sessions.get_mut(from) else { return };
        if session.begun.is_empty() {
            self.begun.push_back(from);
        }
        session.begun.push_back(work);
    }

    pub(super) fn has_begun(&self, from: ConnectionId) -> bool {
        self.sessions.get(from).is_some_and(|session| !session.begun.is_empty())
    }

    /// Works off what a connection has begun, as far as this hold of the lock allows, unless something has to come before.
    pub(super) fn work_off_begun(&mut self, now: Moment, from: ConnectionId, effects: &mut Effects) {
        if self.begun.is_empty() {
            return;
        }
        while self.units > 0
            && self.work.is_empty()
            && let Some(mut work) = self.sessions.get_mut(from).and_then(|session| session.begun.pop_front())
        {
            if !self.work_on(now, &mut work, effects)
                && let Some(session) = self.sessions.get_mut(from)
            {
                session.begun.push_front(work);
            }
        }
        if !self.has_begun(from) {
            self.begun.retain(|&other| other != from);
        }
    }

    /// Goes on with a piece of work by one step, whose first unit is paid for; false if there was nothing left of it.
    fn work_once(&mut self, now: Moment, work: &mut Work, effects: &mut Effects) -> bool {
        match work {
            Work::Settle { from, channel, up_to, settlement } => {
                return self.settle_oldest(now, *from, *channel, *up_to, *settlement, effects);
            }
            Work::Return(outstanding, settlement) => {
                let Some(unacked) = outstanding.take_first(u64::MAX) else { return false };
                self.settle_one(now, unacked, *settlement, effects);
            }
            Work::Commit { from, channel, publishes, settlements, is_whole } => {
                if planted(Bug::CommitInPieces) {
                    self.units = 0;
                }
                if let Some((publish, route, keepers)) = publishes.next() {
                    *is_whole &= self.enqueue(now, *from, publish, &route, &keepers, effects);
                    self.settled_on(*from, *channel);
                } else if let Some((unacked, settlement)) = settlements.next() {
                    self.settle_on(now, *from, *channel, unacked, settlement, effects);
                    if let Some(consumer) = unacked.consumer {
                        self.give_credit(*from, *channel, consumer, 1);
                    }
                } else {
                    self.end_commit(*from, *channel, *is_whole, effects);
                    return false;
                }
            }
            Work::Cancel(from, consumers) => {
                let Some(consumer) = consumers.pop_first() else { return false };
                self.cancel(now, *from, consumer, effects);
            }
            Work::CancelLate(from, channel, consumers) => {
                let Some((consumer, timeout)) = consumers.pop_first() else { return false };
                self.cancel(now, *from, consumer, effects);
                self.answer(*from, *channel, Answer::ConsumerTimedOut { consumer, timeout }, effects);
            }
            Work::OfferTurns(from, consumers) => {
                let Some(consumer) = consumers.pop_first() else { return false };
                self.offer_turn(*from, consumer);
            }
            Work::Notify(consumers) => {
                let Some(key) = consumers.next() else { return false };
                let session = self.sessions.get_mut(key.connection);
                if let Some(consumer) = session.and_then(|session| session.remove_consumer(key.consumer)) {
                    let answer = Answer::BasicCancel { consumer: key.consumer };
                    self.answer(key.connection, consumer.channel, answer, effects);
                }
            }
            Work::Expire(queue) => return self.expire_page(now, *queue, effects),
            Work::Get(from, channel, queue, ack_mode) => {
                self.get_head(now, *from, *channel, *queue, *ack_mode, effects);
                return false;
            }
            Work::Purge(queue) => return self.queues.get_mut(*queue).is_some_and(Queue::purge_head),
            Work::Delete(queues) => {
                let Some(queue) = queues.pop_first() else { return false };
                self.delete_queue(queue, effects);
            }
            Work::Replay(target, messages) => {
                let Some(kept) = messages.next() else { return false };
                self.replay(now, *target, kept, effects);
            }
            Work::DeleteExchange(exchange) => {
                self.remove_exchange(*exchange, effects);
                return false;
            }
            Work::Answer(to, channel, answer) => {
                self.answer(*to, *channel, answer.clone(), effects);
                return false;
            }
            Work::TimeOut(connection, channel) => {
                // An ack of many may be half done.
                let session = self.sessions.get_mut(*connection);
                if let Some(mut begun) = session.and_then(|session| session.begun.pop_front()) {
                    let is_left = self.work_once(now, &mut begun, effects);
                    if let Some(session) = self.sessions.get_mut(*connection).filter(|_| is_left) {
                        session.begun.push_front(begun);
                    }
                    return true;
                }
                self.time_out(now, *connection, *channel, effects);
                return false;
            }
            Work::CloseChannel(from, channel, wait) => {
                if *wait == Wait::Answer {
                    self.answer(*from, *channel, Answer::ChannelCloseOk, effects);
                }
                if let Some(session) = self.sessions.get_mut(*from) {
                    session.remove_channel(*channel);
                }
                return false;
            }
            Work::Leave(from, farewell) => {
                self.searching.remove(from);
                if let Some(session) = self.sessions.remove(*from) {
                    let after = match farewell {
                        Farewell::Silent => JournalPosition::default(),
                        Farewell::CloseOk | Farewell::Close(_) => session.settled.max(self.topology),
                    };
                    effects.push(*from, Output::Farewell(farewell.clone(), after));
                }
                return false;
            }
        }
        true
    }
}
