"""Allocation under random orders: nothing below zero, and a batch is its orders one by one."""

from datetime import UTC, date, datetime

from hypothesis import given
from hypothesis import strategies as st

from everycent.domain.inventory import (
    Reserved,
    ReserveStock,
    Shelf,
    StockLine,
    allocate,
    units_by_sku,
)

SKUS = ["LAMP", "VASE", "RUG"]
LINES = st.lists(
    st.tuples(st.sampled_from(SKUS), st.integers(min_value=1, max_value=6)), min_size=1, max_size=4
)
SHELVES = st.dictionaries(
    st.sampled_from([("t", sku) for sku in SKUS]), st.integers(min_value=0, max_value=12)
)


def _requests(orders: list[list[tuple[str, int]]]) -> list[ReserveStock]:
    return [
        ReserveStock(
            key=f"t/o-{n}/reserve",
            at=datetime(2026, 1, 2, 12, 0, tzinfo=UTC),
            opened_on=date(2026, 1, 2),
            lines=tuple(StockLine(sku=sku, units=units) for sku, units in lines),
        )
        for n, lines in enumerate(orders)
    ]


@given(shelf=SHELVES, orders=st.lists(LINES, max_size=8))
def test_what_is_taken_is_what_the_served_orders_asked_for_and_never_more_than_free(
    shelf: Shelf, orders: list[list[tuple[str, int]]]
) -> None:
    requests = _requests(orders)
    decided = allocate(shelf, requests)

    served: Shelf = {}
    for request in requests:
        if isinstance(decided.answers[request.key], Reserved):
            for sku, units in units_by_sku(request.lines).items():
                served["t", sku] = served.get(("t", sku), 0) + units
    assert decided.taken == served
    assert all(units <= shelf[sku] for sku, units in decided.taken.items())


@given(shelf=SHELVES, orders=st.lists(LINES, max_size=8))
def test_a_batch_answers_as_its_orders_would_one_by_one(
    shelf: Shelf, orders: list[list[tuple[str, int]]]
) -> None:
    requests = _requests(orders)
    together = allocate(shelf, requests)

    left = dict(shelf)
    for request in requests:
        alone = allocate(left, [request])
        assert together.answers[request.key] == alone.answers[request.key]
        left = {sku: units - alone.taken.get(sku, 0) for sku, units in left.items()}


@given(shelf=SHELVES, orders=st.lists(LINES, min_size=1, max_size=8))
def test_an_order_is_refused_only_when_a_sku_of_it_is_short(
    shelf: Shelf, orders: list[list[tuple[str, int]]]
) -> None:
    [first, *_] = requests = _requests(orders)
    answer = allocate(shelf, requests).answers[first.key]

    enough = all(
        shelf.get(("t", sku), 0) >= units for sku, units in units_by_sku(first.lines).items()
    )
    assert isinstance(answer, Reserved) == enough
