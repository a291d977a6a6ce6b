"""Fences that break design rule 4, for the interleavings to find: test doubles, never product."""

from collections.abc import Sequence
from typing import Any

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from everycent.database import fence
from everycent.database.fence import claim_tries, lock_for_confirm  # Before a test replaces them.
from everycent.domain.fence import FenceState, Proceed, judge_cancel, judge_try


async def cancel_that_selects_first(
    tx: AsyncConnection, table: fence.FenceTable, requests: Sequence[Any]
) -> fence.Claims[Any]:
    """Look for the row, and leave a tombstone only where there was none."""
    unique, reused = fence._each_key_once(table, requests)
    rows = await fence._lock(tx, table, unique)
    await fence._insert(tx, table, [r for r in unique if r.key not in rows], FenceState.CANCELLED)
    verdicts = {
        r.key: judge_cancel(rows[r.key], won=False) if r.key in rows else Proceed() for r in unique
    }
    return fence._claims(unique, rows, verdicts, reused)


async def try_that_selects_first(
    tx: AsyncConnection, table: fence.FenceTable, requests: Sequence[Any]
) -> fence.Claims[Any]:
    """Look for the row, and insert it where there was none."""
    unique, reused = fence._each_key_once(table, requests)
    rows = await fence._lock(tx, table, unique)
    await fence._insert(tx, table, [r for r in unique if r.key not in rows], FenceState.TRIED)
    verdicts = {
        r.key: judge_try(rows[r.key], r, won=False) if r.key in rows else Proceed() for r in unique
    }
    return fence._claims(unique, rows, verdicts, reused)


async def cancel_without_a_tombstone(
    tx: AsyncConnection, table: fence.FenceTable, requests: Sequence[Any]
) -> fence.Claims[Any]:
    """Say yes where there is no row, and leave none."""
    unique, reused = fence._each_key_once(table, requests)
    rows = await fence._lock(tx, table, unique)
    verdicts = {r.key: judge_cancel(rows[r.key], won=False) for r in unique if r.key in rows}
    claims = fence._claims([r for r in unique if r.key in rows], rows, verdicts, reused)
    claims.settled.update(
        {r.key: {"what": "freed", "seats": 0} for r in unique if r.key not in rows}
    )
    return claims


async def confirm_without_a_lock(
    tx: AsyncConnection, table: fence.FenceTable, requests: Sequence[Any]
) -> fence.Claims[Any]:
    """Read the row in a look of its own; whoever has it may be changing it."""
    return await lock_for_confirm(_Reading(tx), table, requests)  # type: ignore[arg-type]


class _Reading:
    """A connection whose locks only look."""

    def __init__(self, tx: AsyncConnection) -> None:
        self._tx = tx

    async def execute(self, statement: Any, parameters: Any) -> Any:
        return await self._tx.execute(text(str(statement).replace(" FOR UPDATE", "")), parameters)


async def claim_one_by_one(
    tx: AsyncConnection, table: fence.FenceTable, requests: Sequence[Any]
) -> fence.Claims[Any]:
    """Claim each key of a batch in the order of the call instead of the keys'."""
    new: list[Any] = []
    rows: dict[str, Any] = {}
    settled: dict[str, Any] = {}
    for request in requests:
        one = await claim_tries(tx, table, [request])
        new += one.new
        rows |= one.rows
        settled |= one.settled
    return fence.Claims(new, rows, settled, {})
