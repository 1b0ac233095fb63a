//! What a run does: a configuration and a list of steps, all of it data, so that it can be written down, shortened and
//! repeated.
//!
//! Owns: how both follow from a seed. A step means something in any state, or nothing; so steps can be left out.

use rand::rngs::SmallRng;
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};
use serde::{Deserialize, Serialize};

/// Delayed messages wait for less than so long.
pub(crate) const DELAY_MS_MOST: u32 = 5000;

/// Queues of each virtual host that clients publish to.
pub(crate) const ORDINARY_QUEUES: u8 = 5;
/// Queues behind them that only dead letters reach.
pub(crate) const DEAD_QUEUES: u8 = 2;
/// All queues of a virtual host.
pub(crate) const QUEUES: u8 = ORDINARY_QUEUES + DEAD_QUEUES;
/// Names for bindings and routing keys.
pub(crate) const KEYS: [&str; 6] = ["a", "b", "a.b", "a.c", "b.c.a", ""];
/// Binding keys of topic exchanges.
pub(crate) const PATTERNS: [&str; 7] = ["a", "#", "*.b", "a.#", "a.*", "#.a", "*.c.#"];

const STEPS_LEAST: usize = 200;
const STEPS_MOST: usize = 2000;

/// How far the wall clock is set forth or back: ten years.
const CLOCK_SECONDS_MOST: i64 = 10 * 365 * 24 * 60 * 60;

/// A run.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Plan {
    /// What stays the same while it runs.
    pub config: Config,
    /// What happens, in order.
    pub steps: Vec<Step>,
}

/// What stays the same while a run goes on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[expect(clippy::struct_excessive_bools, reason = "each is chosen for itself")]
pub struct Config {
    /// How many virtual hosts there are.
    pub vhosts: u8,
    /// How many clients; the first ones are in the first virtual host.
    pub clients: u8,
    /// Bytes of a segment of the journal.
    pub segment_bytes: u64,
    /// How often of 100 times the journal is written behind a step; the rest of the time it lags.
    pub journal_percent: u8,
    /// How many groups of changes are written at once, at most.
    pub groups_most: u8,
    /// Which bodies are evicted, in hundredths.
    pub evict_percent: u8,
    /// Whether what clients send arrives in pieces.
    pub splits: bool,
    /// Whether clients take their time to read.
    pub slow_readers: bool,
    /// The queues, the same ones in each virtual host.
    pub queues: Vec<QueueSpec>,
    /// Whether each of the exchanges is durable.
    pub durable_exchanges: bool,
    /// Whether what matches nothing in the direct exchange goes to the fanout exchange.
    pub alternate: bool,
    /// Whether the delayed exchange is a direct one behind the delay, or a fanout exchange.
    pub delayed_direct: bool,
    /// Whether clients stop within what they publish.
    #[serde(default)]
    pub halts: bool,
    /// Whether some connections have a heartbeat.
    #[serde(default)]
    pub heartbeats: bool,
    /// Deliveries that the consumers of a channel may leave unacked, whatever their prefetch.
    #[serde(default)]
    pub unacked_most: Option<u8>,
    /// The disk claims to have synced, and has not. What is found with this, can be found.
    pub lies: bool,
}

/// What a queue is declared with.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[expect(clippy::struct_excessive_bools, reason = "the fields of queue.declare")]
pub struct QueueSpec {
    /// Argument `x-queue-type`.
    pub quorum: bool,
    /// Field durable.
    pub durable: bool,
    /// Field exclusive.
    pub exclusive: bool,
    /// Field auto-delete.
    pub auto_delete: bool,
    /// Argument `x-message-ttl`.
    pub ttl_ms: Option<u32>,
    /// Argument `x-expires`.
    pub expires_ms: Option<u32>,
    /// Argument `x-max-length`.
    pub max_length: Option<u32>,
    /// Argument `x-max-length-bytes`.
    pub max_bytes: Option<u32>,
    /// Argument `x-overflow`.
    pub overflow: Option<Overflow>,
    /// Arguments `x-dead-letter-exchange` and `x-dead-letter-routing-key`.
    pub dead: Option<Dead>,
    /// Argument `x-dead-letter-strategy`.
    #[serde(default)]
    pub strategy: Option<Strategy>,
    /// Argument `x-max-priority`; a quorum queue passes it over.
    pub max_priority: Option<u8>,
    /// Argument `x-single-active-consumer`.
    pub single_active: bool,
    /// Argument `x-delivery-limit`.
    pub delivery_limit: Option<i8>,
    /// Argument `x-consumer-timeout`.
    #[serde(default)]
    pub consumer_timeout_ms: Option<u32>,
}

