//! Taking room back, and what is left of old segments.

use std::collections::BTreeMap;

use super::{HEADER, MIDDLE, MemoryDisk, SEGMENT, append, mostly_old, open, payload, records, sweep};
use crate::{Living, Missing, check};

fn bytes_used(disk: &MemoryDisk) -> usize {
    disk.snapshot().values().map(Vec::len).sum()
}

#[test]
fn what_is_needed_of_old_segments_is_kept_in_less_room_and_found_meanwhile() {
    let disk = MemoryDisk::default();
    let (log, _) = mostly_old(&disk);
    let (before, mut reader) = (bytes_used(&disk), log.reader());
    assert_eq!(reader.read(1, 30).unwrap(), payload(30, 100));
    let needed = || (1..=200).filter(|sequence| sequence % 15 == 0 || *sequence > 180);
    let mut keeper = log.keeper();
    let mut living = Living::default();
    keeper.note(&mut living, 1, needed().map(|sequence| (sequence, 100)), 0);
    assert_eq!(keeper.sweep(&living, &|| true).unwrap().compacted, 0, "it was told to stop");
    let swept = keeper.sweep(&living, &|| false).unwrap();
    assert!(swept.compacted > 2, "{swept:?}");
    assert!(bytes_used(&disk) < before / 2, "{} of {before} bytes are left", bytes_used(&disk));
    for log in [log, open(&disk, MIDDLE).0] {
        // The first reader has an old file open.
        for reader in [&mut reader, &mut log.reader()] {
            for sequence in needed() {
                assert_eq!(reader.read(1, sequence).unwrap(), payload(sequence, 100), "{sequence}");
            }
        }
    }
    assert!(check(&disk, &mut |_| {}).unwrap().damage.is_empty());
    // Nothing of the old is needed any more.
    let (log, found, _) = open(&disk, MIDDLE);
    assert_eq!(found, records(181, 200, 100));
    let mut keeper = log.keeper();
    let mut living = Living::default();
    keeper.note(&mut living, 1, (181..=200).map(|sequence| (sequence, 100)), 0);
    assert!(keeper.sweep(&living, &|| false).unwrap().removed > 0);
    assert_eq!(open(&disk, MIDDLE).1, records(181, 200, 100));
}

#[test]
fn damage_of_old_segments_is_found_by_a_check_and_takes_nothing_else() {
    let disk = MemoryDisk::default();
    let (log, whole) = mostly_old(&disk);
    drop(log);
    let batch_bytes = (40 + 10 * (24 + 100_usize)).next_multiple_of(8);
    // The second batch of the first segment; a record's length; the segment's own header.
    // And a byte of a body.
    let places = [(HEADER + batch_bytes, 40, 0), (HEADER + 40, 4, 1), (0, 8, 0), (HEADER + 300, 1, 1)];
    for (at, count, lost) in places {
        let mut files = disk.snapshot();
        files.get_mut(SEGMENT).unwrap()[at..at + count].fill(0xEE);
        let damaged = MemoryDisk::of(files);
        let checked = check(&damaged, &mut |_| {}).unwrap();
        if at == 0 {
            assert_eq!((checked.damage.len(), checked.headless.len()), (0, 1), "damaged at {at}: {checked:?}");
        } else {
            let missing: Vec<_> = checked.damage.iter().map(|damage| damage.missing).collect();
            assert_eq!(missing, [Missing::Exactly(lost as u64)], "damaged at {at}: {checked:?}");
        }
        let (log, found, _) = open(&damaged, MIDDLE);
        assert_eq!(found, records(181, 200, 100), "a start does not need it");
        let mut reader = log.reader();
        let readable = whole.iter().filter(|(stream, sequence, payload)| {
            reader.read(*stream, *sequence).is_ok_and(|read| read == payload.as_slice())
        });
        assert_eq!(whole.len() - readable.count(), lost, "damaged at {at}: these are not found");
        // It stays as it is, however little of it is needed, and the others do not.
        let mut keeper = log.keeper();
        let mut living = Living::default();
        keeper.note(&mut living, 1, [15, 75, 190].into_iter().map(|sequence| (sequence, 100)), 0);
        let swept = keeper.sweep(&living, &|| false).unwrap();
        assert!(swept.compacted + swept.removed > 0, "damaged at {at}: {swept:?}");
        assert_eq!(log.reader().read(1, 75).unwrap(), payload(75, 100));
    }
}

