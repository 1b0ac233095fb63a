//! Segments, batches and records as bytes. Drawn in `docs/formats/journal.md`.

use crc32c::crc32c_append;

/// The version that this code writes.
pub(crate) const VERSION: u32 = 1;

const SEGMENT_MAGIC: &[u8; 8] = b"LVRTSEG1";
const BATCH_MAGIC: &[u8; 4] = b"LVB1";

pub(crate) const SEGMENT_HEADER_BYTES: usize = 64;
pub(crate) const BATCH_HEADER_BYTES: usize = 32;
pub(crate) const RECORD_HEADER_BYTES: usize = 24;

/// Batches begin at multiples of this.
pub(crate) const ALIGNMENT: usize = 8;

const SUFFIX: &str = ".segment";

/// One record, as it was appended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Record<'a> {
    /// Which stream it belongs to.
    pub stream: u32,
    /// Its place in its stream.
    pub sequence: u64,
    /// Reserved; 0.
    pub term: u32,
    /// What it says.
    pub payload: &'a [u8],
}

pub(crate) fn segment_name(generation: u64) -> String {
    format!("{generation:010}{SUFFIX}")
}

pub(crate) fn generation_of(name: &str) -> Option<u64> {
    let digits = name.strip_suffix(SUFFIX)?;
    let generation = digits.parse().ok()?;
    (generation > 0 && segment_name(generation) == name).then_some(generation)
}

/// What stands at the beginning of a segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct SegmentHeader {
    pub(crate) generation: u64,
    pub(crate) first_sequence: u64,
    pub(crate) previous_generation: u64,
    pub(crate) previous_end: u64,
}

/// What the first bytes of a file are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum HeaderFound {
    Valid(SegmentHeader),
    /// Written by a newer Leveret.
    Newer(u32),
    Invalid,
}

impl SegmentHeader {
    pub(crate) fn encode(&self) -> [u8; SEGMENT_HEADER_BYTES] {
        let mut bytes = [0; SEGMENT_HEADER_BYTES];
        bytes[..8].copy_from_slice(SEGMENT_MAGIC);
        bytes[8..12].copy_from_slice(&VERSION.to_le_bytes());
        let numbers = [self.generation, self.first_sequence, self.previous_generation, self.previous_end];
        for (place, number) in bytes[16..48].chunks_exact_mut(8).zip(numbers) {
            place.copy_from_slice(&number.to_le_bytes());
        }
        let checksum = header_checksum(&bytes);
        bytes[12..16].copy_from_slice(&checksum.to_le_bytes());
        bytes
    }

    pub(crate) fn decode(bytes: &[u8]) -> HeaderFound {
        let Some(bytes) = bytes.first_chunk::<SEGMENT_HEADER_BYTES>() else { return HeaderFound::Invalid };
        if &bytes[..8] != SEGMENT_MAGIC || u32_at(bytes, 12) != header_checksum(bytes) {
            return HeaderFound::Invalid;
        }
        match u32_at(bytes, 8) {
            VERSION => HeaderFound::Valid(SegmentHeader {
                generation: u64_at(bytes, 16),
                first_sequence: u64_at(bytes, 24),
                previous_generation: u64_at(bytes, 32),
                previous_end: u64_at(bytes, 40),
            }),
            newer => HeaderFound::Newer(newer),
        }
    }
}

fn header_checksum(bytes: &[u8; SEGMENT_HEADER_BYTES]) -> u32 {
    crc32c_append(crc32c::crc32c(&bytes[..12]), &bytes[16..])
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    bytes.get(at..).and_then(|rest| rest.first_chunk()).map_or(0, |bytes| u32::from_le_bytes(*bytes))
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    bytes.get(at..).and_then(|rest| rest.first_chunk()).map_or(0, |bytes| u64::from_le_bytes(*bytes))
}

/// The checksum of a batch or record: of its generation and all that follows the checksum itself.
fn checksum(generation: u64, covered: &[u8]) -> u32 {
    crc32c_append(crc32c::crc32c(&generation.to_le_bytes()), covered)
}

