//! Spare files, and disks that have no room.

use std::collections::BTreeMap;
use std::sync::atomic::Ordering;

use super::{Found, MIDDLE, MemoryDisk, SMALL, append, mostly_old, open, payload, records};
use crate::limits::SPARES_KEPT_MAX;
use crate::{Living, LogError, ReadError, check};

#[test]
fn without_room_for_a_segment_nothing_is_written_and_it_may_be_tried_again() {
    let disk = MemoryDisk::default();
    *disk.room.lock().unwrap() = Some(2000);
    let (mut log, _, _) = open(&disk, SMALL);
    append(&mut log, 1, 1, 800).unwrap();
    assert!(matches!(append(&mut log, 2, 2, 800), Err(LogError::Full(_))));
    *disk.room.lock().unwrap() = Some(2000);
    append(&mut log, 2, 2, 800).unwrap();
    drop(log);
    *disk.room.lock().unwrap() = None;
    assert_eq!(open(&disk, SMALL).1, records(1, 2, 800));
}

#[test]
fn the_folder_of_a_full_disk_takes_the_room_of_a_spare_for_a_name() {
    let disk = MemoryDisk::default();
    let (mut log, _, _) = open(&disk, SMALL);
    log.spares().keep(2, 2).unwrap();
    append(&mut log, 1, 1, 800).unwrap();
    *disk.room.lock().unwrap() = Some(0);
    *disk.folder_needs.lock().unwrap() = 512;
    append(&mut log, 2, 2, 800).unwrap();
    assert_eq!((log.spares().count(), *disk.room.lock().unwrap()), (0, Some(512)));
    *disk.folder_needs.lock().unwrap() = 2000;
    assert!(matches!(append(&mut log, 3, 3, 800), Err(LogError::Full(_))));
    // There is room for a segment, but not for its name.
    *disk.room.lock().unwrap() = Some(1024);
    let before = disk.snapshot();
    assert!(matches!(append(&mut log, 3, 3, 800), Err(LogError::Full(_))));
    assert_eq!((disk.snapshot(), *disk.room.lock().unwrap()), (before, Some(1024)), "nothing is left of the try");
    *disk.room.lock().unwrap() = None;
    append(&mut log, 3, 3, 800).unwrap();
    drop(log);
    assert_eq!(open(&disk, SMALL).1, records(1, 3, 800));
}

#[test]
fn who_makes_files_ready_leaves_a_full_disk_what_is_free() {
    let disk = MemoryDisk::default();
    let (log, _, _) = open(&disk, MIDDLE);
    *disk.room.lock().unwrap() = Some(4096);
    // Every file that was tried has a number of its own.
    assert!(log.spares().keep(1, 1).is_err());
    *disk.room.lock().unwrap() = None;
    let names = || disk.snapshot().into_keys().filter(|name| name.starts_with("spare")).collect::<Vec<_>>();
    assert_eq!(names(), [""; 0]);
    log.spares().keep(1, 1).unwrap();
    assert_eq!(names(), ["spare-2"]);
}

#[test]
fn without_descriptors_the_journal_goes_on_with_spares_and_then_waits() {
    let disk = MemoryDisk::default();
    let (mut log, _, _) = open(&disk, SMALL);
    log.spares().keep(1, 1).unwrap();
    append(&mut log, 1, 1, 500).unwrap();
    disk.is_out_of_descriptors.store(true, Ordering::Relaxed);
    append(&mut log, 2, 2, 800).unwrap();
    assert!(matches!(append(&mut log, 3, 3, 800), Err(LogError::Full(_))));
    assert!(matches!(log.reader().read(1, 1), Err(ReadError::Disk { .. })));
    disk.is_out_of_descriptors.store(false, Ordering::Relaxed);
    append(&mut log, 3, 3, 800).unwrap();
    assert_eq!(log.reader().read(1, 1).unwrap(), payload(1, 500));
    drop(log);
    let expected: Found = [(1, 500), (2, 800), (3, 800)].map(|(nth, bytes)| (1, nth, payload(nth, bytes))).into();
    assert_eq!(open(&disk, SMALL).1, expected);
}

