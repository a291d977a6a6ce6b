"""Coupons, quotas and caps by configuration: their promises, their guards, their races."""

import asyncio
import uuid
from collections.abc import AsyncIterator, Sequence
from typing import Any

import pytest
from sqlalchemy import text
from sqlalchemy.engine import make_url
from sqlalchemy.exc import DBAPIError, IntegrityError
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from everycent.database.counted import Counted
from everycent.database.participant import fence_tables
from everycent.domain.counted import (
    NoSuchItem,
    NotEnough,
    TakeUnits,
    UnitsHeld,
    take,
)
from everycent.domain.participant import CancelBranch, ConfirmBranch
from everycent.errors import InvalidRequest
from everycent.kit import Trial, assert_participant
from everycent.stack.postgres import PostgresServer
from tests.conftest import NOON
from tests.database.test_lock_order import _pid, _waits_for

COUPON, CAP = Counted("coupon"), Counted("cap", opens_with=3)
LOW, HIGH = "a", "b"
INSERT = "INSERT INTO coupon_counter (tenant, item, allowed, free, held, used) VALUES ('t', "


@pytest.fixture(scope="module")
async def engine(postgres: PostgresServer) -> AsyncIterator[AsyncEngine]:
    """A database of somebody else's with a coupon, a cap and the fence in it."""
    name = f"counted_{uuid.uuid4().hex[:12]}"
    postgres.execute(f"CREATE DATABASE {name}")
    url = make_url(postgres.dsn(name)).set(drivername="postgresql+asyncpg")
    engine = create_async_engine(
        url, pool_size=25, connect_args={"server_settings": {"lock_timeout": "5000"}}
    )
    async with engine.begin() as tx:
        for statement in (*fence_tables(), *COUPON.tables(), *CAP.tables()):
            await tx.execute(text(statement))
    yield engine
    await engine.dispose()


def wanted(tenant: str, order: str, item: str = "A", units: int = 1, name: str = "coupon") -> Any:
    return TakeUnits.of(f"{tenant}/{order}", name, at=NOON, item=item, units=units)


async def do(engine: AsyncEngine, operation: Any, *requests: Any) -> list[Any]:
    async with engine.begin() as tx:
        answers: list[Any] = await operation(tx, requests)
    return answers


async def allow(engine: AsyncEngine, tenant: str, item: str, units: int) -> None:
    async with engine.begin() as tx:
        await COUPON.allow(tx, tenant, item, units)


async def parts(engine: AsyncEngine, tenant: str, item: str = "A", name: str = "coupon") -> Any:
    async with engine.connect() as tx:
        found = await tx.execute(
            text(f"SELECT free, held, used FROM {name}_counter WHERE tenant = :t AND item = :i"),
            {"t": tenant, "i": item},
        )
        return tuple(found.one())


def ending(kind: Any, tenant: str, order: str, name: str = "coupon") -> Any:
    return kind.of(f"{tenant}/{order}", name, at=NOON)


@pytest.mark.requirement("AC14.2", "AC14.3")
@pytest.mark.parametrize("name", ["coupon", "cap"])
async def test_a_counted_resource_keeps_every_promise(postgres: PostgresServer, name: str) -> None:
    """Red when: a Confirm or Cancel of it moves what the call says, or moves it twice."""
    counted = Counted(name, opens_with=5000)
    database = f"trial_{uuid.uuid4().hex[:12]}"
    postgres.execute(f"CREATE DATABASE {database}")
    url = make_url(postgres.dsn(database)).set(drivername="postgresql+asyncpg")
    engine = create_async_engine(url, pool_size=20)
    async with engine.begin() as tx:
        for statement in (*fence_tables(), *counted.tables()):
            await tx.execute(text(statement))
        await counted.allow(tx, "shop", "A", 5000)
    await assert_participant(Trial(counted, engine, wanted("shop", "o", units=2, name=name)))
    await engine.dispose()


