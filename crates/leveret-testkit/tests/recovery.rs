//! Power cuts at every operation on the disk under a virtual host: what is recovered is what the changes that are durable
//! come to, wherever reading begins, and every message that is left has its body.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::collections::{BTreeMap, BTreeSet};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;
use std::time::Duration;

use leveret_amqp::ShortStr;
use leveret_broker::change::PageEntry;
use leveret_broker::names::VhostName;
use leveret_broker::vhost::apply::ApplyError;
use leveret_broker::vhost::checkpoint::Checkpoint;
use leveret_broker::{Change, Effects, JournalPosition, Moment, VirtualHost};
use leveret_journal::{Batch, Living, Log, Options, Record, Recovery};
use leveret_testkit::disk::{SimDisk, chance, fates};
use leveret_testkit::{Broker, Eviction, Variation, continue_script, run_script};

const OPTIONS: Options = Options { segment_bytes: 2048, salt: *b"sixteen of bytes" };
const STREAM: u32 = 1;
/// Behind all that is done.
const NOW: Moment = Moment { monotonic: Duration::from_secs(2000), wall: Duration::from_secs(1_790_001_001) };

const BEGINNING: &str = "
    C: queue.declare queue='q' durable
    S: queue.declare-ok 'q' 0 0
    C: queue.declare queue='r' durable
    S: queue.declare-ok 'r' 0 0
    C: exchange.declare exchange='fan' type='fanout' durable
    S: exchange.declare-ok
    C: queue.bind queue='q' exchange='fan'
    S: queue.bind-ok
    C: queue.bind queue='r' exchange='fan'
    S: queue.bind-ok
    C: queue.declare queue='dead' durable
    S: queue.declare-ok 'dead' 0 0
    C: queue.declare queue='short' durable arguments={x-max-length=2 x-max-length-bytes=30 x-dead-letter-exchange='' x-dead-letter-routing-key='dead'}
    S: queue.declare-ok 'short' 0 0
    C: queue.declare queue='counted' durable arguments={x-queue-type='quorum' x-delivery-limit=1 x-dead-letter-exchange='' x-dead-letter-routing-key='dead'}
    S: queue.declare-ok 'counted' 0 0
    C: exchange.declare exchange='later' type='x-delayed-message' durable arguments={x-delayed-type='fanout'}
    S: exchange.declare-ok
    C: queue.bind queue='dead' exchange='later'
    S: queue.bind-ok
    Cb: tx.select
    Sb: tx.select-ok
    ";

const PUBLISH: &str =
    "C: basic.publish routing-key='q' delivery-mode=2 body='0123456789012345678901234567890123456789'";
const EXPIRING: &str = "C: basic.publish routing-key='q' delivery-mode=2 expiration='60000' body='passing'";
const FAN_OUT: &str = "C: basic.publish exchange='fan' delivery-mode=2 body='to both'";
const ONE_OF: &str = "C: basic.publish exchange='one' routing-key='k' delivery-mode=2 body='to one'";
const TO_KEEP: &str = "C: basic.publish exchange='kept' delivery-mode=2 body='kept'";
/// To a queue that holds two messages and sends the others on; each has a body of its own.
const TO_SHORT: &str = "to short";
/// Takes a message from there and rejects it.
const REJECT: &str = "Cd: basic.get queue='short'\nCd: basic.nack multiple";
/// To a queue that counts how often a message came back, and knows priorities.
const TO_COUNTED: &str = "to counted";
/// Takes a message from there and gives it back as failed: what has failed twice goes on.
const FAIL: &str = "fail";
const TO_SHORT_IN_TRANSACTION: &str = "to short in transaction";
/// To an exchange that keeps it for some seconds; each has a body of its own.
const LATER: &str = "later";
const LATER_IN_TRANSACTION: &str = "later in transaction";
/// There is nothing to take from this one when it goes.
const OTHER_EXCHANGE: &str = "
    C: exchange.declare exchange='gone' type='x-delayed-message' durable arguments={x-delayed-type='topic'}
    C: basic.publish exchange='gone' headers={x-delay=1000} delivery-mode=2 body='goes with it'";
