//! All targets take their corpus, what is nested deeply among it, on a small stack.

use std::path::Path;
use std::thread;

use leveret_amqp::frame::{FrameKind, write_frame};
use leveret_broker::limits::PATTERN_TEXT_BYTES_MAX;
use leveret_fuzz::{STACK_BYTES, TARGETS, Target};

/// Runs a target as its drivers do, and says which input it was that it did not take.
fn take(target: Target, name: &str, input: &[u8]) {
    thread::scope(|scope| {
        let thread = thread::Builder::new().name(format!("{} {name}", target.name)).stack_size(STACK_BYTES);
        let run = thread.spawn_scoped(scope, || (target.run)(input)).expect("there is room for a thread");
        assert!(run.join().is_ok(), "{} does not take {name}", target.name);
    });
}

#[test]
fn every_target_takes_its_corpus() {
    for target in TARGETS {
        let corpus = target.corpus().expect("it has a corpus");
        assert!(corpus.len() >= 3, "{} inputs of {}", corpus.len(), target.name);
        for (file, input) in corpus {
            take(target, &file.file_name().unwrap_or_default().to_string_lossy(), &input);
        }
    }
}

#[test]
fn every_folder_of_the_corpus_has_a_target() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus");
    for entry in folder.read_dir().expect("there is a corpus") {
        let name = entry.expect("it can be read").file_name();
        assert!(Target::find(&name.to_string_lossy()).is_some(), "{name:?}");
    }
}

/// What is nested thousands of levels deep is refused, or taken, on the same small stack.
#[test]
fn no_target_takes_more_stack_for_what_is_nested_deeply() {
    let text = |open: &str, close: &str| [open.repeat(DEEP), close.repeat(DEEP)].concat().into_bytes();
    let behind = |head: &[u8], input: Vec<u8>| [head, &input].concat();
    let deep_arguments = method_with_table(&deep_table());
    for (target, name, input) in [
        ("tables", "tables in tables", deep_table()),
        ("tables", "arrays in arrays", deep_array()),
        ("methods", "tables in tables", deep_arguments.clone()),
        ("content", "tables in tables", header_with_table(&deep_table())),
        ("content", "arrays in arrays", header_with_table(&deep_array())),
        ("frames", "a large frame", behind(&[255, 0], framed(1, &deep_arguments))),
        ("assembly", "tables in tables", behind(&[0, 0], raw_steps(&framed(1, &deep_arguments)))),
        ("connection", "tables in tables", behind(&[0], raw_steps(&framed(1, &deep_arguments)))),
        ("headers", "nothing but depth", deep_table()),
        ("topic", "many words", behind(&[0, 0, 1, 255], b"#.".repeat(DEEP))),
        ("definitions", "lists in lists", text("[", "]")),
        ("definitions", "objects in objects", text("{\"queues\":", "}")),
        ("definitions", "lists in arguments", deep_definitions("[", "]")),
        ("definitions", "objects in arguments", deep_definitions("{\"a\":", "}")),
        ("definitions", "groups in a pattern", deep_pattern(200)),
        ("definitions", "as many groups as have room", deep_pattern(PATTERN_TEXT_BYTES_MAX / 2)),
        ("definitions", "more groups than have room", deep_pattern(DEEP)),
        ("configuration", "lists in lists", behind(b"a=", text("[", "]"))),
        ("configuration", "tables in tables", behind(b"a=", text("{a=", "}"))),
        ("configuration", "a key of many words", behind(b"a", behind(&b".a".repeat(DEEP), b"=1".to_vec()))),
        ("configuration", "a table of many words", behind(b"[a", behind(&b".a".repeat(DEEP), b"]".to_vec()))),
        ("uri", "many slashes", behind(b"amqp://h/", b"/".repeat(DEEP))),
    ] {
        take(Target::find(target).expect("there is one"), name, &input);
    }
}

/// A content is put together from many frames, and copied once, in no more than twice what was sent.
#[test]
fn a_large_content_takes_no_more_than_twice_its_bytes() {
    for body_bytes in [70_000, (1 << 20) + 1, (3 << 20) + 77] {
        let mut sent = published(1, body_bytes as u64);
        let mut left = body_bytes;
        while left > 0 {
            let piece = left.min(100_000);
            sent.extend(body(1, piece));
            left -= piece;
        }
        assemble("a large content", &sent);
    }
}

