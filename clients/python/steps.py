"""The runner and the shared expectations of the Python client scenarios.

A scenario is a list of step functions. Each step is named as its function,
opens connections of its own and fails by raising an exception. The runner
prints one line for each step (`ok N name` or `not ok N name: reason`), then the
line `PASSED/TOTAL steps`, and exits 0 only if every step passed.

The broker's address comes from the environment variable AMQP_URL, for example
amqp://guest:guest@127.0.0.1:5672/%2F.
"""

import itertools
import os
import secrets
import sys
import threading
import time
from urllib.parse import unquote, urlsplit

#: Seconds that one step may take in all. The runner reports a step that takes
#: longer as failed and goes on with the next one.
STEP_DEADLINE = 20.0

#: Seconds that a step waits for one condition. This is shorter than the step's
#: deadline, so that the reason printed says what did not happen.
WAIT = 8.0

_SUFFIX = secrets.token_hex(6)
_COUNTER = itertools.count(1)


class StepFailed(Exception):
    """Raised when the broker did something else than the step expects."""


def amqp_url():
    """Returns the broker's address, or ends the program if none is given."""
    url = os.environ.get("AMQP_URL")
    if not url:
        sys.exit("AMQP_URL is not set; example: amqp://guest:guest@127.0.0.1:5672/%2F")
    return url


def vhost():
    """Returns the virtual host that AMQP_URL names."""
    return unquote(urlsplit(amqp_url()).path[1:]) or "/"


def unique(label):
    """Returns a name that no other step and no other run uses."""
    return f"steps-{label}-{_SUFFIX}-{next(_COUNTER)}"


def check(condition, message):
    """Fails the step with `message` unless `condition` holds."""
    if not condition:
        raise StepFailed(message)


def check_equal(actual, expected, what):
    """Fails the step unless `actual` equals `expected`, in type as well."""
    if not _same(actual, expected):
        raise StepFailed(f"{what} is {_short(actual)}, expected {_short(expected)}")


def wait_until_equal(read, expected, what):
    """Calls `read` until it returns `expected`; fails the step after WAIT seconds."""
    deadline = time.monotonic() + WAIT
    while not _same(actual := read(), expected):
        if time.monotonic() >= deadline:
            check_equal(actual, expected, what)
        time.sleep(0.02)


def check_error(code, text, expected_code, *parts, prefix=""):
    """Fails the step unless an error has the code, the prefix and all the parts."""
    check_equal(code, expected_code, "the error code")
    check(text.startswith(prefix), f"the error text {text!r} does not start with {prefix!r}")
    for part in parts:
        check(part in text, f"the error text {text!r} does not contain {part!r}")


def inequivalent_durable(queue):
    """Returns what the 406 text says about a queue declared with another `durable`."""
    return f"inequivalent arg 'durable' for queue '{queue}' in vhost '{vhost()}'"


def no_queue(queue):
    """Returns the 404 text for a queue that does not exist."""
    return f"NOT_FOUND - no queue '{queue}' in vhost '{vhost()}'"


def _same(actual, expected):
    """Compares deeply; unlike ==, it tells True from 1."""
    if isinstance(expected, dict):
        return (
            isinstance(actual, dict)
            and actual.keys() == expected.keys()
            and all(_same(actual[key], expected[key]) for key in expected)
        )
    if isinstance(expected, (list, tuple)):
        return (
            isinstance(actual, (list, tuple))
            and len(actual) == len(expected)
            and all(map(_same, actual, expected))
        )
    return isinstance(actual, bool) == isinstance(expected, bool) and actual == expected


def _short(value):
    text = repr(value)
    return text if len(text) <= 300 else f"{text[:300]}... ({len(text)} characters)"


class RoutingCase:
    """Bindings of two queues, `a` and `b`, to one exchange, and where messages go.

    bindings: (queue, binding key, binding arguments)
    messages: (routing key, headers, the queues that must get the message)
    unbound:  the binding that is removed afterwards
    after:    as `messages`, once `unbound` is gone
    """

    def __init__(self, kind, bindings, messages, unbound, after):
        self.kind = kind
        self.bindings = bindings
        self.messages = messages
        self.unbound = unbound
        self.after = after


