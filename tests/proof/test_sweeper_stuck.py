"""The sweeper: a run whose workflow task fails for ever is ended, and its order is taken up."""

import contextlib
from collections.abc import AsyncIterator
from typing import Any

import pytest
from temporalio import workflow
from temporalio.client import Client, WorkflowExecutionStatus
from temporalio.worker import UnsandboxedWorkflowRunner, Worker

from everycent.domain.order import (
    CancelOrder,
    OrderResult,
    OrderStatus,
    PlaceOrder,
    RedirectPayment,
)
from everycent.domain.sweep import Act, Sweep
from everycent.domain.sweep_questions import EndRun
from everycent.gateways.runs import describe_runs, end_stuck_run
from everycent.settings import Settings
from starters.sweeping import look_only
from tests.proof.sweeper_site import (
    acts,
    audit_of,
    fill,
    sweep,
    sweeper,
    temporal,
    together,
)
from tests.replay.edited import OneStepMore
from tests.workflows.conftest import Shop
from workflows.checkout import Checkout

__all__ = ["sweeper", "temporal", "together"]
pytestmark = pytest.mark.timeout(180)


@workflow.defn(name="checkout")
class Broken(Checkout):
    """A deploy that cannot take up any run."""

    @workflow.run
    async def run(self, order: PlaceOrder) -> OrderResult:
        raise ValueError("a bug of the deploy")


@contextlib.asynccontextmanager
async def hosting(client: Client, queue: str, flow: type[Any]) -> AsyncIterator[None]:
    """Run a worker that remembers no run, so that each of its tasks begins with the history."""
    async with Worker(
        client,
        task_queue=queue,
        workflows=[flow],
        workflow_runner=UnsandboxedWorkflowRunner(),
        max_cached_workflows=0,
    ):
        yield


async def begun(shop: Shop, queue: str, flow: type[Any]) -> PlaceOrder:
    """Place an order that waits for its customer; nobody hosts its run when this returns."""
    await fill(shop)
    order = shop.order(payment=RedirectPayment())

    async def waits() -> bool:
        view = await shop.reader.order(shop.tenant, "o-1")
        return view is not None and view.waits_for == "payment"

    async with hosting(shop.client, queue, flow):
        await shop.client.start_workflow(
            "checkout", order, id=order.workflow_id(), task_queue=queue
        )
        await shop.until(waits, 60)
    return order


async def until_its_task_fails(shop: Shop, order: PlaceOrder) -> None:
    """Give the run a task, and see it fail."""
    await shop.client.get_workflow_handle(order.workflow_id()).signal("nobody hears it")

    async def fails() -> bool:
        [run] = await describe_runs(shop.client, [order.workflow_id()])
        return run.task_failure is not None

    await shop.until(fails, 60)


@pytest.mark.requirement("T19", "I8")
async def test_a_run_that_can_never_go_on_is_ended_and_its_order_taken_up(
    shop: Shop, settings: Settings
) -> None:
    """Its history was written by other code than that which has to go on with it.

    Red when: a run that lives is taken for one that can go on, or is ended within the grace.
    """
    queue = f"edited-{shop.tenant}"
    order = await begun(shop, queue, OneStepMore)
    old = shop.client.get_workflow_handle(order.workflow_id())
    old = shop.client.get_workflow_handle(old.id, run_id=(await old.describe()).run_id)
    async with hosting(shop.client, queue, Checkout):
        await until_its_task_fails(shop, order)
        assert (await sweep(shop, grace_seconds=600)).findings == ()
        looked = await look_only(
            shop.client, shop.reader, Sweep(tenant=shop.tenant, grace_seconds=0)
        )
        assert acts(looked) == {(f"{shop.tenant}/o-1", Act.TAKE_UP)}
        assert acts(await sweep(shop, dry_run=True)) == acts(looked)
        assert (await old.describe()).status is WorkflowExecutionStatus.RUNNING
        [finding] = (await sweep(shop)).findings
    assert (finding.kind, finding.repaired) == ("run whose tasks fail", True)
    assert "NON_DETERMINISTIC_ERROR" in finding.before
    assert finding.after.startswith(f"run {old.run_id} was ended; run ")
    [run] = await describe_runs(shop.client, [order.workflow_id()])
    assert (run.status, run.run_id != old.run_id) == ("running", True)
    told = await old.describe()
    assert told.status is WorkflowExecutionStatus.TERMINATED
    last = [event async for event in old.fetch_history_events()][-1]
    ended = last.workflow_execution_terminated_event_attributes
    assert ended.reason.startswith("everycent sweeper: ")
    assert (await sweep(shop)).findings == ()
    await shop.checkouts.cancel(shop.tenant, "o-1", CancelOrder())
    result = await shop.client.get_workflow_handle(
        order.workflow_id(), result_type=OrderResult
    ).result()
    assert result.status is OrderStatus.CANCELLED
    assert await shop.stock() == {"free": 500, "held": 0, "sold": 0}
    assert [case["state"] for case in await shop.cases()] == ["RESOLVED"]
    assert await audit_of(shop, settings) == []


@pytest.mark.requirement("T19")
async def test_a_run_whose_worker_has_a_bug_is_told_and_goes_on_when_it_is_mended(
    shop: Shop,
) -> None:
    """Red when: any failing task is reason enough to end a run, or none is told."""
    queue = f"broken-{shop.tenant}"
    order = await begun(shop, queue, Checkout)
    async with hosting(shop.client, queue, Broken):
        await until_its_task_fails(shop, order)
        [finding] = (await sweep(shop)).findings
    assert (finding.kind, finding.act) == ("run whose tasks fail", Act.NONE)
    assert await shop.cases() == []
    [run] = await describe_runs(shop.client, [order.workflow_id()])
    assert run.task_failure is not None
    asked = EndRun(
        workflow_id=run.workflow_id,
        run_id=run.run_id,
        failing_since=run.task_failure.since,
        reason="by the test",
    )
    assert "left alone" in await end_stuck_run(shop.client, asked)
    async with hosting(shop.client, queue, Checkout):
        await shop.checkouts.cancel(shop.tenant, "o-1", CancelOrder())
        handle = shop.client.get_workflow_handle(order.workflow_id(), result_type=OrderResult)
        assert (await handle.result()).status is OrderStatus.CANCELLED
