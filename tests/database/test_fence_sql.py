"""`fence.sql` call by call: its verdicts, its guards, its locks. All orders: tests/proof."""

import asyncio
import json
import uuid
from collections.abc import AsyncIterator
from typing import Any

import pytest
from sqlalchemy import text
from sqlalchemy.engine import make_url
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine

from everycent.database.fence_sql import fence_sql
from everycent.stack.postgres import PostgresServer
from tests.conftest import NOON, TODAY
from tests.database.test_lock_order import _waits_for

Verdict = tuple[str, Any]


@pytest.fixture(scope="module")
async def engine(postgres: PostgresServer) -> AsyncIterator[AsyncEngine]:
    """A database into which somebody has run the very text of `fence.sql`."""
    name = f"fence_sql_{uuid.uuid4().hex[:12]}"
    postgres.execute(f"CREATE DATABASE {name}")
    engine = create_async_engine(make_url(postgres.dsn(name)).set(drivername="postgresql+asyncpg"))
    async with engine.connect() as connection:
        driver = (await connection.get_raw_connection()).driver_connection
        assert driver is not None
        await driver.execute(fence_sql())
    yield engine
    await engine.dispose()


async def claim(tx: AsyncConnection, operation: str, key: str, hash_: str | None = "h") -> Verdict:
    row = await tx.execute(
        text("SELECT * FROM fence_claim(:operation, :key, :hash, :day, :at)"),
        {"operation": operation, "key": key, "hash": hash_, "day": TODAY, "at": NOON},
    )
    verdict, answer = row.one()
    return verdict, answer


async def tombstone(tx: AsyncConnection, key: str) -> Verdict:
    row = await tx.execute(
        text("SELECT * FROM fence_tombstone(:key, :day, :at, 'given up')"),
        {"key": key, "day": TODAY, "at": NOON},
    )
    verdict, answer = row.one()
    return verdict, answer


async def finish(tx: AsyncConnection, operation: str, key: str, answer: Any = "done") -> None:
    await tx.execute(
        text("SELECT fence_finish(:operation, :key, CAST(:answer AS jsonb), :at)"),
        {"operation": operation, "key": key, "answer": json.dumps(answer), "at": NOON},
    )


async def held(tx: AsyncConnection, key: str) -> None:
    await claim(tx, "try", key)
    await finish(tx, "hold", key, {"seat": "12A"})


async def refused(work: Any) -> str | None:
    """Return the name of the rule by which the database refuses."""
    with pytest.raises(DBAPIError) as error:
        await work
    cause = getattr(error.value.orig, "__cause__", None)
    return getattr(cause, "constraint_name", None)


@pytest.fixture
def key(tenant: str) -> str:
    return f"{tenant}/o-1/seat"


@pytest.mark.requirement("I6", "AC12.3", "AC13.2", "AC13.3")
async def test_each_call_gets_the_verdict_of_the_table(engine: AsyncEngine, key: str) -> None:
    """Design rule 3, row by row, for a service in any language.

    Red when: a function judges a row otherwise, or forgets an answer.
    """
    seat = {"seat": "12A"}
    async with engine.connect() as tx:
        assert await claim(tx, "confirm", key) == ("NothingTried", None)
        assert await claim(tx, "try", key) == ("proceed", None)
        assert await claim(tx, "confirm", key) == ("NotConfirmable", None)
        await finish(tx, "hold", key, seat)
        assert await claim(tx, "try", key) == ("repeat", seat)
        assert await claim(tx, "try", key, "another") == ("KeyReused", seat)
        assert await claim(tx, "confirm", key) == ("proceed", seat)
        await finish(tx, "confirm", key, "sold")
        assert await claim(tx, "confirm", key) == ("repeat", "sold")
        assert await claim(tx, "try", key) == ("repeat", seat)
        assert (await tombstone(tx, key))[0] == "AlreadyConfirmed"

        never = f"{key}/never"
        assert await tombstone(tx, never) == ("proceed", None)
        await finish(tx, "cancel", never, "freed")
        assert await tombstone(tx, never) == ("repeat", "freed")
        assert (await claim(tx, "try", never))[0] == "AlreadyCancelled"
        assert (await claim(tx, "confirm", never))[0] == "NotConfirmable"

        no = f"{key}/no"
        await claim(tx, "try", no)
        await finish(tx, "refuse", no, "sold out")
        assert await claim(tx, "try", no) == ("repeat", "sold out")
        assert (await claim(tx, "confirm", no))[0] == "NotConfirmable"
        assert await tombstone(tx, no) == ("proceed", None), "what was refused holds nothing"
        await tx.rollback()


