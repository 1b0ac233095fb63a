//! `leveret serve`: the broker as a process.
//!
//! Exit codes: 0 stopped in good order, 1 could not start, 2 a bad option, 73 the data folder is in use, 74 the journal
//! could not be written.

use std::env;
use std::ffi::{OsStr, OsString};
use std::fmt::Write as _;
use std::io::{self, IsTerminal, Write};
use std::path::PathBuf;
use std::process::ExitCode;

use clap::ArgMatches;
use clap::parser::ValueSource;
use leveret_broker::names::UserName;
use leveret_broker::node;
use leveret_management::{CONTROL_SOCKET, ControlSocket};
use leveret_server::{
    BindError, DataDirError, PROGRESS, PROGRESS_LINE, Server, ServerConfig, ServerHandle, StartError, Storage,
};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{Layer, fmt};

use crate::configuration::{self, AMQP_PORT, Assignment, Configuration, ConfigurationError, Origin};
use crate::data_folder::{DataFolder, Found};
use crate::definitions::File;
use crate::heap;
use crate::log::Log;
use crate::progress::{Above, Bar};

const START_FAILED: u8 = 1;
const BAD_OPTION: u8 = 2;
/// `EX_CANTCREAT` of sysexits.h.
const DATA_DIR_IN_USE: u8 = 73;

/// `EX_IOERR` of sysexits.h.
const JOURNAL_FAILED: u8 = 74;

/// Starts the broker.
///
/// Example: leveret serve --in-memory --amqp-port 0
#[derive(Debug, clap::Args)]
#[command(after_long_help = configuration::help())]
pub(crate) struct Serve {
    /// The folder where durable queues, exchanges and messages are kept, made if it is missing and locked while the
    /// broker runs [default: leveret-data]
    #[arg(long, value_name = "DIR", env = "LEVERET_DATA_DIR")]
    data_dir: Option<OsString>,
    /// Keep everything in memory; no file is touched, nothing outlives the broker
    #[arg(long, env = "LEVERET_IN_MEMORY", num_args = 0, default_missing_value = "true")]
    in_memory: Option<OsString>,
    /// Bytes of one file of the journal, from 1MiB to 1GiB; the first file is small [default: 64MiB]
    #[arg(long, value_name = "SIZE", env = "LEVERET_SEGMENT_SIZE", allow_negative_numbers = true)]
    segment_size: Option<OsString>,
    /// Memory for messages that wait, for example 256MiB, 1GB or 40% (of the machine's or, if that is less, of the control
    /// group's); at least 32MiB [default: 40%]
    #[arg(long, value_name = "SIZE", env = "LEVERET_MEMORY_LIMIT", allow_negative_numbers = true)]
    memory_limit: Option<OsString>,
    /// Bytes that must be free where the data folder is, for example 50MB or 1GiB; with less, publishers wait
    /// [default: 50MB]
    #[arg(long, value_name = "SIZE", env = "LEVERET_DISK_FREE_LIMIT", allow_negative_numbers = true)]
    disk_free_limit: Option<OsString>,
    /// An address to listen on; may be given several times, or several separated by commas
    /// [default: both loopback addresses]
    #[arg(long, value_name = "ADDR", env = "LEVERET_BIND")]
    bind: Vec<OsString>,
    /// The port for AMQP; 0 picks a free one [default: 5672]
    #[arg(long, value_name = "N", env = "LEVERET_AMQP_PORT", allow_negative_numbers = true)]
    pub(crate) amqp_port: Option<OsString>,
    /// The port for the management API; nothing listens there yet [default: 15672]
    #[arg(long, value_name = "N", env = "LEVERET_MANAGEMENT_PORT", allow_negative_numbers = true)]
    management_port: Option<OsString>,
    /// The name of the first user, who may do everything; a data folder that has had users keeps those [default: guest]
    #[arg(long, value_name = "NAME", env = "LEVERET_DEFAULT_USER")]
    default_user: Option<OsString>,
    /// The password of the first user; others see what is typed here, so better set the variable, or name a file in one that ends with `_FILE`
    /// [default: guest]
    #[arg(long, value_name = "PASSWORD", env = "LEVERET_DEFAULT_PASS", hide_env_values = true)]
    default_pass: Option<OsString>,
    /// The virtual host of the first user [default: /]
    #[arg(long, value_name = "NAME", env = "LEVERET_DEFAULT_VHOST")]
    default_vhost: Option<OsString>,
    /// The least level that is logged, to standard error: none, error, warning, info or debug [default: info]
    #[arg(long, value_name = "LEVEL", env = "LEVERET_LOG_LEVEL")]
    log_level: Option<OsString>,
    /// A setting, for example heartbeat=30 (--help lists all keys); may be given several times, in the variable separated
    /// by commas
    #[arg(long, value_name = "KEY=VALUE", env = "LEVERET_SET")]
    set: Vec<String>,
    /// A file of definitions to begin with, in RabbitMQ's JSON: users, virtual hosts, permissions, policies, queues, exchanges and
    /// bindings. What exists stays; a file with a fault is refused as a whole
    #[arg(long, value_name = "FILE", env = "LEVERET_DEFINITIONS")]
    definitions: Option<OsString>,
    /// A TOML file with the same settings, one `key = value` a line; variables and options win over it
    #[arg(long, value_name = "FILE", env = "LEVERET_CONFIG")]
    config: Option<PathBuf>,
}

