"""An activity by itself, without a workflow: what a starter writes before any flow begins."""

from collections.abc import Awaitable, Callable
from datetime import timedelta
from typing import Any, TypeVar

from temporalio.client import ActivityFailureError, Client
from temporalio.common import ActivityIDConflictPolicy
from temporalio.exceptions import ApplicationError

from everycent.errors import Unknown, by_name
from workflows.options import DATABASE_STEP

T = TypeVar("T")
PATIENCE = timedelta(minutes=2)  # Without a worker nobody would ever answer.


async def run_alone(
    client: Client,
    method: Callable[[Any, Any], Awaitable[T]],
    request: Any,
    *,
    queue: str,
    activity_id: str,
) -> T:
    """Run an activity method on a queue; who asks under the same id meanwhile has its answer.

    So the id must say all that matters of the request. Raises the error of ours that ended it.
    """
    try:
        return await client.execute_activity_method(
            method,
            request,
            id=activity_id,
            task_queue=queue,
            id_conflict_policy=ActivityIDConflictPolicy.USE_EXISTING,
            schedule_to_close_timeout=PATIENCE,
            start_to_close_timeout=DATABASE_STEP["start_to_close_timeout"],
            retry_policy=DATABASE_STEP["retry_policy"],
        )
    except ActivityFailureError as error:
        cause = error.cause
        ours = by_name(cause.type or "") if isinstance(cause, ApplicationError) else None
        told = str(getattr(cause, "message", "") or cause or error)
        raise (ours or Unknown)(told) from error
