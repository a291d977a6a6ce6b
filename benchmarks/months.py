"""What each way of keeping months costs the traffic: `python -m benchmarks.months [ROWS]`.

Four sessions claim and lock rows of this month, one after the other, while one statement is run on
the table. Told is how long it took, and the longest transaction of the traffic meanwhile. Then: how
often a UNIQUE (key) in a partition refuses what ON CONFLICT (opened_on, key) should have let pass.
"""

import asyncio
import contextlib
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import NamedTuple

from sqlalchemy import text
from sqlalchemy.engine import make_url
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from benchmarks.machine import describe
from everycent.stack.postgres import PostgresServer

GUESTS = 4
BRIEFLY = "SET LOCAL lock_timeout = '100ms'"
TABLE = (
    "DROP SCHEMA public CASCADE",
    "CREATE SCHEMA public",
    'CREATE TABLE t (key text COLLATE "C" NOT NULL, opened_on date NOT NULL, state text NOT NULL,'
    " CONSTRAINT t_pkey PRIMARY KEY (opened_on, key)) PARTITION BY RANGE (opened_on)",
    *(
        f"CREATE TABLE t_{n} PARTITION OF t"
        f" FOR VALUES FROM ('2026-0{n}-01') TO ('2026-0{n + 1}-01')"
        for n in range(1, 9)
    ),
)
DEFAULT = "CREATE TABLE t_rest PARTITION OF t DEFAULT"
OPEN_END = "CREATE TABLE t_9 PARTITION OF t FOR VALUES FROM ('2026-09-01') TO (MAXVALUE)"
CLAIM = text(
    "INSERT INTO t SELECT key, DATE '2026-08-20', 'TRIED' FROM unnest(CAST(:keys AS text[])) AS key"
    " ON CONFLICT (opened_on, key) DO NOTHING"
)
LOCK = text(
    "SELECT FROM t WHERE key = ANY(CAST(:keys AS text[])) AND opened_on = DATE '2026-08-20'"
    " FOR UPDATE"
)


class Way(NamedTuple):
    """What is done to the table, and what it needs: the end it has, the month that is full."""

    name: str
    statements: Sequence[str]
    end: str = OPEN_END
    full: str = "2026-01-01"
    alone: bool = False  # It cannot be part of a transaction.
    reader: bool = False  # Somebody reads this month all the time.


CUT = (
    BRIEFLY,
    "LOCK TABLE ONLY t IN ACCESS EXCLUSIVE MODE",
    "ALTER TABLE t DETACH PARTITION t_9",
    "ALTER TABLE t ATTACH PARTITION t_9 FOR VALUES FROM ('2026-09-01') TO ('2026-12-01')",
    "CREATE TABLE t_12 PARTITION OF t FOR VALUES FROM ('2026-12-01') TO (MAXVALUE)",
)
DROP = (BRIEFLY, "DROP TABLE t_1")
DETACH = ("ALTER TABLE t DETACH PARTITION t_1 CONCURRENTLY",)
CLOSE = (BRIEFLY, "ALTER TABLE t_1 ADD CONSTRAINT closed CHECK (false) NOT VALID")
NEXT = ("CREATE TABLE t_10 PARTITION OF t FOR VALUES FROM ('2026-10-01') TO ('2026-11-01')",)
WAYS = (
    Way("DEFAULT with rows: make a month", NEXT, DEFAULT, "2027-01-01"),
    Way("DEFAULT: DETACH CONCURRENTLY", DETACH, DEFAULT, alone=True),
    Way("open end, empty: cut a month", CUT),
    Way("open end with rows: cut a month", CUT, full="2026-09-01"),
    Way("close a month", CLOSE),
    Way("DROP TABLE", DROP),
    Way("DROP TABLE behind a reader", DROP, reader=True),
    Way("DETACH CONCURRENTLY", DETACH, alone=True),
    Way("DETACH CONCURRENTLY behind a reader", ("SET lock_timeout = '1s'", *DETACH), alone=True,
        reader=True),
    Way("DELETE", ("DELETE FROM t WHERE opened_on < '2026-02-01'",)),
)  # fmt: skip


async def measure(engine: AsyncEngine, way: Way, rows: int) -> str:
    """Return a line of the table: of three runs the one in the middle."""
    runs = sorted([await _measure_once(engine, way, rows) for _ in range(3)])
    took, longest, said = runs[1]
    return f"| {way.name} | {took * 1000:.0f} | {longest * 1000:.0f} | {said} |"


