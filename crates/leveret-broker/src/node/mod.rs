//! What crosses virtual hosts: which there are, who may log in, and what they may do where.
//!
//! Owns: virtual hosts with their limits, users with their passwords, tags, permissions and limits, and global parameters.
//! Must not know: queues, connections, sockets, files, clocks.
//!
//! A node is the fold of its [`NodeChange`]s, in the stream of the node. Whoever drives it applies changes to a copy, has the
//! journal keep them, and only then shows the copy to others, so nobody ever sees what a crash could take back.

pub mod password;
pub mod presence;
pub mod recovery;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use leveret_amqp::{ShortStr, ShortString};

use self::password::PasswordHash;
use crate::access::{Grant, InvalidPermission, Login, Permissions, TopicPermissions};
use crate::change::NodeChange;
use crate::names::{ExchangeName, Logged, UserName, VhostName};

/// RabbitMQ: tag of users who may publish with any `user-id`.
pub const IMPERSONATOR: &str = "impersonator";

/// RabbitMQ: tag of users who may do everything in management.
pub const ADMINISTRATOR: &str = "administrator";

/// The last stream that a virtual host may have; there is a number behind it, so that there is always a next one to be refused.
const LAST_STREAM: u32 = u32::MAX - 1;

/// The users and virtual hosts of a node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Node {
    vhosts: BTreeMap<VhostName, Arc<Vhost>>,
    users: BTreeMap<UserName, Arc<User>>,
    global_parameters: BTreeMap<ShortString, Arc<str>>,
    /// The greatest number that was given to a stream.
    last_stream: u32,
    /// Whether it ever had users: if not, it is new.
    is_initialized: bool,
    /// RabbitMQ: `loopback_users`. Only peers of this machine may log in by these names. A setting: no change says it.
    loopback_users: BTreeSet<UserName>,
}

/// A virtual host, as the node knows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Vhost {
    /// The stream of the journal that its changes are in.
    pub stream: u32,
    /// What is said of it.
    pub metadata: VhostMetadata,
    /// How much of what it may have.
    pub limits: VhostLimits,
}

/// What is said of a virtual host. RabbitMQ: virtual hosts, "Metadata".
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct VhostMetadata {
    /// For people.
    pub description: String,
    /// For people.
    pub tags: Vec<String>,
    /// The type of a queue whose declaration does not say.
    pub default_queue_type: DefaultQueueType,
    /// It cannot be deleted.
    pub protected_from_deletion: bool,
}

/// The type of a queue whose declaration does not say. RabbitMQ: `default_queue_type`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum DefaultQueueType {
    /// `classic`, as where nobody has said anything.
    #[default]
    Classic,
    /// `quorum`, where the rest of a declaration is fit for it.
    Quorum,
}

impl DefaultQueueType {
    /// As arguments name it.
    pub fn as_str(self) -> &'static str {
        match self {
            DefaultQueueType::Classic => "classic",
            DefaultQueueType::Quorum => "quorum",
        }
    }

    /// The one that arguments name so.
    pub fn parse(name: &str) -> Option<Self> {
        [DefaultQueueType::Classic, DefaultQueueType::Quorum].into_iter().find(|kind| kind.as_str() == name)
    }
}

/// How much a virtual host may have; none: as much as comes. RabbitMQ: `vhost-limits`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct VhostLimits {
    /// Connections at once. Beyond: 530.
    pub max_connections: Option<u64>,
    /// Queues. Beyond: 406.
    pub max_queues: Option<u64>,
}

/// A user.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct User {
    /// None: nobody can log in by this name.
    pub password: Option<PasswordHash>,
    /// RabbitMQ: user tags. [`IMPERSONATOR`] is the only one that matters to clients of AMQP.
    pub tags: Vec<String>,
    /// How much they may have.
    pub limits: UserLimits,
    permissions: BTreeMap<VhostName, Permissions>,
    topics: BTreeMap<VhostName, BTreeMap<ExchangeName, TopicPermissions>>,
}

/// How much a user may have; none: as much as comes. RabbitMQ: user limits.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct UserLimits {
    /// Connections at once. Beyond: 530.
    pub max_connections: Option<u64>,
    /// Channels at once, of all connections. Beyond: 530.
    pub max_channels: Option<u64>,
}

impl User {
    fn new(password: Option<PasswordHash>, tags: Vec<String>) -> Self {
        let (limits, permissions, topics) = (UserLimits::default(), BTreeMap::new(), BTreeMap::new());
        User { password, tags, limits, permissions, topics }
    }

    /// What they may do in each virtual host.
    pub fn permissions(&self) -> &BTreeMap<VhostName, Permissions> {
        &self.permissions
    }

