"""Every way in which an order can end, on real databases and the real simulator."""

import asyncio

import pytest
from sqlalchemy import text

from everycent import clock
from everycent.database import order
from everycent.database.engine import Database
from everycent.domain.order import (
    AddAttempt,
    AttemptAdded,
    BalancePayment,
    CancelOrder,
    CardPayment,
    Decision,
    OrderLine,
    OrderStatus,
    PayOrder,
    RedirectPayment,
    WaitsFor,
)
from everycent.settings import ServiceName
from starters.refusals import OrderDiffersError, TooLateError
from tests.workflows.conftest import Shop
from workflows.checkout import Checkout

NOTHING_MOVED = {"free": 5, "held": 0, "sold": 0}
SOLD_TWO = {"free": 3, "held": 0, "sold": 2}


async def test_a_paid_order_is_confirmed_and_its_stock_sold(shop: Shop) -> None:
    await shop.receive(5)
    result = await shop.sell(shop.order(units=2))
    assert result.status is OrderStatus.CONFIRMED
    assert result.decision is Decision.COMMITTED
    assert await shop.stock() == SOLD_TWO
    assert await shop.charged() == [("captured", 2933, 0)]
    [transfer] = await shop.rows("ledger", "transfer")
    assert transfer["state"] == "CONFIRMED"
    [earned] = await shop.rows("points", "points_booking")
    assert earned["try_answer"]["points"] == 29


async def test_an_order_without_stock_is_rejected_and_leaves_no_trace(shop: Shop) -> None:
    await shop.receive(1)
    result = await shop.sell(shop.order(units=2))
    assert result.status is OrderStatus.REJECTED
    assert result.refusals == (
        {"kind": "out_of_stock", "sku": "LAMP", "units_wanted": 2, "units_free": 1},
    )
    assert await shop.stock() == {"free": 1, "held": 0, "sold": 0}
    assert await shop.charged() == []


@pytest.mark.requirement("T1")
async def test_two_lines_of_one_sku_are_checked_as_their_sum(shop: Shop) -> None:
    """Three and three of five is refused, and nothing is held.

    Red when: `allocate` checks each line against the shelf before the other has taken its units.
    """
    await shop.receive(5)
    line = OrderLine(sku="LAMP", units=3, amount_minor=100)
    result = await shop.sell(shop.order(lines=(line, line)))
    assert result.status is OrderStatus.REJECTED
    [refusal] = result.refusals
    assert (refusal["kind"], refusal["units_wanted"]) == ("out_of_stock", 6)
    assert await shop.stock() == NOTHING_MOVED


async def test_a_declined_card_leaves_the_order_open_for_another(shop: Shop) -> None:
    await shop.receive(5)
    declined = shop.order(payment=CardPayment(card_token="tok_declined"))
    placed = await shop.checkouts.place(declined)
    assert placed.waits_for is WaitsFor.PAYMENT
    assert "payment declined" in placed.reason
    assert (await shop.stock())["held"] == 2
    other = PayOrder(payment=CardPayment(request_id="second", card_token="tok_ok"))
    answer = await shop.checkouts.pay(shop.tenant, "o-1", other)
    assert answer == AttemptAdded(number=2)
    result = await shop.checkouts.wait(shop.tenant, "o-1")
    assert result.status is OrderStatus.CONFIRMED
    assert sorted(await shop.charged()) == [("captured", 2933, 0), ("declined", 0, 0)]


async def test_the_third_declined_card_ends_the_order(shop: Shop) -> None:
    await shop.receive(5)
    handle = await shop.start(shop.order(payment=CardPayment(card_token="tok_declined")))
    for request_id in ("second", "third"):
        again = PayOrder(payment=CardPayment(request_id=request_id, card_token="tok_declined"))
        await handle.execute_update(Checkout.pay, again)
    result = await handle.result()
    assert result.status is OrderStatus.REJECTED
    assert len(result.refusals) == 3
    assert await shop.stock() == NOTHING_MOVED


async def test_a_redirect_that_nobody_pays_expires(shop: Shop) -> None:
    await shop.receive(5)
    result = await shop.sell(shop.order(payment=RedirectPayment(), payment_window_seconds=3))
    assert result.status is OrderStatus.EXPIRED
    assert await shop.stock() == NOTHING_MOVED
    assert await shop.charged() == [("cancelled", 0, 0)]


