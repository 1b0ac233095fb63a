//! Which elements of a list are shown, and in which order.
//!
//! A filter is a field, an operator and a value: `messages>100`, `name~orders`. A field may lie in another: `queue.name`.

use std::cmp::Ordering;

use serde_json::Value;

/// One comparison.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Filter {
    pub(super) field: String,
    operator: Operator,
    value: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Operator {
    Equal,
    NotEqual,
    Less,
    LessOrEqual,
    Greater,
    GreaterOrEqual,
    Contains,
}

/// The longer ones first.
const OPERATORS: &[(&str, Operator)] = &[
    ("!=", Operator::NotEqual),
    ("<=", Operator::LessOrEqual),
    (">=", Operator::GreaterOrEqual),
    ("=", Operator::Equal),
    ("<", Operator::Less),
    (">", Operator::Greater),
    ("~", Operator::Contains),
];

/// Parses one `--filter`, for clap.
pub(super) fn parse_filter(text: &str) -> Result<Filter, String> {
    let form = || "write it as FIELD=VALUE, or with != < <= > >= or ~ (contains) instead of =".to_owned();
    let end = text.find(|c: char| !(c.is_ascii_alphanumeric() || "_.-".contains(c))).ok_or_else(form)?;
    let (field, rest) = text.split_at(end);
    let rest = rest.trim_start();
    let (operator, value) = OPERATORS
        .iter()
        .find_map(|&(sign, operator)| Some((operator, rest.strip_prefix(sign)?)))
        .filter(|_| !field.is_empty())
        .ok_or_else(form)?;
    Ok(Filter { field: field.to_owned(), operator, value: value.trim_start().to_owned() })
}

impl Filter {
    /// Whether an element is shown. A field that it lacks is empty, and neither less nor greater than anything.
    pub(super) fn takes(&self, element: &Value) -> bool {
        let field = field(element, &self.field);
        let order = compared(field, &self.value);
        match self.operator {
            Operator::Equal => order == Ordering::Equal,
            Operator::NotEqual => order != Ordering::Equal,
            Operator::Less => !field.is_null() && order == Ordering::Less,
            Operator::LessOrEqual => !field.is_null() && order != Ordering::Greater,
            Operator::Greater => !field.is_null() && order == Ordering::Greater,
            Operator::GreaterOrEqual => !field.is_null() && order != Ordering::Less,
            Operator::Contains => shown(field).contains(&self.value),
        }
    }
}

/// A number is compared as one with what is one, anything else as it is shown.
fn compared(field: &Value, value: &str) -> Ordering {
    match (field.as_f64(), value.parse::<f64>()) {
        (Some(one), Ok(other)) => one.total_cmp(&other),
        (Some(_) | None, _) => shown(field).as_str().cmp(value),
    }
}

/// How elements are sorted: numbers before texts, and what lacks the field first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Order {
    pub(super) field: String,
    descending: bool,
}

/// Parses `--sort`, for clap.
pub(super) fn parse_order(text: &str) -> Result<Order, String> {
    let field = text.strip_prefix('-').unwrap_or(text);
    if field.is_empty() {
        return Err("name a field, with a - before it for the greatest first".to_owned());
    }
    Ok(Order { field: field.to_owned(), descending: field.len() < text.len() })
}

impl Order {
    /// Those that are equal keep their order.
    pub(super) fn sort(&self, elements: &mut [Value]) {
        elements.sort_by(|one, other| {
            let order = ordered(field(one, &self.field), field(other, &self.field));
            if self.descending { order.reverse() } else { order }
        });
    }
}

fn ordered(one: &Value, other: &Value) -> Ordering {
    match (one.as_f64(), other.as_f64()) {
        (Some(one), Some(other)) => one.total_cmp(&other),
        (None, None) => shown(one).cmp(&shown(other)),
        (Some(_), None) if other.is_null() => Ordering::Greater,
        (Some(_), None) => Ordering::Less,
        (None, Some(_)) => ordered(other, one).reverse(),
    }
}

/// A field of an element, or of an object in it; null if it is not there.
pub(super) fn field<'v>(element: &'v Value, path: &str) -> &'v Value {
    // An argument may have a dot in its name.
    if let Some(found) = element.get(path) {
        return found;
    }
    match path.split_once('.') {
        Some((first, rest)) => element.get(first).map_or(&Value::Null, |inner| field(inner, rest)),
        None => &Value::Null,
    }
}

/// A value as text: strings without quotes, nothing for null, JSON for what has parts.
pub(super) fn shown(value: &Value) -> String {
    match value {
        Value::Null => String::new(),
        Value::String(text) => text.clone(),
        Value::Bool(_) | Value::Number(_) | Value::Array(_) | Value::Object(_) => value.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn takes(filter: &str) -> bool {
        let element = json!({
            "name": "orders.eu", "messages": 100, "durable": true, "queue": { "name": "q" },
            "arguments": { "x-max-length": 5, "a.b": "c" },
        });
        parse_filter(filter).unwrap().takes(&element)
    }

    #[test]
    fn numbers_are_compared_as_numbers_and_anything_else_as_text() {
        for filter in [
            "messages=100",
            "messages>99",
            "messages>=100",
            "messages < 1e3",
            "messages<=100",
            "messages != 9",
            "messages>9",
            "name=orders.eu",
            "name~ers",
            "name > order",
            "durable=true",
            "durable!=false",
            "queue.name=q",
            "arguments.x-max-length=5",
            "arguments.a.b=c",
            "nothing=",
            "nothing!=x",
            "arguments~max-length",
            "messages~10",
        ] {
            assert!(takes(filter), "{filter}");
        }
        for filter in [
            "messages=10",
            "messages>100",
            "messages<9",
            "name=orders",
            "name~EU",
            "durable=false",
            "queue.name!=q",
            "queue.other=q",
            "nothing=x",
            "nothing<5",
            "nothing>5",
            "nothing<=5",
            "nothing>=",
            "nothing!=",
        ] {
            assert!(!takes(filter), "{filter}");
        }
    }

    #[test]
    fn what_is_no_comparison_is_refused() {
        for filter in ["", "messages", "=5", "messages 5", "messages&5", "a b=c"] {
            assert!(parse_filter(filter).is_err(), "{filter}");
        }
    }

    #[test]
    fn elements_are_sorted_by_number_or_text_and_keep_their_order_where_they_are_equal() {
        let sorted = |order: &str| {
            let mut elements =
                [("b", json!(10)), ("a", json!(9)), ("d", Value::Null), ("c", json!(10)), ("e", json!("x"))]
                    .map(|(name, n)| json!({ "name": name, "n": n }));
            parse_order(order).unwrap().sort(&mut elements);
            elements.iter().map(|element| element["name"].as_str().unwrap().to_owned()).collect::<String>()
        };
        assert_eq!(sorted("name"), "abcde");
        assert_eq!(sorted("-name"), "edcba");
        assert_eq!(sorted("n"), "dabce");
        assert_eq!(sorted("-n"), "ebcad");
        assert!(parse_order("-").is_err() && parse_order("").is_err());
    }
}
