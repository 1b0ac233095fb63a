//! `leveret add`, `set`, `clear`, and `delete` of users and virtual hosts.

use std::io;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::builder::NonEmptyStringValueParser;
use clap::{Subcommand, ValueEnum};
use serde_json::{Map, Value, json};

use super::{Broker, DataDir, Failure, encoded, finish};
use crate::whole_file;

/// Add a user or a virtual host.
#[derive(Debug, Subcommand)]
#[command(after_help = "Example:\n  leveret add vhost shop")]
pub(crate) enum Add {
    User(AddUser),
    Vhost(AddVhost),
}

/// Change a user or a virtual host, or what users may do and have.
#[derive(Debug, Subcommand)]
#[command(after_help = "Example:\n  leveret set permissions marie --vhost shop --read '^orders'")]
pub(crate) enum Set {
    User(SetUser),
    Vhost(SetVhost),
    Permissions(SetPermissions),
    TopicPermissions(SetTopicPermissions),
    Policy(SetPolicy),
    Limit(SetLimit),
    Parameter(SetParameter),
}

/// Take back what was set.
#[derive(Debug, Subcommand)]
#[command(after_help = "Example:\n  leveret clear permissions marie --vhost shop")]
pub(crate) enum Clear {
    Permissions(ClearPermissions),
    TopicPermissions(ClearTopicPermissions),
    Policy(ClearPolicy),
    Limit(ClearLimit),
    Parameter(ClearParameter),
}

/// Where a password comes from. On the command line, others on this machine may see it.
#[derive(Debug, clap::Args)]
#[group(multiple = false)]
struct Credential {
    /// The password. Others on this machine may see it: --password-file is safer.
    #[arg(long, value_name = "TEXT")]
    password: Option<String>,
    /// A file whose first line is the password; - for standard input.
    #[arg(long, value_name = "FILE")]
    password_file: Option<PathBuf>,
    /// Nobody can log in by this name with a password.
    #[arg(long)]
    no_password: bool,
}

impl Credential {
    /// The fields that say it; none if nothing was said.
    fn fields(&self) -> Result<Option<Value>, Failure> {
        if self.no_password {
            return Ok(Some(json!({ "password_hash": "" })));
        }
        let text = match (&self.password, &self.password_file) {
            (Some(text), _) => text.clone(),
            (None, Some(file)) => first_line(file).map_err(Failure::Password)?,
            (None, None) => return Ok(None),
        };
        Ok(Some(json!({ "password": text })))
    }
}

fn first_line(file: &std::path::Path) -> io::Result<String> {
    let text = if file.as_os_str() == "-" {
        whole_file::standard_input(whole_file::SMALL)?
    } else {
        whole_file::text(file, whole_file::SMALL)?
    };
    Ok(text.lines().next().unwrap_or_default().to_owned())
}

/// Add a user. They may do nothing before they have permissions.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  leveret add user marie --password-file secret.txt
  leveret add user ops --password-file - --tag administrator")]
pub(crate) struct AddUser {
    /// Their name.
    #[arg(value_parser = NonEmptyStringValueParser::new())]
    name: String,
    #[command(flatten)]
    password: Credential,
    /// A tag such as administrator, monitoring or impersonator; may be given several times.
    #[arg(long, value_name = "TAG")]
    tag: Vec<String>,
    #[command(flatten)]
    broker: DataDir,
}

/// Give a user another password, or other tags.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  leveret set user marie --tag monitoring")]
pub(crate) struct SetUser {
    /// Their name.
    #[arg(value_parser = NonEmptyStringValueParser::new())]
    name: String,
    #[command(flatten)]
    password: Credential,
    /// All tags that they have from now on; may be given several times.
    #[arg(long, value_name = "TAG", conflicts_with = "no_tags")]
    tag: Vec<String>,
    /// They have no tags any more.
    #[arg(long)]
    no_tags: bool,
    #[command(flatten)]
    broker: DataDir,
}

