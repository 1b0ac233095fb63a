//! What no honest client sends, or sends by mistake, to the real binary over sockets. After each case somebody who was there
//! before goes on, and somebody new can log in.
//!
//! A case is a protocol script (the language is that of `leveret-testkit`), or a function where a script cannot say it. Each
//! belongs to a kind of bad input, which are numbered: [`handshake`] has the first ones, [`crowds`] the last.

#![expect(clippy::unwrap_used, clippy::expect_used, reason = "a test may panic")]

mod arguments;
mod case;
mod contents;
mod crowds;
mod frames;
mod handshake;
mod memory;
mod operations;
#[path = "../command_line/support.rs"]
#[allow(dead_code, reason = "the tests of the command line need more of it")]
mod support;
mod times;
mod wire;

use std::collections::BTreeMap;
use std::fs;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::thread;
use std::time::{Duration, Instant};

use case::{Case, Cases, Stage};
use leveret_client::{AckMode, BasicProperties, Connection, PublishTo, QueueOptions, Url};
use memory::{Watched, peak_kib};
use support::{Broker, leveret};

/// So many cases there are at least.
const CASES_LEAST: usize = 600;

/// Kinds of bad inputs; each has more than one case.
const KINDS: u8 = 61;

/// How long the bystander and the newcomer may take. They need milliseconds.
const SERVED_WITHIN: Duration = Duration::from_secs(5);

/// What the broker may take at all. The largest messages that are really sent to it have 16 MiB.
const MEMORY_MIB_MAX: u64 = 128;

/// Failures after which the rest would tell nothing new.
const FAILURES_MAX: usize = 5;

/// `guest` may do everything; the others have their names for passwords.
const DEFINITIONS: &str = r#"{
    "vhosts": [{"name": "/"}, {"name": "other"}],
    "users": [
        {"name": "guest", "password": "guest", "tags": ["administrator"]},
        {"name": "reader", "password": "reader", "tags": []},
        {"name": "nobody", "password": "nobody", "tags": []}
    ],
    "permissions": [
        {"user": "guest", "vhost": "/", "configure": ".*", "write": ".*", "read": ".*"},
        {"user": "reader", "vhost": "/", "configure": "", "write": "", "read": ".*"},
        {"user": "nobody", "vhost": "/", "configure": "", "write": "", "read": ""}
    ]
}"#;

fn start(more: &[&str]) -> Broker {
    let folder = tempfile::tempdir().unwrap();
    let definitions = folder.path().join("definitions.json");
    fs::write(&definitions, DEFINITIONS).unwrap();
    let arguments = ["--amqp-port", "0", "--definitions", definitions.to_str().unwrap()];
    leveret(&[&arguments[..], more].concat()).start()
}

/// One who is not to blame.
struct Bystander {
    url: Url,
    connection: Connection,
    queue: String,
}

impl Bystander {
    fn at(address: SocketAddr) -> Self {
        let url: Url = format!("amqp://guest:guest@{address}/%2F").parse().unwrap();
        let mut connection = Connection::open(&url).unwrap();
        let queue = exclusive_queue(&mut connection).unwrap();
        Bystander { url, connection, queue }
    }

    /// A message of mine goes there and back, and so does one of somebody who has just come.
    fn look(&mut self) -> Result<(), String> {
        let started = Instant::now();
        round_trip(&mut self.connection, &self.queue).map_err(|error| format!("the bystander: {error}"))?;
        newcomer(&self.url).map_err(|error| format!("the newcomer: {error}"))?;
        let took = started.elapsed();
        if took < SERVED_WITHIN { Ok(()) } else { Err(format!("others are served only after {took:?}")) }
    }
}

fn newcomer(url: &Url) -> Result<(), String> {
    let mut connection = Connection::open(url).map_err(|error| error.to_string())?;
    let queue = exclusive_queue(&mut connection)?;
    round_trip(&mut connection, &queue)?;
    connection.close().map_err(|error| error.to_string())
}

