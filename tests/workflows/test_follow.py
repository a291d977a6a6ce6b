"""Who follows an order reads its row: a question to a run may be what breaks it."""

from typing import Any

import pytest
from temporalio.client import WorkflowHandle

from everycent.domain.order import CardPayment, OrderStatus, PayOrder, RepairOrder, WaitsFor
from tests.workflows.conftest import Shop

pytestmark = pytest.mark.timeout(120)


@pytest.fixture(autouse=True)
def nobody_asks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let every query to a run fail the test."""

    async def query(*_values: Any, **_named: Any) -> None:
        raise AssertionError("a run was asked")

    monkeypatch.setattr(WorkflowHandle, "query", query)


async def test_a_declined_order_is_followed_until_it_wants_another_payment(shop: Shop) -> None:
    """Red when: the run is asked how far it is, or the last refusal is not told."""
    await shop.receive(5)
    await shop.checkouts.place(shop.order(payment=CardPayment(card_token="tok_declined")))
    told = await shop.checkouts.follow(shop.tenant, "o-1")
    assert (told.waits_for, told.decision) == (WaitsFor.PAYMENT, "OPEN")
    assert "declined" in told.reason
    payment = CardPayment(request_id="second", card_token="tok_ok")
    await shop.checkouts.pay(shop.tenant, "o-1", PayOrder(payment=payment))

    async def answered() -> bool:
        file = await shop.reader.order_file(shop.tenant, "o-1")
        return file is not None and file.is_answered("second")

    done = await shop.checkouts.follow(shop.tenant, "o-1", answered)
    assert (done.status, done.waits_for) == (OrderStatus.CONFIRMED, WaitsFor.NOTHING)


async def test_a_parked_order_is_followed_until_it_wants_an_operator(shop: Shop) -> None:
    """Red when: the run is asked, or the row's wait for repair is not told."""
    await shop.receive(5)
    shop.fault("inventory.commit_stock", "Bug")
    await shop.start(shop.order())
    told = await shop.checkouts.follow(shop.tenant, "o-1")
    key = f"{shop.tenant}/o-1/reserve"
    assert (told.waits_for, told.parked) == (WaitsFor.REPAIR, (key,))
    retry = RepairOrder(case_key=key, by="ada")
    assert (await shop.checkouts.repair(shop.tenant, "o-1", retry)).done
    done = await shop.checkouts.follow(shop.tenant, "o-1")
    assert done.status is OrderStatus.CONFIRMED
