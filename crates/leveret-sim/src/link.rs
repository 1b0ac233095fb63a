//! A client: its connection in the broker, the bytes between them, and what it has heard.
//!
//! Owns: what the client knows. It settles only what it has heard of, and opens a channel again once it knows that it is
//! closed.

use std::collections::{BTreeMap, VecDeque};

use leveret_amqp::frame::{FrameKind, split_frame, write_content, write_method};
use leveret_amqp::{BasicProperties, ContentHeader, FieldTable, Method, ShortStr, Table, Value};
use leveret_broker::{Connection, ConnectionId, Output};

use crate::model::{Told, Violation, body};
use crate::plan::Mode;
use crate::world::Unfinished;

/// What each client agrees on, and more than any message has.
pub(crate) const FRAME_MAX: u32 = 4096;

/// A sign of life.
pub(crate) const HEARTBEAT: [u8; 8] = [8, 0, 0, 0, 0, 0, 0, 0xCE];

/// What a client knows of a channel.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Standing {
    #[default]
    Closed,
    Open,
    /// It has been closed, by either side, and the client does not know yet.
    Closing,
}

/// One channel, as its client sees it.
#[derive(Debug, Default)]
pub(crate) struct ClientChannel {
    pub(crate) standing: Standing,
    /// Tags of what it was told of and has not settled, in order.
    pub(crate) unacked: Vec<u64>,
    /// Those that it has settled in its transaction.
    pub(crate) in_transaction: Vec<u64>,
    /// So many answers come before it knows what was taken back.
    pub(crate) void_for: usize,
    /// What it is to hear next.
    pub(crate) told: VecDeque<Told>,
    content: Option<Content>,
}

/// A content that arrives.
#[derive(Debug)]
struct Content {
    /// The tag and the flag; none of a message that is returned.
    delivery: Option<(u64, bool)>,
    missing: u64,
    body: Vec<u8>,
}

/// What a client has heard.
#[derive(Debug)]
pub(crate) enum Heard {
    /// What it was told, in its order.
    Told(Mode, Told),
    /// Numbers are confirmed: this one, or all up to it.
    Confirmed { mode: Mode, number: u64, multiple: bool, refused: bool },
    /// The connection is closed, because of this fault if there was one.
    Closed(Option<String>),
}

/// A client's connection.
pub(crate) struct Link {
    pub(crate) connection: Connection,
    pub(crate) id: Option<ConnectionId>,
    /// What the broker has not used of what it was sent.
    pub(crate) carry: Vec<u8>,
    pub(crate) outputs: VecDeque<Output>,
    /// What the broker has encoded, and the socket has not taken.
    pub(crate) unsent: Vec<u8>,
    /// What the socket has taken, and the client has not understood.
    pub(crate) received: Vec<u8>,
    pub(crate) channels: BTreeMap<Mode, ClientChannel>,
    /// It has said `connection.close`.
    pub(crate) is_closing: bool,
    /// What it has begun to say.
    pub(crate) unfinished: Option<Unfinished>,
    /// Whether it shows that it lives.
    pub(crate) has_heartbeat: bool,
}

impl Link {
    pub(crate) fn new(connection: Connection, has_heartbeat: bool) -> Self {
        Link {
            connection,
            id: None,
            carry: Vec::new(),
            outputs: VecDeque::new(),
            unsent: Vec::new(),
            received: Vec::new(),
            channels: BTreeMap::new(),
            is_closing: false,
            unfinished: None,
            has_heartbeat,
        }
    }

    /// Something that the client was to hear on a channel that it has open, and has not.
    pub(crate) fn untold(&self) -> Option<&Told> {
        let mut open = self.channels.values().filter(|channel| channel.standing == Standing::Open);
        if self.is_closing { None } else { open.find_map(|channel| channel.told.front()) }
    }

    pub(crate) fn channel(&mut self, mode: Mode) -> &mut ClientChannel {
        self.channels.entry(mode).or_default()
    }

