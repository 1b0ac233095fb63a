//! Definitions: everything that administrators and clients have declared, as one file in RabbitMQ's JSON.
//!
//! Owns: what such a file says, and what of it Leveret has not got, which is listed.
//! Invariant: what [`Definitions::parse`] takes has no fault that can be seen without a broker; [`load()`] sees the others
//! before it changes anything.

mod export;
mod json;
mod load;

use std::collections::BTreeSet;

use leveret_amqp::{FieldTable, ShortString, Value as Field};
use leveret_broker::Shortened;
use leveret_broker::names::{ExchangeName, UserName, VhostName};
use leveret_broker::node::password::{HashingAlgorithm, InvalidHash, PasswordHash};
use leveret_broker::node::{DefaultQueueType, UserLimits, VhostLimits, VhostMetadata};
use leveret_broker::vhost::knows_exchange_type;
use leveret_broker::vhost::policy::{ApplyTo, InvalidPolicy, Policy, PolicyKind, PolicySource};
use serde_json::Value;

pub use self::export::export;
pub use self::json::Fault;
use self::json::Object;
pub(crate) use self::json::field_table;
pub use self::load::{LoadError, Loaded, load};

/// The argument of a queue that says its type.
const QUEUE_TYPE: &str = "x-queue-type";

/// Types of exchanges that RabbitMQ has with plugins of its own, and Leveret has not.
const FOREIGN_EXCHANGE_TYPES: [&str; 2] = ["x-jms-topic", "x-federation-upstream"];

/// What a file of definitions says.
#[derive(Debug, Default)]
pub struct Definitions {
    vhosts: Vec<VhostDefinition>,
    users: Vec<UserDefinition>,
    permissions: Vec<PermissionDefinition>,
    topic_permissions: Vec<TopicPermissionDefinition>,
    vhost_limits: Vec<(VhostName, VhostLimits)>,
    global_parameters: Vec<(ShortString, String)>,
    policies: Vec<At<Policy>>,
    exchanges: Vec<At<ExchangeDefinition>>,
    queues: Vec<At<QueueDefinition>>,
    bindings: Vec<At<BindingDefinition>>,
    /// What Leveret has not got: where it stands, and what it is.
    ignored: Vec<String>,
    /// The queues (true) and exchanges (false) among that.
    left_out: BTreeSet<(VhostName, bool, ShortString)>,
}

/// Something in a virtual host, and where it stands in the file.
#[derive(Debug)]
struct At<T> {
    path: String,
    vhost: VhostName,
    what: T,
}

#[derive(Debug)]
struct VhostDefinition {
    name: VhostName,
    metadata: VhostMetadata,
}

#[derive(Debug)]
struct UserDefinition {
    name: UserName,
    password: Secret,
    tags: Vec<String>,
    limits: UserLimits,
}

enum Secret {
    None,
    Hash(PasswordHash),
    /// To be hashed so.
    Password(HashingAlgorithm, String),
}

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Secret")
    }
}

#[derive(Clone, Debug)]
struct PermissionDefinition {
    path: String,
    user: UserName,
    vhost: VhostName,
    configure: String,
    write: String,
    read: String,
}

#[derive(Clone, Debug)]
struct TopicPermissionDefinition {
    path: String,
    user: UserName,
    vhost: VhostName,
    exchange: ExchangeName,
    write: String,
    read: String,
}

#[derive(Debug)]
struct ExchangeDefinition {
    name: ShortString,
    kind: ShortString,
    durable: bool,
    auto_delete: bool,
    internal: bool,
    arguments: FieldTable,
}

#[derive(Debug)]
struct QueueDefinition {
    name: ShortString,
    durable: bool,
    auto_delete: bool,
    arguments: FieldTable,
}

impl QueueDefinition {
    /// Its arguments, and that it is of this type.
    fn arguments_of_type(&self, kind: &str) -> FieldTable {
        FieldTable::build(|table| {
            let kind = Field::LongStr(kind.as_bytes());
            table.fields_of(self.arguments.as_table(), |_| true).field(QUEUE_TYPE, kind);
        })
    }
}

#[derive(Debug)]
struct BindingDefinition {
    source: ShortString,
    destination: ShortString,
    to_queue: bool,
    routing_key: ShortString,
    arguments: FieldTable,
}

