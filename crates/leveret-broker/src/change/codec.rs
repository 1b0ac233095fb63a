//! Changes as bytes, for the records of a journal. Drawn in `docs/formats/changes.md`.

use leveret_amqp::{FieldTable, ShortStr, ShortString, Table};
use smallvec::SmallVec;

use super::page::Form;
use super::{
    Change, DeathReason, Enqueued, Expiry, JournalPosition, NUMBERS_END, PageEntries, QueueNumber, QueuePosition,
    Tries,
};
use crate::message::{DeliveryMode, History, Message};
use crate::names::{ExchangeName, PolicyName, QueueName};
use crate::slots::Slots;
use crate::vhost::binding::{Binding, Destination};
use crate::vhost::policy::{ApplyTo, PolicyKind, PolicySource};

/// Bytes that are no change, though the journal says that they are as they were written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a record that is no change: {0}")]
pub struct DecodeChangeError(pub(super) &'static str);

mod kind {
    pub(super) const QUEUE_DECLARED: u8 = 1;
    pub(super) const QUEUE_DELETED: u8 = 2;
    pub(super) const MESSAGE_ENQUEUED: u8 = 3;
    pub(super) const MESSAGE_SETTLED: u8 = 4;
    pub(super) const QUEUE_PURGED: u8 = 5;
    pub(super) const DELIVERY_GRANTED: u8 = 6;
    pub(super) const EXCHANGE_DECLARED: u8 = 7;
    pub(super) const EXCHANGE_DELETED: u8 = 8;
    pub(super) const BOUND: u8 = 9;
    pub(super) const UNBOUND: u8 = 10;
    pub(super) const CHECKPOINT_BEGUN: u8 = 11;
    pub(super) const QUEUE_PAGE: u8 = 12;
    pub(super) const QUEUE_RESTATED: u8 = 13;
    pub(super) const CHECKPOINT_ENDED: u8 = 14;
    pub(super) const MESSAGES_CONDEMNED: u8 = 15;
    pub(super) const COUNTED_QUEUE_PAGE: u8 = 16;
    pub(super) const MESSAGES_RETURNED: u8 = 17;
    pub(super) const LEVEL_RESTATED: u8 = 18;
    pub(super) const QUEUE_CLOSED: u8 = 19;
    pub(super) const QUEUE_BLOCK: u8 = 20;
    pub(super) const POLICY_SET: u8 = 24;
    pub(super) const POLICY_CLEARED: u8 = 25;
    pub(super) const DELAY_QUEUE_DECLARED: u8 = 30;
    pub(super) const DELAY_QUEUE_RESTATED: u8 = 31;
}

impl Change {
    /// Appends it to `out`.
    pub fn encode(&self, out: &mut Vec<u8>) {
        match self {
            Change::QueueDeclared { queue, name, auto_delete, arguments } => {
                put_numbers(out, kind::QUEUE_DECLARED, &[queue.0]);
                out.push(u8::from(*auto_delete));
                put_short(out, name.as_short_str());
                put_table(out, arguments);
            }
            Change::DelayQueueDeclared { queue, exchange } => {
                put_numbers(out, kind::DELAY_QUEUE_DECLARED, &[queue.0]);
                put_short(out, exchange.as_short_str());
            }
            Change::DelayQueueRestated { queue, exchange, messages } => {
                put_numbers(out, kind::DELAY_QUEUE_RESTATED, &[queue.0, *messages]);
                put_short(out, exchange.as_short_str());
            }
            Change::QueueDeleted { queue } => put_numbers(out, kind::QUEUE_DELETED, &[queue.0]),
            Change::MessageEnqueued { message, queues } => {
                out.push(kind::MESSAGE_ENQUEUED);
                let is_persistent = message.delivery_mode() == DeliveryMode::Persistent;
                let history = match message.history() {
                    History::None => 0,
                    History::Deaths { spread } => 1 | spread << 1,
                };
                out.push(u8::from(is_persistent) | history << 1);
                let (block, header_at, body_at) = message.parts();
                out.extend_from_slice(&header_at.to_le_bytes());
                out.extend_from_slice(&body_at.to_le_bytes());
                put_count(out, queues.len());
                for Enqueued { queue, position, expires } in queues {
                    out.extend_from_slice(&queue.0.to_le_bytes());
                    out.extend_from_slice(&position.0.to_le_bytes());
                    out.push(u8::from(expires.is_some()));
                    if let Some(Expiry { wall_ms, time_to_live_ms }) = expires {
                        out.extend_from_slice(&wall_ms.to_le_bytes());
                        out.extend_from_slice(&time_to_live_ms.to_le_bytes());
                    }
                }
                out.extend_from_slice(block);
            }
            Change::MessageSettled { queue, position } => {
                put_numbers(out, kind::MESSAGE_SETTLED, &[queue.0, position.0]);
            }
            Change::MessagesCondemned { queue, messages } => {
                put_numbers(out, kind::MESSAGES_CONDEMNED, &[queue.0]);
                put_count(out, messages.len());
                for (position, reason) in messages {
                    out.extend_from_slice(&position.0.to_le_bytes());
                    out.push(death(*reason));
                }
            }
            Change::MessagesReturned { queue, messages } => {
                put_numbers(out, kind::MESSAGES_RETURNED, &[queue.0]);
                put_count(out, messages.len());
                for (position, Tries { acquired, failed }) in messages {
                    out.extend_from_slice(&position.0.to_le_bytes());
                    out.extend_from_slice(&acquired.to_le_bytes());
                    out.extend_from_slice(&failed.to_le_bytes());
                }
            }
            Change::QueuePurged { queue, below, except } => {
                put_numbers(out, kind::QUEUE_PURGED, &[queue.0, below.0]);
                put_positions(out, except);
            }
            Change::QueueClosed { queue, kept } => {
                put_numbers(out, kind::QUEUE_CLOSED, &[queue.0]);
                put_positions(out, kept);
            }
            Change::DeliveryGranted { queue, below } => {
                put_numbers(out, kind::DELIVERY_GRANTED, &[queue.0, below.0]);
            }
            Change::ExchangeDeclared { name, kind, auto_delete, internal, arguments } => {
                out.push(kind::EXCHANGE_DECLARED);
                out.push(u8::from(*auto_delete) | u8::from(*internal) << 1);
                put_short(out, name.as_short_str());
                put_short(out, kind.as_short_str());
                put_table(out, arguments);
            }
            Change::ExchangeDeleted { name } => {
                out.push(kind::EXCHANGE_DELETED);
                put_short(out, name.as_short_str());
            }
            Change::Bound(binding) => put_binding(out, kind::BOUND, binding),
            Change::Unbound(binding) => put_binding(out, kind::UNBOUND, binding),
            Change::PolicySet(PolicySource { kind, name, pattern, apply_to, priority, definition }) => {
                out.extend_from_slice(&[kind::POLICY_SET, policy_kind(*kind), scope(*apply_to)]);
                out.extend_from_slice(&priority.to_le_bytes());
                put_short(out, name.as_short_str());
                put_text(out, pattern);
                put_table(out, definition);
            }
            Change::PolicyCleared { kind, name } => {
                out.extend_from_slice(&[kind::POLICY_CLEARED, policy_kind(*kind)]);
                put_short(out, name.as_short_str());
            }
            Change::CheckpointBegun { last_queue } => put_numbers(out, kind::CHECKPOINT_BEGUN, &[last_queue.0]),
            Change::QueuePage { queue, entries } => {
                match entries.form() {
                    Form::Plain => put_numbers(out, kind::QUEUE_PAGE, &[queue.0]),
                    Form::Counted => put_numbers(out, kind::COUNTED_QUEUE_PAGE, &[queue.0]),
                    Form::Block(block) => {
                        put_numbers(out, kind::QUEUE_BLOCK, &[queue.0, block.first.0]);
                        block.slots.write(out);
                    }
                }
                out.extend_from_slice(entries.as_bytes());
            }
            Change::QueueRestated { queue, name, auto_delete, closed, arguments, next, granted, messages } => {
                put_numbers(out, kind::QUEUE_RESTATED, &[queue.0, next.0, granted.0, *messages]);
                out.push(u8::from(*auto_delete) | u8::from(*closed) << 1);
                put_short(out, name.as_short_str());
                put_table(out, arguments);
            }
            Change::LevelRestated { queue, next, granted } => {
                put_numbers(out, kind::LEVEL_RESTATED, &[queue.0, next.0, granted.0]);
            }
            Change::CheckpointEnded { begun } => put_numbers(out, kind::CHECKPOINT_ENDED, &[begun.0]),
        }
    }

    /// Takes it from the payload of a record.
    pub fn decode(bytes: &[u8]) -> Result<Self, DecodeChangeError> {
        let mut reader = Reader(bytes);
        let change = match reader.u8()? {
            kind::QUEUE_DECLARED => {
                let queue = reader.queue()?;
                let auto_delete = reader.flag()?;
                let name = QueueName::from(reader.short()?);
                Change::QueueDeclared { queue, name, auto_delete, arguments: reader.table()? }
            }
            kind::DELAY_QUEUE_DECLARED => {
                let queue = reader.queue()?;
                Change::DelayQueueDeclared { queue, exchange: ExchangeName::from(reader.short()?) }
            }
            kind::DELAY_QUEUE_RESTATED => {
                let (queue, messages) = (reader.queue()?, reader.u64()?);
                Change::DelayQueueRestated { queue, exchange: ExchangeName::from(reader.short()?), messages }
            }
            kind::QUEUE_DELETED => Change::QueueDeleted { queue: reader.queue()? },
            kind::MESSAGE_ENQUEUED => return reader.enqueued(),
            kind::MESSAGE_SETTLED => {
                Change::MessageSettled { queue: reader.queue()?, position: reader.position()? }
            }
            kind::MESSAGES_CONDEMNED => {
                let queue = reader.queue()?;
                let mut messages = SmallVec::new();
                for _ in 0..reader.u32()? {
                    messages.push((reader.position()?, reader.death()?));
                }
                Change::MessagesCondemned { queue, messages }
            }
            kind::MESSAGES_RETURNED => {
                let queue = reader.queue()?;
                let mut messages = SmallVec::new();
                for _ in 0..reader.u32()? {
                    let position = reader.position()?;
                    messages.push((position, Tries { acquired: reader.u32()?, failed: reader.u32()? }));
                }
                Change::MessagesReturned { queue, messages }
            }
            kind::QUEUE_PURGED => {
                let (queue, below, except) = (reader.queue()?, reader.position()?, reader.positions()?);
                Change::QueuePurged { queue, below, except }
            }
            kind::QUEUE_CLOSED => Change::QueueClosed { queue: reader.queue()?, kept: reader.positions()? },
            kind::DELIVERY_GRANTED => Change::DeliveryGranted { queue: reader.queue()?, below: reader.position()? },
            kind::EXCHANGE_DECLARED => {
                let [auto_delete, internal] = reader.flags()?;
                let (name, kind) = (ExchangeName::from(reader.short()?), reader.short()?);
                Change::ExchangeDeclared { name, kind, auto_delete, internal, arguments: reader.table()? }
            }
            kind::EXCHANGE_DELETED => Change::ExchangeDeleted { name: ExchangeName::from(reader.short()?) },
            kind::BOUND => Change::Bound(reader.binding()?),
            kind::UNBOUND => Change::Unbound(reader.binding()?),
            kind::POLICY_SET => Change::PolicySet(PolicySource {
                kind: reader.policy_kind()?,
                apply_to: reader.scope()?,
                priority: reader.u64()?.cast_signed(),
                name: PolicyName::from(reader.short()?),
                pattern: reader.text()?,
                definition: reader.table()?,
            }),
            kind::POLICY_CLEARED => {
                let kind = reader.policy_kind()?;
                Change::PolicyCleared { kind, name: PolicyName::from(reader.short()?) }
            }
            kind::CHECKPOINT_BEGUN => Change::CheckpointBegun { last_queue: reader.queue()? },
            kind @ (kind::QUEUE_PAGE | kind::COUNTED_QUEUE_PAGE) => {
                let queue = reader.queue()?;
                let form = if kind == kind::QUEUE_PAGE { Form::Plain } else { Form::Counted };
                let entries = PageEntries::from_bytes(std::mem::take(&mut reader.0), form);
                Change::QueuePage { queue, entries: entries.ok_or(CUT)? }
            }
            kind::QUEUE_BLOCK => {
                let (queue, first) = (reader.queue()?, reader.position()?);
                let slots = Slots::read(reader.array()?);
                let entries = PageEntries::from_block(first, slots, std::mem::take(&mut reader.0));
                Change::QueuePage { queue, entries: entries.ok_or(CUT)? }
            }
            kind::QUEUE_RESTATED => {
                let (queue, next, granted) = (reader.queue()?, reader.position()?, reader.position()?);
                let messages = reader.u64()?;
                let [auto_delete, closed] = reader.flags()?;
                let name = QueueName::from(reader.short()?);
                let arguments = reader.table()?;
                Change::QueueRestated { queue, name, auto_delete, closed, arguments, next, granted, messages }
            }
            kind::LEVEL_RESTATED => {
                let (queue, next, granted) = (reader.queue()?, reader.position()?, reader.position()?);
                Change::LevelRestated { queue, next, granted }
            }
            kind::CHECKPOINT_ENDED => Change::CheckpointEnded { begun: JournalPosition(reader.u64()?) },
            _ => return Err(DecodeChangeError("its kind is unknown")),
        };
        reader.end().map(|()| change)
    }
}

fn put_positions(out: &mut Vec<u8>, positions: &[QueuePosition]) {
    put_count(out, positions.len());
    for position in positions {
        out.extend_from_slice(&position.0.to_le_bytes());
    }
}

fn death(reason: DeathReason) -> u8 {
    match reason {
        DeathReason::Rejected => 1,
        DeathReason::Expired => 2,
        DeathReason::MaxLen => 3,
        DeathReason::DeliveryLimit => 4,
    }
}

fn policy_kind(kind: PolicyKind) -> u8 {
    match kind {
        PolicyKind::Policy => 0,
        PolicyKind::OperatorPolicy => 1,
    }
}

fn scope(apply_to: ApplyTo) -> u8 {
    match apply_to {
        ApplyTo::All => 1,
        ApplyTo::Exchanges => 2,
        ApplyTo::Queues => 3,
        ApplyTo::ClassicQueues => 4,
        ApplyTo::QuorumQueues => 5,
        ApplyTo::Streams => 6,
    }
}

fn put_numbers(out: &mut Vec<u8>, kind: u8, numbers: &[u64]) {
    out.push(kind);
    for number in numbers {
        out.extend_from_slice(&number.to_le_bytes());
    }
}

pub(super) fn put_count(out: &mut Vec<u8>, count: usize) {
    let count = u32::try_from(count).expect("nothing has 2^32 queues, unacked messages, texts or bytes of a text");
    out.extend_from_slice(&count.to_le_bytes());
}

pub(super) fn put_bytes(out: &mut Vec<u8>, bytes: &[u8]) {
    put_count(out, bytes.len());
    out.extend_from_slice(bytes);
}

pub(super) fn put_text(out: &mut Vec<u8>, text: &str) {
    put_bytes(out, text.as_bytes());
}

pub(super) fn put_short(out: &mut Vec<u8>, text: ShortStr<'_>) {
    out.push(text.length_octet());
    out.extend_from_slice(text.as_str().as_bytes());
}

fn put_table(out: &mut Vec<u8>, table: &FieldTable) {
    put_bytes(out, table.as_table().as_bytes());
}

fn put_binding(out: &mut Vec<u8>, kind: u8, binding: &Binding) {
    out.push(kind);
    let (to_exchange, destination) = match &binding.destination {
        Destination::Queue(name) => (false, name.as_short_str()),
        Destination::Exchange(name) => (true, name.as_short_str()),
    };
    out.push(u8::from(to_exchange));
    put_short(out, binding.source.as_short_str());
    put_short(out, destination);
    put_short(out, binding.routing_key.as_short_str());
    put_table(out, &binding.arguments);
}

pub(super) const CUT: DecodeChangeError = DecodeChangeError("it ends too early");

pub(super) struct Reader<'a>(pub(super) &'a [u8]);

