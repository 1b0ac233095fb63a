//! From the protocol header to `connection.open`. AMQP 0-9-1 §2.2.4, and RabbitMQ's capabilities.

use std::time::Duration;

use leveret_amqp::frame;
use leveret_amqp::limits::FRAME_BYTES_MIN;
use leveret_amqp::{FieldTable, Method, PROTOCOL_HEADER, Table, Value};

use crate::connection::reply::{ClientError, Exception, TuneBound};
use crate::connection::{
    CONNECTION_UPDATE_SECRET, Capabilities, Connection, Credentials, Heartbeat, State, capability,
};
use crate::moment::Moment;
use crate::names::{Logged, UserName};
use crate::node::LoginError;
use crate::settings::Settings;

/// Offered in this order, separated by a space.
const MECHANISMS: &[u8] = b"PLAIN AMQPLAIN";

impl Connection {
    /// Takes the protocol header off the front of the input; false if it is not there, yet or at all.
    pub(super) fn take_protocol_header(&mut self, rest: &mut &[u8], out: &mut Vec<u8>) -> bool {
        let seen = rest.len().min(PROTOCOL_HEADER.len());
        // AMQP 1 1 0 9 is how some old clients spell 0-9-1; RabbitMQ takes it, and so do we.
        let is_prefix = |header: &[u8; 8]| rest[..seen] == header[..seen];
        if !is_prefix(&PROTOCOL_HEADER) && !is_prefix(b"AMQP\x01\x01\x00\x09") {
            self.fault = Some(format!("{}, expected the protocol header of AMQP 0-9-1", guess_protocol(rest)));
            out.extend_from_slice(&PROTOCOL_HEADER);
            self.state = State::Closed;
            *rest = &[];
            return false;
        }
        if seen < PROTOCOL_HEADER.len() {
            return false;
        }
        *rest = &rest[PROTOCOL_HEADER.len()..];
        self.state = State::AwaitingStartOk;
        let properties = server_properties(&self.settings);
        let start = Method::ConnectionStart {
            version_major: 0,
            version_minor: 9,
            server_properties: properties.as_table(),
            mechanisms: MECHANISMS,
            locales: b"en_US",
        };
        frame::write_method(out, 0, &start);
        true
    }

    /// A method on channel 0. Each state has a closed list of methods.
    pub(super) fn handle_connection_method(
        &mut self,
        now: Moment,
        method: Method<'_>,
        out: &mut Vec<u8>,
    ) -> Result<(), Exception> {
        let during = |error: ClientError| Exception::from(&error).during(method.ids());
        match (&self.state, method) {
            (State::AwaitingStartOk, Method::ConnectionStartOk { client_properties, mechanism, response, .. }) => {
                self.learn_client(client_properties);
                self.mechanism = mechanism.into();
                match credentials(mechanism.as_str(), response) {
                    Ok(credentials) => self.state = State::LoggingIn(credentials),
                    Err((error, log)) => self.refuse_login(now, &error, log, out),
                }
                Ok(())
            }
            (State::AwaitingTuneOk(user), Method::ConnectionTuneOk { channel_max, frame_max, heartbeat }) => {
                let user = user.clone();
                self.tune(now, channel_max, frame_max, heartbeat).map_err(during)?;
                self.state = State::AwaitingOpen(user);
                Ok(())
            }
            (State::AwaitingOpen(user), Method::ConnectionOpen { virtual_host, .. }) => {
                self.state = State::Opening(virtual_host.into(), user.clone());
                Ok(())
            }
            (State::Open | State::AwaitingCloseOk, method) => self.handle_open_method(now, &method, out),
            // A client may give up before the connection is open.
            (State::AwaitingTuneOk(_) | State::AwaitingOpen(_), Method::ConnectionClose { .. }) => {
                frame::write_method(out, 0, &Method::ConnectionCloseOk {});
                self.state = State::Closed;
                Ok(())
            }
            (state, _) => Err(during(ClientError::UnexpectedMethod(state.phase().as_str()))),
        }
    }

    fn learn_client(&mut self, properties: Table<'_>) {
        self.capabilities = Capabilities {
            consumer_cancel_notify: capability(properties, "consumer_cancel_notify"),
            authentication_failure_close: capability(properties, "authentication_failure_close"),
            connection_blocked: capability(properties, "connection.blocked"),
        };
        self.client_properties = properties.into();
        let name = properties.get("connection_name").and_then(Value::as_str);
        self.client_name = name.map(|name| Logged(name).to_string());
    }

    /// The driver knows who it is, or that it is not who it says.
    pub fn handle_login(&mut self, now: Moment, checked: Result<UserName, LoginError>, out: &mut Vec<u8>) {
        match (&self.state, checked) {
            (State::LoggingIn(_), Ok(user)) => {
                self.state = State::AwaitingTuneOk(user);
                let Settings { channel_max, frame_max, heartbeat, .. } = *self.settings;
                frame::write_method(out, 0, &Method::ConnectionTune { channel_max, frame_max, heartbeat });
            }
            (&State::LoggingIn(Credentials { mechanism, .. }), Err(error)) => {
                let log = format!("login refused: {error}");
                self.refuse_login(now, &ClientError::Login(mechanism), log, out);
            }
            (State::Open, checked) => {
                let Some(credentials) = self.renewing.take() else { return };
                if checked.is_ok() {
                    frame::write_method(out, 0, &Method::ConnectionUpdateSecretOk {});
                } else {
                    // RabbitMQ: a refusal is 530.
                    let exception = Exception::from(&ClientError::SecretRefused(credentials.user));
                    self.fail(now, exception.during(CONNECTION_UPDATE_SECRET), out);
                }
            }
            // It has been closed meanwhile.
            _ => {}
        }
    }