impl Definitions {
    /// Reads a file.
    ///
    /// # Errors
    /// Where the first fault is, and what is wrong there.
    pub fn parse(text: &[u8]) -> Result<Self, Fault> {
        let value = json::read(text)?;
        let mut file = Object::new(String::new(), &value)?;
        let mut definitions = Definitions::default();
        // Who has written it.
        for said in [
            "rabbit_version",
            "rabbitmq_version",
            "rabbitmq_definition_format",
            "product_name",
            "product_version",
            "original_vhost_name",
            "original_cluster_name",
            "explanation",
            "lavinmq_version",
        ] {
            file.get(said);
        }
        for object in file.objects("vhosts")? {
            definitions.vhost(object)?;
        }
        for object in file.objects("users")? {
            definitions.user(object)?;
        }
        for object in file.objects("permissions")? {
            definitions.permission(object)?;
        }
        for object in file.objects("topic_permissions")? {
            definitions.topic_permission(object)?;
        }
        for object in file.objects("global_parameters")? {
            definitions.global_parameter(object)?;
        }
        for object in file.objects("parameters")? {
            definitions.parameter(object)?;
        }
        for object in file.objects("policies")? {
            definitions.policy(PolicyKind::Policy, object)?;
        }
        for object in file.objects("exchanges")? {
            definitions.exchange(object)?;
        }
        for object in file.objects("queues")? {
            definitions.queue(object)?;
        }
        for object in file.objects("bindings")? {
            definitions.binding(object)?;
        }
        definitions.ignored.extend(file.rest());
        Ok(definitions)
    }

    /// What the file has and Leveret has not.
    pub fn ignored(&self) -> &[String] {
        &self.ignored
    }

    /// Whether the file names users: then a new node needs no first one.
    pub fn has_users(&self) -> bool {
        !self.users.is_empty()
    }

    /// Whether the file names virtual hosts: then a new node needs no first one.
    pub fn has_vhosts(&self) -> bool {
        !self.vhosts.is_empty()
    }

    fn ignore(&mut self, path: &str, what: &str) {
        self.ignored.push(format!("{path}: {what}"));
    }

    fn vhost(&mut self, mut object: Object<'_>) -> Result<(), Fault> {
        let name = VhostName::from(object.name("name")?);
        let mut metadata = VhostMetadata::default();
        self.vhost_metadata(&mut object, &mut metadata)?;
        // Newer versions say the same again inside of this.
        if let Some(mut inner) = object.object("metadata")? {
            self.vhost_metadata(&mut inner, &mut metadata)?;
            self.ignored.extend(inner.rest());
        }
        if let Some(limits) = object.object("limits")? {
            self.limits_of_vhost(name.clone(), limits)?;
        }
        object.get("tracing");
        object.get("cluster_state");
        self.ignored.extend(object.rest());
        self.vhosts.push(VhostDefinition { name, metadata });
        Ok(())
    }

    fn vhost_metadata(&mut self, object: &mut Object<'_>, metadata: &mut VhostMetadata) -> Result<(), Fault> {
        if let Some(description) = object.optional_text("description")? {
            description.clone_into(&mut metadata.description);
        }
        let tags = object.texts("tags")?;
        if !tags.is_empty() {
            metadata.tags = tags;
        }
        metadata.protected_from_deletion |= object.flag("protected_from_deletion")?;
        match object.optional_text("default_queue_type")? {
            None | Some("undefined") => {}
            Some(text) => match DefaultQueueType::parse(text) {
                Some(kind) => metadata.default_queue_type = kind,
                None => self.ignore(&object.path_of("default_queue_type"), &format!("queues of type {text}")),
            },
        }
        Ok(())
    }

    fn limits_of_vhost(&mut self, vhost: VhostName, mut object: Object<'_>) -> Result<(), Fault> {
        let (max_connections, max_queues) = (object.limit("max-connections")?, object.limit("max-queues")?);
        self.vhost_limits.push((vhost, VhostLimits { max_connections, max_queues }));
        self.ignored.extend(object.rest());
        Ok(())
    }