const GET: &str = "C: basic.get queue='q'";
const TRANSACTION: &str = "
    Cb: basic.publish routing-key='q' delivery-mode=2 body='one of two'
    Cb: basic.publish routing-key='r' delivery-mode=2 body='two of two'
    Cb: tx.commit";
const CHECKPOINT: &str = "checkpoint";

/// As many messages as three pages of an index hold, and some.
const MANY: &str = "many";
const STEP: &str = "checkpoint step";

/// Each line, or lines, is one batch of the journal.
#[rustfmt::skip]
const WORK: &[&str] = &[
    PUBLISH, FAN_OUT, PUBLISH, EXPIRING, GET, GET, "C: basic.ack delivery-tag=1", TRANSACTION, CHECKPOINT,
    PUBLISH, FAN_OUT, GET, GET, "C: basic.ack delivery-tag=4 multiple", PUBLISH, CHECKPOINT,
    FAN_OUT, TRANSACTION, "C: queue.purge queue='r'", PUBLISH, FAN_OUT,
    "C: exchange.declare exchange='extra' type='topic' durable",
    "C: exchange.bind destination='extra' source='fan' routing-key='k'",
    "C: queue.bind queue='q' exchange='extra' routing-key='a.#'", CHECKPOINT,
    "C: queue.delete queue='r'", "C: queue.declare queue='r' durable", "C: queue.bind queue='r' exchange='fan'",
    FAN_OUT, "C: queue.unbind queue='q' exchange='fan'", FAN_OUT, GET, STEP, STEP, PUBLISH,
    "C: basic.nack delivery-tag=5 requeue", STEP, TRANSACTION, CHECKPOINT,
    "C: exchange.delete exchange='extra'", FAN_OUT, CHECKPOINT,
    // Queues that are walked in several steps, and change meanwhile.
    MANY, GET, GET, STEP, STEP, "C: basic.ack delivery-tag=6", PUBLISH, STEP, "C: basic.ack delivery-tag=7", CHECKPOINT,
    STEP, STEP, STEP, "C: queue.purge queue='q'", PUBLISH, CHECKPOINT,
    MANY, STEP, STEP, "C: queue.delete queue='q'", "C: queue.declare queue='q' durable", PUBLISH, CHECKPOINT,
    "C: queue.purge queue='q'", CHECKPOINT, FAN_OUT,
    // Exchanges that pick one of many and that give a new binding what they have kept.
    "C: exchange.declare exchange='one' type='x-consistent-hash' durable", ONE_OF,
    "C: queue.bind queue='q' exchange='one' routing-key='3'", ONE_OF, STEP,
    "C: exchange.declare exchange='kept' type='x-recent-history' durable", TO_KEEP, TO_KEEP,
    "C: queue.bind queue='r' exchange='one' routing-key='1'", "C: queue.bind queue='r' exchange='kept'", STEP, STEP, ONE_OF,
    TO_KEEP, CHECKPOINT, "C: queue.unbind queue='q' exchange='one' routing-key='3'", ONE_OF, CHECKPOINT,
];

/// Dead letters, dropped and rejected, with checkpoints in between.
#[rustfmt::skip]
const DEAD_LETTERS: &[&str] = &[
    TO_SHORT, TO_SHORT, TO_SHORT, TO_SHORT, STEP, REJECT, TO_SHORT, STEP, STEP, REJECT, STEP, REJECT, CHECKPOINT,
    TO_SHORT, TO_SHORT_IN_TRANSACTION, STEP, TO_SHORT, CHECKPOINT, TO_SHORT, STEP, REJECT, REJECT, CHECKPOINT,
    TO_COUNTED, TO_COUNTED, TO_COUNTED, FAIL, STEP, TO_COUNTED, FAIL, STEP, STEP, FAIL, CHECKPOINT, TO_COUNTED, FAIL, STEP,
    FAIL, STEP, STEP, FAIL, CHECKPOINT, CHECKPOINT,
];

