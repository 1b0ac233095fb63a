//! Finding messages, confirms and the few other methods that matter in what a broker sends, in large reads.
//!
//! Must not know: sockets.
//! Of a body nothing is kept but its stamp; the rest passes by wherever reads cut it.

use leveret_amqp::frame::{FRAME_END, FRAME_HEAD_BYTES, split_frame};
use leveret_amqp::{ContentHeader, FrameError, FrameKind, Method, Snippet};
use leveret_client::{Error, Reply, Scope};

use crate::limits::READ_BYTES;
use crate::stamp::STAMP_BYTES;

/// What a broker sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Event {
    /// A whole message has arrived.
    Message(Arrived),
    /// `basic.ack`.
    Ack { number: u64, multiple: bool },
    /// `basic.nack`.
    Nack { number: u64, multiple: bool },
    /// `basic.get-empty`.
    GetEmpty,
    /// `basic.consume-ok`.
    ConsumeOk,
    /// `basic.cancel-ok`.
    CancelOk,
    /// `connection.close-ok`.
    CloseOk,
    /// `connection.blocked`.
    Blocked,
    /// `connection.unblocked`.
    Unblocked,
    /// `basic.cancel`: the queue is gone.
    Cancelled,
}

/// A message whose last byte has arrived.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Arrived {
    /// The number that is the consumer's tag; 0 for a message that was got.
    pub(crate) consumer: u32,
    pub(crate) delivery_tag: u64,
    pub(crate) body_bytes: u64,
    /// The first bytes of the body, filled up with zeros if it has fewer.
    pub(crate) stamp: [u8; STAMP_BYTES],
}

/// Where in a message the input stands.
#[derive(Clone, Copy, Debug)]
enum State {
    /// Before a method.
    Between,
    /// A method announced a message.
    Announced(Arrived),
    /// Before a body frame, with so many bytes of the body to come.
    Body(Arrived, u64),
    /// Within a body frame: bytes of the body to come in all, and in this frame.
    InFrame(Arrived, u64, u64),
}

/// The input of one connection.
#[derive(Debug)]
pub(crate) struct Scanner {
    /// Of this buffer, `input[taken..filled]` was read and not yet taken.
    input: Vec<u8>,
    taken: usize,
    filled: usize,
    frame_max: u32,
    state: State,
    /// The payload of the last header frame, if anybody wants it.
    header: Option<Vec<u8>>,
}

impl Scanner {
    /// `input` begins with a frame.
    pub(crate) fn new(input: Vec<u8>, frame_max: u32) -> Self {
        let filled = input.len();
        Scanner { input, taken: 0, filled, frame_max, state: State::Between, header: None }
    }

    /// From now on [`Scanner::header`] has the header of a message.
    pub(crate) fn keep_headers(&mut self) {
        self.header = Some(Vec::new());
    }

    /// The payload of the header frame of the message that arrived last.
    pub(crate) fn header(&self) -> &[u8] {
        self.header.as_deref().unwrap_or_default()
    }

    /// Room for a read.
    pub(crate) fn space(&mut self) -> &mut [u8] {
        if self.taken > 0 {
            self.input.copy_within(self.taken..self.filled, 0);
            self.filled -= self.taken;
            self.taken = 0;
        }
        if self.input.len() < self.filled + READ_BYTES {
            self.input.resize(self.filled + READ_BYTES, 0);
        }
        &mut self.input[self.filled..]
    }

    /// So many bytes were read into [`Scanner::space`].
    pub(crate) fn handle_read(&mut self, bytes: usize) {
        self.filled += bytes;
    }

