"""Loyalty points in SQL. A hold is the fence of its own frozen points."""

from collections.abc import Iterable, Sequence
from typing import Any, TypeVar

from sqlalchemy.ext.asyncio import AsyncConnection

from everycent.database import fence
from everycent.database.engine import sql
from everycent.domain.fence import FenceState
from everycent.domain.message import StepRequest
from everycent.domain.points import (
    FREEZE_POINTS_ANSWERS,
    GRANT_ANSWERS,
    REDEEM_ANSWERS,
    RESTORE_ANSWERS,
    REVOKE_ANSWERS,
    UNFREEZE_POINTS_ANSWERS,
    CustomerId,
    FreezePoints,
    FreezePointsAnswer,
    GrantPoints,
    PointsGranted,
    PointsHold,
    PointsRedeemed,
    PointsRestored,
    PointsRevoked,
    PointsUnfrozen,
    Purse,
    Purses,
    RedeemPoints,
    RestorePoints,
    RevokePoints,
    UnfreezePoints,
    freeze,
    grant,
    redeem,
    restore,
    revoke,
    unfreeze,
)
from everycent.errors import EverycentError

R = TypeVar("R", GrantPoints, RestorePoints, RevokePoints)

_COLUMNS = {"customer": "text", "points": "bigint"}
HOLD = fence.FenceTable("points_hold", _COLUMNS)
BOOKING = fence.FenceTable("points_booking", {**_COLUMNS, "kind": "text"})


async def freeze_points(
    tx: AsyncConnection, requests: Sequence[FreezePoints]
) -> list[FreezePointsAnswer | EverycentError]:
    """Freeze each customer's points or refuse; a customer without a row has none."""
    claims = await fence.claim_tries(tx, HOLD, requests)
    purses = await _lock_purses(tx, {r.customer_id for r in claims.new})
    decided = freeze(purses, claims.new)
    await _move(tx, purses, decided.purses)
    await fence.store_tries(tx, HOLD, decided.answers)
    return claims.in_order(requests, decided.answers, FREEZE_POINTS_ANSWERS)


async def redeem_points(
    tx: AsyncConnection, requests: Sequence[RedeemPoints]
) -> list[PointsRedeemed | EverycentError]:
    """Spend what each hold froze; what moves comes from its row, never from the call."""
    claims = await fence.lock_for_confirm(tx, HOLD, requests)
    holds = await _holds_of(tx, claims.new)
    purses = await _lock_purses(tx, {hold.customer_id for hold in holds})
    decided = redeem(purses, holds)
    await _move(tx, purses, decided.purses)
    await fence.store_ends(tx, HOLD, claims.new, decided.answers, state=FenceState.CONFIRMED)
    return claims.in_order(requests, decided.answers, REDEEM_ANSWERS)


async def unfreeze_points(
    tx: AsyncConnection, requests: Sequence[UnfreezePoints]
) -> list[PointsUnfrozen | EverycentError]:
    """Give back what each hold froze; one that froze nothing gets its tombstone."""
    claims = await fence.claim_cancels(tx, HOLD, requests)
    holds = await _holds_of(tx, [r for r in claims.new if _holds(claims, r.key)])
    purses = await _lock_purses(tx, {hold.customer_id for hold in holds})
    decided = unfreeze(purses, holds)
    await _move(tx, purses, decided.purses)
    nothing = PointsUnfrozen(points=0)
    answers = {r.key: decided.answers.get(r.key, nothing) for r in claims.new}
    await fence.store_ends(tx, HOLD, claims.new, answers, state=FenceState.CANCELLED)
    return claims.in_order(requests, answers, UNFREEZE_POINTS_ANSWERS)


async def grant_points(
    tx: AsyncConnection, requests: Sequence[GrantPoints]
) -> list[PointsGranted | EverycentError]:
    """Give each order's points; a debt is paid first."""
    claims, purses = await _claim_bookings(tx, requests)
    decided = grant(purses, claims.new)
    await _move(tx, purses, decided.purses)
    await fence.store_tries(tx, BOOKING, decided.answers, done=FenceState.CONFIRMED)
    return claims.in_order(requests, decided.answers, GRANT_ANSWERS)


async def restore_points(
    tx: AsyncConnection, requests: Sequence[RestorePoints]
) -> list[PointsRestored | EverycentError]:
    """Give redeemed points back; a debt is paid first."""
    claims, purses = await _claim_bookings(tx, requests)
    decided = restore(purses, claims.new)
    await _move(tx, purses, decided.purses)
    await fence.store_tries(tx, BOOKING, decided.answers, done=FenceState.CONFIRMED)
    return claims.in_order(requests, decided.answers, RESTORE_ANSWERS)


