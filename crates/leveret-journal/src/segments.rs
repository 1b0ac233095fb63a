//! The files of a journal, and what their headers tell before any is read.

use std::io;
use std::ops::RangeInclusive;

use crate::disk::{Disk, DiskFile};
use crate::format::{
    DAMAGED_PREFIX, HeaderFound, HeaderSum, Replay, SEGMENT_HEADER_BYTES, Salt, Seeds, SegmentHeader, VERSION,
    damaged_region_prefix, generation_of, is_unknown_name, segment_name,
};
use crate::keeper::COMPACTED_SUFFIX;
use crate::limits::{MENDED_HEADER_BYTES_MAX, READ_BYTES};
use crate::pieces::Pieces;
use crate::spares;

/// Why a journal cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// A newer Leveret wrote it.
    #[error(
        "{file} has format version {found}, and this Leveret reads {VERSION}: start the version that wrote it, or \
         choose another folder; nothing was changed"
    )]
    Newer {
        /// The segment that says so.
        file: String,
        /// The version it has.
        found: u32,
    },
    /// The disk refuses.
    #[error("the disk refuses: {0}")]
    Disk(#[from] io::Error),
}

/// Records of which some may have been in segments that are not there. That is as it should be if none of those is needed
/// any more, which the journal does not know.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Doubt {
    /// Their stream.
    pub stream: u32,
    /// Their sequences. If some are missing, these are all behind those that are not.
    pub sequences: RangeInclusive<u64>,
    /// The segments.
    pub files: String,
}

/// What the headers of segments tell before any is read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outlook {
    /// Bytes of the files that a start reads.
    pub bytes: u64,
    /// The records of which nobody can say whether they are there, in the order of stream and sequence. All of them lie
    /// before what a start reads.
    pub doubts: Vec<Doubt>,
}

/// Looks at the headers of a journal and changes nothing.
///
/// # Errors
/// As [`crate::Log::open`].
pub fn look_ahead(disk: &dyn Disk) -> Result<Outlook, OpenError> {
    let Files { segments, .. } = segments(disk)?;
    let last_header = segments.iter().rev().find_map(|segment| segment.header.as_ref());
    let replay = last_header.map_or(Replay::ALL, |header| header.replay);
    let (mut doubts, mut before, mut last_generation) = (Vec::new(), None, 0);
    for segment in &segments {
        if let Some(header) = &segment.header {
            if header.previous_generation > last_generation {
                let files = names(last_generation + 1, header.previous_generation);
                for (&stream, state) in &header.streams {
                    let known = before.and_then(|before: &SegmentHeader| before.streams.get(&stream));
                    let sequences = known.map_or(0, |state| state.last) + 1..=state.last;
                    doubts.push(Doubt { stream, sequences, files: files.clone() });
                }
            }
            before = Some(header);
        }
        if segment.generation >= replay.generation {
            break;
        }
        last_generation = segment.last_generation();
    }
    doubts.retain(|doubt| !doubt.sequences.is_empty());
    doubts.sort_by_key(|doubt| (doubt.stream, *doubt.sequences.start()));
    let is_read = |segment: &&Segment| segment.generation >= replay.generation;
    let bytes = segments.iter().filter(is_read).map(|segment| segment.length).sum();
    Ok(Outlook { bytes, doubts })
}

pub(crate) struct Segment {
    pub(crate) name: String,
    pub(crate) generation: u64,
    pub(crate) header: Option<SegmentHeader>,
    pub(crate) seeds: Seeds,
    pub(crate) length: u64,
    /// An earlier start found damage in it, and left a copy of that.
    pub(crate) was_damaged: bool,
}

impl Segment {
    pub(crate) fn pieces(&self, disk: &dyn Disk) -> io::Result<Pieces> {
        Pieces::open(disk, &self.name, self.length, self.seeds)
    }

    /// The last of the segments of which it holds what is left.
    pub(crate) fn last_generation(&self) -> u64 {
        self.header.as_ref().map_or(0, |header| header.compacted_through).max(self.generation)
    }

    /// Whether it holds what was left of others, and perhaps of itself.
    pub(crate) fn is_compacted(&self) -> bool {
        self.header.as_ref().is_some_and(|header| header.compacted_through > 0)
    }
}

