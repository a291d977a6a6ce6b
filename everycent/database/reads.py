"""What people and audits read, with a read-only role per service (design rule 11).

Nothing here is a base for a decision: between the read and the act the row may move.
"""

import contextlib
from collections.abc import AsyncIterator
from datetime import datetime
from typing import Any, TypeVar

from pydantic import JsonValue

from everycent.database.engine import Database, sql
from everycent.domain.fence import FenceState
from everycent.domain.message import Message
from everycent.domain.mode import Mode
from everycent.domain.order import (
    CaseState,
    Decision,
    OrderResult,
    OrderStatus,
    Payment,
    PlaceOrder,
    WaitsFor,
)
from everycent.domain.payment import PaymentStatus
from everycent.errors import InvalidRequest
from everycent.settings import ServiceName, Settings

V = TypeVar("V", bound=Message)


class OrderView(Message):
    """An order's row as it stands."""

    tenant: str
    order_id: str
    customer: str
    currency: str
    total_minor: int
    decision: Decision
    status: OrderStatus
    waits_for: WaitsFor
    reason: str
    driver: str
    opened_at: datetime
    window_ends_at: datetime
    decided_at: datetime | None
    closed_at: datetime | None
    request: PlaceOrder
    request_hash: str
    mode: Mode
    result: OrderResult | None


class AttemptView(Message):
    """A payment as the customer named it; `number` counts from 1."""

    number: int
    request_id: str
    payment: Payment


class PaymentView(Message):
    """A payment at the provider; a tombstone has no terms."""

    key: str
    state: FenceState
    status: PaymentStatus
    method: str | None
    currency: str | None
    amount_minor: int | None
    captured_minor: int
    refunded_minor: int
    provider_id: str | None
    try_answer: JsonValue


class RefundView(Message):
    """Money that goes back through the provider."""

    key: str
    state: FenceState
    payment_key: str | None
    currency: str | None
    amount_minor: int | None


class BalanceHoldView(Message):
    """A stored balance that pays: TRIED is frozen, CONFIRMED is spent."""

    key: str
    state: FenceState
    account: str | None
    currency: str | None
    amount_minor: int | None
    try_answer: JsonValue


class BalanceCreditView(BalanceHoldView):
    """Money put into a stored balance."""

    kind: str | None


class PointsHoldView(Message):
    """Points that pay a part: TRIED is frozen, CONFIRMED is used."""

    key: str
    state: FenceState
    customer: str | None
    points: int | None


class PointsBookingView(PointsHoldView):
    """Points granted, restored or revoked."""

    kind: str | None


class ReservedLineView(Message):
    """A line of an order's reservation: TRIED is held, CONFIRMED is sold."""

    key: str
    state: FenceState
    sku: str
    units: int


class EntryView(Message):
    """One side of a ledger transfer, debit positive."""

    key: str
    account: str
    currency: str
    amount_minor: int
    balance_after_minor: int
    posted_at: datetime


class CaseView(Message):
    """A step that did not succeed, and who took care of it."""

    case_key: str
    tenant: str
    order_id: str
    step: str
    error_class: str
    error: str
    attempts: int
    proposals: tuple[str, ...]
    owner: str
    state: CaseState
    opened_at: datetime
    failed_at: datetime
    resolved_at: datetime | None
    resolved_by: str | None
    resolution: str | None
    by_hand: bool


class StockView(Message):
    """The units of a SKU."""

    tenant: str
    sku: str
    received: int
    free: int
    held: int
    sold: int
    written_off: int


