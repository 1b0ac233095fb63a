//! A field table as an object. RabbitMQ: `rabbit_mgmt_format:amqp_table/1`.

use std::collections::BTreeSet;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use leveret_amqp::{Array, FieldTable, Table, Value};
use serde::ser::{Serialize, SerializeMap, SerializeSeq, Serializer};

/// A field table: an object with a field for each name, of a repeated one the first. What is no text becomes one that says
/// so, with its Base64.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Fields(pub FieldTable);

impl Serialize for Fields {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        TableView(self.0.as_table()).serialize(serializer)
    }
}

struct TableView<'a>(Table<'a>);

impl Serialize for TableView<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        let mut seen = BTreeSet::new();
        for (name, value) in self.0.iter().filter(|(name, _)| seen.insert(*name)) {
            map.serialize_entry(&text(name), &ValueView(value))?;
        }
        map.end()
    }
}

struct ArrayView<'a>(Array<'a>);

impl Serialize for ArrayView<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut sequence = serializer.serialize_seq(None)?;
        for value in self.0 {
            sequence.serialize_element(&ValueView(value))?;
        }
        sequence.end()
    }
}

/// Recursion is bounded: the codec has refused tables nested deeper than 64 levels.
struct ValueView<'a>(Value<'a>);

impl Serialize for ValueView<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self.0 {
            Value::Bool(flag) => serializer.serialize_bool(flag),
            Value::I8(number) => serializer.serialize_i8(number),
            Value::U8(number) => serializer.serialize_u8(number),
            Value::I16(number) => serializer.serialize_i16(number),
            Value::U16(number) => serializer.serialize_u16(number),
            Value::I32(number) => serializer.serialize_i32(number),
            Value::U32(number) => serializer.serialize_u32(number),
            Value::I64(number) => serializer.serialize_i64(number),
            Value::Timestamp(seconds) => serializer.serialize_u64(seconds),
            Value::F32(number) => serializer.serialize_f32(number),
            Value::F64(number) => serializer.serialize_f64(number),
            Value::Decimal(scale, digits) => serializer.serialize_f64(f64::from(digits) / 10f64.powi(scale.into())),
            Value::LongStr(bytes) | Value::Bytes(bytes) => serializer.serialize_str(&text(bytes)),
            Value::Array(values) => ArrayView(values).serialize(serializer),
            Value::Table(table) => TableView(table).serialize(serializer),
            Value::Void => serializer.serialize_unit(),
        }
    }
}

/// RabbitMQ: `rabbit_mgmt_format:utf8_safe/1`.
fn text(bytes: &[u8]) -> String {
    match std::str::from_utf8(bytes) {
        Ok(text) => text.to_owned(),
        Err(_) => format!("Not UTF-8, base64 is: {}", STANDARD.encode(bytes)),
    }
}
