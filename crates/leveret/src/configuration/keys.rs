//! The keys, what each one takes, and what it changes.
//!
//! A key has the name of its option, or the one of `rabbitmq.conf`, or one for each.

use std::ffi::OsStr;
use std::net::IpAddr;
use std::str::FromStr;
use std::time::Duration;

use bytesize::ByteSize;
use clap::ValueEnum;
use leveret_broker::limits::{BODY_BYTES_MAX, TTL_MAX};
use leveret_server::{MEMORY_LIMIT_MIN, MemoryLimit, SEGMENT_BYTES_MAX, SEGMENT_BYTES_MIN};

use super::{Configuration, LogLevel};
use crate::commands::arguments::SHORT_BYTES_MAX;

/// A name and what it stands for.
pub(super) struct Key {
    pub(super) name: &'static str,
    /// What it decides: the same for two names of one thing.
    pub(super) decides: &'static str,
    /// For errors: what stands behind the `=`.
    pub(super) takes: &'static str,
    pub(super) set: fn(&mut Configuration, &OsStr) -> Option<()>,
}

/// Ten years, as for other times that clients give.
const TTL_MAX_MS: u64 = 315_360_000_000;
const _: () = assert!(TTL_MAX.as_millis() == TTL_MAX_MS as u128);

const SIZE: &str = "a size below 16EiB, for example 50MB or 1GiB";
const MEMORY_SIZE: &str = "a size of at least 32MiB and below 16EiB, for example 256MiB or 1GB";
const PORT: &str = "a port from 0 to 65535";
const LEVEL: &str = "none, error, warning, info or debug";

const NAME: &str = "a name of 1 to 255 bytes";
const FRAME_BYTES: &str = "a number of bytes from 4096 to 134217728";

