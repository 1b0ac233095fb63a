//! Starts: where the journal ends, damage, and where a start begins.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::{
    BATCH, HEADER, MIDDLE, MemoryDisk, SALT, SEGMENT, SMALL, append, mostly_old, open, payload, records, sweep,
    ten_batches,
};
use crate::format::{HeaderFound, Seeds, SegmentHeader, begin_record};
use crate::limits::VERIFIED_FACTOR_MAX;
use crate::segments::SALT_FILE;
use crate::{Batch, Damage, Extent, Log, Missing, OpenError, Options, check};

#[test]
fn a_tail_that_is_torn_anywhere_is_cut_and_reported() {
    let (files, last, end) = ten_batches(false);
    for length in last..end {
        let mut torn = files.clone();
        torn.get_mut(SEGMENT).unwrap()[length..].fill(0);
        let (_, found, recovery) = open(&MemoryDisk::of(torn), SMALL);
        let has_rest = files[SEGMENT][length..end].iter().any(|&byte| byte != 0);
        let kept = if has_rest { 27 } else { 30 };
        assert_eq!(found, records(1, kept, 10), "cut to {length}");
        assert_eq!(recovery.damage, [], "cut to {length}");
        assert_eq!(recovery.cut.is_some(), has_rest && length > last, "cut to {length}");
    }
}

#[test]
fn a_flipped_byte_is_damage_where_something_durable_follows_and_a_torn_tail_at_the_end() {
    for mark in [false, true] {
        let (files, last, end) = ten_batches(mark);
        for at in HEADER..end {
            let mut flipped = files.clone();
            flipped.get_mut(SEGMENT).unwrap()[at] ^= 0x40;
            let disk = MemoryDisk::of(flipped);
            let checked = check(&disk, &mut |_| {}).unwrap();
            let before = disk.snapshot();
            let (_, found, recovery) = open(&disk, SMALL);
            assert_eq!(recovery.records, checked.records);
            assert!(before.len() < disk.snapshot().len());
            let whole = records(1, 30, 10);
            assert!(found.iter().all(|record| whole.contains(record)), "a wrong record, flipped at {at}");
            let is_padding = found == whole;
            if at >= last && !mark {
                assert!(is_padding || (found == records(1, 27, 10) && recovery.cut.is_some()), "flipped at {at}");
            } else if !is_padding {
                assert_eq!(recovery.cut, None, "flipped at {at}");
                let missing = recovery.records_missing();
                assert_eq!(found.len() as u64 + missing, 30, "flipped at {at}: {recovery:?}");
                assert!(found.len() >= 27, "flipped at {at}");
                let (_, again, recovery) = open(&disk, SMALL);
                assert_eq!(again, found, "a second start, flipped at {at}");
                assert!(!recovery.damage.is_empty());
            }
        }
    }
}

#[test]
fn a_valid_batch_behind_a_torn_one_never_comes_back() {
    let (mut files, last, _) = ten_batches(false);
    let before_last = last - BATCH;
    files.get_mut(SEGMENT).unwrap()[before_last..before_last + 40].fill(0xEE);
    // As if neither of the last two had been synced: the last one claims that the one before it was.
    let mut unsynced = files.clone();
    let bytes = unsynced.get_mut(SEGMENT).unwrap();
    let mut batch = bytes[last..last + 40 + 102].to_vec();
    crate::format::seal(&mut batch, Seeds::new(&SALT, 1), 3, 28, 25);
    bytes[last..last + batch.len()].copy_from_slice(&batch);
    let disk = MemoryDisk::of(unsynced);
    let (mut log, found, recovery) = open(&disk, SMALL);
    assert_eq!(found, records(1, 24, 10));
    assert!(recovery.cut.is_some());
    append(&mut log, 25, 27, 10).unwrap();
    drop(log);
    assert_eq!(open(&disk, SMALL).1, records(1, 27, 10));
}

#[test]
fn a_number_that_no_journal_gets_to_is_damage_whatever_its_checksum_says() {
    let (mut files, last, end) = ten_batches(true);
    let bytes = files.get_mut(SEGMENT).unwrap();
    // Records are missing, and numbers go on behind them.
    bytes[HEADER + 41] ^= 1;
    let sequence_at = last + 40 + 16;
    bytes[sequence_at..sequence_at + 8].fill(0xFF);
    let mut batch = bytes[last..last + 40 + 3 * 34].to_vec();
    crate::format::seal(&mut batch, Seeds::new(&SALT, 1), 3, 28, 28);
    bytes[last..last + batch.len()].copy_from_slice(&batch);
    assert!(last + batch.len() <= end);
    files.insert(format!("{}.segment", u64::MAX), vec![0; 200]);
    let disk = MemoryDisk::of(files);
    check(&disk, &mut |_| {}).unwrap();
    let (_, found, recovery) = open(&disk, SMALL);
    assert!(recovery.records_missing() > 0 && recovery.streams[&1] < 100, "{recovery:?}");
    assert!(found.iter().all(|(_, sequence, _)| *sequence <= 30), "{found:?}");
}

