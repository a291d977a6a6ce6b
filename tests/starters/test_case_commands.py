"""Repair cases from the command line: who, why, and an order whose run is gone."""

from collections.abc import Awaitable, Callable
from typing import Any, Protocol

import pytest
from temporalio.client import Client
from typer.testing import Result

from everycent import clock
from everycent.domain.order import CardPayment, ParkStep, PlaceOrder
from starters.alone import PATIENCE
from starters.bookings import Bookings
from workers.queues import finishes

MakeOrder = Callable[..., PlaceOrder]
Until = Callable[[Callable[[], Awaitable[bool]]], Awaitable[None]]


class CommandLine(Protocol):
    """See conftest.py."""

    tenant: str

    async def __call__(
        self, *words: str, given: str | None = None, shop: bool = True
    ) -> Result: ...

    async def json(self, *words: str, shop: bool = True) -> Any: ...

    async def place(self, order: PlaceOrder, *words: str) -> Result: ...


@pytest.fixture
async def waiting_order(
    everycent: CommandLine, an_order: MakeOrder, bookings: Bookings, tenant: str
) -> PlaceOrder:
    """An order that waits for another card."""
    await bookings.receive_stock(tenant, "LAMP", 10, request="first")
    order = an_order(payment=CardPayment(card_token="tok_declined"))
    await everycent.place(order)
    return order


async def _park(client: Client, order: PlaceOrder) -> str:
    """Open a case as a run of the order does, through the order service."""
    key = order.step_key("ledger")
    request = ParkStep(
        tenant=order.tenant,
        order_id=order.order_id,
        at=clock.now(),
        case_key=key,
        step="post ledger",
        error_class="Transient",
        error="the books are closed",
        owner=order.workflow_id(),
    )
    await client.execute_activity(
        "order.park_step",
        request,
        id=f"park/{key}",
        task_queue=finishes("order"),
        schedule_to_close_timeout=PATIENCE,
    )
    return key


@pytest.mark.requirement("T17")
async def test_a_case_of_a_lost_order_is_resolved_with_who_and_why_and_the_order_goes_on(
    everycent: CommandLine, client: Client, waiting_order: PlaceOrder
) -> None:
    """Red when: `case resolve` knows no way but the order's running workflow."""
    key = await _park(client, waiting_order)
    [case] = await everycent.json("case", "list")
    assert (case["case_key"], case["state"], case["attempts"]) == (key, "OPEN", 1)
    assert "the books are closed" in (await everycent("case", "show", key, shop=False)).stdout
    await client.get_workflow_handle(waiting_order.workflow_id()).terminate("an operator's mistake")

    resolved = await everycent(
        "case", "resolve", key, "--reason", "booked by hand", "--by", "grace", shop=False
    )
    assert resolved.exit_code == 0
    case = await everycent.json("case", "show", key, shop=False)
    assert (case["state"], case["resolved_by"]) == ("RESOLVED", "grace")
    assert (case["resolution"], case["by_hand"]) == ("booked by hand", True)
    assert await everycent.json("case", "list") == []
    paid = await everycent("order", "pay", "o-1", "--card", "tok_ok")
    assert paid.exit_code == 0

    again = await everycent("case", "retry", key, shop=False)
    assert again.exit_code == 3
    assert "resolved by grace: booked by hand" in again.stderr


async def test_a_case_that_the_running_order_does_not_have_is_not_repaired(
    everycent: CommandLine, client: Client, waiting_order: PlaceOrder
) -> None:
    key = await _park(client, waiting_order)
    refused = await everycent("case", "retry", key, shop=False)
    assert refused.exit_code == 3
    assert "is not parked" in refused.stderr
    unknown = await everycent("case", "show", "no/such/case", shop=False)
    assert unknown.exit_code == 2
    await everycent("order", "cancel", "o-1")
