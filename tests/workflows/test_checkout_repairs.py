"""An operator is heard, what cannot be told stops nothing, and no update waits for ever."""

import asyncio

import pytest
from temporalio.api.enums.v1 import EventType
from temporalio.client import WorkflowFailureError, WorkflowUpdateFailedError

from everycent.domain.order import (
    CancelOrder,
    CardPayment,
    Decision,
    OrderStatus,
    PayOrder,
    RedirectPayment,
    RepairOrder,
    WaitsFor,
)
from tests.workflows.conftest import Shop
from workflows.checkout import Checkout

NOTHING_MOVED = {"free": 5, "held": 0, "sold": 0}
SOLD_TWO = {"free": 3, "held": 0, "sold": 2}


async def parked_case(shop: Shop) -> str:
    async def parked() -> bool:
        return bool(await shop.cases())

    await shop.until(parked)
    [case] = await shop.cases()
    key: str = case["case_key"]
    return key


async def pay_on_the_page(shop: Shop) -> None:
    listed = await shop.provider.get("/admin/intents", params={"reference": f"{shop.tenant}/*"})
    [intent] = listed.json()["data"]
    paid = await shop.provider.post(f"/v1/intents/{intent['id']}/customer_pays")
    paid.raise_for_status()


@pytest.mark.requirement("T7")
async def test_a_step_that_a_person_took_over_during_a_retry_is_not_run_again(shop: Shop) -> None:
    """Ada retries a refund, Bob says meanwhile that he sent the money: no second refund is made.

    Red when: the word of an operator is dropped while another one's try is under way.
    """
    await shop.receive(5)
    trying, go_on = asyncio.Event(), asyncio.Event()

    async def wait() -> None:
        trying.set()
        await go_on.wait()

    shop.fault("payment.void", error_type=None, hook=lambda: pay_on_the_page(shop))
    shop.fault("payment.refund", "Bug")
    shop.fault("payment.refund", "Bug", hook=wait)
    await shop.checkouts.place(shop.order(payment=RedirectPayment()))
    await shop.checkouts.cancel(shop.tenant, "o-1", CancelOrder())
    key = await parked_case(shop)
    ada = RepairOrder(case_key=key, by="ada")
    bob = RepairOrder(case_key=key, by="bob", action="resolve", reason="sent 29.33 by bank")
    retry = asyncio.create_task(shop.checkouts.repair(shop.tenant, "o-1", ada))
    await trying.wait()
    resolve = asyncio.create_task(shop.checkouts.repair(shop.tenant, "o-1", bob))

    async def bob_is_heard() -> bool:
        handle = shop.client.get_workflow_handle(f"checkout/{shop.tenant}/o-1")
        events = [event async for event in handle.fetch_history_events()]
        accepted = EventType.EVENT_TYPE_WORKFLOW_EXECUTION_UPDATE_ACCEPTED
        return [e.event_type for e in events].count(accepted) == 4  # Placed, cancel, ada, bob.

    await shop.until(bob_is_heard)
    go_on.set()
    assert (await retry).done is False
    assert (await resolve).done is True
    result = await shop.checkouts.wait(shop.tenant, "o-1")
    assert result.status is OrderStatus.CANCELLED
    assert await shop.charged() == [("captured", 2933, 0)]
    [case] = await shop.cases()
    assert (case["state"], case["resolved_by"], case["by_hand"]) == ("RESOLVED", "bob", True)


async def test_a_refund_that_parks_holds_up_no_undo(shop: Shop) -> None:
    await shop.receive(5)
    await shop.grant_points("c-1", 100)
    shop.fault("payment.void", error_type=None, hook=lambda: pay_on_the_page(shop))
    shop.fault("payment.refund", "Bug")
    await shop.checkouts.place(shop.order(points=33, payment=RedirectPayment()))
    await shop.checkouts.cancel(shop.tenant, "o-1", CancelOrder())
    key = await parked_case(shop)
    assert await shop.stock() == NOTHING_MOVED
    view = await shop.reader.order(shop.tenant, "o-1")
    assert view is not None
    assert (view.status, view.waits_for) == (OrderStatus.CANCELLED, WaitsFor.REPAIR)
    retry = RepairOrder(case_key=key, by="ada")
    assert (await shop.checkouts.repair(shop.tenant, "o-1", retry)).done
    result = await shop.checkouts.wait(shop.tenant, "o-1")
    assert (result.captured_minor, result.refunded_minor) == (2900, 2900)
    assert await shop.charged() == [("captured", 2900, 2900)]


async def test_a_paid_order_that_is_parked_says_that_it_waits_for_repair(shop: Shop) -> None:
    await shop.receive(5)
    shop.fault("inventory.commit_stock", "Bug")
    handle = await shop.start(shop.order())
    key = await parked_case(shop)

    async def waits_for(what: WaitsFor) -> bool:
        view = await shop.reader.order(shop.tenant, "o-1")
        return view is not None and view.waits_for is what

    await shop.until(lambda: waits_for(WaitsFor.REPAIR))
    retry = RepairOrder(case_key=key, by="ada")
    assert (await shop.checkouts.repair(shop.tenant, "o-1", retry)).done
    assert (await handle.result()).status is OrderStatus.CONFIRMED
    assert await waits_for(WaitsFor.NOTHING)


