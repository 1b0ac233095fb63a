"""Kills and power cuts of a real broker under load, judged by what its clients saw.

LEVERET_BINARY is the broker, LEVERET_SCRATCH a folder for its data, KILLS and CUTS how often it dies, FULLS how often its disk
is full; each of that is done again and again until SECONDS are over. DEATHS says of which kind the steps are: kills, cuts or
disks, or all of them. The last lines say how much was tried in all. The power cut is real as far as a file system can tell: a
loop-mounted ext4 is shut down at one instant without flushing anything (the ioctl FS_IOC_SHUTDOWN), so that whatever was not
synced is gone. That needs root.
"""

import asyncio
import contextlib
import errno
import fcntl
import itertools
import json
import logging
import os
import random
import resource
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import zlib

import aiormq
import pika
from pamqp import frame
from pamqp.body import ContentBody
from pamqp.commands import Basic, Channel, Connection, Queue
from pamqp.header import ContentHeader

import history

BINARY, SCRATCH = os.environ["LEVERET_BINARY"], os.environ["LEVERET_SCRATCH"]
KILLS, CUTS = int(os.environ.get("KILLS", "3")), int(os.environ.get("CUTS", "2"))
FULLS, SECONDS = int(os.environ.get("FULLS", "2")), int(os.environ.get("SECONDS", "0"))
DEATHS = os.environ.get("DEATHS", "all")
LOAD_SECONDS = 1.2
WINDOW = 100
QUEUES = ["one", "two", "three"]
FANOUT = ["left", "right"]
# Bytes of bodies; those that fill a disk are larger, so that a slow machine comes to its end.
SIZES, LARGER_SIZES = (0, 16, 100, 1000, 1000, 5000), (0, 16, 1000, 5000, 10_000, 20_000)
PERSISTENT = Basic.Properties(delivery_mode=2)
DISK_FREE_LIMIT, RETURNED_BYTES = 8_000_000, 12_000_000
STALLED_SECONDS, FILLING_SECONDS = 20, 180
SHUTDOWN_IOCTL, WITHOUT_FLUSHING = 0x8004587D, 2


class Broker:
    """The process, started again and again on one data folder."""

    # Small files, so that checkpoints are written and room is taken back all the time.
    def __init__(self, folder, wrapper=(), options=(), segments=("--segment-size", "1048576")):
        self.folder, self.wrapper, self.options = folder, list(wrapper), [*segments, *options]
        self.process = None
        self.starts = 0

    def start(self):
        # Every second time with little memory, so that most of what is left comes back from disk.
        memory = "32MiB" if self.starts % 2 else "40%"
        self.starts += 1
        log = open(os.path.join(SCRATCH, "broker.log"), "ab")
        command = [*self.wrapper, BINARY, "serve", "--data-dir", self.folder, "--amqp-port", "0"]
        command += ["--memory-limit", memory, *self.options]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, start_new_session=True)
        started = time.monotonic()
        line = self.process.stdout.readline().decode()
        assert " ready: " in line, f"the broker did not start; see {log.name}"
        assert time.monotonic() - started < 10, "the broker took more than 10 s to be ready"
        self.url = line.split(" ready: ")[1].strip().replace("amqp://", "amqp://guest:guest@") + "/%2F"

    def stop(self):
        """Nothing leaves the process from here on, whatever the kernel still answers it."""
        os.killpg(self.process.pid, signal.SIGSTOP)
        deadline = time.monotonic() + 10
        while not any(self.is_stopped(thread) for thread in os.listdir(f"/proc/{self.process.pid}/task")):
            assert time.monotonic() < deadline, "the broker does not stop"

    def is_stopped(self, thread):
        # One may end meanwhile.
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            with open(f"/proc/{self.process.pid}/task/{thread}/stat") as file:
                return file.read().rpartition(")")[2].split()[0] in "Tt"
        return False

    def kill(self):
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        self.process.stdout.close()

    def wait(self, seconds):
        return self.process.wait(seconds)


