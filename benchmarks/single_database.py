"""A shop in one database: the order as one transaction of its own. No fence: a repeat sells twice.

What it writes is what the services write about the order, without keys, states and answers.
"""

from datetime import datetime

from sqlalchemy.ext.asyncio import AsyncConnection

from everycent.database.engine import sql
from everycent.domain.order import PlaceOrder

SCHEMA = (
    "CREATE TABLE shop_order (tenant text, order_id text, customer text, total_minor bigint,"
    " opened_at timestamptz, closed_at timestamptz, PRIMARY KEY (tenant, order_id))",
    "CREATE TABLE stock (tenant text, sku text, free bigint CHECK (free >= 0), sold bigint,"
    " PRIMARY KEY (tenant, sku)) WITH (fillfactor = 50)",
    "CREATE TABLE account (tenant text, account text, available bigint CHECK (available >= 0),"
    " PRIMARY KEY (tenant, account)) WITH (fillfactor = 50)",
    "CREATE TABLE entry (tenant text, order_id text, account text, amount_minor bigint,"
    " PRIMARY KEY (tenant, order_id, account))",
    "CREATE TABLE points (tenant text, customer text, available bigint,"
    " PRIMARY KEY (tenant, customer)) WITH (fillfactor = 50)",
)
STATEMENTS = (
    "INSERT INTO shop_order VALUES (:tenant, :order, :customer, :total, :at, :at)",
    "UPDATE stock SET free = free - :units, sold = sold + :units"
    " WHERE tenant = :tenant AND sku = :sku AND free >= :units",
    "UPDATE account SET available = available - :total"
    " WHERE tenant = :tenant AND account = :customer AND available >= :total",
    "INSERT INTO entry VALUES (:tenant, :order, 'customers:balance',"
    " CAST(:total AS bigint)), (:tenant, :order, 'sales:revenue', -CAST(:total AS bigint))",
    "INSERT INTO points VALUES (:tenant, :customer, :points) ON CONFLICT (tenant, customer)"
    " DO UPDATE SET available = points.available + excluded.available",
)
ROWS = (1, 1, 1, 2, 1)


async def fill(tx: AsyncConnection, tenant: str, *, sku: str, customers: list[str]) -> None:
    """Create the tables, with more units and money than are ever sold."""
    for statement in SCHEMA:
        await tx.execute(sql(statement))
    await tx.execute(
        sql("INSERT INTO stock VALUES (:tenant, :sku, 1000000000, 0)"),
        {"tenant": tenant, "sku": sku},
    )
    await tx.execute(
        sql("INSERT INTO account SELECT :tenant, unnest(CAST(:names AS text[])), 1000000000000"),
        {"tenant": tenant, "names": customers},
    )


async def sell(tx: AsyncConnection, order: PlaceOrder, *, at: datetime) -> None:
    """Sell one line, or stop: the transaction is rolled back."""
    [line] = order.lines
    values = {
        "tenant": order.tenant, "order": order.order_id, "customer": order.customer,
        "total": order.total_minor, "units": line.units, "sku": line.sku, "at": at,
        "points": order.points_earned,
    }  # fmt: skip
    for statement, rows in zip(STATEMENTS, ROWS, strict=True):
        used = {name: value for name, value in values.items() if f":{name}" in statement}
        result = await tx.execute(sql(statement), used)
        assert result.rowcount == rows, statement
