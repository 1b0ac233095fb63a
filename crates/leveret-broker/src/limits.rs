//! The limits of the broker's core: name, unit, who enforces it, what the peer sees.
//! What can be configured is in [`crate::Settings`], with its default.

use std::time::Duration;

/// Largest body any configuration allows, in bytes. RabbitMQ: the hard cap of `max_message_size`. Connection 501.
pub const BODY_BYTES_MAX: u64 = 512 * 1024 * 1024;

/// So many messages of the largest size may be on their way on one connection, each on a channel of its own and none
/// complete. Connection 506.
pub const UNFINISHED_MESSAGES_MAX: usize = 4;

/// Bytes of them that any configuration allows.
pub const UNFINISHED_BYTES_MIN: usize = 16 * 1024 * 1024;

/// Bytes of messages handed to a connection and not yet written to its socket, above which its consumers get no more; and
/// bytes of bodies in answers (`basic.get-ok`, `basic.return`), above which no further command of it is begun. It is less
/// where many connections have much to read: see [`crate::VirtualHost::set_window_room`].
pub const WINDOW_BYTES_MAX: usize = 1024 * 1024;

/// Bytes handed to a connection and not yet written to its socket, above which direct replies to it are unroutable.
pub const REPLY_WINDOW_BYTES: usize = 16 * WINDOW_BYTES_MAX;

/// Bytes a delivery counts in the window beside its message: frames, tag, bookkeeping.
pub const DELIVERY_OVERHEAD_BYTES: usize = 128;

/// Units of work (an enqueue, a delivery, a settlement) after which a virtual host lets go of its lock.
pub const UNITS_PER_HOLD: u32 = 4096;

/// Units of work that a queue does before the next command begins, or before another queue has its turn.
pub const UNITS_PER_RUN: u32 = UNITS_PER_HOLD / 4;

/// Messages of a row that the virtual host puts into a queue before that delivers any of them: enough that it pays to look
/// things up once, and few enough that they are still in the processor's cache then. Clients notice nothing.
pub const ROW_LYING_MAX: usize = 64;

/// Messages in a row, or that are published together. Clients notice nothing.
pub const ROW_MESSAGES_MAX: usize = 1024;

/// Bytes of a row: half of what the server reads at once. Clients notice nothing.
pub const ROW_BYTES_MAX: usize = 64 * 1024;

/// Bytes of a message in a row. To copy a larger one once more costs more than to allocate it. Clients notice nothing.
pub const ROW_MESSAGE_BYTES_MAX: usize = 4 * 1024;

/// A connection gets its messages of a row in that row if they are at least the row divided by this; else each by itself, so
/// that a few of them do not keep all in memory.
pub const ROW_PART_DIVISOR: usize = 4;

/// Acks of one delivery each, one tag after the other, that a connection makes one command of. It is executed as a whole, so a
/// hold of the lock may take so many units more. Clients notice nothing.
pub const ACKS_AT_ONCE: u8 = 64;

/// Units of work that freeing a page of messages counts.
pub const UNITS_PER_FREED_PAGE: u32 = 32;

/// Units of work that looking through a page for messages that expire counts.
pub const UNITS_PER_DUE_PAGE: u32 = 8;

/// Bytes of arguments that count as one unit of work where they are copied for somebody who looks.
pub const VIEWED_BYTES_PER_UNIT: usize = 256;

/// Steps of a search that one unit of work counts: a target, a consumer that is offered a turn.
pub const STEPS_PER_UNIT: usize = 16;

/// Steps that a look-up counts which leads anywhere in memory: a node of a topic, a header that a binding requires.
pub const STEPS_PER_LOOKUP: usize = 4;

/// Bytes of route and content header of a publish that a connection remembers, twice, to know the next one again. One with more is
/// taken in frame by frame. Clients notice nothing.
pub const REMEMBERED_PUBLISH_BYTES: usize = 1024;

/// (exchange, routing key) pairs whose queues a connection remembers.
pub const ROUTES_REMEMBERED: usize = 4;

