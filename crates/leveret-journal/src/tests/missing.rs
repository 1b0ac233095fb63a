//! Segments that are not there, as a whole or in part.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::{MIDDLE, MemoryDisk, SMALL, append, mostly_old, open, payload, records};
use crate::disk::Disk;
use crate::format::SegmentHeader;
use crate::{Damage, Doubt, Extent, Log, Missing, ReadError, Recovery, check, look, look_ahead};

#[test]
fn a_segment_that_is_missing_or_has_lost_its_header_is_reported_and_the_rest_is_read() {
    let disk = MemoryDisk::default();
    let (mut log, _, _) = open(&disk, SMALL);
    for first in (1..=91).step_by(10) {
        append(&mut log, first, first + 9, 20).unwrap();
    }
    let files = disk.snapshot();
    assert!(files.len() > 4);
    let mut missing = files.clone();
    missing.remove("0000000002.segment");
    let (_, found, recovery) = open(&MemoryDisk::of(missing), SMALL);
    let lost = recovery.records_missing();
    assert!(lost > 0 && found.len() as u64 + lost == 100, "{recovery:?}");
    assert_eq!(absent(&recovery), ["0000000002.segment"]);
    for (gone, named) in
        [(1..=1, "0000000001.segment"), (2..=4, "one or more of 0000000002.segment to 0000000004.segment")]
    {
        let mut missing = files.clone();
        missing.retain(|name, _| !gone.clone().any(|generation| *name == format!("{generation:010}.segment")));
        let (_, found, recovery) = open(&MemoryDisk::of(missing), SMALL);
        assert_eq!(found.len() as u64 + recovery.records_missing(), 100, "{recovery:?}");
        assert_eq!(absent(&recovery), [named]);
    }
    // The segment of a start that appended nothing says nothing, also by its absence.
    for lost in ["0000000001.segment", "0000000002.segment", "0000000003.segment"] {
        let disk = MemoryDisk::default();
        append(&mut open(&disk, SMALL).0, 1, 3, 10).unwrap();
        drop(open(&disk, SMALL));
        append(&mut open(&disk, SMALL).0, 4, 6, 10).unwrap();
        let mut headless = disk.snapshot();
        headless.get_mut(lost).unwrap()[20] ^= 1;
        assert!(open(&MemoryDisk::of(headless), SMALL).1 == records(1, 6, 10), "{lost} without its header");
        let mut missing = disk.snapshot();
        missing.remove(lost);
        let (_, found, recovery) = open(&MemoryDisk::of(missing), SMALL);
        let expected = match lost {
            "0000000001.segment" => records(4, 6, 10),
            "0000000002.segment" => records(1, 6, 10),
            _ => records(1, 3, 10),
        };
        assert!(found == expected, "without {lost}: {recovery:?}");
    }
    // A bad block at the beginning of the last segment takes all with it, and that is said.
    let last = files.keys().last().unwrap();
    let mut unreadable = files.clone();
    unreadable.get_mut(last).unwrap()[..512].fill(0xA5);
    let disk = MemoryDisk::of(unreadable);
    let (_, found, recovery) = open(&disk, SMALL);
    assert!(found.len() < 100 && !recovery.damage.is_empty(), "{recovery:?}");
    assert!(disk.snapshot().contains_key(last), "what is damaged is not removed");
    let mut headless = files.clone();
    headless.get_mut("0000000002.segment").unwrap()[3] ^= 1;
    let (_, found, _) = open(&MemoryDisk::of(headless), SMALL);
    assert!(found == records(1, 100, 20), "{} records", found.len());
}

fn absent(recovery: &Recovery) -> Vec<String> {
    let absent = recovery.damage.iter().filter(|damage| damage.extent == Extent::Absent);
    absent.map(|damage| damage.file.clone()).collect()
}

