"""An order id is withdrawn, or its order is opened: one of the two wins, and both are told."""

import asyncio
from typing import Any

import pytest
from sqlalchemy import text

from everycent.database import order, withdrawal
from everycent.domain.order import (
    Decision,
    MarkOrder,
    OpenedOrder,
    OpenOrder,
    OrderStatus,
    WaitsFor,
)
from everycent.domain.withdrawal import (
    OrderStands,
    OrderWithdrawn,
    Withdrawn,
    WithdrawOrder,
    why_withdrawn,
)
from tests.conftest import NOON
from tests.database.test_order import Pools, call, opened, placed, wants

BLOCKERS = text("SELECT pg_blocking_pids(pid) FROM pg_locks WHERE NOT granted")


def wish(tenant: str, order_id: str = "o-1", by: str = "sweeper/x") -> WithdrawOrder:
    return WithdrawOrder(tenant=tenant, order_id=order_id, at=NOON, by=by)


async def withdrawn(databases: Pools, tenant: str, by: str = "sweeper/x") -> Any:
    return await call(databases, withdrawal.withdraw_order, wish(tenant, by=by))


@pytest.mark.requirement("I8")
async def test_an_id_without_an_order_is_withdrawn_once(databases: Pools, tenant: str) -> None:
    """Red when: the tombstone is not written, or an open takes its place."""
    assert await withdrawn(databases, tenant) == Withdrawn()
    assert await withdrawn(databases, tenant, by="sweeper/y") == Withdrawn()
    refused = OrderWithdrawn(reason=why_withdrawn(NOON))
    assert refused.reason.endswith("so its id was withdrawn at 2026-01-02 12:00 UTC")
    for amount in (2933, 1):  # Whatever is asked for.
        assert await opened(databases, tenant, amount_minor=amount) == refused
    verdict = await call(databases, order.decide, wants(tenant, Decision.COMMITTING))
    assert (verdict.decision, verdict.status) == (Decision.ABORTED, OrderStatus.REJECTED)
    mark = MarkOrder(tenant=tenant, order_id="o-1", at=NOON, waits_for=WaitsFor.STOCK)
    assert (await call(databases, order.mark_order, mark)).changed is False
    async with databases["order"].transaction() as tx:
        found = await tx.execute(
            text("SELECT driver, shared, attempt FROM shop_order WHERE tenant = :t"), {"t": tenant}
        )
        attempts = await tx.scalar(
            text("SELECT count(*) FROM payment_attempt WHERE tenant = :t"), {"t": tenant}
        )
    assert [tuple(row) for row in found] == [("sweeper/x", True, None)]
    assert attempts == 0


@pytest.mark.requirement("I8")
async def test_an_order_that_is_written_down_is_not_withdrawn(
    databases: Pools, tenant: str
) -> None:
    """Red when: a withdrawal writes over the row, or does not look at who had made it."""
    first = await opened(databases, tenant)
    wishes = [wish(tenant, name) for name in ("o-2", "o-1", "o-2")]
    answers = await call(databases, withdrawal.withdraw_order, *wishes)
    assert answers == [Withdrawn(), OrderStands(decision="OPEN"), Withdrawn()]
    assert await opened(databases, tenant) == first


@pytest.mark.requirement("I8", "AC2.5")
@pytest.mark.parametrize("first", ["open", "withdraw"])
async def test_who_comes_second_waits_for_the_first_and_adopts_it(
    databases: Pools, tenant: str, first: str
) -> None:
    """Red when: the two insert in different places, or ask before they insert: both would win."""
    opening = OpenOrder(order=placed(tenant), at=NOON, driver="checkout/x", run="r-1")
    won: object
    async with databases["order"].transaction() as tx:
        if first == "open":
            [won] = await order.open_order(tx, [opening])
            second = asyncio.ensure_future(withdrawn(databases, tenant))
        else:
            [won] = await withdrawal.withdraw_order(tx, [wish(tenant)])
            second = asyncio.ensure_future(opened(databases, tenant))
        pid = await tx.scalar(text("SELECT pg_backend_pid()"))
        while not any(pid in found for found in await tx.scalars(BLOCKERS)):
            assert not second.done(), "it did not wait"
            await asyncio.sleep(0)
    lost = await second
    if first == "open":
        assert isinstance(won, OpenedOrder)
        assert lost == OrderStands(decision="OPEN")
    else:
        assert won == Withdrawn()
        assert isinstance(lost, OrderWithdrawn)
