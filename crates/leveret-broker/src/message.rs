//! A message: one reference-counted allocation, laid out as a delivery needs it.
//!
//! The block holds, one after the other, what `basic.deliver` copies: exchange and routing key as two short
//! strings, the payload of the content header as the publisher sent it, the body. Between routing key and header lie
//! routing keys that no consumer sees, those of header `BCC`. Properties are scanned once, when the message is
//! assembled, for the few that the broker needs; the rest is never looked at.

use std::fmt;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use leveret_amqp::{BasicProperties, ContentHeader, DecodeError, FieldTable, ShortStr, Table, Value};

use triomphe::{Arc, ThinArc};

use crate::change::JournalPosition;
use crate::limits::BODY_OVERHEAD_BYTES;
use crate::scratch::Place;

/// Where the payload of a content header says how large the body is: behind class and weight. AMQP 0-9-1 §4.2.6.1.
const BODY_SIZE_AT: usize = 4;

/// What names a message where its body is read back: the position of the change that enqueued it, for life; or its place on
/// disk, for a message of which the journal of its queue does not know, once it has one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct MessageId(u64);

impl MessageId {
    const TRANSIENT: u64 = 1 << 63;

    /// Of a message that is in memory and nowhere else.
    pub(crate) const NOWHERE: Self = MessageId(u64::MAX);

    /// The message that was enqueued by the change at this position.
    pub fn journaled(position: JournalPosition) -> Self {
        debug_assert!(position.0 < Self::TRANSIENT);
        MessageId(position.0)
    }

    /// The message that was written to this place.
    pub fn scratch(place: Place) -> Self {
        MessageId(place.number() | Self::TRANSIENT)
    }

    /// The change that enqueued it, if a journal knows it.
    pub fn position(self) -> Option<JournalPosition> {
        (self.0 & Self::TRANSIENT == 0).then_some(JournalPosition(self.0))
    }

    /// The place that it was written to, if it was and no journal knows it.
    pub fn place(self) -> Option<Place> {
        let has_place = self.0 & Self::TRANSIENT != 0 && self != Self::NOWHERE;
        has_place.then(|| Place::numbered(self.0 & !Self::TRANSIENT))
    }
}

/// Whether a message is written to disk in a durable queue. `basic.publish`, property `delivery-mode`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DeliveryMode {
    /// 1, any other number, or absent.
    Transient,
    /// 2.
    Persistent,
}

impl DeliveryMode {
    /// What these properties say.
    pub(crate) fn of(properties: &BasicProperties<'_>) -> Self {
        match properties.delivery_mode {
            Some(2) => DeliveryMode::Persistent,
            Some(_) | None => DeliveryMode::Transient,
        }
    }
}

/// A message with all that goes back on the wire.
#[derive(Clone)]
pub struct Message(ThinArc<Facts, u8>);

/// What is known of a message beside its block.
struct Facts {
    /// How many queues have it in memory. Changed with the lock of their virtual host held only, so nothing comes between reading
    /// and writing it.
    holders: AtomicU32,
    /// The number of its place on disk, or one of those below.
    place: AtomicU64,
    body_at: u32,
    header_at: u16,
    delivery_mode: DeliveryMode,
    history: History,
}

/// It was not written anywhere.
const UNWRITTEN: u64 = u64::MAX;

/// It is being written.
const IN_WRITING: u64 = u64::MAX - 1;

/// Who wrote the headers of a message that tell how it died. RabbitMQ 4: what clients write there is not believed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum History {
    /// Nobody, or a client.
    None,
    /// The broker: `x-death` and its like are what happened.
    Deaths {
        /// Since somebody rejected it, dead lettering has made at most two to the power of this of it. Below 64.
        spread: u8,
    },
}

