//! How messages are printed: as text, or as lines of JSON.

use std::io::{self, Write};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use clap::ValueEnum;
use leveret_client::{BasicProperties, Delivery, Table, Value};
use serde::Serialize;
use serde_json::{Map, Value as Json};

/// How messages are printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum Format {
    /// The body and a line break.
    Text,
    /// One JSON object on one line.
    Json,
}

/// The fields of a line in the order in which they are printed.
#[derive(Serialize)]
struct Line<'a> {
    exchange: &'a str,
    routing_key: &'a str,
    redelivered: bool,
    properties: Json,
    #[serde(skip_serializing_if = "Option::is_none")]
    body: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    body_base64: Option<String>,
}

/// Prints a message and flushes, so that whoever reads a pipe has it at once.
pub(super) fn write_delivery(out: &mut impl Write, format: Format, delivery: &Delivery) -> io::Result<()> {
    let body = delivery.message.body.as_slice();
    match format {
        Format::Text => {
            out.write_all(body)?;
            out.write_all(b"\n")?;
        }
        Format::Json => {
            let properties = json_of_properties(&delivery.message.properties());
            write_json(out, delivery, properties, body)?;
        }
    }
    out.flush()
}

/// Whether whoever read our output has gone: a pipe without a reader. Nobody knows before a write, except by asking.
#[cfg(unix)]
pub(super) fn is_output_closed() -> bool {
    use rustix::event::{PollFd, PollFlags, Timespec, poll};
    let stdout = rustix::stdio::stdout();
    let mut asked = [PollFd::new(&stdout, PollFlags::empty())];
    poll(&mut asked, Some(&Timespec::default())).is_ok() && asked[0].revents().contains(PollFlags::ERR)
}

/// Elsewhere the next write tells.
#[cfg(not(unix))]
pub(super) fn is_output_closed() -> bool {
    false
}

fn write_json(out: &mut impl Write, delivery: &Delivery, properties: Json, body: &[u8]) -> io::Result<()> {
    let text = std::str::from_utf8(body).ok();
    let line = Line {
        exchange: delivery.exchange.as_str(),
        routing_key: delivery.routing_key.as_str(),
        redelivered: delivery.redelivered,
        properties,
        body: text,
        body_base64: text.is_none().then(|| STANDARD.encode(body)),
    };
    serde_json::to_writer(&mut *out, &line)?;
    out.write_all(b"\n")
}

/// The properties that are present, by the names of RabbitMQ's HTTP API.
fn json_of_properties(properties: &BasicProperties<'_>) -> Json {
    let BasicProperties {
        content_type,
        content_encoding,
        headers,
        delivery_mode,
        priority,
        correlation_id,
        reply_to,
        expiration,
        message_id,
        timestamp,
        type_,
        user_id,
        app_id,
        cluster_id,
    } = *properties;
    let fields = [
        ("content_type", content_type.map(json_of_bytes)),
        ("content_encoding", content_encoding.map(json_of_bytes)),
        ("headers", headers.map(json_of_table)),
        ("delivery_mode", delivery_mode.map(Json::from)),
        ("priority", priority.map(Json::from)),
        ("correlation_id", correlation_id.map(json_of_bytes)),
        ("reply_to", reply_to.map(json_of_bytes)),
        ("expiration", expiration.map(json_of_bytes)),
        ("message_id", message_id.map(json_of_bytes)),
        ("timestamp", timestamp.map(Json::from)),
        ("type", type_.map(json_of_bytes)),
        ("user_id", user_id.map(json_of_bytes)),
        ("app_id", app_id.map(json_of_bytes)),
        ("cluster_id", cluster_id.map(json_of_bytes)),
    ];
    let present = fields.into_iter().filter_map(|(name, value)| Some((name.to_owned(), value?)));
    Json::Object(present.collect())
}

/// Text, or an object that holds the Base64 of what is no text.
fn json_of_bytes(bytes: &[u8]) -> Json {
    match std::str::from_utf8(bytes) {
        Ok(text) => Json::from(text),
        Err(_) => Json::Object(Map::from_iter([("base64".to_owned(), Json::from(STANDARD.encode(bytes)))])),
    }
}

