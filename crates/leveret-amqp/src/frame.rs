//! Frames: finding the next one in a run of bytes, and writing them. AMQP 0-9-1 §2.3.5.

use crate::limits::{FRAME_OVERHEAD_BYTES, SNIPPET_BYTES};
use crate::method::Method;

/// The octet that ends every frame.
pub const FRAME_END: u8 = 0xCE;

/// Bytes before the payload: type, channel, length.
pub const FRAME_HEAD_BYTES: usize = 7;

/// A heartbeat, ready to send. AMQP 0-9-1 §4.2.7.
pub const HEARTBEAT: [u8; FRAME_OVERHEAD_BYTES] = [8, 0, 0, 0, 0, 0, 0, FRAME_END];

const _: () = assert!(FRAME_HEAD_BYTES + 1 == FRAME_OVERHEAD_BYTES);

/// What a frame carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum FrameKind {
    /// A method and its arguments.
    Method = 1,
    /// The header of a content: size and properties.
    Header = 2,
    /// A piece of a content's body.
    Body = 3,
    /// A sign of life.
    Heartbeat = 8,
}

/// One whole frame, its payload borrowed from the input.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RawFrame<'a> {
    /// What the payload is.
    pub kind: FrameKind,
    /// The channel it belongs to; 0 is the connection.
    pub channel: u16,
    /// The bytes between length and end octet.
    pub payload: &'a [u8],
}

/// The beginning of a payload, to be shown in an error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Snippet {
    octets: [u8; SNIPPET_BYTES],
    payload_bytes: usize,
}

impl Snippet {
    /// The first octets of a payload, or all if there are not many.
    pub fn of(payload: &[u8]) -> Self {
        let mut octets = [0; SNIPPET_BYTES];
        let kept = payload.len().min(SNIPPET_BYTES);
        octets[..kept].copy_from_slice(&payload[..kept]);
        Snippet { octets, payload_bytes: payload.len() }
    }

    /// What there is of the payload.
    pub fn octets(&self) -> &[u8] {
        &self.octets[..self.payload_bytes.min(SNIPPET_BYTES)]
    }

    /// Whether that is all of it.
    pub fn is_all(&self) -> bool {
        self.payload_bytes <= SNIPPET_BYTES
    }
}

/// A frame that breaks the framing rules. Each is a connection exception 501. `kind` is the first octet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// A first octet that is no frame type, or a payload that no frame of this type has.
    #[error("a frame of type {kind} with a payload of {} bytes", .payload.payload_bytes)]
    Unknown {
        /// The type.
        kind: u8,
        /// What it carries.
        payload: Snippet,
    },
    /// A payload above what was negotiated.
    #[error("a frame of {payload_bytes} bytes, larger than the negotiated maximum {frame_max}")]
    TooLarge {
        /// The type.
        kind: u8,
        /// The length the frame declares.
        payload_bytes: u32,
        /// The limit in force, frame overhead included.
        frame_max: u32,
    },
    /// A last octet other than 0xCE.
    #[error("a frame that ends with octet {end:#04x} instead of 0xce")]
    BadEnd {
        /// The type.
        kind: u8,
        /// The last octet.
        end: u8,
        /// What it carries.
        payload: Snippet,
    },
}

/// Bytes of the ids in front of the arguments of a method.
const METHOD_IDS_BYTES: usize = 4;

/// Bytes of class, weight and body size in front of the properties of a content.
const HEADER_BYTES_MIN: usize = 12;

