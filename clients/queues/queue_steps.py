"""What queues do by themselves, end to end: dead letters, limits, expiry, priorities, counts.

Most steps use pika; where another library shows it in another way, there is a
step with aio-pika or Kombu, too.

Run: AMQP_URL=amqp://guest:guest@127.0.0.1:5672/%2F python queue_steps.py

The last three steps kill a broker of their own. LEVERET_BINARY says which program
that is, and LEVERET_SCRATCH where its data goes.
"""

import asyncio
import contextlib
import datetime
import pathlib
import random
import subprocess
import sys
import time

FOLDER = pathlib.Path(__file__).resolve().parent
sys.path.insert(0, str(FOLDER.parent / "python"))

import aio_pika  # noqa: E402
import aio_pika.exceptions  # noqa: E402
import kombu  # noqa: E402
import pika  # noqa: E402
import pika.exceptions  # noqa: E402
from pamqp import commands  # noqa: E402

from own_broker import kill_all, own_broker, started  # noqa: E402
from pika_steps import (  # noqa: E402
    check_channel_error,
    consume,
    ready_messages,
    wait_for,
)
from steps import (  # noqa: E402
    WAIT,
    StepFailed,
    amqp_url,
    check,
    check_equal,
    run,
    unique,
    vhost,
    wait_until_equal,
)

#: Seconds that something may happen after its time, on a busy machine.
LATE = 2.0

PERSISTENT = pika.DeliveryMode.Persistent.value

#: What outlives its connection in the broker that all steps share; it is deleted at the end.
durable_queues = []
durable_exchanges = []


@contextlib.contextmanager
def connected(url=None):
    """Opens a connection, and closes it unless the step failed."""
    connection = pika.BlockingConnection(pika.URLParameters(url or amqp_url()))
    yield connection
    connection.close()


def confirming(connection):
    """Opens a channel on which `send` returns when the broker has the message."""
    channel = connection.channel()
    channel.confirm_delivery()
    return channel


def declare(channel, label, arguments=None):
    """Declares a durable queue; returns its name."""
    name = unique(label)
    channel.queue_declare(name, durable=True, arguments=arguments)
    durable_queues.append(name)
    return name


def dead_letters_to(queue):
    """Returns the arguments of a queue whose dead letters go straight to another."""
    return {"x-dead-letter-exchange": "", "x-dead-letter-routing-key": queue}


def send(channel, queue, body, **properties):
    """Publishes a persistent message to a queue, which must be there."""
    properties = pika.BasicProperties(delivery_mode=PERSISTENT, **properties)
    channel.basic_publish("", queue, body, properties, mandatory=True)


def check_refused(channel, queue, body):
    """Checks that the broker answers a message with `basic.nack`."""
    try:
        send(channel, queue, body)
    except pika.exceptions.NackError as error:
        check_equal(error.messages, [], "what was returned")
    else:
        raise StepFailed(f"the message {body!r} was confirmed")


def get(channel, queue):
    """Takes one message, and waits for it: a dead letter may come after an answer."""
    deadline = time.monotonic() + WAIT
    while True:
        method, properties, body = channel.basic_get(queue)
        if method is not None:
            return method, properties, body
        check(time.monotonic() < deadline, f"no message came to {queue} within {WAIT:.0f} s")
        time.sleep(0.01)


def bodies(channel, queue):
    """Takes all that waits in a queue now; returns the bodies."""
    found = []
    while (message := channel.basic_get(queue, auto_ack=True))[0] is not None:
        found.append(message[2])
    return found


def check_time(what, since, seconds):
    """Checks that it is so many seconds later now, and not much more."""
    passed = time.monotonic() - since
    check(passed >= seconds, f"{what} after {passed:.3f} s, not {seconds} s: too early")
    check(passed <= seconds + LATE, f"{what} after {passed:.3f} s, not {seconds} s: too late")


def death(queue, reason, count=1, key=None, **more):
    """Returns what `x-death` says about a death in a queue, without its time."""
    return {
        "count": count,
        "exchange": "",
        "queue": queue,
        "reason": reason,
        "routing-keys": [key or queue],
        **{name.replace("_", "-"): value for name, value in more.items()},
    }


