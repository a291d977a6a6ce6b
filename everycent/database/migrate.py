"""Bring every service's database to the newest schema, with its roles (design rule 11).

Four roles per service: an owner, used by this module alone; a worker that owns no table and may
neither delete nor change what is append-only; a reader; and the relay. A role or
database that is missing is made when the owner may do so; otherwise the error says what a DBA has
to create.
"""

from collections.abc import Sequence
from pathlib import Path

from alembic import command
from alembic.config import Config
from sqlalchemy import Connection, text
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import DBAPIError, ProgrammingError
from sqlalchemy.ext.asyncio import AsyncConnection, create_async_engine

from everycent import clock
from everycent.database.partitions import AGING, make_partitions
from everycent.errors import InvalidRequest, Unreachable
from everycent.settings import SERVICES, ServiceName, Settings

MIGRATIONS = Path(__file__).with_name("migrations")

# What the worker may insert but never change or delete; a trigger says the same to everybody.
APPEND_ONLY: dict[ServiceName, tuple[str, ...]] = {
    "order": ("routing_rule",),
    "inventory": ("reservation_line",),
    "ledger": ("entry", "transfer_leg", "reversal"),
}


# What a relay may change: where a message stands, and whose a lane is.
RELAY_MARKS = {
    "outbox": ["state", "attempts", "next_retry_at", "last_error", "sent_at", "consumed_at"],
    "outbox_lane": ["fence", "holder", "claimed_at", "held_until"],
}


async def migrate(settings: Settings, services: Sequence[ServiceName] = SERVICES) -> list[str]:
    """Migrate these services, all of them as a rule; return a line for each, what it is at now.

    Safe to run again and at the same time as another: an advisory lock lets one through.
    """
    missing = [name for name in services if name not in settings.owner]
    if missing:
        names = ", ".join(f"EVERYCENT_OWNER__{name.upper()}" for name in missing)
        raise InvalidRequest(f"migrate needs the owners' DSNs; missing: {names}")
    return [await _migrate_service(settings, name) for name in services]


def head_of(service: ServiceName) -> str:
    """Return the newest revision of a service's history."""
    from alembic.script import ScriptDirectory

    head = ScriptDirectory.from_config(_config(service)).get_current_head()
    assert head is not None, f"{service} has no history"
    return head


async def _migrate_service(settings: Settings, service: ServiceName) -> str:
    owner = make_url(settings.owner[service]).set(drivername="postgresql+asyncpg")
    await _ensure_database(owner)
    engine = create_async_engine(owner)
    try:
        async with engine.begin() as connection:
            # Two `migrate` at once: the second waits here and then finds nothing to do.
            await connection.execute(text("SELECT pg_advisory_xact_lock(5041501)"))
            await connection.run_sync(_upgrade, service)
            await _grant(connection, service, _role(settings.database, service), writes=True)
            await _grant(connection, service, _role(settings.read, service), writes=False)
            await _grant_relay(connection, _role(settings.relay, service))
        for table in AGING.get(service, ()):
            await make_partitions(engine, table, today=clock.now().date())
    finally:
        await engine.dispose()
    return f"{service}: {owner.database} is at {head_of(service)}"


def _upgrade(connection: Connection, service: ServiceName) -> None:
    config = _config(service)
    config.attributes["connection"] = connection
    command.upgrade(config, "head")


def _config(service: ServiceName) -> Config:
    config = Config()
    # Alembic reads `%` as interpolation; the folder may hold one.
    config.set_main_option("script_location", str(MIGRATIONS).replace("%", "%%"))
    config.set_main_option("version_locations", str(MIGRATIONS / service).replace("%", "%%"))
    config.set_main_option("path_separator", "newline")
    return config


