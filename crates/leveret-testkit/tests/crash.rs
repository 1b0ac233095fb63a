//! Power cuts at every operation on the disk: a broker's virtual host and its journal, recovered and compared with
//! what was promised.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::collections::{BTreeMap, BTreeSet};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;

use leveret_journal::{Batch, Living, Log, Options, Record, Recovery};
use leveret_testkit::disk::{Fate, SECTOR_BYTES, SimDisk, Unsynced, chance, tries_everything};
use rand::Rng;
use rand::rngs::SmallRng;

const OPTIONS: Options = Options { segment_bytes: 2048, salt: *b"sixteen of bytes" };
const STREAMS: u32 = 2;

type Found = BTreeMap<u32, Vec<(u64, Vec<u8>)>>;

fn open(disk: &SimDisk) -> Result<(Log, Found, Recovery), leveret_journal::OpenError> {
    open_with(disk, OPTIONS)
}

fn open_with(disk: &SimDisk, options: Options) -> Result<(Log, Found, Recovery), leveret_journal::OpenError> {
    let mut found = Found::new();
    let mut each = |record: Record<'_>| {
        found.entry(record.stream).or_default().push((record.sequence, record.payload.to_vec()));
    };
    let (log, recovery) = Log::open(Arc::new(disk.clone()), options, &mut each)?;
    Ok((log, found, recovery))
}

/// What a workload does to the journal.
#[derive(Clone, Copy, Debug)]
enum Step {
    /// So many records of so many bytes, one batch.
    Append(u64, usize),
    /// A marker, before going idle.
    Mark,
    /// That it is stopped in good order.
    MarkEnd,
    /// The process ends and starts again.
    Reopen,
    /// A start needs nothing any more of what is there, but so many of the last records of each stream.
    Forget(u64),
    /// Of what a start does not read, only every record is needed whose sequence is a multiple of this.
    Sweep(u64),
    /// So many spare files are made ready, and as many old segments become some.
    Spare(usize),
    /// The same where there is room enough: then all old segments become some. Something that is too much is given back.
    SpareCalmly(usize),
}

use Step::{Append, Forget, Mark, MarkEnd, Reopen, Spare, SpareCalmly, Sweep};

