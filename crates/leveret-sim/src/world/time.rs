//! Both clocks: time that passes, jumps, and is set.
//!
//! Owns: what is done when it is due, and what is done late.

use std::time::Duration;

use leveret_broker::Moment;
use leveret_broker::moment::Deadline;

use super::{OnTime, World};
use crate::hub::Hub;
use crate::model::{TimedOut, Violation};
use crate::stats::Kind;

/// When it all begins: by the wall clock some day in 2026.
pub(super) const BEGINNING: Moment =
    Moment { monotonic: Duration::from_secs(1), wall: Duration::from_secs(1_790_000_000) };

impl World {
    fn next_timeout(&self) -> Option<Deadline> {
        let links = self.clients.iter().filter_map(|client| client.link.as_ref()?.connection.next_timeout());
        links.chain(self.hubs.iter().filter_map(|hub| hub.vhost.next_timeout())).min()
    }

    /// Time passes, and what is due is done on time.
    pub(crate) fn wait(&mut self, time: Duration) -> Result<(), Violation> {
        let end = self.now.monotonic + time;
        while let Some(due) = self.next_timeout().filter(|due| due.0 <= end) {
            self.pass(due.0.saturating_sub(self.now.monotonic));
            let now = self.now;
            for hub in 0..self.hubs.len() {
                self.hubs[hub].model.begin_event();
                if self.hubs[hub].vhost.next_timeout().is_some_and(|due| now.has_reached(due)) {
                    self.hubs[hub].time_out(now, &mut self.clients);
                    self.time_out_model(hub);
                }
                self.conclude(hub)?;
            }
            self.time_out_links()?;
        }
        self.pass(end.saturating_sub(self.now.monotonic));
        for hub in 0..self.hubs.len() {
            self.hubs[hub].model.begin_event();
            self.time_out_model(hub);
            self.conclude(hub)?;
        }
        Ok(())
    }

    /// The model takes back what was held for too long, as the broker must have.
    fn time_out_model(&mut self, hub: usize) {
        let now_ms = self.now_ms();
        let TimedOut { consumers, channels } = self.hubs[hub].model.time_out(now_ms);
        self.stats.count_many(Kind::Outcome, "consumer timed out", consumers);
        self.stats.count_many(Kind::Outcome, "channel timed out", channels);
    }

    /// Time jumps over everything that is due meanwhile; then all of it is done, as late as it is.
    pub(super) fn jump(&mut self, time: Duration) -> Result<(), Violation> {
        self.pass(time);
        for hub in 0..self.hubs.len() {
            self.hubs[hub].model.begin_event();
            self.catch_up(hub)?;
            self.time_out_model(hub);
            self.conclude_as(hub, OnTime::No)?;
        }
        if self.is_unclear {
            return Ok(());
        }
        self.time_out_links()?;
        self.wait(Duration::ZERO)
    }

    /// Does all that is due in a virtual host by now.
    pub(crate) fn catch_up(&mut self, hub: usize) -> Result<(), Violation> {
        let now = self.now;
        while self.hubs[hub].vhost.next_timeout().is_some_and(|due| now.has_reached(due)) {
            self.hubs[hub].time_out(now, &mut self.clients);
            self.pump(hub)?;
        }
        Ok(())
    }

    /// Sets the wall clock; false where a start to come could tell, by what it finds of times to live: how long these last then
    /// depends on when they were written down.
    pub(super) fn set_clock(&mut self, seconds: i64) -> bool {
        let durable = self.config.durable_exchanges;
        let is_kept = |hub: &Hub| {
            let snapshots = hub.marks.iter().flat_map(|(_, snapshots)| snapshots);
            snapshots.chain([&hub.latest]).any(|snapshot| snapshot.has_kept_deadlines(durable))
        };
        if self.hubs.iter().any(is_kept) {
            return false;
        }
        let passed = self.now.monotonic.saturating_sub(BEGINNING.monotonic);
        let wall = passed + Duration::from_secs(BEGINNING.wall.as_secs().saturating_add_signed(seconds));
        self.now = Moment { wall, ..self.now };
        true
    }

    pub(crate) fn pass(&mut self, time: Duration) {
        self.now = Moment { monotonic: self.now.monotonic + time, wall: self.now.wall + time };
    }
}