async def _measure_once(engine: AsyncEngine, way: Way, rows: int) -> tuple[float, float, str]:
    """Do it once in the middle of the traffic."""
    alone = engine.execution_options(isolation_level="AUTOCOMMIT")
    async with alone.connect() as connection:
        for statement in (*TABLE, way.end):
            await connection.execute(text(statement))
        fill = f"INSERT INTO t SELECT n, DATE '{way.full}' + n % 28, 'CANCELLED'"
        await connection.execute(text(f"{fill} FROM generate_series(1, {rows}) AS n"))
        await connection.execute(text("VACUUM ANALYZE t"))
        await connection.execute(text("CHECKPOINT"))
    longest: list[float] = []
    async with _traffic(engine, longest), _reader(engine, way.reader):
        began, said = time.perf_counter(), "done"
        try:
            async with alone.connect() if way.alone else engine.begin() as connection:
                for statement in way.statements:
                    await connection.execute(text(statement))
        except DBAPIError as error:
            said = str(error.orig)
        took = time.perf_counter() - began
    async with engine.connect() as connection:
        pending = "SELECT count(*) FROM pg_inherits WHERE inhdetachpending"
        said += "; left half detached" if await connection.scalar(text(pending)) else ""
    return took, max(longest), said


@contextlib.asynccontextmanager
async def _traffic(engine: AsyncEngine, longest: list[float]) -> AsyncIterator[None]:
    """Have the traffic run and warm before, and until, and note its times in between."""
    over = asyncio.Event()
    rounds = [0] * GUESTS

    async def go(guest: int) -> None:
        while not over.is_set():
            keys, began = {"keys": [f"{guest}-{rounds[guest]}"]}, time.perf_counter()
            async with engine.begin() as tx:
                await tx.execute(CLAIM, keys)
                await tx.execute(LOCK, keys)
            longest.append(time.perf_counter() - began)
            rounds[guest] += 1

    async with asyncio.TaskGroup() as group:
        for guest in range(GUESTS):
            group.create_task(go(guest))
        while min(rounds) < 50:
            await asyncio.sleep(0)
        longest.clear()
        yield
        before = list(rounds)
        while any(now == then for now, then in zip(rounds, before, strict=True)):
            await asyncio.sleep(0)
        over.set()


@contextlib.asynccontextmanager
async def _reader(engine: AsyncEngine, wanted: bool) -> AsyncIterator[None]:
    if not wanted:
        yield
        return
    async with engine.connect() as connection:
        await connection.execute(text("SELECT FROM t WHERE opened_on = '2026-08-20'"))
        yield


async def unique_in_a_partition(engine: AsyncEngine, rounds: int = 2000) -> str:
    """Insert each key by eight sessions at once, on one day: none should be refused."""
    async with engine.begin() as tx:
        for statement in (*TABLE, "ALTER TABLE t_8 ADD CONSTRAINT once UNIQUE (key)"):
            await tx.execute(text(statement))
    refused: list[str] = []

    async def insert(key: str) -> None:
        try:
            async with engine.begin() as tx:
                await tx.execute(CLAIM, {"keys": [key]})
        except DBAPIError as error:
            refused.append(str(error.orig))

    for number in range(rounds):
        await asyncio.gather(*(insert(f"k-{number}") for _ in range(8)))
    return f"UNIQUE (key) in a partition refused {len(refused)} of {8 * rounds} equal inserts"


async def main(server: PostgresServer, rows: int) -> None:
    """Print the table."""
    url = make_url(server.dsn()).set(drivername="postgresql+asyncpg")
    engine = create_async_engine(url, pool_size=GUESTS + 6)
    machine = describe()
    print(f"{rows:,} rows in the full month; {machine['cores']} cores, {machine['cpu']}")
    print("| way | ms | longest transaction, ms | |\n|---|---|---|---|")
    for way in WAYS:
        print(await measure(engine, way, rows), flush=True)
    print(await unique_in_a_partition(engine))
    await engine.dispose()


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)  # As root the server runs as somebody else.
        own = PostgresServer(Path(folder) / "server")
        own.start()
        try:
            asyncio.run(main(own, int(sys.argv[1]) if sys.argv[1:] else 2_000_000))
        finally:
            own.stop()
