//! Reading a data folder back: the log goes through a [`Fold`], and what was found is reported.

use std::collections::BTreeMap;
use std::fmt;
use std::ops::RangeInclusive;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use leveret_broker::change::NodeChange;
use leveret_broker::names::VhostName;
use leveret_broker::node::Node;
use leveret_broker::node::recovery::{Faults, Fold, Folded, NODE_STREAM};
use leveret_broker::{Change, JournalPosition, Moment};
use leveret_journal::{
    Batch, Cut, Damage, Doubt, Extent, Log, LogError, Missing, OpenError, Options, Outlook, ReadError, Reader,
    RealDisk, Record, Recovery, Writes, look_ahead,
};
use roaring::RoaringTreemap;

use crate::data_dir::DataDirError;
use crate::limits::RECORDS_BETWEEN_LOOKS;

/// How often a long recovery says how far it is.
const PROGRESS_EVERY: Duration = Duration::from_secs(1);

/// The target of the line in the log that says how far a long recovery is.
pub const PROGRESS_LINE: &str = "leveret_server::recovery::line";

/// The target of an event on the level `TRACE` that goes with each such line and has the fields `read` and `all`, in bytes. One
/// more, with both the same, says that there are no more.
pub const PROGRESS: &str = "leveret_server::recovery::progress";

/// What a record takes in the journal beside its payload, about.
const RECORD_OVERHEAD_BYTES: usize = 24;

/// How far a recovery is.
struct Progress {
    /// Bytes of the files that are read.
    all: u64,
    read: u64,
    /// When it was said last, counted from the beginning; never, if that is 0.
    said: Duration,
}

impl Progress {
    /// Says it, unless it was said a moment ago.
    fn say(&mut self, changes: u64, elapsed: Duration) {
        if elapsed < self.said + PROGRESS_EVERY {
            return;
        }
        self.said = elapsed;
        tracing::info!(target: PROGRESS_LINE, "reading the journal: {changes} changes in {elapsed:.0?}");
        let (all, read) = (self.all, self.read.min(self.all.saturating_sub(1)));
        tracing::trace!(target: PROGRESS, read, all);
    }

    fn end(&self) {
        if self.said > Duration::ZERO {
            let all = self.all;
            tracing::trace!(target: PROGRESS, read = all, all);
        }
    }
}

/// Places where segments are missing that a start looks at, as it may have to read one segment for each.
const DOUBTS_AT_START_MAX: usize = 16;

/// A journal that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum JournalError {
    /// It cannot be read.
    #[error("the journal in {folder} cannot be opened: {error}")]
    Open {
        /// The data folder.
        folder: String,
        /// Why.
        error: OpenError,
    },
    /// It cannot be written.
    #[error("the journal in {folder} cannot be begun: {error}")]
    Write {
        /// The data folder.
        folder: String,
        /// Why.
        error: LogError,
    },
}

/// What a folder held.
pub(crate) struct Recovered {
    pub(crate) log: Log,
    /// Bytes that were read.
    pub(crate) bytes: u64,
    /// What the journal came to.
    pub(crate) folded: Folded,
}

/// What may be in segments that are not there, by stream.
#[derive(Default)]
pub(crate) struct Doubts(BTreeMap<u32, Vec<Doubted>>);

/// Messages of one stream that may have been in segments that are not there.
struct Doubted {
    doubt: Doubt,
    /// Those that lie in queues by the last checkpoint that is complete: nothing that one names has been taken from the disk.
    living: RoaringTreemap,
    /// By the one that is being read.
    named: RoaringTreemap,
}

impl Doubts {
    /// Looks for messages where headers leave a doubt.
    pub(crate) fn new(doubts: Vec<Doubt>) -> Self {
        let mut all = BTreeMap::<_, Vec<_>>::new();
        for doubt in doubts {
            let (living, named) = (RoaringTreemap::new(), RoaringTreemap::new());
            all.entry(doubt.stream).or_default().push(Doubted { doubt, living, named });
        }
        Doubts(all)
    }

