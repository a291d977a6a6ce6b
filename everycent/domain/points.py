"""Loyalty points: available -> frozen -> redeemed; what is taken back but spent already is a debt.

A customer in debt has nothing available: whatever comes in (a grant, a restore, the end of a hold)
pays the debt first.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar, Generic, Literal, Protocol, TypeVar

from pydantic import Field, TypeAdapter

from everycent.domain.message import Id, Message, StepRequest, Told
from everycent.domain.outcome import Refusal

A = TypeVar("A", covariant=True)
PointCount = Annotated[int, Field(strict=True, gt=0, le=10**15)]
CustomerId = tuple[str, str]  # (tenant, customer)


class _OnPoints(StepRequest):
    """What every request that names its own points carries."""

    HASHED: ClassVar[tuple[str, ...]] = ("customer", "points")

    customer: Id
    points: PointCount

    @property
    def customer_id(self) -> CustomerId:
        """The row of the customer: of the key's tenant."""
        return self.tenant, self.customer


class FreezePoints(_OnPoints):
    """Try: freeze points that are to pay a part of an order, once per `key`."""


class RedeemPoints(StepRequest):
    """Confirm: the frozen points are spent."""


class UnfreezePoints(StepRequest):
    """Cancel: the frozen points, if any, are the customer's again; a later Try is refused."""

    reason: Told


class GrantPoints(_OnPoints):
    """Give points that an order earned, once per `key`."""

    HASHED: ClassVar = (*_OnPoints.HASHED, "kind")

    kind: Literal["grant"] = "grant"


class RestorePoints(_OnPoints):
    """Give back redeemed points of a refunded order, once per `key`."""

    HASHED: ClassVar = (*_OnPoints.HASHED, "kind")

    kind: Literal["restore"] = "restore"


class RevokePoints(_OnPoints):
    """Take back points that an order earned, once per `key`; what is spent already becomes debt."""

    HASHED: ClassVar = (*_OnPoints.HASHED, "kind")

    kind: Literal["revoke"] = "revoke"


class PointsFrozen(Message):
    """The points are frozen; `points_available` are left to spend."""

    kind: Literal["points_frozen"] = "points_frozen"
    points: int
    points_available: int


class InsufficientPoints(Refusal):
    """Fewer points are available than wanted."""

    kind: Literal["insufficient_points"] = "insufficient_points"
    points_needed: int
    points_available: int


class PointsRedeemed(Message):
    """The frozen points are spent."""

    kind: Literal["points_redeemed"] = "points_redeemed"
    points: int
    points_available: int


class PointsGiven(Message):
    """Points came in; `points_to_debt` of them paid a debt, of which `points_debt` is left."""

    points: int
    points_to_debt: int
    points_available: int
    points_debt: int


class PointsUnfrozen(Message):
    """What was frozen is the customer's again; 0, and no more facts, if nothing was frozen."""

    kind: Literal["points_unfrozen"] = "points_unfrozen"
    points: int
    points_to_debt: int = 0
    points_available: int | None = None
    points_debt: int | None = None


class PointsGranted(PointsGiven):
    """The earned points are given."""

    kind: Literal["points_granted"] = "points_granted"


class PointsRestored(PointsGiven):
    """The redeemed points are given back."""

    kind: Literal["points_restored"] = "points_restored"


class PointsRevoked(Message):
    """The points are taken back; `points_to_debt` of them had been spent and are owed now."""

    kind: Literal["points_revoked"] = "points_revoked"
    points: int
    points_to_debt: int
    points_available: int
    points_debt: int


FreezePointsAnswer = PointsFrozen | InsufficientPoints
FREEZE_POINTS_ANSWERS: TypeAdapter[FreezePointsAnswer] = TypeAdapter(FreezePointsAnswer)
REDEEM_ANSWERS = TypeAdapter(PointsRedeemed)
UNFREEZE_POINTS_ANSWERS = TypeAdapter(PointsUnfrozen)
GRANT_ANSWERS = TypeAdapter(PointsGranted)
RESTORE_ANSWERS = TypeAdapter(PointsRestored)
REVOKE_ANSWERS = TypeAdapter(PointsRevoked)