@pytest.mark.parametrize("call", [lambda tx, key: claim(tx, "try", key), tombstone],
                         ids=["claim", "tombstone"])  # fmt: skip
async def test_another_isolation_is_refused(engine: AsyncEngine, key: str, call: Any) -> None:
    """Under REPEATABLE READ the lock would not see the winner's row.

    Red when: the check of the isolation is left out.
    """
    async with engine.connect() as connection:
        tx = await connection.execution_options(isolation_level="REPEATABLE READ")
        assert await refused(call(tx, key)) == "fence_needs_read_committed"
        await tx.rollback()


WRONG = {
    "nothing was claimed": ("hold", ()),
    "it is cancelled": ("hold", ("tombstone",)),
    "it is held already": ("hold", ("held",)),
    "a tombstone is confirmed": ("confirm", ("tombstone",)),
    "it is confirmed without a word": ("cancel", ("held", "by hand")),
    "it is cancelled already": ("cancel", ("tombstone", "cancel")),
    "no such operation": ("sell", ("held",)),
}


@pytest.mark.parametrize("why", WRONG)
async def test_a_finish_hits_its_open_row_or_nothing(
    engine: AsyncEngine, key: str, why: str
) -> None:
    """Red when: a condition of the write, or the count of its rows, is left out."""
    operation, before = WRONG[why]
    async with engine.connect() as tx:
        for each in before:
            if each == "tombstone":
                await tombstone(tx, key)
            elif each == "held":
                await held(tx, key)
            elif each == "by hand":
                await tx.execute(
                    text("UPDATE fence SET state = 'CONFIRMED' WHERE key = :key"), {"key": key}
                )
            else:
                await finish(tx, each, key, "first")
        assert await refused(finish(tx, operation, key, "other")) == "fence_finish_hits_one_row"
        await tx.rollback()


@pytest.mark.requirement("AC12.4", "AC13.5")
@pytest.mark.parametrize("first", ["confirm", "cancel"])
async def test_who_comes_second_waits_and_then_hears_of_the_first(
    engine: AsyncEngine, key: str, first: str
) -> None:
    """Confirm against Cancel on a held row.

    Red when: the row is read without its lock.
    """
    async with engine.begin() as tx:
        await held(tx, key)
    calls: dict[str, Any] = {"confirm": lambda tx: claim(tx, "confirm", key),
                             "cancel": lambda tx: tombstone(tx, key)}  # fmt: skip
    second = "cancel" if first == "confirm" else "confirm"
    async with engine.connect() as holder, engine.connect() as writer:
        assert (await calls[first](holder))[0] == "proceed"
        late = asyncio.ensure_future(calls[second](writer))
        await _waits_for(writer, holder, late)
        await finish(holder, first, key)
        await holder.commit()
        verdict, _ = await late
        await writer.rollback()
    assert verdict == {"confirm": "NotConfirmable", "cancel": "AlreadyConfirmed"}[second]


@pytest.mark.requirement("AC13.5")
@pytest.mark.parametrize("commits", [True, False])
async def test_a_cancel_waits_for_the_try_that_is_under_way(
    engine: AsyncEngine, key: str, commits: bool
) -> None:
    """Red when: the tombstone is not inserted first, or its answer is not what the Try held."""
    async with engine.connect() as trying, engine.connect() as cancelling:
        await held(trying, key)
        late = asyncio.ensure_future(tombstone(cancelling, key))
        await _waits_for(cancelling, trying, late)
        await (trying.commit() if commits else trying.rollback())
        assert await late == ("proceed", {"seat": "12A"} if commits else None)
        await cancelling.rollback()
