"""Every process is killed with -9 while orders are in flight; not a cent and not a unit is lost.

All kills happen in one storm, each at a moment that was seen come; what they cost is patience (a
killed worker's step is tried again when its time is over, 20 s for a database, 60 s for the
provider), so other tests use the time before the last ones look at how the storm ended.
"""

import asyncio
import contextlib
import gc
import signal
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

import pytest

from everycent.domain.message import order_of
from everycent.domain.order import (
    BalancePayment,
    CardPayment,
    OrderResult,
    OrderStatus,
    Placement,
    PlaceOrder,
    RedirectPayment,
)
from everycent.proof.connected import audit_connected
from everycent.settings import SERVICES, ServiceName
from tests.faults.conftest import Site, order_of_shop, place_all

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]
TENANT = "storm"
STUCK: tuple[ServiceName, ...] = ("order", "inventory", "account", "points", "ledger")
BALANCES: tuple[tuple[ServiceName, str], ...] = (
    ("account", "account"), ("points", "points_account"), ("ledger", "ledger_account"),
)  # fmt: skip
STUCK_WORKERS = tuple(f"worker-{service}" for service in STUCK)
EVERYTHING = {
    "postgres", "temporal", "simulator", "worker-workflows", *(f"worker-{s}" for s in SERVICES),
}  # fmt: skip
END_SECONDS = 120.0
PRICE_MINOR = 2933
POINTS = 100
POINTS_AT_FIRST = 1_000
BALANCE_AT_FIRST = 50_000


@dataclass(frozen=True)
class Storm:
    """The orders that were in flight, who is still placing them, and failures nobody awaited."""

    orders: list[PlaceOrder] = field(default_factory=list)
    placing: "list[asyncio.Task[Placement]]" = field(default_factory=list)
    lost: list[dict[str, Any]] = field(default_factory=list)

    def place(self, site: Site, *orders: PlaceOrder) -> None:
        self.orders.extend(orders)
        self.placing.extend(asyncio.create_task(site.place(order)) for order in orders)


@pytest.fixture(scope="module")
async def storm(site: Site) -> AsyncIterator[Storm]:
    """Kill everything once, and some twice; return while most orders are still in flight."""
    storm, loop = Storm(), asyncio.get_running_loop()
    loop.set_exception_handler(lambda _, report: storm.lost.append(report))
    await _open_the_shop(site, storm)
    await _kill_the_payment(site, storm)
    await _kill_postgres(site, storm)
    await _kill_inside_transactions(site, storm)
    await _kill_the_workflows(site, storm)
    await _kill_after_the_commit(site, storm)
    yield storm
    for task in storm.placing:
        task.cancel()
    await asyncio.gather(*storm.placing, return_exceptions=True)
    loop.set_exception_handler(None)


@pytest.fixture(scope="module")
async def ended(site: Site, storm: Storm) -> dict[str, OrderResult]:
    """How each order of the storm ended."""
    results = await asyncio.gather(*(site.result(order, END_SECONDS) for order in storm.orders))
    await asyncio.gather(*storm.placing)
    return {result.order_id: result for result in results}


@pytest.mark.requirement("AC2.5")
async def test_an_order_deleted_from_temporal_in_the_middle_goes_on_when_placed_again(
    site: Site, storm: Storm
) -> None:
    """Red when: the key of a payment is made of the run's id: the new run opens another page."""
    await site.bookings.receive_stock("deleted", "LAMP", 5, request="first")
    order = order_of_shop("deleted", "o-1", RedirectPayment())
    page = await site.place(order)
    await site.delete_from_temporal(order)
    again = await site.place(order)
    assert (again.decision, again.redirect_url) == ("OPEN", page.redirect_url)
    await site.pay_on_page(page)
    assert (await site.result(order)).status is OrderStatus.CONFIRMED
    [intent] = await site.intents("deleted")
    assert intent["captured_minor"] == PRICE_MINOR
    assert await site.stock("deleted") == {"LAMP": (4, 0, 1)}


async def test_orders_in_flight_go_on_when_the_stack_is_stopped_and_started(
    site: Site, storm: Storm
) -> None:
    """Red when: a part keeps its state elsewhere than in the data folder (Temporal in memory)."""
    tenant = "restart"
    await site.bookings.receive_stock(tenant, "LAMP", 5, request="first")
    paid, unpaid = (order_of_shop(tenant, name, RedirectPayment()) for name in ("paid", "unpaid"))
    page, _ = await place_all(site, [paid, unpaid])
    await site.restart_everything()
    await site.pay_on_page(page)
    assert (await site.result(paid)).status is OrderStatus.CONFIRMED
    assert (await site.place(unpaid)).decision == "OPEN"
    assert await site.stock(tenant) == {"LAMP": (3, 1, 1)}


