//! What clients do: each step is said by a client, and told to the model.
//!
//! Must not know: how what is said gets to the broker.

use std::rc::Rc;
use std::time::Duration;

use leveret_amqp::{BasicProperties, FieldTable, Method, ShortStr, Value};

use super::{Unfinished, World};
use crate::arguments::{arguments, count_arguments};
use crate::link::{self, Standing};
use crate::model::{Message, Told, Violation, binding_headers, binding_key, body, headers};
use crate::plan::{
    DEAD_QUEUES, ExchangeName, KEYS, Mode, ORDINARY_QUEUES, Op, PATTERNS, QUEUES, QueueSpec, Settling, To,
};
use crate::stats::Kind;

/// More consumers than these a client does not start.
const CONSUMERS_MOST: usize = 5;

impl World {
    pub(super) fn act(&mut self, op: &Op) -> Result<bool, Violation> {
        match *op {
            Op::Publish { client, mode, .. }
            | Op::Get { client, mode, .. }
            | Op::Consume { client, mode, .. }
            | Op::SettleUnknown { client, mode }
            | Op::Recover { client, mode }
            | Op::CloseChannel { client, mode } => {
                let client = client % self.config.clients;
                if !self.has_channel(client, mode)? {
                    return Ok(false);
                }
                self.act_on_channel(client, mode, op)
            }
            Op::Settle { client, mode, .. } => {
                // On that channel, or on another one that has something to settle.
                let client = client % self.config.clients;
                let Some(link) = &mut self.clients[usize::from(client)].link else { return Ok(false) };
                let others = Mode::ALL.into_iter().filter(|other| *other != mode);
                let mut all = [mode].into_iter().chain(others);
                let Some(mode) = all.find(|mode| !link.channel(*mode).unacked.is_empty()) else { return Ok(false) };
                if !self.has_channel(client, mode)? {
                    return Ok(false);
                }
                self.act_on_channel(client, mode, op)
            }
            Op::EndTransaction { client, commit } => {
                let client = client % self.config.clients;
                if !self.has_channel(client, Mode::Transaction)? {
                    return Ok(false);
                }
                let now_ms = self.now_ms();
                let hub = self.clients[usize::from(client)].hub;
                self.hubs[hub].model.begin_event();
                self.hubs[hub].model.end_transaction(now_ms, client, commit);
                let link = self.clients[usize::from(client)].link.as_mut();
                if let Some(channel) = link.map(|link| link.channel(Mode::Transaction)) {
                    let settled = std::mem::take(&mut channel.in_transaction);
                    if !commit {
                        channel.unacked.extend(settled);
                        channel.unacked.sort_unstable();
                    }
                }
                let method = if commit { Method::TxCommit {} } else { Method::TxRollback {} };
                self.tell(client, &link::method(Mode::Transaction, &method))
            }
            Op::Cancel { client, nth } => {
                let client = client % self.config.clients;
                let now_ms = self.now_ms();
                let hub = self.clients[usize::from(client)].hub;
                let Some((mode, tag)) = self.hubs[hub].model.nth_consumer(client, nth) else { return Ok(false) };
                if !self.has_channel(client, mode)? {
                    return Ok(false);
                }
                self.hubs[hub].model.begin_event();
                self.hubs[hub].model.cancel(now_ms, client, mode, tag);
                let tag = format!("c{tag}");
                let consumer_tag = ShortStr::truncated(&tag);
                self.tell(client, &link::method(mode, &Method::BasicCancel { consumer_tag, nowait: false }))
            }
            Op::DeclareQueue { client, queue }
            | Op::CountQueue { client, queue }
            | Op::DeleteQueue { client, queue, .. }
            | Op::PurgeQueue { client, queue } => {
                let (client, queue) = (client % self.config.clients, queue % QUEUES);
                if !self.has_channel(client, Mode::Plain)? {
                    return Ok(false);
                }
                self.act_on_queue(client, queue, op)
            }
            Op::DeclareExchange { client, exchange }
            | Op::DeleteExchange { client, exchange }
            | Op::BindQueue { client, exchange, .. }
            | Op::UnbindQueue { client, exchange, .. } => {
                let client = client % self.config.clients;
                if !self.has_channel(client, Mode::Plain)? {
                    return Ok(false);
                }
                self.act_on_exchange(client, exchange, op)
            }
            Op::Disconnect { client, politely } => self.disconnect(client % self.config.clients, politely),
            Op::Wait { ms } => {
                self.wait(Duration::from_millis(ms.into()))?;
                Ok(true)
            }
            Op::Jump { ms } => {
                self.jump(Duration::from_millis(ms.into()))?;
                Ok(true)
            }
            Op::SetClock { seconds } => Ok(self.set_clock(seconds)),
            Op::WriteJournal
            | Op::MarkJournal
            | Op::KeepSpares
            | Op::Checkpoint { .. }
            | Op::Restart
            | Op::Crash { .. }
            | Op::FailSync { .. }
            | Op::FillDisk { .. }
            | Op::EmptyDisk => self.act_on_store(op),
        }
    }

