//! The commands that are plain AMQP clients.
//!
//! Owns: their options, what they print, their exit codes.
//! Must not know: the broker's inside.
//! Exit codes: 0 done, 1 refused by the broker or out of reach, 2 a bad option, 3 nothing to get, 130 ended by Ctrl-C
//! with nothing done.

pub(crate) mod arguments;
mod completions;
mod consume;
mod declare;
mod delete;
mod get;
mod interrupt;
mod output;
mod perf;
mod publish;
mod purge;

use std::io;
use std::process::ExitCode;

use clap::Subcommand;
use leveret_client::{Connection, Url, UrlError};

/// The exit code of a bad option.
const USAGE: u8 = 2;

/// What to do.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    Publish(publish::Publish),
    Consume(consume::Consume),
    Get(get::Get),
    #[command(subcommand)]
    Declare(declare::Declare),
    #[command(subcommand)]
    Delete(delete::Delete),
    Purge(purge::Purge),
    #[command(subcommand)]
    Perf(perf::Perf),
    Completions(completions::Completions),
}

/// Where the broker is.
#[derive(Debug, clap::Args)]
pub(crate) struct BrokerUrl {
    /// The broker, as amqp://user:password@host:port/vhost, where %2F stands for the virtual host "/".
    #[arg(
        long,
        env = "LEVERET_URL",
        hide_env_values = true,
        default_value = "amqp://guest:guest@localhost:5672/%2F"
    )]
    url: String,
}

impl BrokerUrl {
    fn connect(&self) -> Result<Connection, Failure> {
        Ok(Connection::open(&self.parsed()?)?)
    }

    /// Parsed here and not by clap, which would show the password with its complaint.
    fn parsed(&self) -> Result<Url, Failure> {
        self.url.parse().map_err(Failure::Url)
    }
}

/// Why a command did not do what it should, in the one line that standard error shows.
#[derive(Debug, thiserror::Error)]
enum Failure {
    #[error("--url: {0}")]
    Url(UrlError),
    #[error("{0}")]
    Usage(String),
    #[error("{}", advised(.error, .error.advice()))]
    Broker {
        #[from]
        error: leveret_client::Error,
    },
    #[error("no queue '{queue}'; create it with: leveret declare queue {}", words(&[queue]))]
    NoQueue { queue: String },
    #[error(
        "no queue is bound to exchange '{exchange}' for routing key '{routing_key}'; bind one with: leveret declare binding {}",
        words(&[exchange, "QUEUE", routing_key])
    )]
    Unroutable { exchange: String, routing_key: String },
    #[error(
        "the broker did not take {count} of the messages; check the length limit of the queue, then publish them again"
    )]
    Refused { count: u64 },
    #[error(
        "the broker ended the consumer of queue '{queue}', most likely because the queue was deleted; declare it again"
    )]
    Cancelled { queue: String },
    #[error("queue '{queue}' is empty")]
    Empty { queue: String },
    #[error("cannot read the body from standard input: {0}")]
    Input(io::Error),
    #[error("cannot write to standard output: {0}")]
    Output(io::Error),
    #[error("cannot listen for Ctrl-C: {0}")]
    Signals(io::Error),
    #[error("{}", advised(.error, .error.advice()))]
    Load {
        #[from]
        error: leveret_perf::Failure,
    },
    #[error("{0}")]
    Verification(String),
    #[error("cannot write '{path}': {error}")]
    Page { path: String, error: io::Error },
}

/// Names as the shell takes them, behind a command that we offer: what is in them may come from anywhere.
pub(crate) fn words(names: &[&str]) -> String {
    let end_of_options = names.iter().any(|name| name.starts_with('-')).then_some("--");
    shell_words::join(end_of_options.iter().chain(names))
}

fn advised(error: &dyn std::error::Error, advice: Option<&str>) -> String {
    let what = error.to_string();
    match advice {
        Some(advice) => format!("{}; {advice}", what.trim_end_matches('.')),
        None => what,
    }
}

impl Failure {
    /// As standard error shows it, without a prefix.
    fn to_line(&self) -> String {
        one_line(&self.to_string())
    }

