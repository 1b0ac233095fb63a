//! `leveret perf`: each scenario against a real broker, and what it says of a broker that plays false.

use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread;
use std::time::Duration;

use leveret_client::{AckMode, BasicProperties, Connection, ConsumeOptions, ConsumerEvent, PublishTo};
use rustix::process::Signal;
use serde_json::Value;

use crate::fake_broker::{FakeBroker, Trick};
use crate::support::{Broker, DEADLINE, leveret};

/// The report of a scenario, which must succeed.
#[track_caller]
fn report(broker: &Broker, arguments: &[&str]) -> Value {
    let printed = broker.ask(&[&["perf"], arguments, &["--json"]].concat());
    assert_eq!(printed.lines().count(), 1, "{printed}");
    serde_json::from_str(&printed).unwrap()
}

/// The counts of a report: published, confirmed and received.
fn counts(report: &Value) -> [Option<u64>; 3] {
    ["published", "confirmed", "received"].map(|field| report[field].as_u64())
}

#[track_caller]
fn assert_nothing_wrong(report: &Value) {
    let nothing = serde_json::json!({"lost": 0, "duplicated": 0, "disordered": 0, "unknown": 0});
    assert_eq!(report["verify"], nothing);
}

#[track_caller]
fn assert_latencies(report: &Value, count: u64) {
    let latency =
        |field: &str| report["latency_us"][field].as_u64().unwrap_or_else(|| panic!("no {field}: {report}"));
    assert_eq!(latency("count"), count);
    assert!(latency("p50") <= latency("p99"), "{report}");
    assert!(latency("p99") <= latency("p99_9"), "{report}");
    assert!(latency("p99_9") <= latency("max"), "{report}");
}

/// Whether a report has a rate, and not zero.
#[track_caller]
fn assert_rates(report: &Value, fields: &[&str]) {
    for field in fields {
        assert!(report[field].as_f64().is_some_and(|rate| rate > 0.0), "{field}: {report}");
    }
}

#[test]
fn throughput_counts_every_message_whatever_the_topology() {
    let broker = Broker::start();
    let plain = ["throughput", "--messages", "5000", "--verify", "--size", "16"];
    let report_of = |more: &[&str]| report(&broker, &[&plain, more].concat());
    let plainly = report_of(&[]);
    assert_eq!(plainly["scenario"], "throughput");
    assert_eq!(plainly["options"]["size"], 16);
    assert_eq!(counts(&plainly), [Some(5000), None, Some(5000)]);
    assert_rates(&plainly, &["seconds", "publish_rate", "receive_rate"]);
    assert_nothing_wrong(&plainly);
    let many = ["--producers", "3", "--consumers", "2", "--queues", "5"];
    for more in [
        &["--confirm", "10", "--durable", "--persistent"][..],
        &["--ack-every", "7", "--prefetch", "50", "--confirm", "1000"],
        &["--rate", "20000", "--queue-argument", "x-max-priority=3"],
        &["--exchange-type", "topic", "--routing-keys", "11"],
        &["--exchange-type", "x-random"],
        &["--routing-keys", "2000"],
    ] {
        let report = report_of(&[&many, more].concat());
        let confirmed = more.contains(&"--confirm").then_some(5000);
        assert_eq!(counts(&report), [Some(5000), confirmed, Some(5000)], "{more:?}");
        assert_nothing_wrong(&report);
    }
    let copied = report_of(&[&many[..], &["--exchange-type", "fanout"]].concat());
    assert_eq!(counts(&copied), [Some(5000), None, Some(25_000)]);
    assert_nothing_wrong(&copied);
}

#[test]
fn large_bodies_are_cut_and_counted_as_one() {
    let broker = Broker::start();
    let report = report(&broker, &["throughput", "--messages", "50", "--size", "300000", "--verify"]);
    assert_eq!(counts(&report), [Some(50), None, Some(50)]);
    assert_nothing_wrong(&report);
}

