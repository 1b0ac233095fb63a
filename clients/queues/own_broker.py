"""A broker that a step starts, kills and starts again on the same data folder.

LEVERET_BINARY is the broker, and LEVERET_SCRATCH a folder for its data and its log.
"""

import contextlib
import os
import pathlib
import shutil
import signal
import subprocess

from steps import StepFailed, unique

#: All that were started, so that none outlives the program.
started = []


class OwnBroker:
    """The process, and the folder that outlives it."""

    def __init__(self, scratch, binary):
        self.binary = binary
        self.folder = scratch / unique("data")
        self.log = scratch / "own-broker.log"
        self.process = None

    def start(self):
        command = [self.binary, "serve", "--data-dir", self.folder, "--amqp-port", "0"]
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=log
            )
        started.append(self.process)
        line = self.process.stdout.readline().decode()
        if " ready: " not in line:
            raise StepFailed(f"the broker did not start; see {self.log}")
        address = line.split(" ready: ")[1].strip()
        self.url = address.replace("amqp://", "amqp://guest:guest@") + "/%2F"

    def kill(self):
        """Ends it as `kill -9` does."""
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()
        self.process.stdout.close()

    def restart(self):
        self.kill()
        self.start()


@contextlib.contextmanager
def own_broker():
    """Starts a broker with an empty data folder; its data goes unless the step failed."""
    binary, scratch = os.environ.get("LEVERET_BINARY"), os.environ.get("LEVERET_SCRATCH")
    if not binary or not scratch:
        raise StepFailed("LEVERET_BINARY and LEVERET_SCRATCH do not say which broker to kill")
    broker = OwnBroker(pathlib.Path(scratch), binary)
    broker.folder.parent.mkdir(parents=True, exist_ok=True)
    broker.start()
    try:
        yield broker
    finally:
        broker.kill()
    shutil.rmtree(broker.folder)


def kill_all():
    """Kills what a step that failed has left running."""
    for process in started:
        if process.poll() is None:
            process.kill()
            process.wait()
