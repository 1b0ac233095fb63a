//! The client scenario with lapin.
//!
//! Run: `AMQP_URL=amqp://guest:guest@127.0.0.1:5672/%2F cargo run`
//!
//! Each step opens connections of its own and fails by returning an error. The
//! program prints one line for each step (`ok N name` or
//! `not ok N name: reason`), then the line `PASSED/TOTAL steps`, and exits 0
//! only if every step passed.

use std::{
    collections::BTreeMap,
    error::Error,
    fmt::{Debug, Display},
    future::Future,
    hash::{BuildHasher, RandomState},
    pin::Pin,
    process::ExitCode,
    sync::{
        Mutex,
        atomic::{AtomicU32, Ordering},
    },
    time::{Duration, Instant},
};

use futures_lite::StreamExt;
use lapin::{
    BasicProperties, Channel, Confirmation, Connection, ConnectionProperties, Consumer, ErrorKind, ExchangeKind,
    message::Delivery,
    options::{
        BasicAckOptions, BasicConsumeOptions, BasicGetOptions, BasicNackOptions, BasicPublishOptions,
        BasicQosOptions, ConfirmSelectOptions, ExchangeDeclareOptions, QueueBindOptions, QueueDeclareOptions,
        QueueDeleteOptions,
    },
    types::{AMQPValue, DecimalValue, FieldTable, ShortString},
    uri::AMQPUri,
};
use tokio::time::{sleep, timeout};

/// The time that one step may take in all.
const STEP_DEADLINE: Duration = Duration::from_secs(20);

/// The time that a step waits for one condition. This is shorter than the
/// step's deadline, so that the reason printed says what did not happen.
const WAIT: Duration = Duration::from_secs(8);

type StepResult<T = ()> = Result<T, Box<dyn Error + Send + Sync>>;
type StepFuture = Pin<Box<dyn Future<Output = StepResult> + Send>>;

/// What the steps of one run share.
struct Run {
    uri: AMQPUri,
    suffix: u64,
    names: AtomicU32,
    /// Durable queues that the steps declared; they are deleted at the end.
    durable_queues: Mutex<Vec<String>>,
}

impl Run {
    /// Returns a name that no other step and no other run uses.
    fn unique(&self, label: &str) -> String {
        let number = self.names.fetch_add(1, Ordering::Relaxed) + 1;
        format!("steps-{label}-{:016x}-{number}", self.suffix)
    }

    async fn connect(&self) -> StepResult<Connection> {
        let connecting = Connection::connect_uri(self.uri.clone(), ConnectionProperties::default());
        Ok(within("the connection", connecting).await??)
    }

    /// Declares a queue that lives as long as its connection; returns its name.
    async fn declare(&self, channel: &Channel, label: &str) -> StepResult<String> {
        let queue = self.unique(label);
        let options = QueueDeclareOptions::exclusive();
        channel.queue_declare(queue.as_str().into(), options, FieldTable::default()).await?;
        Ok(queue)
    }

    /// Checks that an action on a channel of `connection` failed with an error
    /// that has the code, starts with `prefix` and contains `part`, and that the
    /// error closed this channel only.
    async fn check_channel_error<T>(
        &self,
        connection: &Connection,
        channel: &Channel,
        outcome: lapin::Result<T>,
        code: u16,
        prefix: &str,
        part: &str,
    ) -> StepResult {
        check_error(outcome.err(), code, prefix, part)?;
        check(!channel.status().connected(), "the channel is still open after the error")?;
        let channel = connection.create_channel().await?;
        self.declare(&channel, "after-error").await?;
        Ok(close(&channel).await?)
    }
}

/// Fails the step with `message` unless `condition` holds.
fn check(condition: bool, message: impl Display) -> StepResult {
    if condition { Ok(()) } else { Err(message.to_string().into()) }
}

