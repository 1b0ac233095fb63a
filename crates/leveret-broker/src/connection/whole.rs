//! A publish of which every frame is there: method, header and body in one go.
//!
//! Owns: what the last publish of the connection has in common with the next one, so that it is checked once.
//! Must not know: what is wrong with a publish. Whatever is not whole, or out of the ordinary in any way, is left as it is,
//! for the frames to be taken one by one.

use leveret_amqp::frame::{FRAME_HEAD_BYTES, split_frame};
use leveret_amqp::{BasicProperties, ContentHeader, FrameKind};
use leveret_planted::{Bug, planted};

use crate::connection::Connection;
use crate::connection::assembly::{KEPT_BLOCK_BYTES, parse_expiration};
use crate::connection::reply::Expected;
use crate::limits::REMEMBERED_PUBLISH_BYTES;
use crate::message::{DeliveryMode, Message, write_block};
use crate::names::ChannelId;
use crate::vhost::command::{Likeness, Publish};
use crate::vhost::replies::PSEUDO_QUEUE;

/// Class and method id of `basic.publish`, as they stand on the wire.
const BASIC_PUBLISH: &[u8] = &[0, 60, 0, 40];

/// Class and weight of a content header.
const BASIC_CONTENT: &[u8] = &[0, 60, 0, 0];

/// The last publish that was in order, so that one that differs from it in nothing but its body is known again.
#[derive(Debug, Default)]
pub(super) struct Familiar {
    /// What came before the size of its body: the method frame, and the header frame up to there.
    before_size: Vec<u8>,
    /// What came behind it: the rest of the header frame.
    behind_size: Vec<u8>,
    /// The block of its message up to the body: exchange, routing key, payload of the header.
    block: Vec<u8>,
    /// None at first.
    facts: Option<Facts>,
}

/// What the broker needs of a publish beside its block.
#[derive(Clone, Copy, Debug)]
struct Facts {
    channel: ChannelId,
    mandatory: bool,
    /// Where the payload of the header begins in the block.
    header_at: u16,
    properties: Ordinary,
    /// The same as long as nothing but the rest of the header changes.
    likeness: Likeness,
}

/// What the broker needs of properties that ask for nothing unusual.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Ordinary {
    delivery_mode: DeliveryMode,
    expiration_ms: Option<u64>,
}

