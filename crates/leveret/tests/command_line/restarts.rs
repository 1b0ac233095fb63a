//! What a data folder keeps over stops, kills and damage, and what `leveret check` says of it.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use rustix::process::Signal;
use tempfile::TempDir;

use crate::support::{Broker, Finished, leveret};

/// A broker in a folder of the test's own.
fn start(folder: &TempDir) -> Broker {
    leveret(&["serve", "--amqp-port", "0", "--data-dir", folder.path().to_str().unwrap()]).start()
}

fn check(folder: &TempDir) -> Finished {
    leveret(&["check", "--data-dir", folder.path().to_str().unwrap()]).run()
}

/// All files of a folder. A broker that was killed has left its control socket, which is none.
fn files(folder: &Path) -> BTreeMap<String, Vec<u8>> {
    let entries = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap());
    let files = entries.filter(|entry| entry.file_type().unwrap().is_file());
    files.map(|entry| (entry.file_name().into_string().unwrap(), fs::read(entry.path()).unwrap())).collect()
}

fn folder_of(files: &BTreeMap<String, Vec<u8>>) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    for (name, bytes) in files {
        fs::write(folder.path().join(name), bytes).unwrap();
    }
    folder
}

/// A durable queue with ten confirmed messages, the first of which was taken.
fn fill(broker: &Broker) {
    broker.ask(&["declare", "queue", "q", "--durable"]);
    for number in 0..10 {
        broker.ask(&["publish", "q", &format!("message {number}"), "--persistent", "--confirm"]);
    }
    assert_eq!(broker.ask(&["get", "q"]), "message 0\n");
    // Another answer, so that the ack before it is durable.
    broker.ask(&["declare", "queue", "r", "--durable"]);
}

fn drain(broker: &Broker) -> Vec<String> {
    (1..10).map(|_| broker.ask(&["get", "q"])).collect()
}

fn expected() -> Vec<String> {
    (1..10).map(|number| format!("message {number}\n")).collect()
}

#[test]
fn what_is_durable_is_back_after_a_stop_in_good_order() {
    let folder = tempfile::tempdir().unwrap();
    let broker = start(&folder);
    fill(&broker);
    broker.stop();
    let checked = check(&folder);
    assert_eq!((checked.code, checked.stdout.ends_with("clean\n")), (Some(0), true), "{checked:?}");
    let broker = start(&folder);
    assert_eq!(drain(&broker), expected());
    assert_eq!(broker.client(&["get", "q"]).run().code, Some(3));
}

#[test]
fn what_was_confirmed_is_back_after_a_kill_again_and_again() {
    let folder = tempfile::tempdir().unwrap();
    let broker = start(&folder);
    fill(&broker);
    broker.kill();
    for _ in 0..3 {
        start(&folder).kill();
    }
    let broker = start(&folder);
    assert_eq!(drain(&broker), expected());
    broker.kill();
    // The last ack was followed by the end of its connection, whose answer rests on it.
    assert_eq!(start(&folder).client(&["get", "q"]).run().code, Some(3));
}

