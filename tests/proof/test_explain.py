"""`explain`: one line of time per order, whoever is down, and what to type next."""

from collections.abc import Callable

import pytest
from temporalio.testing import WorkflowEnvironment

from everycent.database.story_rows import read_story_rows
from everycent.domain.order import CancelOrder, CardPayment, RedirectPayment
from everycent.proof.explain import explain
from everycent.proof.timeline import Event, Kind, Timeline
from everycent.proof.timeline_text import as_text
from everycent.settings import Settings, TemporalSettings
from tests.proof.conftest import Vandal
from tests.workflows.conftest import Shop

NOBODY = "127.0.0.1:1"


async def tell(shop: Shop, settings: Settings, order_id: str) -> Timeline:
    return await explain(
        settings, shop.tenant, order_id, client=shop.client, provider=shop.provider
    )


def said(told: Timeline) -> list[str]:
    return [event.what for event in told.events]


def place_of(told: Timeline, is_it: Callable[[Event], bool]) -> int:
    [place] = [place for place, event in enumerate(told.events) if is_it(event)]
    return place


@pytest.mark.requirement("AC20.5", "I16")
async def test_everything_that_happened_to_an_order_is_told_in_order(
    busy_shop: Shop, settings: Settings
) -> None:
    """Red when: a source, a service or a step is left out, or an effect stands before its cause."""
    told = await tell(busy_shop, settings, "card")
    assert (told.found, told.status, told.silent, told.broken) == (True, "CONFIRMED", {}, ())
    steps = [event.what for event in told.events if event.kind is Kind.STEP]
    assert steps[:5] == [
        "open the order", "hold the stock", "authorise payment first", "decide COMMITTING",
        "capture the payment",
    ]  # fmt: skip
    assert {*steps[5:-1]} == {"sell the stock", "book the sale", "earn points"}  # At once.
    assert steps[-1] == "close as CONFIRMED"
    assert all(e.lasted_seconds is not None for e in told.events if e.kind is Kind.STEP)
    rows = {(event.source, event.what) for event in told.events if event.kind is Kind.ROW}
    assert {source for source, _ in rows} == {"order", "inventory", "payment", "points", "ledger"}
    assert ("inventory", "reservation reserve CONFIRMED 2 × LAMP") in rows
    assert ("payment", "payment pay/first CONFIRMED 29.33 EUR") in rows
    calls = [event.what for event in told.events if event.kind is Kind.CALL]
    assert [call.split(":")[0] for call in calls] == [
        "call pay/first/create", "call pay/first/confirm", "call pay/first/capture",
    ]  # fmt: skip
    provider = [event.what.split(":")[0] for event in told.events if event.kind is Kind.PROVIDER]
    assert provider == ["created", "authorised", "captured"]
    assert [event.place for event in told.events] == sorted(e.place for e in told.events)
    sold = place_of(told, lambda e: e.what == "sell the stock")
    row = place_of(told, lambda e: e.what == "reservation reserve CONFIRMED 2 × LAMP")
    close = place_of(told, lambda e: e.what == "close as CONFIRMED")
    assert sold < row < close


@pytest.mark.requirement("AC20.5")
async def test_points_and_a_balance_and_a_refund_are_told_too(
    busy_shop: Shop, settings: Settings
) -> None:
    """Red when: the tables of an account, of points or of a refund are not read."""
    paid = said(await tell(busy_shop, settings, "card-balance"))
    assert "balance pay/first CONFIRMED 27.33 EUR" in paid
    assert "points points CONFIRMED 200 points" in paid
    back = said(await tell(busy_shop, settings, "refunded"))
    assert "refund full-refund CONFIRMED 28.33 EUR" in back
    assert any(each.startswith("refund succeeded: 28.33 EUR") for each in back)
    assert any(each.startswith("transfer ledger-reversal CONFIRMED") for each in back)


@pytest.mark.requirement("AC20.5")
@pytest.mark.parametrize("together", [True])
async def test_steps_that_ran_where_the_run_is_are_told_as_any_other(
    shop: Shop, settings: Settings, together: bool
) -> None:
    """Here time is skipped, so the worker's clock cannot order them: `test_sweeper_limits.py` does.

    Red when: local activities are not read.
    """
    await shop.receive(5)
    await shop.sell(shop.order())
    told = await tell(shop, settings, "o-1")
    steps = {event.what for event in told.events if event.kind is Kind.STEP}
    assert {"open the order", "hold the stock", "sell the stock", "book the sale"} <= steps
    assert all((event.lasted_seconds or 0) >= 0 for event in told.events)


@pytest.mark.requirement("AC20.5")
async def test_an_order_is_told_when_temporal_does_not_know_it(
    busy_shop: Shop, settings: Settings, temporal: WorkflowEnvironment
) -> None:
    """Red when: the story hangs on Temporal's history (deleted with the end of its retention)."""
    told = await explain(
        settings, busy_shop.tenant, "card", flow="gone", client=temporal.client,
        provider=busy_shop.provider,
    )  # fmt: skip
    assert (told.found, told.runs, told.status) == (True, (), "CONFIRMED")
    assert "reservation reserve TRIED 2 × LAMP" in said(told)
    times = [event.at for event in told.events if event.source != "provider"]
    assert times == sorted(times)


