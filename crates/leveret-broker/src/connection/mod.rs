//! One client's connection, without its socket: bytes in, commands out; outputs in, bytes out.
//!
//! Owns: the handshake, the channels' protocol state, contents being assembled, confirms, heartbeats.
//! Must not know: queues, exchanges, other connections.
//!
//! ```text
//! AwaitingHeader ─ protocol header ─> AwaitingStartOk ─ start-ok ─> LoggingIn ─ the driver knows the user ─> AwaitingTuneOk
//!    AwaitingTuneOk ─ tune-ok ─> AwaitingOpen ─ open ─> Opening ─ the driver found the virtual host ─> Open
//!    Open ─ close, fault or end of input ─> Leaving ─ the virtual host said farewell ─> AwaitingCloseOk or Closed
//!    before Open: fault ─> AwaitingCloseOk (what the peer may know) or Closed
//!    AwaitingCloseOk ─ close-ok or time ─> Closed
//! ```

mod assembly;
mod channels;
mod confirms;
mod encode;
pub mod faults;
mod handshake;
mod hold;
pub mod reply;
mod whole;

use std::collections::{BTreeSet, VecDeque};
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use leveret_amqp::frame::{self, HEARTBEAT, split_frame};
use leveret_amqp::{
    DecodeError, FieldTable, FrameKind, Method, RawFrame, ShortStr, ShortString, Snippet, Table, Value,
};
use rand::SeedableRng;
use rand::rngs::StdRng;

use self::channels::{Channels, Flow};
use self::faults::{ChannelFault, Faults};
use self::hold::Held;
use self::reply::{ClientError, Exception};
use self::whole::Familiar;
use crate::limits::{CLOSE_TIMEOUT_MAX, REPLY_TEXT_BYTES_MAX, WINDOW_BYTES_MAX};
use crate::moment::{Deadline, Moment};
use crate::names::{ChannelId, UserName};
use crate::node::OpenError;
use crate::node::presence::Present;
use crate::settings::Settings;
use crate::vhost::command::{BASIC_PUBLISH, Command, Commands, Farewell};
use crate::vhost::effects::Window;

/// Class and method of `connection.open`.
const CONNECTION_OPEN: (u16, u16) = (10, 40);

/// Class and method of `connection.update-secret`.
const CONNECTION_UPDATE_SECRET: (u16, u16) = (10, 70);

/// What the client said of itself in `connection.start-ok`, field `client-properties`, `capabilities`.
#[derive(Clone, Copy, Debug, Default)]
struct Capabilities {
    consumer_cancel_notify: bool,
    authentication_failure_close: bool,
    connection_blocked: bool,
}

#[derive(Debug)]
enum State {
    AwaitingHeader,
    AwaitingStartOk,
    /// The driver has to say who it is; input waits.
    LoggingIn(Credentials),
    AwaitingTuneOk(UserName),
    AwaitingOpen(UserName),
    /// The driver has to find the virtual host of that name; input waits.
    Opening(ShortString, UserName),
    Open,
    /// The virtual host is giving back what the connection held; input is dropped.
    Leaving,
    /// Our `connection.close` is out; all input but its answer is dropped.
    AwaitingCloseOk,
    Closed,
}

impl State {
    fn phase(&self) -> Phase {
        match self {
            State::AwaitingHeader | State::AwaitingStartOk | State::LoggingIn(_) => Phase::Starting,
            State::AwaitingTuneOk(_) => Phase::Tuning,
            State::AwaitingOpen(_) | State::Opening(..) => Phase::Opening,
            State::Open => Phase::Running,
            State::Leaving => Phase::Closing,
            State::AwaitingCloseOk | State::Closed => Phase::Closed,
        }
    }
}

/// How far a connection has come, for whoever looks from outside.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Nobody has logged in yet.
    Starting,
    /// The client has logged in, and its limits are not agreed on.
    Tuning,
    /// It has not found its virtual host.
    Opening,
    /// It is open.
    Running,
    /// The same, but it publishes, and that has to wait until there is room.
    Blocked,
    /// The virtual host takes back what it held.
    Closing,
    /// Nothing more is read.
    Closed,
}

