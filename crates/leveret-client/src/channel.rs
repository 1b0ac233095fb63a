//! What can be done on one channel.

use std::time::{Duration, Instant};

use leveret_amqp::{BasicProperties, Method, ShortStr, ShortString, Table};

use crate::confirms::{Confirm, Confirms};
use crate::connection::{ChannelId, Connection};
use crate::error::Error;
use crate::message::{CancelledBy, ConsumerEvent, DeclaredQueue, Got, Returned};
use crate::state::{AnswerContent, Life};

/// A channel, borrowed from its connection. After [`Scope::Channel`](crate::Scope::Channel) errors it is closed,
/// and the connection can open another one.
#[derive(Debug)]
pub struct Channel<'c> {
    connection: &'c mut Connection,
    id: ChannelId,
}

/// Whether the broker waits for an ack of what it delivers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum AckMode {
    /// A message is settled when it is delivered: `no-ack`.
    Auto,
    /// A message is settled by [`Channel::ack`] and its kin.
    #[default]
    Manual,
}

/// How a queue is declared.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct QueueOptions<'a> {
    /// The queue survives a restart of the broker.
    pub durable: bool,
    /// Only this connection may use the queue, and the queue ends with it.
    pub exclusive: bool,
    /// The queue is deleted with its last consumer.
    pub auto_delete: bool,
    /// Arguments such as `x-max-length`.
    pub arguments: Table<'a>,
}

/// How an exchange is declared.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct ExchangeOptions<'a> {
    /// The exchange survives a restart of the broker.
    pub durable: bool,
    /// The exchange is deleted with its last binding.
    pub auto_delete: bool,
    /// Only other exchanges may send to it.
    pub internal: bool,
    /// Arguments such as `alternate-exchange`.
    pub arguments: Table<'a>,
}

/// How a consumer is started.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct ConsumeOptions<'a> {
    /// The consumer's name; the broker makes one up when it has no characters.
    pub consumer_tag: &'a str,
    /// Whether messages are acked.
    pub ack_mode: AckMode,
    /// No other consumer is allowed at the queue.
    pub exclusive: bool,
    /// Arguments such as `x-priority`.
    pub arguments: Table<'a>,
}

/// Where a message goes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PublishTo<'a> {
    /// The exchange; of no characters for the default one.
    pub exchange: &'a str,
    /// The routing key.
    pub routing_key: &'a str,
    /// The message comes back, see [`Channel::take_returned`], if it reaches no queue.
    pub mandatory: bool,
}

impl<'a> PublishTo<'a> {
    /// Straight to the queue of that name, and back if there is none.
    pub fn queue(queue: &'a str) -> Self {
        PublishTo { exchange: "", routing_key: queue, mandatory: true }
    }
}

impl<'c> Channel<'c> {
    pub(crate) fn new(connection: &'c mut Connection, id: ChannelId) -> Self {
        Channel { connection, id }
    }

    /// Its number, to come back to it with [`Connection::channel`].
    pub fn id(&self) -> ChannelId {
        self.id
    }

    /// Declares a queue; an empty name asks the broker for one.
    pub fn declare_queue(&mut self, name: &str, options: &QueueOptions<'_>) -> Result<DeclaredQueue, Error> {
        let method = Method::QueueDeclare {
            ticket: 0,
            queue: ShortStr::new(name)?,
            passive: false,
            durable: options.durable,
            exclusive: options.exclusive,
            auto_delete: options.auto_delete,
            nowait: false,
            arguments: options.arguments,
        };
        self.call_for_queue(&method)
    }

    /// Asks for the counts of a queue that must exist: a passive declare.
    pub fn check_queue(&mut self, name: &str) -> Result<DeclaredQueue, Error> {
        let method = Method::QueueDeclare {
            ticket: 0,
            queue: ShortStr::new(name)?,
            passive: true,
            durable: false,
            exclusive: false,
            auto_delete: false,
            nowait: false,
            arguments: Table::EMPTY,
        };
        self.call_for_queue(&method)
    }

    /// Deletes a queue, and says how many messages went with it.
    pub fn delete_queue(&mut self, name: &str, only: DeleteOnly) -> Result<u32, Error> {
        let queue = ShortStr::new(name)?;
        let DeleteOnly { if_unused, if_empty } = only;
        self.call_for_count(&Method::QueueDelete { ticket: 0, queue, if_unused, if_empty, nowait: false })
    }

