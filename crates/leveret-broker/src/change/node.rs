//! Durable facts about the node, and as bytes. Drawn in `docs/formats/changes.md`.

use leveret_amqp::{ShortStr, ShortString};

use super::codec::{DecodeChangeError, Reader, put_bytes, put_count, put_short, put_text};
use crate::names::{ExchangeName, UserName, VhostName};
use crate::node::password::{HashingAlgorithm, PasswordHash};
use crate::node::{DefaultQueueType, UserLimits, VhostLimits, VhostMetadata};

/// One durable fact about the node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NodeChange {
    /// A virtual host exists from now on, and its changes are in this stream.
    VhostAdded {
        /// Its stream; 0 is the node itself. Never given twice.
        stream: u32,
        /// Its name.
        name: VhostName,
    },
    /// A virtual host is gone, with all that was in it and all permissions for it.
    VhostDeleted {
        /// Its name.
        name: VhostName,
    },
    /// What is said of a virtual host.
    VhostDescribed {
        /// Its name.
        name: VhostName,
        /// All that is said.
        metadata: VhostMetadata,
    },
    /// How much a virtual host may have.
    VhostLimited {
        /// Its name.
        name: VhostName,
        /// All of its limits.
        limits: VhostLimits,
    },
    /// A user exists from now on, or has another password or tags.
    UserSet {
        /// Their name.
        name: UserName,
        /// None: nobody can log in by this name.
        password: Option<PasswordHash>,
        /// All of their tags.
        tags: Vec<String>,
    },
    /// A user is gone, with all permissions.
    UserDeleted {
        /// Their name.
        name: UserName,
    },
    /// How much a user may have.
    UserLimited {
        /// Their name.
        name: UserName,
        /// All of their limits.
        limits: UserLimits,
    },
    /// What a user may do in a virtual host.
    PermissionsSet {
        /// Who.
        user: UserName,
        /// Where.
        vhost: VhostName,
        /// The pattern of what they may declare and delete.
        configure: String,
        /// The pattern of what they may put messages into.
        write: String,
        /// The pattern of what they may take messages out of.
        read: String,
    },
    /// A user may do nothing in a virtual host any more.
    PermissionsCleared {
        /// Who.
        user: UserName,
        /// Where.
        vhost: VhostName,
    },
    /// The routing keys of a topic exchange that a user may use.
    TopicPermissionsSet {
        /// Who.
        user: UserName,
        /// Where.
        vhost: VhostName,
        /// The exchange; it need not exist.
        exchange: ExchangeName,
        /// The pattern for publishing.
        write: String,
        /// The pattern for binding.
        read: String,
    },
    /// A user may use every routing key of a topic exchange again, or of all of them.
    TopicPermissionsCleared {
        /// Who.
        user: UserName,
        /// Where.
        vhost: VhostName,
        /// The exchange; none: all of them.
        exchange: Option<ExchangeName>,
    },
    /// Something is kept for other programs.
    GlobalParameterSet {
        /// What it is called.
        name: ShortString,
        /// JSON.
        value: String,
    },
    /// It is not kept any more.
    GlobalParameterCleared {
        /// What it was called.
        name: ShortString,
    },
    /// All that is true follows, so that what was said before need not be read again.
    Restated {
        /// The greatest number that was given to a stream.
        last_stream: u32,
    },
}

mod kind {
    pub(super) const VHOST_ADDED: u8 = 1;
    pub(super) const VHOST_DELETED: u8 = 2;
    pub(super) const VHOST_DESCRIBED: u8 = 3;
    pub(super) const VHOST_LIMITED: u8 = 4;
    pub(super) const USER_SET: u8 = 5;
    pub(super) const USER_DELETED: u8 = 6;
    pub(super) const USER_LIMITED: u8 = 7;
    pub(super) const PERMISSIONS_SET: u8 = 8;
    pub(super) const PERMISSIONS_CLEARED: u8 = 9;
    pub(super) const TOPIC_PERMISSIONS_SET: u8 = 10;
    pub(super) const TOPIC_PERMISSIONS_CLEARED: u8 = 11;
    pub(super) const GLOBAL_PARAMETER_SET: u8 = 12;
    pub(super) const GLOBAL_PARAMETER_CLEARED: u8 = 13;
    pub(super) const RESTATED: u8 = 14;
}

