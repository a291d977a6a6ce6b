"""What people and audits read, with a read-only role per service (design rule 11).

Nothing here is a base for a decision: between the read and the act the row may move.
"""

import contextlib
from collections.abc import AsyncIterator
from datetime import datetime
from typing import Any

from sqlalchemy import text

from everycent.database.engine import Database
from everycent.domain.message import Message
from everycent.domain.order import Decision, OrderResult, OrderStatus, PlaceOrder, WaitsFor
from everycent.errors import InvalidRequest
from everycent.settings import ServiceName, Settings


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
    result: OrderResult | None


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
            self._databases[service] = Database(dsn, self._settings.pool, name="everycent read")
        return self._databases[service]

    async def order(self, tenant: str, order_id: str) -> OrderView | None:
        """Return an order's row, None if there is none."""
        rows = await self.rows(
            "order",
            "SELECT * FROM shop_order WHERE tenant = :tenant AND order_id = :order_id",
            tenant=tenant,
            order_id=order_id,
        )
        return OrderView.model_validate(rows[0]) if rows else None

    async def rows(
        self, service: ServiceName, statement: str, **values: Any
    ) -> list[dict[str, Any]]:
        """Return the rows of one statement, read at one instant."""
        async with self.database(service).snapshot() as tx:
            result = await tx.execute(text(statement), values)
            return [dict(row) for row in result.mappings()]

    async def close(self) -> None:
        """Close every pool."""
        for database in self._databases.values():
            await database.close()


@contextlib.asynccontextmanager
async def reading(settings: Settings) -> AsyncIterator[Reader]:
    """Give a reader and close it behind the caller."""
    reader = Reader(settings)
    try:
        yield reader
    finally:
        await reader.close()
