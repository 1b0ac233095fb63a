//! As many connections as a run needs, if the system lets us have them.

use crate::failure::Failure;
use crate::limits::CONNECTIONS_MAX;

/// Files of this process beside its connections.
#[cfg(unix)]
const OTHER_FILES: u64 = 64;

/// Makes sure that there may be so many connections. `options` names those that say how many.
pub(crate) fn allow_connections(connections: usize, options: &str) -> Result<(), Failure> {
    if connections > CONNECTIONS_MAX {
        let why = format!("a run has at most {CONNECTIONS_MAX} connections: give fewer {options}");
        return Err(Failure::Options(why));
    }
    allow_files(connections, options)
}

/// Asks the system for as many open files as connections need.
#[cfg(unix)]
fn allow_files(connections: usize, options: &str) -> Result<(), Failure> {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let needed = connections as u64 + OTHER_FILES;
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    if current.is_none_or(|current| current >= needed) {
        return Ok(());
    }
    if let Some(maximum) = maximum.filter(|&maximum| maximum < needed) {
        let why = format!(
            "the system allows this process {maximum} open files, and {connections} connections need more: give fewer {options}, or raise it"
        );
        return Err(Failure::Options(why));
    }
    setrlimit(Resource::Nofile, Rlimit { current: Some(needed), maximum })
        .map_err(|error| Failure::System(error.into()))
}

/// Elsewhere there is no such limit.
#[cfg(not(unix))]
fn allow_files(_: usize, _: &str) -> Result<(), Failure> {
    Ok(())
}
