//! The elementary types of method arguments: reading them from a payload, writing them to a buffer.
//!
//! Invariant: a `Reader` never looks beyond its input, whatever lengths the input declares.

use crate::string::ShortStr;
use crate::table::Table;

/// Why a payload could not be decoded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// The payload ends before the value does.
    #[error("the payload ends in the middle of a value")]
    Truncated,
    /// The payload goes on after the last value.
    #[error("{0} bytes follow the last value")]
    Trailing(usize),
    /// A short string of a method is not UTF-8. RabbitMQ refuses it too.
    #[error("a short string is not valid UTF-8")]
    NotUtf8,
    /// A class and method that AMQP 0-9-1 does not have.
    #[error("unknown method {class}.{method}")]
    UnknownMethod {
        /// The class id on the wire.
        class: u16,
        /// The method id on the wire.
        method: u16,
    },
    /// A field table or array that breaks its own rules.
    #[error("{0}")]
    Table(#[from] crate::table::TableError),
    /// Property flags beyond the fourteen properties of class basic.
    #[error("property flags name properties that class basic does not have")]
    PropertyFlags,
    /// A content header of a class other than basic, the only one whose methods have contents.
    #[error("a content header of class {0}, where only class basic has contents")]
    Class(u16),
    /// A content header whose weight is not 0. AMQP 0-9-1 §4.2.6.1.
    #[error("the weight of a content header must be 0")]
    Weight,
}

/// What kind of value a method argument is, as the machine-readable specification calls it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A flag; neighbours share an octet.
    Bit,
    /// 8 bits, unsigned.
    Octet,
    /// 16 bits, unsigned.
    Short,
    /// 32 bits, unsigned.
    Long,
    /// 64 bits, unsigned.
    LongLong,
    /// At most 255 bytes of UTF-8.
    ShortStr,
    /// Any bytes behind a 32-bit length.
    LongStr,
    /// A field table.
    Table,
}

/// Reads values from the front of a payload.
#[derive(Debug)]
pub(crate) struct Reader<'a> {
    input: &'a [u8],
    /// The octet that flags are read from, and how many were.
    bits: Option<(u8, u8)>,
}

impl<'a> Reader<'a> {
    pub(crate) fn new(input: &'a [u8]) -> Self {
        Reader { input, bits: None }
    }

    pub(crate) fn take(&mut self, length: usize) -> Result<&'a [u8], DecodeError> {
        let (head, rest) = self.input.split_at_checked(length).ok_or(DecodeError::Truncated)?;
        self.input = rest;
        self.bits = None;
        Ok(head)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], DecodeError> {
        let (head, rest) = self.input.split_first_chunk::<N>().ok_or(DecodeError::Truncated)?;
        self.input = rest;
        self.bits = None;
        Ok(*head)
    }

    pub(crate) fn u8(&mut self) -> Result<u8, DecodeError> {
        Ok(self.array::<1>()?[0])
    }

    pub(crate) fn u16(&mut self) -> Result<u16, DecodeError> {
        self.array().map(u16::from_be_bytes)
    }

    pub(crate) fn u32(&mut self) -> Result<u32, DecodeError> {
        self.array().map(u32::from_be_bytes)
    }

    pub(crate) fn u64(&mut self) -> Result<u64, DecodeError> {
        self.array().map(u64::from_be_bytes)
    }

    pub(crate) fn short_bytes(&mut self) -> Result<&'a [u8], DecodeError> {
        let length = self.u8()?;
        self.take(usize::from(length))
    }

    pub(crate) fn long_bytes(&mut self) -> Result<&'a [u8], DecodeError> {
        let length = self.u32()?;
        self.take(usize::try_from(length).map_err(|_| DecodeError::Truncated)?)
    }

    pub(crate) fn table(&mut self) -> Result<Table<'a>, DecodeError> {
        Ok(Table::check(self.long_bytes()?)?)
    }

    fn bit(&mut self) -> Result<bool, DecodeError> {
        let (octet, used) = match self.bits {
            Some((octet, used)) if used < 8 => (octet, used),
            _ => (self.u8()?, 0),
        };
        self.bits = Some((octet, used + 1));
        Ok(octet >> used & 1 == 1)
    }

    pub(crate) fn rest(&self) -> &'a [u8] {
        self.input
    }

    pub(crate) fn end(self) -> Result<(), DecodeError> {
        if self.input.is_empty() { Ok(()) } else { Err(DecodeError::Trailing(self.input.len())) }
    }
}

