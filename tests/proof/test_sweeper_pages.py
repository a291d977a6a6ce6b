"""A pass over many pages goes on in new runs of its workflow, and is the same as one over one."""

import uuid
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from typing import Any

import pytest
from temporalio.testing import WorkflowEnvironment

from everycent.database import account, inventory
from everycent.domain.account import FreezeBalance
from everycent.domain.inventory import ReserveStock, StockLine
from everycent.domain.order import CancelOrder, RedirectPayment
from everycent.domain.sweep import Act, Sweep, SweepReport
from starters.sweeping import sweep_now
from tests.proof.sweeper_site import acts, fill, sweep, sweeper, temporal_server, terminate
from tests.workflows.conftest import Shop

__all__ = ["sweeper"]
pytestmark = pytest.mark.timeout(240)
HOLDS = 10


@pytest.fixture(scope="module")
async def temporal() -> AsyncIterator[WorkflowEnvironment]:
    """A server that wants a new history soon."""
    async with temporal_server("limit.historyCount.suggestContinueAsNew=60") as env:
        yield env


@pytest.fixture
def together() -> bool:
    return False


async def swept(shop: Shop, **changes: Any) -> tuple[SweepReport, int]:
    """Run a pass that looks at few rows at once; return what it did, and in how many runs."""
    wanted: dict[str, Any] = {
        "tenant": shop.tenant, "grace_seconds": 0, "hold_grace_seconds": 0, "page_rows": 3,
    }  # fmt: skip
    workflow_id = f"sweeper/{uuid.uuid4().hex}"
    report = await sweep_now(shop.client, Sweep(**{**wanted, **changes}), workflow_id=workflow_id)
    runs, run_id = 0, (await _first_run(shop, workflow_id))
    while run_id:
        runs += 1
        handle = shop.client.get_workflow_handle(workflow_id, run_id=run_id)
        last = [event async for event in handle.fetch_history_events()][-1]
        run_id = last.workflow_execution_continued_as_new_event_attributes.new_execution_run_id
    return report, runs


async def _first_run(shop: Shop, workflow_id: str) -> str:
    handle = shop.client.get_workflow_handle(workflow_id)
    begun = await anext(aiter(handle.fetch_history_events()))
    return begun.workflow_execution_started_event_attributes.first_execution_run_id


async def lose_much(shop: Shop) -> set[tuple[str, Act]]:
    """Leave holds of no order, and orders without a run; return what a pass has to do."""
    await fill(shop)
    now, lamp = datetime.now(UTC), (StockLine(sku="LAMP", units=1),)
    base = {"at": now, "opened_on": now.date()}
    names = [f"{shop.tenant}/ghost-{n}" for n in range(HOLDS)]
    async with shop.databases["inventory"].transaction() as tx:
        wanted = [ReserveStock(key=f"{name}/reserve", lines=lamp, **base) for name in names]
        await inventory.reserve_stock(tx, wanted)
    todo = {(f"{name}/reserve", Act.CANCEL) for name in names}
    for n in range(4):
        order = shop.order(f"o-{n}", payment=RedirectPayment())
        await shop.checkouts.place(order)
        await terminate(shop.client, order)
        todo.add((f"{shop.tenant}/o-{n}", Act.TAKE_UP))
    return todo


@pytest.mark.requirement("I8", "I22")
async def test_a_pass_over_many_pages_and_runs_is_the_same_as_one(shop: Shop) -> None:
    """Red when: a page is left out or looked at twice, or a new run forgets what was found."""
    todo = await lose_much(shop)
    whole = await sweep(shop, dry_run=True)
    paged, _ = await swept(shop, dry_run=True)
    assert acts(whole) == todo
    assert paged.findings == whole.findings
    assert (paged.orders_looked_at, paged.holds_looked_at) == (4, HOLDS + 8)
    done, runs = await swept(shop)
    assert runs > 2
    assert acts(done) == todo
    assert {finding.repaired for finding in done.findings} == {True}
    assert len(done.findings) == len(todo)
    assert (await shop.stock())["held"] == 8
    assert (await sweep(shop)).findings == ()
    cases = await shop.cases()
    assert [(case["state"], case["attempts"]) for case in cases] == [("RESOLVED", 1)] * len(todo)
    for n in range(4):
        await shop.checkouts.cancel(shop.tenant, f"o-{n}", CancelOrder())


@pytest.mark.requirement("I22")
async def test_what_a_pass_counts_is_counted_over_all_its_runs(shop: Shop) -> None:
    """Red when: a new run begins to count anew: each does a little, all together too much."""
    todo = await lose_much(shop)
    report, _ = await swept(shop, limit=len(todo) - 1)
    assert report.stopped.startswith(f"there is more to repair than the limit of {len(todo) - 1}")
    assert await shop.cases() == []
    assert (await shop.stock())["held"] == HOLDS + 8
    report, _ = await swept(shop, limit=len(todo))
    assert (report.stopped, len(acts(report))) == ("", len(todo))
    for n in range(4):
        await shop.checkouts.cancel(shop.tenant, f"o-{n}", CancelOrder())


@pytest.mark.requirement("I22")
async def test_a_pass_that_would_give_back_too_much_money_stops_and_leaves_it_to_be_approved(
    shop: Shop,
) -> None:
    """Few undos and much money: a bad deploy undoes good orders. Four holds of 100.00 each.

    Red when: only the acts are counted, or the money of each page by itself.
    """
    await fill(shop)
    now = datetime.now(UTC)
    wanted = [
        FreezeBalance(
            key=f"{shop.tenant}/ghost-{n}/pay/first", at=now, opened_on=now.date(),
            account="a-1", currency="EUR", amount_minor=10_000,
        )
        for n in range(4)
    ]  # fmt: skip
    async with shop.databases["account"].transaction() as tx:
        await account.freeze_balance(tx, wanted)
    stopped, _ = await swept(shop, money_limit_minor=39_999)
    assert stopped.stopped.startswith(
        "it would give back 400.00 EUR, more than the limit of 399.99 EUR: "
    )
    assert len(stopped.left) == 4
    assert await shop.cases() == []
    assert {row["state"] for row in await shop.rows("account", "balance_hold")} == {"TRIED"}
    approved, _ = await swept(shop, money_limit_minor=40_000)
    assert (approved.stopped, len(acts(approved)), approved.left) == ("", 4, ())
    assert {row["state"] for row in await shop.rows("account", "balance_hold")} == {"CANCELLED"}
