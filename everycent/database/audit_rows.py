"""The rows of every order across the services, streamed in key order so that they can be merged."""

from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from sqlalchemy.ext.asyncio import AsyncConnection

from everycent.database.engine import sql
from everycent.domain.message import order_of
from everycent.domain.mode import Mode
from everycent.domain.order import Decision, OrderResult, OrderStatus, PlaceOrder
from everycent.settings import ServiceName

_LAST = "\U0010ffff"
_PAGE = 1000


@dataclass(frozen=True)
class Span:
    """A range of keys: everything, a shop's, or an order's."""

    low: str
    high: str

    @classmethod
    def of(cls, prefix: str) -> "Span":
        """Return the range of the keys that begin with `prefix` (which ends in a slash)."""
        return cls(prefix, prefix[:-1] + "0" if prefix else _LAST)  # "0" follows "/".


@dataclass(frozen=True)
class ServiceRow:
    """A row that some step of an order made; what its kind does not have stays empty.

    `amount` is minor units, points, or the debits of a transfer; `about` the key it speaks of.
    """

    kind: str
    key: str
    state: str = ""
    amount: int = 0
    captured: int = 0
    refunded: int = 0
    currency: str = ""
    about: str = ""
    units: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class CaseRow:
    """A repair case of an order."""

    key: str
    state: str
    by_hand: bool


@dataclass(frozen=True)
class OrderRow:
    """An order as the audit judges it; `asked` is None of an id that was withdrawn."""

    xid: str
    decision: Decision
    status: OrderStatus
    attempt: str | None
    driver: str
    mode: Mode
    moved_at: datetime
    asked: PlaceOrder | None
    result: OrderResult | None
    cases: tuple[CaseRow, ...]

    @property
    def request(self) -> PlaceOrder:
        """What was asked for."""
        assert self.asked is not None, f"{self.xid} was withdrawn: nobody asked for it"
        return self.asked

    @property
    def is_final(self) -> bool:
        """Whether nothing about it may move any more."""
        return self.decision in (Decision.COMMITTED, Decision.ABORTED)

    @property
    def mark(self) -> tuple[object, ...]:
        """What changes when the order moves."""
        return self.decision, self.status, self.moved_at, self.driver, self.cases


def _rows(kind: str, table: str, columns: str, where: str = "true") -> str:
    """Select a table's rows within the spans as (key, kind, facts)."""
    return (
        f"SELECT t.key, '{kind}' AS kind, jsonb_build_object({columns}) AS facts"
        f" FROM span JOIN {table} AS t ON t.key >= span.low AND t.key < span.high WHERE {where}"
    )


_MONEY = "'state', t.state, 'amount', coalesce(t.amount_minor, 0), 'currency', t.currency"
_POINTS = "'state', t.state, 'amount', coalesce(t.points, 0)"
_TABLES: dict[ServiceName, tuple[str, ...]] = {
    "inventory": (
        _rows(
            "reservation",
            "reservation",
            "'state', t.state, 'units', coalesce((SELECT jsonb_object_agg(sku, units) FROM"
            " (SELECT sku, sum(units) AS units FROM reservation_line AS l WHERE l.key = t.key"
            " GROUP BY sku) AS line), CAST('{}' AS jsonb))",
        ),
    ),
    "payment": (
        _rows(
            "payment",
            "payment",
            f"{_MONEY}, 'captured', t.captured_minor, 'refunded', t.refunded_minor",
        ),
        _rows("refund", "refund", f"{_MONEY}, 'about', t.payment_key"),
        _rows(
            "call",
            "provider_call",
            "'about', CAST(t.may_arrive_until AS text)",
            "t.answer IS NULL AND t.open_sends > 0"
            " AND t.may_arrive_until < CAST(:overdue AS timestamptz)",
        ),
    ),
    "account": (
        _rows("balance_hold", "balance_hold", _MONEY),
        _rows("balance_refund", "balance_credit", _MONEY, "t.kind = 'refund'"),
    ),
    "points": (
        _rows("points_hold", "points_hold", _POINTS),
        _rows(
            "points_booking",
            "points_booking",
            _POINTS,
            # Others (a campaign's, say) belong to no order.
            "split_part(t.key, '/', 3) IN ('earn', 'unearn', 'points-refund')",
        ),
    ),
    "ledger": (
        _rows(
            "transfer",
            "transfer",
            "'state', t.state, 'amount', coalesce((SELECT sum(amount_minor) FROM entry AS e"
            " WHERE e.key = t.key AND amount_minor > 0), 0), 'about',"
            " (SELECT original_key FROM reversal AS r WHERE r.key = t.key)",
            "split_part(t.key, '/', 3) IN ('ledger', 'ledger-reversal')",
        ),
    ),
}


