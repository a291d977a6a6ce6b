"""Connections and the only COMMIT; a driver's error becomes one of our classes here."""

import asyncio
import contextlib
import functools
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextvars import ContextVar
from typing import Any

from sqlalchemy import TextClause, event, text
from sqlalchemy.engine import make_url
from sqlalchemy.exc import DBAPIError, IntegrityError
from sqlalchemy.exc import TimeoutError as PoolExhausted
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine

from everycent import faults
from everycent.errors import Bug, PoolTimeout, Transient, Unknown, Unreachable
from everycent.settings import PoolSettings

_WAKES = "everycent_wakes"
_in_transaction: ContextVar[bool] = ContextVar("in_transaction", default=False)

# SQLSTATE classes that say "not now": connection, resources, operator, and serialization or locks.
_TRANSIENT_CLASSES = ("08", "53", "57", "40")
_TRANSIENT_STATES = ("55P03", "25P03", "25P04", "55006", "25006")


class Database:
    """One service's database, through one pool of a bounded size.

    `ping` looks whether a connection still lives before it is used: for readers, whom nobody
    sends again; a worker's step is retried. `on_held` is told, in seconds, how long each connection
    was out of the pool.
    """

    def __init__(
        self,
        dsn: str,
        pool: PoolSettings,
        *,
        name: str = "everycent",
        ping: bool = False,
        on_held: Callable[[float], None] | None = None,
    ) -> None:
        self.pool = pool
        self._on_held = on_held
        self.engine = _engine(dsn, pool, name, ping=ping)
        self._turns = asyncio.Semaphore(pool.size)

    @contextlib.asynccontextmanager
    async def transaction(self) -> AsyncIterator[AsyncConnection]:
        """Open a READ COMMITTED transaction and commit it at the end; the only commit there is.

        Raises Transient when nothing was kept, and Unknown when the connection died while the
        COMMIT was under way: send the same operation again, its claim waits for the old one.
        """
        async with self._connection() as connection:
            token = _in_transaction.set(True)
            try:
                with _translated():
                    connection.info.pop(_WAKES, None)  # Of a transaction that was rolled back.
                    yield connection
                    if faults.armed is not None:
                        await _reach(faults.armed, "commit.before", connection)
                with _commit_in_doubt():
                    await connection.commit()
                if faults.armed is not None:
                    await _reach(faults.armed, "commit.after", connection)
                await _wake(connection)
            finally:
                _in_transaction.reset(token)

    @contextlib.asynccontextmanager
    async def snapshot(self) -> AsyncIterator[AsyncConnection]:
        """Open a read-only REPEATABLE READ transaction: everything read in it is of one instant."""
        async with self._connection() as connection:
            token = _in_transaction.set(True)
            try:
                with _translated():
                    await connection.execution_options(
                        isolation_level="REPEATABLE READ", postgresql_readonly=True
                    )
                    yield connection
                    await connection.rollback()
            finally:
                _in_transaction.reset(token)

    @contextlib.asynccontextmanager
    async def _connection(self) -> AsyncIterator[AsyncConnection]:
        """Lend a connection to who has waited longest; the pool lets newcomers overtake."""
        try:
            async with asyncio.timeout(self.pool.wait_seconds):
                await self._turns.acquire()
        except TimeoutError as error:
            raise PoolTimeout("no database connection became free in time") from error
        try:
            with _translated():
                connection = await self.engine.connect()
            taken_at = time.perf_counter()
            try:
                yield connection
            finally:
                await _give_back(connection)
                if self._on_held is not None:
                    self._on_held(time.perf_counter() - taken_at)
        finally:
            self._turns.release()

    async def close(self) -> None:
        """Close every connection of the pool."""
        await self.engine.dispose()


@functools.lru_cache(maxsize=1024)
def sql(statement: str) -> TextClause:
    """Return the statement, parsed once: `text` looks for its parameters anew at every call."""
    return text(statement)


def wake_after_commit(tx: AsyncConnection, channel: str) -> None:
    """Have whoever listens on the channel woken once the transaction stands.

    Not in it: a NOTIFY makes all commits of a server wait for one another (decision 0009).
    """
    tx.info.setdefault(_WAKES, set()).add(channel)


def assert_no_transaction() -> None:
    """Stop a network call that would be made inside a transaction of this task (design rule 11)."""
    if _in_transaction.get():
        raise Bug("a call to the outside was made inside a database transaction")


