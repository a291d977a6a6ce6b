"""What a purse of points does, without a database."""

import pytest

from everycent.domain.points import Purse


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
