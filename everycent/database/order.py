"""The order's row, its decision, its payment attempts and its repair cases in SQL."""

import json
from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import Any

from sqlalchemy import Row
from sqlalchemy.ext.asyncio import AsyncConnection

from everycent.database import extension
from everycent.database.engine import sql
from everycent.database.fence import assert_all_written
from everycent.domain.message import HASH_VERSION, OrderRequest, request_hash
from everycent.domain.mode import Mode
from everycent.domain.order import (
    MAX_ATTEMPTS,
    PAYMENTS,
    AddAttempt,
    AttemptAdded,
    AttemptAnswer,
    AttemptRefused,
    CloseOrder,
    Decide,
    Decision,
    Marked,
    MarkOrder,
    OpenAnswer,
    OpenedOrder,
    OpenOrder,
    OrderDiffers,
    OrderResult,
    OrderStatus,
    Verdict,
    differing_fields,
    move,
)
from everycent.domain.withdrawal import OrderWithdrawn
from everycent.errors import Bug, EverycentError

OrderId = tuple[str, str]  # (tenant, order_id)

_THESE = (
    "(tenant, order_id) IN (SELECT * FROM unnest(CAST(:tenants AS text[]), CAST(:ids AS text[])))"
)
_IN_ORDER = 'ORDER BY tenant COLLATE "C", order_id COLLATE "C"'


async def open_order(
    tx: AsyncConnection, requests: Sequence[OpenOrder]
) -> list[OpenAnswer | EverycentError]:
    """Write each order down once; whoever comes again gets the order as far as it has come.

    The same id with another body is refused and names the fields that differ (design rule 14).
    """
    first = {_id(r.order): r for r in reversed(requests)}
    won = await _insert_orders(tx, [first[key] for key in sorted(first)])
    await _insert_first_attempts(tx, [first[key] for key in won])
    rows = await _rows(tx, list(first))
    shared = {_id(r.order) for r in requests if _is_shared(rows[_id(r.order)], r.run)}
    await _note_shared(tx, [key for key in shared if not rows[key].shared])
    attempts = await _attempts_of(tx, list(first))
    return [
        _opened(rows[key], attempts.get(key, ()), r, shared=key in shared)
        for r, key in ((r, _id(r.order)) for r in requests)
    ]


async def decide(tx: AsyncConnection, requests: Sequence[Decide]) -> list[Verdict | EverycentError]:
    """Move each order's decision if it may move, and answer with the one that stands afterwards."""
    rows = await _rows(tx, [_id(r) for r in requests], lock="FOR NO KEY UPDATE")
    standing = {key: _verdict(row) for key, row in rows.items()}
    moved: dict[OrderId, Decide] = {}
    for request in requests:
        key = _id(request)
        if key not in standing:
            continue
        if _is_shared(rows[key], request.run):
            standing[key] = standing[key].model_copy(update={"shared": True})
        after = move(standing[key], request)
        if after != standing[key]:
            moved[key] = request
        standing[key] = after
    await _store_decisions(tx, moved, standing)
    return [standing.get(_id(r)) or _unknown(r) for r in requests]


