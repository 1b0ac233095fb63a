//! Between connections and who writes the journal: its thread, or one of them.

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::sync::Arc;

use leveret_broker::change::{NodeChange, QueueNumber, QueuePosition};
use leveret_broker::{Change, JournalPosition};
use leveret_journal::disk::{Disk, DiskFile};
use leveret_journal::{Log, Options};
use leveret_testkit::disk::SimDisk;
use shuttle::future::block_on;
use shuttle::thread;

use super::schedules::explore;
use crate::journal::{AcksWait, Appended, Awaited, Congestion, Orders, Stream, Writer};
use crate::outbox::Outbox;
use crate::sync::{Mutex, step};

/// More than is ever brought.
const MANY: usize = 1 << 20;

/// So little that two large changes do not fit into one batch.
const SEGMENT_BYTES: u64 = 4096;
const LARGE_PLACES: u64 = 250;

/// A disk on which a write and a sync take time.
struct SlowDisk(SimDisk);

struct SlowFile(Arc<dyn DiskFile>);

impl Disk for SlowDisk {
    fn create(&self, name: &str) -> io::Result<Arc<dyn DiskFile>> {
        Ok(Arc::new(SlowFile(self.0.create(name)?)))
    }

    fn open(&self, name: &str) -> io::Result<Arc<dyn DiskFile>> {
        Ok(Arc::new(SlowFile(self.0.open(name)?)))
    }

    fn list(&self) -> io::Result<Vec<String>> {
        self.0.list()
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        self.0.rename(from, to)
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        self.0.remove(name)
    }

    fn sync_directory(&self) -> io::Result<()> {
        self.0.sync_directory()
    }

    fn free_bytes(&self) -> io::Result<u64> {
        self.0.free_bytes()
    }
}

impl DiskFile for SlowFile {
    fn write_at(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        step();
        self.0.write_at(offset, bytes)
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<usize> {
        self.0.read_at(offset, buffer)
    }

    fn sync(&self) -> io::Result<()> {
        step();
        self.0.sync()
    }

    fn preallocate(&self, end: u64) -> io::Result<()> {
        self.0.preallocate(end)
    }

    fn truncate(&self, end: u64) -> io::Result<()> {
        self.0.truncate(end)
    }

    fn length(&self) -> io::Result<u64> {
        self.0.length()
    }
}

fn options() -> Options {
    Options { segment_bytes: SEGMENT_BYTES, salt: [1; 16] }
}

/// What of each stream a start finds on a disk after a power cut.
pub(super) fn found_on(disk: &SimDisk) -> BTreeMap<u32, Vec<Change>> {
    let mut found: BTreeMap<u32, Vec<Change>> = BTreeMap::new();
    let mut each = |record: leveret_journal::Record<'_>| {
        if let Ok(change) = Change::decode(record.payload) {
            found.entry(record.stream).or_default().push(change);
        }
    };
    Log::open(Arc::new(disk.crash(&[])), options(), &mut each).expect("this disk can be read");
    found
}

/// A writer of so many streams, and its disk.
pub(super) fn start(streams: u32, bytes_max: usize) -> (Writer, Vec<Arc<Stream>>, SimDisk) {
    let disk = SimDisk::default();
    let (log, _) = Log::open(Arc::new(SlowDisk(disk.clone())), options(), &mut |_| {}).expect("the disk is empty");
    let positions: Vec<_> = (1..=streams).map(|stream| (stream, JournalPosition(0))).collect();
    let (writer, streams) = Writer::start(log, bytes_max, 0, &positions).expect("there is a thread for it");
    (writer, streams, disk)
}

/// What stands for a virtual host: it decides with its lock held.
struct Host {
    stream: Arc<Stream>,
    disk: SimDisk,
    decided: Mutex<Decided>,
}

#[derive(Default)]
struct Decided {
    changes: Vec<Change>,
    /// How many there were whenever a group was complete.
    ends: Vec<usize>,
}

impl Host {
    fn new(stream: &Arc<Stream>, disk: &SimDisk) -> Arc<Self> {
        Arc::new(Host { stream: Arc::clone(stream), disk: disk.clone(), decided: Mutex::default() })
    }

    /// Decides on changes that belong together, each in a step of its own.
    fn decide(&self, changes: &[Change]) -> JournalPosition {
        let mut decided = self.decided.lock();
        for (at, change) in changes.iter().enumerate() {
            let appended = self.stream.append(&mut vec![change.clone()], at + 1 < changes.len());
            assert!(appended >= Appended::Nothing);
            decided.changes.push(change.clone());
        }
        let end = decided.changes.len();
        decided.ends.push(end);
        JournalPosition(end as u64)
    }