impl Message {
    /// Takes a block laid out as above. `header_at` and `body_at` say where header payload and body begin; the
    /// header was decoded by the caller.
    ///
    /// # Panics
    /// If the two are not offsets into the block in this order.
    pub(crate) fn new(block: &[u8], header_at: u16, body_at: u32, delivery_mode: DeliveryMode) -> Self {
        Message::with_history(block, header_at, body_at, delivery_mode, History::None)
    }

    /// One without a body that is to go that way.
    pub(crate) fn on_the_way(exchange: ShortStr<'_>, routing_key: ShortStr<'_>, headers: Table<'_>) -> Self {
        let mut block = Vec::new();
        write_route(&mut block, exchange, routing_key);
        let header_at = u16::try_from(block.len()).expect("two short strings");
        let properties = BasicProperties { headers: Some(headers), ..BasicProperties::default() };
        ContentHeader { body_bytes: 0, properties }.encode(&mut block);
        let body_at = u32::try_from(block.len()).expect("a table of a frame");
        Message::new(&block, header_at, body_at, DeliveryMode::Transient)
    }

    /// The same with headers that somebody wrote.
    pub(crate) fn with_history(
        block: &[u8],
        header_at: u16,
        body_at: u32,
        delivery_mode: DeliveryMode,
        history: History,
    ) -> Self {
        assert!(usize::from(header_at) <= body_at as usize);
        assert!(body_at as usize <= block.len());
        let (holders, place) = (AtomicU32::new(0), AtomicU64::new(UNWRITTEN));
        let facts = Facts { holders, place, body_at, header_at, delivery_mode, history };
        Message(ThinArc::from_header_and_slice(facts, block))
    }

    fn facts(&self) -> &Facts {
        &self.0.header.header
    }

    fn block(&self) -> &[u8] {
        &self.0.slice
    }

    /// A queue has it in memory from now on; true if it is the first.
    pub(crate) fn begin_hold(&self) -> bool {
        let before = self.facts().holders.load(Ordering::Relaxed);
        self.facts().holders.store(before + 1, Ordering::Relaxed);
        before == 0
    }

    /// A queue lets go of it; true if it is the last.
    pub(crate) fn end_hold(&self) -> bool {
        let before = self.facts().holders.load(Ordering::Relaxed);
        self.facts().holders.store(before - 1, Ordering::Relaxed);
        before == 1
    }

    /// The place on disk that it was written to last, whichever queue that was for.
    pub(crate) fn place(&self) -> Option<Place> {
        let number = self.facts().place.load(Ordering::Relaxed);
        (number < IN_WRITING).then(|| Place::numbered(number))
    }

    /// It is to be written; false if it is being written already.
    pub(crate) fn begin_writing(&self) -> bool {
        self.facts().place.swap(IN_WRITING, Ordering::Relaxed) != IN_WRITING
    }

    /// It was written there, or it could not be.
    pub(crate) fn end_writing(&self, place: Option<Place>) {
        self.facts().place.store(place.map_or(UNWRITTEN, Place::number), Ordering::Relaxed);
    }

    /// Whether the two are one in memory.
    pub(crate) fn is_same(&self, other: &Message) -> bool {
        std::ptr::eq(self.facts(), other.facts())
    }

    /// The same for a block from a journal, which may hold anything.
    pub(crate) fn from_parts(
        block: &[u8],
        header_at: u16,
        body_at: u32,
        delivery_mode: DeliveryMode,
        history: History,
    ) -> Option<Self> {
        let route = block.get(..usize::from(header_at))?;
        let (&exchange_bytes, rest) = route.split_first()?;
        let (exchange, rest) = rest.split_at_checked(usize::from(exchange_bytes))?;
        let (&key_bytes, rest) = rest.split_first()?;
        let (routing_key, hidden_keys) = rest.split_at_checked(usize::from(key_bytes))?;
        std::str::from_utf8(exchange).and(std::str::from_utf8(routing_key)).ok()?;
        let hidden_bytes: usize = short_strings(hidden_keys).map(|key| 1 + key.len()).sum();
        if hidden_bytes != hidden_keys.len() {
            return None;
        }
        let header = ContentHeader::decode(block.get(usize::from(header_at)..body_at as usize)?).ok()?;
        let body_bytes = block.len() - body_at as usize;
        (header.body_bytes == body_bytes as u64)
            .then(|| Message::with_history(block, header_at, body_at, delivery_mode, history))
    }

