//! What the broker does, as protocol scripts. The language is described in the crate's documentation.

mod basics;
mod channel;
mod confirms;
mod connection;
mod consumers;
mod dead_letters;
mod delayed;
mod durability;
mod exchange_types;
mod exchanges;
mod expiry;
mod hostile;
mod limits;
mod permissions;
mod policies;
mod priorities;
mod publishing;
mod queues;
mod quorum;
mod replies;
mod room;
mod settling;
mod single_active;
mod timeouts;
mod transactions;