/// Each is run as long as the disk works.
const WORKLOADS: &[(&str, &[Step])] = &[
    ("one record", &[Append(1, 10)]),
    ("one by one", &[Append(1, 10), Append(1, 700), Append(1, 0), Append(1, 33)]),
    ("group commit", &[Append(7, 30), Append(1, 10), Append(20, 20), Append(3, 100)]),
    ("segment roll", &[Append(4, 300), Append(4, 300), Append(4, 300), Append(1, 10)]),
    ("larger than a segment", &[Append(1, 10), Append(1, 6000), Append(2, 10)]),
    ("idle in between", &[Append(2, 50), Mark, Append(2, 50), Mark, Mark]),
    (
        "stops",
        &[
            Append(2, 50),
            MarkEnd,
            Reopen,
            Append(3, 400),
            Append(3, 400),
            Mark,
            MarkEnd,
            Append(2, 9),
            MarkEnd,
            Reopen,
            MarkEnd,
        ],
    ),
    ("restarts", &[Append(2, 50), Reopen, Append(2, 50), Mark, Reopen, Reopen, Append(1, 10)]),
    ("roll and restart", &[Append(3, 500), Append(3, 500), Reopen, Append(3, 500), Append(1, 9), Reopen]),
    ("forget", &[Append(4, 300), Append(4, 300), Forget(1), Append(2, 20), Forget(2), Append(1, 10)]),
    ("forget and restart", &[Append(8, 300), Forget(0), Append(2, 9), Reopen, Append(6, 300), Forget(1), Reopen]),
    ("remove", &[Append(8, 300), Append(8, 300), Forget(2), Sweep(1000), Append(8, 300), Forget(1), Sweep(1000)]),
    (
        "compact",
        &[Append(6, 300), Append(8, 300), Append(8, 300), Append(8, 300), Append(8, 300), Forget(2), Sweep(5)],
    ),
    (
        "compact again",
        &[
            Append(8, 300),
            Append(8, 300),
            Append(8, 300),
            Append(8, 300),
            Forget(1),
            Sweep(3),
            Append(8, 300),
            Append(8, 300),
            Append(8, 300),
            Reopen,
            Append(8, 300),
            Forget(1),
            Sweep(6),
            Append(1, 10),
        ],
    ),
    (
        "spares",
        &[Spare(2), Append(4, 300), Append(4, 300), Spare(3), Append(4, 300), Reopen, Append(4, 300), Spare(0)],
    ),
    (
        "reuse",
        &[
            Spare(3),
            Append(5, 300),
            Append(5, 300),
            Append(5, 300),
            Forget(2),
            Sweep(1000),
            Append(5, 300),
            Append(5, 300),
            Append(1, 10),
            Append(2, 1500),
            Mark,
            Append(8, 300),
            Forget(1),
            Sweep(1000),
            Reopen,
            Append(1, 10),
            Append(8, 300),
        ],
    ),
    (
        "compact and reuse",
        &[
            Spare(2),
            Append(6, 300),
            Append(8, 300),
            Append(8, 300),
            Append(8, 300),
            Forget(2),
            Sweep(5),
            Append(5, 300),
            Append(1, 10),
            Reopen,
            Append(2, 1500),
        ],
    ),
    (
        "compact and reuse, and give room back later",
        &[
            SpareCalmly(1),
            Append(4, 300),
            Append(4, 300),
            SpareCalmly(1),
            Append(4, 300),
            Append(4, 300),
            Forget(2),
            SpareCalmly(1),
            Sweep(5),
            Append(5, 300),
            SpareCalmly(1),
            Append(8, 300),
            Reopen,
            Append(2, 1500),
        ],
    ),
    // What becomes of segments that are hardly more than a header.
    (
        "reuse headers",
        &[
            Spare(3),
            Append(5, 300),
            Forget(1),
            Append(5, 300),
            Forget(1),
            Sweep(1000),
            Append(5, 300),
            Forget(1),
            Sweep(1000),
            Forget(0),
            Forget(0),
            Sweep(1000),
            Forget(0),
            Reopen,
            Forget(0),
            Append(1, 10),
        ],
    ),
    ("much", &[Append(20, 400), Append(30, 200), Mark, Append(40, 150), Reopen, Append(50, 100), Append(9, 900)]),
];

/// What was promised, and what was under way.
#[derive(Default)]
struct Promised {
    durable: Found,
    in_flight: Found,
    /// The first record of each stream that a start needs, as it was said last and the time before.
    needed_from: [BTreeMap<u32, u64>; 2],
    /// Of those before, the ones whose sequence is a multiple of this are still there.
    living: u64,
}

fn payload(stream: u32, sequence: u64, bytes: usize) -> Vec<u8> {
    (0..bytes as u64).map(|at| u8::try_from((sequence * 37 + at + u64::from(stream)) % 253).unwrap()).collect()
}