impl QueueSpec {
    /// Whether it has the same in it when many messages arrive at once and when one is handed out after the other, before a crash,
    /// too: none is too many, and no journal is to know them.
    pub(crate) fn takes_all_at_once(&self, persistent: bool) -> bool {
        let is_limited = self.max_length.is_some() || self.max_bytes.is_some();
        !is_limited && !self.journals(persistent)
    }

    /// Whether a journal knows of messages in it.
    pub(crate) fn journals(&self, persistent: bool) -> bool {
        self.durable && (persistent || self.quorum)
    }

    /// What it does when it is full.
    pub(crate) fn when_full(&self) -> Overflow {
        match self.overflow {
            None => Overflow::DropHead,
            // RabbitMQ: what a quorum queue does not know counts as the default.
            Some(Overflow::RejectDead) if self.quorum => Overflow::DropHead,
            Some(overflow) => overflow,
        }
    }

    /// Whether dead letters stay in it until they are taken.
    pub(crate) fn keeps_letters(&self) -> bool {
        let strategy = self.strategy.filter(|_| self.dead.is_some() && self.overflow == Some(Overflow::Reject));
        strategy == Some(Strategy::AtLeastOnce)
    }
}

/// What a full queue does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Overflow {
    /// `drop-head`
    DropHead,
    /// `reject-publish`
    Reject,
    /// `reject-publish-dlx`
    RejectDead,
}

/// Where dead letters go.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Dead {
    /// To the default exchange, with the name of this queue.
    Queue(u8),
    /// To the exchange that is there for dead letters.
    Exchange,
}

/// What becomes of a dead letter that nobody takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Strategy {
    /// `at-most-once`
    AtMostOnce,
    /// `at-least-once`
    AtLeastOnce,
}

/// The exchanges of each virtual host.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum ExchangeName {
    /// `direct`
    Direct,
    /// `fanout`
    Fanout,
    /// `topic`
    Topic,
    /// `headers`
    Headers,
    /// `x-delayed-message`
    Delayed,
    /// A fanout exchange for dead letters.
    Dead,
}

impl ExchangeName {
    pub(crate) const ALL: [ExchangeName; 6] = [
        ExchangeName::Direct,
        ExchangeName::Fanout,
        ExchangeName::Topic,
        ExchangeName::Headers,
        ExchangeName::Delayed,
        ExchangeName::Dead,
    ];

    /// As it is called.
    pub(crate) fn name(self) -> &'static str {
        match self {
            ExchangeName::Direct => "direct",
            ExchangeName::Fanout => "fan",
            ExchangeName::Topic => "topic",
            ExchangeName::Headers => "headers",
            ExchangeName::Delayed => "later",
            ExchangeName::Dead => "dead",
        }
    }
}

/// Where a message goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum To {
    /// To the default exchange, with the name of this queue.
    Queue(u8),
    /// To an exchange.
    Exchange(ExchangeName),
    /// To an exchange that does not exist: the channel is closed.
    Nowhere,
}

/// How deliveries are settled.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Settling {
    /// `basic.ack`
    Ack,
    /// `basic.nack` without requeue
    Nack,
    /// `basic.nack` with requeue
    NackRequeue,
    /// `basic.reject` without requeue
    Reject,
    /// `basic.reject` with requeue
    RejectRequeue,
}