#[test]
fn a_load_ends_in_time_and_may_only_publish() {
    let broker = Broker::start();
    let report = report(&broker, &["throughput", "--seconds", "0.2", "--consumers", "0", "--rate", "1000"]);
    let [Some(published), None, None] = counts(&report) else { panic!("{report}") };
    assert!((1..=200).contains(&published), "{report}");
    assert_eq!(report["options"]["seconds"], 0.2);
}

#[test]
fn latency_is_measured_of_every_message() {
    let broker = Broker::start();
    let report =
        report(&broker, &["latency", "--rate", "5000", "--messages", "1000", "--verify", "--ack-every", "1"]);
    assert_eq!(counts(&report), [Some(1000), None, Some(1000)]);
    assert_latencies(&report, 1000);
    assert_nothing_wrong(&report);
}

#[test]
fn all_that_was_due_until_the_end_has_a_latency() {
    let broker = Broker::start();
    let report = report(&broker, &["latency", "--rate", "5000", "--seconds", "0.2"]);
    assert_eq!(counts(&report), [Some(1000), None, Some(1000)]);
    assert_eq!(report["overdue"], 0);
    assert_latencies(&report, 1000);
}

#[test]
fn confirm_measures_every_confirm() {
    let broker = Broker::start();
    let report = report(&broker, &["confirm", "--messages", "1000", "--window", "20", "--producers", "2"]);
    assert_eq!(counts(&report), [Some(1000), Some(1000), None]);
    assert_eq!(report["nacked"], 0);
    assert_latencies(&report, 1000);
}

#[test]
fn publishes_that_the_broker_refuses_are_counted() {
    let broker = Broker::start();
    let arguments = ["confirm", "--messages", "100", "--queue-argument", "x-max-length=10"];
    let report = report(&broker, &[&arguments[..], &["--queue-argument", "x-overflow=reject-publish"]].concat());
    assert_eq!(counts(&report), [Some(100), Some(10), None]);
    assert_eq!(report["nacked"], 90);
}

#[test]
fn a_refused_publish_that_arrives_excuses_no_lost_one() {
    let fake = FakeBroker::start(Trick::Refuse(3));
    let arguments = ["perf", "throughput", "--messages", "10", "--verify", "--confirm", "5", "--url", &fake.url];
    let finished = leveret(&arguments).run();
    let expected = "error: what arrived is not what was published: 1 lost (10 published, 9 received)\n";
    assert_eq!((finished.code, finished.stderr.as_str()), (Some(1), expected));
}

#[test]
fn a_refused_publish_may_be_missing_in_each_of_its_queues() {
    let broker = Broker::start();
    let arguments = ["throughput", "--messages", "5000", "--exchange-type", "fanout", "--queues", "3"];
    let full = ["--queue-argument", "x-max-length=1", "--queue-argument", "x-overflow=reject-publish"];
    let slow = ["--confirm", "500", "--prefetch", "1", "--ack-every", "1"];
    let plain = [&arguments[..], &full, &slow].concat();
    let [published, Some(confirmed), _] = counts(&report(&broker, &plain)) else { panic!("no confirms") };
    assert_eq!(published, Some(5000));
    assert!(confirmed < 5000, "nothing was refused");
    assert_nothing_wrong(&report(&broker, &[&plain[..], &["--verify"]].concat()));
}

#[test]
fn fanout_copies_every_message_to_every_queue() {
    let broker = Broker::start();
    let report = report(&broker, &["fanout", "--queues", "4", "--messages", "500", "--verify"]);
    assert_eq!(counts(&report), [Some(500), None, Some(2000)]);
    assert_nothing_wrong(&report);
}

#[test]
fn rpc_counts_requests_and_replies() {
    let broker = Broker::start();
    let arguments = ["rpc", "--clients", "2", "--outstanding", "3", "--messages", "301", "--verify"];
    let report = report(&broker, &arguments);
    assert_eq!(counts(&report), [Some(301), None, Some(301)]);
    assert_latencies(&report, 301);
    assert_nothing_wrong(&report);
}