class Mount:
    """An ext4 in a file, mounted through a loop device."""

    def __init__(self, name, megabytes):
        self.image, self.folder = os.path.join(SCRATCH, name + ".img"), os.path.join(SCRATCH, name)
        os.makedirs(self.folder, exist_ok=True)
        with open(self.image, "wb") as image:
            image.truncate(megabytes * 1024 * 1024)
        # Nothing is set aside for root, who may run this.
        run("mkfs.ext4", "-q", "-F", "-m", "0", self.image)
        self.mount()

    def mount(self, *options):
        run("mount", "-o", ",".join(["loop", *options]), self.image, self.folder)

    def cut(self):
        descriptor = os.open(self.folder, os.O_RDONLY)
        fcntl.ioctl(descriptor, SHUTDOWN_IOCTL, WITHOUT_FLUSHING.to_bytes(4, sys.byteorder))
        os.close(descriptor)

    def free(self):
        """Bytes."""
        file_system = os.statvfs(self.folder)
        return file_system.f_bavail * file_system.f_frsize

    def unmount(self):
        # A process that was killed may take a moment to be gone.
        deadline = time.monotonic() + 10
        while subprocess.run(["umount", self.folder], stderr=subprocess.DEVNULL).returncode != 0:
            assert time.monotonic() < deadline, f"{self.folder} cannot be unmounted"
            time.sleep(0.02)

    def remount(self, *options):
        self.unmount()
        self.mount(*options)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        subprocess.run(["umount", "-l", self.folder], stderr=subprocess.DEVNULL)
        os.remove(self.image)


def run(*command):
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)


