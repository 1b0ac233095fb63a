//! Lines between clients and the broker on which half a frame stands, or nothing.
//!
//! Owns: what a client has begun to say and goes on with when it says more, and who shows no sign of life.

use rand::Rng;

use super::World;
use crate::hub::Hub;
use crate::link::{HEARTBEAT, Standing};
use crate::model::{Message, Violation};
use crate::plan::{Mode, To};
use crate::stats::Kind;

/// The most seconds of a heartbeat that clients agree on.
const HEARTBEAT_SECONDS_MOST: u16 = 5;

/// A publish that a client has begun, and what it has not said of it.
pub(crate) struct Unfinished {
    pub(crate) mode: Mode,
    pub(crate) message: Message,
    pub(crate) to: To,
    pub(crate) mandatory: bool,
    pub(crate) rest: Vec<u8>,
}

impl World {
    /// The heartbeat of a new connection, if it has one, and whether its client leaves it out.
    pub(super) fn any_heartbeat(&mut self) -> (u16, bool) {
        if !self.config.heartbeats || self.luck.random_bool(0.5) {
            return (0, true);
        }
        (self.luck.random_range(1..=HEARTBEAT_SECONDS_MOST), self.luck.random_bool(0.4))
    }

    /// Whether a client stops in the middle of what it says.
    pub(super) fn stops_within(&mut self) -> bool {
        self.config.halts && self.luck.random_bool(0.15)
    }

    /// A client says a part of a publish, and the rest when it says something else.
    pub(super) fn begin_to_say(&mut self, client: u8, mut unfinished: Unfinished) {
        let said = self.luck.random_range(1..unfinished.rest.len());
        let rest = unfinished.rest.split_off(said);
        let said = std::mem::replace(&mut unfinished.rest, rest);
        self.say(client, &said);
        self.stats.count(Kind::Fault, "half a publish stands");
        if let Some(link) = &mut self.clients[usize::from(client)].link {
            link.unfinished = Some(unfinished);
        }
    }

    /// A client says the rest of what it has begun. On a channel that is closed meanwhile it says that to nobody.
    pub(super) fn finish(&mut self, client: u8) -> Result<(), Violation> {
        let (at, now_ms) = (usize::from(client), self.now_ms());
        let hub = self.clients[at].hub;
        let Some(link) = &mut self.clients[at].link else { return Ok(()) };
        let Some(Unfinished { mode, message, to, mandatory, rest }) = link.unfinished.take() else { return Ok(()) };
        let Hub { history, model, .. } = &mut self.hubs[hub];
        model.begin_event();
        if link.channel(mode).standing == Standing::Open {
            history.publish(message.id, to);
            model.publish(now_ms, (client, mode), message, to, mandatory);
            self.stats.count(Kind::Fault, "half a publish finished");
        } else {
            self.stats.count(Kind::Fault, "half a publish on a channel that was closed");
        }
        self.tell(client, &rest).map(|_| ())
    }

    /// Clients show that they live, but for those who are silent, and those who are within a frame.
    fn show_life(&mut self) {
        for client in 0..self.config.clients {
            let link = self.clients[usize::from(client)].link.as_ref();
            if link.is_some_and(|link| link.has_heartbeat && !link.is_closing && link.unfinished.is_none()) {
                self.say(client, &HEARTBEAT);
            }
        }
    }

    /// What connections have to do by now is done, one after the other. A client of whom the broker has heard nothing for too long is
    /// gone.
    pub(super) fn time_out_links(&mut self) -> Result<(), Violation> {
        self.show_life();
        for client in 0..self.config.clients {
            let Some(link) = &mut self.clients[usize::from(client)].link else { continue };
            link.connection.handle_timeout(self.now, &mut link.unsent);
            if !link.is_closing && link.connection.is_gone() {
                self.stats.count(Kind::Fault, "silent client closed");
                self.lose(client)?;
            }
        }
        Ok(())
    }

    /// The connection of a client is gone, and the broker knows.
    pub(super) fn lose(&mut self, client: u8) -> Result<(), Violation> {
        let (at, now_ms) = (usize::from(client), self.now_ms());
        let hub = self.clients[at].hub;
        self.hubs[hub].history.leave(client);
        self.hubs[hub].model.begin_event();
        self.hubs[hub].model.disconnect(now_ms, client);
        self.pump(hub)?;
        self.hubs[hub].said.remove(&client);
        self.conclude(hub)?;
        if self.clients[at].link.take().is_some_and(|link| link.unfinished.is_some()) {
            self.stats.count(Kind::Fault, "half a publish lost");
        }
        self.hubs[hub].connections.retain(|(_, of)| *of != client);
        Ok(())
    }
}