async def stream_rows(
    tx: AsyncConnection, service: ServiceName, spans: Sequence[Span], overdue: datetime
) -> AsyncIterator[tuple[str, ServiceRow]]:
    """Yield (xid, row) of a service within the spans, in key order, a page in memory at a time.

    A call to the provider is told only if it is unanswered and could not arrive since `overdue`.
    """
    tables = " UNION ALL ".join(_TABLES[service])
    given: dict[str, Any] = _span_arrays(spans)
    if ":overdue" in tables:
        given["overdue"] = overdue
    statement = f'{_SPANS} SELECT * FROM ({tables}) AS found ORDER BY key COLLATE "C"'
    async for row in await tx.stream(sql(statement), given, execution_options=_STREAM):
        facts = {name: value for name, value in row.facts.items() if value is not None}
        yield order_of(row.key), ServiceRow(kind=row.kind, key=row.key, **facts)


async def stream_orders(
    tx: AsyncConnection, tenant: str | None
) -> AsyncIterator[tuple[str, OrderRow]]:
    """Yield every order of the shop, or of all shops, in the order of their steps' keys."""
    where = "true" if tenant is None else "o.tenant = :tenant"
    statement = (
        f"SELECT {_ORDER} FROM shop_order AS o WHERE {where}"
        " ORDER BY (o.tenant || '/' || o.order_id || '/') COLLATE \"C\""
    )
    given = {} if tenant is None else {"tenant": tenant}
    async for row in await tx.stream(sql(statement), given, execution_options=_STREAM):
        order = _as_order(row)
        yield order.xid, order


async def read_orders(tx: AsyncConnection, xids: Sequence[str]) -> dict[str, OrderRow]:
    """Return these orders as they stand; one that does not exist is left out."""
    parts = [xid.partition("/") for xid in xids]
    result = await tx.execute(
        sql(
            f"SELECT {_ORDER} FROM unnest(CAST(:tenants AS text[]), CAST(:ids AS text[]))"
            " AS wanted (tenant, order_id) JOIN shop_order AS o USING (tenant, order_id)"
        ),
        {"tenants": [p[0] for p in parts], "ids": [p[2] for p in parts]},
    )
    orders = (_as_order(row) for row in result)
    return {order.xid: order for order in orders}


_STREAM = {"yield_per": _PAGE}
_SPANS = (
    "WITH span AS (SELECT * FROM unnest(CAST(:lows AS text[]), CAST(:highs AS text[]))"
    " AS s (low, high))"
)
_ORDER = (
    "o.tenant, o.order_id, o.decision, o.status, o.attempt, o.driver, o.mode, o.moved_at,"
    " o.request, o.result, (SELECT jsonb_agg(jsonb_build_object('key', case_key, 'state', state,"
    " 'by_hand', by_hand) ORDER BY case_key) FROM repair_case AS c WHERE c.tenant = o.tenant"
    " AND c.order_id = o.order_id) AS cases"
)


def _span_arrays(spans: Sequence[Span]) -> dict[str, Any]:
    return {"lows": [span.low for span in spans], "highs": [span.high for span in spans]}


def _as_order(row: Any) -> OrderRow:
    return OrderRow(
        xid=f"{row.tenant}/{row.order_id}",
        decision=Decision(row.decision),
        status=OrderStatus(row.status),
        attempt=row.attempt,
        driver=row.driver,
        mode=Mode(row.mode),
        moved_at=row.moved_at,
        asked=None if row.request is None else PlaceOrder.model_validate(row.request),
        result=None if row.result is None else OrderResult.model_validate(row.result),
        cases=tuple(CaseRow(**case) for case in row.cases or ()),
    )
