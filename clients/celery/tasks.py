"""The Celery application and the tasks of the Celery scenario.

`celery_steps.py` starts workers with this module. Three environment variables
say what the application uses:

AMQP_URL              the broker's address
CELERY_STEPS_PREFIX   what the names of its queues and exchanges start with
CELERY_STEPS_BACKEND  the result backend
"""

import os
import time

from celery import Celery, shared_task
from celery.exceptions import Reject
from kombu import Exchange, Queue


def make_app(broker, prefix, backend):
    """Makes an application whose queues and exchanges have names of their own."""
    app = Celery("steps", broker=broker, backend=backend)
    tasks = f"{prefix}-tasks"
    # The default exchange brings dead letters to the queue of that name.
    dead_letters = {"x-dead-letter-exchange": "", "x-dead-letter-routing-key": f"{prefix}-dead"}
    app.conf.update(
        task_default_queue=tasks,
        task_queues=[Queue(tasks, Exchange(tasks), tasks, queue_arguments=dead_letters)],
        control_exchange=f"{prefix}-control",
        event_exchange=f"{prefix}-events",
        event_queue_prefix=f"{prefix}-events",
        broker_connection_retry_on_startup=True,
        result_expires=60,
    )
    return app


@shared_task(name="steps.add")
def add(left, right):
    """Returns the sum of two numbers."""
    return left + right


@shared_task(name="steps.total")
def total(numbers):
    """Returns the sum of a list of numbers."""
    return sum(numbers)


@shared_task(name="steps.fail_once", bind=True, max_retries=1)
def fail_once(self, value):
    """Asks for a retry when it first runs; then returns `value` and the retries."""
    if self.request.retries == 0:
        raise self.retry(countdown=0)
    return {"value": value, "retries": self.request.retries}


@shared_task(name="steps.refuse", acks_late=True)
def refuse(_reason):
    """Rejects its own message, which Celery does not requeue then."""
    raise Reject("refused", requeue=False)


@shared_task(name="steps.now")
def now():
    """Returns the time at which the task runs."""
    return time.time()


app = make_app(
    os.environ.get("AMQP_URL"),
    os.environ.get("CELERY_STEPS_PREFIX", "steps"),
    os.environ.get("CELERY_STEPS_BACKEND", "rpc://"),
)