impl Phase {
    /// As RabbitMQ calls it.
    pub fn as_str(self) -> &'static str {
        match self {
            Phase::Starting => "starting",
            Phase::Tuning => "tuning",
            Phase::Opening => "opening",
            Phase::Running => "running",
            Phase::Blocked => "blocked",
            Phase::Closing => "closing",
            Phase::Closed => "closed",
        }
    }
}

/// What an open connection has agreed on in its handshake.
#[derive(Clone, Debug)]
pub struct Negotiated {
    /// Who logged in.
    pub user: UserName,
    /// How they proved it.
    pub mechanism: ShortString,
    /// What the client said of itself. `connection.start-ok`, field `client-properties`.
    pub client_properties: FieldTable,
    /// Largest frame, in bytes.
    pub frame_max: u32,
    /// How many channels it may open.
    pub channel_max: u16,
    /// Seconds between heartbeats; 0 is none.
    pub heartbeat: u16,
}

impl Negotiated {
    /// The name that the client gave its connection. RabbitMQ: `connection_name`.
    pub fn client_name(&self) -> Option<&str> {
        self.client_properties.as_table().get("connection_name").and_then(Value::as_str)
    }
}

/// What a client says of who it is.
#[derive(Clone, PartialEq, Eq)]
pub struct Credentials {
    /// The SASL mechanism that it says so by.
    mechanism: &'static str,
    /// The name of the user.
    pub user: String,
    /// To be compared, and never to be shown.
    pub password: Vec<u8>,
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} by {}", self.user, self.mechanism)
    }
}

/// One client's connection.
#[derive(Debug)]
pub struct Connection {
    settings: Arc<Settings>,
    state: State,
    /// A new secret that the driver has to check; input waits.
    renewing: Option<Credentials>,
    /// When the handshake or the close handshake has taken too long.
    deadline: Option<Deadline>,
    heartbeat: Option<Heartbeat>,
    frame_max: u32,
    capabilities: Capabilities,
    /// Whether its publishes wait, and the client was told so if it wants to know.
    is_blocked: bool,
    channels: Channels,
    familiar: Familiar,
    commands: Commands,
    /// Whether input was refused until something more is encoded.
    input_waits: bool,
    /// What waits for the journal.
    held: Held,
    /// Channels with confirms that wait for the journal.
    unconfirmed: BTreeSet<ChannelId>,
    /// What was encoded and not yet written.
    unwritten: Unwritten,
    /// What was written and not yet reported.
    unreported: Unreported,
    /// The client's end is closed, or it does not read: nothing more is encoded.
    is_gone: bool,
    /// For the log: who logged in, and the name they gave their connection.
    user: Option<String>,
    client_name: Option<String>,
    /// What the client said of itself and how it logs in, until the driver takes that.
    client_properties: FieldTable,
    mechanism: ShortString,
    /// For the log: why it ended, if not by the client's wish.
    fault: Option<String>,
    /// For the log: what ended channels and consumers.
    channel_faults: Faults,
}

/// How much of what was encoded the socket has taken since the last time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Written {
    /// So many bytes.
    Some(usize),
    /// All there was.
    All,
}

/// What was encoded and not yet written, batch by batch, so that a slow reader gives back room as it reads.
#[derive(Debug, Default)]
struct Unwritten {
    /// The last byte of each batch, counted from the last time that nothing was unwritten, and its share of the
    /// windows.
    batches: VecDeque<(u64, Window)>,
    encoded: u64,
    written: u64,
}

impl Unwritten {
    fn add(&mut self, bytes: usize, window: Window) {
        self.encoded += bytes as u64;
        if window != Window::default() {
            self.batches.push_back((self.encoded, window));
        }
    }

    /// Takes out what was written.
    fn take(&mut self, written: Written) -> Window {
        let mut taken = Window::default();
        match written {
            Written::Some(bytes) => self.written += bytes as u64,
            Written::All => self.written = u64::MAX,
        }
        while let Some((_, window)) = self.batches.pop_front_if(|(end, _)| *end <= self.written) {
            taken.deliveries += window.deliveries;
            taken.answers += window.answers;
        }
        if written == Written::All {
            (self.encoded, self.written) = (0, 0);
        }
        taken
    }
}

