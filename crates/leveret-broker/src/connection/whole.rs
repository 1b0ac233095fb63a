//! A publish of which every frame is there: method, header and body in one go.
//!
//! Owns: what the last publishes of the connection had in common with the next one, so that it is checked once.
//! Must not know: what is wrong with a publish. Whatever is not whole, or out of the ordinary in any way, is left as it is,
//! for the frames to be taken one by one.

use leveret_amqp::frame::split_frame;
use leveret_amqp::{BasicProperties, ContentHeader, FrameKind};

use crate::connection::Connection;
use crate::connection::assembly::{Assembled, KEPT_BLOCK_BYTES, parse_expiration};
use crate::connection::reply::Expected;
use crate::limits::REMEMBERED_PROPERTIES_BYTES;
use crate::message::{DeliveryMode, Message};
use crate::names::ChannelId;
use crate::vhost::replies::PSEUDO_QUEUE;

/// Class and method id of `basic.publish`, as they stand on the wire.
const BASIC_PUBLISH: &[u8] = &[0, 60, 0, 40];

/// Class and weight of a content header.
const BASIC_CONTENT: &[u8] = &[0, 60, 0, 0];

/// What a whole publish consists of.
struct Whole<'i> {
    channel: ChannelId,
    /// Exchange and routing key, with their length octets.
    route: &'i [u8],
    flags: u8,
    /// The payload of the header frame.
    header: &'i [u8],
    body: &'i [u8],
}

/// What was found in order last.
#[derive(Debug)]
pub(super) struct Familiar {
    /// Exchange and routing key that are text.
    route: Vec<u8>,
    /// Property flags and properties that ask for nothing unusual.
    properties: Vec<u8>,
    ordinary: Ordinary,
}

/// What the broker needs of such properties.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Ordinary {
    delivery_mode: DeliveryMode,
    expiration_ms: Option<u64>,
}

impl Default for Familiar {
    /// Two empty names, and no properties: as long as nothing was found, that is in order. What is no route and no properties at
    /// all is not.
    fn default() -> Self {
        let ordinary = Ordinary { delivery_mode: DeliveryMode::Transient, expiration_ms: None };
        Familiar { route: vec![0, 0], properties: vec![0, 0], ordinary }
    }
}

impl<'i> Whole<'i> {
    /// Takes one off the front of the input. If there is none, what is left of the input is nothing to go on with.
    fn split(input: &mut &'i [u8], frame_max: u32) -> Option<Self> {
        if !input.get(7..)?.starts_with(BASIC_PUBLISH) {
            return None;
        }
        let method = split_frame(input, frame_max).ok()??;
        let header = split_frame(input, frame_max).ok()??;
        let is_content = (method.kind, header.kind) == (FrameKind::Method, FrameKind::Header);
        if !is_content || header.channel != method.channel {
            return None;
        }
        let body_bytes =
            header.payload.strip_prefix(BASIC_CONTENT)?.first_chunk().copied().map(u64::from_be_bytes)?;
        let mut body = &[][..];
        if body_bytes > 0 {
            let frame = split_frame(input, frame_max).ok()??;
            let is_all = frame.kind == FrameKind::Body && frame.payload.len() as u64 == body_bytes;
            if !is_all || frame.channel != method.channel {
                return None;
            }
            body = frame.payload;
        }
        // Before the route comes a ticket that means nothing any more.
        let (&flags, route) = method.payload.get(6..)?.split_last()?;
        let channel = ChannelId::new(method.channel)?;
        Some(Whole { channel, route, flags, header: header.payload, body })
    }
}

impl Familiar {
    fn knows_route(&mut self, route: &[u8]) -> bool {
        if self.route == route {
            return true;
        }
        let is_text = is_route(route);
        if is_text {
            self.route.clear();
            self.route.extend_from_slice(route);
        }
        is_text
    }

    /// What is needed of the properties in the payload of a content header, if they are ordinary.
    fn ordinary(&mut self, header: &[u8]) -> Option<Ordinary> {
        let properties = header.get(12..)?;
        if self.properties == properties {
            return Some(self.ordinary);
        }
        let ordinary = ordinary(&ContentHeader::decode(header).ok()?.properties)?;
        if properties.len() <= REMEMBERED_PROPERTIES_BYTES {
            self.properties.clear();
            self.properties.extend_from_slice(properties);
            self.ordinary = ordinary;
        }
        Some(ordinary)
    }
}

