"""Each way in which a statement and our books can part is found, named, and nothing else."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from everycent.domain.reconciliation import (
    NO_ORDER,
    Booked,
    BreakKind,
    OrderStands,
    StatementLine,
    compare,
    missing_there,
    order_breaks,
)

NOON = datetime(2026, 1, 2, 12, tzinfo=UTC)
KEY = "shop/o-1/pay/first"


def line(**more: Any) -> StatementLine:
    values = {
        "number": 1, "movement": "capture", "reference": KEY, "provider_id": "pi_1",
        "amount_minor": 2_933, "currency": "EUR", "at": NOON,
    }  # fmt: skip
    return StatementLine(**{**values, **more})


def booked(**more: Any) -> Booked:
    return Booked(**{**line().model_dump(exclude={"number"}), **more})


def kinds(lines: list[StatementLine], ours: Booked | None) -> list[BreakKind]:
    return [each.kind for each in compare("shop", lines, ours).breaks]


@pytest.mark.requirement("AC17.1")
@pytest.mark.parametrize(
    ("lines", "ours", "expected"),
    [
        ([line()], booked(), []),
        ([line()], None, [BreakKind.MISSING_HERE]),
        ([line(amount_minor=2_932)], booked(), [BreakKind.AMOUNT]),
        ([line(currency="USD")], booked(), [BreakKind.CURRENCY]),
        ([line()], booked(done=False), [BreakKind.STATUS]),
        ([line(done=False)], booked(), [BreakKind.STATUS]),
        ([line(done=False)], booked(done=False), []),
        ([line(done=False)], None, []),
        ([line(), line(number=2, provider_id="pi_2")], booked(), [BreakKind.TWICE]),
        ([line(number=1, provider_id="pi_2"), line(number=2)], booked(), [BreakKind.TWICE]),
        ([line(provider_id="pi_2")], booked(), [BreakKind.TWICE]),
        ([line(), line(number=2, done=False)], booked(), []),
        ([line(movement="refund")], booked(movement="refund", provider_id=""), []),
    ],
)
def test_each_kind_is_told_by_its_name_and_no_other(
    lines: list[StatementLine], ours: Booked | None, expected: list[BreakKind]
) -> None:
    """Red when: a rule is left out, or two rules accuse one difference."""
    compared = compare("shop", lines, ours)
    assert [each.kind for each in compared.breaks] == expected
    assert compared.agrees == (not expected)


@given(amount=st.integers(0, 10**9), ours=st.integers(0, 10**9), seconds=st.integers(-9_999, 9_999))
def test_an_amount_differs_exactly_when_it_is_another(amount: int, ours: int, seconds: int) -> None:
    later = NOON + timedelta(seconds=seconds)
    found = kinds([line(amount_minor=amount, at=later)], booked(amount_minor=ours))
    assert found == ([] if amount == ours else [BreakKind.AMOUNT])


@pytest.mark.requirement("AC17.4")
def test_a_break_is_known_by_what_it_is_about() -> None:
    """Another file, line or time of the run is the same break; another payment is another.

    Red when: the line's number or the run is in the key, or two postings share one key.
    """
    first = compare("shop", [line(amount_minor=1)], booked()).breaks[0]
    again = compare("shop", [line(amount_minor=1, number=77)], booked()).breaks[0]
    assert first.key == again.key
    assert first.key.startswith("shop/o-1/break/amount-")
    copies = [line(), line(number=2, provider_id="pi_2"), line(number=3, provider_id="pi_3")]
    assert len({each.key for each in compare("shop", copies, booked()).breaks}) == 2


def test_what_names_no_order_of_ours_belongs_to_the_shop_that_asked() -> None:
    [found] = compare("shop", [line(reference="INV 77")], None).breaks
    assert (found.tenant, found.order_id) == ("shop", NO_ORDER)
    theirs = missing_there("shop", booked(reference="other/o-2/pay/first"))
    assert (theirs.tenant, theirs.order_id, theirs.kind) == ("other", "o-2", "missing there")


@pytest.mark.requirement("AC17.2")
@pytest.mark.parametrize(
    ("stands", "expected"),
    [
        ({}, []),
        ({"sold": False}, [BreakKind.STOCK]),
        ({"net_minor": 0}, [BreakKind.ORDER]),
        ({"status": "CANCELLED"}, [BreakKind.ORDER]),
        ({"status": "CANCELLED", "net_minor": 0, "sold": False}, []),
        ({"status": "CANCELLED", "is_final": False}, []),
        ({"status": "REFUNDED", "net_minor": 1}, [BreakKind.ORDER]),
    ],
)
def test_order_and_stock_go_with_the_money(
    stands: dict[str, Any], expected: list[BreakKind]
) -> None:
    """Red when: money that is kept for a closed order, or stock that was not sold, is passed over;
    or an order that still moves is accused.
    """
    usual = {
        "xid": "shop/o-1", "status": "CONFIRMED", "is_final": True, "due_minor": 2_933,
        "net_minor": 2_933, "sold": True,
    }  # fmt: skip
    found = order_breaks("shop", line(), OrderStands(**{**usual, **stands}))
    assert [each.kind for each in found] == expected


def test_money_for_an_order_that_does_not_exist_is_told() -> None:
    [found] = order_breaks("shop", line(), None)
    assert found.kind is BreakKind.ORDER


@pytest.mark.requirement("AC17.3")
def test_a_young_break_waits_by_time_and_by_runs() -> None:
    """Red when: the grace or the number of runs is not looked at."""
    [found] = compare("shop", [line()], None).breaks
    day = timedelta(hours=26)
    assert not found.is_due(NOON + day - timedelta(seconds=1), day, looks=2, most_looks=3)
    assert found.is_due(NOON + day, day, looks=1, most_looks=3)
    assert found.is_due(NOON, day, looks=3, most_looks=3)
