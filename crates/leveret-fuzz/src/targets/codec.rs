//! What arrives on the wire, piece by piece: frames, methods, field tables, content headers.

use std::collections::BTreeSet;

use leveret_amqp::frame::{split_frame, write_frame};
use leveret_amqp::limits::FRAME_BYTES_MIN;
use leveret_amqp::{Array, ContentHeader, FieldTable, FrameError, Method, RawFrame, Table, TableBuilder, Value};
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

use crate::allowance::{in_all, twice};
use crate::bytes::Bytes;

/// A run of bytes has the same frames, and the same fault, however it is cut into pieces.
pub(super) fn frames(input: &[u8]) {
    let mut bytes = Bytes::new(input);
    let frame_max = FRAME_BYTES_MIN << (bytes.u8() % 8);
    let mut random = SmallRng::seed_from_u64(bytes.u8().into());
    let stream = bytes.rest();
    let (whole, fault) = frames_of(stream, frame_max);

    let mut written = Vec::new();
    for frame in &whole {
        write_frame(&mut written, frame.kind, frame.channel, |out| out.extend_from_slice(frame.payload));
    }
    assert_eq!(written, stream[..written.len()], "frames are written as they were read");

    twice(stream.len(), || {
        let mut expected = whole.iter();
        let mut carry = Vec::with_capacity(stream.len());
        let mut rest = stream;
        while !rest.is_empty() {
            let (piece, behind) = rest.split_at(random.random_range(1..=rest.len().min(64)));
            rest = behind;
            carry.extend_from_slice(piece);
            let mut left = &carry[..];
            loop {
                match split_frame(&mut left, frame_max) {
                    Ok(Some(frame)) => assert_eq!(Some(&frame), expected.next()),
                    Ok(None) => break,
                    Err(error) => {
                        assert_eq!((Some(error), None), (fault, expected.next()));
                        return;
                    }
                }
            }
            let used = carry.len() - left.len();
            carry.drain(..used);
        }
        assert_eq!((fault, expected.next()), (None, None));
    });
}

fn frames_of(stream: &[u8], frame_max: u32) -> (Vec<RawFrame<'_>>, Option<FrameError>) {
    let (mut frames, mut rest) = (Vec::new(), stream);
    loop {
        match split_frame(&mut rest, frame_max) {
            Ok(Some(frame)) => {
                assert!(frame.payload.len() <= frame_max as usize);
                frames.push(frame);
            }
            Ok(None) => return (frames, None),
            Err(error) => return (frames, Some(error)),
        }
    }
}

/// What is decoded is encoded to what is decoded to the same.
pub(super) fn methods(input: &[u8]) {
    in_all(input.len(), || {
        let Ok(method) = Method::decode(input) else { return };
        assert!(Method::decode(&input[..input.len() - 1]).is_err(), "it goes on to its last byte");
        let mut encoded = Vec::new();
        method.encode(&mut encoded);
        assert_eq!(encoded.len(), input.len());
        assert_eq!(Method::decode(&encoded), Ok(method));
        let (class, id) = method.ids();
        assert!(Method::ALL.iter().any(|spec| (spec.name, spec.class, spec.method) == (method.name(), class, id)));
    });
}

/// A table that was checked can be walked, and what is built of its fields is the same table.
pub(super) fn tables(input: &[u8]) {
    let checked = in_all(input.len(), || Table::check(input));
    let Ok(table) = checked else { return };
    assert!(input.is_empty() || Table::check(&input[..input.len() - 1]).is_err(), "it goes on to its last byte");
    in_all(input.len(), || {
        for (name, value) in table {
            value.as_str();
            value.as_integer();
            assert!(!value.type_name().is_empty());
            if let Ok(name) = std::str::from_utf8(name) {
                assert!(table.get(name).is_some());
            }
        }
        let sorted = table.sorted();
        assert_eq!(sorted.as_table().sorted(), sorted);
        assert_eq!(sorted.as_table().as_bytes().len(), input.len());
        let first = table.iter().find_map(|(name, _)| std::str::from_utf8(name).ok());
        if let Some(name) = first {
            assert_eq!(table.without(name).as_table().get(name), None);
        }
    });
    let rebuilt = rebuilt(table);
    assert_eq!(rebuilt.as_table().as_bytes().len(), input.len());
    let again = Table::check(rebuilt.as_table().as_bytes()).expect("what we build is whole");
    // Not a number is not equal to itself, but its octets are.
    assert_eq!(self::rebuilt(again), rebuilt);
}

fn rebuilt(table: Table<'_>) -> FieldTable {
    let mut copied = BTreeSet::new();
    FieldTable::build(|builder| {
        for (name, value) in table {
            match std::str::from_utf8(name) {
                Ok(name) => put(builder, name, value),
                // All fields of a name that is no text are copied as they are, together.
                Err(_) if copied.insert(name) => _ = builder.fields_of(table, |key| key == name),
                Err(_) => {}
            }
        }
    })
}

fn put(builder: &mut TableBuilder, name: &str, value: Value<'_>) {
    match value {
        Value::Table(inner) => {
            let inner = rebuilt(inner);
            builder.field(name, Value::Table(inner.as_table()));
        }
        Value::Array(inner) => {
            let inner = rebuilt_array(inner);
            builder.array(name, inner.iter().map(Owned::borrow));
        }
        value => _ = builder.field(name, value),
    }
}

/// A value of an array that was built anew.
enum Owned<'v> {
    Other(Value<'v>),
    Table(FieldTable),
    /// A table with the array in its one field.
    Array(FieldTable),
}

impl Owned<'_> {
    fn borrow(&self) -> Value<'_> {
        match self {
            Owned::Other(value) => *value,
            Owned::Table(table) => Value::Table(table.as_table()),
            Owned::Array(table) => table.as_table().get("").expect("it is there"),
        }
    }
}

fn rebuilt_array(array: Array<'_>) -> Vec<Owned<'_>> {
    let values = array.iter().map(|value| match value {
        Value::Table(inner) => Owned::Table(rebuilt(inner)),
        Value::Array(inner) => {
            let inner = rebuilt_array(inner);
            Owned::Array(FieldTable::build(|builder| _ = builder.array("", inner.iter().map(Owned::borrow))))
        }
        value => Owned::Other(value),
    });
    values.collect()
}

/// A content header that is decoded is encoded to the same octets.
pub(super) fn content(input: &[u8]) {
    in_all(input.len(), || {
        let Ok(header) = ContentHeader::decode(input) else { return };
        let mut encoded = Vec::new();
        header.encode(&mut encoded);
        assert_eq!(encoded, input);
        assert_eq!(ContentHeader::decode(&encoded), Ok(header));
    });
}
