"""What a worker remembers of a run is never ahead of the run's tasks."""

import asyncio
import contextlib
import gc
import itertools
import subprocess
import sys
import uuid
import weakref
from collections.abc import AsyncIterator, Iterator
from typing import Any, cast

import pytest
from temporalio import activity
from temporalio.api.enums.v1 import EventType
from temporalio.bridge.proto.workflow_activation import WorkflowActivation, WorkflowActivationJob
from temporalio.bridge.proto.workflow_completion import WorkflowActivationCompletion
from temporalio.client import Client, WorkflowHandle
from temporalio.worker import (
    UnsandboxedWorkflowRunner,
    Worker,
    WorkflowInstance,
    WorkflowInstanceDetails,
    WorkflowRunner,
)

from tests.proof.sweeper_site import temporal_server
from tests.workers.asked_flow import DEAD_SECONDS, QUEUE, STEPS, Asked, quick
from workers.activations import Activations, Ahead, StateAheadError

pytestmark = pytest.mark.timeout(180)
Told = tuple[str, int, int, bool]
"""What an activation brings, the second its task began in, the history's length, if replaying."""
BEGUN: Told = ("initialize_workflow", 1, 3, True)
ASKED: Told = ("query_workflow", 1, 10, True)
BY_A_QUERY: Told = ("resolve_activity", 1, 10, False)


def activation(told: Told) -> WorkflowActivation:
    kind, second, length, is_replaying = told
    act = WorkflowActivation(history_length=length, is_replaying=is_replaying)
    act.timestamp.FromSeconds(second)
    job = WorkflowActivationJob()
    getattr(job, kind).SetInParent()
    act.jobs.append(job)
    return act


def see(*told: Told) -> None:
    """Show one worker these activations of a run."""
    ahead = Ahead()
    for each in told:
        ahead.check(activation(each))


@pytest.mark.parametrize(
    "next_task",
    [("do_update", 2, 11, False), ("do_update", 12, 13, False), ("signal_workflow", 2, 11, False)],
    ids=["update", "update after the dead worker's time-out", "signal"],
)
def test_a_run_that_a_query_moved_on_gets_no_further_task(next_task: Told) -> None:
    """Red when: what a worker computed for a query alone counts as the run's own progress."""
    see(BEGUN, BY_A_QUERY, ASKED)
    with pytest.raises(StateAheadError):
        see(BEGUN, BY_A_QUERY, ASKED, next_task)


@pytest.mark.parametrize(
    "told",
    [
        # A task that began for itself, an update, and what comes after them.
        (BEGUN, ("resolve_activity", 2, 11, False), ("do_update", 3, 16, False)),
        # Questions between the tasks, of a run that is remembered.
        (BEGUN, ("resolve_activity", 2, 11, False), ASKED, ASKED, ("do_update", 3, 16, False)),
        # Local activities: many activations in one task, and in the one after its heartbeat.
        (BEGUN, *[("resolve_activity", 2, 11, False)] * 3, ("resolve_activity", 3, 14, False)),
        # A task whose update was refused has left no event behind.
        (BEGUN, ("do_update", 2, 9, False), ("do_update", 3, 9, False), ("do_update", 4, 9, False)),
        # A run that is begun here, and one that is forgotten.
        (("initialize_workflow", 1, 3, False), ("resolve_activity", 2, 10, False)),
        (BEGUN, BY_A_QUERY, ASKED, ("remove_from_cache", 0, 10, False)),
        # A replay, in which the server's clock stood still.
        (BEGUN, ("resolve_activity", 1, 10, True), ("resolve_activity", 1, 17, True)),
    ],
)
def test_tasks_that_follow_each_other_pass(told: tuple[Told, ...]) -> None:
    """Red when: a task is refused that no query has run ahead of."""
    see(*told)


def test_whatever_is_refused_passes_after_one_replay() -> None:
    """Red when: a worker that has forgotten the run can refuse the same task again."""
    kind = "resolve_activity"
    tasks: list[Told] = [(kind, 1, length, False) for length in range(3, 60, 5)]  # One second all.
    refused, ahead = 0, Ahead()
    for number, task in enumerate(tasks):
        try:
            ahead.check(activation(task))
        except StateAheadError:
            refused += 1
            ahead = Ahead()
            for _, second, length, _ in tasks[:number]:
                ahead.check(activation((kind, second, length, True)))
            ahead.check(activation(task))
    assert refused > 0


# -- on a whole server


@pytest.fixture(scope="module")
async def client() -> AsyncIterator[Client]:
    async with temporal_server() as env:
        yield env.client


@contextlib.contextmanager
def worker_process(client: Client) -> Iterator[subprocess.Popen[bytes]]:
    address = client.service_client.config.target_host
    process = subprocess.Popen([sys.executable, "-m", "tests.workers.asked_flow", address])
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def hosting(client: Client, runner: WorkflowRunner) -> Worker:
    return Worker(client, task_queue=QUEUE, workflows=[Asked], workflow_runner=runner)


