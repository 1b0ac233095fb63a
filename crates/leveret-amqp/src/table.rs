//! Field tables and arrays in RabbitMQ's dialect. AMQP 0-9-1 §4.2.5.5, with the type letters that clients use.
//!
//! A table stays the bytes it arrived as, checked once and walked when somebody asks: what the broker does not
//! need it hands on unchanged, and no tree has to be built, compared or dropped.
//! Invariant: the bytes inside a [`Table`] or [`Array`] were checked, so walking them cannot fail.

use std::fmt;

use crate::limits::TABLE_DEPTH_MAX;
use crate::string::ShortStr;
use crate::wire::{DecodeError, Reader};

/// A field table or array that breaks the rules. Each is a connection exception 502.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TableError {
    /// A name or value ends beyond the table.
    #[error("a field table ends in the middle of a field")]
    Truncated,
    /// A type letter nobody defined.
    #[error("unknown field type {:?}", char::from(*.0))]
    UnknownType(u8),
    /// More levels than [`TABLE_DEPTH_MAX`].
    #[error("field tables are nested deeper than {TABLE_DEPTH_MAX} levels")]
    TooDeep,
}

/// One field value, borrowed from its table.
///
/// Equality is that of the wire: same type letter family and same content.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Value<'a> {
    /// `t`
    Bool(bool),
    /// `b`
    I8(i8),
    /// `B`
    U8(u8),
    /// `s`: a 16-bit number in RabbitMQ's dialect, not a short string
    I16(i16),
    /// `u`
    U16(u16),
    /// `I`
    I32(i32),
    /// `i`
    U32(u32),
    /// `l`, and `L`, which RabbitMQ reads as signed too
    I64(i64),
    /// `f`
    F32(f32),
    /// `d`
    F64(f64),
    /// `D`: digits right of the point, then the digits
    Decimal(u8, u32),
    /// `S`: bytes, usually text
    LongStr(&'a [u8]),
    /// `A`
    Array(Array<'a>),
    /// `T`: seconds since 1970
    Timestamp(u64),
    /// `F`
    Table(Table<'a>),
    /// `V`
    Void,
    /// `x`
    Bytes(&'a [u8]),
}

impl<'a> Value<'a> {
    /// The number, whatever integer type carried it.
    pub fn as_integer(self) -> Option<i64> {
        match self {
            Value::I8(n) => Some(n.into()),
            Value::U8(n) => Some(n.into()),
            Value::I16(n) => Some(n.into()),
            Value::U16(n) => Some(n.into()),
            Value::I32(n) => Some(n.into()),
            Value::U32(n) => Some(n.into()),
            Value::I64(n) => Some(n),
            Value::Bool(_)
            | Value::F32(_)
            | Value::F64(_)
            | Value::Decimal(..)
            | Value::LongStr(_)
            | Value::Array(_)
            | Value::Timestamp(_)
            | Value::Table(_)
            | Value::Void
            | Value::Bytes(_) => None,
        }
    }

    /// The text of a long string, if it is UTF-8.
    pub fn as_str(self) -> Option<&'a str> {
        if let Value::LongStr(bytes) = self { std::str::from_utf8(bytes).ok() } else { None }
    }

    /// The type as RabbitMQ names it in reply texts.
    pub fn type_name(self) -> &'static str {
        match self {
            Value::Bool(_) => "bool",
            Value::I8(_) => "byte",
            Value::U8(_) => "unsignedbyte",
            Value::I16(_) => "short",
            Value::U16(_) => "unsignedshort",
            Value::I32(_) => "signedint",
            Value::U32(_) => "unsignedint",
            Value::I64(_) => "long",
            Value::F32(_) => "float",
            Value::F64(_) => "double",
            Value::Decimal(..) => "decimal",
            Value::LongStr(_) => "longstr",
            Value::Array(_) => "array",
            Value::Timestamp(_) => "timestamp",
            Value::Table(_) => "table",
            Value::Void => "void",
            Value::Bytes(_) => "binary",
        }
    }
}

/// Reads one value without entering it.
fn read_value<'a>(reader: &mut Reader<'a>) -> Result<Value<'a>, TableError> {
    fn inner<'a>(reader: &mut Reader<'a>) -> Result<Result<Value<'a>, u8>, DecodeError> {
        Ok(Ok(match reader.u8()? {
            b't' => Value::Bool(reader.u8()? != 0),
            b'b' => Value::I8(reader.u8()?.cast_signed()),
            b'B' => Value::U8(reader.u8()?),
            b's' => Value::I16(reader.u16()?.cast_signed()),
            b'u' => Value::U16(reader.u16()?),
            b'I' => Value::I32(reader.u32()?.cast_signed()),
            b'i' => Value::U32(reader.u32()?),
            b'l' | b'L' => Value::I64(reader.u64()?.cast_signed()),
            b'f' => Value::F32(f32::from_bits(reader.u32()?)),
            b'd' => Value::F64(f64::from_bits(reader.u64()?)),
            b'D' => Value::Decimal(reader.u8()?, reader.u32()?),
            b'S' => Value::LongStr(reader.long_bytes()?),
            b'A' => Value::Array(Array(reader.long_bytes()?)),
            b'T' => Value::Timestamp(reader.u64()?),
            b'F' => Value::Table(Table(reader.long_bytes()?)),
            b'V' => Value::Void,
            b'x' => Value::Bytes(reader.long_bytes()?),
            other => return Ok(Err(other)),
        }))
    }
    inner(reader).map_err(|_| TableError::Truncated)?.map_err(TableError::UnknownType)
}