def check_deaths(headers, since, *deaths, first=None, others=None):
    """Checks all headers of a dead letter: its deaths, the last one first, and `others`.

    `since` is a time before the first of them. Returns the times that the headers tell.
    """
    check("x-death" in headers, f"there is no x-death in {headers}")
    times, told = [], []
    for entry in headers["x-death"]:
        entry = dict(entry)
        at = entry.pop("time", None)
        check(isinstance(at, datetime.datetime), f"the time of the death is {at!r}")
        # pika and Kombu give it without its zone, which is UTC.
        at = at if at.tzinfo else at.replace(tzinfo=datetime.timezone.utc)
        check(int(since) <= at.timestamp() <= time.time(), f"the time of the death is {at}")
        times.append(at)
        told.append(entry)
    check_equal(told, list(deaths), "x-death")
    expected = dict(others or {})
    for which, one in (("first", first or deaths[-1]), ("last", deaths[0])):
        for name in ("exchange", "queue", "reason"):
            expected[f"x-{which}-death-{name}"] = one[name]
    rest = {name: value for name, value in headers.items() if name != "x-death"}
    check_equal(rest, expected, "the headers beside x-death")
    return times


def retry_queue_brings_a_message_back_after_its_time():
    with connected() as connection:
        channel = confirming(connection)
        waiting = unique("waiting")
        work = declare(channel, "work", dead_letters_to(waiting))
        arguments = {"x-message-ttl": 400, **dead_letters_to(work)}
        channel.queue_declare(waiting, durable=True, arguments=arguments)
        durable_queues.append(waiting)
        since = time.time()
        received = consume(channel, work)
        send(channel, work, b"job", headers={"k": "v"}, message_id="id")
        wait_for(connection, received, 1)
        check_equal(received[0][1].headers, {"k": "v"}, "the headers of the first delivery")
        earlier = None
        for failures in (1, 2):
            rejected_at = time.monotonic()
            channel.basic_reject(received[-1][0].delivery_tag, requeue=False)
            wait_for(connection, received, failures + 1)
            check_time("the message came back", rejected_at, 0.4)
            method, properties, body = received[-1]
            check_equal(body, b"job", "the body")
            check_equal(method.redelivered, False, "redelivered")
            check_equal((method.exchange, method.routing_key), ("", work), "where it was sent")
            check_equal(properties.message_id, "id", "the message id")
            check_equal(properties.delivery_mode, PERSISTENT, "the delivery mode")
            times = check_deaths(
                properties.headers,
                since,
                death(waiting, "expired", failures),
                death(work, "rejected", failures),
                others={"k": "v"},
            )
            # The time is that of the first death for the same reason.
            check_equal(times, earlier or times, "the times of the deaths")
            earlier = times
        channel.basic_ack(received[-1][0].delivery_tag)
        check_equal(ready_messages(channel, waiting), 0, "the messages that wait")
        channel.close()
        check_equal(ready_messages(connection.channel(), work), 0, "the messages to work on")


def dead_letter_tells_its_original_expiration():
    with connected() as connection:
        channel = confirming(connection)
        dead = declare(channel, "dead")
        queue = declare(channel, "short", {"x-message-ttl": 60_000, **dead_letters_to(dead)})
        received = consume(channel, dead, auto_ack=True)
        since, sent_at = time.time(), time.monotonic()
        send(channel, queue, b"x", expiration="300")
        wait_for(connection, received, 1)
        check_time("the message expired", sent_at, 0.3)
        properties = received[0][1]
        # Otherwise it would expire again where it is a dead letter.
        check_equal(properties.expiration, None, "the expiration")
        expired = death(queue, "expired", original_expiration="300")
        check_deaths(properties.headers, since, expired)


