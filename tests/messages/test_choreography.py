"""A checkout without a central flow: the same ends as the saga, by messages alone.

No Temporal runs here, and nothing of a workflow is imported: the messages carry the order.
"""

from typing import Any

import pytest
from sqlalchemy.ext.asyncio import AsyncConnection
from temporalio.exceptions import ApplicationError

from everycent.database import engine, inbox, inventory, lanes, outbox
from everycent.domain.inventory import ReleaseStock
from everycent.domain.order import (
    AttemptAdded,
    BalancePayment,
    CardPayment,
    OrderDiffers,
    OrderStatus,
    RedirectPayment,
)
from everycent.errors import Bug
from everycent.settings import ServiceName
from tests.conftest import NOON, TODAY
from tests.messages.conftest import Shop

CONFIRMED, REJECTED = OrderStatus.CONFIRMED, OrderStatus.REJECTED


async def counts(shop: Shop) -> tuple[Any, ...]:
    """Return stock (free, held, sold), and what the provider captured and gave back."""
    books = (await shop.http.get("/admin/intents", params={"reference": "*"})).json()
    return (*await shop.lamps(), books["captured_minor"], books["refunded_minor"])


@pytest.mark.requirement("AC3.1", "AC3.2", "T33")
async def test_an_order_paid_by_card_is_confirmed_with_outbox_and_inbox_alone(shop: Shop) -> None:
    """No broker, no workflow for it or for any of its events.

    Red when: a participant does not react, or hands a refusal on like a hold, or the order's row
    names another mode.
    """
    await shop.stock(5)
    order = shop.by_card()
    await shop.start(order)
    assert await shop.unfinished() == []
    result = await shop.result(order)
    assert (result.status, result.captured_minor, result.points_earned) == (CONFIRMED, 5998, 59)
    assert await counts(shop) == (3, 0, 2, 5998, 0)
    entries = await shop.read(
        "ledger", "SELECT sum(amount_minor) FROM entry WHERE key LIKE :tenant||'%'"
    )
    assert entries[0][0] == 0
    [(mode,)] = await shop.read("order", "SELECT mode FROM shop_order WHERE tenant = :tenant")
    assert mode == "choreographed"


@pytest.mark.requirement("AC3.2")
async def test_an_order_paid_by_balance_and_points_is_confirmed(shop: Shop) -> None:
    """Red when: a service is not told that the order is paid, or does not wait for its turn."""
    await shop.stock(5)
    await shop.deposit(10_000)
    await shop.grant(1_000)
    order = shop.by_balance(points=998)
    await shop.start(order)
    assert await shop.unfinished() == []
    result = await shop.result(order)
    assert (result.status, result.points_used, result.points_earned) == (CONFIRMED, 998, 50)
    [account] = await shop.read(
        "account", "SELECT available, frozen FROM account WHERE tenant = :tenant"
    )
    assert tuple(account) == (5_000, 0)
    [purse] = await shop.read(
        "points", "SELECT available, frozen FROM points_account WHERE tenant = :tenant"
    )
    assert tuple(purse) == (52, 0)


async def test_an_order_that_points_pay_whole_is_confirmed(shop: Shop) -> None:
    await shop.stock(5)
    await shop.grant(6_000)
    order = shop.order(points=5_998)
    await shop.start(order)
    assert await shop.unfinished() == []
    assert (await shop.result(order)).status is CONFIRMED
    assert await shop.lamps() == (3, 0, 2)


@pytest.mark.requirement("AC3.2")
async def test_an_order_without_stock_is_rejected_and_leaves_nothing(shop: Shop) -> None:
    """Red when: a refusal is handed on like a hold."""
    await shop.stock(1)
    order = shop.by_card()
    await shop.start(order)
    assert await shop.unfinished() == []
    result = await shop.result(order)
    assert (result.status, result.captured_minor) == (REJECTED, 0)
    assert result.reason.startswith("out of stock, sku LAMP")
    assert await counts(shop) == (1, 0, 0, 0, 0)