/// Weight of one binding of an exchange of type `x-consistent-hash`. The weights of all of them have to add up. Channel 406.
pub const BINDING_WEIGHT_MAX: u32 = 1_000_000_000;

/// Routing keys that headers `CC` and `BCC` of one message may add, each counted once: each exchange on its way looks all
/// of them up. Channel 406.
pub const SELECTED_KEYS_MAX: usize = 1024;

/// Places in a queue by which the grant to deliver is written ahead; it is renewed when half of them are used.
pub const GRANT_AHEAD: u64 = 8192;

/// Bytes of the messages that one transaction holds, beside its first: it goes to the journal as a whole. Channel 406,
/// and the transaction is gone.
pub const TRANSACTION_BYTES_MAX: usize = 512 * 1024 * 1024;

/// Bytes that any connection may hold in transactions, and in consumers, however many others hold.
pub const HELD_BYTES_SMALL: usize = 16 * 1024;

/// Deliveries that consumers of a channel may leave unacked where nobody has set less: any number.
pub const UNACKED_ALL: u64 = u64::MAX / 2;

/// Bytes that each of them takes.
pub const UNACKED_BYTES: usize = 64;

/// Bytes that a consumer takes beside its tag and arguments: in its connection, its session and its queue.
pub const CONSUMER_BYTES: usize = 448;

/// Bytes that a queue takes beside its name and arguments, with what its first consumer and binding take there.
pub const QUEUE_BYTES: usize = 1536;

/// Bytes that it takes more for each priority that its messages may have, or for each length of their delays.
pub const LEVEL_BYTES: usize = 1024;

/// Bytes that an exchange takes beside its name and arguments.
pub const EXCHANGE_BYTES: usize = 768;

/// Bytes that a binding takes beside its key and arguments, and what a topic or headers exchange keeps for each word or header.
pub const BINDING_BYTES: usize = 512;

/// Policies that a virtual host may have of each kind: each is matched with the name of every queue and exchange. One more is
/// refused. RabbitMQ has no limit.
pub const POLICIES_MAX: usize = 1024;

/// Names that are matched with a policy count as one unit of work.
pub const MATCHES_PER_UNIT: usize = 4;

/// Entries in one page of a queue's index, and places of a block in a checkpoint: what is on disk has as many.
pub const PAGE_ENTRIES: usize = 256;

/// Empty places before a message that comes back to its own in a start, for which its page stays open: each takes as much there as a
/// message.
pub const EMPTY_PLACES_MAX: u64 = 16;

/// Bytes a message in memory takes beside its own: bookkeeping of the allocator and of its counter.
pub const BODY_OVERHEAD_BYTES: usize = 48;

/// Bytes of messages that are fetched at once for a queue that delivers, unless a driver with little memory asks for
/// less.
pub const READ_AHEAD_BYTES: usize = 1024 * 1024;

/// Messages that are fetched at once.
pub const READ_AHEAD_ENTRIES: usize = 4096;

/// Entries that one step of eviction looks at, with the lock held.
pub const EVICTED_PER_HOLD: usize = 4096;

/// Entries that looking at a queue at all counts beside those in it.
pub const EVICTED_PER_QUEUE: usize = 16;

/// Bytes of a message that is to be written out that count as much in such a step as another entry.
pub const SPILLED_BYTES_PER_ENTRY: usize = 1024;

/// Units of work that each part of a checkpoint counts beside the messages in it.
pub const CHECKPOINT_UNITS_PER_PART: u32 = 16;

/// So many times the units of one hold of the lock a checkpoint may walk at the end of a queue, in places, so that it
/// comes to an end however fast the queue is filled.
pub const CHECKPOINT_REST_FACTOR: u32 = 4;

/// How long a connection that the broker closed may take to answer `close-ok`.
/// RabbitMQ: min(heartbeat, 30) seconds.
pub const CLOSE_TIMEOUT_MAX: Duration = Duration::from_secs(30);