/// Fails the step unless both values are equal.
#[allow(clippy::needless_pass_by_value, reason = "most callers have just made the values")]
fn check_equal<A: PartialEq<E> + Debug, E: Debug>(actual: A, expected: E, what: &str) -> StepResult {
    check(actual == expected, format_args!("{what} is {actual:?}, expected {expected:?}"))
}

/// Fails the step unless `error` is what the broker says when it closes a
/// channel or a connection, with this code, prefix and part of the text.
fn check_error(error: Option<lapin::Error>, code: u16, prefix: &str, part: &str) -> StepResult {
    let Some(error) = error else {
        return Err(format!("no error came, expected {code}").into());
    };
    let ErrorKind::ProtocolError(said) = error.kind() else {
        return Err(format!("the error is {error}, expected {code}").into());
    };
    let text = said.get_message().as_str();
    check_equal(said.get_id(), code, "the error code")?;
    check(text.starts_with(prefix), format_args!("the error text {text:?} does not start with {prefix:?}"))?;
    check(text.contains(part), format_args!("the error text {text:?} does not contain {part:?}"))
}

/// Waits for a future, at most as long as a step waits for one condition.
async fn within<F: Future>(what: &str, future: F) -> StepResult<F::Output> {
    timeout(WAIT, future).await.map_err(|_| format!("{what} did not come within {} s", WAIT.as_secs()).into())
}

/// Returns how many messages wait in the queue, from a passive declare.
async fn ready_messages(channel: &Channel, queue: &str) -> StepResult<u32> {
    let options = QueueDeclareOptions::default().passive();
    let declared = channel.queue_declare(queue.into(), options, FieldTable::default()).await?;
    Ok(declared.message_count())
}

/// Waits until `count` messages wait in the queue. A broker may count before it
/// enqueued all that came before on the channel.
async fn wait_for_ready(channel: &Channel, queue: &str, count: u32) -> StepResult {
    let deadline = Instant::now() + WAIT;
    loop {
        let actual = ready_messages(channel, queue).await?;
        if actual == count || Instant::now() >= deadline {
            return check_equal(actual, count, "the message count");
        }
        sleep(Duration::from_millis(20)).await;
    }
}

/// Publishes a message to a queue through the default exchange. The confirm, if
/// the channel has any, is not waited for.
async fn send(channel: &Channel, queue: &str, body: &[u8]) -> StepResult {
    publish(channel, "", queue, false, body, BasicProperties::default()).await?;
    Ok(())
}

async fn publish(
    channel: &Channel,
    exchange: &str,
    routing_key: &str,
    mandatory: bool,
    body: &[u8],
    properties: BasicProperties,
) -> lapin::Result<lapin::PublisherConfirm> {
    let options = BasicPublishOptions { mandatory, ..BasicPublishOptions::default() };
    channel.basic_publish(exchange.into(), routing_key.into(), options, body, properties).await
}

async fn consume(channel: &Channel, queue: &str, no_ack: bool) -> lapin::Result<Consumer> {
    let options = BasicConsumeOptions { no_ack, ..BasicConsumeOptions::default() };
    channel.basic_consume(queue.into(), "".into(), options, FieldTable::default()).await
}

async fn next_delivery(consumer: &mut Consumer) -> StepResult<Delivery> {
    let delivery = within("a message", consumer.next()).await?;
    Ok(delivery.ok_or("the consumer was cancelled")??)
}

/// Closes a channel. A channel that is dropped closes as well, but in the
/// background, and lapin refuses to close the connection meanwhile.
async fn close(channel: &Channel) -> lapin::Result<()> {
    channel.close(200, "done".into()).await
}

async fn disconnect(connection: &Connection) -> StepResult {
    Ok(connection.close(200, "done".into()).await?)
}

