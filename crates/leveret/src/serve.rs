//! `leveret serve`: the broker as a process.
//!
//! Exit codes: 0 stopped in good order, 1 could not start, 2 a bad option, 73 the data folder is in use, 74 the journal
//! could not be written.

use std::fmt::Write as _;
use std::io::{self, IsTerminal, Write};
use std::net::IpAddr;
use std::path::PathBuf;
use std::process::ExitCode;

use bytesize::ByteSize;
use clap::parser::ValueSource;
use clap::{ArgMatches, ValueEnum};
use leveret_server::{
    BindError, DataDirError, MemoryLimit, PROGRESS, PROGRESS_LINE, SEGMENT_BYTES_DEFAULT, SEGMENT_BYTES_MAX,
    SEGMENT_BYTES_MIN, Server, ServerConfig, ServerHandle, StartError, Storage,
};
use tracing_appender::non_blocking::NonBlockingBuilder;
use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{Layer, fmt};

use crate::configuration;
use crate::heap;
use crate::progress::{Above, Bar};

const START_FAILED: u8 = 1;
const BAD_OPTION: u8 = 2;
/// `EX_CANTCREAT` of sysexits.h.
const DATA_DIR_IN_USE: u8 = 73;

/// `EX_IOERR` of sysexits.h.
const JOURNAL_FAILED: u8 = 74;

/// Log lines that wait to be written; room for them is taken at the start.
const LOG_LINES_MAX: usize = 4096;

/// The port that AMQP 0-9-1 has at IANA.
const AMQP_PORT: u16 = 5672;

/// Starts the broker.
///
/// Example: leveret serve --in-memory --amqp-port 0
#[derive(Debug, clap::Args)]
pub(crate) struct Serve {
    /// The folder where durable queues, exchanges and messages are kept, made if it is missing and locked while the
    /// broker runs [default: ./leveret-data]
    #[arg(long, value_name = "DIR", env = "LEVERET_DATA_DIR")]
    pub(crate) data_dir: Option<PathBuf>,
    /// Keep everything in memory; no file is touched, nothing outlives the broker
    #[arg(long, env = "LEVERET_IN_MEMORY", value_parser = is_set)]
    pub(crate) in_memory: bool,
    /// Bytes of one file of the journal, from 1048576 (1 MiB); the first file is small
    #[arg(long, value_name = "BYTES", env = "LEVERET_SEGMENT_SIZE", default_value_t = SEGMENT_BYTES_DEFAULT,
          value_parser = clap::value_parser!(u64).range(SEGMENT_BYTES_MIN..=SEGMENT_BYTES_MAX))]
    pub(crate) segment_size: u64,
    /// Memory the broker may use, for example 256MiB, 1GB or 40% (of the machine's or, if that is less, of the control
    /// group's); at least 32MiB
    #[arg(long, value_name = "SIZE", env = "LEVERET_MEMORY_LIMIT", default_value = "40%", value_parser = memory_limit)]
    pub(crate) memory_limit: MemoryLimit,
    /// Bytes that must be free where the data folder is, for example 50MB or 1GiB; with less, publishers wait
    #[arg(long, value_name = "SIZE", env = "LEVERET_DISK_FREE_LIMIT", default_value = "50MB", value_parser = disk_free_limit)]
    pub(crate) disk_free_limit: u64,
    /// An address to listen on; may be given several times, in the variable separated by commas
    /// [default: both loopback addresses]
    #[arg(long, value_name = "ADDR", env = "LEVERET_BIND")]
    pub(crate) bind: Vec<String>,
    /// The port for AMQP; 0 picks a free one [default: 5672]
    #[arg(long, value_name = "N", env = "LEVERET_AMQP_PORT")]
    pub(crate) amqp_port: Option<u16>,
    /// The port for the management API; nothing listens there yet [default: 15672]
    #[arg(long, value_name = "N", env = "LEVERET_MANAGEMENT_PORT")]
    pub(crate) management_port: Option<u16>,
    /// The least level that is logged, to standard error
    #[arg(long, value_name = "LEVEL", env = "LEVERET_LOG_LEVEL", value_enum, default_value_t = LogLevel::Info)]
    pub(crate) log_level: LogLevel,
    /// A setting by RabbitMQ's name, for example heartbeat=30; may be given several times, in the variable separated
    /// by commas
    #[arg(long, value_name = "KEY=VALUE", env = "LEVERET_SET")]
    pub(crate) set: Vec<String>,
    /// A TOML file with settings, one `key = value` a line
    #[arg(long, value_name = "FILE", env = "LEVERET_CONFIG")]
    pub(crate) config: Option<PathBuf>,
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