/// What was written and the virtual host does not know of.
#[derive(Debug, Default)]
struct Unreported {
    window: Window,
    /// The virtual host waits to hear of it, however little it is.
    is_asked_for: bool,
}

impl Unreported {
    /// Reported in quarters of the window: often enough to keep the consumer busy, seldom enough to cost nothing.
    fn is_due(&self) -> bool {
        let least = if self.is_asked_for { 1 } else { WINDOW_BYTES_MAX / 4 };
        self.window.deliveries >= least || self.window.answers >= least
    }
}

/// Signs of life in both directions. AMQP 0-9-1 §4.2.7; RabbitMQ: `rabbit_heartbeat`.
#[derive(Debug)]
struct Heartbeat {
    interval: Duration,
    last_received: Duration,
    last_sent: Duration,
}

impl Heartbeat {
    /// We send after half an interval of silence of our own.
    fn send_at(&self) -> Deadline {
        Deadline(self.last_sent + self.interval / 2)
    }

    /// A peer that was silent for two intervals is dead.
    fn dead_at(&self) -> Deadline {
        Deadline(self.last_received + self.interval * 2)
    }
}

impl Connection {
    /// A connection that was just accepted. `seed` decides the names it makes up.
    pub fn new(settings: Arc<Settings>, seed: [u8; 32], now: Moment) -> Self {
        let deadline = Some(now.deadline(settings.handshake_timeout));
        let frame_max = settings.initial_frame_max;
        Connection {
            settings,
            state: State::AwaitingHeader,
            renewing: None,
            deadline,
            heartbeat: None,
            frame_max,
            capabilities: Capabilities::default(),
            is_blocked: false,
            channels: Channels::new(StdRng::from_seed(seed)),
            familiar: Familiar::default(),
            commands: Commands::default(),
            input_waits: false,
            held: Held::default(),
            unconfirmed: BTreeSet::new(),
            unwritten: Unwritten::default(),
            unreported: Unreported::default(),
            is_gone: false,
            user: None,
            client_name: None,
            client_properties: FieldTable::default(),
            mechanism: ShortString::default(),
            fault: None,
            channel_faults: Faults::default(),
        }
    }

    /// Takes in what the socket brought. Returns how many bytes were used; the driver keeps the rest and shows it
    /// again together with what comes next, or when something was encoded, whichever is first.
    pub fn handle_input(&mut self, now: Moment, input: &[u8], out: &mut Vec<u8>) -> usize {
        if let Some(heartbeat) = &mut self.heartbeat
            && !input.is_empty()
        {
            heartbeat.last_received = now.monotonic;
        }
        self.input_waits = false;
        let mut rest = input;
        if matches!(self.state, State::AwaitingHeader) && !self.take_protocol_header(&mut rest, out) {
            return input.len() - rest.len();
        }
        loop {
            match self.state {
                State::Closed | State::Leaving => return input.len(),
                State::LoggingIn(_) | State::Opening(..) => break,
                State::Open if self.renewing.is_some() => break,
                State::AwaitingHeader
                | State::AwaitingStartOk
                | State::AwaitingTuneOk(_)
                | State::AwaitingOpen(_)
                | State::Open
                | State::AwaitingCloseOk => {}
            }
            if matches!(self.state, State::Open) && self.take_whole_publish(&mut rest) {
                continue;
            }
            let before = rest;
            match split_frame(&mut rest, self.frame_max) {
                Ok(None) => break,
                Ok(Some(frame)) => match self.handle_frame(now, frame, out) {
                    Ok(Flow::Next) => {}
                    Ok(Flow::Pause) => {
                        self.input_waits = true;
                        rest = before;
                        break;
                    }
                    Err(exception) => self.fail(now, exception, out),
                },
                Err(error) => {
                    self.fail(now, Exception::from(&ClientError::Frame(error)), out);
                    return input.len();
                }
            }
        }
        input.len() - rest.len()
    }

