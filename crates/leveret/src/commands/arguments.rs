//! `k=v` on the command line: typed arguments and headers, and the properties of a message.

use leveret_client::{BasicProperties, FieldTable, Value};

/// Longest name and text property, in bytes. AMQP 0-9-1 §4.2.5.3.
pub(crate) const SHORT_BYTES_MAX: usize = 255;

/// One `k=v`, split at the first equals sign.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Pair {
    name: String,
    value: String,
}

/// Splits `k=v`, for clap.
pub(crate) fn parse_pair(text: &str) -> Result<Pair, String> {
    let (name, value) = text.split_once('=').ok_or("write it as name=value")?;
    if name.is_empty() {
        return Err("the name before the equals sign is missing".to_owned());
    }
    if name.len() > SHORT_BYTES_MAX {
        return Err(format!("a name has at most {SHORT_BYTES_MAX} bytes"));
    }
    Ok(Pair { name: name.to_owned(), value: value.to_owned() })
}

/// An integer becomes a number, `true` and `false` become booleans, anything else is text.
fn typed(text: &str) -> Value<'_> {
    match text {
        "true" => Value::Bool(true),
        "false" => Value::Bool(false),
        _ => match text.parse::<i64>() {
            Ok(number) => i32::try_from(number).map_or(Value::I64(number), Value::I32),
            Err(_) => Value::LongStr(text.as_bytes()),
        },
    }
}

impl Pair {
    /// As a field of a JSON object.
    pub(crate) fn into_json(self) -> (String, serde_json::Value) {
        let value = match typed(&self.value) {
            Value::Bool(flag) => flag.into(),
            Value::I32(number) => number.into(),
            Value::I64(number) => number.into(),
            _ => self.value.into(),
        };
        (self.name, value)
    }
}

/// The table of all pairs, in their order.
pub(super) fn table(pairs: &[Pair]) -> FieldTable {
    FieldTable::build(|table| {
        for pair in pairs {
            table.field(&pair.name, typed(&pair.value));
        }
    })
}

/// One `--property`, checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Property {
    ContentType(String),
    ContentEncoding(String),
    DeliveryMode(u8),
    Priority(u8),
    CorrelationId(String),
    ReplyTo(String),
    Expiration(String),
    MessageId(String),
    Timestamp(u64),
    Type(String),
    UserId(String),
    AppId(String),
}

/// Parses `k=v` with RabbitMQ's property names, hyphens or underscores, for clap.
pub(super) fn parse_property(text: &str) -> Result<Property, String> {
    let Pair { name, value } = parse_pair(text)?;
    let name = name.replace('_', "-");
    let short = |value: String| {
        if value.len() > SHORT_BYTES_MAX {
            Err(format!("{name} has at most {SHORT_BYTES_MAX} bytes"))
        } else {
            Ok(value)
        }
    };
    Ok(match name.as_str() {
        "content-type" => Property::ContentType(short(value)?),
        "content-encoding" => Property::ContentEncoding(short(value)?),
        "delivery-mode" => match value.as_str() {
            "1" => Property::DeliveryMode(1),
            "2" => Property::DeliveryMode(2),
            _ => return Err("delivery-mode is 1 (transient) or 2 (persistent)".to_owned()),
        },
        "priority" => Property::Priority(value.parse().map_err(|_| "priority is a number from 0 to 255")?),
        "correlation-id" => Property::CorrelationId(short(value)?),
        "reply-to" => Property::ReplyTo(short(value)?),
        "expiration" => match value.parse::<u64>() {
            Ok(_) => Property::Expiration(value),
            Err(_) => return Err("expiration is a number of milliseconds".to_owned()),
        },
        "message-id" => Property::MessageId(short(value)?),
        "timestamp" => {
            Property::Timestamp(value.parse().map_err(|_| "timestamp is a number of seconds since 1970")?)
        }
        "type" => Property::Type(short(value)?),
        "user-id" => Property::UserId(short(value)?),
        "app-id" => Property::AppId(short(value)?),
        _ => {
            return Err(format!(
                "there is no property '{name}'; there are content-type, content-encoding, delivery-mode, priority, \
                 correlation-id, reply-to, expiration, message-id, timestamp, type, user-id and app-id \
                 (and --header for headers)"
            ));
        }
    })
}