impl<'a> Reader<'a> {
    pub(super) fn take(&mut self, count: usize) -> Result<&'a [u8], DecodeChangeError> {
        let (taken, rest) = self.0.split_at_checked(count).ok_or(CUT)?;
        self.0 = rest;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], DecodeChangeError> {
        let (taken, rest) = self.0.split_first_chunk().ok_or(CUT)?;
        self.0 = rest;
        Ok(*taken)
    }

    pub(super) fn u8(&mut self) -> Result<u8, DecodeChangeError> {
        self.array().map(|[octet]| octet)
    }

    pub(super) fn u16(&mut self) -> Result<u16, DecodeChangeError> {
        self.array().map(u16::from_le_bytes)
    }

    pub(super) fn u32(&mut self) -> Result<u32, DecodeChangeError> {
        self.array().map(u32::from_le_bytes)
    }

    pub(super) fn u64(&mut self) -> Result<u64, DecodeChangeError> {
        self.array().map(u64::from_le_bytes)
    }

    fn queue(&mut self) -> Result<QueueNumber, DecodeChangeError> {
        let number = self.u64()?;
        if number < NUMBERS_END {
            Ok(QueueNumber(number))
        } else {
            Err(DecodeChangeError("its queue has no such number"))
        }
    }

    fn position(&mut self) -> Result<QueuePosition, DecodeChangeError> {
        self.u64().map(QueuePosition)
    }

    fn death(&mut self) -> Result<DeathReason, DecodeChangeError> {
        match self.u8()? {
            1 => Ok(DeathReason::Rejected),
            2 => Ok(DeathReason::Expired),
            3 => Ok(DeathReason::MaxLen),
            4 => Ok(DeathReason::DeliveryLimit),
            _ => Err(DecodeChangeError("it names no reason for a death")),
        }
    }

    fn policy_kind(&mut self) -> Result<PolicyKind, DecodeChangeError> {
        self.flag().map(|is_operator| if is_operator { PolicyKind::OperatorPolicy } else { PolicyKind::Policy })
    }

    fn scope(&mut self) -> Result<ApplyTo, DecodeChangeError> {
        match self.u8()? {
            1 => Ok(ApplyTo::All),
            2 => Ok(ApplyTo::Exchanges),
            3 => Ok(ApplyTo::Queues),
            4 => Ok(ApplyTo::ClassicQueues),
            5 => Ok(ApplyTo::QuorumQueues),
            6 => Ok(ApplyTo::Streams),
            _ => Err(DecodeChangeError("it does not say what a policy is for")),
        }
    }

    pub(super) fn byte_string(&mut self) -> Result<&'a [u8], DecodeChangeError> {
        let length = usize::try_from(self.u32()?).map_err(|_| CUT)?;
        self.take(length)
    }

    pub(super) fn text(&mut self) -> Result<String, DecodeChangeError> {
        let text = std::str::from_utf8(self.byte_string()?);
        text.map(str::to_owned).map_err(|_| DecodeChangeError("a text in it is not UTF-8"))
    }

    fn positions(&mut self) -> Result<Vec<QueuePosition>, DecodeChangeError> {
        let mut positions = Vec::new();
        for _ in 0..self.u32()? {
            positions.push(self.position()?);
        }
        Ok(positions)
    }

    pub(super) fn flag(&mut self) -> Result<bool, DecodeChangeError> {
        match self.u8()? {
            0 => Ok(false),
            1 => Ok(true),
            _ => Err(DecodeChangeError("it has unknown flags")),
        }
    }

    fn flags(&mut self) -> Result<[bool; 2], DecodeChangeError> {
        match self.u8()? {
            flags @ 0..=3 => Ok([flags & 1 != 0, flags & 2 != 0]),
            _ => Err(DecodeChangeError("it has unknown flags")),
        }
    }

    pub(super) fn short(&mut self) -> Result<ShortString, DecodeChangeError> {
        let length = self.u8()?;
        let text = std::str::from_utf8(self.take(usize::from(length))?);
        let text = text.map_err(|_| DecodeChangeError("a name in it is not UTF-8"))?;
        ShortString::new(text).map_err(|_| CUT)
    }

    fn table(&mut self) -> Result<FieldTable, DecodeChangeError> {
        let length = usize::try_from(self.u32()?).map_err(|_| CUT)?;
        let table = Table::check(self.take(length)?);
        table.map(FieldTable::from).map_err(|_| DecodeChangeError("a table in it is malformed"))
    }

    fn binding(&mut self) -> Result<Binding, DecodeChangeError> {
        let to_exchange = self.flag()?;
        let source = ExchangeName::from(self.short()?);
        let destination = self.short()?;
        let destination = if to_exchange {
            Destination::Exchange(ExchangeName::from(destination))
        } else {
            Destination::Queue(QueueName::from(destination))
        };
        let routing_key = self.short()?;
        Ok(Binding { source, destination, routing_key, arguments: self.table()? })
    }

    /// The rest of a record that says that a message was enqueued.
    fn enqueued(mut self) -> Result<Change, DecodeChangeError> {
        let facts = self.u8()?;
        let delivery_mode = if facts & 1 != 0 { DeliveryMode::Persistent } else { DeliveryMode::Transient };
        let history = match (facts & 2 != 0, facts >> 2) {
            (true, spread) => History::Deaths { spread },
            (false, 0) => History::None,
            (false, _) => return Err(DecodeChangeError("it has unknown flags")),
        };
        let (header_at, body_at) = (self.u16()?, self.u32()?);
        let mut queues = SmallVec::new();
        for _ in 0..self.u32()? {
            let (queue, position) = (self.queue()?, self.position()?);
            let expires = self.flag()?;
            let expires =
                if expires { Some(Expiry { wall_ms: self.u64()?, time_to_live_ms: self.u64()? }) } else { None };
            queues.push(Enqueued { queue, position, expires });
        }
        let message = Message::from_parts(self.0, header_at, body_at, delivery_mode, history);
        let message = message.ok_or(DecodeChangeError("the message in it is malformed"))?;
        Ok(Change::MessageEnqueued { message, queues })
    }

    pub(super) fn end(&self) -> Result<(), DecodeChangeError> {
        if self.0.is_empty() { Ok(()) } else { Err(DecodeChangeError("something follows it")) }
    }
}