class OrderFile(Message):
    """All that the services know about one order."""

    order: OrderView
    attempts: tuple[AttemptView, ...]
    payments: tuple[PaymentView, ...]
    refunds: tuple[RefundView, ...]
    stock: tuple[ReservedLineView, ...]
    balance_holds: tuple[BalanceHoldView, ...]
    balance_credits: tuple[BalanceCreditView, ...]
    points_holds: tuple[PointsHoldView, ...]
    points_bookings: tuple[PointsBookingView, ...]
    entries: tuple[EntryView, ...]
    cases: tuple[CaseView, ...]

    def is_answered(self, request_id: str) -> bool:
        """Tell whether the payment attempt of that id has its answer."""
        key = self.order.request.step_key("pay", request_id)
        tries: tuple[PaymentView | BalanceHoldView, ...] = (*self.payments, *self.balance_holds)
        return any(each.key == key and each.try_answer is not None for each in tries)

    @property
    def captured_minor(self) -> int:
        """The money that the order brought, in minor units: by a provider or from a balance."""
        spent = (h.amount_minor or 0 for h in self.balance_holds if h.state == "CONFIRMED")
        return sum(p.captured_minor for p in self.payments) + sum(spent)

    @property
    def refunded_minor(self) -> int:
        """The money that went back."""
        back = (c.amount_minor or 0 for c in self.balance_credits if c.state == "CONFIRMED")
        return sum(p.refunded_minor for p in self.payments) + sum(back)

    @property
    def points_used(self) -> int:
        """The points that paid a part, less what was given back."""
        used = sum(h.points or 0 for h in self.points_holds if h.state == "CONFIRMED")
        return used - self._booked("restore")

    @property
    def points_earned(self) -> int:
        """The points that the order brought, less what was taken back."""
        return self._booked("grant") - self._booked("revoke")

    @property
    def units_sold(self) -> int:
        """The units that left the stock."""
        return sum(line.units for line in self.stock if line.state == "CONFIRMED")

    @property
    def units_held(self) -> int:
        """The units that are held."""
        return sum(line.units for line in self.stock if line.state == "TRIED")

    def _booked(self, kind: str) -> int:
        return sum(b.points or 0 for b in self.points_bookings if b.kind == kind)


