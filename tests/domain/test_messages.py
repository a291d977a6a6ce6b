"""Keys, texts from others, and the canonical form under which a request is compared for ever."""

from datetime import date
from typing import ClassVar

import pytest

from everycent.domain.message import Message, order_of, request_hash, step_key, storable


class Wish(Message):
    HASHED: ClassVar = ("sku", "day", "units")

    units: int
    sku: str
    day: date


WISH = Wish(units=3, sku="Kännchen", day=date(2026, 1, 2))


def test_the_hash_of_today_is_the_hash_of_every_release() -> None:
    """Rows in the databases carry it: version 1 never changes, down to spaces and letters."""
    assert request_hash(WISH, WISH.HASHED, 1) == (
        "1d30b4ff44503f08789f4fb35924e7beff622f286f0ef57ad22ff37d0f650703"
    )
    assert request_hash(WISH, ("units",), 1) != request_hash(WISH, WISH.HASHED, 1)


def test_a_key_ends_with_the_callers_request_only_if_there_is_one() -> None:
    assert step_key("t", "o-1", "reserve") == "t/o-1/reserve"
    assert step_key("t", "o-1", "pay", "second") == "t/o-1/pay/second"


@pytest.mark.parametrize("key", ["t/o-1", "t/o-1/pay", "t/o-1/pay/first", "t/o-1/pay/first/void"])
def test_a_key_names_its_order(key: str) -> None:
    assert order_of(key) == "t/o-1"


def test_what_others_tell_is_made_storable() -> None:
    assert storable("a\x00b") == "ab"
    assert storable("x" * 2001) == "x" * 2000
    assert storable(None) is None
    assert storable(7) == 7
