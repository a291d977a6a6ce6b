"""What the sweeper reads in each service; every question looks at a bounded number of rows."""

from collections.abc import Sequence
from typing import Any

from sqlalchemy.ext.asyncio import AsyncConnection

from everycent.database.audit_rows import Span
from everycent.database.engine import sql
from everycent.domain.sweep import ACCEPTED, Hold, HoldService, OrderFacts, Standing, SweeperCase
from everycent.domain.sweep_questions import (
    HoldPage,
    HoldsOf,
    KeyPage,
    KeyStates,
    Rows,
    StandingsOf,
    Unfinished,
    UnfinishedPage,
)

# The table, how much money its row keeps, and what its Cancel gives back.
_TABLES: dict[HoldService, tuple[str, str, str, str]] = {
    "inventory": ("reservation", "0", "0", "''"),
    "payment": ("payment", "captured_minor - refunded_minor", "amount_minor", "currency"),
    "account": ("balance_hold", "0", "amount_minor", "currency"),
    "points": ("points_hold", "0", "points", "'points'"),
}
_FACTS = (
    "o.tenant || '/' || o.order_id AS xid, o.decision, o.status, o.attempt, o.waits_for, o.driver,"
    " o.moved_at, o.window_ends_at, o.total_minor, o.currency, o.request IS NULL AS withdrawn,"
    f" o.run <> '{ACCEPTED}' OR o.shared AS begun"
)
_REQUEST = ", CASE WHEN o.result IS NULL THEN o.request END AS request"
_CASES = (
    "(SELECT jsonb_agg(jsonb_build_object('case_key', c.case_key, 'attempts', c.attempts,"
    " 'is_open', c.state = 'OPEN', 'by_hand', c.by_hand) ORDER BY c.case_key) FROM repair_case c"
    " WHERE c.tenant = w.tenant AND c.order_id = w.order_id AND c.case_key LIKE '%/sweeper')"
    " AS cases"
)


async def unfinished(tx: AsyncConnection, asked: Unfinished) -> UnfinishedPage:
    """Return unfinished orders that have stood still, the longest first (by an index of theirs)."""
    after = asked.after or (None, "")
    result = await tx.execute(
        sql(
            f"SELECT {_FACTS}, {_CASES} FROM shop_order o JOIN LATERAL"
            " (SELECT o.tenant, o.order_id) AS w ON true"
            " WHERE o.decision IN ('OPEN', 'COMMITTING', 'ABORTING') AND o.moved_at < :before"
            " AND o.driver NOT LIKE 'choreographed/%'"  # Its messages own it: the audit looks.
            " AND (CAST(:tenant AS text) IS NULL OR o.tenant = :tenant)"
            " AND (CAST(:at AS timestamptz) IS NULL"
            " OR (o.moved_at, o.tenant || '/' || o.order_id) > (CAST(:at AS timestamptz), :xid))"
            " ORDER BY o.moved_at, o.tenant || '/' || o.order_id LIMIT :limit"
        ),
        {
            "tenant": asked.tenant,
            "before": asked.before,
            "at": after[0],
            "xid": after[1],
            "limit": asked.limit,
        },
    )
    found = tuple(_standing(row) for row in result)
    last = found[-1] if len(found) == asked.limit else None
    return UnfinishedPage(
        standings=found,
        next=(last.order.moved_at, last.xid) if last and last.order else None,
    )


async def standings(tx: AsyncConnection, asked: StandingsOf) -> list[Standing]:
    """Return how each of these orders stands; one without a row has its cases alone."""
    parts = [xid.partition("/") for xid in asked.xids]
    request = _REQUEST if asked.with_request else ""
    result = await tx.execute(
        sql(
            f"SELECT w.tenant || '/' || w.order_id AS wanted, {_FACTS}{request}, {_CASES}"
            " FROM unnest(CAST(:tenants AS text[]), CAST(:ids AS text[])) AS w (tenant, order_id)"
            " LEFT JOIN shop_order o ON o.tenant = w.tenant AND o.order_id = w.order_id"
        ),
        {"tenants": [p[0] for p in parts], "ids": [p[2] for p in parts]},
    )
    return [_standing(row, row.wanted) for row in result]


async def confirmed_orders(tx: AsyncConnection, asked: Rows) -> KeyPage:
    """Return the orders that are CONFIRMED, by their xids, among the next rows."""
    result = await tx.execute(
        sql(
            "SELECT tenant, order_id, status FROM shop_order"
            " WHERE (CAST(:tenant AS text) IS NULL OR tenant = :tenant)"
            " AND (tenant, order_id) > (:after_tenant, :after_id)"
            " ORDER BY tenant, order_id LIMIT :limit"
        ),
        {
            "tenant": asked.tenant,
            "after_tenant": asked.after.partition("/")[0],
            "after_id": asked.after.partition("/")[2],
            "limit": asked.limit,
        },
    )
    rows = result.all()
    keys = tuple(f"{r.tenant}/{r.order_id}" for r in rows if r.status == "CONFIRMED")
    last = rows[-1] if len(rows) == asked.limit else None
    return KeyPage(keys=keys, next=f"{last.tenant}/{last.order_id}" if last else None)