#[test]
fn that_the_last_segment_is_missing_is_known_from_the_one_before_it() {
    let disk = MemoryDisk::default();
    let (mut log, _, _) = open(&disk, SMALL);
    for first in (1..=96).step_by(5) {
        append(&mut log, first, first + 4, 20).unwrap();
    }
    log.mark().unwrap();
    drop(log);
    let mut files = disk.snapshot();
    let last = files.keys().next_back().unwrap().clone();
    files.remove(&last);
    let disk = MemoryDisk::of(files);
    let checked = check(&disk, &mut |_| {}).unwrap();
    let (mut log, found, recovery) = open(&disk, SMALL);
    assert_eq!(checked.damage, recovery.damage);
    let [Damage { extent: Extent::Behind { .. }, missing: Missing::Unknown, .. }] = recovery.damage[..] else {
        panic!("{recovery:?}");
    };
    assert!(found.len() >= 70 && found.len() < 100);
    // Neither the numbers of what is missing nor that of its segment are given again.
    let next = recovery.streams[&1] + 1;
    assert!(next > 101, "{next}");
    append(&mut log, next, next, 10).unwrap();
    assert!(!disk.snapshot().contains_key(&last));
    drop(log);
    let (_, again, recovery) = open(&disk, SMALL);
    assert_eq!((again.len(), recovery.damage.len()), (found.len() + 1, 0), "{recovery:?}");
    let [noted] = &recovery.noted[..] else { panic!("{recovery:?}") };
    assert!(noted.starts_with("damaged-00") && noted.ends_with("-unknown"), "{noted}");
}

/// Whoever has not read the log of the start that found it has to hear of it all the same.
#[test]
fn that_the_end_is_missing_is_noted_before_the_journal_goes_on_behind_it() {
    let disk = MemoryDisk::default();
    let (mut log, _, _) = open(&disk, SMALL);
    for first in (1..=96).step_by(5) {
        append(&mut log, first, first + 4, 20).unwrap();
    }
    drop(log);
    let files = disk.snapshot();
    let last = files.keys().next_back().unwrap().clone();
    for how in ["missing", "emptied", "zeros", "anything"] {
        for operations in 0..40 {
            let mut files = files.clone();
            match how {
                "missing" => drop(files.remove(&last)),
                "emptied" => files.get_mut(&last).unwrap().clear(),
                "zeros" => files.get_mut(&last).unwrap().fill(0),
                _ => files.get_mut(&last).unwrap().fill(0x5a),
            }
            let disk = MemoryDisk::of(files);
            disk.fails_after(Some(operations));
            let is_done = Log::open(Arc::new(disk.clone()), SMALL, &mut |_| {}).is_ok();
            disk.fails_after(None);
            let found = check(&disk, &mut |_| {}).unwrap();
            let is_damaged = found.damage.iter().any(|damage| damage.missing != Missing::Exactly(0));
            assert!(is_damaged || found.noted.len() == 1, "{how}, {operations}: {found:?}");
            if is_done {
                assert_eq!(found.noted.len(), 1, "{how}, {operations}: {found:?}");
                break;
            }
            assert!(operations < 39);
        }
    }
}

#[test]
fn that_the_segment_behind_a_checkpoint_is_missing_is_known() {
    let disk = MemoryDisk::default();
    let (mut log, _) = mostly_old(&disk);
    let from = BTreeMap::from([(1, 191)]);
    for operations in 0..20 {
        let before = MemoryDisk::of(disk.snapshot());
        let (mut log, ..) = open(&before, MIDDLE);
        before.fails_after(Some(operations));
        let is_done = log.begin_replay_at(&from).is_ok();
        before.fails_after(None);
        // What is interrupted there lacks nothing.
        assert_eq!(open(&before, MIDDLE).2.damage, [], "interrupted after {operations} operations");
        if is_done {
            break;
        }
        assert!(operations < 19, "it takes more operations than expected");
    }
    log.begin_replay_at(&from).unwrap();
    append(&mut log, 201, 210, 10).unwrap();
    drop(log);
    let mut files = disk.snapshot();
    let last = files.keys().next_back().unwrap().clone();
    files.remove(&last);
    let (_, found, recovery) = open(&MemoryDisk::of(files), MIDDLE);
    assert!(
        found.len() >= 10 && matches!(recovery.damage[..], [Damage { extent: Extent::Behind { .. }, .. }]),
        "{recovery:?}"
    );
}

