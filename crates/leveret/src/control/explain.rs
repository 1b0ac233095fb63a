//! `leveret explain`.

use std::fmt::Write as _;
use std::io::{self, Write};

use serde_json::{Map, Value, json};

use super::filter::{field, shown};
use super::table::write_json;
use super::{DataDir, Failure, Format, encoded};
use crate::commands::arguments::{Pair, parse_pair};
use crate::commands::one_line;

/// Tell where a message would go that is published, and why; nothing is published, and nothing changes.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Example:\n  leveret explain --exchange orders --routing-key eu.new --header kind=book --user marie"
)]
pub(crate) struct Explain {
    /// The exchange; without it, the default exchange, which leads to the queue named by the key
    #[arg(long, value_name = "NAME", default_value = "")]
    exchange: String,
    /// The routing key
    #[arg(long, value_name = "KEY", default_value = "")]
    routing_key: String,
    /// A header, for example kind=book; integers and true and false get their type. May be given several times
    #[arg(long = "header", value_name = "K=V", value_parser = parse_pair)]
    headers: Vec<Pair>,
    /// The virtual host
    #[arg(long, value_name = "NAME", default_value = "/")]
    vhost: String,
    /// Whether this user may do that; without it, nobody's permissions count
    #[arg(long, value_name = "NAME")]
    user: Option<String>,
    /// How it is printed
    #[arg(long, value_enum, default_value_t = Format::Text)]
    format: Format,
    #[command(flatten)]
    broker: DataDir,
}

impl Explain {
    pub(super) fn run(self) -> Result<(), Failure> {
        let headers: Map<_, _> = self.headers.into_iter().map(Pair::into_json).collect();
        let mut path = format!(
            "/api/explain/{}?exchange={}&routing_key={}",
            encoded(&self.vhost),
            encoded(&self.exchange),
            encoded(&self.routing_key)
        );
        if !headers.is_empty() {
            let _ = write!(path, "&headers={}", encoded(&json!(headers).to_string()));
        }
        if let Some(user) = &self.user {
            let _ = write!(path, "&user={}", encoded(user));
        }
        let broker = self.broker.client()?;
        let Some(explanation) = broker.get(&path)? else {
            return Err(match self.user {
                Some(user) => broker.missing(user, self.vhost),
                None => Failure::NoVhost(self.vhost),
            });
        };
        let mut out = io::stdout().lock();
        match self.format {
            Format::Json => write_json(&mut out, &explanation)?,
            Format::Text => {
                for line in lines(&explanation) {
                    let indent = line.len() - line.trim_start().len();
                    writeln!(out, "{:indent$}{}", "", one_line(line.trim_start()))?;
                }
            }
        }
        Ok(())
    }
}

fn list<'v>(of: &'v Value, name: &str) -> &'v [Value] {
    field(of, name).as_array().map_or(&[], Vec::as_slice)
}

/// A list of things that may be there, as `name value`.
fn facts(of: &Value, names: &[(&str, &str)]) -> String {
    let known = names.iter().filter(|(name, _)| !field(of, name).is_null());
    known.map(|(name, words)| format!("{words} {}", shown(field(of, name)))).collect::<Vec<_>>().join(", ")
}

/// A number of things, for example `1 binding`.
fn counted(of: &Value, name: &str, thing: &str) -> String {
    let count = shown(field(of, name));
    let ending = if count == "1" { "" } else { "s" };
    format!("{count} {thing}{ending}")
}

fn named(name: &str) -> String {
    if name.is_empty() { "the default exchange".into() } else { format!("exchange '{name}'") }
}

fn lines(explanation: &Value) -> Vec<String> {
    let text = |of: &Value, name: &str| shown(field(of, name));
    let (exchange, key) = (text(explanation, "exchange"), text(explanation, "routing_key"));
    let mut lines =
        vec![format!("a message to {} with the key '{key}' in '{}'", named(&exchange), text(explanation, "vhost"))];
    for step in list(explanation, "permissions") {
        let has = if step["granted"] == true { "may" } else { "may not" };
        lines.push(format!("  the user {has} {} to {}", text(step, "permission"), text(step, "resource")));
    }
    if !explanation["refused"].is_null() {
        lines.push(format!("  it is refused: {}", text(explanation, "refused")));
    }
    for step in list(explanation, "exchanges") {
        let policy = facts(step, &[("policy", ", policy")]);
        let bindings = counted(step, "bindings", "binding");
        lines.push(format!("  exchange '{}', {}{policy}, {bindings}", text(step, "name"), text(step, "type")));
        if !step["note"].is_null() {
            lines.push(format!("    {}", text(step, "note")));
        }
        for matched in list(step, "matched") {
            let (to, name) = (text(matched, "destination_type"), text(matched, "destination"));
            lines.push(format!("    leads to {to} '{name}': {}", text(matched, "why")));
        }
        match (step["takes_alternate"] == true, step["alternate_exchange"].as_str()) {
            (true, Some(alternate)) => {
                lines.push(format!("    nothing matches: on to the alternate exchange '{alternate}'"));
            }
            (false, Some(alternate)) => {
                lines.push(format!("    the alternate exchange '{alternate}' is not needed"));
            }
            (_, None) if list(step, "matched").is_empty() => lines.push("    nothing matches".into()),
            (_, None) => {}
        }
    }
    let queues = list(explanation, "queues");
    let is_refused = !explanation["refused"].is_null();
    let reaches = if is_refused { "it would reach" } else { "it reaches" };
    match explanation["queue_count"].as_u64().unwrap_or(0) {
        0 if is_refused => {}
        0 => lines.push("  it reaches no queue: it is dropped, or returned if it is mandatory".into()),
        count if count > queues.len() as u64 => {
            lines.push(format!("  {reaches} {count} queues, of which the first {} are", queues.len()));
        }
        _ => lines.push(format!("  {reaches} {}", counted(explanation, "queue_count", "queue"))),
    }
    for queue in queues {
        lines.push(format!(
            "  queue '{}', {}, {}, {}",
            text(queue, "name"),
            text(queue, "type"),
            counted(queue, "messages", "message"),
            counted(queue, "consumers", "consumer")
        ));
        let settings = facts(
            queue,
            &[
                ("policy", "policy"),
                ("operator_policy", "operator policy"),
                ("message_ttl", "message TTL (ms)"),
                ("expires", "expires unused after (ms)"),
                ("max_length", "at most messages"),
                ("max_length_bytes", "at most bytes"),
                ("overflow", "overflow"),
                ("delivery_limit", "delivery limit"),
                ("consumer_timeout", "consumer timeout (ms)"),
            ],
        );
        if !settings.is_empty() {
            lines.push(format!("    {settings}"));
        }
        let letters = &queue["dead_letters"];
        if !letters.is_null() {
            let to = list(letters, "queues").iter().map(|name| format!("'{}'", shown(name))).collect::<Vec<_>>();
            let to = match (letters["exists"] == true, letters["complete"] == true, to.is_empty()) {
                (false, ..) => "which does not exist: they are gone".to_owned(),
                (true, true, true) => "where they reach no queue".to_owned(),
                (true, true, false) => format!("to {}", to.join(", ")),
                (true, false, true) => "and it would take long to tell to which queues".to_owned(),
                (true, false, false) => format!("to {} and perhaps others", to.join(", ")),
            };
            let (exchange, key) = (text(letters, "exchange"), text(letters, "routing_key"));
            lines.push(format!("    dead letters go to {} with the key '{key}', {to}", named(&exchange)));
        }
    }
    lines
}
