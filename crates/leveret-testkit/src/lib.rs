//! Protocol scripts against the core of the broker, in one thread with invented time.
//!
//! A script is what client and server say to each other, a line each, and what happens in between:
//!
//! ```
//! leveret_testkit::script("
//!     C: queue.declare queue='hello'
//!     S: queue.declare-ok 'hello' 0 0
//!     C: basic.publish routing-key='hello' body='Hello, World!'
//!     C: basic.get queue='hello' no-ack
//!     S: basic.get-ok 1 '' 'hello' 0 body='Hello, World!'
//! ");
//! ```
//!
//! | line | meaning |
//! | --- | --- |
//! | `C: METHOD ARGUMENTS` | the client sends a method; those with content send that, too |
//! | `C+: METHOD ARGUMENTS` | the same, but it arrives together with the client's next line |
//! | `S: METHOD ARGUMENTS` | the next thing the client hears is this |
//! | `S: nothing` | there is nothing to hear |
//! | `S: heartbeat` | the next thing the client hears is a heartbeat |
//! | `S: protocol-header` | it is the eight bytes of the protocol header |
//! | `S: end` | the broker has closed the socket |
//! | `C: protocol-header`, `C: heartbeat`, `C: end` | the client sends that, or closes its socket |
//! | `C: raw 01 ff 'text'` | the client sends these bytes |
//! | `C: content-header SIZE`, `C: content-body BODY` | frames of a content, one by one |
//! | `wait 30s` | time passes (`ms`, `s`, `min`, `h`) |
//! | `journal stops` | from now on, nothing that is journaled becomes durable |
//! | `restart` | the broker stops in good order, all connections with it, and starts again |
//! | `crash` | a power cut: the broker starts again with what was durable |
//! | `checkpoint`, `checkpoint step` | a checkpoint is written to its end, or goes one small step on; a later start begins at any that is complete, or at the beginning |
//! | `set policy NAME ARGUMENTS`, `set operator policy NAME ARGUMENTS` | an administrator sets it: `pattern`, `definition`, and perhaps `priority` and `apply-to` |
//! | `clear policy NAME`, `clear operator policy NAME` | an administrator takes it away |
//! | `short of memory`, `short of disk`, `short of memory and disk` | from now on, publishers wait |
//! | `room soon` | they wait for a moment, and are not told |
//! | `room again` | they go on |
//! | `journal keeps up` | everything that was journaled is durable, and what follows at once |
//!
//! `C` and `S` may name a connection and a channel: `Cb/2:` is channel 2 of connection `b`. Connections and channels
//! are opened when a line first names them, unless that line opens them itself. Channel 0 is the connection.
//!
//! Arguments go by name (`queue='q'`), flags by their name alone (`durable`); in what the server says, values
//! without a name stand for the arguments in their order, flags left out. What a line does not mention is 0, empty
//! or false in what the client sends. In what the server says it is anything, but flags are false.
//! A name such as `$tag` stands for what it was first compared with.
//!
//! Every script runs several times: as it is, with its bytes arriving one by one, with every body evicted from
//! memory at once, or at random, so that it has to be fetched back, sooner or later, and with a journal that lags
//! behind.

mod broker;
pub mod disk;
mod record;
mod script;
mod text;

pub use leveret_broker::change::NodeChange;

pub use broker::{Broker, Eviction, Lag, Variation, Windows};
pub use script::{
    BEGINNING, Extent, Heard, JournalPace, PolicyOrder, Room, Stop, Wire, continue_script, continue_script_of,
    run_script, waits,
};

/// Runs a script against fresh brokers, in each of the variations.
///
/// If the environment variable `LEVERET_SCRIPTS_TO` names a folder, the script is also written into it, as a file
/// that is named after the test. `cargo xtask conformance` collects them so.
///
/// # Panics
/// With the line and all that was said, if the broker says anything else.
#[track_caller]
pub fn script(text: &str) {
    record::record(text);
    for variation in Variation::ALL {
        let mut broker = Broker::new(variation);
        if let Err(failure) = run_script(&mut broker, text) {
            panic!("{failure}\n(variation: {variation:?})");
        }
    }
}
