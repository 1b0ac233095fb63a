//! The commands that talk to a broker on this machine, through the control socket in its data folder.
//!
//! Owns: their options, what they print, their exit codes.
//! Must not know: what the broker shows; that is JSON here.
//! Exit codes: 0 done, 1 refused by the broker or out of reach, 2 a bad option.

mod change;
mod close;
mod explain;
mod export;
mod filter;
mod list;
mod status;
mod table;

use std::io;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Subcommand, ValueEnum};
use leveret_management::{Client, ClientError, StatusCode};
use serde_json::Value;

pub(crate) use self::change::{DeleteUser, DeleteVhost};
use crate::commands::{one_line, words};
use crate::configuration::DATA_DIR;

/// What to do.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    Status(status::Status),
    List(list::List),
    #[command(subcommand)]
    Add(change::Add),
    #[command(subcommand)]
    Set(change::Set),
    #[command(subcommand)]
    Clear(change::Clear),
    #[command(subcommand)]
    Close(close::Close),
    Export(export::Export),
    Explain(explain::Explain),
}

/// How one answer is printed. A list has others.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Format {
    /// For people.
    Text,
    /// One JSON object on one line.
    Json,
}

/// Which broker.
#[derive(Debug, clap::Args)]
struct DataDir {
    /// The data folder of the broker, where its control socket is
    #[arg(long, value_name = "DIR", env = "LEVERET_DATA_DIR", default_value = DATA_DIR)]
    data_dir: PathBuf,
}

impl DataDir {
    fn client(&self) -> Result<Broker, Failure> {
        Ok(Broker { client: Client::new(&self.data_dir).map_err(Failure::Runtime)? })
    }
}

/// The broker at the other end of the control socket.
struct Broker {
    client: Client,
}

impl Broker {
    /// The JSON at a path; none if there is nothing of that name.
    fn get(&self, path: &str) -> Result<Option<Value>, Failure> {
        match self.client.get(path)? {
            (StatusCode::OK, body) => serde_json::from_slice(&body).map(Some).map_err(Failure::NotJson),
            (StatusCode::NOT_FOUND, _) => Ok(None),
            (status, body) => Err(refusal(status, body.as_ref())),
        }
    }

    /// Deletes what is at a path; false if there is nothing of that name.
    fn delete(&self, path: &str, reason: Option<&str>) -> Result<bool, Failure> {
        done(self.client.delete(path, reason)?)
    }

    /// The same with JSON that says more.
    fn delete_with(&self, path: &str, body: &Value) -> Result<bool, Failure> {
        done(self.client.delete_with(path, body.to_string())?)
    }

    /// Which of the two is not there.
    fn missing(&self, user: String, vhost: String) -> Failure {
        match self.get(&format!("/api/users/{}", encoded(&user))) {
            Ok(None) => Failure::NoUser(user),
            Ok(Some(_)) => Failure::NoVhost(vhost),
            Err(failure) => failure,
        }
    }

    /// Puts JSON at a path; false if what it belongs to is not there.
    fn put(&self, path: &str, body: &Value) -> Result<bool, Failure> {
        done(self.client.put(path, body.to_string())?)
    }
}

/// Whether it is done; false if there is nothing of that name.
fn done((status, body): (StatusCode, impl AsRef<[u8]>)) -> Result<bool, Failure> {
    match status {
        StatusCode::CREATED | StatusCode::NO_CONTENT => Ok(true),
        StatusCode::NOT_FOUND => Ok(false),
        _ => Err(refusal(status, body.as_ref())),
    }
}

/// In the words of the broker, if it has any.
fn refusal(status: StatusCode, body: &[u8]) -> Failure {
    let said: Option<Value> = serde_json::from_slice(body).ok();
    let reason = said.as_ref().and_then(|said| said["reason"].as_str());
    reason.map_or(Failure::Status(status), |reason| Failure::Refused(reason.to_owned()))
}

