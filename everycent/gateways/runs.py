"""How runs stand in Temporal, asked by raw requests: the SDK cannot read a paused one."""

import asyncio
import base64
from collections.abc import Sequence
from datetime import UTC, timedelta

from temporalio.api.common.v1 import WorkflowExecution
from temporalio.api.enums.v1 import EventType, WorkflowExecutionStatus, WorkflowTaskFailedCause
from temporalio.api.history.v1 import HistoryEvent
from temporalio.api.workflow.v1 import WorkflowExecutionInfo
from temporalio.api.workflowservice.v1 import (
    DescribeWorkflowExecutionRequest,
    DescribeWorkflowExecutionResponse,
    GetWorkflowExecutionHistoryReverseRequest,
    ListWorkflowExecutionsRequest,
)
from temporalio.client import Client, WorkflowHistoryEventFilterType
from temporalio.service import RPCError, RPCStatusCode

from everycent.domain.sweep import RunState, TaskFailure
from everycent.domain.sweep_questions import EndRun, Running, RunningPage

PATIENCE = timedelta(seconds=10)
_AT_ONCE = 10
_NEWEST, _TOLD = 100, 300  # Events that are read from the end, characters of a failure's message.
_NONDETERMINISTIC = WorkflowTaskFailedCause.WORKFLOW_TASK_FAILED_CAUSE_NON_DETERMINISTIC_ERROR


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
    failure = None
    if status == "running" and told.pending_workflow_task.attempt > 1:
        failure = await _why_its_task_fails(client, run.execution)
    return RunState(
        workflow_id=workflow_id,
        status=status,
        ended_how=how,
        started_at=run.start_time.ToDatetime(UTC),
        run_id=run.execution.run_id,
        task_failure=failure,
    )


async def end_stuck_run(client: Client, asked: EndRun) -> str:
    """End a run whose task fails for ever; say what came of it, also if that is nothing.

    It is looked at again first: what has recovered, or ended, or is another run, is left alone.
    """
    run = await _describe(client, asked.workflow_id)
    is_it = run.run_id == asked.run_id and run.fails_since(asked.failing_since)
    if not (is_it and run.can_never_go_on):
        return "its run was left alone, for it does not fail any more"
    handle = client.get_workflow_handle(asked.workflow_id, run_id=asked.run_id)
    try:
        await handle.terminate(reason=asked.reason, rpc_timeout=PATIENCE)
    except RPCError as error:
        if error.status is not RPCStatusCode.NOT_FOUND:
            raise
        return "its run had ended"
    return f"run {asked.run_id} was ended"


async def _why_its_task_fails(client: Client, execution: WorkflowExecution) -> TaskFailure | None:
    """Read from the end of its history how its task fails since one succeeded last.

    Only the first failure in a row is written down there; that one tells since when, and why.
    """
    asked = GetWorkflowExecutionHistoryReverseRequest(
        namespace=client.namespace, execution=execution, maximum_page_size=_NEWEST
    )
    page = await client.workflow_service.get_workflow_execution_history_reverse(
        asked, retry=True, timeout=PATIENCE
    )
    failed: list[HistoryEvent] = []
    for event in page.history.events:
        if event.event_type == EventType.EVENT_TYPE_WORKFLOW_TASK_COMPLETED:
            break
        if event.event_type == EventType.EVENT_TYPE_WORKFLOW_TASK_FAILED:
            failed.append(event)
    if not failed:  # It was lost on its way, or timed out: another try may well succeed.
        return None
    newest = failed[0].workflow_task_failed_event_attributes
    cause = WorkflowTaskFailedCause.Name(newest.cause).removeprefix("WORKFLOW_TASK_FAILED_CAUSE_")
    return TaskFailure(
        since=failed[-1].event_time.ToDatetime(UTC),
        why=f"{cause}, {newest.failure.message[:_TOLD]}",
        nondeterministic=newest.cause == _NONDETERMINISTIC,
    )


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
