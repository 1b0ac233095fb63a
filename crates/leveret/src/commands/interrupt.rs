//! Ctrl-C for commands that end in good order.

use std::io;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::flag;

/// What a shell expects of a program that Ctrl-C ended.
pub(super) const EXIT_INTERRUPTED: u8 = 130;

/// The first Ctrl-C raises the flag; a second one ends the process where it stands.
pub(super) fn stop_at_ctrl_c() -> io::Result<Arc<AtomicBool>> {
    let stop = Arc::new(AtomicBool::new(false));
    for signal in [SIGINT, SIGTERM] {
        flag::register_conditional_shutdown(signal, EXIT_INTERRUPTED.into(), Arc::clone(&stop))?;
        flag::register(signal, Arc::clone(&stop))?;
    }
    Ok(stop)
}
