"""Which mode a new order gets: rules per flow and tenant, each with its history.

A rule is never changed: a switch is a new rule, and so is taking one back. What has begun goes on
in the mode that stands in its own row.
"""

import hashlib
from collections.abc import Sequence
from typing import Annotated, Literal, Self

from pydantic import AwareDatetime, Field, StringConstraints, model_validator

from everycent.domain.message import Id, Message, Text
from everycent.domain.mode import Mode
from everycent.domain.outcome import Refusal

ANY = "*"  # Every tenant that has no rule of its own; no tenant can have this name.
RuleTenant = Annotated[str, StringConstraints(pattern=r"\A(\*|[A-Za-z0-9._~-]{1,64})\z")]


class Route(Message):
    """A rule: `percentage` of the orders in `mode`, all others in `rest`.

    Without a mode it is no rule, and the one for every tenant, or at last the saga, counts.
    `before` is the number of the rule to which a rollback leads.
    """

    kind: Literal["route"] = "route"
    flow: Id
    tenant: RuleTenant = ANY
    number: int = 0
    mode: Mode | None = None
    percentage: int = Field(default=0, ge=0, le=100)
    rest: Mode = Mode.SAGA
    before: int | None = None
    request_id: Id
    set_by: Text
    reason: Text = ""
    set_at: AwareDatetime


class ChangeRoute(Message):
    """Base of what is asked about a rule, once per request id."""

    flow: Id
    tenant: RuleTenant = ANY
    request_id: Id
    by: Text = Field(min_length=1, max_length=200)
    reason: Text = ""
    at: AwareDatetime


class SetRoute(ChangeRoute):
    """Send `percentage` of the orders in `mode`.

    Without `rest`, the others go where all of them go now.
    """

    kind: Literal["set_route"] = "set_route"
    mode: Mode
    percentage: int = Field(default=100, strict=True, ge=0, le=100)
    rest: Mode | None = None

    @model_validator(mode="after")
    def _rest_is_another(self) -> Self:
        if self.rest is self.mode and self.percentage < 100:
            raise ValueError(f"{self.rest} is both the mode and the rest")
        return self


class RollBackRoute(ChangeRoute):
    """Go back to the rule that stood before the one that stands."""

    kind: Literal["roll_back_route"] = "roll_back_route"


class RouteRefused(Refusal):
    """The rule stays as it is."""

    kind: Literal["route_refused"] = "route_refused"
    reason: str


RouteAnswer = Route | RouteRefused


def change(history: Sequence[Route], request: SetRoute | RollBackRoute) -> RouteAnswer:
    """Return the rule that a request leads to; a repeated request gets the rule it made.

    `history` are the rules of this flow and tenant, the oldest first.
    """
    made = next((rule for rule in history if rule.request_id == request.request_id), None)
    if made is not None:
        return made
    now = history[-1] if history else None
    told = {
        "flow": request.flow, "tenant": request.tenant, "number": len(history) + 1,
        "request_id": request.request_id, "set_by": request.by, "reason": request.reason,
        "set_at": request.at,
    }  # fmt: skip
    if isinstance(request, RollBackRoute):
        return _rolled_back(history, told)
    rest = request.rest or _rest_of(now, request.mode)
    if rest is None and request.percentage < 100:
        return RouteRefused(reason="the orders go two ways now: say where the rest is to go")
    return Route(
        mode=request.mode, percentage=request.percentage, rest=rest or Mode.SAGA,
        before=now.number if now else None, **told,
    )  # fmt: skip


def _rest_of(now: Route | None, mode: Mode) -> Mode | None:
    """Return where the others go if nobody says so; None if that is not plain."""
    if now is None or now.mode is None:
        return Mode.SAGA if mode is not Mode.SAGA else None
    if now.mode is mode:
        return now.rest
    if now.percentage == 100:
        return now.mode
    return now.rest if now.percentage == 0 and now.rest is not mode else None


def _rolled_back(history: Sequence[Route], told: dict[str, object]) -> RouteAnswer:
    if not history or history[-1].mode is None:
        return RouteRefused(reason="there is no rule to be taken back")
    before = history[-1].before
    if before is None:
        return Route.model_validate(told)
    earlier = history[before - 1]
    kept = {"mode": earlier.mode, "percentage": earlier.percentage, "rest": earlier.rest}
    return Route.model_validate({**told, **kept, "before": earlier.before})


def choose(rules: Sequence[Route], tenant: str, order_id: str) -> Mode:
    """Return the mode of a new order; `rules` are those that stand, of its tenant and of all.

    The same order gets the same answer as long as the rules stand, and a higher percentage leaves
    those that it had already where they are.
    """
    standing = {rule.tenant: rule for rule in rules if rule.mode is not None}
    rule = standing.get(tenant) or standing.get(ANY)
    if rule is None or rule.mode is None:
        return Mode.SAGA
    return rule.mode if _slot(tenant, order_id) < rule.percentage else rule.rest


def _slot(tenant: str, order_id: str) -> int:
    """Return which of a hundred slots an order falls into."""
    digest = hashlib.sha256(f"{tenant}/{order_id}".encode()).digest()
    return int.from_bytes(digest[:8], "big") % 100