/// The channels of each client, by what they are for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Mode {
    /// Neither confirms nor transactions.
    Plain,
    /// Confirms.
    Confirm,
    /// Transactions.
    Transaction,
}

impl Mode {
    pub(crate) const ALL: [Mode; 3] = [Mode::Plain, Mode::Confirm, Mode::Transaction];
}

/// What happens when the power is cut, to what was not synced.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Cut {
    /// It is lost.
    Lost,
    /// It is there all the same.
    Kept,
    /// Each write is lost, kept or torn.
    Mixed,
}

/// Something that happens.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[expect(missing_docs, reason = "the names say it")]
pub enum Op {
    Publish {
        client: u8,
        mode: Mode,
        to: To,
        key: u8,
        persistent: bool,
        priority: Option<u8>,
        expiration_ms: Option<u32>,
        delay_ms: Option<u32>,
        bytes: u16,
        mandatory: bool,
        /// So many more like it arrive together with it, if they go straight to a queue that takes them all and keeps them in memory.
        #[serde(default)]
        more: u8,
    },
    Get {
        client: u8,
        mode: Mode,
        queue: u8,
        no_ack: bool,
    },
    Consume {
        client: u8,
        mode: Mode,
        queue: u8,
        no_ack: bool,
        prefetch: u16,
    },
    Cancel {
        client: u8,
        nth: u8,
    },
    Settle {
        client: u8,
        mode: Mode,
        nth: u8,
        multiple: bool,
        settling: Settling,
    },
    SettleUnknown {
        client: u8,
        mode: Mode,
    },
    Recover {
        client: u8,
        mode: Mode,
    },
    EndTransaction {
        client: u8,
        commit: bool,
    },
    DeclareQueue {
        client: u8,
        queue: u8,
    },
    CountQueue {
        client: u8,
        queue: u8,
    },
    DeleteQueue {
        client: u8,
        queue: u8,
        if_empty: bool,
        if_unused: bool,
    },
    PurgeQueue {
        client: u8,
        queue: u8,
    },
    DeclareExchange {
        client: u8,
        exchange: ExchangeName,
    },
    DeleteExchange {
        client: u8,
        exchange: ExchangeName,
    },
    BindQueue {
        client: u8,
        queue: u8,
        exchange: ExchangeName,
        key: u8,
    },
    UnbindQueue {
        client: u8,
        queue: u8,
        exchange: ExchangeName,
        key: u8,
    },
    CloseChannel {
        client: u8,
        mode: Mode,
    },
    Disconnect {
        client: u8,
        politely: bool,
    },
    Wait {
        ms: u32,
    },
    /// So much time passes at once, as where a machine sleeps: what is due meanwhile is late.
    Jump {
        ms: u32,
    },
    /// The wall clock is set to what it would be by now, and so many seconds more, or less.
    SetClock {
        seconds: i64,
    },
    WriteJournal,
    MarkJournal,
    KeepSpares,
    Checkpoint {
        units: u16,
    },
    Restart,
    /// The power is cut after so many operations of the disk, now or whenever there were as many.
    Crash {
        operations: u8,
        now: bool,
        cut: Cut,
        cuts_of_recovery: u8,
    },
    /// One of the next syncs fails, of files or of the folder. The process ends; then the power is cut, or not.
    FailSync {
        folder: bool,
        operations: u8,
        cut: Option<Cut>,
    },
    /// So many bytes are free.
    FillDisk {
        bytes: u32,
    },
    EmptyDisk,
}

