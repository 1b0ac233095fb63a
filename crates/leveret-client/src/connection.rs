//! One connection: the handshake, reading and writing with deadlines, and the close.

use std::collections::BTreeMap;
use std::net::{TcpStream, ToSocketAddrs};
use std::num::NonZeroU16;
use std::time::{Duration, Instant};

use leveret_amqp::frame::{write_content, write_method};
use leveret_amqp::limits::FRAME_BYTES_MIN;
use leveret_amqp::{
    BasicProperties, ContentHeader, FieldTable, FrameKind, Method, PROTOCOL_HEADER, ShortStr, Table, Value,
};

use crate::channel::Channel;
use crate::error::{Error, Reply, Scope};
use crate::interrupt::{Interrupt, Interruption};
use crate::limits::{ANSWER_TIMEOUT, OUTPUT_BYTES_KEPT};
use crate::raw::RawConnection;
use crate::state::{Answer, ChannelState, Courtesy, Life};
use crate::url::Url;
use crate::wire::{Wire, Written};

/// The number of a channel, unique in its connection while the channel is open.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ChannelId(pub(crate) NonZeroU16);

impl ChannelId {
    /// The number as frames carry it.
    pub fn get(self) -> u16 {
        self.0.get()
    }
}

/// A connection to a broker, used by one thread at a time.
///
/// Dropping it cuts the line; [`Connection::close`] says goodbye, and knows then that the broker has handled
/// everything that was sent.
#[derive(Debug)]
pub struct Connection {
    wire: Wire,
    channels: BTreeMap<ChannelId, ChannelState>,
    channel_max: u16,
    server_properties: FieldTable,
    /// Why the broker takes no messages for now: `connection.blocked`.
    blocked: Option<String>,
    /// Who wants to hear of that.
    on_blocked: fn(&str),
    /// Why the broker closed the connection.
    closed: Option<Reply>,
    answer_timeout: Duration,
    /// Content headers are encoded here, to reuse the allocation.
    scratch: Vec<u8>,
    /// Whether the broker still expects a `connection.close` of ours.
    says_goodbye: bool,
}

/// What `connection.tune` proposes.
#[derive(Clone, Copy, Debug)]
struct Proposal {
    channel_max: u16,
    frame_max: u32,
    heartbeat: u16,
}

/// The deadline of the handshake, and the whole time it had.
#[derive(Clone, Copy, Debug)]
struct Patience {
    deadline: Instant,
    whole: Duration,
}

/// A normal end.
const GOODBYE: Method<'static> =
    Method::ConnectionClose { reply_code: 200, reply_text: ShortStr::GOODBYE, class_id: 0, method_id: 0 };

impl Drop for Connection {
    /// A connection that is given up half-way says so, if that takes no waiting: the broker need not guess.
    fn drop(&mut self) {
        if self.says_goodbye && self.closed.is_none() {
            write_method(self.wire.output(), 0, &GOODBYE);
            // Nobody is left to hear of a failure.
            let _ = self.wire.write_some();
        }
    }
}

impl Connection {
    /// Connects, logs in and opens the virtual host of the URL.
    pub fn open(url: &Url) -> Result<Self, Error> {
        Self::open_with(url, None)
    }

    /// The same, unless it is interrupted; and so is every wait after that. The attempt to connect itself, over TCP, is not.
    pub fn open_unless(url: &Url, interrupt: Interrupt) -> Result<Self, Error> {
        Self::open_with(url, Some(interrupt))
    }

    fn open_with(url: &Url, interrupt: Option<Interrupt>) -> Result<Self, Error> {
        let whole = url.connection_timeout;
        let patience = Patience { deadline: Instant::now() + whole, whole };
        let mut connection = Connection {
            wire: Wire::new(connect(url, patience)?)?,
            channels: BTreeMap::new(),
            channel_max: url.channel_max,
            server_properties: FieldTable::default(),
            blocked: None,
            on_blocked: |_| {},
            closed: None,
            answer_timeout: ANSWER_TIMEOUT,
            scratch: Vec::new(),
            says_goodbye: false,
        };
        connection.set_interrupt(interrupt);
        connection.shake_hands(url, patience)?;
        connection.says_goodbye = true;
        Ok(connection)
    }

