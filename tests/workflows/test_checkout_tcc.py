"""The checkout in TCC mode: the same steps under the same keys, every hold at once."""

from typing import Any

from everycent.domain.mode import Mode
from everycent.domain.order import Decision, OrderStatus, PlaceOrder
from tests.workflows.conftest import Shop


def tcc(shop: Shop, **changes: Any) -> PlaceOrder:
    return shop.order(mode=Mode.TCC, **changes)


async def test_an_order_in_tcc_mode_is_sold(shop: Shop) -> None:
    await shop.receive(5)
    await shop.grant_points("c-1", 100)
    result = await shop.sell(tcc(shop, points=33))
    assert (result.status, result.decision) == (OrderStatus.CONFIRMED, Decision.COMMITTED)
    assert await shop.stock() == {"free": 3, "held": 0, "sold": 2}
    assert await shop.charged() == [("captured", 2900, 0)]