impl NodeChange {
    /// Appends it to `out`.
    pub fn encode(&self, out: &mut Vec<u8>) {
        match self {
            NodeChange::VhostAdded { stream, name } => {
                out.push(kind::VHOST_ADDED);
                out.extend_from_slice(&stream.to_le_bytes());
                put_short(out, name.as_short_str());
            }
            NodeChange::VhostDeleted { name } => put_names(out, kind::VHOST_DELETED, &[name.as_short_str()]),
            NodeChange::VhostDescribed { name, metadata } => {
                put_names(out, kind::VHOST_DESCRIBED, &[name.as_short_str()]);
                out.push(u8::from(metadata.protected_from_deletion));
                put_text(out, metadata.default_queue_type.as_str());
                put_text(out, &metadata.description);
                put_texts(out, &metadata.tags);
            }
            NodeChange::VhostLimited { name, limits } => {
                put_names(out, kind::VHOST_LIMITED, &[name.as_short_str()]);
                put_limits(out, [limits.max_connections, limits.max_queues]);
            }
            NodeChange::UserSet { name, password, tags } => {
                put_names(out, kind::USER_SET, &[name.as_short_str()]);
                let hash = password.as_ref().map(|password| (password.algorithm().as_str(), password.to_bytes()));
                let (algorithm, bytes) = hash.unwrap_or_default();
                put_text(out, algorithm);
                put_bytes(out, &bytes);
                put_texts(out, tags);
            }
            NodeChange::UserDeleted { name } => put_names(out, kind::USER_DELETED, &[name.as_short_str()]),
            NodeChange::UserLimited { name, limits } => {
                put_names(out, kind::USER_LIMITED, &[name.as_short_str()]);
                put_limits(out, [limits.max_connections, limits.max_channels]);
            }
            NodeChange::PermissionsSet { user, vhost, configure, write, read } => {
                put_names(out, kind::PERMISSIONS_SET, &[user.as_short_str(), vhost.as_short_str()]);
                for pattern in [configure, write, read] {
                    put_text(out, pattern);
                }
            }
            NodeChange::PermissionsCleared { user, vhost } => {
                put_names(out, kind::PERMISSIONS_CLEARED, &[user.as_short_str(), vhost.as_short_str()]);
            }
            NodeChange::TopicPermissionsSet { user, vhost, exchange, write, read } => {
                let names = [user.as_short_str(), vhost.as_short_str(), exchange.as_short_str()];
                put_names(out, kind::TOPIC_PERMISSIONS_SET, &names);
                put_text(out, write);
                put_text(out, read);
            }
            NodeChange::TopicPermissionsCleared { user, vhost, exchange } => {
                put_names(out, kind::TOPIC_PERMISSIONS_CLEARED, &[user.as_short_str(), vhost.as_short_str()]);
                out.push(u8::from(exchange.is_some()));
                put_short(out, exchange.as_ref().map_or(ShortStr::EMPTY, ExchangeName::as_short_str));
            }
            NodeChange::GlobalParameterSet { name, value } => {
                put_names(out, kind::GLOBAL_PARAMETER_SET, &[name.as_short_str()]);
                put_text(out, value);
            }
            NodeChange::GlobalParameterCleared { name } => {
                put_names(out, kind::GLOBAL_PARAMETER_CLEARED, &[name.as_short_str()]);
            }
            NodeChange::Restated { last_stream } => {
                out.push(kind::RESTATED);
                out.extend_from_slice(&last_stream.to_le_bytes());
            }
        }
    }