    /// Drops all ready messages of a queue, and says how many they were.
    pub fn purge_queue(&mut self, name: &str) -> Result<u32, Error> {
        let queue = ShortStr::new(name)?;
        self.call_for_count(&Method::QueuePurge { ticket: 0, queue, nowait: false })
    }

    /// Binds a queue to an exchange.
    pub fn bind_queue(
        &mut self,
        queue: &str,
        exchange: &str,
        routing_key: &str,
        arguments: Table<'_>,
    ) -> Result<(), Error> {
        self.call(&Method::QueueBind {
            ticket: 0,
            queue: ShortStr::new(queue)?,
            exchange: ShortStr::new(exchange)?,
            routing_key: ShortStr::new(routing_key)?,
            nowait: false,
            arguments,
        })
    }

    /// Takes a binding away; key and arguments are those it was made with.
    pub fn unbind_queue(
        &mut self,
        queue: &str,
        exchange: &str,
        routing_key: &str,
        arguments: Table<'_>,
    ) -> Result<(), Error> {
        self.call(&Method::QueueUnbind {
            ticket: 0,
            queue: ShortStr::new(queue)?,
            exchange: ShortStr::new(exchange)?,
            routing_key: ShortStr::new(routing_key)?,
            arguments,
        })
    }

    /// Declares an exchange of type `direct`, `fanout`, `topic`, `headers` or another that the broker has.
    pub fn declare_exchange(
        &mut self,
        name: &str,
        type_: &str,
        options: &ExchangeOptions<'_>,
    ) -> Result<(), Error> {
        self.call(&Method::ExchangeDeclare {
            ticket: 0,
            exchange: ShortStr::new(name)?,
            type_: ShortStr::new(type_)?,
            passive: false,
            durable: options.durable,
            auto_delete: options.auto_delete,
            internal: options.internal,
            nowait: false,
            arguments: options.arguments,
        })
    }

    /// Deletes an exchange. Of [`DeleteOnly`] only `if_unused` counts.
    pub fn delete_exchange(&mut self, name: &str, only: DeleteOnly) -> Result<(), Error> {
        let (exchange, if_unused) = (ShortStr::new(name)?, only.if_unused);
        self.call(&Method::ExchangeDelete { ticket: 0, exchange, if_unused, nowait: false })
    }

    /// Binds an exchange to another: what reaches `source` with a matching key goes on to `destination`.
    pub fn bind_exchange(
        &mut self,
        destination: &str,
        source: &str,
        routing_key: &str,
        arguments: Table<'_>,
    ) -> Result<(), Error> {
        self.call(&Method::ExchangeBind {
            ticket: 0,
            destination: ShortStr::new(destination)?,
            source: ShortStr::new(source)?,
            routing_key: ShortStr::new(routing_key)?,
            nowait: false,
            arguments,
        })
    }

    /// Takes a binding between exchanges away.
    pub fn unbind_exchange(
        &mut self,
        destination: &str,
        source: &str,
        routing_key: &str,
        arguments: Table<'_>,
    ) -> Result<(), Error> {
        self.call(&Method::ExchangeUnbind {
            ticket: 0,
            destination: ShortStr::new(destination)?,
            source: ShortStr::new(source)?,
            routing_key: ShortStr::new(routing_key)?,
            nowait: false,
            arguments,
        })
    }

    /// Publishes a message. With confirms on, returns its number, counted from 1; else 0.
    ///
    /// The message is written out when enough came together, with [`Channel::flush`], or with the next wait.
    /// Strings among the properties are cut at 255 bytes.
    pub fn publish(
        &mut self,
        to: PublishTo<'_>,
        properties: &BasicProperties<'_>,
        body: &[u8],
    ) -> Result<u64, Error> {
        let method = Method::BasicPublish {
            ticket: 0,
            exchange: ShortStr::new(to.exchange)?,
            routing_key: ShortStr::new(to.routing_key)?,
            mandatory: to.mandatory,
            immediate: false,
        };
        self.connection.check_channel_open(self.id)?;
        // The number comes first: a long flush may already read the confirm.
        let number = self.connection.state(self.id).confirms.as_mut().map_or(0, Confirms::next_number);
        self.connection.send_content(self.id, &method, properties, body)?;
        Ok(number)
    }

    /// Asks the broker to confirm every publish from now on.
    pub fn confirm_select(&mut self) -> Result<(), Error> {
        self.call(&Method::ConfirmSelect { nowait: false })?;
        self.connection.state(self.id).confirms.get_or_insert_default();
        Ok(())
    }

    /// How many publishes are not yet confirmed.
    pub fn outstanding(&mut self) -> usize {
        self.connection.state(self.id).confirms.as_ref().map_or(0, Confirms::outstanding)
    }