def _engine(dsn: str, pool: PoolSettings, name: str, *, ping: bool) -> AsyncEngine:
    url = make_url(dsn).set(drivername="postgresql+asyncpg")
    engine = create_async_engine(
        url,
        pool_size=pool.size,
        max_overflow=0,
        pool_timeout=pool.wait_seconds,
        pool_use_lifo=True,
        pool_pre_ping=ping,
        connect_args={
            "timeout": pool.wait_seconds,
            "server_settings": {
                "application_name": name,
                "timezone": "UTC",
                # We look rows up by key. Priced as on a spinning disk, a hundred keys of a table
                # of some thousand rows are read by scanning it all.
                "random_page_cost": "1.1",
                "lock_timeout": _milliseconds(pool.lock_timeout_seconds),
                "statement_timeout": _milliseconds(pool.statement_timeout_seconds),
                "idle_in_transaction_session_timeout": _milliseconds(
                    pool.idle_in_transaction_seconds
                ),
            },
        },
    )
    limit = _milliseconds(pool.transaction_timeout_seconds)

    @event.listens_for(engine.sync_engine, "connect")
    def _limit_transactions(connection: Any, _record: Any) -> None:
        # A setting of PostgreSQL 17 and later; 15 and 16 do with the statement and idle limits.
        cursor = connection.cursor()
        cursor.execute(
            "SELECT set_config('transaction_timeout', $1, false)"
            " WHERE current_setting('server_version_num')::int >= 170000",
            (limit,),
        )
        cursor.close()
        connection.commit()

    return engine


async def _reach(armed: faults.Faults, point: str, connection: AsyncConnection) -> None:
    """Come to a fault point; the journal names the session, so that others can end it."""
    raw = await connection.get_raw_connection()
    session = raw.driver_connection
    assert session is not None, "a connection in use has its driver's"
    await armed.reach(point, backend=session.get_server_pid())


def _milliseconds(seconds: float) -> str:
    return str(int(seconds * 1000))


async def _wake(connection: AsyncConnection) -> None:
    """Send what `wake_after_commit` was asked for; who is not woken looks by himself later."""
    for channel in connection.info.pop(_WAKES, ()):
        with contextlib.suppress(DBAPIError, OSError):
            await connection.execute(sql("SELECT pg_notify(:channel, '')"), {"channel": channel})
            await connection.commit()


async def _give_back(connection: AsyncConnection) -> None:
    """Return the connection to its pool, rolling back what is open; a dead one is thrown away."""
    with contextlib.suppress(DBAPIError, OSError):
        await connection.close()


@contextlib.contextmanager
def _translated() -> Iterator[None]:
    """Turn a driver's error before COMMIT into ours: nothing of the transaction was kept."""
    try:
        yield
    except PoolExhausted as error:
        raise PoolTimeout("no database connection became free in time") from error
    except IntegrityError as error:
        raise Bug(f"constraint {constraint_of(error)} refused a write: {error.orig}") from error
    except DBAPIError as error:
        if _is_transient(error):
            raise Transient(f"the database gave up: {error.orig}") from error
        if (sqlstate_of(error) or "").startswith("22"):  # A value that no column can hold.
            raise Bug(f"the database refused a value: {error.orig}") from error
        raise
    except (OSError, TimeoutError) as error:
        raise Unreachable(f"the database cannot be reached: {error}") from error


@contextlib.contextmanager
def _commit_in_doubt() -> Iterator[None]:
    """Turn an error during COMMIT into ours: a refusal is a no, silence is Unknown."""
    try:
        yield
    except DBAPIError as error:
        state = sqlstate_of(error)
        if state is None or error.connection_invalidated or state.startswith(("08", "57")):
            raise Unknown(f"the connection was lost during COMMIT: {error.orig}") from error
        if _is_transient(error):
            raise Transient(f"the database refused the COMMIT: {error.orig}") from error
        raise Bug(f"the database refused the COMMIT: {error.orig}") from error
    except (OSError, TimeoutError) as error:
        raise Unknown(f"the connection was lost during COMMIT: {error}") from error


def _is_transient(error: DBAPIError) -> bool:
    state = sqlstate_of(error)
    if state is None:  # asyncpg's InterfaceError: the connection is gone.
        return True
    return state.startswith(_TRANSIENT_CLASSES) or state in _TRANSIENT_STATES


def sqlstate_of(error: DBAPIError) -> str | None:
    """Return PostgreSQL's five-character code, or None when the server did not speak."""
    return getattr(error.orig, "sqlstate", None)


def constraint_of(error: IntegrityError) -> str | None:
    """Return the name of the constraint that refused."""
    cause = getattr(error.orig, "__cause__", None)
    return getattr(cause, "constraint_name", None)
