//! All methods that RabbitMQ implements, with their arguments. AMQP 0-9-1 §1, and RabbitMQ's extensions.

use crate::string::ShortStr;
use crate::table::Table;
use crate::wire::{Argument, DecodeError, Kind, Reader, Writer};

/// The name and kind of one argument.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ArgumentSpec {
    /// The name, with underscores where the specification has hyphens.
    pub name: &'static str,
    /// What kind of value it is.
    pub kind: Kind,
}

/// The shape of one method, for tools that build and print methods by name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MethodSpec {
    /// For example `basic.publish`.
    pub name: &'static str,
    /// The class id.
    pub class: u16,
    /// The method id within its class.
    pub method: u16,
    /// The arguments in their order on the wire.
    pub arguments: &'static [ArgumentSpec],
}

macro_rules! methods {
    (<$life:lifetime> $($(#[$doc:meta])* $variant:ident $class:literal $method:literal $name:literal {
        $($field:ident: $type:ty),* $(,)?
    })*) => {
        /// A method with its arguments, borrowed from the payload it came in or the values it is made of.
        #[derive(Clone, Copy, Debug, PartialEq)]
        #[expect(missing_docs, reason = "the arguments are those of the specification, by its names")]
        pub enum Method<$life> {
            $(#[doc = concat!("`", $name, "`")] $variant { $($field: $type),* },)*
        }

        impl<$life> Method<$life> {
            /// The shape of every method, in the order of the specification's classes.
            pub const ALL: &'static [MethodSpec] = &[$(MethodSpec {
                name: $name,
                class: $class,
                method: $method,
                arguments: &[$(ArgumentSpec { name: stringify!($field), kind: <$type as Argument<$life>>::KIND }),*],
            }),*];

            /// Decodes the payload of a method frame, to its last byte.
            pub fn decode(payload: &$life [u8]) -> Result<Self, DecodeError> {
                let mut reader = Reader::new(payload);
                let (class, method) = (reader.u16()?, reader.u16()?);
                let decoded = match (class, method) {
                    $(($class, $method) => Method::$variant { $($field: <$type>::read(&mut reader)?),* },)*
                    _ => return Err(DecodeError::UnknownMethod { class, method }),
                };
                reader.end()?;
                Ok(decoded)
            }

            /// Appends the payload of a method frame.
            pub fn encode(&self, out: &mut Vec<u8>) {
                match self {
                    $(Method::$variant { $($field),* } => {
                        out.extend_from_slice(&[0, $class, 0, $method]);
                        #[allow(unused_mut, unused_variables, reason = "some methods have no arguments")]
                        let mut writer = Writer::new(out);
                        $($field.write(&mut writer);)*
                    })*
                }
            }

            /// Class and method id, as a close names the method at fault.
            pub fn ids(&self) -> (u16, u16) {
                match self { $(Method::$variant { .. } => ($class, $method),)* }
            }

            /// The name of the method with this class and method id, if there is one.
            pub fn name_of(ids: (u16, u16)) -> Option<&'static str> {
                match ids {
                    $(($class, $method) => Some($name),)*
                    _ => None,
                }
            }

            /// For example `basic.publish`.
            pub fn name(&self) -> &'static str {
                match self { $(Method::$variant { .. } => $name,)* }
            }
        }
    };
}

