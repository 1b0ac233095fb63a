//! Exchanges: `exchange.declare`, `exchange.delete`.

use leveret_amqp::{ShortString, Table, Value};

use crate::access::{Permission, Resource};
use crate::change::Change;
use crate::moment::Moment;
use crate::names::{ChannelId, ExchangeName};
use crate::vhost::command::{DeclareExchange, DeleteExchange, Existence, Wait};
use crate::vhost::delay::{DELAYED, DELAYED_TYPE};
use crate::vhost::effects::{Answer, Effects};
use crate::vhost::exchange::{
    DeclaredExchange, Exchange, ExchangeId, ExchangeKind, InvalidArgument, Target, Timing,
};
use crate::vhost::refusal::Refusal;
use crate::vhost::topology::{RESERVED_PREFIX, described, equivalent};
use crate::vhost::{ConnectionId, VirtualHost};

impl VirtualHost {
    /// `exchange.declare`
    pub(in crate::vhost) fn declare_exchange(
        &mut self,
        now: Moment,
        from: ConnectionId,
        channel: ChannelId,
        declare: &DeclareExchange,
        effects: &mut Effects,
    ) -> Result<(), Refusal> {
        match declare.existence {
            Existence::Passive if declare.name.is_empty() => return Err(Refusal::DefaultExchange),
            Existence::Passive => {
                self.exchanges.find_or_refuse(declare.name.as_str(), self.name.as_str())?;
            }
            Existence::Declare => self.declare_exchange_actively(now, from, &declare.name, declare, effects)?,
        }
        if declare.wait == Wait::Answer {
            self.answer(from, channel, Answer::ExchangeDeclareOk, effects);
        }
        Ok(())
    }

    fn declare_exchange_actively(
        &mut self,
        now: Moment,
        from: ConnectionId,
        name: &ShortString,
        declare: &DeclareExchange,
        effects: &mut Effects,
    ) -> Result<(), Refusal> {
        if name.is_empty() {
            return Err(Refusal::DefaultExchange);
        }
        self.authorize(from, Permission::Configure, Resource::Exchange(name.as_str()))?;
        let known = ExchangeKind::parse(declare.kind.as_str());
        let timing = if declare.kind.as_str() == DELAYED { Timing::Delayed } else { Timing::AtOnce };
        if timing == Timing::AtOnce && known.is_none() {
            return Err(Refusal::UnknownExchangeType { kind: declare.kind.to_string() });
        }
        match self.exchanges.find(name.as_str()) {
            Some(id) => self.check_exchange_equivalent(id, declare)?,
            None => self.insert_exchange(from, name, (known, timing), declare, effects)?,
        }
        if timing == Timing::Delayed {
            self.declare_delay_queue(now, ExchangeName::from(name.clone()), declare.durable, effects);
        }
        Ok(())
    }

    /// Adds an exchange, of this type if that does not depend on its arguments.
    fn insert_exchange(
        &mut self,
        from: ConnectionId,
        name: &ShortString,
        (kind, timing): (Option<ExchangeKind>, Timing),
        declare: &DeclareExchange,
        effects: &mut Effects,
    ) -> Result<(), Refusal> {
        if name.as_str().starts_with(RESERVED_PREFIX) && !self.is_administrator(from) {
            return Err(Refusal::ReservedExchangeName { exchange: name.to_string() });
        }
        let kind = kind.map_or_else(|| delayed_kind(declare.arguments.as_table()), Ok)?;
        kind.check_arguments(declare.arguments.as_table()).map_err(|invalid| match invalid {
            InvalidArgument::Value(fault) => Refusal::InvalidExchange { fault },
            InvalidArgument::Type { argument, type_name } => {
                let (exchange, vhost) = (name.to_string(), self.name.to_string());
                Refusal::InvalidExchangeArgument { argument, exchange, vhost, type_name }
            }
        })?;
        let alternate = self.alternate_exchange(from, name, declare.arguments.as_table())?;
        let declared = DeclaredExchange {
            name: ExchangeName::from(name.clone()),
            kind,
            timing,
            durable: declare.durable,
            auto_delete: declare.auto_delete,
            internal: declare.internal,
            alternate,
            arguments: declare.arguments.clone(),
        };
        self.ledger.check_declared(declared.bytes_in_all())?;
        if declared.durable {
            self.change_topology(declared.to_change(), effects);
        }
        let id = self.apply_exchange_declared(declared);
        self.match_exchange(id);
        Ok(())
    }

    /// Argument `alternate-exchange`. RabbitMQ: declaring it needs read on the exchange and write on the alternate.
    fn alternate_exchange(
        &mut self,
        from: ConnectionId,
        name: &ShortString,
        arguments: Table<'_>,
    ) -> Result<Option<ExchangeName>, Refusal> {
        let alternate = alternate_of(arguments).map_err(|value| {
            let (exchange, vhost) = (name.to_string(), self.name.to_string());
            Refusal::InvalidExchangeArgument { argument: ALTERNATE, exchange, vhost, type_name: value.type_name() }
        })?;
        let Some(alternate) = alternate else { return Ok(None) };
        self.authorize(from, Permission::Read, Resource::Exchange(name.as_str()))?;
        self.authorize(from, Permission::Write, Resource::Exchange(alternate.as_str()))?;
        Ok(Some(ExchangeName::from(alternate)))
    }

