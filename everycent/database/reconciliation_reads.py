"""What reconciliation reads, with the read-only roles: our movements, our orders, known breaks."""

from collections.abc import AsyncIterator, Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import Row, text

from everycent import clock
from everycent.database.audit_rows import OrderRow, ServiceRow, Span, read_orders, stream_rows
from everycent.database.reads import Reader
from everycent.domain.message import Message
from everycent.domain.order import CaseState
from everycent.domain.reconciliation import Booked, Break, OrderStands

_PAGE = 1000
# A payment was taken when its Confirm was stored; one that was taken late has its Cancel's time.
_MOVED = """
SELECT 'capture' AS movement, key AS reference, coalesce(provider_id, '') AS provider_id,
    CASE WHEN captured_minor > 0 THEN captured_minor ELSE coalesce(amount_minor, 0) END
        AS amount_minor, coalesce(currency, '') AS currency,
    coalesce(ended_at, tried_at) AS at, captured_minor > 0 AS done
FROM payment WHERE {payment}
UNION ALL
SELECT 'refund', key, '', coalesce(amount_minor, 0), coalesce(currency, ''),
    coalesce(ended_at, tried_at), state = 'CONFIRMED'
FROM refund WHERE {refund}"""


class KnownBreak(Message):
    """A break as it is on record; `case` is None while it is pending."""

    found: Break
    looks: int
    case: CaseState | None


async def booked_under(reader: Reader, references: Sequence[str]) -> dict[tuple[str, str], Booked]:
    """Return our captures and refunds under these keys, whenever they were made."""
    where = "key = ANY(CAST(:keys AS text[]))"
    statement = _MOVED.format(payment=where, refund=where)
    rows = await reader.rows("payment", statement, keys=list(references))
    found = (Booked.model_validate(row) for row in rows if row["at"] is not None)
    return {each.name: each for each in found}


async def booked_between(
    reader: Reader, tenant: str, begins: datetime, ends: datetime
) -> AsyncIterator[Booked]:
    """Yield what a shop's payments and refunds moved in this time, a page in memory at a time."""
    span = Span.of(f"{tenant}/")
    when = "coalesce(ended_at, tried_at) >= :begins AND coalesce(ended_at, tried_at) < :ends"
    mine = "key >= CAST(:low AS text) AND key < CAST(:high AS text)"
    statement = _MOVED.format(
        payment=f"{mine} AND {when} AND captured_minor > 0",
        refund=f"{mine} AND {when} AND state = 'CONFIRMED'",
    )
    given = {"low": span.low, "high": span.high, "begins": begins, "ends": ends}
    async with reader.database("payment").snapshot() as tx:
        rows = await tx.stream(text(statement), given, execution_options={"yield_per": _PAGE})
        async for row in rows:
            yield Booked.model_validate(dict(row._mapping))


async def orders_stand(reader: Reader, xids: Sequence[str]) -> dict[str, OrderStands]:
    """Return how these orders stand by their rows, their money and their stock."""
    async with reader.database("order").snapshot() as tx:
        orders = await read_orders(tx, xids)
    rows: dict[str, list[ServiceRow]] = {xid: [] for xid in xids}
    spans = [Span.of(f"{xid}/") for xid in xids]
    for service in ("inventory", "payment"):
        async with reader.database(service).snapshot() as tx:
            async for xid, row in stream_rows(tx, service, spans, clock.now()):
                rows[xid].append(row)
    return {xid: _stands(order, rows[xid]) for xid, order in orders.items()}


def _stands(order: OrderRow, rows: Sequence[ServiceRow]) -> OrderStands:
    asked = order.asked
    by_provider = asked is not None and getattr(asked.payment, "method", "") != "balance"
    payments = [row for row in rows if row.kind == "payment"]
    return OrderStands(
        xid=order.xid,
        status=order.status,
        is_final=order.is_final and not any(case.state == "OPEN" for case in order.cases),
        due_minor=asked.due_minor if asked is not None and by_provider else 0,
        net_minor=sum(row.captured - row.refunded for row in payments),
        sold=any(row.kind == "reservation" and row.state == "CONFIRMED" for row in rows),
    )


async def known_breaks(reader: Reader, tenant: str | None = None) -> dict[str, KnownBreak]:
    """Return the breaks that are none of the past, by their keys: pending, open, or settled."""
    rows = await reader.rows(
        "order",
        "SELECT b.*, c.state AS case_state FROM statement_break AS b"
        " LEFT JOIN repair_case AS c ON c.case_key = b.key WHERE b.gone_at IS NULL"
        ' AND (CAST(:tenant AS text) IS NULL OR b.tenant = :tenant) ORDER BY b.key COLLATE "C"',
        tenant=tenant,
    )
    return {row["key"]: _known(row) for row in rows}


def _known(row: dict[str, Any]) -> KnownBreak:
    found = Break.model_validate({**row, "at": row["happened_at"]})
    case = None if row["case_state"] is None else CaseState(row["case_state"])
    return KnownBreak(found=found, looks=row["looks"], case=case)


async def statement_of(reader: Reader, tenant: str, digest: str) -> Row[Any] | None:
    """Return when a statement was read, None if it was not, or not to its end."""
    async with reader.database("order").snapshot() as tx:
        result = await tx.execute(
            text("SELECT name, read_at FROM statement WHERE tenant = :tenant AND digest = :digest"),
            {"tenant": tenant, "digest": digest},
        )
        return result.first()