/// Fills in the header of a batch and the checksums of its records. `bytes` is header and payload, without padding.
///
/// # Panics
/// If `bytes` is not a batch that [`crate::Batch`] has put together.
pub(crate) fn seal(bytes: &mut [u8], generation: u64, count: u32, first_sequence: u64, durable_before: u64) {
    let mut at = BATCH_HEADER_BYTES;
    for _ in 0..count {
        let end = at + RECORD_HEADER_BYTES + u32_at(bytes, at) as usize;
        let checksum = checksum(generation, &bytes[at + 8..end]);
        bytes[at + 4..at + 8].copy_from_slice(&checksum.to_le_bytes());
        at = end;
    }
    assert_eq!(at, bytes.len(), "a batch is its records and nothing else");
    let payload_bytes = u32::try_from(at - BATCH_HEADER_BYTES).expect("a batch takes no more than it may");
    bytes[..4].copy_from_slice(BATCH_MAGIC);
    bytes[8..12].copy_from_slice(&payload_bytes.to_le_bytes());
    bytes[12..16].copy_from_slice(&count.to_le_bytes());
    bytes[16..24].copy_from_slice(&first_sequence.to_le_bytes());
    bytes[24..32].copy_from_slice(&durable_before.to_le_bytes());
    let checksum = checksum(generation, &bytes[8..]);
    bytes[4..8].copy_from_slice(&checksum.to_le_bytes());
}

/// The header of a record, its checksum left out.
pub(crate) fn begin_record(out: &mut Vec<u8>, stream: u32, term: u32, sequence: u64) -> usize {
    let at = out.len();
    out.extend_from_slice(&[0; 8]);
    out.extend_from_slice(&stream.to_le_bytes());
    out.extend_from_slice(&term.to_le_bytes());
    out.extend_from_slice(&sequence.to_le_bytes());
    at
}

/// Writes the length of a record, now that its payload is there.
pub(crate) fn end_record(out: &mut [u8], at: usize) {
    let length = u32::try_from(out.len() - at - RECORD_HEADER_BYTES).expect("a record is at most 4 GiB");
    out[at..at + 4].copy_from_slice(&length.to_le_bytes());
}

/// A batch that verifies.
#[derive(Clone, Copy, Debug)]
pub(crate) struct FoundBatch<'a> {
    pub(crate) count: u32,
    pub(crate) first_sequence: u64,
    pub(crate) durable_before: u64,
    payload: &'a [u8],
    generation: u64,
}

/// Bytes from the beginning of one batch to that of the next.
pub(crate) fn padded(bytes: usize) -> usize {
    bytes.next_multiple_of(ALIGNMENT)
}

impl<'a> FoundBatch<'a> {
    /// The batch at the beginning of `bytes`, if there is one.
    pub(crate) fn decode(bytes: &'a [u8], generation: u64) -> Option<Self> {
        if !bytes.starts_with(BATCH_MAGIC) || bytes.len() < BATCH_HEADER_BYTES {
            return None;
        }
        let end = BATCH_HEADER_BYTES.checked_add(u32_at(bytes, 8) as usize)?;
        let covered = bytes.get(8..end)?;
        // No journal gets so far; sums behind this do not overflow.
        let is_sane = u64_at(bytes, 16) < 1 << 62 && u64_at(bytes, 24) < 1 << 62;
        (is_sane && u32_at(bytes, 4) == checksum(generation, covered)).then(|| FoundBatch {
            count: u32_at(bytes, 12),
            first_sequence: u64_at(bytes, 16),
            durable_before: u64_at(bytes, 24),
            payload: &bytes[BATCH_HEADER_BYTES..end],
            generation,
        })
    }

    /// Bytes that it takes in its segment.
    pub(crate) fn bytes(&self) -> usize {
        padded(BATCH_HEADER_BYTES + self.payload.len())
    }

    pub(crate) fn records(&self) -> impl Iterator<Item = Record<'a>> {
        records(self.payload, self.generation)
    }
}

/// Records from the beginning of `bytes` on, one after the other, as long as there are any that verify. One that does
/// not is passed over if one that does follows it.
pub(crate) fn records(mut bytes: &[u8], generation: u64) -> impl Iterator<Item = Record<'_>> {
    std::iter::from_fn(move || {
        for _ in 0..2 {
            let end = RECORD_HEADER_BYTES.checked_add(u32_at(bytes, 0) as usize)?;
            let covered = bytes.get(8..end)?;
            let is_valid = u32_at(bytes, 4) == checksum(generation, covered);
            let record = Record {
                stream: u32_at(bytes, 8),
                term: u32_at(bytes, 12),
                sequence: u64_at(bytes, 16),
                payload: &bytes[RECORD_HEADER_BYTES..end],
            };
            bytes = &bytes[end..];
            if is_valid {
                return Some(record);
            }
        }
        None
    })
}