impl Serve {
    /// What options and variables set.
    fn assignments(&self, matches: &ArgMatches) -> Result<Vec<Assignment>, ConfigurationError> {
        let is_typed = |option: &str| matches.value_source(option) == Some(ValueSource::CommandLine);
        let bind = (!self.bind.is_empty()).then(|| self.bind.join(OsStr::new(",")));
        let options = [
            ("data_dir", &self.data_dir),
            ("in_memory", &self.in_memory),
            ("segment_size", &self.segment_size),
            ("memory_limit", &self.memory_limit),
            ("disk_free_limit", &self.disk_free_limit),
            ("bind", &bind),
            ("amqp_port", &self.amqp_port),
            ("management_port", &self.management_port),
            ("default_user", &self.default_user),
            ("default_pass", &self.default_pass),
            ("default_vhost", &self.default_vhost),
            ("definitions", &self.definitions),
            ("log_level", &self.log_level),
        ];
        let options = options.into_iter().filter_map(|(key, value)| {
            let origin = if is_typed(key) { Origin::Option } else { Origin::Variable };
            Some(Ok(Assignment::new(origin, key, value.as_ref()?)))
        });
        // What is typed does not hide the variable, which may set something else.
        let variable = env::var_os("LEVERET_SET").unwrap_or_default();
        let variable = variable.to_str().ok_or(ConfigurationError::NotUtf8)?;
        let variable = variable.split(',').map(str::trim).filter(|part| !part.is_empty());
        let variable = variable.map(|text| Assignment::parse(Origin::SetVariable, text));
        let typed = self.set.iter().filter(|_| is_typed("set"));
        let typed = typed.map(|text| Assignment::parse(Origin::Set, text));
        let others = configuration::from_environment(|name| env::var_os(name))?.into_iter().map(Ok);
        configuration::gather(options.chain(others).chain(variable).chain(typed))
    }
}

pub(crate) fn run(serve: &Serve, matches: &ArgMatches) -> ExitCode {
    let assignments = serve.assignments(matches);
    let configuration = assignments.and_then(|given| Configuration::new(serve.config.as_deref(), given));
    let Configuration { server: mut config, log_level, definitions, .. } = match configuration {
        Ok(configuration) => configuration,
        Err(error) => return fail(BAD_OPTION, &error),
    };
    let definitions = match definitions.as_deref().map(File::read).transpose() {
        Ok(definitions) => definitions,
        Err(error) => return fail(BAD_OPTION, &error),
    };
    // Before the log starts a thread.
    heap::set_up();
    config.give_back_memory = heap::give_back;
    let (level, is_terminal) = (LevelFilter::from(log_level), io::stderr().is_terminal());
    // On a terminal, a bar is in the place of the lines that say how far a recovery is.
    let bar = (is_terminal && level >= LevelFilter::INFO).then(Bar::new);
    let line_level = if bar.is_some() { LevelFilter::OFF } else { level };
    let log = Log::new(Above(bar.clone()));
    let lines = Targets::new().with_default(level).with_target(PROGRESS_LINE, line_level);
    let lines = lines.with_target(PROGRESS, LevelFilter::OFF);
    let layer = fmt::layer().with_writer(log.lines.clone()).with_target(false).with_ansi(is_terminal);
    let bar = bar.map(|bar| bar.with_filter(Targets::new().with_target(PROGRESS, LevelFilter::TRACE)));
    tracing_subscriber::registry().with(layer.with_filter(lines)).with(bar).init();
    raise_file_limit();
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return fail(START_FAILED, &format!("cannot start the threads of the broker: {error}")),
    };
    runtime.block_on(serve_until_stopped(config, definitions, &log))
}

