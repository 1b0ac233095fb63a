//! The queues, exchanges and bindings of a run: made before it, deleted after it.
//!
//! Invariant: every name begins with `leveret-perf-` and something that no other run has.

use std::time::{SystemTime, UNIX_EPOCH};

use leveret_amqp::{FieldTable, ReplyCode, Table};
use leveret_client::{Channel, Connection, DeleteOnly, Error, ExchangeOptions, QueueOptions};

use crate::failure::{Failure, Unfinished};
use crate::limits::LAST_PATIENCE;
use crate::report::Outcome;
use crate::supervise::Run;

/// What a load is published to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Topology {
    /// So many queues, published to directly.
    Queues(usize),
    /// An exchange with queues behind it.
    Exchange {
        /// For example `direct`, or another type that the broker has.
        type_: String,
        /// How many routing keys are published with.
        routing_keys: usize,
        /// How many queues are bound.
        queues: usize,
    },
    /// A topic exchange with so many bindings, of which only one matches: that of the one queue that is consumed from.
    Topic {
        /// All bindings, that one included.
        bindings: usize,
    },
}

/// How queues are declared.
#[derive(Clone, Debug, Default)]
pub struct QueueShape {
    /// They survive a restart of the broker. Else they end with what uses them, also if this process is killed.
    pub durable: bool,
    /// Arguments such as `x-queue-type`.
    pub arguments: FieldTable,
}

/// Who uses the queues of a run, which decides what a queue can end with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Users {
    /// Nobody consumes: a queue ends with the connection that declared it.
    PublishersOnly,
    /// A queue ends with its last consumer.
    Consumers,
    /// Nothing that a broker would notice: a queue is deleted in the end.
    Getters,
    /// Consumers, and in the end somebody who looks what they have left: a queue stays until it is deleted.
    VerifiedConsumers,
}

/// Which messages arrive in which queue.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Routes {
    /// For each queue, the indexes of its routing keys.
    ByKey(Vec<Vec<usize>>),
    /// Each message in one of the queues, as the exchange likes.
    Anywhere,
}

impl Topology {
    /// How many routing keys are published with.
    pub(crate) fn key_count(&self) -> usize {
        match self {
            Topology::Queues(count) => *count,
            Topology::Exchange { routing_keys, .. } => *routing_keys,
            Topology::Topic { .. } => 1,
        }
    }

    /// How many queues are consumed from.
    pub(crate) fn queue_count(&self) -> usize {
        match self {
            Topology::Queues(count) => *count,
            Topology::Exchange { queues, .. } => *queues,
            Topology::Topic { .. } => 1,
        }
    }

    /// The most there are of queues, routing keys and bindings.
    pub(crate) fn name_count(&self) -> usize {
        match self {
            Topology::Queues(count) => *count,
            Topology::Exchange { routing_keys, queues, .. } => (*routing_keys).max(*queues),
            Topology::Topic { bindings } => *bindings,
        }
    }

    /// The bindings of an exchange as (queue, key), and the routes they make.
    fn bindings(&self) -> (Vec<(usize, String)>, Routes) {
        match self {
            Topology::Queues(count) => (Vec::new(), Routes::ByKey((0..*count).map(|queue| vec![queue]).collect())),
            Topology::Exchange { type_, routing_keys, queues } => {
                let all = || Routes::ByKey(vec![(0..*routing_keys).collect(); *queues]);
                match type_.as_str() {
                    "direct" | "topic" => {
                        let pairs = (0..(*routing_keys).max(*queues)).map(|n| (n % queues, n % routing_keys));
                        let mut keys_of = vec![Vec::new(); *queues];
                        pairs.clone().for_each(|(queue, key)| keys_of[queue].push(key));
                        (pairs.map(|(queue, key)| (queue, key_name(key))).collect(), Routes::ByKey(keys_of))
                    }
                    "fanout" | "headers" => ((0..*queues).map(|queue| (queue, String::new())).collect(), all()),
                    // A weight for those exchanges that take one.
                    _ => ((0..*queues).map(|queue| (queue, "1".to_owned())).collect(), Routes::Anywhere),
                }
            }
            Topology::Topic { bindings } => {
                let others = (1..*bindings).map(|number| (1, format!("sensor.{number}.*.temperature")));
                let matching = (0, format!("*.{MATCHING_WORD}.#"));
                let routes = Routes::ByKey(vec![vec![0]]);
                (std::iter::once(matching).chain(others).collect(), routes)
            }
        }
    }
}

