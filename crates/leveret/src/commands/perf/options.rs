//! The options of the scenarios, and the load that each stands for.
//!
//! As JSON they are the `options` of a report.

use std::time::Duration;

use clap::Args;
use leveret_perf::limits::{NAMES_MAX, OUTSTANDING_MAX, WINDOW_MAX};
use leveret_perf::{End, Idle, Load, Measure, QueueShape, Rpc, Take, Topology};
use serde::{Serialize, Serializer};

use super::Common;
use crate::commands::Failure;
use crate::commands::arguments::{Pair, parse_pair, table};

/// How long a scenario runs if nobody says otherwise, in seconds.
const SECONDS: f64 = 10.0;

/// How many messages a scenario has whose end is not a time, if nobody says otherwise.
const MESSAGES: u64 = 100_000;

/// When a scenario ends.
#[derive(Clone, Copy, Debug, Args, Serialize)]
pub(super) struct EndOptions {
    /// End after this many messages (or cycles), over all connections, and wait until all have arrived.
    #[arg(long, value_name = "COUNT", value_parser = clap::value_parser!(u64).range(1..))]
    messages: Option<u64>,
    /// End after so many seconds; what is still in the queues then is dropped, unless --verify looks for it. Without --messages
    /// it is 10.
    #[arg(long, value_name = "SECONDS", conflicts_with = "messages", value_parser = parse_seconds)]
    seconds: Option<f64>,
}

impl EndOptions {
    pub(super) fn end(self) -> End {
        let time = || End::Time(Duration::from_secs_f64(self.seconds.unwrap_or(SECONDS)));
        self.messages.map_or_else(time, End::Messages)
    }
}

/// How many of something there are, of which a run needs one.
fn parse_count(text: &str) -> Result<usize, String> {
    parse_within(1, NAMES_MAX, text)
}

/// How many publishes may be unconfirmed.
fn parse_window(text: &str) -> Result<usize, String> {
    parse_within(0, WINDOW_MAX, text)
}

/// The same, where there must be some.
fn parse_used_window(text: &str) -> Result<usize, String> {
    parse_within(1, WINDOW_MAX, text)
}

fn parse_within(min: usize, max: usize, text: &str) -> Result<usize, String> {
    let is_within = |count: &usize| (min..=max).contains(count);
    text.parse().ok().filter(is_within).ok_or_else(|| format!("it is not a number from {min} to {max}"))
}

/// Seconds that a clock can add.
fn parse_seconds(text: &str) -> Result<f64, String> {
    const LONGEST: f64 = 31_536_000.0;
    let seconds: f64 = text.parse().map_err(|_| "it is no number")?;
    if seconds > 0.0 && seconds <= LONGEST {
        Ok(seconds)
    } else {
        Err("it is not above 0 and at most a year".to_owned())
    }
}

/// How queues are declared.
#[derive(Clone, Debug, Args, Serialize)]
pub(super) struct QueueOptions {
    /// Declare queues that survive a restart of the broker. Others end with what uses them, also if this command is killed.
    #[arg(long)]
    durable: bool,
    /// An argument of the queues, such as x-queue-type=quorum. Integers, true and false get their type, anything else is text.
    /// May be repeated.
    #[arg(long = "queue-argument", value_name = "K=V", value_parser = parse_pair)]
    #[serde(serialize_with = "pairs_as_object")]
    queue_arguments: Vec<Pair>,
}

impl QueueOptions {
    fn shape(&self) -> QueueShape {
        QueueShape { durable: self.durable, arguments: table(&self.queue_arguments) }
    }
}

fn pairs_as_object<S: Serializer>(pairs: &[Pair], serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_map(pairs.iter().cloned().map(Pair::into_json))
}

/// What is published, where that is free to choose.
#[derive(Clone, Copy, Debug, Args, Serialize)]
pub(super) struct Publishing {
    /// Connections that publish.
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = parse_count)]
    producers: usize,
    /// Bytes of a message's body.
    #[arg(long, value_name = "BYTES", default_value_t = 100)]
    size: usize,
    /// Messages a second over all producers. Without it, as many as the broker takes.
    #[arg(long, value_name = "PER_SECOND", value_parser = clap::value_parser!(u64).range(1..))]
    rate: Option<u64>,
}

/// A load with the defaults that scenarios share; each says what is different.
fn plain_load(topology: Topology, queues: QueueShape, body_bytes: usize, end: End) -> Load {
    Load {
        topology,
        queue_shape: queues,
        producers: 1,
        consumers: 1,
        body_bytes,
        rate: None,
        persistent: false,
        confirm_window: 0,
        prefetch: 0,
        ack_every: 0,
        end,
        verify: false,
        measure: Measure::Confirms,
        take: Take::Meanwhile,
    }
}

