//! What other people's code is built in: its licenses, and where it comes from. `deny.toml` says what may be.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::Result;

use crate::process::{self, Show};
use crate::workspace::{cargo, target, tool};

/// The version that is installed. What it takes for a fault may change with it.
const VERSION: &str = "0.20.2";

/// To compile it takes minutes, once.
const INSTALL_DEADLINE: Duration = Duration::from_mins(20);
const DEADLINE: Duration = Duration::from_mins(2);

/// The lines that say what is wrong.
pub(super) fn faults() -> Result<Vec<String>> {
    let program = match installed() {
        Ok(program) => program,
        Err(fault) => return Ok(fault),
    };
    let mut check = tool(program);
    check.args(["--locked", "check", "--hide-inclusion-graph", "licenses", "bans", "sources"]);
    let finished = process::run(check, DEADLINE, Show::Nothing)?;
    Ok(if finished.has_succeeded() { Vec::new() } else { finished.output.lines().map(str::to_owned).collect() })
}

/// cargo-deny, installed below the folder that cargo builds in unless it is there; or what went wrong.
fn installed() -> Result<PathBuf, Vec<String>> {
    let folder = target().join("tools").join(format!("cargo-deny-{VERSION}"));
    let program = folder.join("bin/cargo-deny");
    if program.is_file() {
        return Ok(program);
    }
    println!("     installing cargo-deny {VERSION}, which takes minutes, once");
    // Not optimized it is there in half the time, and still takes seconds.
    let mut install = cargo(["install", "--locked", "--quiet", "--debug", "--version", VERSION, "cargo-deny"]);
    install.arg("--root").arg(&folder).arg("--target-dir").arg(target().join("tools/build"));
    let fault = match process::run(install, INSTALL_DEADLINE, Show::Nothing) {
        Ok(finished) if finished.has_succeeded() => None,
        Ok(finished) => Some(format!("{}\ncargo-deny cannot be installed: {}", finished.output, finished.end)),
        Err(error) => Some(format!("{error:#}")),
    };
    // What it was built from is large, and not needed again.
    let _ = std::fs::remove_dir_all(target().join("tools/build"));
    match fault {
        None => Ok(program),
        Some(fault) => Err(fault.lines().map(str::to_owned).collect()),
    }
}
