"""The order service's activities; what they guarantee is said in `everycent.database.order`."""

from temporalio import activity

from activities.boundary import errors_for_temporal
from activities.coalescer import Coalescer
from everycent.database import order, repair_case, withdrawal
from everycent.database.engine import Database
from everycent.domain.order import (
    AddAttempt,
    AttemptAnswer,
    CaseSettled,
    CloseOrder,
    Decide,
    Marked,
    MarkOrder,
    OpenAnswer,
    OpenOrder,
    OrderResult,
    Parked,
    ParkStep,
    SettleCase,
    Verdict,
)
from everycent.domain.withdrawal import WithdrawAnswer, WithdrawOrder


class OrderActivities:
    """The order's row: opened, decided, closed; its payment attempts and repair cases."""

    def __init__(self, database: Database) -> None:
        self._open: Coalescer[OpenOrder, OpenAnswer] = Coalescer(database, order.open_order)
        self._decide = Coalescer(database, order.decide)
        self._close = Coalescer(database, order.close_order)
        self._mark = Coalescer(database, order.mark_order)
        self._add_attempt: Coalescer[AddAttempt, AttemptAnswer] = Coalescer(
            database, order.add_attempt
        )
        self._park = Coalescer(database, repair_case.park_step)
        self._settle = Coalescer(database, repair_case.settle_case)
        self._withdraw: Coalescer[WithdrawOrder, WithdrawAnswer] = Coalescer(
            database, withdrawal.withdraw_order
        )

    @activity.defn(name="order.open_order")
    async def open_order(self, request: OpenOrder) -> OpenAnswer:
        """Write the order down, or answer how far it has come."""
        with errors_for_temporal():
            return await self._open.join(request)

    @activity.defn(name="order.decide")
    async def decide(self, request: Decide) -> Verdict:
        """Move the one decision, or answer the one that stands."""
        with errors_for_temporal():
            return await self._decide.join(request)

    @activity.defn(name="order.close_order")
    async def close_order(self, request: CloseOrder) -> OrderResult:
        """Store how the order ended, or answer how it had ended before."""
        with errors_for_temporal():
            return await self._close.join(request)

    @activity.defn(name="order.mark_order")
    async def mark_order(self, request: MarkOrder) -> Marked:
        """Say what the unfinished order waits for."""
        with errors_for_temporal():
            return await self._mark.join(request)

    @activity.defn(name="order.add_attempt")
    async def add_attempt(self, request: AddAttempt) -> AttemptAnswer:
        """Write a payment attempt down before it is made."""
        with errors_for_temporal():
            return await self._add_attempt.join(request)

    @activity.defn(name="order.park_step")
    async def park_step(self, request: ParkStep) -> Parked:
        """Open the repair case of a step, or count one more failure."""
        with errors_for_temporal():
            return await self._park.join(request)

    @activity.defn(name="order.settle_case")
    async def settle_case(self, request: SettleCase) -> CaseSettled:
        """Close a repair case with who and why."""
        with errors_for_temporal():
            return await self._settle.join(request)

    @activity.defn(name="order.withdraw_order")
    async def withdraw_order(self, request: WithdrawOrder) -> WithdrawAnswer:
        """Withdraw the id of an order that is not written down, or answer that it is."""
        with errors_for_temporal():
            return await self._withdraw.join(request)
