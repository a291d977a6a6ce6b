"""The sweeper beside services that cannot be looked at, and runs that somebody has paused."""

import asyncio
import functools
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime

import pytest
from temporalio import activity
from temporalio.api.enums.v1 import WorkflowExecutionStatus
from temporalio.api.workflow.v1 import WorkflowExecutionInfo
from temporalio.api.workflowservice.v1 import (
    PauseWorkflowExecutionRequest,
    UnpauseWorkflowExecutionRequest,
)
from temporalio.exceptions import ApplicationError
from temporalio.testing import WorkflowEnvironment

from activities.sweep import HoldSweepActivities, OrderSweepActivities
from everycent.database import points
from everycent.database.engine import Database
from everycent.domain.order import CancelOrder, OrderStatus, RedirectPayment
from everycent.domain.points import FreezePoints
from everycent.domain.sweep import Act, RunState
from everycent.domain.sweep_questions import HoldPage, Rows, Unfinished, UnfinishedPage
from everycent.gateways.runs import describe_runs, list_open, status_of
from everycent.proof.drivers import TemporalDrivers
from everycent.proof.explain import explain
from everycent.proof.timeline import Kind
from everycent.settings import ServiceName, Settings
from tests.proof.sweeper_site import acts, fill, hold_without_order, sweep, sweeping, temporal
from tests.workflows.conftest import Shop
from workers.composition import sweep_reads_of

__all__ = ["temporal"]
pytestmark = pytest.mark.timeout(180)
SILENT: set[ServiceName] = set()


def _answer_of(service: ServiceName) -> None:
    if service in SILENT:
        raise ApplicationError("silent by the test", non_retryable=True)


class _Orders(OrderSweepActivities):
    @activity.defn(name="sweep.unfinished")
    async def unfinished(self, asked: Unfinished) -> UnfinishedPage:
        _answer_of("order")
        return await super().unfinished(asked)


class _Reservations(HoldSweepActivities):
    @activity.defn(name="sweep.holds")
    async def holds(self, asked: Rows) -> HoldPage:
        _answer_of("inventory")
        return await super().holds(asked)


def _reads_of(service: ServiceName) -> Callable[[Database], object] | None:
    if service == "inventory":
        return functools.partial(_Reservations, service=service)
    return _Orders if service == "order" else sweep_reads_of(service)


@pytest.fixture(autouse=True, scope="module")
async def sweeper(
    temporal: WorkflowEnvironment, databases: dict[ServiceName, Database]
) -> AsyncIterator[None]:
    async with sweeping(temporal.client, databases, _reads_of):
        yield


@pytest.fixture(autouse=True)
def heard() -> None:
    SILENT.clear()


@pytest.fixture
def together() -> bool:
    return False


@pytest.mark.requirement("I8")
async def test_a_silent_service_keeps_no_other_from_being_repaired(shop: Shop) -> None:
    """Red when: one service that cannot be looked at fails the pass."""
    await fill(shop)
    await hold_without_order(shop)
    await _points_without_order(shop)
    SILENT.add("inventory")
    report = await sweep(shop)
    assert acts(report) == {(f"{shop.tenant}/ghost/points", Act.CANCEL)}
    assert [finding.repaired for finding in report.findings] == [True]
    assert report.silent == ("holds of inventory: silent by the test",)
    SILENT.clear()
    report = await sweep(shop)
    assert acts(report) == {(f"{shop.tenant}/ghost/reserve", Act.CANCEL)}
    assert report.silent == ()


@pytest.mark.requirement("I22")
async def test_a_pass_that_cannot_look_at_the_orders_repairs_nothing(shop: Shop) -> None:
    """Red when: holds are ended although nobody could tell whether this is the right Temporal."""
    await fill(shop)
    await hold_without_order(shop)
    SILENT.add("order")
    report = await sweep(shop)
    assert report.stopped.startswith("nothing can be judged without the unfinished orders: ")
    assert report.findings == ()
    assert (await shop.stock())["held"] == 3


@pytest.mark.requirement("I8")
def test_a_run_that_is_paused_lives() -> None:
    """Red when: a paused run cannot be read, or is taken for an ended one."""
    lives = {
        status_of(WorkflowExecutionInfo(status=number)): RunState(
            workflow_id="w", status=status_of(WorkflowExecutionInfo(status=number))
        ).lives
        for number in WorkflowExecutionStatus.values()
    }
    assert {status for status, living in lives.items() if living} == {"running", "paused"}
    assert {"unknown", "terminated", "timed_out", "continued_as_new"} <= lives.keys()


