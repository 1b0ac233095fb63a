//! The limits of the server: name, unit, who enforces it, what the peer sees.

use std::time::Duration;

use leveret_broker::limits::{UNITS_PER_HOLD, WINDOW_BYTES_MAX};

/// Bytes read from a socket at once. One buffer for each worker thread, not for each connection.
pub(crate) const READ_BYTES: usize = 128 * 1024;

/// Connections that are listed with the lock on all of them held, which those that come and go wait for.
pub(crate) const CONNECTIONS_PER_HOLD: usize = 1024;

/// Units of work after which a virtual host is unlocked by those who look at it: fewer than others have, as what is listed
/// is written down before the next task has a turn.
pub(crate) const VIEWED_UNITS_PER_HOLD: u32 = UNITS_PER_HOLD / 4;

/// Encoded bytes that a socket has not taken, above which its connection is not read. Deliveries stop at
/// [`WINDOW_BYTES_MAX`], so what lies above are answers to the client's own commands.
pub(crate) const UNSENT_BYTES_MAX: usize = 2 * WINDOW_BYTES_MAX;

/// Bytes of answers that may wait for any client, however many others wait for theirs.
pub(crate) const UNREAD_BYTES_SMALL: usize = 16 * 1024;

/// Encoded bytes that a worker thread keeps room for between two connections' turns.
pub(crate) const SPARE_BYTES_MAX: usize = 4 * 1024 * 1024;

/// Bytes that are written and synced at once, or most of a segment if that is less; more only if they belong together.
pub(crate) const WRITTEN_BYTES_MAX: usize = 64 * 1024 * 1024;

/// Bytes that wait for the journal, up to which a connection that waits for them may write them itself.
pub(crate) const WRITTEN_HERE_BYTES_MAX: usize = 64 * 1024;

/// Nanoseconds that writes take with their syncs, up to which it may. It is as long as others wait for the lock of a virtual
/// host; on a slower disk, to wake the journal's thread is a small part of the whole.
pub(crate) const WRITTEN_HERE_NANOS_MAX: u64 = 500_000;

/// So many times the bytes of the last checkpoint the journal grows before the next one, so that they are a small part of
/// it; a segment, if that is more.
pub(crate) const CHECKPOINT_GROWTH: u64 = 16;

/// And at least so many times, whatever else is said.
pub(crate) const CHECKPOINT_GROWTH_MIN: u64 = 4;

/// If a start would have to read more than so many times what the journal grows between two checkpoints, the next one is
/// written at once.
pub(crate) const CHECKPOINT_INTERVALS_MAX: u64 = 3;

/// How often is looked whether so much was consumed that a checkpoint would make room.
pub(crate) const CHECKPOINT_LOOK_EVERY: Duration = Duration::from_secs(1);

/// Bytes of a checkpoint that wait for the journal at once.
pub(crate) const CHECKPOINT_PENDING_BYTES: usize = 256 * 1024;

/// But not more than what lives in the journal divided by this, as what is between checkpoints takes room.
pub(crate) const CHECKPOINT_LIVING_PART: u64 = 8;

/// Changes for which the thread of the journal keeps room between two batches.
pub(crate) const TAKEN_CHANGES_KEPT: usize = 16 * 1024;

/// Bytes that wait for the journal, above which connections that publish persistent messages are not read; a
/// thirty-second part of the limit on memory, if that is less.
/// They are read again when half of it is written. Connections that only ack, declare and the like are not read from twice
/// as many on.
pub(crate) const PENDING_BYTES_MAX: usize = 32 * 1024 * 1024;

/// Deliveries that consumers of one channel may leave unacked at any limit on memory: what a client may say as its prefetch.
pub(crate) const UNACKED_LEAST: u64 = 65_535;

/// How often is looked whether a client is still there that waits for its login to be checked.
pub(crate) const HANG_UP_LOOK_EVERY: Duration = Duration::from_millis(250);

/// How often is looked what the process takes as a whole, if nothing else asks for that.
pub(crate) const MEASURE_EVERY: Duration = Duration::from_secs(1);

