//! Everything that can be set: by an option, by its variable, by `--set KEY=VALUE`, in the file of `--config`.
//!
//! Each of them assigns a text to a key. Later ranks win over earlier ones: the file, the environment, the command line.
//! Invariant: within one rank, what was set under two names is refused, so nothing depends on an order that nobody wrote
//! down.

mod claims;
mod file;
mod keys;

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

use clap::ValueEnum;
use leveret_broker::Shortened;
use leveret_server::{ServerConfig, Storage};
use tracing_subscriber::filter::LevelFilter;

use keys::{KEYS, Key};

use crate::whole_file;

/// The port that AMQP 0-9-1 has at IANA.
pub(crate) const AMQP_PORT: u16 = 5672;

/// The folder that is used unless another one is named.
pub(crate) const DATA_DIR: &str = "leveret-data";

/// What the broker starts with.
#[derive(Debug)]
pub(crate) struct Configuration {
    pub(crate) server: ServerConfig,
    pub(crate) log_level: LogLevel,
    /// A file of definitions to begin with.
    pub(crate) definitions: Option<PathBuf>,
    management_port: Option<u16>,
    is_in_memory: bool,
    data_dir: PathBuf,
}

/// How much is logged.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum LogLevel {
    /// Nothing.
    None,
    /// What needs somebody's attention.
    Error,
    /// Also what may be a mistake of a client.
    Warning,
    /// Also connections opened and closed.
    Info,
    /// Also every detail.
    Debug,
}

impl From<LogLevel> for LevelFilter {
    fn from(level: LogLevel) -> Self {
        match level {
            LogLevel::None => LevelFilter::OFF,
            LogLevel::Error => LevelFilter::ERROR,
            LogLevel::Warning => LevelFilter::WARN,
            LogLevel::Info => LevelFilter::INFO,
            LogLevel::Debug => LevelFilter::DEBUG,
        }
    }
}

/// A text for a key, and where it stands.
#[derive(Clone, Debug)]
pub(crate) struct Assignment {
    key: String,
    /// The name that stands there for the key.
    written: String,
    value: OsString,
    origin: Origin,
}

#[derive(Clone, Debug)]
pub(crate) enum Origin {
    /// A key in this file.
    File(PathBuf),
    /// The variable of an option.
    Variable,
    /// A variable of another name, or the file that one names.
    Named(String),
    /// `LEVERET_SET`
    SetVariable,
    /// An option on the command line.
    Option,
    /// `--set`
    Set,
}

/// Later ones win.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Rank {
    File,
    Environment,
    CommandLine,
}

impl Origin {
    fn rank(&self) -> Rank {
        match self {
            Origin::File(_) => Rank::File,
            Origin::Variable | Origin::Named(_) | Origin::SetVariable => Rank::Environment,
            Origin::Option | Origin::Set => Rank::CommandLine,
        }
    }
}

impl Assignment {
    pub(crate) fn new(origin: Origin, key: &str, value: impl Into<OsString>) -> Self {
        Assignment { key: key.to_owned(), written: key.to_owned(), value: value.into(), origin }
    }

    fn is_not(&self, takes: &'static str, value: &str) -> ConfigurationError {
        ConfigurationError::Invalid { what: self.to_string(), takes, value: Shortened(value).to_string() }
    }

    /// The same place for another key.
    fn for_key(&self, key: &str, value: impl Into<OsString>) -> Self {
        Assignment { key: key.to_owned(), value: value.into(), ..self.clone() }
    }

    /// `KEY=VALUE`
    pub(crate) fn parse(origin: Origin, text: &str) -> Result<Self, ConfigurationError> {
        let Some((key, value)) = text.split_once('=') else {
            let place = if origin.rank() == Rank::Environment { "LEVERET_SET" } else { "--set" };
            return Err(ConfigurationError::NoValue(place, Shortened(text).to_string()));
        };
        Ok(Assignment::new(origin, key.trim(), value))
    }
}

/// What the user has written there.
impl fmt::Display for Assignment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let key = &self.written;
        let shown = Shortened(key);
        match &self.origin {
            Origin::File(file) => write!(f, "setting '{shown}' in {}", file.display()),
            Origin::Variable => write!(f, "LEVERET_{}", key.to_uppercase()),
            Origin::Named(name) => f.write_str(name),
            Origin::SetVariable => write!(f, "setting '{shown}' in LEVERET_SET"),
            Origin::Option => write!(f, "--{}", key.replace('_', "-")),
            Origin::Set => write!(f, "setting '{shown}'"),
        }
    }
}

