"""How the benchmarks sell: one workflow per order, a bounded number of them in flight."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from statistics import median
from typing import NamedTuple

from temporalio.client import Client, WorkflowHandle
from temporalio.common import SearchAttributePair, TypedSearchAttributes

from everycent.domain.order import (
    CardPayment,
    OrderLine,
    OrderResult,
    OrderStatus,
    PlaceOrder,
)
from starters.bookings import Bookings
from workers.queues import TOGETHER, WORKFLOWS
from workflows import attributes
from workflows.checkout import Checkout
from workflows.place import TOGETHER_MEMO

IN_FLIGHT = 50
TENANT = "bench"
SKU = "CD"


class Pace(NamedTuple):
    """How quickly a number of things was done."""

    per_second: float
    latency_p50_ms: float


def order(order_id: str, *, sku: str = SKU) -> PlaceOrder:
    """Return an order of two units, paid by card."""
    return PlaceOrder(
        tenant=TENANT,
        order_id=order_id,
        customer=f"c-{hash(order_id) % 97}",
        currency="USD",
        lines=(OrderLine(sku=sku, units=2, amount_minor=2933),),
        payment=CardPayment(card_token="tok_ok"),
    )


@dataclass(frozen=True)
class Till:
    """Where the benchmarks sell: by the services' own workers, or by those that host everything."""

    client: Client
    together: bool = False

    @property
    def name(self) -> str:
        """How the figures of this till are told apart."""
        return "steps together" if self.together else "steps apart"

    async def start(self, wanted: PlaceOrder) -> WorkflowHandle[Checkout, OrderResult]:
        """Start the order's workflow with all that the Web UI shows of it."""
        pairs: list[SearchAttributePair[str] | SearchAttributePair[int]] = [
            SearchAttributePair(attributes.TENANT, wanted.tenant),
            SearchAttributePair(attributes.ORDER, wanted.order_id),
            SearchAttributePair(attributes.CUSTOMER, wanted.customer),
            SearchAttributePair(attributes.STATUS, OrderStatus.PENDING.value),
            SearchAttributePair(attributes.AMOUNT_MINOR, wanted.total_minor),
        ]
        skus = SearchAttributePair(attributes.SKUS, [line.sku for line in wanted.lines])
        return await self.client.start_workflow(
            Checkout.run,
            wanted,
            id=wanted.workflow_id(),
            task_queue=TOGETHER if self.together else WORKFLOWS,
            memo=TOGETHER_MEMO if self.together else None,
            search_attributes=TypedSearchAttributes([*pairs, skus]),
            static_summary=f"order {wanted.order_id}",
        )

    async def sell(self, order_id: str) -> None:
        """Sell one order to its end; anything but CONFIRMED stops the benchmark."""
        result = await (await self.start(order(order_id))).result()
        assert result.status is OrderStatus.CONFIRMED, result


async def fill_the_shelf(till: Till) -> None:
    """Book in more units than the benchmarks sell."""
    bookings = Bookings(till.client, together=till.together)
    await bookings.receive_stock(TENANT, SKU, 10**8, request="fill")


async def at_pace(
    count: int, one: Callable[[int], Awaitable[None]], *, in_flight: int = IN_FLIGHT
) -> Pace:
    """Do `one` for each number below `count`, so many at once, and return the pace."""
    numbers = iter(range(count))
    latencies: list[float] = []

    async def lane() -> None:
        for number in numbers:
            began = time.perf_counter()
            await one(number)
            latencies.append(time.perf_counter() - began)

    began = time.perf_counter()
    await asyncio.gather(*(lane() for _ in range(min(in_flight, count))))
    return Pace(count / (time.perf_counter() - began), median(latencies) * 1000)
