//! What a virtual host holds in memory for clients, beside the messages in its queues, and how much that may be.
//!
//! Owns: three accounts. Of open *transactions*, until they end, and of *consumers*, until they are cancelled: each connection has its
//! part of these. And of what is *declared* and stays until somebody deletes it: queues, exchanges, bindings.
//! A connection may hold more as long as that is no more than is left for all. So none alone has more than half, and leaves as much to
//! others; and a little may be held by anybody, whatever others do.

use crate::limits::{HELD_BYTES_SMALL, UNACKED_ALL};
use crate::memory::{Lease, Meter};
use crate::vhost::refusal::Refusal;

/// How much a virtual host may hold for clients.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ceilings {
    /// Bytes of messages in its open transactions, all together.
    pub transactions: usize,
    /// Whether other virtual hosts have messages in transactions. While nobody has, one message may be of any size.
    pub others_transact: bool,
    /// Bytes of its consumers.
    pub consumers: usize,
    /// Bytes of what is declared.
    pub declared: usize,
    /// Deliveries that the consumers of one channel may leave unacked, whatever their prefetch.
    pub unacked: u64,
}

impl Default for Ceilings {
    /// None.
    fn default() -> Self {
        let (transactions, consumers, declared) = (usize::MAX, usize::MAX, usize::MAX);
        Ceilings { transactions, others_transact: false, consumers, declared, unacked: UNACKED_ALL }
    }
}

/// Bytes that a virtual host holds for clients.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Holdings {
    /// Of messages in open transactions.
    pub transactions: usize,
    /// Of consumers.
    pub consumers: usize,
    /// Of what is declared.
    pub declared: usize,
}

/// The accounts of a virtual host.
#[derive(Debug)]
pub(super) struct Ledger {
    transactions: Meter,
    consumers: Meter,
    declared: Meter,
    pub(super) ceilings: Ceilings,
}

/// The parts of one connection.
#[derive(Debug)]
pub(super) struct Part {
    transactions: Meter,
    consumers: Meter,
}

impl Part {
    /// For a transaction.
    pub(super) fn transaction(&self) -> Lease {
        Lease::new(self.transactions.clone())
    }

    /// For a consumer.
    pub(super) fn consumer(&self) -> Lease {
        Lease::new(self.consumers.clone())
    }
}

impl Ledger {
    /// Nothing yet. What is in transactions counts in `memory`, too.
    pub(super) fn new(memory: &Meter) -> Self {
        let (consumers, declared) = (Meter::default(), Meter::default());
        Ledger { transactions: memory.part(), consumers, declared, ceilings: Ceilings::default() }
    }

    /// The part of a connection.
    pub(super) fn part(&self) -> Part {
        Part { transactions: self.transactions.part(), consumers: self.consumers.part() }
    }

    /// For what is declared.
    pub(super) fn declaration(&self) -> Lease {
        Lease::new(self.declared.clone())
    }

    pub(super) fn holdings(&self) -> Holdings {
        Holdings {
            transactions: self.transactions.bytes(),
            consumers: self.consumers.bytes(),
            declared: self.declared.bytes(),
        }
    }

    /// Whether a connection may have a message of so many bytes more in its transactions: any, where nobody has one.
    pub(super) fn check_transaction(&self, part: &Part, bytes: usize) -> Result<(), Refusal> {
        let is_first = self.transactions.bytes() == 0 && !self.ceilings.others_transact;
        let has_room = has_room(self.ceilings.transactions, &self.transactions, &part.transactions, bytes);
        if is_first || has_room { Ok(()) } else { Err(Refusal::NoRoomForTransaction) }
    }

    /// Whether a connection may have a consumer more that takes so many bytes.
    pub(super) fn check_consumer(&self, part: &Part, bytes: usize) -> Result<(), Refusal> {
        let has_room = has_room(self.ceilings.consumers, &self.consumers, &part.consumers, bytes);
        if has_room { Ok(()) } else { Err(Refusal::NoRoomForConsumer) }
    }

    /// Whether so many bytes more may be declared.
    pub(super) fn check_declared(&self, bytes: usize) -> Result<(), Refusal> {
        let left = self.ceilings.declared.saturating_sub(self.declared.bytes());
        if bytes <= left { Ok(()) } else { Err(Refusal::DeclaredTooMuch) }
    }
}

fn has_room(ceiling: usize, all: &Meter, own: &Meter, more: usize) -> bool {
    own.bytes() + more <= ceiling.saturating_sub(all.bytes()).max(HELD_BYTES_SMALL)
}
