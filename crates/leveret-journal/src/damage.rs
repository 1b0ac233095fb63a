//! What a start finds: what is there, what is torn, what is damaged, and how much of it is missing.

use std::collections::BTreeMap;

use crate::limits::{MISSING_MAX, UNKNOWN_RECORDS};

/// What was found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Recovery {
    /// Whether there was no journal before.
    pub is_new: bool,
    /// Segments that belong to the journal.
    pub segments: u64,
    /// Records that were handed out.
    pub records: u64,
    /// Bytes of batches that are valid.
    pub bytes: u64,
    /// The torn end of the journal, if it has one.
    pub cut: Option<Cut>,
    /// What was durable once and cannot be read any more.
    pub damage: Vec<Damage>,
    /// Segments whose header does not verify, though nothing is missing for that.
    pub headless: Vec<String>,
    /// Files in which earlier starts have noted that records were missing, and not exactly how many.
    pub noted: Vec<String>,
    /// The last sequence that each stream ever had, also among records that are missing; what comes next goes on
    /// behind it.
    pub streams: BTreeMap<u32, u64>,
}

impl Recovery {
    /// How many records are missing, at most. Where nothing tells, it is a number that nobody comes near.
    pub fn records_missing(&self) -> u64 {
        sum(&self.damage)
    }

    /// How many of them may have had numbers that nothing else tells of. The last ones of what lies before where a start begins stand
    /// in a header behind it.
    pub fn numbers_missing(&self) -> u64 {
        sum(self.damage.iter().filter(|damage| !damage.is_old)).min(MISSING_MAX)
    }
}

fn sum<'d>(damage: impl IntoIterator<Item = &'d Damage>) -> u64 {
    damage.into_iter().map(|damage| damage.missing.at_most()).fold(0, u64::saturating_add)
}

/// A torn end: unless the disk is damaged, nobody was promised what was there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cut {
    /// The segment.
    pub file: String,
    /// Where the journal ends in it.
    pub offset: u64,
    /// Bytes from there on that are copied: a batch or, if nothing tells how long that was, no more than a limit.
    pub bytes: u64,
    /// The file to which they were copied.
    pub set_aside: Option<String>,
}

/// Something that was durable once and cannot be read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Damage {
    /// The segment.
    pub file: String,
    /// What of it.
    pub extent: Extent,
    /// Records that were there and cannot be read.
    pub missing: Missing,
    /// It lies before what a start reads.
    pub is_old: bool,
}

/// What of a segment is damaged.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Extent {
    /// Bytes that do not verify.
    Region {
        /// Where they begin.
        offset: u64,
        /// How many they are.
        bytes: u64,
        /// The file to which they were copied.
        set_aside: Option<String>,
    },
    /// Something is missing before this offset, and nothing of it is left.
    Before {
        /// Where the journal goes on.
        offset: u64,
    },
    /// The file is not there.
    Absent,
    /// The journal went on behind this offset, and nothing of that is left.
    Behind {
        /// Where the segment ends.
        offset: u64,
    },
}

/// How many records are missing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Missing {
    /// So many.
    Exactly(u64),
    /// So many could have been there.
    AtMost(u64),
    /// Nothing tells.
    Unknown,
}

impl Missing {
    fn at_most(self) -> u64 {
        match self {
            Missing::Exactly(count) | Missing::AtMost(count) => count,
            Missing::Unknown => UNKNOWN_RECORDS,
        }
    }
}
