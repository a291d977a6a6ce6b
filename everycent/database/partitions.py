"""Keep the months of tables that age (design rule 16): cut the next ones, drop what is over.

For the owner of a table that is parted by `opened_on`. Its first partition has no lower end and its
last one no upper end: every insert finds its place, whether the keeper comes in time or not. What
it drops stays closed: PostgreSQL has no place for a row of such a day, so that a message that comes
too late is refused and never taken for a first one (docs/decisions/0008-months.md).

Each lock is waited for `LOCK_TIMEOUT` at most and then tried again later: we give up long before
PostgreSQL would look for a deadlock. It is held for a moment, but for a last partition that has
rows: PostgreSQL reads it through as it is ended. So the keeper should come before a month begins.
"""

import asyncio
import itertools
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import date
from typing import TypeVar

from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from everycent.database.engine import sql, sqlstate_of
from everycent.errors import InvalidRequest, Transient
from everycent.settings import SERVICES, ServiceName

T = TypeVar("T")

AHEAD = 3
LOCK_TIMEOUT = "100ms"
TRIES = 10
PAUSE_SECONDS = 0.5
_LOCK_NOT_AVAILABLE, _UNDEFINED_TABLE = "55P03", "42P01"
_DUPLICATE_OBJECT, _UNDEFINED_OBJECT = "42710", "42704"
_CLOSE = "ALTER TABLE {name} ADD CONSTRAINT {name}_is_closed CHECK (false) NOT VALID"
_OPEN = "ALTER TABLE {name} DROP CONSTRAINT {name}_is_closed"


@dataclass(frozen=True)
class AgingTable:
    """A table parted by `opened_on`, and the SQL condition of its rows that are not finished.

    Such a row keeps its whole month, however old. "false" for a table whose rows only tell that
    something was seen.
    """

    name: str
    unfinished: str = "state = 'TRIED'"


# The tables of ours that age, the same in every service: its messages. A dead one keeps its month.
_MESSAGES = (
    AgingTable("outbox", unfinished="state <> 'CONSUMED'"),
    AgingTable("outbox_number", unfinished="false"),
    AgingTable("inbox", unfinished="state <> 'CONSUMED'"),
)
AGING: dict[ServiceName, tuple[AgingTable, ...]] = dict.fromkeys(SERVICES, _MESSAGES)


@dataclass(frozen=True)
class Partition:
    """The rows of the days from `low` until before `high`; None has no end."""

    name: str
    low: date | None
    high: date | None


@dataclass(frozen=True)
class Month:
    """A partition that is over, how many rows it has, and why it stays, if it does."""

    name: str
    rows: int
    kept: str = ""


async def make_partitions(
    engine: AsyncEngine, table: AgingTable, *, today: date, ahead: int = AHEAD
) -> list[str]:
    """Cut the open end into months, so many after today's; return the names of the new ones.

    A month begins behind the newest row: nothing is moved. Whoever comes late gets one long month.
    Raises Transient while others hold the table all the time; no insert suffers from that.
    """
    months = [_month(today, later) for later in range(ahead + 1)]
    async with engine.connect() as connection:
        last = await _open_end(connection, table)
    if last.low is not None and last.low >= months[-1]:
        return []

    async def cut(tx: AsyncConnection) -> list[str]:
        await tx.execute(sql(f"LOCK TABLE ONLY {table.name} IN ACCESS EXCLUSIVE MODE"))
        return await _cut(tx, table, months)

    made = await _briefly(engine, cut)
    if made is None:
        raise Transient(f"the months of {table.name} are not made: others hold the table")
    return made


async def drop_partitions(
    engine: AsyncEngine, table: AgingTable, *, before: date, dry_run: bool = False
) -> list[Month]:
    """Drop each partition of days before that day alone, unless one of its rows is not finished.

    The caller guarantees that no message about an earlier day can come any more, and that no order
    of such a day is open. What is in use all the time is kept for the next time. What another
    keeper drops meanwhile is left to him, and not told.
    """
    async with engine.connect() as connection:
        parts = await partitions_of(connection, table)
    over = [part.name for part in parts if part.high is not None and part.high <= before]
    months: list[Month] = []
    for name in over:
        try:
            months.append(await _drop(engine, table, name, dry_run=dry_run))
        except DBAPIError as error:
            if sqlstate_of(error) != _UNDEFINED_TABLE:
                raise
    return months


async def partitions_of(connection: AsyncConnection, table: AgingTable) -> list[Partition]:
    """Return the partitions of a table, the oldest first."""
    result = await connection.execute(
        sql(
            "SELECT name, CAST(substring(bounds FROM 'FROM [(]''([^'']+)''') AS date) AS low,"
            " CAST(substring(bounds FROM 'TO [(]''([^'']+)''') AS date) AS high"
            " FROM (SELECT c.relname AS name, pg_get_expr(c.relpartbound, c.oid) AS bounds"
            " FROM pg_inherits AS i JOIN pg_class AS c ON c.oid = i.inhrelid"
            " WHERE i.inhparent = CAST(CAST(:table AS text) AS regclass)) AS part"
            " ORDER BY low NULLS FIRST"
        ),
        {"table": table.name},
    )
    return [Partition(row.name, row.low, row.high) for row in result]