async def test_an_order_with_too_few_points_gives_its_stock_back(shop: Shop) -> None:
    await shop.stock(5)
    await shop.grant(10)
    order = shop.by_card(points=998)
    await shop.start(order)
    assert await shop.unfinished() == []
    assert (await shop.result(order)).status is REJECTED
    assert await counts(shop) == (5, 0, 0, 0, 0)


@pytest.mark.requirement("AC3.2")
async def test_a_declined_card_leaves_the_order_open_until_another_pays(shop: Shop) -> None:
    """Red when: a refused payment ends the order, or a second one is not tried."""
    await shop.stock(5)
    await shop.deposit(10_000)
    order = shop.by_card(token="tok_declined")
    await shop.start(order)
    await shop.settle()
    row = await shop.row(order)
    assert (row.decision, row.waits_for) == ("OPEN", "payment")
    again = BalancePayment(account="ada", request_id="second")
    assert await shop.pay(order, again) == AttemptAdded(number=2)
    assert await shop.pay(order, again) == AttemptAdded(number=2)
    assert await shop.unfinished() == []
    result = await shop.result(order)
    assert (result.status, [r["kind"] for r in result.refusals]) == (
        CONFIRMED,
        ["payment_declined"],
    )
    assert await counts(shop) == (3, 0, 2, 0, 0)
    assert await shop.pay(order, again) == AttemptAdded(number=2), "and afterwards as before"


async def test_three_declined_cards_reject_the_order(shop: Shop) -> None:
    await shop.stock(5)
    order = shop.by_card(token="tok_declined")
    await shop.start(order)
    for name in ("second", "third"):
        await shop.settle()
        await shop.pay(order, CardPayment(card_token="tok_declined", request_id=name))
    assert await shop.unfinished() == []
    result = await shop.result(order)
    assert (result.status, len(result.refusals)) == (REJECTED, 3)
    assert await counts(shop) == (5, 0, 0, 0, 0)


@pytest.mark.requirement("AC3.2")
@pytest.mark.parametrize("late", [True, False])
async def test_a_cancelled_order_leaves_nothing_and_a_confirmed_one_is_not_cancelled(
    shop: Shop, late: bool
) -> None:
    """Red when: a cancellation moves a decision that was made."""
    await shop.stock(5)
    order = shop.by_card()
    await shop.start(order)
    if late:
        assert await shop.unfinished() == []
    verdict: Any = await shop.cancel(order)
    assert await shop.unfinished() == []
    result = await shop.result(order)
    assert result.status is (CONFIRMED if late else OrderStatus.CANCELLED)
    assert verdict.decision == ("COMMITTED" if late else "ABORTING")
    assert await counts(shop) == ((3, 0, 2, 5998, 0) if late else (5, 0, 0, 0, 0))


async def test_a_balance_that_was_held_for_a_cancelled_order_is_free_again(shop: Shop) -> None:
    await shop.stock(5)
    await shop.deposit(10_000)
    order = shop.by_balance()
    await shop.start(order)
    for sender, receiver in (("order", "inventory"), ("inventory", "account")):
        await shop.relays[sender].run_pass()  # type: ignore[index]
        await shop.consumers[receiver].run_pass()  # type: ignore[index]
    money = "SELECT available, frozen FROM account WHERE tenant = :tenant"
    assert tuple((await shop.read("account", money))[0]) == (4002, 5998)
    await shop.cancel(order)
    assert await shop.unfinished() == []
    assert (await shop.result(order)).status is OrderStatus.CANCELLED
    assert tuple((await shop.read("account", money))[0]) == (10_000, 0)
    assert await shop.lamps() == (5, 0, 0)


