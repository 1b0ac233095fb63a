//! What unit tests of a virtual host begin with.

use std::sync::Arc;
use std::time::Duration;

use leveret_amqp::{ShortStr, ShortString};

use crate::access::{Grant, Login, Permissions};
use crate::message::{DeliveryMode, History, Message};
use crate::moment::Moment;
use crate::names::{UserName, VhostName};
use crate::scratch::{Place, Segment, Spilled};
use crate::vhost::{ConnectionId, Sweep, VirtualHost};

/// With nothing in it.
pub(crate) fn empty_vhost() -> VirtualHost {
    VirtualHost::new(VhostName::new(ShortStr::truncated("/")), [1; 32])
}

/// A connection of somebody who may do everything.
pub(crate) fn connect(vhost: &mut VirtualHost) -> ConnectionId {
    let user = UserName::from(ShortString::from(ShortStr::truncated("guest")));
    let permissions = Some(Permissions::new(".*", ".*", ".*").unwrap());
    let grant = Arc::new(Grant { permissions, ..Grant::default() });
    vhost.connect(Login { user, grant }).unwrap()
}

/// So many seconds after the beginning, by both clocks.
pub(crate) fn at(seconds: u64) -> Moment {
    let time = Duration::from_secs(seconds);
    Moment { monotonic: time, wall: time }
}

/// A persistent one with two bytes.
pub(crate) fn message() -> Message {
    let block = [0, 0, 0, 60, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2, 0, 0, b'h', b'i'];
    Message::from_parts(&block, 2, 16, DeliveryMode::Persistent, History::None).unwrap()
}

/// Lets go of all bodies that may go.
pub(crate) fn evict(vhost: &mut VirtualHost, may_go: impl Fn(&Message) -> bool) {
    let (mut sweep, mut spills) = (Sweep::default(), Vec::new());
    while vhost.evict(&mut sweep, 0, |_, message| may_go(message), &mut spills) {}
    let segment = Segment::new(0);
    let place = |offset| Place { segment: 0, offset };
    let spilled = spills.into_iter().zip(0..);
    let spilled = spilled.map(|(spill, nth)| Spilled { spill, place: Some((segment.clone(), place(nth))) });
    vhost.handle_spilled(&mut spilled.collect());
}