/// The files of a journal.
pub(crate) struct Files {
    /// In order.
    pub(crate) segments: Vec<Segment>,
    /// What any of them says it is.
    pub(crate) salt: Option<Salt>,
    /// Segments of which another one holds what is left, and spares of a journal that never had any.
    pub(crate) leftovers: Vec<String>,
    /// There are none, though other files say that there were.
    pub(crate) is_emptied: bool,
    /// Files in which earlier starts have noted that records were missing, and not exactly how many, in order.
    pub(crate) noted: Vec<String>,
}

/// Whether these files are left of a journal that had segments. Before it has one, a journal has a spare, or another one if
/// there was no room for the first.
fn are_left(names: &[String]) -> bool {
    let spares: Vec<_> = names.iter().filter_map(|name| spares::number_of(name)).collect();
    let is_of_segment = |name: &String| name.starts_with(DAMAGED_PREFIX) || name.ends_with(COMPACTED_SUFFIX);
    spares.len() > 1 || spares.iter().any(|&number| number > 2) || names.iter().any(is_of_segment)
}

pub(crate) fn segments(disk: &dyn Disk) -> Result<Files, OpenError> {
    let mut segments = Vec::new();
    let names = disk.list()?;
    for name in &names {
        let generation = generation_of(name);
        let may_be_segment =
            generation.is_some() || spares::number_of(name).is_some() || name.ends_with(COMPACTED_SUFFIX);
        if !may_be_segment {
            continue;
        }
        let file = disk.open(name)?;
        let length = file.length()?;
        let header = match read_header(&*file, length) {
            HeaderFound::Valid(header) => Some(header),
            HeaderFound::Newer(found) => return Err(OpenError::Newer { file: name.clone(), found }),
            HeaderFound::Invalid => None,
        };
        let Some(generation) = generation else { continue };
        let region = damaged_region_prefix(generation);
        let (name, was_damaged) =
            (name.clone(), names.iter().any(|name| name.starts_with(&region) && !is_unknown_name(name)));
        let header = header.filter(|header| header.generation == generation);
        let seeds = Seeds::new(&Salt::default(), generation);
        segments.push(Segment { name, generation, header, seeds, length, was_damaged });
    }
    segments.sort_by_key(|segment| segment.generation);
    // What is left of some of them is in the first of these.
    let compacted = segments.iter().filter_map(|segment| segment.header.as_ref());
    let covered: Vec<_> = compacted.map(|header| header.generation + 1..=header.compacted_through).collect();
    let is_covered = |segment: &Segment| covered.iter().any(|range| range.contains(&segment.generation));
    let mut leftovers: Vec<_> =
        segments.extract_if(.., |segment| is_covered(segment)).map(|segment| segment.name).collect();
    let mut salt = segments.iter().find_map(|segment| Some(segment.header.as_ref()?.salt));
    let kept = if salt.is_none() && !segments.is_empty() { kept_salt(disk) } else { None };
    // A header that does not verify may be wrong in anything else; what verifies with this salt was written with it.
    let is_kept = |_: &[u8]| Vec::from_iter(kept);
    let is_said = |header: &[u8]| Vec::from_iter(SegmentHeader::salt_said(header));
    let salts: [Salts<'_>; 3] = [&is_kept, &is_said, &SegmentHeader::salts_mended];
    for salts in salts {
        if salt.is_none() {
            salt = salt_of_damaged(disk, &segments, salts)?;
        }
    }
    // Records may verify where no batch does.
    salt = salt.or(kept);
    for segment in &mut segments {
        segment.seeds = Seeds::new(&salt.unwrap_or_default(), segment.generation);
    }
    let is_emptied = segments.is_empty() && are_left(&names);
    let mut noted: Vec<_> = names.iter().filter(|name| is_unknown_name(name)).cloned().collect();
    noted.sort();
    if segments.is_empty() && !is_emptied {
        // Of a first start that was interrupted. With those of the next one they would say that there were segments.
        leftovers.extend(names.into_iter().filter(|name| spares::number_of(name).is_some()));
    }
    Ok(Files { segments, salt, leftovers, is_emptied, noted })
}

/// Where the salt is kept once more: without it nothing in a journal verifies, and damage of its only header would take all of it.
pub(crate) const SALT_FILE: &str = "0.salt";
const UNFINISHED_SALT_FILE: &str = "0.salt.unfinished";
const SALT_MAGIC: &[u8; 12] = b"LVRTSALT\x01\0\0\0";
const SALT_FILE_BYTES: usize = 32;

fn encode_salt(salt: &Salt) -> [u8; SALT_FILE_BYTES] {
    let mut bytes = [0; SALT_FILE_BYTES];
    bytes[..12].copy_from_slice(SALT_MAGIC);
    bytes[16..].copy_from_slice(salt);
    let checksum = crc32c::crc32c_append(crc32c::crc32c(SALT_MAGIC), salt);
    bytes[12..16].copy_from_slice(&checksum.to_le_bytes());
    bytes
}

/// What that file says, if it verifies.
fn kept_salt(disk: &dyn Disk) -> Option<Salt> {
    let mut bytes = [0; SALT_FILE_BYTES];
    disk.open(SALT_FILE).ok()?.read_at(0, &mut bytes).ok()?;
    let salt = *bytes[16..].first_chunk()?;
    (encode_salt(&salt) == bytes).then_some(salt)
}

/// Keeps the salt of a journal beside its segments, unless it is there. When this returns, it is durable.
pub(crate) fn keep_salt(disk: &dyn Disk, salt: &Salt) -> io::Result<()> {
    if kept_salt(disk).as_ref() == Some(salt) {
        return Ok(());
    }
    match disk.remove(UNFINISHED_SALT_FILE) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let file = disk.create(UNFINISHED_SALT_FILE)?;
    file.write_at(0, &encode_salt(salt))?;
    file.sync()?;
    disk.rename(UNFINISHED_SALT_FILE, SALT_FILE)?;
    disk.sync_directory()
}

/// The salts that a damaged header may have had.
type Salts<'s> = &'s dyn Fn(&[u8]) -> Vec<Salt>;

/// One of the salts that damaged headers may have had with which a batch of that segment verifies.
fn salt_of_damaged(disk: &dyn Disk, segments: &[Segment], salts: Salts<'_>) -> io::Result<Option<Salt>> {
    for segment in segments {
        let mut pieces = segment.pieces(disk)?;
        let claimed = SegmentHeader::bytes_claimed(pieces.bytes(0, SEGMENT_HEADER_BYTES));
        for salt in salts(pieces.bytes(0, claimed.min(MENDED_HEADER_BYTES_MAX))) {
            let seeds = Seeds::new(&salt, segment.generation);
            let mut pieces = Pieces::open(disk, &segment.name, segment.length, seeds)?;
            if pieces.next_batch(0, segment.length, 0).is_some() {
                return Ok(Some(salt));
            }
        }
    }
    Ok(None)
}

/// A header that the disk cannot read is as invalid as any.
pub(crate) fn read_header(file: &dyn DiskFile, length: u64) -> HeaderFound {
    let mut bytes = vec![0; SEGMENT_HEADER_BYTES];
    let Ok(count) = file.read_at(0, &mut bytes) else { return HeaderFound::Invalid };
    bytes.truncate(count);
    let claimed = SegmentHeader::bytes_claimed(&bytes);
    // What is wrong in a header may be its length.
    if claimed as u64 > length || claimed > READ_BYTES && !verifies_in_parts(file, claimed) {
        return HeaderFound::Invalid;
    }
    bytes.resize(claimed, 0);
    match file.read_at(0, &mut bytes) {
        Ok(_) => SegmentHeader::decode(&bytes),
        Err(_) => HeaderFound::Invalid,
    }
}

/// Whether a header of so many bytes verifies, of which only a part is in memory.
fn verifies_in_parts(file: &dyn DiskFile, bytes: usize) -> bool {
    let (mut part, mut at, mut sum) = (vec![0; READ_BYTES], 0, HeaderSum::default());
    while at < bytes {
        let part = &mut part[..READ_BYTES.min(bytes - at)];
        if file.read_at(at as u64, part).ok() != Some(part.len()) {
            return false;
        }
        sum.add(part);
        at += part.len();
    }
    sum.verifies()
}

/// Segments that are missing, as a person reads it. Of several, some may have been removed as they should.
pub(crate) fn names(first: u64, last: u64) -> String {
    let (first, last) = (segment_name(first.min(last)), segment_name(last));
    if first == last { last } else { format!("one or more of {first} to {last}") }
}
