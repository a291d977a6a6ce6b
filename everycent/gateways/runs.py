"""How runs stand in Temporal, asked by raw requests: the SDK cannot read a paused one."""

import asyncio
import base64
from collections.abc import Sequence
from datetime import UTC, timedelta

from temporalio.api.common.v1 import WorkflowExecution
from temporalio.api.enums.v1 import EventType, WorkflowExecutionStatus
from temporalio.api.workflow.v1 import WorkflowExecutionInfo
from temporalio.api.workflowservice.v1 import (
    DescribeWorkflowExecutionRequest,
    DescribeWorkflowExecutionResponse,
    ListWorkflowExecutionsRequest,
)
from temporalio.client import Client, WorkflowHistoryEventFilterType
from temporalio.service import RPCError, RPCStatusCode

from everycent.domain.sweep import RunState
from everycent.domain.sweep_questions import Running, RunningPage

PATIENCE = timedelta(seconds=10)
_AT_ONCE = 10


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


async def list_runs(client: Client, workflow_id: str) -> list[str]:
    """Return the ids of a workflow's runs that the list shows, which may be late."""
    asked = ListWorkflowExecutionsRequest(
        namespace=client.namespace, query=f'WorkflowId = "{workflow_id}"'
    )
    run_ids: list[str] = []
    while True:
        page = await client.workflow_service.list_workflow_executions(
            asked, retry=True, timeout=PATIENCE
        )
        run_ids += [each.execution.run_id for each in page.executions]
        if not page.next_page_token:
            return run_ids
        asked.next_page_token = page.next_page_token


async def describe_run(
    client: Client, workflow_id: str, run_id: str = ""
) -> DescribeWorkflowExecutionResponse:
    """Describe one run, the newest if `run_id` is empty. Raises RPCError, NOT_FOUND if none."""
    asked = DescribeWorkflowExecutionRequest(
        namespace=client.namespace,
        execution=WorkflowExecution(workflow_id=workflow_id, run_id=run_id),
    )
    return await client.workflow_service.describe_workflow_execution(
        asked, retry=True, timeout=PATIENCE
    )


async def describe_runs(client: Client, workflow_ids: Sequence[str]) -> list[RunState]:
    """Describe each workflow by its id: a list shows a change late."""
    runs: list[RunState] = []
    for start in range(0, len(workflow_ids), _AT_ONCE):
        some = workflow_ids[start : start + _AT_ONCE]
        runs += await asyncio.gather(*(_describe(client, workflow_id) for workflow_id in some))
    return runs


async def _describe(client: Client, workflow_id: str) -> RunState:
    try:
        told = await describe_run(client, workflow_id)
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