    /// What comes next in the input; `None` when more bytes are needed. A close by the broker is an error.
    pub(crate) fn poll_event(&mut self) -> Result<Option<Event>, Error> {
        if let (State::Between, None) = (self.state, &self.header)
            && let Some((arrived, bytes)) = whole_message(&self.input[self.taken..self.filled], self.frame_max)
        {
            self.taken += bytes;
            return Ok(Some(Event::Message(arrived)));
        }
        loop {
            let input = &self.input[self.taken..self.filled];
            match self.state {
                State::InFrame(mut arrived, left, frame_left) => {
                    if let Some(frame_left) = frame_left.checked_sub(input.len() as u64) {
                        note_stamp(&mut arrived, left, input);
                        self.taken = self.filled;
                        self.state = State::InFrame(arrived, left - input.len() as u64, frame_left);
                        return Ok(None);
                    }
                    let payload = &input[..usize::try_from(frame_left).unwrap_or(usize::MAX)];
                    note_stamp(&mut arrived, left, payload);
                    let end = input[payload.len()];
                    if end != FRAME_END {
                        let snippet = Snippet::of(payload);
                        return Err(
                            FrameError::BadEnd { kind: FrameKind::Body as u8, end, payload: snippet }.into()
                        );
                    }
                    self.taken += payload.len() + 1;
                    if let Some(message) = self.continue_with(arrived, left - frame_left) {
                        return Ok(Some(message));
                    }
                }
                State::Body(arrived, left) if input.first() == Some(&(FrameKind::Body as u8)) => {
                    let Some(&[_, _, _, l0, l1, l2, l3]) = input.first_chunk::<FRAME_HEAD_BYTES>() else {
                        return Ok(None);
                    };
                    let payload_bytes = u32::from_be_bytes([l0, l1, l2, l3]);
                    if payload_bytes > self.frame_max {
                        let kind = FrameKind::Body as u8;
                        let frame_max = self.frame_max;
                        return Err(FrameError::TooLarge { kind, payload_bytes, frame_max }.into());
                    }
                    if u64::from(payload_bytes) > left {
                        return Err(unexpected("more body than its header announced"));
                    }
                    self.taken += FRAME_HEAD_BYTES;
                    self.state = State::InFrame(arrived, left, payload_bytes.into());
                }
                State::Between | State::Announced(_) | State::Body(..) => {
                    let mut rest = input;
                    let Some(frame) = split_frame(&mut rest, self.frame_max)? else {
                        return Ok(None);
                    };
                    self.taken = self.filled - rest.len();
                    match (frame.kind, self.state) {
                        (FrameKind::Heartbeat, _) => {}
                        (FrameKind::Method, State::Between) => match announced(frame.payload)? {
                            Some(arrived) => self.state = State::Announced(arrived),
                            None => return event_of(frame.payload).map(Some),
                        },
                        // Methods of the connection may come in the middle of a message. AMQP 0-9-1 §4.2.6.
                        (FrameKind::Method, _) if frame.channel == 0 => return event_of(frame.payload).map(Some),
                        (FrameKind::Method, _) => return Err(unexpected("a method in the middle of a message")),
                        (FrameKind::Header, State::Announced(mut arrived)) => {
                            if let Some(header) = &mut self.header {
                                header.clear();
                                header.extend_from_slice(frame.payload);
                            }
                            arrived.body_bytes = body_bytes(frame.payload)?;
                            if let Some(message) = self.continue_with(arrived, arrived.body_bytes) {
                                return Ok(Some(message));
                            }
                        }
                        (FrameKind::Header, _) => return Err(unexpected("a content header without its method")),
                        (FrameKind::Body, _) => return Err(unexpected("a body without its header")),
                    }
                }
            }
        }
    }

    /// After a frame of a message, with so many bytes of its body to come.
    fn continue_with(&mut self, arrived: Arrived, left: u64) -> Option<Event> {
        if left > 0 {
            self.state = State::Body(arrived, left);
            return None;
        }
        self.state = State::Between;
        Some(Event::Message(arrived))
    }
}

/// The short way for most messages: those whose frames are all there, at most one of them with a body. Gives how many bytes they
/// are. For anything else, faults among them, the long way is taken.
fn whole_message(input: &[u8], frame_max: u32) -> Option<(Arrived, usize)> {
    let mut rest = input;
    let mut payload_of = |kind| {
        let frame = split_frame(&mut rest, frame_max).ok()??;
        (frame.kind == kind).then_some(frame.payload)
    };
    let mut arrived = announced(payload_of(FrameKind::Method)?).ok()??;
    arrived.body_bytes = body_bytes(payload_of(FrameKind::Header)?).ok()?;
    if arrived.body_bytes > 0 {
        let body = payload_of(FrameKind::Body)?;
        if body.len() as u64 != arrived.body_bytes {
            return None;
        }
        note_stamp(&mut arrived, body.len() as u64, body);
    }
    Some((arrived, input.len() - rest.len()))
}

fn unexpected(what: &str) -> Error {
    Error::Unexpected(what.to_owned())
}

/// Keeps what of `bytes` belongs to the stamp; `left` bytes of the body had not been seen before them.
fn note_stamp(arrived: &mut Arrived, left: u64, bytes: &[u8]) {
    let seen = arrived.body_bytes - left;
    if let Ok(seen) = usize::try_from(seen)
        && let Some(missing) = arrived.stamp.get_mut(seen..)
    {
        let count = missing.len().min(bytes.len());
        missing[..count].copy_from_slice(&bytes[..count]);
    }
}

