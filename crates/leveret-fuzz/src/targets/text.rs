//! What people and administrators write: definitions, URLs, settings.

use leveret_client::Url;
use leveret_management::definitions::Definitions;
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};

use serde_json::Value;

use crate::allowance::{Account, PatternBytes, in_all};

/// A file of definitions.
pub(super) fn definitions(input: &[u8]) {
    let mut account = Account::default();
    account.give(input.len());
    give_patterns(input, &mut account);
    account.run(|| match Definitions::parse(input) {
        Ok(definitions) => {
            let ignored = definitions.ignored();
            assert!(ignored.iter().all(|ignored| !ignored.is_empty()));
        }
        Err(fault) => assert!(!fault.path.is_empty() && !fault.fault.is_empty()),
    });
    account.check(48);
}

/// All texts that definitions may take for the pattern of a policy.
fn give_patterns(input: &[u8], account: &mut Account) {
    let Ok(parsed) = serde_json::from_slice::<Value>(input) else { return };
    let mut values = vec![&parsed];
    while let Some(value) = values.pop() {
        match value {
            Value::Object(fields) => {
                if let Some(text) = fields.get("pattern").and_then(Value::as_str) {
                    account.give_pattern(PatternBytes::compiled(text));
                }
                values.extend(fields.values());
            }
            Value::Array(all) => values.extend(all),
            Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
        }
    }
}

/// A URL means the same when its parts are written once more.
pub(super) fn uri(input: &[u8]) {
    let Ok(text) = std::str::from_utf8(input) else { return };
    let parsed: Result<Url, _> = in_all(input.len(), || {
        let parsed: Result<Url, _> = text.parse();
        match &parsed {
            Ok(url) => assert!(!url.to_string().is_empty()),
            Err(error) => assert!(!error.to_string().is_empty()),
        }
        parsed
    });
    let Ok(url) = parsed else { return };
    let encoded = |part: &str| utf8_percent_encode(part, NON_ALPHANUMERIC).to_string();
    let host = if url.host.contains(':') { format!("[{}]", encoded(&url.host)) } else { encoded(&url.host) };
    let heartbeat = url.heartbeat.map_or_else(String::new, |seconds| format!("&heartbeat={seconds}"));
    let again = format!(
        "amqp://{}:{}@{host}:{}/{}?connection_timeout={}&channel_max={}&frame_max={}{heartbeat}",
        encoded(&url.user),
        encoded(&url.password),
        url.port,
        encoded(url.vhost.as_str()),
        url.connection_timeout.as_millis(),
        url.channel_max,
        url.frame_max,
    );
    assert_eq!(again.parse().as_ref(), Ok(&url), "{again}");
}

/// The text of a configuration file; behind a NUL, what `--set` is given, a line each.
pub(super) fn configuration(input: &[u8]) {
    let Ok(text) = std::str::from_utf8(input) else { return };
    let (file, set) = text.split_once('\0').unwrap_or((text, ""));
    let refused = in_all(input.len(), || leveret::fuzzing::is_configuration(file, set.lines()).err());
    match refused {
        Some(error) => assert!(!error.is_empty()),
        // What is taken for a file of settings is TOML to others, too.
        None => assert_eq!(file.parse::<toml::Table>().err(), None),
    }
}
