//! Where durable facts go.

use leveret_broker::{Change, JournalPosition};

/// The journal of one virtual host.
///
/// Positions count changes, in the order in which they are appended; the virtual host counts along, and what it
/// promises to clients carries the position it rests on.
pub(crate) trait Journal: Send {
    /// Takes changes in. Called with the lock of the virtual host held, so it must not wait.
    fn append(&mut self, changes: &mut Vec<Change>);

    /// Everything up to here is kept, come what may.
    fn durable(&self) -> JournalPosition;
}

/// Keeps nothing, and says so at the start: what was appended counts as durable at once.
#[derive(Debug, Default)]
pub(crate) struct Forgetful {
    appended: u64,
}

impl Journal for Forgetful {
    fn append(&mut self, changes: &mut Vec<Change>) {
        self.appended += changes.len() as u64;
        changes.clear();
    }

    fn durable(&self) -> JournalPosition {
        JournalPosition(self.appended)
    }
}
