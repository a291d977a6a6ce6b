"""The sweeper decides in the order's row before it gives back a hold that no order explains."""

import asyncio
import uuid
from datetime import UTC, datetime

import pytest
from sqlalchemy import text
from temporalio.api.common.v1 import WorkflowExecution
from temporalio.api.enums.v1 import EventType
from temporalio.api.workflowservice.v1 import ResetWorkflowExecutionRequest

from everycent.database import account
from everycent.database.engine import Database
from everycent.domain.account import FreezeBalance
from everycent.domain.order import CancelOrder, OrderStatus, PlaceOrder, RedirectPayment
from everycent.domain.sweep import Act
from everycent.proof.explain import explain
from everycent.settings import ServiceName, Settings
from starters.refusals import OrderWithdrawnError
from tests.proof.sweeper_site import (
    audit_of,
    fill,
    hold_without_order,
    sweep,
    sweeper,
    temporal,
    terminate,
    together,
)
from tests.workflows.conftest import Shop

__all__ = ["sweeper", "temporal", "together"]
pytestmark = pytest.mark.timeout(180)


@pytest.mark.requirement("I8", "AC2.5")
async def test_an_order_that_comes_right_before_its_hold_is_given_back_does_not_rely_on_it(
    shop: Shop, settings: Settings
) -> None:
    """The order is placed behind the sweeper's last look, as its Cancel begins.

    Red when: nothing is decided before the Cancel: the order opens, and loses what it relies on.
    """
    await fill(shop)
    await hold_without_order(shop)
    order = shop.order("ghost", units=3, payment=RedirectPayment())
    told: list[str] = []

    async def place_late() -> None:
        try:
            await shop.checkouts.place(order)
        except OrderWithdrawnError as error:
            told.append(str(error))

    shop.fault("inventory.release_stock", None, order_id="ghost", hook=place_late)
    [finding] = (await sweep(shop)).findings
    assert (finding.act, finding.repaired) == (Act.CANCEL, True)
    assert await shop.stock() == {"free": 500, "held": 0, "sold": 0}
    assert await shop.reader.order(shop.tenant, "ghost") is None
    [line] = told
    assert line.startswith("order ghost cannot be placed: what was held for it had no order")
    assert line.endswith("please place it under another order id")
    with pytest.raises(OrderWithdrawnError):
        await shop.checkouts.place(order)
    assert (await sweep(shop)).findings == ()
    assert await audit_of(shop, settings) == []
    story = await explain(
        settings, shop.tenant, "ghost", client=shop.client, provider=shop.provider
    )
    assert any("the order's id is withdrawn by sweeper/" in event.what for event in story.events)


@pytest.mark.requirement("I8", "AC2.5")
async def test_an_order_that_opens_first_keeps_its_hold(shop: Shop, settings: Settings) -> None:
    """Red when: the sweeper does not adopt what the order's row says when it comes too late."""
    await fill(shop)
    await hold_without_order(shop)
    order = shop.order("ghost", units=3, payment=RedirectPayment())

    async def place_first() -> None:
        await shop.checkouts.place(order)

    shop.fault("order.withdraw_order", None, order_id="ghost", hook=place_first)
    [finding] = (await sweep(shop)).findings
    assert (finding.act, finding.after) == (Act.CANCEL, "nothing: its order was opened meanwhile")
    assert await shop.stock() == {"free": 497, "held": 3, "sold": 0}
    assert "inventory.release_stock" not in shop.ran("ghost")
    await shop.checkouts.cancel(shop.tenant, "ghost", CancelOrder())
    result = await shop.client.get_workflow_handle(order.workflow_id()).result()
    assert result["status"] == OrderStatus.CANCELLED
    assert await shop.stock() == {"free": 500, "held": 0, "sold": 0}
    assert await audit_of(shop, settings) == []


@pytest.mark.requirement("I8", "AC2.5")
async def test_one_pass_gives_back_all_that_is_held_for_an_id_without_an_order(
    shop: Shop, settings: Settings
) -> None:
    """Stock, and two payments from a balance; the order's row is withdrawn for the first of them.

    Red when: what the pass has withdrawn itself is taken for an order that has just moved: the
    money stays frozen, and its case says that it was repaired.
    """
    await fill(shop)
    await hold_without_order(shop)
    now = datetime.now(UTC)
    wanted = [
        FreezeBalance(
            key=f"{shop.tenant}/ghost/pay/{name}", at=now, opened_on=now.date(),
            account="a-1", currency="EUR", amount_minor=10_000,
        )
        for name in ("first", "second")
    ]  # fmt: skip
    async with shop.databases["account"].transaction() as tx:
        await account.freeze_balance(tx, wanted)
    report = await sweep(shop, grace_seconds=120)
    assert [(finding.act, finding.repaired) for finding in report.findings] == [
        (Act.CANCEL, True)
    ] * 3
    assert {row["state"] for row in await shop.rows("account", "balance_hold")} == {"CANCELLED"}
    assert await shop.stock() == {"free": 500, "held": 0, "sold": 0}
    assert await audit_of(shop, settings) == []


