//! A series: publishes of one channel that follow one another and go the same way into one queue. What holds for all of
//! them is looked up once.
//!
//! Confirms come behind all deliveries of a series, should one client hear both. What may make a publish wait is asked before the
//! first: that changes between holds of the lock, and not within one but for windows, which a series then fills by no more than
//! one hold does.
//!
//! Must not know: what is out of the ordinary in a publish, or in its queue. All of that is left as it is, for
//! [`VirtualHost::publish`].

use leveret_planted::{Bug, planted};
use smallvec::SmallVec;

use crate::change::JournalPosition;
use crate::limits::SERIES_LYING_MAX;
use crate::message::{DeliveryMode, MessageId};
use crate::names::ChannelId;
use crate::vhost::command::{Command, Commands, Publish};
use crate::vhost::effects::{Effects, Output};
use crate::vhost::queue::{Entry, Queue, Rank};
use crate::vhost::replies::may_be_reply;
use crate::vhost::session::Channel;
use crate::vhost::{ConnectionId, QueueId, VirtualHost};

/// What publishes have in common.
struct Series {
    channel: ChannelId,
    /// Exchange and routing key.
    route: SmallVec<[u8; 64]>,
    /// The only queue that they go to.
    queue: QueueId,
    /// Persistent ones would have to be journaled.
    is_durable: bool,
}

impl Series {
    fn goes_on_with(&self, command: &Command) -> bool {
        let Command::Publish(Publish { channel, message, more_keys: None, expiration_ms: None, .. }) = command
        else {
            return false;
        };
        let is_journaled = self.is_durable && message.delivery_mode() == DeliveryMode::Persistent;
        *channel == self.channel && !is_journaled && *message.route() == self.route[..]
    }
}

impl VirtualHost {
    /// Publishes what comes next of a connection, if that begins a series, and all that goes on with it as far as this hold of
    /// the lock allows. If it does not, nothing is done.
    pub(super) fn publish_series(
        &mut self,
        from: ConnectionId,
        commands: &mut Commands,
        effects: &mut Effects,
    ) -> bool {
        let Some(series) = self.begin_series(from, commands) else { return false };
        // To publish a message takes one unit, and to put it somewhere another one.
        let most = self.units.div_ceil(2);
        let (mut taken, mut confirmed) = (0, SmallVec::<[_; 64]>::new());
        let mut next = || {
            let goes_on = |command: &mut Command| taken < most && series.goes_on_with(command);
            let Command::Publish(Publish { message, confirm, .. }) = commands.queue.pop_front_if(goes_on)? else {
                return None;
            };
            taken += 1;
            confirmed.extend(confirm);
            Some(message)
        };
        let is_open = !self.is_working && self.queues.get(series.queue).is_some_and(Queue::is_open_way);
        let mut message = next();
        if is_open && let Some(first) = message {
            message = self.hand_through(series.queue, first, &mut next, JournalPosition::default(), effects);
        }
        let mut lying = 0;
        if let Some(queue) = self.queues.get_mut(series.queue) {
            while let Some(first) = message {
                queue.push(Rank::default(), Entry::new(MessageId::NOWHERE, first, None, false));
                lying += 1;
                message = if lying < SERIES_LYING_MAX { next() } else { None };
            }
        }
        self.spend(taken as usize + lying);
        if lying > 0 {
            self.mark_runnable(series.queue);
        }
        let (channel, after) = (series.channel, JournalPosition::default());
        for number in confirmed {
            effects.push(from, Output::Confirm { channel, number, after });
        }
        true
    }

    fn begin_series(&mut self, from: ConnectionId, commands: &Commands) -> Option<Series> {
        let Command::Publish(publish) = commands.queue.front()? else { return None };
        let Publish { channel, message, more_keys: None, expiration_ms: None, .. } = publish else { return None };
        if !self.searching.is_empty() || may_be_reply(message) {
            return None;
        }
        let session = self.sessions.get_mut(from)?;
        let holds_nothing_back =
            |channel: &&mut Channel| channel.transaction.is_none() || planted(Bug::SeriesInTransaction);
        session.channel(*channel).filter(|channel| !channel.failed).filter(holds_nothing_back)?;
        // A route without a queue, or with several, is nothing for a series.
        let &[id] = &session.routes.recall(message.route(), self.bindings_version)?[..] else { return None };
        let queue = self.queues.get(id).filter(|queue| queue.takes_all_alike())?;
        let is_durable = queue.declared.durable && !planted(Bug::SeriesNotJournaled);
        if is_durable && message.delivery_mode() == DeliveryMode::Persistent {
            return None;
        }
        Some(Series { channel: *channel, route: SmallVec::from_slice(message.route()), queue: id, is_durable })
    }
}
