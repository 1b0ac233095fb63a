"""The client scenario with aio-pika.

Run: AMQP_URL=amqp://guest:guest@127.0.0.1:5672/%2F python aio_pika_steps.py
"""

import asyncio
import contextlib
import datetime
import decimal
import functools
import os

import aio_pika
import aio_pika.exceptions
import aiormq.exceptions
from pamqp import commands
from yarl import URL

from steps import (
    ROUTING_CASES,
    WAIT,
    StepFailed,
    amqp_url,
    check,
    check_equal,
    check_error,
    inequivalent_durable,
    no_queue,
    run,
    unique,
)

#: Durable queues that the steps declared; they are deleted at the end.
durable_queues = []

#: aio-pika shows a channel error as one class for each code, with the text only.
CODES = {
    aiormq.exceptions.ChannelAccessRefused: 403,
    aiormq.exceptions.ChannelNotFoundEntity: 404,
    aiormq.exceptions.ChannelLockedResource: 405,
    aiormq.exceptions.ChannelPreconditionFailed: 406,
}


def synchronous(step):
    """Turns a coroutine function into a step that runs in an event loop of its own."""

    @functools.wraps(step)
    def run_in_loop():
        asyncio.run(step())

    return run_in_loop


@contextlib.asynccontextmanager
async def connected():
    """Opens a connection, and closes it unless the step failed."""
    connection = await aio_pika.connect(amqp_url(), timeout=WAIT)
    yield connection
    await connection.close()


async def declare(channel, label):
    """Declares a queue that lives as long as its connection."""
    return await channel.declare_queue(unique(label), exclusive=True)


async def ready_messages(channel, queue):
    """Returns how many messages wait in the queue, from a passive declare."""
    declared = await channel.declare_queue(queue.name, passive=True)
    return declared.declaration_result.message_count


async def send(channel, queue, body, **properties):
    """Publishes a message to a queue through the default exchange."""
    return await channel.default_exchange.publish(
        aio_pika.Message(body, **properties), routing_key=queue.name
    )


async def consume(queue, no_ack=False):
    """Starts a consumer; returns the asyncio.Queue that its messages come into."""
    received = asyncio.Queue()
    await queue.consume(received.put, no_ack=no_ack)
    return received


async def next_message(received):
    """Returns the next message that comes to a consumer."""
    try:
        return await asyncio.wait_for(received.get(), WAIT)
    except asyncio.TimeoutError:
        raise StepFailed(f"no message came within {WAIT:.0f} s") from None


async def check_channel_error(connection, action, code, *parts, prefix=""):
    """Checks that `action` closes its channel with `code`, and only its channel."""
    channel = await connection.channel()
    try:
        await action(channel)
    except tuple(CODES) as error:
        check_error(CODES[type(error)], str(error.args[0]), code, *parts, prefix=prefix)
    else:
        raise StepFailed(f"no error came, expected {code}")
    check(channel.is_closed, "the channel is still open after the error")
    await declare(await connection.channel(), "after-error")


@synchronous
async def declare_and_count():
    async with connected() as connection:
        channel = await connection.channel()
        queue = await declare(channel, "count")
        check_equal(queue.declaration_result.queue, queue.name, "the declared name")
        check_equal(queue.declaration_result.message_count, 0, "the message count of a new queue")
        for number in range(3):
            await send(channel, queue, b"%d" % number)
        check_equal(await ready_messages(channel, queue), 3, "the message count")


@synchronous
async def publish_consume_auto_ack():
    async with connected() as connection:
        channel = await connection.channel(publisher_confirms=False)
        queue = await declare(channel, "auto-ack")
        received = await consume(queue, no_ack=True)
        for number in range(100):
            await send(channel, queue, b"message %d" % number)
        messages = [await next_message(received) for _ in range(100)]
        check_equal(
            [message.body for message in messages],
            [b"message %d" % number for number in range(100)],
            "the sequence of bodies",
        )
        check_equal(
            [message.delivery_tag for message in messages],
            list(range(1, 101)),
            "the sequence of delivery tags",
        )
        # Nothing is left to acknowledge, so nothing returns to the queue.
        await channel.close()
        left = await ready_messages(await connection.channel(), queue)
        check_equal(left, 0, "the message count")


@synchronous
async def consume_manual_ack_prefetch():
    async with connected() as connection:
        channel = await connection.channel()
        queue = await declare(channel, "prefetch")
        await send(channel, queue, b"first")
        await send(channel, queue, b"second")
        await channel.set_qos(prefetch_count=1)
        received = await consume(queue)
        first = await next_message(received)
        check_equal(first.body, b"first", "the first body")
        # The broker answers on the channel after all that it sent on it before.
        waiting = await ready_messages(channel, queue)
        check_equal(waiting, 1, "the message count before the ack")
        check_equal(received.qsize(), 0, "the number of further deliveries before the ack")
        await first.ack()
        second = await next_message(received)
        check_equal(second.body, b"second", "the second body")
        await second.ack()
        await channel.close()
        left = await ready_messages(await connection.channel(), queue)
        check_equal(left, 0, "the message count")


