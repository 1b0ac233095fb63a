//! What the commands that talk to a broker print, and their exit codes.

use rustix::process::Signal;

use crate::VERSION;
use crate::support::{Broker, leveret};

#[test]
fn a_message_goes_through_a_queue() {
    let broker = Broker::start();
    assert_eq!(broker.ask(&["declare", "queue", "q"]), "");
    assert_eq!(broker.ask(&["publish", "q", "hello"]), "");
    assert_eq!(broker.ask(&["get", "q"]), "hello\n");
    assert_eq!(broker.ask(&["delete", "queue", "q"]), "");
}

#[test]
fn the_broker_is_named_by_an_option_too() {
    let broker = Broker::start();
    let finished = leveret(&["declare", "queue", "", "--url", &broker.client_url()]).run();
    assert_eq!(finished.code, Some(0), "{}", finished.stderr);
    assert!(finished.stdout.starts_with("amq.gen-"), "{}", finished.stdout);
}

#[test]
fn a_body_comes_from_standard_input_to_the_last_byte() {
    let broker = Broker::start();
    broker.ask(&["declare", "queue", "q"]);
    let finished = broker.client(&["publish", "q"]).input(b"two\nlines\n").run();
    assert_eq!(finished.code, Some(0), "{}", finished.stderr);
    assert_eq!(broker.ask(&["get", "q"]), "two\nlines\n\n");
}

#[test]
fn json_is_a_line_for_each_message() {
    let broker = Broker::start();
    broker.ask(&["declare", "queue", "q"]);
    broker.ask(&["publish", "q", "hello", "--persistent", "--header", "n=1", "--property", "type=t"]);
    assert_eq!(
        broker.ask(&["get", "q", "--format", "json"]),
        r#"{"exchange":"","routing_key":"q","redelivered":false,"properties":{"delivery_mode":2,"headers":{"n":1},"type":"t"},"body":"hello"}"#.to_owned() + "\n"
    );
    let finished = broker.client(&["publish", "q"]).input(&[0xFF, 0]).run();
    assert_eq!(finished.code, Some(0), "{}", finished.stderr);
    let line = broker.ask(&["get", "q", "--format", "json"]);
    assert!(line.ends_with("\"body_base64\":\"/wA=\"}\n"), "{line}");
}

#[test]
fn a_message_that_reaches_no_queue_is_1() {
    let broker = Broker::start();
    let finished = broker.client(&["publish", "nowhere", "hello"]).run();
    assert_eq!(finished.code, Some(1));
    let expected = "error: no queue 'nowhere'; create it with: leveret declare queue nowhere\n";
    assert_eq!(finished.stderr, expected);
    broker.ask(&["declare", "exchange", "logs", "topic"]);
    let arguments = ["publish", "--exchange", "logs", "--routing-key", "disk.error", "full", "--confirm"];
    let finished = broker.client(&arguments).run();
    assert_eq!(finished.code, Some(1));
    assert!(finished.stderr.contains("leveret declare binding logs QUEUE disk.error"), "{}", finished.stderr);
}

#[test]
fn a_command_that_is_offered_can_be_pasted_into_a_shell() {
    let broker = Broker::start();
    let offered = |arguments: &[&str]| {
        let stderr = broker.client(arguments).run().stderr;
        stderr.trim_end_matches('\n').split_once(" with: leveret declare ").unwrap().1.to_owned()
    };
    assert_eq!(offered(&["publish", "two words", "x"]), "queue 'two words'");
    assert_eq!(offered(&["publish", "it's", "x"]), r"queue 'it'\''s'");
    assert_eq!(offered(&["publish", "x", "--", "-q"]), "queue x");
    assert_eq!(offered(&["publish", "--", "-q", "x"]), "queue -- -q");
    let publish = ["publish", "--exchange", "amq.topic", "x", "--routing-key"];
    assert_eq!(offered(&[&publish[..], &["a b;c"]].concat()), "binding amq.topic QUEUE 'a b;c'");
    assert_eq!(offered(&[&publish[..], &[""]].concat()), "binding amq.topic QUEUE ''");
}

#[test]
fn a_queue_that_is_empty_is_3() {
    let broker = Broker::start();
    broker.ask(&["declare", "queue", "q"]);
    let finished = broker.client(&["get", "q"]).run();
    assert_eq!((finished.code, finished.stdout.as_str()), (Some(3), ""));
    assert_eq!(finished.stderr, "queue 'q' is empty\n");
}

#[test]
fn a_queue_that_does_not_exist_is_1() {
    let broker = Broker::start();
    for arguments in [&["get", "q"][..], &["purge", "q"], &["consume", "q"], &["consume", "q", "--count", "0"]] {
        let finished = broker.client(arguments).run();
        assert_eq!(finished.code, Some(1), "{arguments:?}");
        assert!(finished.stderr.contains("404 NOT_FOUND - no queue 'q' in vhost '/'"), "{}", finished.stderr);
        assert_eq!(finished.stderr.lines().count(), 1, "{}", finished.stderr);
    }
}

#[test]
fn a_broker_out_of_reach_is_1() {
    // A port that nobody gets by asking for a free one.
    let nobody = "127.0.0.1:1";
    let finished = leveret(&["get", "q", "--url", &format!("amqp://{nobody}")]).run();
    assert_eq!(finished.code, Some(1));
    assert!(finished.stderr.contains(&format!("cannot reach a broker at {nobody}")), "{}", finished.stderr);
}

#[test]
fn a_url_that_cannot_be_used_is_2_and_hides_its_password() {
    let finished = leveret(&["get", "q", "--url", "amqps://me:secret@127.0.0.1"]).run();
    assert_eq!(finished.code, Some(2));
    assert!(!finished.stderr.contains("secret"), "{}", finished.stderr);
}

