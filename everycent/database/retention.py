"""Remove fence rows that moved nothing and that no late message can ask for any more.

What moved money or stock is a book entry and stays, however old; so do the orders. The others (a
refused or cancelled step, a tombstone, an order id that was withdrawn) are kept
`EVERYCENT_RETENTION__DAYS` after the order's opening, which the start of a worker holds to be
longer than any message can be late.

A table of rows that only age is parted by that day: its old months are dropped, and nothing is
deleted (design rule 16). What is deleted here lies beside book entries in one table.
"""

from dataclasses import dataclass
from datetime import date, timedelta

from sqlalchemy.ext.asyncio import AsyncConnection

from everycent.database.engine import Database, sql
from everycent.database.partitions import AGING, AgingTable, drop_partitions, make_partitions
from everycent.errors import InvalidRequest
from everycent.settings import PoolSettings, ServiceName, Settings

BATCH = 1000
# Old rows are found by reading a table through: of a busy year, not in five seconds.
_HOUR = 3600.0
_UNHURRIED = PoolSettings(
    size=1, statement_timeout_seconds=_HOUR, transaction_timeout_seconds=2 * _HOUR
)


@dataclass(frozen=True)
class _Fence:
    """A fence, what else must hold of a row that goes, and the rows beside it that go with it."""

    table: str
    guard: str = "true"
    beside: str = ""
    key: str = "key"
    settled: str = "state IN ('REFUSED', 'CANCELLED')"


_CALLS = (
    "DELETE FROM provider_call WHERE key IN (SELECT key FROM gone UNION ALL SELECT key || call"
    " FROM gone, unnest(ARRAY['/create', '/confirm', '/capture', '/void']) AS call)"
)
_FENCES: dict[ServiceName, tuple[_Fence, ...]] = {
    "inventory": (
        _Fence(
            "reservation", beside="DELETE FROM reservation_line WHERE key IN (SELECT key FROM gone)"
        ),
    ),
    "payment": (
        _Fence("payment", "captured_minor = 0", beside=_CALLS),
        _Fence("refund", beside=_CALLS),
    ),
    "account": (_Fence("balance_hold"),),
    "points": (_Fence("points_hold"),),
    "ledger": (
        _Fence("transfer", "NOT EXISTS (SELECT FROM transfer_leg AS l WHERE l.key = transfer.key)"),
    ),
    # The last of all: a withdrawn id is free again when what was cancelled under it is gone.
    "order": (_Fence("shop_order", key="tenant, order_id", settled="request IS NULL"),),
}


@dataclass(frozen=True)
class Cleaned:
    """How many rows of a fence were opened before that day and are gone, or would be.

    Of an aging table each old month is told; one that stays says why in `kept`.
    """

    table: str
    before: date
    rows: int
    kept: str = ""


async def clean(settings: Settings, *, today: date, dry_run: bool = False) -> list[Cleaned]:
    """Remove what is over as the owners of the databases; a worker may delete nothing.

    Nothing that was opened since the oldest unfinished order goes. A row that somebody has locked
    is left for the next time, so that this waits for nobody and can be part of no deadlock.
    """
    if settings.retention.days is None:
        raise InvalidRequest("every row is kept; set EVERYCENT_RETENTION__DAYS to remove old ones")
    missing = [service for service in _FENCES if service not in settings.owner]
    if missing:
        names = ", ".join(f"EVERYCENT_OWNER__{service.upper()}" for service in missing)
        raise InvalidRequest(f"cleaning needs the owners' DSNs; missing: {names}")
    before = today - timedelta(days=settings.retention.days)
    oldest = await _oldest_unfinished(settings.owner["order"])
    before = min(before, oldest or before)
    rows = [
        Cleaned(fence.table, before, await _clean(settings.owner[service], fence, before, dry_run))
        for service, fences in _FENCES.items()
        for fence in fences
    ]
    months = [
        cleaned
        for service, tables in AGING.items()
        for table in tables
        for cleaned in await _turn(settings.owner[service], table, before, today, dry_run)
    ]
    return [*rows, *months]


async def _oldest_unfinished(dsn: str) -> date | None:
    database = _owner(dsn)
    try:
        async with database.snapshot() as tx:
            found: date | None = await tx.scalar(
                sql(
                    "SELECT min(opened_on) FROM shop_order"
                    " WHERE decision IN ('OPEN', 'COMMITTING', 'ABORTING')"
                )
            )
            return found
    finally:
        await database.close()


async def _turn(
    dsn: str, table: AgingTable, before: date, today: date, dry_run: bool
) -> list[Cleaned]:
    """Make the next months of an aging table and drop the old ones."""
    database = _owner(dsn)
    try:
        if not dry_run:
            await make_partitions(database.engine, table, today=today)
        months = await drop_partitions(database.engine, table, before=before, dry_run=dry_run)
        return [Cleaned(month.name, before, month.rows, month.kept) for month in months]
    finally:
        await database.close()


async def _clean(dsn: str, fence: _Fence, before: date, dry_run: bool) -> int:
    database, total = _owner(dsn), 0
    try:
        if dry_run:
            async with database.snapshot() as tx:
                statement = f"SELECT count(*) FROM {fence.table} WHERE {_over(fence)}"
                return int(await tx.scalar(sql(statement), {"before": before}) or 0)
        while True:
            async with database.transaction() as tx:
                rows = await remove(tx, fence, before=before, limit=BATCH)
            total += rows
            if rows < BATCH:
                return total
    finally:
        await database.close()


async def remove(tx: AsyncConnection, fence: _Fence, *, before: date, limit: int) -> int:
    """Remove up to `limit` rows that are over and free, with what lies beside them."""
    beside = f", beside AS ({fence.beside})" if fence.beside else ""
    rows = await tx.scalar(
        sql(
            f"WITH gone AS (DELETE FROM {fence.table} WHERE ({fence.key}) IN"
            f" (SELECT {fence.key} FROM {fence.table}"
            f" WHERE {_over(fence)} LIMIT :limit FOR UPDATE SKIP LOCKED)"
            f" RETURNING {fence.key}){beside} SELECT count(*) FROM gone"
        ),
        {"before": before, "limit": limit},
    )
    return int(rows or 0)


def _over(fence: _Fence) -> str:
    return f"{fence.settled} AND opened_on < :before AND {fence.guard}"


def _owner(dsn: str) -> Database:
    return Database(dsn, _UNHURRIED, name="everycent clean")
