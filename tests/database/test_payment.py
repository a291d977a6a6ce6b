"""The rules of payments, refunds and calls as the database itself keeps them, by name."""

from typing import Any

import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from everycent.database.engine import Database
from everycent.errors import Bug, EverycentError
from everycent.settings import ServiceName


@pytest.fixture
def database(databases: dict[ServiceName, Database]) -> Database:
    return databases["payment"]


@pytest.fixture
async def key(database: Database, tenant: str) -> str:
    """A captured payment of 100, of which 40 are refunded, and an answered call."""
    key = f"{tenant}/o-1/pay/first"
    async with database.transaction() as tx:
        await run(
            tx,
            "INSERT INTO payment (key, opened_on, state, request_hash, hash_version, amount_minor,"
            " currency, method) VALUES (:key, '2026-01-02', 'TRIED', 'h', 1, 100, 'EUR', 'card')",
            key,
        )
        await run(
            tx,
            "UPDATE payment SET status = 'CAPTURED', captured_minor = 100, refunded_minor = 40,"
            " provider_id = 'int_1', try_answer = '{}' WHERE key = :key",
            key,
        )
        await run(
            tx,
            "INSERT INTO provider_call (key, provider_key, request_hash, sent_at,"
            " may_arrive_until, open_sends)"
            " VALUES (:key, :key, 'h', '2026-01-02', '2026-01-03', 1)",
            key,
        )
        await run(
            tx,
            "UPDATE provider_call SET answer = '{}', answered_at = '2026-01-02' WHERE key = :key",
            key,
        )
    return key


@pytest.mark.requirement("AC10.6")
@pytest.mark.parametrize(
    ("change", "rule"),
    [
        ("refunded_minor = 101", "payment_refunded_within_captured"),
        ("refunded_minor = -1", "payment_refunded_within_captured"),
        ("captured_minor = 101", "payment_captured_within_amount"),
        ("captured_minor = 40", "payment_facts_are_fixed"),
        ("amount_minor = 200", "payment_request_is_fixed"),
        ("provider_id = 'int_2'", "payment_facts_are_fixed"),
        ("status = 'VOIDED'", "payment_captured_has_status"),
        ("state = 'REFUSED'", "payment_state_moves_forward"),
        ("cancelling = true", "payment_cancelling_is_tried"),
        ("capture_refusal = '{}', state = 'CONFIRMED'", "payment_refused_takes_nothing"),
        ("try_answer = '[]'", "payment_answer_is_fixed"),
    ],
)
async def test_a_payment_that_breaks_a_rule_is_refused_by_its_name(
    database: Database, key: str, change: str, rule: str
) -> None:
    """Red when: the named constraint is missing."""
    await refused(database, f"UPDATE payment SET {change} WHERE key = :key", key, rule)


@pytest.mark.requirement("T25")
@pytest.mark.parametrize(
    "change",
    ["answer = '[]'", "answer = NULL, answered_at = NULL", "open_sends = 2", "request_hash = 'x'"],
)
async def test_the_answer_of_a_call_never_changes(
    database: Database, key: str, change: str
) -> None:
    """Red when: a second answer overwrites the first."""
    sql = f"UPDATE provider_call SET {change} WHERE key = :key"
    await refused(database, sql, key, "provider_call_answer_is_fixed")


async def test_a_call_that_arrives_before_it_is_sent_is_refused(
    database: Database, key: str
) -> None:
    sql = (
        "INSERT INTO provider_call (key, provider_key, request_hash, sent_at, may_arrive_until,"
        " open_sends) VALUES (:key || '/x', :key || '/x', 'h', '2026-01-03', '2026-01-02', 1)"
    )
    await refused(database, sql, key, "provider_call_arrives_after_sending")


async def test_two_calls_never_share_a_provider_key(database: Database, key: str) -> None:
    sql = (
        "INSERT INTO provider_call (key, provider_key, request_hash, sent_at, may_arrive_until,"
        " open_sends) VALUES (:key || '/x', :key, 'h', '2026-01-02', '2026-01-02', 1)"
    )
    await refused(database, sql, key, "provider_call_provider_key_unique")


async def test_the_worker_deletes_nothing(database: Database, key: str) -> None:
    for table in ("payment", "refund", "provider_call"):
        with pytest.raises(Exception, match="permission denied"):
            async with database.transaction() as tx:
                await run(tx, f"DELETE FROM {table} WHERE key = :key", key)


async def refused(database: Database, sql: str, key: str, rule: str) -> None:
    with pytest.raises(EverycentError, match=rule) as error:
        async with database.transaction() as tx:
            await run(tx, sql, key)
    assert isinstance(error.value, Bug)


async def run(tx: AsyncConnection, sql: str, key: str) -> Any:
    return await tx.execute(text(sql), {"key": key})