    fn user(&mut self, mut object: Object<'_>) -> Result<(), Fault> {
        let name = UserName::from(object.name("name")?);
        let hash = object.optional_text("password_hash")?.filter(|hash| !hash.is_empty());
        let algorithm = object.optional_text("hashing_algorithm")?;
        let algorithm = algorithm.map_or(Ok(HashingAlgorithm::default()), HashingAlgorithm::parse);
        let password = object.optional_text("password")?;
        let password = match (hash, password) {
            (None, None) => Secret::None,
            (Some(_), Some(_)) => {
                let fault = "there is a password_hash, too; leave one of them out";
                return Err(Fault::new(object.path_of("password"), fault));
            }
            (None, Some(password)) => {
                let algorithm = algorithm.unwrap_or_else(|error| {
                    let default = HashingAlgorithm::default();
                    let what = format!("{error}; the password of '{name}' is hashed with {}", default.as_str());
                    self.ignore(&object.path_of("hashing_algorithm"), &what);
                    default
                });
                Secret::Password(algorithm, password.to_owned())
            }
            (Some(hash), None) => {
                match algorithm.and_then(|algorithm| PasswordHash::from_base64(algorithm, hash)) {
                    Ok(hash) => Secret::Hash(hash),
                    Err(InvalidHash::Algorithm(algorithm)) => {
                        let algorithm = Shortened(&algorithm);
                        let what = format!("{algorithm}; until '{name}' has a new password, nobody logs in so");
                        self.ignore(&object.path_of("hashing_algorithm"), &what);
                        Secret::None
                    }
                    Err(error) => return Err(Fault::new(object.path_of("password_hash"), error)),
                }
            }
        };
        let tags = object.texts("tags")?;
        let mut limits = UserLimits::default();
        if let Some(mut object) = object.object("limits")? {
            limits.max_connections = object.limit("max-connections")?;
            limits.max_channels = object.limit("max-channels")?;
            self.ignored.extend(object.rest());
        }
        self.ignored.extend(object.rest());
        self.users.push(UserDefinition { name, password, tags, limits });
        Ok(())
    }

    fn permission(&mut self, mut object: Object<'_>) -> Result<(), Fault> {
        self.permissions.push(PermissionDefinition {
            path: object.path().to_owned(),
            user: object.name("user")?.into(),
            vhost: object.name("vhost")?.into(),
            configure: object.text("configure")?.to_owned(),
            write: object.text("write")?.to_owned(),
            read: object.text("read")?.to_owned(),
        });
        self.ignored.extend(object.rest());
        Ok(())
    }

    fn topic_permission(&mut self, mut object: Object<'_>) -> Result<(), Fault> {
        self.topic_permissions.push(TopicPermissionDefinition {
            path: object.path().to_owned(),
            user: object.name("user")?.into(),
            vhost: object.name("vhost")?.into(),
            exchange: object.short("exchange")?.into(),
            write: object.text("write")?.to_owned(),
            read: object.text("read")?.to_owned(),
        });
        self.ignored.extend(object.rest());
        Ok(())
    }

    fn global_parameter(&mut self, mut object: Object<'_>) -> Result<(), Fault> {
        let name = object.name("name")?;
        let value = object.get("value").unwrap_or(&Value::Null).to_string();
        self.global_parameters.push((name, value));
        self.ignored.extend(object.rest());
        Ok(())
    }

    /// RabbitMQ: limits of virtual hosts and operator policies are parameters, too.
    fn parameter(&mut self, mut object: Object<'_>) -> Result<(), Fault> {
        let component = object.text("component")?;
        match component {
            "vhost-limits" => {
                let vhost = object.name("vhost")?.into();
                object.get("name");
                if let Some(limits) = object.object("value")? {
                    self.limits_of_vhost(vhost, limits)?;
                }
                self.ignored.extend(object.rest());
                Ok(())
            }
            "operator_policy" => {
                let (name, vhost) = (object.name("name")?, object.name("vhost")?);
                match object.object("value")? {
                    Some(value) => self.policy_of(PolicyKind::OperatorPolicy, name, vhost.into(), value)?,
                    None => return Err(Fault::new(object.path_of("value"), "it is missing")),
                }
                self.ignored.extend(object.rest());
                Ok(())
            }
            other => {
                self.ignore(object.path(), &format!("parameters of the component {other}"));
                Ok(())
            }
        }
    }

    fn policy(&mut self, kind: PolicyKind, mut object: Object<'_>) -> Result<(), Fault> {
        let (name, vhost) = (object.name("name")?, object.name("vhost")?);
        self.policy_of(kind, name, vhost.into(), object)
    }

