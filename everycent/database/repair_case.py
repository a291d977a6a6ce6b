"""The repair cases of parked steps in SQL."""

import json
from collections.abc import Sequence
from typing import Any

from sqlalchemy import Row
from sqlalchemy.ext.asyncio import AsyncConnection

from everycent.database.engine import sql
from everycent.database.outbox import publish
from everycent.domain.events import CASE_PARKED, CaseParked, event_of
from everycent.domain.messaging import NOTIFY, Event
from everycent.domain.order import CaseSettled, Parked, ParkStep, SettleCase
from everycent.errors import Bug, EverycentError


async def park_step(
    tx: AsyncConnection, requests: Sequence[ParkStep], *, tell: Sequence[str] = ()
) -> list[Parked | EverycentError]:
    """Open a repair case per step, or count one more failure; one settled by hand stays settled.

    `tell` are the other systems that hear of a case that opens, once each time it does.
    """
    opened = await tx.execute(
        sql(
            "INSERT INTO repair_case AS c (case_key, tenant, order_id, step, error_class, error,"
            " proposals, owner, opened_at, failed_at)"
            " SELECT key, tenant, order_id, step, error_class, error, proposals::jsonb, owner,"
            " at, at FROM unnest(CAST(:keys AS text[]), CAST(:tenants AS text[]),"
            " CAST(:ids AS text[]), CAST(:steps AS text[]), CAST(:classes AS text[]),"
            " CAST(:errors AS text[]), CAST(:proposals AS text[]), CAST(:owners AS text[]),"
            " CAST(:ats AS timestamptz[]))"
            " AS new (key, tenant, order_id, step, error_class, error, proposals, owner, at)"
            ' ORDER BY key COLLATE "C"'
            " ON CONFLICT (case_key) DO UPDATE SET attempts = c.attempts + 1, state = 'OPEN',"
            " opened_attempt = CASE WHEN c.state = 'OPEN' THEN c.opened_attempt"
            " ELSE c.attempts + 1 END,"
            " error_class = excluded.error_class, error = excluded.error,"
            " failed_at = excluded.failed_at"
            " WHERE NOT c.by_hand AND excluded.failed_at > c.failed_at"
            " RETURNING case_key, attempts, attempts = opened_attempt AS opens"
        ),
        {
            "tenants": [r.tenant for r in requests],
            "ids": [r.order_id for r in requests],
            "keys": [r.case_key for r in requests],
            "steps": [r.step for r in requests],
            "classes": [r.error_class for r in requests],
            "errors": [r.error for r in requests],
            "proposals": [json.dumps(r.proposals) for r in requests],
            "owners": [r.owner for r in requests],
            "ats": [r.at for r in requests],
        },
    )
    opening = {row.case_key: row.attempts for row in opened if row.opens}
    if tell:
        said = [_parked(r, opening[r.case_key], tell) for r in requests if r.case_key in opening]
        await publish(tx, said)
    cases = await _cases(tx, [r.case_key for r in requests])
    return [Parked(settled_by_hand=cases[r.case_key].by_hand) for r in requests]


def _parked(request: ParkStep, attempt: int, tell: Sequence[str]) -> Event:
    said = CaseParked.model_validate(request.model_dump())
    return event_of(
        CASE_PARKED,
        said,
        key=f"{request.case_key}/{CASE_PARKED.name}/{attempt}",
        opened_on=request.at.date(),
        at=request.at,
        to=tuple(f"{NOTIFY}{name}" for name in tell),
    )


async def settle_case(
    tx: AsyncConnection, requests: Sequence[SettleCase]
) -> list[CaseSettled | EverycentError]:
    """Close each case with who and why; the first one stays on record and is the answer to all."""
    ordered = sorted(requests, key=lambda r: r.case_key.encode())
    await tx.execute(
        sql(
            "UPDATE repair_case AS c SET state = 'RESOLVED', resolved_at = new.at,"
            " resolved_by = new.by, resolution = new.reason, by_hand = new.by_hand"
            " FROM unnest(CAST(:keys AS text[]), CAST(:by AS text[]), CAST(:reasons AS text[]),"
            " CAST(:hands AS boolean[]), CAST(:ats AS timestamptz[]))"
            " AS new (key, by, reason, by_hand, at)"
            " WHERE c.case_key = new.key AND c.state = 'OPEN'"
        ),
        {
            "keys": [r.case_key for r in ordered],
            "by": [r.by for r in ordered],
            "reasons": [r.reason for r in ordered],
            "hands": [r.by_hand for r in ordered],
            "ats": [r.at for r in ordered],
        },
    )
    cases = await _cases(tx, [r.case_key for r in requests])
    return [
        CaseSettled(by=cases[r.case_key].resolved_by, reason=cases[r.case_key].resolution)
        if r.case_key in cases
        else Bug(f"there is no case {r.case_key}")
        for r in requests
    ]


async def _cases(tx: AsyncConnection, keys: Sequence[str]) -> dict[str, Row[Any]]:
    result = await tx.execute(
        sql(
            "SELECT case_key, resolved_by, resolution, by_hand FROM repair_case"
            " WHERE case_key = ANY(CAST(:keys AS text[]))"
        ),
        {"keys": list(keys)},
    )
    return {row.case_key: row for row in result}
