"""The routing rules in SQL: only ever added to."""

from collections.abc import Sequence
from typing import Any

from sqlalchemy.ext.asyncio import AsyncConnection

from everycent.database.engine import sql
from everycent.domain.routing import ANY, ChangeRoute, RollBackRoute, Route, RouteAnswer, SetRoute
from everycent.domain.routing import change as changed
from everycent.errors import EverycentError, Transient

# The rule that stands for a tenant, and the one for all.
STANDING = (
    "SELECT DISTINCT ON (tenant) * FROM routing_rule"
    f" WHERE flow = :flow AND tenant IN (:tenant, '{ANY}') ORDER BY tenant, number DESC"
)
ALL_RULES = "SELECT * FROM routing_rule WHERE flow = :flow ORDER BY tenant, number"


async def change_routes(
    tx: AsyncConnection, requests: Sequence[SetRoute | RollBackRoute]
) -> list[RouteAnswer | EverycentError]:
    """Add the rule that each request leads to; a repeated request gets the rule it has made."""
    return [await _change(tx, request) for request in requests]


async def _change(
    tx: AsyncConnection, request: SetRoute | RollBackRoute
) -> RouteAnswer | EverycentError:
    history = await _history(tx, request)
    answer = changed(history, request)
    if not isinstance(answer, Route) or answer.number <= len(history):
        return answer
    result = await tx.execute(
        sql(
            "INSERT INTO routing_rule (flow, tenant, number, mode, percentage, rest, before,"
            " request_id, set_by, reason, set_at) VALUES (:flow, :tenant, :number, :mode,"
            " :percentage, :rest, :before, :request_id, :set_by, :reason, :set_at)"
            " ON CONFLICT (flow, tenant, number) DO NOTHING RETURNING number"
        ),
        answer.model_dump(exclude={"kind"}),
    )
    if result.scalar() is None:  # It is read again then: this request goes on top of that one.
        return Transient(f"another switch of {request.flow} for {request.tenant} was first")
    return answer


async def _history(tx: AsyncConnection, request: ChangeRoute) -> list[Route]:
    """Return the rules of a flow and tenant as they stand at one instant, the oldest first."""
    result = await tx.execute(
        sql("SELECT * FROM routing_rule WHERE flow = :flow AND tenant = :tenant ORDER BY number"),
        {"flow": request.flow, "tenant": request.tenant},
    )
    return [route(dict(row)) for row in result.mappings()]


def route(row: dict[str, Any]) -> Route:
    """Read a rule's row."""
    return Route.model_validate(row)
