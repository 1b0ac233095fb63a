//! The command line, as a user or a script sees it: what is printed where, exit codes, signals, files.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod client_commands;
mod control_commands;
mod fake_broker;
mod files;
mod logging;
mod not_starting;
mod perf;
mod restarts;
mod starting;
mod stopping;
mod support;

use std::net::{Ipv6Addr, SocketAddr, TcpListener, TcpStream};
use std::time::Duration;

use leveret_client::Connection;
use support::leveret;

const VERSION: &str = env!("CARGO_PKG_VERSION");

fn can_connect(ip: &str, port: u16) -> bool {
    let address = SocketAddr::new(ip.parse().unwrap(), port);
    TcpStream::connect_timeout(&address, Duration::from_secs(5)).is_ok()
}

fn has_ipv6() -> bool {
    TcpListener::bind((Ipv6Addr::LOCALHOST, 0)).is_ok()
}

/// A broker that must not start: its exit code, and its last words, which are one line.
#[track_caller]
fn refused(arguments: &[&str]) -> (i32, String) {
    let finished = leveret(arguments).run();
    assert_eq!(finished.stdout, "");
    let errors: Vec<_> = finished.stderr.lines().filter(|line| line.starts_with("error: ")).collect();
    let [error] = errors[..] else { panic!("not one line with an error: {}", finished.stderr) };
    assert_eq!(finished.stderr.lines().last(), Some(error));
    (finished.code.unwrap(), error.to_owned())
}

/// A log that nobody reads is no reason to stop.
#[test]
fn a_full_standard_error_does_not_stop_the_broker() {
    use std::io::{BufRead, BufReader};
    use std::process::{Command, Stdio};
    let mut process = Command::new(env!("CARGO_BIN_EXE_leveret"))
        .args(["--in-memory", "--amqp-port", "0"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut ready = String::new();
    BufReader::new(process.stdout.take().unwrap()).read_line(&mut ready).unwrap();
    let url = ready.trim().rsplit(' ').next().unwrap().to_owned();
    let address = url.trim_start_matches("amqp://").to_owned();
    // A line for each in the log: more than a pipe holds.
    for _ in 0..2_000 {
        drop(TcpStream::connect(&address).unwrap());
    }
    let opened = Connection::open(&url.parse().unwrap()).map(Connection::close);
    process.kill().unwrap();
    process.wait().unwrap();
    opened.unwrap().unwrap();
}
