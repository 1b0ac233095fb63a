//! Messages in a row: published on one channel one after the other, the same way, and alike but for their content headers and
//! bodies.
//!
//! Owns: their blocks, laid out as those of [`Message`] are, one behind the other. So many small messages that somebody takes at
//! once cost a few allocations.
//! Must not know: who publishes them, and what becomes of them.

use std::ops::Range;

use crate::limits::{DELIVERY_OVERHEAD_BYTES, ROW_BYTES_MAX, ROW_MESSAGES_MAX};
use crate::message::{DeliveryMode, Message, write_block};

/// Messages that lie in no queue: what is to stay becomes a [`Message`] of its own.
#[derive(Debug, PartialEq, Eq)]
pub struct Row {
    blocks: Vec<u8>,
    /// Where the body of each begins, and where it ends.
    bodies: Vec<Range<u32>>,
    /// Where the payload of the header begins in each block.
    header_at: u16,
    delivery_mode: DeliveryMode,
}

impl Row {
    /// One that begins with this message, which has no hidden keys.
    pub(crate) fn of(first: &Message) -> Self {
        let (block, header_at, body_at) = first.parts();
        debug_assert_eq!(first.route().len(), usize::from(header_at), "consumers would see its keys");
        // It grows as messages come.
        let (blocks, bodies) = (Vec::with_capacity(4 * block.len()), Vec::with_capacity(4));
        let mut row = Row { blocks, bodies, header_at, delivery_mode: first.delivery_mode() };
        let (head, body) = block.split_at(body_at as usize);
        row.push(head, body);
        row
    }

    /// Whether another message with so many bytes has room.
    pub(crate) fn has_room(&self, bytes: usize) -> bool {
        self.bodies.len() < ROW_MESSAGES_MAX && self.blocks.len() + bytes <= ROW_BYTES_MAX
    }

    /// Appends a message. `head` is its block up to the body, with any size of it.
    pub(crate) fn push(&mut self, head: &[u8], body: &[u8]) {
        let body_at = self.blocks.len() + head.len();
        write_block(&mut self.blocks, head, self.header_at, body);
        self.bodies.push(offset(body_at)..offset(self.blocks.len()));
    }

    pub(crate) fn len(&self) -> usize {
        self.bodies.len()
    }

    fn begin(&self, nth: usize) -> usize {
        nth.checked_sub(1).map_or(0, |before| self.bodies[before].end as usize)
    }

    fn block(&self, nth: usize) -> &[u8] {
        &self.blocks[self.begin(nth)..self.bodies[nth].end as usize]
    }

    /// Bytes of these messages.
    pub(crate) fn bytes(&self, messages: Range<usize>) -> usize {
        self.begin(messages.end) - self.begin(messages.start)
    }

    /// What they count in windows.
    pub(crate) fn window_bytes(&self, messages: Range<usize>) -> usize {
        DELIVERY_OVERHEAD_BYTES * messages.len() + self.bytes(messages)
    }

    /// Exchange and routing key of each, two short strings.
    pub(crate) fn route(&self) -> &[u8] {
        &self.blocks[..usize::from(self.header_at)]
    }

    pub(crate) fn delivery_mode(&self) -> DeliveryMode {
        self.delivery_mode
    }

    /// The payload of the header of one, and its body.
    pub(crate) fn content(&self, nth: usize) -> (&[u8], &[u8]) {
        let (at, body) = (self.begin(nth), &self.bodies[nth]);
        let header = &self.blocks[at + usize::from(self.header_at)..body.start as usize];
        (header, &self.blocks[body.start as usize..body.end as usize])
    }

    /// One of them, by itself.
    pub(crate) fn message(&self, nth: usize) -> Message {
        let begin = self.begin(nth);
        let body_at = self.bodies[nth].start as usize - begin;
        let body_at = u32::try_from(body_at).expect("it is no larger than all of them");
        Message::new(self.block(nth), self.header_at, body_at, self.delivery_mode)
    }
}

fn offset(bytes: usize) -> u32 {
    u32::try_from(bytes).expect("a row has a bound")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vhost::fixtures::message;

    #[test]
    fn each_message_of_a_row_is_what_was_pushed() {
        let first = message();
        let mut row = Row::of(&first);
        let (block, _, body_at) = first.parts();
        let head = &block[..body_at as usize];
        row.push(head, b"");
        row.push(head, b"another");
        assert_eq!(row.len(), 3);
        assert_eq!(row.message(0).parts(), first.parts());
        assert_eq!(row.message(1).body(), b"");
        assert_eq!(row.message(1).decode_header().unwrap().body_bytes, 0);
        assert_eq!(row.content(2), (row.message(2).header(), &b"another"[..]));
        assert_eq!(row.message(2).decode_header().unwrap().body_bytes, 7);
        assert_eq!(row.route(), first.route());
        assert_eq!(row.bytes(0..3), 3 * head.len() + 9);
        assert_eq!(row.bytes(1..1), 0);
        assert_eq!(row.window_bytes(1..3), 2 * head.len() + 7 + 2 * DELIVERY_OVERHEAD_BYTES);
        assert!(row.has_room(ROW_BYTES_MAX - row.bytes(0..3)));
        assert!(!row.has_room(ROW_BYTES_MAX - row.bytes(0..3) + 1));
    }
}
