"""The order of an aggregate stands: beside open transactions, eight relays and a sleeper."""

import asyncio
import random
from collections.abc import Sequence
from datetime import timedelta

import pytest
from sqlalchemy import text

from everycent.database import lanes, outbox
from everycent.database.engine import Database
from everycent.domain.messaging import Delivery, Envelope, Failed
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
from tests.messages.conftest import Clock, event, publish
from workers.relay import InboxSink

# -- order, and what commits late


@pytest.mark.requirement("AC7.3")
async def test_a_row_that_commits_late_is_carried_although_later_ones_went_before(
    databases: Pools, tenant: str, clock: Clock
) -> None:
    """Two relays run while a transaction is open; it began first, and commits last.

    Red when: the relay remembers how far it has come, by number or by time.
    """
    sink = Listed()
    carriers = [relay(databases, {INVENTORY: sink}, clock, holder=name) for name in "ab"]
    begun, may_end = asyncio.Event(), asyncio.Event()

    async def commits_late() -> None:
        async with databases["order"].transaction() as tx:
            await outbox.publish(tx, [event(tenant, "first", "o-late")])
            begun.set()
            await may_end.wait()

    late = asyncio.create_task(commits_late())
    await begun.wait()
    for number in range(20):
        await publish(databases["order"], event(tenant, "x", f"o-{number}"))
    await all_passes(*carriers)
    assert len(sink.got) == 20
    may_end.set()
    await late
    clock.move(seconds=30)
    await all_passes(*carriers)
    assert sink.names()[20:] == ["o-late/first"]


@pytest.mark.requirement("AC7.3", "T24")
async def test_a_later_message_of_an_aggregate_waits_for_the_earlier_to_commit(
    databases: Pools, tenant: str, clock: Clock
) -> None:
    """Red when: the number of an aggregate is drawn without its lock (a sequence, max() + 1)."""
    waits: list[int] = []
    begun = asyncio.Event()

    async def second() -> None:
        async with databases["order"].transaction() as tx:
            waits.append(int(await tx.scalar(text("SELECT pg_backend_pid()")) or 0))
            begun.set()
            await outbox.publish(tx, [event(tenant, "second")])

    async with databases["order"].transaction() as first:
        await outbox.publish(first, [event(tenant, "first")])
        later = asyncio.create_task(second())
        await begun.wait()
        await blocked(databases["order"], waits[0])
        assert not later.done()
    await later
    sink = Listed()
    await all_passes(relay(databases, {INVENTORY: sink}, clock))
    assert sink.names() == ["o-1/first", "o-1/second"]


async def blocked(database: Database, pid: int) -> None:
    """Wait until PostgreSQL says that this session waits for another."""
    async with asyncio.timeout(10):
        while True:
            async with database.transaction() as tx:
                found = await tx.scalar(text("SELECT pg_blocking_pids(:pid)"), {"pid": pid})
            if found:
                return
            await asyncio.sleep(0.01)


@pytest.mark.requirement("T24", "AC7.2", "AC7.3")
@pytest.mark.parametrize("seed", range(3))
async def test_eight_dispatchers_that_crash_keep_the_order_of_every_aggregate(
    databases: Pools, tenant: str, clock: Clock, seed: int
) -> None:
    """Every message comes; the first coming of each stands in its aggregate's order.

    A dispatcher dies before or behind a delivery, or behind its mark, and another goes on.

    Red when: a relay claims rows instead of lanes, or a lane is not held between read and mark.
    """
    dice = random.Random(seed)
    sink = Listed()

    async def perhaps_die(_messages: Sequence[Envelope]) -> None:
        await asyncio.sleep(0)
        if dice.random() < 0.15:
            raise Crash

    class Deadly(Listed):
        async def deliver(self, messages: Sequence[Envelope]) -> Sequence[Delivery]:
            await perhaps_die(messages)
            answers = await sink.deliver(messages)
            await perhaps_die(messages)
            return answers

    wanted = {f"o-{n}": [f"o-{n}/e{i}" for i in range(6)] for n in range(12)}

    async def write() -> None:
        for i in range(6):
            for n in dice.sample(range(12), 12):
                await publish(databases["order"], event(tenant, f"e{i}", f"o-{n}"))

    async def dispatch(number: int) -> None:
        while not written.done() or "PENDING" in (await states(databases, tenant)).values():
            carrier = relay(databases, {INVENTORY: Deadly()}, clock, holder=str(number), batch=5)
            try:
                moved = await carrier.run_pass()
            except Crash:
                continue
            if not moved:
                clock.move(seconds=20)  # The lease of who died is over.
                await asyncio.sleep(0.005)

    written = asyncio.create_task(write())
    await asyncio.gather(written, *(dispatch(number) for number in range(8)))
    firsts = list(dict.fromkeys(sink.names()))
    for order, names in wanted.items():
        assert [name for name in firsts if name.startswith(f"{order}/")] == names, order
    assert set((await states(databases, tenant)).values()) == {"CONSUMED"}