class Clients:
    """Publishers and consumers that write down what they see."""

    def __init__(self, sizes=SIZES):
        self.events, self.session, self.numbers, self.group = [], 0, {}, 0
        self.sizes, self.confirmed = sizes, 0
        self.random = random.Random(7)

    def message(self, queue, publisher):
        number = self.numbers.get((queue, publisher), 0) + 1
        self.numbers[queue, publisher] = number
        return (queue, publisher, number)

    def body(self, publisher, number, where):
        size = self.random.choice([*self.sizes, 70_000 if number % 50 == 0 else 100])
        head = f"{where},{publisher},{number},".encode()
        rest = self.random.randbytes(size)
        return head + rest + zlib.crc32(head + rest).to_bytes(4, "big")

    def parse(self, queue, body):
        if len(body) < 4 or zlib.crc32(body[:-4]).to_bytes(4, "big") != body[-4:]:
            return None
        where, publisher, number, _ = body.split(b",", 3)
        expected = "fan" if queue in FANOUT else queue
        return (queue, publisher.decode(), int(number)) if where.decode() == expected else None

    async def declare(self, channel):
        for queue in QUEUES + FANOUT + ["tx"]:
            await channel.queue_declare(queue, durable=True)
        await channel.exchange_declare("fan", exchange_type="fanout", durable=True)
        for queue in FANOUT:
            await channel.queue_bind(queue, "fan")

    async def publish(self, url, publisher, incarnation):
        """Confirms, a window of messages at a time; every fourth goes to two queues at once."""
        name = f"{publisher}.{incarnation}"
        connection = await aiormq.connect(url)
        channel = await connection.channel(publisher_confirms=True)
        waiting = set()

        async def one(messages, exchange, routing_key, body):
            try:
                await channel.basic_publish(body, exchange=exchange, routing_key=routing_key, properties=PERSISTENT)
            except Exception:
                return
            self.events.extend(("ok", message) for message in messages)
            self.confirmed += len(messages)

        turn = 0
        while not channel.is_closed:
            turn += 1
            if turn % 4 == 0:
                messages = [self.message(queue, name) for queue in FANOUT]
                self.group += 1
                group, exchange, key, where = self.group, "fan", "", "fan"
            else:
                messages = [self.message(QUEUES[turn % 3], name)]
                group, exchange, key, where = None, "", messages[0][0], messages[0][0]
            self.events.extend(("pub", message, group) for message in messages)
            task = asyncio.ensure_future(one(messages, exchange, key, self.body(name, messages[0][2], where)))
            waiting.add(task)
            task.add_done_callback(waiting.discard)
            while len(waiting) >= WINDOW and not channel.is_closed:
                await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
            await asyncio.sleep(0)

    async def transact(self, url, incarnation):
        """Five messages a transaction."""
        name = f"tx.{incarnation}"
        connection = await aiormq.connect(url)
        channel = await connection.channel(publisher_confirms=False)
        await channel.tx_select()
        while True:
            self.group += 1
            group, messages = self.group, [self.message("tx", name) for _ in range(5)]
            for message in messages:
                self.events.append(("pub", message, group))
                body = self.body(name, message[2], "tx")
                await channel.basic_publish(body, routing_key="tx", properties=PERSISTENT)
            await channel.tx_commit()
            self.events.extend(("ok", message) for message in messages)

    async def consume(self, url, queue, idle=None):
        """Acks everything; every 64 acks it asks something, whose answer settles them.

        Ends when nothing came for `idle` seconds and the queue says that it has none, or none came for much longer.
        """
        self.session += 1
        session = self.session
        connection = await aiormq.connect(url)
        channel = await connection.channel()
        await channel.basic_qos(prefetch_count=200)
        arrived = asyncio.Queue()

        async def take(delivery):
            message = self.parse(queue, delivery.body)
            if message is None:
                self.events.append(("bad", f"{queue}: {delivery.body[:40]!r}"))
            else:
                self.events.append(("del", message, session, delivery.redelivered))
            arrived.put_nowait((delivery.delivery.delivery_tag, message))

        await channel.basic_consume(queue, take)
        unsettled = []
        heard = time.monotonic()
        while True:
            try:
                tag, message = await asyncio.wait_for(arrived.get(), idle)
            except asyncio.TimeoutError:
                # Who brings nothing for a while may be a machine that stands still; a broker that has some does bring it.
                asked = await channel.queue_declare(queue, passive=True)
                if not asked.message_count or time.monotonic() > heard + STALLED_SECONDS:
                    break
                continue
            heard = time.monotonic()
            if message is not None:
                self.events.append(("ack", message))
                unsettled.append(message)
            await channel.basic_ack(tag)
            if len(unsettled) >= 64:
                await channel.basic_qos(prefetch_count=200)
                self.events.extend(("settled", message) for message in unsettled)
                unsettled = []
        await channel.basic_qos(prefetch_count=200)
        self.events.extend(("settled", message) for message in unsettled)
        left = await channel.queue_declare(queue, passive=True)
        self.events.append(("left", queue, left.message_count))
        await connection.close()

    async def load(self, url, incarnation, seconds, fault, declares=True):
        """Everybody at work, until the fault; whoever it hits stops."""
        if declares:
            connection = await aiormq.connect(url)
            await self.declare(await connection.channel())
        # One queue has no consumer, so that it holds something when the power goes.
        work = [self.publish(url, publisher, incarnation) for publisher in ("a", "b")]
        work += [self.transact(url, incarnation)]
        work += [self.consume(url, queue) for queue in QUEUES[:2] + FANOUT[:1]]
        tasks = [asyncio.ensure_future(one) for one in work]
        await asyncio.sleep(seconds)
        fault()
        await asyncio.sleep(0.05)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def drain(self, url, declares=False):
        if declares:
            connection = await aiormq.connect(url)
            await self.declare(await connection.channel())
            await connection.close()
        await asyncio.gather(*(self.consume(url, queue, 1.0) for queue in QUEUES + FANOUT + ["tx"]))


def run_async(work):
    async def quietly():
        # Whoever loses its broker complains; that it did is the point.
        asyncio.get_running_loop().set_exception_handler(lambda *_: None)
        return await asyncio.wait_for(work, 120)

    return asyncio.run(quietly())


# Of each kind of death, how often and what came of all of them.
tried = {}


def judge(clients, what):
    verdicts, counts = history.check(clients.events)
    numbers = {name: len(offenders) for name, offenders in verdicts.items()}
    times, sums = tried.get(what, (0, {}))
    tried[what] = times + 1, {name: sums.get(name, 0) + count for name, count in counts.items()}
    print(f"   {what}: {counts} {numbers}")
    for name, offenders in verdicts.items():
        if offenders:
            print(f"   {name}: {offenders[:5]}")
    return numbers, counts


