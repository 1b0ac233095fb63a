//! Starts with copies of something in places where it was not written.

use super::{BATCH, HEADER, MemoryDisk, SALT, SEGMENT, SMALL, append, open, payload, records, ten_batches};
use crate::Options;

/// What was written in the wrong place may verify there.
#[test]
fn a_copy_of_a_later_record_in_an_earlier_place_is_not_that_record() {
    let disk = MemoryDisk::default();
    let (mut log, _, _) = open(&disk, Options { segment_bytes: 1 << 20, salt: SALT });
    append(&mut log, 1, 20, 100).unwrap();
    append(&mut log, 21, 40, 100).unwrap();
    log.mark().unwrap();
    drop(log);
    let record = |sequence: usize| {
        // Each batch has a header of 40 bytes, each record one of 24.
        let begin = HEADER + 40 * sequence.div_ceil(20) + (sequence - 1) * 124;
        begin..begin + 124
    };
    for (copied, over) in [(21, 1), (25, 7), (40, 20), (20, 10), (3, 12)] {
        let mut files = disk.snapshot();
        files.get_mut(SEGMENT).unwrap().copy_within(record(copied), record(over).start);
        let (log, found, recovery) = open(&MemoryDisk::of(files), SMALL);
        let mut expected = records(1, 40, 100);
        expected.remove(over - 1);
        assert!(found == expected, "{copied} over {over}: {:?}", recovery.damage);
        assert_eq!(recovery.records_missing(), 1, "{copied} over {over}");
        let mut reader = log.reader();
        for (stream, sequence, payload) in expected {
            assert_eq!(reader.read(stream, sequence).unwrap(), payload);
        }
    }
}

/// A sector has no regard for records.
#[test]
fn a_copy_of_another_sector_takes_the_records_that_it_touches_and_no_more() {
    let disk = MemoryDisk::default();
    let (mut log, _, _) = open(&disk, Options { segment_bytes: 1 << 20, salt: SALT });
    for first in (1..=41).step_by(20) {
        append(&mut log, first, first + 19, 100).unwrap();
    }
    log.mark().unwrap();
    drop(log);
    let begin_of = |at: usize| HEADER + (40 * at.div_ceil(20) + (at - 1) * 124).next_multiple_of(8);
    for (from, over) in (1..14).flat_map(|from| (1..14).map(move |over| (from * 512, over * 512))) {
        let mut files = disk.snapshot();
        files.get_mut(SEGMENT).unwrap().copy_within(from..from + 512, over);
        if files == disk.snapshot() {
            continue;
        }
        let (log, found, recovery) = open(&MemoryDisk::of(files), SMALL);
        let is_touched = |at: &u64| {
            let begin = begin_of(usize::try_from(*at).unwrap());
            begin < over + 512 && begin + 124 > over
        };
        let found: Vec<_> = found.into_iter().map(|(_, sequence, _)| sequence).collect();
        let expected: Vec<_> = (1..=60).filter(|at| !is_touched(at)).collect();
        assert_eq!(found, expected, "{from} over {over}: {:?}", recovery.damage);
        assert_eq!(recovery.records_missing(), 60 - expected.len() as u64, "{from} over {over}");
        let mut reader = log.reader();
        for sequence in expected {
            assert_eq!(reader.read(1, sequence).unwrap(), payload(sequence, 100), "{from} over {over}: {sequence}");
        }
    }
}

#[test]
fn a_copy_of_another_batch_takes_what_it_lies_over_and_no_more() {
    let (files, ..) = ten_batches(true);
    let place = |batch: usize| HEADER + batch * BATCH..HEADER + (batch + 1) * BATCH;
    for (copied, over) in (0..10).flat_map(|copied| (0..10).map(move |over| (copied, over))) {
        let mut files = files.clone();
        files.get_mut(SEGMENT).unwrap().copy_within(place(copied), place(over).start);
        let (_, found, recovery) = open(&MemoryDisk::of(files), SMALL);
        let mut expected = records(1, 30, 10);
        if copied != over {
            expected.drain(over * 3..over * 3 + 3);
        }
        assert_eq!(found, expected, "{copied} over {over}");
        assert_eq!(recovery.records_missing(), 30 - expected.len() as u64, "{copied} over {over}");
    }
}

/// A page may hold several.
#[test]
fn a_copy_of_batches_in_a_row_takes_what_it_lies_over_and_no_more() {
    let (files, ..) = ten_batches(true);
    let places = |from: usize, count: usize| HEADER + from * BATCH..HEADER + (from + count) * BATCH;
    let all = (2..=4).flat_map(|count| (0..=10 - count).map(move |copied| (count, copied)));
    for (count, copied, over) in
        all.flat_map(|(count, copied)| (0..=10 - count).map(move |over| (count, copied, over)))
    {
        let mut files = files.clone();
        files.get_mut(SEGMENT).unwrap().copy_within(places(copied, count), places(over, count).start);
        let (_, found, recovery) = open(&MemoryDisk::of(files), SMALL);
        let is_intact = |(_, sequence, _): &&(u32, u64, Vec<u8>)| {
            let batch = usize::try_from((sequence - 1) / 3).unwrap();
            copied == over || !(over..over + count).contains(&batch)
        };
        let all = records(1, 30, 10);
        assert!(
            all.iter().filter(is_intact).all(|record| found.contains(record)),
            "{count} at {copied} over {over}"
        );
        assert!(found.is_sorted() && found.iter().all(|record| all.contains(record)));
        assert_eq!(recovery.records_missing(), 30 - found.len() as u64, "{count} at {copied} over {over}");
    }
}

/// Both in one batch.
#[test]
fn a_hole_does_not_make_a_copy_behind_it_likelier() {
    let disk = MemoryDisk::default();
    let (mut log, _, _) = open(&disk, Options { segment_bytes: 1 << 20, salt: SALT });
    append(&mut log, 1, 1000, 100).unwrap();
    log.mark().unwrap();
    drop(log);
    let record = |sequence: usize| HEADER + 40 + (sequence - 1) * 124;
    let mut files = disk.snapshot();
    let segment = files.get_mut(SEGMENT).unwrap();
    segment[record(100)..record(140)].fill(0x5a);
    segment.copy_within(record(300)..record(301), record(200));
    let (_, found, recovery) = open(&MemoryDisk::of(files), SMALL);
    let found: Vec<_> = found.iter().map(|(_, sequence, _)| *sequence).collect();
    let is_there = |sequence: &u64| !(100..140).contains(sequence) && *sequence != 200;
    assert_eq!(found, (1..=1000).filter(is_there).collect::<Vec<_>>());
    assert_eq!(recovery.records_missing(), 41);
}
