"""`explain` of an order that messages drive: its line of time, why it waits, and what helps."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import pytest
from sqlalchemy.ext.asyncio import AsyncConnection

from everycent.errors import Bug
from everycent.proof.explain import hear
from everycent.proof.heard import Heard
from everycent.proof.timeline import Kind
from everycent.proof.timeline_text import as_text
from everycent.proof.waiting import Waiting, why_it_waits
from everycent.settings import ServiceName, Settings, TemporalSettings
from tests.messages.conftest import Shop

NOBODY = "127.0.0.1:1"


async def heard_of(shop: Shop, settings: Settings, order_id: str = "o-1") -> Heard:
    """Ask about an order; no Temporal is there, and none is missed."""
    nowhere = settings.model_copy(update={"temporal": TemporalSettings(address=NOBODY)})
    return await hear(nowhere, shop.tenant, order_id, provider=shop.http)


async def waiting_of(shop: Shop, settings: Settings, order_id: str = "o-1") -> Waiting:
    heard = await heard_of(shop, settings, order_id)
    return why_it_waits(dataclasses.replace(heard.situation(), now=shop.clock()))


@pytest.mark.requirement("AC20.5")
async def test_what_services_have_told_one_another_is_in_the_line_of_time(
    shop: Shop, settings: Settings
) -> None:
    """Red when: outbox or inbox rows are not read, or what a message says is told with them."""
    await shop.stock(5)
    order = shop.by_card()
    await shop.start(order)
    assert await shop.unfinished() == []
    told = (await heard_of(shop, settings)).told()
    assert (told.status, told.by_messages, [*told.silent]) == ("CONFIRMED", True, ["temporal"])
    said = [(e.source, e.what) for e in told.events if e.kind is Kind.MESSAGE]
    assert ("order", "tells inventory: order.opened") in said
    assert ("inventory", "has applied order.opened of order") in said
    assert ("order", "tells ledger: order.paid") in said
    assert ("order", "has applied reported/commit-stock of inventory") in said
    assert "tok_ok" not in told.model_dump_json()
    text = list(as_text(told))
    assert "driven by the messages of its services: it has no workflow" in text
    assert any(line.startswith("waits   for nothing: it is CONFIRMED") for line in text)


@pytest.mark.requirement("AC20.5")
async def test_an_order_whose_relay_or_consumer_is_down_says_which(
    shop: Shop, settings: Settings
) -> None:
    """Red when: a message that was not carried is taken for one that was not applied."""
    await shop.stock(5)
    await shop.start(shop.by_card())
    shop.clock.move(seconds=30)
    waiting = await waiting_of(shop, settings)
    assert waiting.why == "the relay has not carried `order.opened` to inventory for 30.00 s"
    assert waiting.commands[0] == "everycent check --only relay"
    await shop.relays["order"].run_pass()
    shop.clock.move(seconds=90)
    waiting = await waiting_of(shop, settings)
    assert waiting.why == "inventory has not applied `order.opened` for 90.00 s"
    assert waiting.commands == ("everycent check --only inventory",)


@pytest.mark.requirement("AC20.5")
async def test_an_order_with_a_dead_message_names_it_and_how_it_is_replayed(
    shop: Shop, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The command that is named ends the wait.

    Red when: a dead message is not told, or its sender is told to send it before its receiver.
    """

    async def broken(tx: AsyncConnection, requests: Any) -> Any:
        raise Bug("the shelf is upside down")

    await shop.stock(5)
    order = shop.by_card()
    await shop.start(order)
    reactions: dict[ServiceName, Mapping[str, Any]] = shop.reactions
    [step] = reactions["inventory"]["order.opened"]._steps
    with monkeypatch.context() as patched:
        patched.setattr(
            reactions["inventory"]["order.opened"], "_last", dataclasses.replace(step, run=broken)
        )
        for _ in range(10):
            await shop.settle()
            shop.clock.move(seconds=61)
        await shop.settle()
    key = order.step_key("order.opened")
    waiting = await waiting_of(shop, settings)
    assert waiting.why == (
        "`order.opened` is dead, inventory could not apply it in 8 tries:"
        " Bug: the shelf is upside down"
    )
    assert waiting.commands == (
        f"everycent messages replay inventory {key}",
        f"everycent messages replay order {key}",
    )


@pytest.mark.requirement("AC20.5")
async def test_an_order_whose_messages_are_gone_is_driven_by_nobody(
    shop: Shop, settings: Settings
) -> None:
    """Red when: an order without a message and without an end is on its way."""
    await shop.stock(5)
    await shop.start(shop.by_card())
    async with shop.databases["order"].transaction() as tx:
        await tx.exec_driver_sql(
            f"UPDATE outbox SET state = 'CONSUMED' WHERE aggregate = '{shop.tenant}/o-1'"
        )
    waiting = await waiting_of(shop, settings)
    assert waiting.why == "no message of it is under way: nobody drives it"
    assert waiting.commands[0] == "everycent audit"


@pytest.mark.requirement("AC20.5")
async def test_an_order_that_waits_for_another_payment_says_so(
    shop: Shop, settings: Settings
) -> None:
    """Red when: the look at messages hides that only the customer can go on."""
    await shop.stock(5)
    await shop.start(shop.by_card(token="tok_declined"))
    assert await shop.unfinished() == []
    waiting = await waiting_of(shop, settings)
    assert waiting.why == "the customer has not paid; the window is open for another 14 min"
    assert waiting.commands[0].startswith("everycent order pay o-1 --card TOKEN")
