//! Scratch files on a simulated disk.

use std::sync::Arc;

use leveret_journal::disk::Disk;
use leveret_journal::limits::SCRATCH_BYTES;
use leveret_journal::{ReadError, Scratch, ScratchReader, remove_scratch};
use leveret_testkit::disk::SimDisk;

const STREAM: u32 = 7;

/// What a record holds, by its number: of different lengths, some longer than what is read at once.
fn payload(number: u32) -> Vec<u8> {
    let length = if number.is_multiple_of(50) { 300_000 } else { number as usize * 37 % 2000 };
    number.to_le_bytes().into_iter().cycle().take(length).collect()
}

/// Writes these records, many at once, and says where they are.
fn write(scratch: &mut Scratch, numbers: impl IntoIterator<Item = u32>) -> Vec<(u32, u32, u32)> {
    let mut places = Vec::new();
    let mut numbers = numbers.into_iter().peekable();
    while numbers.peek().is_some() {
        let file = scratch.begin().expect("the disk has room");
        for number in numbers.by_ref().take(20) {
            places.push((number, file, scratch.add(|out| out.extend(payload(number)))));
            if scratch.is_full() {
                break;
            }
        }
        scratch.write().expect("the disk has room");
    }
    places
}

fn check(reader: &mut ScratchReader, places: &[(u32, u32, u32)]) {
    for &(number, file, offset) in places {
        assert_eq!(
            reader.read(STREAM, file, offset).expect("it is there"),
            payload(number),
            "record {number} in {file}:{offset}"
        );
    }
}

#[test]
fn records_come_back_in_any_order_while_more_are_written() {
    let disk = SimDisk::default();
    let mut scratch = Scratch::new(Arc::new(disk.clone()), STREAM);
    let mut reader = ScratchReader::new(Arc::new(disk.clone()));
    let mut places = write(&mut scratch, 0..1000);
    check(&mut reader, &places);
    // What the reader has in its buffer ends before these.
    places.extend(write(&mut scratch, 1000..4000));
    check(&mut reader, &places);
    places.reverse();
    check(&mut reader, &places);
    let files = disk.files();
    assert!(files.len() > 1, "{} bytes in one file", files.values().map(Vec::len).sum::<usize>());
    assert!(files.values().all(|file| file.len() < SCRATCH_BYTES as usize + 600_000));
    assert_eq!(disk.pending().len() as u64, disk.operations(), "nothing is synced");
}

#[test]
fn a_file_that_is_removed_is_gone_and_its_number_is_not_given_again() {
    let disk = SimDisk::default();
    let mut scratch = Scratch::new(Arc::new(disk.clone()), STREAM);
    let places = write(&mut scratch, 0..10);
    let (_, first, offset) = places[0];
    scratch.finish();
    scratch.remove(first).unwrap();
    assert!(disk.files().is_empty());
    let mut reader = ScratchReader::new(Arc::new(disk.clone()));
    assert!(matches!(reader.read(STREAM, first, offset), Err(ReadError::Disk { .. })));
    let places = write(&mut scratch, 10..20);
    assert!(places.iter().all(|&(_, file, _)| file > first));
    check(&mut reader, &places);
}

#[test]
fn a_full_disk_takes_nothing_and_gives_back_what_it_took() {
    let disk = SimDisk::default();
    let mut scratch = Scratch::new(Arc::new(disk.clone()), STREAM);
    // Not even the first record: then there is no file.
    disk.set_room(Some(10));
    scratch.begin().unwrap();
    scratch.add(|out| out.extend(payload(3)));
    scratch.write().unwrap_err();
    scratch.finish();
    assert!(disk.files().is_empty());
    disk.set_room(Some(100_000));
    let mut places = write(&mut scratch, 1..40);
    let before = disk.files();
    let file = scratch.begin().unwrap();
    let lost = scratch.add(|out| out.extend(payload(50)));
    scratch.write().unwrap_err();
    assert_eq!(disk.files(), before, "what is there of it is cut off");
    let mut reader = ScratchReader::new(Arc::new(disk.clone()));
    check(&mut reader, &places);
    assert!(matches!(reader.read(STREAM, file, lost), Err(ReadError::Damaged { .. })));
    disk.set_room(None);
    places.extend(write(&mut scratch, 40..60));
    check(&mut reader, &places);
}

/// A reader may have it in its buffer, whether it was cut off then or could not be.
#[test]
fn what_was_not_written_is_not_taken_for_what_came_later() {
    let (disk, twin) = (SimDisk::default(), SimDisk::default());
    let mut scratch = Scratch::new(Arc::new(disk.clone()), STREAM);
    let places = write(&mut scratch, 1..10);
    // The same disk with more room tells what a part of is there for a moment.
    write(&mut Scratch::new(Arc::new(twin.clone()), STREAM), 1..11);
    disk.set_room(Some(0));
    scratch.begin().unwrap();
    scratch.add(|out| out.extend(payload(10)));
    scratch.write().unwrap_err();
    disk.set_room(None);
    let name = disk.list().unwrap().remove(0);
    disk.open(&name).unwrap().write_at(0, &twin.files()[&name]).unwrap();
    let mut reader = ScratchReader::new(Arc::new(disk.clone()));
    check(&mut reader, &places);
    let places = write(&mut scratch, 11..20);
    check(&mut reader, &places);
}

#[test]
fn what_is_damaged_or_cannot_be_read_is_told_and_the_others_are_read() {
    let disk = SimDisk::default();
    let mut scratch = Scratch::new(Arc::new(disk.clone()), STREAM);
    let places = write(&mut scratch, 1..40);
    let mut files = disk.files();
    let (name, bytes) = files.iter_mut().next().map(|(name, bytes)| (name.clone(), bytes)).unwrap();
    // In the length of one, and in the payload of another.
    for (nth, at) in [(10, 3), (20, 30)] {
        bytes[places[nth].2 as usize + at] ^= 1;
    }
    let disk = SimDisk::of(files);
    let mut reader = ScratchReader::new(Arc::new(disk.clone()));
    for (nth, &(number, file, offset)) in places.iter().enumerate() {
        let read = reader.read(STREAM, file, offset);
        match nth {
            10 | 20 => assert!(
                matches!(&read, Err(ReadError::Damaged { file, offset: at }) if *file == name && *at == u64::from(offset)),
                "{read:?}"
            ),
            _ => assert_eq!(read.unwrap(), payload(number)),
        }
        assert!(reader.read(STREAM + 1, file, offset).is_err(), "another virtual host has no such file");
    }
    reader.rest();
    disk.set_unreadable(true);
    let (number, file, offset) = places[0];
    assert!(matches!(reader.read(STREAM, file, offset), Err(ReadError::Disk { .. })));
    disk.set_unreadable(false);
    assert_eq!(reader.read(STREAM, file, offset).unwrap(), payload(number));
}

#[test]
fn a_start_removes_what_an_earlier_one_has_left_and_nothing_else() {
    let disk = SimDisk::of([("mine".into(), vec![1])].into());
    for stream in 1..4 {
        write(&mut Scratch::new(Arc::new(disk.clone()), stream), 0..10);
    }
    assert_eq!(disk.files().len(), 4);
    assert_eq!(remove_scratch(&disk).unwrap(), 3);
    assert_eq!(disk.files().into_keys().collect::<Vec<_>>(), ["mine"]);
}