    /// How many changes a power cut leaves now. They must be the first that were decided, and whole groups.
    fn survive(&self) -> usize {
        let found = found_on(&self.disk).remove(&self.stream.number()).unwrap_or_default();
        // Read afterwards: what is on disk was decided.
        let decided = self.decided.lock();
        assert_eq!(found, decided.changes[..found.len()], "of stream {}", self.stream.number());
        assert!(found.is_empty() || decided.ends.contains(&found.len()), "a group is split after {}", found.len());
        found.len()
    }

    /// A position counts as durable, so it is.
    fn assert_durable(&self, position: JournalPosition) {
        let survived = self.survive();
        assert!(survived as u64 >= position.0, "{survived} changes are on disk, of {position:?}");
    }
}

/// A small change that is like no other.
fn change(who: u64, at: u64) -> Change {
    Change::MessageSettled { queue: QueueNumber(who), position: QueuePosition(at) }
}

/// One that fills most of a batch.
fn large_change(who: u64, at: u64) -> Change {
    let except = (0..LARGE_PLACES).map(|place| QueuePosition(2 * place)).collect();
    Change::QueuePurged { queue: QueueNumber(who), below: QueuePosition(10_000 + at), except }
}

/// Who writes what a connection brings.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Writes {
    Here,
    Elsewhere,
}

/// A connection without its socket: what of it concerns the journal.
struct Connection {
    host: Arc<Host>,
    writes: Writes,
    outbox: Arc<Outbox>,
    awaited: Awaited,
    /// What its client has to hear of.
    held: VecDeque<JournalPosition>,
}

impl Connection {
    fn new(host: &Arc<Host>, writes: Writes) -> Self {
        let (outbox, awaited) = (Arc::default(), Awaited::default());
        Connection { host: Arc::clone(host), writes, outbox, awaited, held: VecDeque::new() }
    }

    fn bring(&mut self, changes: &[Change]) {
        self.held.push_back(self.host.decide(changes));
        match self.writes {
            Writes::Here => self.host.stream.write_here(),
            Writes::Elsewhere => self.host.stream.have_written(),
        }
    }

    /// As a peer's task does it.
    fn catch_up(&mut self) {
        while let Some(&position) = self.held.front() {
            let durable = self.host.stream.durable();
            if position > durable {
                return self.awaited.wait(position, durable, &self.host.stream, &self.outbox);
            }
            self.host.assert_durable(durable);
            self.held.pop_front();
        }
    }

    /// Brings changes one after the other, and does not wait for the first to bring the second.
    fn run(mut self, who: u64, count: u64) {
        for at in 0..count {
            self.bring(&[change(who, 2 * at), change(who, 2 * at + 1)]);
            self.catch_up();
        }
        while !self.held.is_empty() {
            block_on(self.outbox.filled());
            self.catch_up();
        }
    }
}

fn spawn_connections(host: &Arc<Host>, all: &[Writes], count: u64) -> Vec<thread::JoinHandle<()>> {
    let connections = all.iter().zip(1..).map(|(&writes, who)| {
        let connection = Connection::new(host, writes);
        thread::spawn(move || connection.run(who, count))
    });
    connections.collect()
}

fn join(threads: Vec<thread::JoinHandle<()>>) {
    for thread in threads {
        thread.join().expect("it has ended by itself");
    }
}

fn all_is_durable_and_everybody_hears_of_it(connections: &[Writes]) {
    let (mut writer, streams, disk) = start(1, MANY);
    let host = Host::new(&streams[0], &disk);
    join(spawn_connections(&host, connections, 2));
    writer.stop();
    assert_eq!(host.survive(), connections.len() * 4);
    assert!(writer.failed().borrow().is_none());
}

#[test]
fn who_waits_for_a_position_is_woken_when_the_thread_has_written_it() {
    explore(|| all_is_durable_and_everybody_hears_of_it(&[Writes::Elsewhere; 2]));
}

#[test]
fn who_waits_for_a_position_is_woken_whoever_writes_it() {
    explore(|| all_is_durable_and_everybody_hears_of_it(&[Writes::Here, Writes::Here, Writes::Elsewhere]));
}

#[test]
fn what_is_brought_while_a_stream_is_opened_is_written() {
    explore(|| {
        let (mut writer, streams, disk) = start(1, MANY);
        let host = Host::new(&streams[0], &disk);
        let threads = spawn_connections(&host, &[Writes::Here], 2);
        let opening = writer.streams();
        let opened = thread::spawn(move || [2, 3].map(|number| opening.open(number)));
        join(threads);
        let opened = opened.join().expect("it has ended by itself").map(|stream| Host::new(&stream, &disk));
        for host in &opened {
            Connection::new(host, Writes::Elsewhere).run(1, 1);
        }
        writer.stop();
        assert_eq!((host.survive(), opened.map(|host| host.survive())), (4, [2, 2]));
    });
}

