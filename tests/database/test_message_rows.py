"""The rows of messages: their rules, their locks, the guards of each write, and who may do what."""

import json
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from everycent.database import choreography, inbox, lanes, order, outbox
from everycent.database.engine import Database
from everycent.database.migrate import RELAY_MARKS
from everycent.domain.messaging import Envelope, Event, Mark, OutboxState
from everycent.settings import SERVICES, ServiceName, Settings
from tests.conftest import NOON, TODAY
from tests.database import test_constraints as constraints
from tests.database import test_lock_order as lock_order
from tests.database.test_constraints import AT, DAY, KEY, Rule, insert, rules
from tests.database.test_lock_order import KEYS, ORDERS, Case, an_order, placed
from tests.database.test_privileges import privileges

Pools = dict[ServiceName, Database]


def message(table: str, **more: Any) -> str:
    """Return an INSERT of a message; `:t` names the shop."""
    where = {"sink": "'inbox:x'", "lane": 1} if table == "outbox" else {"source": "'x'"}
    received = {} if table == "outbox" else {"received_at": AT}
    values: dict[str, Any] = {
        "key": KEY, "opened_on": DAY, "aggregate": ":t || '/o'", "number": 1, "type": "'x'",
        "schema_version": 1, "payload": "'{}'", "content_hash": "'h'", "at": AT,
        "state": "'PENDING'" if table == "outbox" else "'RECEIVED'", "next_retry_at": AT,
    }  # fmt: skip
    return insert(table, **{**values, **where, **received, **more})


def changed(table: str, change: str) -> str:
    return f"UPDATE {table} SET {change} WHERE key = {KEY}"


def number() -> str:
    return insert("outbox_number", opened_on=DAY, aggregate=":t || '/o'", last=1)


def _of(table: str) -> list[Rule]:
    made, consumed = message(table), message(table, state="'CONSUMED'")
    return rules(
        "order",
        (f"{table}_first_pkey", (made, made)),
        (f"{table}_state_is_known", message(table, state="'LOST'")),
        (f"{table}_dead_says_why", message(table, state="'DEAD'")),
        *(
            (f"{table}_message_is_fixed", (made, changed(table, f"{column} = {value}")))
            for column, value in (
                ("key", "'x' || :t"), ("opened_on", "'2026-01-03'"), ("aggregate", "'x'"),
                ("number", "2"), ("type", "'y'"), ("content_hash", "'x'"),
            )
        ),
        (f"{table}_consumed_is_final", (consumed, changed(table, "state = 'DEAD'"))),
    )  # fmt: skip


RULES = [
    *_of("outbox"),
    *_of("inbox"),
    *rules(
        "order",
        ("outbox_number_first_pkey", (number(), number())),
        ("outbox_lane_pkey", "INSERT INTO outbox_lane (lane) VALUES (0)"),
    ),
]


@pytest.mark.parametrize("rule", RULES, ids=constraints.ids(RULES))
async def test_a_broken_rule_of_messages_is_refused_by_its_name(
    owners: Pools, tenant: str, rule: Rule
) -> None:
    await constraints.test_a_broken_rule_is_refused_by_its_name(owners, tenant, rule)


def envelope(tenant: str, name: str, **more: Any) -> Envelope:
    values: dict[str, Any] = {
        "key": f"{tenant}/{name}/step", "aggregate": f"{tenant}/{name}", "opened_on": TODAY,
        "at": NOON, "type": "x", "schema_version": 1, "payload": {}, "content_hash": "h",
        "number": 1, "source": "x", "sink": "inbox:x",
    }  # fmt: skip
    return Envelope.model_validate({**values, **more})


def event(tenant: str, name: str) -> Event:
    return Event(
        key=f"{tenant}/{name}/step", aggregate=f"{tenant}/{name}", opened_on=TODAY, at=NOON,
        type="x", schema_version=1, payload={}, to=("inbox:x",),
    )  # fmt: skip


def keyed(table: str) -> Any:
    return lambda name: message(table, key=f":t || '/{name}/step'", aggregate=f":t || '/{name}'")


def asked() -> str:
    return "'" + json.dumps(placed("x", "o").model_dump(mode="json")) + "'"


async def standings(tx: AsyncConnection, tenant: str, names: list[str]) -> Any:
    return await choreography.standings(tx, [(tenant, name) for name in names])