@pytest.mark.parametrize("hops", range(1, 7))
async def test_a_cancellation_after_any_hop_ends_whole_or_leaves_nothing(
    shop: Shop, hops: int
) -> None:
    """A Cancel that overtakes its Try, by another sender, leaves the tombstone that refuses it."""
    await shop.stock(5)
    order = shop.by_card()
    await shop.start(order)
    senders: tuple[ServiceName, ...] = ("order", "inventory", "payment")
    for hop in range(hops):
        await shop.relays[senders[hop % 3]].run_pass()
        await shop.consumers[senders[(hop + 1) % 3]].run_pass()
    await shop.cancel(order)
    assert await shop.unfinished() == []
    result = await shop.result(order)
    whole = result.status is CONFIRMED
    assert await counts(shop) == ((3, 0, 2, 5998, 0) if whole else (5, 0, 0, 0, 0))


@pytest.mark.requirement("AC3.2")
async def test_an_unpaid_order_expires_by_its_decision_and_gives_its_stock_back(shop: Shop) -> None:
    """Red when: the scan looks at no window, or at orders that a workflow drives."""
    await shop.stock(5)
    order = shop.by_card(token="tok_declined")
    await shop.start(order)
    await shop.settle()
    shop.clock.move(seconds=899)
    assert await shop.expire() == 0
    shop.clock.move(seconds=1)
    assert await shop.expire() == 1
    assert await shop.expire() == 0
    assert await shop.unfinished() == []
    result = await shop.result(order)
    assert (result.status, result.reason) == (OrderStatus.EXPIRED, "not paid within 900 s")
    assert await counts(shop) == (5, 0, 0, 0, 0)


async def test_a_paid_order_whose_stock_is_gone_is_refunded_in_full(shop: Shop) -> None:
    """Somebody took the hold away by hand after the payment was held.

    Red when: a sale that cannot be is taken for one, or for an order that can be undone.
    """
    await shop.stock(5)
    order = shop.by_card()
    await shop.start(order)
    await shop.relays["order"].run_pass()
    await shop.consumers["inventory"].run_pass()
    async with shop.databases["inventory"].transaction() as tx:
        release = ReleaseStock(key=order.step_key("reserve"), at=NOON, opened_on=TODAY, reason="x")
        await inventory.release_stock(tx, [release])
    assert await shop.unfinished() == []
    result = await shop.result(order)
    assert (result.status, result.captured_minor, result.refunded_minor) == (
        OrderStatus.REFUNDED, 5998, 5998,
    )  # fmt: skip
    assert await counts(shop) == (5, 0, 0, 5998, 5998)


async def test_a_failing_capture_is_the_only_way_back(shop: Shop) -> None:
    await shop.stock(5)
    order = shop.by_card()
    await shop.http.post(
        "/admin/faults", json={"kind": "decline", "operation": "capture", "times": 1}
    )
    await shop.start(order)
    assert await shop.unfinished() == []
    result = await shop.result(order)
    assert (result.status, result.refusals[-1]["kind"]) == (REJECTED, "capture_refused")
    assert await counts(shop) == (5, 0, 0, 0, 0)


async def test_the_same_order_again_sells_nothing_and_another_one_is_refused(shop: Shop) -> None:
    """Red when: the event is written without looking who drives the order."""
    await shop.stock(9)
    order = shop.by_card()
    await shop.start(order)
    await shop.start(order)
    assert await shop.unfinished() == []
    await shop.start(order)
    assert await shop.unfinished() == []
    assert await shop.lamps() == (7, 0, 2)
    assert await shop.start(shop.by_card(units=3)) == OrderDiffers(fields=("lines",))


async def test_a_payment_by_the_providers_page_is_refused_at_the_door(shop: Shop) -> None:
    with pytest.raises(ApplicationError, match="use the mode saga"):
        await shop.start(shop.order(pay=RedirectPayment()))