    fn act_on_channel(&mut self, client: u8, mode: Mode, op: &Op) -> Result<bool, Violation> {
        let (now_ms, hub) = (self.now_ms(), self.clients[usize::from(client)].hub);
        let config = Rc::clone(&self.config);
        let model = &mut self.hubs[hub].model;
        let Some(channel) = self.clients[usize::from(client)].link.as_mut().map(|link| link.channel(mode)) else {
            return Ok(false);
        };
        model.begin_event();
        match *op {
            Op::Publish {
                to, key, persistent, priority, expiration_ms, delay_ms, bytes, mandatory, more, ..
            } => {
                let delay_ms = delay_ms.filter(|_| to == To::Exchange(ExchangeName::Delayed));
                let bytes = usize::from(bytes).max(8);
                let queue_name;
                let routing_key = KEYS[usize::from(key) % KEYS.len()];
                let address = match to {
                    To::Queue(slot) => {
                        queue_name = format!("q{slot}");
                        ("", queue_name.as_str())
                    }
                    To::Exchange(exchange) => (exchange.name(), routing_key),
                    To::Nowhere => ("nowhere", ""),
                };
                let table = FieldTable::build(|table| {
                    if to == To::Exchange(ExchangeName::Headers) {
                        let [k, l] = headers(key);
                        table.field("k", Value::I32(k)).field("l", Value::I32(l));
                    }
                    if let Some(delay) = delay_ms {
                        table.field("x-delay", Value::I64(delay.into()));
                    }
                });
                let expiration = expiration_ms.map(|ms| ms.to_string());
                let properties = BasicProperties {
                    headers: Some(table.as_table()).filter(|table| !table.is_empty()),
                    delivery_mode: Some(if persistent { 2 } else { 1 }),
                    priority,
                    expiration: expiration.as_ref().map(String::as_bytes),
                    ..BasicProperties::default()
                };
                let spec = match to {
                    To::Queue(slot) => config.queues.get(usize::from(slot)),
                    To::Exchange(_) | To::Nowhere => None,
                };
                let more = if spec.is_some_and(|spec| spec.takes_all_at_once(persistent)) { more } else { 0 };
                if more > 0 {
                    self.stats.count(Kind::Operation, "publishes that arrive together");
                }
                if more == 0 && self.stops_within() {
                    self.next_message += 1;
                    let id = self.next_message;
                    let message = Message { id, bytes, persistent, priority, expiration_ms, delay_ms, key };
                    let rest = link::publish(mode, address, mandatory, properties, &body(id, bytes));
                    self.begin_to_say(client, Unfinished { mode, message, to, mandatory, rest });
                    return Ok(true);
                }
                let mut said = Vec::new();
                for _ in 0..=more {
                    self.next_message += 1;
                    let id = self.next_message;
                    let message = Message { id, bytes, persistent, priority, expiration_ms, delay_ms, key };
                    let hub = &mut self.hubs[hub];
                    hub.history.publish(id, to);
                    hub.model.publish(now_ms, (client, mode), message, to, mandatory);
                    said.extend(link::publish(mode, address, mandatory, properties, &body(id, bytes)));
                }
                self.tell(client, &said)
            }
            Op::Get { queue, no_ack, .. } => {
                let (slot, spec) = (queue % QUEUES, &config.queues[usize::from(queue % QUEUES)]);
                if !model.may_use(client, slot) || (spec.quorum && spec.single_active) {
                    return Ok(false);
                }
                model.get(now_ms, client, mode, slot, no_ack);
                let name = format!("q{slot}");
                let queue = ShortStr::truncated(&name);
                self.stats.count(Kind::Outcome, "got");
                self.tell(client, &link::method(mode, &Method::BasicGet { ticket: 0, queue, no_ack }))
            }
            Op::Consume { queue, no_ack, prefetch, .. } => {
                let slot = queue % QUEUES;
                let is_open = config.evict_percent > 0 && model.may_drop(slot);
                if is_open || !model.may_use(client, slot) || model.consumers_of(client) >= CONSUMERS_MOST {
                    return Ok(false);
                }
                let tag = format!("c{}", model.consume(client, mode, slot, no_ack, prefetch));
                self.stats.count(
                    Kind::Operation,
                    match prefetch {
                        0 => "prefetch 0",
                        1 => "prefetch 1",
                        _ => "prefetch of several",
                    },
                );
                if config.unacked_most.is_some() && !no_ack {
                    self.stats.count(Kind::Operation, "few may be unacked");
                }
                let (name, text) = (format!("q{slot}"), ShortStr::truncated);
                let (queue, consumer_tag, ticket, arguments) = (text(&name), text(&tag), 0, link::NONE);
                let (no_local, exclusive, nowait) = (false, false, false);
                let qos = Method::BasicQos { prefetch_size: 0, prefetch_count: prefetch, global: false };
                let consume = Method::BasicConsume {
                    ticket,
                    queue,
                    consumer_tag,
                    no_local,
                    no_ack,
                    exclusive,
                    nowait,
                    arguments,
                };
                self.tell(client, &[link::method(mode, &qos), link::method(mode, &consume)].concat())
            }
            Op::Settle { nth, multiple, settling, .. } => {
                if channel.unacked.is_empty() || channel.void_for > 0 {
                    return Ok(false);
                }
                let at = usize::from(nth) % channel.unacked.len();
                let tag = channel.unacked[at];
                let settled: Vec<u64> = if multiple {
                    channel.unacked.drain(..=at).collect()
                } else {
                    vec![channel.unacked.remove(at)]
                };
                // What was taken back from it meanwhile it settles to no effect.
                let held: Vec<u64> =
                    settled.iter().copied().filter(|tag| model.holds(client, mode, *tag)).collect();
                self.stats.count_many(Kind::Outcome, "settled too late", (settled.len() - held.len()) as u64);
                if mode == Mode::Transaction {
                    channel.in_transaction.extend(&held);
                }
                let answers = channel.told.iter().filter(|told| matches!(told, Told::Answer { .. })).count();
                let is_final = mode != Mode::Transaction && settling == Settling::Ack;
                for &tag in held.iter().filter(|_| is_final) {
                    let event = self.hubs[hub].model.events;
                    self.hubs[hub].history.ack((client, mode, tag), answers, event);
                }
                self.hubs[hub].model.settle(now_ms, (client, mode), tag, multiple, settling);
                let method = match settling {
                    Settling::Ack => Method::BasicAck { delivery_tag: tag, multiple },
                    Settling::Nack => Method::BasicNack { delivery_tag: tag, multiple, requeue: false },
                    Settling::NackRequeue => Method::BasicNack { delivery_tag: tag, multiple, requeue: true },
                    Settling::Reject => Method::BasicReject { delivery_tag: tag, requeue: false },
                    Settling::RejectRequeue => Method::BasicReject { delivery_tag: tag, requeue: true },
                };
                self.tell(client, &link::method(mode, &method))
            }
            Op::SettleUnknown { .. } => {
                model.fail_channel(now_ms, client, mode);
                let ack = Method::BasicAck { delivery_tag: u64::MAX, multiple: false };
                self.tell(client, &link::method(mode, &ack))
            }
            Op::Recover { .. } => {
                let answers = channel.told.iter().filter(|told| matches!(told, Told::Answer { .. })).count();
                channel.void_for = answers + 1;
                model.recover(now_ms, client, mode);
                self.tell(client, &link::method(mode, &Method::BasicRecover { requeue: true }))
            }
            Op::CloseChannel { .. } => {
                channel.standing = Standing::Closing;
                self.hubs[hub].history.close(client, mode);
                let model = &mut self.hubs[hub].model;
                model.close_channel(now_ms, client, mode);
                let reply_text = ShortStr::truncated("");
                let close = Method::ChannelClose { reply_code: 200, reply_text, class_id: 0, method_id: 0 };
                self.tell(client, &link::method(mode, &close))
            }
            _ => Ok(false),
        }
    }