/// Something that cannot be set so.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ConfigurationError {
    #[error("cannot read the configuration file {file}: {fault}", file = .0.display(), fault = .1)]
    Unreadable(PathBuf, String),
    #[error("{file} is not valid TOML {fault}", file = .0.display(), fault = .1)]
    NotToml(PathBuf, String),
    #[error("unknown {0}; the nearest is '{1}'")]
    Misspelled(String, &'static str),
    #[error("unknown {0}; there are {names}", names = listed().collect::<Vec<_>>().join(", "))]
    Unknown(String),
    #[error("{0} takes KEY=VALUE, for example heartbeat=30; '{1}' has no '='")]
    NoValue(&'static str, String),
    #[error("{0} names a file that cannot be read, {file}: {fault}", file = .1.display(), fault = .2)]
    UnreadableValue(String, PathBuf, io::Error),
    #[error("LEVERET_SET is not in UTF-8; a setting is KEY=VALUE, several are divided by commas")]
    NotUtf8,
    #[error("{what} takes {takes}; '{value}' is not that")]
    Invalid { what: String, takes: &'static str, value: String },
    #[error(
        "there are more than {SETTINGS_MAX} settings; set nothing twice, and leave out addresses that are not needed"
    )]
    TooMany,
    #[error("{0} and {1} exclude each other; leave one out")]
    Exclusive(String, String),
    #[error("{0} and {1} name two ports; all addresses have the same one")]
    TwoPorts(String, String),
    #[error("--amqp-port and --management-port are both {0}; choose two ports")]
    OnePort(u16),
}

/// Settings of a start, and names in its file: each of the keys, and more addresses than a machine has.
const SETTINGS_MAX: usize = 128;

/// Bytes of a name that may be a misspelling of a key.
const MISSPELLED_BYTES_MAX: usize = 64;

/// From so much on, of 1, two names are taken for one and a misspelling of it.
const SIMILARITY_MIN: f64 = 0.8;

/// RabbitMQ: a name for each listener.
const LISTENERS: &str = "listeners.tcp.";
const LISTENER: &str = "listeners.tcp.default";

/// Stands for all others in a list of keys.
const OTHER_LISTENERS: &str = "listeners.tcp.NAME";

fn names() -> impl Iterator<Item = &'static str> {
    KEYS.iter().map(|key| key.name).chain([LISTENER])
}

fn listed() -> impl Iterator<Item = &'static str> {
    names().chain([OTHER_LISTENERS])
}

/// For the help: what can stand before the `=`.
pub(crate) fn help() -> String {
    let names = listed().collect::<Vec<_>>().join("\n  ");
    format!("Keys for --set and --config; README.md says what each one takes:\n  {names}")
}

impl Default for Configuration {
    fn default() -> Self {
        Configuration {
            server: ServerConfig { amqp_port: AMQP_PORT, ..ServerConfig::default() },
            log_level: LogLevel::Info,
            definitions: None,
            management_port: None,
            is_in_memory: false,
            data_dir: DATA_DIR.into(),
        }
    }
}

impl Configuration {
    /// The defaults, then what is set, each rank over the one before it.
    pub(crate) fn new(file: Option<&Path>, given: Vec<Assignment>) -> Result<Self, ConfigurationError> {
        let mut assignments = file.map_or(Ok(Vec::new()), read)?;
        assignments.extend(given);
        Self::of(assignments)
    }

    /// The defaults, then these, in the order of their ranks.
    fn of(mut assignments: Vec<Assignment>) -> Result<Self, ConfigurationError> {
        if assignments.len() > SETTINGS_MAX {
            return Err(ConfigurationError::TooMany);
        }
        assignments.sort_by_key(|assignment| assignment.origin.rank());
        let mut configuration = Configuration::default();
        for rank in assignments.chunk_by(|a, b| a.origin.rank() == b.origin.rank()) {
            configuration.apply(rank)?;
        }
        let port = configuration.server.amqp_port;
        if port != 0 && configuration.management_port == Some(port) {
            return Err(ConfigurationError::OnePort(port));
        }
        let folder = configuration.data_dir.clone();
        configuration.server.storage =
            if configuration.is_in_memory { Storage::InMemory } else { Storage::Folder(folder) };
        Ok(configuration)
    }

