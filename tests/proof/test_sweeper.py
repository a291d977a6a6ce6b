"""The sweeper: whatever is lost between Temporal and the databases has an owner again."""

import asyncio
import contextlib
from datetime import UTC, datetime

import pytest

from everycent.database import inventory
from everycent.domain.inventory import ReleaseStock
from everycent.domain.order import (
    BalancePayment,
    CancelOrder,
    CardPayment,
    OrderStatus,
    Payment,
    PlaceOrder,
    RedirectPayment,
)
from everycent.domain.sweep import Act, Sweep
from everycent.settings import Settings
from starters.refusals import TooLateError
from starters.sweeping import look_only
from tests.proof.sweeper_site import (
    Lose,
    acts,
    audit_of,
    delete,
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
pytestmark = pytest.mark.timeout(300)
TAIL = ("order.decide", "order.close_order")
STEPS = {  # Where each kind of order is lost: before and after each of these.
    "card": (
        "order.open_order", "inventory.reserve_stock", "points.freeze_points",
        "payment.authorise", "payment.capture", "inventory.commit_stock", "points.redeem_points",
        "ledger.post_transfer", "points.grant_points", *TAIL,
    ),
    "balance": ("account.freeze_balance", "account.debit_balance"),
    "cancelled": (
        "order.mark_order", "payment.void", "points.unfreeze_points", "inventory.release_stock",
        *TAIL,
    ),
    "no-stock": ("inventory.release_stock", *TAIL),
    "refunded": (
        "payment.refund", "points.restore_points", "points.revoke_points",
        "ledger.reverse_transfer", "order.close_order",
    ),
}  # fmt: skip
ENDS = {
    "card": OrderStatus.CONFIRMED,
    "balance": OrderStatus.CONFIRMED,
    "cancelled": OrderStatus.CANCELLED,
    "no-stock": OrderStatus.REJECTED,
    "refunded": OrderStatus.REFUNDED,
}


# -- every step


@pytest.mark.requirement("I8", "AC1.6", "AC6.4")
@pytest.mark.slow
@pytest.mark.parametrize(
    ("lose", "together", "moments"),
    [(terminate, False, ("before", "after")), (delete, True, ("after",))],
)
async def test_a_run_lost_at_any_step_leaves_nothing_that_one_pass_does_not_repair(
    shop: Shop, settings: Settings, lose: Lose, together: bool, moments: tuple[str, ...]
) -> None:
    """Red when: an unfinished order without a run is not taken up, or adopts no decision."""
    await fill(shop)
    lost = [
        _lost(shop, kind, step, after=moment == "after", lose=lose)
        for kind, steps in STEPS.items()
        for step in steps
        for moment in moments
    ]
    orders = dict(await asyncio.gather(*lost))
    report = await sweep(shop, limit=1000, unknown_limit=1000)
    assert not report.stopped
    taken_up = {key for key, act in acts(report) if act is Act.TAKE_UP}
    ended = [order for order in orders if f"{order.tenant}/{order.order_id}" not in taken_up]
    assert len(taken_up) > len(orders) // 3
    assert [o.order_id for o in ended if not await _is_final(shop, o)] == []
    for order, kind in orders.items():
        assert await _end(shop, order) is ENDS[kind], order.order_id
    assert acts(await sweep(shop)) == set()
    assert await audit_of(shop, settings) == []
    assert {case["state"] for case in await shop.cases()} == {"RESOLVED"}
    assert {case["case_key"] for case in await shop.cases()} == {f"{x}/sweeper" for x in taken_up}


async def _lost(
    shop: Shop, kind: str, step: str, *, after: bool, lose: Lose
) -> tuple[PlaceOrder, str]:
    """Sell an order whose run is lost before or after a step; return once it is lost."""
    name = f"{kind}-{step.replace('_', '-')}-{'after' if after else 'before'}"
    payments: dict[str, Payment] = {
        "balance": BalancePayment(account="a-1"),
        "cancelled": RedirectPayment(),
    }
    order = shop.order(
        name,
        payment=payments.get(kind, CardPayment(card_token="tok_ok")),
        points=100,
        units=1_000 if kind == "no-stock" else 1,
    )
    gone = asyncio.Event()

    async def losing() -> None:
        await lose(shop.client, order)
        gone.set()

    async def strike() -> None:
        # A step that runs where its run is may be cancelled with it.
        await asyncio.shield(asyncio.create_task(losing()))

    if kind == "refunded":
        shop.fault(
            "inventory.commit_stock", None, order_id=name, hook=lambda: _lose_stock(shop, order)
        )
    shop.fault(step, None, order_id=name, after=after, hook=strike)
    await shop.start(order)
    asking = asyncio.create_task(_cancel(shop, order)) if kind == "cancelled" else None
    async with asyncio.timeout(120):
        await gone.wait()
    if asking is not None:
        await asyncio.gather(asking, return_exceptions=True)
    return order, kind


async def _cancel(shop: Shop, order: PlaceOrder) -> None:
    async def waits() -> bool:
        view = await shop.reader.order(order.tenant, order.order_id)
        return view is not None and view.waits_for == "payment"

    await shop.until(waits, 120)
    await shop.checkouts.cancel(order.tenant, order.order_id, CancelOrder())


async def _is_final(shop: Shop, order: PlaceOrder) -> bool:
    view = await shop.reader.order(order.tenant, order.order_id)
    return view is not None and view.result is not None


async def _end(shop: Shop, order: PlaceOrder, *, cancel: bool = True) -> OrderStatus:
    """Return how the order ends; one that waits for its customer again is cancelled again."""
    async with asyncio.timeout(120):
        while True:
            view = await shop.reader.order(order.tenant, order.order_id)
            if view is not None and view.result is not None:
                return view.status
            if cancel and view is not None and view.waits_for == "payment":
                with contextlib.suppress(TooLateError):  # It moves on while we look.
                    await shop.checkouts.cancel(order.tenant, order.order_id, CancelOrder())
            await asyncio.sleep(0.05)


async def _lose_stock(shop: Shop, order: PlaceOrder) -> None:
    now = datetime.now(UTC)
    request = ReleaseStock(
        key=order.step_key("reserve"), at=now, opened_on=now.date(), reason="by the test"
    )
    async with shop.databases["inventory"].transaction() as tx:
        await inventory.release_stock(tx, [request])


@pytest.mark.requirement("I8", "AC6.4")
async def test_an_open_order_whose_window_is_over_is_expired(
    shop: Shop, settings: Settings
) -> None:
    """Red when: the pass leaves an undecided order of a terminated run for ever."""
    await fill(shop)
    order = shop.order(payment=RedirectPayment(), payment_window_seconds=4)
    shop.fault("order.mark_order", None, after=True, hook=lambda: terminate(shop.client, order))
    await shop.start(order)
    ends = await _window_of(shop)
    await shop.until(lambda: _is_later(ends))
    assert acts(await sweep(shop)) == {(f"{shop.tenant}/o-1", Act.TAKE_UP)}
    assert await _end(shop, order, cancel=False) is OrderStatus.EXPIRED
    assert await shop.stock() == {"free": 500, "held": 0, "sold": 0}
    assert await audit_of(shop, settings) == []


async def _window_of(shop: Shop) -> datetime:
    async def opened() -> bool:
        return await shop.reader.order(shop.tenant, "o-1") is not None

    await shop.until(opened)
    view = await shop.reader.order(shop.tenant, "o-1")
    assert view is not None
    return view.window_ends_at


async def _is_later(than: datetime) -> bool:
    return datetime.now(UTC) > than


# -- what is left alone


@pytest.mark.slow
@pytest.mark.requirement("I8")
async def test_no_live_order_is_touched_by_passes_that_wait_for_nothing(
    shop: Shop, settings: Settings
) -> None:
    """Red when: an order that moves is taken for lost, by an old look at its run or at its row."""
    await fill(shop)
    orders = [shop.order(f"o-{n}", payment=BalancePayment(account="a-1")) for n in range(50)]
    selling = [asyncio.create_task(shop.sell(order)) for order in orders]
    found = []
    while not all(task.done() for task in selling):
        found.append(await sweep(shop))
    assert {(await task).status for task in selling} == {OrderStatus.CONFIRMED}
    assert sum(report.orders_looked_at for report in found) > 0
    assert [report.findings for report in found] == [()] * len(found)
    rows = await shop.reader.rows(
        "order", "SELECT shared FROM shop_order WHERE tenant = :tenant", tenant=shop.tenant
    )
    assert [row["shared"] for row in rows] == [False] * 50
    assert await audit_of(shop, settings) == []


@pytest.mark.requirement("T19")
@pytest.mark.parametrize(
    ("step", "kind"),
    [
        ("order.decide", "open order past its window"),
        ("payment.capture", "decided order that does not move"),
    ],
)
async def test_an_order_that_hangs_under_a_live_run_is_listed(
    shop: Shop, step: str, kind: str
) -> None:
    """Red when: a run that lives is taken for one that moves."""
    await fill(shop)
    hangs, goes_on = asyncio.Event(), asyncio.Event()

    async def hang() -> None:
        hangs.set()
        await goes_on.wait()

    shop.fault(step, None, hook=hang)
    selling = asyncio.create_task(shop.sell(shop.order(payment_window_seconds=1)))
    await hangs.wait()
    ends = await _window_of(shop)
    await shop.until(lambda: _is_later(ends))
    [finding] = (await sweep(shop, stuck_seconds=0)).findings
    assert (finding.kind, finding.act) == (kind, Act.NONE)
    assert finding.before.endswith("its run is running")
    assert (await sweep(shop)).findings == ()  # Not so late that it must be told.
    goes_on.set()
    await selling
    assert (await sweep(shop, stuck_seconds=0)).findings == ()


@pytest.mark.requirement("T19")
@pytest.mark.parametrize("step", ["inventory.reserve_stock", "payment.authorise"])
async def test_a_step_that_hangs_is_listed_long_before_the_window_ends(
    shop: Shop, step: str
) -> None:
    """The customer has 30 days to pay, and is not who the order waits for.

    Red when: an undecided order is looked at by its window alone.
    """
    await fill(shop)
    hangs, goes_on = asyncio.Event(), asyncio.Event()

    async def hang() -> None:
        hangs.set()
        await goes_on.wait()

    shop.fault(step, None, hook=hang)
    selling = asyncio.create_task(shop.sell(shop.order(payment_window_seconds=30 * 86400)))
    await hangs.wait()
    assert (await sweep(shop)).findings == ()  # Not so long that it must be told.
    [finding] = (await sweep(shop, stuck_seconds=0)).findings
    assert (finding.kind, finding.act) == ("open order that does not move", Act.NONE)
    assert finding.before.endswith("its run is running")
    goes_on.set()
    assert (await selling).status is OrderStatus.CONFIRMED
    waits = shop.order("o-2", payment=RedirectPayment())
    await shop.checkouts.place(waits)  # For its customer, who has time.
    assert (await sweep(shop, stuck_seconds=0)).findings == ()
    await shop.checkouts.cancel(shop.tenant, "o-2", CancelOrder())


async def test_an_order_that_moved_lately_is_given_its_grace(shop: Shop) -> None:
    """Red when: the grace period is not kept: a run that just ends is overtaken."""
    await fill(shop)
    order = shop.order(payment=RedirectPayment())
    await shop.checkouts.place(order)
    await terminate(shop.client, order)
    assert (await sweep(shop, grace_seconds=600)).findings == ()
    assert acts(await sweep(shop)) == {(f"{shop.tenant}/o-1", Act.TAKE_UP)}
    await shop.checkouts.cancel(shop.tenant, "o-1", CancelOrder())


@pytest.mark.requirement("I8")
async def test_a_dry_run_tells_the_same_and_changes_nothing(shop: Shop) -> None:
    """Red when: the read-only look differs from the worker's, or anything is written."""
    await fill(shop)
    order = shop.order(payment=RedirectPayment())
    await shop.checkouts.place(order)
    await terminate(shop.client, order)
    await hold_without_order(shop)
    wanted = Sweep(tenant=shop.tenant, grace_seconds=0, hold_grace_seconds=0)
    only_looked = await look_only(shop.client, shop.reader, wanted)
    by_worker = await sweep(shop, dry_run=True)
    assert only_looked.findings == by_worker.findings
    assert {finding.act for finding in by_worker.findings} == {Act.TAKE_UP, Act.CANCEL}
    assert await shop.cases() == []
    assert (await shop.stock())["held"] == 5
    assert acts(await sweep(shop)) == acts(by_worker)
    await shop.checkouts.cancel(shop.tenant, "o-1", CancelOrder())
