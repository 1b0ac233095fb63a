//! Segments, batches and records as bytes. Drawn in `docs/formats/journal.md`.

use std::collections::BTreeMap;

use crc32c::crc32c_append;
use leveret_planted::{Bug, planted};

/// The version that this code writes.
pub(crate) const VERSION: u32 = 1;

const SEGMENT_MAGIC: &[u8; 8] = b"LVRTSEG1";
pub(crate) const BATCH_MAGIC: &[u8; 4] = b"LVB1";

/// Bytes of a segment's header before its table of streams.
pub(crate) const SEGMENT_HEADER_BYTES: usize = 96;
/// Where a segment says its salt.
const SALT_AT: usize = 48;
const STREAM_BYTES: usize = 20;
pub(crate) const BATCH_HEADER_BYTES: usize = 40;
pub(crate) const RECORD_HEADER_BYTES: usize = 24;

/// Batches begin at multiples of this.
pub(crate) const ALIGNMENT: usize = 8;

/// No journal gets so far with any number, whatever its checksums say; sums behind this do not overflow.
const NUMBERS_END: u64 = 1 << 62;

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

/// How the names of all files begin that hold something damaged.
pub(crate) const DAMAGED_PREFIX: &str = "damaged-";

/// What a segment is called when it has left the journal and something in it could not be read.
pub(crate) fn damaged_name(generation: u64) -> String {
    format!("{DAMAGED_PREFIX}{}", segment_name(generation))
}

/// How the name of each copy of a damaged region begins.
pub(crate) fn damaged_region_prefix(generation: u64) -> String {
    format!("{DAMAGED_PREFIX}{generation:010}-")
}

/// What the copy of a torn end is called. It does not make its segment a damaged one.
pub(crate) fn torn_name(generation: u64, offset: u64) -> String {
    format!("{TORN_PREFIX}{generation:010}-{offset}")
}

/// Generation and offset of a torn end of which a file is the copy, and the number of that.
pub(crate) fn torn_of(name: &str) -> Option<(u64, u64, u64)> {
    let mut numbers = name.strip_prefix(TORN_PREFIX)?.split('-').map(|digits| digits.parse().ok());
    let (generation, offset) = (numbers.next()??, numbers.next()??);
    let nth = numbers.next().unwrap_or(Some(1))?;
    let first = torn_name(generation, offset);
    let is_one = if nth == 1 { name == first } else { name == format!("{first}-{nth}") };
    is_one.then_some((generation, offset, nth))
}

const TORN_PREFIX: &str = "torn-";

/// The name of an empty file which says that more than anybody knows is missing about there, when nothing else does any more.
pub(crate) fn unknown_name(generation: u64) -> String {
    format!("{}{UNKNOWN}", damaged_region_prefix(generation))
}

/// Whether a file is one of those.
pub(crate) fn is_unknown_name(name: &str) -> bool {
    name.strip_prefix(DAMAGED_PREFIX).is_some_and(|rest| rest.ends_with(&format!("-{UNKNOWN}")))
}

const UNKNOWN: &str = "unknown";

pub(crate) fn generation_of(name: &str) -> Option<u64> {
    let digits = name.strip_suffix(SUFFIX)?;
    let generation = digits.parse().ok()?;
    ((1..NUMBERS_END).contains(&generation) && segment_name(generation) == name).then_some(generation)
}

/// A secret of the journal, made once. It goes into every checksum, so that nobody who only hands in payloads can make
/// up bytes that pass for a batch or a record.
pub type Salt = [u8; 16];

/// What goes into the checksums of one segment before what they cover. What was written in another segment, or in an
/// earlier life of this file, never verifies in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Seeds {
    header: u32,
    payload: u32,
    record: u32,
}

impl Seeds {
    pub(crate) fn new(salt: &Salt, generation: u64) -> Self {
        let seed = |part: &[u8]| crc32c_append(crc32c::crc32c(part), &generation.to_le_bytes());
        // Two that do not follow from each other guard what decides where a batch is.
        Seeds { header: seed(&salt[..8]), payload: seed(&salt[8..]), record: seed(salt) }
    }

    /// What the checksum of a payload goes on from.
    pub(crate) fn payload_checksum(self) -> u32 {
        self.payload
    }
}

/// What stands at the beginning of a segment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct SegmentHeader {
    pub(crate) generation: u64,
    pub(crate) first_sequence: u64,
    pub(crate) previous_generation: u64,
    pub(crate) previous_end: u64,
    pub(crate) salt: Salt,
    /// Bytes that the file has at least until the next segment is begun; 0 in one that holds what was left of several, and as long as it
    /// is not known which file it will be.
    pub(crate) room: u64,
    pub(crate) replay: Replay,
    /// If this holds what was left of some segments, the generation of the last of them; else 0.
    pub(crate) compacted_through: u64,
    pub(crate) streams: BTreeMap<u32, StreamState>,
}

