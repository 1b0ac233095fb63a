//! Permissions: the one function that stands in the path of every operation.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use leveret_amqp::ShortStr;

use crate::Shortened;
use crate::limits::PERMISSIONS_REMEMBERED;
use crate::names::{ExchangeName, UserName, VhostName};
use crate::pattern::{Pattern, PatternError, check_length};

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

impl fmt::Display for Permission {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Permission::Configure => "configure",
            Permission::Write => "write",
            Permission::Read => "read",
        })
    }
}

/// What an operation touches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Resource<'a> {
    /// A queue, by name.
    Queue(&'a str),
    /// An exchange, by name; the default exchange is called `amq.default` here.
    Exchange(&'a str),
    /// A routing key of a topic exchange.
    Topic {
        /// The exchange, by name.
        exchange: &'a str,
        /// The key of a message or binding.
        routing_key: &'a str,
    },
}

impl fmt::Display for Resource<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Resource::Queue(name) => write!(f, "queue '{name}'"),
            Resource::Exchange(name) => write!(f, "exchange '{}'", public_name(name)),
            Resource::Topic { exchange, routing_key } => {
                write!(f, "topic '{routing_key}' in exchange topic '{exchange}'")
            }
        }
    }
}

/// What a user may do in one virtual host, to what has a matching name. An empty pattern matches nothing but the empty name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Permissions {
    /// Where [`Permission::Configure`] is given.
    pub configure: Pattern,
    /// Where [`Permission::Write`] is given.
    pub write: Pattern,
    /// Where [`Permission::Read`] is given.
    pub read: Pattern,
}

/// A permission that cannot be given.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the pattern '{}' for {permission} cannot be used: {error}", Shortened(pattern))]
pub struct InvalidPermission {
    /// Which it is.
    pub permission: Permission,
    /// As it was given.
    pub pattern: String,
    /// Why not.
    pub error: PatternError,
}

impl InvalidPermission {
    fn new(permission: Permission, pattern: &str, error: PatternError) -> Self {
        InvalidPermission { permission, pattern: pattern.to_owned(), error }
    }
}

impl Permissions {
    /// Reads the three patterns.
    pub fn new(configure: &str, write: &str, read: &str) -> Result<Self, InvalidPermission> {
        Ok(Permissions {
            configure: pattern(Permission::Configure, configure)?,
            write: pattern(Permission::Write, write)?,
            read: pattern(Permission::Read, read)?,
        })
    }
}

fn pattern(permission: Permission, text: &str) -> Result<Pattern, InvalidPermission> {
    Pattern::parse_permission(text).map_err(|error| InvalidPermission::new(permission, text, error))
}

/// Which routing keys of a topic exchange a user may publish or bind with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TopicPermissions {
    /// The patterns as they were given, with variables.
    texts: (Box<str>, Box<str>),
    write: Pattern,
    read: Pattern,
}

impl TopicPermissions {
    /// Reads the two patterns. `{username}` and `{vhost}` in them stand for these names, whatever characters they have.
    /// `{client_id}` is for other protocols and stands for itself. RabbitMQ: access control, "Topic Authorisation"; there,
    /// what stands for a variable counts as a pattern, too.
    pub fn new(write: &str, read: &str, user: &UserName, vhost: &VhostName) -> Result<Self, InvalidPermission> {
        // Names may be much longer than what stands for them.
        let expanded = |permission, text: &str| {
            check_length(text).map_err(|error| InvalidPermission::new(permission, text, error))?;
            let text = text.replace("{client_id}", r"\{client_id\}");
            let text = text.replace("{username}", &regex_syntax::escape(user.as_str()));
            pattern(permission, &text.replace("{vhost}", &regex_syntax::escape(vhost.as_str())))
        };
        Ok(TopicPermissions {
            texts: (write.into(), read.into()),
            write: expanded(Permission::Write, write)?,
            read: expanded(Permission::Read, read)?,
        })
    }

    /// The pattern for publishing, as it was given.
    pub fn write(&self) -> &str {
        &self.texts.0
    }

    /// The pattern for binding, as it was given.
    pub fn read(&self) -> &str {
        &self.texts.1
    }
}

/// All that a user may do in one virtual host.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Grant {
    /// None: nothing at all.
    pub permissions: Option<Permissions>,
    /// By exchange. Where there are none, every routing key will do.
    pub topics: BTreeMap<ExchangeName, TopicPermissions>,
}

/// A user who has logged in, as one virtual host knows them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Login {
    /// Who it is.
    pub user: UserName,
    /// What they may do here.
    pub grant: Arc<Grant>,
}

