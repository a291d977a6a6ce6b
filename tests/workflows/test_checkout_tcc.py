"""The checkout in TCC mode: the same steps under the same keys, every hold at once."""

import asyncio
import contextlib
from typing import Any

import pytest
from temporalio.client import WorkflowUpdateFailedError

from everycent.database import account
from everycent.domain.account import DebitBalance
from everycent.domain.mode import Mode
from everycent.domain.order import (
    BalancePayment,
    CancelOrder,
    CardPayment,
    Decision,
    OrderStatus,
    PayOrder,
    PlaceOrder,
    RedirectPayment,
    RepairOrder,
)
from tests.conftest import NOON
from tests.workflows.conftest import Shop
from tests.workflows.test_checkout_faults import (
    HAPPY_STEPS,
    TRY_STEPS,
    UNDOS,
    assert_nothing_moved,
    assert_sold_once,
    stocked,
)
from workflows.checkout import Checkout


def tcc(shop: Shop, **changes: Any) -> PlaceOrder:
    return shop.order(mode=Mode.TCC, **{"points": 33, **changes})


async def row_of(shop: Shop) -> dict[str, Any]:
    [row] = await shop.reader.rows(
        "order", "SELECT status, decision, mode FROM shop_order WHERE tenant = :t", t=shop.tenant
    )
    return row


async def test_an_order_in_tcc_mode_is_sold(shop: Shop) -> None:
    await stocked(shop)
    result = await shop.sell(tcc(shop))
    assert (result.status, result.decision) == (OrderStatus.CONFIRMED, Decision.COMMITTED)
    await assert_sold_once(shop)


@pytest.mark.requirement("AC2.3")
async def test_between_try_and_confirm_the_units_are_off_sale_and_the_order_is_not_confirmed(
    shop: Shop,
) -> None:
    """Looked at before the decision and between it and the capture: held, and pending.

    Red when: the stock's Try only looks, or the status is written with the decision.
    """
    await stocked(shop)
    seen: list[tuple[dict[str, int], str, str]] = []

    async def look() -> None:
        row = await row_of(shop)
        seen.append((await shop.stock(), row["status"], row["decision"]))

    for step in ("order.decide", "payment.capture"):
        shop.fault(step, None, hook=look)
    await shop.sell(tcc(shop))
    held = {"free": 3, "held": 2, "sold": 0}
    assert seen == [(held, "PENDING", "OPEN"), (held, "PENDING", "COMMITTING")]


@pytest.mark.requirement("AC2.2", "AC6.4", "AC6.6")
@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("step", TRY_STEPS)
async def test_a_try_that_fails_for_good_cancels_every_branch(
    shop: Shop, step: str, after: bool
) -> None:
    """Whether it had committed or not: all three may have been tried, all three get a Cancel.

    Red when: the branch that failed, or one that still runs, gets none.
    """
    await stocked(shop)
    shop.fault(step, "Bug", after=after)
    result = await shop.sell(tcc(shop))
    assert (result.status, result.decision) == (OrderStatus.REJECTED, Decision.ABORTED)
    assert sorted(name for name in shop.ran() if name in UNDOS) == sorted(UNDOS)
    await assert_nothing_moved(shop)


@pytest.mark.requirement("AC2.2")
@pytest.mark.parametrize("step", HAPPY_STEPS)
async def test_a_lost_reply_at_any_step_changes_nothing(shop: Shop, step: str) -> None:
    """Red when: a step does its work again under another key."""
    await stocked(shop)
    shop.fault(step, times=2, after=True)
    assert (await shop.sell(tcc(shop))).status is OrderStatus.CONFIRMED
    await assert_sold_once(shop)


@pytest.mark.requirement("AC6.5", "T13")
async def test_a_confirm_that_fails_is_parked_and_nothing_is_rolled_back(shop: Shop) -> None:
    """The points cannot be used for now: a case, the order stays COMMITTING, a retry ends it.

    Red when: a failed Confirm leads to a Cancel, or is given up.
    """
    await stocked(shop)
    shop.fault("points.redeem_points", "Bug")
    handle = await shop.start(tcc(shop))

    async def parked() -> bool:
        return bool(await shop.cases())

    await shop.until(parked)
    assert (await row_of(shop))["decision"] == "COMMITTING"
    [case] = await shop.cases()
    await handle.execute_update(
        Checkout.repair, RepairOrder(case_key=case["case_key"], by="ada", reason="it is up")
    )
    assert (await handle.result()).status is OrderStatus.CONFIRMED
    assert not set(shop.ran()) & set(UNDOS)
    await assert_sold_once(shop)


async def test_a_refused_card_leaves_the_holds_until_another_one_pays(shop: Shop) -> None:
    """Red when: the first refused payment gives the stock back, or nobody is asked for another."""
    await stocked(shop)
    handle = await shop.start(tcc(shop, payment=CardPayment(card_token="tok_declined")))
    placement = await handle.execute_update(
        Checkout.placed, tcc(shop, payment=CardPayment(card_token="tok_declined"))
    )
    assert placement.waits_for == "payment"
    assert await shop.stock() == {"free": 3, "held": 2, "sold": 0}
    second = CardPayment(card_token="tok_ok", request_id="second")
    await handle.execute_update(Checkout.pay, PayOrder(payment=second))
    assert (await handle.result()).status is OrderStatus.CONFIRMED


