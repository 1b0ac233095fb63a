//! Bodies of which no journal knows and that are on disk all the same, so that they need not be in memory: where they are,
//! and which of their segments are needed.
//!
//! Owns: the names of places. Must not know: files.
//! Invariant: as long as a queue or a driver holds a segment, its file is there.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::message::Message;
use crate::vhost::QueueId;
use crate::vhost::queue::Position;

/// A place in the scratch segments of a virtual host. Never given twice.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Place {
    /// The number of the segment, less than 2³¹ - 1.
    pub segment: u32,
    /// Bytes before it in there.
    pub offset: u32,
}

impl Place {
    /// Both as one number of 63 bits.
    pub(crate) fn number(self) -> u64 {
        debug_assert!(self.segment <= Segment::NUMBER_MAX);
        u64::from(self.segment) << 32 | u64::from(self.offset)
    }

    pub(crate) fn numbered(number: u64) -> Self {
        let offset = u32::try_from(number & u64::from(u32::MAX)).expect("so many bits are left");
        Place { segment: u32::try_from(number >> 32).unwrap_or(u32::MAX), offset }
    }
}

/// A scratch segment that somebody needs.
#[derive(Clone, Debug)]
pub struct Segment(Arc<u32>);

impl Segment {
    /// The greatest number that one can have.
    pub const NUMBER_MAX: u32 = (1 << 31) - 2;

    /// The one of this number, when it is begun.
    pub fn new(number: u32) -> Self {
        Segment(Arc::new(number))
    }

    /// Its number.
    pub fn number(&self) -> u32 {
        *self.0
    }

    fn is_needed(&self) -> bool {
        Arc::strong_count(&self.0) > 1
    }
}

/// Those that were written for a virtual host and are there.
#[derive(Debug, Default)]
pub(crate) struct Segments(BTreeMap<u32, Segment>);

impl Segments {
    pub(crate) fn insert(&mut self, segment: &Segment) {
        self.0.entry(segment.number()).or_insert_with(|| segment.clone());
    }

    /// The one of this number, if it is there.
    pub(crate) fn get(&self, number: u32) -> Option<&Segment> {
        self.0.get(&number)
    }

    /// Gives up those that nobody needs.
    pub(crate) fn take_unneeded(&mut self) -> Vec<u32> {
        self.0.extract_if(.., |_, segment| !segment.is_needed()).map(|(number, _)| number).collect()
    }
}

/// A message that a driver is to write to a scratch segment.
#[derive(Debug)]
pub struct Spill {
    /// What is to be written.
    pub message: Message,
    pub(crate) queue: QueueId,
    pub(crate) position: Position,
}

/// A message that was to be written. It goes to `VirtualHost::handle_spilled` in any case.
#[derive(Debug)]
pub struct Spilled {
    /// What was asked.
    pub spill: Spill,
    /// Where it is now, and the segment of that; none if it could not be written.
    pub place: Option<(Segment, Place)>,
}