    /// What is set in one rank. There, the same name may be set again, and another one for the same thing may not.
    fn apply(&mut self, rank: &[Assignment]) -> Result<(), ConfigurationError> {
        let assignments = without_listeners(rank)?;
        let mut decided_by: BTreeMap<&str, String> = BTreeMap::new();
        for assignment in &assignments {
            let key = find(assignment)?;
            if (key.set)(self, &assignment.value).is_none() {
                return Err(assignment.is_not(key.takes, &assignment.value.to_string_lossy()));
            }
            // Where messages are kept instead, this one does not say.
            if key.name == "in_memory" && !self.is_in_memory {
                continue;
            }
            let place = assignment.to_string();
            match decided_by.get(key.decides) {
                Some(other) if *other != place => return Err(ConfigurationError::Exclusive(other.clone(), place)),
                Some(_) | None => decided_by.insert(key.decides, place),
            };
        }
        Ok(())
    }
}

/// What container images of RabbitMQ take from variables, and from the files that others name.
const FROM_ENVIRONMENT: [&str; 3] = ["default_user", "default_pass", "default_vhost"];

/// What is set by variables that belong to no option. `lookup` is the environment.
pub(crate) fn from_environment(
    lookup: impl Fn(&str) -> Option<OsString>,
) -> Result<Vec<Assignment>, ConfigurationError> {
    let mut assignments = Vec::new();
    for key in FROM_ENVIRONMENT {
        let upper = key.to_uppercase();
        let rabbitmq = format!("RABBITMQ_{upper}");
        if let Some(value) = lookup(&rabbitmq) {
            assignments.push(Assignment::new(Origin::Named(rabbitmq.clone()), key, value));
        }
        for variable in [format!("{rabbitmq}_FILE"), format!("LEVERET_{upper}_FILE")] {
            let Some(file) = lookup(&variable).map(PathBuf::from) else { continue };
            let value = whole_file::text(&file, whole_file::SMALL)
                .map_err(|error| ConfigurationError::UnreadableValue(variable.clone(), file, error))?;
            // An editor ends the line.
            let value = value.strip_suffix('\n').map_or(&*value, |value| value.strip_suffix('\r').unwrap_or(value));
            assignments.push(Assignment::new(Origin::Named(variable), key, value));
        }
    }
    Ok(assignments)
}

/// All that is given, or as much as shows that it is too much.
pub(crate) fn gather(
    given: impl Iterator<Item = Result<Assignment, ConfigurationError>>,
) -> Result<Vec<Assignment>, ConfigurationError> {
    given.take(SETTINGS_MAX + 1).collect()
}

/// Whether a file with this text, and each of these given as `--set`, is something to start with.
///
/// # Errors
/// What is wrong, for people.
pub fn is_configuration<'t>(text: &str, set: impl Iterator<Item = &'t str>) -> Result<(), String> {
    let all = || {
        let mut assignments = file::parse(Path::new("leveret.toml"), text)?;
        assignments.extend(gather(set.map(|assignment| Assignment::parse(Origin::Set, assignment)))?);
        Configuration::of(assignments)
    };
    all().map(drop).map_err(|error: ConfigurationError| error.to_string())
}

fn read(file: &Path) -> Result<Vec<Assignment>, ConfigurationError> {
    let text = whole_file::text(file, whole_file::SMALL)
        .map_err(|error| ConfigurationError::Unreadable(file.into(), error.to_string()))?;
    file::parse(file, &text)
}

/// RabbitMQ: `listeners.tcp.$name`
fn is_listener(name: &str) -> bool {
    name.strip_prefix(LISTENERS).is_some_and(|own| !own.is_empty() && !own.contains('.'))
}

/// Whether the names of keys have more behind this one, from a dot on.
fn is_table(name: &str) -> bool {
    listed().any(|known| known.strip_prefix(name).is_some_and(|rest| rest.starts_with('.')))
}

/// Whether there is something to set by this name.
fn check_name(assignment: &Assignment) -> Result<(), ConfigurationError> {
    if is_listener(&assignment.key) { Ok(()) } else { find(assignment).map(drop) }
}