    fn handle_frame(&mut self, now: Moment, frame: RawFrame<'_>, out: &mut Vec<u8>) -> Result<Flow, Exception> {
        if frame.kind == FrameKind::Heartbeat {
            return match frame.channel {
                0 => Ok(Flow::Next),
                _ => Err(Self::unexpected(frame)),
            };
        }
        if frame.channel != 0 && matches!(self.state, State::Open) {
            return self.handle_channel_frame(frame);
        }
        match frame.kind {
            FrameKind::Method if frame.channel == 0 => {
                let method = Method::decode(frame.payload).map_err(|error| Self::undecodable(frame, error))?;
                self.handle_connection_method(now, method, out).map(|()| Flow::Next)
            }
            FrameKind::Method | FrameKind::Header | FrameKind::Body => match self.state {
                State::AwaitingCloseOk => Ok(Flow::Next),
                _ => Err(Self::unexpected(frame)),
            },
            FrameKind::Heartbeat => Ok(Flow::Next),
        }
    }

    fn unexpected(frame: RawFrame<'_>) -> Exception {
        let (kind, payload) = (frame.kind, Snippet::of(frame.payload));
        Exception::from(&ClientError::UnexpectedFrame { kind, payload })
    }

    fn undecodable(frame: RawFrame<'_>, error: DecodeError) -> Exception {
        let (ids, arguments) = match frame.payload {
            &[c0, c1, m0, m1, ref arguments @ ..] => {
                ((u16::from_be_bytes([c0, c1]), u16::from_be_bytes([m0, m1])), arguments)
            }
            _ => ((0, 0), frame.payload),
        };
        // More than a reply text can show.
        let arguments = arguments[..arguments.len().min(REPLY_TEXT_BYTES_MAX)].into();
        let exception = Exception::from(&ClientError::Method { error, arguments });
        // RabbitMQ names no method here.
        if error == DecodeError::NotUtf8 && frame.channel != 0 { exception } else { exception.during(ids) }
    }

    /// What may be said on channel 0 once the connection is open, or after we closed it.
    fn handle_open_method(&mut self, now: Moment, method: &Method<'_>, out: &mut Vec<u8>) -> Result<(), Exception> {
        match (&self.state, method) {
            (State::Open, Method::ConnectionClose { .. }) => {
                self.leave(now, Farewell::CloseOk);
                Ok(())
            }
            (State::Open, &Method::ConnectionUpdateSecret { new_secret, .. }) => {
                let user = self.user.clone().unwrap_or_default();
                self.renewing = Some(Credentials { mechanism: "PLAIN", user, password: new_secret.into() });
                Ok(())
            }
            (State::AwaitingCloseOk, Method::ConnectionClose { .. }) => {
                frame::write_method(out, 0, &Method::ConnectionCloseOk {});
                Ok(())
            }
            (State::AwaitingCloseOk, Method::ConnectionCloseOk {}) => {
                self.state = State::Closed;
                Ok(())
            }
            (State::AwaitingCloseOk, _) => Ok(()),
            (state, method) => {
                Err(Exception::from(&ClientError::UnexpectedMethod(state.phase().as_str())).during(method.ids()))
            }
        }
    }

    /// A connection exception found on our side of the virtual host.
    fn fail(&mut self, now: Moment, exception: Exception, out: &mut Vec<u8>) {
        self.fault.get_or_insert_with(|| exception.for_log());
        match self.state {
            State::Open => self.leave(now, Farewell::Close(exception)),
            // The peer has logged in, or at least heard our greeting: it may know why.
            State::AwaitingTuneOk(_) | State::AwaitingOpen(_) | State::Opening(..) => {
                self.say_close(now, &exception, out);
            }
            // AMQP 0-9-1 §4.2.2: before that, the socket is closed and nothing said.
            State::AwaitingHeader | State::AwaitingStartOk | State::LoggingIn(_) => self.state = State::Closed,
            // A peer that breaks the rules again while being closed is not told again.
            State::AwaitingCloseOk | State::Leaving | State::Closed => self.state = State::Closed,
        }
    }

    /// The virtual host takes back what the connection holds, and says farewell when that is done.
    fn leave(&mut self, now: Moment, farewell: Farewell) {
        self.state = State::Leaving;
        self.channels.abandon_contents();
        self.deadline = Some(now.deadline(CLOSE_TIMEOUT_MAX));
        self.commands.push(Command::Disconnect(farewell));
    }