async fn declare_and_count(run: &Run) -> StepResult {
    let connection = run.connect().await?;
    let channel = connection.create_channel().await?;
    let queue = run.unique("count");
    let options = QueueDeclareOptions::exclusive();
    let declared = channel.queue_declare(queue.as_str().into(), options, FieldTable::default()).await?;
    check_equal(declared.name().as_str(), queue.as_str(), "the declared name")?;
    check_equal(declared.message_count(), 0, "the message count of a new queue")?;
    for number in 0..3 {
        send(&channel, &queue, format!("message {number}").as_bytes()).await?;
    }
    wait_for_ready(&channel, &queue, 3).await?;
    disconnect(&connection).await
}

async fn publish_consume_auto_ack(run: &Run) -> StepResult {
    let connection = run.connect().await?;
    let channel = connection.create_channel().await?;
    let queue = run.declare(&channel, "auto-ack").await?;
    let mut consumer = consume(&channel, &queue, true).await?;
    for number in 1..=100 {
        send(&channel, &queue, format!("message {number}").as_bytes()).await?;
    }
    for number in 1..=100 {
        let delivery = next_delivery(&mut consumer).await?;
        let body = String::from_utf8_lossy(&delivery.data);
        check_equal(&*body, format!("message {number}").as_str(), "the next body")?;
        check_equal(delivery.delivery_tag, number, "the next delivery tag")?;
    }
    // Nothing is left to acknowledge, so nothing returns to the queue.
    close(&channel).await?;
    let channel = connection.create_channel().await?;
    let left = ready_messages(&channel, &queue).await?;
    check_equal(left, 0, "the message count")?;
    disconnect(&connection).await
}

async fn consume_manual_ack_prefetch(run: &Run) -> StepResult {
    let connection = run.connect().await?;
    let channel = connection.create_channel().await?;
    let queue = run.declare(&channel, "prefetch").await?;
    send(&channel, &queue, b"first").await?;
    send(&channel, &queue, b"second").await?;
    wait_for_ready(&channel, &queue, 2).await?;
    channel.basic_qos(1, BasicQosOptions::default()).await?;
    let mut consumer = consume(&channel, &queue, false).await?;
    let first = next_delivery(&mut consumer).await?;
    check_equal(first.data.as_slice(), b"first", "the first body")?;
    // The broker answers on the channel after all that it sent on it before.
    let waiting = ready_messages(&channel, &queue).await?;
    check_equal(waiting, 1, "the message count before the ack")?;
    let early = futures_lite::future::poll_once(consumer.next()).await;
    check(early.is_none(), "the second message came before the ack")?;
    first.ack(BasicAckOptions::default()).await?;
    let second = next_delivery(&mut consumer).await?;
    check_equal(second.data.as_slice(), b"second", "the second body")?;
    second.ack(BasicAckOptions::default()).await?;
    close(&channel).await?;
    let channel = connection.create_channel().await?;
    let left = ready_messages(&channel, &queue).await?;
    check_equal(left, 0, "the message count")?;
    disconnect(&connection).await
}

async fn confirms(run: &Run) -> StepResult {
    let connection = run.connect().await?;
    let channel = connection.create_channel().await?;
    let queue = run.declare(&channel, "confirms").await?;
    channel.confirm_select(ConfirmSelectOptions::default()).await?;
    // All 100 are on their way before the first confirm is waited for.
    let mut pending = Vec::new();
    for number in 0..100 {
        let body = format!("message {number}");
        let properties = BasicProperties::default();
        pending.push(publish(&channel, "", &queue, false, body.as_bytes(), properties).await?);
    }
    for confirm in pending {
        let confirmation = within("a confirm", confirm).await??;
        check_equal(confirmation, Confirmation::Ack(None), "the confirm")?;
    }
    let count = ready_messages(&channel, &queue).await?;
    check_equal(count, 100, "the message count")?;
    disconnect(&connection).await
}

