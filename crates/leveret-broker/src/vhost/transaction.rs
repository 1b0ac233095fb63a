//! Transactions of one channel: `tx.select`, `tx.commit`, `tx.rollback`. RabbitMQ: broker semantics of tx.
//!
//! Owns: publishes that were routed and not enqueued, deliveries that were settled and are still unacked.
//! What a transaction holds takes effect at commit, all of it, or at rollback not at all.

use leveret_planted::{Bug, planted};

use crate::connection::reply::Exception;
use crate::limits::STEPS_PER_UNIT;
use crate::memory::Lease;
use crate::names::ChannelId;
use crate::vhost::command::{Command, Publish, Settlement};
use crate::vhost::effects::{Answer, Effects};
use crate::vhost::refusal::Refusal;
use crate::vhost::route::Route;
use crate::vhost::search::Keepers;
use crate::vhost::session::{Channel, Unacked};
use crate::vhost::work::Work;
use crate::vhost::{ConnectionId, VirtualHost};

/// What a channel in transaction mode has not committed.
#[derive(Debug)]
pub(crate) struct Transaction {
    /// Routed when they were published, as RabbitMQ does.
    pub(crate) publishes: Vec<(Publish, Route, Keepers)>,
    pub(crate) settlements: Vec<(Unacked, Settlement)>,
    /// What the messages take.
    pub(crate) memory: Lease,
    /// What the settlements take.
    settled_memory: Lease,
}

impl Transaction {
    fn new(memory: Lease, settled_memory: Lease) -> Self {
        Transaction { publishes: Vec::new(), settlements: Vec::new(), memory, settled_memory }
    }

    /// A delivery will be settled with it.
    pub(crate) fn settle(&mut self, unacked: Unacked, settlement: Settlement) {
        self.settled_memory.take(size_of::<(Unacked, Settlement)>());
        self.settlements.push((unacked, settlement));
    }

    /// Takes out what it holds, and begins the next one.
    fn end(&mut self) -> Self {
        let next = Transaction::new(self.memory.sibling(), self.settled_memory.sibling());
        std::mem::replace(self, next)
    }
}

impl VirtualHost {
    fn channel(&mut self, from: ConnectionId, id: ChannelId) -> Option<&mut Channel> {
        self.sessions.get_mut(from)?.channel(id)
    }

    /// `tx.select`. A second one changes nothing.
    pub(super) fn select_tx(&mut self, from: ConnectionId, id: ChannelId, effects: &mut Effects) {
        let settled_memory = Lease::new(self.memory.clone());
        let Some(session) = self.sessions.get_mut(from) else { return };
        let memory = session.part.transaction();
        if let Some(channel) = session.channel(id) {
            channel.transaction.get_or_insert_with(|| Transaction::new(memory, settled_memory));
            self.answer(from, id, Answer::TxSelectOk, effects);
        }
    }

    /// `tx.commit`: publishes first, then settlements, then the answer.
    pub(super) fn commit(&mut self, from: ConnectionId, id: ChannelId) {
        let Some(transaction) = self.channel(from, id).and_then(|channel| channel.transaction.as_mut()) else {
            return;
        };
        // From now on the queues count it, message by message.
        let Transaction { publishes, settlements, .. } = transaction.end();
        let (publishes, settlements) = (publishes.into_iter(), settlements.into_iter());
        self.work.push_back(Work::Commit { from, channel: id, publishes, settlements, is_whole: true });
    }

    /// All that a transaction held has taken effect, but for what queues were too full for. RabbitMQ: then its channel is
    /// closed.
    pub(super) fn end_commit(&mut self, from: ConnectionId, id: ChannelId, is_whole: bool, effects: &mut Effects) {
        if is_whole {
            return self.answer(from, id, Answer::TxCommitOk, effects);
        }
        let exception = Exception::from(&Refusal::PartialCommit).during(Command::Commit(id).method());
        self.fail_channel(from, id, exception, Settlement::Fail, effects);
    }

    /// `tx.rollback`: publishes are forgotten, and what was settled is unacked as before.
    pub(super) fn rollback(&mut self, from: ConnectionId, id: ChannelId, effects: &mut Effects) {
        let Some(channel) = self.channel(from, id) else { return };
        let Some(transaction) = channel.transaction.as_mut() else { return };
        let Transaction { settlements, .. } = transaction.end();
        if !planted(Bug::RollbackForgets) {
            channel.unacked.put_back(settlements.iter().map(|&(unacked, _)| unacked));
        }
        if !settlements.is_empty() {
            // All that is unacked was put in order again.
            let unacked = channel.unacked.len();
            self.spend(unacked / STEPS_PER_UNIT);
        }
        // The timer may have come and gone without them.
        let deadlines = settlements.iter().filter_map(|(unacked, _)| self.deadline(from, id, unacked));
        if let Some(first) = deadlines.min() {
            self.arm_channel(from, id, first);
        }
        self.answer(from, id, Answer::TxRollbackOk, effects);
    }
}
