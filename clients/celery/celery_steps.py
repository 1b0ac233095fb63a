"""The Celery scenario: tasks that a Celery worker runs over the broker.

Run: AMQP_URL=amqp://guest:guest@127.0.0.1:5672/%2F python celery_steps.py

The program starts two workers as processes of its own: one that returns results
over the broker (rpc://), and one that keeps them in files of a temporary folder
(file://), because chords need a backend that keeps results.
"""

import contextlib
import os
import pathlib
import subprocess
import sys
import tempfile
import time

FOLDER = pathlib.Path(__file__).resolve().parent
sys.path.insert(0, str(FOLDER.parent / "python"))

import celery  # noqa: E402
import kombu  # noqa: E402

from steps import StepFailed, amqp_url, check, check_equal, run, unique  # noqa: E402
from tasks import make_app  # noqa: E402

#: Seconds that a worker may take to start.
WORKER_START = 40.0

#: Seconds that a step waits for a result.
RESULT_WAIT = 15.0

#: Seconds that a worker may take to stop before it is killed.
WORKER_STOP = 5.0


class Worker:
    """A Celery worker process with one result backend and a task queue of its own."""

    def __init__(self, label, backend, folder):
        self.prefix = unique(f"celery-{label}")
        self.backend = backend
        self.name = f"{self.prefix}@localhost"
        self.log = folder / f"{label}.log"
        environment = {
            **os.environ,
            "CELERY_STEPS_PREFIX": self.prefix,
            "CELERY_STEPS_BACKEND": backend,
        }
        command = [sys.executable, "-m", "celery", "--app", "tasks", "worker"]
        command += ["--pool", "threads", "--concurrency", "2"]
        command += ["--hostname", self.name, "--loglevel", "INFO"]
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                command,
                cwd=FOLDER,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
            )

    @contextlib.contextmanager
    def client(self):
        """Makes an application that sends tasks to this worker."""
        if not self.ready:
            raise StepFailed(f"the worker did not start within {WORKER_START:.0f} s")
        app = make_app(amqp_url(), self.prefix, self.backend)
        yield app
        app.close()

    def wait_until_ready(self, deadline):
        """Waits until the worker answers a ping; `ready` says whether it did."""
        self.ready = False
        app = make_app(amqp_url(), self.prefix, self.backend)
        while not self.ready and time.monotonic() < deadline and self.process.poll() is None:
            # The broker may be unreachable, or refuse what the ping needs.
            with contextlib.suppress(Exception):
                self.ready = bool(app.control.ping(destination=[self.name], timeout=0.5))
        app.close()
        if not self.ready:
            print(f"worker {self.name} did not start; its log ends:", file=sys.stderr)
            sys.stderr.writelines(self.log.read_text(errors="replace").splitlines(True)[-15:])

    def wait_until_stopped(self):
        """Waits until the process ended, and kills it if it does not end."""
        try:
            self.process.wait(WORKER_STOP)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()

    def delete_durable(self, channel):
        """Deletes the queues and the exchanges that outlive the worker."""
        tasks = f"{self.prefix}-tasks"
        control = f"{self.prefix}-control.pidbox"
        for queue in (tasks, f"{self.prefix}-dead"):
            channel.queue_delete(queue)
        for exchange in (tasks, control, f"reply.{control}", f"{self.prefix}-events"):
            channel.exchange_delete(exchange)


def main():
    amqp_url()
    temporary = tempfile.TemporaryDirectory(prefix="celery-steps-")
    folder = pathlib.Path(temporary.name)
    results = folder / "results"
    results.mkdir()
    over_broker = Worker("rpc", "rpc://", folder)
    in_files = Worker("file", results.as_uri(), folder)
    workers = (over_broker, in_files)
    deadline = time.monotonic() + WORKER_START
    for worker in workers:
        worker.wait_until_ready(deadline)

    def plain_task():
        with over_broker.client() as app:
            result = app.send_task("steps.add", (2, 3))
            check_equal(result.get(timeout=RESULT_WAIT), 5, "the result")

    def task_that_retries():
        with over_broker.client() as app:
            result = app.send_task("steps.fail_once", ("kept",))
            expected = {"value": "kept", "retries": 1}
            check_equal(result.get(timeout=RESULT_WAIT), expected, "the result")

    def task_with_countdown():
        with over_broker.client() as app:
            sent = time.time()
            result = app.send_task("steps.now", countdown=1)
            waited = result.get(timeout=RESULT_WAIT) - sent
            check(waited >= 0.95, f"the task ran {waited:.2f} s after it was sent, expected 1 s")

    def chord_of_tasks():
        with in_files.client() as app:
            header = [app.signature("steps.add", args) for args in ((1, 2), (3, 4))]
            result = celery.chord(header, app=app)(app.signature("steps.total"))
            check_equal(result.get(timeout=RESULT_WAIT, interval=0.1), 10, "the result")

    def rejected_task_is_a_dead_letter():
        dead, tasks = f"{over_broker.prefix}-dead", f"{over_broker.prefix}-tasks"
        with over_broker.client() as app, app.connection_for_read() as connection:
            dead = kombu.Queue(dead, channel=connection.channel())
            dead.queue_declare()
            result = app.send_task("steps.refuse", ("because",))
            deadline = time.monotonic() + RESULT_WAIT
            while (letter := dead.get(no_ack=True)) is None:
                check(time.monotonic() < deadline, "the rejected task is no dead letter")
                time.sleep(0.02)
            check_equal(letter.headers["task"], "steps.refuse", "the task")
            check_equal(letter.headers["id"], result.id, "the id of the task")
            check_equal(letter.payload[0], ["because"], "its arguments")
            deaths = letter.headers["x-death"]
            deaths = [(death["queue"], death["reason"], death["count"]) for death in deaths]
            check_equal(deaths, [(tasks, "rejected", 1)], "the deaths")
            # The worker goes on, and does not see that task again.
            result = app.send_task("steps.add", (2, 3))
            check_equal(result.get(timeout=RESULT_WAIT), 5, "the result of the next task")
            check_equal(dead.get(no_ack=True), None, "a further dead letter")

    def clean_up():
        for worker in workers:
            worker.process.terminate()
        for worker in workers:
            worker.wait_until_stopped()
        temporary.cleanup()
        with kombu.Connection(amqp_url(), connect_timeout=WORKER_STOP) as connection:
            for worker in workers:
                worker.delete_durable(connection.channel())

    steps = [plain_task, task_that_retries, task_with_countdown, chord_of_tasks]
    run([*steps, rejected_task_is_a_dead_letter], cleanup=clean_up)


if __name__ == "__main__":
    main()
