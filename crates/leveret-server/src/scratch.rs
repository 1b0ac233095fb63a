//! Transient bodies for which memory has no room: the thread that writes them to scratch files, and removes those.
//!
//! Must not know: which bodies are written out, and when.
//!
//! Nothing is lost by a disk that is full or broken: what cannot be written stays in memory, and publishers wait once there is
//! no more of that.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Weak};
use std::thread::JoinHandle;

use bytesize::ByteSize;
use leveret_broker::Change;
use leveret_broker::scratch::{Place, Segment, Spill, Spilled};
use leveret_journal::Scratch;
use leveret_journal::disk::Disk;
use smallvec::SmallVec;
use tokio::sync::oneshot;

use crate::hub::Hub;
use crate::limits::{SCRATCH_LOOK_EVERY, SPILLED_BYTES, SPILLED_OVERHEAD_BYTES};

enum Order {
    Write { hub: Arc<Hub>, spills: Vec<Spill>, written: oneshot::Sender<Outcome> },
    Stop,
}

/// Whether messages were written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    All,
    /// Some were not, and the next ones would not be, either.
    Refused,
}

/// Where messages are handed in that are to be written.
#[derive(Clone, Debug)]
pub(crate) struct Spilling(Sender<Order>);

impl Spilling {
    /// Writes messages of one virtual host, which learns of it by [`Hub::take_spilled`].
    pub(crate) async fn write(&self, hub: &Arc<Hub>, spills: Vec<Spill>) -> Outcome {
        let (written, outcome) = oneshot::channel();
        if self.0.send(Order::Write { hub: Arc::clone(hub), spills, written }).is_err() {
            return Outcome::Refused;
        }
        outcome.await.unwrap_or(Outcome::Refused)
    }
}

/// The thread. When this is dropped it removes its files and ends.
pub(crate) struct ScratchThread {
    orders: Sender<Order>,
    thread: Option<JoinHandle<()>>,
}

impl ScratchThread {
    /// Starts the thread. It leaves so many bytes of the disk free.
    pub(crate) fn start(disk: Arc<dyn Disk>, limit: u64) -> io::Result<Self> {
        let (orders, given) = channel();
        let files = Files { disk, limit, streams: BTreeMap::new(), is_refusing: false };
        let thread = std::thread::Builder::new().name("scratch".into()).spawn(move || files.run(&given))?;
        Ok(ScratchThread { orders, thread: Some(thread) })
    }

    pub(crate) fn spilling(&self) -> Spilling {
        Spilling(self.orders.clone())
    }
}

impl Drop for ScratchThread {
    fn drop(&mut self) {
        let _ = self.orders.send(Order::Stop);
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the thread that writes transient messages out has panicked");
        }
    }
}

/// The files of all virtual hosts.
struct Files {
    disk: Arc<dyn Disk>,
    /// Bytes of the disk that stay free.
    limit: u64,
    /// Those that had any, also when none is left: numbers of files are not given twice, as a message that is in memory again
    /// knows where it was.
    streams: BTreeMap<u32, Stream>,
    /// The log says that nothing can be written.
    is_refusing: bool,
}

/// The files of one virtual host.
struct Stream {
    hub: Weak<Hub>,
    scratch: Scratch,
    /// The one that is written.
    segment: Option<Segment>,
    /// Nothing was written since it was looked at last.
    is_idle: bool,
    /// The numbers of its files.
    files: BTreeSet<u32>,
}

impl Files {
    fn run(mut self, given: &Receiver<Order>) {
        loop {
            let order = if self.streams.values().any(|stream| !stream.files.is_empty()) {
                given.recv_timeout(SCRATCH_LOOK_EVERY)
            } else {
                given.recv().map_err(|_| RecvTimeoutError::Disconnected)
            };
            match order {
                Ok(Order::Write { hub, spills, written }) => {
                    let outcome = self.write(&hub, spills);
                    // Whoever waited for it may have been told to stop.
                    let _ = written.send(outcome);
                    self.tidy();
                }
                Ok(Order::Stop) | Err(RecvTimeoutError::Disconnected) => break,
                Err(RecvTimeoutError::Timeout) => {
                    for stream in self.streams.values_mut() {
                        stream.rest();
                    }
                    self.tidy();
                }
            }
        }
        self.streams.clear();
        if let Err(error) = leveret_journal::remove_scratch(&*self.disk) {
            tracing::warn!("scratch files stay until the next start: {error}");
        }
    }

    fn write(&mut self, hub: &Arc<Hub>, spills: Vec<Spill>) -> Outcome {
        let number = hub.stream();
        let stream = self.streams.entry(number).or_insert_with(|| {
            let scratch = Scratch::new(Arc::clone(&self.disk), number);
            Stream { hub: Arc::downgrade(hub), scratch, segment: None, is_idle: false, files: BTreeSet::new() }
        });
        match stream.write(spills, self.limit) {
            Ok(()) => {
                if std::mem::take(&mut self.is_refusing) {
                    tracing::info!("transient messages are written out again");
                }
                Outcome::All
            }
            Err(error) => {
                if !std::mem::replace(&mut self.is_refusing, true) {
                    tracing::warn!("transient messages stay in memory, as they cannot be written out: {error}");
                }
                Outcome::Refused
            }
        }
    }

