//! `leveret perf`: loads against a broker, this one or another.
//!
//! Owns: the options of each scenario, and where its outcome goes.
//! Must not know: how a load is made; that is `leveret-perf`.

mod live;
mod options;
mod page;

use std::io::{self, Write};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use clap::Subcommand;
use leveret_perf::{Churn, Load, Outcome, Report, Run, Thing, Unfinished};
use serde_json::Value;

use self::live::Live;
use self::options::{
    ChurnOptions, Confirm, Drain, Fanout, Get, IdleOptions, Latency, RpcOptions, Throughput, Topic,
};
use self::page::Page;
use super::interrupt::stop_at_ctrl_c;
use super::{BrokerUrl, Failure, USAGE};

/// Measure a broker of AMQP 0-9-1 under a load: this one, RabbitMQ, or another.
///
/// Each producer and consumer is a connection. What a run declares has a name that begins with leveret-perf- and is deleted in the
/// end, also after Ctrl-C, which ends a run early.
#[derive(Debug, Subcommand)]
#[command(after_help = "Example:\n  leveret perf throughput --seconds 5")]
pub(crate) enum Perf {
    Throughput(Throughput),
    Latency(Latency),
    Confirm(Confirm),
    Fanout(Fanout),
    Rpc(RpcOptions),
    Get(Get),
    Topic(Topic),
    Drain(Drain),
    #[command(subcommand)]
    Churn(ChurnOf),
    Idle(IdleOptions),
}

/// Open and close one thing after the other, as often as the broker can.
#[derive(Debug, Subcommand)]
#[command(after_help = "Example:\n  leveret perf churn connections --seconds 5")]
pub(crate) enum ChurnOf {
    /// Open connections, with TCP and login, and close them.
    #[command(after_help = "Example:\n  leveret perf churn connections --parallel 4")]
    Connections(ChurnOptions),
    /// Open channels and close them.
    #[command(after_help = "Example:\n  leveret perf churn channels --seconds 5")]
    Channels(ChurnOptions),
    /// Declare queues and delete them.
    #[command(after_help = "Example:\n  leveret perf churn queues --durable")]
    Queues(ChurnQueues),
}

/// Options of `perf churn queues`.
#[derive(Debug, clap::Args, serde::Serialize)]
pub(crate) struct ChurnQueues {
    /// Queues that would survive a restart of the broker, instead of exclusive ones.
    #[arg(long)]
    durable: bool,
    #[command(flatten)]
    #[serde(flatten)]
    churn: ChurnOptions,
}

/// The longest time in which a broker may make no progress, in seconds: a year.
const PATIENCE_MAX: u64 = 365 * 24 * 60 * 60;

/// What all scenarios have.
#[derive(Debug, clap::Args)]
struct Common {
    /// Print one JSON object instead of a table.
    #[arg(long)]
    json: bool,
    /// Write a page with charts: rates over time, and the distribution of latencies. It needs no other file.
    #[arg(long, value_name = "FILE")]
    html: Option<PathBuf>,
    /// For how many seconds the broker may make no progress before the run has failed; at least 2.
    #[arg(long, value_name = "SECONDS", default_value_t = leveret_perf::limits::PROGRESS_TIMEOUT.as_secs(),
        value_parser = clap::value_parser!(u64).range(2..=PATIENCE_MAX))]
    timeout: u64,
    #[command(flatten)]
    broker: BrokerUrl,
}

impl Perf {
    pub(super) fn run(self) -> Result<(), Failure> {
        match self {
            Perf::Throughput(options) => run_load("throughput", json(&options), &options.load()?, &options.common),
            Perf::Latency(options) => run_load("latency", json(&options), &options.load(), &options.common),
            Perf::Confirm(options) => run_load("confirm", json(&options), &options.load(), &options.common),
            Perf::Fanout(options) => run_load("fanout", json(&options), &options.load(), &options.common),
            Perf::Get(options) => run_load("get", json(&options), &options.load(), &options.common),
            Perf::Topic(options) => run_load("topic", json(&options), &options.load(), &options.common),
            Perf::Drain(options) => run_load("drain", json(&options), &options.load(), &options.common),
            Perf::Rpc(options) => run("rpc", json(&options), &options.common, |run| options.rpc().run(run)),
            Perf::Churn(ChurnOf::Connections(options)) => {
                run_churn("churn connections", json(&options), Thing::Connections, &options)
            }
            Perf::Churn(ChurnOf::Channels(options)) => {
                run_churn("churn channels", json(&options), Thing::Channels, &options)
            }
            Perf::Churn(ChurnOf::Queues(options)) => {
                let thing = Thing::Queues { durable: options.durable };
                run_churn("churn queues", json(&options), thing, &options.churn)
            }
            Perf::Idle(options) => run("idle", json(&options), &options.common, |run| options.idle().run(run)),
        }
    }
}

fn json(options: &impl serde::Serialize) -> Value {
    serde_json::to_value(options).expect("options are numbers, texts and lists of them")
}

fn run_load(scenario: &'static str, options: Value, load: &Load, common: &Common) -> Result<(), Failure> {
    run(scenario, options, common, |run| load.run(run))
}

fn run_churn(scenario: &'static str, json: Value, thing: Thing, options: &ChurnOptions) -> Result<(), Failure> {
    let churn = Churn { thing, parallel: options.parallel, end: options.end.end() };
    run(scenario, json, &options.common, |run| churn.run(run))
}

/// Runs a scenario and shows what came of it.
fn run(
    scenario: &'static str,
    options: Value,
    common: &Common,
    load: impl FnOnce(&mut Run<'_>) -> Result<Outcome, Unfinished>,
) -> Result<(), Failure> {
    let url = common.broker.parsed()?;
    let page = common.html.clone().map(Page::open).transpose()?;
    let stop = stop_at_ctrl_c().map_err(Failure::Signals)?;
    let live = Live::new();
    let ended = {
        let mut watcher = |progress: &_| live.show(progress);
        load(&mut Run::new(url, Arc::clone(&stop), Duration::from_secs(common.timeout), &mut watcher))
    };
    live.clear();
    let (outcome, failure) = match ended {
        Ok(outcome) => {
            let fault = outcome.fault().map(Failure::Verification);
            (Some(outcome), fault)
        }
        Err(Unfinished { failure, outcome }) => (outcome.map(|outcome| *outcome), Some(failure.into())),
    };
    let is_measured = outcome.is_some();
    let error = failure.as_ref().map(Failure::to_line);
    let report = Report { scenario, options, error, outcome: outcome.unwrap_or_default() };
    let text = if common.json {
        // A script finds the error there, too, unless it is one of its own.
        let is_usage = failure.as_ref().is_some_and(|failure| failure.exit_code() == Some(USAGE));
        (!is_usage).then(|| serde_json::to_string(&report).expect("a report is JSON"))
    } else {
        is_measured.then(|| report.to_table())
    };
    if let Some(text) = text {
        writeln!(io::stdout(), "{text}").map_err(Failure::Output)?;
    }
    if let Some(page) = page.filter(|_| is_measured) {
        page.write(&report.to_html())?;
    }
    failure.map_or(Ok(()), Err)
}
