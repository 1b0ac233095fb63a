//! The part of `cargo xtask bench` in which `leveret perf` loads the broker and the relay in turn, and RabbitMQ if that is asked for; and
//! the suite `perf`, which runs the same loads shortly.
//!
//! The relay (`crates/leveret-perf/examples/relay.rs`) does what no broker can do without. A figure of the broker is a share of
//! the relay's in the same round, as what a machine can do changes from minute to minute.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use leveret_client::QueueOptions;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use crate::bench::{Samples, sync_time};
use crate::broker::{self, Broker};
use crate::memory::{Backlog, open};
use crate::process::{self, Show, check_interrupted};
use crate::rabbitmq::RabbitMq;
use crate::tally::{self, Step, Tally};
use crate::workspace::target;

pub(crate) const SUITE: &str = "perf";

const ROUNDS: usize = 5;
/// How long each load takes, for figures and for correctness.
const SECONDS: &str = "2";
const SHORT_SECONDS: &str = "0.2";
const LOAD_DEADLINE: Duration = Duration::from_mins(2);
/// A flood has begun once the server has worked on it for so long.
const FLOOD_CPU: Duration = Duration::from_millis(200);
const FLOOD_DEADLINE: Duration = Duration::from_secs(10);
/// Bytes that a message of this size takes in the journal beside its body, about.
const OVERHEAD_BYTES: usize = 100;
/// Messages of a persistent queue that is filled and drained.
const DRAINED: &str = "1000000";
const DRAINED_SHORTLY: &str = "10000";

/// What is looked at of a report.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Figure {
    PublishRate,
    ReceiveRate,
    CycleRate,
    /// Microseconds.
    P50,
    P99,
}

impl Figure {
    fn of(self, report: &Value) -> Result<f64> {
        let value = match self {
            Figure::PublishRate => &report["publish_rate"],
            Figure::ReceiveRate => &report["receive_rate"],
            Figure::CycleRate => &report["cycle_rate"],
            Figure::P50 => &report["latency_us"]["p50"],
            Figure::P99 => &report["latency_us"]["p99"],
        };
        value.as_f64().with_context(|| format!("the report has no {self:?}: {report}"))
    }

    /// What it is called in the table.
    fn name_in(self, row: &Row) -> String {
        match self {
            Figure::P50 => format!("{}: half of them", row.name),
            Figure::P99 => format!("{}: 99 of 100", row.name),
            Figure::PublishRate if row.load.starts_with("drain") => format!("{}: filled", row.name),
            Figure::ReceiveRate if row.load.starts_with("drain") => format!("{}: drained", row.name),
            Figure::PublishRate | Figure::ReceiveRate | Figure::CycleRate => row.name.to_owned(),
        }
    }

    /// Whether less is better.
    fn is_time(self) -> bool {
        matches!(self, Figure::P50 | Figure::P99)
    }
}

/// A load for the broker, and one for the relay to compare it with.
struct Row {
    name: &'static str,
    load: &'static str,
    relay: &'static str,
    figures: &'static [(Figure, f64)],
}

/// The flow of the relay in messages of 16 bytes.
const FLOW: &str = "throughput --size 16";

/// Messages that come one by one.
const LITTLE: &str = "latency --size 16 --rate 2000";

