//! Methods and contents as text: what a line of a script says, as bytes, and bytes as a line.
//!
//! Encodes and decodes by the method table, not by the codec under test, which is so checked by every script.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use leveret_amqp::method::MethodSpec;
use leveret_amqp::table::{FieldTable, TableBuilder};
use leveret_amqp::wire::Kind;
use leveret_amqp::{BasicProperties, ContentHeader, Method, Table, Value};

/// A value in a script.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Text {
    Number(i64),
    Real(f64),
    Flag(bool),
    Bytes(Vec<u8>),
    Void,
    Table(Vec<(String, Text)>),
    Array(Vec<Text>),
    /// `u8:5`, `ts:1`, `x:'bytes'`, ...
    Typed(String, Box<Text>),
    /// `$name`
    Variable(String),
}

/// One argument of a line: with a name or without.
pub(crate) type Argument = (Option<String>, Text);

/// Splits a line into its arguments.
pub(crate) fn parse_arguments(line: &str) -> Result<Vec<Argument>, String> {
    let mut parser = Parser { rest: line.trim() };
    let mut arguments = Vec::new();
    while !parser.rest.is_empty() {
        arguments.push(parser.argument()?);
    }
    Ok(arguments)
}

struct Parser<'a> {
    rest: &'a str,
}

impl Parser<'_> {
    fn skip_space(&mut self) {
        self.rest = self.rest.trim_start();
    }

    fn word(&mut self) -> String {
        let end = self.rest.find(|c: char| !(c.is_alphanumeric() || "-_.+*#$".contains(c)));
        let (word, rest) = self.rest.split_at(end.unwrap_or(self.rest.len()));
        self.rest = rest;
        word.to_owned()
    }

    fn argument(&mut self) -> Result<Argument, String> {
        let is_word = self.rest.starts_with(|c: char| c.is_alphabetic());
        let argument = if is_word {
            let before = self.rest;
            let word = self.word();
            if let Some(rest) = self.rest.strip_prefix('=') {
                self.rest = rest;
                (Some(word), self.value()?)
            } else if self.rest.starts_with(':') {
                self.rest = before;
                (None, self.value()?)
            } else {
                (Some(word), Text::Flag(true))
            }
        } else {
            (None, self.value()?)
        };
        self.skip_space();
        Ok(argument)
    }

    fn value(&mut self) -> Result<Text, String> {
        // Double quotes where the text has single ones in it, as reply texts do.
        let quote = self.rest.chars().next().filter(|first| matches!(first, '\'' | '"'));
        if let Some(quote) = quote {
            let rest = &self.rest[1..];
            let end = rest.find(quote).ok_or("a quote is not closed")?;
            let text = unescape_octets(&rest[..end]).replace("\\n", "\n").replace("\\r", "\r").replace("\\0", "\0");
            self.rest = &rest[end + 1..];
            return Ok(Text::Bytes(text.into_bytes()));
        }
        if let Some(rest) = self.rest.strip_prefix('{') {
            self.rest = rest;
            let mut fields = Vec::new();
            loop {
                self.skip_space();
                if let Some(rest) = self.rest.strip_prefix('}') {
                    self.rest = rest;
                    return Ok(Text::Table(fields));
                }
                let name = self.word();
                self.rest = self.rest.strip_prefix('=').ok_or(format!("no '=' after '{name}'"))?;
                fields.push((name, self.value()?));
            }
        }
        if let Some(rest) = self.rest.strip_prefix('[') {
            self.rest = rest;
            let mut values = Vec::new();
            loop {
                self.skip_space();
                if let Some(rest) = self.rest.strip_prefix(']') {
                    self.rest = rest;
                    return Ok(Text::Array(values));
                }
                values.push(self.value()?);
            }
        }
        let word = self.word();
        if let Some(rest) = self.rest.strip_prefix(':') {
            self.rest = rest;
            return Ok(Text::Typed(word, Box::new(self.value()?)));
        }
        if let Some((count, unit)) = word.split_once('*') {
            // 1000*a is a thousand times the letter a.
            let count: usize = count.parse().map_err(|_| format!("'{word}' is no repetition"))?;
            return Ok(Text::Bytes(unit.repeat(count).into_bytes()));
        }
        match word.as_str() {
            "" => Err(format!("expected a value at '{}'", self.rest)),
            "true" => Ok(Text::Flag(true)),
            "false" => Ok(Text::Flag(false)),
            "void" => Ok(Text::Void),
            _ if word.starts_with('$') => Ok(Text::Variable(word)),
            _ => match word.parse() {
                Ok(number) => Ok(Text::Number(number)),
                Err(_) => word.parse().map(Text::Real).map_err(|_| format!("'{word}' is no value; quote it?")),
            },
        }
    }
}