def test_every_process_was_killed(site: Site, storm: Storm) -> None:
    assert site.killed == EVERYTHING


async def test_no_failure_is_left_for_the_event_loop_to_report(
    storm: Storm, ended: dict[str, OrderResult]
) -> None:
    """Red when: a failed start leaves a future behind, whose error is printed at some time."""
    gc.collect()
    await asyncio.sleep(0)
    assert storm.lost == []


@pytest.mark.requirement("AC2.5", "AC11.1")
async def test_orders_end_as_if_nobody_had_died(ended: dict[str, OrderResult]) -> None:
    """Red when: a step whose worker died is not tried again (a retry policy of one attempt)."""
    expected = {**dict.fromkeys(ended, OrderStatus.CONFIRMED), "out-0": OrderStatus.REJECTED}
    assert {name: result.status for name, result in ended.items()} == expected
    assert len(ended) >= 30


@pytest.mark.requirement("AC2.5", "AC2.2")
async def test_no_kill_moved_a_unit_or_a_cent_twice(
    site: Site, storm: Storm, ended: dict[str, OrderResult]
) -> None:
    """Red when: a step that is tried again is another one (its key holds the attempt's number)."""
    sold = [o for o in storm.orders if ended[o.order_id].status is OrderStatus.CONFIRMED]
    units = Counter(order.lines[0].sku for order in sold)
    by_balance = sum(o.due_minor for o in sold if isinstance(o.payment, BalancePayment))
    used, earned = sum(o.points for o in sold), sum(o.points_earned for o in sold)
    assert await site.stock(TENANT) == {
        "LAMP": (100 - units["LAMP"], 0, units["LAMP"]),
        "DISC": (100 - units["DISC"], 0, units["DISC"]),
        "RARE": (1, 0, 0),
    }
    [account] = await _rows(site, "account", "account")
    assert (account["balance"], account["frozen"]) == (BALANCE_AT_FIRST - by_balance, 0)
    [points] = await _rows(site, "points", "points_account")
    assert (points["available"], points["frozen"]) == (POINTS_AT_FIRST - used + earned, 0)
    due = sum(order.due_minor for order in sold)
    assert sum(i["captured_minor"] for i in await site.intents(TENANT)) == due - by_balance


@pytest.mark.requirement("AC2.5")
async def test_no_order_was_charged_twice(
    site: Site, storm: Storm, ended: dict[str, OrderResult]
) -> None:
    """Red when: the key of a payment at the provider changes from try to try."""
    intents = await site.intents(TENANT)
    captured = Counter(order_of(i["reference"]) for i in intents if i["captured_minor"])
    assert captured
    assert set(captured.values()) == {1}
    assert {intent["state"] for intent in intents} == {"captured"}


async def test_the_audit_finds_nothing(site: Site, ended: dict[str, OrderResult]) -> None:
    report = await audit_connected(site.stack.settings)
    assert report.ok, [rule for rule in report.rules if rule.state == "broken"]
    assert report.totals.orders_by_status["CONFIRMED"] >= len(ended) - 1


# -- the storm


async def _open_the_shop(site: Site, storm: Storm) -> None:
    """Fill it and sell one order: the ledger's accounts are there from then on."""
    for sku, units in (("LAMP", 100), ("DISC", 100), ("RARE", 1)):
        await site.bookings.receive_stock(TENANT, sku, units, request="first")
    await site.bookings.deposit(TENANT, "ada", BALANCE_AT_FIRST, "EUR", request="first")
    await site.bookings.grant_points(TENANT, "ada", POINTS_AT_FIRST, request="first")
    first = _order("first-0")
    storm.place(site, first)
    await site.result(first)


async def _kill_the_payment(site: Site, storm: Storm) -> None:
    """The provider has got the calls and has not executed them: their worker dies, then it."""
    rule = {"kind": "hold", "operation": "confirm", "reference": f"{TENANT}/pay-*"}
    await site.provider.post("/admin/faults", json={**rule, "seconds": 300, "times": 4})
    storm.place(
        site,
        *(_order(f"pay-{number}") for number in range(6)),
        _order("late-0", CardPayment(card_token="tok_timeout_after")),
        _order("late-1", CardPayment(card_token="tok_timeout_after_capture")),
        _order("out-0", sku="RARE", units=2),
        _order("free-0", None, amount_minor=0),
    )
    await site.until(lambda: _is(site.held_at_provider, 4))
    assert await site.count("payment", "provider_call", "answer IS NULL") >= 4
    site.kill("worker-payment")
    assert await site.held_at_provider() == 4
    site.kill("simulator")


