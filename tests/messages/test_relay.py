"""What is written down with its effect arrives: once at least, in its order, whatever dies."""

import asyncio
from collections.abc import Sequence
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from everycent.database import inventory, lanes, outbox
from everycent.domain.inventory import ReserveStock, StockLine
from everycent.domain.messaging import Applied, Delivery, Envelope, Failed
from everycent.errors import Bug, KeyReused, Transient
from tests.conftest import NOON, TODAY
from tests.messages.carrying import (
    INVENTORY,
    Crash,
    Listed,
    Pools,
    all_passes,
    relay,
    rows,
    states,
)
from tests.messages.conftest import Clock, Shop, event, publish
from workers.relay import InboxSink, Relay, RelayTimes

# -- written with its effect, or not at all


@pytest.mark.requirement("AC7.1")
@pytest.mark.parametrize("dies", ["between", "after", "never"])
async def test_an_effect_and_its_message_stand_or_fall_together(
    databases: Pools, shop: Shop, dies: str
) -> None:
    """Red when: `publish` commits on a connection of its own, or comes after the commit."""
    await shop.stock(5)
    hold = ReserveStock(
        key=f"{shop.tenant}/o-1/reserve", at=NOON, opened_on=TODAY,
        lines=(StockLine(sku="LAMP", units=2),),
    )  # fmt: skip

    async def work() -> None:
        async with databases["inventory"].transaction() as tx:
            await inventory.reserve_stock(tx, [hold])
            if dies == "between":
                raise Crash
            await outbox.publish(tx, [event(shop.tenant, "held", to="inbox:order")])
            if dies == "after":
                raise Crash

    if dies == "never":
        await work()
    else:
        with pytest.raises(Crash):
            await work()
    [told] = await shop.read("inventory", "SELECT count(*) FROM outbox WHERE key LIKE :tenant||'%'")
    assert (await shop.lamps())[1] == (2 if dies == "never" else 0)
    assert told.count == (1 if dies == "never" else 0)


async def test_the_same_message_again_is_one_and_another_one_under_its_key_is_refused(
    databases: Pools, tenant: str
) -> None:
    """Red when: the content of a repeated message is not compared."""
    await publish(databases["order"], event(tenant, "a"))
    await publish(databases["order"], event(tenant, "a"))
    assert len(await rows(databases, tenant)) == 1
    with pytest.raises(KeyReused):
        await publish(databases["order"], event(tenant, "a", payload={"name": "b"}))
    with pytest.raises(KeyReused):
        await publish(databases["order"], event(tenant, "a"), event(tenant, "a", payload={}))


async def test_a_message_to_two_sinks_is_marked_for_each(
    databases: Pools, tenant: str, clock: Clock
) -> None:
    one, other = Listed(), Listed(answer=lambda m: Failed("down"))
    told = event(tenant, "a").model_copy(update={"to": ("inbox:a", "inbox:b")})
    await publish(databases["order"], told)
    await all_passes(relay(databases, {"inbox:a": one, "inbox:b": other}, clock))
    found = {row.sink: row.state for row in await rows(databases, tenant)}
    assert found == {"inbox:a": "CONSUMED", "inbox:b": "PENDING"}


# -- tried again, dead, replayed


@pytest.mark.requirement("AC11.4")
async def test_a_dead_message_holds_up_its_own_aggregate_alone_and_can_be_replayed(
    databases: Pools, tenant: str, clock: Clock
) -> None:
    """States, tries, next try and last error stand in the row; a replay keeps the order.

    Red when: a message passes a dead one of its aggregate, or a dead one stops another's.
    """
    bad = {"poisoned": True}
    sink = Listed(
        answer=lambda m: (
            Failed("poison") if bad["poisoned"] and m.key.endswith("bad") else Applied()
        )
    )
    carrier = relay(databases, {INVENTORY: sink}, clock)
    await publish(databases["order"], event(tenant, "bad"), event(tenant, "later"))
    await publish(databases["order"], event(tenant, "x", "o-2"))
    for _ in range(3):
        await all_passes(carrier)
        clock.move(seconds=1)
    assert await states(databases, tenant) == {
        "o-1/bad": "DEAD", "o-1/later": "PENDING", "o-2/x": "CONSUMED",
    }  # fmt: skip
    [dead, later, _] = await rows(databases, tenant)
    assert (dead.attempts, dead.last_error, later.attempts) == (3, "poison", 0)
    bad["poisoned"] = False
    for _ in range(2):  # Typed twice.
        async with databases["order"].transaction() as tx:
            replayed = await lanes.replay_sent(tx, [dead.key, later.key], at=clock())
    assert replayed == []
    await all_passes(carrier)
    assert sink.names()[-2:] == ["o-1/bad", "o-1/later"]
    assert set((await states(databases, tenant)).values()) == {"CONSUMED"}