pub(super) const KEYS: &[Key] = &[
    Key { name: "product", decides: "product", takes: "a name", set: product },
    Key { name: "product.name", decides: "product", takes: "a name", set: product },
    Key { name: "version", decides: "version", takes: "a version", set: version },
    Key { name: "product.version", decides: "version", takes: "a version", set: version },
    Key {
        name: "cluster_name",
        decides: "cluster_name",
        takes: "a name",
        set: |to, value| put(&mut to.server.settings.cluster_name, Some(value.to_str()?.into())),
    },
    Key {
        name: "frame_max",
        decides: "frame_max",
        takes: FRAME_BYTES,
        set: |to, value| put(&mut to.server.settings.frame_max, frame_bytes(value)),
    },
    Key {
        name: "initial_frame_max",
        decides: "initial_frame_max",
        takes: FRAME_BYTES,
        set: |to, value| put(&mut to.server.settings.initial_frame_max, frame_bytes(value)),
    },
    Key {
        name: "channel_max",
        decides: "channel_max",
        takes: "a number of channels from 1 to 65535",
        set: |to, value| put(&mut to.server.settings.channel_max, number(value, 1, u16::MAX)),
    },
    Key {
        name: "heartbeat",
        decides: "heartbeat",
        takes: "a number of seconds from 0 (none) to 65535",
        set: |to, value| put(&mut to.server.settings.heartbeat, number(value, 0, u16::MAX)),
    },
    Key {
        name: "handshake_timeout",
        decides: "handshake_timeout",
        takes: "a number of milliseconds from 100 to 600000",
        set: |to, value| put(&mut to.server.settings.handshake_timeout, milliseconds(value, 100, 600_000)),
    },
    Key {
        name: "consumer_timeout",
        decides: "consumer_timeout",
        takes: "a number of milliseconds from 1 to 315360000000, or undefined for none",
        set: |to, value| {
            let timeout = match text(value)? {
                "undefined" => None,
                _ => Some(milliseconds(value, 1, TTL_MAX_MS)?),
            };
            put(&mut to.server.settings.consumer_timeout, Some(timeout))
        },
    },
    Key {
        name: "consumer_max_per_channel",
        decides: "consumer_max_per_channel",
        takes: "a number of consumers from 1 to 4294967295, or infinity for any number",
        set: |to, value| {
            let most = match text(value)? {
                "infinity" => None,
                _ => Some(number(value, 1, u32::MAX)?),
            };
            put(&mut to.server.settings.consumer_max_per_channel, Some(most))
        },
    },
    Key {
        name: "max_message_size",
        decides: "max_message_size",
        takes: "a number of bytes from 1 to 536870912",
        set: |to, value| put(&mut to.server.settings.max_message_size, number(value, 1, BODY_BYTES_MAX)),
    },
    Key {
        name: "data_dir",
        decides: "storage",
        takes: "a folder",
        set: |to, value| {
            to.is_in_memory = false;
            put(&mut to.data_dir, (!value.is_empty()).then(|| value.into()))
        },
    },
    Key {
        name: "in_memory",
        decides: "storage",
        takes: "1 or true, or 0 or false",
        set: |to, value| put(&mut to.is_in_memory, switch(value)),
    },
    Key {
        name: "segment_size",
        decides: "segment_size",
        takes: "a size from 1MiB to 1GiB, for example 67108864 or 64MiB",
        set: |to, value| {
            let bytes = size(value).filter(|bytes| (SEGMENT_BYTES_MIN..=SEGMENT_BYTES_MAX).contains(bytes));
            put(&mut to.server.segment_bytes, bytes)
        },
    },
    Key {
        name: "memory_limit",
        decides: "memory",
        takes: "a size of at least 32MiB and below 16EiB, for example 256MiB or 1GB, or a part of the memory from 1% to 100%",
        set: |to, value| {
            let limit = match text(value)?.strip_suffix('%') {
                Some(percent) => number(percent.as_ref(), 1, 100).map(MemoryLimit::Percent),
                None => memory_size(value),
            };
            put(&mut to.server.memory_limit, limit)
        },
    },
    Key {
        name: "vm_memory_high_watermark.absolute",
        decides: "memory",
        takes: MEMORY_SIZE,
        set: |to, value| put(&mut to.server.memory_limit, memory_size(value)),
    },
    Key {
        name: "vm_memory_high_watermark.relative",
        decides: "memory",
        takes: "a part of the memory from 0.01 to 1, with at most two decimals",
        set: |to, value| put(&mut to.server.memory_limit, hundredths(value).map(MemoryLimit::Percent)),
    },
    Key { name: "disk_free_limit", decides: "disk", takes: SIZE, set: disk_free_limit },
    Key { name: "disk_free_limit.absolute", decides: "disk", takes: SIZE, set: disk_free_limit },
    Key {
        name: "bind",
        decides: "bind",
        takes: "IP addresses such as 127.0.0.1 or ::1, separated by commas",
        set: |to, value| {
            let addresses = text(value)?.split(',').map(|address| address.trim().parse().ok());
            put(&mut to.server.bind, addresses.collect())
        },
    },
    Key {
        name: "amqp_port",
        decides: "amqp_port",
        takes: PORT,
        set: |to, value| put(&mut to.server.amqp_port, number(value, 0, u16::MAX)),
    },
    Key { name: "management_port", decides: "management_port", takes: PORT, set: management_port },
    Key { name: "management.tcp.port", decides: "management_port", takes: PORT, set: management_port },
    Key {
        name: "tcp_listen_options.backlog",
        decides: "backlog",
        takes: "a number of connections from 1 to 65535",
        set: |to, value| put(&mut to.server.backlog, number(value, 1, 65_535)),
    },
    Key {
        name: "default_user",
        decides: "default_user",
        takes: NAME,
        set: |to, value| put(&mut to.server.first_user.name, name(value)),
    },
    Key {
        name: "default_pass",
        decides: "default_pass",
        takes: "a password of at least one character",
        set: |to, value| {
            let password = value.to_str().filter(|password| !password.is_empty());
            put(&mut to.server.first_user.password, password.map(str::to_owned))
        },
    },
    Key {
        name: "default_vhost",
        decides: "default_vhost",
        takes: NAME,
        set: |to, value| put(&mut to.server.first_user.vhost, name(value)),
    },
    Key {
        name: "loopback_users",
        decides: "loopback_users",
        takes: "names of users separated by commas, or none",
        set: |to, value| {
            let names = text(value)?.split(',').map(|user| name(user.trim().as_ref()));
            let names: Option<Vec<_>> = match text(value)? {
                "none" => Some(Vec::new()),
                // Nobody has such a name: taken for one, `true` would let the guest in from everywhere.
                "true" | "false" => None,
                _ => names.collect(),
            };
            put(&mut to.server.loopback_users, names)
        },
    },
    Key {
        name: "loopback_users.guest",
        decides: "loopback_users",
        takes: "true or false",
        set: |to, value| {
            let users = if switch(value)? { vec!["guest".to_owned()] } else { Vec::new() };
            put(&mut to.server.loopback_users, Some(users))
        },
    },
    Key { name: "definitions", decides: "definitions", takes: "a file of definitions", set: definitions },
    Key { name: "load_definitions", decides: "definitions", takes: "a file of definitions", set: definitions },
    Key { name: "log_level", decides: "log_level", takes: LEVEL, set: log_level },
    Key { name: "log.console.level", decides: "log_level", takes: LEVEL, set: log_level },
];