def die_and_check(what, broker, rounds, fault, come_back, declares=False):
    """So many rounds of load and death, then everything is drained, and once more after another death."""
    clients = Clients()
    for incarnation in range(rounds):
        broker.start()
        clients.events.append(("up", incarnation))
        # Now at once, now in the middle of everything.
        load_seconds = LOAD_SECONDS * (0.4 + incarnation % 3 * 0.3)
        # What was declared once is there again: without a queue its messages are lost, without a binding those of a fan-out.
        first = incarnation == 0
        run_async(clients.load(broker.url, incarnation, load_seconds, fault, declares or first))
        come_back()
    for again in (0, 1):
        broker.start()
        clients.events.append(("up", rounds + again))
        run_async(clients.drain(broker.url, declares))
        fault()
        come_back()
    return judge(clients, what)


def until_time_is_over():
    """Once, and again while there is time."""
    started = time.monotonic()
    yield
    while time.monotonic() - started < SECONDS:
        yield


def fresh(name):
    folder = os.path.join(SCRATCH, name)
    shutil.rmtree(folder, ignore_errors=True)
    os.makedirs(folder)
    return folder


def checker_finds_every_fault():
    history.self_test()


def kills():
    for _ in until_time_is_over():
        broker = Broker(fresh("kill"))
        numbers, counts = die_and_check(f"{KILLS} kills", broker, KILLS, broker.kill, lambda: None)
        assert not any(numbers.values()), numbers
        assert counts["confirmed"] > 100 * KILLS, counts


def cut_power(wrapper, rounds, what, declares=False):
    # What is written past the cache of the operating system is nearly as good as synced. Where ext4 journals data, too, nothing
    # is: so every second time.
    modes = itertools.cycle(["data=journal", "data=ordered"])
    with Mount("power", 512) as mount:
        broker = Broker(os.path.join(mount.folder, "data"), wrapper)

        def cut():
            # A sync that was under way when ext4 was shut down may return without an error though nothing was written
            # (Linux 6.18, blocks never written before). A machine without power tells that to nobody.
            broker.stop()
            mount.cut()
            broker.kill()

        return die_and_check(what, broker, rounds, cut, lambda: mount.remount(next(modes)), declares)


def power_cuts():
    for _ in until_time_is_over():
        numbers, counts = cut_power([], CUTS, f"{CUTS} power cuts")
        assert not any(numbers.values()), numbers
        assert counts["confirmed"] > 50 * CUTS, counts


def faked_syncs_are_found_out():
    # All of them, and those of files alone: what is left then still reaches the disk now and then, and the log with it where ext4
    # journals data. What is lost is what came after that, so it takes more rounds, most of all on a slow machine.
    for calls, rounds in (("fdatasync,fsync", 2), ("fdatasync", 5)):
        strace = ["strace", "-f", "-qq", "-o", "/dev/null", "-e", f"trace={calls}", "-e", f"inject={calls}:retval=0"]
        numbers, _ = cut_power(strace, rounds, f"control, {calls} faked", True)
        assert numbers["lost"] >= 100, f"only {numbers['lost']} lost: this test proves nothing"


def failed_sync_ends_the_broker():
    folder = fresh("eio")
    strace = ["strace", "-f", "-qq", "-o", "/dev/null", "-e", "trace=fdatasync"]
    broker = Broker(folder, [*strace, "-e", "inject=fdatasync:error=EIO:when=60+"])
    clients = Clients()
    broker.start()
    # Who does not answer is waited for, and nobody else may have the folder meanwhile.
    with plain_connection(broker.url):
        run_async(clients.load(broker.url, 0, 3, lambda: None))
        assert broker.process.poll() is None, "the broker has ended too early for this test"
        second = subprocess.run(
            [BINARY, "serve", "--data-dir", folder, "--amqp-port", "0"], capture_output=True, text=True, timeout=20
        )
        assert second.returncode == 73 and "in use" in second.stderr, second
        assert broker.wait(20) == 74, broker.process.returncode
    broker = Broker(folder)
    broker.start()
    clients.events.append(("up", 1))
    run_async(clients.drain(broker.url))
    broker.kill()
    numbers, _ = judge(clients, "EIO on sync")
    assert not any(numbers.values()), numbers