#[test]
fn an_old_segment_that_cannot_be_read_at_one_start_is_all_there_at_the_next() {
    let needed = || (1..=200).filter(|sequence| sequence % 15 == 0 || *sequence > 180);
    let name = |generation: u32| format!("{generation:010}.segment");
    for generation in 1..=3 {
        let disk = MemoryDisk::default();
        drop(mostly_old(&disk));
        let bytes = disk.snapshot().remove(&name(generation)).unwrap();
        *disk.unreadable.lock().unwrap() = Some((name(generation), 0..1 << 20));
        let (log, found, recovery) = open(&disk, MIDDLE);
        assert_eq!(found, records(181, 200, 100));
        let missing = recovery.records_missing();
        assert!(recovery.damage.len() == 1 && (30..=120).contains(&missing), "{generation}: {recovery:?}");
        let swept = sweep(&log, needed());
        assert!(swept.compacted > 1, "the others are rewritten, {generation}: {swept:?}");
        drop(log);
        *disk.unreadable.lock().unwrap() = None;
        let (log, _, recovery) = open(&disk, MIDDLE);
        assert_eq!(recovery.damage, [], "{generation}");
        let mut reader = log.reader();
        for sequence in needed() {
            assert_eq!(reader.read(1, sequence).unwrap(), payload(sequence, 100), "{generation}: {sequence}");
        }
        // It may hold what is needed as long as anything is that could lie in it; then it goes, but not its bytes.
        drop(log);
        *disk.unreadable.lock().unwrap() = Some((name(generation), 0..1 << 20));
        let (log, ..) = open(&disk, MIDDLE);
        sweep(&log, 15..=200);
        assert_eq!(disk.snapshot().get(&name(generation)), Some(&bytes), "{generation}");
        sweep(&log, 181..=200);
        assert!(!disk.snapshot().contains_key(&name(generation)), "{generation}");
        assert_eq!(disk.snapshot().get(&format!("damaged-{}", name(generation))), Some(&bytes), "{generation}");
        drop(log);
        let (_, found, recovery) = open(&disk, MIDDLE);
        assert_eq!((found, recovery.damage), (records(181, 200, 100), Vec::new()), "{generation}");
    }
}

#[test]
fn a_segment_in_which_records_are_missing_is_never_removed() {
    for restarts in [false, true] {
        let disk = MemoryDisk::default();
        let (mut log, _, _) = open(&disk, MIDDLE);
        for first in (1..=191).step_by(10) {
            append(&mut log, first, first + 9, 100).unwrap();
        }
        log.mark().unwrap();
        drop(log);
        let name = SEGMENT.replace('1', "2");
        let bytes = disk.snapshot().remove(&name).unwrap();
        *disk.unreadable.lock().unwrap() = Some((name.clone(), 0..1 << 20));
        let (mut log, found, recovery) = open(&disk, MIDDLE);
        assert_eq!(found.len() as u64 + recovery.records_missing(), 200);
        // Nobody knows of what is missing, and so nobody needs it.
        let next = recovery.streams[&1] + 1;
        append(&mut log, next, next, 10).unwrap();
        log.begin_replay_at(&BTreeMap::from([(1, next)])).unwrap();
        if restarts {
            drop(log);
            *disk.unreadable.lock().unwrap() = None;
            log = open(&disk, MIDDLE).0;
        }
        assert!(sweep(&log, std::iter::once(next)).removed > 2);
        assert!(!disk.snapshot().contains_key(&name));
        assert_eq!(disk.snapshot().get(&format!("damaged-{name}")), Some(&bytes), "restarts: {restarts}");
    }
}

#[test]
fn what_could_not_be_removed_is_removed_the_next_time() {
    let needed =
        || (1..=200).filter(|sequence| sequence % 15 == 0 || (30..60).contains(sequence) || *sequence > 180);
    let files = |disk: &MemoryDisk| disk.snapshot().keys().cloned().collect::<Vec<_>>();
    let expected = {
        let disk = MemoryDisk::default();
        let (log, _) = mostly_old(&disk);
        sweep(&log, needed());
        sweep(&log, needed());
        sweep(&log, 181..=200);
        log.spares().keep(0, 0).unwrap();
        files(&disk)
    };
    for spares in [0, 2] {
        let mut refusals = 0;
        for operation in 0..200 {
            let disk = MemoryDisk::default();
            let (log, _) = mostly_old(&disk);
            log.spares().keep(spares, 0).unwrap();
            let mut keeper = log.keeper();
            for sequences in [needed().collect::<Vec<_>>(), (181..=200).collect()] {
                let mut living = Living::default();
                keeper.note(&mut living, 1, sequences.iter().map(|&sequence| (sequence, 100)), 0);
                disk.refuses_once_after(operation);
                refusals += u64::from(keeper.sweep(&living, &|| false).is_err());
                disk.fails_after(None);
                keeper.sweep(&living, &|| false).unwrap();
                let mut reader = log.reader();
                for &sequence in &sequences {
                    assert_eq!(
                        reader.read(1, sequence).unwrap(),
                        payload(sequence, 100),
                        "{operation}: {sequence}"
                    );
                }
            }
            disk.refuses_once_after(operation);
            let _ = log.spares().keep(0, 2);
            disk.fails_after(None);
            log.spares().keep(0, 0).unwrap();
            assert_eq!(files(&disk), expected, "refused once after {operation} operations, with {spares} spares");
        }
        assert!(refusals > 4, "{refusals}");
    }
}
