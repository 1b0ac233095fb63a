//! The journal of the Leveret message broker: a segmented, checksummed, append-only log.
//!
//! Must not know: what a record means.

pub mod disk;