# -- a lane is one relay's


async def test_a_lane_that_is_held_is_passed_by_and_free_again_after_its_lease(
    databases: Pools, tenant: str, clock: Clock
) -> None:
    """Red when: a claim does not look until when the lane is held."""
    await publish(databases["order"], event(tenant, "a"))
    lease = timedelta(seconds=10)

    async def claim() -> lanes.Lane | None:
        async with databases["order"].transaction() as tx:
            return await lanes.claim_lane(tx, holder="x", at=clock(), lease=lease)

    first = await claim()
    assert first is not None
    assert await claim() is None
    clock.move(seconds=10)
    second = await claim()
    assert second == lanes.Lane(first.number, first.fence + 1)


async def test_a_lane_that_is_just_being_claimed_is_not_waited_for(
    databases: Pools, tenant: str, clock: Clock
) -> None:
    """Red when: SKIP LOCKED is missing."""
    await publish(databases["order"], event(tenant, "a"))
    async with databases["order"].transaction() as tx:
        claimed = await lanes.claim_lane(tx, holder="x", at=clock(), lease=timedelta(seconds=10))
        assert claimed is not None
        async with asyncio.timeout(2):
            assert await relay(databases, {INVENTORY: Listed()}, clock).run_pass() == 0


@pytest.mark.requirement("AC7.2", "AC7.3")
async def test_a_relay_that_comes_back_after_its_lease_marks_nothing_and_turns_no_order(
    databases: Pools, tenant: str, clock: Clock
) -> None:
    """It read its batch, slept through its lease while another relay carried all of it and more,
    and wakes up in its delivery: the inbox knows every message already, and its mark is refused.

    Red when: the fence number is not compared where the lane is held.
    """
    inventory_inbox = InboxSink(databases["inventory"], now=clock)
    asleep, wake = asyncio.Event(), asyncio.Event()

    class Sleepy(Listed):
        async def deliver(self, messages: Sequence[Envelope]) -> Sequence[Delivery]:
            asleep.set()
            await wake.wait()
            await inventory_inbox.deliver(messages)
            return [Failed("what a sleeper believes")] * len(messages)

    await publish(databases["order"], event(tenant, "a"), event(tenant, "b"))
    sleeper = asyncio.create_task(relay(databases, {INVENTORY: Sleepy()}, clock).run_pass())
    await asleep.wait()
    clock.move(seconds=60)
    await publish(databases["order"], event(tenant, "c"))
    await all_passes(relay(databases, {INVENTORY: inventory_inbox}, clock, holder="awake"))
    wake.set()
    assert await sleeper == 0
    assert set((await states(databases, tenant)).values()) == {"SENT"}
    assert [row.last_error for row in await rows(databases, tenant)] == ["", "", ""]
    received = await rows(databases, tenant, "inventory")
    assert [row.key[-1] for row in received] == ["a", "b", "c"]


async def test_a_lane_is_not_claimed_for_a_message_behind_a_dead_one(
    databases: Pools, tenant: str, clock: Clock
) -> None:
    sink = Listed(answer=lambda m: Failed("no", for_good=True))
    await publish(databases["order"], event(tenant, "a"), event(tenant, "b"))
    carrier = relay(databases, {INVENTORY: sink}, clock)
    await all_passes(carrier)
    assert await states(databases, tenant) == {"o-1/a": "DEAD", "o-1/b": "PENDING"}