def rejected_messages_become_dead_letters_in_their_order():
    with connected() as connection:
        channel = confirming(connection)
        exchange = unique("dlx")
        channel.exchange_declare(exchange, "direct", durable=True)
        durable_exchanges.append(exchange)
        queue = declare(channel, "work", {"x-dead-letter-exchange": exchange})
        dead = declare(channel, "dead")
        # Without a key of its own, a dead letter keeps the one that it had.
        channel.queue_bind(dead, exchange, queue)
        since = time.time()
        for number in range(5):
            send(channel, queue, b"%d" % number, headers={"number": number})
        tags = [get(channel, queue)[0].delivery_tag for _ in range(5)]
        channel.basic_reject(tags[2], requeue=False)
        channel.basic_nack(tags[3], multiple=True, requeue=False)
        channel.basic_ack(tags[4])
        for number in (2, 0, 1, 3):
            method, properties, body = get(channel, dead)
            check_equal(body, b"%d" % number, "the body")
            check_equal((method.exchange, method.routing_key), (exchange, queue), "the way it took")
            others = {"number": number}
            check_deaths(properties.headers, since, death(queue, "rejected"), others=others)
        channel.close()
        check_equal(ready_messages(connection.channel(), queue), 0, "the messages left behind")


def rejected_with_aio_pika():
    async def step():
        connection = await aio_pika.connect(amqp_url(), timeout=WAIT)
        channel = await connection.channel()
        dead = await channel.declare_queue(unique("dead"), exclusive=True)
        queue = await channel.declare_queue(
            unique("work"), exclusive=True, arguments=dead_letters_to(dead.name)
        )
        letters = asyncio.Queue()
        await dead.consume(letters.put, no_ack=True)
        since = time.time()
        message = aio_pika.Message(b"x", headers={"k": 1})
        await channel.default_exchange.publish(message, queue.name)
        await (await queue.get(timeout=WAIT)).reject(requeue=False)
        letter = await asyncio.wait_for(letters.get(), WAIT)
        check_equal(letter.body, b"x", "the body")
        rejected = death(queue.name, "rejected")
        check_deaths(letter.headers, since, rejected, others={"k": 1})
        await connection.close()

    asyncio.run(step())


def rejected_with_kombu():
    with kombu.Connection(amqp_url(), connect_timeout=WAIT) as connection:
        channel = connection.channel()
        dead = kombu.Queue(unique("dead"), exclusive=True, durable=False, channel=channel)
        dead.declare()
        queue = kombu.Queue(
            unique("work"),
            exclusive=True,
            durable=False,
            queue_arguments=dead_letters_to(dead.name),
            channel=channel,
        )
        queue.declare()
        letters = []
        with kombu.Consumer(channel, [dead], on_message=letters.append, no_ack=True):
            since = time.time()
            kombu.Producer(channel).publish({"n": 1}, routing_key=queue.name, headers={"k": 1})
            queue.get().reject()
            deadline = time.monotonic() + WAIT
            while not letters and time.monotonic() < deadline:
                with contextlib.suppress(TimeoutError):
                    connection.drain_events(timeout=0.1)
        check_equal([letter.decode() for letter in letters], [{"n": 1}], "the dead letters")
        rejected = death(queue.name, "rejected")
        check_deaths(letters[0].headers, since, rejected, others={"k": 1})


def message_behind_one_that_stays_expires_on_time():
    with connected() as connection:
        channel = confirming(connection)
        dead = declare(channel, "dead")
        queue = declare(channel, "mixed", dead_letters_to(dead))
        came_at = {}
        channel.basic_consume(
            dead,
            lambda _channel, _method, _properties, body: came_at.update({body: time.monotonic()}),
            auto_ack=True,
        )
        send(channel, queue, b"stays")
        sent_at = {}
        for milliseconds in (900, 300, 600):
            body = b"%d" % milliseconds
            sent_at[body] = time.monotonic()
            send(channel, queue, body, expiration=str(milliseconds))
        wait_for(connection, came_at, 3)
        check_equal(list(came_at), [b"300", b"600", b"900"], "the order of dead letters")
        for body, at in came_at.items():
            passed, expected = at - sent_at[body], int(body) / 1000
            check(expected <= passed <= expected + LATE, f"{body} expired after {passed:.3f} s")
        check_equal(bodies(channel, queue), [b"stays"], "what is left")


