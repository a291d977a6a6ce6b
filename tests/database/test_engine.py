"""Connections that die, pools that are empty, calls that must not be made: each has its class."""

import asyncio

import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from everycent.database.engine import Database, assert_no_transaction
from everycent.database.reads import Reader
from everycent.errors import Bug, PoolTimeout, Transient, Unknown, Unreachable
from everycent.settings import PoolSettings, ServiceName, Settings

KILL = text(
    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
    " WHERE usename = :role AND application_name = :name AND pid <> pg_backend_pid()"
)


async def kill_connections(owner: Database, role: str, *, name: str = "to be killed") -> None:
    """End the sessions of one pool of a role; those of other tests live on."""
    async with owner.engine.connect() as connection:
        await connection.execute(KILL, {"role": role, "name": name})


@pytest.fixture
async def database(settings: Settings) -> Database:
    pool = PoolSettings(size=1, wait_seconds=0.2)
    return Database(settings.database["points"], pool, name="to be killed")


async def test_a_connection_lost_before_commit_is_transient(
    database: Database, owners: dict[ServiceName, Database]
) -> None:
    with pytest.raises(Transient) as lost:
        async with database.transaction() as tx:
            await tx.execute(text("SELECT 1"))
            await kill_connections(owners["points"], "everycent_points")
            await tx.execute(text("SELECT 1"))
    assert not isinstance(lost.value, Unknown)
    async with database.transaction() as tx:  # The pool has thrown the dead one away.
        assert (await tx.execute(text("SELECT 1"))).scalar_one() == 1
    await database.close()


@pytest.mark.requirement("I11", "I25")
async def test_a_connection_lost_during_commit_is_unknown(
    database: Database, owners: dict[ServiceName, Database]
) -> None:
    """The server dies as the COMMIT is sent: nobody knows, and nobody may say no.

    Red when: an error of COMMIT without an answer from the server is taken for Transient.
    """
    with pytest.raises(Unknown):
        async with database.transaction() as tx:
            await tx.execute(text("SELECT 1"))
            await kill_connections(owners["points"], "everycent_points")
    await database.close()


async def test_an_empty_pool_is_told_in_time(database: Database) -> None:
    async with database.transaction() as tx:
        await tx.execute(text("SELECT 1"))
        with pytest.raises(PoolTimeout):
            async with asyncio.timeout(10), database.transaction():
                pass
    await database.close()


async def test_who_waits_for_a_connection_is_not_overtaken(database: Database) -> None:
    turns: list[str] = []

    async def take(name: str, times: int) -> None:
        for _ in range(times):
            async with database.transaction() as tx:
                await tx.execute(text("SELECT 1"))
                turns.append(name)

    await asyncio.gather(take("greedy", 100), take("greedy", 100), take("patient", 1))
    assert turns.index("patient") < 5
    await database.close()


async def test_a_database_that_is_not_there_is_unreachable() -> None:
    database = Database("postgresql://nobody:x@127.0.0.1:1/nothing", PoolSettings(wait_seconds=1))
    with pytest.raises(Unreachable):
        async with database.transaction():
            pass


@pytest.mark.requirement("AC4.8")
async def test_a_call_to_the_outside_inside_a_transaction_is_stopped(database: Database) -> None:
    """The guard that every gateway asks raises while this task holds a transaction.

    Red when: `transaction` does not note that it is open.
    """
    assert_no_transaction()
    async with database.transaction():
        with pytest.raises(Bug):
            assert_no_transaction()
    assert_no_transaction()
    await database.close()


async def test_a_value_that_no_column_holds_is_a_bug(database: Database) -> None:
    with pytest.raises(Bug):
        async with database.transaction() as tx:
            await tx.execute(text("SELECT CAST(:n AS text)"), {"n": "a\x00b"})
    await database.close()


async def test_a_reader_survives_a_restart_of_its_connections(
    settings: Settings, owners: dict[ServiceName, Database]
) -> None:
    reader = Reader(settings)
    assert await reader.rows("points", "SELECT 1 AS one") == [{"one": 1}]
    await kill_connections(owners["points"], "everycent_points_read", name="reader")
    assert await reader.rows("points", "SELECT 1 AS one") == [{"one": 1}]
    await reader.close()


@pytest.mark.requirement("AC15.8")
async def test_no_transaction_waits_or_idles_longer_than_it_may(settings: Settings) -> None:
    """Each limit ends its own kind of waiting, and the step may be tried again.

    Red when: one of the four limits is not set on the connections of a pool.
    """
    limits = {
        "lock_timeout": PoolSettings(size=2, lock_timeout_seconds=0.1),
        "statement_timeout": PoolSettings(size=2, statement_timeout_seconds=0.1),
        "idle_in_transaction_session_timeout": PoolSettings(
            size=2, idle_in_transaction_seconds=0.1
        ),
        "transaction_timeout": PoolSettings(size=2, transaction_timeout_seconds=0.1),
    }
    for name, pool in limits.items():
        database = Database(settings.database["points"], pool)
        async with database.transaction() as tx:
            assert (await tx.execute(text(f"SHOW {name}"))).scalar_one() == "100ms"
        with pytest.raises(Transient):
            async with database.transaction() as tx:
                await _overstay(name, tx, database)
        await database.close()


async def _overstay(limit: str, tx: AsyncConnection, database: Database) -> None:
    lock = text("SELECT pg_advisory_xact_lock(15, 8)")
    if limit == "lock_timeout":
        async with database.transaction() as other:
            await other.execute(lock)
            await tx.execute(lock)
    elif limit == "statement_timeout":
        await tx.execute(text("SELECT pg_sleep(60)"))
    else:  # The server ends the session: it is seen when the session is used again.
        await tx.execute(text("SELECT 1"))
        pid = await tx.scalar(text("SELECT pg_backend_pid()"))
        async with asyncio.timeout(30):
            gone = text("SELECT count(*) FROM pg_stat_activity WHERE pid = :pid")
            alive: int | None = 1
            while alive:
                async with database.snapshot() as look:
                    alive = await look.scalar(gone, {"pid": pid})
        await tx.execute(text("SELECT 1"))