    /// What the broker says of itself: `product`, `version`, `capabilities` and more.
    pub fn server_properties(&self) -> Table<'_> {
        self.server_properties.as_table()
    }

    /// Changes what ends a wait early.
    pub fn set_interrupt(&mut self, interrupt: Option<Interrupt>) {
        self.wire.set_interrupt(interrupt);
    }

    /// Changes how long an answer may take.
    pub fn set_answer_timeout(&mut self, timeout: Duration) {
        self.answer_timeout = timeout;
    }

    /// Has `tell` called with the broker's reason whenever it takes no messages for now, which whoever publishes then
    /// waits for, up to the answer timeout.
    pub fn on_blocked(&mut self, tell: fn(&str)) {
        self.on_blocked = tell;
    }

    /// Opens a channel.
    pub fn open_channel(&mut self) -> Result<Channel<'_>, Error> {
        let free = (1..=self.channel_max)
            .filter_map(NonZeroU16::new)
            .map(ChannelId)
            .find(|id| !self.channels.contains_key(id))
            .ok_or(Error::NoChannel(self.channel_max))?;
        self.channels.insert(free, ChannelState::default());
        self.call(free, &Method::ChannelOpen { out_of_band: ShortStr::EMPTY })?;
        Ok(Channel::new(self, free))
    }

    /// Comes back to a channel that was opened before; `None` after it was closed with [`Channel::close`].
    pub fn channel(&mut self, id: ChannelId) -> Option<Channel<'_>> {
        self.channels.contains_key(&id).then(|| Channel::new(self, id))
    }

    /// Handles what the broker sent without waiting for more: whether the connection is still open, as far as it has said.
    pub fn check(&mut self) -> Result<(), Error> {
        self.poll().map(drop)
    }

    /// Writes everything out that was sent so far.
    pub fn flush(&mut self) -> Result<(), Error> {
        let mut progress = Instant::now();
        let mut interruption = Interruption::default();
        while self.wire.output_bytes() > 0 {
            match self.wire.write_some() {
                Ok(Written::Something) => progress = Instant::now(),
                Ok(Written::Nothing) => {
                    self.wire.check_interrupt(&mut interruption, Instant::now())?;
                    // Perhaps the broker waits for us to read.
                    while self.poll()? && matches!(self.wire.write_at_once(), Ok(Written::Nothing)) {}
                    if progress.elapsed() >= self.answer_timeout {
                        return Err(self.too_late("a message"));
                    }
                }
                Err(error) => return Err(self.reason_instead_of(error)),
            }
        }
        Ok(())
    }

    /// Closes the connection: everything sent before is handled by the broker when this returns.
    pub fn close(mut self) -> Result<(), Error> {
        self.check_open()?;
        write_method(self.wire.output(), 0, &GOODBYE);
        self.says_goodbye = false;
        self.flush()?;
        let deadline = Instant::now() + self.answer_timeout;
        loop {
            while let Some(frame) = self.wire.take_frame()? {
                if (frame.kind, frame.channel) == (FrameKind::Method, 0)
                    && let Method::ConnectionCloseOk {} | Method::ConnectionClose { .. } =
                        Method::decode(frame.payload)?
                {
                    return Ok(());
                }
            }
            match self.wire.await_bytes(deadline) {
                Ok(true) => {}
                Ok(false) => return Err(self.too_late("connection.close")),
                Err(Error::Disconnected) => return Ok(()),
                Err(error) => return Err(error),
            }
        }
    }

    /// Writes everything out that was sent so far, and leaves the socket to the caller, with its channels open.
    ///
    /// Messages and confirms that arrived and that nobody took are gone; what was read and not handled is handed over.
    pub fn into_raw(mut self) -> Result<RawConnection, Error> {
        self.check_open()?;
        self.flush()?;
        let raw = RawConnection {
            stream: self.wire.share_stream()?,
            input: self.wire.unhandled().to_vec(),
            frame_max: self.wire.frame_max(),
            blocked: self.blocked.take(),
        };
        self.says_goodbye = false;
        Ok(raw)
    }

    fn shake_hands(&mut self, url: &Url, patience: Patience) -> Result<(), Error> {
        self.wire.output().extend_from_slice(&PROTOCOL_HEADER);
        let (server_properties, mechanisms) = self
            .await_step(patience, "the protocol header", |method| match method {
                Method::ConnectionStart { server_properties, mechanisms, .. } => {
                    Some((FieldTable::from(server_properties), String::from_utf8_lossy(mechanisms).into_owned()))
                }
                _ => None,
            })
            .map_err(|error| match error {
                Error::Frame(_) => Error::NotAmqp { address: url.address() },
                other => other,
            })?;
        self.server_properties = server_properties;
        if !mechanisms.split(' ').any(|mechanism| mechanism == "PLAIN") {
            return Err(Error::NoMechanism { offered: mechanisms });
        }

        let client_properties = client_properties();
        let response = format!("\0{}\0{}", url.user, url.password);
        let start_ok = Method::ConnectionStartOk {
            client_properties: client_properties.as_table(),
            mechanism: ShortStr::truncated("PLAIN"),
            response: response.as_bytes(),
            locale: ShortStr::truncated("en_US"),
        };
        write_method(self.wire.output(), 0, &start_ok);
        let proposal = self.await_step(patience, "the login", |method| match method {
            Method::ConnectionTune { channel_max, frame_max, heartbeat } => {
                Some(Proposal { channel_max, frame_max, heartbeat })
            }
            _ => None,
        })?;
        self.take_proposal(url, proposal)?;

        let virtual_host = url.vhost.as_short_str();
        let open = Method::ConnectionOpen { virtual_host, capabilities: ShortStr::EMPTY, insist: false };
        write_method(self.wire.output(), 0, &open);
        self.await_step(patience, "opening the virtual host", |method| match method {
            Method::ConnectionOpenOk { .. } => Some(()),
            _ => None,
        })
    }

    /// Agrees to the lower of both limits; 0 stands for none. AMQP 0-9-1 §1.4.2.6.
    fn take_proposal(&mut self, url: &Url, proposal: Proposal) -> Result<(), Error> {
        if proposal.frame_max != 0 && proposal.frame_max < FRAME_BYTES_MIN {
            return Err(Error::Unexpected(format!("a frame_max of {} bytes", proposal.frame_max)));
        }
        if proposal.channel_max != 0 {
            self.channel_max = self.channel_max.min(proposal.channel_max);
        }
        let frame_max = if proposal.frame_max == 0 { url.frame_max } else { url.frame_max.min(proposal.frame_max) };
        let heartbeat = match (url.heartbeat, proposal.heartbeat) {
            (None, proposed) => proposed,
            (Some(0), _) => 0,
            (Some(wanted), 0) => wanted,
            (Some(wanted), proposed) => wanted.min(proposed),
        };
        let tune_ok = Method::ConnectionTuneOk { channel_max: self.channel_max, frame_max, heartbeat };
        write_method(self.wire.output(), 0, &tune_ok);
        let interval = (heartbeat != 0).then(|| Duration::from_secs(heartbeat.into()));
        self.wire.tune(frame_max, interval);
        Ok(())
    }

    /// Waits for one step of the handshake, which is what `pick` takes.
    fn await_step<T>(
        &mut self,
        patience: Patience,
        awaited: &'static str,
        pick: impl Fn(Method<'_>) -> Option<T>,
    ) -> Result<T, Error> {
        self.flush()?;
        loop {
            if let Some(frame) = self.wire.take_frame()? {
                if frame.kind == FrameKind::Heartbeat {
                    continue;
                }
                if (frame.kind, frame.channel) != (FrameKind::Method, 0) {
                    return Err(Error::Unexpected("a frame of a channel during the handshake".to_owned()));
                }
                let method = Method::decode(frame.payload)?;
                if let Some(picked) = pick(method) {
                    return Ok(picked);
                }
                let (name, reason) = (method.name(), close_reason(&method));
                self.handle_unawaited(name, reason)?;
                self.check_open()?;
            } else if !self.wire.await_bytes(patience.deadline)? {
                return Err(Error::Timeout { awaited, after: patience.whole });
            }
        }
    }

    /// A method that was not awaited: fine only if it closes the connection.
    fn handle_unawaited(&mut self, name: &'static str, reason: Option<Reply>) -> Result<(), Error> {
        self.closed = Some(reason.ok_or_else(|| Error::Unexpected(name.to_owned()))?);
        // A goodbye as well as the socket lets us: the broker does not insist on it.
        write_method(self.wire.output(), 0, &Method::ConnectionCloseOk {});
        drop(self.wire.write_some());
        Ok(())
    }

    pub(crate) fn state(&mut self, id: ChannelId) -> &mut ChannelState {
        self.channels.get_mut(&id).expect("a Channel exists only for an entry of this map")
    }

    pub(crate) fn forget(&mut self, id: ChannelId) {
        self.channels.remove(&id);
    }

    pub(crate) fn answer_timeout(&self) -> Duration {
        self.answer_timeout
    }

    /// Whether connection and channel are open, else why not.
    pub(crate) fn check_channel_open(&mut self, id: ChannelId) -> Result<(), Error> {
        self.check_open()?;
        match &self.state(id).life {
            Life::Open => Ok(()),
            Life::Closed(Some(reply)) => Err(Error::Closed { scope: Scope::Channel, reply: reply.clone() }),
            Life::Closing | Life::Closed(None) => Err(Error::Disconnected),
        }
    }

    fn check_open(&self) -> Result<(), Error> {
        match &self.closed {
            None => Ok(()),
            Some(reply) => Err(Error::Closed { scope: Scope::Connection, reply: reply.clone() }),
        }
    }

    /// Appends a method to the output.
    pub(crate) fn send(&mut self, id: ChannelId, method: &Method<'_>) -> Result<(), Error> {
        self.check_channel_open(id)?;
        write_method(self.wire.output(), id.0.get(), method);
        Ok(())
    }

    /// Appends a publish to the output, and writes it out when enough came together.
    pub(crate) fn send_content(
        &mut self,
        id: ChannelId,
        method: &Method<'_>,
        properties: &BasicProperties<'_>,
        body: &[u8],
    ) -> Result<(), Error> {
        self.send(id, method)?;
        self.scratch.clear();
        let header = ContentHeader { body_bytes: body.len() as u64, properties: *properties };
        header.encode(&mut self.scratch);
        let frame_max = self.wire.frame_max();
        write_content(self.wire.output(), id.0.get(), &self.scratch, body, frame_max);
        if self.wire.output_bytes() >= OUTPUT_BYTES_KEPT {
            self.flush()?;
            self.poll()?;
        }
        Ok(())
    }

    /// Sends a method and waits for its answer.
    pub(crate) fn call(&mut self, id: ChannelId, method: &Method<'_>) -> Result<Answer, Error> {
        self.send(id, method)?;
        let awaited = method.name();
        let deadline = Instant::now() + self.answer_timeout;
        loop {
            if let Some(answer) = self.state(id).answer.take() {
                let answers_it = answer.method.strip_prefix(awaited).is_some_and(|rest| rest.starts_with('-'));
                return if answers_it { Ok(answer) } else { Err(Error::Unexpected(answer.method.to_owned())) };
            }
            self.check_channel_open(id)?;
            if !self.receive(deadline)? {
                return Err(self.too_late(awaited));
            }
        }
    }

    /// Handles one frame, waiting for it until `deadline`. `false` when none came.
    pub(crate) fn receive(&mut self, deadline: Instant) -> Result<bool, Error> {
        self.check_open()?;
        self.flush()?;
        while !self.wire.has_frame()? {
            if !self.wire.await_bytes(deadline)? {
                return Ok(false);
            }
        }
        self.dispatch()?;
        Ok(true)
    }

    /// Handles what the broker sent without waiting for more. `false` when there was nothing.
    pub(crate) fn poll(&mut self) -> Result<bool, Error> {
        let result = self.wire.read(Duration::ZERO);
        while self.dispatch()? {}
        self.check_open()?;
        result
    }

    /// Lets the broker know that we live, if it is time to.
    pub(crate) fn keep_alive(&mut self) -> Result<(), Error> {
        self.wire.send_heartbeat_if_due(Instant::now())
    }

    /// Why an answer is late: most often because the broker said so before.
    pub(crate) fn too_late(&self, awaited: &'static str) -> Error {
        match &self.blocked {
            Some(reason) => Error::Blocked { reason: reason.clone() },
            None => Error::Timeout { awaited, after: self.answer_timeout },
        }
    }

    /// After a failed write: the broker's last words, if it had any, are more useful than "broken pipe".
    fn reason_instead_of(&mut self, error: Error) -> Error {
        loop {
            match self.poll() {
                Ok(true) => {}
                Ok(false) if matches!(self.wire.read(self.answer_timeout), Ok(true)) => {}
                Ok(false) => return error,
                Err(reason @ Error::Closed { .. }) => return reason,
                Err(_) => return error,
            }
        }
    }

    /// Handles the next frame that was read whole. `false` when there is none.
    fn dispatch(&mut self) -> Result<bool, Error> {
        let Some(frame) = self.wire.take_frame()? else {
            return Ok(false);
        };
        if frame.kind == FrameKind::Heartbeat {
            return Ok(true);
        }
        let Some(id) = NonZeroU16::new(frame.channel).map(ChannelId) else {
            if frame.kind != FrameKind::Method {
                return Err(Error::Unexpected("content on channel 0".to_owned()));
            }
            match Method::decode(frame.payload)? {
                Method::ConnectionBlocked { reason } => {
                    (self.on_blocked)(reason.as_str());
                    self.blocked = Some(reason.as_str().to_owned());
                }
                Method::ConnectionUnblocked {} => self.blocked = None,
                method => {
                    let (name, reason) = (method.name(), close_reason(&method));
                    self.handle_unawaited(name, reason)?;
                }
            }
            return Ok(true);
        };
        let Some(state) = self.channels.get_mut(&id) else {
            return Err(Error::Unexpected(format!("a frame of channel {}, which is not open", id.0)));
        };
        if let Some(courtesy) = state.handle_frame(frame)? {
            let method = match &courtesy {
                Courtesy::Close => Method::ChannelCloseOk {},
                Courtesy::Flow { active } => Method::ChannelFlowOk { active: *active },
                Courtesy::Cancel { consumer_tag } => {
                    Method::BasicCancelOk { consumer_tag: consumer_tag.as_short_str() }
                }
            };
            write_method(self.wire.output(), id.0.get(), &method);
        }
        Ok(true)
    }
}