async fn mandatory_return(run: &Run) -> StepResult {
    let connection = run.connect().await?;
    let channel = connection.create_channel().await?;
    let queue = run.declare(&channel, "mandatory").await?;
    let missing = run.unique("missing");
    channel.confirm_select(ConfirmSelectOptions::default()).await?;
    let confirm = publish(&channel, "", &missing, true, b"lost", BasicProperties::default()).await?;
    let Confirmation::Ack(Some(returned)) = within("the confirm", confirm).await?? else {
        return Err("the unroutable message was not returned and then confirmed".into());
    };
    check_equal(returned.reply_code, 312, "the reply code")?;
    check_equal(returned.reply_text.as_str(), "NO_ROUTE", "the reply text")?;
    check_equal(returned.exchange.as_str(), "", "the exchange")?;
    check_equal(returned.routing_key.as_str(), missing.as_str(), "the routing key")?;
    check_equal(returned.data.as_slice(), b"lost", "the returned body")?;
    // Neither of these comes back.
    for (key, mandatory) in [(&missing, false), (&queue, true)] {
        let properties = BasicProperties::default();
        let confirm = publish(&channel, "", key, mandatory, b"kept", properties).await?;
        let confirmation = within("the confirm", confirm).await??;
        check_equal(confirmation, Confirmation::Ack(None), "the confirm")?;
    }
    let count = ready_messages(&channel, &queue).await?;
    check_equal(count, 1, "the message count")?;
    disconnect(&connection).await
}

async fn redelivery(run: &Run) -> StepResult {
    let connection = run.connect().await?;
    let channel = connection.create_channel().await?;
    let queue = run.declare(&channel, "redelivery").await?;
    send(&channel, &queue, b"again").await?;
    let mut consumer = consume(&channel, &queue, false).await?;
    let first = next_delivery(&mut consumer).await?;
    check_equal(first.redelivered, false, "redelivered of the first delivery")?;
    let requeue = BasicNackOptions { requeue: true, ..BasicNackOptions::default() };
    first.nack(requeue).await?;
    let second = next_delivery(&mut consumer).await?;
    check_equal(second.data.as_slice(), b"again", "the body after the nack")?;
    check_equal(second.redelivered, true, "redelivered after the nack")?;
    close(&channel).await?;
    let channel = connection.create_channel().await?;
    let third = next_delivery(&mut consume(&channel, &queue, true).await?).await?;
    check_equal(third.data.as_slice(), b"again", "the body after the channel closed")?;
    check_equal(third.redelivered, true, "redelivered after the channel closed")?;
    disconnect(&connection).await
}

async fn body_over_several_frames(run: &Run) -> StepResult {
    let connection = run.connect().await?;
    let channel = connection.create_channel().await?;
    let queue = run.declare(&channel, "bodies").await?;
    let large: Vec<u8> = std::iter::repeat_with(random).flat_map(u64::to_le_bytes).take(1_000_000).collect();
    let bodies: [&[u8]; 3] = [&large, b"", b"end"];
    for body in bodies {
        send(&channel, &queue, body).await?;
    }
    let mut consumer = consume(&channel, &queue, true).await?;
    for body in bodies {
        let back = next_delivery(&mut consumer).await?.data;
        let (came, sent) = (back.len(), body.len());
        check(back == body, format_args!("{came} bytes came back, not the same {sent}"))?;
    }
    disconnect(&connection).await
}

