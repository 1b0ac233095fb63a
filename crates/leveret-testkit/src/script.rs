//! Running a script line by line against something that speaks AMQP.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::time::Duration;

use leveret_amqp::frame::{HEARTBEAT, write_frame};
use leveret_amqp::{ContentHeader, FrameKind, PROTOCOL_HEADER, ShortString};
use leveret_broker::change::NodeChange;
use leveret_broker::names::{PolicyName, VhostName};
use leveret_broker::node::password::PasswordHash;
use leveret_broker::node::{DefaultQueueType, UserLimits, VhostLimits, VhostMetadata};
use leveret_broker::vhost::policy::{ApplyTo, PolicyKind, PolicySource};
pub use leveret_broker::vhost::room::Room;

use crate::text::{
    Argument, Text, build_table, decode_method, encode_header, encode_method, has_content, method_spec,
    parse_arguments, property_texts, show,
};

/// The seconds of the wall clock at which every script begins, as `ts:1790000000`. Some time in 2026.
pub const BEGINNING: i64 = 1_790_000_000;

/// What a script talks to: the core in this thread, or a broker behind a socket.
pub trait Wire {
    /// Opens a connection that the script calls by this name. Nothing is sent.
    fn connect(&mut self, name: &str);
    /// Sends bytes.
    fn send(&mut self, name: &str, bytes: &[u8]);
    /// Closes the client's end of the socket.
    fn end(&mut self, name: &str);
    /// The next thing the client hears.
    fn hear(&mut self, name: &str) -> Heard;
    /// The same where the script expects nothing: a socket need not be listened to for as long.
    fn overhear(&mut self, name: &str) -> Heard {
        self.hear(name)
    }
    /// Lets time pass.
    fn wait(&mut self, time: Duration);
    /// Whether a time that the broker tells is that of the script, in seconds.
    fn is_time(&self, expected: i64, told: i64) -> bool {
        expected == told
    }
    /// Lets the journal fall behind or catch up.
    fn journal(&mut self, pace: JournalPace);
    /// The node has room for messages, or has not.
    fn room(&mut self, room: Room);
    /// The virtual host says in its journal what is true.
    fn checkpoint(&mut self, extent: Extent);
    /// An administrator changes users, or the virtual host.
    ///
    /// # Errors
    /// Why that cannot be.
    fn node(&mut self, change: NodeChange) -> Result<(), String>;
    /// An administrator sets or clears a policy.
    ///
    /// # Errors
    /// Why that cannot be.
    fn policy(&mut self, order: PolicyOrder) -> Result<(), String>;
    /// Ends the broker and starts it again with what its journal kept.
    fn restart(&mut self, after: Stop);
}

/// How much of a checkpoint is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Extent {
    /// The next small step of it.
    Step,
    /// All that is left of it.
    Whole,
}

/// What an administrator asks for.
#[derive(Clone, Debug)]
pub enum PolicyOrder {
    /// That there be such a policy.
    Set(PolicySource),
    /// That there be none of this kind and name.
    Clear(PolicyKind, PolicyName),
}

/// How a broker ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stop {
    /// As on SIGTERM.
    InGoodOrder,
    /// By a power cut: only what was durable is kept.
    Crash,
}

/// Whether what was journaled becomes durable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum JournalPace {
    /// Nothing more, for the time being.
    Stops,
    /// All of it, at once.
    KeepsUp,
}

/// Something a client hears.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Heard {
    /// There is nothing, though there may be later.
    Nothing,
    /// The broker has closed the socket.
    End,
    /// The eight bytes that name another protocol.
    ProtocolHeader(Vec<u8>),
    /// A frame: kind, channel, payload.
    Frame(FrameKind, u16, Vec<u8>),
}

/// What a server says, put together from its frames.
#[derive(Debug)]
struct Said {
    channel: u16,
    name: &'static str,
    arguments: Vec<(String, Text)>,
    body: Option<Vec<u8>>,
}

