//! A load tool for brokers of AMQP 0-9-1.
//!
//! Owns: the load of each scenario, what is counted, and how it is shown.
//! Must not know: the inside of any broker.
//!
//! What is published is encoded once; what arrives is looked at no further than needed. Each producer and consumer is a
//! connection and a thread of its own, so that the broker is what is measured.

mod board;
mod churn;
mod consumer;
mod failure;
mod idle;
mod lane;
mod latency;
pub mod limits;
mod load;
mod open_files;
mod page;
mod producer;
mod publishes;
mod report;
mod rpc;
mod scan;
mod schedule;
mod stamp;
mod supervise;
mod topology;
mod verify;
mod window;

pub use churn::{Churn, Thing};
pub use failure::{Failure, Unfinished};
pub use idle::Idle;
pub use latency::LatencySummary;
pub use load::{End, Load, Measure, Take};
pub use report::{Outcome, Report, grouped, per_second};
pub use rpc::Rpc;
pub use supervise::{Progress, Run, Sample};
pub use topology::{QueueShape, Topology};
pub use verify::Verification;
