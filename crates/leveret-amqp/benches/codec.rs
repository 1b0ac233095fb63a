//! Frames, methods, properties and tables, from bytes and to bytes.

use std::hint::black_box;

use divan::Bencher;
use divan::counter::{BytesCount, ItemsCount};
use leveret_amqp::frame::{split_frame, write_content, write_method};
use leveret_amqp::{BasicProperties, ContentHeader, FieldTable, FrameKind, Method, ShortStr, Table, Value};

fn main() {
    divan::main();
}

/// Messages in one buffer.
const BATCH: usize = 500;
const FRAME_MAX: u32 = 131_072;

fn short(text: &str) -> ShortStr<'_> {
    ShortStr::new(text).expect("short")
}

fn publish() -> Method<'static> {
    let (exchange, routing_key) = (short("exchange"), short("routing.key"));
    Method::BasicPublish { exchange, routing_key, mandatory: false, immediate: false, ticket: 0 }
}

/// Properties as clients send them, and four headers.
fn header(body_bytes: usize) -> Vec<u8> {
    let headers = FieldTable::build(|table| {
        table.field("trace", Value::LongStr(b"0af7651916cd43dd8448eb211c80319c"));
        table.field("attempt", Value::I32(3));
        table.field("sampled", Value::Bool(true));
        table.table("origin", |inner| _ = inner.field("host", Value::LongStr(b"a.example")));
    });
    let properties = BasicProperties {
        content_type: Some("application/json".as_bytes()),
        delivery_mode: Some(2),
        headers: Some(headers.as_table()),
        ..BasicProperties::default()
    };
    let mut header = Vec::new();
    ContentHeader { body_bytes: body_bytes as u64, properties }.encode(&mut header);
    header
}

fn publishes(body_bytes: usize) -> Vec<u8> {
    let (mut input, header, body) = (Vec::new(), header(body_bytes), vec![b'x'; body_bytes]);
    for _ in 0..BATCH {
        write_method(&mut input, 1, &publish());
        write_content(&mut input, 1, &header, &body, FRAME_MAX);
    }
    input
}

/// Takes publishes apart: each frame, its method or its properties.
#[divan::bench(args = [16, 1024])]
fn decode_publishes(bencher: Bencher<'_, '_>, body_bytes: usize) {
    let input = publishes(body_bytes);
    bencher.counter(ItemsCount::new(BATCH)).counter(BytesCount::new(input.len())).bench(|| {
        let mut rest = black_box(&input[..]);
        while let Ok(Some(frame)) = split_frame(&mut rest, FRAME_MAX) {
            match frame.kind {
                FrameKind::Method => _ = black_box(Method::decode(frame.payload).expect("a method")),
                FrameKind::Header => _ = black_box(ContentHeader::decode(frame.payload).expect("a header")),
                _ => {}
            }
        }
        assert!(rest.is_empty());
    });
}

#[divan::bench(args = [16, 1024])]
fn encode_publishes(bencher: Bencher<'_, '_>, body_bytes: usize) {
    let (mut out, header, body) = (Vec::new(), header(body_bytes), vec![b'x'; body_bytes]);
    bencher.counter(ItemsCount::new(BATCH)).bench_local(|| {
        out.clear();
        for _ in 0..BATCH {
            write_method(&mut out, 1, black_box(&publish()));
            write_content(&mut out, 1, &header, &body, FRAME_MAX);
        }
    });
}

/// Checks a table of a hundred fields, and finds the last one.
#[divan::bench]
fn look_into_a_table(bencher: Bencher<'_, '_>) {
    let names: Vec<String> = (0..100).map(|nth| format!("field-{nth}")).collect();
    let table = FieldTable::build(|table| {
        for name in &names {
            table.field(name, Value::I64(1));
        }
    });
    let declare = Method::QueueDeclare {
        ticket: 0,
        queue: short("queue"),
        passive: false,
        durable: true,
        exclusive: false,
        auto_delete: false,
        nowait: false,
        arguments: table.as_table(),
    };
    let mut payload = Vec::new();
    declare.encode(&mut payload);
    bencher.counter(ItemsCount::new(100_usize)).bench(|| {
        let Ok(Method::QueueDeclare { arguments, .. }) = Method::decode(black_box(&payload)) else {
            unreachable!()
        };
        found(arguments)
    });
}

fn found(arguments: Table<'_>) -> bool {
    arguments.get("field-99").is_some()
}