/// Delete a user with their permissions. Their connections are closed.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  leveret delete user marie")]
pub(crate) struct DeleteUser {
    /// Their name.
    #[arg(value_parser = NonEmptyStringValueParser::new())]
    name: String,
    #[command(flatten)]
    broker: DataDir,
}

/// What can be said of a virtual host.
#[derive(Debug, clap::Args)]
struct Said {
    /// For people.
    #[arg(long, value_name = "TEXT")]
    description: Option<String>,
    /// For people; may be given several times.
    #[arg(long, value_name = "TAG")]
    tag: Vec<String>,
    /// The type of a queue whose declaration does not say: classic or quorum.
    #[arg(long, value_name = "TYPE")]
    default_queue_type: Option<String>,
    /// Whether it can be deleted.
    #[arg(long, value_name = "true|false")]
    protected: Option<bool>,
}

impl Said {
    fn fields(&self) -> Map<String, Value> {
        let tags = (!self.tag.is_empty()).then(|| Value::from(self.tag.clone()));
        let fields = [
            ("description", self.description.clone().map(Value::from)),
            ("tags", tags),
            ("default_queue_type", self.default_queue_type.clone().map(Value::from)),
            ("protected_from_deletion", self.protected.map(Value::from)),
        ];
        fields.into_iter().filter_map(|(name, value)| Some((name.to_owned(), value?))).collect()
    }
}

/// Add a virtual host. Nobody may use it before they have permissions.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Example:\n  leveret add vhost shop --description 'orders and stock' --default-queue-type quorum"
)]
pub(crate) struct AddVhost {
    /// Its name.
    #[arg(value_parser = NonEmptyStringValueParser::new())]
    name: String,
    #[command(flatten)]
    said: Said,
    #[command(flatten)]
    broker: DataDir,
}

/// Change what is said of a virtual host. What is not given stays as it is.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  leveret set vhost shop --protected true")]
pub(crate) struct SetVhost {
    /// Its name.
    #[arg(value_parser = NonEmptyStringValueParser::new())]
    name: String,
    #[command(flatten)]
    said: Said,
    #[command(flatten)]
    broker: DataDir,
}

/// Delete a virtual host with all that is in it. Connections to it are closed.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  leveret delete vhost shop")]
pub(crate) struct DeleteVhost {
    /// Its name.
    #[arg(value_parser = NonEmptyStringValueParser::new())]
    name: String,
    #[command(flatten)]
    broker: DataDir,
}

/// Say what a user may do in a virtual host, by patterns of names. What is not given, they may not do.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  leveret set permissions marie --configure '.*' --write '.*' --read '.*'
  leveret set permissions reader --vhost shop --read '^orders'")]
pub(crate) struct SetPermissions {
    /// Their name.
    #[arg(value_parser = NonEmptyStringValueParser::new())]
    user: String,
    /// The virtual host.
    #[arg(long, value_name = "NAME", default_value = "/")]
    vhost: String,
    /// What they may declare and delete.
    #[arg(long, value_name = "PATTERN", default_value = "")]
    configure: String,
    /// What they may put messages into.
    #[arg(long, value_name = "PATTERN", default_value = "")]
    write: String,
    /// What they may take messages out of.
    #[arg(long, value_name = "PATTERN", default_value = "")]
    read: String,
    #[command(flatten)]
    broker: DataDir,
}

/// Take all permissions of a user in a virtual host back.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  leveret clear permissions marie --vhost shop")]
pub(crate) struct ClearPermissions {
    /// Their name.
    #[arg(value_parser = NonEmptyStringValueParser::new())]
    user: String,
    /// The virtual host.
    #[arg(long, value_name = "NAME", default_value = "/")]
    vhost: String,
    #[command(flatten)]
    broker: DataDir,
}

/// Say which routing keys of a topic exchange a user may use. {username} and {vhost} stand for these names.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Example:\n  leveret set topic-permissions marie amq.topic --write '^{username}\\.' --read '.*'"
)]
pub(crate) struct SetTopicPermissions {
    /// Their name.
    #[arg(value_parser = NonEmptyStringValueParser::new())]
    user: String,
    /// The exchange.
    exchange: String,
    /// The virtual host.
    #[arg(long, value_name = "NAME", default_value = "/")]
    vhost: String,
    /// Keys that they may publish with.
    #[arg(long, value_name = "PATTERN", default_value = "")]
    write: String,
    /// Keys that they may bind with.
    #[arg(long, value_name = "PATTERN", default_value = "")]
    read: String,
    #[command(flatten)]
    broker: DataDir,
}

