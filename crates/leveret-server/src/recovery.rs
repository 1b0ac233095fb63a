//! Reading a data folder back: from the journal's records to virtual hosts.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use leveret_broker::change::NodeChange;
use leveret_broker::names::VhostName;
use leveret_broker::node::{Node, NodeError};
use leveret_broker::vhost::Sweep;
use leveret_broker::{Change, JournalPosition, Moment, VirtualHost};
use leveret_journal::disk::Disk;
use leveret_journal::{
    Batch, Damage, Doubt, Extent, Log, LogError, Missing, OpenError, Options, Outlook, ReadError, Reader, RealDisk,
    Record, Recovery, look_ahead,
};
use roaring::RoaringTreemap;

use crate::data_dir::DataDirError;
use crate::limits::{MEMORY_LIMIT_MIN, RECORDS_BETWEEN_LOOKS};

/// Where the changes of the node itself are.
pub(crate) const NODE_STREAM: u32 = 0;

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
    pub(crate) node: Node,
    /// The last sequence in the stream of the node.
    pub(crate) node_sequence: u64,
    /// From this sequence on, the stream of the node says all that is true.
    pub(crate) stated_from: u64,
    /// Bytes that were read.
    pub(crate) bytes: u64,
    /// Each virtual host with its stream.
    pub(crate) vhosts: Vec<(u32, VirtualHost)>,
    /// Streams of virtual hosts that are gone.
    pub(crate) gone: Vec<u32>,
}

/// Folds the records of a journal.
#[derive(Default)]
struct Fold<'n> {
    /// The virtual host that a node has from the beginning, as long as nothing is known of it.
    first: Option<&'n VhostName>,
    node: Node,
    vhosts: BTreeMap<u32, VirtualHost>,
    /// Permissions for virtual hosts that nothing was said of: their name may be lost.
    waiting: Vec<NodeChange>,
    /// Streams of virtual hosts that were deleted.
    gone: BTreeSet<u32>,
    node_sequence: u64,
    /// Where the node was said once more as a whole, or else said first.
    stated_from: Option<u64>,
    records: u64,
    /// From so many bytes in memory on, bodies are let go.
    mark: usize,
    set_aside: u64,
    first_fault: Option<String>,
    /// What may be in segments that are not there.
    doubted: BTreeMap<u32, Vec<Doubted>>,
}

/// Messages of one stream that may have been in segments that are not there.
struct Doubted {
    doubt: Doubt,
    /// Those that lie in queues by the last checkpoint that is complete: nothing that one names has been taken from the disk.
    living: RoaringTreemap,
    /// By the one that is being read.
    named: RoaringTreemap,
}