impl Op {
    /// For the table of how often each occurred.
    pub(crate) fn name(&self) -> &'static str {
        match self {
            Op::Publish { mode: Mode::Plain, .. } => "publish",
            Op::Publish { mode: Mode::Confirm, .. } => "publish, confirmed",
            Op::Publish { mode: Mode::Transaction, .. } => "publish in a transaction",
            Op::Get { .. } => "get",
            Op::Consume { .. } => "consume",
            Op::Cancel { .. } => "cancel",
            Op::Settle { settling: Settling::Ack, multiple: false, .. } => "ack",
            Op::Settle { settling: Settling::Ack, multiple: true, .. } => "ack, multiple",
            Op::Settle { settling: Settling::Nack, .. } => "nack",
            Op::Settle { settling: Settling::NackRequeue, multiple: false, .. } => "nack, requeue",
            Op::Settle { settling: Settling::NackRequeue, multiple: true, .. } => "nack, requeue, multiple",
            Op::Settle { settling: Settling::Reject, .. } => "reject",
            Op::Settle { settling: Settling::RejectRequeue, .. } => "reject, requeue",
            Op::SettleUnknown { .. } => "ack of an unknown tag",
            Op::Recover { .. } => "recover",
            Op::EndTransaction { commit: true, .. } => "commit",
            Op::EndTransaction { commit: false, .. } => "rollback",
            Op::DeclareQueue { .. } => "declare a queue",
            Op::CountQueue { .. } => "declare passively",
            Op::DeleteQueue { .. } => "delete a queue",
            Op::PurgeQueue { .. } => "purge",
            Op::DeclareExchange { .. } => "declare an exchange",
            Op::DeleteExchange { .. } => "delete an exchange",
            Op::BindQueue { .. } => "bind",
            Op::UnbindQueue { .. } => "unbind",
            Op::CloseChannel { .. } => "close a channel",
            Op::Disconnect { politely: true, .. } => "close a connection",
            Op::Disconnect { politely: false, .. } => "lose a connection",
            Op::Wait { .. } => "time passes",
            Op::Jump { .. } => "time jumps",
            Op::SetClock { .. } => "wall clock set",
            Op::WriteJournal => "write the journal",
            Op::MarkJournal => "mark the journal",
            Op::KeepSpares => "make spares",
            Op::Checkpoint { .. } => "checkpoint step",
            Op::Restart => "restart in good order",
            Op::Crash { now: true, .. } => "power cut",
            Op::Crash { now: false, .. } => "power cut to come",
            Op::FailSync { folder: false, .. } => "failing sync to come",
            Op::FailSync { folder: true, .. } => "failing sync of the folder to come",
            Op::FillDisk { .. } => "full disk",
            Op::EmptyDisk => "room again",
        }
    }
}

/// A step.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Step {
    /// What happens.
    pub op: Op,
    /// What decides how: where bytes are split, what is evicted, what is lost.
    pub luck: u64,
}

/// Takes the place of `None` once in so many times.
fn sometimes<T>(random: &mut SmallRng, percent: u32, value: impl FnOnce(&mut SmallRng) -> T) -> Option<T> {
    (random.random_range(0..100) < percent).then(|| value(random))
}

impl QueueSpec {
    fn random(random: &mut SmallRng, slot: u8) -> Self {
        let is_dead = slot >= ORDINARY_QUEUES;
        let quorum = random.random_bool(0.3);
        let exclusive = !quorum && !is_dead && random.random_bool(0.08);
        let mut spec = QueueSpec {
            quorum,
            durable: quorum || (!exclusive && random.random_bool(0.8)),
            exclusive,
            auto_delete: !quorum && !is_dead && random.random_bool(0.08),
            ttl_ms: sometimes(random, 20, |random| *[0, 1, 50, 1000, 5000].choose(random).unwrap_or(&1000)),
            ..QueueSpec::default()
        };
        if is_dead {
            return spec;
        }
        spec.expires_ms = sometimes(random, 6, |random| random.random_range(500..20_000));
        spec.max_length = sometimes(random, 25, |random| random.random_range(0..8));
        spec.max_bytes = sometimes(random, 10, |random| random.random_range(10..2000));
        spec.overflow = sometimes(random, 60, |random| {
            [Overflow::DropHead, Overflow::Reject, Overflow::RejectDead][random.random_range(0..3)]
        })
        .filter(|_| spec.max_length.is_some() || spec.max_bytes.is_some());
        spec.dead = sometimes(random, 45, |random| match random.random_range(0..3) {
            0 => Dead::Exchange,
            _ => Dead::Queue(random.random_range(ORDINARY_QUEUES..QUEUES)),
        });
        spec.strategy = sometimes(random, 60, |random| match random.random_range(0..3) {
            0 => Strategy::AtMostOnce,
            _ => Strategy::AtLeastOnce,
        })
        .filter(|_| quorum);
        if spec.strategy.is_some() && random.random_bool(0.6) {
            spec.overflow = Some(Overflow::Reject);
        }
        spec.max_priority = sometimes(random, 20, |random| random.random_range(1..6));
        spec.single_active = random.random_bool(0.12);
        spec.delivery_limit = sometimes(random, 60, |random| random.random_range(-1..4)).filter(|_| quorum);
        spec.consumer_timeout_ms =
            sometimes(random, 12, |random| *[1, 50, 200, 1000, 5000].choose(random).unwrap_or(&1000));
        spec
    }
}