    /// The routing keys that they may use, by virtual host and exchange.
    pub fn topic_permissions(&self) -> &BTreeMap<VhostName, BTreeMap<ExchangeName, TopicPermissions>> {
        &self.topics
    }

    fn grant(&self, vhost: &str) -> Grant {
        Grant {
            permissions: self.permissions.get(vhost).cloned(),
            topics: self.topics.get(vhost).cloned().unwrap_or_default(),
        }
    }
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
    #[error("user '{}' does not exist", Logged(.0))]
    NoSuchUser(String),
    /// The password is another.
    #[error("wrong password for user '{}'", Logged(.0))]
    WrongPassword(String),
    /// RabbitMQ: nobody logs in with a blank password.
    #[error("user '{}' attempted to log in with a blank password", Logged(.0))]
    BlankPassword(String),
    /// The user may log in from this machine only.
    #[error("user '{}' can only connect from this machine (loopback)", Logged(.0))]
    LoopbackOnly(String),
    /// The response is not of the form that the mechanism asks for.
    #[error("the response to mechanism {0} is malformed")]
    MalformedResponse(&'static str),
}

/// A virtual host that somebody may not open.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum OpenError {
    /// There is none of that name.
    NoSuchVhost,
    /// They have no permissions there.
    NoAccess,
    /// It has as many connections as it may.
    VhostFull(u64),
    /// The user has as many connections as they may.
    UserFull(u64),
}