/// Checks a table or array with all that is in it, without recursion.
fn check(bytes: &[u8], is_table: bool) -> Result<(), TableError> {
    let mut open = vec![];
    let mut reader = Reader::new(bytes);
    let mut named = is_table;
    loop {
        while !reader.rest().is_empty() {
            if named {
                reader.short_bytes().map_err(|_| TableError::Truncated)?;
            }
            let (inside, inside_named) = match read_value(&mut reader)? {
                Value::Table(Table(inside)) => (inside, true),
                Value::Array(Array(inside)) => (inside, false),
                _ => continue,
            };
            if open.len() + 1 >= TABLE_DEPTH_MAX {
                return Err(TableError::TooDeep);
            }
            open.push((reader.rest(), named));
            reader = Reader::new(inside);
            named = inside_named;
        }
        match open.pop() {
            None => return Ok(()),
            Some((rest, outer_named)) => {
                reader = Reader::new(rest);
                named = outer_named;
            }
        }
    }
}

/// A field table, borrowed: names of at most 255 bytes, each with a value. Names may repeat; the first counts.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
pub struct Table<'a>(&'a [u8]);

impl<'a> Table<'a> {
    /// The table of no fields.
    pub const EMPTY: Table<'static> = Table(&[]);

    /// Checks the bytes of a table, its length prefix not among them.
    pub fn check(bytes: &'a [u8]) -> Result<Self, TableError> {
        if !bytes.is_empty() {
            check(bytes, true)?;
        }
        Ok(Table(bytes))
    }

    /// The fields in their order.
    pub fn iter(self) -> TableIter<'a> {
        TableIter(Reader::new(self.0))
    }

    /// The first value of that name.
    pub fn get(self, name: &str) -> Option<Value<'a>> {
        self.iter().find(|(key, _)| *key == name.as_bytes()).map(|(_, value)| value)
    }

    /// The same fields in the same order, all but those of one name.
    pub fn without(self, name: &str) -> FieldTable {
        FieldTable::build(|table| _ = table.fields_of(self, |key| key != name.as_bytes()))
    }

    /// The same fields, by name; those of one name in their order.
    pub fn sorted(self) -> FieldTable {
        let mut fields = Vec::new();
        let mut reader = Reader::new(self.0);
        while !reader.rest().is_empty() {
            let field = reader.rest();
            let (Ok(name), Ok(_)) = (reader.short_bytes(), read_value(&mut reader)) else { break };
            fields.push((name, &field[..field.len() - reader.rest().len()]));
        }
        fields.sort_by_key(|&(name, _)| name);
        FieldTable(fields.into_iter().flat_map(|(_, field)| field).copied().collect())
    }

    /// Whether there are no fields.
    pub fn is_empty(self) -> bool {
        self.0.is_empty()
    }

    /// The bytes behind the length prefix.
    pub fn as_bytes(self) -> &'a [u8] {
        self.0
    }
}

