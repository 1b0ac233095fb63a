//! Permissions: the one function that stands in the path of every operation.

use crate::names::UserName;

/// What an operation does to a resource. RabbitMQ: access control, the table of operations and permissions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Permission {
    /// Declare or delete it.
    Configure,
    /// Put messages in: publish, or bind a queue.
    Write,
    /// Take messages out: consume, get, purge, or bind to an exchange.
    Read,
}

/// What an operation touches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Resource<'a> {
    /// A queue, by name.
    Queue(&'a str),
    /// An exchange, by name; the default exchange is called `amq.default` here.
    Exchange(&'a str),
}

/// Names to which a permission applies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Names {
    /// Every name.
    All,
    /// No name at all.
    None,
}

/// What a user may do in one virtual host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Permissions {
    /// Where [`Permission::Configure`] is given.
    pub configure: Names,
    /// Where [`Permission::Write`] is given.
    pub write: Names,
    /// Where [`Permission::Read`] is given.
    pub read: Names,
}

impl Permissions {
    /// Everything is allowed.
    pub const ALL: Permissions = Permissions { configure: Names::All, write: Names::All, read: Names::All };
    /// Nothing is allowed.
    pub const NONE: Permissions = Permissions { configure: Names::None, write: Names::None, read: Names::None };
}

/// A user who has logged in, as one virtual host knows them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Login {
    /// Who it is.
    pub user: UserName,
    /// What they may do here.
    pub permissions: Permissions,
}

/// An operation that a user may not do.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("access to {resource} refused for user '{user}'")]
pub struct AccessRefused {
    /// For example `queue 'q'`.
    resource: String,
    user: UserName,
}

/// Decides whether `login` may do it. Every operation asks here and nowhere else.
pub fn authorize(login: &Login, permission: Permission, resource: Resource<'_>) -> Result<(), AccessRefused> {
    let granted = match permission {
        Permission::Configure => login.permissions.configure,
        Permission::Write => login.permissions.write,
        Permission::Read => login.permissions.read,
    };
    match granted {
        Names::All => Ok(()),
        Names::None => Err(AccessRefused {
            resource: match resource {
                Resource::Queue(name) => format!("queue '{name}'"),
                Resource::Exchange("") => "exchange 'amq.default'".into(),
                Resource::Exchange(name) => format!("exchange '{name}'"),
            },
            user: login.user.clone(),
        }),
    }
}