/// How often the allocator is asked to give memory back while the process takes too much.
pub(crate) const GIVE_BACK_EVERY: Duration = Duration::from_secs(1);

/// Least bytes that a queue keeps of what it delivers next, and fetches ahead, however little memory there is.
pub(crate) const READ_AHEAD_BYTES_MIN: usize = 8 * 1024;

/// Turns to leave a virtual host that there are at once. A client that is gone and holds no delivery takes one, any other all.
pub(crate) const LEAVE_AT_ONCE: u32 = 16;

/// Records of a journal that are read between two looks at the memory they take and at the clock.
pub(crate) const RECORDS_BETWEEN_LOOKS: u64 = 4096;

/// While publishers wait for memory: how often is looked whether there is some again.
pub(crate) const MEMORY_LOOK_EVERY: Duration = Duration::from_millis(5);

/// How long publishers wait for memory before they are told that they are blocked: the disk may only have been busy.
pub(crate) const BLOCKED_AFTER: Duration = Duration::from_millis(250);

/// Part of the machine's memory, or of its control group's, that a node takes if nothing else is said.
/// RabbitMQ: `vm_memory_high_watermark.relative`, 0.4 up to 4.0.
pub(crate) const MEMORY_LIMIT_PERCENT: u64 = 40;

/// Least limit on memory that can be set, in bytes.
pub const MEMORY_LIMIT_MIN: u64 = 32 * 1024 * 1024;

/// Bytes that must be free where the data folder is, if nothing else is said. RabbitMQ: `disk_free_limit.absolute`, 50 MB.
pub(crate) const DISK_FREE_LIMIT: u64 = 50_000_000;

/// Segments that are kept ready for what must go on when publishers wait for the disk: one for what waits to be written when
/// they come to wait, and for acks, purges and deletes; two that checkpoints begin. What those need comes on top.
pub(crate) const RESERVE_SEGMENTS: usize = 3;

/// Checkpoints that there must be room for, those included that a start may need: one replaces the last but one.
pub(crate) const RESERVE_CHECKPOINTS: u64 = 3;

/// Bytes that one more message makes a checkpoint longer, about.
pub(crate) const CHECKPOINT_MESSAGE_BYTES: u64 = 8;

/// A segment takes as many bytes as the journal divided by this, at least [`SEGMENT_BYTES_SMALL`], at most `--segment-size`.
pub(crate) const SEGMENT_JOURNAL_PART: u64 = 8;

/// And not more than what is left of the disk divided by this, as several are kept ready; at least [`SEGMENT_BYTES_LEAST`].
pub(crate) const SEGMENT_LEFT_PART: u64 = 16;

/// Bytes of a segment where little is left of the disk.
pub(crate) const SEGMENT_BYTES_LEAST: u64 = 4 * 1024 * 1024;

/// Bytes of a segment of a small journal. A batch of a thousand messages of 1 KiB should not need one for itself.
pub(crate) const SEGMENT_BYTES_SMALL: u64 = 8 * 1024 * 1024;

/// How often is looked how much is free on the disk, if the journal takes no room meanwhile.
pub(crate) const DISK_LOOK_EVERY: Duration = Duration::from_secs(1);

/// The same while publishers wait for the disk. RabbitMQ: the disk monitor, up to ten times a second.
pub(crate) const DISK_SHORT_LOOK_EVERY: Duration = Duration::from_millis(100);

/// Within about this the room of all files is given back that are not needed, one after the other, while there is enough: a disk that
/// is told at once what is free (the mount option `discard`) was seen to hold up everybody for 1 to 6 ms each time.
pub(crate) const DISK_GIVE_WITHIN: Duration = Duration::from_millis(60);

/// But not more often than this: where there are many, several at a time.
pub(crate) const DISK_GIVE_EVERY: Duration = Duration::from_millis(20);

/// How many may wait before several go at a time.
pub(crate) const DISK_GIVE_MOST: u64 = 4;

/// How often the journal tries to write what a full disk had no room for.
pub(crate) const FULL_RETRY_EVERY: Duration = Duration::from_millis(100);