    fn act_on_queue(&mut self, client: u8, slot: u8, op: &Op) -> Result<bool, Violation> {
        let (now_ms, hub) = (self.now_ms(), self.clients[usize::from(client)].hub);
        let config = Rc::clone(&self.config);
        let spec = &config.queues[usize::from(slot)];
        let model = &mut self.hubs[hub].model;
        let name = format!("q{slot}");
        let (queue, ticket, nowait) = (ShortStr::truncated(&name), 0, false);
        let is_there = model.has_queue(slot);
        if is_there && !model.may_use(client, slot) {
            return Ok(false);
        }
        model.begin_event();
        match *op {
            Op::DeclareQueue { .. } | Op::CountQueue { .. } => {
                let passive = matches!(op, Op::CountQueue { .. });
                if passive && !is_there {
                    model.fail_channel(now_ms, client, Mode::Plain);
                } else {
                    model.declare_queue(now_ms, client, slot);
                }
                if !is_there && !passive {
                    count_arguments(&mut self.stats, spec);
                }
                let arguments = arguments(spec);
                let arguments = arguments.as_table();
                let &QueueSpec { durable, exclusive, auto_delete, .. } = spec;
                let declare = Method::QueueDeclare {
                    ticket,
                    queue,
                    passive,
                    durable,
                    exclusive,
                    auto_delete,
                    nowait,
                    arguments,
                };
                self.tell(client, &link::method(Mode::Plain, &declare))
            }
            Op::DeleteQueue { if_empty, if_unused, .. } => {
                if !is_there {
                    return Ok(false);
                }
                model.delete_queue(now_ms, client, slot, if_empty, if_unused);
                let delete = Method::QueueDelete { ticket, queue, if_unused, if_empty, nowait };
                self.tell(client, &link::method(Mode::Plain, &delete))
            }
            Op::PurgeQueue { .. } => {
                if !is_there {
                    return Ok(false);
                }
                model.purge_queue(client, slot);
                self.tell(client, &link::method(Mode::Plain, &Method::QueuePurge { ticket, queue, nowait }))
            }
            _ => Ok(false),
        }
    }