#[cfg(test)]
mod tests {
    use leveret_amqp::Value;
    use smallvec::smallvec;

    use super::*;
    use crate::change::PageEntry;
    use crate::number::write_number;
    use crate::slots::SLOTS_BYTES;

    pub(super) fn short(text: &str) -> ShortString {
        ShortString::new(text).unwrap()
    }

    #[test]
    fn a_number_that_nothing_gets_to_is_refused() {
        let entry = |message| PageEntry {
            position: QueuePosition(1),
            message: JournalPosition(message),
            bytes: 5,
            body_bytes: 0,
            expires: None,
        };
        let page = |message| Change::QueuePage {
            queue: QueueNumber(1),
            entries: PageEntries::pack(&[entry(7), entry(message)]),
        };
        let deleted = |queue| Change::QueueDeleted { queue: QueueNumber(queue) };
        for (change, is_taken) in [
            (page((1 << 62) - 1), true),
            (page(1 << 62), false),
            (page(u64::MAX), false),
            (deleted((1 << 62) - 1), true),
            (deleted(1 << 62), false),
        ] {
            let mut bytes = Vec::new();
            change.encode(&mut bytes);
            assert_eq!(Change::decode(&bytes).is_ok(), is_taken, "{change:?}");
        }
    }

    #[test]
    fn a_block_whose_entries_are_not_those_of_its_slots_is_refused() {
        let block = |slots: u8, entries: &[&[u64]]| {
            let mut bytes = Vec::new();
            put_numbers(&mut bytes, kind::QUEUE_BLOCK, &[1, 77]);
            bytes.extend_from_slice(&[slots; 1]);
            bytes.extend_from_slice(&[0; SLOTS_BYTES - 1]);
            entries.iter().copied().flatten().for_each(|&number| write_number(&mut bytes, number));
            Change::decode(&bytes)
        };
        let (first, second): (&[u64], &[u64]) = (&[4 * 10, 3, 7], &[4 * 10, 10, 1]);
        let Ok(Change::QueuePage { entries, .. }) = block(0b101, &[first, second]) else { panic!("a block") };
        let told: Vec<_> =
            entries.iter().map(|entry| (entry.position.0, entry.message.0, entry.body_bytes)).collect();
        assert_eq!(told, [(77, 7, 7), (79, 8, 0)]);
        assert_eq!(entries.messages(), Some(JournalPosition(7)..=JournalPosition(8)));
        for (slots, entries) in [
            (0, &[][..]),
            (0b111, &[first, second]),
            (0b1, &[first, second]),
            // One expires, or is not journaled; one has more in its body than it has; one has no such number.
            (0b1, &[&[4 * 10 + 1, 3, 7]]),
            (0b1, &[&[4 * 10 + 2, 3, 7]]),
            (0b1, &[&[4 * 10, 11, 7]]),
            (0b1, &[&[4 << 32, 3, 7]]),
            (0b1, &[&[4 * 10, 3, NUMBERS_END]]),
        ] {
            assert!(block(slots, entries).is_err(), "{slots} {entries:?}");
        }
    }