def a_failed_sync_while_definitions_are_loaded_ends_the_broker():
    definitions = os.path.join(SCRATCH, "definitions.json")
    with open(definitions, "w") as file:
        json.dump({"vhosts": [{"name": "v"}], "queues": [{"name": "q", "vhost": "v", "durable": True}]}, file)
    folder = fresh("eio-definitions")
    # The first is that of virtual hosts, the second that of queues.
    sync = ["-e", "trace=fdatasync", "-P", os.path.join(folder, "0000000001.segment")]
    strace = ["strace", "-f", "-qq", "-o", "/dev/null", *sync, "-e", "inject=fdatasync:error=EIO:when=2+"]
    serve = [BINARY, "serve", "--data-dir", folder, "--amqp-port", "0", "--definitions", definitions]
    ended = subprocess.run([*strace, *serve], capture_output=True, text=True, timeout=20)
    assert ended.returncode == 74 and ended.stdout == "", ended


def fill(folder):
    """Takes every byte that a file system has left."""
    with open(os.path.join(folder, "ballast"), "wb", buffering=0) as ballast:
        for size in (1 << 20, 4096, 1):
            try:
                while True:
                    ballast.write(bytes(size))
            except OSError as error:
                assert error.errno == errno.ENOSPC, error
        os.fsync(ballast)


async def wait_until(condition, seconds, what):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"{what} took more than {seconds} s"
        await asyncio.sleep(0.02)


async def publish_until_held(clients, url, incarnation, free):
    """Two publishers, until the disk is short and neither was confirmed anything for a second; they go on waiting."""
    tasks = [asyncio.ensure_future(clients.publish(url, name, incarnation)) for name in ("a", "b")]
    seen, since, started = clients.confirmed, time.monotonic(), time.monotonic()
    while time.monotonic() < since + 1 or free() >= DISK_FREE_LIMIT:
        if clients.confirmed != seen:
            seen, since = clients.confirmed, time.monotonic()
        assert time.monotonic() < since + STALLED_SECONDS, f"nothing is confirmed, and {free()} bytes are free"
        assert time.monotonic() < started + FILLING_SECONDS, f"publishers are not held, and {free()} bytes are free"
        await asyncio.sleep(0.05)
    return tasks


async def full_disk_round(clients, broker, mount, incarnation):
    with open(os.path.join(mount.folder, "others"), "wb") as others:
        others.write(bytes(RETURNED_BYTES))
    connection = await aiormq.connect(broker.url)
    channel = await connection.channel()
    await clients.declare(channel)
    for queue in ("purged", "deleted"):
        await channel.queue_declare(queue, durable=True)
        for _ in range(50):
            await channel.basic_publish(bytes(2000), routing_key=queue, properties=PERSISTENT)
    tasks = await publish_until_held(clients, broker.url, incarnation, mount.free)
    free = mount.free()
    assert free > DISK_FREE_LIMIT // 2, f"publishers were held too late: {free} bytes are free"
    fill(mount.folder)
    # Everybody else goes on, with an answer that waits for the disk.
    await clients.consume(broker.url, QUEUES[0], 0.5)
    assert (await channel.queue_purge("purged")).message_count >= 50
    await channel.queue_delete("deleted")
    held = clients.confirmed
    left = os.statvfs(mount.folder).f_bavail
    # Who knows `connection.blocked` is told.
    told = await asyncio.to_thread(blocked_reason, broker.url)
    assert told == "low on disk", told
    if incarnation % 2:
        broker.kill()
        await asyncio.gather(*tasks, return_exceptions=True)
        broker.start()
        clients.events.append(("up", broker.starts))
        await clients.consume(broker.url, FANOUT[0], 0.5)
        tasks = await publish_until_held(clients, broker.url, f"{incarnation}-again", mount.free)
        held = clients.confirmed
    for name in ("ballast", "others"):
        os.remove(os.path.join(mount.folder, name))
    returned = time.monotonic()
    await wait_until(lambda: clients.confirmed > held, 10, "going on after space returned")
    print(f"   publishers were held with {free >> 20} MiB free, {left} blocks were left, "
          f"{time.monotonic() - returned:.2f} s to go on")
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


