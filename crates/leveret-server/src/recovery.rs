//! Reading a data folder back: from the journal's records to virtual hosts.

use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use leveret_broker::change::NodeChange;
use leveret_broker::names::VhostName;
use leveret_broker::vhost::Sweep;
use leveret_broker::{Change, JournalPosition, Moment, VirtualHost};
use leveret_journal::{Batch, Log, LogError, OpenError, Options, RealDisk, Record, Recovery};

use crate::data_dir::DataDirError;
use crate::limits::{MEMORY_LIMIT_MIN, RECORDS_BETWEEN_LOOKS};

/// Where the changes of the node itself are.
pub(crate) const NODE_STREAM: u32 = 0;

/// How often a long recovery says how far it is.
const PROGRESS_EVERY: Duration = Duration::from_secs(1);

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
    /// The last sequence in the stream of the node.
    pub(crate) node_sequence: u64,
    /// From this sequence on, the stream of the node names every virtual host.
    pub(crate) named_from: u64,
    /// Bytes that were read.
    pub(crate) bytes: u64,
    /// Each virtual host with its stream.
    pub(crate) vhosts: Vec<(u32, VirtualHost)>,
}

/// Folds the records of a journal.
#[derive(Default)]
struct Fold<'n> {
    /// The virtual hosts that a node has from the beginning.
    names: &'n [VhostName],
    vhosts: BTreeMap<u32, VirtualHost>,
    node_sequence: u64,
    /// Where each stream was named last.
    named: BTreeMap<u32, u64>,
    records: u64,
    /// From so many bytes in memory on, bodies are let go.
    mark: usize,
    set_aside: u64,
    first_fault: Option<String>,
    /// The greatest number of a stream that has records.
    last_stream: u32,
}

impl Fold<'_> {
    /// The virtual host of a stream. If the record that named it is lost, its messages are not: it must be one of those
    /// that a node has from the beginning.
    fn vhost(&mut self, stream: u32) -> Result<&mut VirtualHost, String> {
        if !self.vhosts.contains_key(&stream) {
            let is_missing = |name: &&VhostName| !self.vhosts.values().any(|vhost| vhost.name() == *name);
            let name = self.names.iter().find(is_missing).ok_or("no virtual host has this stream")?;
            tracing::error!("the name of the virtual host with stream {stream} is lost; it is taken for '{name}'");
            self.vhosts.insert(stream, VirtualHost::new(name.clone(), rand::random()));
        }
        self.vhosts.get_mut(&stream).ok_or_else(String::new)
    }

    /// Numbers of what is missing are not given again.
    fn leave_gap(&mut self, recovery: &Recovery) {
        let missing = recovery.records_missing();
        if missing == 0 {
            return;
        }
        for (stream, vhost) in &mut self.vhosts {
            let last = recovery.streams.get(stream).copied().unwrap_or_default();
            vhost.leave_gap(JournalPosition(last), missing);
        }
        self.node_sequence = recovery.streams.get(&NODE_STREAM).copied().unwrap_or(self.node_sequence);
        self.last_stream = self.last_stream.saturating_add(u32::try_from(missing).unwrap_or_default());
    }

    /// Lets go of bodies when there are more than may be: the journal has them all.
    fn keep_below(&mut self, bytes: usize) {
        let held = |fold: &Self| fold.vhosts.values().map(|vhost| vhost.memory().bytes()).sum::<usize>();
        if held(self) <= self.mark.max(bytes) {
            return;
        }
        for vhost in self.vhosts.values_mut() {
            let mut sweep = Sweep::default();
            while vhost.evict(&mut sweep, 0, |id, _| id.position().is_some()) {}
        }
        // What is left cannot be let go; it is not worth looking again before there is much more.
        self.mark = 2 * held(self);
    }

    fn take(&mut self, now: Moment, record: Record<'_>) {
        self.records += 1;
        let result = if record.stream == NODE_STREAM {
            self.node_sequence = record.sequence;
            NodeChange::decode(record.payload).map_err(|error| error.to_string()).map(|change| match change {
                NodeChange::VhostAdded { stream, name } => {
                    self.last_stream = self.last_stream.max(stream);
                    self.named.insert(stream, record.sequence);
                    self.vhosts.entry(stream).or_insert_with(|| VirtualHost::new(name, rand::random()));
                }
            })
        } else {
            let position = JournalPosition(record.sequence);
            self.vhost(record.stream).and_then(|vhost| match Change::decode(record.payload) {
                Ok(change) => vhost.apply(now, position, change).map_err(|error| error.to_string()),
                Err(error) => {
                    vhost.skip(position);
                    Err(error.to_string())
                }
            })
        };
        self.last_stream = self.last_stream.max(record.stream);
        if let Err(fault) = result {
            self.set_aside += 1;
            let Record { stream, sequence, .. } = record;
            self.first_fault.get_or_insert_with(|| format!("stream {stream}, change {sequence}: {fault}"));
        }
    }
}