    /// One of each, with every optional part there and not there.
    fn examples() -> Vec<Change> {
        let arguments = FieldTable::build(|table| {
            table.field("x-message-ttl", Value::I32(5));
        });
        let (queue, position) = (QueueNumber(7), QueuePosition(1 << 40));
        let mut block = vec![1, b'x', 3, b'k', b'e', b'y'];
        block.extend_from_slice(&[0, 60, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2, 0, 0, b'h', b'i']);
        let message = Message::from_parts(&block, 6, 20, DeliveryMode::Persistent, History::None).unwrap();
        let mut block = vec![1, b'x', 3, b'k', b'e', b'y', 2, b'c', b'c'];
        block.extend_from_slice(&[0, 60, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2, 0, 0, b'h', b'i']);
        let dead_letter =
            Message::from_parts(&block, 9, 23, DeliveryMode::Transient, History::Deaths { spread: 5 }).unwrap();
        assert_eq!(dead_letter.hidden_keys().collect::<Vec<_>>(), ["cc"]);
        let expires = Some(Expiry { wall_ms: 1_790_000_000_000, time_to_live_ms: 60_000 });
        let queues = [Enqueued { queue, position, expires }, Enqueued { queue, position, expires: None }];
        let binding = |destination| Binding {
            source: ExchangeName::from(short("logs")),
            destination,
            routing_key: short("#.error"),
            arguments: arguments.clone(),
        };
        let entry = |place, message, expires| PageEntry {
            position: QueuePosition(place),
            message: JournalPosition(message),
            bytes: 1024,
            body_bytes: 0,
            expires,
        };
        let body_bytes = [PageEntry { body_bytes: 1000, ..entry(5, 7, expires) }, entry(6, 8, None)];
        let entries = [entry(5, 1 << 40, expires), entry(300, (1 << 40) + 1, None)];
        let block = [entry(5, (1 << 40) + 1, None), PageEntry { body_bytes: 1000, ..entry(255, 1 << 40, None) }];
        let block = PageEntries::of_page(&(QueuePosition(0)..QueuePosition(256)), &block);
        assert!(block.as_block().is_some());
        let name = QueueName::from(short("q"));
        let exchange = ExchangeName::from(short("logs"));
        vec![
            Change::QueueDeclared { queue, name: name.clone(), auto_delete: true, arguments: arguments.clone() },
            Change::QueueDeleted { queue },
            Change::DelayQueueDeclared { queue, exchange: exchange.clone() },
            Change::DelayQueueRestated { queue, exchange: exchange.clone(), messages: 3 },
            Change::MessageEnqueued { message, queues: queues.into_iter().collect() },
            Change::MessageEnqueued { message: dead_letter, queues: SmallVec::new() },
            Change::MessagesCondemned {
                queue,
                messages: smallvec![(position, DeathReason::Rejected), (QueuePosition(1), DeathReason::Expired)],
            },
            Change::MessagesReturned {
                queue,
                messages: smallvec![
                    (position, Tries { acquired: 70_000, failed: 1 }),
                    (QueuePosition(1), Tries::default())
                ],
            },
            Change::MessageSettled { queue, position },
            Change::QueuePurged { queue, below: position, except: vec![QueuePosition(1), QueuePosition(2)] },
            Change::QueueClosed { queue, kept: vec![QueuePosition(1), position] },
            Change::DeliveryGranted { queue, below: position },
            Change::ExchangeDeclared {
                name: exchange.clone(),
                kind: short("topic"),
                auto_delete: false,
                internal: true,
                arguments: FieldTable::default(),
            },
            Change::ExchangeDeleted { name: exchange.clone() },
            Change::Bound(binding(Destination::Queue(name.clone()))),
            Change::Unbound(binding(Destination::Exchange(exchange))),
            Change::PolicySet(PolicySource {
                kind: PolicyKind::Policy,
                name: short("p").into(),
                pattern: "^주문".into(),
                apply_to: ApplyTo::QuorumQueues,
                priority: -5,
                definition: arguments.clone(),
            }),
            Change::PolicyCleared { kind: PolicyKind::OperatorPolicy, name: short("p").into() },
            Change::CheckpointBegun { last_queue: queue },
            Change::QueuePage { queue, entries: PageEntries::pack(&entries) },
            Change::QueuePage { queue, entries: PageEntries::pack(&body_bytes) },
            Change::QueuePage { queue, entries: block },
            Change::QueueRestated {
                queue,
                name,
                auto_delete: true,
                closed: true,
                arguments,
                next: position,
                granted: QueuePosition(3),
                messages: 2,
            },
            Change::LevelRestated { queue, next: QueuePosition(u64::MAX), granted: position },
            Change::CheckpointEnded { begun: JournalPosition(1 << 33) },
        ]
    }

    fn encoded(change: &Change) -> Vec<u8> {
        let mut bytes = Vec::new();
        change.encode(&mut bytes);
        bytes
    }

    #[test]
    fn every_change_comes_back_as_it_was() {
        for change in examples() {
            assert_eq!(Change::decode(&encoded(&change)), Ok(change));
        }
    }

    #[test]
    fn a_change_that_is_cut_or_altered_is_refused_or_another_one() {
        for change in examples() {
            let bytes = encoded(&change);
            let may_be_shorter = matches!(change, Change::MessageEnqueued { .. } | Change::QueuePage { .. });
            for length in 0..bytes.len() {
                // What is left of a message or page may be a shorter one; the journal's checksum is against that.
                let decoded = Change::decode(&bytes[..length]);
                assert!(
                    decoded.is_err() || (may_be_shorter && decoded != Ok(change.clone())),
                    "{change:?} cut to {length}"
                );
            }
            for at in 0..bytes.len() {
                for bit in 0..8 {
                    let mut altered = bytes.clone();
                    altered[at] ^= 1 << bit;
                    assert_ne!(Change::decode(&altered), Ok(change.clone()), "{change:?} altered at {at}");
                }
            }
        }
    }
}
