"""Workers that host everything are killed while their local steps run; nothing is done twice."""

import asyncio
import signal
from collections.abc import Awaitable

import pytest

from everycent.domain.order import BalancePayment, CardPayment, OrderStatus, RedirectPayment
from everycent.proof.connected import audit_connected
from everycent.stack.embedded import TOGETHER
from tests.faults.conftest import Site, order_of_shop

pytestmark = [pytest.mark.slow, pytest.mark.timeout(240)]
WORKERS = TOGETHER
TENANT = "together"
BALANCE = BalancePayment(account="ada")
STOCK_ROWS = "SELECT 1 FROM stock WHERE tenant = 'together'"
PATIENCE = 120.0


@pytest.mark.requirement("AC2.5", "AC18.1")
async def test_killing_workers_inside_their_local_steps_does_everything_once(site: Site) -> None:
    """Runs stand inside a transaction of a local step and have others behind them that Temporal
    does not know of; both processes die, twice; what was committed is found by its key.

    Red when: the key of a step (of the earned points, say) is made of the time, which a new attempt
    of the same workflow task has anew.
    """
    await site.bookings.receive_stock(TENANT, "LAMP", 40, request="first")
    await _sell_the_first(site)
    await site.bookings.deposit(TENANT, "ada", 50_000, "EUR", request="first")
    orders = [
        *(order_of_shop(TENANT, f"card-{n}") for n in range(8)),
        *(order_of_shop(TENANT, f"balance-{n}", BALANCE) for n in range(8)),
        *(order_of_shop(TENANT, f"none-{n}", units=99) for n in range(4)),
        *(order_of_shop(TENANT, f"free-{n}", None, amount_minor=0) for n in range(4)),
    ]
    async with site.rows_locked("inventory", STOCK_ROWS):
        placing = [asyncio.create_task(site.place(order)) for order in orders]
        await site.wait_for_lock("inventory")
        await _kill_both(site)
    async with site.rows_locked("ledger", "SELECT 1 FROM ledger_account"):
        # Nobody is inside a step of the provider, which would be waited for by its heartbeat.
        await site.until(lambda: _is(site.count("payment", "payment", "status = 'CAPTURED'"), 9))
        await site.wait_for_lock("ledger")
        await _kill_both(site)
    await asyncio.gather(*placing)
    ended = [await site.result(order, PATIENCE) for order in orders]
    wanted = [
        OrderStatus.REJECTED if "none" in o.order_id else OrderStatus.CONFIRMED for o in orders
    ]
    assert [result.status for result in ended] == wanted
    assert await site.stock(TENANT) == {"LAMP": (19, 0, 21)}
    captured = sorted(intent["captured_minor"] for intent in await site.intents(TENANT))
    assert captured == [2933] * 9
    [account] = await site.reader.rows("account", "SELECT available, frozen FROM account")
    assert (account["available"], account["frozen"]) == (50_000 - 8 * 2933, 0)
    [purse] = await site.reader.rows("points", "SELECT available FROM points_account")
    assert purse["available"] == 17 * (2933 // 100), "points are earned once"
    assert (await audit_connected(site.stack.settings, tenant=TENANT)).broken_invariants == 0


async def _sell_the_first(site: Site) -> None:
    """Let the ledger have its accounts, whose rows can then be locked."""
    first = order_of_shop(TENANT, "first")
    await site.place(first)
    await site.result(first)


async def _is(count: Awaitable[int], wanted: int) -> bool:
    return await count == wanted


async def _kill_both(site: Site) -> None:
    site.kill(*(f"worker-{name}" for name in TOGETHER))
    await site.all_ready()


@pytest.mark.requirement("AC9.6")
async def test_accepted_orders_are_completed_when_temporal_was_away(site: Site) -> None:
    """While the server stands still nobody is told yes; what it had accepted goes on afterwards,
    and who asked meanwhile is served once.

    Red when: an order is answered before Temporal has it, or the payment that came meanwhile is
    only ever told and not looked up.
    """
    await site.bookings.receive_stock("away", "LAMP", 5, request="first")
    accepted, late = (
        order_of_shop("away", "accepted", RedirectPayment()),
        order_of_shop("away", "late"),
    )
    page = await site.place(accepted)
    site.signal("temporal", signal.SIGSTOP)
    try:
        await site.pay_on_page(page)
        placing = asyncio.create_task(site.place(late))
        done, _ = await asyncio.wait([placing], timeout=5)
        assert not done
        assert (
            await site.count("order", "shop_order", "tenant = 'away' AND decision <> 'OPEN'") == 0
        )
    finally:
        site.signal("temporal", signal.SIGCONT)
    await placing
    ended = [await site.result(order, PATIENCE) for order in (accepted, late)]
    assert [result.status for result in ended] == [OrderStatus.CONFIRMED] * 2
    assert await site.stock("away") == {"LAMP": (3, 0, 2)}
    assert sorted(i["captured_minor"] for i in await site.intents("away")) == [2933, 2933]


@pytest.mark.requirement("AC2.5")
async def test_an_order_keeps_where_its_steps_run_over_a_restart_of_everything(site: Site) -> None:
    """Red when: the place of the steps is read from the settings of today, not from the run."""
    await site.bookings.receive_stock("kept", "LAMP", 5, request="first")
    waiting = order_of_shop("kept", "waits", RedirectPayment())
    declined = order_of_shop("kept", "declined", CardPayment(card_token="tok_declined"))
    page = await site.place(waiting)
    await site.place(declined)
    await site.restart_everything()
    await site.pay_on_page(page)
    assert (await site.result(waiting, PATIENCE)).status is OrderStatus.CONFIRMED
    handle = site.client.get_workflow_handle(waiting.workflow_id())
    history = await handle.fetch_history()
    scheduled = [
        e for e in history.events if e.HasField("activity_task_scheduled_event_attributes")
    ]
    kinds = {e.activity_task_scheduled_event_attributes.activity_type.name for e in scheduled}
    assert kinds, "the provider's steps are activities of the server"
    assert all(kind.startswith("payment.") for kind in kinds), kinds