/// Whether these are two short strings of text, and nothing more.
fn is_route(route: &[u8]) -> bool {
    let short_string = |bytes: &'_ [u8]| {
        let (&length, rest) = bytes.split_first()?;
        let (text, rest) = rest.split_at_checked(usize::from(length))?;
        std::str::from_utf8(text).ok().map(|_| rest.len())
    };
    let key_bytes = short_string(route);
    let rest = key_bytes.and_then(|bytes| short_string(&route[route.len() - bytes..]));
    rest == Some(0)
}

/// What is needed of properties, if they neither name who publishes, nor where replies go by what stands for the channel, nor
/// more routing keys.
fn ordinary(properties: &BasicProperties<'_>) -> Option<Ordinary> {
    let has_keys = properties.headers.is_some_and(|headers| headers.get("CC").or(headers.get("BCC")).is_some());
    let is_ordinary =
        properties.user_id.is_none() && properties.reply_to != Some(PSEUDO_QUEUE.as_bytes()) && !has_keys;
    let expiration_ms = properties.expiration.map(parse_expiration).transpose().ok()?;
    is_ordinary.then(|| Ordinary { delivery_mode: DeliveryMode::of(properties), expiration_ms })
}

impl Connection {
    /// Takes in the publish at the front of the input, if it is whole and ordinary; else nothing.
    pub(super) fn take_whole_publish(&mut self, input: &mut &[u8]) -> bool {
        let mut rest = *input;
        let is_taken = self.whole_publish(&mut rest).is_some();
        if is_taken {
            *input = rest;
        }
        is_taken
    }

    fn whole_publish(&mut self, input: &mut &[u8]) -> Option<()> {
        let Whole { channel, route, flags, header, body } = Whole::split(input, self.frame_max)?;
        let is_ready = self.channels.open(channel)?.assembly.expected() == Expected::Method;
        let mandatory = match flags {
            0 => false,
            1 => true,
            _ => return None,
        };
        if !is_ready || body.len() as u64 > self.channels.max_message_size || !self.familiar.knows_route(route) {
            return None;
        }
        let Ordinary { delivery_mode, expiration_ms } = self.familiar.ordinary(header)?;
        let header_at = u16::try_from(route.len()).ok()?;
        let body_at = u32::try_from(route.len() + header.len()).ok()?;
        let block = &mut self.channels.room;
        block.clear();
        for part in [route, header, body] {
            block.extend_from_slice(part);
        }
        let message = Message::new(block, header_at, body_at, delivery_mode);
        block.clear();
        block.shrink_to(KEPT_BLOCK_BYTES);
        self.publish(channel, Assembled { message, mandatory, expiration_ms, more_keys: None });
        Some(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_in_order_before_anything_was_found_is_so_by_itself() {
        let mut familiar = Familiar::default();
        assert!(is_route(&familiar.route) && familiar.knows_route(b"\0\0"));
        assert!(!familiar.knows_route(b"") && !familiar.knows_route(b"\0"));
        let header = |properties: &[u8]| [BASIC_CONTENT, &[0; 8], properties].concat();
        assert!(familiar.ordinary(&header(b"")).is_none() && familiar.ordinary(&header(b"\0")).is_none());
        let decoded = Familiar { properties: Vec::new(), ..Familiar::default() }.ordinary(&header(b"\0\0"));
        assert_eq!(familiar.ordinary(&header(b"\0\0")), decoded);
        assert!(decoded.is_some());
    }

    #[test]
    fn a_route_is_two_short_strings_of_text() {
        assert!(is_route(b"\0\0") && is_route(b"\x02ab\x03cde"));
        for no_route in [&b""[..], b"\0", b"\x01", b"\x02a\0", b"\0\0\0", b"\0\x02a", b"\x01\xff\0", b"\0\x01\xff"]
        {
            assert!(!is_route(no_route), "{no_route:?}");
        }
    }
}