#[test]
fn check_tells_a_torn_end_from_damage_and_changes_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let broker = start(&folder);
    fill(&broker);
    assert_eq!(check(&folder).code, Some(73), "it runs");
    broker.stop();
    let whole = files(folder.path());
    let flipped = |at: fn(&[u8]) -> usize| {
        let mut files = whole.clone();
        let segment = files.get_mut("0000000001.segment").unwrap();
        let at = at(segment);
        segment[at] ^= 1;
        folder_of(&files)
    };
    let checked = |folder: &TempDir| {
        let before = files(folder.path());
        let checked = check(folder);
        assert!(files(folder.path()) == before, "something was changed");
        checked
    };
    // The last things that were written say, each in a page of its own, that all before them is synced.
    let torn = flipped(|bytes| {
        let begins = bytes.windows(4).enumerate().filter(|(_, four)| *four == b"LVB1").map(|(at, _)| at);
        begins.rev().nth(1).unwrap() + 20
    });
    let found = checked(&torn);
    assert_eq!((found.code, found.stdout.ends_with("repairable\n")), (Some(1), true), "{found:?}");
    assert!(found.stdout.contains(": the end is torn; the next start cuts it\n"), "{found:?}");
    let broker = start(&torn);
    assert_eq!(drain(&broker), expected());
    broker.stop();
    assert!(files(torn.path()).keys().any(|name| name.starts_with("torn-0000000001-")));
    let found = checked(&torn);
    assert_eq!((found.code, found.stdout.ends_with("clean\n")), (Some(0), true), "{found:?}");

    let damaged = flipped(|bytes| bytes.windows(9).position(|bytes| bytes == b"message 5").unwrap());
    let found = checked(&damaged);
    assert_eq!((found.code, found.stdout.ends_with("damaged\n")), (Some(2), true), "{found:?}");
    assert!(found.stdout.contains("0000000001.segment, offset"), "{found:?}");
    assert!(found.stdout.contains("; 1 change is missing"), "{found:?}");
    // It starts all the same, says what is missing, and serves the rest.
    let broker = start(&damaged);
    broker.process.stderr.wait_for("the journal is damaged: 0000000001.segment", "the report");
    let without = |message: &String| message != "message 5\n";
    let left: Vec<_> = (1..9).map(|_| broker.ask(&["get", "q"])).collect();
    assert_eq!(left, expected().into_iter().filter(without).collect::<Vec<_>>());
    broker.stop();
    assert!(files(damaged.path()).keys().any(|name| name.starts_with("damaged-0000000001-")));
    let found = checked(&damaged);
    assert!(found.code == Some(2) && found.stdout.contains("damaged-0000000001-"), "{found:?}");
}

#[test]
fn check_and_the_start_say_which_segments_are_missing_or_were_cut() {
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().to_str().unwrap();
    let arguments = ["serve", "--amqp-port", "0", "--data-dir", data, "--segment-size", "1048576"];
    let broker = leveret(&arguments).start();
    broker.ask(&["declare", "queue", "q", "--durable"]);
    let names = |folder: &Path| {
        let names = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
        let mut names: Vec<_> = names.filter(|name| name.ends_with(".segment")).collect();
        names.sort();
        names
    };
    // So long that a start begins to read behind the third segment.
    let body = "x".repeat(100_000);
    let mut published = 0;
    loop {
        broker.ask(&["publish", "q", &body, "--persistent", "--confirm"]);
        published += 1;
        let last = fs::read(folder.path().join(names(folder.path()).last().unwrap())).unwrap();
        let begins_at = u64::from_le_bytes(*last[72..].first_chunk().unwrap());
        if begins_at > 3 {
            break;
        }
        assert!(published < 1000, "no start will begin later");
    }
    broker.kill();
    let checked = check(&folder);
    assert_eq!((checked.code, checked.stdout.ends_with("clean\n")), (Some(0), true), "{checked:?}");
    let whole = names(folder.path());
    // Not one that a checkpoint has begun for its header alone.
    let length = |name: &String| fs::metadata(folder.path().join(name)).unwrap().len();
    let read = whole[..whole.len() - 1].iter().rfind(|name| length(name) > 100_000).unwrap();
    for (gone, words) in [
        (&whole[0], " is missing, and with it "),
        (&whole[2], " is missing, and with it "),
        (read, " is not there; "),
    ] {
        let mut files = files(folder.path());
        files.remove(gone);
        let copy = folder_of(&files);
        let checked = check(&copy);
        assert_eq!(checked.code, Some(2), "without {gone}: {checked:?}");
        assert!(checked.stdout.contains(words) && checked.stdout.contains(gone.as_str()), "{checked:?}");
        let broker = start(&copy);
        broker.process.stderr.wait_for(words, "the report");
        broker.stop();
    }
    // Where a batch ends nothing is amiss with those before it.
    let first = &files(folder.path())[&whole[0]];
    let is_batch = |at: &usize| first[*at..].starts_with(b"LVB1");
    let behind_some = (0..first.len()).step_by(8).filter(is_batch).nth_back(3).unwrap();
    let lying = "in virtual host '/' has ";
    for (name, length, found, said) in [
        (&whole[0], behind_some, lying, "the journal went on behind it"),
        (&whole[0], 0, lying, "the journal is damaged: 0000000001.segment"),
        (whole.last().unwrap(), 0, "an unknown number of changes is missing", "an unknown number of changes is"),
    ] {
        let mut files = files(folder.path());
        files.get_mut(name).unwrap().truncate(length);
        let copy = folder_of(&files);
        let checked = check(&copy);
        assert_eq!(checked.code, Some(2), "{name} cut to {length}: {checked:?}");
        assert!(checked.stdout.contains(found) && checked.stdout.contains(name.as_str()), "{checked:?}");
        let broker = start(&copy);
        broker.process.stderr.wait_for(said, "the report");
        broker.stop();
    }
    // Files that a journal leaves behind, and none.
    let copy = tempfile::tempdir().unwrap();
    fs::write(copy.path().join("spare-7"), "").unwrap();
    let checked = check(&copy);
    assert_eq!(
        (checked.code, checked.stdout.contains("every segment is not there")),
        (Some(2), true),
        "{checked:?}"
    );
}

