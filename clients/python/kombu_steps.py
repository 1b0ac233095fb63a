"""The client scenario with Kombu, over its amqp transport (py-amqp).

Run: AMQP_URL=amqp://guest:guest@127.0.0.1:5672/%2F python kombu_steps.py
"""

import contextlib
import datetime
import decimal
import os
import socket
import time

import amqp.exceptions
from kombu import Connection, Consumer, Exchange, Producer, Queue

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

#: Marks a body as plain bytes, which Kombu sends and gives back as they are.
RAW = {"content_type": "application/octet-stream", "content_encoding": "binary"}


@contextlib.contextmanager
def connected(**transport_options):
    """Opens a connection, and closes it unless the step failed."""
    connection = Connection(amqp_url(), connect_timeout=WAIT, transport_options=transport_options)
    connection.connect()
    yield connection
    connection.release()


def declare(channel, label):
    """Declares a queue that ends with its connection or with its last consumer.

    Kombu makes every exclusive queue an auto-delete queue as well.
    """
    queue = Queue(unique(label), exclusive=True, durable=False, channel=channel)
    queue.declare()
    return queue


def declare_durable(channel, label):
    """Declares a queue that outlives its consumers and is deleted at the end."""
    queue = Queue(unique(label), durable=True, channel=channel)
    durable_queues.append(queue.name)
    queue.declare()
    return queue


def ready_messages(channel, queue):
    """Returns how many messages wait in the queue, from a passive declare."""
    return queue.bind(channel).queue_declare(passive=True).message_count


def wait_for_ready(channel, queue, count):
    """Waits until `count` messages wait in the queue.

    A broker may count before it enqueued all that came before on the channel.
    """
    wait_until_equal(lambda: ready_messages(channel, queue), count, "the message count")


def consume(channel, queue, no_ack=False):
    """Starts a consumer; returns the list that grows as messages come."""
    received = []
    consumer = Consumer(channel, [queue], on_message=received.append, no_ack=no_ack)
    consumer.consume()
    return received


def wait_for(connection, received, count):
    """Serves the connection until `count` messages came."""
    deadline = time.monotonic() + WAIT
    while len(received) < count:
        if time.monotonic() >= deadline:
            raise StepFailed(f"{len(received)} of {count} messages came within {WAIT:.0f} s")
        with contextlib.suppress(socket.timeout):
            connection.drain_events(timeout=0.1)


def check_channel_error(connection, action, error_class, code, *parts, prefix=""):
    """Checks that `action` closes its channel with `code`, and only its channel.

    The client opens a channel again by itself once the broker closed it.
    """
    channel = connection.channel()
    try:
        action(channel)
    except error_class as error:
        check_error(error.reply_code, error.reply_text, code, *parts, prefix=prefix)
    else:
        raise StepFailed(f"no error came, expected {code}")
    declare(channel, "after-error")
    declare(connection.channel(), "after-error")


def declare_and_count():
    with connected() as connection:
        channel = connection.channel()
        queue = Queue(unique("count"), exclusive=True, durable=False, channel=channel)
        check_equal(queue.declare(), queue.name, "the declared name")
        check_equal(ready_messages(channel, queue), 0, "the message count of a new queue")
        producer = Producer(channel)
        for number in range(3):
            producer.publish({"number": number}, routing_key=queue.name)
        wait_for_ready(channel, queue, 3)


def publish_consume_auto_ack():
    with connected() as connection:
        channel = connection.channel()
        queue = declare_durable(channel, "auto-ack")
        received = consume(channel, queue, no_ack=True)
        producer = Producer(channel)
        for number in range(100):
            producer.publish({"number": number}, routing_key=queue.name)
        wait_for(connection, received, 100)
        check_equal(
            [message.payload for message in received],
            [{"number": number} for number in range(100)],
            "the sequence of bodies",
        )
        check_equal(
            [message.delivery_tag for message in received],
            list(range(1, 101)),
            "the sequence of delivery tags",
        )
        # Nothing is left to acknowledge, so nothing returns to the queue.
        channel.close()
        check_equal(ready_messages(connection.channel(), queue), 0, "the message count")