#[test]
fn spares_become_segments_where_there_is_no_room_for_new_ones() {
    let disk = MemoryDisk::default();
    let (mut log, _, _) = open(&disk, SMALL);
    let spares = log.spares();
    spares.keep(2, 3).unwrap();
    *disk.room.lock().unwrap() = Some(0);
    // One fits into what is there.
    for (sequence, left, is_low) in [(1, 3, false), (2, 2, false), (3, 1, true), (4, 0, true)] {
        append(&mut log, sequence, sequence, 800).unwrap();
        assert_eq!((spares.count(), spares.is_low()), (left, is_low), "after {sequence}");
    }
    assert!(matches!(append(&mut log, 5, 5, 800), Err(LogError::Full(_))));
    assert!(spares.keep(2, 3).is_err());
    assert!(log.batch_bytes() < 200, "what is left of the segment");
    *disk.room.lock().unwrap() = Some(1024);
    assert!(spares.keep(2, 3).is_err(), "there is room for one");
    append(&mut log, 5, 5, 800).unwrap();
    drop(log);
    // A start that finds no room begins with one as well.
    *disk.room.lock().unwrap() = Some(1024);
    assert!(spares.keep(2, 3).is_err());
    let (log, found, recovery) = open(&disk, SMALL);
    assert_eq!((found, recovery.cut, recovery.damage.len()), (records(1, 5, 800), None, 0));
    assert_eq!(log.spares().count(), 0);
    *disk.room.lock().unwrap() = None;
    log.spares().keep(0, 1).unwrap();
    log.spares().set_segment_bytes(100_000);
    log.spares().keep(0, 1).unwrap();
    let sizes = disk.snapshot().into_iter().filter(|(name, _)| name.starts_with("spare"));
    assert_eq!(sizes.map(|(_, bytes)| bytes.len()).collect::<Vec<_>>(), [100_000], "one that is too small goes");
}

#[test]
fn a_batch_has_as_many_bytes_as_the_largest_spare_and_one_that_has_more_is_given_several() {
    let disk = MemoryDisk::default();
    let (mut log, _, _) = open(&disk, SMALL);
    let spares = log.spares();
    spares.keep(3, 3).unwrap();
    // Segments grow, and the disk has no room for such spares.
    spares.set_segment_bytes(10_000);
    *disk.room.lock().unwrap() = Some(100);
    assert!((500..1024).contains(&log.batch_bytes()), "{} bytes", log.batch_bytes());
    append(&mut log, 1, 1, 2000).unwrap();
    assert_eq!((spares.count(), spares.bytes()), (0, 0), "two gave their room to the third");
    assert!(spares.is_low());
    assert!(matches!(append(&mut log, 2, 2, 2000), Err(LogError::Full(_))));
    *disk.room.lock().unwrap() = Some(1024);
    spares.set_segment_bytes(512);
    spares.keep(2, 2).unwrap();
    assert!(matches!(append(&mut log, 2, 2, 2000), Err(LogError::Full(_))));
    assert_eq!(spares.bytes(), 1024, "all of them are too little, so they stay");
    drop(log);
    *disk.room.lock().unwrap() = None;
    assert_eq!(open(&disk, SMALL).1, records(1, 1, 2000));
}

#[test]
fn where_little_room_came_back_often_one_large_spare_is_made_of_many_small_ones() {
    let disk = MemoryDisk::default();
    let (log, _, _) = open(&disk, MIDDLE);
    let spares = log.spares();
    spares.set_segment_bytes(1 << 20);
    for _ in 0..15 {
        *disk.room.lock().unwrap() = Some(64 << 10);
        assert!(spares.keep(1, 1).is_err());
    }
    assert_eq!((spares.count(), spares.bytes()), (15, 15 << 16));
    *disk.room.lock().unwrap() = Some(64 << 10);
    spares.keep(1, 1).unwrap();
    assert_eq!((spares.count(), spares.bytes()), (1, 1 << 20));
}