/// Policies for the queue that sends others on, set, changed and cleared before, in and behind checkpoints.
#[rustfmt::skip]
const POLICIES: &[&str] = &[
    TO_SHORT, TO_SHORT, "set policy 'limit' pattern='^short$' definition={max-length=1}", STEP, TO_SHORT,
    "set policy 'more' pattern='^short$' priority=1 definition={max-length=2}", STEP, STEP, TO_SHORT, TO_SHORT,
    "set operator policy 'limit' pattern='^short$' definition={max-length=1 max-length-bytes=20}", CHECKPOINT,
    "clear policy 'limit'", STEP, TO_SHORT, "clear policy 'more'", STEP, STEP, REJECT, CHECKPOINT,
    "set policy 'limit' pattern='^r$' definition={max-length=1000}", TO_SHORT, "clear operator policy 'limit'", CHECKPOINT,
    "set policy 'limit' pattern='^short$' definition={max-length=0}", CHECKPOINT, "clear policy 'limit'",
];

/// Messages that wait in an exchange, with checkpoints in between.
#[rustfmt::skip]
const DELAYED: &[&str] = &[
    LATER, LATER, OTHER_EXCHANGE, STEP, LATER, "wait 1s", STEP, STEP, LATER, CHECKPOINT, "wait 1s", LATER_IN_TRANSACTION,
    STEP, LATER, "wait 2s", STEP, OTHER_EXCHANGE, LATER, CHECKPOINT, STEP, "C: exchange.delete exchange='gone'", STEP, LATER,
    STEP, "wait 1s", CHECKPOINT, OTHER_EXCHANGE, LATER, STEP, STEP, "C: exchange.delete exchange='gone'", "wait 2s",
    CHECKPOINT, LATER, LATER_IN_TRANSACTION, CHECKPOINT, "wait 5s",
];

/// What the thread that writes a journal is asked to do.
enum Action {
    Append(Vec<(JournalPosition, Vec<u8>)>),
    BeginReplayAt(u64),
    /// Only these are needed any more.
    Sweep(Vec<u64>),
}

fn decode(record: &[u8]) -> Change {
    Change::decode(record).unwrap()
}

/// What the broker journals while it does this work: as few batches as possible, or as many.
fn actions(work: &[&[&str]], variation: Variation) -> Vec<Action> {
    let mut broker = Broker::new(variation);
    let (mut published, mut failed) = (0, 0);
    run_script(&mut broker, BEGINNING).unwrap();
    let (mut actions, mut taken, mut complete) = (Vec::new(), 0, 0);
    for step in [""].iter().chain(work.iter().copied().flatten()) {
        let mut publish = |connection: char, to: &str| {
            published += 1;
            let (priority, delay) = (published % 3 * 10, 3000 - published % 3 * 900);
            format!(
                "C{connection}: basic.publish {to} delivery-mode=2 priority={priority} headers={{x-delay={delay}}} body='number {published:03}'"
            )
        };
        let script = match *step {
            MANY => vec![PUBLISH; 800].join("\n"),
            TO_SHORT => publish('d', "routing-key='short'"),
            TO_SHORT_IN_TRANSACTION => {
                let [one, two, three] = std::array::from_fn(|_| publish('b', "routing-key='short'"));
                [one, two, three, "Cb: tx.commit".into()].join("\n")
            }
            LATER => publish('d', "exchange='later'"),
            LATER_IN_TRANSACTION => {
                let [one, two] = std::array::from_fn(|_| publish('b', "exchange='later'"));
                [one, two, "Cb: tx.commit".into()].join("\n")
            }
            TO_COUNTED => publish('d', "routing-key='counted'"),
            FAIL => {
                failed += 1;
                format!("Ce: basic.get queue='counted'\nCe: basic.reject delivery-tag={failed} requeue")
            }
            step => step.to_owned(),
        };
        continue_script(&mut broker, &script).unwrap();
        let new = broker.journal()[taken..].to_vec();
        taken += new.len();
        if variation.eviction == Eviction::Never {
            actions.extend((!new.is_empty()).then_some(Action::Append(new)));
        } else {
            let ends = broker.whole_positions();
            let batches = new.chunk_by(|(position, _), _| ends.binary_search(position).is_err());
            actions.extend(batches.map(|batch| Action::Append(batch.to_vec())));
        }
        let checkpoints = broker.checkpoints();
        if checkpoints.len() > complete {
            complete = checkpoints.len();
            if let Some(before) = complete.checked_sub(2) {
                actions.push(Action::BeginReplayAt(checkpoints[before].0.0));
                let (begun, ended) = checkpoints[complete - 1];
                let parts = broker.journal().iter().filter(|(at, _)| (begun..=ended).contains(at));
                let living = parts.filter_map(|(_, record)| match decode(record) {
                    Change::QueuePage { entries, .. } => Some(entries),
                    _ => None,
                });
                let living = living.flat_map(|page| page.iter().map(|entry| entry.message.0).collect::<Vec<_>>());
                actions.push(Action::Sweep(living.collect()));
            }
        }
    }
    assert!(complete >= 5);
    actions
}