fn put<V>(place: &mut V, value: Option<V>) -> Option<()> {
    value.map(|value| *place = value)
}

fn product(to: &mut Configuration, value: &OsStr) -> Option<()> {
    put(&mut to.server.settings.product, Some(value.to_str()?.into()))
}

fn version(to: &mut Configuration, value: &OsStr) -> Option<()> {
    put(&mut to.server.settings.version, Some(value.to_str()?.into()))
}

fn definitions(to: &mut Configuration, value: &OsStr) -> Option<()> {
    put(&mut to.definitions, (!value.is_empty()).then(|| Some(value.into())))
}

fn disk_free_limit(to: &mut Configuration, value: &OsStr) -> Option<()> {
    put(&mut to.server.disk_free_limit, size(value))
}

fn management_port(to: &mut Configuration, value: &OsStr) -> Option<()> {
    put(&mut to.management_port, Some(Some(number(value, 0, u16::MAX)?)))
}

fn log_level(to: &mut Configuration, value: &OsStr) -> Option<()> {
    put(&mut to.log_level, LogLevel::from_str(text(value)?, false).ok())
}

/// RabbitMQ: a port, or an address and a port; an IPv6 address with or without brackets.
pub(super) fn listener(value: &OsStr) -> Option<(Option<IpAddr>, u16)> {
    let Some((address, port)) = text(value)?.rsplit_once(':') else {
        return Some((None, number(value, 0, u16::MAX)?));
    };
    let address = address.strip_prefix('[').and_then(|address| address.strip_suffix(']')).unwrap_or(address);
    Some((Some(address.parse().ok()?), number(port.as_ref(), 0, u16::MAX)?))
}

fn text(value: &OsStr) -> Option<&str> {
    value.to_str().map(str::trim)
}

fn name(value: &OsStr) -> Option<String> {
    value.to_str().filter(|name| (1..=SHORT_BYTES_MAX).contains(&name.len())).map(str::to_owned)
}

fn number<N: FromStr + PartialOrd>(value: &OsStr, least: N, most: N) -> Option<N> {
    text(value)?.parse().ok().filter(|number| (least..=most).contains(number))
}

fn frame_bytes(value: &OsStr) -> Option<u32> {
    number(value, 4096, 128 * 1024 * 1024)
}

