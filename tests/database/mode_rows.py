"""Rows of the routing rules and of decisions without an order, and how each rule is broken."""

from collections.abc import Awaitable
from typing import Any

from sqlalchemy.ext.asyncio import AsyncConnection

from everycent.database.decision import settle_decisions
from everycent.domain.decision import BeginDecision
from tests.conftest import NOON

KEY, AT = ":t || '/o/step'", "'2026-01-02T12:00Z'"


def rule(**more: str | int) -> str:
    """Return an INSERT of a routing rule."""
    values: dict[str, str | int] = {
        "flow": "'f'", "tenant": ":t", "number": 1, "mode": "'tcc'", "percentage": 10,
        "rest": "'saga'", "request_id": "'r'", "set_by": "'ann'", "reason": "''", "set_at": AT,
    }  # fmt: skip
    return _insert("routing_rule", {**values, **more})


def decision(*changes: str, **more: str) -> tuple[str, ...]:
    """Return an INSERT of a decision, and an UPDATE for each change."""
    made = _insert("decision", {"key": KEY, "driver": "'d'", "opened_at": AT, **more})
    return (made, *(f"UPDATE decision SET {change} WHERE key = {KEY}" for change in changes))


def a_decision(name: str) -> str:
    """Return an INSERT of the decision of that name."""
    return decision(key=f":t || '/{name}/step'")[0]


def deciding(tx: AsyncConnection, tenant: str, names: list[str]) -> Awaitable[Any]:
    """Begin the decisions of these names."""
    keys = [f"{tenant}/{name}/step" for name in names]
    return settle_decisions(tx, [BeginDecision(key=k, at=NOON, driver="d") for k in keys])


def _insert(table: str, values: dict[str, Any]) -> str:
    literals = ", ".join(map(str, values.values()))
    return f"INSERT INTO {table} ({', '.join(values)}) VALUES ({literals})"


BROKEN: tuple[tuple[str, str | tuple[str, ...]], ...] = (
    ("routing_rule_pkey", (rule(), rule(request_id="'s'"))),
    ("routing_rule_once_per_request", (rule(), rule(number=2))),
    ("routing_rule_mode_is_known", rule(mode="'magic'")),
    ("routing_rule_rest_is_known", rule(rest="'magic'")),
    ("routing_rule_percentage_is_one", rule(percentage=101)),
    ("routing_rule_before_is_earlier", rule(before=1)),
    ("decision_pkey", decision() * 2),
    ("decision_begins_open", decision(decision="'COMMITTING'")),
    ("decision_key_is_fixed", decision("key = 'x' || key")),
    ("decision_moves_forward", decision("decision = 'COMMITTED'")),
    ("decision_moves_forward", decision("decision = 'COMMITTING'", "decision = 'ABORTING'")),
)