async fn serve_until_stopped(mut config: ServerConfig, definitions: Option<File>, log: &Log) -> ExitCode {
    if let Some(definitions) = &definitions {
        config.beginning = definitions.beginning();
    }
    let storage = config.storage.clone();
    let is_remote = config.bind.iter().any(|address| !address.is_loopback());
    let (loopback_users, first_user) = (config.loopback_users.clone(), config.first_user.name.clone());
    let prepared = match Server::prepare(config).await {
        Ok(prepared) => prepared,
        Err(error) => {
            let code = match &error {
                StartError::DataDir(DataDirError::InUse { .. }) => DATA_DIR_IN_USE,
                StartError::Bind(BindError::Overlap(..)) => BAD_OPTION,
                StartError::DataDir(DataDirError::Unusable { .. } | DataDirError::Journal(_))
                | StartError::Bind(_)
                | StartError::Name { .. }
                | StartError::Node(_)
                | StartError::Thread(_) => START_FAILED,
            };
            let is_unusable = matches!(error, StartError::DataDir(DataDirError::Unusable { .. }));
            let advice = if is_unusable { ", or run with --in-memory" } else { "" };
            return fail(code, &format!("{error}{advice}"));
        }
    };
    let folder = match &storage {
        Storage::InMemory => None,
        Storage::Folder(folder) => match DataFolder::open(folder) {
            Ok(folder) => Some(folder),
            Err(error) => {
                prepared.shutdown().await;
                return fail(START_FAILED, &format!("cannot open the data folder {}: {error}", folder.display()));
            }
        },
    };
    if let Some(definitions) = definitions {
        let admin = prepared.admin();
        let loaded = tokio::select! {
            biased;
            // What was to be loaded waits for the disk.
            reason = prepared.journal_failed() => {
                prepared.abandon().await;
                return journal_failed(&reason, folder.as_ref());
            }
            loaded = definitions.load(&admin) => loaded,
        };
        if let Err(error) = loaded {
            prepared.shutdown().await;
            return fail(if error.is_at_fault() { BAD_OPTION } else { START_FAILED }, &error);
        }
    }
    let server = prepared.open();
    let is_local = |user: &UserName| loopback_users.iter().any(|name| name == user.as_str());
    if is_remote && server.node().users().keys().all(is_local) {
        tracing::warn!(
            "all users may log in from this machine only: other machines are refused; --default-user makes another one \
             in a new data folder"
        );
    }
    if is_remote && server.node().log_in(&first_user, b"guest", node::Origin::Remote).is_ok() {
        tracing::warn!(
            "user '{first_user}' has the password guest, and may log in from other machines: set --default-pass"
        );
    }
    let stop = match StopSignals::new() {
        Ok(stop) => stop,
        Err(error) => return fail(START_FAILED, &format!("cannot listen for SIGTERM and SIGINT: {error}")),
    };
    let control = control_socket(&server, &storage);
    // What was logged on the way here is read before that, too. This thread serves no connection.
    log.wait();
    announce(&server);
    tokio::select! {
        signal = stop.wait() => {
            tracing::info!("{signal}: closing connections");
            // Before the folder may be somebody else's.
            drop(control);
            server.shutdown().await;
            ExitCode::SUCCESS
        }
        reason = server.journal_failed() => {
            drop(control);
            server.abandon().await;
            journal_failed(&reason, folder.as_ref())
        }
    }
}