    /// Understands what was received. What the client says to that at once is added to `answer`.
    pub(crate) fn hear(&mut self, answer: &mut Vec<u8>) -> Result<Vec<Heard>, Violation> {
        let mut heard = Vec::new();
        let received = std::mem::take(&mut self.received);
        let mut rest = &received[..];
        loop {
            let frame = match split_frame(&mut rest, u32::MAX) {
                Ok(Some(frame)) => frame,
                Ok(None) => break,
                Err(error) => return Err(format!("a frame of the broker is malformed: {error}")),
            };
            if frame.channel == 0 {
                if frame.kind == FrameKind::Method {
                    match Method::decode(frame.payload) {
                        Ok(Method::ConnectionCloseOk {}) => heard.push(Heard::Closed(None)),
                        Ok(Method::ConnectionClose { reply_code, reply_text, .. }) => {
                            heard.push(Heard::Closed(Some(format!("{reply_code} {}", reply_text.as_str()))));
                        }
                        Ok(_) => {}
                        Err(error) => return Err(format!("a method of the broker is malformed: {error}")),
                    }
                }
                continue;
            }
            let Some(mode) = Mode::ALL.get(usize::from(frame.channel) - 1).copied() else {
                return Err(format!("a frame on channel {}", frame.channel));
            };
            let channel = self.channels.entry(mode).or_default();
            match frame.kind {
                FrameKind::Method => {
                    let method = Method::decode(frame.payload)
                        .map_err(|error| format!("a method of the broker is malformed: {error}"))?;
                    heard.extend(channel.hear_method(mode, frame.channel, &method, answer)?);
                }
                FrameKind::Header => {
                    let header = ContentHeader::decode(frame.payload)
                        .map_err(|error| format!("a header of the broker is malformed: {error}"))?;
                    let Some(content) = &mut channel.content else {
                        return Err("a header without a method".into());
                    };
                    content.missing = header.body_bytes;
                }
                FrameKind::Body => {
                    let Some(content) = &mut channel.content else { return Err("a body without a method".into()) };
                    content.body.extend_from_slice(frame.payload);
                    content.missing = content.missing.saturating_sub(frame.payload.len() as u64);
                }
                FrameKind::Heartbeat => return Err("a heartbeat on a channel".into()),
            }
            if frame.kind != FrameKind::Method
                && let Some(content) = channel.content.take_if(|content| content.missing == 0)
            {
                heard.push(channel.hear_content(mode, &content)?);
            }
        }
        self.received = rest.to_vec();
        Ok(heard)
    }
}

impl ClientChannel {
    fn hear_method(
        &mut self,
        mode: Mode,
        number: u16,
        method: &Method<'_>,
        answer: &mut Vec<u8>,
    ) -> Result<Option<Heard>, Violation> {
        match *method {
            Method::BasicDeliver { delivery_tag, redelivered, .. }
            | Method::BasicGetOk { delivery_tag, redelivered, .. } => {
                let delivery = Some((delivery_tag, redelivered));
                self.content = Some(Content { delivery, missing: u64::MAX, body: Vec::new() });
                Ok(None)
            }
            Method::BasicReturn { .. } => {
                self.content = Some(Content { delivery: None, missing: u64::MAX, body: Vec::new() });
                Ok(None)
            }
            Method::BasicAck { delivery_tag: number, multiple } => {
                Ok(Some(Heard::Confirmed { mode, number, multiple, refused: false }))
            }
            Method::BasicNack { delivery_tag: number, multiple, .. } => {
                Ok(Some(Heard::Confirmed { mode, number, multiple, refused: true }))
            }
            Method::ChannelClose { .. } => {
                write_method(answer, number, &Method::ChannelCloseOk {});
                match self.told.pop_front() {
                    Some(Told::Closed) => {}
                    other => return Err(format!("{mode:?}: the channel is closed instead of {other:?}")),
                }
                *self = ClientChannel::default();
                Ok(None)
            }
            Method::ChannelCloseOk {} => {
                let told = self.told.pop_front();
                *self = ClientChannel::default();
                Ok(told.map(|told| Heard::Told(mode, told)))
            }
            ref other => match self.told.pop_front() {
                Some(told @ Told::Answer { .. }) => {
                    self.void_for = self.void_for.saturating_sub(1);
                    if matches!(other, Method::BasicRecoverOk {}) {
                        self.unacked.clear();
                    }
                    Ok(Some(Heard::Told(mode, told)))
                }
                told => Err(format!("{mode:?}: {} instead of {told:?}", other.name())),
            },
        }
    }