    /// The same for a client that will not hear it.
    fn leave_in_silence(&mut self) {
        if self.is_gone {
            return;
        }
        self.is_gone = true;
        self.channels.abandon_contents();
        if self.held.has_farewell() {
            // The virtual host has let it go already; what it said last, nobody hears.
            self.held = Held::default();
            self.state = State::Closed;
            return;
        }
        self.state = State::Leaving;
        self.commands.push(Command::Disconnect(Farewell::Silent));
    }

    /// Writes `connection.close` and waits for its answer.
    fn say_close(&mut self, now: Moment, exception: &Exception, out: &mut Vec<u8>) {
        let (class_id, method_id) = exception.method;
        let reply_text = ShortStr::truncated(&exception.text);
        let reply_code = exception.code.code();
        frame::write_method(out, 0, &Method::ConnectionClose { reply_code, reply_text, class_id, method_id });
        let interval = self.heartbeat.as_ref().map_or(CLOSE_TIMEOUT_MAX, |heartbeat| heartbeat.interval);
        self.deadline = Some(now.deadline(interval.min(CLOSE_TIMEOUT_MAX)));
        self.heartbeat = None;
        self.state = State::AwaitingCloseOk;
    }

    /// The client's end of the socket is closed, or broken.
    pub fn handle_end(&mut self) {
        match self.state {
            State::Open => {
                self.fault.get_or_insert_with(|| "the client closed the socket without connection.close".into());
                self.leave_in_silence();
            }
            State::Leaving => self.leave_in_silence(),
            State::AwaitingHeader
            | State::AwaitingStartOk
            | State::LoggingIn(_)
            | State::AwaitingTuneOk(_)
            | State::AwaitingOpen(_)
            | State::Opening(..) => {
                self.fault.get_or_insert_with(|| "the client closed the socket during the handshake".into());
                self.state = State::Closed;
            }
            State::AwaitingCloseOk | State::Closed => self.state = State::Closed,
        }
    }

    /// The broker closes the connection. RabbitMQ: `CONNECTION_FORCED - <reason>`.
    pub fn handle_shutdown(&mut self, now: Moment, reason: &str, out: &mut Vec<u8>) {
        // Who is leaving still hears the answer to its own close.
        if !matches!(self.state, State::Leaving) {
            self.fail(now, Exception::forced(reason), out);
        }
    }

    /// The broker closes this connection and goes on. A publish that waits for room is as if it had not been read yet, and so is
    /// what came behind it: the client hears the reason at once.
    pub fn handle_forced_close(&mut self, now: Moment, reason: &str, out: &mut Vec<u8>) {
        if self.is_blocked && matches!(self.state, State::Open) {
            self.commands = Commands::default();
        }
        self.handle_shutdown(now, reason, out);
    }

    /// The journal has failed: nothing more is confirmed. Whether the client's last messages are on disk is unknown, so
    /// they are neither confirmed nor refused.
    pub fn handle_journal_failure(&mut self, now: Moment, out: &mut Vec<u8>) {
        if self.is_gone {
            self.state = State::Closed;
            return;
        }
        match self.state {
            State::Open
            | State::Leaving
            | State::AwaitingTuneOk(_)
            | State::AwaitingOpen(_)
            | State::Opening(..) => {
                let exception = Exception::internal("the journal cannot be written; see the log of the broker");
                self.fault.get_or_insert_with(|| exception.text.clone());
                self.say_close(now, &exception, out);
            }
            State::AwaitingHeader | State::AwaitingStartOk | State::LoggingIn(_) => self.state = State::Closed,
            State::AwaitingCloseOk | State::Closed => {}
        }
    }

    /// Bytes of contents that are not complete.
    pub fn unfinished_bytes(&self) -> usize {
        self.channels.unfinished_bytes()
    }

    /// Bytes of messages that are complete and wait for the virtual host to take them.
    pub fn published_bytes(&self) -> usize {
        self.commands.published_bytes()
    }

    /// How many contents have become complete that are too large for a row.
    pub fn large_contents(&self) -> u64 {
        self.channels.large_contents
    }

    /// Whether all contents that are not complete go to transactions that hold others already: they do not wait for room, which may
    /// be what the end of a transaction makes.
    pub fn goes_on_with_transactions(&self) -> bool {
        self.channels.goes_on_with_transactions()
    }