async def test_nobody_is_asked_to_pay_before_the_goods_are_held(shop: Shop) -> None:
    """The page is open and the stock's Try still on its way: the customer is not asked yet.

    Red when: the payment's branch does not wait for the others before it asks.
    """
    await stocked(shop)
    asked: list[str] = []

    async def page_is_open() -> None:
        async def opened() -> bool:
            return bool(await shop.charged())

        await shop.until(opened)
        asked.append((await handle.query(Checkout.progress)).waits_for)

    shop.fault("inventory.reserve_stock", None, hook=page_is_open)
    handle = await shop.start(tcc(shop, payment=RedirectPayment()))
    placement = await handle.execute_update(Checkout.placed, tcc(shop, payment=RedirectPayment()))
    assert asked == ["nothing"]
    assert placement.redirect_url
    await handle.execute_update(Checkout.cancel, CancelOrder())
    assert (await handle.result()).status is OrderStatus.CANCELLED
    await assert_nothing_moved(shop)


@pytest.mark.requirement("AC9.4")
@pytest.mark.parametrize("together", [False])
async def test_the_rows_mode_goes_before_a_runs_own(shop: Shop) -> None:
    """Another run of the order was told another mode: it goes by the row's.

    Red when: the run takes the mode from its input.
    """
    await stocked(shop)
    declined = tcc(shop, payment=CardPayment(card_token="tok_declined"))
    first = await shop.start(declined)
    await first.execute_update(Checkout.placed, declined)
    other = declined.model_copy(update={"mode": Mode.SAGA})

    async def paid_beside_it() -> None:
        async def asked() -> bool:
            return shop.ran().count("payment.authorise") == 2

        await shop.until(asked)

    shop.fault("inventory.reserve_stock", None, hook=paid_beside_it)  # In TCC all Tries are begun.
    rival = await shop.start(other, id_suffix="/rival")
    await rival.execute_update(Checkout.placed, other)
    assert (await row_of(shop))["mode"] == "tcc"
    await rival.execute_update(Checkout.cancel, CancelOrder())
    with contextlib.suppress(WorkflowUpdateFailedError):  # It may have heard of it from the row.
        await first.execute_update(Checkout.cancel, CancelOrder())
    for handle in (rival, first):
        assert (await handle.result()).status is OrderStatus.CANCELLED
    await assert_nothing_moved(shop)


@pytest.mark.requirement("AC6.3")
async def test_a_balance_is_debited_once_by_ten_confirms_at_once(
    shop: Shop,
) -> None:
    """Red when: a Confirm takes what the row has given up already."""
    await stocked(shop)
    await shop.deposit("a-1", 10_000)
    before = []

    async def nine_more() -> None:
        key = tcc(shop).step_key("pay", "first")
        [hold] = await shop.rows("account", "balance_hold")
        request = DebitBalance(key=key, at=NOON, opened_on=hold["opened_on"])

        async def confirm() -> Any:
            async with shop.databases["account"].transaction() as tx:
                [answer] = await account.debit_balance(tx, [request])
            return answer

        before.extend(await asyncio.gather(*(confirm() for _ in range(9))))

    shop.fault("account.debit_balance", None, hook=nine_more)
    result = await shop.sell(tcc(shop, payment=BalancePayment(account="a-1")))
    assert result.status is OrderStatus.CONFIRMED
    assert len(before) == 9
    assert all(answer == before[0] for answer in before)
    [purse] = await shop.reader.rows(
        "account", "SELECT available, frozen FROM account WHERE tenant = :t", t=shop.tenant
    )
    assert purse == {"available": 10_000 - 2_900, "frozen": 0}


@pytest.mark.requirement("AC6.4", "AC6.6")
@pytest.mark.parametrize("together", [False])
async def test_a_payment_that_is_named_as_another_branch_refuses_is_not_begun(shop: Shop) -> None:
    """A second card is written down just before the stock's refusal aborts the order.

    Its answer reaches the run when the decision is on its way: no Try is begun any more, for its
    Cancel would not be among those that run.

    Red when: the branch that takes the payment does not hear that another one gave up.
    """
    await stocked(shop)

    async def until_ran(name: str) -> None:
        async def ran() -> bool:
            return name in shop.ran()

        await shop.until(ran)

    async def second_is_noted() -> None:
        async def noted() -> bool:
            attempts = await shop.reader.rows(
                "order", "SELECT 1 FROM payment_attempt WHERE tenant = :t", t=shop.tenant
            )
            return len(attempts) == 2

        await shop.until(noted)

    shop.fault("inventory.reserve_stock", None, hook=second_is_noted)
    shop.fault("order.add_attempt", None, after=True, hook=lambda: until_ran("order.decide"))
    shop.fault("payment.authorise", None, hook=lambda: until_ran("payment.void"))
    handle = await shop.start(tcc(shop, units=50))
    second = CardPayment(card_token="tok_ok", request_id="second")
    await handle.execute_update(Checkout.pay, PayOrder(payment=second))
    result = await handle.result()
    assert (result.status, result.reason.partition(",")[0]) == ("REJECTED", "out of stock")
    assert shop.ran().count("payment.authorise") == 1
    await assert_nothing_moved(shop)