methods! { <'a>
    ConnectionStart 10 10 "connection.start" {
        version_major: u8, version_minor: u8, server_properties: Table<'a>, mechanisms: &'a [u8], locales: &'a [u8],
    }
    ConnectionStartOk 10 11 "connection.start-ok" {
        client_properties: Table<'a>, mechanism: ShortStr<'a>, response: &'a [u8], locale: ShortStr<'a>,
    }
    ConnectionSecure 10 20 "connection.secure" { challenge: &'a [u8] }
    ConnectionSecureOk 10 21 "connection.secure-ok" { response: &'a [u8] }
    ConnectionTune 10 30 "connection.tune" { channel_max: u16, frame_max: u32, heartbeat: u16 }
    ConnectionTuneOk 10 31 "connection.tune-ok" { channel_max: u16, frame_max: u32, heartbeat: u16 }
    ConnectionOpen 10 40 "connection.open" { virtual_host: ShortStr<'a>, capabilities: ShortStr<'a>, insist: bool }
    ConnectionOpenOk 10 41 "connection.open-ok" { known_hosts: ShortStr<'a> }
    ConnectionClose 10 50 "connection.close" {
        reply_code: u16, reply_text: ShortStr<'a>, class_id: u16, method_id: u16,
    }
    ConnectionCloseOk 10 51 "connection.close-ok" {}
    ConnectionBlocked 10 60 "connection.blocked" { reason: ShortStr<'a> }
    ConnectionUnblocked 10 61 "connection.unblocked" {}
    ConnectionUpdateSecret 10 70 "connection.update-secret" { new_secret: &'a [u8], reason: ShortStr<'a> }
    ConnectionUpdateSecretOk 10 71 "connection.update-secret-ok" {}

    ChannelOpen 20 10 "channel.open" { out_of_band: ShortStr<'a> }
    ChannelOpenOk 20 11 "channel.open-ok" { channel_id: &'a [u8] }
    ChannelFlow 20 20 "channel.flow" { active: bool }
    ChannelFlowOk 20 21 "channel.flow-ok" { active: bool }
    ChannelClose 20 40 "channel.close" {
        reply_code: u16, reply_text: ShortStr<'a>, class_id: u16, method_id: u16,
    }
    ChannelCloseOk 20 41 "channel.close-ok" {}

    AccessRequest 30 10 "access.request" {
        realm: ShortStr<'a>, exclusive: bool, passive: bool, active: bool, write: bool, read: bool,
    }
    AccessRequestOk 30 11 "access.request-ok" { ticket: u16 }

    ExchangeDeclare 40 10 "exchange.declare" {
        ticket: u16, exchange: ShortStr<'a>, type_: ShortStr<'a>, passive: bool, durable: bool, auto_delete: bool,
        internal: bool, nowait: bool, arguments: Table<'a>,
    }
    ExchangeDeclareOk 40 11 "exchange.declare-ok" {}
    ExchangeDelete 40 20 "exchange.delete" { ticket: u16, exchange: ShortStr<'a>, if_unused: bool, nowait: bool }
    ExchangeDeleteOk 40 21 "exchange.delete-ok" {}
    ExchangeBind 40 30 "exchange.bind" {
        ticket: u16, destination: ShortStr<'a>, source: ShortStr<'a>, routing_key: ShortStr<'a>, nowait: bool,
        arguments: Table<'a>,
    }
    ExchangeBindOk 40 31 "exchange.bind-ok" {}
    ExchangeUnbind 40 40 "exchange.unbind" {
        ticket: u16, destination: ShortStr<'a>, source: ShortStr<'a>, routing_key: ShortStr<'a>, nowait: bool,
        arguments: Table<'a>,
    }
    ExchangeUnbindOk 40 51 "exchange.unbind-ok" {}

    QueueDeclare 50 10 "queue.declare" {
        ticket: u16, queue: ShortStr<'a>, passive: bool, durable: bool, exclusive: bool, auto_delete: bool,
        nowait: bool, arguments: Table<'a>,
    }
    QueueDeclareOk 50 11 "queue.declare-ok" { queue: ShortStr<'a>, message_count: u32, consumer_count: u32 }
    QueueBind 50 20 "queue.bind" {
        ticket: u16, queue: ShortStr<'a>, exchange: ShortStr<'a>, routing_key: ShortStr<'a>, nowait: bool,
        arguments: Table<'a>,
    }
    QueueBindOk 50 21 "queue.bind-ok" {}
    QueuePurge 50 30 "queue.purge" { ticket: u16, queue: ShortStr<'a>, nowait: bool }
    QueuePurgeOk 50 31 "queue.purge-ok" { message_count: u32 }
    QueueDelete 50 40 "queue.delete" {
        ticket: u16, queue: ShortStr<'a>, if_unused: bool, if_empty: bool, nowait: bool,
    }
    QueueDeleteOk 50 41 "queue.delete-ok" { message_count: u32 }
    QueueUnbind 50 50 "queue.unbind" {
        ticket: u16, queue: ShortStr<'a>, exchange: ShortStr<'a>, routing_key: ShortStr<'a>, arguments: Table<'a>,
    }
    QueueUnbindOk 50 51 "queue.unbind-ok" {}

    BasicQos 60 10 "basic.qos" { prefetch_size: u32, prefetch_count: u16, global: bool }
    BasicQosOk 60 11 "basic.qos-ok" {}
    BasicConsume 60 20 "basic.consume" {
        ticket: u16, queue: ShortStr<'a>, consumer_tag: ShortStr<'a>, no_local: bool, no_ack: bool, exclusive: bool,
        nowait: bool, arguments: Table<'a>,
    }
    BasicConsumeOk 60 21 "basic.consume-ok" { consumer_tag: ShortStr<'a> }
    BasicCancel 60 30 "basic.cancel" { consumer_tag: ShortStr<'a>, nowait: bool }
    BasicCancelOk 60 31 "basic.cancel-ok" { consumer_tag: ShortStr<'a> }
    BasicPublish 60 40 "basic.publish" {
        ticket: u16, exchange: ShortStr<'a>, routing_key: ShortStr<'a>, mandatory: bool, immediate: bool,
    }
    BasicReturn 60 50 "basic.return" {
        reply_code: u16, reply_text: ShortStr<'a>, exchange: ShortStr<'a>, routing_key: ShortStr<'a>,
    }
    BasicDeliver 60 60 "basic.deliver" {
        consumer_tag: ShortStr<'a>, delivery_tag: u64, redelivered: bool, exchange: ShortStr<'a>,
        routing_key: ShortStr<'a>,
    }
    BasicGet 60 70 "basic.get" { ticket: u16, queue: ShortStr<'a>, no_ack: bool }
    BasicGetOk 60 71 "basic.get-ok" {
        delivery_tag: u64, redelivered: bool, exchange: ShortStr<'a>, routing_key: ShortStr<'a>, message_count: u32,
    }
    BasicGetEmpty 60 72 "basic.get-empty" { cluster_id: ShortStr<'a> }
    BasicAck 60 80 "basic.ack" { delivery_tag: u64, multiple: bool }
    BasicReject 60 90 "basic.reject" { delivery_tag: u64, requeue: bool }
    BasicRecoverAsync 60 100 "basic.recover-async" { requeue: bool }
    BasicRecover 60 110 "basic.recover" { requeue: bool }
    BasicRecoverOk 60 111 "basic.recover-ok" {}
    BasicNack 60 120 "basic.nack" { delivery_tag: u64, multiple: bool, requeue: bool }

    TxSelect 90 10 "tx.select" {}
    TxSelectOk 90 11 "tx.select-ok" {}
    TxCommit 90 20 "tx.commit" {}
    TxCommitOk 90 21 "tx.commit-ok" {}
    TxRollback 90 30 "tx.rollback" {}
    TxRollbackOk 90 31 "tx.rollback-ok" {}

    ConfirmSelect 85 10 "confirm.select" { nowait: bool }
    ConfirmSelectOk 85 11 "confirm.select-ok" {}
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_share_an_octet_and_other_values_end_it() {
        let method = Method::QueueDeclare {
            ticket: 0,
            queue: ShortStr::new("q").unwrap(),
            passive: false,
            durable: true,
            exclusive: false,
            auto_delete: true,
            nowait: true,
            arguments: Table::EMPTY,
        };
        let mut bytes = Vec::new();
        method.encode(&mut bytes);
        assert_eq!(bytes, [0, 50, 0, 10, 0, 0, 1, b'q', 0b11010, 0, 0, 0, 0]);
        assert_eq!(Method::decode(&bytes), Ok(method));
    }

    #[test]
    fn a_long_string_holds_any_octets_behind_four_for_its_length() {
        let method = Method::ConnectionUpdateSecret { new_secret: &[0, 0xFF], reason: ShortStr::new("r").unwrap() };
        let mut bytes = Vec::new();
        method.encode(&mut bytes);
        assert_eq!(bytes, [0, 10, 0, 70, 0, 0, 0, 2, 0, 0xFF, 1, b'r']);
        assert_eq!(Method::decode(&bytes), Ok(method));
    }

    #[test]
    fn arguments_cut_short_or_too_long_are_refused() {
        let mut bytes = Vec::new();
        Method::BasicAck { delivery_tag: 1, multiple: true }.encode(&mut bytes);
        for cut in 0..bytes.len() {
            assert_eq!(Method::decode(&bytes[..cut]), Err(DecodeError::Truncated), "cut at {cut}");
        }
        bytes.push(0);
        assert_eq!(Method::decode(&bytes), Err(DecodeError::Trailing(1)));
    }

    #[test]
    fn a_name_that_is_not_utf8_is_refused() {
        let bytes = [0, 60, 0, 30, 1, 0xFF, 0];
        assert_eq!(Method::decode(&bytes), Err(DecodeError::NotUtf8));
    }

    #[test]
    fn a_method_nobody_defined_is_named_in_the_error() {
        let unknown = DecodeError::UnknownMethod { class: 50, method: 999 };
        assert_eq!(Method::decode(&[0, 50, 3, 231]), Err(unknown));
    }
}