/// Where a start begins to read: what lies before is only looked up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Replay {
    pub(crate) generation: u64,
    /// The journal sequence of the first record of that segment.
    pub(crate) sequence: u64,
}

impl Replay {
    /// From the first record of a journal on.
    pub(crate) const ALL: Replay = Replay { generation: 1, sequence: 1 };
}

/// A stream when a segment was begun.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct StreamState {
    /// The last sequence that it had.
    pub(crate) last: u64,
    /// The first record that a start needs; 0 if it needs all.
    pub(crate) replay_from: u64,
}

/// What the first bytes of a file are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum HeaderFound {
    Valid(SegmentHeader),
    /// Written by a newer Leveret.
    Newer(u32),
    Invalid,
}

impl SegmentHeader {
    /// Bytes that it takes; batches begin behind it.
    pub(crate) fn bytes(&self) -> usize {
        Self::bytes_with(self.streams.len())
    }

    /// The same with so many streams.
    pub(crate) fn bytes_with(streams: usize) -> usize {
        padded(SEGMENT_HEADER_BYTES.saturating_add(streams.saturating_mul(STREAM_BYTES)))
    }

    /// How long a header is that begins like this. Nothing is verified yet.
    pub(crate) fn bytes_claimed(bytes: &[u8]) -> usize {
        Self::bytes_with(u32_at(bytes, 64) as usize)
    }

    /// The salt that a damaged header says.
    pub(crate) fn salt_said(bytes: &[u8]) -> Option<Salt> {
        bytes.get(SALT_AT..).and_then(|rest| rest.first_chunk()).copied()
    }

    /// The salts that it may have had if only one byte of that is wrong: those that make its checksum right.
    pub(crate) fn salts_mended(bytes: &[u8]) -> Vec<Salt> {
        let Some(bytes) = bytes.get(..Self::bytes_claimed(bytes)) else { return Vec::new() };
        if !bytes.starts_with(SEGMENT_MAGIC) || u32_at(bytes, 8) != VERSION {
            return Vec::new();
        }
        let (mut header, mut salts) = (bytes.to_vec(), Vec::new());
        let checksum = header_checksum(bytes);
        let wanted = u32_at(bytes, 12) ^ checksum;
        for at in SALT_AT..SALT_AT + size_of::<Salt>() {
            // What several bits change in a CRC is what each of them changes by itself, together.
            let changes = [0, 1, 2, 3, 4, 5, 6, 7].map(|bit| {
                header[at] = bytes[at] ^ 1 << bit;
                header_checksum(&header) ^ checksum
            });
            let change_of = |bits: &u8| {
                let set = (0..8).filter(|bit| bits >> bit & 1 == 1);
                set.fold(0, |change, bit| change ^ changes[bit])
            };
            for bits in (1..=u8::MAX).filter(|bits| change_of(bits) == wanted) {
                header[at] = bytes[at] ^ bits;
                salts.extend(Self::salt_said(&header));
            }
            header[at] = bytes[at];
        }
        salts
    }

    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut bytes = vec![0; SEGMENT_HEADER_BYTES];
        bytes[..8].copy_from_slice(SEGMENT_MAGIC);
        bytes[8..12].copy_from_slice(&VERSION.to_le_bytes());
        let numbers = [self.generation, self.first_sequence, self.previous_generation, self.previous_end];
        for (place, number) in bytes[16..48].chunks_exact_mut(8).zip(numbers) {
            place.copy_from_slice(&number.to_le_bytes());
        }
        bytes[48..64].copy_from_slice(&self.salt);
        let count = u32::try_from(self.streams.len()).expect("streams have numbers of four bytes");
        bytes[64..68].copy_from_slice(&count.to_le_bytes());
        let room = u32::try_from(self.room / ALIGNMENT as u64).unwrap_or(u32::MAX);
        bytes[68..72].copy_from_slice(&room.to_le_bytes());
        bytes[72..80].copy_from_slice(&self.replay.generation.to_le_bytes());
        bytes[80..88].copy_from_slice(&self.replay.sequence.to_le_bytes());
        bytes[88..96].copy_from_slice(&self.compacted_through.to_le_bytes());
        for (stream, StreamState { last, replay_from }) in &self.streams {
            bytes.extend_from_slice(&stream.to_le_bytes());
            bytes.extend_from_slice(&last.to_le_bytes());
            bytes.extend_from_slice(&replay_from.to_le_bytes());
        }
        bytes.resize(self.bytes(), 0);
        let checksum = header_checksum(&bytes);
        bytes[12..16].copy_from_slice(&checksum.to_le_bytes());
        bytes
    }

    /// Decodes a header from bytes that hold all of it.
    pub(crate) fn decode(bytes: &[u8]) -> HeaderFound {
        if !bytes.starts_with(SEGMENT_MAGIC) || bytes.len() < SEGMENT_HEADER_BYTES {
            return HeaderFound::Invalid;
        }
        let Some(bytes) = bytes.get(..Self::bytes_claimed(bytes)) else { return HeaderFound::Invalid };
        if u32_at(bytes, 12) != header_checksum(bytes) {
            return HeaderFound::Invalid;
        }
        let version = u32_at(bytes, 8);
        if version != VERSION {
            return HeaderFound::Newer(version);
        }
        let mut salt = Salt::default();
        salt.copy_from_slice(&bytes[48..64]);
        let table = bytes[SEGMENT_HEADER_BYTES..].chunks_exact(STREAM_BYTES).take(u32_at(bytes, 64) as usize);
        let header = SegmentHeader {
            generation: u64_at(bytes, 16),
            first_sequence: u64_at(bytes, 24),
            previous_generation: u64_at(bytes, 32),
            previous_end: u64_at(bytes, 40),
            salt,
            room: u64::from(u32_at(bytes, 68)) * ALIGNMENT as u64,
            replay: Replay { generation: u64_at(bytes, 72), sequence: u64_at(bytes, 80) },
            compacted_through: u64_at(bytes, 88),
            streams: table
                .map(|entry| {
                    (u32_at(entry, 0), StreamState { last: u64_at(entry, 4), replay_from: u64_at(entry, 12) })
                })
                .collect(),
        };
        if header.is_sane() { HeaderFound::Valid(header) } else { HeaderFound::Invalid }
    }

    fn is_sane(&self) -> bool {
        let SegmentHeader { generation, first_sequence, previous_generation, previous_end, replay, .. } = self;
        let numbers = [generation, first_sequence, previous_generation, previous_end, &self.compacted_through];
        let lasts = self.streams.values().map(|state| &state.last);
        numbers.into_iter().chain([&replay.generation, &replay.sequence]).chain(lasts).all(|&n| n < NUMBERS_END)
    }
}