#[test]
fn bindings_route_until_they_are_deleted() {
    let broker = Broker::start();
    broker.ask(&["declare", "exchange", "logs", "topic"]);
    broker.ask(&["declare", "queue", "errors"]);
    broker.ask(&["declare", "binding", "logs", "errors", "*.error"]);
    broker.ask(&["publish", "--exchange", "logs", "--routing-key", "disk.error", "full"]);
    assert_eq!(broker.ask(&["get", "errors"]), "full\n");
    broker.ask(&["delete", "binding", "logs", "errors", "*.error"]);
    let arguments = ["publish", "--exchange", "logs", "--routing-key", "disk.error", "full"];
    assert_eq!(broker.client(&arguments).run().code, Some(1));
    broker.ask(&["delete", "exchange", "logs", "--if-unused"]);
    let finished = broker.client(&arguments).run();
    assert_eq!(finished.code, Some(1));
    assert!(finished.stderr.contains("404 NOT_FOUND - no exchange 'logs'"), "{}", finished.stderr);
}

#[test]
fn a_declaration_with_other_properties_is_1() {
    let broker = Broker::start();
    broker.ask(&["declare", "queue", "q"]);
    let finished = broker.client(&["declare", "queue", "q", "--durable"]).run();
    assert_eq!(finished.code, Some(1));
    assert!(
        finished.stderr.contains("406 PRECONDITION_FAILED - inequivalent arg 'durable'"),
        "{}",
        finished.stderr
    );
}

#[test]
fn a_queue_in_use_or_with_messages_is_deleted_only_without_a_condition() {
    let broker = Broker::start();
    broker.ask(&["declare", "queue", "q"]);
    broker.ask(&["publish", "q", "hello"]);
    let finished = broker.client(&["delete", "queue", "q", "--if-empty"]).run();
    assert_eq!(finished.code, Some(1));
    assert!(finished.stderr.contains("406 PRECONDITION_FAILED"), "{}", finished.stderr);
    let consumer = broker.client(&["consume", "q"]).spawn();
    consumer.stdout.wait_for("hello\n", "the consumer to be there");
    assert_eq!(broker.client(&["delete", "queue", "q", "--if-unused"]).run().code, Some(1));
    broker.ask(&["delete", "queue", "q"]);
    let finished = consumer.wait();
    assert_eq!(finished.code, Some(1));
    assert!(finished.stderr.contains("ended the consumer of queue 'q'"), "{}", finished.stderr);
    // And once more: what does not exist is deleted already.
    broker.ask(&["delete", "queue", "q"]);
}

#[test]
fn a_purge_prints_how_many_messages_went() {
    let broker = Broker::start();
    broker.ask(&["declare", "queue", "q"]);
    broker.ask(&["publish", "q", "hello", "--count", "1234", "--confirm"]);
    assert_eq!(broker.ask(&["purge", "q"]), "1234\n");
    assert_eq!(broker.ask(&["purge", "q"]), "0\n");
}

#[test]
fn consume_with_a_count_takes_no_more_than_these() {
    let broker = Broker::start();
    broker.ask(&["declare", "queue", "q"]);
    for body in ["one", "two", "three", "four"] {
        broker.ask(&["publish", "q", body]);
    }
    assert_eq!(broker.ask(&["consume", "q", "--count", "1"]), "one\n");
    assert_eq!(broker.ask(&["consume", "q", "--count", "2", "--ack"]), "two\nthree\n");
    assert_eq!(broker.ask(&["purge", "q"]), "1\n");
}

#[test]
fn consume_prints_until_ctrl_c_and_what_was_printed_is_acked() {
    let broker = Broker::start();
    broker.ask(&["declare", "queue", "q"]);
    let consumer = broker.client(&["consume", "q", "--ack", "--format", "json"]).spawn();
    for body in ["one", "two"] {
        broker.ask(&["publish", "q", body]);
        consumer.stdout.wait_for(&format!(r#""body":"{body}"}}"#), "the message");
    }
    consumer.signal(Signal::INT);
    let finished = consumer.wait();
    assert_eq!((finished.code, finished.stdout.lines().count()), (Some(0), 2), "{}", finished.stderr);
    assert_eq!(broker.client(&["get", "q"]).run().code, Some(3));
}

#[test]
fn a_broker_that_stops_ends_its_consumers_with_1() {
    let broker = Broker::start();
    broker.ask(&["declare", "queue", "q"]);
    broker.ask(&["publish", "q", "hello", "--count", "3"]);
    let consumer = broker.client(&["consume", "q", "--ack"]).spawn();
    consumer.stdout.wait_for("hello\nhello\nhello\n", "all messages");
    broker.process.signal(Signal::TERM);
    let finished = consumer.wait();
    assert_eq!(finished.code, Some(1));
    assert!(finished.stderr.contains("320 CONNECTION_FORCED"), "{}", finished.stderr);
}

#[test]
fn completions_are_printed_for_a_shell() {
    let finished = leveret(&["completions", "bash"]).run();
    assert_eq!((finished.code, finished.stderr.as_str()), (Some(0), ""));
    assert!(finished.stdout.contains("complete -F _leveret"), "{}", finished.stdout);
    assert_eq!(leveret(&["completions", "no-such-shell"]).run().code, Some(2));
}

#[test]
fn version_and_help_go_to_standard_output() {
    assert_eq!(leveret(&["--version"]).run().stdout, format!("leveret {VERSION}\n"));
    let help = leveret(&["--help"]).run();
    assert_eq!(help.code, Some(0));
    assert!(help.stdout.contains("--in-memory") && help.stdout.contains("publish"), "{}", help.stdout);
}