/// Let a user use every routing key again, of one topic exchange or of all.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  leveret clear topic-permissions marie")]
pub(crate) struct ClearTopicPermissions {
    /// Their name.
    #[arg(value_parser = NonEmptyStringValueParser::new())]
    user: String,
    /// The exchange; without it, all.
    exchange: Option<String>,
    /// The virtual host.
    #[arg(long, value_name = "NAME", default_value = "/")]
    vhost: String,
    #[command(flatten)]
    broker: DataDir,
}

/// Set what goes for all queues and exchanges whose names match a pattern.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  leveret set policy short '^tmp\\.' '{\"max-length\": 1000, \"expires\": 60000}' --apply-to queues
  leveret set policy limits '.*' '{\"max-length\": 1000000}' --operator")]
pub(crate) struct SetPolicy {
    /// Its name.
    #[arg(value_parser = NonEmptyStringValueParser::new())]
    name: String,
    /// Searched for in names.
    pattern: String,
    /// JSON: keys such as max-length, message-ttl or dead-letter-exchange.
    definition: String,
    /// The virtual host.
    #[arg(long, value_name = "NAME", default_value = "/")]
    vhost: String,
    /// Of several that match, the one with the greatest priority is in force.
    #[arg(long, value_name = "N", default_value_t = 0, allow_negative_numbers = true)]
    priority: i64,
    #[arg(
        long,
        value_name = "WHAT",
        default_value = "all",
        help = "queues, classic_queues, quorum_queues, streams, exchanges or all"
    )]
    apply_to: String,
    /// It is an operator policy, which limits what the others say.
    #[arg(long)]
    operator: bool,
    #[command(flatten)]
    broker: DataDir,
}

/// Take a policy away. What it set is as it was declared again.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  leveret clear policy short")]
pub(crate) struct ClearPolicy {
    /// Its name.
    #[arg(value_parser = NonEmptyStringValueParser::new())]
    name: String,
    /// The virtual host.
    #[arg(long, value_name = "NAME", default_value = "/")]
    vhost: String,
    /// It is an operator policy.
    #[arg(long)]
    operator: bool,
    #[command(flatten)]
    broker: DataDir,
}

fn policy_path(operator: bool, vhost: &str, name: &str) -> String {
    let kind = if operator { "operator-policies" } else { "policies" };
    format!("/api/{kind}/{}/{}", encoded(vhost), encoded(name))
}

/// What has limits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Limited {
    /// max-connections and max-queues
    Vhost,
    /// max-connections and max-channels
    User,
}

impl Limited {
    fn path(self, name: &str, limit: &str) -> String {
        let of = match self {
            Limited::Vhost => "vhost-limits",
            Limited::User => "user-limits",
        };
        format!("/api/{of}/{}/{}", encoded(name), encoded(limit))
    }

    fn missing(self, name: String) -> Failure {
        match self {
            Limited::Vhost => Failure::NoVhost(name),
            Limited::User => Failure::NoUser(name),
        }
    }
}

/// Limit how much a virtual host or a user may have.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  leveret set limit vhost shop max-queues 1000
  leveret set limit user marie max-connections 10")]
pub(crate) struct SetLimit {
    /// Of what.
    of: Limited,
    /// Its name.
    #[arg(value_parser = NonEmptyStringValueParser::new())]
    name: String,
    /// max-connections; of a virtual host also max-queues, of a user also max-channels.
    limit: String,
    /// How many; 0 for none at all. Without a limit: leveret clear limit.
    #[arg(allow_negative_numbers = true, value_parser = clap::value_parser!(i64).range(0..))]
    value: i64,
    #[command(flatten)]
    broker: DataDir,
}