fn names(disk: &MemoryDisk, prefix: &str) -> Vec<String> {
    disk.snapshot().into_keys().filter(|name| name.starts_with(prefix)).collect()
}

#[test]
fn while_there_is_room_enough_what_is_too_much_goes_file_by_file() {
    let disk = MemoryDisk::default();
    let (log, _) = mostly_old(&disk);
    let spares = log.spares();
    let before = names(&disk, "00").len();
    assert!(spares.keep_calmly(1, 1).unwrap() > 0, "segments have ended");
    while spares.keep_calmly(1, 1).unwrap() > 0 {
        let count = names(&disk, "").len();
        spares.give_some_back().unwrap();
        assert_eq!(names(&disk, "").len(), count, "only what is behind their ends goes");
    }
    log.keeper().sweep(&Living::default(), &|| false).unwrap();
    let (left, there) = (names(&disk, "00").len(), names(&disk, "spare").len());
    assert_eq!(left + there - 1, before, "none was removed");
    // All that was taken since the last sweep may be taken again. What the journal takes while it rests is less and less.
    let mut counts = vec![there];
    for _ in 0..30 {
        while spares.keep_calmly(1, 1).unwrap() > 0 {
            spares.give_some_back().unwrap();
            let count = names(&disk, "spare").len();
            assert_eq!(Some(count + 1), counts.last().copied());
            counts.push(count);
        }
        spares.rest();
    }
    assert!(counts.len() > 2 && spares.fitting_bytes() < 2 * MIDDLE.segment_bytes, "{counts:?}");
    let (found, recovery) = {
        let (_, found, recovery) = open(&disk, MIDDLE);
        (found, recovery)
    };
    assert_eq!((found.len(), recovery.damage.len()), (20, 0));
}

/// Each has a descriptor, of which the process has no more than others leave it.
#[test]
fn what_is_not_needed_waits_in_few_files_and_without_descriptors_in_none() {
    for has_descriptors in [true, false] {
        let disk = MemoryDisk::default();
        let (mut log, _, _) = open(&disk, SMALL);
        for sequence in 1..=100 {
            append(&mut log, sequence, sequence, 800).unwrap();
        }
        log.begin_replay_at(&BTreeMap::from([(1, 101)])).unwrap();
        log.mark().unwrap();
        log.begin_replay_at(&BTreeMap::from([(1, 101)])).unwrap();
        log.spares().keep_calmly(0, 0).unwrap();
        assert!(names(&disk, "00").len() > 100);
        disk.is_out_of_descriptors.store(!has_descriptors, Ordering::Relaxed);
        log.keeper().sweep(&Living::default(), &|| false).unwrap();
        assert!(names(&disk, "00").len() < 6, "{:?}", names(&disk, "00"));
        assert_eq!(names(&disk, "spare").len(), if has_descriptors { SPARES_KEPT_MAX } else { 0 });
    }
}

#[test]
fn what_was_compacted_leaves_its_file_to_another_segment() {
    let disk = MemoryDisk::default();
    let (log, _) = mostly_old(&disk);
    let spares = log.spares();
    spares.keep_calmly(1, 1).unwrap();
    let before = names(&disk, "").len();
    let mut living = Living::default();
    log.keeper().note(&mut living, 1, (1..=200).step_by(9).map(|sequence| (sequence, 100)), 0);
    let swept = log.keeper().sweep(&living, &|| false).unwrap();
    assert!(swept.compacted > 1, "{swept:?}");
    assert!(names(&disk, "").len() > before, "what is left of them is in a new file, and theirs are there");
    assert_eq!(names(&disk, "").iter().filter(|name| name.ends_with(".compacted")).count(), 0);
}

/// What the disk has room for is seen when a segment is begun, not when somebody looks.
#[test]
fn the_room_behind_the_end_of_a_segment_is_there_for_the_next_one() {
    let disk = MemoryDisk::default();
    let (mut log, _, _) = open(&disk, SMALL);
    append(&mut log, 1, 1, 500).unwrap();
    append(&mut log, 2, 2, 800).unwrap();
    let segments = || disk.snapshot().into_iter().filter(|(name, _)| name.ends_with(".segment"));
    let lengths = || segments().map(|(_, bytes)| bytes.len()).collect::<Vec<_>>();
    assert_eq!(lengths(), [1024, 1024], "nobody has looked");
    *disk.room.lock().unwrap() = Some(1000);
    append(&mut log, 3, 3, 800).unwrap();
    assert!(lengths()[0] < 1024, "{:?}", lengths());
}