/// Does it until it is done or the disk stops; the last position that was promised, and whether segments were rewritten.
fn run(disk: &SimDisk, actions: &[Action]) -> (u64, usize) {
    let (mut durable, mut swept) = (0, 0);
    let Ok((mut log, _)) = Log::open(Arc::new(disk.clone()), OPTIONS, &mut |_| {}) else { return (durable, swept) };
    let mut keeper = log.keeper();
    for action in actions {
        let is_done = match action {
            Action::Append(records) => {
                let mut batch = Batch::default();
                for (position, record) in records {
                    batch.push(STREAM, position.0, |out| out.extend_from_slice(record));
                }
                let result = log.append(&mut batch);
                if result.is_ok() {
                    durable = records.last().unwrap().0.0;
                }
                result.is_ok()
            }
            Action::BeginReplayAt(sequence) => {
                let from = BTreeMap::from([(STREAM, *sequence)]);
                // Files that are ready, and removed ones among them, are what the next segments are made of.
                log.spares().keep(2, 3).is_ok() && log.begin_replay_at(&from).is_ok()
            }
            Action::Sweep(needed) => {
                let mut living = Living::default();
                keeper.note(&mut living, STREAM, needed.iter().map(|&sequence| (sequence, 100)), 17);
                let result = keeper.sweep(&living, &|| false);
                swept += result.as_ref().map_or(0, |swept| swept.compacted + swept.removed);
                result.is_ok()
            }
        };
        if !is_done {
            break;
        }
    }
    (durable, swept)
}

/// The body of a message that has one of its own.
fn number_of(record: &[u8]) -> Option<String> {
    let Change::MessageEnqueued { message, .. } = decode(record) else { return None };
    let body = String::from_utf8_lossy(message.body()).into_owned();
    body.starts_with("number").then_some(body)
}

/// All that is durable of a virtual host, in an order of its own.
#[derive(Debug, PartialEq, Eq)]
struct Contents {
    messages: Vec<(u64, PageEntry)>,
    rest: BTreeSet<Vec<u8>>,
}

fn contents(mut vhost: VirtualHost) -> Contents {
    vhost.end_recovery();
    let (mut checkpoint, mut effects) = (Checkpoint::default(), Effects::default());
    while vhost.handle_checkpoint(NOW, &mut checkpoint, u32::MAX, &mut effects) {}
    let (mut messages, mut rest) = (Vec::new(), BTreeSet::new());
    for change in effects.changes {
        match change {
            Change::QueuePage { queue, entries } => messages.extend(entries.iter().map(|entry| (queue.0, entry))),
            Change::CheckpointEnded { .. } => {}
            change => {
                let mut bytes = Vec::new();
                change.encode(&mut bytes);
                rest.insert(bytes);
            }
        }
    }
    Contents { messages, rest }
}

fn empty() -> VirtualHost {
    VirtualHost::new(VhostName::new(ShortStr::truncated("/")), [7; 32])
}

fn recover(disk: &SimDisk) -> (Log, VirtualHost, Recovery) {
    let mut vhost = empty();
    let mut each = |record: Record<'_>| {
        vhost.apply(NOW, JournalPosition(record.sequence), decode(record.payload)).unwrap();
    };
    let (log, recovery) = Log::open(Arc::new(disk.clone()), OPTIONS, &mut each).unwrap();
    (log, vhost, recovery)
}

#[test]
fn after_a_power_cut_at_any_operation_a_virtual_host_is_what_its_durable_changes_come_to() {
    check_all_power_cuts(&actions(&[WORK, DEAD_LETTERS, POLICIES, DELAYED], Variation::ALL[0]));
}

