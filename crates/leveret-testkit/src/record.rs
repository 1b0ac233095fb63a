//! Writing scripts down, for a program that runs them against a broker behind a socket.

use std::cell::Cell;
use std::path::Path;
use std::{env, fs, thread};

/// The environment variable that names the folder to write into.
const FOLDER: &str = "LEVERET_SCRIPTS_TO";

thread_local! {
    /// How many scripts this test has run: each test has a thread of its own, which bears its name.
    static SCRIPTS: Cell<u32> = const { Cell::new(0) };
}

/// Writes a script into the folder, if there is one: `TEST`, and `TEST-2` and so on for the further ones of a test.
pub(crate) fn record(script: &str) {
    let Some(folder) = env::var_os(FOLDER) else { return };
    let number = SCRIPTS.get() + 1;
    SCRIPTS.set(number);
    let thread = thread::current();
    let test = thread.name().expect("a test has a name");
    let name = if number == 1 { test.to_owned() } else { format!("{test}-{number}") };
    fs::write(Path::new(&folder).join(name), script).expect("the folder for scripts can be written to");
}