#[test]
fn a_journal_all_of_whose_segments_are_missing_is_not_taken_for_a_new_one() {
    let disk = MemoryDisk::default();
    let recovery = check(&disk, &mut |_| {}).unwrap();
    assert!(recovery.is_new && recovery.damage.is_empty());
    let (mut log, ..) = open(&disk, SMALL);
    append(&mut log, 1, 10, 20).unwrap();
    log.spares().keep(2, 2).unwrap();
    drop(log);
    let mut files = disk.snapshot();
    files.retain(|name, _| !name.ends_with(".segment"));
    let disk = MemoryDisk::of(files);
    let checked = check(&disk, &mut |_| {}).unwrap();
    let (mut log, found, recovery) = open(&disk, SMALL);
    assert_eq!((found.len(), absent(&recovery).len(), checked.damage), (0, 1, recovery.damage));
    append(&mut log, 1, 1, 10).unwrap();
    // What first starts leave behind that were interrupted says nothing.
    for operations in 0..10 {
        let disk = MemoryDisk::default();
        for start in 1..=5 {
            disk.fails_after(Some(operations));
            let _ = Log::open(Arc::new(disk.clone()), SMALL, &mut |_| {});
            disk.fails_after(None);
            let damage = check(&disk, &mut |_| {}).unwrap().damage;
            assert_eq!(damage, [], "{start} interrupted after {operations} operations");
        }
    }
}

#[test]
fn the_records_that_may_have_been_in_missing_old_segments_are_known() {
    let disk = MemoryDisk::default();
    let (log, _) = mostly_old(&disk);
    drop(log);
    assert_eq!(look_ahead(&disk).unwrap().doubts, []);
    let without = |gone: &[u32]| {
        let mut files = disk.snapshot();
        files.retain(|name, _| !gone.iter().any(|generation| *name == format!("{generation:010}.segment")));
        let disk = MemoryDisk::of(files);
        assert_eq!(check(&disk, &mut |_| {}).unwrap().damage, [], "they may not have been needed any more");
        let doubts = look_ahead(&disk).unwrap().doubts;
        let (log, ..) = open(&disk, MIDDLE);
        (doubts, log.reader())
    };
    for (gone, files) in [
        (vec![1], "0000000001.segment"),
        (vec![2], "0000000002.segment"),
        (vec![2, 3], "one or more of 0000000002.segment to 0000000003.segment"),
    ] {
        let (doubts, mut reader) = without(&gone);
        let [Doubt { stream: 1, sequences, files: named }] = &doubts[..] else { panic!("{gone:?}: {doubts:?}") };
        assert_eq!(named, files);
        for sequence in 1..=200 {
            match reader.read(1, sequence) {
                Ok(read) => assert_eq!(read, payload(sequence, 100)),
                Err(ReadError::Unknown { .. }) => {
                    assert!(sequences.contains(&sequence), "{gone:?}: {sequence}");
                    assert!(reader.read(1, *sequences.end()).is_err(), "the last ones are missing");
                }
                Err(error) => panic!("{error}"),
            }
        }
        assert!(reader.read(1, *sequences.end()).is_err());
        assert!(reader.read(1, sequences.end() + 1).is_ok());
    }
}

