//! How much of the machine's memory the broker takes: before an input, while it is dealt with, and after it.
//!
//! Must not know: what the inputs are.

use std::fs;

/// What a bystander and a newcomer, and pages of the program that are read for the first time, may take: three times what was seen.
/// The least that a case announces by itself, or many times over, is several times as much.
const RESIDENT_KIB_MAX: u64 = 4 * 1024;

/// What may be asked of the system on top, whether or not anything is written to it: the stacks of threads are. Also three times
/// what was seen, and half of the largest message there may be.
const RESERVED_KIB_MAX: u64 = 8 * 1024;

/// What a process has and had at most, in KiB.
#[derive(Clone, Copy, Debug)]
struct Taken {
    /// Memory that no file stands behind.
    anonymous: u64,
    resident: u64,
    resident_at_most: u64,
    /// What it has asked for: memory that nobody has written to is not resident.
    reserved: u64,
    address_space: u64,
    address_space_at_most: u64,
}

impl Taken {
    fn by(process: u32) -> Self {
        let status = fs::read_to_string(format!("/proc/{process}/status")).unwrap();
        let kib = |field: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(':')).unwrap();
            line.trim().trim_end_matches(" kB").parse().unwrap()
        };
        Taken {
            anonymous: kib("RssAnon"),
            resident: kib("VmRSS"),
            resident_at_most: kib("VmHWM"),
            reserved: kib("VmData"),
            address_space: kib("VmSize"),
            address_space_at_most: kib("VmPeak"),
        }
    }
}

/// The most memory that a process has taken since it began, or since somebody watched it, in KiB.
pub(crate) fn peak_kib(process: u32) -> u64 {
    Taken::by(process).resident_at_most
}

/// A process of which one wants to know whether it takes more memory than it has. It must never have had much more, or the check
/// fails: nothing resets the most that its address space was, behind which a smaller one could hide.
#[derive(Debug)]
pub(crate) struct Watched {
    process: u32,
    before: Taken,
}

impl Watched {
    pub(crate) fn from_now(process: u32) -> Self {
        // proc(5): the most that was resident is from now on what is now.
        let clear_refs = format!("/proc/{process}/clear_refs");
        fs::write(&clear_refs, "5").unwrap_or_else(|error| {
            panic!("nobody can say what the broker takes meanwhile: {clear_refs} cannot be written: {error}")
        });
        Watched { process, before: Taken::by(process) }
    }

    /// Neither has it more memory than before, nor had it meanwhile; and it has not asked for more either.
    pub(crate) fn check(&self) -> Result<(), String> {
        let (before, now) = (self.before, Taken::by(self.process));
        for (what, before, now, most) in [
            ("anonymous memory", before.anonymous, now.anonymous, RESIDENT_KIB_MAX),
            ("resident memory, at most,", before.resident, now.resident_at_most, RESIDENT_KIB_MAX),
            ("reserved memory", before.reserved, now.reserved, RESERVED_KIB_MAX),
            // From what it is, not from what it was at most: what once was taken for a moment must not make room for more.
            ("address space, at most,", before.address_space, now.address_space_at_most, RESERVED_KIB_MAX),
        ] {
            if now > before + most {
                return Err(format!("{what} went from {before} to {now} KiB"));
            }
        }
        Ok(())
    }
}