    /// Waits until no more than `outstanding_max` publishes are unconfirmed, and hands over all verdicts since the
    /// last call. With 0 it waits for all; with a window size less one it makes room for the next publish.
    ///
    /// Fails when the broker is silent on them for the answer timeout.
    pub fn wait_confirms(&mut self, outstanding_max: usize) -> Result<Vec<Confirm>, Error> {
        let mut before = usize::MAX;
        let mut deadline = Instant::now();
        loop {
            self.connection.check_channel_open(self.id)?;
            let confirms = self.connection.state(self.id).confirms.as_mut().ok_or(Error::NotConfirming)?;
            let outstanding = confirms.outstanding();
            if outstanding <= outstanding_max {
                return Ok(confirms.take_settled());
            }
            if outstanding < before {
                before = outstanding;
                deadline = Instant::now() + self.connection.answer_timeout();
            }
            if !self.connection.receive(deadline)? {
                return Err(self.connection.too_late("a publish that awaits its confirm"));
            }
        }
    }

    /// Hands over the verdicts that arrive within `timeout`; returns at once when there are some already.
    pub fn poll_confirms(&mut self, timeout: Duration) -> Result<Vec<Confirm>, Error> {
        let deadline = deadline_after(timeout);
        loop {
            let confirms = self.connection.state(self.id).confirms.as_mut().ok_or(Error::NotConfirming)?;
            let settled = confirms.take_settled();
            if !settled.is_empty() {
                return Ok(settled);
            }
            self.connection.check_channel_open(self.id)?;
            if !self.connection.receive(deadline)? {
                return Ok(settled);
            }
        }
    }

    /// Takes the oldest mandatory message that came back. It is there for certain after [`Channel::sync`], or once
    /// the publish is confirmed: RabbitMQ returns a message before it confirms it.
    pub fn take_returned(&mut self) -> Option<Returned> {
        self.connection.state(self.id).returned.pop_front()
    }

    /// Waits until the broker has handled everything sent on this channel, which it does in order: asks for the
    /// prefetch that is in force already, and waits for the answer.
    pub fn sync(&mut self) -> Result<(), Error> {
        let prefetch_count = self.connection.state(self.id).prefetch_count;
        self.qos(prefetch_count)
    }

    /// Writes everything out that was sent so far.
    pub fn flush(&mut self) -> Result<(), Error> {
        self.connection.flush()
    }

    /// Limits how many messages may be unacked at each consumer started from now on; 0 stands for no limit.
    pub fn qos(&mut self, prefetch_count: u16) -> Result<(), Error> {
        self.call(&Method::BasicQos { prefetch_size: 0, prefetch_count, global: false })?;
        self.connection.state(self.id).prefetch_count = prefetch_count;
        Ok(())
    }

    /// Gets one message, or `None` from an empty queue.
    pub fn get(&mut self, queue: &str, ack_mode: AckMode) -> Result<Option<Got>, Error> {
        let queue = ShortStr::new(queue)?;
        let no_ack = ack_mode == AckMode::Auto;
        match self.call_for_content(&Method::BasicGet { ticket: 0, queue, no_ack })? {
            AnswerContent::Got(got) => Ok(Some(*got)),
            AnswerContent::Nothing => Ok(None),
            other => Err(unexpected(&other)),
        }
    }

    /// Starts a consumer and returns its name. Its messages come with [`Channel::next_event`].
    pub fn consume(&mut self, queue: &str, options: &ConsumeOptions<'_>) -> Result<ShortString, Error> {
        let method = Method::BasicConsume {
            ticket: 0,
            queue: ShortStr::new(queue)?,
            consumer_tag: ShortStr::new(options.consumer_tag)?,
            no_local: false,
            no_ack: options.ack_mode == AckMode::Auto,
            exclusive: options.exclusive,
            nowait: false,
            arguments: options.arguments,
        };
        match self.call_for_content(&method)? {
            AnswerContent::Consumer(consumer_tag) => Ok(consumer_tag),
            other => Err(unexpected(&other)),
        }
    }

    /// The next message or piece of news for the consumers of this channel; `None` after `timeout` without any.
    /// While it waits it keeps the connection alive.
    pub fn next_event(&mut self, timeout: Duration) -> Result<Option<ConsumerEvent>, Error> {
        let deadline = deadline_after(timeout);
        loop {
            if let Some(event) = self.connection.state(self.id).events.pop_front() {
                self.connection.keep_alive()?;
                return Ok(Some(event));
            }
            self.connection.check_channel_open(self.id)?;
            if !self.connection.receive(deadline)? {
                return Ok(None);
            }
        }
    }

