//! JSON that is read with a path at hand, so that whatever is wrong is named, and whatever nobody has asked for is known.

use std::collections::BTreeSet;
use std::fmt;

use leveret_amqp::{FieldTable, ShortString, Value as Field};
use leveret_broker::Shortened;
use serde::de::{Deserialize, Deserializer, Error, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Value};

/// How deep tables may be nested, as on the wire.
const DEPTH_MAX: usize = leveret_amqp::limits::TABLE_DEPTH_MAX;

/// What is wrong, and where.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{path}: {fault}")]
pub struct Fault {
    /// For example `queues[3].arguments.x-max-length`.
    pub path: String,
    /// What is wrong there.
    pub fault: String,
}

impl Fault {
    pub(super) fn new(path: impl Into<String>, fault: impl fmt::Display) -> Self {
        let path = Some(path.into()).filter(|path| !path.is_empty()).unwrap_or_else(|| "the file".to_owned());
        Fault { path, fault: fault.to_string() }
    }
}

/// Reads a file.
pub(super) fn read(bytes: &[u8]) -> Result<Value, Fault> {
    // An editor may have marked it as UTF-8.
    let bytes = bytes.strip_prefix(b"\xEF\xBB\xBF").unwrap_or(bytes);
    if bytes.trim_ascii().is_empty() {
        return Err(Fault::new("the file", "it is empty"));
    }
    // No JSON has a zero in it, and in UTF-16 or UTF-32 every other byte of plain text is one.
    let is_marked = bytes.starts_with(b"\xFF\xFE") || bytes.starts_with(b"\xFE\xFF");
    if is_marked || bytes.iter().take(4).any(|&byte| byte == 0) {
        return Err(Fault::new("the file", "it is text in UTF-16 or UTF-32; save it as UTF-8"));
    }
    let Strict(value) = serde_json::from_slice(bytes).map_err(|error| {
        let said = error.to_string();
        // It says the place, too.
        let fault = said.rsplit_once(" at line ").map_or(&*said, |(fault, _)| fault);
        Fault::new(format!("line {}, column {}", error.line(), error.column()), fault)
    })?;
    Ok(value)
}

/// A value in which no object has a field twice: of two, one would be lost without a word.
struct Strict(Value);

impl<'de> Deserialize<'de> for Strict {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(StrictVisitor).map(Strict)
    }
}

struct StrictVisitor;

impl<'de> Visitor<'de> for StrictVisitor {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("any value")
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(Value::Bool(value))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_f64<E>(self, value: f64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_string<E>(self, value: String) -> Result<Value, E> {
        Ok(Value::String(value))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Value, A::Error> {
        let mut values = Vec::new();
        while let Some(Strict(value)) = items.next_element()? {
            values.push(value);
        }
        Ok(Value::Array(values))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut fields: A) -> Result<Value, A::Error> {
        let mut map = Map::new();
        while let Some(name) = fields.next_key::<String>()? {
            if map.contains_key(&name) {
                let name = Value::String(name).to_string();
                return Err(A::Error::custom(format_args!(
                    "{} is there twice in one object; make one of them",
                    Shortened(&name)
                )));
            }
            let Strict(value) = fields.next_value()?;
            map.insert(name, value);
        }
        Ok(Value::Object(map))
    }
}

/// An object, and which of its fields were asked for.
pub(super) struct Object<'v> {
    path: String,
    fields: &'v Map<String, Value>,
    asked: BTreeSet<&'v str>,
}

impl<'v> Object<'v> {
    pub(super) fn new(path: String, value: &'v Value) -> Result<Self, Fault> {
        match value {
            Value::Object(fields) => Ok(Object { path, fields, asked: BTreeSet::new() }),
            other => Err(is_not(&path, "an object", other)),
        }
    }

    pub(super) fn path(&self) -> &str {
        &self.path
    }

    /// The path of a field.
    pub(super) fn path_of(&self, name: &str) -> String {
        if self.path.is_empty() { name.to_owned() } else { format!("{}.{name}", self.path) }
    }