/// A wrong folder must not look like a clean one to whatever asks for the exit code.
#[test]
fn a_folder_without_a_journal_is_2_and_the_advice_is_another_folder() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("notes.txt"), "no journal").unwrap();
    let checked = check(&folder);
    assert_eq!((checked.code, checked.stdout.as_str()), (Some(2), ""), "{checked:?}");
    let folder = folder.path().display();
    let words = format!("error: no journal in {folder}; name the data folder of a broker with --data-dir DIR\n");
    assert_eq!(checked.stderr, words);
}

#[test]
fn check_counts_one_of_a_thing_as_one() {
    let folder = tempfile::tempdir().unwrap();
    start(&folder).stop();
    let checked = check(&folder);
    assert_eq!(checked.code, Some(0), "{checked:?}");
    assert!(checked.stdout.starts_with("1 segment, "), "{checked:?}");
}

#[test]
fn less_free_disk_than_the_limit_holds_publishers_and_nobody_else() {
    let folder = tempfile::tempdir().unwrap();
    let data_dir = folder.path().to_str().unwrap();
    let options = ["serve", "--amqp-port", "0", "--data-dir", data_dir, "--disk-free-limit", "9000PB"];
    let broker = leveret(&options).start();
    broker.process.stderr.wait_for("low on disk", "the warning");
    // No queue takes it, so it would be confirmed at once.
    let publisher = broker.client(&["publish", "nowhere", "held", "--confirm"]).spawn();
    broker.process.stderr.wait_for("connection opened", "the publisher");
    for queue in ["q", "r", "s"] {
        broker.ask(&["declare", "queue", queue, "--durable"]);
        assert_eq!(broker.client(&["get", queue]).run().code, Some(3), "who does not publish goes on");
    }
    publisher.signal(Signal::TERM);
    assert_eq!(publisher.wait().code, None, "it waited until it was killed");
    broker.stop();
    let refused = leveret(&["serve", "--amqp-port", "0", "--disk-free-limit", "much"]).run();
    assert!(refused.code == Some(2) && refused.stderr.contains("for example 50MB"), "{refused:?}");
}

#[test]
fn a_publisher_that_has_to_wait_is_told_why() {
    let broker = leveret(&["--amqp-port", "0", "--disk-free-limit", "9000PB"]).start();
    broker.process.stderr.wait_for("low on disk", "the warning");
    for arguments in [&["publish", "q", "held"][..], &["publish", "q", "held", "--confirm"]] {
        let publisher = broker.client(arguments).spawn();
        publisher.stderr.wait_for("the broker takes no messages: low on disk; waiting\n", "the reason");
    }
}

/// What rots on disk while the broker runs is never handed out; everything else is.
#[test]
fn a_message_that_cannot_be_read_back_is_passed_over() {
    const MESSAGES: usize = 20_000;
    let folder = tempfile::tempdir().unwrap();
    let options = ["serve", "--amqp-port", "0", "--memory-limit", "32MiB", "--data-dir"];
    let broker = leveret(&[&options[..], &[folder.path().to_str().unwrap()]].concat()).start();
    broker.ask(&["declare", "queue", "q", "--durable"]);
    let body = "x".repeat(1024);
    let count = MESSAGES.to_string();
    broker.ask(&["publish", "q", &body, "--persistent", "--confirm", "--count", &count]);
    // By now most of it is on disk only, from the first message on. That is in the first segment if the batch with it
    // had room there, else in the second.
    let is_body = |window: &[u8]| window == "x".repeat(64).as_bytes();
    let first_with_bodies = (1..=2).find_map(|generation| {
        let segment = folder.path().join(format!("{generation:010}.segment"));
        let bytes = fs::read(&segment).unwrap();
        bytes.windows(64).any(is_body).then_some((segment, bytes))
    });
    let (segment, mut bytes) = first_with_bodies.unwrap();
    let used = bytes.iter().rposition(|&byte| byte != 0).unwrap();
    // In the first message, for a client that asks, and in one on the way, for one that consumes.
    let body_from = |from: usize| from + bytes[from..].windows(64).position(is_body).unwrap();
    for at in [body_from(0), body_from(used / 2)] {
        bytes[at] ^= 1;
    }
    fs::write(&segment, &bytes).unwrap();
    let got = broker.ask(&["get", "q"]);
    assert_eq!(got.trim_end(), body, "what lies behind it");
    let left = (MESSAGES - 3).to_string();
    let consumed = broker.ask(&["consume", "q", "--count", &left]);
    assert_eq!(consumed.lines().count(), MESSAGES - 3);
    assert!(consumed.lines().all(|line| line == body), "a wrong body");
    broker.process.stderr.wait_for("that cannot be read back stay where they are: ", "the report");
    assert_eq!(broker.client(&["get", "q"]).run().code, Some(3), "nobody gets it");
}

