//! The same names on top of shuttle, as far as they are used.
//!
//! It runs one thread at a time, and chooses at each of these operations which one is next. Atomics count as sequentially consistent.

use std::fmt;
use std::ops::{Deref, DerefMut};
use std::time::Duration;

pub(crate) use shuttle::sync::{atomic, mpsc};
pub(crate) use shuttle::thread;

use self::atomic::{AtomicU64, Ordering};

/// Lets anybody else go on at this place.
pub(crate) fn step() {
    AtomicU64::new(0).load(Ordering::SeqCst);
}

/// Like `parking_lot`'s: nobody is told that whoever held it has panicked.
#[derive(Default)]
pub(crate) struct Mutex<T>(shuttle::sync::Mutex<T>);

/// Holds the lock of a [`Mutex`].
pub(crate) struct MutexGuard<'a, T> {
    of: &'a Mutex<T>,
    /// None only while it waits for a condition.
    held: Option<shuttle::sync::MutexGuard<'a, T>>,
}

impl<T> Mutex<T> {
    pub(crate) fn new(value: T) -> Self {
        Mutex(shuttle::sync::Mutex::new(value))
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, T> {
        MutexGuard { of: self, held: Some(self.held()) }
    }

    pub(crate) fn try_lock(&self) -> Option<MutexGuard<'_, T>> {
        let held = self.0.try_lock().ok()?;
        Some(MutexGuard { of: self, held: Some(held) })
    }

    pub(crate) fn get_mut(&mut self) -> &mut T {
        self.0.get_mut().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    fn held(&self) -> shuttle::sync::MutexGuard<'_, T> {
        self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

impl<T> fmt::Debug for Mutex<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Mutex")
    }
}

impl<T> MutexGuard<'_, T> {
    /// Who waited longest is next in any case.
    pub(crate) fn unlock_fair(guard: Self) {
        drop(guard);
    }

    /// Releases the lock while something is done.
    pub(crate) fn unlocked<R>(guard: &mut Self, act: impl FnOnce() -> R) -> R {
        guard.held = None;
        let done = act();
        guard.held = Some(guard.of.held());
        done
    }
}

impl<T> Deref for MutexGuard<'_, T> {
    type Target = T;

    fn deref(&self) -> &T {
        self.held.as_ref().expect("it waits for no condition")
    }
}

impl<T> DerefMut for MutexGuard<'_, T> {
    fn deref_mut(&mut self) -> &mut T {
        self.held.as_mut().expect("it waits for no condition")
    }
}

/// Whether somebody waited in vain.
pub(crate) struct WaitTimeoutResult(bool);

impl WaitTimeoutResult {
    pub(crate) fn timed_out(&self) -> bool {
        self.0
    }
}

/// Like `parking_lot`'s, for one who waits.
#[derive(Default)]
pub(crate) struct Condvar {
    condition: shuttle::sync::Condvar,
    told: AtomicU64,
}

impl Condvar {
    pub(crate) fn new() -> Self {
        Self::default()
    }

    pub(crate) fn wait<T>(&self, guard: &mut MutexGuard<'_, T>) {
        let held = guard.held.take().expect("it waits for one condition");
        guard.held = Some(self.condition.wait(held).unwrap_or_else(std::sync::PoisonError::into_inner));
    }

    /// Time passes as soon as this thread has another turn, which may be before or after anything that others do.
    pub(crate) fn wait_for<T>(&self, guard: &mut MutexGuard<'_, T>, _: Duration) -> WaitTimeoutResult {
        let before = self.told.load(Ordering::SeqCst);
        MutexGuard::unlocked(guard, step);
        WaitTimeoutResult(self.told.load(Ordering::SeqCst) == before)
    }

    pub(crate) fn notify_one(&self) {
        self.told.fetch_add(1, Ordering::SeqCst);
        self.condition.notify_one();
    }
}

/// That of tokio, which tests it in its own way: each of its operations is one step here.
#[derive(Debug, Default)]
pub(crate) struct Notify(tokio::sync::Notify);

impl Notify {
    pub(crate) fn notify_one(&self) {
        step();
        self.0.notify_one();
    }

    pub(crate) async fn notified(&self) {
        step();
        self.0.notified().await;
    }
}

pub(crate) mod watch {
    //! Those of tokio, likewise: whoever tells something takes a step before. Who hears of it does what tokio does.

    pub(crate) use tokio::sync::watch::Receiver;

    use super::step;

    pub(crate) struct Sender<T>(tokio::sync::watch::Sender<T>);

    pub(crate) fn channel<T>(value: T) -> (Sender<T>, Receiver<T>) {
        let (sender, receiver) = tokio::sync::watch::channel(value);
        (Sender(sender), receiver)
    }

    impl<T> Sender<T> {
        pub(crate) fn send_if_modified(&self, modify: impl FnOnce(&mut T) -> bool) -> bool {
            step();
            self.0.send_if_modified(modify)
        }

        pub(crate) fn send_replace(&self, value: T) -> T {
            step();
            self.0.send_replace(value)
        }

        pub(crate) fn subscribe(&self) -> Receiver<T> {
            step();
            self.0.subscribe()
        }
    }
}