/// Take a limit away.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  leveret clear limit vhost shop max-queues")]
pub(crate) struct ClearLimit {
    /// Of what.
    of: Limited,
    /// Its name.
    #[arg(value_parser = NonEmptyStringValueParser::new())]
    name: String,
    /// Which.
    limit: String,
    #[command(flatten)]
    broker: DataDir,
}

/// Keep something for other programs. RabbitMQ: global parameters.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  leveret set parameter cluster_tags '{\"region\":\"eu\"}'")]
pub(crate) struct SetParameter {
    /// What it is called.
    #[arg(value_parser = NonEmptyStringValueParser::new())]
    name: String,
    /// JSON.
    value: String,
    #[command(flatten)]
    broker: DataDir,
}

/// Forget something that was kept for other programs.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  leveret clear parameter cluster_tags")]
pub(crate) struct ClearParameter {
    /// What it is called.
    #[arg(value_parser = NonEmptyStringValueParser::new())]
    name: String,
    #[command(flatten)]
    broker: DataDir,
}

fn user_path(name: &str) -> String {
    format!("/api/users/{}", encoded(name))
}

fn vhost_path(name: &str) -> String {
    format!("/api/vhosts/{}", encoded(name))
}

/// Whether something was done; otherwise what is not there.
fn or(is_done: bool, missing: impl FnOnce() -> Failure) -> Result<(), Failure> {
    if is_done { Ok(()) } else { Err(missing()) }
}

fn json_value(what: &str, text: &str) -> Result<Value, Failure> {
    serde_json::from_str(text).map_err(|error| Failure::Usage(format!("{what} is not JSON: {error}")))
}

fn put_vhost(broker: &Broker, name: String, said: &Said) -> Result<(), Failure> {
    let is_done = broker.put(&vhost_path(&name), &Value::Object(said.fields()))?;
    or(is_done, || Failure::NoVhost(name))
}

impl Add {
    pub(super) fn run(self) -> Result<(), Failure> {
        match self {
            Add::User(AddUser { name, password, tag, broker }) => {
                let Some(mut fields) = password.fields()? else {
                    let advice = "say which password: --password-file FILE, --password TEXT or --no-password";
                    return Err(Failure::Usage(advice.to_owned()));
                };
                let broker = broker.client()?;
                if broker.get(&user_path(&name))?.is_some() {
                    return Err(Failure::Exists("user", name));
                }
                fields["tags"] = tag.into();
                or(broker.put(&user_path(&name), &fields)?, || Failure::NoUser(name))
            }
            Add::Vhost(AddVhost { name, said, broker }) => {
                let broker = broker.client()?;
                if broker.get(&vhost_path(&name))?.is_some() {
                    return Err(Failure::Exists("vhost", name));
                }
                put_vhost(&broker, name, &said)
            }
        }
    }
}