@pytest.mark.requirement("AC1.5", "T5")
async def test_money_that_comes_as_the_window_ends_is_refunded_once(shop: Shop) -> None:
    """The customer pays on the provider's page while the order is undone: the money goes back.

    Red when: a void that finds the money taken counts as done without a refund.
    """
    await shop.receive(5)

    async def customer_pays() -> None:
        [intent] = (
            await shop.provider.get("/admin/intents", params={"reference": f"{shop.tenant}/*"})
        ).json()["data"]
        paid = await shop.provider.post(f"/v1/intents/{intent['id']}/customer_pays")
        paid.raise_for_status()

    shop.fault("payment.void", error_type=None, hook=customer_pays)
    result = await shop.sell(shop.order(payment=RedirectPayment(), payment_window_seconds=3))
    assert result.status is OrderStatus.EXPIRED
    assert (result.captured_minor, result.refunded_minor) == (2933, 2933)
    assert await shop.charged() == [("captured", 2933, 2933)]
    assert await shop.stock() == NOTHING_MOVED


async def test_a_redirect_that_is_paid_in_time_confirms_the_order(shop: Shop) -> None:
    await shop.receive(5)
    placed = await shop.checkouts.place(shop.order(payment=RedirectPayment()))
    assert placed.waits_for is WaitsFor.PAYMENT
    assert placed.redirect_url is not None
    intent_id = placed.redirect_url.rsplit("/", 1)[1]
    (await shop.provider.post(f"/v1/intents/{intent_id}/customer_pays")).raise_for_status()
    result = await shop.checkouts.wait(shop.tenant, "o-1")
    assert result.status is OrderStatus.CONFIRMED
    assert await shop.charged() == [("captured", 2933, 0)]


async def test_a_customer_who_gives_up_the_redirect_can_pay_by_card(shop: Shop) -> None:
    await shop.receive(5)
    await shop.checkouts.place(shop.order(payment=RedirectPayment()))
    card = PayOrder(payment=CardPayment(request_id="card", card_token="tok_ok"))
    await shop.checkouts.pay(shop.tenant, "o-1", card)
    result = await shop.checkouts.wait(shop.tenant, "o-1")
    assert result.status is OrderStatus.CONFIRMED
    assert sorted(await shop.charged()) == [("cancelled", 0, 0), ("captured", 2933, 0)]


async def test_a_payment_that_the_row_has_and_the_run_forgot_is_told_to_the_run(
    shop: Shop,
) -> None:
    """The server was put back by a second: the note of the payment is only in the order's row.

    Red when: who names it again is answered from the row, and the run waits until its window ends.
    """
    await shop.receive(5)
    await shop.checkouts.place(shop.order(payment=CardPayment(card_token="tok_declined")))
    card, now = CardPayment(request_id="card", card_token="tok_ok"), clock.now()
    note = AddAttempt(tenant=shop.tenant, order_id="o-1", at=now, payment=card)
    async with shop.databases["order"].transaction() as tx:
        await order.add_attempt(tx, [note])
    assert await shop.checkouts.pay(shop.tenant, "o-1", PayOrder(payment=card)) == AttemptAdded(
        number=2
    )
    result = await shop.checkouts.wait(shop.tenant, "o-1")
    assert result.status is OrderStatus.CONFIRMED
    again = await shop.checkouts.pay(shop.tenant, "o-1", PayOrder(payment=card))
    assert again == AttemptAdded(number=2), "typed again when all is over"


async def test_a_stored_balance_pays_an_order(shop: Shop) -> None:
    await shop.receive(5)
    await shop.deposit("purse", 2933)
    result = await shop.sell(shop.order(payment=BalancePayment(account="purse")))
    assert result.status is OrderStatus.CONFIRMED
    [account] = await shop.reader.rows(
        "account", "SELECT * FROM account WHERE tenant = :t", t=shop.tenant
    )
    assert (account["balance"], account["available"], account["frozen"]) == (0, 0, 0)
    assert await shop.charged() == []


