//! A writer on a disk that gets full, fails, or is quick.

use std::time::Duration;

use leveret_amqp::ShortStr;
use leveret_broker::change::{QueueNumber, QueuePosition};
use leveret_broker::names::UserName;
use leveret_journal::disk::{Disk, DiskFile};
use leveret_journal::{Options, RealDisk, Writes};

use super::super::pending::tests::changes;
use super::super::{AcksWait, Appended};
use super::*;
use crate::limits::PENDING_BYTES_MAX;

/// A folder on a disk that has so many bytes left.
struct SmallDisk {
    files: RealDisk,
    left: Arc<Mutex<u64>>,
}

struct SmallFile {
    file: Arc<dyn DiskFile>,
    left: Arc<Mutex<u64>>,
}

impl SmallDisk {
    fn of(&self, file: Arc<dyn DiskFile>) -> Arc<dyn DiskFile> {
        Arc::new(SmallFile { file, left: Arc::clone(&self.left) })
    }
}

impl Disk for SmallDisk {
    fn create(&self, name: &str) -> io::Result<Arc<dyn DiskFile>> {
        Ok(self.of(self.files.create(name)?))
    }

    fn open(&self, name: &str) -> io::Result<Arc<dyn DiskFile>> {
        Ok(self.of(self.files.open(name)?))
    }

    fn list(&self) -> io::Result<Vec<String>> {
        self.files.list()
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        self.files.rename(from, to)
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        self.files.remove(name)
    }

    fn sync_directory(&self) -> io::Result<()> {
        self.files.sync_directory()
    }

    fn free_bytes(&self) -> io::Result<u64> {
        Ok(*self.left.lock())
    }
}

