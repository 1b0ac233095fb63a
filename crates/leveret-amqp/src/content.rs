//! The content header: size of the body, and the fourteen properties of class basic. AMQP 0-9-1 §4.2.6.1.

use crate::table::Table;
use crate::wire::{DecodeError, Reader};

/// The class id of `basic`, the only class with content.
pub const BASIC_CLASS: u16 = 60;

/// A content header of class basic, its properties borrowed from the payload.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ContentHeader<'a> {
    /// Bytes of the body, over all its frames.
    pub body_bytes: u64,
    /// The properties.
    pub properties: BasicProperties<'a>,
}

/// The properties of a message. Strings are bytes here: RabbitMQ hands them on whatever they hold.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
#[expect(missing_docs, reason = "AMQP 0-9-1 §1.8 names them and says no more")]
pub struct BasicProperties<'a> {
    pub content_type: Option<&'a [u8]>,
    pub content_encoding: Option<&'a [u8]>,
    pub headers: Option<Table<'a>>,
    pub delivery_mode: Option<u8>,
    pub priority: Option<u8>,
    pub correlation_id: Option<&'a [u8]>,
    pub reply_to: Option<&'a [u8]>,
    pub expiration: Option<&'a [u8]>,
    pub message_id: Option<&'a [u8]>,
    pub timestamp: Option<u64>,
    pub type_: Option<&'a [u8]>,
    pub user_id: Option<&'a [u8]>,
    pub app_id: Option<&'a [u8]>,
    pub cluster_id: Option<&'a [u8]>,
}

/// The two lowest flags: a second word of flags follows, and one that nobody defined.
const FLAGS_BEYOND_BASIC: u16 = 0b11;

impl<'a> ContentHeader<'a> {
    /// Decodes the payload of a header frame, to its last byte.
    pub fn decode(payload: &'a [u8]) -> Result<Self, DecodeError> {
        let mut reader = Reader::new(payload);
        let class_id = reader.u16()?;
        if reader.u16()? != 0 {
            return Err(DecodeError::Weight);
        }
        if class_id != BASIC_CLASS {
            return Err(DecodeError::Class(class_id));
        }
        let body_bytes = reader.u64()?;
        let properties = BasicProperties::read(&mut reader)?;
        reader.end()?;
        Ok(ContentHeader { body_bytes, properties })
    }

    /// Appends the payload of a header frame. Strings are cut at 255 bytes.
    pub fn encode(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&BASIC_CLASS.to_be_bytes());
        out.extend_from_slice(&[0, 0]);
        out.extend_from_slice(&self.body_bytes.to_be_bytes());
        self.properties.write(out);
    }
}

impl<'a> BasicProperties<'a> {
    fn read(reader: &mut Reader<'a>) -> Result<Self, DecodeError> {
        let flags = reader.u16()?;
        if flags & FLAGS_BEYOND_BASIC != 0 {
            return Err(DecodeError::PropertyFlags);
        }
        let mut bit = 16;
        let mut present = || {
            bit -= 1;
            flags >> bit & 1 == 1
        };
        Ok(BasicProperties {
            content_type: present().then(|| reader.short_bytes()).transpose()?,
            content_encoding: present().then(|| reader.short_bytes()).transpose()?,
            headers: present().then(|| reader.table()).transpose()?,
            delivery_mode: present().then(|| reader.u8()).transpose()?,
            priority: present().then(|| reader.u8()).transpose()?,
            correlation_id: present().then(|| reader.short_bytes()).transpose()?,
            reply_to: present().then(|| reader.short_bytes()).transpose()?,
            expiration: present().then(|| reader.short_bytes()).transpose()?,
            message_id: present().then(|| reader.short_bytes()).transpose()?,
            timestamp: present().then(|| reader.u64()).transpose()?,
            type_: present().then(|| reader.short_bytes()).transpose()?,
            user_id: present().then(|| reader.short_bytes()).transpose()?,
            app_id: present().then(|| reader.short_bytes()).transpose()?,
            cluster_id: present().then(|| reader.short_bytes()).transpose()?,
        })
    }