def dropped_messages_are_dead_letters_in_their_order():
    with connected() as connection:
        channel = confirming(connection)
        for limit in ({"x-max-length": 2}, {"x-max-length-bytes": 200}):
            dead = declare(channel, "dead")
            queue = declare(channel, "short", {**limit, **dead_letters_to(dead)})
            since = time.time()
            sent = [b"%d" % number + bytes(99) for number in range(5)]
            for body in sent:
                send(channel, queue, body)
            for body in sent[:3]:
                _, properties, dropped = get(channel, dead)
                check_equal(dropped, body, f"what {limit} dropped")
                check_deaths(properties.headers, since, death(queue, "maxlen"))
            check_equal(bodies(channel, queue), sent[3:], f"what {limit} left")
            check_equal(bodies(channel, dead), [], "further dead letters")


def full_queue_refuses_what_is_confirmed_otherwise():
    with connected() as connection:
        channel = confirming(connection)
        dead = declare(channel, "dead")
        for overflow, letters in (("reject-publish", 0), ("reject-publish-dlx", 1)):
            arguments = {"x-max-length": 2, "x-overflow": overflow, **dead_letters_to(dead)}
            queue = declare(channel, "full", arguments)
            since = time.time()
            send(channel, queue, b"1")
            send(channel, queue, b"2")
            check_refused(channel, queue, b"3")
            check_equal(ready_messages(channel, queue), 2, "the messages in the full queue")
            check_equal(channel.basic_get(queue, auto_ack=True)[2], b"1", "the first message")
            send(channel, queue, b"4")
            check_refused(channel, queue, b"5")
            check_equal(bodies(channel, queue), [b"2", b"4"], "the others")
            for body in (b"3", b"5")[: 2 * letters]:
                _, properties, refused = get(channel, dead)
                check_equal(refused, body, "the message that was refused")
                check_deaths(properties.headers, since, death(queue, "maxlen"))
            check_equal(bodies(channel, dead), [], f"further dead letters with {overflow}")


def full_queue_refuses_with_aio_pika():
    async def step():
        connection = await aio_pika.connect(amqp_url(), timeout=WAIT)
        channel = await connection.channel()
        queue = await channel.declare_queue(
            unique("full"),
            exclusive=True,
            arguments={"x-max-length": 3, "x-overflow": "reject-publish"},
        )
        # All at once: the first three are taken, and each answer is for its own message.
        messages = [aio_pika.Message(b"%d" % number) for number in range(6)]
        publishes = [channel.default_exchange.publish(each, queue.name) for each in messages]
        answers = await asyncio.gather(*publishes, return_exceptions=True)
        kinds = []
        for answer in answers:
            if isinstance(answer, aio_pika.exceptions.DeliveryError):
                answer = answer.frame
            kinds.append(type(answer))
        expected = [commands.Basic.Ack] * 3 + [commands.Basic.Nack] * 3
        check_equal(kinds, expected, "the answers")
        left = [(await queue.get(no_ack=True)).body for _ in range(3)]
        check_equal(left, [b"0", b"1", b"2"], "the messages in the queue")
        await connection.close()

    asyncio.run(step())


def priorities_come_in_order():
    with kombu.Connection(amqp_url(), connect_timeout=WAIT) as connection:
        channel = connection.channel()
        queue = kombu.Queue(
            unique("priorities"), exclusive=True, durable=False, max_priority=5, channel=channel
        )
        queue.declare()
        producer = kombu.Producer(channel)
        for body, priority in (
            ("none", None),
            ("two, first", 2),
            ("five", 5),
            ("zero", 0),
            ("two, second", 2),
            ("more than the most", 200),
        ):
            more = {} if priority is None else {"priority": priority}
            producer.publish(body, routing_key=queue.name, **more)
        wait_until_equal(
            lambda: queue.queue_declare(passive=True).message_count, 6, "the message count"
        )
        received = [queue.get(no_ack=True).payload for _ in range(6)]
        expected = ["five", "more than the most", "two, first", "two, second", "none", "zero"]
        check_equal(received, expected, "the order")


def start_holding_consumer(queue, prefetch):
    """Starts a process that takes messages and acks none; a kill ends it and its connection."""
    command = [sys.executable, str(FOLDER / "holding_consumer.py"), queue, str(prefetch)]
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE)
    started.append(process)
    return process


