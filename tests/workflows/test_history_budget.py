"""What an order costs in Temporal is bounded; `benchmarks/budget.json` holds what it may cost."""

from benchmarks.order_history import Cost, budget, cost_of
from everycent.domain.order import CardPayment, OrderStatus, PlaceOrder
from tests.workflows.conftest import Shop


async def spent_on(shop: Shop, order: PlaceOrder, status: OrderStatus) -> Cost:
    handle = await shop.start(order)
    result = await handle.result()
    assert result.status is status
    return cost_of(await handle.fetch_history())


def assert_within(shop: Shop, cost: Cost, name: str) -> None:
    allowed = budget()[f"{name}_together" if shop.together else name]
    assert cost.actions - cost.retries <= allowed.actions, (name, cost, allowed)
    assert cost.workflow_tasks <= allowed.workflow_tasks, (name, cost, allowed)
    assert cost.lasting_events <= allowed.lasting_events, (name, cost, allowed)


async def test_a_confirmed_order_costs_no_more_events_and_actions_than_its_budget(
    shop: Shop,
) -> None:
    """Red when: a step, a timer or a search attribute upsert is added to the way of a sale."""
    await shop.receive(5)
    assert_within(shop, await spent_on(shop, shop.order(), OrderStatus.CONFIRMED), "confirmed")


async def test_a_refused_order_costs_no_more_events_and_actions_than_its_budget(
    shop: Shop,
) -> None:
    """Red when: a step, a timer or a search attribute upsert is added to the way of a refusal."""
    assert_within(shop, await spent_on(shop, shop.order(), OrderStatus.REJECTED), "refused")


async def test_an_order_that_expires_after_a_declined_card_keeps_its_budget(shop: Shop) -> None:
    """Red when: waiting for the customer costs events that grow with the length of the wait."""
    await shop.receive(5)
    order = shop.order(payment=CardPayment(card_token="tok_declined"))
    assert_within(shop, await spent_on(shop, order, OrderStatus.EXPIRED), "expired")