#[test]
fn a_start_that_is_interrupted_anywhere_and_repeated_gives_the_same() {
    let (mut files, last, _) = ten_batches(false);
    files.get_mut(SEGMENT).unwrap()[last + 40..].fill(0);
    let disk = MemoryDisk::of(files);
    for operations in 0..20 {
        disk.fails_after(Some(operations));
        let result = Log::open(Arc::new(disk.clone()), SMALL, &mut |_| {});
        disk.fails_after(None);
        let is_open = result.is_ok();
        assert_eq!(open(&disk, SMALL).1, records(1, 27, 10), "interrupted after {operations} operations");
        if is_open {
            return;
        }
    }
    panic!("opening takes more operations than expected");
}

#[test]
fn a_newer_version_is_refused_and_left_as_it_is() {
    let disk = MemoryDisk::default();
    drop(mostly_old(&disk));
    let mut newer = disk.snapshot()[SEGMENT][..SegmentHeader::bytes_with(0)].to_vec();
    newer[8] = 2;
    let checksum = crc32c::crc32c_append(crc32c::crc32c(&newer[..12]), &newer[16..]);
    newer[12..16].copy_from_slice(&checksum.to_le_bytes());
    let last = disk.snapshot().into_keys().next_back().unwrap();
    // The only one, one among others, the last one, and what a start would take away.
    for name in [SEGMENT, "0000000003.segment", &last, "0000000002.segment.compacted", "spare-7"] {
        let mut files = disk.snapshot();
        if name == SEGMENT {
            files.clear();
        }
        files.entry(name.into()).or_insert_with(|| vec![0; 4096])[..newer.len()].copy_from_slice(&newer);
        let disk = MemoryDisk::of(files.clone());
        let error = check(&disk, &mut |_| {}).unwrap_err();
        assert!(matches!(&error, OpenError::Newer { file, found: 2 } if file == name), "{error}");
        let error = Log::open(Arc::new(disk.clone()), MIDDLE, &mut |_| {}).unwrap_err();
        assert!(matches!(&error, OpenError::Newer { file, found: 2 } if file == name), "{error}");
        assert_eq!(disk.snapshot(), files, "{name}");
    }
}

#[test]
fn the_header_of_the_only_segment_may_be_damaged_and_nothing_is_lost() {
    let (files, ..) = ten_batches(true);
    for at in 0..HEADER {
        let mut flipped = files.clone();
        flipped.get_mut(SEGMENT).unwrap()[at] ^= 0x40;
        let disk = MemoryDisk::of(flipped);
        let checked = check(&disk, &mut |_| {}).unwrap();
        assert_eq!((checked.damage, checked.headless), (Vec::new(), vec![SEGMENT.to_owned()]), "flipped at {at}");
        assert_eq!(open(&disk, SMALL).1, records(1, 30, 10), "flipped at {at}");
        let (_, found, recovery) = open(&disk, SMALL);
        assert_eq!((found, recovery.damage), (records(1, 30, 10), Vec::new()), "a second start, flipped at {at}");
    }
    // Two bytes of the secret are wrong, which is kept in another file, too.
    let mut flipped = files.clone();
    flipped.get_mut(SEGMENT).unwrap()[50] ^= 0x40;
    flipped.get_mut(SEGMENT).unwrap()[60] ^= 1;
    let checked = check(&MemoryDisk::of(flipped.clone()), &mut |_| {}).unwrap();
    assert_eq!((checked.records, checked.damage), (30, Vec::new()));
    // Without that, nothing verifies. No more can be missing than has room in what is there.
    flipped.remove(SALT_FILE);
    let checked = check(&MemoryDisk::of(flipped), &mut |_| {}).unwrap();
    let [Damage { missing: Missing::AtMost(most), .. }] = checked.damage[..] else { panic!("{checked:?}") };
    assert!((30..=100).contains(&most), "{most}");
}