/// Returns a table with a value of every type that lapin writes.
fn headers() -> FieldTable {
    let text = |text: &str| AMQPValue::LongString(text.into());
    let inner = table([("deep", AMQPValue::LongInt(1)), ("text", text("x"))]);
    table([
        ("true", AMQPValue::Boolean(true)),
        ("false", AMQPValue::Boolean(false)),
        ("int 8", AMQPValue::ShortShortInt(-100)),
        ("unsigned 8", AMQPValue::ShortShortUInt(200)),
        ("int 16", AMQPValue::ShortInt(-30_000)),
        ("unsigned 16", AMQPValue::ShortUInt(60_000)),
        ("int 32", AMQPValue::LongInt(-2_000_000_000)),
        ("unsigned 32", AMQPValue::LongUInt(4_000_000_000)),
        ("int 64", AMQPValue::LongLongInt(9_000_000_000_000)),
        ("negative int 64", AMQPValue::LongLongInt(-9_000_000_000_000)),
        ("float", AMQPValue::Float(-1.5)),
        ("double", AMQPValue::Double(-1234.5625)),
        ("decimal", AMQPValue::DecimalValue(DecimalValue { scale: 2, value: 314 })),
        ("string", text("grüße, 메시지")),
        ("empty string", text("")),
        ("bytes", AMQPValue::ByteArray([0x00, 0xff, 0x80][..].into())),
        ("timestamp", AMQPValue::Timestamp(1_709_209_815)),
        (
            "table",
            AMQPValue::FieldTable(table([
                ("inner", AMQPValue::FieldTable(inner)),
                ("empty", AMQPValue::FieldTable(FieldTable::default())),
            ])),
        ),
        (
            "array",
            AMQPValue::FieldArray(
                vec![
                    AMQPValue::LongInt(1),
                    text("two"),
                    AMQPValue::Boolean(false),
                    AMQPValue::Void,
                    AMQPValue::FieldArray(vec![AMQPValue::LongInt(3)].into()),
                    AMQPValue::FieldTable(table([("four", AMQPValue::LongInt(4))])),
                ]
                .into(),
            ),
        ),
        ("empty array", AMQPValue::FieldArray(vec![].into())),
        ("void", AMQPValue::Void),
    ])
}

fn table<const N: usize>(fields: [(&str, AMQPValue); N]) -> FieldTable {
    let fields = fields.map(|(name, value)| (ShortString::from(name), value));
    BTreeMap::from(fields).into()
}

async fn headers_of_every_table_type(run: &Run) -> StepResult {
    let connection = run.connect().await?;
    let channel = connection.create_channel().await?;
    let queue = run.declare(&channel, "headers").await?;
    let written = BasicProperties::default()
        .with_content_type("application/x-test".into())
        .with_content_encoding("identity".into())
        .with_headers(headers())
        .with_delivery_mode(2)
        .with_priority(5)
        .with_correlation_id("correlation".into())
        .with_reply_to("reply.queue".into())
        .with_message_id("message-1".into())
        .with_timestamp(1_700_000_000)
        .with_type("test.type".into())
        .with_user_id("guest".into())
        .with_app_id("lapin-steps".into());
    for properties in [written.clone(), BasicProperties::default()] {
        publish(&channel, "", &queue, false, b"x", properties).await?;
    }
    let mut consumer = consume(&channel, &queue, true).await?;
    let full = next_delivery(&mut consumer).await?.properties;
    let received = full.headers().clone().unwrap_or_default();
    for (name, value) in headers().inner() {
        let field = received.inner().get(name.as_str());
        check_equal(field, Some(value), &format!("the header {name:?}"))?;
    }
    check_equal(full, written, "the set of properties")?;
    let bare = next_delivery(&mut consumer).await?.properties;
    check_equal(bare, BasicProperties::default(), "the set of properties of a bare message")?;
    disconnect(&connection).await
}

/// A message: its routing key, its headers and the queues that must get it.
type Routed = (&'static str, FieldTable, &'static str);

