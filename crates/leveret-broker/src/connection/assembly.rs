//! A content being assembled from its frames. AMQP 0-9-1 §4.2.6.
//!
//! Owns: the block that will be the message, as far as it has arrived. It never holds more than arrived.
//! Must not know: exchanges, queues, what becomes of the message.

use leveret_amqp::{BasicProperties, ContentHeader, ShortStr, ShortString, Table, Value};
use leveret_planted::{Bug, planted};

use crate::connection::reply::{ClientError, Expected};
use crate::limits::{BODY_BYTES_MAX, SELECTED_KEYS_MAX, TTL_MAX};
use crate::memory::{Lease, Meter};
use crate::message::{DeliveryMode, Message, write_hidden_key, write_route};
use crate::names::UserName;
use crate::vhost::replies::PSEUDO_QUEUE;

/// A connection keeps a block of up to this size for its next content.
pub(super) const KEPT_BLOCK_BYTES: usize = 64 * 1024;

/// What a channel has of a content.
#[derive(Debug)]
pub(super) struct Assembly {
    state: State,
    block: Vec<u8>,
    /// What the block of a content that is not complete takes.
    unfinished: Lease,
}

#[derive(Debug, Default)]
enum State {
    #[default]
    Idle,
    AwaitingHeader {
        mandatory: bool,
    },
    AwaitingBody {
        parts: Parts,
        bytes_left: u64,
    },
    /// The content was refused at its header; its body is counted and dropped.
    Dropping {
        bytes_left: u64,
    },
}

#[derive(Debug)]
struct Parts {
    mandatory: bool,
    header_at: u16,
    body_at: u32,
    delivery_mode: DeliveryMode,
    expiration_ms: Option<u64>,
    more_keys: Option<Box<[ShortString]>>,
}

/// A content that is complete.
#[derive(Debug)]
pub(super) struct Assembled {
    pub(super) message: Message,
    pub(super) mandatory: bool,
    pub(super) expiration_ms: Option<u64>,
    pub(super) more_keys: Option<Box<[ShortString]>>,
}

/// What a content that arrives in pieces gets room for, at most, beyond its next two. A large block, which is a mapping, moves
/// without being copied.
const GROWTH_BYTES_MAX: usize = 64 * 1024;

impl Assembly {
    /// No content yet; the bytes of one that is not complete are added up in `unfinished`.
    pub(super) fn new(unfinished: Meter) -> Self {
        Assembly { state: State::default(), block: Vec::new(), unfinished: Lease::new(unfinished) }
    }

    /// What may arrive next on the channel.
    pub(super) fn expected(&self) -> Expected {
        match self.state {
            State::Idle => Expected::Method,
            State::AwaitingHeader { .. } => Expected::Header,
            State::AwaitingBody { .. } | State::Dropping { .. } => Expected::Body,
        }
    }

    /// `basic.publish`. The content is assembled in `room`, which is empty and may have capacity.
    pub(super) fn begin(
        &mut self,
        room: Vec<u8>,
        exchange: ShortStr<'_>,
        routing_key: ShortStr<'_>,
        mandatory: bool,
    ) {
        self.block = room;
        write_route(&mut self.block, exchange, routing_key);
        self.state = State::AwaitingHeader { mandatory };
    }