/// Takes the next whole frame off the front of `input`; `None` when more bytes are needed.
///
/// `frame_max` counts whole frames. RabbitMQ lets a payload be as large as `frame_max` itself, 8 bytes more than
/// the specification says, and so do we. A bad length is reported as soon as its bytes are there, all else with the
/// last byte of the frame. RabbitMQ: `rabbit_reader:handle_input/3`, `rabbit_command_assembler:analyze_frame/2`.
#[inline]
pub fn split_frame<'a>(input: &mut &'a [u8], frame_max: u32) -> Result<Option<RawFrame<'a>>, FrameError> {
    let Some((&[kind, c0, c1, l0, l1, l2, l3], rest)) = input.split_first_chunk::<FRAME_HEAD_BYTES>() else {
        return Ok(None);
    };
    let payload_bytes = u32::from_be_bytes([l0, l1, l2, l3]);
    if payload_bytes > frame_max {
        return Err(FrameError::TooLarge { kind, payload_bytes, frame_max });
    }
    let Some((payload, rest)) = rest.split_at_checked(payload_bytes as usize) else {
        return Ok(None);
    };
    let Some((&end, rest)) = rest.split_first() else {
        return Ok(None);
    };
    if end != FRAME_END {
        return Err(FrameError::BadEnd { kind, end, payload: Snippet::of(payload) });
    }
    let kind = match (kind, payload.len()) {
        (1, METHOD_IDS_BYTES..) => FrameKind::Method,
        (2, HEADER_BYTES_MIN..) => FrameKind::Header,
        (3, _) => FrameKind::Body,
        (8, 0) => FrameKind::Heartbeat,
        (kind, _) => return Err(FrameError::Unknown { kind, payload: Snippet::of(payload) }),
    };
    *input = rest;
    Ok(Some(RawFrame { kind, channel: u16::from_be_bytes([c0, c1]), payload }))
}

/// Appends a frame whose payload `write` appends.
pub fn write_frame(out: &mut Vec<u8>, kind: FrameKind, channel: u16, write: impl FnOnce(&mut Vec<u8>)) {
    let start = out.len();
    out.extend_from_slice(&frame_head(kind, channel, 0));
    write(out);
    let head = frame_head(kind, channel, out.len() - start - FRAME_HEAD_BYTES);
    out[start..start + FRAME_HEAD_BYTES].copy_from_slice(&head);
    out.push(FRAME_END);
}

/// What comes before a payload of so many bytes.
#[inline]
pub fn frame_head(kind: FrameKind, channel: u16, payload_bytes: usize) -> [u8; FRAME_HEAD_BYTES] {
    let [c0, c1] = channel.to_be_bytes();
    let [l0, l1, l2, l3] = u32::try_from(payload_bytes).unwrap_or(u32::MAX).to_be_bytes();
    [kind as u8, c0, c1, l0, l1, l2, l3]
}

/// Appends a method frame.
pub fn write_method(out: &mut Vec<u8>, channel: u16, method: &Method<'_>) {
    write_frame(out, FrameKind::Method, channel, |out| method.encode(out));
}