impl Familiar {
    /// Takes a publish off the front of the input that has only another body than the last one.
    fn recognize<'i>(&self, input: &mut &'i [u8], frame_max: u32) -> Option<(Facts, &'i [u8])> {
        let facts = self.facts?;
        let rest = input.strip_prefix(&self.before_size[..])?;
        let (&size, rest) = rest.split_first_chunk()?;
        let mut rest = rest.strip_prefix(&self.behind_size[..])?;
        let mut body = &[][..];
        let body_bytes = u64::from_be_bytes(size);
        if body_bytes > 0 {
            let frame = split_frame(&mut rest, frame_max).ok()??;
            let is_all = frame.kind == FrameKind::Body && frame.payload.len() as u64 == body_bytes;
            if !is_all || frame.channel != facts.channel.number() {
                return None;
            }
            body = frame.payload;
        }
        *input = rest;
        Some((facts, body))
    }

    /// Remembers what the publish at the front of the input has but its body, if that is there and in order.
    fn learn(&mut self, input: &[u8], frame_max: u32) -> Option<()> {
        if !input.get(FRAME_HEAD_BYTES..)?.starts_with(BASIC_PUBLISH) {
            return None;
        }
        let mut rest = input;
        let method = split_frame(&mut rest, frame_max).ok()??;
        let header = split_frame(&mut rest, frame_max).ok()??;
        let is_content = (method.kind, header.kind) == (FrameKind::Method, FrameKind::Header);
        if !is_content || header.channel != method.channel || !header.payload.starts_with(BASIC_CONTENT) {
            return None;
        }
        // Before the route comes a ticket that means nothing any more.
        let (&flags, route) = method.payload.get(6..)?.split_last()?;
        let mandatory = match flags {
            0 => false,
            1 => true,
            _ => return None,
        };
        let channel = ChannelId::new(method.channel)?;
        let header_at = u16::try_from(route.len()).ok()?;
        let properties_bytes = header.payload.get(BASIC_CONTENT.len() + 8..)?;
        if route.len() + header.payload.len() > REMEMBERED_PUBLISH_BYTES {
            return None;
        }
        let known = self.facts.map(|facts| (&self.block[..usize::from(facts.header_at)], facts.properties));
        if known.is_none_or(|(known, _)| known != route) && !is_route(route) {
            return None;
        }
        // The end octet of the frame behind them is the last byte.
        let learnt = &input[..input.len() - rest.len()];
        let (before, behind_size) = learnt.split_at(learnt.len() - 1 - properties_bytes.len());
        let before_size = &before[..before.len() - 8];
        let properties = match known.filter(|_| self.behind_size == behind_size || planted(Bug::PropertiesOfBefore))
        {
            Some((_, properties)) => properties,
            None => ordinary(&ContentHeader::decode(header.payload).ok()?.properties)?,
        };
        let likeness = match self.facts {
            Some(last)
                if known.is_some_and(|(known, _)| known == route)
                    && (last.channel, last.mandatory, last.properties) == (channel, mandatory, properties) =>
            {
                last.likeness
            }
            last => Likeness(last.map_or(0, |last| last.likeness.0 + 1)),
        };
        for (kept, part) in
            [(&mut self.before_size, before_size), (&mut self.behind_size, behind_size), (&mut self.block, route)]
        {
            kept.clear();
            kept.extend_from_slice(part);
        }
        self.block.extend_from_slice(header.payload);
        self.facts = Some(Facts { channel, mandatory, header_at, properties, likeness });
        Some(())
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
        let recognized = self.familiar.recognize(input, self.frame_max).or_else(|| {
            self.familiar.learn(input, self.frame_max)?;
            self.familiar.recognize(input, self.frame_max)
        });
        let (Facts { channel, mandatory, header_at, properties, likeness }, body) = recognized?;
        let is_ready = self.channels.open(channel)?.assembly.expected() == Expected::Method;
        if !is_ready || body.len() as u64 > self.channels.max_message_size {
            return None;
        }
        let (head, Ordinary { delivery_mode, expiration_ms }) = (&self.familiar.block, properties);
        let body_at = u32::try_from(head.len()).ok()?;
        // From here on nothing is left as it is.
        let confirm = self.channels.open(channel)?.number_publish();
        if let Some(row) = self.commands.joinable(likeness, confirm, head.len() + body.len()) {
            row.push(head, body);
            return Some(());
        }
        let block = &mut self.channels.room;
        block.clear();
        write_block(block, head, header_at, body);
        let message = Message::new(block, header_at, body_at, delivery_mode);
        block.clear();
        block.shrink_to(KEPT_BLOCK_BYTES);
        self.channels.count_content(message.bytes());
        let publish = Publish { channel, message, more_keys: None, mandatory, expiration_ms, confirm };
        self.commands.push_like(publish, likeness);
        Some(())
    }
}

#[cfg(test)]
mod tests {
    use leveret_amqp::frame::{FRAME_END, write_content, write_method};
    use leveret_amqp::{FieldTable, Method, ShortStr, Value};

    use super::*;

    const FRAME_MAX: u32 = 4096;

    fn publish(channel: u16, key: &str, properties: BasicProperties<'_>, body: &[u8]) -> Vec<u8> {
        let (mut bytes, mut header, text) = (Vec::new(), Vec::new(), ShortStr::truncated);
        let (exchange, routing_key, mandatory, immediate) = (text(""), text(key), false, false);
        write_method(
            &mut bytes,
            channel,
            &Method::BasicPublish { ticket: 0, exchange, routing_key, mandatory, immediate },
        );
        ContentHeader { body_bytes: body.len() as u64, properties }.encode(&mut header);
        write_content(&mut bytes, channel, &header, body, FRAME_MAX);
        bytes
    }

