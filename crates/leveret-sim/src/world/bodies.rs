//! Bodies that leave memory, and come back.

use leveret_broker::scratch::{Place, Segment, Spilled};
use leveret_broker::vhost::effects::Fetched;
use leveret_broker::vhost::{Progress, Sweep};
use leveret_broker::{Change, JournalPosition};
use rand::Rng;

use super::World;
use crate::hub::Hub;
use crate::model::Violation;
use crate::stats::Kind;

impl World {
    /// Reads bodies back that were asked for; true if there were any.
    pub(super) fn fetch(&mut self, hub: usize) -> Result<bool, Violation> {
        let (now, Some(store)) = (self.now, &mut self.store) else { return Ok(false) };
        let Hub { vhost, effects, fetches, stream, .. } = &mut self.hubs[hub];
        if fetches.is_empty() {
            return Ok(false);
        }
        let mut fetched = Vec::new();
        for fetch in fetches.drain(..) {
            let message = store.read(*stream, &fetch);
            // A scratch file that nobody needs any more is not there.
            if let (Err(fault), None) = (&message, fetch.id.place()) {
                return Err(format!("a body cannot be read back: {fault}"));
            }
            self.stats.count(Kind::Fault, "body read back");
            fetched.push(Fetched { fetch, message: message.ok() });
        }
        let progress = vhost.handle_fetched(now, &mut fetched, effects);
        self.hubs[hub].hand_on(now, progress, &mut self.clients);
        Ok(true)
    }

    /// Some bodies leave memory.
    pub(super) fn evict(&mut self) -> Result<(), Violation> {
        for at in 0..self.hubs.len() {
            let (luck, stats) = (&mut self.luck, &mut self.stats);
            let percent = self.config.evict_percent.max(30);
            let hub = &mut self.hubs[at];
            let durable = hub.durable;
            let (mut sweep, mut spills) = (Sweep::default(), Vec::new());
            let mut may_go = |position: Option<JournalPosition>, _: &_| {
                let goes = luck.random_range(0..100) < percent && position.is_none_or(|at| at.0 <= durable);
                if goes {
                    stats.count(Kind::Fault, "body evicted");
                }
                goes
            };
            while hub.vhost.evict(&mut sweep, 0, &mut may_go, &mut spills) {}
            let mut spilled = Vec::new();
            for spill in spills {
                let number = hub.scratch.begin().map_err(|error| error.to_string())?;
                let segment = match hub.segment.take().filter(|segment| segment.number() == number) {
                    Some(segment) => segment,
                    None => Segment::new(number),
                };
                hub.segment = Some(segment.clone());
                let change =
                    Change::MessageEnqueued { message: spill.message.clone(), queues: [].into_iter().collect() };
                let offset = hub.scratch.add(|out| change.encode(out));
                hub.scratch.write().map_err(|error| error.to_string())?;
                spilled.push(Spilled { spill, place: Some((segment, Place { segment: number, offset })) });
                if self.luck.random_bool(0.2) {
                    hub.scratch.finish();
                    hub.segment = None;
                }
            }
            hub.vhost.handle_spilled(&mut spilled);
            for number in hub.vhost.take_unneeded_segments() {
                hub.scratch.remove(number).map_err(|error| format!("a scratch file cannot be removed: {error}"))?;
            }
            hub.hand_on(self.now, Progress::Done, &mut self.clients);
            self.conclude(at)?;
        }
        Ok(())
    }
}
