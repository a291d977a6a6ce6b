"""The named time-outs and retries of every step; they form the ladder of design rule 15.

One transaction is a turn and a connection (5 s each) + transaction_timeout (10 s): a database step
has 25 s. A provider step has two of them and the calls between, and an authorise may void what it
got: 90 s. The start of a worker checks it against the real settings (workers/registration.py).
What is retried follows from the error's class (activities/boundary.py).
"""

from datetime import timedelta
from typing import TypedDict

from temporalio.common import RetryPolicy


class StepOptions(TypedDict, total=False):
    """Options of `workflow.execute_activity`."""

    start_to_close_timeout: timedelta
    schedule_to_close_timeout: timedelta
    retry_policy: RetryPolicy


class BeatingOptions(StepOptions, total=False):
    """Options of a step that has to tell that it lives: never a local activity."""

    heartbeat_timeout: timedelta


_PATIENT = RetryPolicy(
    initial_interval=timedelta(milliseconds=200),
    backoff_coefficient=2.0,
    maximum_interval=timedelta(seconds=30),
)

# A statement or two in a service's database.
DATABASE_STEP = StepOptions(start_to_close_timeout=timedelta(seconds=25), retry_policy=_PATIENT)

# A call to the payment provider, written down before and after it. A worker that is killed during
# one is noticed by its missing heartbeat (workers/heartbeats.py).
PROVIDER_STEP = BeatingOptions(
    start_to_close_timeout=timedelta(seconds=90),
    heartbeat_timeout=timedelta(seconds=20),
    retry_policy=_PATIENT,
)

# Asking the provider whether the customer has paid on the redirect page: no event per question.
POLL_STEP = BeatingOptions(
    start_to_close_timeout=timedelta(seconds=60),
    heartbeat_timeout=timedelta(seconds=20),
    retry_policy=RetryPolicy(
        initial_interval=timedelta(seconds=1),
        backoff_coefficient=1.3,
        maximum_interval=timedelta(seconds=30),
    ),
)

# How long an undo, or a step after the pivot, is retried before it becomes a repair case; and how
# often a parked step is tried again by itself, so that a dependency that returns needs nobody.
BUDGET = timedelta(hours=1)
PARKED_RETRY = timedelta(hours=1)

DATABASE_MUST = StepOptions(**DATABASE_STEP, schedule_to_close_timeout=BUDGET)
PROVIDER_MUST = BeatingOptions(**PROVIDER_STEP, schedule_to_close_timeout=BUDGET)