/// The size in a content header, whose properties nobody needs.
fn body_bytes(payload: &[u8]) -> Result<u64, Error> {
    match *payload {
        [0, 60, 0, 0, b0, b1, b2, b3, b4, b5, b6, b7, ..] => {
            Ok(u64::from_be_bytes([b0, b1, b2, b3, b4, b5, b6, b7]))
        }
        // For its complaint.
        _ => Ok(ContentHeader::decode(payload)?.body_bytes),
    }
}

/// The message that `basic.deliver` or `basic.get-ok` announces; `None` for other methods.
fn announced(payload: &[u8]) -> Result<Option<Arrived>, Error> {
    let arrived =
        |consumer, delivery_tag| Arrived { consumer, delivery_tag, body_bytes: 0, stamp: [0; STAMP_BYTES] };
    match *payload {
        [0, 60, 0, 60, tag_bytes, ref rest @ ..] => {
            let (tag, rest) = rest.split_at_checked(tag_bytes.into()).ok_or_else(too_short)?;
            let delivery_tag = rest.first_chunk().ok_or_else(too_short)?;
            let digits = tag.iter().try_fold(0u32, |number, &digit| {
                let digit = digit.is_ascii_digit().then(|| u32::from(digit - b'0'))?;
                number.checked_mul(10)?.checked_add(digit)
            });
            let consumer = digits.ok_or_else(|| unexpected("a message for a consumer that we never started"))?;
            Ok(Some(arrived(consumer, u64::from_be_bytes(*delivery_tag))))
        }
        [0, 60, 0, 71, ref rest @ ..] => {
            let delivery_tag = rest.first_chunk().ok_or_else(too_short)?;
            Ok(Some(arrived(0, u64::from_be_bytes(*delivery_tag))))
        }
        _ => Ok(None),
    }
}

fn too_short() -> Error {
    leveret_amqp::DecodeError::Truncated.into()
}

fn event_of(payload: &[u8]) -> Result<Event, Error> {
    let closed = |scope, (code, text, class_id, method_id): (u16, &str, u16, u16)| {
        let reply = Reply { code, text: text.to_owned(), method: (class_id, method_id) };
        Err(Error::Closed { scope, reply })
    };
    Ok(match Method::decode(payload)? {
        Method::BasicAck { delivery_tag, multiple } => Event::Ack { number: delivery_tag, multiple },
        Method::BasicNack { delivery_tag, multiple, requeue: _ } => Event::Nack { number: delivery_tag, multiple },
        Method::BasicGetEmpty { .. } => Event::GetEmpty,
        Method::BasicConsumeOk { .. } => Event::ConsumeOk,
        Method::BasicCancelOk { .. } => Event::CancelOk,
        Method::ConnectionCloseOk {} => Event::CloseOk,
        Method::ConnectionBlocked { .. } => Event::Blocked,
        Method::ConnectionUnblocked {} => Event::Unblocked,
        Method::BasicCancel { .. } => Event::Cancelled,
        Method::ConnectionClose { reply_code, reply_text, class_id, method_id } => {
            return closed(Scope::Connection, (reply_code, reply_text.as_str(), class_id, method_id));
        }
        Method::ChannelClose { reply_code, reply_text, class_id, method_id } => {
            return closed(Scope::Channel, (reply_code, reply_text.as_str(), class_id, method_id));
        }
        other => return Err(unexpected(other.name())),
    })
}

#[cfg(test)]
mod tests {
    use leveret_amqp::frame::{write_content, write_frame, write_method};
    use leveret_amqp::{BasicProperties, ShortStr};

    use super::*;

