//! Whether publishers wait: what memory and disk say of it, told to all virtual hosts as one.

use std::sync::Arc;

use leveret_broker::vhost::room::Room;
use parking_lot::Mutex;

use crate::arrivals::Arrivals;
use crate::hub::Hub;
use crate::hubs::Hubs;

/// The room of a node.
pub(crate) struct Rooms {
    hubs: Arc<Hubs>,
    arrivals: Arc<Arrivals>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    memory: Room,
    is_short_of_disk: bool,
    /// The node stops: nobody waits any more.
    is_closed: bool,
    told: Room,
}

impl State {
    fn room(&self) -> Room {
        match self.memory {
            _ if self.is_closed => Room::Enough,
            memory if self.is_short_of_disk => {
                Room::ShortOf { memory: matches!(memory, Room::ShortOf { .. }), disk: true }
            }
            memory => memory,
        }
    }
}

impl Rooms {
    pub(crate) fn new(hubs: Arc<Hubs>, arrivals: Arc<Arrivals>) -> Arc<Self> {
        Arc::new(Rooms { hubs, arrivals, state: Mutex::default() })
    }

    /// There is room in memory, or there is not.
    pub(crate) fn set_memory(&self, room: Room) {
        self.change(|state| state.memory = room);
    }

    /// The disk has as much room as it must, or it has not.
    pub(crate) fn set_short_of_disk(&self, is_short: bool) {
        self.change(|state| state.is_short_of_disk = is_short);
    }

    /// From now on nobody waits, so that everybody can say goodbye.
    pub(crate) fn close(&self) {
        self.change(|state| state.is_closed = true);
    }

    /// Tells a virtual host that is new, before it has connections.
    pub(crate) fn tell(&self, hub: &Hub) {
        // Whoever changes it next finds this one among the others, or has waited here.
        let state = self.state.lock();
        hub.set_room(state.told);
    }

    /// A virtual host is gone, and nobody waits there any more, so that all in it can say goodbye.
    pub(crate) fn leave(&self, hub: &Hub) {
        // Whoever changes it at the moment may have found it among the others, and has told it.
        let _nobody_changes_it = self.state.lock();
        hub.set_room(Room::Enough);
    }

    fn change(&self, change: impl FnOnce(&mut State)) {
        // Held until all are told, so that they hear of it in order.
        let mut state = self.state.lock();
        change(&mut state);
        let room = state.room();
        if std::mem::replace(&mut state.told, room) != room {
            self.arrivals.set_short_of_room(room != Room::Enough);
            for hub in self.hubs.all() {
                hub.set_room(room);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_and_disk_are_told_as_one() {
        let short = |memory, disk| Room::ShortOf { memory, disk };
        let of = |memory, is_short_of_disk| State { memory, is_short_of_disk, ..State::default() }.room();
        assert_eq!(of(Room::Enough, false), Room::Enough);
        assert_eq!(of(Room::Soon, false), Room::Soon);
        assert_eq!(of(short(true, false), false), short(true, false));
        assert_eq!(of(Room::Enough, true), short(false, true));
        assert_eq!(of(Room::Soon, true), short(false, true));
        assert_eq!(of(short(true, false), true), short(true, true));
    }
}
