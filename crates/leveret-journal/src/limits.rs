//! The limits of the journal: name, unit, who enforces it.

/// Bytes of a segment, unless a setting says otherwise. `--segment-size`.
pub const SEGMENT_BYTES_DEFAULT: u64 = 64 * 1024 * 1024;

/// Least size of a segment, in bytes, and the size of the first one of each start, so that starting stays quick.
pub const SEGMENT_BYTES_MIN: u64 = 1024 * 1024;

/// Largest size of a segment, in bytes.
pub const SEGMENT_BYTES_MAX: u64 = 1024 * 1024 * 1024;

/// So many files that were segments are kept at most, beyond the reserve, to be taken again or until somebody gives their room
/// back; others are removed at once.
pub const SPARES_KEPT_MAX: usize = 64;

/// A spare file may have so many times the bytes of the next segment before it is exchanged for a smaller one.
pub const SPARE_BYTES_FACTOR: u64 = 4;

/// Least bytes of a spare file, where a full disk has no room for more.
pub const SPARE_BYTES_MIN: u64 = 64 * 1024;

/// What a batch is written with: zeros up to a multiple of this follow it, so that what the file held before is not taken
/// for a torn batch, the operating system need not read what it is about to overwrite in part, and a small one can be written past its
/// cache.
pub const PAGE_BYTES: u64 = 4096;

/// The same for a small batch where nothing was ever written: to sync the first write to a place takes half as long again on many
/// file systems, which note that it holds something from then on.
pub const CLEARED_BYTES: u64 = 64 * 1024;

/// Up to so many bytes, a batch is a small one.
pub const SMALL_BATCH_BYTES: u64 = CLEARED_BYTES / 4;

/// Bytes that are written past the cache of the operating system at most, with what stands before them in their first page: the buffer
/// for that. More of them go through it, where the system has several parts on their way at a time.
pub const DIRECT_BYTES: usize = 128 * 1024;

/// Bytes that an empty batch keeps room for.
pub const BATCH_BYTES_KEPT: usize = 4 * 1024 * 1024;

/// Largest payload of a batch, in bytes: its length has four bytes. `Batch` takes no more than this.
pub const BATCH_BYTES_MAX: usize = u32::MAX as usize;

/// Bytes between two places of a stream that the map of a segment remembers: what a read of one record passes over.
pub const MARK_EVERY_BYTES: u64 = 32 * 1024;

/// Bytes that reading takes from a segment at once, or more if one record has more.
pub const READ_BYTES: usize = 128 * 1024;

/// Bytes of a segment that a start has in memory at once, or more if one batch has more.
pub const PIECE_BYTES: usize = 1024 * 1024;

/// So many numbers are passed over where nothing tells how many records are missing: more than one segment has.
pub const UNKNOWN_RECORDS: u64 = 1 << 26;

/// No more numbers than this are passed over, whatever a header that was forged says is missing.
pub const MISSING_MAX: u64 = 1 << 30;

/// Bytes of batches in a row that may have been written in a place where they do not belong. More are where they belong.
pub const COPY_BYTES_MAX: u64 = 64 * 1024;

/// Where a start looks for records behind damage, it verifies so many times the bytes that are damaged at most, before it looks for small
/// ones only.
pub const VERIFIED_FACTOR_MAX: u64 = 16;

/// Copies of one damaged place that are kept at most, if it was not the same each time.
pub const COPIES_MAX: u32 = 9;

/// Bytes of a torn end that are copied at most, if nothing tells how many it had: what lies behind it may be left from an earlier life
/// of the file. A start enforces it.
pub const TORN_BYTES_MAX: u64 = 1024 * 1024;

/// Copies of torn ends that are kept; a start removes older ones.
pub const TORN_KEPT_MAX: usize = 8;

/// Bytes of a small one.
pub const SMALL_RECORD_BYTES: u64 = 16 * 1024;

/// Segments that a start does not read may take so many hundredths of what lives in the journal, and one segment more,
/// before those are rewritten in which little lives.
pub const OLD_BYTES_PERCENT: u64 = 140;

/// A segment is rewritten if less than so many hundredths of it live.
pub const THIN_PERCENT: u64 = 80;

/// Bytes that are synced at once while segments are rewritten.
pub const COMPACTED_BATCH_BYTES: usize = 1024 * 1024;

/// Bytes after which a scratch file takes no further record; the last one may reach beyond. `Scratch` begins another file.
pub const SCRATCH_BYTES: u32 = 16 * 1024 * 1024;

/// Bytes around a place that the disk cannot read, which are given up with it.
pub const UNREADABLE_BLOCK_BYTES: usize = 4096;

/// Bytes of a header in which a byte of the salt is looked for that is wrong: with 3,000 streams. Its checksum is taken 128 times.
pub(crate) const MENDED_HEADER_BYTES_MAX: usize = 64 * 1024;