/// A body may hold whatever its publisher likes, also a segment of this very journal, byte by byte as another journal
/// would have written it.
#[test]
fn a_batch_inside_a_payload_is_never_taken_for_one() {
    let forger = MemoryDisk::default();
    let options = Options { segment_bytes: 4096, salt: *b"another's secret" };
    let (mut log, _, _) = open(&forger, options);
    append(&mut log, 1, 4, 10).unwrap();
    append(&mut log, 5, 20, 10).unwrap();
    log.mark().unwrap();
    let forged = forger.snapshot().remove(SEGMENT).unwrap();
    let disk = MemoryDisk::default();
    let (mut log, _, _) = open(&disk, Options { segment_bytes: 16_384, salt: SALT });
    append(&mut log, 1, 3, 10).unwrap();
    let mut batch = Batch::default();
    // At each place that a batch may begin at.
    for shift in 0..8 {
        batch.push(1, 4 + shift, |out| {
            out.resize(out.len() + usize::try_from(shift).unwrap(), 0);
            out.extend_from_slice(&forged[..1200]);
        });
    }
    log.append(&mut batch).unwrap();
    drop(log);
    let files = disk.snapshot();
    let used = files[SEGMENT].iter().rposition(|&byte| byte != 0).unwrap() + 1;
    for torn in HEADER + BATCH..used {
        for fill in [0, 0xFF] {
            let mut files = files.clone();
            files.get_mut(SEGMENT).unwrap()[torn..=torn].fill(fill);
            if files[SEGMENT] == disk.snapshot()[SEGMENT] {
                continue;
            }
            let (_, found, recovery) = open(&MemoryDisk::of(files), SMALL);
            assert_eq!(found, records(1, 3, 10), "torn at {torn}");
            assert!(recovery.damage.is_empty() && recovery.cut.is_some(), "torn at {torn}: {recovery:?}");
        }
    }
}

/// Group commit puts many records into one batch; a hole in it takes those that it touches, wherever the next one begins.
#[test]
fn a_hole_in_a_large_batch_takes_the_records_in_it_and_no_more() {
    let disk = MemoryDisk::default();
    let (mut log, _, _) = open(&disk, Options { segment_bytes: 1 << 20, salt: SALT });
    append(&mut log, 1, 1000, 100).unwrap();
    log.mark().unwrap();
    drop(log);
    for (from, bytes) in [(136, 1), (20_000, 1), (20_000, 600), (70_001, 124), (90_013, 5000)] {
        let mut files = disk.snapshot();
        files.get_mut(SEGMENT).unwrap()[from..from + bytes].fill(0x5a);
        let (_, found, recovery) = open(&MemoryDisk::of(files), SMALL);
        let missing = 1000 - found.len();
        assert_eq!(recovery.records_missing(), missing as u64, "{bytes} bytes at {from}");
        assert!((1..=bytes / 124 + 2).contains(&missing), "{missing} of {bytes} bytes at {from}");
        assert!(found.iter().all(|(_, sequence, bytes)| *bytes == payload(*sequence, 100)));
        assert!(found.is_sorted_by_key(|(_, sequence, _)| *sequence));
    }
    // Where the length is wrong, it may lead to a record that is not the next one: 8 times 128 bytes more.
    let disk = MemoryDisk::default();
    let (mut log, _, _) = open(&disk, Options { segment_bytes: 1 << 20, salt: SALT });
    append(&mut log, 1, 100, 104).unwrap();
    log.mark().unwrap();
    drop(log);
    let mut files = disk.snapshot();
    files.get_mut(SEGMENT).unwrap()[HEADER + 40 + 10 * 128 + 1] ^= 4;
    let (_, found, recovery) = open(&MemoryDisk::of(files), SMALL);
    assert_eq!((found.len(), recovery.records_missing()), (99, 1));
}

/// The header of a batch verifies by itself, and tells what was durable before it.
#[test]
fn where_every_batch_at_the_end_is_damaged_their_headers_tell_that_those_before_were_durable() {
    let (mut files, ..) = ten_batches(true);
    let segment = files.get_mut(SEGMENT).unwrap();
    for batch in 7..10 {
        // In the last of its records.
        segment[HEADER + (batch + 1) * BATCH - 8] ^= 1;
    }
    segment[HEADER + 10 * BATCH..].fill(0);
    let (_, found, recovery) = open(&MemoryDisk::of(files), SMALL);
    let mut expected = records(1, 26, 10);
    expected.remove(23);
    assert_eq!(found, expected);
    assert_eq!((recovery.records_missing(), recovery.cut.is_some()), (2, true), "{recovery:?}");
}

