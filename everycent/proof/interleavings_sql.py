"""The fence of `fence.sql`, as a service in any language uses it: interleaved like our own."""

import json
from collections.abc import Sequence
from typing import Any

from sqlalchemy.ext.asyncio import AsyncConnection

from everycent.database.engine import sql
from everycent.domain.message import StepRequest, request_hash
from everycent.errors import by_name
from everycent.proof.interleavings_kinds import UNITS, Kind
from everycent.proof.interleavings_rows import SEATS, SeatsDone, move_seats
from everycent.proof.interleavings_session import Point

_MOVES = {"try": (-1, 1, 0), "confirm": (0, -1, 1), "cancel": (1, -1, 0)}
_FINISH = {"try": "hold", "confirm": "confirm", "cancel": "cancel"}


def _operation(name: str) -> Any:
    async def operate(tx: AsyncConnection, requests: Sequence[StepRequest]) -> list[Any]:
        said: dict[str, Any] = {}
        todo: dict[str, tuple[StepRequest, Any]] = {}
        for request in sorted(requests, key=lambda r: r.key):
            verdict, answer = await _claim(tx, name, request)
            if verdict == "proceed":
                todo[request.key] = request, answer
            else:
                error = by_name(verdict)
                said[request.key] = error(request.key) if error else answer
        free, held, sold = _MOVES[name]
        areas = [(r.tenant, _area(r, answer)) for r, answer in todo.values() if _area(r, answer)]
        await move_seats(tx, areas, free=free, held=held, sold=sold)
        for key, (request, answer) in todo.items():
            said[key] = {
                "area": _area(request, answer), "what": name,
                "seats": UNITS if _area(request, answer) else 0,
            }  # fmt: skip
            await tx.execute(
                sql("SELECT fence_finish(:operation, :key, CAST(:answer AS jsonb), :at)"),
                {
                    "operation": _FINISH[name],
                    "key": key,
                    "answer": json.dumps(said[key]),
                    "at": request.at,
                },
            )
        return [_told(said[request.key]) for request in requests]

    return operate


async def _claim(tx: AsyncConnection, name: str, request: StepRequest) -> tuple[str, Any]:
    values = {"key": request.key, "day": request.opened_on, "at": request.at}
    if name == "cancel":
        statement = "SELECT verdict, answer FROM fence_tombstone(:key, :day, :at, 'given up')"
    else:
        statement = "SELECT verdict, answer FROM fence_claim(:operation, :key, :hash, :day, :at)"
        hash_ = request_hash(request, request.HASHED) if name == "try" else None
        values |= {"operation": name, "hash": hash_}
    row = (await tx.execute(sql(statement), values)).one()
    return row.verdict, row.answer


def _area(request: StepRequest, answer: Any) -> str:
    """Return what a Try names, and what the row of a Confirm or Cancel holds, if anything."""
    named = getattr(request, "area", None) or (answer or {}).get("area")
    return str(named) if named else ""


def _told(said: Any) -> Any:
    if isinstance(said, Exception):
        return said
    return SeatsDone(what=said["what"], seats=said["seats"])


_POINTS = (Point.LOCK, Point.EFFECT, Point.END)  # A claim inserts and locks in one call.

FENCE_SQL = Kind(
    name="fence.sql",
    service=None,
    table="fence",
    operations={name: _operation(name) for name in ("try", "confirm", "cancel")},
    request=SEATS.request,
    prepare=SEATS.prepare,
    parts=SEATS.parts,
    points={"try": _POINTS, "confirm": _POINTS, "cancel": _POINTS},
    key_by_key=True,
)