    /// Takes it from the payload of a record.
    pub fn decode(bytes: &[u8]) -> Result<Self, DecodeChangeError> {
        let mut reader = Reader(bytes);
        let kind = reader.u8()?;
        let reader = &mut reader;
        let change = match kind {
            kind::VHOST_ADDED => {
                let stream = reader.u32()?;
                NodeChange::VhostAdded { stream, name: vhost(reader)? }
            }
            kind::VHOST_DELETED => NodeChange::VhostDeleted { name: vhost(reader)? },
            kind::VHOST_DESCRIBED => {
                let name = vhost(reader)?;
                let protected_from_deletion = reader.flag()?;
                let default_queue_type = DefaultQueueType::parse(&reader.text()?);
                let default_queue_type =
                    default_queue_type.ok_or(DecodeChangeError("a type of queue in it is unknown"))?;
                let (description, tags) = (reader.text()?, texts(reader)?);
                let metadata = VhostMetadata { description, tags, default_queue_type, protected_from_deletion };
                NodeChange::VhostDescribed { name, metadata }
            }
            kind::VHOST_LIMITED => {
                let name = vhost(reader)?;
                let [max_connections, max_queues] = limits(reader)?;
                NodeChange::VhostLimited { name, limits: VhostLimits { max_connections, max_queues } }
            }
            kind::USER_SET => {
                let (name, algorithm) = (user(reader)?, reader.text()?);
                let password = match (&*algorithm, reader.byte_string()?) {
                    ("", []) => None,
                    (algorithm, bytes) => {
                        let algorithm = HashingAlgorithm::parse(algorithm).ok();
                        let hash = algorithm.and_then(|algorithm| PasswordHash::from_bytes(algorithm, bytes));
                        Some(hash.ok_or(DecodeChangeError("the hash of a password in it is malformed"))?)
                    }
                };
                NodeChange::UserSet { name, password, tags: texts(reader)? }
            }
            kind::USER_DELETED => NodeChange::UserDeleted { name: user(reader)? },
            kind::USER_LIMITED => {
                let name = user(reader)?;
                let [max_connections, max_channels] = limits(reader)?;
                NodeChange::UserLimited { name, limits: UserLimits { max_connections, max_channels } }
            }
            kind::PERMISSIONS_SET => NodeChange::PermissionsSet {
                user: user(reader)?,
                vhost: vhost(reader)?,
                configure: reader.text()?,
                write: reader.text()?,
                read: reader.text()?,
            },
            kind::PERMISSIONS_CLEARED => {
                NodeChange::PermissionsCleared { user: user(reader)?, vhost: vhost(reader)? }
            }
            kind::TOPIC_PERMISSIONS_SET => NodeChange::TopicPermissionsSet {
                user: user(reader)?,
                vhost: vhost(reader)?,
                exchange: ExchangeName::from(reader.short()?),
                write: reader.text()?,
                read: reader.text()?,
            },
            kind::TOPIC_PERMISSIONS_CLEARED => {
                let (user, vhost) = (user(reader)?, vhost(reader)?);
                let (is_some, exchange) = (reader.flag()?, ExchangeName::from(reader.short()?));
                if !is_some && !exchange.as_str().is_empty() {
                    return Err(DecodeChangeError("it names an exchange and means all"));
                }
                NodeChange::TopicPermissionsCleared { user, vhost, exchange: is_some.then_some(exchange) }
            }
            kind::GLOBAL_PARAMETER_SET => {
                NodeChange::GlobalParameterSet { name: reader.short()?, value: reader.text()? }
            }
            kind::GLOBAL_PARAMETER_CLEARED => NodeChange::GlobalParameterCleared { name: reader.short()? },
            kind::RESTATED => NodeChange::Restated { last_stream: reader.u32()? },
            _ => return Err(DecodeChangeError("its kind is unknown")),
        };
        reader.end().map(|()| change)
    }
}