    fn refuse_login(&mut self, now: Moment, error: &ClientError, log: String, out: &mut Vec<u8>) {
        self.fault = Some(log);
        if self.capabilities.authentication_failure_close {
            // RabbitMQ names no method here.
            self.say_close(now, &Exception::from(error), out);
        } else {
            self.state = State::Closed;
        }
    }

    /// RabbitMQ: `validate_negotiated_integer_value`; 0 means the server's limit here, and frames of 4096 are fine.
    fn tune(&mut self, now: Moment, channel_max: u16, frame_max: u32, heartbeat: u16) -> Result<(), ClientError> {
        let field = "frame_max";
        let value = frame_max;
        self.frame_max = match frame_max {
            0 => self.settings.frame_max,
            1..FRAME_BYTES_MIN => {
                let bound = TuneBound::Least(FRAME_BYTES_MIN);
                return Err(ClientError::Tune { field, value, bound });
            }
            _ if frame_max > self.settings.frame_max => {
                let bound = TuneBound::Most(self.settings.frame_max);
                return Err(ClientError::Tune { field, value, bound });
            }
            _ => frame_max,
        };
        let limit = self.settings.channel_max;
        if channel_max > limit {
            let (value, bound) = (channel_max.into(), TuneBound::Most(limit.into()));
            return Err(ClientError::Tune { field: "channel_max", value, bound });
        }
        self.channels.channel_max = if channel_max == 0 { limit } else { channel_max };
        self.channels.max_message_size = self.settings.max_message_size;
        self.heartbeat = (heartbeat > 0).then(|| Heartbeat {
            interval: Duration::from_secs(heartbeat.into()),
            last_received: now.monotonic,
            last_sent: now.monotonic,
        });
        Ok(())
    }
}

/// Who the client says it is; otherwise what it may know of why not, and what the log says.
fn credentials(mechanism: &str, response: &[u8]) -> Result<Credentials, (ClientError, String)> {
    let (mechanism, credentials) = match mechanism {
        "PLAIN" => ("PLAIN", plain(response)),
        "AMQPLAIN" => ("AMQPLAIN", amqplain(response)),
        other => {
            let error = ClientError::UnknownMechanism(other.into());
            return Err((error, format!("unknown authentication mechanism '{other}'")));
        }
    };
    let refused = |error: LoginError| (ClientError::Login(mechanism), format!("login refused: {error}"));
    let (user, password) = credentials.map_err(refused)?;
    Ok(Credentials { mechanism, user: user.into(), password: password.into() })
}

/// RFC 4616: an empty authorization identity, the user and the password, each after the other's NUL.
fn plain(response: &[u8]) -> Result<(&str, &[u8]), LoginError> {
    let malformed = || LoginError::MalformedResponse("PLAIN");
    let mut parts = response.splitn(3, |&byte| byte == 0);
    match (parts.next(), parts.next(), parts.next()) {
        (Some([]), Some(user), Some(password)) => {
            Ok((std::str::from_utf8(user).map_err(|_| malformed())?, password))
        }
        _ => Err(malformed()),
    }
}

/// A field table without its length: `LOGIN` and `PASSWORD`. RabbitMQ: `rabbit_auth_mechanism_amqplain`.
fn amqplain(response: &[u8]) -> Result<(&str, &[u8]), LoginError> {
    let malformed = || LoginError::MalformedResponse("AMQPLAIN");
    let table = Table::check(response).map_err(|_| malformed())?;
    let user = table.get("LOGIN").and_then(Value::as_str).ok_or_else(malformed)?;
    match table.get("PASSWORD") {
        Some(Value::LongStr(password)) => Ok((user, password)),
        _ => Err(malformed()),
    }
}

/// RabbitMQ: `rabbit_reader:server_properties/1`. A capability stands here only if it is real.
fn server_properties(settings: &Settings) -> FieldTable {
    FieldTable::build(|table| {
        table.table("capabilities", |table| {
            for capability in [
                "publisher_confirms",
                "exchange_exchange_bindings",
                "basic.nack",
                "consumer_cancel_notify",
                "connection.blocked",
                "consumer_priorities",
                "authentication_failure_close",
                "per_consumer_qos",
                "direct_reply_to",
            ] {
                table.field(capability, Value::Bool(true));
            }
        });
        for (name, text) in [
            ("cluster_name", settings.cluster_name.as_str()),
            ("copyright", "The Leveret authors"),
            ("information", "Licensed under MIT or Apache-2.0"),
            ("platform", "Rust"),
            ("product", settings.product.as_str()),
            ("version", settings.version.as_str()),
        ] {
            table.field(name, Value::LongStr(text.as_bytes()));
        }
    })
}

/// What somebody probably meant who does not speak AMQP 0-9-1, for the log.
fn guess_protocol(input: &[u8]) -> String {
    match input {
        [0x16, 0x03, ..] => "a TLS client hello arrived on the plain port".into(),
        [b'G', b'E', b'T', b' ', ..] | [b'P', b'O', b'S', b'T', ..] | [b'H', b'E', b'A', b'D', ..] => {
            "an HTTP request arrived on the AMQP port".into()
        }
        [b'A', b'M', b'Q', b'P', version @ ..] => {
            format!("AMQP version {:?} is not supported", &version[..version.len().min(4)])
        }
        _ => "these bytes are not AMQP".into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_plain_response_has_an_empty_identity_a_user_and_a_password() {
        assert_eq!(plain(b"\0guest\0gu\0est"), Ok(("guest", &b"gu\0est"[..])));
        for malformed in [&b""[..], b"\0", b"guest\0guest", b"x\0guest\0guest", b"\0\xFF\0p"] {
            assert_eq!(plain(malformed), Err(LoginError::MalformedResponse("PLAIN")), "{malformed:?}");
        }
    }
}
