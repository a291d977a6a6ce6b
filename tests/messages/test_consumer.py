"""A message is applied once with its effect, in its order, and a bad one spoils itself alone."""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from everycent.database import inbox, inventory, outbox
from everycent.database.engine import Database
from everycent.domain.inventory import ReceiveStock
from everycent.domain.messaging import Envelope, Event
from everycent.errors import Bug, Transient
from everycent.settings import ServiceName
from tests.conftest import NOON, TODAY
from tests.messages.conftest import Clock, event, publish
from workers.consumer import Consumer, ConsumerTimes
from workers.relay import InboxSink, Relay

Pools = dict[ServiceName, Database]


class Crash(Exception):
    """The process dies here: none of our code may catch it."""


@dataclass
class Books:
    """A reaction whose effect is a unit of stock, and that tells a message on."""

    tenant: str
    fails: Callable[[Envelope], BaseException | None] = lambda message: None
    dies: bool = False
    seen: list[str] = field(default_factory=list)

    async def prepare(self, messages: Sequence[Envelope]) -> Sequence[None]:
        return [None] * len(messages)

    async def apply(
        self, tx: AsyncConnection, messages: Sequence[Envelope], prepared: Sequence[Any]
    ) -> Sequence[Event]:
        for message in messages:
            if error := self.fails(message):
                raise error
            # Without a fence of its own: the inbox alone keeps it from happening twice.
            await tx.execute(
                text("UPDATE stock SET free = free + 1, received = received + 1 WHERE tenant = :t"),
                {"t": self.tenant},
            )
            self.seen.append(message.key.split("/", 1)[1])
        if self.dies:
            raise Crash
        return [event(self.tenant, f"{m.key[-1]}-told", to="inbox:order") for m in messages]


async def units(pools: Pools, tenant: str) -> int:
    async with pools["inventory"].transaction() as tx:
        return int(
            await tx.scalar(text("SELECT free FROM stock WHERE tenant = :t"), {"t": tenant}) or 0
        )


async def inbox_of(pools: Pools, tenant: str) -> dict[str, Any]:
    async with pools["inventory"].transaction() as tx:
        found = await tx.execute(
            text("SELECT * FROM inbox WHERE starts_with(key, :t)"), {"t": tenant}
        )
        return {row.key.split("/", 1)[1]: row for row in found}


@pytest.fixture
async def books(databases: Pools, tenant: str) -> Books:
    """A shop without stock yet."""
    request = ReceiveStock(
        key=f"{tenant}/~stock/LAMP/r", at=NOON, opened_on=TODAY, sku="LAMP", units=1
    )
    async with databases["inventory"].transaction() as tx:
        await inventory.receive_stock(tx, [request])
        await tx.execute(
            text("UPDATE stock SET free = 0, received = 0 WHERE tenant = :t"), {"t": tenant}
        )
    return Books(tenant)


async def carried(pools: Pools, clock: Clock, *events: Event) -> None:
    """Publish in the order service, and have it in the inbox of inventory."""
    await publish(pools["order"], *events)
    sink = {"inbox:inventory": InboxSink(pools["inventory"], now=clock)}
    while await Relay("order", pools["order"], sink, holder="r", now=clock).run_pass():
        pass


def consumer(pools: Pools, books: Books, clock: Clock, **more: Any) -> Consumer:
    return Consumer(pools["inventory"], {"tested": books}, now=clock, **more)


@pytest.mark.requirement("AC7.2")
@pytest.mark.parametrize("times", [1, 10])
async def test_a_message_that_comes_again_is_applied_once(
    databases: Pools, books: Books, tenant: str, clock: Clock, times: int
) -> None:
    """Ten consumers at once, and delivered ten times.

    Red when: a consumed message is taken again, or is not locked before its effect.
    """
    told = event(tenant, "a")
    for _ in range(times):
        await carried(databases, clock, told)
    await asyncio.gather(*(consumer(databases, books, clock).run_pass() for _ in range(times)))
    assert await units(databases, tenant) == 1
    assert (await inbox_of(databases, tenant))["o-1/a"].state == "CONSUMED"


