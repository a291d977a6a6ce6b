"""A platform of the proof tests' own: they break databases that nobody else may look at.

The shop, its workers and its Temporal are those of the workflow tests.
"""

import contextlib
import uuid
from collections.abc import AsyncIterator, Iterator
from datetime import UTC, datetime

import httpx
import pytest
from sqlalchemy import text
from sqlalchemy.engine import make_url
from sqlalchemy.ext.asyncio import AsyncConnection
from temporalio.testing import WorkflowEnvironment

from everycent.database import inventory
from everycent.database.engine import Database
from everycent.database.migrate import migrate
from everycent.database.reads import Reader
from everycent.domain.inventory import ReleaseStock
from everycent.domain.order import BalancePayment, OrderStatus
from everycent.proof.interleavings_run import databases_on
from everycent.settings import SERVICES, PoolSettings, ServiceName, Settings
from everycent.stack.postgres import PostgresServer
from starters.checkouts import Checkouts
from tests.workflows.conftest import Shop, Trouble, provider, shop, temporal, trouble

__all__ = ["provider", "shop", "temporal", "trouble"]


@pytest.fixture(scope="session")
async def settings(postgres: PostgresServer) -> Settings:
    """Databases beside those of the other tests, with the same roles."""

    def dsn(service: ServiceName, user: str | None = None) -> str:
        url = make_url(postgres.dsn(f"proof_{service}"))
        if user:
            url = url.set(username=user, password="test")
        return url.render_as_string(hide_password=False)

    settings = Settings(
        owner={s: dsn(s) for s in SERVICES},
        database={s: dsn(s, f"everycent_{s}") for s in SERVICES},
        read={s: dsn(s, f"everycent_{s}_read") for s in SERVICES},
        pool=PoolSettings(size=8),
    )
    await migrate(settings)
    return settings


@pytest.fixture(scope="session")
async def databases(settings: Settings) -> AsyncIterator[dict[ServiceName, Database]]:
    pools = {s: Database(settings.database[s], settings.pool) for s in SERVICES}
    yield pools
    for pool in pools.values():
        await pool.close()


@pytest.fixture(scope="session")
async def owners(settings: Settings) -> AsyncIterator[dict[ServiceName, Database]]:
    pools = {s: Database(settings.owner[s], settings.pool) for s in SERVICES}
    yield pools
    for pool in pools.values():
        await pool.close()


class Vandal:
    """Somebody with the owner's rights who changes a database by hand, past every rule in it."""

    def __init__(self, owners: dict[ServiceName, Database], tenant: str) -> None:
        self._owners = owners
        self._tenant = tenant

    @contextlib.asynccontextmanager
    async def breaks(self, service: ServiceName, *statements: str) -> AsyncIterator[None]:
        """Run the statements, each of which has to hit a row, and put all back at the end.

        `{t}` stands for the tenant.
        """
        database = self._owners[service]
        tables = await _tables(database)
        async with database.transaction() as tx:
            await tx.execute(text("CREATE SCHEMA saved"))
            for table in tables:
                await tx.execute(text(f"CREATE TABLE saved.{table} AS TABLE public.{table}"))
        try:
            async with _lawless(database, service) as tx:
                for statement in statements:
                    result = await tx.execute(text(statement.replace("{t}", self._tenant)))
                    assert statement.startswith("ALTER") or result.rowcount > 0, statement
            yield
        finally:
            async with _lawless(database, service) as tx:
                for table, columns in tables.items():
                    await tx.execute(text(f"DELETE FROM public.{table}"))
                    await tx.execute(
                        text(
                            f"INSERT INTO public.{table} ({columns}) OVERRIDING SYSTEM VALUE"
                            f" SELECT {columns} FROM saved.{table}"
                        )
                    )
                await tx.execute(text("DROP SCHEMA saved CASCADE"))


