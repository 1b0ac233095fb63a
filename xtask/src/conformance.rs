//! `cargo xtask conformance`: the protocol scripts of the tests against a broker behind a socket.
//!
//! The scripts are those of `leveret-testkit`, which checks the core of Leveret with them in one thread. Here each of
//! them speaks over TCP, with Leveret or with RabbitMQ. What a broker is known to do otherwise stands in a text file
//! with the reason; everything else must be as the script says.

mod differences;
mod scripts;
mod wire;

use std::path::Path;

use anyhow::{Context, Result, ensure};
use leveret_client::{Connection, Url};

use crate::broker::Broker;
use crate::process::check_interrupted;
use crate::tally::Tally;
use crate::workspace::{root, target};
use differences::Differences;
use scripts::{Collected, Script};
use wire::SocketWire;

/// The name of this suite in `cargo xtask test`.
pub(crate) const SUITE: &str = "conformance";

/// How many scripts any broker can be asked, at least.
const SCRIPTS_LEAST: u64 = 350;

/// Runs the scripts whose names contain one of `only`, or all, against the broker at `url`.
pub(crate) fn run(url: &str, only: &[String], differences: Option<&Path>) -> Result<Tally> {
    let url: Url = url.parse().context("--url")?;
    ensure!(
        url.user == "guest" && url.vhost.as_str() == "/",
        "the scripts log in as guest, and use the virtual host '/'"
    );
    let mut differences =
        differences.map_or(Ok(Differences::default()), |file| Differences::read(&root().join(file)))?;
    // Whether there is a broker at all.
    Connection::open(&url)?.close()?;

    let Collected { scripts, not_scripts } = scripts::collect()?;
    let is_wanted = |name: &str| only.is_empty() || only.iter().any(|part| name.contains(part.as_str()));
    let mut tally = Tally::default();
    for test in not_scripts.iter().filter(|test| is_wanted(test)) {
        println!("skipped {test}: it has settings or users of its own");
        tally += Tally::SKIPPED;
    }
    for script in scripts.iter().filter(|script| is_wanted(&script.name)) {
        check_interrupted()?;
        tally += run_one(script, &url, &mut differences)?;
    }
    if only.is_empty() {
        for name in differences.unseen() {
            println!("differs {name}: it is listed as known to differ, but does not");
            tally += Tally::FAILED;
        }
    }
    Ok(tally.at_least("scripts", if only.is_empty() { SCRIPTS_LEAST } else { 1 }))
}

/// Runs the scripts against a Leveret of their own.
pub(crate) fn run_suite(binary: &Path) -> Result<Tally> {
    let log = target().join("conformance/leveret.log");
    let outcome = run_with_broker(binary, &log);
    check_interrupted()?;
    let tally = outcome.unwrap_or_else(|error| {
        println!("!! FAILED {SUITE}: {error:#}");
        Tally::FAILED
    });
    if tally.failed > 0 {
        println!("the broker's log is {}", log.display());
    }
    Ok(tally)
}

fn run_with_broker(binary: &Path, log: &Path) -> Result<Tally> {
    let broker = Broker::start(binary, 0, log)?;
    let mut tally = run(&broker.client_url(), &[], None)?;
    let status = broker.stop()?;
    if !status.success() {
        println!("the broker ended with {status}");
        tally += Tally::FAILED;
    }
    Ok(tally)
}

fn run_one(script: &Script, url: &Url, differences: &mut Differences) -> Result<Tally> {
    let name = &script.name;
    if let Some(reason) = script.reason_to_skip() {
        println!("skipped {name}: {reason}");
        return Ok(Tally::SKIPPED);
    }
    let mut wire = SocketWire::new(url);
    let result = leveret_testkit::run_script(&mut wire, &script.text);
    wire.clean_up(url).with_context(|| format!("after {name}"))?;
    let Err(failure) = result else {
        println!("ok {name}");
        return Ok(Tally::PASSED);
    };
    if let Some(reason) = differences.explain(name) {
        println!("explained {name}: {reason}");
        return Ok(Tally::PASSED);
    }
    // What was said before can be read in the script.
    let failure = failure.split("\n\n").next().unwrap_or_default();
    println!("differs {name}: {}", failure.replace('\n', "\n    "));
    Ok(Tally::FAILED)
}