@synchronous
async def confirms():
    async with connected() as connection:
        channel = await connection.channel(publisher_confirms=True)
        queue = await declare(channel, "confirms")
        # All 100 are on their way before the first confirm is waited for.
        publishes = [send(channel, queue, b"message %d" % number) for number in range(100)]
        for answer in await asyncio.wait_for(asyncio.gather(*publishes), WAIT):
            check(isinstance(answer, commands.Basic.Ack), f"{answer!r} came, expected an ack")
        check_equal(await ready_messages(channel, queue), 100, "the message count")


@synchronous
async def mandatory_return():
    async with connected() as connection:
        channel = await connection.channel(publisher_confirms=True)
        queue = await declare(channel, "mandatory")
        missing = unique("missing")
        # aio-pika gives the returned message as the answer to the publish. It
        # does not show the confirm that follows.
        returned = await asyncio.wait_for(
            channel.default_exchange.publish(
                aio_pika.Message(b"lost"), routing_key=missing, mandatory=True
            ),
            WAIT,
        )
        delivery = getattr(returned, "delivery", None)
        check(isinstance(delivery, commands.Basic.Return), f"{returned!r} came, expected a return")
        check_equal(delivery.reply_code, 312, "the reply code")
        check_equal(delivery.reply_text, "NO_ROUTE", "the reply text")
        check_equal(delivery.exchange, "", "the exchange")
        check_equal(delivery.routing_key, missing, "the routing key")
        check_equal(returned.body, b"lost", "the returned body")
        # Neither of these comes back.
        for key, mandatory in ((missing, False), (queue.name, True)):
            answer = await asyncio.wait_for(
                channel.default_exchange.publish(
                    aio_pika.Message(b"kept"), routing_key=key, mandatory=mandatory
                ),
                WAIT,
            )
            check(isinstance(answer, commands.Basic.Ack), f"{answer!r} came, expected an ack")
        check_equal(await ready_messages(channel, queue), 1, "the message count")


@synchronous
async def redelivery():
    async with connected() as connection:
        channel = await connection.channel()
        queue = await declare(channel, "redelivery")
        await send(channel, queue, b"again")
        received = await consume(queue)
        message = await next_message(received)
        check_equal(message.redelivered, False, "redelivered of the first delivery")
        await message.nack(requeue=True)
        message = await next_message(received)
        check_equal(message.body, b"again", "the body after the nack")
        check_equal(message.redelivered, True, "redelivered after the nack")
        await channel.close()
        channel = await connection.channel()
        same_queue = await channel.get_queue(queue.name)
        message = await next_message(await consume(same_queue, no_ack=True))
        check_equal(message.body, b"again", "the body after the channel closed")
        check_equal(message.redelivered, True, "redelivered after the channel closed")


@synchronous
async def body_over_several_frames():
    async with connected() as connection:
        channel = await connection.channel()
        queue = await declare(channel, "bodies")
        body = os.urandom(1_000_000)
        for each in (body, b"", b"end"):
            await send(channel, queue, each)
        received = await consume(queue, no_ack=True)
        back = (await next_message(received)).body
        check(back == body, f"{len(back)} bytes came back, not the same 1000000")
        check_equal((await next_message(received)).body, b"", "the empty body")
        check_equal((await next_message(received)).body, b"end", "the body after the empty one")