fn exclusive_queue(connection: &mut Connection) -> Result<String, String> {
    connection.set_answer_timeout(SERVED_WITHIN);
    let mut channel = connection.open_channel().map_err(|error| error.to_string())?;
    let options = QueueOptions { exclusive: true, ..QueueOptions::default() };
    let declared = channel.declare_queue("", &options).map_err(|error| error.to_string())?;
    Ok(declared.name.as_str().to_owned())
}

fn round_trip(connection: &mut Connection, queue: &str) -> Result<(), String> {
    let exchange = |connection: &mut Connection| {
        let mut channel = connection.open_channel()?;
        channel.publish(PublishTo::queue(queue), &BasicProperties::default(), b"still here")?;
        let got = channel.get(queue, AckMode::Auto)?;
        channel.close()?;
        Ok::<_, leveret_client::Error>(got.map(|got| got.delivery.message.body))
    };
    match exchange(connection) {
        Ok(Some(body)) if &body[..] == b"still here" => Ok(()),
        Ok(other) => Err(format!("instead of its message it got {other:?}")),
        Err(error) => Err(error.to_string()),
    }
}

/// Plays a case, and looks whether it hurts others: as long as what it leaves open is there, and when that is gone.
fn play(
    case: &Case,
    nth: usize,
    address: SocketAddr,
    process: u32,
    bystander: &mut Bystander,
) -> Result<(), String> {
    let watched = (case.stage == Stage::Watched).then(|| Watched::from_now(process));
    let is_modest = || watched.as_ref().map_or(Ok(()), Watched::check);
    let mut played = || {
        let left_open = case.play(nth, address)?;
        bystander.look()?;
        is_modest()?;
        drop(left_open);
        bystander.look()?;
        is_modest()
    };
    played().map_err(|error| format!("kind {}, {}: {}", case.kind, case.what, shortened(&error)))
}

/// Lines that can be read: some inputs have a hundred thousand bytes.
fn shortened(text: &str) -> String {
    let short = |line: &str| line.chars().take(200).collect::<String>();
    text.lines().map(short).collect::<Vec<_>>().join("\n")
}

/// Sockets that the broker has open. Files come and go with its journal.
fn sockets(broker: &Broker) -> usize {
    let descriptors = fs::read_dir(format!("/proc/{}/fd", broker.process.id())).unwrap();
    let is_socket = |target: PathBuf| target.to_string_lossy().starts_with("socket:");
    // One may be closed meanwhile.
    descriptors
        .filter(|entry| entry.as_ref().is_ok_and(|entry| fs::read_link(entry.path()).is_ok_and(is_socket)))
        .count()
}

fn address(broker: &Broker) -> SocketAddr {
    ([127, 0, 0, 1], broker.port()).into()
}

/// A broker to which bad inputs are sent.
struct Target {
    broker: Broker,
    sockets_before: usize,
    /// The most memory that was noted so far: [`Watched`] has the system forget it.
    peak_kib: u64,
}

impl Target {
    fn start(more: &[&str]) -> Self {
        let broker = start(more);
        Target { sockets_before: sockets(&broker), broker, peak_kib: 0 }
    }

    fn process(&self) -> u32 {
        self.broker.process.id()
    }

    fn note_peak(&mut self) {
        self.peak_kib = self.peak_kib.max(peak_kib(self.process()));
    }