pub(crate) fn run(serve: &Serve, matches: &ArgMatches) -> ExitCode {
    let config = match server_config(serve, matches) {
        Ok(config) => config,
        Err(error) => return fail(BAD_OPTION, &error),
    };
    // Before the log starts a thread.
    heap::share_one();
    // A log that nobody reads must not stop the broker: lines that find no room are dropped.
    let log = NonBlockingBuilder::default().buffered_lines_limit(LOG_LINES_MAX);
    let (level, is_terminal) = (LevelFilter::from(serve.log_level), io::stderr().is_terminal());
    // On a terminal, a bar is in the place of the lines that say how far a recovery is.
    let bar = (is_terminal && level >= LevelFilter::INFO).then(Bar::new);
    let line_level = if bar.is_some() { LevelFilter::OFF } else { level };
    let (log, _written_at_the_end) = log.finish(Above(bar.clone()));
    let lines = Targets::new().with_default(level).with_target(PROGRESS_LINE, line_level);
    let lines = lines.with_target(PROGRESS, LevelFilter::OFF);
    let log = fmt::layer().with_writer(log).with_target(false).with_ansi(is_terminal).with_filter(lines);
    let bar = bar.map(|bar| bar.with_filter(Targets::new().with_target(PROGRESS, LevelFilter::TRACE)));
    tracing_subscriber::registry().with(log).with(bar).init();
    raise_file_limit();
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return fail(START_FAILED, &format!("cannot start the threads of the broker: {error}")),
    };
    runtime.block_on(serve_until_stopped(config))
}

async fn serve_until_stopped(config: ServerConfig) -> ExitCode {
    let is_remote = config.bind.iter().any(|address| !address.is_loopback());
    let server = match Server::start(config).await {
        Ok(server) => server,
        Err(error) => {
            let code = match &error {
                StartError::DataDir(DataDirError::InUse { .. }) => DATA_DIR_IN_USE,
                StartError::Bind(BindError::Overlap(..)) => BAD_OPTION,
                StartError::DataDir(DataDirError::Unusable { .. } | DataDirError::Journal(_))
                | StartError::Bind(_)
                | StartError::Thread(_) => START_FAILED,
            };
            let is_unusable = matches!(error, StartError::DataDir(DataDirError::Unusable { .. }));
            let advice = if is_unusable { ", or run with --in-memory" } else { "" };
            return fail(code, &format!("{error}{advice}"));
        }
    };
    if is_remote {
        tracing::warn!("the only user, guest, may log in from this machine only: other machines are refused");
    }
    let stop = match StopSignals::new() {
        Ok(stop) => stop,
        Err(error) => return fail(START_FAILED, &format!("cannot listen for SIGTERM and SIGINT: {error}")),
    };
    announce(&server);
    tokio::select! {
        signal = stop.wait() => {
            tracing::info!("{signal}: closing connections");
            server.shutdown().await;
            ExitCode::SUCCESS
        }
        reason = server.journal_failed() => {
            server.abandon().await;
            // Also where nobody asked for a log.
            fail(JOURNAL_FAILED, &format!("{reason}; what was confirmed is on disk: mend the disk and start again"))
        }
    }
}

fn server_config(serve: &Serve, matches: &ArgMatches) -> Result<ServerConfig, String> {
    let assignments = list(&serve.set, matches, "set");
    let settings = configuration::settings(serve.config.as_deref(), &assignments).map_err(|e| e.to_string())?;
    let bind = list(&serve.bind, matches, "bind").iter().map(|text| address(text)).collect::<Result<_, _>>()?;
    let amqp_port = serve.amqp_port.unwrap_or(AMQP_PORT);
    if amqp_port != 0 && serve.management_port == Some(amqp_port) {
        return Err(format!("--amqp-port and --management-port are both {amqp_port}; choose two ports"));
    }
    Ok(ServerConfig {
        bind,
        amqp_port,
        storage: storage(serve, matches)?,
        segment_bytes: serve.segment_size,
        memory_limit: serve.memory_limit,
        disk_free_limit: serve.disk_free_limit,
        settings,
    })
}