impl Login {
    /// Nobody in particular, who may do everything.
    pub(crate) fn administrator() -> Self {
        let permissions = Permissions::new(".*", ".*", ".*").expect("it is a pattern");
        let grant = Arc::new(Grant { permissions: Some(permissions), ..Grant::default() });
        Login { user: UserName::new(ShortStr::truncated("administrator")), grant }
    }
}

/// An operation that a user may not do.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{permission} access to {resource} refused for user '{user}'")]
pub struct AccessRefused {
    permission: Permission,
    /// For example `queue 'q' in vhost '/'`.
    resource: String,
    user: UserName,
}

/// Decides whether `login` may do it in a virtual host. Every operation asks here and nowhere else.
pub fn authorize(
    login: &Login,
    permission: Permission,
    resource: Resource<'_>,
    vhost: &VhostName,
) -> Result<(), AccessRefused> {
    if is_granted(&login.grant, permission, resource) {
        return Ok(());
    }
    let resource = format!("{resource} in vhost '{vhost}'");
    Err(AccessRefused { permission, resource, user: login.user.clone() })
}

fn is_granted(grant: &Grant, permission: Permission, resource: Resource<'_>) -> bool {
    let name = match resource {
        Resource::Queue(name) => name,
        Resource::Exchange(name) => public_name(name),
        Resource::Topic { exchange, routing_key } => {
            let Some(topics) = grant.topics.get(exchange) else { return true };
            return match permission {
                Permission::Configure => true,
                Permission::Write => topics.write.matches(routing_key),
                Permission::Read => topics.read.matches(routing_key),
            };
        }
    };
    let Some(permissions) = &grant.permissions else { return false };
    let pattern = match permission {
        Permission::Configure => &permissions.configure,
        Permission::Write => &permissions.write,
        Permission::Read => &permissions.read,
    };
    pattern.matches(name)
}

fn public_name(exchange: &str) -> &str {
    if exchange.is_empty() { "amq.default" } else { exchange }
}

/// What a connection was allowed last, so that no pattern is searched again. It is emptied when permissions change.
#[derive(Debug, Default)]
pub(crate) struct Allowed {
    known: Vec<(Permission, Kind, Box<str>)>,
    /// The one to forget next.
    oldest: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Queue,
    Exchange,
}

impl Allowed {
    /// Asks [`authorize`], unless it has said yes before.
    pub(crate) fn check(
        &mut self,
        login: &Login,
        permission: Permission,
        resource: Resource<'_>,
        vhost: &VhostName,
    ) -> Result<(), AccessRefused> {
        let (kind, name) = match resource {
            Resource::Queue(name) => (Kind::Queue, name),
            Resource::Exchange(name) => (Kind::Exchange, name),
            // Routes remember those.
            Resource::Topic { .. } => return authorize(login, permission, resource, vhost),
        };
        let is_known =
            |known: &(Permission, Kind, Box<str>)| known.0 == permission && known.1 == kind && *known.2 == *name;
        if self.known.iter().any(is_known) {
            return Ok(());
        }
        authorize(login, permission, resource, vhost)?;
        let new = (permission, kind, name.into());
        if self.known.len() < PERMISSIONS_REMEMBERED {
            self.known.push(new);
        } else {
            self.known[self.oldest] = new;
            self.oldest = (self.oldest + 1) % PERMISSIONS_REMEMBERED;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_pattern_is_refused_in_a_few_words_with_its_names_and_without() {
        let user = UserName::new(ShortStr::truncated("ada"));
        let vhost = VhostName::new(ShortStr::truncated("engine"));
        let refused = |text: &str, bytes: usize| {
            let permission = Permissions::new("", text, "").unwrap_err().to_string();
            let topic = TopicPermissions::new("", text, &user, &vhost).unwrap_err().to_string();
            let error = |permission| {
                let beginning = &text[..36];
                format!(
                    "the pattern '{beginning}...' for {permission} cannot be used: it has {bytes} bytes, and a pattern has at \
                     most 4096"
                )
            };
            assert_eq!((permission, topic), (error(Permission::Write), error(Permission::Read)));
        };
        refused(&"x".repeat(1_000_000), 1_000_000);
        refused(&"{vhost}".repeat(100_000), 700_000);
        assert!(TopicPermissions::new(&"{vhost}".repeat(585), "", &user, &vhost).is_ok());
        let longer = VhostName::new(ShortStr::truncated("engine-x"));
        let error = TopicPermissions::new(&"{vhost}".repeat(585), "", &user, &longer).unwrap_err();
        assert_eq!(error.error, PatternError::TooLong(585 * r"engine\-x".len()));
    }
}