    /// After the last case: the broker lives, nothing in it has panicked, it never took much memory, and what the guilty had open is
    /// closed.
    fn check_unharmed(mut self) {
        self.note_peak();
        let Target { broker, sockets_before, peak_kib } = self;
        let peak_mib = peak_kib / 1024;
        println!("at most {peak_mib} MiB of memory");
        assert!(peak_mib < MEMORY_MIB_MAX, "the broker took {peak_mib} MiB");
        let deadline = Instant::now() + support::DEADLINE;
        while sockets(&broker) > sockets_before {
            let open = sockets(&broker);
            assert!(Instant::now() < deadline, "{open} sockets are open, {sockets_before} were before");
            thread::sleep(Duration::from_millis(20));
        }
        let stopped = broker.stop();
        assert_eq!(stopped.code, Some(0), "{}", stopped.stderr);
        assert!(!stopped.stderr.contains("panicked"), "{}", stopped.stderr);
        // What clients say is shown in the log, and must not pass for the log itself, or for orders to a terminal.
        let is_forged = |line: &&str| line.contains(char::is_control) || line.starts_with("forged");
        assert_eq!(stopped.stderr.lines().find(is_forged), None);
    }
}

#[test]
fn a_bad_input_is_answered_as_it_should_be_and_hurts_nobody_else() {
    let cases = Cases::collect();
    let mut kinds = BTreeMap::<u8, usize>::new();
    for case in &cases {
        *kinds.entry(case.kind).or_default() += 1;
    }
    let missing: Vec<_> = (1..=KINDS).filter(|kind| kinds.get(kind).is_none_or(|&count| count < 2)).collect();
    assert!(missing.is_empty(), "these kinds of bad inputs have no cases: {missing:?}");
    let count_at = |stage| cases.iter().filter(|case| case.stage == stage).count();
    let (watched, short, long) = (count_at(Stage::Watched), count_at(Stage::Impatient), count_at(Stage::Patient));

    let (mut common, mut modest) = (Target::start(&[]), Target::start(&[]));
    let (impatient, patient) = (Target::start(&["--set", "handshake_timeout=1000"]), Target::start(&[]));
    let mut of_common = Bystander::at(address(&common.broker));
    let mut of_modest = Bystander::at(address(&modest.broker));
    let mut played_beside = Vec::new();
    let mut played_in_turn = Vec::new();
    for (nth, case) in cases.into_iter().enumerate() {
        let target = match case.stage {
            Stage::Common | Stage::Watched => {
                played_in_turn.push((nth, case));
                continue;
            }
            Stage::Impatient => &impatient,
            Stage::Patient => &patient,
        };
        let (address, process) = (address(&target.broker), target.process());
        let mut bystander = Bystander::at(address);
        played_beside.push(thread::spawn(move || play(&case, nth, address, process, &mut bystander)));
    }

    let (mut passed, mut failures) = (0, Vec::new());
    for (nth, case) in &played_in_turn {
        let (target, bystander) = match case.stage {
            Stage::Watched => (&mut modest, &mut of_modest),
            Stage::Common | Stage::Impatient | Stage::Patient => (&mut common, &mut of_common),
        };
        let played = play(case, *nth, address(&target.broker), target.process(), bystander);
        target.note_peak();
        match played {
            Ok(()) => passed += 1,
            Err(failure) => {
                failures.push(failure);
                assert!(failures.len() < FAILURES_MAX, "{}", failures.join("\n\n"));
                // One that took much memory once is of no more use to see who else does.
                if case.stage == Stage::Watched {
                    *target = Target::start(&[]);
                    *bystander = Bystander::at(address(&target.broker));
                }
            }
        }
    }
    for played in played_beside {
        match played.join().unwrap() {
            Ok(()) => passed += 1,
            Err(failure) => failures.push(failure),
        }
    }
    assert!(
        failures.is_empty(),
        "{} of {} failed:\n\n{}",
        failures.len(),
        passed + failures.len(),
        failures.join("\n\n")
    );
    println!(
        "{passed} bad inputs of {} kinds: {watched} with an eye on memory, {short} with short timeouts, {long} with long ones",
        kinds.len()
    );
    assert!(passed >= CASES_LEAST, "only {passed} cases ran");
    drop((of_common, of_modest));
    for target in [common, modest, impatient, patient] {
        target.check_unharmed();
    }
}