    /// The block, and where header payload and body begin in it.
    pub(crate) fn parts(&self) -> (&[u8], u16, u32) {
        (self.block(), self.facts().header_at, self.facts().body_at)
    }

    /// Exchange and routing key, each a short string with its length octet.
    pub fn route(&self) -> &[u8] {
        &self.block()[..self.route_bytes()]
    }

    fn route_bytes(&self) -> usize {
        let block = self.block();
        let key_at = 1 + usize::from(block[0]);
        key_at + 1 + usize::from(block[key_at])
    }

    /// Routing keys that it was published with, too, and that no consumer sees: header `BCC`.
    pub(crate) fn hidden_keys(&self) -> impl Iterator<Item = &str> {
        short_strings(&self.block()[self.route_bytes()..usize::from(self.facts().header_at)])
    }

    /// The routing keys that everybody may see: its own, and those of header `CC`. `header` is its content header.
    pub(crate) fn visible_keys<'m>(&'m self, header: &ContentHeader<'m>) -> Vec<&'m str> {
        let mut keys = vec![self.routing_key()];
        if let Some(Value::Array(more)) = header.properties.headers.and_then(|headers| headers.get("CC")) {
            keys.extend(more.iter().filter_map(Value::as_str).filter(|key| ShortStr::new(key).is_ok()));
        }
        keys
    }

    /// All routing keys that it is routed by.
    pub(crate) fn all_keys<'m>(&'m self, header: &ContentHeader<'m>) -> Vec<&'m str> {
        let mut keys = self.visible_keys(header);
        keys.extend(self.hidden_keys());
        keys
    }

    /// Whether it was published to the default exchange.
    pub(crate) fn is_to_default_exchange(&self) -> bool {
        self.block()[0] == 0
    }

    /// The exchange it was published to.
    pub fn exchange(&self) -> &str {
        self.route_string(0)
    }

    /// The routing key it was published with.
    pub fn routing_key(&self) -> &str {
        self.route_string(1 + usize::from(self.block()[0]))
    }

    fn route_string(&self, at: usize) -> &str {
        let block = self.block();
        let length = usize::from(block[at]);
        std::str::from_utf8(&block[at + 1..=at + length]).unwrap_or_default()
    }

    /// The payload of the content header.
    pub fn header(&self) -> &[u8] {
        &self.block()[usize::from(self.facts().header_at)..self.facts().body_at as usize]
    }

