"""Real servers for every test; each session starts its own, on free ports, in temporary folders."""

import os
import uuid
from collections.abc import AsyncIterator, Iterator
from datetime import UTC, date, datetime
from pathlib import Path

import pytest
from sqlalchemy.engine import make_url

from everycent.database.engine import Database
from everycent.database.migrate import migrate
from everycent.settings import SERVICES, PoolSettings, ServiceName, Settings
from everycent.stack.postgres import PostgresServer

NOON = datetime(2026, 1, 2, 12, 0, tzinfo=UTC)
TODAY = date(2026, 1, 2)

# `make guards` keeps a server with migrated databases, and has those of one service made anew.
KEPT_SERVER = os.environ.get("EVERYCENT_TEST_SERVER")
FRESH_SERVICE = os.environ.get("EVERYCENT_TEST_FRESH")


@pytest.fixture(scope="session")
def postgres(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PostgresServer]:
    """A PostgreSQL server of this session's own, or the one that is kept for many sessions."""
    if KEPT_SERVER:
        yield PostgresServer(Path(KEPT_SERVER))
        return
    server = PostgresServer(Path(tmp_path_factory.mktemp("postgres")) / "pg")
    server.start()
    yield server
    server.stop()


@pytest.fixture(scope="session")
async def settings(postgres: PostgresServer) -> Settings:
    """Migrated databases of all services: workers' and readers' roles as in production."""

    def dsn(service: ServiceName, user: str | None = None) -> str:
        fresh = "_fresh" if service == FRESH_SERVICE else ""
        url = make_url(postgres.dsn(f"everycent_{service}{fresh}"))
        if user:
            url = url.set(username=user, password="test")
        return url.render_as_string(hide_password=False)

    settings = Settings(
        owner={s: dsn(s) for s in SERVICES},
        database={s: dsn(s, f"everycent_{s}") for s in SERVICES},
        read={s: dsn(s, f"everycent_{s}_read") for s in SERVICES},
        relay={s: dsn(s, f"everycent_{s}_relay") for s in SERVICES},
        pool=PoolSettings(size=16),
    )
    await migrate(settings, [s for s in SERVICES if FRESH_SERVICE in (None, s)])
    return settings


@pytest.fixture(scope="session")
async def databases(settings: Settings) -> AsyncIterator[dict[ServiceName, Database]]:
    """A pool per service, as the worker's role."""
    pools = {s: Database(settings.database[s], settings.pool) for s in SERVICES}
    yield pools
    for pool in pools.values():
        await pool.close()


@pytest.fixture(scope="session")
async def owners(settings: Settings) -> AsyncIterator[dict[ServiceName, Database]]:
    """A pool per service, as the owner: for tests that break things by hand."""
    pools = {s: Database(settings.owner[s], settings.pool) for s in SERVICES}
    yield pools
    for pool in pools.values():
        await pool.close()


@pytest.fixture
def tenant() -> str:
    """A shop of this test's own: tests share the databases and never each other's rows."""
    return f"t{uuid.uuid4().hex[:12]}"