    fn policy_of(
        &mut self,
        kind: PolicyKind,
        name: ShortString,
        vhost: VhostName,
        mut object: Object<'_>,
    ) -> Result<(), Fault> {
        let path = object.path().to_owned();
        let apply_to = match object.optional_text("apply-to")? {
            None => ApplyTo::default(),
            Some(text) => ApplyTo::parse(text).map_err(|error| Fault::new(object.path_of("apply-to"), error))?,
        };
        let mut source = PolicySource {
            kind,
            name: name.into(),
            pattern: object.text("pattern")?.to_owned(),
            apply_to,
            priority: object.optional_integer("priority")?.unwrap_or_default(),
            definition: object.table("definition")?,
        };
        // What Leveret has not got is left out of it, as long as something is left.
        let policy = loop {
            match Policy::new(source.clone()) {
                Err(ref error @ InvalidPolicy::Absent { key, .. }) => {
                    self.ignore(&object.path_of("definition"), &error.to_string());
                    source.definition = FieldTable::build(|table| {
                        table.fields_of(source.definition.as_table(), |name| name != key.as_bytes());
                    });
                    if source.definition.as_table().iter().next().is_none() {
                        self.ignore(&path, "a policy of which nothing is left");
                        return Ok(());
                    }
                }
                Err(error @ InvalidPolicy::Pattern(_)) => return Err(Fault::new(object.path_of("pattern"), error)),
                Err(error) => return Err(Fault::new(object.path_of("definition"), error)),
                Ok(policy) => break policy,
            }
        };
        self.policies.push(At { path, vhost, what: policy });
        self.ignored.extend(object.rest());
        Ok(())
    }

    fn exchange(&mut self, mut object: Object<'_>) -> Result<(), Fault> {
        let (path, vhost) = (object.path().to_owned(), VhostName::from(object.name("vhost")?));
        let exchange = ExchangeDefinition {
            name: object.short("name")?,
            kind: object.name("type")?,
            durable: object.flag("durable")?,
            auto_delete: object.flag("auto_delete")?,
            internal: object.flag("internal")?,
            arguments: object.table("arguments")?,
        };
        if FOREIGN_EXCHANGE_TYPES.contains(&exchange.kind.as_str()) {
            self.ignore(&path, &format!("exchanges of type {}", exchange.kind));
            self.left_out.insert((vhost, false, exchange.name));
            return Ok(());
        }
        // RabbitMQ: the import fails.
        if !knows_exchange_type(exchange.kind.as_str()) {
            let fault =
                format!("unknown exchange type '{}'; correct it, or leave this exchange out", exchange.kind);
            return Err(Fault::new(object.path_of("type"), fault));
        }
        self.ignored.extend(object.rest_but(&["policy", "user_who_performed_action"]));
        self.exchanges.push(At { path, vhost, what: exchange });
        Ok(())
    }

    fn queue(&mut self, mut object: Object<'_>) -> Result<(), Fault> {
        let (path, vhost) = (object.path().to_owned(), VhostName::from(object.name("vhost")?));
        let mut queue = QueueDefinition {
            name: object.name("name")?,
            durable: object.flag("durable")?,
            auto_delete: object.flag("auto_delete")?,
            arguments: object.table("arguments")?,
        };
        let said = queue.arguments.as_table().get(QUEUE_TYPE).and_then(Field::as_str).map(str::to_owned);
        let kind = said.clone().or(object.optional_text("type")?.map(str::to_owned));
        if kind.as_deref() == Some("stream") {
            self.ignore(&path, "queues of type stream");
            self.left_out.insert((vhost, true, queue.name));
            return Ok(());
        }
        // RabbitMQ 4 says it outside of the arguments, too.
        if let Some(kind) = kind.filter(|kind| said.is_none() && kind != "classic") {
            queue.arguments = queue.arguments_of_type(&kind);
        }
        self.ignored.extend(object.rest_but(&["exclusive", "policy", "node", "state"]));
        self.queues.push(At { path, vhost, what: queue });
        Ok(())
    }

    fn binding(&mut self, mut object: Object<'_>) -> Result<(), Fault> {
        let (path, vhost) = (object.path().to_owned(), VhostName::from(object.name("vhost")?));
        let to_queue = match object.text("destination_type")? {
            "queue" => true,
            "exchange" => false,
            other => {
                let fault = format!("'{other}' is neither queue nor exchange");
                return Err(Fault::new(object.path_of("destination_type"), fault));
            }
        };
        let binding = BindingDefinition {
            source: object.short("source")?,
            destination: object.name("destination")?,
            to_queue,
            routing_key: object.short("routing_key")?,
            arguments: object.table("arguments")?,
        };
        self.ignored.extend(object.rest_but(&["properties_key"]));
        let BindingDefinition { source, destination, .. } = &binding;
        let ends = [(vhost.clone(), false, source.clone()), (vhost.clone(), to_queue, destination.clone())];
        if ends.iter().any(|end| self.left_out.contains(end)) {
            self.ignore(&path, "a binding of what is left out");
            return Ok(());
        }
        // Every queue is bound to the default exchange in any case.
        if !binding.source.as_str().is_empty() {
            self.bindings.push(At { path, vhost, what: binding });
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
