//! Appending: what is durable, and what ends it.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::{MemoryDisk, Options, SALT, SEGMENT, SMALL, append, mostly_old, open, records};
use crate::{Batch, Living, Log, LogError};

#[test]
fn what_was_appended_is_read_back_across_segments_and_starts() {
    let disk = MemoryDisk::default();
    let (mut log, found, recovery) = open(&disk, SMALL);
    assert!(found.is_empty() && recovery.is_new);
    for first in (1..=91).step_by(10) {
        append(&mut log, first, first + 9, 20).unwrap();
    }
    append(&mut log, 101, 101, 5000).unwrap();
    let mut batch = Batch::default();
    batch.push(0, 1, |out| out.extend_from_slice(b"node"));
    batch.push(7, 1, |_| {});
    log.append(&mut batch).unwrap();
    assert!(batch.is_empty());
    log.mark().unwrap();
    drop(log);
    let mut expected = records(1, 100, 20);
    expected.extend(records(101, 101, 5000));
    expected.extend([(0, 1, b"node".to_vec()), (7, 1, Vec::new())]);
    let (mut log, found, recovery) = open(&disk, SMALL);
    assert_eq!(found, expected);
    assert_eq!((recovery.cut, recovery.damage.len(), recovery.is_new), (None, 0, false));
    append(&mut log, 102, 102, 3).unwrap();
    expected.extend(records(102, 102, 3));
    assert_eq!(open(&disk, SMALL).1, expected);
    assert_eq!(open(&disk, SMALL).1, expected, "again and again");
}

#[test]
fn a_failed_write_or_sync_is_the_end() {
    let disk = MemoryDisk::default();
    let (mut log, _, _) = open(&disk, SMALL);
    append(&mut log, 1, 2, 10).unwrap();
    // The write succeeds, the sync does not.
    disk.fails_after(Some(1));
    let error = append(&mut log, 3, 4, 10).unwrap_err();
    assert!(matches!(error, LogError::Failed(_)));
    disk.fails_after(None);
    assert_eq!(append(&mut log, 3, 4, 10).unwrap_err(), error, "a later success proves nothing");
    assert_eq!(log.mark().unwrap_err(), error);
}

#[test]
fn a_failed_sync_of_the_folder_is_the_end_whoever_asked_for_it() {
    let disk = MemoryDisk::default();
    let (mut log, _) = mostly_old(&disk);
    let mut keeper = log.keeper();
    let before = disk.snapshot();
    disk.fails_sync_of_folder.store(true, Ordering::Relaxed);
    assert!(keeper.sweep(&Living::default(), &|| false).is_err());
    disk.fails_sync_of_folder.store(false, Ordering::Relaxed);
    assert!(disk.snapshot().len() < before.len());
    assert!(matches!(append(&mut log, 201, 201, 10), Err(LogError::Failed(_))), "a later success proves nothing");
    assert!(matches!(log.begin_replay_at(&BTreeMap::new()), Err(LogError::Failed(_))));
    assert!(log.spares().keep(1, 1).is_err());
}

/// There is one for the salt, which may be missing, and which is not needed to start.
#[test]
fn a_start_ends_with_whatever_sync_of_the_folder_fails_in_it() {
    for count in 0.. {
        let disk = MemoryDisk::default();
        *disk.folder_syncs_left.lock().unwrap() = Some(count);
        let opened = Log::open(Arc::new(disk.clone()), SMALL, &mut |_| {});
        let has_failed = disk.folder_syncs_left.lock().unwrap().is_none();
        assert_eq!(opened.is_err(), has_failed, "the one after {count}");
        if let Ok((mut log, _)) = opened {
            append(&mut log, 1, 1, 10).unwrap();
            assert!(count >= 3, "{count}");
            break;
        }
    }
    // Where it is only that it cannot be written, the log goes on.
    let mut started = 0;
    for count in 0..30 {
        let disk = MemoryDisk::default();
        disk.refuses_once_after(count);
        if let Ok((mut log, _)) = Log::open(Arc::new(disk.clone()), SMALL, &mut |_| {}) {
            let is_kept = disk.snapshot().contains_key("0.salt");
            *disk.refusal.lock().unwrap() = None;
            append(&mut log, 1, 1, 10).unwrap();
            started += u64::from(!is_kept);
        }
    }
    assert!(started > 0);
}

/// Where zeros end behind what was written last: a segment where nothing was written yet is full of something else.
fn cleared(disk: &MemoryDisk) -> usize {
    let snapshot = disk.snapshot();
    let (_, segment) = snapshot.iter().rfind(|(name, _)| name.ends_with(".segment")).unwrap();
    segment.iter().rposition(|&byte| byte != 0xee).map_or(0, |last| last + 1)
}

#[test]
fn small_batches_clear_some_room_ahead_and_large_ones_a_page() {
    let disk = MemoryDisk::default();
    let (mut log, _, _) = open(&disk, Options { segment_bytes: 1 << 20, salt: SALT });
    for (_, file) in disk.files.lock().unwrap().iter().filter(|(name, _)| *name == SEGMENT) {
        assert_eq!(file.bytes.lock().unwrap().len(), 1 << 20);
        file.bytes.lock().unwrap()[0x1000..].fill(0xee);
    }

    append(&mut log, 1, 1, 0x2000).unwrap();
    assert_eq!(cleared(&disk), 0x1_0000);
    append(&mut log, 2, 2, 0x8000).unwrap();
    assert_eq!(cleared(&disk), 0x1_0000, "there was room for it");
    append(&mut log, 3, 3, 0x7000).unwrap();
    assert_eq!(cleared(&disk), 0x1_2000, "a large one");
    append(&mut log, 4, 4, 0x1000).unwrap();
    assert_eq!(cleared(&disk), 0x2_0000);
}

/// So that starting stays quick, however large segments are.
#[test]
fn the_first_segment_of_a_start_is_small() {
    let disk = MemoryDisk::default();
    let options = Options { segment_bytes: 3 << 20, salt: SALT };
    for first in [1, 3001] {
        let (mut log, ..) = open(&disk, options);
        let begun = disk.snapshot().into_iter().next_back().unwrap();
        assert_eq!(begun.1.len(), 1 << 20, "{}", begun.0);
        for sequence in (first..first + 3000).step_by(100) {
            append(&mut log, sequence, sequence + 99, 1000).unwrap();
        }
        let next = disk.snapshot().into_iter().filter(|(name, _)| *name > begun.0).map(|(_, bytes)| bytes.len());
        assert_eq!(next.collect::<Vec<_>>(), [3 << 20], "what comes next is as large as asked for");
    }
}