async def _kill_postgres(site: Site, storm: Storm) -> None:
    """A transaction is open in a backend when the server dies."""
    async with _stock_locked(site):
        storm.place(site, *(_order(f"disc-{number}", sku="DISC") for number in range(3)))
        await site.wait_for_lock("inventory")
        site.kill("postgres")
    await site.all_ready()


async def _kill_inside_transactions(site: Site, storm: Storm) -> None:
    """One worker after the other dies while its transaction waits: nothing of it is kept."""
    async with _wave(site, storm, "open"):
        for service in STUCK:
            await site.wait_for_lock(service)
            site.kill(f"worker-{service}")


async def _kill_the_workflows(site: Site, storm: Storm) -> None:
    """The worker of the workflows dies, with the state of every order in flight."""
    assert await site.count("order", "shop_order", "decision IN ('OPEN', 'COMMITTING')") >= 3
    site.kill("worker-workflows")
    await site.all_ready()


async def _kill_after_the_commit(site: Site, storm: Storm) -> None:
    """The steps are committed and Temporal never hears of it; then it dies, and so do they.

    The server is stopped first. It has to be killed too: what lies in its sockets it would read.
    """
    async with _wave(site, storm, "done"):
        await site.wait_for_lock(*STUCK)
        site.signal("temporal", signal.SIGSTOP)
    await site.until(lambda: _committed(site))
    site.kill(*STUCK_WORKERS, "temporal")
    await site.all_ready()


@contextlib.asynccontextmanager
async def _wave(site: Site, storm: Storm, name: str) -> AsyncIterator[None]:
    """Two orders for each service, which come as far as the rows that they need there."""
    pages = [_order(f"{name}-page-{number}", RedirectPayment()) for number in range(2)]
    storm.orders.extend(pages)
    placements = await place_all(site, pages)
    async with contextlib.AsyncExitStack() as locks:
        await locks.enter_async_context(_stock_locked(site))
        for service, table in BALANCES:
            select = f"SELECT 1 FROM {table} WHERE tenant = '{TENANT}'"
            await locks.enter_async_context(site.rows_locked(service, select))
        waiting = f"tenant = '{TENANT}' AND order_id LIKE '{name}-page-%'"
        await locks.enter_async_context(
            site.rows_locked("order", f"SELECT 1 FROM shop_order WHERE {waiting}")
        )
        await asyncio.gather(*(site.pay_on_page(placement) for placement in placements))
        for number in range(2):
            storm.place(
                site,
                _order(f"{name}-disc-{number}", sku="DISC"),
                _order(f"{name}-balance-{number}", BalancePayment(account="ada")),
                _order(f"{name}-points-{number}", points=POINTS),
                _order(f"{name}-card-{number}"),
            )
        yield


async def _committed(site: Site) -> bool:
    """Tell whether each service has kept a step of the second wave."""
    tables: tuple[tuple[ServiceName, str, str], ...] = (
        ("inventory", "reservation", "disc"),
        ("account", "balance_hold", "balance"),
        ("points", "points_hold", "points"),
        ("ledger", "transfer", "card"),
    )
    kept = [
        await site.count(service, table, f"key LIKE '{TENANT}/done-{kind}-%'")
        for service, table, kind in tables
    ]
    marked = f"order_id LIKE 'done-page-%' AND waits_for = 'nothing' AND tenant = '{TENANT}'"
    return all([*kept, await site.count("order", "shop_order", marked)])


def _stock_locked(site: Site) -> "contextlib.AbstractAsyncContextManager[None]":
    return site.rows_locked(
        "inventory", f"SELECT 1 FROM stock WHERE tenant = '{TENANT}' AND sku = 'DISC'"
    )


def _order(order_id: str, *payment: Any, **more: Any) -> PlaceOrder:
    return order_of_shop(TENANT, order_id, *payment, **more)


async def _is(ask: Any, wanted: object) -> bool:
    return bool(await ask() == wanted)


async def _rows(site: Site, service: ServiceName, table: str) -> list[dict[str, Any]]:
    return await site.reader.rows(service, f"SELECT * FROM {table} WHERE tenant = '{TENANT}'")
