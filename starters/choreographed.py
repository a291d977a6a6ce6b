"""Orders without a workflow of their own, and the messages that drive them."""

import asyncio
from collections.abc import Awaitable, Callable
from datetime import timedelta
from typing import Any, TypeVar

from temporalio.client import Client

from activities.choreography import CancelChoreographed, ChoreographyActivities, StartChoreographed
from activities.messages import MessageActivities
from everycent import clock
from everycent.database.reads import OrderView, Reader
from everycent.domain.choreography import DRIVER, check_can_be_choreographed
from everycent.domain.message import request_hash
from everycent.domain.messaging import Replayed, ReplayMessages
from everycent.domain.order import (
    AddAttempt,
    AttemptAnswer,
    Decision,
    OpenAnswer,
    OrderDiffers,
    Payment,
    Placement,
    PlaceOrder,
    Verdict,
    WaitsFor,
)
from everycent.domain.withdrawal import OrderWithdrawn
from everycent.errors import Unreachable
from everycent.settings import ServiceName
from starters.alone import run_alone
from starters.refusals import OrderDiffersError, OrderWithdrawnError
from workers.queues import TOGETHER, finishes, tries

T = TypeVar("T")
LOOK_SECONDS = 0.2
SILENCE = timedelta(minutes=2)


def placement_of(view: OrderView) -> Placement:
    """Say how far an order has come, as one says it of an order that a workflow drives."""
    return Placement(
        order_id=view.order_id,
        request_hash=view.request_hash,
        decision=view.decision,
        status=view.status,
        waits_for=view.waits_for,
        reason=view.reason,
        result=view.result,
    )


class ChoreographedOrders:
    """Start, pay and cancel orders that messages drive; each is one activity by itself."""

    def __init__(self, client: Client, reader: Reader, *, together: bool = False) -> None:
        self._client = client
        self._reader = reader
        self._together = together

    async def start(self, order: PlaceOrder) -> OpenAnswer:
        """Write the order down with its first event; the same order again is the same."""
        check_can_be_choreographed(order)
        request = StartChoreographed(
            tenant=order.tenant, order_id=order.order_id, at=clock.now(), order=order
        )
        answer: OpenAnswer = await self._run(
            ChoreographyActivities.start,
            request,
            tries("order"),
            activity_id=f"choreographed/{order.workflow_id()}/{request_hash(order, order.HASHED)}",
        )
        if isinstance(answer, OrderDiffers):
            raise OrderDiffersError(order.order_id, answer.fields)
        if isinstance(answer, OrderWithdrawn):
            raise OrderWithdrawnError(f"order {order.order_id} is withdrawn: {answer.reason}")
        return answer

    async def follow(self, tenant: str, order_id: str) -> OrderView:
        """Wait until the order is closed, or waits for its customer; then return its row."""
        deadline = clock.now() + SILENCE
        while clock.now() < deadline:
            file = await self._reader.order_file(tenant, order_id)
            order = None if file is None else file.order
            if order and (order.result is not None or order.waits_for is WaitsFor.PAYMENT):
                return order
            await asyncio.sleep(LOOK_SECONDS)
        raise Unreachable(f"order {order_id} has not come to its end in {SILENCE}; look again")

    async def drives(self, tenant: str, order_id: str) -> bool:
        """Tell whether messages drive this order, and no workflow."""
        order = await self._reader.order(tenant, order_id)
        return order is not None and order.driver.startswith(DRIVER)

    async def pay(self, tenant: str, order_id: str, payment: Payment) -> AttemptAnswer:
        """Name another payment."""
        request = AddAttempt(tenant=tenant, order_id=order_id, at=clock.now(), payment=payment)
        name = f"choreographed-pay/{tenant}/{order_id}/{payment.request_id}"
        return await self._run(
            ChoreographyActivities.pay, request, tries("order"), activity_id=name
        )

    async def cancel(self, tenant: str, order_id: str, reason: str) -> Verdict:
        """Cancel the order unless it is decided; return the decision that stands."""
        request = CancelChoreographed(
            tenant=tenant, order_id=order_id, at=clock.now(), reason=reason
        )
        name = f"choreographed-cancel/{tenant}/{order_id}"
        verdict = await self._run(
            ChoreographyActivities.cancel, request, finishes("order"), activity_id=name
        )
        assert verdict.decision is not Decision.OPEN, "a cancellation decides"
        return verdict

    async def replay(self, service: ServiceName, keys: tuple[str, ...]) -> Replayed:
        """Let dead messages of a service be tried again."""
        request = ReplayMessages(service=service, keys=keys, at=clock.now())
        name = f"replay/{service}/{request.at.timestamp():.6f}"
        return await self._run(
            MessageActivities.replay, request, finishes(service), activity_id=name
        )

    async def _run(
        self,
        method: Callable[[Any, Any], Awaitable[T]],
        request: Any,
        queue: str,
        *,
        activity_id: str,
    ) -> T:
        return await run_alone(
            self._client,
            method,
            request,
            queue=TOGETHER if self._together else queue,
            activity_id=activity_id,
        )