/// Appends header and body frames of a content whose header payload is already encoded.
///
/// The body is cut so that no frame is larger than `frame_max`; an empty body has no frame. AMQP 0-9-1 §4.2.6.
#[inline]
pub fn write_content(out: &mut Vec<u8>, channel: u16, header: &[u8], body: &[u8], frame_max: u32) {
    out.reserve(header.len() + body.len() + 2 * FRAME_OVERHEAD_BYTES);
    out.extend_from_slice(&frame_head(FrameKind::Header, channel, header.len()));
    out.extend_from_slice(header);
    for piece in body.chunks(frame_max as usize - FRAME_OVERHEAD_BYTES) {
        // The end of the frame before, and the head of this one.
        let [k, c0, c1, l0, l1, l2, l3] = frame_head(FrameKind::Body, channel, piece.len());
        out.extend_from_slice(&[FRAME_END, k, c0, c1, l0, l1, l2, l3]);
        out.extend_from_slice(piece);
    }
    out.push(FRAME_END);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_frame_is_taken_only_when_its_last_byte_is_there() {
        let mut bytes = Vec::new();
        write_frame(&mut bytes, FrameKind::Body, 7, |out| out.extend_from_slice(b"hello"));
        for cut in 0..bytes.len() {
            assert_eq!(split_frame(&mut &bytes[..cut], 4096), Ok(None), "cut at {cut}");
        }
        bytes.push(1);
        let mut rest = &bytes[..];
        let frame = split_frame(&mut rest, 4096).unwrap().unwrap();
        assert_eq!(frame, RawFrame { kind: FrameKind::Body, channel: 7, payload: b"hello" });
        assert_eq!(rest, [1]);
    }

    #[test]
    fn frames_stand_one_behind_the_other_in_a_buffer() {
        let methods = [Method::ChannelCloseOk {}, Method::BasicAck { delivery_tag: 3, multiple: true }];
        let mut bytes = Vec::new();
        for (method, channel) in methods.iter().zip([5, 0x102]) {
            write_method(&mut bytes, channel, method);
        }
        write_frame(&mut bytes, FrameKind::Body, 7, |out| out.push(1));
        let mut rest = &bytes[..];
        for (method, channel) in methods.into_iter().zip([5, 0x102]) {
            let frame = split_frame(&mut rest, 4096).unwrap().unwrap();
            assert_eq!((frame.kind, frame.channel), (FrameKind::Method, channel));
            assert_eq!(Method::decode(frame.payload), Ok(method));
        }
        let body = RawFrame { kind: FrameKind::Body, channel: 7, payload: &[1] };
        assert_eq!((split_frame(&mut rest, 4096), rest), (Ok(Some(body)), &[][..]));
    }

    #[test]
    fn a_bad_length_is_refused_before_the_rest_arrives() {
        let large = [1, 0, 0, 0x7F, 0xFF, 0xFF, 0xFF];
        let refused = FrameError::TooLarge { kind: 1, payload_bytes: 0x7FFF_FFFF, frame_max: 4096 };
        assert_eq!(split_frame(&mut &large[..], 4096), Err(refused));
    }

    #[test]
    fn a_payload_may_be_as_large_as_the_negotiated_maximum_and_no_larger() {
        let frame = |payload_bytes: usize| {
            let mut bytes = Vec::new();
            write_frame(&mut bytes, FrameKind::Body, 1, |out| out.resize(out.len() + payload_bytes, 7));
            split_frame(&mut &bytes[..], 4096).map(|frame| frame.unwrap().payload.len())
        };
        assert_eq!(frame(4096), Ok(4096));
        assert_eq!(frame(4097), Err(FrameError::TooLarge { kind: 3, payload_bytes: 4097, frame_max: 4096 }));
    }

    #[test]
    fn a_wrong_end_octet_is_refused() {
        let refused = FrameError::BadEnd { kind: 8, end: 0xCD, payload: Snippet::of(b"") };
        assert_eq!(split_frame(&mut &[8, 0, 0, 0, 0, 0, 0, 0xCD][..], 4096), Err(refused));
    }

    #[test]
    fn an_unknown_type_or_a_payload_that_no_frame_of_its_type_has_is_refused_at_its_end() {
        let frame = |kind: u8, payload: &[u8]| {
            let mut bytes = vec![kind, 0, 1, 0, 0, 0, u8::try_from(payload.len()).unwrap()];
            bytes.extend_from_slice(payload);
            assert_eq!(split_frame(&mut &bytes[..], 4096), Ok(None));
            bytes.push(FRAME_END);
            split_frame(&mut &bytes[..], 4096).map(|frame| frame.unwrap().kind)
        };
        for (kind, payload) in [(0, &b""[..]), (5, b"abc"), (1, b"123"), (2, b"12345678901"), (8, b"x")] {
            let payload_seen = Snippet::of(payload);
            assert_eq!(frame(kind, payload), Err(FrameError::Unknown { kind, payload: payload_seen }));
        }
        for (kind, payload) in [(1, &b"1234"[..]), (2, b"123456789012"), (3, b""), (8, b"")] {
            assert_eq!(frame(kind, payload).map(|kind| kind as u8), Ok(kind));
        }
    }

    #[test]
    fn a_snippet_keeps_sixteen_octets_and_knows_whether_that_is_all() {
        let snippet = |payload: &[u8]| {
            let snippet = Snippet::of(payload);
            (snippet.octets().to_vec(), snippet.is_all())
        };
        assert_eq!(snippet(b"abc"), (b"abc".to_vec(), true));
        assert_eq!(snippet(&[7; 16]), (vec![7; 16], true));
        assert_eq!(snippet(&[7; 17]), (vec![7; 16], false));
    }

    #[test]
    fn a_content_is_cut_so_that_no_frame_exceeds_the_maximum() {
        let mut bytes = Vec::new();
        write_content(&mut bytes, 1, b"twelve bytes", &[9; 10_000], 4096);
        let mut rest = &bytes[..];
        let mut sizes = Vec::new();
        while let Some(frame) = split_frame(&mut rest, 4096).unwrap() {
            sizes.push(frame.payload.len());
        }
        assert_eq!(sizes, [12, 4088, 4088, 1824]);
    }
}
