//! Checking who somebody is, off the threads that move bytes, and few at once for each address.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Arc, Weak};

use leveret_broker::names::UserName;
use leveret_broker::node::{LoginError, Origin};
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
    /// Has a user checked who comes from this address, once it is their turn. Of one address, so many are checked at once; others
    /// wait for them, and nobody else does.
    pub(crate) async fn check(
        &self,
        address: IpAddr,
        user: String,
        log_in: impl FnOnce(Origin) -> Result<UserName, LoginError> + Send + 'static,
    ) -> Result<UserName, LoginError> {
        let address = address.to_canonical();
        let turns = self.turns(network(address));
        // Nobody closes it.
        let _turn = turns.acquire().await;
        let origin = if address.is_loopback() { Origin::Loopback } else { Origin::Remote };
        // If it panicked, nothing is proved.
        tokio::task::spawn_blocking(move || log_in(origin)).await.unwrap_or(Err(LoginError::WrongPassword(user)))
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
    use std::time::Duration;

    use super::*;

    #[tokio::test]
    async fn a_check_waits_for_its_turn_and_knows_where_the_peer_is() {
        let logins = Logins::default();
        let told = |origin: Origin| LoginError::NoSuchUser(format!("{origin:?}"));
        let check = |text: &str| logins.check(text.parse().unwrap(), "u".into(), move |origin| Err(told(origin)));
        let turns = logins.turns("192.0.2.1".parse().unwrap());
        let taken: Vec<_> = (0..LOGINS_AT_ONCE).map(|_| turns.try_acquire().unwrap()).collect();
        let mut waiting = std::pin::pin!(check("192.0.2.1"));
        let polled = tokio::time::timeout(Duration::ZERO, waiting.as_mut()).await;
        assert!(polled.is_err(), "others of its address are checked");
        for (address, origin) in [
            ("192.0.2.2", Origin::Remote),
            ("::ffff:192.0.2.3", Origin::Remote),
            ("127.0.0.9", Origin::Loopback),
            ("::1", Origin::Loopback),
            ("::ffff:127.0.0.1", Origin::Loopback),
        ] {
            assert_eq!(check(address).await, Err(told(origin)), "{address}");
        }
        drop(taken);
        assert_eq!(waiting.await, Err(told(Origin::Remote)));
        let panicking = logins.check("::1".parse().unwrap(), "u".into(), |_| panic!("nothing is proved"));
        assert_eq!(panicking.await, Err(LoginError::WrongPassword("u".into())));
    }

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