    /// There is little memory, it was this connection's turn to bring what others wait for, and that was over before it was
    /// complete: the connection is closed. What waits of its commands, for answers to be read for example, is as if it had not been
    /// read yet.
    pub fn handle_overdue(&mut self, now: Moment, out: &mut Vec<u8>) {
        self.give_up(now, &ClientError::Overdue, out);
    }

    /// There is little memory, and the contents that this connection brings on several channels take more than so many bytes together:
    /// it is closed in the same way.
    pub fn handle_excess(&mut self, now: Moment, limit: usize, out: &mut Vec<u8>) {
        self.give_up(now, &ClientError::TooMuchUnfinished { limit }, out);
    }

    fn give_up(&mut self, now: Moment, error: &ClientError, out: &mut Vec<u8>) {
        if matches!(self.state, State::Open) {
            self.commands = Commands::default();
        }
        self.fail(now, Exception::from(error).during(BASIC_PUBLISH), out);
    }

    /// Something has arrived that the driver does not read at present: a sign of life all the same.
    pub fn handle_unread(&mut self, now: Moment) {
        if let Some(heartbeat) = &mut self.heartbeat {
            heartbeat.last_received = now.monotonic;
        }
    }

    /// Whether its client is gone, or taken to be, and hears nothing any more.
    pub fn is_gone(&self) -> bool {
        self.is_gone
    }

    /// Sends a heartbeat, or gives up on a silent peer.
    pub fn handle_timeout(&mut self, now: Moment, out: &mut Vec<u8>) {
        if self.deadline.is_some_and(|deadline| now.has_reached(deadline)) {
            self.deadline = None;
            let what = match self.state {
                State::AwaitingCloseOk => "the client did not answer connection.close in time",
                State::Leaving => "the client did not read its last answers in time",
                _ => "the handshake was not finished in time (handshake_timeout)",
            };
            self.fault.get_or_insert_with(|| what.into());
            if matches!(self.state, State::Leaving) {
                self.leave_in_silence();
            } else {
                self.state = State::Closed;
            }
        }
        let Some(heartbeat) = &mut self.heartbeat else { return };
        if now.has_reached(heartbeat.dead_at()) {
            let text =
                format!("no sign of life from the client for two heartbeat intervals ({:?})", heartbeat.interval);
            self.fault.get_or_insert(text);
            self.heartbeat = None;
            if matches!(self.state, State::Open) {
                self.leave_in_silence();
            }
        } else if now.has_reached(heartbeat.send_at()) {
            heartbeat.last_sent = now.monotonic;
            out.extend_from_slice(&HEARTBEAT);
        }
    }

    /// When [`Self::handle_timeout`] has something to do, as far as is known now.
    #[must_use]
    pub fn next_timeout(&self) -> Option<Deadline> {
        let heartbeat = self.heartbeat.as_ref().map(|heartbeat| heartbeat.send_at().min(heartbeat.dead_at()));
        heartbeat.into_iter().chain(self.deadline).min()
    }

    /// The socket has taken what was encoded, or some of it. Returns the bytes of the messages in it, as windows count them, and
    /// whether the virtual host has to know.
    #[must_use]
    pub fn handle_written(&mut self, now: Moment, written: Written) -> (usize, bool) {
        if let Some(heartbeat) = &mut self.heartbeat {
            heartbeat.last_sent = now.monotonic;
        }
        let taken = self.unwritten.take(written);
        (taken.bytes(), self.report_written(taken))
    }

    /// Lets the virtual host know of what is written, if it is time; true if so.
    fn report_written(&mut self, taken: Window) -> bool {
        self.unreported.window.deliveries += taken.deliveries;
        self.unreported.window.answers += taken.answers;
        let is_attached = matches!(self.state, State::Open | State::Leaving);
        let is_due = is_attached && self.unreported.is_due();
        if is_due {
            let Unreported { window, .. } = std::mem::take(&mut self.unreported);
            // Before the commands that may be waiting for just this.
            self.commands.push_first(Command::Written(window));
        }
        is_due
    }