struct Run<'w> {
    wire: &'w mut dyn Wire,
    /// Open channels by connection; channel 0 is the connection itself.
    open: BTreeMap<String, Vec<u16>>,
    variables: BTreeMap<String, Text>,
    transcript: String,
    /// What clients will send together with their next line.
    held: BTreeMap<String, Vec<u8>>,
}

/// Frames of 128 KiB, as `connection.tune` proposes.
const FRAME_MAX: usize = 131_072;

/// Runs a script.
///
/// # Errors
/// The line that failed, why, and all that was said before.
pub fn run_script(wire: &mut dyn Wire, script: &str) -> Result<(), String> {
    let mut run = Run {
        wire,
        open: BTreeMap::new(),
        variables: BTreeMap::new(),
        transcript: String::new(),
        held: BTreeMap::new(),
    };
    run.lines(script)?;
    for name in run.open.keys().cloned().collect::<Vec<_>>() {
        let heard = run.wire.overhear(&name);
        let more = match run.put_together(&name, heard)? {
            Next::Nothing | Next::End => continue,
            Next::ProtocolHeader => "the protocol header".to_owned(),
            Next::Heartbeat => "a heartbeat".to_owned(),
            Next::Said(said) => said.show(),
        };
        return Err(format!("after the last line, connection {name} hears {more}\n\n{}", run.transcript));
    }
    Ok(())
}

/// Goes on where earlier scripts ended: connections `a` and `b` are open, with channel 1. What is heard after the
/// last line is left for the next script.
///
/// # Errors
/// As [`run_script`].
pub fn continue_script(wire: &mut dyn Wire, script: &str) -> Result<(), String> {
    continue_script_of(wire, &["a", "b"], script)
}

/// The same with these connections, and no others, open.
///
/// # Errors
/// As [`run_script`].
pub fn continue_script_of(wire: &mut dyn Wire, connections: &[&str], script: &str) -> Result<(), String> {
    let open = connections.iter().map(|&name| (name.to_owned(), vec![0, 1])).collect();
    let mut run = Run { wire, open, variables: BTreeMap::new(), transcript: String::new(), held: BTreeMap::new() };
    run.lines(script)
}

/// How long the lines `wait ...` of a script let time pass.
pub fn waits(script: &str) -> impl Iterator<Item = Duration> {
    script.lines().filter_map(|line| parse_time(line.trim().strip_prefix("wait ")?).ok())
}