impl fmt::Debug for Table<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_map().entries(self.iter().map(|(name, value)| (String::from_utf8_lossy(name), value))).finish()
    }
}

impl<'a> IntoIterator for Table<'a> {
    type Item = (&'a [u8], Value<'a>);
    type IntoIter = TableIter<'a>;
    fn into_iter(self) -> TableIter<'a> {
        self.iter()
    }
}

/// Walks a [`Table`].
#[derive(Debug)]
pub struct TableIter<'a>(Reader<'a>);

impl<'a> Iterator for TableIter<'a> {
    type Item = (&'a [u8], Value<'a>);
    fn next(&mut self) -> Option<Self::Item> {
        if self.0.rest().is_empty() {
            return None;
        }
        let name = self.0.short_bytes().ok()?;
        Some((name, read_value(&mut self.0).ok()?))
    }
}

/// A field array, borrowed.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
pub struct Array<'a>(&'a [u8]);

impl<'a> Array<'a> {
    /// The values in their order.
    pub fn iter(self) -> ArrayIter<'a> {
        ArrayIter(Reader::new(self.0))
    }
}

impl fmt::Debug for Array<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.iter()).finish()
    }
}

impl<'a> IntoIterator for Array<'a> {
    type Item = Value<'a>;
    type IntoIter = ArrayIter<'a>;
    fn into_iter(self) -> ArrayIter<'a> {
        self.iter()
    }
}

/// Walks an [`Array`].
#[derive(Debug)]
pub struct ArrayIter<'a>(Reader<'a>);

impl<'a> Iterator for ArrayIter<'a> {
    type Item = Value<'a>;
    fn next(&mut self) -> Option<Value<'a>> {
        if self.0.rest().is_empty() { None } else { read_value(&mut self.0).ok() }
    }
}

/// A field table of our own.
#[derive(Clone, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct FieldTable(Box<[u8]>);

impl FieldTable {
    /// Builds a table field by field.
    pub fn build(fields: impl FnOnce(&mut TableBuilder)) -> Self {
        let mut builder = TableBuilder::default();
        fields(&mut builder);
        FieldTable(builder.0.into())
    }

    /// Borrows it.
    pub fn as_table(&self) -> Table<'_> {
        Table(&self.0)
    }
}

impl From<Table<'_>> for FieldTable {
    fn from(table: Table<'_>) -> Self {
        FieldTable(table.0.into())
    }
}

impl fmt::Debug for FieldTable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.as_table().fmt(f)
    }
}

/// Writes the fields of a table one after the other.
#[derive(Debug, Default)]
pub struct TableBuilder(Vec<u8>);

impl TableBuilder {
    /// Appends a field. The name is cut at 255 bytes.
    pub fn field(&mut self, name: &str, value: Value<'_>) -> &mut Self {
        self.name(name);
        self.value(value);
        self
    }

    /// Appends those fields of another table whose names are kept, octet by octet as they are there.
    pub fn fields_of(&mut self, other: Table<'_>, mut keeps: impl FnMut(&[u8]) -> bool) -> &mut Self {
        let mut reader = Reader::new(other.0);
        while !reader.rest().is_empty() {
            let field = reader.rest();
            let (Ok(name), Ok(_)) = (reader.short_bytes(), read_value(&mut reader)) else { break };
            if keeps(name) {
                self.0.extend_from_slice(&field[..field.len() - reader.rest().len()]);
            }
        }
        self
    }

    /// Appends a field that is a table.
    pub fn table(&mut self, name: &str, fields: impl FnOnce(&mut TableBuilder)) -> &mut Self {
        let inner = FieldTable::build(fields);
        self.field(name, Value::Table(inner.as_table()))
    }