/// A segment has its header on the disk before it has its name, so a crash leaves none without.
#[test]
fn a_last_segment_that_was_cut_or_is_zeros_is_damaged() {
    let disk = MemoryDisk::default();
    let (mut log, _, _) = open(&disk, SMALL);
    for first in (1..=46).step_by(5) {
        append(&mut log, first, first + 4, 20).unwrap();
    }
    log.mark().unwrap();
    drop(log);
    let files = disk.snapshot();
    let (last, bytes) = files.iter().next_back().unwrap();
    let header = SegmentHeader::bytes_with(1);
    assert!(files.len() > 2 && bytes[header] != 0, "it has a batch");
    let cut = [0, 8, 50, 96, header - 1].map(|length| bytes[..length].to_vec());
    let zeros = [512, bytes.len()].map(|count| [vec![0; count], bytes[count..].to_vec()].concat());
    for damaged in cut.into_iter().chain(zeros) {
        let what = format!("{} bytes, {:?}...", damaged.len(), damaged.get(..4));
        let mut files = files.clone();
        files.insert(last.clone(), damaged);
        let disk = MemoryDisk::of(files);
        let checked = check(&disk, &mut |_| {}).unwrap();
        let (mut log, found, recovery) = open(&disk, SMALL);
        assert!(found.len() >= 30 && found.len() < 50, "{what}: {} records", found.len());
        assert_eq!((checked.damage.len(), recovery.damage.len()), (1, 1), "{what}: {recovery:?}");
        assert_eq!((&recovery.damage[0].file, recovery.damage[0].missing), (last, Missing::Unknown), "{what}");
        assert!(disk.snapshot().contains_key(last), "{what}: it is kept");
        let next = recovery.streams[&1] + 1;
        append(&mut log, next, next, 10).unwrap();
        drop(log);
        let (_, again, recovery) = open(&disk, SMALL);
        assert_eq!(again.len(), found.len() + 1, "{what}");
        assert_eq!((recovery.records_missing(), recovery.damage.len()), (0, 1), "{what}: it is still there");
    }
    // What has nothing but its header loses nothing with that.
    let disk = MemoryDisk::of(files);
    drop(open(&disk, SMALL));
    let last = disk.snapshot().into_keys().next_back().unwrap();
    for at in 0..SegmentHeader::bytes_with(1) {
        let mut files = disk.snapshot();
        files.get_mut(&last).unwrap()[at] ^= 1;
        let disk = MemoryDisk::of(files);
        let checked = check(&disk, &mut |_| {}).unwrap();
        assert_eq!((checked.damage, checked.headless), (Vec::new(), vec![last.clone()]), "flipped at {at}");
        let (_, found, recovery) = open(&disk, SMALL);
        assert_eq!((found.len(), recovery.damage.len()), (50, 0), "flipped at {at}");
        assert!(open(&disk, SMALL).2.headless.is_empty(), "flipped at {at}: it is gone");
    }
}

/// A start reads no more than the headers of old segments; how long they were they say of each other.
#[test]
fn an_old_segment_that_was_cut_is_damaged_wherever_it_was() {
    let disk = MemoryDisk::default();
    drop(mostly_old(&disk));
    let files = disk.snapshot();
    assert_eq!(check(&disk, &mut |_| {}).unwrap().damage, []);
    let old = "0000000002.segment";
    let bytes = files[old].len();
    for length in (0..bytes).step_by(8) {
        let mut cut = files.clone();
        cut.get_mut(old).unwrap().truncate(length);
        let disk = MemoryDisk::of(cut);
        let mut reader = look(&(Arc::new(disk.clone()) as Arc<dyn Disk>), &mut |_| {}).unwrap().1;
        let lost = (1..=200).filter(|&sequence| reader.read(1, sequence).is_err()).count() as u64;
        let checked = check(&disk, &mut |_| {}).unwrap();
        let at_most = checked.records_missing();
        assert!(checked.damage.iter().all(|damage| damage.file == old), "cut to {length}: {checked:?}");
        assert!(at_most >= lost && !checked.damage.is_empty(), "cut to {length}: {lost} of {checked:?}");
        if length >= SegmentHeader::bytes_with(1) {
            assert_eq!(at_most, lost, "cut to {length}");
        }
        let (_, found, recovery) = open(&disk, MIDDLE);
        assert!(found == records(181, 200, 100), "cut to {length}");
        assert!(recovery.records_missing() >= lost, "cut to {length}: {recovery:?}");
    }
    // It is said at each start, and no number is passed over for it: the last ones of all stand in headers behind it. That goes for
    // one of which no header tells where it ended, too.
    let mut emptied = files;
    emptied.get_mut(old).unwrap().clear();
    emptied.remove("0000000003.segment");
    let disk = MemoryDisk::of(emptied);
    for start in 1..=5 {
        let (_, found, recovery) = open(&disk, MIDDLE);
        assert!(found == records(181, 200, 100) && recovery.records_missing() > 0, "start {start}: {recovery:?}");
        assert_eq!((recovery.numbers_missing(), recovery.streams[&1]), (0, 200), "start {start}");
    }
}