fn close_reason(method: &Method<'_>) -> Option<Reply> {
    if let Method::ConnectionClose { reply_code, reply_text, class_id, method_id } = method {
        let text = reply_text.as_str().to_owned();
        Some(Reply { code: *reply_code, text, method: (*class_id, *method_id) })
    } else {
        None
    }
}

/// Tries every address of the host until one answers or the deadline passes.
fn connect(url: &Url, patience: Patience) -> Result<TcpStream, Error> {
    let unreachable = |source| Error::Unreachable { address: url.address(), source };
    let addresses = (url.host.as_str(), url.port).to_socket_addrs().map_err(unreachable)?;
    let mut last_error = std::io::Error::new(std::io::ErrorKind::NotFound, "the host has no address");
    for address in addresses {
        let left = patience.deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(Error::Timeout { awaited: "the connection attempt", after: patience.whole });
        }
        match TcpStream::connect_timeout(&address, left) {
            Ok(stream) => return Ok(stream),
            Err(error) => last_error = error,
        }
    }
    Err(unreachable(last_error))
}

fn client_properties() -> FieldTable {
    FieldTable::build(|properties| {
        properties
            .field("product", Value::LongStr(b"leveret"))
            .field("version", Value::LongStr(env!("CARGO_PKG_VERSION").as_bytes()))
            .field("platform", Value::LongStr(b"Rust"))
            .table("capabilities", |capabilities| {
                for capability in [
                    "publisher_confirms",
                    "consumer_cancel_notify",
                    "basic.nack",
                    "connection.blocked",
                    "authentication_failure_close",
                ] {
                    capabilities.field(capability, Value::Bool(true));
                }
            });
    })
}