@pytest.mark.requirement("AC6.6", "I8")
async def test_an_order_that_was_paid_keeps_its_id_when_its_row_is_lost(
    shop: Shop, settings: Settings, owners: dict[ServiceName, Database]
) -> None:
    """Its run ends right after the capture, and the order's database is set back.

    Red when: the id is withdrawn because one hold of it is still open: the order can never be
    placed again, its money stays captured, and its points come back.
    """
    await fill(shop)
    order = shop.order("paid", units=3, points=100)
    lost = asyncio.Event()

    async def lose() -> None:
        await terminate(shop.client, order)
        lost.set()

    shop.fault("points.redeem_points", "Transient", order_id="paid", hook=lose)
    await shop.start(order)
    await asyncio.wait_for(lost.wait(), 30)
    await _lose_rows(shop, owners)
    report = await sweep(shop)
    [open_hold] = [f for f in report.findings if f.act is Act.CANCEL and "points" in f.before]
    assert not open_hold.repaired
    assert "is CONFIRMED: place it again" in open_hold.after
    assert (await shop.rows("points", "points_hold"))[0]["state"] == "TRIED"
    await shop.checkouts.place(order)
    result = await shop.checkouts.wait(shop.tenant, "paid")
    assert result.status is OrderStatus.CONFIRMED
    assert await shop.stock() == {"free": 497, "held": 0, "sold": 3}
    assert await audit_of(shop, settings) == []


@pytest.mark.requirement("I7", "I8")
async def test_a_run_that_is_reset_after_its_id_was_withdrawn_undoes_what_it_holds(
    shop: Shop, settings: Settings, owners: dict[ServiceName, Database]
) -> None:
    """The order's database was set back, its run terminated, its hold given back; then a reset.

    Red when: the run takes it for impossible that its id was withdrawn: it fails, and what it has
    held since stays.
    """
    await fill(shop)
    order = shop.order("ghost", units=3, points=100, payment=RedirectPayment())
    lost = asyncio.Event()

    async def lose() -> None:
        await terminate(shop.client, order)
        lost.set()

    shop.fault("points.freeze_points", order_id="ghost", hook=lose)  # Nothing is held by it.
    await shop.start(order)
    await asyncio.wait_for(lost.wait(), 30)
    await _lose_rows(shop, owners)
    await sweep(shop)
    assert await shop.stock() == {"free": 500, "held": 0, "sold": 0}
    await _reset_to_its_end(shop, order)

    async def waits() -> bool:
        return bool(await shop.rows("payment", "payment"))

    await shop.until(waits, 30)
    handle = shop.client.get_workflow_handle(order.workflow_id())
    await handle.cancel()
    result = await asyncio.wait_for(handle.result(), 60)
    assert result["status"] == OrderStatus.REJECTED
    assert result["reason"].startswith("what was held for it had no order")
    kept: tuple[tuple[ServiceName, str], ...] = (("points", "points_hold"), ("payment", "payment"))
    for service, table in kept:
        states = {row["state"] for row in await shop.rows(service, table)}
        assert states == {"CANCELLED"}, table
    assert await audit_of(shop, settings) == []


async def _reset_to_its_end(shop: Shop, order: PlaceOrder) -> None:
    """Reset the order's run to the last workflow task that it completed."""
    handle = shop.client.get_workflow_handle(order.workflow_id())
    run_id = (await handle.describe()).run_id
    done = [
        event.event_id
        async for event in handle.fetch_history_events()
        if event.event_type == EventType.EVENT_TYPE_WORKFLOW_TASK_COMPLETED
    ]
    await shop.client.workflow_service.reset_workflow_execution(
        ResetWorkflowExecutionRequest(
            namespace=shop.client.namespace,
            workflow_execution=WorkflowExecution(workflow_id=handle.id, run_id=run_id),
            reason="by mistake",
            workflow_task_finish_event_id=done[-1],
            request_id=uuid.uuid4().hex,
        )
    )


@pytest.mark.requirement("I8", "AC6.6")
async def test_money_that_came_before_the_void_is_given_back_by_the_pass(
    shop: Shop, settings: Settings, owners: dict[ServiceName, Database]
) -> None:
    """The customer pays on a page whose order nobody remembers.

    Red when: the pass voids the payment and leaves what was paid with the shop.
    """
    await fill(shop)
    order = shop.order("paid", units=3, payment=RedirectPayment())
    placement = await shop.checkouts.place(order)
    await terminate(shop.client, order)
    await _lose_rows(shop, owners)
    (await shop.provider.post(str(placement.redirect_url))).raise_for_status()
    report = await sweep(shop)
    assert all(finding.repaired for finding in report.findings), report.findings
    assert any("minor units were refunded" in finding.after for finding in report.findings)
    [intent] = (
        await shop.provider.get("/admin/intents", params={"reference": f"{shop.tenant}/*"})
    ).json()["data"]
    assert intent["captured_minor"] == intent["refunded_minor"] > 0
    assert await shop.stock() == {"free": 500, "held": 0, "sold": 0}
    assert (await sweep(shop)).findings == ()
    assert await audit_of(shop, settings) == []


async def _lose_rows(shop: Shop, owners: dict[ServiceName, Database]) -> None:
    """Set the order's database back to before the order."""
    async with owners["order"].transaction() as tx:
        for table in ("payment_attempt", "shop_order"):
            await tx.execute(
                text(f"DELETE FROM {table} WHERE tenant = :tenant"), {"tenant": shop.tenant}
            )