impl Run<'_> {
    fn lines(&mut self, script: &str) -> Result<(), String> {
        for (number, line) in script.lines().enumerate() {
            let line = line.trim();
            if line.is_empty() || line.starts_with("--") {
                continue;
            }
            self.line(line)
                .map_err(|error| format!("line {}: {line}\n{error}\n\nso far:\n{}", number + 1, self.transcript))?;
            let _ = writeln!(self.transcript, "  {line}");
        }
        Ok(())
    }

    fn line(&mut self, line: &str) -> Result<(), String> {
        if let Some(time) = line.strip_prefix("wait ") {
            self.wire.wait(parse_time(time)?);
            return Ok(());
        }
        if let Some(change) = self.node_change(line)? {
            return self.wire.node(change);
        }
        if let Some(order) = self.policy_order(line)? {
            return self.wire.policy(order);
        }
        match line {
            "journal stops" => {
                self.wire.journal(JournalPace::Stops);
                return Ok(());
            }
            "restart" | "crash" => {
                self.wire.restart(if line == "crash" { Stop::Crash } else { Stop::InGoodOrder });
                self.open.clear();
                self.held.clear();
                return Ok(());
            }
            "checkpoint" | "checkpoint step" => {
                self.wire.checkpoint(if line == "checkpoint" { Extent::Whole } else { Extent::Step });
                return Ok(());
            }
            "journal keeps up" => {
                self.wire.journal(JournalPace::KeepsUp);
                return Ok(());
            }
            "short of memory" => {
                self.wire.room(Room::ShortOf { memory: true, disk: false });
                return Ok(());
            }
            "short of memory and disk" => {
                self.wire.room(Room::ShortOf { memory: true, disk: true });
                return Ok(());
            }
            "short of disk" => {
                self.wire.room(Room::ShortOf { memory: false, disk: true });
                return Ok(());
            }
            "room soon" => {
                self.wire.room(Room::Soon);
                return Ok(());
            }
            "room again" => {
                self.wire.room(Room::Enough);
                return Ok(());
            }
            _ => {}
        }
        let (speaker, said) = line.split_once(':').ok_or("expected 'C: ...' or 'S: ...' or 'wait ...'")?;
        let (who, place) = speaker.split_at_checked(1).ok_or("nobody speaks")?;
        let (is_held, place) = place.strip_prefix('+').map_or((false, place), |place| (true, place));
        let (connection, channel) = place.split_once('/').unwrap_or((place, "1"));
        let connection = if connection.is_empty() { "a" } else { connection };
        let channel: u16 = channel.parse().map_err(|_| format!("'{channel}' is no channel"))?;
        let said = said.trim();
        let (what, rest) = said.split_once(' ').unwrap_or((said, ""));
        match who {
            "C" => {
                let bytes = self.client(connection, channel, what, rest)?;
                let held = self.held.entry(connection.into()).or_default();
                held.extend(bytes);
                if !is_held {
                    let bytes = std::mem::take(held);
                    self.wire.send(connection, &bytes);
                }
                Ok(())
            }
            "S" => self.server(connection, channel, what, rest),
            other => Err(format!("'{other}' is neither C nor S")),
        }
    }

    /// What an administrator changes with a line, if it is one of theirs.
    fn node_change(&self, line: &str) -> Result<Option<NodeChange>, String> {
        const ORDERS: [&str; 8] = [
            "set user limits",
            "set user",
            "delete user",
            "set permissions",
            "clear permissions",
            "set topic permissions",
            "clear topic permissions",
            "set vhost",
        ];
        let said =
            |order: &&str| line.strip_prefix(*order).is_some_and(|rest| rest.is_empty() || rest.starts_with(' '));
        let Some(order) = ORDERS.into_iter().find(said) else { return Ok(None) };
        let arguments = parse_arguments(&line[order.len()..])?;
        let short = |text: &str| ShortString::new(text).map_err(|error| error.to_string());
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        let name = match arguments.first() {
            Some((None, Text::Bytes(name))) => short(&text(name))?,
            _ => ShortString::default(),
        };
        let given = self.named(&arguments);
        let word = |key: &str| match given.get(key) {
            Some(Text::Bytes(bytes)) => Some(text(bytes)),
            _ => None,
        };
        let number = |key: &str| match given.get(key) {
            Some(Text::Number(number)) => Some(number.cast_unsigned()),
            _ => None,
        };
        let pattern = |key: &str| word(key).ok_or_else(|| format!("which {key}?"));
        let vhost = VhostName::from(short("/")?);
        let user = name.clone().into();
        Ok(Some(match order {
            "set user" => {
                let password =
                    word("password").map(|password| PasswordHash::new(password.as_bytes(), [1, 2, 3, 4]));
                let tags = word("tags").unwrap_or_default();
                let tags = tags.split_whitespace().map(str::to_owned).collect();
                NodeChange::UserSet { name: user, password, tags }
            }
            "set user limits" => {
                let (max_connections, max_channels) = (number("max-connections"), number("max-channels"));
                NodeChange::UserLimited { name: user, limits: UserLimits { max_connections, max_channels } }
            }
            "delete user" => NodeChange::UserDeleted { name: user },
            "set permissions" => {
                let (configure, write, read) = (pattern("configure")?, pattern("write")?, pattern("read")?);
                NodeChange::PermissionsSet { user, vhost, configure, write, read }
            }
            "clear permissions" => NodeChange::PermissionsCleared { user, vhost },
            "set topic permissions" => {
                let exchange = short(&pattern("exchange")?)?.into();
                let (write, read) = (pattern("write")?, pattern("read")?);
                NodeChange::TopicPermissionsSet { user, vhost, exchange, write, read }
            }
            "clear topic permissions" => {
                let exchange = word("exchange").map(|exchange| short(&exchange)).transpose()?;
                NodeChange::TopicPermissionsCleared { user, vhost, exchange: exchange.map(Into::into) }
            }
            _ => {
                if let Some(kind) = word("default-queue-type") {
                    let default_queue_type = DefaultQueueType::parse(&kind).ok_or("an unknown type of queue")?;
                    let metadata = VhostMetadata { default_queue_type, ..VhostMetadata::default() };
                    NodeChange::VhostDescribed { name: vhost, metadata }
                } else {
                    let (max_connections, max_queues) = (number("max-connections"), number("max-queues"));
                    NodeChange::VhostLimited { name: vhost, limits: VhostLimits { max_connections, max_queues } }
                }
            }
        }))
    }

    /// What an administrator asks for with a line, if that is a policy.
    fn policy_order(&self, line: &str) -> Result<Option<PolicyOrder>, String> {
        let order = |begin| Some(line.strip_prefix(begin)?.trim_start());
        let (kind, is_set, rest) = if let Some(rest) = order("set policy ") {
            (PolicyKind::Policy, true, rest)
        } else if let Some(rest) = order("set operator policy ") {
            (PolicyKind::OperatorPolicy, true, rest)
        } else if let Some(rest) = order("clear policy ") {
            (PolicyKind::Policy, false, rest)
        } else if let Some(rest) = order("clear operator policy ") {
            (PolicyKind::OperatorPolicy, false, rest)
        } else {
            return Ok(None);
        };
        let arguments = parse_arguments(rest)?;
        let Some((None, Text::Bytes(name))) = arguments.first() else { return Err("which policy?".into()) };
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        let name = ShortString::new(&text(name)).map_err(|error| error.to_string())?.into();
        if !is_set {
            return Ok(Some(PolicyOrder::Clear(kind, name)));
        }
        let given = self.named(&arguments);
        let word = |key: &str| match given.get(key) {
            Some(Text::Bytes(bytes)) => Some(text(bytes)),
            _ => None,
        };
        let apply_to = word("apply-to").map_or(Ok(ApplyTo::default()), |word| ApplyTo::parse(&word));
        let source = PolicySource {
            kind,
            name,
            pattern: word("pattern").ok_or("a policy has a pattern")?,
            apply_to: apply_to.map_err(|error| error.to_string())?,
            priority: if let Some(&Text::Number(priority)) = given.get("priority") { priority } else { 0 },
            definition: build_table(given.get("definition"))?,
        };
        Ok(Some(PolicyOrder::Set(source)))
    }

    /// What a client sends with a line.
    fn client(&mut self, connection: &str, channel: u16, what: &str, rest: &str) -> Result<Vec<u8>, String> {
        self.open_as_needed(connection, channel, what)?;
        let mut bytes = Vec::new();
        match what {
            "protocol-header" => bytes.extend(PROTOCOL_HEADER),
            "heartbeat" => bytes.extend(HEARTBEAT),
            "end" => {
                self.wire.end(connection);
                return Ok(bytes);
            }
            "raw" => bytes = parse_raw(rest)?,
            "content-header" | "content-body" => {
                let arguments = parse_arguments(rest)?;
                let payload = match (what, arguments.first()) {
                    ("content-header", Some((None, Text::Number(size)))) => {
                        encode_header(&self.named(&arguments[1..]), size.cast_unsigned())?
                    }
                    ("content-body", Some((None, Text::Bytes(body)))) => body.clone(),
                    _ => return Err("content-header takes a size, content-body a body".into()),
                };
                let kind = if what == "content-header" { FrameKind::Header } else { FrameKind::Body };
                write_frame(&mut bytes, kind, channel, |out| out.extend(payload));
            }
            _ => {
                let spec = method_spec(what).ok_or_else(|| format!("no method '{what}'"))?;
                let arguments = parse_arguments(rest)?;
                if let Some((None, value)) = arguments.iter().find(|(name, _)| name.is_none()) {
                    return Err(format!("say which argument {} is", show(value)));
                }
                let given = self.named(&arguments);
                check_names(spec, &given)?;
                let payload = encode_method(spec, &given)?;
                write_frame(&mut bytes, FrameKind::Method, channel_of(spec.class, channel), |out| {
                    out.extend(payload);
                });
                if let Some(body) = given.get("body") {
                    let Text::Bytes(body) = body else { return Err("a body is a string".into()) };
                    let header = encode_header(&given, body.len() as u64)?;
                    write_frame(&mut bytes, FrameKind::Header, channel, |out| out.extend(header));
                    for piece in body.chunks(FRAME_MAX - 8) {
                        write_frame(&mut bytes, FrameKind::Body, channel, |out| out.extend_from_slice(piece));
                    }
                }
            }
        }
        Ok(bytes)
    }

    /// Sends a line at once.
    fn send(&mut self, connection: &str, channel: u16, what: &str, rest: &str) -> Result<(), String> {
        let bytes = self.client(connection, channel, what, rest)?;
        self.wire.send(connection, &bytes);
        Ok(())
    }

    /// Arguments by name, variables replaced by what they stand for.
    fn named(&self, arguments: &[Argument]) -> BTreeMap<String, Text> {
        arguments.iter().filter_map(|(name, text)| Some((name.clone()?, self.value(text)))).collect()
    }

    fn value(&self, text: &Text) -> Text {
        match text {
            Text::Variable(name) => self.variables.get(name).unwrap_or(text).clone(),
            Text::Array(items) => Text::Array(items.iter().map(|item| self.value(item)).collect()),
            Text::Table(fields) => {
                Text::Table(fields.iter().map(|(name, field)| (name.clone(), self.value(field))).collect())
            }
            other => other.clone(),
        }
    }

    /// Connects, logs in and opens a channel, unless this line or an earlier one does.
    fn open_as_needed(&mut self, connection: &str, channel: u16, what: &str) -> Result<(), String> {
        if !self.open.contains_key(connection) {
            self.wire.connect(connection);
            self.open.insert(connection.into(), vec![0]);
            if matches!(what, "protocol-header" | "raw" | "end") {
                // The script shakes hands by itself, so it opens channels by itself, too.
                self.open.insert(connection.into(), (0..=u16::MAX).collect());
                return Ok(());
            }
            for line in [
                "protocol-header",
                "connection.start-ok mechanism='PLAIN' response='\\0guest\\0guest' locale='en_US' \
                 client-properties={capabilities={consumer_cancel_notify=true connection.blocked=true authentication_failure_close=true}}",
                "connection.tune-ok channel-max=2047 frame-max=131072 heartbeat=0",
                "connection.open virtual-host='/'",
            ] {
                let (what, rest) = line.split_once(' ').unwrap_or((line, ""));
                self.send(connection, 0, what, rest)?;
            }
            for line in ["connection.start", "connection.tune", "connection.open-ok"] {
                self.server(connection, 0, line, "")?;
            }
        }
        let is_new = self.open.get_mut(connection).is_some_and(|open| {
            let is_new = !open.contains(&channel);
            if is_new {
                open.push(channel);
            }
            is_new
        });
        if is_new && !matches!(what, "channel.open" | "raw") && !what.starts_with("connection.") && what != "end" {
            self.send(connection, channel, "channel.open", "")?;
            self.server(connection, channel, "channel.open-ok", "")?;
        }
        Ok(())
    }

    fn server(&mut self, connection: &str, channel: u16, what: &str, rest: &str) -> Result<(), String> {
        let expected = parse_arguments(rest)?;
        let is = |heard: &str| if heard == what { Ok(()) } else { Err(format!("but heard: {heard}")) };
        let heard = if what == "nothing" { self.wire.overhear(connection) } else { self.wire.hear(connection) };
        let said = match self.put_together(connection, heard)? {
            Next::Nothing => return is("nothing"),
            Next::End => return is("end"),
            Next::ProtocolHeader => return is("protocol-header"),
            Next::Heartbeat => return is("heartbeat"),
            Next::Said(said) => said,
        };
        let spec = method_spec(what).ok_or_else(|| format!("'{what}' is no method; heard: {}", said.show()))?;
        if (said.name, said.channel) != (what, channel_of(spec.class, channel)) {
            return Err(format!("but heard: {}", said.show()));
        }
        self.compare(&said, &expected).map_err(|error| format!("{error}\nheard: {}", said.show()))
    }

    fn compare(&mut self, said: &Said, expected: &[Argument]) -> Result<(), String> {
        let is_flag = |value: &Text| matches!(value, Text::Flag(_));
        let positional: Vec<&str> =
            said.arguments.iter().filter(|(_, value)| !is_flag(value)).map(|(name, _)| name.as_str()).collect();
        let mut mentioned = Vec::new();
        let mut next = positional.iter();
        for (name, value) in expected {
            let name = match name {
                Some(name) => name.as_str(),
                None => next.next().ok_or("more values than arguments")?,
            };
            mentioned.push(name);
            let actual = if name == "body" {
                said.body.clone().map(Text::Bytes)
            } else {
                said.arguments.iter().find(|(key, _)| key == name).map(|(_, value)| value.clone())
            };
            // Of a property that is absent, a script may say so.
            let actual = actual.unwrap_or(Text::Void);
            self.compare_value(name, value, &actual)?;
        }
        let unmentioned = |name: &String| !mentioned.contains(&name.as_str());
        match said.arguments.iter().find(|(name, value)| *value == Text::Flag(true) && unmentioned(name)) {
            Some((name, _)) => Err(format!("flag '{name}' is set")),
            None => Ok(()),
        }
    }

    fn compare_value(&mut self, name: &str, expected: &Text, actual: &Text) -> Result<(), String> {
        if let Text::Variable(variable) = expected {
            let known = self.variables.entry(variable.clone()).or_insert_with(|| actual.clone());
            return if known == actual { Ok(()) } else { Err(format!("{name}: {variable} is {}", show(known))) };
        }
        if self.is_alike(expected, actual) {
            Ok(())
        } else {
            Err(format!("{name}: expected {}, not {}", show(expected), show(actual)))
        }
    }

    /// Whether two values are the same but for the times in them, which the wire compares.
    fn is_alike(&self, expected: &Text, actual: &Text) -> bool {
        match (expected, actual) {
            (Text::Typed(kind, expected), Text::Typed(as_kind, actual)) if kind == "ts" && as_kind == "ts" => {
                match (&**expected, &**actual) {
                    (Text::Number(expected), Text::Number(actual)) => self.wire.is_time(*expected, *actual),
                    _ => false,
                }
            }
            (Text::Table(expected), Text::Table(actual)) => {
                let is_field = |((name, expected), (as_name, actual)): (&(String, Text), &(String, Text))| {
                    name == as_name && self.is_alike(expected, actual)
                };
                expected.len() == actual.len() && expected.iter().zip(actual).all(is_field)
            }
            (Text::Array(expected), Text::Array(actual)) => {
                expected.len() == actual.len()
                    && expected.iter().zip(actual).all(|(expected, actual)| self.is_alike(expected, actual))
            }
            _ => expected == actual,
        }
    }

    /// Hears the rest of what begins so.
    fn put_together(&mut self, connection: &str, heard: Heard) -> Result<Next, String> {
        let (channel, payload) = match heard {
            Heard::Nothing => return Ok(Next::Nothing),
            Heard::End => return Ok(Next::End),
            Heard::ProtocolHeader(bytes) if bytes == PROTOCOL_HEADER => return Ok(Next::ProtocolHeader),
            Heard::ProtocolHeader(bytes) => return Err(format!("heard the header of another protocol: {bytes:?}")),
            Heard::Frame(FrameKind::Heartbeat, 0, payload) if payload.is_empty() => return Ok(Next::Heartbeat),
            Heard::Frame(FrameKind::Method, channel, payload) => (channel, payload),
            Heard::Frame(kind, channel, _) => return Err(format!("heard a {kind:?} frame on channel {channel}")),
        };
        let (spec, arguments) =
            decode_method(&payload).ok_or_else(|| format!("heard a bad method: {payload:?}"))?;
        let mut said = Said { channel, name: spec.name, arguments, body: None };
        if has_content(spec) {
            let Heard::Frame(FrameKind::Header, _, payload) = self.wire.hear(connection) else {
                return Err(format!("no content header follows {}", said.show()));
            };
            let header = ContentHeader::decode(&payload).map_err(|error| error.to_string())?;
            said.arguments.extend(property_texts(&header.properties));
            let mut body = Vec::new();
            while (body.len() as u64) < header.body_bytes {
                let Heard::Frame(FrameKind::Body, of, piece) = self.wire.hear(connection) else {
                    return Err(format!("the body of {} ends early", said.show()));
                };
                assert_eq!(of, channel, "body frames come on the channel of their method");
                body.extend(piece);
            }
            said.body = Some(body);
        }
        Ok(Next::Said(said))
    }
}