#[test]
fn each_stream_is_written_in_its_order_and_no_group_is_split() {
    explore(|| {
        let (mut writer, streams, disk) = start(2, MANY);
        let hosts = [Host::new(&streams[0], &disk), Host::new(&streams[1], &disk)];
        let connections = [(0, Writes::Here), (0, Writes::Elsewhere), (1, Writes::Elsewhere)];
        let threads = connections.into_iter().zip(1..).map(|((host, writes), who)| {
            let mut connection = Connection::new(&hosts[host], writes);
            thread::spawn(move || {
                connection.bring(&[large_change(who, 0), change(who, 1)]);
                connection.bring(&[change(who, 2), large_change(who, 3), change(who, 4)]);
            })
        });
        let threads: Vec<_> = threads.collect();
        // A power cut may come at any time.
        hosts[0].survive();
        hosts[1].survive();
        join(threads);
        writer.stop();
        assert_eq!(hosts.map(|host| host.survive()), [10, 5]);
    });
}

fn note(orders: &Orders) -> u64 {
    let restated = NodeChange::Restated { last_stream: 1 };
    orders.append_to_node(vec![restated]).expect("the writer goes on").expect("there is room")
}

#[test]
fn who_asks_the_writer_is_answered_after_what_came_before() {
    explore(|| {
        let (mut writer, streams, disk) = start(2, MANY);
        let hosts = [Host::new(&streams[0], &disk), Host::new(&streams[1], &disk)];
        let threads = hosts.iter().zip(1..).map(|(host, who)| {
            let (mut connection, orders) = (Connection::new(host, Writes::Elsewhere), writer.orders());
            thread::spawn(move || {
                connection.bring(&[large_change(who, 0)]);
                let position = connection.host.decide(&[large_change(who, 1)]);
                assert!(orders.flush().expect("the writer goes on"));
                connection.host.assert_durable(position);
            })
        });
        let mut threads: Vec<_> = threads.collect();
        let orders = writer.orders();
        threads.push(thread::spawn(move || {
            let first = note(&orders);
            assert!(note(&orders) > first);
        }));
        join(threads);
        writer.stop();
    });
}

#[test]
fn nobody_waits_for_ever_and_nothing_counts_as_durable_after_a_failed_sync() {
    explore(|| {
        let (writer, streams, disk) = start(1, MANY);
        // The second thing that is done from now on: the sync of the first batch.
        disk.fail_sync_at(disk.operations() + 2);
        let host = Host::new(&streams[0], &disk);
        let mut threads = Vec::new();
        for (writes, who) in [(Writes::Here, 1), (Writes::Elsewhere, 2)] {
            let (mut connection, mut failed) = (Connection::new(&host, writes), writer.failed());
            threads.push(thread::spawn(move || {
                connection.bring(&[change(who, 0)]);
                connection.catch_up();
                block_on(async {
                    tokio::select! {
                        biased;
                        reason = failed.wait_for(Option::is_some) => assert!(reason.is_ok(), "it has a reason"),
                        () = connection.outbox.filled() => panic!("nothing is durable"),
                    }
                });
                connection.bring(&[change(who, 1)]);
                assert_eq!(connection.host.stream.durable(), JournalPosition(0));
            }));
        }
        let orders = writer.orders();
        threads.push(thread::spawn(move || {
            // Before anything was to be written, it may still have done what it was asked for.
            while orders.flush().is_ok() {
                thread::yield_now();
            }
            assert!(orders.append_to_node(Vec::new()).is_err());
        }));
        join(threads);
        assert_eq!(host.survive(), 0);
    });
}

#[test]
fn who_waits_since_too_much_is_unwritten_goes_on_when_it_is_written_or_there_is_room() {
    explore(|| {
        let (mut writer, streams, disk) = start(1, 1);
        let host = Host::new(&streams[0], &disk);
        let mut threads = Vec::new();
        for (writes, who) in [(Writes::Here, 1), (Writes::Elsewhere, 2)] {
            let mut connection = Connection::new(&host, writes);
            threads.push(thread::spawn(move || {
                for at in 0..3 {
                    let mut congestion = connection.host.stream.congestion().expect("it is kept");
                    while congestion.borrow_and_update().holds(Appended::Changes) {
                        step();
                        block_on(congestion.changed()).expect("the writer is there");
                    }
                    connection.bring(&[change(who, at)]);
                }
            }));
        }
        let orders = writer.orders();
        threads.push(thread::spawn(move || {
            orders.set_room(0, u64::MAX);
            orders.set_acks_wait(AcksWait::No);
            orders.set_room(u64::MAX, 0);
            orders.set_acks_wait(AcksWait::OnceThereIsMore);
            orders.set_acks_wait(AcksWait::Yes);
        }));
        join(threads);
        writer.stop();
        assert_eq!(host.survive(), 6);
        assert_eq!(*streams[0].congestion().expect("it is kept").borrow(), Congestion::None);
    });
}
