//! How connections, outboxes and the journal's writer hand things over, in thousands of orders of their steps.
//!
//! Each test is a model: the real code, with a few threads that do as connections do. Shuttle runs one of them at a time, and at
//! each lock, atomic and wake-up chooses which goes on. Whoever waits for something that nobody will do any more is a
//! failure, and so is whatever a model asserts.
//!
//! `cargo xtask proof` runs them: `cargo test --profile proof -p leveret-server --features shuttle --lib hand_over`.

mod connections;
mod journal;
mod outboxes;
mod schedules;
