"""The client scenario with pika (BlockingConnection).

Run: AMQP_URL=amqp://guest:guest@127.0.0.1:5672/%2F python pika_steps.py
"""

import contextlib
import datetime
import decimal
import os
import time

import pika
import pika.exceptions

from steps import (
    ROUTING_CASES,
    WAIT,
    StepFailed,
    amqp_url,
    check,
    check_equal,
    check_error,
    check_routing,
    inequivalent_durable,
    no_queue,
    run,
    unique,
    wait_until_equal,
)

#: Durable queues that the steps declared; they are deleted at the end.
durable_queues = []


def parameters():
    """Returns what pika needs to connect to AMQP_URL."""
    return pika.URLParameters(amqp_url())


@contextlib.contextmanager
def connected():
    """Opens a connection, and closes it unless the step failed."""
    connection = pika.BlockingConnection(parameters())
    yield connection
    connection.close()


def declare(channel, label):
    """Declares a queue that lives as long as its connection; returns its name."""
    name = unique(label)
    channel.queue_declare(name, exclusive=True)
    return name


def ready_messages(channel, queue):
    """Returns how many messages wait in the queue, from a passive declare."""
    return channel.queue_declare(queue, passive=True).method.message_count


def wait_for_ready(channel, queue, count):
    """Waits until `count` messages wait in the queue.

    A broker may count before it enqueued all that came before on the channel.
    """
    wait_until_equal(lambda: ready_messages(channel, queue), count, "the message count")


def send(channel, queue, body, properties=None):
    """Publishes a message to a queue through the default exchange."""
    channel.basic_publish("", queue, body, properties)


def consume(channel, queue, auto_ack=False):
    """Starts a consumer; returns the list that grows as messages come."""
    received = []
    channel.basic_consume(
        queue,
        on_message_callback=lambda _channel, method, properties, body: received.append(
            (method, properties, body)
        ),
        auto_ack=auto_ack,
    )
    return received


def wait_for(connection, received, count):
    """Serves the connection until `count` messages came."""
    deadline = time.monotonic() + WAIT
    while len(received) < count:
        if time.monotonic() >= deadline:
            raise StepFailed(f"{len(received)} of {count} messages came within {WAIT:.0f} s")
        connection.process_data_events(time_limit=0.1)


def check_channel_error(connection, action, code, *parts, prefix=""):
    """Checks that `action` closes its channel with `code`, and only its channel."""
    channel = connection.channel()
    try:
        action(channel)
    except pika.exceptions.ChannelClosedByBroker as error:
        check_error(error.reply_code, error.reply_text, code, *parts, prefix=prefix)
    else:
        raise StepFailed(f"no error came, expected {code}")
    check(channel.is_closed, "the channel is still open after the error")
    declare(connection.channel(), "after-error")


def declare_and_count():
    with connected() as connection:
        channel = connection.channel()
        name = unique("count")
        declared = channel.queue_declare(name, exclusive=True).method
        check_equal(declared.queue, name, "the declared name")
        check_equal(declared.message_count, 0, "the message count of a new queue")
        for number in range(3):
            send(channel, name, b"%d" % number)
        wait_for_ready(channel, name, 3)


def publish_consume_auto_ack():
    with connected() as connection:
        channel = connection.channel()
        queue = declare(channel, "auto-ack")
        received = consume(channel, queue, auto_ack=True)
        for number in range(100):
            send(channel, queue, b"message %d" % number)
        wait_for(connection, received, 100)
        check_equal(
            [body for _, _, body in received],
            [b"message %d" % number for number in range(100)],
            "the sequence of bodies",
        )
        check_equal(
            [method.delivery_tag for method, _, _ in received],
            list(range(1, 101)),
            "the sequence of delivery tags",
        )
        # Nothing is left to acknowledge, so nothing returns to the queue.
        channel.close()
        check_equal(ready_messages(connection.channel(), queue), 0, "the message count")