    fn write(&self, out: &mut Vec<u8>) {
        fn short(out: &mut Vec<u8>, bytes: &[u8]) {
            let length = u8::try_from(bytes.len()).unwrap_or(u8::MAX);
            out.push(length);
            out.extend_from_slice(&bytes[..usize::from(length)]);
        }
        let flags_at = out.len();
        out.extend_from_slice(&[0, 0]);
        let mut flags = 0u16;
        let mut bit = 16;
        macro_rules! field {
            ($value:expr, $write:expr) => {
                bit -= 1;
                if let Some(value) = $value {
                    flags |= 1 << bit;
                    $write(out, value);
                }
            };
        }
        field!(self.content_type, short);
        field!(self.content_encoding, short);
        field!(self.headers, |out: &mut Vec<u8>, table: Table<'_>| {
            let bytes = table.as_bytes();
            out.extend_from_slice(&u32::try_from(bytes.len()).unwrap_or(u32::MAX).to_be_bytes());
            out.extend_from_slice(bytes);
        });
        field!(self.delivery_mode, |out: &mut Vec<u8>, octet| out.push(octet));
        field!(self.priority, |out: &mut Vec<u8>, octet| out.push(octet));
        field!(self.correlation_id, short);
        field!(self.reply_to, short);
        field!(self.expiration, short);
        field!(self.message_id, short);
        field!(self.timestamp, |out: &mut Vec<u8>, n: u64| out.extend_from_slice(&n.to_be_bytes()));
        field!(self.type_, short);
        field!(self.user_id, short);
        field!(self.app_id, short);
        field!(self.cluster_id, short);
        out[flags_at..flags_at + 2].copy_from_slice(&flags.to_be_bytes());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::table::{FieldTable, Value};

    #[test]
    fn all_fourteen_properties_come_back() {
        let headers = FieldTable::build(|t| {
            t.field("k", Value::I32(1));
        });
        let properties = BasicProperties {
            content_type: Some(b"text/plain"),
            content_encoding: Some(b""),
            headers: Some(headers.as_table()),
            delivery_mode: Some(2),
            priority: Some(9),
            correlation_id: Some(b"c"),
            reply_to: Some(b"r"),
            expiration: Some(b"1000"),
            message_id: Some(b"m"),
            timestamp: Some(1),
            type_: Some(b"t"),
            user_id: Some(b"guest"),
            app_id: Some(&[0xFF]),
            cluster_id: Some(b"x"),
        };
        let header = ContentHeader { body_bytes: 5, properties };
        let mut bytes = Vec::new();
        header.encode(&mut bytes);
        assert_eq!(ContentHeader::decode(&bytes), Ok(header));
        for cut in 0..bytes.len() {
            assert!(ContentHeader::decode(&bytes[..cut]).is_err(), "cut at {cut}");
        }
    }

    #[test]
    fn another_class_weight_unknown_flags_and_trailing_bytes_are_refused() {
        let mut bytes = Vec::new();
        let properties = BasicProperties::default();
        ContentHeader { body_bytes: 0, properties }.encode(&mut bytes);
        assert_eq!(bytes.len(), 14);
        let change = |at: usize, to: u8| {
            let mut changed = bytes.clone();
            changed[at] = to;
            ContentHeader::decode(&changed).unwrap_err()
        };
        assert_eq!(change(1, 50), DecodeError::Class(50));
        assert_eq!(change(3, 1), DecodeError::Weight);
        assert_eq!(change(13, 1), DecodeError::PropertyFlags);
        assert_eq!(change(13, 2), DecodeError::PropertyFlags);
        bytes.push(0);
        assert_eq!(ContentHeader::decode(&bytes), Err(DecodeError::Trailing(1)));
    }
}
