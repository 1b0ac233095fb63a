//! The part of `cargo xtask bench` about exchanges with many bindings: what a publish costs with 10,000 of them, beside one
//! with a single binding and a naive scan, and how long it takes to make them.

use std::collections::BTreeMap;
use std::fs;
use std::hint::black_box;
use std::path::Path;
use std::time::Instant;

use anyhow::Result;
use leveret_amqp::frame::{write_content, write_method};
use leveret_amqp::{BasicProperties, ContentHeader, FieldTable, Method, ShortStr, Table, Value};

use crate::bench::Samples;
use crate::broker::{Broker, thread_cpu_time};
use crate::peer::Peer;
use crate::workspace::target;

const BINDINGS: usize = 10_000;
/// Bindings that are on their way at once.
const PIPELINED: usize = 200;
const MESSAGES: usize = 50_000;
/// Messages that a naive scan looks for, as it takes long.
const SCANNED: usize = 500;
const ROUNDS: usize = 5;
const QUEUE: &str = "q";

/// A binding, or what a message is routed by.
#[derive(Clone, Debug, Default)]
struct Labels {
    key: String,
    /// Arguments, or headers.
    table: BTreeMap<&'static str, String>,
}

/// An exchange with many bindings, each message of which fits exactly one of them.
struct Case {
    name: &'static str,
    kind: &'static str,
    /// The binding that every message fits, where there is only one. A direct exchange has some, as a connection remembers
    /// the ways of four keys.
    few: Vec<Labels>,
    many: fn(usize) -> Labels,
    message: fn(usize) -> Labels,
    /// Whether a binding fits, without any index; none where all bindings do.
    naive: Option<fn(&Labels, &Labels) -> bool>,
}

fn key(key: String) -> Labels {
    Labels { key, ..Labels::default() }
}

