"""Old months go while the shop is busy: on a server of its own that counts every statement."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from datetime import date
from pathlib import Path

import pytest
from sqlalchemy import text

from everycent.database.engine import Database
from everycent.database.partitions import Month, drop_partitions, make_partitions
from everycent.errors import AlreadyCancelled, Bug, EverycentError
from everycent.settings import PoolSettings
from everycent.stack.postgres import PostgresServer
from tests.database.aging import (
    SEEN,
    TABLE,
    cancel,
    confirm,
    end,
    fill,
    hold,
    rows_of,
    table_of,
    try_,
)

MONTHS = [date(2026, month, 1) for month in range(1, 9)]
ROWS = 25_000  # A month.
TODAY, HORIZON = date(2026, 8, 20), date(2026, 5, 15)
GUESTS = 6


@pytest.fixture(scope="module")
def counting(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PostgresServer]:
    server = PostgresServer(Path(tmp_path_factory.mktemp("counting")) / "server", durable=False)
    server.prepare()
    with (server.data / "postgresql.conf").open("a") as file:
        file.write(
            "\nshared_preload_libraries = 'pg_stat_statements'\npg_stat_statements.track = 'all'\n"
        )
    server.start()
    server.execute("CREATE EXTENSION pg_stat_statements; CREATE ROLE shop LOGIN PASSWORD 'shop'")
    yield server
    server.stop()


@pytest.fixture
async def owner(counting: PostgresServer) -> AsyncIterator[Database]:
    database = Database(counting.dsn(), PoolSettings(size=4))
    yield database
    await database.close()


@pytest.fixture
async def shop(counting: PostgresServer) -> AsyncIterator[Database]:
    database = Database(counting.dsn(user="shop", password="shop"), PoolSettings(size=GUESTS))
    yield database
    await database.close()


@pytest.mark.requirement("T22", "AC13.8", "I13")
async def test_old_months_are_dropped_under_traffic_and_nothing_is_deleted(
    owner: Database, shop: Database
) -> None:
    """Tries, Confirms and Cancels of this month go on, on every connection, and meet no error.

    Gone are the months before the horizon's, the others are whole; PostgreSQL counted no DELETE
    and no deadlock. A late Try within the horizon is fenced, one beyond it is refused.

    Red when: a month's rows are deleted instead, or a month is dropped that has a young day.
    """
    busy, errors = asyncio.Event(), list[EverycentError]()
    rounds = [0] * GUESTS

    async def buys(guest: int) -> None:
        while not busy.is_set():
            orders = [f"shop/g-{guest}-{rounds[guest]}-{n}/x" for n in range(3)]
            try:
                async with shop.transaction() as tx:
                    await try_(tx, [hold(key, TODAY) for key in orders])
                async with shop.transaction() as tx:
                    await confirm(tx, [end(orders[0], TODAY)])
                    await cancel(tx, [end(key, TODAY) for key in orders[1:]])
            except EverycentError as error:
                errors.append(error)
            rounds[guest] += 1

    async with table_of(owner, worker="shop"):
        await make_partitions(owner.engine, TABLE, today=MONTHS[0], ahead=len(MONTHS))
        await fill(owner, MONTHS, ROWS)
        async with asyncio.TaskGroup() as group:
            for guest in range(GUESTS):
                group.create_task(buys(guest))
            while not all(rounds):
                await asyncio.sleep(0)
            before = list(rounds)
            made = await make_partitions(owner.engine, TABLE, today=TODAY)
            months = await drop_partitions(owner.engine, TABLE, before=HORIZON)
            while any(now <= then for now, then in zip(rounds, before, strict=True)):
                await asyncio.sleep(0)
            busy.set()

        assert errors == []
        assert made == ["seen_hold_2026_10", "seen_hold_2026_11"]
        gone = [Month(f"seen_hold_2026_0{n}", ROWS) for n in range(1, 5)]
        assert months == [Month("seen_hold_first", 0), *gone]
        left = await rows_of(owner)
        assert left.pop("seen_hold_2026_08") == ROWS + 3 * sum(rounds)
        assert left == {
            **{f"seen_hold_2026_0{n}": ROWS for n in range(5, 8)},
            **dict.fromkeys(["seen_hold_2026_09", *made], 0),
        }
        async with shop.transaction() as tx:
            said = await try_(tx, [hold("shop/o-1/2026-05-01", date(2026, 5, 2))])
        assert [type(answer) for answer in said.values()] == [AlreadyCancelled]
        with pytest.raises(Bug, match="no partition"):
            async with shop.transaction() as tx:
                await try_(tx, [hold("shop/o-1/2026-04-01", date(2026, 4, 2))])
        assert await _counted(owner) == {"inserts": True, "deletes": 0, "deadlocks": 0}


async def _counted(owner: Database) -> dict[str, object]:
    async with owner.transaction() as tx:
        result = await tx.execute(
            text(
                "SELECT count(*) FILTER (WHERE query ILIKE 'INSERT INTO ' || :table || '%') > 0"
                " AS inserts,"
                " count(*) FILTER (WHERE query ~* '\\mDELETE\\M' AND query !~* 'pg_stat')"
                " AS deletes,"
                " (SELECT sum(deadlocks) FROM pg_stat_database)::int AS deadlocks"
                " FROM pg_stat_statements"
            ),
            {"table": SEEN.name},
        )
        return dict(result.one()._mapping)