#[test]
fn a_lost_record_of_the_virtual_host_loses_no_message() {
    let folder = tempfile::tempdir().unwrap();
    let broker = start(&folder);
    fill(&broker);
    broker.stop();
    let segment = folder.path().join("0000000001.segment");
    let mut bytes = fs::read(&segment).unwrap();
    // The first batch behind the header of the segment holds nothing but that record.
    bytes[96 + 40 + 24 + 1] ^= 1;
    fs::write(&segment, &bytes).unwrap();
    let broker = start(&folder);
    broker.process.stderr.wait_for("it is taken for '/'", "the report");
    assert_eq!(drain(&broker), expected());
    broker.ask(&["declare", "queue", "more", "--durable"]);
    broker.stop();
    start(&folder).ask(&["declare", "queue", "more", "--durable"]);
}

#[test]
fn a_journal_of_a_newer_version_is_refused_with_words() {
    let folder = tempfile::tempdir().unwrap();
    start(&folder).stop();
    let segment = folder.path().join("0000000001.segment");
    let mut bytes = fs::read(&segment).unwrap();
    bytes[8] = 9;
    let checksum = crc32c::crc32c_append(crc32c::crc32c(&bytes[..12]), &bytes[16..96]);
    bytes[12..16].copy_from_slice(&checksum.to_le_bytes());
    fs::write(&segment, &bytes).unwrap();
    let refused = leveret(&["--amqp-port", "0", "--data-dir", folder.path().to_str().unwrap()]).run();
    assert_eq!(refused.code, Some(1), "{refused:?}");
    assert!(refused.stderr.contains("format version 9"), "{refused:?}");
    assert_eq!(fs::read(&segment).unwrap(), bytes);
}

/// What a broker says that cannot make another file, as somebody has done something to its data folder.
fn tells_without_its_folder(change: impl FnOnce(&Path), words: &str) {
    let parent = tempfile::tempdir().unwrap();
    let folder = parent.path().join("data");
    let data = folder.to_str().unwrap();
    let broker = leveret(&["serve", "--amqp-port", "0", "--data-dir", data, "--segment-size", "1048576"]).start();
    broker.ask(&["declare", "queue", "q", "--durable"]);
    change(&folder);
    let body = "x".repeat(100_000);
    // Files that were opened can still be written; it shows when the next one is made.
    let published = (0..200)
        .take_while(|_| broker.client(&["publish", "q", &body, "--persistent", "--confirm"]).run().code == Some(0));
    assert!(published.count() < 200);
    broker.process.stderr.wait_for(words, "what became of it");
    assert!(!broker.process.stderr.text().contains("what was confirmed is on disk"));
}

/// Who removes it by mistake has to know at once.
#[test]
fn a_broker_whose_data_folder_was_removed_does_not_say_that_anything_is_on_disk() {
    let remove = |folder: &Path| fs::remove_dir_all(folder).unwrap();
    tells_without_its_folder(remove, "is gone, and with it what was confirmed");
}

/// Another folder at the same place has nothing of what was confirmed.
#[test]
fn a_broker_whose_data_folder_was_replaced_does_not_say_that_anything_is_on_disk() {
    let replace = |folder: &Path| {
        fs::rename(folder, folder.with_file_name("away")).unwrap();
        fs::create_dir(folder).unwrap();
    };
    tells_without_its_folder(replace, "is not the data folder any more that it was at the start");
}