    fn hear_content(&mut self, mode: Mode, content: &Content) -> Result<Heard, Violation> {
        let Some(told) = self.told.pop_front() else {
            return Err(format!("{mode:?}: a message that is not for it"));
        };
        let is_right = match &told {
            Told::Message { tag, redelivered, id, bytes, .. } => {
                content.delivery == Some((*tag, *redelivered)) && content.body == body(*id, *bytes)
            }
            Told::Return(id) => content.delivery.is_none() && content.body.starts_with(&id.to_le_bytes()),
            Told::Answer { .. } | Told::Closed => false,
        };
        if !is_right {
            return Err(format!("{mode:?}: delivery {:?} instead of {told:?}", content.delivery));
        }
        if let Told::Message { tag, no_ack: false, .. } = told {
            self.unacked.push(tag);
        }
        Ok(Heard::Told(mode, told))
    }
}

/// The number of a channel.
pub(crate) fn number(mode: Mode) -> u16 {
    match mode {
        Mode::Plain => 1,
        Mode::Confirm => 2,
        Mode::Transaction => 3,
    }
}

/// All that a client says to log in and to be in a virtual host.
pub(crate) fn handshake(vhost: &str, heartbeat: u16) -> Vec<u8> {
    let mut bytes = b"AMQP\x00\x00\x09\x01".to_vec();
    let text = ShortStr::truncated;
    let client_properties = FieldTable::build(|table| {
        table.table("capabilities", |capabilities| {
            capabilities.field("consumer_cancel_notify", Value::Bool(true));
        });
    });
    let (mechanism, response, locale) = (text("PLAIN"), b"\0guest\0guest", text("en_US"));
    let client_properties = client_properties.as_table();
    write_method(&mut bytes, 0, &Method::ConnectionStartOk { client_properties, mechanism, response, locale });
    write_method(&mut bytes, 0, &Method::ConnectionTuneOk { channel_max: 0, frame_max: FRAME_MAX, heartbeat });
    let (virtual_host, capabilities) = (text(vhost), text(""));
    write_method(&mut bytes, 0, &Method::ConnectionOpen { virtual_host, capabilities, insist: false });
    bytes
}

/// What opens a channel and puts it into its mode.
pub(crate) fn open_channel(mode: Mode) -> Vec<u8> {
    let mut bytes = Vec::new();
    write_method(&mut bytes, number(mode), &Method::ChannelOpen { out_of_band: ShortStr::truncated("") });
    match mode {
        Mode::Plain => {}
        Mode::Confirm => write_method(&mut bytes, number(mode), &Method::ConfirmSelect { nowait: false }),
        Mode::Transaction => write_method(&mut bytes, number(mode), &Method::TxSelect {}),
    }
    bytes
}

/// One method on a channel.
pub(crate) fn method(mode: Mode, method: &Method<'_>) -> Vec<u8> {
    let mut bytes = Vec::new();
    write_method(&mut bytes, number(mode), method);
    bytes
}

/// A publish.
pub(crate) fn publish(
    mode: Mode,
    (exchange, routing_key): (&str, &str),
    mandatory: bool,
    properties: BasicProperties<'_>,
    body: &[u8],
) -> Vec<u8> {
    let text = ShortStr::truncated;
    let (exchange, routing_key) = (text(exchange), text(routing_key));
    let mut bytes =
        method(mode, &Method::BasicPublish { ticket: 0, exchange, routing_key, mandatory, immediate: false });
    let mut header = Vec::new();
    ContentHeader { body_bytes: body.len() as u64, properties }.encode(&mut header);
    write_content(&mut bytes, number(mode), &header, body, FRAME_MAX);
    bytes
}

/// No arguments.
pub(crate) const NONE: Table<'static> = Table::EMPTY;