    /// A field that is there and not null.
    pub(super) fn get(&mut self, name: &str) -> Option<&'v Value> {
        let (name, value) = self.fields.get_key_value(name)?;
        self.asked.insert(name);
        (!value.is_null()).then_some(value)
    }

    pub(super) fn optional_text(&mut self, name: &str) -> Result<Option<&'v str>, Fault> {
        match self.get(name) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text)),
            Some(other) => Err(is_not(&self.path_of(name), "a text", other)),
        }
    }

    pub(super) fn text(&mut self, name: &str) -> Result<&'v str, Fault> {
        self.optional_text(name)?.ok_or_else(|| Fault::new(self.path_of(name), "it is missing"))
    }

    /// A name, which may be empty.
    pub(super) fn short(&mut self, name: &str) -> Result<ShortString, Fault> {
        let text = self.text(name)?;
        ShortString::new(text).map_err(|_| Fault::new(self.path_of(name), "a name has at most 255 bytes"))
    }

    pub(super) fn name(&mut self, name: &str) -> Result<ShortString, Fault> {
        let short = self.short(name)?;
        if short.as_str().is_empty() {
            return Err(Fault::new(self.path_of(name), "a name must not be empty"));
        }
        Ok(short)
    }

    pub(super) fn flag(&mut self, name: &str) -> Result<bool, Fault> {
        match self.get(name) {
            None => Ok(false),
            Some(Value::Bool(flag)) => Ok(*flag),
            Some(other) => Err(is_not(&self.path_of(name), "true or false", other)),
        }
    }

    pub(super) fn optional_integer(&mut self, name: &str) -> Result<Option<i64>, Fault> {
        match self.get(name) {
            None => Ok(None),
            Some(value) => {
                let number = value.as_i64().ok_or_else(|| is_not(&self.path_of(name), "a whole number", value))?;
                Ok(Some(number))
            }
        }
    }

    /// A limit: negative is none, as in RabbitMQ.
    pub(super) fn limit(&mut self, name: &str) -> Result<Option<u64>, Fault> {
        Ok(self.optional_integer(name)?.and_then(|limit| u64::try_from(limit).ok()))
    }

    /// Several texts: a list, or one text with commas.
    pub(super) fn texts(&mut self, name: &str) -> Result<Vec<String>, Fault> {
        match self.get(name) {
            None => Ok(Vec::new()),
            Some(Value::String(text)) => {
                let parts = text.split(',').map(str::trim).filter(|part| !part.is_empty());
                Ok(parts.map(str::to_owned).collect())
            }
            Some(Value::Array(values)) => {
                let text = |(nth, value): (usize, &Value)| match value {
                    Value::String(text) => Ok(text.clone()),
                    other => Err(is_not(&format!("{}[{nth}]", self.path_of(name)), "a text", other)),
                };
                values.iter().enumerate().map(text).collect()
            }
            Some(other) => Err(is_not(&self.path_of(name), "a list of texts", other)),
        }
    }

    /// An object that is there. RabbitMQ writes an empty one as an empty list, too.
    pub(super) fn object(&mut self, name: &str) -> Result<Option<Object<'v>>, Fault> {
        match self.get(name) {
            None => Ok(None),
            Some(Value::Array(values)) if values.is_empty() => Ok(None),
            Some(value) => Object::new(self.path_of(name), value).map(Some),
        }
    }

    pub(super) fn objects(&mut self, name: &str) -> Result<Vec<Object<'v>>, Fault> {
        match self.get(name) {
            None => Ok(Vec::new()),
            Some(Value::Array(values)) => {
                let path = self.path_of(name);
                let object = |(nth, value)| Object::new(format!("{path}[{nth}]"), value);
                values.iter().enumerate().map(object).collect()
            }
            Some(other) => Err(is_not(&self.path_of(name), "a list", other)),
        }
    }

    /// An object as a field table.
    pub(super) fn table(&mut self, name: &str) -> Result<FieldTable, Fault> {
        let path = self.path_of(name);
        match self.object(name)? {
            None => Ok(FieldTable::default()),
            Some(object) => table(&path, object.fields, 0),
        }
    }

    /// The fields that nobody has asked for.
    pub(super) fn rest(self) -> Vec<String> {
        self.rest_but(&[])
    }

    /// The same, but for some that mean nothing here.
    pub(super) fn rest_but(self, known: &[&str]) -> Vec<String> {
        let is_unknown = |name: &str| !self.asked.contains(name) && !known.contains(&name);
        let unknown = self.fields.iter().filter(|(name, value)| is_unknown(name) && !value.is_null());
        unknown
            .map(|(name, _)| format!("{}: nothing that Leveret knows", self.path_of(&Shortened(name).to_string())))
            .collect()
    }
}

