"""How many connections a process may open, told to its database before it opens them.

A pool opens its connections when it needs them, so that nobody can count them at the start. Each
worker process therefore keeps one connection whose name says how many it may have in that database.
It tells first and counts then: of two that start at once each counts the other, and it may be
that both leave and come again, but never that both stay where only one has room.
"""

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import asyncpg
from sqlalchemy.engine import make_url

from everycent.errors import InvalidRequest

logger = logging.getLogger(__name__)

CONNECT_SECONDS: Final = 5.0
LOOK_SECONDS: Final = 5.0
ITSELF: Final = 1  # The connection that tells.

_LIMITS = (
    "SELECT current_setting('max_connections')::int"
    " - current_setting('superuser_reserved_connections')::int"
    " - coalesce(current_setting('reserved_connections', true)::int, 0) AS server,"
    " d.datconnlimit AS database, r.rolconnlimit AS role, d.datname, r.rolname"
    " FROM pg_database d, pg_roles r"
    " WHERE d.datname = current_database() AND r.rolname = current_user"
)
_TOLD = (
    "SELECT datname, usename AS rolname, application_name AS name,"
    " substring(application_name FROM ' up to ([0-9]+)$')::int AS connections"
    " FROM pg_stat_activity WHERE application_name ~ '^everycent .+: up to [0-9]+$'"
)


@dataclass(frozen=True)
class Told:
    """What a process has said: how many connections it may open, where, and as whom."""

    datname: str
    rolname: str
    name: str
    connections: int


@dataclass(frozen=True)
class Limits:
    """How many connections may be open: to the server, the database and by the role; None is all.

    What PostgreSQL keeps for its superusers is taken off.
    """

    server: int
    database: int | None
    role: int | None
    datname: str
    rolname: str


def overdrawn(limits: Limits, told: Sequence[Told]) -> str:
    """Say which limit all that was told goes beyond, with the figures; an empty text if none."""
    scopes = (
        (f"the database {limits.datname}", limits.database, _of(told, datname=limits.datname)),
        (f"the role {limits.rolname}", limits.role, _of(told, rolname=limits.rolname)),
        ("the server", limits.server, list(told)),
    )
    for scope, limit, counted in scopes:
        wanted = sum(each.connections for each in counted)
        if limit is not None and wanted > limit:
            names = sorted(f"{each.name} in {each.datname}" for each in counted)
            return (
                f"workers may open {wanted} connections and {scope} has {limit}:"
                f" {'; '.join(names)}: lower EVERYCENT_POOL__SIZE, start fewer workers, or raise"
                " the limit"
            )
    return ""


@contextlib.asynccontextmanager
async def within_limits(who: str, wanted: Mapping[str, int]) -> AsyncIterator[None]:
    """Tell each database (by its DSN) how many connections `who` may open, for the time within.

    Raises InvalidRequest with the figures where all workers together may open more than the
    database allows. One that does not answer is told when it does.
    """
    async with contextlib.AsyncExitStack() as stack:
        tellers = [_Teller(dsn, who, connections) for dsn, connections in wanted.items()]
        for teller in tellers:
            stack.callback(teller.close)
            await teller.tell()
        for teller in tellers:
            await teller.check()
        going_on = [asyncio.create_task(teller.go_on()) for teller in tellers]
        try:
            yield
        finally:
            for task in going_on:
                task.cancel()
            await asyncio.gather(*going_on, return_exceptions=True)


class _Teller:
    """One connection whose name is what it tells; it comes back when its server does."""

    def __init__(self, dsn: str, who: str, connections: int) -> None:
        url = make_url(dsn).set(drivername="postgresql")
        self._dsn = url.render_as_string(hide_password=False)
        self._where = f"{url.host}:{url.port}/{url.database}"
        self._name = f"everycent {who}: up to {connections + ITSELF}"
        self._connection: asyncpg.Connection[Any] | None = None

    async def tell(self) -> None:
        """Tell it, if the database answers; raises InvalidRequest if that has no room for it."""
        try:
            self._connection = await asyncpg.connect(
                self._dsn,
                timeout=CONNECT_SECONDS,
                server_settings={"application_name": self._name},
            )
        except asyncpg.TooManyConnectionsError as error:
            raise InvalidRequest(f"{self._where} has no connection left: {error}") from error
        except (OSError, TimeoutError, asyncpg.PostgresError) as error:
            logger.warning("%s does not answer, it is told later: %s", self._where, error)

    async def check(self) -> None:
        """Count what all have told. Raises InvalidRequest when it is more than there is."""
        if self._connection is None:
            return
        try:
            problem = await self._problem(self._connection)
        except (OSError, TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError) as error:
            logger.warning("%s does not answer, nothing is counted: %s", self._where, error)
            return
        if problem:
            raise InvalidRequest(problem)

    @staticmethod
    async def _problem(connection: "asyncpg.Connection[Any]") -> str:
        found = await connection.fetchrow(_LIMITS, timeout=CONNECT_SECONDS)
        assert found is not None, "a session has a database and a role"
        limits = Limits(
            server=found["server"],
            database=_or_none(found["database"]),
            role=_or_none(found["role"]),
            datname=found["datname"],
            rolname=found["rolname"],
        )
        told = await connection.fetch(_TOLD, timeout=CONNECT_SECONDS)
        return overdrawn(limits, [Told(**row) for row in told])

    async def go_on(self) -> None:
        """Tell it again when the connection was lost; who works is not stopped by a count."""
        while True:
            await asyncio.sleep(LOOK_SECONDS)
            if self._connection is None or self._connection.is_closed():
                with contextlib.suppress(InvalidRequest):
                    await self.tell()

    def close(self) -> None:
        if self._connection is not None:
            self._connection.terminate()


def _or_none(limit: int) -> int | None:
    """PostgreSQL says -1 for a limit that there is not."""
    return None if limit < 0 else limit


def _of(told: Sequence[Told], **where: str) -> list[Told]:
    return [t for t in told if all(getattr(t, name) == value for name, value in where.items())]
