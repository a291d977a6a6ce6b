"""Finished orders of every outcome are reset to every point that Temporal allows: nothing moves."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from temporalio.api.common.v1 import WorkflowExecution
from temporalio.api.enums.v1 import EventType
from temporalio.api.workflowservice.v1 import ResetWorkflowExecutionRequest
from temporalio.client import WorkflowHandle

from everycent.domain.order import OrderResult, PlaceOrder, RepairOrder
from everycent.errors import InvalidRequest
from everycent.proof.audit import audit
from everycent.proof.histories import SERVERS
from everycent.proof.provider_books import SimulatorBooks
from everycent.proof.stories import STORIES, Scene, fill_shop, tell
from everycent.proof.time_skipping import NoOrphans
from everycent.proof.world import World, world_of
from everycent.settings import Settings
from everycent.stack.embedded import EmbeddedStack
from starters.client import connect
from tests.faults.books import books_of, intents_of

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]
TENANT = "reset"
PATIENCE_SECONDS = 90.0
LOOK_SECONDS = 2.0
_OPEN_CASES = (
    f"SELECT case_key FROM repair_case WHERE tenant = '{TENANT}' AND state = 'OPEN'"
    " AND order_id LIKE :xid"
)


@pytest.fixture(scope="module")
async def stack(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[EmbeddedStack]:
    stack = EmbeddedStack(Path(tmp_path_factory.mktemp("resets")) / "data", parts=SERVERS)
    await asyncio.to_thread(stack.start)
    yield stack
    await asyncio.to_thread(stack.stop)


@pytest.fixture(scope="module")
async def world(stack: EmbeddedStack) -> AsyncIterator[World]:
    client = await connect(stack.settings)
    # An attempt that its run has given up may write after the run's end: the books would not rest.
    async with world_of(stack.settings, client, interceptors=[NoOrphans()]) as world:
        await fill_shop(world, TENANT)
        yield world


@pytest.mark.requirement("T29", "I7")
async def test_a_finished_order_of_any_outcome_that_is_reset_to_any_point_repeats_nothing(
    world: World, stack: EmbeddedStack
) -> None:
    """Red when: a step's key is made of the run's id, so that every run does the step anew."""
    orders = [story.order(world, TENANT, story.name) for story in STORIES]
    await asyncio.gather(*(tell(s, Scene(world, o)) for s, o in zip(STORIES, orders, strict=True)))
    books, intents = await _books(world)
    points = await asyncio.gather(*(_reset_to_each_point(world, order) for order in orders))
    assert min(points) >= 4
    books_after, intents_after = await _books(world)
    assert intents_after == intents
    for table, rows in books.items():
        assert set(books_after[table]) ^ set(rows) == set(), table
    assert not await world.reader.rows("order", _OPEN_CASES, xid="%")
    await _is_clean(stack.settings, world)


async def _reset_to_each_point(world: World, order: PlaceOrder) -> int:
    """Reset the order's run to every workflow task that it completed; say how many."""
    first = world.client.get_workflow_handle(order.workflow_id(), result_type=OrderResult)
    run_id, result = (await first.describe()).run_id, await first.result()
    points = [
        event.event_id
        async for event in first.fetch_history_events()
        if event.event_type == EventType.EVENT_TYPE_WORKFLOW_TASK_COMPLETED
    ]
    for point in points:
        request = ResetWorkflowExecutionRequest(
            namespace=world.client.namespace,
            workflow_execution=WorkflowExecution(workflow_id=first.id, run_id=run_id),
            reason="a test",
            workflow_task_finish_event_id=point,
            request_id=f"{first.id}/{point}",
        )
        answer = await world.client.workflow_service.reset_workflow_execution(request)
        again = world.client.get_workflow_handle(
            first.id, run_id=answer.run_id, result_type=OrderResult
        )
        async with asyncio.timeout(PATIENCE_SECONDS):
            assert await _end(world, order, again) == result, (first.id, point)
    return len(points)


async def _end(
    world: World, order: PlaceOrder, run: WorkflowHandle[Any, OrderResult]
) -> OrderResult:
    """Wait for the run's end; a step that it finds failed in its history is parked again."""
    waiting = asyncio.ensure_future(run.result())
    while not (await asyncio.wait([waiting], timeout=LOOK_SECONDS))[0]:
        for case in await world.reader.rows("order", _OPEN_CASES, xid=order.order_id):
            retry = RepairOrder(case_key=case["case_key"], by="ada")
            with contextlib.suppress(InvalidRequest):  # Not parked yet, or not any more.
                await world.checkouts.repair(order.tenant, order.order_id, retry)
    return waiting.result()


async def _books(world: World) -> tuple[dict[str, list[str]], list[dict[str, Any]]]:
    """Return all rows and the provider's books; a case may count a failure more than once."""
    books = await books_of(world.reader, TENANT)
    del books["order.repair_case"]
    return books, await intents_of(world.provider, TENANT)


async def _is_clean(settings: Settings, world: World) -> None:
    report = await audit(settings, tenant=TENANT, provider=SimulatorBooks(world.provider))
    assert report.ok, [rule for rule in report.rules if rule.state == "broken"]
    assert report.totals.orders_by_status["CONFIRMED"] >= 10