#[test]
fn rpc_asks_servers_of_others_too() {
    let broker = Broker::start();
    broker.ask(&["declare", "queue", "jobs"]);
    let mut connection = Connection::open(&broker.client_url().parse().unwrap()).unwrap();
    let server = thread::spawn(move || {
        let mut channel = connection.open_channel().unwrap();
        channel.consume("jobs", &ConsumeOptions { ack_mode: AckMode::Auto, ..ConsumeOptions::default() }).unwrap();
        for _ in 0..50 {
            let Some(ConsumerEvent::Delivery(request)) = channel.next_event(DEADLINE).unwrap() else {
                panic!("none")
            };
            let BasicProperties { correlation_id, reply_to, .. } = request.message.properties();
            let properties = BasicProperties { correlation_id, ..BasicProperties::default() };
            let to = PublishTo::queue(std::str::from_utf8(reply_to.unwrap()).unwrap());
            channel.publish(to, &properties, b"done").unwrap();
            channel.flush().unwrap();
        }
        connection.close().unwrap();
    });
    let report = report(&broker, &["rpc", "--server-queue", "jobs", "--messages", "50", "--verify", "--size", "0"]);
    server.join().unwrap();
    assert_eq!(counts(&report), [Some(50), None, Some(50)]);
    assert_nothing_wrong(&report);
    assert_eq!(broker.ask(&["purge", "jobs"]), "0\n");
    let finished = broker.client(&["perf", "rpc", "--server-queue", "nowhere"]).run();
    assert_eq!(finished.code, Some(1));
    assert!(finished.stderr.contains("404 NOT_FOUND"), "{}", finished.stderr);
}

/// Answers one request after another of a queue, with a pause before each, until `stop` is dropped, and tells so.
fn answer_slowly(
    broker: &Broker,
    queue: &'static str,
    pause: Duration,
    stop: Receiver<()>,
    answered: Sender<()>,
) -> thread::JoinHandle<()> {
    let url = broker.client_url();
    thread::spawn(move || {
        let mut connection = Connection::open(&url.parse().unwrap()).unwrap();
        let mut channel = connection.open_channel().unwrap();
        let options = ConsumeOptions { ack_mode: AckMode::Auto, ..ConsumeOptions::default() };
        channel.consume(queue, &options).unwrap();
        while stop.recv_timeout(pause) == Err(RecvTimeoutError::Timeout) {
            let Some(ConsumerEvent::Delivery(request)) = channel.next_event(pause).unwrap() else { continue };
            let BasicProperties { correlation_id, reply_to, .. } = request.message.properties();
            let properties = BasicProperties { correlation_id, ..BasicProperties::default() };
            let to = PublishTo::queue(std::str::from_utf8(reply_to.unwrap()).unwrap());
            channel.publish(to, &properties, b"done").unwrap();
            channel.flush().unwrap();
            let _ = answered.send(());
        }
        connection.close().unwrap();
    })
}

/// A server that goes on answering, however slowly, makes progress: it does not hold the end up for as long as it does.
#[test]
fn ctrl_c_ends_rpc_soon_however_many_requests_have_no_reply() {
    let broker = Broker::start();
    broker.ask(&["declare", "queue", "slow"]);
    let (stop, stopped) = channel();
    let (answer, answered) = channel();
    let pause = Duration::from_millis(10);
    let server = answer_slowly(&broker, "slow", pause, stopped, answer);
    // To answer all of them would take longer than a test may.
    let outstanding = (DEADLINE.as_millis() / pause.as_millis() * 2).to_string();
    let rpc = ["perf", "rpc", "--server-queue", "slow", "--outstanding", &outstanding];
    let process = broker.client(&[&rpc[..], &["--seconds", "600", "--verify", "--json"]].concat()).spawn();
    answered.recv_timeout(DEADLINE).unwrap();
    process.signal(Signal::INT);
    let finished = process.wait();
    assert_eq!(finished.code, Some(0), "{}", finished.stderr);
    let report: Value = serde_json::from_str(&finished.stdout).unwrap();
    assert_eq!(report["interrupted"], true);
    assert!(report["received"].as_u64() < report["published"].as_u64(), "{report}");
    assert_nothing_wrong(&report);
    drop(stop);
    server.join().unwrap();
}