LOCKS = {
    "inbox": Case(
        "inventory", keyed("inbox"), f"inbox WHERE {KEYS}",
        lambda tx, t, n: inbox.lock(tx, [envelope(t, name) for name in n]),
    ),
    "choreographed orders": Case(
        "order", an_order(request=asked()), f"shop_order WHERE {ORDERS}", standings
    ),
}  # fmt: skip
INSERTS = {
    "inbox": Case(
        "inventory", keyed("inbox"), "",
        lambda tx, t, n: inbox.receive(tx, [envelope(t, name) for name in n], at=NOON),
    ),
    "outbox": Case(
        "order", keyed("outbox"), "",
        lambda tx, t, n: outbox._insert(
            tx, [outbox._row(event(t, name), "inbox:x", 1) for name in n]
        ),
    ),
    "numbers": Case(
        "order",
        lambda name: insert("outbox_number", opened_on=DAY, aggregate=f":t || '/{name}'", last=1),
        "", lambda tx, t, n: outbox._numbers(tx, [event(t, name) for name in n]),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", LOCKS)
async def test_messages_are_locked_in_order(
    settings: Settings, tenant: str, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(lock_order.LOCKS, name, LOCKS[name])
    await lock_order.test_rows_are_locked_in_order(settings, tenant, name)


@pytest.mark.parametrize("name", INSERTS)
async def test_messages_are_inserted_in_order(
    settings: Settings, tenant: str, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(lock_order.INSERTS, name, INSERTS[name])
    await lock_order.test_rows_are_inserted_in_order(settings, tenant, name)


async def test_a_message_is_finished_once_and_only_where_it_is(
    databases: Pools, tenant: str
) -> None:
    done = envelope(tenant, "o")
    async with databases["inventory"].transaction() as tx:
        await inbox.receive(tx, [done], at=NOON)
        await inbox.finish(tx, [done], at=NOON)
        with pytest.raises(AssertionError):
            await inbox.finish(tx, [done], at=NOON)
    with pytest.raises(AssertionError):
        async with databases["inventory"].transaction() as tx:
            await inbox.finish(tx, [envelope(tenant, "absent")], at=NOON)


async def test_a_message_that_was_consumed_is_not_put_off(databases: Pools, tenant: str) -> None:
    done = envelope(tenant, "o")
    async with databases["inventory"].transaction() as tx:
        await inbox.receive(tx, [done], at=NOON)
        await inbox.finish(tx, [done], at=NOON)
        await inbox.put_off(tx, done, until=None, error="too late", at=NOON)
        [standing] = await inbox.receive(tx, [done], at=NOON)
    assert (standing.state, standing.error) == ("CONSUMED", "")


async def test_every_message_that_is_marked_is_there(databases: Pools, tenant: str) -> None:
    with pytest.raises(AssertionError):
        async with databases["order"].transaction() as tx:
            sent = Mark(OutboxState.SENT, NOON)
            await lanes.mark(tx, [(envelope(tenant, "absent"), sent)], at=NOON)


async def test_only_open_choreographed_orders_that_nobody_holds_expire(
    databases: Pools, owners: Pools, tenant: str
) -> None:
    """One is a workflow's; one is just being decided by somebody, who is not waited for."""
    later = NOON + timedelta(days=1)
    async with owners["order"].transaction() as tx:
        await tx.execute(text("DELETE FROM shop_order WHERE driver LIKE 'choreographed/%'"))
    async with databases["order"].transaction() as tx:
        await order.open_order(tx, lock_order.opening(tenant, ["a"]))
        await choreography.open_choreographed(tx, placed(tenant, "b"), at=NOON)
    async with owners["order"].engine.connect() as holder:
        held = text("SELECT FROM shop_order WHERE tenant = :t AND order_id = 'b' FOR UPDATE")
        await holder.execute(held, {"t": tenant})
        async with databases["order"].transaction() as tx:
            assert await choreography.expire_choreographed(tx, at=later, limit=9) == 0
    async with databases["order"].transaction() as tx:
        assert await choreography.expire_choreographed(tx, at=later, limit=9) == 1


@pytest.mark.parametrize("service", SERVICES)
async def test_a_relay_reads_and_marks_the_outbox_and_writes_into_the_inbox_no_more(
    owners: Pools, service: ServiceName
) -> None:
    """Red when: the relay is given another table, or may change what a message says."""
    may = await privileges(owners[service], f"everycent_{service}_relay")
    assert may == {
        "outbox": {"SELECT"},
        "outbox_lane": {"SELECT"},
        "inbox": {"SELECT", "INSERT"},
        "alembic_version": {"SELECT"},
    }
    async with owners[service].engine.connect() as connection:
        found = await connection.execute(
            text(
                "SELECT table_name, column_name FROM information_schema.column_privileges"
                " WHERE grantee = :role AND privilege_type = 'UPDATE'"
            ),
            {"role": f"everycent_{service}_relay"},
        )
        columns = {(row.table_name, row.column_name) for row in found}
    assert columns == {(t, column) for t, names in RELAY_MARKS.items() for column in names}