/// Runs a workload until it is done or the disk stops.
fn run(disk: &SimDisk, steps: &[Step]) -> Promised {
    let mut promised = Promised { living: 1, ..Promised::default() };
    let Ok((mut log, _, _)) = open(disk) else { return promised };
    let mut next = BTreeMap::from([(0, 1), (1, 1)]);
    for step in steps {
        match *step {
            Append(count, bytes) => {
                let mut batch = Batch::default();
                let mut records = Found::new();
                for nth in 0..count {
                    let stream = u32::try_from(nth).unwrap() % STREAMS;
                    let sequence = next[&stream];
                    next.insert(stream, sequence + 1);
                    let payload = payload(stream, sequence, bytes);
                    batch.push(stream, sequence, |out| out.extend_from_slice(&payload));
                    records.entry(stream).or_default().push((sequence, payload));
                }
                if log.append(&mut batch).is_err() {
                    promised.in_flight = records;
                    return promised;
                }
                for (stream, records) in records {
                    promised.durable.entry(stream).or_default().extend(records);
                }
            }
            Mark => {
                if log.mark().is_err() {
                    return promised;
                }
            }
            MarkEnd => {
                if log.mark_end().is_err() {
                    return promised;
                }
            }
            Forget(kept) => {
                let needed_from = next.iter().map(|(&stream, &next)| (stream, next - kept)).collect();
                promised.needed_from.swap(0, 1);
                promised.needed_from[0] = needed_from;
                if log.begin_replay_at(&promised.needed_from[0]).is_err() {
                    return promised;
                }
                promised.needed_from[1] = promised.needed_from[0].clone();
            }
            Sweep(multiple) => {
                let mut keeper = log.keeper();
                let mut living = Living::default();
                for stream in 0..STREAMS {
                    let all = (1..next[&stream]).filter(|sequence| sequence % multiple == 0);
                    keeper.note(&mut living, stream, all.map(|sequence| (sequence, 10)), 0);
                }
                promised.living = multiple;
                // It is tried again, and the journal goes on if it can.
                let _ = keeper.sweep(&living, &|| false);
            }
            Spare(count) => {
                let _ = log.spares().keep(count, count);
            }
            SpareCalmly(count) => {
                let _ = log.spares().keep_calmly(count, count).and_then(|_| log.spares().give_some_back());
            }
            Reopen => match open(disk) {
                Ok((reopened, _, _)) => log = reopened,
                Err(_) => return promised,
            },
        }
    }
    promised
}

/// Everything promised is there once and in order; of what was under way, all or nothing.
fn is_kept(promised: &Promised, found: &Found) -> bool {
    let mut with_in_flight = promised.durable.clone();
    for (stream, records) in &promised.in_flight {
        with_in_flight.entry(*stream).or_default().extend(records.iter().cloned());
    }
    promised.needed_from.iter().any(|from| {
        let needed = |records: &Found| {
            let mut records = records.clone();
            for (stream, records) in &mut records {
                records.retain(|(sequence, _)| from.get(stream).is_none_or(|from| sequence >= from));
            }
            records.retain(|_, records| !records.is_empty());
            records
        };
        *found == needed(&promised.durable) || *found == needed(&with_in_flight)
    })
}

/// What a start does not read is found all the same, if it is still needed.
fn is_found(promised: &Promised, log: &Log) -> Result<(), String> {
    let mut reader = log.reader();
    for (stream, records) in &promised.durable {
        for (sequence, payload) in records.iter().filter(|(sequence, _)| sequence % promised.living == 0) {
            match reader.read(*stream, *sequence) {
                Ok(read) if read == payload => {}
                Ok(_) => return Err(format!("record {sequence} of stream {stream} is another one")),
                Err(error) => return Err(format!("record {sequence} of stream {stream}: {error}")),
            }
        }
    }
    Ok(())
}

/// The fates of what is pending: every subset up to ten things, with some of the writes torn; samples above.
fn fates(pending: &[Unsynced], every_byte: bool, random: &mut SmallRng) -> Vec<Vec<Fate>> {
    let mut all = Vec::new();
    if pending.len() <= 10 {
        for subset in 0..1_u32 << pending.len() {
            let whole: Vec<_> =
                (0..pending.len()).map(|at| if subset >> at & 1 == 1 { Fate::Kept } else { Fate::Lost }).collect();
            for (at, &Unsynced { bytes, until_zeros }) in
                pending.iter().enumerate().filter(|&(at, write)| write.bytes > 1 && subset >> at & 1 == 1)
            {
                let sectors = (SECTOR_BYTES..bytes).step_by(SECTOR_BYTES);
                let step = if every_byte { 1 } else { until_zeros / 16 + 1 };
                let places = (1..until_zeros.min(bytes)).step_by(step);
                let places: BTreeSet<_> = places.chain(sectors).chain([bytes - 1]).collect();
                for torn in places {
                    let mut fates = whole.clone();
                    fates[at] = Fate::Torn(torn);
                    all.push(fates);
                }
            }
            all.push(whole);
        }
    } else {
        for _ in 0..1024 {
            let mut fate = |write: &Unsynced| match random.random_range(0..3) {
                0 => Fate::Lost,
                1 if write.bytes > 1 => Fate::Torn(random.random_range(1..write.bytes)),
                _ => Fate::Kept,
            };
            all.push(pending.iter().map(&mut fate).collect());
        }
    }
    all
}