    /// Appends a field that is an array of the given values.
    pub fn array<'v>(&mut self, name: &str, values: impl IntoIterator<Item = Value<'v>>) -> &mut Self {
        let mut inner = TableBuilder::default();
        for value in values {
            inner.value(value);
        }
        self.field(name, Value::Array(Array(&inner.0)))
    }

    fn name(&mut self, name: &str) {
        let name = ShortStr::truncated(name);
        self.0.push(name.length_octet());
        self.0.extend_from_slice(name.as_str().as_bytes());
    }

    fn value(&mut self, value: Value<'_>) {
        match value {
            Value::Bool(flag) => self.raw(b't', &[flag.into()]),
            Value::I8(n) => self.raw(b'b', &n.to_be_bytes()),
            Value::U8(n) => self.raw(b'B', &n.to_be_bytes()),
            Value::I16(n) => self.raw(b's', &n.to_be_bytes()),
            Value::U16(n) => self.raw(b'u', &n.to_be_bytes()),
            Value::I32(n) => self.raw(b'I', &n.to_be_bytes()),
            Value::U32(n) => self.raw(b'i', &n.to_be_bytes()),
            Value::I64(n) => self.raw(b'l', &n.to_be_bytes()),
            Value::F32(n) => self.raw(b'f', &n.to_be_bytes()),
            Value::F64(n) => self.raw(b'd', &n.to_be_bytes()),
            Value::Decimal(scale, digits) => {
                self.raw(b'D', &[scale]);
                self.0.extend_from_slice(&digits.to_be_bytes());
            }
            Value::LongStr(bytes) => self.sized(b'S', bytes),
            Value::Array(Array(bytes)) => self.sized(b'A', bytes),
            Value::Timestamp(seconds) => self.raw(b'T', &seconds.to_be_bytes()),
            Value::Table(Table(bytes)) => self.sized(b'F', bytes),
            Value::Void => self.raw(b'V', &[]),
            Value::Bytes(bytes) => self.sized(b'x', bytes),
        }
    }

    fn raw(&mut self, letter: u8, bytes: &[u8]) {
        self.0.push(letter);
        self.0.extend_from_slice(bytes);
    }

    fn sized(&mut self, letter: u8, bytes: &[u8]) {
        self.raw(letter, &u32::try_from(bytes.len()).unwrap_or(u32::MAX).to_be_bytes());
        self.0.extend_from_slice(bytes);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_type_of_the_dialect_is_written_and_read_back() {
        let array = FieldTable::build(|t| {
            t.array("a", [Value::I32(-1), Value::Void, Value::LongStr(b"x")]);
        });
        let Some(Value::Array(array)) = array.as_table().get("a") else { panic!("no array") };
        let inner = FieldTable::build(|t| {
            t.field("deep", Value::Bool(true));
        });
        let values = [
            Value::Bool(false),
            Value::I8(-1),
            Value::U8(255),
            Value::I16(-2),
            Value::U16(65_535),
            Value::I32(i32::MIN),
            Value::U32(u32::MAX),
            Value::I64(i64::MIN),
            Value::F32(1.5),
            Value::F64(-2.25),
            Value::Decimal(2, 314),
            Value::LongStr("안녕".as_bytes()),
            Value::Array(array),
            Value::Timestamp(u64::MAX),
            Value::Table(inner.as_table()),
            Value::Void,
            Value::Bytes(&[0, 255]),
        ];
        let table = FieldTable::build(|t| {
            for value in values {
                t.field(value.type_name(), value);
            }
        });
        let checked = Table::check(table.as_table().as_bytes()).unwrap();
        assert_eq!(checked.iter().map(|(_, value)| value).collect::<Vec<_>>(), values);
        assert!(checked.iter().all(|(name, value)| name == value.type_name().as_bytes()));
    }

    #[test]
    fn an_integer_of_any_width_is_a_number_and_a_long_string_is_a_text() {
        for (value, number) in [
            (Value::I8(-8), -8),
            (Value::U8(200), 200),
            (Value::I16(-16), -16),
            (Value::U16(60_000), 60_000),
            (Value::I32(-32), -32),
            (Value::U32(4_000_000_000), 4_000_000_000),
            (Value::I64(i64::MIN), i64::MIN),
        ] {
            assert_eq!((value.as_integer(), value.as_str()), (Some(number), None), "{value:?}");
        }
        for value in [Value::Bool(true), Value::F64(1.0), Value::Timestamp(1), Value::Bytes(b"1"), Value::Void] {
            assert_eq!((value.as_integer(), value.as_str()), (None, None), "{value:?}");
        }
        let text = Value::LongStr("큐".as_bytes());
        assert_eq!((text.as_integer(), text.as_str()), (None, Some("큐")));
        assert_eq!(Value::LongStr(&[0xFF]).as_str(), None);
    }

    #[test]
    fn types_are_called_as_in_reply_texts_of_rabbitmq() {
        let called = [Value::Bool(true), Value::U8(0), Value::I64(0), Value::LongStr(b""), Value::Bytes(b"")];
        let names = ["bool", "unsignedbyte", "long", "longstr", "binary"];
        assert_eq!(called.map(Value::type_name), names);
    }

    #[test]
    fn a_table_shows_its_fields() {
        let table = FieldTable::build(|t| {
            t.table("inner", |t| _ = t.field("n", Value::U8(7))).array("list", [Value::Void, Value::Bool(true)]);
        });
        let shown = r#"{"inner": Table({"n": U8(7)}), "list": Array([Void, Bool(true)])}"#;
        assert_eq!(format!("{table:?}"), shown);
        assert_eq!(FieldTable::from(table.as_table()), table);
        assert_eq!((table.as_table().is_empty(), Table::EMPTY.is_empty()), (false, true));
    }

    #[test]
    fn a_field_is_left_out_and_the_others_stay_as_they_were() {
        let table = FieldTable::build(|t| {
            t.field("BCC", Value::Void).field("k", Value::F64(0.5)).array("BCC", [Value::Bool(true)]);
        });
        let kept = FieldTable::build(|t| {
            t.field("k", Value::F64(0.5));
        });
        assert_eq!(table.as_table().without("BCC"), kept);
    }

    #[test]
    fn sorting_keeps_every_octet_of_every_field() {
        let unsorted = [&b"\x02\xFF\xFEV"[..], b"\x01at\x01", b"\x00V"].concat();
        let sorted = Table::check(&unsorted).unwrap().sorted();
        assert_eq!(sorted.as_table().as_bytes(), [&b"\x00V"[..], b"\x01at\x01", b"\x02\xFF\xFEV"].concat());
    }

    fn nested(levels: usize) -> Vec<u8> {
        let mut bytes = Vec::new();
        for _ in 1..levels {
            let length = u32::try_from(bytes.len()).unwrap();
            let mut outer = vec![1, b'k', b'F'];
            outer.extend_from_slice(&length.to_be_bytes());
            outer.extend_from_slice(&bytes);
            bytes = outer;
        }
        bytes
    }

    /// So nobody who walks through a value later comes upon anything that is not one.
    #[test]
    fn what_stands_in_arrays_and_tables_is_checked() {
        for letter in [b'A', b'F'] {
            let name: &[u8] = if letter == b'F' { &[0] } else { &[] };
            for (value, refused) in [(&[b'Z'][..], TableError::UnknownType(b'Z')), (b"I\0", TableError::Truncated)]
            {
                let length = u8::try_from(name.len() + value.len()).unwrap();
                let bytes = [&[0, letter, 0, 0, 0, length], name, value].concat();
                assert_eq!(Table::check(&bytes), Err(refused));
            }
        }
    }

    #[test]
    fn tables_nest_to_a_depth_of_64_and_no_further() {
        assert!(Table::check(&nested(64)).is_ok());
        assert_eq!(Table::check(&nested(65)), Err(TableError::TooDeep));
        assert_eq!(Table::check(&nested(3000)), Err(TableError::TooDeep));
    }

    #[test]
    fn a_table_that_lies_about_its_lengths_is_refused() {
        let table = FieldTable::build(|t| {
            t.field("name", Value::LongStr(b"value")).field("n", Value::I64(7));
        });
        let bytes = table.as_table().as_bytes();
        let whole_fields = [0, 15, bytes.len()];
        for cut in 0..=bytes.len() {
            assert_eq!(Table::check(&bytes[..cut]).is_ok(), whole_fields.contains(&cut), "cut at {cut}");
        }
        assert_eq!(Table::check(&[0, b'Z']), Err(TableError::UnknownType(b'Z')));
        assert_eq!(Table::check(&[0, b'S', 255, 255, 255, 255]), Err(TableError::Truncated));
    }
}