def consumers(channel, queue):
    """Returns how many consumers a queue has, from a passive declare."""
    return channel.queue_declare(queue, passive=True).method.consumer_count


def next_single_active_consumer_takes_over_from_a_killed_one():
    with connected() as connection, connected() as third:
        channel = confirming(connection)
        queue = declare(channel, "single", {"x-single-active-consumer": True})
        first = start_holding_consumer(queue, prefetch=2)
        wait_until_equal(lambda: consumers(channel, queue), 1, "the consumer count")
        received = consume(channel, queue)
        idle = consume(third.channel(), queue)
        for body in (b"1", b"2", b"3", b"4"):
            send(channel, queue, body)
        held = [first.stdout.readline().strip() for _ in range(2)]
        check_equal(held, [b"1", b"2"], "what the first consumer got")
        # It has no credit for the others, and nobody else gets them.
        check_equal(ready_messages(channel, queue), 2, "the message count")
        connection.process_data_events(time_limit=0)
        check_equal(len(received), 0, "the number of deliveries to the second consumer")
        first.kill()
        first.wait()
        wait_for(connection, received, 4)
        check_equal(
            [(body, method.redelivered) for method, _, body in received],
            [(b"1", True), (b"2", True), (b"3", False), (b"4", False)],
            "what the second consumer got",
        )
        check_equal(consumers(channel, queue), 2, "the consumer count after the kill")
        third.process_data_events(time_limit=0)
        check_equal(len(idle), 0, "the number of deliveries to the third consumer")


def late_consumer_is_cancelled_and_its_ack_is_harmless():
    with connected() as connection:
        channel = confirming(connection)
        queue = declare(channel, "late", {"x-consumer-timeout": 500})
        cancelled = []
        channel.add_on_cancel_callback(lambda frame: cancelled.append(frame.method.consumer_tag))
        received = consume(channel, queue)
        sent_at = time.monotonic()
        send(channel, queue, b"slow")
        wait_for(connection, received, 1)
        wait_for(connection, cancelled, 1)
        check_time("the consumer was cancelled", sent_at, 0.5)
        method = received[0][0]
        check_equal(cancelled, [method.consumer_tag], "the consumers that were cancelled")
        declared = channel.queue_declare(queue, passive=True).method
        counts = (declared.message_count, declared.consumer_count)
        check_equal(counts, (1, 0), "the messages and consumers after that")
        channel.basic_ack(method.delivery_tag)
        # The answer on the same channel comes after what the ack does: nothing.
        check_equal(ready_messages(channel, queue), 1, "the message count after the late ack")
        again, _, body = get(channel, queue)
        check_equal((body, again.redelivered), (b"slow", True), "the message that came back")
        channel.basic_ack(again.delivery_tag)
        check_equal(ready_messages(channel, queue), 0, "the message count in the end")
        check(channel.is_open, "the channel is closed")


def quorum_queue_counts_failures_up_to_its_limit():
    with connected() as connection:
        channel = confirming(connection)
        dead = declare(channel, "dead")
        arguments = {"x-queue-type": "quorum", "x-delivery-limit": 2, **dead_letters_to(dead)}
        queue = declare(channel, "quorum", arguments)
        since = time.time()
        received = consume(channel, queue)
        send(channel, queue, b"poison", headers={"k": "v"})
        # A nack gives a message back and is no failure; a reject is one.
        for number, (failures, returned, settle) in enumerate(
            [
                (None, None, channel.basic_nack),
                (None, 1, channel.basic_reject),
                (1, 2, channel.basic_reject),
                (2, 3, channel.basic_reject),
            ],
            start=1,
        ):
            wait_for(connection, received, number)
            method, properties, _ = received[-1]
            counts = {"x-delivery-count": failures, "x-acquired-count": returned}
            counts = {name: count for name, count in counts.items() if count is not None}
            headers = {"k": "v", **counts}
            check_equal(properties.headers, headers, f"the headers of delivery {number}")
            check_equal(method.redelivered, number > 1, f"redelivered of delivery {number}")
            settle(method.delivery_tag, requeue=True)
        _, properties, body = get(channel, dead)
        check_equal(body, b"poison", "the dead letter")
        limit = death(queue, "delivery_limit")
        check_deaths(properties.headers, since, limit, others={"k": "v"})
        connection.process_data_events(time_limit=0)
        check_equal(len(received), 4, "the number of deliveries")