    /// Acks one delivery. Written out like a publish.
    pub fn ack(&mut self, delivery_tag: u64) -> Result<(), Error> {
        self.connection.send(self.id, &Method::BasicAck { delivery_tag, multiple: false })
    }

    /// Acks a delivery and all unacked ones before it.
    pub fn ack_up_to(&mut self, delivery_tag: u64) -> Result<(), Error> {
        self.connection.send(self.id, &Method::BasicAck { delivery_tag, multiple: true })
    }

    /// Refuses a delivery, which goes back to its queue.
    pub fn requeue(&mut self, delivery_tag: u64) -> Result<(), Error> {
        self.connection.send(self.id, &Method::BasicNack { delivery_tag, multiple: false, requeue: true })
    }

    /// Refuses a delivery, which is dead-lettered or dropped.
    pub fn reject(&mut self, delivery_tag: u64) -> Result<(), Error> {
        self.connection.send(self.id, &Method::BasicReject { delivery_tag, requeue: false })
    }

    /// Ends a consumer. What was delivered before is still in [`Channel::next_event`].
    pub fn cancel(&mut self, consumer_tag: &ShortString) -> Result<(), Error> {
        self.start_cancel(consumer_tag)?;
        let deadline = Instant::now() + self.connection.answer_timeout();
        loop {
            let state = self.connection.state(self.id);
            let news = ConsumerEvent::Cancelled { consumer_tag: consumer_tag.clone(), by: CancelledBy::Client };
            if let Some(at) = state.events.iter().rposition(|event| *event == news) {
                state.events.remove(at);
                return Ok(());
            }
            self.connection.check_channel_open(self.id)?;
            if !self.connection.receive(deadline)? {
                return Err(self.connection.too_late("basic.cancel"));
            }
        }
    }

    /// Asks for the end of a consumer without waiting: [`ConsumerEvent::Cancelled`] follows its last delivery.
    pub fn start_cancel(&mut self, consumer_tag: &ShortString) -> Result<(), Error> {
        let consumer_tag = consumer_tag.as_short_str();
        self.connection.send(self.id, &Method::BasicCancel { consumer_tag, nowait: false })
    }

    /// Closes the channel: everything sent before on it is handled by the broker when this returns.
    pub fn close(self) -> Result<(), Error> {
        let Channel { connection, id } = self;
        if connection.state(id).life == Life::Open {
            let close = Method::ChannelClose {
                reply_code: 200,
                reply_text: ShortStr::truncated("Goodbye"),
                class_id: 0,
                method_id: 0,
            };
            connection.send(id, &close)?;
            connection.state(id).life = Life::Closing;
            let deadline = Instant::now() + connection.answer_timeout();
            while connection.state(id).life == Life::Closing {
                if !connection.receive(deadline)? {
                    return Err(connection.too_late("channel.close"));
                }
            }
        }
        connection.forget(id);
        Ok(())
    }

    fn call_for_content(&mut self, method: &Method<'_>) -> Result<AnswerContent, Error> {
        Ok(self.connection.call(self.id, method)?.content)
    }

    fn call(&mut self, method: &Method<'_>) -> Result<(), Error> {
        self.call_for_content(method).map(drop)
    }

    fn call_for_queue(&mut self, method: &Method<'_>) -> Result<DeclaredQueue, Error> {
        match self.call_for_content(method)? {
            AnswerContent::Queue(queue) => Ok(queue),
            other => Err(unexpected(&other)),
        }
    }

    fn call_for_count(&mut self, method: &Method<'_>) -> Result<u32, Error> {
        match self.call_for_content(method)? {
            AnswerContent::MessageCount(count) => Ok(count),
            other => Err(unexpected(&other)),
        }
    }
}

/// When a delete may happen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DeleteOnly {
    /// Only if nothing consumes from the queue, or nothing is bound to the exchange.
    pub if_unused: bool,
    /// Only if the queue has no messages.
    pub if_empty: bool,
}

/// `call` has compared the method's name already, so this is for the compiler.
fn unexpected(content: &AnswerContent) -> Error {
    Error::Unexpected(format!("the answer {content:?}"))
}

/// A far but finite deadline stands for one beyond what the clock can say.
fn deadline_after(timeout: Duration) -> Instant {
    const FAR: Duration = Duration::from_hours(365 * 24);
    Instant::now() + timeout.min(FAR)
}