/// With the share of the relay that each is to reach: at least that of a rate, at most that of a time.
const ROWS: &[Row] = &[
    Row { name: "16 B, automatic acks", load: FLOW, relay: FLOW, figures: &[(Figure::ReceiveRate, 0.5)] },
    Row {
        name: "16 B, one ack for each",
        load: "throughput --size 16 --ack-every 1",
        relay: FLOW,
        figures: &[(Figure::ReceiveRate, 0.25)],
    },
    Row {
        name: "16 B, one ack for 100",
        load: "throughput --size 16 --ack-every 100",
        relay: FLOW,
        figures: &[(Figure::ReceiveRate, 0.4)],
    },
    Row {
        name: "1 KiB, automatic acks",
        load: "throughput --size 1024",
        relay: "throughput --size 1024",
        figures: &[(Figure::ReceiveRate, 0.85)],
    },
    Row {
        name: "1 KiB, one ack for each",
        load: "throughput --size 1024 --ack-every 1",
        relay: "throughput --size 1024",
        figures: &[(Figure::ReceiveRate, 0.75)],
    },
    Row {
        name: "64 KiB, automatic acks",
        load: "throughput --size 65536",
        relay: "throughput --size 65536",
        figures: &[(Figure::ReceiveRate, 0.75)],
    },
    Row {
        name: "16 B, published only",
        load: "throughput --size 16 --consumers 0",
        relay: FLOW,
        figures: &[(Figure::PublishRate, 0.42)],
    },
    Row {
        name: "1 KiB, published only",
        load: "throughput --size 1024 --consumers 0",
        relay: "throughput --size 1024",
        figures: &[(Figure::PublishRate, 0.7)],
    },
    Row {
        name: "2,000/s of 16 B",
        load: "latency --size 16 --rate 2000",
        relay: "latency --size 16 --rate 2000",
        figures: &[(Figure::P50, 1.0), (Figure::P99, 1.2)],
    },
    Row {
        name: "2,000/s of 1 KiB",
        load: "latency --size 1024 --rate 2000",
        relay: "latency --size 1024 --rate 2000",
        figures: &[(Figure::P50, 1.0), (Figure::P99, 1.2)],
    },
    Row {
        name: "20,000/s of 16 B",
        load: "latency --size 16 --rate 20000",
        relay: "latency --size 16 --rate 20000",
        figures: &[(Figure::P50, 1.0), (Figure::P99, 1.2)],
    },
    Row {
        name: "fanout to 10 queues, 16 B",
        load: "fanout --queues 10 --size 16",
        relay: FLOW,
        figures: &[(Figure::ReceiveRate, 0.42)],
    },
    Row {
        name: "fanout to 10 queues, 1 KiB",
        load: "fanout --queues 10 --size 1024",
        relay: "throughput --size 1024",
        figures: &[(Figure::ReceiveRate, 1.0)],
    },
    Row {
        name: "requests, one at a time",
        load: "rpc --outstanding 1",
        relay: "rpc --outstanding 1",
        figures: &[(Figure::ReceiveRate, 1.1)],
    },
    Row {
        name: "requests, 32 at a time",
        load: "rpc --outstanding 32",
        relay: "rpc --outstanding 32",
        figures: &[(Figure::ReceiveRate, 0.9)],
    },
    Row {
        name: "topic, 1,000 bindings",
        load: "topic --bindings 1000 --size 16",
        relay: FLOW,
        figures: &[(Figure::ReceiveRate, 0.28)],
    },
    Row {
        name: "topic, 10,000 bindings",
        load: "topic --bindings 10000 --size 16",
        relay: FLOW,
        figures: &[(Figure::ReceiveRate, 0.28)],
    },
    Row { name: "basic.get, one at a time", load: "get", relay: "get", figures: &[(Figure::ReceiveRate, 0.9)] },
    Row {
        name: "connections opened and closed",
        load: "churn connections",
        relay: "churn connections",
        figures: &[(Figure::CycleRate, 1.0)],
    },
    Row {
        name: "channels opened and closed",
        load: "churn channels",
        relay: "churn channels",
        figures: &[(Figure::CycleRate, 1.5)],
    },
    Row {
        name: "1 million of 100 B, persistent",
        load: "drain --persistent --durable --size 100",
        relay: "throughput --size 100",
        figures: &[(Figure::PublishRate, 0.28), (Figure::ReceiveRate, 0.28)],
    },
];

/// Loads whose end is not a time.
fn is_counted(load: &str) -> bool {
    load.starts_with("get") || load.starts_with("drain")
}