impl Publishing {
    fn load(&self, topology: Topology, queues: QueueShape, end: End) -> Load {
        Load { producers: self.producers, rate: self.rate, ..plain_load(topology, queues, self.size, end) }
    }
}

/// Publish and consume as fast as possible, or at a rate.
#[derive(Debug, Args, Serialize)]
#[command(after_help = "Examples:\n  \
    leveret perf throughput --size 16 --seconds 5\n  \
    leveret perf throughput --producers 4 --consumers 4 --queues 4 --ack-every 100 --prefetch 1000\n  \
    leveret perf throughput --durable --persistent --confirm 1000 --verify --messages 1000000")]
pub(crate) struct Throughput {
    #[command(flatten)]
    #[serde(flatten)]
    publishing: Publishing,
    /// Connections that consume; with 0 messages are only published.
    #[arg(long, value_name = "N", default_value_t = 1)]
    consumers: usize,
    /// Queues, shared out among producers and among consumers.
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = parse_count)]
    queues: usize,
    /// Ask for messages that survive a restart in a durable queue: delivery-mode=2.
    #[arg(long)]
    persistent: bool,
    #[command(flatten)]
    #[serde(flatten)]
    queue_options: QueueOptions,
    /// Ask for confirms, with at most this many publishes of a producer unconfirmed. 0 is no confirms.
    #[arg(long, value_name = "WINDOW", default_value_t = 0, value_parser = parse_window)]
    confirm: usize,
    /// How many messages a consumer may have unacked. 0 is any number.
    #[arg(long, value_name = "N", default_value_t = 0)]
    prefetch: u16,
    /// Ack messages, so many with one ack. 0 is automatic acks: a message is settled as soon as it is sent.
    #[arg(long, value_name = "N", default_value_t = 0)]
    ack_every: u64,
    /// Publish with so many routing keys in turn, through an exchange. Without it there is one for each queue.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    routing_keys: Option<u64>,
    /// Publish to an exchange of this type: direct, fanout, topic, headers, or another that the broker has. Without it and
    /// --routing-keys, straight to the queues.
    #[arg(long, value_name = "TYPE")]
    exchange_type: Option<String>,
    #[command(flatten)]
    #[serde(flatten)]
    end: EndOptions,
    /// Look for every message: one that is lost, doubled or out of order is an error.
    #[arg(long)]
    verify: bool,
    #[command(flatten)]
    #[serde(skip)]
    pub(super) common: Common,
}

impl Throughput {
    pub(super) fn load(&self) -> Result<Load, Failure> {
        if self.verify && self.consumers == 0 {
            return Err(Failure::Usage("--verify needs a consumer".to_owned()));
        }
        let routing_keys = self.routing_keys.map(|count| usize::try_from(count).unwrap_or(usize::MAX));
        let topology = match (&self.exchange_type, routing_keys) {
            (None, None) => Topology::Queues(self.queues),
            (type_, routing_keys) => Topology::Exchange {
                type_: type_.clone().unwrap_or_else(|| "direct".to_owned()),
                routing_keys: routing_keys.unwrap_or(self.queues),
                queues: self.queues,
            },
        };
        Ok(Load {
            consumers: self.consumers,
            persistent: self.persistent,
            confirm_window: self.confirm,
            prefetch: self.prefetch,
            ack_every: self.ack_every,
            verify: self.verify,
            ..self.publishing.load(topology, self.queue_options.shape(), self.end.end())
        })
    }
}

/// Measure how long messages take through a queue at a fixed rate.
///
/// Every message has a time at which it is due, and its latency counts from there to its arrival, whatever held it up: a stall is
/// in the latencies of all messages that were due meanwhile.
#[derive(Debug, Args, Serialize)]
#[command(after_help = "Example:\n  leveret perf latency --rate 10000 --seconds 30")]
pub(crate) struct Latency {
    /// Messages a second.
    #[arg(long, value_name = "PER_SECOND", default_value_t = 1000, value_parser = clap::value_parser!(u64).range(1..))]
    rate: u64,
    /// Bytes of a message's body; at least 16.
    #[arg(long, value_name = "BYTES", default_value_t = 100)]
    size: usize,
    /// Ask for messages that survive a restart in a durable queue: delivery-mode=2.
    #[arg(long)]
    persistent: bool,
    #[command(flatten)]
    #[serde(flatten)]
    queue_options: QueueOptions,
    /// Ack messages, so many with one ack. 0 is automatic acks.
    #[arg(long, value_name = "N", default_value_t = 0)]
    ack_every: u64,
    #[command(flatten)]
    #[serde(flatten)]
    end: EndOptions,
    /// Look for every message: one that is lost, doubled or out of order is an error.
    #[arg(long)]
    verify: bool,
    #[command(flatten)]
    #[serde(skip)]
    pub(super) common: Common,
}

