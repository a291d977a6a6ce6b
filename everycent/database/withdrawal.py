"""The withdrawal of an order id in SQL: a tombstone in the place of the order's row.

It is to `open_order` what a Cancel is to its Try (design rule 4): both insert the same key first,
who comes second waits for the other's COMMIT and then reads what stands. A withdrawn row was asked
for by nobody: it has no request, and readers of orders leave it out.
"""

from collections.abc import Sequence

from sqlalchemy.ext.asyncio import AsyncConnection

from everycent.database.engine import sql
from everycent.domain.order import Decision, OrderResult, OrderStatus
from everycent.domain.withdrawal import OrderStands, WithdrawAnswer, Withdrawn, WithdrawOrder
from everycent.errors import EverycentError

_THESE = (
    "(tenant, order_id) IN (SELECT * FROM unnest(CAST(:tenants AS text[]), CAST(:ids AS text[])))"
)


async def withdraw_order(
    tx: AsyncConnection, requests: Sequence[WithdrawOrder]
) -> list[WithdrawAnswer | EverycentError]:
    """Withdraw each id that has no order yet; an order that is written down stands as it is."""
    first = {(r.tenant, r.order_id): r for r in reversed(requests)}
    asked = [first[key] for key in sorted(first)]
    names = {"tenants": [r.tenant for r in asked], "ids": [r.order_id for r in asked]}
    await tx.execute(
        sql(
            "INSERT INTO shop_order (tenant, order_id, decision, abort_status, status, reason,"
            " driver, run, shared, opened_at, opened_on, window_ends_at, decided_at, closed_at,"
            " moved_at, result)"
            " SELECT tenant, order_id, 'ABORTED', 'REJECTED', 'REJECTED', reason, driver, driver,"
            # Whoever comes later has no part in it, and does not mark it again.
            " true, at, (at AT TIME ZONE 'UTC')::date, at, at, at, at, result::jsonb"
            " FROM unnest(CAST(:tenants AS text[]), CAST(:ids AS text[]),"
            " CAST(:reasons AS text[]), CAST(:drivers AS text[]), CAST(:results AS text[]),"
            " CAST(:ats AS timestamptz[]))"
            " AS new (tenant, order_id, reason, driver, result, at)"
            ' ORDER BY tenant COLLATE "C", order_id COLLATE "C"'
            " ON CONFLICT (tenant, order_id) DO NOTHING"
        ),
        {
            **names,
            "reasons": [r.reason for r in asked],
            "drivers": [r.by for r in asked],
            "results": [_result(r).model_dump_json() for r in asked],
            "ats": [r.at for r in asked],
        },
    )
    # A later statement sees what the winner has written; see design rule 4 (b).
    result = await tx.execute(
        sql(
            "SELECT tenant, order_id, decision, request IS NULL AS withdrawn FROM shop_order"
            f" WHERE {_THESE}"
        ),
        names,
    )
    rows = {(row.tenant, row.order_id): row for row in result}
    return [
        Withdrawn() if row.withdrawn else OrderStands(decision=row.decision)
        for row in (rows[r.tenant, r.order_id] for r in requests)
    ]


def _result(request: WithdrawOrder) -> OrderResult:
    return OrderResult(
        tenant=request.tenant,
        order_id=request.order_id,
        status=OrderStatus.REJECTED,
        decision=Decision.ABORTED,
        reason=request.reason,
        total_minor=0,
    )