/// `\x05` is the octet 5; only the first 128 can be written so.
fn unescape_octets(text: &str) -> String {
    let mut parts = text.split("\\x");
    let mut out = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        let octet = part.get(..2).and_then(|digits| u8::from_str_radix(digits, 16).ok()).filter(u8::is_ascii);
        if let Some(octet) = octet {
            out.push(char::from(octet));
            out.push_str(&part[2..]);
        } else {
            out.push_str("\\x");
            out.push_str(part);
        }
    }
    out
}

/// The method of that name.
pub(crate) fn method_spec(name: &str) -> Option<&'static MethodSpec> {
    Method::ALL.iter().find(|spec| spec.name == name)
}

/// Whether a content follows.
pub(crate) fn has_content(spec: &MethodSpec) -> bool {
    matches!(spec.name, "basic.publish" | "basic.return" | "basic.deliver" | "basic.get-ok")
}

/// The name of an argument as scripts write it.
pub(crate) fn script_name(name: &str) -> String {
    name.trim_end_matches('_').replace('_', "-")
}

/// The payload of a method frame.
pub(crate) fn encode_method(spec: &MethodSpec, given: &BTreeMap<String, Text>) -> Result<Vec<u8>, String> {
    let mut out = [spec.class.to_be_bytes(), spec.method.to_be_bytes()].concat();
    let mut bits = 0;
    for argument in spec.arguments {
        let value = given.get(&script_name(argument.name));
        if argument.kind == Kind::Bit {
            if bits % 8 == 0 {
                out.push(0);
            }
            let is_set = value == Some(&Text::Flag(true));
            *out.last_mut().ok_or("no octet for a flag")? |= u8::from(is_set) << (bits % 8);
            bits += 1;
            continue;
        }
        bits = 0;
        let number = match value {
            Some(Text::Number(number)) => number.cast_unsigned(),
            _ => 0,
        };
        let bytes = match value {
            Some(Text::Bytes(bytes)) => &bytes[..],
            _ => b"",
        };
        match argument.kind {
            Kind::Bit => {}
            Kind::Octet => out.extend(&number.to_be_bytes()[7..]),
            Kind::Short => out.extend(&number.to_be_bytes()[6..]),
            Kind::Long => out.extend(&number.to_be_bytes()[4..]),
            Kind::LongLong => out.extend(&number.to_be_bytes()),
            Kind::ShortStr => {
                out.push(u8::try_from(bytes.len()).map_err(|_| "a short string of more than 255 bytes")?);
                out.extend(bytes);
            }
            Kind::LongStr => put_long(&mut out, bytes),
            Kind::Table => put_long(&mut out, build_table(value)?.as_table().as_bytes()),
        }
    }
    Ok(out)
}

fn put_long(out: &mut Vec<u8>, bytes: &[u8]) {
    out.extend(u32::try_from(bytes.len()).unwrap_or(u32::MAX).to_be_bytes());
    out.extend(bytes);
}

/// The arguments in a payload, by name, in their order.
pub(crate) fn decode_method(payload: &[u8]) -> Option<(&'static MethodSpec, Vec<(String, Text)>)> {
    let (ids, mut rest) = payload.split_at_checked(4)?;
    let (class, method) = (u16::from_be_bytes([ids[0], ids[1]]), u16::from_be_bytes([ids[2], ids[3]]));
    let spec = Method::ALL.iter().find(|spec| (spec.class, spec.method) == (class, method))?;
    let mut take = |count: usize| {
        let (head, tail) = rest.split_at_checked(count)?;
        rest = tail;
        Some(head)
    };
    let number = |bytes: &[u8]| bytes.iter().fold(0i64, |number, &byte| number << 8 | i64::from(byte));
    let mut decoded = Vec::new();
    let (mut bits, mut octet) = (0, 0);
    for argument in spec.arguments {
        let kind = argument.kind;
        if kind != Kind::Bit {
            bits = 0;
        }
        let value = match kind {
            Kind::Bit => {
                if bits % 8 == 0 {
                    octet = take(1)?[0];
                }
                bits += 1;
                Text::Flag(octet >> ((bits - 1) % 8) & 1 == 1)
            }
            Kind::Octet => Text::Number(number(take(1)?)),
            Kind::Short => Text::Number(number(take(2)?)),
            Kind::Long => Text::Number(number(take(4)?)),
            Kind::LongLong => Text::Number(number(take(8)?)),
            Kind::ShortStr => {
                let length = take(1)?[0];
                Text::Bytes(take(length.into())?.to_vec())
            }
            Kind::LongStr | Kind::Table => {
                let length = usize::try_from(number(take(4)?)).ok()?;
                let bytes = take(length)?;
                if kind == Kind::Table {
                    table_text(Table::check(bytes).ok()?)
                } else {
                    Text::Bytes(bytes.to_vec())
                }
            }
        };
        decoded.push((script_name(argument.name), value));
    }
    rest.is_empty().then_some((spec, decoded))
}