@dataclass(frozen=True)
class Purse:
    """What a customer has and owes; never available points and a debt at once."""

    available: int = 0
    frozen: int = 0
    debt: int = 0

    def give(self, points: int) -> "Purse":
        """Add points: a debt is paid first, the rest becomes available."""
        paid = min(self.debt, points)
        return Purse(self.available + points - paid, self.frozen, self.debt - paid)

    def take(self, points: int) -> "Purse":
        """Take points back: from what is available, the rest becomes debt."""
        taken = min(self.available, points)
        return Purse(self.available - taken, self.frozen, self.debt + points - taken)

    def freeze(self, points: int) -> "Purse":
        """Freeze available points."""
        assert self.available >= points, f"{points} of {self.available} points cannot be frozen"
        return Purse(self.available - points, self.frozen + points, self.debt)

    def redeem(self, points: int) -> "Purse":
        """Spend frozen points."""
        assert self.frozen >= points, f"{points} of {self.frozen} frozen points cannot be spent"
        return Purse(self.available, self.frozen - points, self.debt)

    def unfreeze(self, points: int) -> "Purse":
        """End a hold: its points come back as any points do."""
        return self.redeem(points).give(points)


Purses = Mapping[CustomerId, Purse]


@dataclass(frozen=True)
class PointsHold:
    """What the stored row of a Try froze, and whose."""

    key: str
    customer_id: CustomerId
    points: int


@dataclass(frozen=True)
class PointMoves(Generic[A]):
    """The answers of a batch, and the purses after all of it."""

    answers: dict[str, A]
    purses: dict[CustomerId, Purse]


class _Points(Protocol):
    """What a step needs to know, of a request or of a hold."""

    @property
    def key(self) -> str: ...
    @property
    def customer_id(self) -> CustomerId: ...
    @property
    def points(self) -> int: ...


def freeze(purses: Purses, requests: Sequence[FreezePoints]) -> PointMoves[FreezePointsAnswer]:
    """Freeze each customer's points or refuse, first come, first served; no row means no points."""
    answers: dict[str, FreezePointsAnswer] = {}
    purses_after = dict(purses)
    for r in requests:
        purse = purses_after.get(r.customer_id, Purse())
        if purse.available < r.points:
            answers[r.key] = InsufficientPoints(
                points_needed=r.points, points_available=purse.available
            )
            continue
        purses_after[r.customer_id] = after = purse.freeze(r.points)
        answers[r.key] = PointsFrozen(points=r.points, points_available=after.available)
    return PointMoves(answers, purses_after)


def redeem(purses: Purses, holds: Sequence[PointsHold]) -> PointMoves[PointsRedeemed]:
    """Spend each hold; a Confirm cannot refuse."""
    return _each(
        purses,
        holds,
        Purse.redeem,
        lambda points, _, after: PointsRedeemed(points=points, points_available=after.available),
    )


def unfreeze(purses: Purses, holds: Sequence[PointsHold]) -> PointMoves[PointsUnfrozen]:
    """Give each hold back; it pays a debt that was made in between."""
    return _each(purses, holds, Purse.unfreeze, lambda *step: PointsUnfrozen(**_facts(*step)))


def grant(purses: Purses, requests: Sequence[GrantPoints]) -> PointMoves[PointsGranted]:
    """Give each order's points."""
    return _each(purses, requests, Purse.give, lambda *step: PointsGranted(**_facts(*step)))


def restore(purses: Purses, requests: Sequence[RestorePoints]) -> PointMoves[PointsRestored]:
    """Give redeemed points back."""
    return _each(purses, requests, Purse.give, lambda *step: PointsRestored(**_facts(*step)))


def revoke(purses: Purses, requests: Sequence[RevokePoints]) -> PointMoves[PointsRevoked]:
    """Take each order's points back; the part that is gone is owed, never lost."""
    return _each(purses, requests, Purse.take, lambda *step: PointsRevoked(**_facts(*step)))


def _each(
    purses: Purses,
    items: Sequence[_Points],
    step: Callable[[Purse, int], Purse],
    answer: Callable[[int, Purse, Purse], A],
) -> PointMoves[A]:
    """Do one step per item, each on what the one before it left, and answer each."""
    after = dict(purses)
    answers: dict[str, A] = {}
    for item in items:
        before = after[item.customer_id]
        after[item.customer_id] = step(before, item.points)
        answers[item.key] = answer(item.points, before, after[item.customer_id])
    return PointMoves(answers, after)


def _facts(points: int, before: Purse, after: Purse) -> dict[str, int]:
    return {
        "points": points,
        "points_to_debt": abs(after.debt - before.debt),
        "points_available": after.available,
        "points_debt": after.debt,
    }
