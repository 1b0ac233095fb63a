//! What threads and tasks hand things over with: locks, conditions, atomics, wake-ups, answers.
//!
//! Everything on the way between connections, outboxes and the journal's writer uses these. In a build with the feature `shuttle`,
//! which is for the tests of `hand_over.rs`, they are those of the checker of that name, which decides at each of them who goes
//! on. In any other build they are the usual ones, and nothing stands between.

#[cfg(feature = "shuttle")]
mod checked;

#[cfg(feature = "shuttle")]
pub(crate) use self::checked::{Condvar, Mutex, MutexGuard, Notify, atomic, mpsc, thread, watch};

#[cfg(all(test, feature = "shuttle"))]
pub(crate) use self::checked::step;

#[cfg(not(feature = "shuttle"))]
pub(crate) use {
    parking_lot::{Condvar, Mutex, MutexGuard},
    std::sync::{atomic, mpsc},
    std::thread,
    tokio::sync::{Notify, watch},
};