def blocked_reason(url):
    """What a client is told that publishes now."""
    told = []
    connection = pika.BlockingConnection(pika.URLParameters(url))
    connection.add_on_connection_blocked_callback(lambda _, frame: told.append(frame.method.reason))
    connection.channel().basic_publish("", "purged", b"told")
    deadline = time.monotonic() + 5
    while not told and time.monotonic() < deadline:
        connection.process_data_events(0.05)
    return told[0] if told else None


def full_disk_holds_publishers_and_nobody_else():
    for _ in until_time_is_over():
        fill_and_check()


def fill_and_check():
    with Mount("full", 64) as mount:
        broker = Broker(os.path.join(mount.folder, "data"), options=["--disk-free-limit", str(DISK_FREE_LIMIT)])
        clients = Clients(LARGER_SIZES)
        broker.start()
        clients.events.append(("up", broker.starts))
        for incarnation in range(FULLS):
            run_async(full_disk_round(clients, broker, mount, incarnation))
            for queue in QUEUES + FANOUT:
                run_async(clients.consume(broker.url, queue, 0.3))
        for _ in (0, 1):
            broker.kill()
            broker.start()
            clients.events.append(("up", broker.starts))
            run_async(clients.drain(broker.url))
        broker.kill()
    numbers, counts = judge(clients, f"{FULLS} full disks")
    assert not any(numbers.values()), numbers
    assert counts["confirmed"] > 1000, counts


async def publish_until_none_is_confirmed(url, queue, body, window):
    """One publisher, until nothing was confirmed for two seconds; what it has under way goes on waiting."""
    connection = await aiormq.connect(url)
    channel = await connection.channel(publisher_confirms=True)
    await channel.queue_declare(queue, durable=True)
    counted, waiting = [0], set()

    async def one():
        await channel.basic_publish(body, routing_key=queue, properties=PERSISTENT)
        counted[0] += 1

    while True:
        waiting |= {asyncio.ensure_future(one()) for _ in range(window - len(waiting))}
        done, waiting = await asyncio.wait(waiting, timeout=2, return_when=asyncio.FIRST_COMPLETED)
        if not done:
            return connection, waiting, lambda: counted[0]


async def drain_until_confirmed(url, queue, confirmed, held, seconds):
    """Acks all that comes, until the publisher that was held goes on. Returns how many that were."""
    connection = await aiormq.connect(url)
    channel = await connection.channel()
    await channel.basic_qos(prefetch_count=5000)
    counted = [0]

    async def take(delivery):
        counted[0] += 1
        if counted[0] % 100 == 0 or counted[0] == held:
            await channel.basic_ack(delivery.delivery.delivery_tag, multiple=True)

    await channel.basic_consume(queue, take)
    try:
        await wait_until(lambda: confirmed() > held, seconds, f"going on after {held} messages were consumed")
    except AssertionError as error:
        raise AssertionError(f"{error}; {counted[0]} came")
    await connection.close()
    return counted[0]


async def fill_and_drain(broker, body, window, seconds):
    connection, waiting, confirmed = await publish_until_none_is_confirmed(broker.url, "drained", body, window)
    held = confirmed()
    started = time.monotonic()
    consumed = await drain_until_confirmed(broker.url, "drained", confirmed, held, seconds)
    print(f"   {held} messages of {len(body)} bytes until publishers were held, {consumed} consumed until they "
          f"went on, after {time.monotonic() - started:.1f} s")
    for task in waiting:
        task.cancel()
    await asyncio.gather(*waiting, return_exceptions=True)
    await connection.close()


def publishers_go_on_when_a_small_disk_is_drained_with_no_option_set():
    with Mount("small", 128) as mount:
        broker = Broker(os.path.join(mount.folder, "data"), segments=())
        for _ in (0, 1):
            broker.start()
            run_async(fill_and_drain(broker, bytes(20_000), 100, 30))
            broker.kill()