fn hash(disk: &SimDisk) -> u64 {
    let mut hasher = DefaultHasher::new();
    disk.files().hash(&mut hasher);
    hasher.finish()
}

/// Stops a workload at every operation, tries every disk that may be found then, and hands each to `each`.
fn at_every_crash(steps: &[Step], lies: bool, mut each: impl FnMut(u64, &Promised, &SimDisk)) {
    let mut random = chance(11);
    // What a disk that lies has lost shows anywhere.
    let every_byte = tries_everything() && !lies;
    let whole = SimDisk::default();
    run(&whole, steps);
    for operation in 0..=whole.operations() {
        let disk = SimDisk::default();
        if lies {
            disk.lie();
        }
        disk.stop_at(operation);
        let promised = run(&disk, steps);
        for fates in fates(&disk.pending(), every_byte, &mut random) {
            each(operation, &promised, &disk.crash(&fates));
        }
    }
}

/// The journal grows until a start reads nothing that was found, and segments in which nothing lives are removed.
fn outlive(log: &mut Log, recovery: &Recovery) {
    let (mut batch, mut keeper, mut living) = (Batch::default(), log.keeper(), Living::default());
    let next = |stream: u32| recovery.streams.get(&stream).map_or(1, |last| last + 1);
    for stream in 0..STREAMS {
        batch.push(stream, next(stream), |_| {});
        keeper.note(&mut living, stream, (1..=next(stream)).map(|sequence| (sequence, 10)), 0);
    }
    log.append(&mut batch).unwrap();
    log.begin_replay_at(&(0..STREAMS).map(|stream| (stream, next(stream))).collect()).unwrap();
    keeper.sweep(&living, &|| true).unwrap();
}

#[test]
fn after_a_power_cut_at_any_operation_everything_promised_is_back_and_nothing_else() {
    let mut states = BTreeSet::new();
    for (name, steps) in WORKLOADS {
        let mut seen = BTreeSet::new();
        at_every_crash(steps, false, |operation, promised, found| {
            let state = hash(found);
            if !seen.insert((operation, state)) {
                return;
            }
            states.insert(state);
            let image = found.files();
            let (mut log, records, recovery) = open(found).unwrap();
            assert_eq!(is_found(promised, &log), Ok(()), "{name}, stopped at {operation}: {recovery:?}");
            let context = || format!("{name}, stopped at {operation}: {records:?}\n{recovery:?}");
            assert!(is_kept(promised, &records), "{}", context());
            assert_eq!(recovery.damage, [], "a power cut is no damage: {}", context());
            let checked = leveret_journal::check(&SimDisk::of(image.clone()), &mut |_| {}).unwrap();
            assert_eq!(checked.damage, [], "nor in what a start does not read: {}", context());
            // What was read once is read again, also after the power goes at once.
            let again = open(&found.crash(&[])).unwrap().1;
            assert_eq!(again, records, "a second start, {}", context());
            // It does not depend on segments that are removed later.
            outlive(&mut log, &recovery);
            assert_eq!(is_found(promised, &log), Ok(()), "{name}, long after it stopped at {operation}");
            let checked = leveret_journal::check(found, &mut |_| {}).unwrap();
            assert_eq!(checked.damage, [], "long after, {}", context());
            if seen.len() % 8 != 0 {
                return;
            }
            // Recovery itself is cut, again and again.
            let mut disk = SimDisk::of(image);
            for interrupted in 0..20 {
                disk.stop_at(interrupted % 9);
                let _ = open(&disk);
                let kept = if interrupted % 2 == 0 { Fate::Kept } else { Fate::Lost };
                disk = disk.crash(&vec![kept; disk.pending().len()]);
            }
            assert_eq!(open(&disk).unwrap().1, records, "after twenty cut recoveries, {}", context());
        });
        println!("{name}: {} states, each found after an operation", seen.len());
    }
    let states = states.len();
    println!("{states} distinct states");
    let least = if tries_everything() { 50_000 } else { 1_000 };
    assert!(states >= least, "only {states} states");
}