    /// Takes down the messages of a checkpoint of which nobody knows yet whether they are there.
    fn note(&mut self, stream: u32, change: &Change) {
        let Some(doubted) = self.0.get_mut(&stream) else { return };
        if let Change::QueuePage { entries, .. } = change {
            let is_apart = |messages: RangeInclusive<JournalPosition>| {
                let at = doubted.partition_point(|doubted| *doubted.doubt.sequences.end() < messages.start().0);
                doubted.get(at).is_none_or(|doubted| *doubted.doubt.sequences.start() > messages.end().0)
            };
            if entries.messages().is_some_and(is_apart) {
                return;
            }
            for entry in entries.iter() {
                let message = entry.message.0;
                let at = doubted.partition_point(|doubted| *doubted.doubt.sequences.end() < message);
                if let Some(doubted) = doubted.get_mut(at)
                    && doubted.doubt.sequences.contains(&message)
                {
                    doubted.named.insert(message);
                }
            }
        } else if matches!(change, Change::CheckpointBegun { .. }) {
            for doubted in doubted {
                doubted.named.clear();
            }
        } else if matches!(change, Change::CheckpointEnded { .. }) {
            for doubted in doubted {
                doubted.living = std::mem::take(&mut doubted.named);
            }
        }
    }

    /// Segments that are missing with messages that lie in queues: their names, and how many messages. Looks at no more
    /// places than `most`.
    pub(crate) fn missing_messages(&self, node: &Node, reader: &mut Reader, most: usize) -> Vec<(String, u64)> {
        let mut missing = Vec::new();
        // Whatever is missing of a virtual host that is gone, nobody misses.
        let streams = node.vhosts().values().filter_map(|vhost| self.0.get(&vhost.stream));
        let all = streams.flatten().filter(|doubted| !doubted.living.is_empty());
        for Doubted { doubt, living, .. } in all.take(most) {
            let mut is_missing =
                |sequence| matches!(reader.read(doubt.stream, sequence), Err(ReadError::Unknown { .. }));
            if !living.max().is_some_and(&mut is_missing) {
                continue;
            }
            // All behind the first one that is.
            let (mut from, mut to) = (0, living.len() - 1);
            while from < to {
                let middle = from + (to - from) / 2;
                if living.select(middle).is_some_and(&mut is_missing) {
                    to = middle;
                } else {
                    from = middle + 1;
                }
            }
            missing.push((doubt.files.clone(), living.len() - from));
        }
        reader.rest();
        missing
    }
}

/// Folds a record of the log.
pub(crate) fn take(fold: &mut Fold, doubts: &mut Doubts, now: Moment, record: &Record<'_>) {
    let Record { stream, sequence, payload, .. } = *record;
    fold.take(now, stream, sequence, payload, &mut |change| doubts.note(stream, change));
}

/// Reads the journal of a folder. A new one begins with a virtual host of this name, and with what `begin` says of a node that
/// has none of its users yet. Queues take about so many bytes of memory at most, unless what they must know of their messages
/// is more.
pub(crate) fn recover(
    folder: &Path,
    options: Options,
    memory: usize,
    now: Moment,
    first: &VhostName,
    begin: &dyn Fn(&Node) -> Vec<NodeChange>,
) -> Result<Recovered, DataDirError> {
    let folder_name = folder.display().to_string();
    let disk = RealDisk::new(folder, Writes::Direct)
        .map_err(|error| DataDirError::Unusable { folder: folder.into(), error })?;
    let open_error = |error| DataDirError::Journal(JournalError::Open { folder: folder_name.clone(), error });
    let mut fold = Fold::new(Some(first.clone()), rand::random);
    let Outlook { bytes: all, doubts } = look_ahead(&disk).map_err(open_error)?;
    let mut doubts = Doubts::new(doubts);
    let started = Instant::now();
    let mut progress = Progress { all, read: 0, said: Duration::ZERO };
    let opened = Log::open(Arc::new(disk), options, &mut |record| {
        progress.read += (record.payload.len() + RECORD_OVERHEAD_BYTES) as u64;
        take(&mut fold, &mut doubts, now, &record);
        if fold.records().is_multiple_of(RECORDS_BETWEEN_LOOKS) {
            fold.keep_below(memory);
            progress.say(fold.records(), started.elapsed());
        }
    });
    progress.end();
    let (mut log, recovery) = opened.map_err(open_error)?;
    fold.end(missing(&recovery), &recovery.streams);
    let missing = doubts.missing_messages(fold.node(), &mut log.reader(), DOUBTS_AT_START_MAX);
    report(&recovery, fold.faults(), &missing, started.elapsed());
    let mut batch = Batch::default();
    if !fold.node().is_initialized() {
        let mut changes = begin(fold.node());
        if is_something_missing(&recovery, fold.faults()) {
            let count = changes.len();
            changes.retain(|change| matches!(change, NodeChange::VhostAdded { .. }));
            if changes.len() < count {
                tracing::error!(
                    "there is no user, and one may be among what is missing: so the first user is not made again. \
                     `leveret add user` makes one, on this machine"
                );
            }
        }
        for change in changes {
            match fold.push(change.clone()) {
                Ok(sequence) => batch.push(NODE_STREAM, sequence, |out| change.encode(out)),
                Err(fault) => tracing::error!("the first user cannot be made: {fault}"),
            }
        }
    }
    log.append(&mut batch)
        .map_err(|error| DataDirError::Journal(JournalError::Write { folder: folder_name, error }))?;
    Ok(Recovered { log, bytes: recovery.bytes, folded: fold.finish(recovery.streams.into_keys()) })
}

