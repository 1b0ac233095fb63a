//! Torn ends: what is copied before it is cut, and what is never taken for one.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::{HEADER, MemoryDisk, SALT, SEGMENT, SMALL, append, open, records, ten_batches};
use crate::limits::{TORN_BYTES_MAX, TORN_KEPT_MAX};
use crate::{Log, Options, check};

/// It may be the last confirmed batch, and the disk bad.
#[test]
fn a_torn_end_is_copied_before_it_is_cut() {
    let (files, last, end) = ten_batches(false);
    let copied = format!("torn-0000000001-{last}");
    for (at, until) in [(last + 50, end), (last + 5, end), (end - 8, end)] {
        let mut torn = files.clone();
        torn.get_mut(SEGMENT).unwrap()[at] ^= 0x40;
        let bytes = torn[SEGMENT][last..until].to_vec();
        let disk = MemoryDisk::of(torn);
        assert_eq!(check(&disk, &mut |_| {}).unwrap().cut.unwrap().set_aside, None, "flipped at {at}");
        for operations in 0..30 {
            disk.fails_after(Some(operations));
            let is_open = Log::open(Arc::new(disk.clone()), SMALL, &mut |_| {}).is_ok();
            disk.fails_after(None);
            let files = disk.snapshot();
            let is_cut = files[SEGMENT].len() < end;
            let copy = files.get(&copied).map(|copy| bytes.starts_with(copy) && copy.len() + 8 > bytes.len());
            assert!(
                copy == Some(true) || copy.is_none() && !is_cut,
                "flipped at {at}, after {operations} operations"
            );
            if is_open {
                break;
            }
            assert!(operations < 29);
        }
        // It is no damage, and nothing of it is kept from being removed.
        let (_, found, recovery) = open(&disk, SMALL);
        assert_eq!((found, recovery.damage, recovery.cut), (records(1, 27, 10), Vec::new(), None));
    }
    let mut blank = files;
    blank.get_mut(SEGMENT).unwrap()[last..].fill(0);
    let disk = MemoryDisk::of(blank);
    assert_eq!(open(&disk, SMALL).2.cut, None);
    assert!(disk.snapshot().keys().all(|name| !name.starts_with("torn-")));
}

/// What lies behind it may be left from an earlier life of the file.
#[test]
fn of_a_torn_end_whose_length_nothing_tells_no_more_than_a_limit_is_copied() {
    let (files, last, end) = ten_batches(false);
    let copy_of = |rest: usize, flipped: usize| {
        let mut files = files.clone();
        let segment = files.get_mut(SEGMENT).unwrap();
        segment.resize(end + 4096 + rest, 0);
        segment[end + 4096..].fill(0xee);
        segment[flipped] ^= 0x40;
        let bytes = segment[last..].to_vec();
        let disk = MemoryDisk::of(files);
        let cut = open(&disk, SMALL).2.cut.unwrap();
        let copy = disk.snapshot().remove(&cut.set_aside.unwrap()).unwrap();
        assert!(bytes.starts_with(&copy) && cut.bytes == copy.len() as u64);
        copy.len()
    };
    let most = usize::try_from(TORN_BYTES_MAX).unwrap();
    // In its header, and behind that.
    for (flipped, expected) in [(last + 5, most), (last + 50, 40 + 3 * 34)] {
        assert_eq!(copy_of(3 * most, flipped), expected, "flipped at {flipped}");
    }
    assert_eq!(copy_of(most / 2, last + 5), end - last + 4096 + most / 2);
}