/// Reads the journal of a folder, and makes sure that these virtual hosts exist in it. Queues take about so many bytes of
/// memory at most, unless what they must know of their messages is more.
pub(crate) fn recover(
    folder: &Path,
    options: Options,
    memory: usize,
    now: Moment,
    names: &[VhostName],
) -> Result<Recovered, DataDirError> {
    let folder_name = folder.display().to_string();
    let disk = RealDisk::new(folder).map_err(|error| DataDirError::Unusable { folder: folder.into(), error })?;
    let mut fold = Fold { names, ..Fold::default() };
    let started = Instant::now();
    let mut said = started;
    let opened = Log::open(Arc::new(disk), options, &mut |record| {
        fold.take(now, record);
        if fold.records.is_multiple_of(RECORDS_BETWEEN_LOOKS) {
            fold.keep_below(memory);
            if said.elapsed() >= PROGRESS_EVERY {
                said = Instant::now();
                tracing::info!("reading the journal: {} changes in {:.0?}", fold.records, started.elapsed());
            }
        }
    });
    let (mut log, recovery) =
        opened.map_err(|error| DataDirError::Journal(JournalError::Open { folder: folder_name.clone(), error }))?;
    report(&recovery, &fold, started.elapsed());
    fold.leave_gap(&recovery);
    let mut batch = Batch::default();
    for name in names {
        if fold.vhosts.values().any(|vhost| vhost.name() == name) {
            continue;
        }
        fold.last_stream += 1;
        let stream = fold.last_stream;
        fold.node_sequence += 1;
        let change = NodeChange::VhostAdded { stream, name: name.clone() };
        batch.push(NODE_STREAM, fold.node_sequence, |out| change.encode(out));
        fold.named.insert(stream, fold.node_sequence);
        fold.vhosts.insert(stream, VirtualHost::new(name.clone(), rand::random()));
    }
    log.append(&mut batch)
        .map_err(|error| DataDirError::Journal(JournalError::Write { folder: folder_name, error }))?;
    let named = fold.vhosts.keys().map(|stream| fold.named.get(stream).copied());
    let named_from = named.collect::<Option<Vec<_>>>().and_then(|named| named.into_iter().min()).unwrap_or(0);
    let vhosts = fold.vhosts.into_iter().map(|(stream, mut vhost)| {
        vhost.end_recovery();
        (stream, vhost)
    });
    let (node_sequence, bytes) = (fold.node_sequence, recovery.bytes);
    Ok(Recovered { log, node_sequence, named_from, bytes, vhosts: vhosts.collect() })
}

/// Says in the log what was found, as loudly as it deserves.
fn report(recovery: &Recovery, fold: &Fold, took: Duration) {
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
        tracing::error!("the journal is damaged: {}", Shown(damage));
    }
    if let Some(fault) = &fold.first_fault {
        tracing::error!(
            "{} changes do not fit to those before them and are set aside; the first: {fault}",
            fold.set_aside
        );
    }
}

/// Damage as a person reads it.
struct Shown<'a>(&'a leveret_journal::Damage);

impl fmt::Display for Shown<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let leveret_journal::Damage { file, offset, bytes, records_missing, set_aside } = self.0;
        write!(f, "{file}, offset {offset}, {bytes} bytes; {records_missing} changes are missing")?;
        match set_aside {
            Some(name) => write!(f, "; what is left of them was copied to {name}"),
            None => Ok(()),
        }
    }
}

/// What `leveret check` finds in a folder.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Condition {
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
    let disk = RealDisk::new(folder).map_err(unusable)?;
    let now = Moment { monotonic: Duration::ZERO, wall: Duration::ZERO };
    let mut fold = Fold::default();
    let mut each = |record: Record<'_>| {
        fold.take(now, record);
        if fold.records.is_multiple_of(RECORDS_BETWEEN_LOOKS) {
            fold.keep_below(usize::try_from(MEMORY_LIMIT_MIN).unwrap_or(usize::MAX));
        }
    };
    let recovery = leveret_journal::check(&disk, &mut each).map_err(|error| {
        DataDirError::Journal(JournalError::Open { folder: folder.display().to_string(), error })
    })?;
    let mut lines = Vec::new();
    let Recovery { segments, records, bytes, .. } = &recovery;
    lines.push(format!("{segments} segments, {records} changes, {bytes} bytes"));
    if let Some(cut) = &recovery.cut {
        lines.push(format!("{}, offset {}: the end is torn; the next start cuts it", cut.file, cut.offset));
    }
    lines.extend(recovery.damage.iter().map(|damage| format!("damaged: {}", Shown(damage))));
    if let Some(fault) = &fold.first_fault {
        lines.push(format!("{} changes do not fit to those before them; the first: {fault}", fold.set_aside));
    }
    let condition = match (&recovery.cut, recovery.damage.is_empty() && fold.set_aside == 0) {
        (_, false) => Condition::Damaged,
        (Some(_), true) => Condition::Repairable,
        (None, true) => Condition::Clean,
    };
    Ok((condition, lines))
}