fn json_of_table(table: Table<'_>) -> Json {
    let mut object = Map::new();
    for (name, value) in table {
        // Of a repeated name the first counts.
        object.entry(String::from_utf8_lossy(name)).or_insert_with(|| json_of_value(value));
    }
    Json::Object(object)
}

/// Recursion is bounded: the codec has refused tables nested deeper than 64 levels.
fn json_of_value(value: Value<'_>) -> Json {
    match value {
        Value::Bool(flag) => Json::from(flag),
        Value::I8(n) => Json::from(n),
        Value::U8(n) => Json::from(n),
        Value::I16(n) => Json::from(n),
        Value::U16(n) => Json::from(n),
        Value::I32(n) => Json::from(n),
        Value::U32(n) => Json::from(n),
        Value::I64(n) => Json::from(n),
        Value::F32(n) => Json::from(n),
        Value::F64(n) => Json::from(n),
        Value::Decimal(scale, digits) => Json::from(f64::from(digits) / 10f64.powi(scale.into())),
        Value::LongStr(bytes) | Value::Bytes(bytes) => json_of_bytes(bytes),
        Value::Array(values) => values.iter().map(json_of_value).collect(),
        Value::Timestamp(seconds) => Json::from(seconds),
        Value::Table(table) => json_of_table(table),
        Value::Void => Json::Null,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use leveret_client::{FieldTable, Message, ShortString};

    fn printed(format: Format, body: &[u8]) -> Vec<u8> {
        let properties = BasicProperties { content_type: Some(b"text/plain"), ..BasicProperties::default() };
        let delivery = Delivery {
            consumer_tag: ShortString::default(),
            delivery_tag: 1,
            redelivered: true,
            exchange: ShortString::new("e").unwrap(),
            routing_key: ShortString::new("k").unwrap(),
            message: Message::new(&properties, body.to_vec()),
        };
        let mut out = Vec::new();
        write_delivery(&mut out, format, &delivery).unwrap();
        out
    }

    #[test]
    fn text_is_the_body_and_a_line_break() {
        assert_eq!(printed(Format::Text, b"a\xFFb"), b"a\xFFb\n");
        assert_eq!(printed(Format::Text, b""), b"\n");
    }

    #[test]
    fn json_is_one_line_with_a_body_or_its_base64() {
        let start =
            r#"{"exchange":"e","routing_key":"k","redelivered":true,"properties":{"content_type":"text/plain"},"#;
        let text = String::from_utf8(printed(Format::Json, b"say \"hi\"\n")).unwrap();
        assert_eq!(text, format!("{start}{}\n", r#""body":"say \"hi\"\n"}"#));
        let binary = String::from_utf8(printed(Format::Json, &[0xFF, 0])).unwrap();
        assert_eq!(binary, format!("{start}{}\n", r#""body_base64":"/wA="}"#));
    }

    #[test]
    fn properties_are_named_as_in_the_http_api_and_absent_ones_are_left_out() {
        let headers = FieldTable::build(|table| {
            table
                .field("text", Value::LongStr(b"x"))
                .field("bytes", Value::Bytes(&[0xFF]))
                .field("number", Value::I64(-5))
                .field("flag", Value::Bool(true))
                .field("nothing", Value::Void)
                .field("when", Value::Timestamp(7))
                .field("decimal", Value::Decimal(2, 275))
                .field("not-a-number", Value::F64(f64::NAN))
                .field("number", Value::I64(6))
                .array("list", [Value::U8(1), Value::LongStr(b"a")])
                .table("inner", |inner| {
                    inner.field("k", Value::F64(0.5));
                });
        });
        let properties = BasicProperties {
            content_type: Some(b"text/plain"),
            headers: Some(headers.as_table()),
            delivery_mode: Some(2),
            type_: Some(b"t"),
            ..BasicProperties::default()
        };
        let expected = serde_json::json!({
            "content_type": "text/plain",
            "headers": {
                "text": "x", "bytes": { "base64": "/w==" }, "number": -5, "flag": true, "nothing": null, "when": 7,
                "decimal": 2.75, "not-a-number": null, "list": [1, "a"], "inner": { "k": 0.5 },
            },
            "delivery_mode": 2,
            "type": "t",
        });
        assert_eq!(json_of_properties(&properties), expected);
        assert_eq!(json_of_properties(&BasicProperties::default()), serde_json::json!({}));
    }
}
