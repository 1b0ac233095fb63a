//! The virtual hosts of a node that are running, while some come and go.
//!
//! Owns: which hubs there are, and the task that calls each when something is due.
//! Must not know: what a virtual host is for, or who may use it.

use std::collections::BTreeMap;
use std::sync::Arc;

use leveret_broker::names::VhostName;
use parking_lot::{Mutex, RwLock};
use tokio::runtime::Handle;
use tokio::task::JoinHandle;

use crate::hub::Hub;

/// The hubs of a node.
pub(crate) struct Hubs {
    running: RwLock<BTreeMap<VhostName, Running>>,
    gone: Mutex<Gone>,
}

/// What is remembered of virtual hosts that are gone.
struct Gone {
    streams: Vec<u32>,
    /// How many changes there were in them, and that they went.
    changes: u64,
}

struct Running {
    hub: Arc<Hub>,
    /// None: it is called no more.
    timers: Option<JoinHandle<()>>,
}

impl Running {
    fn abort_timers(&self) {
        self.timers.iter().for_each(JoinHandle::abort);
    }
}

impl Hubs {
    /// None; these streams of the journal belong to virtual hosts that are gone.
    pub(crate) fn new(gone: Vec<u32>) -> Arc<Self> {
        Arc::new(Hubs { running: RwLock::default(), gone: Mutex::new(Gone { streams: gone, changes: 0 }) })
    }

    /// Takes a virtual host in, and begins to call it when something is due. Returns the one of that name, if there was one: it is
    /// gone.
    pub(crate) fn add(&self, name: VhostName, hub: Arc<Hub>, runtime: &Handle) -> Option<Arc<Hub>> {
        let timers = Some(runtime.spawn(Arc::clone(&hub).run_timers()));
        let before = self.running.write().insert(name, Running { hub, timers });
        before.map(|before| self.retire(before))
    }

    /// A virtual host is gone. Its hub lives on until its connections have ended.
    pub(crate) fn remove(&self, name: &VhostName) -> Option<Arc<Hub>> {
        let removed = self.running.write().remove(name);
        removed.map(|removed| self.retire(removed))
    }

    fn retire(&self, running: Running) -> Arc<Hub> {
        running.abort_timers();
        let changes = running.hub.position().0 + 1;
        let mut gone = self.gone.lock();
        gone.streams.push(running.hub.stream());
        gone.changes += changes;
        drop(gone);
        running.hub
    }

    /// The one of that name.
    pub(crate) fn get(&self, name: &str) -> Option<Arc<Hub>> {
        self.running.read().get(name).map(|running| Arc::clone(&running.hub))
    }

    /// All that there are now.
    pub(crate) fn all(&self) -> Vec<Arc<Hub>> {
        self.running.read().values().map(|running| Arc::clone(&running.hub)).collect()
    }

    /// The streams of virtual hosts that are gone: a start need not read them.
    pub(crate) fn gone(&self) -> Vec<u32> {
        self.gone.lock().streams.clone()
    }

    /// All changes that there were in virtual hosts, also in those that are gone.
    pub(crate) fn changes(&self) -> u64 {
        let running: u64 = self.all().iter().map(|hub| hub.position().0).sum();
        running + self.gone.lock().changes
    }

    /// Calls none of them any more.
    pub(crate) fn abort_timers(&self) {
        for running in self.running.read().values() {
            running.abort_timers();
        }
    }

    /// The same, and returns once that is so.
    pub(crate) async fn stop_timers(&self) {
        self.abort_timers();
        let timers: Vec<_> = self.running.write().values_mut().map(|running| running.timers.take()).collect();
        for task in timers.into_iter().flatten() {
            // Ends as "cancelled"; what it held, it has let go of.
            let _ = task.await;
        }
    }
}

impl Drop for Hubs {
    fn drop(&mut self) {
        self.abort_timers();
    }
}