/// A change of the node that cannot be.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NodeError {
    /// There is none of that name.
    #[error("virtual host '{0}' does not exist")]
    NoSuchVhost(VhostName),
    /// There is one of that name.
    #[error("virtual host '{0}' exists")]
    VhostExists(VhostName),
    /// Each stream belongs to one virtual host, and the first to the node itself.
    #[error("stream {0} is not free for a virtual host")]
    StreamTaken(u32),
    /// RabbitMQ: deletion protection.
    #[error("virtual host '{0}' is protected from deletion")]
    VhostProtected(VhostName),
    /// There is none of that name.
    #[error("user '{0}' does not exist")]
    NoSuchUser(UserName),
    /// There is none of that name.
    #[error("there is no global parameter '{0}'")]
    NoSuchParameter(ShortString),
    /// A name that is empty.
    #[error("the name of {0} must not be empty")]
    NoName(&'static str),
    /// A permission whose pattern cannot be used.
    #[error(transparent)]
    Permission(#[from] InvalidPermission),
}

impl Node {
    /// A node as it begins: virtual host `/`, in which user `guest` with password `guest` may do everything, from loopback only.
    pub fn with_guest() -> Self {
        let mut node = Node::default();
        let (guest, slash) = (ShortStr::truncated("guest"), ShortStr::truncated("/"));
        node.set_loopback_users([UserName::new(guest)]);
        let password = PasswordHash::new(b"guest", [0; password::SALT_BYTES]);
        for change in node.beginning(&VhostName::new(slash), &UserName::new(guest), password) {
            let applied = node.apply(change);
            debug_assert_eq!(applied, Ok(()));
        }
        node
    }

    /// What makes the first user of a node that has none: they may do everything in a virtual host, and in management.
    pub fn beginning(&self, vhost: &VhostName, user: &UserName, password: PasswordHash) -> Vec<NodeChange> {
        let mut changes = Vec::new();
        if !self.vhosts.contains_key(vhost) {
            changes.push(NodeChange::VhostAdded { stream: self.next_stream(), name: vhost.clone() });
        }
        let (password, tags) = (Some(password), vec![ADMINISTRATOR.to_owned()]);
        changes.push(NodeChange::UserSet { name: user.clone(), password, tags });
        let all = || ".*".to_owned();
        let (user, vhost) = (user.clone(), vhost.clone());
        changes.push(NodeChange::PermissionsSet { user, vhost, configure: all(), write: all(), read: all() });
        changes
    }

    /// Who may log in from this machine only.
    pub fn set_loopback_users(&mut self, users: impl IntoIterator<Item = UserName>) {
        self.loopback_users = users.into_iter().collect();
    }

    /// Whether it ever had users.
    pub fn is_initialized(&self) -> bool {
        self.is_initialized
    }

    /// The number of the next stream. If all are used up, it is not free.
    pub fn next_stream(&self) -> u32 {
        self.last_stream + 1
    }

    /// Numbers of streams up to this one are not given again.
    pub fn skip_streams(&mut self, last: u32) {
        self.last_stream = self.last_stream.max(last.min(LAST_STREAM));
    }

    /// Checks name and password. That takes the same time whether there is somebody of that name or not.
    pub fn log_in(&self, name: &str, password: &[u8], origin: Origin) -> Result<UserName, LoginError> {
        if password.is_empty() {
            return Err(LoginError::BlankPassword(name.into()));
        }
        let found = self.users.get_key_value(name);
        let hash = found.and_then(|(_, user)| user.password.as_ref());
        let is_right = hash.unwrap_or(&PasswordHash::of_nobody()).verify(password) && hash.is_some();
        let (user, _) = found.ok_or_else(|| LoginError::NoSuchUser(name.into()))?;
        if !is_right {
            return Err(LoginError::WrongPassword(name.into()));
        }
        if origin == Origin::Remote && self.loopback_users.contains(user) {
            return Err(LoginError::LoopbackOnly(name.into()));
        }
        Ok(user.clone())
    }

    /// Takes somebody who has logged in to a virtual host.
    pub fn open(&self, vhost: &str, user: &UserName) -> Result<(VhostName, Login), OpenError> {
        let (vhost, _) = self.vhosts.get_key_value(vhost).ok_or(OpenError::NoSuchVhost)?;
        let grant = self.grant(user, vhost);
        if grant.permissions.is_none() {
            return Err(OpenError::NoAccess);
        }
        Ok((vhost.clone(), Login { user: user.clone(), grant: Arc::new(grant) }))
    }

    /// What a user may do in a virtual host; nothing if there is none of these.
    pub fn grant(&self, user: &UserName, vhost: &VhostName) -> Grant {
        self.users.get(user).map(|user| user.grant(vhost.as_str())).unwrap_or_default()
    }

    /// All virtual hosts.
    pub fn vhosts(&self) -> &BTreeMap<VhostName, Arc<Vhost>> {
        &self.vhosts
    }

    /// All users.
    pub fn users(&self) -> &BTreeMap<UserName, Arc<User>> {
        &self.users
    }

    /// Whatever is kept for other programs, each as JSON. RabbitMQ: global runtime parameters.
    pub fn global_parameters(&self) -> &BTreeMap<ShortString, Arc<str>> {
        &self.global_parameters
    }

    /// Changes it, or leaves it as it was. During a recovery a change that does not fit to those before it is no fault of
    /// anybody; it is set aside.
    pub fn apply(&mut self, change: NodeChange) -> Result<(), NodeError> {
        match change {
            NodeChange::Restated { last_stream } => {
                // All that is true follows, whatever was lost of what came before.
                self.skip_streams(last_stream);
                let last_stream = self.last_stream;
                let loopback_users = std::mem::take(&mut self.loopback_users);
                *self = Node { last_stream, is_initialized: true, loopback_users, ..Node::default() };
            }
            NodeChange::VhostAdded { stream, name } => {
                named(name.as_str(), "a virtual host")?;
                match self.vhosts.get(&name) {
                    // Said once more by a checkpoint of an early version.
                    Some(known) if known.stream == stream => {}
                    Some(_) => return Err(NodeError::VhostExists(name)),
                    None if self.is_taken(stream) => return Err(NodeError::StreamTaken(stream)),
                    None => {
                        let (metadata, limits) = (VhostMetadata::default(), VhostLimits::default());
                        self.vhosts.insert(name, Arc::new(Vhost { stream, metadata, limits }));
                        self.skip_streams(stream);
                    }
                }
            }
            NodeChange::VhostDescribed { name, metadata } => self.vhost_mut(name)?.metadata = metadata,
            NodeChange::VhostLimited { name, limits } => self.vhost_mut(name)?.limits = limits,
            NodeChange::VhostDeleted { name } => {
                match self.vhosts.get(&name) {
                    None => return Err(NodeError::NoSuchVhost(name)),
                    Some(vhost) if vhost.metadata.protected_from_deletion => {
                        return Err(NodeError::VhostProtected(name));
                    }
                    Some(_) => _ = self.vhosts.remove(&name),
                }
                for user in self.users.values_mut() {
                    if user.permissions.contains_key(&name) || user.topics.contains_key(&name) {
                        let user = Arc::make_mut(user);
                        user.permissions.remove(&name);
                        user.topics.remove(&name);
                    }
                }
            }
            NodeChange::UserSet { name, password, tags } => {
                named(name.as_str(), "a user")?;
                self.is_initialized = true;
                match self.users.get_mut(&name) {
                    Some(user) => {
                        let user = Arc::make_mut(user);
                        (user.password, user.tags) = (password, tags);
                    }
                    None => _ = self.users.insert(name, Arc::new(User::new(password, tags))),
                }
            }
            NodeChange::UserLimited { name, limits } => self.user_mut(name)?.limits = limits,
            NodeChange::UserDeleted { name } => {
                self.users.remove(&name).map(drop).ok_or(NodeError::NoSuchUser(name))?;
            }
            NodeChange::PermissionsSet { user, vhost, configure, write, read } => {
                let permissions = Permissions::new(&configure, &write, &read)?;
                self.check_vhost(&vhost)?;
                self.user_mut(user)?.permissions.insert(vhost, permissions);
            }
            NodeChange::PermissionsCleared { user, vhost } => {
                self.check_vhost(&vhost)?;
                self.user_mut(user)?.permissions.remove(&vhost);
            }
            NodeChange::TopicPermissionsSet { user, vhost, exchange, write, read } => {
                let permissions = TopicPermissions::new(&write, &read, &user, &vhost)?;
                self.check_vhost(&vhost)?;
                self.user_mut(user)?.topics.entry(vhost).or_default().insert(exchange, permissions);
            }
            NodeChange::TopicPermissionsCleared { user, vhost, exchange } => {
                self.check_vhost(&vhost)?;
                let topics = &mut self.user_mut(user)?.topics;
                match exchange {
                    Some(exchange) => _ = topics.get_mut(&vhost).map(|topics| topics.remove(&exchange)),
                    None => _ = topics.remove(&vhost),
                }
            }
            NodeChange::GlobalParameterSet { name, value } => {
                named(name.as_str(), "a parameter")?;
                self.global_parameters.insert(name, value.into());
            }
            NodeChange::GlobalParameterCleared { name } => {
                self.global_parameters.remove(&name).map(drop).ok_or(NodeError::NoSuchParameter(name))?;
            }
        }
        Ok(())
    }

    /// All that is true, as changes: a start may begin to read with the first of them.
    pub fn restated(&self) -> Vec<NodeChange> {
        let mut changes = vec![NodeChange::Restated { last_stream: self.last_stream }];
        for (name, vhost) in &self.vhosts {
            changes.push(NodeChange::VhostAdded { stream: vhost.stream, name: name.clone() });
            if vhost.metadata != VhostMetadata::default() {
                let metadata = vhost.metadata.clone();
                changes.push(NodeChange::VhostDescribed { name: name.clone(), metadata });
            }
            if vhost.limits != VhostLimits::default() {
                changes.push(NodeChange::VhostLimited { name: name.clone(), limits: vhost.limits });
            }
        }
        for (name, user) in &self.users {
            let (password, tags) = (user.password.clone(), user.tags.clone());
            changes.push(NodeChange::UserSet { name: name.clone(), password, tags });
            if user.limits != UserLimits::default() {
                changes.push(NodeChange::UserLimited { name: name.clone(), limits: user.limits });
            }
            changes.extend(user.permissions.iter().map(|(vhost, permissions)| NodeChange::PermissionsSet {
                user: name.clone(),
                vhost: vhost.clone(),
                configure: permissions.configure.as_str().into(),
                write: permissions.write.as_str().into(),
                read: permissions.read.as_str().into(),
            }));
            for (vhost, topics) in &user.topics {
                changes.extend(topics.iter().map(|(exchange, permissions)| NodeChange::TopicPermissionsSet {
                    user: name.clone(),
                    vhost: vhost.clone(),
                    exchange: exchange.clone(),
                    write: permissions.write().into(),
                    read: permissions.read().into(),
                }));
            }
        }
        changes.extend(
            self.global_parameters.iter().map(|(name, value)| NodeChange::GlobalParameterSet {
                name: name.clone(),
                value: value.to_string(),
            }),
        );
        changes
    }

    fn is_taken(&self, stream: u32) -> bool {
        let is_known = stream <= self.last_stream;
        stream == recovery::NODE_STREAM
            || stream > LAST_STREAM
            || (is_known && self.vhosts.values().any(|vhost| vhost.stream == stream))
    }

    fn check_vhost(&self, name: &VhostName) -> Result<(), NodeError> {
        self.vhosts.contains_key(name).then_some(()).ok_or_else(|| NodeError::NoSuchVhost(name.clone()))
    }

    fn vhost_mut(&mut self, name: VhostName) -> Result<&mut Vhost, NodeError> {
        self.vhosts.get_mut(&name).map(Arc::make_mut).ok_or(NodeError::NoSuchVhost(name))
    }

    fn user_mut(&mut self, name: UserName) -> Result<&mut User, NodeError> {
        self.users.get_mut(&name).map(Arc::make_mut).ok_or(NodeError::NoSuchUser(name))
    }
}

fn named(name: &str, what: &'static str) -> Result<(), NodeError> {
    if name.is_empty() { Err(NodeError::NoName(what)) } else { Ok(()) }
}

#[cfg(test)]
mod tests;
