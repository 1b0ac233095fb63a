//! How often everything occurred: what never did was not tested.

use std::collections::BTreeMap;
use std::fmt;

/// What is counted, by kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// What clients do.
    Operation,
    /// What goes wrong, and what the broker does by itself.
    Fault,
    /// What queues are declared with.
    Argument,
    /// What came of it.
    Outcome,
}

/// All that must occur among many seeds.
const EXPECTED: &[(Kind, &[&str])] = &[
    (
        Kind::Operation,
        &[
            "publish",
            "publish, confirmed",
            "publish in a transaction",
            "publishes that arrive together",
            "get",
            "consume",
            "cancel",
            "ack",
            "ack, multiple",
            "nack",
            "nack, requeue",
            "nack, requeue, multiple",
            "reject",
            "reject, requeue",
            "ack of an unknown tag",
            "recover",
            "commit",
            "rollback",
            "declare a queue",
            "declare passively",
            "delete a queue",
            "purge",
            "declare an exchange",
            "delete an exchange",
            "bind",
            "unbind",
            "close a channel",
            "close a connection",
            "lose a connection",
            "time passes",
            "time jumps",
            "restart in good order",
            "prefetch 0",
            "prefetch 1",
            "prefetch of several",
            "few may be unacked",
        ],
    ),
    (
        Kind::Fault,
        &[
            "write the journal",
            "mark the journal",
            "make spares",
            "checkpoint step",
            "whole checkpoint",
            "segments swept",
            "power cut",
            "power cut later",
            "power cut in a recovery",
            "write lost",
            "write kept",
            "write torn",
            "failed sync",
            "failed sync of the folder",
            "end after a failed sync",
            "failed read in a start",
            "wall clock set",
            "full disk",
            "batch without room",
            "room again",
            "body evicted",
            "body read back",
            "input split",
            "half a publish stands",
            "half a publish finished",
            "half a publish lost",
            "half a publish on a channel that was closed",
            "silent client closed",
            "answer read in part",
            "journal lags",
        ],
    ),
    (
        Kind::Argument,
        &[
            "classic",
            "x-queue-type=quorum",
            "durable",
            "transient",
            "exclusive",
            "auto-delete",
            "x-message-ttl",
            "x-expires",
            "x-max-length",
            "x-max-length-bytes",
            "x-overflow=drop-head",
            "x-overflow=reject-publish",
            "x-overflow=reject-publish-dlx",
            "x-overflow=reject-publish-dlx, passed over",
            "x-dead-letter-exchange",
            "x-dead-letter-routing-key",
            "x-dead-letter-strategy=at-most-once",
            "x-dead-letter-strategy=at-least-once",
            "dead letters are kept",
            "x-max-priority",
            "x-max-priority, passed over",
            "x-single-active-consumer",
            "x-delivery-limit",
            "x-consumer-timeout",
            "x-queue-leader-locator",
            "x-queue-leader-locator of a classic queue",
            "x-quorum-initial-group-size",
            "x-max-in-memory-length",
            "x-max-in-memory-bytes",
            "x-queue-mode",
            "x-queue-version",
            "x-queue-master-locator",
        ],
    ),
    (
        Kind::Outcome,
        &[
            "delivered",
            "redelivered",
            "got",
            "returned",
            "confirmed",
            "refused",
            "channel closed",
            "consumer timed out",
            "channel timed out",
            "settled too late",
            "dead letters wait",
        ],
    ),
];

/// What was counted.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Stats(BTreeMap<(Kind, &'static str), u64>);

impl Stats {
    pub(crate) fn count(&mut self, kind: Kind, what: &'static str) {
        self.count_many(kind, what, 1);
    }

    pub(crate) fn count_many(&mut self, kind: Kind, what: &'static str, times: u64) {
        *self.0.entry((kind, what)).or_default() += times;
    }

    /// How often something occurred.
    pub fn get(&self, kind: Kind, what: &'static str) -> u64 {
        self.0.get(&(kind, what)).copied().unwrap_or_default()
    }

    /// Takes in what another run has counted.
    pub fn add(&mut self, other: &Stats) {
        for (what, count) in &other.0 {
            *self.0.entry(*what).or_default() += count;
        }
    }

    /// What should have occurred and never did.
    pub fn missing(&self) -> Vec<&'static str> {
        let all = EXPECTED.iter().flat_map(|(kind, all)| all.iter().map(|what| (*kind, *what)));
        all.filter(|(kind, what)| self.get(*kind, what) == 0).map(|(_, what)| what).collect()
    }
}

impl fmt::Display for Stats {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut last = None;
        for ((kind, what), count) in &self.0 {
            if last.replace(*kind) != Some(*kind) {
                writeln!(f, "{kind:?}:")?;
            }
            writeln!(f, "  {count:>10} {what}")?;
        }
        Ok(())
    }
}
