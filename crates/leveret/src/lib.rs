//! The commands of the `leveret` binary.

mod check;
mod commands;
mod configuration;
mod control;
mod data_folder;
mod definitions;
mod heap;
mod log;
mod progress;
mod serve;
mod whole_file;

use std::ffi::{OsStr, OsString};
use std::process::ExitCode;

use clap::{ArgMatches, Args, CommandFactory, FromArgMatches, Parser, Subcommand};

/// Leveret, a message broker that every RabbitMQ client can talk to.
///
/// Without a command it starts the broker, as `leveret serve` does. `status`, `list`, `explain`, `export`, `add`, `set`, `clear`,
/// `close` and `delete user` or `vhost` reach a broker on this machine through its data folder. The other commands talk to a running broker over AMQP 0-9-1: Leveret, or RabbitMQ.
#[derive(Debug, Parser)]
#[command(name = "leveret", version, args_conflicts_with_subcommands = true)]
struct Cli {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    serve: serve::Serve,
}

#[derive(Debug, Subcommand)]
enum Command {
    Serve(Box<serve::Serve>),
    Check(check::Check),
    #[command(flatten)]
    Control(control::Command),
    #[command(flatten)]
    Client(commands::Command),
}

/// The command line, without those variables that say nothing: none of the broker's if another command was given, and none
/// that is set to nothing.
fn command_line(first: Option<&OsStr>) -> clap::Command {
    let command = without_empty_variables(Cli::command());
    match first.and_then(|first| command.find_subcommand(first)) {
        Some(_) => command.mut_args(|arg| arg.env(None)),
        None => command,
    }
}

fn without_empty_variables(command: clap::Command) -> clap::Command {
    let is_empty = |variable: &OsStr| std::env::var_os(variable).is_some_and(|value| value.is_empty());
    let command = command.mut_args(|arg| if arg.get_env().is_some_and(is_empty) { arg.env(None) } else { arg });
    command.mut_subcommands(without_empty_variables)
}

/// A command line that starts the broker, if it is a good one. The options of all other commands would take time and memory, and
/// a broker has no use for them.
fn serve_command_line(arguments: &[OsString]) -> Option<(serve::Serve, ArgMatches)> {
    let is_serve = |first: &OsString| first == "serve";
    let is_option = |first: &OsString| first.as_encoded_bytes().starts_with(b"-");
    let first = arguments.get(1);
    if !first.is_none_or(|first| is_serve(first) || is_option(first)) {
        return None;
    }
    let command = clap::Command::new("leveret").disable_help_flag(true).disable_version_flag(true);
    let command = without_empty_variables(serve::Serve::augment_args(command));
    let options = arguments.iter().skip(usize::from(first.is_some_and(is_serve)));
    // What is wrong with any other, the whole command line says, with all commands in its help.
    let matches = command.try_get_matches_from(options).ok()?;
    Some((serve::Serve::from_arg_matches(&matches).ok()?, matches))
}

/// Does what the command line says.
pub fn main() -> ExitCode {
    let arguments: Vec<_> = std::env::args_os().collect();
    if let Some((serve, matches)) = serve_command_line(&arguments) {
        return serve::run(&serve, &matches);
    }
    let matches = command_line(arguments.get(1).map(OsString::as_os_str)).get_matches();
    let cli = Cli::from_arg_matches(&matches).unwrap_or_else(|error| error.exit());
    match cli.command {
        None => serve::run(&cli.serve, &matches),
        Some(Command::Serve(serve)) => serve::run(&serve, matches.subcommand().map_or(&matches, |(_, of)| of)),
        Some(Command::Check(check)) => check::run(&check),
        Some(Command::Control(command)) => control::run(command),
        Some(Command::Client(command)) => commands::run(command, Cli::command()),
    }
}

/// What fuzzing reaches and nobody else needs.
#[doc(hidden)]
pub mod fuzzing {
    pub use crate::configuration::is_configuration;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn only_a_good_command_line_of_a_broker_is_read_without_the_other_commands() {
        let read = |arguments: &[&str]| {
            let arguments: Vec<_> =
                std::iter::once("leveret").chain(arguments.iter().copied()).map(OsString::from).collect();
            serve_command_line(&arguments).map(|(serve, _)| serve.amqp_port)
        };
        assert_eq!(read(&[]), Some(None));
        assert_eq!(read(&["--amqp-port", "0"]), Some(Some("0".into())));
        assert_eq!(read(&["serve", "--in-memory", "--amqp-port=0"]), Some(Some("0".into())));
        for others in [
            &["status"][..],
            &["--help"],
            &["serve", "--help"],
            &["--version"],
            &["--no-such-option"],
            &["serve", "x"],
        ] {
            assert_eq!(read(others), None, "{others:?}");
        }
    }

    #[test]
    fn no_command_means_serve() {
        let cli = Cli::parse_from(["leveret", "--amqp-port", "0"]);
        assert!(cli.command.is_none());
        assert_eq!(cli.serve.amqp_port, Some("0".into()));
    }
}
