"""A workflow task is lost after its local steps were committed; the next one goes another way."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import pytest
from temporalio.bridge.proto.workflow_activation import WorkflowActivation
from temporalio.bridge.proto.workflow_completion import WorkflowActivationCompletion
from temporalio.client import WorkflowHandle, WorkflowUpdateFailedError
from temporalio.worker import (
    UnsandboxedWorkflowRunner,
    Worker,
    WorkflowInstance,
    WorkflowInstanceDetails,
    WorkflowRunner,
)

from activities.account import AccountActivities
from activities.inventory import InventoryActivities
from activities.ledger import LedgerActivities
from activities.order import OrderActivities
from activities.payment import PaymentActivities
from activities.points import PointsActivities
from everycent.database.engine import assert_no_transaction
from everycent.domain.order import (
    BalancePayment,
    CancelOrder,
    CardPayment,
    Decision,
    OrderResult,
    OrderStatus,
    PayOrder,
    PlaceOrder,
)
from everycent.gateways.payment_provider import HttpPaymentProvider
from everycent.simulator.desk import Options
from tests.workflows.conftest import Shop
from workers.composition import activities_of
from workflows.catalog import FLOWS
from workflows.checkout import Checkout
from workflows.place import TOGETHER_MEMO

BALANCE = BalancePayment(account="a-1")


@dataclass
class Forgetful(WorkflowRunner):
    """Fails every task of a run once so many of its steps have answered, until it is told."""

    steps: int
    lost: int = 0
    _runner: WorkflowRunner = UnsandboxedWorkflowRunner()  # noqa: RUF009

    def prepare_workflow(self, defn: Any) -> None:
        self._runner.prepare_workflow(defn)

    def set_worker_level_failure_exception_types(self, types: Any) -> None:
        self._runner.set_worker_level_failure_exception_types(types)

    def create_instance(self, det: WorkflowInstanceDetails) -> WorkflowInstance:
        instance, answered = self._runner.create_instance(det), 0
        activate = instance.activate

        def forgetful(act: WorkflowActivation) -> WorkflowActivationCompletion:
            nonlocal answered
            completion = activate(act)
            answered += sum(job.WhichOneof("variant") == "resolve_activity" for job in act.jobs)
            if 0 < self.steps <= answered:
                self.lost += 1
                completion.failed.failure.message = "lost by the test"
            return completion

        instance.activate = forgetful  # type: ignore[method-assign]
        return instance


@contextlib.asynccontextmanager
async def forgetful_worker(shop: Shop, steps: int, queue: str) -> AsyncIterator[Forgetful]:
    runner, of = Forgetful(steps), shop.databases
    gateway = HttpPaymentProvider(
        shop.provider, api_key=Options().api_key, guard=assert_no_transaction
    )
    nouns = (
        OrderActivities(of["order"]), InventoryActivities(of["inventory"]),
        AccountActivities(of["account"]), PointsActivities(of["points"]),
        LedgerActivities(of["ledger"]), PaymentActivities(of["payment"], gateway),
    )  # fmt: skip
    activities = [method for noun in nouns for method in activities_of(noun)]
    async with Worker(
        shop.client,
        task_queue=queue,
        workflows=FLOWS,
        activities=activities,
        workflow_runner=runner,
        interceptors=[shop.trouble],
    ):
        yield runner


async def start(shop: Shop, order: PlaceOrder, queue: str) -> WorkflowHandle[Any, OrderResult]:
    return await shop.client.start_workflow(
        Checkout.run, order, id=order.workflow_id(), task_queue=queue, memo=TOGETHER_MEMO
    )


async def until(condition: Any) -> None:
    async with asyncio.timeout(30):
        while not await condition():
            await asyncio.sleep(0.02)


@pytest.fixture
def together() -> bool:
    return True


async def _are_named(shop: Shop, count: int) -> bool:
    return len(await shop.reader.attempts(shop.tenant, "o-1")) == count


async def _frozen(shop: Shop) -> int:
    rows = await shop.reader.rows(
        "account", "SELECT frozen FROM account WHERE tenant = :t", t=shop.tenant
    )
    return int(rows[0]["frozen"])


@pytest.mark.requirement("AC2.4", "AC2.5", "T16")
async def test_what_a_lost_task_has_held_is_undone_when_the_next_hears_a_cancellation(
    shop: Shop,
) -> None:
    """Stock, points and balance are held by steps that Temporal never heard of; then the customer
    cancels, and the second life of the same run goes another way than the first.

    Red when: a run whose steps are local undoes only what this life of it has begun.
    """
    await shop.receive(5)
    await shop.deposit("a-1", 10_000)
    await shop.grant_points("c-1", 100)
    order, queue = shop.order(payment=BALANCE, points=33), f"forgetful-{shop.tenant}"
    async with forgetful_worker(shop, steps=4, queue=queue) as runner:
        run = await start(shop, order, queue)

        async def all_held() -> bool:
            return runner.lost > 0 and await _frozen(shop) > 0

        await until(all_held)
        cancelling = asyncio.ensure_future(
            run.execute_update(Checkout.cancel, CancelOrder(reason="changed my mind"))
        )
        lost = runner.lost

        async def heard() -> bool:
            return runner.lost > lost

        await until(heard)  # The next life has the cancellation, and is lost as well.
        runner.steps = 0
        await cancelling
        result = await run.result()
    assert (result.status, result.decision) == (OrderStatus.CANCELLED, Decision.ABORTED)
    assert await shop.stock() == {"free": 5, "held": 0, "sold": 0}
    assert await _frozen(shop) == 0
    [purse] = await shop.reader.rows(
        "points", "SELECT available, frozen FROM points_account WHERE tenant = :t", t=shop.tenant
    )
    assert (purse["available"], purse["frozen"]) == (100, 0)


@pytest.mark.requirement("AC2.4", "T9")
async def test_a_balance_that_a_lost_task_has_frozen_is_freed_when_a_card_overtakes_it(
    shop: Shop,
) -> None:
    """Red when: the payments that do not pay are only those that this life of the run has begun."""
    await shop.receive(5)
    await shop.deposit("a-1", 10_000)
    order, queue = shop.order(payment=BALANCE), f"forgetful-{shop.tenant}"
    card = PayOrder(payment=CardPayment(request_id="card", card_token="tok_ok"))
    async with forgetful_worker(shop, steps=3, queue=queue) as runner:
        run = await start(shop, order, queue)

        async def held() -> bool:
            return runner.lost > 0 and await _frozen(shop) > 0

        await until(held)

        async def both_named() -> None:
            await until(lambda: _are_named(shop, 2))

        shop.fault("inventory.reserve_stock", None, hook=both_named, times=99)
        paying = asyncio.ensure_future(run.execute_update(Checkout.pay, card))
        lost = runner.lost

        async def heard() -> bool:
            return runner.lost > lost

        await until(heard)
        runner.steps = 0
        with contextlib.suppress(WorkflowUpdateFailedError):  # Too late is an answer as well.
            await paying
        result = await run.result()
    assert result.status is OrderStatus.CONFIRMED
    assert await _frozen(shop) == 0
    assert await shop.stock() == {"free": 3, "held": 0, "sold": 2}