async def close_order(
    tx: AsyncConnection, requests: Sequence[CloseOrder], *, tell: Sequence[str] = ()
) -> list[OrderResult | EverycentError]:
    """Store how each order ended; the first result stays and is the answer to everybody after.

    What follows an order of the mixed mode, and what `tell` hears of it, stands in the outbox then.
    """
    rows = await _rows(tx, [_id(r) for r in requests], lock="FOR NO KEY UPDATE")
    fresh = {_id(r): r for r in requests if _id(r) in rows and rows[_id(r)].result is None}
    result = await tx.execute(
        sql(
            "UPDATE shop_order AS o SET decision = new.decision, status = new.status,"
            " result = new.result::jsonb, reason = new.reason, waits_for = 'nothing',"
            " closed_at = new.at, moved_at = new.at"
            " FROM unnest(CAST(:tenants AS text[]), CAST(:ids AS text[]),"
            " CAST(:decisions AS text[]), CAST(:statuses AS text[]), CAST(:reasons AS text[]),"
            " CAST(:results AS text[]), CAST(:ats AS timestamptz[]))"
            " AS new (tenant, order_id, decision, status, reason, result, at)"
            " WHERE o.tenant = new.tenant AND o.order_id = new.order_id AND o.result IS NULL"
        ),
        {
            **_ids(fresh),
            "decisions": [r.result.decision for r in fresh.values()],
            "statuses": [r.result.status for r in fresh.values()],
            "reasons": [r.result.reason for r in fresh.values()],
            "results": [r.result.model_dump_json() for r in fresh.values()],
            "ats": [r.at for r in fresh.values()],
        },
    )
    assert_all_written(result, len(fresh))
    mixed = [key for key in fresh if rows[key].mode == Mode.MIXED]
    attempts = await _attempts_of(tx, mixed) if mixed else {}
    ends = [(rows[key], attempts.get(key, ()), fresh[key]) for key in mixed]
    await extension.tell(tx, ends, others=tell)
    return [
        fresh[_id(r)].result
        if _id(r) in fresh
        else OrderResult.model_validate(rows[_id(r)].result)
        if _id(r) in rows
        else _unknown(r)
        for r in requests
    ]


async def mark_order(
    tx: AsyncConnection, requests: Sequence[MarkOrder]
) -> list[Marked | EverycentError]:
    """Say what each unfinished order waits for; a final order stays as it is."""
    result = await tx.execute(
        sql(
            "UPDATE shop_order AS o SET waits_for = new.waits_for,"
            " status = coalesce(new.status, o.status), moved_at = new.at"
            " FROM unnest(CAST(:tenants AS text[]), CAST(:ids AS text[]),"
            " CAST(:waits AS text[]), CAST(:statuses AS text[]), CAST(:ats AS timestamptz[]))"
            " AS new (tenant, order_id, waits_for, status, at)"
            " WHERE o.tenant = new.tenant AND o.order_id = new.order_id AND o.result IS NULL"
            " RETURNING o.tenant, o.order_id"
        ),
        {
            **_ids([_id(r) for r in requests]),
            "waits": [r.waits_for for r in requests],
            "statuses": [r.status for r in requests],
            "ats": [r.at for r in requests],
        },
    )
    changed = {(row.tenant, row.order_id) for row in result}
    return [Marked(changed=_id(r) in changed) for r in requests]


async def add_attempt(
    tx: AsyncConnection, requests: Sequence[AddAttempt]
) -> list[AttemptAnswer | EverycentError]:
    """Write a payment attempt down before it is made; a repeat is told the number it has."""
    rows = await _rows(tx, [_id(r) for r in requests], lock="FOR NO KEY UPDATE")
    known = await _attempts_of(tx, list(rows))
    answers: list[AttemptAnswer | EverycentError] = []
    for request in requests:
        key = _id(request)
        if key not in rows:
            answers.append(_unknown(request))
            continue
        attempts = known.setdefault(key, [])
        answer = _next_attempt(rows[key], attempts, request)
        if isinstance(answer, AttemptAdded) and answer.number > len(attempts):
            await _insert_attempts(tx, [(request, answer.number)])
            attempts.append(request.payment)
        answers.append(answer)
    return answers


def _id(request: Any) -> OrderId:
    return (request.tenant, request.order_id)


def _ids(keys: Any) -> dict[str, list[str]]:
    return {"tenants": [tenant for tenant, _ in keys], "ids": [order_id for _, order_id in keys]}


def _unknown(request: OrderRequest) -> Bug:
    return Bug(f"there is no order {request.tenant}/{request.order_id}")