/// The values of an option; what a variable holds is split at its commas.
fn list(values: &[String], matches: &ArgMatches, option: &str) -> Vec<String> {
    if matches.value_source(option) != Some(ValueSource::EnvVariable) {
        return values.to_vec();
    }
    let parts = values.iter().flat_map(|value| value.split(','));
    parts.map(str::trim).filter(|part| !part.is_empty()).map(str::to_owned).collect()
}

fn address(text: &str) -> Result<IpAddr, String> {
    text.parse().map_err(|_| format!("--bind takes an IP address such as 127.0.0.1 or ::1; '{text}' is none"))
}

/// An option on the command line wins over the variable of the other one.
fn storage(serve: &Serve, matches: &ArgMatches) -> Result<Storage, String> {
    let folder = serve.data_dir.clone().filter(|folder| !folder.as_os_str().is_empty());
    let is_typed = |option: &str| matches.value_source(option) == Some(ValueSource::CommandLine);
    match (serve.in_memory, folder) {
        (false, folder) => Ok(Storage::Folder(folder.unwrap_or_else(|| "leveret-data".into()))),
        (true, None) => Ok(Storage::InMemory),
        (true, Some(folder)) => match (is_typed("in_memory"), is_typed("data_dir")) {
            (true, false) => Ok(Storage::InMemory),
            (false, true) => Ok(Storage::Folder(folder)),
            _ => Err("--in-memory and --data-dir exclude each other; leave one out".into()),
        },
    }
}

/// Says that connections are accepted, in the words that people and container tools wait for.
fn announce(server: &ServerHandle) {
    let url = server.url();
    let mut text = format!("leveret {} ready: {url}\n", env!("CARGO_PKG_VERSION"));
    let mut stdout = io::stdout();
    if stdout.is_terminal() {
        text.push_str("Log in as guest, password guest, from this machine. Try, in another terminal:\n");
        let program = std::env::args().next().unwrap_or_else(|| "leveret".into());
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

/// The signals that stop the broker.
struct StopSignals {
    terminate: tokio::signal::unix::Signal,
    interrupt: tokio::signal::unix::Signal,
}

impl StopSignals {
    fn new() -> io::Result<Self> {
        use tokio::signal::unix::{SignalKind, signal};
        Ok(StopSignals { terminate: signal(SignalKind::terminate())?, interrupt: signal(SignalKind::interrupt())? })
    }

    async fn wait(mut self) -> &'static str {
        tokio::select! {
            _ = self.terminate.recv() => "SIGTERM",
            _ = self.interrupt.recv() => "SIGINT",
        }
    }
}

/// The variable of a flag.
fn is_set(text: &str) -> Result<bool, String> {
    match text {
        "1" | "true" => Ok(true),
        "0" | "false" => Ok(false),
        _ => Err("it is 1 or true, or 0 or false".to_owned()),
    }
}

/// A size with or without a unit.
fn disk_free_limit(text: &str) -> Result<u64, String> {
    let size = text.parse::<ByteSize>();
    size.map(|size| size.as_u64())
        .map_err(|_| "a size is a number with a unit, for example 50MB or 1GiB".to_owned())
}

/// A size with or without a unit, or a part of the memory there is.
fn memory_limit(text: &str) -> Result<MemoryLimit, String> {
    if let Some(percent) = text.strip_suffix('%') {
        return match percent.trim().parse() {
            Ok(percent @ 1..=100) => Ok(MemoryLimit::Percent(percent)),
            _ => Err("a part is from 1% to 100%".to_owned()),
        };
    }
    match text.parse::<ByteSize>() {
        Ok(size) if size >= ByteSize::mib(32) => Ok(MemoryLimit::Bytes(size.as_u64())),
        Ok(_) => Err("the broker needs at least 32MiB".to_owned()),
        Err(_) => Err("a size is a number with a unit, for example 256MiB or 1GB, or a part like 40%".to_owned()),
    }
}