    /// `None` for what is no failure: whoever read our output has seen enough.
    fn exit_code(&self) -> Option<u8> {
        match self {
            Failure::Output(error) if error.kind() == io::ErrorKind::BrokenPipe => None,
            Failure::Url(_) | Failure::Usage(_) | Failure::Load { error: leveret_perf::Failure::Options(_) } => {
                Some(USAGE)
            }
            Failure::Load { error: leveret_perf::Failure::Interrupted } => Some(interrupt::EXIT_INTERRUPTED),
            Failure::Empty { .. } => Some(3),
            Failure::Broker { .. }
            | Failure::NoQueue { .. }
            | Failure::Unroutable { .. }
            | Failure::Refused { .. }
            | Failure::Cancelled { .. }
            | Failure::Input(_)
            | Failure::Output(_)
            | Failure::Signals(_)
            | Failure::Load { .. }
            | Failure::Verification(_)
            | Failure::Page { .. } => Some(1),
        }
    }
}

/// Runs a command and says on standard error what went wrong. `cli` is the whole command line, for completions.
pub(crate) fn run(command: Command, cli: clap::Command) -> ExitCode {
    let result = match command {
        Command::Publish(publish) => publish.run(),
        Command::Consume(consume) => consume.run(),
        Command::Get(get) => get.run(),
        Command::Declare(declare) => declare.run(),
        Command::Delete(delete::Delete::InVhost(delete)) => delete.run(),
        // Over the control socket.
        Command::Delete(delete::Delete::User(delete)) => return delete.run(),
        Command::Delete(delete::Delete::Vhost(delete)) => return delete.run(),
        Command::Purge(purge) => purge.run(),
        Command::Perf(perf) => perf.run(),
        Command::Completions(completions) => completions.run(cli),
    };
    let Err(failure) = result else {
        return ExitCode::SUCCESS;
    };
    let Some(exit_code) = failure.exit_code() else {
        return ExitCode::SUCCESS;
    };
    // An empty queue is an answer, not a mishap.
    let prefix = if matches!(failure, Failure::Empty { .. }) { "" } else { "error: " };
    eprintln!("{prefix}{}", failure.to_line());
    ExitCode::from(exit_code)
}

/// The broker's words may hold anything; a terminal gets neither line breaks nor escape sequences from them, nor what makes it show
/// the rest from right to left.
pub(crate) fn one_line(text: &str) -> String {
    text.chars().map(|c| if c.is_control() || turns_text(c) { ' ' } else { c }).collect()
}

/// Unicode: the explicit formatting characters of the bidirectional algorithm.
fn turns_text(c: char) -> bool {
    matches!(c, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::{CommandFactory, Parser};

    #[derive(Parser)]
    struct Cli {
        #[command(subcommand)]
        command: Command,
    }

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn every_command_has_a_help_with_an_example() {
        fn check(command: &mut clap::Command) {
            let help = command.render_long_help().to_string();
            assert!(command.has_subcommands() || help.contains("Example"), "{help}");
            command.get_subcommands_mut().filter(|inner| inner.get_name() != "help").for_each(check);
        }
        let mut command = Cli::command();
        command.build();
        command.get_subcommands_mut().filter(|inner| inner.get_name() != "help").for_each(check);
    }

    #[test]
    fn a_url_that_cannot_be_used_is_a_usage_error_without_its_password() {
        let Command::Purge(purge) =
            Cli::parse_from(["leveret", "purge", "q", "--url", "amqps://me:secret@host"]).command
        else {
            panic!("not purge")
        };
        let failure = purge.run().unwrap_err();
        assert_eq!(failure.exit_code(), Some(2));
        assert!(failure.to_string().contains("TLS"), "{failure}");
        assert!(!failure.to_string().contains("secret"), "{failure}");
    }

    #[test]
    fn a_failure_is_one_line_without_escape_sequences() {
        assert_eq!(one_line("a\nb\u{1b}[31m"), "a b [31m");
        assert_eq!(one_line("a\u{202e}b\u{2066}c"), "a b c");
    }

    #[test]
    fn a_closed_standard_output_is_no_failure() {
        let closed = io::Error::from(io::ErrorKind::BrokenPipe);
        assert_eq!(Failure::Output(closed).exit_code(), None);
        assert_eq!(Failure::Output(io::Error::from(io::ErrorKind::StorageFull)).exit_code(), Some(1));
    }
}