    /// The payload of a header frame.
    ///
    /// What the broker needs of the properties is taken out here, once. An error that RabbitMQ answers with a
    /// channel exception leaves the assembly dropping the body.
    pub(super) fn header(
        &mut self,
        payload: &[u8],
        user: Option<&UserName>,
        reply_key: Option<ShortStr<'_>>,
        max_message_size: u64,
    ) -> Result<Option<Assembled>, ClientError> {
        let State::AwaitingHeader { mandatory } = self.state else {
            return Err(ClientError::NotExpected(self.expected()));
        };
        let header = ContentHeader::decode(payload).map_err(ClientError::Header)?;
        if header.body_bytes > BODY_BYTES_MAX {
            return Err(ClientError::BodyBeyondAllLimits(header.body_bytes));
        }
        let bytes_left = header.body_bytes;
        self.state = State::Dropping { bytes_left };
        if bytes_left == 0 {
            self.state = State::Idle;
        }
        if header.body_bytes > max_message_size {
            return Err(ClientError::BodyTooLarge { bytes: header.body_bytes, limit: max_message_size });
        }
        check_user_id(&header.properties, user)?;
        let expiration_ms = header.properties.expiration.map(parse_expiration).transpose()?;
        let more_keys = sender_selected_keys(header.properties.headers.unwrap_or(Table::EMPTY))?;
        let reply_to = reply_to(&header.properties, reply_key)?;
        let delivery_mode = DeliveryMode::of(&header.properties);
        for key in more_keys.as_ref().map_or(&[][..], |keys| &keys.keys[keys.hidden_from..]) {
            if !write_hidden_key(&mut self.block, key.as_short_str()) {
                return Err(ClientError::TooManyHiddenKeys);
            }
        }
        let more_keys = more_keys.map(SelectedKeys::distinct).transpose()?;
        let header_at = u16::try_from(self.block.len()).expect("a route is at most 512 bytes, and keys beyond fit");
        append_header(&mut self.block, payload, &header, reply_to);
        let body_at = u32::try_from(self.block.len()).expect("a header is at most one frame");
        self.unfinished.take(self.block.len());
        if planted(Bug::RoomAsAnnounced) {
            self.block.reserve_exact(usize::try_from(bytes_left).unwrap_or_default());
        }
        let parts = Parts { mandatory, header_at, body_at, delivery_mode, expiration_ms, more_keys };
        self.state = State::AwaitingBody { parts, bytes_left };
        Ok(if bytes_left == 0 { self.finish() } else { None })
    }

    /// The payload of a body frame.
    pub(super) fn body(&mut self, payload: &[u8]) -> Result<Option<Assembled>, ClientError> {
        let expected = self.expected();
        let (State::AwaitingBody { bytes_left, .. } | State::Dropping { bytes_left }) = &mut self.state else {
            return Err(ClientError::NotExpected(expected));
        };
        let bytes_wanted = *bytes_left;
        let left = bytes_left.checked_sub(payload.len() as u64).or(planted(Bug::BodyTooLong).then_some(0));
        *bytes_left = left.ok_or(ClientError::BodyTooLong)?;
        let is_complete = *bytes_left == 0;
        match self.state {
            State::AwaitingBody { .. } => {
                if self.block.capacity() - self.block.len() < payload.len() {
                    // So there is never room for more than twice what has arrived, on however many channels.
                    let growth = (2 * payload.len() + self.block.len().min(GROWTH_BYTES_MAX)) as u64;
                    self.block.reserve_exact(usize::try_from(growth.min(bytes_wanted)).unwrap_or(payload.len()));
                }
                self.block.extend_from_slice(payload);
                self.unfinished.take(payload.len());
            }
            State::Dropping { .. } | State::Idle | State::AwaitingHeader { .. } => {}
        }
        Ok(if is_complete { self.finish() } else { None })
    }

    /// Gives up the room in which it assembles: what has arrived of a content moves to as much as it needs.
    pub(super) fn give_up_room(&mut self) -> Vec<u8> {
        let needed = if self.expected() == Expected::Method { Vec::new() } else { self.block.as_slice().into() };
        let mut room = std::mem::replace(&mut self.block, needed);
        room.clear();
        room
    }

    fn finish(&mut self) -> Option<Assembled> {
        let State::AwaitingBody { parts, .. } = std::mem::take(&mut self.state) else { return None };
        self.unfinished.give_back(self.unfinished.bytes());
        let Parts { mandatory, header_at, body_at, delivery_mode, expiration_ms, more_keys } = parts;
        let message = Message::new(&self.block, header_at, body_at, delivery_mode);
        Some(Assembled { message, mandatory, expiration_ms, more_keys })
    }
}

/// The header goes on as it came, but for header `BCC`, which no consumer sees, and property `reply-to` where it
/// stands for the channel. RabbitMQ: sender-selected distribution, direct reply-to.
fn append_header(block: &mut Vec<u8>, payload: &[u8], header: &ContentHeader<'_>, reply_to: Option<ShortStr<'_>>) {
    let without_bcc = header.properties.headers.filter(|headers| headers.get("BCC").is_some());
    let without_bcc = without_bcc.map(|headers| headers.without("BCC"));
    if without_bcc.is_none() && reply_to.is_none() {
        return block.extend_from_slice(payload);
    }
    let mut properties = header.properties;
    if let Some(headers) = &without_bcc {
        properties.headers = Some(headers.as_table());
    }
    if let Some(reply_to) = reply_to {
        properties.reply_to = Some(reply_to.as_str().as_bytes());
    }
    ContentHeader { properties, ..*header }.encode(block);
}

