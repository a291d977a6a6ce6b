"""The one decision of a transaction that has no order's row, in SQL (design rule 7).

For the flows of users: one row per xid in a table made by `decision_ddl.decision_table`. The order
of the statements is the fence's: insert what is not there, lock in key order, judge, write guarded.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import Row
from sqlalchemy.ext.asyncio import AsyncConnection

from everycent.database.engine import sql
from everycent.database.fence import assert_all_written
from everycent.domain.decision import (
    CloseDecision,
    DecisionRequest,
    DecisionStands,
    MoveDecision,
    moved,
)
from everycent.domain.order import Decision
from everycent.errors import Bug, EverycentError

DECISION = "decision"
Move = tuple[DecisionRequest, Decision, DecisionStands]  # What moves it, from where, to what.


async def settle_decisions(
    tx: AsyncConnection, requests: Sequence[DecisionRequest], *, table: str = DECISION
) -> list[DecisionStands | EverycentError]:
    """Begin, move or close each transaction, and answer with the decision that stands afterwards.

    Two drivers of one transaction get the same answer: whoever comes second adopts the first.
    Closing one that nobody has decided is a Bug; nothing is written for it.
    """
    await _insert(tx, table, [r for r in requests if not isinstance(r, CloseDecision)])
    rows = await _lock(tx, table, sorted({r.key for r in requests}, key=str.encode))
    moves: dict[str, Move] = {}
    answers: list[DecisionStands | EverycentError] = []
    for request in requests:
        stands = rows.get(request.key)
        undecided = stands is None or stands.decision is Decision.OPEN
        if stands is None or (undecided and isinstance(request, CloseDecision)):
            answers.append(Bug(f"{request.key} is closed and was never decided"))
            continue
        rows[request.key] = after = moved(stands, request)
        if after != stands:
            assert request.key not in moves, f"{request.key} moves twice in a batch"
            moves[request.key] = (request, stands.decision, after)
        answers.append(after)
    await _store(tx, table, moves)
    return answers


async def _insert(tx: AsyncConnection, table: str, requests: Sequence[DecisionRequest]) -> None:
    await tx.execute(
        sql(
            f"INSERT INTO {table} (key, driver, opened_at) SELECT key, driver, opened_at"
            " FROM unnest(CAST(:keys AS text[]), CAST(:drivers AS text[]),"
            " CAST(:ats AS timestamptz[])) AS new (key, driver, opened_at)"
            ' ORDER BY key COLLATE "C" ON CONFLICT (key) DO NOTHING'
        ),
        {
            "keys": [r.key for r in requests],
            "drivers": [r.driver for r in requests],
            "ats": [r.at for r in requests],
        },
    )


async def _lock(tx: AsyncConnection, table: str, keys: Sequence[str]) -> dict[str, DecisionStands]:
    """Lock and read rows in key order, in a statement of its own: it must see the winner's row."""
    result = await tx.execute(
        sql(
            f"SELECT key, decision, reason, driver FROM {table}"
            ' WHERE key = ANY(CAST(:keys AS text[])) ORDER BY key COLLATE "C" FOR NO KEY UPDATE'
        ),
        {"keys": list(keys)},
    )
    return {row.key: _stands(row) for row in result}


def _stands(row: Row[Any]) -> DecisionStands:
    return DecisionStands(decision=Decision(row.decision), reason=row.reason, driver=row.driver)


async def _store(tx: AsyncConnection, table: str, moves: Mapping[str, Move]) -> None:
    if not moves:
        return
    each = list(moves.values())
    result = await tx.execute(
        sql(
            f"UPDATE {table} AS d SET decision = new.decision, reason = new.reason,"
            " pivot_refusal = coalesce(new.refusal::jsonb, d.pivot_refusal),"
            " decided_at = coalesce(new.decided_at, d.decided_at), closed_at = new.closed_at"
            " FROM unnest(CAST(:keys AS text[]), CAST(:were AS text[]),"
            " CAST(:decisions AS text[]), CAST(:reasons AS text[]), CAST(:refusals AS text[]),"
            " CAST(:decided AS timestamptz[]), CAST(:closed AS timestamptz[]))"
            " AS new (key, was, decision, reason, refusal, decided_at, closed_at)"
            " WHERE d.key = new.key AND d.decision = new.was"
        ),
        {
            "keys": list(moves),
            "were": [was for _, was, _ in each],
            "decisions": [after.decision for _, _, after in each],
            "reasons": [after.reason for _, _, after in each],
            "refusals": [_refusal(request) for request, _, _ in each],
            "decided": [r.at if isinstance(r, MoveDecision) else None for r, _, _ in each],
            "closed": [r.at if isinstance(r, CloseDecision) else None for r, _, _ in each],
        },
    )
    assert_all_written(result, len(moves))


def _refusal(request: DecisionRequest) -> str | None:
    refusal = request.pivot_refusal if isinstance(request, MoveDecision) else None
    return None if refusal is None else json.dumps(refusal)