async def _insert_orders(tx: AsyncConnection, requests: Sequence[OpenOrder]) -> list[OrderId]:
    """Insert what is not there yet, in key order, and return the ids that we made."""
    orders = [r.order for r in requests]
    result = await tx.execute(
        sql(
            "INSERT INTO shop_order (tenant, order_id, customer, currency, total_minor, request,"
            " request_hash, hash_version, mode, driver, run, opened_at, opened_on, window_ends_at,"
            " moved_at)"
            " SELECT tenant, order_id, customer, currency, total, request::jsonb, hash,"
            " CAST(:version AS smallint), mode, driver, run, at,"
            " (at AT TIME ZONE 'UTC')::date, ends, at"
            " FROM unnest(CAST(:tenants AS text[]), CAST(:ids AS text[]),"
            " CAST(:customers AS text[]), CAST(:currencies AS text[]), CAST(:totals AS bigint[]),"
            " CAST(:requests AS text[]), CAST(:hashes AS text[]), CAST(:modes AS text[]),"
            " CAST(:drivers AS text[]), CAST(:runs AS text[]), CAST(:ats AS timestamptz[]),"
            " CAST(:ends AS timestamptz[]))"
            " AS new (tenant, order_id, customer, currency, total, request, hash, mode, driver,"
            f" run, at, ends) {_IN_ORDER} ON CONFLICT (tenant, order_id) DO NOTHING"
            " RETURNING tenant, order_id"
        ),
        {
            **_ids([_id(order) for order in orders]),
            "version": HASH_VERSION,
            "customers": [order.customer for order in orders],
            "currencies": [order.currency for order in orders],
            "totals": [order.total_minor for order in orders],
            "requests": [order.model_dump_json() for order in orders],
            "hashes": [request_hash(order, order.HASHED) for order in orders],
            "modes": [order.mode or Mode.SAGA for order in orders],
            "drivers": [r.driver for r in requests],
            "runs": [r.run for r in requests],
            "ats": [r.at for r in requests],
            "ends": [r.at + timedelta(seconds=r.order.payment_window_seconds) for r in requests],
        },
    )
    return [(row.tenant, row.order_id) for row in result]


def _is_shared(row: Row[Any], run: str) -> bool:
    """Tell whether a run other than the one that made the order's row has to do with it."""
    return bool(row.shared or row.run != run)


async def _note_shared(tx: AsyncConnection, keys: Sequence[OrderId]) -> None:
    """Mark orders that a second run has opened: whoever undoes them undoes every step."""
    if not keys:
        return
    locked = await _rows(tx, keys, lock="FOR NO KEY UPDATE")
    await tx.execute(sql(f"UPDATE shop_order SET shared = true WHERE {_THESE}"), _ids(locked))


async def _insert_first_attempts(tx: AsyncConnection, requests: Sequence[OpenOrder]) -> None:
    firsts = [
        AddAttempt(
            tenant=r.order.tenant, order_id=r.order.order_id, at=r.at, payment=r.order.payment
        )
        for r in requests
        if r.order.payment is not None and r.order.due_minor > 0
    ]
    await _insert_attempts(tx, [(first, 1) for first in firsts])


async def _insert_attempts(tx: AsyncConnection, attempts: Sequence[tuple[AddAttempt, int]]) -> None:
    if not attempts:
        return
    await tx.execute(
        sql(
            "INSERT INTO payment_attempt (tenant, order_id, request_id, number, payment, added_at)"
            " SELECT tenant, order_id, request_id, number, payment::jsonb, at"
            " FROM unnest(CAST(:tenants AS text[]), CAST(:ids AS text[]),"
            " CAST(:requests AS text[]), CAST(:numbers AS smallint[]),"
            " CAST(:payments AS text[]), CAST(:ats AS timestamptz[]))"
            " AS new (tenant, order_id, request_id, number, payment, at)"
        ),
        {
            **_ids([_id(attempt) for attempt, _ in attempts]),
            "requests": [attempt.payment.request_id for attempt, _ in attempts],
            "numbers": [number for _, number in attempts],
            "payments": [attempt.payment.model_dump_json() for attempt, _ in attempts],
            "ats": [attempt.at for attempt, _ in attempts],
        },
    )


async def _rows(
    tx: AsyncConnection, keys: Sequence[OrderId], lock: str = ""
) -> dict[OrderId, Row[Any]]:
    result = await tx.execute(
        sql(
            "SELECT tenant, order_id, request, request_hash, hash_version, mode, decision, attempt,"
            " abort_status, reason, run, shared, opened_at, opened_on, window_ends_at, result"
            f" FROM shop_order WHERE {_THESE} {_IN_ORDER} {lock}"
        ),
        _ids(keys),
    )
    return {(row.tenant, row.order_id): row for row in result}