    fn short(text: &str) -> ShortStr<'_> {
        ShortStr::new(text).unwrap()
    }

    fn content(bytes: &mut Vec<u8>, method: &Method<'_>, body: &[u8]) {
        write_method(bytes, 1, method);
        let mut header = Vec::new();
        let properties = BasicProperties { reply_to: Some(b"there"), ..BasicProperties::default() };
        ContentHeader { body_bytes: body.len() as u64, properties }.encode(&mut header);
        write_content(bytes, 1, &header, body, 4096);
    }

    fn deliver(delivery_tag: u64) -> Method<'static> {
        let (consumer_tag, exchange, routing_key) = (short("12"), ShortStr::EMPTY, short("k"));
        Method::BasicDeliver { consumer_tag, delivery_tag, redelivered: false, exchange, routing_key }
    }

    /// Everything that matters, and what must come of it.
    fn conversation() -> (Vec<u8>, Vec<Event>) {
        let mut bytes = Vec::new();
        let mut events = Vec::new();
        for (tag, body_bytes) in [(1, 0), (2, 5), (3, 16), (4, 40), (5, 9000)] {
            let body: Vec<u8> = (0..body_bytes).map(|at| u8::try_from(at % 251).unwrap()).collect();
            content(&mut bytes, &deliver(tag), &body);
            let mut stamp = [0; 16];
            stamp[..body.len().min(16)].copy_from_slice(&body[..body.len().min(16)]);
            let body_bytes = body.len() as u64;
            events.push(Event::Message(Arrived { consumer: 12, delivery_tag: tag, body_bytes, stamp }));
        }
        write_frame(&mut bytes, FrameKind::Heartbeat, 0, |_| {});
        write_method(&mut bytes, 1, &Method::BasicAck { delivery_tag: 7, multiple: true });
        write_method(&mut bytes, 1, &Method::BasicNack { delivery_tag: 8, multiple: false, requeue: false });
        write_method(&mut bytes, 0, &Method::ConnectionBlocked { reason: short("low on disk") });
        write_method(&mut bytes, 0, &Method::ConnectionUnblocked {});
        write_method(&mut bytes, 1, &Method::BasicGetEmpty { cluster_id: ShortStr::EMPTY });
        events.extend([
            Event::Ack { number: 7, multiple: true },
            Event::Nack { number: 8, multiple: false },
            Event::Blocked,
            Event::Unblocked,
            Event::GetEmpty,
        ]);
        (bytes, events)
    }

    fn feed(scanner: &mut Scanner, bytes: &[u8], events: &mut Vec<Event>) {
        scanner.space()[..bytes.len()].copy_from_slice(bytes);
        scanner.handle_read(bytes.len());
        while let Some(event) = scanner.poll_event().unwrap() {
            events.push(event);
        }
    }

    #[test]
    fn messages_are_found_wherever_reads_cut_them() {
        let (bytes, expected) = conversation();
        let mut scanner = Scanner::new(Vec::new(), 4096);
        for cut in 0..=bytes.len() {
            let mut events = Vec::new();
            feed(&mut scanner, &bytes[..cut], &mut events);
            feed(&mut scanner, &bytes[cut..], &mut events);
            assert_eq!(events, expected, "cut at {cut}");
        }
        let mut events = Vec::new();
        for byte in bytes.chunks(1) {
            feed(&mut scanner, byte, &mut events);
        }
        assert_eq!(events, expected);
    }

    #[test]
    fn a_header_is_kept_for_who_asks() {
        let mut bytes = Vec::new();
        content(&mut bytes, &deliver(1), b"x");
        let mut scanner = Scanner::new(bytes, 4096);
        scanner.keep_headers();
        assert!(matches!(scanner.poll_event(), Ok(Some(Event::Message(_)))));
        let header = ContentHeader::decode(scanner.header()).unwrap();
        assert_eq!(header.properties.reply_to, Some(&b"there"[..]));
    }

    #[test]
    fn what_breaks_the_rules_is_an_error() {
        let fault = |bytes: Vec<u8>| {
            let mut scanner = Scanner::new(bytes, 4096);
            loop {
                match scanner.poll_event() {
                    Ok(Some(_)) => {}
                    Ok(None) => panic!("no error"),
                    Err(error) => return error.to_string(),
                }
            }
        };
        let mut message = Vec::new();
        content(&mut message, &deliver(1), b"four");
        let mut bad_end = message.clone();
        *bad_end.last_mut().unwrap() = 0;
        assert!(fault(bad_end).contains("0x00"));
        let body_at = message.len() - 4 - 8;
        assert!(fault(message[body_at..].to_vec()).contains("a body without its header"));
        let mut long = message.clone();
        long[body_at + 6] = 5;
        assert!(fault(long).contains("more body"));
        let mut twice = message[..body_at].to_vec();
        write_method(&mut twice, 1, &deliver(2));
        assert!(fault(twice).contains("in the middle of a message"));
        let mut closed = Vec::new();
        let close = Method::ChannelClose { reply_code: 404, reply_text: short("NO"), class_id: 60, method_id: 40 };
        write_method(&mut closed, 1, &close);
        assert_eq!(fault(closed), "404 NO");
    }
}
