"""The breaks of reconciliation in SQL: found once, pending while young, then a case each."""

import json
from collections.abc import Sequence
from datetime import timedelta
from typing import Any

from sqlalchemy import Row
from sqlalchemy.ext.asyncio import AsyncConnection

from everycent.database.engine import sql
from everycent.database.repair_case import park_step, settle_case
from everycent.domain.order import ParkStep, SettleCase
from everycent.domain.reconciliation import (
    OWNER,
    PROPOSALS,
    STEP,
    Break,
    BreakKind,
    NoteBreaks,
    Noted,
)
from everycent.errors import EverycentError


async def note_breaks(
    tx: AsyncConnection, requests: Sequence[NoteBreaks], *, tell: Sequence[str] = ()
) -> list[Noted | EverycentError]:
    """Write each run's part down; a part that comes again finds everything as it left it.

    `tell` are the other systems that hear of a break that becomes a case.
    """
    return [await _note(tx, request, tell) for request in requests]


async def _note(tx: AsyncConnection, request: NoteBreaks, tell: Sequence[str]) -> Noted:
    found = sorted(request.found, key=lambda each: each.key.encode())
    stored = await _write_found(tx, request, found)
    grace = timedelta(seconds=request.grace_seconds)
    due = [
        each
        for each in found
        if each.is_due(
            request.at, grace, looks=stored[each.key].looks, most_looks=request.most_looks
        )
    ]
    await park_step(tx, [_case(request, each) for each in due], tell=tell)
    closed = await _close(tx, request)
    if request.whole is not None:
        await _write_statement(tx, request)
    opened = {each.key for each in due}
    return Noted(
        opened=tuple(sorted(opened)),
        pending=tuple(each.key for each in found if each.key not in opened),
        closed=tuple(closed),
    )


async def _write_found(
    tx: AsyncConnection, request: NoteBreaks, found: Sequence[Break]
) -> dict[str, Row[Any]]:
    """Insert what is new, count a look for what is known; one run counts once."""
    result = await tx.execute(
        sql(
            "INSERT INTO statement_break AS b (key, tenant, order_id, kind, movement, reference,"
            " line, booked, says, happened_at, found_at, run)"
            " SELECT key, tenant, order_id, kind, movement, reference, line::jsonb, booked::jsonb,"
            " says, happened_at, CAST(:at AS timestamptz), CAST(:run AS text)"
            " FROM unnest(CAST(:keys AS text[]), CAST(:tenants AS text[]), CAST(:orders AS text[]),"
            " CAST(:kinds AS text[]), CAST(:movements AS text[]), CAST(:references AS text[]),"
            " CAST(:lines AS text[]), CAST(:books AS text[]), CAST(:said AS text[]),"
            " CAST(:times AS timestamptz[])) AS new (key, tenant, order_id, kind, movement,"
            ' reference, line, booked, says, happened_at) ORDER BY key COLLATE "C"'
            " ON CONFLICT (key) DO UPDATE SET line = excluded.line, booked = excluded.booked,"
            " says = excluded.says, happened_at = excluded.happened_at, gone_at = NULL,"
            " looks = b.looks + CASE WHEN b.run = excluded.run THEN 0 ELSE 1 END,"
            " run = excluded.run RETURNING key, looks"
        ),
        {
            "at": request.at,
            "run": request.run,
            "keys": [each.key for each in found],
            "tenants": [each.tenant for each in found],
            "orders": [each.order_id for each in found],
            "kinds": [each.kind.value for each in found],
            "movements": [each.movement for each in found],
            "references": [each.reference for each in found],
            "lines": [_json(each.line) for each in found],
            "books": [_json(each.booked) for each in found],
            "said": [each.says for each in found],
            "times": [each.at for each in found],
        },
    )
    return {row.key: row for row in result}


def _json(side: Any) -> str | None:
    return None if side is None else json.dumps(side.model_dump(mode="json"))


def _case(request: NoteBreaks, each: Break) -> ParkStep:
    return ParkStep(
        tenant=each.tenant,
        order_id=each.order_id,
        at=request.at,
        case_key=each.key,
        step=STEP,
        error_class=each.kind,
        error=f"{each.reference}: {each.says}",
        owner=OWNER,
        proposals=PROPOSALS[BreakKind(each.kind)],
    )


async def _close(tx: AsyncConnection, request: NoteBreaks) -> list[str]:
    """Note that these are none any more; who has a case of one finds it closed, with the reason."""
    locked = await tx.execute(
        sql(
            "SELECT key, tenant, order_id FROM statement_break WHERE gone_at IS NULL"
            ' AND key = ANY(CAST(:keys AS text[])) ORDER BY key COLLATE "C" FOR NO KEY UPDATE'
        ),
        {"keys": list(request.gone)},
    )
    rows = locked.all()
    await tx.execute(
        sql(
            "UPDATE statement_break SET gone_at = :at, run = :run"
            " WHERE key = ANY(CAST(:keys AS text[]))"
        ),
        {"keys": [row.key for row in rows], "at": request.at, "run": request.run},
    )
    settled = [
        SettleCase(
            tenant=row.tenant,
            order_id=row.order_id,
            at=request.at,
            case_key=row.key,
            by="everycent",
            reason=f"both sides agree, found by {request.by} in {request.run}",
            by_hand=False,
        )
        for row in rows
    ]
    await settle_case(tx, settled)  # One that was pending has no case, and needs none.
    return [row.key for row in rows]


async def _write_statement(tx: AsyncConnection, request: NoteBreaks) -> None:
    assert request.whole is not None, "the statement was not read to its end"
    await tx.execute(
        sql(
            "INSERT INTO statement (tenant, digest, name, lines, begins_at, ends_at, read_at,"
            " read_by) VALUES (:tenant, :digest, :name, :lines, :begins_at, :ends_at, :read_at,"
            " :read_by) ON CONFLICT (tenant, digest) DO NOTHING"
        ),
        {
            "tenant": request.tenant,
            **request.whole.model_dump(),
            "read_at": request.at,
            "read_by": request.by,
        },
    )
