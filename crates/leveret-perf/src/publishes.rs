//! Publishes that are encoded once and written many times.
//!
//! Invariant: of a prepared publish only its stamp ever changes, so its length and its frames stay what they are.

use std::ops::Range;

use leveret_amqp::frame::{FRAME_HEAD_BYTES, write_content, write_method};
use leveret_amqp::string::TooLong;
use leveret_amqp::{BasicProperties, ContentHeader, Method, ShortStr};

use crate::stamp::{STAMP_BYTES, Stamp};

/// What all publishes of a producer have in common.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Shape<'a> {
    pub(crate) channel: u16,
    pub(crate) exchange: &'a str,
    pub(crate) properties: BasicProperties<'a>,
    pub(crate) body_bytes: usize,
    pub(crate) frame_max: u32,
    pub(crate) stamp_place: StampPlace,
}

/// Where a publish has its stamp.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum StampPlace {
    /// At the front of the body, which has [`STAMP_BYTES`] or more, if there is to be one.
    Body,
    /// In the correlation id, which comes back with a reply, in hexadecimal digits. Of the properties before it there are none.
    CorrelationId,
}

/// Publishes one behind the other, by routing keys in turn, in whole rounds.
#[derive(Debug)]
pub(crate) struct Publishes {
    bytes: Vec<u8>,
    /// Where each begins, and where the last one ends.
    starts: Vec<usize>,
    /// Where in `bytes` each has its stamp.
    stamps: Vec<usize>,
}

impl Publishes {
    /// Encodes as many rounds of `keys` as fit into `bytes_wanted`, but at least one.
    pub(crate) fn new(shape: &Shape<'_>, keys: &[String], bytes_wanted: usize) -> Result<Self, TooLong> {
        let mut publishes = Publishes { bytes: Vec::new(), starts: vec![0], stamps: Vec::new() };
        publishes.append_round(shape, keys)?;
        let round = publishes.bytes.len();
        while publishes.bytes.len() + round <= bytes_wanted {
            publishes.append_round(shape, keys)?;
        }
        Ok(publishes)
    }

    fn append_round(&mut self, shape: &Shape<'_>, keys: &[String]) -> Result<(), TooLong> {
        let body: Vec<u8> = (0..shape.body_bytes).map(|at| b"leveret "[at % 8]).collect();
        let mut header = Vec::new();
        let mut properties = shape.properties;
        if shape.stamp_place == StampPlace::CorrelationId {
            properties.correlation_id = Some(&[b'0'; 2 * STAMP_BYTES]);
        }
        ContentHeader { body_bytes: body.len() as u64, properties }.encode(&mut header);
        for key in keys {
            let method = Method::BasicPublish {
                ticket: 0,
                exchange: ShortStr::new(shape.exchange)?,
                routing_key: ShortStr::new(key)?,
                mandatory: false,
                immediate: false,
            };
            write_method(&mut self.bytes, shape.channel, &method);
            self.stamps.push(match shape.stamp_place {
                // Behind the header frame and the head of the first body frame.
                StampPlace::Body => self.bytes.len() + FRAME_HEAD_BYTES + header.len() + 1 + FRAME_HEAD_BYTES,
                // Behind class, weight, size and flags, and the length of the correlation id.
                StampPlace::CorrelationId => self.bytes.len() + FRAME_HEAD_BYTES + 14 + 1,
            });
            write_content(&mut self.bytes, shape.channel, &header, &body, shape.frame_max);
            self.starts.push(self.bytes.len());
        }
        Ok(())
    }

    /// How many there are.
    pub(crate) fn count(&self) -> usize {
        self.stamps.len()
    }

    /// The bytes of some of them.
    pub(crate) fn bytes(&self, range: Range<usize>) -> &[u8] {
        &self.bytes[self.starts[range.start]..self.starts[range.end]]
    }

    /// Bytes of one of them.
    pub(crate) fn bytes_each(&self) -> usize {
        self.bytes.len() / self.count()
    }

    /// How many from `first` on end within `bytes` bytes, and how many bytes of the next one are among them.
    pub(crate) fn whole_within(&self, first: usize, bytes: usize) -> (usize, usize) {
        let end = self.starts[first] + bytes;
        let count = self.starts[first + 1..].partition_point(|&start| start <= end);
        (count, end - self.starts[first + count])
    }

    /// Puts a stamp into the body of one of them.
    pub(crate) fn stamp(&mut self, index: usize, stamp: Stamp) {
        let at = self.stamps[index];
        self.bytes[at..at + STAMP_BYTES].copy_from_slice(&stamp.encode());
    }

    /// Puts a stamp into the correlation id of one of them.
    pub(crate) fn stamp_correlation_id(&mut self, index: usize, stamp: Stamp) {
        let at = self.stamps[index];
        self.bytes[at..at + 2 * STAMP_BYTES].copy_from_slice(&stamp.encode_hex());
    }
}