/// A word in the middle of the key that is published with, which only one pattern has.
const MATCHING_WORD: &str = "match";

fn key_name(key: usize) -> String {
    format!("key.{key}")
}

/// What was declared for a run. [`Declared::delete`] takes it away again.
#[derive(Debug)]
pub(crate) struct Declared {
    connection: Connection,
    /// What is published to; of no characters for the default exchange.
    pub(crate) exchange: String,
    /// The routing keys.
    pub(crate) keys: Vec<String>,
    /// The queues that are consumed from.
    pub(crate) queues: Vec<String>,
    /// Queues that only have bindings.
    others: Vec<String>,
    pub(crate) routes: Routes,
}

impl Declared {
    /// Declares everything on a connection of its own.
    pub(crate) fn new(
        run: &Run<'_>,
        topology: &Topology,
        shape: &QueueShape,
        users: Users,
    ) -> Result<Self, Failure> {
        let mut connection = Connection::open_unless(&run.url, run.interrupt())?;
        connection.set_answer_timeout(run.timeout);
        let prefix = unique_prefix();
        let (bindings, routes) = topology.bindings();
        let queues: Vec<_> = (0..topology.queue_count()).map(|number| format!("{prefix}-{number}")).collect();
        let (exchange, keys, others) = match topology {
            Topology::Queues(_) => (String::new(), queues.clone(), Vec::new()),
            Topology::Exchange { routing_keys, .. } => {
                (prefix, (0..*routing_keys).map(key_name).collect(), Vec::new())
            }
            Topology::Topic { .. } => {
                let others = vec![format!("{prefix}-others")];
                (prefix, vec![format!("sensor.{MATCHING_WORD}.7.temperature")], others)
            }
        };
        let mut declared = Declared { connection, exchange, keys, queues, others, routes };
        let result = declared.declare(run, topology, shape, users, &bindings);
        declared.connection.set_interrupt(None);
        match result {
            Ok(()) => Ok(declared),
            Err(failure) => {
                // The reason counts; what was declared until then goes as far as it can.
                let _ = declared.delete_soon();
                Err(failure)
            }
        }
    }

    /// Declares everything. After a failure only what may be there has a name.
    fn declare(
        &mut self,
        run: &Run<'_>,
        topology: &Topology,
        shape: &QueueShape,
        users: Users,
        bindings: &[(usize, String)],
    ) -> Result<(), Failure> {
        let check = || if run.is_interrupted() { Err(Failure::Interrupted) } else { Ok(()) };
        let exchange = std::mem::take(&mut self.exchange);
        let mut channel = self.connection.open_channel()?;
        let options = QueueOptions {
            durable: shape.durable,
            exclusive: !shape.durable && users == Users::PublishersOnly,
            auto_delete: !shape.durable && users == Users::Consumers,
            arguments: shape.arguments.as_table(),
        };
        for queue in std::mem::take(&mut self.queues) {
            check()?;
            self.queues.push(queue);
            channel.declare_queue(&self.queues[self.queues.len() - 1], &options)?;
        }
        for queue in &self.others {
            channel.declare_queue(queue, &QueueOptions { exclusive: true, ..QueueOptions::default() })?;
        }
        let type_ = match topology {
            Topology::Queues(_) => return Ok(channel.close()?),
            Topology::Exchange { type_, .. } => type_,
            Topology::Topic { .. } => "topic",
        };
        let options = ExchangeOptions { durable: shape.durable, auto_delete: !shape.durable, ..Default::default() };
        check()?;
        self.exchange = exchange;
        channel.declare_exchange(&self.exchange, type_, &options)?;
        for (queue, key) in bindings {
            check()?;
            let queue = self.queues.iter().chain(&self.others).nth(*queue).expect("bindings name these queues");
            channel.bind_queue(queue, &self.exchange, key, Table::EMPTY)?;
        }
        Ok(channel.close()?)
    }