    /// The body that is recognized, and how many bytes are left.
    fn recognized(familiar: &Familiar, mut input: &[u8]) -> Option<(Vec<u8>, usize)> {
        let (_, body) = familiar.recognize(&mut input, FRAME_MAX)?;
        Some((body.to_vec(), input.len()))
    }

    #[test]
    fn only_a_publish_that_differs_in_its_body_alone_is_recognized() {
        let (none, first) = (BasicProperties::default(), publish(1, "q", BasicProperties::default(), b"one"));
        let mut familiar = Familiar::default();
        assert_eq!(recognized(&familiar, &first), None, "nothing was learnt");
        familiar.learn(&first, FRAME_MAX).unwrap();
        for body in [&b"one"[..], b"another", b""] {
            let bytes = [publish(1, "q", none, body), b"rest".to_vec()].concat();
            assert_eq!(recognized(&familiar, &bytes), Some((body.to_vec(), 4)));
            assert_eq!(recognized(&familiar, &bytes[..bytes.len() - 5]), None, "not all of it is there");
        }
        let priority = BasicProperties { priority: Some(1), ..none };
        for other in
            [publish(2, "q", none, b"one"), publish(1, "r", none, b"one"), publish(1, "q", priority, b"one")]
        {
            assert_eq!(recognized(&familiar, &other), None);
        }
        // Each octet counts, also those of size and ticket, but for those of the body.
        for at in 0..first.len() {
            let mut changed = first.clone();
            changed[at] ^= 1;
            let is_body = (first.len() - 4..first.len() - 1).contains(&at);
            assert_eq!(recognized(&familiar, &changed).is_some(), is_body, "octet {at}");
        }
        let several = publish(1, "q", none, &[7; 5000]);
        assert_eq!(recognized(&familiar, &several), None, "a body of several frames");
    }

    #[test]
    fn a_likeness_lasts_while_nothing_changes_that_is_asked_for() {
        let none = BasicProperties::default();
        let (id, transient, expiring) = (
            BasicProperties { message_id: Some(b"1"), ..none },
            BasicProperties { delivery_mode: Some(1), ..none },
            BasicProperties { expiration: Some(b"60000"), ..none },
        );
        let persistent = BasicProperties { delivery_mode: Some(2), ..none };
        let mut mandatory = publish(1, "q", none, b"");
        let flags_at = mandatory.iter().position(|&octet| octet == FRAME_END).unwrap() - 1;
        mandatory[flags_at] = 1;
        let mut familiar = Familiar::default();
        let mut likeness = |bytes: &[u8]| {
            familiar.learn(bytes, FRAME_MAX).unwrap();
            familiar.facts.unwrap().likeness.0
        };
        let first = likeness(&publish(1, "q", none, b"one"));
        for alike in [none, id, transient] {
            assert_eq!(likeness(&publish(1, "q", alike, b"another")), first);
        }
        let unlike = [
            publish(1, "q", persistent, b""),
            publish(1, "q", expiring, b""),
            publish(1, "r", expiring, b""),
            publish(2, "r", expiring, b""),
            publish(2, "r", none, b""),
            mandatory,
            publish(1, "q", none, b""),
        ];
        for (bytes, expected) in unlike.iter().zip(first + 1..) {
            assert_eq!(likeness(bytes), expected);
        }
    }

    #[test]
    fn what_is_large_is_not_remembered() {
        let mut familiar = Familiar::default();
        let key = "k".repeat(255);
        let headers = FieldTable::build(|table| _ = table.field(&key, Value::LongStr(&[7; 900])));
        let large = BasicProperties { headers: Some(headers.as_table()), ..BasicProperties::default() };
        assert_eq!(familiar.learn(&publish(1, "q", large, b""), FRAME_MAX), None);
        assert!(familiar.facts.is_none());
        familiar.learn(&publish(1, "q", BasicProperties::default(), b""), FRAME_MAX).unwrap();
        let kept = familiar.before_size.capacity() + familiar.behind_size.capacity() + familiar.block.capacity();
        assert!(kept <= 3 * REMEMBERED_PUBLISH_BYTES, "{kept} bytes");
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