enum Next {
    Nothing,
    End,
    ProtocolHeader,
    Heartbeat,
    Said(Said),
}

impl Said {
    fn show(&self) -> String {
        let mut out = format!("{} (channel {})", self.name, self.channel);
        for (name, value) in &self.arguments {
            let _ = write!(out, " {name}={}", show(value));
        }
        if let Some(body) = &self.body {
            let _ = write!(out, " body={}", show(&Text::Bytes(body.clone())));
        }
        out
    }
}

const CONNECTION_CLASS: u16 = 10;

/// Methods of the connection go on channel 0, whatever channel the line names.
fn channel_of(class: u16, channel: u16) -> u16 {
    if class == CONNECTION_CLASS { 0 } else { channel }
}

const PROPERTIES: &[&str] = &[
    "content-type",
    "content-encoding",
    "headers",
    "delivery-mode",
    "priority",
    "correlation-id",
    "reply-to",
    "expiration",
    "message-id",
    "timestamp",
    "type",
    "user-id",
    "app-id",
    "cluster-id",
    "body",
];

fn check_names(spec: &leveret_amqp::method::MethodSpec, given: &BTreeMap<String, Text>) -> Result<(), String> {
    for name in given.keys() {
        let is_argument = spec.arguments.iter().any(|argument| crate::text::script_name(argument.name) == *name);
        let is_property = has_content(spec) && PROPERTIES.contains(&name.as_str());
        if !is_argument && !is_property {
            return Err(format!("{} has no argument '{name}'", spec.name));
        }
    }
    Ok(())
}