@synchronous
async def headers_of_every_table_type():
    # The client chooses the smallest integer type that holds a value, writes
    # every float in single precision and byte arrays as bytearray.
    headers = {
        "true": True,
        "false": False,
        "int 8": -100,
        "int 16": -30_000,
        "unsigned 16": 60_000,
        "int 32": -2_000_000_000,
        "unsigned 32": 4_000_000_000,
        "int 64": 9_000_000_000_000,
        "negative int 64": -9_000_000_000_000,
        "float": -1.5,
        "decimal": decimal.Decimal("3.14"),
        "negative decimal": decimal.Decimal("-0.005"),
        "string": "grüße, 메시지",
        "empty string": "",
        "bytes": bytearray(b"\x00\xff\x80"),
        "timestamp": datetime.datetime(2024, 2, 29, 12, 30, 15, tzinfo=datetime.timezone.utc),
        "table": {"inner": {"deep": 1, "text": "x"}, "empty": {}},
        "array": [1, "two", False, None, [3], {"four": 4}],
        "empty array": [],
        "void": None,
    }
    properties = {
        "content_type": "application/x-test",
        "content_encoding": "identity",
        "delivery_mode": aio_pika.DeliveryMode.PERSISTENT,
        "priority": 5,
        "correlation_id": "correlation",
        "reply_to": "reply.queue",
        "message_id": "message-1",
        "timestamp": datetime.datetime(2023, 11, 14, 22, 13, 20, tzinfo=datetime.timezone.utc),
        "type": "test.type",
        "user_id": "guest",
        "app_id": "aio-pika-steps",
    }
    async with connected() as connection:
        channel = await connection.channel()
        queue = await declare(channel, "headers")
        await send(channel, queue, b"x", headers=headers, **properties)
        message = await next_message(await consume(queue, no_ack=True))
        for name, value in headers.items():
            check(name in message.headers, f"the header {name!r} is missing")
            check_equal(message.headers[name], value, f"the header {name!r}")
        check_equal(message.headers, headers, "the headers")
        for name, value in properties.items():
            check_equal(getattr(message, name), value, f"the property {name}")
        check_equal(message.expiration, None, "the property expiration")


@synchronous
async def exchanges_and_bindings():
    async with connected() as connection:
        for case in ROUTING_CASES:
            channel = await connection.channel()
            exchange = await channel.declare_exchange(
                unique(case.kind), case.kind, auto_delete=True
            )
            queues = {name: await declare(channel, f"{case.kind}-{name}") for name in "ab"}
            for queue, key, arguments in case.bindings:
                await queues[queue].bind(exchange, key, arguments=arguments)
            await check_routing(case, exchange, queues, case.messages)
            queue, key, arguments = case.unbound
            await queues[queue].unbind(exchange, key, arguments=arguments)
            await check_routing(case, exchange, queues, case.after)


async def check_routing(case, exchange, queues, messages):
    """Publishes each message and checks that exactly the right queues got it."""
    for number, (key, headers, expected) in enumerate(messages):
        body = b"message %d" % number
        await exchange.publish(aio_pika.Message(body, headers=headers), key, mandatory=False)
        for name, queue in queues.items():
            bodies = []
            while (message := await queue.get(no_ack=True, fail=False)) is not None:
                bodies.append(message.body)
            check_equal(
                bodies,
                [body] if name in expected else [],
                f"what queue {name} of the {case.kind} exchange holds after a message "
                f"with key {key!r} and headers {headers}",
            )


@synchronous
async def error_403_access_refused():
    async with connected() as connection:
        await check_channel_error(
            connection,
            lambda channel: channel.declare_queue("amq." + unique("reserved"), exclusive=True),
            403,
            prefix="ACCESS_REFUSED",
        )


@synchronous
async def error_404_not_found():
    missing = unique("missing")
    async with connected() as connection:
        await check_channel_error(
            connection,
            lambda channel: channel.declare_queue(missing, passive=True),
            404,
            prefix=no_queue(missing),
        )


@synchronous
async def error_405_resource_locked():
    async def consume_from(channel):
        # This gives an object for the queue without asking the broker.
        queue = await channel.get_queue(name, ensure=False)
        await queue.consume(lambda _message: None)

    async with connected() as owner, connected() as other:
        name = (await declare(await owner.channel(), "locked")).name
        for action in (
            lambda channel: channel.declare_queue(name, passive=True),
            consume_from,
        ):
            await check_channel_error(other, action, 405, f"'{name}'", prefix="RESOURCE_LOCKED")


@synchronous
async def error_406_precondition_failed():
    name = unique("durable")
    durable_queues.append(name)
    async with connected() as connection:
        await (await connection.channel()).declare_queue(name, durable=True)
        await check_channel_error(
            connection,
            lambda channel: channel.declare_queue(name, durable=False),
            406,
            inequivalent_durable(name),
            prefix="PRECONDITION_FAILED",
        )
        # The same declaration is no error.
        await (await connection.channel()).declare_queue(name, durable=True)


@synchronous
async def error_530_not_allowed():
    missing = unique("no-vhost")
    try:
        await aio_pika.connect(URL(amqp_url()).with_path(f"/{missing}"), timeout=WAIT)
    except aiormq.exceptions.InvalidFrameError as error:
        # While the connection opens, the client shows that the broker closed it
        # instead, but neither the code 530 nor the text.
        said = str(error)
        for part in ("Connection.OpenOk", "Connection.Close"):
            check(part in said, f"the error text {said!r} does not contain {part!r}")
    else:
        raise StepFailed("an unknown virtual host was opened")


@synchronous
async def delete_durable_queues():
    async with connected() as connection:
        for queue in durable_queues:
            await (await connection.channel()).queue_delete(queue)


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