/// A process is killed, and what it had not synced is still there for the next one, which counts on it until the power goes.
#[test]
fn after_a_kill_at_any_operation_and_a_power_cut_in_the_next_start_nothing_is_missing() {
    let mut random = chance(17);
    let (mut tries, step) = (0, if tries_everything() { 1 } else { 7 });
    for (name, steps) in WORKLOADS {
        let whole = SimDisk::default();
        run(&whole, steps);
        for killed in (0..=whole.operations()).step_by(step) {
            for later in 1..=12 {
                let disk = SimDisk::default();
                disk.stop_at(killed);
                let promised = run(&disk, steps);
                disk.stop_at(disk.operations() + later);
                let _ = open(&disk);
                let mut fate = |p: f64| if random.random_bool(p) { Fate::Kept } else { Fate::Lost };
                for share in [0.0, 0.2, 0.5, 0.5, 0.8, 1.0] {
                    let fates: Vec<_> = disk.pending().iter().map(|_| fate(share)).collect();
                    let (log, read, recovery) = open(&disk.crash(&fates)).unwrap();
                    let context = || format!("{name}, killed at {killed}, {later} operations later: {recovery:?}");
                    assert_eq!(recovery.damage, [], "{}", context());
                    assert!(is_kept(&promised, &read), "{}: {read:?}", context());
                    assert_eq!(is_found(&promised, &log), Ok(()), "{}", context());
                    tries += 1;
                }
            }
        }
    }
    assert!(tries > 5000, "only {tries}");
}

#[test]
fn a_disk_that_lies_about_syncs_is_found_out() {
    let mut lost = 0;
    for (_, steps) in &WORKLOADS[..10] {
        at_every_crash(steps, true, |_, promised, found| {
            lost += u64::from(!open(found).is_ok_and(|(_, records, _)| is_kept(promised, &records)));
        });
    }
    assert!(lost > 100, "this test would find nothing: {lost}");
}

/// After a failed sync the cache of the operating system holds what the disk does not, and says that it is clean. What a
/// start reads from it, and tells clients of, must survive the next power cut all the same.
#[test]
fn a_start_after_a_failed_sync_makes_durable_what_it_reads() {
    let mut failures = 0;
    for (name, steps) in WORKLOADS {
        let whole = SimDisk::default();
        run(&whole, steps);
        for operation in 1..=whole.operations() {
            let disk = SimDisk::default();
            disk.fail_sync_at(operation);
            let promised = run(&disk, steps);
            if disk.failed_sync().is_none() {
                continue;
            }
            failures += 1;
            let (_, read, _) = open(&disk).unwrap();
            let context = || format!("{name}, the sync of operation {operation} failed");
            assert!(is_kept(&promised, &read), "{}: {read:?}", context());
            let (_, again, recovery) = open(&disk.crash(&[])).unwrap();
            assert_eq!(again, read, "{}", context());
            assert_eq!(recovery.damage, [], "{}", context());
        }
    }
    assert!(failures > 50, "only {failures} syncs failed");
}

/// Whoever's sync of the folder fails, names that others count on may never reach the disk.
#[test]
fn after_a_failed_sync_of_the_folder_nothing_is_promised_that_a_power_cut_would_take() {
    let mut failures = 0;
    for (name, steps) in WORKLOADS {
        // What a restart reads from the cache, no file system keeps after this.
        let steps: Vec<_> = steps.iter().copied().filter(|step| !matches!(step, Reopen)).collect();
        let whole = SimDisk::default();
        run(&whole, &steps);
        for operation in 1..=whole.operations() {
            let disk = SimDisk::default();
            disk.fail_folder_sync_at(operation);
            let promised = run(&disk, &steps);
            if disk.failed_sync().is_none() {
                continue;
            }
            failures += 1;
            let (log, read, recovery) = open(&disk.crash(&[])).unwrap();
            let context =
                || format!("{name}, the sync of the folder at operation {operation} failed: {recovery:?}");
            assert!(is_kept(&promised, &read), "{}: {read:?}", context());
            assert_eq!(is_found(&promised, &log), Ok(()), "{}", context());
            assert_eq!(recovery.damage, [], "{}", context());
        }
    }
    assert!(failures > 50, "only {failures} syncs failed");
}