impl Config {
    fn random(random: &mut SmallRng) -> Self {
        let vhosts = if random.random_bool(0.3) { 2 } else { 1 };
        Config {
            vhosts,
            clients: vhosts + random.random_range(1..4),
            segment_bytes: *[8192, 16_384, 65_536, 262_144].choose(random).unwrap_or(&16_384),
            journal_percent: *[100, 100, 60, 25, 8].choose(random).unwrap_or(&100),
            groups_most: *[1, 3, 20, 255].choose(random).unwrap_or(&255),
            evict_percent: *[0, 0, 30, 100].choose(random).unwrap_or(&0),
            splits: random.random_bool(0.5),
            slow_readers: random.random_bool(0.25),
            queues: (0..QUEUES).map(|slot| QueueSpec::random(random, slot)).collect(),
            durable_exchanges: random.random_bool(0.9),
            alternate: random.random_bool(0.3),
            delayed_direct: random.random_bool(0.5),
            halts: random.random_bool(0.4),
            heartbeats: random.random_bool(0.4),
            unacked_most: sometimes(random, 20, |random| random.random_range(1..4)),
            lies: false,
        }
    }
}

/// What a step is, and how often of all times.
type Weight = (fn(&mut SmallRng, &Config) -> Op, u32);

fn client(random: &mut SmallRng, config: &Config) -> u8 {
    random.random_range(0..config.clients)
}

fn any_queue(random: &mut SmallRng) -> u8 {
    random.random_range(0..QUEUES)
}

fn any_mode(random: &mut SmallRng) -> Mode {
    Mode::ALL[random.random_range(0..Mode::ALL.len())]
}

/// Confirms, mostly: what nobody was promised may be lost.
fn publishing_mode(random: &mut SmallRng) -> Mode {
    *[Mode::Confirm, Mode::Confirm, Mode::Plain, Mode::Transaction].choose(random).unwrap_or(&Mode::Confirm)
}

fn any_cut(random: &mut SmallRng) -> Cut {
    *[Cut::Lost, Cut::Lost, Cut::Kept, Cut::Mixed, Cut::Mixed].choose(random).unwrap_or(&Cut::Mixed)
}

fn any_exchange(random: &mut SmallRng) -> ExchangeName {
    ExchangeName::ALL[random.random_range(0..ExchangeName::ALL.len())]
}