async def _open_end(connection: AsyncConnection, table: AgingTable) -> Partition:
    ends = [part for part in await partitions_of(connection, table) if part.high is None]
    if len(ends) != 1:
        raise InvalidRequest(
            f"{table.name} needs one partition TO (MAXVALUE) and no DEFAULT: see"
            " everycent.database.fence_ddl.first_partition"
        )
    return ends[0]


async def _cut(tx: AsyncConnection, table: AgingTable, months: list[date]) -> list[str]:
    """End the last partition where the first of these months begins that has no row behind it."""
    last = await _open_end(tx, table)
    newest = await tx.scalar(sql(f"SELECT max(opened_on) FROM {last.name}"))
    taken = max((day for day in (last.low, newest) if day is not None), default=date.min)
    cuts = [month for month in months if month > taken]
    if not cuts:
        return []
    await tx.execute(sql(f"ALTER TABLE {table.name} DETACH PARTITION {last.name}"))
    await tx.execute(
        sql(
            f"ALTER TABLE {table.name} ATTACH PARTITION {last.name}"
            f" FOR VALUES FROM ({_bound(last.low, 'MINVALUE')}) TO ('{cuts[0]}')"
        )
    )
    for low, high in itertools.pairwise([*cuts, None]):
        await tx.execute(
            sql(
                f"CREATE TABLE {table.name}_{low:%Y_%m} PARTITION OF {table.name}"
                f" FOR VALUES FROM ('{low}') TO ({_bound(high, 'MAXVALUE')})"
            )
        )
    return [f"{table.name}_{low:%Y_%m}" for low in cuts]


async def _drop(engine: AsyncEngine, table: AgingTable, name: str, *, dry_run: bool) -> Month:
    """Close a month, look once more whether all of it is finished, and drop it.

    Closed it takes no write, and its rows are read under no lock that anybody could wait for. After
    a crash it is still closed, and the next time goes on from there.
    """
    month, is_closed = await _look(engine, table, name), await _is_closed(engine, name)
    if dry_run:
        return month
    busy = Month(name, month.rows, "others hold it")
    if not month.kept:
        is_closed = is_closed or await _alter(engine, _CLOSE.format(name=name))
        if not is_closed:
            return busy
        month = await _look(engine, table, name)
    if not month.kept:
        # The constraint goes first: a month that was opened meanwhile is not dropped.
        gone = await _alter(engine, _OPEN.format(name=name), f"DROP TABLE {name}")
        return month if gone else busy
    if is_closed and not await _alter(engine, _OPEN.format(name=name)):
        return Month(name, month.rows, f"{month.kept}, and it stays closed: others hold it")
    return month


async def _look(engine: AsyncEngine, table: AgingTable, name: str) -> Month:
    async with engine.connect() as connection:
        result = await connection.execute(
            sql(
                f"SELECT count(*) AS rows, count(*) FILTER (WHERE {table.unfinished}) AS unfinished"
                f" FROM {name}"
            )
        )
        found = result.one()
    kept = f"{found.unfinished} rows are not finished" if found.unfinished else ""
    return Month(name, found.rows, kept)


async def _is_closed(engine: AsyncEngine, name: str) -> bool:
    async with engine.connect() as connection:
        found = await connection.scalar(
            sql("SELECT count(*) FROM pg_constraint WHERE conname = :closed"),
            {"closed": f"{name}_is_closed"},
        )
    return bool(found)


async def _alter(engine: AsyncEngine, *statements: str) -> bool:
    """Run what needs a lock, in one transaction; False if it did not get it, or came too late."""

    async def run(tx: AsyncConnection) -> bool:
        for statement in statements:
            await tx.execute(sql(statement))
        return True

    try:
        return bool(await _briefly(engine, run))
    except DBAPIError as error:
        if sqlstate_of(error) not in (_DUPLICATE_OBJECT, _UNDEFINED_OBJECT):
            raise
        return False  # Another keeper was here between our look and our lock.


async def _briefly(
    engine: AsyncEngine, work: Callable[[AsyncConnection], Awaitable[T]]
) -> T | None:
    """Do the work in a transaction that waits for no lock longer than `LOCK_TIMEOUT`.

    Who is refused tries again, and returns None when others had the lock each time.
    """
    for tries_left in reversed(range(TRIES)):
        try:
            async with engine.begin() as tx:
                await tx.execute(sql(f"SET LOCAL lock_timeout = '{LOCK_TIMEOUT}'"))
                return await work(tx)
        except DBAPIError as error:
            if sqlstate_of(error) != _LOCK_NOT_AVAILABLE:
                raise
        if tries_left:
            await asyncio.sleep(PAUSE_SECONDS)
    return None


def _month(today: date, later: int) -> date:
    """Return the first day of the month that comes so many months after today's."""
    year, month = divmod(today.year * 12 + today.month - 1 + later, 12)
    return date(year, month + 1, 1)


def _bound(day: date | None, end: str) -> str:
    return end if day is None else f"'{day}'"
