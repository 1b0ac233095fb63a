//! What crosses virtual hosts: which there are, who may log in, and from where.
//!
//! Connections hold it behind an `Arc` and never see it change; a changed node is a new value.

use std::collections::BTreeMap;

use leveret_amqp::{ShortStr, ShortString};

use crate::access::{Login, Permissions};
use crate::names::{UserName, VhostName};

/// The users and virtual hosts of a node.
#[derive(Clone, Debug)]
pub struct Node {
    users: BTreeMap<String, User>,
    vhosts: Vec<VhostName>,
}

#[derive(Clone, Debug)]
struct User {
    password: String,
    permissions: Permissions,
    /// RabbitMQ: `loopback_users`. Only peers of this machine may log in by this name.
    loopback_only: bool,
}

/// Where a peer connects from, as far as it decides who may log in. The peer's address counts, never our own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// From this machine.
    Loopback,
    /// From another machine.
    Remote,
}

/// A login that is refused. The peer is told the same for all of them; the log says which it was.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LoginError {
    /// Nobody of that name.
    #[error("user '{0}' does not exist")]
    NoSuchUser(String),
    /// The password is another.
    #[error("wrong password for user '{0}'")]
    WrongPassword(String),
    /// The user may log in from this machine only.
    #[error("user '{0}' can only connect from this machine (loopback)")]
    LoopbackOnly(String),
    /// The response is not of the form that the mechanism asks for.
    #[error("the response to mechanism {0} is malformed")]
    MalformedResponse(&'static str),
}

impl Default for Node {
    /// User `guest` with password `guest`, from loopback only, may do everything in virtual host `/`.
    fn default() -> Self {
        let slash = ShortStr::truncated("/");
        let mut node = Node { users: BTreeMap::new(), vhosts: vec![VhostName::new(slash)] };
        node.add_user("guest", "guest", Permissions::ALL);
        node.users.values_mut().for_each(|user| user.loopback_only = true);
        node
    }
}

impl Node {
    /// Adds or replaces a user with the same permissions in every virtual host.
    pub fn add_user(&mut self, name: &str, password: &str, permissions: Permissions) {
        let user = User { password: password.into(), permissions, loopback_only: false };
        self.users.insert(name.into(), user);
    }

    /// Checks name and password.
    pub fn log_in(&self, name: &str, password: &[u8], origin: Origin) -> Result<Login, LoginError> {
        let user = self.users.get(name).ok_or_else(|| LoginError::NoSuchUser(name.into()))?;
        if !equal_in_constant_time(user.password.as_bytes(), password) {
            return Err(LoginError::WrongPassword(name.into()));
        }
        if user.loopback_only && origin == Origin::Remote {
            return Err(LoginError::LoopbackOnly(name.into()));
        }
        let user_name = ShortString::new(name).map_err(|_| LoginError::NoSuchUser(name.into()))?;
        Ok(Login { user: UserName::from(user_name), permissions: user.permissions })
    }

    /// The virtual host of that name.
    pub fn vhost(&self, name: &str) -> Option<&VhostName> {
        self.vhosts.iter().find(|vhost| vhost.as_str() == name)
    }

    /// All virtual hosts.
    pub fn vhosts(&self) -> &[VhostName] {
        &self.vhosts
    }
}

/// Takes as long for a password that is right to its last byte as for one that is wrong in its first.
fn equal_in_constant_time(a: &[u8], b: &[u8]) -> bool {
    a.len() == b.len() && a.iter().zip(b).fold(0, |difference, (a, b)| difference | (a ^ b)) == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn guest_logs_in_from_this_machine_only() {
        let node = Node::default();
        assert!(node.log_in("guest", b"guest", Origin::Loopback).is_ok());
        let remote = node.log_in("guest", b"guest", Origin::Remote);
        assert_eq!(remote, Err(LoginError::LoopbackOnly("guest".into())));
        let wrong = node.log_in("guest", b"gues", Origin::Loopback);
        assert_eq!(wrong, Err(LoginError::WrongPassword("guest".into())));
    }
}