fn is_not(path: &str, wanted: &str, value: &Value) -> Fault {
    Fault::new(path, format_args!("{} is not {wanted}", Shortened(&value.to_string())))
}

/// An object of JSON as a field table.
pub(crate) fn field_table(path: &str, value: &Value) -> Result<FieldTable, Fault> {
    match value {
        Value::Object(fields) => table(path, fields, 0),
        other => Err(is_not(path, "an object", other)),
    }
}

/// RabbitMQ: `rabbit_misc:to_amqp_table/1`.
fn table(path: &str, fields: &Map<String, Value>, depth: usize) -> Result<FieldTable, Fault> {
    if depth >= DEPTH_MAX {
        return Err(Fault::new(path, format_args!("tables are nested at most {DEPTH_MAX} deep")));
    }
    if fields.keys().any(|name| name.len() > leveret_amqp::limits::SHORT_STRING_BYTES_MAX) {
        return Err(Fault::new(path, "the name of a field has at most 255 bytes"));
    }
    let mut owned = Vec::with_capacity(fields.len());
    for (name, value) in fields {
        owned.push((name, field(&format!("{path}.{name}"), value, depth)?));
    }
    Ok(FieldTable::build(|builder| {
        for (name, value) in &owned {
            builder.field(name, value.borrow());
        }
    }))
}

/// A value of a field table.
enum Owned<'v> {
    Scalar(Field<'v>),
    Table(FieldTable),
    /// A table with the array in its one field.
    Array(FieldTable),
}

impl Owned<'_> {
    fn borrow(&self) -> Field<'_> {
        match self {
            Owned::Scalar(value) => *value,
            Owned::Table(table) => Field::Table(table.as_table()),
            Owned::Array(table) => table.as_table().get("").unwrap_or(Field::Void),
        }
    }
}

fn field<'v>(path: &str, value: &'v Value, depth: usize) -> Result<Owned<'v>, Fault> {
    Ok(Owned::Scalar(match value {
        Value::Null => Field::Void,
        Value::Bool(flag) => Field::Bool(*flag),
        Value::Number(number) => match (number.as_i64(), number.as_u64(), number.as_f64()) {
            (Some(integer), ..) => Field::I64(integer),
            // Only timestamps come so far. They are numbers in an export.
            (None, Some(seconds), _) => Field::Timestamp(seconds),
            (None, None, Some(float)) => Field::F64(float),
            _ => return Err(is_not(path, "a number of 64 bits", value)),
        },
        Value::String(text) => Field::LongStr(text.as_bytes()),
        Value::Object(fields) => return table(path, fields, depth + 1).map(Owned::Table),
        Value::Array(values) => {
            if depth >= DEPTH_MAX {
                return Err(Fault::new(path, format_args!("tables are nested at most {DEPTH_MAX} deep")));
            }
            let item = |(nth, value)| field(&format!("{path}[{nth}]"), value, depth + 1);
            let items = values.iter().enumerate().map(item).collect::<Result<Vec<_>, _>>()?;
            let array = FieldTable::build(|builder| {
                builder.array("", items.iter().map(Owned::borrow));
            });
            return Ok(Owned::Array(array));
        }
    }))
}