#[test]
fn get_takes_every_message_one_by_one() {
    let broker = Broker::start();
    for ack_every in ["0", "1", "8"] {
        let arguments = ["get", "--messages", "200", "--consumers", "2", "--verify", "--ack-every", ack_every];
        let report = report(&broker, &arguments);
        assert_eq!(counts(&report), [Some(200), None, Some(200)]);
        assert_latencies(&report, 200);
        assert_nothing_wrong(&report);
    }
}

#[test]
fn topic_finds_the_one_queue_among_many_bindings() {
    let broker = Broker::start();
    let report = report(&broker, &["topic", "--bindings", "50", "--messages", "500", "--verify"]);
    assert_eq!(counts(&report), [Some(500), None, Some(500)]);
    assert_nothing_wrong(&report);
}

#[test]
fn drain_has_a_rate_for_filling_and_one_for_emptying() {
    let broker = Broker::start();
    let arguments = ["drain", "--messages", "3000", "--queues", "3", "--consumers", "2", "--verify"];
    let report = report(&broker, &[&arguments[..], &["--ack-every", "10", "--prefetch", "100"]].concat());
    assert_eq!(counts(&report), [Some(3000), None, Some(3000)]);
    assert_rates(&report, &["publish_rate", "receive_rate"]);
    assert_nothing_wrong(&report);
}

#[test]
fn churn_counts_what_was_opened_and_closed() {
    let broker = Broker::start();
    for thing in [&["connections"][..], &["channels"], &["queues"], &["queues", "--durable"]] {
        let report = report(&broker, &[&["churn"], thing, &["--messages", "21", "--parallel", "2"]].concat());
        assert_eq!(report["scenario"], format!("churn {}", thing[0]));
        assert_eq!((&report["cycles"], &report["published"]), (&21.into(), &Value::Null));
        assert_rates(&report, &["cycle_rate"]);
        assert_latencies(&report, 21);
    }
}

#[test]
fn idle_holds_connections_and_reads_the_memory_of_the_broker() {
    let broker = Broker::start();
    let process = broker.process.id().to_string();
    let report = report(&broker, &["idle", "--connections", "30", "--seconds", "0.1", "--pid", &process]);
    assert_eq!(report["connections"], 30);
    assert_rates(&report, &["open_seconds"]);
    assert!(report["bytes_per_connection"].is_f64(), "{report}");
    let finished = broker.client(&["perf", "idle", "--pid", "4294967295"]).run();
    assert_eq!(finished.code, Some(1));
    assert!(finished.stderr.contains("cannot read the memory of process 4294967295"), "{}", finished.stderr);
}

#[test]
fn a_table_is_for_people_and_a_page_has_charts() {
    let broker = Broker::start();
    let folder = tempfile::tempdir().unwrap();
    let page = folder.path().join("page.html");
    let arguments = ["perf", "confirm", "--messages", "1000", "--html", page.to_str().unwrap()];
    let finished = broker.client(&arguments).run();
    assert_eq!((finished.code, finished.stderr.as_str()), (Some(0), ""));
    assert!(finished.stdout.contains("publish rate"), "{}", finished.stdout);
    let page = std::fs::read_to_string(page).unwrap();
    assert!(page.contains("<svg") && page.ends_with("</html>\n"), "{page}");
    let nowhere = folder.path().join("no-such-folder").join("page.html");
    let nobody = "amqp://127.0.0.1:1";
    let arguments = ["perf", "confirm", "--html", nowhere.to_str().unwrap(), "--url", nobody];
    let finished = leveret(&arguments).run();
    assert_eq!(finished.code, Some(1));
    assert!(finished.stderr.contains("cannot write '"), "before the run: {}", finished.stderr);
}

