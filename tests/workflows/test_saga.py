"""The saga engine alone, in a flow of a user: no service and no database of ours."""

import asyncio
import uuid
from dataclasses import dataclass, field
from datetime import timedelta

import pytest
from temporalio import activity, workflow
from temporalio.client import Client
from temporalio.exceptions import ActivityError, ApplicationError
from temporalio.testing import WorkflowEnvironment
from temporalio.worker import Worker
from temporalio.worker.workflow_sandbox import SandboxedWorkflowRunner

with workflow.unsafe.imports_passed_through():
    from workflows.saga import Saga, uninterrupted

QUICK = timedelta(seconds=5)


@dataclass
class Diary:
    """What the activities did, and which of them fail."""

    lines: list[str] = field(default_factory=list)
    failing: set[str] = field(default_factory=set)
    hold: asyncio.Event | None = None

    @activity.defn(name="book")
    async def book(self, what: str) -> str:
        self.lines.append(f"book {what}")
        if what in self.failing:
            raise ApplicationError("fully booked", type="Bug", non_retryable=True)
        return f"{what}-17"

    @activity.defn(name="unbook")
    async def unbook(self, ticket: str) -> None:
        if self.hold is not None:
            await self.hold.wait()
        self.lines.append(f"unbook {ticket}")
        if f"unbook {ticket}" in self.failing:
            raise ApplicationError("the office is closed", type="Bug", non_retryable=True)


async def book(what: str) -> str:
    ticket: str = await workflow.execute_activity(
        "book", what, result_type=str, start_to_close_timeout=QUICK
    )
    return ticket


async def unbook(ticket: str) -> None:
    await workflow.execute_activity("unbook", ticket, start_to_close_timeout=QUICK)


@workflow.defn(name="trip")
class Trip:
    """Book three things; undo them with the tickets that the bookings gave."""

    @workflow.run
    async def run(self, things: list[str]) -> list[list[str]]:
        return await uninterrupted(self._travel(things))

    async def _travel(self, things: list[str]) -> list[list[str]]:
        saga = Saga()
        try:
            for thing in things:
                await saga.step(
                    thing,
                    thing,
                    lambda thing=thing: book(thing),  # type: ignore[misc]
                    lambda ticket, thing=thing: unbook(ticket or f"unknown {thing}"),  # type: ignore[misc]
                )
        except ActivityError:
            parked = await saga.compensate()
            return [saga.undone, [step.name for step in parked]]
        return [[], []]


async def travel(
    client: Client, diary: Diary, things: list[str], *, cancel: bool = False
) -> list[list[str]]:
    queue = f"trip-{uuid.uuid4()}"
    async with Worker(
        client,
        task_queue=queue,
        workflows=[Trip],
        activities=[diary.book, diary.unbook],
        workflow_runner=SandboxedWorkflowRunner(),
    ):
        handle = await client.start_workflow(Trip.run, things, id=queue, task_queue=queue)
        if cancel:
            async with asyncio.timeout(10):
                while "book car" not in diary.lines:
                    await asyncio.sleep(0.01)
            await handle.cancel()
            assert diary.hold is not None
            diary.hold.set()
        return await handle.result()


@pytest.mark.requirement("T15", "AC2.4")
async def test_an_undo_gets_the_result_of_its_step_and_unknown_if_there_is_none(
    temporal: WorkflowEnvironment,
) -> None:
    """The flight's ticket flows into its undo; the failed car has none, and its undo runs too.

    Red when: `Saga.step` forgets the result, or registers the undo after the action.
    """
    diary = Diary(failing={"car"})
    undone, parked = await travel(temporal.client, diary, ["flight", "hotel", "car"])
    assert diary.lines[3:] == ["unbook unknown car", "unbook hotel-17", "unbook flight-17"]
    assert undone == ["car", "hotel", "flight"]
    assert parked == []


@pytest.mark.requirement("T16")
async def test_an_undo_that_fails_is_told_and_the_others_run(temporal: WorkflowEnvironment) -> None:
    """The hotel cannot be given back: flight and car are, and the hotel is named as parked.

    Red when: `compensate` lets the first failure out.
    """
    diary = Diary(failing={"car", "unbook hotel-17"})
    undone, parked = await travel(temporal.client, diary, ["flight", "hotel", "car"])
    assert (undone, parked) == (["car", "flight"], ["hotel"])


@pytest.mark.requirement("AC2.4")
async def test_a_cancelled_run_still_undoes_everything(temporal: WorkflowEnvironment) -> None:
    """The run is cancelled while its first undo is held: it ends with all three undone.

    Red when: `uninterrupted` lets the cancellation reach the work.
    """
    diary = Diary(failing={"car"}, hold=asyncio.Event())
    undone, _ = await travel(temporal.client, diary, ["flight", "hotel", "car"], cancel=True)
    assert undone == ["car", "hotel", "flight"]
