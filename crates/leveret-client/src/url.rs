//! Where a broker is and who asks: `amqp://user:password@host:port/vhost?heartbeat=10`.
//!
//! RabbitMQ's URI specification. The `url` crate refuses what it allows, for example `amqp://:10000`.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use leveret_amqp::ShortString;
use leveret_amqp::limits::FRAME_BYTES_MIN;
use percent_encoding::{NON_ALPHANUMERIC, percent_decode_str, utf8_percent_encode};

use crate::limits::{CHANNELS_MAX, CONNECTION_TIMEOUT, FRAME_BYTES_MAX};

/// A parsed URL. Its `Debug` and `Display` leave out the password.
#[derive(Clone, PartialEq, Eq)]
pub struct Url {
    /// The user; `guest` when the URL names none.
    pub user: String,
    /// The password; `guest` when the URL has none.
    pub password: String,
    /// A name or address, IPv6 without brackets; `localhost` when the URL has none.
    pub host: String,
    /// The port; 5672 when the URL has none.
    pub port: u16,
    /// The virtual host: `/` when the URL has no path, and of no characters when the path is a lone slash.
    pub vhost: ShortString,
    /// `heartbeat`, in seconds. Without it the broker's proposal counts; 0 turns heartbeats off.
    pub heartbeat: Option<u16>,
    /// `connection_timeout`, in milliseconds in the URL: how long connect and handshake may take together.
    pub connection_timeout: Duration,
    /// `channel_max`: most channels to agree to.
    pub channel_max: u16,
    /// `frame_max`: most bytes of a frame to agree to.
    pub frame_max: u32,
}

/// A URL that cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum UrlError {
    /// Another scheme, or none.
    #[error("a broker URL begins with amqp://, for example amqp://guest:guest@localhost:5672/%2F")]
    Scheme,
    /// `amqps`, which needs TLS.
    #[error("amqps:// needs TLS, which this client does not have; use amqp://, or a TLS tunnel in front of it")]
    Tls,
    /// A port that is no port.
    #[error("'{0}' is not a port; ports are numbers from 1 to 65535")]
    Port(String),
    /// An IPv6 address whose bracket does not close, or is followed by something else than a port.
    #[error("'{0}' is not a host; an IPv6 address stands in brackets, for example amqp://[::1]:5672")]
    Host(String),
    /// A second slash in the path.
    #[error(
        "a virtual host is one path segment: write a slash in its name as %2F, for example amqp://localhost/%2F"
    )]
    Slash,
    /// A percent sign without two hexadecimal digits, or bytes that are not UTF-8.
    #[error("the {0} is not percent-encoded UTF-8; write a percent sign as %25")]
    Encoding(&'static str),
    /// A name longer than AMQP can say.
    #[error("the virtual host is longer than 255 bytes")]
    VhostTooLong,
    /// A NUL in user or password, where SASL PLAIN cannot have one.
    #[error("user and password must not contain a NUL character")]
    Nul,
    /// A query parameter whose value is out of range.
    #[error("{name}={value} is not {wanted}")]
    Parameter {
        /// The name of the parameter.
        name: &'static str,
        /// What the URL says.
        value: String,
        /// What would do.
        wanted: &'static str,
    },
}

impl Default for Url {
    fn default() -> Self {
        Url {
            user: "guest".to_owned(),
            password: "guest".to_owned(),
            host: "localhost".to_owned(),
            port: 5672,
            vhost: ShortString::new("/").expect("one character is short"),
            heartbeat: None,
            connection_timeout: CONNECTION_TIMEOUT,
            channel_max: CHANNELS_MAX,
            frame_max: FRAME_BYTES_MAX,
        }
    }
}

impl Url {
    /// Host and port as one would type them.
    pub fn address(&self) -> String {
        if self.host.contains(':') {
            format!("[{}]:{}", self.host, self.port)
        } else {
            format!("{}:{}", self.host, self.port)
        }
    }

    fn take_authority(&mut self, authority: &str) -> Result<(), UrlError> {
        let (user_info, host_port) = match authority.rsplit_once('@') {
            Some((user_info, host_port)) => (Some(user_info), host_port),
            None => (None, authority),
        };
        if let Some(user_info) = user_info {
            let (user, password) = match user_info.split_once(':') {
                Some((user, password)) => (user, Some(password)),
                None => (user_info, None),
            };
            self.user = decoded(user, "user")?;
            if let Some(password) = password {
                self.password = decoded(password, "password")?;
            }
            if self.user.contains('\0') || self.password.contains('\0') {
                return Err(UrlError::Nul);
            }
        }
        let (host, port) = if let Some(bracketed) = host_port.strip_prefix('[') {
            let (host, rest) = bracketed.split_once(']').ok_or_else(|| UrlError::Host(host_port.to_owned()))?;
            match rest.strip_prefix(':') {
                Some(port) => (host, port),
                None if rest.is_empty() => (host, ""),
                None => return Err(UrlError::Host(host_port.to_owned())),
            }
        } else {
            let (host, port) = host_port.split_once(':').unwrap_or((host_port, ""));
            if port.contains(':') {
                return Err(UrlError::Host(host_port.to_owned()));
            }
            (host, port)
        };
        if !host.is_empty() {
            self.host = decoded(host, "host")?;
        }
        if !port.is_empty() {
            self.port =
                port.parse().ok().filter(|&port| port != 0).ok_or_else(|| UrlError::Port(port.to_owned()))?;
        }
        Ok(())
    }