#[cfg(test)]
mod tests {
    use leveret_amqp::FrameKind;
    use leveret_amqp::frame::split_frame;

    use super::*;

    fn shape(body_bytes: usize) -> Shape<'static> {
        let properties = BasicProperties { delivery_mode: Some(2), ..BasicProperties::default() };
        let stamp_place = StampPlace::Body;
        Shape { channel: 3, exchange: "e", properties, body_bytes, frame_max: 4096, stamp_place }
    }

    /// Method, properties and body of each publish, decoded.
    fn decoded(mut bytes: &[u8]) -> Vec<(String, Vec<u8>)> {
        let mut found = Vec::new();
        let mut left = 0;
        while let Some(frame) = split_frame(&mut bytes, 4096).unwrap() {
            assert_eq!(frame.channel, 3);
            match frame.kind {
                FrameKind::Method => {
                    assert_eq!(left, 0);
                    let Ok(Method::BasicPublish { exchange, routing_key, mandatory: false, .. }) =
                        Method::decode(frame.payload)
                    else {
                        panic!("no publish")
                    };
                    assert_eq!(exchange.as_str(), "e");
                    found.push((routing_key.as_str().to_owned(), Vec::new()));
                }
                FrameKind::Header => {
                    let header = ContentHeader::decode(frame.payload).unwrap();
                    assert_eq!(header.properties.delivery_mode, Some(2));
                    left = header.body_bytes;
                }
                FrameKind::Body => {
                    left -= frame.payload.len() as u64;
                    found.last_mut().unwrap().1.extend_from_slice(frame.payload);
                }
                FrameKind::Heartbeat => panic!("a heartbeat"),
            }
        }
        assert!(bytes.is_empty() && left == 0);
        found
    }

    #[test]
    fn prepared_publishes_decode_to_their_keys_stamps_and_bodies() {
        let keys = ["a".to_owned(), "bcd".to_owned()];
        for body_bytes in [16, 17, 4088, 4089, 10_000] {
            let mut publishes = Publishes::new(&shape(body_bytes), &keys, 50_000).unwrap();
            assert_eq!(publishes.count() % 2, 0);
            let stamp = |index: usize| Stamp { flow: 9, sequence: index as u64, time_ns: 77 };
            for index in 0..publishes.count() {
                publishes.stamp(index, stamp(index));
            }
            let found = decoded(publishes.bytes(0..publishes.count()));
            assert_eq!(found.len(), publishes.count());
            for (index, (key, body)) in found.iter().enumerate() {
                assert_eq!(*key, keys[index % 2]);
                assert_eq!(body.len(), body_bytes);
                assert_eq!(body[..16], stamp(index).encode());
            }
        }
    }

    #[test]
    fn a_stamp_in_the_correlation_id_leaves_the_body_alone() {
        let properties = BasicProperties { reply_to: Some(b"there"), ..BasicProperties::default() };
        let shape = Shape { properties, stamp_place: StampPlace::CorrelationId, ..shape(1) };
        let mut publishes = Publishes::new(&shape, &["k".to_owned()], 0).unwrap();
        let stamp = Stamp { flow: 1, sequence: 2, time_ns: 3 };
        publishes.stamp_correlation_id(0, stamp);
        let mut bytes = publishes.bytes(0..1);
        split_frame(&mut bytes, 4096).unwrap().unwrap();
        let header = split_frame(&mut bytes, 4096).unwrap().unwrap();
        let properties = ContentHeader::decode(header.payload).unwrap().properties;
        assert_eq!(properties.correlation_id.and_then(Stamp::decode_hex), Some(stamp));
        assert_eq!(properties.reply_to, Some(&b"there"[..]));
    }

    #[test]
    fn a_body_shorter_than_a_stamp_is_encoded_too() {
        let publishes = Publishes::new(&shape(0), &["k".to_owned()], 0).unwrap();
        assert_eq!(decoded(publishes.bytes(0..1)), [("k".to_owned(), vec![])]);
    }

    #[test]
    fn what_was_written_in_part_is_whole_publishes_and_a_rest() {
        let publishes = Publishes::new(&shape(20), &["a".to_owned(), "bcd".to_owned()], 1000).unwrap();
        let (first, both) = (publishes.bytes(0..1).len(), publishes.bytes(0..2).len());
        assert_eq!(publishes.whole_within(0, 0), (0, 0));
        assert_eq!(publishes.whole_within(0, first - 1), (0, first - 1));
        assert_eq!(publishes.whole_within(0, first), (1, 0));
        assert_eq!(publishes.whole_within(0, both + 5), (2, 5));
        assert_eq!(publishes.whole_within(1, both - first), (1, 0));
    }
}
