//! The rules that every history keeps, whatever queues and exchanges there are: nothing is delivered that was not published,
//! nothing twice without the flag, and nothing once it was settled for good. Orders are the model's concern.
//!
//! Owns: what clients have heard. Must not know: the model.

use std::collections::{BTreeMap, HashSet};

use crate::model::{Model, Violation};
use crate::plan::{Mode, To};

type Delivery = (u8, Mode, u64);

/// A message in one life of a queue that was acked by an event, and how many answers are to be heard before that is durable.
type Acked = (usize, (u64, u64), u64);

/// What clients of a virtual host have published and heard.
#[derive(Debug, Default)]
pub(crate) struct History {
    published: HashSet<u64>,
    /// Published to one queue by its name, so in no two at a time.
    single: HashSet<u64>,
    /// Life of a queue and message: delivered without the flag.
    delivered: HashSet<(u64, u64)>,
    /// What a delivery was of, until it is settled.
    held: BTreeMap<Delivery, (u64, u64)>,
    /// What was acked, and is settled for good once so many answers were heard on the channel.
    acked: BTreeMap<(u8, Mode), Vec<Acked>>,
    /// With the event that settled it.
    settled: BTreeMap<(u64, u64), u64>,
}

impl History {
    pub(crate) fn publish(&mut self, id: u64, to: To) {
        self.published.insert(id);
        if matches!(to, To::Queue(_)) {
            self.single.insert(id);
        }
    }

    pub(crate) fn deliver(
        &mut self,
        delivery: Delivery,
        (slot, uid, id): (u8, u64, u64),
        event: u64,
        redelivered: bool,
        no_ack: bool,
    ) -> Result<(), Violation> {
        if !self.published.contains(&id) {
            return Err(format!("message {id} was delivered, and nobody published it"));
        }
        self.held.remove(&delivery);
        // The same message may reach a queue of dead letters from several others.
        if Model::is_dead(slot) && !self.single.contains(&id) {
            return Ok(());
        }
        // What two connections hear may come in any order.
        if !redelivered && !self.delivered.insert((uid, id)) {
            return Err(format!("message {id} of q{slot} is delivered again without the flag"));
        }
        // What was under way before it was settled may be heard behind that.
        if self.settled.get(&(uid, id)).is_some_and(|settled| event > *settled) {
            return Err(format!("message {id} of q{slot} is delivered again after it was settled"));
        }
        if !no_ack {
            self.held.insert(delivery, (uid, id));
        }
        Ok(())
    }

    /// A delivery is acked, while so many answers were under way.
    pub(crate) fn ack(&mut self, delivery: Delivery, answers: usize, event: u64) {
        if let Some(held) = self.held.remove(&delivery) {
            self.acked.entry((delivery.0, delivery.1)).or_default().push((answers + 1, held, event));
        }
    }

    /// A channel has got an answer: what was acked before it was asked for is durable.
    pub(crate) fn answer(&mut self, client: u8, mode: Mode, settles: bool) {
        let Some(acked) = self.acked.get_mut(&(client, mode)) else { return };
        acked.retain_mut(|(answers, held, event)| {
            if *answers > 1 {
                *answers -= 1;
            } else if settles {
                *answers = 0;
                self.settled.insert(*held, *event);
            }
            *answers > 0
        });
    }

    /// A channel is closed: its tags name nothing any more.
    pub(crate) fn close(&mut self, client: u8, mode: Mode) {
        self.held.retain(|(own, its, _), _| (*own, *its) != (client, mode));
        self.acked.remove(&(client, mode));
    }

    /// What a client has not settled is not its any more.
    pub(crate) fn leave(&mut self, client: u8) {
        self.held.retain(|(own, _, _), _| *own != client);
        self.acked.retain(|(own, _), _| *own != client);
    }

    /// The same for all of them.
    pub(crate) fn after_restart(self) -> History {
        History { held: BTreeMap::new(), acked: BTreeMap::new(), ..self }
    }
}