/// A binding: the queue, the binding key and the binding arguments.
type Binding = (char, &'static str, FieldTable);

/// Bindings of two queues, `a` and `b`, to one exchange, and where messages go.
/// One binding stays to the end, so that an auto-delete exchange stays as well.
struct RoutingCase {
    kind: ExchangeKind,
    label: &'static str,
    bindings: Vec<Binding>,
    messages: Vec<Routed>,
    /// The binding that is removed after `messages` and before `after`.
    unbound: Binding,
    after: Vec<Routed>,
}

fn routing_cases() -> Vec<RoutingCase> {
    let none = FieldTable::default;
    let text = |text: &str| AMQPValue::LongString(text.into());
    let pdf = || ("format", text("pdf"));
    let plain = || ("format", text("text"));
    let two_pages = || ("pages", AMQPValue::LongInt(2));
    let report = || ("kind", text("report"));
    let pdf_of_two_pages = || table([("x-match", text("all")), pdf(), two_pages()]);
    let pdf_or_report = || table([("x-match", text("any")), pdf(), report()]);
    vec![
        RoutingCase {
            kind: ExchangeKind::Direct,
            label: "direct",
            bindings: vec![('a', "red", none()), ('a', "green", none()), ('b', "blue", none())],
            messages: vec![
                ("red", none(), "a"),
                ("green", none(), "a"),
                ("blue", none(), "b"),
                ("yellow", none(), ""),
            ],
            unbound: ('a', "red", none()),
            after: vec![("red", none(), ""), ("green", none(), "a"), ("blue", none(), "b")],
        },
        RoutingCase {
            kind: ExchangeKind::Fanout,
            label: "fanout",
            bindings: vec![('a', "", none()), ('b', "ignored", none())],
            messages: vec![("", none(), "ab"), ("anything", none(), "ab")],
            unbound: ('b', "ignored", none()),
            after: vec![("", none(), "a"), ("ignored", none(), "a")],
        },
        RoutingCase {
            kind: ExchangeKind::Topic,
            label: "topic",
            bindings: vec![('a', "*.error", none()), ('b', "app.#", none())],
            messages: vec![
                ("app.error", none(), "ab"),
                ("web.error", none(), "a"),
                ("web.db.error", none(), ""),
                ("error", none(), ""),
                ("app", none(), "b"),
                ("app.web.start", none(), "b"),
                ("apple", none(), ""),
            ],
            unbound: ('b', "app.#", none()),
            after: vec![("app", none(), ""), ("app.error", none(), "a")],
        },
        RoutingCase {
            kind: ExchangeKind::Headers,
            label: "headers",
            bindings: vec![('a', "", pdf_of_two_pages()), ('b', "", pdf_or_report())],
            messages: vec![
                ("", table([pdf(), two_pages()]), "ab"),
                ("", table([pdf()]), "b"),
                ("", table([plain(), report()]), "b"),
                ("", table([plain(), two_pages()]), ""),
                ("", table([("other", AMQPValue::Boolean(true))]), ""),
            ],
            unbound: ('b', "", pdf_or_report()),
            after: vec![("", table([pdf()]), ""), ("", table([pdf(), two_pages()]), "a")],
        },
    ]
}

/// Publishes each message and checks that exactly the right queues got it.
async fn check_routing(
    channel: &Channel,
    label: &str,
    exchange: &str,
    queues: &BTreeMap<char, String>,
    messages: Vec<Routed>,
) -> StepResult {
    for (number, (key, headers, expected)) in messages.into_iter().enumerate() {
        let body = format!("message {number}").into_bytes();
        let properties = BasicProperties::default().with_headers(headers.clone());
        publish(channel, exchange, key, false, &body, properties).await?;
        for (name, queue) in queues {
            let mut bodies = Vec::new();
            let options = BasicGetOptions { no_ack: true };
            while let Some(message) = channel.basic_get(queue.as_str().into(), options).await? {
                bodies.push(message.delivery.data);
            }
            let wanted = if expected.contains(*name) { vec![body.clone()] } else { Vec::new() };
            let what = format!(
                "what queue {name} of the {label} exchange holds after a message with key \
                 {key:?} and headers {headers:?}"
            );
            check_equal(bodies, wanted, &what)?;
        }
    }
    Ok(())
}

async fn exchanges_and_bindings(run: &Run) -> StepResult {
    let connection = run.connect().await?;
    let channel = connection.create_channel().await?;
    for case in routing_cases() {
        let exchange = run.unique(case.label);
        let options = ExchangeDeclareOptions { auto_delete: true, ..ExchangeDeclareOptions::default() };
        channel.exchange_declare(exchange.as_str().into(), case.kind, options, FieldTable::default()).await?;
        let mut queues = BTreeMap::new();
        for name in ['a', 'b'] {
            let label = format!("{}-{name}", case.label);
            queues.insert(name, run.declare(&channel, &label).await?);
        }
        for (queue, key, arguments) in case.bindings {
            channel
                .queue_bind(
                    queues[&queue].as_str().into(),
                    exchange.as_str().into(),
                    key.into(),
                    QueueBindOptions::default(),
                    arguments,
                )
                .await?;
        }
        check_routing(&channel, case.label, &exchange, &queues, case.messages).await?;
        let (queue, key, arguments) = case.unbound;
        channel
            .queue_unbind(queues[&queue].as_str().into(), exchange.as_str().into(), key.into(), arguments)
            .await?;
        check_routing(&channel, case.label, &exchange, &queues, case.after).await?;
    }
    disconnect(&connection).await
}

async fn error_403_access_refused(run: &Run) -> StepResult {
    let connection = run.connect().await?;
    let channel = connection.create_channel().await?;
    let reserved = format!("amq.{}", run.unique("reserved"));
    let options = QueueDeclareOptions::exclusive();
    let outcome = channel.queue_declare(reserved.into(), options, FieldTable::default()).await;
    run.check_channel_error(&connection, &channel, outcome, 403, "ACCESS_REFUSED", "").await?;
    disconnect(&connection).await
}

async fn error_404_not_found(run: &Run) -> StepResult {
    let connection = run.connect().await?;
    let channel = connection.create_channel().await?;
    let missing = run.unique("missing");
    let options = QueueDeclareOptions::default().passive();
    let outcome = channel.queue_declare(missing.as_str().into(), options, FieldTable::default()).await;
    let text = format!("NOT_FOUND - no queue '{missing}' in vhost '{}'", run.uri.vhost);
    run.check_channel_error(&connection, &channel, outcome, 404, &text, "").await?;
    disconnect(&connection).await
}

async fn error_405_resource_locked(run: &Run) -> StepResult {
    let owner = run.connect().await?;
    let other = run.connect().await?;
    let channel = owner.create_channel().await?;
    let queue = run.declare(&channel, "locked").await?;
    let quoted = format!("'{queue}'");

    let declaring = other.create_channel().await?;
    let options = QueueDeclareOptions::default().passive();
    let outcome = declaring.queue_declare(queue.as_str().into(), options, FieldTable::default()).await;
    run.check_channel_error(&other, &declaring, outcome, 405, "RESOURCE_LOCKED", &quoted).await?;

    let consuming = other.create_channel().await?;
    let outcome = consume(&consuming, &queue, false).await;
    run.check_channel_error(&other, &consuming, outcome, 405, "RESOURCE_LOCKED", &quoted).await?;

    disconnect(&other).await?;
    disconnect(&owner).await
}

async fn error_406_precondition_failed(run: &Run) -> StepResult {
    let connection = run.connect().await?;
    let queue = run.unique("durable");
    let declare = async |durable| {
        let channel = connection.create_channel().await?;
        let options = QueueDeclareOptions { durable, ..QueueDeclareOptions::default() };
        let outcome = channel.queue_declare(queue.as_str().into(), options, FieldTable::default()).await;
        StepResult::Ok((channel, outcome))
    };
    if let Ok(mut queues) = run.durable_queues.lock() {
        queues.push(queue.clone());
    }
    let (first, outcome) = declare(true).await?;
    outcome?;
    let (channel, outcome) = declare(false).await?;
    let text = format!("inequivalent arg 'durable' for queue '{queue}' in vhost '{}'", run.uri.vhost);
    run.check_channel_error(&connection, &channel, outcome, 406, "PRECONDITION_FAILED", &text).await?;
    // The same declaration is no error.
    let (last, outcome) = declare(true).await?;
    outcome?;
    close(&first).await?;
    close(&last).await?;
    disconnect(&connection).await
}

async fn error_530_not_allowed(run: &Run) -> StepResult {
    let mut elsewhere = run.uri.clone();
    elsewhere.vhost = run.unique("no-vhost");
    let name = elsewhere.vhost.clone();
    let connecting = Connection::connect_uri(elsewhere, ConnectionProperties::default());
    let error = within("the answer", connecting).await?.err();
    for part in ["vhost", name.as_str(), "not found"] {
        check_error(error.clone(), 530, "NOT_ALLOWED", part)?;
    }
    Ok(())
}

async fn delete_durable_queues(run: &Run) -> StepResult {
    let queues = run.durable_queues.lock().map(|queues| queues.clone()).unwrap_or_default();
    let connection = run.connect().await?;
    let channel = connection.create_channel().await?;
    for queue in queues {
        channel.queue_delete(queue.into(), QueueDeleteOptions::default()).await?;
    }
    disconnect(&connection).await
}

/// Returns a random number, from the random keys of the standard hasher.
fn random() -> u64 {
    RandomState::new().hash_one(0)
}

/// Runs one step in a task of its own; returns the reason if it failed.
async fn reason_for_failure(step: StepFuture) -> Option<String> {
    let task = tokio::spawn(step);
    let reason = match timeout(STEP_DEADLINE, task).await {
        Ok(Ok(Ok(()))) => return None,
        Ok(Ok(Err(error))) => error.to_string(),
        Ok(Err(error)) => error.to_string(),
        Err(_) => format!("not done within {} s", STEP_DEADLINE.as_secs()),
    };
    Some(reason.split_whitespace().collect::<Vec<_>>().join(" "))
}

/// Lists steps by name, each as a function that starts the step.
macro_rules! steps {
    ($($step:ident),* $(,)?) => {
        [$((stringify!($step), (|run| Box::pin($step(run))) as fn(&'static Run) -> StepFuture)),*]
    };
}

#[tokio::main]
async fn main() -> ExitCode {
    let Ok(url) = std::env::var("AMQP_URL") else {
        eprintln!("AMQP_URL is not set; example: amqp://guest:guest@127.0.0.1:5672/%2F");
        return ExitCode::FAILURE;
    };
    let uri = match url.parse::<AMQPUri>() {
        Ok(uri) => uri,
        Err(error) => {
            eprintln!("AMQP_URL is no AMQP address: {error}");
            return ExitCode::FAILURE;
        }
    };
    let run: &'static Run = Box::leak(Box::new(Run {
        uri,
        suffix: random(),
        names: AtomicU32::new(0),
        durable_queues: Mutex::default(),
    }));
    let steps = steps![
        declare_and_count,
        publish_consume_auto_ack,
        consume_manual_ack_prefetch,
        confirms,
        mandatory_return,
        redelivery,
        body_over_several_frames,
        headers_of_every_table_type,
        exchanges_and_bindings,
        error_403_access_refused,
        error_404_not_found,
        error_405_resource_locked,
        error_406_precondition_failed,
        error_530_not_allowed,
    ];
    let mut passed = 0;
    for (index, (name, step)) in steps.iter().enumerate() {
        let number = index + 1;
        match reason_for_failure(step(run)).await {
            None => {
                passed += 1;
                println!("ok {number} {name}");
            }
            Some(reason) => println!("not ok {number} {name}: {reason}"),
        }
    }
    if let Some(reason) = reason_for_failure(Box::pin(delete_durable_queues(run))).await {
        eprintln!("cleanup failed: {reason}");
    }
    println!("{passed}/{} steps", steps.len());
    if passed == steps.len() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
