"""Every way in which an order can end, on real databases and the real simulator."""

from everycent.domain.order import BalancePayment, Decision, OrderStatus


async def test_a_paid_order_is_confirmed_and_its_stock_sold(shop) -> None:
    await shop.receive(5)
    result = await shop.sell(shop.order(units=2))
    assert result.status is OrderStatus.CONFIRMED
    assert result.decision is Decision.COMMITTED
    assert await shop.stock() == {"free": 3, "held": 0, "sold": 2}
    assert await shop.charged() == [("captured", 2933, 0)]