/// Builds a table out of its text.
pub(crate) fn build_table(text: Option<&Text>) -> Result<FieldTable, String> {
    match text {
        None => Ok(FieldTable::default()),
        Some(Text::Table(fields)) => {
            let mut failure = None;
            let table = FieldTable::build(|table| {
                for (name, value) in fields {
                    if let Err(error) = put_field(table, name, value) {
                        failure = Some(error);
                    }
                }
            });
            failure.map_or(Ok(table), Err)
        }
        Some(other) => Err(format!("expected a table, not {other:?}")),
    }
}

fn put_field(table: &mut TableBuilder, name: &str, text: &Text) -> Result<(), String> {
    match text {
        Text::Table(_) => {
            let inner = build_table(Some(text))?;
            table.field(name, Value::Table(inner.as_table()));
        }
        Text::Array(values) => {
            let tables: Result<Vec<_>, _> = values.iter().map(table_in_array).collect();
            let tables = tables?;
            let values = values.iter().zip(&tables).map(|(value, table)| match table {
                Some(table) => Ok(Value::Table(table.as_table())),
                None => scalar(value),
            });
            table.array(name, values.collect::<Result<Vec<_>, _>>()?);
        }
        other => {
            table.field(name, scalar(other)?);
        }
    }
    Ok(())
}

fn table_in_array(text: &Text) -> Result<Option<FieldTable>, String> {
    if matches!(text, Text::Table(_)) { build_table(Some(text)).map(Some) } else { Ok(None) }
}

fn scalar(text: &Text) -> Result<Value<'_>, String> {
    Ok(match text {
        Text::Number(number) => i32::try_from(*number).map_or(Value::I64(*number), Value::I32),
        Text::Real(real) => Value::F64(*real),
        Text::Flag(flag) => Value::Bool(*flag),
        Text::Bytes(bytes) => Value::LongStr(bytes),
        Text::Void => Value::Void,
        Text::Typed(kind, inner) => match (kind.as_str(), &**inner) {
            ("i8", Text::Number(n)) => Value::I8(i8::try_from(*n).map_err(|e| e.to_string())?),
            ("u8", Text::Number(n)) => Value::U8(u8::try_from(*n).map_err(|e| e.to_string())?),
            ("i16", Text::Number(n)) => Value::I16(i16::try_from(*n).map_err(|e| e.to_string())?),
            ("u16", Text::Number(n)) => Value::U16(u16::try_from(*n).map_err(|e| e.to_string())?),
            ("i64", Text::Number(n)) => Value::I64(*n),
            ("u32", Text::Number(n)) => Value::U32(u32::try_from(*n).map_err(|e| e.to_string())?),
            ("ts", Text::Number(n)) => Value::Timestamp(n.cast_unsigned()),
            ("x", Text::Bytes(bytes)) => Value::Bytes(bytes),
            (kind, inner) => return Err(format!("unknown type {kind}:{inner:?}")),
        },
        Text::Table(_) | Text::Array(_) | Text::Variable(_) => return Err(format!("{text:?} cannot stand here")),
    })
}

/// A table as scripts write it.
pub(crate) fn table_text(table: Table<'_>) -> Text {
    Text::Table(
        table.iter().map(|(name, value)| (String::from_utf8_lossy(name).into_owned(), value_text(value))).collect(),
    )
}