/// Longest time to live of a message or queue: ten years. RabbitMQ: `?MAX_EXPIRY_TIMER`. Channel 406.
pub const TTL_MAX: Duration = Duration::from_hours(10 * 365 * 24);

/// How often a message may fail in a queue of type quorum that does not say. RabbitMQ 4.0: delivery limit. It goes on
/// as a dead letter, or is gone.
pub const DELIVERY_LIMIT_DEFAULT: u64 = 20;

/// The highest priority in a queue of type quorum. RabbitMQ 4.3. Higher ones count as this.
pub const QUORUM_PRIORITY_MAX: u8 = 31;

/// The priority of a message that has none, in a queue of type quorum. RabbitMQ 4.3.
pub const QUORUM_PRIORITY_DEFAULT: u8 = 4;

/// How long a dead letter waits that has to be kept and that no queue takes, before it is tried again.
pub const DEAD_LETTER_RETRY: Duration = Duration::from_secs(1);

/// How long messages that go on from their queues wait while too much waits for the journal, before that is looked at again.
pub(crate) const DEPARTURE_RETRY: Duration = Duration::from_millis(5);

/// How far a message may go on by itself as a dead letter: how many were made of it on the way, each time rounded up to a
/// power of two, times the square of how often it died since it was published or somebody rejected it. The first time
/// it goes on in any case. So one message takes a bounded part of the disk, whatever queues lead to: queues that all lead to each
/// other could pass it on in every order that there is. Letters beyond are gone. RabbitMQ has no limit.
pub const DEAD_LETTERS_MAX: u64 = 65_536;

/// Deliveries on one channel that were taken back from a late consumer and that the client may still settle, each once and to
/// no effect. Of older ones it may settle any, any number of times.
pub const TAKEN_BACK_KEPT: usize = 4096;

/// Bytes of the text of a pattern: more than two hundred names of usual length. The pattern is refused.
pub const PATTERN_TEXT_BYTES_MAX: usize = 4 * 1024;

/// Bytes that a compiled pattern may take, about. The pattern is refused. To compile one takes at most eight times as much at once,
/// and 32 times as much in all.
pub const PATTERN_BYTES_MAX: usize = 256 * 1024;

/// Exchanges, bindings and queues of each kind that an explanation tells of.
pub const EXPLAINED_MAX: usize = 1000;

/// Bindings that an explanation tries by themselves to find those that match. Of targets behind these it says no binding.
pub const EXPLAINED_TRIES_MAX: usize = 10 * EXPLAINED_MAX;

/// What a user was allowed that a connection remembers, so that no pattern is searched again. RabbitMQ:
/// `MAX_PERMISSION_CACHE_SIZE`.
pub const PERMISSIONS_REMEMBERED: usize = 12;

/// Bytes of a name that a peer has chosen, as the log shows it. No name that a user, a queue or an exchange can have is longer.
pub const LOGGED_NAME_BYTES_MAX: usize = leveret_amqp::limits::SHORT_STRING_BYTES_MAX;

/// Faults on channels of one connection that the log tells in each [`CHANNEL_FAULTS_PERIOD`]. Others are counted there.
pub const CHANNEL_FAULTS_TOLD_MAX: usize = 10;

/// See [`CHANNEL_FAULTS_TOLD_MAX`].
pub const CHANNEL_FAULTS_PERIOD: Duration = Duration::from_secs(10);

/// Longest reply text, in bytes: it is a short string. AMQP 0-9-1 §1.1.
pub const REPLY_TEXT_BYTES_MAX: usize = leveret_amqp::limits::SHORT_STRING_BYTES_MAX;

const _: () = assert!(DELIVERY_OVERHEAD_BYTES < WINDOW_BYTES_MAX);
// The first two have room, and offsets into it are of 32 bits.
const _: () = assert!(2 * ROW_MESSAGE_BYTES_MAX <= ROW_BYTES_MAX && ROW_BYTES_MAX < u32::MAX as usize);