@pytest.mark.requirement("AC11.4")
async def test_what_was_sent_and_is_overdue_is_published_again(
    databases: Pools, tenant: str, clock: Clock, owners: Pools
) -> None:
    """Here the receiver has lost it, as after a restore of its database.

    Red when: a SENT message is never looked at again.
    """
    carrier = relay(databases, {INVENTORY: InboxSink(databases["inventory"], now=clock)}, clock)
    await publish(databases["order"], event(tenant, "a"))
    await all_passes(carrier)
    assert await states(databases, tenant) == {"o-1/a": "SENT"}
    async with owners["inventory"].transaction() as tx:
        await tx.execute(text("DELETE FROM inbox WHERE starts_with(key, :t)"), {"t": tenant})
    assert await carrier.run_pass() == 0, "it is not due yet"
    clock.move(seconds=30)
    await all_passes(carrier)
    [received] = await rows(databases, tenant, "inventory")
    assert received.state == "RECEIVED"


async def test_a_receiver_that_is_down_is_tried_without_end_and_counts_no_death(
    databases: Pools, tenant: str, clock: Clock
) -> None:
    """Red when: an outage makes messages dead."""
    up = {"up": False}
    real = InboxSink(databases["inventory"], now=clock)

    class Down(InboxSink):
        async def deliver(self, messages: Sequence[Envelope]) -> Sequence[Delivery]:
            if not up["up"]:
                raise Transient("no database")
            return await real.deliver(messages)

    carrier = relay(databases, {INVENTORY: Down(databases["inventory"], now=clock)}, clock)
    await publish(databases["order"], event(tenant, "a"))
    for _ in range(40):
        await all_passes(carrier)
        clock.move(minutes=1)
    assert await states(databases, tenant) == {"o-1/a": "PENDING"}
    up["up"] = True
    await all_passes(carrier)
    assert await states(databases, tenant) == {"o-1/a": "SENT"}


async def test_a_message_that_the_receiver_knows_as_another_is_dead_and_spoils_no_other(
    databases: Pools, tenant: str, clock: Clock
) -> None:
    """Red when: the receiver does not compare what a key stands for."""
    sink = InboxSink(databases["inventory"], now=clock)
    await publish(databases["order"], event(tenant, "a"))
    await all_passes(relay(databases, {INVENTORY: sink}, clock))
    await publish(databases["points"], event(tenant, "a", payload={"name": "forged"}))
    await publish(databases["points"], event(tenant, "b"), event(tenant, "a", "o-2"))
    forger = Relay("points", databases["points"], {INVENTORY: sink}, holder="p", now=clock)
    await all_passes(forger)
    async with databases["points"].transaction() as tx:
        found = await tx.execute(
            text("SELECT key, state FROM outbox WHERE starts_with(key, :t)"), {"t": tenant}
        )
        standing = {row.key.split("/", 1)[1]: row.state for row in found}
    assert standing == {"o-1/a": "DEAD", "o-1/b": "PENDING", "o-2/a": "SENT"}
    assert {r.key[-5:] for r in await rows(databases, tenant, "inventory")} == {"o-1/a", "o-2/a"}


async def test_a_message_for_an_unknown_sink_waits(
    databases: Pools, tenant: str, clock: Clock
) -> None:
    await publish(databases["order"], event(tenant, "a", to="broker:later"))
    await all_passes(relay(databases, {}, clock))
    [row] = await rows(databases, tenant)
    assert (row.state, row.last_error) == ("PENDING", "no such sink")


# -- a relay that dies at each point


