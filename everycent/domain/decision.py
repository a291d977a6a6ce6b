"""The decision of a transaction that has no order's row: asked for, moved once, closed."""

from typing import Any, Literal

from pydantic import AwareDatetime

from everycent.domain.message import Key, Message, Told
from everycent.domain.order import Decision


class DecisionRequest(Message):
    """Base of what is asked about one transaction; `key` is `<xid>/decision` in all of it."""

    key: Key
    at: AwareDatetime
    driver: str


class BeginDecision(DecisionRequest):
    """Write the transaction down before anything else happens."""


class MoveDecision(DecisionRequest):
    """Decide, if nobody has; `pivot_refusal` is what alone leads from COMMITTING back."""

    to: Literal[Decision.COMMITTING, Decision.ABORTING]
    reason: Told = ""
    pivot_refusal: dict[str, Any] | None = None


class CloseDecision(DecisionRequest):
    """Say that every branch has followed the decision."""


class DecisionStands(Message):
    """The decision as it stands; who lost the race adopts it."""

    kind: Literal["decision_stands"] = "decision_stands"
    decision: Decision
    reason: Told = ""
    driver: str

    @property
    def commits(self) -> bool:
        """Whether every branch is to be confirmed."""
        return self.decision in (Decision.COMMITTING, Decision.COMMITTED)


CLOSED = {Decision.COMMITTING: Decision.COMMITTED, Decision.ABORTING: Decision.ABORTED}


def moved(stands: DecisionStands, request: DecisionRequest) -> DecisionStands:
    """Return the decision after a request: moved by it, or as it stood."""
    if isinstance(request, CloseDecision):
        return stands.model_copy(update={"decision": CLOSED.get(stands.decision, stands.decision)})
    if not isinstance(request, MoveDecision):
        return stands
    takes_back = (
        stands.decision is Decision.COMMITTING
        and request.to is Decision.ABORTING
        and request.pivot_refusal is not None
    )
    if stands.decision is not Decision.OPEN and not takes_back:
        return stands
    return stands.model_copy(update={"decision": request.to, "reason": request.reason})