/// Nor do contents that arrive side by side, however large they say they will be.
#[test]
fn contents_that_have_hardly_begun_take_no_more_than_twice_their_bytes() {
    let channels = 2..=100;
    let mut sent = Vec::new();
    for channel in channels.clone() {
        sent.extend(framed(channel, &[0, 20, 0, 10, 0]));
        sent.extend(published(channel, 1 << 20));
    }
    for _ in 0..8 {
        channels.clone().for_each(|channel| sent.extend(body(channel, 200)));
    }
    assemble("contents side by side", &sent);
}

fn assemble(name: &str, sent: &[u8]) {
    let target = Target::find("assembly").expect("there is one");
    take(target, name, &[&[0xFF, 0xFF], &raw_steps(sent)[..]].concat());
}

/// `basic.publish`, and the header of a content.
fn published(channel: u16, body_bytes: u64) -> Vec<u8> {
    let mut sent = framed(channel, &[0, 60, 0, 40, 0, 0, 0, 1, b'q', 0]);
    write_frame(&mut sent, FrameKind::Header, channel, |out| {
        out.extend_from_slice(&[0, 60, 0, 0]);
        out.extend_from_slice(&body_bytes.to_be_bytes());
        out.extend_from_slice(&[0, 0]);
    });
    sent
}

fn body(channel: u16, bytes: usize) -> Vec<u8> {
    let mut sent = Vec::new();
    write_frame(&mut sent, FrameKind::Body, channel, |out| out.resize(out.len() + bytes, b'x'));
    sent
}

/// So deep that each level has about ten bytes of the stack.
const DEEP: usize = 100_000;

/// The same for what must fit into a frame.
const DEEP_IN_FRAME: usize = 10_000;

/// Tables, or arrays, of which each has the next one in its only field. The lengths that all of them say are right.
fn nested(head: &[u8]) -> Vec<u8> {
    let level_bytes = head.len() + 4;
    let mut bytes = Vec::with_capacity(DEEP_IN_FRAME * level_bytes);
    for level in (0..DEEP_IN_FRAME).rev() {
        bytes.extend_from_slice(head);
        bytes.extend_from_slice(&u32::try_from(level * level_bytes).expect("it is no more").to_be_bytes());
    }
    bytes
}

fn deep_table() -> Vec<u8> {
    nested(b"\x01kF")
}

fn deep_array() -> Vec<u8> {
    let arrays = nested(b"A");
    let length = u32::try_from(arrays.len()).expect("it is no more").to_be_bytes();
    [b"\x01kA", &length[..], &arrays].concat()
}

/// `queue.declare`
fn method_with_table(table: &[u8]) -> Vec<u8> {
    let length = u32::try_from(table.len()).expect("it is no more").to_be_bytes();
    [&[0, 50, 0, 10, 0, 0, 1, b'q', 0][..], &length, table].concat()
}

fn header_with_table(table: &[u8]) -> Vec<u8> {
    let length = u32::try_from(table.len()).expect("it is no more").to_be_bytes();
    [&[0, 60, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x20, 0][..], &length, table].concat()
}

fn framed(channel: u16, method: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    write_frame(&mut bytes, FrameKind::Method, channel, |out| out.extend_from_slice(method));
    bytes
}

/// Steps that send these bytes as they are.
fn raw_steps(bytes: &[u8]) -> Vec<u8> {
    let step =
        |piece: &[u8]| [&[6][..], &u16::try_from(piece.len()).expect("it is short").to_le_bytes(), piece].concat();
    bytes.chunks(65_535).flat_map(step).collect()
}

fn deep_pattern(depth: usize) -> Vec<u8> {
    let (open, close) = ("(".repeat(depth), ")".repeat(depth));
    format!(r#"{{"policies":[{{"name":"p","vhost":"/","pattern":"{open}{close}","definition":{{"expires":1}}}}]}}"#)
        .into_bytes()
}

fn deep_definitions(open: &str, close: &str) -> Vec<u8> {
    let (open, close) = (open.repeat(DEEP), close.repeat(DEEP));
    format!("{{\"queues\":[{{\"name\":\"q\",\"vhost\":\"/\",\"arguments\":{{\"a\":{open}1{close}}}}}]}}")
        .into_bytes()
}