    /// Takes what it knows and leaves the rest alone, as RabbitMQ's clients do.
    fn take_parameter(&mut self, name: &str, value: &str) -> Result<(), UrlError> {
        match name {
            "heartbeat" => {
                let seconds = number("heartbeat", value, "a number of seconds from 0 to 65535")?;
                self.heartbeat = Some(seconds);
            }
            "connection_timeout" => {
                let wanted = "a number of milliseconds from 1";
                let milliseconds: u32 = number("connection_timeout", value, wanted)?;
                if milliseconds == 0 {
                    return Err(UrlError::Parameter { name: "connection_timeout", value: value.into(), wanted });
                }
                self.connection_timeout = Duration::from_millis(milliseconds.into());
            }
            "channel_max" => {
                let channels: u16 = number("channel_max", value, "a number of channels from 0 to 65535")?;
                if channels != 0 {
                    self.channel_max = channels.min(CHANNELS_MAX);
                }
            }
            "frame_max" => {
                let wanted = "a number of bytes from 4096";
                let bytes: u32 = number("frame_max", value, wanted)?;
                if bytes != 0 && bytes < FRAME_BYTES_MIN {
                    return Err(UrlError::Parameter { name: "frame_max", value: value.into(), wanted });
                }
                if bytes != 0 {
                    self.frame_max = bytes.min(FRAME_BYTES_MAX);
                }
            }
            "auth_mechanism" if !value.eq_ignore_ascii_case("plain") => {
                let wanted = "plain, the only mechanism of this client";
                return Err(UrlError::Parameter { name: "auth_mechanism", value: value.into(), wanted });
            }
            _ => {}
        }
        Ok(())
    }
}

fn number<N: FromStr>(name: &'static str, value: &str, wanted: &'static str) -> Result<N, UrlError> {
    value.parse().map_err(|_| UrlError::Parameter { name, value: value.to_owned(), wanted })
}

/// Decodes percent encoding. `percent_encoding` lets a malformed escape stand as it is; here it is refused.
fn decoded(text: &str, what: &'static str) -> Result<String, UrlError> {
    let escapes_are_whole = text
        .split('%')
        .skip(1)
        .all(|after| after.as_bytes().first_chunk::<2>().is_some_and(|hex| hex.iter().all(u8::is_ascii_hexdigit)));
    if !escapes_are_whole {
        return Err(UrlError::Encoding(what));
    }
    let decoded = percent_decode_str(text).decode_utf8().map_err(|_| UrlError::Encoding(what))?;
    Ok(decoded.into_owned())
}

impl FromStr for Url {
    type Err = UrlError;

    fn from_str(text: &str) -> Result<Self, UrlError> {
        let (scheme, rest) = text.split_once("://").ok_or(UrlError::Scheme)?;
        if scheme.eq_ignore_ascii_case("amqps") {
            return Err(UrlError::Tls);
        }
        if !scheme.eq_ignore_ascii_case("amqp") {
            return Err(UrlError::Scheme);
        }
        let (rest, query) = rest.split_once('?').unwrap_or((rest, ""));
        let (authority, path) = match rest.split_once('/') {
            Some((authority, path)) => (authority, Some(path)),
            None => (rest, None),
        };
        let mut url = Url::default();
        url.take_authority(authority)?;
        if let Some(path) = path {
            if path.contains('/') {
                return Err(UrlError::Slash);
            }
            let vhost = decoded(path, "virtual host")?;
            url.vhost = ShortString::new(&vhost).map_err(|_| UrlError::VhostTooLong)?;
        }
        for parameter in query.split('&').filter(|parameter| !parameter.is_empty()) {
            let (name, value) = parameter.split_once('=').unwrap_or((parameter, ""));
            url.take_parameter(&decoded(name, "query")?, &decoded(value, "query")?)?;
        }
        Ok(url)
    }
}