    fn act_on_exchange(&mut self, client: u8, exchange: ExchangeName, op: &Op) -> Result<bool, Violation> {
        let hub = self.clients[usize::from(client)].hub;
        let (durable, alternate, delayed_direct) =
            (self.config.durable_exchanges, self.config.alternate, self.config.delayed_direct);
        let model = &mut self.hubs[hub].model;
        let (ticket, nowait, text) = (0, false, ShortStr::truncated);
        model.begin_event();
        match *op {
            Op::DeclareExchange { .. } => {
                let type_ = match exchange {
                    ExchangeName::Direct => "direct",
                    ExchangeName::Fanout | ExchangeName::Dead => "fanout",
                    ExchangeName::Topic => "topic",
                    ExchangeName::Headers => "headers",
                    ExchangeName::Delayed => "x-delayed-message",
                };
                let arguments = FieldTable::build(|table| {
                    if exchange == ExchangeName::Delayed {
                        let inner: &[u8] = if delayed_direct { b"direct" } else { b"fanout" };
                        table.field("x-delayed-type", Value::LongStr(inner));
                    }
                    if exchange == ExchangeName::Direct && alternate {
                        let fanout = ExchangeName::Fanout.name().as_bytes();
                        table.field("alternate-exchange", Value::LongStr(fanout));
                    }
                });
                model.declare_exchange(client, exchange);
                let declare = Method::ExchangeDeclare {
                    ticket,
                    exchange: text(exchange.name()),
                    type_: text(type_),
                    passive: false,
                    durable,
                    auto_delete: false,
                    internal: false,
                    nowait,
                    arguments: arguments.as_table(),
                };
                self.tell(client, &link::method(Mode::Plain, &declare))
            }
            Op::DeleteExchange { .. } => {
                model.delete_exchange(client, exchange);
                let exchange = text(exchange.name());
                let delete = Method::ExchangeDelete { ticket, exchange, if_unused: false, nowait };
                self.tell(client, &link::method(Mode::Plain, &delete))
            }
            Op::BindQueue { queue, key, .. } | Op::UnbindQueue { queue, key, .. } => {
                // Dead letters have queues of their own.
                let slot = match exchange {
                    ExchangeName::Dead => ORDINARY_QUEUES + queue % DEAD_QUEUES,
                    _ => queue % ORDINARY_QUEUES,
                };
                if !model.has_exchange(exchange) || !model.may_use(client, slot) {
                    return Ok(false);
                }
                let key = binding_key(exchange, key);
                let arguments = FieldTable::build(|table| {
                    if exchange == ExchangeName::Headers {
                        let (any, [k, l]) = binding_headers(key);
                        let how: &[u8] = if any { b"any" } else { b"all" };
                        table.field("x-match", Value::LongStr(how));
                        table.field("k", Value::I32(k)).field("l", Value::I32(l));
                    }
                });
                let arguments = arguments.as_table();
                let (name, exchange_name) = (format!("q{slot}"), exchange);
                let routing_key = match exchange {
                    ExchangeName::Topic => PATTERNS[usize::from(key)],
                    ExchangeName::Headers => "",
                    _ => KEYS[usize::from(key)],
                };
                let (queue, exchange, routing_key) = (text(&name), text(exchange.name()), text(routing_key));
                let bytes = if matches!(op, Op::BindQueue { .. }) {
                    model.bind(client, exchange_name, slot, key);
                    link::method(
                        Mode::Plain,
                        &Method::QueueBind { ticket, queue, exchange, routing_key, nowait, arguments },
                    )
                } else {
                    model.unbind(client, exchange_name, slot, key);
                    link::method(
                        Mode::Plain,
                        &Method::QueueUnbind { ticket, queue, exchange, routing_key, arguments },
                    )
                };
                self.tell(client, &bytes)
            }
            _ => Ok(false),
        }
    }