async def revoke_points(
    tx: AsyncConnection, requests: Sequence[RevokePoints]
) -> list[PointsRevoked | EverycentError]:
    """Take each order's points back; what is spent already is owed from then on."""
    claims, purses = await _claim_bookings(tx, requests)
    decided = revoke(purses, claims.new)
    await _move(tx, purses, decided.purses)
    await fence.store_tries(tx, BOOKING, decided.answers, done=FenceState.CONFIRMED)
    return claims.in_order(requests, decided.answers, REVOKE_ANSWERS)


async def _claim_bookings(
    tx: AsyncConnection, requests: Sequence[R]
) -> tuple[fence.Claims[R], Purses]:
    claims = await fence.claim_tries(tx, BOOKING, requests)
    customers = {r.customer_id for r in claims.new}
    await _add_customers(tx, customers)
    return claims, await _lock_purses(tx, customers)


def _holds(claims: fence.Claims[UnfreezePoints], key: str) -> bool:
    row = claims.rows.get(key)
    return row is not None and row.state is FenceState.TRIED


async def _holds_of(tx: AsyncConnection, requests: Sequence[StepRequest]) -> list[PointsHold]:
    """Read what the rows of these keys froze, in key order; the rows are locked."""
    if not requests:
        return []
    result = await tx.execute(
        sql("SELECT key, customer, points FROM points_hold WHERE key = ANY(CAST(:keys AS text[]))"),
        {"keys": [r.key for r in requests]},
    )
    rows = {row.key: row for row in result}
    return [
        PointsHold(r.key, (r.tenant, rows[r.key].customer), rows[r.key].points) for r in requests
    ]


async def _lock_purses(
    tx: AsyncConnection, customers: Iterable[CustomerId]
) -> dict[CustomerId, Purse]:
    """Lock the customers' rows in the order of their key and return what they have."""
    wanted = sorted(customers)
    if not wanted:
        return {}
    result = await tx.execute(
        sql(
            "SELECT tenant, customer, available, frozen, debt FROM points_account"
            " WHERE (tenant, customer) IN (SELECT * FROM unnest(CAST(:tenants AS text[]),"
            " CAST(:customers AS text[])))"
            ' ORDER BY tenant COLLATE "C", customer COLLATE "C" FOR NO KEY UPDATE'
        ),
        _arrays(wanted),
    )
    return {
        (row.tenant, row.customer): Purse(row.available, row.frozen, row.debt) for row in result
    }


async def _move(tx: AsyncConnection, before: Purses, after: Purses) -> None:
    """Add the differences to the customers' rows, which are locked; guarded like the CHECKs."""
    changed = {customer: purse for customer, purse in after.items() if purse != before[customer]}
    if not changed:
        return
    result = await tx.execute(
        sql(
            "UPDATE points_account AS p SET available = p.available + moved.available,"
            " frozen = p.frozen + moved.frozen, debt = p.debt + moved.debt, version = version + 1"
            " FROM unnest(CAST(:tenants AS text[]), CAST(:customers AS text[]),"
            " CAST(:available AS bigint[]), CAST(:frozen AS bigint[]), CAST(:debt AS bigint[]))"
            " AS moved (tenant, customer, available, frozen, debt)"
            " WHERE p.tenant = moved.tenant AND p.customer = moved.customer"
            " AND p.available >= -moved.available AND p.frozen >= -moved.frozen"
            " AND p.debt >= -moved.debt"
        ),
        {
            **_arrays(list(changed)),
            "available": [purse.available - before[c].available for c, purse in changed.items()],
            "frozen": [purse.frozen - before[c].frozen for c, purse in changed.items()],
            "debt": [purse.debt - before[c].debt for c, purse in changed.items()],
        },
    )
    fence.assert_all_written(result, len(changed))


async def _add_customers(tx: AsyncConnection, customers: Iterable[CustomerId]) -> None:
    await tx.execute(
        sql(
            "INSERT INTO points_account (tenant, customer) SELECT tenant, customer"
            " FROM unnest(CAST(:tenants AS text[]), CAST(:customers AS text[]))"
            " AS new (tenant, customer)"
            ' ORDER BY tenant COLLATE "C", customer COLLATE "C"'
            " ON CONFLICT (tenant, customer) DO NOTHING"
        ),
        _arrays(sorted(customers)),
    )


def _arrays(customers: Sequence[CustomerId]) -> dict[str, Any]:
    return {
        "tenants": [tenant for tenant, _ in customers],
        "customers": [customer for _, customer in customers],
    }