/// There are no bytes of that to be set aside.
#[test]
fn what_a_header_tells_to_be_missing_right_before_it_is_said() {
    let (mut files, ..) = ten_batches(true);
    let segment = files.get_mut(SEGMENT).unwrap();
    let begin = |batch: usize| HEADER + batch * BATCH;
    segment.copy_within(begin(9)..begin(10), begin(7));
    for batch in 7..10 {
        segment[begin(batch + 1) - 8] ^= 1;
    }
    segment[begin(10)..].fill(0);
    let disk = MemoryDisk::of(files);
    let (_, found, recovery) = open(&disk, SMALL);
    assert_eq!(found, records(1, 21, 10));
    let [Damage { extent: Extent::Before { offset }, missing: Missing::Exactly(6), .. }] = recovery.damage[..]
    else {
        panic!("{recovery:?}")
    };
    assert_eq!((offset, recovery.cut.is_some()), (begin(7) as u64, true));
    assert!(disk.snapshot().keys().all(|name| !name.starts_with("damaged-")));
}

/// What was missing before does not make a record likelier that does not go on where its stream was seen since.
#[test]
fn damage_before_does_not_take_what_is_behind_other_damage() {
    let disk = MemoryDisk::default();
    let (mut log, _, _) = open(&disk, Options { segment_bytes: 1 << 20, salt: SALT });
    for (first, last) in [(1, 20), (21, 30), (31, 130)] {
        append(&mut log, first, last, 104).unwrap();
    }
    log.mark().unwrap();
    drop(log);
    let record = |sequence: usize| {
        let batches = 1 + usize::from(sequence > 20) + usize::from(sequence > 30);
        HEADER + 40 * batches + (sequence - 1) * 128
    };
    let whole = |sequence: &u64| *sequence > 20;
    for (over, change) in [(41, None), (45, Some(60)), (100, Some(125))] {
        let mut files = disk.snapshot();
        let segment = files.get_mut(SEGMENT).unwrap();
        segment[HEADER..record(21) - 40].fill(0x5a);
        match change {
            // Its length leads to another record.
            None => segment[record(over) + 1] ^= 4,
            Some(copied) => segment.copy_within(record(copied)..record(copied) + 128, record(over)),
        }
        let (_, found, recovery) = open(&MemoryDisk::of(files), SMALL);
        let found: Vec<_> = found.iter().map(|(_, sequence, _)| *sequence).collect();
        assert_eq!(found, (1..=130).filter(whole).filter(|&nth| nth != over as u64).collect::<Vec<_>>(), "{over}");
        assert_eq!(recovery.records_missing(), 21, "{over}");
    }
}

/// Nobody says how far streams are then.
#[test]
fn where_the_first_segment_that_is_read_has_lost_its_header_its_records_are_found() {
    for is_swept in [false, true] {
        let disk = MemoryDisk::default();
        let (log, _) = mostly_old(&disk);
        if is_swept {
            sweep(&log, 181..=200);
        }
        drop(log);
        let mut files = disk.snapshot();
        let first = |bytes: &Vec<u8>| match SegmentHeader::decode(bytes) {
            HeaderFound::Valid(header) => Some((header.first_sequence, header.bytes())),
            _ => None,
        };
        let headers = files.iter().filter_map(|(name, bytes)| Some((first(bytes)?, name.clone())));
        let ((_, begin), name) = headers.filter(|((first, _), _)| *first <= 181).max().unwrap();
        let segment = files.get_mut(&name).unwrap();
        segment[20] ^= 1;
        segment[begin + 33] ^= 1;
        let (_, found, recovery) = open(&MemoryDisk::of(files), SMALL);
        assert_eq!(found, records(181, 200, 100), "swept: {is_swept}");
        assert_eq!(recovery.records_missing(), 0, "swept: {is_swept}");
    }
}

