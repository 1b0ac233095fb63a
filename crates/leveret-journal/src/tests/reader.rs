//! Single records, read back while the journal changes.

use std::collections::BTreeMap;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};

use super::{
    HEADER, MIDDLE, Meanwhile, MemoryDisk, SALT, SEGMENT, Sectors, SlowDisk, append, mostly_old, open, payload,
    sweep,
};
use crate::disk::Disk;
use crate::format::SegmentHeader;
use crate::{Batch, Living, Log, Options, ReadError, check};

#[test]
fn single_records_are_read_back_while_the_journal_grows() {
    let disk = MemoryDisk::default();
    let options = Options { segment_bytes: 200_000, salt: SALT };
    let (mut log, _, _) = open(&disk, options);
    let mut reader = log.reader();
    let mut next = 1;
    let check = |reader: &mut crate::Reader, stream, sequence: u64| {
        let bytes = usize::try_from(sequence * 37 % 3000).unwrap();
        assert_eq!(reader.read(stream, sequence).unwrap(), payload(sequence, bytes), "{stream}: {sequence}");
    };
    for round in 0..60 {
        let mut batch = Batch::default();
        let count = if round % 3 == 0 { 1 } else { 30 };
        for stream in [1, 2, 9] {
            for sequence in next..next + count {
                let bytes = usize::try_from(sequence * 37 % 3000).unwrap();
                batch.push(stream, sequence, |out| out.extend_from_slice(&payload(sequence, bytes)));
            }
        }
        log.append(&mut batch).unwrap();
        next += count;
        check(&mut reader, 2, next - 1);
        check(&mut reader, 9, 1 + (next * 7919) % (next - 1));
    }
    assert!(disk.snapshot().len() > 10);
    assert!(matches!(reader.read(2, next), Err(ReadError::Unknown { .. })));
    assert!(matches!(reader.read(3, 1), Err(ReadError::Unknown { .. })));
    drop(log);
    let (log, _, _) = open(&disk, options);
    let mut reader = log.reader();
    for stream in [9, 1, 2] {
        for sequence in 1..next {
            check(&mut reader, stream, sequence);
        }
        for sequence in (1..next).rev().step_by(17) {
            check(&mut reader, stream, sequence);
        }
    }
    // What has rotted since it was written is never handed out.
    let name = SEGMENT.replace('1', "3");
    disk.files.lock().unwrap()[&name].bytes.lock().unwrap()[100_000..100_004].fill(0xEE);
    reader.rest();
    let read: Vec<_> = (1..next).map(|sequence| reader.read(1, sequence).map(<[u8]>::to_vec)).collect();
    assert!(
        read.iter().any(|read| matches!(read, Err(ReadError::Damaged { .. }))) || {
            (1..next).any(|sequence| reader.read(2, sequence).is_err() || reader.read(9, sequence).is_err())
        }
    );
    for (sequence, read) in (1..next).zip(read) {
        let bytes = usize::try_from(sequence * 37 % 3000).unwrap();
        assert!(read.is_err() || read.is_ok_and(|read| read == payload(sequence, bytes)), "{sequence}");
    }
}

/// Records behind damage are found, though nothing before it leads to them.
#[test]
fn single_records_behind_damage_are_read_back() {
    let disk = MemoryDisk::default();
    let options = Options { segment_bytes: 65_536, salt: SALT };
    let (mut log, _, _) = open(&disk, options);
    for round in 1..=10 {
        for stream in [1, 2] {
            let mut batch = Batch::default();
            batch.push(stream, round, |out| out.extend_from_slice(&payload(round, 100)));
            log.append(&mut batch).unwrap();
        }
    }
    log.mark().unwrap();
    drop(log);
    let batch_bytes = (40 + 24 + 100_usize).next_multiple_of(8);
    // Of each stream once: what follows begins with the other.
    for damaged in [6, 7] {
        let mut files = disk.snapshot();
        files.get_mut(SEGMENT).unwrap()[HEADER + damaged * batch_bytes..][..batch_bytes].fill(0xEE);
        let (log, found, recovery) = open(&MemoryDisk::of(files), options);
        assert_eq!((found.len(), recovery.records_missing()), (19, 1));
        let mut reader = log.reader();
        for (stream, sequence, payload) in &found {
            assert_eq!(
                reader.read(*stream, *sequence).unwrap(),
                payload,
                "{stream}: {sequence}, {damaged} damaged"
            );
        }
    }
}