async def test_two_consumers_with_the_same_message_apply_it_once(
    databases: Pools, books: Books, tenant: str, clock: Clock
) -> None:
    """The first is so slow that its time is over and the second takes the message too.

    Red when: `lock` hands back what another has consumed meanwhile, or takes no lock.
    """
    await carried(databases, clock, event(tenant, "a"))
    stands, go_on = asyncio.Event(), asyncio.Event()

    class Slow(Books):
        async def prepare(self, messages: Sequence[Envelope]) -> Sequence[None]:
            stands.set()
            await go_on.wait()
            return [None]

    late = Slow(tenant)
    slow = asyncio.create_task(consumer(databases, late, clock).run_pass())
    await stands.wait()
    clock.move(minutes=2)
    await consumer(databases, books, clock).run_pass()
    go_on.set()
    await slow
    assert late.seen == []
    assert await units(databases, tenant) == 1


@pytest.mark.requirement("AC7.2")
@pytest.mark.parametrize("dies", ["after the effect", "after the note"])
async def test_a_consumer_that_dies_after_the_effect_leaves_nothing_and_it_is_done_again(
    databases: Pools,
    books: Books,
    tenant: str,
    clock: Clock,
    dies: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The try was counted before; effect, note and what is told stand or fall together.

    Red when: the message is noted as consumed in another transaction than its effect.
    """
    await carried(databases, clock, event(tenant, "a"))

    async def crash(*_: Any) -> None:
        raise Crash

    books.dies = dies == "after the effect"
    with monkeypatch.context() as patch, pytest.raises(Crash):
        patch.setattr(outbox, "publish", crash)
        await consumer(databases, books, clock).run_pass()
    row = (await inbox_of(databases, tenant))["o-1/a"]
    assert (row.state, row.attempts, await units(databases, tenant)) == ("RECEIVED", 1, 0)
    books.dies = False
    assert await consumer(databases, books, clock).run_pass() == 0, "it is left to the first"
    clock.move(minutes=1)
    await consumer(databases, books, clock).run_pass()
    assert await units(databases, tenant) == 1
    async with databases["inventory"].transaction() as tx:
        told = await tx.scalar(
            text("SELECT count(*) FROM outbox WHERE starts_with(key, :t)"), {"t": tenant}
        )
    assert told == 1


async def test_an_aggregate_is_applied_in_its_order_whoever_consumes(
    databases: Pools, books: Books, tenant: str, clock: Clock
) -> None:
    """Red when: a message is taken while an earlier one of its aggregate is not consumed."""
    names = [f"{n}" for n in range(6)]
    await carried(databases, clock, *(event(tenant, name) for name in names))
    readers = [consumer(databases, books, clock, batch=3) for _ in range(4)]
    while any(await asyncio.gather(*(reader.run_pass() for reader in readers))):
        pass
    assert books.seen == [f"o-1/{name}" for name in names]


@pytest.mark.parametrize("poison", [Bug("poison"), ValueError("poison")], ids=repr)
async def test_a_poison_message_is_dead_after_its_tries_and_blocks_no_other(
    databases: Pools, books: Books, tenant: str, clock: Clock, poison: Exception
) -> None:
    """It came in one batch with a good one; later ones of its own aggregate wait; replay is safe.

    Red when: a failing message fails its batch, or is tried for ever.
    """
    poisoned = [True]
    books.fails = lambda m: poison if m.key.endswith("bad") and poisoned[0] else None
    reader = consumer(databases, books, clock, times=ConsumerTimes(tries=3))
    await carried(databases, clock, event(tenant, "bad"), event(tenant, "later"))
    await carried(databases, clock, event(tenant, "x", "o-2"))
    for _ in range(5):
        await reader.run_pass()
        clock.move(minutes=1)
    found = await inbox_of(databases, tenant)
    dead = found["o-1/bad"]
    assert (dead.state, dead.attempts, dead.last_error) == (
        "DEAD", 3, f"{type(poison).__name__}: poison",
    )  # fmt: skip
    assert (found["o-1/later"].state, found["o-2/x"].state) == ("RECEIVED", "CONSUMED")
    poisoned[0] = False
    for _ in range(2):
        async with databases["inventory"].transaction() as tx:
            replayed = await inbox.replay_received(tx, [dead.key, f"{tenant}/o-2/x"], at=clock())
    assert replayed == []
    while await reader.run_pass():
        pass
    assert books.seen == ["o-2/x", "o-1/bad", "o-1/later"]


async def test_what_may_pass_is_tried_without_end(
    databases: Pools, books: Books, tenant: str, clock: Clock
) -> None:
    """Red when: an outage makes messages dead."""
    down = [True]
    books.fails = lambda m: Transient("not now") if down[0] else None
    reader = consumer(databases, books, clock)
    await carried(databases, clock, event(tenant, "a"))
    for _ in range(30):
        await reader.run_pass()
        clock.move(minutes=1)
    row = (await inbox_of(databases, tenant))["o-1/a"]
    assert (row.state, row.attempts, row.last_error) == ("RECEIVED", 30, "Transient: not now")
    down[0] = False
    await reader.run_pass()
    assert await units(databases, tenant) == 1


async def test_a_type_that_nobody_knows_waits_for_the_release_that_does(
    databases: Pools, books: Books, tenant: str, clock: Clock
) -> None:
    await carried(databases, clock, event(tenant, "a", type="from.the.future"))
    for _ in range(20):
        await consumer(databases, books, clock).run_pass()
        clock.move(minutes=1)
    row = (await inbox_of(databases, tenant))["o-1/a"]
    assert (row.state, row.last_error.split(":")[0]) == ("RECEIVED", "Transient")


@pytest.mark.requirement("AC11.4")
async def test_the_sender_learns_that_its_message_was_applied_or_given_up(
    databases: Pools, books: Books, tenant: str, clock: Clock
) -> None:
    """Red when: the relay does not ask again, or takes a dead message for a waiting one."""
    books.fails = lambda m: Bug("poison") if m.key.endswith("bad") else None
    await carried(databases, clock, event(tenant, "good"), event(tenant, "bad", "o-2"))
    reader = consumer(databases, books, clock, times=ConsumerTimes(tries=1))
    await reader.run_pass()
    clock.move(minutes=1)
    await carried(databases, clock)
    async with databases["order"].transaction() as tx:
        found = await tx.execute(
            text("SELECT key, state, last_error FROM outbox WHERE starts_with(key, :t)"),
            {"t": tenant},
        )
        standing = {row.key.split("/", 1)[1]: (row.state, row.last_error) for row in found}
    assert standing == {
        "o-1/good": ("CONSUMED", ""),
        "o-2/bad": ("DEAD", "the receiver gave it up: Bug: poison"),
    }


async def test_a_taken_message_is_left_alone_for_a_while(
    databases: Pools, books: Books, tenant: str, clock: Clock
) -> None:
    await carried(databases, clock, event(tenant, "a"))

    async def take() -> int:
        async with databases["inventory"].transaction() as tx:
            return len(await inbox.take(tx, at=clock(), limit=5, patience=timedelta(seconds=60)))

    assert [await take(), await take()] == [1, 0]
    clock.move(seconds=60)
    assert await take() == 1


async def test_a_message_that_is_just_being_taken_is_passed_by(
    databases: Pools, books: Books, tenant: str, clock: Clock
) -> None:
    """Red when: SKIP LOCKED is missing: consumers would wait for one another."""
    await carried(databases, clock, event(tenant, "a"))
    async with databases["inventory"].transaction() as tx:
        assert await inbox.take(tx, at=clock(), limit=5, patience=timedelta(seconds=60))
        async with asyncio.timeout(2):
            assert await consumer(databases, books, clock).run_pass() == 0
