//! Batches of records: put together, and written and synced in a temporary folder.

use divan::Bencher;
use divan::counter::{BytesCount, ItemsCount};
use leveret_journal::{Batch, Log, Options, RealDisk, Writes};

fn main() {
    divan::main();
}

const OPTIONS: Options = Options { segment_bytes: 64 * 1024 * 1024, salt: [7; 16] };
const PAYLOAD: [u8; 1024] = [7; 1024];

fn fill(batch: &mut Batch, next: &mut u64, records: u64) {
    for _ in 0..records {
        batch.push(1, *next, |out| out.extend_from_slice(&PAYLOAD));
        *next += 1;
    }
}

/// With the checksum of each record, and without the disk.
#[divan::bench]
fn put_together(bencher: Bencher<'_, '_>) {
    const RECORDS: u64 = 1000;
    bencher
        .counter(ItemsCount::new(RECORDS))
        .counter(BytesCount::new(RECORDS * PAYLOAD.len() as u64))
        .with_inputs(Batch::default)
        .bench_refs(|batch| fill(batch, &mut 1, RECORDS));
}

/// With the disk, one write and one sync for all of them. Most of it is the sync.
#[divan::bench(args = [1, 100, 1000])]
fn append(bencher: Bencher<'_, '_>, records: u64) {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let disk = RealDisk::new(folder.path(), Writes::Direct).expect("a folder");
    let (mut log, _) = Log::open(std::sync::Arc::new(disk), OPTIONS, &mut |_| {}).expect("a journal");
    let (mut batch, mut next) = (Batch::default(), 1);
    bencher.counter(ItemsCount::new(records)).bench_local(|| {
        fill(&mut batch, &mut next, records);
        log.append(&mut batch).expect("the disk takes it");
    });
}
