"""Who gets the stock, without a database."""

from datetime import UTC, date, datetime
from typing import Any

import pytest
from pydantic import ValidationError

from everycent.domain.inventory import (
    OutOfStock,
    Reserved,
    ReserveStock,
    StockLine,
    allocate,
    units_by_sku,
)


def wish(order: str, *lines: tuple[str, Any]) -> ReserveStock:
    return ReserveStock(
        key=f"t/{order}/reserve",
        at=datetime(2026, 1, 2, 12, 0, tzinfo=UTC),
        opened_on=date(2026, 1, 2),
        lines=tuple(StockLine(sku=sku, units=units) for sku, units in lines),
    )


def test_the_first_order_gets_the_stock_and_the_next_is_told_what_is_left() -> None:
    first, second = wish("a", ("LAMP", 3)), wish("b", ("LAMP", 3))

    decided = allocate({("t", "LAMP"): 5}, [first, second])

    assert decided.answers == {
        first.key: Reserved(lines=first.lines),
        second.key: OutOfStock(sku="LAMP", units_wanted=3, units_free=2),
    }
    assert decided.taken == {("t", "LAMP"): 3}


def test_a_refused_order_leaves_its_other_lines_to_the_next() -> None:
    refused, served = wish("a", ("LAMP", 2), ("VASE", 1)), wish("b", ("LAMP", 2))

    decided = allocate({("t", "LAMP"): 2}, [refused, served])

    assert isinstance(decided.answers[refused.key], OutOfStock)
    assert isinstance(decided.answers[served.key], Reserved)


def test_the_refusal_names_the_sku_that_is_shortest() -> None:
    decided = allocate({("t", "LAMP"): 1, ("t", "VASE"): 1}, [wish("a", ("LAMP", 2), ("VASE", 5))])

    assert decided.answers["t/a/reserve"] == OutOfStock(sku="VASE", units_wanted=5, units_free=1)


@pytest.mark.requirement("T1")
def test_lines_of_one_sku_are_summed_before_they_are_checked() -> None:
    """Red when: each line is checked on its own."""
    decided = allocate({("t", "LAMP"): 5}, [wish("a", ("LAMP", 3), ("LAMP", 3))])

    assert decided.answers["t/a/reserve"] == OutOfStock(sku="LAMP", units_wanted=6, units_free=5)
    assert units_by_sku(wish("a", ("LAMP", 3), ("LAMP", 3)).lines) == {"LAMP": 6}


@pytest.mark.parametrize("units", [0, -1, 1.0, "1", True])
def test_units_are_positive_integers_or_no_units(units: object) -> None:
    with pytest.raises(ValidationError):
        wish("a", ("LAMP", units))


def test_an_order_has_a_line() -> None:
    with pytest.raises(ValidationError):
        wish("a")
