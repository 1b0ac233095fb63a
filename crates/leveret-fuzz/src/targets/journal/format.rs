//! Segments, batches and records, written as `docs/formats/journal.md` draws them, and not by the journal's own code.

use crc32c::{crc32c, crc32c_append};
use leveret_journal::Salt;

use super::Owned;
use crate::bytes::Bytes;

/// What checksums go on from.
#[derive(Clone, Copy)]
pub(super) struct Seeds {
    header: u32,
    payload: u32,
    record: u32,
}

impl Seeds {
    pub(super) fn new(salt: &Salt, generation: u64) -> Self {
        let seed = |part: &[u8]| crc32c_append(crc32c(part), &generation.to_le_bytes());
        Seeds { header: seed(&salt[..8]), payload: seed(&salt[8..]), record: seed(salt) }
    }
}

/// A count of what an input says, which is short.
pub(super) fn u32_of(count: usize) -> u32 {
    u32::try_from(count).expect("an input is short")
}

/// The header of a segment.
pub(super) struct Header {
    version: u32,
    /// Generation, first sequence, generation and end of the segment before.
    numbers: [u64; 4],
    salt: Salt,
    /// Generation and sequence at which a start begins, and the last generation that was compacted.
    replay: [u64; 3],
    streams: Vec<(u32, u64, u64)>,
}

impl Header {
    /// That of the first segment of a journal.
    pub(super) fn first(salt: &Salt) -> Self {
        Header { version: 1, numbers: [1, 1, 0, 0], salt: *salt, replay: [1, 1, 0], streams: Vec::new() }
    }

    /// One that says anything.
    pub(super) fn any(generation: u64, salt: &Salt, bytes: &mut Bytes<'_>) -> Self {
        let mut any = || u64::from(bytes.u8()) << bytes.one_of(&[0, 0, 0, 8, 30, 55, 56]);
        let (numbers, replay) = ([generation, any(), any(), any()], [any(), any(), any()]);
        let version = if any() == 7 { 2 } else { 1 };
        let streams = (0..any() % 4).zip(0..).map(|(_, stream)| (stream, any(), any())).collect();
        Header { version, numbers, salt: *salt, replay, streams }
    }

    pub(super) fn encode(&self) -> Vec<u8> {
        let mut bytes = b"LVRTSEG1".to_vec();
        bytes.extend(self.version.to_le_bytes());
        bytes.extend([0; 4]);
        bytes.extend(self.numbers.into_iter().flat_map(u64::to_le_bytes));
        bytes.extend(self.salt);
        bytes.extend(u32_of(self.streams.len()).to_le_bytes());
        bytes.extend([0; 4]);
        bytes.extend(self.replay.into_iter().flat_map(u64::to_le_bytes));
        for (stream, last, from) in &self.streams {
            bytes.extend(stream.to_le_bytes());
            bytes.extend(last.to_le_bytes());
            bytes.extend(from.to_le_bytes());
        }
        bytes.resize(bytes.len().next_multiple_of(8), 0);
        let checksum = crc32c_append(crc32c(&bytes[..12]), &bytes[16..]);
        bytes[12..16].copy_from_slice(&checksum.to_le_bytes());
        bytes
    }
}

/// A batch that says so much of itself, and has these records.
pub(super) fn batch(seeds: Seeds, first: u64, durable_before: u64, count: u32, records: &[Owned]) -> Vec<u8> {
    let mut payload = Vec::new();
    for Owned { stream, sequence, payload: says } in records {
        let covered = [&stream.to_le_bytes()[..], &[0; 4], &sequence.to_le_bytes(), says].concat();
        payload.extend(u32_of(says.len()).to_le_bytes());
        payload.extend(crc32c_append(seeds.record, &covered).to_le_bytes());
        payload.extend(covered);
    }
    let mut covered = crc32c_append(seeds.payload, &payload).to_le_bytes().to_vec();
    covered.extend(u32_of(payload.len()).to_le_bytes());
    covered.extend(count.to_le_bytes());
    covered.extend([0; 4]);
    covered.extend(first.to_le_bytes());
    covered.extend(durable_before.to_le_bytes());
    let mut bytes = b"LVB1".to_vec();
    bytes.extend(crc32c_append(seeds.header, &covered).to_le_bytes());
    bytes.extend(covered);
    bytes.extend(payload);
    bytes.resize(bytes.len().next_multiple_of(8), 0);
    bytes
}