fn publish(random: &mut SmallRng, config: &Config) -> Op {
    let to = match random.random_range(0..200) {
        0 => To::Nowhere,
        1..110 => To::Queue(random.random_range(0..ORDINARY_QUEUES)),
        // But for the one of dead letters.
        _ => To::Exchange(ExchangeName::ALL[random.random_range(0..ExchangeName::ALL.len() - 1)]),
    };
    let (client, mode) = (client(random, config), publishing_mode(random));
    let key = random.random_range(0..KEYS.len()).try_into().unwrap_or_default();
    let persistent = random.random_bool(0.8);
    let priority = sometimes(random, 30, |random| random.random_range(0..9));
    let expiration_ms = sometimes(random, 12, |random| *[0, 1, 100, 3000, 60_000].choose(random).unwrap_or(&100));
    let delay_ms = sometimes(random, 70, |random| random.random_range(1..DELAY_MS_MOST));
    let bytes = if random.random_bool(0.03) { random.random_range(8..6000) } else { random.random_range(8..120) };
    let mandatory = random.random_bool(0.1);
    Op::Publish {
        client,
        mode,
        to,
        key,
        persistent,
        priority,
        expiration_ms,
        delay_ms,
        bytes,
        mandatory,
        more: if bytes % 3 == 0 { u8::try_from(bytes % 8).unwrap_or_default() } else { 0 },
    }
}

fn settle(random: &mut SmallRng, config: &Config) -> Op {
    let all = [
        Settling::Ack,
        Settling::Ack,
        Settling::Ack,
        Settling::Nack,
        Settling::NackRequeue,
        Settling::NackRequeue,
        Settling::Reject,
        Settling::RejectRequeue,
    ];
    let settling = *all.choose(random).unwrap_or(&Settling::Ack);
    let multiple = random.random_bool(0.2) && !matches!(settling, Settling::Reject | Settling::RejectRequeue);
    let mode = any_mode(random);
    Op::Settle { client: client(random, config), mode, nth: random.random(), multiple, settling }
}

/// All kinds of steps but those of the beginning.
const WEIGHTS: &[Weight] = &[
    (publish, 300),
    (settle, 160),
    (
        |r, c| Op::Get { client: client(r, c), mode: any_mode(r), queue: any_queue(r), no_ack: r.random_bool(0.4) },
        110,
    ),
    (
        |r, c| Op::Consume {
            client: client(r, c),
            mode: any_mode(r),
            queue: any_queue(r),
            no_ack: r.random_bool(0.25),
            prefetch: *[0, 1, 1, 3].choose(r).unwrap_or(&1),
        },
        40,
    ),
    (|r, c| Op::Cancel { client: client(r, c), nth: r.random() }, 25),
    (|r, c| Op::SettleUnknown { client: client(r, c), mode: any_mode(r) }, 2),
    (|r, c| Op::Recover { client: client(r, c), mode: any_mode(r) }, 8),
    (|r, c| Op::EndTransaction { client: client(r, c), commit: r.random_bool(0.7) }, 50),
    (|r, c| Op::DeclareQueue { client: client(r, c), queue: any_queue(r) }, 25),
    (|r, c| Op::CountQueue { client: client(r, c), queue: any_queue(r) }, 15),
    (
        |r, c| Op::DeleteQueue {
            client: client(r, c),
            queue: any_queue(r),
            if_empty: r.random_bool(0.2),
            if_unused: r.random_bool(0.2),
        },
        5,
    ),
    (|r, c| Op::PurgeQueue { client: client(r, c), queue: any_queue(r) }, 5),
    (|r, c| Op::DeclareExchange { client: client(r, c), exchange: any_exchange(r) }, 12),
    (|r, c| Op::DeleteExchange { client: client(r, c), exchange: any_exchange(r) }, 2),
    (
        |r, c| Op::BindQueue {
            client: client(r, c),
            queue: any_queue(r),
            exchange: any_exchange(r),
            key: r.random_range(0..42),
        },
        30,
    ),
    (
        |r, c| Op::UnbindQueue {
            client: client(r, c),
            queue: any_queue(r),
            exchange: any_exchange(r),
            key: r.random_range(0..42),
        },
        8,
    ),
    (|r, c| Op::CloseChannel { client: client(r, c), mode: any_mode(r) }, 8),
    (|r, c| Op::Disconnect { client: client(r, c), politely: r.random_bool(0.5) }, 8),
    (|r, _| Op::Wait { ms: *[1, 49, 50, 200, 1000, 5000].choose(r).unwrap_or(&1) }, 60),
    (|r, _| Op::Jump { ms: *[50, 1000, 6000, 60_000].choose(r).unwrap_or(&1000) }, 4),
    (|r, _| Op::SetClock { seconds: r.random_range(-CLOCK_SECONDS_MOST..=CLOCK_SECONDS_MOST) }, 6),
    (|_, _| Op::WriteJournal, 25),
    (|_, _| Op::MarkJournal, 5),
    (|_, _| Op::KeepSpares, 6),
    (|r, _| Op::Checkpoint { units: *[1, 20, 4096].choose(r).unwrap_or(&20) }, 60),
    (|_, _| Op::Restart, 2),
    (
        |r, _| Op::Crash {
            operations: r.random_range(0..8),
            now: r.random_bool(0.6),
            cut: any_cut(r),
            cuts_of_recovery: *[0, 0, 0, 1, 2].choose(r).unwrap_or(&0),
        },
        5,
    ),
    (
        |r, _| Op::FailSync {
            folder: r.random_bool(0.4),
            operations: r.random_range(0..10),
            cut: sometimes(r, 60, any_cut),
        },
        1,
    ),
    (|r, _| Op::FillDisk { bytes: r.random_range(0..40_000) }, 2),
    (|_, _| Op::EmptyDisk, 6),
];