/// Dead letters are condemned first, and go on when their bodies have been fetched.
#[test]
fn the_same_where_all_bodies_have_to_be_fetched_and_every_hold_is_a_batch() {
    let variation = Variation { eviction: Eviction::Always, ..Variation::ALL[0] };
    let actions = actions(&[DEAD_LETTERS, POLICIES, DELAYED, DEAD_LETTERS], variation);
    let condemned = |action: &Action| match action {
        Action::Append(records) => {
            records.iter().any(|(_, record)| matches!(decode(record), Change::MessagesCondemned { .. }))
        }
        Action::BeginReplayAt(_) | Action::Sweep(_) => false,
    };
    assert!(actions.iter().filter(|action| condemned(action)).count() > 5);
    check_all_power_cuts(&actions);
}

fn check_all_power_cuts(actions: &[Action]) {
    let changes: Vec<_> = actions
        .iter()
        .flat_map(|action| if let Action::Append(records) = action { records.clone() } else { Vec::new() })
        .collect();
    let folded = |until: u64| {
        let mut vhost = empty();
        for (position, record) in changes.iter().filter(|(position, _)| position.0 <= until) {
            // Without what checkpoints say: it must be true anyhow.
            let result = match decode(record) {
                Change::CheckpointBegun { .. }
                | Change::QueuePage { .. }
                | Change::QueueRestated { .. }
                | Change::DelayQueueRestated { .. }
                | Change::LevelRestated { .. }
                | Change::CheckpointEnded { .. } => {
                    vhost.skip(*position);
                    Ok(())
                }
                change => vhost.apply(NOW, *position, change),
            };
            assert!(matches!(result, Ok(()) | Err(ApplyError::Exists(_))), "{result:?}");
        }
        contents(vhost)
    };
    let expected: BTreeMap<u64, Contents> =
        (0..=changes.len() as u64).map(|until| (until, folded(until))).collect();
    let whole = SimDisk::default();
    let (_, swept) = run(&whole, actions);
    assert!(swept > 3, "only {swept} segments were removed or rewritten");
    let (mut seen, mut random) = (BTreeSet::new(), chance(5));
    let mut begun_later = 0;
    for operation in 0..=whole.operations() {
        let disk = SimDisk::default();
        disk.stop_at(operation);
        let (durable, _) = run(&disk, actions);
        for fates in fates(&disk.pending(), &mut random) {
            let found = disk.crash(&fates);
            let mut hasher = DefaultHasher::new();
            found.files().hash(&mut hasher);
            if !seen.insert((operation, hasher.finish())) {
                continue;
            }
            let (log, vhost, recovery) = recover(&found);
            let position = vhost.position().0;
            assert!(position >= durable, "{position} of {durable} changes, stopped at {operation}");
            assert_eq!(recovery.damage, [], "stopped at {operation}");
            begun_later += u64::from(recovery.records < position);
            let contents = contents(vhost);
            assert_eq!(contents, expected[&position], "change {position}, stopped at {operation}: {recovery:?}");
            let mut reader = log.reader();
            let mut numbered: Vec<String> = Vec::new();
            for (queue, entry) in &contents.messages {
                let at = usize::try_from(entry.message.0).unwrap() - 1;
                let read = reader.read(STREAM, entry.message.0);
                let read = read.unwrap_or_else(|error| panic!("queue {queue}, stopped at {operation}: {error}"));
                assert_eq!(read, changes[at].1, "message {} is another one", entry.message.0);
                numbered.extend(number_of(read));
            }
            // Whatever was published to these queues lies there or among the dead letters, and nowhere twice.
            numbered.sort();
            let published: BTreeSet<_> = changes
                .iter()
                .filter(|(at, _)| at.0 <= position)
                .filter_map(|(_, record)| number_of(record))
                .collect();
            assert_eq!(numbered, published.into_iter().collect::<Vec<_>>(), "change {position}");
        }
    }
    println!("{} distinct states, {begun_later} of them read from a checkpoint", seen.len());
    assert!(seen.len() > 1000 && begun_later > 300, "{} states, {begun_later} from a checkpoint", seen.len());
}