/// What looks like the headers of large records takes time to verify, and hides nothing.
#[test]
fn what_a_payload_looks_like_does_not_hide_the_records_behind_it() {
    let disk = MemoryDisk::default();
    let (mut log, _, _) = open(&disk, Options { segment_bytes: 1 << 20, salt: SALT });
    let mut batch = Batch::default();
    batch.push(1, 1, |out| {
        for _ in 0..5_000 {
            let at = begin_record(out, 1, 0, 50);
            out[at..at + 4].copy_from_slice(&600_000_u32.to_le_bytes());
        }
    });
    for sequence in 2..=100 {
        batch.push(1, sequence, |out| out.extend_from_slice(&payload(sequence, 8_000)));
    }
    log.append(&mut batch).unwrap();
    log.mark().unwrap();
    drop(log);
    let mut files = disk.snapshot();
    files.get_mut(SEGMENT).unwrap()[HEADER + 40 + 4] ^= 1;
    let (_, found, recovery) = open(&MemoryDisk::of(files), SMALL);
    assert_eq!((found.len(), recovery.records_missing()), (99, 1));
}

#[test]
fn a_bad_sector_takes_what_is_in_it_and_no_more() {
    let disk = MemoryDisk::default();
    let (mut log, _, _) = open(&disk, Options { segment_bytes: 1 << 20, salt: SALT });
    for first in (1..=400).step_by(4) {
        append(&mut log, first, first + 3, 1000).unwrap();
    }
    log.mark().unwrap();
    drop(log);
    let files = disk.snapshot();
    for sector in [0, 1, 7, 70, 97] {
        let disk = MemoryDisk::of(files.clone());
        *disk.unreadable.lock().unwrap() = Some((SEGMENT.into(), sector * 4096..sector * 4096 + 512));
        let (mut log, found, recovery) = open(&disk, SMALL);
        let missing = recovery.records_missing();
        assert!((1..=8).contains(&missing), "sector {sector}: {recovery:?}");
        assert_eq!(found.len() as u64 + missing, 400, "sector {sector}");
        // Nothing that is missing gets its number a second time.
        let next = recovery.streams[&1] + 1;
        assert_eq!(next, 401 + missing);
        append(&mut log, next, next, 10).unwrap();
    }
    // At the end of the journal nothing tells what was there, if anything.
    let disk = MemoryDisk::of(files);
    *disk.unreadable.lock().unwrap() = Some((SEGMENT.into(), 95 * 4096..1 << 20));
    let (log, found, recovery) = open(&disk, SMALL);
    assert!(found.len() >= 360 && found.len() < 400, "{}", found.len());
    assert!(recovery.cut.is_none() && recovery.records_missing() > 400, "{recovery:?}");
    drop(log);
    *disk.unreadable.lock().unwrap() = None;
    let (_, again, _) = open(&disk, SMALL);
    assert_eq!(again, found, "what was given up stays so");
}

#[test]
fn a_start_has_a_piece_of_a_segment_in_memory_and_finds_the_same() {
    let disk = MemoryDisk::default();
    let (mut log, ..) = open(&disk, Options { segment_bytes: 16 << 20, salt: SALT });
    // Batches lie across the ends of pieces, at any offset.
    for first in (1..=1191).step_by(10) {
        append(&mut log, first, first + 9, 9000 + usize::try_from(first).unwrap()).unwrap();
    }
    log.mark().unwrap();
    drop(log);
    // The first one is small.
    let name = SEGMENT.replace('1', "2");
    let files = disk.snapshot();
    let opened = |files: BTreeMap<String, Vec<u8>>| {
        let disk = MemoryDisk::of(files);
        let taken = allocation_counter::measure(|| drop(check(&disk, &mut |_| {}).unwrap()));
        assert!(taken.bytes_max < 3 << 20, "{} bytes at once", taken.bytes_max);
        let (_, found, recovery) = open(&disk, SMALL);
        (found, recovery)
    };
    let (whole, recovery) = opened(files.clone());
    assert_eq!((whole.len(), recovery.damage, recovery.cut), (1200, Vec::new(), None));
    assert!((1..=1200).eq(whole.iter().map(|(_, sequence, _)| *sequence)));
    // What is around the end of a piece is missed no more than anything else.
    for at in [PIECE - 9, PIECE - 1, PIECE, PIECE + 7, 2 * PIECE + 4000, 7 * PIECE] {
        let mut flipped = files.clone();
        flipped.get_mut(&name).unwrap()[at] ^= 1;
        let (found, recovery) = opened(flipped);
        assert_eq!((found.len(), recovery.records_missing()), (1199, 1), "flipped at {at}");
        assert!(found.iter().all(|record| whole.contains(record)), "flipped at {at}");
        // A region is copied piece by piece, too.
        let mut large = files.clone();
        large.get_mut(&name).unwrap()[at..at + 2 * PIECE].fill(0xEE);
        let disk = MemoryDisk::of(large.clone());
        let (_, found, recovery) = open(&disk, SMALL);
        assert_eq!(found.len() as u64 + recovery.records_missing(), 1200, "flooded at {at}");
        let Extent::Region { offset, bytes, set_aside: Some(copy) } = &recovery.damage[0].extent else { panic!() };
        let region = usize::try_from(*offset).unwrap();
        let region = region..region + usize::try_from(*bytes).unwrap();
        assert!(region.len() > 2 * PIECE);
        let copy = &disk.snapshot()[copy];
        assert!(copy[..] == large[&name][region], "flooded at {at}");
    }
}