async def strangers(tx: AsyncConnection, asked: StandingsOf) -> StandingsOf:
    """Return those of the orders that may keep no money: they have no row, or are aborted."""
    parts = [xid.partition("/") for xid in asked.xids]
    result = await tx.execute(
        sql(
            "SELECT w.tenant || '/' || w.order_id AS xid"
            " FROM unnest(CAST(:tenants AS text[]), CAST(:ids AS text[])) AS w (tenant, order_id)"
            " LEFT JOIN shop_order o ON o.tenant = w.tenant AND o.order_id = w.order_id"
            " WHERE o.order_id IS NULL OR o.decision = 'ABORTED'"
        ),
        {"tenants": [p[0] for p in parts], "ids": [p[2] for p in parts]},
    )
    return StandingsOf(xids=tuple(row.xid for row in result))


async def holds(tx: AsyncConnection, service: HoldService, asked: Rows) -> HoldPage:
    """Return what is open, or keeps money, among the next rows of a service's holds."""
    span = Span.of("" if asked.tenant is None else f"{asked.tenant}/")
    result = await tx.execute(
        sql(
            f"{_hold(service)} WHERE key > :after AND key >= :low AND key < :high"
            " ORDER BY key LIMIT :limit"
        ),
        {"after": asked.after, "low": span.low, "high": span.high, "limit": asked.limit},
    )
    rows = result.all()
    return HoldPage(
        holds=_holds(service, [row for row in rows if row.state == "TRIED"]),
        kept=tuple(row.key for row in rows if row.state != "TRIED" and row.kept_minor),
        looked_at=len(rows),
        next=rows[-1].key if len(rows) == asked.limit else None,
    )


async def holds_of(tx: AsyncConnection, service: HoldService, asked: HoldsOf) -> HoldPage:
    """Return which of these holds are open, or keep money, now."""
    result = await tx.execute(
        sql(f"{_hold(service)} WHERE key = ANY(CAST(:keys AS text[]))"), {"keys": list(asked.keys)}
    )
    rows = result.all()
    found = [row for row in rows if row.state == "TRIED" or row.kept_minor]
    return HoldPage(holds=_holds(service, found), looked_at=len(rows))


async def confirmed_of(tx: AsyncConnection, service: HoldService, asked: StandingsOf) -> KeyPage:
    """Return what of these orders a service has confirmed, by its keys."""
    spans = [Span.of(f"{xid}/") for xid in asked.xids]
    result = await tx.execute(
        sql(
            f"SELECT r.key FROM unnest(CAST(:lows AS text[]), CAST(:highs AS text[])) AS w (l, h)"
            f" JOIN {_TABLES[service][0]} AS r ON r.key >= w.l AND r.key < w.h"
            " WHERE r.state = 'CONFIRMED' ORDER BY r.key"
        ),
        {"lows": [span.low for span in spans], "highs": [span.high for span in spans]},
    )
    return KeyPage(keys=tuple(row.key for row in result))


async def unsold(tx: AsyncConnection, asked: StandingsOf) -> KeyStates:
    """Return those of the orders' reservations that are not CONFIRMED, with their state."""
    result = await tx.execute(
        sql(
            "SELECT w.key, coalesce(r.state, 'absent') AS state"
            " FROM unnest(CAST(:keys AS text[])) AS w (key) LEFT JOIN reservation r"
            " ON r.key = w.key WHERE r.state IS DISTINCT FROM 'CONFIRMED'"
        ),
        {"keys": [f"{xid}/reserve" for xid in asked.xids]},
    )
    return KeyStates(states=tuple((row.key, row.state) for row in result))


def _hold(service: HoldService) -> str:
    table, kept, amount, currency = _TABLES[service]
    return (
        "SELECT key, state, CAST(opened_on AS text) AS opened_on, tried_at,"
        f" {kept} AS kept_minor, coalesce({amount}, 0) AS amount_minor,"
        f" coalesce({currency}, '') AS currency FROM {table}"
    )


def _holds(service: HoldService, rows: Sequence[Any]) -> tuple[Hold, ...]:
    kind = _TABLES[service][0]
    return tuple(Hold(service=service, kind=kind, **row._mapping) for row in rows)


def _standing(row: Any, xid: str | None = None) -> Standing:
    order = None if row.xid is None else OrderFacts.model_validate(dict(row._mapping))
    cases: Sequence[dict[str, Any]] = row.cases or ()
    return Standing(
        xid=xid or row.xid,
        order=order,
        cases=tuple(SweeperCase.model_validate(case) for case in cases),
    )