fn find(assignment: &Assignment) -> Result<&'static Key, ConfigurationError> {
    let name = assignment.key.as_str();
    KEYS.iter().find(|key| key.name == name).ok_or_else(|| {
        let known = names().filter(|_| name.len() <= MISSPELLED_BYTES_MAX);
        let similar = known.map(|known| (strsim::jaro_winkler(known, name), known));
        let nearest =
            similar.filter(|(similarity, _)| *similarity >= SIMILARITY_MIN).max_by(|a, b| a.0.total_cmp(&b.0));
        match nearest {
            Some((_, nearest)) => ConfigurationError::Misspelled(assignment.to_string(), nearest),
            None => ConfigurationError::Unknown(assignment.to_string()),
        }
    })
}

/// Turns RabbitMQ's listeners, each with a name of its own, into addresses and the one port that they share.
fn without_listeners(rank: &[Assignment]) -> Result<Vec<Cow<'_, Assignment>>, ConfigurationError> {
    let (listeners, others): (Vec<_>, Vec<_>) = rank.iter().partition(|assignment| is_listener(&assignment.key));
    let mut others: Vec<_> = others.into_iter().map(Cow::Borrowed).collect();
    // The last one of each name.
    let listeners: BTreeMap<_, _> =
        listeners.into_iter().map(|listener| (listener.key.as_str(), listener)).collect();
    let mut port_of: Option<(&Assignment, u16)> = None;
    let mut addresses: Option<(&Assignment, Vec<String>)> = None;
    for &listener in listeners.values() {
        let takes = "a port, or an address and a port such as 127.0.0.1:5672";
        let (ip, port) = keys::listener(&listener.value)
            .ok_or_else(|| listener.is_not(takes, &listener.value.to_string_lossy()))?;
        match port_of {
            None => port_of = Some((listener, port)),
            Some((other, its)) if its != port => {
                return Err(ConfigurationError::TwoPorts(other.to_string(), listener.to_string()));
            }
            Some(_) => {}
        }
        if let Some(ip) = ip {
            addresses.get_or_insert_with(|| (listener, Vec::new())).1.push(ip.to_string());
        }
    }
    others.extend(port_of.map(|(listener, port)| Cow::Owned(listener.for_key("amqp_port", port.to_string()))));
    others.extend(addresses.map(|(listener, addresses)| Cow::Owned(listener.for_key("bind", addresses.join(",")))));
    Ok(others)
}

#[cfg(test)]
mod tests {
    use std::ffi::OsStr;
    use std::net::IpAddr;
    use std::time::Duration;

    use leveret_server::MemoryLimit;

    use std::fs;

    use super::*;

    fn set(assignments: &[&str]) -> Vec<Assignment> {
        assignments.iter().map(|text| Assignment::parse(Origin::Set, text).unwrap()).collect()
    }

    fn from(assignments: &[&str]) -> Result<Configuration, String> {
        Configuration::new(None, set(assignments)).map_err(|error| error.to_string())
    }

    /// A file with this text, and `--set` with these.
    fn from_file(text: &str, assignments: &[&str]) -> Result<Configuration, String> {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("leveret.toml");
        fs::write(&file, text).unwrap();
        let path = format!("{}/", folder.path().display());
        Configuration::new(Some(&file), set(assignments)).map_err(|error| error.to_string().replace(&path, ""))
    }

    fn in_environment(key: &str, value: &str) -> Assignment {
        Assignment::new(Origin::Variable, key, value)
    }