    pub(super) fn disconnect(&mut self, client: u8, politely: bool) -> Result<bool, Violation> {
        let at = usize::from(client);
        if politely {
            self.finish(client)?;
        }
        let (now_ms, hub) = (self.now_ms(), self.clients[at].hub);
        let Some(link) = self.clients[at].link.as_mut().filter(|link| !link.is_closing) else { return Ok(false) };
        if !politely {
            link.connection.handle_end();
            self.lose(client)?;
            return Ok(true);
        }
        self.hubs[hub].history.leave(client);
        link.is_closing = true;
        let mut close = Vec::new();
        let reply_text = ShortStr::truncated("");
        let method = Method::ConnectionClose { reply_code: 200, reply_text, class_id: 0, method_id: 0 };
        leveret_amqp::frame::write_method(&mut close, 0, &method);
        self.say(client, &close);
        self.hubs[hub].model.begin_event();
        self.hubs[hub].model.disconnect(now_ms, client);
        self.pump(hub)?;
        self.hubs[hub].said.remove(&client);
        self.conclude(hub)?;
        Ok(true)
    }

    /// The broker closes all connections, one after the other.
    pub(crate) fn disconnect_all(&mut self) -> Result<(), Violation> {
        for client in 0..self.config.clients {
            let (now_ms, at) = (self.now_ms(), usize::from(client));
            let hub = self.clients[at].hub;
            let Some(link) = &mut self.clients[at].link else { continue };
            link.connection.handle_shutdown(self.now, "shutdown", &mut link.unsent);
            self.hubs[hub].model.begin_event();
            self.hubs[hub].model.dismiss(now_ms, client);
            self.pump(hub)?;
            self.hubs[hub].said.remove(&client);
            self.conclude(hub)?;
            self.clients[at].link = None;
            self.hubs[hub].connections.retain(|(_, of)| *of != client);
        }
        Ok(())
    }

    /// Everybody is gone, and nobody has said anything.
    pub(crate) fn drop_all(&mut self) {
        for client in &mut self.clients {
            client.link = None;
        }
    }
}
