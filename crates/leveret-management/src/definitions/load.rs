//! Making what definitions say: seen through first, then changed as one, then declared in bounded steps.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use leveret_amqp::ShortString;
use leveret_broker::change::NodeChange;
use leveret_broker::names::VhostName;
use leveret_broker::node::password::PasswordHash;
use leveret_broker::node::{DefaultQueueType, VhostMetadata};
use leveret_broker::vhost::command::{
    Bind, BindAction, BindTo, DeclareExchange, DeclareQueue, Existence, QueueRef, Wait,
};
use leveret_broker::{Command, Node};
use leveret_server::{Admin, ChangeError, Operator, Refused};

use super::{
    At, BindingDefinition, Definitions, ExchangeDefinition, Fault, PermissionDefinition, QUEUE_TYPE,
    QueueDefinition, Secret, TopicPermissionDefinition,
};

/// Objects between two reports of progress.
const PROGRESS_EVERY: usize = 500;

/// What came of definitions.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Loaded {
    /// Users that the file names.
    pub users: usize,
    /// Virtual hosts that it names.
    pub vhosts: usize,
    /// Queues, exchanges, bindings and policies that the file names.
    pub objects: usize,
    /// What existed with other properties, and stays as it was.
    pub kept: Vec<String>,
    /// What the virtual host did not take, such as queues beyond its limit.
    pub refused: Vec<String>,
}

impl Loaded {
    fn take(&mut self, path: &str, declared: Result<(), Refused>) {
        if let Err(refused) = declared {
            let place = match refused {
                Refused::Inequivalent(_) => &mut self.kept,
                Refused::Other(_) => &mut self.refused,
            };
            place.push(format!("{path}: {refused}"));
        }
    }
}