    /// Removes what is needed no more.
    fn tidy(&mut self) {
        self.streams.retain(|_, stream| stream.tidy());
    }
}

impl Stream {
    /// Writes messages and hands them back, those that could not be written, too.
    fn write(&mut self, spills: Vec<Spill>, limit: u64) -> io::Result<()> {
        self.is_idle = false;
        let bytes = spills.iter().map(|spill| spill.message.bytes() as u64 + SPILLED_OVERHEAD_BYTES).sum();
        // A disk that does not say how much is free is asked for room all the same.
        let mut result = check_room(self.scratch.free_bytes().unwrap_or(u64::MAX), bytes, limit);
        let mut spills = spills.into_iter().peekable();
        while result.is_ok() && spills.peek().is_some() {
            result = self.write_some(&mut spills);
        }
        let mut left: Vec<_> = spills.map(|spill| Spilled { spill, place: None }).collect();
        self.hand_back(&mut left);
        result
    }

    /// Writes some of them with one call, and hands those back.
    fn write_some(&mut self, spills: &mut impl Iterator<Item = Spill>) -> io::Result<()> {
        let number = self.scratch.begin()?;
        self.files.insert(number);
        let segment = match self.segment.take().filter(|segment| segment.number() == number) {
            Some(segment) => segment,
            None => Segment::new(number),
        };
        self.segment = Some(segment.clone());
        let mut spilled = Vec::new();
        for spill in spills {
            // As the journal has it, but for no queue.
            let change = Change::MessageEnqueued { message: spill.message.clone(), queues: SmallVec::new() };
            let offset = self.scratch.add(|out| change.encode(out));
            let place = Some((segment.clone(), Place { segment: number, offset }));
            spilled.push(Spilled { spill, place });
            if self.scratch.is_full() || self.scratch.added_bytes() >= SPILLED_BYTES {
                break;
            }
        }
        let result = self.scratch.write();
        if result.is_err() {
            for spilled in &mut spilled {
                spilled.place = None;
            }
        }
        self.hand_back(&mut spilled);
        result
    }

    /// Nothing was written for a while: the file that was begun may be needed no more, too.
    fn rest(&mut self) {
        if std::mem::replace(&mut self.is_idle, true) {
            self.scratch.finish();
            self.segment = None;
        }
    }

    /// Removes files that no message needs; false if there is no virtual host any more that could need one.
    fn tidy(&mut self) -> bool {
        let hub = self.hub.upgrade();
        let unneeded = match &hub {
            Some(hub) => hub.take_unneeded_segments(),
            None => std::mem::take(&mut self.files).into_iter().collect(),
        };
        for number in unneeded {
            self.files.remove(&number);
            if let Err(error) = self.scratch.remove(number) {
                tracing::warn!("a scratch file stays until the next start: {error}");
            }
        }
        hub.is_some()
    }

    fn hand_back(&self, spilled: &mut Vec<Spilled>) {
        if let Some(hub) = self.hub.upgrade() {
            hub.take_spilled(spilled);
        }
    }
}

/// Whether as much as must be is free when so many bytes are written.
fn check_room(free: u64, bytes: u64, limit: u64) -> io::Result<()> {
    if free.saturating_sub(bytes) >= limit {
        return Ok(());
    }
    let (free, limit) = (ByteSize(free), ByteSize(limit));
    let fault = format!("{free} are free where the data folder is, and {limit} must be (--disk-free-limit)");
    Err(io::Error::new(io::ErrorKind::StorageFull, fault))
}

#[cfg(test)]
mod tests {
    use leveret_amqp::ShortStr;
    use leveret_broker::VirtualHost;
    use leveret_broker::names::VhostName;
    use leveret_journal::{RealDisk, Writes};

    use super::*;
    use crate::clock::Clock;
    use crate::journal;
    use crate::memory::Memory;

    /// A message that is in memory for one queue may have been written for another, and knows where.
    #[test]
    fn numbers_of_files_are_not_given_again_when_none_is_left() {
        let folder = tempfile::tempdir().unwrap();
        let disk: Arc<dyn Disk> = Arc::new(RealDisk::new(folder.path(), Writes::Cached).unwrap());
        let vhost = VirtualHost::new(VhostName::new(ShortStr::truncated("/")), [1; 32]);
        let hub = Hub::new(vhost, journal::Stream::forgetful(1), None, Memory::new(1 << 30), Clock::start());
        let mut files = Files { disk, limit: 0, streams: BTreeMap::new(), is_refusing: false };
        for expected in 1..4 {
            assert_eq!(files.write(&hub, Vec::new()), Outcome::All);
            let stream = files.streams.get_mut(&hub.stream()).unwrap();
            assert_eq!(stream.scratch.begin().unwrap(), expected);
            stream.rest();
            stream.rest();
            files.tidy();
            assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
        }
    }

    #[test]
    fn as_much_of_the_disk_as_must_be_stays_free() {
        for (free, bytes, limit, expected) in [
            (100, 40, 60, true),
            (100, 41, 60, false),
            (10, 40, 0, true),
            (u64::MAX, 40, 60, true),
            (10, 1, 60, false),
        ] {
            assert_eq!(check_room(free, bytes, limit).is_ok(), expected, "{bytes} of {free}, {limit} stay");
        }
    }
}