/// The programs that are loaded and that load them.
struct Bench {
    tool: PathBuf,
    broker: Broker,
    relay: Broker,
    seconds: &'static str,
    drained: &'static str,
}

impl Bench {
    fn start(binary: &Path, folder: &Path, seconds: &'static str, drained: &'static str) -> Result<Self> {
        let broker = Broker::start_on_disk(binary, &folder.join("data"), &folder.join("broker.log"))?;
        let relay = Broker::start_relay(&broker::build_relay()?, &folder.join("relay.log"))?;
        Ok(Bench { tool: binary.to_owned(), broker, relay, seconds, drained })
    }

    /// A load of `leveret perf`, not yet begun.
    fn load(&self, options: &str, url: &str) -> Command {
        let mut command = Command::new(&self.tool);
        command.arg("perf").args(options.split(' ')).args(["--json", "--url", url]);
        if !is_counted(options) {
            command.args(["--seconds", self.seconds]);
        } else if options.starts_with("drain") {
            command.args(["--messages", self.drained]);
        }
        command
    }

    /// What a load says of the broker.
    fn of_broker(&self, options: &str) -> Result<Value> {
        report(self.load(options, &self.broker.client_url()))
    }

    /// What it says of the relay.
    fn of_relay(&self, options: &str) -> Result<Value> {
        report(self.load(options, &self.relay.client_url()))
    }

    /// How long a few messages a second take while others flood a queue of their own.
    fn flooded(&self, server: &Broker) -> Result<Value> {
        let mut flood = Command::new(&self.tool);
        flood.arg("perf").args(FLOW.split(' ')).args([
            "--seconds",
            "3600",
            "--json",
            "--url",
            &server.client_url(),
        ]);
        let before = server.cpu_time()?;
        let flood = flood.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn()?;
        let mut flood = Flood(flood);
        let deadline = Instant::now() + FLOOD_DEADLINE;
        while server.cpu_time()?.saturating_sub(before) < FLOOD_CPU {
            check_interrupted()?;
            ensure!(Instant::now() < deadline, "the flood does not begin");
            thread::sleep(Duration::from_millis(10));
        }
        let found = report(self.load(LITTLE, &server.client_url()))?;
        flood.end()?;
        Ok(found)
    }
}

/// A load that goes on until this ends.
struct Flood(Child);

impl Flood {
    /// Ends it in good order: it takes its queue along.
    fn end(&mut self) -> Result<()> {
        ensure!(self.0.try_wait()?.is_none(), "the flood has ended before");
        kill_process(Pid::from_child(&self.0), Signal::INT)?;
        let deadline = Instant::now() + FLOOD_DEADLINE;
        while self.0.try_wait()?.is_none() {
            ensure!(Instant::now() < deadline, "the flood does not end");
            thread::sleep(Duration::from_millis(10));
        }
        Ok(())
    }
}