_PDF_OF_TWO_PAGES = {"x-match": "all", "format": "pdf", "pages": 2}
_PDF_OR_REPORT = {"x-match": "any", "format": "pdf", "kind": "report"}

#: In every case one binding stays to the end, so that an auto-delete exchange
#: stays as well.
ROUTING_CASES = [
    RoutingCase(
        "direct",
        bindings=[("a", "red", {}), ("a", "green", {}), ("b", "blue", {})],
        messages=[
            ("red", {}, "a"),
            ("green", {}, "a"),
            ("blue", {}, "b"),
            ("yellow", {}, ""),
        ],
        unbound=("a", "red", {}),
        after=[("red", {}, ""), ("green", {}, "a"), ("blue", {}, "b")],
    ),
    RoutingCase(
        "fanout",
        bindings=[("a", "", {}), ("b", "ignored", {})],
        messages=[("", {}, "ab"), ("anything", {}, "ab")],
        unbound=("b", "ignored", {}),
        after=[("", {}, "a"), ("ignored", {}, "a")],
    ),
    RoutingCase(
        "topic",
        bindings=[("a", "*.error", {}), ("b", "app.#", {})],
        messages=[
            ("app.error", {}, "ab"),
            ("web.error", {}, "a"),
            ("web.db.error", {}, ""),
            ("error", {}, ""),
            ("app", {}, "b"),
            ("app.web.start", {}, "b"),
            ("apple", {}, ""),
        ],
        unbound=("b", "app.#", {}),
        after=[("app", {}, ""), ("app.error", {}, "a")],
    ),
    RoutingCase(
        "headers",
        bindings=[("a", "", _PDF_OF_TWO_PAGES), ("b", "", _PDF_OR_REPORT)],
        messages=[
            ("", {"format": "pdf", "pages": 2}, "ab"),
            ("", {"format": "pdf"}, "b"),
            ("", {"format": "text", "kind": "report"}, "b"),
            ("", {"format": "text", "pages": 2}, ""),
            ("", {"other": True}, ""),
        ],
        unbound=("b", "", _PDF_OR_REPORT),
        after=[("", {"format": "pdf"}, ""), ("", {"format": "pdf", "pages": 2}, "a")],
    ),
]


def check_routing(case, publish, drain, messages):
    """Publishes each message and checks that exactly the right queues got it.

    publish(routing key, headers, body) publishes to the case's exchange, and
    drain(queue) returns the bodies of all messages that the queue holds.
    """
    for number, (key, headers, expected) in enumerate(messages):
        body = f"message {number}".encode()
        publish(key, headers, body)
        for queue in "ab":
            check_equal(
                drain(queue),
                [body] if queue in expected else [],
                f"what queue {queue} of the {case.kind} exchange holds after a message "
                f"with key {key!r} and headers {headers}",
            )


def _run_step(step):
    """Runs one step in a thread of its own; returns the reason if it failed."""
    outcome = []

    def call():
        try:
            step()
            outcome.append(None)
        except BaseException as error:  # Whatever a client raises fails the step.
            text = " ".join(str(error).split())
            if isinstance(error, StepFailed):
                outcome.append(text)
            else:
                outcome.append(f"{type(error).__name__}: {text or repr(error)}")

    thread = threading.Thread(target=call, name=step.__name__, daemon=True)
    thread.start()
    thread.join(STEP_DEADLINE)
    return outcome[0] if outcome else f"not done within {STEP_DEADLINE:.0f} s"


def run(steps, cleanup=None):
    """Runs the steps in order, then `cleanup`, and ends the program."""
    amqp_url()
    passed = 0
    for number, step in enumerate(steps, start=1):
        reason = _run_step(step)
        if reason is None:
            passed += 1
            print(f"ok {number} {step.__name__}", flush=True)
        else:
            print(f"not ok {number} {step.__name__}: {reason}", flush=True)
    if cleanup is not None:
        reason = _run_step(cleanup)
        if reason is not None:
            print(f"cleanup failed: {reason}", file=sys.stderr, flush=True)
    print(f"{passed}/{len(steps)} steps", flush=True)
    # A step that ran out of time may still block in its thread. Nothing waits
    # for it.
    os._exit(0 if passed == len(steps) else 1)