class Flood:
    """Many small messages, as fast as the broker reads them, from a thread."""

    def __init__(self, url, queue):
        parts = [Basic.Publish(routing_key=queue), ContentHeader(body_size=4, properties=PERSISTENT)]
        blob = b"".join(frame.marshal(part, 1) for part in [*parts, ContentBody(b"tiny")]) * 1000
        self.socket, self.sent, self.seen = plain_connection(url), 0, (0, time.monotonic())
        self.socket.sendall(frame.marshal(Queue.Declare(queue=queue, durable=True), 1))
        threading.Thread(target=self.run, args=(blob,), daemon=True).start()

    def run(self, blob):
        with contextlib.suppress(OSError):
            while True:
                self.sent += self.socket.send(blob[self.sent % len(blob):])

    def is_held(self):
        """Whether nothing was taken for two seconds."""
        sent, now = self.sent, time.monotonic()
        if sent != self.seen[0]:
            self.seen = (sent, now)
        return now > self.seen[1] + 2

    def end(self):
        self.socket.shutdown(socket.SHUT_RDWR)
        self.socket.close()


def plain_connection(url):
    """A socket on which a channel will be open when the broker has read all that was sent."""
    connection = socket.create_connection(("127.0.0.1", int(url.split(":")[-1].split("/")[0])))
    # Two frames of the handshake need what the broker says, but not that it was read.
    methods = [(Connection.StartOk({}, "PLAIN", "\0guest\0guest", "en_US"), 0), (Connection.TuneOk(0, 131072, 0), 0)]
    methods += [(Connection.Open("/"), 0), (Channel.Open(), 1)]
    connection.sendall(b"AMQP\0\0\x09\x01" + b"".join(frame.marshal(*method) for method in methods))
    return connection


def discard(url, queue):
    """Consumes without acks, as fast as it can, until the socket is closed."""
    connection = plain_connection(url)
    connection.sendall(frame.marshal(Basic.Consume(queue=queue, consumer_tag="t", no_ack=True), 1))

    def read():
        with contextlib.suppress(OSError):
            while connection.recv(1 << 20):
                pass

    threading.Thread(target=read, daemon=True).start()
    return connection


async def drain_small_messages(broker):
    flood = Flood(broker.url, "small")
    await wait_until(flood.is_held, 60, "filling the disk")
    sent, started = flood.sent, time.monotonic()
    consumer = discard(broker.url, "small")
    await wait_until(lambda: flood.sent > sent + (4 << 20), 60, "going on after messages were consumed")
    gone_on = time.monotonic() - started
    flood.end()
    connection = await aiormq.connect(broker.url)
    channel = await connection.channel()
    deadline = time.monotonic() + 60
    while (await channel.queue_declare("small", durable=True)).message_count > 0:
        assert time.monotonic() < deadline, "the queue is not drained"
        await asyncio.sleep(0.1)
    await connection.close()
    consumer.close()
    print(f"   {sent >> 20} MiB until publishers were held, {gone_on:.1f} s until they went on")


def small_messages_can_always_be_drained_from_a_short_disk():
    with Mount("tiny", 80) as mount:
        broker = Broker(os.path.join(mount.folder, "data"), options=["--disk-free-limit", "1000000"])
        broker.start()
        run_async(drain_small_messages(broker))
        flood = Flood(broker.url, "small")
        run_async(wait_until(flood.is_held, 60, "filling the disk"))
        broker.kill()
        broker.start()
        run_async(drain_small_messages(broker))
        broker.kill()