#[test]
fn what_a_reader_learns_of_a_file_is_not_believed_of_the_one_that_takes_its_place() {
    let meanwhile = Meanwhile::default();
    let disk: Arc<dyn Disk> = Arc::new(SlowDisk(MemoryDisk::default(), Arc::clone(&meanwhile)));
    let options = Options { segment_bytes: 1 << 20, salt: SALT };
    let open = || Log::open(Arc::clone(&disk), options, &mut |_| {}).unwrap().0;
    let mut log = open();
    for first in (1..=2991).step_by(10) {
        append(&mut log, first, first + 9, 1000).unwrap();
    }
    log.begin_replay_at(&BTreeMap::from([(1, 2981)])).unwrap();
    drop(log);
    let log = open();
    let needed = || (1..=3000).filter(|sequence| sequence % 20 == 0 || *sequence > 2900);
    let mut reader = log.reader();
    reader.read(1, 20).unwrap();
    // While the next read waits for the disk, its segment is rewritten.
    let (mut keeper, swept) = (log.keeper(), Arc::new(Mutex::new(None)));
    let told = Arc::clone(&swept);
    *meanwhile.lock().unwrap() = Some(Box::new(move || {
        let mut living = Living::default();
        keeper.note(&mut living, 1, needed().map(|sequence| (sequence, 1000)), 0);
        *told.lock().unwrap() = Some(keeper.sweep(&living, &|| false).unwrap());
    }));
    assert_eq!(reader.read(1, 660).unwrap(), payload(660, 1000));
    assert!(swept.lock().unwrap().take().is_some_and(|swept| swept.compacted > 1));
    for reader in [&mut reader, &mut log.reader()] {
        for sequence in needed() {
            assert_eq!(reader.read(1, sequence).unwrap(), payload(sequence, 1000), "{sequence}");
        }
    }
}

#[test]
fn a_rotten_byte_of_an_old_segment_takes_one_record_at_most() {
    let disk = MemoryDisk::default();
    let (log, whole) = mostly_old(&disk);
    drop(log);
    let (record_bytes, nth) = (24 + 100_usize, 3);
    let batch_bytes = (40 + 10 * record_bytes).next_multiple_of(8);
    // The header of the second batch, and the fourth record in it: its header, and the first of its payload.
    let begin = HEADER + batch_bytes;
    let of_record = begin + 40 + nth * record_bytes;
    let one = (begin..begin + 40).chain(of_record..of_record + 30).map(|at| vec![at]);
    // The batch's header, and the lengths of every other record.
    let many =
        std::iter::once(begin).chain((0..10).step_by(2).map(|nth| begin + 40 + nth * record_bytes)).collect();
    for rotten in one.chain([many]) {
        let mut files = disk.snapshot();
        for &at in &rotten {
            files.get_mut(SEGMENT).unwrap()[at] ^= 0x0C;
        }
        let (log, ..) = open(&MemoryDisk::of(files), MIDDLE);
        let lost = |at: &usize| at.checked_sub(begin + 40).map(|at| 11 + (at / record_bytes) as u64);
        let lost: Vec<_> = rotten.iter().filter_map(lost).collect();
        let mut reader = log.reader();
        let there = whole.iter().map(|(_, sequence, _)| *sequence);
        for sequence in there.clone().chain(there.clone().rev()).chain(there.map(|nth| nth * 77 % 200 + 1)) {
            match reader.read(1, sequence) {
                Ok(read) => assert_eq!(read, payload(sequence, 100), "{rotten:?}: {sequence}"),
                Err(ReadError::Damaged { .. }) => assert!(lost.contains(&sequence), "{rotten:?}: {sequence}"),
                Err(error) => panic!("{rotten:?}: {error}"),
            }
        }
    }
}