impl Latency {
    pub(super) fn load(&self) -> Load {
        Load {
            rate: Some(self.rate),
            persistent: self.persistent,
            ack_every: self.ack_every,
            verify: self.verify,
            measure: Measure::EndToEnd,
            ..plain_load(Topology::Queues(1), self.queue_options.shape(), self.size, self.end.end())
        }
    }
}

/// Measure confirms: how many a second, and how long each takes.
///
/// Persistent messages go to durable queues, which nobody consumes from; they are deleted in the end.
#[derive(Debug, Args, Serialize)]
#[command(after_help = "Example:\n  leveret perf confirm --window 1 --seconds 5")]
pub(crate) struct Confirm {
    /// How many publishes of a producer may be unconfirmed.
    #[arg(long, value_name = "N", default_value_t = 100, value_parser = parse_used_window)]
    window: usize,
    /// Connections that publish.
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = parse_count)]
    producers: usize,
    /// Queues, shared out among producers.
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = parse_count)]
    queues: usize,
    /// Bytes of a message's body.
    #[arg(long, value_name = "BYTES", default_value_t = 100)]
    size: usize,
    /// Messages a second over all producers. Without it, as many as the window lets through.
    #[arg(long, value_name = "PER_SECOND", value_parser = clap::value_parser!(u64).range(1..))]
    rate: Option<u64>,
    /// An argument of the queues, such as x-queue-type=quorum, typed as with `leveret declare`. May be repeated.
    #[arg(long = "queue-argument", value_name = "K=V", value_parser = parse_pair)]
    #[serde(serialize_with = "pairs_as_object")]
    queue_arguments: Vec<Pair>,
    #[command(flatten)]
    #[serde(flatten)]
    end: EndOptions,
    #[command(flatten)]
    #[serde(skip)]
    pub(super) common: Common,
}

impl Confirm {
    pub(super) fn load(&self) -> Load {
        let shape = QueueShape { durable: true, arguments: table(&self.queue_arguments) };
        Load {
            producers: self.producers,
            consumers: 0,
            rate: self.rate,
            persistent: true,
            confirm_window: self.window,
            ..plain_load(Topology::Queues(self.queues), shape, self.size, self.end.end())
        }
    }
}

/// Publish to a fanout exchange, behind which each queue has a consumer.
#[derive(Debug, Args, Serialize)]
#[command(after_help = "Example:\n  leveret perf fanout --queues 50 --seconds 5")]
pub(crate) struct Fanout {
    /// Queues, each with a consumer.
    #[arg(long, value_name = "N", default_value_t = 10, value_parser = parse_count)]
    queues: usize,
    #[command(flatten)]
    #[serde(flatten)]
    publishing: Publishing,
    #[command(flatten)]
    #[serde(flatten)]
    end: EndOptions,
    /// Look for every message in every queue: one that is lost, doubled or out of order is an error.
    #[arg(long)]
    verify: bool,
    #[command(flatten)]
    #[serde(skip)]
    pub(super) common: Common,
}

impl Fanout {
    pub(super) fn load(&self) -> Load {
        let topology = Topology::Exchange { type_: "fanout".to_owned(), routing_keys: 1, queues: self.queues };
        Load {
            consumers: self.queues,
            verify: self.verify,
            ..self.publishing.load(topology, QueueShape::default(), self.end.end())
        }
    }
}

/// Ask and answer through a queue, with replies over direct reply-to.
#[derive(Debug, Args, Serialize)]
#[command(after_help = "Example:\n  leveret perf rpc --outstanding 10 --clients 4")]
pub(crate) struct RpcOptions {
    /// How many requests of a client are unanswered at once.
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..=OUTSTANDING_MAX))]
    outstanding: u64,
    /// Connections that ask.
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = parse_count)]
    clients: usize,
    /// Connections that answer, all at the one queue of the requests.
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = parse_count)]
    servers: usize,
    /// Ask servers of yours, which consume from this queue, instead of starting any. They must publish each reply to the reply-to
    /// of its request, with the correlation-id of its request.
    #[arg(long, value_name = "QUEUE", conflicts_with = "servers")]
    server_queue: Option<String>,
    /// Bytes of a body, of requests and of replies.
    #[arg(long, value_name = "BYTES", default_value_t = 100)]
    size: usize,
    #[command(flatten)]
    #[serde(flatten)]
    end: EndOptions,
    /// Look for every reply: one that is lost or doubled is an error, and with one server one out of order.
    #[arg(long)]
    verify: bool,
    #[command(flatten)]
    #[serde(skip)]
    pub(super) common: Common,
}

