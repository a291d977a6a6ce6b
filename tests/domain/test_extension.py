"""What is told as the core of a mixed order closes."""

from datetime import UTC, datetime

import pytest

from everycent.domain.events import OrderTold
from everycent.domain.extension import Extension, extensions_of, following
from everycent.domain.mode import Mode
from everycent.domain.order import (
    CardPayment,
    Decision,
    OrderLine,
    OrderResult,
    OrderStatus,
    PlaceOrder,
)

NOON = datetime(2026, 1, 2, 12, tzinfo=UTC)


def ends(status: OrderStatus, *, points: int = 0) -> list[tuple[str, tuple[str, ...]]]:
    """Return type and sinks of all that is told of an order that ended so."""
    order = PlaceOrder(
        tenant="shop", order_id="o-1", customer="ada", currency="EUR", points=points,
        lines=(OrderLine(sku="LAMP", units=2, amount_minor=5998),), mode=Mode.MIXED,
        payment=CardPayment(card_token="tok_ok"),
    )  # fmt: skip
    told = OrderTold(order=order, opened_on=NOON.date(), window_ends_at=NOON)
    sold = status in (OrderStatus.CONFIRMED, OrderStatus.REFUNDED)
    result = OrderResult(
        tenant="shop", order_id="o-1", status=status, total_minor=5998,
        decision=Decision.COMMITTED if sold else Decision.ABORTED,
    )  # fmt: skip
    extensions = extensions_of(Mode.MIXED)
    events = following(told, result, extensions, at=NOON, tell=("erp",))
    assert {event.aggregate for event in events} == {"shop/o-1"}
    return [(event.type, event.to) for event in events]


@pytest.mark.requirement("AC9.1")
@pytest.mark.parametrize("status", [s for s in OrderStatus if s is not OrderStatus.PENDING])
def test_others_hear_of_every_end_and_the_points_service_of_a_sale_alone(
    status: OrderStatus,
) -> None:
    """Red when: points are granted for an order that was not sold, or was paid back."""
    sold = [("order.paid", ("inbox:points",))] if status is OrderStatus.CONFIRMED else []
    assert ends(status) == [*sold, ("order.closed", ("notify:erp",))]


def test_an_order_that_earns_nothing_tells_the_points_service_nothing() -> None:
    assert ends(OrderStatus.CONFIRMED, points=5998) == [("order.closed", ("notify:erp",))]


def test_in_every_other_mode_the_flow_does_all_of_it() -> None:
    assert {mode: extensions_of(mode) for mode in Mode if extensions_of(mode)} == {
        Mode.MIXED: (Extension.POINTS,)
    }