impl Property {
    /// Puts it into the properties; the last of a name counts.
    pub(super) fn set<'p>(&'p self, properties: &mut BasicProperties<'p>) {
        match self {
            Property::ContentType(text) => properties.content_type = Some(text.as_bytes()),
            Property::ContentEncoding(text) => properties.content_encoding = Some(text.as_bytes()),
            Property::DeliveryMode(mode) => properties.delivery_mode = Some(*mode),
            Property::Priority(priority) => properties.priority = Some(*priority),
            Property::CorrelationId(text) => properties.correlation_id = Some(text.as_bytes()),
            Property::ReplyTo(text) => properties.reply_to = Some(text.as_bytes()),
            Property::Expiration(text) => properties.expiration = Some(text.as_bytes()),
            Property::MessageId(text) => properties.message_id = Some(text.as_bytes()),
            Property::Timestamp(seconds) => properties.timestamp = Some(*seconds),
            Property::Type(text) => properties.type_ = Some(text.as_bytes()),
            Property::UserId(text) => properties.user_id = Some(text.as_bytes()),
            Property::AppId(text) => properties.app_id = Some(text.as_bytes()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn integers_and_booleans_get_their_type_and_anything_else_is_text() {
        let cases = [
            ("10", Value::I32(10)),
            ("-1", Value::I32(-1)),
            ("2147483648", Value::I64(2_147_483_648)),
            ("true", Value::Bool(true)),
            ("false", Value::Bool(false)),
            ("True", Value::LongStr(b"True")),
            ("1.5", Value::LongStr(b"1.5")),
            ("9223372036854775808", Value::LongStr(b"9223372036854775808")),
            ("", Value::LongStr(b"")),
            ("quorum", Value::LongStr(b"quorum")),
        ];
        for (text, value) in cases {
            assert_eq!(typed(text), value, "{text}");
        }
    }

    #[test]
    fn a_pair_is_split_at_its_first_equals_sign() {
        let pair = parse_pair("filter=a=b").unwrap();
        assert_eq!((&*pair.name, &*pair.value), ("filter", "a=b"));
        assert_eq!(table(&[pair]).as_table().get("filter"), Some(Value::LongStr(b"a=b")));
        assert!(parse_pair("novalue").is_err());
        assert!(parse_pair("=v").is_err());
        assert!(parse_pair(&format!("{}=v", "k".repeat(256))).is_err());
    }

    #[test]
    fn every_property_is_taken_with_hyphens_and_underscores() {
        let texts = [
            "content-type=text/plain",
            "content_encoding=gzip",
            "delivery_mode=2",
            "priority=9",
            "correlation-id=c",
            "reply_to=r",
            "expiration=60000",
            "message-id=m",
            "timestamp=1",
            "type=t",
            "user_id=guest",
            "app-id=a",
        ];
        let parsed: Vec<_> = texts.iter().map(|text| parse_property(text).unwrap()).collect();
        let mut properties = BasicProperties::default();
        for property in &parsed {
            property.set(&mut properties);
        }
        let expected = BasicProperties {
            content_type: Some(b"text/plain"),
            content_encoding: Some(b"gzip"),
            headers: None,
            delivery_mode: Some(2),
            priority: Some(9),
            correlation_id: Some(b"c"),
            reply_to: Some(b"r"),
            expiration: Some(b"60000"),
            message_id: Some(b"m"),
            timestamp: Some(1),
            type_: Some(b"t"),
            user_id: Some(b"guest"),
            app_id: Some(b"a"),
            cluster_id: None,
        };
        assert_eq!(properties, expected);
    }

    #[test]
    fn a_property_that_cannot_be_is_refused() {
        let long = format!("app-id={}", "a".repeat(256));
        let texts =
            ["colour=red", "delivery-mode=3", "priority=256", "expiration=soon", "timestamp=now", "app-id", &long];
        for text in texts {
            assert!(parse_property(text).is_err(), "{text}");
        }
    }
}