/// Bytes of transient messages that are written at once, or more if one message has more.
pub(crate) const SPILLED_BYTES: usize = 1024 * 1024;

/// Bytes that a transient message takes on disk beside its own, at most.
pub(crate) const SPILLED_OVERHEAD_BYTES: u64 = 32;

/// How often is looked whether scratch files are needed no more.
pub(crate) const SCRATCH_LOOK_EVERY: Duration = Duration::from_secs(1);

/// How long transient messages that could not be written out stay in memory before that is tried again.
pub(crate) const SPILL_RETRY_EVERY: Duration = Duration::from_secs(1);

/// How often a body is tried to be read again for which the process has no file or memory left.
pub(crate) const READ_RETRY_EVERY: Duration = Duration::from_millis(100);

/// While there is little room on the disk, checkpoints follow each other; after each one passes so many times what it took.
pub(crate) const SHORT_REST_FACTOR: u32 = 4;

/// Bytes of changes that the journal takes together or not at all, though nothing asks for that: fewer pieces to count.
pub(crate) const GROUP_BYTES: usize = 256 * 1024;

/// Bytes of contents that are not complete, which a connection may always have.
pub(crate) const ARRIVING_BYTES_SMALL: usize = 8 * 1024;

/// How long a connection may bring less than [`ARRIVING_TURN_BYTES`] of a larger one, while all together take more than they
/// may. Connection 506.
pub(crate) const ARRIVING_TURN: Duration = Duration::from_secs(10);

/// Bytes that are enough for so long.
pub(crate) const ARRIVING_TURN_BYTES: usize = 1024 * 1024;

/// How long it may bring less than [`ARRIVING_SLICE_BYTES`] before others go first. The time in which it waited for its turn counts,
/// as a client goes on sending until the buffers of the connection are full.
pub(crate) const ARRIVING_SLICE: Duration = Duration::from_millis(20);

/// How long it has at least to bring what came while it waited.
pub(crate) const ARRIVING_SLICE_MIN: Duration = Duration::from_millis(5);

/// Bytes that are enough for so long.
pub(crate) const ARRIVING_SLICE_BYTES: usize = 4 * 1024;

/// How long it may bring less than [`ARRIVING_SLICE_BYTES`], while all together take twice as much as they may and others wait.
/// Connection 506.
pub(crate) const ARRIVING_SLOW: Duration = Duration::from_millis(500);

/// If so many wait for the one that has the turn meanwhile, it loses it after half of [`ARRIVING_SLOW`]; if twice as many, after a
/// third. The next ones bring more yet, so that is what several keep side by side.
pub(crate) const ARRIVING_SLOW_SHARED: u32 = 8;

/// It keeps it for so long, however many wait: in half a second ten of them have one.
pub(crate) const ARRIVING_SLOW_MIN: Duration = Duration::from_millis(50);

/// How long nothing is journaled before a marker says on disk that all is durable.
pub(crate) const IDLE_BEFORE_MARK: Duration = Duration::from_millis(10);

/// How long a connection that has ended may take to be closed by its client, too.
pub(crate) const LINGER: Duration = Duration::from_secs(2);

/// How long clients may take to answer `connection.close` when the broker stops.
pub(crate) const SHUTDOWN_TIMEOUT: Duration = Duration::from_secs(5);

/// How long to wait before accepting again after accepting failed, for example for want of file descriptors.
pub(crate) const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// How often a free port is looked for that all addresses have free, before giving up.
pub(crate) const FREE_PORT_TRIES: u32 = 50;

/// Connections that wait to be accepted. RabbitMQ: `tcp_listen_options.backlog`, 128; more survive a storm.
pub(crate) const BACKLOG: u32 = 1024;

const _: () = assert!(WINDOW_BYTES_MAX < UNSENT_BYTES_MAX);

/// Logins from one address that are checked at once; others from there wait for them. A network of IPv6 with 64 bits is one address.
pub(crate) const LOGINS_AT_ONCE: usize = 4;