def consume_manual_ack_prefetch():
    with connected() as connection:
        channel = connection.channel()
        queue = declare(channel, "prefetch")
        send(channel, queue, b"first")
        send(channel, queue, b"second")
        wait_for_ready(channel, queue, 2)
        channel.basic_qos(prefetch_count=1)
        received = consume(channel, queue)
        wait_for(connection, received, 1)
        check_equal(received[0][2], b"first", "the first body")
        # The broker answers on the channel after all that it sent on it before.
        check_equal(ready_messages(channel, queue), 1, "the message count before the ack")
        connection.process_data_events(time_limit=0)
        check_equal(len(received), 1, "the number of deliveries before the ack")
        channel.basic_ack(received[0][0].delivery_tag)
        wait_for(connection, received, 2)
        check_equal(received[1][2], b"second", "the second body")
        channel.basic_ack(received[1][0].delivery_tag)
        channel.close()
        check_equal(ready_messages(connection.channel(), queue), 0, "the message count")


def confirms():
    with connected() as connection:
        channel = connection.channel()
        queue = declare(channel, "confirms")
        channel.confirm_delivery()
        for number in range(100):
            # Returns once the broker confirmed the message, raises if it refused.
            send(channel, queue, b"message %d" % number)
        check_equal(ready_messages(channel, queue), 100, "the message count")


def mandatory_return():
    with connected() as connection:
        channel = connection.channel()
        channel.confirm_delivery()
        queue = declare(channel, "mandatory")
        missing = unique("missing")
        # pika raises this once the return and then the confirm have come.
        try:
            channel.basic_publish("", missing, b"lost", mandatory=True)
        except pika.exceptions.UnroutableError as error:
            returned = error.messages
        else:
            raise StepFailed("the unroutable message was not returned")
        check_equal(len(returned), 1, "the number of returned messages")
        method = returned[0].method
        check_equal(method.reply_code, 312, "the reply code")
        check_equal(method.reply_text, "NO_ROUTE", "the reply text")
        check_equal(method.exchange, "", "the exchange")
        check_equal(method.routing_key, missing, "the routing key")
        check_equal(returned[0].body, b"lost", "the returned body")
        # Neither of these comes back.
        channel.basic_publish("", missing, b"dropped")
        channel.basic_publish("", queue, b"kept", mandatory=True)
        check_equal(ready_messages(channel, queue), 1, "the message count")


def redelivery():
    with connected() as connection:
        channel = connection.channel()
        queue = declare(channel, "redelivery")
        send(channel, queue, b"again")
        received = consume(channel, queue)
        wait_for(connection, received, 1)
        check_equal(received[0][0].redelivered, False, "redelivered of the first delivery")
        channel.basic_nack(received[0][0].delivery_tag, requeue=True)
        wait_for(connection, received, 2)
        check_equal(received[1][2], b"again", "the body after the nack")
        check_equal(received[1][0].redelivered, True, "redelivered after the nack")
        channel.close()
        received = consume(connection.channel(), queue, auto_ack=True)
        wait_for(connection, received, 1)
        check_equal(received[0][2], b"again", "the body after the channel closed")
        check_equal(received[0][0].redelivered, True, "redelivered after the channel closed")


def body_over_several_frames():
    with connected() as connection:
        channel = connection.channel()
        queue = declare(channel, "bodies")
        body = os.urandom(1_000_000)
        for each in (body, b"", b"end"):
            send(channel, queue, each)
        received = consume(channel, queue, auto_ack=True)
        wait_for(connection, received, 3)
        back = received[0][2]
        check(back == body, f"{len(back)} bytes came back, not the same 1000000")
        check_equal(received[1][2], b"", "the empty body")
        check_equal(received[2][2], b"end", "the body after the empty one")