async def _attempts_of(tx: AsyncConnection, keys: Sequence[OrderId]) -> dict[OrderId, list[Any]]:
    result = await tx.execute(
        sql(
            "SELECT tenant, order_id, payment FROM payment_attempt"
            f" WHERE {_THESE} ORDER BY tenant, order_id, number"
        ),
        _ids(keys),
    )
    attempts: dict[OrderId, list[Any]] = {}
    for row in result:
        attempts.setdefault((row.tenant, row.order_id), []).append(
            PAYMENTS.validate_python(row.payment)
        )
    return attempts


def _opened(
    row: Row[Any], attempts: Sequence[Any], request: OpenOrder, *, shared: bool
) -> OpenAnswer:
    if row.request is None:
        return OrderWithdrawn(reason=row.reason)
    if row.request_hash != request_hash(request.order, request.order.HASHED, row.hash_version):
        return OrderDiffers(fields=differing_fields(row.request, request.order))
    return OpenedOrder(
        opened_at=row.opened_at,
        opened_on=row.opened_on,
        window_ends_at=row.window_ends_at,
        verdict=_verdict(row).model_copy(update={"shared": shared}),
        attempts=tuple(attempts),
        result=None if row.result is None else OrderResult.model_validate(row.result),
        mode=Mode(row.mode),
    )


def _verdict(row: Row[Any]) -> Verdict:
    return Verdict(
        decision=Decision(row.decision),
        attempt=row.attempt,
        status=OrderStatus(row.abort_status or OrderStatus.PENDING),
        reason=row.reason,
        shared=row.shared,
    )


async def _store_decisions(
    tx: AsyncConnection, moved: Mapping[OrderId, Decide], standing: Mapping[OrderId, Verdict]
) -> None:
    if not moved:
        return
    result = await tx.execute(
        sql(
            "UPDATE shop_order AS o SET decision = new.decision, attempt = new.attempt,"
            " abort_status = new.abort_status, reason = new.reason, waits_for = 'nothing',"
            " pivot_refusal = new.pivot_refusal::jsonb, decided_at = new.at, moved_at = new.at"
            " FROM unnest(CAST(:tenants AS text[]), CAST(:ids AS text[]),"
            " CAST(:decisions AS text[]), CAST(:attempts AS text[]), CAST(:statuses AS text[]),"
            " CAST(:reasons AS text[]), CAST(:refusals AS text[]), CAST(:ats AS timestamptz[]))"
            " AS new (tenant, order_id, decision, attempt, abort_status, reason, pivot_refusal, at)"
            " WHERE o.tenant = new.tenant AND o.order_id = new.order_id"
            " AND (o.decision = 'OPEN' OR (o.decision = 'COMMITTING'"
            " AND new.decision = 'ABORTING' AND new.pivot_refusal IS NOT NULL))"
        ),
        {
            **_ids(moved),
            "decisions": [standing[key].decision for key in moved],
            "attempts": [standing[key].attempt for key in moved],
            "statuses": [standing[key].status for key in moved],
            "reasons": [standing[key].reason for key in moved],
            "refusals": [
                None if r.pivot_refusal is None else json.dumps(r.pivot_refusal)
                for r in moved.values()
            ],
            "ats": [r.at for r in moved.values()],
        },
    )
    assert_all_written(result, len(moved))


def _next_attempt(row: Row[Any], attempts: Sequence[Any], request: AddAttempt) -> AttemptAnswer:
    for number, known in enumerate(attempts, start=1):
        if known.request_id == request.payment.request_id:
            if known == request.payment:
                return AttemptAdded(number=number)
            return AttemptRefused(reason=f"{known.request_id} was another payment")
    if row.decision != Decision.OPEN:
        return AttemptRefused(reason=f"the order is {row.decision.lower()}")
    if len(attempts) >= MAX_ATTEMPTS:
        return AttemptRefused(reason=f"{MAX_ATTEMPTS} payments were tried")
    return AttemptAdded(number=len(attempts) + 1)