/// Said also where nobody asked for a log.
fn journal_failed(reason: &str, data: Option<&DataFolder>) -> ExitCode {
    let name = data.map(|data| data.folder().display());
    let rest = match (name, data.map(DataFolder::find)) {
        (Some(folder), Some(Found::Nothing)) => format!(
            "the data folder {folder} is gone, and with it what was confirmed: bring it back before the next start"
        ),
        (Some(folder), Some(Found::Another)) => format!(
            "{folder} is not the data folder any more that it was at the start, and what was confirmed was in that one: bring it back \
             before the next start"
        ),
        (_, Some(Found::Same) | None) | (None, Some(_)) => {
            "what was confirmed is on disk: mend the disk and start again".to_owned()
        }
    };
    fail(JOURNAL_FAILED, &format!("{reason}; {rest}"))
}

/// Where `leveret status`, `list` and their like find the broker. It runs without, too.
fn control_socket(server: &ServerHandle, storage: &Storage) -> Option<ControlSocket> {
    let Storage::Folder(folder) = storage else { return None };
    match ControlSocket::bind(folder, server.admin()) {
        Ok(socket) => Some(socket),
        Err(error) => {
            let socket = folder.join(CONTROL_SOCKET);
            tracing::warn!(
                "no control socket {}: {error}; leveret status, list and their like cannot reach this broker",
                socket.display()
            );
            None
        }
    }
}

/// Says that connections are accepted, in the words that people and container tools wait for.
fn announce(server: &ServerHandle) {
    let url = server.url();
    let mut text = format!("leveret {} ready: {url}\n", env!("CARGO_PKG_VERSION"));
    let mut stdout = io::stdout();
    if stdout.is_terminal() {
        // As long as that is so.
        if server.node().log_in("guest", b"guest", node::Origin::Loopback).is_ok() {
            text.push_str("Log in as guest, password guest, from this machine. Try, in another terminal:\n");
        } else {
            text.push_str("Try, in another terminal:\n");
        }
        let program = env::args().next().unwrap_or_else(|| "leveret".into());
        let port = server.addresses().first().map_or(AMQP_PORT, std::net::SocketAddr::port);
        let broker = if port == AMQP_PORT { String::new() } else { format!(" --url {url}") };
        for command in ["declare queue hello", "publish hello 'Hello, World!'", "get hello"] {
            let _ = writeln!(text, "  {} {command}{broker}", shell_words::quote(&program));
        }
        text.push_str("Ctrl-C stops the broker.\n");
    }
    // Whoever closed our output does not want to read it.
    let _ = stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush());
    let _ = writeln!(io::stderr(), "Server startup complete; 0 plugins started.");
}

fn fail(code: u8, error: &dyn std::fmt::Display) -> ExitCode {
    let _ = writeln!(io::stderr(), "error: {error}");
    ExitCode::from(code)
}

/// Every connection is an open file; the soft limit is often 1024.
fn raise_file_limit() {
    #[cfg(unix)]
    {
        use rustix::process::{Resource, getrlimit, setrlimit};
        let mut limit = getrlimit(Resource::Nofile);
        if limit.current != limit.maximum {
            limit.current = limit.maximum;
            if let Err(error) = setrlimit(Resource::Nofile, limit) {
                tracing::debug!(%error, "the limit of open files stays as it is");
            }
        }
    }
}

/// The signals that stop the broker; and SIGHUP, which does not. RabbitMQ: it is ignored. But a terminal that is closed stops
/// what was started in it.
struct StopSignals {
    terminate: Signal,
    interrupt: Signal,
    hang_up: Signal,
    has_terminal: bool,
}

impl StopSignals {
    fn new() -> io::Result<Self> {
        Ok(StopSignals {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            hang_up: signal(SignalKind::hangup())?,
            has_terminal: io::stdin().is_terminal(),
        })
    }

    async fn wait(mut self) -> &'static str {
        loop {
            tokio::select! {
                _ = self.terminate.recv() => return "SIGTERM",
                _ = self.interrupt.recv() => return "SIGINT",
                _ = self.hang_up.recv() => {
                    if self.has_terminal {
                        return "SIGHUP";
                    }
                    tracing::info!("SIGHUP is ignored: nothing is read again while the broker runs; SIGTERM stops it");
                }
            }
        }
    }
}