const PIECE: usize = crate::limits::PIECE_BYTES;

#[test]
fn a_start_hands_out_what_is_needed_and_finds_the_rest() {
    let disk = MemoryDisk::default();
    drop(mostly_old(&disk));
    let (log, found, recovery) = open(&disk, MIDDLE);
    assert_eq!(found, records(181, 200, 100));
    assert_eq!((recovery.damage.len(), recovery.cut, recovery.streams[&1]), (0, None, 200));
    let mut reader = log.reader();
    // Back and forth, so that nothing lies on the way.
    for sequence in (1..=200).map(|nth| nth * 77 % 200 + 1) {
        assert_eq!(reader.read(1, sequence).unwrap(), payload(sequence, 100), "{sequence}");
    }
}

#[test]
fn the_last_header_may_be_damaged_right_after_a_sweep() {
    let disk = MemoryDisk::default();
    let (mut log, _) = mostly_old(&disk);
    for begun_at in [200, 300, 400] {
        let from = begun_at - 19;
        log.begin_replay_at(&BTreeMap::from([(1, from)])).unwrap();
        assert!(sweep(&log, from..=begun_at).removed > 0, "{begun_at}");
        for last in (begun_at..begun_at + 100).step_by(10) {
            let mut files = disk.snapshot();
            let name = files.keys().rfind(|name| name.ends_with(".segment")).unwrap().clone();
            files.get_mut(&name).unwrap()[30] ^= 1;
            let (_, found, recovery) = open(&MemoryDisk::of(files), MIDDLE);
            assert_eq!(recovery.records_missing(), 0, "{last}: {recovery:?}");
            assert!(found == records(from, last, 100), "{last}: {} records", found.len());
            append(&mut log, last + 1, last + 10, 100).unwrap();
        }
    }
}

/// The file says which segment it is, and its first record is the first of the journal.
#[test]
fn a_bad_page_at_the_beginning_of_the_only_segment_takes_what_is_in_it_and_no_more() {
    let disk = MemoryDisk::default();
    let (mut log, _, _) = open(&disk, Options { segment_bytes: 1 << 20, salt: SALT });
    for first in (1..=191).step_by(10) {
        append(&mut log, first, first + 9, 100).unwrap();
    }
    log.mark_end().unwrap();
    drop(log);
    for (bytes, fill) in [(96, 0), (96, 0x5a), (512, 0), (512, 0x5a), (4096, 0), (4096, 0x5a)] {
        let mut files = disk.snapshot();
        files.get_mut(SEGMENT).unwrap()[..bytes].fill(fill);
        let disk = MemoryDisk::of(files.clone());
        let checked = check(&disk, &mut |_| {}).unwrap();
        let (mut log, found, recovery) = open(&disk, SMALL);
        let what = format!("{bytes} bytes are {fill}: {recovery:?}");
        let missing = 200 - found.len() as u64;
        // A batch of ten has 1280 bytes.
        let most = bytes.saturating_sub(HEADER + 40).div_ceil(124) as u64;
        assert!(missing <= most && found.iter().all(|record| records(1, 200, 100).contains(record)), "{what}");
        assert_eq!((checked.records_missing(), recovery.records_missing()), (missing, missing), "{what}");
        if bytes == HEADER {
            assert_eq!((recovery.headless.len(), recovery.damage.len()), (1, 0), "{what}");
        } else {
            let Extent::Region { set_aside: Some(copy), .. } = &recovery.damage[0].extent else { panic!("{what}") };
            assert!(disk.snapshot().contains_key(copy), "{what}");
        }
        assert_eq!(disk.snapshot()[SEGMENT][..bytes], files[SEGMENT][..bytes], "{what}");
        let next = recovery.streams[&1] + 1;
        assert_eq!(next, 201 + missing, "{what}");
        append(&mut log, next, next, 10).unwrap();
        drop(log);
        assert_eq!(open(&disk, SMALL).1.len(), found.len() + 1, "{what}");
    }
}