impl Drop for Flood {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Runs a load to its end.
fn report(load: Command) -> Result<Value> {
    let what = format!("{load:?}");
    let finished = process::run(load, LOAD_DEADLINE, Show::Nothing)?;
    ensure!(finished.has_succeeded(), "{what}: {}: {}", finished.end, finished.output);
    let line = finished.output.lines().find(|line| line.starts_with('{'));
    serde_json::from_str(line.with_context(|| format!("{what} says nothing"))?).context("a report is JSON")
}

/// Runs all loads in turn, and prints each as a share of the relay; with peers, then of RabbitMQ.
pub(crate) fn run(binary: &Path, with_peers: bool) -> Result<()> {
    let folder = target().join("bench-perf");
    // Of an earlier run.
    let _ = std::fs::remove_dir_all(&folder);
    let bench = Bench::start(binary, &folder, SECONDS, DRAINED)?;
    heading("share of the relay");
    for row in ROWS {
        // The relay is not filled and drained, and forwards what it takes: what goes through it counts once.
        let is_one_way = row.load.starts_with("drain") || row.load.contains("--consumers 0");
        let floor = |figure| if is_one_way { Figure::ReceiveRate } else { figure };
        let found = in_turn(row.figures, floor, || bench.of_relay(row.relay), || bench.of_broker(row.load))?;
        for (&(figure, goal), samples) in row.figures.iter().zip(&found) {
            show(&figure.name_in(row), figure, Some(goal), samples);
        }
    }
    beside_flood(&bench)?;
    confirms(&bench, &folder)?;
    growth(&bench)?;
    if with_peers {
        beside_rabbitmq(&bench, &folder.join("rabbitmq"))?;
    }
    drop(bench.relay);
    bench.broker.stop()?;
    Ok(std::fs::remove_dir_all(&folder)?)
}

/// Runs two loads in turn. For each figure: what the second reached as a share of the first, both themselves; which figure of
/// the first it is compared with, `floor` says.
fn in_turn(
    figures: &[(Figure, f64)],
    floor: impl Fn(Figure) -> Figure,
    first: impl Fn() -> Result<Value>,
    second: impl Fn() -> Result<Value>,
) -> Result<Vec<[Samples; 3]>> {
    let mut found: Vec<[Samples; 3]> = figures.iter().map(|_| Default::default()).collect();
    for _ in 0..ROUNDS {
        let (first, second) = (first()?, second()?);
        for (&(figure, _), samples) in figures.iter().zip(&mut found) {
            let (floor, ours) = (floor(figure).of(&first)?, figure.of(&second)?);
            samples.iter_mut().zip([ours / floor, ours, floor]).for_each(|(samples, n)| samples.push(n));
        }
    }
    Ok(found)
}

/// Prints a row of the table.
fn show(name: &str, figure: Figure, goal: Option<f64>, [ratio, ours, floor]: &[Samples; 3]) {
    let (than, unit) = if figure.is_time() { ("at most", "us") } else { ("at least", "/s") };
    let goal = goal.map_or_else(String::new, |goal| format!("   {than} {goal:.2}"));
    println!("{name:<44} {ratio}{goal}   {:.0} beside {:.0} {unit}", ours.median(), floor.median());
}

fn heading(what: &str) {
    println!("\n{:<44} {:>10} {:>10} {:>10}", format!("{ROUNDS} rounds, {what}"), "min", "median", "max");
}

/// What somebody waits who sends little while another queue is sent as much as it takes.
fn beside_flood(bench: &Bench) -> Result<()> {
    heading("share of the relay under the same flood");
    let figures = [(Figure::P99, 2.0)];
    let found =
        in_turn(&figures, |figure| figure, || bench.flooded(&bench.relay), || bench.flooded(&bench.broker))?;
    for ((figure, goal), samples) in figures.into_iter().zip(&found) {
        show("2,000/s of 16 B beside a flood: 99 of 100", figure, Some(goal), samples);
    }
    Ok(())
}

/// The same loads for RabbitMQ, in turn.
fn beside_rabbitmq(bench: &Bench, folder: &Path) -> Result<()> {
    let peer = RabbitMq::start(folder)?;
    heading(&format!("times RabbitMQ {}", peer.version));
    for row in ROWS {
        let theirs = || report(bench.load(row.load, &peer.client_url()));
        let found = in_turn(row.figures, |figure| figure, theirs, || bench.of_broker(row.load))?;
        for (&(figure, _), samples) in row.figures.iter().zip(&found) {
            show(&figure.name_in(row), figure, None, samples);
        }
    }
    Ok(())
}

/// Persistent messages, beside the disk.
fn confirms(bench: &Bench, folder: &Path) -> Result<()> {
    heading("share of 45 % of window / sync, or of 600 a ms and message of the window");
    for (window, most) in [(1000_u32, 600_000.0), (100, 60_000.0)] {
        let (mut ratio, mut ours) = (Samples::default(), Samples::default());
        for _ in 0..ROUNDS {
            let bytes = usize::try_from(window)? * (16 + OVERHEAD_BYTES);
            let sync = sync_time(folder, bytes, 20)?;
            let report = bench.of_broker(&format!("confirm --window {window} --size 16"))?;
            let rate = Figure::PublishRate.of(&report)?;
            ratio.push(rate / (0.45 * f64::from(window) / sync).min(most));
            ours.push(rate);
        }
        println!("{:<44} {ratio}   at least 1.00   {:.0} /s", format!("confirms, window {window}"), ours.median());
    }
    Ok(())
}

/// What others cost who are there and do nothing.
fn growth(bench: &Bench) -> Result<()> {
    const QUEUES: usize = 10_000;
    heading("share of the rate without");
    let rate = |load: &str| bench.of_broker(load).and_then(|report| Figure::ReceiveRate.of(&report));
    let show = |name: &str, goal: f64, ratio: &Samples| println!("{name:<44} {ratio}   at least {goal:.2}");
    let mut two = Samples::default();
    for _ in 0..ROUNDS {
        let one = rate(FLOW)?;
        two.push(rate("throughput --size 16 --producers 2 --queues 2 --consumers 2")? / one);
    }
    show("two producers, queues and consumers", 1.0, &two);
    let alone: Vec<_> = (0..ROUNDS).map(|_| rate(FLOW)).collect::<Result<_>>()?;
    let beside = || -> Result<Samples> {
        let mut samples = Samples::default();
        for alone in &alone {
            samples.push(rate(FLOW)? / alone);
        }
        Ok(samples)
    };
    let mut connection = open(&bench.broker)?;
    let mut channel = connection.open_channel()?;
    for nth in 0..QUEUES {
        channel.declare_queue(&format!("idle-{nth}"), &QueueOptions::default())?;
    }
    show("with 10,000 queues", 0.7, &beside()?);
    for nth in 0..QUEUES {
        channel.delete_queue(&format!("idle-{nth}"), leveret_client::DeleteOnly::default())?;
    }
    channel.close()?;
    let idle: Vec<_> = (0..1000).map(|_| open(&bench.broker)).collect::<Result<_>>()?;
    show("with 1,000 connections", 0.7, &beside()?);
    drop(idle);
    let backlog = Backlog { messages: 1_000_000, body_bytes: 100, queues: 1 };
    backlog.declare(&mut connection, false)?;
    backlog.fill(&mut connection, 1)?;
    show("with 1 million messages waiting", 0.7, &beside()?);
    backlog.drain(&mut connection)?;
    Ok(connection.close()?)
}

const STEPS: &[Step] = &[("every load of the benchmark runs, against the broker and the relay", run_shortly)];

/// Runs the suite, with a broker and a relay of its own.
pub(crate) fn run_suite(binary: &Path) -> Tally {
    tally::run_steps(STEPS, binary, &target().join("perf"))
}

fn run_shortly(binary: &Path, folder: &Path) -> Result<String> {
    let bench = Bench::start(binary, folder, SHORT_SECONDS, DRAINED_SHORTLY)?;
    for row in ROWS {
        let (broker, relay) = (bench.of_broker(row.load)?, bench.of_relay(row.relay)?);
        for (figure, _) in row.figures {
            let (ours, floor) = (figure.of(&broker)?, relay["seconds"].as_f64().unwrap_or_default());
            ensure!(ours > 0.0 && floor > 0.0, "{}: {broker} beside {relay}", row.name);
        }
    }
    for server in [&bench.relay, &bench.broker] {
        ensure!(Figure::P99.of(&bench.flooded(server)?)? > 0.0, "beside a flood");
    }
    drop(bench.relay);
    bench.broker.stop()?;
    Ok(format!("{} loads", ROWS.len() + 1))
}