class Reader:
    """One reading pool per service, opened when first asked."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._databases: dict[ServiceName, Database] = {}

    def database(self, service: ServiceName) -> Database:
        """Return the service's database through its read-only role."""
        if service not in self._databases:
            dsn = self._settings.read.get(service)
            if dsn is None:
                raise InvalidRequest(
                    f"EVERYCENT_READ__{service.upper()} names no database and no stack runs in"
                    f" {self._settings.data_dir}; start one with `everycent up`"
                )
            self._databases[service] = Database(dsn, self._settings.pool, name="reader", ping=True)
        return self._databases[service]

    async def order(self, tenant: str, order_id: str) -> OrderView | None:
        """Return an order's row, None if there is none."""
        rows = await self.rows(
            "order",
            "SELECT * FROM shop_order WHERE tenant = :tenant AND order_id = :order_id",
            tenant=tenant,
            order_id=order_id,
        )
        return OrderView.model_validate(rows[0]) if rows and rows[0]["request"] else None

    async def orders(
        self,
        tenant: str,
        *,
        status: OrderStatus | None = None,
        waits_for: WaitsFor | None = None,
        limit: int = 50,
    ) -> tuple[OrderView, ...]:
        """Return orders, the newest first."""
        return await self._views(
            OrderView,
            "order",
            "SELECT * FROM shop_order WHERE tenant = :tenant AND request IS NOT NULL"
            " AND (CAST(:status AS text) IS NULL OR status = :status)"
            " AND (CAST(:waits_for AS text) IS NULL OR waits_for = :waits_for)"
            ' ORDER BY opened_at DESC, order_id COLLATE "C" LIMIT :limit',
            tenant=tenant,
            status=status,
            waits_for=waits_for,
            limit=limit,
        )

    async def attempts(self, tenant: str, order_id: str) -> tuple[AttemptView, ...]:
        """Return the payments that were named for an order, in their order."""
        statement = _of_order("payment_attempt", "number")
        return await self._views(AttemptView, "order", statement, tenant=tenant, order_id=order_id)

    async def order_file(self, tenant: str, order_id: str) -> OrderFile | None:
        """Return all that the services know about an order, None if there is none.

        Each service is read at an instant of its own: an unfinished order may move in between.
        """
        order = await self.order(tenant, order_id)
        if order is None:
            return None
        names = {"tenant": tenant, "order_id": order_id}
        # Every key of the order lies between `<tenant>/<order>/` and the same with `0`, the next
        # character: a range that the primary key's index finds.
        keys = {"low": f"{tenant}/{order_id}/", "high": f"{tenant}/{order_id}0"}
        return OrderFile(
            order=order,
            attempts=await self.attempts(tenant, order_id),
            payments=await self._views(PaymentView, "payment", _between("payment"), **keys),
            refunds=await self._views(RefundView, "payment", _between("refund"), **keys),
            stock=await self._views(ReservedLineView, "inventory", _RESERVED_LINES, **keys),
            balance_holds=await self._views(
                BalanceHoldView, "account", _between("balance_hold"), **keys
            ),
            balance_credits=await self._views(
                BalanceCreditView, "account", _between("balance_credit"), **keys
            ),
            points_holds=await self._views(
                PointsHoldView, "points", _between("points_hold"), **keys
            ),
            points_bookings=await self._views(
                PointsBookingView, "points", _between("points_booking"), **keys
            ),
            entries=await self._views(EntryView, "ledger", _between("entry", "seq"), **keys),
            cases=await self._views(
                CaseView, "order", _of_order("repair_case", "opened_at"), **names
            ),
        )

    async def cases(
        self, tenant: str | None = None, *, state: CaseState | None = CaseState.OPEN
    ) -> tuple[CaseView, ...]:
        """Return repair cases, the oldest first; without a state the resolved ones too."""
        return await self._views(
            CaseView,
            "order",
            "SELECT * FROM repair_case WHERE (CAST(:tenant AS text) IS NULL OR tenant = :tenant)"
            " AND (CAST(:state AS text) IS NULL OR state = :state) ORDER BY opened_at, case_key",
            tenant=tenant,
            state=state,
        )

    async def case(self, case_key: str) -> CaseView | None:
        """Return one repair case, None if there is none."""
        found = await self._views(
            CaseView, "order", "SELECT * FROM repair_case WHERE case_key = :key", key=case_key
        )
        return found[0] if found else None

    async def stock(self, tenant: str, sku: str | None = None) -> tuple[StockView, ...]:
        """Return the stock of a SKU, or of all."""
        return await self._views(
            StockView,
            "inventory",
            "SELECT * FROM stock WHERE tenant = :tenant"
            ' AND (CAST(:sku AS text) IS NULL OR sku = :sku) ORDER BY sku COLLATE "C"',
            tenant=tenant,
            sku=sku,
        )

    async def _views(
        self, view: type[V], service: ServiceName, statement: str, **values: Any
    ) -> tuple[V, ...]:
        rows = await self.rows(service, statement, **values)
        return tuple(view.model_validate(row) for row in rows)

    async def rows(
        self, service: ServiceName, statement: str, **values: Any
    ) -> list[dict[str, Any]]:
        """Return the rows of one statement, read at one instant."""
        async with self.database(service).snapshot() as tx:
            result = await tx.execute(sql(statement), values)
            return [dict(row) for row in result.mappings()]

    async def close(self) -> None:
        """Close every pool."""
        for database in self._databases.values():
            await database.close()


_RESERVED_LINES = (
    "SELECT l.key, r.state, l.sku, l.units FROM reservation r JOIN reservation_line l USING (key)"
    ' WHERE r.key COLLATE "C" BETWEEN :low AND :high ORDER BY l.key, l.line'
)


def _between(table: str, order_by: str = "key") -> str:
    return f'SELECT * FROM {table} WHERE key COLLATE "C" BETWEEN :low AND :high ORDER BY {order_by}'


def _of_order(table: str, order_by: str) -> str:
    return (
        f"SELECT * FROM {table} WHERE tenant = :tenant AND order_id = :order_id ORDER BY {order_by}"
    )


@contextlib.asynccontextmanager
async def reading(settings: Settings) -> AsyncIterator[Reader]:
    """Give a reader and close it behind the caller."""
    reader = Reader(settings)
    try:
        yield reader
    finally:
        await reader.close()