@pytest.mark.requirement("I16")
async def test_an_open_order_without_a_run_says_so_and_what_helps(
    shop: Shop, settings: Settings
) -> None:
    """Red when: an order that nobody drives is told to be waiting for its customer."""
    await shop.receive(5)
    await shop.checkouts.place(shop.order(payment=RedirectPayment()))
    told = await explain(
        settings, shop.tenant, "o-1", flow="gone", client=shop.client, provider=shop.provider
    )
    assert told.why.startswith("nobody drives it: Temporal does not know its workflow")
    assert told.next_commands[0] == "everycent sweeper --once --grace 0"
    await shop.checkouts.cancel(shop.tenant, "o-1", CancelOrder())


@pytest.mark.requirement("I16")
async def test_an_order_that_waits_for_its_customer_says_what_to_type(
    shop: Shop, settings: Settings
) -> None:
    """Red when: the payment window, the page or the ways to pay are not told."""
    await shop.receive(5)
    await shop.checkouts.place(shop.order(payment=RedirectPayment()))
    told = await tell(shop, settings, "o-1")
    assert told.waits_for == "payment"
    assert told.why.startswith("the customer has not paid; the window is open for another ")
    page, pay, cancel = told.next_commands
    assert page.startswith("curl -X POST ")
    assert "/pay/int_" in page
    assert pay == f"everycent order pay o-1 --card TOKEN --tenant {shop.tenant}"
    assert cancel == f"everycent order cancel o-1 --tenant {shop.tenant}"
    await shop.checkouts.cancel(shop.tenant, "o-1", CancelOrder())


@pytest.mark.requirement("I16")
async def test_a_parked_step_is_told_with_its_error_and_its_case(
    shop: Shop, settings: Settings
) -> None:
    """Red when: an open case is not looked at, and the order is said to be on its way."""
    await shop.receive(5)
    shop.fault("inventory.commit_stock", "Bug", times=1)
    placing = await shop.start(shop.order())

    async def parked() -> bool:
        return bool(await shop.cases())

    await shop.until(parked)
    key = f"{shop.tenant}/o-1/reserve"
    told = await tell(shop, settings, "o-1")
    assert "`commit stock` is parked since" in told.why
    assert told.next_commands[0] == f"everycent case retry {key}"
    assert any("sell the stock, failed: Bug: Bug by the test" in what for what in said(told))
    assert any(what.startswith("parked: commit stock: Bug") for what in said(told))
    await placing.result()  # It is tried again by itself.
    settled = [e for e in (await tell(shop, settings, "o-1")).events if e.kind is Kind.ACT]
    assert any("case settled by everycent: tried again by itself" in e.what for e in settled)


@pytest.mark.requirement("I16")
async def test_who_does_not_answer_is_named_and_the_others_speak(
    busy_shop: Shop, settings: Settings
) -> None:
    """Red when: one server that is down makes the whole story unreadable."""
    read = {**settings.read, "payment": f"postgresql://nobody:x@{NOBODY}/nothing"}
    broken = settings.model_copy(
        update={"read": read, "temporal": TemporalSettings(address=NOBODY)}
    )
    told = await explain(broken, busy_shop.tenant, "card", provider=busy_shop.provider)
    assert set(told.silent) == {"temporal", "payment"}
    assert NOBODY in told.silent["temporal"]
    assert "reservation reserve TRIED 2 × LAMP" in said(told)
    assert any(event.source == "provider" for event in told.events)
    text = "\n".join(as_text(told))
    assert "silent  temporal: Temporal does not answer at" in text


@pytest.mark.requirement("I16")
async def test_an_order_that_never_came_has_an_empty_story(
    busy_shop: Shop, settings: Settings
) -> None:
    """Red when: an unknown order is an error instead of an answer."""
    told = await tell(busy_shop, settings, "never")
    assert (told.found, told.events, told.silent) == (False, (), {})
    assert told.why == "no such order has ever come"


@pytest.mark.requirement("I16")
async def test_what_is_wrong_with_an_order_is_told_by_rule(
    busy_shop: Shop, settings: Settings, vandal: Vandal
) -> None:
    """Red when: the story of a red order tells no invariant."""
    lost = "UPDATE reservation SET state = 'TRIED' WHERE key = '{t}/card/reserve'"
    async with vandal.breaks("inventory", lost):
        told = await tell(busy_shop, settings, "card")
    assert any("reserve: the reservation is tried instead of confirmed" in b for b in told.broken)
    assert told.next_commands == ("everycent audit",)


async def test_a_terminal_of_a_hundred_columns_shows_it_whole(
    busy_shop: Shop, settings: Settings
) -> None:
    """Red when: a line is longer than the terminal, or a long word is dropped."""
    for order_id in ("card", "card-balance", "refunded", "no-stock"):
        lines = list(as_text(await tell(busy_shop, settings, order_id)))
        assert max(map(len, lines)) <= 100
        assert len(lines) > 10


async def test_no_card_token_is_told(shop: Shop, settings: Settings) -> None:
    """Red when: the whole row, or the request in it, is copied into the story."""
    await shop.receive(5)
    await shop.sell(shop.order(payment=CardPayment(card_token="tok_ok")))
    assert "tok_ok" not in (await tell(shop, settings, "o-1")).model_dump_json()
    for service in ("order", "payment"):
        rows = await read_story_rows(shop.reader, service, shop.tenant, "o-1")
        assert rows
        assert "tok_ok" not in "".join(row.model_dump_json() for row in rows)