    /// Whether no message is ready in the queues that are consumed from.
    pub(crate) fn are_queues_empty(&self, channel: &mut Channel<'_>) -> Result<bool, Error> {
        for queue in &self.queues {
            if channel.check_queue(queue)?.message_count > 0 {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Deletes everything and closes the connection. Gives how many messages were still in the queues.
    pub(crate) fn delete(mut self) -> Result<u64, Error> {
        let exchange = (!self.exchange.is_empty()).then_some(self.exchange);
        let mut channel = self.connection.open_channel()?.id();
        let mut left = 0;
        for queue in self.queues.iter().chain(&self.others) {
            let mut on = self.connection.channel(channel).expect("nobody closes this channel");
            if let Some(count) = gone(on.delete_queue(queue, DeleteOnly::default()))? {
                left += u64::from(count);
            } else {
                // Its complaint has closed the channel.
                on.close()?;
                channel = self.connection.open_channel()?.id();
            }
        }
        if let Some(exchange) = exchange {
            let mut on = self.connection.channel(channel).expect("nobody closes this channel");
            gone(on.delete_exchange(&exchange, DeleteOnly::default()))?;
        }
        self.connection.close()?;
        Ok(left)
    }

    /// Deletes all of it at the end of a run. Returns what the run came to, and how many messages were left in its queues.
    pub(crate) fn delete_after(self, outcome: Result<Outcome, Unfinished>) -> Result<(Outcome, u64), Unfinished> {
        match outcome {
            Ok(outcome) => match self.delete() {
                Ok(left) => Ok((outcome, left)),
                Err(error) => Err(Unfinished { failure: error.into(), outcome: Some(Box::new(outcome)) }),
            },
            Err(unfinished) => {
                // The first reason counts; what was declared goes as far as it can.
                let _ = self.delete_soon();
                Err(unfinished)
            }
        }
    }

    /// The same after a failure, when a broker may be silent.
    fn delete_soon(mut self) -> Result<u64, Error> {
        self.connection.set_answer_timeout(LAST_PATIENCE);
        self.delete()
    }
}

/// What has ended by itself is gone, too: `None`.
fn gone<T>(deleted: Result<T, Error>) -> Result<Option<T>, Error> {
    match deleted {
        Err(error) if error.reply_code() == Some(ReplyCode::NotFound.code()) => Ok(None),
        other => other.map(Some),
    }
}

/// A prefix of names that no other run has.
pub(crate) fn unique_prefix() -> String {
    let since_1970 = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    format!("leveret-perf-{:x}-{:x}", std::process::id(), since_1970.as_nanos())
}

/// Which of `count` things are for worker `index` of `workers`: each has a worker, and each worker has one.
pub(crate) fn share(index: usize, workers: usize, count: usize) -> Vec<usize> {
    if workers >= count { vec![index % count] } else { (index..count).step_by(workers).collect() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn exchange(type_: &str, routing_keys: usize, queues: usize) -> Topology {
        Topology::Exchange { type_: type_.to_owned(), routing_keys, queues }
    }

    #[test]
    fn workers_and_things_are_shared_so_that_nobody_goes_without() {
        assert_eq!((share(0, 2, 5), share(1, 2, 5)), (vec![0, 2, 4], vec![1, 3]));
        assert_eq!([0, 1, 2].map(|index| share(index, 3, 2)), [[0], [1], [0]]);
    }

    #[test]
    fn every_queue_of_a_direct_exchange_has_a_key_and_every_key_a_queue() {
        let (bindings, routes) = exchange("direct", 2, 3).bindings();
        assert_eq!(bindings, [(0, "key.0".into()), (1, "key.1".into()), (2, "key.0".into())]);
        assert_eq!(routes, Routes::ByKey(vec![vec![0], vec![1], vec![0]]));
        let (bindings, routes) = exchange("topic", 3, 2).bindings();
        assert_eq!(bindings.len(), 3);
        assert_eq!(routes, Routes::ByKey(vec![vec![0, 2], vec![1]]));
    }

    #[test]
    fn a_fanout_copies_to_all_and_of_other_types_nobody_knows() {
        assert_eq!(exchange("fanout", 1, 2).bindings().1, Routes::ByKey(vec![vec![0], vec![0]]));
        assert_eq!(exchange("x-random", 5, 2).bindings().1, Routes::Anywhere);
    }

    #[test]
    fn one_of_many_topic_bindings_matches() {
        let (bindings, _) = Topology::Topic { bindings: 3 }.bindings();
        assert_eq!(bindings.iter().map(|(queue, _)| *queue).collect::<Vec<_>>(), [0, 1, 1]);
        assert!(bindings[1..].iter().all(|(_, pattern)| !pattern.contains(MATCHING_WORD)));
    }
}