#[test]
fn what_a_broker_loses_doubles_shortens_or_swaps_is_1_and_said() {
    for (trick, fault, received) in [
        (Trick::Lose(3), "1 lost (10 published, 9 received)", 9),
        (Trick::Double(3), "1 doubled (10 published, 11 received)", 11),
        (Trick::Leave(3), "1 doubled (10 published, 10 received)", 10),
        (Trick::Shorten(3), "1 lost, 1 never published (10 published, 10 received)", 10),
        (Trick::Swap(3), "1 out of order (10 published, 10 received)", 10),
    ] {
        let fake = FakeBroker::start(trick);
        let arguments = ["perf", "throughput", "--messages", "10", "--verify", "--json", "--timeout", "2"];
        let finished = leveret(&arguments).env("LEVERET_URL", &fake.url).run();
        assert_eq!(finished.code, Some(1), "{trick:?}: {}", finished.stderr);
        let expected = format!("error: what arrived is not what was published: {fault}\n");
        assert_eq!(finished.stderr, expected);
        let report: Value = serde_json::from_str(&finished.stdout).unwrap();
        assert_eq!(counts(&report), [Some(10), None, Some(received)]);
    }
}

#[test]
fn a_broker_that_delivers_nothing_is_1_after_the_timeout() {
    let fake = FakeBroker::start(Trick::LoseAll);
    let arguments = ["perf", "throughput", "--messages", "10", "--timeout", "2", "--url", &fake.url];
    let finished = leveret(&arguments).run();
    assert_eq!(finished.code, Some(1));
    assert!(finished.stdout.contains(" published     10\n"), "what was measured: {}", finished.stdout);
    let expected = "error: the broker made no progress for 2 s: 10 of 10 messages have not arrived; \
                    look at the broker's log, or allow it more time with --timeout\n";
    assert_eq!(finished.stderr, expected);
}

#[test]
fn a_broker_that_closes_the_connection_is_1_with_its_reason() {
    let fake = FakeBroker::start(Trick::Close(5));
    let arguments = ["perf", "throughput", "--seconds", "20", "--json", "--url", &fake.url];
    let finished = leveret(&arguments).run();
    assert_eq!(finished.code, Some(1));
    let error = "320 CONNECTION_FORCED - maintenance (connection of producer 1); try again when the broker is back";
    assert_eq!(finished.stderr, format!("error: {error}\n"));
    let report: Value = serde_json::from_str(&finished.stdout).unwrap();
    assert_eq!((&report["error"], &report["verify"]), (&error.into(), &Value::Null));
    let [Some(published), None, Some(received)] = counts(&report) else { panic!("{report}") };
    assert!(published >= 5 && received <= published, "{report}");
}

#[test]
fn a_run_that_does_not_begin_has_no_table_but_json_has_its_error() {
    let broker = Broker::start();
    let arguments = ["perf", "throughput", "--queue-argument", "x-max-length=-1"];
    let finished = broker.client(&arguments).run();
    assert_eq!((finished.code, finished.stdout.as_str()), (Some(1), ""));
    let finished = broker.client(&[&arguments[..], &["--json"]].concat()).run();
    let report: Value = serde_json::from_str(&finished.stdout).unwrap();
    assert!(report["error"].as_str().unwrap().starts_with("406 PRECONDITION_FAILED"), "{report}");
    assert_eq!(counts(&report), [None, None, None]);
}

#[test]
fn a_broker_that_hangs_up_is_noticed_while_connections_are_only_held() {
    // The connection before is the one that makes sure of the broker.
    let fake = FakeBroker::start(Trick::HangUp(1));
    let arguments = ["perf", "idle", "--connections", "1", "--seconds", "600", "--json", "--url", &fake.url];
    let finished = leveret(&arguments).run();
    assert_eq!(finished.code, Some(1));
    let report: Value = serde_json::from_str(&finished.stdout).unwrap();
    assert_eq!(report["connections"], 1);
    let expected = "error: the broker closed the connection without a reason (connection of thread 1); look at";
    assert!(finished.stderr.starts_with(expected), "{}", finished.stderr);
}