/// The checksum of a header that comes in parts; the first has what is not covered.
#[derive(Debug, Default)]
pub(crate) struct HeaderSum(Option<(u32, u32)>);

impl HeaderSum {
    pub(crate) fn add(&mut self, part: &[u8]) {
        self.0 = Some(match self.0 {
            None => (u32_at(part, 12), header_checksum(part)),
            Some((said, sum)) => (said, crc32c_append(sum, part)),
        });
    }

    pub(crate) fn verifies(&self) -> bool {
        self.0.is_some_and(|(said, sum)| said == sum)
    }
}

fn header_checksum(bytes: &[u8]) -> u32 {
    crc32c_append(crc32c::crc32c(&bytes[..12]), &bytes[16..])
}

pub(crate) fn u32_at(bytes: &[u8], at: usize) -> u32 {
    bytes.get(at..).and_then(|rest| rest.first_chunk()).map_or(0, |bytes| u32::from_le_bytes(*bytes))
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    bytes.get(at..).and_then(|rest| rest.first_chunk()).map_or(0, |bytes| u64::from_le_bytes(*bytes))
}

/// Fills in the header of a batch and the checksums of its records. `bytes` is header and payload, without padding.
///
/// # Panics
/// If `bytes` is not a batch that [`crate::Batch`] has put together.
pub(crate) fn seal(bytes: &mut [u8], seeds: Seeds, count: u32, first_sequence: u64, durable_before: u64) {
    let mut at = BATCH_HEADER_BYTES;
    for _ in 0..count {
        let end = at + RECORD_HEADER_BYTES + u32_at(bytes, at) as usize;
        let checksum = crc32c_append(seeds.record, &bytes[at + 8..end]);
        bytes[at + 4..at + 8].copy_from_slice(&checksum.to_le_bytes());
        at = end;
    }
    assert_eq!(at, bytes.len(), "a batch is its records and nothing else");
    let payload_bytes = u32::try_from(at - BATCH_HEADER_BYTES).expect("a batch takes no more than it may");
    let payload_checksum = crc32c_append(seeds.payload, &bytes[BATCH_HEADER_BYTES..]);
    bytes[..4].copy_from_slice(BATCH_MAGIC);
    bytes[8..12].copy_from_slice(&payload_checksum.to_le_bytes());
    bytes[12..16].copy_from_slice(&payload_bytes.to_le_bytes());
    bytes[16..20].copy_from_slice(&count.to_le_bytes());
    bytes[20..24].copy_from_slice(&[0; 4]);
    bytes[24..32].copy_from_slice(&first_sequence.to_le_bytes());
    bytes[32..40].copy_from_slice(&durable_before.to_le_bytes());
    let checksum = crc32c_append(seeds.header, &bytes[8..BATCH_HEADER_BYTES]);
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

/// The header of a batch, which verifies by itself.
#[derive(Clone, Copy, Debug)]
pub(crate) struct BatchHeader {
    pub(crate) payload_bytes: usize,
    pub(crate) count: u32,
    pub(crate) first_sequence: u64,
    pub(crate) durable_before: u64,
    pub(crate) payload_checksum: u32,
}

impl BatchHeader {
    /// The header at the beginning of `bytes`, if there is one.
    pub(crate) fn decode(bytes: &[u8], seeds: Seeds) -> Option<Self> {
        if !bytes.starts_with(BATCH_MAGIC) {
            return None;
        }
        let covered = bytes.get(8..BATCH_HEADER_BYTES)?;
        let header = BatchHeader {
            payload_checksum: u32_at(bytes, 8),
            payload_bytes: u32_at(bytes, 12) as usize,
            count: u32_at(bytes, 16),
            first_sequence: u64_at(bytes, 24),
            durable_before: u64_at(bytes, 32),
        };
        let is_sane = header.first_sequence < NUMBERS_END && header.durable_before < NUMBERS_END;
        (is_sane && u32_at(bytes, 4) == crc32c_append(seeds.header, covered)).then_some(header)
    }
}

/// A batch that verifies.
#[derive(Clone, Copy, Debug)]
pub(crate) struct FoundBatch<'a> {
    pub(crate) count: u32,
    pub(crate) first_sequence: u64,
    pub(crate) durable_before: u64,
    payload: &'a [u8],
    seeds: Seeds,
}