async def test_points_pay_a_part_and_the_card_the_rest(shop: Shop) -> None:
    await shop.receive(5)
    await shop.grant_points("c-1", 1000)
    result = await shop.sell(shop.order(points=933))
    assert result.status is OrderStatus.CONFIRMED
    assert await shop.charged() == [("captured", 2000, 0)]
    [purse] = await shop.reader.rows(
        "points", "SELECT * FROM points_account WHERE tenant = :t", t=shop.tenant
    )
    assert (purse["available"], purse["frozen"]) == (1000 - 933 + 20, 0)


async def test_points_that_the_customer_does_not_have_reject_the_order(shop: Shop) -> None:
    await shop.receive(5)
    result = await shop.sell(shop.order(points=1))
    assert result.status is OrderStatus.REJECTED
    assert await shop.stock() == NOTHING_MOVED
    assert await shop.charged() == []


async def test_a_free_order_needs_no_payment(shop: Shop) -> None:
    await shop.receive(5)
    result = await shop.sell(shop.order(amount_minor=0, payment=None))
    assert result.status is OrderStatus.CONFIRMED
    assert await shop.stock() == SOLD_TWO
    assert await shop.charged() == []
    assert await shop.rows("ledger", "transfer") == []


@pytest.mark.requirement("AC18.2", "T25", "T27")
async def test_a_provider_that_charges_and_says_nothing_is_looked_up_not_charged_again(
    shop: Shop,
) -> None:
    """Two of three calls do their work and never answer: the order is confirmed, with one charge.

    Red when: a time-out counts as a no, or the second try sends a payment under another key.
    """
    await shop.receive(5)
    for operation in ("confirm", "capture"):
        rule = {
            "operation": operation,
            "reference": f"{shop.tenant}/*",
            "kind": "server_error",
            "times": 1,
        }
        (await shop.provider.post("/admin/faults", json=rule)).raise_for_status()
    result = await shop.sell(shop.order())
    assert result.status is OrderStatus.CONFIRMED
    assert await shop.charged() == [("captured", 2933, 0)]


@pytest.mark.requirement("AC18.5")
async def test_a_refused_capture_is_the_only_way_back_from_committing(shop: Shop) -> None:
    """The pivot refuses for good: the decision goes to ABORTING with the refusal as its evidence.

    Red when: `move` lets COMMITTING go to ABORTING without a pivot refusal, or not even with one.
    """
    await shop.receive(5)
    rule = {"operation": "capture", "reference": f"{shop.tenant}/*", "kind": "decline", "times": 1}
    (await shop.provider.post("/admin/faults", json=rule)).raise_for_status()
    result = await shop.sell(shop.order())
    assert (result.status, result.decision) == (OrderStatus.REJECTED, Decision.ABORTED)
    assert await shop.stock() == NOTHING_MOVED
    [(state, captured, _)] = await shop.charged()
    assert state in ("declined", "cancelled")
    assert captured == 0
    [row] = await shop.reader.rows(
        "order", "SELECT * FROM shop_order WHERE tenant = :t", t=shop.tenant
    )
    assert row["pivot_refusal"]["kind"] == "capture_refused"


@pytest.mark.requirement("AC1.3", "AC11.3")
async def test_a_paid_order_whose_stock_is_gone_is_refunded_in_full_once(
    shop: Shop, owners: dict[ServiceName, Database]
) -> None:
    """The hold vanishes after the capture: one refund of the whole amount, the sale booked back.

    Red when: a commit of a lost reservation is retried for ever, or parked without a refund.
    """
    await shop.receive(5)
    await shop.grant_points("c-1", 100)

    async def stock_burns_down() -> None:
        async with owners["inventory"].transaction() as tx:
            key = f"{shop.tenant}/o-1/reserve"
            await tx.execute(text("DELETE FROM reservation_line WHERE key = :key"), {"key": key})
            await tx.execute(text("DELETE FROM reservation WHERE key = :key"), {"key": key})
            await tx.execute(
                text(
                    "UPDATE stock SET held = held - 2, written_off = written_off + 2"
                    " WHERE tenant = :tenant"
                ),
                {"tenant": shop.tenant},
            )

    shop.fault("inventory.commit_stock", error_type=None, hook=stock_burns_down)
    result = await shop.sell(shop.order(points=33))
    assert (result.status, result.decision) == (OrderStatus.REFUNDED, Decision.COMMITTED)
    assert (result.captured_minor, result.refunded_minor) == (2900, 2900)
    assert await shop.charged() == [("captured", 2900, 2900)]
    [purse] = await shop.reader.rows(
        "points", "SELECT * FROM points_account WHERE tenant = :t", t=shop.tenant
    )
    assert (purse["available"], purse["frozen"], purse["debt"]) == (100, 0, 0)
    accounts = await shop.reader.rows(
        "ledger", "SELECT * FROM ledger_account WHERE tenant = :t", t=shop.tenant
    )
    assert accounts
    assert all(a["debits_posted"] == a["credits_posted"] for a in accounts)