#[test]
fn room_that_cannot_be_given_back_is_the_end_as_a_failed_sync_is() {
    for operations in 0..2 {
        let disk = MemoryDisk::default();
        let (mut log, _, _) = open(&disk, SMALL);
        append(&mut log, 1, 1, 800).unwrap();
        append(&mut log, 2, 2, 800).unwrap();
        disk.fails_after(Some(operations));
        log.spares().give_some_back().unwrap_err();
        disk.fails_after(None);
        assert!(matches!(append(&mut log, 3, 3, 10), Err(LogError::Failed(_))));
        assert!(log.keeper().sweep(&Living::default(), &|| false).is_err());
        drop(log);
        assert_eq!(open(&disk, SMALL).1, records(1, 2, 800));
    }
}

/// A short segment would soon be full, and the next one is begun while somebody waits.
#[test]
fn what_is_too_small_to_be_a_segment_is_taken_only_where_nothing_else_is() {
    let disk = MemoryDisk::default();
    let (mut log, _) = mostly_old(&disk);
    let spares = log.spares();
    spares.keep_calmly(0, 0).unwrap();
    spares.set_segment_bytes(1 << 16);
    log.keeper().sweep(&Living::default(), &|| false).unwrap();
    spares.keep_calmly(1, 1).unwrap();
    let (count, fitting) = (spares.count(), spares.fitting_bytes());
    assert!(count > 2 && fitting == 1 << 16, "{count}, {fitting}");
    let mut sequence = 201;
    while spares.count() == count {
        append(&mut log, sequence, sequence, 1000).unwrap();
        sequence += 1;
    }
    assert_eq!((spares.count(), spares.fitting_bytes()), (count - 1, 0));
}

/// Segments become smaller where the disk becomes full.
#[test]
fn on_a_full_disk_one_that_is_too_large_makes_room_for_those_that_are_not() {
    let disk = MemoryDisk::default();
    let (log, _, _) = open(&disk, MIDDLE);
    let spares = log.spares();
    spares.set_segment_bytes(1 << 20);
    spares.keep_calmly(2, 2).unwrap();
    *disk.room.lock().unwrap() = Some(0);
    spares.set_segment_bytes(1 << 17);
    spares.keep_calmly(2, 2).unwrap();
    assert_eq!((spares.count(), spares.bytes()), (3, (1 << 20) + (2 << 17)), "one was enough");
    spares.keep(2, 2).unwrap();
    assert_eq!((spares.count(), spares.bytes()), (2, 2 << 17));
}

#[test]
fn what_a_file_held_before_is_never_taken_for_a_part_of_its_segment() {
    let disk = MemoryDisk::default();
    let (mut log, whole) = mostly_old(&disk);
    log.spares().keep(9, 0).unwrap();
    let mut keeper = log.keeper();
    keeper.sweep(&Living::default(), &|| false).unwrap();
    let used = log.spares().count();
    assert!(used > 2, "{used} files are used again");
    let mut expected = whole[180..].to_vec();
    for (sequence, bytes) in (201..).zip([10, 6000, 5, 4051, 4000, 7000, 100]) {
        append(&mut log, sequence, sequence, bytes).unwrap();
        expected.extend(records(sequence, sequence, bytes));
        let copy = MemoryDisk::of(disk.snapshot());
        assert_eq!(check(&copy, &mut |_| {}).unwrap().cut, None, "after {sequence}");
        let (_, found, recovery) = open(&copy, MIDDLE);
        assert_eq!((found, recovery.cut, recovery.damage.len()), (expected.clone(), None, 0), "after {sequence}");
    }
    assert!(log.spares().count() < used);
}