def message_that_kills_its_workers_becomes_a_dead_letter():
    with connected() as connection:
        channel = confirming(connection)
        dead = declare(channel, "dead")
        arguments = {"x-queue-type": "quorum", "x-delivery-limit": 2, **dead_letters_to(dead)}
        queue = declare(channel, "quorum", arguments)
        since = time.time()
        send(channel, queue, b"poison")
        for _ in range(3):
            check_equal(bodies(channel, dead), [], "the dead letters so far")
            worker = start_holding_consumer(queue, prefetch=1)
            check_equal(worker.stdout.readline().strip(), b"poison", "what the worker got")
            worker.kill()
            worker.wait()
        _, properties, body = get(channel, dead)
        check_equal(body, b"poison", "the dead letter")
        check_deaths(properties.headers, since, death(queue, "delivery_limit"))
        check_equal(ready_messages(channel, queue), 0, "the messages left behind")


def dead_letter_that_must_arrive_waits_for_a_queue():
    with connected() as connection:
        channel = confirming(connection)
        exchange = unique("later")
        arguments = {
            "x-queue-type": "quorum",
            "x-max-length": 2,
            "x-overflow": "reject-publish",
            "x-dead-letter-strategy": "at-least-once",
            "x-dead-letter-exchange": exchange,
            "x-dead-letter-routing-key": "dead",
        }
        queue = declare(channel, "careful", arguments)
        since = time.time()
        send(channel, queue, b"1")
        channel.basic_reject(get(channel, queue)[0].delivery_tag, requeue=False)
        send(channel, queue, b"2")
        # It is kept, so it counts for the length, but nobody gets it again.
        check_refused(channel, queue, b"3")
        check_equal(ready_messages(channel, queue), 1, "the message count")
        channel.exchange_declare(exchange, "direct", durable=True)
        durable_exchanges.append(exchange)
        dead = declare(channel, "dead")
        channel.queue_bind(dead, exchange, "dead")
        method, properties, body = get(channel, dead)
        check_equal(body, b"1", "the dead letter")
        check_equal((method.exchange, method.routing_key), (exchange, "dead"), "the way it took")
        check_deaths(properties.headers, since, death(queue, "rejected"))

        def is_taken():
            try:
                send(channel, queue, b"4")
            except pika.exceptions.NackError:
                return False
            return True

        wait_until_equal(is_taken, True, "that there is room again")
        check_equal(bodies(channel, queue), [b"2", b"4"], "what is left")
        check_equal(bodies(channel, dead), [], "further dead letters")


def unused_queue_goes_after_its_time():
    with connected() as connection:
        channel = confirming(connection)
        name = unique("unused")
        declared_at = time.monotonic()
        channel.queue_declare(name, durable=True, arguments={"x-expires": 400})

        def is_there():
            # Publishing is no use of a queue, and a declaration would be one.
            try:
                send(channel, name, b"x")
            except pika.exceptions.UnroutableError:
                return False
            return True

        check(is_there(), "the queue was never there")
        wait_until_equal(is_there, False, "that the queue is there")
        check_time("the queue went", declared_at, 0.4)


