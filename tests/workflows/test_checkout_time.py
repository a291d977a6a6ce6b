"""What happens by itself as time passes: skipped, not waited for.

A file of its own: the server skips no time while an activity that nobody waits for is pending.
"""

from datetime import timedelta

import pytest
from temporalio.testing import WorkflowEnvironment

from everycent.domain.order import CardPayment, Decision, OrderStatus
from tests.workflows.conftest import Shop

NOTHING_MOVED = {"free": 5, "held": 0, "sold": 0}


@pytest.mark.requirement("AC1.5", "T6")
async def test_an_order_that_nobody_pays_expires_and_gives_its_stock_back(shop: Shop) -> None:
    """The window ends by a durable timer: no cron job; the stock is free again, exactly once.

    Red when: the wait for the customer has no time-out.
    """
    await shop.receive(5)
    order = shop.order(payment=CardPayment(card_token="tok_declined"), payment_window_seconds=900)
    result = await shop.sell(order)
    assert result.status is OrderStatus.EXPIRED
    assert result.decision is Decision.ABORTED
    assert await shop.stock() == NOTHING_MOVED
    [reservation] = await shop.rows("inventory", "reservation")
    assert reservation["state"] == "CANCELLED"


async def test_a_parked_step_is_tried_again_by_itself(shop: Shop) -> None:
    await shop.receive(5)
    shop.fault("ledger.post_transfer", "Bug", times=2)
    result = await shop.sell(shop.order())
    assert result.status is OrderStatus.CONFIRMED
    [case] = await shop.cases()
    assert (case["state"], case["attempts"], case["resolved_by"]) == ("RESOLVED", 2, "everycent")
    assert await shop.stock() == {"free": 3, "held": 0, "sold": 2}
    [transfer] = await shop.rows("ledger", "transfer")
    assert transfer["state"] == "CONFIRMED"


@pytest.mark.requirement("AC13.8")
async def test_every_request_carries_the_opening_day_of_its_order(
    shop: Shop, temporal: WorkflowEnvironment
) -> None:
    """Days later too, and in another run of the order: what ages is found by that day alone.

    Red when: a step sends the day on which it is sent, or the day on which its run began.
    """
    await shop.receive(5)
    declined = CardPayment(card_token="tok_declined")
    order = shop.order(payment=declined, payment_window_seconds=3 * 86_400)
    first = await shop.start(order)
    await shop.until(lambda: _ran(shop, "payment.authorise"))
    await temporal.sleep(timedelta(days=2))
    second = await shop.start(order, id_suffix="/again")
    assert {(await run.result()).status for run in (first, second)} == {OrderStatus.EXPIRED}

    [row] = await shop.reader.rows(
        "order", "SELECT opened_on FROM shop_order WHERE tenant = :tenant", tenant=shop.tenant
    )
    requests = [r for r in shop.trouble.requests[f"{shop.tenant}/o-1"] if hasattr(r, "opened_on")]
    assert {request.opened_on for request in requests} == {row["opened_on"]}
    assert len({request.at.date() for request in requests}) > 1, "no time has passed"
    assert {request.key for request in requests} >= {order.step_key("reserve")}


async def _ran(shop: Shop, activity: str) -> bool:
    return activity in shop.ran()