    #[test]
    fn the_file_gives_way_to_variables_and_they_to_the_command_line() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("leveret.toml");
        fs::write(&file, "amqp_port = 1\nsegment_size = 2000000\nmemory_limit = \"1GB\"\nheartbeat = 1\n").unwrap();
        let mut given = set(&["amqp_port=3", "heartbeat=2", "heartbeat=3"]);
        given.push(in_environment("amqp_port", "2"));
        given.push(in_environment("memory_limit", "2GB"));
        let Configuration { server, .. } = Configuration::new(Some(&file), given).unwrap();
        assert_eq!(
            (server.amqp_port, server.memory_limit, server.segment_bytes, server.settings.heartbeat),
            (3, MemoryLimit::Bytes(2_000_000_000), 2_000_000, 3)
        );
    }

    #[test]
    fn two_names_for_one_thing_exclude_each_other_in_one_rank_and_not_in_two() {
        for (first, second) in [
            ("memory_limit=1GB", "vm_memory_high_watermark.relative=0.4"),
            ("vm_memory_high_watermark.absolute=1GB", "vm_memory_high_watermark.relative=0.4"),
            ("disk_free_limit=1", "disk_free_limit.absolute=1"),
            ("log_level=debug", "log.console.level=debug"),
            ("management_port=1", "management.tcp.port=1"),
            ("amqp_port=1", "listeners.tcp.default=1"),
            ("bind=::1", "listeners.tcp.1=127.0.0.1:5672"),
            ("product=a", "product.name=a"),
            ("version=1", "product.version=1"),
            ("in_memory=true", "data_dir=d"),
        ] {
            let name = |assignment: &'static str| assignment.split_once('=').unwrap().0;
            let error = from(&[first, second]).unwrap_err();
            let expected = format!(
                "setting '{}' and setting '{}' exclude each other; leave one out",
                name(first),
                name(second)
            );
            assert_eq!(error, expected);
            let mut given = set(&[second]);
            given.push(in_environment(name(first), first.split_once('=').unwrap().1));
            assert!(Configuration::new(None, given).is_ok(), "{first}, {second}");
        }
        let mut given = set(&["amqp_port=1"]);
        given.push(Assignment::new(Origin::Option, "amqp_port", "1"));
        let error = Configuration::new(None, given).unwrap_err().to_string();
        assert_eq!(error, "setting 'amqp_port' and --amqp-port exclude each other; leave one out");
        assert!(from(&["in_memory=false", "data_dir=d"]).is_ok(), "no second place");
        assert!(from(&["bind=::1", "listeners.tcp.default=1"]).is_ok(), "a port alone");
    }

    #[test]
    fn where_messages_are_kept_is_said_by_the_last_rank_that_names_a_place() {
        let storage = |text: &str, assignments: &[&str]| from_file(text, assignments).unwrap().server.storage;
        let folder = |name: &str| Storage::Folder(name.into());
        assert_eq!(storage("", &[]), folder(DATA_DIR));
        assert_eq!(storage("data_dir = 'd'", &["in_memory=1"]), Storage::InMemory);
        assert_eq!(storage("in_memory = true", &["data_dir=d"]), folder("d"));
        assert_eq!(storage("in_memory = true", &["in_memory=false"]), folder(DATA_DIR));
        assert_eq!(storage("data_dir = 'd'", &["in_memory=0"]), folder("d"));
    }

    #[test]
    fn a_file_without_an_end_is_not_read_to_it() {
        let error = Configuration::new(Some(Path::new("/dev/zero")), Vec::new()).unwrap_err().to_string();
        assert_eq!(error, "cannot read the configuration file /dev/zero: it has more than 1.0 MiB");
    }

    #[test]
    fn tables_of_a_file_are_keys_with_dots() {
        let text = "
            listeners.tcp.1 = '127.0.0.1:5673'
            listeners.tcp.2 = '[::1]:5673'
            [vm_memory_high_watermark]
            absolute = '2GiB'
            [log.console]
            level = 'none'
            [product]
            name = 'RabbitMQ'
        ";
        let Configuration { server, log_level, .. } = from_file(text, &[]).unwrap();
        assert_eq!((server.amqp_port, server.bind), (5673, vec![[127, 0, 0, 1].into(), "::1".parse().unwrap()]));
        assert_eq!((server.memory_limit, log_level), (MemoryLimit::Bytes(2 << 30), LogLevel::None));
        assert_eq!(server.settings.product, "RabbitMQ");
        let Configuration { server, .. } = from_file("bind = ['127.0.0.1', '127.0.0.2']", &[]).unwrap();
        assert_eq!(server.bind, [IpAddr::from([127, 0, 0, 1]), IpAddr::from([127, 0, 0, 2])]);
    }

    #[test]
    fn listeners_have_addresses_and_one_port() {
        let listen = |assignments: &[&str]| {
            from(assignments).map(|Configuration { server, .. }| (server.bind, server.amqp_port))
        };
        let local = IpAddr::from([127, 0, 0, 1]);
        assert_eq!(listen(&["listeners.tcp.default=5673"]), Ok((vec![], 5673)));
        assert_eq!(listen(&["listeners.tcp.1=:::5673"]), Ok((vec!["::".parse().unwrap()], 5673)));
        let again = ["listeners.tcp.1=::1:1", "listeners.tcp.1=127.0.0.1:5673"];
        assert_eq!(listen(&again), Ok((vec![local], 5673)), "the later one");
        assert_eq!(
            listen(&["listeners.tcp.a=127.0.0.1:1", "listeners.tcp.b=127.0.0.2:2"]).unwrap_err(),
            "setting 'listeners.tcp.a' and setting 'listeners.tcp.b' name two ports; all addresses have the same one"
        );
        for bad in ["none", "localhost:5672", "127.0.0.1:", "127.0.0.1:65536", ""] {
            let error = listen(&[&format!("listeners.tcp.1={bad}")]).unwrap_err();
            assert_eq!(
                error,
                format!(
                    "setting 'listeners.tcp.1' takes a port, or an address and a port such as 127.0.0.1:5672; \
                     '{bad}' is not that"
                )
            );
        }
    }

    #[test]
    fn an_unknown_key_names_the_nearest_or_if_none_is_near_all() {
        let unknown = |key: &str| from(&[&format!("{key}=1")]).unwrap_err();
        for (misspelled, meant) in [
            ("heartbeats", "heartbeat"),
            ("frame-max", "frame_max"),
            ("max_message", "max_message_size"),
            ("amqp-port", "amqp_port"),
            ("listeners.tcp", "listeners.tcp.default"),
            ("vm_memory_high_watermark", "vm_memory_high_watermark.relative"),
            ("disk_free_limit.relative", "disk_free_limit"),
        ] {
            assert_eq!(unknown(misspelled), format!("unknown setting '{misspelled}'; the nearest is '{meant}'"));
        }
        for other in ["foo", "max_frame", "ssl_options.cacertfile", ""] {
            let error = unknown(other);
            assert!(error.starts_with(&format!("unknown setting '{other}'; there are product, ")), "{error}");
            assert!(names().all(|name| error.contains(name)), "{error}");
            assert!(error.ends_with(", listeners.tcp.default, listeners.tcp.NAME"), "{error}");
        }
    }

    #[test]
    fn an_error_names_the_place_the_value_and_what_the_key_takes() {
        let takes = "takes a number of bytes from 4096 to 134217728; '4095' is not that";
        assert_eq!(from(&["frame_max=4095"]).unwrap_err(), format!("setting 'frame_max' {takes}"));
        let in_file = |text: &str| from_file(text, &[]).unwrap_err();
        assert_eq!(in_file("frame_max = 4095"), format!("setting 'frame_max' in leveret.toml {takes}"));
        assert_eq!(
            in_file("hartbeat = 1"),
            "unknown setting 'hartbeat' in leveret.toml; the nearest is 'heartbeat'"
        );
        assert_eq!(
            in_file("[log]\nconsole = {level = true}"),
            "setting 'log.console.level' in leveret.toml takes none, error, warning, info or debug; 'true' is not that"
        );
        assert_eq!(
            in_file("loopback_users = false"),
            "setting 'loopback_users' in leveret.toml takes names of users separated by commas, or none; 'false' is not \
             that"
        );
        let fault = in_file("heartbeat = 30\nfrämé bar\n");
        assert!(fault.starts_with("leveret.toml is not valid TOML at line 2, column "), "{fault}");
        assert_eq!(fault.lines().count(), 1, "{fault}");
        assert!(!fault.contains('|') && !fault.contains("  "), "without the drawing: {fault}");
        assert_eq!(
            from(&["memory_limit=16EiB"]).unwrap_err(),
            "setting 'memory_limit' takes a size of at least 32MiB and below 16EiB, for example 256MiB or 1GB, or a part of \
             the memory from 1% to 100%; '16EiB' is not that"
        );
        let variable = Assignment::parse(Origin::SetVariable, "frame_max=4095").unwrap();
        let error = Configuration::new(None, vec![variable]).unwrap_err().to_string();
        assert_eq!(error, format!("setting 'frame_max' in LEVERET_SET {takes}"));
        let variable = Configuration::new(None, vec![in_environment("amqp_port", "x")]).unwrap_err().to_string();
        assert_eq!(variable, "LEVERET_AMQP_PORT takes a port from 0 to 65535; 'x' is not that");
    }

    /// As `rabbitmq.conf` has them.
    #[test]
    fn a_text_without_quotes_is_told_to_stand_in_them() {
        for (text, advice) in [
            ("log.console.level = info", "log.console.level = \"info\""),
            ("heartbeat = 30\nlog.console.level =debug  # all\n", "log.console.level = \"debug\""),
            ("[log.console]\nlevel = none\n", "level = \"none\""),
            ("listeners.tcp.1 = 127.0.0.1:5672", "listeners.tcp.1 = \"127.0.0.1:5672\""),
            ("disk_free_limit = 50MB", "disk_free_limit = \"50MB\""),
            ("data_dir = /var/lib/leveret", "data_dir = \"/var/lib/leveret\""),
        ] {
            let fault = from_file(text, &[]).unwrap_err();
            assert!(fault.starts_with("leveret.toml is not valid TOML at line "), "{fault}");
            assert!(fault.ends_with(&format!("; a text stands in quotes: {advice}")), "{fault}");
            assert_eq!(fault.lines().count(), 1, "{fault}");
        }
        for text in ["heartbeat", "heartbeat =", "a = 'b", "a = [1,", "heartbeat = 1\nheartbeat = 2"] {
            let fault = from_file(text, &[]).unwrap_err();
            assert!(!fault.contains("quotes:"), "{fault}");
        }
    }

    #[test]
    fn what_the_help_says_of_defaults_is_true() {
        use clap::CommandFactory;
        let serve = crate::Cli::command();
        for option in serve.get_arguments().filter(|arg| KEYS.iter().any(|key| key.name == arg.get_id())) {
            let name = option.get_id().as_str();
            let long = name.replace('_', "-");
            assert_eq!(option.get_long(), Some(long.as_str()));
            let variable = format!("LEVERET_{}", name.to_uppercase());
            assert_eq!(option.get_env(), Some(variable.as_ref()));
            let help = option.get_help().unwrap().to_string();
            let default = help.rsplit_once("[default: ").and_then(|(_, rest)| rest.strip_suffix(']'));
            let Some(default) = default.filter(|default| !default.contains(' ')) else { continue };
            let configuration = from(&[&format!("{name}={default}")]).unwrap();
            let expected = Configuration { management_port: configuration.management_port, ..from(&[]).unwrap() };
            assert_eq!(format!("{configuration:?}"), format!("{expected:?}"), "{name}");
        }
    }

    #[test]
    fn times_are_in_milliseconds_and_undefined_is_none() {
        let timeout = |value: &str| from(&[&format!("consumer_timeout={value}")]).unwrap().server.settings;
        assert_eq!(timeout("1800000").consumer_timeout, Some(Duration::from_mins(30)));
        assert_eq!(timeout("undefined").consumer_timeout, None);
    }

    #[test]
    fn the_first_user_comes_from_the_variables_of_rabbitmqs_container_or_from_files_that_they_name() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("password");
        fs::write(&file, "love lace\n").unwrap();
        let set = |variables: &[(&str, &OsStr)]| {
            let lookup = |name: &str| {
                let found = variables.iter().find(|(known, _)| *known == name);
                found.map(|(_, value)| OsString::from(value))
            };
            Configuration::new(None, from_environment(lookup)?).map(|configuration| configuration.server.first_user)
        };
        let user = set(&[
            ("RABBITMQ_DEFAULT_USER", "ada".as_ref()),
            ("RABBITMQ_DEFAULT_PASS_FILE", file.as_os_str()),
            ("RABBITMQ_DEFAULT_VHOST", "engine".as_ref()),
        ])
        .unwrap();
        assert_eq!((&*user.name, &*user.password, &*user.vhost), ("ada", "love lace", "engine"));
        assert_eq!(set(&[("LEVERET_DEFAULT_PASS_FILE", file.as_os_str())]).unwrap().password, "love lace");
        let two = set(&[("RABBITMQ_DEFAULT_PASS", "x".as_ref()), ("RABBITMQ_DEFAULT_PASS_FILE", file.as_os_str())]);
        let two = two.unwrap_err().to_string();
        assert_eq!(two, "RABBITMQ_DEFAULT_PASS and RABBITMQ_DEFAULT_PASS_FILE exclude each other; leave one out");
        let missing = set(&[("RABBITMQ_DEFAULT_USER_FILE", "/nowhere/at-all".as_ref())]).unwrap_err().to_string();
        assert!(missing.starts_with("RABBITMQ_DEFAULT_USER_FILE names a file that cannot be read, "), "{missing}");
    }
}