@pytest.mark.requirement("AC14.2")
async def test_a_code_has_so_many_uses_and_an_unknown_one_none(
    engine: AsyncEngine, tenant: str
) -> None:
    """Red when: more units are given than are allowed, or a refusal takes some."""
    await allow(engine, tenant, "A", 2)
    answers = await do(engine, COUPON.tries, *(wanted(tenant, f"o-{n}") for n in range(3)))
    assert answers == [
        UnitsHeld(item="A", units=1),
        UnitsHeld(item="A", units=1),
        NotEnough(item="A", units_wanted=1, units_free=0),
    ]
    assert await do(engine, COUPON.tries, wanted(tenant, "o-9", "B")) == [NoSuchItem(item="B")]
    await do(engine, COUPON.confirms, ending(ConfirmBranch, tenant, "o-0"))
    await do(engine, COUPON.cancels, ending(CancelBranch, tenant, "o-1"))
    assert await parts(engine, tenant) == (1, 0, 1)


@pytest.mark.requirement("AC14.2")
async def test_a_cap_counts_each_customer_from_her_first_purchase(
    engine: AsyncEngine, tenant: str
) -> None:
    """Red when: a row that nobody has named is not opened, or opened with another number."""
    ada, bob = "ada/LAMP", "bob/LAMP"
    one = wanted(tenant, "o-1", ada, 2, "cap")
    two = wanted(tenant, "o-2", ada, 2, "cap")
    other = wanted(tenant, "o-3", bob, 3, "cap")
    held, refused, his = await do(engine, CAP.tries, one, two, other)
    assert isinstance(held, UnitsHeld)
    assert refused == NotEnough(item=ada, units_wanted=2, units_free=1)
    assert isinstance(his, UnitsHeld)


@pytest.mark.requirement("AC14.2", "AC13.4")
async def test_forty_customers_race_for_ten_uses_and_ten_get_one(
    engine: AsyncEngine, tenant: str
) -> None:
    """Red when: the row is not locked between the look and the write."""
    await allow(engine, tenant, "A", 10)
    said = await asyncio.gather(
        *(do(engine, COUPON.tries, wanted(tenant, f"o-{n}")) for n in range(40))
    )
    assert sum(isinstance(each, UnitsHeld) for [each] in said) == 10
    assert await parts(engine, tenant) == (0, 10, 0)


async def test_what_is_allowed_can_be_set_again_but_not_below_what_is_taken(
    engine: AsyncEngine, tenant: str
) -> None:
    """Red when: the guard of `allow` is left out, or it counts up when repeated."""
    await allow(engine, tenant, "A", 3)
    await do(engine, COUPON.tries, wanted(tenant, "o-1", units=2))
    await allow(engine, tenant, "A", 5)
    await allow(engine, tenant, "A", 5)
    assert await parts(engine, tenant) == (3, 2, 0)
    with pytest.raises(InvalidRequest, match="more than 1 of 'A'"):
        await allow(engine, tenant, "A", 1)
    assert await parts(engine, tenant) == (3, 2, 0)


async def test_a_branch_of_somebody_else_is_told_so_and_the_others_are_answered(
    engine: AsyncEngine, tenant: str
) -> None:
    await allow(engine, tenant, "A", 9)
    answers = await do(
        engine, COUPON.tries, wanted(tenant, "o-1", name="cap"), wanted(tenant, "o-1")
    )
    assert isinstance(answers[0], InvalidRequest)
    assert isinstance(answers[1], UnitsHeld)


RULES = {
    "pkey": (f"{INSERT}'A', 1, 1, 0, 0)", f"{INSERT}'A', 1, 1, 0, 0)"),
    "free_not_negative": (f"{INSERT}'A', 0, -1, 1, 0)",),
    "held_not_negative": (f"{INSERT}'A', 0, 1, -1, 0)",),
    "used_not_negative": (f"{INSERT}'A', 0, 1, 0, -1)",),
    "adds_up": (f"{INSERT}'A', 2, 1, 0, 0)",),
}


@pytest.mark.parametrize("rule", RULES)
async def test_a_broken_rule_is_refused_by_its_name(engine: AsyncEngine, rule: str) -> None:
    """Also by hand. Red when: the constraint is left out."""
    async with engine.connect() as tx:
        for statement in RULES[rule][:-1]:
            await tx.execute(text(statement))
        with pytest.raises(IntegrityError) as refused:
            await tx.execute(text(RULES[rule][-1]))
        await tx.rollback()
    cause = getattr(refused.value.orig, "__cause__", None)
    assert getattr(cause, "constraint_name", None) == f"coupon_counter_{rule}"


