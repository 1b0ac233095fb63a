//! Why a run came to nothing, in the words a user sees.

use std::io;
use std::time::Duration;

use leveret_client::Error;

use crate::report::Outcome;

/// Why a run came to nothing.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// Options that do not go together.
    #[error("{0}")]
    Options(String),
    /// The broker refused something, went away, or was not there.
    #[error(transparent)]
    Broker(#[from] Error),
    /// The same, of one connection of many.
    #[error("{error} (connection of {of})")]
    Connection {
        /// For example `producer 2`.
        of: String,
        /// What happened to it.
        error: Error,
    },
    /// The user ended the run before its load began.
    #[error("ended before the load began")]
    Interrupted,
    /// The broker made no progress for too long.
    #[error("the broker made no progress for {} s: {what}", after.as_secs_f32())]
    Stalled {
        /// What was waited for.
        what: String,
        /// For how long.
        after: Duration,
    },
    /// The broker took no messages for too long: `connection.blocked`.
    #[error("the broker has held publishes back for {} s", after.as_secs_f32())]
    Held {
        /// For how long nothing moved.
        after: Duration,
    },
    /// A process whose memory cannot be read.
    #[error("cannot read the memory of process {0}")]
    Process(u32),
    /// The system did not let us have something.
    #[error("the system refuses: {0}")]
    System(#[source] io::Error),
}

impl Failure {
    /// What the user can do about it: a clause without capital and full stop.
    pub fn advice(&self) -> Option<&'static str> {
        match self {
            Failure::Broker(error) | Failure::Connection { error, .. } => error.advice(),
            Failure::Stalled { .. } => Some("look at the broker's log, or allow it more time with --timeout"),
            Failure::Held { .. } => Some("free memory or disk of the broker, or allow it more time with --timeout"),
            Failure::Process(_) => Some("give --pid the number of a process that runs on this machine"),
            Failure::Options(_) | Failure::Interrupted | Failure::System(_) => None,
        }
    }
}

/// A run that did not come to its end.
#[derive(Debug)]
pub struct Unfinished {
    /// Why not.
    pub failure: Failure,
    /// What was measured until then; `None` if the load had not begun.
    pub outcome: Option<Box<Outcome>>,
}

impl<F: Into<Failure>> From<F> for Unfinished {
    /// Before the load began.
    fn from(failure: F) -> Self {
        Unfinished { failure: failure.into(), outcome: None }
    }
}
