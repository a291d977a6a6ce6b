"""Where the steps of a run are executed: in each service's own worker, or where the run itself is.

The choice is made when the run is started, stands in its memo, and so is kept for its life, through
replay and reset (docs/decisions/0006-steps-where-the-run-is.md).
"""

import asyncio
from dataclasses import dataclass
from datetime import timedelta
from typing import Final, Self, TypeVar

from temporalio import exceptions, workflow
from temporalio.exceptions import ActivityError, ApplicationError, RetryState
from temporalio.workflow import ActivityHandle

with workflow.unsafe.imports_passed_through():
    from workers.queues import TOGETHER
    from workflows.steps import Step

R = TypeVar("R")
A = TypeVar("A")
MEMO: Final = "steps"
TOGETHER_MEMO: Final = {MEMO: "together"}

# Before a local step is tried again the task is given back: what was done is on record, messages
# are heard, and the run's clock goes on, which stands still while a worker waits by itself.
AT_ONCE: Final = timedelta(milliseconds=1)


@dataclass(frozen=True)
class Place:
    """How one run starts its steps; `together` means that its worker has every database."""

    together: bool

    @classmethod
    def of_this_run(cls) -> Self:
        """Return what was chosen when this run was started."""
        return cls(together=workflow.memo_value(MEMO, default=None) == TOGETHER_MEMO[MEMO])

    def start(
        self,
        step: Step[R, A],
        request: R,
        *,
        summary: str = "",
        within: timedelta | None = None,
    ) -> asyncio.Task[A]:
        """Start a step, with no more time than `within` for all its attempts.

        Together, one that takes milliseconds is a local activity, one event; one that waits for
        another company is not: it would hold up every message to the run.
        """
        options = step.options.copy()
        if within is not None:
            options["schedule_to_close_timeout"] = within
        told = summary or step.name
        if self.together and not step.talks:
            local = workflow.start_local_activity_method(
                step.activity, request, summary=told, local_retry_threshold=AT_ONCE, **options
            )
            return asyncio.create_task(_failing_as_activity(local, told))
        queue = TOGETHER if self.together else step.queue
        return workflow.start_activity_method(
            step.activity, request, task_queue=queue, summary=told, **options
        )


async def _failing_as_activity(local: ActivityHandle[A], summary: str) -> A:
    """Await a local activity; what it fails with is told as of any other activity.

    The SDK raises the cause of a local one by itself, without the activity around it.
    """
    try:
        return await local
    except (ApplicationError, exceptions.TimeoutError) as cause:
        late = isinstance(cause, exceptions.TimeoutError)
        raise ActivityError(
            f"{summary} failed",
            scheduled_event_id=0,
            started_event_id=0,
            identity="",
            activity_type=summary,
            activity_id="",
            retry_state=RetryState.TIMEOUT if late else RetryState.NON_RETRYABLE_FAILURE,
        ) from cause
