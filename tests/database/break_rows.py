"""Rows of reconciliation, and how each of their rules is broken."""

from collections.abc import Awaitable
from typing import Any

from sqlalchemy.ext.asyncio import AsyncConnection

from everycent.database.reconciliation import note_breaks
from everycent.domain.reconciliation import Break, BreakKind, NoteBreaks, StatementLine
from tests.conftest import NOON, TODAY

KEY, AT = ":t || '/o/step'", "'2026-01-02T12:00Z'"


def a_break(name: str = "o", **more: str | int) -> str:
    """Return an INSERT of the break of that name."""
    values: dict[str, str | int] = {
        "key": f":t || '/{name}/step'", "tenant": ":t", "order_id": "'o'", "kind": "'amount'",
        "movement": "'capture'", "reference": "'r'", "line": "'{}'", "says": "'s'",
        "happened_at": AT, "found_at": AT, "run": "'r'",
    }  # fmt: skip
    return _insert("statement_break", {**values, **more})


def a_statement(**more: str) -> str:
    """Return an INSERT of a statement that was read."""
    values = {
        "tenant": ":t", "digest": "'d'", "name": "'n'", "lines": "1", "begins_at": AT,
        "ends_at": AT, "read_at": AT, "read_by": "'ann'",
    }  # fmt: skip
    return _insert("statement", {**values, **more})


def write_breaks(tx: AsyncConnection, tenant: str, names: list[str]) -> Awaitable[Any]:
    """Write the breaks of these names down, in this order."""
    line = StatementLine(
        number=1, movement="capture", reference="r", amount_minor=1, currency="EUR", at=NOON
    )
    found = tuple(
        Break(
            key=f"{tenant}/{name}/step", tenant=tenant, order_id=name, kind=BreakKind.AMOUNT,
            movement="capture", reference="r", line=line, says="s", at=NOON,
        )
        for name in names
    )  # fmt: skip
    return note_breaks(tx, [_request(tenant, found=found)])


def close_breaks(tx: AsyncConnection, tenant: str, names: list[str]) -> Awaitable[Any]:
    """Say that the breaks of these names are none any more."""
    gone = tuple(f"{tenant}/{name}/step" for name in names)
    return note_breaks(tx, [_request(tenant, gone=gone)])


def _request(tenant: str, **more: Any) -> NoteBreaks:
    return NoteBreaks(
        key=f"{tenant}/~statement/r/0", at=NOON, opened_on=TODAY, run="r", by="ann",
        grace_seconds=60, most_looks=3, **more,
    )  # fmt: skip


def _insert(table: str, values: dict[str, Any]) -> str:
    literals = ", ".join(map(str, values.values()))
    return f"INSERT INTO {table} ({', '.join(values)}) VALUES ({literals})"


BROKEN: tuple[tuple[str, str | tuple[str, ...]], ...] = (
    ("statement_pkey", (a_statement(), a_statement())),
    ("statement_ends_after_it_begins", a_statement(ends_at="'2026-01-01T12:00Z'")),
    ("statement_break_pkey", (a_break(), a_break())),
    ("statement_break_kind_is_known", a_break(kind="'odd'")),
    ("statement_break_has_a_side", a_break(line="NULL")),
    ("statement_break_looks_positive", a_break(looks=0)),
)