def arguments_are_refused_in_rabbitmqs_words():
    with connected() as connection:
        for arguments, fault in (
            ({"x-max-length": -1}, "invalid arg 'x-max-length' for {queue}: {{value_negative,-1}}"),
            ({"x-overflow": "drop-tail"}, "invalid arg 'x-overflow' for {queue}: invalid_overflow"),
            (
                {"x-max-priority": 256},
                "invalid arg 'x-max-priority' for {queue}: {{max_value_exceeded,256}}",
            ),
            (
                {"x-dead-letter-routing-key": "k"},
                "invalid arg 'x-dead-letter-routing-key' for {queue}: "
                "routing_key_but_no_dlx_defined",
            ),
            (
                {"x-single-active-consumer": "yes"},
                "invalid arg 'x-single-active-consumer' for {queue}: "
                "{{unacceptable_type,longstr}}",
            ),
            (
                {"x-delivery-limit": 5},
                "invalid arg 'x-delivery-limit' for {queue} of queue type classic",
            ),
        ):
            name = unique("refused")
            text = fault.format(queue=f"queue '{name}' in vhost '{vhost()}'")
            check_channel_error(
                connection,
                lambda channel: channel.queue_declare(name, durable=True, arguments=arguments),
                406,
                prefix=f"PRECONDITION_FAILED - {text}",
            )
        name = declare(connection.channel(), "limited", {"x-max-length": 1})
        check_channel_error(
            connection,
            lambda channel: channel.queue_declare(
                name, durable=True, arguments={"x-max-length": 2}
            ),
            406,
            prefix=f"PRECONDITION_FAILED - inequivalent arg 'x-max-length' for queue '{name}' "
            f"in vhost '{vhost()}': received '2' but current is '1'",
        )


def counts_and_dead_letters_survive_a_kill():
    with own_broker() as broker:
        connection = pika.BlockingConnection(pika.URLParameters(broker.url))
        channel = confirming(connection)
        dead, quorum, short = "dead", "quorum", "short"
        channel.queue_declare(dead, durable=True)
        arguments = {"x-queue-type": "quorum", "x-delivery-limit": 2, **dead_letters_to(dead)}
        channel.queue_declare(quorum, durable=True, arguments=arguments)
        arguments = {"x-message-ttl": 500, **dead_letters_to(dead)}
        channel.queue_declare(short, durable=True, arguments=arguments)
        since = time.time()
        send(channel, quorum, b"rejected")
        channel.basic_reject(get(channel, quorum)[0].delivery_tag, requeue=False)
        send(channel, quorum, b"failed twice")
        for _ in range(2):
            channel.basic_reject(get(channel, quorum)[0].delivery_tag, requeue=True)
        # The answer says that what came before it is on disk.
        check_equal(ready_messages(channel, quorum), 1, "the message count before the kill")
        send(channel, short, b"expired")
        broker.kill()
        # It expires while nobody is there who could notice.
        time.sleep(0.6)
        broker.start()
        # Once more, so that it is not only in memory what became of all this.
        for _ in range(2):
            with connected(broker.url) as connection:
                channel = confirming(connection)
                counts = {name: ready_messages(channel, name) for name in (dead, quorum, short)}
                check_equal(counts, {dead: 2, quorum: 1, short: 0}, "the message counts")
            broker.restart()
        with connected(broker.url) as connection:
            channel = confirming(connection)
            method, properties, body = get(channel, quorum)
            check_equal((body, method.redelivered), (b"failed twice", True), "what is left")
            expected = {"x-delivery-count": 2, "x-acquired-count": 2}
            check_equal(properties.headers, expected, "the counts after the kills")
            channel.basic_reject(method.delivery_tag, requeue=True)
            letters = [get(channel, dead) for _ in range(3)]
            check_equal(
                [body for _, _, body in letters],
                [b"rejected", b"expired", b"failed twice"],
                "the dead letters",
            )
            for (_, properties, _), (queue, reason) in zip(
                letters,
                [(quorum, "rejected"), (short, "expired"), (quorum, "delivery_limit")],
                strict=True,
            ):
                check_deaths(properties.headers, since, death(queue, reason))
            check_equal(ready_messages(channel, quorum), 0, "the messages left behind")


