//! What a user has at the moment, in all virtual hosts: counted where connections of several threads can see it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use super::{IMPERSONATOR, User};

/// The connections and channels of one user, and how many they may have.
#[derive(Debug, Default)]
pub struct Presence {
    connections: Counted,
    channels: Counted,
    is_impersonator: AtomicBool,
}

#[derive(Debug)]
struct Counted {
    now: AtomicU64,
    max: AtomicU64,
}

impl Default for Counted {
    fn default() -> Self {
        Counted { now: AtomicU64::new(0), max: AtomicU64::new(u64::MAX) }
    }
}

impl Counted {
    /// One more, unless that would be too many: then how many there may be.
    fn take(&self) -> Result<(), u64> {
        let max = self.max.load(Ordering::Relaxed);
        let taken =
            self.now.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |now| (now < max).then_some(now + 1));
        taken.map(drop).map_err(|_| max)
    }

    fn give_back(&self, count: u64) {
        self.now.fetch_sub(count, Ordering::Relaxed);
    }

    fn set_max(&self, max: Option<u64>) {
        self.max.store(max.unwrap_or(u64::MAX), Ordering::Relaxed);
    }
}

impl Presence {
    /// From now on they may have as much as this user; what there is stays.
    pub fn follow(&self, user: &User) {
        self.connections.set_max(user.limits.max_connections);
        self.channels.set_max(user.limits.max_channels);
        self.is_impersonator.store(user.tags.iter().any(|tag| tag == IMPERSONATOR), Ordering::Relaxed);
    }

    /// How many connections there are.
    pub fn connections(&self) -> u64 {
        self.connections.now.load(Ordering::Relaxed)
    }
}

/// One connection of a user. Dropped with it.
#[derive(Debug)]
pub struct Present {
    presence: Arc<Presence>,
    channels: u64,
}

impl Present {
    /// Counts a connection; the limit if there are as many as there may be.
    pub fn enter(presence: Arc<Presence>) -> Result<Self, u64> {
        presence.connections.take()?;
        Ok(Present { presence, channels: 0 })
    }

    /// Counts a channel of it; the limit if the user has as many as they may.
    pub fn open_channel(&mut self) -> Result<(), u64> {
        self.presence.channels.take()?;
        self.channels += 1;
        Ok(())
    }

    /// Whether it may publish in the name of others.
    pub fn is_impersonator(&self) -> bool {
        self.presence.is_impersonator.load(Ordering::Relaxed)
    }

    /// One of its channels is closed.
    pub fn close_channel(&mut self) {
        if let Some(left) = self.channels.checked_sub(1) {
            self.channels = left;
            self.presence.channels.give_back(1);
        }
    }
}

impl Drop for Present {
    fn drop(&mut self) {
        self.presence.channels.give_back(self.channels);
        self.presence.connections.give_back(1);
    }
}

#[cfg(test)]
mod tests {
    use super::super::UserLimits;
    use super::*;

    #[test]
    fn a_user_has_no_more_connections_and_channels_than_allowed() {
        let presence = Arc::new(Presence::default());
        let mut user = User::new(None, Vec::new());
        user.limits = UserLimits { max_connections: Some(2), max_channels: Some(3) };
        presence.follow(&user);
        let enter = || Present::enter(Arc::clone(&presence));
        let (mut one, mut two) = (enter().unwrap(), enter().unwrap());
        assert_eq!(enter().err(), Some(2));
        one.open_channel().unwrap();
        two.open_channel().unwrap();
        one.open_channel().unwrap();
        assert_eq!(two.open_channel(), Err(3));
        one.close_channel();
        two.open_channel().unwrap();
        drop(two);
        let _three = enter().unwrap();
        assert_eq!(one.open_channel(), Ok(()), "channels go with their connection");
        presence.follow(&User::new(None, Vec::new()));
        assert!(enter().is_ok());
    }
}