/// Bytes from the beginning of one batch to that of the next.
pub(crate) fn padded(bytes: usize) -> usize {
    bytes.next_multiple_of(ALIGNMENT)
}

impl<'a> FoundBatch<'a> {
    /// The batch at the beginning of `bytes`, if there is one.
    pub(crate) fn decode(bytes: &'a [u8], seeds: Seeds) -> Option<Self> {
        let header = BatchHeader::decode(bytes, seeds)?;
        let BatchHeader { payload_bytes, count, first_sequence, durable_before, payload_checksum } = header;
        let payload = bytes.get(BATCH_HEADER_BYTES..)?.get(..payload_bytes)?;
        let verifies = crc32c_append(seeds.payload, payload) == payload_checksum || planted(Bug::TornBatchTaken);
        verifies.then_some(FoundBatch { count, first_sequence, durable_before, payload, seeds })
    }

    /// Bytes that it takes in its segment.
    pub(crate) fn bytes(&self) -> usize {
        padded(BATCH_HEADER_BYTES + self.payload.len())
    }

    /// Bytes of its records.
    pub(crate) fn payload_bytes(&self) -> usize {
        self.payload.len()
    }

    /// Its records, each with its offset behind the header.
    pub(crate) fn records(&self) -> impl Iterator<Item = (usize, Record<'a>)> {
        records(self.payload, self.seeds)
    }
}

/// The record that these bytes are, if it verifies.
pub(crate) fn decode_record(bytes: &[u8], seeds: Seeds) -> Option<Record<'_>> {
    let covered = bytes.get(8..)?;
    let verifies = u32_at(bytes, 4) == crc32c_append(seeds.record, covered) || planted(Bug::ChecksumNotChecked);
    let record = verifies.then(|| Record {
        stream: u32_at(bytes, 8),
        term: u32_at(bytes, 12),
        sequence: u64_at(bytes, 16),
        payload: &bytes[RECORD_HEADER_BYTES..],
    });
    record.filter(|record| record.sequence < NUMBERS_END)
}

/// What the header of a record says that need not verify: how many bytes it takes, its stream and sequence.
pub(crate) fn peek_record(header: &[u8]) -> (u64, u32, u64) {
    (RECORD_HEADER_BYTES as u64 + u64::from(u32_at(header, 0)), u32_at(header, 8), u64_at(header, 16))
}

/// Records from the beginning of `bytes` on, one after the other, as long as there are any that verify; each with its
/// offset. One that does not verify is passed over if one that does follows it.
pub(crate) fn records(bytes: &[u8], seeds: Seeds) -> impl Iterator<Item = (usize, Record<'_>)> {
    let mut at = 0;
    std::iter::from_fn(move || {
        for _ in 0..2 {
            let rest = &bytes[at..];
            let end = RECORD_HEADER_BYTES.checked_add(u32_at(rest, 0) as usize)?;
            let begins_at = at;
            let record = decode_record(rest.get(..end)?, seeds);
            at += end;
            if let Some(record) = record {
                return Some((begins_at, record));
            }
        }
        None
    })
}
