"""Which mode an order gets, as a pure function of the rules."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from everycent.domain.mode import Mode
from everycent.domain.routing import ANY, Route, RouteRefused, SetRoute, change, choose
from tests.conftest import NOON

PERCENT = st.integers(0, 100)


def rule(percentage: int, mode: Mode = Mode.TCC, rest: Mode = Mode.SAGA) -> Route:
    return Route(
        flow="checkout", number=1, mode=mode, percentage=percentage, rest=rest, request_id="r",
        set_by="ada", set_at=NOON,
    )  # fmt: skip


def wish(mode: Mode, percentage: int = 100, **more: Any) -> SetRoute:
    return SetRoute(
        flow="checkout", request_id="new", by="ada", at=NOON, mode=mode, percentage=percentage,
        **more,
    )  # fmt: skip


@pytest.mark.requirement("AC9.4")
@given(low=PERCENT, high=PERCENT, order_id=st.integers(0, 10**9))
def test_a_higher_percentage_keeps_the_orders_that_it_had(
    low: int, high: int, order_id: int
) -> None:
    """Red when: the slot depends on the percentage, the run, or anything but the order's name."""
    low, high = sorted((low, high))
    modes = [choose([rule(p)], "shop", f"o-{order_id}") for p in (low, low, high)]
    assert modes[0] is modes[1]
    assert modes[0] is not Mode.TCC or modes[2] is Mode.TCC
    assert choose([rule(0)], "shop", f"o-{order_id}") is Mode.SAGA
    assert choose([rule(100)], "shop", f"o-{order_id}") is Mode.TCC


@pytest.mark.requirement("AC9.4")
def test_a_percentage_is_that_part_of_the_orders() -> None:
    """Red when: `choose` compares the wrong way round, or the slots are not even."""
    for percentage in (10, 50):
        chosen = [choose([rule(percentage)], "shop", f"o-{n}") for n in range(5_000)]
        part = 100 * chosen.count(Mode.TCC) / len(chosen)
        assert abs(part - percentage) < 3, part


def test_without_a_rule_an_order_is_a_saga() -> None:
    assert choose([], "shop", "o-1") is Mode.SAGA
    assert choose([rule(100).model_copy(update={"tenant": "shop"})], "other", "o-1") is Mode.SAGA
    assert rule(1).tenant == ANY


@pytest.mark.requirement("AC9.4", "AC19.4")
def test_the_others_go_where_all_go_now_or_the_switch_is_refused() -> None:
    """Red when: a switch of ten per cent moves the other ninety."""
    whole = rule(100, mode=Mode.TCC)
    made = change([whole], wish(Mode.MIXED, 10))
    assert isinstance(made, Route)
    assert made.rest is Mode.TCC
    assert isinstance(change([rule(50)], wish(Mode.MIXED, 10)), RouteRefused)
    assert isinstance(change([], wish(Mode.SAGA, 10)), RouteRefused)
    told = change([rule(50)], wish(Mode.MIXED, 10, rest=Mode.TCC))
    assert isinstance(told, Route)
    with pytest.raises(ValidationError, match="both the mode and the rest"):
        wish(Mode.TCC, 10, rest=Mode.TCC)
    with pytest.raises(ValidationError, match="less than or equal to 100"):
        wish(Mode.TCC, 101)
