//! Files of the operating system, whichever way bytes take to them.

use proptest::collection::vec;
use proptest::prelude::{Just, Strategy, prop_oneof};
use proptest::{prop_assert, proptest};

use crate::disk::Disk;
use crate::limits::{DIRECT_BYTES, PAGE_BYTES};
use crate::{RealDisk, Writes};

const FILE_BYTES_MAX: u64 = 3 * DIRECT_BYTES as u64;

#[derive(Clone, Debug)]
enum Step {
    Write {
        from: u64,
        to: u64,
    },
    Truncate(u64),
    Preallocate(u64),
    /// It gets another name, and is opened by that.
    Rename,
}

fn step() -> impl Strategy<Value = Step> {
    let page = || (0..=FILE_BYTES_MAX / PAGE_BYTES).prop_map(|page| page * PAGE_BYTES);
    let write = (0..FILE_BYTES_MAX, prop_oneof![4 => page(), 1 => 0..FILE_BYTES_MAX]);
    // Most are short, and end with a page.
    let near =
        (0..FILE_BYTES_MAX, 1..6_u64).prop_map(|(from, pages)| (from, (from / PAGE_BYTES + pages) * PAGE_BYTES));
    prop_oneof![
        4 => near.prop_map(|(from, to)| Step::Write { from, to }),
        2 => write.prop_map(|(one, other)| Step::Write { from: one.min(other), to: one.max(other) }),
        1 => (0..FILE_BYTES_MAX).prop_map(Step::Truncate),
        1 => (0..FILE_BYTES_MAX).prop_map(Step::Preallocate),
        1 => Just(Step::Rename),
    ]
}

fn place(offset: u64) -> usize {
    usize::try_from(offset).unwrap()
}

proptest! {
    #[test]
    fn a_file_holds_what_was_written_whichever_way_it_went(steps in vec(step(), 1..16)) {
        let folder = tempfile::tempdir().unwrap();
        let disk = RealDisk::new(folder.path(), Writes::Direct).unwrap();
        let (mut name, mut model) = ("0".to_owned(), Vec::new());
        let mut file = disk.create(&name).unwrap();
        for (nth, step) in (1_u8..).zip(&steps) {
            match *step {
                Step::Write { from, to } => {
                    file.write_at(from, &vec![nth; place(to - from)]).unwrap();
                    if from < to {
                        model.resize(model.len().max(place(to)), 0);
                        model[place(from)..place(to)].fill(nth);
                    }
                }
                Step::Truncate(end) => {
                    file.truncate(end).unwrap();
                    model.resize(place(end), 0);
                }
                Step::Preallocate(end) => {
                    file.preallocate(end.max(model.len() as u64)).unwrap();
                    model.resize(model.len().max(place(end)), 0);
                }
                Step::Rename => {
                    let next = nth.to_string();
                    disk.rename(&name, &next).unwrap();
                    name = next;
                    file = disk.open(&name).unwrap();
                }
            }
            let mut found = vec![0xff; model.len() + 1];
            let count = file.read_at(0, &mut found).unwrap();
            prop_assert!(count == model.len() && found[..count] == model, "after step {nth}");
        }
    }
}

#[test]
fn what_was_cut_off_does_not_come_back_with_a_write_behind_it() {
    let folder = tempfile::tempdir().unwrap();
    let disk = RealDisk::new(folder.path(), Writes::Direct).unwrap();
    let file = disk.create("file").unwrap();
    file.write_at(0, &[1; 4096]).unwrap();
    file.truncate(100).unwrap();
    file.write_at(200, &[2; 3896]).unwrap();
    let mut found = [0xff; 4096];
    assert_eq!(file.read_at(0, &mut found).unwrap(), 4096);
    assert!(found == [[1; 100].as_slice(), &[0; 100], &[2; 3896]].concat()[..]);
}