/// Appends values to a buffer.
#[derive(Debug)]
pub(crate) struct Writer<'b> {
    out: &'b mut Vec<u8>,
    /// How many flags the last octet of `out` holds; 0 when the next flag starts a new octet.
    bits: u8,
}

impl<'b> Writer<'b> {
    pub(crate) fn new(out: &'b mut Vec<u8>) -> Self {
        Writer { out, bits: 0 }
    }

    pub(crate) fn bytes(&mut self, bytes: &[u8]) {
        self.out.extend_from_slice(bytes);
        self.bits = 0;
    }

    /// Lengths fit by construction: whatever is written was read from a frame or built within its limits.
    pub(crate) fn long_bytes(&mut self, bytes: &[u8]) {
        self.bytes(&u32::try_from(bytes.len()).unwrap_or(u32::MAX).to_be_bytes());
        self.bytes(bytes);
    }

    fn bit(&mut self, flag: bool) {
        if self.bits == 0 || self.bits == 8 {
            self.out.push(0);
            self.bits = 0;
        }
        if let Some(octet) = self.out.last_mut() {
            *octet |= u8::from(flag) << self.bits;
        }
        self.bits += 1;
    }
}

/// A value that can be a method argument.
pub(crate) trait Argument<'a>: Sized {
    const KIND: Kind;
    fn read(reader: &mut Reader<'a>) -> Result<Self, DecodeError>;
    fn write(&self, writer: &mut Writer<'_>);
}

macro_rules! number {
    ($type:ty, $kind:ident) => {
        impl Argument<'_> for $type {
            const KIND: Kind = Kind::$kind;
            fn read(reader: &mut Reader<'_>) -> Result<Self, DecodeError> {
                reader.array().map(<$type>::from_be_bytes)
            }
            fn write(&self, writer: &mut Writer<'_>) {
                writer.bytes(&self.to_be_bytes());
            }
        }
    };
}
number!(u8, Octet);
number!(u16, Short);
number!(u32, Long);
number!(u64, LongLong);

impl Argument<'_> for bool {
    const KIND: Kind = Kind::Bit;
    fn read(reader: &mut Reader<'_>) -> Result<Self, DecodeError> {
        reader.bit()
    }
    fn write(&self, writer: &mut Writer<'_>) {
        writer.bit(*self);
    }
}

impl<'a> Argument<'a> for ShortStr<'a> {
    const KIND: Kind = Kind::ShortStr;
    fn read(reader: &mut Reader<'a>) -> Result<Self, DecodeError> {
        ShortStr::from_wire(reader.short_bytes()?)
    }
    fn write(&self, writer: &mut Writer<'_>) {
        writer.bytes(&[self.length_octet()]);
        writer.bytes(self.as_str().as_bytes());
    }
}

impl<'a> Argument<'a> for &'a [u8] {
    const KIND: Kind = Kind::LongStr;
    fn read(reader: &mut Reader<'a>) -> Result<Self, DecodeError> {
        reader.long_bytes()
    }
    fn write(&self, writer: &mut Writer<'_>) {
        writer.long_bytes(self);
    }
}

impl<'a> Argument<'a> for Table<'a> {
    const KIND: Kind = Kind::Table;
    fn read(reader: &mut Reader<'a>) -> Result<Self, DecodeError> {
        reader.table()
    }
    fn write(&self, writer: &mut Writer<'_>) {
        writer.long_bytes(self.as_bytes());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// AMQP 0-9-1 §4.2.5.2. No method has so many flags in a row.
    #[test]
    fn the_ninth_flag_begins_another_octet() {
        let flags = [true, false, true, true, false, false, false, true, true, false];
        let mut bytes = Vec::new();
        let mut writer = Writer::new(&mut bytes);
        for flag in flags {
            flag.write(&mut writer);
        }
        writer.bytes(&[7]);
        assert_eq!(bytes, [0b1000_1101, 0b01, 7]);
        let mut reader = Reader::new(&bytes);
        assert_eq!(flags.map(|_| reader.bit().unwrap()), flags);
        assert_eq!((reader.u8(), reader.end()), (Ok(7), Ok(())));
    }
}
