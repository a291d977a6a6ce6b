"""The decision of a transaction without an order's row, with two drivers that want to move it."""

from collections.abc import Sequence
from typing import Any

from sqlalchemy.ext.asyncio import AsyncConnection

from everycent.database.decision import settle_decisions
from everycent.domain.decision import (
    BeginDecision,
    CloseDecision,
    DecisionRequest,
    MoveDecision,
)
from everycent.domain.order import Decision
from everycent.errors import Bug
from everycent.proof.interleavings_kinds import ABSENT, FENCE_POINTS, NOON, Kind, Rules, step_of

# Who loses adopts what stands; only a refusal of the pivot takes a commit back, until it is closed.
_STAND = ("OPEN", "COMMITTING", "ABORTING", "COMMITTED", "ABORTED")
_RULES: Rules = {
    **{(state, name): (state, state) for state in _STAND for name in ("begin", "commit", "abort")},
    **{(state, name): (state, state) for state in _STAND for name in ("take back", "close")},
    (ABSENT, "begin"): ("OPEN", "OPEN"),
    **{(state, "commit"): ("COMMITTING", "COMMITTING") for state in (ABSENT, "OPEN")},
    **{(state, "abort"): ("ABORTING", "ABORTING") for state in (ABSENT, "OPEN")},
    **{(state, "take back"): ("ABORTING", "ABORTING") for state in (ABSENT, "OPEN", "COMMITTING")},
    **{(state, "close"): (state, Bug) for state in (ABSENT, "OPEN")},
    ("COMMITTING", "close"): ("COMMITTED", "COMMITTED"),
    ("ABORTING", "close"): ("ABORTED", "ABORTED"),
}


def _request(operation: str, place: str, number: int) -> DecisionRequest:
    given: dict[str, Any] = {"key": step_of(place, number)["key"], "at": NOON, "driver": "flow"}
    if operation == "begin":
        return BeginDecision(**given)
    if operation == "close":
        return CloseDecision(**given)
    refusal = {"kind": "no"} if operation == "take back" else None
    to = Decision.COMMITTING if operation == "commit" else Decision.ABORTING
    return MoveDecision(to=to, pivot_refusal=refusal, **given)


async def _nothing(tx: AsyncConnection, places: Sequence[str]) -> None:
    """Prepare nothing: a decision needs no resource."""


def _shows(answer: Any) -> str:
    return str(getattr(answer, "decision", answer))


def _decision(name: str, names: tuple[str, ...], starts: tuple[tuple[str, ...], ...]) -> Kind:
    operations = ("begin", "commit", "abort", "take back", "close")
    return Kind(
        name=name,
        service="order",
        table="decision",
        operations=dict.fromkeys(operations, settle_decisions),
        request=_request,
        prepare=_nothing,
        shows=_shows,
        states_query=(
            "SELECT key, decision AS state FROM decision WHERE key = ANY(CAST(:keys AS text[]))"
        ),
        points=dict.fromkeys(operations, FENCE_POINTS["try"]),
        rules=_RULES,
        names=names,
        starts=starts,
        after=("close", "commit", "abort", "take back"),
    )


# Two drivers from nothing; and while the one closes what the pivot's refusal may still take back.
DECIDING = _decision("decision of a flow", ("begin", "commit", "commit", "abort", "abort"), ((),))
CLOSING = _decision(
    "decision of a flow that is closed",
    ("commit", "abort", "take back", "close", "close"),
    (("commit",),),
)
