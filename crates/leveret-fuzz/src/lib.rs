//! What arbitrary bytes may do to Leveret: each target is a function of bytes that panics if they do anything else.
//!
//! Owns: the targets, their bounds of memory and stack, the corpus.
//! Must not know: who makes up the bytes. That is libFuzzer (`src/bin/libfuzzer.rs`) or proptest (`src/bin/proptest.rs`), and
//! `cargo test` has all targets take the corpus.

mod allowance;
mod bytes;
mod targets;

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

pub use allowance::PatternBytes;
pub use targets::TARGETS;

/// Something that takes bytes from outside.
#[derive(Clone, Copy, Debug)]
pub struct Target {
    /// What `cargo xtask fuzz` calls it, and the folder of its corpus.
    pub name: &'static str,
    /// Does with an input all that can be done with it.
    ///
    /// # Panics
    /// If anything comes of it that must not.
    pub run: fn(&[u8]),
}

/// The variable that names the target to drive.
pub const TARGET_VARIABLE: &str = "LEVERET_FUZZ_TARGET";

/// The variable that names the file which holds the input that is being tried.
pub const INPUT_VARIABLE: &str = "LEVERET_FUZZ_INPUT";

/// Bytes of the stack that a target may have. However deep something is nested, it takes no more.
pub const STACK_BYTES: usize = 1024 * 1024;

impl Target {
    /// The target of this name.
    pub fn find(name: &str) -> Option<Target> {
        TARGETS.iter().find(|target| target.name == name).copied()
    }

    /// The target that [`TARGET_VARIABLE`] names.
    ///
    /// # Panics
    /// If there is none of that name.
    pub fn of_environment() -> Target {
        let name = std::env::var(TARGET_VARIABLE).unwrap_or_default();
        let names = TARGETS.map(|target| target.name).join(", ");
        Target::find(&name).unwrap_or_else(|| panic!("{TARGET_VARIABLE}='{name}', and there are {names}"))
    }

    /// The inputs of its corpus, with their files, in order.
    ///
    /// # Errors
    /// If they cannot be read.
    pub fn corpus(self) -> io::Result<Vec<(PathBuf, Vec<u8>)>> {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus").join(self.name);
        let mut files = fs::read_dir(folder)?.map(|entry| Ok(entry?.path())).collect::<io::Result<Vec<_>>>()?;
        files.sort();
        files.into_iter().map(|file| fs::read(&file).map(|bytes| (file, bytes))).collect()
    }
}

/// Keeps each input in a file while it is tried: whatever becomes of the process, that tells which one it was.
#[derive(Debug)]
pub struct Last(Option<File>);

impl Last {
    /// Keeps inputs in the file that [`INPUT_VARIABLE`] names, if it names one.
    ///
    /// # Panics
    /// If the file cannot be made.
    pub fn of_environment() -> Last {
        let file = std::env::var_os(INPUT_VARIABLE);
        Last(file.map(|file| File::create(file).unwrap_or_else(|error| panic!("{INPUT_VARIABLE}: {error}"))))
    }

    /// This one comes next.
    ///
    /// # Panics
    /// If it cannot be written.
    pub fn keep(&mut self, input: &[u8]) {
        let Some(file) = &mut self.0 else { return };
        let kept = file.write_all_at(input, 0).and_then(|()| file.set_len(input.len() as u64));
        kept.and_then(|()| file.flush()).unwrap_or_else(|error| panic!("{INPUT_VARIABLE}: {error}"));
    }
}