def headers_of_every_table_type():
    # pika writes no floating point number into a table.
    headers = {
        "true": True,
        "false": False,
        "small": 7,
        "negative": -2_000_000_000,
        "long": 9_000_000_000_000,
        "negative long": -9_000_000_000_000,
        "decimal": decimal.Decimal("3.14"),
        "negative decimal": decimal.Decimal("-0.005"),
        "string": "grüße, 메시지",
        "empty string": "",
        "bytes": b"\x00\xff\x80",
        "timestamp": datetime.datetime(2024, 2, 29, 12, 30, 15, tzinfo=datetime.timezone.utc),
        "table": {"inner": {"deep": 1, "text": "x"}, "empty": {}},
        "array": [1, "two", False, None, [3], {"four": 4}],
        "empty array": [],
        "void": None,
    }
    properties = {
        "content_type": "application/x-test",
        "content_encoding": "identity",
        "delivery_mode": 2,
        "priority": 5,
        "correlation_id": "correlation",
        "reply_to": "reply.queue",
        "message_id": "message-1",
        "timestamp": 1_700_000_000,
        "type": "test.type",
        "user_id": "guest",
        "app_id": "pika-steps",
    }
    with connected() as connection:
        channel = connection.channel()
        queue = declare(channel, "headers")
        send(channel, queue, b"x", pika.BasicProperties(headers=headers, **properties))
        send(channel, queue, b"x")
        received = consume(channel, queue, auto_ack=True)
        wait_for(connection, received, 2)
        full, bare = received[0][1], received[1][1]
        for name, value in headers.items():
            check(name in full.headers, f"the header {name!r} is missing")
            check_equal(full.headers[name], value, f"the header {name!r}")
        check_equal(full.headers, headers, "the headers")
        for name, value in properties.items():
            check_equal(getattr(full, name), value, f"the property {name}")
        check_equal(full.expiration, None, "the property expiration")
        for name in ("headers", "expiration", *properties):
            check_equal(getattr(bare, name), None, f"the property {name} of a bare message")


def exchanges_and_bindings():
    with connected() as connection:
        for case in ROUTING_CASES:
            channel = connection.channel()
            exchange = unique(case.kind)
            channel.exchange_declare(exchange, case.kind, auto_delete=True)
            queues = {name: declare(channel, f"{case.kind}-{name}") for name in "ab"}
            for queue, key, arguments in case.bindings:
                channel.queue_bind(queues[queue], exchange, key, arguments)

            def publish(key, headers, body):
                properties = pika.BasicProperties(headers=headers)
                channel.basic_publish(exchange, key, body, properties)

            def drain(queue):
                bodies = []
                while True:
                    method, _, body = channel.basic_get(queues[queue], auto_ack=True)
                    if method is None:
                        return bodies
                    bodies.append(body)

            check_routing(case, publish, drain, case.messages)
            queue, key, arguments = case.unbound
            channel.queue_unbind(queues[queue], exchange, key, arguments)
            check_routing(case, publish, drain, case.after)


def error_403_access_refused():
    with connected() as connection:
        check_channel_error(
            connection,
            lambda channel: channel.queue_declare("amq." + unique("reserved"), exclusive=True),
            403,
            prefix="ACCESS_REFUSED",
        )


def error_404_not_found():
    missing = unique("missing")
    with connected() as connection:
        check_channel_error(
            connection,
            lambda channel: channel.queue_declare(missing, passive=True),
            404,
            prefix=no_queue(missing),
        )


def error_405_resource_locked():
    with connected() as owner, connected() as other:
        queue = declare(owner.channel(), "locked")
        for action in (
            lambda channel: channel.queue_declare(queue, passive=True),
            lambda channel: channel.basic_consume(queue, lambda *_: None),
        ):
            check_channel_error(other, action, 405, f"'{queue}'", prefix="RESOURCE_LOCKED")


def error_406_precondition_failed():
    queue = unique("durable")
    durable_queues.append(queue)
    with connected() as connection:
        connection.channel().queue_declare(queue, durable=True)
        check_channel_error(
            connection,
            lambda channel: channel.queue_declare(queue, durable=False),
            406,
            inequivalent_durable(queue),
            prefix="PRECONDITION_FAILED",
        )
        # The same declaration is no error.
        connection.channel().queue_declare(queue, durable=True)


def error_530_not_allowed():
    elsewhere = parameters()
    elsewhere.virtual_host = unique("no-vhost")
    try:
        pika.BlockingConnection(elsewhere)
    except pika.exceptions.ProbableAccessDeniedError as error:
        # pika wraps what the broker said in this error of its own, as text only.
        said = str(error)
        for part in ("(530)", "NOT_ALLOWED", "vhost", elsewhere.virtual_host, "not found"):
            check(part in said, f"the error text {said!r} does not contain {part!r}")
    else:
        raise StepFailed("an unknown virtual host was opened")


def delete_durable_queues():
    with connected() as connection:
        for queue in durable_queues:
            connection.channel().queue_delete(queue)


if __name__ == "__main__":
    run(
        [
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
        ],
        cleanup=delete_durable_queues,
    )
