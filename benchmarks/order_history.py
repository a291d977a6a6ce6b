"""What one order costs in Temporal: history events, and actions as Temporal Cloud bills them."""

import json
from collections import Counter
from pathlib import Path
from statistics import mean
from typing import Any

from pydantic import BaseModel
from temporalio.api.enums.v1 import EventType
from temporalio.client import WorkflowHandle, WorkflowHistory

from benchmarks.orders import Till, at_pace, order
from benchmarks.result import Result
from everycent.domain.order import OrderStatus

BUDGET = Path(__file__).with_name("budget.json")
WORKFLOW_TASK = frozenset(
    {
        EventType.EVENT_TYPE_WORKFLOW_TASK_SCHEDULED,
        EventType.EVENT_TYPE_WORKFLOW_TASK_STARTED,
        EventType.EVENT_TYPE_WORKFLOW_TASK_COMPLETED,
        EventType.EVENT_TYPE_WORKFLOW_TASK_TIMED_OUT,
        EventType.EVENT_TYPE_WORKFLOW_TASK_FAILED,
    }
)
# docs.temporal.io/cloud/actions. An activity counts once per attempt, and the local activities of
# one workflow task count once together, see `cost_of`.
ACTIONS = {
    EventType.EVENT_TYPE_WORKFLOW_EXECUTION_STARTED: 1,
    EventType.EVENT_TYPE_WORKFLOW_EXECUTION_SIGNALED: 1,
    EventType.EVENT_TYPE_WORKFLOW_EXECUTION_UPDATE_ACCEPTED: 1,
    EventType.EVENT_TYPE_WORKFLOW_EXECUTION_CONTINUED_AS_NEW: 1,
    EventType.EVENT_TYPE_TIMER_STARTED: 1,
    EventType.EVENT_TYPE_UPSERT_WORKFLOW_SEARCH_ATTRIBUTES: 1,
    EventType.EVENT_TYPE_WORKFLOW_PROPERTIES_MODIFIED: 1,
    EventType.EVENT_TYPE_SIGNAL_EXTERNAL_WORKFLOW_EXECUTION_INITIATED: 1,
    EventType.EVENT_TYPE_START_CHILD_WORKFLOW_EXECUTION_INITIATED: 2,
    EventType.EVENT_TYPE_NEXUS_OPERATION_SCHEDULED: 1,
}


class Cost(BaseModel):
    """What one history holds. How many workflow tasks there are depends on who answers first."""

    lasting_events: int  # Beside those of workflow tasks: the same in every run of a story.
    workflow_tasks: int
    actions: int
    retries: int = 0  # Attempts that were repeated: what a busy machine adds to the actions.

    @property
    def events(self) -> int:
        """All events: a workflow task is scheduled, started and completed."""
        return self.lasting_events + 3 * self.workflow_tasks


def cost_of(history: WorkflowHistory) -> Cost:
    """Count the events and the billable actions of one run."""
    kinds = Counter(event.event_type for event in history.events)
    attempts = [
        event.activity_task_started_event_attributes.attempt
        for event in history.events
        if event.event_type == EventType.EVENT_TYPE_ACTIVITY_TASK_STARTED
    ]
    tasks_with_local_activities = {
        event.marker_recorded_event_attributes.workflow_task_completed_event_id
        for event in history.events
        if event.event_type == EventType.EVENT_TYPE_MARKER_RECORDED
    }
    return Cost(
        lasting_events=sum(count for kind, count in kinds.items() if kind not in WORKFLOW_TASK),
        workflow_tasks=kinds[EventType.EVENT_TYPE_WORKFLOW_TASK_COMPLETED],
        actions=sum(attempts)
        + len(tasks_with_local_activities)
        + sum(count * kinds[kind] for kind, count in ACTIONS.items()),
        retries=sum(attempts) - len(attempts),
    )


def budget() -> dict[str, Cost]:
    """Return what an order of each kind may cost at most."""
    return {name: Cost(**cost) for name, cost in json.loads(BUDGET.read_text()).items()}


async def measure(till: Till, *, run: str, count: int) -> list[Result]:
    """Sell orders, and refuse some for want of stock, and count what each left behind."""
    confirmed = await _costs(till, run=f"{run}-c", count=count, sku=None)
    refused = await _costs(till, run=f"{run}-r", count=count, sku="NONE-LEFT")
    allowed, suffix = budget(), "_together" if till.together else ""
    return [
        result
        for name, costs in (("confirmed", confirmed), ("refused", refused))
        for told in (f"{name} order, {till.name}",)
        for result in (
            _held_to("events", told, [c.events for c in costs], allowed[name + suffix].events),
            _held_to(
                "billable actions", told, [c.actions for c in costs], allowed[name + suffix].actions
            ),
        )
    ]


def _held_to(what: str, name: str, counts: list[int], limit: int) -> Result:
    details: dict[str, Any] = {"least": min(counts), "most": max(counts), "orders": len(counts)}
    return Result(
        name=f"{what} per {name}",
        value=round(mean(counts), 1),
        unit=what.split()[-1],
        limit=limit,
        bound="most",
        details=details,
    )


async def _costs(till: Till, *, run: str, count: int, sku: str | None) -> list[Cost]:
    costs: list[Cost] = []
    wanted_status = OrderStatus.REJECTED if sku else OrderStatus.CONFIRMED

    async def one(number: int) -> None:
        name = f"{run}-{number}"
        wanted = order(name, sku=sku) if sku else order(name)
        handle: WorkflowHandle[Any, Any] = await till.start(wanted)
        result = await handle.result()
        assert result.status is wanted_status, result
        costs.append(cost_of(await handle.fetch_history()))

    await at_pace(count, one, in_flight=10)
    return costs
