"""The sweeper's eyes: it reads each service in a lane of its own, and asks Temporal by id."""

import asyncio
import base64
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from datetime import UTC

from sqlalchemy.ext.asyncio import AsyncConnection
from temporalio import activity
from temporalio.api.common.v1 import WorkflowExecution
from temporalio.api.enums.v1 import EventType, WorkflowExecutionStatus
from temporalio.api.workflow.v1 import WorkflowExecutionInfo
from temporalio.api.workflowservice.v1 import (
    DescribeWorkflowExecutionRequest,
    ListWorkflowExecutionsRequest,
)
from temporalio.client import Client, WorkflowHistoryEventFilterType
from temporalio.service import RPCError, RPCStatusCode

from activities.boundary import errors_for_temporal
from everycent.database import sweep_reads
from everycent.database.engine import Database
from everycent.domain.sweep import HoldService, RunState, Standing
from everycent.domain.sweep_questions import (
    HoldPage,
    HoldsOf,
    KeyPage,
    KeyStates,
    Rows,
    Running,
    RunningPage,
    StandingsOf,
    Unfinished,
    UnfinishedPage,
    WorkflowIds,
)

_AT_ONCE = 10


class OrderSweepActivities:
    """What the order's database is asked."""

    def __init__(self, database: Database) -> None:
        self._database = database

    @activity.defn(name="sweep.unfinished")
    async def unfinished(self, asked: Unfinished) -> UnfinishedPage:
        """Name unfinished orders that have stood still."""
        async with _reading(self._database) as tx:
            return await sweep_reads.unfinished(tx, asked)

    @activity.defn(name="sweep.standings")
    async def standings(self, asked: StandingsOf) -> list[Standing]:
        """Tell how orders stand."""
        async with _reading(self._database) as tx:
            return await sweep_reads.standings(tx, asked)

    @activity.defn(name="sweep.confirmed_orders")
    async def confirmed_orders(self, asked: Rows) -> KeyPage:
        """Name the confirmed orders."""
        async with _reading(self._database) as tx:
            return await sweep_reads.confirmed_orders(tx, asked)

    @activity.defn(name="sweep.strangers")
    async def strangers(self, asked: StandingsOf) -> StandingsOf:
        """Name the orders that may keep no money."""
        async with _reading(self._database) as tx:
            return await sweep_reads.strangers(tx, asked)


class HoldSweepActivities:
    """What the database of a service with holds is asked."""

    def __init__(self, database: Database, service: HoldService) -> None:
        self._database = database
        self._service = service

    @activity.defn(name="sweep.holds")
    async def holds(self, asked: Rows) -> HoldPage:
        """Name what is open, or keeps money."""
        async with _reading(self._database) as tx:
            return await sweep_reads.holds(tx, self._service, asked)

    @activity.defn(name="sweep.holds_of")
    async def holds_of(self, asked: HoldsOf) -> HoldPage:
        """Look at holds once more."""
        async with _reading(self._database) as tx:
            return await sweep_reads.holds_of(tx, self._service, asked)

    @activity.defn(name="sweep.unsold")
    async def unsold(self, asked: StandingsOf) -> KeyStates:
        """Name the reservations of these orders that are not sold; of the inventory alone."""
        async with _reading(self._database) as tx:
            return await sweep_reads.unsold(tx, asked)


class RunSweepActivities:
    """What Temporal is asked."""

    @activity.defn(name="sweep.runs")
    async def runs(self, asked: WorkflowIds) -> list[RunState]:
        """Tell how workflows stand."""
        return await describe_runs(activity.client(), asked.workflow_ids)

    @activity.defn(name="sweep.running")
    async def running(self, asked: Running) -> RunningPage:
        """Name orders' runs that have lived for a while; a list, so each is described after it."""
        return await list_running(activity.client(), asked)


async def list_running(client: Client, asked: Running) -> RunningPage:
    """Return workflow ids of checkouts that Temporal lists as begun before then and not closed."""
    query = f"WorkflowType = 'checkout' AND StartTime < '{asked.before.isoformat()}'"
    prefix = f"checkout/{asked.tenant}/" if asked.tenant else "checkout/"
    try:
        page = await list_open(client, query, limit=asked.limit, after=asked.after)
    except RPCError as error:
        if error.status is RPCStatusCode.UNIMPLEMENTED:  # The time-skipping server keeps no list.
            return RunningPage(workflow_ids=())
        raise
    ours = tuple(each for each in page.workflow_ids if each.startswith(prefix))
    return page.model_copy(update={"workflow_ids": ours})


async def list_open(client: Client, query: str, *, limit: int, after: str = "") -> RunningPage:
    """List runs that are not closed, paused ones too: the SDK's own list cannot read these."""
    asked = ListWorkflowExecutionsRequest(
        namespace=client.namespace,
        page_size=limit,
        next_page_token=base64.b64decode(after),
        query=f"CloseTime IS NULL AND {query}" if query else "CloseTime IS NULL",
    )
    page = await client.workflow_service.list_workflow_executions(asked, retry=True)
    return RunningPage(
        workflow_ids=tuple(each.execution.workflow_id for each in page.executions),
        next=base64.b64encode(page.next_page_token).decode() or None,
    )


async def describe_runs(client: Client, workflow_ids: Sequence[str]) -> list[RunState]:
    """Describe each workflow by its id: a list shows a change late."""
    runs: list[RunState] = []
    for start in range(0, len(workflow_ids), _AT_ONCE):
        some = workflow_ids[start : start + _AT_ONCE]
        runs += await asyncio.gather(*(_describe(client, workflow_id) for workflow_id in some))
    return runs


async def _describe(client: Client, workflow_id: str) -> RunState:
    asked = DescribeWorkflowExecutionRequest(
        namespace=client.namespace, execution=WorkflowExecution(workflow_id=workflow_id)
    )
    try:
        told = await client.workflow_service.describe_workflow_execution(asked, retry=True)
    except RPCError as error:
        if error.status is RPCStatusCode.NOT_FOUND:
            return RunState(workflow_id=workflow_id)
        raise
    run = told.workflow_execution_info
    status = status_of(run)
    how = ""
    if status == "terminated":
        how = await _how_it_ended(client, workflow_id, run.execution.run_id)
    started_at = run.start_time.ToDatetime(UTC)
    return RunState(workflow_id=workflow_id, status=status, ended_how=how, started_at=started_at)


def status_of(run: WorkflowExecutionInfo) -> str:
    """Name the status as Temporal says it: the SDK's own reading knows no paused run."""
    if run.status == WorkflowExecutionStatus.WORKFLOW_EXECUTION_STATUS_UNSPECIFIED:
        return "unknown"
    name = WorkflowExecutionStatus.Name(run.status)
    return name.removeprefix("WORKFLOW_EXECUTION_STATUS_").lower()


async def _how_it_ended(client: Client, workflow_id: str, run_id: str) -> str:
    handle = client.get_workflow_handle(workflow_id, run_id=run_id)
    last = WorkflowHistoryEventFilterType.CLOSE_EVENT
    async for event in handle.fetch_history_events(event_filter_type=last):
        if event.event_type == EventType.EVENT_TYPE_WORKFLOW_EXECUTION_TERMINATED:
            ended = event.workflow_execution_terminated_event_attributes
            return f"by {ended.identity}: {ended.reason}"
    return ""


@asynccontextmanager
async def _reading(database: Database) -> AsyncIterator[AsyncConnection]:
    with errors_for_temporal():
        async with database.snapshot() as tx:
            yield tx