#[test]
fn what_the_disk_cannot_read_now_is_no_damage_and_is_read_later() {
    let disk = MemoryDisk::default();
    let options = Options { segment_bytes: 1 << 20, salt: SALT };
    let (mut log, ..) = open(&disk, options);
    for first in (1..=391).step_by(10) {
        append(&mut log, first, first + 9, 1000).unwrap();
    }
    let file = Arc::clone(&disk.files.lock().unwrap()[SEGMENT]);
    let is_bad = |range: Sectors| {
        *disk.unreadable.lock().unwrap() = Some((SEGMENT.into(), range.clone()));
        *file.unreadable.lock().unwrap() = Some(range);
    };
    for (nth, sector) in [3, 20, 21, 70].into_iter().enumerate() {
        let mut reader = log.reader();
        is_bad(sector * 4096..sector * 4096 + 512);
        let mut refused = Vec::new();
        for sequence in (1..=400).chain((1..=400).rev()).chain((1..=400).map(|nth| nth * 77 % 400 + 1)) {
            match reader.read(1, sequence) {
                Ok(read) => assert_eq!(read, payload(sequence, 1000), "{sequence}"),
                Err(ReadError::Disk { .. }) => refused.push(sequence),
                Err(error) => panic!("sector {sector}, {sequence}: {error}"),
            }
        }
        assert!((3..=24).contains(&refused.len()), "sector {sector}: {refused:?}");
        is_bad(0..0);
        for sequence in refused {
            assert_eq!(reader.read(1, sequence).unwrap(), payload(sequence, 1000), "{sequence}");
        }
        // What has rotted besides stays damage.
        let rotten = 100 + nth as u64;
        let begin = HEADER as u64 + rotten / 10 * 40 + (rotten - 1) * 1024;
        file.bytes.lock().unwrap()[usize::try_from(begin).unwrap() + 200] ^= 1;
        reader.rest();
        assert!(matches!(reader.read(1, rotten), Err(ReadError::Damaged { .. })), "{rotten}");
        file.bytes.lock().unwrap()[usize::try_from(begin).unwrap() + 200] ^= 1;
    }
}

/// Each record that is lost is a reason to look, and a segment may have very many bytes.
#[test]
fn an_old_segment_is_looked_through_once_though_the_disk_cannot_read_some_of_it() {
    let disk = MemoryDisk::default();
    let options = Options { segment_bytes: 8 << 20, salt: SALT };
    let (mut log, ..) = open(&disk, options);
    // The first segment of a start is a small one.
    append(&mut log, 1, 1, 1 << 20).unwrap();
    for first in (2..=5992).step_by(10) {
        append(&mut log, first, first + 9, 1000).unwrap();
    }
    append(&mut log, 6002, 6002, 2 << 20).unwrap();
    log.begin_replay_at(&BTreeMap::from([(1, 6002)])).unwrap();
    drop(log);
    let mut files = disk.snapshot();
    let (name, record) = ("0000000002.segment", 24 + 1000);
    let begin_of = |sequence: usize| {
        let nth = sequence - 2;
        SegmentHeader::bytes_with(0) + 40 + 24 + (1 << 20) + nth / 10 * (40 + 10 * record) + 40 + nth % 10 * record
    };
    let rotten = |sequence: u64| sequence % 200 == 3;
    for sequence in (2..=6001).filter(|&sequence| rotten(sequence)) {
        files.get_mut(name).unwrap()[begin_of(usize::try_from(sequence).unwrap()) + 100] ^= 1;
    }
    // As the disk cannot read what lies between them, a copy of a batch is taken for it.
    let batch = 40 + 10 * record;
    let from = begin_of(4032) - 40;
    files.get_mut(name).unwrap().copy_within(from..from + batch, begin_of(4012) - 40);
    let bytes = files[name].len() as u64;
    let disk = MemoryDisk::of(files);
    let (log, ..) = open(&disk, options);
    let bad = begin_of(4025) as u64 / 4096 * 4096;
    *disk.unreadable.lock().unwrap() = Some((name.into(), bad..bad + 4096));
    let mut reader = log.reader();
    disk.bytes_read.store(0, Ordering::Relaxed);
    let mut lost = Vec::new();
    for sequence in 2..=6001 {
        match reader.read(1, sequence) {
            Ok(read) => assert_eq!(read, payload(sequence, 1000), "{sequence}"),
            Err(_) => lost.push(sequence),
        }
    }
    let read = disk.bytes_read.load(Ordering::Relaxed);
    assert!(read < 5 * bytes, "{read} bytes of {bytes}");
    assert!(lost.iter().all(|&at| rotten(at) || (4012..=4031).contains(&at)), "{lost:?}");
    // Once the disk can, all is found.
    *disk.unreadable.lock().unwrap() = None;
    disk.bytes_read.store(0, Ordering::Relaxed);
    for &sequence in &lost {
        let is_lost = rotten(sequence) || (4012..=4021).contains(&sequence);
        assert_eq!(reader.read(1, sequence).is_err(), is_lost, "{sequence}");
    }
    let read = disk.bytes_read.load(Ordering::Relaxed);
    assert!(read < 3 * bytes, "{read} bytes of {bytes}");
}