fn value_text(value: Value<'_>) -> Text {
    let typed = |kind: &str, inner| Text::Typed(kind.to_owned(), Box::new(inner));
    match value {
        Value::Bool(flag) => Text::Flag(flag),
        Value::I8(n) => typed("i8", Text::Number(n.into())),
        Value::U8(n) => typed("u8", Text::Number(n.into())),
        Value::I16(n) => typed("i16", Text::Number(n.into())),
        Value::U16(n) => typed("u16", Text::Number(n.into())),
        Value::U32(n) => typed("u32", Text::Number(n.into())),
        Value::I32(n) => Text::Number(n.into()),
        Value::I64(n) => {
            if i32::try_from(n).is_ok() {
                typed("i64", Text::Number(n))
            } else {
                Text::Number(n)
            }
        }
        Value::F32(real) => typed("f32", Text::Real(real.into())),
        Value::F64(real) => Text::Real(real),
        Value::Decimal(scale, digits) => {
            typed("decimal", Text::Array(vec![Text::Number(scale.into()), Text::Number(digits.into())]))
        }
        Value::LongStr(bytes) => Text::Bytes(bytes.to_vec()),
        Value::Array(array) => Text::Array(array.iter().map(value_text).collect()),
        Value::Timestamp(n) => typed("ts", Text::Number(n.cast_signed())),
        Value::Table(table) => table_text(table),
        Value::Void => Text::Void,
        Value::Bytes(bytes) => typed("x", Text::Bytes(bytes.to_vec())),
    }
}

/// The payload of a header frame for a body of that size, its properties taken from the arguments.
pub(crate) fn encode_header(given: &BTreeMap<String, Text>, body_bytes: u64) -> Result<Vec<u8>, String> {
    let bytes = |name: &str| match given.get(name) {
        Some(Text::Bytes(bytes)) => Some(&bytes[..]),
        _ => None,
    };
    let octet = |name: &str| match given.get(name) {
        Some(Text::Number(number)) => u8::try_from(*number).ok(),
        _ => None,
    };
    let headers = given.get("headers").map(|headers| build_table(Some(headers))).transpose()?;
    let properties = BasicProperties {
        content_type: bytes("content-type"),
        content_encoding: bytes("content-encoding"),
        headers: headers.as_ref().map(FieldTable::as_table),
        delivery_mode: octet("delivery-mode"),
        priority: octet("priority"),
        correlation_id: bytes("correlation-id"),
        reply_to: bytes("reply-to"),
        expiration: bytes("expiration"),
        message_id: bytes("message-id"),
        timestamp: match given.get("timestamp") {
            Some(Text::Number(number)) => Some(number.cast_unsigned()),
            _ => None,
        },
        type_: bytes("type"),
        user_id: bytes("user-id"),
        app_id: bytes("app-id"),
        cluster_id: bytes("cluster-id"),
    };
    let mut out = Vec::new();
    ContentHeader { body_bytes, properties }.encode(&mut out);
    Ok(out)
}

/// The properties in a header, by name.
pub(crate) fn property_texts(properties: &BasicProperties<'_>) -> Vec<(String, Text)> {
    let bytes = |value: Option<&[u8]>| value.map(|value| Text::Bytes(value.to_vec()));
    let number = |value: Option<u8>| value.map(|value| Text::Number(value.into()));
    let all = [
        ("content-type", bytes(properties.content_type)),
        ("content-encoding", bytes(properties.content_encoding)),
        ("headers", properties.headers.map(table_text)),
        ("delivery-mode", number(properties.delivery_mode)),
        ("priority", number(properties.priority)),
        ("correlation-id", bytes(properties.correlation_id)),
        ("reply-to", bytes(properties.reply_to)),
        ("expiration", bytes(properties.expiration)),
        ("message-id", bytes(properties.message_id)),
        ("timestamp", properties.timestamp.map(|value| Text::Number(value.cast_signed()))),
        ("type", bytes(properties.type_)),
        ("user-id", bytes(properties.user_id)),
        ("app-id", bytes(properties.app_id)),
        ("cluster-id", bytes(properties.cluster_id)),
    ];
    all.into_iter().filter_map(|(name, value)| Some((name.to_owned(), value?))).collect()
}

/// A value as scripts write it.
pub(crate) fn show(text: &Text) -> String {
    match text {
        Text::Number(number) => number.to_string(),
        Text::Real(real) => real.to_string(),
        Text::Flag(flag) => flag.to_string(),
        Text::Bytes(bytes) if bytes.len() > 200 => format!("({} bytes)", bytes.len()),
        Text::Bytes(bytes) => format!("'{}'", String::from_utf8_lossy(bytes).escape_debug()),
        Text::Void => "void".into(),
        Text::Table(fields) => {
            let mut out = String::from("{");
            for (name, value) in fields {
                let _ = write!(out, "{name}={} ", show(value));
            }
            out.trim_end().to_owned() + "}"
        }
        Text::Array(values) => format!("[{}]", values.iter().map(show).collect::<Vec<_>>().join(" ")),
        Text::Typed(kind, inner) => format!("{kind}:{}", show(inner)),
        Text::Variable(name) => name.clone(),
    }
}