#[test]
fn the_last_copies_of_torn_ends_are_kept_and_no_others_of_their_names() {
    let (mut files, last, _) = ten_batches(false);
    files.get_mut(SEGMENT).unwrap()[last + 50] ^= 0x40;
    let older = |nth: u64| match nth {
        0 => format!("torn-0000000001-{}", last - 1),
        1 => format!("torn-0000000001-{last}"),
        nth => format!("torn-0000000001-{last}-{nth}"),
    };
    let others = ["torn-1-5", "torn-0000000001-5-x", "torn-0000000001-5.unfinished", "torn-", "torn-0000000001-05"];
    let newer = |nth: u64| format!("torn-{:010}-96", 9 + nth);
    let kept = TORN_KEPT_MAX as u64;
    for count in 0..kept + 3 {
        let mut files = files.clone();
        files.extend((0..2).map(|nth| (older(nth), Vec::new())));
        files.extend((0..count).map(|nth| (newer(nth), Vec::new())));
        files.extend(others.map(|name| (name.to_owned(), Vec::new())));
        let disk = MemoryDisk::of(files);
        check(&disk, &mut |_| {}).unwrap();
        assert!(disk.snapshot().contains_key(&older(0)), "a check changes nothing");
        let made = open(&disk, SMALL).2.cut.unwrap().set_aside.unwrap();
        assert_eq!(made, older(2), "one of that name was there");
        let left = disk.snapshot();
        assert!(others.iter().all(|&name| left.contains_key(name)));
        let left = left.into_keys().filter(|name| name.starts_with("torn-") && !others.contains(&name.as_str()));
        let all = (0..2).map(older).chain((0..count).map(newer));
        let skipped = usize::try_from((count + 3).saturating_sub(kept)).unwrap();
        let expected = all.skip(skipped).chain([made]).collect::<BTreeSet<_>>();
        assert_eq!(left.collect::<BTreeSet<_>>(), expected, "{count} newer ones");
    }
}

/// Everything was confirmed, so no page that is bad then was torn.
#[test]
fn a_bad_page_in_a_journal_that_was_stopped_in_good_order_is_never_taken_for_a_torn_end() {
    for (count, bytes) in [(1, 10), (3, 10), (40, 10), (2, 900), (9, 900), (30, 900), (4, 9000), (1, 300_000)] {
        let disk = MemoryDisk::default();
        let (mut log, _, _) = open(&disk, Options { segment_bytes: 1 << 20, salt: SALT });
        for sequence in 1..=count {
            append(&mut log, sequence, sequence, bytes).unwrap();
        }
        log.mark_end().unwrap();
        log.mark_end().unwrap();
        drop(log);
        let files = disk.snapshot();
        let used = files[SEGMENT].iter().rposition(|&byte| byte != 0).unwrap();
        for page in 0..=used / 4096 {
            let begin = if page == 0 { HEADER } else { page * 4096 };
            let bad = begin..(page + 1) * 4096;
            for fill in [Some(0), Some(0x5a), None] {
                let mut files = files.clone();
                fill.inspect(|&fill| files.get_mut(SEGMENT).unwrap()[bad.clone()].fill(fill));
                let disk = MemoryDisk::of(files);
                // What the disk cannot read takes the header with it, which is another story.
                if fill.is_none() && page > 0 {
                    *disk.unreadable.lock().unwrap() = Some((SEGMENT.into(), bad.start as u64..bad.end as u64));
                }
                let (_, found, recovery) = open(&disk, SMALL);
                let what = format!("{count} of {bytes} bytes, page {page}, {fill:?}: {recovery:?}");
                assert_eq!(recovery.cut, None, "{what}");
                assert!(found.len() as u64 + recovery.records_missing() >= count, "{what}");
                assert_eq!(
                    found.len() as u64 == count,
                    recovery.records_missing() == 0 || page == used / 4096,
                    "{what}"
                );
            }
        }
        // It goes on as if it had not been stopped.
        let (mut log, found, recovery) = open(&disk, SMALL);
        assert_eq!((found, recovery.damage, recovery.cut), (records(1, count, bytes), Vec::new(), None));
        log.mark_end().unwrap();
        append(&mut log, count + 1, count + 1, 10).unwrap();
        log.mark_end().unwrap();
        append(&mut log, count + 2, count + 2, 10).unwrap();
        drop(log);
        let (_, found, recovery) = open(&disk, SMALL);
        assert_eq!((found.len() as u64, recovery.damage, recovery.cut), (count + 2, Vec::new(), None));
    }
}
