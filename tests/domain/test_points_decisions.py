"""What a purse of points does, without a database."""

from datetime import UTC, date, datetime
from typing import Any, TypeVar

import pytest

from everycent.domain.message import StepRequest
from everycent.domain.points import (
    FreezePoints,
    GrantPoints,
    InsufficientPoints,
    PointsFrozen,
    PointsGranted,
    PointsHold,
    PointsRedeemed,
    PointsRestored,
    PointsRevoked,
    PointsUnfrozen,
    Purse,
    RestorePoints,
    RevokePoints,
    freeze,
    grant,
    redeem,
    restore,
    revoke,
    unfreeze,
)

R = TypeVar("R", bound=StepRequest)
NOON, TODAY = datetime(2026, 1, 2, 12, tzinfo=UTC), date(2026, 1, 2)


def test_points_that_come_in_pay_the_debt_first() -> None:
    assert Purse(debt=30).give(20) == Purse(debt=10)
    assert Purse(debt=30).give(30) == Purse()
    assert Purse(debt=30).give(50) == Purse(available=20)


def test_points_taken_back_come_from_what_is_available_and_the_rest_is_owed() -> None:
    assert Purse(available=30).take(20) == Purse(available=10)
    assert Purse(available=30).take(50) == Purse(debt=20)
    assert Purse(frozen=30).take(10) == Purse(frozen=30, debt=10)


def test_a_hold_ends_redeemed_or_back_in_the_purse() -> None:
    held = Purse(available=50).freeze(30)
    assert held == Purse(available=20, frozen=30)
    assert held.redeem(30) == Purse(available=20)
    assert held.unfreeze(30) == Purse(available=50)
    assert held.take(40).unfreeze(30) == Purse(available=10)


def test_more_than_is_there_can_be_neither_frozen_nor_spent() -> None:
    with pytest.raises(AssertionError):
        Purse(available=5).freeze(6)
    with pytest.raises(AssertionError):
        Purse(frozen=5).redeem(6)


ADA, BOB = ("t", "ada"), ("t", "bob")


def asked(model: type[R], order: str, customer: str = "ada", points: int = 10) -> R:
    fields = {"key": f"t/{order}/step", "at": NOON, "opened_on": TODAY}
    return model.model_validate({**fields, "customer": customer, "points": points})


def held(order: str, points: int = 10) -> PointsHold:
    return PointsHold(f"t/{order}/step", ADA, points)


def test_a_batch_of_freezes_goes_as_far_as_the_points_do() -> None:
    """First come, first served; a refusal moves nothing, and no row means no points."""
    wishes = [
        asked(FreezePoints, "o-1", points=30), asked(FreezePoints, "o-2", points=25),
        asked(FreezePoints, "o-3", points=20), asked(FreezePoints, "o-4", "bob", points=1),
    ]  # fmt: skip
    decided = freeze({ADA: Purse(available=50, debt=0)}, wishes)
    assert decided.answers == {
        "t/o-1/step": PointsFrozen(points=30, points_available=20),
        "t/o-2/step": InsufficientPoints(points_needed=25, points_available=20),
        "t/o-3/step": PointsFrozen(points=20, points_available=0),
        "t/o-4/step": InsufficientPoints(points_needed=1, points_available=0),
    }
    assert decided.purses == {ADA: Purse(frozen=50)}


def test_freezing_leaves_a_debt_alone() -> None:
    assert Purse(available=5, debt=0).freeze(5) == Purse(frozen=5)
    assert Purse(available=5, frozen=1, debt=3).freeze(2) == Purse(3, 3, 3)


def test_a_batch_of_redemptions_spends_what_is_frozen() -> None:
    decided = redeem({ADA: Purse(available=7, frozen=30)}, [held("o-1"), held("o-2", 20)])
    assert decided.answers == {
        "t/o-1/step": PointsRedeemed(points=10, points_available=7),
        "t/o-2/step": PointsRedeemed(points=20, points_available=7),
    }
    assert decided.purses == {ADA: Purse(available=7)}


def test_points_that_come_back_tell_what_the_debt_took() -> None:
    decided = unfreeze({ADA: Purse(frozen=30, debt=15)}, [held("o-1"), held("o-2", 20)])
    assert decided.answers == {
        "t/o-1/step": PointsUnfrozen(
            points=10, points_to_debt=10, points_available=0, points_debt=5
        ),
        "t/o-2/step": PointsUnfrozen(
            points=20, points_to_debt=5, points_available=15, points_debt=0
        ),
    }
    assert decided.purses == {ADA: Purse(available=15)}


@pytest.mark.parametrize(
    ("give", "request_type", "answer"),
    [(grant, GrantPoints, PointsGranted), (restore, RestorePoints, PointsRestored)],
)
def test_given_points_pay_the_debt_and_are_counted_one_by_one(
    give: Any, request_type: Any, answer: Any
) -> None:
    wishes = [
        asked(request_type, "o-1"),
        asked(request_type, "o-2"),
        asked(request_type, "o-3", "bob"),
    ]
    decided = give({ADA: Purse(debt=15), BOB: Purse(available=1)}, wishes)
    assert decided.answers == {
        "t/o-1/step": answer(points=10, points_to_debt=10, points_available=0, points_debt=5),
        "t/o-2/step": answer(points=10, points_to_debt=5, points_available=5, points_debt=0),
        "t/o-3/step": answer(points=10, points_to_debt=0, points_available=11, points_debt=0),
    }
    assert decided.purses == {ADA: Purse(available=5), BOB: Purse(available=11)}


def test_points_taken_back_tell_what_is_owed() -> None:
    wishes = [asked(RevokePoints, "o-1"), asked(RevokePoints, "o-2")]
    decided = revoke({ADA: Purse(available=12)}, wishes)
    assert decided.answers == {
        "t/o-1/step": PointsRevoked(points=10, points_to_debt=0, points_available=2, points_debt=0),
        "t/o-2/step": PointsRevoked(points=10, points_to_debt=8, points_available=0, points_debt=8),
    }
    assert decided.purses == {ADA: Purse(debt=8)}
