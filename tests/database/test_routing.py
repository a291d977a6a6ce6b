"""The routing rules on a real PostgreSQL: a switch once per request, a history for the way back."""

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest

from everycent.database.engine import Database
from everycent.database.routing import ALL_RULES, STANDING, change_routes, route
from everycent.domain.mode import Mode
from everycent.domain.routing import RollBackRoute, Route, RouteRefused, SetRoute, choose
from everycent.errors import Transient
from everycent.settings import ServiceName
from tests.conftest import NOON

Pools = dict[ServiceName, Database]


def ask(tenant: str, request_id: str, flow: str) -> dict[str, Any]:
    return {"tenant": tenant, "request_id": request_id, "flow": flow, "by": "ada", "at": NOON}


def switch(tenant: str, request_id: str, flow: str = "checkout", **more: Any) -> SetRoute:
    return SetRoute(**{"mode": Mode.TCC, **more}, **ask(tenant, request_id, flow))


def back(tenant: str, request_id: str, flow: str = "checkout") -> RollBackRoute:
    return RollBackRoute(**ask(tenant, request_id, flow))


async def call(databases: Pools, *requests: Any) -> list[Any]:
    async with databases["order"].transaction() as tx:
        return await change_routes(tx, requests)


async def rules(databases: Pools, statement: str, **names: str) -> Sequence[Route]:
    from sqlalchemy import text

    async with databases["order"].transaction() as tx:
        result = await tx.execute(text(statement), names)
        return [route(dict(row)) for row in result.mappings()]


@pytest.mark.requirement("AC9.4")
async def test_a_switch_and_its_rollback_are_made_once_per_request(
    databases: Pools, tenant: str
) -> None:
    """The history keeps every rule; two rollbacks lead back two steps, a repeat leads nowhere.

    Red when: a repeated request adds a rule, or a second rollback brings the first switch again.
    """
    for _ in range(2):
        [first] = await call(databases, switch(tenant, "a", percentage=10))
        [second] = await call(databases, switch(tenant, "b", percentage=60))
    assert (first.number, second.number, second.before) == (1, 2, 1)
    for _ in range(2):
        [third] = await call(databases, back(tenant, "c"))
    assert (third.number, third.percentage, third.before) == (3, 10, None)
    [fourth] = await call(databases, back(tenant, "d"))
    assert fourth.mode is None
    [refused] = await call(databases, back(tenant, "e"))
    assert isinstance(refused, RouteRefused)
    kept = await rules(databases, ALL_RULES, flow="checkout")
    assert [rule.number for rule in kept if rule.tenant == tenant] == [1, 2, 3, 4]


async def test_two_switches_at_once_are_one_after_the_other(databases: Pools, tenant: str) -> None:
    """The second waits for the first and is told to come again: it goes on top of that one."""
    opened = asyncio.Event()

    async def first() -> None:
        async with databases["order"].transaction() as tx:
            await change_routes(tx, [switch(tenant, "a")])
            opened.set()
            waiting = asyncio.ensure_future(call(databases, switch(tenant, "b", percentage=5)))
            done, _ = await asyncio.wait([waiting], timeout=0.3)
            assert not done
            seconds.append(waiting)

    seconds: list[asyncio.Future[list[Any]]] = []
    await first()
    [answer] = await seconds[0]
    assert isinstance(answer, Transient)
    [again] = await call(databases, switch(tenant, "b", percentage=5))
    assert (again.number, again.before) == (2, 1)


@pytest.mark.requirement("AC9.4")
async def test_a_shops_own_rule_goes_before_the_rule_for_all(databases: Pools, tenant: str) -> None:
    """Red when: the statement for the starter gives an old rule, or another shop's."""
    flow = f"f{tenant}"  # Of this test alone: its rule for all is nobody else's.
    await call(databases, switch("*", "a", flow))
    await call(databases, switch(tenant, "a", flow), switch(tenant, "b", flow, mode=Mode.SAGA))
    own = await rules(databases, STANDING, flow=flow, tenant=tenant)
    others = await rules(databases, STANDING, flow=flow, tenant="somebody")
    assert choose(own, tenant, "o-1") is Mode.SAGA
    assert choose(others, "somebody", "o-1") is Mode.TCC
    await call(databases, back(tenant, "c", flow), back(tenant, "d", flow))
    own = await rules(databases, STANDING, flow=flow, tenant=tenant)
    assert choose(own, tenant, "o-1") is Mode.TCC  # No rule of its own any more.