def kill_splits_no_rejection():
    classic = dead_letters_to("dead")
    careful = {
        "x-queue-type": "quorum",
        "x-overflow": "reject-publish",
        "x-dead-letter-strategy": "at-least-once",
        **classic,
    }
    total = 2000
    sent = [b"%d" % number for number in range(total)]
    for arguments, kill_after in ((classic, 300), (classic, 1200), (careful, 300), (careful, 1200)):
        with own_broker() as broker:
            connection = pika.BlockingConnection(pika.URLParameters(broker.url))
            channel = connection.channel()
            channel.queue_declare("dead", durable=True)
            channel.queue_declare("work", durable=True, arguments=arguments)
            channel.tx_select()
            for body in sent:
                send(channel, "work", body)
            channel.tx_commit()
            # Each is rejected as it comes; the kill finds some of that underway.
            rejecting = connection.channel()
            rejecting.basic_qos(prefetch_count=100)
            count = 0
            for method, _, _ in rejecting.consume("work"):
                rejecting.basic_reject(method.delivery_tag, requeue=False)
                count += 1
                if count == kill_after:
                    break
            broker.restart()
            with connected(broker.url) as after:
                channel = after.channel()
                work = bodies(channel, "work")
                # What was underway may still arrive, if its queue keeps it until then.
                dead, deadline = [], time.monotonic() + WAIT
                while len(dead) < total - len(work) and time.monotonic() < deadline:
                    dead += bodies(channel, "dead")
                what = f"after a kill at {count} of {total} rejections, {arguments}"
                check(0 < len(work) < total, f"{len(work)} are left {what}")
                check_equal(sorted(dead + work), sorted(sent), f"what there is {what}")
                check_equal(work, sent[len(dead) :], f"what is left {what}")
                check_equal(dead, sent[: len(dead)], f"the dead letters {what}")


def delayed_messages_come_on_time_in_their_order_through_a_kill():
    delays = [400 + 3 * number for number in range(1000)]
    random.Random(5).shuffle(delays)
    with own_broker() as broker:
        connection = pika.BlockingConnection(pika.URLParameters(broker.url))
        channel = connection.channel()
        channel.queue_declare("arrived", durable=True)
        arguments = {"x-delayed-type": "topic"}
        channel.exchange_declare("later", "x-delayed-message", durable=True, arguments=arguments)
        channel.queue_bind("arrived", "later", "#.end")
        channel.tx_select()
        for delay in delays:
            properties = pika.BasicProperties(delivery_mode=PERSISTENT, headers={"x-delay": delay})
            channel.basic_publish("later", "the.end", b"%d" % delay, properties)
        since = time.monotonic()
        channel.tx_commit()
        early = []
        for method, properties, body in connection.channel().consume("arrived"):
            delay = int(body)
            check_time(f"the message with a delay of {delay} ms came", since, delay / 1000)
            check_equal(properties.headers, {"x-delay": -delay}, "its headers")
            early.append(delay)
            if len(early) == 200:
                break
        broker.kill()
        # Some are due while nobody is there who could notice.
        time.sleep(0.3)
        broker.start()
        with connected(broker.url) as connection:
            channel = connection.channel()
            arrived, deadline = [], time.monotonic() + WAIT
            while len(arrived) < len(delays) and time.monotonic() < deadline:
                arrived += [int(body) for body in bodies(channel, "arrived")]
            check_time("the last message came", since, max(delays) / 1000)
            check_equal(arrived, sorted(delays), "the messages that came")
            check_equal(early, arrived[: len(early)], "those that came before the kill")


def clean_up():
    kill_all()
    with connected() as connection:
        channel = connection.channel()
        for queue in durable_queues:
            channel.queue_delete(queue)
        for exchange in durable_exchanges:
            channel.exchange_delete(exchange)


if __name__ == "__main__":
    run(
        [
            retry_queue_brings_a_message_back_after_its_time,
            dead_letter_tells_its_original_expiration,
            rejected_messages_become_dead_letters_in_their_order,
            rejected_with_aio_pika,
            rejected_with_kombu,
            message_behind_one_that_stays_expires_on_time,
            dropped_messages_are_dead_letters_in_their_order,
            full_queue_refuses_what_is_confirmed_otherwise,
            full_queue_refuses_with_aio_pika,
            priorities_come_in_order,
            next_single_active_consumer_takes_over_from_a_killed_one,
            late_consumer_is_cancelled_and_its_ack_is_harmless,
            quorum_queue_counts_failures_up_to_its_limit,
            message_that_kills_its_workers_becomes_a_dead_letter,
            dead_letter_that_must_arrive_waits_for_a_queue,
            unused_queue_goes_after_its_time,
            arguments_are_refused_in_rabbitmqs_words,
            counts_and_dead_letters_survive_a_kill,
            kill_splits_no_rejection,
            delayed_messages_come_on_time_in_their_order_through_a_kill,
        ],
        cleanup=clean_up,
    )