fn parse_time(text: &str) -> Result<Duration, String> {
    let text = text.trim();
    let end = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let count: u64 = text[..end].parse().map_err(|_| format!("'{text}' is no time"))?;
    match &text[end..] {
        "ms" => Ok(Duration::from_millis(count)),
        "s" => Ok(Duration::from_secs(count)),
        "min" => Ok(Duration::from_mins(count)),
        "h" => Ok(Duration::from_hours(count)),
        unit => Err(format!("'{unit}' is no unit of time; take ms, s, min or h")),
    }
}

/// Hexadecimal octets and quoted text.
fn parse_raw(text: &str) -> Result<Vec<u8>, String> {
    let mut bytes = Vec::new();
    let mut rest = text.trim();
    while !rest.is_empty() {
        if let Some(quoted) = rest.strip_prefix('\'') {
            let end = quoted.find('\'').ok_or("a quote is not closed")?;
            bytes.extend(&quoted.as_bytes()[..end]);
            rest = quoted[end + 1..].trim_start();
        } else {
            let end = rest.find(' ').unwrap_or(rest.len());
            let (octet, count) = rest[..end].split_once('*').unwrap_or((&rest[..end], "1"));
            let octet = u8::from_str_radix(octet, 16).map_err(|_| format!("'{octet}' is no octet"))?;
            let count: usize = count.parse().map_err(|_| format!("'{count}' is no count"))?;
            bytes.resize(bytes.len() + count, octet);
            rest = rest[end..].trim_start();
        }
    }
    Ok(bytes)
}