@pytest.mark.requirement("AC1.2", "AC11.1")
async def test_stock_that_cannot_be_sold_for_a_while_is_sold_once_in_the_end(shop: Shop) -> None:
    """The inventory service fails five times after the payment: nobody does a thing, sold once.

    Red when: a step after the pivot is tried only a few times before a person is called.
    """
    await shop.receive(5)
    shop.fault("inventory.commit_stock", "Transient", times=5)
    result = await shop.sell(shop.order())
    assert result.status is OrderStatus.CONFIRMED
    assert await shop.stock() == SOLD_TWO
    assert shop.ran().count("inventory.commit_stock") == 6
    assert await shop.cases() == []


async def test_a_customer_can_cancel_while_the_order_waits_for_payment(shop: Shop) -> None:
    await shop.receive(5)
    await shop.checkouts.place(shop.order(payment=RedirectPayment()))
    cancel = CancelOrder(reason="changed my mind")
    for _ in range(2):  # Typed twice, it is cancelled once.
        answer = await shop.checkouts.cancel(shop.tenant, "o-1", cancel)
        assert answer.cancelled
        assert answer.reason == "changed my mind"
    result = await shop.checkouts.wait(shop.tenant, "o-1")
    assert result.status is OrderStatus.CANCELLED
    assert await shop.stock() == NOTHING_MOVED
    assert await shop.charged() == [("cancelled", 0, 0)]


@pytest.mark.requirement("AC2.6")
async def test_a_cancel_that_comes_too_late_is_told_why(shop: Shop) -> None:
    """After the decision a cancel is refused with the reason, during the capture and after the end.

    Red when: the validator of `cancel` lets a decided order through.
    """
    await shop.receive(5)
    told: list[str] = []

    async def cancel() -> None:
        with pytest.raises(TooLateError) as refused:
            await shop.checkouts.cancel(shop.tenant, "o-1", CancelOrder())
        told.append(str(refused.value))

    shop.fault("payment.capture", error_type=None, hook=cancel)
    result = await shop.sell(shop.order())
    await cancel()
    assert result.status is OrderStatus.CONFIRMED
    assert told == [
        "too late to cancel: the order is committing",
        "too late to cancel: the order is confirmed",
    ]


async def test_placing_an_order_again_sells_once_and_tells_the_same(shop: Shop) -> None:
    await shop.receive(5)
    order = shop.order()
    placements = await asyncio.gather(*(shop.checkouts.place(order) for _ in range(10)))
    assert {p.request_hash for p in placements} == {placements[0].request_hash}
    results = [await shop.checkouts.wait(shop.tenant, "o-1") for _ in range(2)]
    assert results[0] == results[1]
    again = await shop.checkouts.place(order)
    assert again.result == results[0]
    assert await shop.stock() == SOLD_TWO
    assert await shop.charged() == [("captured", 2933, 0)]


@pytest.mark.requirement("T34", "T11")
async def test_the_same_id_with_another_body_is_refused_with_the_fields_that_differ(
    shop: Shop,
) -> None:
    """While it runs, after it ended, and from a run of its own: the stored order stays as it was.

    Red when: the amount is not part of the request hash.
    """
    await shop.receive(5)
    order = shop.order(payment=RedirectPayment())
    other = shop.order(payment=RedirectPayment(), amount_minor=1, points=0)
    await shop.checkouts.place(order)
    with pytest.raises(OrderDiffersError) as refused:
        await shop.checkouts.place(other)
    assert refused.value.fields == ("lines",)
    await shop.checkouts.cancel(shop.tenant, "o-1", CancelOrder())
    await shop.checkouts.wait(shop.tenant, "o-1")
    with pytest.raises(OrderDiffersError):
        await shop.checkouts.place(other)
    view = await shop.reader.order(shop.tenant, "o-1")
    assert view is not None
    assert view.total_minor == 2933