def consume_manual_ack_prefetch():
    with connected() as connection:
        channel = connection.channel()
        queue = declare_durable(channel, "prefetch")
        producer = Producer(channel)
        producer.publish("first", routing_key=queue.name)
        producer.publish("second", routing_key=queue.name)
        wait_for_ready(channel, queue, 2)
        received = []
        consumer = Consumer(channel, [queue], on_message=received.append)
        consumer.qos(prefetch_count=1)
        consumer.consume()
        wait_for(connection, received, 1)
        check_equal(received[0].payload, "first", "the first body")
        # The broker answers on the channel after all that it sent on it before.
        check_equal(ready_messages(channel, queue), 1, "the message count before the ack")
        check_equal(len(received), 1, "the number of deliveries before the ack")
        received[0].ack()
        wait_for(connection, received, 2)
        check_equal(received[1].payload, "second", "the second body")
        received[1].ack()
        channel.close()
        check_equal(ready_messages(connection.channel(), queue), 0, "the message count")


def confirms():
    with connected(confirm_publish=True) as connection:
        channel = connection.channel()
        queue = declare(channel, "confirms")
        acks = []
        channel.events["basic_ack"].add(lambda tag, _multiple: acks.append(tag))
        producer = Producer(channel)
        for number in range(100):
            # Returns once the broker confirmed the message, raises if it refused.
            producer.publish({"number": number}, routing_key=queue.name, confirm_timeout=WAIT)
        check_equal(acks, list(range(1, 101)), "the sequence of confirmed delivery tags")
        check_equal(ready_messages(channel, queue), 100, "the message count")


def mandatory_return():
    with connected(confirm_publish=True) as connection:
        channel = connection.channel()
        queue = declare(channel, "mandatory")
        missing = unique("missing")
        events = []
        channel.events["basic_ack"].add(lambda tag, _multiple: events.append(f"ack {tag}"))
        producer = Producer(channel, on_return=lambda *returned: events.append(returned))
        producer.publish(
            b"lost", routing_key=missing, mandatory=True, confirm_timeout=WAIT, **RAW
        )
        check_equal(len(events), 2, "the number of answers to the unroutable message")
        check(isinstance(events[0], tuple), f"{events[0]!r} came first, expected a return")
        error, exchange, routing_key, message = events[0]
        check_equal(error.reply_code, 312, "the reply code")
        check_equal(error.reply_text, "NO_ROUTE", "the reply text")
        check_equal(exchange, "", "the exchange")
        check_equal(routing_key, missing, "the routing key")
        check_equal(bytes(message.body), b"lost", "the returned body")
        check_equal(events[1], "ack 1", "the answer after the return")
        # Neither of these comes back.
        producer.publish(b"dropped", routing_key=missing, confirm_timeout=WAIT, **RAW)
        producer.publish(
            b"kept", routing_key=queue.name, mandatory=True, confirm_timeout=WAIT, **RAW
        )
        check_equal(events[2:], ["ack 2", "ack 3"], "the later answers")
        check_equal(ready_messages(channel, queue), 1, "the message count")


def redelivery():
    with connected() as connection:
        channel = connection.channel()
        queue = declare_durable(channel, "redelivery")
        Producer(channel).publish("again", routing_key=queue.name)
        received = consume(channel, queue)
        wait_for(connection, received, 1)
        first = received[0].delivery_info
        check_equal(first["redelivered"], False, "redelivered of the first delivery")
        received[0].requeue()
        wait_for(connection, received, 2)
        check_equal(received[1].payload, "again", "the body after the reject")
        second = received[1].delivery_info
        check_equal(second["redelivered"], True, "redelivered after the reject")
        channel.close()
        received = consume(connection.channel(), queue, no_ack=True)
        wait_for(connection, received, 1)
        check_equal(received[0].payload, "again", "the body after the channel closed")
        third = received[0].delivery_info
        check_equal(third["redelivered"], True, "redelivered after the channel closed")


def body_over_several_frames():
    with connected() as connection:
        channel = connection.channel()
        queue = declare(channel, "bodies")
        producer = Producer(channel)
        body = os.urandom(1_000_000)
        for each in (body, b"", b"end"):
            producer.publish(each, routing_key=queue.name, **RAW)
        received = consume(channel, queue, no_ack=True)
        wait_for(connection, received, 3)
        back = [bytes(message.body or b"") for message in received]
        check(back[0] == body, f"{len(back[0])} bytes came back, not the same 1000000")
        check_equal(back[1], b"", "the empty body")
        check_equal(back[2], b"end", "the body after the empty one")