@pytest.mark.requirement("AC9.2")
@pytest.mark.parametrize("dies", ["before the commit", "after it"])
async def test_a_decision_and_its_event_stand_or_fall_together(
    shop: Shop, dies: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The order service dies as it has decided; whatever was kept, the order goes on from there.

    Red when: the event of a decision is written in another transaction than the decision.
    """

    class Crash(Exception):
        """The process dies here."""

    async def crash(*_: Any, **__: Any) -> None:
        raise Crash

    async def crash_if_told(connection: AsyncConnection) -> None:
        if connection.info.get("everycent_wakes"):
            raise Crash  # The first thing after the COMMIT of who has written a message.

    await shop.stock(5)
    await shop.deposit(10_000)
    order = shop.by_balance()
    await shop.start(order)
    hops: tuple[ServiceName, ...] = ("order", "inventory", "account")
    for service in hops:
        await shop.settle([service])
    await shop.relays["account"].run_pass()
    with monkeypatch.context() as patch, pytest.raises(Crash):
        if dies == "before the commit":
            patch.setattr(outbox, "publish", crash)
        else:
            patch.setattr(engine, "_wake", crash_if_told)
        await shop.consumers["order"].run_pass()
    before = dies == "before the commit"
    assert (await shop.row(order)).decision == ("OPEN" if before else "COMMITTING")
    told = await shop.read("order", "SELECT 1 FROM outbox WHERE key = :tenant || '/o-1/order.paid'")
    assert bool(told) is not before
    shop.clock.move(minutes=2)
    assert await shop.unfinished() == []
    assert (await shop.result(order)).status is CONFIRMED
    assert await shop.lamps() == (3, 0, 2)


async def test_an_undo_that_fails_waits_dead_on_both_sides_until_it_is_replayed(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other undos still run; a replay at the receiver and at the sender ends the order."""
    await shop.stock(5)
    order = shop.by_card(token="tok_declined")
    await shop.start(order)
    await shop.settle()
    await shop.cancel(order)
    with monkeypatch.context() as patch:

        async def fails(*_: Any) -> Any:
            raise Bug("the row is broken")

        reaction = shop.reactions["inventory"]["order.aborting"]
        patch.setattr(reaction, "apply", fails)
        for _ in range(12):
            await shop.settle()
            shop.clock.move(minutes=2)
    [dead] = await shop.unfinished()
    assert (dead[0], dead[3]) == ("order", "DEAD")
    assert "Bug: the row is broken" in dead[4]
    assert (await shop.row(order)).decision == "ABORTING"
    key = dead[1]
    async with shop.databases["inventory"].transaction() as tx:
        assert await inbox.replay_received(tx, [key], at=shop.clock()) == [key]
    async with shop.databases["order"].transaction() as tx:
        assert await lanes.replay_sent(tx, [key], at=shop.clock()) == [key]
    assert await shop.unfinished() == []
    assert (await shop.result(order)).status is OrderStatus.CANCELLED
    assert await counts(shop) == (5, 0, 0, 0, 0)


@pytest.mark.parametrize("service", ["inventory", "payment", "points", "ledger"])
async def test_a_service_that_is_down_holds_the_order_up_and_loses_nothing(
    shop: Shop, service: Any
) -> None:
    """The core is decided with its event in one transaction; whoever is down hears it later.

    Red when: the order closes before all have reported.
    """
    await shop.stock(5)
    order = shop.by_card()
    shop.down = {service}
    await shop.start(order)
    await shop.settle()
    shop.clock.move(minutes=5)
    await shop.settle()
    assert (await shop.row(order)).result is None
    shop.down = set()
    assert await shop.unfinished() == []
    assert (await shop.result(order)).status is CONFIRMED
    assert await counts(shop) == (3, 0, 2, 5998, 0)


async def test_a_late_order_is_not_charged_twice_when_the_provider_says_nothing(shop: Shop) -> None:
    """The provider did it and did not answer: the consumer looks it up under the same key."""
    await shop.stock(5)
    order = shop.by_card()
    rule = {"kind": "timeout_after", "operation": "confirm", "times": 1, "seconds": 0.05}
    await shop.http.post("/admin/faults", json=rule)
    await shop.start(order)
    await shop.settle()
    shop.clock.move(seconds=30)
    assert await shop.unfinished() == []
    assert (await shop.result(order)).status is CONFIRMED
    assert await counts(shop) == (3, 0, 2, 5998, 0)