/// A log of a hundred batches in several segments, 64 KiB altogether and all of it durable, and what is in it.
fn long_log() -> (BTreeMap<String, Vec<u8>>, Found) {
    let disk = SimDisk::default();
    let (mut log, ..) = open_with(&disk, LONG).unwrap();
    let (mut whole, mut next) = (Found::new(), 1);
    for nth in 0..100 {
        let mut batch = Batch::default();
        for sequence in next..next + 1 + nth % 4 {
            for stream in 0..STREAMS {
                let payload = payload(stream, sequence, usize::try_from(nth * 23 % 210).unwrap());
                batch.push(stream, sequence, |out| out.extend_from_slice(&payload));
                whole.entry(stream).or_default().push((sequence, payload));
            }
        }
        next += 1 + nth % 4;
        log.append(&mut batch).unwrap();
    }
    log.mark().unwrap();
    (disk.files(), whole)
}

const LONG: Options = Options { segment_bytes: 16 * 1024, ..OPTIONS };

fn is_part(found: &Found, whole: &Found) -> bool {
    found.iter().all(|(stream, records)| {
        let mut whole = whole[stream].iter();
        records.iter().all(|record| whole.any(|candidate| candidate == record))
    })
}

#[test]
fn a_log_that_is_cut_or_flipped_at_any_byte_never_gives_a_wrong_record_and_says_what_is_missing() {
    let (files, whole) = long_log();
    let count = |found: &Found| found.values().map(|records| records.len() as u64).sum::<u64>();
    let all = count(&whole);
    let used = |name: &str| files[name].iter().rposition(|&byte| byte != 0).map_or(0, |last| last + 1);
    let bytes: usize = files.keys().map(|name| used(name)).sum();
    assert!(bytes >= 64 * 1024 && files.len() >= 4, "{bytes} bytes in {} files", files.len());
    let last = files.keys().next_back().unwrap();
    let (mut cuts, mut flips) = (0, 0);
    let step = if tries_everything() { 1 } else { 13 };
    let opened = |name: &str, change: &dyn Fn(&mut Vec<u8>)| {
        let mut files = files.clone();
        change(files.get_mut(name).unwrap());
        let (_, found, recovery) = open_with(&SimDisk::of(files), LONG).unwrap();
        assert!(is_part(&found, &whole), "a wrong record: {recovery:?}");
        (count(&found), recovery)
    };
    for name in files.keys().filter(|name| name.ends_with(".segment")) {
        for at in (0..used(name)).step_by(step) {
            let (found, recovery) = opened(name, &|bytes| bytes.truncate(at));
            let missing = recovery.records_missing();
            assert_eq!(recovery.cut, None, "{name} cut to {at}: what a crash cannot have done is taken for torn");
            assert!(!recovery.damage.is_empty() && found + missing >= all, "{name} cut to {at}: {recovery:?}");
            // Of the last segment nothing tells how long it was.
            assert!(name == last || found + missing == all, "{name} cut to {at}: {found} of {all}, {recovery:?}");
            cuts += 1;
            let (found, recovery) = opened(name, &|bytes| bytes[at] ^= 0x10);
            let missing = recovery.records_missing();
            assert_eq!(found + missing, all, "{name} flipped at {at}: {recovery:?}");
            assert!(recovery.cut.is_none() || found == all, "{name} flipped at {at}: {recovery:?}");
            flips += 1;
        }
    }
    println!("{cuts} cuts, {flips} flips");
}