def headers_of_every_table_type():
    # The client writes integers in 32 or 64 bits and floats in double precision.
    # It writes bytes as a long string, and reads a long string that is not
    # UTF-8 as bytes. It gives a timestamp back without a time zone.
    headers = {
        "true": True,
        "false": False,
        "small": 7,
        "negative": -2_000_000_000,
        "long": 9_000_000_000_000,
        "negative long": -9_000_000_000_000,
        "double": -1234.56789,
        "decimal": decimal.Decimal("3.14"),
        "negative decimal": decimal.Decimal("-0.005"),
        "string": "grüße, 메시지",
        "empty string": "",
        "bytes": b"\x00\xff\x80",
        "timestamp": datetime.datetime(2024, 2, 29, 12, 30, 15),
        "table": {"inner": {"deep": 1, "text": "x"}, "empty": {}},
        "array": [1, "two", False, None, [3], {"four": 4}],
        "empty array": [],
        "void": None,
    }
    properties = {
        "content_type": "application/x-test",
        "content_encoding": "binary",
        "delivery_mode": 2,
        "priority": 5,
        "correlation_id": "correlation",
        "reply_to": "reply.queue",
        "message_id": "message-1",
        "timestamp": 1_700_000_000,
        "type": "test.type",
        "user_id": "guest",
        "app_id": "kombu-steps",
    }
    with connected() as connection:
        channel = connection.channel()
        queue = declare(channel, "headers")
        Producer(channel).publish(b"x", routing_key=queue.name, headers=headers, **properties)
        received = consume(channel, queue, no_ack=True)
        wait_for(connection, received, 1)
        message = received[0]
        for name, value in headers.items():
            check(name in message.headers, f"the header {name!r} is missing")
            check_equal(message.headers[name], value, f"the header {name!r}")
        check_equal(message.headers, headers, "the headers")
        for name, value in properties.items():
            check_equal(message.properties.get(name), value, f"the property {name}")
        check("expiration" not in message.properties, "the property expiration is set")


def exchanges_and_bindings():
    with connected() as connection:
        for case in ROUTING_CASES:
            channel = connection.channel()
            exchange = Exchange(
                unique(case.kind), case.kind, durable=False, auto_delete=True, channel=channel
            )
            exchange.declare()
            queues = {name: declare(channel, f"{case.kind}-{name}") for name in "ab"}
            producer = Producer(channel, exchange=exchange, auto_declare=False)
            for queue, key, arguments in case.bindings:
                queues[queue].bind_to(exchange, key, arguments)

            def publish(key, headers, body):
                producer.publish(body, routing_key=key, headers=headers, **RAW)

            def drain(queue):
                bodies = []
                while (message := queues[queue].get(no_ack=True)) is not None:
                    bodies.append(bytes(message.body))
                return bodies

            check_routing(case, publish, drain, case.messages)
            queue, key, arguments = case.unbound
            queues[queue].unbind_from(exchange, key, arguments)
            check_routing(case, publish, drain, case.after)


def error_403_access_refused():
    reserved = Queue("amq." + unique("reserved"), exclusive=True, durable=False)
    with connected() as connection:
        check_channel_error(
            connection,
            lambda channel: reserved.bind(channel).declare(),
            amqp.exceptions.AccessRefused,
            403,
            prefix="ACCESS_REFUSED",
        )


def error_404_not_found():
    missing = Queue(unique("missing"))
    with connected() as connection:
        check_channel_error(
            connection,
            lambda channel: missing.bind(channel).queue_declare(passive=True),
            amqp.exceptions.NotFound,
            404,
            prefix=no_queue(missing.name),
        )


def error_405_resource_locked():
    with connected() as owner, connected() as other:
        queue = declare(owner.channel(), "locked")
        for action in (
            lambda channel: queue.bind(channel).queue_declare(passive=True),
            lambda channel: queue.bind(channel).consume(callback=lambda _message: None),
        ):
            check_channel_error(
                other,
                action,
                amqp.exceptions.ResourceLocked,
                405,
                f"'{queue.name}'",
                prefix="RESOURCE_LOCKED",
            )


def error_406_precondition_failed():
    with connected() as connection:
        name = declare_durable(connection.channel(), "durable").name
        check_channel_error(
            connection,
            lambda channel: Queue(name, durable=False, channel=channel).declare(),
            amqp.exceptions.PreconditionFailed,
            406,
            inequivalent_durable(name),
            prefix="PRECONDITION_FAILED",
        )
        # The same declaration is no error.
        Queue(name, durable=True, channel=connection.channel()).declare()


def error_530_not_allowed():
    elsewhere = Connection(amqp_url(), connect_timeout=WAIT)
    elsewhere.virtual_host = unique("no-vhost")
    try:
        elsewhere.connect()
    except amqp.exceptions.NotAllowed as error:
        check_error(
            error.reply_code,
            error.reply_text,
            530,
            "vhost",
            elsewhere.virtual_host,
            "not found",
            prefix="NOT_ALLOWED",
        )
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