/// A journal of an earlier version has no such file, and one that was begun anew has another secret.
#[test]
fn the_secret_is_kept_in_another_file_from_the_next_start_on() {
    let disk = MemoryDisk::default();
    append(&mut open(&disk, SMALL).0, 1, 3, 10).unwrap();
    let kept = disk.snapshot()[SALT_FILE].clone();
    for wrong in [None, Some(Vec::new()), Some(vec![7; 32]), Some(kept[..31].to_vec())] {
        let mut files = disk.snapshot();
        files.remove(SALT_FILE);
        files.extend(wrong.map(|wrong| (SALT_FILE.to_owned(), wrong)));
        let disk = MemoryDisk::of(files);
        assert_eq!(open(&disk, SMALL).1, records(1, 3, 10));
        assert_eq!(disk.snapshot()[SALT_FILE], kept);
    }
    let files = BTreeMap::from([(SALT_FILE.to_owned(), kept.clone())]);
    let disk = MemoryDisk::of(files);
    let (log, found, recovery) = open(&disk, Options { segment_bytes: 1024, salt: *b"another's secret" });
    assert!(found.is_empty() && recovery.is_new && recovery.damage.is_empty(), "{recovery:?}");
    drop(log);
    assert_ne!(disk.snapshot()[SALT_FILE], kept);
}

type Change<'c> = &'c dyn Fn(&mut Vec<u8>);

