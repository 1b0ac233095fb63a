//! Scratch files: what a reader takes for a record.

use std::sync::Arc;

use super::{MemoryDisk, payload};
use crate::disk::Disk;
use crate::{ReadError, Scratch, ScratchReader};

/// A file with these records of a hundred bytes, and where they are.
fn write(scratch: &mut Scratch, sequences: impl Iterator<Item = u64>) -> (u32, Vec<u32>) {
    let number = scratch.begin().unwrap();
    let offsets = sequences.map(|sequence| scratch.add(|out| out.extend(payload(sequence, 100)))).collect();
    scratch.write().unwrap();
    (number, offsets)
}

#[test]
fn a_record_that_lies_elsewhere_than_it_was_written_is_not_read() {
    let disk = MemoryDisk::default();
    let (number, offsets) = write(&mut Scratch::new(Arc::new(disk.clone()), 7), 1..=2);
    let mut files = disk.snapshot();
    let written = files["scratch-7-1"].clone();
    let second = offsets[1] as usize;
    files.insert("scratch-7-1".into(), [&written[second..], &written[..second]].concat());
    files.insert("scratch-7-2".into(), written.clone());
    files.insert("scratch-8-1".into(), written);
    let mut reader = ScratchReader::new(Arc::new(MemoryDisk::of(files)));
    for (stream, number) in [(7, number), (7, 2), (8, 1)] {
        for &offset in &offsets {
            let read = reader.read(stream, number, offset);
            assert!(matches!(read, Err(ReadError::Damaged { .. })), "{stream}: {number}:{offset}: {read:?}");
        }
    }
}

#[test]
fn files_of_several_streams_with_the_same_number_are_told_apart() {
    let disk: Arc<dyn Disk> = Arc::new(MemoryDisk::default());
    let mut reader = ScratchReader::new(Arc::clone(&disk));
    let (one, offsets) = write(&mut Scratch::new(Arc::clone(&disk), 1), 1..=3);
    let (other, same_offsets) = write(&mut Scratch::new(Arc::clone(&disk), 2), 11..=13);
    assert_eq!((one, &offsets), (other, &same_offsets));
    for (sequence, offset) in (1..).zip(offsets) {
        assert_eq!(reader.read(1, one, offset).unwrap(), payload(sequence, 100));
        assert_eq!(reader.read(2, one, offset).unwrap(), payload(sequence + 10, 100));
    }
}

/// The end of a file may be there before its bytes are.
#[test]
fn what_was_written_after_a_reader_had_its_place_in_memory_is_read() {
    let disk = MemoryDisk::default();
    let mut scratch = Scratch::new(Arc::new(disk.clone()), 1);
    let mut reader = ScratchReader::new(Arc::new(disk.clone()));
    let (number, before) = write(&mut scratch, 1..=3);
    disk.open("scratch-1-1").unwrap().preallocate(4096).unwrap();
    assert_eq!(reader.read(1, number, before[0]).unwrap(), payload(1, 100));
    let (same, behind) = write(&mut scratch, 4..=6);
    assert_eq!(same, number);
    for (sequence, offset) in (1..).zip(before.into_iter().chain(behind)) {
        assert_eq!(reader.read(1, number, offset).unwrap(), payload(sequence, 100));
    }
}