/// What was written in the wrong place may verify there. Nobody has read an old segment before a record of it is wanted.
#[test]
fn a_copy_in_an_old_segment_hides_no_more_than_what_it_lies_over() {
    let disk = MemoryDisk::default();
    let (log, whole) = mostly_old(&disk);
    drop(log);
    let (batch, record) = ((40 + 10 * 124_usize).next_multiple_of(8), 124);
    let begin_of = |at: u64| {
        let at = usize::try_from(at - 1).unwrap();
        HEADER + at / 10 * batch + 40 + at % 10 * record
    };
    let bytes = disk.snapshot()[SEGMENT].len();
    let count = (1..=200).filter(|&at| begin_of(at) + record <= bytes).max().unwrap();
    assert!(count >= 50, "{count}");
    let batches = || (1..=count).step_by(10).map(move |at| (begin_of(at) - 40, batch, at..at + 10));
    let few = |at: u64, count: u64| (begin_of(at), record * usize::try_from(count).unwrap(), at..at + count);
    let records = [few(3, 1), few(4, 3), few(8, 1), few(15, 2), few(17, 1), few(32, 3), few(41, 1), few(49, 2)];
    // Not where a record begins, either, as sectors do.
    let sectors = (0..8).map(|nth| {
        let begin = 512 * (nth + 1);
        let touched = (1..=count).filter(|&at| begin_of(at) < begin + 512 && begin_of(at) + record > begin);
        let touched: Vec<_> = touched.collect();
        (begin, 512, touched[0]..touched[touched.len() - 1] + 1)
    });
    let mut tried = 0;
    for places in [batches().collect::<Vec<_>>(), records.to_vec(), sectors.collect()] {
        for ((from, bytes, _), (over, others, lost)) in
            places.iter().flat_map(|a| places.iter().map(move |b| (a, b)))
        {
            if bytes != others || from == over {
                continue;
            }
            let mut files = disk.snapshot();
            files.get_mut(SEGMENT).unwrap().copy_within(*from..from + bytes, *over);
            let what = format!("{bytes} bytes of {from} over {over}");
            let checked = check(&MemoryDisk::of(files.clone()), &mut |_| {}).unwrap();
            let (log, ..) = open(&MemoryDisk::of(files), MIDDLE);
            for order in [1, 199, 77] {
                let mut reader = log.reader();
                let mut missing = 0;
                for sequence in (0..200).map(|nth| nth * order % 200 + 1) {
                    match reader.read(1, sequence) {
                        Ok(read) => assert_eq!(read, payload(sequence, 100), "{what}: {sequence}"),
                        Err(_) => missing += u64::from(lost.contains(&sequence) || panic!("{what}: {sequence}")),
                    }
                }
                assert_eq!(checked.records_missing(), missing, "{what}: {:?}", checked.damage);
            }
            tried += 1;
            // Nor does anything become of it that is rewritten.
            let needed = || (1..=200).filter(|at| at % 7 == 0 && !lost.contains(at));
            sweep(&log, needed());
            let mut reader = log.reader();
            for sequence in needed() {
                assert_eq!(reader.read(1, sequence).unwrap(), payload(sequence, 100), "{what}, swept: {sequence}");
            }
        }
    }
    assert!(tried > 90 && whole.len() == 200, "{tried}");
}

/// The other way round, nothing tells that a file to be copied is not as it was written.
#[test]
fn a_segment_with_a_copy_in_it_is_not_rewritten_though_nobody_has_missed_anything() {
    let disk = MemoryDisk::default();
    drop(mostly_old(&disk));
    let batch = (40 + 10 * 124_usize).next_multiple_of(8);
    let mut files = disk.snapshot();
    files.get_mut(SEGMENT).unwrap().copy_within(HEADER + 3 * batch..HEADER + 4 * batch, HEADER + batch);
    let (log, ..) = open(&MemoryDisk::of(files), MIDDLE);
    let needed = || (1..=200).filter(|at| at % 9 == 0);
    sweep(&log, needed());
    let mut reader = log.reader();
    for sequence in needed().filter(|at| !(11..=20).contains(at)) {
        assert_eq!(reader.read(1, sequence).unwrap(), payload(sequence, 100), "{sequence}");
    }
    assert!(reader.read(1, 18).is_err());
}