impl Plan {
    /// What a seed does.
    pub fn of(seed: u64) -> Plan {
        let mut random = SmallRng::seed_from_u64(seed);
        let config = Config::random(&mut random);
        // A swarm: some steps are left out, and some are frequent.
        let weights: Vec<u32> =
            WEIGHTS.iter().map(|(_, weight)| weight * [0, 1, 2, 2, 2, 3, 6][random.random_range(0..7)]).collect();
        let sum: u32 = weights.iter().sum::<u32>().max(1);
        let count = random.random_range(STEPS_LEAST..=STEPS_MOST);
        let mut steps = Vec::with_capacity(count);
        let mut push = |random: &mut SmallRng, op: Op| steps.push(Step { op, luck: random.random() });
        for vhost in 0..config.vhosts {
            for exchange in ExchangeName::ALL {
                push(&mut random, Op::DeclareExchange { client: vhost, exchange });
            }
            for queue in 0..QUEUES {
                push(&mut random, Op::DeclareQueue { client: vhost, queue });
            }
            for _ in 0..random.random_range(4..12) {
                let (queue, exchange, key) = (any_queue(&mut random), any_exchange(&mut random), random.random());
                push(&mut random, Op::BindQueue { client: vhost, queue, exchange, key });
            }
        }
        while steps.len() < count {
            let mut at = random.random_range(0..sum);
            let mut chosen = publish as fn(&mut SmallRng, &Config) -> Op;
            for ((make, _), weight) in WEIGHTS.iter().zip(&weights) {
                if at < *weight {
                    chosen = *make;
                    break;
                }
                at -= weight;
            }
            let op = chosen(&mut random, &config);
            steps.push(Step { op, luck: random.random() });
        }
        Plan { config, steps }
    }

    /// As lines: the configuration, then each step.
    ///
    /// # Errors
    /// If it cannot be written down.
    pub fn to_text(&self) -> serde_json::Result<String> {
        let mut text = serde_json::to_string(&self.config)? + "\n";
        for step in &self.steps {
            text += &serde_json::to_string(step)?;
            text.push('\n');
        }
        Ok(text)
    }

    /// From lines; those that begin with `#` are passed over.
    ///
    /// # Errors
    /// If one of them is something else.
    pub fn from_text(text: &str) -> serde_json::Result<Plan> {
        let mut lines = text.lines().filter(|line| !line.is_empty() && !line.starts_with('#'));
        let config = serde_json::from_str(lines.next().unwrap_or_default())?;
        let steps = lines.map(serde_json::from_str).collect::<Result<_, _>>()?;
        Ok(Plan { config, steps })
    }
}