async def short_of_files(broker):
    url, count = broker.url, 12_000
    connection = await aiormq.connect(url)
    channel = await connection.channel(publisher_confirms=True)
    await channel.queue_declare("filed", durable=True)
    publish = lambda: channel.basic_publish(bytes(4096), routing_key="filed", properties=PERSISTENT)
    for _ in range(count // 200):
        await asyncio.gather(*(publish() for _ in range(200)))
    await asyncio.sleep(1)
    await channel.basic_qos(prefetch_count=0)
    tags = []

    async def take(delivery):
        tags.append(delivery.delivery.delivery_tag)

    limits = resource.prlimit(broker.process.pid, resource.RLIMIT_NOFILE)
    resource.prlimit(broker.process.pid, resource.RLIMIT_NOFILE, (3, limits[1]))
    await channel.basic_consume("filed", take)
    await asyncio.sleep(1)
    early = len(tags)
    resource.prlimit(broker.process.pid, resource.RLIMIT_NOFILE, limits)
    assert early < count, "nothing was read from disk: this test proves nothing"
    await wait_until(lambda: len(tags) == count, 20, f"the rest behind {early} messages")
    await connection.close()


def messages_wait_for_a_process_that_is_short_of_files():
    broker = Broker(fresh("files"), segments=())
    # With little memory.
    broker.starts = 1
    broker.start()
    run_async(short_of_files(broker))
    broker.kill()


def wait_for(connection, method):
    """Reads frames until one is this method."""
    connection.settimeout(20)
    received = b""
    while True:
        received += connection.recv(1 << 16)
        while True:
            count, _, value = frame.unmarshal(received) if len(received) > 7 else (0, 0, None)
            if count == 0:
                break
            received = received[count:]
            if isinstance(value, method):
                return


def input_waits_for_a_journal_that_stands_still():
    broker = Broker(fresh("still"))
    broker.start()
    with plain_connection(broker.url) as connection:
        wait_for(connection, Channel.OpenOk)
        still = ["-e", "trace=fdatasync,fsync", "-e", "inject=fdatasync,fsync:delay_enter=60000000"]
        command = ["strace", "-f", "-p", str(broker.process.pid), "-o", "/dev/null", *still]
        strace = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        assert "attached" in strace.stderr.readline()
        # The channel is open again when the queue is durable, not before.
        methods = [Queue.Declare(queue="still", durable=True), Channel.Close(200, "", 0, 0), Channel.Open()]
        body = bytes(100_000)
        methods += [Basic.Publish(routing_key="nowhere"), ContentHeader(body_size=len(body)), ContentBody(body)]
        first, again = (b"".join(frame.marshal(method, 1) for method in part) for part in (methods[:3], methods[3:]))
        connection.sendall(first)
        connection.settimeout(2)
        sent, most = 0, 256 << 20
        with contextlib.suppress(TimeoutError):
            while sent < most:
                sent += connection.send(again[sent % len(again):])
        strace.terminate()
        strace.wait()
        strace.stderr.close()
        assert sent < most, "whatever is sent is read, and kept"
        wait_for(connection, Channel.OpenOk)
    broker.kill()
    print(f"   {sent >> 20} MiB were sent until nothing was read")


def read_only_folder_is_refused_with_words():
    with Mount("readonly", 16) as mount:
        mount.remount("ro")
        ended = subprocess.run(
            [BINARY, "serve", "--data-dir", os.path.join(mount.folder, "data"), "--amqp-port", "0"],
            capture_output=True, text=True, timeout=20,
        )
        assert ended.returncode == 1 and mount.folder in ended.stderr, ended


STEPS = [
    (checker_finds_every_fault, "kills", False),
    (kills, "kills", False),
    (power_cuts, "cuts", True),
    (faked_syncs_are_found_out, "cuts", True),
    (failed_sync_ends_the_broker, "disks", True),
    (a_failed_sync_while_definitions_are_loaded_ends_the_broker, "disks", True),
    (full_disk_holds_publishers_and_nobody_else, "disks", True),
    (publishers_go_on_when_a_small_disk_is_drained_with_no_option_set, "disks", True),
    (small_messages_can_always_be_drained_from_a_short_disk, "disks", True),
    (messages_wait_for_a_process_that_is_short_of_files, "disks", False),
    (input_waits_for_a_journal_that_stands_still, "disks", True),
    (read_only_folder_is_refused_with_words, "disks", True),
]


def main():
    logging.disable(logging.CRITICAL)
    os.makedirs(SCRATCH, exist_ok=True)
    lacking = [tool for tool in ("strace", "mkfs.ext4", "mount", "umount") if shutil.which(tool) is None]
    if os.geteuid() != 0:
        lacking.append("root")
    failed = False
    steps = [(step, needs_machine) for step, deaths, needs_machine in STEPS if DEATHS in ("all", deaths)]
    for number, (step, needs_machine) in enumerate(steps, 1):
        name = step.__name__.replace("_", " ")
        if needs_machine and lacking:
            # With CI=true, whoever reads this makes a failure of it.
            print(f"skipped {number} {name}: this needs {', '.join(lacking)}")
            continue
        try:
            step()
        except Exception as error:
            print(f"not ok {number} {name}: {error!r}")
            failed = True
        else:
            print(f"ok {number} {name}")
    for what, (times, sums) in tried.items():
        print(f"   tried {times} times {what}: {sums}")
    sys.exit(failed)


main()
