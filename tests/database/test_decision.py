"""The decision of a flow without an order, on a real PostgreSQL: two drivers get one answer."""

import asyncio
from typing import Any

import pytest

from everycent.database.decision import _store, settle_decisions
from everycent.database.engine import Database
from everycent.domain.decision import (
    BeginDecision,
    CloseDecision,
    DecisionStands,
    MoveDecision,
    moved,
)
from everycent.domain.order import Decision
from everycent.errors import Bug
from everycent.settings import ServiceName
from tests.conftest import NOON

Pools = dict[ServiceName, Database]
COMMIT, ABORT = Decision.COMMITTING, Decision.ABORTING


def base(tenant: str, driver: str = "flow/1") -> dict[str, Any]:
    return {"key": f"{tenant}/x-1", "at": NOON, "driver": driver}


async def call(databases: Pools, *requests: Any) -> Any:
    async with databases["order"].transaction() as tx:
        answers = await settle_decisions(tx, requests)
    return answers[0] if len(requests) == 1 else answers


async def test_a_transaction_is_begun_decided_and_closed_once(
    databases: Pools, tenant: str
) -> None:
    """Each step is repeated and answers as the first time; the driver stays the first one."""
    for driver in ("flow/1", "flow/2"):
        begun = await call(databases, BeginDecision(**base(tenant, driver)))
        assert (begun.decision, begun.driver) == (Decision.OPEN, "flow/1")
    for reason in ("sold out", "never mind"):
        answer = await call(databases, MoveDecision(to=ABORT, reason=reason, **base(tenant)))
        assert (answer.decision, answer.reason) == (ABORT, "sold out")
    for _ in range(2):
        closed = await call(databases, CloseDecision(**base(tenant)))
        assert closed.decision is Decision.ABORTED
    late = await call(databases, MoveDecision(to=COMMIT, **base(tenant)))
    assert not late.commits
    assert late.decision is Decision.ABORTED


@pytest.mark.requirement("AC6.6")
async def test_two_drivers_that_decide_at_once_adopt_one_decision(
    databases: Pools, tenant: str
) -> None:
    """One wants to commit, the other to abort, thirty times at the same moment: they agree.

    Red when: the row is judged before it is locked, or the loser is told its own wish.
    """
    for number in range(30):
        xid = f"{tenant}/x-{number}"
        wishes = [MoveDecision(key=xid, at=NOON, driver=f"d-{to}", to=to) for to in (COMMIT, ABORT)]
        first, second = await asyncio.gather(*(call(databases, wish) for wish in wishes))
        assert first == second
        assert first.decision in (COMMIT, ABORT)


@pytest.mark.requirement("AC6.6")
async def test_a_commit_is_taken_back_only_on_a_refusal_of_the_pivot(
    databases: Pools, tenant: str
) -> None:
    """Red when: `moved` lets a plain abort take a commit back, or forgets the evidence."""
    assert (await call(databases, MoveDecision(to=COMMIT, **base(tenant)))).commits
    plain = await call(databases, MoveDecision(to=ABORT, reason="late", **base(tenant)))
    assert plain.decision is COMMIT
    refusal = {"kind": "capture_refused"}
    taken = await call(databases, MoveDecision(to=ABORT, pivot_refusal=refusal, **base(tenant)))
    assert taken.decision is ABORT


async def test_what_nobody_decided_is_not_closed(databases: Pools, tenant: str) -> None:
    async with databases["order"].transaction() as tx:
        [absent] = await settle_decisions(tx, [CloseDecision(**base(tenant))])
        await settle_decisions(tx, [BeginDecision(**base(tenant))])
        [open_] = await settle_decisions(tx, [CloseDecision(**base(tenant))])
    assert isinstance(absent, Bug)
    assert isinstance(open_, Bug)


async def test_a_decision_is_written_only_where_it_stood_as_it_was_read(
    databases: Pools, tenant: str
) -> None:
    """The write alone, as if the row had moved since it was read: it hits nothing and says so."""
    await call(databases, MoveDecision(to=COMMIT, **base(tenant)))
    close = CloseDecision(**base(tenant))
    stands = DecisionStands(decision=ABORT, driver="flow/1")
    after = stands.model_copy(update={"decision": Decision.COMMITTED})
    with pytest.raises(AssertionError, match="hit 0 of 1"):
        async with databases["order"].transaction() as tx:
            await _store(tx, "decision", {close.key: (close, ABORT, after)})


def test_the_decision_moves_as_the_rule_says() -> None:
    """Every state and every request of the table of design rule 7."""
    wishes: dict[str, Any] = {
        "commit": MoveDecision(key="t/x", at=NOON, driver="d", to=COMMIT),
        "abort": MoveDecision(key="t/x", at=NOON, driver="d", to=ABORT),
        "refused": MoveDecision(key="t/x", at=NOON, driver="d", to=ABORT, pivot_refusal={"k": 1}),
        "close": CloseDecision(key="t/x", at=NOON, driver="d"),
        "begin": BeginDecision(key="t/x", at=NOON, driver="d"),
    }
    found = {
        state.value: [
            moved(DecisionStands(decision=state, driver="d"), wish).decision.value
            for wish in wishes.values()
        ]
        for state in Decision
    }
    assert found == {
        "OPEN": ["COMMITTING", "ABORTING", "ABORTING", "OPEN", "OPEN"],
        "COMMITTING": ["COMMITTING", "COMMITTING", "ABORTING", "COMMITTED", "COMMITTING"],
        "COMMITTED": ["COMMITTED"] * 5,
        "ABORTING": ["ABORTING", "ABORTING", "ABORTING", "ABORTED", "ABORTING"],
        "ABORTED": ["ABORTED"] * 5,
    }
