"""Databases of somebody who has a service of her own, and a Temporal for her flows."""

import sys
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator
from pathlib import Path

import pytest
from sqlalchemy import text
from sqlalchemy.engine import make_url
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine
from temporalio.contrib.pydantic import pydantic_data_converter
from temporalio.testing import WorkflowEnvironment

from everycent.database.participant import fence_tables
from everycent.stack.postgres import PostgresServer

MakeService = Callable[[Iterable[str]], Awaitable[AsyncEngine]]


@pytest.fixture(scope="session")
def unsynced(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PostgresServer]:
    """A server that does not wait for the disk: for many COMMITs, and no crash of it."""
    server = PostgresServer(tmp_path_factory.mktemp("services") / "server", durable=False)
    server.start()
    yield server
    server.stop()


@pytest.fixture
async def service(unsynced: PostgresServer) -> AsyncIterator[MakeService]:
    """Make a database with the fence and these tables, and return its engine."""
    engines = []

    async def make(tables: Iterable[str]) -> AsyncEngine:
        name = f"service_{uuid.uuid4().hex[:12]}"
        unsynced.execute(f"CREATE DATABASE {name}")
        url = make_url(unsynced.dsn(name)).set(drivername="postgresql+asyncpg")
        engine = create_async_engine(url, pool_size=20, max_overflow=10)
        engines.append(engine)
        async with engine.begin() as tx:
            for statement in (*fence_tables(), *tables):
                await tx.execute(text(statement))
        return engine

    yield make
    for engine in engines:
        await engine.dispose()


@pytest.fixture(scope="module")
async def flows() -> AsyncIterator[WorkflowEnvironment]:
    """Temporal's time-skipping server, for flows of a user."""
    binary = Path(sys.executable).with_name("temporal-test-server")
    env = await WorkflowEnvironment.start_time_skipping(
        test_server_existing_path=str(binary), data_converter=pydantic_data_converter
    )
    yield env
    await env.shutdown()
