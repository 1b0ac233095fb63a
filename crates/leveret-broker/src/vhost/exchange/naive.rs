//! What matches, without any index: for tests, which have the indexes say the same.

use std::collections::BTreeMap;

use leveret_amqp::{Table, Value};

/// Whether a binding key of a topic exchange matches a routing key.
pub fn topic_matches(binding_key: &str, routing_key: &str) -> bool {
    fn words(key: &str) -> Vec<&str> {
        if key.is_empty() { Vec::new() } else { key.split('.').collect() }
    }
    let routing = words(routing_key);
    // Behind how many words of the routing key the binding key may be so far.
    let mut behind = vec![false; routing.len() + 1];
    behind[0] = true;
    for word in words(binding_key) {
        if word == "#" {
            let first = behind.iter().position(|&may| may).unwrap_or(behind.len());
            behind[first..].fill(true);
            continue;
        }
        for at in (0..routing.len()).rev() {
            behind[at + 1] = behind[at] && (word == "*" || word == routing[at]);
        }
        behind[0] = false;
    }
    behind[routing.len()]
}

/// Whether the arguments of a binding of a headers exchange match the headers of a message.
pub fn headers_match(arguments: Table<'_>, headers: Table<'_>) -> bool {
    let headers = headers.iter().map(|(name, value)| match value {
        Value::Timestamp(seconds) => (name, Term::Integer(i128::from(seconds) * 1000)),
        value => (name, term(value)),
    });
    let headers: BTreeMap<&[u8], Term> = headers.collect();
    let x_match = arguments.get("x-match").and_then(Value::as_str).unwrap_or("all");
    let with_x = x_match.ends_with("-with-x");
    let takes = |name: &[u8]| if with_x { name != b"x-match" } else { !name.starts_with(b"x-") };
    let mut fitting = arguments.iter().filter(|(name, _)| takes(name)).map(|(name, value)| match value {
        Value::Void => headers.contains_key(name),
        value => headers.get(name) == Some(&term(value)),
    });
    if x_match.starts_with("all") { fitting.all(|fits| fits) } else { fitting.any(|fits| fits) }
}

/// Values as the Erlang terms that RabbitMQ compares.
#[derive(Debug, PartialEq)]
enum Term {
    Atom(&'static str),
    Integer(i128),
    Float([u8; 8]),
    Binary(Vec<u8>),
    Tuple(Vec<Term>),
    List(Vec<Term>),
}

fn term(value: Value<'_>) -> Term {
    match value {
        Value::Bool(flag) => Term::Atom(if flag { "true" } else { "false" }),
        Value::Void => Term::Atom("undefined"),
        Value::Timestamp(seconds) => Term::Integer(seconds.into()),
        Value::F32(n) => Term::Float(f64::from(n).to_be_bytes()),
        Value::F64(n) => Term::Float(n.to_be_bytes()),
        Value::Decimal(scale, digits) => {
            Term::Tuple(vec![Term::Integer(scale.into()), Term::Integer(digits.into())])
        }
        Value::LongStr(bytes) | Value::Bytes(bytes) => Term::Binary(bytes.to_vec()),
        Value::Array(array) => {
            Term::List(array.iter().map(|v| Term::Tuple(vec![Term::Atom(v.type_name()), term(v)])).collect())
        }
        Value::Table(table) => Term::List(
            table
                .iter()
                .map(|(n, v)| Term::Tuple(vec![Term::Binary(n.to_vec()), Term::Atom(v.type_name()), term(v)]))
                .collect(),
        ),
        Value::I8(_)
        | Value::U8(_)
        | Value::I16(_)
        | Value::U16(_)
        | Value::I32(_)
        | Value::U32(_)
        | Value::I64(_) => Term::Integer(value.as_integer().unwrap_or_default().into()),
    }
}