@pytest.mark.requirement("I8", "AC1.7")
async def test_a_run_whose_order_is_not_written_down_becomes_a_case_once(shop: Shop) -> None:
    """Red when: a run without an order's row is only told, or is told of before it is late."""
    await fill(shop)
    opening, goes_on = asyncio.Event(), asyncio.Event()

    async def hang() -> None:
        opening.set()
        await goes_on.wait()

    shop.fault("order.open_order", None, hook=hang)
    order = shop.order()
    selling = asyncio.create_task(shop.sell(order))
    await opening.wait()

    async def listed() -> bool:
        query = f"WorkflowId = '{order.workflow_id()}'"
        return bool((await list_open(shop.client, query, limit=10)).workflow_ids)

    await shop.until(listed)
    for stuck_seconds, act in ((600, Act.NONE), (0, Act.CASE), (0, Act.NONE)):
        [finding] = (await sweep(shop, stuck_seconds=stuck_seconds)).findings
        assert (finding.kind, finding.act) == ("run without an order row", act)
    [case] = await shop.cases()
    assert (case["state"], case["attempts"]) == ("OPEN", 1)
    goes_on.set()
    assert (await selling).status is OrderStatus.CONFIRMED
    assert (await sweep(shop, stuck_seconds=0)).findings == ()


@pytest.mark.requirement("I16")
async def test_an_order_whose_run_is_paused_says_who_did_it_and_how_it_goes_on(
    shop: Shop, settings: Settings
) -> None:
    """Red when: a paused run cannot be told, or is taken for one that nobody drives."""
    await fill(shop)
    order = shop.order(payment=RedirectPayment())
    await shop.checkouts.place(order)
    asked = {"workflow_id": order.workflow_id(), "identity": "ada", "reason": "a doubt"}
    asked["namespace"] = shop.client.namespace
    service = shop.client.workflow_service
    await service.pause_workflow_execution(PauseWorkflowExecutionRequest(**asked))
    told = await explain(settings, shop.tenant, "o-1", client=shop.client, provider=shop.provider)
    assert [run.status for run in told.runs] == ["paused"]
    assert told.why == "its run was paused by ada: a doubt"
    assert told.next_commands == (f"temporal workflow unpause --workflow-id {order.workflow_id()}",)
    await service.unpause_workflow_execution(UnpauseWorkflowExecutionRequest(**asked))
    told = await explain(settings, shop.tenant, "o-1", client=shop.client, provider=shop.provider)
    assert told.why.startswith("the customer has not paid")
    people = [event.what for event in told.events if event.kind is Kind.ACT]
    assert people[-2:] == ["run 1 is paused by ada: a doubt", "run 1 goes on, said by ada"]
    await shop.checkouts.cancel(shop.tenant, "o-1", CancelOrder())


@pytest.mark.requirement("I8")
async def test_an_order_whose_run_is_paused_has_its_owner(shop: Shop) -> None:
    """Asked about one, and about so many that a list is asked first.

    Red when: a paused run is not described or not listed: the audit fails, or its order is taken
    up a second time.
    """
    await fill(shop)
    order = shop.order(payment=RedirectPayment())
    await shop.checkouts.place(order)
    paused = order.workflow_id()
    asked = {"namespace": shop.client.namespace, "workflow_id": paused, "identity": "ada"}
    service = shop.client.workflow_service
    await service.pause_workflow_execution(PauseWorkflowExecutionRequest(**asked, reason="x"))
    [state] = await describe_runs(shop.client, [paused])
    assert state.status == "paused"
    drivers = TemporalDrivers(shop.client)
    assert await drivers.living([paused, "checkout/nobody"]) == {paused}
    many = [paused, *(f"checkout/nobody/{n}" for n in range(200))]
    assert await drivers.living(many) == {paused}

    async def listed() -> bool:
        query = f"WorkflowId = '{paused}'"
        return paused in (await list_open(shop.client, query, limit=10)).workflow_ids

    await shop.until(listed)
    assert (await sweep(shop)).findings == ()
    await service.unpause_workflow_execution(UnpauseWorkflowExecutionRequest(**asked, reason="x"))
    await shop.checkouts.cancel(shop.tenant, "o-1", CancelOrder())


async def _points_without_order(shop: Shop) -> None:
    now = datetime.now(UTC)
    request = FreezePoints(
        key=f"{shop.tenant}/ghost/points", at=now, opened_on=now.date(), customer="c-1", points=10
    )
    async with shop.databases["points"].transaction() as tx:
        await points.freeze_points(tx, [request])