impl DiskFile for SmallFile {
    fn write_at(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.file.write_at(offset, bytes)
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<usize> {
        self.file.read_at(offset, buffer)
    }

    fn sync(&self) -> io::Result<()> {
        self.file.sync()
    }

    fn preallocate(&self, end: u64) -> io::Result<()> {
        let more = end.saturating_sub(self.length()?);
        let mut left = self.left.lock();
        assert_ne!(*left, BROKEN, "whoever writes dies, as it should");
        *left = left.checked_sub(more).ok_or(io::ErrorKind::StorageFull)?;
        self.file.preallocate(end)
    }

    fn truncate(&self, end: u64) -> io::Result<()> {
        self.file.truncate(end)
    }

    fn length(&self) -> io::Result<u64> {
        self.file.length()
    }
}

/// Bytes that are left on a disk that ends its writer.
const BROKEN: u64 = 13;

/// A writer of two streams, its disk, and how much is left on it.
fn on_small_disk(folder: &tempfile::TempDir) -> (Writer, Vec<Arc<Stream>>, Arc<Mutex<u64>>) {
    let left = Arc::new(Mutex::new(1 << 30));
    let disk = SmallDisk { files: RealDisk::new(folder.path(), Writes::Direct).unwrap(), left: Arc::clone(&left) };
    let options = Options { segment_bytes: 1 << 16, salt: [1; 16] };
    let (log, _) = Log::open(Arc::new(disk), options, &mut |_| {}).unwrap();
    let streams = [(1, JournalPosition(0)), (2, JournalPosition(0))];
    let (writer, streams) = Writer::start(log, PENDING_BYTES_MAX, 0, &streams).unwrap();
    (writer, streams, left)
}

/// One of eight bytes for each of these places.
fn purged(places: u64) -> Change {
    let except = (0..places).map(QueuePosition).collect();
    Change::QueuePurged { queue: QueueNumber(1), below: QueuePosition(places), except }
}

/// One of three megabytes.
fn large() -> Change {
    purged(400_000)
}

#[test]
fn what_has_no_room_holds_up_nobody_else_and_is_written_when_there_is_some() {
    let folder = tempfile::tempdir().unwrap();
    let (mut writer, streams, left) = on_small_disk(&folder);
    let orders = writer.orders();
    assert!(orders.flush().unwrap());
    *left.lock() = 0;
    streams[0].append(&mut vec![large()], false);
    assert!(!orders.flush().unwrap(), "nobody waits for room");
    streams[1].append(&mut changes(5), false);
    assert!(!orders.flush().unwrap());
    assert_eq!((streams[0].durable(), streams[1].durable()), (JournalPosition(0), JournalPosition(5)));
    assert_eq!(orders.append_to_node(Vec::new()).unwrap(), Some(1));
    *left.lock() = 1 << 30;
    while !orders.flush().unwrap() {
        std::thread::yield_now();
    }
    assert_eq!(streams[0].durable(), JournalPosition(1));
    writer.stop();
    assert!(writer.failed().borrow().is_none());
}

/// Who changes nothing but users and virtual hosts makes checkpoints, too; what those say of the node makes no more of them.
#[test]
fn the_journal_grows_with_changes_of_the_node_and_not_with_its_checkpoints() {
    let folder = tempfile::tempdir().unwrap();
    let (writer, _, _) = on_small_disk(&folder);
    let deleted = NodeChange::UserDeleted { name: UserName::new(ShortStr::truncated("marie")) };
    writer.orders().append_to_node(vec![NodeChange::Restated { last_stream: 1 }, deleted.clone()]).unwrap();
    assert_eq!(writer.growth().bytes(), 0);
    writer.orders().append_to_node(vec![deleted]).unwrap();
    assert!(writer.growth().bytes() > 0);
}

#[test]
fn acks_wait_for_a_checkpoint_before_they_take_its_room() {
    let folder = tempfile::tempdir().unwrap();
    let (writer, streams, _) = on_small_disk(&folder);
    let orders = writer.orders();
    let congestion = |stream: &Arc<Stream>| {
        stream.append(&mut changes(1), false);
        *stream.congestion().unwrap().borrow()
    };
    orders.set_room(1 << 20, 0);
    assert!(!congestion(&streams[0]).holds(Appended::Changes));
    orders.set_room(1 << 20, 1);
    assert!(congestion(&streams[0]).holds(Appended::Changes), "less is ready than must be left");
    orders.set_acks_wait(AcksWait::No);
    assert!(!congestion(&streams[0]).holds(Appended::Changes), "none finds room");
    assert!(!congestion(&streams[0]).holds(Appended::Changes), "whoever comes");
    orders.set_acks_wait(AcksWait::Yes);
    assert!(congestion(&streams[0]).holds(Appended::Changes));
    orders.set_acks_wait(AcksWait::OnceThereIsMore);
    assert!(!streams[0].congestion().unwrap().borrow().holds(Appended::Changes), "no checkpoint would win more");
    assert!(congestion(&streams[0]).holds(Appended::Changes), "now one would, and must find room");
}

#[test]
fn who_asks_a_writer_that_has_panicked_is_told_that_it_has_ended() {
    let folder = tempfile::tempdir().unwrap();
    let (writer, streams, left) = on_small_disk(&folder);
    let orders = writer.orders();
    let (asked, answered) = std::sync::mpsc::channel();
    *left.lock() = BROKEN;
    streams[0].append(&mut vec![large()], false);
    std::thread::spawn(move || asked.send((orders.flush().is_err(), orders.flush().is_err())));
    assert_eq!(answered.recv_timeout(Duration::from_secs(20)), Ok((true, true)));
    streams[0].append(&mut changes(5), false);
    assert_eq!(streams[0].waiting_and_whole(), (0, 0), "nothing is kept for it");
}

/// Has the writer wait for more, but not for good.
fn wait_until_it_waits(writer: &Writer, stream: &Stream) {
    wait_until(|| writer.pending.rests());
    stream.append(&mut changes(1), false);
    stream.write_here();
    wait_until(|| writer.pending.times_taken() == 2);
}

fn wait_until(holds: impl Fn() -> bool) {
    let began = Instant::now();
    while !holds() {
        assert!(began.elapsed() < Duration::from_secs(20), "waited in vain");
        std::thread::yield_now();
    }
}

#[test]
fn little_is_written_by_whoever_waits_for_it_on_a_quick_disk() {
    let folder = tempfile::tempdir().unwrap();
    let (writer, streams, _) = on_small_disk(&folder);
    assert!(!streams[0].is_quick(), "nobody knows yet");
    for _ in 0..200 {
        writer.pending.set_write_took(Duration::ZERO);
    }
    assert!(streams[0].is_quick());
    for last in 1..4 {
        wait_until(|| writer.pending.rests());
        streams[1].append(&mut changes(1), false);
        streams[0].append(&mut changes(1), false);
        streams[0].write_here();
        assert_eq!((streams[0].durable().0, streams[1].durable().0), (last, last), "all that waits is written");
        // The writer is woken, as it has to say on disk that all is durable.
        wait_until(|| writer.pending.times_taken() == 2 * last);
    }
    streams[0].append(&mut vec![large()], false);
    assert!(!streams[0].is_quick(), "that is not little");
    streams[0].have_written();
    assert!(writer.orders().flush().unwrap());
    writer.pending.set_write_took(Duration::from_secs(1));
    assert!(!streams[0].is_quick(), "the disk is slow");
}

/// The writer waits for more, and neither sleeps for good nor writes, when somebody else has no room.
#[test]
fn what_had_no_room_is_tried_again_whoever_tried_first() {
    let folder = tempfile::tempdir().unwrap();
    let (writer, streams, left) = on_small_disk(&folder);
    wait_until_it_waits(&writer, &streams[1]);
    *left.lock() = 0;
    streams[0].append(&mut vec![purged(10_000)], false);
    streams[0].write_here();
    assert_eq!(streams[0].durable().0, 0);
    // The writer has waited long enough to say that all is durable.
    std::thread::sleep(4 * IDLE_BEFORE_MARK);
    assert!(!writer.pending.rests());
    *left.lock() = 1 << 30;
    wait_until(|| streams[0].durable().0 == 1);
}

#[test]
fn a_writer_that_waits_finds_that_somebody_else_has_failed() {
    let folder = tempfile::tempdir().unwrap();
    let (writer, streams, left) = on_small_disk(&folder);
    wait_until_it_waits(&writer, &streams[1]);
    *left.lock() = BROKEN;
    streams[0].append(&mut vec![purged(10_000)], false);
    let panicked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| streams[0].write_here()));
    assert!(panicked.is_err());
    wait_until(|| writer.failed.borrow().is_some());
}

#[test]
fn whoever_fails_to_write_ends_the_writer() {
    let folder = tempfile::tempdir().unwrap();
    let (writer, streams, left) = on_small_disk(&folder);
    let mut failed = writer.failed();
    wait_until(|| writer.pending.rests());
    *left.lock() = BROKEN;
    streams[0].append(&mut vec![large()], false);
    let panicked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| streams[0].write_here()));
    assert!(panicked.is_err());
    // The connection ends with the thread that panicked, and what it brought last wakes the writer.
    streams[0].have_written();
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let reason = runtime.block_on(failed.wait_for(Option::is_some)).unwrap().clone();
    assert_eq!(reason.as_deref(), Some("the journal cannot be written: whoever wrote it has panicked"));
    streams[0].append(&mut changes(5), false);
    assert_eq!(streams[0].waiting_and_whole(), (0, 0), "nothing is kept for it");
    streams[0].write_here();
    assert_eq!(streams[0].durable().0, 0);
}