async def _ensure_database(owner: URL) -> None:
    """Create the database when the server has none of that name."""
    engine = create_async_engine(owner.set(database="postgres"), isolation_level="AUTOCOMMIT")
    try:
        async with engine.connect() as connection:
            found = await connection.scalar(
                text("SELECT 1 FROM pg_database WHERE datname = :name"), {"name": owner.database}
            )
            if not found:
                await connection.execute(text(f"CREATE DATABASE {_quoted(owner.database or '')}"))
                await connection.execute(
                    text(f"REVOKE ALL ON DATABASE {_quoted(owner.database or '')} FROM PUBLIC")
                )
    except DBAPIError as error:
        if getattr(error.orig, "sqlstate", None) == "42P04":  # Another migrate was first.
            return
        raise InvalidRequest(
            f"database {owner.database} cannot be created or looked up by"
            f" {owner.username}: {error.orig}"
        ) from error
    except OSError as error:
        raise Unreachable(f"no PostgreSQL at {owner.host}:{owner.port}: {error}") from error
    finally:
        await engine.dispose()


def _role(dsns: dict[ServiceName, str], service: ServiceName) -> URL | None:
    return make_url(dsns[service]) if service in dsns else None


async def _grant(
    connection: AsyncConnection, service: ServiceName, role: URL | None, *, writes: bool
) -> None:
    """Make the role if it is missing, and give it what it may do, no more."""
    if role is None or role.username is None:
        return
    await _ensure_role(connection, role)
    name = _quoted(role.username)
    tables = "ALL TABLES IN SCHEMA public"
    database = _quoted(role.database or "")
    await _run(connection, f"GRANT CONNECT ON DATABASE {database} TO {name}")
    await _run(connection, f"GRANT USAGE ON SCHEMA public TO {name}")
    await _run(connection, f"REVOKE ALL ON {tables} FROM {name}")
    await _run(connection, f"GRANT SELECT ON {tables} TO {name}")
    if not writes:
        return
    await _run(connection, f"GRANT INSERT, UPDATE ON {tables} TO {name}")
    await _run(connection, f"GRANT USAGE ON ALL SEQUENCES IN SCHEMA public TO {name}")
    for table in APPEND_ONLY.get(service, ()):
        await _run(connection, f"REVOKE UPDATE ON {_quoted(table)} FROM {name}")
    await _run(connection, f"REVOKE INSERT, UPDATE ON alembic_version FROM {name}")


async def _grant_relay(connection: AsyncConnection, role: URL | None) -> None:
    """Let the relay read and mark the outbox, hold its lanes, and write into the inbox.

    What a message says it may not change, nor what became of one that was received.
    """
    if role is None or role.username is None:
        return
    await _grant(connection, "order", role, writes=False)
    name = _quoted(role.username)
    await _run(connection, f"REVOKE SELECT ON ALL TABLES IN SCHEMA public FROM {name}")
    await _run(connection, f"GRANT SELECT ON outbox, outbox_lane, inbox TO {name}")
    await _run(connection, f"GRANT SELECT ON alembic_version TO {name}")
    await _run(connection, f"GRANT INSERT ON inbox TO {name}")
    for table, columns in RELAY_MARKS.items():
        await _run(connection, f"GRANT UPDATE ({', '.join(columns)}) ON {table} TO {name}")


async def _ensure_role(connection: AsyncConnection, role: URL) -> None:
    found = await connection.scalar(
        text("SELECT 1 FROM pg_roles WHERE rolname = :name"), {"name": role.username}
    )
    if found:
        return
    password = f" PASSWORD {_literal(role.password)}" if role.password else ""
    try:
        async with connection.begin_nested():
            await _run(connection, f"CREATE ROLE {_quoted(role.username or '')} LOGIN{password}")
    except ProgrammingError as error:
        raise InvalidRequest(
            f"role {role.username} does not exist and the owner may not create it: {error.orig}"
        ) from error


async def _run(connection: AsyncConnection, statement: str) -> None:
    await connection.exec_driver_sql(statement)


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def _literal(value: str | None) -> str:
    return "'" + str(value or "").replace("'", "''") + "'"