/// Definitions that were not loaded.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LoadError {
    /// The file is at fault. Nothing was changed.
    #[error(transparent)]
    Fault(#[from] Fault),
    /// Users and virtual hosts could not be changed.
    #[error(transparent)]
    Change(#[from] ChangeError),
    /// Somebody has deleted a virtual host meanwhile.
    #[error("virtual host '{0}' was deleted while definitions were loaded")]
    Gone(VhostName),
}

/// Loads definitions into a running node. What exists stays; users, permissions, limits and policies are as the file says
/// afterwards. `progress` hears of how many objects of how many are done.
///
/// # Errors
/// If the file is at fault, with nothing changed, or the node cannot be changed.
pub async fn load(
    admin: &Admin,
    definitions: Definitions,
    progress: impl Fn(usize, usize) + Send + 'static,
) -> Result<Loaded, LoadError> {
    let definitions = Arc::new(definitions);
    let rehearsed = {
        let (admin, definitions) = (admin.clone(), Arc::clone(&definitions));
        tokio::task::spawn_blocking(move || definitions.rehearse(&admin)).await
    };
    match rehearsed {
        Ok(rehearsed) => rehearsed?,
        Err(panicked) => std::panic::resume_unwind(panicked.into_panic()),
    }
    let changing = Arc::clone(&definitions);
    admin
        .change(move |node| Ok(changing.node_changes(node).into_iter().map(|(_, change)| change).collect()))
        .await?;
    let declared = {
        let (admin, definitions) = (admin.clone(), Arc::clone(&definitions));
        tokio::task::spawn_blocking(move || definitions.declare(&admin, &progress)).await
    };
    let (loaded, operators) = match declared {
        Ok(declared) => declared?,
        Err(panicked) => std::panic::resume_unwind(panicked.into_panic()),
    };
    for operator in operators {
        operator.finish().await;
    }
    Ok(loaded)
}

impl Definitions {
    /// What is to be changed of users and virtual hosts, each with its place in the file. Passwords in plain text are hashed.
    fn node_changes(&self, node: &Node) -> Vec<(String, NodeChange)> {
        let (mut changes, mut stream) = (Vec::new(), node.next_stream());
        let mut added = BTreeSet::new();
        for (nth, vhost) in self.vhosts.iter().enumerate() {
            let (path, name) = (format!("vhosts[{nth}]"), vhost.name.clone());
            if !node.vhosts().contains_key(&name) && added.insert(name.clone()) {
                changes.push((path.clone(), NodeChange::VhostAdded { stream, name: name.clone() }));
                // One that is not free any more is refused.
                stream = stream.saturating_add(1);
            }
            // Where the file says nothing of it, what was said before stays.
            if vhost.metadata != VhostMetadata::default() {
                changes.push((path, NodeChange::VhostDescribed { name, metadata: vhost.metadata.clone() }));
            }
        }
        for (name, limits) in &self.vhost_limits {
            let limited = NodeChange::VhostLimited { name: name.clone(), limits: *limits };
            changes.push((format!("the limits of '{name}'"), limited));
        }
        for (nth, user) in self.users.iter().enumerate() {
            let (path, name) = (format!("users[{nth}]"), user.name.clone());
            let password = match &user.password {
                Secret::None => None,
                Secret::Hash(hash) => Some(hash.clone()),
                Secret::Password(algorithm, password) => {
                    Some(PasswordHash::of(*algorithm, password.as_bytes(), rand::random()))
                }
            };
            let set = NodeChange::UserSet { name: name.clone(), password, tags: user.tags.clone() };
            changes.push((path.clone(), set));
            changes.push((path, NodeChange::UserLimited { name, limits: user.limits }));
        }
        for permission in &self.permissions {
            let PermissionDefinition { path, user, vhost, configure, write, read } = permission.clone();
            changes.push((path, NodeChange::PermissionsSet { user, vhost, configure, write, read }));
        }
        for permission in &self.topic_permissions {
            let TopicPermissionDefinition { path, user, vhost, exchange, write, read } = permission.clone();
            changes.push((path, NodeChange::TopicPermissionsSet { user, vhost, exchange, write, read }));
        }
        for (name, value) in &self.global_parameters {
            let set = NodeChange::GlobalParameterSet { name: name.clone(), value: value.clone() };
            changes.push((format!("the global parameter '{name}'"), set));
        }
        changes
    }

    /// Looks for faults by doing everything with a node and virtual hosts of its own.
    fn rehearse(&self, admin: &Admin) -> Result<(), Fault> {
        let mut node = Node::clone(&admin.users_and_vhosts());
        for (path, change) in self.node_changes(&node) {
            node.apply(change).map_err(|error| Fault::new(path, error))?;
        }
        let mut stage = Stage { admin, node: &node, operators: BTreeMap::new() };
        for policy in &self.policies {
            let set = stage.at(policy)?.set_policy(policy.what.clone());
            set.map_err(|error| Fault::new(&policy.path, error))?;
        }
        for exchange in &self.exchanges {
            if let Err(Refused::Other(text)) = declare_exchange(stage.at(exchange)?, &exchange.what) {
                return Err(Fault::new(&exchange.path, text));
            }
        }
        for queue in &self.queues {
            let default_type = default_type(&node, &queue.vhost);
            if let Err(Refused::Other(text)) = declare_queue(stage.at(queue)?, &queue.what, default_type) {
                return Err(Fault::new(&queue.path, text));
            }
        }
        for binding in &self.bindings {
            stage.provide_ends(binding)?;
            bind(stage.at(binding)?, &binding.what).map_err(|refused| Fault::new(&binding.path, refused))?;
        }
        Ok(())
    }

    /// Declares what the file says in each virtual host.
    fn declare(
        &self,
        admin: &Admin,
        progress: &dyn Fn(usize, usize),
    ) -> Result<(Loaded, Vec<Operator>), LoadError> {
        let objects = self.policies.len() + self.exchanges.len() + self.queues.len() + self.bindings.len();
        let (mut operators, mut loaded, mut done) = (BTreeMap::new(), Loaded::default(), 0);
        let node = admin.users_and_vhosts();
        let mut step = || {
            if done % PROGRESS_EVERY == 0 {
                progress(done, objects);
            }
            done += 1;
        };
        for policy in &self.policies {
            step();
            if let Err(error) = operator(admin, &mut operators, &policy.vhost)?.set_policy(policy.what.clone()) {
                loaded.refused.push(format!("{}: {error}", policy.path));
            }
        }
        for exchange in &self.exchanges {
            step();
            let declared = declare_exchange(operator(admin, &mut operators, &exchange.vhost)?, &exchange.what);
            loaded.take(&exchange.path, declared);
        }
        for queue in &self.queues {
            step();
            let default_type = default_type(&node, &queue.vhost);
            let operator = operator(admin, &mut operators, &queue.vhost)?;
            let declared = declare_queue(operator, &queue.what, default_type);
            loaded.take(&queue.path, declared);
        }
        for binding in &self.bindings {
            step();
            let bound = bind(operator(admin, &mut operators, &binding.vhost)?, &binding.what);
            loaded.take(&binding.path, bound);
        }
        progress(objects, objects);
        loaded.objects = objects;
        loaded.users = self.users.len();
        loaded.vhosts = self.vhosts.len();
        Ok((loaded, operators.into_values().collect()))
    }
}

/// The type of a queue that does not say.
fn default_type(node: &Node, vhost: &VhostName) -> DefaultQueueType {
    node.vhosts().get(vhost).map(|vhost| vhost.metadata.default_queue_type).unwrap_or_default()
}

/// The operator of a virtual host.
fn operator<'o>(
    admin: &Admin,
    operators: &'o mut BTreeMap<VhostName, Operator>,
    vhost: &VhostName,
) -> Result<&'o mut Operator, LoadError> {
    match operators.entry(vhost.clone()) {
        Entry::Occupied(known) => Ok(known.into_mut()),
        Entry::Vacant(place) => {
            let operator = admin.operator(vhost.as_str()).ok_or_else(|| LoadError::Gone(vhost.clone()))?;
            Ok(place.insert(operator))
        }
    }
}

