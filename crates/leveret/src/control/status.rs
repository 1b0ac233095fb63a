//! `leveret status`.

use std::io::{self, Write};
use std::time::Duration;

use bytesize::ByteSize;
use serde_json::{Value, json};

use super::filter::{field, shown};
use super::table::write_json;
use super::{DataDir, Failure, Format};
use crate::commands::one_line;

/// Show whether a broker runs, since when, and how much it has to do.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  leveret status --data-dir leveret-data")]
pub(crate) struct Status {
    /// How it is printed.
    #[arg(long, value_enum, default_value_t = Format::Text)]
    format: Format,
    #[command(flatten)]
    broker: DataDir,
}

impl Status {
    pub(super) fn run(self) -> Result<(), Failure> {
        let broker = self.broker.client()?;
        let overview = broker.get("/api/overview")?.ok_or(Failure::NoSuchList)?;
        let nodes = broker.get("/api/nodes")?.ok_or(Failure::NoSuchList)?;
        let node = &nodes[0];
        let mut out = io::stdout().lock();
        match self.format {
            Format::Json => write_json(&mut out, &json!({ "overview": overview, "node": node }))?,
            Format::Text => {
                let folder = self.broker.data_dir.display().to_string();
                for (name, value) in lines(&overview, node, folder) {
                    writeln!(out, "{name:<13} {}", one_line(&value))?;
                }
            }
        }
        Ok(())
    }
}

fn lines(overview: &Value, node: &Value, folder: String) -> Vec<(&'static str, String)> {
    let text = |from: &Value, name: &str| shown(field(from, name));
    let number = |from: &Value, name: &str| field(from, name).as_u64();
    let version = format!("{} {}", text(overview, "product_name"), text(overview, "product_version"));
    let uptime = Duration::from_millis(number(node, "uptime").unwrap_or(0));
    let listeners = overview["listeners"].as_array().map_or(&[][..], Vec::as_slice);
    let listeners = listeners.iter().map(|listener| {
        let (ip, port) = (text(listener, "ip_address"), text(listener, "port"));
        if ip.contains(':') { format!("[{ip}]:{port}") } else { format!("{ip}:{port}") }
    });
    let bytes = |name: &str| number(node, name).map(|bytes| ByteSize(bytes).to_string());
    let limit = bytes("mem_limit").unwrap_or_default();
    let memory = bytes("mem_used").map_or(limit.clone(), |used| format!("{used} of {limit}"));
    let is_set = |name: &str| node[name].as_bool() == Some(true);
    let publishers = match (is_set("mem_alarm"), is_set("disk_free_alarm")) {
        (false, false) => "not held up",
        (true, false) => "wait until there is room in memory",
        (false, true) => "wait until there is room on the disk",
        (true, true) => "wait until there is room in memory and on the disk",
    };
    let messages = format!(
        "{} ({} ready, {} unacknowledged)",
        text(overview, "queue_totals.messages"),
        text(overview, "queue_totals.messages_ready"),
        text(overview, "queue_totals.messages_unacknowledged")
    );
    let total = |name: &str| text(overview, &format!("object_totals.{name}"));
    vec![
        ("Broker", version),
        ("Process", format!("{}, up for {}", text(node, "os_pid"), duration(uptime))),
        ("Data folder", folder),
        ("AMQP", listeners.collect::<Vec<_>>().join(", ")),
        ("Memory", memory),
        ("Publishers", publishers.to_owned()),
        ("Connections", total("connections")),
        ("Channels", total("channels")),
        ("Exchanges", total("exchanges")),
        ("Queues", total("queues")),
        ("Consumers", total("consumers")),
        ("Messages", messages),
    ]
}

/// With the two largest units that it has.
fn duration(time: Duration) -> String {
    let seconds = time.as_secs();
    match (seconds / 86_400, seconds / 3600 % 24, seconds / 60 % 60, seconds % 60) {
        (0, 0, 0, seconds) => format!("{seconds} s"),
        (0, 0, minutes, seconds) => format!("{minutes} min {seconds} s"),
        (0, hours, minutes, _) => format!("{hours} h {minutes} min"),
        (days, hours, ..) => format!("{days} d {hours} h"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_duration_has_the_two_largest_units() {
        let shown = [0, 59, 60, 3599, 3600, 86_399, 86_400, 10 * 86_400 + 7200];
        let expected =
            ["0 s", "59 s", "1 min 0 s", "59 min 59 s", "1 h 0 min", "23 h 59 min", "1 d 0 h", "10 d 2 h"];
        assert_eq!(shown.map(|seconds| duration(Duration::from_secs(seconds))), expected);
    }
}