@pytest.mark.parametrize("teller", ["order.mark_order", "order.park_step", "order.settle_case"])
async def test_what_cannot_be_told_stops_no_order(shop: Shop, teller: str) -> None:
    await shop.receive(5)
    shop.fault("inventory.commit_stock", "Bug")
    shop.fault(teller, "Bug", times=99)
    handle = await shop.start(shop.order())
    progress = shop.checkouts.progress

    async def parked() -> bool:
        return bool((await progress(shop.tenant, "o-1")).parked)

    await shop.until(parked)
    retry = RepairOrder(case_key=f"{shop.tenant}/o-1/reserve", by="ada")
    assert (await shop.checkouts.repair(shop.tenant, "o-1", retry)).done
    assert (await handle.result()).status is OrderStatus.CONFIRMED
    assert await shop.stock() == SOLD_TWO


async def test_a_step_that_was_refused_for_good_can_only_be_done_by_hand(shop: Shop) -> None:
    await shop.receive(5)
    shop.fault("ledger.post_transfer", "Refused", times=99)
    handle = await shop.start(shop.order())
    key = await parked_case(shop)
    [case] = await shop.cases()
    assert case["proposals"] == ["resolve"]
    resolve = RepairOrder(case_key=key, by="ada", action="resolve", reason="booked by hand")
    assert (await shop.checkouts.repair(shop.tenant, "o-1", resolve)).done
    assert (await handle.result()).status is OrderStatus.CONFIRMED


async def test_an_order_that_is_being_undone_shows_no_page_to_pay_on(shop: Shop) -> None:
    await shop.receive(5)
    shop.fault("payment.void", "Bug", times=1)
    await shop.checkouts.place(shop.order(payment=RedirectPayment()))
    await shop.checkouts.cancel(shop.tenant, "o-1", CancelOrder())
    await parked_case(shop)
    progress = await shop.checkouts.progress(shop.tenant, "o-1")
    assert (progress.decision, progress.redirect_url) == (Decision.ABORTING, None)
    assert progress.waits_for is WaitsFor.REPAIR


@pytest.mark.requirement("AC1.5")
async def test_an_order_that_is_opened_after_its_window_is_not_charged(shop: Shop) -> None:
    """The reply to `open` is lost until the window is over: nothing is held, nothing authorised.

    Red when: a step before the decision is begun without a look at the end of the window.
    """
    await shop.receive(5)
    shop.fault("order.open_order", "Transient", times=4, after=True)
    result = await shop.sell(shop.order(payment_window_seconds=1))
    assert result.status is OrderStatus.EXPIRED
    assert await shop.charged() == []
    assert await shop.stock() == {"free": 5, "held": 0, "sold": 0}


async def test_a_run_for_another_order_of_the_same_id_ends_with_all_its_updates(shop: Shop) -> None:
    await shop.receive(5)
    await shop.sell(shop.order())
    other = shop.order(units=3)
    shop.fault("order.open_order", "Transient", times=2)  # Time for the updates to arrive.
    handle = await shop.start(other, again=True)
    updates = await asyncio.gather(
        handle.execute_update(Checkout.placed, other),
        handle.execute_update(Checkout.cancel, CancelOrder()),
        handle.execute_update(Checkout.pay, PayOrder(payment=CardPayment(card_token="t"))),
        return_exceptions=True,
    )
    assert all(isinstance(update, WorkflowUpdateFailedError) for update in updates)
    with pytest.raises(WorkflowFailureError):
        await handle.result()
    assert await shop.stock() == SOLD_TWO


async def test_what_cannot_be_written_down_ends_its_run_and_tells_why(shop: Shop) -> None:
    shop.fault("order.open_order", "Bug", times=99)
    order = shop.order()
    handle = await shop.start(order)
    with pytest.raises(WorkflowFailureError) as ended:
        await handle.result()
    assert "Bug by the test" in str(ended.value.cause)


@pytest.mark.requirement("AC18.5")
async def test_a_driver_that_comes_late_to_a_refused_capture_adopts_the_abort(shop: Shop) -> None:
    """One driver sleeps before the capture, another is refused it and undoes: both end the same.

    Red when: a capture of a cancelled attempt is parked for an operator.
    """
    await shop.receive(5)
    rule = {"operation": "capture", "reference": f"{shop.tenant}/*", "kind": "decline", "times": 1}
    (await shop.provider.post("/admin/faults", json=rule)).raise_for_status()
    asleep, wake = asyncio.Event(), asyncio.Event()

    async def sleep() -> None:
        asleep.set()
        await wake.wait()

    shop.fault("payment.capture", error_type=None, hook=sleep)
    first = await shop.start(shop.order())
    await asleep.wait()
    second = await shop.start(shop.order(), id_suffix="/rival")
    result = await second.result()
    assert result.status is OrderStatus.REJECTED
    wake.set()
    assert await first.result() == result
    assert await shop.stock() == NOTHING_MOVED


async def test_of_many_payments_named_at_once_one_is_captured(shop: Shop) -> None:
    await shop.receive(5)
    await shop.checkouts.place(shop.order(payment=CardPayment(card_token="tok_declined")))
    cards = [CardPayment(request_id=f"p-{n}", card_token="tok_ok") for n in range(6)]
    await asyncio.gather(
        *(shop.checkouts.pay(shop.tenant, "o-1", PayOrder(payment=card)) for card in cards),
        return_exceptions=True,
    )
    result = await shop.checkouts.wait(shop.tenant, "o-1")
    assert result.status is OrderStatus.CONFIRMED
    assert sum(captured for _, captured, _ in await shop.charged()) == 2933
    assert all(state != "authorised" for state, _, _ in await shop.charged())