impl fmt::Display for Url {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let user = utf8_percent_encode(&self.user, NON_ALPHANUMERIC);
        let vhost = utf8_percent_encode(self.vhost.as_str(), NON_ALPHANUMERIC);
        write!(f, "amqp://{user}@{}/{vhost}", self.address())
    }
}

impl fmt::Debug for Url {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Url({self})")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(text: &str) -> Url {
        text.parse().unwrap_or_else(|error| panic!("{text}: {error}"))
    }

    /// RabbitMQ URI specification, appendix A, with our defaults for what is absent.
    #[test]
    fn the_examples_of_the_specification_mean_what_it_says() {
        let table = [
            ("amqp://user:pass@host:10000/vhost", ("user", "pass", "host", 10000, "vhost")),
            ("amqp://user%61:%61pass@ho%61st:10000/v%2fhost", ("usera", "apass", "hoast", 10000, "v/host")),
            ("amqp://", ("guest", "guest", "localhost", 5672, "/")),
            ("amqp://:@/", ("", "", "localhost", 5672, "")),
            ("amqp://user@", ("user", "guest", "localhost", 5672, "/")),
            ("amqp://user:pass@", ("user", "pass", "localhost", 5672, "/")),
            ("amqp://host", ("guest", "guest", "host", 5672, "/")),
            ("amqp://:10000", ("guest", "guest", "localhost", 10000, "/")),
            ("amqp:///vhost", ("guest", "guest", "localhost", 5672, "vhost")),
            ("amqp://host/", ("guest", "guest", "host", 5672, "")),
            ("amqp://host/%2f", ("guest", "guest", "host", 5672, "/")),
            ("amqp://[::1]", ("guest", "guest", "::1", 5672, "/")),
            ("AMQP://[::1]:1/%2F", ("guest", "guest", "::1", 1, "/")),
            ("amqp://user:p@ss:word@host", ("user", "p@ss:word", "host", 5672, "/")),
            ("amqp://h?unknown=1", ("guest", "guest", "h", 5672, "/")),
        ];
        for (text, (user, password, host, port, vhost)) in table {
            let url = parsed(text);
            assert_eq!(
                (&*url.user, &*url.password, &*url.host, url.port, url.vhost.as_str()),
                (user, password, host, port, vhost),
                "{text}"
            );
        }
    }

    #[test]
    fn query_parameters_are_taken_in_the_units_of_rabbitmq() {
        let url = parsed(
            "amqp://h/v?heartbeat=5&connection_timeout=10000&channel_max=7&frame_max=8192&auth_mechanism=plain",
        );
        assert_eq!(url.heartbeat, Some(5));
        assert_eq!(url.connection_timeout, Duration::from_secs(10));
        assert_eq!((url.channel_max, url.frame_max), (7, 8192));
        assert_eq!(parsed("amqp://h?channel_max=0&frame_max=0&").frame_max, FRAME_BYTES_MAX);
    }

    #[test]
    fn what_cannot_be_used_is_refused_with_a_reason() {
        let table = [
            ("localhost:5672", UrlError::Scheme),
            ("http://host", UrlError::Scheme),
            ("amqps://host", UrlError::Tls),
            ("amqp://host:0", UrlError::Port("0".into())),
            ("amqp://host:x", UrlError::Port("x".into())),
            ("amqp://host:65536", UrlError::Port("65536".into())),
            ("amqp://::1", UrlError::Host("::1".into())),
            ("amqp://[::1", UrlError::Host("[::1".into())),
            ("amqp://[::1]x", UrlError::Host("[::1]x".into())),
            ("amqp://host//", UrlError::Slash),
            ("amqp://host/a%", UrlError::Encoding("virtual host")),
            ("amqp://host/%ff", UrlError::Encoding("virtual host")),
            ("amqp://us%zz@host", UrlError::Encoding("user")),
            ("amqp://us%00er@host", UrlError::Nul),
        ];
        for (text, error) in table {
            assert_eq!(text.parse::<Url>(), Err(error), "{text}");
        }
        assert_eq!(format!("amqp://h/{}", "v".repeat(256)).parse::<Url>(), Err(UrlError::VhostTooLong));
        for query in
            ["heartbeat=-1", "heartbeat=", "connection_timeout=0", "frame_max=100", "auth_mechanism=external"]
        {
            let refused = format!("amqp://h?{query}").parse::<Url>();
            assert!(matches!(refused, Err(UrlError::Parameter { .. })), "{query}: {refused:?}");
        }
    }

    #[test]
    fn the_password_is_never_shown() {
        let url = parsed("amqp://me:secret@[::1]:1/a%2Fb");
        assert_eq!(url.to_string(), "amqp://me@[::1]:1/a%2Fb");
        assert!(!format!("{url:?}").contains("secret"));
    }
}
