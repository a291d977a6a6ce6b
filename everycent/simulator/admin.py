"""The admin's API of the simulator: its clock, its faults, its webhook address, its books.

It asks for no key: the simulator is for development and binds to the local machine by default.
"""

import json
from datetime import timedelta
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request
from pydantic import AwareDatetime, BaseModel, ConfigDict, HttpUrl

from everycent import clock
from everycent.simulator import faults, intents
from everycent.simulator.desk import Desk
from everycent.simulator.faults import FaultRule
from everycent.simulator.store import Transaction, as_text, read_clock, write_setting

router = APIRouter(prefix="/admin")


class NewClock(BaseModel):
    """Set the clock (`now`), move it (`advance_seconds`), or with neither follow the wall again."""

    model_config = ConfigDict(extra="forbid")

    now: AwareDatetime | None = None
    advance_seconds: float | None = None


class NewWebhook(BaseModel):
    """Where events are sent (null: nowhere), and the secret they are signed by, if it changes."""

    model_config = ConfigDict(extra="forbid")

    url: HttpUrl | None = None
    secret: str | None = None


@router.get("/clock")
async def show_clock(request: Request) -> dict[str, str]:
    """Return the simulator's time."""
    at = await _desk(request).store.run(read_clock)
    return {"now": as_text(at)}


@router.post("/clock")
async def set_clock(request: Request, wanted: NewClock | None = None) -> dict[str, str]:
    """Set or move the simulator's clock, which goes on ticking; what is due by it happens now."""
    at = await _desk(request).store.run(lambda tx: _set_clock(tx, wanted or NewClock()))
    _wake(request)
    return {"now": at}


@router.post("/webhook")
async def set_webhook(request: Request, wanted: NewWebhook) -> dict[str, str | None]:
    """Say where webhooks go from now on."""
    url = str(wanted.url) if wanted.url else None

    def store(tx: Transaction) -> None:
        write_setting(tx, "webhook_url", url)
        if wanted.secret is not None:
            write_setting(tx, "webhook_secret", wanted.secret)

    await _desk(request).store.run(store)
    _wake(request)
    return {"url": url}


@router.post("/faults")
async def add_fault(request: Request, rule: FaultRule) -> dict[str, int]:
    """Make a rule."""
    return {"id": await _desk(request).store.run(lambda tx: faults.add(tx, rule))}


@router.get("/faults")
async def list_faults(request: Request) -> dict[str, Any]:
    """List the rules, the spent ones too."""
    return {"data": await _desk(request).store.run(lambda tx: _rows(tx, "SELECT * FROM fault"))}


@router.delete("/faults")
async def delete_faults(request: Request) -> dict[str, int]:
    """Delete all rules; held requests stay held."""
    count = await _desk(request).store.run(lambda tx: tx.execute("DELETE FROM fault").rowcount)
    return {"deleted": count}


@router.get("/held")
async def count_held(request: Request) -> dict[str, int]:
    """Say how many requests are held."""
    return {"held": _desk(request).count_held()}


@router.post("/held/release")
async def release_held(request: Request) -> dict[str, int]:
    """Execute the held requests now."""
    return {"released": _desk(request).release_held()}


@router.get("/deliveries")
async def list_deliveries(
    request: Request, after: int = 0, limit: Annotated[int, Query(ge=1, le=1000)] = 100
) -> dict[str, Any]:
    """List what happened to each webhook."""
    sql = "SELECT * FROM delivery WHERE seq > ? ORDER BY seq LIMIT ?"
    return {"data": await _desk(request).store.run(lambda tx: _rows(tx, sql, after, limit))}


@router.get("/events")
async def list_events(
    request: Request, prefix: str, limit: Annotated[int, Query(ge=1, le=1000)] = 1000
) -> dict[str, Any]:
    """List what happened to the payments whose reference begins so, and how each webhook went."""
    return {"data": await _desk(request).store.run(lambda tx: _events(tx, prefix, limit))}


@router.get("/intents")
async def list_intents(
    request: Request,
    reference: str = "*",
    after: int = 0,
    limit: Annotated[int, Query(ge=1, le=5000)] = 1000,
) -> dict[str, Any]:
    """Return the totals, and a page of payments, of the references that match the glob.

    `next` is the `after` of the following page, or null on the last one.
    """
    return await _desk(request).store.run(lambda tx: _audit(tx, reference, after, limit))


def _events(tx: Transaction, prefix: str, limit: int) -> list[dict[str, Any]]:
    rows = _rows(
        tx,
        "SELECT e.body, (SELECT json_group_array(json_object('state', d.state, 'attempts',"
        " d.attempts, 'last_answer', d.last_answer)) FROM delivery d WHERE d.event_id = e.id)"
        " AS webhooks FROM event e WHERE json_extract(e.body, '$.intent.reference') >= ?"
        " AND json_extract(e.body, '$.intent.reference') < ? ORDER BY e.seq LIMIT ?",
        prefix, f"{prefix}\U0010ffff", limit,
    )  # fmt: skip
    return [{**json.loads(row["body"]), "webhooks": json.loads(row["webhooks"])} for row in rows]


def _audit(tx: Transaction, reference: str, after: int, limit: int) -> dict[str, Any]:
    intents.expire_due(tx, read_clock(tx))
    totals = _rows(
        tx,
        "SELECT currency, state, count(*) AS intents, sum(captured_minor) AS captured_minor,"
        " sum(refunded_minor) AS refunded_minor FROM intent WHERE reference GLOB ?"
        " GROUP BY currency, state ORDER BY currency, state",
        reference,
    )
    data = _rows(
        tx,
        "SELECT seq, id, reference, state, currency, amount_minor, captured_minor, refunded_minor"
        " FROM intent WHERE reference GLOB ? AND seq > ? ORDER BY seq LIMIT ?",
        reference, after, limit,
    )  # fmt: skip
    return {
        "totals": totals,
        "captured_minor": sum(row["captured_minor"] for row in totals),
        "refunded_minor": sum(row["refunded_minor"] for row in totals),
        "data": data,
        "next": data[-1]["seq"] if len(data) == limit else None,
    }


def _set_clock(tx: Transaction, wanted: NewClock) -> str:
    now = clock.now()
    target = now
    if wanted.now is not None:
        target = wanted.now
    elif wanted.advance_seconds is not None:
        target = read_clock(tx) + timedelta(seconds=wanted.advance_seconds)
    write_setting(tx, "clock_offset", str((target - now).total_seconds()))
    at = read_clock(tx)
    intents.expire_due(tx, at)
    return as_text(at)


def _rows(tx: Transaction, sql: str, *values: object) -> list[dict[str, Any]]:
    return [dict(row) for row in tx.execute(sql, values).fetchall()]


def _desk(request: Request) -> Desk:
    desk: Desk = request.app.state.desk
    return desk


def _wake(request: Request) -> None:
    _desk(request).wake_deliverer()
