"""An aging fence: what is claimed on its months, with the same promises as on one table."""

from datetime import date, timedelta
from typing import Any

import pytest
from sqlalchemy import event, text

from everycent.database.engine import Database
from everycent.errors import AlreadyCancelled, KeyReused, NothingTried
from tests.database.aging import SEEN, cancel, confirm, end, hold, try_
from tests.database.test_partitions import DAY, owner, worker

__all__ = ["owner", "worker"]


async def states(owner: Database) -> dict[tuple[str, date], str]:
    async with owner.transaction() as tx:
        rows = await tx.execute(text(f"SELECT key, opened_on, state FROM {SEEN.name}"))
        return {(row.key, row.opened_on): row.state for row in rows}


@pytest.mark.requirement("AC13.3", "AC13.8")
@pytest.mark.parametrize(
    "day", [date(2026, 1, 31), date(2026, 2, 1), date(2031, 1, 1), date(1990, 1, 1)]
)
async def test_a_late_try_finds_the_tombstone_in_its_month(worker: Database, day: date) -> None:
    """Also on the days at the edges of a month, before the first and after the last.

    Red when: a Cancel leaves no tombstone there, or the claim looks in another partition.
    """
    async with worker.transaction() as tx:
        await cancel(tx, [end("s/o/x", day)])
    async with worker.transaction() as tx:
        said = await try_(tx, [hold("s/o/x", day)])
        again = await cancel(tx, [end("s/o/x", day)])
    assert isinstance(said["s/o/x"], AlreadyCancelled)
    assert again == {"s/o/x": {"text": "cancelled"}}


async def test_a_batch_of_many_days_moves_the_rows_of_its_days_alone(
    worker: Database, owner: Database
) -> None:
    """A row of the same key on another day of the batch is another row, and stays as it is."""
    days = {"s/o-1/x": date(2026, 1, 5), "s/o-2/x": date(2026, 2, 5), "s/o-3/x": date(2026, 3, 5)}
    strange = ("s/o-1/x", date(2026, 2, 5))
    async with worker.transaction() as tx:
        await try_(tx, [hold(*strange)])
    async with worker.transaction() as tx:
        assert await try_(tx, [hold(*item) for item in days.items()]) == {}
    async with worker.transaction() as tx:
        held = {"text": "held"}
        assert await try_(tx, [hold(*item) for item in days.items()]) == dict.fromkeys(days, held)
        assert await confirm(tx, [end(*item) for item in days.items()]) == {}
    assert await states(owner) == {
        **dict.fromkeys(days.items(), "CONFIRMED"), strange: "TRIED",
    }  # fmt: skip


@pytest.mark.requirement("AC13.8")
async def test_a_key_with_two_days_is_refused_where_it_can_be_seen(
    worker: Database, owner: Database
) -> None:
    """In one batch it is told; a Confirm of another day finds nothing tried, and moves nothing.

    Red when: `_each_key_once` compares the hash alone, or the lock finds the row of another day.
    """
    async with worker.transaction() as tx:
        said = await try_(tx, [hold("s/o/x", DAY), hold("s/o/x", DAY + timedelta(days=1))])
        assert isinstance(said["s/o/x"], KeyReused)
    async with worker.transaction() as tx:
        said = await confirm(tx, [end("s/o/x", DAY + timedelta(days=1)), end("s/p/x", DAY)])
    assert {key: type(error) for key, error in said.items()} == dict.fromkeys(
        ("s/o/x", "s/p/x"), NothingTried
    )
    assert await states(owner) == {("s/o/x", DAY): "TRIED"}


@pytest.mark.parametrize("planned", ["force_generic_plan", "force_custom_plan"])
async def test_every_statement_looks_into_the_months_of_its_batch_alone(
    worker: Database, owner: Database, planned: str
) -> None:
    """However PostgreSQL plans: once for all values, or for these.

    Red when: `_PRUNED` is left out.
    """
    said: list[tuple[str, Any]] = []

    def note(_c: Any, _k: Any, statement: str, parameters: Any, *_rest: Any) -> None:
        said.append((statement, parameters))

    async with worker.transaction() as tx:
        await try_(tx, [hold("s/tried/x", DAY), hold("s/held/x", DAY)])
        event.listen(worker.engine.sync_engine, "before_cursor_execute", note)
        try:
            await try_(tx, [hold("s/tried/x", DAY), hold("s/new/x", DAY)])
            await confirm(tx, [end("s/tried/x", DAY)])
            await cancel(tx, [end("s/held/x", DAY)])
        finally:
            event.remove(worker.engine.sync_engine, "before_cursor_execute", note)
    looks = [(s, p) for s, p in said if not s.startswith("INSERT")]
    assert len(looks) == 6  # A lock and a store each.
    async with owner.engine.connect() as connection:
        await connection.execute(text(f"SET LOCAL plan_cache_mode = {planned}"))
        for statement, parameters in looks:
            await connection.exec_driver_sql(f"PREPARE look AS {statement}")
            values = ", ".join(_literal(value) for value in parameters)
            plan = await connection.exec_driver_sql(f"EXPLAIN EXECUTE look ({values})")
            await connection.exec_driver_sql("DEALLOCATE look")
            parts = {word for line in plan.scalars() for word in line.split() if _is_part(word)}
            assert parts == {"seen_hold_2026_03"}, statement


def _is_part(word: str) -> bool:
    return word.startswith("seen_hold_") and not word.endswith("_pkey")


def _literal(value: Any) -> str:
    if isinstance(value, list):
        return "'{" + ",".join("NULL" if v is None else f'"{_escaped(v)}"' for v in value) + "}'"
    return f"'{value}'"


def _escaped(value: Any) -> str:
    return str(value).replace('"', '\\"')