#[test]
fn the_time_that_a_broker_holds_publishes_back_is_told() {
    let fake = FakeBroker::start(Trick::Hold);
    let arguments = ["perf", "throughput", "--messages", "1000", "--rate", "10000", "--json", "--url", &fake.url];
    let finished = leveret(&arguments).run();
    assert_eq!(finished.code, Some(0), "{}", finished.stderr);
    let report: Value = serde_json::from_str(&finished.stdout).unwrap();
    assert_eq!(counts(&report), [Some(1000), None, Some(1000)]);
    assert_rates(&report, &["held_seconds"]);
    let fake = FakeBroker::start(Trick::HoldForEver);
    let arguments = ["perf", "throughput", "--rate", "1000", "--timeout", "2", "--url", &fake.url];
    let finished = leveret(&arguments).run();
    assert_eq!(finished.code, Some(1));
    assert!(
        finished.stderr.starts_with("error: the broker has held publishes back for 2 s; "),
        "{}",
        finished.stderr
    );
}

#[test]
fn ctrl_c_ends_a_run_early_prints_the_report_and_deletes_the_queues() {
    let fake = FakeBroker::start(Trick::Lose(u64::MAX));
    let arguments = ["perf", "throughput", "--rate", "1000", "--seconds", "600", "--json", "--url", &fake.url];
    let process = leveret(&arguments).spawn();
    fake.first_publish.recv_timeout(DEADLINE).unwrap();
    process.signal(Signal::INT);
    let finished = process.wait();
    assert_eq!(finished.code, Some(0), "{}", finished.stderr);
    let report: Value = serde_json::from_str(&finished.stdout).unwrap();
    assert_eq!(report["interrupted"], true);
    let deleted = fake.deleted();
    assert!(deleted.len() == 1 && deleted[0].starts_with("leveret-perf-"), "{deleted:?}");
}

/// Presses Ctrl-C as soon as `until` has come; the load must not have begun.
#[track_caller]
fn interrupted_in_set_up(arguments: &[&str], fake: &FakeBroker, until: impl FnOnce(&FakeBroker)) {
    // No deadline ends what Ctrl-C does not.
    let url = format!("{}/%2F?connection_timeout=600000", fake.url);
    let process = leveret(&[&["perf"], arguments, &["--url", &url]].concat()).spawn();
    until(fake);
    process.signal(Signal::INT);
    let finished = process.wait();
    let expected = (Some(130), "", "error: ended before the load began\n");
    assert_eq!((finished.code, finished.stdout.as_str(), finished.stderr.as_str()), expected, "{arguments:?}");
}

#[test]
fn ctrl_c_ends_the_set_up_and_deletes_what_it_has_declared() {
    let await_mute = |fake: &FakeBroker| fake.mute.recv_timeout(DEADLINE).unwrap();
    let first = FakeBroker::start(Trick::Mute(0));
    interrupted_in_set_up(&["throughput"], &first, await_mute);
    let declaring = FakeBroker::start(Trick::LoseAll);
    interrupted_in_set_up(&["throughput", "--queues", "1000000"], &declaring, |fake| {
        fake.first_declare.recv_timeout(DEADLINE).unwrap();
    });
    assert!((1..1_000_000).contains(&declaring.deleted().len()));
    for scenario in [&["throughput"][..], &["drain", "--producers", "2"], &["rpc"]] {
        let worker = FakeBroker::start(Trick::Mute(3));
        interrupted_in_set_up(scenario, &worker, await_mute);
        assert_eq!(worker.deleted().len(), 1, "{scenario:?}");
    }
    let churning = FakeBroker::start(Trick::Mute(1));
    interrupted_in_set_up(&["churn", "channels"], &churning, await_mute);
}

#[test]
fn ctrl_c_ends_a_run_whose_broker_is_silent_with_what_was_measured() {
    let fake = FakeBroker::start(Trick::LoseAll);
    let arguments = ["perf", "latency", "--rate", "1000", "--seconds", "600", "--json", "--url", &fake.url];
    let process = leveret(&arguments).spawn();
    fake.first_publish.recv_timeout(DEADLINE).unwrap();
    process.signal(Signal::INT);
    let finished = process.wait();
    let report: Value = serde_json::from_str(&finished.stdout).unwrap();
    assert!(report["interrupted"] == true && report["published"].as_u64() > Some(0), "{report}");
    assert_eq!(fake.deleted().len(), 1);
}