impl Set {
    pub(super) fn run(self) -> Result<(), Failure> {
        match self {
            Set::User(SetUser { name, password, tag, no_tags, broker }) => {
                let given = password.fields()?;
                let tags = (no_tags || !tag.is_empty()).then_some(tag);
                if given.is_none() && tags.is_none() {
                    let advice = "say what is to change: a password, --tag or --no-tags".to_owned();
                    return Err(Failure::Usage(advice));
                }
                let broker = broker.client()?;
                let Some(known) = broker.get(&user_path(&name))? else { return Err(Failure::NoUser(name)) };
                // What is not given stays as it is.
                let kept = || json!({ "password_hash": known["password_hash"], "hashing_algorithm": known["hashing_algorithm"] });
                let mut fields = given.unwrap_or_else(kept);
                fields["tags"] = tags.map_or_else(|| known["tags"].clone(), Value::from);
                or(broker.put(&user_path(&name), &fields)?, || Failure::NoUser(name))
            }
            Set::Vhost(SetVhost { name, said, broker }) => {
                if said.fields().is_empty() {
                    let advice = "say what is to change: --description, --tag, --default-queue-type or --protected";
                    return Err(Failure::Usage(advice.to_owned()));
                }
                let broker = broker.client()?;
                if broker.get(&vhost_path(&name))?.is_none() {
                    return Err(Failure::NoVhost(name));
                }
                put_vhost(&broker, name, &said)
            }
            Set::Permissions(SetPermissions { user, vhost, configure, write, read, broker }) => {
                let path = format!("/api/permissions/{}/{}", encoded(&vhost), encoded(&user));
                let fields = json!({ "configure": configure, "write": write, "read": read });
                let broker = broker.client()?;
                or(broker.put(&path, &fields)?, || broker.missing(user, vhost))
            }
            Set::TopicPermissions(SetTopicPermissions { user, exchange, vhost, write, read, broker }) => {
                let path = format!("/api/topic-permissions/{}/{}", encoded(&vhost), encoded(&user));
                let fields = json!({ "exchange": exchange, "write": write, "read": read });
                let broker = broker.client()?;
                or(broker.put(&path, &fields)?, || broker.missing(user, vhost))
            }
            Set::Policy(SetPolicy { name, pattern, definition, vhost, priority, apply_to, operator, broker }) => {
                let definition = json_value("the definition", &definition)?;
                let fields = json!({
                    "pattern": pattern, "definition": definition, "priority": priority, "apply-to": apply_to,
                });
                let path = policy_path(operator, &vhost, &name);
                or(broker.client()?.put(&path, &fields)?, || Failure::NoVhost(vhost))
            }
            Set::Limit(SetLimit { of, name, limit, value, broker }) => {
                let is_done = broker.client()?.put(&of.path(&name, &limit), &json!({ "value": value }))?;
                or(is_done, || of.missing(name))
            }
            Set::Parameter(SetParameter { name, value, broker }) => {
                let value = json_value("the value", &value)?;
                let path = format!("/api/global-parameters/{}", encoded(&name));
                or(broker.client()?.put(&path, &json!({ "value": value }))?, || Failure::NoParameter(name))
            }
        }
    }
}

impl Clear {
    pub(super) fn run(self) -> Result<(), Failure> {
        match self {
            Clear::Permissions(ClearPermissions { user, vhost, broker }) => {
                let path = format!("/api/permissions/{}/{}", encoded(&vhost), encoded(&user));
                let broker = broker.client()?;
                or(broker.delete(&path, None)?, || broker.missing(user, vhost))
            }
            Clear::TopicPermissions(ClearTopicPermissions { user, exchange, vhost, broker }) => {
                let path = format!("/api/topic-permissions/{}/{}", encoded(&vhost), encoded(&user));
                let broker = broker.client()?;
                let is_done = match exchange {
                    Some(exchange) => broker.delete_with(&path, &json!({ "exchange": exchange }))?,
                    None => broker.delete(&path, None)?,
                };
                or(is_done, || broker.missing(user, vhost))
            }
            Clear::Policy(ClearPolicy { name, vhost, operator, broker }) => {
                let is_done = broker.client()?.delete(&policy_path(operator, &vhost, &name), None)?;
                or(is_done, || Failure::NoPolicy(name, vhost))
            }
            Clear::Limit(ClearLimit { of, name, limit, broker }) => {
                or(broker.client()?.delete(&of.path(&name, &limit), None)?, || of.missing(name))
            }
            Clear::Parameter(ClearParameter { name, broker }) => {
                let path = format!("/api/global-parameters/{}", encoded(&name));
                or(broker.client()?.delete(&path, None)?, || Failure::NoParameter(name))
            }
        }
    }
}

impl DeleteUser {
    pub(crate) fn run(self) -> ExitCode {
        finish(self.delete())
    }

    fn delete(self) -> Result<(), Failure> {
        let is_done = self.broker.client()?.delete(&user_path(&self.name), None)?;
        or(is_done, || Failure::NothingToDelete("user", self.name))
    }
}

impl DeleteVhost {
    pub(crate) fn run(self) -> ExitCode {
        finish(self.delete())
    }

    fn delete(self) -> Result<(), Failure> {
        let is_done = self.broker.client()?.delete(&vhost_path(&self.name), None)?;
        or(is_done, || Failure::NothingToDelete("vhost", self.name))
    }
}
