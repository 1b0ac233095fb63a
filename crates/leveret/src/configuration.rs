//! What can be set by `--set KEY=VALUE` and in the file of `--config`, by RabbitMQ's names.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use leveret_broker::Settings;
use leveret_broker::limits::{BODY_BYTES_MAX, TTL_MAX};

/// A setting that cannot be set so.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum ConfigurationError {
    #[error("cannot read the configuration file {file}: {fault}", file = .0.display(), fault = .1)]
    Unreadable(PathBuf, String),
    #[error("{file} is not valid TOML: {fault}", file = .0.display(), fault = .1)]
    NotToml(PathBuf, String),
    #[error("unknown setting '{0}'; the nearest is '{1}'")]
    Misspelled(String, &'static str),
    #[error("unknown setting '{0}'; there are {names}", names = KEYS.iter().map(|key| key.name).collect::<Vec<_>>().join(", "))]
    Unknown(String),
    #[error("--set takes KEY=VALUE, for example --set heartbeat=30; '{0}' has no '='")]
    NoValue(String),
    #[error("setting '{key}' takes {takes}; '{value}' is not that")]
    Invalid { key: &'static str, takes: &'static str, value: String },
}

/// From so much on, of 1, two names are taken for one and a misspelling of it.
const SIMILARITY_MIN: f64 = 0.8;

/// Ten years, as for other times that clients give.
const TTL_MAX_MS: u64 = 315_360_000_000;
const _: () = assert!(TTL_MAX.as_millis() == TTL_MAX_MS as u128);

struct Key {
    name: &'static str,
    takes: &'static str,
    set: fn(&mut Settings, &str) -> Option<()>,
}

const KEYS: &[Key] = &[
    Key {
        name: "product",
        takes: "a name",
        set: |settings, value| {
            let _: () = settings.product = value.into();
            Some(())
        },
    },
    Key {
        name: "version",
        takes: "a version",
        set: |settings, value| {
            let _: () = settings.version = value.into();
            Some(())
        },
    },
    Key {
        name: "cluster_name",
        takes: "a name",
        set: |settings, value| {
            let _: () = settings.cluster_name = value.into();
            Some(())
        },
    },
    Key {
        name: "frame_max",
        takes: "a number of bytes from 4096 to 134217728",
        set: |settings, value| {
            let _: () = settings.frame_max = number(value, 4096, 128 * 1024 * 1024)?;
            Some(())
        },
    },
    Key {
        name: "channel_max",
        takes: "a number of channels from 1 to 65535",
        set: |settings, value| {
            let _: () = settings.channel_max = number(value, 1, u16::MAX)?;
            Some(())
        },
    },
    Key {
        name: "heartbeat",
        takes: "a number of seconds from 0 (none) to 65535",
        set: |settings, value| {
            let _: () = settings.heartbeat = number(value, 0, u16::MAX)?;
            Some(())
        },
    },
    Key {
        name: "handshake_timeout",
        takes: "a number of milliseconds from 100 to 600000",
        set: |settings, value| {
            let _: () = settings.handshake_timeout = Duration::from_millis(number(value, 100, 600_000)?);
            Some(())
        },
    },
    Key {
        name: "consumer_timeout",
        takes: "a number of milliseconds from 1 to 315360000000, or undefined for none",
        set: |settings, value| {
            let timeout = match value.trim() {
                "undefined" => None,
                number_of_ms => Some(Duration::from_millis(number(number_of_ms, 1, TTL_MAX_MS)?)),
            };
            let _: () = settings.consumer_timeout = timeout;
            Some(())
        },
    },
    Key {
        name: "max_message_size",
        takes: "a number of bytes from 1 to 536870912",
        set: |settings, value| {
            let _: () = settings.max_message_size = number(value, 1, BODY_BYTES_MAX)?;
            Some(())
        },
    },
];

fn number<N: std::str::FromStr + PartialOrd>(value: &str, least: N, most: N) -> Option<N> {
    value.trim().parse().ok().filter(|number| (least..=most).contains(number))
}

