//! Checking who somebody is, off the threads that move bytes, and few at once for each address.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Arc, Weak};

use leveret_broker::connection::Credentials;
use leveret_broker::names::UserName;
use leveret_broker::node::{LoginError, Node, Origin};
use parking_lot::Mutex;
use tokio::sync::Semaphore;

use crate::limits::LOGINS_AT_ONCE;

/// Who is being checked.
#[derive(Debug, Default)]
pub(crate) struct Logins {
    /// As long as somebody of that address is being checked, or waits for it.
    by_address: Mutex<HashMap<IpAddr, Weak<Semaphore>>>,
}

impl Logins {
    /// Checks credentials against the node as it is when it is their turn. Of one address, so many are checked at once; others
    /// wait for them, and nobody else does.
    pub(crate) async fn check(
        &self,
        node: impl FnOnce() -> Arc<Node>,
        credentials: Credentials,
        address: IpAddr,
    ) -> Result<UserName, LoginError> {
        let address = address.to_canonical();
        let turns = self.turns(network(address));
        // Nobody closes it.
        let _turn = turns.acquire().await;
        let origin = if address.is_loopback() { Origin::Loopback } else { Origin::Remote };
        let (user, node) = (credentials.user.clone(), node());
        let checking = move || node.log_in(&credentials.user, &credentials.password, origin);
        // If it panicked, nothing is proved.
        tokio::task::spawn_blocking(checking).await.unwrap_or(Err(LoginError::WrongPassword(user)))
    }

    fn turns(&self, network: IpAddr) -> Arc<Semaphore> {
        let mut by_address = self.by_address.lock();
        if let Some(turns) = by_address.get(&network).and_then(Weak::upgrade) {
            return turns;
        }
        by_address.retain(|_, turns| turns.strong_count() > 0);
        let turns = Arc::new(Semaphore::new(LOGINS_AT_ONCE));
        by_address.insert(network, Arc::downgrade(&turns));
        turns
    }
}

/// Who has one address of IPv6 has all that begin with the same 64 bits.
fn network(address: IpAddr) -> IpAddr {
    match address {
        IpAddr::V4(_) => address,
        IpAddr::V6(address) => Ipv6Addr::from_bits(address.to_bits() >> 64 << 64).into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn of_one_network_few_are_checked_at_once_and_others_do_not_wait() {
        let logins = Logins::default();
        let address = |text: &str| network(text.parse().unwrap());
        let turns = logins.turns(address("2001:db8::1"));
        let taken: Vec<_> = (0..LOGINS_AT_ONCE).map(|_| turns.try_acquire().unwrap()).collect();
        assert!(logins.turns(address("2001:db8::2")).try_acquire().is_err(), "the same network");
        assert!(logins.turns(address("2001:db8:0:1::1")).try_acquire().is_ok());
        assert!(logins.turns(address("192.0.2.1")).try_acquire().is_ok());
        drop(taken);
        assert!(logins.turns(address("2001:db8::2")).try_acquire().is_ok());
        drop(turns);
        logins.turns(address("192.0.2.2"));
        assert_eq!(logins.by_address.lock().len(), 1, "those that nobody uses are forgotten");
    }
}