/// Why a command did not do what it should, in the one line that standard error shows.
#[derive(Debug, thiserror::Error)]
enum Failure {
    #[error("{}", with_advice(.0))]
    Broker(#[from] ClientError),
    #[error("cannot begin to talk to the broker: {0}")]
    Runtime(io::Error),
    #[error("the broker refused that: {0}")]
    Status(StatusCode),
    #[error("what the broker says cannot be read: {0}")]
    NotJson(serde_json::Error),
    #[error("this broker has no such list; it may be of another version")]
    NoSuchList,
    #[error("{0}")]
    Refused(String),
    #[error("no virtual host '{0}'; add it with: leveret add vhost {words}", words = words(&[.0]))]
    NoVhost(String),
    #[error("no user '{0}'; add one with: leveret add user {words}", words = words(&[.0]))]
    NoUser(String),
    #[error("no {0} '{1}'; all are listed by: leveret list {0}s")]
    NothingToDelete(&'static str, String),
    #[error("there is no policy '{0}' in virtual host '{1}'")]
    NoPolicy(String, String),
    #[error("there is no parameter '{0}'")]
    NoParameter(String),
    #[error("{0} '{1}' exists; change it with: leveret set {0} {words}", words = words(&[.1]))]
    Exists(&'static str, String),
    #[error("cannot read the password: {0}")]
    Password(io::Error),
    #[error("no connection '{0}'; all names are listed by: leveret list connections")]
    NoConnection(String),
    #[error("{0}")]
    Usage(String),
    #[error("cannot write {file}: {1}", file = .0.display())]
    File(PathBuf, io::Error),
    #[error("cannot write to standard output: {0}")]
    Output(#[from] io::Error),
}

fn with_advice(error: &ClientError) -> String {
    match error {
        ClientError::NotRunning(folder) => {
            let folder = folder.display().to_string();
            format!(
                "{error}: start one with leveret serve --data-dir {}, or name the folder of another with --data-dir \
                 DIR (a broker with --in-memory has none, and cannot be reached so)",
                words(&[&folder])
            )
        }
        ClientError::NotOurs(_) | ClientError::Io(..) | ClientError::Http(_) | ClientError::Request => {
            error.to_string()
        }
    }
}

impl Failure {
    /// `None` for what is no failure: whoever read our output has seen enough.
    fn exit_code(&self) -> Option<u8> {
        match self {
            Failure::Output(error) if error.kind() == io::ErrorKind::BrokenPipe => None,
            Failure::Usage(_) | Failure::Broker(ClientError::Request) => Some(2),
            Failure::Broker(_)
            | Failure::Runtime(_)
            | Failure::Status(_)
            | Failure::NotJson(_)
            | Failure::NoSuchList
            | Failure::Refused(_)
            | Failure::NoVhost(_)
            | Failure::NoUser(_)
            | Failure::NothingToDelete(..)
            | Failure::NoPolicy(..)
            | Failure::NoParameter(_)
            | Failure::Exists(..)
            | Failure::Password(_)
            | Failure::NoConnection(_)
            | Failure::File(..)
            | Failure::Output(_) => Some(1),
        }
    }
}

/// Runs a command.
pub(crate) fn run(command: Command) -> ExitCode {
    finish(match command {
        Command::Status(status) => status.run(),
        Command::List(list) => list.run(),
        Command::Add(add) => add.run(),
        Command::Set(set) => set.run(),
        Command::Clear(clear) => clear.run(),
        Command::Close(close) => close.run(),
        Command::Export(export) => export.run(),
        Command::Explain(explain) => explain.run(),
    })
}

/// The exit code, and what went wrong on standard error.
fn finish(result: Result<(), Failure>) -> ExitCode {
    match result.err().and_then(|failure| Some((failure.exit_code()?, failure))) {
        None => ExitCode::SUCCESS,
        Some((exit_code, failure)) => {
            eprintln!("error: {}", one_line(&failure.to_string()));
            ExitCode::from(exit_code)
        }
    }
}

/// A part of a path, percent-encoded.
fn encoded(part: &str) -> String {
    percent_encoding::utf8_percent_encode(part, percent_encoding::NON_ALPHANUMERIC).to_string()
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
    fn every_command_has_a_help_with_an_example() {
        fn check(command: &mut clap::Command) {
            let help = command.render_long_help().to_string();
            assert!(command.has_subcommands() || help.contains("Example"), "{help}");
            command.get_subcommands_mut().filter(|inner| inner.get_name() != "help").for_each(check);
        }
        Cli::command().debug_assert();
        let mut command = Cli::command();
        command.build();
        command.get_subcommands_mut().filter(|inner| inner.get_name() != "help").for_each(check);
    }
}