impl RpcOptions {
    pub(super) fn rpc(&self) -> Rpc {
        Rpc {
            clients: self.clients,
            servers: self.servers,
            server_queue: self.server_queue.clone(),
            outstanding: self.outstanding,
            body_bytes: self.size,
            end: self.end.end(),
            verify: self.verify,
        }
    }
}

/// Fill a queue, then take its messages one by one with basic.get.
#[derive(Debug, Args, Serialize)]
#[command(after_help = "Example:\n  leveret perf get --messages 10000 --ack-every 1")]
pub(crate) struct Get {
    /// How many messages.
    #[arg(long, value_name = "COUNT", default_value_t = 10_000, value_parser = clap::value_parser!(u64).range(1..))]
    messages: u64,
    /// Connections that get.
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..))]
    consumers: u32,
    /// Bytes of a message's body.
    #[arg(long, value_name = "BYTES", default_value_t = 100)]
    size: usize,
    /// Ask for messages that survive a restart in a durable queue: delivery-mode=2.
    #[arg(long)]
    persistent: bool,
    #[command(flatten)]
    #[serde(flatten)]
    queue_options: QueueOptions,
    /// Ack messages, so many with one ack. 0 is automatic acks.
    #[arg(long, value_name = "N", default_value_t = 0)]
    ack_every: u64,
    /// Look for every message: one that is lost, doubled or out of order is an error.
    #[arg(long)]
    verify: bool,
    #[command(flatten)]
    #[serde(skip)]
    pub(super) common: Common,
}

impl Get {
    pub(super) fn load(&self) -> Load {
        let end = End::Messages(self.messages);
        Load {
            consumers: usize::try_from(self.consumers).unwrap_or(usize::MAX),
            persistent: self.persistent,
            ack_every: self.ack_every,
            verify: self.verify,
            measure: Measure::Gets,
            take: Take::ByGet,
            ..plain_load(Topology::Queues(1), self.queue_options.shape(), self.size, end)
        }
    }
}

/// Publish to a topic exchange with many bindings, of which one matches.
#[derive(Debug, Args, Serialize)]
#[command(after_help = "Example:\n  leveret perf topic --bindings 10000 --seconds 5")]
pub(crate) struct Topic {
    /// Bindings of the exchange.
    #[arg(long, value_name = "N", default_value_t = 1000, value_parser = parse_count)]
    bindings: usize,
    #[command(flatten)]
    #[serde(flatten)]
    publishing: Publishing,
    #[command(flatten)]
    #[serde(flatten)]
    end: EndOptions,
    /// Look for every message: one that is lost, doubled or out of order is an error.
    #[arg(long)]
    verify: bool,
    #[command(flatten)]
    #[serde(skip)]
    pub(super) common: Common,
}

impl Topic {
    pub(super) fn load(&self) -> Load {
        let topology = Topology::Topic { bindings: self.bindings };
        Load { verify: self.verify, ..self.publishing.load(topology, QueueShape::default(), self.end.end()) }
    }
}

/// Fill queues first, then empty them; each has its rate.
#[derive(Debug, Args, Serialize)]
#[command(after_help = "Example:\n  leveret perf drain --messages 1000000 --durable --persistent")]
pub(crate) struct Drain {
    /// How many messages.
    #[arg(long, value_name = "COUNT", default_value_t = MESSAGES, value_parser = clap::value_parser!(u64).range(1..))]
    messages: u64,
    /// Connections that publish.
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = parse_count)]
    producers: usize,
    /// Connections that consume.
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..))]
    consumers: u32,
    /// Queues, shared out among producers and among consumers.
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = parse_count)]
    queues: usize,
    /// Bytes of a message's body.
    #[arg(long, value_name = "BYTES", default_value_t = 100)]
    size: usize,
    /// Ask for messages that survive a restart in a durable queue: delivery-mode=2.
    #[arg(long)]
    persistent: bool,
    #[command(flatten)]
    #[serde(flatten)]
    queue_options: QueueOptions,
    /// How many messages a consumer may have unacked. 0 is any number.
    #[arg(long, value_name = "N", default_value_t = 0)]
    prefetch: u16,
    /// Ack messages, so many with one ack. 0 is automatic acks.
    #[arg(long, value_name = "N", default_value_t = 0)]
    ack_every: u64,
    /// Look for every message: one that is lost, doubled or out of order is an error.
    #[arg(long)]
    verify: bool,
    #[command(flatten)]
    #[serde(skip)]
    pub(super) common: Common,
}