    /// RabbitMQ: `rabbit_exchange:assert_equivalence`.
    fn check_exchange_equivalent(&self, id: ExchangeId, declare: &DeclareExchange) -> Result<(), Refusal> {
        let Some(exchange) = self.exchanges.get(id) else { return Ok(()) };
        let declared = &exchange.declared;
        let (received, current) = (declare.arguments.as_table().get(ALTERNATE), declared.arguments.as_table());
        let current = current.get(ALTERNATE);
        let flags = |flag: bool| format!("'{flag}'");
        let compared = [
            ("type", format!("'{}'", declare.kind), format!("'{}'", declared.type_name())),
            ("durable", flags(declare.durable), flags(declared.durable)),
            ("auto_delete", flags(declare.auto_delete), flags(declared.auto_delete)),
            ("internal", flags(declare.internal), flags(declared.internal)),
        ];
        let differing = compared.into_iter().find(|(_, received, current)| received != current);
        let differing = differing.or_else(|| {
            let differs = !equivalent(received, current);
            differs.then(|| {
                let (received, current) = described(received, current);
                (ALTERNATE, received, current)
            })
        });
        differing.map_or(Ok(()), |(argument, received, current)| {
            let (exchange, vhost) = (declared.name.to_string(), self.name.to_string());
            let argument = argument.to_owned();
            Err(Refusal::InequivalentExchange { argument, exchange, vhost, received, current })
        })
    }

    /// `exchange.delete`
    pub(in crate::vhost) fn delete_exchange(
        &mut self,
        from: ConnectionId,
        channel: ChannelId,
        delete: &DeleteExchange,
        effects: &mut Effects,
    ) -> Result<(), Refusal> {
        let name = &delete.name;
        if name.is_empty() {
            return Err(Refusal::DefaultExchange);
        }
        if name.as_str().starts_with(RESERVED_PREFIX) {
            let (exchange, vhost) = (name.to_string(), self.name.to_string());
            return Err(Refusal::SystemExchange { exchange, vhost });
        }
        self.authorize(from, Permission::Configure, Resource::Exchange(name.as_str()))?;
        if let Some(id) = self.exchanges.find(name.as_str()) {
            if delete.if_unused && self.exchanges.get(id).is_some_and(Exchange::is_used) {
                return Err(Refusal::ExchangeInUse { exchange: name.to_string(), vhost: self.name.to_string() });
            }
            self.remove_exchange(id, effects);
        }
        if delete.wait == Wait::Answer {
            self.answer(from, channel, Answer::ExchangeDeleteOk, effects);
        }
        Ok(())
    }

    /// Takes an exchange away with the bindings at both of its ends.
    pub(in crate::vhost) fn remove_exchange(&mut self, id: ExchangeId, effects: &mut Effects) {
        let Some(exchange) = self.apply_exchange_deleted(id) else { return };
        if exchange.declared.durable {
            self.change_topology(Change::ExchangeDeleted { name: exchange.declared.name.clone() }, effects);
        }
        self.delete_delay_queue(&exchange.declared.name, effects);
        for source in exchange.bound_to {
            self.delete_if_unused(source);
        }
    }

    pub(in crate::vhost) fn apply_exchange_declared(&mut self, declared: DeclaredExchange) -> ExchangeId {
        self.bindings_version += 1;
        self.exchanges.insert(declared)
    }

    pub(in crate::vhost) fn apply_exchange_deleted(&mut self, id: ExchangeId) -> Option<Exchange> {
        let exchange = self.exchanges.remove(id)?;
        self.bindings_version += 1;
        for binding in exchange.bindings() {
            if let Some(bound_to) = self.bound_to(binding.target) {
                bound_to.remove(&id);
            }
        }
        for &source in &exchange.bound_to {
            self.unbind_target(source, Target::Exchange(id));
        }
        Some(exchange)
    }
}

/// How exchanges of a type route that delay messages before. The words for faults are those of the plugin.
fn delayed_kind(arguments: Table<'_>) -> Result<ExchangeKind, Refusal> {
    let Some(Value::LongStr(kind)) = arguments.get(DELAYED_TYPE) else { return Err(Refusal::NoDelayedType) };
    let kind = String::from_utf8_lossy(kind);
    if kind == DELAYED {
        return Err(Refusal::DelayedTwice);
    }
    ExchangeKind::parse(&kind).ok_or_else(|| Refusal::UnknownExchangeType { kind: kind.into_owned() })
}

/// How exchanges of a type route, and when; none if there is no such type.
pub(in crate::vhost) fn kind_of(kind: &ShortString, arguments: Table<'_>) -> Option<(ExchangeKind, Timing)> {
    if kind.as_str() == DELAYED {
        return Some((delayed_kind(arguments).ok()?, Timing::Delayed));
    }
    Some((ExchangeKind::parse(kind.as_str())?, Timing::AtOnce))
}

/// The exchange that argument `alternate-exchange` names, or the value that is no name.
pub(in crate::vhost) fn alternate_of(arguments: Table<'_>) -> Result<Option<ShortString>, Value<'_>> {
    let Some(value) = arguments.get(ALTERNATE) else { return Ok(None) };
    value.as_str().and_then(|text| ShortString::new(text).ok()).map(Some).ok_or(value)
}

/// Argument of `exchange.declare`: where messages go that match no binding.
const ALTERNATE: &str = "alternate-exchange";
