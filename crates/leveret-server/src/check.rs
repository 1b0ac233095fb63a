//! `leveret check`: what a data folder is like, without a start.
//!
//! Invariant: nothing in the folder changes.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use leveret_broker::change::QueueNumber;
use leveret_broker::limits::UNITS_PER_HOLD;
use leveret_broker::node::recovery::{Faults, Fold, Folded};
use leveret_broker::vhost::checkpoint::Checkpoint;
use leveret_broker::{Change, Effects, Moment, VirtualHost};
use leveret_journal::disk::Disk;
use leveret_journal::{Reader, RealDisk, Record, Recovery, Writes, look_ahead};
use roaring::RoaringTreemap;

use crate::data_dir::{DataDir, DataDirError};
use crate::limits::{MEMORY_LIMIT_MIN, RECORDS_BETWEEN_LOOKS};
use crate::recovery::{
    self, Doubts, JournalError, Shown, counted, headless, is_harmless, messages_missing, misfits, noted, take,
};

/// No time passes while a folder is looked at.
const NOW: Moment = Moment { monotonic: Duration::ZERO, wall: Duration::ZERO };

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
    let _lock = DataDir::look(folder)?;
    let unusable = |error| DataDirError::Unusable { folder: folder.into(), error };
    let disk: Arc<dyn Disk> = Arc::new(RealDisk::new(folder, Writes::Cached).map_err(unusable)?);
    let open_error =
        |error| DataDirError::Journal(JournalError::Open { folder: folder.display().to_string(), error });
    let mut fold = Fold::new(None, rand::random);
    let mut doubts = Doubts::new(look_ahead(&*disk).map_err(open_error)?.doubts);
    let mut each = |record: Record<'_>| {
        take(&mut fold, &mut doubts, NOW, &record);
        if fold.records().is_multiple_of(RECORDS_BETWEEN_LOOKS) {
            fold.keep_below(usize::try_from(MEMORY_LIMIT_MIN).unwrap_or(usize::MAX));
        }
    };
    let (recovery, mut reader) = leveret_journal::look(&disk, &mut each).map_err(open_error)?;
    if recovery.is_new && recovery.damage.is_empty() {
        return Ok((Condition::None, Vec::new()));
    }
    fold.end(recovery::missing(&recovery), &recovery.streams);
    let Recovery { segments, records, bytes, .. } = &recovery;
    let (segments, changes) = (counted(*segments, "segment"), counted(*records, "change"));
    let mut lines = vec![format!("{segments}, {changes}, {}", counted(*bytes, "byte"))];
    if let Some(cut) = &recovery.cut {
        lines.push(format!("{}, offset {}: the end is torn; the next start cuts it", cut.file, cut.offset));
    }
    for damage in &recovery.damage {
        let word = if is_harmless(damage) { "harmless" } else { "damaged" };
        lines.push(format!("{word}: {}", Shown(damage)));
    }
    lines.extend(recovery.headless.iter().map(|file| format!("harmless: {}", headless(file))));
    lines.extend(recovery.noted.iter().map(|file| format!("damaged: {}", noted(file))));
    let missing = doubts.missing_messages(fold.node(), &mut reader, usize::MAX);
    lines
        .extend(missing.iter().map(|(files, messages)| format!("damaged: {}", messages_missing(files, *messages))));
    let Faults { set_aside, first, .. } = fold.faults();
    let has_faults = first.is_some();
    if let Some(fault) = first {
        lines.push(format!("{}; the first: {fault}", misfits(*set_aside)));
    }
    let Folded { vhosts, .. } = fold.finish(recovery.streams.keys().copied());
    let unreadable: Vec<_> =
        vhosts.into_iter().flat_map(|(stream, mut vhost)| unreadable(&mut vhost, stream, &mut reader)).collect();
    let is_known = recovery.damage.iter().all(is_harmless) && recovery.noted.is_empty();
    let is_whole = is_known && missing.is_empty() && !has_faults && unreadable.is_empty();
    lines.extend(unreadable);
    let condition = match (&recovery.cut, is_whole) {
        (_, false) => Condition::Damaged,
        (Some(_), true) => Condition::Repairable,
        (None, true) => Condition::Clean,
    };
    Ok((condition, lines))
}

/// A line for each queue with messages that are nowhere to be read.
fn unreadable(vhost: &mut VirtualHost, stream: u32, reader: &mut Reader) -> Vec<String> {
    let mut living = RoaringTreemap::new();
    walk(vhost, |checkpoint, _| {
        let living_here = checkpoint.take_living().into_iter().filter_map(|(message, _)| message.position());
        living.extend(living_here.map(|position| position.0));
    });
    let mut lost = RoaringTreemap::new();
    // In their order, however the queues lie: so no segment is read twice for it.
    for message in living {
        if reader.read(stream, message).is_err() {
            lost.insert(message);
        }
    }
    if lost.is_empty() {
        return Vec::new();
    }
    let (mut queues, mut lines) = (BTreeMap::<QueueNumber, Unreadable>::new(), Vec::new());
    let name = vhost.name().clone();
    walk(vhost, |_, changes| {
        for change in changes {
            match change {
                Change::QueuePage { queue, entries } => {
                    for message in
                        entries.iter().map(|entry| entry.message.0).filter(|&message| lost.contains(message))
                    {
                        queues.entry(*queue).or_insert(Unreadable { count: 0, first: message }).count += 1;
                    }
                }
                Change::QueueRestated { queue, name: queue_name, .. } => {
                    if let Some(found) = queues.remove(queue) {
                        lines.push(found.line(&format!("queue '{queue_name}'"), name.as_str(), stream, reader));
                    }
                }
                Change::DelayQueueRestated { queue, exchange, .. } => {
                    if let Some(found) = queues.remove(queue) {
                        let whose = format!("what exchange '{exchange}' delays");
                        lines.push(found.line(&whose, name.as_str(), stream, reader));
                    }
                }
                _ => {}
            }
        }
    });
    reader.rest();
    lines
}

/// Messages of one queue that are nowhere to be read.
struct Unreadable {
    count: u64,
    /// The first of them.
    first: u64,
}

impl Unreadable {
    fn line(&self, whose: &str, vhost: &str, stream: u32, reader: &mut Reader) -> String {
        let messages = counted(self.count, "message");
        let why =
            reader.read(stream, self.first).err().map_or_else(String::new, |error| format!("; the first: {error}"));
        format!("damaged: {whose} in virtual host '{vhost}' has {messages} that cannot be read back{why}")
    }
}

/// Shows all that a virtual host would say in a checkpoint, step by step.
fn walk(vhost: &mut VirtualHost, mut each: impl FnMut(&mut Checkpoint, &[Change])) {
    let (mut checkpoint, mut effects) = (Checkpoint::default(), Effects::default());
    loop {
        let goes_on = vhost.handle_checkpoint(NOW, &mut checkpoint, UNITS_PER_HOLD, &mut effects);
        each(&mut checkpoint, &effects.changes);
        effects.changes.clear();
        if !goes_on {
            return;
        }
    }
}