impl Drain {
    pub(super) fn load(&self) -> Load {
        let end = End::Messages(self.messages);
        Load {
            producers: self.producers,
            consumers: usize::try_from(self.consumers).unwrap_or(usize::MAX),
            persistent: self.persistent,
            prefetch: self.prefetch,
            ack_every: self.ack_every,
            verify: self.verify,
            take: Take::Afterwards,
            ..plain_load(Topology::Queues(self.queues), self.queue_options.shape(), self.size, end)
        }
    }
}

/// What is opened and closed, how many at once and how long.
#[derive(Debug, Args, Serialize)]
pub(crate) struct ChurnOptions {
    /// How many threads open and close, each over a connection of its own.
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = parse_count)]
    pub(super) parallel: usize,
    #[command(flatten)]
    #[serde(flatten)]
    pub(super) end: EndOptions,
    #[command(flatten)]
    #[serde(skip)]
    pub(super) common: Common,
}

/// Open many connections with a channel each, and hold them.
///
/// Says how long it took to open them, and with --pid what each costs that process in resident memory.
#[derive(Debug, Args, Serialize)]
#[command(after_help = "Example:\n  leveret perf idle --connections 1000 --pid $(pidof leveret)")]
pub(crate) struct IdleOptions {
    /// How many connections.
    #[arg(long, value_name = "N", default_value_t = 100, value_parser = parse_count)]
    connections: usize,
    /// How many are being opened at once.
    #[arg(long, value_name = "N", default_value_t = 4, value_parser = parse_count)]
    parallel: usize,
    /// How many seconds they are held.
    #[arg(long, value_name = "SECONDS", default_value_t = SECONDS, value_parser = parse_seconds)]
    seconds: f64,
    /// The process of a broker on this machine, whose memory is read before and after.
    #[arg(long, value_name = "PID")]
    pid: Option<u32>,
    #[command(flatten)]
    #[serde(skip)]
    pub(super) common: Common,
}

impl IdleOptions {
    pub(super) fn idle(&self) -> Idle {
        Idle {
            connections: self.connections,
            parallel: self.parallel,
            hold: Duration::from_secs_f64(self.seconds),
            process: self.pid,
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Cli {
        #[command(flatten)]
        throughput: Throughput,
    }

    fn parse(arguments: &[&str]) -> Result<Throughput, clap::Error> {
        Cli::try_parse_from(std::iter::once(&"throughput").chain(arguments)).map(|cli| cli.throughput)
    }

    #[test]
    fn routing_keys_and_exchange_types_each_ask_for_an_exchange() {
        let topology = |arguments: &[&str]| parse(arguments).unwrap().load().unwrap().topology;
        let exchange = |type_: &str, routing_keys, queues| Topology::Exchange {
            type_: type_.to_owned(),
            routing_keys,
            queues,
        };
        assert_eq!(topology(&["--queues", "3"]), Topology::Queues(3));
        assert_eq!(topology(&["--routing-keys", "5"]), exchange("direct", 5, 1));
        assert_eq!(topology(&["--exchange-type", "topic", "--queues", "2"]), exchange("topic", 2, 2));
    }

    #[test]
    fn options_that_cannot_be_are_refused() {
        for bad in [
            &["--seconds", "0"][..],
            &["--seconds", "nan"],
            &["--seconds", "1", "--messages", "1"],
            &["--rate", "0"],
        ] {
            assert!(parse(bad).is_err(), "{bad:?}");
        }
        let nobody_to_verify = parse(&["--verify", "--consumers", "0"]).unwrap().load();
        assert!(matches!(nobody_to_verify, Err(Failure::Usage(_))));
    }

    #[test]
    fn options_as_json_have_the_names_and_types_of_the_command_line() {
        let options = parse(&["--seconds", "2", "--queue-argument", "x-max-length=5", "--json"]).unwrap();
        let json = serde_json::to_value(&options).unwrap();
        assert_eq!(
            (&json["seconds"], &json["size"], &json["messages"]),
            (&2.0.into(), &100.into(), &serde_json::Value::Null)
        );
        assert_eq!(json["queue_arguments"], serde_json::json!({"x-max-length": 5}));
        assert_eq!((json.get("json"), json.get("url")), (None, None));
    }
}
