"""An aging fence of a test's own: its requests, and how to make and fill it."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import date
from typing import Any

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from everycent.database import fence
from everycent.database.engine import Database
from everycent.database.fence_ddl import fence_table
from everycent.database.partitions import AgingTable, partitions_of
from everycent.domain.fence import FenceState
from everycent.domain.message import Message, StepRequest
from tests.conftest import NOON

SEEN = fence.FenceTable("seen_hold", aging=True)
TABLE = AgingTable(SEEN.name)


class Hold(StepRequest):
    """Try."""

    HASHED = ("what",)

    what: str = "x"


class End(StepRequest):
    """Confirm, or Cancel."""

    reason: str = "given up"


class Done(Message):
    """What became of it."""

    text: str


def hold(key: str, day: date, what: str = "x") -> Hold:
    return Hold(key=key, at=NOON, opened_on=day, what=what)


def end(key: str, day: date) -> End:
    return End(key=key, at=NOON, opened_on=day)


async def try_(tx: AsyncConnection, requests: list[Hold]) -> dict[str, Any]:
    """Try; return what stands against the requests that are not new, by key."""
    claims = await fence.claim_tries(tx, SEEN, requests)
    fresh = {r.key: Done(text="held") for r in claims.new}
    await fence.store_tries(tx, SEEN, fresh, requests=claims.new)
    return {**claims.settled, **{requests[i].key: error for i, error in claims.refused.items()}}


async def confirm(tx: AsyncConnection, requests: list[End]) -> dict[str, Any]:
    claims = await fence.lock_for_confirm(tx, SEEN, requests)
    fresh = {r.key: Done(text="confirmed") for r in claims.new}
    await fence.store_ends(tx, SEEN, claims.new, fresh, state=FenceState.CONFIRMED)
    return claims.settled


async def cancel(tx: AsyncConnection, requests: list[End]) -> dict[str, Any]:
    claims = await fence.claim_cancels(tx, SEEN, requests)
    fresh = {r.key: Done(text="cancelled") for r in claims.new}
    await fence.store_ends(tx, SEEN, claims.new, fresh, state=FenceState.CANCELLED)
    return claims.settled


@asynccontextmanager
async def table_of(owner: Database, *, worker: str = "") -> AsyncIterator[None]:
    """Make the table as a migration would, for as long as a test needs it."""
    async with owner.transaction() as tx:
        for statement in fence_table(SEEN.name, aging=True):
            await tx.execute(text(statement))
        if worker:
            await tx.execute(text(f"GRANT SELECT, INSERT, UPDATE ON {SEEN.name} TO {worker}"))
    try:
        yield
    finally:
        async with owner.transaction() as tx:
            await tx.execute(text(f"DROP TABLE {SEEN.name} CASCADE"))
            await tx.execute(text(f"DROP FUNCTION {SEEN.name}_arrows()"))


async def fill(owner: Database, months: list[date], rows: int) -> None:
    """Put so many settled rows on the days of each month, in one statement."""
    async with owner.transaction() as tx:
        await tx.execute(
            text(
                f"INSERT INTO {SEEN.name} (key, opened_on, state, end_answer)"
                " SELECT 'shop/o-' || n || '/' || month, month + n % 28, 'CANCELLED', '{}'"
                " FROM unnest(CAST(:months AS date[])) AS month,"
                " generate_series(1, CAST(:rows AS int)) AS n"
            ),
            {"months": months, "rows": rows},
        )


async def rows_of(owner: Database) -> dict[str, int]:
    """Return how many rows each partition has, the oldest first."""
    async with owner.transaction() as tx:
        parts = await partitions_of(tx, TABLE)
        return {
            part.name: int(await tx.scalar(text(f"SELECT count(*) FROM {part.name}")) or 0)
            for part in parts
        }