#[test]
fn damage_is_said_of_the_segment_that_has_it() {
    let disk = MemoryDisk::default();
    let (mut log, _, _) = open(&disk, MIDDLE);
    for first in (1..=191).step_by(10) {
        append(&mut log, first, first + 9, 100).unwrap();
    }
    log.mark_end().unwrap();
    drop(log);
    let name = "0000000002.segment";
    let (files, header) = (disk.snapshot(), SegmentHeader::bytes_with(1));
    let length = files[name].len();
    let batch = (40 + 10 * 124_usize).next_multiple_of(8);
    let damages: [(_, Change<'_>); 6] = [
        ("its last batch is zeros", &|bytes| bytes[length - batch..].fill(0)),
        ("its last batch is anything", &|bytes| bytes[length - batch..].fill(0x5a)),
        ("its last batch is cut off", &|bytes| bytes.truncate(length - batch)),
        ("it is cut within a batch", &|bytes| bytes.truncate(length - batch / 2)),
        ("all of it is anything", &|bytes| bytes.fill(0x5a)),
        ("all behind its header is zeros", &|bytes| bytes[header..].fill(0)),
    ];
    for (what, damage) in damages {
        let mut files = files.clone();
        damage(files.get_mut(name).unwrap());
        let disk = MemoryDisk::of(files);
        let checked = check(&disk, &mut |_| {}).unwrap();
        let (_, found, recovery) = open(&disk, MIDDLE);
        for damage in [&checked.damage, &recovery.damage] {
            assert!(damage.iter().all(|damage| damage.file == name), "{what}: {damage:?}");
            assert!(damage.iter().all(|damage| damage.missing != Missing::Exactly(0)), "{what}: {damage:?}");
        }
        assert!(found.len() < 200, "{what}");
        assert_eq!(recovery.records_missing(), 200 - found.len() as u64, "{what}: {recovery:?}");
    }
}

/// The next header, which is damaged, would say where it ends; a start takes it to end there, too.
#[test]
fn zeros_behind_an_old_segment_are_no_damage() {
    let disk = MemoryDisk::default();
    drop(mostly_old(&disk));
    let mut files = disk.snapshot();
    files.get_mut(SEGMENT).unwrap().extend([0; 4096]);
    files.get_mut("0000000002.segment").unwrap()[20] ^= 1;
    let checked = check(&MemoryDisk::of(files), &mut |_| {}).unwrap();
    assert!(checked.damage.iter().all(|damage| damage.file != SEGMENT), "{checked:?}");
}

#[test]
fn a_copy_of_damage_never_takes_the_place_of_a_file_that_is_there() {
    let (mut files, ..) = ten_batches(true);
    files.get_mut(SEGMENT).unwrap()[HEADER + BATCH + 50] ^= 1;
    let name = format!("damaged-0000000001-{}", HEADER + BATCH);
    let bytes = files[SEGMENT][HEADER + BATCH..HEADER + 2 * BATCH].to_vec();
    let copy_of = |recovery: &crate::Recovery| match &recovery.damage[..] {
        [Damage { extent: Extent::Region { set_aside, .. }, .. }] => set_aside.clone(),
        damage => panic!("{damage:?}"),
    };
    for there in [None, Some(b"mine".to_vec()), Some(Vec::new()), Some([bytes.clone(), vec![0]].concat())] {
        let mut files = files.clone();
        files.extend(there.clone().map(|there| (name.clone(), there)));
        let disk = MemoryDisk::of(files);
        assert_eq!(copy_of(&check(&disk, &mut |_| {}).unwrap()), None, "{there:?} is no copy");
        let expected = if there.is_none() { name.clone() } else { format!("{name}-2") };
        for start in 1..=3 {
            assert_eq!(copy_of(&open(&disk, SMALL).2).as_ref(), Some(&expected), "{there:?}, start {start}");
            assert_eq!(disk.snapshot()[&expected], bytes, "{there:?}");
            assert!(there.is_none() || disk.snapshot().get(&name) == there.as_ref(), "it stays");
        }
        let copies = disk.snapshot().into_keys().filter(|name| name.starts_with("damaged-")).count();
        assert_eq!(copies, 1 + usize::from(there.is_some()));
        assert_eq!(copy_of(&check(&disk, &mut |_| {}).unwrap()), Some(expected), "it is known from its bytes");
    }
}

/// All that lies behind each of them tells that it was durable. A segment has more bytes than a start has in memory at once, and of one
/// most was never used.
#[test]
fn a_start_reads_a_segment_few_times_where_very_much_is_damaged() {
    for (count, bytes, segment_bytes) in [(1200, 3000, 5 << 20), (1200, 100, 10 << 20)] {
        let disk = MemoryDisk::default();
        let (mut log, ..) = open(&disk, Options { segment_bytes, salt: SALT });
        // The first segment of a start is a small one.
        append(&mut log, 1, 1, 1 << 20).unwrap();
        for sequence in 2..=count {
            append(&mut log, sequence, sequence, bytes).unwrap();
        }
        log.mark().unwrap();
        drop(log);
        let mut files = disk.snapshot();
        let name = "0000000002.segment";
        assert!(files[name].len() as u64 == segment_bytes && !files.contains_key("0000000003.segment"));
        let begin = SegmentHeader::bytes_with(0) + 40 + 24 + (1 << 20);
        for nth in (0..usize::try_from(count).unwrap() - 1).step_by(2) {
            files.get_mut(name).unwrap()[begin + nth * (40 + 24 + bytes).next_multiple_of(8)] ^= 1;
        }
        let disk = MemoryDisk::of(files);
        let checked = check(&disk, &mut |_| {}).unwrap();
        // Headers are damaged, records are not.
        let found = (checked.records, checked.damage.len() as u64, checked.records_missing());
        assert_eq!(found, (count, count / 2, 0));
        let read = disk.bytes_read.load(Ordering::Relaxed);
        assert!(read <= 2 * VERIFIED_FACTOR_MAX * segment_bytes, "{read} bytes of {segment_bytes}");
    }
}

/// A header of so many streams would have room in the file.
#[test]
fn a_header_with_a_wrong_length_takes_no_memory() {
    let (mut files, ..) = ten_batches(true);
    let segment = files.get_mut(SEGMENT).unwrap();
    segment.resize(8 << 20, 0);
    segment[64..68].copy_from_slice(&400_000_u32.to_le_bytes());
    let disk = MemoryDisk::of(files);
    let file = crate::disk::Disk::open(&disk, SEGMENT).unwrap();
    let taken = allocation_counter::measure(|| {
        assert_eq!(crate::segments::read_header(&*file, 8 << 20), HeaderFound::Invalid);
    });
    assert!(taken.bytes_max < 256 << 10, "{} bytes", taken.bytes_max);
    assert_eq!(open(&disk, SMALL).1, records(1, 30, 10));
    // One that has so many is read.
    let streams = (1..=20_000).map(|stream| (stream, crate::format::StreamState { last: 7, replay_from: 0 }));
    let HeaderFound::Valid(header) = SegmentHeader::decode(&ten_batches(true).0[SEGMENT]) else { panic!() };
    let header = SegmentHeader { streams: streams.collect(), ..header };
    let disk = MemoryDisk::of(BTreeMap::from([(SEGMENT.to_owned(), header.encode())]));
    let file = crate::disk::Disk::open(&disk, SEGMENT).unwrap();
    assert_eq!(crate::segments::read_header(&*file, header.bytes() as u64), HeaderFound::Valid(header));
}
