//! The files of a journal: batches that anything may be wrong with, and starts behind any damage.

mod apart;
mod format;

use std::collections::BTreeMap;
use std::sync::Arc;

use leveret_journal::disk::Disk;
use leveret_journal::{Batch, Living, Log, OpenError, Options, Record, Recovery, Salt, check, look, look_ahead};
use leveret_testkit::disk::SimDisk;

use self::apart::Apart;
use self::format::{Header, Seeds};
use crate::allowance::{twice, uncounted};
use crate::bytes::Bytes;

const SALT: Salt = *b"pepper and salt!";
const FIRST: &str = "0000000001.segment";
/// What a start would give a journal that it finds nothing of.
const OTHER_SALT: Salt = *b"another journal!";
/// Small segments, so that there are some.
const SEGMENT_BYTES: u64 = 1024;

type Files = BTreeMap<String, Vec<u8>>;

/// A record as it was found, or written.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Owned {
    stream: u32,
    sequence: u64,
    payload: Vec<u8>,
}

impl From<Record<'_>> for Owned {
    fn from(record: Record<'_>) -> Self {
        Owned { stream: record.stream, sequence: record.sequence, payload: record.payload.to_vec() }
    }
}

/// A disk as the journal has it, which is not the one who pays for what it takes to simulate it.
fn apart(disk: &SimDisk) -> Arc<dyn Disk> {
    Arc::new(Apart(disk.clone()))
}

fn bytes_of(disk: &SimDisk) -> usize {
    disk.files().values().map(Vec::len).sum()
}

/// What a start finds, without changing anything. It may have in memory what the files have, twice, and a little more.
fn checked(disk: &SimDisk) -> Result<(Vec<Owned>, Recovery), OpenError> {
    let (disk, bytes) = (apart(disk), bytes_of(disk));
    let mut found = Vec::new();
    let recovery = twice(bytes, || check(&*disk, &mut |record| uncounted(|| found.push(Owned::from(record)))))?;
    Ok((found, recovery))
}

/// Starts, and says what was found. It may have in memory what the files have, twice, and a little more.
fn opened(disk: &SimDisk, salt: Salt) -> Result<(Log, Vec<Owned>, Recovery), OpenError> {
    let bytes = bytes_of(disk);
    let mut found = Vec::new();
    let options = Options { segment_bytes: SEGMENT_BYTES, salt };
    let disk = apart(disk);
    let (log, recovery) =
        twice(bytes, || Log::open(disk, options, &mut |record| uncounted(|| found.push(Owned::from(record)))))?;
    Ok((log, found, recovery))
}

/// Appends records as one batch. That takes twice what they have, and a little more.
fn append(log: &mut Log, records: &[Owned]) {
    twice(records.iter().map(|record| record.payload.len()).sum(), || {
        let mut batch = Batch::default();
        for Owned { stream, sequence, payload } in records {
            batch.push(*stream, *sequence, |out| out.extend_from_slice(payload));
        }
        log.append(&mut batch).expect("there is room");
    });
}

/// Starts twice in a row and appends in between. Unless something has a checksum that is right and is not so, the second finds what
/// the first one has found, and what was appended; where something was damaged, it may know more of it.
fn start_again(disk: &SimDisk, is_forged: bool) {
    let found = match checked(disk) {
        Ok((found, _)) => found,
        Err(OpenError::Newer { .. }) => {
            let before = disk.files();
            assert!(opened(disk, OTHER_SALT).is_err());
            assert_eq!(disk.files(), before, "what a newer version wrote stays as it is");
            return;
        }
        Err(error @ OpenError::Disk(_)) => panic!("{error}"),
    };
    drop(twice(bytes_of(disk), || look_ahead(&*apart(disk))));
    let (mut log, at_start, recovery) = opened(disk, OTHER_SALT).expect("it was checked");
    assert_eq!(at_start, found);
    let mut expected = found;
    let found_count = expected.len();
    for stream in 0..3 {
        if let Some(sequence) = recovery.streams.get(&stream).map_or(Some(1), |last| last.checked_add(1)) {
            expected.push(Owned { stream, sequence, payload: b"new".to_vec() });
        }
    }
    append(&mut log, &expected[found_count..]);
    twice(bytes_of(disk), || {
        let mut reader = log.reader();
        for Owned { stream, sequence, payload } in expected.iter().rev().take(8) {
            let read = reader.read(*stream, *sequence);
            assert!(is_forged || read.as_ref().is_ok_and(|read| read == payload), "{stream}, {sequence}: {read:?}");
        }
    });
    drop(log);
    let (found, _) = checked(disk).expect("it was opened");
    let (mut rest, is_damaged) = (found.iter(), !recovery.damage.is_empty());
    let is_found = expected.iter().all(|record| rest.any(|other| other == record));
    let is_all = is_found && (is_damaged || found.len() == expected.len());
    assert!(is_forged || is_all, "{found:?} and not {expected:?}");
}

