"""A run as Temporal tells it: its description, its history, and how its clock is to be read."""

from collections.abc import Collection
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

from temporalio.api.history.v1 import HistoryEvent
from temporalio.api.workflowservice.v1 import DescribeWorkflowExecutionResponse
from temporalio.client import Client
from temporalio.service import RPCError, RPCStatusCode

from everycent.gateways.runs import PATIENCE, describe_run, list_runs, status_of

_HEARTBEAT = timedelta(seconds=4)  # A task with a local step that takes longer is given back at 8.


@dataclass(frozen=True)
class FetchedRun:
    """One run; `status` is Temporal's word for it."""

    workflow_id: str
    run_id: str
    status: str
    started_at: datetime
    closed_at: datetime | None
    description: DescribeWorkflowExecutionResponse
    events: tuple[HistoryEvent, ...]


async def listed(client: Client, workflow_id: str) -> list[str]:
    """Return the runs of a workflow that Temporal's list shows, which may be late."""
    try:
        return await list_runs(client, workflow_id)
    except RPCError as error:
        if error.status is RPCStatusCode.UNIMPLEMENTED:  # The time-skipping server keeps no list.
            return []
        raise


async def fetch_run(
    client: Client, workflow_id: str, run_id: str, known: Collection[str] = ()
) -> FetchedRun | None:
    """Return a run, the newest if `run_id` is empty; None if there is none, or it is `known`."""
    try:
        told = await describe_run(client, workflow_id, run_id)
    except RPCError as error:
        if error.status in (RPCStatusCode.NOT_FOUND, RPCStatusCode.INVALID_ARGUMENT):
            return None  # Deleted, or a run id that never was one.
        raise
    run = told.workflow_execution_info
    if run.execution.run_id in known:
        return None
    handle = client.get_workflow_handle(workflow_id, run_id=run.execution.run_id)
    events = [event async for event in handle.fetch_history_events(rpc_timeout=PATIENCE)]
    return FetchedRun(
        workflow_id=workflow_id,
        run_id=run.execution.run_id,
        status=status_of(run),
        started_at=run.start_time.ToDatetime(UTC),
        closed_at=run.close_time.ToDatetime(UTC) if run.HasField("close_time") else None,
        description=told,
        events=tuple(events),
    )


@dataclass
class LocalClock:
    """How long a step took that ran where the run is.

    Its marker gives the worker's time at which it was asked for, and its end in the run's own time:
    the run's time when it began, and what it took. A run's time is that of its task, or the end of
    the last local step that it had heard of.
    """

    _woken_at: datetime | None = None
    _ended: list[tuple[datetime, datetime]] = field(default_factory=list)  # Worker's, run's time.

    def woken(self, at: datetime) -> None:
        """Take note that the run's next task began."""
        self._woken_at, self._ended = at, []

    def lasted(self, asked_at: datetime, ended: datetime, attempt: int) -> float | None:
        """Return the seconds that a step took, None if its marker does not tell.

        It does not for a repeated one, whose first attempt gave the time, nor for one that its task
        did not wait for.
        """
        if self._woken_at is None or attempt > 1 or asked_at < self._woken_at - _HEARTBEAT:
            return None
        heard = (run_time for end, run_time in self._ended if end <= asked_at)
        lasted = ended - max(heard, default=self._woken_at)
        self._ended.append((asked_at + lasted, ended))
        return lasted.total_seconds() if lasted > timedelta(0) else None