@contextlib.asynccontextmanager
async def steps(client: Client, gate: asyncio.Event) -> AsyncIterator[asyncio.Event]:
    """Host the steps; yields what is set when the slow one has begun."""
    begun = asyncio.Event()

    @activity.defn
    async def slow() -> None:
        begun.set()
        await gate.wait()

    async with Worker(client, task_queue=STEPS, activities=[slow, quick]):
        yield begun


async def events_of(handle: WorkflowHandle[Asked, str]) -> list["EventType.ValueType"]:
    return [event.event_type async for event in handle.fetch_history_events()]


async def asked_while_nobody_remembers(client: Client, runner: WorkflowRunner) -> int:
    """Ask a run whose worker is dead while a step runs; then the step ends and somebody pays.

    Returns how many of its tasks failed; the run has ended, after a replay by a third worker.
    """
    gate = asyncio.Event()
    async with steps(client, gate) as begun:
        with worker_process(client):
            handle = await client.start_workflow(Asked.run, id=str(uuid.uuid4()), task_queue=QUEUE)
            await begun.wait()
        async with hosting(client, runner):
            # The server asks the dead one first, and the new one as soon as it has given up.
            asking = asyncio.create_task(handle.query(Asked.progress))
            await asyncio.sleep(DEAD_SECONDS / 3)
            gate.set()
            assert await asking == "asked"
            assert await handle.execute_update(Asked.pay) == "paid"
        async with hosting(client, runner):
            await handle.signal(Asked.end)
            async with asyncio.timeout(30):
                assert await handle.result() == "ended"
    return (await events_of(handle)).count(EventType.EVENT_TYPE_WORKFLOW_TASK_FAILED)


async def test_a_query_that_a_new_worker_answers_spoils_no_history(client: Client) -> None:
    """Red when: the activations are not checked: then no worker can replay the run any more."""
    guarded = Activations(UnsandboxedWorkflowRunner())
    for _ in range(5):  # On a busy machine the step may end before the question has arrived.
        if await asked_while_nobody_remembers(client, guarded):
            return
    raise AssertionError("no query was ever answered before the run's next task")


class StandingClock(WorkflowRunner):
    """Lets every task look as if it began at the same time."""

    def __init__(self, runner: WorkflowRunner) -> None:
        self._runner = runner

    def prepare_workflow(self, defn: object) -> None:
        self._runner.prepare_workflow(defn)  # type: ignore[arg-type]

    def create_instance(self, det: WorkflowInstanceDetails) -> WorkflowInstance:
        instance = self._runner.create_instance(det)
        activate = instance.activate

        def standing(act: WorkflowActivation) -> WorkflowActivationCompletion:
            act.timestamp.FromSeconds(1_800_000_000)
            return activate(act)

        instance.activate = standing  # type: ignore[method-assign]
        return instance


async def test_a_false_alarm_costs_one_replay_and_nothing_else(client: Client) -> None:
    """Red when: a task that is refused wrongly is refused again, or ends the run."""
    gate = asyncio.Event()
    gate.set()
    runner = StandingClock(Activations(UnsandboxedWorkflowRunner()))
    async with steps(client, gate), hosting(client, runner):
        handle = await client.start_workflow(Asked.run, id=str(uuid.uuid4()), task_queue=QUEUE)
        for _ in range(3):
            assert await handle.execute_update(Asked.pay) == "paid"
        await handle.signal(Asked.end)
        assert await handle.result() == "ended"
    events = await events_of(handle)
    tasks = [e for e in events if EventType.Name(e).startswith("EVENT_TYPE_WORKFLOW_TASK_")]
    failed = EventType.EVENT_TYPE_WORKFLOW_TASK_FAILED
    completed = EventType.EVENT_TYPE_WORKFLOW_TASK_COMPLETED
    ends = [task for task in tasks if task in (failed, completed)]
    assert failed in ends
    pairs = itertools.pairwise(ends)
    assert all(after == completed for task, after in pairs if task == failed)


async def test_a_run_that_is_let_go_is_gone_at_once() -> None:
    """Red when: the wrapper and its instance hold each other, and only a search for cycles ends
    them: in whatever thread that happens."""

    class Instance:
        def activate(self, act: WorkflowActivation) -> WorkflowActivationCompletion:
            return WorkflowActivationCompletion(run_id=act.run_id)

    class Runner:
        def create_instance(self, det: object) -> Instance:
            return Instance()

    made: Any = Activations(cast(WorkflowRunner, Runner())).create_instance(cast(Any, None))
    assert made.activate(activation(BEGUN)).run_id == activation(BEGUN).run_id
    left = weakref.ref(made)
    gc.disable()
    try:
        del made
        assert left() is None
    finally:
        gc.enable()