    /// What the client says of who it is, until the driver answers with [`Self::handle_login`].
    pub fn login_request(&self) -> Option<&Credentials> {
        match &self.state {
            State::LoggingIn(credentials) => Some(credentials),
            State::Open => self.renewing.as_ref(),
            State::AwaitingHeader
            | State::AwaitingStartOk
            | State::AwaitingTuneOk(_)
            | State::AwaitingOpen(_)
            | State::Opening(..)
            | State::Leaving
            | State::AwaitingCloseOk
            | State::Closed => None,
        }
    }

    /// The virtual host that the client asked for and who it is, until the driver answers with [`Self::handle_opened`].
    pub fn open_request(&self) -> Option<(&str, &UserName)> {
        match &self.state {
            State::Opening(vhost, user) => Some((vhost.as_str(), user)),
            State::AwaitingHeader
            | State::AwaitingStartOk
            | State::LoggingIn(_)
            | State::AwaitingTuneOk(_)
            | State::AwaitingOpen(_)
            | State::Open
            | State::Leaving
            | State::AwaitingCloseOk
            | State::Closed => None,
        }
    }

    /// The driver has connected it to its virtual host, or may not.
    pub fn handle_opened(&mut self, now: Moment, opened: Result<Present, OpenError>, out: &mut Vec<u8>) {
        let State::Opening(vhost, user) = &self.state else { return };
        match opened {
            Ok(present) => {
                self.user = Some(user.to_string());
                self.channels.user = Some(user.clone());
                self.channels.present = Some(present);
                self.state = State::Open;
                self.deadline = None;
                frame::write_method(out, 0, &Method::ConnectionOpenOk { known_hosts: ShortStr::EMPTY });
            }
            Err(error) => {
                let (vhost, user) = (vhost.to_string(), user.to_string());
                let exception = Exception::from(&ClientError::Open { error, vhost, user });
                self.fail(now, exception.during(CONNECTION_OPEN), out);
            }
        }
    }

    /// How far it has come.
    pub fn phase(&self) -> Phase {
        if self.is_blocked && matches!(self.state, State::Open) { Phase::Blocked } else { self.state.phase() }
    }

    /// What was agreed on in the handshake, once the driver has connected it. What the client said is moved out.
    pub fn take_negotiated(&mut self) -> Option<Negotiated> {
        let heartbeat = self.heartbeat.as_ref().map_or(0, |heartbeat| heartbeat.interval.as_secs());
        Some(Negotiated {
            user: self.channels.user.clone()?,
            mechanism: std::mem::take(&mut self.mechanism),
            client_properties: std::mem::take(&mut self.client_properties),
            frame_max: self.frame_max,
            channel_max: self.channels.channel_max,
            heartbeat: u16::try_from(heartbeat).unwrap_or(u16::MAX),
        })
    }

    /// What waits for the virtual host.
    pub fn commands(&mut self) -> &mut Commands {
        &mut self.commands
    }

    /// Whether nothing more will be read or encoded: write what is left and close the socket.
    pub fn is_closed(&self) -> bool {
        matches!(self.state, State::Closed)
    }

    /// Whether the rest of the last input should be shown again, now that something was encoded.
    pub fn input_waits(&self) -> bool {
        self.input_waits
    }

    /// Who logged in, for the log.
    pub fn user(&self) -> Option<&str> {
        self.user.as_deref()
    }

    /// The name the client gave its connection, for the log. RabbitMQ: `connection_name`.
    pub fn client_name(&self) -> Option<&str> {
        self.client_name.as_deref()
    }

    /// Why it ended, for the log; `None` if the client closed it in good order.
    pub fn fault(&self) -> Option<&str> {
        self.fault.as_deref()
    }

    /// What has ended channels and consumers since it was asked last, for the log.
    pub fn take_channel_faults(&mut self) -> Vec<ChannelFault> {
        self.channel_faults.take()
    }

    /// How many of them are not in the log.
    pub fn untold_channel_faults(&self) -> u64 {
        self.channel_faults.untold()
    }
}

/// A field of `capabilities` in the client's properties.
fn capability(client_properties: Table<'_>, name: &str) -> bool {
    match client_properties.get("capabilities") {
        Some(Value::Table(capabilities)) => capabilities.get(name) == Some(Value::Bool(true)),
        _ => false,
    }
}