/// The routing key to write instead of the name of the pseudo-queue.
fn reply_to<'k>(
    properties: &BasicProperties<'_>,
    reply_key: Option<ShortStr<'k>>,
) -> Result<Option<ShortStr<'k>>, ClientError> {
    match (properties.reply_to, reply_key) {
        (Some(name), Some(key)) if name == PSEUDO_QUEUE.as_bytes() => Ok(Some(key)),
        (Some(name), None) if name == PSEUDO_QUEUE.as_bytes() => {
            Err(ClientError::ReplyConsumer("fast reply consumer does not exist"))
        }
        _ => Ok(None),
    }
}

/// RabbitMQ: validated user-id. Without a user, any will do.
fn check_user_id(properties: &BasicProperties<'_>, user: Option<&UserName>) -> Result<(), ClientError> {
    match (properties.user_id, user) {
        (Some(claimed), Some(user)) if claimed != user.as_str().as_bytes() => {
            let claimed = String::from_utf8_lossy(claimed).into_owned();
            Err(ClientError::UserId { claimed, user: user.to_string() })
        }
        (Some(_) | None, _) => Ok(()),
    }
}

/// A number of milliseconds in decimal digits. The words for faults are RabbitMQ's.
pub(super) fn parse_expiration(value: &[u8]) -> Result<u64, ClientError> {
    let refuse =
        |fault: String| Err(ClientError::Expiration { value: String::from_utf8_lossy(value).into_owned(), fault });
    let text = std::str::from_utf8(value).unwrap_or_default();
    let digits = text.strip_prefix(['-', '+']).unwrap_or(text);
    let end = digits.find(|c: char| !c.is_ascii_digit()).unwrap_or(digits.len());
    if end == 0 {
        return refuse("no_integer".into());
    }
    if end < digits.len() {
        return refuse(format!("{{leftover_string,\"{}\"}}", &digits[end..]));
    }
    if text.starts_with('-') {
        return refuse(format!("{{value_negative,{text}}}"));
    }
    match digits.parse::<u64>() {
        Ok(milliseconds) if u128::from(milliseconds) <= TTL_MAX.as_millis() => Ok(milliseconds),
        _ => refuse(format!("{{value_too_large,{digits}}}")),
    }
}

/// The routing keys of headers `CC` and `BCC`.
struct SelectedKeys {
    keys: Box<[ShortString]>,
    /// Where those of `BCC` begin.
    hidden_from: usize,
}

impl SelectedKeys {
    /// Each of them once, if they are not too many.
    fn distinct(self) -> Result<Box<[ShortString]>, ClientError> {
        let mut keys = self.keys.into_vec();
        keys.sort_unstable();
        keys.dedup();
        if keys.len() > SELECTED_KEYS_MAX {
            return Err(ClientError::TooManySelectedKeys);
        }
        Ok(keys.into())
    }
}

/// The routing keys of headers `CC` and `BCC`, arrays of strings. RabbitMQ: sender-selected distribution.
fn sender_selected_keys(headers: Table<'_>) -> Result<Option<SelectedKeys>, ClientError> {
    if headers.is_empty() {
        return Ok(None);
    }
    let (mut keys, mut hidden_from) = (Vec::new(), 0);
    for name in ["CC", "BCC"] {
        hidden_from = keys.len();
        let Some(value) = headers.get(name) else { continue };
        let Value::Array(array) = value else {
            return Err(ClientError::SenderSelectedHeader { name, type_name: value.type_name() });
        };
        // What is no routing key routes nowhere.
        keys.extend(array.iter().filter_map(|key| ShortString::new(key.as_str()?).ok()));
    }
    Ok((!keys.is_empty()).then(|| SelectedKeys { keys: keys.into(), hidden_from }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn expiration_is_a_number_of_milliseconds_and_nothing_else() {
        assert_eq!(parse_expiration(b"1000"), Ok(1000));
        assert_eq!(parse_expiration(b"0"), Ok(0));
        let fault = |value: &[u8]| match parse_expiration(value) {
            Err(ClientError::Expiration { fault, .. }) => fault,
            other => panic!("{other:?}"),
        };
        assert_eq!(fault(b"abc"), "no_integer");
        assert_eq!(fault(b""), "no_integer");
        assert_eq!(fault(b"1 "), "{leftover_string,\" \"}");
        assert_eq!(fault(b"-1"), "{value_negative,-1}");
        assert_eq!(fault(b"315360000001"), "{value_too_large,315360000001}");
        assert_eq!(fault(b"99999999999999999999999"), "{value_too_large,99999999999999999999999}");
    }
}
