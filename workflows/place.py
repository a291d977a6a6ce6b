"""Where the steps of a run are executed: in each service's own worker, or where the run itself is.

The choice is made when the run is started, stands in its memo, and so is kept for its life, through
replay and reset (docs/decisions/0006-steps-where-the-run-is.md).
"""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Final, Self, TypeVar

from temporalio import exceptions, workflow
from temporalio.exceptions import ActivityError, ApplicationError, RetryState
from temporalio.workflow import ActivityHandle

with workflow.unsafe.imports_passed_through():
    from workers.queues import TOGETHER
    from workflows.options import StepOptions

R = TypeVar("R")
A = TypeVar("A")
MEMO: Final = "steps"
TOGETHER_MEMO: Final = {MEMO: "together"}


@dataclass(frozen=True)
class Place:
    """How one run starts its steps; `together` means that its worker has every database."""

    together: bool

    @classmethod
    def of_this_run(cls) -> Self:
        """Return what was chosen when this run was started."""
        return cls(together=workflow.memo_value(MEMO, default=None) == TOGETHER_MEMO[MEMO])

    def database_step(
        self,
        activity: Callable[[Any, R], Awaitable[A]],
        request: R,
        *,
        queue: str,
        summary: str,
        options: StepOptions,
    ) -> asyncio.Task[A]:
        """Start a step that takes milliseconds: together it is a local activity, one event."""
        if self.together:
            local = workflow.start_local_activity_method(
                activity, request, summary=summary, **options
            )
            return asyncio.create_task(_failing_as_activity(local, summary))
        return workflow.start_activity_method(
            activity, request, task_queue=queue, summary=summary, **options
        )

    def provider_step(
        self,
        activity: Callable[[Any, R], Awaitable[A]],
        request: R,
        *,
        queue: str,
        summary: str,
        options: StepOptions,
    ) -> ActivityHandle[A]:
        """Start a step that waits for another company: a local one would hold up every message."""
        return workflow.start_activity_method(
            activity,
            request,
            task_queue=TOGETHER if self.together else queue,
            summary=summary,
            **options,
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