/// Batches written as the format is drawn, with checksums that are right for contents that may not be.
pub(super) fn batch(input: &[u8]) {
    let mut bytes = Bytes::new(input);
    let seeds = Seeds::new(&SALT, 1);
    let mut file = Header::first(&SALT).encode();
    let (mut next, mut sequences) = (1_u64, [0_u64; 3]);
    let (mut written, mut is_whole, mut is_forged) = (Vec::new(), true, false);
    while !bytes.is_empty() {
        let what = bytes.u8();
        let (first, mut durable_before, mut records) = (next, next, Vec::new());
        for _ in 0..what & 3 {
            let stream = bytes.u8() % 3;
            let payload = bytes.short();
            let sequence = &mut sequences[usize::from(stream)];
            *sequence += 1;
            records.push(Owned { stream: stream.into(), sequence: *sequence, payload: payload.to_vec() });
        }
        let mut first_said = first;
        let count = format::u32_of(records.len());
        let mut count_said = count;
        let mut damage = None;
        match what >> 2 & 15 {
            1 => (first_said, is_forged) = (u64::from(bytes.u32()), true),
            2 => (first_said, is_forged) = (u64::from(bytes.u32()) << 32, true),
            3 => durable_before = u64::from(bytes.u32()) % (next + 1),
            4 => (durable_before, is_forged) = (u64::from(bytes.u32()) << bytes.one_of(&[0, 32]), true),
            5 => (count_said, is_forged) = (bytes.u32(), true),
            6 => damage = Some((bytes.u16(), bytes.u8())),
            7 => {
                // Bytes that are no batch.
                let more = bytes.short();
                is_whole &= more.is_empty();
                file.extend_from_slice(more);
                file.resize(file.len().next_multiple_of(8), 0);
            }
            8 => {
                // The sequence of a record is anything.
                if let Some(record) = records.last_mut() {
                    record.sequence = u64::from(bytes.u32()) << bytes.one_of(&[0, 31, 32]);
                    (is_whole, is_forged) = (false, true);
                }
            }
            _ => {}
        }
        let mut encoded = format::batch(seeds, first_said, durable_before, count_said, &records);
        if let Some((at, xor)) = damage {
            let at = usize::from(at) % encoded.len();
            encoded[at] ^= xor;
        }
        is_whole &= (first_said, durable_before, count_said) == (first, first, count)
            && damage.is_none_or(|(_, xor)| xor == 0);
        next += records.len() as u64;
        file.extend_from_slice(&encoded);
        written.extend(records);
    }
    file.resize(file.len() + 4096, 0);
    let disk = SimDisk::of(BTreeMap::from([(FIRST.to_owned(), file)]));
    let (found, recovery) = checked(&disk).expect("the version is ours");
    if is_whole {
        assert_eq!(found, written, "what was written is read");
        assert_eq!((recovery.damage.len(), recovery.cut), (0, None));
    }
    let mut rest = written.iter();
    assert!(found.iter().all(|record| rest.any(|other| other == record)), "nothing is made up, nor out of order");
    start_again(&disk, is_forged);
}

/// A journal as it is written, then damaged, then started again.
pub(super) fn recovery(input: &[u8]) {
    let mut bytes = Bytes::new(input);
    let disk = SimDisk::default();
    let written = write(&disk, &mut bytes);
    let mut files = disk.files();
    let mut is_forged = false;
    while !bytes.is_empty() {
        is_forged |= damage(&mut files, &mut bytes);
    }
    let disk = SimDisk::of(files);
    if let Ok((found, _)) = checked(&disk)
        && !is_forged
    {
        assert!(found.iter().all(|record| written.contains(record)), "nothing is made up");
    }
    let shared = apart(&disk);
    twice(bytes_of(&disk), || {
        let Ok((recovery, mut reader)) = look(&shared, &mut |_| {}) else { return };
        // Each is read, or it is said why not.
        for (stream, last) in recovery.streams {
            for sequence in last.saturating_sub(4)..=last {
                let read = reader.read(stream, sequence);
                uncounted(|| {
                    let is_written =
                        |payload: &&[u8]| written.contains(&Owned { stream, sequence, payload: payload.to_vec() });
                    let is_right = is_forged || read.is_err() || read.as_ref().is_ok_and(is_written);
                    assert!(is_right, "{stream}, {sequence}");
                });
            }
        }
    });
    start_again(&disk, is_forged);
}