fn put_names(out: &mut Vec<u8>, kind: u8, names: &[ShortStr<'_>]) {
    out.push(kind);
    for &name in names {
        put_short(out, name);
    }
}

fn put_texts(out: &mut Vec<u8>, texts: &[String]) {
    put_count(out, texts.len());
    for text in texts {
        put_text(out, text);
    }
}

/// Each as one more than it is; 0 is none.
fn put_limits(out: &mut Vec<u8>, limits: [Option<u64>; 2]) {
    for limit in limits {
        let limit = limit.map_or(0, |limit| limit.saturating_add(1));
        out.extend_from_slice(&limit.to_le_bytes());
    }
}

fn limits(reader: &mut Reader<'_>) -> Result<[Option<u64>; 2], DecodeChangeError> {
    Ok([reader.u64()?.checked_sub(1), reader.u64()?.checked_sub(1)])
}

fn vhost(reader: &mut Reader<'_>) -> Result<VhostName, DecodeChangeError> {
    reader.short().map(VhostName::from)
}

fn user(reader: &mut Reader<'_>) -> Result<UserName, DecodeChangeError> {
    reader.short().map(UserName::from)
}

fn texts(reader: &mut Reader<'_>) -> Result<Vec<String>, DecodeChangeError> {
    // Nothing is set aside for a number that nobody has checked.
    let count = reader.u32()?;
    (0..count).map(|_| reader.text()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// One of each, with every optional part there and not there.
    fn examples() -> Vec<NodeChange> {
        let short = ShortStr::truncated;
        let (name, vhost) = (UserName::new(short("marie")), VhostName::new(short("/")));
        let (user, exchange) = (name.clone(), ExchangeName::new(short("amq.topic")));
        let metadata = VhostMetadata {
            description: "what they sell".into(),
            tags: vec!["shop".into(), String::new()],
            default_queue_type: DefaultQueueType::Quorum,
            protected_from_deletion: true,
        };
        let (configure, write, read) = ("^marie-", ".*", "");
        vec![
            NodeChange::VhostAdded { stream: 3, name: vhost.clone() },
            NodeChange::VhostDeleted { name: vhost.clone() },
            NodeChange::VhostDescribed { name: vhost.clone(), metadata },
            NodeChange::VhostDescribed { name: vhost.clone(), metadata: VhostMetadata::default() },
            NodeChange::VhostLimited {
                name: vhost.clone(),
                limits: VhostLimits { max_connections: None, max_queues: Some(0) },
            },
            NodeChange::UserSet {
                name: name.clone(),
                password: Some(PasswordHash::new(b"secret", [1, 2, 3, 4])),
                tags: vec!["administrator".into()],
            },
            NodeChange::UserSet { name: name.clone(), password: None, tags: Vec::new() },
            NodeChange::UserDeleted { name: name.clone() },
            NodeChange::UserLimited { name, limits: UserLimits { max_connections: Some(7), max_channels: None } },
            NodeChange::PermissionsSet {
                user: user.clone(),
                vhost: vhost.clone(),
                configure: configure.into(),
                write: write.into(),
                read: read.into(),
            },
            NodeChange::PermissionsCleared { user: user.clone(), vhost: vhost.clone() },
            NodeChange::TopicPermissionsSet {
                user: user.clone(),
                vhost: vhost.clone(),
                exchange: exchange.clone(),
                write: write.into(),
                read: read.into(),
            },
            NodeChange::TopicPermissionsCleared {
                user: user.clone(),
                vhost: vhost.clone(),
                exchange: Some(exchange),
            },
            NodeChange::TopicPermissionsCleared { user, vhost, exchange: None },
            NodeChange::GlobalParameterSet { name: short("cluster_name").into(), value: "\"hares\"".into() },
            NodeChange::GlobalParameterCleared { name: short("cluster_name").into() },
            NodeChange::Restated { last_stream: u32::MAX },
        ]
    }

    fn encoded(change: &NodeChange) -> Vec<u8> {
        let mut bytes = Vec::new();
        change.encode(&mut bytes);
        bytes
    }

    #[test]
    fn every_change_comes_back_as_it_was() {
        for change in examples() {
            assert_eq!(NodeChange::decode(&encoded(&change)), Ok(change));
        }
    }

    #[test]
    fn a_change_that_is_cut_or_altered_is_refused_or_another_one() {
        for change in examples() {
            let bytes = encoded(&change);
            for length in 0..bytes.len() {
                assert!(NodeChange::decode(&bytes[..length]).is_err(), "{change:?} cut to {length}");
            }
            for at in 0..bytes.len() {
                for bit in 0..8 {
                    let mut altered = bytes.clone();
                    altered[at] ^= 1 << bit;
                    assert_ne!(NodeChange::decode(&altered), Ok(change.clone()), "{change:?} altered at {at}");
                }
            }
        }
    }
}
