//! The two programs of `clients/seed/`, run as they are.
//!
//! They connect to `localhost`, port 5672. If something else has that port here, they get a network of their own,
//! with a broker of their own in it. So this suite is a program, too: the hidden command `cargo xtask seed`.

use std::env;
use std::net::{Ipv4Addr, Ipv6Addr, TcpListener};
use std::ops::ControlFlow;
use std::path::Path;
use std::process::{Command, ExitCode};
use std::time::Duration;

use anyhow::Result;

use super::setup::{self, NotSetUp};
use crate::broker::Broker;
use crate::process::{self, End, Finished, Show};
use crate::workspace::{root, target, tool};

const PORT: u16 = 5672;
const DEADLINE: Duration = Duration::from_secs(20);
/// What the receiver prints. It goes on after that, until it is stopped.
const RECEIVED: &str = "Received message: b'Hello, World!'";

/// The command that runs this suite, in a network where the port is free.
pub(super) fn command(binary: &Path) -> Result<Command, NotSetUp> {
    let python = setup::python()?;
    let xtask = env::current_exe()?;
    let mut command = if is_port_free() {
        tool(xtask)
    } else {
        println!("port {PORT} is taken here: running in a network namespace");
        if !process::run(in_namespace("true"), DEADLINE, Show::Nothing)?.has_succeeded() {
            let what = format!("port {PORT} is taken, and this machine makes no network namespace (unshare -rn)");
            return Err(NotSetUp::Missing(what));
        }
        let mut command = in_namespace("exec \"$0\" \"$@\"");
        command.arg(xtask);
        command
    };
    command.arg("seed").arg("--python").arg(python).arg("--broker").arg(binary);
    Ok(command)
}

/// Runs a line of shell in a network that has only its loopback addresses.
fn in_namespace(line: &str) -> Command {
    let mut command = tool("unshare");
    command.args(["--map-root-user", "--net", "sh", "-c"]).arg(format!("ip link set lo up && {line}"));
    command
}

fn is_port_free() -> bool {
    let is_taken = |bound: std::io::Result<TcpListener>| {
        // A machine without IPv6 has the port free there.
        bound.is_err_and(|error| error.kind() == std::io::ErrorKind::AddrInUse)
    };
    !is_taken(TcpListener::bind((Ipv4Addr::LOCALHOST, PORT)))
        && !is_taken(TcpListener::bind((Ipv6Addr::LOCALHOST, PORT)))
}

/// Runs both programs against a broker on port 5672, and prints a line for each as the other suites do.
pub(crate) fn run(python: &Path, binary: &Path) -> Result<ExitCode> {
    let broker = Broker::start(binary, PORT, &target().join("clients/logs/seed.log"))?;
    let program = |file: &str| {
        let mut command = tool(python);
        command.arg(root().join("clients/seed").join(file));
        command
    };
    let sent = process::run(program("send.py"), DEADLINE, Show::Nothing)?;
    let mut passed = report(1, "send", sent.has_succeeded(), &sent);
    let received = process::run_until(program("receive.py"), DEADLINE, |line| {
        if line == RECEIVED { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    })?;
    passed += report(2, "receive", received.end == End::Enough, &received);
    let status = broker.stop()?;
    println!("{passed}/2 steps");
    Ok(if passed == 2 && status.success() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn report(number: u32, name: &str, has_passed: bool, finished: &Finished) -> u32 {
    if has_passed {
        println!("ok {number} {name}");
    } else {
        print!("{}", finished.output);
        println!("not ok {number} {name}: {}", finished.end);
    }
    u32::from(has_passed)
}