#[test]
fn an_option_that_cannot_be_is_named() {
    for (arguments, option) in [
        (&["throughput", "--producers", "0"][..], "--producers"),
        (&["throughput", "--queues", "0"], "--queues"),
        (&["throughput", "--routing-keys", "4000000"], "--routing-keys"),
        (&["throughput", "--size", "999999999999"], "--size"),
        (&["throughput", "--consumers", "4000000"], "--consumers"),
        (&["throughput", "--confirm", "2000000"], "--confirm"),
        (&["throughput", "--prefetch", "5"], "--ack-every"),
        (&["throughput", "--prefetch", "5", "--ack-every", "6"], "--prefetch 5"),
        (&["throughput", "--producers", "5000", "--routing-keys", "100000"], "--routing-keys"),
        (&["latency", "--size", "15"], "--size"),
        (&["confirm", "--window", "2000000"], "--window"),
        (&["rpc", "--outstanding", "16385"], "--outstanding"),
        (&["rpc", "--timeout", "18446744073709551615"], "--timeout"),
        (&["fanout", "--queues", "2000000"], "--queues"),
        (&["topic", "--bindings", "2000000"], "--bindings"),
        (&["rpc", "--clients", "0"], "--clients"),
        (&["rpc", "--servers", "0"], "--servers"),
        (&["rpc", "--size", "999999999999"], "--size"),
        (&["drain", "--producers", "0"], "--producers"),
        (&["churn", "channels", "--parallel", "0"], "--parallel"),
        (&["churn", "channels", "--parallel", "1000000"], "--parallel"),
        (&["idle", "--connections", "0"], "--connections"),
        (&["idle", "--parallel", "0"], "--parallel"),
    ] {
        let finished = leveret(&[&["perf"], arguments, &["--url", "amqp://127.0.0.1:1"]].concat()).run();
        assert_eq!((finished.code, finished.stdout.as_str()), (Some(2), ""), "{arguments:?}");
        assert!(finished.stderr.contains(option), "{arguments:?}: {}", finished.stderr);
    }
}

#[test]
fn a_refusal_is_1_and_bad_options_are_2() {
    let broker = Broker::start();
    let line_of = |arguments: &[&str], code| {
        let finished = broker.client(&[&["perf"], arguments].concat()).run();
        assert_eq!(
            (finished.code, finished.stdout.as_str()),
            (Some(code), ""),
            "{arguments:?}: {}",
            finished.stderr
        );
        finished.stderr
    };
    let refused = line_of(&["throughput", "--queue-argument", "x-max-length=-1"], 1);
    assert!(refused.starts_with("error: 406 PRECONDITION_FAILED") && refused.lines().count() == 1, "{refused}");
    let small = line_of(&["latency", "--size", "15"], 2);
    assert!(small.contains("at least 16 bytes"), "{small}");
    let transient = line_of(&["throughput", "--queue-argument", "x-queue-type=quorum"], 2);
    assert!(transient.contains("--durable"), "{transient}");
    line_of(&["throughput", "--prefetch", "10", "--ack-every", "11"], 2);
    line_of(&["throughput", "--prefetch", "10"], 2);
    line_of(&["throughput", "--queues", "0"], 2);
    for too_much in [
        &["throughput", "--queues", "2000000"][..],
        &["throughput", "--size", "999999999999"],
        &["throughput", "--producers", "18446744073709551615"],
        &["confirm", "--window", "4000000000"],
        &["topic", "--bindings", "4000000000"],
        &["rpc", "--size", "999999999999"],
    ] {
        line_of(too_much, 2);
    }
    line_of(&["throughput", "--consumers", "0", "--verify"], 2);
    line_of(&["throughput", "--timeout", "1"], 2);
    line_of(&["no-such-scenario"], 2);
    let finished = leveret(&["perf", "rpc", "--url", "amqp://127.0.0.1:1"]).run();
    assert_eq!(finished.code, Some(1));
    assert!(finished.stderr.contains("cannot reach a broker at 127.0.0.1:1"), "{}", finished.stderr);
}