@pytest.mark.parametrize("signs", [(-1, 1, 0), (0, -1, 1), (1, -1, 0)], ids=["try", "use", "free"])
async def test_units_that_are_not_there_do_not_move(
    engine: AsyncEngine, tenant: str, signs: tuple[int, int, int]
) -> None:
    """As if the decision had been wrong: the write hits no row, and its count tells.

    Red when: the guard of the write, or the count of its rows, is left out.
    """
    await allow(engine, tenant, "A", 1)
    free, held, used = signs
    async with engine.connect() as tx:
        with pytest.raises(AssertionError, match="hit 0 of 1"):
            await COUPON._move(tx, {(tenant, "A"): 2}, free=free, held=held, used=used)
        await tx.rollback()


async def test_rows_are_locked_in_order(engine: AsyncEngine, tenant: str) -> None:
    """Red when: the lock is left out, or its rows come in another order."""
    for item in (HIGH, LOW):
        await allow(engine, tenant, item, 1)
    lock = text("SELECT FROM coupon_counter WHERE tenant = :t AND item = :i FOR UPDATE SKIP LOCKED")
    async with engine.connect() as holder, engine.connect() as writer, engine.connect() as probe:
        await holder.execute(lock, {"t": tenant, "i": LOW})
        requests = [wanted(tenant, "o-1", HIGH), wanted(tenant, "o-2", LOW)]
        work = asyncio.ensure_future(COUPON.try_all(writer, requests))
        await _waits_for(writer, holder, work)
        free = (await probe.execute(lock, {"t": tenant, "i": HIGH})).rowcount
        waits_in = await probe.scalar(
            text("SELECT query FROM pg_stat_activity WHERE pid = :pid"),
            {"pid": await _pid(writer)},
        )
        await probe.rollback()
        await holder.rollback()
        await work
        await writer.rollback()
    assert free == 1, "the higher row was taken before the lower one"
    assert not str(waits_in).startswith("UPDATE"), "it waited in the write, not at the lock"


async def test_rows_are_opened_in_order(engine: AsyncEngine, tenant: str) -> None:
    """Who comes second waits for the first, makes nothing before, and takes what is there.

    Red when: ON CONFLICT is left out, or the rows come in another order.
    """
    async with engine.connect() as holder, engine.connect() as writer, engine.connect() as probe:
        await CAP._open(holder, [(tenant, LOW)], 3)
        work = asyncio.ensure_future(CAP._open(writer, [(tenant, HIGH), (tenant, LOW)], 3))
        await _waits_for(writer, holder, work)
        await probe.execute(text("SET LOCAL lock_timeout = '100ms'"))
        taken = False
        try:
            await CAP._open(probe, [(tenant, HIGH)], 3)
        except DBAPIError:
            taken = True
        await probe.rollback()
        await holder.commit()
        await work
        await writer.commit()
    assert not taken, "the higher row was inserted before the lower one"


async def test_a_row_that_is_there_is_not_waited_for(engine: AsyncEngine, tenant: str) -> None:
    """Who only makes sure that a busy row exists takes its turn at the lock, not before it."""
    async with engine.connect() as holder, engine.connect() as writer:
        await CAP._open(holder, [(tenant, LOW)], 3)
        await holder.commit()
        await holder.execute(
            text("UPDATE cap_counter SET allowed = 4, free = 4 WHERE tenant = :t"), {"t": tenant}
        )
        await writer.execute(text("SET LOCAL lock_timeout = '500ms'"))
        await CAP._open(writer, [(tenant, LOW)], 3)
        await writer.rollback()
        await holder.rollback()


def test_each_takes_what_is_left_in_the_order_of_the_requests() -> None:
    """The decision alone: what one is refused, the next may have."""
    requests: Sequence[TakeUnits] = [
        wanted("t", f"o-{n}", units=u) for n, u in enumerate((3, 9, 2))
    ]
    decided = take({("t", "A"): 5}, requests)
    assert [type(each) for each in decided.answers.values()] == [UnitsHeld, NotEnough, UnitsHeld]
    assert decided.units == {("t", "A"): 5}
    assert take({}, requests).units == {}
