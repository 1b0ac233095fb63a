//! What a message carries: which message it is, and when it was due.

/// Bytes of a stamp at the front of a body.
pub(crate) const STAMP_BYTES: usize = 16;

/// Bits of a sequence number; the bits above are the flow's.
const SEQUENCE_BITS: u32 = 40;

/// What one message says of itself, in 16 bytes: flow (24 bits), number in it (40 bits), time (64 bits), big-endian.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Stamp {
    /// One producer's messages of one routing key are a flow.
    pub(crate) flow: u32,
    /// Counted from 0 in each flow.
    pub(crate) sequence: u64,
    /// Nanoseconds since the beginning of the run.
    pub(crate) time_ns: u64,
}

impl Stamp {
    pub(crate) fn encode(self) -> [u8; STAMP_BYTES] {
        let number = u64::from(self.flow) << SEQUENCE_BITS | self.sequence;
        let mut bytes = [0; STAMP_BYTES];
        bytes[..8].copy_from_slice(&number.to_be_bytes());
        bytes[8..].copy_from_slice(&self.time_ns.to_be_bytes());
        bytes
    }

    pub(crate) fn decode(bytes: [u8; STAMP_BYTES]) -> Self {
        let [n0, n1, n2, n3, n4, n5, n6, n7, t0, t1, t2, t3, t4, t5, t6, t7] = bytes;
        let flow = u32::from_be_bytes([0, n0, n1, n2]);
        let sequence = u64::from_be_bytes([0, 0, 0, n3, n4, n5, n6, n7]);
        Stamp { flow, sequence, time_ns: u64::from_be_bytes([t0, t1, t2, t3, t4, t5, t6, t7]) }
    }

    /// The same in hexadecimal digits, for properties that are texts.
    pub(crate) fn encode_hex(self) -> [u8; 2 * STAMP_BYTES] {
        let digit = |nibble: u8| b"0123456789abcdef"[usize::from(nibble)];
        let bytes = self.encode();
        std::array::from_fn(|at| digit(bytes[at / 2] >> if at % 2 == 0 { 4 } else { 0 } & 0xF))
    }

    /// `None` for what is no stamp.
    pub(crate) fn decode_hex(digits: &[u8]) -> Option<Self> {
        let text = std::str::from_utf8(digits).ok().filter(|text| text.len() == 2 * STAMP_BYTES)?;
        Some(Stamp::decode(u128::from_str_radix(text, 16).ok()?.to_be_bytes()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stamp_comes_back_as_it_was() {
        for (flow, sequence, time_ns) in [(0, 0, 0), (0x00FF_FFFF, (1 << 40) - 1, u64::MAX), (7, 1 << 39, 5)] {
            let stamp = Stamp { flow, sequence, time_ns };
            assert_eq!(Stamp::decode(stamp.encode()), stamp);
            assert_eq!(Stamp::decode_hex(&stamp.encode_hex()), Some(stamp));
        }
        assert_eq!((Stamp::decode_hex(b"12"), Stamp::decode_hex(&[b'x'; 32])), (None, None));
    }
}