async def _tables(database: Database) -> dict[str, str]:
    """Return each table with the columns that can be written."""
    async with database.transaction() as tx:
        result = await tx.execute(
            text(
                "SELECT table_name, string_agg(column_name, ', ' ORDER BY ordinal_position)"
                " AS columns FROM information_schema.columns WHERE table_schema = 'public'"
                " AND is_generated = 'NEVER' AND table_name <> 'alembic_version'"
                " GROUP BY table_name"
            )
        )
        return {row.table_name: row.columns for row in result}


@contextlib.asynccontextmanager
async def _lawless(database: Database, service: ServiceName) -> AsyncIterator[AsyncConnection]:
    """Open a transaction in which no trigger speaks."""
    always_on = ("entry", "transfer_leg", "reversal") if service == "ledger" else ()
    async with database.transaction() as tx:
        for table in always_on:
            await tx.execute(text(f"ALTER TABLE {table} DISABLE TRIGGER {table}_append_only"))
        await tx.execute(text("SET LOCAL session_replication_role = replica"))
        yield tx
        for table in always_on:
            await tx.execute(text(f"ALTER TABLE {table} ENABLE ALWAYS TRIGGER {table}_append_only"))


@pytest.fixture
def together() -> bool:
    return False


@pytest.fixture
def vandal(owners: dict[ServiceName, Database], busy_shop: Shop) -> Vandal:
    return Vandal(owners, busy_shop.tenant)


@pytest.fixture(scope="module")
async def busy_shop(
    temporal: WorkflowEnvironment,
    settings: Settings,
    databases: dict[ServiceName, Database],
    provider: httpx.AsyncClient,
    trouble: Trouble,
) -> AsyncIterator[Shop]:
    """A shop with an order of every kind, sold by the real workflow."""
    reader = Reader(settings)
    checkouts = Checkouts(temporal.client, reader)
    tenant = f"busy-{uuid.uuid4().hex[:8]}"  # Each file has a provider of its own, with its books.
    shop = Shop(tenant, temporal.client, reader, checkouts, databases, provider, trouble, False)
    await shop.receive(20)
    await shop.deposit("a-1", 10_000)
    await shop.grant_points("c-1", 500)
    balance = BalancePayment(account="a-1")
    orders = {
        shop.order("card", units=2, amount_minor=2933): OrderStatus.CONFIRMED,
        # In the order of keys this one comes before `card/`, in the order of ids after `card`.
        shop.order("card-balance", payment=balance, points=200): OrderStatus.CONFIRMED,
        shop.order("free", payment=None, amount_minor=0): OrderStatus.CONFIRMED,
        shop.order("no-stock", units=100, points=10): OrderStatus.REJECTED,
        shop.order("refunded", points=100): OrderStatus.REFUNDED,
    }
    shop.fault("inventory.commit_stock", None, order_id="refunded", hook=lambda: _lose_stock(shop))
    for order, wanted in orders.items():
        result = await shop.sell(order)
        assert result.status is wanted, result
    yield shop
    await reader.close()


async def _lose_stock(shop: Shop) -> None:
    """Release the hold of a paid order by hand: only a refund answers that."""
    now = datetime.now(UTC)
    key = f"{shop.tenant}/refunded/reserve"
    request = ReleaseStock(key=key, at=now, opened_on=now.date(), reason="by the test")
    async with shop.databases["inventory"].transaction() as tx:
        await inventory.release_stock(tx, [request])


@pytest.fixture(scope="session")
def unsynced(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PostgresServer]:
    """A server that does not wait for the disk: for thousands of COMMITs, and no crash of it."""
    server = PostgresServer(tmp_path_factory.mktemp("unsynced") / "server", durable=False)
    server.start()
    yield server
    server.stop()


@pytest.fixture(scope="session")
async def dsns(unsynced: PostgresServer) -> dict[str, str]:
    """The database of each kind of row that is interleaved."""
    return await databases_on(unsynced)