/// Whether anything may be missing that was there once.
fn is_something_missing(recovery: &Recovery, faults: &Faults) -> bool {
    let is_damaged = recovery.damage.iter().any(|damage| !is_harmless(damage));
    is_damaged || !recovery.noted.is_empty() || faults.set_aside > 0
}

/// How many records are missing, at most, whose numbers are not to be given again.
pub(crate) fn missing(recovery: &Recovery) -> u64 {
    // A new journal gives its numbers a new secret.
    if recovery.is_new { 0 } else { recovery.numbers_missing() }
}

/// For example `1 segment`.
pub(crate) fn counted(count: u64, thing: &str) -> String {
    format!("{count} {thing}{}", if count == 1 { "" } else { "s" })
}

/// Changes that are set aside, as the log and `leveret check` name them.
pub(crate) fn misfits(count: u64) -> String {
    match count {
        1 => "1 change does not fit to those before it".to_owned(),
        _ => format!("{count} changes do not fit to those before them"),
    }
}

/// Says in the log what was found, as loudly as it deserves.
fn report(recovery: &Recovery, faults: &Faults, missing: &[(String, u64)], took: Duration) {
    if !recovery.is_new {
        let Recovery { records, segments, .. } = recovery;
        let (changes, segments) = (counted(*records, "change"), counted(*segments, "segment"));
        tracing::info!("read the journal: {changes} in {segments}, {took:.1?}");
    }
    if let Some(Cut { file, offset, bytes, set_aside }) = &recovery.cut {
        let copied = match set_aside {
            Some(name) => format!("a copy of {} from there on is in {name}", counted(*bytes, "byte")),
            None => "no copy of it could be made".to_owned(),
        };
        tracing::warn!(
            "the end of the journal was torn and is cut: {file}, offset {offset}; unless the disk is damaged, nobody \
             was promised what was there; {copied}"
        );
    }
    for damage in &recovery.damage {
        if is_harmless(damage) {
            tracing::warn!("a part of the journal does not verify: {}", Shown(damage));
        } else {
            tracing::error!("the journal is damaged: {}", Shown(damage));
        }
    }
    for file in &recovery.headless {
        tracing::warn!("{}", headless(file));
    }
    for file in &recovery.noted {
        tracing::warn!("{}", noted(file));
    }
    for (files, messages) in missing {
        tracing::error!("the journal is damaged: {}", messages_missing(files, *messages));
    }
    let Faults { set_aside, first, renamed } = faults;
    if let Some((stream, name)) = renamed {
        tracing::error!("the name of the virtual host with stream {stream} is lost; it is taken for '{name}'");
    }
    if let Some(fault) = first {
        let misfits = misfits(*set_aside);
        tracing::error!("a part of the journal is set aside: {misfits}; the first: {fault}");
    }
}

/// Whether everything is there all the same.
pub(crate) fn is_harmless(damage: &Damage) -> bool {
    damage.missing == Missing::Exactly(0)
}

pub(crate) fn headless(file: &str) -> String {
    format!("the header of {file} does not verify; nothing is missing for that")
}

pub(crate) fn noted(file: &str) -> String {
    format!(
        "an earlier start has found that an unknown number of changes is missing; it left {file}, which may be removed \
         by whoever knows that"
    )
}

pub(crate) fn messages_missing(files: &str, messages: u64) -> String {
    let (what, lay) = if messages == 1 { ("a message", "lay in a queue") } else { ("messages", "lay in queues") };
    let count = if messages == 1 { String::new() } else { format!("{messages} ") };
    format!(
        "{files} is missing, and with it {count}{what} that {lay} at the last checkpoint; some may have been settled since"
    )
}

/// Damage as a person reads it.
pub(crate) struct Shown<'a>(pub(crate) &'a Damage);