/// Writes a journal, with what a broker does to it now and then, and says what was appended.
fn write(disk: &SimDisk, bytes: &mut Bytes<'_>) -> Vec<Owned> {
    let mut appended = Vec::new();
    let (mut log, ..) = opened(disk, SALT).expect("the disk is new");
    let mut sequences = BTreeMap::from([(0_u32, 0_u64), (1, 0), (2, 0)]);
    for _ in 0..bytes.u8() % 32 {
        match bytes.u8() % 8 {
            0..=3 => {
                let before = appended.len();
                for _ in 0..=bytes.u8() % 4 {
                    let stream = u32::from(bytes.u8() % 3);
                    let payload = vec![bytes.u8(); usize::from(bytes.u8()) * 2];
                    let sequence = sequences.entry(stream).or_default();
                    *sequence += 1;
                    appended.push(Owned { stream, sequence: *sequence, payload });
                }
                append(&mut log, &appended[before..]);
            }
            4 => twice(0, || log.mark()).expect("there is room"),
            5 => {
                let behind = u64::from(bytes.u8() % 8);
                let from = sequences.iter().map(|(&stream, last)| (stream, last.saturating_sub(behind).max(1)));
                let from = from.collect();
                twice(0, || log.begin_replay_at(&from)).expect("there is room");
            }
            6 => {
                let few = u64::from(bytes.u8() % 4) + 1;
                twice(bytes_of(disk), || {
                    let (mut keeper, mut living) = (log.keeper(), Living::default());
                    for (&stream, &last) in &sequences {
                        let needed = (1..=last).filter(|sequence| last - sequence < 8 || sequence % few == 0);
                        keeper.note(&mut living, stream, needed.map(|sequence| (sequence, 100)), 0);
                    }
                    keeper.sweep(&living, &|| false).expect("there is room");
                });
            }
            _ => {
                drop(log);
                (log, ..) = opened(disk, OTHER_SALT).expect("it is whole");
            }
        }
    }
    appended
}

/// Damages a journal in one place; true if something was made up that has a checksum which is right.
fn damage(files: &mut Files, bytes: &mut Bytes<'_>) -> bool {
    let what = bytes.u8();
    let pick = usize::from(bytes.u8());
    let count = files.len().max(1);
    let Some(name) = files.keys().nth(pick % count).cloned() else { return false };
    let Some(file) = files.get_mut(&name) else { return false };
    let at = usize::from(bytes.u16()) % file.len().max(1);
    match what % 8 {
        0 => {
            if let Some(byte) = file.get_mut(at) {
                *byte ^= bytes.u8();
            }
        }
        1 => file.truncate(at),
        2 => {
            let end = at.saturating_add(bytes.u16().into()).min(file.len());
            file[at..end].fill(0);
        }
        3 => {
            let from = usize::from(bytes.u16()) % file.len().max(1);
            let count = usize::from(bytes.u8()).min(file.len() - from).min(file.len() - at);
            file.copy_within(from..from + count, at);
        }
        4 => drop(files.remove(&name)),
        5 => {
            let generation = u64::from(bytes.u8() % 16);
            let bytes = files.remove(&name).unwrap_or_default();
            files.insert(format!("{generation:010}.segment"), bytes);
        }
        6 => {
            let more = bytes.short();
            let end = (at + more.len()).min(file.len());
            file[at..end].copy_from_slice(&more[..end - at]);
        }
        _ => {
            let generation = u64::from(bytes.u8() % 16);
            let header = Header::any(generation, &SALT, bytes);
            let mut file = header.encode();
            let records = [Owned { stream: 1, sequence: u64::from(bytes.u32()), payload: b"forged".to_vec() }];
            let first = u64::from(bytes.u8());
            file.extend(format::batch(Seeds::new(&SALT, generation), first, first, 1, &records));
            file.resize(file.len() + 64, 0);
            files.insert(format!("{generation:010}.segment"), file);
            return true;
        }
    }
    false
}
