//! The rules that every history keeps, whatever queues and exchanges there are: nothing is delivered that was not published,
//! nothing twice without the flag, nothing once it was settled for good, and nothing out of its order.
//!
//! Owns: what clients have heard. Must not know: the model.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use crate::model::{Model, Violation};
use crate::plan::Mode;

type Delivery = (u8, Mode, u64);

/// What clients of a virtual host have published and heard.
#[derive(Debug, Default)]
pub(crate) struct History {
    published: HashSet<u64>,
    /// Message and life of a queue: delivered so often.
    delivered: HashMap<(u64, u64), u32>,
    /// What a delivery was of, until it is settled.
    held: BTreeMap<Delivery, (u64, u64)>,
    /// What was acked, and is settled for good once so many answers were heard on the channel.
    acked: BTreeMap<(u8, Mode), Vec<(usize, (u64, u64))>>,
    settled: BTreeSet<(u64, u64)>,
}

impl History {
    pub(crate) fn publish(&mut self, id: u64) {
        self.published.insert(id);
    }

    pub(crate) fn deliver(
        &mut self,
        delivery: Delivery,
        (slot, uid, id): (u8, u64, u64),
        redelivered: bool,
        no_ack: bool,
    ) -> Result<(), Violation> {
        if !self.published.contains(&id) {
            return Err(format!("message {id} was delivered, and nobody published it"));
        }
        // The same message may reach a queue of dead letters from several others.
        if Model::is_dead(slot) {
            return Ok(());
        }
        let times = self.delivered.entry((uid, id)).or_default();
        *times += 1;
        if *times > 1 && !redelivered {
            return Err(format!("message {id} of q{slot} is delivered for the {times}th time without the flag"));
        }
        if self.settled.contains(&(uid, id)) {
            return Err(format!("message {id} of q{slot} is delivered again after it was settled"));
        }
        if !no_ack {
            self.held.insert(delivery, (uid, id));
        }
        Ok(())
    }

    /// A delivery is acked, while so many answers were under way.
    pub(crate) fn ack(&mut self, client: u8, mode: Mode, tag: u64, answers: usize) {
        if let Some(held) = self.held.remove(&(client, mode, tag)) {
            self.acked.entry((client, mode)).or_default().push((answers + 1, held));
        }
    }

    /// A channel has got an answer: what was acked before it was asked for is durable.
    pub(crate) fn answer(&mut self, client: u8, mode: Mode) {
        let Some(acked) = self.acked.get_mut(&(client, mode)) else { return };
        acked.retain_mut(|(answers, held)| {
            *answers -= 1;
            if *answers == 0 {
                self.settled.insert(*held);
            }
            *answers > 0
        });
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