fn milliseconds(value: &OsStr, least: u64, most: u64) -> Option<Duration> {
    number(value, least, most).map(Duration::from_millis)
}

fn switch(value: &OsStr) -> Option<bool> {
    match text(value)? {
        "1" | "true" => Some(true),
        "0" | "false" => Some(false),
        _ => None,
    }
}

/// With or without a unit; RabbitMQ's: `MB`, `M` and `MiB`, `Mi`.
fn size(value: &OsStr) -> Option<u64> {
    let bytes = text(value)?.parse::<ByteSize>().ok()?.as_u64();
    // What has no place in 64 bits comes out as the largest number.
    Some(bytes).filter(|&bytes| bytes < u64::MAX)
}

fn memory_size(value: &OsStr) -> Option<MemoryLimit> {
    size(value).filter(|&bytes| bytes >= MEMORY_LIMIT_MIN).map(MemoryLimit::Bytes)
}

/// `0.4` is 40.
fn hundredths(value: &OsStr) -> Option<u64> {
    let (whole, decimals) = text(value)?.split_once('.').unwrap_or((text(value)?, ""));
    let is_decimal = decimals.len() <= 2 && decimals.bytes().all(|byte| byte.is_ascii_digit());
    let whole: u64 = number(whole.as_ref(), 0, 1)?;
    let decimals: u64 = is_decimal.then(|| format!("{decimals:0<2}").parse().ok())??;
    Some(whole * 100 + decimals).filter(|hundredths| (1..=100).contains(hundredths))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(key: &str, value: &str) -> Option<Configuration> {
        let key = KEYS.iter().find(|known| known.name == key).unwrap();
        let mut configuration = Configuration::default();
        (key.set)(&mut configuration, value.as_ref()).map(|()| configuration)
    }

    /// What a key takes, and what it does not.
    type Values = (&'static [&'static str], &'static [&'static str]);

    /// The values at both ends of each range, and those just beyond.
    #[test]
    fn every_key_takes_what_it_says_and_nothing_beyond() {
        const FRAMES: Values = (&["4096", "134217728"], &["4095", "134217729", "4k", "-1", ""]);
        const PORTS: Values = (&["0", " 65535 "], &["65536", "-1", "x", ""]);
        const LEVELS: Values = (&["none", "error", "warning", "info", "debug"], &["loud", ""]);
        const SIZES: Values =
            (&["0", "50MB", "2G", "1.5GiB", "15EiB"], &["much", "-1", "16EiB", "99999999999999999999GB", ""]);
        const NAMES: Values = (&["RabbitMQ", "one,two", ""], &[]);
        let ranges: &[(&str, Values)] = &[
            ("product", NAMES),
            ("product.name", NAMES),
            ("version", NAMES),
            ("product.version", NAMES),
            ("cluster_name", NAMES),
            ("frame_max", FRAMES),
            ("initial_frame_max", FRAMES),
            ("channel_max", (&["1", "65535"], &["0", "65536"])),
            ("heartbeat", (&["0", "65535"], &["-1", "65536", "x"])),
            ("handshake_timeout", (&["100", "600000"], &["99", "600001"])),
            ("consumer_timeout", (&["1", "315360000000", "undefined"], &["0", "315360000001", "none"])),
            ("consumer_max_per_channel", (&["1", "4294967295", "infinity"], &["0", "4294967296", "none"])),
            ("max_message_size", (&["1", "536870912"], &["0", "536870913"])),
            ("data_dir", (&["d"], &[""])),
            ("in_memory", (&["1", "true", "0", "false"], &["banana", "yes", "2", ""])),
            ("segment_size", (&["1048576", "1GiB"], &["1048575", "1073741825"])),
            (
                "memory_limit",
                (&["32MiB", "1G", "15EiB", "1%", "100 %"], &["31MiB", "16EiB", "0%", "101%", "0.4", "much"]),
            ),
            ("vm_memory_high_watermark.absolute", (&["32MiB", "2GB", "15EiB"], &["31MiB", "16EiB", "40%"])),
            (
                "vm_memory_high_watermark.relative",
                (&["0.01", "0.4", "1", "1.0"], &["0", "0.001", "0.405", "1.01", "40%", "0.-1", "-0.4", ".4"]),
            ),
            ("disk_free_limit", SIZES),
            ("disk_free_limit.absolute", SIZES),
            ("bind", (&["127.0.0.1", "127.0.0.1, ::1"], &["", "localhost", "127.0.0.1,"])),
            ("amqp_port", PORTS),
            ("management_port", PORTS),
            ("management.tcp.port", PORTS),
            ("tcp_listen_options.backlog", (&["1", "65535"], &["0", "65536"])),
            ("default_user", (&["ada", "guest"], &[""])),
            ("default_pass", (&["love lace", " "], &[""])),
            ("default_vhost", (&["/", "engine"], &[""])),
            ("loopback_users", (&["none", "guest", "guest, ada"], &["", "guest,", "true", "false"])),
            ("loopback_users.guest", (&["true", "false"], &["", "none"])),
            ("definitions", (&["definitions.json"], &[""])),
            ("load_definitions", (&["definitions.json"], &[""])),
            ("log_level", LEVELS),
            ("log.console.level", LEVELS),
        ];
        assert!(ranges.iter().map(|(name, _)| *name).eq(KEYS.iter().map(|key| key.name)));
        for (name, (good, bad)) in ranges {
            for value in *good {
                assert!(set(name, value).is_some(), "{name}={value}");
            }
            for value in *bad {
                assert!(set(name, value).is_none(), "{name}={value}");
            }
        }
    }

    #[test]
    fn parts_of_the_memory_are_hundredths() {
        let limit = |key, value| set(key, value).unwrap().server.memory_limit;
        assert_eq!(limit("vm_memory_high_watermark.relative", "0.4"), MemoryLimit::Percent(40));
        assert_eq!(limit("vm_memory_high_watermark.relative", "0.05"), MemoryLimit::Percent(5));
        assert_eq!(limit("vm_memory_high_watermark.relative", "1"), MemoryLimit::Percent(100));
        assert_eq!(limit("memory_limit", "40%"), MemoryLimit::Percent(40));
        assert_eq!(limit("memory_limit", "1G"), MemoryLimit::Bytes(1_000_000_000));
    }

    /// RabbitMQ since 3.13; before, `M` was 1048576.
    #[test]
    fn units_are_powers_of_ten_unless_they_say_otherwise() {
        for (unit, bytes) in
            [("", 1), ("k", 1000), ("M", 1_000_000), ("MB", 1_000_000), ("Mi", 1 << 20), ("MiB", 1 << 20)]
        {
            let limit = set("disk_free_limit", &format!("3{unit}")).unwrap().server.disk_free_limit;
            assert_eq!(limit, 3 * bytes, "{unit}");
        }
    }

    #[test]
    fn what_is_set_reaches_the_broker() {
        assert_eq!(set("tcp_listen_options.backlog", "7").unwrap().server.backlog, 7);
        assert_eq!(set("segment_size", "1MiB").unwrap().server.segment_bytes, 1 << 20);
        assert_eq!(set("disk_free_limit.absolute", "2GB").unwrap().server.disk_free_limit, 2_000_000_000);
        assert_eq!(set("default_pass", "p").unwrap().server.first_user.password, "p");
        assert_eq!(set("loopback_users", "guest, ada").unwrap().server.loopback_users, ["guest", "ada"]);
        assert!(set("loopback_users", "none").unwrap().server.loopback_users.is_empty());
        assert!(set("loopback_users.guest", "false").unwrap().server.loopback_users.is_empty());
        assert_eq!(set("cluster_name", "c").unwrap().server.settings.cluster_name, "c");
    }
}
