"""The order service in a choreographed checkout: its ways in, and what it does about reports."""

from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Any

from sqlalchemy.ext.asyncio import AsyncConnection
from temporalio import activity

from activities.boundary import errors_for_temporal
from everycent.database import choreography
from everycent.database.engine import Database
from everycent.domain.choreography import check_can_be_choreographed
from everycent.domain.events import StepReported, told_by
from everycent.domain.message import OrderRequest
from everycent.domain.messaging import Envelope, Event
from everycent.domain.order import (
    AddAttempt,
    AttemptAnswer,
    OpenAnswer,
    PlaceOrder,
    Verdict,
)


class StartChoreographed(OrderRequest):
    """Open an order that no workflow drives."""

    order: PlaceOrder


class CancelChoreographed(OrderRequest):
    """Cancel an order that no workflow drives."""

    reason: str


class ChoreographyActivities:
    """An order is opened, paid anew or cancelled together with what is told about it."""

    def __init__(self, database: Database) -> None:
        self._database = database

    @activity.defn(name="choreography.start")
    async def start(self, request: StartChoreographed) -> OpenAnswer:
        """Write the order and its first event down, or answer how far it has come."""
        with errors_for_temporal():
            check_can_be_choreographed(request.order)
            async with self._database.transaction() as tx:
                return await choreography.open_choreographed(tx, request.order, at=request.at)

    @activity.defn(name="choreography.pay")
    async def pay(self, request: AddAttempt) -> AttemptAnswer:
        """Name another payment, and have it tried."""
        with errors_for_temporal():
            async with self._database.transaction() as tx:
                return await choreography.name_payment(tx, request, at=request.at)

    @activity.defn(name="choreography.cancel")
    async def cancel(self, request: CancelChoreographed) -> Verdict:
        """Cancel the order unless it is decided; answer with the decision that stands."""
        with errors_for_temporal():
            async with self._database.transaction() as tx:
                return await choreography.cancel_choreographed(
                    tx, (request.tenant, request.order_id), reason=request.reason, at=request.at
                )


class ReportReaction:
    """What the order service does about a report: decide, tell what follows, close."""

    def __init__(self, now: Callable[[], datetime], *, tell: Sequence[str] = ()) -> None:
        self._now = now
        self._tell = tell

    async def prepare(self, messages: Sequence[Envelope]) -> Sequence[None]:
        """Nothing comes before."""
        return [None] * len(messages)

    async def apply(
        self, tx: AsyncConnection, messages: Sequence[Envelope], prepared: Sequence[Any]
    ) -> Sequence[Event]:
        """Take the reports of this batch; what follows is written down on the way."""
        reports = [told_by(message, StepReported) for message in messages]
        await choreography.take_reports(tx, reports, at=self._now(), tell=self._tell)
        return ()