impl fmt::Display for Shown<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Damage { file, extent, missing, .. } = self.0;
        let missing = match missing {
            Missing::Exactly(0) => "no change is missing".to_owned(),
            Missing::Exactly(1) => "1 change is missing".to_owned(),
            Missing::Exactly(count) => format!("{count} changes are missing"),
            Missing::AtMost(1) => "at most 1 change is missing".to_owned(),
            Missing::AtMost(count) => format!("at most {count} changes are missing"),
            Missing::Unknown => "an unknown number of changes is missing".to_owned(),
        };
        match extent {
            Extent::Region { offset, bytes, set_aside } => {
                write!(f, "{file}, offset {offset}, {bytes} bytes; {missing}")?;
                match set_aside {
                    Some(name) => write!(f, "; what is left of them was copied to {name}"),
                    None => Ok(()),
                }
            }
            Extent::Before { offset } => write!(f, "{file}, offset {offset}; {missing} before it"),
            Extent::Absent => write!(f, "{file} is not there; {missing}"),
            Extent::Behind { offset } => {
                write!(f, "{file}, offset {offset}; the journal went on behind it, and {missing}")
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use leveret_amqp::ShortStr;
    use leveret_broker::change::QueueNumber;
    use leveret_broker::names::UserName;
    use leveret_broker::node::password::PasswordHash;

    use super::*;
    use crate::check::Condition;

    /// The journal would refuse what a virtual host writes into a stream that goes on from there.
    #[test]
    fn the_number_of_a_stream_is_not_given_again_though_damage_took_what_was_said_of_it() {
        let folder = tempfile::tempdir().unwrap();
        let options = || Options { segment_bytes: 1 << 20, salt: [1; 16] };
        let disk = Arc::new(RealDisk::new(folder.path(), Writes::Direct).unwrap());
        let (mut log, _) = Log::open(disk, options(), &mut |_| {}).unwrap();
        let mut batch = Batch::default();
        batch.push(NODE_STREAM, 1, |out| NodeChange::Restated { last_stream: 1 }.encode(out));
        batch.push(7, 1, |out| out.push(0));
        log.append(&mut batch).unwrap();
        log.begin_replay_at(&BTreeMap::from([(7, u64::MAX)])).unwrap();
        drop(log);
        let now = Moment { monotonic: Duration::ZERO, wall: Duration::ZERO };
        let first = VhostName::new(ShortStr::truncated("/"));
        let recovered = recover(folder.path(), options(), 1 << 20, now, &first, &|_| Vec::new()).unwrap();
        let Folded { gone, node, .. } = recovered.folded;
        assert_eq!((gone, node.next_stream()), (vec![7], 8));
    }

    /// Whoever damages the only user must not be given the one with the password that everybody knows.
    #[test]
    fn the_first_user_is_not_made_again_where_one_may_be_missing() {
        let folder = tempfile::tempdir().unwrap();
        let now = Moment { monotonic: Duration::ZERO, wall: Duration::ZERO };
        let (first, guest) = (ShortStr::truncated("/"), ShortStr::truncated("guest"));
        let (first, guest) = (VhostName::new(first), UserName::new(guest));
        let password = || PasswordHash::new(b"guest", [0; 4]);
        let begin = |node: &Node| node.beginning(&first, &guest, password());
        let start = || {
            let options = Options { segment_bytes: 1 << 20, salt: [1; 16] };
            let recovered = recover(folder.path(), options, 1 << 20, now, &first, &begin).unwrap();
            (recovered.folded.node.users().len(), recovered.folded.vhosts.len())
        };
        assert_eq!(start(), (1, 1), "a new folder");
        let file = folder.path().join("0000000001.segment");
        let mut bytes = std::fs::read(&file).unwrap();
        let name = bytes.windows(5).position(|bytes| bytes == b"guest").unwrap();
        bytes[name] ^= 1;
        // Without this, it may be a torn end.
        assert_eq!(start(), (1, 1), "a second start");
        std::fs::write(&file, &bytes).unwrap();
        assert_eq!(start(), (0, 1), "its record is damaged");
        assert_eq!(start(), (0, 1), "and remains so");
    }

    /// What one start leaves out, the next one does not know of, but for the numbers that the journal says.
    #[test]
    fn the_starts_after_one_that_found_the_end_missing_go_on_behind_the_gap() {
        let folder = tempfile::tempdir().unwrap();
        let options = || Options { segment_bytes: 1 << 20, salt: [1; 16] };
        let now = Moment { monotonic: Duration::ZERO, wall: Duration::ZERO };
        let first = VhostName::new(ShortStr::truncated("/"));
        let added = NodeChange::VhostAdded { stream: 1, name: first.clone() };
        let begin = |node: &Node| if node.vhosts().is_empty() { vec![added.clone()] } else { Vec::new() };
        let start = || recover(folder.path(), options(), 1 << 20, now, &first, &begin).unwrap();
        drop(start());
        std::fs::write(folder.path().join("0000000002.segment"), "").unwrap();
        for nth in 0..3 {
            let Recovered { mut log, folded, .. } = start();
            let mut batch = Batch::default();
            assert_eq!(folded.vhosts.len(), 1);
            // The first one writes nothing.
            if nth > 0 {
                batch.push(NODE_STREAM, folded.node_sequence + 1, |out| out.push(0));
                for (stream, vhost) in &folded.vhosts {
                    batch.push(*stream, vhost.position().0 + 1, |out| out.push(0));
                }
            }
            assert!(folded.node_sequence > leveret_journal::limits::UNKNOWN_RECORDS, "start {nth}");
            log.append(&mut batch).unwrap();
        }
        // Whoever has not seen what the first one said hears of it until that file is gone.
        let noted = "damaged-0000000002-unknown";
        let (condition, lines) = crate::check::check(folder.path()).unwrap();
        assert!(condition == Condition::Damaged && lines.iter().any(|line| line.contains(noted)), "{lines:?}");
        std::fs::remove_file(folder.path().join(noted)).unwrap();
        let (condition, lines) = crate::check::check(folder.path()).unwrap();
        assert!(!lines.iter().any(|line| line.contains(noted)), "{condition:?}, {lines:?}");
    }

    #[test]
    fn what_a_block_names_is_looked_for_where_segments_may_be_missing() {
        // As `docs/formats/changes.md` draws it: three messages of five bytes.
        let block = |messages: [u8; 3]| {
            let mut record = vec![20];
            record.extend_from_slice(&[0; 16]);
            record.extend_from_slice(&[0b111]);
            record.extend_from_slice(&[0; 31]);
            let mut last = 0;
            for message in messages {
                record.extend_from_slice(&[4 * 5, 5, message - last]);
                last = message;
            }
            Change::decode(&record).unwrap()
        };
        let doubt = |sequences| Doubt { stream: 1, sequences, files: String::new() };
        let mut doubts = Doubts::new(vec![doubt(5..=9), doubt(20..=24)]);
        for change in [
            Change::CheckpointBegun { last_queue: QueueNumber(1) },
            block([1, 2, 4]),
            block([4, 7, 10]),
            block([10, 15, 19]),
            block([19, 24, 25]),
            block([25, 60, 90]),
            Change::CheckpointEnded { begun: JournalPosition(1) },
        ] {
            doubts.note(1, &change);
        }
        let living = doubts.0[&1].iter().map(|doubted| doubted.living.iter().collect::<Vec<_>>());
        assert_eq!(living.collect::<Vec<_>>(), [[7], [24]]);
    }

    #[test]
    fn a_recovery_says_once_a_second_how_far_it_is() {
        let mut progress = Progress { all: 1000, read: 0, said: Duration::ZERO };
        let mut said = Vec::new();
        for tenth in 0..45 {
            let (elapsed, before) = (Duration::from_millis(tenth * 100), progress.said);
            progress.say(1, elapsed);
            said.extend((progress.said != before).then_some(tenth));
        }
        assert_eq!(said, [10, 20, 30, 40], "nothing of one that is short");
    }

    #[test]
    fn what_is_missing_is_called_a_bound_where_it_is_one() {
        let shown = |extent: Extent, missing| {
            let file = "0000000003.segment".to_owned();
            Shown(&Damage { file, extent, missing, is_old: false }).to_string()
        };
        let region = || Extent::Region { offset: 96, bytes: 5000, set_aside: Some("a copy".into()) };
        let begin = "0000000003.segment, offset 96, 5000 bytes; ";
        let end = "; what is left of them was copied to a copy";
        for (missing, words) in [
            (Missing::Exactly(0), "no change is missing"),
            (Missing::Exactly(1), "1 change is missing"),
            (Missing::Exactly(7), "7 changes are missing"),
            (Missing::AtMost(7), "at most 7 changes are missing"),
            (Missing::Unknown, "an unknown number of changes is missing"),
        ] {
            assert_eq!(shown(region(), missing), format!("{begin}{words}{end}"));
        }
        assert_eq!(
            shown(Extent::Absent, Missing::Exactly(7)),
            "0000000003.segment is not there; 7 changes are missing"
        );
    }
}