/// The settings: defaults, then the file, then `--set` in order.
pub(crate) fn settings(file: Option<&Path>, assignments: &[String]) -> Result<Settings, ConfigurationError> {
    let mut settings = Settings::default();
    if let Some(file) = file {
        for (key, value) in read(file)? {
            set(&mut settings, &key, &value)?;
        }
    }
    for assignment in assignments {
        let (key, value) =
            assignment.split_once('=').ok_or_else(|| ConfigurationError::NoValue(assignment.clone()))?;
        set(&mut settings, key.trim(), value)?;
    }
    Ok(settings)
}

fn read(file: &Path) -> Result<Vec<(String, String)>, ConfigurationError> {
    let text =
        fs::read_to_string(file).map_err(|error| ConfigurationError::Unreadable(file.into(), error.to_string()))?;
    let table: toml::Table = text.parse().map_err(|error: toml::de::Error| {
        ConfigurationError::NotToml(file.into(), error.to_string().replace('\n', " "))
    })?;
    let text_of = |value: toml::Value| match value {
        toml::Value::String(text) => text,
        other => other.to_string(),
    };
    Ok(table.into_iter().map(|(key, value)| (key, text_of(value))).collect())
}

fn set(settings: &mut Settings, name: &str, value: &str) -> Result<(), ConfigurationError> {
    let Some(key) = KEYS.iter().find(|key| key.name == name) else {
        let similar = KEYS.iter().map(|key| (strsim::jaro_winkler(key.name, name), key.name));
        let nearest =
            similar.filter(|(similarity, _)| *similarity >= SIMILARITY_MIN).max_by(|a, b| a.0.total_cmp(&b.0));
        return Err(match nearest {
            Some((_, nearest)) => ConfigurationError::Misspelled(name.into(), nearest),
            None => ConfigurationError::Unknown(name.into()),
        });
    };
    (key.set)(settings, value).ok_or_else(|| ConfigurationError::Invalid {
        key: key.name,
        takes: key.takes,
        value: value.into(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn from(assignments: &[&str]) -> Result<Settings, ConfigurationError> {
        let assignments: Vec<_> = assignments.iter().map(ToString::to_string).collect();
        settings(None, &assignments)
    }

    #[test]
    fn later_assignments_win_over_earlier_ones_and_over_the_file() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("leveret.toml");
        fs::write(&file, "heartbeat = 10\nproduct = \"RabbitMQ\"\n").unwrap();
        let assignments = ["heartbeat=20".to_owned(), "heartbeat=30".to_owned()];
        let settings = settings(Some(&file), &assignments).unwrap();
        assert_eq!((settings.heartbeat, settings.product.as_str()), (30, "RabbitMQ"));
    }

    #[test]
    fn an_unknown_key_names_the_nearest_or_if_none_is_near_all() {
        let unknown = |key: &str| from(&[&format!("{key}=1")]).unwrap_err();
        for (misspelled, meant) in [
            ("heartbeats", "heartbeat"),
            ("frame-max", "frame_max"),
            ("max_message", "max_message_size"),
            ("product.name", "product"),
        ] {
            assert_eq!(unknown(misspelled), ConfigurationError::Misspelled(misspelled.into(), meant));
        }
        for other in ["foo", "max_frame", "vm_memory_high_watermark", ""] {
            assert_eq!(unknown(other), ConfigurationError::Unknown(other.into()));
        }
        let text = unknown("foo").to_string();
        assert!(text.starts_with("unknown setting 'foo'; there are product, version, "), "{text}");
        assert!(KEYS.iter().all(|key| text.contains(key.name)), "{text}");
    }

    #[test]
    fn a_value_out_of_range_says_what_the_key_takes() {
        for bad in ["frame_max=4095", "channel_max=0", "heartbeat=-1", "max_message_size=536870913", "heartbeat=x"]
        {
            assert!(matches!(from(&[bad]), Err(ConfigurationError::Invalid { .. })), "{bad}");
        }
        assert_eq!(from(&["heartbeat"]), Err(ConfigurationError::NoValue("heartbeat".into())));
        assert_eq!(from(&["frame_max=4096"]).unwrap().frame_max, 4096);
        assert!(from(&["consumer_timeout=0"]).is_err());
        let timeout = |value: &str| from(&[&format!("consumer_timeout={value}")]).unwrap().consumer_timeout;
        assert_eq!((timeout("1800000"), timeout("undefined")), (Some(Duration::from_mins(30)), None));
    }
}