@pytest.mark.requirement("AC7.2")
@pytest.mark.parametrize("point", ["claimed", "read", "delivered", "marked"])
async def test_a_relay_that_dies_at_any_point_loses_nothing(
    databases: Pools, tenant: str, clock: Clock, point: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And what was rolled back is never carried.

    Red when: a row counts as applied before its receiver has said so.
    """
    real = InboxSink(databases["inventory"], now=clock)

    class Dying(InboxSink):
        async def deliver(self, messages: Sequence[Envelope]) -> Sequence[Delivery]:
            if point == "read":
                raise Crash
            answers = await real.deliver(messages)
            if point == "delivered":
                raise Crash
            return answers

    async def dies(*_: Any, **__: Any) -> Any:
        raise Crash

    with pytest.raises(Crash):
        async with databases["order"].transaction() as tx:
            await outbox.publish(tx, [event(tenant, "undone")])
            raise Crash
    await publish(databases["order"], event(tenant, "a"), event(tenant, "b"))
    with monkeypatch.context() as patch, pytest.raises(Crash):
        if point == "claimed":
            patch.setattr(lanes, "due_in", dies)
        if point == "marked":
            patch.setattr(Relay, "_give_back", dies)
        dying = Dying(databases["inventory"], now=clock)
        await relay(databases, {INVENTORY: dying}, clock).run_pass()
    clock.move(seconds=60)
    await all_passes(relay(databases, {INVENTORY: real}, clock))
    assert set((await states(databases, tenant)).values()) == {"SENT"}
    received = await rows(databases, tenant, "inventory")
    assert [row.key[-5:] for row in received] == ["o-1/a", "o-1/b"]


async def test_a_delivery_inside_a_transaction_is_refused(
    databases: Pools, tenant: str, clock: Clock
) -> None:
    """Red when: `assert_no_transaction` is gone from the delivery."""
    await publish(databases["order"], event(tenant, "a"))
    with pytest.raises(Bug, match="inside a database transaction"):
        async with databases["points"].transaction():
            await relay(databases, {INVENTORY: Listed()}, clock).run_pass()


async def test_a_delivery_that_takes_too_long_is_given_up_within_the_lease(
    databases: Pools, tenant: str, clock: Clock
) -> None:
    async def for_ever(_: Sequence[Envelope]) -> None:
        await asyncio.Event().wait()

    times = RelayTimes(delivery=timedelta(milliseconds=50))
    await publish(databases["order"], event(tenant, "a"))
    await relay(databases, {INVENTORY: Listed(before=for_ever)}, clock, times=times).run_pass()
    [row] = await rows(databases, tenant)
    assert (row.state, row.last_error) == ("PENDING", "the delivery took too long")


def test_a_delivery_ends_before_its_lease() -> None:
    assert RelayTimes().delivery < RelayTimes().lease


async def test_a_publisher_wakes_who_listens_once_its_transaction_stands(
    databases: Pools, tenant: str
) -> None:
    """Red when: nothing is notified, or it is in the transaction (all commits then wait)."""
    from everycent.database.wake import Wake

    woken = asyncio.Event()
    dsn = databases["order"].engine.url.render_as_string(hide_password=False)
    wake = Wake(dsn, outbox.WAKE)
    await wake.wait(0)  # Connected, and heard nothing.

    async def wait() -> None:
        await wake.wait(30)
        woken.set()

    waiting = asyncio.create_task(wait())
    with pytest.raises(Crash):
        async with databases["order"].transaction() as tx:
            await outbox.publish(tx, [event(tenant, "undone")])
            raise Crash
    async with databases["order"].transaction() as tx:  # The same connection, nothing to tell.
        await tx.execute(text("SELECT 1"))
    await asyncio.sleep(0.05)
    assert not woken.is_set()
    await publish(databases["order"], event(tenant, "a"))
    async with asyncio.timeout(10):
        await waiting
    await wake.close()


async def lane_of_row(tx: AsyncConnection, key: str) -> int:
    return int(await tx.scalar(text("SELECT lane FROM outbox WHERE key = :k"), {"k": key}) or 0)


async def test_other_systems_have_lanes_of_their_own(databases: Pools, tenant: str) -> None:
    await publish(databases["order"], event(tenant, "a"), event(tenant, "b", to="notify:shop"))
    async with databases["order"].transaction() as tx:
        assert await lane_of_row(tx, f"{tenant}/o-1/a") in lanes.TO_SERVICES
        assert await lane_of_row(tx, f"{tenant}/o-1/b") in lanes.TO_OTHERS