/// Where a rehearsal takes place.
struct Stage<'s> {
    admin: &'s Admin,
    /// As it will be.
    node: &'s Node,
    operators: BTreeMap<VhostName, Operator>,
}

impl Stage<'_> {
    fn at<T>(&mut self, what: &At<T>) -> Result<&mut Operator, Fault> {
        let Some(vhost) = self.node.vhosts().get(&what.vhost) else {
            let fault = format!("virtual host '{}' neither exists nor is in the file", what.vhost);
            return Err(Fault::new(format!("{}.vhost", what.path), fault));
        };
        let operators = self.operators.entry(what.vhost.clone());
        Ok(operators.or_insert_with(|| Operator::rehearsal(&what.vhost, vhost)))
    }

    /// What a binding names may exist already: then it has a stand-in.
    fn provide_ends(&mut self, binding: &At<BindingDefinition>) -> Result<(), Fault> {
        let (vhost, admin) = (binding.vhost.as_str(), self.admin);
        let exchange = |name: &ShortString| {
            let known = admin.exchange(vhost, name.as_str())?;
            let kind = ShortString::new(known.kind).ok()?;
            let (durable, auto_delete, internal) = (known.durable, known.auto_delete, known.internal);
            let arguments = known.arguments.0;
            Some(ExchangeDefinition { name: name.clone(), kind, durable, auto_delete, internal, arguments })
        };
        let BindingDefinition { source, destination, to_queue, .. } = &binding.what;
        let ends = [Some(source), (!to_queue).then_some(destination)];
        let exchanges: Vec<_> = ends.into_iter().flatten().filter_map(exchange).collect();
        let queue = admin.queue(vhost, destination.as_str()).filter(|_| *to_queue).map(|known| QueueDefinition {
            name: destination.clone(),
            durable: known.durable,
            auto_delete: known.auto_delete,
            arguments: known.arguments.0,
        });
        let operator = self.at(binding)?;
        // One that the file declares is there, with the properties that it has there.
        for exchange in &exchanges {
            let _ = declare_exchange(operator, exchange);
        }
        if let Some(queue) = &queue {
            let _ = declare_queue(operator, queue, DefaultQueueType::Classic);
        }
        Ok(())
    }
}

fn declare_exchange(operator: &mut Operator, exchange: &ExchangeDefinition) -> Result<(), Refused> {
    let declare = DeclareExchange {
        name: exchange.name.clone(),
        kind: exchange.kind.clone(),
        existence: Existence::Declare,
        durable: exchange.durable,
        auto_delete: exchange.auto_delete,
        internal: exchange.internal,
        wait: Wait::NoWait,
        arguments: exchange.arguments.clone(),
    };
    operator.execute(|channel| Command::DeclareExchange(channel, Box::new(declare)))
}

/// A queue of which the file does not say more is of type classic, also where another type is the default.
fn declare_queue(
    operator: &mut Operator,
    queue: &QueueDefinition,
    default_type: DefaultQueueType,
) -> Result<(), Refused> {
    let says = queue.arguments.as_table().get(QUEUE_TYPE).is_some() || default_type == DefaultQueueType::Classic;
    let arguments = if says { queue.arguments.clone() } else { queue.arguments_of_type("classic") };
    let declare = DeclareQueue {
        name: queue.name.clone(),
        existence: Existence::Declare,
        durable: queue.durable,
        exclusive: false,
        auto_delete: queue.auto_delete,
        wait: Wait::NoWait,
        arguments,
    };
    operator.execute(|channel| Command::DeclareQueue(channel, Box::new(declare)))
}

fn bind(operator: &mut Operator, binding: &BindingDefinition) -> Result<(), Refused> {
    let destination = binding.destination.clone();
    let bind = Bind {
        action: BindAction::Bind,
        source: binding.source.clone(),
        to: if binding.to_queue {
            BindTo::Queue(QueueRef::Named(destination))
        } else {
            BindTo::Exchange(destination)
        },
        routing_key: binding.routing_key.clone(),
        arguments: binding.arguments.clone(),
        wait: Wait::NoWait,
    };
    operator.execute(|channel| Command::Bind(channel, Box::new(bind)))
}