fn table<const N: usize>(fields: [(&'static str, String); N]) -> Labels {
    Labels { table: fields.into_iter().collect(), ..Labels::default() }
}

fn cases() -> [Case; 6] {
    [
        Case {
            name: "direct",
            kind: "direct",
            few: (0..10).map(|n| key(format!("eu.sensor.device-{n}"))).collect(),
            many: |n| key(format!("eu.sensor.device-{n}")),
            message: |n| key(format!("eu.sensor.device-{n}")),
            naive: Some(|binding, message| binding.key == message.key),
        },
        Case {
            name: "fanout, all bindings to one queue",
            kind: "fanout",
            few: vec![key(String::new())],
            many: |n| key(n.to_string()),
            message: |n| key(n.to_string()),
            naive: None,
        },
        Case {
            name: "topic, a third each of a.*.n, *.b.n and #.n",
            kind: "topic",
            few: vec![key("eu.*.#".to_owned())],
            many: |n| key(["eu.*.device-", "*.sensor.device-", "#.device-"][n % 3].to_owned() + &n.to_string()),
            message: |n| key(format!("eu.sensor.device-{n}")),
            naive: Some(fits_topic),
        },
        Case {
            name: "headers, all of a name and a number, or any of two",
            kind: "headers",
            few: vec![table([("x-match", "all".to_owned()), ("kind", "sensor".to_owned())])],
            many: |n| {
                let mode = ["all", "any"][n % 2].to_owned();
                // Nobody has the other name.
                let kind = ("kind", ["sensor", "nothing"][n % 2].to_owned());
                table([("x-match", mode), kind, ("device", n.to_string())])
            },
            message: |n| table([("kind", "sensor".to_owned()), ("device", n.to_string())]),
            naive: Some(fits_headers),
        },
        Case {
            name: "headers, all of two with a hundred values each",
            kind: "headers",
            few: vec![table([("x-match", "all".to_owned()), ("kind", "sensor".to_owned())])],
            many: |n| {
                let (row, column) = ((n / 100).to_string(), (n % 100).to_string());
                table([("x-match", "all".to_owned()), ("row", row), ("column", column)])
            },
            message: |n| {
                let (row, column) = ((n / 100).to_string(), (n % 100).to_string());
                table([("kind", "sensor".to_owned()), ("row", row), ("column", column)])
            },
            naive: Some(fits_headers),
        },
        Case {
            name: "x-consistent-hash, all bindings to one queue",
            kind: "x-consistent-hash",
            few: vec![key("1".to_owned())],
            many: |n| key((n + 1).to_string()),
            message: |n| key(n.to_string()),
            naive: None,
        },
    ]
}

fn fits_topic(binding: &Labels, message: &Labels) -> bool {
    fn split(words: &str) -> (&str, Option<&str>) {
        words.split_once('.').map_or((words, None), |(word, rest)| (word, Some(rest)))
    }
    fn fits(pattern: Option<&str>, key: Option<&str>) -> bool {
        let Some((word, rest)) = pattern.map(split) else { return key.is_none() };
        let Some((first, key_rest)) = key.map(split) else { return word == "#" && fits(rest, None) };
        match word {
            "#" => fits(rest, key) || fits(pattern, key_rest),
            "*" => fits(rest, key_rest),
            word => word == first && fits(rest, key_rest),
        }
    }
    fits(Some(&binding.key), Some(&message.key))
}

fn fits_headers(binding: &Labels, message: &Labels) -> bool {
    let mut arguments = binding.table.iter().filter(|(name, _)| !name.starts_with("x-"));
    let fits = |(name, value): (&&str, &String)| message.table.get(*name) == Some(value);
    if binding.table.get("x-match").is_some_and(|mode| mode == "any") {
        arguments.any(fits)
    } else {
        arguments.all(fits)
    }
}

pub(crate) fn run(binary: &Path) -> Result<()> {
    let folder = target().join("bench-routing");
    // Of an earlier run.
    let _ = fs::remove_dir_all(&folder);
    println!(
        "\n{:<56} {:>10} {:>10} {:>10}",
        format!("{ROUNDS} rounds, {BINDINGS} bindings, CPU time of the broker"),
        "min",
        "median",
        "max"
    );
    for case in cases() {
        let mut samples: [Samples; 4] = Default::default();
        for _ in 0..ROUNDS {
            let broker = Broker::start(binary, 0, &folder.join("broker.log"))?;
            let mut peer = Peer::connect(broker.url.trim_start_matches("amqp://"))?;
            declare(&mut peer, false)?;
            let [few, many] = ["few", "many"];
            make_exchange(&mut peer, few, &case, false)?;
            make_exchange(&mut peer, many, &case, false)?;
            bind(&mut peer, &bindings(few, &case.few))?;
            let all: Vec<_> = (0..BINDINGS).map(case.many).collect();
            bind(&mut peer, &bindings(many, &all))?;
            // The first time, memory has to be got.
            publish(&broker, &mut peer, few, &case)?;
            let alone = publish(&broker, &mut peer, few, &case)?;
            let among = publish(&broker, &mut peer, many, &case)?;
            let scan = case.naive.map(|naive| scan(&case, &all, naive)).transpose()?;
            let figures = [alone, among / alone, scan.unwrap_or(f64::NAN) / alone, scan.unwrap_or(f64::NAN)];
            samples.iter_mut().zip(figures).for_each(|(samples, figure)| samples.push(figure));
            // A broker that stops waits for those who are still there.
            drop(peer);
            broker.stop()?;
        }
        println!("{}", case.name);
        let names = ["one: us each publish", "10,000 / one", "naive scan / one", "naive scan: us each"];
        let shown = if case.naive.is_some() { names.len() } else { 2 };
        for (name, samples) in names.iter().zip(&samples).take(shown) {
            println!("    {name:<52} {samples}");
        }
    }
    println!("ms to make {BINDINGS} bindings, {PIPELINED} on their way at once");
    for case in cases() {
        for durable in [false, true] {
            let mut samples = Samples::default();
            for _ in 0..ROUNDS {
                let _ = fs::remove_dir_all(&folder);
                let broker = Broker::start_on_disk(binary, &folder.join("data"), &folder.join("broker.log"))?;
                let mut peer = Peer::connect(broker.url.trim_start_matches("amqp://"))?;
                declare(&mut peer, durable)?;
                make_exchange(&mut peer, "x", &case, durable)?;
                let all: Vec<_> = (0..BINDINGS).map(case.many).collect();
                let binds = bindings("x", &all);
                let started = Instant::now();
                bind(&mut peer, &binds)?;
                samples.push(started.elapsed().as_secs_f64() * 1000.0);
                drop(peer);
                broker.stop()?;
            }
            let durable = if durable { "durable" } else { "transient" };
            println!("    {:<52} {samples}", format!("{}, {durable}", case.kind));
        }
    }
    Ok(fs::remove_dir_all(&folder)?)
}

fn declare(peer: &mut Peer, durable: bool) -> Result<()> {
    peer.send(
        1,
        &Method::QueueDeclare {
            ticket: 0,
            queue: ShortStr::new(QUEUE)?,
            passive: false,
            durable,
            exclusive: false,
            auto_delete: false,
            nowait: false,
            arguments: Table::EMPTY,
        },
    )?;
    peer.expect("queue.declare-ok")
}

fn make_exchange(peer: &mut Peer, name: &str, case: &Case, durable: bool) -> Result<()> {
    peer.send(
        1,
        &Method::ExchangeDeclare {
            ticket: 0,
            exchange: ShortStr::new(name)?,
            type_: ShortStr::new(case.kind)?,
            passive: false,
            durable,
            auto_delete: false,
            internal: false,
            nowait: false,
            arguments: Table::EMPTY,
        },
    )?;
    peer.expect("exchange.declare-ok")
}

fn field_table(table: &BTreeMap<&str, String>) -> FieldTable {
    FieldTable::build(|fields| {
        for (name, value) in table {
            fields.field(name, Value::LongStr(value.as_bytes()));
        }
    })
}

/// The frames of `queue.bind`, one each.
fn bindings(exchange: &str, all: &[Labels]) -> Vec<Vec<u8>> {
    let frame = |labels: &Labels| {
        let arguments = field_table(&labels.table);
        let mut output = Vec::new();
        let method = Method::QueueBind {
            ticket: 0,
            queue: ShortStr::truncated(QUEUE),
            exchange: ShortStr::truncated(exchange),
            routing_key: ShortStr::truncated(&labels.key),
            nowait: false,
            arguments: arguments.as_table(),
        };
        write_method(&mut output, 1, &method);
        output
    };
    all.iter().map(frame).collect()
}

fn bind(peer: &mut Peer, frames: &[Vec<u8>]) -> Result<()> {
    for part in frames.chunks(PIPELINED) {
        peer.write(&part.concat())?;
        for _ in part {
            peer.expect("queue.bind-ok")?;
        }
    }
    Ok(())
}

/// Messages in an order in which a connection remembers the way of none.
fn order(nth: usize) -> usize {
    nth * 7919 % BINDINGS
}

/// Microseconds of CPU time that the broker needs to put a message into its queue. Only the routing differs between cases.
fn publish(broker: &Broker, peer: &mut Peer, exchange: &str, case: &Case) -> Result<f64> {
    let mut frames = Vec::new();
    for nth in 0..MESSAGES {
        let bindings = if exchange == "few" && case.few.len() > 1 { case.few.len() } else { BINDINGS };
        let labels = (case.message)(order(nth) % bindings);
        let headers = field_table(&labels.table);
        let headers = (!labels.table.is_empty()).then_some(headers.as_table());
        let method = Method::BasicPublish {
            ticket: 0,
            exchange: ShortStr::truncated(exchange),
            routing_key: ShortStr::truncated(&labels.key),
            mandatory: true,
            immediate: false,
        };
        let properties = BasicProperties { headers, ..BasicProperties::default() };
        write_method(&mut frames, 1, &method);
        let mut header = Vec::new();
        ContentHeader { body_bytes: 1, properties }.encode(&mut header);
        write_content(&mut frames, 1, &header, b"x", 4096);
    }
    let before = broker.cpu_time()?;
    peer.write(&frames)?;
    // Every one of them has to be there.
    peer.send(
        1,
        &Method::QueueDeclare {
            ticket: 0,
            queue: ShortStr::new(QUEUE)?,
            passive: true,
            durable: false,
            exclusive: false,
            auto_delete: false,
            nowait: false,
            arguments: Table::EMPTY,
        },
    )?;
    peer.expect("queue.declare-ok")?;
    let took = broker.cpu_time()?.saturating_sub(before).as_secs_f64();
    peer.send(1, &Method::QueuePurge { ticket: 0, queue: ShortStr::new(QUEUE)?, nowait: false })?;
    peer.expect("queue.purge-ok")?;
    #[expect(clippy::cast_precision_loss, reason = "a mean")]
    Ok(took * 1e6 / MESSAGES as f64)
}

/// Microseconds of CPU time that it takes to look through all bindings for the one that a message fits.
fn scan(case: &Case, all: &[Labels], naive: fn(&Labels, &Labels) -> bool) -> Result<f64> {
    let messages: Vec<_> = (0..SCANNED).map(|nth| (case.message)(order(nth))).collect();
    let thread = Path::new("/proc/thread-self");
    let before = thread_cpu_time(thread)?;
    for message in &messages {
        black_box(all.iter().filter(|binding| naive(binding, message)).count());
    }
    let took = thread_cpu_time(thread)?.saturating_sub(before).as_secs_f64();
    #[expect(clippy::cast_precision_loss, reason = "a mean")]
    Ok(took * 1e6 / SCANNED as f64)
}