    /// The content header, decoded again.
    pub fn decode_header(&self) -> Result<ContentHeader<'_>, DecodeError> {
        ContentHeader::decode(self.header())
    }

    /// Property `priority`, looked up in the content header.
    pub(crate) fn priority(&self) -> Option<u8> {
        self.decode_header().ok()?.properties.priority
    }

    /// The body.
    pub fn body(&self) -> &[u8] {
        &self.block()[self.facts().body_at as usize..]
    }

    /// Bytes it takes on the wire, about, and in memory.
    pub fn bytes(&self) -> usize {
        self.block().len()
    }

    /// Bytes it takes in memory, with what goes with them.
    pub(crate) fn memory(&self) -> usize {
        self.bytes() + BODY_OVERHEAD_BYTES
    }

    /// The same with another route, other properties, and the keys that nobody sees. Its headers are those that are given,
    /// in order of their names, as RabbitMQ sorts headers to which it adds some.
    pub(crate) fn rewritten<'k>(
        &self,
        (exchange, routing_key): (ShortStr<'_>, ShortStr<'_>),
        hidden_keys: impl Iterator<Item = &'k str>,
        header: ContentHeader<'_>,
        headers: &FieldTable,
        history: History,
    ) -> Message {
        let headers = headers.as_table().sorted();
        let properties = BasicProperties { headers: Some(headers.as_table()), ..header.properties };
        let mut block = Vec::with_capacity(self.bytes());
        write_route(&mut block, exchange, routing_key);
        for key in hidden_keys {
            // An exchange may have a longer name than the one before; then the last keys may find no room.
            let _fits = write_hidden_key(&mut block, ShortStr::truncated(key));
        }
        let header_at = u16::try_from(block.len()).expect("a route is at most 512 bytes, and keys beyond fit");
        ContentHeader { properties, ..header }.encode(&mut block);
        let body_at = u32::try_from(block.len()).expect("a header is at most one frame and what the broker adds");
        block.extend_from_slice(self.body());
        Message::with_history(&block, header_at, body_at, self.delivery_mode(), history)
    }

    /// Exchange and routing key, as they go on the wire.
    pub(crate) fn route_strings(&self) -> (ShortStr<'_>, ShortStr<'_>) {
        (ShortStr::truncated(self.exchange()), ShortStr::truncated(self.routing_key()))
    }

    /// It has died, and is one of so many by now. Only who has made it can say so, before anybody else has it.
    pub(crate) fn set_spread(&mut self, spread: u8) {
        let is_alone = self.0.with_arc_mut(|block| match Arc::get_mut(block) {
            Some(block) => {
                block.header_mut().history = History::Deaths { spread };
                true
            }
            None => false,
        });
        debug_assert!(is_alone, "nobody else has it");
    }

    /// Whether its headers tell how it died.
    pub fn history(&self) -> History {
        self.facts().history
    }

    /// Whether the publisher asked for it to survive a restart.
    pub fn delivery_mode(&self) -> DeliveryMode {
        self.facts().delivery_mode
    }
}

impl PartialEq for Message {
    fn eq(&self, other: &Self) -> bool {
        let known = |message: &Message| (message.delivery_mode(), message.history());
        self.parts() == other.parts() && known(self) == known(other)
    }
}

impl Eq for Message {}

impl fmt::Debug for Message {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Message")
            .field("exchange", &self.exchange())
            .field("routing_key", &self.routing_key())
            .field("body_bytes", &self.body().len())
            .finish_non_exhaustive()
    }
}

/// Appends the block of a message. `head` is what comes before its body, with any size of that in the header at `header_at`.
pub(crate) fn write_block(out: &mut Vec<u8>, head: &[u8], header_at: u16, body: &[u8]) {
    let size_at = out.len() + usize::from(header_at) + BODY_SIZE_AT;
    out.reserve(head.len() + body.len());
    out.extend_from_slice(head);
    out[size_at..size_at + 8].copy_from_slice(&(body.len() as u64).to_be_bytes());
    out.extend_from_slice(body);
}

/// Lays out the route of a message: the first part of its block.
pub(crate) fn write_route(block: &mut Vec<u8>, exchange: ShortStr<'_>, routing_key: ShortStr<'_>) {
    for part in [exchange, routing_key] {
        block.push(part.length_octet());
        block.extend_from_slice(part.as_str().as_bytes());
    }
}

/// Appends to a route a key that no consumer sees; false if there is no room for it before the header.
pub(crate) fn write_hidden_key(block: &mut Vec<u8>, key: ShortStr<'_>) -> bool {
    let fits = u16::try_from(block.len() + 1 + key.as_str().len()).is_ok();
    if fits {
        block.push(key.length_octet());
        block.extend_from_slice(key.as_str().as_bytes());
    }
    fits
}

/// Short strings one after the other, up to the first that is none.
fn short_strings(mut bytes: &[u8]) -> impl Iterator<Item = &str> {
    std::iter::from_fn(move || {
        let (&length, rest) = bytes.split_first()?;
        let (text, rest) = rest.split_at_checked(usize::from(length))?;
        bytes = rest;
        std::str::from_utf8(text).ok()
    })
}
