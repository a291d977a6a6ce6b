"""What each role may do: the database says it, whatever the code does."""

from typing import Any

import asyncpg
import pytest
from sqlalchemy import text
from sqlalchemy.engine import make_url

from everycent.database.engine import Database
from everycent.database.migrate import APPEND_ONLY, migrate
from everycent.settings import SERVICES, ServiceName, Settings

ALL = ("SELECT", "INSERT", "UPDATE", "DELETE", "TRUNCATE", "REFERENCES", "TRIGGER")


async def privileges(owner: Database, role: str) -> dict[str, set[str]]:
    """Return what the role may do with each table."""
    async with owner.engine.connect() as connection:
        rows = await connection.execute(
            text(
                "SELECT relname, kind FROM pg_class, unnest(CAST(:kinds AS text[])) AS kind"
                " WHERE relnamespace = 'public'::regnamespace AND relkind IN ('r', 'p')"
                " AND has_table_privilege(:role, pg_class.oid, kind)"
            ),
            {"kinds": list(ALL), "role": role},
        )
    found: dict[str, set[str]] = {}
    for row in rows:
        found.setdefault(row.relname, set()).add(row.kind)
    return found


def expected(service: ServiceName, table: str) -> set[str]:
    if table == "alembic_version":
        return {"SELECT"}
    append_only = table in APPEND_ONLY.get(service, ())
    return {"SELECT", "INSERT"} if append_only else {"SELECT", "INSERT", "UPDATE"}


@pytest.mark.parametrize("service", SERVICES)
async def test_a_worker_reads_and_writes_and_a_reader_reads(
    owners: dict[ServiceName, Database], service: ServiceName
) -> None:
    """Nobody but the owner deletes, and what is append-only is changed by nobody."""
    worker = await privileges(owners[service], f"everycent_{service}")
    assert worker == {table: expected(service, table) for table in worker}
    assert len(worker) > 2
    reader = await privileges(owners[service], f"everycent_{service}_read")
    assert reader == {table: {"SELECT"} for table in worker}


async def test_what_was_granted_by_hand_is_gone_after_the_next_migration(
    settings: Settings, owners: dict[ServiceName, Database]
) -> None:
    async with owners["ledger"].transaction() as tx:
        await tx.execute(
            text("GRANT DELETE ON transfer TO everycent_ledger, everycent_ledger_read")
        )
    await migrate(settings, ["ledger"])
    for role in ("everycent_ledger", "everycent_ledger_read"):
        assert "DELETE" not in (await privileges(owners["ledger"], role))["transfer"]


@pytest.mark.parametrize("table", ["transfer_leg", "entry", "reversal"])
async def test_the_ledger_is_append_only_for_its_worker(
    owners: dict[ServiceName, Database], table: str
) -> None:
    assert (await privileges(owners["ledger"], "everycent_ledger"))[table] == {"SELECT", "INSERT"}


async def test_a_routing_rule_is_append_only_for_its_worker(
    owners: dict[ServiceName, Database],
) -> None:
    worker = await privileges(owners["order"], "everycent_order")
    assert worker["routing_rule"] == {"SELECT", "INSERT"}


async def test_the_lines_of_a_reservation_are_append_only_for_its_worker(
    owners: dict[ServiceName, Database],
) -> None:
    worker = await privileges(owners["inventory"], "everycent_inventory")
    assert worker["reservation_line"] == {"SELECT", "INSERT"}


async def test_no_role_reaches_the_database_of_another_service(settings: Settings) -> None:
    url = make_url(settings.database["ledger"])
    stranger: dict[str, Any] = {"user": "everycent_points", "password": "test"}
    with pytest.raises(asyncpg.InsufficientPrivilegeError):
        await asyncpg.connect(host=url.host, port=url.port, database=url.database, **stranger)