impl Fold<'_> {
    /// The virtual host of a stream. If the record that named it is lost, its messages are not: it must be the one that a
    /// node has from the beginning.
    fn vhost(&mut self, stream: u32) -> Result<&mut VirtualHost, String> {
        if !self.vhosts.contains_key(&stream) {
            let name = self.first.ok_or("no virtual host has this stream")?;
            tracing::error!("the name of the virtual host with stream {stream} is lost; it is taken for '{name}'");
            self.take_change(NodeChange::VhostAdded { stream, name: name.clone() })?;
            for change in std::mem::take(&mut self.waiting) {
                self.take_change(change)?;
            }
        }
        self.vhosts.get_mut(&stream).ok_or_else(String::new)
    }

    /// Takes in what is said of the node.
    fn take_change(&mut self, change: NodeChange) -> Result<(), String> {
        let (added, deleted) = match &change {
            NodeChange::VhostAdded { stream, name } => (Some((*stream, name.clone())), None),
            NodeChange::VhostDeleted { name } => (None, self.node.vhosts().get(name).map(|vhost| vhost.stream)),
            _ => (None, None),
        };
        let permissions = matches!(change, NodeChange::PermissionsSet { .. }).then(|| change.clone());
        match (self.node.apply(change), permissions) {
            (Err(NodeError::NoSuchVhost(_)), Some(permissions)) => self.waiting.push(permissions),
            (applied, _) => applied.map_err(|error| error.to_string())?,
        }
        if let Some((stream, name)) = added {
            self.first = self.first.filter(|first| **first != name);
            self.vhosts.entry(stream).or_insert_with(|| VirtualHost::new(name, rand::random()));
        }
        if let Some(stream) = deleted {
            self.gone.insert(stream);
            self.vhosts.remove(&stream);
            // Whatever is missing of it, nobody misses.
            self.doubted.remove(&stream);
        }
        Ok(())
    }

    /// Numbers of what is missing are not given again.
    fn leave_gap(&mut self, recovery: &Recovery) {
        let missing = recovery.records_missing();
        // A new journal gives its numbers a new secret.
        if missing == 0 || recovery.is_new {
            return;
        }
        for (stream, vhost) in &mut self.vhosts {
            let last = recovery.streams.get(stream).copied().unwrap_or_default();
            vhost.leave_gap(JournalPosition(last), missing);
        }
        self.node_sequence = recovery.streams.get(&NODE_STREAM).copied().unwrap_or(self.node_sequence);
        let last_stream = self.node.next_stream() - 1;
        self.node.skip_streams(last_stream.saturating_add(u32::try_from(missing).unwrap_or_default()));
    }

    /// Lets go of bodies when there are more than may be: the journal has them all.
    fn keep_below(&mut self, bytes: usize) {
        let held = |fold: &Self| fold.vhosts.values().map(|vhost| vhost.memory().bytes()).sum::<usize>();
        if held(self) <= self.mark.max(bytes) {
            return;
        }
        for vhost in self.vhosts.values_mut() {
            let (mut sweep, mut spills) = (Sweep::default(), Vec::new());
            while vhost.evict(&mut sweep, 0, |position, _| position.is_some(), &mut spills) {}
        }
        // What is left cannot be let go; it is not worth looking again before there is much more.
        self.mark = 2 * held(self);
    }

    /// Looks for messages where headers leave a doubt.
    fn doubt(&mut self, doubts: Vec<Doubt>) {
        for doubt in doubts {
            let (living, named) = (RoaringTreemap::new(), RoaringTreemap::new());
            self.doubted.entry(doubt.stream).or_default().push(Doubted { doubt, living, named });
        }
    }

    /// Takes down the messages of a checkpoint of which nobody knows yet whether they are there.
    fn note(doubted: &mut [Doubted], change: &Change) {
        if let Change::QueuePage { entries, .. } = change {
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
    fn missing_messages(&self, reader: &mut Reader, most: usize) -> Vec<(String, u64)> {
        let mut missing = Vec::new();
        let all = self.doubted.values().flatten().filter(|doubted| !doubted.living.is_empty());
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

    fn take(&mut self, now: Moment, record: Record<'_>) {
        self.records += 1;
        let result = if record.stream == NODE_STREAM {
            self.node_sequence = record.sequence;
            NodeChange::decode(record.payload).map_err(|error| error.to_string()).and_then(|change| {
                if matches!(change, NodeChange::Restated { .. }) {
                    self.stated_from = Some(record.sequence);
                    self.first = None;
                }
                self.stated_from.get_or_insert(record.sequence);
                self.take_change(change)
            })
        } else if self.gone.contains(&record.stream) {
            // Its connections had not ended yet.
            Ok(())
        } else {
            let position = JournalPosition(record.sequence);
            let change = Change::decode(record.payload);
            if let (Ok(change), Some(doubted)) = (&change, self.doubted.get_mut(&record.stream)) {
                Self::note(doubted, change);
            }
            self.vhost(record.stream).and_then(|vhost| match change {
                Ok(change) => vhost.apply(now, position, change).map_err(|error| error.to_string()),
                Err(error) => {
                    vhost.skip(position);
                    Err(error.to_string())
                }
            })
        };
        self.node.skip_streams(record.stream);
        if let Err(fault) = result {
            self.set_aside += 1;
            let Record { stream, sequence, .. } = record;
            self.first_fault.get_or_insert_with(|| format!("stream {stream}, change {sequence}: {fault}"));
        }
    }
}

impl Fold<'_> {
    /// All was read.
    fn end(&mut self) {
        for change in std::mem::take(&mut self.waiting) {
            self.set_aside += 1;
            if let NodeChange::PermissionsSet { vhost, .. } = change {
                self.first_fault.get_or_insert_with(|| format!("permissions for '{vhost}', which does not exist"));
            }
        }
    }
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
    let disk = RealDisk::new(folder).map_err(|error| DataDirError::Unusable { folder: folder.into(), error })?;
    let open_error = |error| DataDirError::Journal(JournalError::Open { folder: folder_name.clone(), error });
    let mut fold = Fold { first: Some(first), ..Fold::default() };
    let Outlook { bytes: all, doubts } = look_ahead(&disk).map_err(open_error)?;
    fold.doubt(doubts);
    let started = Instant::now();
    let mut progress = Progress { all, read: 0, said: Duration::ZERO };
    let opened = Log::open(Arc::new(disk), options, &mut |record| {
        progress.read += (record.payload.len() + RECORD_OVERHEAD_BYTES) as u64;
        fold.take(now, record);
        if fold.records.is_multiple_of(RECORDS_BETWEEN_LOOKS) {
            fold.keep_below(memory);
            progress.say(fold.records, started.elapsed());
        }
    });
    progress.end();
    fold.end();
    let (mut log, recovery) = opened.map_err(open_error)?;
    let missing = fold.missing_messages(&mut log.reader(), DOUBTS_AT_START_MAX);
    report(&recovery, &fold, &missing, started.elapsed());
    fold.leave_gap(&recovery);
    let mut batch = Batch::default();
    if !fold.node.is_initialized() {
        for change in begin(&fold.node) {
            fold.node_sequence += 1;
            fold.stated_from.get_or_insert(fold.node_sequence);
            batch.push(NODE_STREAM, fold.node_sequence, |out| change.encode(out));
            if let Err(fault) = fold.take_change(change) {
                tracing::error!("the first user cannot be made: {fault}");
            }
        }
    }
    log.append(&mut batch)
        .map_err(|error| DataDirError::Journal(JournalError::Write { folder: folder_name, error }))?;
    let stated_from = fold.stated_from.unwrap_or_default();
    let living: BTreeSet<_> = fold.node.vhosts().values().map(|vhost| vhost.stream).collect();
    // What is left of those that were deleted, and of which nothing was said any more.
    let gone = recovery.streams.keys().copied().filter(|stream| *stream != NODE_STREAM && !living.contains(stream));
    let gone = gone.collect();
    let vhosts = fold.vhosts.into_iter().filter(|(stream, _)| living.contains(stream));
    let vhosts = vhosts.map(|(stream, mut vhost)| {
        vhost.end_recovery();
        (stream, vhost)
    });
    let (node_sequence, bytes) = (fold.node_sequence, recovery.bytes);
    let vhosts = vhosts.collect();
    Ok(Recovered { log, node: fold.node, node_sequence, stated_from, bytes, vhosts, gone })
}

/// Says in the log what was found, as loudly as it deserves.
fn report(recovery: &Recovery, fold: &Fold, missing: &[(String, u64)], took: Duration) {
    if !recovery.is_new {
        let Recovery { records, segments, .. } = recovery;
        tracing::info!("read the journal: {records} changes in {segments} segments, {took:.1?}");
    }
    if let Some(cut) = &recovery.cut {
        tracing::warn!(
            "the end of the journal was torn and is cut: {}, offset {}; nobody was promised what was there",
            cut.file,
            cut.offset
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
    for (files, messages) in missing {
        tracing::error!("the journal is damaged: {}", messages_missing(files, *messages));
    }
    if let Some(fault) = &fold.first_fault {
        tracing::error!(
            "{} changes do not fit to those before them and are set aside; the first: {fault}",
            fold.set_aside
        );
    }
}

/// Whether everything is there all the same.
fn is_harmless(damage: &Damage) -> bool {
    damage.missing == Missing::Exactly(0)
}

fn headless(file: &str) -> String {
    format!("the header of {file} does not verify; nothing is missing for that")
}

fn messages_missing(files: &str, messages: u64) -> String {
    let what = if messages == 1 { "a message that lies in a queue" } else { "messages that lie in queues" };
    let count = if messages == 1 { String::new() } else { format!("{messages} ") };
    format!("{files} is missing, and with it {count}{what}")
}

/// Damage as a person reads it.
struct Shown<'a>(&'a Damage);

impl fmt::Display for Shown<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Damage { file, extent, missing } = self.0;
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

/// What `leveret check` finds in a folder.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Condition {
    /// There is no journal.
    None,
    /// Everything is as it was written.
    Clean,
    /// The end is torn; the next start cuts it.
    Repairable,
    /// Something that was durable cannot be read any more.
    Damaged,
}

/// Looks at the journal of a folder without changing anything, and describes it line by line.
///
/// # Errors
/// If another process uses the folder, or it cannot be read.
pub fn check(folder: &Path) -> Result<(Condition, Vec<String>), DataDirError> {
    let _lock = crate::data_dir::DataDir::look(folder)?;
    let unusable = |error| DataDirError::Unusable { folder: folder.into(), error };
    let disk: Arc<dyn Disk> = Arc::new(RealDisk::new(folder).map_err(unusable)?);
    let open_error =
        |error| DataDirError::Journal(JournalError::Open { folder: folder.display().to_string(), error });
    let now = Moment { monotonic: Duration::ZERO, wall: Duration::ZERO };
    let mut fold = Fold::default();
    fold.doubt(look_ahead(&*disk).map_err(open_error)?.doubts);
    let mut each = |record: Record<'_>| {
        fold.take(now, record);
        if fold.records.is_multiple_of(RECORDS_BETWEEN_LOOKS) {
            fold.keep_below(usize::try_from(MEMORY_LIMIT_MIN).unwrap_or(usize::MAX));
        }
    };
    let (recovery, mut reader) = leveret_journal::look(&disk, &mut each).map_err(open_error)?;
    if recovery.is_new && recovery.damage.is_empty() {
        return Ok((Condition::None, Vec::new()));
    }
    fold.end();
    let missing = fold.missing_messages(&mut reader, usize::MAX);
    let mut lines = Vec::new();
    let Recovery { segments, records, bytes, .. } = &recovery;
    lines.push(format!("{segments} segments, {records} changes, {bytes} bytes"));
    if let Some(cut) = &recovery.cut {
        lines.push(format!("{}, offset {}: the end is torn; the next start cuts it", cut.file, cut.offset));
    }
    lines.extend(
        recovery.damage.iter().map(|damage| {
            format!("{}: {}", if is_harmless(damage) { "harmless" } else { "damaged" }, Shown(damage))
        }),
    );
    lines.extend(recovery.headless.iter().map(|file| format!("harmless: {}", headless(file))));
    lines
        .extend(missing.iter().map(|(files, messages)| format!("damaged: {}", messages_missing(files, *messages))));
    if let Some(fault) = &fold.first_fault {
        lines.push(format!("{} changes do not fit to those before them; the first: {fault}", fold.set_aside));
    }
    let is_whole = recovery.damage.iter().all(is_harmless) && missing.is_empty() && fold.set_aside == 0;
    let condition = match (&recovery.cut, is_whole) {
        (_, false) => Condition::Damaged,
        (Some(_), true) => Condition::Repairable,
        (None, true) => Condition::Clean,
    };
    Ok((condition, lines))
}

#[cfg(test)]
mod tests {
    use super::*;

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
            Shown(&Damage { file, extent, missing }).to_string()
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
